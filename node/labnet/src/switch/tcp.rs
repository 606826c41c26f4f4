//! Connections: ideal streams with a window, of which one end or both are in this cell.
//!
//! A connection is established when the listener has room in its backlog; until then its opener waits, as one whose
//! SYN is dropped would by trying again. There is no lingering and no waiting time after the end: a connection's
//! serial tells late packets from those of its successor. A reset ends what can still be written; bytes that had
//! arrived before it can still be read.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::socket::{Connecting, Listener, Opener, Stream};
use super::{Kind, NetError, Out, Peer, Protocol, Route, Socket, SocketId, Switch, WINDOW_SIZE};
use crate::directory::{any_like, home_of};
use crate::packet::{Flow, MAX_CHUNK_SIZE, Packet};

/// Read bytes after which a remote peer is given credit: few enough packets, and the peer rarely stalls.
const CREDIT_STEP: usize = WINDOW_SIZE / 4;

/// Most openers that wait for a place in one backlog: every instance of a large run at once.
const MAX_OPENERS: usize = 16_384;

/// Refused openers after which a full backlog is cleared of those that have gone away: the cost of each stays small.
const SWEEP_EVERY: usize = 1024;

/// Direction of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Nothing more is read.
    Read,
    /// Nothing more is written.
    Write,
    /// Neither.
    Both,
}

/// What reading gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, at least one.
    Data(Bytes),
    /// Nothing yet; the socket becomes ready when there is.
    Pending,
    /// The peer has ended its direction.
    End,
}

impl Switch {
    /// Makes a TCP socket for the instance with lab address `me`.
    pub fn tcp_socket(&mut self, me: Ipv4Addr) -> Result<SocketId, NetError> {
        self.open(me, Kind::Idle)
    }

    /// Binds a TCP socket to an address of its instance, or to any (`0.0.0.0`); port zero takes an ephemeral one.
    pub fn tcp_bind(&mut self, id: SocketId, addr: SocketAddr) -> Result<(), NetError> {
        match self.socket(id)?.kind {
            Kind::Idle => self.bind(id, Protocol::Tcp, addr),
            Kind::Udp(_) | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) | Kind::Stream(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    /// Listens on a bound socket; `backlog` connections wait to be accepted, at least one.
    pub fn tcp_listen(&mut self, id: SocketId, backlog: u32) -> Result<(), NetError> {
        let backlog = backlog.clamp(1, self.limits.backlog.max(1)) as usize;
        let socket = self.socket_mut(id)?;
        match (&socket.kind, socket.local) {
            (Kind::Idle, Some(_)) => {
                socket.kind = Kind::Listening(Listener { backlog, ..Listener::default() });
                Ok(())
            }
            _ => Err(NetError::InvalidState),
        }
    }

    /// Takes the next connection of a listening socket, with its peer's address; none where there is none yet.
    pub fn tcp_accept(&mut self, id: SocketId) -> Result<Option<(SocketId, SocketAddr)>, NetError> {
        let owner = self.socket(id)?.owner;
        if self.listener(id)?.ready.is_empty() {
            return Ok(None);
        }
        self.check_room(owner)?;
        let accepted = self.listener(id)?.ready.pop_front();
        self.admit(id);
        let Some(accepted) = accepted else { return Ok(None) };
        self.own(owner, accepted);
        let peer = self.stream(accepted)?.flow.dst;
        Ok(Some((accepted, peer)))
    }

    /// Begins to connect; binds the socket where it is not. [`tcp_connected`](Switch::tcp_connected) has the outcome.
    pub fn tcp_connect(&mut self, id: SocketId, dst: SocketAddr) -> Result<(), NetError> {
        let socket = self.socket(id)?;
        let owner = socket.owner;
        if !matches!(socket.kind, Kind::Idle) {
            return Err(NetError::InvalidState);
        }
        let bound = socket.local.map_or(any_like(dst.ip()), |local| local.ip());
        let route = self.route(owner, bound, dst)?;
        if self.socket(id)?.local.is_none() {
            self.bind(id, Protocol::Tcp, SocketAddr::new(bound, 0))?;
        }
        let port = self.socket(id)?.local.ok_or(NetError::InvalidState)?.port();
        let (src, dst, remote) = match route {
            Route::Local { src, dst, .. } => (src, dst, false),
            Route::Remote { src, dst } => (src, dst, true),
        };
        let flow = Flow { src: SocketAddr::new(src, port), dst, serial: self.next_serial };
        self.next_serial = self.next_serial.wrapping_add(1);
        let socket = self.socket_mut(id)?;
        socket.local = Some(flow.src);
        socket.kind = Kind::Connecting(Connecting { flow, remote });
        match route {
            Route::Local { instance, .. } => self.knock(id, instance, flow),
            Route::Remote { .. } => {
                self.connections.insert((flow.src, flow.dst), id);
                self.out.push_back(Out::Packet(Packet::TcpOpen { flow }));
            }
        }
        Ok(())
    }

    /// Returns whether a socket that connects is connected; an error where it never will be.
    pub fn tcp_connected(&self, id: SocketId) -> Result<bool, NetError> {
        match &self.socket(id)?.kind {
            Kind::Stream(_) => Ok(true),
            Kind::Connecting(_) => Ok(false),
            Kind::Failed(error) => Err(error.clone()),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) => Err(NetError::InvalidState),
        }
    }

    /// Reads at most `max` bytes.
    pub fn tcp_read(&mut self, id: SocketId, max: usize) -> Result<Read, NetError> {
        let stream = self.stream(id)?;
        if stream.rx_off {
            return Ok(Read::End);
        }
        match stream.rx.pop(max) {
            Some(bytes) => {
                self.taken(id, bytes.len());
                Ok(Read::Data(bytes))
            }
            None if stream.rx_end && stream.rx.is_empty() => Ok(Read::End),
            None if stream.broken && stream.rx.is_empty() => Err(NetError::ConnectionReset),
            None => Ok(Read::Pending),
        }
    }

    /// Returns how many bytes can be written now; where none can, the socket becomes ready when some can.
    pub fn tcp_room(&mut self, id: SocketId) -> Result<usize, NetError> {
        let stream = self.stream(id)?;
        if stream.tx_end {
            return Err(NetError::Shutdown);
        }
        let blocked = stream.blocked;
        let room = match stream.peer {
            Peer::Gone => return Err(NetError::ConnectionReset),
            Peer::Remote => stream.tx_credit,
            Peer::Local(peer) => {
                let peer = self.stream(peer)?;
                let room = if peer.rx_off { WINDOW_SIZE } else { WINDOW_SIZE.saturating_sub(peer.rx.len()) };
                // Who has met a full window waits for a step, as between cells: a slow reader would wake it for each byte.
                if blocked && room < CREDIT_STEP { 0 } else { room }
            }
        };
        self.stream(id)?.blocked = room == 0;
        Ok(room)
    }

    /// Writes as much of `bytes` as there is room for and returns how much that was.
    ///
    /// Where it was not all, the socket becomes ready when there is room again.
    pub fn tcp_write(&mut self, id: SocketId, mut bytes: Bytes) -> Result<usize, NetError> {
        let room = self.tcp_room(id)?;
        let owner = self.socket(id)?.owner;
        let stream = self.stream(id)?;
        if bytes.len() > room {
            bytes.truncate(room);
            stream.blocked = true;
        }
        let size = bytes.len();
        if size == 0 {
            return Ok(0);
        }
        match stream.peer {
            Peer::Gone => return Err(NetError::ConnectionReset),
            Peer::Remote => {
                stream.tx_credit -= size;
                stream.tx.push(bytes);
                self.queue_stream(id);
            }
            Peer::Local(peer) => {
                let receiver = self.socket(peer)?.owner;
                let stream = self.stream(peer)?;
                if !stream.rx_off {
                    stream.rx.push(bytes);
                    self.wake(peer);
                }
                self.count_received(receiver, size);
            }
        }
        self.count_sent(owner, size);
        Ok(size)
    }

    /// Ends one direction of a connection, or both, and keeps the socket.
    pub fn tcp_shutdown(&mut self, id: SocketId, half: Half) -> Result<(), NetError> {
        let (read, write) = match half {
            Half::Read => (true, false),
            Half::Write => (false, true),
            Half::Both => (true, true),
        };
        let stream = self.stream(id)?;
        if read && !stream.rx_off {
            stream.rx_off = true;
            let dropped = stream.rx.len();
            stream.rx.clear();
            self.taken(id, dropped);
        }
        let stream = self.stream(id)?;
        if write && !stream.tx_end {
            stream.tx_end = true;
            match stream.peer {
                Peer::Gone => {}
                Peer::Remote => self.queue_stream(id),
                Peer::Local(peer) => {
                    self.stream(peer)?.rx_end = true;
                    self.wake(peer);
                }
            }
        }
        Ok(())
    }

    // Opening, within the cell and from outside.

    /// Asks the listener at `flow.dst` to take a connection of this cell.
    fn knock(&mut self, id: SocketId, instance: Ipv4Addr, flow: Flow) {
        let Some(listener) = self.holder(instance, Protocol::Tcp, flow.dst) else {
            return self.fail(id, NetError::ConnectionRefused);
        };
        if !self.ask(listener, Opener::Local(id)) {
            self.fail(id, NetError::ConnectionRefused);
        }
    }

    /// Puts an opener before a listener; returns false where it does not listen or too many wait.
    fn ask(&mut self, id: SocketId, opener: Opener) -> bool {
        let Ok(listener) = self.listener(id) else { return false };
        if listener.waiting.len() >= MAX_OPENERS {
            listener.refused = (listener.refused + 1) % SWEEP_EVERY;
            if listener.refused == 0 {
                self.sweep(id);
            }
        }
        let Ok(listener) = self.listener(id) else { return false };
        if listener.waiting.len() >= MAX_OPENERS {
            return false;
        }
        listener.waiting.push_back(opener);
        if let Opener::Remote(flow) = opener {
            listener.remote.insert((flow.dst, flow.src), flow.serial);
        }
        self.admit(id);
        true
    }

    /// Forgets openers that have gone away.
    fn sweep(&mut self, id: SocketId) {
        let Ok(listener) = self.listener(id) else { return };
        let mut waiting = std::mem::take(&mut listener.waiting);
        waiting.retain(|opener| match opener {
            Opener::Local(client) => matches!(self.socket(*client).map(|s| &s.kind), Ok(Kind::Connecting(_))),
            Opener::Remote(flow) => self
                .listener_ref(id)
                .is_some_and(|listener| listener.remote.get(&(flow.dst, flow.src)) == Some(&flow.serial)),
        });
        if let Ok(listener) = self.listener(id) {
            listener.waiting = waiting;
        }
    }

    /// Establishes connections for which the listener has room.
    fn admit(&mut self, id: SocketId) {
        let Ok(socket) = self.socket(id) else { return };
        let owner = socket.owner;
        loop {
            let Ok(listener) = self.listener(id) else { return };
            if listener.ready.len() >= listener.backlog {
                return;
            }
            let Some(opener) = listener.waiting.pop_front() else { return };
            let server = match opener {
                Opener::Local(client) => {
                    let Ok(Socket { kind: Kind::Connecting(Connecting { flow, .. }), .. }) = self.socket(client) else {
                        continue;
                    };
                    let flow = *flow;
                    let server = self.insert_stream(owner, Stream::new(flow.reversed(), Peer::Local(client)));
                    if let Ok(socket) = self.socket_mut(client) {
                        socket.kind = Kind::Stream(Box::new(Stream::new(flow, Peer::Local(server))));
                    }
                    self.wake(client);
                    server
                }
                Opener::Remote(flow) => {
                    let key = (flow.dst, flow.src);
                    if listener.remote.get(&key) != Some(&flow.serial) {
                        continue;
                    }
                    listener.remote.remove(&key);
                    if self.lost.contains(&home_of(flow.src.ip())) {
                        continue;
                    }
                    let ours = flow.reversed();
                    let server = self.insert_stream(owner, Stream::new(ours, Peer::Remote));
                    self.connections.insert(key, server);
                    self.out.push_back(Out::Packet(Packet::TcpAccept { flow: ours }));
                    server
                }
            };
            if let Ok(listener) = self.listener(id) {
                listener.ready.push_back(server);
            }
            self.wake(id);
        }
    }

    fn insert_stream(&mut self, owner: Ipv4Addr, stream: Stream) -> SocketId {
        let local = Some(stream.flow.src);
        let kind = Kind::Stream(Box::new(stream));
        self.slots.insert(Socket { owner, local, holds_port: false, announced: false, kind })
    }

    fn fail(&mut self, id: SocketId, error: NetError) {
        if let Ok(socket) = self.socket_mut(id) {
            socket.kind = Kind::Failed(error);
            self.wake(id);
        }
    }

    // Ending.

    pub(super) fn end_listener(&mut self, listener: Listener) {
        for id in listener.ready {
            self.abort(id);
        }
        for opener in listener.waiting {
            match opener {
                Opener::Local(client) => {
                    if matches!(self.socket(client).map(|s| &s.kind), Ok(Kind::Connecting(_))) {
                        self.fail(client, NetError::ConnectionRefused);
                    }
                }
                Opener::Remote(flow) => {
                    if listener.remote.get(&(flow.dst, flow.src)) == Some(&flow.serial) {
                        self.out.push_back(Out::Packet(Packet::TcpRefuse { flow: flow.reversed() }));
                    }
                }
            }
        }
    }

    pub(super) fn end_connecting(&mut self, connecting: Connecting) {
        if connecting.remote {
            self.connections.remove(&(connecting.flow.src, connecting.flow.dst));
            self.out.push_back(Out::Packet(Packet::TcpReset { flow: connecting.flow }));
        }
    }

    pub(super) fn end_stream(&mut self, mut stream: Stream, gently: bool) {
        let flow = stream.flow;
        match stream.peer {
            Peer::Gone => {}
            Peer::Local(peer) => {
                if let Ok(other) = self.stream(peer) {
                    other.rx_end |= gently;
                    other.break_off();
                    self.wake(peer);
                }
            }
            Peer::Remote => {
                self.connections.remove(&(flow.src, flow.dst));
                if gently {
                    while let Some(payload) = stream.tx.pop(MAX_CHUNK_SIZE) {
                        self.out.push_back(Out::Packet(Packet::TcpData { flow, payload }));
                    }
                    if !stream.fin_sent {
                        self.out.push_back(Out::Packet(Packet::TcpFin { flow }));
                    }
                }
                // A peer that still writes must learn that nobody reads, also when it waits for credit.
                if !gently || !stream.rx_end {
                    self.out.push_back(Out::Packet(Packet::TcpReset { flow }));
                }
            }
        }
    }

    /// Ends a connection with another cell at this end only.
    pub(super) fn break_remote(&mut self, id: SocketId) {
        let Ok(socket) = self.socket_mut(id) else { return };
        let flow = match &mut socket.kind {
            Kind::Stream(stream) => {
                stream.break_off();
                stream.flow
            }
            Kind::Connecting(connecting) => {
                let flow = connecting.flow;
                socket.kind = Kind::Failed(NetError::ConnectionReset);
                flow
            }
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) | Kind::Failed(_) => return,
        };
        self.connections.remove(&(flow.src, flow.dst));
        self.wake(id);
    }

    // Flow.

    /// Accounts for bytes that the owner has taken out of a stream.
    fn taken(&mut self, id: SocketId, size: usize) {
        let Ok(stream) = self.stream(id) else { return };
        let left = stream.rx.len();
        match stream.peer {
            Peer::Gone => {}
            Peer::Local(peer) => {
                if left <= WINDOW_SIZE - CREDIT_STEP
                    && let Ok(writer) = self.stream(peer)
                    && writer.blocked
                {
                    writer.blocked = false;
                    self.wake(peer);
                }
            }
            Peer::Remote => {
                stream.rx_taken += size;
                if stream.rx_taken >= CREDIT_STEP && !stream.rx_end {
                    let credit = u32::try_from(stream.rx_taken).expect("no more is taken than the window holds");
                    stream.rx_credit += stream.rx_taken;
                    stream.rx_taken = 0;
                    let flow = stream.flow;
                    self.out.push_back(Out::Packet(Packet::TcpWindow { flow, credit }));
                }
            }
        }
    }

    fn queue_stream(&mut self, id: SocketId) {
        if let Ok(stream) = self.stream(id)
            && !stream.tx_queued
        {
            stream.tx_queued = true;
            self.out.push_back(Out::Stream(id));
        }
    }

    /// Returns what a stream sends next: bytes, or its end.
    pub(super) fn next_of_stream(&mut self, id: SocketId) -> Option<Packet> {
        let stream = self.stream(id).ok()?;
        stream.tx_queued = false;
        if stream.peer != Peer::Remote {
            return None;
        }
        let flow = stream.flow;
        match stream.tx.pop(MAX_CHUNK_SIZE) {
            Some(payload) => {
                if !stream.tx.is_empty() || stream.tx_end {
                    self.queue_stream(id);
                }
                Some(Packet::TcpData { flow, payload })
            }
            None if stream.tx_end && !stream.fin_sent => {
                stream.fin_sent = true;
                Some(Packet::TcpFin { flow })
            }
            None => None,
        }
    }

    // Packets of other cells. `flow` is as their sender sees it.

    pub(super) fn on_open(&mut self, flow: Flow) {
        let key = (flow.dst, flow.src);
        if let Some(id) = self.connections.get(&key).copied() {
            if self.serial_of(id) == Some(flow.serial) {
                self.dropped.violations += 1;
                return;
            }
            // The peer has given up the connection that we still hold and opened another from the same port.
            self.break_remote(id);
        }
        let listener = self.holder(home_of(flow.dst.ip()), Protocol::Tcp, flow.dst);
        let taken = listener.is_some_and(|listener| self.ask(listener, Opener::Remote(flow)));
        if !taken {
            self.out.push_back(Out::Packet(Packet::TcpRefuse { flow: flow.reversed() }));
        }
    }

    pub(super) fn on_accept(&mut self, flow: Flow) {
        let Some(id) = self.known(flow) else {
            self.dropped.unknown += 1;
            self.out.push_back(Out::Packet(Packet::TcpReset { flow: flow.reversed() }));
            return;
        };
        match self.socket_mut(id) {
            Ok(socket) if matches!(socket.kind, Kind::Connecting(_)) => {
                socket.kind = Kind::Stream(Box::new(Stream::new(flow.reversed(), Peer::Remote)));
                self.wake(id);
            }
            Ok(_) | Err(_) => self.dropped.violations += 1,
        }
    }

    pub(super) fn on_refuse(&mut self, flow: Flow) {
        let connecting =
            self.known(flow).filter(|id| matches!(self.socket(*id).map(|s| &s.kind), Ok(Kind::Connecting(_))));
        match connecting {
            Some(id) => {
                self.connections.remove(&(flow.dst, flow.src));
                self.fail(id, NetError::ConnectionRefused);
            }
            None => self.dropped.unknown += 1,
        }
    }

    pub(super) fn on_data(&mut self, flow: Flow, payload: Bytes) {
        let Some(id) = self.known_stream(flow) else {
            self.dropped.unknown += 1;
            self.out.push_back(Out::Packet(Packet::TcpReset { flow: flow.reversed() }));
            return;
        };
        let size = payload.len();
        let Ok(stream) = self.stream(id) else { return };
        if stream.rx_end || size > stream.rx_credit || size > MAX_CHUNK_SIZE || size == 0 {
            return self.violated(id, flow);
        }
        stream.rx_credit -= size;
        if stream.rx_off {
            self.taken(id, size);
        } else {
            stream.rx.push(payload);
            self.wake(id);
        }
        self.count_received(home_of(flow.dst.ip()), size);
    }

    pub(super) fn on_window(&mut self, flow: Flow, credit: u32) {
        let Some(id) = self.known_stream(flow) else {
            self.dropped.unknown += 1;
            return;
        };
        let Ok(stream) = self.stream(id) else { return };
        let given = stream.tx_credit.saturating_add(credit as usize);
        // Credit is for bytes that were sent: it can neither be nothing nor exceed the window.
        if credit == 0 || given + stream.tx.len() > WINDOW_SIZE {
            return self.violated(id, flow);
        }
        stream.tx_credit = given;
        if stream.blocked {
            stream.blocked = false;
            self.wake(id);
        }
    }

    pub(super) fn on_fin(&mut self, flow: Flow) {
        let Some(id) = self.known_stream(flow) else {
            self.dropped.unknown += 1;
            return;
        };
        let Ok(stream) = self.stream(id) else { return };
        if stream.rx_end {
            return self.violated(id, flow);
        }
        stream.rx_end = true;
        self.wake(id);
    }

    pub(super) fn on_reset(&mut self, flow: Flow) {
        if let Some(id) = self.known(flow) {
            return self.break_remote(id);
        }
        let waiting =
            self.holder(home_of(flow.dst.ip()), Protocol::Tcp, flow.dst).and_then(|id| self.listener(id).ok());
        let key = (flow.dst, flow.src);
        match waiting {
            Some(listener) if listener.remote.get(&key) == Some(&flow.serial) => {
                listener.remote.remove(&key);
            }
            Some(_) | None => self.dropped.unknown += 1,
        }
    }

    fn violated(&mut self, id: SocketId, flow: Flow) {
        self.dropped.violations += 1;
        self.break_remote(id);
        self.out.push_back(Out::Packet(Packet::TcpReset { flow: flow.reversed() }));
    }

    fn known(&self, flow: Flow) -> Option<SocketId> {
        let id = *self.connections.get(&(flow.dst, flow.src))?;
        (self.serial_of(id) == Some(flow.serial)).then_some(id)
    }

    fn known_stream(&self, flow: Flow) -> Option<SocketId> {
        self.known(flow).filter(|id| matches!(self.socket(*id).map(|s| &s.kind), Ok(Kind::Stream(_))))
    }

    fn serial_of(&self, id: SocketId) -> Option<u32> {
        match &self.socket(id).ok()?.kind {
            Kind::Stream(stream) => Some(stream.flow.serial),
            Kind::Connecting(connecting) => Some(connecting.flow.serial),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) | Kind::Failed(_) => None,
        }
    }

    fn stream(&mut self, id: SocketId) -> Result<&mut Stream, NetError> {
        match &mut self.socket_mut(id)?.kind {
            Kind::Stream(stream) => Ok(stream),
            Kind::Udp(_) | Kind::Idle | Kind::Listening(_) | Kind::Connecting(_) | Kind::Failed(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    fn listener(&mut self, id: SocketId) -> Result<&mut Listener, NetError> {
        match &mut self.socket_mut(id)?.kind {
            Kind::Listening(listener) => Ok(listener),
            Kind::Udp(_) | Kind::Idle | Kind::Stream(_) | Kind::Connecting(_) | Kind::Failed(_) => {
                Err(NetError::InvalidState)
            }
        }
    }

    fn listener_ref(&self, id: SocketId) -> Option<&Listener> {
        match &self.socket(id).ok()?.kind {
            Kind::Listening(listener) => Some(listener),
            Kind::Udp(_) | Kind::Idle | Kind::Stream(_) | Kind::Connecting(_) | Kind::Failed(_) => None,
        }
    }
}
