//! The lab network of one cell, as its containers have it.
//!
//! The network is that of the whole run: every instance has its place in it, and those of this cell have a device in
//! their container, made before their program starts. Packets for other cells leave as events, theirs come in as
//! inputs. Names stand in a file that all containers of a cell are given as `/etc/hosts`, so that resolving one takes
//! no packet; who does not read it asks the engine, which answers as a server of names, without a link in between. So
//! both work whatever the network does to packets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::ContainerCreateBody;
use iptl_dag::model::{CellNetworkUse, Destination, Fault, InstanceId, LinkUse, NetworkUse};
use iptl_labnet::{
    Addrs, Away, Batching, Compiled, Directory, Engine, EngineConfig, Faults, LinkStats, Moved, NAMES, NodeId,
    PRIVATE_ADDR, Wish, WishError, between_regions, clean, compile, prefix_of,
};
use iptl_labnet_tun::{
    DEVICE_NAME, Device, End, Interface, Namespace, Network, OpenError, Options, Outlets, Report, now_ns,
};
use iptl_runner::capture::{self, Captures};
use iptl_runner::files::CellFiles;
use iptl_runner::{CellEvent, CellSpec, InstanceSpec, PrepareError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::config::{Devices, Unusable};
use crate::egress::{Carrier, Egress, Sockets};
use crate::faults::Told;
use crate::link::Door;
use crate::protocol::DEVICE_VERB;
use crate::state::{hex, random};
use crate::{engine, settings};

/// Packets for other cells that wait to be told; what comes beyond is lost, as on a link that is full.
const MAX_LEAVING: usize = 4096;

/// Packets that are looked at together.
const TOGETHER: usize = 256;

/// Time in which an earlier life of the lablet lets go of a device.
const BUSY: Duration = Duration::from_secs(2);

/// Time in which a container makes a device, on a machine that swaps.
const HAND_OVER: Duration = Duration::from_secs(60);

/// Where a container looks for the sync service; its name must not be an instance's.
const LOCAL_NAMES: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";

/// Names that mean whoever asks.
const OWN_NAMES: [&str; 2] = ["localhost", iptl_testground::SYNC_HOST];

/// The network of a cell.
pub(crate) struct CellNetwork {
    network: Network,
    maker: Maker,
    seats: BTreeMap<InstanceId, Seat>,
    broken: watch::Receiver<Option<String>>,
    /// Whether anything is promised of delays.
    described: bool,
    /// The addresses under which instances are known now.
    known: Mutex<BTreeMap<InstanceId, Addrs>>,
    /// Addresses for themselves of those that have others than at the start.
    moved: Mutex<BTreeMap<InstanceId, Addrs>>,
    /// What is to happen to it, until it begins.
    faults: Mutex<Option<Faults>>,
    /// Packets for other cells that found too many waiting.
    crowded_out: Arc<AtomicU64>,
    /// Where captures are written, where there are any.
    captures: Option<Captures>,
    /// Places outside of the lab, and who may reach which.
    egress: Arc<Egress>,
    reaches: BTreeMap<InstanceId, BTreeSet<Destination>>,
}

/// Who makes devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// This process.
    Lablet,
    /// A container beside the one that gets it.
    Engine,
}

/// A container that gets a device.
pub(crate) struct Place<'a> {
    pub(crate) engine: &'a crate::engine::Engine,
    /// What the container was made from.
    pub(crate) wanted: &'a ContainerCreateBody,
    pub(crate) name: &'a str,
    pub(crate) container: &'a str,
    /// Its first process.
    pub(crate) pid: u32,
    /// The directory that is mounted into it.
    pub(crate) lab: &'a Path,
    /// What the engine is asked to make meanwhile is waited for by this, and gone then.
    pub(crate) making: &'a TaskTracker,
}

/// The place of an instance in the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    node: NodeId,
    pub(crate) addrs: Addrs,
    mtu: u16,
}

impl Seat {
    /// Returns the network that the first of the addresses is part of: `10.0.0.0/8`.
    pub(crate) fn subnet(&self) -> String {
        subnet_of(self.addrs)
    }

    fn interface(&self) -> Interface {
        let addrs = self.addrs.iter().map(|addr| (addr, prefix_of(addr))).collect();
        Interface { name: DEVICE_NAME.to_owned(), addrs, mtu: self.mtu }
    }
}

impl CellNetwork {
    /// Makes the network of a cell and lets it run. Its packets for other cells are told as events, faults that happen to
    /// it through what is returned beside it.
    pub(crate) fn start(
        spec: &CellSpec,
        maker: Maker,
        realtime: bool,
        events: &mpsc::Sender<CellEvent>,
    ) -> Result<(CellNetwork, Told), PrepareError> {
        let compiled = match &spec.network {
            None => clean(&spec.groups),
            Some(model) => compile(model, &spec.groups, spec.seed),
        };
        let here = spec.instances.iter().map(|instance| instance.id.clone()).collect();
        let compiled = compiled.and_then(|compiled| compiled.check_cell(&here).map(|()| compiled));
        let compiled = compiled.map_err(|e| PrepareError::BadNetwork { reason: e.to_string() })?;
        let faults = spec.network.as_ref().filter(|_| !spec.faults.is_empty());
        let faults =
            faults.map(|model| Faults::new(&spec.faults, model, &compiled, &spec.groups, spec.seed)).transpose();
        let faults = faults.map_err(|e| PrepareError::BadNetwork { reason: e.to_string() })?;
        if let Some(group) = stepped(spec) {
            let reason = format!("the clock of group `{group}` is to jump, and containers have that of their machine");
            return Err(PrepareError::BadNetwork { reason });
        }
        if let Some(group) = unlosable(spec) {
            let reason =
                format!("files of group `{group}` are to be lost, and its containers write below a root that stays");
            return Err(PrepareError::BadNetwork { reason });
        }
        if let Some(group) = readdressed(spec).filter(|_| maker == Maker::Engine) {
            let reason = format!(
                "instances of group `{group}` are to get other addresses, and this lablet may not change those of containers"
            );
            return Err(PrepareError::BadNetwork { reason });
        }
        let egress = Egress::of(spec).map_err(|reason| PrepareError::BadNetwork { reason })?;
        let reaches = spec.instances.iter().filter_map(|instance| {
            let own = instance.container.as_ref()?.egress.keys().cloned().collect::<BTreeSet<_>>();
            (!own.is_empty()).then(|| (instance.id.clone(), own))
        });
        let reaches = reaches.collect();
        let Compiled { topology, nodes, described, .. } = compiled;
        let own: BTreeSet<&InstanceId> = spec.instances.iter().map(|instance| &instance.id).collect();
        let known = nodes.iter().filter_map(|(id, node)| Some((id.clone(), topology.public_addrs(*node)?)));
        let known = Mutex::new(known.collect());
        let mut seats = BTreeMap::new();
        for id in &own {
            let seat = nodes
                .get(*id)
                .and_then(|node| Some(Seat { node: *node, addrs: topology.addrs(*node)?, mtu: topology.mtu(*node)? }));
            let seat =
                seat.ok_or_else(|| PrepareError::BadNetwork { reason: format!("{id} is no instance of the run") })?;
            seats.insert((*id).clone(), seat);
        }
        let mut engine = Engine::new(topology, EngineConfig { seed: spec.seed, ..EngineConfig::default() });
        for (id, node) in &nodes {
            engine.set_away(*node, !own.contains(id));
        }
        let directory = Directory::new(&spec.groups).map_err(|e| PrepareError::BadNetwork { reason: e.to_string() })?;
        engine.serve_names(Arc::new(directory), &OWN_NAMES);
        let (leaving, queue) = mpsc::channel(MAX_LEAVING);
        tokio::spawn(tell(queue, events.downgrade()));
        let crowded_out = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&crowded_out);
        let captured: BTreeMap<usize, InstanceId> = spec
            .instances
            .iter()
            .filter(|instance| instance.capture)
            .filter_map(|instance| Some((seats.get(&instance.id)?.node.index(), instance.id.clone())))
            .collect();
        let captures = match captured.is_empty() {
            true => None,
            false => Some(
                Captures::start(spec.scratch.clone())
                    .map_err(|source| PrepareError::Io { what: "the capture of a link".to_owned(), source })?,
            ),
        };
        let (writer, whose) = (captures.clone(), captured.clone());
        let (happens, told) = mpsc::unbounded_channel();
        let (breaks, broken) = watch::channel(None);
        let outlets = Outlets {
            away: Box::new(move |packet| {
                if leaving.try_send(packet).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }),
            captured: Box::new(move |piece| {
                if let (Some(writer), Some(id)) = (&writer, whose.get(&piece.node.index())) {
                    writer.add(id.clone(), piece);
                }
            }),
            happened: Box::new(move |fault| {
                // Nobody listens once the cell is over.
                let _over = happens.send(fault);
            }),
            ended: Box::new(move |end| match end {
                End::Stopped(_) => {}
                End::Broken { reason } => {
                    tracing::error!(reason, "a lab network broke");
                    breaks.send_replace(Some(reason));
                }
            }),
        };
        let network = Network::start(engine, Options { realtime }, outlets)
            .map_err(|source| PrepareError::Io { what: "the lab network".to_owned(), source })?;
        let files = CellFiles::new(spec.scratch.clone());
        for (node, id) in captured {
            network.capture(NodeId::from_index(node), capture::room(&files, &id), capture::ahead_of(now_ns()));
        }
        let (faults, moved) = (Mutex::new(faults), Mutex::default());
        let network = CellNetwork {
            network,
            maker,
            seats,
            broken,
            described,
            known,
            moved,
            faults,
            crowded_out,
            captures,
            egress: Arc::new(egress),
            reaches,
        };
        Ok((network, told))
    }

    /// Lets faults happen, whose times count from this long ago; a second call does nothing.
    pub(crate) fn begin(&self, ago: Duration) {
        if let Some(faults) = self.faults.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
            self.network.set_faults(faults, now_ns().saturating_sub(ago_ns));
        }
    }

    /// Returns the names of all instances, for `/etc/hosts`.
    pub(crate) fn hosts(&self) -> String {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let v4 = self.seats.values().any(|seat| seat.addrs.v4.is_some());
        hosts(known.iter().map(|(id, addrs)| (id, *addrs))) + &self.egress.names(v4)
    }

    /// Returns where an instance reaches places outside of the lab, for its environment.
    pub(crate) fn egress_of(&self, id: &InstanceId) -> String {
        match (self.reaches.get(id), self.seat(id)) {
            (Some(own), Some(seat)) => self.egress.told(own, seat.addrs),
            _ => String::new(),
        }
    }

    /// Leads what an instance sends to places that it may reach to these sockets of its own network.
    pub(crate) fn open_doors(&self, id: &InstanceId, sockets: &Sockets) -> io::Result<()> {
        if let (Some(own), Some(seat)) = (self.reaches.get(id), self.seat(id)) {
            let (tcp, udp) = sockets.ports()?;
            self.network.set_doors(seat.node, self.egress.doors(own, seat.addrs, tcp, udp));
        }
        Ok(())
    }

    /// Starts to carry what comes to the sockets of an instance.
    pub(crate) fn carrier(&self, id: &InstanceId, sockets: Sockets) -> io::Result<Carrier> {
        let own = self.reaches.get(id).cloned().unwrap_or_default();
        Carrier::start(Arc::clone(&self.egress), own, sockets)
    }

    /// Takes note of who is known under other addresses now.
    pub(crate) fn note_moved(&self, moved: &[Moved]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(moved.iter().map(|moved| (moved.id.clone(), moved.public)));
        let mut own = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        own.extend(moved.iter().map(|moved| (moved.id.clone(), moved.now)));
    }

    /// Returns the addresses that an instance has for itself, where they are others than at the start.
    pub(crate) fn moved(&self, id: &InstanceId) -> Option<Addrs> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// Returns where programs look for servers of names, for `/etc/resolv.conf`: the lab's own, of the families that the
    /// run's instances have.
    pub(crate) fn resolver(&self) -> String {
        let mut text = "# The lab's own names, which stand in /etc/hosts too; there are no others.\n".to_owned();
        let has = |addr: &IpAddr| self.seats.values().any(|seat| seat.addrs.like(*addr).is_some());
        for addr in NAMES.iter().filter(has) {
            let _ = writeln!(text, "nameserver {addr}");
        }
        text.push_str("options timeout:1 attempts:3\n");
        text
    }

    /// Returns the place of an instance of this cell.
    pub(crate) fn seat(&self, id: &InstanceId) -> Option<Seat> {
        self.seats.get(id).copied()
    }

    /// Gives an instance its device, in the network of this container, whose first process is this. Dropped half-way, the
    /// device may be there and lead nowhere.
    pub(crate) async fn connect(&self, id: &InstanceId, at: &Place<'_>) -> Result<(), String> {
        let seat = self.seat(id).ok_or("it has no place in the lab network")?;
        let device = match self.maker {
            Maker::Lablet => open(seat, at.pid).await,
            Maker::Engine => beside(seat, at).await,
        };
        self.network.attach(seat.node, device.map_err(|reason| format!("its lab network cannot be made: {reason}"))?);
        Ok(())
    }

    /// Puts in force what an instance asks of its own network; answers once it is, or with why it cannot be. Where the
    /// network ends meanwhile there is no answer.
    pub(crate) fn shape(&self, id: &InstanceId, wish: Wish) -> oneshot::Receiver<Result<(), WishError>> {
        let (reply, answer) = oneshot::channel();
        match self.seat(id) {
            Some(seat) => self.network.shape(seat.node, wish, move |outcome| drop(reply.send(outcome))),
            None => drop(reply.send(Err(WishError::Unknown))),
        }
        answer
    }

    /// Takes the device of an instance that has ended away, and returns what the network did to its packets.
    pub(crate) async fn disconnect(&self, id: &InstanceId) -> Option<NetworkUse> {
        let seat = self.seat(id)?;
        let (reply, answer) = oneshot::channel();
        self.network.report(move |report| drop(reply.send(report)));
        let report = answer.await.ok()?;
        self.network.detach(seat.node);
        report.nodes.contains_key(&seat.node.index()).then(|| self.used(&report, seat.node.index()))
    }

    /// Puts the capture of an instance that was disconnected among its artifacts, where there is one.
    pub(crate) async fn keep_capture(&self, id: InstanceId, at_us: u64) {
        if let Some(captures) = &self.captures {
            captures.keep(id, at_us).await;
        }
    }

    fn used(&self, report: &Report, node: usize) -> NetworkUse {
        let links = |links: Vec<LinkStats>| links.into_iter().map(LinkUse::from).collect();
        let node = report.nodes.get(&node).cloned().unwrap_or_default();
        let (lab, engine) = (&report.lab, &report.engine);
        NetworkUse {
            spoofed: node.spoofed,
            lost_by_lab: node.lost_by_lab(),
            up: links(node.up),
            down: links(node.down),
            own: node.own.map(LinkUse::from),
            crashes: 0,
            egress: BTreeMap::new(),
            cell: CellNetworkUse {
                lateness: report.lateness.counts().to_vec(),
                max_late_ns: report.lateness.max_ns(),
                relayed: engine.relayed,
                overdue: if self.described { engine.overdue } else { 0 },
                max_overdue_ns: if self.described { engine.max_overdue_ns } else { 0 },
                lost_by_lab: report.across.dropped_by_lab + lab.crowded_out + self.crowded_out.load(Ordering::Relaxed),
                across: report.across.into(),
                between: between_regions(&report.regions),
                cpu_us: Some(lab.cpu_us),
                wall_us: lab.wall_us,
                realtime: lab.realtime,
            },
        }
    }

    /// Takes packets from other cells; what is none of this kind is passed over.
    pub(crate) fn come_in(&self, packets: Vec<Away>) {
        self.network.come_in(packets);
    }

    /// Breaks the network.
    pub(crate) fn break_it(&self) {
        self.network.report(|_| panic!("it was told to"));
    }

    /// Waits until the network breaks, and returns why; a network that does not break is waited for without end.
    pub(crate) fn broken(&self) -> impl Future<Output = String> + Send + use<> {
        let mut broken = self.broken.clone();
        async move {
            let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for CellNetwork {
    fn drop(&mut self) {
        self.network.stop();
    }
}

/// Makes a device in the network namespace of a process.
async fn open(seat: Seat, pid: u32) -> Result<Device, String> {
    let open = move || {
        let namespace = Namespace::of_process(pid).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        loop {
            match namespace.open(&seat.interface()) {
                // An earlier life of this lablet lets go of it about now.
                Err(OpenError::Device { source, .. })
                    if source.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < BUSY =>
                {
                    std::thread::sleep(BUSY / 100);
                }
                opened => return opened.map_err(|e| said(&e)),
            }
        }
    };
    tokio::task::spawn_blocking(open).await.map_err(|e| e.to_string())?
}

/// Has the engine start a container beside another, which makes a device in the network of both.
async fn beside(seat: Seat, at: &Place<'_>) -> Result<Device, String> {
    let token = hex(&random().map_err(|e| e.to_string())?);
    let door = Door::for_device(at.lab).map_err(|e| format!("its socket cannot be opened: {e}"))?;
    let Interface { name, addrs, mtu } = seat.interface();
    let mut words = vec![DEVICE_VERB.to_owned(), token.clone(), name, mtu.to_string()];
    words.extend(addrs.iter().map(|(addr, prefix)| format!("{addr}/{prefix}")));
    let made = settings::beside(at, words);
    let refused = |e: bollard::errors::Error| format!("the container engine refuses to make it: {}", engine::said(&e));
    let (engine, name) = (at.engine.clone(), format!("{}-network", at.name));
    let making = async move {
        let id = engine.create(&name, &made).await.map_err(refused)?;
        let taken = match engine.start(&id).await {
            Ok(()) => tokio::time::timeout(HAND_OVER, door.take_device(&token)).await,
            Err(e) => Ok(Err(io::Error::other(refused(e)))),
        };
        engine.remove(&id).await.map_err(refused)?;
        match taken {
            Ok(taken) => taken.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no device came within {} s", HAND_OVER.as_secs())),
        }
    };
    // Not dropped with this: the engine would go on, and nobody would remove what it made.
    at.making.spawn(making).await.map_err(|e| e.to_string())?
}

/// Returns a group of this cell whose clocks a fault wants to set.
fn stepped(spec: &CellSpec) -> Option<&String> {
    concerned(spec, |fault| matches!(fault, Fault::Clock { .. }), |_| true)
}

/// Returns a group of this cell whose addresses a fault wants to change. The kernel lets only those who may make a device
/// change its addresses, whoever made it.
fn readdressed(spec: &CellSpec) -> Option<&String> {
    let changes = |fault: &Fault| matches!(fault, Fault::Address { .. } | Fault::Crash { new_address: true, .. });
    concerned(spec, changes, |_| true)
}

/// Returns a group of this cell whose containers are to lose files that are part of what they are made of.
fn unlosable(spec: &CellSpec) -> Option<&String> {
    let writable = |instance: &InstanceSpec| instance.container.as_ref().is_some_and(|c| c.settings.writable);
    concerned(spec, |fault| matches!(fault, Fault::Crash { files_lost: true, .. }), writable)
}

/// Returns the group of an instance of this cell that a fault of some kind may hit.
fn concerned(spec: &CellSpec, is_it: fn(&Fault) -> bool, may: fn(&InstanceSpec) -> bool) -> Option<&String> {
    let faults = spec.faults.iter().flat_map(|schedule| &schedule.faults);
    let groups: Vec<_> = faults.filter(|scheduled| is_it(&scheduled.fault)).filter_map(|s| s.fault.who()).collect();
    let hit = |instance: &&InstanceSpec| {
        groups.iter().any(|who| who.group.as_ref().is_none_or(|group| *group == instance.id.group))
    };
    spec.instances.iter().filter(hit).find(|instance| may(instance)).map(|instance| &instance.id.group)
}

/// Tells packets for other cells, as long as there is somebody to be told.
async fn tell(mut queue: mpsc::Receiver<Away>, events: mpsc::WeakSender<CellEvent>) {
    let (mut packets, mut batching) = (Vec::new(), Batching::default());
    while queue.recv_many(&mut packets, TOGETHER).await > 0 {
        let mut batches = Vec::new();
        for packet in packets.drain(..) {
            batching.push(&packet.encode());
            batches.extend(batching.take_full());
        }
        batches.extend(batching.take());
        // Not held meanwhile: the cell's end would wait for the end of its network.
        let Some(events) = events.upgrade() else { continue };
        for batch in batches {
            if events.send(CellEvent::Packets(batch)).await.is_err() {
                return;
            }
        }
    }
}

/// Writes the names of all instances: `10.0.0.1 node-0 0.node.lab`.
fn hosts<'a>(instances: impl Iterator<Item = (&'a InstanceId, Addrs)>) -> String {
    let mut hosts = LOCAL_NAMES.to_owned();
    let _ = writeln!(hosts, "127.0.0.1\t{}", iptl_testground::SYNC_HOST);
    for (InstanceId { group, index }, addrs) in instances {
        for addr in addrs.iter() {
            let _ = writeln!(hosts, "{addr}\t{group}-{index} {index}.{group}.lab");
        }
    }
    hosts
}

/// Returns the network that the first of some addresses is part of: `10.0.0.0/8`.
pub(crate) fn subnet_of(addrs: Addrs) -> String {
    addrs.first().map(subnet).unwrap_or_default()
}

/// Returns the network that an instance's address is part of.
fn subnet(addr: IpAddr) -> String {
    let prefix = prefix_of(addr);
    let net = match addr {
        IpAddr::V4(addr) => IpAddr::from(Ipv4Addr::from(u32::from(addr) & (u32::MAX << (32 - u32::from(prefix))))),
        IpAddr::V6(addr) => IpAddr::from(Ipv6Addr::from(u128::from(addr) & (u128::MAX << (128 - u32::from(prefix))))),
    };
    format!("{net}/{prefix}")
}

/// Returns an error with its causes.
fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The device behind which the kernel makes others.
const TUN: &str = "/dev/net/tun";

/// Finds out who makes devices: this process where it may, and otherwise the engine.
///
/// # Errors
///
/// Fails where nobody can: then no container has a network.
pub(crate) fn maker(devices: Devices) -> Result<Maker, Unusable> {
    let addrs = vec![(PRIVATE_ADDR.into(), prefix_of(PRIVATE_ADDR.into()))];
    let interface = Interface { name: DEVICE_NAME.to_owned(), addrs, mtu: 1500 };
    let may = || Namespace::empty().map_err(OpenError::Enter)?.open(&interface).map(drop);
    if devices == Devices::WhoeverMay {
        match may() {
            Ok(()) => return Ok(Maker::Lablet),
            Err(e) => tracing::info!(reason = said(&e), "the engine makes the devices of the lab network"),
        }
    }
    match std::fs::File::options().read(true).write(true).open(TUN) {
        Ok(_) => Ok(Maker::Engine),
        // Not for this user, which the engine is not.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(Maker::Engine),
        Err(e) => Err(Unusable {
            reason: format!("containers would have no network: {TUN}: {e}"),
            fix: "load the kernel's driver: sudo modprobe tun    (at each boot: a line `tun` in /etc/modules-load.d/iptl.conf)"
                .to_owned(),
        }),
    }
}
