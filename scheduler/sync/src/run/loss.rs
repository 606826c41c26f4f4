//! Cells that are lost.
//!
//! It is taken that each instance signals a state once. Of a cell that is lost, the signals of a state are first those
//! of its instances that had finished, then of those that are lost for good, but for those of whom the cell said that they
//! had not signalled it; what is beyond was given by instances that begin anew, and will come again. A cell says with its
//! signals who is missing once few are: an instance may end, or be stopped for good, without having signalled, and what
//! others gave who begin anew must not stand for it. What becomes of barriers is found where nobody is left to signal
//! (`rest.rs`).

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::Absent;

use super::{MAX_NAMED, MissingCell, RunSync};

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

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many have not signalled a state, and which where that is sure.
    pub(super) fn absent(&self, name: &str) -> Absent {
        let given = self.given.get(name).copied().unwrap_or(0);
        let instances = if given == 0 { self.named.clone() } else { Vec::new() };
        Absent { count: self.count.saturating_sub(given), ended: 0, instances }
    }
}

/// How many instances of a lost cell surely had not signalled a state, of those that had finished and of those that are lost
/// for good.
#[derive(Clone, Copy, Debug, Default)]
struct Missing {
    finished: u64,
    for_good: u64,
}

impl Missing {
    fn new(absent: Option<&Absent>, again: &BTreeSet<&InstanceId>, for_good: &BTreeSet<&InstanceId>) -> Missing {
        let Some(absent) = absent else { return Missing::default() };
        let mut missing = Missing::default();
        for instance in &absent.instances {
            if for_good.contains(instance) {
                missing.for_good += 1;
            } else if !again.contains(instance) {
                missing.finished += 1;
            }
        }
        // Not all are named where many are missing.
        let others = absent.count.saturating_sub(again.len() as u64 + for_good.len() as u64);
        missing.finished = missing.finished.max(others);
        missing
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
        let (anew, gone) = (again.iter().collect(), for_good.iter().collect());
        for (name, (given, _)) in cell.signals {
            let missing = Missing::new(cell.absent.get(&name).map(|(absent, _)| absent), &anew, &gone);
            let rest = given.saturating_sub(finished.saturating_sub(missing.finished));
            let may_stay = (for_good.len() as u64).saturating_sub(missing.for_good);
            let stays = if again.is_empty() { rest } else { rest.min(may_stay) };
            *entry.given.entry(name.clone()).or_default() += stays.min(may_stay);
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

    /// Nothing that is lost begins anew after all.
    pub fn give_up(&mut self) {
        for (instance, lablet) in std::mem::take(&mut self.pending) {
            self.lost.entry(lablet).or_default().add(1, std::slice::from_ref(&instance));
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

    /// Looks at every barrier that somebody waits for, after something was lost.
    pub(super) fn look_at_barriers(&mut self) {
        let waited: Vec<String> =
            self.states.iter().filter(|(_, state)| !state.waiting.is_empty()).map(|(name, _)| name.clone()).collect();
        for name in waited {
            self.open(&name);
        }
        self.look_for_rest();
    }

    pub(super) fn missing_of_lost(&self, name: &str) -> Vec<MissingCell> {
        let absent = self.lost.iter().map(|(lablet, lost)| (lablet, lost.absent(name)));
        let missing = absent.filter(|(_, absent)| absent.count > 0);
        let named = |lablet: &PeerId| (lablet.clone(), self.name_of(lablet));
        let missing = missing.map(|(lablet, absent)| (named(lablet), absent));
        missing.map(|((lablet, name), absent)| MissingCell { lablet, name, lost: true, absent }).collect()
    }
}
