//! What can happen next, in virtual time.

use std::cmp::Ordering;

use iptl_dag::model::{ExecutionId, Exit, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Hello, ToLablet, ToOrchestrator, Welcome};

/// One thing that happens at one time.
#[derive(Debug)]
pub(crate) enum Event {
    Submit(u32),
    Cancel(ExecutionId),
    Fault(usize),
    ToOrchestrator { lablet: usize, session: u64, message: Box<ToOrchestrator> },
    ToLablet { lablet: usize, session: u64, life: u64, message: Box<ToLablet> },
    Gossip { lablet: usize, life: u64, offer: Box<Offer> },
    Connect { lablet: usize, life: u64 },
    HelloArrives { lablet: usize, life: u64, session: u64, hello: Box<Hello> },
    WelcomeArrives { lablet: usize, life: u64, session: u64, welcome: Box<Welcome> },
    Turned { lablet: usize, life: u64, session: u64 },
    LabletHears { lablet: usize, life: u64, session: u64 },
    GiveUpHello { lablet: usize, life: u64, session: u64 },
    OrchestratorHears { lablet: usize, session: u64 },
    OrchestratorTimer,
    LabletTimer { lablet: usize },
    FactsDurable { life: u64 },
    PullDone { life: u64, execution: ExecutionId, lablet: Box<PeerId>, shard: Cid },
    AssembleDone { life: u64, execution: ExecutionId, accepted: u64, missing: u64 },
    PromiseDurable { lablet: usize, life: u64 },
    PrepareDone { lablet: usize, life: u64, cell: Box<CellRef> },
    InstanceEnds { lablet: usize, life: u64, cell: Box<CellRef>, instance: Box<InstanceId>, exit: Box<Exit> },
    SealDone { lablet: usize, life: u64, cell: Box<CellRef> },
    Comes { lablet: usize, life: u64, cell: Box<CellRef>, instance: Box<InstanceId> },
    Look { life: u64 },
    StartOrchestrator,
    StartLablet { lablet: usize },
    Undrain { lablet: usize },
}

/// Which node an event happens to: one that stands still takes it in later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Orchestrator,
    Lablet(usize),
    /// It happens between nodes, or to their machines.
    Outside,
}

impl Event {
    pub(crate) fn place(&self) -> Place {
        match self {
            Event::ToOrchestrator { .. }
            | Event::HelloArrives { .. }
            | Event::OrchestratorHears { .. }
            | Event::OrchestratorTimer
            | Event::FactsDurable { .. }
            | Event::PullDone { .. }
            | Event::AssembleDone { .. }
            | Event::Look { .. }
            | Event::Cancel(_)
            | Event::Submit(_) => Place::Orchestrator,
            Event::ToLablet { lablet, .. }
            | Event::Gossip { lablet, .. }
            | Event::Connect { lablet, .. }
            | Event::WelcomeArrives { lablet, .. }
            | Event::Turned { lablet, .. }
            | Event::LabletHears { lablet, .. }
            | Event::GiveUpHello { lablet, .. }
            | Event::LabletTimer { lablet }
            | Event::PromiseDurable { lablet, .. }
            | Event::PrepareDone { lablet, .. }
            | Event::InstanceEnds { lablet, .. }
            | Event::SealDone { lablet, .. }
            | Event::Comes { lablet, .. }
            | Event::Undrain { lablet } => Place::Lablet(*lablet),
            Event::Fault(_) | Event::StartOrchestrator | Event::StartLablet { .. } => Place::Outside,
        }
    }

    /// Returns a number for the kind of event and one for what it concerns: enough to tell two schedules apart.
    pub(crate) fn tag(&self) -> (u64, u64) {
        match self {
            Event::Submit(n) => (0, u64::from(*n)),
            Event::Cancel(_) => (1, 0),
            Event::Fault(n) => (2, *n as u64),
            Event::ToOrchestrator { lablet, message, .. } => (32 + up_kind(message), *lablet as u64),
            Event::ToLablet { lablet, message, .. } => (64 + down_kind(message), *lablet as u64),
            Event::Gossip { lablet, .. } => (3, *lablet as u64),
            Event::Connect { lablet, .. } => (4, *lablet as u64),
            Event::HelloArrives { lablet, .. } => (5, *lablet as u64),
            Event::WelcomeArrives { lablet, .. } => (6, *lablet as u64),
            Event::Turned { lablet, .. } => (7, *lablet as u64),
            Event::LabletHears { lablet, .. } => (8, *lablet as u64),
            Event::GiveUpHello { lablet, .. } => (9, *lablet as u64),
            Event::OrchestratorHears { lablet, .. } => (10, *lablet as u64),
            Event::OrchestratorTimer => (11, 0),
            Event::LabletTimer { lablet } => (12, *lablet as u64),
            Event::FactsDurable { life } => (13, *life),
            Event::PullDone { .. } => (14, 0),
            Event::AssembleDone { accepted, .. } => (15, *accepted),
            Event::PromiseDurable { lablet, .. } => (16, *lablet as u64),
            Event::PrepareDone { lablet, .. } => (17, *lablet as u64),
            Event::InstanceEnds { lablet, instance, .. } => (18, (*lablet as u64) << 32 | u64::from(instance.index)),
            Event::SealDone { lablet, .. } => (19, *lablet as u64),
            Event::StartOrchestrator => (20, 0),
            Event::StartLablet { lablet } => (21, *lablet as u64),
            Event::Undrain { lablet } => (22, *lablet as u64),
            Event::Comes { lablet, instance, .. } => (23, (*lablet as u64) << 32 | u64::from(instance.index)),
            Event::Look { life } => (24, *life),
        }
    }
}

pub(crate) fn up_kind(message: &ToOrchestrator) -> u64 {
    match message {
        ToOrchestrator::Hello(_) => 0,
        ToOrchestrator::Heartbeat(_) => 1,
        ToOrchestrator::Bid(_) => 2,
        ToOrchestrator::Accept(_) => 3,
        ToOrchestrator::Refuse(..) => 4,
        ToOrchestrator::Unfit(..) => 5,
        ToOrchestrator::Prepared(_) => 6,
        ToOrchestrator::Started(_) => 7,
        ToOrchestrator::Receipts(_) => 8,
        ToOrchestrator::Sync(..) => 9,
        ToOrchestrator::Output(..) => 10,
        ToOrchestrator::Usage(..) => 11,
        ToOrchestrator::Faults(..) => 12,
        ToOrchestrator::Ways(..) => 13,
    }
}

pub(crate) fn down_kind(message: &ToLablet) -> u64 {
    match message {
        ToLablet::Welcome(_) => 0,
        ToLablet::Turned(_) => 1,
        ToLablet::Lease(_) => 2,
        ToLablet::Grant(_) => 3,
        ToLablet::NotNeeded(_) => 4,
        ToLablet::Start(_) => 5,
        ToLablet::Directory(..) => 6,
        ToLablet::Stop(..) => 7,
        ToLablet::Kept(..) => 8,
        ToLablet::Finished(..) => 9,
        ToLablet::Sync(..) => 10,
        ToLablet::Follow(..) => 11,
        ToLablet::Gauge(_) => 12,
        ToLablet::Orchestrators(_) => 13,
        ToLablet::Offer(_) => 14,
    }
}

/// An event in the queue: earlier ones first, then those that were queued first.
#[derive(Debug)]
pub(crate) struct Queued<E> {
    pub at: u64,
    pub order: u64,
    pub event: E,
}

impl<E> PartialEq for Queued<E> {
    fn eq(&self, other: &Queued<E>) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl<E> Eq for Queued<E> {}

impl<E> PartialOrd for Queued<E> {
    fn partial_cmp(&self, other: &Queued<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Queued<E> {
    /// Reversed: a heap gives its largest first.
    fn cmp(&self, other: &Queued<E>) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
