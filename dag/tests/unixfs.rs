//! Files and directories.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use iptl_dag::unixfs::{
    DirectoryBuilder, DirectoryError, Entry, FileBuilder, FileReader, LEAF_MAX, LEAF_MIN, Profile, UnixFs, UnixFsError,
    check_name, empty_directory,
};
use iptl_dag::{Block, Cid, Codec, MAX_BLOCK_SIZE};
use proptest::prelude::*;

use crate::generate::keystream;

#[test]
fn published_vectors_of_unixfs_v1_2025_are_met() {
    let rows = [
        (b"hello world".to_vec(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"),
        (keystream("chunk-v1-seed", 1 << 20), "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta"),
        (keystream("chunk-v1-seed", (1 << 20) + 1), "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64"),
    ];
    for (bytes, cid) in rows {
        let (entry, _) = build(Profile::UnixFsV1, &[&bytes]);
        assert_eq!(entry.cid.to_string(), cid, "{} bytes", bytes.len());
    }
    let mut blocks = Vec::new();
    let entry = DirectoryBuilder::with_profile(Profile::UnixFsV1).finish(&mut blocks).expect("fits");
    assert_eq!(entry.cid.to_string(), "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354");
}

#[test]
fn file_is_read_back_as_it_was_written() {
    for size in [0, 1, LEAF_MIN, LEAF_MIN + 1, LEAF_MAX + 1, 5_000_000] {
        let bytes = keystream("file", size);
        let (entry, blocks) = build(Profile::Iptl, &[&bytes]);
        assert_eq!(entry.content_size, size as u64);
        assert_eq!(read(&entry.cid, &blocks), bytes, "{size} bytes");
    }
}

#[test]
fn file_of_one_leaf_is_that_leaf() {
    for size in [0, 1, LEAF_MIN] {
        let (entry, blocks) = build(Profile::Iptl, &[&keystream("leaf", size)]);
        assert_eq!(blocks.len(), 1);
        assert_eq!(Codec::of(&entry.cid), Some(Codec::Raw));
        assert_eq!(entry.total_size, size as u64);
    }
}

#[test]
fn total_size_is_the_size_of_all_blocks_of_the_tree() {
    let (entry, blocks) = build(Profile::Iptl, &[&keystream("sizes", 3_000_000)]);
    assert_eq!(entry.total_size, blocks.iter().map(|b| b.data().len() as u64).sum::<u64>());
}

#[test]
fn leaves_stay_within_their_bounds_and_zeros_give_the_largest() {
    let (_, blocks) = build(Profile::Iptl, &[&keystream("bounds", 8_000_000)]);
    let sizes: Vec<usize> = leaves(&blocks).map(|b| b.data().len()).collect();
    let (_, but_last) = sizes.split_last().expect("there are leaves");
    assert!(but_last.iter().all(|size| (LEAF_MIN..=LEAF_MAX).contains(size)), "{sizes:?}");
    let mean = 8_000_000 / sizes.len();
    assert!((48 << 10..112 << 10).contains(&mean), "mean leaf of {mean} bytes");

    let (_, blocks) = build(Profile::Iptl, &[&vec![0; 3 * LEAF_MAX]]);
    assert!(leaves(&blocks).all(|b| b.data().len() == LEAF_MAX));
}

#[test]
fn insertion_at_the_front_leaves_most_leaves_as_they_were() {
    let bytes = keystream("shift", 4_000_000);
    let shifted = [b"inserted", bytes.as_slice()].concat();
    let cids = |bytes: &[u8]| -> Vec<Cid> {
        let (_, blocks) = build(Profile::Iptl, &[bytes]);
        leaves(&blocks).map(|b| *b.cid()).collect()
    };
    let (before, after) = (cids(&bytes), cids(&shifted));
    let kept = before.iter().filter(|cid| after.contains(cid)).count();
    assert!(kept * 10 > before.len() * 9, "{kept} of {} leaves kept", before.len());
}

#[test]
fn names_that_could_leave_a_directory_are_refused() {
    let entry = Entry::of_block(&Block::new(Codec::Raw, "x"));
    for name in ["", ".", "..", "a/b", "/", "nul\0"] {
        let mut directory = DirectoryBuilder::new();
        assert!(matches!(directory.insert(name, entry.clone()), Err(DirectoryError::Name(_))), "{name:?}");
        assert!(directory.is_empty());
    }
    for name in ["...", ".hidden", "a b", "ä", "a\\b", "-"] {
        assert_eq!(check_name(name), Ok(()));
    }
}

#[test]
fn name_can_stand_in_a_directory_once() {
    let entry = Entry::of_block(&Block::new(Codec::Raw, "x"));
    let mut directory = DirectoryBuilder::new();
    directory.insert("a", entry.clone()).expect("free");
    assert_eq!(directory.insert("a", entry), Err(DirectoryError::Duplicate { name: "a".into() }));
}

#[test]
fn directory_lists_its_entries_sorted_by_bytes_whatever_the_order_of_insertion() {
    let entry = Entry::of_block(&Block::new(Codec::Raw, "x"));
    let names = ["z", "Z", "ä", "a", "ab", "B"];
    let make = |names: &mut dyn Iterator<Item = &str>| {
        let mut directory = DirectoryBuilder::new();
        names.for_each(|name| directory.insert(name, entry.clone()).expect("free"));
        let mut blocks = Vec::new();
        directory.finish(&mut blocks).expect("fits");
        blocks.remove(0)
    };
    let block = make(&mut names.into_iter());
    assert_eq!(block, make(&mut names.into_iter().rev()));
    let UnixFs::Directory(entries) = UnixFs::of_block(&block).expect("valid") else { panic!("not a directory") };
    assert_eq!(entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["B", "Z", "a", "ab", "z", "ä"]);
    assert!(entries.iter().all(|e| e.total_size == 1 && e.cid == entry.cid));
}

#[test]
fn directory_larger_than_a_block_is_a_typed_error() {
    let entry = Entry::of_block(&Block::new(Codec::Raw, "x"));
    let mut directory = DirectoryBuilder::new();
    for i in 0..40_000 {
        directory.insert(format!("{i}.jsonl"), entry.clone()).expect("free");
    }
    let Err(DirectoryError::TooLarge { entries: 40_000, size }) = directory.finish(&mut Vec::new()) else {
        panic!("it fits")
    };
    assert!(size > MAX_BLOCK_SIZE);
}

#[test]
fn empty_directory_has_no_entries() {
    assert_eq!(UnixFs::of_block(&empty_directory()), Ok(UnixFs::Directory(Vec::new())));
}

#[test]
fn symlinks_are_read_and_shards_are_recognised() {
    assert_eq!(UnixFs::decode(b"\x0a\x0a\x08\x04\x12\x06target"), Ok(UnixFs::Symlink("target".into())));
    assert_eq!(UnixFs::decode(b"\x0a\x02\x08\x05"), Err(UnixFsError::Unsupported { what: "a sharded directory" }));
}

#[test]
fn file_node_whose_sizes_do_not_add_up_is_refused() {
    // A file of size 5 without any content.
    assert_eq!(UnixFs::decode(b"\x0a\x04\x08\x02\x18\x05"), Err(UnixFsError::Sizes));
    // One block size and no link.
    assert_eq!(UnixFs::decode(b"\x0a\x06\x08\x02\x18\x05\x20\x05"), Err(UnixFsError::Sizes));
}

#[test]
fn reader_refuses_a_leaf_of_another_size_than_its_parent_states() {
    let leaf = Block::new(Codec::Raw, "12345");
    let node = iptl_dag::unixfs::pb::PbNode {
        links: vec![iptl_dag::unixfs::pb::PbLink { cid: *leaf.cid(), name: None, tsize: None }],
        data: Some(b"\x08\x02\x18\x06\x20\x06".to_vec()),
    };
    let root = Block::new(Codec::DagPb, node.encode());
    let mut reader = FileReader::new(*root.cid());
    assert_eq!(reader.supply(&leaf), Err(UnixFsError::WrongBlock { expected: *root.cid(), got: *leaf.cid() }));
    assert_eq!(reader.supply(&root), Ok(Default::default()));
    assert_eq!(reader.supply(&leaf), Err(UnixFsError::Sizes));
    assert_eq!(reader.next(), Some(leaf.cid()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sizes_of_pushes_leave_no_trace(
        size in 0_usize..1_500_000,
        cuts in prop::collection::vec(0_usize..3_000_000, 0..20),
        zeros in 0_usize..1_500_000,
    ) {
        let mut bytes = PUSHED[..size].to_vec();
        bytes.extend(std::iter::repeat_n(0, zeros));
        let (whole, _) = build(Profile::Iptl, &[&bytes]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.push(0);
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        let (pieced, blocks) = build(Profile::Iptl, &pieces);
        prop_assert_eq!(&whole, &pieced);
        prop_assert_eq!(read(&pieced.cid, &blocks), bytes);
    }
}

/// Made once: a keystream costs more than what is done with it.
static PUSHED: LazyLock<Vec<u8>> = LazyLock::new(|| keystream("pushes", 1_500_000));

fn build(profile: Profile, pieces: &[&[u8]]) -> (Entry, Vec<Block>) {
    let mut blocks = Vec::new();
    let mut file = FileBuilder::with_profile(profile);
    for piece in pieces {
        file.push(piece, &mut blocks);
    }
    let entry = file.finish(&mut blocks);
    assert_eq!(blocks.last().map(|b| *b.cid()), Some(entry.cid), "the root comes last");
    (entry, blocks)
}

fn read(root: &Cid, blocks: &[Block]) -> Vec<u8> {
    let by_cid: BTreeMap<&Cid, &Block> = blocks.iter().map(|b| (b.cid(), b)).collect();
    let mut reader = FileReader::new(*root);
    let mut bytes = Vec::new();
    while let Some(cid) = reader.next().copied() {
        bytes.extend(reader.supply(by_cid[&cid]).expect("built as read"));
    }
    assert_eq!(reader.size(), Some(bytes.len() as u64));
    bytes
}

fn leaves(blocks: &[Block]) -> impl Iterator<Item = &Block> {
    blocks.iter().filter(|b| Codec::of(b.cid()) == Some(Codec::Raw))
}
