//! The queue: who is placed next, and who waits for whom.
//!
//! What was started or granted is made whole first. Then runs are placed: those of a higher priority before all others,
//! of equal ones those of whom holds the fewest instances first, and of each in the order of submission. A run that waits because others hold the room gets a part of the lab
//! reserved: later ones may have what is left beside that, so that it is not starved and nobody waits without need. One
//! that no lab of these lablets could hold reserves nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId};
use iptl_wire::session::Inventory;
use iptl_wire::{Timestamp, WallTime};

use super::offer::bans;
use super::room::leave_nothing;
use super::state::{Exec, Stage, kinds_of, memory_of};
use super::{Effect, Orchestrator, ms};
use crate::placement::placement;

/// Waiting runs that have room reserved; whoever comes after so many waits for the first of them.
const MAX_RESERVED: usize = 16;

/// Room that is kept for runs that wait.
type Reserved = Vec<(ExecutionId, Vec<Assignment>)>;

impl Orchestrator {
    /// Tries to place whatever waits for a place.
    pub(super) fn plan_queue(&mut self, now: Timestamp) {
        let held = self.held_by_submitter();
        let before = |exec: &Exec| Reverse(exec.priority);
        let mut queue: Vec<(bool, Reverse<i32>, u64, u64, ExecutionId)> = self
            .executions
            .iter()
            .filter_map(|(id, exec)| match exec.stage {
                Stage::Waiting => {
                    let held = held.get(&exec.by).copied().unwrap_or(0);
                    Some((true, before(exec), held, exec.order, *id))
                }
                Stage::Granted if exec.open() > 0 => Some((false, before(exec), 0, exec.order, *id)),
                Stage::Running { .. } if !exec.replace.is_empty() && !exec.recalling() => {
                    Some((false, before(exec), 0, exec.order, *id))
                }
                Stage::Granted
                | Stage::Running { .. }
                | Stage::Offered { .. }
                | Stage::Stopping { .. }
                | Stage::Assembling { .. } => None,
            })
            .collect();
        queue.sort_unstable();
        let mut reserved = Reserved::new();
        for (.., id) in queue {
            match self.executions.get(&id).map(|e| e.stage.clone()) {
                Some(Stage::Granted) => self.place_open(now, id),
                Some(Stage::Running { .. }) => self.place_replacements(now, id),
                Some(Stage::Waiting) if reserved.len() >= MAX_RESERVED => self.wait_behind(id, &reserved),
                Some(Stage::Waiting) => self.place_waiting(now, id, &mut reserved),
                Some(Stage::Offered { .. } | Stage::Stopping { .. } | Stage::Assembling { .. }) | None => {}
            }
        }
    }

    /// Instances that the runs of each submitter hold or were offered.
    fn held_by_submitter(&self) -> BTreeMap<PeerId, u64> {
        let mut held = BTreeMap::new();
        for exec in self.executions.values().filter(|e| !matches!(e.stage, Stage::Waiting)) {
            let over = exec.received.len() + exec.lost.len();
            *held.entry(exec.by.clone()).or_default() += exec.run.run.instances().saturating_sub(over as u64);
        }
        held
    }

    fn place_waiting(&mut self, now: Timestamp, id: ExecutionId, reserved: &mut Reserved) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        exec.drop_stale_bids(now);
        let exec = &self.executions[&id];
        let free = self.available(Some(id), &exec.bids);
        let alone = exec.run.run.placing.dedicated;
        let placed = placement(&exec.run.run, &self.beside(free.clone(), reserved, alone), &[], &bans(exec, now));
        if placed.missing() == 0 {
            self.record_placement(now, id, placed);
            return self.make_offer(now, id);
        }
        let unreserved = match reserved.is_empty() {
            true => placed,
            false => placement(&exec.run.run, &free, &[], &bans(exec, now)),
        };
        let emptied = self.emptied();
        let fits_empty = placement(&exec.run.run, &emptied, &[], &BTreeMap::new()).missing() == 0;
        let place = placement(&exec.run.run, &self.beside(emptied, reserved, alone), &[], &BTreeMap::new());
        let reason = (unreserved.missing() > 0).then(|| self.reason_to_wait(exec, &unreserved));
        match reason {
            Some(reason) => {
                if let Some(exec) = self.executions.get_mut(&id) {
                    exec.reason = reason;
                }
            }
            None => self.wait_behind(id, reserved),
        }
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if fits_empty {
            exec.unfit_since = None;
            reserved.push((id, place.assignments));
        } else {
            exec.unfit_since.get_or_insert(now);
        }
    }

    /// Says that a run waits for the first of those that wait before it.
    fn wait_behind(&mut self, id: ExecutionId, reserved: &Reserved) {
        let first = reserved.first().map(|(first, _)| first.alias()).unwrap_or_default();
        if let Some(exec) = self.executions.get_mut(&id) {
            exec.reason = format!("waits for its turn behind {first}, which waits for room");
        }
    }

    /// Returns what is left where the room of those that wait is kept for them.
    fn beside(
        &self,
        mut free: BTreeMap<PeerId, Inventory>,
        reserved: &Reserved,
        alone: bool,
    ) -> BTreeMap<PeerId, Inventory> {
        for (id, assignments) in reserved {
            let Some(exec) = self.executions.get(id) else { continue };
            for assignment in assignments {
                if let Some(inventory) = free.get_mut(&assignment.lablet) {
                    if alone || exec.run.run.placing.dedicated {
                        leave_nothing(inventory);
                        continue;
                    }
                    let one = std::slice::from_ref(assignment);
                    inventory.take(&kinds_of(&exec.run.run, one));
                    let memory = memory_of(&exec.run.run, one);
                    inventory.free_memory_bytes = inventory.free_memory_bytes.saturating_sub(memory);
                }
            }
        }
        free
    }

    /// Offers what was just placed.
    fn make_offer(&mut self, now: Timestamp, id: ExecutionId) {
        let offer = self.executions.get(&id).map(|e| self.offer_of(e, WallTime(self.wall_ms(now))));
        self.effects.extend(offer.map(Effect::PublishOffer));
        let bids_until = now.after(ms(self.config.bid_timeout_ms));
        let repeat_at = now.after(ms(self.config.offer_repeat_ms));
        if let Some(exec) = self.executions.get_mut(&id) {
            exec.stage = Stage::Offered { bids_until, repeat_at };
            exec.reason = String::new();
        }
        self.confirm(now, id);
    }
}
