//! Bitswap 1.2 without IO: how blocks move between this node and whoever else speaks the protocol of IPFS.
//!
//! [`Message`] is what goes over the wire, [`frame()`] and [`Frames`] put it on a stream. [`Client`] gets blocks: sessions
//! want them, it finds out who has them, asks, and gives up those who are silent, slow or lie. [`Server`] gives blocks:
//! it keeps what each peer wants and answers in turns. Client and server of a node share its streams and nothing else.
//!
//! Both have three verbs: `handle(now, input)`, `poll_effect()` and `poll_timeout()`. `now` is the time since a moment that
//! the driver chose once, and does not go backwards. Effects are carried out **in order**.
//!
//! What arrives is checked before it comes here: [`Incoming`] holds [`Block`](iptl_dag::Block)s, which cannot be made
//! from unchecked bytes, so nothing unverified can be delivered. Hashing is the driver's, on whatever thread it likes.

mod client;
mod fault;
mod frame;
mod message;
mod protobuf;
mod server;

pub use client::{Client, ClientEffect, ClientInput, SessionId};
pub use fault::Fault;
pub use frame::{FrameError, Frames, frame};
pub use message::{Ask, Entry, Incoming, Message, MessageError, Payload, Prefix, Presence};
pub use server::{Server, ServerEffect, ServerInput, TurnId, Visible};

/// The protocols spoken, the best one first. They share the form of their messages; peers of 1.1 answer no want-have and
/// say nothing of what they lack. 1.0 names blocks by SHA2-256 alone: what it sends is read, but it is not offered.
pub const PROTOCOLS: [&str; 2] = [PROTOCOL, PROTOCOL_1_1];

/// Bitswap 1.2.
pub const PROTOCOL: &str = "/ipfs/bitswap/1.2.0";

/// Bitswap 1.1.
pub const PROTOCOL_1_1: &str = "/ipfs/bitswap/1.1.0";

/// Largest message, in bytes without its length: what every implementation accepts.
pub const MAX_MESSAGE_SIZE: usize = 4 << 20;

/// Longest CID in a message, in bytes: a digest of 128 bytes and its head, with room to spare.
pub const MAX_CID_SIZE: usize = 168;

/// Entries of wantlists, blocks and presences that are read of one message, of each so many. Far above what others put
/// into one, and few enough that a message takes no more memory than its bytes.
pub const MAX_ITEMS: usize = 16_384;

/// Wants of one peer that a server keeps, as other implementations do.
pub const MAX_WANTS_PER_PEER: usize = 1_024;

/// Shortest digest that is served, in bytes; shorter ones can be forged.
pub const MIN_DIGEST_SIZE: usize = 20;
