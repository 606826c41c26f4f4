//! From a thread that makes blocks to the store that takes them.

use std::io;

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::{Block, Cid, Multihash};
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::pages::BlockSink;

/// Blocks of one batch are put together once they hold this many bytes, or there are [`BATCH_BLOCKS`] of them.
const BATCH_BYTES: usize = 4 << 20;

/// Most blocks of one batch.
const BATCH_BLOCKS: usize = 256;

/// Batches that wait for the store while the next is made.
const BATCHES_AHEAD: usize = 4;

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Root: an [`Image`](iptl_dag::model::Image) node.
    pub image: Cid,
    /// Digest of the config: the ID that engines give the image.
    pub config_digest: Digest,
    /// Architecture in the words of container engines.
    pub architecture: String,
    /// Names that the source gave the image; they are no part of it.
    pub names: Vec<String>,
    /// Bytes of all layers as tar.
    pub size: u64,
    /// Files, directories and links in all layers.
    pub entries: u64,
    /// Blocks, repetitions included.
    pub blocks: u64,
    /// Blocks that were not in the store before; zero where nothing was stored.
    pub new_blocks: u64,
    /// Bytes of the blocks that were not in the store before.
    pub new_bytes: u64,
}

/// What a maker knows at its end.
pub(crate) struct Made {
    pub(crate) image: Cid,
    pub(crate) config_digest: Digest,
    pub(crate) architecture: String,
    pub(crate) names: Vec<String>,
    pub(crate) size: u64,
    pub(crate) entries: u64,
}

/// Runs `make` on a thread for blocking work, and puts the blocks that it hands over.
///
/// When dropped half-way, the thread meets a closed channel at its next batch and ends.
pub(crate) async fn drive<E: From<StoreError> + Send + 'static>(
    store: &dyn BlobStore,
    only_hash: bool,
    make: impl FnOnce(&mut Out) -> Result<Made, E> + Send + 'static,
) -> Result<Imported, E> {
    let (batches, mut ready) = mpsc::channel(BATCHES_AHEAD);
    let maker = tokio::task::spawn_blocking(move || {
        let mut out =
            Out { batches: (!only_hash).then_some(batches), blocks: Vec::new(), counted: 0, bytes: 0, made: 0 };
        let made = make(&mut out)?;
        out.hand_over()?;
        Ok::<_, E>((made, out.made))
    });
    let (mut new_blocks, mut new_bytes) = (0, 0);
    while let Some(batch) = ready.recv().await {
        let batch: Vec<Block> = batch;
        let mut sizes: Vec<(Multihash, u64)> =
            batch.iter().map(|block| (*block.cid().hash(), block.data().len() as u64)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let hashes: Vec<Multihash> = sizes.iter().map(|(hash, _)| *hash).collect();
        for ((_, size), has) in sizes.iter().zip(store.has(&hashes).await?) {
            if !has {
                new_blocks += 1;
                new_bytes += size;
            }
        }
        store.put(batch).await?;
    }
    let joined =
        maker.await.map_err(|error| StoreError::Io { doing: "importing".into(), source: io::Error::other(error) });
    let (made, blocks) = joined.map_err(E::from)??;
    let Made { image, config_digest, architecture, names, size, entries } = made;
    Ok(Imported { image, config_digest, architecture, names, size, entries, blocks, new_blocks, new_bytes })
}

/// Where made blocks go.
pub(crate) struct Out {
    /// `None` where nothing is stored.
    batches: Option<mpsc::Sender<Vec<Block>>>,
    blocks: Vec<Block>,
    /// Blocks of the batch whose bytes are counted.
    counted: usize,
    /// Bytes of the counted ones.
    bytes: usize,
    made: u64,
}

impl Out {
    pub(crate) fn hand_over(&mut self) -> Result<(), StoreError> {
        let blocks = std::mem::take(&mut self.blocks);
        (self.counted, self.bytes) = (0, 0);
        self.made += blocks.len() as u64;
        match &self.batches {
            // The other side is gone when it met an error, which it reports, or was dropped.
            Some(batches) if !blocks.is_empty() => batches.blocking_send(blocks).map_err(|_| StoreError::Closed),
            Some(_) | None => Ok(()),
        }
    }
}

impl BlockSink for Out {
    type Error = StoreError;

    fn blocks(&mut self) -> &mut Vec<Block> {
        &mut self.blocks
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.bytes += self.blocks[self.counted..].iter().map(|block| block.data().len()).sum::<usize>();
        self.counted = self.blocks.len();
        if self.bytes >= BATCH_BYTES || self.counted >= BATCH_BLOCKS { self.hand_over() } else { Ok(()) }
    }
}
