//! A node: its home, store and swarm, and the roles that it plays in its lab.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use iptl_artifacts::{BlobStore, Collectable, Pins, PinsError, PublicError, PublicIndex, Recent};
use iptl_artifacts_pack::{OpenError, PackStore};
use iptl_dag::Block;
use iptl_dag::model::Signed;
use iptl_net::NetEvent;
use iptl_runner::{Runner, Runners};
use iptl_runner_docker::DockerRunner;
use iptl_runner_wasm::{WasmConfig, WasmRunner};
use iptl_trust::Keypair;
use iptl_wire::control::Failure;
use iptl_wire::lab::Role;
use iptl_wire::offer::Offer;
use iptl_wire::session::WITHOUT_DOCKER;
use iptl_wire::takeover::Orchestrators;
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::control;
use crate::fetch::{Fetcher, Room};
use crate::home::{Config, Home, HomeError, HomeLock, Membership, Remembered, host_name};
use crate::keeper::Keeper;
use crate::lablet::{self, LabletHandle};
use crate::links::Links;
use crate::members::Members;
use crate::orchestrator::{self, OrchestratorError, OrchestratorHandle};
use crate::readers::Readers;
use crate::relaying;
use crate::serving;
use crate::traffic::Traffic;

/// Where a node listens when its owner does not say: every interface, any port.
const DEFAULT_LISTEN: [&str; 2] = ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0"];

/// Offers that wait for a lablet on the same node.
const OFFER_QUEUE: usize = 256;

/// Bytes that a connection in memory buffers each way.
const PIPE_SIZE: usize = 256 << 10;

/// A node that stops waits so long for its tasks to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest path of a socket, in bytes (`sun_path` of `unix(7)` less its end).
const MAX_SOCKET_PATH: usize = 107;

/// Room on the disk in bytes that a fetch leaves to others.
const DISK_RESERVE: u64 = 64 << 20;

/// Part of the home in which the node remembers its ports.
const STATE: &str = "state.cbor";

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Command that starts a worker for Wasm cells: the program and its arguments.
    pub worker: (PathBuf, Vec<String>),
    /// Without a swarm: reaches only itself.
    pub offline: bool,
    /// Plays its role in the lab; a node that only publishes or fetches does not.
    pub roles: bool,
    /// Lends this machine to its own lab as well, where it is the lab's orchestrator.
    pub lend: bool,
    /// Answers on the home's control socket.
    pub socket: bool,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Its pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Its index of what strangers may read.
    #[error(transparent)]
    Public(#[from] PublicError),
    /// Its swarm.
    #[error(transparent)]
    Net(#[from] iptl_net::StartError),
    /// Its orchestrator.
    #[error(transparent)]
    Orchestrator(#[from] OrchestratorError),
    /// Its control socket.
    #[error("the control socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// A node that runs; stops when this is dropped or [`Running::stop`] is called.
pub struct Running {
    node: Arc<Node>,
    _lock: HomeLock,
}

impl Running {
    /// Returns a connection for one request of the control API, as its owner.
    pub fn connect(&self) -> DuplexStream {
        let (here, there) = tokio::io::duplex(PIPE_SIZE);
        tokio::spawn(control::serve_local(self.node.clone(), there));
        here
    }

    /// Gives blocks to the store, as [`Request::Put`](iptl_wire::control::Request::Put) does for who is elsewhere; they are
    /// acknowledged, not flushed. What is a [`Block`] was verified, so it goes through no pipe and is hashed no second time.
    ///
    /// Dropped half-way, the blocks may be there or not.
    ///
    /// # Errors
    ///
    /// As the request answers.
    pub async fn put(&self, blocks: Vec<Block>) -> Result<(), Failure> {
        control::put_here(&self.node, blocks).await
    }

    /// Makes durable what was put before. Safe to drop half-way.
    ///
    /// # Errors
    ///
    /// As the request answers.
    pub async fn flush(&self) -> Result<(), Failure> {
        control::flush_here(&self.node).await
    }

    #[cfg(test)]
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Returns the node's peer ID.
    pub fn peer(&self) -> &iptl_dag::PeerId {
        self.node.links.peer()
    }

    /// Returns the node's addresses, each with its peer ID.
    pub async fn addrs(&self) -> Vec<String> {
        match self.node.links.net() {
            Some(net) => net.addrs().await,
            None => Vec::new(),
        }
    }

    /// Returns once the node was told to stop, by a request or by its own failure. Cancel safe.
    pub async fn stopped(&self) {
        self.node.stop.cancelled().await;
    }

    /// Stops the node for now: as [`stop`](Running::stop), but containers run on, and the next start finds them again
    /// while their lease lives.
    pub async fn leave(self) {
        self.node.leave.cancel();
        self.stop().await;
    }

    /// Stops the node: workers and containers end, blocks are flushed, connections close.
    pub async fn stop(self) {
        self.node.stop.cancel();
        let node = self.node.clone();
        let ending = async {
            if let Some(runners) = node.runners() {
                match node.leave.is_cancelled() {
                    true => runners.leave().await,
                    false => runners.shutdown().await,
                }
            }
            if let Err(error) = node.store.flush().await {
                tracing::error!(%error, "the last blocks are not durable");
            }
            if let Some(net) = node.links.net() {
                net.shutdown().await;
            }
            if let Err(error) = node.packs.close().await {
                tracing::error!(%error, "the store did not close");
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, ending).await.is_err() {
            tracing::warn!("the node did not stop in time");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.node.stop.cancel();
        self.node.links.close();
        // Without the swarm the tasks end that wait for streams, and let go of the store.
        if let (Some(net), Ok(runtime)) = (self.node.links.net().cloned(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { net.shutdown().await });
        }
        if self.node.owns_socket {
            let _gone = std::fs::remove_file(self.node.home.socket());
        }
    }
}

/// The parts of a node that its tasks share.
pub(crate) struct Node {
    pub(crate) home: Home,
    pub(crate) links: Links,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) fetcher: Fetcher,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) members: Members,
    traffic: Traffic,
    bitswap: Option<iptl_net::Bitswap>,
    pub(crate) stop: CancellationToken,
    /// It stops to be started again: instances that can outlive it run on.
    leave: CancellationToken,
    pub(crate) started: Instant,
    pub(crate) packs: PackStore,
    key: Arc<Keypair>,
    options: Options,
    offers: broadcast::Sender<Signed<Offer>>,
    pub(crate) waiting: Arc<watch::Sender<String>>,
    /// Told whenever this node listens on another address, or has another place at a relay.
    addrs_changed: Arc<watch::Sender<()>>,
    owns_socket: bool,
    roles: RwLock<Roles>,
}

#[derive(Default)]
struct Roles {
    membership: Option<Membership>,
    admission: Option<Arc<Admission>>,
    orchestrator: Option<OrchestratorHandle>,
    lablet: Option<LabletHandle>,
    runners: Option<Runners>,
}

/// Starts the node of a home.
///
/// Not cancel safe: a dropped call may leave tasks behind that end with the runtime.
pub async fn start(home: Home, options: Options) -> Result<Running, StartError> {
    let lock = home.lock()?;
    let config = home.config()?;
    let key = Arc::new(home.identity()?);
    let packs = PackStore::open(home.path("store")).await?;
    let collectable = Collectable::new(Arc::new(packs.clone()));
    let store: Arc<dyn BlobStore> = collectable.clone();
    let pins = Pins::open(home.path("pins.cbor"))?;
    let membership = home.membership()?;
    let stop = CancellationToken::new();
    let members = Members::open(&home)?;
    let addrs_changed = Arc::new(watch::Sender::new(()));
    let net = match options.offline {
        true => None,
        false => Some(swarm(&home, &config, &members, &addrs_changed, &stop).await?),
    };
    let links = Links::new(key.peer().clone(), net);
    let (public, lacking) = PublicIndex::open(home.path("public"), &pins.public_roots())?;
    let public = Arc::new(public);
    let readers = Readers::new(members.clone(), public.clone());
    let bitswap = match links.net() {
        Some(net) => serving::by_bitswap(net, store.clone(), readers.clone()).await,
        None => None,
    };
    let traffic = Traffic::default();
    let fetcher =
        Fetcher::new(store.clone(), links.clone()).with_bitswap(bitswap.clone()).with_members(members.clone());
    let fetcher = fetcher.with_room(room(home.path("store"), config.store.quota_bytes)).counted(traffic.clone());
    let keeper = Arc::new(Keeper::new(
        pins,
        Recent::open(home.path("recent")),
        public,
        collectable,
        members.clone(),
        links.clone(),
    ));
    serving::by_iroh(&links, store.clone(), readers, traffic.clone()).await;
    keeper.announce_all();
    {
        let keeper = keeper.clone();
        tokio::spawn(async move { keeper.catch_up(lacking).await });
    }
    tokio::spawn(members.clone().serve(links.clone()));
    tokio::spawn(keep_known(members.clone(), links.clone(), stop.clone()));
    if let Some(quota) = config.store.quota_bytes {
        let (keeper, stop) = (keeper.clone(), stop.clone());
        tokio::spawn(async move { keeper.keep_within(quota, stop).await });
    }
    let node = Arc::new(Node {
        home,
        links,
        store,
        fetcher,
        keeper,
        members,
        traffic,
        bitswap,
        stop,
        leave: CancellationToken::new(),
        started: Instant::now(),
        packs,
        key,
        offers: broadcast::Sender::new(OFFER_QUEUE),
        waiting: Arc::new(watch::Sender::new(String::new())),
        addrs_changed,
        owns_socket: options.socket,
        options,
        roles: RwLock::default(),
    });
    if node.options.roles {
        node.play(membership).await?;
    } else {
        node.write_roles(|roles| roles.membership = membership);
    }
    if node.options.socket {
        let listener = bind(&node.home)?;
        tokio::spawn(control::listen(node.clone(), listener));
    }
    tokio::spawn(control::serve_remote(node.clone()));
    Ok(Running { node, _lock: lock })
}

impl Node {
    /// Returns the membership.
    pub(crate) fn membership(&self) -> Option<Membership> {
        self.read_roles().membership.clone()
    }

    /// Returns the bytes of blocks that were sent to peers, by any protocol, and that came from them.
    pub(crate) fn moved(&self) -> (u64, u64) {
        let by_bitswap = self.bitswap.as_ref().map_or(0, iptl_net::Bitswap::sent_bytes);
        (self.traffic.sent() + by_bitswap, self.traffic.received())
    }

    /// Returns the lab's door, where this node made the lab.
    pub(crate) fn admission(&self) -> Option<Arc<Admission>> {
        self.read_roles().admission.clone()
    }

    /// Returns the orchestrator, where this node is the one that leads.
    pub(crate) fn orchestrator(&self) -> Option<OrchestratorHandle> {
        self.candidate().filter(OrchestratorHandle::leads)
    }

    /// Returns the orchestrator, where this node is one, whether or not it leads.
    pub(crate) fn candidate(&self) -> Option<OrchestratorHandle> {
        self.read_roles().orchestrator.clone()
    }

    /// Has another way to its orchestrator from now on.
    #[cfg(test)]
    pub(crate) fn set_candidate(&self, orchestrator: OrchestratorHandle) {
        self.write_roles(|roles| roles.orchestrator = Some(orchestrator));
    }

    /// Returns the lablet, where this node is one.
    pub(crate) fn lablet(&self) -> Option<LabletHandle> {
        self.read_roles().lablet.clone()
    }

    /// Stops the node once the answer that is on its way has left.
    pub(crate) fn stop_soon(&self) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stop.cancel();
        });
    }

    /// Takes up the role of a lab's maker.
    pub(crate) async fn made_lab(self: &Arc<Node>, admission: Admission) -> Result<(), StartError> {
        drop(admission);
        let membership = self.home.membership()?;
        self.members.set_own(membership.clone());
        self.keeper.announce_all();
        if self.options.roles {
            self.play(membership).await
        } else {
            self.write_roles(|roles| roles.membership = membership);
            Ok(())
        }
    }

    /// Takes up the role of a new member.
    pub(crate) async fn joined(
        self: &Arc<Node>,
        membership: Membership,
        name: &str,
        orchestrators: Orchestrators,
    ) -> Result<(), StartError> {
        let mut config = self.home.config()?;
        if config.name.is_empty() {
            name.clone_into(&mut config.name);
            self.home.set_config(&config)?;
        }
        self.home.set_membership(&membership)?;
        self.members.set_own(Some(membership.clone()));
        self.members.learn_orchestrators(orchestrators);
        self.keeper.announce_all();
        if self.options.roles {
            self.play(Some(membership)).await
        } else {
            self.write_roles(|roles| roles.membership = Some(membership));
            Ok(())
        }
    }

    /// Plays the role that the membership gives.
    async fn play(self: &Arc<Node>, membership: Option<Membership>) -> Result<(), StartError> {
        let Some(membership) = membership else { return Ok(()) };
        let role = membership.role();
        self.members.set_own(Some(membership.clone()));
        self.write_roles(|roles| roles.membership = Some(membership.clone()));
        if let Some(admission) = Admission::open(&self.home, self.members.clone())?.map(Arc::new) {
            self.write_roles(|roles| roles.admission = Some(admission.clone()));
            tokio::spawn(admission.serve(self.links.clone()));
        }
        relaying::start(&self.home.config()?.relay, role, &self.members, &self.links, &self.stop).await;
        if role == Role::Orchestrator {
            let handle = orchestrator::start(orchestrator::Parts {
                home: self.home.clone(),
                key: self.key.clone(),
                certificate: membership.own_certificate().clone(),
                is_first: membership.own.is_none(),
                links: self.links.clone(),
                members: self.members.clone(),
                store: self.store.clone(),
                fetcher: self.fetcher.clone(),
                keeper: self.keeper.clone(),
                offers: self.offers.clone(),
                health: Arc::default(),
                canary: self.home.config()?.health.canary(),
                stop: self.stop.clone(),
            })
            .await?;
            self.write_roles(|roles| roles.orchestrator = Some(handle));
        }
        if role == Role::Lablet || (role == Role::Orchestrator && self.options.lend) {
            self.lend(membership).await?;
        }
        Ok(())
    }

    /// Lends this machine.
    async fn lend(self: &Arc<Node>, membership: Membership) -> Result<(), StartError> {
        let mut config = self.home.config()?;
        if config.name.is_empty() {
            config.name = host_name();
        }
        let wasm: Arc<dyn Runner> = Arc::new(WasmRunner::new(WasmConfig {
            worker_command: self.options.worker.clone(),
            cache_dir: self.home.path("cache").join("wasm"),
            max_instances: config.limits.instances,
            max_memory_bytes: config.limits.memory_bytes,
        }));
        let mut runners = vec![wasm];
        match self.containers(&config).await {
            Ok(runner) => runners.push(runner),
            Err(why) => drop(config.labels.insert(WITHOUT_DOCKER.to_owned(), why)),
        }
        let runners = Runners::new(runners);
        {
            let runners = runners.clone();
            tokio::spawn(async move { runners.warm().await });
        }
        self.write_roles(|roles| roles.runners = Some(runners.clone()));
        let handle = lablet::start(lablet::Parts {
            home: self.home.clone(),
            config,
            key: self.key.clone(),
            membership,
            links: self.links.clone(),
            members: self.members.clone(),
            store: self.store.clone(),
            fetcher: self.fetcher.clone(),
            keeper: self.keeper.clone(),
            runners,
            offers: self.offers.clone(),
            stop: self.stop.clone(),
            leave: self.leave.clone(),
            waiting: self.waiting.clone(),
            addrs_changed: self.addrs_changed.subscribe(),
        })
        .await?;
        self.write_roles(|roles| roles.lablet = Some(handle));
        Ok(())
    }

    /// Makes the runner of containers; returns why there is none where their engine cannot be used.
    async fn containers(&self, config: &Config) -> Result<Arc<dyn Runner>, String> {
        if !config.docker.enabled {
            return Err("its owner runs none".to_owned());
        }
        let wanted = config.docker.runner(self.home.path("docker"), config.limits, &config.network);
        match DockerRunner::connect(wanted).await {
            Ok(runner) => Ok(Arc::new(runner)),
            Err(unusable) => {
                tracing::info!(reason = unusable.reason, fix = unusable.fix, "containers are not run here");
                Err(unusable.reason)
            }
        }
    }

    fn runners(&self) -> Option<Runners> {
        self.read_roles().runners.clone()
    }

    fn read_roles(&self) -> RwLockReadGuard<'_, Roles> {
        self.roles.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_roles(&self, change: impl FnOnce(&mut Roles)) {
        change(&mut self.roles.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Joins the swarm.
async fn swarm(
    home: &Home,
    config: &Config,
    members: &Members,
    addrs_changed: &Arc<watch::Sender<()>>,
    stop: &CancellationToken,
) -> Result<iptl_net::Net, StartError> {
    let (seed, membership) = (home.seed()?, home.membership()?);
    let remembered = home.read::<Remembered>(STATE)?.unwrap_or_default();
    let orchestrates = membership.as_ref().is_some_and(|m| m.role() == Role::Orchestrator);
    let mut known = config.known.clone();
    if let Some(membership) = &membership {
        known.extend(membership.addrs.iter().cloned());
    }
    let base = iptl_net::Config {
        seed: *seed,
        mdns: config.mdns.unwrap_or(true),
        agent: format!("iptl/{}", env!("CARGO_PKG_VERSION")),
        // Once it plays its role; only members are to be reached through it.
        relay_server: false,
        relay_for: Some(relaying::for_members(members)),
        kad: if orchestrates { iptl_net::KadMode::Server } else { iptl_net::KadMode::Auto },
        known,
        ..iptl_net::Config::default()
    };
    let (net, mut events) = if config.listen.is_empty() {
        // Others know this node by its last ports; where those are taken meanwhile, any will do.
        let again = iptl_net::Config { listen: remembered.listen.clone(), ..base.clone() };
        let fresh = DEFAULT_LISTEN.iter().map(|addr| (*addr).to_owned()).collect();
        match remembered.listen.is_empty() {
            true => iptl_net::start(iptl_net::Config { listen: fresh, ..base }).await?,
            false => match iptl_net::start(again).await {
                Ok(started) => started,
                Err(error) => {
                    tracing::warn!(%error, "the last ports are not free; others are used");
                    iptl_net::start(iptl_net::Config { listen: fresh, ..base }).await?
                }
            },
        }
    } else {
        iptl_net::start(iptl_net::Config { listen: config.listen.clone(), ..base }).await?
    };
    if config.listen.is_empty() {
        let listen = with_ports(&net.addrs().await);
        if listen != remembered.listen {
            home.write(STATE, &iptl_dag::encode(&Remembered { listen }))?;
        }
    }
    let (stop, addrs_changed) = (stop.clone(), addrs_changed.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => {
                        tracing::debug!(?event, "swarm");
                        if let NetEvent::Listening { .. } | NetEvent::External { .. } = event {
                            addrs_changed.send_replace(());
                        }
                    }
                    None => return,
                }
            }
        }
    });
    Ok(net)
}

/// Returns the default addresses with the ports that are listened on.
fn with_ports(addrs: &[String]) -> Vec<String> {
    let port = |transport: &str| {
        addrs.iter().find_map(|addr| {
            let port = addr.split_once(&format!("/{transport}/"))?.1.split('/').next()?;
            port.parse::<u16>().ok()
        })
    };
    let udp = port("udp").map(|port| format!("/ip4/0.0.0.0/udp/{port}/quic-v1"));
    let tcp = port("tcp").map(|port| format!("/ip4/0.0.0.0/tcp/{port}"));
    udp.into_iter().chain(tcp).collect()
}

/// Time between two looks at whether the orchestrator knows this node, and this node the newest list of revocations.
const KNOWN_PAUSE: Duration = Duration::from_secs(60);

/// Keeps this node known to the orchestrators of its lab, and what it knows of them and of revocations new, until the
/// node stops.
async fn keep_known(members: Members, links: Links, stop: CancellationToken) {
    loop {
        let candidates = members.candidates();
        let asking = candidates.iter().map(|(orchestrator, addrs)| members.ask_again(&links, orchestrator, addrs));
        futures::future::join_all(asking).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(KNOWN_PAUSE) => {}
        }
    }
}

/// Binds the control socket; one that a dead node left is replaced, since the home is locked.
fn bind(home: &Home) -> Result<UnixListener, StartError> {
    let path = home.socket();
    let failed = |source| StartError::Socket { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    // An address holds few bytes of path; the folder's descriptor stands for what comes before.
    let folder = std::fs::File::open(home.root()).map_err(failed)?;
    let short = match path.as_os_str().len() > MAX_SOCKET_PATH {
        true => PathBuf::from(format!("/proc/self/fd/{}/api.sock", folder.as_raw_fd())),
        false => path.clone(),
    };
    UnixListener::bind(&short).map_err(failed)
}

/// Returns how large a DAG may be that is fetched: what the disk has left, with what is stored, and no more than the quota.
fn room(store: PathBuf, quota: Option<u64>) -> Room {
    Arc::new(move |stored| {
        let quota = quota.unwrap_or(u64::MAX);
        // A file system that does not tell its free space is written to until it refuses.
        let Ok(stat) = nix::sys::statvfs::statvfs(&store) else { return quota };
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        free.saturating_sub(DISK_RESERVE).saturating_add(stored).min(quota)
    })
}
