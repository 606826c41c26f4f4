//! Orchestrators, lablets and what happens between them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{
    Counts, Epoch, Execution, ExecutionId, Exit, Fact, FactKind, InstanceId, ResultVerdict, WorkloadKind,
};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::lablet::{CellRecord, LabletConfig, LabletEffect, LabletInput};
use iptl_scheduler::{
    AssembledResult, Candidate, CandidateConfig, CandidateEffect, CandidateInput, Effect, Input, Lablet, Orchestrator,
    OrchestratorConfig, ReceiptSummary, Submission,
};
use iptl_wire::lab::{Certificate, MemberToken, Role};
use iptl_wire::offer::Offer;
use iptl_wire::session::{
    CellRef, Hello, Inventory, KnownRun, ReceiptsReady, Slots, ToLablet, ToOrchestrator, Welcome,
};
use iptl_wire::takeover::{Claim, Finished};
use iptl_wire::{Verified, WallTime};

use super::Report;
use super::truth::{Point, Truth};
use crate::clock::Clock;
use crate::lablet::FakeCell;
use crate::network::Draws;
use crate::world::lab::{group, peer, run};
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
    Beat { to: usize, from: usize, term: Epoch, logs: BTreeMap<ExecutionId, Vec<Fact>> },
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
    /// Durable: the highest term, and whether lablets were asked in it.
    term: Option<Epoch>,
    reconciled: bool,
    /// Durable: logs and receipts.
    logs: BTreeMap<ExecutionId, Vec<Fact>>,
    store: BTreeMap<Cid, Vec<ReceiptSummary>>,
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
            term: None,
            reconciled: false,
            logs: BTreeMap::new(),
            store: BTreeMap::new(),
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
        agreed && submitted && core.as_ref().is_some_and(|c| c.executions().is_empty()) && self.orchs[leader].reconciled
    }

    fn ends(&mut self, settled: bool) -> BTreeMap<&'static str, u32> {
        let mut ended: BTreeMap<&'static str, u32> = BTreeMap::new();
        if !self.truth.violations.is_empty() {
            return ended;
        }
        let leader = self.leader();
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
            | Event::Assemble { o, .. } => *o,
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
            Event::Beat { to, from, term, logs } => self.beat(to, from, term, logs),
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

    // Orchestrators.

    fn start_orchestrator(&mut self, o: usize) {
        let now = self.orchs[o].clock.stamp(self.now);
        let orch = &mut self.orchs[o];
        if orch.candidate.is_some() {
            return;
        }
        orch.life += 1;
        let (silence_ms, step_ms) = (SILENCE_MS, STEP_MS);
        let config = CandidateConfig { peer: orch.peer.clone(), rank: o as u32, silence_ms, step_ms };
        orch.candidate = Some(Candidate::new(now, config));
        let term = orch.term.clone();
        self.tell_candidate(o, CandidateInput::Restore { term });
    }

    fn tell_candidate(&mut self, o: usize, input: CandidateInput) {
        let now = self.orchs[o].clock.stamp(self.now);
        let Some(candidate) = &mut self.orchs[o].candidate else { return };
        candidate.handle(now, input);
        let mut effects = Vec::new();
        while let Some(effect) = candidate.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = candidate.poll_timeout() {
            let at = self.orchs[o].clock.when(at);
            self.at(at, Event::CandidateTimer { o });
        }
        for effect in effects {
            match effect {
                CandidateEffect::Persist(term) => {
                    self.orchs[o].term = Some(term);
                    self.orchs[o].reconciled = false;
                }
                CandidateEffect::Lead { term, handed_over } => {
                    self.truth.claimed(&term);
                    self.truth.at(if handed_over { Point::HandedOver } else { Point::TakenOver });
                    self.lead(o, term.clone(), Some(handed_over));
                    self.publish_claim(o, &term);
                }
                CandidateEffect::Resume { term } => {
                    self.truth.at(Point::Resumed);
                    let asks = !self.orchs[o].reconciled;
                    if asks {
                        self.truth.at(Point::ResumedAsking);
                    }
                    self.lead(o, term, asks.then_some(false));
                }
                CandidateEffect::Follow { .. } => {
                    if self.orchs[o].core.is_some() {
                        self.truth.at(Point::OldReturns);
                    }
                    self.drop_core(o);
                }
            }
        }
    }

    fn drop_core(&mut self, o: usize) {
        self.orchs[o].core = None;
        self.orchs[o].life += 1;
        for (peer, session) in std::mem::take(&mut self.orchs[o].sessions) {
            if let Some(l) = self.lablet_of(&peer) {
                let hears = self.draws.between(0, 3 * SECOND);
                self.after(hears, Event::LabletHears { l, session });
            }
        }
    }

    fn config(&self, o: usize, term: &Epoch) -> OrchestratorConfig {
        let mut config = OrchestratorConfig::new(self.orchs[o].peer.clone(), self.lab.clone(), "sim".into());
        config.prepare_timeout_ms = 20_000;
        config.seed = self.seed;
        config.term = Some(term.clone());
        config
    }

    /// Replays what is here, as `Replayed` or as a takeover.
    fn replayed(&self, o: usize, term: &Epoch, take: Option<bool>) -> Orchestrator {
        let orch = &self.orchs[o];
        let now = orch.clock.stamp(self.now);
        let mut core = Orchestrator::new(self.config(o, term));
        core.handle(now, Input::Wall { unix_us: self.wall_us(&orch.clock) });
        for fact in orch.logs.values().flatten() {
            let mut fact = fact.clone();
            if take.is_none() && orch.core.is_some() {
                // Compared is what facts say, not how long ago.
                fact.at_ms = self.wall_us(&orch.clock) / 1000;
            }
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| self.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            core.handle(now, Input::Replay { fact: Box::new(fact), submission });
        }
        let lablets: BTreeSet<PeerId> = self.nodes.iter().map(|n| n.peer.clone()).collect();
        core.handle(
            now,
            match take {
                Some(handed_over) => Input::TakeOver { term: term.clone(), lablets, handed_over },
                None => Input::Replayed,
            },
        );
        core
    }

    fn lead(&mut self, o: usize, term: Epoch, take: Option<bool>) {
        self.drop_core(o);
        if take.is_some() {
            for log in self.orchs[o].logs.values() {
                let has = |wanted: fn(&FactKind) -> bool| log.iter().any(|f| wanted(&f.kind));
                if has(|k| matches!(k, FactKind::Sealed { .. } | FactKind::Failed { .. })) {
                    continue;
                }
                self.truth.at(if has(|k| matches!(k, FactKind::Cancelled { .. } | FactKind::TimedOut {})) {
                    Point::TakenEnding
                } else if has(|k| matches!(k, FactKind::Started {})) {
                    Point::TakenRunning
                } else if has(|k| matches!(k, FactKind::Granted { .. } | FactKind::Recovered { .. })) {
                    Point::TakenPreparing
                } else {
                    Point::TakenWaiting
                });
            }
        }
        let core = self.replayed(o, &term, take);
        self.orchs[o].core = Some(core);
        self.drain_core(o);
    }

    fn publish_claim(&mut self, o: usize, term: &Epoch) {
        for to in (0..self.orchs.len()).filter(|to| *to != o) {
            if !self.is_cut(o, to) {
                for delay in self.fates() {
                    self.after(delay, Event::Claim { to, term: term.clone() });
                }
            }
        }
        for l in 0..self.nodes.len() {
            let fates = if self.is_cut(o, self.node(l)) { Vec::new() } else { self.fates() };
            if fates.is_empty() {
                self.truth.at(Point::ClaimLost);
            }
            for delay in fates {
                self.after(delay, Event::ClaimToLablet { l, term: term.clone() });
            }
        }
    }

    fn beats(&mut self) {
        self.after(SECOND, Event::Beats);
        for from in 0..self.orchs.len() {
            let orch = &self.orchs[from];
            if orch.core.is_none() || orch.frozen_until > self.now {
                continue;
            }
            let Some(term) = orch.term.clone() else { continue };
            let logs = orch.logs.clone();
            for to in (0..self.orchs.len()).filter(|to| *to != from) {
                if !self.is_cut(from, to) {
                    let (logs, delay) = (logs.clone(), self.draws.between(1, 60) * MILLI);
                    self.after(delay, Event::Beat { to, from, term: term.clone(), logs });
                }
            }
            if (self.now / SECOND).is_multiple_of(2) {
                self.publish_claim(from, &term);
            }
        }
    }

    fn beat(&mut self, to: usize, from: usize, term: Epoch, logs: BTreeMap<ExecutionId, Vec<Fact>>) {
        if self.orchs[to].candidate.is_none() {
            return;
        }
        let peer = self.orchs[from].peer.clone();
        self.tell_candidate(to, CandidateInput::Beat { from: peer, term: Some(term.clone()) });
        let known = self.orchs[to].candidate.as_ref().and_then(|c| c.term().cloned());
        if known.as_ref() == Some(&term) {
            for (id, log) in logs {
                let mine = self.orchs[to].logs.entry(id).or_default();
                let same = mine.iter().zip(&log).all(|(a, b)| a == b);
                if !same {
                    self.truth.at(Point::Forked);
                }
                if !same || mine.len() < log.len() {
                    *mine = log;
                }
            }
        } else if let Some(known) = known
            && known > term
            && !self.is_cut(to, from)
        {
            self.after(10 * MILLI, Event::Claim { to: from, term: known });
        }
    }

    fn tell_core(&mut self, o: usize, input: Input) {
        let now = self.orchs[o].clock.stamp(self.now);
        let Some(core) = &mut self.orchs[o].core else { return };
        core.handle(now, input);
        self.drain_core(o);
    }

    fn drain_core(&mut self, o: usize) {
        let Some(core) = &mut self.orchs[o].core else { return };
        let mut effects = Vec::new();
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = self.orchs[o].clock.when(at);
            self.at(at, Event::CoreTimer { o });
        }
        let facts = effects.iter().filter(|e| matches!(e, Effect::Persist { .. })).count();
        let dies = if facts > 0 && self.faulty() { self.orchs[o].dies_in_write.take() } else { None };
        let written = dies.map_or(facts, |_| self.draws.between(0, facts as u64) as usize);
        let life = self.orchs[o].life;
        let mut wrote = 0;
        for effect in effects {
            match effect {
                Effect::Persist { execution, epoch, kind } => {
                    if wrote < written {
                        self.persist(o, execution, epoch, kind);
                        wrote += 1;
                    }
                }
                effect => {
                    if let Some(down) = dies {
                        return self.crash_orchestrator(o, down);
                    }
                    self.core_effect(o, life, effect);
                    if self.orchs[o].life != life || self.orchs[o].core.is_none() {
                        return;
                    }
                }
            }
        }
        match dies {
            Some(down) => self.crash_orchestrator(o, down),
            None if facts > 0 => self.compare_with_log(o),
            None => {}
        }
    }

    /// A fact is durable here and on every follower in contact.
    fn persist(&mut self, o: usize, execution: ExecutionId, epoch: Epoch, kind: FactKind) {
        match &kind {
            FactKind::Recovered { .. } => self.truth.at(Point::GrantRecovered),
            FactKind::Granted { attempt, .. } if *attempt > 1 => {
                let taken = self.orchs[o]
                    .logs
                    .get(&execution)
                    .is_some_and(|log| log.iter().any(|f| matches!(f.kind, FactKind::TakenOver { .. })));
                if taken {
                    self.truth.at(Point::Replaced);
                }
            }
            FactKind::Lost { lablet: None, reason, .. } if reason.contains("was not heard") => {
                self.truth.at(Point::Doubted);
            }
            _ => {}
        }
        if kind == (FactKind::Started {}) && !self.orchs[o].reconciled {
            self.truth.at(Point::StartRecovered);
        }
        let at_ms = self.wall_us(&self.orchs[o].clock) / 1000;
        let log = self.orchs[o].logs.entry(execution).or_default();
        let seq = log.len() as u64;
        let fact = Fact { execution, seq, prev: None, epoch, at_ms, kind };
        if let FactKind::Sealed { .. } | FactKind::Failed { .. } = &fact.kind {
            let result = if let FactKind::Sealed { result } = &fact.kind { Some(*result) } else { None };
            let peer = &self.orchs[o].peer;
            let serve = |node: &&Node| node.term.as_ref().is_some_and(|claim| claim.body.term.peer == *peer);
            let known: BTreeSet<Option<Cid>> = self
                .nodes
                .iter()
                .filter(serve)
                .flat_map(|node| node.finished.iter().filter(|f| f.execution == execution).map(|f| f.result))
                .collect();
            self.truth.ended(execution, result, fact.epoch.clone(), &known);
        }
        if let Some(told) = &mut self.told {
            told.push(format!(
                "           {} writes {} {:?}",
                self.orchs[o].peer.short(),
                execution.alias(),
                fact.kind
            ));
        }
        for f in (0..self.orchs.len()).filter(|f| *f != o) {
            let follower = &self.orchs[f];
            let contact = follower.candidate.as_ref().is_some_and(|c| c.term() == self.orchs[o].term.as_ref())
                && follower.frozen_until <= self.now
                && !self.is_cut(o, f)
                && !self.is_cut(f, o);
            let log = self.orchs[o].logs.get(&execution).cloned().unwrap_or_default();
            let theirs = self.orchs[f].logs.entry(execution).or_default();
            if contact {
                *theirs = log;
                theirs.push(fact.clone());
            } else if theirs.is_empty() {
                self.orchs[f].logs.remove(&execution);
            }
        }
        self.orchs[o].logs.entry(execution).or_default().push(fact);
    }

    fn compare_with_log(&mut self, o: usize) {
        let orch = &self.orchs[o];
        let (Some(core), Some(term), true) = (&orch.core, &orch.term, orch.reconciled) else { return };
        let Some(expected) = core.remembered() else { return };
        let mut again = self.replayed(o, term, None);
        let now = orch.clock.stamp(self.now);
        while let Some(effect) = again.poll_effect() {
            if let Effect::Pull { execution, lablet, shard } = effect {
                let receipts = orch.store.get(&shard).cloned().unwrap_or_default();
                again.handle(now, Input::Pulled { execution, lablet, shard, receipts });
            }
        }
        let found = again.remembered().unwrap_or_default();
        for (id, remembered) in &expected {
            let other = found.get(id);
            let unequal = other.is_some_and(|other| other != remembered);
            self.truth
                .check("replay", !unequal, || format!("{} is\n{remembered:?}\nafter a replay\n{other:?}", id.alias()));
        }
    }

    fn core_effect(&mut self, o: usize, life: u64, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) | Effect::Notify { .. } => {}
            Effect::Send { to, message } => {
                let message = match message {
                    ToLablet::Lease(mut renewal) => {
                        renewal.wall_us = self.wall_us(&self.orchs[o].clock);
                        ToLablet::Lease(renewal)
                    }
                    other => other,
                };
                self.post_down(o, &to, message);
            }
            Effect::SendGrant { to, grant } => {
                let signer = self.orchs[o].peer.clone();
                self.post_down(o, &to, ToLablet::Grant(Signed { body: grant, signer, signature: Vec::new() }));
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers, term } => {
                let Some(l) = self.lablet_of(&to) else { return };
                self.orchs[o].sessions.insert(to, session);
                let signer = self.orchs[o].peer.clone();
                let claim = term.as_ref().map(|term| self.claim(term));
                let own = Epoch { counter: 0, peer: signer.clone() };
                let certificate = self.claim(term.as_ref().unwrap_or(&own)).body.certificate;
                let offers =
                    offers.into_iter().map(|body| Signed { body, signer: signer.clone(), signature: Vec::new() });
                let welcome = Welcome { certificate, heartbeat_ms, lease_ms, offers: offers.collect(), claim };
                self.after(5 * MILLI, Event::Welcome { l, o, session, welcome: Box::new(welcome) });
            }
            Effect::Turn { to, session, .. } => {
                if let Some(l) = self.lablet_of(&to) {
                    self.after(5 * MILLI, Event::Elsewhere { l, session });
                }
            }
            Effect::PublishOffer(offer) => {
                for l in 0..self.nodes.len() {
                    if !self.is_cut(o, self.node(l)) {
                        for delay in self.fates() {
                            self.after(delay, Event::Offer { l, offer: Box::new(offer.clone()) });
                        }
                    }
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let takes = self.draws.between(1, 200) * MILLI;
                self.after(takes, Event::Pull { o, life, execution, lablet, shard });
            }
            Effect::Assemble(order) => {
                let received = self.received(o, &order.execution);
                self.truth.assembles(&order, &received);
                let (accepted, missing) = (order.accepted.len() as u64, order.missing.len() as u64);
                let takes = self.draws.between(1, 200) * MILLI;
                self.after(takes, Event::Assemble { o, life, execution: order.execution, accepted, missing });
            }
            Effect::Adopt { .. } => self.truth.at(Point::EndAdopted),
            Effect::Reconciled => self.orchs[o].reconciled = true,
            Effect::StepDown { term } => {
                self.truth.at(Point::ToldByLablet);
                self.tell_candidate(o, CandidateInput::Heard { term });
            }
            Effect::Close { lablet, .. } => {
                if let Some(session) = self.orchs[o].sessions.remove(&lablet)
                    && let Some(l) = self.lablet_of(&lablet)
                {
                    self.after(MILLI, Event::LabletHears { l, session });
                }
            }
        }
    }

    /// Instances with a durable receipt of an end of their own.
    fn received(&self, o: usize, id: &ExecutionId) -> BTreeSet<InstanceId> {
        let orch = &self.orchs[o];
        let shards = orch.logs.get(id).into_iter().flatten().filter_map(|f| match &f.kind {
            FactKind::Received { shard, .. } => orch.store.get(shard),
            _ => None,
        });
        shards.flatten().filter(|r| !matches!(r.exit, Exit::Stopped { .. })).map(|r| r.instance.clone()).collect()
    }

    fn post_down(&mut self, o: usize, to: &PeerId, message: ToLablet) {
        let Some(session) = self.orchs[o].sessions.get(to).copied() else { return };
        let Some(l) = self.lablet_of(to) else { return };
        for delay in self.fates() {
            self.after(delay, Event::Down { l, o, session, message: Box::new(message.clone()) });
        }
    }

    fn pull(&mut self, o: usize, life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid) {
        if self.orchs[o].life != life || self.orchs[o].core.is_none() {
            return;
        }
        let at_lablet = self.lablet_of(&lablet).filter(|l| {
            self.nodes[*l].core.is_some() && !self.is_cut(self.node(*l), o) && !self.is_cut(o, self.node(*l))
        });
        let there = at_lablet.and_then(|l| self.nodes[l].store.get(&shard)).cloned();
        let receipts = self.orchs[o].store.get(&shard).cloned().or(there);
        let input = match receipts {
            Some(receipts) => {
                self.orchs[o].store.insert(shard, receipts.clone());
                Input::Pulled { execution, lablet, shard, receipts }
            }
            None => Input::PullFailed { execution, lablet, shard, reason: "no provider".into(), retry: true },
        };
        if matches!(input, Input::PullFailed { .. }) {
            // A recall is asked for again at once: the driver waits.
            self.after(
                500 * MILLI,
                Event::Pull {
                    o,
                    life,
                    execution,
                    lablet: match &input {
                        Input::PullFailed { lablet, .. } => lablet.clone(),
                        _ => return,
                    },
                    shard,
                },
            );
            return;
        }
        self.tell_core(o, input);
    }

    fn submit(&mut self, n: u64) {
        let known = self.wanted.get(&n).is_some_and(|id| self.orchs.iter().any(|o| o.logs.contains_key(id)));
        if known {
            return;
        }
        self.after(3 * SECOND, Event::Submit { n });
        let Some(o) =
            (0..self.orchs.len()).find(|o| self.orchs[*o].core.is_some() && self.orchs[*o].frozen_until <= self.now)
        else {
            return;
        };
        let groups = (0..self.draws.between(1, 2))
            .map(|g| (format!("g{g}"), group(self.draws.between(1, 4) as u32)))
            .collect::<BTreeMap<_, _>>();
        let timeout_ms = self.draws.between(5_000, 30_000);
        let run = run(groups, n, self.max_attempts, timeout_ms);
        let cid = codec::cid_of(&run);
        let execution = Execution { run: cid, orchestrator: self.orchs[o].peer.clone(), nonce: self.draws.bytes() };
        let submission = Submission { execution, run: KnownRun { cid, run } };
        let id = submission.execution.id();
        self.wanted.insert(n, id);
        self.submissions.insert(id, submission.clone());
        let Submission { execution, run } = submission;
        self.tell_core(o, Input::Submit { execution, run, by: peer(250), priority: 0 });
    }

    // Lablets.

    fn start_lablet(&mut self, l: usize) {
        let boot = self.draws.bytes();
        let unix_us = self.wall_us(&self.nodes[l].clock);
        let lab = self.lab.clone();
        let node = &mut self.nodes[l];
        if node.core.is_some() {
            return;
        }
        node.boot = boot;
        node.core = Some(Lablet::new(LabletConfig::new(node.peer.clone(), lab)));
        let promised = node.promised.clone().into_iter().collect();
        let cells = node.records.values().cloned().collect();
        let (promised_term, finished) = (node.term.clone(), node.finished.clone());
        let (machine, life) = (node.machine.clone(), node.life);
        self.tell_lablet(l, LabletInput::Wall { unix_us });
        self.tell_lablet(l, LabletInput::Restore { promised, cells, promised_term, finished });
        self.tell_lablet(l, LabletInput::Inventory(machine));
        self.after(MILLI, Event::Connect { l, life });
    }

    fn connect(&mut self, l: usize, life: u64) {
        self.next_session += 1;
        let (session, lab) = (self.next_session, self.lab.clone());
        let node = &mut self.nodes[l];
        let Some(core) = node.core.as_ref().filter(|_| node.life == life && node.session.is_none()) else { return };
        if node.greeting.is_some() {
            return;
        }
        let body = MemberToken {
            lab: lab.clone(),
            member: node.peer.clone(),
            role: Role::Lablet,
            expires: WallTime(u64::MAX),
        };
        let hello = Hello {
            token: Signed { body, signer: lab, signature: Vec::new() },
            version: "sim".into(),
            boot: node.boot,
            inventory: core.inventory(),
            cells: core.cells(),
            promised: core.promised_term().cloned(),
            finished: core.finished_executions(),
        };
        let (o, sent) = (node.target, node.clock.stamp(self.now));
        node.greeting = Some((o, session, sent));
        self.after(5 * MILLI, Event::Hello { o, l, session, hello: Box::new(hello) });
        self.after(2 * SECOND, Event::GiveUp { l, session });
    }

    fn tell_lablet(&mut self, l: usize, input: LabletInput) {
        let now = self.nodes[l].clock.stamp(self.now);
        let Some(core) = &mut self.nodes[l].core else { return };
        core.handle(now, input);
        let mut effects = Vec::new();
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = self.nodes[l].clock.when(at);
            self.at(at, Event::LabletTimer { l });
        }
        for effect in effects {
            self.lablet_effect(l, effect);
        }
    }

    fn lablet_effect(&mut self, l: usize, effect: LabletEffect) {
        let life = self.nodes[l].life;
        match effect {
            LabletEffect::Send { to, message } => {
                let Some((o, session)) = self.nodes[l].session.filter(|(o, _)| self.orchs[*o].peer == to) else {
                    return;
                };
                let promised = self.nodes[l].term.as_ref().map(|c| c.body.term.clone());
                let lablet = self.nodes[l].peer.clone();
                self.truth.obeys(&lablet, &to, promised.as_ref());
                for delay in self.fates() {
                    self.after(delay, Event::Up { o, l, session, message: Box::new(message.clone()) });
                }
            }
            LabletEffect::Promise(record) => {
                let node = &mut self.nodes[l];
                node.promised.insert(record.cell.execution, record.cell.epoch.clone());
                node.records.insert(record.cell.clone(), (record, Vec::new()));
            }
            LabletEffect::Prepare { cell, grant } => {
                self.nodes[l].cells.insert(cell.clone(), FakeCell::new(*grant));
                let takes = self.draws.between(1, 1500) * MILLI;
                self.after(takes, Event::Prepared { l, life, cell });
            }
            LabletEffect::Directory { .. } => {}
            LabletEffect::Start { cell } => self.start_cell(l, life, cell),
            LabletEffect::Stop { cell, reason } => {
                let Some(fake) = self.nodes[l].cells.get_mut(&cell) else { return };
                for instance in fake.running.clone() {
                    let (cell, exit) = (cell.clone(), Exit::Stopped { reason: reason.clone() });
                    let takes = self.draws.between(0, 200) * MILLI;
                    self.after(takes, Event::Ends { l, life, cell, instance, exit });
                }
            }
            LabletEffect::Seal { cell } => {
                let takes = self.draws.between(1, 40) * MILLI;
                self.after(takes, Event::Seal { l, life, cell });
            }
            LabletEffect::PromiseTerm(claim) => {
                let before = self.nodes[l].term.as_ref().map(|c| c.body.term.clone());
                self.truth
                    .check("term-back", before < Some(claim.body.term.clone()), || format!("{before:?} {claim:?}"));
                self.nodes[l].term = Some(claim);
            }
            LabletEffect::Turn { to } => {
                self.nodes[l].session = None;
                self.nodes[l].greeting = None;
                if let Some(o) = self.orch_of(&to) {
                    self.nodes[l].target = o;
                }
                self.after(10 * MILLI, Event::Connect { l, life });
            }
            LabletEffect::Tombstone { execution, result } => {
                self.nodes[l].finished.push(Finished { execution, result });
            }
            LabletEffect::Forget { cell } => {
                self.nodes[l].cells.remove(&cell);
                self.nodes[l].records.remove(&cell);
            }
        }
    }

    fn start_cell(&mut self, l: usize, life: u64, cell: CellRef) {
        let peer = self.nodes[l].peer.clone();
        let Some(fake) = self.nodes[l].cells.get_mut(&cell) else { return };
        fake.started = true;
        let (all, attempt) = (fake.instances(), fake.grant.attempt);
        fake.running = all.iter().cloned().collect();
        for instance in all {
            self.truth.started(cell.execution, instance.clone(), attempt, &peer, self.max_attempts);
            let takes = self.draws.between(1, 9_000) * MILLI;
            if self.draws.chance(950_000) {
                let (cell, exit) = (cell.clone(), Exit::Exited { code: 0 });
                self.after(takes, Event::Ends { l, life, cell, instance, exit });
            }
        }
    }

    fn seal(&mut self, l: usize, life: u64, cell: CellRef) {
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        let receipts = fake.receipts();
        let count = receipts.len() as u32;
        let named: Vec<(String, u32)> = receipts.iter().map(|r| (r.instance.to_string(), r.attempt)).collect();
        let shard = codec::cid_of(&(&cell, &node.peer, named));
        node.store.insert(shard, receipts);
        if let Some((_, shards)) = node.records.get_mut(&cell) {
            shards.push((shard, count));
        }
        self.tell_lablet(l, LabletInput::ShardSealed { cell, shard, count, last: true });
    }

    // Faults.

    fn fault(&mut self) {
        let count = self.orchs.len() as u64;
        let leader = self.leader().unwrap_or(0);
        let any = self.draws.between(0, count - 1) as usize;
        let o = if self.draws.chance(700_000) { leader } else { any };
        let l = self.draws.between(0, self.nodes.len() as u64 - 1) as usize;
        let long = self.draws.between(2, 25) * SECOND;
        match self.draws.between(0, 9) {
            0 | 1 => {
                let down = long;
                if self.draws.chance(500_000) {
                    self.orchs[o].dies_in_write = Some(down);
                } else {
                    self.crash_orchestrator(o, down);
                }
            }
            2 => self.crash_lablet(l, long),
            3 => self.orchs[o].frozen_until = self.orchs[o].frozen_until.max(self.now + long),
            4 | 5 => {
                // From the other orchestrators, in one direction or both.
                let (up, down) = [(true, true), (true, false), (false, true)][self.draws.between(0, 2) as usize];
                for other in (0..self.orchs.len()).filter(|other| *other != o) {
                    self.cut(o, other, long, up, down);
                }
                // And from some of the lablets.
                for l in 0..self.nodes.len() {
                    if self.draws.chance(500_000) {
                        self.cut(o, self.node(l), long, true, true);
                    }
                }
            }
            6 => {
                let (up, down) = [(true, true), (true, false), (false, true)][self.draws.between(0, 2) as usize];
                self.cut(o, self.node(l), long, up, down);
            }
            7 => {
                // A lablet is cut off from all.
                for o in 0..self.orchs.len() {
                    self.cut(o, self.node(l), long, true, true);
                }
            }
            8 => self.hand_over(leader, any),
            _ => self.forge(l),
        }
    }

    fn cut(&mut self, a: usize, b: usize, ms: u64, there: bool, back: bool) {
        let until = self.now + ms;
        if there {
            self.cuts.push((a, b, until));
        }
        if back {
            self.cuts.push((b, a, until));
        }
        if let Some(l) = b.checked_sub(self.orchs.len()) {
            let hears = self.draws.between(0, 8 * SECOND);
            if let Some((_, session)) = self.nodes[l].session.filter(|(o, _)| *o == a) {
                self.after(hears, Event::LabletHears { l, session });
            }
            if let Some(session) = self.orchs[a].sessions.get(&self.nodes[l].peer).copied() {
                let hears = self.draws.between(0, 8 * SECOND);
                self.after(hears, Event::OrchestratorHears { o: a, l, session });
            }
        }
    }

    fn crash_orchestrator(&mut self, o: usize, down: u64) {
        if self.orchs[o].candidate.is_none() {
            return;
        }
        self.drop_core(o);
        self.orchs[o].candidate = None;
        self.orchs[o].frozen_until = 0;
        self.after(down, Event::StartOrchestrator { o });
    }

    fn crash_lablet(&mut self, l: usize, down: u64) {
        let node = &mut self.nodes[l];
        if node.core.is_none() {
            return;
        }
        node.core = None;
        node.life += 1;
        node.greeting = None;
        node.cells.clear();
        if let Some((o, session)) = node.session.take() {
            let hears = self.draws.between(0, 5 * SECOND);
            self.after(hears, Event::OrchestratorHears { o, l, session });
        }
        self.after(down, Event::StartLablet { l });
    }

    fn hand_over(&mut self, from: usize, to: usize) {
        let ready = from != to
            && self.orchs[from].core.is_some()
            && self.orchs[from].frozen_until <= self.now
            && self.orchs[to].candidate.as_ref().is_some_and(|c| c.term() == self.orchs[from].term.as_ref())
            && self.orchs[to].frozen_until <= self.now
            && !self.is_cut(from, to)
            && !self.is_cut(to, from);
        if !ready {
            return;
        }
        // It stops, and everything that it wrote is there before the other one leads.
        let (peer, term, logs) =
            (self.orchs[from].peer.clone(), self.orchs[from].term.clone(), self.orchs[from].logs.clone());
        let handed = self.orchs[from].reconciled;
        self.drop_core(from);
        self.orchs[to].logs.extend(logs);
        let store = self.orchs[from].store.clone();
        self.orchs[to].store.extend(store);
        if handed {
            self.tell_candidate(to, CandidateInput::HandedOver { from: peer, term });
        }
        if let Some(term) = self.orchs[to].term.clone() {
            self.tell_candidate(from, CandidateInput::Heard { term });
        }
        if !handed {
            self.crash_orchestrator(from, SECOND);
        }
    }

    /// A lablet speaks of what another one holds.
    fn forge(&mut self, l: usize) {
        let Some((o, session)) = self.nodes[l].session else { return };
        let cells: Vec<CellRef> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(n, _)| *n != l)
            .flat_map(|(_, n)| n.records.keys().cloned())
            .collect();
        self.truth.at(Point::Forged);
        let own: BTreeSet<CellRef> = self.nodes[l].records.keys().cloned().collect();
        for cell in cells.into_iter().filter(|cell| !own.contains(cell)) {
            let shard = codec::cid_of(&"forged");
            let high = CellRef { epoch: Epoch { counter: u64::MAX, ..cell.epoch.clone() }, ..cell.clone() };
            for message in [
                ToOrchestrator::Accept(cell.clone()),
                ToOrchestrator::Prepared(cell.clone()),
                ToOrchestrator::Refuse(cell.clone(), "forged".into()),
                ToOrchestrator::Unfit(high.clone(), "forged".into()),
                ToOrchestrator::Receipts(ReceiptsReady { cell: cell.clone(), shard, count: 9 }),
                ToOrchestrator::Started(high),
            ] {
                self.after(MILLI, Event::Up { o, l, session, message: Box::new(message) });
            }
        }
    }
}
