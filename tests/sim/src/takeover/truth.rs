//! What must never happen in a lab with several orchestrators.
//!
//! [`lease`] knows until when a lablet may run anything; this file watches who leads, what runs, and what results say.

mod lease;

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Epoch, ExecutionId, InstanceId, Run};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::AssemblyOrder;
use iptl_wire::takeover::Finished;

use super::Point;
use crate::model::Violation;
use crate::world::SECOND;
use lease::Lease;

/// Virtual time for which a stopped attempt may overlap the next one: what the stop itself takes.
const MAX_OVERLAP: u64 = SECOND;

/// One attempt of an instance that was really started.
#[derive(Debug)]
struct Start {
    attempt: u32,
    lablet: PeerId,
    /// Virtual time in nanoseconds.
    at: u64,
}

/// The truth about what ran.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub violations: Vec<Violation>,
    pub reached: BTreeMap<Point, u64>,
    starts: BTreeMap<(ExecutionId, InstanceId), Vec<Start>>,
    /// Instances that were ready.
    ready: BTreeMap<ExecutionId, BTreeSet<InstanceId>>,
    /// Executions of which a lablet lied: where its own grant is on its way, what it says of others is said of its own cell.
    lied_of: BTreeSet<ExecutionId>,
    leases: BTreeMap<usize, Lease>,
    /// Ends that were written down, by whomever.
    ends: BTreeMap<ExecutionId, Vec<Finished>>,
    claims: BTreeMap<u64, BTreeSet<PeerId>>,
}

impl Truth {
    pub(super) fn at(&mut self, point: Point) {
        *self.reached.entry(point).or_default() += 1;
    }

    pub(super) fn check(&mut self, rule: &'static str, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(Violation { rule, what: what() });
        }
    }

    /// Somebody claims a term.
    pub(super) fn claimed(&mut self, term: &Epoch) {
        let claimed = self.claims.entry(term.counter).or_default();
        claimed.insert(term.peer.clone());
        if claimed.len() > 1 {
            self.at(Point::TwoCandidates);
        }
    }

    /// A lablet does what an orchestrator wants: it must lead in the term that the lablet has promised, durably.
    pub(super) fn obeys(&mut self, lablet: &PeerId, orchestrator: &PeerId, promised: Option<&Epoch>) {
        let serves = promised.is_some_and(|term| term.peer == *orchestrator);
        self.check("two-leaders", serves, || {
            format!("{} serves {} and has promised {promised:?}", lablet.short(), orchestrator.short())
        });
    }

    /// A lablet hears an orchestrator: it must lead in the term that the lablet is about to promise, or has, and that its
    /// hello said.
    pub(super) fn in_session(
        &mut self,
        lablet: &PeerId,
        orchestrator: &PeerId,
        promised: Option<&Epoch>,
        said: Option<&Epoch>,
    ) {
        let leads = promised.is_some_and(|term| term.peer == *orchestrator);
        self.check("old-heard", leads, || {
            format!("{} hears {} and promises {promised:?}", lablet.short(), orchestrator.short())
        });
        self.check("session-not-counted", said == promised, || {
            format!("{} hears {}, promises {promised:?} and said {said:?}", lablet.short(), orchestrator.short())
        });
    }

    /// A cell reported that it is prepared.
    pub(super) fn prepared(&mut self, id: &ExecutionId, instances: Vec<InstanceId>) {
        self.ready.entry(*id).or_default().extend(instances);
    }

    /// A lablet says of an execution what is not true.
    pub(super) fn lied(&mut self, id: &ExecutionId) {
        self.lied_of.insert(*id);
    }

    /// A cell is started: every instance of its run was ready somewhere, unless a lablet said so of its own that were not.
    pub(super) fn starts_all(&mut self, id: &ExecutionId, run: &Run) {
        let (ready, all) = (self.ready.get(id).map_or(0, BTreeSet::len) as u64, run.instances());
        self.check("start-early", ready == all || self.lied_of.contains(id), || {
            format!("{}: {ready} of {all} instances prepared", id.alias())
        });
    }

    /// An instance is really started.
    pub(super) fn started(
        &mut self,
        now: u64,
        id: ExecutionId,
        instance: &InstanceId,
        attempt: u32,
        lablet: &PeerId,
        run: &Run,
    ) {
        let starts = self.starts.entry((id, instance.clone())).or_default();
        starts.push(Start { attempt, lablet: lablet.clone(), at: now });
        let repeated = starts.iter().filter(|start| start.attempt == attempt).count() > 1;
        let (count, most) = (starts.len() as u32, run.attempts_of(&instance.group));
        self.check("attempts", count <= most && !repeated, || {
            format!("{} {instance} started {count} times, {most} allowed, now attempt {attempt}", id.alias())
        });
    }

    /// An attempt is found to run, or to end only now; its machine could do nothing until `blocked_until`.
    pub(super) fn runs(&mut self, now: u64, blocked_until: u64, id: ExecutionId, instance: &InstanceId, attempt: u32) {
        let starts = self.starts.get(&(id, instance.clone()));
        let later = starts.into_iter().flatten().filter(|start| start.attempt > attempt);
        let overlap = later.map(|start| now.saturating_sub(start.at.max(blocked_until))).max().unwrap_or(0);
        self.check("two-attempts", overlap <= MAX_OVERLAP, || {
            format!("{} {instance} ran {} ms beside its next attempt", id.alias(), overlap / 1_000_000)
        });
    }

    /// A result is ordered: what it counts was really run, and everything is accounted for.
    pub(super) fn assembles(&mut self, order: &AssemblyOrder, received: &BTreeSet<InstanceId>) {
        let id = order.execution;
        let (all, sum) = (order.run.run.instances(), (order.accepted.len() + order.missing.len()) as u64);
        let both = order.accepted.keys().any(|i| order.missing.contains_key(i));
        self.check("all-accounted", all == sum && !both, || format!("{}: {sum} of {all} accounted for", id.alias()));
        let ran = |i: &InstanceId, lablet: &PeerId, attempt: u32| {
            let starts = self.starts.get(&(id, i.clone()));
            starts.is_some_and(|starts| starts.iter().any(|s| s.attempt == attempt && s.lablet == *lablet))
        };
        let invented: Vec<String> =
            order.accepted.iter().filter(|(i, (l, a))| !ran(i, l, *a)).map(|(i, _)| i.to_string()).collect();
        self.check("invented", invented.is_empty(), || format!("{}: invented {invented:?}", id.alias()));
        let dropped: Vec<String> =
            received.iter().filter(|i| !order.accepted.contains_key(*i)).map(ToString::to_string).collect();
        self.check("dropped", dropped.is_empty(), || format!("{}: dropped {dropped:?}", id.alias()));
    }

    /// The last fact of an execution became durable. Lablets that serve who wrote it were told of the ends in `known`:
    /// these count. What two orchestrators sealed that could not hear each other is a fork, and the later term's counts.
    pub(super) fn ended(&mut self, end: Finished, known: &BTreeSet<Option<Cid>>) {
        let (id, result) = (end.execution, end.result);
        let ends = self.ends.entry(id).or_default();
        let is_sealed = result.is_some();
        let again = ends.iter().any(|before| before.term == end.term && before.result != result);
        let apart = ends.iter().any(|before| before.result != result);
        ends.push(end);
        if apart {
            self.at(Point::SealedApart);
        }
        self.check("unsealed", is_sealed, || format!("{} ended without a result", id.alias()));
        self.check("sealed-twice", !again, || format!("{} has two results in one term", id.alias()));
        let other = !known.is_empty() && !known.contains(&result);
        self.check("sealed-twice", !other, || format!("{} has another result than lablets were told", id.alias()));
    }

    /// Whether an execution really ended so.
    pub(super) fn is_end(&self, end: &Finished) -> bool {
        self.ends.get(&end.execution).is_some_and(|ends| ends.contains(end))
    }

    /// Returns the end of an execution that counts: that of the latest term.
    pub(super) fn end(&self, id: &ExecutionId) -> Option<&Finished> {
        self.ends.get(id)?.iter().max_by_key(|end| &end.term)
    }

    pub(super) fn is_over(&self, id: &ExecutionId) -> bool {
        self.ends.contains_key(id)
    }
}
