//! The lab's data as content-addressed nodes.
//!
//! Everything that matters in the lab has a CID: plans, workloads, runs, placements, facts, receipts, outcomes and
//! results are the [`model`]; files and directories are [`unixfs`]; [`codec`] and [`block`] turn values into verified
//! blocks and back; [`walk`] follows links within bounds; [`path`] resolves names below a CID; [`car`] is a
//! DAG as a stream; [`varint`] reads numbers and CIDs.
//!
//! Nothing here touches a file, a socket or a clock. Start reading at [`model`]: the schemas in `schemas/` are the
//! normative text of what it encodes.

pub mod block;
pub mod car;
pub mod codec;
pub mod model;
pub mod path;
pub mod peer;
pub mod unixfs;
pub mod varint;
pub mod walk;

pub use block::{Block, Cid, Codec, HashError, MAX_BLOCK_SIZE};
pub use codec::{DecodeError, EncodeError, decode, encode};
pub use ipld_core::ipld::Ipld;

pub use peer::PeerId;

/// Multihash with room for a 64-byte digest, the largest that the lab verifies.
pub type Multihash = multihash::Multihash<64>;
