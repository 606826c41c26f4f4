//! Blocks by CID, checked, from wherever the caller keeps them.

use bytes::Bytes;
use iptl_dag::codec::DecodeError;
use iptl_dag::model::{self, Node};
use iptl_dag::unixfs::pb::PbNode;
use iptl_dag::unixfs::{Entry, FileReader, UnixFs, UnixFsError};
use iptl_dag::{Block, Cid, Codec, HashError};

/// Largest file that is read, in bytes: above any sensible limit of a run on records. A few blocks can stand for more
/// than anybody can read.
const MAX_FILE_SIZE: u64 = 4 << 30;

/// Why a block could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The caller does not have it.
    #[error("block {cid} is missing")]
    Missing {
        /// Block in question.
        cid: Cid,
    },
    /// The caller's bytes are not those of the CID.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The block is not a node of the expected kind.
    #[error("{cid} is not usable")]
    Node {
        /// Block in question.
        cid: Cid,
        /// What the decoder met.
        #[source]
        source: DecodeError,
    },
    /// The file is larger than any that is read.
    #[error("the file {cid} has {size} bytes, more than {MAX_FILE_SIZE}")]
    TooLarge {
        /// Root of the file.
        cid: Cid,
        /// Its size in bytes.
        size: u64,
    },
    /// The block is not a file or directory.
    #[error("{cid} is not usable")]
    UnixFs {
        /// Block in question.
        cid: Cid,
        /// What the decoder met.
        #[source]
        source: UnixFsError,
    },
}

/// Reads blocks and checks each against its CID.
pub(crate) struct Source<'a> {
    read: &'a mut dyn FnMut(&Cid) -> Option<Bytes>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(read: &'a mut dyn FnMut(&Cid) -> Option<Bytes>) -> Source<'a> {
        Source { read }
    }

    pub(crate) fn reader(&mut self) -> &mut dyn FnMut(&Cid) -> Option<Bytes> {
        self.read
    }

    pub(crate) fn block(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        let bytes = (self.read)(cid).ok_or(SourceError::Missing { cid: *cid })?;
        Ok(Block::verify(*cid, bytes)?)
    }

    pub(crate) fn node<T: TryFrom<Node, Error = DecodeError>>(&mut self, cid: &Cid) -> Result<T, SourceError> {
        let block = self.block(cid)?;
        model::from_bytes(block.data()).map_err(|source| SourceError::Node { cid: *cid, source })
    }

    /// Reads the root of a file or directory, as a directory that links it must list it.
    pub(crate) fn entry(&mut self, cid: &Cid) -> Result<Entry, SourceError> {
        let block = self.block(cid)?;
        let own_size = block.data().len() as u64;
        if Codec::of(cid) == Some(Codec::Raw) {
            return Ok(Entry::of_block(&block));
        }
        let unusable = |source| SourceError::UnixFs { cid: *cid, source };
        let node = PbNode::decode(block.data()).map_err(|e| unusable(e.into()))?;
        let below = node.links.iter().filter_map(|l| l.tsize).fold(0, u64::saturating_add);
        let content_size = match UnixFs::of_block(&block).map_err(unusable)? {
            UnixFs::File(file) => file.size,
            UnixFs::Directory(_) | UnixFs::Shard(_) | UnixFs::Symlink(_) => 0,
        };
        Ok(Entry { cid: *cid, total_size: own_size.saturating_add(below), content_size })
    }

    /// Reads a file piece by piece, in order.
    pub(crate) fn for_each_piece(&mut self, file: &Cid, mut f: impl FnMut(&[u8])) -> Result<(), SourceError> {
        let mut reader = FileReader::new(*file);
        while let Some(cid) = reader.next().copied() {
            let block = self.block(&cid)?;
            let piece = reader.supply(&block).map_err(|source| SourceError::UnixFs { cid, source })?;
            if let Some(size) = reader.size().filter(|size| *size > MAX_FILE_SIZE) {
                return Err(SourceError::TooLarge { cid: *file, size });
            }
            f(&piece);
        }
        Ok(())
    }
}
