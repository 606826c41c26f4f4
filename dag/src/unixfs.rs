//! Files and directories as UnixFS: dag-pb nodes over raw leaves.
//!
//! [`FileBuilder`] turns a stream of bytes into blocks, [`DirectoryBuilder`] names into one block; [`UnixFs::decode`]
//! reads a node back, and [`FileReader`] walks the leaves of a file in order, with sizes checked on the way. [`pb`]
//! holds the two protobuf messages underneath. Sharded directories are recognised and refused, not read.

mod build;
pub mod pb;
mod read;

pub use build::{
    DirectoryBuilder, DirectoryError, Entry, FILE_WIDTH, FileBuilder, LEAF_AVERAGE, LEAF_MAX, LEAF_MIN, NameError,
    Profile, check_name, empty_directory,
};
pub use read::{DirEntry, FileNode, FilePart, FileReader, MAX_FILE_DEPTH, UnixFs, UnixFsError};
