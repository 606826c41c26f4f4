//! Torn ends, flipped bits, lost files.

use std::sync::Arc;

use iptl_artifacts::contract::{sample, sha2_256};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_pack::{Options, PackStore};
use iptl_dag::{Block, Multihash};

use crate::disk::{Disk, Numbers};

const PACK: &str = "00000001.pack";
const INDEX: &str = "index.redb";

fn options() -> Options {
    Options { write_behind: u64::MAX, ..Options::default() }
}

async fn open(disk: &Disk) -> PackStore {
    PackStore::open_on(Arc::new(disk.clone()), options()).await.unwrap()
}

fn blocks() -> Vec<Block> {
    let sizes = [10, 0, 300, 77, 1_000, 40];
    let mut blocks: Vec<Block> = sizes.iter().enumerate().map(|(i, size)| sample(i as u64, *size)).collect();
    blocks.push(sha2_256(sample(100, 200).data().clone()));
    blocks
}

/// A store with some blocks; killed before its index knew them, or closed in order.
async fn filled(closed: bool) -> Disk {
    let disk = Disk::default();
    let store = open(&disk).await;
    for block in blocks() {
        store.put(vec![block]).await.unwrap();
    }
    store.flush().await.unwrap();
    let killed = disk.after_kill();
    store.close().await.unwrap();
    if closed { disk.after_kill() } else { killed }
}

/// Where the record of each block ends.
fn ends() -> Vec<usize> {
    let mut at = 32;
    let lengths = blocks().into_iter().map(|block| 17 + block.cid().hash().to_bytes().len() + block.data().len());
    lengths
        .map(|length| {
            at += length;
            at
        })
        .collect()
}

#[tokio::test]
async fn end_that_is_torn_at_any_byte_is_cut_off() {
    let (blocks, ends) = (blocks(), ends());
    let killed = filled(false).await;
    let whole = killed.content(PACK);
    assert_eq!(whole.len(), *ends.last().unwrap());
    for cut in 0..whole.len() {
        let disk = killed.after_kill();
        disk.replace(PACK, whole[..cut].to_vec());
        let store = open(&disk).await;
        let left = ends.iter().filter(|end| **end <= cut).count();
        for (i, block) in blocks.iter().enumerate() {
            let data = store.get(block.cid().hash()).await.unwrap();
            assert_eq!(data.as_ref(), (i < left).then(|| block.data()), "block {i}, cut at {cut}");
        }
        assert_eq!(store.list().await.unwrap().len(), left);
        // What is put next stands where the torn record stood, or in a pack of its own.
        store.put(blocks.clone()).await.unwrap();
        drop(store);
        let store = open(&disk).await;
        for block in &blocks {
            assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn pack_that_lost_what_the_index_knows_is_damaged_and_heals() {
    let (blocks, ends) = (blocks(), ends());
    let closed = filled(true).await;
    for cut in [40, ends[1], ends[2] - 1, ends[5] + 3] {
        let disk = closed.after_kill();
        disk.replace(PACK, closed.content(PACK)[..cut].to_vec());
        check_damaged(&disk, &blocks, &ends, |i| ends[i] <= cut).await;
    }
    closed.lose(PACK);
    check_damaged(&closed, &blocks, &ends, |_| false).await;
}

/// Asserts that what is not intact is told once, then absent, and can be put again.
async fn check_damaged(disk: &Disk, blocks: &[Block], ends: &[usize], intact: impl Fn(usize) -> bool) {
    let store = open(disk).await;
    for (i, block) in blocks.iter().enumerate() {
        let hash = block.cid().hash();
        // An empty block has nothing that could be damaged, where its pack is there.
        let read = store.get(hash).await;
        if intact(i) || matches!(&read, Ok(Some(data)) if data == block.data()) {
            assert_eq!(read.unwrap().as_ref(), Some(block.data()));
        } else {
            assert!(matches!(read, Err(StoreError::Corrupt { hash: found }) if found == *hash), "block {i}: {read:?}");
            assert_eq!(store.has(&[*hash]).await.unwrap(), [false], "it is absent from then on");
            assert_eq!(store.get(hash).await.unwrap(), None);
        }
    }
    // It is remembered.
    let damaged = store.check(|_, _| {}).await.unwrap().damaged;
    drop(store);
    let store = open(disk).await;
    assert_eq!(store.check(|_, _| {}).await.unwrap().damaged, damaged);
    for hash in &damaged {
        assert_eq!(store.has(&[*hash]).await.unwrap(), [false]);
        assert!(!store.list().await.unwrap().contains(hash));
    }
    store.put(blocks.to_vec()).await.unwrap();
    drop(store);
    let store = open(disk).await;
    assert_eq!(store.check(|_, _| {}).await.unwrap().blocks, blocks.len() as u64, "{ends:?}");
    for block in blocks {
        assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
    }
}

#[tokio::test]
async fn flipped_bit_in_a_pack_costs_at_most_the_block_that_it_is_in() {
    let (blocks, ends) = (blocks(), ends());
    for (closed, index_lost) in [(true, false), (true, true), (false, false)] {
        let found = filled(closed).await;
        if index_lost {
            found.lose(INDEX);
        }
        let whole = found.content(PACK);
        let mut numbers = Numbers::new(7);
        // Every bit of the fixed part of some records, and bits anywhere else behind the pack's header.
        let heads = [32, ends[1], ends[3]].into_iter().flat_map(|at| at * 8..(at + 17) * 8);
        let bits: Vec<usize> = heads.chain((0..300).map(|_| 256 + numbers.below(whole.len() * 8 - 256))).collect();
        for bit in bits {
            let disk = found.after_kill();
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            disk.replace(PACK, bytes);
            let hit = ends.iter().filter(|end| **end <= bit / 8).count();
            let store = open(&disk).await;
            for (i, block) in blocks.iter().enumerate() {
                let read = store.get(block.cid().hash()).await;
                match read {
                    Ok(Some(data)) => assert_eq!(data, block.data(), "bit {bit}"),
                    Ok(None) | Err(StoreError::Corrupt { .. }) => assert_eq!(i, hit, "bit {bit}"),
                    Err(error) => panic!("bit {bit}: {error}"),
                }
            }
            let checked = store.check(|_, _| {}).await.unwrap();
            assert!(checked.damaged.iter().all(|hash| hash == blocks[hit].cid().hash()), "bit {bit}");
            assert!(checked.blocks >= blocks.len() as u64 - 1, "bit {bit}: {checked:?}");
        }
    }
}

#[tokio::test]
async fn frame_that_is_damaged_is_written_again() {
    let blocks = blocks();
    let disk = filled(true).await;
    let mut bytes = disk.content(PACK);
    bytes[33] ^= 1;
    disk.replace(PACK, bytes);
    let store = open(&disk).await;
    let checked = store.check(|_, _| {}).await.unwrap();
    assert_eq!((checked.reframed, checked.blocks, checked.damaged.len()), (1, blocks.len() as u64, 0));
    assert_eq!(store.check(|_, _| {}).await.unwrap().reframed, 0);
    drop(store);
    disk.lose(INDEX);
    let store = open(&disk).await;
    assert_eq!(store.get(blocks[0].cid().hash()).await.unwrap().as_ref(), Some(blocks[0].data()));
}

#[tokio::test]
async fn pack_without_its_header_is_read_with_what_the_index_remembers() {
    let blocks = blocks();
    let disk = filled(true).await;
    let mut bytes = disk.content(PACK);
    bytes[..32].fill(0);
    disk.replace(PACK, bytes);
    let store = open(&disk).await;
    for block in &blocks {
        assert_eq!(store.get(block.cid().hash()).await.unwrap().as_ref(), Some(block.data()));
    }
}

#[tokio::test]
async fn flipped_bit_in_the_index_is_found_by_a_check_and_costs_nothing() {
    let blocks = blocks();
    let found = filled(true).await;
    let whole = found.content(INDEX);
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut numbers = Numbers::new(3);
    for _ in 0..200 {
        let bit = used[numbers.below(used.len())] * 8 + numbers.below(8);
        let disk = found.after_kill();
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        disk.replace(INDEX, bytes);
        let store = open(&disk).await;
        for block in &blocks {
            // Wrong places are noticed; other bytes are never returned.
            if let Ok(Some(data)) = store.get(block.cid().hash()).await {
                assert_eq!(data, block.data(), "bit {bit}");
            }
        }
        match store.check(|_, _| {}).await {
            Ok(_) => {}
            Err(error) => panic!("bit {bit}: {error}"),
        }
        for block in &blocks {
            let read = store.get(block.cid().hash()).await;
            assert_eq!(read.unwrap().as_ref(), Some(block.data()), "bit {bit}");
        }
    }
}

#[tokio::test]
async fn block_that_looks_like_records_hides_nothing_and_adds_nothing() {
    // Someone puts a pack's own bytes into a block; then the frame around it is damaged.
    let disk = filled(false).await;
    let trap = Block::new(iptl_dag::Codec::Raw, disk.content(PACK));
    let store = open(&disk).await;
    store.put(vec![trap.clone(), sample(50, 500)]).await.unwrap();
    let known: Vec<Multihash> = store.list().await.unwrap();
    let copy = disk.after_kill();
    drop(store);
    let mut bytes = copy.content(PACK);
    bytes[*ends().last().unwrap()] ^= 1;
    copy.replace(PACK, bytes);
    let store = open(&copy).await;
    let mut listed = store.list().await.unwrap();
    listed.push(*trap.cid().hash());
    listed.sort();
    let mut known = known;
    known.sort();
    assert_eq!(listed, known, "all but the damaged one, and each once");
}
