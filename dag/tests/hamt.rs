//! Sharded directories.

use std::collections::BTreeMap;

use iptl_dag::path::{PathError, Resolve, Step, Target};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{DirEntry, DirectoryBuilder, DirectoryReader, Entry, FileBuilder, Profile, UnixFs, UnixFsError};
use iptl_dag::{Block, Cid, Codec};
use proptest::prelude::*;

#[test]
fn directories_about_the_limit_have_the_cids_that_other_software_gives() {
    // From the npm package ipfs-unixfs-importer 17.1.1 under the profile's name: files "file-000000" and so on and, where
    // a length is given, one with a name of as many z, each holding "x".
    let rows = [
        (Profile::UnixFsV1, 1, 0, "bafybeie7xygjs7q5kchfzq5jd6jtz4pdazlyvtbnfywq56gu2iqlnttfbm"),
        (Profile::UnixFsV0, 1, 0, "QmSsUzT96tjeNBGu6pttUPGdVtm7Tp1iga9ENCvC1vrHbv"),
        (Profile::UnixFsV1, 4000, 0, "bafybeiekzgolo4tj3dcjtu4vuacsithz7ywzhgofgnb6amqme4awnzf6ei"),
        (Profile::UnixFsV0, 4000, 0, "QmY9feNNgDyjkEn2XFjK3jgyjsN51LEHEP92Y7bcBxnrVL"),
        // A block of 262,144 bytes, and one of a byte more.
        (Profile::UnixFsV1, 4765, 21, "bafybeicr5ik3fe5en5qt5oj2pw6fxmt4tu7lulttm7dw2lumn4zbwyxfva"),
        (Profile::UnixFsV1, 4765, 22, "bafybeidfp5akftpe2jegcpqjaomrsvivyzjcmackegrj7ajfk4axpm62qi"),
        // Names and CIDs of 262,144 bytes, and of a byte more.
        (Profile::UnixFsV0, 5824, 30, "QmV3MG4hU83X6x1AtBfcpqYHopZgkGWqn53PLKPPzSHWjW"),
        (Profile::UnixFsV0, 5824, 31, "QmNcAFAjvsi78d1oFKYq7RD2BYydfzPqvP9nBhmoWMkMgm"),
        (Profile::UnixFsV1, 20_000, 0, "bafybeia3skroo5gd5ge7o7ijdnnuz4naoigohzcxqmij2fgjwifvff7nee"),
        (Profile::UnixFsV0, 20_000, 0, "QmVqLx6zWtoytQ56FFJpURCivQfMegoawEP1NJpcCXG1kA"),
    ];
    for (profile, count, length, cid) in rows {
        let mut file = FileBuilder::with_profile(profile);
        file.push(b"x", &mut Vec::new());
        let file = file.finish(&mut Vec::new());
        let mut names: Vec<String> = (0..count).map(|i| format!("file-{i:06}")).collect();
        if length > 0 {
            names.push("z".repeat(length));
        }
        let (entry, _) = build(profile, &names, &file);
        assert_eq!(entry.cid.to_string(), cid, "{count} files and one of {length} under {profile}");
    }
}

#[test]
fn large_directory_is_read_to_its_last_entry_and_each_is_found_by_name() {
    let names: Vec<String> = (0..40_000).map(|i| format!("{i}.jsonl")).collect();
    let leaf = leaf();
    let (entry, blocks) = build(Profile::Iptl, &names, &leaf);
    assert!(blocks.len() > 256, "{} blocks", blocks.len());
    assert_eq!(entry.content_size, 40_000);
    assert_eq!(entry.total_size, 40_000 + blocks.values().map(|b| b.data().len() as u64).sum::<u64>());
    let (mut listed, count) = list(&entry.cid, &blocks).expect("built as read");
    assert_eq!(count, blocks.len());
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(listed.iter().map(|e| e.name.clone()).collect::<Vec<_>>(), sorted);
    assert!(listed.iter().all(|e| e.cid == leaf.cid && e.total_size == 1));
    for name in names.iter().step_by(97) {
        let (found, touched) = find(&entry.cid, name, &blocks).expect("it is there");
        assert_eq!(found, leaf.cid);
        assert!(touched <= 4, "{touched} blocks to find one of 40,000 names");
    }
    for name in ["40000.jsonl", "", "x", "7.json", "00"] {
        if !name.is_empty() {
            assert!(matches!(find(&entry.cid, name, &blocks), Err(PathError::NotFound { .. })), "{name:?}");
        }
    }
}

#[test]
fn path_goes_on_below_an_entry_of_a_shard() {
    let mut blocks = Vec::new();
    let file = FileBuilder::of_bytes(b"text", &mut blocks);
    let mut inner = DirectoryBuilder::new();
    inner.insert("file", file.clone()).expect("free");
    let inner = inner.finish(&mut blocks).expect("fits");
    let names: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
    let (outer, mut all) = build(Profile::Iptl, &names, &inner);
    all.extend(blocks.into_iter().map(|block| (*block.cid(), block)));
    assert_eq!(find(&outer.cid, "777/file", &all).expect("it is there").0, file.cid);
    assert!(matches!(find(&outer.cid, "777/777", &all), Err(PathError::NotFound { .. })));
}

#[test]
fn shard_that_no_writer_makes_is_refused() {
    let cid = leaf().cid;
    let honest = shard(&[("3Da", cid)], &[0x20, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(UnixFs::of_block(&honest), Ok(UnixFs::Shard(_))));
    let mut rows: Vec<(&str, Block)> = vec![
        ("a bit without a link", shard(&[("3Da", cid)], &[0x60, 0, 0, 0, 0, 0, 0, 0])),
        ("a link without a bit", shard(&[("3Da", cid)], &[0x10, 0, 0, 0, 0, 0, 0, 0])),
        ("no bits", shard(&[("3Da", cid)], &[])),
        ("small digits", shard(&[("3da", cid)], &[0x20, 0, 0, 0, 0, 0, 0, 0])),
        ("a sign", shard(&[("+1a", cid)], &[2])),
        ("one digit", shard(&[("3", cid)], &[8])),
        ("no digits", shard(&[("", cid)], &[1])),
        ("a letter of two bytes", shard(&[("\u{e9}", cid)], &[1])),
        ("links out of order", shard(&[("01a", cid), ("00b", cid)], &[3])),
        ("a slot twice", shard(&[("01a", cid), ("01b", cid)], &[3])),
    ];
    for fanout in [None, Some(0), Some(1), Some(4), Some(255), Some(2048), Some(u64::MAX)] {
        rows.push((
            "a width that nobody uses",
            raw_shard(&[("3Da", cid)], &[0x20, 0, 0, 0, 0, 0, 0, 0], Some(0x22), fanout),
        ));
    }
    for hash_type in [None, Some(0x12), Some(0x23)] {
        rows.push((
            "another hash function",
            raw_shard(&[("3Da", cid)], &[0x20, 0, 0, 0, 0, 0, 0, 0], hash_type, Some(256)),
        ));
    }
    for (what, block) in rows {
        assert!(matches!(UnixFs::of_block(&block), Err(UnixFsError::Shard { .. })), "{what} was read");
    }
}

#[test]
fn entry_that_stands_where_its_hash_does_not_lead_is_refused() {
    let cid = leaf().cid;
    // Of 256 slots one is that of the name.
    let mut accepted = 0;
    for slot in 0..=255_u8 {
        let root = shard(&[(&format!("{slot:02X}name"), cid)], &bits(&[slot]));
        let blocks = BTreeMap::from([(*root.cid(), root.clone())]);
        match list(root.cid(), &blocks) {
            Ok((entries, _)) => {
                assert_eq!(entries[0].name, "name");
                accepted += 1;
            }
            Err(error) => assert!(matches!(error, UnixFsError::Shard { .. }), "{error}"),
        }
        let is_found = find(root.cid(), "name", &blocks).is_ok();
        assert_eq!(is_found, list(root.cid(), &blocks).is_ok(), "what is listed is found, and the other way round");
    }
    assert_eq!(accepted, 1);
}

#[test]
fn few_blocks_that_name_each_other_into_billions_of_entries_are_refused_after_a_few() {
    let all: Vec<u8> = (0..=255).collect();
    let cid = leaf().cid;
    let full = |below: &Block| {
        let names: Vec<String> = all.iter().map(|slot| format!("{slot:02X}")).collect();
        let links: Vec<(&str, Cid)> = names.iter().map(|name| (name.as_str(), *below.cid())).collect();
        shard(&links, &bits(&all))
    };
    // At the bottom one entry, an empty node, or a node that is no shard.
    let bottoms = [
        shard(&[("00name", cid)], &[1]),
        shard(&[], &[]),
        Block::new(Codec::DagPb, PbNode { links: Vec::new(), data: Some(b"\x08\x01".to_vec()) }.encode()),
        leaf_block(),
    ];
    for bottom in bottoms {
        let mut blocks = BTreeMap::from([(*bottom.cid(), bottom.clone())]);
        let mut top = bottom;
        for _ in 0..7 {
            top = full(&top);
            blocks.insert(*top.cid(), top.clone());
        }
        let mut reader = DirectoryReader::new(*top.cid());
        let mut count = 0;
        let error = loop {
            let next = reader.next().copied().expect("it claims to go on");
            count += 1;
            match reader.supply(&blocks[&next]) {
                Ok(_) => assert!(count < 20, "{count} blocks were asked for"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, UnixFsError::Shard { .. } | UnixFsError::NotADirectory), "{error}");
    }
}

#[test]
fn shards_deeper_than_a_hash_is_long_are_refused() {
    let mut node = shard(&[("00name", leaf().cid)], &[1]);
    let mut blocks = BTreeMap::from([(*node.cid(), node.clone())]);
    for _ in 0..20 {
        node = shard(&[("00", *node.cid())], &[1]);
        blocks.insert(*node.cid(), node.clone());
    }
    let error = list(node.cid(), &blocks).expect_err("it is too deep");
    assert_eq!(error, UnixFsError::Shard { reason: "it is deeper than a hash is long" });
    assert_eq!(error.to_string(), "a sharded directory cannot be read: it is deeper than a hash is long");
}

#[test]
fn reader_refuses_what_is_no_directory_and_blocks_that_are_not_next() {
    let leaf = leaf_block();
    let mut reader = DirectoryReader::new(*leaf.cid());
    assert_eq!(reader.supply(&leaf), Err(UnixFsError::NotADirectory));
    let empty = iptl_dag::unixfs::empty_directory();
    let wrong = UnixFsError::WrongBlock { expected: *leaf.cid(), got: *empty.cid() };
    assert_eq!(reader.supply(&empty), Err(wrong));
    assert_eq!(reader.next(), Some(leaf.cid()));
    let mut reader = DirectoryReader::new(*empty.cid());
    assert_eq!(reader.supply(&empty), Ok(Vec::new()));
    assert_eq!(reader.next(), None);
    assert_eq!(reader.supply(&empty), Err(UnixFsError::AtEnd));
}

#[test]
fn names_too_long_for_a_node_are_a_typed_error() {
    let names: Vec<String> = (0..300).map(|i| format!("{i:030000}")).collect();
    let mut directory = DirectoryBuilder::new();
    for name in names {
        directory.insert(name, leaf()).expect("free");
    }
    let error = directory.finish(&mut Vec::new()).expect_err("no node holds a hundred of these");
    assert!(matches!(error, iptl_dag::unixfs::DirectoryError::TooLarge { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn directory_of_any_names_comes_back_as_it_was_in_any_order(
        names in prop::collection::btree_map("[a-zé/.]{1,3}|[a-z]{60,100}", any::<bool>(), 2_000..4_000),
        profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        let leaves = [Block::new(Codec::Raw, "a"), Block::new(Codec::Raw, "b")].map(|block| Entry::of_block(&block));
        let (mut forth, mut back) = (DirectoryBuilder::with_profile(profile), DirectoryBuilder::with_profile(profile));
        let mut expected: BTreeMap<String, Cid> = BTreeMap::new();
        for (name, which) in &names {
            if forth.insert(name.as_str(), leaves[usize::from(*which)].clone()).is_ok() {
                expected.insert(name.clone(), leaves[usize::from(*which)].cid);
            }
        }
        for (name, which) in names.iter().rev() {
            let _ = back.insert(name.as_str(), leaves[usize::from(*which)].clone());
        }
        let mut blocks = Vec::new();
        let entry = forth.finish(&mut blocks).expect("fits");
        prop_assert_eq!(&back.finish(&mut Vec::new()).expect("fits"), &entry);
        let blocks: BTreeMap<Cid, Block> = blocks.into_iter().map(|block| (*block.cid(), block)).collect();
        let (listed, _) = list(&entry.cid, &blocks).expect("built as read");
        prop_assert_eq!(listed.len(), expected.len());
        let listed: BTreeMap<String, Cid> = listed.into_iter().map(|e| (e.name, e.cid)).collect();
        prop_assert_eq!(listed, expected);
    }
}

fn leaf_block() -> Block {
    Block::new(Codec::Raw, "x")
}

fn leaf() -> Entry {
    Entry::of_block(&leaf_block())
}

fn build(profile: Profile, names: &[String], entry: &Entry) -> (Entry, BTreeMap<Cid, Block>) {
    let mut directory = DirectoryBuilder::with_profile(profile);
    for name in names {
        directory.insert(name.as_str(), entry.clone()).expect("free");
    }
    let mut blocks = Vec::new();
    let entry = directory.finish(&mut blocks).expect("fits");
    assert_eq!(blocks.last().map(Block::cid), Some(&entry.cid), "the root comes last");
    (entry, blocks.into_iter().map(|block| (*block.cid(), block)).collect())
}

/// Reads a directory and counts its blocks.
fn list(root: &Cid, blocks: &BTreeMap<Cid, Block>) -> Result<(Vec<DirEntry>, usize), UnixFsError> {
    let mut reader = DirectoryReader::new(*root);
    let (mut entries, mut count) = (Vec::new(), 0);
    while let Some(cid) = reader.next().copied() {
        entries.extend(reader.supply(&blocks[&cid])?);
        count += 1;
    }
    Ok((entries, count))
}

/// Follows a path and counts the blocks that it needs.
fn find(root: &Cid, path: &str, blocks: &BTreeMap<Cid, Block>) -> Result<(Cid, usize), PathError> {
    let mut resolve = Resolve::new(*root, path)?;
    let mut count = 0;
    loop {
        match resolve.step() {
            Step::Need(cid) => {
                let block = blocks[cid].clone();
                resolve.supply(&block)?;
                count += 1;
            }
            Step::Found(Target::Block { cid }) => return Ok((*cid, count)),
            Step::Found(target) => panic!("{target:?} is not a block"),
        }
    }
}

/// Makes a node of a sharded directory, as a stranger can.
fn shard(links: &[(&str, Cid)], bitfield: &[u8]) -> Block {
    raw_shard(links, bitfield, Some(0x22), Some(256))
}

fn raw_shard(links: &[(&str, Cid)], bitfield: &[u8], hash_type: Option<u64>, fanout: Option<u64>) -> Block {
    let links =
        links.iter().map(|(name, cid)| PbLink { cid: *cid, name: Some((*name).to_owned()), tsize: Some(1) }).collect();
    let message = PbUnixFs { data: Some(bitfield.to_vec()), hash_type, fanout, ..PbUnixFs::new(PbKind::HamtShard) };
    Block::new(Codec::DagPb, PbNode { links, data: Some(message.encode()) }.encode())
}

/// Returns the field of the slots that are taken.
fn bits(slots: &[u8]) -> Vec<u8> {
    let mut field = vec![0; 32];
    for slot in slots {
        field[31 - usize::from(slot / 8)] |= 1 << (slot % 8);
    }
    field
}
