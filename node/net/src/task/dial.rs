//! Connections, and those who wait for them.

use std::collections::BTreeMap;

use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionError, ConnectionId, DialError as SwarmDialError};
use libp2p::{Multiaddr, PeerId, ping};
use tokio::sync::oneshot;

use super::{Connection, Task};
use crate::addr::{is_relayed, peer_of, to_peer, with_peer};
use crate::error::DialError;
use crate::event::NetEvent;

/// Causes that one error message names; the rest are counted.
const MAX_CAUSES: usize = 3;

type Reply = oneshot::Sender<Result<PeerId, DialError>>;

/// Dials in progress that somebody waits for.
#[derive(Default)]
pub(super) struct Dials(BTreeMap<ConnectionId, Waiting>);

struct Waiting {
    /// The peer that was dialled; none where only an address was given.
    peer: Option<PeerId>,
    reply: Reply,
}

impl Task {
    /// Dials a peer at the given addresses and those known here, unless it is connected.
    pub(super) fn dial(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, reply: Reply) {
        let result = if peer == *self.local_peer() {
            Err(DialError::Own)
        } else if self.swarm.is_connected(&peer) {
            Ok(peer)
        } else {
            let opts = self.dial_opts(peer, addrs);
            let connection = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    self.dials.0.insert(connection, Waiting { peer: Some(peer), reply });
                    return;
                }
                Err(error) => Err(translate(Some(peer), error)),
            }
        };
        // A caller that is gone does not want to know.
        let _ = reply.send(result);
    }

    /// Dials a peer that nobody waits for.
    pub(super) fn dial_in_background(&mut self, peer: PeerId) {
        let opts = self.dial_opts(peer, Vec::new());
        if let Err(error) = self.swarm.dial(opts) {
            tracing::debug!(%peer, %error, "not dialled");
        }
    }

    fn dial_opts(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> DialOpts {
        let mut all = addrs
            .into_iter()
            .map(|addr| with_peer(addr, peer))
            .filter(|addr| peer_of(addr) == Some(peer))
            .collect::<Vec<_>>();
        for addr in self.book.get(&peer) {
            if !all.contains(&addr) {
                all.push(addr);
            }
        }
        DialOpts::peer_id(peer)
            .condition(PeerCondition::Disconnected)
            .addresses(all)
            .extend_addresses_through_behaviour()
            .build()
    }

    /// Dials an address that does not say whose it is.
    pub(super) fn dial_addr(&mut self, addr: Multiaddr, reply: Reply) {
        let opts = DialOpts::unknown_peer_id().address(addr).build();
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.0.insert(connection, Waiting { peer: None, reply });
            }
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
        if news {
            self.emit(NetEvent::Connected { peer: to_peer(&peer), addr: addr.to_string(), relayed });
        }
        self.on_known_connected(&peer);
        let waiting = std::mem::take(&mut self.dials.0);
        for (connection, waiting) in waiting {
            if connection == id || waiting.peer == Some(peer) {
                // A caller that is gone does not want to know.
                let _ = waiting.reply.send(Ok(peer));
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
        match self.dials.0.remove(&id) {
            // A caller that is gone does not want to know.
            Some(waiting) => drop(waiting.reply.send(Err(translate(waiting.peer, error)))),
            None => tracing::debug!(?peer, %error, "dial failed"),
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
