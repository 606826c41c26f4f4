//! Datagrams: made and read here, cut where they are larger than the first link takes.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::{Hosts, Kind, Protocol};
use crate::directory::{any_like, home_of};
use crate::ip::{self, Header, V4_HEAD, V6_HEAD, checksum, source_fragments};
use crate::packet::MAX_DATAGRAM_SIZE;
use crate::switch::{Datagram, NetError, SocketId, UDP_QUEUE_SIZE};

/// What a datagram takes of a queue beside its payload, so that empty ones fill it too.
const DATAGRAM_OVERHEAD: usize = 64;

/// Length of a UDP head, in bytes.
const UDP_HEAD: usize = 8;

/// Hops of a packet that an instance sends: what Linux has.
const HOP_LIMIT: u8 = 64;

#[derive(Default)]
pub(super) struct Udp {
    queue: VecDeque<Datagram>,
    /// Bytes in `queue`, each datagram with its overhead.
    queued: usize,
    /// Only peer that it talks to.
    pub(super) peer: Option<SocketAddr>,
}

impl Udp {
    pub(super) fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.queue.pop_front()?;
        self.queued -= datagram.payload.len() + DATAGRAM_OVERHEAD;
        Some(datagram)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Hosts {
    pub(super) fn udp(&mut self, id: SocketId) -> Result<&mut Udp, NetError> {
        match &mut self.socket_mut(id)?.kind {
            Kind::Udp(udp) => Ok(udp),
            Kind::Idle | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    pub(super) fn send_datagram(
        &mut self,
        id: SocketId,
        dst: Option<SocketAddr>,
        payload: &[u8],
    ) -> Result<(), NetError> {
        let dst = dst.or(self.udp(id)?.peer).ok_or(NetError::InvalidState)?;
        let size = payload.len();
        if size > MAX_DATAGRAM_SIZE {
            return Err(NetError::DatagramTooLong { size });
        }
        if self.socket(id)?.local.is_none() {
            self.bind(id, SocketAddr::new(any_like(dst.ip()), 0))?;
        }
        let socket = self.socket(id)?;
        let (me, bound) = (socket.owner, socket.local.ok_or(NetError::InvalidState)?);
        let (src, dst) = self.route(me, bound.ip(), dst)?;
        let src = SocketAddr::new(src, bound.port());
        let host = self.host_mut(me)?;
        host.stats.sent_bytes += size as u64;
        if dst.ip().is_loopback() || host.addrs.contains(dst.ip()) {
            self.deliver(me, dst, Datagram { src, payload: Bytes::copy_from_slice(payload) });
            return Ok(());
        }
        let (node, mtu, number) = (host.node, usize::from(host.mtu), host.next_id);
        host.next_id = host.next_id.wrapping_add(1);
        let bytes = datagram(src, dst, number, payload);
        if bytes.len() <= mtu {
            self.send(node, bytes);
            return Ok(());
        }
        let header = Header::parse(&bytes).expect("it was made here");
        for part in source_fragments(&bytes, &header, mtu, number).unwrap_or_default() {
            self.send(node, part);
        }
        Ok(())
    }

    /// Takes a datagram with its head; one whose checksum is wrong is lost, as in any kernel.
    pub(super) fn take_datagram(&mut self, me: Ipv4Addr, header: &Header, bytes: &[u8]) {
        let Some(head) = bytes.first_chunk::<UDP_HEAD>() else { return };
        let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let len = usize::from(number(4));
        let Some(whole) = bytes.get(..len).filter(|_| len >= UDP_HEAD) else { return };
        // Over IPv6 there is no datagram without one.
        if number(6) != 0 || header.src.is_ipv6() {
            let pseudo = checksum::pseudo(header.src, header.dst, ip::UDP, len);
            if checksum::fold(checksum::sum(pseudo, whole)) != 0xffff {
                return;
            }
        }
        let datagram = Datagram {
            src: SocketAddr::new(header.src, number(0)),
            payload: Bytes::copy_from_slice(&whole[UDP_HEAD..]),
        };
        self.deliver(me, SocketAddr::new(header.dst, number(2)), datagram);
    }

    /// Puts a datagram into the queue of its receiver, where there is one with room.
    fn deliver(&mut self, me: Ipv4Addr, dst: SocketAddr, datagram: Datagram) {
        let Some(id) = self.holder(me, Protocol::Udp, dst) else { return };
        let size = datagram.payload.len();
        let Ok(udp) = self.udp(id) else { return };
        if udp.peer.is_some_and(|peer| peer != datagram.src) {
            return;
        }
        let fits = udp.queued + size + DATAGRAM_OVERHEAD <= UDP_QUEUE_SIZE;
        if fits {
            udp.queued += size + DATAGRAM_OVERHEAD;
            udp.queue.push_back(datagram);
            self.wake(id);
        }
        if let Some(host) = self.hosts.get_mut(&me) {
            if fits {
                host.stats.received_bytes += size as u64;
            } else {
                host.stats.dropped_datagrams += 1;
            }
        }
    }
}

/// Makes the packet of a datagram.
///
/// Both ends have one family.
pub(crate) fn datagram(src: SocketAddr, dst: SocketAddr, number: u32, payload: &[u8]) -> Vec<u8> {
    let len = UDP_HEAD + payload.len();
    let of = |len: usize| u16::try_from(len).expect("datagrams are bounded").to_be_bytes();
    let mut bytes = Vec::with_capacity(V6_HEAD + len);
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (src.ip(), dst.ip()) {
        bytes.extend_from_slice(&[0x60, 0, 0, 0]);
        bytes.extend_from_slice(&of(len));
        bytes.extend_from_slice(&[ip::UDP, HOP_LIMIT]);
        bytes.extend_from_slice(&src.octets());
        bytes.extend_from_slice(&dst.octets());
    } else {
        let [.., high, low] = number.to_be_bytes();
        bytes.extend_from_slice(&[0x45, 0]);
        bytes.extend_from_slice(&of(V4_HEAD + len));
        bytes.extend_from_slice(&[high, low, 0, 0, HOP_LIMIT, ip::UDP, 0, 0]);
        for end in [src, dst] {
            bytes.extend_from_slice(&home_of(end.ip()).octets());
        }
        let sum = checksum::of(0, &bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let head = bytes.len();
    bytes.extend_from_slice(&src.port().to_be_bytes());
    bytes.extend_from_slice(&dst.port().to_be_bytes());
    bytes.extend_from_slice(&of(len));
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    let pseudo = checksum::pseudo(src.ip(), dst.ip(), ip::UDP, len);
    // Zero would mean that there is no checksum.
    let sum = match checksum::of(pseudo, &bytes[head..]) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[head + 6..head + 8].copy_from_slice(&sum.to_be_bytes());
    bytes
}
