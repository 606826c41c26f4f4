//! Connections, and those who wait for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionError, ConnectionId, DialError as SwarmDialError};
use libp2p::{Multiaddr, PeerId, ping};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Connection, Peer, Task};
use crate::addr::{is_loopback, is_relayed, peer_of, to_peer, with_peer, without_peer};
use crate::error::DialError;
use crate::event::NetEvent;
use crate::swarm::MAX_CONNECTIONS_PER_PEER;

/// Causes that one error message names; the rest are counted.
const MAX_CAUSES: usize = 3;

type Reply = oneshot::Sender<Result<PeerId, DialError>>;

/// Time in which direct addresses may answer before those at relays are dialled too, and in which a direct connection may
/// take the place of a relayed one: a direct handshake takes three or four round trips.
const HEAD_START: Duration = Duration::from_secs(1);
/// A peer that is reached by way of a relay alone is dialled directly again after so long, when somebody wants it.
const DIRECT_AGAIN: Duration = Duration::from_secs(30);

/// Dials in progress.
#[derive(Default)]
pub(super) struct Dials {
    waiting: BTreeMap<u64, Waiting>,
    started: u64,
    /// When peers with a relayed connection only were dialled directly.
    upgraded: BTreeMap<PeerId, Instant>,
}

impl Dials {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.until).min()
    }
}

/// A dial that somebody may wait for.
struct Waiting {
    /// The peer that was dialled; none where only an address was given.
    peer: Option<PeerId>,
    /// There is a relayed connection; the caller is content with it when no direct one comes.
    relayed: bool,
    /// What is being dialled.
    attempts: BTreeSet<ConnectionId>,
    /// What is dialled when that has failed, in this order.
    rest: VecDeque<Stage>,
    /// When the next stage begins though nothing has failed yet; or, where there is a relayed connection, when that is enough.
    until: Option<Instant>,
    /// What has failed.
    errors: Vec<DialError>,
    /// Who waits; nobody where the node itself keeps a connection up.
    reply: Option<Reply>,
}

/// Addresses that are dialled at once.
struct Stage {
    addrs: Vec<Multiaddr>,
    /// It begins after [`HEAD_START`] at the latest, not only when those before have failed.
    impatient: bool,
}

impl Waiting {
    fn new(peer: Option<PeerId>, relayed: bool, reply: Option<Reply>) -> Waiting {
        let (attempts, rest) = (BTreeSet::new(), VecDeque::new());
        Waiting { peer, relayed, attempts, rest, until: None, errors: Vec::new(), reply }
    }

    fn answer(self, result: Result<PeerId, DialError>) {
        if let Some(reply) = self.reply {
            // A caller that is gone does not want to know.
            let _ = reply.send(result);
        }
    }

    fn fail(mut self) {
        let error = all_of(std::mem::take(&mut self.errors));
        self.answer(Err(error));
    }
}

/// Puts addresses in the order in which they are dialled: direct ones, then those at relays, then loopback, which on another
/// machine leads somewhere else; it comes first where there is no other direct one.
fn stages(addrs: Vec<Multiaddr>) -> VecDeque<Stage> {
    let (via, direct): (Vec<_>, Vec<_>) = addrs.into_iter().partition(is_relayed);
    let (near, far): (Vec<_>, Vec<_>) = direct.into_iter().partition(is_loopback);
    let via = (via, true);
    let order = if far.is_empty() { vec![(near, false), via] } else { vec![(far, false), via, (near, false)] };
    let stages = order.into_iter().filter(|(addrs, _)| !addrs.is_empty());
    stages.map(|(addrs, impatient)| Stage { addrs, impatient }).collect()
}

impl Task {
    /// Dials a peer at the given addresses and those known here, unless it is connected. A relayed connection does not
    /// keep direct addresses from being tried.
    pub(super) fn dial(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, reply: Option<Reply>) {
        let connected = self.swarm.is_connected(&peer);
        let relayed = connected && self.peers.get(&peer).is_some_and(Peer::is_relayed);
        let mut waiting = Waiting::new(Some(peer), relayed, reply);
        if peer == *self.local_peer() {
            return waiting.answer(Err(DialError::Own));
        }
        let now = Instant::now();
        let lately = self.dials.upgraded.get(&peer).is_some_and(|at| now.saturating_duration_since(*at) < DIRECT_AGAIN);
        let mut addrs = match connected {
            true => addrs.into_iter().filter(|addr| relayed && !lately && !is_relayed(addr)).collect(),
            false => [addrs, self.known_addrs(&peer)].concat(),
        };
        self.make_dialable(peer, &mut addrs);
        if addrs.is_empty() {
            return waiting.answer(match connected {
                true => Ok(peer),
                false => Err(DialError::NoAddress { peer: to_peer(&peer) }),
            });
        }
        if relayed {
            self.dials.upgraded.insert(peer, now);
        }
        waiting.rest = stages(addrs);
        self.dial_next(waiting);
    }

    /// Dials the next addresses of a dial, all at once. The first that answers decides: if that is another peer, they have
    /// failed.
    fn dial_next(&mut self, mut waiting: Waiting) {
        let Some(peer) = waiting.peer else { return waiting.fail() };
        while let Some(stage) = waiting.rest.pop_front() {
            let condition = if waiting.relayed { PeerCondition::Always } else { PeerCondition::Disconnected };
            let opts = DialOpts::peer_id(peer).condition(condition).addresses(stage.addrs).build();
            let connection = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    waiting.attempts.insert(connection);
                    let impatient = waiting.relayed || waiting.rest.front().is_some_and(|next| next.impatient);
                    waiting.until = impatient.then(|| Instant::now() + HEAD_START);
                    return self.wait(waiting);
                }
                Err(_) if self.swarm.is_connected(&peer) => return waiting.answer(Ok(peer)),
                Err(error) => waiting.errors.push(translate(Some(peer), error)),
            }
        }
        if !waiting.attempts.is_empty() {
            waiting.until = None;
            return self.wait(waiting);
        }
        match waiting.relayed && self.swarm.is_connected(&peer) {
            true => waiting.answer(Ok(peer)),
            false => waiting.fail(),
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        self.dials.started += 1;
        self.dials.waiting.insert(self.dials.started, waiting);
    }

    /// Those who have waited long enough for a direct connection get a relayed one.
    pub(super) fn on_dial_deadline(&mut self, now: Instant) {
        let due = self.dials.waiting.iter().filter(|(_, waiting)| waiting.until.is_some_and(|until| until <= now));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(waiting) = self.dials.waiting.remove(&id) else { continue };
            match waiting.peer {
                // What is being dialled goes on.
                Some(peer) if waiting.relayed && self.swarm.is_connected(&peer) => waiting.answer(Ok(peer)),
                Some(_) | None => self.dial_next(waiting),
            }
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
                let mut waiting = Waiting::new(None, false, Some(reply));
                waiting.attempts.insert(connection);
                self.wait(waiting);
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
        state.connections.insert(
            id,
            Connection { addr: addr.clone(), relayed, dialled: endpoint.is_dialer(), since: Instant::now() },
        );
        let too_many = state.connections.len().saturating_sub(MAX_CONNECTIONS_PER_PEER);
        for oldest in state.connections.keys().take(too_many) {
            self.swarm.close_connection(*oldest);
        }
        if news {
            self.emit(NetEvent::Connected { peer: to_peer(&peer), addr: addr.to_string(), relayed });
        }
        self.on_known_connected(&peer);
        if !relayed {
            self.dials.upgraded.remove(&peer);
        }
        for (number, waiting) in std::mem::take(&mut self.dials.waiting) {
            let enough = !(waiting.relayed && relayed);
            if waiting.attempts.contains(&id) || (waiting.peer == Some(peer) && enough) {
                waiting.answer(Ok(peer));
            } else {
                self.dials.waiting.insert(number, waiting);
            }
        }
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId, cause: Option<ConnectionError>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.connections.remove(&id);
        if state.connections.is_empty() {
            self.peers.remove(&peer);
            self.dials.upgraded.remove(&peer);
            tracing::debug!(%peer, ?cause, "disconnected");
            self.emit(NetEvent::Disconnected { peer: to_peer(&peer) });
            self.on_known_disconnected(&peer);
        }
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: SwarmDialError) {
        if let (Some(peer), SwarmDialError::WrongPeerId { address, .. }) = (peer, &error) {
            self.book.remove(&peer, address);
        }
        let number = self.dials.waiting.iter().find(|(_, waiting)| waiting.attempts.contains(&id)).map(|(n, _)| *n);
        let Some(mut waiting) = number.and_then(|number| self.dials.waiting.remove(&number)) else {
            tracing::debug!(?peer, %error, "dial failed");
            return;
        };
        waiting.attempts.remove(&id);
        waiting.errors.push(translate(waiting.peer, error));
        match waiting.attempts.is_empty() {
            true => self.dial_next(waiting),
            false => self.wait(waiting),
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

/// Puts what several attempts said into one: that nobody answered only where it was so each time.
fn all_of(errors: Vec<DialError>) -> DialError {
    let mut all = None;
    for error in errors {
        all = Some(match (all, error) {
            (
                Some(DialError::Unreachable { tried, reason }),
                DialError::Unreachable { tried: further, reason: other },
            ) => DialError::Unreachable { tried: tried + further, reason: format!("{reason}; {other}") },
            (Some(first @ DialError::WrongPeer { .. }), DialError::Unreachable { .. }) => first,
            (_, last) => last,
        });
    }
    all.unwrap_or(DialError::Unreachable { tried: 0, reason: "nothing was dialled".into() })
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
