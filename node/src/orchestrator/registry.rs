//! What is told about executions: events to those who watch, and a record of each that ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use iptl_dag::model::{Epoch, ExecutionId, Run};
use iptl_dag::{Cid, PeerId};
use iptl_sync::SyncBook;
use iptl_wire::control::{Event, Failure, FailureKind};
use iptl_wire::session::{CellUsage, OutputLine};
use iptl_wire::takeover::Finished;
use tokio::sync::broadcast;

use super::canary;
use super::fetching::Fetching;
use super::health::Health;
use super::records::{Records, RunRecord};
use crate::home::{Home, HomeError};

/// Events that a slow watcher may lag behind.
const EVENT_QUEUE: usize = 1024;

/// Lines of output that a slow follower may lag behind.
const OUTPUT_QUEUE: usize = 8192;

/// An execution that goes on.
pub(super) struct Active {
    pub(super) run: Cid,
    pub(super) plan: Cid,
    pub(super) case: String,
    pub(super) submitted_ms: u64,
    pub(super) instances: u64,
    /// Size of every group.
    pub(super) groups: BTreeMap<String, u32>,
    /// Who submitted it.
    pub(super) by: PeerId,
    /// Lablets that were granted instances, and their sync: only they may.
    pub(super) book: SyncBook,
    /// What lablets said that their instances use, and when.
    pub(super) usage: BTreeMap<PeerId, (Instant, CellUsage)>,
    /// How far lablets are with what instances need.
    pub(super) fetching: Fetching,
    /// It is the lab's canary: it stands in no list, and nothing of it is kept.
    pub(super) canary: bool,
    history: Vec<Event>,
    events: broadcast::Sender<Event>,
    pub(super) output: broadcast::Sender<OutputLine>,
}

/// All executions of an orchestrator.
pub(super) struct Registry {
    health: Arc<Health>,
    /// Term of the lab in which executions end here.
    term: Option<Epoch>,
    pub(super) active: BTreeMap<ExecutionId, Active>,
    pub(super) records: Records,
    /// Who watches executions of which the end that counts is not here yet.
    awaited: BTreeMap<ExecutionId, broadcast::Sender<Event>>,
}

/// What a watcher gets: what happened, and what is yet to happen.
pub(crate) struct Watching {
    /// Past events.
    pub history: Vec<Event>,
    /// Further ones; none where the execution is over.
    pub events: Option<broadcast::Receiver<Event>>,
}

impl Active {
    /// Returns how many instances of each group have ended, as was told last.
    pub(super) fn ended(&self) -> BTreeMap<String, u32> {
        let told = self.history.iter().rev().find_map(|event| match event {
            Event::Progress { ended, .. } => Some(ended.clone()),
            _ => None,
        });
        told.unwrap_or_default()
    }
}

impl Registry {
    /// Reads the records of executions that ended. What ends from now on ends in `term`.
    pub(super) fn open(home: Home, health: Arc<Health>, term: Option<Epoch>) -> Result<Registry, HomeError> {
        let records = Records::open(home)?;
        Ok(Registry { health, term, active: BTreeMap::new(), records, awaited: BTreeMap::new() })
    }

    /// Enters an execution.
    pub(super) fn begin(&mut self, id: ExecutionId, run_cid: Cid, run: &Run, by: PeerId, submitted_ms: u64) {
        let active = Active {
            run: run_cid,
            plan: run.plan,
            case: run.case.clone(),
            submitted_ms,
            instances: run.instances(),
            groups: run.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect(),
            by,
            book: SyncBook::new(run),
            usage: BTreeMap::new(),
            fetching: Fetching::default(),
            canary: canary::is_canary(&run_cid),
            history: Vec::new(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            output: broadcast::Sender::new(OUTPUT_QUEUE),
        };
        self.active.insert(id, active);
    }

    /// Tells those who watch, and keeps what later watchers need.
    pub(super) fn notify(&mut self, id: ExecutionId, event: Event, now_ms: u64) {
        self.tell(id, event, now_ms, self.term.clone());
    }

    /// Tells how an execution ended that another orchestrator ended, whether or not it went on here; returns whether that
    /// counts.
    pub(super) fn adopt(&mut self, end: &Finished, last: Event, now_ms: u64) -> bool {
        if self.active.contains_key(&end.execution) {
            self.tell(end.execution, last, now_ms, end.term.clone());
            return true;
        }
        let Some(known) = self.records.get(&end.execution) else { return false };
        let (term, later) = (end.term.clone(), None);
        let record = RunRecord { ended_ms: now_ms, last, term, later, ..known.clone() };
        let counts = self.records.put(record);
        self.tell_awaiting(&end.execution);
        counts
    }

    /// Tells how an execution ended of which the run is not here, so that it never was among those that go on.
    pub(super) fn end_unread(&mut self, end: Finished, run: Option<Cid>, submitted_ms: u64, last: Event, now_ms: u64) {
        self.health.told(&last);
        if run.as_ref().is_some_and(canary::is_canary) {
            return;
        }
        let Finished { execution, term, .. } = end;
        let (plan, case, later) = (None, None, None);
        self.records.put(RunRecord { execution, run, plan, case, submitted_ms, ended_ms: now_ms, last, term, later });
    }

    /// Says that the end of a later term counts, whose result is not here yet; returns whether it does.
    pub(super) fn await_end(&mut self, end: &Finished) -> bool {
        self.records.await_end(end)
    }

    /// What was said to be the end of a later term is none: what was told before is told again.
    pub(super) fn dismiss(&mut self, end: &Finished) {
        self.records.dismiss(end);
        self.tell_awaiting(&end.execution);
    }

    /// Tells those who wait for the end that counts, where it is here.
    fn tell_awaiting(&mut self, id: &ExecutionId) {
        let Some(last) = self.told(id).map(|record| record.last.clone()) else { return };
        if let Some(awaited) = self.awaited.remove(id) {
            let _nobody_watches = awaited.send(last);
        }
    }

    fn tell(&mut self, id: ExecutionId, event: Event, now_ms: u64, term: Option<Epoch>) {
        let Some(active) = self.active.get_mut(&id) else { return };
        self.health.told(&event);
        // Of what repeats itself only the newest is told to those who come later.
        let kind = std::mem::discriminant(&event);
        let repeats = matches!(
            event,
            Event::Waiting { .. } | Event::Preparing { .. } | Event::Fetching { .. } | Event::Progress { .. }
        );
        if repeats {
            active.history.retain(|old| std::mem::discriminant(old) != kind);
        }
        if let Event::Barrier { state, .. } = &event {
            active.history.retain(|old| !matches!(old, Event::Barrier { state: s, .. } if s == state));
        }
        active.history.push(event.clone());
        let _nobody_watches = active.events.send(event.clone());
        if matches!(event, Event::Finished { .. } | Event::Failed { .. }) {
            let active = self.active.remove(&id).expect("it was found above");
            if active.canary {
                return;
            }
            let record = RunRecord {
                execution: id,
                run: Some(active.run),
                plan: Some(active.plan),
                case: Some(active.case),
                submitted_ms: active.submitted_ms,
                ended_ms: now_ms,
                last: event,
                term,
                later: None,
            };
            self.records.put(record);
        }
    }

    /// Returns past and future events of an execution.
    pub(super) fn watch(&mut self, id: &ExecutionId) -> Option<Watching> {
        if let Some(active) = self.active.get(id) {
            return Some(Watching { history: active.history.clone(), events: Some(active.events.subscribe()) });
        }
        let record = self.records.get(id)?;
        if record.later.is_some() {
            let awaited = self.awaited.entry(*id).or_insert_with(|| broadcast::Sender::new(1));
            return Some(Watching { history: Vec::new(), events: Some(awaited.subscribe()) });
        }
        Some(Watching { history: vec![record.last.clone()], events: None })
    }

    /// Finds an execution by CID, by the start of its alias, or the newest one by `last`.
    pub(super) fn find(&self, name: &str) -> Result<ExecutionId, Failure> {
        let known = || self.active.keys().copied().chain(self.records.all().map(|record| record.execution));
        if name == "last" {
            return self.newest().ok_or_else(|| unknown(name));
        }
        if let Ok(cid) = name.parse::<Cid>() {
            let of_result = |record: &&RunRecord| record.result().is_some_and(|(result, ..)| result == cid);
            let by_result = self.records.all().find(of_result).map(|record| record.execution);
            return known().find(|id| id.0 == cid).or(by_result).ok_or_else(|| unknown(name));
        }
        let mut matching = known().filter(|id| name.starts_with("x-") && id.alias() == name);
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(Failure {
                kind: FailureKind::Usage,
                code: "execution.ambiguous".to_owned(),
                message: format!("{name} is the alias of several executions"),
                help: "give the CID of the execution: `iptl ls runs`".to_owned(),
            }),
            (None, _) => Err(unknown(name)),
        }
    }

    /// Returns the record of an execution that ended, whether or not what it tells counts.
    pub(super) fn ended(&self, id: &ExecutionId) -> Option<&RunRecord> {
        self.records.get(id)
    }

    /// Returns the record of an execution of which the end that counts is here.
    pub(super) fn told(&self, id: &ExecutionId) -> Option<&RunRecord> {
        self.records.get(id).filter(|record| record.later.is_none())
    }

    /// Returns all records of executions that ended, oldest first.
    pub(super) fn records(&self) -> Vec<&RunRecord> {
        let mut records: Vec<_> = self.records.all().collect();
        records.sort_by_key(|record| record.submitted_ms);
        records
    }

    /// Returns the executions that go on and stand in lists.
    pub(super) fn listed(&self) -> impl Iterator<Item = (&ExecutionId, &Active)> {
        self.active.iter().filter(|(_, active)| !active.canary)
    }

    fn newest(&self) -> Option<ExecutionId> {
        let active = self.listed().map(|(id, active)| (active.submitted_ms, *id));
        let ended = self.records.all().map(|record| (record.submitted_ms, record.execution));
        active.chain(ended).max().map(|(_, id)| id)
    }
}

fn unknown(name: &str) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        code: "execution.unknown".to_owned(),
        message: format!("this lab knows no execution {name:?}"),
        help: "see `iptl ls runs` for what it knows".to_owned(),
    }
}
