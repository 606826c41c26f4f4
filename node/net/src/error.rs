//! One error per operation.

use iptl_dag::PeerId;

/// Why a text is no usable address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{addr:?} is not a usable address: {reason}")]
pub struct AddrError {
    /// The text.
    pub addr: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process listens there.
    #[error("{addr} is in use by another process")]
    PortInUse {
        /// The address as configured.
        addr: String,
    },
    /// The address is none of this machine, or its port is reserved, or its transport is unknown.
    #[error("listening on {addr}: {reason}")]
    Listen {
        /// The address as configured.
        addr: String,
        /// What the system or the transport said.
        reason: String,
    },
    /// An address in the configuration is malformed.
    #[error(transparent)]
    BadAddr(#[from] AddrError),
    /// A part of the node could not be set up.
    #[error("setting up {part}: {reason}")]
    Setup {
        /// The part: a transport or a behaviour.
        part: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Why a further address is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is malformed.
    #[error(transparent)]
    BadAddr(#[from] AddrError),
    /// The system, the transport or the relay refused.
    #[error("listening on {addr}: {reason}")]
    Refused {
        /// The address asked for.
        addr: String,
        /// What was said.
        reason: String,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why no connection was made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No address of the peer is known, here or in the DHT.
    #[error("no address of {peer} is known")]
    NoAddress {
        /// The peer.
        peer: PeerId,
    },
    /// None of the addresses answered.
    #[error("none of {tried} address(es) answered: {reason}")]
    Unreachable {
        /// How many addresses were tried.
        tried: usize,
        /// What the last ones said.
        reason: String,
    },
    /// Another peer answered at the address.
    #[error("{addr} is answered by {actual}")]
    WrongPeer {
        /// The address.
        addr: String,
        /// Who answered.
        actual: PeerId,
    },
    /// The peer or the address is this node's own.
    #[error("that is this node itself")]
    Own,
    /// An address is malformed.
    #[error(transparent)]
    BadAddr(#[from] AddrError),
    /// A limit on connections was reached.
    #[error("refused: {reason}")]
    Refused {
        /// Which limit.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why no stream was opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer, and none could be made with what is known.
    #[error("not connected to {peer}: {source}")]
    NotConnected {
        /// The peer.
        peer: PeerId,
        /// Why the addresses known here did not help.
        source: DialError,
    },
    /// The peer does not speak the protocol.
    #[error("{peer} does not speak {protocol}")]
    Unsupported {
        /// The peer.
        peer: PeerId,
        /// The protocol.
        protocol: &'static str,
    },
    /// The peer has no room for another stream.
    #[error("{peer} refuses another stream")]
    Refused {
        /// The peer.
        peer: PeerId,
    },
    /// The connection ended while the stream was being opened.
    #[error("connection to {peer} lost: {reason}")]
    Lost {
        /// The peer.
        peer: PeerId,
        /// What was seen.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer from {peer} within {seconds} s")]
    Timeout {
        /// The peer.
        peer: PeerId,
        /// How long was waited.
        seconds: u64,
    },
    /// The protocol name does not begin with `/`.
    #[error("{protocol:?} is no protocol name")]
    BadProtocol {
        /// The name.
        protocol: &'static str,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why a protocol is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// Another part of this process accepts it already.
    #[error("{protocol} is accepted already")]
    Taken {
        /// The protocol.
        protocol: &'static str,
    },
    /// The protocol name does not begin with `/`.
    #[error("{protocol:?} is no protocol name")]
    BadProtocol {
        /// The name.
        protocol: &'static str,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why a topic is not subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Another part of this process subscribed already.
    #[error("{topic} is subscribed to already")]
    Taken {
        /// The topic.
        topic: String,
    },
    /// The subscription could not be announced.
    #[error("subscribing to {topic}: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// What gossipsub said.
        reason: String,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connected peer subscribes to the topic, and none did while the message waited.
    #[error("no connected peer subscribes to {topic}")]
    NoPeers {
        /// The topic.
        topic: String,
    },
    /// The message is larger than gossip carries.
    #[error("{size} bytes are more than the {limit} that gossip carries")]
    TooLarge {
        /// Size of the message in bytes.
        size: usize,
        /// Largest size in bytes.
        limit: usize,
    },
    /// Every subscribed peer is too slow to take another message.
    #[error("the queues to all {peers} subscribed peers are full")]
    QueuesFull {
        /// How many peers subscribe.
        peers: usize,
    },
    /// Too many messages wait for a first subscriber.
    #[error("{waiting} messages wait for a subscriber already")]
    TooManyWaiting {
        /// How many.
        waiting: usize,
    },
    /// Gossipsub refused the message.
    #[error("publishing to {topic}: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// What gossipsub said.
        reason: String,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}

/// Why a key is not announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvideError {
    /// The node announces as many keys as it can keep.
    #[error("this node provides {limit} keys already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The key is empty or longer than a multihash can be.
    #[error("a key of {size} bytes is no multihash")]
    BadKey {
        /// Its size in bytes.
        size: usize,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
}
