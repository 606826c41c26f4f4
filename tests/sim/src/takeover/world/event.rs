//! What can happen next in a lab with several orchestrators, and to whom.

use std::collections::BTreeMap;
use std::rc::Rc;

use iptl_dag::model::{Epoch, ExecutionId, Exit, Fact, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Hello, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::takeover::Finished;

use crate::event::{down_kind, up_kind};

/// Logs as somebody has them; what several have is held once.
pub(super) type Logs = BTreeMap<ExecutionId, Rc<Vec<Fact>>>;

/// What an orchestrator that leads says to those who follow.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub logs: Rc<Logs>,
    pub ends: Rc<Vec<Finished>>,
}

/// One thing that happens at one time.
#[derive(Debug)]
pub(super) enum Event {
    Up { o: usize, l: usize, session: u64, message: Box<ToOrchestrator> },
    Down { l: usize, o: usize, session: u64, message: Box<ToLablet> },
    Hello { o: usize, l: usize, session: u64, hello: Box<Hello> },
    Welcome { l: usize, o: usize, session: u64, welcome: Box<Welcome> },
    Elsewhere { l: usize, session: u64 },
    Connect { l: usize, life: u64 },
    GiveUp { l: usize, session: u64 },
    LabletHears { l: usize, session: u64 },
    OrchestratorHears { o: usize, l: usize, session: u64 },
    CoreTimer { o: usize },
    CandidateTimer { o: usize },
    LabletTimer { l: usize },
    FactsDurable { o: usize, life: u64 },
    Pull { o: usize, life: u64, execution: ExecutionId, lablet: Box<PeerId>, shard: Cid },
    Assemble { o: usize, life: u64, execution: ExecutionId, accepted: u64, missing: u64 },
    WriteDurable { l: usize, life: u64 },
    Prepared { l: usize, life: u64, cell: Box<CellRef> },
    Ends { l: usize, life: u64, cell: Box<CellRef>, instance: Box<InstanceId>, exit: Box<Exit> },
    Seal { l: usize, life: u64, cell: Box<CellRef> },
    Undrain { l: usize },
    Beats,
    Beat { to: usize, from: usize, term: Epoch, beat: u64, said: Said },
    Has { o: usize, life: u64, from: usize, beat: u64, ends: Vec<Finished> },
    Found { o: usize, life: u64, end: Finished },
    Asked { o: usize, life: u64, from: usize },
    Claim { to: usize, term: Epoch },
    ClaimToLablet { l: usize, term: Epoch },
    Offer { l: usize, offer: Rc<Offer> },
    Submit { n: usize },
    Cancel { n: usize },
    Fault { n: usize },
    StartOrchestrator { o: usize },
    StartLablet { l: usize },
}

/// Whom an event happens to: one that stands still takes it in later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Orchestrator(usize),
    Lablet(usize),
    /// It happens between nodes, or to their machines.
    Outside,
}

impl Event {
    pub(super) fn place(&self) -> Place {
        match self {
            Event::Up { o, .. }
            | Event::Hello { o, .. }
            | Event::OrchestratorHears { o, .. }
            | Event::CoreTimer { o }
            | Event::CandidateTimer { o }
            | Event::FactsDurable { o, .. }
            | Event::Pull { o, .. }
            | Event::Assemble { o, .. }
            | Event::Has { o, .. }
            | Event::Found { o, .. }
            | Event::Asked { o, .. }
            | Event::Beat { to: o, .. }
            | Event::Claim { to: o, .. } => Place::Orchestrator(*o),
            Event::Down { l, .. }
            | Event::Welcome { l, .. }
            | Event::Elsewhere { l, .. }
            | Event::Connect { l, .. }
            | Event::GiveUp { l, .. }
            | Event::LabletHears { l, .. }
            | Event::LabletTimer { l }
            | Event::WriteDurable { l, .. }
            | Event::Prepared { l, .. }
            | Event::Ends { l, .. }
            | Event::Seal { l, .. }
            | Event::Undrain { l }
            | Event::ClaimToLablet { l, .. }
            | Event::Offer { l, .. } => Place::Lablet(*l),
            Event::Beats
            | Event::Submit { .. }
            | Event::Cancel { .. }
            | Event::Fault { .. }
            | Event::StartOrchestrator { .. }
            | Event::StartLablet { .. } => Place::Outside,
        }
    }

    /// Returns a number for the kind of event: with its place enough to tell two schedules apart.
    pub(super) fn kind(&self) -> u64 {
        match self {
            Event::Up { message, .. } => 64 + up_kind(message),
            Event::Down { message, .. } => 96 + down_kind(message),
            Event::Hello { .. } => 0,
            Event::Welcome { .. } => 1,
            Event::Elsewhere { .. } => 2,
            Event::Connect { .. } => 3,
            Event::GiveUp { .. } => 4,
            Event::LabletHears { .. } => 5,
            Event::OrchestratorHears { .. } => 6,
            Event::CoreTimer { .. } => 7,
            Event::CandidateTimer { .. } => 8,
            Event::LabletTimer { .. } => 9,
            Event::FactsDurable { .. } => 10,
            Event::Pull { .. } => 11,
            Event::Assemble { .. } => 12,
            Event::WriteDurable { .. } => 13,
            Event::Prepared { .. } => 14,
            Event::Ends { .. } => 15,
            Event::Seal { .. } => 16,
            Event::Undrain { .. } => 17,
            Event::Beats => 18,
            Event::Beat { .. } => 19,
            Event::Has { .. } => 20,
            Event::Found { .. } => 21,
            Event::Asked { .. } => 22,
            Event::Claim { .. } => 23,
            Event::ClaimToLablet { .. } => 24,
            Event::Offer { .. } => 25,
            Event::Submit { .. } => 26,
            Event::Cancel { .. } => 27,
            Event::Fault { .. } => 28,
            Event::StartOrchestrator { .. } => 29,
            Event::StartLablet { .. } => 30,
        }
    }
}
