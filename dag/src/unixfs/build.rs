//! Writing: bytes to files, names to directories.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastcdc::v2020::{Normalization, cut, select_masks};
use multihash_codetable::Code;

use super::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use crate::{Block, Cid, Codec, MAX_BLOCK_SIZE};

/// Smallest leaf in bytes, but for the last of a file. With the next two fixed for ever: every file's CID hangs on it.
pub const LEAF_MIN: usize = 16 << 10;
/// Average leaf in bytes, about which cut points are normalised.
pub const LEAF_AVERAGE: usize = 64 << 10;
/// Largest leaf in bytes: what IPFS peers accept without being asked for more.
pub const LEAF_MAX: usize = 1 << 20;
/// Most links of a node within a file, from the profile `unixfs-v1-2025`.
pub const FILE_WIDTH: usize = 1024;

/// Bytes that a builder holds before it cuts: two leaves of the largest size, so that moving the tail is cheap.
const BUFFER_SIZE: usize = 2 * LEAF_MAX;

/// Rules by which bytes become blocks; the same bytes under the same profile give the same CID for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The lab's own: FastCDC leaves under BLAKE3-256, so that a leaf's digest is its hash on the wire.
    #[default]
    Iptl,
    /// `unixfs-v1-2025` of IPIP-499: leaves of 1 MiB under SHA2-256, the CIDs that IPFS tools give under that name.
    UnixFsV1,
}

impl Profile {
    fn block(self, codec: Codec, data: Bytes) -> Block {
        match self {
            Profile::Iptl => Block::new(codec, data),
            Profile::UnixFsV1 => Block::with_hash(codec, Code::Sha2_256, data),
        }
    }
}

/// A finished file or directory, as a directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Root.
    pub cid: Cid,
    /// Bytes of all blocks under the root, the root included.
    pub total_size: u64,
    /// Bytes of content: of a file its size, of a directory the content of everything in it as far as it is known.
    pub content_size: u64,
}

impl Entry {
    /// Names a block that stands alone: a raw leaf, or a node of another codec.
    pub fn of_block(block: &Block) -> Entry {
        let size = block.data().len() as u64;
        Entry { cid: *block.cid(), total_size: size, content_size: size }
    }
}

/// Builds a file from bytes that arrive in pieces.
///
/// Holds at most 2 MiB of content and one node's links per level of the tree. The pieces' sizes leave no trace: cut
/// points depend on the content alone.
///
/// ```
/// use iptl_dag::unixfs::FileBuilder;
///
/// let mut blocks = Vec::new();
/// let mut file = FileBuilder::new();
/// file.push(b"hello ", &mut blocks);
/// file.push(b"world", &mut blocks);
/// let entry = file.finish(&mut blocks);
/// assert_eq!(entry.cid, *blocks[0].cid());
/// assert_eq!(entry.content_size, 11);
/// ```
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    buffer: Vec<u8>,
    masks: (u64, u64),
    /// Links that have no parent yet, leaves first.
    levels: Vec<Vec<Part>>,
}

/// A finished subtree of a file.
#[derive(Clone, Debug)]
struct Part {
    cid: Cid,
    file_size: u64,
    total_size: u64,
}

impl Default for FileBuilder {
    fn default() -> FileBuilder {
        FileBuilder::new()
    }
}

impl FileBuilder {
    /// Starts a file under the lab's own profile.
    pub fn new() -> FileBuilder {
        FileBuilder::with_profile(Profile::Iptl)
    }

    /// Starts a file under a profile.
    pub fn with_profile(profile: Profile) -> FileBuilder {
        let masks = select_masks(LEAF_AVERAGE, Normalization::Level1);
        FileBuilder { profile, buffer: Vec::new(), masks, levels: vec![Vec::new()] }
    }

    /// Builds a file that is in memory as a whole.
    pub fn of_bytes(bytes: &[u8], blocks: &mut Vec<Block>) -> Entry {
        let mut file = FileBuilder::new();
        file.push(bytes, blocks);
        file.finish(blocks)
    }

    /// Takes the next bytes and appends the blocks that are finished by them to `blocks`.
    pub fn push(&mut self, mut bytes: &[u8], blocks: &mut Vec<Block>) {
        while !bytes.is_empty() {
            let room = BUFFER_SIZE - self.buffer.len();
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(head);
            bytes = rest;
            if self.buffer.len() == BUFFER_SIZE {
                self.cut_leaves(LEAF_MAX, blocks);
            }
        }
    }

    /// Ends the file and appends its last blocks, the root at the end.
    ///
    /// A file of one leaf is that leaf; an empty file is the empty raw block.
    pub fn finish(mut self, blocks: &mut Vec<Block>) -> Entry {
        self.cut_leaves(1, blocks);
        if self.levels.iter().all(Vec::is_empty) {
            self.add_leaf(Bytes::new(), blocks);
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            match (self.levels[level].as_slice(), top) {
                ([root], true) => {
                    return Entry { cid: root.cid, total_size: root.total_size, content_size: root.file_size };
                }
                ([], _) => {}
                _ => self.close_node(level, blocks),
            }
            level += 1;
        }
    }

    /// Cuts leaves while at least `enough` bytes are at hand: [`LEAF_MAX`] of them settle where the next cut is.
    fn cut_leaves(&mut self, enough: usize, blocks: &mut Vec<Block>) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut start = 0;
        while buffer.len() - start >= enough {
            let length = self.leaf_length(&buffer[start..]);
            self.add_leaf(Bytes::copy_from_slice(&buffer[start..start + length]), blocks);
            start += length;
        }
        self.buffer = buffer;
        self.buffer.drain(..start);
    }

    fn leaf_length(&self, bytes: &[u8]) -> usize {
        match self.profile {
            Profile::Iptl => {
                let (strict, relaxed) = self.masks;
                let (_, length) =
                    cut(bytes, LEAF_MIN, LEAF_AVERAGE, LEAF_MAX, strict, relaxed, strict << 1, relaxed << 1);
                length
            }
            Profile::UnixFsV1 => bytes.len().min(LEAF_MAX),
        }
    }

    fn add_leaf(&mut self, data: Bytes, blocks: &mut Vec<Block>) {
        let size = data.len() as u64;
        let block = self.profile.block(Codec::Raw, data);
        self.add(0, Part { cid: *block.cid(), file_size: size, total_size: size }, block, blocks);
    }

    fn add(&mut self, level: usize, part: Part, block: Block, blocks: &mut Vec<Block>) {
        blocks.push(block);
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(part);
        if self.levels[level].len() == FILE_WIDTH {
            self.close_node(level, blocks);
        }
    }

    /// Gives the links of `level` a parent.
    fn close_node(&mut self, level: usize, blocks: &mut Vec<Block>) {
        let parts = std::mem::take(&mut self.levels[level]);
        let file_size = parts.iter().map(|p| p.file_size).sum();
        let message = PbUnixFs {
            kind: PbKind::File,
            data: None,
            file_size: Some(file_size),
            block_sizes: parts.iter().map(|p| p.file_size).collect(),
        };
        let links =
            parts.iter().map(|p| PbLink { cid: p.cid, name: Some(String::new()), tsize: Some(p.total_size) }).collect();
        let data = PbNode { links, data: Some(message.encode()) }.encode();
        let total_size = data.len() as u64 + parts.iter().map(|p| p.total_size).sum::<u64>();
        let block = self.profile.block(Codec::DagPb, data.into());
        self.add(level + 1, Part { cid: *block.cid(), file_size, total_size }, block, blocks);
    }
}

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
    /// The directory needs a larger block than there may be.
    #[error("a directory of {entries} entries takes {size} bytes, more than a block of {MAX_BLOCK_SIZE}")]
    TooLarge {
        /// Number of entries.
        entries: usize,
        /// Size of the block in bytes.
        size: usize,
    },
}

/// Builds a directory in one block.
#[derive(Clone, Debug, Default)]
pub struct DirectoryBuilder {
    profile: Profile,
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
        DirectoryBuilder { profile, entries: BTreeMap::new() }
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

    /// Encodes the directory and appends its block to `blocks`.
    pub fn finish(self, blocks: &mut Vec<Block>) -> Result<Entry, DirectoryError> {
        let entries = self.entries.len();
        let sum = |size: fn(&Entry) -> u64| self.entries.values().map(size).fold(0_u64, u64::saturating_add);
        let (total_size, content_size) = (sum(|e| e.total_size), sum(|e| e.content_size));
        let links = self
            .entries
            .into_iter()
            .map(|(name, e)| PbLink { cid: e.cid, name: Some(name), tsize: Some(e.total_size) })
            .collect();
        let message = PbUnixFs { kind: PbKind::Directory, data: None, file_size: None, block_sizes: Vec::new() };
        let data = PbNode { links, data: Some(message.encode()) }.encode();
        let size = data.len();
        if size > MAX_BLOCK_SIZE {
            return Err(DirectoryError::TooLarge { entries, size });
        }
        let block = self.profile.block(Codec::DagPb, data.into());
        let cid = *block.cid();
        blocks.push(block);
        Ok(Entry { cid, total_size: total_size.saturating_add(size as u64), content_size })
    }
}

/// Returns the block of the empty directory.
pub fn empty_directory() -> Block {
    let mut blocks = Vec::new();
    DirectoryBuilder::new().finish(&mut blocks).expect("an empty directory fits into a block");
    blocks.remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unixfs::{FileNode, UnixFs};

    #[test]
    fn file_of_as_many_leaves_as_a_node_is_wide_has_one_node() {
        let (root, blocks) = build(FILE_WIDTH);
        assert_eq!(blocks.len(), FILE_WIDTH + 1);
        assert_eq!(node(&blocks, &root).parts.len(), FILE_WIDTH);
    }

    #[test]
    fn last_leaf_of_a_wider_file_stands_as_deep_as_the_others() {
        let (root, blocks) = build(FILE_WIDTH + 1);
        let root = node(&blocks, &root);
        assert_eq!(root.size, 4 * (FILE_WIDTH as u64 + 1));
        assert_eq!(root.parts.iter().map(|p| p.size).collect::<Vec<_>>(), [4 * FILE_WIDTH as u64, 4]);
        assert_eq!(node(&blocks, &root.parts[1].cid).parts.len(), 1);
    }

    /// Adds leaves as if they had been cut: a gigabyte of content would show no more.
    fn build(leaves: usize) -> (Cid, Vec<Block>) {
        let (mut file, mut blocks) = (FileBuilder::new(), Vec::new());
        for i in 0..leaves {
            file.add_leaf(Bytes::copy_from_slice(&(i as u32).to_be_bytes()), &mut blocks);
        }
        (file.finish(&mut blocks).cid, blocks)
    }

    fn node(blocks: &[Block], cid: &Cid) -> FileNode {
        let block = blocks.iter().find(|b| b.cid() == cid).expect("built");
        match UnixFs::of_block(block).expect("valid") {
            UnixFs::File(node) => node,
            UnixFs::Directory(_) | UnixFs::Symlink(_) => panic!("not a file"),
        }
    }
}
