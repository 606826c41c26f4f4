//! What must never happen in a lab with several orchestrators.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Epoch, ExecutionId, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::AssemblyOrder;
use iptl_wire::takeover::Finished;

pub use crate::model::Violation;

/// What some schedule among many must come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// An orchestrator took over unplanned.
    TakenOver,
    /// One took over because it was told to.
    HandedOver,
    /// Two candidates claimed the same counter.
    TwoCandidates,
    /// An execution was taken over that was not granted yet.
    TakenWaiting,
    /// One that prepared.
    TakenPreparing,
    /// One that ran.
    TakenRunning,
    /// One that stopped or was being sealed.
    TakenEnding,
    /// A grant that the log did not have was recovered.
    GrantRecovered,
    /// A start that the log did not have was found out.
    StartRecovered,
    /// An end that the log did not have was found out.
    EndAdopted,
    /// An orchestrator that led was told that another one does, by its claim.
    OldReturns,
    /// An orchestrator that led was told so by a lablet.
    ToldByLablet,
    /// A lablet refused an orchestrator of an older term.
    OldRefused,
    /// A lablet was not heard after a takeover.
    Doubted,
    /// An orchestrator led on in its term after it died.
    Resumed,
    /// It died before it had asked every lablet, and asked again.
    ResumedAsking,
    /// A log had facts that its successor does not have.
    Forked,
    /// An execution was known to nobody but an orchestrator that leads no more.
    Orphaned,
    /// A lablet said what is not true.
    Forged,
    /// A claim was lost.
    ClaimLost,
    /// A lost instance was granted anew by a successor.
    Replaced,
    /// Two orchestrators ended an execution, each without the other.
    SealedApart,
    /// A lease lasted longer since somebody followed.
    LeaseDoubled,
    /// Instances ran on while their lablet turned to a successor.
    RanOn,
    /// What followed from a fact was held back until others had it.
    HeldBack,
    /// What was held back was never done: somebody else led.
    HeldForEver,
    /// An orchestrator that followed fell silent.
    ContactLost,
    /// What was held back was done without one that fell silent and knew of nobody else.
    NotWaitedFor,
    /// Two of three orchestrators led, cut off from each other.
    PartedLeaders,
    /// An orchestrator heard of the end of a later term than that of the end which it told.
    EndOutdone,
    /// One that leads heard so by a lablet.
    OutdoneByLablet,
}

impl Point {
    /// All points.
    pub const ALL: &'static [Point] = &[
        Point::TakenOver,
        Point::HandedOver,
        Point::TwoCandidates,
        Point::TakenWaiting,
        Point::TakenPreparing,
        Point::TakenRunning,
        Point::TakenEnding,
        Point::GrantRecovered,
        Point::StartRecovered,
        Point::EndAdopted,
        Point::OldReturns,
        Point::ToldByLablet,
        Point::OldRefused,
        Point::Doubted,
        Point::Resumed,
        Point::ResumedAsking,
        Point::Forked,
        Point::Orphaned,
        Point::Forged,
        Point::ClaimLost,
        Point::Replaced,
        Point::SealedApart,
        Point::LeaseDoubled,
        Point::RanOn,
        Point::HeldBack,
        Point::HeldForEver,
        Point::ContactLost,
        Point::NotWaitedFor,
        Point::PartedLeaders,
        Point::EndOutdone,
        Point::OutdoneByLablet,
    ];
}

/// The truth about what ran.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub violations: Vec<Violation>,
    pub reached: BTreeMap<Point, u64>,
    starts: BTreeMap<(ExecutionId, InstanceId), Vec<(u32, PeerId)>>,
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

    /// A lablet does what an orchestrator wants: it must lead in the term that the lablet has promised.
    pub(super) fn obeys(&mut self, lablet: &PeerId, orchestrator: &PeerId, promised: Option<&Epoch>) {
        let serves = promised.is_some_and(|term| term.peer == *orchestrator);
        self.check("two-leaders", serves, || {
            format!("{} serves {} and has promised {promised:?}", lablet.short(), orchestrator.short())
        });
    }

    /// An instance is really started.
    pub(super) fn started(&mut self, id: ExecutionId, instance: InstanceId, attempt: u32, lablet: &PeerId, most: u32) {
        let starts = self.starts.entry((id, instance.clone())).or_default();
        starts.push((attempt, lablet.clone()));
        let repeated = starts.iter().filter(|(a, _)| *a == attempt).count() > 1;
        let count = starts.len() as u32;
        self.check("attempts", count <= most && !repeated, || {
            format!("{} {instance} started {count} times, {most} allowed, now attempt {attempt}", id.alias())
        });
    }

    /// A result is ordered: what it counts was really run, and everything is accounted for.
    pub(super) fn assembles(&mut self, order: &AssemblyOrder, received: &BTreeSet<InstanceId>) {
        let id = order.execution;
        let (all, sum) = (order.run.run.instances(), (order.accepted.len() + order.missing.len()) as u64);
        self.check("all-accounted", all == sum, || format!("{}: {sum} of {all} accounted for", id.alias()));
        let ran = |i: &InstanceId, lablet: &PeerId, attempt: u32| {
            self.starts.get(&(id, i.clone())).is_some_and(|s| s.contains(&(attempt, lablet.clone())))
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
        let again = ends.iter().any(|before| before.term == end.term && before.result != result);
        let apart = ends.iter().any(|before| before.result != result);
        ends.push(end);
        if apart {
            self.at(Point::SealedApart);
        }
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
