//! The runner: cells are made ready with bounded parallelism, found again after a restart, and reaped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use iptl_dag::Cid;
use iptl_dag::model::{Exit, Usage, WorkloadKind};
use iptl_labnet::Directory;
use iptl_runner::files::{CellFiles, check_artifact_path};
use iptl_runner::{
    Artifact, Capacity, CellEvent, CellSpec, Ended, InstanceSpec, Origin, PrepareError, PreparedCell, Runner,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::capacity;
use crate::cell::{Cell, Control, EVENT_QUEUE, Handle, Member, Phase, follow, not_started, stop, wall_ms};
use crate::config::{DockerConfig, Unusable};
use crate::engine::{Engine, Image, ImageError, LABLET, said};
use crate::faults::{self, Acts, Targets, Told};
use crate::instance::Instance;
use crate::network::{self, CellNetwork, Maker};
use crate::protocol;
use crate::set_up::{Failure, set_up};
use crate::settings::{self, Place, Wanted};
use crate::state::{CellDir, InstanceDir, Store};

/// Containers that are made, started or removed at once, for each processor: each keeps the engine and the kernel busy
/// in turns.
const PARALLEL_PER_PROCESSOR: usize = 4;

/// Runs containers by Docker Engine.
#[derive(Clone)]
pub struct DockerRunner {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    maker: Maker,
    config: DockerConfig,
    store: Store,
    capacity: Capacity,
    state: Mutex<State>,
    /// The containers and the directory of a cell are gone.
    cleared: tokio::sync::Notify,
    /// One image is loaded at a time: a second cell that wants it finds it there.
    images: tokio::sync::Mutex<()>,
    over: CancellationToken,
    /// Containers are left to run on for another life of the lablet.
    left: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    instances: u32,
    memory: u64,
    /// Cells of this life, by the key of their containers.
    cells: BTreeMap<String, Live>,
    /// Keys of cells that are being made ready, and whether that was given up and is being cleared away.
    preparing: BTreeMap<String, bool>,
}

/// A cell that was prepared.
struct Live {
    phase: watch::Sender<Phase>,
    /// Whether somebody holds its control.
    control: mpsc::WeakSender<()>,
    network: Weak<CellNetwork>,
}

impl DockerRunner {
    /// Connects to the engine of this machine.
    ///
    /// # Errors
    ///
    /// Fails with what is wrong and what helps where there is no engine, it may not be used, or it is too old.
    pub async fn connect(config: DockerConfig) -> Result<DockerRunner, Unusable> {
        let engine = Engine::connect(&config.socket_path()?).await?;
        let store = Store::open(&config.dir).map_err(|e| Unusable {
            reason: format!("the directory {} cannot be used: {e}", config.dir.display()),
            fix: format!("make {} writable for this user", config.dir.display()),
        })?;
        let devices = config.devices;
        let maker = tokio::task::spawn_blocking(move || network::maker(devices)).await.unwrap_or(Ok(Maker::Engine))?;
        let capacity = capacity::read(&config.limits);
        let inner = Inner {
            engine,
            maker,
            config,
            store,
            capacity,
            state: Mutex::default(),
            cleared: tokio::sync::Notify::new(),
            images: tokio::sync::Mutex::default(),
            over: CancellationToken::new(),
            left: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(DockerRunner { inner: Arc::new(inner) })
    }

    /// Breaks the lab networks of all cells, which nothing else can do on purpose: for tests of what follows.
    #[doc(hidden)]
    pub fn break_networks(&self) {
        for network in self.inner.state().cells.values().filter_map(|cell| cell.network.upgrade()) {
            network.break_it();
        }
    }

    /// Returns the version of the engine: `20.10.24`.
    pub fn engine_version(&self) -> &str {
        self.inner.engine.version()
    }
}

/// Returns the name under which the engine keeps the image of a workload.
fn image_name(workload: &Cid) -> String {
    format!("iptl/{workload}:latest")
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves room for a cell.
    fn reserve(self: &Arc<Self>, cell: &CellSpec) -> Result<Reservation, PrepareError> {
        // Groups name directories, and a run may come from anywhere.
        let plain = |name: &str| !name.contains('/') && check_artifact_path(name).is_ok();
        if let Some(bad) = cell.instances.iter().find(|i| !plain(&i.id.group)) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no plain name");
            return Err(PrepareError::Io { what: format!("the group {:?}", bad.id.group), source });
        }
        let needed = u32::try_from(cell.instances.len()).unwrap_or(u32::MAX);
        let memory = cell.instances.iter().map(|i| i.limits.memory_bytes).fold(0, u64::saturating_add);
        let mut state = self.state();
        let refuse = |what: &str, needed: u64, available: u64, bound: String| {
            Err(PrepareError::NoCapacity { what: what.to_owned(), needed, available, bound })
        };
        let free = self.capacity.instances.saturating_sub(state.instances);
        if needed > free {
            return refuse("instances", needed.into(), free.into(), self.capacity.bound.clone());
        }
        let free = self.capacity.memory_bytes.saturating_sub(state.memory);
        if memory > free {
            return refuse("bytes of memory", memory, free, "memory for all containers".to_owned());
        }
        state.instances += needed;
        state.memory += memory;
        Ok(Reservation { inner: Arc::clone(self), instances: needed, memory })
    }

    /// Takes the key of a cell that is to be made ready; false where a cell of this life has it. One that is being
    /// cleared away is waited for.
    async fn take_key(&self, key: &str) -> bool {
        loop {
            let cleared = self.cleared.notified();
            {
                let mut state = self.state();
                match (state.cells.get(key), state.preparing.get(key)) {
                    (None, None) => {
                        state.preparing.insert(key.to_owned(), false);
                        return true;
                    }
                    (Some(live), _) if live.control.upgrade().is_some() => return false,
                    (None, Some(false)) => return false,
                    (Some(_), _) | (None, Some(true)) => {}
                }
            }
            cleared.await;
        }
    }

    /// Makes sure that the images of a cell are there.
    async fn images(&self, cell: &CellSpec) -> Result<BTreeMap<Artifact, Image>, PrepareError> {
        let _one = self.images.lock().await;
        let mut images = BTreeMap::new();
        for instance in &cell.instances {
            let artifact = &instance.artifact;
            if images.contains_key(artifact) {
                continue;
            }
            let image = self.engine.image(&artifact.path, &image_name(&artifact.cid)).await.map_err(|e| match e {
                ImageError::Bad(reason) => PrepareError::BadArtifact { workload: artifact.cid, reason },
                ImageError::Engine(e) => engine_error(&said(&e)),
                ImageError::Io(source) => {
                    PrepareError::Io { what: format!("the image {}", artifact.path.display()), source }
                }
            })?;
            images.insert(artifact.clone(), image);
        }
        Ok(images)
    }

    /// Works out the container of an instance.
    fn wanted(
        &self,
        cell: &CellSpec,
        key: &str,
        seat: &Seat<'_>,
        network: &CellNetwork,
        image: &Image,
        token: protocol::Token,
    ) -> Result<Wanted, String> {
        let id = &seat.spec.id;
        let labels = [
            (LABLET, self.store.id().to_owned()),
            ("iptl.cell", key.to_owned()),
            ("iptl.lab", cell.origin.lab.clone()),
            ("iptl.execution", cell.origin.execution.clone()),
            ("iptl.epoch", cell.origin.epoch.to_string()),
            ("iptl.group", id.group.clone()),
            ("iptl.instance", id.index.to_string()),
        ];
        let place = Place {
            ordinal: seat.ordinal,
            network: network.seat(id).ok_or("it has no place in the lab network")?,
            egress: &network.egress_of(id),
            names: &self.store.cell(key).names(),
            resolver: &self.store.cell(key).resolver(),
            init: self.store.init(),
            lab: &seat.dir.lab(),
            labels: labels.map(|(name, value)| (name.to_owned(), value)).into_iter().collect::<HashMap<_, _>>(),
            token,
            image: &image.id,
            group_namespace: self.engine.needs_group_namespace(),
        };
        settings::container(cell, seat.spec, &image.config, &self.config.limits, place)
    }

    fn parallel() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from) * PARALLEL_PER_PROCESSOR
    }
}

/// Where an instance stands among all of its run.
struct Seat<'a> {
    spec: &'a InstanceSpec,
    ordinal: u32,
    dir: InstanceDir,
}

fn seats<'a>(cell: &'a CellSpec, dir: &CellDir) -> Result<Vec<Seat<'a>>, PrepareError> {
    let io = |reason: String| PrepareError::Io { what: "lab addresses".to_owned(), source: io::Error::other(reason) };
    let directory = Directory::new(&cell.groups).map_err(|e| io(e.to_string()))?;
    let seat = |spec: &'a InstanceSpec| {
        let ordinal = directory.ordinal(&spec.id).and_then(|n| u32::try_from(n).ok());
        let Some(ordinal) = ordinal else {
            return Err(io(format!("{} is no instance of the run", spec.id)));
        };
        Ok(Seat { spec, ordinal, dir: dir.instance(ordinal) })
    };
    cell.instances.iter().map(seat).collect()
}

fn engine_error(reason: &str) -> PrepareError {
    PrepareError::Io { what: "the container engine".to_owned(), source: io::Error::other(reason.to_owned()) }
}

/// Room that a cell or an instance takes; given back when dropped.
pub(crate) struct Reservation {
    inner: Arc<Inner>,
    instances: u32,
    memory: u64,
}

impl Reservation {
    /// Hands the room of one instance over, which is given back with it.
    fn split(&mut self, memory: u64) -> Reservation {
        self.instances = self.instances.saturating_sub(1);
        self.memory = self.memory.saturating_sub(memory);
        Reservation { inner: Arc::clone(&self.inner), instances: 1, memory }
    }
}

/// Returns what is done to an instance of which no network tells yet.
fn nothing() -> Acts {
    mpsc::unbounded_channel().1
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.instances = state.instances.saturating_sub(self.instances);
        state.memory = state.memory.saturating_sub(self.memory);
    }
}

/// Removes the containers of a cell that was given up half-way. Until then they are nobody else's to remove.
struct GiveUp {
    inner: Arc<Inner>,
    key: String,
    armed: bool,
    /// What the engine is still making.
    making: TaskTracker,
    /// Where it is done: whoever drops this may stand outside of it.
    runtime: tokio::runtime::Handle,
    /// The runner's shutdown waits for it.
    _tracked: TaskTrackerToken,
}

impl GiveUp {
    fn new(inner: &Arc<Inner>, key: &str, making: TaskTracker) -> GiveUp {
        GiveUp {
            inner: Arc::clone(inner),
            key: key.to_owned(),
            armed: true,
            making,
            runtime: tokio::runtime::Handle::current(),
            _tracked: inner.tasks.token(),
        }
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if !self.armed {
            self.inner.state().preparing.remove(&self.key);
            self.inner.cleared.notify_waiters();
            return;
        }
        self.inner.state().preparing.insert(self.key.clone(), true);
        let (inner, key, making) = (Arc::clone(&self.inner), self.key.clone(), self.making.clone());
        let clear = async move {
            making.close();
            making.wait().await;
            inner.clear(&key).await;
            inner.state().preparing.remove(&key);
            inner.cleared.notify_waiters();
        };
        self.inner.tasks.spawn_on(clear, &self.runtime);
    }
}

impl Inner {
    /// Removes whatever there is of a cell.
    async fn clear(&self, key: &str) {
        let labels = BTreeMap::from([("iptl.cell", key.to_owned())]);
        match self.engine.list(&labels).await {
            Ok(found) => self.remove_all(found.into_iter().map(|c| c.id).collect()).await,
            Err(e) => tracing::warn!(error = %e, "containers of a cell may be left"),
        }
        if let Err(e) = self.store.cell(key).remove() {
            tracing::warn!(error = %e, "the directory of a cell is left");
        }
    }

    async fn remove_all(&self, ids: Vec<String>) {
        futures::stream::iter(ids)
            .for_each_concurrent(Inner::parallel(), |id| async move {
                if let Err(e) = self.engine.remove(&id).await {
                    tracing::warn!(error = %e, container = id, "a container is left");
                }
            })
            .await;
    }

    /// Lets a cell live.
    fn launch(
        self: &Arc<Self>,
        key: String,
        cell: Arc<Cell>,
        (network, told): (Arc<CellNetwork>, Told),
        mut members: Vec<Member>,
        phase: Phase,
        (events, receiver): (mpsc::Sender<CellEvent>, mpsc::Receiver<CellEvent>),
        mut reservation: Reservation,
    ) -> PreparedCell {
        let mut targets = Targets::new();
        for member in &mut members {
            if let Member::Ready(instance) = member {
                let (target, acts) = mpsc::unbounded_channel();
                instance.acts = acts;
                targets.insert(instance.id.clone(), target);
                instance.room = Some(reservation.split(instance.spec.limits.memory_bytes));
            }
        }
        // Those that ended already need no room.
        drop(reservation);
        let (phase, _) = watch::channel(phase);
        let handles = members
            .iter()
            .filter_map(|member| match member {
                Member::Ready(instance) => Some((
                    instance.id.clone(),
                    Handle {
                        sync: Arc::clone(&instance.sync),
                        container: instance.container.clone(),
                        exec: instance.wanted.exec,
                    },
                )),
                Member::Ended { .. } => None,
            })
            .collect();
        let (alive, mut gone) = mpsc::channel(1);
        let live = Live { phase: phase.clone(), control: alive.downgrade(), network: Arc::downgrade(&network) };
        self.state().cells.insert(key.clone(), live);
        let since = if *phase.borrow() == Phase::Running { cell.age() } else { Duration::ZERO };
        if !since.is_zero() {
            network.begin(since);
        }
        self.tasks.spawn(faults::follow(Arc::clone(&cell), events.downgrade(), told, targets, since));
        if self.over.is_cancelled() {
            stop(&phase, "the runner shuts down");
        }
        let (inner, life, dir) = (Arc::clone(self), phase.clone(), cell.dir.clone());
        let follow = follow(Arc::clone(&cell), network, events, members, life);
        self.tasks.spawn(async move {
            tokio::select! {
                () = follow => {}
                // As if the process was killed: its tasks end where they are, and init waits for the next life.
                () = inner.left.cancelled() => return,
            }
            // Whoever drives the cell has made its ends durable when it lets go of it.
            let forgotten = tokio::select! {
                _ = gone.recv() => true,
                () = inner.over.cancelled() => false,
                () = inner.left.cancelled() => false,
            };
            if forgotten && let Err(e) = dir.remove() {
                tracing::warn!(error = %e, "the directory of a cell is left");
            }
            inner.state().cells.remove(&key);
            inner.cleared.notify_waiters();
        });
        let control = Control { cell, phase, handles, _alive: alive };
        PreparedCell { control: Box::new(control), events: receiver }
    }
}

#[async_trait]
impl Runner for DockerRunner {
    fn kind(&self) -> WorkloadKind {
        WorkloadKind::Docker
    }

    fn version(&self) -> String {
        format!("docker engine-{}", self.inner.engine.version())
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity.clone()
    }

    async fn prepare(&self, spec: CellSpec) -> Result<PreparedCell, PrepareError> {
        let inner = &self.inner;
        let reservation = inner.reserve(&spec)?;
        let images = inner.images(&spec).await?;
        let key = inner.store.key(&spec.origin);
        let dir = inner.store.cell(&key);
        if !inner.take_key(&key).await {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "it is prepared or runs already");
            return Err(PrepareError::Io { what: format!("the cell of execution {}", spec.origin.execution), source });
        }
        let making = TaskTracker::new();
        let mut give_up = GiveUp::new(inner, &key, making.clone());
        dir.make().map_err(|source| PrepareError::Io { what: "the directory of a cell".to_owned(), source })?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (network, told) = CellNetwork::start(&spec, inner.maker, inner.config.realtime, &events)?;
        let network = Arc::new(network);
        dir.set_names(&network.hosts(), &network.resolver())
            .map_err(|source| PrepareError::Io { what: "the names of a cell".to_owned(), source })?;
        let cell = Arc::new(Cell {
            engine: inner.engine.clone(),
            files: Arc::new(CellFiles::new(spec.scratch.clone())),
            spec,
            dir: dir.clone(),
            start: OnceLock::new(),
            gauges: Mutex::default(),
            making,
            network: Arc::downgrade(&network),
        });
        let seats = seats(&cell.spec, &dir)?;
        let one = |seat: Seat<'_>| {
            let (cell, network, events, key, images) = (Arc::clone(&cell), &*network, events.clone(), &key, &images);
            let name = format!("iptl-{key}-{}", seat.ordinal);
            let id = seat.spec.id.clone();
            let spec = seat.spec.clone();
            let instance_dir = seat.dir.clone();
            let wanted = seat.dir.make().map_err(|e| format!("its directory cannot be made: {e}")).and_then(|token| {
                let image = images.get(&spec.artifact).ok_or("its image is not there")?;
                inner.wanted(&cell.spec, key, &seat, network, image, token)
            });
            async move {
                let ended =
                    |reason| Member::Ended { id: id.clone(), dir: instance_dir.clone(), ended: not_started(reason) };
                let wanted = match wanted {
                    Ok(wanted) => wanted,
                    Err(reason) => return Ok(ended(reason)),
                };
                let allow_root = inner.config.limits.root;
                match set_up(&cell, network, &id, &name, &wanted, &instance_dir, allow_root).await {
                    Ok((container, link, outputs)) => Ok(Member::Ready(Box::new(Instance {
                        id,
                        spec,
                        cell,
                        events,
                        dir: instance_dir,
                        container,
                        wanted,
                        sync: Arc::default(),
                        link: Some(link),
                        outputs: Some(outputs),
                        adopted: None,
                        room: None,
                        acts: nothing(),
                        carrier: None,
                    }))),
                    Err(Failure::NotStarted(reason)) => {
                        let lablet = inner.store.id().to_owned();
                        if let Err(e) = inner.engine.remove_of(&name, Some(&lablet)).await {
                            tracing::warn!(error = %said(&e), container = name, "a container is left");
                        }
                        Ok(ended(reason))
                    }
                    Err(Failure::Engine(source)) => {
                        Err(PrepareError::Io { what: "the container engine".to_owned(), source })
                    }
                }
            }
        };
        let mut setting_up = futures::stream::iter(seats.into_iter().map(one)).buffer_unordered(Inner::parallel());
        let mut members = Vec::new();
        loop {
            tokio::select! {
                member = setting_up.next() => match member {
                    Some(member) => members.push(member?),
                    None => break,
                },
                () = inner.over.cancelled() => return Err(engine_error("the runner shuts down")),
                () = inner.left.cancelled() => return Err(engine_error("the lablet is started again")),
            }
        }
        drop(setting_up);
        let prepared = inner.launch(key, cell, (network, told), members, Phase::Held, (events, receiver), reservation);
        give_up.armed = false;
        Ok(prepared)
    }

    async fn adopt(&self, spec: CellSpec) -> Result<Option<PreparedCell>, PrepareError> {
        let inner = &self.inner;
        let key = inner.store.key(&spec.origin);
        let dir = inner.store.cell(&key);
        let labels = BTreeMap::from([("iptl.cell", key.clone()), ("iptl.lablet", inner.store.id().to_owned())]);
        let found = inner.engine.list(&labels).await.map_err(|e| engine_error(&said(&e)))?;
        let started = dir.started();
        let seats_of = seats(&spec, &dir)?;
        // A cell that was never started is no loss: its lab has it made again.
        if started.is_none() || (found.is_empty() && seats_of.iter().all(|seat| seat.dir.ended().is_none())) {
            return Ok(None);
        }
        drop(seats_of);
        if !inner.take_key(&key).await {
            return Ok(None);
        }
        // What runs is left as it is where this is given up.
        let mut give_up = GiveUp::new(inner, &key, TaskTracker::new());
        give_up.armed = false;
        let reservation = inner.reserve(&spec)?;
        let images = inner.images(&spec).await?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (network, told) = CellNetwork::start(&spec, inner.maker, inner.config.realtime, &events)?;
        let network = Arc::new(network);
        let cell = Arc::new(Cell {
            engine: inner.engine.clone(),
            files: Arc::new(CellFiles::new(spec.scratch.clone())),
            spec,
            dir: dir.clone(),
            start: OnceLock::new(),
            gauges: Mutex::default(),
            making: inner.tasks.clone(),
            network: Arc::downgrade(&network),
        });
        if let Some(wall) = started {
            cell.started_at(wall);
        }
        let mut members = Vec::new();
        for seat in seats(&cell.spec, &dir)? {
            members.push(inner.adopt_one(&cell, &network, &events, &key, seat, &found, &images, started).await);
        }
        Ok(Some(inner.launch(key, cell, (network, told), members, Phase::Running, (events, receiver), reservation)))
    }

    async fn reap(&self, keep: &BTreeSet<Origin>) {
        let inner = &self.inner;
        let mut kept: BTreeSet<String> = keep.iter().map(|origin| inner.store.key(origin)).collect();
        {
            let state = inner.state();
            kept.extend(state.cells.keys().chain(state.preparing.keys()).cloned());
        }
        let labels = BTreeMap::from([("iptl.lablet", inner.store.id().to_owned())]);
        match inner.engine.list(&labels).await {
            Ok(found) => {
                let nobodys =
                    |labels: &HashMap<String, String>| labels.get("iptl.cell").is_none_or(|key| !kept.contains(key));
                let ids: Vec<String> = found.into_iter().filter(|c| nobodys(&c.labels)).map(|c| c.id).collect();
                if !ids.is_empty() {
                    tracing::info!(containers = ids.len(), "removing what an earlier life of this lablet left");
                }
                inner.remove_all(ids).await;
            }
            Err(e) => tracing::warn!(error = %e, "containers of an earlier life may be left"),
        }
        for key in inner.store.cells().unwrap_or_default() {
            if !kept.contains(&key)
                && let Err(e) = inner.store.cell(&key).remove()
            {
                tracing::warn!(error = %e, "the directory of a cell is left");
            }
        }
    }

    async fn warm(&self) {}

    async fn forget(&self, workload: &Cid) -> bool {
        // Not while a cell is about to use it: those wait for the same lock.
        let _one = self.inner.images.lock().await;
        match self.inner.engine.forget_image(&image_name(workload)).await {
            Ok(forgotten) => forgotten,
            Err(e) => {
                tracing::warn!(error = %said(&e), %workload, "the engine keeps an image");
                false
            }
        }
    }

    async fn leave(&self) {
        self.inner.left.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn shutdown(&self) {
        self.inner.over.cancel();
        for cell in self.inner.state().cells.values() {
            stop(&cell.phase, "the runner shuts down");
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// Finds one instance of an earlier life again.
    async fn adopt_one(
        &self,
        cell: &Arc<Cell>,
        network: &CellNetwork,
        events: &mpsc::Sender<CellEvent>,
        key: &str,
        seat: Seat<'_>,
        found: &[crate::engine::Listed],
        images: &BTreeMap<Artifact, Image>,
        started: Option<u64>,
    ) -> Member {
        let (id, dir) = (seat.spec.id.clone(), seat.dir.clone());
        let index = id.index.to_string();
        let is_it = |labels: &HashMap<String, String>| {
            labels.get("iptl.group") == Some(&id.group) && labels.get("iptl.instance") == Some(&index)
        };
        let container = found.iter().find(|c| is_it(&c.labels));
        if let Some(ended) = dir.ended() {
            // The lablet died between telling the end and removing the container.
            if let Some(container) = container {
                self.remove_all(vec![container.id.clone()]).await;
            }
            return Member::Ended { id, dir, ended: Box::new(ended) };
        }
        let gone = |reason: &str| Member::Ended {
            id: id.clone(),
            dir: dir.clone(),
            ended: Box::new(Ended {
                exit: Exit::WorkerDied { reason: reason.to_owned() },
                usage: Usage::default(),
                started_ms: started.unwrap_or(0),
                ended_ms: wall_ms(),
                left: cell.files.left(&id),
                limits_met: Vec::new(),
                adopted: None,
                network: None,
            }),
        };
        let Some(container) = container else {
            return gone("its container was removed while the lablet was away");
        };
        let Ok(token) = dir.token() else { return gone("what was known of it is lost") };
        let wanted = match images.get(&seat.spec.artifact) {
            Some(image) => self.wanted(&cell.spec, key, &seat, network, image, token),
            None => Err("its image is gone".to_owned()),
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(reason) => {
                let _ = self.engine.remove(&container.id).await;
                return gone(&reason);
            }
        };
        // Its device is where it was, and led nowhere meanwhile.
        let state = self.engine.state(&container.id).await.ok().flatten();
        let pid = state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let name = format!("iptl-{key}-{}", seat.ordinal);
        let lab = dir.lab();
        let place = |pid| network::Place {
            engine: &self.engine,
            wanted: &wanted.body,
            name: &name,
            container: &container.id,
            pid,
            lab: &lab,
            making: &cell.making,
        };
        if let Some(wish) = dir.wish() {
            // In force before its device leads anywhere; the network has the instance.
            drop(network.shape(&id, wish));
        }
        if let Some(pid) = pid
            && let Err(reason) = network.connect(&id, &place(pid)).await
        {
            let _ = self.engine.remove(&container.id).await;
            return gone(&reason);
        }
        if let Err(e) = dir.add_adoption(wall_ms()) {
            tracing::warn!(error = %e, instance = %id, "its receipt will not say that it was adopted");
        }
        // Without a connection: its task opens the door and waits for init, or sees that the container is over.
        let phase = if started.is_some() { protocol::Phase::Running } else { protocol::Phase::Held };
        Member::Ready(Box::new(Instance {
            id,
            spec: seat.spec.clone(),
            cell: Arc::clone(cell),
            events: events.clone(),
            dir,
            container: container.id.clone(),
            wanted,
            sync: Arc::default(),
            link: None,
            outputs: None,
            adopted: Some(phase),
            room: None,
            acts: nothing(),
            carrier: None,
        }))
    }
}
