//! Collections of a store that is in use.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_artifacts::contract::sample;
use iptl_artifacts::{BlobStore, Collectable, MemStore, Multihash, StoreError, Usage};
use iptl_dag::{Block, Cid};

/// A store that lets a test act when it is listed, in the middle of a collection.
struct Paused {
    blocks: MemStore,
    listed: tokio::sync::Notify,
    go_on: tokio::sync::Notify,
}

#[async_trait]
impl BlobStore for Paused {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        self.blocks.has(hashes).await
    }
    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        self.blocks.get(hash).await
    }
    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.blocks.put(blocks).await
    }
    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        self.blocks.remove(hashes).await
    }
    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        let listed = self.blocks.list().await?;
        self.listed.notify_one();
        self.go_on.notified().await;
        Ok(listed)
    }
    async fn usage(&self) -> Result<Usage, StoreError> {
        self.blocks.usage().await
    }
}

fn hash(block: &Block) -> Multihash {
    *block.cid().hash()
}

#[tokio::test]
async fn what_is_used_or_pinned_during_a_collection_stays() {
    let inner = Arc::new(Paused { blocks: MemStore::new(), listed: Default::default(), go_on: Default::default() });
    let store = Collectable::new(inner.clone());
    let blocks: Vec<Block> = (0..6).map(|seed| sample(seed, 100)).collect();
    inner.blocks.put_now(blocks.clone());
    let pinned: Arc<Mutex<Vec<(Cid, bool)>>> = Arc::default();
    let collecting = tokio::spawn({
        let (store, pinned) = (store.clone(), pinned.clone());
        async move { store.collect(&|| pinned.lock().unwrap().clone()).await }
    });
    inner.listed.notified().await;
    assert_eq!(store.has(&[hash(&blocks[0])]).await.unwrap(), [true]);
    assert!(store.get(&hash(&blocks[1])).await.unwrap().is_some());
    assert!(store.get_batch(&[hash(&blocks[2])]).await.unwrap()[0].is_some());
    store.put(vec![blocks[3].clone(), sample(50, 10)]).await.unwrap();
    pinned.lock().unwrap().push((*blocks[4].cid(), true));
    inner.go_on.notify_one();
    let collected = collecting.await.unwrap().unwrap();
    assert_eq!((collected.kept, collected.removed), (5, 1));
    assert_eq!(inner.blocks.len(), 6, "those five and the new one");
    assert_eq!(store.has(&[hash(&blocks[5])]).await.unwrap(), [false]);
}

#[tokio::test]
async fn session_keeps_what_was_put_or_found_since_it_began() {
    let inner = MemStore::new();
    let store = Collectable::new(Arc::new(inner.clone()));
    store.put(vec![sample(1, 10), sample(2, 10), sample(3, 10)]).await.unwrap();
    let session = store.session();
    let second = store.session();
    store.put(vec![sample(4, 10), sample(2, 10)]).await.unwrap();
    assert_eq!(store.has(&[hash(&sample(3, 10))]).await.unwrap(), [true]);
    store.get(&hash(&sample(1, 10))).await.unwrap();
    assert_eq!(store.collect(&Vec::new).await.unwrap().removed, 1, "reading alone keeps nothing");
    drop(session);
    assert_eq!(store.collect(&Vec::new).await.unwrap().removed, 0, "another session goes on");
    drop(second);
    assert_eq!(store.collect(&Vec::new).await.unwrap().removed, 3);
    assert!(inner.is_empty());
}

#[tokio::test]
async fn collection_that_is_dropped_half_way_keeps_nothing_for_ever() {
    let inner = Arc::new(Paused { blocks: MemStore::new(), listed: Default::default(), go_on: Default::default() });
    let store = Collectable::new(inner.clone());
    store.put(vec![sample(1, 10)]).await.unwrap();
    {
        let roots = Vec::new;
        let collecting = store.collect(&roots);
        tokio::select! {
            _ = collecting => panic!("it waits"),
            () = inner.listed.notified() => {}
        }
    }
    store.put(vec![sample(1, 10)]).await.unwrap();
    inner.go_on.notify_one();
    assert_eq!(store.collect(&Vec::new).await.unwrap().removed, 1);
}

/// Importers put a DAG bottom-up within a session, pin it, and end; nobody's DAG ever lacks a block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_and_collections_at_once_lose_nothing_that_was_pinned() {
    let store = Collectable::new(Arc::new(MemStore::new()));
    let pinned: Arc<Mutex<Vec<(Cid, bool)>>> = Arc::default();
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let collector = tokio::spawn({
        let (store, pinned, stop, rounds) = (store.clone(), pinned.clone(), stop.clone(), rounds.clone());
        async move {
            while !stop.load(Ordering::SeqCst) || rounds.load(Ordering::SeqCst) < 3 {
                store.collect(&|| pinned.lock().unwrap().clone()).await.unwrap();
                rounds.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    let importers: Vec<_> = (0..4u64)
        .map(|importer| {
            let (store, pinned) = (store.clone(), pinned.clone());
            tokio::spawn(async move {
                for round in 0..30 {
                    let session = store.session();
                    // Leaves are shared among importers and come again after their pins went.
                    let leaves: Vec<Block> = (0..5).map(|leaf| sample((importer + round + leaf) % 20, 50)).collect();
                    let links: Vec<Cid> = leaves.iter().map(|block| *block.cid()).collect();
                    for leaf in leaves {
                        store.put(vec![leaf]).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    let data = iptl_dag::codec::encode(&links);
                    let root = Block::new(iptl_dag::Codec::DagCbor, data);
                    store.put(vec![root.clone()]).await.unwrap();
                    pinned.lock().unwrap().push((*root.cid(), true));
                    drop(session);
                    tokio::task::yield_now().await;
                    for cid in &links {
                        let here = store.has(&[*cid.hash()]).await.unwrap();
                        assert_eq!(here, [true], "importer {importer}, round {round}");
                    }
                    let mut pinned = pinned.lock().unwrap();
                    let at = pinned.iter().position(|(cid, _)| cid == root.cid()).unwrap();
                    pinned.remove(at);
                }
            })
        })
        .collect();
    for importer in importers {
        importer.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    collector.await.unwrap();
    store.collect(&Vec::new).await.unwrap();
    assert_eq!(store.usage().await.unwrap().blocks, 0);
}
