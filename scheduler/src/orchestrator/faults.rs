//! What lablets did on purpose: facts, and lines of the narrative.

use iptl_dag::PeerId;
use iptl_dag::model::{FactKind, FaultDone};
use iptl_wire::control::Event;
use iptl_wire::session::{CellRef, MAX_FAULTS_TOLD};

use super::Orchestrator;
use super::state::Stage;

impl Orchestrator {
    /// Takes in what a lablet did on purpose in its cell, as schedules say. It may say so again.
    pub(super) fn faulted(&mut self, from: &PeerId, named: &CellRef, faults: Vec<FaultDone>) {
        let id = named.execution;
        let Some(exec) = self.executions.get_mut(&id).filter(|exec| exec.started()) else { return };
        if matches!(exec.stage, Stage::Assembling { .. }) {
            return;
        }
        let Some(cell) = exec.cells.get_mut(from).filter(|cell| cell.epoch == named.epoch) else { return };
        let mut news = Vec::new();
        for done in faults {
            if cell.faults.len() < MAX_FAULTS_TOLD && cell.faults.insert(done) {
                news.push(done);
            }
        }
        let room = MAX_FAULTS_TOLD.saturating_sub(exec.faults_told);
        exec.faults_told = exec.faults_told.saturating_add(news.len());
        if news.is_empty() {
            return;
        }
        let lablet = self.name_of(from);
        self.persist(id, FactKind::Faulted { lablet: from.clone(), faults: news.clone() });
        for done in news.into_iter().take(room) {
            self.notify(id, Event::Fault { lablet: lablet.clone(), done });
        }
    }
}
