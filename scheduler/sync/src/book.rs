//! What the facts of an execution say of who takes part in its sync.
//!
//! A driver gives a [`SyncBook`] every fact that is durable, and those of a log that it reads again. The book keeps the
//! [`RunSync`] of the execution, with its cells as they are by these facts.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::fact::CellFact;
use iptl_dag::model::{Assignment, BarrierLoss, FactKind, InstanceId, Run};

use crate::run::RunSync;

/// Who takes part in an execution, and their sync once somebody does.
#[derive(Debug)]
pub struct SyncBook {
    barriers: BarrierLoss,
    /// How often an instance of each group may be started.
    attempts: BTreeMap<String, u32>,
    /// Instances of the cell that each lablet holds.
    lablets: BTreeMap<PeerId, u64>,
    /// Attempt of that cell.
    attempt: BTreeMap<PeerId, u32>,
    /// Instances that were lost before a restart: the lablet that lost them, and whether they are lost for good.
    lost_before: BTreeMap<InstanceId, (PeerId, bool)>,
    /// Receipts of each lablet's cell that arrived.
    received: BTreeMap<PeerId, u64>,
    sync: Option<RunSync>,
}

impl SyncBook {
    /// Opens the book of an execution of which there are no facts yet.
    pub fn new(run: &Run) -> SyncBook {
        SyncBook {
            barriers: run.loss.barriers,
            attempts: run.groups.keys().map(|name| (name.clone(), run.attempts_of(name))).collect(),
            lablets: BTreeMap::new(),
            attempt: BTreeMap::new(),
            lost_before: BTreeMap::new(),
            received: BTreeMap::new(),
            sync: None,
        }
    }

    /// Whether a lablet holds a cell.
    pub fn takes_part(&self, lablet: &PeerId) -> bool {
        self.lablets.contains_key(lablet)
    }

    /// Returns the lablets that hold cells.
    pub fn lablets(&self) -> impl Iterator<Item = &PeerId> {
        self.lablets.keys()
    }

    /// Returns the sync; none before the first grant.
    pub fn sync(&self) -> Option<&RunSync> {
        self.sync.as_ref()
    }

    /// The same, to be told something.
    pub fn sync_mut(&mut self) -> Option<&mut RunSync> {
        self.sync.as_mut()
    }

    /// Takes in facts that became durable together; `runs_again` says of a lost instance whether it waits for another
    /// attempt, as the core has it that decided them.
    ///
    /// Their order is kept but for one thing: a cell that is lost with what it hands in last is lost first. Its receipts
    /// alone would look as if instances had ended for good that begin anew.
    pub fn note<'a>(
        &mut self,
        facts: impl IntoIterator<Item = &'a FactKind>,
        runs_again: impl Fn(&InstanceId) -> bool,
    ) {
        let mut order: Vec<&FactKind> = facts.into_iter().collect();
        for at in 1..order.len() {
            if is_lost_with_it(order[at - 1], order[at]) {
                order.swap(at - 1, at);
            }
        }
        for kind in order {
            self.note_one(kind, &runs_again);
        }
    }

    fn note_one(&mut self, kind: &FactKind, runs_again: impl Fn(&InstanceId) -> bool) {
        match kind {
            FactKind::Granted { lablet, assignments, attempt }
            | FactKind::Recovered { lablet, assignments, attempt, .. } => {
                let instances = self.hold(lablet, assignments, *attempt);
                let barriers = self.barriers;
                let sync = self.sync.get_or_insert_with(|| {
                    let mut sync = RunSync::new([]);
                    sync.on_loss(barriers);
                    sync
                });
                if matches!(kind, FactKind::Recovered { .. }) {
                    sync.recover_cell(lablet.clone(), instances);
                } else if *attempt > 1 {
                    let again: Vec<_> = assignments.iter().flat_map(Assignment::instances).collect();
                    sync.add_cell_again(lablet.clone(), &again);
                } else {
                    sync.add_cell(lablet.clone(), instances);
                }
                sync.of_attempt(lablet, *attempt);
            }
            FactKind::Refused { lablet, .. } => {
                self.lablets.remove(lablet);
                if let Some(sync) = &mut self.sync {
                    sync.replace_cell(lablet);
                }
            }
            FactKind::Lost { lablet: Some(lablet), instances, .. } => {
                // The core knows better than the bound: after a takeover nothing may be granted anew.
                let (again, for_good) = self.lose(lablet, instances, runs_again);
                if let Some(sync) = &mut self.sync {
                    sync.lose_cell(lablet, &again, &for_good);
                }
            }
            // Also what it does not name, since a receipt of an earlier attempt counts: nothing begins anew.
            FactKind::Lost { lablet: None, .. } => {
                if let Some(sync) = &mut self.sync {
                    sync.give_up();
                }
            }
            FactKind::Received { lablet, count, .. } => {
                if let Some(sync) = &mut self.sync {
                    sync.receive(lablet, u64::from(*count));
                }
            }
            FactKind::Submitted { .. }
            | FactKind::Placed { .. }
            | FactKind::Accepted { .. }
            | FactKind::Started {}
            | FactKind::Faulted { .. }
            | FactKind::Measured { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::CannotStart(_)
            | FactKind::Sealed { .. }
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Snapshot { .. } => {}
        }
    }

    /// Takes in a fact of a log that is read again: what it tells of happened before.
    pub fn read(&mut self, kind: &FactKind) {
        if let FactKind::Lost { lablet: None, .. } = kind {
            for (_, for_good) in self.lost_before.values_mut() {
                *for_good = true;
            }
        }
        let Some((lablet, said)) = kind.of_cell() else { return };
        match said {
            CellFact::Held { assignments, attempt } => {
                self.hold(lablet, assignments, attempt);
                for instance in assignments.iter().flat_map(Assignment::instances) {
                    self.lost_before.remove(&instance);
                }
            }
            CellFact::Refused => {
                self.lablets.remove(lablet);
            }
            CellFact::Lost(instances) => {
                let (again, for_good) = self.lose(lablet, instances, |_| true);
                let lost = again.into_iter().map(|i| (i, false)).chain(for_good.into_iter().map(|i| (i, true)));
                self.lost_before.extend(lost.map(|(instance, for_good)| (instance, (lablet.clone(), for_good))));
            }
            CellFact::Received(count) => *self.received.entry(lablet.clone()).or_default() += u64::from(count),
            CellFact::Accepted | CellFact::Measured(_) | CellFact::Faulted(_) => {}
        }
    }

    /// Goes on from what was read: every cell is asked for what it contributed.
    pub fn resume(&mut self) {
        if self.lablets.is_empty() {
            return;
        }
        let cells = self.lablets.iter().map(|(lablet, instances)| (lablet.clone(), *instances));
        let mut sync = RunSync::recovering(cells);
        sync.on_loss(self.barriers);
        for lablet in self.lablets.keys() {
            sync.of_attempt(lablet, self.attempt.get(lablet).copied().unwrap_or(1));
        }
        for (instance, (lablet, for_good)) in &self.lost_before {
            let one = std::slice::from_ref(instance);
            let (again, for_good) = if *for_good { (&[][..], one) } else { (one, &[][..]) };
            sync.lost_before(lablet, again, for_good);
        }
        for (lablet, receipts) in &self.received {
            sync.receive(lablet, *receipts);
        }
        self.sync = Some(sync);
    }

    /// A lablet holds these instances from now on; returns how many.
    fn hold(&mut self, lablet: &PeerId, assignments: &[Assignment], attempt: u32) -> u64 {
        let instances = assignments.iter().map(|a| u64::from(a.count)).sum();
        // What came of the cell before is none of this one's.
        self.received.remove(lablet);
        // Who gets what another gave back before the start is granted all that it holds, what it had included.
        self.lablets.insert(lablet.clone(), instances);
        self.attempt.insert(lablet.clone(), attempt);
        instances
    }

    /// A lablet's cell is lost; returns which of the lost instances begin anew, and which do not.
    fn lose(
        &mut self,
        lablet: &PeerId,
        instances: &[InstanceId],
        runs_again: impl Fn(&InstanceId) -> bool,
    ) -> (Vec<InstanceId>, Vec<InstanceId>) {
        self.lablets.remove(lablet);
        self.received.remove(lablet);
        let attempt = self.attempt.get(lablet).copied().unwrap_or(1);
        let allowed = |i: &InstanceId| self.attempts.get(&i.group).is_some_and(|most| attempt < *most);
        instances.iter().cloned().partition(|i| allowed(i) && runs_again(i))
    }
}

/// Whether the cell whose receipts the first fact tells of is lost by the second.
fn is_lost_with_it(received: &FactKind, lost: &FactKind) -> bool {
    match (received, lost) {
        (FactKind::Received { lablet, .. }, FactKind::Lost { lablet: Some(holder), .. }) => lablet == holder,
        _ => false,
    }
}
