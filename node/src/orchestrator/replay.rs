//! How an orchestrator begins: with what its logs say, its own or those that it followed.

use std::collections::{BTreeMap, BTreeSet};

use iptl_artifacts::read_block;
use iptl_dag::Cid;
use iptl_dag::model::{self, Execution, ExecutionId, Fact, FactKind, Run};
use iptl_scheduler::{Input, Submission};
use iptl_wire::control::Event;
use iptl_wire::session::KnownRun;
use iptl_wire::takeover::Finished;
use tokio::sync::mpsc;

use super::candidacy::Note;
use super::driver::{Driver, How, OrchestratorError, name_blocks};
use super::wants::failed;
use crate::clock;
use crate::keeper::Holder;

/// Windows of facts that are read before they are taken in.
const READ_AHEAD: usize = 2;

/// What logs said so far, beside what the core makes of it.
#[derive(Default)]
struct Replayed {
    /// Whose log is being read, and whether its end is recorded.
    current: Option<(ExecutionId, bool)>,
    /// Facts of executions whose end is recorded.
    put_off: BTreeMap<ExecutionId, Vec<Fact>>,
    /// Executions whose end is recorded and in the log.
    over: BTreeSet<ExecutionId>,
    /// Executions that are over, which is not recorded; of one without a result, why.
    unrecorded: Vec<(Finished, Option<String>)>,
    /// Blocks that facts name.
    named: BTreeMap<ExecutionId, Vec<Cid>>,
}

impl Driver {
    /// Lays the log of an execution aside whose end is recorded; one that stays is read at the next start, and no harm.
    pub(super) fn lay_aside(&mut self, execution: &ExecutionId) {
        if let Err(error) = tokio::task::block_in_place(|| self.logs.close(execution)) {
            tracing::warn!(%execution, %error, "the log of an execution that is over could not be laid aside");
        }
    }

    /// Reads the logs, and takes in what they say while the rest is being read.
    pub(super) async fn replay(&mut self) -> Result<(), OrchestratorError> {
        self.input(Input::Wall { unix_us: clock::wall_us() });
        let mut logs = self.logs.unread();
        let (windows, mut coming) = mpsc::channel(READ_AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            let read = logs.replay(|facts| {
                let _gave_up = windows.blocking_send(facts);
            });
            read.map(|()| logs)
        });
        let mut replayed = Replayed::default();
        while let Some(facts) = coming.recv().await {
            for fact in facts {
                self.replay_unless_over(fact, &mut replayed).await?;
            }
        }
        self.logs = reading.await.expect("reading logs does not panic, whatever the bytes")?;
        for fact in std::mem::take(&mut replayed.put_off).into_values().flatten() {
            self.replay_fact(fact, &mut replayed).await?;
        }
        let Replayed { named, unrecorded, over, .. } = replayed;
        for execution in &over {
            self.lay_aside(execution);
        }
        for (execution, named) in named {
            self.parts.keeper.hold_all(execution, Holder::Orchestrator, named);
        }
        // What was told to be over in an earlier life, or by another orchestrator, is over whoever asks.
        for end in self.registry.records.newest().into_iter().rev() {
            self.input(Input::Over(end));
        }
        for end in self.registry.records.awaited() {
            self.look_for(end, None);
        }
        for active in self.registry.active.values_mut() {
            active.book.resume();
        }
        match (self.post.how, self.post.claim.as_ref().map(|claim| claim.body.term.clone())) {
            (How::TakeOver { handed_over }, Some(term)) => {
                let lablets = std::mem::take(&mut self.post.lablets);
                self.input(Input::TakeOver { term, lablets, handed_over });
            }
            (How::TakeOver { .. }, None) | (How::Resume, _) => self.input(Input::Replayed),
        }
        for (end, reason) in unrecorded {
            let execution = end.execution;
            if self.registry.active.get(&execution).is_some_and(|active| active.canary) {
                self.registry.active.remove(&execution);
                self.erase(&execution);
                continue;
            }
            match reason {
                None => self.adopt(end),
                Some(reason) => self.adopted(&end, Ok(failed(execution, reason))),
            }
        }
        Ok(())
    }

    /// Takes in a fact. Those of an execution whose end is recorded are put off, in case its log does not know of that.
    async fn replay_unless_over(&mut self, fact: Fact, replayed: &mut Replayed) -> Result<(), OrchestratorError> {
        let execution = fact.execution;
        if replayed.current.is_none_or(|(current, _)| current != execution) {
            replayed.current = Some((execution, self.registry.ended(&execution).is_some()));
        }
        match replayed.current {
            Some((_, true)) if fact.kind.end().is_some() => {
                replayed.put_off.remove(&execution);
                replayed.over.insert(execution);
                Ok(())
            }
            Some((_, true)) => {
                replayed.put_off.entry(execution).or_default().push(fact);
                Ok(())
            }
            Some((_, false)) | None => self.replay_fact(fact, replayed).await,
        }
    }

    async fn replay_fact(&mut self, fact: Fact, replayed: &mut Replayed) -> Result<(), OrchestratorError> {
        name_blocks(&fact.kind, replayed.named.entry(fact.execution).or_default());
        let submission = match &fact.kind {
            FactKind::Submitted { execution, run, by, .. } => {
                let submission = self.submission(execution, run).await?;
                let run_node = &submission.run.run;
                self.registry.begin(fact.execution, *run, run_node, by.clone(), fact.at_ms);
                let event = Event::Submitted {
                    execution: fact.execution.0,
                    alias: fact.execution.alias(),
                    run: *run,
                    lab: self.parts.certificate.body.name.clone(),
                    groups: run_node.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect(),
                };
                self.registry.notify(fact.execution, event, fact.at_ms);
                Some(Box::new(submission))
            }
            FactKind::Sealed { result, term } => {
                let end = Finished { execution: fact.execution, result: Some(*result), term: term.clone() };
                replayed.unrecorded.push((end, None));
                None
            }
            FactKind::Failed { reason, term } => {
                let end = Finished { execution: fact.execution, result: None, term: term.clone() };
                replayed.unrecorded.push((end, Some(reason.clone())));
                None
            }
            kind => {
                if let Some(active) = self.registry.active.get_mut(&fact.execution) {
                    active.book.read(kind);
                }
                if let (FactKind::Started {}, Some(active)) = (kind, self.registry.active.get(&fact.execution)) {
                    let event = Event::Started { after_ms: fact.at_ms.saturating_sub(active.submitted_ms) };
                    self.registry.notify(fact.execution, event, fact.at_ms);
                }
                None
            }
        };
        self.input(Input::Replay { fact: Box::new(fact), submission });
        Ok(())
    }

    async fn submission(&self, execution: &Cid, run: &Cid) -> Result<Submission, OrchestratorError> {
        let execution: Execution = self.node(execution).await?;
        let cid = *run;
        let run: Run = self.node(run).await?;
        Ok(Submission { execution, run: KnownRun { cid, run } })
    }

    async fn node<T>(&self, cid: &Cid) -> Result<T, OrchestratorError>
    where
        T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
    {
        let block = read_block(&*self.parts.store, cid).await?.ok_or(OrchestratorError::Missing { cid: *cid })?;
        model::from_bytes(block.data()).map_err(|e| OrchestratorError::Damaged { cid: *cid, reason: e.to_string() })
    }

    /// Lets go of an execution that is over.
    pub(super) fn forget(&mut self, execution: &ExecutionId) {
        self.lay_aside(execution);
        self.let_go(execution);
    }

    /// Lets go of the lab's canary, of which nothing is kept.
    pub(super) fn erase(&mut self, execution: &ExecutionId) {
        if let Err(error) = tokio::task::block_in_place(|| self.logs.remove(execution)) {
            tracing::warn!(%execution, %error, "the log of the lab's canary could not be removed");
        }
        self.let_go(execution);
    }

    pub(super) fn let_go(&mut self, execution: &ExecutionId) {
        self.following.remove(execution);
        // A sealed result is pinned by itself; of a failed execution nothing is kept.
        self.parts.keeper.release(execution, Holder::Orchestrator);
    }

    /// Every lablet was asked what it holds: a later life in this term need not ask again.
    pub(super) fn reconciled(&self) {
        let Some(claim) = &self.post.claim else { return };
        let (notes, term) = (self.post.notes.clone(), claim.body.term.clone());
        tracing::info!(counter = term.counter, "what lablets hold is known");
        tokio::spawn(async move {
            let _stopping = notes.send(Note::Reconciled { term }).await;
        });
    }
}
