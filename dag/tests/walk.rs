//! Walks over DAGs.

use std::collections::BTreeMap;

use iptl_dag::unixfs::{DirectoryBuilder, Entry, FileBuilder};
use iptl_dag::walk::{Limits, Walk, WalkError, links};
use iptl_dag::{Block, Cid, Codec, Ipld, codec};

use crate::generate::keystream;

#[test]
fn links_are_listed_for_every_codec() {
    let leaf = Block::new(Codec::Raw, "leaf");
    let cid = *leaf.cid();
    let value = Ipld::Map(BTreeMap::from([(
        "a".to_owned(),
        Ipld::List(vec![Ipld::Link(cid), Ipld::Null, Ipld::Map(BTreeMap::from([("b".to_owned(), Ipld::Link(cid))]))]),
    )]));
    let cbor = codec::to_block(&value);
    let json = Block::new(Codec::DagJson, codec::to_dag_json(&value));
    let mut blocks = Vec::new();
    let mut directory = DirectoryBuilder::new();
    directory.insert("a", Entry::of_block(&leaf)).expect("free");
    directory.insert("b", Entry::of_block(&leaf)).expect("free");
    directory.finish(&mut blocks).expect("fits");
    for block in [&cbor, &json, &blocks[0]] {
        assert_eq!(links(block.cid(), block.data()).expect("valid"), vec![cid, cid]);
    }
    assert!(links(&cid, leaf.data()).expect("valid").is_empty());
}

#[test]
fn links_come_in_the_order_of_the_block() {
    // Canonical maps put shorter keys first.
    let [first, second] = ["1", "2"].map(|text| *Block::new(Codec::Raw, text).cid());
    let value = BTreeMap::from([("aaa".to_owned(), Ipld::Link(second)), ("b".to_owned(), Ipld::Link(first))]);
    let block = codec::to_block(&Ipld::Map(value));
    assert_eq!(links(block.cid(), block.data()).expect("valid"), [first, second]);
}

#[test]
fn bytes_behind_a_value_are_refused() {
    for (codec, bytes) in [(Codec::DagCbor, "\u{1}\u{1}"), (Codec::DagJson, "1 1")] {
        let block = Block::new(codec, bytes);
        assert!(links(block.cid(), block.data()).is_err());
    }
}

#[test]
fn codec_that_is_not_known_is_an_error() {
    let cid = Cid::new_v1(0x78, *Block::new(Codec::Raw, "git").cid().hash());
    assert!(links(&cid, b"git").is_err());
}

#[test]
fn walk_meets_every_block_once() {
    let (root, blocks) = tree();
    let mut walk = Walk::new([root], Limits::default()).expect("one root");
    let mut met = Vec::new();
    while !walk.is_done() {
        // The last first: the order of answers does not matter.
        for cid in walk.wants(7).into_iter().rev() {
            met.push(cid);
            walk.accept(&blocks[&cid]).expect("valid");
        }
    }
    met.sort();
    assert_eq!(met, blocks.keys().copied().collect::<Vec<_>>());
    assert_eq!(walk.blocks(), blocks.len() as u64);
    assert_eq!(walk.bytes(), blocks.values().map(|b| b.data().len() as u64).sum::<u64>());
}

#[test]
fn block_that_was_not_asked_for_is_refused() {
    let (root, blocks) = tree();
    let mut walk = Walk::new([root], Limits::default()).expect("one root");
    assert!(matches!(walk.accept(&blocks[&root]), Err(WalkError::Unwanted { .. })));
    walk.wants(1);
    walk.accept(&blocks[&root]).expect("wanted");
    assert!(matches!(walk.accept(&blocks[&root]), Err(WalkError::Unwanted { .. })));
}

#[test]
fn block_given_up_ends_its_branch_and_block_retried_comes_first() {
    let (root, blocks) = tree();
    let mut walk = Walk::new([root], Limits::default()).expect("one root");
    walk.wants(1);
    walk.accept(&blocks[&root]).expect("valid");
    let wants = walk.wants(2);
    walk.retry(&wants[1]);
    assert_eq!(walk.wants(1), vec![wants[1]]);
    walk.missing(&wants[0]);
    walk.missing(&wants[1]);
    while let [cid] = walk.wants(1)[..] {
        walk.missing(&cid);
    }
    assert!(walk.is_done());
    assert!(walk.given_up().contains(&wants[0]));
}

#[test]
fn limits_are_kept_to_the_block_and_byte_and_level() {
    let (root, blocks) = tree();
    let exact =
        Limits { blocks: blocks.len() as u64, bytes: blocks.values().map(|b| b.data().len() as u64).sum(), depth: 2 };
    run(root, &blocks, exact).expect("just enough");
    let fewer = run(root, &blocks, Limits { blocks: exact.blocks - 1, ..exact });
    assert!(matches!(fewer, Err(WalkError::TooManyBlocks { .. })));
    let smaller = run(root, &blocks, Limits { bytes: exact.bytes - 1, ..exact });
    assert!(matches!(smaller, Err(WalkError::TooManyBytes { .. })));
    let flatter = run(root, &blocks, Limits { depth: 1, ..exact });
    assert!(matches!(flatter, Err(WalkError::TooDeep { .. })));
}

#[test]
fn link_that_carries_its_content_is_followed_inside_and_never_wanted() {
    let leaf = Block::new(Codec::Raw, "leaf");
    let inner = codec::encode(&Ipld::List(vec![Ipld::Link(*leaf.cid())]));
    let hash = iptl_dag::Multihash::wrap(0, &inner).expect("short");
    let outer = codec::to_block(&Ipld::Link(Cid::new_v1(Codec::DagCbor.number(), hash)));
    let mut walk = Walk::new([*outer.cid()], Limits::default()).expect("one root");
    walk.wants(1);
    walk.accept(&outer).expect("valid");
    assert_eq!(walk.wants(9), vec![*leaf.cid()]);
}

fn run(root: Cid, blocks: &BTreeMap<Cid, Block>, limits: Limits) -> Result<(), WalkError> {
    let mut walk = Walk::new([root], limits)?;
    while let [cid] = walk.wants(1)[..] {
        walk.accept(&blocks[&cid])?;
    }
    assert!(walk.is_done());
    Ok(())
}

/// A directory of a large file, under two names, and a small one.
fn tree() -> (Cid, BTreeMap<Cid, Block>) {
    let mut blocks = Vec::new();
    let large = FileBuilder::of_bytes(&keystream("walk", 1_000_000), &mut blocks);
    let small = FileBuilder::of_bytes(b"small", &mut blocks);
    let mut directory = DirectoryBuilder::new();
    directory.insert("large", large.clone()).expect("free");
    directory.insert("again", large).expect("free");
    directory.insert("small", small).expect("free");
    let root = directory.finish(&mut blocks).expect("fits").cid;
    (root, blocks.into_iter().map(|b| (*b.cid(), b)).collect())
}
