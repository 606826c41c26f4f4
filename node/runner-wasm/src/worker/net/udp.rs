//! wasi:sockets/udp.

#![expect(unreachable_pub, reason = "the generated bindings re-export the resources of this file")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use iptl_labnet::{NetError, SocketId, Sockets, UDP_QUEUE_SIZE};
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::wit::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram, OutgoingDatagram,
};
use super::wit::udp_create_socket;
use super::{Interest, Net, NetView, of, refuse};

/// Datagrams that move in one call.
const MAX_BATCH: u64 = 64;

/// Hop limit where the guest has set none; it has no effect in a network without hops.
const HOP_LIMIT: u8 = 64;

/// A UDP socket.
pub struct UdpSocket {
    net: Arc<Net>,
    id: SocketId,
    family: IpAddressFamily,
    state: State,
    remote: Option<SocketAddr>,
    hop_limit: u8,
    receive_buffer: u64,
    send_buffer: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unbound,
    BindStarted,
    Bound,
}

/// The receiving half of a UDP socket.
pub struct Incoming {
    net: Arc<Net>,
    id: SocketId,
    remote: Option<SocketAddr>,
}

/// The sending half of a UDP socket.
pub struct Outgoing {
    net: Arc<Net>,
    id: SocketId,
    family: IpAddressFamily,
    remote: Option<SocketAddr>,
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.net.close(self.id);
    }
}

#[async_trait]
impl Pollable for UdpSocket {
    // Binding is done at once; there is nothing to wait for.
    async fn ready(&mut self) {}
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| self.net.poll(self.id, Interest::Read, cx)).await;
    }
}

#[async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        poll_fn(|cx| self.net.poll(self.id, Interest::Write, cx)).await;
    }
}

impl udp_create_socket::Host for NetView<'_> {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let me = self.instance.address;
        let id = self.net.open(self.instance, |sockets| sockets.udp_socket(me)).map_err(refuse)?;
        let socket = UdpSocket {
            net: Arc::clone(self.net),
            id,
            family,
            state: State::Unbound,
            remote: None,
            hop_limit: HOP_LIMIT,
            receive_buffer: UDP_QUEUE_SIZE as u64,
            send_buffer: UDP_QUEUE_SIZE as u64,
        };
        Ok(self.table.push(socket)?)
    }
}

impl Host for NetView<'_> {}

impl HostUdpSocket for NetView<'_> {
    fn start_bind(
        &mut self,
        socket: Resource<UdpSocket>,
        _: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        let address = of(socket.family, address)?;
        if socket.state != State::Unbound {
            return Err(ErrorCode::InvalidState.into());
        }
        self.net.with(|sockets| sockets.udp_bind(socket.id, address)).map_err(refuse)?;
        socket.state = State::BindStarted;
        Ok(())
    }

    fn finish_bind(&mut self, socket: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        if socket.state != State::BindStarted {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.state = State::Bound;
        Ok(())
    }

    fn stream(
        &mut self,
        socket: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<Incoming>, Resource<Outgoing>)> {
        let udp = self.table.get_mut(&socket)?;
        let family = udp.family;
        let remote = remote.map(|remote| of(family, remote)).transpose()?;
        if udp.state != State::Bound {
            return Err(ErrorCode::InvalidState.into());
        }
        if remote.is_some_and(|remote| remote.port() == 0 || remote.ip().is_unspecified()) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.net.with(|sockets| sockets.udp_connect(udp.id, remote)).map_err(refuse)?;
        udp.remote = remote;
        let (net, id) = (Arc::clone(self.net), udp.id);
        let incoming = self.table.push_child(Incoming { net: Arc::clone(&net), id, remote }, &socket)?;
        let outgoing = self.table.push_child(Outgoing { net, id, family, remote }, &socket)?;
        Ok((incoming, outgoing))
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let id = self.table.get(&socket)?.id;
        let local = self.net.with(|sockets| sockets.local_addr(id)).map_err(refuse)?;
        Ok(local.ok_or(ErrorCode::InvalidState)?.into())
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.table.get(&socket)?.remote.ok_or(ErrorCode::InvalidState)?.into())
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family)
    }

    fn unicast_hop_limit(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.table.get(&socket)?.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, socket: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.table.get_mut(&socket)?.hop_limit = value;
        Ok(())
    }

    fn receive_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.table.get(&socket)?.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.table.get_mut(&socket)?.receive_buffer = value;
        Ok(())
    }

    fn send_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.table.get(&socket)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        self.table.get_mut(&socket)?.send_buffer = value;
        Ok(())
    }

    fn subscribe(&mut self, socket: Resource<UdpSocket>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

impl HostIncomingDatagramStream for NetView<'_> {
    fn receive(&mut self, stream: Resource<Incoming>, max: u64) -> SocketResult<Vec<IncomingDatagram>> {
        let stream = self.table.get(&stream)?;
        let mut datagrams = Vec::new();
        self.net.with(|sockets| receive(sockets, stream, max.min(MAX_BATCH), &mut datagrams)).map_err(refuse)?;
        Ok(datagrams)
    }

    fn subscribe(&mut self, stream: Resource<Incoming>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Incoming>) -> Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

/// Takes datagrams out; those that arrived before the socket was connected to their stranger are dropped.
fn receive(
    sockets: &mut dyn Sockets,
    stream: &Incoming,
    max: u64,
    datagrams: &mut Vec<IncomingDatagram>,
) -> std::result::Result<(), NetError> {
    while (datagrams.len() as u64) < max {
        let Some(datagram) = sockets.udp_recv(stream.id)? else { break };
        if stream.remote.is_none_or(|remote| remote == datagram.src) {
            datagrams.push(IncomingDatagram { data: datagram.payload.into(), remote_address: datagram.src.into() });
        }
    }
    Ok(())
}

impl HostOutgoingDatagramStream for NetView<'_> {
    fn check_send(&mut self, stream: Resource<Outgoing>) -> SocketResult<u64> {
        let id = self.table.get(&stream)?.id;
        Ok(if self.net.with(|sockets| sockets.is_writable(id)) { MAX_BATCH } else { 0 })
    }

    fn send(&mut self, stream: Resource<Outgoing>, datagrams: Vec<OutgoingDatagram>) -> SocketResult<u64> {
        let stream = self.table.get(&stream)?;
        let mut sent = 0;
        for datagram in datagrams {
            let given = datagram.remote_address.map(|given| of(stream.family, given)).transpose()?;
            let destination = match (stream.remote, given) {
                (Some(remote), Some(given)) if remote != given => Err(ErrorCode::InvalidArgument),
                (Some(remote), _) => Ok(remote),
                (None, Some(given)) => Ok(given),
                (None, None) => Err(ErrorCode::InvalidArgument),
            };
            let result = destination.and_then(|destination| {
                self.net
                    .with(|sockets| sockets.udp_send(stream.id, Some(destination), datagram.data.into()))
                    .map_err(|e| super::code(&e))
            });
            match result {
                Ok(()) => sent += 1,
                Err(ErrorCode::WouldBlock) => break,
                // What was sent is said first; the error comes with the next call.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, stream: Resource<Outgoing>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Outgoing>) -> Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
