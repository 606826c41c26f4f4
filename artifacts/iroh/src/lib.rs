//! The store on disk and the transfer of blocks, on iroh-blobs.
//!
//! [`FsBlobStore`] is the [`BlobStore`](iptl_artifacts::BlobStore) of a node: iroh-blobs' file store behind the trait,
//! with a lock, a durable flush, removal, and an index of hashes that are not BLAKE3. [`Provider`] answers requests of
//! the iroh-blobs protocol on any stream; [`get_many`] is the asking half of its GetMany request.
//!
//! This is the only crate that names iroh, and it uses none of its networking: no endpoint is made, no relay asked.
//! Streams come from the node's swarm. Start reading at [`FsBlobStore`].

mod alias;
mod fs;
mod get;
mod provider;

pub use fs::{FsBlobStore, OpenError};
pub use get::{GetManyOutcome, MAX_HASHES, TransferError, get_many};
pub use provider::{Provider, ServeError, Served, provider};

/// Name of the protocol on the swarm's streams: iroh-blobs' fourth version as it is, on other streams than iroh's.
pub const PROTOCOL: &str = "/iptl/iroh-blobs/4";
