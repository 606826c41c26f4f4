//! The queue: who is placed next, and who waits for whom.
//!
//! What was started or granted is made whole first. Then runs are placed: those of a higher priority before all others,
//! of equal ones those of whom holds the fewest instances first, what was placed a moment ago included, and of each in the
//! order of submission. A run that waits because others hold the room gets a part of the lab reserved: later ones may have
//! what is left beside that, so that it is not starved and nobody waits without need. One that no lab of these lablets could
//! hold reserves nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId};
use iptl_wire::{Timestamp, WallTime};

use super::offer::bans;
use super::room::{Rooms, find, leave_nothing, take};
use super::state::{Exec, Stage};
use super::{Effect, Orchestrator, ms};
use crate::placement::{Placed, Room, plan};

/// Waiting runs that have room reserved; whoever comes after so many waits for the first of them.
const MAX_RESERVED: usize = 16;

/// Room that is kept for runs that wait.
type Reserved = Vec<(ExecutionId, Vec<Assignment>)>;

/// What an execution is sorted by: whether it waits for a first place, priority, what its submitter holds, and the order of
/// submission.
type Rank = (bool, Reverse<i32>, u64, (u64, u64));

impl Orchestrator {
    /// Tries to place whatever waits for a place.
    pub(super) fn plan_queue(&mut self, now: Timestamp) {
        let mut left: Vec<ExecutionId> = self.executions.keys().copied().collect();
        self.rank(&mut left);
        for id in &left {
            if let Some(exec) = self.executions.get_mut(id).filter(|exec| exec.stage == Stage::Waiting) {
                exec.drop_stale_bids(now);
            }
        }
        let mut reserved = Reserved::new();
        while !left.is_empty() {
            // What is free changes with what gets a place, and with nothing else; so does what each submitter holds.
            let (verdicts, judged) = self.judge_until_one_moves(now, &left, &mut reserved);
            let is_placed = matches!(verdicts.last(), Some((_, Verdict::Place(_))));
            for (id, verdict) in verdicts {
                self.carry_out(now, id, verdict);
            }
            left.drain(..judged);
            if is_placed {
                self.rank(&mut left);
            }
        }
    }

    /// Keeps what waits for a place, in the order in which it gets one.
    fn rank(&self, queue: &mut Vec<ExecutionId>) {
        let held = self.held_by_submitter();
        let rank = |id: &ExecutionId| -> Option<Rank> {
            let exec = self.executions.get(id)?;
            let (is_new, held) = match exec.stage {
                Stage::Waiting => (true, held.get(&exec.by).copied().unwrap_or(0)),
                Stage::Granted if exec.open() > 0 => (false, 0),
                Stage::Running { .. } if !exec.replace.is_empty() && !exec.recalling() => (false, 0),
                Stage::Granted
                | Stage::Running { .. }
                | Stage::Offered { .. }
                | Stage::Stopping { .. }
                | Stage::Assembling { .. } => return None,
            };
            Some((is_new, Reverse(exec.priority), held, exec.place()))
        };
        let mut ranked: Vec<(Rank, ExecutionId)> = queue.drain(..).filter_map(|id| Some((rank(&id)?, id))).collect();
        ranked.sort_unstable();
        queue.extend(ranked.into_iter().map(|(_, id)| id));
    }

    /// Decides about executions of the queue up to the first that may take room; returns how many these are.
    fn judge_until_one_moves(
        &self,
        now: Timestamp,
        queue: &[ExecutionId],
        reserved: &mut Reserved,
    ) -> (Vec<(ExecutionId, Verdict)>, usize) {
        let mut verdicts = Vec::new();
        let mut lab = None;
        for (n, id) in queue.iter().enumerate() {
            let Some(exec) = self.executions.get(id) else { continue };
            let verdict = match exec.stage {
                Stage::Granted => Verdict::Open,
                Stage::Running { .. } => Verdict::Replacements,
                Stage::Waiting if reserved.len() >= MAX_RESERVED => Verdict::Behind(first_of(reserved)),
                Stage::Waiting => {
                    let lab = lab.get_or_insert_with(|| Lab { rooms: self.rooms(None), emptied: self.emptied() });
                    self.judge_waiting(now, *id, exec, lab, reserved)
                }
                Stage::Offered { .. } | Stage::Stopping { .. } | Stage::Assembling { .. } => continue,
            };
            let moves = verdict.moves();
            verdicts.push((*id, verdict));
            if moves {
                return (verdicts, n + 1);
            }
        }
        (verdicts, queue.len())
    }

    fn carry_out(&mut self, now: Timestamp, id: ExecutionId, verdict: Verdict) {
        match verdict {
            Verdict::Open => self.place_open(now, id),
            Verdict::Replacements => self.place_replacements(now, id),
            Verdict::Place(placed) => {
                self.record_placement(now, id, placed);
                self.make_offer(now, id);
            }
            Verdict::Behind(reason) => {
                if let Some(exec) = self.executions.get_mut(&id) {
                    exec.reason = reason;
                }
            }
            Verdict::Wait { reason, fits_empty } => {
                let Some(exec) = self.executions.get_mut(&id) else { return };
                exec.reason = reason;
                if fits_empty {
                    exec.unfit_since = None;
                } else {
                    exec.unfit_since.get_or_insert(now);
                }
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

    fn judge_waiting(
        &self,
        now: Timestamp,
        id: ExecutionId,
        exec: &Exec,
        lab: &Lab<'_>,
        reserved: &mut Reserved,
    ) -> Verdict {
        let run = &exec.run.run;
        let alone = run.placing.dedicated;
        let bans = bans(exec, now);
        let free = lab.rooms.beside(Some(id), alone, &exec.bids);
        let left = self.beside(free.clone(), reserved, alone);
        let first = plan(run, &left, &[], &bans);
        if first.is_whole() {
            return Verdict::Place(first.placed(run, &left, &bans));
        }
        let unreserved = match reserved.is_empty() {
            true => first,
            false => plan(run, &free, &[], &bans),
        };
        let nobody = BTreeMap::new();
        let in_empty = plan(run, &lab.emptied, &[], &nobody);
        let fits_empty = in_empty.is_whole();
        let reason = match unreserved.is_whole() {
            true => first_of(reserved),
            false => self.reason_to_wait(exec, &unreserved, &lab.rooms, &free, &bans),
        };
        if fits_empty {
            let place = match reserved.is_empty() {
                true => in_empty,
                false => plan(run, &self.beside(lab.emptied.clone(), reserved, alone), &[], &nobody),
            };
            reserved.push((id, place.assignments));
        }
        Verdict::Wait { reason, fits_empty }
    }

    /// Returns what is left where the room of those that wait is kept for them.
    fn beside<'a>(&self, mut free: Vec<Room<'a>>, reserved: &Reserved, alone: bool) -> Vec<Room<'a>> {
        for (id, assignments) in reserved {
            let Some(exec) = self.executions.get(id) else { continue };
            for assignment in assignments {
                if let Some(room) = find(&mut free, &assignment.lablet) {
                    if alone || exec.run.run.placing.dedicated {
                        leave_nothing(room);
                    } else {
                        take(room, &exec.run.run, std::slice::from_ref(assignment));
                    }
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

/// What lablets have, while nothing gets a place.
struct Lab<'a> {
    /// Free after all that was promised.
    rooms: Rooms<'a>,
    /// Free if nothing were held.
    emptied: Vec<Room<'a>>,
}

/// What is to be done about one execution of the queue.
enum Verdict {
    /// Places what was given back.
    Open,
    /// Places what is to be replaced.
    Replacements,
    /// It has a place.
    Place(Placed),
    /// It waits, as so many do before it that nobody looks.
    Behind(String),
    /// It waits.
    Wait {
        /// For what.
        reason: String,
        /// Whether a lab of these lablets in which nothing runs could hold it.
        fits_empty: bool,
    },
}

impl Verdict {
    /// Whether it may change what is free.
    fn moves(&self) -> bool {
        match self {
            Verdict::Open | Verdict::Replacements | Verdict::Place(_) => true,
            Verdict::Behind(_) | Verdict::Wait { .. } => false,
        }
    }
}

/// Says that a run waits for the first of those that wait before it.
fn first_of(reserved: &Reserved) -> String {
    let first = reserved.first().map(|(first, _)| first.alias()).unwrap_or_default();
    format!("waits for its turn behind {first}, which waits for room")
}
