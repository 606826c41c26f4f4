//! Ends that someone or the clock asks for. Both are sealed: what is there counts, what is not is missing.

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId, FactKind};
use iptl_wire::Timestamp;
use iptl_wire::session::ToLablet;

use super::state::{Exec, Stage};
use super::{Orchestrator, cell_ref, ms};

impl Orchestrator {
    pub(super) fn cancel(&mut self, now: Timestamp, id: ExecutionId, by: PeerId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.cancelled.is_some() || matches!(exec.stage, Stage::Stopping { .. } | Stage::Assembling { .. }) {
            return;
        }
        exec.cancelled = Some(by.clone());
        self.persist(id, FactKind::Cancelled { by });
        if self.executions.get(&id).is_some_and(|e| self.undecided(e)) {
            // It may have been started, or be over: lablets are asked first.
            return;
        }
        let reason = self.executions.get(&id).map(Exec::end_reason).unwrap_or_default();
        self.wind_down(now, id, &reason);
    }

    /// Ends a run whose time is over.
    pub(super) fn expire_run(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if !matches!(exec.stage, Stage::Running { deadline } if deadline <= now) {
            return;
        }
        exec.timed_out = true;
        self.persist(id, FactKind::TimedOut {});
        let reason = self.executions.get(&id).map(Exec::end_reason).unwrap_or_default();
        self.wind_down(now, id, &reason);
    }

    /// Stops what runs and waits for receipts; without anything that ran, the result is ordered at once.
    pub(super) fn wind_down(&mut self, now: Timestamp, id: ExecutionId, reason: &str) {
        self.stop_cells(id, reason);
        let until = now.after(ms(self.config.stop_grace_ms));
        let Some(exec) = self.executions.get_mut(&id) else { return };
        exec.give_up_replacement();
        if exec.started() {
            exec.stage = Stage::Stopping { until };
            self.settle(now, id);
        } else {
            let why = match exec.cannot_start {
                Some(_) => reason.to_owned(),
                None => format!("{reason} before it was started"),
            };
            exec.lose_rest(&why);
            self.order_assembly(now, id);
        }
    }

    /// Counts as lost what was not handed in after a stop.
    pub(super) fn expire_grace(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id).filter(|e| !e.recalling()) else { return };
        if !matches!(exec.stage, Stage::Stopping { until } if until <= now) {
            return;
        }
        let reason = if exec.timed_out {
            "no receipt in time after the run's time was over"
        } else if exec.ended_early.is_some() {
            "no receipt in time after the plan had it ended"
        } else {
            "no receipt in time after it was cancelled"
        };
        let (instances, changed) = exec.lose_rest(reason);
        if changed {
            self.persist(id, FactKind::Lost { lablet: None, instances, reason: reason.into() });
        }
        self.settle(now, id);
    }

    pub(super) fn stop_cells(&mut self, id: ExecutionId, reason: &str) {
        let Some(exec) = self.executions.get(&id) else { return };
        let cells: Vec<(PeerId, Epoch)> = exec.live_cells().map(|(l, c)| (l.clone(), c.epoch.clone())).collect();
        for (lablet, epoch) in cells {
            let named = cell_ref(id, &epoch);
            self.send(&lablet, ToLablet::Stop(named, reason.to_owned()));
        }
    }
}
