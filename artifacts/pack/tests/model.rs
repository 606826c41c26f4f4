//! Random schedules against a map in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use iptl_artifacts::contract::{sample, sha2_256};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_pack::{Options, PackStore};
use iptl_dag::{Block, Multihash};

use crate::disk::{Disk, Numbers};

const OPTIONS: Options = Options { pack_size: 60_000, max_lag_bytes: 80_000, max_lag_blocks: 12, write_behind: 30_000 };

fn block(numbers: &mut Numbers) -> Block {
    let seed = numbers.below(60) as u64;
    let size = [0, 1, 100, 1_000, 5_000, 30_000, 70_000][seed as usize % 7];
    match seed % 5 {
        0 => sha2_256(sample(seed, size).data().clone()),
        _ => sample(seed, size),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_schedule_ends_as_the_model_says() {
    for seed in 0..40 {
        let mut numbers = Numbers::new(seed);
        let mut disk = Disk::default();
        let mut store = PackStore::open_on(Arc::new(disk.clone()), OPTIONS).await.unwrap();
        let mut model: BTreeMap<Multihash, Bytes> = BTreeMap::new();
        for step in 0..150 {
            let context = format!("seed {seed}, step {step}");
            match numbers.below(20) {
                0..=7 => {
                    let blocks: Vec<Block> = (0..1 + numbers.below(5)).map(|_| block(&mut numbers)).collect();
                    store.put(blocks.clone()).await.unwrap();
                    model.extend(blocks.into_iter().map(|block| (*block.cid().hash(), block.data().clone())));
                }
                8..=10 => {
                    let hashes: Vec<Multihash> =
                        (0..1 + numbers.below(8)).map(|_| *block(&mut numbers).cid().hash()).collect();
                    store.remove(&hashes).await.unwrap();
                    hashes.iter().for_each(|hash| drop(model.remove(hash)));
                }
                11 => store.flush().await.unwrap(),
                12 => drop(store.compact().await.unwrap()),
                13 => {
                    drop(store);
                    store = PackStore::open_on(Arc::new(disk.clone()), OPTIONS).await.unwrap();
                }
                14 => {
                    // Killed: whatever was acknowledged is in the page cache.
                    let found = disk.after_kill();
                    drop(std::mem::replace(
                        &mut store,
                        PackStore::open_on(Arc::new(found.clone()), OPTIONS).await.unwrap(),
                    ));
                    disk = found;
                }
                15 => {
                    let checked = store.check(|_, _| {}).await.unwrap();
                    assert_eq!(checked.blocks, model.len() as u64, "{context}");
                    assert!(checked.damaged.is_empty() && !checked.reindexed, "{context}: {checked:?}");
                }
                16 => {
                    disk.set_room(Some(disk.used() + numbers.below(20_000)), true);
                    let block = block(&mut numbers);
                    match store.put(vec![block.clone()]).await {
                        Ok(()) => drop(model.insert(*block.cid().hash(), block.data().clone())),
                        Err(StoreError::Full { .. }) => {}
                        Err(error) => panic!("{context}: {error}"),
                    }
                    disk.set_room(None, false);
                }
                _ => {
                    let block = block(&mut numbers);
                    let hash = *block.cid().hash();
                    assert_eq!(store.get(&hash).await.unwrap().as_ref(), model.get(&hash), "{context}");
                    assert_eq!(store.has(&[hash]).await.unwrap(), [model.contains_key(&hash)], "{context}");
                }
            }
            if step % 10 == 9 {
                let mut listed = store.list().await.unwrap();
                listed.sort();
                assert_eq!(listed, model.keys().copied().collect::<Vec<_>>(), "{context}");
                let read = store.get_batch(&listed).await.unwrap();
                assert!(read.iter().zip(model.values()).all(|(data, kept)| data.as_ref() == Some(kept)), "{context}");
            }
        }
        let all: Vec<Multihash> = model.keys().copied().collect();
        store.remove(&all).await.unwrap();
        store.compact().await.unwrap();
        let usage = store.usage().await.unwrap();
        assert_eq!((usage.blocks, usage.bytes), (0, 0), "seed {seed}");
        assert!(usage.on_disk <= 64, "seed {seed}: nothing is left, {usage:?}");
    }
}
