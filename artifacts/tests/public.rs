//! What strangers may read is what public roots lead to, and nothing else, whatever happens in between.

use std::collections::BTreeSet;

use iptl_artifacts::contract::sample;
use iptl_artifacts::{Added, BlobStore, MemStore, PublicIndex};
use iptl_dag::{Block, Cid, Codec, Ipld, Multihash, codec, walk};
use tempfile::TempDir;

fn node(children: &[&Block]) -> Block {
    codec::to_block(&Ipld::List(children.iter().map(|child| Ipld::Link(*child.cid())).collect()))
}

async fn store_of(blocks: &[&Block]) -> MemStore {
    let store = MemStore::new();
    store.put(blocks.iter().map(|block| (*block).clone()).collect()).await.unwrap();
    store
}

fn open(dir: &TempDir, roots: &[&Block]) -> (PublicIndex, Vec<Cid>) {
    let roots: Vec<Cid> = roots.iter().map(|root| *root.cid()).collect();
    PublicIndex::open(dir.path().join("public"), &roots).unwrap()
}

#[track_caller]
fn check(index: &PublicIndex, public: &[&Block], hidden: &[&Block]) {
    for (blocks, expected) in [(public, true), (hidden, false)] {
        for block in blocks {
            assert_eq!(index.contains(block.cid().hash()), expected, "{block:?}");
        }
    }
}

#[tokio::test]
async fn what_a_public_root_leads_to_is_public_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [1, 2, 3].map(|seed| sample(seed, 50));
    let (first, second) = (node(&[&a, &b]), node(&[&b, &c]));
    let store = store_of(&[&a, &b, &c, &first, &second]).await;
    let (index, lacking) = open(&dir, &[&first]);
    assert_eq!(lacking, [*first.cid()]);
    assert_eq!(index.add(&store, first.cid()).await.unwrap(), Added { blocks: 3, missing: 0 });
    check(&index, &[&first, &a, &b], &[&second, &c]);
    drop(index);
    let (index, lacking) = open(&dir, &[&first]);
    assert_eq!(lacking, []);
    check(&index, &[&first, &a, &b], &[&second, &c]);
    // Again it costs nothing, and a second root adds what is new in it.
    assert_eq!(index.add(&store, first.cid()).await.unwrap(), Added::default());
    assert_eq!(index.add(&store, second.cid()).await.unwrap(), Added { blocks: 2, missing: 0 });
    check(&index, &[&first, &second, &a, &b, &c], &[]);
}

#[tokio::test]
async fn a_block_of_two_roots_stays_public_until_the_last_one_is_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [1, 2, 3].map(|seed| sample(seed, 50));
    let (first, second) = (node(&[&a, &b]), node(&[&b, &c]));
    let store = store_of(&[&a, &b, &c, &first, &second]).await;
    let (index, _) = open(&dir, &[]);
    index.add(&store, first.cid()).await.unwrap();
    index.add(&store, second.cid()).await.unwrap();
    index.replace(&store, &[*second.cid()]).await.unwrap();
    check(&index, &[&second, &b, &c], &[&first, &a]);
    drop(index);
    let (index, lacking) = open(&dir, &[&second]);
    assert_eq!(lacking, []);
    check(&index, &[&second, &b, &c], &[&first, &a]);
    index.replace(&store, &[]).await.unwrap();
    check(&index, &[], &[&first, &second, &a, &b, &c]);
}

#[tokio::test]
async fn an_index_with_a_root_that_is_public_no_more_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (node(&[]), node(&[&sample(1, 5)]));
    let store = store_of(&[&a, &b]).await;
    let (index, _) = open(&dir, &[]);
    index.add(&store, a.cid()).await.unwrap();
    index.add(&store, b.cid()).await.unwrap();
    drop(index);
    // The pins were written, and then somebody pulled the plug.
    let (index, lacking) = open(&dir, &[&b]);
    assert_eq!(lacking, [*b.cid()]);
    check(&index, &[], &[&a, &b]);
}

#[tokio::test]
async fn what_was_missing_is_public_once_it_came_and_the_root_is_added_again() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = sample(1, 5);
    let inner = node(&[&leaf]);
    let (above, other) = (node(&[&inner]), node(&[&inner, &inner]));
    let store = store_of(&[&leaf, &above, &other]).await;
    let (index, _) = open(&dir, &[]);
    let roots = [*above.cid(), *other.cid()];
    assert_eq!(index.add(&store, above.cid()).await.unwrap(), Added { blocks: 2, missing: 1 });
    // It is named by a public block; what it links is not known.
    check(&index, &[&above, &inner], &[&leaf]);
    drop(index);
    let (index, lacking) = open(&dir, &[&above]);
    assert_eq!(lacking, [*above.cid()], "it was not whole");
    assert_eq!(index.replace(&store, &roots).await.unwrap(), Added { blocks: 3, missing: 2 });
    store.put(vec![inner.clone()]).await.unwrap();
    assert_eq!(index.add(&store, other.cid()).await.unwrap(), Added { blocks: 1, missing: 0 });
    check(&index, &[&above, &other, &inner, &leaf], &[]);
}

/// One hash may be a node by one CID and a leaf by another.
#[tokio::test]
async fn a_node_that_was_met_as_a_leaf_is_walked_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = sample(1, 5);
    let inner = node(&[&leaf]);
    let as_raw = Ipld::Link(Cid::new_v1(Codec::Raw.number(), *inner.cid().hash()));
    let root = codec::to_block(&Ipld::List(vec![as_raw.clone(), Ipld::Link(*inner.cid())]));
    let only_raw = codec::to_block(&Ipld::List(vec![as_raw]));
    let store = store_of(&[&leaf, &inner, &root, &only_raw]).await;
    let (index, _) = open(&dir, &[]);
    index.add(&store, only_raw.cid()).await.unwrap();
    check(&index, &[&only_raw, &inner], &[&root, &leaf]);
    index.add(&store, root.cid()).await.unwrap();
    check(&index, &[&only_raw, &inner, &root, &leaf], &[]);
}

#[tokio::test]
async fn links_in_a_cid_that_carries_its_content_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = sample(1, 5);
    let text = codec::encode(&Ipld::Link(*leaf.cid()));
    let inline = Cid::new_v1(Codec::DagCbor.number(), Multihash::wrap(0, &text).unwrap());
    let root = codec::to_block(&Ipld::List(vec![Ipld::Link(inline)]));
    let store = store_of(&[&leaf, &root]).await;
    let (index, _) = open(&dir, &[]);
    index.add(&store, root.cid()).await.unwrap();
    check(&index, &[&root, &leaf], &[]);
}

#[tokio::test]
async fn whatever_a_crash_leaves_of_the_file_is_read_up_to_there() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<Block> = (0..4).map(|seed| node(&[&sample(seed, 5)])).collect();
    let store = store_of(&roots.iter().collect::<Vec<_>>()).await;
    let (index, _) = open(&dir, &[]);
    for root in &roots {
        index.add(&store, root.cid()).await.unwrap();
    }
    drop(index);
    let path = dir.path().join("public");
    let whole = std::fs::read(&path).unwrap();
    let all: Vec<&Block> = roots.iter().collect();
    for size in 0..whole.len() {
        std::fs::write(&path, &whole[..size]).unwrap();
        let (index, lacking) = open(&dir, &all);
        for root in &roots {
            assert_eq!(index.contains(root.cid().hash()), !lacking.contains(root.cid()), "cut to {size} bytes");
        }
        // What is added after that is found again.
        for root in &lacking {
            index.add(&store, root).await.unwrap();
        }
        drop(index);
        let (index, lacking) = open(&dir, &all);
        assert_eq!(lacking, [], "cut to {size} bytes");
        check(&index, &all, &[]);
    }
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let (index, lacking) = open(&dir, &all);
        assert!(!lacking.is_empty(), "byte {at} is not seen");
        for root in &roots {
            assert_eq!(index.contains(root.cid().hash()), !lacking.contains(root.cid()), "byte {at} is wrong");
        }
    }
}

/// Reference: everything a walk of the data model reaches, over random DAGs and random sets of roots.
#[tokio::test]
async fn the_index_is_what_a_walk_from_the_public_roots_reaches() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut blocks: Vec<Block> = (0..20).map(|seed| sample(seed, 40)).collect();
    for _ in 0..80 {
        let children: Vec<Block> = (0..random(4)).map(|_| blocks[random(blocks.len())].clone()).collect();
        blocks.push(node(&children.iter().collect::<Vec<_>>()));
    }
    let all: Vec<&Block> = blocks.iter().collect();
    let store = store_of(&all).await;
    let (index, _) = open(&dir, &[]);
    let mut public: BTreeSet<usize> = BTreeSet::new();
    for _ in 0..60 {
        let at = random(blocks.len());
        if public.remove(&at) {
            let roots: Vec<Cid> = public.iter().map(|at| *blocks[*at].cid()).collect();
            index.replace(&store, &roots).await.unwrap();
        } else {
            public.insert(at);
            index.add(&store, blocks[at].cid()).await.unwrap();
        }
        let mut reached: BTreeSet<Cid> = BTreeSet::new();
        let mut stack: Vec<Cid> = public.iter().map(|at| *blocks[*at].cid()).collect();
        while let Some(cid) = stack.pop() {
            if reached.insert(cid) {
                let block = blocks.iter().find(|block| *block.cid() == cid).unwrap();
                stack.extend(walk::links(&cid, block.data()).unwrap());
            }
        }
        for block in &blocks {
            assert_eq!(index.contains(block.cid().hash()), reached.contains(block.cid()), "{block:?}");
        }
    }
}

/// Leaves are not read, so none has to be there; each takes 16 bytes, in the file as in memory.
#[tokio::test]
async fn a_million_blocks_take_sixteen_megabytes_and_are_there_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = |number: u32| {
        let mut digest = [7; 32];
        digest[..4].copy_from_slice(&number.to_le_bytes());
        Cid::new_v1(Codec::Raw.number(), Multihash::wrap(0x1e, &digest).unwrap())
    };
    let node = |start: u32| {
        codec::to_block(&Ipld::List((start..start + 1000).map(|number| Ipld::Link(leaf(number))).collect()))
    };
    let nodes: Vec<Block> = (0..1000).map(|n| node(n * 1000)).collect();
    let root = codec::to_block(&Ipld::List(nodes.iter().map(|node| Ipld::Link(*node.cid())).collect()));
    let store = store_of(&nodes.iter().chain([&root]).collect::<Vec<_>>()).await;
    let (index, _) = open(&dir, &[]);
    let started = std::time::Instant::now();
    assert_eq!(index.add(&store, root.cid()).await.unwrap(), Added { blocks: 1_001_001, missing: 0 });
    println!("added in {:?}", started.elapsed());
    drop(index);
    let size = std::fs::metadata(dir.path().join("public")).unwrap().len();
    assert!(size < 17 << 20, "{size} bytes");
    let started = std::time::Instant::now();
    let (index, lacking) = open(&dir, &[&root]);
    println!("opened in {:?}", started.elapsed());
    assert_eq!(lacking, []);
    let started = std::time::Instant::now();
    assert!((0..1_000_000).step_by(10).all(|number| index.contains(leaf(number).hash())));
    println!("asked for 100,000 in {:?}", started.elapsed());
    assert!(!index.contains(leaf(1_000_000).hash()));
}
