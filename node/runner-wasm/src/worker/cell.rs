//! The cell of this worker: its instances, and what they share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use iptl_dag::model::{Exit, FaultDone, FaultKind, InstanceId};
use iptl_labnet::{Act, Directory, Happened};
use iptl_runner::files::CellFiles;
use iptl_runner::{Artifact, CellEvent, CellInput, CellSpec, Ended, InstanceSpec};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::engine::Compiler;
use super::guest::{self, Instance, Spell};
use super::limits::MemoryPool;
use super::net::Net;
use super::outbox::Outbox;
use super::samples;
use crate::ipc::{CellOrder, FromWorker, Refusal};

/// Time between two ticks of the engine's epoch: the longest that a guest computes before another gets its turn.
const TICK: Duration = Duration::from_millis(10);

/// One cell.
pub(crate) struct Cell {
    /// What the lablet said, without the instances.
    pub(crate) order: CellOrder,
    /// What the cell says.
    pub(crate) outbox: Arc<Outbox>,
    /// What instances leave behind.
    pub(crate) files: CellFiles,
    /// Who has which address.
    pub(crate) directory: Arc<Directory>,
    /// The sockets of all instances.
    pub(crate) net: Arc<Net>,
    /// Memory that the guests have together.
    pub(crate) memory: Arc<MemoryPool>,
    instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// Taken by `prepare`.
    specs: Mutex<Vec<InstanceSpec>>,
    /// Faults that happen; taken by `prepare`.
    happened: Mutex<Option<mpsc::UnboundedReceiver<Happened>>>,
    /// Cancelled when instances are released.
    released: CancellationToken,
    /// Cancelled when instances must end.
    stopping: CancellationToken,
    stop_reason: OnceLock<String>,
    begun: OnceLock<Beginning>,
    /// Instances that are not ready yet.
    preparing: AtomicUsize,
    /// Instances that have not ended.
    live: AtomicUsize,
}

/// When the instances were released.
#[derive(Clone, Copy)]
struct Beginning {
    at: Instant,
    wall_ms: u64,
}

impl Cell {
    pub(crate) fn new(order: CellOrder, specs: Vec<InstanceSpec>, outbox: Arc<Outbox>) -> Result<Cell, Refusal> {
        let io = |what: &str, reason: String| Refusal::Io { what: what.to_owned(), reason };
        let directory = Directory::new(&order.cell.groups).map_err(|e| io("lab addresses", e.to_string()))?;
        let directory = Arc::new(directory);
        let net = Net::new(Arc::clone(&directory), Arc::clone(&outbox), &order.cell, &specs);
        let (net, happened) = net.map_err(|e| io("the network of the run", e.to_string()))?;
        let net = Arc::new(net);
        let mut instances = BTreeMap::new();
        for spec in &specs {
            let address = directory
                .addr(&spec.id)
                .ok_or_else(|| io("lab addresses", format!("no group of the run has an instance {}", spec.id)))?;
            net.add(&spec.id);
            instances.insert(spec.id.clone(), Arc::new(Instance::new(spec, address)));
        }
        if instances.len() != specs.len() {
            return Err(io("the cell", "an instance is in it twice".to_owned()));
        }
        Ok(Cell {
            files: CellFiles::new(order.cell.scratch.clone()),
            memory: Arc::new(MemoryPool::new(order.memory_bytes)),
            order,
            outbox,
            directory,
            net,
            preparing: AtomicUsize::new(instances.len()),
            live: AtomicUsize::new(instances.len()),
            instances,
            specs: Mutex::new(specs),
            happened: Mutex::new(Some(happened)),
            released: CancellationToken::new(),
            stopping: CancellationToken::new(),
            stop_reason: OnceLock::new(),
            begun: OnceLock::new(),
        })
    }

    /// Returns what the lablet said about the cell, without its instances.
    pub(crate) fn spec(&self) -> &CellSpec {
        &self.order.cell
    }

    /// Compiles what must be, makes every instance, and has the last one that is ready tell the lablet. Blocks while it
    /// compiles.
    pub(crate) fn prepare(self: &Arc<Self>, compiler: &Compiler) -> Result<(), Refusal> {
        let specs = std::mem::take(&mut *self.specs.lock().unwrap_or_else(PoisonError::into_inner));
        let io = |what: &str, reason: String| Refusal::Io { what: what.to_owned(), reason };
        let cache = Cache::open(&self.order.cache_dir)
            .map_err(|e| io(&format!("the cache {}", self.order.cache_dir.display()), e.to_string()))?;
        let mut artifacts = BTreeMap::<Artifact, u32>::new();
        for spec in &specs {
            *artifacts.entry(spec.artifact.clone()).or_default() += 1;
        }
        let memory_bytes = specs.iter().map(|spec| spec.limits.memory_bytes).max().unwrap_or(0);
        let code = Arc::new(compiler.load(&cache, &artifacts, memory_bytes)?);
        let engine = code.engine.clone();
        std::thread::Builder::new()
            .name("iptl-ticks".to_owned())
            .spawn(move || {
                loop {
                    std::thread::sleep(TICK);
                    engine.increment_epoch();
                }
            })
            .map_err(|e| io("a thread", e.to_string()))?;
        tokio::spawn(Arc::clone(&self.net).pump());
        if self.order.cell.network.is_some() || self.order.cell.mixed {
            self.net.run_clock().map_err(|e| io("a thread", e.to_string()))?;
        }
        if let Some(happened) = self.happened.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(Arc::clone(self).follow_faults(happened));
        }
        tokio::spawn(samples::sweep(Arc::clone(self)));
        if specs.is_empty() {
            self.outbox.push(&FromWorker::Prepared);
        }
        for spec in specs {
            let instance = Arc::clone(&self.instances[&spec.id]);
            tokio::spawn(guest::live(Arc::clone(self), instance, spec, Arc::clone(&code)));
        }
        Ok(())
    }

    /// One instance is as ready as it will be.
    pub(crate) fn instance_is_ready(&self) {
        if self.preparing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.outbox.push(&FromWorker::Prepared);
        }
    }

    /// Releases all instances.
    pub(crate) fn start(&self) {
        self.begun.get_or_init(|| Beginning { at: Instant::now(), wall_ms: wall_ms() });
        self.net.start();
        self.released.cancel();
        if self.instances.is_empty() {
            self.outbox.push(&FromWorker::Event(CellEvent::CellOver));
        }
    }

    /// Ends all instances.
    pub(crate) fn stop(&self, reason: &str) {
        self.stop_reason.get_or_init(|| reason.to_owned());
        self.stopping.cancel();
        if self.instances.is_empty() {
            self.outbox.push(&FromWorker::Event(CellEvent::CellOver));
        }
    }

    /// Writes faults that happened into the events of those whom they concern, and does to instances what is to be done.
    async fn follow_faults(self: Arc<Self>, mut happened: mpsc::UnboundedReceiver<Happened>) {
        while let Some(Happened { due_ns, what, hit, act, .. }) = happened.recv().await {
            let (due_us, done_us) = (due_ns / 1_000, self.at_us());
            let mut line = Vec::new();
            CellFiles::fault_line(&mut line, done_us, what, due_us);
            let mut instances = 0;
            for id in hit {
                let Some(instance) = self.instances.get(&id) else { continue };
                if instance.has_ended() {
                    continue;
                }
                instances += 1;
                if let Err(error) = self.files.append_events(&id, &line) {
                    tracing::warn!(%id, %error, "a fault is not among the events");
                }
                match act {
                    // A component has no files that it could lose.
                    Some(Act::Crash { restart_ns, files_lost: _ }) => instance.crash(Spell::of(restart_ns, due_us)),
                    Some(Act::Pause { for_ns }) => instance.pause(Spell::of(for_ns, due_us)),
                    Some(Act::Clock { by_ms }) => instance.step_clock(by_ms),
                    None => {}
                }
            }
            if instances > 0 {
                self.say(CellEvent::Fault(FaultDone { due_us, kind: what, done_us, instances }));
            }
        }
    }

    /// Tells that what was done to an instance on purpose is over, which was due at `due_us`.
    pub(crate) fn fault_is_over(&self, id: &InstanceId, kind: FaultKind, due_us: u64) {
        let done_us = self.at_us();
        let mut line = Vec::new();
        CellFiles::fault_line(&mut line, done_us, kind, due_us);
        if let Err(error) = self.files.append_events(id, &line) {
            tracing::warn!(%id, %error, "the end of a fault is not among the events");
        }
        self.say(CellEvent::Fault(FaultDone { due_us, kind, done_us, instances: 1 }));
    }

    /// Hands over what the lablet says.
    pub(crate) fn input(&self, inputs: Vec<CellInput>) {
        let mut batches = Vec::new();
        for input in inputs {
            if !matches!(input, CellInput::Packets(_)) && !batches.is_empty() {
                self.net.packets(&std::mem::take(&mut batches));
            }
            match input {
                CellInput::Sync(reply) => {
                    if let Some(instance) = self.instances.get(reply.target().0) {
                        instance.mailbox.deliver(reply);
                    }
                }
                CellInput::Packets(batch) => batches.push(batch),
                CellInput::Cut(addrs) => self.net.cut(&addrs),
            }
        }
        if !batches.is_empty() {
            self.net.packets(&batches);
        }
    }

    /// Waits until instances are released, and so long after that; true where they are to run, false where they are to
    /// end.
    pub(crate) async fn wait_for_release(&self, after: Duration) -> bool {
        let released = async {
            self.released.cancelled().await;
            let since = self.begun.get().map_or(Duration::ZERO, |begun| begun.at.elapsed());
            tokio::time::sleep(after.saturating_sub(since)).await;
        };
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => false,
            () = released => true,
        }
    }

    /// Waits until instances must end, and returns how they end.
    pub(crate) async fn stopped(&self) -> Exit {
        self.stopping.cancelled().await;
        Exit::Stopped { reason: self.stop_reason.get().cloned().unwrap_or_default() }
    }

    /// Returns all instances.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    /// Returns whether an instance has not ended yet.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire) > 0
    }

    /// Returns microseconds since the instances were released.
    pub(crate) fn at_us(&self) -> u64 {
        self.begun.get().map_or(0, |begun| u64::try_from(begun.at.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns the wall time of the release in milliseconds since 1970; zero before it.
    pub(crate) fn started_ms(&self) -> u64 {
        self.begun.get().map_or(0, |begun| begun.wall_ms)
    }

    /// Says something to the lablet.
    pub(crate) fn say(&self, event: CellEvent) {
        self.outbox.push(&FromWorker::Event(event));
    }

    /// Says that an instance ended, and that the cell is over where it was the last.
    pub(crate) fn instance_ended(&self, id: InstanceId, ended: Ended) {
        self.say(CellEvent::Ended { id, ended });
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.say(CellEvent::CellOver);
        }
    }
}

/// Returns the wall time in milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
