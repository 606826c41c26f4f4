//! The life of one instance: made, held before its first instruction, released, ended.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use iptl_dag::model::{Exit, FaultKind, InstanceId, Resources, Usage};
use iptl_labnet::Wish;
use iptl_runner::{Ended, InstanceSpec, OutputStream, environment};
use tokio::sync::watch;
use wasmtime::component::ResourceTable;
use wasmtime::{AsContextMut, Engine, Store};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::{HostWallClock, WasiCtx, WasiCtxView, WasiView};

use super::cell::{Cell, wall_ms};
use super::engine::Code;
use super::exit;
use super::lab::Mailbox;
use super::limits::{CpuMeter, MemoryLimiter, OutOfCpu};
use super::output::{Lines, Output};
use super::samples::{self, Gauges, Sampled};

/// Host handles that a guest may hold beside those of its sockets: calls of the lab, timers, streams.
const MAX_HANDLES: usize = 8192;

/// Handles that one socket may need: itself, two streams, a pollable for each.
const HANDLES_PER_SOCKET: usize = 6;

/// Bytes that the arguments of one host call may take on the host: the largest message several times.
const HOSTCALL_FUEL: usize = 8 << 20;

/// How long something that was done to an instance lasts.
#[derive(Clone, Copy)]
pub(crate) struct Spell {
    time: Duration,
    /// When its end is due, in microseconds since the release.
    over_us: u64,
}

impl Spell {
    /// What was due at a time and lasts for another.
    pub(crate) fn of(time_ns: u64, due_us: u64) -> Spell {
        Spell { time: Duration::from_nanos(time_ns), over_us: due_us.saturating_add(time_ns / 1_000) }
    }
}

/// What an instance and its cell share.
pub(crate) struct Instance {
    /// Group and index.
    pub(crate) id: InstanceId,
    /// Lab address.
    pub(crate) address: Ipv4Addr,
    /// What it may use.
    pub(crate) limits: Resources,
    /// Answers of the lab.
    pub(crate) mailbox: Mailbox,
    /// Output that is no line yet.
    pub(crate) lines: Mutex<Lines>,
    /// Bytes of events and metrics so far.
    pub(crate) record_bytes: AtomicU64,
    /// Bytes of artifacts so far.
    pub(crate) artifact_bytes: AtomicU64,
    /// Artifacts so far.
    pub(crate) artifact_paths: Mutex<BTreeSet<String>>,
    /// All that it has asked of its network so far.
    wish: Mutex<Wish>,
    /// What it has used so far.
    pub(crate) gauges: Arc<Gauges>,
    /// What of that was written down.
    pub(crate) sampled: Mutex<Sampled>,
    /// For how long it is down, once it is to crash.
    crash: watch::Sender<Option<Spell>>,
    /// Until when it is paused, and when that is due, in microseconds since the release.
    paused: watch::Sender<Option<(Instant, u64)>>,
    /// By how many milliseconds its wall clock is ahead of the machine's.
    ahead_ms: AtomicI64,
    ended: AtomicBool,
}

impl Instance {
    pub(crate) fn new(spec: &InstanceSpec, address: Ipv4Addr) -> Instance {
        Instance {
            id: spec.id.clone(),
            address,
            limits: spec.limits,
            mailbox: Mailbox::default(),
            lines: Mutex::new(Lines::default()),
            record_bytes: AtomicU64::new(0),
            artifact_bytes: AtomicU64::new(0),
            artifact_paths: Mutex::new(BTreeSet::new()),
            wish: Mutex::default(),
            gauges: Arc::default(),
            sampled: Mutex::default(),
            crash: watch::Sender::new(None),
            paused: watch::Sender::new(None),
            ahead_ms: AtomicI64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Returns all that it has asked of its network so far.
    pub(crate) fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends its program at once, and starts it again after some time.
    pub(crate) fn crash(&self, down: Spell) {
        self.crash.send_replace(Some(down));
    }

    /// Lets its program compute nothing for some time; of two pauses the one that ends later counts.
    pub(crate) fn pause(&self, still: Spell) {
        let until = (Instant::now() + still.time, still.over_us);
        self.paused.send_modify(|paused| *paused = Some(paused.map_or(until, |earlier| earlier.max(until))));
    }

    /// Makes its wall clock jump; the steps of several jumps add up.
    pub(crate) fn step_clock(&self, by_ms: i64) {
        let step = |ahead_ms: i64| Some(ahead_ms.saturating_add(by_ms));
        let _always_some = self.ahead_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// Runs something that stands still while the instance is paused; tells when it goes on, and when that was due. What
    /// computes without a break stops when it next yields, which guests do every 10 ms.
    async fn unless_paused<T>(&self, goes_on: impl Fn(u64), future: impl Future<Output = T>) -> T {
        let mut paused = self.paused.subscribe();
        let mut future = pin!(future);
        let mut stood_still = false;
        loop {
            let until = *paused.borrow_and_update();
            if let Some((until, _)) = until.filter(|(until, _)| *until > Instant::now()) {
                stood_still = true;
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    // Longer than that.
                    _ = paused.changed() => {}
                }
                continue;
            }
            if let Some((_, over_us)) = until.filter(|_| std::mem::take(&mut stood_still)) {
                goes_on(over_us);
            }
            tokio::select! {
                biased;
                _ = paused.changed() => {}
                output = &mut future => return output,
            }
        }
    }

    /// Returns whether it is over for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits until it is to crash; returns for how long it is down then.
    async fn crashed(&self) -> Spell {
        let mut crash = self.crash.subscribe();
        match crash.wait_for(Option::is_some).await.map(|down| *down) {
            Ok(Some(down)) => down,
            // Its own sender lives as long as it does.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// What host functions of a guest see.
pub(crate) struct Guest {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    limiter: MemoryLimiter,
    pub(crate) cell: Arc<Cell>,
    pub(crate) instance: Arc<Instance>,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Lives the life of one instance, from its making to the last word about it.
pub(crate) async fn live(cell: Arc<Cell>, instance: Arc<Instance>, mut spec: InstanceSpec, code: Arc<Code>) {
    let mut meter = CpuMeter::new(Arc::clone(&instance.gauges));
    let mut store = store(&cell, &instance, &spec, &code.engine);
    let command = &code.commands[&spec.artifact.cid];
    if cell.spec().faults.is_empty() {
        // Nobody makes its store again.
        (spec.args, spec.env) = Default::default();
    }
    let mut made = make(&mut store, command, &cell, &mut meter).await;
    cell.instance_is_ready();
    let released = cell.wait_for_release(Duration::from_millis(spec.start_after_ms)).await;
    let started_ms = if released { cell.started_ms().saturating_add(spec.start_after_ms) } else { 0 };
    let started = Instant::now();
    let exit = loop {
        let program = match made {
            Ok(_) if !released => break cell.stopped().await,
            Ok(program) => program,
            Err(exit) => break exit,
        };
        let down = tokio::select! {
            biased;
            down = instance.crashed() => down,
            exit = run(&mut store, &program, &cell, started, &mut meter) => break exit,
        };
        // As at a loss of power: what it held is gone, its connections are reset, and its address stays.
        drop(store);
        cell.net.remove(instance.address);
        let stopped = tokio::select! {
            biased;
            exit = cell.stopped() => Some(exit),
            () = tokio::time::sleep(down.time) => None,
        };
        instance.crash.send_replace(None);
        cell.net.add(&instance.id);
        store = self::store(&cell, &instance, &spec, &code.engine);
        if let Some(exit) = stopped {
            break exit;
        }
        made = make(&mut store, command, &cell, &mut meter).await;
        if made.is_ok() {
            cell.fault_is_over(&instance.id, FaultKind::Restart, down.over_us);
        }
    };
    end(store, exit, started_ms, &meter, spec.capture).await;
}

/// Makes the store of an instance, with everything that it may use and nothing else.
fn store(cell: &Arc<Cell>, instance: &Arc<Instance>, spec: &InstanceSpec, engine: &Engine) -> Store<Guest> {
    let ordinal = cell.directory.ordinal(&instance.id).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let output = |stream| Output { cell: Arc::clone(cell), instance: Arc::clone(instance), stream };
    let mut wasi = WasiCtx::builder();
    // Secure randomness and clocks stay the real ones in live runs, but for faults; what std seeds its maps with follows
    // the run.
    wasi.wall_clock(WallClock(Arc::clone(instance)))
        .stdout(output(OutputStream::Out))
        .stderr(output(OutputStream::Err))
        .insecure_random_seed(seed(cell.spec().seed, ordinal))
        .arg("plan");
    for arg in &spec.args {
        wasi.arg(arg);
    }
    for (name, value) in environment(cell.spec(), spec, ordinal, cell.net.own_addrs(instance.address)) {
        wasi.env(name, value);
    }
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_HANDLES + HANDLES_PER_SOCKET * instance.limits.sockets as usize);
    let limiter =
        MemoryLimiter::new(Arc::clone(&cell.memory), instance.limits.memory_bytes, Arc::clone(&instance.gauges));
    let guest = Guest { wasi: wasi.build(), table, limiter, cell: Arc::clone(cell), instance: Arc::clone(instance) };
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    store.as_context_mut().set_hostcall_fuel(HOSTCALL_FUEL);
    store
}

/// The wall clock of an instance: the machine's, with what faults have done to it.
struct WallClock(Arc<Instance>);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        // A clock that shows a time before 1970 on the machine itself shows 1970.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ahead_ms = self.0.ahead_ms.load(Ordering::Relaxed);
        let step = Duration::from_millis(ahead_ms.unsigned_abs());
        if ahead_ms < 0 { now.saturating_sub(step) } else { now.saturating_add(step) }
    }
}

/// Returns the seed of what a guest may treat as random but must not treat as secret.
fn seed(run: u64, ordinal: u32) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"iptl insecure seed");
    hasher.update(&run.to_le_bytes());
    hasher.update(&ordinal.to_le_bytes());
    let digest = hasher.finalize();
    u128::from_le_bytes(digest.as_bytes()[..16].try_into().expect("a digest has 32 bytes"))
}

/// Instantiates; code of the guest may run here already, under the same limits.
async fn make(
    store: &mut Store<Guest>,
    command: &CommandPre<Guest>,
    cell: &Cell,
    meter: &mut CpuMeter,
) -> Result<Command, Exit> {
    let limit = Duration::from_millis(store.data().instance.limits.cpu_ms);
    let made = tokio::select! {
        biased;
        exit = cell.stopped() => return Err(exit),
        made = meter.run(limit, command.instantiate_async(&mut *store)) => made,
    };
    match made {
        Ok(Ok(command)) => Ok(command),
        Ok(Err(error)) => Err(exit::of_error(&error, store.data().limiter.refused())),
        Err(OutOfCpu) => Err(Exit::OutOfCpu {}),
    }
}

/// Runs the program until it ends or something ends it.
async fn run(store: &mut Store<Guest>, command: &Command, cell: &Cell, started: Instant, meter: &mut CpuMeter) -> Exit {
    let instance = Arc::clone(&store.data().instance);
    let limits = instance.limits;
    let may_pause = !cell.spec().faults.is_empty();
    let wall = Duration::from_millis(limits.wall_ms).saturating_sub(started.elapsed());
    let ran = tokio::select! {
        biased;
        exit = cell.stopped() => return exit,
        () = tokio::time::sleep(wall) => return Exit::OutOfTime {},
        ran = meter.run(
            Duration::from_millis(limits.cpu_ms),
            async {
                let running = command.wasi_cli_run().call_run(&mut *store);
                let goes_on = |over_us| cell.fault_is_over(&instance.id, FaultKind::Resume, over_us);
                if may_pause { instance.unless_paused(goes_on, running).await } else { running.await }
            },
        ) => ran,
    };
    match ran {
        Ok(result) => exit::of_call(result, store.data().limiter.refused()),
        Err(OutOfCpu) => Exit::OutOfCpu {},
    }
}

/// Gives everything back and says how the instance ended.
async fn end(store: Store<Guest>, exit: Exit, started_ms: u64, meter: &CpuMeter, capture: bool) {
    let cell = Arc::clone(&store.data().cell);
    let instance = Arc::clone(&store.data().instance);
    let memory_bytes = store.data().limiter.peak();
    drop(store);
    let exit = match super::output::flush(&cell, &instance) {
        Ok(()) => exit,
        Err(ending) => exit::of_error(&ending.into(), false),
    };
    instance.mailbox.close();
    instance.ended.store(true, Ordering::Release);
    let (sent_bytes, received_bytes, network) = cell.net.remove(instance.address);
    let cpu_us = u64::try_from(meter.used().as_micros()).unwrap_or(u64::MAX);
    let usage = Usage { cpu_us, memory_bytes, sent_bytes, received_bytes, ..Usage::default() };
    samples::end(&cell, &instance, usage);
    if capture {
        cell.net.keep_capture(instance.id.clone(), cell.at_us()).await;
    }
    let left = cell.files.left(&instance.id);
    let ended = Ended {
        exit,
        usage,
        started_ms,
        ended_ms: wall_ms(),
        left,
        limits_met: Vec::new(),
        adopted: None,
        network: network.map(Box::new),
    };
    cell.instance_ended(instance.id.clone(), ended);
}
