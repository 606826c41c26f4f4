//! What people and drivers may see of the state.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Assignment, CannotStart, Epoch, ExecutionId, FaultDone, InstanceId, Run};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::control::RunningRow;
use iptl_wire::session::{CellRef, Inventory};

use super::state::{Cell, Exec, Phase, Pull, Stage, UNKNOWN_BOOT};
use super::{Orchestrator, cell_ref};
use crate::placement::{Placed, left_out, placement};

/// A lablet with a lease, or one that is expected back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabletView {
    /// The lablet.
    pub peer: PeerId,
    /// Whether it has a session now.
    pub online: bool,
    /// Whether nobody knows if it is there: it is expected back since a restart or a takeover, and was not heard yet.
    pub unknown: bool,
    /// What it said that it has; empty where it was not heard since a restart.
    pub inventory: Inventory,
    /// Milliseconds since it was heard.
    pub heard_ms: u64,
    /// Instances that it holds.
    pub instances: u32,
}

/// An execution that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionView {
    /// The execution.
    pub execution: ExecutionId,
    /// The run.
    pub run: Cid,
    /// Phase, with what it waits for.
    pub phase: String,
    /// Instances in all.
    pub instances: u64,
    /// Instances with a receipt, or lost.
    pub ended: u64,
    /// Wall time of submission in milliseconds since 1970.
    pub submitted_ms: u64,
}

/// What the log alone makes of an execution: equal after its facts were replayed, whatever happened since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Counter of the term.
    pub epoch: u64,
    /// Whether instances were ever granted.
    pub granted: bool,
    /// Whether it was started.
    pub started: bool,
    /// Placements, oldest first.
    pub placements: Vec<Cid>,
    /// Cells by lablet.
    pub cells: BTreeMap<PeerId, RememberedCell>,
    /// Cells that lablets held before those, in the order in which they were replaced.
    pub past: Vec<(PeerId, RememberedCell)>,
    /// Lablets that gave a grant back.
    pub former: BTreeSet<PeerId>,
    /// The receipt that counts of each instance: lablet and attempt.
    pub received: BTreeMap<InstanceId, (PeerId, u32)>,
    /// Receipts that count where a later attempt is lost.
    pub evidence: BTreeMap<InstanceId, (PeerId, u32)>,
    /// Lost instances, with the reason.
    pub lost: BTreeMap<InstanceId, String>,
    /// Lost instances that wait for another attempt, with its number.
    pub replace: BTreeMap<InstanceId, u32>,
    /// Who cancelled it.
    pub cancelled: Option<PeerId>,
    /// Whether its time was over.
    pub timed_out: bool,
    /// Why the plan had it ended.
    pub ended_early: Option<String>,
    /// Why it cannot be started.
    pub cannot_start: Option<CannotStart>,
    /// First failure of each group.
    pub failed: BTreeMap<String, (InstanceId, String)>,
    /// Who asked for it.
    pub by: PeerId,
    /// Its place before others.
    pub priority: i32,
    /// Its place among those that were not over when it came.
    pub order: u64,
    /// Whether it was taken over, and whether nothing of it is granted anew since.
    pub taken_over: (bool, bool),
    /// Which lablets were not heard then, as its result will say.
    pub unheard: Vec<String>,
}

/// What the log alone makes of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedCell {
    /// Term of the grant.
    pub granted: Epoch,
    /// What was granted.
    pub assignments: Vec<Assignment>,
    /// Attempt.
    pub attempt: u32,
    /// Whether the lablet took it.
    pub accepted: bool,
    /// Whether nothing more is expected of it.
    pub over: bool,
    /// Chunks of receipts that are kept, with their counts.
    pub shards: BTreeMap<Cid, u32>,
    /// Faults that were done in it on purpose.
    pub faults: BTreeSet<FaultDone>,
    /// Whether its lablet has said how far the others are.
    pub measured: bool,
}

impl From<ExecutionView> for RunningRow {
    fn from(view: ExecutionView) -> RunningRow {
        RunningRow { alias: view.execution.alias(), phase: view.phase, instances: view.instances, ended: view.ended }
    }
}

impl Orchestrator {
    /// Returns all executions that are not over, in the order of their submission.
    pub fn executions(&self) -> Vec<ExecutionView> {
        let mut rows: Vec<_> = self.executions.iter().collect();
        rows.sort_by_key(|(id, exec)| (exec.place(), **id));
        rows.into_iter()
            .map(|(id, exec)| {
                let phase = match &exec.stage {
                    Stage::Waiting => "waiting",
                    Stage::Offered { .. } => "offered",
                    Stage::Granted => "preparing",
                    Stage::Running { .. } => "running",
                    Stage::Stopping { .. } => "stopping",
                    Stage::Assembling { .. } => "sealing",
                };
                let phase = match exec.waits_for() {
                    Some(reason) => format!("{phase}: {reason}"),
                    None => phase.to_owned(),
                };
                ExecutionView {
                    execution: *id,
                    run: exec.run.cid,
                    phase,
                    instances: exec.run.run.instances(),
                    ended: (exec.received.len() + exec.lost.len()) as u64,
                    submitted_ms: exec.submitted_ms,
                }
            })
            .collect()
    }

    /// Returns whether an execution is over and, if so, its result where one was sealed.
    pub fn result(&self, execution: &ExecutionId) -> Option<Option<Cid>> {
        self.over.get(execution).map(|end| end.result)
    }

    /// Returns what the logs alone make of the executions that are not over; none while receipts are read again.
    pub fn remembered(&self) -> Option<BTreeMap<ExecutionId, Remembered>> {
        if self.executions.values().any(Exec::recalling) {
            return None;
        }
        let cell = |cell: &Cell| RememberedCell {
            granted: cell.epoch.clone(),
            assignments: cell.assignments.clone(),
            attempt: cell.attempt,
            accepted: cell.phase >= Phase::Accepted,
            over: cell.over,
            shards: cell.shards.iter().filter(|(_, s)| s.state == Pull::Kept).map(|(cid, s)| (*cid, s.count)).collect(),
            faults: cell.faults.clone(),
            measured: cell.measured,
        };
        let remembered = |exec: &Exec| Remembered {
            epoch: exec.epoch,
            granted: exec.rounds > 0,
            started: exec.started(),
            placements: exec.placements.clone(),
            cells: exec.cells.iter().map(|(lablet, c)| (lablet.clone(), cell(c))).collect(),
            past: exec.past.iter().map(|(lablet, c)| (lablet.clone(), cell(c))).collect(),
            former: exec.former.clone(),
            received: exec.received.clone(),
            evidence: exec.evidence.clone(),
            lost: exec.lost.clone(),
            replace: exec.replace.clone(),
            cancelled: exec.cancelled.clone(),
            timed_out: exec.timed_out,
            ended_early: exec.ended_early.clone(),
            cannot_start: exec.cannot_start.clone(),
            failed: exec.failed.clone(),
            by: exec.by.clone(),
            priority: exec.priority,
            order: exec.order,
            taken_over: (exec.taken_over, exec.doubtful),
            unheard: exec.unheard(),
        };
        Some(self.executions.iter().map(|(id, exec)| (*id, remembered(exec))).collect())
    }

    /// Returns all lablets.
    pub fn lablets(&self, now: Timestamp) -> Vec<LabletView> {
        self.lablets
            .iter()
            .map(|(peer, l)| LabletView {
                peer: peer.clone(),
                online: l.session.is_some(),
                unknown: l.session.is_none() && l.boot == UNKNOWN_BOOT,
                inventory: l.inventory.clone(),
                heard_ms: now.since(l.heard_at).as_millis() as u64,
                instances: self
                    .executions
                    .values()
                    .filter_map(|e| e.cells.get(peer).filter(|c| !c.over))
                    .map(|c| c.slots())
                    .sum(),
            })
            .collect()
    }

    /// Returns whether a lost instance waits for another attempt.
    pub fn runs_again(&self, execution: &ExecutionId, instance: &InstanceId) -> bool {
        self.executions.get(execution).is_some_and(|exec| exec.replace.contains_key(instance))
    }

    /// Names a lablet that has or had a part in an execution, for people: its name and a short peer ID, as far as known.
    pub fn lablet_name(&self, execution: &ExecutionId, lablet: &PeerId) -> String {
        let record = self.executions.get(execution).and_then(|exec| exec.records.get(lablet));
        match record.filter(|record| !self.lablets.contains_key(lablet) && !record.name.is_empty()) {
            Some(record) => format!("{} ({})", record.name, lablet.short()),
            None => self.name_of(lablet),
        }
    }

    /// Returns what lablets have free after all that was promised.
    pub fn inventory(&self) -> BTreeMap<PeerId, Inventory> {
        self.available()
    }

    /// Returns the placement that a run would get now.
    pub fn dry_run(&self, run: &Run) -> Placed {
        let inventory = self.inventory();
        let mut placed = placement(run, &inventory, &[], &BTreeMap::new());
        let left_out = left_out(run, &placed, &inventory);
        placed.refused.extend(left_out);
        placed
    }

    /// Returns the cells of an execution from which something is still expected: where its sync goes.
    pub fn cells(&self, execution: &ExecutionId) -> BTreeMap<PeerId, (CellRef, Vec<Assignment>)> {
        let Some(exec) = self.executions.get(execution) else { return BTreeMap::new() };
        exec.live_cells()
            .map(|(lablet, cell)| (lablet.clone(), (cell_ref(*execution, &cell.epoch), cell.assignments.clone())))
            .collect()
    }
}
