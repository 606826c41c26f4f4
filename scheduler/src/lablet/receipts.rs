//! Receipts: sealed while the cell runs, announced until the orchestrator keeps them.

use iptl_dag::Cid;
use iptl_dag::model::InstanceId;
use iptl_wire::Timestamp;
use iptl_wire::session::{CellPhase, CellRef, ReceiptsReady, ToOrchestrator};

use super::cell::Cell;
use super::{Lablet, LabletEffect};

/// Heartbeats after which an announcement that nobody answered is made again.
const ANNOUNCE_AGAIN: u32 = 3;

/// A sealed chunk of receipts.
#[derive(Debug)]
pub(super) struct Shard {
    pub count: u32,
    pub kept: bool,
    /// Heartbeats since it was announced; none where it was not.
    pub announced: Option<u32>,
}

impl Shard {
    pub(super) fn new(count: u32) -> Shard {
        Shard { count, kept: false, announced: None }
    }
}

impl Cell {
    /// Returns when a seal is due, where something waits for one.
    pub(super) fn seal_due(&self) -> Option<Timestamp> {
        let waiting = !self.restored && !self.sealing && self.ended.len() as u32 > self.sealed;
        waiting.then_some(self.seal_at)
    }

    pub(super) fn all_kept(&self) -> bool {
        (self.restored || self.sealed >= self.slots()) && self.shards.values().all(|s| s.kept)
    }

    /// Takes all receipts as kept by nobody: who said so may be gone.
    pub(super) fn unkeep(&mut self) {
        for shard in self.shards.values_mut() {
            shard.kept = false;
            shard.announced = None;
        }
    }

    /// Makes all announcements new: the session is.
    pub(super) fn announce_again(&mut self) {
        for shard in self.shards.values_mut() {
            shard.announced = None;
        }
    }

    /// Counts a heartbeat; what was announced long ago is announced again.
    pub(super) fn announce_stale(&mut self) {
        for shard in self.shards.values_mut().filter(|s| !s.kept) {
            shard.announced = match shard.announced {
                Some(beats) if beats + 1 < ANNOUNCE_AGAIN => Some(beats + 1),
                Some(_) | None => None,
            };
        }
    }
}

impl Lablet {
    pub(super) fn instance_ended(&mut self, named: &CellRef, instance: InstanceId) {
        let Some(cell) = self.cell_mut(named) else { return };
        if cell.restored || cell.phase != CellPhase::Running || !cell.holds(&instance) {
            return;
        }
        cell.ended.insert(instance);
        if cell.ended.len() as u32 >= cell.slots() {
            cell.phase = CellPhase::Ended;
            // The last receipts do not wait for the interval.
            cell.seal_at = Timestamp(0);
        }
    }

    /// Orders seals that are due.
    pub(super) fn seal_what_ended(&mut self, now: Timestamp) {
        for cell in self.cells.values_mut() {
            if cell.seal_due().is_some_and(|at| at <= now) {
                cell.sealing = true;
                self.effects.push_back(LabletEffect::Seal { cell: cell.record.cell.clone() });
            }
        }
    }

    pub(super) fn shard_sealed(&mut self, now: Timestamp, named: &CellRef, shard: Cid, count: u32, last: bool) {
        let next = now.after(std::time::Duration::from_millis(self.config.seal_interval_ms));
        let Some(cell) = self.cell_mut(named) else { return };
        if count > 0 && !cell.shards.contains_key(&shard) {
            cell.shards.insert(shard, Shard::new(count));
            cell.sealed = cell.sealed.saturating_add(count);
        }
        if last {
            cell.sealing = false;
            cell.seal_at = if cell.phase == CellPhase::Ended { Timestamp(0) } else { next };
            if count == 0 {
                // An order that wrote nothing is not repeated at once.
                cell.seal_at = next;
            }
        }
        self.announce_receipts();
    }

    pub(super) fn seal_failed(&mut self, now: Timestamp, named: &CellRef) {
        let next = now.after(std::time::Duration::from_millis(self.config.seal_interval_ms));
        if let Some(cell) = self.cell_mut(named) {
            cell.sealing = false;
            cell.seal_at = next;
        }
    }

    /// Announces chunks that the orchestrator was not told of.
    pub(super) fn announce_receipts(&mut self) {
        if self.session.is_none() {
            return;
        }
        let mut ready = Vec::new();
        for cell in self.cells.values_mut() {
            let named = cell.record.cell.clone();
            for (shard, state) in cell.shards.iter_mut().filter(|(_, s)| !s.kept && s.announced.is_none()) {
                state.announced = Some(0);
                ready.push(ReceiptsReady { cell: named.clone(), shard: *shard, count: state.count });
            }
        }
        for receipts in ready {
            self.say(ToOrchestrator::Receipts(receipts));
        }
    }

    pub(super) fn kept(&mut self, named: &CellRef, shard: Cid) {
        if let Some(cell) = self.cell_mut(named)
            && let Some(state) = cell.shards.get_mut(&shard)
        {
            state.kept = true;
        }
    }
}
