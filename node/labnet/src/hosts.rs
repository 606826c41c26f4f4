//! The sockets of one cell's instances over a model of links: each instance has an IP stack of its own, and what it
//! sends goes through the [`Engine`].
//!
//! A [`Hosts`] is told what instances do, as a [`Switch`](crate::Switch) is, and what time it is
//! ([`advance`](crate::Sockets::advance)). `stack.rs` has what smoltcp, the TCP of each instance, is given; `tcp.rs`
//! connections, `buffers.rs` how much these hold, `udp.rs` datagrams, `parts.rs` fragments, `carry.rs` packets from and
//! to other cells, `sockets.rs` what instances may ask for. Ports, and the way of a packet, are here.

mod buffers;
mod carry;
mod parts;
mod sockets;
mod stack;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use iptl_dag::model::InstanceId;
use smoltcp::iface::SocketHandle;

use crate::compile::Compiled;
use crate::directory::{Directory, loopback_like, v4_of};
use crate::engine::{Engine, EngineConfig};
use crate::faults::{Faults, Happened, Moved};
use crate::ip::{self, Header, Transport};
use crate::ports::{PortTable, Protocol};
use crate::slots::Slots;
use crate::switch::{InstanceStats, Limits, NetError, SocketId};
use crate::topology::{Addrs, NodeId};

use carry::Leaving;
use parts::Parts;
use stack::Stack;
use udp::Udp;
pub(crate) use udp::datagram;

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
    leaving: Leaving,
    /// Whether anything is promised of delays.
    described: bool,
    slots: Slots<Socket>,
    ready: VecDeque<SocketId>,
    /// Hosts in which something has happened.
    dirty: BTreeSet<Ipv4Addr>,
    /// When hosts want to do something by themselves.
    timers: BTreeSet<(u64, Ipv4Addr)>,
    now_ns: u64,
    /// The first time that it was told.
    begun_ns: Option<u64>,
    /// How much one direction of a connection should hold.
    wanted_buffer: usize,
    seed: u64,
    /// Packets for instances of this cell that do not run any more.
    undelivered: u64,
    faults: Option<Faults>,
    /// When the instances were released.
    start_ns: Option<u64>,
    happened: VecDeque<Happened>,
    /// The addresses of who has others than at the start, by directory address.
    moved: BTreeMap<Ipv4Addr, Addrs>,
}

struct Host {
    node: NodeId,
    /// Its addresses for itself.
    addrs: Addrs,
    mtu: u16,
    alive: bool,
    stack: Stack,
    ports: PortTable,
    sockets: BTreeSet<SocketId>,
    /// Those of them that listen.
    listeners: BTreeSet<SocketId>,
    /// Connections whose socket is closed and that still have something to say.
    closing: Vec<SocketHandle>,
    parts: Parts,
    /// Number of the next packet that is sent in fragments, or could be.
    next_id: u32,
    timer: Option<u64>,
    stats: InstanceStats,
    /// How often it was taken out and added again.
    crashes: u64,
}

struct Socket {
    owner: Ipv4Addr,
    local: Option<SocketAddr>,
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
        peer: SocketAddr,
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
    peer: SocketAddr,
    /// The owner reads no more.
    rx_off: bool,
    /// The owner writes no more.
    tx_end: bool,
}

impl Hosts {
    /// Makes the hosts of a cell in which no instance is yet.
    /// All instances of the run are in other cells until they are added.
    pub fn new(directory: Arc<Directory>, compiled: Compiled, limits: Limits, config: EngineConfig) -> Hosts {
        let Compiled { topology, nodes, described, .. } = compiled;
        let wanted_buffer = buffers::wanted(&topology);
        let mut engine = Engine::new(topology, config);
        engine.serve_names(Arc::clone(&directory), &["localhost"]);
        for node in nodes.values() {
            engine.set_away(*node, true);
        }
        Hosts {
            directory,
            limits,
            wanted_buffer,
            nodes,
            engine,
            leaving: Leaving::default(),
            described,
            hosts: BTreeMap::new(),
            by_node: BTreeMap::new(),
            slots: Slots::default(),
            ready: VecDeque::new(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            now_ns: 0,
            begun_ns: None,
            seed: config.seed,
            undelivered: 0,
            faults: None,
            start_ns: None,
            happened: VecDeque::new(),
            moved: BTreeMap::new(),
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

    /// Returns how many packets were for instances of this cell that do not run any more.
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
            self.take_leaving();
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
        let Transport::Tcp { dst: port, flags, .. } = header.transport else { return false };
        if flags & (SYN | ACK) != SYN {
            return false;
        }
        let listener = self.holder(me, Protocol::Tcp, SocketAddr::new(header.dst, port));
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
        let Some(node) = self.hosts.get(&me).map(|host| host.node) else { return };
        loop {
            // One packet at a time: each opener needs a socket that waits for it.
            while let Some(host) = self.hosts.get(&me)
                && let Some(packet) = host.stack.next()
            {
                // An opener for whom there is no room is not heard, and tries again, as on Linux.
                let is_heard = !self.is_full(me, packet);
                let Some(host) = self.hosts.get_mut(&me) else { return };
                host.stack.take_in(now_ns, is_heard);
                self.top_up(me);
            }
            // Once for all that has come: each look at what could be sent visits every connection.
            let Some(host) = self.hosts.get_mut(&me) else { return };
            host.stack.put_out(now_ns);
            let has_more = self.look_after(me);
            let Some(host) = self.hosts.get_mut(&me) else { return };
            if has_more {
                host.stack.put_out(now_ns);
            }
            // What it has sent to itself has come already.
            if host.stack.next().is_none() {
                break;
            }
        }
        let Some(host) = self.hosts.get_mut(&me) else { return };
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
        let addrs = host.addrs;
        for bytes in host.stack.sent() {
            // What connections of an address that it had still have to say is not sent, as by any kernel.
            if Header::parse(&bytes).is_ok_and(|header| addrs.contains(header.src)) {
                self.send(node, bytes);
            }
        }
    }

    /// Takes note of who has other addresses now.
    fn move_host(&mut self, moved: &Moved) {
        let Some(me) = self.directory.addr(&moved.id) else { return };
        self.moved.insert(me, moved.public);
        if let Some(host) = self.hosts.get_mut(&me) {
            host.addrs = moved.now;
            host.stack.set_addrs(moved.now);
            self.dirty.insert(me);
        }
    }

    // Sockets.

    /// Returns how much one direction of a new connection holds.
    fn buffer_size(&self) -> usize {
        let held = self.hosts.values().map(|host| host.stack.held()).sum();
        buffers::size(self.wanted_buffer, held)
    }

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
            host.listeners.remove(&id);
            if let (true, Some(local)) = (socket.holds_port, socket.local) {
                host.ports.release(protocol, local.port(), id);
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
    fn bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        let socket = self.socket(id)?;
        if socket.local.is_some() {
            return Err(NetError::InvalidState);
        }
        let (me, protocol) = (socket.owner, socket.kind.protocol());
        let host = self.host_mut(me)?;
        // Who has another address than the directory says may still call itself by that.
        let ip = host.named(me, addr.ip());
        if !ip.is_unspecified() && !ip.is_loopback() && !host.addrs.contains(ip) {
            return Err(NetError::AddressNotAvailable { addr: ip });
        }
        let port = host.ports.take(protocol, SocketAddr::new(ip, addr.port()), id)?;
        let socket = self.socket_mut(id)?;
        socket.local = Some(SocketAddr::new(ip, port));
        socket.holds_port = true;
        Ok(())
    }

    /// Returns the socket that holds a port for packets to an address of the host.
    fn holder(&self, me: Ipv4Addr, protocol: Protocol, dst: SocketAddr) -> Option<SocketId> {
        self.hosts.get(&me)?.ports.holder(protocol, dst)
    }

    /// Returns from which address to which one a socket of `me` bound to `bound` sends.
    fn route(&self, me: Ipv4Addr, bound: IpAddr, dst: SocketAddr) -> Result<(IpAddr, SocketAddr), NetError> {
        if dst.port() == 0 || bound.is_ipv4() != dst.is_ipv4() {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        let host = self.host(me)?;
        // To send to "any" is to send to oneself, as on Linux; who has another address than the directory says is
        // itself by that too.
        let ip = match dst.ip() {
            ip if ip.is_unspecified() => loopback_like(ip),
            ip => host.named(me, ip),
        };
        let target = SocketAddr::new(ip, dst.port());
        if ip.is_loopback() {
            let src = if bound.is_unspecified() { ip } else { bound };
            return Ok((src, target));
        }
        if bound.is_loopback() {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        // In a network of the other family there is no way.
        let own = host.addrs.like(ip).ok_or(NetError::Unreachable { addr: ip })?;
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

    /// Returns the address that is meant where the directory's would be another one: its own of that family.
    fn named(&self, me: Ipv4Addr, ip: IpAddr) -> IpAddr {
        if v4_of(ip) == Some(me) { self.addrs.like(ip).unwrap_or(ip) } else { ip }
    }
}
