//! One cell: its instances are made ready together, started together, and followed to their ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use iptl_dag::model::{Exit, InstanceId, Usage};
use iptl_labnet::Away;
use iptl_runner::files::CellFiles;
use iptl_runner::{CellControl, CellEvent, CellInput, CellSpec, CellUsage, Ended, ExecError, ExecOrder, ExecStream};
use iptl_testground::SyncServer;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::exec;
use crate::instance::{self, Instance};
use crate::network::CellNetwork;
use crate::state::{CellDir, InstanceDir};

/// Events that the reader of a cell may lag behind before its instances wait.
pub(crate) const EVENT_QUEUE: usize = 1024;

/// Time between two sums of what instances use.
const USAGE: Duration = Duration::from_secs(1);

/// What all instances of a cell share.
pub(crate) struct Cell {
    pub(crate) engine: Engine,
    pub(crate) spec: CellSpec,
    pub(crate) files: Arc<CellFiles>,
    pub(crate) dir: CellDir,
    /// Start by the clocks of this process and of people.
    pub(crate) start: OnceLock<(Instant, u64)>,
    /// What running instances said last that they use, with CPU in thousandths of a processor.
    pub(crate) gauges: Mutex<BTreeMap<InstanceId, (Usage, u64)>>,
    /// What the engine was asked to make: it does so whether or not anybody waits for it.
    pub(crate) making: TaskTracker,
    /// It lives as long as its instances, whoever still controls the cell.
    pub(crate) network: Weak<CellNetwork>,
}

/// Where a cell stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Held,
    Running,
    Stopping(String),
}

/// What the control of a cell reaches of one instance.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) sync: Arc<Mutex<Option<SyncServer>>>,
    pub(crate) container: String,
    /// Whether commands may be executed in it.
    pub(crate) exec: bool,
}

/// One instance of a cell that is about to live.
pub(crate) enum Member {
    /// Its container holds it, or runs.
    Ready(Box<Instance>),
    /// It has no container; this is how it ended.
    Ended { id: InstanceId, dir: InstanceDir, ended: Box<Ended> },
}

impl Cell {
    /// Returns the start, which has been.
    pub(crate) fn started(&self) -> (Instant, u64) {
        *self.start.get_or_init(|| (Instant::now(), wall_ms()))
    }

    /// Sums up what its instances use.
    fn usage(&self) -> CellUsage {
        let mut usage = CellUsage::of_groups(self.spec.instances.iter().map(|instance| instance.id.group.as_str()));
        for (id, (used, cpu_milli)) in &*self.gauges.lock().unwrap_or_else(PoisonError::into_inner) {
            usage.add(id, used, *cpu_milli);
        }
        usage
    }

    /// Notes that the cell starts now.
    fn start_now(&self) {
        let (_, wall) = self.started();
        if let Err(e) = self.dir.set_started(wall) {
            tracing::warn!(error = %e, "the start of a cell will be forgotten by a restart");
        }
        if let Some(network) = self.network.upgrade() {
            network.begin(Duration::ZERO);
        }
    }

    /// Returns microseconds since the start.
    pub(crate) fn at_us(&self) -> u64 {
        u64::try_from(self.age().as_micros()).unwrap_or(u64::MAX)
    }

    /// Returns how long ago it started.
    pub(crate) fn age(&self) -> Duration {
        self.started().0.elapsed()
    }

    /// Notes that it started at this wall time, in an earlier life.
    pub(crate) fn started_at(&self, wall: u64) {
        let ago = Duration::from_millis(wall_ms().saturating_sub(wall));
        let origin = Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
        let _ = self.start.set((origin, wall));
    }
}

/// Follows all instances to their ends, and tells that. Their network ends with them.
pub(crate) async fn follow(
    cell: Arc<Cell>,
    network: Arc<CellNetwork>,
    events: mpsc::Sender<CellEvent>,
    members: Vec<Member>,
    phase: watch::Sender<Phase>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for member in members {
        match member {
            Member::Ready(instance) => {
                tasks.spawn(instance.live(phase.subscribe()));
            }
            Member::Ended { id, dir, ended } => {
                let events = events.clone();
                tasks.spawn(async move {
                    if let Err(e) = dir.set_ended(&ended) {
                        tracing::debug!(error = %e, instance = %id, "an end will be forgotten by a restart");
                    }
                    let _ = events.send(CellEvent::Ended { id, ended: *ended }).await;
                });
            }
        }
    }
    let mut ticks = tokio::time::interval(USAGE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Nothing is used before the start, and nothing said of it.
    let mut told = cell.usage();
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Ok(())) => {}
                Some(Err(e)) => tracing::error!(error = %e, "the task of an instance broke"),
                None => break,
            },
            _ = ticks.tick() => {
                let usage = cell.usage();
                // A reader that lags is told the next time.
                if usage != told && events.try_send(CellEvent::Usage(usage.clone())).is_ok() {
                    told = usage;
                }
            }
        }
    }
    drop(network);
    let _ = events.send(CellEvent::CellOver).await;
}

/// Returns the end of an instance that never ran.
pub(crate) fn not_started(reason: String) -> Box<Ended> {
    Box::new(Ended {
        exit: Exit::NotStarted { reason },
        usage: Usage::default(),
        started_ms: 0,
        ended_ms: wall_ms(),
        left: iptl_runner::files::LeftFiles::default(),
        limits_met: Vec::new(),
        adopted: None,
        network: None,
    })
}

/// Controls a cell.
pub(crate) struct Control {
    pub(crate) cell: Arc<Cell>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) handles: BTreeMap<InstanceId, Handle>,
    /// Ends the cell's directory when the cell is over and this is gone.
    pub(crate) _alive: mpsc::Sender<()>,
}

impl Control {
    fn stop_with(phase: &watch::Sender<Phase>, reason: String) {
        phase.send_if_modified(|phase| match phase {
            Phase::Held | Phase::Running => {
                *phase = Phase::Stopping(reason);
                true
            }
            Phase::Stopping(_) => false,
        });
    }
}

/// Tells a cell to stop, where it was not told before.
pub(crate) fn stop(phase: &watch::Sender<Phase>, reason: &str) {
    Control::stop_with(phase, reason.to_owned());
}

#[async_trait]
impl CellControl for Control {
    async fn start(&self) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Held => {
                self.cell.start_now();
                *phase = Phase::Running;
                true
            }
            Phase::Running | Phase::Stopping(_) => false,
        });
    }

    async fn stop(&self, reason: String) {
        Control::stop_with(&self.phase, reason);
    }

    async fn input(&self, inputs: Vec<CellInput>) {
        let mut packets = Vec::new();
        for input in inputs {
            match input {
                CellInput::Sync(reply) => {
                    if let Some(handle) = self.handles.get(reply.target().0) {
                        instance::reply(&handle.sync, reply);
                    }
                }
                // Those of components are of another kind, and not for containers.
                CellInput::Packets(batch) => packets.extend(batch.packets().filter_map(|bytes| Away::decode(&bytes))),
                // Whoever lost packets sends them again, as on any network.
                CellInput::Cut(_) => {}
            }
        }
        if let (false, Some(network)) = (packets.is_empty(), self.cell.network.upgrade()) {
            network.come_in(packets);
        }
    }

    fn worker_pid(&self) -> Option<u32> {
        None
    }

    async fn exec(&self, order: ExecOrder) -> Result<ExecStream, ExecError> {
        let handle = self.handles.get(&order.id).ok_or_else(|| ExecError::NotRunning(order.id.clone()))?;
        let runs = handle.sync.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !runs {
            return Err(ExecError::NotRunning(order.id));
        }
        if !handle.exec {
            let command = order.command.first().cloned().unwrap_or_default();
            let reason = "the plan does not allow commands in this group".to_owned();
            return Err(ExecError::Failed { command, reason });
        }
        exec::start(&self.cell.engine, &handle.container, order).await
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        stop(&self.phase, "its control was dropped");
    }
}

/// Returns the wall time in milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
