//! A whole DAG as one stream.

use std::io;

use iptl_dag::walk::{Limits, Walk, WalkError};
use iptl_dag::{Cid, Multihash, car};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::contents::verified;
use crate::{BlobStore, StoreError};

/// Blocks read from the store together.
const READ_AHEAD: usize = 16;

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

/// Writes everything under `root` as CARv1, breadth first, each block once.
///
/// Of the blocks a few are in memory at a time; of each CID a note is kept. Not cancel safe: the writer has some of it.
pub async fn export_car(
    store: &dyn BlobStore,
    root: &Cid,
    out: &mut (dyn AsyncWrite + Unpin + Send),
) -> Result<CarSummary, CarError> {
    let mut walk = Walk::new([*root], Limits::default())?;
    let header = car::header(&[*root]);
    out.write_all(&header).await.map_err(CarError::Write)?;
    let mut summary = CarSummary { blocks: 0, bytes: header.len() as u64 };
    while !walk.is_done() {
        let cids = walk.wants(READ_AHEAD);
        let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in cids.into_iter().zip(store.get_batch(&hashes).await?) {
            let block = verified(cid, data.ok_or(CarError::Missing { cid })?)?;
            walk.accept(&block)?;
            let head = car::frame_head(&block);
            out.write_all(&head).await.map_err(CarError::Write)?;
            out.write_all(block.data()).await.map_err(CarError::Write)?;
            summary.blocks += 1;
            summary.bytes += (head.len() + block.data().len()) as u64;
        }
    }
    out.flush().await.map_err(CarError::Write)?;
    Ok(summary)
}
