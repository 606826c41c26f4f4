//! The barrier before the start: nothing starts before everything is prepared.

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId, FactKind};
use iptl_wire::Timestamp;
use iptl_wire::control::Event;
use iptl_wire::session::{CellRef, ToLablet};

use super::state::{Phase, Stage};
use super::{Orchestrator, cell_ref, ms};

impl Orchestrator {
    pub(super) fn prepared(&mut self, now: Timestamp, from: &PeerId, named: &CellRef) {
        // A prepared cell was accepted, even where that message was lost.
        self.accepted(now, from, named);
        let Some(cell) = self.live_cell(from, named) else { return };
        if cell.phase == Phase::Prepared {
            return;
        }
        cell.phase = Phase::Prepared;
        let id = named.execution;
        match self.executions.get(&id).map(|e| e.stage.clone()) {
            Some(Stage::Granted) => {
                self.notify_preparing(id);
                self.start_if_ready(now, id);
            }
            // A replacement joins an execution that runs.
            Some(Stage::Running { .. }) => self.send(from, ToLablet::Start(named.clone())),
            Some(Stage::Waiting | Stage::Offered { .. } | Stage::Stopping { .. } | Stage::Assembling { .. }) | None => {
            }
        }
    }

    pub(super) fn start_if_ready(&mut self, now: Timestamp, id: ExecutionId) {
        let wall_ms = self.wall_ms(now);
        if self.executions.get(&id).is_some_and(|e| self.undecided(e)) {
            return;
        }
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let ready = exec.open() == 0 && exec.live_cells().all(|(_, c)| c.phase == Phase::Prepared);
        if exec.stage != Stage::Granted || !ready {
            return;
        }
        exec.started_ms = wall_ms.max(1);
        exec.stage = Stage::Running { deadline: now.after(ms(exec.run.run.timeout_ms)) };
        let after_ms = now.since(exec.submitted_at).as_millis() as u64;
        let cells: Vec<(PeerId, Epoch)> = exec.live_cells().map(|(l, c)| (l.clone(), c.epoch.clone())).collect();
        self.persist(id, FactKind::Started {});
        for (lablet, epoch) in cells {
            let named = cell_ref(id, &epoch);
            self.send(&lablet, ToLablet::Start(named));
        }
        self.notify(id, Event::Started { after_ms });
        self.notify_progress(id);
    }

    pub(super) fn notify_progress(&mut self, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let over = exec.received.keys().chain(exec.lost.keys().filter(|i| !exec.received.contains_key(*i)));
        let mut ended: std::collections::BTreeMap<String, u32> =
            exec.run.run.groups.keys().map(|g| (g.clone(), 0)).collect();
        for instance in over {
            *ended.entry(instance.group.clone()).or_default() += 1;
        }
        let running = exec
            .run
            .run
            .groups
            .iter()
            .map(|(name, g)| (name.clone(), g.count.saturating_sub(ended.get(name).copied().unwrap_or(0))))
            .collect();
        exec.progress = exec.received.len() + exec.lost.len();
        self.notify(id, Event::Progress { running, ended });
    }
}
