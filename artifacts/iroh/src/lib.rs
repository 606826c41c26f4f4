//! The transfer of blocks by the protocol of iroh-blobs.
//!
//! [`Provider`] answers its requests on any stream, out of any [`BlobStore`](iptl_artifacts::BlobStore); [`get_many`] is
//! the asking half of its GetMany request.
//!
//! This is the only crate that names iroh, and it uses its messages and none of its networking or storage: no endpoint is
//! made, no relay asked. Streams come from the node's swarm, blocks from the node's store.

mod get;
mod provider;

pub use get::{GetManyOutcome, MAX_HASHES, TransferError, get_many};
pub use provider::{Provider, ServeError, Served, multihash};

/// Name of the protocol on the swarm's streams: iroh-blobs' fourth version as it is, on other streams than iroh's.
pub const PROTOCOL: &str = "/iptl/iroh-blobs/4";
