//! A node: its swarm, the reservation at the relay, and attempts to reach others directly.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::{Either, select};
use iptl_sdk::{Env, Error, Peer, Result};
use libp2p::core::Endpoint;
use libp2p::core::multiaddr::Protocol as Part;
use libp2p::core::transport::PortUse;
use libp2p::identity::Keypair;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, SwarmEvent, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId, Swarm, dcutr, identify, noise, ping, relay, tcp, yamux};

use crate::RELAY;

const PORT: u16 = 4001;

/// The address of whoever is behind a NAT, in a network of its own.
const BEHIND_NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));

/// Circuits that a relay carries: a pair each, and some whose end it has not seen yet.
const CIRCUITS: usize = 4096;

/// What became of an attempt, with the times since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// When the connection through the relay stood.
    pub relayed: Option<Duration>,
    /// When a direct one did.
    pub direct: Option<Duration>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    relay_client: relay::client::Behaviour,
    relay: libp2p::swarm::behaviour::toggle::Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    observed: Observed,
}

/// A node.
pub struct Node {
    swarm: Swarm<Behaviour>,
    relay: Option<(PeerId, Multiaddr)>,
    /// Connections that stand now, by peer, and whether each is a direct one.
    connections: BTreeMap<PeerId, BTreeMap<ConnectionId, bool>>,
    /// Whether a relay has told this node who it is, and where it sees it.
    seen: bool,
    reserved: bool,
}

impl Node {
    /// Listens, and connects to nobody yet.
    pub fn start(env: &Env, is_relay: bool) -> Result<Node> {
        let key = key(env.seed, env.ordinal);
        let me = key.public().to_peer_id();
        let mut swarm = libp2p::SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .map_err(refused)?
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .map_err(refused)?
            .with_behaviour(|key, relay_client| Behaviour {
                identify: identify::Behaviour::new(identify::Config::new("iptl/plan/nat/1.0.0".into(), key.public())),
                ping: ping::Behaviour::new(ping::Config::new()),
                relay_client,
                relay: is_relay.then(|| relay::Behaviour::new(me, limits())).into(),
                dcutr: dcutr::Behaviour::new(me),
                observed: Observed::default(),
            })
            .map_err(refused)?
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        let own = if TcpListener::bind((env.addr, 0)).is_ok() { env.addr } else { BEHIND_NAT };
        let own = address(own);
        swarm.listen_on(own.clone()).map_err(refused)?;
        let mut relay = None;
        if is_relay {
            swarm.add_external_address(own);
        } else {
            let relays: Vec<Peer> = env.instances().filter(|peer| peer.group == RELAY).collect();
            let peer = &relays[env.ordinal as usize % relays.len()];
            relay = Some((self::peer(env.seed, peer.ordinal), address(resolve(&peer.host())?)));
        }
        Ok(Node { swarm, relay, connections: BTreeMap::new(), seen: false, reserved: false })
    }

    /// Lets the relay see it, and gets a reservation there.
    pub async fn reserve(&mut self, patience: Duration) -> Result<()> {
        let (relay, at) = self.relay.clone().ok_or_else(|| Error::Refused("no relay".to_owned()))?;
        let at = at.with(Part::P2p(relay));
        self.swarm.dial(at.clone()).map_err(refused)?;
        if !self.until(patience, |node| node.seen).await {
            return Err(Error::Refused("the relay did not answer".to_owned()));
        }
        self.swarm.listen_on(at.with(Part::P2pCircuit)).map_err(refused)?;
        if !self.until(patience, |node| node.reserved).await {
            return Err(Error::Refused("the relay gave no reservation".to_owned()));
        }
        Ok(())
    }

    /// Dials another through its relay, and waits for a direct connection.
    pub async fn punch(&mut self, env: &Env, other: u32, patience: Duration) -> Result<Outcome> {
        let began = Instant::now();
        let target = peer(env.seed, other);
        // Peers take relays by turns, so the other's is known.
        let relays: Vec<Peer> = env.instances().filter(|peer| peer.group == RELAY).collect();
        let relay = &relays[other as usize % relays.len()];
        let through = address(resolve(&relay.host())?)
            .with(Part::P2p(peer(env.seed, relay.ordinal)))
            .with(Part::P2pCircuit)
            .with(Part::P2p(target));
        let options = DialOpts::peer_id(target).addresses(vec![through]).condition(PeerCondition::Always);
        self.swarm.dial(options.build()).map_err(refused)?;
        let mut outcome = Outcome::default();
        if self.until(patience, |node| node.connections.contains_key(&target)).await {
            outcome.relayed = Some(began.elapsed());
            let left = patience.saturating_sub(began.elapsed());
            if self.until(left, |node| node.is_direct(&target)).await {
                outcome.direct = Some(began.elapsed());
            }
        }
        Ok(outcome)
    }

    /// Lets another try to reach this node.
    pub async fn await_punch(&mut self, env: &Env, other: u32, patience: Duration) {
        let dialer = peer(env.seed, other);
        self.until(patience, |node| node.is_direct(&dialer)).await;
    }

    /// Ends all connections but those with the relay.
    pub fn hang_up(&mut self) {
        let relay = self.relay.as_ref().map(|(peer, _)| *peer);
        let others: Vec<PeerId> = self.connections.keys().copied().filter(|peer| Some(*peer) != relay).collect();
        for peer in others {
            // Refused where it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Goes on until a future has its value.
    pub async fn serve<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = pin!(until);
        loop {
            match select(until.as_mut(), pin!(self.step())).await {
                Either::Left((value, _)) => return value,
                Either::Right(_) => {}
            }
        }
    }

    fn is_direct(&self, peer: &PeerId) -> bool {
        self.connections.get(peer).is_some_and(|all| all.values().any(|direct| *direct))
    }

    /// Goes on until something is so, or for some time; returns whether it is.
    async fn until(&mut self, time: Duration, is: impl Fn(&Node) -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + time;
        while !is(self) {
            if tokio::time::timeout_at(deadline, self.step()).await.is_err() {
                return is(self);
            }
        }
        true
    }

    async fn step(&mut self) {
        match self.swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                if self.relay.as_ref().is_some_and(|(relay, _)| *relay == peer_id) {
                    self.swarm.behaviour_mut().observed.0.push_back(info.observed_addr);
                    self.seen = true;
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                ..
            })) => self.reserved = true,
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.connections.entry(peer_id).or_default().insert(connection_id, !endpoint.is_relayed());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                if let Some(all) = self.connections.get_mut(&peer_id) {
                    all.remove(&connection_id);
                    if all.is_empty() {
                        self.connections.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Tells the swarm where the relay sees this node.
///
/// identify tells of it only where its port is one at which the node listens, and else puts such a port in its place; so
/// behind a NAT that chose another one, DCUtR would have both ends punch at the wrong port.
#[derive(Default)]
struct Observed(VecDeque<Multiaddr>);

impl NetworkBehaviour for Observed {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> std::result::Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> std::result::Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.0.pop_front() {
            Some(address) => Poll::Ready(ToSwarm::NewExternalAddrCandidate(address)),
            None => Poll::Pending,
        }
    }
}

/// Returns what a relay of the plan carries: whatever the pairs of a run need.
fn limits() -> relay::Config {
    relay::Config {
        max_reservations: CIRCUITS,
        reservation_rate_limiters: Vec::new(),
        max_circuits: CIRCUITS,
        max_circuits_per_peer: CIRCUITS,
        circuit_src_rate_limiters: Vec::new(),
        ..Default::default()
    }
}

/// Returns the key of an instance, which all others can compute too. It is a secret from nobody.
fn key(seed: u64, ordinal: u32) -> Keypair {
    let mut secret = *b"iptl: a key that everybody knows";
    secret[16..24].copy_from_slice(&seed.to_be_bytes());
    secret[24..28].copy_from_slice(&ordinal.to_be_bytes());
    Keypair::ed25519_from_bytes(secret).expect("any 32 bytes are a key")
}

fn peer(seed: u64, ordinal: u32) -> PeerId {
    key(seed, ordinal).public().to_peer_id()
}

fn address(ip: IpAddr) -> Multiaddr {
    Multiaddr::from(ip).with(Part::Tcp(PORT))
}

fn resolve(host: &str) -> Result<IpAddr> {
    let mut found = (host, PORT).to_socket_addrs()?;
    found.next().map(|addr| addr.ip()).ok_or_else(|| Error::Refused(format!("{host} has no address")))
}

/// What libp2p refused.
fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(error.to_string())
}
