//! The sockets of one cell's instances.
//!
//! A [`Switch`] is told what instances do (`udp_…`, `tcp_…`, [`close`](Switch::close)) and what other cells send
//! ([`handle_packet`](Switch::handle_packet)). After each such call its owner asks for consequences:
//! [`poll_ready`](Switch::poll_ready) names sockets on which something has become possible, and
//! [`poll_packet`](Switch::poll_packet) gives what goes to other cells. Bytes between two instances of the cell move
//! from socket to socket in the call that writes them.
//!
//! `tcp.rs` has connections, `udp.rs` datagrams, `socket.rs` what is kept of a socket, `buffer.rs` its bytes; routes,
//! instances and packets from outside are here.

mod buffer;
mod socket;
mod tcp;
mod udp;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use iptl_dag::model::InstanceId;

pub use socket::Datagram;
pub use tcp::{Half, Read};

use crate::directory::{Directory, home_of, loopback_like, v4_of, v6_of};
use crate::packet::Packet;
use crate::ports::{PortTable, Protocol};
use crate::slots::Slots;
use socket::{Kind, Peer, Socket, Udp};

/// Bytes that one end of a connection may have sent without the other having read them: what a default Linux socket
/// grows to within a data centre, and four of the largest pieces.
pub const WINDOW_SIZE: usize = 256 << 10;

/// Bytes of datagrams that a socket holds for its owner, and as many on their way to other cells; the default of a
/// Linux socket with its overhead.
pub const UDP_QUEUE_SIZE: usize = 256 << 10;

/// Name of a socket within its switch; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// What an instance may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets of one instance, connections that it has not accepted aside.
    pub sockets_per_instance: u32,
    /// Longest backlog of a listening socket; longer ones are cut to it.
    pub backlog: u32,
}

impl Default for Limits {
    /// As many sockets as a Linux process gets hard by default, and Linux' `somaxconn`.
    fn default() -> Limits {
        Limits { sockets_per_instance: 4096, backlog: 4096 }
    }
}

/// Why an operation on a socket failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Another socket of the instance holds the port.
    #[error("port {port} is in use")]
    AddressInUse {
        /// The port.
        port: u16,
    },
    /// The address is not the instance's own.
    #[error("{addr} is not an address of this instance")]
    AddressNotAvailable {
        /// The address.
        addr: IpAddr,
    },
    /// The address cannot be sent to: port zero, from loopback to elsewhere, or from one family to the other.
    #[error("{addr} cannot be a destination here")]
    InvalidDestination {
        /// The address.
        addr: SocketAddr,
    },
    /// All ephemeral ports are in use.
    #[error("no ephemeral port is free")]
    NoPorts,
    /// Nobody listens there.
    #[error("connection refused")]
    ConnectionRefused,
    /// The peer, or the lab because the peer is gone, ended the connection.
    #[error("connection reset")]
    ConnectionReset,
    /// No instance of the run has the address, or its lablet is lost.
    #[error("{addr} is unreachable")]
    Unreachable {
        /// The address.
        addr: IpAddr,
    },
    /// The instance has shut this direction down.
    #[error("the socket is shut down for writing")]
    Shutdown,
    /// The socket is in another state, or of another kind, than the operation needs.
    #[error("the socket is not in the state for this")]
    InvalidState,
    /// The other end has said nothing for too long.
    #[error("connection timed out")]
    TimedOut,
    /// There is no room now; the socket becomes ready when there is.
    #[error("no room now")]
    WouldBlock,
    /// Longer than a datagram can be.
    #[error("datagram of {size} bytes is longer than {}", crate::MAX_DATAGRAM_SIZE)]
    DatagramTooLong {
        /// Its length in bytes.
        size: usize,
    },
    /// The instance has as many sockets as it may.
    #[error("the instance has {limit} sockets and may not have more")]
    TooManySockets {
        /// The limit.
        limit: u32,
    },
    /// The instance is not, or no longer, in this cell.
    #[error("no instance with address {addr} runs here")]
    NoInstance {
        /// Its address.
        addr: Ipv4Addr,
    },
    /// The socket was closed.
    #[error("no such socket")]
    NoSocket,
}

/// What an instance sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceStats {
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Datagrams to it for which there was no room.
    pub dropped_datagrams: u64,
    /// Sockets that it has open.
    pub sockets: u32,
}

/// Packets from other cells that were not taken, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// For an address that is not in this cell.
    pub misrouted: u64,
    /// From an address that no other cell can have.
    pub spoofed: u64,
    /// Of a connection that does not exist, or no longer.
    pub unknown: u64,
    /// Against the rules of their connection; each has ended its connection or was without effect.
    pub violations: u64,
    /// Datagrams for a port that nobody holds.
    pub unbound: u64,
}

/// The sockets of one cell's instances.
#[derive(Debug)]
pub struct Switch {
    directory: Arc<Directory>,
    limits: Limits,
    /// Every instance that was ever in this cell, by lab address.
    instances: BTreeMap<Ipv4Addr, Instance>,
    slots: Slots<Socket>,
    /// Connections with other cells, open or opening, by (local, remote) address.
    connections: BTreeMap<(SocketAddr, SocketAddr), SocketId>,
    /// Instances whose lablet is lost.
    lost: BTreeSet<Ipv4Addr>,
    ready: VecDeque<SocketId>,
    out: VecDeque<Out>,
    next_serial: u32,
    dropped: Dropped,
}

#[derive(Debug)]
struct Instance {
    alive: bool,
    ports: PortTable,
    sockets: BTreeSet<SocketId>,
    stats: InstanceStats,
}

#[derive(Debug)]
enum Out {
    Packet(Packet),
    /// A datagram of this socket.
    Datagram(SocketId, Packet),
    /// The stream has bytes or its end to send.
    Stream(SocketId),
}

/// Where an address leads from an instance.
enum Route {
    /// To an instance of this cell; with the address from which it is reached.
    Local { instance: Ipv4Addr, dst: SocketAddr, src: IpAddr },
    /// To another cell.
    Remote { dst: SocketAddr, src: IpAddr },
}

impl Switch {
    /// Makes the switch of a cell in which no instance is yet.
    pub fn new(directory: Arc<Directory>, limits: Limits) -> Switch {
        Switch {
            directory,
            limits,
            instances: BTreeMap::new(),
            slots: Slots::default(),
            connections: BTreeMap::new(),
            lost: BTreeSet::new(),
            ready: VecDeque::new(),
            out: VecDeque::new(),
            next_serial: 1,
            dropped: Dropped::default(),
        }
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Adds an instance to the cell and returns its address; none where the directory does not know it.
    pub fn add_instance(&mut self, id: &InstanceId) -> Option<Ipv4Addr> {
        let addr = self.directory.addr(id)?;
        let instance = self.instances.entry(addr).or_insert_with(|| Instance {
            alive: true,
            ports: PortTable::default(),
            sockets: BTreeSet::new(),
            stats: InstanceStats::default(),
        });
        instance.alive = true;
        self.lost.remove(&addr);
        Some(addr)
    }

    /// Takes an instance that ended out of the cell: its connections are reset, its sockets are gone.
    pub fn remove_instance(&mut self, addr: Ipv4Addr) {
        let Some(instance) = self.instances.get_mut(&addr) else { return };
        instance.alive = false;
        let sockets: Vec<SocketId> = instance.sockets.iter().copied().collect();
        for id in sockets {
            self.abort(id);
        }
    }

    /// Resets all connections with these instances of other cells, whose lablet is gone, and refuses new ones.
    pub fn lost_peer(&mut self, addrs: impl IntoIterator<Item = Ipv4Addr>) {
        let lost: BTreeSet<Ipv4Addr> = addrs.into_iter().filter(|addr| !self.instances.contains_key(addr)).collect();
        let ended: Vec<SocketId> = self
            .connections
            .iter()
            .filter(|((_, remote), _)| lost.contains(&home_of(remote.ip())))
            .map(|(_, id)| *id)
            .collect();
        for id in ended {
            self.break_remote(id);
        }
        self.lost.extend(lost);
    }

    /// Lets instances be reached again that were lost, because another lablet has taken them over.
    pub fn found_peer(&mut self, addrs: impl IntoIterator<Item = Ipv4Addr>) {
        for addr in addrs {
            self.lost.remove(&addr);
        }
    }

    /// Returns a socket on which something has become possible: bytes, a connection, an answer, room, an end.
    ///
    /// Each is named once until it has been asked for here again; look at all that interests you.
    pub fn poll_ready(&mut self) -> Option<SocketId> {
        while let Some(id) = self.ready.pop_front() {
            if let Ok(socket) = self.socket_mut(id) {
                socket.announced = false;
                return Some(id);
            }
        }
        None
    }

    /// Returns the next packet for an instance of another cell.
    pub fn poll_packet(&mut self) -> Option<(Ipv4Addr, Packet)> {
        loop {
            let packet = match self.out.pop_front()? {
                Out::Packet(packet) => Some(packet),
                Out::Datagram(id, packet) => {
                    self.datagram_left(id, &packet);
                    Some(packet)
                }
                Out::Stream(id) => self.next_of_stream(id),
            };
            if let Some(packet) = packet {
                return Some((home_of(packet.dst().ip()), packet));
            }
        }
    }

    /// Takes a packet that another cell has sent.
    ///
    /// The caller has checked that the packet's source is an instance of the lablet that sent it; all else about it
    /// is checked here, and what is wrong is counted in [`dropped`](Switch::dropped).
    pub fn handle_packet(&mut self, packet: Packet) {
        let (src, dst) = (packet.src(), packet.dst());
        let (from, to) = (home_of(src.ip()), home_of(dst.ip()));
        if !self.instances.contains_key(&to) {
            self.dropped.misrouted += 1;
            return;
        }
        let foreign = self.directory.contains(from) && !self.instances.contains_key(&from);
        if !foreign || src.port() == 0 || self.lost.contains(&from) {
            self.dropped.spoofed += 1;
            return;
        }
        match packet {
            Packet::Udp { src, dst, payload } => {
                if !self.deliver_datagram(to, dst, Datagram { src, payload }) {
                    self.dropped.unbound += 1;
                }
            }
            Packet::TcpOpen { flow } => self.on_open(flow),
            Packet::TcpAccept { flow } => self.on_accept(flow),
            Packet::TcpRefuse { flow } => self.on_refuse(flow),
            Packet::TcpData { flow, payload } => self.on_data(flow, payload),
            Packet::TcpWindow { flow, credit } => self.on_window(flow, credit),
            Packet::TcpFin { flow } => self.on_fin(flow),
            Packet::TcpReset { flow } => self.on_reset(flow),
        }
    }

    /// Closes a socket; it no longer exists. What was written to a connection still arrives, then its end; what the
    /// peer writes afterwards is answered with a reset.
    pub fn close(&mut self, id: SocketId) {
        self.retire(id, true);
    }

    /// Closes a socket and resets its connection: what was written and has not been taken may be lost.
    pub fn abort(&mut self, id: SocketId) {
        self.retire(id, false);
    }

    /// Returns the address that a socket is bound to.
    pub fn local_addr(&self, id: SocketId) -> Result<Option<SocketAddr>, NetError> {
        Ok(self.socket(id)?.local)
    }

    /// Returns the address of the other end.
    pub fn peer_addr(&self, id: SocketId) -> Result<SocketAddr, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(stream) => Ok(stream.flow.dst),
            Kind::Udp(udp) => udp.peer.ok_or(NetError::InvalidState),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) => Err(NetError::InvalidState),
        }
    }

    /// Returns whether reading, receiving, accepting or asking for the outcome of connecting would not wait.
    pub fn is_readable(&self, id: SocketId) -> bool {
        match self.socket(id).map(|socket| &socket.kind) {
            Ok(Kind::Udp(udp)) => !udp.queue.is_empty(),
            Ok(Kind::Listening(listener)) => !listener.ready.is_empty(),
            Ok(Kind::Stream(stream)) => stream.readable(),
            Ok(Kind::Connecting(_) | Kind::Idle) => false,
            Ok(Kind::Failed(_)) | Err(_) => true,
        }
    }

    /// Returns whether writing, sending or asking for the outcome of connecting would not wait. Where it would, the
    /// socket becomes ready when it no longer does.
    pub fn is_writable(&mut self, id: SocketId) -> bool {
        match self.socket(id).map(|socket| &socket.kind) {
            Ok(Kind::Udp(_)) => self.udp_room(id),
            Ok(Kind::Stream(_)) => !matches!(self.tcp_room(id), Ok(0)),
            Ok(Kind::Connecting(_) | Kind::Idle | Kind::Listening(_)) => false,
            Ok(Kind::Failed(_)) | Err(_) => true,
        }
    }

    /// Returns what an instance sent and received, also after it ended.
    pub fn stats(&self, addr: Ipv4Addr) -> InstanceStats {
        match self.instances.get(&addr) {
            Some(instance) => {
                let sockets = u32::try_from(instance.sockets.len()).unwrap_or(u32::MAX);
                InstanceStats { sockets, ..instance.stats }
            }
            None => InstanceStats::default(),
        }
    }

    /// Returns how many packets from other cells were not taken, and why.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Returns the number of sockets, those included that wait to be accepted.
    pub fn sockets(&self) -> usize {
        self.slots.len()
    }

    // Sockets.

    fn socket(&self, id: SocketId) -> Result<&Socket, NetError> {
        self.slots.get(id).ok_or(NetError::NoSocket)
    }

    fn socket_mut(&mut self, id: SocketId) -> Result<&mut Socket, NetError> {
        self.slots.get_mut(id).ok_or(NetError::NoSocket)
    }

    /// Makes a socket for an instance that asks for one.
    fn open(&mut self, owner: Ipv4Addr, kind: Kind) -> Result<SocketId, NetError> {
        self.check_room(owner)?;
        let id = self.slots.insert(Socket { owner, local: None, holds_port: false, announced: false, kind });
        self.own(owner, id);
        Ok(id)
    }

    fn check_room(&self, owner: Ipv4Addr) -> Result<(), NetError> {
        let instance = self.instances.get(&owner).filter(|i| i.alive).ok_or(NetError::NoInstance { addr: owner })?;
        let limit = self.limits.sockets_per_instance;
        if instance.sockets.len() >= limit as usize { Err(NetError::TooManySockets { limit }) } else { Ok(()) }
    }

    fn own(&mut self, owner: Ipv4Addr, id: SocketId) {
        if let Some(instance) = self.instances.get_mut(&owner) {
            instance.sockets.insert(id);
        }
    }

    /// Takes a socket out of all tables.
    fn remove(&mut self, id: SocketId) -> Option<Socket> {
        let socket = self.slots.remove(id)?;
        let protocol = match socket.kind {
            Kind::Udp(_) => Protocol::Udp,
            Kind::Idle | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) | Kind::Stream(_) => Protocol::Tcp,
        };
        if let Some(instance) = self.instances.get_mut(&socket.owner) {
            instance.sockets.remove(&id);
            if let (true, Some(local)) = (socket.holds_port, socket.local) {
                instance.ports.release(protocol, local.port(), id);
            }
        }
        Some(socket)
    }

    fn retire(&mut self, id: SocketId, gently: bool) {
        let Some(socket) = self.remove(id) else { return };
        match socket.kind {
            Kind::Udp(_) | Kind::Idle | Kind::Failed(_) => {}
            Kind::Listening(listener) => self.end_listener(listener),
            Kind::Connecting(connecting) => self.end_connecting(connecting),
            Kind::Stream(stream) => self.end_stream(*stream, gently),
        }
    }

    fn wake(&mut self, id: SocketId) {
        if let Ok(socket) = self.socket_mut(id)
            && !socket.announced
        {
            socket.announced = true;
            self.ready.push_back(id);
        }
    }

    // Ports and routes.

    /// Binds a socket; port zero takes an ephemeral one.
    fn bind(&mut self, id: SocketId, protocol: Protocol, addr: SocketAddr) -> Result<(), NetError> {
        let socket = self.socket(id)?;
        if socket.local.is_some() {
            return Err(NetError::InvalidState);
        }
        let owner = socket.owner;
        let ip = addr.ip();
        if !ip.is_unspecified() && !ip.is_loopback() && v4_of(ip) != Some(owner) {
            return Err(NetError::AddressNotAvailable { addr: ip });
        }
        let instance = self.instances.get_mut(&owner).ok_or(NetError::NoInstance { addr: owner })?;
        let port = instance.ports.take(protocol, addr, id)?;
        let socket = self.socket_mut(id)?;
        socket.local = Some(SocketAddr::new(ip, port));
        socket.holds_port = true;
        Ok(())
    }

    /// Returns the socket that holds a port of an instance for packets to `dst`.
    fn holder(&self, instance: Ipv4Addr, protocol: Protocol, dst: SocketAddr) -> Option<SocketId> {
        let instance = self.instances.get(&instance).filter(|instance| instance.alive)?;
        instance.ports.holder(protocol, dst)
    }

    /// Finds where `dst` is, seen from a socket of `owner` bound to `bound`.
    fn route(&self, owner: Ipv4Addr, bound: IpAddr, dst: SocketAddr) -> Result<Route, NetError> {
        if dst.port() == 0 || bound.is_ipv4() != dst.is_ipv4() {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        // To send to "any" is to send to oneself, as on Linux.
        let ip = if dst.ip().is_unspecified() { loopback_like(dst.ip()) } else { dst.ip() };
        let target = SocketAddr::new(ip, dst.port());
        if ip.is_loopback() {
            let src = if bound.is_unspecified() { ip } else { bound };
            return Ok(Route::Local { instance: owner, dst: target, src });
        }
        if bound.is_loopback() {
            return Err(NetError::InvalidDestination { addr: dst });
        }
        let known = v4_of(ip).filter(|home| self.directory.contains(*home) && !self.lost.contains(home));
        let instance = known.ok_or(NetError::Unreachable { addr: ip })?;
        let src = if ip.is_ipv4() { IpAddr::V4(owner) } else { IpAddr::V6(v6_of(owner)) };
        if self.instances.contains_key(&instance) {
            Ok(Route::Local { instance, dst: target, src })
        } else {
            Ok(Route::Remote { dst: target, src })
        }
    }

    fn count_sent(&mut self, owner: Ipv4Addr, bytes: usize) {
        if let Some(instance) = self.instances.get_mut(&owner) {
            instance.stats.sent_bytes += bytes as u64;
        }
    }

    fn count_received(&mut self, owner: Ipv4Addr, bytes: usize) {
        if let Some(instance) = self.instances.get_mut(&owner) {
            instance.stats.received_bytes += bytes as u64;
        }
    }
}
