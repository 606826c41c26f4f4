//! Transports and behaviours put together. Every limit of the swarm stands here, with its reason.

use std::time::{Duration, Instant};

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, Swarm};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Transport as _, autonat, connection_limits, dcutr, dns, gossipsub, identify,
    kad, mdns, noise, ping, quic, relay, tcp, yamux,
};

use crate::addr::to_peer;
use crate::config::{Config, KadMode, RelayFor};
use crate::error::StartError;
use crate::streams::{self, MAX_INBOUND_STREAMS_PER_PEER, MAX_OUTBOUND_STREAMS_PER_CONNECTION, Protocols};

/// Wire version of the DHT; nodes of other networks do not answer to it.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/iptl/kad/1.0.0");
/// Version told by identify.
const IDENTIFY_PROTOCOL: &str = "/iptl/1";
/// Largest gossip message in bytes: gossip carries CIDs and small signed records, blocks go over streams.
pub(crate) const MAX_GOSSIP_SIZE: usize = 16 << 10;
/// Provider keys held, own and others': libp2p's 1,024 are used up by one lab of 1,000 lablets.
pub(crate) const MAX_PROVIDED_KEYS: usize = 65_536;
/// A query that takes longer has met dead nodes only.
const KAD_QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Provider records are told again this often, and forgotten by others after [`KAD_RECORD_TTL`].
const KAD_REPUBLISH: Duration = Duration::from_secs(15 * 60);
/// Two lost announcements may pass before a record is forgotten: a lab's nodes come and go in hours.
const KAD_RECORD_TTL: Duration = Duration::from_secs(45 * 60);
/// Connections of one peer: a TCP and a QUIC one dialled from each side, a relayed one, and hole punching's attempts. One
/// more takes the place of the oldest: a peer that was killed and started again left connections behind that look alive for
/// as long as [`QUIC_IDLE_TIMEOUT_MS`], and must not be refused for them.
pub(crate) const MAX_CONNECTIONS_PER_PEER: usize = 8;
/// All connections: a lab of 1,000 lablets around one orchestrator, twice.
const MAX_CONNECTIONS: u32 = 4_096;
/// Handshakes in progress, each way: bounds what strangers can make us compute.
const MAX_PENDING_CONNECTIONS: u32 = 256;
/// Streams that one yamux connection carries before it breaks: ours both ways and those of other protocols.
const MAX_YAMUX_STREAMS: usize = 4_096;
/// Inbound streams of a QUIC connection; the opener waits beyond them. Ours and those of other protocols.
const MAX_QUIC_STREAMS: u32 = MAX_INBOUND_STREAMS_PER_PEER as u32 + 128;
/// Silence after which a QUIC connection is dead, in ms; with a sign of life every 5 s. A machine that starts thousands
/// of instances may not come to its packets for longer than libp2p's 10 s.
const QUIC_IDLE_TIMEOUT_MS: u32 = 30_000;
/// As TCP's, and for the same reason.
const QUIC_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are closed by their users, or when the peer is gone: a lab's peers come back to each other.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);

const _: () = assert!(MAX_INBOUND_STREAMS_PER_PEER + MAX_OUTBOUND_STREAMS_PER_CONNECTION < MAX_YAMUX_STREAMS);

/// All behaviours of a node.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) streams: streams::Behaviour,
    pub(crate) identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(crate) gossip: gossipsub::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(crate) relay_server: relay::Behaviour,
    relay_client: relay::client::Behaviour,
    pub(crate) dcutr: dcutr::Behaviour,
    pub(crate) autonat_client: autonat::v2::client::Behaviour,
    autonat_server: autonat::v2::server::Behaviour,
}

/// Builds the swarm; nothing listens yet. Needs a tokio runtime.
pub(crate) fn build(config: &Config, protocols: Protocols) -> Result<Swarm<Behaviour>, StartError> {
    let key = Keypair::ed25519_from_bytes(config.seed).map_err(|error| setup("key", error))?;
    let peer = key.public().to_peer_id();
    let (relay_transport, relay_client) = relay::client::new(peer);
    let transport = transport(&key, relay_transport)?;
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(
            connection_limits::ConnectionLimits::default()
                .with_max_established(Some(MAX_CONNECTIONS))
                .with_max_pending_incoming(Some(MAX_PENDING_CONNECTIONS))
                .with_max_pending_outgoing(Some(MAX_PENDING_CONNECTIONS)),
        ),
        streams: streams::Behaviour::new(protocols, config.inbound_streams_per_peer),
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.into(), key.public())
                .with_agent_version(config.agent.clone())
                .with_push_listen_addr_updates(true)
                // `task/listen.rs` chooses what is told: every address that others can use, and none that leads them to
                // themselves. `task/identify.rs` keeps what is heard.
                .with_hide_listen_addrs(true)
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new()),
        kad: kad(config, peer),
        gossip: gossip(&key)?,
        mdns: Toggle::from(match config.mdns {
            true => {
                Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer).map_err(|error| setup("mDNS", error))?)
            }
            false => None,
        }),
        relay_server: relay_server(config, peer),
        relay_client,
        dcutr: dcutr::Behaviour::new(peer),
        autonat_client: autonat::v2::client::Behaviour::default(),
        autonat_server: autonat::v2::server::Behaviour::default(),
    };
    let swarm_config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        .with_max_negotiating_inbound_streams(256);
    Ok(Swarm::new(transport, behaviour, peer, swarm_config))
}

type Transport = libp2p::core::transport::Boxed<(PeerId, StreamMuxerBox)>;

fn transport(key: &Keypair, relay: relay::client::Transport) -> Result<Transport, StartError> {
    let noise = noise::Config::new(key).map_err(|error| setup("noise", error))?;
    let direct = match dns::tokio::Transport::system(direct_transport(key, noise.clone())) {
        Ok(named) => named.boxed(),
        // A machine without resolv.conf still reaches peers by address.
        Err(error) => {
            tracing::warn!(%error, "no system resolver: names in addresses are not resolved");
            direct_transport(key, noise.clone())
        }
    };
    let relay = relay
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(muxer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // The relay comes first: the others would take an address with `/p2p-circuit` for the relay's own.
    Ok(relay.or_transport(direct).map(|either, _| either.into_inner()).boxed())
}

fn direct_transport(key: &Keypair, noise: noise::Config) -> Transport {
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(muxer())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // libp2p's TLS names its crypto provider itself: no process-wide default is needed or asked.
    let mut config = quic::Config::new(key);
    config.max_concurrent_stream_limit = MAX_QUIC_STREAMS;
    config.max_idle_timeout = QUIC_IDLE_TIMEOUT_MS;
    config.handshake_timeout = QUIC_HANDSHAKE_TIMEOUT;
    let quic = quic::tokio::Transport::new(config).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    tcp.or_transport(quic).map(|either, _| either.into_inner()).boxed()
}

fn muxer() -> yamux::Config {
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(MAX_YAMUX_STREAMS);
    muxer
}

fn kad(config: &Config, peer: PeerId) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut kad_config = kad::Config::new(KAD_PROTOCOL);
    kad_config
        .set_query_timeout(KAD_QUERY_TIMEOUT)
        .set_provider_publication_interval(Some(KAD_REPUBLISH))
        .set_provider_record_ttl(Some(KAD_RECORD_TTL))
        // Records come to `task/kad.rs` first, which has a bound on each.
        .set_record_filtering(kad::StoreInserts::FilterBoth);
    let store = kad::store::MemoryStoreConfig {
        max_provided_keys: MAX_PROVIDED_KEYS,
        // Value records are not used by the lab, so none are kept for others.
        max_records: 0,
        ..Default::default()
    };
    let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::with_config(peer, store), kad_config);
    kad.set_mode(Some(match config.kad {
        KadMode::Server => kad::Mode::Server,
        // `Task::start` decides when it knows the addresses.
        KadMode::Client | KadMode::Auto => kad::Mode::Client,
    }));
    kad
}

fn gossip(key: &Keypair) -> Result<gossipsub::Behaviour, StartError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix("/iptl/meshsub")
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(MAX_GOSSIP_SIZE)
        .flood_publish(true)
        // The mesh of a late joiner is repaired at the first heartbeat, not after libp2p's 5 s.
        .heartbeat_initial_delay(Duration::from_millis(250))
        .message_id_fn(message_id)
        .build()
        .map_err(|error| setup("gossip", error))?;
    let mut gossip = gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Signed(key.clone()), config)
        .map_err(|error| setup("gossip", error))?;
    let scores = gossipsub::PeerScoreParams {
        // Lablets of one machine or one NAT share an address.
        ip_colocation_factor_weight: 0.0,
        ..Default::default()
    };
    gossip
        .with_peer_score(scores, gossipsub::PeerScoreThresholds::default())
        .map_err(|error| setup("gossip", error))?;
    Ok(gossip)
}

/// How peers are judged by what they send on one topic: by invalid messages only. An offers topic is silent for hours,
/// and libp2p's defaults would throw good peers out of the mesh for delivering nothing.
pub(crate) fn topic_scores() -> gossipsub::TopicScoreParams {
    gossipsub::TopicScoreParams {
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        ..Default::default()
    }
}

/// Equal payloads of two signers, or of one signer at two times, are different messages.
fn message_id(message: &gossipsub::Message) -> gossipsub::MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&message.source.map(|source| source.to_bytes()).unwrap_or_default());
    hasher.update(&message.sequence_number.unwrap_or_default().to_be_bytes());
    hasher.update(&message.data);
    gossipsub::MessageId::from(hasher.finalize().as_bytes().to_vec())
}

/// The relay of a node: it serves once it is told to (see [`serve_relay`]).
fn relay_server(config: &Config, peer: PeerId) -> relay::Behaviour {
    let limits = &config.relay_limits;
    let reservation_rate_limiters: Vec<Box<dyn relay::RateLimiter>> = match config.relay_for.clone() {
        Some(relay_for) => vec![Box::new(Admitted(relay_for))],
        None => Vec::new(),
    };
    let limits = relay::Config {
        max_reservations: limits.reservations,
        max_reservations_per_peer: MAX_CONNECTIONS_PER_PEER,
        reservation_duration: limits.reservation_time,
        reservation_rate_limiters,
        max_circuits: limits.circuits,
        // libp2p refuses what comes when there are more than so many already.
        max_circuits_per_peer: limits.circuits_per_peer.saturating_sub(1),
        max_circuit_duration: limits.circuit_time,
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    };
    let mut server = relay::Behaviour::new(peer, limits);
    serve_relay(&mut server, config.relay_server);
    server
}

/// Has a relay serve or not. One that serves does so while it has an address to give to others: a place without one leads
/// nowhere.
pub(crate) fn serve_relay(server: &mut relay::Behaviour, serve: bool) {
    server.set_status(if serve { None } else { Some(relay::Status::Disable) });
}

/// Lets only some peers have a place: what libp2p asks before each, beside its limits.
struct Admitted(RelayFor);

impl relay::RateLimiter for Admitted {
    fn try_next(&mut self, peer: PeerId, _: &Multiaddr, _: Instant) -> bool {
        (self.0)(&to_peer(&peer))
    }
}

fn setup(part: &'static str, reason: impl ToString) -> StartError {
    StartError::Setup { part, reason: reason.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use super::*;

    fn message(source: PeerId, sequence_number: u64, data: &[u8]) -> gossipsub::Message {
        gossipsub::Message {
            source: Some(source),
            data: data.to_vec(),
            sequence_number: Some(sequence_number),
            topic: gossipsub::TopicHash::from_raw("t"),
        }
    }

    #[test]
    fn equal_payloads_of_two_signers_are_two_messages() {
        let (a, b) = (PeerId::random(), PeerId::random());
        assert_eq!(message_id(&message(a, 1, b"offer")), message_id(&message(a, 1, b"offer")));
        assert_ne!(message_id(&message(a, 1, b"offer")), message_id(&message(b, 1, b"offer")));
        assert_ne!(message_id(&message(a, 1, b"offer")), message_id(&message(a, 2, b"offer")));
    }

    #[test]
    fn topic_scores_are_valid() {
        topic_scores().validate().unwrap();
    }
}
