//! The trait that every back end implements, and what can go wrong with one.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use iptl_dag::{Block, Cid, HashError, MAX_BLOCK_SIZE, Multihash};

/// Multihash code of BLAKE3.
const BLAKE3: u64 = 0x1e;

/// Multihash code of the identity function.
const IDENTITY: u64 = 0x00;

/// Verified blocks, kept by multihash.
///
/// The codec is no part of the key: one entry serves every CID that names the same bytes. Whoever puts holds a [`Block`],
/// so nothing enters unverified. An identity hash holds its own bytes: it is always present and never stored.
///
/// [`contract`](crate::contract) states the rest as tests.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Says for each hash whether its block is present. Cancel safe.
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError>;

    /// Returns the bytes of one block, at most [`MAX_BLOCK_SIZE`], or `None` where it is absent. Cancel safe.
    ///
    /// Bytes that no longer hash to their key are [`StoreError::Corrupt`], never returned.
    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError>;

    /// Returns the bytes of several blocks, in the order asked. Cancel safe.
    ///
    /// The answer is held in memory: ask for as many as that allows. Back ends override it where one by one is slow.
    async fn get_batch(&self, hashes: &[Multihash]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut blocks = Vec::with_capacity(hashes.len());
        for hash in hashes {
            blocks.push(self.get(hash).await?);
        }
        Ok(blocks)
    }

    /// Adds blocks; those already present cost little.
    ///
    /// On return all of them can be read, but may still be lost with the process: see [`flush`](BlobStore::flush).
    /// After an error, or when dropped half-way, some of them may be present: each is whole or absent.
    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError>;

    /// Makes every acknowledged block durable: on return they survive `kill -9`. Cancel safe.
    ///
    /// Called before any durable fact that names a block.
    async fn flush(&self) -> Result<(), StoreError>;

    /// Drops blocks, for garbage collection only; absent ones are no error.
    ///
    /// Bytes that are stored under another hash too stay until that one is removed as well.
    /// Safe to drop half-way: each block is then whole or absent.
    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError>;

    /// Lists every stored block in no particular order. Cancel safe.
    ///
    /// A back end that keeps other hashes beside BLAKE3 may list, and serve, the same bytes under both.
    async fn list(&self) -> Result<Vec<Multihash>, StoreError>;

    /// Gives the space of removed blocks back to the disk; returns how many bytes. Others go on using the store.
    ///
    /// Safe to drop half-way. A back end that has nothing to give back does nothing.
    async fn compact(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// As [`compact`](BlobStore::compact), and goes on where that pays little, until no more than `on_disk` bytes are on
    /// the disk.
    async fn compact_within(&self, on_disk: u64) -> Result<u64, StoreError> {
        let _ = on_disk;
        self.compact().await
    }

    /// Says how much is stored. Cancel safe.
    async fn usage(&self) -> Result<Usage, StoreError>;
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of the blocks, with what the back end keeps beside each.
    pub bytes: u64,
    /// Bytes on the disk, those of removed blocks included until they are given back.
    pub on_disk: u64,
}

/// What a store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing that was acknowledged is lost.
    #[error("the disk that holds {} is full: {available} bytes left, {needed} needed", path.display())]
    Full {
        /// Directory of the store.
        path: PathBuf,
        /// Bytes left to this user.
        available: u64,
        /// Bytes that the operation wants to leave untouched or use.
        needed: u64,
    },
    /// Stored bytes do not hash to their key.
    #[error("the stored bytes of {} are damaged", HashName(hash))]
    Corrupt {
        /// Key of the entry.
        hash: Multihash,
    },
    /// The store was shut down, or stopped after an error that it reported before.
    #[error("the store is closed")]
    Closed,
    /// A block that must be there is not.
    #[error("block {cid} is not in the store")]
    Missing {
        /// The block in question.
        cid: Cid,
    },
    /// A hash that cannot be a block's.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// Anything else that the operating system reports.
    #[error("{doing}")]
    Io {
        /// What was being done, for people.
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl StoreError {
    /// Wraps an error of the operating system with what was being done; a full disk becomes [`StoreError::Full`].
    pub fn io(doing: impl Into<String>, path: impl Into<PathBuf>, source: std::io::Error) -> StoreError {
        if is_full(&source) {
            StoreError::Full { path: path.into(), available: 0, needed: 0 }
        } else {
            StoreError::Io { doing: doing.into(), source }
        }
    }
}

/// Says whether an error means that there is no room: a full disk, a quota or a file-size limit.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// Shows a multihash the way people see it elsewhere: as the CID of a raw block.
pub struct HashName<'a>(pub &'a Multihash);

impl fmt::Display for HashName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Cid::new_v1(iptl_dag::Codec::Raw.number(), *self.0).fmt(f)
    }
}

/// Returns the digest of a BLAKE3-256 multihash, the only ones that iroh-blobs can move.
pub fn blake3_of(hash: &Multihash) -> Option<[u8; 32]> {
    (hash.code() == BLAKE3).then(|| hash.digest().try_into().ok()).flatten()
}

/// Returns the bytes that an identity multihash holds.
pub fn identity_of(hash: &Multihash) -> Option<Bytes> {
    (hash.code() == IDENTITY).then(|| Bytes::copy_from_slice(hash.digest()))
}

/// Reads one block and checks it against its CID; `None` where it is absent. Cancel safe.
pub async fn read_block(store: &dyn BlobStore, cid: &Cid) -> Result<Option<Block>, StoreError> {
    let Some(data) = store.get(cid.hash()).await? else { return Ok(None) };
    assert!(data.len() <= MAX_BLOCK_SIZE, "a store returned {} bytes as one block", data.len());
    match Block::verify(*cid, data) {
        Ok(block) => Ok(Some(block)),
        Err(HashError::Mismatch { .. }) => Err(StoreError::Corrupt { hash: *cid.hash() }),
        Err(error @ (HashError::UnknownHash { .. } | HashError::TooLarge { .. })) => Err(error.into()),
    }
}
