//! The lablet core: bids, keeps promises, runs cells under a lease, seals receipts.
//!
//! One file per family: [`session`] leases and heartbeats · [`offer`] bids · [`cell`] grants, preparation, start and
//! stop · [`receipts`] what ended and where it is kept. [`api`] holds what goes in and out.
//!
//! A lablet that hears nothing stops by its own timer, counted from the *sending* of the last heartbeat that was
//! answered. It never forgets a cell that has receipts until the orchestrator says that the execution is over.

mod api;
mod cell;
mod offer;
mod receipts;
mod session;
mod takeover;

use std::collections::{BTreeMap, VecDeque};

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId};
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Inventory, ToLablet, ToOrchestrator};
use iptl_wire::{Timestamp, Verified};

pub use api::{CellRecord, LabletConfig, LabletEffect, LabletInput};
use cell::Cell;
use session::Session;
use takeover::Leader;

/// Promises that are kept in memory; the oldest go first.
const MAX_PROMISES: usize = 65_536;

/// The lablet's half of the protocol, without IO.
#[derive(Debug)]
pub struct Lablet {
    config: LabletConfig,
    /// What the machine has, as if no cell was held.
    machine: Inventory,
    draining: bool,
    /// Wall clock: monotonic time of reading and microseconds since 1970.
    wall: (Timestamp, u64),
    session: Option<Session>,
    /// Until when cells of an orchestrator may run.
    leases: BTreeMap<PeerId, Timestamp>,
    cells: BTreeMap<ExecutionId, Cell>,
    promised: BTreeMap<ExecutionId, Epoch>,
    promise_order: VecDeque<ExecutionId>,
    leader: Leader,
    effects: VecDeque<LabletEffect>,
}

impl Lablet {
    /// Makes a core that holds nothing yet: say `Restore` with what was durable, then `Inventory`.
    pub fn new(config: LabletConfig) -> Lablet {
        Lablet {
            config,
            machine: Inventory::default(),
            draining: false,
            wall: (Timestamp(0), 0),
            session: None,
            leases: BTreeMap::new(),
            cells: BTreeMap::new(),
            promised: BTreeMap::new(),
            promise_order: VecDeque::new(),
            leader: Leader::default(),
            effects: VecDeque::new(),
        }
    }

    /// Takes in one thing that happened at `now`. Never panics, whatever the input.
    pub fn handle(&mut self, now: Timestamp, input: LabletInput) {
        // What a late timer should have stopped is stopped before anything is believed to be under a lease.
        self.expire_leases(now);
        match input {
            LabletInput::SessionUp { orchestrator, hello_at, promised, welcome } => {
                self.session_up(now, orchestrator, hello_at, promised.as_ref(), welcome.into_inner());
            }
            LabletInput::SessionDown { orchestrator } => self.session_down(&orchestrator),
            LabletInput::Offer(offer) => self.offer(now, offer.into_inner()),
            LabletInput::Message { from, message } => self.message(now, from, message),
            LabletInput::Inventory(inventory) => self.inventoried(now, inventory),
            LabletInput::Prepared { cell } => self.prepared(&cell),
            LabletInput::PrepareFailed { cell, reason, unfit } => self.prepare_failed(&cell, reason, unfit),
            LabletInput::InstanceEnded { cell, instance } => self.instance_ended(&cell, instance),
            LabletInput::ShardSealed { cell, shard, count, last } => self.shard_sealed(now, &cell, shard, count, last),
            LabletInput::SealFailed { cell, reason: _ } => self.seal_failed(now, &cell),
            LabletInput::Drain { now: at_once } => self.drain(at_once),
            LabletInput::Undrain => self.draining = false,
            LabletInput::Wall { unix_us } => self.wall = (now, unix_us),
            LabletInput::Restore { promised, cells, promised_term, finished } => {
                let finished = finished.into();
                self.leader = Leader { claim: promised_term, finished, has_heirs: false };
                self.restore(promised, cells);
            }
            LabletInput::Claim(claim) => self.claimed(claim.into_inner()),
            LabletInput::Adopted { cell, sealed, leased_until } => self.adopted(&cell, sealed, leased_until),
            LabletInput::Timeout => {}
        }
        self.seal_what_ended(now);
        self.beat(now);
    }

    /// Returns the next thing to do.
    pub fn poll_effect(&mut self) -> Option<LabletEffect> {
        self.effects.pop_front()
    }

    /// Returns when `handle` wants to be called with `Timeout`, where nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let beat = self.session.as_ref().map(|s| s.beat_at);
        let leases = self.cells.values().filter(|c| c.may_run()).map(|c| self.lease_of(c.orchestrator()));
        let seals = self.cells.values().filter_map(|c| c.seal_due());
        beat.into_iter().chain(leases).chain(seals).min()
    }

    /// Returns whom the lablet is in session with.
    pub fn in_session_with(&self) -> Option<&PeerId> {
        self.session.as_ref().map(|session| &session.orchestrator)
    }

    /// Returns what a hello says that the lablet has.
    pub fn inventory(&self) -> Inventory {
        self.inventory_without(None)
    }

    /// Returns what the lablet would have if it did not hold the cell of an execution.
    fn inventory_without(&self, execution: Option<&ExecutionId>) -> Inventory {
        let mut inventory = self.machine.clone();
        for (_, cell) in self.cells.iter().filter(|(id, cell)| cell.holds_room() && Some(*id) != execution) {
            inventory.take(&cell.record.slots);
            inventory.free_memory_bytes = inventory.free_memory_bytes.saturating_sub(cell.record.memory_bytes);
        }
        inventory.draining |= self.draining;
        inventory
    }

    /// Returns what a hello says that the lablet holds.
    pub fn cells(&self) -> Vec<CellStatus> {
        self.cells.values().map(Cell::status).collect()
    }

    /// Returns whether no cell is held that may still run: a drained lablet may go.
    pub fn idle(&self) -> bool {
        self.cells.values().all(|c| c.phase == CellPhase::Ended && c.all_kept())
    }

    /// Returns until when cells of an orchestrator may run without hearing it, where any do: what `Adopted` is given
    /// after a restart.
    pub fn leased_until(&self, orchestrator: &PeerId) -> Option<Timestamp> {
        self.leases.get(orchestrator).copied()
    }

    fn message(&mut self, now: Timestamp, from: PeerId, message: Verified<ToLablet>) {
        if self.session.as_ref().is_none_or(|s| s.orchestrator != from) {
            return;
        }
        match message.into_inner() {
            ToLablet::Lease(renewal) => self.renewed(now, renewal),
            ToLablet::Grant(grant) => self.grant(now, from, grant.body),
            ToLablet::Offer(offer) => self.offer(now, offer.body),
            // Only who leads has a session, and who leads speaks for all that came before.
            ToLablet::Directory(cell, directory) => self.directory(&cell, directory),
            ToLablet::Start(cell) => self.start(&cell),
            ToLablet::Stop(cell, reason) => self.stop(&cell, reason),
            ToLablet::Kept(cell, shard) => self.kept(&cell, shard),
            ToLablet::Finished(end) => self.finished(end),
            ToLablet::Orchestrators(known) => self.leader.has_heirs |= known.seats.len() > 1,
            // A lost bid reserves nothing; the others are not for the core.
            ToLablet::NotNeeded(_)
            | ToLablet::Welcome(_)
            | ToLablet::Turned(_)
            | ToLablet::Sync(..)
            | ToLablet::Follow(..)
            | ToLablet::Gauge(_) => {}
        }
    }

    fn wall_us(&self, now: Timestamp) -> u64 {
        self.wall.1.saturating_add(now.since(self.wall.0).as_micros() as u64)
    }

    /// Says something to the orchestrator that is served now, where one is.
    fn say(&mut self, message: ToOrchestrator) {
        if let Some(session) = &self.session {
            self.effects.push_back(LabletEffect::Send { to: session.orchestrator.clone(), message });
        }
    }

    /// Returns the cell that `named` means, where it is held.
    fn cell_mut(&mut self, named: &CellRef) -> Option<&mut Cell> {
        self.cells.get_mut(&named.execution).filter(|c| c.record.cell == *named)
    }

    fn drain(&mut self, at_once: bool) {
        self.draining = true;
        if at_once {
            let held: Vec<ExecutionId> = self.cells.keys().copied().collect();
            for id in held {
                let reason = "its owner wants the machine back";
                if let Some(cell) = self.cells.get(&id).filter(|c| c.phase < CellPhase::Running) {
                    let named = cell.record.cell.clone();
                    self.say(ToOrchestrator::Refuse(named, reason.into()));
                }
                self.end_cell(id, reason);
            }
        }
    }

    fn promise(&mut self, execution: ExecutionId, epoch: Epoch) {
        if self.promised.insert(execution, epoch).is_none() {
            self.promise_order.push_back(execution);
        }
        while self.promise_order.len() > MAX_PROMISES {
            if let Some(oldest) = self.promise_order.pop_front() {
                self.promised.remove(&oldest);
            }
        }
    }
}
