//! A whole DAG as one stream, out of a store and into one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use iptl_dag::car::{self, CarItem, CarReader};
use iptl_dag::walk::{Limits, WalkError, links};
use iptl_dag::{Block, Cid, Codec, Multihash, block};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::contents::verified;
use crate::{BlobStore, Seen, StoreError};

/// Blocks read from the store together.
const READ_AHEAD: usize = 16;

/// Bytes read from a stream at a time.
const READ_SIZE: usize = 1 << 18;

/// Blocks of one batch are put together once they hold this many bytes, or there are [`BATCH_BLOCKS`] of them.
const BATCH_BYTES: usize = 4 << 20;

/// Most blocks of one batch.
const BATCH_BLOCKS: usize = 256;

/// Most missing blocks that are named.
const NAMED: usize = 16;

/// What a CAR holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarSummary {
    /// Blocks.
    pub blocks: u64,
    /// Bytes written, header included.
    pub bytes: u64,
}

/// Why a CAR was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// A block is not in the store.
    #[error("block {cid} is not in the store")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// The DAG cannot be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The writer failed.
    #[error("writing a CAR")]
    Write(#[source] io::Error),
}

/// Writes everything under `root` as CARv1, each block once and before what it links, in the order of its links.
///
/// Of the blocks a few are in memory at a time; of each CID 16 bytes are. Not cancel safe: the writer has some of it.
pub async fn export_car(
    store: &dyn BlobStore,
    root: &Cid,
    out: &mut (dyn AsyncWrite + Unpin + Send),
) -> Result<CarSummary, CarError> {
    let header = car::header(&[*root]);
    out.write_all(&header).await.map_err(CarError::Write)?;
    let mut summary = CarSummary { blocks: 0, bytes: header.len() as u64 };
    let mut walk = DepthFirst { store, seen: Seen::default(), stack: vec![*root], ahead: BTreeMap::new() };
    while let Some(block) = walk.next().await? {
        let head = car::frame_head(&block);
        out.write_all(&head).await.map_err(CarError::Write)?;
        out.write_all(block.data()).await.map_err(CarError::Write)?;
        summary.blocks += 1;
        summary.bytes += (head.len() + block.data().len()) as u64;
    }
    out.flush().await.map_err(CarError::Write)?;
    Ok(summary)
}

/// A walk over a DAG in a store, parents before children and each child with all that is below it before the next.
struct DepthFirst<'a> {
    store: &'a dyn BlobStore,
    seen: Seen,
    /// What is still to be visited, the next at the end; may hold what was seen since.
    stack: Vec<Cid>,
    ahead: BTreeMap<Cid, Block>,
}

impl DepthFirst<'_> {
    /// Returns the next block. Content that stands in a link is walked and not returned.
    async fn next(&mut self) -> Result<Option<Block>, CarError> {
        while let Some(cid) = self.stack.pop() {
            if !self.seen.insert(&cid) {
                continue;
            }
            let (block, is_inline) = match block::identity_data(&cid) {
                Some(data) => (Block::verify(cid, data.to_vec()).map_err(WalkError::from)?, true),
                None => (self.read(cid).await?, false),
            };
            self.push(links(&cid, block.data()).map_err(WalkError::from)?)?;
            if !is_inline {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn push(&mut self, links: Vec<Cid>) -> Result<(), CarError> {
        let mut new = BTreeSet::new();
        let first = self.stack.len();
        self.stack.extend(links.into_iter().filter(|cid| !self.seen.contains(cid) && new.insert(*cid)));
        self.stack[first..].reverse();
        let limit = Limits::default().blocks;
        if (self.stack.len() + self.seen.len()) as u64 > limit {
            return Err(WalkError::TooManyBlocks { limit }.into());
        }
        Ok(())
    }

    /// Reads a block together with those that come after it.
    async fn read(&mut self, cid: Cid) -> Result<Block, CarError> {
        if let Some(block) = self.ahead.remove(&cid) {
            return Ok(block);
        }
        let after = self.stack.iter().rev().take(READ_AHEAD - 1);
        let mut cids: Vec<Cid> = after
            .filter(|cid| !self.seen.contains(cid) && block::identity_data(cid).is_none())
            .chain([&cid])
            .copied()
            .collect();
        cids.sort_unstable();
        cids.dedup();
        let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        self.ahead.clear();
        for (cid, data) in cids.into_iter().zip(self.store.get_batch(&hashes).await?) {
            // One that lies further on and is missing is reported when it is next.
            let Some(data) = data else { continue };
            self.ahead.insert(cid, verified(cid, data)?);
        }
        self.ahead.remove(&cid).ok_or(CarError::Missing { cid })
    }
}

/// What an import of a CAR stored, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarImported {
    /// Roots that its header names.
    pub roots: Vec<Cid>,
    /// Blocks in the stream, repetitions included.
    pub blocks: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Blocks that were not in the store before.
    pub new_blocks: u64,
    /// Blocks under the roots that are not in the store now. What is below them is not known.
    pub missing: u64,
    /// The first of them.
    pub first_missing: Vec<Cid>,
    /// Blocks under the roots whose links cannot be read: of another codec, or not valid in theirs.
    pub unread: u64,
}

impl CarImported {
    /// Says whether everything under the roots is in the store, as far as links can be read.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }
}

/// Why a CAR was not imported to its end. What was stored by then is unpinned, and goes with the next collection.
#[derive(Debug, thiserror::Error)]
pub enum CarImportError {
    /// The stream is not a CAR, or not to its end, or holds a block that is not what its CID names.
    #[error(transparent)]
    Format(#[from] car::CarError),
    /// The stream could not be read.
    #[error("reading a CAR")]
    Read(#[source] io::Error),
    /// The store did not take the blocks, or could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// All blocks are stored, and the DAG under the roots exceeds what is walked.
    #[error("whether the DAG is complete cannot be told")]
    Walk(#[source] WalkError),
}

/// Stores the blocks of a CAR of version 1 or 2, each checked against its CID, and says what is missing under its roots.
///
/// A few blocks are in memory at a time; 16 bytes are kept of each block that came, of each node under the roots, and of
/// each block that is missing. The blocks are acknowledged but not flushed. Safe to drop half-way: blocks that were stored by then are unpinned.
pub async fn import_car(
    store: &dyn BlobStore,
    from: &mut (dyn AsyncRead + Unpin + Send),
) -> Result<CarImported, CarImportError> {
    let (mut imported, mut came) = (CarImported::default(), Seen::default());
    let mut reader = CarReader::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut batch = Batch::default();
    loop {
        let count = from.read(&mut buffer).await.map_err(CarImportError::Read)?;
        if count == 0 {
            break;
        }
        reader.push(&buffer[..count]);
        while let Some(item) = reader.next_item()? {
            match item {
                CarItem::Roots(roots) => imported.roots = roots,
                CarItem::Block(block) => {
                    imported.blocks += 1;
                    imported.bytes += block.data().len() as u64;
                    came.insert(block.cid().hash());
                    if batch.add(block) {
                        imported.new_blocks += batch.put(store).await?;
                    }
                }
            }
        }
    }
    reader.finish()?;
    imported.new_blocks += batch.put(store).await?;
    find_missing(store, &came, &mut imported).await?;
    Ok(imported)
}

/// Blocks that are put together.
#[derive(Default)]
struct Batch {
    blocks: Vec<Block>,
    bytes: usize,
}

impl Batch {
    /// Adds a block and says whether the batch is full.
    fn add(&mut self, block: Block) -> bool {
        self.bytes += block.data().len();
        self.blocks.push(block);
        self.bytes >= BATCH_BYTES || self.blocks.len() >= BATCH_BLOCKS
    }

    /// Stores and empties the batch. Returns how many blocks were not there before.
    async fn put(&mut self, store: &dyn BlobStore) -> Result<u64, StoreError> {
        let Batch { blocks, .. } = std::mem::take(self);
        if blocks.is_empty() {
            return Ok(0);
        }
        let hashes: BTreeSet<Multihash> = blocks.iter().map(|block| *block.cid().hash()).collect();
        let has = store.has(&hashes.into_iter().collect::<Vec<_>>()).await?;
        store.put(blocks).await?;
        Ok(has.into_iter().filter(|has| !has).count() as u64)
    }
}

/// Walks over what is under the roots and counts what is not there.
async fn find_missing(store: &dyn BlobStore, came: &Seen, imported: &mut CarImported) -> Result<(), CarImportError> {
    let mut search = Search { store, came, imported, nodes: Vec::new(), leaves: Vec::new(), seen: Seen::default() };
    let roots = search.imported.roots.clone();
    search.add(roots)?;
    loop {
        search.look_for_leaves(BATCH_BLOCKS).await?;
        let Some(first) = search.nodes.len().checked_sub(1) else { break };
        let cids = search.nodes.split_off(first.saturating_sub(READ_AHEAD - 1));
        search.read(cids).await?;
    }
    search.look_for_leaves(1).await
}

/// A search for what is missing: of nodes each is read once, and leaves are only looked for.
struct Search<'a> {
    store: &'a dyn BlobStore,
    /// Hashes that are there for sure.
    came: &'a Seen,
    imported: &'a mut CarImported,
    /// To be read.
    nodes: Vec<Cid>,
    /// To be looked for.
    leaves: Vec<Cid>,
    /// Nodes, and leaves that did not come and that the store did not say it has.
    seen: Seen,
}

impl Search<'_> {
    fn add(&mut self, links: Vec<Cid>) -> Result<(), CarImportError> {
        for cid in links {
            if let Some(data) = block::identity_data(&cid) {
                // What carries its own content is never missing, and may lead further.
                if self.seen.insert(&cid) {
                    self.follow(&cid, data)?;
                }
            } else if Codec::of(&cid) == Some(Codec::Raw) {
                if !self.came.contains(cid.hash()) {
                    self.leaves.push(cid);
                }
            } else if self.seen.insert(&cid) {
                self.nodes.push(cid);
            }
        }
        let limit = Limits::default().blocks;
        if (self.seen.len() + self.leaves.len()) as u64 > limit {
            return Err(CarImportError::Walk(WalkError::TooManyBlocks { limit }));
        }
        Ok(())
    }

    /// Goes on below a node.
    fn follow(&mut self, cid: &Cid, data: &[u8]) -> Result<(), CarImportError> {
        match links(cid, data) {
            Ok(links) => self.add(links),
            Err(_) => {
                self.imported.unread += 1;
                Ok(())
            }
        }
    }

    async fn read(&mut self, cids: Vec<Cid>) -> Result<(), CarImportError> {
        let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in cids.into_iter().zip(self.store.get_batch(&hashes).await?) {
            match data {
                Some(data) => {
                    let block = verified(cid, data)?;
                    self.follow(&cid, block.data())?;
                }
                None => self.miss(cid),
            }
        }
        Ok(())
    }

    /// Looks for leaves, once there are so many.
    async fn look_for_leaves(&mut self, least: usize) -> Result<(), CarImportError> {
        if self.leaves.len() < least {
            return Ok(());
        }
        for cids in std::mem::take(&mut self.leaves).chunks(BATCH_BLOCKS) {
            let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
            let has = self.store.has(&hashes).await?;
            let mut unsure: Vec<Cid> = cids.iter().zip(has).filter(|(_, has)| !has).map(|(cid, _)| *cid).collect();
            unsure.retain(|cid| self.seen.insert(cid));
            // A store that is far away says of everything that it is not there, unless it is read.
            for cids in unsure.chunks(READ_AHEAD) {
                let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
                for (cid, data) in cids.iter().zip(self.store.get_batch(&hashes).await?) {
                    if data.is_none() {
                        self.miss(*cid);
                    }
                }
            }
        }
        Ok(())
    }

    fn miss(&mut self, cid: Cid) {
        self.imported.missing += 1;
        if self.imported.first_missing.len() < NAMED {
            self.imported.first_missing.push(cid);
        }
    }
}
