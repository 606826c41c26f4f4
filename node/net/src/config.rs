//! What a node is told before it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::PeerId;

/// Says whether a peer is given a place at this relay. It runs in the task that owns the swarm, so it must be quick and
/// must not block.
pub type RelayFor = Arc<dyn Fn(&PeerId) -> bool + Send + Sync>;

/// What a relay gives at most. The defaults suit a lab: many lablets share one NAT, and their circuits carry whole runs,
/// so there is no limit on bytes and none on how often one address asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Places for peers, all together.
    pub reservations: usize,
    /// Time for which a place is given; its holder renews it when three quarters are over.
    pub reservation_time: Duration,
    /// Connections relayed at a time.
    pub circuits: usize,
    /// Of these, connections from one peer or to it.
    pub circuits_per_peer: usize,
    /// Time after which a relayed connection ends, at most `u32::MAX` seconds; whoever needs it makes another.
    pub circuit_time: Duration,
    /// Bytes each way after which it ends; 0 for no limit.
    pub circuit_bytes: u64,
}

impl Default for RelayLimits {
    fn default() -> RelayLimits {
        RelayLimits {
            reservations: 1_024,
            reservation_time: Duration::from_secs(3_600),
            circuits: 1_024,
            circuits_per_peer: 64,
            circuit_time: Duration::from_secs(24 * 3_600),
            circuit_bytes: 0,
        }
    }
}

/// Whether this node answers other nodes' Kademlia queries.
///
/// The mode is never changed by the node itself: a relay reservation confirms an external address, and the automatic
/// mode of libp2p would take that for reachability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KadMode {
    /// Answers queries and stores provider records; for nodes that others can dial.
    Server,
    /// Asks only; for nodes behind a NAT.
    Client,
    /// Server when the node listens, at start, on an address that it tells others (see [`Config::private_addrs_ok`]),
    /// client otherwise.
    Auto,
}

/// Settings of a node.
#[derive(Clone)]
pub struct Config {
    /// Ed25519 seed; the peer ID follows from it.
    pub seed: [u8; 32],
    /// Multiaddrs to listen on. Port 0 takes a free port. An address that ends in `/p2p-circuit` asks that relay for a
    /// reservation, in the background and again when it is lost.
    pub listen: Vec<String>,
    /// Finds peers on the local network, and lets them find this node.
    pub mdns: bool,
    /// Name and version told to peers.
    pub agent: String,
    /// Relays connections for peers that nobody can dial, from the start; see [`Net::serve_relay`](crate::Net::serve_relay).
    pub relay_server: bool,
    /// What the node gives as a relay.
    pub relay_limits: RelayLimits,
    /// Who is given a place at this relay; everybody where it is absent. Connections are relayed *to* peers that have one,
    /// whoever makes them.
    pub relay_for: Option<RelayFor>,
    /// Role in the DHT.
    pub kad: KadMode,
    /// Addresses, each with `/p2p/<peer>`, of peers to stay connected to. They are also the way into the DHT.
    pub known: Vec<String>,
    /// Takes loopback and private addresses for reachable ones: they are announced, and remembered when others announce
    /// them. Right for a lab in one building or one machine.
    pub private_addrs_ok: bool,
    /// Streams that one peer may have open towards this node; more are refused. At most 1,024.
    pub inbound_streams_per_peer: usize,
}

impl Default for Config {
    /// A node on free ports of all IPv4 interfaces, QUIC and TCP, with a seed of zeros: set the seed.
    fn default() -> Config {
        Config {
            seed: [0; 32],
            listen: vec!["/ip4/0.0.0.0/udp/0/quic-v1".into(), "/ip4/0.0.0.0/tcp/0".into()],
            mdns: false,
            agent: concat!("iptl/", env!("CARGO_PKG_VERSION")).into(),
            relay_server: false,
            relay_limits: RelayLimits::default(),
            relay_for: None,
            kad: KadMode::Auto,
            known: Vec::new(),
            private_addrs_ok: true,
            inbound_streams_per_peer: crate::streams::MAX_INBOUND_STREAMS_PER_PEER,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("seed", &"***")
            .field("listen", &self.listen)
            .field("mdns", &self.mdns)
            .field("agent", &self.agent)
            .field("relay_server", &self.relay_server)
            .field("relay_limits", &self.relay_limits)
            .field("relay_for", &self.relay_for.as_ref().map(|_| "…"))
            .field("kad", &self.kad)
            .field("known", &self.known)
            .field("private_addrs_ok", &self.private_addrs_ok)
            .field("inbound_streams_per_peer", &self.inbound_streams_per_peer)
            .finish()
    }
}
