//! Blocks at rest: where they are kept, how files become blocks and blocks become files again, and what may be dropped.
//!
//! [`BlobStore`] is the one seam: blocks by multihash, verified before they enter. [`MemStore`] is the back end of tests
//! and of short-lived work; the one on disk lives in a crate of its own, and [`contract`] is what each must pass.
//! [`import`] makes UnixFS out of files and directories, [`export`] writes them back, [`car`] is a whole
//! DAG as a stream, out and in,
//! [`Pins`] says what is kept and for whom, [`gc`] drops the rest, [`Collectable`] does so while the store is in use,
//! [`Recent`] knows what nobody pins and somebody used, and [`PublicIndex`] what strangers may read. [`Seen`] keeps a walk
//! over millions of blocks small.
//!
//! Nothing here opens a connection: fetching is the node's work. Start reading at [`BlobStore`].

pub mod car;
mod collect;
mod collectable;
mod contents;
pub mod contract;
pub mod export;
pub mod import;
mod mem;
mod pins;
mod public;
mod recent;
mod seen;
mod store;

pub use collect::{CollectError, Collected, gc};
pub use collectable::{Collectable, Session};
pub use iptl_dag::Multihash;
pub use mem::MemStore;
pub use pins::{Pin, PinKind, PinMode, Pins, PinsError};
pub use public::{Added, PublicError, PublicIndex};
pub use recent::Recent;
pub use seen::Seen;
pub use store::{BlobStore, HashName, StoreError, Usage, blake3_of, identity_of, read_block};
