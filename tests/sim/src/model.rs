//! What must never happen, watched from outside of the cores: it knows nothing of how they decide.
//!
//! [`log`] reads facts as they become durable, and holds a lab of its own from them; [`lease`] knows until when a lablet
//! may run anything; [`meeting`] knows who came to a barrier. This file watches what nodes do: starts, ends, promises, orders.

mod lease;
mod log;
mod meeting;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iptl_dag::model::{Assignment, ExecutionId, FactKind, InstanceId, Run, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::{AssemblyOrder, Effect};
use iptl_wire::session::{CellRef, ToLablet};

use crate::lablet::LabletNode;
use crate::orchestrator::OrchestratorNode;
use crate::reach::Reached;
use lease::Lease;
use log::Log;

/// Virtual time for which a stopped attempt may overlap the next one, in nanoseconds: what the stop itself takes.
const MAX_OVERLAP: u64 = 1_000_000_000;

/// Virtual time in which receipts are fetched where nothing but messages gets lost, in nanoseconds.
const FETCHED_WITHIN: u64 = 20_000_000_000;

/// Virtual time in which lablets that can be heard hear that an execution is over, in nanoseconds.
const TOLD_WITHIN: u64 = 20_000_000_000;

/// Something that must not happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule that was broken; equal bugs break equal rules.
    pub rule: &'static str,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// One attempt of an instance that was really started.
#[derive(Debug)]
struct Start {
    lablet: PeerId,
    attempt: u32,
    /// Virtual time in nanoseconds.
    at: u64,
}

/// The truth about one execution.
#[derive(Debug)]
struct Truth {
    run: Run,
    log: Log,
    /// Where each instance was started, in order.
    starts: BTreeMap<InstanceId, Vec<Start>>,
    /// Instances that were ready.
    ready: BTreeSet<InstanceId>,
    /// Instances whose receipt a lablet was told to be kept.
    kept: BTreeSet<InstanceId>,
    /// Instances that signalled, in any attempt.
    signalled: BTreeSet<InstanceId>,
}

/// The truth about what ran.
#[derive(Debug, Default)]
pub struct Model {
    truths: BTreeMap<ExecutionId, Truth>,
    leases: BTreeMap<usize, Lease>,
    /// Submissions so far.
    submissions: u64,
    /// Whether nothing goes wrong in this schedule, so that nothing may be lost.
    gentle: bool,
    /// Ends by execution.
    pub ended: BTreeMap<ExecutionId, String>,
    /// Virtual times of ends.
    ended_at: BTreeMap<ExecutionId, u64>,
    /// What was found wrong.
    pub violations: Vec<Violation>,
    /// Points that only the truth shows.
    pub reached: Reached,
}

impl Model {
    /// Makes a model of a lab in which nothing has happened yet.
    pub fn new(gentle: bool) -> Model {
        Model { gentle, ..Model::default() }
    }

    /// Notes that a rule was broken.
    pub fn violated(&mut self, rule: &'static str, what: String) {
        self.violations.push(Violation { rule, what });
    }

    fn check(&mut self, rule: &'static str, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(rule, what());
        }
    }

    /// A run is submitted; false where it was before.
    pub fn submitted(&mut self, id: ExecutionId, run: Run) -> bool {
        if self.truths.contains_key(&id) {
            return false;
        }
        let truth = Truth {
            run,
            log: Log::default(),
            starts: BTreeMap::new(),
            ready: BTreeSet::new(),
            kept: BTreeSet::new(),
            signalled: BTreeSet::new(),
        };
        self.truths.insert(id, truth);
        true
    }

    /// Returns the run of an execution.
    pub fn run(&self, id: &ExecutionId) -> Option<&Run> {
        self.truths.get(id).map(|truth| &truth.run)
    }

    /// A cell reported that it is prepared.
    pub fn prepared(&mut self, cell: &CellRef, instances: Vec<InstanceId>) {
        if let Some(truth) = self.truths.get_mut(&cell.execution) {
            truth.ready.extend(instances);
        }
    }

    /// A lablet says that it takes a grant: its promise must be durable.
    pub fn accepts(&mut self, lablet: &LabletNode, cell: &CellRef) {
        let promised = lablet.promised.get(&cell.execution).is_some_and(|promised| *promised >= cell.epoch);
        self.check("promise", promised && lablet.records.contains_key(cell), || {
            format!("{} took {cell:?} before its promise was durable", lablet.peer.short())
        });
    }

    /// A lablet gives a grant back: where nothing went wrong, never for want of room, since who grants knows of all else
    /// that it promised.
    pub fn refuses(&mut self, lablet: &LabletNode, cell: &CellRef, reason: &str) {
        let is_full = reason.contains(" wanted, ") && reason.ends_with(" free");
        self.check("promised-twice", !self.gentle || !is_full, || {
            format!("{} was granted {cell:?} beyond its room: {reason}", lablet.peer.short())
        });
    }

    /// A cell begins to prepare on a lablet.
    pub fn preparing(&mut self, lablet: &LabletNode, cell: &CellRef) {
        let mut taken: BTreeMap<WorkloadKind, u32> = BTreeMap::new();
        let mut memory = 0u64;
        for (named, held) in lablet.cells.iter().filter(|(_, held)| held.holds_room()) {
            let Some(kinds) = self.kinds(&named.execution, &held.grant.assignments) else {
                return self.violated("stranger", format!("{named:?} is held and was never submitted"));
            };
            self.check("slots", *named != *cell || kinds == held.grant.slots, || {
                format!("{named:?} has {kinds:?} and was granted {:?}", held.grant.slots)
            });
            for (kind, count) in kinds {
                *taken.entry(kind).or_default() += count;
            }
            memory += held.grant.memory_bytes;
        }
        for (kind, taken) in taken {
            let has = lablet.machine.total(kind);
            self.check("slots", taken <= has, || {
                format!("{} holds {taken} {} instances in {has} slots", lablet.peer.short(), kind.name())
            });
        }
        self.check("memory", memory <= lablet.machine.free_memory_bytes, || {
            format!("{} promised {memory} bytes of memory", lablet.peer.short())
        });
    }

    /// A cell runs on a lablet: one whose run wants its machines for itself runs alone.
    pub fn alone(&mut self, lablet: &LabletNode) {
        let running = lablet.cells.iter().filter(|(_, held)| !held.running.is_empty());
        let running: BTreeSet<ExecutionId> = running.map(|(named, _)| named.execution).collect();
        let alone = running.iter().any(|id| self.run(id).is_some_and(|run| run.placing.dedicated));
        self.check("dedicated", !alone || running.len() <= 1, || {
            let names: Vec<String> = running.iter().map(ExecutionId::alias).collect();
            format!("{} runs {} together, and one of them wants it alone", lablet.peer.short(), names.join(", "))
        });
    }

    /// Instances by kind, as the run has it and not as a grant says.
    fn kinds(&self, id: &ExecutionId, assignments: &[Assignment]) -> Option<BTreeMap<WorkloadKind, u32>> {
        let run = self.run(id)?;
        let mut kinds = BTreeMap::new();
        for assignment in assignments {
            *kinds.entry(run.groups.get(&assignment.group)?.kind).or_default() += assignment.count;
        }
        Some(kinds)
    }

    /// A cell is started on a lablet.
    pub fn started(
        &mut self,
        at: u64,
        node: &OrchestratorNode,
        lablet: &PeerId,
        cell: &CellRef,
        attempt: u32,
        instances: &[InstanceId],
    ) {
        let id = cell.execution;
        let Some(truth) = self.truths.get_mut(&id) else {
            return self.violated("stranger", format!("{} was started and never submitted", id.alias()));
        };
        let all = truth.run.instances();
        let ready = truth.ready.len() as u64;
        let mut wrong = Vec::new();
        for instance in instances {
            let starts = truth.starts.entry(instance.clone()).or_default();
            starts.push(Start { lablet: lablet.clone(), attempt, at });
            let count = starts.len() as u32;
            let most = truth.run.attempts_of(&instance.group);
            let repeated = starts.iter().filter(|s| s.attempt == attempt).count() > 1;
            if count > most || repeated {
                wrong.push(format!("{instance} started {count} times, {most} allowed, attempt {attempt}"));
            }
        }
        let known = node.has_fact(&id, |f| f.kind == FactKind::Started {});
        self.check("start-early", ready == all, || format!("{}: {ready} of {all} instances prepared", id.alias()));
        self.check("start-fact", known, || format!("{} started before its fact was durable", id.alias()));
        self.check("attempts", wrong.is_empty(), || format!("{} {}", id.alias(), wrong.join(", ")));
    }

    /// An attempt is found to run, or to end only now; its machine stood still until `thawed_at`.
    pub fn runs(&mut self, now: u64, thawed_at: u64, id: ExecutionId, instance: &InstanceId, attempt: u32) {
        let starts = self.truths.get(&id).and_then(|truth| truth.starts.get(instance));
        let later = starts.into_iter().flatten().filter(|s| s.attempt > attempt);
        let overlap = later.map(|s| now.saturating_sub(s.at.max(thawed_at))).max().unwrap_or(0);
        self.check("two-attempts", overlap <= MAX_OVERLAP, || {
            format!("{} {instance} ran {} ms beside its next attempt", id.alias(), overlap / 1_000_000)
        });
    }

    /// A lablet drops a cell: what it sealed must be kept, or of no use any more.
    pub fn forgotten(&mut self, node: &OrchestratorNode, lablet: &LabletNode, cell: &CellRef) {
        let Some((_, shards)) = lablet.records.get(cell) else { return };
        if self.ended.contains_key(&cell.execution) {
            return;
        }
        let lost: Vec<String> =
            shards.iter().filter(|(shard, _)| !node.store.contains_key(shard)).map(|(s, _)| s.to_string()).collect();
        self.check("receipts-dropped", lost.is_empty(), || {
            format!("{} dropped receipts that nobody has: {lost:?}", lablet.peer.short())
        });
    }

    /// The orchestrator's driver carries out an effect: the facts that it needs must be durable.
    pub fn effect(&mut self, now: u64, node: &OrchestratorNode, lablets: &[LabletNode], effect: &Effect) {
        match effect {
            Effect::SendGrant { to, grant } => {
                let named = &grant.cell;
                let known = node.has_fact(&named.execution, |f| {
                    f.epoch == named.epoch && matches!(&f.kind, FactKind::Granted { lablet, .. } if lablet == to)
                });
                self.check("grant-fact", known, || format!("grant {named:?} sent before its fact was durable"));
            }
            Effect::Send { message: ToLablet::Start(named), .. } => {
                let known = node.has_fact(&named.execution, |f| f.kind == FactKind::Started {});
                self.check("start-fact", known, || format!("start {named:?} sent before its fact was durable"));
            }
            Effect::Send { to, message: ToLablet::Kept(named, cid) } => self.kept(node, to, named, cid),
            Effect::Send { message: ToLablet::Finished(end), .. } => {
                let id = &end.execution;
                let known = node.has_fact(id, |f| match (&f.kind, end.result) {
                    (FactKind::Sealed { result, term }, Some(named)) => *result == named && *term == end.term,
                    (FactKind::Failed { term, .. }, None) => *term == end.term,
                    _ => false,
                });
                let unknown = end.result.is_none() && !node.log.contains_key(id);
                self.check("end-fact", known || unknown, || format!("{} called finished too early", id.alias()));
            }
            Effect::StorePlacement(placement) => self.placed(placement),
            Effect::Assemble(order) => {
                self.assembling(node, order);
                self.fetched(now, node, lablets, order);
            }
            Effect::Persist { .. }
            | Effect::Send { .. }
            | Effect::Welcome { .. }
            | Effect::Turn { .. }
            | Effect::PublishOffer(_)
            | Effect::Pull { .. }
            | Effect::Notify { .. }
            | Effect::Adopt(_)
            | Effect::Reconciled
            | Effect::StepDown { .. }
            | Effect::Close { .. } => {}
        }
    }

    fn kept(&mut self, node: &OrchestratorNode, to: &PeerId, named: &CellRef, cid: &Cid) {
        let id = named.execution;
        let known = node.has_fact(
            &id,
            |f| matches!(&f.kind, FactKind::Received { lablet, shard, .. } if lablet == to && shard == cid),
        );
        self.check("kept-fact", known, || format!("{cid} called kept before its fact was durable"));
        if let Some(truth) = self.truths.get_mut(&id) {
            truth.kept.extend(node.store.get(cid).into_iter().flatten().map(|receipt| receipt.instance.clone()));
        }
    }

    fn assembling(&mut self, node: &OrchestratorNode, order: &AssemblyOrder) {
        let id = order.execution;
        let all = order.run.run.instances();
        let sum = (order.accepted.len() + order.missing.len()) as u64;
        let both = order.accepted.keys().any(|i| order.missing.contains_key(i));
        self.check("all-accounted", sum == all && !both, || {
            format!("{}: {sum} of {all} instances accounted for", id.alias())
        });
        let lost = order.missing.len();
        let asked_to_end = order.cancelled.is_some() || order.timed_out || order.ended_early.is_some();
        let asked_to_end = asked_to_end || order.cannot_start.is_some();
        self.check("gentle", !self.gentle || lost == 0 || asked_to_end, || {
            format!("{}: lost {lost} instances where nothing went wrong", id.alias())
        });
        let attempts = self.truths.get(&id).map(|truth| truth.log.attempts()).unwrap_or_default();
        self.check("attempts-told", attempts == order.attempts, || {
            format!("{}: the log has attempts {attempts:?}, and the result would say {:?}", id.alias(), order.attempts)
        });
        let Some(truth) = self.truths.get(&id) else { return };
        let held: BTreeSet<(&InstanceId, u32)> = order
            .shards
            .iter()
            .filter_map(|(_, cid)| node.store.get(cid))
            .flatten()
            .map(|r| (&r.instance, r.attempt))
            .collect();
        let invented: Vec<_> = order
            .accepted
            .iter()
            .filter(|(i, (lablet, attempt))| {
                let ran = truth.starts.get(*i);
                !held.contains(&(*i, *attempt))
                    || !ran.is_some_and(|s| s.iter().any(|s| s.lablet == *lablet && s.attempt == *attempt))
            })
            .map(|(i, _)| i.to_string())
            .collect();
        let halted = |i: &InstanceId, attempt: u32| truth.log.halted.get(i) == Some(&attempt);
        let cut: Vec<_> = order
            .accepted
            .iter()
            .filter(|(i, (_, attempt))| halted(i, *attempt) && !truth.log.may_not_go_again(&truth.run, i))
            .map(|(i, _)| i.to_string())
            .collect();
        let dropped: Vec<_> = truth
            .kept
            .iter()
            .chain(truth.log.finished.iter())
            .filter(|i| !order.accepted.contains_key(*i))
            .map(|i| i.to_string())
            .collect();
        self.check("invented", invented.is_empty(), || format!("{}: receipts invented: {invented:?}", id.alias()));
        self.check("stopped-counts", cut.is_empty(), || {
            format!("{}: may go again and counts as a lablet stopped it: {cut:?}", id.alias())
        });
        self.check("dropped", dropped.is_empty(), || format!("{}: kept receipts dropped: {dropped:?}", id.alias()));
    }

    /// What lies sealed on a lablet that was there all the time is not missing from a result.
    fn fetched(&mut self, now: u64, node: &OrchestratorNode, lablets: &[LabletNode], order: &AssemblyOrder) {
        for lablet in lablets.iter().filter(|lablet| lablet.session.is_some()) {
            let calm_since = lablet.calm_since.max(node.calm_since);
            let shards = lablet.records.iter().filter(|(cell, _)| cell.execution == order.execution);
            for (shard, _) in shards.flat_map(|(_, (_, shards))| shards) {
                let there_since = lablet.sealed_at.get(shard).copied().unwrap_or(now).max(calm_since);
                let missing = lablet.store.get(shard).into_iter().flatten();
                let missing: Vec<_> = missing.filter(|r| order.missing.contains_key(&r.instance)).collect();
                self.check("unfetched", missing.is_empty() || now.saturating_sub(there_since) < FETCHED_WITHIN, || {
                    format!("{}: {} kept for too long what is missing", order.execution.alias(), lablet.peer.short())
                });
            }
        }
    }

    /// Whoever can hear the orchestrator hears that an execution is over, and keeps nothing of it.
    pub fn left(&mut self, now: u64, node: &OrchestratorNode, lablets: &[LabletNode]) {
        for lablet in lablets.iter().filter(|lablet| lablet.session.is_some()) {
            let calm_since = lablet.calm_since.max(node.calm_since);
            let held = lablet.core.iter().flat_map(|core| core.cells()).find(|status| {
                let ended_at = self.ended_at.get(&status.cell.execution);
                ended_at.is_some_and(|ended_at| now.saturating_sub(calm_since.max(*ended_at)) > TOLD_WITHIN)
            });
            self.check("held-after-end", held.is_none(), || {
                format!("{} still holds {:?}, and its execution is over", lablet.peer.short(), held.map(|h| h.cell))
            });
        }
    }

    /// The log of an execution got its last fact.
    pub fn over(&mut self, now: u64, id: ExecutionId, how: String) {
        self.ended_at.entry(id).or_insert(now);
        if let Some(before) = self.ended.insert(id, how.clone()) {
            self.violated("ended-twice", format!("{} ended twice: {before}, then {how}", id.alias()));
        }
    }

    /// Looks at what is left when a schedule is over.
    pub fn finish(&mut self, now: u64, lablets: &[LabletNode]) {
        for lablet in lablets {
            for (named, cell) in &lablet.cells {
                for instance in &cell.running {
                    self.runs(now, lablet.frozen_until, named.execution, instance, cell.grant.attempt);
                }
            }
        }
    }
}
