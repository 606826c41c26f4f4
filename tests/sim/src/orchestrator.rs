//! The orchestrator's node: a core, its disk, and a driver that carries out effects in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_dag::model::{ExecutionId, Fact, FactKind, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::{Effect, Orchestrator, OrchestratorConfig, ReceiptSummary, Submission};
use iptl_sync::SyncBook;
use iptl_wire::Timestamp;

use crate::clock::Clock;

/// A node with the orchestrator's core.
#[derive(Debug)]
pub struct OrchestratorNode {
    /// Its identity.
    pub peer: PeerId,
    /// Configuration of each life.
    pub config: OrchestratorConfig,
    /// The core; none while the node is down.
    pub core: Option<Orchestrator>,
    /// Rises with every start: events of an earlier life do nothing.
    pub life: u64,
    /// Effects that wait for a fact to be durable, or for their turn.
    pub queue: VecDeque<Effect>,
    /// Facts that are being made durable.
    pub syncing: Vec<Fact>,
    /// Current session of each lablet.
    pub sessions: BTreeMap<PeerId, u64>,
    /// Durable: logs.
    pub log: BTreeMap<ExecutionId, Vec<Fact>>,
    /// As durable: when executions were submitted and started, by the clock that nobody sets.
    pub began: BTreeMap<ExecutionId, (Timestamp, Option<Timestamp>)>,
    /// Durable: what first facts link.
    pub submissions: BTreeMap<ExecutionId, Submission>,
    /// Durable: chunks of receipts that were pulled.
    pub store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    /// Durable: results.
    pub results: BTreeSet<Cid>,
    /// Sync of runs whose instances meet.
    pub books: BTreeMap<ExecutionId, SyncBook>,
    /// Looks at barriers in this life.
    pub looks: u32,
    /// Of each loss of a cell that is not durable yet, in order: which instances waited for another attempt then.
    pub again: VecDeque<Vec<InstanceId>>,
    /// Executions whose logs were laid aside before this life, since they are over.
    pub aside: BTreeSet<ExecutionId>,
    /// When the timer event that is in the queue fires.
    pub timer: Option<u64>,
    /// Its clocks.
    pub clock: Clock,
    /// Its wall clock was set by an hour or more since it started.
    pub was_set: bool,
    /// Virtual time of its last start.
    pub restarted_at: u64,
    /// Virtual time since when it has a disk and its time.
    pub calm_since: u64,
    /// Virtual time until which it stands still.
    pub frozen_until: u64,
    /// For how long it is down after it died in its next write, and how much of that reaches the disk, in percent.
    pub dies_in_write: Option<(u64, u32)>,
    /// Virtual time until which its disk is slow, and how often slower.
    pub slow: (u64, u64),
    /// Virtual time until which its disk is full.
    pub full_until: u64,
}

impl OrchestratorNode {
    /// Makes a node that is down, with an empty disk.
    pub fn new(config: OrchestratorConfig) -> OrchestratorNode {
        OrchestratorNode {
            peer: config.peer.clone(),
            config,
            core: None,
            life: 0,
            queue: VecDeque::new(),
            syncing: Vec::new(),
            sessions: BTreeMap::new(),
            log: BTreeMap::new(),
            began: BTreeMap::new(),
            submissions: BTreeMap::new(),
            store: BTreeMap::new(),
            results: BTreeSet::new(),
            books: BTreeMap::new(),
            looks: 0,
            again: VecDeque::new(),
            aside: BTreeSet::new(),
            timer: None,
            clock: Clock::default(),
            was_set: false,
            restarted_at: 0,
            calm_since: 0,
            frozen_until: 0,
            dies_in_write: None,
            slow: (0, 1),
            full_until: 0,
        }
    }

    /// Appends a fact to the disk at a virtual time.
    pub fn append(&mut self, mut fact: Fact, now: u64) {
        let stamp = self.clock.stamp(now);
        match fact.kind {
            FactKind::Submitted { .. } => drop(self.began.insert(fact.execution, (stamp, None))),
            FactKind::Started {} => {
                if let Some((_, started)) = self.began.get_mut(&fact.execution) {
                    *started = Some(stamp);
                }
            }
            _ => {}
        }
        let log = self.log.entry(fact.execution).or_default();
        fact.seq = log.len() as u64;
        log.push(fact);
    }

    /// Whether a durable fact of the execution satisfies `wanted`.
    pub fn has_fact(&self, execution: &ExecutionId, wanted: impl Fn(&Fact) -> bool) -> bool {
        self.log.get(execution).is_some_and(|log| log.iter().any(wanted))
    }

    /// Whether an execution was started.
    pub fn has_started(&self, execution: &ExecutionId) -> bool {
        self.began.get(execution).is_some_and(|(_, started)| started.is_some())
    }

    /// Whether the log of an execution has its last fact.
    pub fn is_over(&self, execution: &ExecutionId) -> bool {
        self.end(execution).is_some()
    }

    /// Returns the result of an execution that is over, where it has one.
    pub fn end(&self, execution: &ExecutionId) -> Option<Option<Cid>> {
        self.log.get(execution)?.iter().find_map(|fact| match fact.kind {
            FactKind::Sealed { result, .. } => Some(Some(result)),
            FactKind::Failed { .. } => Some(None),
            _ => None,
        })
    }
}
