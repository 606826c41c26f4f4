//! What instances can do with sockets, whatever lies between them.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use iptl_dag::model::{InstanceId, NetworkUse};

use crate::capture::Captured;
use crate::directory::v6_of;
use crate::faults::Happened;
use crate::packet::Packet;
use crate::switch::{Datagram, Half, InstanceStats, NetError, Read, SocketId, Switch};
use crate::topology::Addrs;
use crate::wish::{Wish, WishError};

/// The sockets of one cell's instances: of a [`Switch`], where links are clean, or of [`Hosts`](crate::Hosts), where a
/// model of links lies between them.
///
/// Instances are called by their address of the [`Directory`](crate::Directory), also where they have another one.
pub trait Sockets: Send {
    /// Takes note of the time, in nanoseconds, and does what is due. Cells that send each other packets go by one clock,
    /// or have somebody between them who knows how theirs differ.
    fn advance(&mut self, now_ns: u64);

    /// Returns when [`advance`](Sockets::advance) has something to do by itself.
    fn poll_timeout(&self) -> Option<u64>;

    /// Begins to count the time of faults.
    fn start(&mut self) {}

    /// Returns the next fault that has happened.
    fn poll_fault(&mut self) -> Option<Happened> {
        None
    }

    /// Captures what an instance sends and gets from now on, as [`Engine::capture`](crate::Engine::capture) does; false
    /// where there are no packets.
    fn capture(&mut self, _id: &InstanceId, _limit: u64, _ahead_ns: u64) -> bool {
        false
    }

    /// Returns the next piece of what was captured, with whose it is.
    fn poll_captured(&mut self) -> Option<(InstanceId, Captured)> {
        None
    }

    /// Puts in force what an instance asks of its own network, as [`Engine::shape`](crate::Engine::shape) does.
    ///
    /// # Errors
    ///
    /// Fails where links are clean, which have no packets, and where there is no such instance.
    fn shape(&mut self, _me: Ipv4Addr, _wish: &Wish) -> Result<(), WishError> {
        Err(WishError::Clean)
    }

    /// Returns what the model of links did to the packets of an instance so far; none where links are clean.
    fn network_use(&self, _me: Ipv4Addr) -> Option<NetworkUse> {
        None
    }

    /// Adds an instance to the cell and returns its directory address; none where nobody knows it.
    fn add_instance(&mut self, id: &InstanceId) -> Option<Ipv4Addr>;

    /// Returns the addresses that an instance has for itself; none where it was never in this cell.
    fn own_addrs(&self, me: Ipv4Addr) -> Addrs;

    /// Returns the addresses behind the name of an instance, of the families that it has; none where nobody has the name.
    fn resolve(&self, name: &str) -> Option<Addrs>;

    /// Takes an instance that ended out of the cell: its connections are reset, its sockets are gone.
    fn remove_instance(&mut self, me: Ipv4Addr);

    /// Resets all connections with these instances of other cells, between which packets were lost.
    fn cut(&mut self, addrs: &[Ipv4Addr]);

    /// Takes an encoded packet that another cell has sent; false where it is none of this kind of network.
    fn handle_packet(&mut self, bytes: Bytes) -> bool;

    /// Returns the next packet for another cell, encoded, with the address of an instance there.
    fn poll_packet(&mut self) -> Option<(Ipv4Addr, Vec<u8>)>;

    /// Returns a socket on which something has become possible.
    fn poll_ready(&mut self) -> Option<SocketId>;

    /// Closes a socket; what was written to a connection still arrives.
    fn close(&mut self, id: SocketId);

    /// Returns the address that a socket is bound to.
    fn local_addr(&self, id: SocketId) -> Result<Option<SocketAddr>, NetError>;

    /// Returns the address of the other end.
    fn peer_addr(&self, id: SocketId) -> Result<SocketAddr, NetError>;

    /// Returns whether reading, receiving, accepting or asking for the outcome of connecting would not wait.
    fn is_readable(&self, id: SocketId) -> bool;

    /// Returns whether writing, sending or asking for the outcome of connecting would not wait.
    fn is_writable(&mut self, id: SocketId) -> bool;

    /// Returns what an instance sent and received, also after it ended.
    fn stats(&self, me: Ipv4Addr) -> InstanceStats;

    /// Makes a UDP socket.
    fn udp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError>;

    /// Binds a UDP socket; port zero takes an ephemeral one.
    fn udp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError>;

    /// Lets a UDP socket talk with one peer only, or with everybody again.
    fn udp_connect(&mut self, id: SocketId, peer: Option<SocketAddr>) -> Result<(), NetError>;

    /// Sends a datagram; binds the socket where it is not.
    fn udp_send(&mut self, id: SocketId, dst: Option<SocketAddr>, payload: Bytes) -> Result<(), NetError>;

    /// Returns the next datagram that was received.
    fn udp_recv(&mut self, id: SocketId) -> Result<Option<Datagram>, NetError>;

    /// Makes a TCP socket.
    fn tcp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError>;

    /// Binds a TCP socket; port zero takes an ephemeral one.
    fn tcp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError>;

    /// Listens on a bound socket.
    fn tcp_listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError>;

    /// Takes the next connection of a listening socket; none where there is none yet.
    fn tcp_accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddr)>, NetError>;

    /// Begins to connect; binds the socket where it is not.
    fn tcp_connect(&mut self, id: SocketId, dst: SocketAddr) -> Result<(), NetError>;

    /// Returns whether a socket that connects is connected; an error where it never will be.
    fn tcp_connected(&self, id: SocketId) -> Result<bool, NetError>;

    /// Reads at most `max` bytes.
    fn tcp_read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError>;

    /// Returns how many bytes can be written now; where none can, the socket becomes ready when some can.
    fn tcp_room(&mut self, id: SocketId) -> Result<usize, NetError>;

    /// Writes as much as there is room for and returns how much that was.
    fn tcp_write(&mut self, id: SocketId, bytes: Bytes) -> Result<usize, NetError>;

    /// Ends one direction of a connection, or both, and keeps the socket.
    fn tcp_shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError>;
}

impl Sockets for Switch {
    fn advance(&mut self, _: u64) {}

    fn poll_timeout(&self) -> Option<u64> {
        None
    }

    fn add_instance(&mut self, id: &InstanceId) -> Option<Ipv4Addr> {
        Switch::add_instance(self, id)
    }

    fn own_addrs(&self, me: Ipv4Addr) -> Addrs {
        Addrs { v4: Some(me), v6: Some(v6_of(me)) }
    }

    fn resolve(&self, name: &str) -> Option<Addrs> {
        self.directory().resolve(name).map(|me| self.own_addrs(me))
    }

    fn remove_instance(&mut self, me: Ipv4Addr) {
        Switch::remove_instance(self, me);
    }

    fn cut(&mut self, addrs: &[Ipv4Addr]) {
        self.lost_peer(addrs.iter().copied());
        self.found_peer(addrs.iter().copied());
    }

    fn handle_packet(&mut self, bytes: Bytes) -> bool {
        Packet::decode(&bytes).map(|packet| Switch::handle_packet(self, packet)).is_ok()
    }

    fn poll_packet(&mut self) -> Option<(Ipv4Addr, Vec<u8>)> {
        Switch::poll_packet(self).map(|(dst, packet)| (dst, packet.encode()))
    }

    fn poll_ready(&mut self) -> Option<SocketId> {
        Switch::poll_ready(self)
    }

    fn close(&mut self, id: SocketId) {
        Switch::close(self, id);
    }

    fn local_addr(&self, id: SocketId) -> Result<Option<SocketAddr>, NetError> {
        Switch::local_addr(self, id)
    }

    fn peer_addr(&self, id: SocketId) -> Result<SocketAddr, NetError> {
        Switch::peer_addr(self, id)
    }

    fn is_readable(&self, id: SocketId) -> bool {
        Switch::is_readable(self, id)
    }

    fn is_writable(&mut self, id: SocketId) -> bool {
        Switch::is_writable(self, id)
    }

    fn stats(&self, me: Ipv4Addr) -> InstanceStats {
        Switch::stats(self, me)
    }

    fn udp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        Switch::udp_socket(self, me)
    }

    fn udp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        Switch::udp_bind(self, id, addr)
    }

    fn udp_connect(&mut self, id: SocketId, peer: Option<SocketAddr>) -> Result<(), NetError> {
        Switch::udp_connect(self, id, peer)
    }

    fn udp_send(&mut self, id: SocketId, dst: Option<SocketAddr>, payload: Bytes) -> Result<(), NetError> {
        Switch::udp_send(self, id, dst, payload)
    }

    fn udp_recv(&mut self, id: SocketId) -> Result<Option<Datagram>, NetError> {
        Switch::udp_recv(self, id)
    }

    fn tcp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        Switch::tcp_socket(self, me)
    }

    fn tcp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        Switch::tcp_bind(self, id, addr)
    }

    fn tcp_listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError> {
        Switch::tcp_listen(self, id, backlog)
    }

    fn tcp_accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddr)>, NetError> {
        Switch::tcp_accept(self, id)
    }

    fn tcp_connect(&mut self, id: SocketId, dst: SocketAddr) -> Result<(), NetError> {
        Switch::tcp_connect(self, id, dst)
    }

    fn tcp_connected(&self, id: SocketId) -> Result<bool, NetError> {
        Switch::tcp_connected(self, id)
    }

    fn tcp_read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError> {
        Switch::tcp_read(self, id, max)
    }

    fn tcp_room(&mut self, id: SocketId) -> Result<usize, NetError> {
        Switch::tcp_room(self, id)
    }

    fn tcp_write(&mut self, id: SocketId, bytes: Bytes) -> Result<usize, NetError> {
        Switch::tcp_write(self, id, bytes)
    }

    fn tcp_shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError> {
        Switch::tcp_shutdown(self, id, half)
    }
}
