//! Cells that are lost.
//!
//! A cell says of its signals who gave them. What instances gave that begin anew is taken back with their cell, since it
//! will come again; what the others gave stays counted. What becomes of barriers is found where nobody is left to signal
//! (`rest.rs`).

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::Absent;

use super::{MAX_NAMED, MissingCell, RunSync, Signals};

/// What is known of lost instances of one lablet.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    count: u64,
    /// The first of them.
    named: Vec<InstanceId>,
    /// Who of them had signalled, by state.
    given: BTreeMap<String, Given>,
}

/// Lost instances that had signalled a state.
#[derive(Clone, Debug, Default)]
struct Given {
    count: u64,
    /// Those of the named that did.
    named: BTreeSet<InstanceId>,
}

impl Lost {
    fn add(&mut self, instances: &[InstanceId]) {
        self.count = self.count.saturating_add(instances.len() as u64);
        let room = MAX_NAMED.saturating_sub(self.named.len());
        self.named.extend(instances.iter().take(room).cloned());
    }

    /// Notes of instances, which were [added](Lost::add), that they had signalled a state.
    fn note(&mut self, name: &str, signalled: &[&InstanceId]) {
        let given = self.given.entry(name.to_owned()).or_default();
        given.count += signalled.len() as u64;
        let named = signalled.iter().filter(|instance| self.named.contains(instance));
        given.named.extend(named.map(|instance| (*instance).clone()));
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many have not signalled a state, and which of the named.
    pub(super) fn absent(&self, name: &str) -> Absent {
        let Some(given) = self.given.get(name) else {
            return Absent { count: self.count, ended: 0, instances: self.named.clone() };
        };
        let absent = self.named.iter().filter(|instance| !given.named.contains(instance));
        Absent { count: self.count.saturating_sub(given.count), ended: 0, instances: absent.cloned().collect() }
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
        let entry = self.lost.entry(lablet.clone()).or_default();
        entry.add(for_good);
        for (name, Signals { given, .. }) in &cell.signals {
            let signalled: Vec<&InstanceId> = for_good.iter().filter(|instance| given.of(instance) > 0).collect();
            entry.note(name, &signalled);
            let come_again: u64 = again.iter().map(|instance| given.of(instance)).sum();
            if let Some(state) = self.states.get_mut(name) {
                state.count = state.count.saturating_sub(come_again);
            }
        }
        self.pending.extend(again.iter().map(|instance| (instance.clone(), lablet.clone())));
        self.finish_recovery();
        self.look_at_barriers();
    }

    /// Instances are lost that nobody here has heard of, since the orchestrator was started again after their loss.
    pub fn lost_before(&mut self, lablet: &PeerId, again: &[InstanceId], for_good: &[InstanceId]) {
        self.lost.entry(lablet.clone()).or_default().add(for_good);
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
            self.lost.entry(lablet).or_default().add(std::slice::from_ref(&instance));
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
