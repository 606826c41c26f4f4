//! Reading directories to their end, sharded or not.

use super::hamt::Place;
use super::{DirEntry, UnixFs, UnixFsError};
use crate::{Block, Cid};

/// Reads all entries of a directory, one block at a time, without touching a store.
///
/// Ask [`next`](DirectoryReader::next) for a CID, get the block, and [`supply`](DirectoryReader::supply) it. A directory
/// in one block is done with that. No entry is given twice, and of a directory that no writer makes a few nodes are asked
/// for, whatever it claims to hold.
///
/// A name is what the block says: pass it through [`check_name`](super::check_name) before it becomes a path.
#[derive(Clone, Debug)]
pub struct DirectoryReader {
    /// What is still to be read, the next at the end.
    pending: Vec<(Cid, Place)>,
    is_sharded: bool,
}

impl DirectoryReader {
    /// Starts at the root of a directory.
    pub fn new(root: Cid) -> DirectoryReader {
        DirectoryReader { pending: vec![(root, Place::default())], is_sharded: false }
    }

    /// Returns the block that comes next, or `None` at the end.
    pub fn next(&self) -> Option<&Cid> {
        self.pending.last().map(|(cid, _)| cid)
    }

    /// Returns up to `max` blocks in the order in which they will be wanted, as far as is known by now.
    pub fn upcoming(&self, max: usize) -> impl Iterator<Item = &Cid> {
        self.pending.iter().rev().take(max).map(|(cid, _)| cid)
    }

    /// Takes the block that comes next and returns the entries that stand in it, in the order of the block.
    ///
    /// The reader stays as it was where the block is refused.
    pub fn supply(&mut self, block: &Block) -> Result<Vec<DirEntry>, UnixFsError> {
        let &(cid, place) = self.pending.last().ok_or(UnixFsError::AtEnd)?;
        if cid != *block.cid() {
            return Err(UnixFsError::WrongBlock { expected: cid, got: *block.cid() });
        }
        match UnixFs::of_block(block)? {
            UnixFs::Directory(entries) if !self.is_sharded => {
                self.pending.pop();
                Ok(entries)
            }
            UnixFs::Shard(shard) => {
                let parts = shard.take_apart(place)?;
                self.pending.pop();
                self.pending.extend(parts.shards.into_iter().rev());
                self.is_sharded = true;
                Ok(parts.entries)
            }
            UnixFs::Directory(_) | UnixFs::File(_) | UnixFs::Symlink(_) => Err(UnixFsError::NotADirectory),
        }
    }
}
