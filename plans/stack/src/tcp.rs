//! TCP for libp2p, over sockets of std that never block.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::multiaddr::Protocol;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};
use socket2::{Domain, SockRef, Socket, Type};

use crate::runtime::{self, Direction};

/// A connection.
pub struct Stream(TcpStream);

impl Stream {
    /// Connects, without holding up anybody else.
    async fn connect(to: SocketAddr) -> io::Result<Stream> {
        // std knows how a socket is made non-blocking on WASI, and `socket2` how it is connected then.
        let stream = TcpStream::from(Socket::new(Domain::for_address(to), Type::STREAM, None)?);
        stream.set_nonblocking(true)?;
        match SockRef::from(&stream).connect(&to.into()) {
            Ok(()) => {}
            Err(error) if is_under_way(&error) => {}
            Err(error) => return Err(error),
        }
        let stream = Stream::new(stream);
        // Whoever polls this may have been woken by something else.
        poll_fn(|context| stream.connected(context)).await?;
        Ok(stream)
    }

    /// Is ready when the connection stands or never will.
    fn connected(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        match self.0.take_error()?.map_or_else(|| self.0.peer_addr().map(drop), Err) {
            // Linux says the one while it connects, wasi-libc the other.
            Err(error) if error.kind() == ErrorKind::NotConnected || is_under_way(&error) => {
                runtime::register(self.0.as_raw_fd(), Direction::Write, context.waker());
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }

    fn new(stream: TcpStream) -> Stream {
        // Without it, small messages are later and nothing is wrong.
        let _ = stream.set_nodelay(true);
        Stream(stream)
    }

    fn ready<T>(&self, done: io::Result<T>, direction: Direction, context: &Context<'_>) -> Poll<io::Result<T>> {
        match done {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                runtime::register(self.0.as_raw_fd(), direction, context.waker());
                Poll::Pending
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }
}

/// Tells whether a connection that is being made has only not been made yet.
fn is_under_way(error: &io::Error) -> bool {
    // The number that wasi-libc and Linux have for it; std has no stable word.
    let in_progress = if cfg!(target_os = "wasi") { 26 } else { 115 };
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(in_progress)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.ready((&self.0).read(buffer), Direction::Read, context)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ready((&self.0).write(bytes), Direction::Write, context)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        runtime::forget(self.0.as_raw_fd());
    }
}

struct Listener {
    id: ListenerId,
    socket: TcpListener,
    addr: SocketAddr,
}

impl Drop for Listener {
    fn drop(&mut self) {
        runtime::forget(self.socket.as_raw_fd());
    }
}

type Upgrade = BoxFuture<'static, io::Result<Stream>>;

/// The transport.
#[derive(Default)]
pub struct Tcp {
    listeners: Vec<Listener>,
    events: VecDeque<TransportEvent<Upgrade, io::Error>>,
}

impl Transport for Tcp {
    type Output = Stream;
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let addr = socket_addr(&address).ok_or(TransportError::MultiaddrNotSupported(address))?;
        let listener = TcpListener::bind(addr)
            .and_then(|socket| {
                socket.set_nonblocking(true)?;
                let addr = socket.local_addr()?;
                Ok(Listener { id, socket, addr })
            })
            .map_err(TransportError::Other)?;
        let listen_addr = multiaddr(listener.addr);
        self.events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr });
        self.listeners.push(listener);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|listener| listener.id != id);
        self.listeners.len() != before
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        match socket_addr(&address) {
            Some(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(Stream::connect(addr).boxed()),
            Some(_) | None => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, io::Error>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        for Listener { id, socket, addr } in &self.listeners {
            match socket.accept() {
                Ok((stream, from)) => {
                    let upgrade = async move {
                        stream.set_nonblocking(true)?;
                        Ok(Stream::new(stream))
                    };
                    return Poll::Ready(TransportEvent::Incoming {
                        listener_id: *id,
                        upgrade: upgrade.boxed(),
                        local_addr: multiaddr(*addr),
                        send_back_addr: multiaddr(from),
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    runtime::register(socket.as_raw_fd(), Direction::Read, context.waker());
                }
                // Whoever wanted to connect is gone already, or there are too many sockets: the next may have more luck.
                Err(error) => {
                    runtime::register(socket.as_raw_fd(), Direction::Read, context.waker());
                    return Poll::Ready(TransportEvent::ListenerError { listener_id: *id, error });
                }
            }
        }
        Poll::Pending
    }
}

fn socket_addr(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?, parts.next()) {
        // What follows a peer leads through it, which takes a relay.
        (Protocol::Ip4(ip), Protocol::Tcp(port), None | Some(Protocol::P2p(_))) if parts.next().is_none() => {
            Some((ip, port).into())
        }
        _ => None,
    }
}

/// Returns how long a connection takes to open without anything above it: one round trip.
///
/// # Errors
///
/// Fails where there is no such connection. Waits as long as the sockets do; dropping it gives up.
pub async fn round_trip(to: SocketAddr) -> io::Result<Duration> {
    let began = Instant::now();
    Stream::connect(to).await?;
    Ok(began.elapsed())
}

pub(crate) fn multiaddr(addr: SocketAddr) -> Multiaddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => Protocol::Ip4(ip),
        IpAddr::V6(ip) => Protocol::Ip6(ip),
    };
    Multiaddr::empty().with(ip).with(Protocol::Tcp(addr.port()))
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::*;

    #[test]
    fn a_connection_that_is_looked_at_before_it_stands_is_made_all_the_same() {
        // Whoever is not accepted, and finds no room to wait, is not answered.
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap().as_socket().unwrap();
        let first = TcpStream::connect(at).unwrap();

        let mut connecting = Stream::connect(at).boxed();
        for _ in 0..3 {
            assert!(connecting.poll_unpin(&mut Context::from_waker(noop_waker_ref())).is_pending());
        }
        listener.accept().unwrap();
        let connected = runtime::run(async move { Ok(connecting.await?) }).unwrap();
        assert_eq!(connected.0.peer_addr().unwrap(), at);
        drop(first);
    }

    #[test]
    fn an_address_behind_a_relay_is_not_that_of_the_relay() {
        let peer = crate::keys::peer(7, 1);
        let direct: Multiaddr = format!("/ip4/10.0.0.1/tcp/4001/p2p/{peer}").parse().unwrap();
        assert_eq!(socket_addr(&direct), Some("10.0.0.1:4001".parse().unwrap()));
        assert_eq!(socket_addr(&direct.with(Protocol::P2pCircuit)), None);
    }
}
