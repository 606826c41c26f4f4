//! The one task that owns the swarm.
//!
//! Commands from handles come in, events go out; in between each family of swarm events has a file: `dial` (connections
//! and those who wait for them), `listen` (listeners, reservations, own addresses), `known` (peers to stay connected
//! to), `reserve` (places at relays), `identify`, `kad`, `gossip`, `mdns`, `relay`.

mod dial;
mod gossip;
mod identify;
mod kad;
mod known;
mod listen;
mod mdns;
mod relay;
mod reserve;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::swarm::{ConnectionId, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::addr::{AddressBook, to_peer};
use crate::config::Config;
use crate::error::{AddrError, DialError, ListenError, ProvideError, PublishError, StartError, SubscribeError};
use crate::event::{GossipMessage, NetEvent, PeerInfo, Reach, Validate};
use crate::streams::{NoStream, Opened, Protocols};
use crate::swarm::{self, Behaviour, BehaviourEvent};

/// Unread events; what comes beyond them is dropped with an error in the log, as the swarm waits for nobody.
const EVENT_QUEUE: usize = 4_096;
/// Time after a relayed connection in which hole punching mostly makes a direct one: some round trips by way of the relay.
const PUNCHING: Duration = Duration::from_secs(3);
/// Time for saying goodbye to peers; they notice a dead connection anyway, only later.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a handle asks of the task.
pub(crate) enum Command {
    Addrs(oneshot::Sender<Vec<String>>),
    Listen {
        addr: Multiaddr,
        reply: oneshot::Sender<Result<Vec<String>, ListenError>>,
    },
    Dial {
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<PeerId, DialError>>,
    },
    DialAddr {
        addr: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, DialError>>,
    },
    Open {
        peer: PeerId,
        protocol: StreamProtocol,
        reply: oneshot::Sender<Result<Opened, NoStream>>,
    },
    Subscribe {
        topic: String,
        validate: Validate,
        reply: oneshot::Sender<Result<mpsc::Receiver<GossipMessage>, SubscribeError>>,
    },
    Unsubscribe {
        topic: String,
        reply: oneshot::Sender<()>,
    },
    Publish {
        topic: String,
        data: Vec<u8>,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    Provide {
        key: Vec<u8>,
        reply: oneshot::Sender<Result<(), ProvideError>>,
    },
    StopProviding {
        key: Vec<u8>,
        reply: oneshot::Sender<()>,
    },
    Providers {
        key: Vec<u8>,
        wanted: Option<PeerId>,
        deadline: Instant,
        reply: oneshot::Sender<Vec<PeerId>>,
    },
    AddrsOf {
        peer: PeerId,
        reply: oneshot::Sender<Vec<String>>,
    },
    Disconnect {
        peer: PeerId,
        reply: oneshot::Sender<()>,
    },
    SetRelays {
        relays: Vec<(iptl_dag::PeerId, Vec<String>)>,
        reply: oneshot::Sender<Result<(), AddrError>>,
    },
    ServeRelay {
        serve: bool,
        reply: oneshot::Sender<()>,
    },
    Reach(oneshot::Sender<Reach>),
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    IsKadServer(oneshot::Sender<bool>),
    Shutdown(oneshot::Sender<()>),
}

/// A connected peer.
#[derive(Debug, Default)]
struct Peer {
    connections: BTreeMap<ConnectionId, Connection>,
    agent: Option<String>,
    /// At which address it sees this node.
    observed: Option<Multiaddr>,
}

#[derive(Debug)]
struct Connection {
    addr: Multiaddr,
    relayed: bool,
    /// This node made it.
    dialled: bool,
    since: Instant,
}

/// The owner of the swarm.
pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<NetEvent>,
    protocols: Protocols,
    private_addrs_ok: bool,
    serves_as_relay: bool,
    book: AddressBook,
    peers: BTreeMap<PeerId, Peer>,
    dials: dial::Dials,
    listeners: listen::Listeners,
    known: known::Known,
    reserve: reserve::Reserve,
    kad: kad::Kad,
    gossip: gossip::Gossip,
}

impl Task {
    /// Builds the swarm and waits until it listens on every address of the configuration.
    pub(crate) async fn start(
        config: Config,
        protocols: Protocols,
        commands: mpsc::Receiver<Command>,
    ) -> Result<(Task, mpsc::Receiver<NetEvent>), StartError> {
        let swarm = swarm::build(&config, protocols.clone())?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let mut task = Task {
            private_addrs_ok: config.private_addrs_ok,
            serves_as_relay: config.relay_server,
            reserve: reserve::Reserve::default(),
            known: known::Known::new(&config.known)?,
            swarm,
            commands,
            events,
            protocols,
            book: AddressBook::default(),
            peers: BTreeMap::new(),
            dials: dial::Dials::default(),
            listeners: listen::Listeners::default(),
            kad: kad::Kad::default(),
            gossip: gossip::Gossip::default(),
        };
        task.start_listening(&config.listen).await?;
        task.start_known();
        task.start_kad(config.kad);
        Ok((task, receiver))
    }

    pub(crate) fn local_peer(&self) -> &PeerId {
        self.swarm.local_peer_id()
    }

    /// Runs until all handles are gone or one of them asks for the end.
    pub(crate) async fn run(mut self) {
        let reply = loop {
            let deadline = self.next_deadline();
            // Own work first; a busy swarm must hold up neither it nor what is due.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    None => break None,
                    Some(Command::Shutdown(reply)) => break Some(reply),
                    Some(command) => self.on_command(command),
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.on_deadline(Instant::now());
                }
                event = self.swarm.select_next_some() => self.on_event(event),
            }
        };
        self.protocols.close();
        self.say_goodbye().await;
        drop(self);
        if let Some(reply) = reply {
            // Whoever asked may not have waited.
            let _ = reply.send(());
        }
    }

    async fn say_goodbye(&mut self) {
        let peers = self.swarm.connected_peers().copied().collect::<Vec<_>>();
        for peer in peers {
            // A peer that is gone already needs no goodbye.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let gone = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        let _ = timeout(FAREWELL, gone).await;
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.kad.next_deadline(),
            self.gossip.next_deadline(),
            self.known.next_deadline(),
            self.listeners.next_deadline(),
            self.reserve.next_deadline(),
            self.dials.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn on_deadline(&mut self, now: Instant) {
        self.on_kad_deadline(now);
        self.on_gossip_deadline(now);
        self.on_known_deadline(now);
        self.on_listen_deadline(now);
        self.on_reserve_deadline(now);
        self.on_dial_deadline(now);
    }

    /// Carries a command out. A caller that is gone does not want its reply, so failures to send one are ignored.
    fn on_command(&mut self, command: Command) {
        match command {
            Command::Addrs(reply) => drop(reply.send(self.own_addrs())),
            Command::Listen { addr, reply } => self.listen(addr, reply),
            Command::Dial { peer, addrs, reply } => self.dial(peer, addrs, Some(reply)),
            Command::DialAddr { addr, reply } => self.dial_addr(addr, reply),
            Command::Open { peer, protocol, reply } => self.swarm.behaviour_mut().streams.open(peer, protocol, reply),
            Command::Subscribe { topic, validate, reply } => drop(reply.send(self.subscribe(topic, validate))),
            Command::Unsubscribe { topic, reply } => {
                self.unsubscribe(&topic);
                let _ = reply.send(());
            }
            Command::Publish { topic, data, reply } => self.publish(topic, data, reply),
            Command::Provide { key, reply } => self.provide(key, reply),
            Command::StopProviding { key, reply } => {
                self.stop_providing(key);
                let _ = reply.send(());
            }
            Command::Providers { key, wanted, deadline, reply } => self.look_up(key, wanted, deadline, reply),
            Command::AddrsOf { peer, reply } => {
                drop(reply.send(self.book.get(&peer).iter().map(Multiaddr::to_string).collect()));
            }
            Command::Disconnect { peer, reply } => {
                // A peer that is not connected is what was wanted.
                let _ = self.swarm.disconnect_peer_id(peer);
                let _ = reply.send(());
            }
            Command::SetRelays { relays, reply } => drop(reply.send(self.set_relays(relays))),
            Command::ServeRelay { serve, reply } => {
                self.serves_as_relay = serve;
                swarm::serve_relay(&mut self.swarm.behaviour_mut().relay_server, serve);
                let _ = reply.send(());
            }
            Command::Reach(reply) => drop(reply.send(self.reach())),
            Command::Peers(reply) => drop(reply.send(self.peer_infos())),
            Command::IsKadServer(reply) => drop(reply.send(self.is_kad_server())),
            Command::Shutdown(_) => unreachable!("`run` takes it"),
        }
    }

    /// Sorts swarm events by family.
    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(peer_id, connection_id, cause);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, error);
            }
            SwarmEvent::NewListenAddr { listener_id, address } => self.on_listen_addr(listener_id, address),
            SwarmEvent::ExpiredListenAddr { listener_id, address } => self.on_listen_addr_gone(listener_id, &address),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => self.on_listener_closed(listener_id, reason),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener"),
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(addr = %send_back_addr, %error, "inbound connection failed");
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_external_addr(&address),
            SwarmEvent::ExternalAddrExpired { address } => self.on_external_addr_gone(&address),
            SwarmEvent::IncomingConnection { .. }
            | SwarmEvent::Dialing { .. }
            | SwarmEvent::NewExternalAddrCandidate { .. }
            | SwarmEvent::NewExternalAddrOfPeer { .. } => {}
            // The enum is libp2p's and grows.
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Limits(never) => match never {},
            BehaviourEvent::Streams(never) => match never {},
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::RelayServer(event) => relay::on_server(&event),
            BehaviourEvent::RelayClient(event) => self.on_relay_client(&event),
            BehaviourEvent::Dcutr(event) => relay::on_dcutr(&event),
            BehaviourEvent::AutonatClient(event) => self.on_autonat_client(&event),
            BehaviourEvent::AutonatServer(event) => relay::on_autonat_server(&event),
        }
    }

    fn emit(&mut self, event: NetEvent) {
        match self.events.try_send(event) {
            // A user without interest in events dropped the receiver.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(event)) => {
                tracing::error!(?event, "event dropped: the receiver of events is not read");
            }
        }
    }

    fn peer_infos(&self) -> Vec<PeerInfo> {
        let mut infos = self.peers.iter().map(|(peer, state)| state.info(peer)).collect::<Vec<_>>();
        infos.sort_by(|a, b| a.peer.cmp(&b.peer));
        infos
    }
}

impl Peer {
    fn is_relayed(&self) -> bool {
        self.connections.values().all(|connection| connection.relayed)
    }

    fn info(&self, peer: &PeerId) -> PeerInfo {
        let mut connections = self.connections.values().collect::<Vec<_>>();
        connections.sort_by_key(|connection| connection.relayed);
        PeerInfo {
            peer: to_peer(peer),
            addrs: connections.iter().map(|connection| connection.addr.to_string()).collect(),
            relayed: self.is_relayed(),
            unsettled: self.is_relayed() && self.connections.values().all(|one| one.since.elapsed() < PUNCHING),
            agent: self.agent.clone(),
        }
    }
}
