//! Garbage collection: what no pin leads to is dropped.

use std::collections::BTreeSet;

use iptl_dag::walk::{Limits, Walk, WalkError};
use iptl_dag::{Cid, Codec, Multihash};

use crate::collectable::newer;
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

/// Why a collection stopped; what a root leads to is there as before.
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
/// For a store that nobody else uses; one in use is collected through [`Collectable`](crate::Collectable). A block that
/// cannot be decoded is kept as a leaf. Safe to drop half-way.
pub async fn gc(store: &dyn BlobStore, pins: &Pins) -> Result<Collected, CollectError> {
    // Listed before the roots are read, so that nothing new can be among the candidates.
    let candidates = store.list().await?;
    let mut mark = Mark::default();
    mark.add(store, &pins.roots()).await?;
    let (kept, dropped): (Vec<Multihash>, Vec<Multihash>) = candidates.into_iter().partition(|hash| mark.keeps(hash));
    store.remove(&dropped).await?;
    let freed = store.compact().await?;
    Ok(Collected { kept: kept.len() as u64, removed: dropped.len() as u64, freed, ..mark.collected })
}

/// What roots lead to.
#[derive(Default)]
pub(crate) struct Mark {
    roots: BTreeSet<(Cid, bool)>,
    live: BTreeSet<Multihash>,
    pub(crate) collected: Collected,
}

impl Mark {
    pub(crate) fn keeps(&self, hash: &Multihash) -> bool {
        self.live.contains(hash)
    }

    /// Says whether there are roots that were not walked.
    pub(crate) fn is_behind(&self, roots: &[(Cid, bool)]) -> bool {
        !newer(&self.roots, roots).is_empty()
    }

    /// Walks the roots that were not walked before, as far as they are in the store.
    pub(crate) async fn add(&mut self, store: &dyn BlobStore, roots: &[(Cid, bool)]) -> Result<(), CollectError> {
        let roots = newer(&self.roots, roots);
        self.live.extend(roots.iter().map(|(root, _)| *root.hash()));
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
                    self.collected.missing.push(cid);
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
        self.live.extend(walk.seen().iter().map(|cid| *cid.hash()));
        self.roots.extend(roots);
        Ok(())
    }
}
