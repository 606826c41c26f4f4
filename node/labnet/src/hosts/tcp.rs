//! Connections: sockets of instances over those of smoltcp.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};

use super::stack::TIMEOUT_NS;
use super::{Host, Hosts, Kind, Listener, Protocol, Socket, Stream};
use crate::directory::any_like;
use crate::ip::{Header, Transport, embedded};
use crate::switch::{Half, NetError, Read, SocketId};

/// Longest backlog: each place costs buffers, and no real machine's default is longer.
const MAX_BACKLOG: usize = 128;

fn endpoint(end: IpEndpoint) -> SocketAddr {
    SocketAddr::new(end.addr.into(), end.port)
}

impl Hosts {
    pub(super) fn listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError> {
        let backlog = backlog.clamp(1, self.limits.backlog.max(1)) as usize;
        let socket = self.socket_mut(id)?;
        match (&socket.kind, socket.local) {
            (Kind::Idle, Some(_)) => {
                let backlog = backlog.min(MAX_BACKLOG);
                socket.kind = Kind::Listening(Listener { backlog, opening: Vec::new(), spare: None });
                let me = socket.owner;
                self.host_mut(me)?.listeners.insert(id);
                self.top_up(me);
                Ok(())
            }
            _ => Err(NetError::InvalidState),
        }
    }

    /// Gives every listener that has room a socket for its next opener, and notes what has become of the last one.
    pub(super) fn top_up(&mut self, me: Ipv4Addr) {
        let Some(host) = self.hosts.get(&me) else { return };
        let listeners: Vec<SocketId> = host.listeners.iter().copied().collect();
        for id in listeners {
            if let Some(end) = self.note_openers(me, id) {
                let buffer_size = self.buffer_size();
                let Some(host) = self.hosts.get_mut(&me) else { return };
                let handle = host.stack.socket(buffer_size);
                let listens = host.stack.tcp(handle).listen(end).is_ok();
                match self.slots.get_mut(id) {
                    Some(Socket { kind: Kind::Listening(listener), .. }) if listens => listener.spare = Some(handle),
                    Some(_) | None => host.stack.remove(handle),
                }
            }
        }
    }

    /// Gives an opener of the other family to whoever listens there, or refuses it: smoltcp listens to both on a port.
    fn pass_on(&mut self, me: Ipv4Addr, id: SocketId) -> Option<()> {
        let Socket { kind: Kind::Listening(listener), local: Some(local), .. } = self.slots.get(id)? else {
            return None;
        };
        let (spare, local) = (listener.spare?, *local);
        let end = endpoint(self.hosts.get(&me)?.stack.tcp_ref(spare).local_endpoint()?);
        if end.is_ipv4() == local.is_ipv4() {
            return None;
        }
        if let Some(Socket { kind: Kind::Listening(listener), .. }) = self.slots.get_mut(id) {
            listener.spare = None;
        }
        let heir = self.holder(me, Protocol::Tcp, end);
        match heir.and_then(|heir| self.slots.get_mut(heir)) {
            Some(Socket { kind: Kind::Listening(listener), .. }) => listener.opening.push(spare),
            Some(_) | None => self.end_connection(me, spare, false),
        }
        Some(())
    }

    /// Notes what has become of a listener's openers; returns where it listens if it has room for one more and no socket
    /// for that.
    fn note_openers(&mut self, me: Ipv4Addr, id: SocketId) -> Option<IpListenEndpoint> {
        self.pass_on(me, id);
        let host = self.hosts.get_mut(&me)?;
        let Socket { kind: Kind::Listening(listener), local: Some(local), .. } = self.slots.get_mut(id)? else {
            return None;
        };
        if let Some(spare) = listener.spare
            && host.stack.tcp_ref(spare).state() != State::Listen
        {
            listener.opening.push(spare);
            listener.spare = None;
        }
        // Openers that went away leave nothing.
        let gone = |handle: &SocketHandle| {
            matches!(host.stack.tcp_ref(*handle).state(), State::Closed | State::Listen)
                && host.stack.tcp_ref(*handle).recv_queue() == 0
        };
        let gone: Vec<SocketHandle> = listener.opening.extract_if(.., |handle| gone(handle)).collect();
        for handle in gone {
            host.stack.remove(handle);
        }
        let wants_one = listener.spare.is_none() && listener.opening.len() < listener.backlog;
        let addr = (!local.ip().is_unspecified()).then_some(IpAddress::from(local.ip()));
        wants_one.then_some(IpListenEndpoint { addr, port: local.port() })
    }

    pub(super) fn accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddr)>, NetError> {
        let me = self.socket(id)?.owner;
        let Kind::Listening(listener) = &self.socket(id)?.kind else { return Err(NetError::InvalidState) };
        let host = self.host(me)?;
        let Some(at) = listener.opening.iter().position(|handle| host.is_established(*handle)) else { return Ok(None) };
        self.check_room(me)?;
        let Kind::Listening(listener) = &mut self.socket_mut(id)?.kind else { return Err(NetError::InvalidState) };
        let handle = listener.opening.remove(at);
        let tcp = self.host(me)?.stack.tcp_ref(handle);
        let ends = tcp.local_endpoint().zip(tcp.remote_endpoint());
        // A connection that was reset before it was accepted has no ends; it is accepted and found to be reset.
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let (local, peer) = ends.map_or((nowhere, nowhere), |(local, peer)| (endpoint(local), endpoint(peer)));
        let accepted = self.slots.insert(Socket {
            owner: me,
            local: Some(local),
            holds_port: false,
            announced: false,
            was: (false, false),
            kind: Kind::Stream(Stream { handle, peer, rx_off: false, tx_end: false }),
        });
        self.host_mut(me)?.sockets.insert(accepted);
        self.top_up(me);
        self.dirty.insert(me);
        Ok(Some((accepted, peer)))
    }

    pub(super) fn connect(&mut self, id: SocketId, dst: SocketAddr) -> Result<(), NetError> {
        let socket = self.socket(id)?;
        let me = socket.owner;
        if !matches!(socket.kind, Kind::Idle) {
            return Err(NetError::InvalidState);
        }
        let bound = socket.local.map_or(any_like(dst.ip()), |local| local.ip());
        let (src, dst) = self.route(me, bound, dst)?;
        if self.socket(id)?.local.is_none() {
            self.bind(id, SocketAddr::new(bound, 0))?;
        }
        let port = self.socket(id)?.local.ok_or(NetError::InvalidState)?.port();
        let buffer_size = self.buffer_size();
        let host = self.host_mut(me)?;
        let handle = host.stack.socket(buffer_size);
        let begun = host.stack.connect(handle, SocketAddr::new(src, port), dst);
        if !begun {
            host.stack.remove(handle);
            return Err(NetError::InvalidDestination { addr: dst });
        }
        let since_ns = self.now_ns;
        let socket = self.socket_mut(id)?;
        socket.local = Some(SocketAddr::new(src, port));
        socket.kind = Kind::Connecting { handle, peer: dst, since_ns };
        self.dirty.insert(me);
        Ok(())
    }

    pub(super) fn read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError> {
        let (me, handle) = self.connection(id)?;
        let Kind::Stream(stream) = &self.socket(id)?.kind else { return Err(NetError::InvalidState) };
        if stream.rx_off {
            return Ok(Read::End);
        }
        let host = self.host_mut(me)?;
        let tcp = host.stack.tcp(handle);
        let size = tcp.recv_queue().min(max);
        if size == 0 {
            return match tcp.recv_slice(&mut []) {
                Err(smoltcp::socket::tcp::RecvError::Finished) => Ok(Read::End),
                Err(smoltcp::socket::tcp::RecvError::InvalidState) => Err(NetError::ConnectionReset),
                Ok(_) => Ok(Read::Pending),
            };
        }
        let mut bytes = vec![0; size];
        let read = tcp.recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(read);
        host.stats.received_bytes += read as u64;
        // The other end may send again.
        self.dirty.insert(me);
        Ok(Read::Data(Bytes::from(bytes)))
    }

    pub(super) fn room(&mut self, id: SocketId) -> Result<usize, NetError> {
        let (me, handle) = self.connection(id)?;
        let Kind::Stream(stream) = &self.socket(id)?.kind else { return Err(NetError::InvalidState) };
        if stream.tx_end {
            return Err(NetError::Shutdown);
        }
        let tcp = self.host(me)?.stack.tcp_ref(handle);
        if !tcp.may_send() {
            return Err(NetError::ConnectionReset);
        }
        let room = tcp.send_capacity() - tcp.send_queue();
        if room == 0 {
            self.socket_mut(id)?.was.1 = false;
        }
        Ok(room)
    }

    pub(super) fn write(&mut self, id: SocketId, bytes: &[u8]) -> Result<usize, NetError> {
        let room = self.room(id)?;
        let (me, handle) = self.connection(id)?;
        let host = self.host_mut(me)?;
        let bytes = &bytes[..bytes.len().min(room)];
        let mut written = 0;
        // The ring takes it in two pieces where its end lies between them.
        while written < bytes.len() {
            match host.stack.tcp(handle).send_slice(&bytes[written..]) {
                Ok(0) | Err(_) => break,
                Ok(size) => written += size,
            }
        }
        host.stats.sent_bytes += written as u64;
        self.dirty.insert(me);
        Ok(written)
    }

    pub(super) fn shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError> {
        let (me, handle) = self.connection(id)?;
        let Kind::Stream(stream) = &mut self.socket_mut(id)?.kind else { return Err(NetError::InvalidState) };
        let (read, write) = match half {
            Half::Read => (true, false),
            Half::Write => (false, true),
            Half::Both => (true, true),
        };
        stream.rx_off |= read;
        let ends = write && !stream.tx_end;
        stream.tx_end |= write;
        if ends {
            self.host_mut(me)?.stack.tcp(handle).close();
        }
        self.dirty.insert(me);
        Ok(())
    }

    pub(super) fn end_listener(&mut self, me: Ipv4Addr, listener: Listener) {
        let Some(host) = self.hosts.get_mut(&me) else { return };
        if let Some(spare) = listener.spare {
            host.stack.remove(spare);
        }
        for handle in listener.opening {
            self.end_connection(me, handle, false);
        }
    }

    pub(super) fn end_connection(&mut self, me: Ipv4Addr, handle: SocketHandle, gently: bool) {
        let Some(host) = self.hosts.get_mut(&me) else { return };
        let tcp = host.stack.tcp(handle);
        // Bytes that nobody will read end the connection, as on Linux: the peer must learn that they were not.
        if gently && tcp.recv_queue() == 0 {
            tcp.close()
        } else {
            tcp.abort()
        }
        host.closing.push(handle);
        self.dirty.insert(me);
    }

    /// Takes note of what connections of a host have come to; returns whether one has more to say for that.
    pub(super) fn look_after(&mut self, me: Ipv4Addr) -> bool {
        self.top_up(me);
        let Some(host) = self.hosts.get_mut(&me) else { return false };
        let mut has_more = false;
        for handle in host.closing.clone() {
            if host.stack.tcp_ref(handle).recv_queue() > 0 {
                host.stack.tcp(handle).abort();
                has_more = true;
            }
        }
        let ids: Vec<SocketId> = host.sockets.iter().copied().collect();
        for id in ids {
            has_more |= self.follow(me, id);
            let Ok(socket) = self.socket(id) else { continue };
            let now = (self.readable(socket), self.writable(socket));
            let is_tcp = socket.kind.protocol() == Protocol::Tcp;
            let news = is_tcp && ((now.0 && !socket.was.0) || (now.1 && !socket.was.1));
            if let Ok(socket) = self.socket_mut(id) {
                socket.was = now;
            }
            if news {
                self.wake(id);
            }
        }
        has_more
    }

    /// Moves a socket on to what its connection has become; returns whether that has more to say now.
    fn follow(&mut self, me: Ipv4Addr, id: SocketId) -> bool {
        let now_ns = self.now_ns;
        let Some(host) = self.hosts.get_mut(&me) else { return false };
        let Some(socket) = self.slots.get_mut(id) else { return false };
        match &mut socket.kind {
            Kind::Connecting { handle, peer, since_ns } => {
                let (handle, peer, since_ns) = (*handle, *peer, *since_ns);
                match host.stack.tcp_ref(handle).state() {
                    State::SynSent | State::SynReceived => {}
                    // Whoever is there refused; who is not there has said nothing until smoltcp gave up.
                    State::Closed => {
                        host.stack.remove(handle);
                        let waited_ns = now_ns.saturating_sub(since_ns);
                        let gave_up = waited_ns >= TIMEOUT_NS;
                        let error = if gave_up { NetError::TimedOut } else { NetError::ConnectionRefused };
                        socket.kind = Kind::Failed(error);
                    }
                    State::Listen
                    | State::Established
                    | State::FinWait1
                    | State::FinWait2
                    | State::CloseWait
                    | State::Closing
                    | State::LastAck
                    | State::TimeWait => {
                        socket.kind = Kind::Stream(Stream { handle, peer, rx_off: false, tx_end: false });
                    }
                }
            }
            Kind::Stream(stream) if stream.rx_off => {
                // Thrown away, so that the peer is not kept waiting.
                let tcp = host.stack.tcp(stream.handle);
                let size = tcp.recv_queue();
                if size > 0 {
                    let _nobody_reads = tcp.recv(|bytes| (bytes.len(), ()));
                    return true;
                }
            }
            Kind::Stream(_) | Kind::Udp(_) | Kind::Idle | Kind::Listening(_) | Kind::Failed(_) => {}
        }
        false
    }

    /// Takes an ICMP error: one about a connection that is being opened says that it never will be.
    pub(super) fn take_error(&mut self, me: Ipv4Addr, bytes: &[u8]) {
        let about =
            Header::parse(bytes).ok().and_then(|error| Header::parse_start(bytes.get(embedded(&error)?..)?).ok());
        let Some(about) = about else { return };
        let Transport::Tcp { src: port, dst: dst_port, .. } = about.transport else { return };
        let dst = about.dst;
        let peer = SocketAddr::new(dst, dst_port);
        let Some(host) = self.hosts.get(&me) else { return };
        let opening = host.sockets.iter().copied().find(|id| {
            self.socket(*id).is_ok_and(|socket| {
                socket.local.is_some_and(|local| local.port() == port)
                    && matches!(socket.kind, Kind::Connecting { peer: wanted, .. } if wanted == peer)
            })
        });
        let Some(id) = opening else { return };
        let Ok(Socket { kind: Kind::Connecting { handle, .. }, .. }) = self.socket(id) else { return };
        let handle = *handle;
        if let Some(host) = self.hosts.get_mut(&me) {
            host.stack.remove(handle);
        }
        if let Ok(socket) = self.socket_mut(id) {
            socket.kind = Kind::Failed(NetError::Unreachable { addr: dst });
        }
        self.wake(id);
    }

    pub(super) fn readable(&self, socket: &Socket) -> bool {
        let Some(host) = self.hosts.get(&socket.owner) else { return true };
        match &socket.kind {
            Kind::Udp(udp) => !udp.is_empty(),
            Kind::Listening(listener) => listener.opening.iter().any(|handle| host.is_established(*handle)),
            Kind::Stream(stream) => {
                let tcp = host.stack.tcp_ref(stream.handle);
                stream.rx_off || tcp.recv_queue() > 0 || !tcp.may_recv()
            }
            Kind::Connecting { .. } | Kind::Idle => false,
            Kind::Failed(_) => true,
        }
    }

    pub(super) fn writable(&self, socket: &Socket) -> bool {
        let Some(host) = self.hosts.get(&socket.owner) else { return true };
        match &socket.kind {
            // What does not fit into a queue of a link is lost there.
            Kind::Udp(_) | Kind::Failed(_) => true,
            Kind::Stream(stream) => {
                let tcp = host.stack.tcp_ref(stream.handle);
                stream.tx_end || !tcp.may_send() || tcp.send_queue() < tcp.send_capacity()
            }
            Kind::Connecting { .. } | Kind::Idle | Kind::Listening(_) => false,
        }
    }

    fn connection(&self, id: SocketId) -> Result<(Ipv4Addr, SocketHandle), NetError> {
        let socket = self.socket(id)?;
        match &socket.kind {
            Kind::Stream(stream) => Ok((socket.owner, stream.handle)),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) | Kind::Connecting { .. } | Kind::Failed(_) => {
                Err(NetError::InvalidState)
            }
        }
    }
}

impl Host {
    fn is_established(&self, handle: SocketHandle) -> bool {
        let tcp = self.stack.tcp_ref(handle);
        match tcp.state() {
            State::Listen | State::SynSent | State::SynReceived => false,
            State::Closed => tcp.recv_queue() > 0,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => true,
        }
    }

    /// Forgets connections that have said all they had to say.
    pub(super) fn drop_closed(&mut self) {
        let closed: Vec<SocketHandle> =
            self.closing.extract_if(.., |handle| self.stack.tcp_ref(*handle).state() == State::Closed).collect();
        for handle in closed {
            self.stack.remove(handle);
        }
    }
}
