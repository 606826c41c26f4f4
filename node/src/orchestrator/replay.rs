//! How an orchestrator begins: with what its logs say, its own or those that it followed.

use std::collections::{BTreeMap, BTreeSet};

use iptl_artifacts::read_block;
use iptl_dag::Cid;
use iptl_dag::model::{self, Epoch, Execution, ExecutionId, Fact, FactKind, Run};
use iptl_scheduler::{Input, Submission};
use iptl_wire::control::{Event, Failure, FailureKind};
use iptl_wire::session::KnownRun;
use iptl_wire::takeover::Finished;
use tokio::sync::mpsc;

use super::candidacy::Note;
use super::driver::{Driver, How, OrchestratorError, name_blocks};
use super::wants::failed;
use crate::clock;
use crate::facts::{Broken, LogError};
use crate::keeper::Holder;

/// Windows of facts that are read before they are taken in.
const READ_AHEAD: usize = 2;

/// What logs said so far, beside what the core makes of it.
#[derive(Default)]
struct Replayed {
    /// Whose log is being read, and whether its end is recorded.
    current: Option<(ExecutionId, bool)>,
    /// Facts that the core takes in next, all at once.
    batch: Vec<Fact>,
    /// Facts of executions whose end is recorded.
    put_off: BTreeMap<ExecutionId, Vec<Fact>>,
    /// Executions whose end is recorded and in the log.
    over: BTreeSet<ExecutionId>,
    /// Executions that are over, which is not recorded; of one without a result, why.
    unrecorded: Vec<(Finished, Option<String>)>,
    /// Blocks that facts name.
    named: BTreeMap<ExecutionId, Vec<Cid>>,
    /// Executions that cannot go on since a block is missing or wrong that their log names.
    without: BTreeMap<ExecutionId, Without>,
}

/// What an orchestrator that led would go on without.
#[derive(Debug)]
pub(super) struct Spoiled {
    /// Executions that go on, and whose logs are whole.
    whole: BTreeSet<ExecutionId>,
    /// Executions whose logs are damaged, with the first fact that is not what was written.
    pub(super) damaged: BTreeMap<ExecutionId, u64>,
}

impl Spoiled {
    /// Whether who has these logs, each with its last fact, could lead with less loss: it knows of every execution, and of
    /// the damaged logs it has what is damaged here.
    pub(super) fn is_better_at(&self, heads: &BTreeMap<ExecutionId, u64>) -> bool {
        self.whole.iter().all(|execution| heads.contains_key(execution))
            && self.damaged.iter().all(|(execution, seq)| heads.get(execution).is_some_and(|head| head >= seq))
    }
}

/// What is known of an execution that cannot go on without a block.
struct Without {
    reason: String,
    /// Its run, and when it was submitted.
    submitted: Option<(Cid, u64)>,
}

/// An execution that ends here since it cannot go on.
struct GivenUp {
    end: Finished,
    last: Event,
    /// Its run, as far as that is known.
    run: Option<Cid>,
    submitted_ms: u64,
}

impl Driver {
    /// Lays the log of an execution aside whose end is recorded; one that stays is read at the next start, and no harm.
    pub(super) fn lay_aside(&mut self, execution: &ExecutionId) {
        if let Err(error) = tokio::task::block_in_place(|| self.logs.close(execution)) {
            tracing::warn!(%execution, %error, "the log of an execution that is over could not be laid aside");
        }
    }

    /// Reads the logs, and takes in what they say while the rest is being read. Where some are damaged, and the post may be
    /// spared, nothing is begun, and it returns what would be gone on without.
    pub(super) async fn replay(&mut self) -> Result<Option<Spoiled>, OrchestratorError> {
        self.input(Input::Wall { unix_us: clock::wall_us() });
        let mut logs = self.logs.unread();
        let (windows, mut coming) = mpsc::channel(READ_AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            let read = logs.replay(|facts| {
                let _gave_up = windows.blocking_send(facts);
            });
            read.map(|broken| (logs, broken))
        });
        let mut replayed = Replayed::default();
        while let Some(facts) = coming.recv().await {
            replayed.batch.reserve(facts.len());
            for fact in facts {
                self.replay_unless_over(fact, &mut replayed).await?;
            }
            self.replay_batch(&mut replayed);
        }
        let (logs, broken) = reading.await.expect("reading logs does not panic, whatever the bytes")?;
        self.logs = logs;
        for log in &broken {
            if let Some(execution) = log.execution {
                replayed.put_off.remove(&execution);
                replayed.named.remove(&execution);
                replayed.over.remove(&execution);
                replayed.unrecorded.retain(|(end, _)| end.execution != execution);
            }
        }
        for fact in std::mem::take(&mut replayed.put_off).into_values().flatten() {
            self.replay_fact(fact, &mut replayed).await?;
        }
        self.replay_batch(&mut replayed);
        let damaged = self.damaged(&broken);
        if self.post.is_spared && !damaged.is_empty() {
            return Ok(Some(self.spoiled(&replayed, &damaged)));
        }
        for log in &broken {
            tracing::error!(error = %log.error, "a log is damaged, and is laid aside");
        }
        let mut given_up = Vec::new();
        for (execution, (_, what)) in damaged {
            let help = format!(
                "run it again; `iptl audit {}` shows what is left of its log, which is kept, and whoever keeps the lab \
                 should look at the disk",
                execution.alias()
            );
            let failure = Failure {
                kind: FailureKind::LabUnable,
                code: "execution.log-damaged".to_owned(),
                message: format!("the lab does not know how far it was, since its log is damaged: {what}"),
                help,
            };
            given_up.push(self.give_up(execution, None, failure).await);
        }
        for (execution, Without { reason, submitted }) in std::mem::take(&mut replayed.without) {
            if self.registry.ended(&execution).is_some() {
                // It is known how it ended, and its log need not be read again.
                replayed.over.insert(execution);
                continue;
            }
            let help = "run it again; whoever keeps the lab should look at the orchestrator's disk: `iptl store check`";
            let failure = Failure {
                kind: FailureKind::LabUnable,
                code: "execution.block-missing".to_owned(),
                message: format!("it cannot go on: {reason}"),
                help: help.to_owned(),
            };
            given_up.push(self.give_up(execution, submitted, failure).await);
        }
        for (execution, age) in self.logs.ages() {
            self.input(Input::Aged { execution, submitted: age.submitted, started: age.started });
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
        for GivenUp { end, last, run, submitted_ms } in given_up {
            let execution = end.execution;
            if self.registry.active.contains_key(&execution) {
                self.registry.adopt(&end, last, clock::wall().0);
            } else {
                self.registry.end_unread(end.clone(), run, submitted_ms, last, clock::wall().0);
            }
            self.input(Input::Over(end));
            if !broken.iter().any(|log| log.execution == Some(execution)) {
                self.lay_aside(&execution);
            }
            self.let_go(&execution);
        }
        // What is known of them is recorded by now.
        for log in &broken {
            let kept = tokio::task::block_in_place(|| self.logs.lay_damaged(log))?;
            tracing::warn!(kept = %kept.display(), "a damaged log is kept as it is");
        }
        Ok(None)
    }

    /// Returns the executions that go on as far as is known, and whose logs are damaged: from which fact on, and how.
    fn damaged(&self, broken: &[Broken]) -> BTreeMap<ExecutionId, (u64, String)> {
        let laid_aside = self.post.spoiled.iter().filter(|execution| self.logs.head(execution).is_none());
        let what = "nobody who has it whole came to lead";
        let mut damaged: BTreeMap<_, _> = laid_aside.map(|execution| (*execution, (0, what.to_owned()))).collect();
        damaged.extend(broken.iter().filter_map(|log| {
            let what = match &log.error {
                LogError::Damaged { seq, reason, .. } => (*seq, format!("fact {seq}: {reason}")),
                error @ LogError::Io { .. } => (0, error.to_string()),
            };
            Some((log.execution?, what))
        }));
        damaged.retain(|execution, _| self.registry.ended(execution).is_none());
        damaged
    }

    /// Returns what this orchestrator would go on without.
    fn spoiled(&self, replayed: &Replayed, damaged: &BTreeMap<ExecutionId, (u64, String)>) -> Spoiled {
        let is_over = |id: &ExecutionId| {
            replayed.over.contains(id) || replayed.unrecorded.iter().any(|(end, _)| end.execution == *id)
        };
        // The lab's canary is no loss.
        let goes_on = |id: &ExecutionId| self.registry.active.get(id).is_some_and(|active| !active.canary);
        let whole = self.logs.executions().into_iter().filter(|id| goes_on(id) && !is_over(id)).collect();
        Spoiled { whole, damaged: damaged.iter().map(|(execution, (seq, _))| (*execution, *seq)).collect() }
    }

    /// Ends an execution that cannot go on here, before anything is acted on, and that was submitted with this run at this
    /// time; its author is told why.
    async fn give_up(&mut self, execution: ExecutionId, submitted: Option<(Cid, u64)>, failure: Failure) -> GivenUp {
        let term = self.post.claim.as_ref().map(|claim| claim.body.term.clone());
        // The core forgets what it took in of it.
        let kind = FactKind::Failed { reason: String::new(), term: term.clone() };
        let epoch = Epoch { counter: 1, peer: self.parts.links.peer().clone() };
        let fact = Fact { execution, seq: 0, prev: None, epoch, at_ms: clock::wall().0, kind };
        self.input(Input::Replay { facts: vec![fact], submission: None });
        let submitted_ms = submitted.map_or_else(|| clock::wall().0, |(_, at_ms)| at_ms);
        let mut run = submitted.map(|(run, _)| run);
        if !self.registry.active.contains_key(&execution) {
            if run.is_none() {
                // Not even its first fact can be read: an execution is named by a block that says what it runs.
                run = self.node::<Execution>(&execution.0).await.ok().map(|node| node.run);
            }
            if let Some(cid) = run
                && let Ok(node) = self.node::<Run>(&cid).await
            {
                let by = self.parts.links.peer().clone();
                self.registry.begin(execution, cid, &node, by, submitted_ms);
            }
        }
        tracing::error!(execution = %execution.alias(), why = failure.message, "it ends without a result");
        let last = Event::Failed { execution: execution.0, failure };
        GivenUp { end: Finished { execution, result: None, term }, last, run, submitted_ms }
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

    /// Takes in a fact. One that names what is missing, or is not what it should be, is the end of its execution alone.
    async fn replay_fact(&mut self, fact: Fact, replayed: &mut Replayed) -> Result<(), OrchestratorError> {
        let execution = fact.execution;
        if replayed.without.contains_key(&execution) {
            return Ok(());
        }
        let submitted = match &fact.kind {
            FactKind::Submitted { run, .. } => Some((*run, fact.at_ms)),
            _ => None,
        };
        match self.replay_whole(fact, replayed).await {
            Err(error @ (OrchestratorError::Missing { .. } | OrchestratorError::Damaged { .. })) => {
                replayed.without.insert(execution, Without { reason: error.to_string(), submitted });
                Ok(())
            }
            taken => taken,
        }
    }

    /// Has the core take in what was put together for it.
    fn replay_batch(&mut self, replayed: &mut Replayed) {
        let facts = std::mem::take(&mut replayed.batch);
        if !facts.is_empty() {
            self.input(Input::Replay { facts, submission: None });
        }
    }

    async fn replay_whole(&mut self, fact: Fact, replayed: &mut Replayed) -> Result<(), OrchestratorError> {
        name_blocks(&fact.kind, replayed.named.entry(fact.execution).or_default());
        match &fact.kind {
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
                self.replay_batch(replayed);
                self.input(Input::Replay { facts: vec![fact], submission: Some(Box::new(submission)) });
                return Ok(());
            }
            FactKind::Sealed { result, term } => {
                let end = Finished { execution: fact.execution, result: Some(*result), term: term.clone() };
                replayed.unrecorded.push((end, None));
            }
            FactKind::Failed { reason, term } => {
                let end = Finished { execution: fact.execution, result: None, term: term.clone() };
                replayed.unrecorded.push((end, Some(reason.clone())));
            }
            kind => {
                if let Some(active) = self.registry.active.get_mut(&fact.execution) {
                    active.book.read(kind);
                }
                if let (FactKind::Started {}, Some(active)) = (kind, self.registry.active.get(&fact.execution)) {
                    let event = Event::Started { after_ms: fact.at_ms.saturating_sub(active.submitted_ms) };
                    self.registry.notify(fact.execution, event, fact.at_ms);
                }
            }
        }
        replayed.batch.push(fact);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_orchestrator_is_better_where_it_knows_of_all_that_goes_on_and_has_what_is_damaged() {
        let [hurt, goes_on, other] =
            ["hurt", "goes on", "other"].map(|name| ExecutionId(iptl_dag::codec::cid_of(&name)));
        let spoiled = Spoiled { whole: BTreeSet::from([goes_on]), damaged: BTreeMap::from([(hurt, 5)]) };
        let rows = [
            (vec![(hurt, 5), (goes_on, 0)], true),
            (vec![(hurt, 9), (goes_on, 7), (other, 3)], true),
            // It has no more of the damaged one than is whole here.
            (vec![(hurt, 4), (goes_on, 7)], false),
            (vec![(goes_on, 7)], false),
            // It was cut off before the other one was submitted.
            (vec![(hurt, 9)], false),
        ];
        for (heads, expected) in rows {
            let heads = BTreeMap::from_iter(heads);
            assert_eq!(spoiled.is_better_at(&heads), expected, "{heads:?}");
        }
    }
}
