//! What people and drivers may see of the state.

use std::collections::BTreeMap;

use iptl_dag::model::{Assignment, ExecutionId, Run};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::control::RunningRow;
use iptl_wire::session::{CellRef, Inventory};

use super::Orchestrator;
use super::state::Stage;
use crate::placement::{Placed, placement};

/// A lablet with a lease, or one that is expected back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabletView {
    /// The lablet.
    pub peer: PeerId,
    /// Whether it has a session now.
    pub online: bool,
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

impl From<ExecutionView> for RunningRow {
    fn from(view: ExecutionView) -> RunningRow {
        RunningRow { alias: view.execution.alias(), phase: view.phase, instances: view.instances, ended: view.ended }
    }
}

impl Orchestrator {
    /// Returns all executions that are not over, in the order of their submission.
    pub fn executions(&self) -> Vec<ExecutionView> {
        let mut rows: Vec<_> = self.executions.iter().collect();
        rows.sort_by_key(|(_, exec)| exec.order);
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
        self.over.get(execution).copied()
    }

    /// Returns all lablets.
    pub fn lablets(&self, now: Timestamp) -> Vec<LabletView> {
        self.lablets
            .iter()
            .map(|(peer, l)| LabletView {
                peer: peer.clone(),
                online: l.session.is_some(),
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

    /// Returns what lablets have free after all that was promised.
    pub fn inventory(&self) -> BTreeMap<PeerId, Inventory> {
        self.available(None, &BTreeMap::new())
    }

    /// Returns the placement that a run would get now.
    pub fn dry_run(&self, run: &Run) -> Placed {
        placement(run, &self.inventory(), &[], &BTreeMap::new())
    }

    /// Returns the cells of an execution from which something is still expected: where its sync goes.
    pub fn cells(&self, execution: &ExecutionId) -> BTreeMap<PeerId, (CellRef, Vec<Assignment>)> {
        let Some(exec) = self.executions.get(execution) else { return BTreeMap::new() };
        exec.live_cells()
            .map(|(lablet, cell)| (lablet.clone(), (self.cell_ref(*execution, cell.epoch), cell.assignments.clone())))
            .collect()
    }
}
