//! The orchestrator's node: a core, its disk, and a driver that carries out effects in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_dag::model::{ExecutionId, Fact, FactKind, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::{Effect, Orchestrator, OrchestratorConfig, ReceiptSummary, Submission};
use iptl_sync::SyncBook;

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
            submissions: BTreeMap::new(),
            store: BTreeMap::new(),
            results: BTreeSet::new(),
            books: BTreeMap::new(),
            looks: 0,
            again: VecDeque::new(),
            aside: BTreeSet::new(),
            timer: None,
            clock: Clock::default(),
            restarted_at: 0,
            calm_since: 0,
            frozen_until: 0,
            dies_in_write: None,
            slow: (0, 1),
            full_until: 0,
        }
    }

    /// Appends a fact to the disk.
    pub fn append(&mut self, mut fact: Fact) {
        let log = self.log.entry(fact.execution).or_default();
        fact.seq = log.len() as u64;
        log.push(fact);
    }

    /// Whether a durable fact of the execution satisfies `wanted`.
    pub fn has_fact(&self, execution: &ExecutionId, wanted: impl Fn(&Fact) -> bool) -> bool {
        self.log.get(execution).is_some_and(|log| log.iter().any(wanted))
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
