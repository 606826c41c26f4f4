//! The lab in virtual time: the queue of events, and what each of them does.
//!
//! [`orchestrator`] and [`lablet`] carry out the effects of the cores as drivers do, [`faults`] breaks things, [`lab`]
//! says which machines there are and what is submitted, [`meeting`] has the barriers of runs whose instances meet.

mod faults;
pub(crate) mod lab;
mod lablet;
mod meeting;
mod orchestrator;

use std::collections::{BTreeMap, BinaryHeap};

use iptl_dag::PeerId;
use iptl_scheduler::Input;
use iptl_scheduler::OrchestratorConfig;
use iptl_scheduler::lablet::LabletInput;
use iptl_wire::session::{ToLablet, ToOrchestrator};
use iptl_wire::{Timestamp, Verified};

use crate::event::{Event, Place, Queued};
use crate::heard::Heard;
use crate::lablet::LabletNode;
use crate::model::{Model, Violation};
use crate::network::Draws;
use crate::orchestrator::OrchestratorNode;
use crate::prefixes::{self, Opened};
use crate::reach::{Point, Reached};
use crate::schedule::Schedule;

pub use lab::crowd;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MILLI: u64 = 1_000_000;
pub(crate) const MICRO: u64 = 1_000;

/// Wall time at the start of every schedule, in microseconds since 1970.
const WALL_START_US: u64 = 1_800_000_000_000_000;

/// Virtual time in which every execution must have ended after faults stopped, in seconds: a wait for capacity, one
/// for preparation, the run's own time and the grace periods.
const LIVENESS_S: u64 = 240;

/// Events at one instant after which a timer is taken to spin.
const MAX_EVENTS_AT_ONCE: u32 = 50_000;

/// What a schedule came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events.
    pub events: u64,
    /// Virtual time at its end in milliseconds.
    pub virtual_ms: u64,
    /// Hash over all events.
    pub trace: u64,
    /// Executions by how they ended.
    pub ended: BTreeMap<String, u32>,
    /// Points that were reached.
    pub reached: Reached,
    /// What was found wrong.
    pub violations: Vec<Violation>,
}

/// A lab in virtual time.
#[derive(Debug)]
pub struct World {
    schedule: Schedule,
    now: u64,
    events: BinaryHeap<Queued<Event>>,
    next_event: u64,
    next_session: u64,
    orchestrator: OrchestratorNode,
    lablets: Vec<LabletNode>,
    index: BTreeMap<PeerId, usize>,
    lab: PeerId,
    /// Draws of the network.
    fate: Draws,
    /// Draws of work: durations, sizes.
    work: Draws,
    /// Draws of sync.
    sync: Draws,
    /// When the last message of each stream arrives, by lablet, session and direction; none where one was lost.
    streams: BTreeMap<(usize, u64, bool), Option<u64>>,
    model: Model,
    reached: Reached,
    trace: u64,
    count: u64,
    instant: u64,
    at_once: u32,
    /// Events as text, where somebody reads them.
    told: Option<Vec<String>>,
    /// What cores were told, where somebody wants to tell it again.
    heard: Option<Heard>,
}

impl World {
    /// Makes the lab of a schedule.
    pub fn new(schedule: Schedule) -> World {
        let seed = schedule.seed;
        let lab = lab::peer(255);
        let mut config = OrchestratorConfig::new(lab::peer(254), lab.clone(), "sim".into());
        config.prepare_timeout_ms = 20_000;
        config.seed = seed;
        let lablets: Vec<_> = (0..schedule.profile.lablets).map(|n| lab::machine(&schedule, n)).collect();
        let index = lablets.iter().enumerate().map(|(n, node)| (node.peer.clone(), n)).collect();
        let mut orchestrator = OrchestratorNode::new(config);
        orchestrator.clock = lab::clock(&schedule, u32::MAX);
        let mut world = World {
            now: SECOND,
            events: BinaryHeap::new(),
            next_event: 0,
            next_session: 0,
            orchestrator,
            lablets,
            index,
            lab,
            fate: Draws::new(seed, 1),
            work: Draws::new(seed, 2),
            sync: Draws::new(seed, 3),
            streams: BTreeMap::new(),
            model: Model::new(schedule.is_gentle()),
            reached: Reached::default(),
            trace: 0,
            count: 0,
            instant: 0,
            at_once: 0,
            told: None,
            heard: None,
            schedule,
        };
        world.begin();
        world
    }

    /// Keeps every event as text from now on.
    pub fn tell(&mut self) {
        self.told = Some(Vec::new());
    }

    /// Takes what was told since the last call.
    pub fn told(&mut self) -> Vec<String> {
        self.told.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Runs until everything has ended, and returns what the cores were told.
    pub fn hear(mut self) -> Heard {
        self.heard = Some(Heard::default());
        while self.step() {}
        self.heard.unwrap_or_default()
    }

    fn begin(&mut self) {
        self.at(self.now, Event::StartOrchestrator);
        for lablet in 0..self.lablets.len() {
            let mut draws = Draws::new(self.schedule.seed, 20_000 + lablet as u64);
            let late = if draws.chance(200_000) { 10 * SECOND } else { SECOND };
            self.at(self.now + draws.between(0, late), Event::StartLablet { lablet });
        }
        for n in 0..self.schedule.submissions.len() {
            self.at(self.schedule.submissions[n].at_ms * MILLI, Event::Submit(n as u32));
        }
        for n in 0..self.schedule.faults.len() {
            self.at(self.schedule.faults[n].at_ms * MILLI, Event::Fault(n));
        }
    }

    /// Runs until everything has ended, or should have.
    pub fn run(mut self) -> Report {
        while self.step() {}
        self.report()
    }

    /// Runs until everything has ended, then opens all logs at every prefix, with a snapshot at every place in it.
    ///
    /// # Errors
    ///
    /// What differs from the state that all facts of a prefix leave, for people.
    pub fn open_logs(mut self) -> Result<Opened, String> {
        while self.step() {}
        prefixes::open_all(&self.orchestrator)
    }

    /// Takes in the next event; false where nothing more is to come.
    pub fn step(&mut self) -> bool {
        let bound = (self.schedule.profile.faults_until_s + LIVENESS_S) * SECOND;
        let Some(Queued { at, event, .. }) = self.events.pop().filter(|queued| queued.at <= bound) else {
            self.model.finish(self.now, &self.lablets);
            self.check_all_ended();
            return false;
        };
        self.now = at;
        if let Some(thaws) = self.stands_still(&event) {
            self.at(thaws, event);
            return true;
        }
        self.at_once = if at == self.instant { self.at_once + 1 } else { 0 };
        self.instant = at;
        self.count += 1;
        self.record(&event);
        self.take(event);
        if self.at_once > MAX_EVENTS_AT_ONCE {
            self.model.violated("timer-spins", "time stands still: a timer spins".into());
        }
        if self.count.is_multiple_of(64) {
            self.look_around();
        }
        let over = !self.model.violations.is_empty() || self.done();
        if over {
            self.model.finish(self.now, &self.lablets);
        }
        !over
    }

    /// Returns when a node that stands still takes an event in.
    fn stands_still(&self, event: &Event) -> Option<u64> {
        let until = match event.place() {
            Place::Orchestrator => self.orchestrator.frozen_until,
            Place::Lablet(lablet) => self.lablets[lablet].frozen_until,
            Place::Outside => 0,
        };
        (until > self.now).then_some(until)
    }

    /// Says what the schedule came to.
    pub fn report(self) -> Report {
        let mut ended = BTreeMap::new();
        for how in self.model.ended.values() {
            *ended.entry(how.clone()).or_insert(0) += 1;
        }
        let mut reached = self.reached;
        reached.add(&self.model.reached);
        Report {
            seed: self.schedule.seed,
            events: self.count,
            virtual_ms: self.now / MILLI,
            trace: self.trace,
            ended,
            reached,
            violations: self.model.violations,
        }
    }

    fn check_all_ended(&mut self) {
        for n in 0..self.schedule.submissions.len() {
            let id = self.submission(n as u32).execution.id();
            if !self.model.ended.contains_key(&id) {
                let views = self.orchestrator.core.as_ref().map(|c| c.executions()).unwrap_or_default();
                let phase = views.into_iter().find(|v| v.execution == id).map(|v| v.phase);
                let phase = phase.unwrap_or_else(|| "unknown".into());
                self.model.violated("liveness", format!("{} did not end: {phase}", id.alias()));
            }
        }
    }

    fn done(&self) -> bool {
        self.now > self.schedule.profile.faults_until_s * SECOND
            && self.model.ended.len() >= self.schedule.submissions.len()
            && self.orchestrator.core.as_ref().is_some_and(|c| c.executions().is_empty())
    }

    /// Nobody waits in silence, and nobody keeps what is over.
    fn look_around(&mut self) {
        self.model.left(self.now, &self.orchestrator, &self.lablets);
        let Some(core) = &self.orchestrator.core else { return };
        let (mut behind, mut kept_alone, mut wants_alone) = (false, false, false);
        let mut silent = Vec::new();
        for view in core.executions() {
            behind |= view.phase.contains("behind");
            kept_alone |= view.phase.contains("are kept for a run alone");
            wants_alone |= view.phase.contains("where nothing else runs");
            if view.phase == "waiting" {
                silent.push(view.execution.alias());
            }
        }
        for (point, there) in
            [(Point::Queued, behind), (Point::KeptAlone, kept_alone), (Point::WantsAlone, wants_alone)]
        {
            if there {
                self.reached.at(point);
            }
        }
        for alias in silent {
            self.model.violated("silence", format!("{alias} waits and nobody says for what"));
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Queued { at: time.max(self.now), order: self.next_event, event });
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn record(&mut self, event: &Event) {
        let (kind, what) = event.tag();
        for part in [self.now, kind, what] {
            self.trace = (self.trace ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        if let Some(told) = &mut self.told {
            told.push(format!("{:>10.6} {event:?}", self.now as f64 / SECOND as f64));
        }
    }

    fn faulty(&self) -> bool {
        self.now < self.schedule.profile.faults_until_s * SECOND
    }

    fn orchestrator_stamp(&self) -> Timestamp {
        self.orchestrator.clock.stamp(self.now)
    }

    fn true_wall_us(&self) -> u64 {
        WALL_START_US + self.now / MICRO
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Submit(n) => self.submit(n),
            Event::Cancel(execution) => self.tell_orchestrator(Input::Cancel { execution, by: lab::peer(253) }),
            Event::Fault(n) => self.fault(n),
            Event::ToOrchestrator { lablet, session, message } => {
                let from = self.lablets[lablet].peer.clone();
                let is_cut = self.lablets[lablet].cut_up(self.now);
                let current = self.orchestrator.sessions.get(&from) == Some(&session);
                match *message {
                    ToOrchestrator::Sync(..) if is_cut || !current => self.stream_broke(lablet, session, true),
                    _ if !current => self.reached.at(Point::OldSession),
                    _ if is_cut => {}
                    ToOrchestrator::Sync(execution, up) => {
                        if !self.is_stream_broken(lablet, session, true) {
                            self.hears_up(&from, execution, up);
                        }
                    }
                    message => self.tell_orchestrator(Input::Message { from, message: Verified::vouch(message) }),
                }
            }
            Event::ToLablet { lablet, session, life, message } => {
                let node = &self.lablets[lablet];
                let hears = node.life == life && node.session == Some(session) && !node.cut_down(self.now);
                match *message {
                    ToLablet::Sync(..) if !hears => self.stream_broke(lablet, session, false),
                    ToLablet::Sync(execution, down) if !self.is_stream_broken(lablet, session, false) => {
                        self.hears_down(lablet, execution, down);
                    }
                    ToLablet::Sync(..) => {}
                    message if hears => {
                        let from = self.orchestrator.peer.clone();
                        self.tell_lablet(lablet, LabletInput::Message { from, message: Verified::vouch(message) });
                    }
                    _ => {}
                }
            }
            Event::Gossip { lablet, life, offer } => {
                if self.lablets[lablet].life == life && !self.lablets[lablet].cut_down(self.now) {
                    self.tell_lablet(lablet, LabletInput::Offer(Verified::vouch(*offer)));
                }
            }
            Event::Connect { lablet, life } => self.connect(lablet, life),
            Event::HelloArrives { lablet, life, session, hello } => {
                if self.lablets[lablet].cut_up(self.now) || self.orchestrator.core.is_none() {
                    // The dial fails; it is tried again.
                    self.after(SECOND, Event::LabletHears { lablet, life, session });
                    return;
                }
                let from = self.lablets[lablet].peer.clone();
                self.tell_orchestrator(Input::Hello { from, session, hello: Verified::vouch(*hello) });
            }
            Event::WelcomeArrives { lablet, life, session, welcome } => self.welcomed(lablet, life, session, *welcome),
            Event::Turned { lablet, life, session } => {
                self.reached.at(Point::Turned);
                self.lablet_hears(lablet, life, session);
            }
            Event::LabletHears { lablet, life, session } => self.lablet_hears(lablet, life, session),
            Event::GiveUpHello { lablet, life, session } => {
                let node = &mut self.lablets[lablet];
                if node.life == life && node.greeting.is_some_and(|(s, _)| s == session) {
                    node.greeting = None;
                    self.after(MILLI, Event::Connect { lablet, life });
                }
            }
            Event::OrchestratorHears { lablet, session } => {
                let from = self.lablets[lablet].peer.clone();
                if self.orchestrator.sessions.get(&from) == Some(&session) {
                    self.orchestrator.sessions.remove(&from);
                    self.session_is_over(&from);
                    self.tell_orchestrator(Input::Gone { from, session });
                }
            }
            Event::OrchestratorTimer => {
                if self.orchestrator.timer.is_some_and(|at| at <= self.now) {
                    self.orchestrator.timer = None;
                    self.tell_orchestrator(Input::Timeout);
                }
            }
            Event::LabletTimer { lablet } => {
                if self.lablets[lablet].timer.is_some_and(|at| at <= self.now) {
                    self.lablets[lablet].timer = None;
                    self.tell_lablet(lablet, LabletInput::Timeout);
                }
            }
            Event::FactsDurable { life } => {
                if self.orchestrator.life == life && self.orchestrator.core.is_some() {
                    self.commit_facts();
                    self.pump_orchestrator();
                }
            }
            Event::PullDone { life, execution, lablet, shard } => self.pull_done(life, execution, *lablet, shard),
            Event::AssembleDone { life, execution, accepted, missing } => {
                self.assemble_done(life, execution, accepted, missing);
            }
            Event::PromiseDurable { lablet, life } => {
                if self.lablets[lablet].life == life && self.lablets[lablet].core.is_some() {
                    self.commit_promise(lablet);
                    self.pump_lablet(lablet);
                }
            }
            Event::PrepareDone { lablet, life, cell } => self.prepare_done(lablet, life, *cell),
            Event::InstanceEnds { lablet, life, cell, instance, exit } => {
                self.instance_ends(lablet, life, *cell, *instance, *exit);
            }
            Event::SealDone { lablet, life, cell } => self.seal_done(lablet, life, *cell),
            Event::Comes { lablet, life, cell, instance } => self.comes(lablet, life, &cell, *instance),
            Event::Look { life } => self.look_at_barriers(life),
            Event::StartOrchestrator => self.start_orchestrator(),
            Event::StartLablet { lablet } => self.start_lablet(lablet),
            Event::Undrain { lablet } => self.tell_lablet(lablet, LabletInput::Undrain),
        }
    }
}
