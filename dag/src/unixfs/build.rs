//! Writing files: bytes that arrive in pieces to leaves, and leaves to a tree.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use fastcdc::v2020::{Normalization, select_masks};

use super::pb::{Metadata, PbKind, PbLink, PbNode, PbUnixFs};
use super::{LEAF_AVERAGE, LEAF_MAX, Profile};
use crate::{Block, Cid, Codec};

/// Bytes that a builder holds before it cuts: four leaves of the largest size, so that moving the tail is cheap, and what
/// is cut off at a time is worth a thread.
const BUFFER_SIZE: usize = 4 * LEAF_MAX;

/// Does two things, at once where it can: this crate has no threads of its own. Both are done on return.
pub type Both = fn(beside: &(dyn Fn() + Sync), here: &mut dyn FnMut());

/// Does two things one after the other.
fn in_turn(beside: &(dyn Fn() + Sync), here: &mut dyn FnMut()) {
    here();
    beside();
}

/// Buffers that are kept for the next bytes: as many as whoever stores blocks holds back. The system wants a new one touched
/// page by page, which takes as long as a copy.
const SPARE_BUFFERS: usize = 8;

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
/// Holds at most 8 MiB of content, up to 32 MiB of memory that blocks left and one node's links per level of the tree. The pieces' sizes leave no trace: cut
/// points depend on the content alone. Of a file of more than 4 MiB, leaves can be hashed while the next ones are read and
/// cut: [`FileBuilder::at_once`].
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
    spare: Arc<Spare>,
    both: Both,
    /// Leaves that are cut and not hashed.
    cut: Vec<Bytes>,
    masks: (u64, u64),
    metadata: Metadata,
    /// The node that was made last, which is the root where there is one.
    last_node: Option<Block>,
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
        let metadata = Metadata::default();
        FileBuilder {
            profile,
            buffer: Vec::new(),
            spare: Arc::default(),
            both: in_turn,
            cut: Vec::new(),
            masks,
            metadata,
            last_node: None,
            levels: vec![Vec::new()],
        }
    }

    /// Keeps mode and time in the root, whose CID they change. A file of one raw leaf then has a node above it.
    pub fn metadata(mut self, metadata: Metadata) -> FileBuilder {
        self.metadata = metadata;
        self
    }

    /// Hashes leaves while others are read and cut, by a caller that can do both at once.
    pub fn at_once(mut self, both: Both) -> FileBuilder {
        self.both = both;
        self
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

    /// Takes the next bytes that `from` has, without a copy between; returns how many, none at its end.
    ///
    /// `expected` is how many there may be: room is made for them at once. Leaves that were cut before are hashed while
    /// the bytes are read, and become blocks even where reading fails.
    pub fn push_from(&mut self, from: impl Read, expected: u64, blocks: &mut Vec<Block>) -> io::Result<usize> {
        let room = BUFFER_SIZE - self.buffer.len();
        // One more, so that the end is met without a second buffer.
        let expected = usize::try_from(expected.saturating_add(1)).unwrap_or(room);
        let mut buffer = std::mem::take(&mut self.buffer);
        let cutter = self.cutter(LEAF_MAX);
        let (read, cut) = self.hash_beside(blocks, || {
            buffer.reserve_exact(expected.min(room));
            let read = from.take(room as u64).read_to_end(&mut buffer);
            let cut = if buffer.len() < BUFFER_SIZE { Cut::none(buffer) } else { cutter.cut(buffer) };
            (read, cut)
        });
        self.keep(cut);
        read
    }

    /// Ends the file and appends its last blocks, the root at the end.
    ///
    /// A file of one leaf is that leaf; an empty file is the empty leaf.
    pub fn finish(mut self, blocks: &mut Vec<Block>) -> Entry {
        self.cut_leaves(1, blocks);
        let rest = std::mem::take(&mut self.cut);
        rest.into_iter().for_each(|leaf| self.add_leaf(leaf, blocks));
        if self.levels.iter().all(Vec::is_empty) {
            self.add_leaf(Bytes::new(), blocks);
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            match (self.levels[level].as_slice(), top) {
                ([root], true) => {
                    let root = root.clone();
                    let root = if self.metadata.is_empty() { root } else { self.with_metadata(root, blocks) };
                    return Entry { cid: root.cid, total_size: root.total_size, content_size: root.file_size };
                }
                ([], _) => {}
                _ => self.close_node(level, blocks),
            }
            level += 1;
        }
    }

    /// Cuts leaves while at least `enough` bytes are at hand: [`LEAF_MAX`] of them settle where the next cut is.
    ///
    /// Those that were cut before are hashed meanwhile, and become blocks.
    fn cut_leaves(&mut self, enough: usize, blocks: &mut Vec<Block>) {
        let (buffer, cutter) = (std::mem::take(&mut self.buffer), self.cutter(enough));
        let cut = self.hash_beside(blocks, || cutter.cut(buffer));
        self.keep(cut);
    }

    fn cutter(&self, enough: usize) -> Cutter {
        Cutter { profile: self.profile, masks: self.masks, spare: self.spare.clone(), enough }
    }

    fn keep(&mut self, cut: Cut) {
        (self.cut, self.buffer) = (cut.leaves, cut.rest);
    }

    /// Hashes the leaves that are cut while `work` is done, and makes them blocks.
    fn hash_beside<T>(&mut self, blocks: &mut Vec<Block>, work: impl FnOnce() -> T) -> T {
        let before = std::mem::take(&mut self.cut);
        let (hashed, done) = hash_beside(self.profile, self.both, &before, work);
        hashed.into_iter().for_each(|leaf| self.add_hashed(leaf, blocks));
        done
    }

    fn add_leaf(&mut self, data: Bytes, blocks: &mut Vec<Block>) {
        self.add_hashed(Leaf::hash(self.profile, data), blocks);
    }

    fn add_hashed(&mut self, leaf: Leaf, blocks: &mut Vec<Block>) {
        if !self.profile.has_raw_leaves() {
            self.last_node = Some(leaf.block.clone());
        }
        let total_size = leaf.block.data().len() as u64;
        let part = Part { cid: *leaf.block.cid(), file_size: leaf.file_size, total_size };
        self.add(0, part, leaf.block, blocks);
    }

    fn add(&mut self, level: usize, part: Part, block: Block, blocks: &mut Vec<Block>) {
        blocks.push(block);
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(part);
        if self.levels[level].len() == self.profile.file_width() {
            self.close_node(level, blocks);
        }
    }

    /// Gives the links of `level` a parent.
    fn close_node(&mut self, level: usize, blocks: &mut Vec<Block>) {
        let parts = std::mem::take(&mut self.levels[level]);
        let file_size = parts.iter().map(|p| p.file_size).sum();
        let message = PbUnixFs {
            file_size: Some(file_size),
            block_sizes: parts.iter().map(|p| p.file_size).collect(),
            ..PbUnixFs::new(PbKind::File)
        };
        let links =
            parts.iter().map(|p| PbLink { cid: p.cid, name: Some(String::new()), tsize: Some(p.total_size) }).collect();
        let block = self.node(links, &message);
        let total_size = block.data().len() as u64 + parts.iter().map(|p| p.total_size).sum::<u64>();
        self.add(level + 1, Part { cid: *block.cid(), file_size, total_size }, block, blocks);
    }

    fn node(&mut self, links: Vec<PbLink>, message: &PbUnixFs) -> Block {
        let block = node(self.profile, links, message);
        self.last_node = Some(block.clone());
        block
    }

    /// Makes the root again with mode and time, above it where it is a raw leaf, which has no room for them.
    fn with_metadata(&mut self, root: Part, blocks: &mut Vec<Block>) -> Part {
        let (mut node, mut message, below) = match self.last_node.take() {
            Some(block) => {
                let node = PbNode::decode(block.data()).expect("it was written here");
                let message = PbUnixFs::decode(node.data.as_deref().unwrap_or_default()).expect("it was written here");
                // Nothing links the root that has neither.
                if blocks.last().is_some_and(|last| last.cid() == block.cid()) {
                    blocks.pop();
                }
                (node, message, root.total_size - block.data().len() as u64)
            }
            None => {
                let message = PbUnixFs {
                    file_size: Some(root.file_size),
                    block_sizes: vec![root.file_size],
                    ..PbUnixFs::new(PbKind::File)
                };
                let leaf = PbLink { cid: root.cid, name: Some(String::new()), tsize: Some(root.total_size) };
                (PbNode { links: vec![leaf], data: None }, message, root.total_size)
            }
        };
        message.metadata = self.metadata;
        node.data = Some(message.encode());
        let block = self.profile.block(Codec::DagPb, node.encode().into());
        let total_size = below + block.data().len() as u64;
        let part = Part { cid: *block.cid(), file_size: root.file_size, total_size };
        blocks.push(block);
        part
    }
}

/// How bytes at hand become leaves.
struct Cutter {
    profile: Profile,
    masks: (u64, u64),
    spare: Arc<Spare>,
    /// Bytes without which nothing is cut.
    enough: usize,
}

/// What came of cutting.
struct Cut {
    leaves: Vec<Bytes>,
    /// Bytes that are in no leaf yet.
    rest: Vec<u8>,
}

impl Cut {
    fn none(rest: Vec<u8>) -> Cut {
        Cut { leaves: Vec::new(), rest }
    }
}

impl Cutter {
    fn cut(&self, buffer: Vec<u8>) -> Cut {
        let buffer = self.spare.lend(buffer);
        let (mut cut, mut start) = (Cut::none(Vec::new()), 0);
        while buffer.len() - start >= self.enough {
            let length = self.profile.leaf_length(&buffer[start..], self.masks);
            cut.leaves.push(buffer.slice(start..start + length));
            start += length;
        }
        if start < buffer.len() {
            cut.rest = self.spare.take();
            cut.rest.extend_from_slice(&buffer[start..]);
        }
        cut
    }
}

/// Buffers whose leaves are all stored.
#[derive(Debug, Default)]
struct Spare {
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Spare {
    fn take(&self) -> Vec<u8> {
        let mut buffer = self.buffers().pop().unwrap_or_default();
        buffer.reserve_exact(BUFFER_SIZE);
        buffer
    }

    /// Gives bytes away, whose buffer comes back when the last leaf of it is dropped.
    fn lend(self: &Arc<Spare>, buffer: Vec<u8>) -> Bytes {
        if buffer.len() < BUFFER_SIZE {
            return buffer.into();
        }
        Bytes::from_owner(Lent { buffer, to: self.clone() })
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A full buffer that leaves refer to.
struct Lent {
    buffer: Vec<u8>,
    to: Arc<Spare>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut buffers = self.to.buffers();
        if buffers.len() < SPARE_BUFFERS {
            buffers.push(buffer);
        }
    }
}

/// A leaf as a block.
struct Leaf {
    block: Block,
    file_size: u64,
}

impl Leaf {
    fn hash(profile: Profile, data: Bytes) -> Leaf {
        let file_size = data.len() as u64;
        let block = if profile.has_raw_leaves() {
            profile.block(Codec::Raw, data)
        } else {
            let message = PbUnixFs {
                data: (!data.is_empty()).then(|| data.to_vec()),
                file_size: Some(file_size),
                ..PbUnixFs::new(PbKind::File)
            };
            node(profile, Vec::new(), &message)
        };
        Leaf { block, file_size }
    }
}

fn node(profile: Profile, links: Vec<PbLink>, message: &PbUnixFs) -> Block {
    let data = PbNode { links, data: Some(message.encode()) }.encode();
    profile.block(Codec::DagPb, data.into())
}

/// Hashes leaves while `work` is done, and after it.
fn hash_beside<T>(profile: Profile, both: Both, leaves: &[Bytes], work: impl FnOnce() -> T) -> (Vec<Leaf>, T) {
    let (next, hashed) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(leaves.len())));
    let hash = || {
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(leaf) = leaves.get(at)
        {
            let leaf = Leaf::hash(profile, leaf.clone());
            hashed.lock().unwrap_or_else(PoisonError::into_inner).push((at, leaf));
        }
    };
    let (mut work, mut done) = (Some(work), None);
    let mut here = || {
        done = work.take().map(|work| work());
        hash();
    };
    match leaves {
        [] => here(),
        [..] => both(&hash, &mut here),
    }
    let mut hashed = hashed.into_inner().unwrap_or_else(PoisonError::into_inner);
    hashed.sort_unstable_by_key(|(at, _)| *at);
    (hashed.into_iter().map(|(_, leaf)| leaf).collect(), done.expect("what is to be done here was done"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unixfs::{FILE_WIDTH, FileNode, UnixFs};

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
            UnixFs::Directory(_) | UnixFs::Shard(_) | UnixFs::Symlink(_) => panic!("not a file"),
        }
    }
}
