//! The IP stack of one instance: what smoltcp is given, and what it gives.
//!
//! smoltcp carries TCP alone. Datagrams are made and read by `udp.rs`, since their sockets have a queue in bytes and
//! packets that come in fragments. Packets to the instance itself turn round here.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, CongestionControl};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::topology::Addrs;

/// A connection whose other end says nothing for so long is over: what Linux' fifteen retransmissions (`tcp_retries2`)
/// come to at least, less the tail that no test waits for.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The same in nanoseconds.
pub(super) const TIMEOUT_NS: u64 = TIMEOUT.total_micros() * 1_000;

/// Most packets that wait for one instance within one step: more come only from itself.
const MAX_WAITING: usize = 65_536;

pub(super) struct Stack {
    iface: Interface,
    sockets: SocketSet<'static>,
    link: Queues,
    addrs: Addrs,
    /// Bytes of the buffers of its connections.
    held: usize,
}

/// Packets at the edge of the stack.
struct Queues {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push(bytes);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let bytes = self.rx.pop_front()?;
        Some((Received(bytes), Sent(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// Returns where a packet goes that smoltcp has made.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..20)?.first_chunk::<4>().map(|addr| Ipv4Addr::from(*addr).into()),
        _ => packet.get(24..40)?.first_chunk::<16>().map(|addr| Ipv6Addr::from(*addr).into()),
    }
}

/// Returns a time as smoltcp has it.
fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1_000).unwrap_or(i64::MAX))
}

impl Stack {
    pub(super) fn new(addrs: Addrs, mtu: u16, seed: u64, now_ns: u64) -> Stack {
        let mut link = Queues { rx: VecDeque::new(), tx: Vec::new(), mtu: usize::from(mtu) };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let iface = Interface::new(config, &mut link, instant(now_ns));
        let mut stack = Stack { iface, sockets: SocketSet::new(Vec::new()), link, addrs, held: 0 };
        stack.set_addrs(addrs);
        stack
    }

    /// Gives it these addresses, and no others. Connections of other ones stay, and reach nobody.
    pub(super) fn set_addrs(&mut self, addrs: Addrs) {
        self.addrs = addrs;
        self.iface.update_ip_addrs(|list| {
            list.clear();
            // There is room for four.
            for addr in addrs.iter() {
                let _full = list.push(IpCidr::new(addr.into(), if addr.is_ipv4() { 32 } else { 128 }));
            }
            let _full = list.push(IpCidr::new(IpAddress::Ipv4(Ipv4Addr::LOCALHOST), 8));
            let _full = list.push(IpCidr::new(IpAddress::Ipv6(Ipv6Addr::LOCALHOST), 128));
        });
        // Whatever is not the instance itself lies behind its link, which needs no address of a router.
        if let Some(addr) = addrs.v4 {
            let _full = self.iface.routes_mut().add_default_ipv4_route(addr);
        }
        if let Some(addr) = addrs.v6 {
            let _full = self.iface.routes_mut().add_default_ipv6_route(addr);
        }
    }

    /// Makes a socket for a connection.
    pub(super) fn socket(&mut self, buffer_size: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer_size]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_timeout(Some(TIMEOUT));
        // Wasm guests cannot ask for it, and p2p software always does.
        socket.set_nagle_enabled(false);
        self.held += 2 * buffer_size;
        self.sockets.add(socket)
    }

    /// Takes a connection out, whatever it was about to say.
    pub(super) fn remove(&mut self, handle: SocketHandle) {
        let socket: &tcp::Socket<'static> = self.sockets.get(handle);
        self.held -= socket.recv_capacity() + socket.send_capacity();
        self.sockets.remove(handle);
    }

    /// Returns how many bytes the buffers of its connections have.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn tcp_ref(&self, handle: SocketHandle) -> &tcp::Socket<'static> {
        self.sockets.get(handle)
    }

    /// Begins to connect; false where smoltcp refuses, which it does for ends that are none.
    pub(super) fn connect(&mut self, handle: SocketHandle, src: SocketAddr, dst: SocketAddr) -> bool {
        let socket: &mut tcp::Socket<'static> = self.sockets.get_mut(handle);
        let end = |end: SocketAddr| (IpAddress::from(end.ip()), end.port());
        socket.connect(self.iface.context(), end(dst), end(src)).is_ok()
    }

    /// Takes a packet for the instance.
    pub(super) fn receive(&mut self, bytes: Vec<u8>) {
        if self.link.rx.len() < MAX_WAITING {
            self.link.rx.push_back(bytes);
        }
    }

    /// Returns the next packet that was received.
    pub(super) fn next(&self) -> Option<&[u8]> {
        self.link.rx.front().map(Vec::as_slice)
    }

    /// Takes the next packet that was received, and listens to it or not.
    pub(super) fn take_in(&mut self, now_ns: u64, is_heard: bool) {
        if is_heard {
            // Whether a socket has changed is found out once for all packets.
            let _: PollIngressSingleResult =
                self.iface.poll_ingress_single(instant(now_ns), &mut self.link, &mut self.sockets);
        } else {
            self.link.rx.pop_front();
        }
        self.turn_round();
    }

    /// Lets every connection send what it can.
    pub(super) fn put_out(&mut self, now_ns: u64) {
        while self.iface.poll_egress(instant(now_ns), &mut self.link, &mut self.sockets) != PollResult::None {
            self.turn_round();
        }
        self.turn_round();
    }

    /// Gives packets back to the instance that it sends to itself.
    fn turn_round(&mut self) {
        let addrs = self.addrs;
        let is_own = |bytes: &Vec<u8>| destination(bytes).is_some_and(|dst| addrs.contains(dst) || dst.is_loopback());
        for bytes in self.link.tx.extract_if(.., |bytes| is_own(bytes)).collect::<Vec<_>>() {
            self.receive(bytes);
        }
    }

    /// Takes out what is to be sent.
    pub(super) fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.link.tx)
    }

    /// Returns when a connection wants to do something by itself, in nanoseconds.
    pub(super) fn timeout_ns(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.iface.poll_at(instant(now_ns), &self.sockets)?;
        let at_ns = u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1_000);
        // What could be done now has been done; smoltcp counts whole microseconds.
        Some(at_ns.max(now_ns - now_ns % 1_000 + 1_000))
    }
}
