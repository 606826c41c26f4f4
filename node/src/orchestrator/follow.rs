//! Following who leads: its logs and what they name are kept here, so that this orchestrator can lead on.
//!
//! Facts come as blocks in the order of each log and are checked as an audit checks them before they are kept. What a fact
//! names and is large (a run with its programs, receipts, a result) is fetched beside that, and is not waited for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::model::fact::{End, FactLink};
use iptl_dag::model::{self, ExecutionId, Fact, FactKind};
use iptl_dag::{Block, Cid, PeerId};
use iptl_wire::takeover::{FOLLOW_PROTOCOL, Finished, MAX_FOLLOW_SIZE, ToFollower, ToLeader};
use tokio::io::BufReader;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::canary;
use super::candidacy::{Note, seat};
use super::driver::Parts;
use super::records::Records;
use super::wants::{Done, Want, Wants};
use crate::facts::{FollowError, LogError, Logs};
use crate::framed;

/// Longest wait for a stream to who leads.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Silence after which the stream is made anew: three beats. A machine that lost its power says no goodbye.
const SILENCE: Duration = Duration::from_secs(3);

/// Pause after nobody was found who leads.
const PAUSE: Duration = Duration::from_millis(250);

/// How far this follower is, for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Who leads and is followed now.
    pub leader: Option<PeerId>,
    /// What facts name and is not here yet.
    pub missing: u32,
}

/// Why who leads is followed no longer.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Link(String),
    #[error("it is silent")]
    Silent,
    #[error("it does not lead")]
    Elsewhere,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] iptl_artifacts::StoreError),
}

/// Follows whoever leads until it is told to stop.
pub(super) async fn run(
    parts: Arc<Parts>,
    notes: mpsc::Sender<Note>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) {
    let logs = Logs::new(parts.home.path("log"), parts.key.clone()).with_writers(parts.members.writers());
    let wants = Wants::new(parts.clone());
    let records = match Records::open(parts.home.clone()) {
        Ok(records) => records,
        Err(error) => {
            tracing::error!(%error, "the orchestrator stops");
            return parts.stop.cancel();
        }
    };
    let canaries = BTreeSet::new();
    let mut follower = Follower { wants, parts, logs, records, notes, progress, unflushed: false, canaries };
    tokio::select! {
        () = stop.cancelled() => {}
        () = follower.run() => {}
    }
    let _gone = follower.progress.send_replace(Progress::default());
}

struct Follower {
    parts: Arc<Parts>,
    logs: Logs,
    records: Records,
    wants: Wants,
    notes: mpsc::Sender<Note>,
    progress: watch::Sender<Progress>,
    /// Blocks came that the store may not have on the disk yet.
    unflushed: bool,
    /// Executions that are the lab's canary.
    canaries: BTreeSet<ExecutionId>,
}

impl Follower {
    async fn run(&mut self) {
        let mut logs = self.logs.unread();
        let read = tokio::task::block_in_place(|| {
            let broken = logs.replay(|facts| facts.iter().for_each(|fact| self.want(fact.execution, &fact.kind)))?;
            for log in &broken {
                // Who leads is asked for all of it again.
                let kept = logs.lay_damaged(log)?;
                tracing::error!(error = %log.error, kept = %kept.display(), "a log is damaged, and is laid aside");
            }
            Ok::<_, LogError>(())
        });
        match read {
            Ok(()) => self.logs = logs,
            Err(error) => {
                // It would neither lead nor follow where its disk cannot be read.
                tracing::error!(%error, "the orchestrator stops");
                return self.parts.stop.cancel();
            }
        }
        for end in self.records.awaited() {
            self.want_end(end);
        }
        loop {
            for (peer, addrs) in self.parts.members.candidates() {
                if peer == *self.parts.links.peer() {
                    continue;
                }
                let ended = self.follow(&peer, &addrs).await;
                self.progress.send_replace(Progress::default());
                if let Err(error) = ended {
                    tracing::info!(%peer, %error, "does not follow");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self, peer: &PeerId, addrs: &[String]) -> Result<(), Ended> {
        let parts = self.parts.clone();
        let opening = parts.links.open(peer, addrs, FOLLOW_PROTOCOL);
        let stream = tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .map_err(|_| Ended::Silent)?
            .map_err(|e| Ended::Link(e.to_string()))?;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(256 << 10, reader);
        let known = parts.members.orchestrators();
        let (heads, over) = (self.logs.heads(), self.records.newest());
        framed::write(&mut writer, &ToLeader::Follow { seat: seat(&parts).await, known, heads, over }).await?;
        // What was not named up to the first beat is known to nobody who leads.
        let mut unnamed: BTreeSet<ExecutionId> = self.logs.executions().into_iter().collect();
        loop {
            let reading = framed::read::<ToFollower>(&mut reader, MAX_FOLLOW_SIZE);
            tokio::pin!(reading);
            let message = loop {
                tokio::select! {
                    read = tokio::time::timeout(SILENCE, &mut reading) => break read,
                    done = self.wants.done() => self.done(done).await?,
                }
            };
            let message = match message {
                Ok(message) => message?,
                Err(_) => {
                    if let Some(net) = parts.links.net() {
                        net.disconnect(peer).await;
                    }
                    return Err(Ended::Silent);
                }
            };
            match message {
                None => return Ok(()),
                Some(ToFollower::Orchestrators(known)) => {
                    parts.members.learn_orchestrators(known);
                    self.logs.add_writers(parts.members.writers());
                    self.wants.ask(peer);
                    self.progress.send_modify(|progress| progress.leader = Some(peer.clone()));
                }
                Some(ToFollower::Elsewhere(known)) => {
                    parts.members.learn_orchestrators(known);
                    return Err(Ended::Elsewhere);
                }
                Some(ToFollower::Block { cid, data }) => {
                    let block = Block::verify(cid, data).map_err(|e| Ended::Link(e.to_string()))?;
                    parts.store.put(vec![block]).await?;
                    self.unflushed = true;
                }
                Some(ToFollower::Fact { block }) => {
                    if std::mem::take(&mut self.unflushed) {
                        parts.store.flush().await?;
                    }
                    let execution = self.fact(block)?;
                    unnamed.remove(&execution);
                }
                Some(ToFollower::Ended(end)) => self.ended(end),
                Some(ToFollower::Beat { beat, term, lablets }) => {
                    for execution in std::mem::take(&mut unnamed) {
                        tracing::warn!(execution = %execution.alias(), "laid aside: who leads knows nothing of it");
                        self.logs.lay_aside(&execution)?;
                    }
                    tokio::task::block_in_place(|| self.logs.commit())?;
                    let _stopping = self.notes.send(Note::Beat { from: peer.clone(), term, lablets }).await;
                    let missing = self.wants.missing();
                    self.progress.send_modify(|progress| progress.missing = missing);
                    framed::write(&mut writer, &ToLeader::Has { beat, missing }).await?;
                }
                Some(ToFollower::HandOver { from, to }) => {
                    if to == *parts.links.peer() {
                        let _stopping = self.notes.send(Note::HandedOver { from: peer.clone(), term: from }).await;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Keeps a fact where it fits; returns its execution.
    fn fact(&mut self, data: Vec<u8>) -> Result<ExecutionId, Ended> {
        let no_fact = |e: iptl_dag::DecodeError| FollowError::NoFact { reason: e.to_string() };
        let signed: model::Signed<Fact> = model::from_bytes(&data).map_err(no_fact)?;
        let execution = signed.body.execution;
        let block = Block::new(iptl_dag::Codec::DagCbor, data);
        if self.logs.head(&execution) == Some(*block.cid()) {
            // It names where the two logs agree.
            return Ok(execution);
        }
        let kept = tokio::task::block_in_place(|| self.logs.append_followed(&block));
        let fact = match kept {
            Ok(fact) => fact,
            Err(FollowError::Misfit(misfit)) => {
                tracing::warn!(execution = %execution.alias(), %misfit, "laid aside: who leads has another log");
                self.logs.lay_aside(&execution)?;
                // Where it is the first of the whole log that follows, it is kept; else all is asked for again.
                tokio::task::block_in_place(|| self.logs.append_followed(&block))?
            }
            Err(error) => return Err(error.into()),
        };
        self.want(execution, &fact.kind);
        if fact.kind.end().is_some() && self.canaries.remove(&execution) {
            self.wants.release(&execution);
            tokio::task::block_in_place(|| self.logs.remove(&execution))?;
        }
        Ok(execution)
    }

    /// Wants what a fact names.
    fn want(&mut self, execution: ExecutionId, kind: &FactKind) {
        for link in kind.links() {
            match link {
                FactLink::Run(run) => {
                    if canary::is_canary(&run) {
                        self.canaries.insert(execution);
                    }
                    self.wants.want(execution, Want::Root(run));
                }
                FactLink::Execution(cid) | FactLink::Placement(cid) => self.wants.hold(execution, cid),
                FactLink::Receipts(shard) => self.wants.want(execution, Want::Root(shard)),
                // It is the end, below.
                FactLink::Result(_) => {}
            }
        }
        // A snapshot holds no end: its execution goes on. Nothing of the lab's canary is kept.
        if let Some(end) = kind.end()
            && !self.canaries.contains(&execution)
        {
            let term = kind.ended_in().cloned();
            self.wants.want(
                execution,
                match end {
                    End::Sealed(result) => Want::Result(result, term),
                    End::Failed(reason) => Want::Failure(reason.to_owned(), term),
                },
            );
        }
    }

    /// Something that was wanted is here.
    async fn done(&mut self, done: Done) -> Result<(), Ended> {
        match done {
            Done::Root => {}
            Done::Over { end, last } => {
                let execution = end.execution;
                let recorded = self.records.get(&execution).map(|record| (record.submitted_ms, record.run));
                let submitted = match recorded {
                    Some(recorded) => Some(recorded),
                    None => submitted(&tokio::task::block_in_place(|| self.logs.blocks(&execution))?)
                        .map(|(submitted_ms, run)| (submitted_ms, Some(run))),
                };
                if let Some((submitted_ms, run)) = submitted {
                    let record = self.wants.record(&end, run, submitted_ms, *last).await;
                    tokio::task::block_in_place(|| self.records.put(record));
                }
                self.logs.close(&execution)?;
            }
            Done::Untrue { end, reason } => {
                tracing::warn!(execution = %end.execution.alias(), reason, "what was said to be its end is none");
                tokio::task::block_in_place(|| self.records.dismiss(&end));
            }
        }
        Ok(())
    }

    /// An execution that is over here ended otherwise in a later term.
    fn ended(&mut self, end: Finished) {
        if tokio::task::block_in_place(|| self.records.await_end(&end)) {
            tracing::warn!(execution = %end.execution.alias(), "it was sealed in a later term: that result counts");
            self.want_end(end);
        }
    }

    fn want_end(&mut self, end: Finished) {
        let want = match end.result {
            Some(result) => Want::Result(result, end.term),
            None => Want::Failure("the orchestrator that led then ended it without a result".to_owned(), end.term),
        };
        self.wants.want(end.execution, want);
    }
}

/// Returns when an execution was submitted, and its run.
fn submitted(blocks: &[Block]) -> Option<(u64, Cid)> {
    let fact: model::Signed<Fact> = model::from_bytes(blocks.first()?.data()).ok()?;
    match fact.body.kind {
        FactKind::Submitted { run, .. } => Some((fact.body.at_ms, run)),
        _ => None,
    }
}
