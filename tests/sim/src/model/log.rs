//! Facts as they become durable, and who holds what by them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, Exit, Fact, FactKind, InstanceId, Placement, Run};
use iptl_scheduler::placement;
use iptl_wire::session::Inventory;

use super::Model;
use crate::lablet::LabletNode;
use crate::orchestrator::OrchestratorNode;
use crate::reach::Point;

/// Time in which a fact is durable that was decided, on the slowest disk: a start counts from its decision.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// A grant that was written down.
#[derive(Debug)]
struct Granted {
    assignments: Vec<Assignment>,
    attempt: u32,
    /// Whether the lablet still counts as holding it.
    live: bool,
}

/// What the log of one execution says.
#[derive(Debug, Default)]
pub(super) struct Log {
    begun: bool,
    /// Place among all submissions.
    order: u64,
    started: bool,
    /// Virtual time at which that was decided: a run's time counts from then, however long it takes to be durable.
    started_at: u64,
    over: bool,
    stopped: bool,
    counter: u64,
    /// By lablet and counter of the term.
    grants: BTreeMap<(PeerId, u64), Granted>,
    /// Attempt of each instance that was lost.
    lost: BTreeMap<InstanceId, u32>,
    /// Instances with a durable receipt of an end that was their own.
    pub(super) finished: BTreeSet<InstanceId>,
    /// Last attempt of each instance of which a lablet said that it stopped it.
    pub(super) halted: BTreeMap<InstanceId, u32>,
    /// Whether what waited for another attempt was given up.
    given_up: bool,
    /// Whether an instance of a group that fails fast has failed.
    failed_fast: bool,
}

impl Log {
    fn live_of(&mut self, lablet: &PeerId) -> Option<&mut Granted> {
        self.grants.iter_mut().find(|((holder, _), grant)| holder == lablet && grant.live).map(|(_, grant)| grant)
    }

    /// Takes in a grant, or says what is wrong with it.
    fn grant(&mut self, lablet: &PeerId, counter: u64, granted: Granted, run: &Run) -> Result<bool, String> {
        if let Some(before) = self.live_of(lablet) {
            before.live = false;
        }
        let mut replaced = false;
        if self.started && self.failed_fast {
            return Err("grants after the failure of a group that fails fast".to_owned());
        }
        for assignment in &granted.assignments {
            let end = assignment.start.checked_add(assignment.count);
            if end.is_none_or(|end| run.groups.get(&assignment.group).is_none_or(|group| end > group.count)) {
                return Err(format!("grants what the run does not have: {assignment:?}"));
            }
        }
        for instance in granted.assignments.iter().flat_map(Assignment::instances) {
            let holds = |g: &Granted| g.live && g.assignments.iter().any(|a| a.holds(&instance));
            if self.grants.values().any(holds) {
                return Err(format!("grants {instance}, which another lablet holds"));
            }
            if self.finished.contains(&instance) {
                return Err(format!("grants {instance}, which has finished"));
            }
            if self.started {
                let before = self.lost.get(&instance).copied().unwrap_or(0);
                let most = run.attempts_of(&instance.group);
                if before == 0 || granted.attempt <= before || granted.attempt > most {
                    return Err(format!("grants attempt {} of {instance} after {before}", granted.attempt));
                }
                replaced = true;
            }
        }
        self.grants.insert((lablet.clone(), counter), granted);
        Ok(replaced)
    }

    /// Last attempt of every instance that was granted more than once after the start.
    pub(super) fn attempts(&self) -> BTreeMap<InstanceId, u32> {
        let mut attempts = BTreeMap::new();
        for grant in self.grants.values().filter(|grant| grant.attempt > 1) {
            for instance in grant.assignments.iter().flat_map(Assignment::instances) {
                let last: &mut u32 = attempts.entry(instance).or_default();
                *last = (*last).max(grant.attempt);
            }
        }
        attempts
    }

    /// Whether an instance has no other attempt that the run allows and that nobody has given up.
    pub(super) fn may_not_go_again(&self, run: &Run, instance: &InstanceId) -> bool {
        let granted = self.attempts().get(instance).copied().unwrap_or(1);
        self.stopped || self.given_up || granted >= run.attempts_of(&instance.group)
    }

    /// Whether an instance has ended or is lost, and will not begin anew.
    pub(super) fn is_gone(&self, run: &Run, instance: &InstanceId) -> bool {
        self.finished.contains(instance) || (self.is_cut(instance) && self.may_not_go_again(run, instance))
    }

    fn is_cut(&self, instance: &InstanceId) -> bool {
        self.lost.contains_key(instance) || self.halted.contains_key(instance)
    }

    /// Whether any instance was lost or stopped, and will not begin anew: what it signalled last may have gone with it.
    pub(super) fn lost_one(&self, run: &Run) -> bool {
        self.lost.keys().chain(self.halted.keys()).any(|i| !self.finished.contains(i) && self.may_not_go_again(run, i))
    }

    /// Whether a lablet was granted an instance.
    fn was_granted(&self, lablet: &PeerId, instance: &InstanceId) -> bool {
        let holds = |grant: &Granted| grant.assignments.iter().any(|a| a.holds(instance));
        self.grants.iter().any(|((holder, _), grant)| holder == lablet && holds(grant))
    }

    fn holds_all(&self, all: u64) -> bool {
        let live = self.grants.values().filter(|g| g.live);
        live.flat_map(|g| &g.assignments).map(|a| u64::from(a.count)).sum::<u64>() == all
    }
}

impl Model {
    /// The start of an execution is decided.
    pub fn decides_start(&mut self, now: u64, id: &ExecutionId) {
        if let Some(truth) = self.truths.get_mut(id) {
            truth.log.started_at = now;
        }
    }

    /// A placement is stored: what has finished keeps a place where it was. What counted as lost before its receipt came
    /// may have none.
    pub(super) fn placed(&mut self, placement: &Placement) {
        let Some(truth) = self.truths.get(&placement.execution) else { return };
        let log = &truth.log;
        let keeps = |i: &InstanceId| match placement.assignments.iter().find(|a| a.holds(i)) {
            Some(assignment) => log.was_granted(&assignment.lablet, i),
            None => log.lost.contains_key(i),
        };
        let moved: Vec<_> = log.finished.iter().filter(|i| !keeps(i)).map(ToString::to_string).collect();
        self.check("finished-moved", moved.is_empty(), || {
            format!("{}: has finished and is placed elsewhere: {moved:?}", placement.execution.alias())
        });
    }

    /// A fact becomes durable at a virtual time.
    pub fn fact(&mut self, now: u64, node: &OrchestratorNode, fact: &Fact) {
        let id = fact.execution;
        let Some(truth) = self.truths.get_mut(&id) else {
            return self.violated("stranger", format!("a fact of {}, which was never submitted", id.alias()));
        };
        let all = truth.run.instances();
        let run = &truth.run;
        let fails_fast = |group: &str| run.groups.get(group).and_then(|g| g.loss).is_some_and(|loss| loss.fail_fast);
        let log = &mut truth.log;
        let mut wrong = Vec::new();
        if log.over {
            wrong.push("comes after the last".to_owned());
        }
        if log.begun == matches!(fact.kind, FactKind::Submitted { .. }) {
            wrong.push("is not begun by one submission".to_owned());
        }
        if fact.epoch.counter < log.counter {
            wrong.push(format!("goes back to term {} from {}", fact.epoch.counter, log.counter));
        }
        log.counter = log.counter.max(fact.epoch.counter);
        match &fact.kind {
            FactKind::Submitted { .. } => {
                self.submissions += 1;
                log.begun = true;
                log.order = self.submissions;
            }
            // Nothing is done on purpose to what runs here.
            FactKind::Placed { .. } | FactKind::Faulted { .. } | FactKind::Measured { .. } => {}
            FactKind::Granted { lablet, assignments, attempt } => {
                let granted = Granted { assignments: assignments.clone(), attempt: *attempt, live: true };
                let again = log.started && log.grants.keys().any(|(holder, _)| holder == lablet);
                let halted = |i: &InstanceId| log.halted.get(i).is_some_and(|before| before + 1 == *attempt);
                if assignments.iter().flat_map(Assignment::instances).any(|i| halted(&i)) {
                    self.reached.at(Point::HaltedAgain);
                }
                match log.grant(lablet, fact.epoch.counter, granted, run) {
                    Ok(true) => {
                        self.reached.at(Point::Replaced);
                        if again {
                            self.reached.at(Point::Again);
                        }
                    }
                    Ok(false) => {}
                    Err(what) => wrong.push(what),
                }
            }
            FactKind::Accepted { lablet } => {
                if log.live_of(lablet).is_none() {
                    wrong.push(format!("has {} take what it was not granted", lablet.short()));
                }
            }
            FactKind::Refused { lablet, reason } => {
                self.reached.at(Point::GaveBack);
                if reason == "did not get prepared in time" {
                    self.reached.at(Point::NeverPrepared);
                }
                let started = log.started;
                match log.live_of(lablet) {
                    Some(grant) if !started => grant.live = false,
                    _ => wrong.push(format!("has {} give back what it did not hold", lablet.short())),
                }
            }
            FactKind::Started {} => {
                if log.started || !log.holds_all(all) {
                    wrong.push("starts twice, or without all instances granted".to_owned());
                }
                log.started = true;
                let order = log.order;
                let waits = |log: &Log| log.begun && !log.over && log.order < order && log.grants.is_empty();
                if self.truths.values().any(|truth| waits(&truth.log)) {
                    self.reached.at(Point::Overtook);
                }
            }
            FactKind::Received { lablet, shard, .. } => {
                let Some(receipts) = node.store.get(shard) else {
                    return self.violated("received", format!("{shard} received and not on disk"));
                };
                if !log.started {
                    wrong.push("receives receipts before the start".to_owned());
                }
                for receipt in receipts {
                    let named = (lablet.clone(), receipt.epoch.counter);
                    let Some(grant) = log.grants.get(&named).filter(|g| g.attempt == receipt.attempt) else { continue };
                    if !grant.live {
                        self.reached.at(Point::LateReceipt);
                    }
                    let own = !matches!(receipt.exit, Exit::Stopped { .. });
                    if !own {
                        log.halted.insert(receipt.instance.clone(), receipt.attempt);
                    }
                    if own && grant.assignments.iter().any(|a| a.holds(&receipt.instance)) {
                        let first = log.finished.insert(receipt.instance.clone());
                        let failed = matches!(receipt.exit, Exit::Exited { code } if code != 0);
                        log.failed_fast |= first && failed && fails_fast(&receipt.instance.group);
                    }
                }
            }
            FactKind::Lost { lablet, instances, .. } => {
                let attempt = match lablet.as_ref().map(|l| log.live_of(l)) {
                    Some(Some(grant)) => {
                        grant.live = false;
                        grant.attempt
                    }
                    Some(None) => {
                        wrong.push("loses with a lablet what that did not hold".to_owned());
                        0
                    }
                    None => 0,
                };
                log.given_up |= lablet.is_none();
                self.reached.at(Point::LostCell);
                for instance in instances {
                    if log.finished.contains(instance) {
                        wrong.push(format!("loses {instance}, which has finished"));
                    }
                    let before = log.lost.entry(instance.clone()).or_default();
                    *before = (*before).max(attempt);
                }
            }
            FactKind::Cancelled { .. } | FactKind::TimedOut {} => {
                let ran = Duration::from_nanos(now.saturating_sub(log.started_at));
                let most = Duration::from_millis(run.timeout_ms);
                if matches!(fact.kind, FactKind::TimedOut {}) && ran + DURABLE_WITHIN < most {
                    wrong.push(format!("has {most:?} and is ended after {ran:?}"));
                }
                if std::mem::replace(&mut log.stopped, true) {
                    wrong.push("is ended twice".to_owned());
                }
            }
            FactKind::EndedEarly { .. } => {
                if std::mem::replace(&mut log.stopped, true) {
                    wrong.push("is ended twice".to_owned());
                }
                let lost = log.lost.keys().any(|instance| fails_fast(&instance.group));
                self.reached.at(if log.failed_fast { Point::FailedFast } else { Point::LostFast });
                if !log.started || (!log.failed_fast && !lost) {
                    wrong.push("is ended early, and nothing failed or was lost".to_owned());
                }
            }
            FactKind::CannotStart(_) => {
                if std::mem::replace(&mut log.stopped, true) {
                    wrong.push("is ended twice".to_owned());
                }
                if log.started {
                    wrong.push("was started, and is given up as if it had not been".to_owned());
                }
            }
            FactKind::Sealed { result, .. } => {
                log.over = true;
                if !node.results.contains(result) {
                    wrong.push(format!("seals {result}, which nobody made"));
                }
            }
            FactKind::Failed { reason, .. } => {
                log.over = true;
                wrong.push(format!("ends without a result: {reason}"));
            }
            FactKind::TakenOver { .. } | FactKind::Recovered { .. } | FactKind::Snapshot { .. } => {}
        }
        self.check("log", wrong.is_empty(), || format!("log of {} {}", id.alias(), wrong.join(", and ")));
    }

    /// An execution is not started: where nothing went wrong, only because no lab of these machines can hold it.
    pub fn given_up(&mut self, id: &ExecutionId, lablets: &[LabletNode], reason: &str) {
        if reason.starts_with("not started within") {
            self.reached.at(Point::NotStarted);
            let asked = self.truths.get(id).is_some_and(|truth| truth.run.placing.within_ms.is_some());
            return self
                .check("not-asked", asked, || format!("{} was given up on, and need not start soon", id.alias()));
        }
        self.reached.at(Point::NoCapacity);
        let Some(truth) = self.truths.get(id).filter(|_| self.gentle) else { return };
        let machines: BTreeMap<PeerId, Inventory> =
            lablets.iter().map(|lablet| (lablet.peer.clone(), lablet.machine.clone())).collect();
        let fits = placement(&truth.run, &machines, &[], &BTreeMap::new()).missing() == 0;
        self.check("gentle", !fits, || format!("{} failed and nothing went wrong: {reason}", id.alias()));
    }
}
