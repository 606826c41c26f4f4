//! The three-way grant: written down, sent, taken; or given back and placed elsewhere.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, Epoch, ExecutionId, FactKind, LabletRecord};
use iptl_wire::Timestamp;
use iptl_wire::control::Event;
use iptl_wire::session::{CellRef, Directory, Grant, ToLablet};

use super::offer::bans;
use super::state::{Cell, Exec, Phase, Stage, kinds_of, memory_of};
use super::{Effect, Orchestrator, cell_ref, ms, unable};
use crate::placement::{merge, plan};

/// How long a lablet that gave a grant back gets nothing of the same execution, per round.
const BAN_MS: u64 = 2_000;

impl Orchestrator {
    /// Grants the current placement to all lablets whose part of it changed.
    pub(super) fn grant_round(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.rounds > 0 {
            exec.epoch += 1;
        }
        exec.count_round(exec.epoch);
        exec.stage = Stage::Granted;
        exec.unfit_since = None;
        exec.reason = String::new();
        let parts = parts(&exec.assignments);
        let (changed, same): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .partition(|(lablet, part)| !exec.cells.get(lablet).is_some_and(|c| !c.over && c.assignments == *part));
        self.grant_cells(now, id, changed, 1);
        for (lablet, _) in same {
            self.send_directory(id, &lablet);
        }
        self.notify_preparing(id);
    }

    /// Makes cells: every fact before the first grant, so that one wait makes all of them durable.
    pub(super) fn grant_cells(
        &mut self,
        now: Timestamp,
        id: ExecutionId,
        parts: Vec<(PeerId, Vec<Assignment>)>,
        attempt: u32,
    ) {
        let me = self.config.peer.clone();
        for (lablet, assignments) in &parts {
            let record = self.record_of(lablet);
            let Some(exec) = self.executions.get_mut(&id) else { return };
            exec.records.insert(lablet.clone(), record);
            let epoch = Epoch { counter: exec.epoch, peer: me.clone() };
            exec.hold(lablet.clone(), Cell::new(now, epoch, assignments.clone(), attempt));
            self.persist(id, FactKind::Granted { lablet: lablet.clone(), assignments: assignments.clone(), attempt });
        }
        let Some(directory) = self.executions.get(&id).map(|exec| self.directory(exec)) else { return };
        for (lablet, _) in &parts {
            self.send_grant_with(id, lablet, directory.clone());
        }
    }

    pub(super) fn send_grant(&mut self, id: ExecutionId, lablet: &PeerId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let directory = self.directory(exec);
        self.send_grant_with(id, lablet, directory);
    }

    fn send_grant_with(&mut self, id: ExecutionId, lablet: &PeerId, directory: Directory) {
        let Some(exec) = self.executions.get(&id) else { return };
        let Some(cell) = exec.cells.get(lablet) else { return };
        if self.lablets.get(lablet).is_none_or(|l| l.session.is_none()) {
            return;
        }
        let grant = Grant {
            cell: cell_ref(id, &cell.epoch),
            lablet: lablet.clone(),
            run: exec.run.cid,
            assignments: cell.assignments.clone(),
            slots: kinds_of(&exec.run.run, &cell.assignments),
            attempt: cell.attempt,
            memory_bytes: memory_of(&exec.run.run, &cell.assignments),
            placement: directory.placement,
            roster: directory.roster,
        };
        self.effects.push_back(Effect::SendGrant { to: lablet.clone(), grant });
    }

    pub(super) fn send_directory(&mut self, id: ExecutionId, lablet: &PeerId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let Some(cell) = exec.cells.get(lablet) else { return };
        let message = ToLablet::Directory(cell_ref(id, &cell.epoch), self.directory(exec));
        self.send(lablet, message);
    }

    fn directory(&self, exec: &Exec) -> Directory {
        let roster = exec
            .assignments
            .iter()
            .filter_map(|a| Some((a.lablet.to_string(), self.lablets.get(&a.lablet)?.inventory.addrs.clone())))
            .collect();
        Directory { version: exec.epoch, placement: exec.assignments.clone(), roster }
    }

    pub(super) fn record_of(&self, lablet: &PeerId) -> LabletRecord {
        let mut record = LabletRecord {
            peer: lablet.clone(),
            name: String::new(),
            version: String::new(),
            cpus: 0,
            memory_bytes: 0,
            clock_offset_us: 0,
            clock_error_us: 0,
        };
        if let Some(state) = self.lablets.get(lablet) {
            record.name = state.inventory.name.clone();
            record.version = state.version.clone();
            record.cpus = state.inventory.cpus;
            record.memory_bytes = state.inventory.memory_bytes;
            if let Some(clock) = state.clock {
                record.clock_offset_us = clock.offset_us;
                record.clock_error_us = clock.round_trip_us;
            }
        }
        record
    }

    /// Returns the live cell that `named` means, where `from` holds it.
    pub(super) fn live_cell(&mut self, from: &PeerId, named: &CellRef) -> Option<&mut Cell> {
        let cell = self.executions.get_mut(&named.execution)?.cells.get_mut(from)?;
        (!cell.over && cell.epoch == named.epoch).then_some(cell)
    }

    pub(super) fn accepted(&mut self, now: Timestamp, from: &PeerId, named: &CellRef) {
        let Some(cell) = self.live_cell(from, named) else { return };
        if cell.phase > Phase::Granted {
            return;
        }
        cell.phase = Phase::Accepted;
        cell.granted_at = now;
        let id = named.execution;
        self.persist(id, FactKind::Accepted { lablet: from.clone() });
        self.tell_losers(id);
    }

    /// Tells those who bid and got nothing, once nobody who got something can give it back unheard.
    fn tell_losers(&mut self, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.losers_told || exec.open() > 0 || exec.live_cells().any(|(_, c)| c.phase == Phase::Granted) {
            return;
        }
        exec.losers_told = true;
        let losers: Vec<PeerId> = exec.bids.keys().filter(|l| !exec.cells.contains_key(*l)).cloned().collect();
        for lablet in losers {
            self.send(&lablet, ToLablet::NotNeeded(id));
        }
    }

    pub(super) fn refused(&mut self, now: Timestamp, from: &PeerId, named: &CellRef, reason: String) {
        if self.live_cell(from, named).is_some() {
            self.lose_cell(now, named.execution, from, reason);
        }
    }

    pub(super) fn unfit(&mut self, now: Timestamp, from: &PeerId, named: &CellRef, reason: String) {
        let id = named.execution;
        if self.live_cell(from, named).is_none() {
            return;
        }
        if self.executions.get(&id).is_some_and(|e| self.undecided(e)) {
            // Whether it was started is not known yet.
            return self.lose_cell(now, id, from, reason);
        }
        if let Some(exec) = self.executions.get_mut(&id).filter(|e| matches!(e.stage, Stage::Granted)) {
            exec.drop_cell(from);
            exec.former.insert(from.clone());
            self.persist(id, FactKind::Refused { lablet: from.clone(), reason: reason.clone() });
            let help = "check what was built: `iptl check` names the component and what it imports";
            self.cannot_start(now, id, unable("workload.bad", format!("the workload cannot run: {reason}"), help));
        }
    }

    /// Takes a cell out before the start.
    pub(super) fn give_back(&mut self, now: Timestamp, id: ExecutionId, from: &PeerId, reason: String) {
        let lablet = self.name_of(from);
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.drop_cell(from).is_none() {
            return;
        }
        exec.former.insert(from.clone());
        let until = now.after(ms(BAN_MS * u64::from(exec.rounds.max(1))));
        exec.banned.insert(from.clone(), (until, reason.clone()));
        exec.bids.remove(from);
        exec.unfit_since.get_or_insert(now);
        exec.reason = format!("waits for another lablet: {lablet} gave its grant back ({reason})");
        let exhausted = exec.rounds >= self.config.max_rounds;
        self.persist(id, FactKind::Refused { lablet: from.clone(), reason: reason.clone() });
        self.notify(id, Event::Lablet { lablet: lablet.clone(), what: format!("gave its grant back: {reason}") });
        self.replan = true;
        if exhausted {
            let message = format!("no set of lablets could prepare the run; last, {lablet}: {reason}");
            self.cannot_start(
                now,
                id,
                unable("lab.cannot-prepare", message, "look at these lablets with `iptl doctor`"),
            );
        }
    }

    /// Places what was given back before the start; what others hold stays.
    pub(super) fn place_open(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let kept = exec.kept();
        let run = &exec.run.run;
        let free = self.rooms(Some(id)).beside(Some(id), run.placing.dedicated, &BTreeMap::new());
        let banned = bans(exec, now);
        let mut without_cells = banned.clone();
        without_cells.extend(exec.cells.keys().map(|l| (l.clone(), "holds a cell of this execution".into())));
        let mut found = plan(run, &free, &kept, &without_cells);
        let mut excluded = &without_cells;
        if !found.is_whole() {
            found = plan(run, &free, &kept, &banned);
            excluded = &banned;
        }
        let missing = found.missing();
        let placed = (missing == 0).then(|| found.placed(run, &free, excluded));
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Some(placed) = placed else {
            exec.unfit_since.get_or_insert(now);
            exec.reason = format!("waits for room for {missing} instances that were given back");
            return;
        };
        self.record_placement(now, id, placed);
        self.grant_round(now, id);
    }

    /// Gives up on grants that nobody took, and on cells that do not get prepared.
    pub(super) fn expire_grants(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let late: Vec<(PeerId, CellRef, &'static str)> = exec
            .live_cells()
            .filter_map(|(lablet, cell)| {
                let waited = now.since(cell.granted_at);
                let what = match cell.phase {
                    Phase::Granted if waited >= ms(self.config.accept_timeout_ms) => "did not take its grant in time",
                    Phase::Accepted if waited >= ms(self.config.prepare_timeout_ms) => "did not get prepared in time",
                    Phase::Granted | Phase::Accepted | Phase::Prepared => return None,
                };
                Some((lablet.clone(), cell_ref(id, &cell.epoch), what))
            })
            .collect();
        for (lablet, named, what) in late {
            self.send(&lablet, ToLablet::Stop(named, what.into()));
            self.lose_cell(now, id, &lablet, what.into());
        }
    }

    pub(super) fn notify_preparing(&mut self, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let prepared = exec.live_cells().filter(|(_, c)| c.phase == Phase::Prepared).count() as u32;
        let cells = exec.live_cells().count() as u32;
        self.notify(id, Event::Preparing { prepared, cells });
    }
}

/// Splits assignments by lablet.
pub(super) fn parts(assignments: &[Assignment]) -> BTreeMap<PeerId, Vec<Assignment>> {
    let mut parts: BTreeMap<PeerId, Vec<Assignment>> = BTreeMap::new();
    for assignment in assignments {
        parts.entry(assignment.lablet.clone()).or_default().push(assignment.clone());
    }
    parts
}

/// Takes single instances out of assignments.
pub(super) fn without(
    assignments: &[Assignment],
    out: &std::collections::BTreeSet<iptl_dag::model::InstanceId>,
) -> Vec<Assignment> {
    let mut rest = Vec::new();
    for a in assignments {
        for instance in a.instances().filter(|i| !out.contains(i)) {
            let Assignment { group, lablet, .. } = a;
            rest.push(Assignment { group: group.clone(), start: instance.index, count: 1, lablet: lablet.clone() });
        }
    }
    merge(rest)
}
