//! A lablet's node: a core, its disk, and cells that only pretend to run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_dag::model::{Assignment, Epoch, ExecutionId, Exit, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::lablet::CellRecord;
use iptl_scheduler::{Lablet, LabletEffect, ReceiptSummary};
use iptl_wire::session::{CellRef, Grant, Inventory};

/// A node with a lablet's core.
#[derive(Debug)]
pub struct LabletNode {
    /// Its identity.
    pub peer: PeerId,
    /// What its machine has.
    pub machine: Inventory,
    /// Its wall clock less the true one, in microseconds.
    pub skew_us: u64,
    /// The core; none while the node is down.
    pub core: Option<Lablet>,
    /// Rises with every start: events of an earlier life do nothing.
    pub life: u64,
    /// Differs in every life.
    pub boot: [u8; 16],
    /// Its session, once the orchestrator has answered.
    pub session: Option<u64>,
    /// Whether it waits for an answer to hello.
    pub greeting: Option<(u64, u64)>,
    /// Whether nothing passes between it and the orchestrator.
    pub cut: bool,
    /// Effects that wait for a promise to be durable, or for their turn.
    pub queue: VecDeque<LabletEffect>,
    /// Promise that is being made durable.
    pub syncing: Option<CellRecord>,
    /// Cells that pretend to run.
    pub cells: BTreeMap<CellRef, FakeCell>,
    /// Durable: promises.
    pub promised: BTreeMap<ExecutionId, Epoch>,
    /// Durable: cells with their sealed chunks.
    pub records: BTreeMap<CellRef, (CellRecord, Vec<(Cid, u32)>)>,
    /// Durable: chunks of receipts.
    pub store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    /// When the timer event that is in the queue fires.
    pub timer: Option<u64>,
}

/// A cell without instances.
#[derive(Debug)]
pub struct FakeCell {
    /// What was granted.
    pub grant: Grant,
    /// Whether it reported that it is ready.
    pub prepared: bool,
    /// Whether it was started.
    pub started: bool,
    /// Instances that run.
    pub running: BTreeSet<InstanceId>,
    /// Instances that ended and have no receipt yet.
    pub unsealed: Vec<(InstanceId, Exit)>,
}

impl FakeCell {
    /// Instances that the cell was granted.
    pub fn instances(&self) -> Vec<InstanceId> {
        self.grant.assignments.iter().flat_map(Assignment::instances).collect()
    }

    /// Whether its instances take room.
    pub fn holds_room(&self) -> bool {
        !self.started || !self.running.is_empty()
    }

    /// Receipts of what ended since the last seal.
    pub fn receipts(&mut self) -> Vec<ReceiptSummary> {
        let (attempt, epoch) = (self.grant.attempt, self.grant.cell.epoch.clone());
        std::mem::take(&mut self.unsealed)
            .into_iter()
            .map(|(instance, exit)| ReceiptSummary { instance, attempt, epoch: epoch.clone(), exit })
            .collect()
    }
}
