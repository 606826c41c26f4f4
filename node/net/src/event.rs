//! What the node tells, and the values of its questions.

use std::sync::Arc;

use iptl_dag::PeerId;

/// Something that happened in the swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// The first connection to a peer, or its first direct one after relayed ones.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Address of the other end.
        addr: String,
        /// The connection runs through a relay.
        relayed: bool,
    },
    /// The last connection to a peer ended.
    Disconnected {
        /// The peer.
        peer: PeerId,
    },
    /// A peer announced itself on the local network.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// Its addresses.
        addrs: Vec<String>,
    },
    /// The node listens on one more address.
    Listening {
        /// The address, with `/p2p/<self>`.
        addr: String,
    },
    /// An address is known to reach this node from outside: its own, confirmed by others, or one at a relay.
    External {
        /// The address, with `/p2p/<self>`.
        addr: String,
    },
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer.
    pub peer: PeerId,
    /// Addresses of the other end, one for each connection, direct ones first.
    pub addrs: Vec<String>,
    /// All connections run through relays.
    pub relayed: bool,
    /// They are so new that hole punching may still make a direct one.
    pub unsettled: bool,
    /// Name and version that the peer told, once it has.
    pub agent: Option<String>,
}

/// How a node is reached from outside, as far as its relays can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// A relay has dialled it.
    Directly,
    /// Nobody can dial it: it is behind a NAT or a firewall, and is reached by way of relays alone.
    Relayed,
}

/// A place that a relay gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The relay.
    pub relay: PeerId,
    /// How often it was renewed.
    pub renewed: u64,
}

/// How a node is reached, and whether others are reached through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// How it is reached; nothing while that is not known, or where no relays are named.
    pub reached: Option<Reached>,
    /// Places that relays gave when the node asked by itself; best first.
    pub places: Vec<Place>,
    /// It relays connections for others.
    pub relays: bool,
}

/// What a validator says about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GossipVerdict {
    /// Deliver it here and forward it.
    Accept,
    /// Do neither, and hold it against those who forwarded it.
    Reject,
    /// Do neither, and hold it against nobody.
    Ignore,
}

/// Judges a message before it is delivered or forwarded: `(signer, data)`.
///
/// It runs in the task that owns the swarm, so it must be quick and must not block.
pub type Validate = Arc<dyn Fn(&PeerId, &[u8]) -> GossipVerdict + Send + Sync>;

/// A message that the validator accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipMessage {
    /// Who signed it; not necessarily who forwarded it.
    pub source: PeerId,
    /// The payload.
    pub data: Vec<u8>,
}
