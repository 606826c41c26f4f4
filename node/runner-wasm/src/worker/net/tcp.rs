//! wasi:sockets/tcp.

#![expect(unreachable_pub, reason = "the generated bindings re-export the resources of this file")]

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use iptl_labnet::{Half, NetError, Read, SocketId, WINDOW_SIZE};
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};
use wasmtime_wasi_io::streams::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, StreamError, StreamResult,
};

use super::wit::tcp::{Duration, Host, HostTcpSocket, ShutdownType};
use super::wit::tcp_create_socket;
use super::{Interest, Net, NetView, of, refuse};

/// Connections that wait to be accepted where the guest has not said: Linux' own default.
const DEFAULT_BACKLOG: u32 = 128;

/// Bytes that move in one call.
const MAX_CHUNK: usize = 64 << 10;

/// A TCP socket.
pub struct TcpSocket {
    net: Arc<Net>,
    id: SocketId,
    family: IpAddressFamily,
    state: State,
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unbound,
    BindStarted,
    Bound,
    ListenStarted,
    Listening,
    Connecting,
    Connected,
    Failed,
}

/// What a guest may set; all but the backlog is remembered and has no effect in a network that loses nothing.
#[derive(Clone, Copy, Debug)]
struct Options {
    backlog: u32,
    keep_alive: bool,
    keep_alive_idle: Duration,
    keep_alive_interval: Duration,
    keep_alive_count: u32,
    hop_limit: u8,
    receive_buffer: u64,
    send_buffer: u64,
}

impl Default for Options {
    /// What Linux has.
    fn default() -> Options {
        Options {
            backlog: DEFAULT_BACKLOG,
            keep_alive: false,
            keep_alive_idle: 7_200_000_000_000,
            keep_alive_interval: 75_000_000_000,
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer: WINDOW_SIZE as u64,
            send_buffer: WINDOW_SIZE as u64,
        }
    }
}

/// The readable half of a connection.
struct Input {
    net: Arc<Net>,
    id: SocketId,
}

/// The writable half of a connection.
struct Output {
    net: Arc<Net>,
    id: SocketId,
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        self.net.close(self.id);
    }
}

#[async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        let interest = match self.state {
            State::Listening => Interest::Read,
            State::Connecting => Interest::Connected,
            // These steps are done at once.
            State::Unbound
            | State::BindStarted
            | State::Bound
            | State::ListenStarted
            | State::Connected
            | State::Failed => return,
        };
        poll_fn(|cx| self.net.poll(self.id, interest, cx)).await;
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        poll_fn(|cx| self.net.poll(self.id, Interest::Read, cx)).await;
    }
}

#[async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match self.net.with(|sockets| sockets.tcp_read(self.id, size.min(MAX_CHUNK))) {
            Ok(Read::Data(bytes)) => Ok(bytes),
            Ok(Read::Pending) => Ok(Bytes::new()),
            Ok(Read::End) => Err(StreamError::Closed),
            Err(error) => Err(broken(&error)),
        }
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|cx| self.net.poll(self.id, Interest::Write, cx)).await;
    }
}

#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let size = bytes.len();
        match self.net.with(|sockets| sockets.tcp_write(self.id, bytes)) {
            Ok(written) if written == size => Ok(()),
            // Room never shrinks by anyone but the writer, so that this is a write without or beyond a permit.
            Ok(_) => Err(StreamError::trap("a write beyond what check-write allowed")),
            Err(error) => Err(broken(&error)),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match self.net.with(|sockets| sockets.tcp_room(self.id)) {
            Ok(room) => Ok(room.min(MAX_CHUNK)),
            Err(error) => Err(broken(&error)),
        }
    }
}

/// Says that a connection is over: cleanly, or with the error that std shows.
fn broken(error: &NetError) -> StreamError {
    let kind = match error {
        NetError::ConnectionReset => io::ErrorKind::ConnectionReset,
        NetError::Unreachable { .. } => io::ErrorKind::HostUnreachable,
        NetError::TimedOut => io::ErrorKind::TimedOut,
        NetError::Shutdown | NetError::NoSocket | NetError::NoInstance { .. } | NetError::InvalidState => {
            return StreamError::Closed;
        }
        NetError::AddressInUse { .. }
        | NetError::AddressNotAvailable { .. }
        | NetError::InvalidDestination { .. }
        | NetError::NoPorts
        | NetError::ConnectionRefused
        | NetError::WouldBlock
        | NetError::DatagramTooLong { .. }
        | NetError::TooManySockets { .. } => io::ErrorKind::Other,
    };
    StreamError::LastOperationFailed(io::Error::new(kind, error.to_string()).into())
}

impl NetView<'_> {
    /// Makes the two streams of a connection, children of its socket.
    fn streams(
        &mut self,
        socket: &Resource<TcpSocket>,
        id: SocketId,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let input: DynInputStream = Box::new(Input { net: Arc::clone(self.net), id });
        let output: DynOutputStream = Box::new(Output { net: Arc::clone(self.net), id });
        Ok((self.table.push_child(input, socket)?, self.table.push_child(output, socket)?))
    }

    /// Changes an option.
    fn set(&mut self, socket: &Resource<TcpSocket>, valid: bool, set: impl FnOnce(&mut Options)) -> SocketResult<()> {
        if !valid {
            return Err(ErrorCode::InvalidArgument.into());
        }
        set(&mut self.table.get_mut(socket)?.options);
        Ok(())
    }

    fn options(&self, socket: &Resource<TcpSocket>) -> SocketResult<Options> {
        Ok(self.table.get(socket)?.options)
    }
}

impl tcp_create_socket::Host for NetView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let me = self.instance.address;
        let id = self.net.open(self.instance, |sockets| sockets.tcp_socket(me)).map_err(refuse)?;
        let (net, options) = (Arc::clone(self.net), Options::default());
        let socket = TcpSocket { net, id, family, state: State::Unbound, options };
        Ok(self.table.push(socket)?)
    }
}

impl Host for NetView<'_> {}

impl HostTcpSocket for NetView<'_> {
    fn start_bind(
        &mut self,
        socket: Resource<TcpSocket>,
        _: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        let address = of(socket.family, address)?;
        if socket.state != State::Unbound {
            return Err(ErrorCode::InvalidState.into());
        }
        self.net.with(|sockets| sockets.tcp_bind(socket.id, address)).map_err(refuse)?;
        socket.state = State::BindStarted;
        Ok(())
    }

    fn finish_bind(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        if socket.state != State::BindStarted {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.state = State::Bound;
        Ok(())
    }

    fn start_connect(
        &mut self,
        socket: Resource<TcpSocket>,
        _: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        let address = of(socket.family, address)?;
        if !matches!(socket.state, State::Unbound | State::Bound) {
            return Err(ErrorCode::InvalidState.into());
        }
        self.net.with(|sockets| sockets.tcp_connect(socket.id, address)).map_err(refuse)?;
        socket.state = State::Connecting;
        Ok(())
    }

    fn finish_connect(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let tcp = self.table.get_mut(&socket)?;
        if tcp.state != State::Connecting {
            return Err(ErrorCode::NotInProgress.into());
        }
        let id = tcp.id;
        match self.net.with(|sockets| sockets.tcp_connected(id)) {
            Ok(true) => tcp.state = State::Connected,
            Ok(false) => return Err(ErrorCode::WouldBlock.into()),
            Err(error) => {
                tcp.state = State::Failed;
                return Err(refuse(error));
            }
        }
        self.streams(&socket, id)
    }

    fn start_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        if socket.state != State::Bound {
            return Err(ErrorCode::InvalidState.into());
        }
        self.net.with(|sockets| sockets.tcp_listen(socket.id, socket.options.backlog)).map_err(refuse)?;
        socket.state = State::ListenStarted;
        Ok(())
    }

    fn finish_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&socket)?;
        if socket.state != State::ListenStarted {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.state = State::Listening;
        Ok(())
    }

    fn accept(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let listener = self.table.get(&socket)?;
        if listener.state != State::Listening {
            return Err(ErrorCode::InvalidState.into());
        }
        let (id, family, options) = (listener.id, listener.family, listener.options);
        let (me, limit) = (self.instance.address, self.instance.limits.sockets);
        let accepted = self.net.with(|sockets| {
            if sockets.is_readable(id) && sockets.stats(me).sockets >= limit {
                return Err(NetError::TooManySockets { limit });
            }
            sockets.tcp_accept(id)
        });
        let (id, _) = accepted.map_err(refuse)?.ok_or(ErrorCode::WouldBlock)?;
        let connection = TcpSocket { net: Arc::clone(self.net), id, family, state: State::Connected, options };
        let connection = self.table.push(connection)?;
        let (input, output) = self.streams(&connection, id)?;
        Ok((connection, input, output))
    }

    fn local_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let id = self.table.get(&socket)?.id;
        let local = self.net.with(|sockets| sockets.local_addr(id)).map_err(refuse)?;
        Ok(local.ok_or(ErrorCode::InvalidState)?.into())
    }

    fn remote_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let id = self.table.get(&socket)?.id;
        Ok(self.net.with(|sockets| sockets.peer_addr(id)).map_err(refuse)?.into())
    }

    fn is_listening(&mut self, socket: Resource<TcpSocket>) -> Result<bool> {
        Ok(self.table.get(&socket)?.state == State::Listening)
    }

    fn address_family(&mut self, socket: Resource<TcpSocket>) -> Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family)
    }

    fn set_listen_backlog_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        // A socket that listens already keeps its backlog; WASI lets an implementation ignore the hint.
        let backlog = u32::try_from(value).unwrap_or(u32::MAX);
        self.set(&socket, value > 0, |options| options.backlog = backlog)
    }

    fn keep_alive_enabled(&mut self, socket: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.options(&socket)?.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, socket: Resource<TcpSocket>, value: bool) -> SocketResult<()> {
        self.set(&socket, true, |options| options.keep_alive = value)
    }

    fn keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>) -> SocketResult<Duration> {
        Ok(self.options(&socket)?.keep_alive_idle)
    }

    fn set_keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>, value: Duration) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.keep_alive_idle = value)
    }

    fn keep_alive_interval(&mut self, socket: Resource<TcpSocket>) -> SocketResult<Duration> {
        Ok(self.options(&socket)?.keep_alive_interval)
    }

    fn set_keep_alive_interval(&mut self, socket: Resource<TcpSocket>, value: Duration) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.keep_alive_interval = value)
    }

    fn keep_alive_count(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.options(&socket)?.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, socket: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.keep_alive_count = value)
    }

    fn hop_limit(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.options(&socket)?.hop_limit)
    }

    fn set_hop_limit(&mut self, socket: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.hop_limit = value)
    }

    fn receive_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&socket)?.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.receive_buffer = value)
    }

    fn send_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&socket)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set(&socket, value > 0, |options| options.send_buffer = value)
    }

    fn subscribe(&mut self, socket: Resource<TcpSocket>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }

    fn shutdown(&mut self, socket: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let socket = self.table.get(&socket)?;
        if socket.state != State::Connected {
            return Err(ErrorCode::InvalidState.into());
        }
        let half = match how {
            ShutdownType::Receive => Half::Read,
            ShutdownType::Send => Half::Write,
            ShutdownType::Both => Half::Both,
        };
        self.net.with(|sockets| sockets.tcp_shutdown(socket.id, half)).map_err(refuse)
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
