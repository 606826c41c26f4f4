//! The network of the guests: wasi:sockets over the [`Sockets`] of the cell, and nothing of the host. Where the run has
//! a clean network these are a [`Switch`]; where it has a model of one, or containers that know nothing but IP, they are
//! [`Hosts`], and `clock.rs` tells them the time.
//!
//! Every operation takes the lock of the sockets, does its part, wakes the guests for which something has become possible,
//! and hands packets for other cells to the outbox. A guest that waits has left its waker here; nobody polls in loops.

mod clock;
mod dns;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use iptl_dag::model::{InstanceId, NetworkUse};
use iptl_labnet::{
    Addrs, Batch, Batching, CompileError, Directory, EngineConfig, FaultError, Faults, Happened, Hosts, Limits,
    NetError, SocketId, Sockets, Switch, Wish, WishError, clean, compile,
};
use iptl_runner::capture::{self, Captures};
use iptl_runner::{CellEvent, CellSpec, InstanceSpec};
use tokio::sync::{Notify, mpsc};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::{SocketError, SocketResult};

use super::guest::{Guest, Instance};
use super::outbox::Outbox;
use crate::ipc::FromWorker;

/// Longest backlog of a listening socket: Linux' `somaxconn`.
const MAX_BACKLOG: u32 = 4096;

use clock::Clock;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/net",
        world: "iptl:net/net",
        imports: { default: trappable },
        trappable_error_type: { "wasi:sockets/network.error-code" => wasmtime_wasi::p2::SocketError },
        with: {
            "wasi:io/poll": wasmtime_wasi_io::bindings::wasi::io::poll,
            "wasi:io/streams": wasmtime_wasi_io::bindings::wasi::io::streams,
            "wasi:io/error": wasmtime_wasi_io::bindings::wasi::io::error,
            "wasi:sockets/network": wasmtime_wasi::p2::bindings::sockets::network,
            "wasi:sockets/udp.udp-socket": super::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": super::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": super::udp::Outgoing,
            "wasi:sockets/tcp.tcp-socket": super::tcp::TcpSocket,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": super::dns::Resolution,
        },
        require_store_data_send: true,
    });
}

use bindings::wasi::sockets as wit;

/// The sockets of all instances of a cell.
pub(crate) struct Net {
    hub: Mutex<Hub>,
    outbox: Arc<Outbox>,
    /// Notified when packets wait for room in the outbox.
    waiting: Notify,
    clock: Clock,
    /// Where faults are told that have happened.
    faults: mpsc::UnboundedSender<Happened>,
    /// Where captures are written, where there are any.
    captures: Option<Captures>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadNetwork {
    /// The description is none.
    #[error(transparent)]
    Network(#[from] CompileError),
    /// The faults do not fit it.
    #[error(transparent)]
    Faults(#[from] FaultError),
    /// What is to be captured cannot be.
    #[error("the link of {0} cannot be captured")]
    Capture(InstanceId),
    /// There is no thread that writes captures.
    #[error("captures cannot be written: {0}")]
    Writer(#[from] std::io::Error),
}

struct Hub {
    sockets: Box<dyn Sockets>,
    wakers: BTreeMap<SocketId, Vec<Waker>>,
}

/// What a guest waits for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interest {
    /// Bytes, a datagram, a connection to accept.
    Read,
    /// Room to write.
    Write,
    /// The outcome of connecting.
    Connected,
}

impl Net {
    /// Makes the network of a cell. `order` has no instances; `specs` are those.
    pub(crate) fn new(
        directory: Arc<Directory>,
        outbox: Arc<Outbox>,
        order: &CellSpec,
        specs: &[InstanceSpec],
    ) -> Result<(Net, mpsc::UnboundedReceiver<Happened>), BadNetwork> {
        // All instances have one limit here; those with a smaller one are held to it by `open`.
        let sockets = specs.iter().map(|spec| spec.limits.sockets).max().unwrap_or(0);
        let limits = Limits { sockets_per_instance: sockets, backlog: MAX_BACKLOG };
        let config = EngineConfig { seed: order.seed, ..EngineConfig::default() };
        let sockets: Box<dyn Sockets> = match &order.network {
            None if order.mixed => Box::new(Hosts::new(directory, clean(&order.groups)?, limits, config)),
            None => Box::new(Switch::new(directory, limits)),
            Some(network) => {
                let compiled = compile(network, &order.groups, order.seed)?;
                compiled.check_cell(&specs.iter().map(|spec| spec.id.clone()).collect())?;
                let faults = Faults::new(&order.faults, network, &compiled, &order.groups, order.seed)?;
                let mut hosts = Hosts::new(directory, compiled, limits, config);
                hosts.set_faults(faults);
                Box::new(hosts)
            }
        };
        let clock = Clock::default();
        let mut sockets = sockets;
        let mut captures = None;
        for spec in specs.iter().filter(|spec| spec.capture) {
            if !sockets.capture(&spec.id, capture::MAX_SIZE, capture::ahead_of(clock.now_ns())) {
                return Err(BadNetwork::Capture(spec.id.clone()));
            }
            if captures.is_none() {
                captures = Some(Captures::start(order.scratch.clone())?);
            }
        }
        let hub = Hub { sockets, wakers: BTreeMap::new() };
        let (faults, happened) = mpsc::unbounded_channel();
        let net = Net { hub: Mutex::new(hub), outbox, waiting: Notify::new(), clock, faults, captures };
        Ok((net, happened))
    }

    /// Lets faults happen from now on.
    pub(crate) fn start(&self) {
        self.with(|sockets| sockets.start());
    }

    /// Starts the thread that lets packets arrive when they are due.
    pub(crate) fn run_clock(self: &Arc<Self>) -> std::io::Result<()> {
        let net = Arc::clone(self);
        std::thread::Builder::new().name("iptl-clock".to_owned()).spawn(move || net.clock.run(|| net.with(|_| {})))?;
        Ok(())
    }

    /// Adds an instance.
    pub(crate) fn add(&self, id: &InstanceId) {
        self.with(|sockets| sockets.add_instance(id));
    }

    /// Returns the addresses that an instance has for itself.
    pub(crate) fn own_addrs(&self, address: Ipv4Addr) -> Addrs {
        self.hub().sockets.own_addrs(address)
    }

    /// Takes an instance out that ended; returns the bytes that it sent and received, and what links did to its packets.
    pub(crate) fn remove(&self, address: Ipv4Addr) -> (u64, u64, Option<NetworkUse>) {
        self.with(|sockets| {
            sockets.remove_instance(address);
            let stats = sockets.stats(address);
            (stats.sent_bytes, stats.received_bytes, sockets.network_use(address))
        })
    }

    /// Puts the capture of an instance that was taken out among its artifacts, where there is one.
    pub(crate) async fn keep_capture(&self, id: InstanceId, at_us: u64) {
        if let Some(captures) = &self.captures {
            captures.keep(id, at_us).await;
        }
    }

    /// Puts in force what an instance asks of its own network.
    pub(crate) fn shape(&self, address: Ipv4Addr, wish: &Wish) -> Result<(), WishError> {
        self.with(|sockets| sockets.shape(address, wish))
    }

    /// Returns the bytes that each of some instances has sent and received so far.
    pub(crate) fn traffic(&self, addresses: impl Iterator<Item = Ipv4Addr>) -> Vec<(u64, u64)> {
        let hub = self.hub();
        addresses
            .map(|address| {
                let stats = hub.sockets.stats(address);
                (stats.sent_bytes, stats.received_bytes)
            })
            .collect()
    }

    /// Takes packets from other cells.
    pub(crate) fn packets(&self, batches: &[Batch]) {
        self.with(|sockets| {
            for bytes in batches.iter().flat_map(Batch::packets) {
                if !sockets.handle_packet(bytes) {
                    tracing::debug!("a packet of another cell was dropped");
                }
            }
        });
    }

    /// Resets the connections with instances of other cells whose packets were lost.
    pub(crate) fn cut(&self, addrs: &[Ipv4Addr]) {
        self.with(|sockets| sockets.cut(addrs));
    }

    /// Sends what waited for room in the outbox, for as long as the cell lives. Safe to drop.
    pub(crate) async fn pump(self: Arc<Self>) {
        loop {
            self.waiting.notified().await;
            self.outbox.wait_for_room().await;
            self.with(|_| {});
        }
    }

    /// Does something with the sockets and carries out what follows.
    fn with<T>(&self, act: impl FnOnce(&mut dyn Sockets) -> T) -> T {
        let mut hub = self.hub();
        hub.sockets.advance(self.clock.now_ns());
        let result = act(&mut *hub.sockets);
        // Packets leave under the lock: those of one connection must not overtake each other.
        let mut batching = Batching::default();
        while self.outbox.has_room() {
            let batch = match hub.sockets.poll_packet() {
                Some((_, bytes)) => {
                    batching.push(&bytes);
                    batching.take_full()
                }
                None => break,
            };
            if let Some(batch) = batch {
                self.outbox.push(&FromWorker::Event(CellEvent::Packets(batch)));
            }
        }
        if let Some(batch) = batching.take() {
            self.outbox.push(&FromWorker::Event(CellEvent::Packets(batch)));
        }
        // After the packets: what leaves makes room for more.
        let wakers = hub.take_wakers();
        while let Some(happened) = hub.sockets.poll_fault() {
            // Nobody listens once the cell is over.
            let _over = self.faults.send(happened);
        }
        while let Some((id, piece)) = hub.sockets.poll_captured() {
            if let Some(captures) = &self.captures {
                captures.add(id, piece);
            }
        }
        if let Some(due_ns) = hub.sockets.poll_timeout() {
            self.clock.wake_at(due_ns);
        }
        drop(hub);
        if !self.outbox.has_room() {
            self.waiting.notify_one();
        }
        for waker in wakers {
            waker.wake();
        }
        result
    }

    /// Makes a socket for an instance, within the limit of its own.
    fn open(
        &self,
        instance: &Instance,
        make: impl FnOnce(&mut dyn Sockets) -> Result<SocketId, NetError>,
    ) -> Result<SocketId, NetError> {
        let limit = instance.limits.sockets;
        self.with(|sockets| {
            if sockets.stats(instance.address).sockets >= limit {
                return Err(NetError::TooManySockets { limit });
            }
            make(sockets)
        })
    }

    /// Waits until something is possible on a socket.
    fn poll(&self, id: SocketId, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
        let mut hub = self.hub();
        let ready = match interest {
            Interest::Read => hub.sockets.is_readable(id),
            Interest::Write => hub.sockets.is_writable(id),
            Interest::Connected => !matches!(hub.sockets.tcp_connected(id), Ok(false)),
        };
        if ready {
            return Poll::Ready(());
        }
        let wakers = hub.wakers.entry(id).or_default();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Closes a socket.
    fn close(&self, id: SocketId) {
        self.with(|sockets| sockets.close(id));
        self.hub().wakers.remove(&id);
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn take_wakers(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(id) = self.sockets.poll_ready() {
            if let Some(waiting) = self.wakers.remove(&id) {
                wakers.extend(waiting);
            }
        }
        wakers
    }
}

/// What the functions of wasi:sockets see of a guest.
struct NetView<'a> {
    table: &'a mut ResourceTable,
    net: &'a Arc<Net>,
    instance: &'a Arc<Instance>,
}

struct HasNet;

impl HasData for HasNet {
    type Data<'a> = NetView<'a>;
}

fn view(guest: &mut Guest) -> NetView<'_> {
    NetView { table: &mut guest.table, net: &guest.cell.net, instance: &guest.instance }
}

/// Puts the lab's network into the place of the host's.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    wit::udp::add_to_linker::<Guest, HasNet>(linker, view)?;
    wit::udp_create_socket::add_to_linker::<Guest, HasNet>(linker, view)?;
    wit::tcp::add_to_linker::<Guest, HasNet>(linker, view)?;
    wit::tcp_create_socket::add_to_linker::<Guest, HasNet>(linker, view)?;
    wit::ip_name_lookup::add_to_linker::<Guest, HasNet>(linker, view)?;
    linker.allow_shadowing(false);
    Ok(())
}

impl network::Host for NetView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, _: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(None)
    }
}

impl network::HostNetwork for NetView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

/// Returns what WASI calls an error of the lab network.
fn code(error: &NetError) -> ErrorCode {
    match error {
        NetError::AddressInUse { .. } | NetError::NoPorts => ErrorCode::AddressInUse,
        NetError::AddressNotAvailable { .. } => ErrorCode::AddressNotBindable,
        NetError::InvalidDestination { .. } => ErrorCode::InvalidArgument,
        NetError::ConnectionRefused => ErrorCode::ConnectionRefused,
        NetError::ConnectionReset => ErrorCode::ConnectionReset,
        NetError::Unreachable { .. } => ErrorCode::RemoteUnreachable,
        NetError::Shutdown | NetError::InvalidState | NetError::NoInstance { .. } | NetError::NoSocket => {
            ErrorCode::InvalidState
        }
        NetError::TimedOut => ErrorCode::Timeout,
        NetError::WouldBlock => ErrorCode::WouldBlock,
        NetError::DatagramTooLong { .. } => ErrorCode::DatagramTooLarge,
        NetError::TooManySockets { .. } => ErrorCode::NewSocketLimit,
    }
}

/// Makes an error of WASI of one of the lab network.
fn refuse(error: NetError) -> SocketError {
    code(&error).into()
}

/// Returns an address that a socket of a family can have or send to: one of that family, which is no IPv4 in the clothes
/// of IPv6, with no more to it than address and port.
fn of(family: IpAddressFamily, address: IpSocketAddress) -> SocketResult<SocketAddr> {
    match (family, SocketAddr::from(address)) {
        (IpAddressFamily::Ipv4, address @ SocketAddr::V4(_)) => Ok(address),
        (IpAddressFamily::Ipv6, SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_none() => {
            Ok((*address.ip(), address.port()).into())
        }
        (IpAddressFamily::Ipv4 | IpAddressFamily::Ipv6, _) => Err(ErrorCode::InvalidArgument.into()),
    }
}
