//! Ends before the time: a group that fails fast, a start that comes too late or never.

use std::time::Duration;

use iptl_dag::model::{CannotStart, ExecutionId, FactKind, MaxLost};
use iptl_wire::Timestamp;

use super::state::{Exec, Stage};
use super::{Orchestrator, unable};

impl Orchestrator {
    /// Ends a run of which a group that fails fast has failed, or lost more than it may.
    pub(super) fn end_early(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if !matches!(exec.stage, Stage::Running { .. }) || exec.recalling() || exec.ending() {
            return;
        }
        let Some(reason) = exec.failed_fast() else { return };
        exec.ended_early = Some(reason.clone());
        self.persist(id, FactKind::EndedEarly { reason });
        let reason = self.executions.get(&id).map(Exec::end_reason).unwrap_or_default();
        self.wind_down(now, id, &reason);
    }

    /// Ends a run that was not started in the time that its plan gives.
    pub(super) fn expire_start(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        if exec.start_by().is_none_or(|by| by > now) {
            return;
        }
        let within = Duration::from_millis(exec.run.run.placing.within_ms.unwrap_or(0));
        let waited = exec.waits_for().map(|reason| format!(": it {reason}")).unwrap_or_default();
        let message = format!("not started within {within:?}, as the plan asks{waited}");
        let help =
            "give it longer with `start_within`, run fewer instances, or let another machine join: `iptl invite`";
        self.cannot_start(now, id, unable("lab.not-started", message, help));
    }

    /// Ends what was not started, and is not about to end, with a result that says why.
    pub(super) fn cannot_start(&mut self, now: Timestamp, id: ExecutionId, why: CannotStart) {
        let Some(exec) = self.executions.get_mut(&id).filter(|exec| !exec.started() && !exec.ending()) else { return };
        exec.cannot_start = Some(why.clone());
        let reason = why.reason.clone();
        self.persist(id, FactKind::CannotStart(why));
        self.wind_down(now, id, &reason);
    }
}

impl Exec {
    /// Says which group that fails fast has failed, or lost more than it may, where one did.
    fn failed_fast(&self) -> Option<String> {
        let run = &self.run.run;
        let of_run = run.loss.max_lost.map_or(MaxLost::Share(run.loss.max_lost_ppm), MaxLost::Count);
        let own = |name: &str| run.groups.get(name).and_then(|g| g.loss).and_then(|loss| loss.max_lost);
        let for_good = || self.lost.keys().filter(|instance| !self.replace.contains_key(*instance));
        for (name, _) in run.groups.iter().filter(|(_, group)| group.loss.is_some_and(|loss| loss.fail_fast)) {
            if let Some((instance, cause)) = self.failed.get(name) {
                return Some(format!("{instance} failed: {cause}"));
            }
            let (lost, all, most) = match own(name) {
                Some(most) => {
                    let lost = for_good().filter(|instance| instance.group == *name).count();
                    (lost, run.groups.get(name).map_or(0, |g| u64::from(g.count)), most)
                }
                None => {
                    let lost = for_good().filter(|instance| own(&instance.group).is_none()).count();
                    let sizes = run.groups.iter().filter(|(name, _)| own(name).is_none());
                    (lost, sizes.map(|(_, g)| u64::from(g.count)).sum(), of_run)
                }
            };
            let of_group = for_good().any(|instance| instance.group == *name);
            if of_group && !most.allows(lost as u64, all) {
                return Some(format!(
                    "the lab lost {lost} of {all} instances, {most} may be lost, and {name} fails fast"
                ));
            }
        }
        None
    }
}
