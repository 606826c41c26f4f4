//! Cells that are lost, and what becomes of barriers then.
//!
//! It is taken that each instance signals a state once. Of a cell that is lost, the signals of a state are first those
//! of its instances that had finished, then of those that are lost for good; what is beyond was given by instances that
//! begin anew, and will come again.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::{Absent, Unreachable};

use super::{MAX_NAMED, MissingCell, RunSync};

/// Instances that are named where a barrier fails.
const MAX_TOLD: usize = 5;

/// What is known of lost instances of one lablet.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    count: u64,
    /// The first of them.
    named: Vec<InstanceId>,
    /// What they had signalled.
    given: BTreeMap<String, u64>,
}

impl Lost {
    fn add(&mut self, count: u64, named: &[InstanceId]) {
        self.count = self.count.saturating_add(count);
        let room = MAX_NAMED.saturating_sub(self.named.len());
        self.named.extend(named.iter().take(room).cloned());
    }

    /// How many have not signalled a state, and which where that is sure.
    fn absent(&self, name: &str) -> Absent {
        let given = self.given.get(name).copied().unwrap_or(0);
        let instances = if given == 0 { self.named.clone() } else { Vec::new() };
        Absent { count: self.count.saturating_sub(given), instances }
    }
}

impl RunSync {
    /// Says what becomes of barriers that cannot be reached any more; without this they are waited for.
    pub fn on_loss(&mut self, barriers: BarrierLoss) {
        self.barriers = barriers;
    }

    /// A cell is lost: `again` of its instances begin anew elsewhere, `for_good` do not, and the others had finished.
    pub fn lose_cell(&mut self, lablet: &PeerId, again: &[InstanceId], for_good: &[InstanceId]) {
        let Some(cell) = self.take_cell(lablet) else { return };
        let lost = again.len() as u64 + for_good.len() as u64;
        let finished = cell.instances.saturating_sub(lost);
        let entry = self.lost.entry(lablet.clone()).or_default();
        entry.add(for_good.len() as u64, for_good);
        for (name, (given, _)) in cell.signals {
            let rest = given.saturating_sub(finished);
            let stays = if again.is_empty() { rest } else { rest.min(for_good.len() as u64) };
            *entry.given.entry(name.clone()).or_default() += stays.min(for_good.len() as u64);
            if let Some(state) = self.states.get_mut(&name) {
                state.count = state.count.saturating_sub(rest - stays);
            }
        }
        self.pending.extend(again.iter().map(|instance| (instance.clone(), lablet.clone())));
        self.finish_recovery();
        self.look_at_barriers();
    }

    /// Instances are lost that nobody here has heard of, since the orchestrator was started again after their loss.
    pub fn lost_before(&mut self, lablet: &PeerId, again: &[InstanceId], for_good: &[InstanceId]) {
        self.lost.entry(lablet.clone()).or_default().add(for_good.len() as u64, for_good);
        self.pending.extend(again.iter().map(|instance| (instance.clone(), lablet.clone())));
        self.look_at_barriers();
    }

    /// A lablet gets a cell with instances that begin anew, beside nothing or after a cell that has ended.
    pub fn add_cell_again(&mut self, lablet: PeerId, instances: &[InstanceId]) {
        // What the cell before contributed stays counted; the new one counts from the beginning.
        self.take_cell(&lablet);
        for instance in instances {
            self.pending.remove(instance);
        }
        self.add_cell(lablet, instances.len() as u64);
    }

    /// Instances do not begin anew after all.
    pub fn give_up(&mut self, instances: &[InstanceId]) {
        for instance in instances {
            if let Some(lablet) = self.pending.remove(instance) {
                self.lost.entry(lablet).or_default().add(1, std::slice::from_ref(instance));
            }
        }
        self.look_at_barriers();
    }

    /// Signals of lost instances, which count where the plan releases barriers.
    pub(super) fn released(&self, name: &str) -> u64 {
        match self.barriers {
            BarrierLoss::Release => self.lost.values().map(|lost| lost.absent(name).count).sum(),
            BarrierLoss::Fail | BarrierLoss::Wait => 0,
        }
    }

    /// Looks at every barrier that somebody waits for.
    pub(super) fn look_at_barriers(&mut self) {
        let waited: Vec<String> =
            self.states.iter().filter(|(_, state)| !state.waiting.is_empty()).map(|(name, _)| name.clone()).collect();
        for name in waited {
            self.open(&name);
            self.fail_unreachable(&name);
        }
    }

    /// Fails the barriers of a state that cannot be reached since instances are lost, where the plan says so.
    pub(super) fn fail_unreachable(&mut self, name: &str) {
        let missing: u64 = self.lost.values().map(|lost| lost.absent(name).count).sum();
        if self.barriers != BarrierLoss::Fail || self.recovering || missing == 0 {
            return;
        }
        let to_come = |cell: &super::Cell| cell.instances.saturating_sub(cell.given(name));
        let to_come: u64 = self.cells.values().map(to_come).sum::<u64>() + self.pending.len() as u64;
        let Some(state) = self.states.get_mut(name) else { return };
        let reachable = state.count.saturating_add(to_come).max(state.peak);
        let unreachable = state.waiting.split_off(&reachable.saturating_add(1));
        let lablets: BTreeSet<PeerId> = unreachable.into_values().flatten().collect();
        if lablets.is_empty() {
            return;
        }
        let why = Unreachable { reachable, missing: self.who_is_lost(name, missing) };
        for lablet in lablets {
            if let Some(cell) = self.cells.get_mut(&lablet) {
                cell.news.failed.insert(name.to_owned(), why.clone());
                if let Some(targets) = cell.asks.get_mut(name) {
                    let gone = targets.split_off(&reachable.saturating_add(1));
                    cell.ask_count -= gone.len();
                    if targets.is_empty() {
                        cell.asks.remove(name);
                    }
                }
            }
            self.mark_due(&lablet);
        }
    }

    fn who_is_lost(&self, name: &str, count: u64) -> String {
        let mut named: Vec<String> = Vec::new();
        let mut lablets = Vec::new();
        for (lablet, lost) in &self.lost {
            let absent = lost.absent(name);
            if absent.count > 0 {
                lablets.push(lablet.short());
                named.extend(absent.instances.iter().map(ToString::to_string));
            }
        }
        let further = (count as usize).saturating_sub(named.len().min(MAX_TOLD));
        named.truncate(MAX_TOLD);
        let lablets = if lablets.len() > MAX_TOLD { format!("{} lablets", lablets.len()) } else { lablets.join(", ") };
        let named = match (named.is_empty(), further) {
            (true, _) => format!("{count} instances"),
            (false, 0) => named.join(", "),
            (false, n) => format!("{} and {n} more", named.join(", ")),
        };
        format!("{named} lost with {lablets}")
    }

    pub(super) fn missing_of_lost(&self, name: &str) -> Vec<MissingCell> {
        let absent = self.lost.iter().map(|(lablet, lost)| (lablet, lost.absent(name)));
        let missing = absent.filter(|(_, absent)| absent.count > 0);
        missing.map(|(lablet, absent)| MissingCell { lablet: lablet.clone(), lost: true, absent }).collect()
    }
}
