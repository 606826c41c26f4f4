//! Connections, and those who wait for them.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionError, ConnectionId, DialError as SwarmDialError};
use libp2p::{Multiaddr, PeerId, ping};
use tokio::sync::oneshot;

use super::{Connection, Peer, Task};
use crate::addr::{is_loopback, is_relayed, peer_of, to_peer, with_peer, without_peer};
use crate::error::DialError;
use crate::event::NetEvent;
use crate::swarm::MAX_CONNECTIONS_PER_PEER;

/// Causes that one error message names; the rest are counted.
const MAX_CAUSES: usize = 3;

type Reply = oneshot::Sender<Result<PeerId, DialError>>;

/// Dials in progress that somebody waits for.
#[derive(Default)]
pub(super) struct Dials(BTreeMap<ConnectionId, Waiting>);

struct Waiting {
    /// The peer that was dialled; none where only an address was given.
    peer: Option<PeerId>,
    /// There is a relayed connection; the caller is content with it when no direct one comes.
    relayed: bool,
    /// Loopback addresses, to be dialled when the others have failed.
    last_resort: Vec<Multiaddr>,
    /// Who waits; nobody where the node itself keeps a connection up.
    reply: Option<Reply>,
}

impl Waiting {
    fn answer(self, result: Result<PeerId, DialError>) {
        if let Some(reply) = self.reply {
            // A caller that is gone does not want to know.
            let _ = reply.send(result);
        }
    }
}

impl Task {
    /// Dials a peer at the given addresses and those known here, unless it is connected. A relayed connection does not
    /// keep direct addresses from being tried.
    pub(super) fn dial(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, reply: Option<Reply>) {
        let connected = self.swarm.is_connected(&peer);
        let relayed = connected && self.peers.get(&peer).is_some_and(Peer::is_relayed);
        let mut waiting = Waiting { peer: Some(peer), relayed, last_resort: Vec::new(), reply };
        if peer == *self.local_peer() {
            return waiting.answer(Err(DialError::Own));
        }
        let mut addrs = match connected {
            true => addrs.into_iter().filter(|addr| relayed && !is_relayed(addr)).collect(),
            false => [addrs, self.known_addrs(&peer)].concat(),
        };
        self.make_dialable(peer, &mut addrs);
        if addrs.is_empty() {
            return waiting.answer(match connected {
                true => Ok(peer),
                false => Err(DialError::NoAddress { peer: to_peer(&peer) }),
            });
        }
        if addrs.iter().any(|addr| !is_loopback(addr)) {
            waiting.last_resort = addrs.extract_if(.., |addr| is_loopback(addr)).collect();
        }
        self.dial_now(peer, addrs, waiting);
    }

    /// Dials addresses all at once. The first that answers decides: if that is another peer, the dial has failed.
    fn dial_now(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, waiting: Waiting) {
        let condition = if waiting.relayed { PeerCondition::Always } else { PeerCondition::Disconnected };
        let opts = DialOpts::peer_id(peer).condition(condition).addresses(addrs).build();
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => drop(self.dials.0.insert(connection, waiting)),
            Err(_) if self.swarm.is_connected(&peer) => waiting.answer(Ok(peer)),
            Err(error) => waiting.answer(Err(translate(Some(peer), error))),
        }
    }

    /// Returns what the book and the DHT's routing table know of a peer.
    fn known_addrs(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut addrs = self.book.get(peer);
        addrs.extend(self.kad_addrs(peer));
        addrs
    }

    /// Completes addresses with the peer, and drops repetitions, addresses of others and the node's own.
    fn make_dialable(&self, peer: PeerId, addrs: &mut Vec<Multiaddr>) {
        let mut seen = BTreeSet::new();
        let own = self.swarm.listeners().collect::<BTreeSet<_>>();
        *addrs = std::mem::take(addrs)
            .into_iter()
            .map(|addr| with_peer(addr, peer))
            .filter(|addr| peer_of(addr) == Some(peer) && !own.contains(&without_peer(addr.clone())))
            .filter(|addr| seen.insert(addr.clone()))
            .collect();
    }

    /// Dials an address that does not say whose it is.
    pub(super) fn dial_addr(&mut self, addr: Multiaddr, reply: Reply) {
        let opts = DialOpts::unknown_peer_id().address(addr).build();
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                let waiting = Waiting { peer: None, relayed: false, last_resort: Vec::new(), reply: Some(reply) };
                self.dials.0.insert(connection, waiting);
            }
            // A caller that is gone does not want to know.
            Err(error) => drop(reply.send(Err(translate(None, error)))),
        }
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let addr = endpoint.get_remote_address().clone();
        let relayed = endpoint.is_relayed() || is_relayed(&addr);
        if endpoint.is_dialer() {
            self.book.add(peer, addr.clone());
        }
        let state = self.peers.entry(peer).or_default();
        let news = state.connections.is_empty() || (state.is_relayed() && !relayed);
        state.connections.insert(id, Connection { addr: addr.clone(), relayed });
        let too_many = state.connections.len().saturating_sub(MAX_CONNECTIONS_PER_PEER);
        for oldest in state.connections.keys().take(too_many) {
            self.swarm.close_connection(*oldest);
        }
        if news {
            self.emit(NetEvent::Connected { peer: to_peer(&peer), addr: addr.to_string(), relayed });
        }
        self.on_known_connected(&peer);
        let waiting = std::mem::take(&mut self.dials.0);
        for (connection, waiting) in waiting {
            let enough = !(waiting.relayed && relayed);
            if connection == id || (waiting.peer == Some(peer) && enough) {
                waiting.answer(Ok(peer));
            } else {
                self.dials.0.insert(connection, waiting);
            }
        }
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId, cause: Option<ConnectionError>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.connections.remove(&id);
        if state.connections.is_empty() {
            self.peers.remove(&peer);
            tracing::debug!(%peer, ?cause, "disconnected");
            self.emit(NetEvent::Disconnected { peer: to_peer(&peer) });
            self.on_known_disconnected(&peer);
        }
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: SwarmDialError) {
        if let (Some(peer), SwarmDialError::WrongPeerId { address, .. }) = (peer, &error) {
            self.book.remove(&peer, address);
        }
        let Some(mut waiting) = self.dials.0.remove(&id) else {
            tracing::debug!(?peer, %error, "dial failed");
            return;
        };
        let last_resort = std::mem::take(&mut waiting.last_resort);
        match waiting.peer {
            Some(peer) if !last_resort.is_empty() => self.dial_now(peer, last_resort, waiting),
            Some(peer) if waiting.relayed && self.swarm.is_connected(&peer) => waiting.answer(Ok(peer)),
            peer => waiting.answer(Err(translate(peer, error))),
        }
    }

    /// Closes connections whose other end does not answer; TCP alone would notice after hours.
    pub(super) fn on_ping(&mut self, event: ping::Event) {
        if let Err(ping::Failure::Timeout) = event.result {
            tracing::warn!(peer = %event.peer, "no answer to pings: connection closed");
            self.swarm.close_connection(event.connection);
        }
    }
}

fn translate(peer: Option<PeerId>, error: SwarmDialError) -> DialError {
    match error {
        SwarmDialError::LocalPeerId { .. } => DialError::Own,
        SwarmDialError::NoAddresses => match peer {
            Some(peer) => DialError::NoAddress { peer: to_peer(&peer) },
            None => DialError::Unreachable { tried: 0, reason: "the address is this node's own".into() },
        },
        SwarmDialError::WrongPeerId { obtained, address } => {
            DialError::WrongPeer { addr: address.to_string(), actual: to_peer(&obtained) }
        }
        SwarmDialError::Denied { cause } => DialError::Refused { reason: cause.to_string() },
        SwarmDialError::Aborted => DialError::Unreachable { tried: 1, reason: "the attempt was aborted".into() },
        SwarmDialError::DialPeerConditionFalse(_) => {
            DialError::Refused { reason: "a connection was made meanwhile".into() }
        }
        SwarmDialError::Transport(causes) => {
            let named = causes.iter().take(MAX_CAUSES).map(|(addr, cause)| format!("{addr}: {}", innermost(cause)));
            DialError::Unreachable { tried: causes.len(), reason: named.collect::<Vec<_>>().join("; ") }
        }
    }
}

/// Returns what the lowest layer said; the layers above only say "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
