//! Orchestrators, lablets and what happens between them, in virtual time.

mod candidacy;
mod faults;
mod following;
mod lablet;
mod leading;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Counts, Epoch, ExecutionId, Exit, Fact, InstanceId, ResultVerdict, WorkloadKind};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::lablet::{CellRecord, LabletInput};
use iptl_scheduler::{
    AssembledResult, Candidate, CandidateInput, Effect, Input, Lablet, Orchestrator, ReceiptSummary, Submission,
};
use iptl_wire::lab::Certificate;
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Hello, Inventory, Slots, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::takeover::{Claim, Finished};
use iptl_wire::{Verified, WallTime};

use super::Report;
use super::truth::{Point, Truth};
use crate::clock::Clock;
use crate::lablet::FakeCell;
use crate::network::Draws;
use crate::world::lab::peer;
use crate::world::{MILLI, SECOND};

/// Virtual time after which nothing bad happens any more, in seconds.
const FAULTS_UNTIL_S: u64 = 70;

/// Virtual time in which everything must have ended then, in seconds.
const LIVENESS_S: u64 = 200;

/// Silence after which the first candidate claims, and how much longer each other waits, in milliseconds.
const SILENCE_MS: u64 = 5_000;
const STEP_MS: u64 = 2_500;

/// Most events of a schedule.
const MAX_EVENTS: u64 = 400_000;

/// What an orchestrator that leads says to those who follow.
#[derive(Clone, Debug)]
struct Said {
    logs: BTreeMap<ExecutionId, Vec<Fact>>,
    ends: Vec<Finished>,
}

#[derive(Debug)]
enum Event {
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
    Pull { o: usize, life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid },
    Assemble { o: usize, life: u64, execution: ExecutionId, accepted: u64, missing: u64 },
    Prepared { l: usize, life: u64, cell: CellRef },
    Ends { l: usize, life: u64, cell: CellRef, instance: InstanceId, exit: Exit },
    Seal { l: usize, life: u64, cell: CellRef },
    Beats,
    Beat { to: usize, from: usize, term: Epoch, beat: u64, logs: Said },
    Has { o: usize, life: u64, from: usize, beat: u64, ends: Vec<Finished> },
    Found { o: usize, life: u64, end: Finished },
    Asked { o: usize, life: u64, from: usize },
    Claim { to: usize, term: Epoch },
    ClaimToLablet { l: usize, term: Epoch },
    Offer { l: usize, offer: Box<Offer> },
    Submit { n: u64 },
    Fault,
    StartOrchestrator { o: usize },
    StartLablet { l: usize },
}

#[derive(Debug)]
struct Orch {
    peer: PeerId,
    clock: Clock,
    life: u64,
    candidate: Option<Candidate>,
    core: Option<Orchestrator>,
    sessions: BTreeMap<PeerId, u64>,
    frozen_until: u64,
    dies_in_write: Option<u64>,
    /// Orchestrators that follow this one, with when each was last heard.
    contact: BTreeMap<usize, u64>,
    /// Number of the last beat.
    beat: u64,
    /// What follows from facts that not everybody in contact has said to have.
    held: VecDeque<Held>,
    /// Durable: the highest term, and whether lablets were asked in it.
    term: Option<Epoch>,
    reconciled: bool,
    /// Durable: logs and receipts.
    logs: BTreeMap<ExecutionId, Vec<Fact>>,
    store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    /// Durable: how executions ended, as it tells whoever asks.
    ends: BTreeMap<ExecutionId, Finished>,
}

/// Effects that are held back.
#[derive(Debug)]
struct Held {
    /// Beat with which the facts before them went out.
    beat: u64,
    /// Who has not said to have these.
    waits: BTreeSet<usize>,
    effects: Vec<Effect>,
}

#[derive(Debug)]
struct Node {
    peer: PeerId,
    clock: Clock,
    machine: Inventory,
    life: u64,
    boot: [u8; 16],
    core: Option<Lablet>,
    target: usize,
    session: Option<(usize, u64)>,
    greeting: Option<(usize, u64, iptl_wire::Timestamp)>,
    cells: BTreeMap<CellRef, FakeCell>,
    /// Durable: promises, cells, receipts, the term, what is over.
    promised: BTreeMap<ExecutionId, Epoch>,
    records: BTreeMap<CellRef, (CellRecord, Vec<(Cid, u32)>)>,
    store: BTreeMap<Cid, Vec<ReceiptSummary>>,
    term: Option<Signed<Claim>>,
    finished: Vec<Finished>,
}

pub(super) struct World {
    now: u64,
    events: BinaryHeap<std::cmp::Reverse<(u64, u64)>>,
    queued: BTreeMap<u64, Event>,
    next: u64,
    next_session: u64,
    count: u64,
    draws: Draws,
    lab: PeerId,
    orchs: Vec<Orch>,
    nodes: Vec<Node>,
    /// From node, to node, until: orchestrators first, then lablets.
    cuts: Vec<(usize, usize, u64)>,
    submissions: BTreeMap<ExecutionId, Submission>,
    wanted: BTreeMap<u64, ExecutionId>,
    executions: u64,
    loss_ppm: u32,
    double_ppm: u32,
    late_ppm: u32,
    max_attempts: u32,
    seed: u64,
    truth: Truth,
    told: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, tell: bool) -> World {
        let mut draws = Draws::new(seed, 77);
        let clock = |draws: &mut Draws| Clock {
            base: draws.between(0, 1_000_000) * SECOND,
            drift_ppm: draws.between(0, 600) as i64 - 300,
            skew_us: draws.between(0, 20_000_000) as i64 - 10_000_000,
        };
        let orchs = (0..draws.between(2, 3) as u16).map(|n| Orch {
            peer: peer(200 + n),
            clock: clock(&mut draws),
            life: 0,
            candidate: None,
            core: None,
            sessions: BTreeMap::new(),
            frozen_until: 0,
            dies_in_write: None,
            contact: BTreeMap::new(),
            beat: 0,
            held: VecDeque::new(),
            term: None,
            reconciled: false,
            logs: BTreeMap::new(),
            store: BTreeMap::new(),
            ends: BTreeMap::new(),
        });
        let orchs: Vec<Orch> = orchs.collect();
        let nodes = (0..draws.between(2, 5) as u16).map(|n| Node {
            peer: peer(1000 + n),
            clock: clock(&mut draws),
            machine: Inventory {
                name: format!("l{n}"),
                cpus: 4,
                memory_bytes: 8 << 30,
                free_memory_bytes: 8 << 30,
                slots: BTreeMap::from([(WorkloadKind::Wasm, Slots::of(draws.between(2, 6) as u32))]),
                ..Inventory::default()
            },
            life: 0,
            boot: [0; 16],
            core: None,
            target: 0,
            session: None,
            greeting: None,
            cells: BTreeMap::new(),
            promised: BTreeMap::new(),
            records: BTreeMap::new(),
            store: BTreeMap::new(),
            term: None,
            finished: Vec::new(),
        });
        let nodes: Vec<Node> = nodes.collect();
        let mut maybe = |most| if draws.chance(500_000) { draws.between(0, most) as u32 } else { 0 };
        let (loss_ppm, double_ppm, late_ppm) = (maybe(80_000), maybe(150_000), maybe(40_000));
        let max_attempts = if draws.chance(400_000) { draws.between(2, 3) as u32 } else { 1 };
        let mut world = World {
            now: SECOND,
            events: BinaryHeap::new(),
            queued: BTreeMap::new(),
            next: 0,
            next_session: 0,
            count: 0,
            executions: draws.between(1, 5),
            draws,
            lab: peer(255),
            orchs,
            nodes,
            cuts: Vec::new(),
            submissions: BTreeMap::new(),
            wanted: BTreeMap::new(),
            loss_ppm,
            double_ppm,
            late_ppm,
            max_attempts,
            seed,
            truth: Truth::default(),
            told: tell.then(Vec::new),
        };
        for o in 0..world.orchs.len() {
            world.after(0, Event::StartOrchestrator { o });
        }
        for l in 0..world.nodes.len() {
            let late = world.draws.between(0, 3 * SECOND);
            world.after(late, Event::StartLablet { l });
        }
        for n in 0..world.executions {
            let at = world.draws.between(8, FAULTS_UNTIL_S - 10) * SECOND + world.draws.between(0, SECOND);
            world.after(at, Event::Submit { n });
        }
        for _ in 0..world.draws.between(1, 9) {
            let at = world.draws.between(8 * SECOND, FAULTS_UNTIL_S * SECOND);
            world.after(at, Event::Fault);
        }
        world.after(SECOND, Event::Beats);
        world
    }

    pub(super) fn run(mut self) -> Report {
        let mut over = false;
        while let Some(std::cmp::Reverse((at, order))) = self.events.pop() {
            let Some(event) = self.queued.remove(&order) else { continue };
            if at > (FAULTS_UNTIL_S + LIVENESS_S) * SECOND || self.count > MAX_EVENTS {
                break;
            }
            self.now = at;
            if let Some(until) = self.stands_still(&event) {
                self.at(until, event);
                continue;
            }
            self.count += 1;
            if let Some(told) = &mut self.told {
                let text = format!("{event:?}");
                told.push(format!(
                    "{:>10.6} {}",
                    at as f64 / SECOND as f64,
                    text.chars().take(400).collect::<String>()
                ));
            }
            self.take(event);
            if !self.truth.violations.is_empty() {
                break;
            }
            if self.now > FAULTS_UNTIL_S * SECOND && self.count.is_multiple_of(32) && self.settled() {
                over = true;
                break;
            }
        }
        let ended = self.ends(over);
        Report {
            seed: self.seed,
            events: self.count,
            reached: self.truth.reached,
            ended,
            violations: self.truth.violations,
            told: self.told.unwrap_or_default(),
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |o: &usize| self.orchs[*o].core.is_some();
        (0..self.orchs.len()).filter(leads).max_by_key(|o| self.orchs[*o].term.clone())
    }

    /// Whether everything that can end has, and everybody agrees who leads.
    fn settled(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (term, core) = (&self.orchs[leader].term, &self.orchs[leader].core);
        let agreed = self.orchs.iter().all(|o| o.candidate.as_ref().is_some_and(|c| c.term() == term.as_ref()))
            && self.orchs.iter().filter(|o| o.core.is_some()).count() == 1
            && self.nodes.iter().all(|n| n.session.is_some_and(|(o, _)| o == leader));
        let submitted = self.wanted.len() as u64 == self.executions;
        agreed
            && submitted
            && self.told_otherwise().is_none()
            && core.as_ref().is_some_and(|c| c.executions().is_empty())
            && self.orchs[leader].reconciled
    }

    /// Returns an end that somebody tells although one of a later term is known, of whom that is not settled yet.
    fn told_otherwise(&self) -> Option<(PeerId, &Finished, &Finished)> {
        self.orchs.iter().find_map(|o| {
            let by_core = |end: &Finished| match &o.core {
                Some(core) => core.result(&end.execution).is_none_or(|result| result == end.result),
                None => true,
            };
            let told = o.ends.values().map(|told| (told, self.truth.end(&told.execution).unwrap_or(told)));
            let mut wrong = told.filter(|(told, counts)| told != counts || !by_core(counts));
            wrong.next().map(|(told, counts)| (o.peer.clone(), told, counts))
        })
    }

    fn ends(&mut self, settled: bool) -> BTreeMap<&'static str, u32> {
        let mut ended: BTreeMap<&'static str, u32> = BTreeMap::new();
        if !self.truth.violations.is_empty() {
            return ended;
        }
        let leader = self.leader();
        let otherwise = self.told_otherwise().map(|told| format!("{told:?}"));
        self.truth.check("later-end", otherwise.is_none(), || otherwise.unwrap_or_default());
        if !settled {
            let view = leader.and_then(|o| self.orchs[o].core.as_ref()).map(Orchestrator::executions);
            let who: Vec<_> = self.orchs.iter().map(|o| (o.peer.short(), o.term.clone(), o.core.is_some())).collect();
            let at: Vec<_> = self.nodes.iter().map(|n| (n.session, n.target, n.core.is_some())).collect();
            let count = self.count;
            self.truth.check("liveness", false, || format!("{view:?} {who:?} {at:?} after {count} events"));
        }
        for id in self.wanted.values() {
            let known = leader.is_some_and(|o| self.orchs[o].logs.contains_key(id));
            let how = match (self.truth.is_over(id), known) {
                (true, _) => "over",
                (false, true) => "lost",
                (false, false) => "orphaned",
            };
            *ended.entry(how).or_default() += 1;
        }
        let (lost, orphaned) = (ended.get("lost").copied().unwrap_or(0), ended.contains_key("orphaned"));
        if orphaned {
            self.truth.at(Point::Orphaned);
        }
        self.truth.check("liveness", lost == 0 || !settled, || format!("{lost} executions never ended"));
        ended
    }

    fn stands_still(&self, event: &Event) -> Option<u64> {
        let o = match event {
            Event::Up { o, .. }
            | Event::Hello { o, .. }
            | Event::OrchestratorHears { o, .. }
            | Event::CoreTimer { o }
            | Event::CandidateTimer { o }
            | Event::Pull { o, .. }
            | Event::Assemble { o, .. }
            | Event::Has { o, .. }
            | Event::Found { o, .. }
            | Event::Asked { o, .. } => *o,
            Event::Beat { to, .. } | Event::Claim { to, .. } => *to,
            _ => return None,
        };
        let until = self.orchs[o].frozen_until;
        (until > self.now).then_some(until)
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next += 1;
        self.events.push(std::cmp::Reverse((time.max(self.now), self.next)));
        self.queued.insert(self.next, event);
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_UNTIL_S * SECOND
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.iter().any(|(f, t, until)| *f == from && *t == to && *until > self.now)
    }

    fn node(&self, l: usize) -> usize {
        self.orchs.len() + l
    }

    fn fates(&mut self) -> Vec<u64> {
        let faulty = self.faulty();
        if faulty && self.draws.chance(self.loss_ppm) {
            return Vec::new();
        }
        let mut copies = Vec::new();
        let count = if faulty && self.draws.chance(self.double_ppm) { 2 } else { 1 };
        for _ in 0..count {
            let late = faulty && self.draws.chance(self.late_ppm);
            let most = if late { 9_000 } else { 60 };
            copies.push(self.draws.between(1, most) * MILLI);
        }
        copies
    }

    fn wall_us(&self, clock: &Clock) -> u64 {
        clock.wall_us(1_800_000_000_000_000 + self.now / 1_000)
    }

    fn claim(&self, term: &Epoch) -> Signed<Claim> {
        let certificate = Certificate {
            lab: self.lab.clone(),
            orchestrator: term.peer.clone(),
            name: "sim".into(),
            expires: WallTime(u64::MAX),
            private: false,
        };
        let certificate = Signed { body: certificate, signer: self.lab.clone(), signature: Vec::new() };
        let body = Claim { lab: self.lab.clone(), term: term.clone(), certificate };
        Signed { body, signer: term.peer.clone(), signature: Vec::new() }
    }

    fn orch_of(&self, peer: &PeerId) -> Option<usize> {
        self.orchs.iter().position(|o| o.peer == *peer)
    }

    fn lablet_of(&self, peer: &PeerId) -> Option<usize> {
        self.nodes.iter().position(|n| n.peer == *peer)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Up { o, l, session, message } => {
                let from = self.nodes[l].peer.clone();
                if self.orchs[o].sessions.get(&from) == Some(&session) && !self.is_cut(self.node(l), o) {
                    self.tell_core(o, Input::Message { from, message: Verified::vouch(*message) });
                }
            }
            Event::Down { l, o, session, message } => {
                // What an orchestrator says that leads no more comes to nobody.
                let leads = self.nodes[l].term.as_ref().is_none_or(|c| c.body.term.peer == self.orchs[o].peer);
                if !leads && self.nodes[l].core.is_some() && matches!(*message, ToLablet::Start(_) | ToLablet::Grant(_))
                {
                    self.truth.at(Point::OldRefused);
                }
                if self.nodes[l].session == Some((o, session)) && !self.is_cut(o, self.node(l)) {
                    if let ToLablet::Lease(renewal) = &*message
                        && u64::from(renewal.lease_ms) > SILENCE_MS
                    {
                        self.truth.at(Point::LeaseDoubled);
                    }
                    let from = self.orchs[o].peer.clone();
                    self.tell_lablet(l, LabletInput::Message { from, message: Verified::vouch(*message) });
                }
            }
            Event::Hello { o, l, session, hello } => {
                if self.orchs[o].candidate.is_none() || self.is_cut(self.node(l), o) {
                    return;
                }
                if let Some(claim) = &hello.promised {
                    // The driver has checked it: its candidate hears of it, too.
                    let term = claim.body.term.clone();
                    if self.orchs[o].core.is_none() {
                        self.tell_candidate(o, CandidateInput::Heard { term });
                    }
                }
                if self.orchs[o].core.is_some() {
                    let from = self.nodes[l].peer.clone();
                    self.tell_core(o, Input::Hello { from, session, hello: Verified::vouch(*hello) });
                } else {
                    self.after(10 * MILLI, Event::Elsewhere { l, session });
                }
            }
            Event::Welcome { l, o, session, welcome } => {
                let Some((_, greeted, hello_at)) =
                    self.nodes[l].greeting.filter(|(at, s, _)| (*at, *s) == (o, session))
                else {
                    return;
                };
                if self.is_cut(o, self.node(l)) {
                    return;
                }
                let newer =
                    welcome.claim.as_ref().map(|c| &c.body.term) > self.nodes[l].term.as_ref().map(|c| &c.body.term);
                if newer && self.nodes[l].cells.values().any(|cell| !cell.running.is_empty()) {
                    self.truth.at(Point::RanOn);
                }
                self.nodes[l].greeting = None;
                self.nodes[l].session = Some((o, greeted));
                let orchestrator = self.orchs[o].peer.clone();
                let welcome = Verified::vouch(*welcome);
                self.tell_lablet(l, LabletInput::SessionUp { orchestrator, hello_at, welcome });
            }
            Event::Elsewhere { l, session } | Event::GiveUp { l, session } => {
                if self.nodes[l].greeting.is_some_and(|(_, s, _)| s == session) {
                    self.nodes[l].greeting = None;
                    self.nodes[l].target = (self.nodes[l].target + 1) % self.orchs.len();
                    let life = self.nodes[l].life;
                    let wait = self.draws.between(50, 400) * MILLI;
                    self.after(wait, Event::Connect { l, life });
                }
            }
            Event::Connect { l, life } => self.connect(l, life),
            Event::LabletHears { l, session } => {
                if self.nodes[l].session.is_some_and(|(_, s)| s == session) {
                    let (o, _) = self.nodes[l].session.take().expect("it was just there");
                    let orchestrator = self.orchs[o].peer.clone();
                    self.tell_lablet(l, LabletInput::SessionDown { orchestrator });
                    let life = self.nodes[l].life;
                    self.after(200 * MILLI, Event::Connect { l, life });
                }
            }
            Event::OrchestratorHears { o, l, session } => {
                let from = self.nodes[l].peer.clone();
                if self.orchs[o].sessions.get(&from) == Some(&session) {
                    self.orchs[o].sessions.remove(&from);
                    self.tell_core(o, Input::Gone { from, session });
                }
            }
            Event::CoreTimer { o } => {
                let now = self.orchs[o].clock.stamp(self.now);
                if self.orchs[o].core.as_ref().and_then(Orchestrator::poll_timeout).is_some_and(|at| at <= now) {
                    self.tell_core(o, Input::Timeout);
                }
            }
            Event::CandidateTimer { o } => {
                let now = self.orchs[o].clock.stamp(self.now);
                if self.orchs[o].candidate.as_ref().and_then(Candidate::poll_timeout).is_some_and(|at| at <= now) {
                    self.tell_candidate(o, CandidateInput::Timeout);
                }
            }
            Event::LabletTimer { l } => {
                let now = self.nodes[l].clock.stamp(self.now);
                if self.nodes[l].core.as_ref().and_then(Lablet::poll_timeout).is_some_and(|at| at <= now) {
                    self.tell_lablet(l, LabletInput::Timeout);
                }
            }
            Event::Pull { o, life, execution, lablet, shard } => self.pull(o, life, execution, lablet, shard),
            Event::Assemble { o, life, execution, accepted, missing } => {
                if self.orchs[o].life == life {
                    let cid = codec::cid_of(&(execution, accepted, missing));
                    let verdict = if missing > 0 { ResultVerdict::Inconclusive } else { ResultVerdict::Pass };
                    let counts = Counts { ok: accepted, failed: 0, lost: missing };
                    let (thresholds, inconclusive, failures) = (Vec::new(), Vec::new(), Vec::new());
                    let result =
                        AssembledResult { cid, verdict, counts, thresholds, inconclusive, failures, notes: Vec::new() };
                    self.tell_core(o, Input::Assembled { execution, result });
                }
            }
            Event::Prepared { l, life, cell } => {
                if self.nodes[l].life == life
                    && let Some(fake) = self.nodes[l].cells.get_mut(&cell)
                {
                    fake.prepared = true;
                    self.tell_lablet(l, LabletInput::Prepared { cell });
                }
            }
            Event::Ends { l, life, cell, instance, exit } => {
                if self.nodes[l].life == life
                    && let Some(fake) = self.nodes[l].cells.get_mut(&cell)
                    && fake.running.remove(&instance)
                {
                    fake.unsealed.push((instance.clone(), exit));
                    self.tell_lablet(l, LabletInput::InstanceEnded { cell, instance });
                }
            }
            Event::Seal { l, life, cell } => self.seal(l, life, cell),
            Event::Beats => self.beats(),
            Event::Beat { to, from, term, beat, logs } => self.beat(to, from, term, beat, logs),
            Event::Has { o, life, from, beat, ends } => self.has(o, life, from, beat, ends),
            Event::Found { o, life, end } => self.found(o, life, end),
            Event::Asked { o, life, from } => self.asked(o, life, from),
            Event::Claim { to, term } => {
                if self.orchs[to].candidate.is_some() {
                    self.tell_candidate(to, CandidateInput::Heard { term });
                }
            }
            Event::ClaimToLablet { l, term } => {
                let claim = self.claim(&term);
                self.tell_lablet(l, LabletInput::Claim(Verified::vouch(claim)));
            }
            Event::Offer { l, offer } => self.tell_lablet(l, LabletInput::Offer(Verified::vouch(*offer))),
            Event::Submit { n } => self.submit(n),
            Event::Fault => self.fault(),
            Event::StartOrchestrator { o } => self.start_orchestrator(o),
            Event::StartLablet { l } => self.start_lablet(l),
        }
    }
}
