//! A lablet's node: a core, its disk, and cells that only pretend to run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_dag::model::{Assignment, Epoch, ExecutionId, Exit, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::lablet::CellRecord;
use iptl_scheduler::{Lablet, LabletEffect, ReceiptSummary};
use iptl_sync::CellSync;
use iptl_wire::Timestamp;
use iptl_wire::session::{CellRef, Grant, Inventory};

use crate::clock::Clock;

/// A node with a lablet's core.
#[derive(Debug)]
pub struct LabletNode {
    /// Its identity.
    pub peer: PeerId,
    /// What its machine has.
    pub machine: Inventory,
    /// Its clocks.
    pub clock: Clock,
    /// The core; none while the node is down.
    pub core: Option<Lablet>,
    /// Rises with every start: events of an earlier life do nothing.
    pub life: u64,
    /// Differs in every life.
    pub boot: [u8; 16],
    /// Its session, once the orchestrator has answered.
    pub session: Option<u64>,
    /// Session that waits for an answer to hello, with the time of its hello on the lablet's clock.
    pub greeting: Option<(u64, Timestamp)>,
    /// Virtual time until which what it says is lost.
    pub cut_up_until: u64,
    /// Virtual time until which what it is told is lost.
    pub cut_down_until: u64,
    /// Virtual time until which it stands still.
    pub frozen_until: u64,
    /// For how long it is down after it died in its next write, and how much of that reaches the disk, in percent.
    pub dies_in_write: Option<(u64, u32)>,
    /// Virtual time until which its disk is slow, and how often slower.
    pub slow: (u64, u64),
    /// Virtual time until which its disk is full.
    pub full_until: u64,
    /// Virtual time since when it has a session, a network, a disk and its time.
    pub calm_since: u64,
    /// When each chunk of receipts was sealed.
    pub sealed_at: BTreeMap<Cid, u64>,
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

impl LabletNode {
    /// Makes a node that is down, with an empty disk.
    pub fn new(peer: PeerId, machine: Inventory, clock: Clock) -> LabletNode {
        LabletNode {
            peer,
            machine,
            clock,
            core: None,
            life: 0,
            boot: [0; 16],
            session: None,
            greeting: None,
            cut_up_until: 0,
            cut_down_until: 0,
            frozen_until: 0,
            dies_in_write: None,
            slow: (0, 1),
            full_until: 0,
            calm_since: 0,
            sealed_at: BTreeMap::new(),
            queue: VecDeque::new(),
            syncing: None,
            cells: BTreeMap::new(),
            promised: BTreeMap::new(),
            records: BTreeMap::new(),
            store: BTreeMap::new(),
            timer: None,
        }
    }

    /// Whether what it says now is lost.
    pub fn cut_up(&self, now: u64) -> bool {
        now < self.cut_up_until
    }

    /// Whether what it is told now is lost.
    pub fn cut_down(&self, now: u64) -> bool {
        now < self.cut_down_until
    }
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
    /// Whether it was told to stop.
    pub stopping: bool,
    /// Instances that run.
    pub running: BTreeSet<InstanceId>,
    /// Instances that ended and have no receipt yet.
    pub unsealed: Vec<(InstanceId, Exit)>,
    /// Sync of its instances, from its start on.
    pub sync: CellSync,
}

impl FakeCell {
    /// Makes a cell that begins to prepare.
    pub fn new(grant: Grant) -> FakeCell {
        FakeCell {
            grant,
            prepared: false,
            started: false,
            stopping: false,
            running: BTreeSet::new(),
            unsealed: Vec::new(),
            sync: CellSync::new([]),
        }
    }

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
