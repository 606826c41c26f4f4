//! Further attempts of lost instances: bounded by the plan, later each time, wherever there is room.
//!
//! Lablets that had no part in the execution are asked first. One that had may get another cell once it gives nothing
//! more for the one that it had: that is over, and all receipts that the lablet sealed in it are here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, FactKind, InstanceId};
use iptl_wire::Timestamp;
use iptl_wire::session::CellPhase;

use super::grant::{parts, without};
use super::offer::bans;
use super::state::{Exec, Pull};
use super::{Orchestrator, ms};
use crate::placement::plan;

impl Orchestrator {
    /// Returns how long an attempt waits for after the loss of the one before it.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(2).min(32);
        ms(self.config.rerun_backoff_ms.saturating_mul(1 << doublings).min(self.config.max_backoff_ms))
    }

    /// Notes from when on what was just lost may be granted again, and until when it waits for a lablet.
    pub(super) fn wait_for_rerun(&mut self, now: Timestamp, id: ExecutionId, lost: &[InstanceId]) {
        let Some(exec) = self.executions.get(&id) else { return };
        let attempts: BTreeSet<u32> = lost.iter().filter_map(|instance| exec.replace.get(instance)).copied().collect();
        for attempt in attempts {
            let at = now.after(self.backoff(attempt));
            let until = at.after(ms(self.config.replace_timeout_ms));
            let Some(exec) = self.executions.get_mut(&id) else { return };
            let earliest = exec.replace_at.entry(attempt).or_insert(at);
            *earliest = (*earliest).max(at);
            exec.replace_until = exec.replace_until.max(until);
        }
    }

    /// Places lost instances for another attempt, as many as there is room for.
    pub(super) fn place_replacements(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let ready = |attempt: &u32| exec.replace_at.get(attempt).is_none_or(|at| *at <= now);
        let Some(attempt) = exec.replace.values().copied().filter(ready).min() else { return };
        let due: BTreeSet<InstanceId> =
            exec.replace.iter().filter(|(_, a)| **a == attempt).map(|(i, _)| i.clone()).collect();
        let kept = without(&exec.assignments, &due);
        let run = &exec.run.run;
        let free = self.rooms(Some(id)).beside(Some(id), run.placing.dedicated, &BTreeMap::new());
        let banned = bans(exec, now);
        let excluding = |holders: &mut dyn Iterator<Item = &PeerId>| {
            let mut excluded = banned.clone();
            excluded.extend(holders.map(|l| (l.clone(), "had a part in this execution".to_owned())));
            excluded
        };
        let mut excluded = excluding(&mut exec.cells.keys());
        let mut found = plan(run, &free, &kept, &excluded);
        if !found.is_whole() {
            let mut unspent = exec.cells.keys().filter(|lablet| !self.spent(exec, id, lablet));
            excluded = excluding(&mut unspent);
            found = plan(run, &free, &kept, &excluded);
        }
        let fresh: Vec<Assignment> = found
            .assignments
            .iter()
            .flat_map(|a| a.instances().filter(|i| due.contains(i)).map(|i| (a, i)).collect::<Vec<_>>())
            .map(|(a, i)| Assignment { group: i.group, start: i.index, count: 1, lablet: a.lablet.clone() })
            .collect();
        let granted: BTreeSet<InstanceId> = fresh.iter().flat_map(Assignment::instances).collect();
        let parts: Vec<_> = parts(&crate::placement::merge(fresh)).into_iter().collect();
        if parts.is_empty() {
            return;
        }
        let placed = found.placed(run, &free, &excluded);
        let holders: BTreeSet<&PeerId> = parts.iter().map(|(lablet, _)| lablet).collect();
        let others: Vec<PeerId> = exec.live_cells().map(|(l, _)| l).filter(|l| !holders.contains(l)).cloned().collect();
        if let Some(exec) = self.executions.get_mut(&id) {
            exec.epoch += 1;
            for instance in &granted {
                exec.replace.remove(instance);
                exec.lost.remove(instance);
            }
        }
        self.record_placement(now, id, placed);
        self.grant_cells(now, id, parts, attempt);
        for lablet in others {
            self.send_directory(id, &lablet);
        }
        // What found no room is looked at with the next change, and attempts of other numbers now.
        self.replan |= self.executions.get(&id).is_some_and(|e| granted.len() == due.len() && !e.replace.is_empty());
    }

    /// Whether a lablet gives nothing more for the cell that it had, so that it may get another.
    fn spent(&self, exec: &Exec, id: ExecutionId, lablet: &PeerId) -> bool {
        let had = |(holder, _): &(&PeerId, _)| *holder == lablet;
        let settled = exec
            .all_cells()
            .filter(had)
            .all(|(_, cell)| cell.over && cell.shards.values().all(|s| matches!(s.state, Pull::Kept | Pull::Bad)));
        let Some(state) = self.lablets.get(lablet).filter(|l| settled && l.session.is_some()) else { return false };
        state.cells.iter().filter(|status| status.cell.execution == id).all(|status| {
            let cell = exec.all_cells().filter(had).find(|(_, cell)| cell.epoch == status.cell.epoch);
            let handed_in = cell.map_or(0, |(_, cell)| cell.shards.values().map(|s| u64::from(s.count)).sum());
            status.phase == CellPhase::Ended && handed_in >= u64::from(status.ended)
        })
    }

    /// Gives up on another attempt where no lablet came for it.
    pub(super) fn expire_replacement(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id).filter(|e| !e.recalling()) else { return };
        exec.replace_at.retain(|_, at| *at > now);
        if exec.replace.is_empty() {
            return;
        }
        self.replan = true;
        if exec.replace_until <= now {
            self.give_up_replacement(now, id, "no lablet came for another attempt");
        }
    }

    /// Takes what waits for another attempt as lost for good.
    fn give_up_replacement(&mut self, now: Timestamp, id: ExecutionId, reason: &str) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Some(instances) = exec.give_up_replacement() else { return };
        exec.doubtful |= exec.taken_over;
        self.persist(id, FactKind::Lost { lablet: None, instances, reason: reason.into() });
        self.settle(now, id);
    }
}
