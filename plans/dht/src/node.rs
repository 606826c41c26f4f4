//! One node of the DHT: its swarm, and the queries that it makes.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::{Either, select};
use futures_timer::Delay;
use iptl_sdk::{Env, Error, Json, Result, event};
use iptl_stack::{PORT, keys, multiaddr, own_address, resolve};
use libp2p::core::ConnectedPoint;
use libp2p::core::multiaddr::Protocol;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, BucketInserts, Mode, QueryId, QueryResult};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, identify};

use crate::lookup::{Lookup, names};
use crate::{BOOT, refused};

/// Name of the protocol: nodes of this plan and no others.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/iptl/plan/dht/kad/1.0.0");

/// Times that a peer asks a boot which does not answer.
const GREETINGS: u32 = 3;

/// How nodes behave.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Time to connect, encrypted and multiplexed.
    pub dial: Duration,
    /// Longest time of a query.
    pub query: Duration,
    /// Time after which a connection that nobody uses is closed.
    pub idle: Duration,
    /// Whether peers that cannot be dialled know it and answer no queries.
    pub clients: bool,
    /// Whether a peer that joins looks into each part of the space.
    pub refresh: bool,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
}

/// A node.
pub struct Node {
    swarm: Swarm<Behaviour>,
    settings: Settings,
    /// Where it listens.
    own: Multiaddr,
    boots: Vec<(PeerId, Multiaddr)>,
    is_boot: bool,
    /// Peers that a boot has dialled, or tries to.
    tried: BTreeSet<PeerId>,
    /// Whether a boot has dialled this node.
    was_dialled: bool,
    met: bool,
    /// Who was met until it has joined.
    joining: Option<Vec<(PeerId, Multiaddr)>>,
    connections: u64,
    failed_dials: u64,
}

/// A step of a query.
struct Progress {
    id: QueryId,
    result: QueryResult,
    stats: kad::QueryStats,
    last: bool,
}

impl Node {
    /// Listens, and connects to nobody yet.
    pub fn start(env: &Env, settings: Settings, is_boot: bool) -> Result<Node> {
        let key = keys::key(env.seed, env.ordinal);
        let me = key.public().to_peer_id();
        let mut config = kad::Config::new(PROTOCOL);
        config.set_query_timeout(settings.query);
        // Who says by identify that it answers queries comes into the table, and nobody else.
        config.set_kbucket_inserts(BucketInserts::Manual);
        // An execution is over long before anything would be published again.
        config.set_periodic_bootstrap_interval(None).set_provider_publication_interval(None);
        let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
        // Nobody is told of a node before it is known to be one that can be dialled.
        kad.set_mode(Some(if is_boot { Mode::Server } else { Mode::Client }));
        let identify = identify::Behaviour::new(identify::Config::new("iptl/plan/dht/1.0.0".into(), key.public()));
        let mut swarm = iptl_stack::swarm(&key, Behaviour { kad, identify }, settings.idle, settings.dial)?;

        let mut boots = Vec::new();
        for peer in env.instances().filter(|peer| peer.group == BOOT && peer.ordinal != env.ordinal) {
            boots.push((keys::peer(env.seed, peer.ordinal), multiaddr(resolve(&peer.host())?)));
        }
        let own = multiaddr(own_address(env));
        swarm.listen_on(own.clone()).map_err(|error| refused(format!("port {PORT}: {error}")))?;
        if is_boot {
            swarm.add_external_address(own.clone());
        }
        Ok(Node {
            swarm,
            settings,
            own,
            boots,
            is_boot,
            tried: BTreeSet::new(),
            was_dialled: false,
            met: false,
            joining: (!is_boot).then(Vec::new),
            connections: 0,
            failed_dials: 0,
        })
    }

    /// Connects to the boots, and learns from them whether this node can be dialled: returns whether it can.
    pub async fn meet_boots(&mut self) -> Result<bool> {
        for _ in 0..GREETINGS {
            for (peer, address) in self.boots.clone() {
                let options = DialOpts::peer_id(peer).addresses(vec![address]).build();
                // Refused where it is connected already.
                let _ = self.swarm.dial(options);
            }
            self.until(self.settings.dial, |node| node.met).await;
            if self.met {
                break;
            }
        }
        if !self.met {
            return Err(Error::Refused(format!("no boot answered {GREETINGS} times")));
        }
        // A boot dials at once; what has not come in the time that it tries will not come.
        self.until(self.settings.dial, |node| node.was_dialled).await;
        if self.was_dialled || !self.settings.clients {
            self.swarm.behaviour_mut().kad.set_mode(Some(Mode::Server));
        }
        let reached = self.reached_at();
        self.swarm.add_external_address(reached);
        Ok(self.was_dialled)
    }

    /// Returns where this node says that it can be reached: where a boot has reached it, or through a boot, as whoever
    /// cannot be dialled is reached through a relay.
    ///
    /// Records of providers carry this address, and one without any is worth nothing: whoever keeps it tells of it only
    /// as long as the provider happens to be in its own routing table.
    fn reached_at(&self) -> Multiaddr {
        match self.boots.first() {
            Some((relay, at)) if !self.was_dialled => at.clone().with(Protocol::P2p(*relay)).with(Protocol::P2pCircuit),
            Some(_) | None => self.own.clone(),
        }
    }

    /// Fills the routing table: asks the boots and whom they name for the peers closest to this node, and then for some in
    /// each part of the space.
    ///
    /// libp2p does all of it over again, half a second after, for whoever comes into a table of less than twenty. So who is
    /// met in the first look comes into it all at once, right before the second, which need not look for the closest again.
    pub async fn join(&mut self) -> Result<()> {
        for (peer, address) in self.boots.clone() {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
        let query = self.swarm.behaviour_mut().kad.bootstrap().map_err(refused)?;
        self.finish(query, None).await;
        for (peer, address) in self.joining.take().into_iter().flatten() {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
        let query = self.swarm.behaviour_mut().kad.bootstrap().map_err(refused)?;
        self.skip(query);
        loop {
            match self.step().await {
                Some(Progress { id, last: true, .. }) if id == query => return Ok(()),
                Some(Progress { id, .. }) if id == query && !self.settings.refresh => self.skip(query),
                Some(_) | None => {}
            }
        }
    }

    /// Ends a part of a query before it has asked anybody.
    fn skip(&mut self, query: QueryId) {
        if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&query) {
            query.finish();
        }
    }

    /// Announces to the peers closest to a key that this node has what it names.
    pub fn provide(&mut self, key: Vec<u8>) -> Result<QueryId> {
        self.swarm.behaviour_mut().kad.start_providing(key.into()).map_err(refused)
    }

    /// Looks for a peer.
    pub fn find_peer(&mut self, peer: PeerId) -> QueryId {
        self.swarm.behaviour_mut().kad.get_closest_peers(peer)
    }

    /// Looks for providers of a key.
    pub fn find_providers(&mut self, key: Vec<u8>) -> QueryId {
        self.swarm.behaviour_mut().kad.get_providers(key.into())
    }

    /// Removes a peer from the routing table, so that finding it takes a look-up.
    pub fn forget(&mut self, peer: &PeerId) {
        self.swarm.behaviour_mut().kad.remove_peer(peer);
    }

    /// Returns how long it waits for a connection.
    pub fn patience(&self) -> Duration {
        self.settings.dial
    }

    /// Returns how many peers the routing table has.
    pub fn known(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    /// Goes on until a query has ended; what it looked for may be found before.
    pub async fn finish(&mut self, query: QueryId, target: Option<PeerId>) -> Lookup {
        let began = Instant::now();
        let mut lookup = Lookup::default();
        loop {
            let Some(Progress { id, result, stats, last }) = self.step().await else { continue };
            if id != query {
                continue;
            }
            let ms = began.elapsed().as_secs_f64() * 1e3;
            if !lookup.found && target.is_some_and(|target| names(&result, &target)) {
                lookup.found = true;
                lookup.took_ms = ms;
            }
            lookup.count(&stats);
            if last {
                if !lookup.found {
                    lookup.took_ms = ms;
                }
                return lookup;
            }
        }
    }

    /// Answers others until a future has its value.
    pub async fn serve<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = pin!(until);
        loop {
            match select(until.as_mut(), pin!(self.step())).await {
                Either::Left((value, _)) => return value,
                Either::Right(_) => {}
            }
        }
    }

    /// Answers others until a future has its value, or for some time; returns none where the time came first.
    pub async fn serve_for<T>(&mut self, until: impl Future<Output = T>, time: Duration) -> Option<T> {
        let either = async {
            match select(pin!(until), Delay::new(time)).await {
                Either::Left((value, _)) => Some(value),
                Either::Right(_) => None,
            }
        };
        self.serve(either).await
    }

    /// Leaves what this node has counted as an event.
    pub fn tell(&mut self) -> Result<()> {
        let known = self.known() as u64;
        let counts = [("peers", known), ("connections", self.connections), ("failed_dials", self.failed_dials)];
        event("ended", counts.map(|(name, count)| (name, Json::from(count))))
    }

    async fn until(&mut self, time: Duration, is: impl Fn(&Node) -> bool) {
        let deadline = Instant::now() + time;
        while !is(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // After each event the condition may have become true.
            let delay = pin!(Delay::new(left));
            select(delay, pin!(self.step())).await;
        }
    }

    /// Handles one event; returns what a query has made of it.
    async fn step(&mut self) -> Option<Progress> {
        match self.swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result,
                stats,
                step,
            })) => return Some(Progress { id, result, stats, last: step.last }),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.identified(peer_id, info);
            }
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                self.connections += 1;
                let inbound = matches!(endpoint, ConnectedPoint::Listener { .. });
                self.was_dialled |= inbound && self.boots.iter().any(|(boot, _)| *boot == peer_id);
            }
            SwarmEvent::OutgoingConnectionError { .. } => self.failed_dials += 1,
            _ => {}
        }
        None
    }

    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        self.met |= self.boots.iter().any(|(boot, _)| *boot == peer);
        if info.protocols.contains(&PROTOCOL) {
            for address in &info.listen_addrs {
                match &mut self.joining {
                    Some(met) => met.push((peer, address.clone())),
                    None => {
                        self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
                    }
                }
            }
        }
        if self.is_boot && self.tried.insert(peer) {
            let options = DialOpts::peer_id(peer).addresses(info.listen_addrs).condition(PeerCondition::Always);
            // Refused where there is no address to dial.
            let _ = self.swarm.dial(options.build());
        }
    }
}
