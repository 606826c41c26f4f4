//! The sockets of one cell's instances over a model of links: each instance has an IP stack of its own, and what it
//! sends goes through the [`Engine`].
//!
//! A [`Hosts`] is told what instances do, as a [`Switch`](crate::Switch) is, and what time it is
//! ([`advance`](Sockets::advance)). `stack.rs` has what smoltcp, the TCP of each instance, is given; `tcp.rs`
//! connections, `udp.rs` datagrams, `parts.rs` fragments. Ports, and the way of a packet, are here.

mod parts;
mod stack;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use iptl_dag::model::{CellNetworkUse, InstanceId, LinkUse, NetworkUse};
use smoltcp::iface::SocketHandle;

use crate::compile::Compiled;
use crate::directory::Directory;
use crate::draw::mix;
use crate::engine::{Engine, EngineConfig, LinkStats};
use crate::faults::{Faults, Happened};
use crate::ip::{self, Header, Transport};
use crate::packet::Packet;
use crate::slots::Slots;
use crate::sockets::Sockets;
use crate::switch::{Datagram, Half, InstanceStats, Limits, NetError, Read, SocketId, WINDOW_SIZE};
use crate::topology::NodeId;

use parts::Parts;
use stack::Stack;
use udp::Udp;

/// First ephemeral port: the range of RFC 6335.
const FIRST_EPHEMERAL_PORT: u16 = 49_152;

/// Smallest and largest buffer of one direction of a connection, in bytes.
const MIN_BUFFER: usize = 64 << 10;
const MAX_BUFFER: usize = 1 << 20;

/// Steps of hosts and engine that one call may take. Packets between hosts without delay come back within it.
const MAX_ROUNDS: usize = 100_000;

/// Flags of a segment.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The sockets of one cell's instances over a model of links.
pub struct Hosts {
    directory: Arc<Directory>,
    limits: Limits,
    engine: Engine,
    nodes: BTreeMap<InstanceId, NodeId>,
    /// Every instance that was ever in this cell, by directory address.
    hosts: BTreeMap<Ipv4Addr, Host>,
    by_node: BTreeMap<NodeId, Ipv4Addr>,
    slots: Slots<Socket>,
    ready: VecDeque<SocketId>,
    /// Hosts in which something has happened.
    dirty: BTreeSet<Ipv4Addr>,
    /// When hosts want to do something by themselves.
    timers: BTreeSet<(u64, Ipv4Addr)>,
    now_ns: u64,
    buffer_size: usize,
    seed: u64,
    /// Packets for instances that do not run here.
    undelivered: u64,
    faults: Option<Faults>,
    /// When the instances were released.
    start_ns: Option<u64>,
    happened: VecDeque<Happened>,
}

struct Host {
    node: NodeId,
    /// Its address for itself.
    addr: Ipv4Addr,
    mtu: u16,
    alive: bool,
    stack: Stack,
    ports: BTreeMap<(Protocol, u16), Vec<(Ipv4Addr, SocketId)>>,
    sockets: BTreeSet<SocketId>,
    /// Connections whose socket is closed and that still have something to say.
    closing: Vec<SocketHandle>,
    parts: Parts,
    next_port: u16,
    next_id: u16,
    timer: Option<u64>,
    stats: InstanceStats,
    /// How often it was taken out and added again.
    crashes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

struct Socket {
    owner: Ipv4Addr,
    local: Option<SocketAddrV4>,
    holds_port: bool,
    announced: bool,
    /// Whether it was readable and writable when last looked at.
    was: (bool, bool),
    kind: Kind,
}

enum Kind {
    Udp(Udp),
    /// TCP, neither connected nor listening.
    Idle,
    Listening(Listener),
    Connecting {
        handle: SocketHandle,
        peer: SocketAddrV4,
        since_ns: u64,
    },
    Failed(NetError),
    Stream(Stream),
}

struct Listener {
    backlog: usize,
    /// Connections that are opening or wait to be accepted.
    opening: Vec<SocketHandle>,
    /// The one that takes the next opener; none where the backlog is full.
    spare: Option<SocketHandle>,
}

struct Stream {
    handle: SocketHandle,
    peer: SocketAddrV4,
    /// The owner reads no more.
    rx_off: bool,
    /// The owner writes no more.
    tx_end: bool,
}

impl Hosts {
    /// Makes the hosts of a cell in which no instance is yet.
    pub fn new(directory: Arc<Directory>, compiled: Compiled, limits: Limits, config: EngineConfig) -> Hosts {
        let Compiled { topology, nodes, .. } = compiled;
        Hosts {
            directory,
            limits,
            buffer_size: buffer_size(&topology),
            nodes,
            engine: Engine::new(topology, config),
            hosts: BTreeMap::new(),
            by_node: BTreeMap::new(),
            slots: Slots::default(),
            ready: VecDeque::new(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            now_ns: 0,
            seed: config.seed,
            undelivered: 0,
            faults: None,
            start_ns: None,
            happened: VecDeque::new(),
        }
    }

    /// Has faults happen after the start.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = Some(faults);
    }

    /// Returns the engine: what links did, and how late.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the engine, to change the network. What follows happens with the next call.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Returns the place of each instance of the run.
    pub fn nodes(&self) -> &BTreeMap<InstanceId, NodeId> {
        &self.nodes
    }

    /// Returns how many packets were for instances that do not run here.
    pub fn undelivered(&self) -> u64 {
        self.undelivered
    }

    // The way of packets.

    /// Lets hosts and engine do what they can do now.
    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            while let Some(output) = self.engine.poll_output() {
                let host = self.by_node.get(&output.node).copied();
                match host.filter(|me| self.hosts.get(me).is_some_and(Host::takes_packets)) {
                    Some(me) => self.receive(me, output.bytes),
                    None => {
                        self.undelivered += 1;
                        self.engine.recycle(output.bytes);
                    }
                }
            }
            let Some(me) = self.dirty.pop_first() else { return };
            self.step(me);
        }
        // Who talks without end to a neighbour without delay goes on with the next call.
        debug_assert!(!self.dirty.is_empty() || self.engine.poll_timeout().is_some());
    }

    /// Hands a packet to its host.
    fn receive(&mut self, me: Ipv4Addr, bytes: Vec<u8>) {
        let Ok(header) = Header::parse(&bytes) else { return self.engine.recycle(bytes) };
        let now_ns = self.now_ns;
        if header.fragment.is_some() {
            let whole = self.hosts.get_mut(&me).and_then(|host| host.parts.take(now_ns, &header, &bytes));
            if let (Some(payload), ip::UDP) = (whole, header.protocol) {
                self.take_datagram(me, &header, &payload);
            }
            return self.engine.recycle(bytes);
        }
        match header.transport {
            Transport::Udp { .. } => {
                let payload = bytes[header.transport_at..header.len].to_vec();
                self.take_datagram(me, &header, &payload);
                self.engine.recycle(bytes);
            }
            Transport::Tcp { .. } | Transport::Echo { .. } | Transport::Other => {
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.stack.receive(bytes);
                    self.dirty.insert(me);
                }
            }
            Transport::Error => {
                self.take_error(me, &bytes);
                self.engine.recycle(bytes);
            }
        }
    }

    /// Returns whether a packet opens a connection to somebody who listens and has no room for it.
    fn is_full(&self, me: Ipv4Addr, packet: &[u8]) -> bool {
        let Ok(header) = Header::parse(packet) else { return false };
        let (IpAddr::V4(addr), Transport::Tcp { dst: port, flags, .. }) = (header.dst, header.transport) else {
            return false;
        };
        if flags & (SYN | ACK) != SYN {
            return false;
        }
        let listener = self.holder(me, Protocol::Tcp, SocketAddrV4::new(addr, port));
        let socket = listener.and_then(|id| self.socket(id).ok());
        matches!(socket, Some(Socket { kind: Kind::Listening(Listener { spare: None, .. }), .. }))
    }

    /// Sends a packet of a host that is not for itself.
    fn send(&mut self, node: NodeId, bytes: Vec<u8>) {
        self.engine.handle_packet(self.now_ns, node, bytes);
    }

    /// Lets one host do what it can do now.
    fn step(&mut self, me: Ipv4Addr) {
        let now_ns = self.now_ns;
        let Some(host) = self.hosts.get_mut(&me) else { return };
        let node = host.node;
        host.stack.put_out(now_ns);
        // One packet at a time: each opener needs a socket that waits for it.
        while let Some(host) = self.hosts.get(&me)
            && let Some(packet) = host.stack.next()
        {
            // An opener for whom there is no room is not heard, and tries again, as on Linux.
            let is_heard = !self.is_full(me, packet);
            let Some(host) = self.hosts.get_mut(&me) else { return };
            host.stack.take_in(now_ns, is_heard);
            self.top_up(me);
            if let Some(host) = self.hosts.get_mut(&me) {
                host.stack.put_out(now_ns);
            }
        }
        self.look_after(me);
        let Some(host) = self.hosts.get_mut(&me) else { return };
        host.stack.put_out(now_ns);
        host.drop_closed();
        let timer = host.stack.timeout_ns(now_ns);
        if timer != host.timer {
            if let Some(at_ns) = host.timer {
                self.timers.remove(&(at_ns, me));
            }
            if let Some(at_ns) = timer {
                self.timers.insert((at_ns, me));
            }
            host.timer = timer;
        }
        for bytes in host.stack.sent() {
            self.send(node, bytes);
        }
    }

    // Sockets.

    fn socket(&self, id: SocketId) -> Result<&Socket, NetError> {
        self.slots.get(id).ok_or(NetError::NoSocket)
    }

    fn socket_mut(&mut self, id: SocketId) -> Result<&mut Socket, NetError> {
        self.slots.get_mut(id).ok_or(NetError::NoSocket)
    }

    fn host(&self, me: Ipv4Addr) -> Result<&Host, NetError> {
        self.hosts.get(&me).ok_or(NetError::NoInstance { addr: me })
    }

    fn host_mut(&mut self, me: Ipv4Addr) -> Result<&mut Host, NetError> {
        self.hosts.get_mut(&me).ok_or(NetError::NoInstance { addr: me })
    }

    fn open(&mut self, me: Ipv4Addr, kind: Kind) -> Result<SocketId, NetError> {
        self.check_room(me)?;
        let id = self.slots.insert(Socket {
            owner: me,
            local: None,
            holds_port: false,
            announced: false,
            was: (false, false),
            kind,
        });
        self.host_mut(me)?.sockets.insert(id);
        Ok(id)
    }

    fn check_room(&self, me: Ipv4Addr) -> Result<(), NetError> {
        let host = self.hosts.get(&me).filter(|host| host.alive).ok_or(NetError::NoInstance { addr: me })?;
        let limit = self.limits.sockets_per_instance;
        if host.sockets.len() >= limit as usize { Err(NetError::TooManySockets { limit }) } else { Ok(()) }
    }

    fn remove(&mut self, id: SocketId) -> Option<Socket> {
        let socket = self.slots.remove(id)?;
        let protocol = socket.kind.protocol();
        if let Some(host) = self.hosts.get_mut(&socket.owner) {
            host.sockets.remove(&id);
            if let (true, Some(local)) = (socket.holds_port, socket.local) {
                let key = (protocol, local.port());
                if let Some(holders) = host.ports.get_mut(&key) {
                    holders.retain(|(_, holder)| *holder != id);
                    if holders.is_empty() {
                        host.ports.remove(&key);
                    }
                }
            }
        }
        Some(socket)
    }

    fn retire(&mut self, id: SocketId, gently: bool) {
        let Some(socket) = self.remove(id) else { return };
        let me = socket.owner;
        match socket.kind {
            Kind::Udp(_) | Kind::Idle | Kind::Failed(_) => {}
            Kind::Listening(listener) => self.end_listener(me, listener),
            Kind::Connecting { handle, .. } => self.end_connection(me, handle, false),
            Kind::Stream(stream) => self.end_connection(me, stream.handle, gently),
        }
        self.dirty.insert(me);
    }

    fn wake(&mut self, id: SocketId) {
        if let Ok(socket) = self.socket_mut(id)
            && !socket.announced
        {
            socket.announced = true;
            self.ready.push_back(id);
        }
    }

    /// Binds a socket; port zero takes an ephemeral one.
    fn bind(&mut self, id: SocketId, addr: SocketAddrV4) -> Result<(), NetError> {
        let socket = self.socket(id)?;
        if socket.local.is_some() {
            return Err(NetError::InvalidState);
        }
        let (me, protocol) = (socket.owner, socket.kind.protocol());
        let host = self.host_mut(me)?;
        // Who has another address than the directory says may still call itself by that.
        let ip = if *addr.ip() == me { host.addr } else { *addr.ip() };
        if !ip.is_unspecified() && !ip.is_loopback() && ip != host.addr {
            return Err(NetError::AddressNotAvailable { addr: ip });
        }
        let port = if addr.port() == 0 {
            host.ephemeral(protocol).ok_or(NetError::NoPorts)?
        } else if host.is_taken(protocol, ip, addr.port()) {
            return Err(NetError::AddressInUse { port: addr.port() });
        } else {
            addr.port()
        };
        host.ports.entry((protocol, port)).or_default().push((ip, id));
        let socket = self.socket_mut(id)?;
        socket.local = Some(SocketAddrV4::new(ip, port));
        socket.holds_port = true;
        Ok(())
    }

    /// Returns the socket that holds a port for packets to an address of the host.
    fn holder(&self, me: Ipv4Addr, protocol: Protocol, dst: SocketAddrV4) -> Option<SocketId> {
        let holders = self.hosts.get(&me)?.ports.get(&(protocol, dst.port()))?;
        let exact = holders.iter().find(|(ip, _)| ip == dst.ip());
        exact.or_else(|| holders.iter().find(|(ip, _)| ip.is_unspecified())).map(|(_, id)| *id)
    }

    /// Returns from which address to which one a socket of `me` bound to `bound` sends.
    fn route(&self, me: Ipv4Addr, bound: Ipv4Addr, dst: SocketAddrV4) -> Result<(Ipv4Addr, SocketAddrV4), NetError> {
        if dst.port() == 0 {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        let own = self.host(me)?.addr;
        // To send to "any" is to send to oneself, as on Linux; who has another address than the directory says is
        // itself by that too.
        let ip = match *dst.ip() {
            ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST,
            ip if ip == me => own,
            ip => ip,
        };
        let target = SocketAddrV4::new(ip, dst.port());
        if ip.is_loopback() {
            let src = if bound.is_unspecified() { Ipv4Addr::LOCALHOST } else { bound };
            return Ok((src, target));
        }
        if bound.is_loopback() {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        Ok((own, target))
    }
}

impl Kind {
    fn protocol(&self) -> Protocol {
        match self {
            Kind::Udp(_) => Protocol::Udp,
            Kind::Idle | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) | Kind::Stream(_) => {
                Protocol::Tcp
            }
        }
    }
}

impl Host {
    /// Returns whether anything here looks at packets.
    fn takes_packets(&self) -> bool {
        self.alive || !self.closing.is_empty()
    }

    fn is_taken(&self, protocol: Protocol, ip: Ipv4Addr, port: u16) -> bool {
        self.ports.get(&(protocol, port)).is_some_and(|holders| {
            holders.iter().any(|(held, _)| *held == ip || held.is_unspecified() || ip.is_unspecified())
        })
    }

    fn ephemeral(&mut self, protocol: Protocol) -> Option<u16> {
        for _ in FIRST_EPHEMERAL_PORT..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            if !self.ports.contains_key(&(protocol, port)) {
                return Some(port);
            }
        }
        None
    }
}

/// Returns how much one direction of a connection holds: what the fastest way that a class allows sends in the longest
/// round trip between regions, within bounds.
fn buffer_size(topology: &crate::Topology) -> usize {
    let rates = topology.nodes.iter().map(|node| &node.access).chain(topology.gateways.iter().map(|g| &g.access));
    let mut fastest = 0;
    for access in rates {
        for link in [&access.up, &access.down] {
            if link.rate_bps == 0 {
                continue;
            }
            fastest = fastest.max(link.rate_bps);
        }
    }
    if fastest == 0 {
        return WINDOW_SIZE;
    }
    let longest_ns = topology.delays_ns.iter().flatten().copied().max().unwrap_or(0);
    let bytes = u128::from(fastest) * u128::from(longest_ns) * 2 / 8_000_000_000;
    usize::try_from(bytes).unwrap_or(MAX_BUFFER).clamp(MIN_BUFFER, MAX_BUFFER)
}

impl Sockets for Hosts {
    fn advance(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        if let (Some(faults), Some(start_ns)) = (&mut self.faults, self.start_ns) {
            while let Some(happened) = faults.advance(start_ns, self.now_ns, &mut self.engine) {
                self.happened.push_back(happened);
            }
        }
        self.engine.handle_timeout(self.now_ns);
        while let Some((at_ns, me)) = self.timers.first().copied() {
            if at_ns > self.now_ns {
                break;
            }
            self.timers.remove(&(at_ns, me));
            if let Some(host) = self.hosts.get_mut(&me) {
                host.timer = None;
            }
            self.dirty.insert(me);
        }
        self.settle();
    }

    fn poll_timeout(&self) -> Option<u64> {
        let timer = self.timers.first().map(|(at_ns, _)| *at_ns);
        let faults = self.faults.as_ref().and_then(Faults::poll_timeout).zip(self.start_ns);
        let fault = faults.map(|(due_ns, start_ns)| start_ns.saturating_add(due_ns));
        [self.engine.poll_timeout(), timer, fault].into_iter().flatten().min()
    }

    fn start(&mut self) {
        self.start_ns.get_or_insert(self.now_ns);
    }

    fn poll_fault(&mut self) -> Option<Happened> {
        self.happened.pop_front()
    }

    fn network_use(&self, me: Ipv4Addr) -> Option<NetworkUse> {
        let host = self.hosts.get(&me)?;
        let (up, down) = self.engine.links_of(host.node);
        let lost_by_lab = up.iter().chain(&down).map(|link| link.dropped_by_lab).sum();
        let links = |links: Vec<LinkStats>| links.into_iter().map(LinkUse::from).collect();
        let (across, lateness, stats) = (self.engine.across(), self.engine.lateness(), self.engine.stats());
        Some(NetworkUse {
            up: links(up),
            down: links(down),
            spoofed: self.engine.spoofed_by(host.node).unwrap_or_default(),
            lost_by_lab,
            crashes: host.crashes,
            cell: CellNetworkUse {
                lateness: lateness.counts().to_vec(),
                max_late_ns: lateness.max_ns(),
                relayed: stats.relayed,
                overdue: stats.overdue,
                max_overdue_ns: stats.max_overdue_ns,
                lost_by_lab: across.dropped_by_lab,
                across: across.into(),
                // Whoever calls does its work.
                cpu_us: None,
                wall_us: self.now_ns / 1_000,
                realtime: false,
            },
        })
    }

    fn add_instance(&mut self, id: &InstanceId) -> Option<Ipv4Addr> {
        let me = self.directory.addr(id)?;
        let node = *self.nodes.get(id)?;
        let (addr, mtu) = (self.engine.addr(node)?, self.engine.mtu(node)?);
        let seed = mix(self.seed, u64::from(u32::from(me)));
        let stack = Stack::new(addr, mtu, seed, self.now_ns);
        // What an earlier life had not said yet stays unsaid.
        if let Some(at_ns) = self.hosts.get_mut(&me).and_then(|before| before.timer.take()) {
            self.timers.remove(&(at_ns, me));
        }
        let before = self.hosts.get(&me);
        let stats = before.map(|host| host.stats).unwrap_or_default();
        let crashes = before.map_or(0, |host| host.crashes + 1);
        self.by_node.insert(node, me);
        self.hosts.insert(
            me,
            Host {
                node,
                addr,
                mtu,
                alive: true,
                stack,
                ports: BTreeMap::new(),
                sockets: BTreeSet::new(),
                closing: Vec::new(),
                parts: Parts::default(),
                next_port: FIRST_EPHEMERAL_PORT,
                next_id: 0,
                timer: None,
                stats,
                crashes,
            },
        );
        Some(me)
    }

    fn own_addr(&self, me: Ipv4Addr) -> Ipv4Addr {
        self.hosts.get(&me).map_or(me, |host| host.addr)
    }

    fn remove_instance(&mut self, me: Ipv4Addr) {
        let Some(host) = self.hosts.get(&me) else { return };
        let sockets: Vec<SocketId> = host.sockets.iter().copied().collect();
        for id in sockets {
            self.retire(id, false);
        }
        // Connections that it has closed still send what was written to them, as those of a process that ended do.
        if let Some(host) = self.hosts.get_mut(&me) {
            host.alive = false;
        }
        self.dirty.insert(me);
        self.settle();
    }

    fn cut(&mut self, _: &[Ipv4Addr]) {}

    fn handle_packet(&mut self, _: Packet) {}

    fn poll_packet(&mut self) -> Option<(Ipv4Addr, Packet)> {
        None
    }

    fn poll_ready(&mut self) -> Option<SocketId> {
        self.settle();
        while let Some(id) = self.ready.pop_front() {
            if let Ok(socket) = self.socket_mut(id) {
                socket.announced = false;
                return Some(id);
            }
        }
        None
    }

    fn close(&mut self, id: SocketId) {
        self.retire(id, true);
    }

    fn local_addr(&self, id: SocketId) -> Result<Option<SocketAddrV4>, NetError> {
        Ok(self.socket(id)?.local)
    }

    fn peer_addr(&self, id: SocketId) -> Result<SocketAddrV4, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(stream) => Ok(stream.peer),
            Kind::Udp(udp) => udp.peer.ok_or(NetError::InvalidState),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) => Err(NetError::InvalidState),
        }
    }

    fn is_readable(&self, id: SocketId) -> bool {
        self.socket(id).map_or(true, |socket| self.readable(socket))
    }

    fn is_writable(&mut self, id: SocketId) -> bool {
        self.socket(id).map_or(true, |socket| self.writable(socket))
    }

    fn stats(&self, me: Ipv4Addr) -> InstanceStats {
        match self.hosts.get(&me) {
            Some(host) => {
                let sockets = u32::try_from(host.sockets.len()).unwrap_or(u32::MAX);
                InstanceStats { sockets, ..host.stats }
            }
            None => InstanceStats::default(),
        }
    }

    fn udp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Udp(Udp::default()))
    }

    fn udp_bind(&mut self, id: SocketId, addr: SocketAddrV4) -> Result<(), NetError> {
        self.udp(id)?;
        self.bind(id, addr)
    }

    fn udp_connect(&mut self, id: SocketId, peer: Option<SocketAddrV4>) -> Result<(), NetError> {
        self.udp(id)?.peer = peer;
        Ok(())
    }

    fn udp_send(&mut self, id: SocketId, dst: Option<SocketAddrV4>, payload: Bytes) -> Result<(), NetError> {
        self.send_datagram(id, dst, &payload)
    }

    fn udp_recv(&mut self, id: SocketId) -> Result<Option<Datagram>, NetError> {
        Ok(self.udp(id)?.pop())
    }

    fn tcp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Idle)
    }

    fn tcp_bind(&mut self, id: SocketId, addr: SocketAddrV4) -> Result<(), NetError> {
        match self.socket(id)?.kind {
            Kind::Idle => self.bind(id, addr),
            Kind::Udp(_) | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    fn tcp_listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError> {
        self.listen(id, backlog)
    }

    fn tcp_accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddrV4)>, NetError> {
        self.accept(id)
    }

    fn tcp_connect(&mut self, id: SocketId, dst: SocketAddrV4) -> Result<(), NetError> {
        self.connect(id, dst)
    }

    fn tcp_connected(&self, id: SocketId) -> Result<bool, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(_) => Ok(true),
            Kind::Connecting { .. } => Ok(false),
            Kind::Failed(error) => Err(error.clone()),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) => Err(NetError::InvalidState),
        }
    }

    fn tcp_read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError> {
        self.read(id, max)
    }

    fn tcp_room(&mut self, id: SocketId) -> Result<usize, NetError> {
        self.room(id)
    }

    fn tcp_write(&mut self, id: SocketId, bytes: Bytes) -> Result<usize, NetError> {
        self.write(id, &bytes)
    }

    fn tcp_shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError> {
        self.shutdown(id, half)
    }
}
