//! The lab in virtual time: events, drivers, faults.

use std::collections::BTreeMap;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{
    Counts, Engine, Execution, ExecutionId, Exit, Fact, FactKind, GroupRun, InstanceId, LossPolicy, Network,
    Requirements, Resources, ResultVerdict, Run, WorkloadKind,
};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::lablet::{LabletConfig, LabletEffect, LabletInput};
use iptl_scheduler::{AssembledResult, Effect, Input, Lablet, Orchestrator, OrchestratorConfig, Submission};
use iptl_wire::lab::{Certificate, MemberToken, Role};
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Hello, Inventory, KnownRun, Slots, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::{Timestamp, Verified, WallTime};

use crate::Profile;
use crate::lablet::{FakeCell, LabletNode};
use crate::model::Model;
use crate::network::Draws;
use crate::orchestrator::OrchestratorNode;

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
const MICRO: u64 = 1_000;

/// Wall time at the start of every schedule, in microseconds since 1970.
const WALL_START_US: u64 = 1_800_000_000_000_000;

/// Virtual time in which every execution must have ended after faults stopped, in seconds: a wait for capacity, one
/// for preparation, the run's own time and the grace periods.
const LIVENESS_S: u64 = 240;

/// Events at one instant after which a timer is taken to spin.
const MAX_EVENTS_AT_ONCE: u32 = 20_000;

#[derive(Debug)]
enum Event {
    Submit(u32),
    Cancel(ExecutionId),
    ToOrchestrator { lablet: usize, session: u64, message: Box<ToOrchestrator> },
    ToLablet { lablet: usize, session: u64, life: u64, message: Box<ToLablet> },
    Gossip { lablet: usize, life: u64, offer: Offer },
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
    PullDone { life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid },
    AssembleDone { life: u64, execution: ExecutionId, accepted: u64, missing: u64 },
    PromiseDurable { lablet: usize, life: u64 },
    PrepareDone { lablet: usize, life: u64, cell: CellRef },
    InstanceEnds { lablet: usize, life: u64, cell: CellRef, instance: InstanceId, exit: Exit },
    SealDone { lablet: usize, life: u64, cell: CellRef },
    CrashOrchestrator,
    StartOrchestrator,
    CrashLablet { lablet: usize },
    StartLablet { lablet: usize },
    Cut { lablet: usize, until: u64 },
    Heal { lablet: usize },
}

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
    pub trace: String,
    /// Executions by how they ended.
    pub ended: BTreeMap<String, u32>,
    /// What was found wrong.
    pub violations: Vec<String>,
}

/// A lab in virtual time.
#[derive(Debug)]
pub struct World {
    seed: u64,
    profile: Profile,
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    next_session: u64,
    orchestrator: OrchestratorNode,
    lablets: Vec<LabletNode>,
    lab: PeerId,
    /// Draws of the network and of faults.
    fate: Draws,
    /// Draws of work: durations, sizes.
    work: Draws,
    model: Model,
    trace: blake3::Hasher,
    count: u64,
    /// Whether to print every event.
    verbose: bool,
}

/// Runs one schedule to its end.
pub fn run_seed(seed: u64) -> Report {
    World::new(seed, false).run()
}

impl World {
    /// Makes the lab of a seed.
    pub fn new(seed: u64, verbose: bool) -> World {
        let mut setup = Draws::new(seed, 0);
        let profile = Profile::of_seed(seed, &mut setup);
        let lab = peer(255);
        let mut config = OrchestratorConfig::new(peer(254), lab.clone(), "sim".into());
        config.prepare_timeout_ms = 20_000;
        config.seed = seed;
        let lablets = (0..profile.lablets).map(|i| lablet_node(i as u8, &mut setup)).collect();
        let mut world = World {
            seed,
            now: SECOND,
            events: BTreeMap::new(),
            next_event: 0,
            next_session: 0,
            orchestrator: OrchestratorNode::new(config),
            lablets,
            lab,
            fate: Draws::new(seed, 1),
            work: Draws::new(seed, 2),
            model: Model::default(),
            trace: blake3::Hasher::new(),
            count: 0,
            verbose,
            profile,
        };
        world.plan_faults(&mut setup);
        world
    }

    fn plan_faults(&mut self, setup: &mut Draws) {
        let until = self.profile.faults_until_s * SECOND;
        self.at(self.now, Event::StartOrchestrator);
        for lablet in 0..self.lablets.len() {
            let late = if setup.chance(200_000) { setup.between(0, 10 * SECOND) } else { setup.between(0, SECOND) };
            self.at(self.now + late, Event::StartLablet { lablet });
        }
        for n in 0..self.profile.executions {
            let at = setup.between(2 * SECOND, until / 2);
            self.at(at, Event::Submit(n));
        }
        for _ in 0..self.profile.orchestrator_crashes {
            let at = setup.between(2 * SECOND, until);
            self.at(at, Event::CrashOrchestrator);
        }
        let count = self.lablets.len() as u64;
        for _ in 0..self.profile.lablet_crashes {
            let at = setup.between(2 * SECOND, until);
            self.at(at, Event::CrashLablet { lablet: setup.between(0, count - 1) as usize });
        }
        for _ in 0..self.profile.partitions {
            let at = setup.between(2 * SECOND, until);
            let long = setup.between(SECOND / 2, 15 * SECOND);
            let lablet = setup.between(0, count - 1) as usize;
            self.at(at, Event::Cut { lablet, until: (at + long).min(until) });
        }
    }

    /// Runs until everything has ended, or should have.
    pub fn run(mut self) -> Report {
        let bound = (self.profile.faults_until_s + LIVENESS_S) * SECOND;
        let (mut instant, mut at_once) = (0, 0);
        while let Some(((at, _), event)) = self.events.pop_first() {
            if at > bound {
                break;
            }
            at_once = if at == instant { at_once + 1 } else { 0 };
            instant = at;
            self.now = at;
            self.count += 1;
            self.record(&event);
            self.take(event);
            if at_once > MAX_EVENTS_AT_ONCE {
                self.model.violations.push("time stands still: a timer spins".into());
            }
            if !self.model.violations.is_empty() || self.done() {
                break;
            }
        }
        for (named, cell) in self.lablets.iter().flat_map(|l| &l.cells) {
            for instance in &cell.running {
                self.model.runs(self.now, named.execution, instance, cell.grant.attempt);
            }
        }
        let open: Vec<String> = (0..self.profile.executions)
            .map(|n| self.submission(n).execution.id())
            .filter(|id| !self.model.ended.contains_key(id))
            .map(|id| {
                let views = self.orchestrator.core.as_ref().map(|c| c.executions()).unwrap_or_default();
                let phase = views.into_iter().find(|v| v.execution == id).map(|v| v.phase);
                format!("{} did not end: {}", id.alias(), phase.unwrap_or_else(|| "unknown".into()))
            })
            .collect();
        if self.model.violations.is_empty() {
            self.model.violations = open;
        }
        let mut ended = BTreeMap::new();
        for how in self.model.ended.values() {
            *ended.entry(how.clone()).or_insert(0) += 1;
        }
        Report {
            seed: self.seed,
            events: self.count,
            virtual_ms: self.now / MILLI,
            trace: self.trace.finalize().to_hex().to_string(),
            ended,
            violations: self.model.violations,
        }
    }

    fn done(&self) -> bool {
        // A while after the last end, lablets have been told and have let go.
        self.model.ended.len() as u32 >= self.profile.executions
            && self.now > self.profile.faults_until_s * SECOND
            && self.orchestrator.core.as_ref().is_some_and(|c| c.executions().is_empty())
    }

    fn at(&mut self, time: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((time.max(self.now), self.next_event), event);
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn record(&mut self, event: &Event) {
        self.trace.update(&self.now.to_le_bytes());
        let text = match event {
            Event::ToOrchestrator { lablet, message, .. } => format!("{lablet}>{message:?}"),
            Event::ToLablet { lablet, message, .. } => format!("{lablet}<{message:?}"),
            Event::HelloArrives { lablet, .. } => format!("{lablet}>hello"),
            Event::WelcomeArrives { lablet, .. } => format!("{lablet}<welcome"),
            Event::OrchestratorTimer | Event::LabletTimer { .. } => "timer".to_owned(),
            other => format!("{other:?}"),
        };
        self.trace.update(text.as_bytes());
        if self.verbose {
            println!("{:>10.3} {}", self.now as f64 / SECOND as f64, text);
        }
    }

    fn faulty(&self) -> bool {
        self.now < self.profile.faults_until_s * SECOND
    }

    fn stamp(&self) -> Timestamp {
        Timestamp(self.now)
    }

    fn wall_us(&self) -> u64 {
        WALL_START_US + self.now / MICRO
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Submit(n) => self.submit(n),
            Event::Cancel(execution) => self.tell_orchestrator(Input::Cancel { execution, by: peer(253) }),
            Event::ToOrchestrator { lablet, session, message } => {
                let from = self.lablets[lablet].peer.clone();
                if self.orchestrator.sessions.get(&from) == Some(&session) && !self.lablets[lablet].cut {
                    self.tell_orchestrator(Input::Message { from, message: Verified::vouch(*message) });
                }
            }
            Event::ToLablet { lablet, session, life, message } => {
                let node = &self.lablets[lablet];
                if node.life == life && node.session == Some(session) && !node.cut {
                    let from = self.orchestrator.peer.clone();
                    self.tell_lablet(lablet, LabletInput::Message { from, message: Verified::vouch(*message) });
                }
            }
            Event::Gossip { lablet, life, offer } => {
                if self.lablets[lablet].life == life && !self.lablets[lablet].cut {
                    self.tell_lablet(lablet, LabletInput::Offer(Verified::vouch(offer)));
                }
            }
            Event::Connect { lablet, life } => self.connect(lablet, life),
            Event::HelloArrives { lablet, life, session, hello } => {
                if self.lablets[lablet].cut || self.orchestrator.core.is_none() {
                    // The dial fails; it is tried again.
                    self.after(SECOND, Event::LabletHears { lablet, life, session });
                    return;
                }
                let from = self.lablets[lablet].peer.clone();
                self.tell_orchestrator(Input::Hello { from, session, hello: Verified::vouch(*hello) });
            }
            Event::WelcomeArrives { lablet, life, session, welcome } => {
                let node = &mut self.lablets[lablet];
                let Some((expected, sent)) = node.greeting else { return };
                if node.life != life || expected != session || node.cut {
                    return;
                }
                node.greeting = None;
                node.session = Some(session);
                let orchestrator = self.orchestrator.peer.clone();
                let input = LabletInput::SessionUp {
                    orchestrator,
                    hello_at: Timestamp(sent),
                    welcome: Verified::vouch(*welcome),
                };
                self.tell_lablet(lablet, input);
            }
            Event::Turned { lablet, life, session } | Event::LabletHears { lablet, life, session } => {
                let node = &mut self.lablets[lablet];
                let greeting = node.greeting.is_some_and(|(s, _)| s == session);
                if node.life != life || (node.session != Some(session) && !greeting) {
                    return;
                }
                node.greeting = None;
                if node.session.take().is_some() {
                    let orchestrator = self.orchestrator.peer.clone();
                    self.tell_lablet(lablet, LabletInput::SessionDown { orchestrator });
                }
                let wait = self.fate.between(SECOND / 5, SECOND);
                self.after(wait, Event::Connect { lablet, life });
            }
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
            Event::PullDone { life, execution, lablet, shard } => self.pull_done(life, execution, lablet, shard),
            Event::AssembleDone { life, execution, accepted, missing } => {
                if self.orchestrator.life == life {
                    let cid = codec::cid_of(&(execution, accepted, missing));
                    self.orchestrator.results.insert(cid);
                    let verdict = if missing > 0 { ResultVerdict::Inconclusive } else { ResultVerdict::Pass };
                    let counts = Counts { ok: accepted, failed: 0, lost: missing };
                    let result = AssembledResult {
                        cid,
                        verdict,
                        counts,
                        thresholds: Vec::new(),
                        inconclusive: Vec::new(),
                        failures: Vec::new(),
                    };
                    self.tell_orchestrator(Input::Assembled { execution, result });
                }
            }
            Event::PromiseDurable { lablet, life } => {
                if self.lablets[lablet].life == life && self.lablets[lablet].core.is_some() {
                    self.commit_promise(lablet);
                    self.pump_lablet(lablet);
                }
            }
            Event::PrepareDone { lablet, life, cell } => self.prepare_done(lablet, life, cell),
            Event::InstanceEnds { lablet, life, cell, instance, exit } => {
                let node = &mut self.lablets[lablet];
                if node.life != life {
                    return;
                }
                let Some(fake) = node.cells.get_mut(&cell) else { return };
                if fake.running.remove(&instance) {
                    self.model.runs(self.now, cell.execution, &instance, fake.grant.attempt);
                    fake.unsealed.push((instance.clone(), exit));
                    self.tell_lablet(lablet, LabletInput::InstanceEnded { cell, instance });
                }
            }
            Event::SealDone { lablet, life, cell } => self.seal_done(lablet, life, cell),
            Event::CrashOrchestrator => self.crash_orchestrator(),
            Event::StartOrchestrator => self.start_orchestrator(),
            Event::CrashLablet { lablet } => self.crash_lablet(lablet),
            Event::StartLablet { lablet } => self.start_lablet(lablet),
            Event::Cut { lablet, until } => {
                self.lablets[lablet].cut = true;
                self.drop_session(lablet);
                self.at(until, Event::Heal { lablet });
            }
            Event::Heal { lablet } => self.lablets[lablet].cut = false,
        }
    }

    /// Both sides notice at some time that their connection is gone.
    fn drop_session(&mut self, lablet: usize) {
        let life = self.lablets[lablet].life;
        let greeting = self.lablets[lablet].greeting.map(|(s, _)| s);
        if let Some(session) = self.lablets[lablet].session.or(greeting) {
            let hears = self.fate.between(0, 8 * SECOND);
            self.after(hears, Event::LabletHears { lablet, life, session });
        }
        if let Some(session) = self.orchestrator.sessions.get(&self.lablets[lablet].peer).copied() {
            let hears = self.fate.between(0, 8 * SECOND);
            self.after(hears, Event::OrchestratorHears { lablet, session });
        }
    }

    // --- the orchestrator's node ---

    fn submission(&self, n: u32) -> Submission {
        let mut draws = Draws::new(self.seed, 100 + u64::from(n));
        let mut groups = (0..draws.between(1, 3))
            .map(|g| (format!("g{g}"), group(draws.between(1, 6) as u32)))
            .collect::<BTreeMap<_, _>>();
        // Half of the runs have containers, alone or beside components.
        if draws.chance(500_000) {
            for group in groups.values_mut() {
                if draws.chance(500_000) {
                    group.kind = WorkloadKind::Docker;
                    group.count = group.count.div_ceil(2);
                }
            }
        }
        let run = Run {
            plan: cid(b"plan"),
            case: "case".into(),
            groups,
            params: BTreeMap::new(),
            seed: u64::from(n),
            engine: Engine::Live,
            network: Network::Clean,
            faults: Vec::new(),
            loss: LossPolicy { max_attempts: self.profile.max_attempts, max_lost_ppm: 0 },
            thresholds: Vec::new(),
            timeout_ms: draws.between(5_000, 30_000),
        };
        let cid = codec::cid_of(&run);
        let execution = Execution { run: cid, orchestrator: self.orchestrator.peer.clone(), nonce: draws.bytes() };
        Submission { execution, run: KnownRun { cid, run } }
    }

    fn submit(&mut self, n: u32) {
        if self.orchestrator.core.is_none() {
            // Whoever submits tries again.
            self.after(SECOND, Event::Submit(n));
            return;
        }
        let submission = self.submission(n);
        let id = submission.execution.id();
        self.orchestrator.submissions.insert(id, submission.clone());
        self.model.runs.insert(id, submission.run.run.clone());
        if self.fate.chance(self.profile.cancel_ppm) {
            let at = self.fate.between(0, 6 * SECOND);
            self.after(at, Event::Cancel(id));
        }
        if self.orchestrator.log.contains_key(&id) {
            return;
        }
        // A submission whose fact was lost in a crash never happened: the submitter finds out and tries again.
        self.after(3 * SECOND, Event::Submit(n));
        let Submission { execution, run } = submission;
        self.tell_orchestrator(Input::Submit { execution, run, by: peer(253) });
    }

    fn tell_orchestrator(&mut self, input: Input) {
        let now = self.stamp();
        let Some(core) = &mut self.orchestrator.core else { return };
        core.handle(now, input);
        while let Some(effect) = core.poll_effect() {
            self.orchestrator.queue.push_back(effect);
        }
        let next = core.poll_timeout().map(|t| t.0.max(self.now));
        if let Some(at) = next
            && self.orchestrator.timer.is_none_or(|t| t > at)
        {
            self.orchestrator.timer = Some(at);
            self.at(at, Event::OrchestratorTimer);
        }
        self.pump_orchestrator();
    }

    /// Carries out effects up to the first fact that is not durable.
    fn pump_orchestrator(&mut self) {
        while self.orchestrator.syncing.is_empty() {
            let Some(effect) = self.orchestrator.queue.pop_front() else { return };
            if let Effect::Persist { .. } = effect {
                self.orchestrator.queue.push_front(effect);
                self.sync_facts();
                return;
            }
            self.model.effect(&self.orchestrator, &effect);
            self.orchestrator_effect(effect);
        }
    }

    /// Group commit: all facts in a row become durable together.
    fn sync_facts(&mut self) {
        while let Some(Effect::Persist { .. }) = self.orchestrator.queue.front() {
            let Some(Effect::Persist { execution, epoch, kind }) = self.orchestrator.queue.pop_front() else { return };
            let at_ms = self.wall_us() / 1000;
            self.orchestrator.syncing.push(Fact { execution, seq: 0, prev: None, epoch, at_ms, kind });
        }
        let life = self.orchestrator.life;
        let takes = self.work.between(MILLI / 10, 5 * MILLI);
        self.after(takes, Event::FactsDurable { life });
    }

    fn commit_facts(&mut self) {
        for fact in std::mem::take(&mut self.orchestrator.syncing) {
            match &fact.kind {
                FactKind::Sealed { result } => {
                    let result = *result;
                    if !self.orchestrator.results.contains(&result) {
                        self.model.violations.push(format!("sealed {result}, which nobody made"));
                    }
                    let kinds = self.model.runs.get(&fact.execution).map(Run::kinds).unwrap_or_default();
                    let names: Vec<&str> = kinds.into_keys().map(WorkloadKind::name).collect();
                    self.model.over(fact.execution, format!("sealed: {}", names.join(" and ")));
                }
                FactKind::Failed { reason } => {
                    let short = reason.split(':').next().unwrap_or_default().to_owned();
                    self.model.over(fact.execution, format!("failed: {short}"));
                }
                FactKind::Received { shard, .. } => self.model.kept_on_disk(&self.orchestrator, shard),
                FactKind::Submitted { .. }
                | FactKind::Placed { .. }
                | FactKind::Granted { .. }
                | FactKind::Accepted { .. }
                | FactKind::Refused { .. }
                | FactKind::Started {}
                | FactKind::Lost { .. }
                | FactKind::Cancelled { .. }
                | FactKind::TimedOut {} => {}
            }
            self.orchestrator.append(fact);
        }
    }

    fn orchestrator_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) | Effect::Notify { .. } => {}
            Effect::Send { to, message } => {
                let message = match message {
                    ToLablet::Lease(mut renewal) => {
                        renewal.wall_us = self.wall_us();
                        ToLablet::Lease(renewal)
                    }
                    other => other,
                };
                self.post_to_lablet(&to, message);
            }
            Effect::SendGrant { to, grant } => {
                let signer = self.orchestrator.peer.clone();
                let signed = Signed { body: grant, signer, signature: Vec::new() };
                self.post_to_lablet(&to, ToLablet::Grant(signed));
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers } => {
                let Some(lablet) = self.index(&to) else { return };
                self.orchestrator.sessions.insert(to, session);
                let signer = self.orchestrator.peer.clone();
                let welcome = Welcome {
                    certificate: Signed {
                        body: Certificate {
                            lab: self.lab.clone(),
                            orchestrator: signer.clone(),
                            name: "sim".into(),
                            expires: WallTime(u64::MAX),
                        },
                        signer: self.lab.clone(),
                        signature: Vec::new(),
                    },
                    heartbeat_ms,
                    lease_ms,
                    offers: offers
                        .into_iter()
                        .map(|body| Signed { body, signer: signer.clone(), signature: Vec::new() })
                        .collect(),
                };
                // The stream is ordered up to here: what is lost is the connection.
                let life = self.lablets[lablet].life;
                let delay = self.profile.delay_min_us * MICRO;
                self.after(delay, Event::WelcomeArrives { lablet, life, session, welcome: Box::new(welcome) });
            }
            Effect::Turn { to, session, .. } => {
                let Some(lablet) = self.index(&to) else { return };
                let life = self.lablets[lablet].life;
                self.after(MILLI, Event::Turned { lablet, life, session });
            }
            Effect::PublishOffer(offer) => {
                for lablet in 0..self.lablets.len() {
                    let life = self.lablets[lablet].life;
                    for delay in self.fate.fate(&self.profile, self.now < self.profile.faults_until_s * SECOND) {
                        self.after(delay * MICRO, Event::Gossip { lablet, life, offer: offer.clone() });
                    }
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let life = self.orchestrator.life;
                let takes = self.work.between(MILLI, 300 * MILLI);
                self.after(takes, Event::PullDone { life, execution, lablet, shard });
            }
            Effect::Assemble(order) => {
                let life = self.orchestrator.life;
                let takes = self.work.between(MILLI, 200 * MILLI);
                let (accepted, missing) = (order.accepted.len() as u64, order.missing.len() as u64);
                let calm = self.profile.faults_until_s == 20;
                if calm && missing > 0 && order.cancelled.is_none() && !order.timed_out {
                    self.model.violations.push(format!("lost {missing} instances where nothing went wrong"));
                }
                self.after(takes, Event::AssembleDone { life, execution: order.execution, accepted, missing });
            }
            Effect::Close { lablet, .. } => {
                if let Some(session) = self.orchestrator.sessions.remove(&lablet)
                    && let Some(index) = self.index(&lablet)
                {
                    let life = self.lablets[index].life;
                    self.after(MILLI, Event::LabletHears { lablet: index, life, session });
                }
            }
        }
    }

    fn index(&self, peer: &PeerId) -> Option<usize> {
        self.lablets.iter().position(|l| l.peer == *peer)
    }

    fn post_to_lablet(&mut self, to: &PeerId, message: ToLablet) {
        let Some(session) = self.orchestrator.sessions.get(to).copied() else { return };
        let Some(lablet) = self.index(to) else { return };
        let life = self.lablets[lablet].life;
        for delay in self.fate.fate(&self.profile, self.faulty()) {
            let message = Box::new(message.clone());
            self.after(delay * MICRO, Event::ToLablet { lablet, session, life, message });
        }
    }

    fn pull_done(&mut self, life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid) {
        if self.orchestrator.life != life || self.orchestrator.core.is_none() {
            return;
        }
        let source = self.index(&lablet).map(|i| &self.lablets[i]);
        let there = source.filter(|n| n.core.is_some() && !n.cut).and_then(|n| n.store.get(&shard)).cloned();
        let receipts = self.orchestrator.store.get(&shard).cloned().or(there);
        let input = match receipts {
            Some(receipts) => {
                self.orchestrator.store.insert(shard, receipts.clone());
                Input::Pulled { execution, lablet, shard, receipts }
            }
            None => Input::PullFailed { execution, lablet, shard, reason: "no provider".into(), retry: true },
        };
        self.tell_orchestrator(input);
    }

    fn crash_orchestrator(&mut self) {
        if self.orchestrator.core.is_none() {
            return;
        }
        // What was being written may have reached the disk or not; what came after it never happened.
        if self.fate.chance(500_000) {
            self.commit_facts();
        }
        let node = &mut self.orchestrator;
        node.core = None;
        node.syncing.clear();
        node.queue.clear();
        node.timer = None;
        for lablet in 0..self.lablets.len() {
            self.drop_session(lablet);
        }
        self.orchestrator.sessions.clear();
        let down = self.fate.between(SECOND / 10, 20 * SECOND);
        self.after(down, Event::StartOrchestrator);
    }

    fn start_orchestrator(&mut self) {
        self.orchestrator.life += 1;
        self.orchestrator.core = Some(Orchestrator::new(self.orchestrator.config.clone()));
        let unix_us = self.wall_us();
        self.tell_orchestrator(Input::Wall { unix_us });
        let logs: Vec<Fact> = self.orchestrator.log.values().flatten().cloned().collect();
        for fact in logs {
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| self.orchestrator.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            self.tell_orchestrator(Input::Replay { fact: Box::new(fact), submission });
        }
        self.tell_orchestrator(Input::Replayed);
    }

    // --- a lablet's node ---

    fn tell_lablet(&mut self, lablet: usize, input: LabletInput) {
        let now = self.stamp();
        let node = &mut self.lablets[lablet];
        let Some(core) = &mut node.core else { return };
        core.handle(now, input);
        while let Some(effect) = core.poll_effect() {
            node.queue.push_back(effect);
        }
        let next = core.poll_timeout().map(|t| t.0.max(self.now));
        if let Some(at) = next
            && node.timer.is_none_or(|t| t > at)
        {
            node.timer = Some(at);
            self.at(at, Event::LabletTimer { lablet });
        }
        self.pump_lablet(lablet);
    }

    fn pump_lablet(&mut self, lablet: usize) {
        while self.lablets[lablet].syncing.is_none() {
            let Some(effect) = self.lablets[lablet].queue.pop_front() else { return };
            self.lablet_effect(lablet, effect);
        }
    }

    fn lablet_effect(&mut self, lablet: usize, effect: LabletEffect) {
        let life = self.lablets[lablet].life;
        match effect {
            LabletEffect::Send { message, .. } => {
                let Some(session) = self.lablets[lablet].session else { return };
                for delay in self.fate.fate(&self.profile, self.faulty()) {
                    let message = Box::new(message.clone());
                    self.after(delay * MICRO, Event::ToOrchestrator { lablet, session, message });
                }
            }
            LabletEffect::Promise(record) => {
                self.lablets[lablet].syncing = Some(record);
                let takes = self.work.between(MILLI / 10, 10 * MILLI);
                self.after(takes, Event::PromiseDurable { lablet, life });
            }
            LabletEffect::Prepare { cell, grant } => {
                let fake = FakeCell {
                    grant: *grant,
                    prepared: false,
                    started: false,
                    running: Default::default(),
                    unsealed: Vec::new(),
                };
                self.lablets[lablet].cells.insert(cell.clone(), fake);
                self.model.preparing(&self.lablets[lablet], &cell);
                let takes = self.work.between(MILLI, 800 * MILLI);
                self.after(takes, Event::PrepareDone { lablet, life, cell });
            }
            LabletEffect::Directory { .. } => {}
            LabletEffect::Start { cell } => self.start_cell(lablet, life, cell),
            LabletEffect::Stop { cell, reason } => {
                let Some(fake) = self.lablets[lablet].cells.get(&cell) else { return };
                let running: Vec<InstanceId> = fake.running.iter().cloned().collect();
                for instance in running {
                    let takes = self.work.between(0, 200 * MILLI);
                    let exit = Exit::Stopped { reason: reason.clone() };
                    self.after(takes, Event::InstanceEnds { lablet, life, cell: cell.clone(), instance, exit });
                }
            }
            LabletEffect::Seal { cell } => {
                let takes = self.work.between(MILLI / 2, 30 * MILLI);
                self.after(takes, Event::SealDone { lablet, life, cell });
            }
            LabletEffect::Forget { cell } => {
                self.lablets[lablet].cells.remove(&cell);
                self.lablets[lablet].records.remove(&cell);
            }
        }
    }

    fn commit_promise(&mut self, lablet: usize) {
        let node = &mut self.lablets[lablet];
        if let Some(record) = node.syncing.take() {
            node.promised.insert(record.cell.execution, record.cell.epoch.clone());
            node.records.insert(record.cell.clone(), (record, Vec::new()));
        }
    }

    fn prepare_done(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let fails = self.faulty() && self.work.chance(self.profile.prepare_fail_ppm);
        let unfit = fails && self.work.chance(100_000);
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        if fails {
            let reason = "no blocks".to_owned();
            self.tell_lablet(lablet, LabletInput::PrepareFailed { cell, reason, unfit });
        } else {
            fake.prepared = true;
            let ready = fake.instances();
            self.model.prepared(&cell, ready);
            self.tell_lablet(lablet, LabletInput::Prepared { cell });
        }
    }

    fn start_cell(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let node = &mut self.lablets[lablet];
        let Some(fake) = node.cells.get_mut(&cell) else {
            return self.model.violations.push(format!("{cell:?} started and not prepared"));
        };
        if !fake.prepared || fake.started {
            self.model.violations.push(format!("{cell:?} started while prepared={}", fake.prepared));
        }
        fake.started = true;
        let all = fake.instances();
        fake.running = all.iter().cloned().collect();
        let attempt = fake.grant.attempt;
        let peer = node.peer.clone();
        self.model.started(self.now, &peer, &cell, attempt, &all);
        // Every other run is over before messages that are late have arrived.
        let short = self.model.runs.get(&cell.execution).is_some_and(|run| run.seed.is_multiple_of(2));
        let longest = if short { 30 * MILLI } else { 4 * SECOND };
        for instance in all {
            if self.work.chance(self.profile.hang_ppm) {
                continue;
            }
            let takes = self.work.between(MILLI, longest);
            let exit = Exit::Exited { code: 0 };
            self.after(takes, Event::InstanceEnds { lablet, life, cell: cell.clone(), instance, exit });
        }
    }

    fn seal_done(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let fails = self.faulty() && self.profile.prepare_fail_ppm > 0 && self.work.chance(50_000);
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        if fails {
            let reason = "disk full".to_owned();
            return self.tell_lablet(lablet, LabletInput::SealFailed { cell, reason });
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
        self.tell_lablet(lablet, LabletInput::ShardSealed { cell, shard, count, last: true });
    }

    fn connect(&mut self, lablet: usize, life: u64) {
        let sent = self.now;
        self.next_session += 1;
        let session = self.next_session;
        let lab = self.lab.clone();
        let node = &mut self.lablets[lablet];
        let Some(core) = node.core.as_ref().filter(|_| node.life == life && node.session.is_none()) else { return };
        let hello = Hello {
            token: Signed {
                body: MemberToken {
                    lab: lab.clone(),
                    member: node.peer.clone(),
                    role: Role::Lablet,
                    expires: WallTime(u64::MAX),
                },
                signer: lab,
                signature: Vec::new(),
            },
            version: "sim".into(),
            boot: node.boot,
            inventory: core.inventory(),
            cells: core.cells(),
        };
        node.greeting = Some((session, sent));
        let delay = self.profile.delay_min_us * MICRO;
        self.after(delay, Event::HelloArrives { lablet, life, session, hello: Box::new(hello) });
        // An answer that does not come is not waited for for ever.
        self.after(5 * SECOND, Event::GiveUpHello { lablet, life, session });
    }

    fn crash_lablet(&mut self, lablet: usize) {
        if self.lablets[lablet].core.is_none() {
            return;
        }
        if self.fate.chance(500_000) {
            self.commit_promise(lablet);
        }
        self.drop_session(lablet);
        let node = &mut self.lablets[lablet];
        node.core = None;
        node.life += 1;
        node.session = None;
        node.greeting = None;
        node.timer = None;
        node.syncing = None;
        node.queue.clear();
        node.cells.clear();
        let down = self.fate.between(SECOND / 10, 20 * SECOND);
        self.after(down, Event::StartLablet { lablet });
    }

    fn start_lablet(&mut self, lablet: usize) {
        let boot = self.fate.bytes();
        let unix_us = self.wall_us();
        let lab = self.lab.clone();
        let node = &mut self.lablets[lablet];
        if node.core.is_some() {
            return;
        }
        node.boot = boot;
        node.core = Some(Lablet::new(LabletConfig::new(node.peer.clone(), lab)));
        let life = node.life;
        let unix_us = unix_us + node.skew_us;
        let promised = node.promised.clone().into_iter().collect();
        let cells = node.records.values().cloned().collect();
        let machine: Inventory = node.machine.clone();
        self.tell_lablet(lablet, LabletInput::Wall { unix_us });
        self.tell_lablet(lablet, LabletInput::Restore { promised, cells });
        self.tell_lablet(lablet, LabletInput::Inventory(machine));
        self.after(MILLI, Event::Connect { lablet, life });
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn cid(bytes: &[u8]) -> Cid {
    codec::cid_of(&bytes)
}

fn group(count: u32) -> GroupRun {
    GroupRun {
        workload: cid(b"workload"),
        kind: WorkloadKind::Wasm,
        count,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
    }
}

fn lablet_node(n: u8, draws: &mut Draws) -> LabletNode {
    let mut slots = BTreeMap::from([(WorkloadKind::Wasm, Slots::of(draws.between(2, 12) as u32))]);
    // Half of the lablets run containers too, some of them nothing else.
    if draws.chance(500_000) {
        slots.insert(WorkloadKind::Docker, Slots::of(draws.between(1, 3) as u32));
        if draws.chance(200_000) {
            slots.remove(&WorkloadKind::Wasm);
        }
    }
    LabletNode {
        peer: peer(n + 1),
        machine: Inventory {
            name: format!("l{n}"),
            cpus: 4,
            memory_bytes: 8 << 30,
            free_memory_bytes: 8 << 30,
            slots,
            ..Inventory::default()
        },
        skew_us: draws.between(0, 5_000_000),
        core: None,
        life: 0,
        boot: [0; 16],
        session: None,
        greeting: None,
        cut: false,
        queue: Default::default(),
        syncing: None,
        cells: BTreeMap::new(),
        promised: BTreeMap::new(),
        records: BTreeMap::new(),
        store: BTreeMap::new(),
        timer: None,
    }
}
