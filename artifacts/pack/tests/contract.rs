//! The contract of every back end, and what this one promises beyond it.

use std::path::PathBuf;
use std::sync::Arc;

use iptl_artifacts::contract::{Harness, check_blob_store, sample};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_pack::{OpenError, Options, PackStore};
use iptl_dag::{Block, Multihash};

/// Numbered stores below one temporary directory.
struct OnDisk {
    root: tempfile::TempDir,
    made: usize,
    options: Options,
}

impl OnDisk {
    fn dir(&self) -> PathBuf {
        self.root.path().join(self.made.to_string())
    }
}

#[async_trait::async_trait]
impl Harness for OnDisk {
    async fn make(&mut self) -> Arc<dyn BlobStore> {
        self.made += 1;
        Arc::new(PackStore::open_with(self.dir(), self.options).await.unwrap())
    }

    async fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Option<Arc<dyn BlobStore>> {
        drop(store);
        Some(Arc::new(PackStore::open_with(self.dir(), self.options).await.unwrap()))
    }
}

/// Packs and lags so small that every test meets their ends.
fn small() -> Options {
    Options { pack_size: 100_000, max_lag_bytes: 300_000, max_lag_blocks: 20, write_behind: 50_000 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pack_store_keeps_the_contract() {
    for options in [Options::default(), small()] {
        check_blob_store(&mut OnDisk { root: tempfile::tempdir().unwrap(), made: 0, options }).await;
    }
}

#[tokio::test]
async fn second_handle_is_told_who_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = PackStore::open(dir.path()).await.unwrap();
    let error = PackStore::open(dir.path()).await.err().expect("a store opens once");
    let OpenError::Locked { path, pid } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *pid), (store.dir(), Some(std::process::id())));
    assert!(error.to_string().contains("in use by process"), "{error}");
    store.close().await.unwrap();
    let other = store.clone();
    drop(store);
    assert!(matches!(other.has(&[]).await, Err(StoreError::Closed)));
    assert!(matches!(other.put(vec![sample(1, 1)]).await, Err(StoreError::Closed)));
    drop(other);
    PackStore::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_directory_or_an_earlier_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = PackStore::open(&file).await.err().expect("a file is no directory");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    std::fs::write(dir.path().join("blobs.db"), vec![7; 1000]).unwrap();
    let error = PackStore::open(dir.path()).await.err().expect("it is another kind of store");
    assert!(matches!(&error, OpenError::Corrupt { reason, .. } if reason.contains("earlier version")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_and_removals_at_once_lose_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = PackStore::open_with(dir.path(), small()).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 0..200 {
                store.put(vec![sample(i, 100 + (i as usize % 2) * 20_000)]).await.unwrap();
            }
        }
    });
    for i in 1000..1020 {
        store.put(vec![sample(i, 5000)]).await.unwrap();
        store.remove(&[*sample(i, 5000).cid().hash()]).await.unwrap();
        store.compact().await.unwrap();
    }
    writer.await.unwrap();
    let blocks: Vec<Block> = (0..200).map(|i| sample(i, 100 + (i as usize % 2) * 20_000)).collect();
    for block in &blocks {
        assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
    }
    assert_eq!(store.list().await.unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn block_that_is_read_while_packs_move_is_absent_or_whole_and_never_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = PackStore::open_with(dir.path(), small()).await.unwrap();
    let kept: Vec<Block> = (0..40).map(|i| sample(i, 9_000)).collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    store.put(kept.clone()).await.unwrap();
    let readers: Vec<_> = (0..3)
        .map(|reader| {
            let (store, kept, stop) = (store.clone(), kept.clone(), stop.clone());
            tokio::spawn(async move {
                let mut read = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let block = &kept[(read * 7 + reader) % kept.len()];
                    assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
                    read += 1;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for round in 1..15u64 {
        let rubbish: Vec<Block> = (0..10).map(|i| sample(round * 100 + i, 12_000)).collect();
        store.put(rubbish.clone()).await.unwrap();
        let hashes: Vec<Multihash> = rubbish.iter().map(|block| *block.cid().hash()).collect();
        store.remove(&hashes).await.unwrap();
        store.compact().await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.blocks, 40);
    assert!(usage.on_disk < 2 * usage.bytes + 200_000, "the space of what was removed came back: {usage:?}");
}

#[tokio::test]
async fn space_of_removed_blocks_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = PackStore::open_with(dir.path(), small()).await.unwrap();
    let blocks: Vec<Block> = (0..100).map(|i| sample(i, 20_000)).collect();
    store.put(blocks.clone()).await.unwrap();
    store.flush().await.unwrap();
    let full = size_of(dir.path());
    assert!(full > 2_000_000);
    let hashes: Vec<Multihash> = blocks.iter().map(|block| *block.cid().hash()).collect();
    // Every fifth stays, so that each pack has something to be copied.
    let (kept, gone): (Vec<_>, Vec<_>) = hashes.iter().enumerate().partition(|(i, _)| i % 5 == 0);
    store.remove(&gone.iter().map(|(_, hash)| **hash).collect::<Vec<_>>()).await.unwrap();
    let freed = store.compact().await.unwrap();
    assert!(freed > 1_400_000, "{freed} bytes came back");
    assert!(size_of(dir.path()) < full - 1_400_000);
    let store = reopened(store, dir.path()).await;
    for (i, _) in &kept {
        assert_eq!(store.get(&hashes[*i]).await.unwrap().as_ref(), Some(blocks[*i].data()));
    }
    store.remove(&hashes).await.unwrap();
    store.compact().await.unwrap();
    assert_eq!(store.usage().await.unwrap().blocks, 0);
    assert!(store.usage().await.unwrap().on_disk < 100, "an empty store has an empty pack");
    assert_eq!(store.compact().await.unwrap(), 0, "there is nothing more to give back");
}

async fn reopened(store: PackStore, dir: &std::path::Path) -> PackStore {
    drop(store);
    PackStore::open_with(dir, small()).await.unwrap()
}

/// Bytes of all packs.
fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let packs = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".pack"));
    packs.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_blocks_come_back_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let store = PackStore::open(dir.path()).await.unwrap();
    let blocks: Vec<Block> = (0..10_000).map(|i| sample(i, 40 + i as usize % 500)).collect();
    for batch in blocks.chunks(500) {
        store.put(batch.to_vec()).await.unwrap();
    }
    store.flush().await.unwrap();
    drop(store);
    let store = PackStore::open(dir.path()).await.unwrap();
    for batch in blocks.chunks(1_000) {
        let hashes: Vec<Multihash> = batch.iter().map(|block| *block.cid().hash()).collect();
        assert!(store.has(&hashes).await.unwrap().into_iter().all(|has| has));
        for (block, data) in batch.iter().zip(store.get_batch(&hashes).await.unwrap()) {
            assert_eq!(data.as_ref(), Some(block.data()));
        }
    }
    assert_eq!(store.list().await.unwrap().len(), blocks.len());
    assert_eq!(store.usage().await.unwrap().blocks, 10_000);
}
