//! Datagrams.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::{Datagram, Kind, NetError, Out, Protocol, Route, SocketId, Switch, UDP_QUEUE_SIZE, Udp};
use crate::directory::any_like;
use crate::packet::{MAX_DATAGRAM_SIZE, Packet};

/// What a datagram takes of a queue beside its payload, so that empty ones fill it too.
const DATAGRAM_OVERHEAD: usize = 64;

impl Switch {
    /// Makes a UDP socket for the instance with lab address `me`.
    pub fn udp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Udp(Udp::default()))
    }

    /// Binds a UDP socket to an address of its instance, or to any (`0.0.0.0`); port zero takes an ephemeral one.
    pub fn udp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        self.udp(id)?;
        self.bind(id, Protocol::Udp, addr)
    }

    /// Lets a UDP socket talk with one peer only, or with everybody again.
    pub fn udp_connect(&mut self, id: SocketId, peer: Option<SocketAddr>) -> Result<(), NetError> {
        self.udp(id)?.peer = peer;
        Ok(())
    }

    /// Sends a datagram to `dst`, or to the peer that the socket is connected to; binds the socket where it is not.
    ///
    /// A datagram for which the receiver has no room, or no socket, is lost without an error. One for which there is
    /// no room on its way to another cell is refused with [`NetError::WouldBlock`].
    pub fn udp_send(&mut self, id: SocketId, dst: Option<SocketAddr>, payload: Bytes) -> Result<(), NetError> {
        let udp = self.udp(id)?;
        let dst = dst.or(udp.peer).ok_or(NetError::InvalidState)?;
        let size = payload.len();
        if size > MAX_DATAGRAM_SIZE {
            return Err(NetError::DatagramTooLong { size });
        }
        if self.socket(id)?.local.is_none() {
            self.bind(id, Protocol::Udp, SocketAddr::new(any_like(dst.ip()), 0))?;
        }
        let socket = self.socket(id)?;
        let owner = socket.owner;
        let bound = socket.local.ok_or(NetError::InvalidState)?;
        match self.route(owner, bound.ip(), dst)? {
            Route::Local { instance, dst, src } => {
                let src = SocketAddr::new(src, bound.port());
                self.deliver_datagram(instance, dst, Datagram { src, payload });
            }
            Route::Remote { dst, src } => {
                if !self.udp_room(id) {
                    return Err(NetError::WouldBlock);
                }
                self.udp(id)?.outgoing += size + DATAGRAM_OVERHEAD;
                let src = SocketAddr::new(src, bound.port());
                self.out.push_back(Out::Datagram(id, Packet::Udp { src, dst, payload }));
            }
        }
        self.count_sent(owner, size);
        Ok(())
    }

    /// Returns the next datagram that was received.
    pub fn udp_recv(&mut self, id: SocketId) -> Result<Option<Datagram>, NetError> {
        let udp = self.udp(id)?;
        let datagram = udp.queue.pop_front();
        if let Some(datagram) = &datagram {
            udp.queued -= datagram.payload.len() + DATAGRAM_OVERHEAD;
        }
        Ok(datagram)
    }

    /// Returns how many datagrams to this socket were lost because it was full.
    pub fn udp_dropped(&self, id: SocketId) -> Result<u64, NetError> {
        match &self.socket(id)?.kind {
            Kind::Udp(udp) => Ok(udp.dropped),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    /// Returns whether a datagram to another cell would be taken; where not, the socket becomes ready when it is.
    pub(super) fn udp_room(&mut self, id: SocketId) -> bool {
        let Ok(udp) = self.udp(id) else { return true };
        udp.blocked = udp.outgoing >= UDP_QUEUE_SIZE;
        !udp.blocked
    }

    /// Accounts for a datagram that left for another cell.
    pub(super) fn datagram_left(&mut self, id: SocketId, packet: &Packet) {
        let Packet::Udp { payload, .. } = packet else { return };
        let size = payload.len() + DATAGRAM_OVERHEAD;
        let Ok(udp) = self.udp(id) else { return };
        udp.outgoing = udp.outgoing.saturating_sub(size);
        if udp.blocked && udp.outgoing <= UDP_QUEUE_SIZE / 2 {
            udp.blocked = false;
            self.wake(id);
        }
    }

    /// Puts a datagram into the queue of its receiver; returns false where nobody holds the port.
    pub(super) fn deliver_datagram(&mut self, instance: Ipv4Addr, dst: SocketAddr, datagram: Datagram) -> bool {
        let Some(id) = self.holder(instance, Protocol::Udp, dst) else { return false };
        let Ok(udp) = self.udp(id) else { return false };
        if udp.peer.is_some_and(|peer| peer != datagram.src) {
            return false;
        }
        let size = datagram.payload.len();
        if udp.queued + size + DATAGRAM_OVERHEAD > UDP_QUEUE_SIZE {
            udp.dropped += 1;
            if let Some(instance) = self.instances.get_mut(&instance) {
                instance.stats.dropped_datagrams += 1;
            }
        } else {
            udp.queued += size + DATAGRAM_OVERHEAD;
            udp.queue.push_back(datagram);
            self.count_received(instance, size);
            self.wake(id);
        }
        true
    }

    fn udp(&mut self, id: SocketId) -> Result<&mut Udp, NetError> {
        match &mut self.socket_mut(id)?.kind {
            Kind::Udp(udp) => Ok(udp),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }
}
