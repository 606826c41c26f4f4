//! The content of a file in a store, whole or in part.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use iptl_dag::unixfs::FileReader;
use iptl_dag::{Block, Cid, HashError, Multihash};

use crate::export::ExportError;
use crate::{BlobStore, StoreError};

/// Blocks of a file that are read from the store together.
const READ_AHEAD: usize = 16;

/// Reads a whole file of at most `limit` bytes into memory. Cancel safe.
pub async fn read_file(store: &dyn BlobStore, cid: &Cid, limit: u64) -> Result<Bytes, ExportError> {
    Contents::new(store, *cid, limit).read_to_end().await
}

/// Reads some bytes of a file into memory: as many of the range as the file has. Cancel safe.
///
/// Blocks that hold nothing of the range are not read, and may be missing.
pub async fn read_range(store: &dyn BlobStore, cid: &Cid, range: Range<u64>) -> Result<Bytes, ExportError> {
    Contents::of_range(store, *cid, range).read_to_end().await
}

/// The content of a file, piece by piece, reading ahead.
pub(crate) struct Contents<'a> {
    store: &'a dyn BlobStore,
    root: Cid,
    limit: u64,
    reader: FileReader,
    ahead: BTreeMap<Cid, Block>,
}

impl<'a> Contents<'a> {
    pub(crate) fn new(store: &'a dyn BlobStore, root: Cid, limit: u64) -> Contents<'a> {
        Contents { store, root, limit, reader: FileReader::new(root), ahead: BTreeMap::new() }
    }

    /// The content of a part of a file, however large the whole is.
    pub(crate) fn of_range(store: &'a dyn BlobStore, root: Cid, range: Range<u64>) -> Contents<'a> {
        Contents { reader: FileReader::of_range(root, range), ..Contents::new(store, root, u64::MAX) }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ExportError> {
        while let Some(cid) = self.reader.next().copied() {
            let block = match self.ahead.remove(&cid) {
                Some(block) => block,
                None => self.read_ahead(cid).await?,
            };
            let content =
                self.reader.supply(&block).map_err(|source| ExportError::UnixFs { cid: *block.cid(), source })?;
            let size = self.reader.size().unwrap_or(0);
            if size > self.limit {
                return Err(ExportError::TooLarge { cid: self.root, size, limit: self.limit });
            }
            if !content.is_empty() {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    async fn read_to_end(mut self) -> Result<Bytes, ExportError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Reads the next block together with those after it, and returns it.
    async fn read_ahead(&mut self, cid: Cid) -> Result<Block, ExportError> {
        self.ahead.clear();
        let mut cids: Vec<Cid> = self.reader.upcoming(READ_AHEAD).copied().collect();
        cids.sort_unstable();
        cids.dedup();
        let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in cids.into_iter().zip(self.store.get_batch(&hashes).await?) {
            // One that lies further on and is missing is reported when it is next.
            let Some(data) = data else { continue };
            self.ahead.insert(cid, verified(cid, data)?);
        }
        self.ahead.remove(&cid).ok_or(ExportError::Missing { cid })
    }
}

pub(crate) fn verified(cid: Cid, data: Bytes) -> Result<Block, StoreError> {
    Block::verify(cid, data).map_err(|error| match error {
        HashError::Mismatch { cid } => StoreError::Corrupt { hash: *cid.hash() },
        HashError::UnknownHash { .. } | HashError::TooLarge { .. } => StoreError::Hash(error),
    })
}
