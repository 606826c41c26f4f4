//! Orchestrators and lablets: cores, what they have on disk, and what is wrong with their machines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Epoch, ExecutionId, FactKind, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::lablet::{CellRecord, LabletEffect};
use iptl_scheduler::{Candidate, Effect, Lablet, Orchestrator, ReceiptSummary};
use iptl_wire::session::{CellRef, Inventory, Slots};
use iptl_wire::takeover::{Claim, Finished};

use super::event::Logs;
use crate::clock::Clock;
use crate::lablet::FakeCell;
use crate::network::Draws;
use crate::world::lab::peer;
use crate::world::{MICRO, SECOND};

/// What is wrong with a machine.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Virtual time until which it stands still.
    pub frozen_until: u64,
    /// For how long it is down after it died in its next write, and how much of that reaches the disk, in percent.
    pub dies_in_write: Option<(u64, u32)>,
    /// Virtual time until which its disk is slow, and how often slower.
    pub slow: (u64, u64),
    /// Virtual time until which its disk is full.
    pub full_until: u64,
}

impl Machine {
    pub(super) fn is_full(&self, now: u64) -> bool {
        now < self.full_until
    }

    /// Returns how long a write takes that begins now; none where it is done at once.
    pub(super) fn write_takes(&self, now: u64, draws: &mut Draws, write_us: u64) -> u64 {
        let factor = if now < self.slow.0 { self.slow.1 } else { 1 };
        let most = if factor > 1 { write_us.max(5_000) } else { write_us };
        if most == 0 { 0 } else { draws.between(most / 50, most) * factor * MICRO }
    }
}

#[derive(Debug)]
pub(super) struct Orch {
    pub peer: PeerId,
    pub clock: Clock,
    pub machine: Machine,
    pub life: u64,
    pub candidate: Option<Candidate>,
    pub core: Option<Orchestrator>,
    pub sessions: BTreeMap<PeerId, u64>,
    /// When the timer events that are in the queue fire.
    pub core_timer: Option<u64>,
    pub candidate_timer: Option<u64>,
    /// Effects that wait for a fact to be durable, or for their turn.
    pub queue: VecDeque<Effect>,
    /// Facts that are being made durable, and since when.
    pub syncing: Vec<(ExecutionId, Epoch, FactKind)>,
    pub syncing_since: u64,
    /// Orchestrators that follow this one, with when each was last heard.
    pub contact: BTreeMap<usize, u64>,
    /// Number of the last beat.
    pub beat: u64,
    /// What follows from facts that not everybody in contact has said to have.
    pub held: VecDeque<Held>,
    /// Durable: the highest term, and whether lablets were asked in it.
    pub term: Option<Epoch>,
    pub reconciled: bool,
    /// Durable: logs and receipts.
    pub logs: Logs,
    pub store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    /// Durable: how executions ended, as it tells whoever asks.
    pub ends: BTreeMap<ExecutionId, Finished>,
}

/// Effects that are held back.
#[derive(Debug)]
pub(super) struct Held {
    /// Beat with which the facts before them went out.
    pub beat: u64,
    /// Who has not said to have these.
    pub waits: BTreeSet<usize>,
    pub effects: Vec<Effect>,
}

/// What a lablet makes durable.
#[derive(Debug)]
pub(super) enum Write {
    Promise(CellRecord),
    Term(Box<Signed<Claim>>),
    Tombstone(Finished),
}

#[derive(Debug)]
pub(super) struct Node {
    pub peer: PeerId,
    pub clock: Clock,
    pub machine: Machine,
    pub inventory: Inventory,
    pub life: u64,
    pub boot: [u8; 16],
    pub core: Option<Lablet>,
    /// When the timer event that is in the queue fires.
    pub timer: Option<u64>,
    pub target: usize,
    pub session: Option<(usize, u64)>,
    /// Virtual time at which that began.
    pub session_since: u64,
    pub greeting: Option<(usize, u64, iptl_wire::Timestamp)>,
    /// Term that its last hello said was promised.
    pub said: Option<Epoch>,
    /// The hello that waited for an answer when it turned to somebody else.
    pub turned_from: Option<(usize, u64, iptl_wire::Timestamp)>,
    /// Effects that wait for a write to be durable, or for their turn.
    pub queue: VecDeque<LabletEffect>,
    pub syncing: Option<Write>,
    /// Virtual time until which it could do nothing, since it stood still or wrote.
    pub blocked_until: u64,
    pub draining: bool,
    pub cells: BTreeMap<CellRef, FakeCell>,
    /// Durable: promises, cells, receipts, the term, what is over.
    pub promised: BTreeMap<ExecutionId, Epoch>,
    pub records: BTreeMap<CellRef, (CellRecord, Vec<(Cid, u32)>)>,
    pub store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    /// Virtual time at which each chunk of receipts was sealed.
    pub sealed_at: BTreeMap<Cid, u64>,
    pub term: Option<Signed<Claim>>,
    pub finished: Vec<Finished>,
}

fn clock(draws: &mut Draws, drift_ppm: u32) -> Clock {
    let drift = u64::from(drift_ppm);
    Clock {
        base: draws.between(0, 1_000_000) * SECOND,
        drift_ppm: draws.between(0, 2 * drift) as i64 - drift as i64,
        skew_us: draws.between(0, 20_000_000) as i64 - 10_000_000,
    }
}

impl Orch {
    /// Makes an orchestrator that is down, with an empty disk.
    pub(super) fn new(seed: u64, n: u32, drift_ppm: u32) -> Orch {
        Orch {
            peer: peer(200 + n as u16),
            clock: clock(&mut Draws::new(seed, 30_000 + u64::from(n)), drift_ppm),
            machine: Machine::default(),
            life: 0,
            candidate: None,
            core: None,
            sessions: BTreeMap::new(),
            core_timer: None,
            candidate_timer: None,
            queue: VecDeque::new(),
            syncing: Vec::new(),
            syncing_since: 0,
            contact: BTreeMap::new(),
            beat: 0,
            held: VecDeque::new(),
            term: None,
            reconciled: false,
            logs: BTreeMap::new(),
            store: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// Whether a fact of its log of an execution, as it is on its disk, satisfies `wanted`.
    pub(super) fn has_fact(&self, execution: &ExecutionId, wanted: impl Fn(&FactKind) -> bool) -> bool {
        self.logs.get(execution).is_some_and(|log| log.iter().any(|fact| wanted(&fact.kind)))
    }

    /// Whether it has asked every lablet in its term, and nothing waits to be written or for others to have it.
    pub(super) fn is_idle(&self) -> bool {
        self.reconciled && self.queue.is_empty() && self.syncing.is_empty() && self.held.is_empty()
    }

    /// Whether it leads, and takes anything in.
    pub(super) fn leads(&self, now: u64) -> bool {
        self.core.is_some() && self.machine.frozen_until <= now
    }
}

impl Node {
    /// Makes a lablet that is down, with an empty disk.
    pub(super) fn new(seed: u64, n: u32, drift_ppm: u32) -> Node {
        let mut draws = Draws::new(seed, 10_000 + u64::from(n));
        Node {
            peer: peer(1000 + n as u16),
            clock: clock(&mut draws, drift_ppm),
            machine: Machine::default(),
            inventory: Inventory {
                name: format!("l{n}"),
                cpus: 4,
                memory_bytes: 8 << 30,
                free_memory_bytes: 8 << 30,
                slots: BTreeMap::from([(WorkloadKind::Wasm, Slots::of(draws.between(2, 6) as u32))]),
                ..Inventory::default()
            },
            life: 0,
            boot: [0; 16],
            core: None,
            timer: None,
            target: 0,
            session: None,
            session_since: 0,
            greeting: None,
            said: None,
            turned_from: None,
            queue: VecDeque::new(),
            syncing: None,
            blocked_until: 0,
            draining: false,
            cells: BTreeMap::new(),
            promised: BTreeMap::new(),
            records: BTreeMap::new(),
            store: BTreeMap::new(),
            sealed_at: BTreeMap::new(),
            term: None,
            finished: Vec::new(),
        }
    }

    pub(super) fn term(&self) -> Option<&Epoch> {
        self.term.as_ref().map(|claim| &claim.body.term)
    }

    /// Whether anything runs.
    pub(super) fn runs(&self) -> bool {
        self.cells.values().any(|cell| !cell.running.is_empty())
    }

    /// What was being written is on the disk.
    pub(super) fn commit(&mut self, write: Write) {
        match write {
            Write::Promise(record) => {
                self.promised.insert(record.cell.execution, record.cell.epoch.clone());
                self.records.insert(record.cell.clone(), (record, Vec::new()));
            }
            Write::Term(claim) => self.term = Some(*claim),
            Write::Tombstone(end) => {
                self.finished.retain(|known| known.execution != end.execution);
                self.finished.push(end);
            }
        }
    }
}
