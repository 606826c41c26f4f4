//! A store that is collected while it is used.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_dag::{Block, Cid, Multihash};
use tokio::sync::RwLock;

use crate::collect::{CollectError, Collected, Mark};
use crate::seen::Prints;
use crate::{BlobStore, StoreError, Usage};

/// Blocks that are removed while everybody waits: some milliseconds of the back end.
const REMOVE_BATCH: usize = 4096;

/// A store in front of another, which can be collected without losing what somebody is about to use.
///
/// Roots alone do not say what is in use: an import puts leaves long before it has a root to pin, and a fetch does not
/// ask for what it is told is here. So from the beginning of a collection to its end whatever is put, found or read
/// stays, whoever pins it; and while there is a [`Session`], whatever is put or found stays for collections to come.
pub struct Collectable {
    inner: Arc<dyn BlobStore>,
    /// Whoever uses blocks shares it; a removal has it alone.
    gate: RwLock<()>,
    /// One collection at a time.
    turn: tokio::sync::Mutex<()>,
    touched: Arc<Mutex<Touched>>,
}

#[derive(Default)]
struct Touched {
    sessions: usize,
    is_collecting: bool,
    /// Of each hash eight bytes, under a key that nobody else knows: where two are alike, rubbish stays until the next
    /// collection.
    blocks: Prints<u64>,
    key: RandomState,
}

/// Keeps what is put into the store or found there, from its beginning until it is dropped.
pub struct Session {
    touched: Arc<Mutex<Touched>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut touched = lock(&self.touched);
        touched.sessions -= 1;
        touched.forget();
    }
}

/// Ends the recording of a collection, also one that is dropped half-way.
struct Recording(Arc<Mutex<Touched>>);

impl Drop for Recording {
    fn drop(&mut self) {
        let mut touched = lock(&self.0);
        touched.is_collecting = false;
        touched.forget();
    }
}

impl Touched {
    fn forget(&mut self) {
        if self.sessions == 0 && !self.is_collecting {
            self.blocks = Prints::default();
        }
    }

    fn note(&mut self, hash: &Multihash) {
        self.blocks.insert(self.key.hash_one(hash));
    }

    fn has(&self, hash: &Multihash) -> bool {
        self.blocks.contains(self.key.hash_one(hash))
    }
}

impl Collectable {
    /// Makes the front of a store. Whoever goes past it is not seen by collections.
    pub fn new(inner: Arc<dyn BlobStore>) -> Arc<Collectable> {
        let touched = Arc::default();
        Arc::new(Collectable { inner, gate: RwLock::default(), turn: tokio::sync::Mutex::default(), touched })
    }

    /// Begins to keep what is put or found.
    pub fn session(&self) -> Session {
        lock(&self.touched).sessions += 1;
        Session { touched: self.touched.clone() }
    }

    /// Drops every block that no root leads to and nobody uses, and gives the space back.
    ///
    /// `roots` is asked again before each removal, and says of each root whether everything below it is kept: what is
    /// pinned meanwhile stays. Safe to drop half-way.
    pub async fn collect(
        &self,
        roots: &(dyn Fn() -> Vec<(Cid, bool)> + Send + Sync),
    ) -> Result<Collected, CollectError> {
        self.collect_within(roots, u64::MAX).await
    }

    /// As [`collect`](Collectable::collect); more is done for the space where more than `on_disk` bytes are on the disk.
    pub async fn collect_within(
        &self,
        roots: &(dyn Fn() -> Vec<(Cid, bool)> + Send + Sync),
        on_disk: u64,
    ) -> Result<Collected, CollectError> {
        let _turn = self.turn.lock().await;
        lock(&self.touched).is_collecting = true;
        let _recording = Recording(self.touched.clone());
        // Whoever looked something up before this has got it, and what is put later is recorded.
        drop(self.gate.write().await);
        let candidates = self.inner.list().await?;
        let mut mark = Mark::default();
        let mut rest = candidates.as_slice();
        while !rest.is_empty() {
            let now = roots();
            if mark.is_behind(&now) {
                mark.add(&*self.inner, &now).await?;
                continue;
            }
            let (batch, after) = rest.split_at(rest.len().min(REMOVE_BATCH));
            let alone = self.gate.write().await;
            if mark.is_behind(&roots()) {
                continue;
            }
            let (kept, doomed): (Vec<Multihash>, Vec<Multihash>) = {
                let touched = lock(&self.touched);
                let is_kept = |hash: &Multihash| mark.keeps(hash) || touched.has(hash);
                batch.iter().copied().partition(is_kept)
            };
            self.inner.remove(&doomed).await?;
            drop(alone);
            mark.collected.kept += kept.len() as u64;
            mark.collected.removed += doomed.len() as u64;
            rest = after;
        }
        mark.collected.freed = self.inner.compact_within(on_disk).await?;
        Ok(mark.collected)
    }

    /// Notes blocks that are used; `reads` count only while a collection goes on.
    fn touch<'a>(&self, hashes: impl Iterator<Item = &'a Multihash>, reads: bool) {
        let mut touched = lock(&self.touched);
        if touched.is_collecting || (touched.sessions > 0 && !reads) {
            hashes.for_each(|hash| touched.note(hash));
        }
    }
}

#[async_trait]
impl BlobStore for Collectable {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        let _shared = self.gate.read().await;
        let found = self.inner.has(hashes).await?;
        self.touch(hashes.iter().zip(&found).filter(|(_, found)| **found).map(|(hash, _)| hash), false);
        Ok(found)
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        let _shared = self.gate.read().await;
        let found = self.inner.get(hash).await?;
        self.touch(found.is_some().then_some(hash).into_iter(), true);
        Ok(found)
    }

    async fn get_batch(&self, hashes: &[Multihash]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let _shared = self.gate.read().await;
        let found = self.inner.get_batch(hashes).await?;
        self.touch(hashes.iter().zip(&found).filter(|(_, found)| found.is_some()).map(|(hash, _)| hash), true);
        Ok(found)
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        let _shared = self.gate.read().await;
        self.touch(blocks.iter().map(|block| block.cid().hash()), false);
        self.inner.put(blocks).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush().await
    }

    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        let _alone = self.gate.write().await;
        self.inner.remove(hashes).await
    }

    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        self.inner.list().await
    }

    async fn compact(&self) -> Result<u64, StoreError> {
        self.inner.compact().await
    }

    async fn compact_within(&self, on_disk: u64) -> Result<u64, StoreError> {
        self.inner.compact_within(on_disk).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner.usage().await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Guards are held for single operations on collections, which a panic elsewhere cannot leave half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the roots that were not there before.
pub(crate) fn newer(known: &BTreeSet<(Cid, bool)>, now: &[(Cid, bool)]) -> Vec<(Cid, bool)> {
    now.iter().filter(|root| !known.contains(root)).copied().collect()
}
