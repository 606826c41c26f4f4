//! What the driver does for sync: who takes part in an execution, what cells are told, and what people are told of
//! barriers that are waited for.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId, FactKind};
use iptl_sync::{FailedBarrier, MissingCell};
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
        self.registry.active.get(execution).is_some_and(|active| active.book.takes_part(lablet))
    }

    pub(super) fn send_sync(&mut self, execution: ExecutionId) {
        let active = self.registry.active.get_mut(&execution);
        let Some(sync) = active.and_then(|active| active.book.sync_mut()) else { return };
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
        for (execution, active) in &mut self.registry.active {
            let lablets: Vec<PeerId> = active.book.lablets().cloned().collect();
            let Some(sync) = active.book.sync_mut() else { continue };
            if self.looks >= RECOVERY_LOOKS && sync.is_recovering() {
                tracing::warn!(execution = %execution.alias(), "some cells told nothing of what they had contributed");
                sync.end_recovery();
            }
            for lablet in lablets {
                // After a restart, names come with the lablets.
                sync.call_lablet(&lablet, self.core.lablet_name(execution, &lablet));
            }
            sync.inquire();
            asked.push(*execution);
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

    /// Takes facts that are durable into sync.
    pub(super) fn note_all(&mut self, facts: &[(ExecutionId, Epoch, FactKind)]) {
        let mut by_execution: BTreeMap<ExecutionId, Vec<&FactKind>> = BTreeMap::new();
        for (execution, _, kind) in facts {
            by_execution.entry(*execution).or_default().push(kind);
        }
        for (execution, kinds) in by_execution {
            let Some(active) = self.registry.active.get_mut(&execution) else { continue };
            if kinds.iter().any(|kind| matches!(kind, FactKind::Received { .. })) {
                self.spoken.insert(execution);
            }
            active.book.note(kinds, |instance| self.core.runs_again(&execution, instance));
            let lablets: Vec<PeerId> = active.book.lablets().cloned().collect();
            if let Some(sync) = active.book.sync_mut() {
                for lablet in lablets {
                    sync.call_lablet(&lablet, self.core.lablet_name(&execution, &lablet));
                }
            }
        }
    }
}

/// Names who is missing at a barrier.
pub(super) fn missing(cell: &MissingCell) -> Vec<String> {
    let lablet = &cell.name;
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
