//! The store on disk: blocks of any size and any hash function in a few large files.
//!
//! [`PackStore`] is the [`BlobStore`](iptl_artifacts::BlobStore) of a node. Blocks are appended to pack files as framed
//! records ([`record`]) that say themselves what they hold; an index from hash to place ([`index`]) can lag behind, and
//! is brought up to date from the packs when the store opens. So a write is one append, and durable is one `fdatasync`.
//! `engine` has the store without async; its parts are files by what is asked of it: `recover`, `compact`, `check`.
//! Whatever touches the file system goes through [`files::Files`], under which the tests put a disk that fails.
//!
//! The format is in `docs/spec/pack-store.md`, the reasons and figures in `docs/decisions/0010-pack-store.md`.

mod check;
mod compact;
mod engine;
pub mod files;
mod index;
mod lock;
mod places;
mod record;
mod recover;
mod scan;
mod store;

pub use check::Checked;
pub use engine::Options;
pub use lock::OpenError;
pub use store::PackStore;
