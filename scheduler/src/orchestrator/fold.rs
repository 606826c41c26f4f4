//! What facts make of an execution: the same steps when they are decided and when they are read again.
//!
//! Receipts are not in the log, only the chunks that hold them. Where a log names chunks, what it says of receipts and
//! losses is taken in once all of them were read, in the order of the log: [`Exec::rebuild`].

use std::collections::BTreeMap;

use iptl_dag::model::{ByLab, Epoch, Exit, FactKind, InstanceId};
use iptl_dag::{Cid, PeerId};

use super::api::ReceiptSummary;
use super::state::{Cell, Exec, Pull};

/// What receipts changed.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Whether a cell has nothing more to give.
    pub cell_over: bool,
    /// Cells of other lablets whose instances an earlier attempt had finished.
    pub needless: Vec<(PeerId, Epoch)>,
}

impl Exec {
    /// Takes in receipts of a chunk that `lablet` handed in.
    ///
    /// Where `again`, an instance that the lab stopped under the run is lost with its cell, as far as the run allows
    /// another attempt: its receipt is kept for the case that nothing comes of that.
    pub(super) fn take_receipts(
        &mut self,
        lablet: &PeerId,
        shard: &Cid,
        receipts: &[ReceiptSummary],
        again: bool,
    ) -> Taken {
        let several_attempts = self.run.run.most_attempts() > 1;
        let mut taken = Taken::default();
        let Some(cell) = self.cell_of_shard(lablet, shard) else { return taken };
        let (attempt, is_live) = (cell.attempt, !cell.over);
        let valid: Vec<(InstanceId, &Exit)> = receipts
            .iter()
            .filter(|r| r.epoch == cell.epoch && r.attempt == attempt && cell.holds(&r.instance))
            .map(|r| (r.instance.clone(), &r.exit))
            .collect();
        for (instance, exit) in valid {
            if self.received.contains_key(&instance) {
                continue;
            }
            // What ended by itself counts, even where another attempt was granted meanwhile. What the lab stopped
            // gives way to that attempt or to one that is still to come, and counts where that one is lost too.
            let replaced =
                several_attempts && self.cells.values().any(|c| !c.over && c.attempt > attempt && c.holds(&instance));
            let may_go_again = again && is_live && attempt < self.run.run.attempts_of(&instance.group);
            let waits = may_go_again || self.replace.contains_key(&instance);
            if (replaced && !by_itself(exit)) || (waits && stopped(exit).is_some()) {
                let latest = self.evidence.entry(instance).or_insert_with(|| (lablet.clone(), attempt));
                if latest.1 < attempt {
                    *latest = (lablet.clone(), attempt);
                }
            } else {
                self.lost.remove(&instance);
                self.replace.remove(&instance);
                if let Some(cause) = exit.failure() {
                    self.failed.entry(instance.group.clone()).or_insert_with(|| (instance.clone(), cause));
                }
                self.received.insert(instance, (lablet.clone(), attempt));
            }
        }
        for (holder, cell) in &mut self.cells {
            let candidate = holder == lablet || several_attempts;
            if candidate && !cell.over && cell.instances().all(|i| self.received.contains_key(&i)) {
                cell.over = true;
                taken.cell_over = true;
                if holder != lablet {
                    taken.needless.push((holder.clone(), cell.epoch.clone()));
                }
            }
        }
        taken
    }

    /// Whether all that a live cell holds has ended, and another attempt waits for its end.
    pub(super) fn is_stopped(&self, lablet: &PeerId) -> bool {
        let Some(cell) = self.cells.get(lablet).filter(|c| !c.over) else { return false };
        let told = |i: &InstanceId| {
            self.received.contains_key(i) || self.evidence.get(i).is_some_and(|(_, attempt)| *attempt == cell.attempt)
        };
        cell.instances().all(|i| told(&i)) && !cell.instances().all(|i| self.received.contains_key(&i))
    }

    /// Takes a lablet's cell as gone after the start; returns the instances that are lost with it, none where it was
    /// not expected to give anything any more.
    ///
    /// Where `again`, what is lost waits for another attempt as far as the run allows one.
    pub(super) fn take_loss(&mut self, lablet: &PeerId, reason: &str, again: bool) -> Option<Vec<InstanceId>> {
        let cell = self.cells.get_mut(lablet).filter(|c| !c.over)?;
        cell.over = true;
        let next = cell.attempt + 1;
        let attempt = cell.attempt;
        let instances: Vec<InstanceId> = cell.instances().filter(|i| !self.received.contains_key(i)).collect();
        let mut lost = Vec::new();
        for instance in instances {
            let again = again && next <= self.run.run.attempts_of(&instance.group);
            let newer = self.cells.values().any(|c| !c.over && c.attempt > attempt && c.holds(&instance));
            if newer {
                // Another attempt has it already.
                continue;
            }
            if !again && let Some(earlier) = self.evidence.remove(&instance) {
                self.received.insert(instance, earlier);
                continue;
            }
            self.lost.insert(instance.clone(), reason.to_owned());
            if again {
                let least = self.replace.entry(instance.clone()).or_insert(next);
                *least = (*least).max(next);
            }
            lost.push(instance);
        }
        Some(lost)
    }

    /// Takes lost instances as lost for good; returns those that have nothing from an earlier attempt, and whether
    /// there were any.
    pub(super) fn give_up_replacement(&mut self) -> Option<Vec<InstanceId>> {
        if self.replace.is_empty() {
            return None;
        }
        let mut lost = Vec::new();
        for instance in std::mem::take(&mut self.replace).into_keys() {
            if let Some(earlier) = self.evidence.remove(&instance) {
                self.lost.remove(&instance);
                self.received.insert(instance, earlier);
            } else {
                lost.push(instance);
            }
        }
        Some(lost)
    }

    /// Counts everything as lost that is not here, and expects nothing more; returns what is lost thereby, and whether
    /// anything changed.
    pub(super) fn lose_rest(&mut self, reason: &str) -> (Vec<InstanceId>, bool) {
        let mut rest = Vec::new();
        let mut changed = false;
        for (group, spec) in &self.run.run.groups {
            for index in 0..spec.count {
                let instance = InstanceId { group: group.clone(), index };
                if self.received.contains_key(&instance) || self.lost.contains_key(&instance) {
                    continue;
                }
                changed = true;
                if let Some(earlier) = self.evidence.remove(&instance) {
                    self.received.insert(instance, earlier);
                } else {
                    self.lost.insert(instance.clone(), reason.to_owned());
                    rest.push(instance);
                }
            }
        }
        for cell in self.cells.values_mut() {
            changed |= !cell.over;
            cell.over = true;
        }
        (rest, changed)
    }

    /// Takes in what the log says of receipts and losses, in its order, now that the receipts are here.
    pub(super) fn rebuild(&mut self) {
        let steps = self.steps.take();
        let receipts: BTreeMap<(PeerId, Cid), Vec<ReceiptSummary>> = std::mem::take(&mut self.recalled);
        let mut cells: Vec<(PeerId, Cell)> = std::mem::take(&mut self.past);
        cells.extend(std::mem::take(&mut self.cells));
        self.failed.clear();
        self.received.clear();
        self.evidence.clear();
        self.lost.clear();
        self.replace.clear();
        self.doubtful = false;
        let mut taken_over = false;
        let mut ending = false;
        for step in steps {
            let recovered = matches!(step, FactKind::Recovered { .. });
            match step {
                FactKind::Granted { lablet, assignments, attempt }
                | FactKind::Recovered { lablet, assignments, attempt, .. } => {
                    // After the start an instance is granted once for each attempt, which tells two cells apart.
                    let same = |(holder, cell): &(PeerId, Cell)| {
                        *holder == lablet && cell.attempt == attempt && cell.assignments == assignments
                    };
                    if let Some(at) = cells.iter().position(same) {
                        let (_, mut cell) = cells.remove(at);
                        cell.over = false;
                        for instance in cell.instances() {
                            self.lost.remove(&instance);
                            self.replace.remove(&instance);
                        }
                        if let Some(mut before) = self.cells.insert(lablet.clone(), cell) {
                            before.over |= recovered;
                            self.past.push((lablet, before));
                        }
                    }
                }
                FactKind::Received { lablet, shard, .. } => {
                    let good = self.cell_of_shard(&lablet, &shard).and_then(|c| c.shards.get(&shard));
                    if good.is_some_and(|s| s.state == Pull::Kept)
                        && let Some(receipts) = receipts.get(&(lablet.clone(), shard))
                    {
                        self.take_receipts(&lablet, &shard, receipts, !ending && !self.doubtful);
                    }
                }
                FactKind::Lost { lablet: Some(lablet), reason, .. } => {
                    self.take_loss(&lablet, &reason, !ending && !self.doubtful);
                }
                FactKind::Lost { lablet: None, reason, .. } if ending => {
                    self.lose_rest(&reason);
                }
                FactKind::Lost { lablet: None, instances, reason } => {
                    self.doubtful |= taken_over;
                    self.give_up_replacement();
                    // After a takeover it also names what nobody held.
                    for instance in instances {
                        if !self.received.contains_key(&instance) {
                            // What it was lost for stays the reason where it is given up later.
                            self.lost.entry(instance).or_insert_with(|| reason.clone());
                        }
                    }
                }
                FactKind::TakenOver { .. } => taken_over = true,
                FactKind::Cancelled { .. }
                | FactKind::TimedOut {}
                | FactKind::EndedEarly { .. }
                | FactKind::CannotStart(_) => {
                    ending = true;
                    self.give_up_replacement();
                }
                FactKind::Submitted { .. }
                | FactKind::Placed { .. }
                | FactKind::Accepted { .. }
                | FactKind::Refused { .. }
                | FactKind::Started {}
                | FactKind::Faulted { .. }
                | FactKind::Measured { .. }
                | FactKind::Sealed { .. }
                | FactKind::Failed { .. }
                | FactKind::Snapshot { .. } => {}
            }
        }
        self.count_pulls();
    }
}

/// Whether the software ended, rather than the lab under it.
fn by_itself(exit: &Exit) -> bool {
    exit.by_lab().is_none()
}

/// Says why a lablet stopped an instance, where it did. A worker that died is no such case: nobody knows whether it was
/// the software that killed it, and the rest of its cell may live on.
pub(super) fn stopped(exit: &Exit) -> Option<String> {
    match exit.by_lab() {
        Some(ByLab::Stopped(reason)) => Some(format!("its lablet stopped it: {reason}")),
        Some(ByLab::WorkerDied(_) | ByLab::NotStarted(_)) | None => None,
    }
}
