//! What the driver does for sync: who takes part in an execution, what cells are told, and what people are told of
//! barriers that are waited for.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, FactKind, InstanceId};
use iptl_sync::{FailedBarrier, MissingCell, RunSync};
use iptl_wire::control::Event;
use iptl_wire::session::ToLablet;

use super::driver::{Driver, send};
use crate::clock;

/// A barrier whose count does not move is told of again after so many looks.
const BARRIER_REPEAT: u32 = 5;

/// Looks after a start in which cells contribute again to sync what this orchestrator lost: longer than the two leases
/// that lablets have to come back.
const RECOVERY_LOOKS: u32 = 15;

/// Instances that are named when a barrier waits for them.
pub(super) const MAX_MISSING: usize = 20;

impl Driver {
    pub(super) fn takes_part(&self, execution: &ExecutionId, lablet: &PeerId) -> bool {
        self.registry.active.get(execution).is_some_and(|active| active.lablets.contains_key(lablet))
    }

    pub(super) fn send_sync(&mut self, execution: ExecutionId) {
        let Some(sync) = self.syncs.get_mut(&execution) else { return };
        while let Some(FailedBarrier { state, target, reachable, missing }) = sync.poll_failed() {
            tracing::info!(execution = %execution.alias(), state, target, reachable, missing, "a barrier failed");
        }
        while let Some((lablet, down)) = sync.poll_down() {
            send(&mut self.sessions, &lablet, ToLablet::Sync(execution, down));
        }
    }

    pub(super) fn tell_barriers(&mut self) {
        let now_ms = clock::wall().0;
        let mut events = Vec::new();
        let mut asked = Vec::new();
        self.looks = self.looks.saturating_add(1);
        let mut told = BTreeMap::new();
        for (execution, sync) in &mut self.syncs {
            if self.looks >= RECOVERY_LOOKS && sync.is_recovering() {
                tracing::warn!(execution = %execution.alias(), "some cells told nothing of what they had contributed");
                sync.end_recovery();
            }
            sync.inquire();
            asked.push(*execution);
            let Some(active) = self.registry.active.get(execution) else { continue };
            for barrier in sync.waiting() {
                // Who waits since the last look is told of at the next one.
                let key = (*execution, barrier.state.clone(), barrier.target);
                let (count, looks) = self.barriers.get(&key).copied().unwrap_or((u64::MAX, 0));
                let moved = count != barrier.count && count != u64::MAX;
                let looks = if moved { 0 } else { looks + 1 };
                told.insert(key, (barrier.count, looks));
                if !moved && looks % BARRIER_REPEAT != 2 {
                    continue;
                }
                let event = Event::Barrier {
                    state: barrier.state,
                    count: barrier.count,
                    target: barrier.target,
                    missing: barrier.missing.iter().flat_map(missing).take(MAX_MISSING).collect(),
                    after_ms: now_ms.saturating_sub(active.submitted_ms),
                };
                events.push((*execution, event));
            }
        }
        self.barriers = told;
        for (execution, event) in events {
            self.registry.notify(execution, event, now_ms);
        }
        for execution in asked {
            self.send_sync(execution);
        }
    }

    /// Keeps who takes part in an execution, for sync; a `replayed` fact's cells have contributed before.
    pub(super) fn note(&mut self, execution: ExecutionId, kind: &FactKind, replayed: bool) {
        let Some(active) = self.registry.active.get_mut(&execution) else { return };
        match kind {
            FactKind::Granted { lablet, assignments, attempt }
            | FactKind::Recovered { lablet, assignments, attempt, .. } => {
                let instances = assignments.iter().map(|a| u64::from(a.count)).sum();
                *active.lablets.entry(lablet.clone()).or_default() += instances;
                active.attempt.insert(lablet.clone(), *attempt);
                if replayed {
                    for instance in assignments.iter().flat_map(Assignment::instances) {
                        active.lost_before.remove(&instance);
                    }
                    return;
                }
                let barriers = active.barriers;
                let sync = self.syncs.entry(execution).or_insert_with(|| {
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
            }
            FactKind::Refused { lablet, .. } => {
                active.lablets.remove(lablet);
                if let Some(sync) = self.syncs.get_mut(&execution) {
                    sync.replace_cell(lablet);
                }
            }
            FactKind::Lost { lablet: Some(lablet), instances, .. } => {
                active.lablets.remove(lablet);
                active.received.remove(lablet);
                let attempt = active.attempt.get(lablet).copied().unwrap_or(1);
                let allowed = |i: &InstanceId| active.attempts.get(&i.group).is_some_and(|most| attempt < *most);
                // The core knows better than the bound: after a takeover nothing may be granted anew.
                let runs_again = |i: &InstanceId| allowed(i) && (replayed || self.core.runs_again(&execution, i));
                let (again, for_good): (Vec<_>, Vec<_>) = instances.iter().cloned().partition(runs_again);
                if replayed {
                    let lost = instances.iter().map(|i| (i.clone(), (lablet.clone(), for_good.contains(i))));
                    active.lost_before.extend(lost);
                } else if let Some(sync) = self.syncs.get_mut(&execution) {
                    sync.lose_cell(lablet, &again, &for_good);
                }
            }
            FactKind::Lost { lablet: None, instances, .. } => {
                for instance in instances {
                    if let Some((_, for_good)) = active.lost_before.get_mut(instance) {
                        *for_good = true;
                    }
                }
                if let Some(sync) = self.syncs.get_mut(&execution) {
                    sync.give_up(instances);
                }
            }
            FactKind::Received { lablet, count, .. } => {
                *active.received.entry(lablet.clone()).or_default() += u64::from(*count);
                if let Some(sync) = self.syncs.get_mut(&execution) {
                    sync.receive(lablet, u64::from(*count));
                    self.spoken.insert(execution);
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
            | FactKind::Sealed { .. }
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Snapshot { .. } => {}
        }
    }
}

/// Names who is missing at a barrier.
pub(super) fn missing(cell: &MissingCell) -> Vec<String> {
    let lablet = cell.lablet.short();
    if cell.lost {
        return vec![format!("{lablet} is lost")];
    }
    if cell.absent.instances.is_empty() {
        return vec![format!("instances on {lablet}")];
    }
    let ended = usize::try_from(cell.absent.ended).unwrap_or(usize::MAX);
    let (ended, living) = cell.absent.instances.split_at(ended.min(cell.absent.instances.len()));
    let living = living.iter().map(|id| format!("{id} on {lablet}"));
    ended.iter().map(|id| format!("{id}, which has ended")).chain(living).collect()
}
