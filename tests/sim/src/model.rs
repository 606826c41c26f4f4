//! What must never happen, watched from outside of the cores.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Assignment, ExecutionId, FactKind, InstanceId, Run, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::{AssemblyOrder, Effect};
use iptl_wire::session::{CellRef, ToLablet};

use crate::lablet::LabletNode;
use crate::orchestrator::OrchestratorNode;

/// Virtual time for which a stopped attempt may overlap the next one, in nanoseconds: what the stop itself takes.
const MAX_OVERLAP: u64 = 1_000_000_000;

/// One attempt of an instance that was really started.
#[derive(Debug)]
pub struct Start {
    /// Where.
    pub lablet: PeerId,
    /// Attempt.
    pub attempt: u32,
    /// Virtual time in nanoseconds.
    pub at: u64,
}

/// The truth about what ran.
#[derive(Debug, Default)]
pub struct Model {
    /// Runs by execution.
    pub runs: BTreeMap<ExecutionId, Run>,
    /// Where each instance was started, in order.
    pub starts: BTreeMap<(ExecutionId, InstanceId), Vec<Start>>,
    /// Instances that were ready, by execution.
    ready: BTreeMap<ExecutionId, BTreeSet<InstanceId>>,
    /// Instances whose receipt a lablet was told to be kept.
    kept: BTreeMap<ExecutionId, BTreeSet<InstanceId>>,
    /// Ends by execution.
    pub ended: BTreeMap<ExecutionId, String>,
    /// What was found wrong.
    pub violations: Vec<String>,
}

impl Model {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// A cell reported that it is prepared.
    pub fn prepared(&mut self, cell: &CellRef, instances: Vec<InstanceId>) {
        self.ready.entry(cell.execution).or_default().extend(instances);
    }

    /// A cell begins to prepare on a lablet.
    pub fn preparing(&mut self, lablet: &LabletNode, cell: &CellRef) {
        let mut taken: BTreeMap<WorkloadKind, u32> = BTreeMap::new();
        for (named, held) in lablet.cells.iter().filter(|(_, held)| held.holds_room()) {
            let Some(kinds) = self.kinds(&named.execution, &held.grant.assignments) else {
                return self.violations.push(format!("{named:?} is held and was never submitted"));
            };
            self.check(*named != *cell || kinds == held.grant.slots, || {
                format!("{named:?} has {kinds:?} and was granted {:?}", held.grant.slots)
            });
            for (kind, count) in kinds {
                *taken.entry(kind).or_default() += count;
            }
        }
        for (kind, taken) in taken {
            let has = lablet.machine.total(kind);
            self.check(taken <= has, || {
                format!("{} holds {taken} {} instances in {has} slots", lablet.peer.short(), kind.name())
            });
        }
    }

    /// Instances by kind, as the run has it and not as a grant says.
    fn kinds(&self, id: &ExecutionId, assignments: &[Assignment]) -> Option<BTreeMap<WorkloadKind, u32>> {
        let run = self.runs.get(id)?;
        let mut kinds = BTreeMap::new();
        for assignment in assignments {
            *kinds.entry(run.groups.get(&assignment.group)?.kind).or_default() += assignment.count;
        }
        Some(kinds)
    }

    /// A cell is started on a lablet.
    pub fn started(&mut self, at: u64, lablet: &PeerId, cell: &CellRef, attempt: u32, instances: &[InstanceId]) {
        let id = cell.execution;
        let Some((all, most)) = self.runs.get(&id).map(|r| (r.instances(), r.loss.max_attempts)) else {
            return self.violations.push(format!("{} was started and never submitted", id.alias()));
        };
        let ready = self.ready.get(&id).map_or(0, |r| r.len() as u64);
        self.check(ready == all, || format!("{} started with {ready} of {all} instances prepared", id.alias()));
        for instance in instances {
            let starts = self.starts.entry((id, instance.clone())).or_default();
            starts.push(Start { lablet: lablet.clone(), attempt, at });
            let count = starts.len() as u32;
            let repeated = starts.iter().filter(|s| s.attempt == attempt).count() > 1;
            self.check(count <= most && !repeated, || {
                format!("{} {instance} started {count} times, {most} allowed, attempt {attempt}", id.alias())
            });
        }
    }

    /// An attempt is found to run, or to end only now.
    pub fn runs(&mut self, now: u64, execution: ExecutionId, instance: &InstanceId, attempt: u32) {
        let later = self.starts.get(&(execution, instance.clone())).into_iter().flatten();
        let overlap = later.filter(|s| s.attempt > attempt).map(|s| now.saturating_sub(s.at)).max().unwrap_or(0);
        self.check(overlap <= MAX_OVERLAP, || {
            format!("{} {instance} ran {} ms beside its next attempt", execution.alias(), overlap / 1_000_000)
        });
    }

    /// The orchestrator's driver carries out an effect: the facts that it needs must be durable.
    pub fn effect(&mut self, node: &OrchestratorNode, effect: &Effect) {
        match effect {
            Effect::SendGrant { to, grant } => {
                let named = &grant.cell;
                let known = node.has_fact(&named.execution, |f| {
                    f.epoch == named.epoch && matches!(&f.kind, FactKind::Granted { lablet, .. } if lablet == to)
                });
                self.check(known, || format!("grant {named:?} sent before its fact was durable"));
            }
            Effect::Send { message: ToLablet::Start(named), .. } => {
                let known = node.has_fact(&named.execution, |f| f.kind == FactKind::Started {});
                self.check(known, || format!("start {named:?} sent before its fact was durable"));
            }
            Effect::Send { to, message: ToLablet::Kept(named, cid) } => {
                let id = named.execution;
                let known = node.has_fact(
                    &id,
                    |f| matches!(&f.kind, FactKind::Received { lablet, shard, .. } if lablet == to && shard == cid),
                );
                self.check(known, || format!("{cid} called kept before its fact was durable"));
                for receipt in node.store.get(cid).into_iter().flatten() {
                    self.kept.entry(id).or_default().insert(receipt.instance.clone());
                }
            }
            Effect::Send { message: ToLablet::Finished(id, Some(cid)), .. } => {
                let known = node.has_fact(id, |f| f.kind == FactKind::Sealed { result: *cid });
                self.check(known, || format!("{} called finished before it was sealed", id.alias()));
            }
            Effect::Assemble(order) => self.assembling(node, order),
            Effect::Persist { .. }
            | Effect::Send { .. }
            | Effect::Welcome { .. }
            | Effect::Turn { .. }
            | Effect::PublishOffer(_)
            | Effect::StorePlacement(_)
            | Effect::Pull { .. }
            | Effect::Notify { .. }
            | Effect::Close { .. } => {}
        }
    }

    fn assembling(&mut self, node: &OrchestratorNode, order: &AssemblyOrder) {
        let id = order.execution;
        let all = order.run.run.instances();
        let sum = (order.accepted.len() + order.missing.len()) as u64;
        let both = order.accepted.keys().any(|i| order.missing.contains_key(i));
        self.check(sum == all && !both, || format!("{}: {sum} of {all} instances accounted for", id.alias()));
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
                let ran = self.starts.get(&(id, (*i).clone()));
                !held.contains(&(*i, *attempt))
                    || !ran.is_some_and(|s| s.iter().any(|s| s.lablet == *lablet && s.attempt == *attempt))
            })
            .map(|(i, _)| i.to_string())
            .collect();
        self.check(invented.is_empty(), || format!("{}: receipts invented: {invented:?}", id.alias()));
        let dropped: Vec<_> = self
            .kept
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|i| !order.accepted.contains_key(*i))
            .map(|i| i.to_string())
            .collect();
        self.check(dropped.is_empty(), || format!("{}: kept receipts dropped: {dropped:?}", id.alias()));
    }

    /// The log of an execution got its last fact.
    pub fn over(&mut self, id: ExecutionId, how: String) {
        if let Some(before) = self.ended.insert(id, how.clone()) {
            self.violations.push(format!("{} ended twice: {before}, then {how}", id.alias()));
        }
    }

    /// A chunk of receipts that was kept is on the orchestrator's disk.
    pub fn kept_on_disk(&mut self, node: &OrchestratorNode, cid: &Cid) {
        self.check(node.store.contains_key(cid), || format!("{cid} kept and not on disk"));
    }
}
