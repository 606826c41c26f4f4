//! What facts name and a follower fetches beside them, and what is recorded of executions that are over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{PinKind, read_block};
use iptl_dag::model::{self, Epoch, ExecutionId, Run};
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};
use iptl_wire::control::{Event, Failure, FailureKind};
use iptl_wire::takeover::Finished;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::driver::Parts;
use super::records::RunRecord;
use super::sealed;
use crate::clock;
use crate::fetch::Wanted;
use crate::keeper::Holder;

/// Things that are fetched at a time; each has several batches in flight by itself.
const MAX_AT_ONCE: usize = 4;

/// A fetch is given up after so long without a block, and begun again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a fetch is begun again.
const AGAIN: Duration = Duration::from_secs(1);

/// Most bytes of one thing: a chunk of receipts with all that its instances left.
const MAX_SIZE: u64 = 32 << 30;

/// Something that a fact names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// A run with its plan and programs, or a chunk of receipts with all that it links.
    Root(Cid),
    /// A sealed result, and the term in which it was; the execution is over.
    Result(Cid, Option<Epoch>),
    /// The execution is over without a result, and since which term.
    Failure(String, Option<Epoch>),
}

/// Something is here.
#[derive(Debug)]
pub(super) enum Done {
    /// A root.
    Root,
    /// An execution is over, and this is told of its end.
    Over { end: Finished, last: Box<Event> },
    /// What was said to be an end is none.
    Untrue { end: Finished, reason: String },
}

/// What a follower wants.
pub(super) struct Wants {
    parts: Arc<Parts>,
    tasks: JoinSet<Done>,
    wanted: BTreeSet<(ExecutionId, Want)>,
    places: Arc<Semaphore>,
    /// Who leads, and has it.
    from: tokio::sync::watch::Sender<Option<PeerId>>,
}

impl Wants {
    pub(super) fn new(parts: Arc<Parts>) -> Wants {
        Wants {
            parts,
            tasks: JoinSet::new(),
            wanted: BTreeSet::new(),
            places: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            from: tokio::sync::watch::Sender::new(None),
        }
    }

    /// Asks this peer first from now on.
    pub(super) fn ask(&self, peer: &PeerId) {
        self.from.send_replace(Some(peer.clone()));
    }

    /// Returns how many things are not here yet.
    pub(super) fn missing(&self) -> u32 {
        u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)
    }

    /// Keeps a block that is here until the execution is over.
    pub(super) fn hold(&self, execution: ExecutionId, root: Cid) {
        self.parts.keeper.hold(execution, Holder::Orchestrator, root);
    }

    /// Lets go of what was kept for an execution.
    pub(super) fn release(&mut self, execution: &ExecutionId) {
        self.wanted.retain(|(of, _)| of != execution);
        self.parts.keeper.release(execution, Holder::Orchestrator);
    }

    /// Fetches something and keeps it, however long it takes.
    pub(super) fn want(&mut self, execution: ExecutionId, want: Want) {
        if !self.wanted.insert((execution, want.clone())) {
            return;
        }
        let (parts, places, from) = (self.parts.clone(), self.places.clone(), self.from.subscribe());
        self.tasks.spawn(async move {
            match want {
                Want::Root(root) => {
                    parts.keeper.hold(execution, Holder::Orchestrator, root);
                    fetch(&parts, &places, from, root).await;
                    Done::Root
                }
                Want::Result(root, term) => {
                    parts.keeper.hold(execution, Holder::Orchestrator, root);
                    let end = Finished { execution, result: Some(root), term };
                    loop {
                        fetch(&parts, &places, from.clone(), root).await;
                        match sealed::found(&parts, &end, root).await {
                            Ok(Ok(last)) => break Done::Over { end, last: Box::new(last) },
                            Ok(Err(reason)) => break Done::Untrue { end, reason },
                            Err(error) => {
                                tracing::warn!(%root, %error, "a result cannot be read");
                                tokio::time::sleep(FETCH_TIMEOUT).await;
                            }
                        }
                    }
                }
                Want::Failure(reason, term) => {
                    let end = Finished { execution, result: None, term };
                    Done::Over { end, last: Box::new(failed(execution, reason)) }
                }
            }
        });
    }

    /// Returns the next thing that is here; for ever where nothing is wanted. Cancel safe.
    pub(super) async fn done(&mut self) -> Done {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) => tracing::error!(%error, "a fetch broke"),
                None => std::future::pending().await,
            }
        }
    }

    /// Returns what is recorded of an execution that is over, and keeps its result.
    pub(super) async fn record(&self, end: &Finished, run: Option<Cid>, submitted_ms: u64, last: Event) -> RunRecord {
        let Parts { store, keeper, .. } = &*self.parts;
        let execution = end.execution;
        if let Event::Finished { result, .. } = &last
            && let Err(error) = keeper.keep(*result, PinKind::Result, &execution.alias(), None).await
        {
            tracing::error!(%error, "a result is not kept");
        }
        let block = match &run {
            Some(run) => read_block(&**store, run).await.ok().flatten(),
            None => None,
        };
        let node = block.and_then(|block| model::from_bytes::<Run>(block.data()).ok());
        keeper.release(&execution, Holder::Orchestrator);
        let (plan, case) = node.map(|run| (run.plan, run.case)).unzip();
        let (term, later) = (end.term.clone(), None);
        let ended_ms = clock::wall().0;
        RunRecord { execution, run, plan, case, submitted_ms, ended_ms, last, term, later }
    }
}

/// What is told of an execution that ended without a result under another orchestrator.
pub(super) fn failed(execution: ExecutionId, reason: String) -> Event {
    let failure = Failure {
        kind: FailureKind::LabUnable,
        code: "execution.no-result".to_owned(),
        message: reason,
        help: "see its log: `iptl audit EXECUTION`".to_owned(),
    };
    Event::Failed { execution: execution.0, failure }
}

/// Fetches a DAG from who leads or whoever has it, until it is whole.
async fn fetch(parts: &Parts, places: &Semaphore, mut from: tokio::sync::watch::Receiver<Option<PeerId>>, root: Cid) {
    loop {
        let place = places.acquire().await;
        let peer = from.borrow_and_update().clone();
        let from = peer.map(|peer| (peer.clone(), parts.members.addrs_of(&peer))).into_iter().collect();
        let wanted = Wanted { root, from, fellows: Vec::new(), timeout: FETCH_TIMEOUT, shallow: false };
        let limits = Limits { bytes: MAX_SIZE, ..Limits::default() };
        match parts.fetcher.clone().within(limits).fetch(&wanted, |_| {}).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(%root, %error, "what a fact names is not here yet"),
        }
        drop(place);
        tokio::time::sleep(AGAIN).await;
    }
}
