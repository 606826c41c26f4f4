//! Writing directories and symbolic links, and which names they may have.

use std::collections::BTreeMap;

use super::pb::{Metadata, PbKind, PbLink, PbNode, PbUnixFs};
use super::{Entry, Profile, hamt};
use crate::{Block, Codec, MAX_BLOCK_SIZE};

/// Why a name cannot stand in a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of a file: {reason}")]
pub struct NameError {
    /// The name.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Checks that a name names one thing inside its directory, wherever the directory is written to.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let reason = match name {
        "" => "it is empty",
        "." | ".." => "it leaves its directory",
        _ if name.contains('/') => "it contains a slash",
        _ if name.contains('\0') => "it contains a NUL",
        _ => return Ok(()),
    };
    Err(NameError { name: name.to_owned(), reason })
}

/// Why a directory could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// A name that no directory may hold.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name is there already.
    #[error("{name:?} is in the directory already")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Two names that no tree can tell apart: their hashes are equal.
    #[error("{first:?} and {second:?} cannot stand in one sharded directory: their hashes are equal")]
    Collision {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A node of the directory needs a larger block than there may be.
    #[error("a directory of {entries} entries takes {size} bytes, more than a block of {MAX_BLOCK_SIZE}")]
    TooLarge {
        /// Number of entries.
        entries: usize,
        /// Size of the block in bytes.
        size: usize,
    },
}

/// Builds a directory: in one block, or sharded where its profile says that it is too large for that.
#[derive(Clone, Debug, Default)]
pub struct DirectoryBuilder {
    profile: Profile,
    metadata: Metadata,
    /// A `String` orders by its bytes, as dag-pb wants the links.
    entries: BTreeMap<String, Entry>,
}

impl DirectoryBuilder {
    /// Starts an empty directory under the lab's own profile.
    pub fn new() -> DirectoryBuilder {
        DirectoryBuilder::default()
    }

    /// Starts an empty directory under a profile.
    pub fn with_profile(profile: Profile) -> DirectoryBuilder {
        DirectoryBuilder { profile, ..DirectoryBuilder::default() }
    }

    /// Keeps mode and time in the root, whose CID they change.
    pub fn metadata(mut self, metadata: Metadata) -> DirectoryBuilder {
        self.metadata = metadata;
        self
    }

    /// Adds an entry; refuses names that could mean something outside the directory, and names that are there.
    pub fn insert(&mut self, name: impl Into<String>, entry: Entry) -> Result<(), DirectoryError> {
        let name = name.into();
        check_name(&name)?;
        if self.entries.contains_key(&name) {
            return Err(DirectoryError::Duplicate { name });
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Encodes the directory and appends its blocks to `blocks`, the root at the end.
    pub fn finish(self, blocks: &mut Vec<Block>) -> Result<Entry, DirectoryError> {
        let content_size = self.entries.values().map(|e| e.content_size).fold(0, u64::saturating_add);
        let message = PbUnixFs { metadata: self.metadata, ..PbUnixFs::new(PbKind::Directory) }.encode();
        let links_size = self.entries.iter().map(|(name, e)| name.len() + e.cid.encoded_len()).sum();
        let links = self.entries.iter().map(|(name, e)| link(name, e)).collect();
        let data = PbNode { links, data: Some(message) }.encode();
        if self.profile.shards(data.len(), links_size) {
            let entries = self.entries.into_iter();
            let (cid, total_size) = hamt::build(self.profile, entries, self.metadata, blocks)?;
            return Ok(Entry { cid, total_size, content_size });
        }
        let size = data.len();
        if size > MAX_BLOCK_SIZE {
            return Err(DirectoryError::TooLarge { entries: self.entries.len(), size });
        }
        let below = self.entries.values().map(|e| e.total_size).fold(size as u64, u64::saturating_add);
        let block = self.profile.block(Codec::DagPb, data.into());
        let cid = *block.cid();
        blocks.push(block);
        Ok(Entry { cid, total_size: below, content_size })
    }
}

fn link(name: &str, entry: &Entry) -> PbLink {
    PbLink { cid: entry.cid, name: Some(name.to_owned()), tsize: Some(entry.total_size) }
}

/// Builds a symbolic link and appends its block to `blocks`. Its target is text; nobody here follows it.
///
/// # Panics
///
/// Panics where the target does not fit into a block: that of a file system has 4,096 bytes at most.
pub fn symlink(profile: Profile, target: &str, metadata: Metadata, blocks: &mut Vec<Block>) -> Entry {
    let data = Some(target.as_bytes().to_vec());
    let message = PbUnixFs { data, metadata, ..PbUnixFs::new(PbKind::Symlink) };
    let node = PbNode { links: Vec::new(), data: Some(message.encode()) };
    let block = profile.block(Codec::DagPb, node.encode().into());
    let entry = Entry { cid: *block.cid(), total_size: block.data().len() as u64, content_size: 0 };
    blocks.push(block);
    entry
}

/// Returns the block of the empty directory.
pub fn empty_directory() -> Block {
    let mut blocks = Vec::new();
    DirectoryBuilder::new().finish(&mut blocks).expect("an empty directory fits into a block");
    blocks.remove(0)
}
