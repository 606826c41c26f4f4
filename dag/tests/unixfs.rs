//! Files and directories.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::LazyLock;

use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{
    DirectoryBuilder, DirectoryError, Entry, FileBuilder, FileReader, LEAF_MAX, LEAF_MIN, Metadata, Modified, Profile,
    UnixFs, UnixFsError, check_name, empty_directory, metadata_of, symlink,
};
use iptl_dag::{Block, Cid, Codec};
use proptest::prelude::*;

use crate::generate::keystream;

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
fn empty_directory_has_no_entries() {
    assert_eq!(UnixFs::of_block(&empty_directory()), Ok(UnixFs::Directory(Vec::new())));
}

#[test]
fn symlinks_are_written_as_they_are_read() {
    let node = b"\x0a\x0a\x08\x04\x12\x06target";
    assert_eq!(UnixFs::decode(node), Ok(UnixFs::Symlink("target".into())));
    let mut blocks = Vec::new();
    let entry = symlink(Profile::UnixFsV1, "target", Metadata::default(), &mut blocks);
    assert_eq!(blocks[0].data(), &node[..]);
    assert_eq!((entry.cid, entry.total_size), (*blocks[0].cid(), node.len() as u64));
}

#[test]
fn mode_and_time_stand_in_the_root_of_a_file_and_nowhere_else() {
    let metadata = Metadata { mode: Some(0o750), modified: Some(Modified { seconds: 1_700_000_000, nanos: 7 }) };
    let bytes = keystream("metadata", 1_500_000);
    for (profile, size) in Profile::ALL.into_iter().flat_map(|profile| [0, 1, bytes.len()].map(|size| (profile, size)))
    {
        let bytes = &bytes[..size];
        let (plain, plain_blocks) = build(profile, &[bytes]);
        let mut blocks = Vec::new();
        let mut file = FileBuilder::with_profile(profile).metadata(metadata);
        file.push(bytes, &mut blocks);
        let entry = file.finish(&mut blocks);
        assert_eq!(metadata_of(blocks.last().expect("a root")), Ok(metadata), "{profile}, {size} bytes");
        assert_eq!(metadata_of(plain_blocks.last().expect("a root")), Ok(Metadata::default()));
        assert_ne!(entry.cid, plain.cid);
        assert_eq!((entry.content_size, read(&entry.cid, &blocks)), (size as u64, bytes.to_vec()));
        let kept = leaves(&plain_blocks).filter(|leaf| blocks.contains(leaf)).count();
        assert_eq!(kept, leaves(&plain_blocks).count(), "the same leaves, so that nothing is stored twice");
        assert_eq!(entry.total_size, blocks.iter().map(|b| b.data().len() as u64).sum::<u64>());
    }
}

#[test]
fn every_time_that_a_file_system_has_is_kept() {
    for (seconds, nanos) in [(0, 0), (1_700_000_000, 999_999_999), (-1, 1), (i64::MIN, 0), (i64::MAX, 5)] {
        let metadata = Metadata { mode: Some(0o1777), modified: Some(Modified { seconds, nanos }) };
        let mut blocks = Vec::new();
        DirectoryBuilder::new().metadata(metadata).finish(&mut blocks).expect("fits");
        symlink(Profile::Iptl, "x", metadata, &mut blocks);
        assert!(blocks.iter().all(|block| metadata_of(block) == Ok(metadata)), "{metadata:?}");
    }
}

#[test]
fn time_with_more_nanoseconds_than_a_second_has_is_refused() {
    let message = |nanos: u32| [&b"\x08\x02\x18\x00\x42\x07\x08\x01\x15"[..], &nanos.to_le_bytes()].concat();
    assert_eq!(
        PbUnixFs::decode(&message(5)).expect("valid").metadata.modified,
        Some(Modified { seconds: 1, nanos: 5 })
    );
    for nanos in [0, 1_000_000_000, u32::MAX] {
        assert!(PbUnixFs::decode(&message(nanos)).is_err(), "{nanos} ns");
    }
}

#[test]
fn part_of_a_file_is_read_from_the_blocks_that_hold_it() {
    let size = 20 * LEAF_MAX + 5;
    let bytes = keystream("range", size);
    let (entry, blocks) = build(Profile::UnixFsV1, &[&bytes]);
    let leaf = LEAF_MAX as u64;
    let end = size as u64;
    let rows = [
        (0..end, 22),
        (0..1, 2),
        (leaf - 1..leaf, 2),
        (leaf - 1..leaf + 1, 3),
        (leaf..2 * leaf, 2),
        (leaf..2 * leaf + 1, 3),
        (end - 1..end, 2),
        (end - 6..u64::MAX, 3),
        (end..u64::MAX, 1),
        (7..7, 1),
    ];
    for (range, touched) in rows {
        let (part, count) = read_counted(FileReader::of_range(entry.cid, range.clone()), &blocks);
        let at = |at: u64| usize::try_from(at.min(end)).expect("small");
        assert_eq!(part, bytes[at(range.start)..at(range.end)], "{range:?}");
        assert_eq!(count, touched, "{range:?}");
    }
}

#[test]
fn part_of_a_deep_file_is_read_from_one_path() {
    // 174 × 174 leaves and one more: three levels of nodes, by content of one byte a leaf.
    let leaves: Vec<Block> = (0..2).map(|i| Block::new(Codec::Raw, vec![i; 1])).collect();
    let node = |parts: &[(Cid, u64)]| {
        let links = parts.iter().map(|(cid, _)| PbLink { cid: *cid, name: Some(String::new()), tsize: None }).collect();
        let block_sizes: Vec<u64> = parts.iter().map(|(_, size)| *size).collect();
        let file_size = Some(block_sizes.iter().sum());
        let message = PbUnixFs { file_size, block_sizes, ..PbUnixFs::new(PbKind::File) };
        Block::new(Codec::DagPb, PbNode { links, data: Some(message.encode()) }.encode())
    };
    let zeros = node(&vec![(*leaves[0].cid(), 1); 174]);
    let middle = node(&vec![(*zeros.cid(), 174); 174]);
    let root = node(&[(*middle.cid(), 174 * 174), (*leaves[1].cid(), 1)]);
    let blocks: Vec<Block> = leaves.into_iter().chain([zeros, middle, root.clone()]).collect();
    let last = 174 * 174;
    for (range, expected, touched) in [(last..last + 9, &[1][..], 2), (last - 1..last, &[0], 4), (173..175, &[0, 0], 6)]
    {
        let (part, count) = read_counted(FileReader::of_range(*root.cid(), range.clone()), &blocks);
        assert_eq!((part.as_slice(), count), (expected, touched), "{range:?}");
    }
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
    let node = PbNode {
        links: vec![PbLink { cid: *leaf.cid(), name: None, tsize: None }],
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

#[test]
fn file_from_a_reader_is_the_file_of_its_bytes() {
    let whole = keystream("reader", (8 << 20) + 1);
    for profile in Profile::ALL {
        // Around what is held at once, and none.
        for size in [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 8 << 20, (8 << 20) + 1] {
            let bytes = &whole[..size];
            let (expected, expected_blocks) = build(profile, &[bytes]);
            let (mut file, mut blocks) = (FileBuilder::with_profile(profile).at_once(beside_first), Vec::new());
            // What is expected may be wrong: a file can grow while it is read.
            let mut from = bytes.chain(std::io::empty());
            while file.push_from(&mut from, size as u64 / 2, &mut blocks).expect("memory can be read") > 0 {}
            assert_eq!(file.finish(&mut blocks), expected, "{size} bytes, {profile}");
            assert_eq!(blocks, expected_blocks, "{size} bytes, {profile}");
            assert_eq!(read(&expected.cid, &blocks), bytes, "{size} bytes, {profile}");
        }
    }
}

#[test]
fn leaves_are_hashed_while_the_next_bytes_are_read() {
    /// Counts what is read, by whether leaves can be hashed meanwhile.
    struct Counted<'a>(&'a [u8], [usize; 2]);
    impl std::io::Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1[usize::from(IS_BESIDE.get())] += read;
            Ok(read)
        }
    }
    let bytes = keystream("beside", 10 << 20);
    for profile in Profile::ALL {
        let (mut file, mut blocks) = (FileBuilder::with_profile(profile).at_once(noted), Vec::new());
        let mut from = Counted(&bytes, [0; 2]);
        while file.push_from(&mut from, bytes.len() as u64, &mut blocks).expect("memory can be read") > 0 {}
        assert_eq!(from.1, [4 << 20, 6 << 20], "nothing is cut before the first buffer is full: {profile}");
        assert_eq!(file.finish(&mut blocks), build(profile, &[&bytes]).0, "{profile}");
    }
}

#[test]
fn leaves_that_were_cut_before_reading_failed_become_blocks() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let bytes = keystream("broken", (4 << 20) + 7);
    let (whole, _) = build(Profile::UnixFsV1, &[&bytes]);
    let (mut file, mut blocks) = (FileBuilder::with_profile(Profile::UnixFsV1), Vec::new());
    let (head, tail) = bytes.split_at(4 << 20);
    file.push_from(head, bytes.len() as u64, &mut blocks).expect("memory can be read");
    let error = file.push_from(Broken, bytes.len() as u64, &mut blocks).expect_err("it is broken");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(blocks.len(), 4);
    file.push_from(tail, tail.len() as u64, &mut blocks).expect("memory can be read");
    assert_eq!(file.finish(&mut blocks), whole);
}

thread_local! {
    static IS_BESIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Does two things, and notes meanwhile what is done here.
fn noted(beside: &(dyn Fn() + Sync), here: &mut dyn FnMut()) {
    IS_BESIDE.set(true);
    here();
    IS_BESIDE.set(false);
    beside();
}

/// Does two things in the order that a builder does not by itself.
fn beside_first(beside: &(dyn Fn() + Sync), here: &mut dyn FnMut()) {
    beside();
    here();
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
    let (bytes, _) = read_counted(FileReader::new(*root), blocks);
    bytes
}

/// Returns what a reader gives, and how many blocks it asked for.
fn read_counted(mut reader: FileReader, blocks: &[Block]) -> (Vec<u8>, usize) {
    let by_cid: BTreeMap<&Cid, &Block> = blocks.iter().map(|b| (b.cid(), b)).collect();
    let (mut bytes, mut count) = (Vec::new(), 0);
    while let Some(cid) = reader.next().copied() {
        bytes.extend(reader.supply(by_cid[&cid]).expect("built as read"));
        count += 1;
    }
    assert!(reader.size().is_some_and(|size| size >= bytes.len() as u64));
    (bytes, count)
}

fn leaves(blocks: &[Block]) -> impl Iterator<Item = &Block> {
    blocks.iter().filter(|b| Codec::of(b.cid()) == Some(Codec::Raw))
}
