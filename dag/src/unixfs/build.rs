//! Writing files: bytes that arrive in pieces to leaves, and leaves to a tree.

use bytes::Bytes;
use fastcdc::v2020::{Normalization, select_masks};

use super::pb::{Metadata, PbKind, PbLink, PbNode, PbUnixFs};
use super::{LEAF_AVERAGE, LEAF_MAX, Profile};
use crate::{Block, Cid, Codec};

/// Bytes that a builder holds before it cuts: two leaves of the largest size, so that moving the tail is cheap.
const BUFFER_SIZE: usize = 2 * LEAF_MAX;

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
        FileBuilder { profile, buffer: Vec::new(), masks, metadata, last_node: None, levels: vec![Vec::new()] }
    }

    /// Keeps mode and time in the root, whose CID they change. A file of one raw leaf then has a node above it.
    pub fn metadata(mut self, metadata: Metadata) -> FileBuilder {
        self.metadata = metadata;
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

    /// Ends the file and appends its last blocks, the root at the end.
    ///
    /// A file of one leaf is that leaf; an empty file is the empty leaf.
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
    fn cut_leaves(&mut self, enough: usize, blocks: &mut Vec<Block>) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut start = 0;
        while buffer.len() - start >= enough {
            let length = self.profile.leaf_length(&buffer[start..], self.masks);
            self.add_leaf(Bytes::copy_from_slice(&buffer[start..start + length]), blocks);
            start += length;
        }
        self.buffer = buffer;
        self.buffer.drain(..start);
    }

    fn add_leaf(&mut self, data: Bytes, blocks: &mut Vec<Block>) {
        let file_size = data.len() as u64;
        let block = if self.profile.has_raw_leaves() {
            self.profile.block(Codec::Raw, data)
        } else {
            let message = PbUnixFs {
                data: (!data.is_empty()).then(|| data.to_vec()),
                file_size: Some(file_size),
                ..PbUnixFs::new(PbKind::File)
            };
            self.node(Vec::new(), &message)
        };
        let total_size = block.data().len() as u64;
        self.add(0, Part { cid: *block.cid(), file_size, total_size }, block, blocks);
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
        let data = PbNode { links, data: Some(message.encode()) }.encode();
        let block = self.profile.block(Codec::DagPb, data.into());
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
