//! A store in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_dag::{Block, Multihash};

use crate::{BlobStore, StoreError, Usage, identity_of};

/// Blocks in memory, gone with the last handle: for tests and for work that leaves nothing behind.
#[derive(Clone, Default)]
pub struct MemStore {
    blocks: Arc<Mutex<BTreeMap<Multihash, Bytes>>>,
}

impl MemStore {
    /// Makes an empty store.
    pub fn new() -> MemStore {
        MemStore::default()
    }

    /// Returns the bytes of one block without waiting.
    pub fn get_now(&self, hash: &Multihash) -> Option<Bytes> {
        identity_of(hash).or_else(|| self.lock().get(hash).cloned())
    }

    /// Adds blocks without waiting.
    pub fn put_now(&self, blocks: impl IntoIterator<Item = Block>) {
        let mut stored = self.lock();
        for block in blocks {
            let (cid, data) = block.into_parts();
            if identity_of(cid.hash()).is_none() {
                stored.insert(*cid.hash(), data);
            }
        }
    }

    /// Returns the number of stored blocks.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Says whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Multihash, Bytes>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves the map whole.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BlobStore for MemStore {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        let blocks = self.lock();
        Ok(hashes.iter().map(|hash| identity_of(hash).is_some() || blocks.contains_key(hash)).collect())
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get_now(hash))
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.put_now(blocks);
        Ok(())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        let mut blocks = self.lock();
        for hash in hashes {
            blocks.remove(hash);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        Ok(self.lock().keys().copied().collect())
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        let blocks = self.lock();
        let bytes = blocks.values().map(|data| data.len() as u64).sum();
        Ok(Usage { blocks: blocks.len() as u64, bytes, on_disk: 0 })
    }
}
