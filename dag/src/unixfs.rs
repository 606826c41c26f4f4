//! Files and directories as UnixFS: dag-pb nodes over raw leaves.
//!
//! [`FileBuilder`] turns a stream of bytes into blocks, [`DirectoryBuilder`] names into one block or a tree of them;
//! [`UnixFs::decode`] reads a node back. [`FileReader`] walks the leaves of a file or of a part of one in order, with
//! sizes checked on the way, and [`DirectoryReader`] the nodes of a directory. Both step from block to block and touch no
//! store. A [`Profile`] says which CIDs come out. [`pb`] holds the two protobuf messages underneath.

mod build;
mod directory;
mod hamt;
mod listing;
pub mod pb;
mod profile;
mod read;

pub use build::{Both, Entry, FileBuilder};
pub use directory::{DirectoryBuilder, DirectoryError, NameError, check_name, empty_directory, symlink};
pub use hamt::Shard;
pub(crate) use hamt::{Found, Place};
pub use listing::DirectoryReader;
pub use pb::{Metadata, Modified};
pub use profile::{DIRECTORY_MAX, FILE_WIDTH, LEAF_AVERAGE, LEAF_MAX, LEAF_MIN, Profile, ProfileError};
pub use read::{DirEntry, FileNode, FilePart, FileReader, MAX_FILE_DEPTH, UnixFs, UnixFsError, metadata_of};
