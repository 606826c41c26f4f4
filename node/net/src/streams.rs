//! The behaviour behind `Net::open` and `Net::accept`.
//!
//! Opening: the newest direct connection to the peer is taken, a relayed one only where there is no direct one (relays
//! may cut a circuit, and a cut looks like an end of file). The newest, because an older one may belong to an earlier
//! life of the peer and not be known dead yet. Each connection negotiates many streams at once.
//!
//! Accepting: protocols are registered at run time, each with one bounded queue. A stream that finds the queue full
//! waits in its connection's handler until there is room; nothing is dropped. For protocols of our own (`/iptl/…`) the
//! acceptor then writes one byte, [`ADMITTED`], and only with it does the opener's `open` return: so a full queue holds
//! the opener back, and [`REFUSED`] tells it that the limit on streams of one peer is reached or that the queue did not
//! move for [`ADMISSION_TIMEOUT`]. Protocols of other people have no such byte: their openers go on at once, and a
//! refused stream is reset.
//!
//! The handler of one connection is in `streams/handler.rs`.

mod handler;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, RwLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use iptl_dag::PeerId as OurPeerId;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::addr::{is_relayed, to_peer};
use crate::stream::Stream;
pub(crate) use handler::{Handler, NoStream, Open, Opened};

/// Written by the acceptor of an `/iptl/…` stream when it has a place in the queue.
pub(crate) const ADMITTED: u8 = 1;
/// Written by the acceptor of an `/iptl/…` stream that it has no place for.
pub(crate) const REFUSED: u8 = 0;
/// Streams that wait longer than this for a place in their queue are refused: as long as openers wait.
pub(crate) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest number of streams one peer may have open towards us. Below the 4,096 streams at which a yamux connection
/// breaks, with room for as many of ours, so that this limit is the one that is met.
pub(crate) const MAX_INBOUND_STREAMS_PER_PEER: usize = 1_024;
/// Streams that we have open on one connection; further ones wait. The peer's limit, for the same reason.
pub(crate) const MAX_OUTBOUND_STREAMS_PER_CONNECTION: usize = 1_024;

/// Returns whether the acceptor of this protocol says when it has admitted a stream.
pub(crate) fn is_admitted(protocol: &str) -> bool {
    protocol.starts_with("/iptl/")
}

/// The protocols accepted now, each with the queue that its streams go to.
type Acceptors = HashMap<StreamProtocol, mpsc::Sender<(OurPeerId, Stream)>>;

/// The protocols accepted by this node; shared by all connections, changed by `accept`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Protocols(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    acceptors: Arc<Acceptors>,
    /// The node was shut down: nothing is registered any more.
    closed: bool,
}

/// Why a protocol is not registered.
#[derive(Debug)]
pub(crate) enum NotRegistered {
    /// It is already.
    Taken,
    /// The node was shut down.
    Closed,
}

impl Protocols {
    /// Registers a protocol, unless it is registered.
    pub(crate) fn register(
        &self,
        protocol: StreamProtocol,
        queue: mpsc::Sender<(OurPeerId, Stream)>,
    ) -> Result<Registration, NotRegistered> {
        let mut table = self.0.write().unwrap_or_else(|poison| poison.into_inner());
        if table.closed {
            return Err(NotRegistered::Closed);
        }
        if table.acceptors.contains_key(&protocol) {
            return Err(NotRegistered::Taken);
        }
        Arc::make_mut(&mut table.acceptors).insert(protocol.clone(), queue);
        Ok(Registration { protocols: Arc::downgrade(&self.0), protocol })
    }

    /// Ends all registrations, and with them the queues, for a node that is shut down.
    pub(crate) fn close(&self) {
        let closed = Table { acceptors: Arc::default(), closed: true };
        *self.0.write().unwrap_or_else(|poison| poison.into_inner()) = closed;
    }

    fn snapshot(&self) -> Arc<Acceptors> {
        self.0.read().unwrap_or_else(|poison| poison.into_inner()).acceptors.clone()
    }
}

/// Keeps a protocol registered until it is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    protocols: Weak<RwLock<Table>>,
    protocol: StreamProtocol,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(protocols) = self.protocols.upgrade() {
            let mut table = protocols.write().unwrap_or_else(|poison| poison.into_inner());
            Arc::make_mut(&mut table.acceptors).remove(&self.protocol);
        }
    }
}

/// The connections of one peer.
#[derive(Debug)]
struct PeerConnections {
    connections: Vec<Connection>,
    /// Places for inbound streams, shared by all connections of the peer.
    places: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    id: ConnectionId,
    relayed: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Behaviour {
    protocols: Protocols,
    peers: BTreeMap<PeerId, PeerConnections>,
    inbound_per_peer: usize,
    commands: VecDeque<(PeerId, ConnectionId, Open)>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Makes the behaviour; `inbound_per_peer` is cut to [`MAX_INBOUND_STREAMS_PER_PEER`].
    pub(crate) fn new(protocols: Protocols, inbound_per_peer: usize) -> Behaviour {
        Behaviour {
            protocols,
            peers: BTreeMap::new(),
            inbound_per_peer: inbound_per_peer.min(MAX_INBOUND_STREAMS_PER_PEER),
            commands: VecDeque::new(),
            waker: None,
        }
    }

    /// Starts opening a stream.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        protocol: StreamProtocol,
        reply: oneshot::Sender<Result<Opened, NoStream>>,
    ) {
        let Some(connection) = self.best_connection(&peer) else {
            // An opener that is gone does not want to know.
            let _ = reply.send(Err(NoStream::NotConnected));
            return;
        };
        self.commands.push_back((peer, connection, Open { protocol, reply }));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn best_connection(&self, peer: &PeerId) -> Option<ConnectionId> {
        let connections = &self.peers.get(peer)?.connections;
        connections.iter().max_by_key(|connection| (!connection.relayed, connection.id)).map(|connection| connection.id)
    }

    fn handler(&mut self, peer: PeerId, relayed: bool) -> Handler {
        let places = self.peers.entry(peer).or_insert_with(|| PeerConnections {
            connections: Vec::new(),
            places: Arc::new(Semaphore::new(self.inbound_per_peer)),
        });
        Handler::new(to_peer(&peer), relayed, self.protocols.clone(), places.places.clone())
    }

    /// Forgets peers that no connection was made to after all.
    fn forget_unconnected(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(|peer| peer.connections.is_empty()) {
            self.peers.remove(peer);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, is_relayed(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, is_relayed(remote)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                if let Some(peer) = self.peers.get_mut(&event.peer_id) {
                    let relayed = event.endpoint.is_relayed();
                    peer.connections.push(Connection { id: event.connection_id, relayed });
                }
            }
            FromSwarm::ConnectionClosed(event) => {
                if let Some(peer) = self.peers.get_mut(&event.peer_id) {
                    peer.connections.retain(|connection| connection.id != event.connection_id);
                }
                self.forget_unconnected(&event.peer_id);
            }
            FromSwarm::DialFailure(event) => {
                if let Some(peer) = event.peer_id {
                    self.forget_unconnected(&peer);
                }
            }
            FromSwarm::ListenFailure(event) => {
                if let Some(peer) = event.peer_id {
                    self.forget_unconnected(&peer);
                }
            }
            // Addresses and listeners are other behaviours' business; the enum is libp2p's and grows.
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection, event)) = self.commands.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
