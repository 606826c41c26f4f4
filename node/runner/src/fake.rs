//! A runner that executes scripts instead of programs.
//!
//! For tests of whatever drives a runner: cells start, speak, call the lab and end exactly as told, without processes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use iptl_dag::model::{Exit, InstanceId, Usage, WorkloadKind};
use tokio::sync::{mpsc, watch};

use crate::cell::{CellControl, CellEvent, CellInput, CellSpec, Ended, InstanceSpec, OutputStream, PreparedCell};
use crate::files::CellFiles;
use crate::runner::{Capacity, PrepareError, Runner};
use crate::sync::{SyncCall, SyncReply};

/// Events that a reader may lag behind before instances wait for it.
const EVENT_QUEUE: usize = 1024;

/// Answers that an instance may lag behind.
const INPUT_QUEUE: usize = 1024;

/// One thing that a scripted instance does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Writes a line.
    Print(OutputStream, String),
    /// Records an event; the data is JSON.
    Event(String, String),
    /// Records a value of a metric: name, value, unit.
    Metric(String, f64, String),
    /// Appends to an artifact.
    Artifact(String, Vec<u8>),
    /// Signals a state and waits for the answer.
    Signal(String),
    /// Waits until a state has so many signals.
    Barrier(String, u64),
    /// Publishes on a topic and waits for the answer.
    Publish(String, Vec<u8>),
    /// Subscribes to a topic, prints that many messages and gives the subscription up.
    Receive(String, u64),
    /// Waits.
    Wait(Duration),
    /// Runs until it is stopped.
    Forever,
    /// Ends; without this step an instance ends with status zero.
    Exit(Exit),
}

/// What a scripted instance does, step by step.
pub type Script = Arc<dyn Fn(&InstanceSpec) -> Vec<Step> + Send + Sync>;

/// Executes scripts.
#[derive(Clone)]
pub struct FakeRunner {
    inner: Arc<Inner>,
}

struct Inner {
    kind: WorkloadKind,
    script: Script,
    state: Mutex<State>,
}

struct State {
    capacity: Capacity,
    refusals: Vec<PrepareError>,
    prepared: Vec<CellSpec>,
    cells: Vec<watch::Sender<Phase>>,
}

/// Where a cell stands.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Prepared,
    Running,
    Over(Exit),
}

impl FakeRunner {
    /// Makes a runner whose instances do what `script` says.
    pub fn new(script: impl Fn(&InstanceSpec) -> Vec<Step> + Send + Sync + 'static) -> FakeRunner {
        let capacity =
            Capacity { instances: 1000, memory_bytes: 64 << 30, bound: "scripts need no machine".to_owned() };
        let state = State { capacity, refusals: Vec::new(), prepared: Vec::new(), cells: Vec::new() };
        let inner = Inner { kind: WorkloadKind::Wasm, script: Arc::new(script), state: Mutex::new(state) };
        FakeRunner { inner: Arc::new(inner) }
    }

    /// Makes it a runner of another kind than Wasm. Must come before the runner is shared.
    pub fn of_kind(mut self, kind: WorkloadKind) -> FakeRunner {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.kind = kind;
        }
        self
    }

    /// Sets what it claims to hold.
    pub fn set_capacity(&self, capacity: Capacity) {
        self.state().capacity = capacity;
    }

    /// Makes the next `prepare` fail; several refusals are used in the order in which they were given.
    pub fn refuse_next(&self, error: PrepareError) {
        self.state().refusals.push(error);
    }

    /// Returns the cells that were prepared, in order.
    pub fn prepared(&self) -> Vec<CellSpec> {
        self.state().prepared.clone()
    }

    /// Ends all cells as if their workers had been killed.
    pub fn kill_workers(&self) {
        for cell in &self.state().cells {
            end(cell, Exit::WorkerDied { reason: "signal 9".to_owned() });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Runner for FakeRunner {
    fn kind(&self) -> WorkloadKind {
        self.inner.kind
    }

    fn version(&self) -> String {
        "fake 1".to_owned()
    }

    fn capacity(&self) -> Capacity {
        self.state().capacity.clone()
    }

    async fn prepare(&self, cell: CellSpec) -> Result<PreparedCell, PrepareError> {
        let (phase, phases) = watch::channel(Phase::Prepared);
        {
            let mut state = self.state();
            let needed = cell.instances.len() as u64;
            let available = u64::from(state.capacity.instances);
            if needed > available {
                let bound = state.capacity.bound.clone();
                return Err(PrepareError::NoCapacity { what: "instances".to_owned(), needed, available, bound });
            }
            if !state.refusals.is_empty() {
                return Err(state.refusals.remove(0));
            }
            state.cells.retain(|cell| !cell.is_closed());
            state.cells.push(phase.clone());
            state.prepared.push(cell.clone());
        }
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let files = Arc::new(CellFiles::new(cell.scratch.clone()));
        let mut inputs = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        for instance in &cell.instances {
            let (input, replies) = mpsc::channel(INPUT_QUEUE);
            inputs.insert(instance.id.clone(), input);
            let actor = Actor {
                id: instance.id.clone(),
                events: events.clone(),
                replies,
                files: Arc::clone(&files),
                started: Instant::now(),
                next_call: 0,
            };
            let delay = Duration::from_millis(instance.start_after_ms);
            tasks.spawn(actor.live((self.inner.script)(instance), phases.clone(), delay));
        }
        tokio::spawn(async move {
            while tasks.join_next().await.is_some() {}
            let _ = events.send(CellEvent::CellOver).await;
        });
        Ok(PreparedCell { control: Box::new(FakeControl { phase, inputs }), events: receiver })
    }

    async fn warm(&self) {}

    async fn shutdown(&self) {
        for cell in &self.state().cells {
            end(cell, Exit::Stopped { reason: "the runner shuts down".to_owned() });
        }
    }
}

fn end(cell: &watch::Sender<Phase>, exit: Exit) {
    cell.send_if_modified(|phase| match phase {
        Phase::Prepared | Phase::Running => {
            *phase = Phase::Over(exit);
            true
        }
        Phase::Over(_) => false,
    });
}

struct FakeControl {
    phase: watch::Sender<Phase>,
    inputs: BTreeMap<InstanceId, mpsc::Sender<SyncReply>>,
}

#[async_trait]
impl CellControl for FakeControl {
    async fn start(&self) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Prepared => {
                *phase = Phase::Running;
                true
            }
            Phase::Running | Phase::Over(_) => false,
        });
    }

    async fn stop(&self, reason: String) {
        end(&self.phase, Exit::Stopped { reason });
    }

    async fn input(&self, inputs: Vec<CellInput>) {
        for input in inputs {
            match input {
                CellInput::Sync(reply) => {
                    if let Some(instance) = self.inputs.get(reply.target().0) {
                        let _ = instance.send(reply).await;
                    }
                }
                CellInput::Packets(_) | CellInput::Cut(_) => {}
            }
        }
    }

    fn worker_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        end(&self.phase, Exit::Stopped { reason: "its control was dropped".to_owned() });
    }
}

/// One scripted instance.
struct Actor {
    id: InstanceId,
    events: mpsc::Sender<CellEvent>,
    replies: mpsc::Receiver<SyncReply>,
    files: Arc<CellFiles>,
    started: Instant,
    next_call: u64,
}

impl Actor {
    async fn live(mut self, script: Vec<Step>, mut phases: watch::Receiver<Phase>, delay: Duration) {
        let begun = match phases.wait_for(|phase| *phase != Phase::Prepared).await.as_deref() {
            Ok(Phase::Over(exit)) => Err(exit.clone()),
            Ok(Phase::Prepared | Phase::Running) => Ok(()),
            Err(_) => Err(Exit::Stopped { reason: "the runner is gone".to_owned() }),
        };
        let begun = match begun {
            Ok(()) => tokio::select! {
                () = tokio::time::sleep(delay) => Ok(()),
                phase = phases.wait_for(|phase| matches!(phase, Phase::Over(_))) => Err(match phase.as_deref() {
                    Ok(Phase::Over(exit)) => exit.clone(),
                    Ok(Phase::Prepared | Phase::Running) | Err(_) => {
                        Exit::Stopped { reason: "the runner is gone".to_owned() }
                    }
                }),
            },
            Err(exit) => Err(exit),
        };
        let (exit, started_ms) = match begun {
            Err(exit) => (exit, 0),
            Ok(()) => {
                self.started = Instant::now();
                let started_ms = wall_ms();
                let exit = tokio::select! {
                    exit = self.act(script) => exit,
                    phase = phases.wait_for(|phase| matches!(phase, Phase::Over(_))) => match phase.as_deref() {
                        Ok(Phase::Over(exit)) => exit.clone(),
                        Ok(Phase::Prepared | Phase::Running) | Err(_) => {
                            Exit::Stopped { reason: "the runner is gone".to_owned() }
                        }
                    },
                };
                (exit, started_ms)
            }
        };
        let left = self.files.left(&self.id);
        let usage = Usage { cpu_us: self.at_us(), memory_bytes: 1 << 20, ..Usage::default() };
        let ended = Ended {
            exit,
            usage,
            started_ms,
            ended_ms: wall_ms(),
            left,
            limits_met: Vec::new(),
            network: None,
            adopted: None,
        };
        let _ = self.events.send(CellEvent::Ended { id: self.id, ended }).await;
    }

    async fn act(&mut self, script: Vec<Step>) -> Exit {
        for step in script {
            let failure = match step {
                Step::Print(stream, line) => self.print(stream, line).await,
                Step::Event(name, data) => self.event(&name, &data),
                Step::Metric(name, value, unit) => {
                    let mut lines = Vec::new();
                    CellFiles::metric_line(&mut lines, self.at_us(), &name, value, &unit);
                    self.files.append_metrics(&self.id, &lines).err().map(|e| e.to_string())
                }
                Step::Artifact(path, data) => {
                    self.files.append_artifact(&self.id, &path, &data).err().map(|e| e.to_string())
                }
                Step::Signal(state) => self.ask(|call| SyncCall::Signal { call, state }).await.err(),
                Step::Barrier(state, target) => self.ask(|call| SyncCall::Barrier { call, state, target }).await.err(),
                Step::Publish(topic, payload) => {
                    self.ask(|call| SyncCall::Publish { call, topic, payload }).await.err()
                }
                Step::Receive(topic, count) => self.receive(topic, count).await,
                Step::Wait(time) => {
                    tokio::time::sleep(time).await;
                    None
                }
                Step::Forever => std::future::pending().await,
                Step::Exit(exit) => return exit,
            };
            if let Some(reason) = failure {
                let _ = self.print(OutputStream::Err, reason).await;
                return Exit::Exited { code: 1 };
            }
        }
        Exit::Exited { code: 0 }
    }

    async fn print(&mut self, stream: OutputStream, line: String) -> Option<String> {
        let at_us = self.at_us();
        let mut lines = Vec::new();
        CellFiles::log_line(&mut lines, at_us, stream, &line);
        let failure = self.files.append_logs(&self.id, &lines).err().map(|e| e.to_string());
        let _ = self.events.send(CellEvent::Output { id: self.id.clone(), stream, at_us, line }).await;
        failure
    }

    fn event(&mut self, name: &str, data: &str) -> Option<String> {
        let data = match serde_json::value::RawValue::from_string(data.to_owned()) {
            Ok(data) => data,
            Err(e) => return Some(e.to_string()),
        };
        let mut lines = Vec::new();
        CellFiles::event_line(&mut lines, self.at_us(), name, &data);
        self.files.append_events(&self.id, &lines).err().map(|e| e.to_string())
    }

    async fn ask(&mut self, question: impl FnOnce(u64) -> SyncCall) -> Result<SyncReply, String> {
        let number = self.call(question).await;
        self.answer(number).await
    }

    async fn receive(&mut self, topic: String, count: u64) -> Option<String> {
        let number = self.call(|call| SyncCall::Subscribe { call, topic }).await;
        for _ in 0..count {
            let payload = match self.answer(number).await {
                Ok(SyncReply::Message { payload, .. }) => payload,
                Ok(other) => return Some(format!("unexpected answer {other:?}")),
                Err(reason) => return Some(reason),
            };
            self.print(OutputStream::Out, String::from_utf8_lossy(&payload).into_owned()).await;
        }
        let _ =
            self.events.send(CellEvent::Sync { id: self.id.clone(), call: SyncCall::Cancel { call: number } }).await;
        None
    }

    async fn call(&mut self, question: impl FnOnce(u64) -> SyncCall) -> u64 {
        let number = self.next_call;
        self.next_call += 1;
        let _ = self.events.send(CellEvent::Sync { id: self.id.clone(), call: question(number) }).await;
        number
    }

    async fn answer(&mut self, number: u64) -> Result<SyncReply, String> {
        loop {
            match self.replies.recv().await {
                Some(SyncReply::Failed { call, reason, .. }) if call == number => return Err(reason),
                Some(reply) if reply.target().1 == number => return Ok(reply),
                Some(_) => {}
                None => return Err("the cell is gone".to_owned()),
            }
        }
    }

    fn at_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Returns the wall time in milliseconds since 1970.
fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
