//! The life of one instance, from a held container to its receipt.
//!
//! Its container is made and started before (`set_up.rs`), and init holds the workload; [`Instance::live`] is a task
//! that waits for the start, listens to init, ends the workload where it meets a limit, and in the end takes what it left. What
//! it writes is read beside it (`output.rs`), its calls to the lab are answered beside it (`iptl-testground`), so that
//! a slow reader of the one holds up nothing of the other.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iptl_dag::model::{Adopted, Exit, FaultDone, FaultKind, InstanceId, NetworkUse, Usage};
use iptl_labnet::Act;
use iptl_runner::files::{CellFiles, check_artifact_path};
use iptl_runner::usage::cpu_milli;
use iptl_runner::{CellEvent, Ended, InstanceSpec, SyncReply};
use iptl_testground::{Journal, Seen, Stake, SyncServer};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant as Deadline;

use crate::cell::{Cell, Phase, wall_ms};
use crate::egress::{Carrier, Sockets};
use crate::engine;
use crate::exit::{self, Ending, SYNC_LOST};
use crate::faults::{self, Acts, Doing};
use crate::link::{Door, Greeting, Link};

use crate::output::{Exceeded, Output, write_records};
use crate::protocol::{self, End, FromInit, Sample, ToInit};
use crate::runner::Reservation;
use crate::set_up::Outputs;
use crate::settings::Wanted;
use crate::shaper::Shaper;
use crate::state::{InstanceDir, StakeNote};

/// Time that init has to connect again where its container runs; it tries four times a second.
const RECONNECT: Duration = Duration::from_secs(20);

/// Time from the order to kill everything to the engine's doing it; init does it at once.
const KILL: Duration = Duration::from_secs(3);

/// Time without a sample after which the engine is asked instead.
const SILENCE: Duration = Duration::from_secs(10);

/// Time between two looks at what was written below a root that can be written to.
const DISK_LOOK: Duration = Duration::from_secs(1);

/// Time that an ended instance's connections to the sync service have to hand over what they sent.
const SYNC_PATIENCE: Duration = Duration::from_secs(2);

/// Time in which a program that waits for an answer of sync has to connect again, where the lablet was started again.
/// One that does not look after its connection would wait for ever.
const SYNC_AGAIN: Duration = Duration::from_secs(10);

/// Time that init has to hand over artifacts without saying anything.
const COLLECT: Duration = Duration::from_secs(30);

/// Files that an instance may leave.
const MAX_ARTIFACTS: usize = 16_384;

/// What an instance is made of, once its container is there.
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) spec: InstanceSpec,
    pub(crate) cell: Arc<Cell>,
    pub(crate) events: mpsc::Sender<CellEvent>,
    pub(crate) dir: InstanceDir,
    /// The engine's name for the container.
    pub(crate) container: String,
    pub(crate) wanted: Wanted,
    pub(crate) sync: Arc<Mutex<Option<SyncServer>>>,
    pub(crate) link: Option<Link>,
    pub(crate) outputs: Option<Outputs>,
    /// The workload of an adopted instance is as far as this.
    pub(crate) adopted: Option<protocol::Phase>,
    /// What it takes of the lablet's room, until its workload is over.
    pub(crate) room: Option<Reservation>,
    /// What is done to it on purpose.
    pub(crate) acts: Acts,
    /// Carries what it exchanges with places outside of the lab, where it may reach any.
    pub(crate) carrier: Option<Carrier>,
}

/// Where an instance stands while its task runs.
struct Life {
    ending: Option<Ending>,
    started: Option<(Instant, u64)>,
    last: Sample,
    /// Time of that since the start of the cell, in microseconds.
    sampled_us: u64,
    peak: u64,
    /// When it is ended by force.
    kill_at: Option<Deadline>,
    /// When the engine does it.
    engine_kill_at: Option<Deadline>,
    wall_at: Option<Deadline>,
    heard_at: Deadline,
    disk_at: Option<Deadline>,
    /// What is done to it on purpose.
    doing: Doing,
    /// It lost a connection to sync with an earlier life of the lablet; set once it has another.
    sync_lost: Option<Arc<AtomicBool>>,
    /// When it has to have another, where it waits for something.
    sync_at: Option<Deadline>,
}

impl Life {
    fn is_without_sync(&self) -> bool {
        self.sync_lost.as_ref().is_some_and(|again| !again.load(Ordering::Relaxed))
    }
}

/// How the loop over a running workload ended.
enum Over {
    Workload(End),
    NotStarted(i32),
    Container { oom_killed: bool, reason: String },
}

impl Instance {
    /// Tells that what was done to it on purpose is over, which was due at `due_us`.
    async fn fault_is_over(&self, kind: FaultKind, due_us: u64) {
        let done_us = self.cell.at_us();
        let mut line = Vec::new();
        CellFiles::fault_line(&mut line, done_us, kind, due_us);
        if let Err(error) = self.cell.files.append_events(&self.id, &line) {
            tracing::warn!(instance = %self.id, %error, "the end of a fault is not among the events");
        }
        let done = FaultDone { due_us, kind, done_us, instances: 1 };
        let _gone = self.events.send(CellEvent::Fault(done)).await;
    }

    /// Lives to the end, tells it, and leaves nothing running.
    pub(crate) async fn live(mut self, mut phases: watch::Receiver<Phase>) {
        let mut life = Life {
            ending: None,
            started: None,
            last: Sample::default(),
            sampled_us: 0,
            peak: 0,
            kill_at: None,
            engine_kill_at: None,
            wall_at: None,
            heard_at: Deadline::now(),
            disk_at: None,
            doing: Doing { crashes: self.crashes_before(), ..Doing::default() },
            sync_lost: None,
            sync_at: None,
        };
        if let Err(ending) = self.wait_for_start(&mut phases).await {
            self.end_unstarted(ending.clone().into_exit()).await;
            return;
        }
        let (origin, wall) = self.cell.started();
        life.started = Some((origin, wall));
        let wall = wall.saturating_add(self.spec.start_after_ms);
        let may_take = self.spec.start_after_ms.saturating_add(self.spec.limits.wall_ms);
        life.wall_at = Some(Deadline::from_std(origin) + Duration::from_millis(may_take));
        life.disk_at = self.wanted.disk_bytes.map(|_| Deadline::now() + DISK_LOOK);
        let journal = Arc::new(Mutex::new(self.journal()));
        let (exceeded, mut exceedings) = mpsc::channel(4);
        let mut reading = self.begin(origin, &journal, &exceeded, &mut life);
        if self.adopted.is_none() {
            self.tell_init(&ToInit::Start).await;
        }
        let over = loop {
            match self.next(&mut life, &mut phases, &mut exceedings).await {
                Some(over) => break over,
                None => {
                    // A new connection brings the same ends again, which an adopted instance does not have yet.
                    if reading.is_none() && self.outputs.is_some() {
                        reading = self.begin(origin, &journal, &exceeded, &mut life);
                    }
                    self.outputs = None;
                }
            }
        };
        // Everything that could write is gone, so the pipes end. A reader that lags is waited for.
        if let Some(reading) = reading {
            let _ = reading.await;
        }
        if let Ok(more) = exceedings.try_recv() {
            end_for(&mut life.ending, more.into());
        }
        self.finish(life, over, &journal, wall).await;
    }

    async fn wait_for_start(&mut self, phases: &mut watch::Receiver<Phase>) -> Result<(), Ending> {
        match self.adopted {
            Some(protocol::Phase::Running | protocol::Phase::Over) => return Ok(()),
            Some(protocol::Phase::New | protocol::Phase::Held) => {
                return Err(Ending::Stopped("the lablet restarted before it was started".to_owned()));
            }
            None => {}
        }
        loop {
            let delay = match phases.borrow_and_update().clone() {
                Phase::Held => None,
                Phase::Running => Some(Duration::from_millis(self.spec.start_after_ms).saturating_sub(self.cell.age())),
                Phase::Stopping(reason) => return Err(Ending::Stopped(reason)),
            };
            let changed = match delay {
                Some(Duration::ZERO) => return Ok(()),
                Some(delay) => tokio::select! {
                    () = tokio::time::sleep(delay) => return Ok(()),
                    changed = phases.changed() => changed,
                },
                None => phases.changed().await,
            };
            if changed.is_err() {
                return Err(Ending::Stopped("its control was dropped".to_owned()));
            }
        }
    }

    /// Counts the crashes that are told in what it left to an earlier life of the lablet.
    fn crashes_before(&self) -> u64 {
        if self.adopted.is_none() {
            return 0;
        }
        let left = self.cell.files.left(&self.id);
        let text = left.events.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        faults::count_crashes(&text)
    }

    /// Makes a journal that knows what was heard before a restart.
    fn journal(&self) -> Journal {
        let mut journal = Journal::new(self.spec.limits.record_bytes);
        if self.adopted.is_none() {
            return journal;
        }
        let left = self.cell.files.left(&self.id);
        let text = left.events.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        for line in text.lines() {
            #[derive(serde::Deserialize)]
            struct Line<'a> {
                t: u64,
                name: String,
                #[serde(borrow)]
                data: &'a serde_json::value::RawValue,
            }
            let Ok(Line { t, name, data }) = serde_json::from_str(line) else { continue };
            let said = format!("{{\"event\":{{{}:{}}}}}", serde_json::Value::from(name), data.get());
            journal.line(t, &said);
        }
        for event in self.dir.published() {
            journal.published(0, &event);
        }
        // They stand in the files already.
        let _ = (journal.take_events(), journal.take_metrics());
        journal
    }

    /// Opens the ways out of the lab that it has. Where that fails they are closed, and nothing else of it.
    fn carry_out(&mut self, sockets: Sockets) {
        // A new connection with init brings the same sockets again, and what is carried goes on.
        let (Some(network), None) = (self.cell.network.upgrade(), &self.carrier) else { return };
        match network.open_doors(&self.id, &sockets).and_then(|()| network.carrier(&self.id, sockets)) {
            Ok(carrier) => self.carrier = Some(carrier),
            Err(error) => tracing::error!(instance = %self.id, %error, "its ways out of the lab are closed"),
        }
    }

    /// Puts what came with a connection to use.
    fn begin(
        &mut self,
        origin: Instant,
        journal: &Arc<Mutex<Journal>>,
        exceeded: &mpsc::Sender<Exceeded>,
        life: &mut Life,
    ) -> Option<JoinHandle<()>> {
        let Outputs { listener, out, err, egress } = self.outputs.take()?;
        if let Some(sockets) = egress {
            self.carry_out(sockets);
        }
        let (dir, heard) = (self.dir.clone(), Arc::clone(journal));
        let stake = self.dir.stake().inspect_err(|e| tracing::warn!(error = %e, "what is at stake is not noted")).ok();
        let lost = stake.as_ref().map_or(Stake::Nothing, StakeNote::read);
        let again = Arc::new(AtomicBool::new(false));
        if self.adopted.is_some() && lost != Stake::Nothing {
            life.sync_lost = Some(Arc::clone(&again));
            life.sync_at = (lost == Stake::Answers).then(|| Deadline::now() + SYNC_AGAIN);
        }
        let shaper = Arc::new(Shaper::new(&self.cell, &self.id, &self.dir, journal));
        let refusing = Arc::clone(&shaper);
        let observer = move |seen: Seen<'_>| match seen {
            Seen::Event(event) => {
                let at_us = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
                if let Err(e) = dir.add_published(event) {
                    tracing::warn!(error = %e, "an event of an instance will be forgotten by a restart");
                }
                lock(&heard).published(at_us, event);
            }
            Seen::Refused(reason) => refusing.note(None, Some(reason)),
            Seen::AtStake(at_stake) => {
                again.store(true, Ordering::Relaxed);
                if let Some(Err(e)) = stake.as_ref().map(|stake| stake.write(at_stake)) {
                    tracing::warn!(error = %e, "what is at stake is not noted");
                }
            }
        };
        let identity = iptl_testground::environment::identity(&self.cell.spec, &self.wanted.setting);
        let shape = move |wish, asked| shaper.ask(wish, asked);
        match SyncServer::start(listener, self.id.clone(), identity, self.events.clone(), observer, shape) {
            Ok(server) => *lock(&self.sync) = Some(server),
            Err(e) => end_for(&mut life.ending, Ending::Failed(format!("its sync service cannot be opened: {e}"))),
        }
        let logged = self.cell.files.left(&self.id).logs.map_or(0, |path| logged_bytes(&path));
        let output = Output {
            id: self.id.clone(),
            files: Arc::clone(&self.cell.files),
            events: self.events.clone(),
            journal: Arc::clone(journal),
            origin,
            room: self.spec.limits.output_bytes.saturating_sub(logged),
            exceeded: exceeded.clone(),
        };
        let exceeded = exceeded.clone();
        Some(tokio::spawn(async move {
            if let Err(e) = output.read(out, err).await {
                let _ = exceeded.try_send(Exceeded::Lost(format!("its output cannot be read: {e}")));
            }
        }))
    }

    /// Waits for the next thing that concerns the workload and deals with it; returns how it is over, where it is.
    async fn next(
        &mut self,
        life: &mut Life,
        phases: &mut watch::Receiver<Phase>,
        exceedings: &mut mpsc::Receiver<Exceeded>,
    ) -> Option<Over> {
        let Some(link) = &mut self.link else { return self.reconnect(life, phases).await };
        let broken = self.cell.network.upgrade().map(|network| network.broken());
        let broken = async {
            match broken {
                Some(broken) => broken.await,
                None => std::future::pending().await,
            }
        };
        let far = Deadline::now() + Duration::from_secs(86_400);
        let silent = life.heard_at + SILENCE;
        tokio::select! {
            message = link.receive() => match message {
                Ok(Some(message)) => self.hear(life, message).await,
                Ok(None) | Err(_) => {
                    self.link = None;
                    None
                }
            },
            changed = phases.changed(), if !matches!(life.ending, Some(Ending::Stopped(_))) => {
                let reason = match (changed, phases.borrow().clone()) {
                    (Ok(()), Phase::Held | Phase::Running) => return None,
                    (Ok(()), Phase::Stopping(reason)) => reason,
                    (Err(_), _) => "its control was dropped".to_owned(),
                };
                self.stop(life, reason).await;
                None
            }
            Some((act, due_us)) = self.acts.recv(), if life.ending.is_none() => {
                if let Some(order) = life.doing.begin(act, due_us) {
                    self.tell_init(&order).await;
                    if matches!(act, Act::Crash { files_lost: true, .. }) {
                        self.tell_init(&ToInit::Empty(self.wanted.scratch())).await;
                    }
                }
                None
            }
            over = life.doing.next(), if life.ending.is_none() => {
                let due = match over {
                    FaultKind::Restart => {
                        self.start_again().await;
                        life.doing.restart_at.take()
                    }
                    _ => {
                        self.tell_init(&ToInit::Resume).await;
                        life.doing.resume_at.take()
                    }
                };
                if let Some((_, due_us)) = due {
                    self.fault_is_over(over, due_us).await;
                }
                None
            }
            Some(exceeded) = exceedings.recv() => {
                self.end(life, exceeded.into()).await;
                None
            }
            () = tokio::time::sleep_until(life.wall_at.unwrap_or(far)), if life.wall_at.is_some() => {
                life.wall_at = None;
                self.end(life, Ending::OutOfTime).await;
                None
            }
            () = tokio::time::sleep_until(life.kill_at.unwrap_or(far)), if life.kill_at.is_some() => {
                self.kill(life).await;
                None
            }
            () = tokio::time::sleep_until(life.engine_kill_at.unwrap_or(far)), if life.engine_kill_at.is_some() => {
                // Its init cannot be relied on: it is a process of the workload's user.
                life.engine_kill_at = Some(Deadline::now() + KILL);
                if let Err(e) = self.cell.engine.kill(&self.container).await {
                    tracing::warn!(error = %e, instance = %self.id, "the engine does not end a container");
                }
                None
            }
            () = tokio::time::sleep_until(life.disk_at.unwrap_or(far)), if life.disk_at.is_some() => {
                life.disk_at = Some(Deadline::now() + DISK_LOOK);
                let written = self.cell.engine.written(&self.container).await.unwrap_or(0);
                if self.wanted.disk_bytes.is_some_and(|limit| written > limit) {
                    life.disk_at = None;
                    self.end(life, Ending::TooMuch("disk")).await;
                }
                None
            }
            () = tokio::time::sleep_until(life.sync_at.unwrap_or(far)), if life.sync_at.is_some() => {
                life.sync_at = None;
                if life.is_without_sync() {
                    self.end(life, Ending::Failed(format!("it waited for sync, but {SYNC_LOST}"))).await;
                }
                None
            }
            reason = broken, if life.ending.is_none() => {
                self.end(life, Ending::Failed(format!("the lab network broke: {reason}"))).await;
                None
            }
            () = tokio::time::sleep_until(silent) => {
                life.heard_at = Deadline::now();
                if let Some(cpu_us) = self.cell.engine.cpu_us(&self.container).await {
                    life.last.cpu_us = life.last.cpu_us.max(cpu_us);
                    self.check_cpu(life).await;
                }
                None
            }
        }
    }

    /// Waits for init to connect again, or for the container to be over.
    async fn reconnect(&mut self, life: &mut Life, phases: &watch::Receiver<Phase>) -> Option<Over> {
        // While there is a connection there is no door: what would come through it is the workload.
        let door = match Door::open(&self.dir.lab()) {
            Ok(door) => door,
            Err(e) => return Some(Over::Container { oom_killed: false, reason: format!("its socket is gone: {e}") }),
        };
        let token = self.wanted.order.token;
        let engine = self.cell.engine.clone();
        let came = tokio::select! {
            came = door.accept(token) => came.ok(),
            over = container_over(&engine, &self.container) => return Some(over),
            () = tokio::time::sleep(RECONNECT) => None,
        };
        let Some((link, greeting)) = came else {
            let _ = engine.kill(&self.container).await;
            return Some(Over::Container { oom_killed: false, reason: "its init is gone".to_owned() });
        };
        self.link = Some(link);
        life.heard_at = Deadline::now();
        let Greeting { phase, listener, out, err, egress, .. } = greeting;
        self.outputs = Some(Outputs { listener, out, err, egress });
        match phase {
            protocol::Phase::New => {
                self.tell_init(&ToInit::Order(self.wanted.order.clone())).await;
                self.tell_init(&ToInit::Start).await;
            }
            // Who has crashed is started when it is time.
            protocol::Phase::Held if life.doing.restart_at.is_some() => {}
            protocol::Phase::Held => self.start_again().await,
            // What an earlier life of the lablet has paused, nobody else lets go on.
            protocol::Phase::Running if life.doing.resume_at.is_none() => self.tell_init(&ToInit::Resume).await,
            protocol::Phase::Running | protocol::Phase::Over => {}
        }
        // What was to be done and may not have been heard.
        if let Phase::Stopping(reason) = phases.borrow().clone() {
            end_for(&mut life.ending, Ending::Stopped(reason));
        }
        if life.ending.is_some() {
            self.kill(life).await;
        }
        None
    }

    async fn hear(&mut self, life: &mut Life, message: FromInit) -> Option<Over> {
        match message {
            FromInit::Sample(sample) => {
                life.heard_at = Deadline::now();
                self.take_sample(life, sample);
                self.check_cpu(life).await;
                if sample.met & Sample::RECORDS != 0 {
                    self.end(life, Ending::TooMuch("records")).await;
                } else if sample.met & Sample::ARTIFACTS != 0 {
                    self.end(life, Ending::TooMuch("artifacts")).await;
                }
                None
            }
            FromInit::Unwell { reason } => {
                let line = reason.lines().next().unwrap_or_default();
                let reason = line[..line.floor_char_boundary(256)].to_owned();
                self.end(life, Ending::Unwell(reason)).await;
                None
            }
            FromInit::Ended { end, last } => {
                self.take_sample(life, last);
                Some(Over::Workload(end))
            }
            FromInit::NotStarted { errno } => Some(Over::NotStarted(errno)),
            FromInit::Started
            | FromInit::Hello { .. }
            | FromInit::Ready
            | FromInit::Artifact { .. }
            | FromInit::Collected { .. } => None,
        }
    }

    fn take_sample(&self, life: &mut Life, sample: Sample) {
        // Totals never go back, whatever a container says.
        let before = life.last;
        life.last = Sample {
            cpu_us: sample.cpu_us.max(before.cpu_us),
            read: sample.read.max(before.read),
            written: sample.written.max(before.written),
            sent: sample.sent.max(before.sent),
            received: sample.received.max(before.received),
            oom_kills: sample.oom_kills.max(before.oom_kills),
            pids_refused: sample.pids_refused.max(before.pids_refused),
            met: sample.met | before.met,
            ..sample
        };
        life.peak = life.peak.max(sample.memory_peak).max(sample.memory);
        let at_us =
            life.started.map_or(0, |(origin, _)| u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX));
        let cpu_us = life.last.cpu_us - before.cpu_us;
        let now = usage(&life.last, life.last.memory);
        let in_us = at_us.saturating_sub(life.sampled_us);
        life.sampled_us = at_us;
        lock(&self.cell.gauges).insert(self.id.clone(), (now, cpu_milli(cpu_us, in_us)));
        let mut line = Vec::new();
        CellFiles::sample_line(&mut line, at_us, &now);
        if let Err(e) = self.cell.files.append_samples(&self.id, &line) {
            tracing::warn!(error = %e, instance = %self.id, "a sample cannot be written");
        }
    }

    async fn check_cpu(&mut self, life: &mut Life) {
        let limit = self.wanted.order.cpu_us;
        if limit > 0 && life.last.cpu_us > limit {
            self.end(life, Ending::OutOfCpu).await;
        }
    }

    /// Asks the workload to stop, and sees to it that it does.
    async fn stop(&mut self, life: &mut Life, reason: String) {
        if life.ending.is_some() {
            return;
        }
        life.ending = Some(Ending::Stopped(reason));
        self.tell_init(&ToInit::Signal(self.wanted.stop_signal)).await;
        life.kill_at = Some(Deadline::now() + self.wanted.stop_grace);
    }

    /// Ends the workload for a reason, which counts where it is the first.
    async fn end(&mut self, life: &mut Life, ending: Ending) {
        end_for(&mut life.ending, ending);
        if life.engine_kill_at.is_none() {
            self.kill(life).await;
        }
    }

    async fn kill(&mut self, life: &mut Life) {
        life.kill_at = None;
        life.engine_kill_at = Some(Deadline::now() + KILL);
        self.tell_init(&ToInit::Kill).await;
    }

    /// Starts a workload that was crashed, with the addresses that it has now.
    async fn start_again(&mut self) {
        let moved = self.cell.network.upgrade().and_then(|network| network.moved(&self.id));
        if let Some(addrs) = moved {
            self.tell_init(&ToInit::Set(self.wanted.variables_at(addrs))).await;
        }
        self.tell_init(&ToInit::Start).await;
    }

    /// Says something to init; a connection that does not take it is given up.
    async fn tell_init(&mut self, message: &ToInit) {
        if let Some(link) = &mut self.link
            && link.send(message).await.is_err()
        {
            self.link = None;
        }
    }

    /// Takes what the workload left, removes its container and tells how it ended.
    async fn finish(mut self, life: Life, over: Over, journal: &Mutex<Journal>, started_ms: u64) {
        let server = lock(&self.sync).take();
        if let Some(server) = server {
            server.finish(SYNC_PATIENCE).await;
        }
        let mut ending = life.ending.clone();
        let (mut last, mut links) = (life.last, 0);
        if let Over::Workload(_) = over {
            match self.collect().await {
                Ok(collected) => {
                    links = collected.links;
                    last.met |= collected.met;
                }
                Err(e) => {
                    tracing::warn!(error = %e, instance = %self.id, "artifacts are incomplete");
                    end_for(&mut ending, Ending::Failed(format!("its artifacts cannot be taken: {e}")));
                }
            }
        }
        self.tell_init(&ToInit::Bye).await;
        if let Err(reason) = self.take_records(journal, started_ms) {
            end_for(&mut ending, Ending::Failed(reason));
        }
        let ended_ms = wall_ms();
        let exit = match over {
            Over::Workload(end) => exit::of_workload(ending.as_ref(), end, &last, self.wanted.order.cpu_us),
            Over::NotStarted(errno) => {
                exit::not_started(errno, self.wanted.order.argv.first().map_or("", String::as_str))
            }
            Over::Container { oom_killed, reason } => exit::of_container(ending.as_ref(), oom_killed, reason),
        };
        let exit = lock(journal).exit(exit);
        let exit = if life.is_without_sync() { exit::without_sync(exit) } else { exit };
        let limits_met = exit::limits_met(&last, links, &exit);
        let started_ms = if matches!(exit, Exit::NotStarted { .. }) { 0 } else { started_ms };
        let usage = usage(&last, life.peak);
        let network = match self.cell.network.upgrade() {
            Some(network) => {
                let used = network.disconnect(&self.id).await;
                if self.spec.capture {
                    network.keep_capture(self.id.clone(), self.cell.at_us()).await;
                }
                used
            }
            None => None,
        };
        let left = self.cell.files.left(&self.id);
        let egress = self.carrier.take().map(|carrier| carrier.used()).unwrap_or_default();
        let network = network.map(|network| Box::new(NetworkUse { crashes: life.doing.crashes, egress, ..network }));
        let at_ms = self.dir.adoptions();
        let adopted = (!at_ms.is_empty()).then(|| Box::new(Adopted { at_ms, sync_lost: life.is_without_sync() }));
        self.tell(Ended { exit, usage, started_ms, ended_ms, left, limits_met, network, adopted }).await;
    }

    /// Has init hand over the artifacts.
    async fn collect(&mut self) -> io::Result<Collected> {
        let Some(link) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        // What an earlier life of the lablet took of them comes again.
        if self.adopted.is_some()
            && let Some(artifacts) = self.cell.files.left(&self.id).artifacts
        {
            std::fs::remove_dir_all(artifacts)?;
        }
        link.send(&ToInit::Collect).await?;
        let mut room = self.wanted.order.artifact_bytes.saturating_add(self.wanted.order.record_bytes);
        let (mut met, mut files, mut current) = (0, 0, String::new());
        loop {
            let message = tokio::time::timeout(COLLECT, link.receive()).await??;
            match message.ok_or(io::ErrorKind::UnexpectedEof)? {
                FromInit::Artifact { path, data } => {
                    if path != current {
                        files += 1;
                        current.clone_from(&path);
                    }
                    // Init says no more than it should; but it is a process of the workload's user.
                    if data.len() as u64 > room || files > MAX_ARTIFACTS {
                        met |= Sample::ARTIFACTS;
                        continue;
                    }
                    room -= data.len() as u64;
                    if check_artifact_path(&path).is_ok() {
                        self.cell.files.append_artifact(&self.id, &path, &data)?;
                    }
                }
                FromInit::Collected { links, other, met: found } => {
                    if other > 0 {
                        tracing::info!(instance = %self.id, other, "artifacts that are no plain files were left out");
                    }
                    return Ok(Collected { links, met: met | found });
                }
                FromInit::Sample(_)
                | FromInit::Hello { .. }
                | FromInit::Ready
                | FromInit::Started
                | FromInit::NotStarted { .. }
                | FromInit::Unwell { .. }
                | FromInit::Ended { .. } => {}
            }
        }
    }

    /// Reads the records that SDKs leave in files, and writes all that came since the last time.
    fn take_records(&self, journal: &Mutex<Journal>, started_ms: u64) -> Result<(), String> {
        let failed = |e: io::Error| format!("its records cannot be taken: {e}");
        if let Some(artifacts) = self.cell.files.left(&self.id).artifacts {
            let start_ns = started_ms.saturating_mul(1_000_000);
            iptl_testground::read_outputs(&artifacts, &mut lock(journal), start_ns).map_err(failed)?;
        }
        lock(journal).finish();
        write_records(&self.id, &self.cell.files, journal).map_err(failed)
    }

    async fn end_unstarted(mut self, exit: Exit) {
        self.tell_init(&ToInit::Bye).await;
        let left = self.cell.files.left(&self.id);
        let ended = Ended {
            exit,
            usage: Usage::default(),
            started_ms: 0,
            ended_ms: wall_ms(),
            left,
            limits_met: Vec::new(),
            network: None,
            adopted: None,
        };
        self.tell(ended).await;
    }

    /// Makes the end durable, tells it, and removes the container, which nobody needs any more.
    async fn tell(self, ended: Ended) {
        lock(&self.cell.gauges).remove(&self.id);
        if let Err(e) = self.dir.set_ended(&ended) {
            tracing::warn!(error = %e, instance = %self.id, "an end will be forgotten by a restart");
        }
        // Those who hear of the end may need the room.
        drop(self.room);
        let id = self.id;
        let _ = self.events.send(CellEvent::Ended { id: id.clone(), ended }).await;
        if let Err(e) = self.cell.engine.remove(&self.container).await {
            tracing::warn!(error = %e, instance = %id, container = self.container, "a container is left");
        }
    }
}

struct Collected {
    links: u32,
    met: u32,
}

impl From<Exceeded> for Ending {
    fn from(exceeded: Exceeded) -> Ending {
        match exceeded {
            Exceeded::TooMuch(what) => Ending::TooMuch(what),
            Exceeded::Lost(reason) => Ending::Failed(reason),
        }
    }
}

/// Hands an answer of the lab to the sync service of an instance, where it still has one.
pub(crate) fn reply(sync: &Mutex<Option<SyncServer>>, reply: SyncReply) {
    if let Some(server) = &*lock(sync) {
        server.reply(reply);
    }
}

fn end_for(ending: &mut Option<Ending>, reason: Ending) {
    if ending.is_none() {
        *ending = Some(reason);
    }
}

/// Waits until a container does not run any more.
async fn container_over(engine: &crate::engine::Engine, id: &str) -> Over {
    loop {
        match engine.state(id).await {
            Ok(Some(state)) if state.running == Some(true) => {}
            Ok(Some(state)) => {
                let code = state.exit_code.unwrap_or(0);
                let error = state.error.filter(|e| !e.is_empty()).map_or_else(String::new, |e| format!(": {e}"));
                let reason = format!("its container ended from outside with status {code}{error}");
                return Over::Container { oom_killed: state.oom_killed == Some(true), reason };
            }
            Ok(None) => {
                return Over::Container {
                    oom_killed: false,
                    reason: "its container was removed from outside".to_owned(),
                };
            }
            Err(e) => {
                let reason = format!("the container engine does not answer: {}", engine::said(&e));
                return Over::Container { oom_killed: false, reason };
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns how many bytes of output a log holds, as its limit counts them.
fn logged_bytes(path: &std::path::Path) -> u64 {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        line: std::borrow::Cow<'a, str>,
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let sizes = text.lines().filter_map(|line| serde_json::from_str::<Line<'_>>(line).ok());
    sizes.map(|line| line.line.len() as u64 + 1).sum()
}

fn usage(sample: &Sample, memory_bytes: u64) -> Usage {
    Usage {
        cpu_us: sample.cpu_us,
        memory_bytes,
        sent_bytes: sample.sent,
        received_bytes: sample.received,
        read_bytes: sample.read,
        written_bytes: sample.written,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
