//! What every back end must do, as one suite that panics with the sentence that was broken.
//!
//! A back end implements [`Harness`] in its tests and calls [`check_blob_store`].

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use iptl_dag::{Block, Cid, Codec, MAX_BLOCK_SIZE, Multihash};

use crate::{BlobStore, read_block};

/// Multihash code of SHA2-256.
const SHA2_256: u64 = 0x12;

/// Makes the stores that the suite works on.
#[async_trait]
pub trait Harness: Send {
    /// Makes an empty store.
    async fn make(&mut self) -> Arc<dyn BlobStore>;

    /// Closes a store without flushing it and opens what it left behind; `None` where nothing outlives the handle.
    async fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Option<Arc<dyn BlobStore>>;
}

/// Checks the whole contract.
///
/// # Panics
///
/// Panics where the back end breaks it.
pub async fn check_blob_store(harness: &mut dyn Harness) {
    empty_store_has_nothing(&*harness.make().await).await;
    what_was_put_is_returned(&*harness.make().await).await;
    key_is_the_multihash(&*harness.make().await).await;
    other_hash_functions_are_kept(&*harness.make().await).await;
    every_hash_that_can_be_checked_is_kept(&*harness.make().await).await;
    identity_is_always_present(&*harness.make().await).await;
    put_is_idempotent(&*harness.make().await).await;
    removed_blocks_are_gone_and_others_stay(&*harness.make().await).await;
    removed_block_can_be_put_again(&*harness.make().await).await;
    concurrent_puts_all_arrive(harness.make().await).await;
    flushed_blocks_outlive_the_handle(harness).await;
}

async fn empty_store_has_nothing(store: &dyn BlobStore) {
    let hash = *sample(1, 10).cid().hash();
    assert_eq!(has(store, &[hash]).await, [false], "an empty store has no block");
    assert_eq!(get(store, &hash).await, None, "an empty store returns no block");
    assert!(list(store).await.is_empty(), "an empty store lists nothing");
    store.flush().await.expect("an empty store can be flushed");
    store.remove(&[hash]).await.expect("removing what is absent is no error");
    store.put(Vec::new()).await.expect("putting nothing is no error");
    assert!(has(store, &[]).await.is_empty(), "asking for nothing answers nothing");
}

async fn what_was_put_is_returned(store: &dyn BlobStore) {
    // Around the sizes at which back ends change their ways: chunks, chunk groups, inlining, the largest block.
    let sizes = [0, 1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 65_536, 262_144, 1 << 20, MAX_BLOCK_SIZE];
    let blocks: Vec<Block> = sizes.iter().enumerate().map(|(i, size)| sample(i as u64, *size)).collect();
    store.put(blocks.clone()).await.expect("blocks of every legal size are accepted");
    let hashes: Vec<Multihash> = blocks.iter().map(|block| *block.cid().hash()).collect();
    assert!(has(store, &hashes).await.iter().all(|has| *has), "an acknowledged block is present");
    for block in &blocks {
        let size = block.data().len();
        assert_eq!(get(store, block.cid().hash()).await.as_ref(), Some(block.data()), "{size} bytes come back");
        let read = read_block(store, block.cid()).await.expect("a stored block can be read");
        assert_eq!(read.as_ref(), Some(block), "{size} bytes come back verified");
    }
    let absent = *sample(99, 99).cid().hash();
    let mut asked = hashes.clone();
    asked.insert(3, absent);
    let batch = store.get_batch(&asked).await.expect("several blocks can be read");
    assert_eq!(batch.len(), asked.len(), "a batch answers every hash");
    for (i, (hash, data)) in asked.iter().zip(&batch).enumerate() {
        let expected = blocks.iter().find(|block| block.cid().hash() == hash).map(Block::data);
        assert_eq!(data.as_ref(), expected, "entry {i} of a batch stands at its place");
    }
    assert_eq!(list(store).await, hashes.into_iter().collect(), "a store lists what it holds");
}

async fn key_is_the_multihash(store: &dyn BlobStore) {
    let raw = sample(1, 100);
    store.put(vec![raw.clone()]).await.expect("a block is accepted");
    let cbor = Cid::new_v1(Codec::DagCbor.number(), *raw.cid().hash());
    let read = read_block(store, &cbor).await.expect("a stored block can be read");
    assert_eq!(read.map(|block| block.data().clone()).as_ref(), Some(raw.data()), "the codec is no part of the key");
}

async fn other_hash_functions_are_kept(store: &dyn BlobStore) {
    let blake3 = sample(1, 20_000);
    let sha2 = sha2_256(blake3.data().clone());
    store.put(vec![sha2.clone()]).await.expect("a SHA2-256 block is accepted");
    assert_eq!(has(store, &[*sha2.cid().hash()]).await, [true], "a SHA2-256 block is present");
    assert_eq!(get(store, sha2.cid().hash()).await.as_ref(), Some(sha2.data()), "a SHA2-256 block comes back");
    assert!(list(store).await.contains(sha2.cid().hash()), "a SHA2-256 block is listed under its own hash");
    store.put(vec![blake3.clone()]).await.expect("the same bytes are accepted under another hash");
    store.remove(&[*sha2.cid().hash()]).await.expect("a SHA2-256 block can be removed");
    assert_eq!(has(store, &[*sha2.cid().hash()]).await, [false], "a removed SHA2-256 block is absent");
    assert_eq!(get(store, blake3.cid().hash()).await.as_ref(), Some(blake3.data()), "its BLAKE3 twin stays");
    store.put(vec![sha2.clone()]).await.expect("a SHA2-256 block is accepted again");
    store.remove(&[*blake3.cid().hash()]).await.expect("a block can be removed");
    assert_eq!(get(store, sha2.cid().hash()).await.as_ref(), Some(sha2.data()), "its SHA2-256 twin stays");
}

async fn every_hash_that_can_be_checked_is_kept(store: &dyn BlobStore) {
    let blocks = of_every_hash(sample(1, 3_000).data());
    store.put(blocks.clone()).await.expect("blocks of every hash are accepted");
    for block in &blocks {
        let cid = block.cid();
        assert_eq!(has(store, &[*cid.hash()]).await, [true], "{cid} is present");
        assert_eq!(get(store, cid.hash()).await.as_ref(), Some(block.data()), "{cid} comes back");
    }
    let hashes = blocks.iter().map(|block| *block.cid().hash()).collect();
    assert_eq!(list(store).await, hashes, "each is listed under its own hash");
}

async fn identity_is_always_present(store: &dyn BlobStore) {
    let hash = Multihash::wrap(0, b"a name that is its own content").expect("32 bytes fit into a multihash");
    assert_eq!(has(store, &[hash]).await, [true], "an identity hash is always present");
    assert_eq!(get(store, &hash).await.as_deref(), Some(hash.digest()), "an identity hash holds its bytes");
    let cid = Cid::new_v1(Codec::Raw.number(), hash);
    let block = Block::verify(cid, hash.digest().to_vec()).expect("an identity block verifies");
    store.put(vec![block]).await.expect("an identity block is accepted");
    assert!(list(store).await.is_empty(), "an identity block is not stored");
}

async fn put_is_idempotent(store: &dyn BlobStore) {
    for size in [10, 100_000] {
        let block = sample(1, size);
        store.put(vec![block.clone(), block.clone()]).await.expect("a block may stand twice in one batch");
        store.put(vec![block.clone()]).await.expect("a block may be put again");
        assert_eq!(get(store, block.cid().hash()).await.as_ref(), Some(block.data()), "it is still whole");
    }
    assert_eq!(list(store).await.len(), 2, "a block put twice is stored once");
}

async fn removed_blocks_are_gone_and_others_stay(store: &dyn BlobStore) {
    let blocks: Vec<Block> = (0..40).map(|i| sample(i, if i % 2 == 0 { 100 } else { 40_000 })).collect();
    store.put(blocks.clone()).await.expect("blocks are accepted");
    let (gone, kept) = blocks.split_at(20);
    let hashes: Vec<Multihash> = gone.iter().map(|block| *block.cid().hash()).collect();
    store.remove(&hashes).await.expect("blocks can be removed");
    assert!(has(store, &hashes).await.iter().all(|has| !has), "a removed block is absent");
    for block in gone {
        assert_eq!(get(store, block.cid().hash()).await, None, "a removed block is not returned");
    }
    for block in kept {
        assert_eq!(get(store, block.cid().hash()).await.as_ref(), Some(block.data()), "other blocks stay");
    }
    assert_eq!(list(store).await.len(), kept.len(), "a removed block is not listed");
}

async fn removed_block_can_be_put_again(store: &dyn BlobStore) {
    for size in [10, 100_000] {
        let block = sample(7, size);
        store.put(vec![block.clone()]).await.expect("a block is accepted");
        store.remove(&[*block.cid().hash()]).await.expect("a block can be removed");
        store.put(vec![block.clone()]).await.expect("a removed block is accepted again");
        store.flush().await.expect("the store can be flushed");
        assert_eq!(get(store, block.cid().hash()).await.as_ref(), Some(block.data()), "it is whole again");
    }
}

async fn concurrent_puts_all_arrive(store: Arc<dyn BlobStore>) {
    let tasks: Vec<_> = (0..8u64)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                // Neighbours overlap by half, so that tasks race for the same blocks.
                let blocks: Vec<Block> =
                    (0..40).map(|i| sample(task * 20 + i, 50 + (i as usize % 3) * 12_000)).collect();
                for batch in blocks.chunks(10) {
                    store.put(batch.to_vec()).await.expect("concurrent puts are accepted");
                }
                blocks
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for task in tasks {
        for block in task.await.expect("no task panics") {
            assert_eq!(get(&*store, block.cid().hash()).await.as_ref(), Some(block.data()), "each block arrives whole");
            all.insert(*block.cid().hash());
        }
    }
    assert_eq!(list(&*store).await, all, "exactly what was put is stored");
}

async fn flushed_blocks_outlive_the_handle(harness: &mut dyn Harness) {
    let store = harness.make().await;
    let mut blocks: Vec<Block> = (0..60).map(|i| sample(i, (i as usize) * 1_000)).collect();
    blocks.push(sha2_256(sample(1000, 30_000).data().clone()));
    blocks.extend(of_every_hash(sample(1002, 3_000).data()));
    blocks.push(sample(1001, MAX_BLOCK_SIZE));
    store.put(blocks.clone()).await.expect("blocks are accepted");
    let gone = blocks.pop().expect("the list was just filled");
    store.remove(&[*gone.cid().hash()]).await.expect("a block can be removed");
    store.flush().await.expect("the store can be flushed");
    let Some(store) = harness.reopen(store).await else { return };
    for block in &blocks {
        assert_eq!(get(&*store, block.cid().hash()).await.as_ref(), Some(block.data()), "a flushed block survives");
    }
    assert_eq!(has(&*store, &[*gone.cid().hash()]).await, [false], "a flushed removal survives");
    let listed = list(&*store).await;
    for hash in &listed {
        let data = get(&*store, hash).await.expect("what is listed can be read");
        assert!(blocks.iter().any(|block| *block.data() == data), "nothing appears from nowhere");
    }
    let Some(store) = harness.reopen(store).await else { return };
    assert_eq!(list(&*store).await, listed, "nothing vanishes by reopening");
}

/// Returns a raw block of `size` bytes that differs from those of other seeds.
pub fn sample(seed: u64, size: usize) -> Block {
    // SplitMix64, started far apart for neighbouring seeds: with plain seeds one's words would be another's, shifted.
    let mut state = mix(mix(seed) ^ size as u64);
    let mut data = Vec::with_capacity(size + 8);
    while data.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        data.extend_from_slice(&mix(state).to_le_bytes());
    }
    data.truncate(size);
    Block::new(Codec::Raw, data)
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Returns a raw block under SHA2-256.
pub fn sha2_256(data: bytes::Bytes) -> Block {
    let hash = iptl_dag::block::digest(SHA2_256, &data).expect("SHA2-256 is known");
    Block::verify(Cid::new_v1(Codec::Raw.number(), hash), data).expect("the digest was just made of these bytes")
}

/// Returns the same bytes under a hash of every kind but BLAKE3-256: other functions, digests cut off and extended.
pub fn of_every_hash(data: &bytes::Bytes) -> Vec<Block> {
    // SHA2, SHA3, BLAKE2b of 160, 256 and 512 bits; SHA2-256 and BLAKE3 of other sizes.
    let whole = [(0x12, 32), (0x13, 64), (0x14, 64), (0x15, 48), (0x16, 32), (0x17, 28)];
    let blake2b = [(0xb214, 20), (0xb220, 32), (0xb240, 64)];
    let other_sizes = [(SHA2_256, 20), (0xb240, 20), (0x1e, 20), (0x1e, 33), (0x1e, 64)];
    let kinds = whole.into_iter().chain(blake2b).chain(other_sizes);
    kinds.map(|(code, size)| Block::hashed_to(code, size, data.clone()).expect("it can be computed")).collect()
}

async fn has(store: &dyn BlobStore, hashes: &[Multihash]) -> Vec<bool> {
    store.has(hashes).await.expect("presence can be asked")
}

async fn get(store: &dyn BlobStore, hash: &Multihash) -> Option<bytes::Bytes> {
    store.get(hash).await.expect("a block can be asked for")
}

async fn list(store: &dyn BlobStore) -> BTreeSet<Multihash> {
    let listed = store.list().await.expect("a store can be listed");
    let set: BTreeSet<Multihash> = listed.iter().copied().collect();
    assert_eq!(set.len(), listed.len(), "a store lists each block once");
    set
}
