//! Reading: nodes, and the content of files in order.

use bytes::Bytes;

use super::pb::{PbError, PbKind, PbLink, PbNode, PbUnixFs};
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
    /// The file is at its end.
    #[error("the file has been read to its end")]
    AtEnd,
}

/// A node of UnixFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixFs {
    /// A file, or a part of one.
    File(FileNode),
    /// A directory in one block; entries in the order of the block.
    Directory(Vec<DirEntry>),
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
        let node = PbNode::decode(bytes)?;
        let message = PbUnixFs::decode(node.data.as_deref().ok_or(UnixFsError::NoData)?)?;
        match message.kind {
            PbKind::Raw | PbKind::File => file_node(node.links, message).map(UnixFs::File),
            PbKind::Directory => node.links.into_iter().map(dir_entry).collect::<Result<_, _>>().map(UnixFs::Directory),
            PbKind::Symlink => {
                String::from_utf8(message.data.unwrap_or_default()).map(UnixFs::Symlink).map_err(|_| UnixFsError::Name)
            }
            PbKind::Metadata => Err(UnixFsError::Unsupported { what: "a metadata node" }),
            PbKind::HamtShard => Err(UnixFsError::Unsupported { what: "a sharded directory" }),
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

/// Reads a file in order, one block at a time, without touching a store.
///
/// Ask [`next`](FileReader::next) for a CID, get the block, [`supply`](FileReader::supply) it and write what comes
/// back. The number of steps is bounded by the file's size. [`upcoming`](FileReader::upcoming) names the CIDs after it, for reading ahead.
#[derive(Clone, Debug)]
pub struct FileReader {
    /// What is still to be read, the next at the end, each with its depth.
    pending: Vec<Pending>,
    size: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    cid: Cid,
    /// Size that the parent states; the root has no parent.
    size: Option<u64>,
    depth: usize,
}

impl FileReader {
    /// Starts at the root of a file.
    pub fn new(root: Cid) -> FileReader {
        FileReader { pending: vec![Pending { cid: root, size: None, depth: 0 }], size: None }
    }

    /// Returns the size of the file in bytes, once the root was supplied.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Returns the block that comes next, or `None` at the end of the file.
    pub fn next(&self) -> Option<&Cid> {
        self.pending.last().map(|p| &p.cid)
    }

    /// Returns up to `max` blocks in the order in which they will be wanted, as far as is known by now.
    pub fn upcoming(&self, max: usize) -> impl Iterator<Item = &Cid> {
        self.pending.iter().rev().take(max).map(|p| &p.cid)
    }

    /// Takes the block that comes next and returns the content that stands in it, which may be none.
    ///
    /// The reader stays as it was where the block is refused.
    pub fn supply(&mut self, block: &Block) -> Result<Bytes, UnixFsError> {
        let next = *self.pending.last().ok_or(UnixFsError::AtEnd)?;
        if next.cid != *block.cid() {
            return Err(UnixFsError::WrongBlock { expected: next.cid, got: *block.cid() });
        }
        let node = match UnixFs::of_block(block)? {
            UnixFs::File(node) => node,
            UnixFs::Directory(_) | UnixFs::Symlink(_) => return Err(UnixFsError::NotAFile),
        };
        if next.size.is_some_and(|stated| stated != node.size) {
            return Err(UnixFsError::Sizes);
        }
        if next.depth == MAX_FILE_DEPTH && !node.parts.is_empty() {
            return Err(UnixFsError::TooDeep);
        }
        self.pending.pop();
        self.size.get_or_insert(node.size);
        let depth = next.depth + 1;
        // A part without content is left out: a tree of nothing but those could be walked for ever.
        let parts = node.parts.iter().rev().filter(|p| p.size > 0);
        self.pending.extend(parts.map(|p| Pending { cid: p.cid, size: Some(p.size), depth }));
        Ok(node.data)
    }
}
