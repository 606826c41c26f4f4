//! Garbage collection: what no pin leads to is dropped.

use std::collections::BTreeSet;

use iptl_dag::walk::{Limits, Walk, WalkError};
use iptl_dag::{Cid, Codec, Multihash};

use crate::contents::verified;
use crate::{BlobStore, Pins, StoreError};

/// Blocks read from the store together.
const READ_AHEAD: usize = 32;

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blocks that a pin leads to and that are in the store, as far as they were read.
    pub kept: u64,
    /// Blocks that were dropped.
    pub removed: u64,
    /// Bytes that went back to the disk.
    pub freed: u64,
    /// Structure that a pin leads to and that is not in the store: there may be more below it.
    pub missing: Vec<Cid>,
}

/// Why a collection stopped; nothing was dropped then.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The pinned DAGs are larger than can be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The store could not be read, or did not drop.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Drops every block that no pin leads to.
///
/// Blocks that arrive meanwhile are left alone, but one that was there before and is about to be pinned is not: whoever
/// imports or fetches pins first, or keeps the collection waiting. A block that cannot be decoded is kept as a leaf. Safe
/// to drop half-way.
pub async fn gc(store: &dyn BlobStore, pins: &Pins) -> Result<Collected, CollectError> {
    // Listed before the roots are read, so that nothing new can be among the candidates.
    let candidates = store.list().await?;
    let roots = pins.roots();
    let mut live: BTreeSet<Multihash> = roots.iter().map(|(root, _)| *root.hash()).collect();
    let mut collected = Collected::default();
    let recursive = roots.iter().filter(|(_, recursive)| *recursive).map(|(root, _)| *root);
    let mut walk = Walk::new(recursive, Limits { bytes: u64::MAX, ..Limits::default() })?;
    while !walk.is_done() {
        let (leaves, nodes): (Vec<Cid>, Vec<Cid>) =
            walk.wants(READ_AHEAD).into_iter().partition(|cid| match Codec::of(cid) {
                Some(Codec::Raw) | None => true,
                Some(Codec::DagPb | Codec::DagCbor | Codec::DagJson) => false,
            });
        // A leaf links nothing, so it need not be read to be kept.
        leaves.iter().for_each(|leaf| walk.missing(leaf));
        let hashes: Vec<Multihash> = nodes.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in nodes.into_iter().zip(store.get_batch(&hashes).await?) {
            let Some(data) = data else {
                walk.missing(&cid);
                collected.missing.push(cid);
                continue;
            };
            match walk.accept(&verified(cid, data)?) {
                Ok(_) => {}
                Err(WalkError::Links(error)) => {
                    tracing::warn!(%cid, %error, "a pinned block cannot be decoded; what it links is not kept");
                    walk.missing(&cid);
                }
                Err(
                    error @ (WalkError::TooManyBlocks { .. }
                    | WalkError::TooManyBytes { .. }
                    | WalkError::TooDeep { .. }
                    | WalkError::Unwanted { .. }
                    | WalkError::Identity(_)),
                ) => return Err(error.into()),
            }
        }
    }
    live.extend(walk.seen().iter().map(|cid| *cid.hash()));
    let (kept, dropped): (Vec<Multihash>, Vec<Multihash>) =
        candidates.into_iter().partition(|hash| live.contains(hash));
    collected.kept = kept.len() as u64;
    collected.removed = dropped.len() as u64;
    store.remove(&dropped).await?;
    collected.freed = store.compact().await?;
    Ok(collected)
}
