//! Submission, placement, offers and bids.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{Execution, ExecutionId, FactKind, Placement, WorkloadKind};
use iptl_wire::control::{Event, Failure, FailureKind};
use iptl_wire::offer::{Offer, Wanted};
use iptl_wire::session::{Bid, KnownRun, ToLablet};
use iptl_wire::{Timestamp, WallTime};

use super::grant::parts;
use super::pulls::Pulls;
use super::state::{Exec, Stage, kinds_of, slots_of};
use super::steps::Steps;
use super::{Effect, NOTICE_INTERVAL, Orchestrator, ms, unable};
use crate::placement::{Placed, plan};

impl Orchestrator {
    pub(super) fn submit(&mut self, now: Timestamp, node: Execution, run: KnownRun, by: PeerId, priority: i32) {
        let id = node.id();
        if self.executions.contains_key(&id) || self.over.contains_key(&id) {
            return;
        }
        let last = self.executions.values().map(|exec| exec.order).max();
        let order = last.map_or(0, |last| last.saturating_add(1));
        let fact = FactKind::Submitted { execution: id.0, run: run.cid, by: by.clone(), priority, order };
        let groups = run.run.groups.iter().map(|(name, g)| (name.clone(), g.count)).collect();
        let event = Event::Submitted {
            execution: id.0,
            alias: id.alias(),
            run: run.cid,
            lab: self.config.lab_name.clone(),
            groups,
        };
        let instances = run.run.instances();
        self.admit(now, node, run, by, (priority, order), self.wall_ms(now));
        self.persist(id, fact);
        self.notify(id, event);
        if instances == 0 {
            self.fail(id, usage("run.empty", "the run has no instances", "give at least one group an instance"));
        } else if instances > self.config.max_instances {
            let most = self.config.max_instances;
            let message = format!("the run has {instances} instances, more than the {most} that this lab takes");
            self.fail(id, usage("run.too-large", &message, "run fewer instances"));
        }
    }

    /// Takes an execution into the state, with its priority and its place among those that are not over.
    pub(super) fn admit(
        &mut self,
        now: Timestamp,
        node: Execution,
        run: KnownRun,
        by: PeerId,
        (priority, order): (i32, u64),
        submitted_ms: u64,
    ) {
        let id = node.id();
        let leader = self.config.peer.clone();
        self.executions.insert(
            id,
            Exec {
                node,
                run,
                order,
                by,
                submitted_at: now,
                waited_before: std::time::Duration::ZERO,
                age: (None, None),
                grace_until: now,
                submitted_ms,
                started_ms: 0,
                ended_ms: 0,
                stage: Stage::Waiting,
                epoch: 1,
                rounds: 0,
                round: 0,
                placements: Vec::new(),
                assignments: Vec::new(),
                bids: BTreeMap::new(),
                losers_told: false,
                banned: BTreeMap::new(),
                cells: BTreeMap::new(),
                past: Vec::new(),
                former: BTreeSet::new(),
                received: BTreeMap::new(),
                evidence: BTreeMap::new(),
                lost: BTreeMap::new(),
                replace: BTreeMap::new(),
                replace_until: now,
                replace_at: BTreeMap::new(),
                failed: BTreeMap::new(),
                ended_early: None,
                cannot_start: None,
                priority,
                lose_later: BTreeMap::new(),
                unfit_since: None,
                reason: "waits to be placed".into(),
                cancelled: None,
                timed_out: false,
                records: BTreeMap::new(),
                distortions: Vec::new(),
                faults_told: 0,
                steps: Steps::default(),
                recalled: BTreeMap::new(),
                leader,
                taken_over: false,
                seen_started: false,
                doubtful: false,
                notice_at: now.after(NOTICE_INTERVAL),
                noticed: None,
                progress: 0,
                pulls: Pulls::default(),
            },
        );
        self.replan = true;
    }

    /// Stores a placement and makes it the execution's own.
    pub(super) fn record_placement(&mut self, now: Timestamp, id: ExecutionId, placed: Placed) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let node = Placement {
            execution: id,
            parent: exec.placements.last().copied(),
            assignments: placed.assignments.clone(),
            refused: placed.refused.clone(),
        };
        let cid = *iptl_dag::model::to_block(node.clone()).cid();
        exec.placements.push(cid);
        exec.assignments = placed.assignments;
        let instances = u64::from(slots_of(&exec.assignments));
        let after_ms = now.since(exec.submitted_at).as_millis() as u64;
        self.effects.push_back(Effect::StorePlacement(node));
        self.persist(id, FactKind::Placed { placement: cid });
        let refused = placed.refused.into_iter().map(|r| (self.name_of(&r.lablet), r.reason)).collect();
        let lablets = self.lablets.values().filter(|l| l.session.is_some()).count() as u32;
        self.notify(id, Event::Placed { matching: placed.matching, lablets, refused, instances, after_ms });
    }

    pub(super) fn bid(&mut self, now: Timestamp, from: PeerId, bid: Bid) {
        let id = bid.execution;
        let Some(exec) = self.executions.get_mut(&id) else {
            self.send(&from, ToLablet::NotNeeded(id));
            return;
        };
        match exec.stage {
            Stage::Offered { .. } => {
                exec.bids.insert(from, (bid.slots, now));
                // Whether all bids are in is looked at once per input, in `expire_stages`.
                if let Stage::Offered { bids_until, .. } = &mut exec.stage
                    && exec.assignments.iter().all(|a| exec.bids.contains_key(&a.lablet))
                {
                    *bids_until = Timestamp(0);
                }
            }
            Stage::Waiting => {
                exec.bids.insert(from, (bid.slots, now));
                self.replan = true;
            }
            Stage::Granted | Stage::Running { .. } | Stage::Stopping { .. } | Stage::Assembling { .. } => {
                if !exec.cells.contains_key(&from) {
                    if exec.losers_told {
                        self.send(&from, ToLablet::NotNeeded(id));
                    } else {
                        exec.bids.insert(from, (bid.slots, now));
                    }
                }
            }
        }
    }

    /// Acts where all bids are in or were waited for long enough.
    pub(super) fn expire_bids(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(Stage::Offered { bids_until, repeat_at }) = self.executions.get(&id).map(|e| e.stage.clone()) else {
            return;
        };
        if bids_until <= now {
            self.confirm(now, id);
        }
        let Some(exec) = self.executions.get(&id) else { return };
        if repeat_at <= now && matches!(exec.stage, Stage::Offered { .. }) {
            let offer = self.offer_of(exec, WallTime(self.wall_ms(now)));
            self.effects.push_back(Effect::PublishOffer(offer));
            let next = now.after(ms(self.config.offer_repeat_ms));
            if let Some(Stage::Offered { repeat_at, .. }) = self.executions.get_mut(&id).map(|e| &mut e.stage) {
                *repeat_at = next;
            }
        }
    }

    /// Grants what bids confirm, and places anew what they do not.
    pub(super) fn confirm(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Stage::Offered { bids_until, .. } = exec.stage else { return };
        exec.drop_stale_bids(now);
        let wanted: BTreeMap<PeerId, BTreeMap<WorkloadKind, u32>> = parts(&exec.assignments)
            .into_iter()
            .map(|(lablet, part)| (lablet, kinds_of(&exec.run.run, &part)))
            .collect();
        let there = |lablet: &PeerId| self.lablets.get(lablet).is_some_and(|l| l.session.is_some());
        let too_little = |lablet: &PeerId, wanted: &BTreeMap<WorkloadKind, u32>| {
            let bid = exec.bids.get(lablet).map(|(bid, _)| bid);
            bid.is_some_and(|bid| wanted.iter().any(|(kind, n)| bid.get(kind).is_none_or(|bid| bid < n)))
        };
        let short = wanted.iter().any(|(l, n)| !there(l) || too_little(l, n));
        let silent: Vec<PeerId> = wanted.into_keys().filter(|l| !exec.bids.contains_key(l)).collect();
        if !short && silent.is_empty() {
            self.grant_round(now, id);
            return;
        }
        if !short && bids_until > now {
            return;
        }
        // Others take the place of who bid too little, is gone or is silent, where there is room for that.
        let excluded: BTreeMap<PeerId, String> = if bids_until <= now {
            silent.iter().map(|l| (l.clone(), "did not bid in time".into())).collect()
        } else {
            BTreeMap::new()
        };
        let exec = &self.executions[&id];
        let run = &exec.run.run;
        let free = self.rooms(Some(id)).beside(Some(id), run.placing.dedicated, &exec.bids);
        let without = plan(run, &free, &[], &excluded);
        let other = without.is_whole() && without.assignments != exec.assignments;
        let other = other.then(|| without.placed(run, &free, &excluded));
        let names: Vec<String> = silent.iter().map(|l| self.name_of(l)).collect();
        if !excluded.is_empty()
            && let Some(exec) = self.executions.get_mut(&id)
        {
            // Silence for long is inability, whoever else is asked meanwhile.
            let since = *exec.unfit_since.get_or_insert(now);
            if now.since(since) >= ms(self.config.capacity_timeout_ms) {
                let message = format!("lablets did not answer the offer: {}", names.join(", "));
                return self.cannot_start(now, id, unable("lab.no-capacity", message, NO_CAPACITY_HELP));
            }
        }
        if let Some(other) = other {
            self.record_placement(now, id, other);
            self.wait_for_bids(now, id, String::new());
            self.confirm_if_all_bid(now, id);
        } else if short {
            // Not even the silent ones help: back to the queue.
            if let Some(exec) = self.executions.get_mut(&id) {
                exec.stage = Stage::Waiting;
                exec.reason = "waits for room: lablets bid for less than they had announced".into();
            }
            self.replan = true;
        } else {
            self.wait_for_bids(now, id, format!("waits for bids of {}", names.join(", ")));
        }
    }

    /// A placement over lablets that have all bid already needs no wait.
    fn confirm_if_all_bid(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        if exec.assignments.iter().all(|a| exec.bids.contains_key(&a.lablet)) {
            self.grant_round(now, id);
        }
    }

    fn wait_for_bids(&mut self, now: Timestamp, id: ExecutionId, why: String) {
        let until = now.after(ms(self.config.bid_timeout_ms));
        let Some(exec) = self.executions.get_mut(&id) else { return };
        exec.reason = why;
        if let Stage::Offered { bids_until, .. } = &mut exec.stage {
            *bids_until = until;
        }
    }

    /// Ends a wait for lablets that goes on for too long.
    pub(super) fn expire_waiting(&mut self, now: Timestamp, id: ExecutionId) {
        self.replan = true;
        let Some(exec) = self.executions.get(&id) else { return };
        let Some(since) = exec.unfit_since else { return };
        if now.since(since) >= ms(self.config.capacity_timeout_ms) {
            let wanted = exec.reason.strip_prefix("waits for ").unwrap_or(&exec.reason);
            let message = format!("no lablets to run this: waited {} s for {wanted}", now.since(since).as_secs());
            self.cannot_start(now, id, unable("lab.no-capacity", message, NO_CAPACITY_HELP));
        }
    }

    pub(super) fn offer_of(&self, exec: &Exec, wall: WallTime) -> Offer {
        let run = &exec.run.run;
        let wanted_of = |(kind, instances): (WorkloadKind, u64)| {
            let groups = run.groups.values().filter(|g| g.kind == kind);
            let memory_bytes = groups.map(|g| g.resources.memory_bytes).max().unwrap_or(0);
            (kind, Wanted { instances: u32::try_from(instances).unwrap_or(u32::MAX), memory_bytes })
        };
        Offer {
            lab: self.config.lab.clone(),
            execution: exec.node.id(),
            run: exec.run.cid,
            epoch: self.epoch(exec.epoch),
            wanted: run.kinds().into_iter().map(wanted_of).collect(),
            expires: WallTime(wall.0 + self.config.offer_ttl_ms),
        }
    }

    /// Returns the offers that a lablet which joins now should know.
    pub(super) fn open_offers(&self, wall: WallTime) -> Vec<Offer> {
        self.executions
            .values()
            .filter(|e| matches!(e.stage, Stage::Offered { .. }))
            .map(|e| self.offer_of(e, wall))
            .collect()
    }
}

/// Lablets that get nothing of this execution for now.
pub(super) fn bans(exec: &Exec, now: Timestamp) -> BTreeMap<PeerId, String> {
    exec.banned.iter().filter(|(_, (until, _))| *until > now).map(|(l, (_, why))| (l.clone(), why.clone())).collect()
}

/// What to do about a lab without room.
pub(super) const NO_CAPACITY_HELP: &str = "see what the lablets have with `iptl ls lablets`, run fewer instances, \
     or let another machine join: `iptl invite`";

pub(super) fn usage(code: &str, message: &str, help: &str) -> Failure {
    Failure { kind: FailureKind::Usage, code: code.into(), message: message.into(), help: help.into() }
}
