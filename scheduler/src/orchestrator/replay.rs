//! The state as a fold over facts, and how it goes on from there.
//!
//! A restart keeps the term: nothing was sent whose fact was not durable, so no two grants share a name. Lablets have
//! two leases to come back before they count as lost, and no time of a run is over before that.
//!
//! Wall time is for people: where the driver knows how long ago something was by a clock that nobody sets, that counts.

use std::collections::BTreeSet;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, Fact, FactKind};
use iptl_wire::Timestamp;
use iptl_wire::session::Inventory;
use iptl_wire::takeover::Finished;

use super::api::Submission;
use super::grant::without;
use super::state::{Cell, Exec, LabletState, Phase, Stage, UNKNOWN_BOOT};
use super::{Effect, Orchestrator, ms};
use crate::placement::merge;

/// Leases that a lablet has to come back after a restart of the orchestrator.
pub(super) const GRACE_LEASES: u64 = 2;

impl Orchestrator {
    /// Takes in a fact. Millions come one after the other: it is copied from, never moved.
    pub(super) fn replay(&mut self, now: Timestamp, fact: &Fact, submission: &mut Option<Box<Submission>>) {
        let id = fact.execution;
        if let FactKind::Submitted { by, priority, order, .. } = &fact.kind {
            if let Some(submission) = submission.take_if(|s| s.execution.id() == id) {
                let Submission { execution, run } = *submission;
                self.admit(now, execution, run, by.clone(), (*priority, *order), fact.at_ms);
            }
            return;
        }
        let Some(exec) = self.executions.get_mut(&id) else { return };
        exec.epoch = exec.epoch.max(fact.epoch.counter);
        if exec.leader != fact.epoch.peer {
            exec.leader = fact.epoch.peer.clone();
        }
        if !matches!(fact.kind, FactKind::Received { .. }) {
            exec.steps.push(fact.kind.clone());
        }
        match &fact.kind {
            FactKind::Submitted { .. } | FactKind::Snapshot { .. } => {}
            FactKind::Placed { placement } => exec.placements.push(*placement),
            FactKind::Granted { lablet, assignments, attempt } => {
                if exec.started() {
                    exec.rounds = exec.rounds.max(1);
                } else {
                    exec.count_round(fact.epoch.counter);
                }
                exec.hold(lablet.clone(), Cell::new(now, fact.epoch.clone(), assignments.clone(), *attempt));
            }
            FactKind::Recovered { lablet, granted, assignments, attempt } => {
                exec.rounds = exec.rounds.max(1);
                let mut cell = Cell::new(now, granted.clone(), assignments.clone(), *attempt);
                cell.phase = Phase::Accepted;
                exec.hold_recovered(lablet.clone(), cell);
            }
            FactKind::TakenOver { .. } => exec.note_takeover(),
            FactKind::Accepted { lablet } => {
                if let Some(cell) = exec.cells.get_mut(lablet) {
                    cell.phase = cell.phase.max(Phase::Accepted);
                }
            }
            FactKind::Refused { lablet, .. } => {
                exec.rounds = exec.rounds.max(1);
                exec.drop_cell(lablet);
                exec.former.insert(lablet.clone());
            }
            FactKind::Started {} => exec.started_ms = fact.at_ms.max(1),
            FactKind::Measured { lablet, .. } => {
                if let Some(cell) = exec.cells.get_mut(lablet) {
                    cell.measured = true;
                }
            }
            FactKind::Faulted { lablet, faults } => {
                if let Some(cell) = exec.cells.get_mut(lablet) {
                    cell.faults.extend(faults.iter().cloned());
                }
            }
            FactKind::Received { lablet, shard, count } => exec.name(lablet, shard, *count),
            // What these say of instances counts once the receipts are here.
            FactKind::Lost { lablet, reason, .. } => {
                if lablet.is_none() && !exec.ending() {
                    exec.doubtful |= exec.taken_over;
                    exec.note_unheard(reason);
                }
                if let Some(cell) = lablet.as_ref().and_then(|l| exec.cells.get_mut(l)) {
                    cell.over = true;
                }
            }
            FactKind::Cancelled { by } => exec.cancelled = Some(by.clone()),
            FactKind::TimedOut {} => exec.timed_out = true,
            FactKind::EndedEarly { reason } => exec.ended_early = Some(reason.clone()),
            FactKind::CannotStart(why) => exec.cannot_start = Some(why.clone()),
            FactKind::Sealed { result, term } => {
                self.forget(Finished { execution: id, result: Some(*result), term: term.clone() });
            }
            FactKind::Failed { term, .. } => {
                self.forget(Finished { execution: id, result: None, term: term.clone() });
            }
        }
    }

    fn forget(&mut self, end: Finished) {
        let exec = self.executions.remove(&end.execution);
        self.remember(end, exec.is_some_and(|exec| exec.run.run.placing.dedicated));
    }

    /// Puts in order what the logs named, now that they were read.
    pub(super) fn recall(&mut self) {
        self.executions.values_mut().for_each(Exec::recall);
    }

    /// Orders what the log names of the next lablet to be read again; returns whether there is such a lablet. What a
    /// million facts name is so never ordered at once.
    pub(super) fn recall_next(&mut self) -> bool {
        let Some((execution, lablet)) = self.recalls.pop_front() else { return false };
        let shards = self.executions.get(&execution).map(|exec| exec.recalled_of(&lablet)).unwrap_or_default();
        let pull = |shard| Effect::Pull { execution, lablet: lablet.clone(), shard };
        self.effects.extend(shards.into_iter().map(pull));
        true
    }

    pub(super) fn replayed(&mut self, now: Timestamp) {
        self.recall();
        let wall_ms = self.wall_ms(now);
        let grace = ms(self.lease_ms() * GRACE_LEASES);
        let replace_timeout = ms(self.config.replace_timeout_ms);
        let stop_grace = ms(self.config.stop_grace_ms);
        let mut expected: Vec<PeerId> = Vec::new();
        let mut ended = Vec::new();
        for (id, exec) in &mut self.executions {
            let (submitted, started) = exec.age;
            let by_wall = |then_ms: u64| ms(wall_ms.saturating_sub(then_ms));
            let waited = submitted.unwrap_or_else(|| by_wall(exec.submitted_ms));
            exec.submitted_at = Timestamp(now.0.saturating_sub(waited.as_nanos() as u64));
            exec.waited_before = waited.saturating_sub(now.since(exec.submitted_at));
            exec.grace_until = now.after(grace);
            if !exec.recalling() {
                exec.rebuild();
            }
            exec.assignments = merge(placed(exec));
            let ending = exec.ending() || (exec.doubtful && !exec.started());
            exec.stage = if exec.started() && ending {
                Stage::Stopping { until: now.after(grace).after(stop_grace) }
            } else if exec.started() {
                let ran = started.unwrap_or_else(|| by_wall(exec.started_ms));
                let left = ms(exec.run.run.timeout_ms).saturating_sub(ran);
                Stage::Running { deadline: now.after(left).max(exec.grace_until) }
            } else if ending {
                ended.push(*id);
                Stage::Waiting
            } else if exec.live_cells().next().is_some() {
                if exec.open() > 0 {
                    exec.unfit_since = Some(now);
                }
                Stage::Granted
            } else {
                Stage::Waiting
            };
            if matches!(exec.stage, Stage::Running { .. }) {
                exec.replace_until = now.after(grace).after(replace_timeout);
            }
            for cell in exec.cells.values_mut() {
                // The grace of two leases comes before the time in which a grant must be taken.
                cell.granted_at = now.after(grace);
            }
            expected.extend(exec.live_cells().map(|(l, _)| l.clone()));
        }
        for lablet in expected {
            self.expect(now, lablet, now.after(grace));
        }
        let records: Vec<_> = self
            .executions
            .iter()
            .flat_map(|(id, e)| e.cells.keys().map(|l| (*id, l.clone())).collect::<Vec<_>>())
            .collect();
        for (id, lablet) in records {
            let record = self.record_of(&lablet);
            if let Some(exec) = self.executions.get_mut(&id) {
                exec.records.insert(lablet, record);
            }
        }
        for (id, exec) in self.executions.iter().filter(|(_, exec)| exec.recalling()) {
            let holders: BTreeSet<&PeerId> = exec.all_cells().map(|(lablet, _)| lablet).collect();
            self.recalls.extend(holders.into_iter().map(|lablet| (*id, lablet.clone())));
        }
        if self.reconcile.is_some() {
            return;
        }
        for id in ended {
            let reason = self.executions.get(&id).map(Exec::end_reason).unwrap_or_default();
            self.wind_down(now, id, &reason);
        }
        let ids: Vec<_> = self.executions.keys().copied().collect();
        for id in ids {
            self.settle(now, id);
        }
        self.replan = true;
    }

    /// Keeps a place for a lablet that should come back: it is unknown, not lost.
    fn expect(&mut self, now: Timestamp, lablet: PeerId, until: Timestamp) {
        if self.lablets.contains_key(&lablet) {
            return;
        }
        self.leases.insert((until, lablet.clone()));
        self.lablets.entry(lablet).or_insert(LabletState {
            session: None,
            boot: UNKNOWN_BOOT,
            version: String::new(),
            inventory: Inventory::default(),
            cells: Vec::new(),
            seq: 0,
            heard_at: now,
            lease_until: until,
            heartbeat_ms: self.config.heartbeat_ms,
            clock: None,
            away_since: Some(now),
        });
    }
}

/// Where instances are placed: before the start by what lablets hold, after it by the last grant of each, whether or not
/// its lablet is still there: what has finished keeps its place.
pub(super) fn placed(exec: &Exec) -> Vec<Assignment> {
    if !exec.started() {
        return exec.kept();
    }
    let mut cells: Vec<&Cell> = exec.all_cells().map(|(_, cell)| cell).collect();
    cells.sort_by_key(|cell| cell.attempt);
    let mut placed: Vec<Assignment> = Vec::new();
    for cell in cells {
        if cell.attempt > 1 {
            placed = without(&placed, &cell.instances().collect());
        }
        placed.extend(cell.assignments.iter().cloned());
    }
    placed
}
