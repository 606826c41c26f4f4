//! The store on disk: the contract, and what it promises beyond it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use iptl_artifacts::contract::{Harness, check_blob_store, sample, sha2_256};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_iroh::{FsBlobStore, OpenError};
use iptl_dag::{Block, Multihash};

/// Tells the child process of a test which store to work on.
const CHILD_DIR: &str = "IPTL_TEST_STORE";

/// Numbered stores below one temporary directory.
struct OnDisk {
    root: tempfile::TempDir,
    made: usize,
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
        Arc::new(FsBlobStore::open(self.dir()).await.unwrap())
    }

    async fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Option<Arc<dyn BlobStore>> {
        drop(store);
        Some(Arc::new(FsBlobStore::open(self.dir()).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_store_keeps_the_contract() {
    check_blob_store(&mut OnDisk { root: tempfile::tempdir().unwrap(), made: 0 }).await;
}

#[tokio::test]
async fn second_handle_is_told_who_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    let error = FsBlobStore::open(dir.path()).await.err().expect("a store opens once");
    let OpenError::Locked { path, pid } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *pid), (store.dir(), Some(std::process::id())));
    assert!(error.to_string().contains("in use by process"), "{error}");
    store.close().await.unwrap();
    let other = store.clone();
    drop(store);
    assert!(matches!(other.has(&[]).await, Err(StoreError::Closed)));
    assert!(matches!(other.put(vec![sample(1, 1)]).await, Err(StoreError::Closed)));
    drop(other);
    FsBlobStore::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("blobs.db"), vec![7; 100_000]).unwrap();
    let error = FsBlobStore::open(dir.path()).await.err().expect("noise is no database");
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FsBlobStore::open(&file).await.err().expect("a file is no directory");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}

#[tokio::test]
async fn blocks_without_tags_survive_many_reopenings() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<Block> = (0..50).map(|i| sample(i, 1 + i as usize * 2_000)).collect();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    store.put(blocks.clone()).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    for _ in 0..3 {
        let store = FsBlobStore::open(dir.path()).await.unwrap();
        let hashes: Vec<Multihash> = blocks.iter().map(|block| *block.cid().hash()).collect();
        assert!(store.has(&hashes).await.unwrap().into_iter().all(|has| has));
        // A removal runs the collector over everything.
        store.put(vec![sample(1000, 10)]).await.unwrap();
        store.remove(&[*sample(1000, 10).cid().hash()]).await.unwrap();
        assert!(store.get_batch(&hashes).await.unwrap().iter().all(Option::is_some));
        drop(store);
    }
}

#[tokio::test]
async fn damaged_file_is_reported_and_can_be_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    let block = sample(1, 50_000);
    store.put(vec![block.clone()]).await.unwrap();
    store.flush().await.unwrap();
    let file = std::fs::read_dir(dir.path().join("data")).unwrap().next().unwrap().unwrap().path();
    for damage in [vec![], vec![0; 50_000], vec![1; 3 << 20]] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&file, damage).unwrap();
        let error = store.get(block.cid().hash()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { hash } if hash == *block.cid().hash()), "{error}");
        assert_eq!(store.has(&[*block.cid().hash()]).await.unwrap(), [false], "it is absent from then on");
        store.put(vec![block.clone()]).await.unwrap();
        assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()), "and can be repaired");
    }
}

#[tokio::test]
async fn removal_that_nobody_waits_for_still_happens() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    let (gone, kept) = (sample(1, 20_000), sample(2, 20_000));
    store.put(vec![gone.clone(), kept.clone()]).await.unwrap();
    {
        let hashes = [*gone.cid().hash()];
        let removal = store.remove(&hashes);
        tokio::pin!(removal);
        // Polled until it has asked the collector, then dropped.
        for _ in 0..3 {
            if futures::poll!(&mut removal).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // A put waits for a removal under way, so it cannot lose its block to it.
    store.put(vec![gone.clone()]).await.unwrap();
    assert_eq!(store.get(gone.cid().hash()).await.unwrap().as_ref(), Some(gone.data()));
    assert_eq!(store.get(kept.cid().hash()).await.unwrap().as_ref(), Some(kept.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_and_removals_at_once_lose_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 0..200 {
                store.put(vec![sample(i, 100 + (i as usize % 2) * 20_000)]).await.unwrap();
            }
        }
    });
    for i in 1000..1020 {
        store.put(vec![sample(i, 100)]).await.unwrap();
        store.remove(&[*sample(i, 100).cid().hash()]).await.unwrap();
    }
    writer.await.unwrap();
    let hashes: Vec<Multihash> = (0..200).map(|i| *sample(i, 100 + (i as usize % 2) * 20_000).cid().hash()).collect();
    assert!(store.has(&hashes).await.unwrap().into_iter().all(|has| has));
    assert_eq!(store.list().await.unwrap().len(), 200);
}

/// Blocks of one round of the child: small, large, and of another hash function.
fn round(number: u64) -> Vec<Block> {
    vec![
        sample(number * 10, 300),
        sample(number * 10 + 1, 30_000),
        sample(number * 10 + 2, 200_000),
        sha2_256(sample(number * 10 + 3, 5_000).data().clone()),
    ]
}

#[test]
fn flushed_blocks_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    for kill_after in [1, 7, 30] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::child_puts_and_flushes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path().join(kill_after.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut flushed = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(number) = line.unwrap().strip_prefix("flushed ") {
                flushed = number.parse().unwrap();
                if flushed == kill_after {
                    child.kill().unwrap();
                }
            }
        }
        assert!(!child.wait().unwrap().success() && flushed >= kill_after);
        check_rounds(&dir.path().join(kill_after.to_string()), flushed);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn check_rounds(dir: &Path, flushed: u64) {
    let store = FsBlobStore::open(dir).await.unwrap();
    for number in 1..=flushed {
        for block in round(number) {
            let data = store.get(block.cid().hash()).await.unwrap();
            assert_eq!(data.as_ref(), Some(block.data()), "round {number} of {flushed}");
        }
    }
    // What was not flushed is whole or absent.
    for block in round(flushed + 1) {
        let data = store.get(block.cid().hash()).await.unwrap();
        assert!(data.is_none_or(|data| data == *block.data()));
    }
}

#[tokio::test]
#[ignore = "run by another test, as a process of its own that is killed"]
async fn child_puts_and_flushes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = FsBlobStore::open(dir).await.unwrap();
    println!();
    for number in 1.. {
        store.put(round(number)).await.unwrap();
        store.flush().await.unwrap();
        println!("flushed {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_blocks_come_back_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    let blocks: Vec<Block> = (0..10_000).map(|i| sample(i, 40 + i as usize % 500)).collect();
    for batch in blocks.chunks(500) {
        store.put(batch.to_vec()).await.unwrap();
    }
    store.flush().await.unwrap();
    drop(store);
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    for batch in blocks.chunks(1_000) {
        let hashes: Vec<Multihash> = batch.iter().map(|block| *block.cid().hash()).collect();
        for (block, data) in batch.iter().zip(store.get_batch(&hashes).await.unwrap()) {
            assert_eq!(data.as_ref(), Some(block.data()));
        }
    }
    assert_eq!(store.list().await.unwrap().len(), blocks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn block_that_is_read_while_it_is_put_is_absent_or_whole_and_never_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(dir.path()).await.unwrap();
    for seed in 0..300 {
        // Small ones are kept in the database, large ones as files.
        let block = sample(seed, if seed % 2 == 0 { 200 } else { 40_000 });
        let hash = *block.cid().hash();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { while store.get(&hash).await.unwrap().is_none() {} })
            })
            .collect();
        store.put(vec![block.clone()]).await.unwrap();
        assert_eq!(store.get(&hash).await.unwrap().as_ref(), Some(block.data()), "block {seed}");
        for reader in readers {
            tokio::time::timeout(std::time::Duration::from_secs(10), reader).await.expect("it is there").unwrap();
        }
    }
}
