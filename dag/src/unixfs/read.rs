//! Reading: nodes, and the content of files in order.

use std::ops::Range;

use bytes::Bytes;

use super::Shard;
use super::pb::{Metadata, PbError, PbKind, PbLink, PbNode, PbUnixFs};
use crate::{Block, Cid, Codec};

/// Deepest tree of a file that is read: even of width 2, one this deep holds more than any store.
pub const MAX_FILE_DEPTH: usize = 64;

/// Why a node cannot be read as a file, directory or symlink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnixFsError {
    /// The bytes are not a dag-pb node with a UnixFS message.
    #[error("not a UnixFS node: {0}")]
    Pb(#[from] PbError),
    /// A dag-pb node without data.
    #[error("not a UnixFS node: it has no data")]
    NoData,
    /// The codec has no UnixFS meaning.
    #[error("codec {codec:#x} does not hold files")]
    Codec {
        /// Multicodec number.
        codec: u64,
    },
    /// The sizes that a file's node states do not add up.
    #[error("the sizes in a file's node do not add up")]
    Sizes,
    /// A node of a sharded directory that no writer makes.
    #[error("a sharded directory cannot be read: {reason}")]
    Shard {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A valid node of a kind that is not read here.
    #[error("{what} cannot be read")]
    Unsupported {
        /// Kind of the node.
        what: &'static str,
    },
    /// A directory has an entry without a name, or a symlink is not UTF-8.
    #[error("a name is missing or is not UTF-8")]
    Name,
    /// Expected a file.
    #[error("not a file")]
    NotAFile,
    /// Expected a directory, or a node of one.
    #[error("not a directory")]
    NotADirectory,
    /// The tree of a file is deeper than any writer makes it.
    #[error("a file's tree is deeper than {MAX_FILE_DEPTH} levels")]
    TooDeep,
    /// The block that was supplied is not the one that comes next.
    #[error("expected block {expected} and got {got}")]
    WrongBlock {
        /// CID that comes next.
        expected: Cid,
        /// CID of the block that was supplied.
        got: Cid,
    },
    /// The file or directory is at its end.
    #[error("all of it has been read")]
    AtEnd,
}

/// A node of UnixFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixFs {
    /// A file, or a part of one.
    File(FileNode),
    /// A directory in one block; entries in the order of the block.
    Directory(Vec<DirEntry>),
    /// A node of a sharded directory; a [`DirectoryReader`](super::DirectoryReader) reads them all.
    Shard(Shard),
    /// A symbolic link with its target, which nobody follows.
    Symlink(String),
}

/// A file's node: what stands in it, then what stands under its links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// Content in the node itself; comes before that of the parts.
    pub data: Bytes,
    /// Children in the order of the content.
    pub parts: Vec<FilePart>,
    /// Bytes of content under this node.
    pub size: u64,
}

impl FileNode {
    /// Returns the parts that hold some of a range of this node's content, in order, each with what of its own content
    /// that is.
    pub fn parts_of(&self, range: &Range<u64>) -> impl Iterator<Item = (Cid, Range<u64>)> {
        let mut start = self.data.len() as u64;
        self.parts.iter().filter_map(move |part| {
            let whole = start..start + part.size;
            start = whole.end;
            overlap(range, whole.clone()).map(|wanted| (part.cid, wanted.start - whole.start..wanted.end - whole.start))
        })
    }
}

/// A child of a file's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePart {
    /// Its CID.
    pub cid: Cid,
    /// Bytes of content under it, as its parent states.
    pub size: u64,
}

/// An entry of a directory.
///
/// The name is what the block says: pass it through [`check_name`](super::check_name) before it becomes a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name.
    pub name: String,
    /// Target.
    pub cid: Cid,
    /// Bytes of all blocks under the target, as its writer stated.
    pub total_size: u64,
}

impl UnixFs {
    /// Decodes the bytes of a dag-pb block; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<UnixFs, UnixFsError> {
        let (node, message) = decode_both(bytes)?;
        match message.kind {
            PbKind::Raw | PbKind::File => file_node(node.links, message).map(UnixFs::File),
            PbKind::Directory => node.links.into_iter().map(dir_entry).collect::<Result<_, _>>().map(UnixFs::Directory),
            PbKind::Symlink => {
                String::from_utf8(message.data.unwrap_or_default()).map(UnixFs::Symlink).map_err(|_| UnixFsError::Name)
            }
            PbKind::Metadata => Err(UnixFsError::Unsupported { what: "a metadata node" }),
            PbKind::HamtShard => Shard::of_node(node.links, &message).map(UnixFs::Shard),
        }
    }

    /// Reads a block: raw blocks are files.
    pub fn of_block(block: &Block) -> Result<UnixFs, UnixFsError> {
        match Codec::of(block.cid()) {
            Some(Codec::Raw) => {
                let data = block.data().clone();
                Ok(UnixFs::File(FileNode { size: data.len() as u64, data, parts: Vec::new() }))
            }
            Some(Codec::DagPb) => UnixFs::decode(block.data()),
            Some(Codec::DagCbor | Codec::DagJson) | None => Err(UnixFsError::Codec { codec: block.cid().codec() }),
        }
    }
}

/// Reads mode and time of a file, directory or symlink. Raw blocks have none, nor has what is not UnixFS.
pub fn metadata_of(block: &Block) -> Result<Metadata, UnixFsError> {
    match Codec::of(block.cid()) {
        Some(Codec::DagPb) => decode_both(block.data()).map(|(_, message)| message.metadata),
        Some(Codec::Raw | Codec::DagCbor | Codec::DagJson) | None => Ok(Metadata::default()),
    }
}

fn decode_both(bytes: &[u8]) -> Result<(PbNode, PbUnixFs), UnixFsError> {
    let node = PbNode::decode(bytes)?;
    let message = PbUnixFs::decode(node.data.as_deref().ok_or(UnixFsError::NoData)?)?;
    Ok((node, message))
}

fn file_node(links: Vec<PbLink>, message: PbUnixFs) -> Result<FileNode, UnixFsError> {
    if links.len() != message.block_sizes.len() {
        return Err(UnixFsError::Sizes);
    }
    let data = Bytes::from(message.data.unwrap_or_default());
    let size = message
        .block_sizes
        .iter()
        .try_fold(data.len() as u64, |sum, size| sum.checked_add(*size))
        .filter(|size| message.file_size.is_none_or(|stated| stated == *size))
        .ok_or(UnixFsError::Sizes)?;
    let parts = links.iter().zip(message.block_sizes).map(|(link, size)| FilePart { cid: link.cid, size }).collect();
    Ok(FileNode { data, parts, size })
}

fn dir_entry(link: PbLink) -> Result<DirEntry, UnixFsError> {
    let name = link.name.ok_or(UnixFsError::Name)?;
    Ok(DirEntry { name, cid: link.cid, total_size: link.tsize.unwrap_or(0) })
}

/// Reads a file or a part of one in order, one block at a time, without touching a store.
///
/// Ask [`next`](FileReader::next) for a CID, get the block, [`supply`](FileReader::supply) it and write what comes
/// back. The number of steps is bounded by the bytes that are read: blocks beside the part are not asked for.
/// [`upcoming`](FileReader::upcoming) names the CIDs after the next, for reading ahead.
#[derive(Clone, Debug)]
pub struct FileReader {
    /// What is still to be read, the next at the end.
    pending: Vec<Pending>,
    size: Option<u64>,
    /// Bytes of the file that are wanted.
    range: Range<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    cid: Cid,
    /// Size that the parent states; the root has no parent.
    size: Option<u64>,
    /// Bytes of the file before this part.
    start: u64,
    depth: usize,
}

impl FileReader {
    /// Starts at the root of a file, to read all of it.
    pub fn new(root: Cid) -> FileReader {
        FileReader::of_range(root, 0..u64::MAX)
    }

    /// Starts at the root of a file, to read some of its bytes: as many of the range as the file has.
    pub fn of_range(root: Cid, range: Range<u64>) -> FileReader {
        FileReader { pending: vec![Pending { cid: root, size: None, start: 0, depth: 0 }], size: None, range }
    }

    /// Returns the size of the whole file in bytes, once the root was supplied.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Returns the block that comes next, or `None` at the end.
    pub fn next(&self) -> Option<&Cid> {
        self.pending.last().map(|p| &p.cid)
    }

    /// Returns up to `max` blocks in the order in which they will be wanted, as far as is known by now.
    pub fn upcoming(&self, max: usize) -> impl Iterator<Item = &Cid> {
        self.pending.iter().rev().take(max).map(|p| &p.cid)
    }

    /// Takes the block that comes next and returns the wanted content that stands in it, which may be none.
    ///
    /// The reader stays as it was where the block is refused.
    pub fn supply(&mut self, block: &Block) -> Result<Bytes, UnixFsError> {
        let next = *self.pending.last().ok_or(UnixFsError::AtEnd)?;
        if next.cid != *block.cid() {
            return Err(UnixFsError::WrongBlock { expected: next.cid, got: *block.cid() });
        }
        let node = match UnixFs::of_block(block)? {
            UnixFs::File(node) => node,
            UnixFs::Directory(_) | UnixFs::Shard(_) | UnixFs::Symlink(_) => return Err(UnixFsError::NotAFile),
        };
        if next.size.is_some_and(|stated| stated != node.size) || next.start.checked_add(node.size).is_none() {
            return Err(UnixFsError::Sizes);
        }
        if next.depth == MAX_FILE_DEPTH && !node.parts.is_empty() {
            return Err(UnixFsError::TooDeep);
        }
        self.pending.pop();
        self.size.get_or_insert(node.size);
        let end = next.start + node.data.len() as u64;
        let content = overlap(&self.range, next.start..end).map_or(Bytes::new(), |wanted| {
            let within = |at: u64| usize::try_from(at - next.start).expect("it lies within the data of a block");
            node.data.slice(within(wanted.start)..within(wanted.end))
        });
        let first = self.pending.len();
        let mut start = end;
        for part in &node.parts {
            // A part without content is left out: a tree of nothing but those could be walked for ever.
            if overlap(&self.range, start..start + part.size).is_some() {
                self.pending.push(Pending { cid: part.cid, size: Some(part.size), start, depth: next.depth + 1 });
            }
            start += part.size;
        }
        self.pending[first..].reverse();
        Ok(content)
    }
}

/// Returns what two ranges have in common, where that is not empty.
fn overlap(a: &Range<u64>, b: Range<u64>) -> Option<Range<u64>> {
    let common = a.start.max(b.start)..a.end.min(b.end);
    (!common.is_empty()).then_some(common)
}
