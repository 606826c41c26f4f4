//! Places at relays that the node asks for by itself, while nobody can reach it directly.
//!
//! The relays are named by the node's user, and they are also its witnesses: what counts is how they see this node. One that
//! sees it at an address that is none of its own sees a NAT; one that dials it back (AutoNAT v2) reaches it. Whom no relay
//! has reached for [`GRACE`] has something before it that lets nobody in.
//!
//! AutoNAT tests an address once: a node that was reached counts as such until its relays see it elsewhere.
//!
//! A place is renewed by the relay client. When it is lost, another relay is asked at once, and this one again after a
//! pause. Once a relay reaches the node, the places are given back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{FromSwarm, NetworkBehaviour as _, NewExternalAddrCandidate};
use libp2p::{Multiaddr, PeerId, autonat, relay};
use tokio::time::Instant;

use super::Task;
use super::listen::Listener;
use crate::addr::{from_peer, ip_of, is_loopback, is_relayed, parse, to_peer, with_peer, without_peer};
use crate::error::AddrError;
use crate::event::{Place, Reach, Reached};

/// Places at a time: one that is left when a relay goes, and no more, as each is announced and tried.
const MAX_PLACES: usize = 2;
/// Relays that are remembered: as many as a lab has orchestrators, and some that the owner names.
const MAX_RELAYS: usize = 64;
/// Time for a relay to reach this node before it counts as one that nobody reaches. AutoNAT asks every 5 s for one address,
/// and a dial into nothing takes 10 s.
const GRACE: Duration = Duration::from_secs(20);
/// First pause before a relay that refused, or went, is asked again; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a relay that comes back is used again within it.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The relays of the node, in the order in which they are asked.
#[derive(Default)]
pub(super) struct Reserve {
    relays: Vec<Relay>,
    /// Addresses at which a relay has reached this node.
    confirmed: BTreeSet<Multiaddr>,
    /// Since when relays see this node at its own address and have not reached it.
    unconfirmed_since: Option<Instant>,
    reached: Option<Reached>,
}

struct Relay {
    peer: PeerId,
    addrs: Vec<Multiaddr>,
    state: State,
    /// Pause after the next failure.
    pause: Duration,
}

#[derive(Clone, Copy)]
enum State {
    /// Not asked, and not before this.
    Free { not_before: Option<Instant> },
    /// Asked.
    Asked { listener: ListenerId },
    /// It gave a place, and renewed it so many times.
    Given { listener: ListenerId, renewed: u64 },
}

impl Relay {
    fn new(peer: PeerId) -> Relay {
        Relay { peer, addrs: Vec::new(), state: State::Free { not_before: None }, pause: MIN_PAUSE }
    }

    fn listener(&self) -> Option<ListenerId> {
        match self.state {
            State::Free { .. } => None,
            State::Asked { listener } | State::Given { listener, .. } => Some(listener),
        }
    }
}

impl Reserve {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiting = || {
            self.relays.iter().filter_map(|relay| match relay.state {
                State::Free { not_before } => not_before,
                State::Asked { .. } | State::Given { .. } => None,
            })
        };
        let taken = self.relays.iter().filter(|relay| relay.listener().is_some()).count();
        match self.reached {
            Some(Reached::Relayed) if taken < MAX_PLACES => waiting().min(),
            Some(Reached::Relayed) => None,
            Some(Reached::Directly) | None => self.unconfirmed_since.map(|since| since + GRACE),
        }
    }
}

impl Task {
    /// Names the relays that may be asked, best first; those named before keep their places.
    pub(super) fn set_relays(&mut self, relays: Vec<(iptl_dag::PeerId, Vec<String>)>) -> Result<(), AddrError> {
        let mut before = std::mem::take(&mut self.reserve.relays);
        let local = *self.local_peer();
        for (peer, addrs) in relays.into_iter().take(MAX_RELAYS) {
            let Some(peer) = from_peer(&peer).filter(|peer| *peer != local) else { continue };
            if self.reserve.relays.iter().any(|relay| relay.peer == peer) {
                continue;
            }
            let addrs = addrs.iter().map(|addr| parse(addr).map(without_peer)).collect::<Result<Vec<_>, _>>();
            let known = before.iter().position(|relay| relay.peer == peer).map(|at| before.swap_remove(at));
            let mut relay = known.unwrap_or_else(|| Relay::new(peer));
            match addrs {
                Ok(addrs) => relay.addrs = addrs.into_iter().filter(|addr| !is_relayed(addr)).collect(),
                Err(error) => {
                    self.reserve.relays.push(relay);
                    self.reserve.relays.append(&mut before);
                    return Err(error);
                }
            }
            self.reserve.relays.push(relay);
        }
        for gone in before.iter().filter_map(Relay::listener) {
            self.swarm.remove_listener(gone);
        }
        self.test_own_addrs();
        self.on_reserve_deadline(Instant::now());
        Ok(())
    }

    /// Tells how this node is reached.
    pub(super) fn reach(&self) -> Reach {
        let places = self.reserve.relays.iter().filter_map(|relay| match relay.state {
            State::Given { renewed, .. } => Some(Place { relay: to_peer(&relay.peer), renewed }),
            State::Free { .. } | State::Asked { .. } => None,
        });
        Reach { reached: self.reserve.reached, places: places.collect(), relays: self.serves_as_relay }
    }

    /// A peer told at which address it sees this node.
    pub(super) fn on_observed(&mut self, peer: PeerId, observed: Multiaddr) {
        if is_relayed(&observed) {
            return;
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            state.observed = Some(observed);
        }
        if self.reserve.relays.iter().any(|relay| relay.peer == peer) {
            self.test_own_addrs();
            self.on_reserve_deadline(Instant::now());
        }
    }

    /// Returns the addresses at which relays see this node.
    fn observed(&self) -> impl Iterator<Item = &Multiaddr> {
        let relays = self.reserve.relays.iter();
        relays.filter_map(|relay| self.peers.get(&relay.peer)?.observed.as_ref())
    }

    fn own_ips(&self) -> BTreeSet<IpAddr> {
        self.swarm.listeners().filter(|addr| !is_relayed(addr)).filter_map(ip_of).collect()
    }

    /// Has AutoNAT test the addresses at which this node may be reached, and hole punching use those that relays see.
    ///
    /// What is listened on counts as confirmed in the swarm (see `listen`), which then tests nothing and calls from nowhere
    /// where a firewall keeps others out. And identify puts the port that is listened on in place of the one that was seen,
    /// which is wrong behind a NAT that chooses ports itself.
    fn test_own_addrs(&mut self) {
        let own = self.own_ips();
        let observed: BTreeSet<Multiaddr> = self.observed().cloned().collect();
        if observed.is_empty() {
            return;
        }
        let seen: BTreeSet<IpAddr> = observed.iter().filter_map(ip_of).collect();
        let outside = observed.into_iter().filter(|addr| ip_of(addr).is_some_and(|ip| !own.contains(&ip)));
        let outside: Vec<Multiaddr> = outside.collect();
        let told = self.told_addrs().cloned().collect::<Vec<_>>();
        let behaviour = self.swarm.behaviour_mut();
        let untested = if outside.is_empty() { &told } else { &outside };
        for addr in untested.iter().filter(|addr| !self.reserve.confirmed.contains(*addr)) {
            let candidate = || FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr });
            behaviour.autonat_client.on_swarm_event(candidate());
            // Of its own addresses, those at which it is seen.
            if ip_of(addr).is_some_and(|ip| seen.contains(&ip)) {
                behaviour.dcutr.on_swarm_event(candidate());
            }
        }
    }

    /// Says whether a relay reaches this node; nothing where that is not known yet.
    fn is_reached(&mut self, now: Instant) -> Option<Reached> {
        let own = self.own_ips();
        let seen: BTreeSet<IpAddr> = self.observed().filter_map(ip_of).collect();
        if seen.is_empty() {
            // No relay is connected: what was known last is the best that is known.
            self.reserve.unconfirmed_since = None;
            return self.reserve.reached;
        }
        let holds = |addr: &Multiaddr| ip_of(addr).is_some_and(|ip| own.contains(&ip) || seen.contains(&ip));
        if self.reserve.confirmed.iter().any(holds) {
            self.reserve.unconfirmed_since = None;
            return Some(Reached::Directly);
        }
        if seen.iter().any(|ip| !own.contains(ip)) {
            self.reserve.unconfirmed_since = None;
            return Some(Reached::Relayed);
        }
        let since = *self.reserve.unconfirmed_since.get_or_insert(now);
        let waited = now.saturating_duration_since(since) >= GRACE;
        if waited { Some(Reached::Relayed) } else { self.reserve.reached }
    }

    pub(super) fn on_reserve_deadline(&mut self, now: Instant) {
        if self.reserve.relays.is_empty() {
            return;
        }
        let reached = self.is_reached(now);
        if reached != self.reserve.reached {
            tracing::info!(?reached, "how this node is reached");
            self.reserve.reached = reached;
        }
        match reached {
            None => {}
            Some(Reached::Directly) => {
                for listener in self.reserve.relays.iter().filter_map(Relay::listener).collect::<Vec<_>>() {
                    self.swarm.remove_listener(listener);
                }
            }
            Some(Reached::Relayed) => self.ask_relays(now),
        }
    }

    fn ask_relays(&mut self, now: Instant) {
        let by_hand = self.relays_by_hand();
        let taken = self.reserve.relays.iter().filter(|relay| relay.listener().is_some()).count() + by_hand.len();
        let mut free = MAX_PLACES.saturating_sub(taken);
        for at in 0..self.reserve.relays.len() {
            let relay = &self.reserve.relays[at];
            let due = match relay.state {
                State::Free { not_before } => not_before.is_none_or(|then| then <= now),
                State::Asked { .. } | State::Given { .. } => false,
            };
            if free == 0 || !due || by_hand.contains(&relay.peer) {
                continue;
            }
            let peer = relay.peer;
            let Some(addr) = self.addr_of_relay(&peer).or_else(|| relay.addrs.first().cloned()) else {
                self.free_place(at, now);
                continue;
            };
            let asked = with_peer(addr, peer).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(asked.clone()) {
                Ok(listener) => {
                    free -= 1;
                    self.listeners.insert(listener, Listener::at_relay(asked, peer));
                    self.reserve.relays[at].state = State::Asked { listener };
                }
                Err(error) => {
                    tracing::warn!(relay = %peer, %error, "no place at a relay");
                    self.free_place(at, now);
                }
            }
        }
    }

    /// Returns the address at which this node has dialled a relay: one that is there to be dialled.
    fn addr_of_relay(&self, relay: &PeerId) -> Option<Multiaddr> {
        let connections = self.peers.get(relay)?.connections.values();
        let mut dialled = connections.filter(|connection| connection.dialled && !connection.relayed);
        dialled.next().map(|connection| without_peer(connection.addr.clone()))
    }

    /// This node listens on other addresses than before.
    pub(super) fn on_told_addrs_changed(&mut self) {
        self.test_own_addrs();
        self.on_reserve_deadline(Instant::now());
    }

    /// A relay gave a place, or renewed it.
    pub(super) fn on_relay_client(&mut self, event: &relay::client::Event) {
        tracing::debug!(?event, "relay client");
        let relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, .. } = event else { return };
        let Some(relay) = self.reserve.relays.iter_mut().find(|relay| relay.peer == *relay_peer_id) else { return };
        relay.pause = MIN_PAUSE;
        relay.state = match relay.state {
            State::Asked { listener } => State::Given { listener, renewed: 0 },
            State::Given { listener, renewed } => State::Given { listener, renewed: renewed + u64::from(*renewal) },
            free @ State::Free { .. } => free,
        };
    }

    /// The place at a relay is gone, or was refused.
    pub(super) fn on_place_gone(&mut self, relay: PeerId, listener: ListenerId) {
        let place = self.reserve.relays.iter().position(|one| one.peer == relay && one.listener() == Some(listener));
        if let Some(at) = place {
            let now = Instant::now();
            self.free_place(at, now);
            self.on_reserve_deadline(now);
        }
    }

    fn free_place(&mut self, at: usize, now: Instant) {
        let relay = &mut self.reserve.relays[at];
        relay.state = State::Free { not_before: Some(now + relay.pause) };
        relay.pause = MAX_PAUSE.min(relay.pause * 2);
    }

    pub(super) fn on_autonat_client(&mut self, event: &autonat::v2::client::Event) {
        tracing::debug!(?event, "reachability");
        let relays = &self.reserve.relays;
        // Who else reaches it may be beside it, behind the same NAT.
        if event.result.is_err() || !relays.iter().any(|relay| relay.peer == event.server) {
            return;
        }
        if is_loopback(&event.tested_addr) && !self.told_addrs().any(|addr| *addr == event.tested_addr) {
            return;
        }
        self.reserve.confirmed.insert(event.tested_addr.clone());
        self.on_reserve_deadline(Instant::now());
    }
}
