//! Orchestrators, lablets and what happens between them, in virtual time.
//!
//! [`candidacy`] says who leads, [`leading`] and [`lablet`] carry out the effects of the cores as drivers do,
//! [`session`] has what passes between the two, [`following`] keeps facts with those who follow, [`noting`] looks at each
//! fact, [`submitting`] has the people, [`faults`] breaks things.

mod candidacy;
mod event;
mod faults;
mod following;
mod lablet;
mod leading;
mod node;
mod noting;
mod session;
mod submitting;

use std::collections::{BTreeMap, BinaryHeap};

use iptl_dag::PeerId;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Epoch, ExecutionId};
use iptl_scheduler::lablet::LabletInput;
use iptl_scheduler::{Candidate, CandidateInput, Input, Lablet, Orchestrator, Submission};
use iptl_wire::lab::Certificate;
use iptl_wire::takeover::{Claim, Finished};
use iptl_wire::{Verified, WallTime};

use super::truth::Truth;
use super::{Point, Report, Schedule};
use crate::clock::Clock;
use crate::event::Queued;
use crate::network::Draws;
use crate::world::lab::peer;
use crate::world::{MILLI, SECOND};
use event::{Event, Place};
use node::{Node, Orch};

/// Virtual time in which everything must have ended after faults stopped, in seconds.
const LIVENESS_S: u64 = 200;

/// Silence after which the first candidate claims, and how much longer each other waits, in milliseconds.
const SILENCE_MS: u64 = 5_000;
const STEP_MS: u64 = 2_500;

/// Most events of a schedule, for each lablet beyond ten the more: what takes more is taken to spin.
const MAX_EVENTS: u64 = 400_000;

/// A lab with several orchestrators in virtual time.
#[derive(Debug)]
pub struct World {
    schedule: Schedule,
    now: u64,
    events: BinaryHeap<Queued<Event>>,
    next: u64,
    next_session: u64,
    count: u64,
    trace: u64,
    /// Draws of the network.
    fate: Draws,
    /// Draws of work: durations, what fails.
    work: Draws,
    lab: PeerId,
    orchs: Vec<Orch>,
    nodes: Vec<Node>,
    index: BTreeMap<PeerId, usize>,
    /// From node, to node, until when: orchestrators first, then lablets.
    cuts: BTreeMap<(usize, usize), u64>,
    submissions: BTreeMap<ExecutionId, Submission>,
    wanted: BTreeMap<usize, ExecutionId>,
    truth: Truth,
    settled: bool,
    ended: BTreeMap<&'static str, u32>,
    told: Option<Vec<String>>,
}

impl World {
    /// Makes the lab of a schedule.
    pub fn new(schedule: Schedule) -> World {
        let (seed, profile) = (schedule.seed, &schedule.profile);
        let nodes: Vec<Node> = (0..profile.lablets).map(|n| Node::new(seed, n, profile.drift_ppm)).collect();
        let mut world = World {
            now: SECOND,
            events: BinaryHeap::new(),
            next: 0,
            next_session: 0,
            count: 0,
            trace: 0,
            fate: Draws::new(seed, 77),
            work: Draws::new(seed, 78),
            lab: peer(255),
            orchs: (0..profile.orchestrators).map(|n| Orch::new(seed, n, profile.drift_ppm)).collect(),
            index: nodes.iter().enumerate().map(|(l, node)| (node.peer.clone(), l)).collect(),
            nodes,
            cuts: BTreeMap::new(),
            submissions: BTreeMap::new(),
            wanted: BTreeMap::new(),
            truth: Truth::default(),
            settled: false,
            ended: BTreeMap::new(),
            told: None,
            schedule,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for o in 0..self.orchs.len() {
            self.after(0, Event::StartOrchestrator { o });
        }
        for l in 0..self.nodes.len() {
            let late = Draws::new(self.schedule.seed, 20_000 + l as u64).between(0, 3 * SECOND);
            self.after(late, Event::StartLablet { l });
        }
        for n in 0..self.schedule.submissions.len() {
            self.at(self.schedule.submissions[n].at_ms * MILLI, Event::Submit { n });
        }
        for n in 0..self.schedule.faults.len() {
            self.at(self.schedule.faults[n].at_ms * MILLI, Event::Fault { n });
        }
        self.after(SECOND, Event::Beats);
    }

    /// Keeps every event as text from now on.
    pub fn tell(&mut self) {
        self.told = Some(Vec::new());
    }

    /// Takes what was told since the last call.
    pub fn told(&mut self) -> Vec<String> {
        self.told.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Runs until everything has ended, or should have.
    pub fn run(mut self) -> Report {
        while self.step() {}
        self.report()
    }

    /// Takes in the next event; false where nothing more is to come.
    pub fn step(&mut self) -> bool {
        let bound = (self.schedule.profile.faults_until_s + LIVENESS_S) * SECOND;
        let most = MAX_EVENTS.max(MAX_EVENTS / 10 * self.nodes.len() as u64);
        let next = self.events.pop().filter(|queued| queued.at <= bound && self.count <= most);
        let Some(Queued { at, event, .. }) = next else {
            self.end();
            return false;
        };
        self.now = at;
        if let Some(until) = self.stands_still(&event) {
            self.at(until, event);
            return true;
        }
        self.count += 1;
        self.record(&event);
        self.take(event);
        self.settled =
            !self.faulty() && self.count.is_multiple_of(32) && self.truth.violations.is_empty() && self.is_settled();
        let over = self.settled || !self.truth.violations.is_empty();
        if over {
            self.end();
        }
        !over
    }

    /// Says what the schedule came to.
    pub fn report(self) -> Report {
        Report {
            seed: self.schedule.seed,
            events: self.count,
            virtual_ms: self.now / MILLI,
            trace: self.trace,
            reached: self.truth.reached,
            ended: self.ended,
            violations: self.truth.violations,
        }
    }

    fn record(&mut self, event: &Event) {
        let place = match event.place() {
            Place::Orchestrator(o) => o as u64,
            Place::Lablet(l) => 1_000 + l as u64,
            Place::Outside => 999,
        };
        for part in [self.now, event.kind(), place] {
            self.trace = (self.trace ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        if let Some(told) = &mut self.told {
            let text: String = format!("{event:?}").chars().take(400).collect();
            told.push(format!("{:>10.6} {text}", self.now as f64 / SECOND as f64));
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |o: &usize| self.orchs[*o].core.is_some();
        (0..self.orchs.len()).filter(leads).max_by_key(|o| self.orchs[*o].term.clone())
    }

    /// Whether everything that can end has, everybody agrees who leads, and nobody keeps what is over.
    fn is_settled(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (term, core) = (&self.orchs[leader].term, &self.orchs[leader].core);
        let over = |id: &ExecutionId| self.orchs[leader].ends.contains_key(id);
        self.orchs.iter().filter(|o| o.core.is_some()).count() == 1
            && self.nodes.iter().all(|n| n.session.is_some_and(|(o, _)| o == leader))
            && self.orchs.iter().all(|o| o.candidate.as_ref().is_some_and(|c| c.term() == term.as_ref()))
            && self.wanted.len() == self.schedule.submissions.len()
            && self.told_otherwise().is_none()
            && core.as_ref().is_some_and(|c| c.executions().is_empty())
            && self.orchs[leader].is_idle()
            && self.nodes.iter().all(|n| !n.records.keys().any(|cell| over(&cell.execution)))
    }

    /// Returns an end that somebody tells although one of a later term is known. Of what nobody told who leads each tells
    /// what it knows.
    fn told_otherwise(&self) -> Option<(PeerId, &Finished, &Finished)> {
        let leader = self.leader();
        let is_known = |end: &&Finished| leader.is_none_or(|l| self.orchs[l].ends.contains_key(&end.execution));
        self.orchs.iter().find_map(|o| {
            let by_core = |end: &Finished| match &o.core {
                Some(core) => core.result(&end.execution).is_none_or(|result| result == end.result),
                None => true,
            };
            let told =
                o.ends.values().filter(is_known).map(|told| (told, self.truth.end(&told.execution).unwrap_or(told)));
            let mut wrong = told.filter(|(told, counts)| told != counts || !by_core(counts));
            wrong.next().map(|(told, counts)| (o.peer.clone(), told, counts))
        })
    }

    /// Looks at what is left when a schedule is over.
    fn end(&mut self) {
        if !self.truth.violations.is_empty() {
            return;
        }
        let leader = self.leader();
        let otherwise = self.told_otherwise().map(|told| format!("{told:?}"));
        self.truth.check("later-end", otherwise.is_none(), || otherwise.unwrap_or_default());
        if !self.settled {
            let view = leader.and_then(|o| self.orchs[o].core.as_ref()).map(Orchestrator::executions);
            let who: Vec<_> = self.orchs.iter().map(|o| (o.peer.short(), o.term.clone(), o.core.is_some())).collect();
            let elsewhere = self.nodes.iter().filter(|n| n.session.is_none_or(|(o, _)| Some(o) != leader));
            let at: Vec<_> = elsewhere.map(|n| (n.peer.short(), n.session, n.target, n.core.is_some())).collect();
            let over = |id: &ExecutionId| leader.is_some_and(|o| self.orchs[o].ends.contains_key(id));
            let kept: Vec<_> = self
                .nodes
                .iter()
                .flat_map(|n| n.records.keys().map(|cell| (n.peer.short(), cell)))
                .filter(|(_, cell)| over(&cell.execution))
                .map(|(name, cell)| format!("{name} keeps {cell:?}"))
                .collect();
            let count = self.count;
            let what = format!("{view:?} {who:?} {at:?} {kept:?} after {count} events");
            self.truth.check("liveness", false, || what);
        }
        let mut ended: BTreeMap<&'static str, u32> = BTreeMap::new();
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
        let settled = self.settled;
        self.truth.check("liveness", lost == 0 || !settled, || format!("{lost} executions never ended"));
        self.ended = ended;
    }

    /// Returns when a node that stands still takes an event in.
    fn stands_still(&self, event: &Event) -> Option<u64> {
        let until = match event.place() {
            Place::Orchestrator(o) => self.orchs[o].machine.frozen_until,
            Place::Lablet(l) => self.nodes[l].machine.frozen_until,
            Place::Outside => 0,
        };
        (until > self.now).then_some(until)
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next += 1;
        self.events.push(Queued { at: time.max(self.now), order: self.next, event });
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn faulty(&self) -> bool {
        self.now < self.schedule.profile.faults_until_s * SECOND
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now)
    }

    fn node(&self, l: usize) -> usize {
        self.orchs.len() + l
    }

    /// Delays of each copy of a message that arrives: none where it is lost.
    fn fates(&mut self) -> Vec<u64> {
        let faulty = self.faulty();
        let (loss, double) = (self.schedule.profile.loss_ppm, self.schedule.profile.double_ppm);
        if faulty && self.fate.chance(loss) {
            return Vec::new();
        }
        let mut copies = Vec::new();
        let count = if faulty && self.fate.chance(double) { 2 } else { 1 };
        for _ in 0..count {
            let late = faulty && self.fate.chance(self.schedule.profile.late_ppm);
            let most = if late { 9_000 } else { 60 };
            copies.push(self.fate.between(1, most) * MILLI);
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
        self.index.get(peer).copied()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Up { o, l, session, message } => self.hears_up(o, l, session, *message),
            Event::Down { l, o, session, message } => self.hears_down(l, o, session, *message),
            Event::Hello { o, l, session, hello } => self.hello(o, l, session, *hello),
            Event::Welcome { l, o, session, welcome } => self.welcomed(l, o, session, *welcome),
            Event::Elsewhere { l, session } | Event::GiveUp { l, session } => self.turned_away(l, session),
            Event::Connect { l, life } => self.connect(l, life),
            Event::LabletHears { l, session } => self.lablet_hears(l, session),
            Event::OrchestratorHears { o, l, session } => self.orchestrator_hears(o, l, session),
            Event::CoreTimer { o } => self.core_timer(o),
            Event::CandidateTimer { o } => self.candidate_timer(o),
            Event::LabletTimer { l } => self.lablet_timer(l),
            Event::FactsDurable { o, life } => {
                if self.orchs[o].life == life {
                    self.commit_facts(o);
                    self.pump_core(o);
                }
            }
            Event::Pull { o, life, execution, lablet, shard } => self.pull(o, life, execution, *lablet, shard),
            Event::Assemble { o, life, execution, accepted, missing } => {
                self.assembled(o, life, execution, accepted, missing);
            }
            Event::WriteDurable { l, life } => self.write_durable(l, life),
            Event::Prepared { l, life, cell } => self.prepared(l, life, *cell),
            Event::Ends { l, life, cell, instance, exit } => self.instance_ends(l, life, *cell, *instance, *exit),
            Event::Seal { l, life, cell } => self.seal(l, life, *cell),
            Event::Undrain { l } => {
                self.nodes[l].draining = false;
                self.tell_lablet(l, LabletInput::Undrain);
            }
            Event::Beats => self.beats(),
            Event::Beat { to, from, term, beat, said } => self.beat(to, from, term, beat, &said),
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
            Event::Offer { l, offer } => {
                self.tell_lablet(l, LabletInput::Offer(Verified::vouch((*offer).clone())));
            }
            Event::Submit { n } => self.submit(n),
            Event::Cancel { n } => self.cancel(n),
            Event::Fault { n } => self.fault(n),
            Event::StartOrchestrator { o } => self.start_orchestrator(o),
            Event::StartLablet { l } => self.start_lablet(l),
        }
    }

    fn core_timer(&mut self, o: usize) {
        if self.orchs[o].core_timer.is_none_or(|at| at > self.now) {
            return;
        }
        self.orchs[o].core_timer = None;
        let now = self.orchs[o].clock.stamp(self.now);
        match self.orchs[o].core.as_ref().and_then(Orchestrator::poll_timeout) {
            Some(at) if at <= now => self.tell_core(o, Input::Timeout),
            Some(_) => self.drain_core(o),
            None => {}
        }
    }

    fn lablet_timer(&mut self, l: usize) {
        if self.nodes[l].timer.is_none_or(|at| at > self.now) {
            return;
        }
        self.nodes[l].timer = None;
        let now = self.nodes[l].clock.stamp(self.now);
        match self.nodes[l].core.as_ref().and_then(Lablet::poll_timeout) {
            Some(at) if at <= now => self.tell_lablet(l, LabletInput::Timeout),
            Some(_) => self.drain_lablet(l),
            None => {}
        }
    }

    fn candidate_timer(&mut self, o: usize) {
        if self.orchs[o].candidate_timer.is_none_or(|at| at > self.now) {
            return;
        }
        self.orchs[o].candidate_timer = None;
        let now = self.orchs[o].clock.stamp(self.now);
        match self.orchs[o].candidate.as_ref().and_then(Candidate::poll_timeout) {
            Some(at) if at <= now => {
                let stood_still = now.since(at) > candidacy::STANDSTILL;
                let input = if stood_still { CandidateInput::StoodStill } else { CandidateInput::Timeout };
                self.tell_candidate(o, input);
            }
            Some(_) => self.drain_candidate(o),
            None => {}
        }
    }
}
