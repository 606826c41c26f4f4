//! Listeners, reservations at relays, and the node's own addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Task;
use crate::addr::{self, is_circuit_listener, is_loopback, is_relayed, is_worth_telling, with_peer};
use crate::error::{ListenError, StartError};
use crate::event::NetEvent;

/// Time for the first address of a listener: it comes from the system, not from the network.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before a lost reservation is asked for again; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between requests for a reservation.
const MAX_PAUSE: Duration = Duration::from_secs(60);

type Reply = oneshot::Sender<Result<Vec<String>, ListenError>>;

/// The listeners of the node, and the reservations to ask for again.
#[derive(Default)]
pub(super) struct Listeners {
    active: HashMap<ListenerId, Listener>,
    /// Relay addresses without a listener: when to ask, and the pause after that.
    missing: BTreeMap<Multiaddr, (Instant, Duration)>,
    /// Addresses listened on that are told to others.
    told: BTreeSet<Multiaddr>,
}

pub(super) struct Listener {
    asked: Multiaddr,
    addrs: Vec<Multiaddr>,
    waiting: Option<Reply>,
    /// Pause before a reservation that fails is asked for again; none for listeners that are not.
    pause: Option<Duration>,
    /// The relay that was asked for a place without anybody's saying so; `reserve` asks it again.
    relay: Option<PeerId>,
}

impl Listener {
    fn new(asked: Multiaddr, waiting: Option<Reply>, pause: Option<Duration>) -> Listener {
        Listener { asked, addrs: Vec::new(), waiting, pause, relay: None }
    }

    /// Returns the listener of a place that the node asks for by itself.
    pub(super) fn at_relay(asked: Multiaddr, relay: PeerId) -> Listener {
        Listener { relay: Some(relay), ..Listener::new(asked, None, None) }
    }
}

impl Listeners {
    pub(super) fn insert(&mut self, id: ListenerId, listener: Listener) {
        self.active.insert(id, listener);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.missing.values().map(|(at, _)| *at).min()
    }
}

impl Task {
    /// Starts all listeners, and waits until each has an address.
    pub(super) async fn start_listening(&mut self, addrs: &[String]) -> Result<(), StartError> {
        let mut waiting = Vec::new();
        for text in addrs {
            let asked = addr::parse(text)?;
            if is_circuit_listener(&asked) {
                self.listeners.missing.insert(asked, (Instant::now(), MIN_PAUSE));
                continue;
            }
            probe(&asked).map_err(|error| refused(text, &error))?;
            match self.swarm.listen_on(asked.clone()) {
                Ok(id) => {
                    self.listeners.insert(id, Listener::new(asked, None, None));
                    waiting.push((id, text));
                }
                Err(error) => return Err(StartError::Listen { addr: text.clone(), reason: error.to_string() }),
            }
        }
        for (id, text) in waiting {
            let listen_error = |reason: &str| StartError::Listen { addr: text.clone(), reason: reason.into() };
            while self.listeners.active.get(&id).ok_or_else(|| listen_error("the listener closed"))?.addrs.is_empty() {
                let event = timeout(LISTEN_TIMEOUT, self.swarm.select_next_some());
                let event = event.await.map_err(|_| listen_error("the system gave no address"))?;
                self.on_event(event);
            }
        }
        // A listener on all interfaces has more addresses, known by now.
        while let Some(event) = self.swarm.select_next_some().now_or_never() {
            self.on_event(event);
        }
        Ok(())
    }

    /// Starts one more listener; the reply comes with its first address.
    pub(super) fn listen(&mut self, asked: Multiaddr, reply: Reply) {
        let circuit = is_circuit_listener(&asked);
        let started = match circuit {
            true => Ok(()),
            false => probe(&asked).map_err(|error| error.to_string()),
        };
        match started.and_then(|()| self.swarm.listen_on(asked.clone()).map_err(|error| error.to_string())) {
            Ok(id) => {
                self.listeners.insert(id, Listener::new(asked, Some(reply), circuit.then_some(MIN_PAUSE)));
            }
            // A caller that is gone does not want to know.
            Err(reason) => drop(reply.send(Err(ListenError::Refused { addr: asked.to_string(), reason }))),
        }
    }

    pub(super) fn on_listen_deadline(&mut self, now: Instant) {
        let due = self.listeners.missing.iter().filter(|(_, (at, _))| *at <= now);
        let due = due.map(|(addr, (_, pause))| (addr.clone(), *pause)).collect::<Vec<_>>();
        for (asked, pause) in due {
            match self.swarm.listen_on(asked.clone()) {
                Ok(id) => {
                    self.listeners.missing.remove(&asked);
                    self.listeners.insert(id, Listener::new(asked, None, Some(pause)));
                }
                Err(error) => {
                    tracing::warn!(addr = %asked, %error, "no reservation at the relay");
                    self.listeners.missing.insert(asked, (now + pause, MAX_PAUSE.min(pause * 2)));
                }
            }
        }
    }

    pub(super) fn on_listen_addr(&mut self, id: ListenerId, address: Multiaddr) {
        let told = with_peer(address.clone(), *self.local_peer());
        if let Some(listener) = self.listeners.active.get_mut(&id) {
            listener.addrs.push(address.clone());
            listener.pause = listener.pause.map(|_| MIN_PAUSE);
            if let Some(reply) = listener.waiting.take() {
                // A caller that is gone does not want to know.
                let _ = reply.send(Ok(vec![told.to_string()]));
            }
        }
        self.choose_told_addrs();
        self.emit(NetEvent::Listening { addr: told.to_string() });
    }

    pub(super) fn on_listen_addr_gone(&mut self, id: ListenerId, address: &Multiaddr) {
        if let Some(listener) = self.listeners.active.get_mut(&id) {
            listener.addrs.retain(|known| known != address);
        }
        self.choose_told_addrs();
    }

    /// Chooses which of the addresses listened on are told to others, by identify and in provider records. These carry
    /// confirmed addresses only, so that a node that is reachable by configuration must say so itself.
    ///
    /// Loopback is told only by a node that has nothing else: on another machine it leads somewhere else, to the very
    /// node that dials it where all nodes of a lab use the same port, and the whole dial fails with it. Reservations are
    /// confirmed by the relay client.
    fn choose_told_addrs(&mut self) {
        let listening = self.listeners.active.values().flat_map(|listener| &listener.addrs);
        let worthy = listening.filter(|addr| !is_relayed(addr) && is_worth_telling(addr, self.private_addrs_ok));
        let worthy = worthy.cloned().collect::<BTreeSet<_>>();
        let elsewhere = worthy.iter().any(|addr| !is_loopback(addr));
        let chosen = worthy.into_iter().filter(|addr| !elsewhere || !is_loopback(addr)).collect::<BTreeSet<_>>();
        if chosen == self.listeners.told {
            return;
        }
        for gone in self.listeners.told.difference(&chosen) {
            self.swarm.remove_external_address(gone);
        }
        for new in chosen.difference(&self.listeners.told) {
            self.swarm.add_external_address(new.clone());
        }
        self.listeners.told = chosen;
        self.on_own_addrs_changed();
        self.on_told_addrs_changed();
    }

    /// Returns whether the node listens on an address that others are told.
    pub(super) fn is_told_anywhere(&self) -> bool {
        !self.listeners.told.is_empty()
    }

    pub(super) fn on_listener_closed(&mut self, id: ListenerId, reason: Result<(), io::Error>) {
        let Some(listener) = self.listeners.active.remove(&id) else { return };
        self.choose_told_addrs();
        let reason = match reason {
            Ok(()) => "closed".into(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(addr = %listener.asked, reason, "listener ended");
        if let Some(reply) = listener.waiting {
            // A caller that is gone does not want to know. One that waits decides itself whether to ask again.
            let _ = reply.send(Err(ListenError::Refused { addr: listener.asked.to_string(), reason }));
        } else if let Some(pause) = listener.pause {
            let next = (Instant::now() + pause, MAX_PAUSE.min(pause * 2));
            self.listeners.missing.insert(listener.asked, next);
        } else if let Some(relay) = listener.relay {
            self.on_place_gone(relay, id);
        }
    }

    /// Returns the addresses listened on that are told to others.
    pub(super) fn told_addrs(&self) -> impl Iterator<Item = &Multiaddr> {
        self.listeners.told.iter()
    }

    /// Returns the relays that somebody said are to be asked for a place.
    pub(super) fn relays_by_hand(&self) -> BTreeSet<PeerId> {
        let active = self.listeners.active.values().filter(|listener| listener.relay.is_none());
        let asked = active.map(|listener| &listener.asked).chain(self.listeners.missing.keys());
        asked.filter(|addr| is_circuit_listener(addr)).filter_map(relay_of).collect()
    }

    pub(super) fn on_external_addr(&mut self, address: &Multiaddr) {
        // A peer on the same machine confirms loopback; that is no address for the others.
        if is_loopback(address) && !is_relayed(address) && !self.listeners.told.contains(address) {
            self.swarm.remove_external_address(address);
            return;
        }
        let addr = with_peer(address.clone(), *self.local_peer()).to_string();
        self.on_own_addrs_changed();
        self.emit(NetEvent::External { addr });
    }

    pub(super) fn on_external_addr_gone(&mut self, address: &Multiaddr) {
        tracing::debug!(addr = %address, "no longer reachable there");
        self.on_own_addrs_changed();
    }

    /// Own addresses, confirmed ones first and those at relays last, in a stable order.
    pub(super) fn own_addrs(&self) -> Vec<String> {
        let local = *self.local_peer();
        let confirmed = self.swarm.external_addresses().map(|addr| (addr, false));
        let all = confirmed.chain(self.swarm.listeners().map(|addr| (addr, true)));
        // Those at relays are the last resort.
        let ranked = all.map(|(addr, only)| (is_relayed(addr), only, with_peer(addr.clone(), local).to_string()));
        let mut told = BTreeSet::new();
        let sorted = ranked.collect::<BTreeSet<_>>().into_iter().map(|(_, _, addr)| addr);
        sorted.filter(|addr| told.insert(addr.clone())).collect()
    }
}

/// Returns the relay that a circuit leads through.
fn relay_of(addr: &Multiaddr) -> Option<PeerId> {
    addr.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    })
}

fn refused(addr: &str, error: &io::Error) -> StartError {
    match error.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse { addr: addr.into() },
        _ => StartError::Listen { addr: addr.into(), reason: error.to_string() },
    }
}

/// Finds out whether a port is free. libp2p listens on TCP with `SO_REUSEPORT`, so that a second node on the same port
/// would start and get every other connection.
fn probe(addr: &Multiaddr) -> io::Result<()> {
    let mut parts = addr.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind(SocketAddr::new(ip, port)).map(drop),
        Some(Protocol::Udp(port)) if port != 0 => UdpSocket::bind(SocketAddr::new(ip, port)).map(drop),
        _ => Ok(()),
    }
}
