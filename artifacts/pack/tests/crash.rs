//! A process that dies, or a machine that loses its power, in every call to the file system.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use iptl_artifacts::BlobStore;
use iptl_artifacts::contract::{sample, sha2_256};
use iptl_artifacts_pack::{Options, PackStore};
use iptl_dag::{Block, Multihash};

use crate::disk::{Disk, Numbers};

/// Small packs; nothing happens in the background, so that calls come in the same order each time.
const OPTIONS: Options =
    Options { pack_size: 20_000, max_lag_bytes: u64::MAX, max_lag_blocks: usize::MAX, write_behind: u64::MAX };

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<Block>),
    Remove(Vec<Multihash>),
    Flush,
    Compact,
    Reopen,
}

/// What must be there, whatever happens next.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// Put and acknowledged.
    put: BTreeMap<Multihash, Bytes>,
    /// As of the last flush that was acknowledged, or what stands for one.
    flushed: BTreeSet<Multihash>,
    /// Removed and acknowledged.
    removed: BTreeSet<Multihash>,
    /// In the step that was not acknowledged.
    open: BTreeSet<Multihash>,
    everything: BTreeMap<Multihash, Bytes>,
}

fn script() -> Vec<Step> {
    let put = |from: u64, sizes: &[usize]| {
        let blocks = sizes.iter().enumerate().map(|(i, size)| sample(from + i as u64, *size));
        Step::Put(blocks.collect())
    };
    let hashes = |from: u64, sizes: &[usize]| -> Vec<Multihash> {
        sizes.iter().enumerate().map(|(i, size)| *sample(from + i as u64, *size).cid().hash()).collect()
    };
    vec![
        put(1, &[10, 3_000, 0]),
        Step::Flush,
        Step::Put(vec![sha2_256(sample(2, 3_000).data().clone()), sample(20, 30_000)]),
        put(30, &[9_000, 9_000, 9_000]),
        Step::Reopen,
        put(40, &[2_000, 100]),
        Step::Flush,
        Step::Remove([hashes(30, &[9_000, 9_000]), hashes(40, &[2_000])].concat()),
        put(50, &[5_000, 50]),
        Step::Compact,
        put(60, &[700]),
        // Comes back, after its space was given away.
        put(30, &[9_000]),
        Step::Flush,
        put(70, &[4_000, 4_000]),
        Step::Reopen,
        Step::Remove([hashes(70, &[4_000, 4_000]), hashes(1, &[10, 3_000])].concat()),
        Step::Compact,
        put(80, &[123]),
    ]
}

/// Takes the steps until the disk dies; returns what was promised.
async fn run(disk: &Disk, steps: &[Step]) -> Promise {
    let mut promise = Promise::default();
    let files = Arc::new(disk.clone());
    let Ok(mut store) = PackStore::open_on(files.clone(), OPTIONS).await else { return promise };
    for step in steps {
        promise.open = match step {
            Step::Put(blocks) => blocks.iter().map(|block| *block.cid().hash()).collect(),
            Step::Remove(hashes) => hashes.iter().copied().collect(),
            Step::Flush | Step::Compact | Step::Reopen => BTreeSet::new(),
        };
        if let Step::Put(blocks) = step {
            promise.everything.extend(blocks.iter().map(|block| (*block.cid().hash(), block.data().clone())));
        }
        let done = match step {
            Step::Put(blocks) => store.put(blocks.clone()).await.is_ok(),
            Step::Remove(hashes) => store.remove(hashes).await.is_ok(),
            Step::Flush => store.flush().await.is_ok(),
            Step::Compact => store.compact().await.is_ok(),
            Step::Reopen => {
                drop(store);
                match PackStore::open_on(files.clone(), OPTIONS).await {
                    Ok(opened) => store = opened,
                    Err(_) => return promise,
                }
                true
            }
        };
        if !done || disk.is_dead() {
            return promise;
        }
        match step {
            Step::Put(blocks) => {
                for block in blocks {
                    promise.put.insert(*block.cid().hash(), block.data().clone());
                    promise.removed.remove(block.cid().hash());
                }
            }
            Step::Remove(hashes) => {
                for hash in hashes {
                    promise.put.remove(hash);
                    promise.flushed.remove(hash);
                    promise.removed.insert(*hash);
                }
            }
            Step::Flush => promise.flushed = promise.put.keys().copied().collect(),
            Step::Compact | Step::Reopen => {}
        }
    }
    promise.open.clear();
    promise
}

/// Opens what was left behind and holds it against what was promised.
async fn check(disk: Disk, promise: &Promise, lost_power: bool, context: &str) {
    let files = Arc::new(disk);
    let mut store = PackStore::open_on(files.clone(), OPTIONS).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    for round in 0..2 {
        for (hash, data) in &promise.put {
            let is_promised = !lost_power || promise.flushed.contains(hash);
            if is_promised && !promise.open.contains(hash) {
                assert_eq!(store.get(hash).await.unwrap().as_ref(), Some(data), "{context}, round {round}");
            }
        }
        for hash in &promise.removed {
            if !promise.open.contains(hash) {
                assert_eq!(store.has(&[*hash]).await.unwrap(), [false], "{context}: it was removed");
            }
        }
        for hash in store.list().await.unwrap() {
            let data = store.get(&hash).await.unwrap_or_else(|e| panic!("{context}, round {round}: {e}"));
            assert_eq!(data.as_ref(), promise.everything.get(&hash), "{context}: it is whole or absent");
        }
        // It goes on working, and what it does then lasts.
        let more = sample(900 + round, 6_000);
        store.put(vec![more.clone()]).await.unwrap();
        store.flush().await.unwrap();
        store.compact().await.unwrap();
        drop(store);
        store = PackStore::open_on(files.clone(), OPTIONS).await.unwrap();
        assert_eq!(store.get(more.cid().hash()).await.unwrap().as_ref(), Some(more.data()), "{context}");
        store.remove(&[*more.cid().hash()]).await.unwrap();
    }
}

#[tokio::test]
async fn death_in_any_call_loses_nothing_that_was_promised() {
    let steps = script();
    let disk = Disk::default();
    let promise = run(&disk, &steps).await;
    assert_eq!(promise.everything.len(), 16, "the script ends where nobody dies");
    let calls = disk.calls();
    assert!(calls > 100, "{calls} calls are worth dying in");
    for call in 1..=calls {
        let disk = Disk::default();
        disk.die_at(call);
        let promise = run(&disk, &steps).await;
        assert!(disk.is_dead(), "call {call} of {calls} is made each time");
        check(disk.after_kill(), &promise, false, &format!("killed in call {call}")).await;
        let mut numbers = Numbers::new(call);
        for turn in 0..2 {
            let found = disk.after_power_loss(&mut numbers);
            check(found, &promise, true, &format!("power lost in call {call}, turn {turn}")).await;
        }
    }
}

#[tokio::test]
async fn full_disk_leaves_what_was_acknowledged_and_takes_more_once_there_is_room() {
    for (lies, spare) in [(true, 40_000), (true, 0), (true, 1_000), (false, 1_000)] {
        let disk = Disk::default();
        let store = PackStore::open_on(Arc::new(disk.clone()), OPTIONS).await.unwrap();
        let before: Vec<Block> = (0..10).map(|i| sample(i, 3_000)).collect();
        store.put(before.clone()).await.unwrap();
        store.flush().await.unwrap();
        disk.set_room(Some(disk.used() + spare), lies);
        let more: Vec<Block> = (100..150).map(|i| sample(i, 3_000)).collect();
        let error = store.put(more.clone()).await.unwrap_err();
        assert!(matches!(error, iptl_artifacts::StoreError::Full { .. }), "{error}");
        for block in &before {
            assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
        }
        for block in &more {
            let data = store.get(block.cid().hash()).await.unwrap();
            assert!(data.is_none_or(|data| data == *block.data()), "each is whole or absent");
        }
        disk.set_room(None, false);
        store.put(more.clone()).await.unwrap();
        store.flush().await.unwrap();
        drop(store);
        let store = PackStore::open_on(Arc::new(disk.after_kill()), OPTIONS).await.unwrap();
        for block in before.iter().chain(&more) {
            assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
        }
    }
}

#[tokio::test]
async fn removal_makes_room_on_a_full_disk() {
    let disk = Disk::default();
    let store = PackStore::open_on(Arc::new(disk.clone()), OPTIONS).await.unwrap();
    let blocks: Vec<Block> = (0..60).map(|i| sample(i, 3_000)).collect();
    store.put(blocks.clone()).await.unwrap();
    store.remove(&[*blocks[0].cid().hash()]).await.unwrap();
    disk.set_room(Some(disk.used()), true);
    assert!(store.put(vec![sample(99, 100_000)]).await.is_err());
    let hashes: Vec<Multihash> = blocks.iter().map(|block| *block.cid().hash()).collect();
    store.remove(&hashes[..50]).await.unwrap();
    assert!(store.compact().await.unwrap() > 100_000, "empty packs go first");
    store.put(vec![sample(99, 100_000)]).await.unwrap();
}
