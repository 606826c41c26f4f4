//! CAR streams.

use std::collections::BTreeMap;

use iptl_dag::car::{self, CarError, CarItem, CarReader, MAX_HEADER_SIZE};
use iptl_dag::walk::{Limits, Walk};
use iptl_dag::{Block, Cid, Codec, HashError, MAX_BLOCK_SIZE, codec};
use proptest::prelude::*;

use crate::generate::keystream;
use crate::vectors::{json, read, vectors};

#[test]
fn header_is_the_one_of_the_specification() {
    let cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().expect("valid");
    let header = car::header(&[cid]);
    let mut expected = b"\x38\xa2\x65roots\x81\xd8\x2a\x58\x25\x00".to_vec();
    expected.extend(cid.to_bytes());
    expected.extend(b"\x67version\x01");
    expected[0] = u8::try_from(expected.len() - 1).expect("short");
    assert_eq!(header, expected);
    assert_eq!(header[0], 0x3a);
}

#[test]
fn section_is_length_cid_and_bytes() {
    let block = Block::new(Codec::Raw, vec![7; 200]);
    let section = car::frame(&block);
    assert_eq!(section[..2], [0xec, 0x01], "236 as a varint");
    assert_eq!(section[2..38], block.cid().to_bytes());
    assert_eq!(&section[38..], &block.data()[..]);
    assert!(section.starts_with(&car::frame_head(&block)));
}

#[test]
fn published_cars_are_read_to_the_blocks_that_their_descriptions_list() {
    for name in ["carv1-basic", "carv2-basic"] {
        let Some(file) = vectors(&format!("car/{name}.car")) else { return };
        let described = json(&file.with_extension("json"));
        let cids = |value: &serde_json::Value| -> Vec<String> {
            let links = value.as_array().expect("a list");
            links.iter().map(|link| link["/"].as_str().expect("a link").to_owned()).collect()
        };
        let (roots, blocks) = read_whole(&read(&file));
        assert_eq!(strings(&roots), cids(&described["header"]["roots"]), "{name}");
        let described = described["blocks"].as_array().expect("a list");
        let expected: Vec<_> = described.iter().map(|block| block["cid"]["/"].as_str().expect("a CID")).collect();
        let read: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();
        assert_eq!(strings(&read), expected, "{name}");
        for (block, described) in blocks.iter().zip(described) {
            assert_eq!(block.data().len() as u64, described["blockLength"].as_u64().expect("a number"));
            let content = codec::from_dag_json(described["content"].to_string().as_bytes()).expect("DAG-JSON");
            assert_eq!(codec::to_ipld(block).expect("valid"), content, "{}", block.cid());
        }
    }
}

#[test]
fn published_car_of_version_1_is_written_as_it_was_read() {
    for name in ["carv1-basic.car", "simple-unixfs.car"] {
        let Some(file) = vectors(&format!("car/{name}")) else { return };
        let bytes = read(&file);
        let (roots, blocks) = read_whole(&bytes);
        assert_eq!(write(&roots, &blocks), bytes, "{name}");
    }
}

#[test]
fn wrapped_car_holds_what_the_plain_one_does() {
    let (Some(plain), Some(wrapped)) = (vectors("car/sample-v1.car"), vectors("car/sample-wrapped-v2.car")) else {
        return;
    };
    let plain = read_whole(&read(&plain));
    assert_eq!(plain, read_whole(&read(&wrapped)));
    assert_eq!(plain.1.len(), 1049);
}

#[test]
fn car_of_the_fixtures_holds_every_one_of_them() {
    let Some(folder) = vectors("codec-fixtures/fixtures") else { return };
    let mut blocks = Vec::new();
    for fixture in crate::vectors::list(&folder) {
        for file in crate::vectors::list(&fixture) {
            let cid = file.file_stem().and_then(|cid| cid.to_str()).expect("a CID").parse().expect("a CID");
            blocks.push(Block::verify(cid, read(&file)).expect("it is its hash"));
        }
    }
    assert_eq!(read_whole(&write(&[], &blocks)), (Vec::new(), blocks));
}

#[test]
fn missing_blocks_are_found_by_a_walk_over_what_a_partial_car_holds() {
    let leaf = Block::new(Codec::Raw, "leaf");
    let lost = Block::new(Codec::Raw, "lost");
    let root = codec::to_block(&iptl_dag::Ipld::List([&leaf, &lost].map(|b| iptl_dag::Ipld::Link(*b.cid())).to_vec()));
    let (roots, blocks) = read_whole(&write(&[*root.cid()], &[root, leaf]));
    let blocks: BTreeMap<Cid, Block> = blocks.into_iter().map(|block| (*block.cid(), block)).collect();
    let mut walk = Walk::new(roots, Limits::default()).expect("one root");
    while let [cid] = walk.wants(1)[..] {
        match blocks.get(&cid) {
            Some(block) => drop(walk.accept(block).expect("valid")),
            None => walk.missing(&cid),
        }
    }
    assert_eq!(walk.given_up(), [*lost.cid()]);
}

#[test]
fn index_behind_the_data_is_passed_over_and_not_kept() {
    let (root, data) = example();
    let mut stream = version_2(&data, 51 + 100, data.len() as u64);
    for index in [&[][..], &[0x80; 1000]] {
        stream.extend_from_slice(index);
        let (roots, blocks) = read_whole(&stream);
        assert_eq!((roots, blocks.len()), (vec![root], 2));
    }
}

#[test]
fn cut_stream_is_an_error_that_says_where() {
    let (_, data) = example();
    let wrapped = version_2(&data, 51, data.len() as u64);
    let header = car::header(&[example().0]).len();
    let first = header + car::frame(&example_blocks()[0]).len();
    for (stream, boundaries) in [(&data, vec![header, first, data.len()]), (&wrapped, vec![wrapped.len()])] {
        for length in 0..=stream.len() {
            let read = try_read(&stream[..length], 1000).map(|_| ());
            match read {
                Ok(()) => assert!(boundaries.contains(&length), "{length} of {} bytes are a whole CAR", stream.len()),
                Err(CarError::Truncated { offset, .. }) => {
                    assert_eq!(offset, length as u64);
                    assert!(!boundaries.contains(&length));
                }
                Err(error) => panic!("{length} bytes: {error}"),
            }
        }
    }
}

#[test]
fn block_with_a_byte_changed_is_refused_at_its_offset() {
    let (_, mut stream) = example();
    let header = car::header(&[example().0]).len();
    *stream.last_mut().expect("not empty") ^= 1;
    let second = (header + car::frame(&example_blocks()[0]).len()) as u64;
    match try_read(&stream, 1000) {
        Err(CarError::Block { offset, source: HashError::Mismatch { cid } }) => {
            assert_eq!((offset, cid), (second, *example_blocks()[1].cid()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_kept_for_them() {
    let header = car::header(&[]);
    let with = |bytes: &[u8]| [&header, bytes].concat();
    let number = |value: u64| unsigned_varint::encode::u64(value, &mut unsigned_varint::encode::u64_buffer()).to_vec();
    type Check = fn(&CarError) -> bool;
    let is_header: Check = |e: &CarError| matches!(e, CarError::Header { .. });
    let is_section: Check = |e: &CarError| matches!(e, CarError::Section { .. });
    let is_large: Check = |e: &CarError| matches!(e, CarError::TooLarge { .. });
    let wrapped = |offset: u64, size: u64| version_2(&header, offset, size);
    let rows: [(&str, Vec<u8>, Check); 14] = [
        ("empty header", vec![0], is_section),
        ("header of a gigabyte", number(1 << 30), is_large),
        ("header that is a list", b"\x01\x80".to_vec(), is_header),
        ("header without a version", b"\x01\xa0".to_vec(), is_header),
        ("version 3", b"\x0a\xa1\x67version\x03".to_vec(), is_header),
        ("empty section", with(&[0]), is_section),
        ("section of 2^63 bytes", with(&number(1 << 63)), is_large),
        ("length in a long form", with(&[0x81, 0x00]), is_section),
        ("length without an end", with(&[0xff; 11]), is_section),
        ("no CID", with(&[4, 0xff, 0xff, 0xff, 0xff]), is_section),
        ("data before the header ends", wrapped(50, 100), is_header),
        ("no data", wrapped(51, 0), is_header),
        ("data without an end", wrapped(51, u64::MAX - 51), is_header),
        ("section across the end of the data", wrapped(51, header.len() as u64 - 1), is_section),
    ];
    for (what, stream, is_expected) in rows {
        match try_read(&stream, 3) {
            Err(error) => assert!(is_expected(&error), "{what}: {error}"),
            Ok(read) => panic!("{what}: {read:?}"),
        }
    }
}

#[test]
fn nothing_but_the_section_that_is_being_read_is_held() {
    // Sixteen sections of the largest blocks, and a header and padding that claim more than there will be.
    let blocks: Vec<Block> =
        (0..4).map(|i| Block::new(Codec::Raw, keystream(&i.to_string(), MAX_BLOCK_SIZE))).collect();
    let (roots, read) = read_whole(&write(&[], &blocks));
    assert_eq!((roots, read), (Vec::new(), blocks));
    let mut reader = CarReader::new();
    reader.push(&version_2(&[], u64::MAX - 9, 1)[..51]);
    for _ in 0..100 {
        reader.push(&[0; 1 << 16]);
        assert_eq!(reader.next_item().expect("padding"), None);
    }
    assert_eq!(reader.offset(), 51 + 100 * (1 << 16));
    const { assert!(MAX_HEADER_SIZE < MAX_BLOCK_SIZE) };
}

#[test]
fn error_is_given_again() {
    let mut reader = CarReader::new();
    reader.push(&[0]);
    for _ in 0..2 {
        assert!(reader.next_item().is_err());
        reader.push(&car::header(&[]));
    }
}

#[test]
fn errors_say_where_and_what() {
    let (_, stream) = example();
    let rows = [
        (stream[..20].to_vec(), "the CAR ends at byte 20, in the middle of its header"),
        (stream[..stream.len() - 1].to_vec(), "the CAR ends at byte 174, in the middle of a block"),
        (vec![0], "byte 0: a section is empty"),
        (b"\x01\xa0".to_vec(), "byte 0: the header of the CAR cannot be read: it has no version"),
        (b"\xff\xff\xff\x7f".to_vec(), "byte 0: a section of 268435455 bytes is longer than any block may be"),
    ];
    for (stream, expected) in rows {
        assert_eq!(try_read(&stream, 1000).expect_err(expected).to_string(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sizes_of_pieces_leave_no_trace(
        sizes in prop::collection::vec(0_usize..2_000, 0..8),
        piece in 1_usize..3_000,
        is_wrapped in any::<bool>(),
        padding in 0_u64..200,
    ) {
        let blocks: Vec<Block> = sizes.iter().map(|size| Block::new(Codec::Raw, keystream("car", *size))).collect();
        let roots: Vec<Cid> = blocks.iter().map(|block| *block.cid()).take(2).collect();
        let data = write(&roots, &blocks);
        let stream = if is_wrapped { version_2(&data, 51 + padding, data.len() as u64) } else { data };
        prop_assert_eq!(try_read(&stream, piece).expect("valid"), (roots, blocks));
    }

    #[test]
    fn changed_stream_gives_blocks_that_are_their_hashes_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        piece in 1_usize..200,
        is_wrapped in any::<bool>(),
    ) {
        let (_, data) = example();
        let mut stream = if is_wrapped { version_2(&data, 60, data.len() as u64) } else { data };
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        if let Ok((_, blocks)) = try_read(&stream, piece) {
            for block in blocks {
                prop_assert!(iptl_dag::block::check(block.cid(), block.data()).is_ok());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = try_read(&bytes, 7);
        let _ = try_read(&[car::header(&[]), bytes].concat(), 7);
    }
}

fn example_blocks() -> [Block; 2] {
    ["one", "two"].map(|text| Block::new(Codec::Raw, text.repeat(7)))
}

/// A root and a CAR of two blocks.
fn example() -> (Cid, Vec<u8>) {
    let blocks = example_blocks();
    (*blocks[0].cid(), write(&[*blocks[0].cid()], &blocks))
}

fn write(roots: &[Cid], blocks: &[Block]) -> Vec<u8> {
    let mut stream = car::header(roots);
    for block in blocks {
        stream.extend(car::frame(block));
    }
    stream
}

/// Wraps a CAR of version 1 as version 2 does, with zeros up to `data_offset`.
fn version_2(data: &[u8], data_offset: u64, data_size: u64) -> Vec<u8> {
    let mut stream = b"\x0a\xa1\x67version\x02".to_vec();
    stream.extend([0; 16]);
    for field in [data_offset, data_size, 0] {
        stream.extend(field.to_le_bytes());
    }
    stream.resize(usize::try_from(data_offset).map_or(51, |at| at.clamp(51, 1000)), 0);
    stream.extend(data);
    stream
}

fn read_whole(stream: &[u8]) -> (Vec<Cid>, Vec<Block>) {
    try_read(stream, 1000).expect("valid")
}

fn try_read(stream: &[u8], piece: usize) -> Result<(Vec<Cid>, Vec<Block>), CarError> {
    let mut reader = CarReader::new();
    let (mut roots, mut blocks) = (None, Vec::new());
    for piece in stream.chunks(piece) {
        reader.push(piece);
        while let Some(item) = reader.next_item()? {
            match item {
                CarItem::Roots(found) => assert!(roots.replace(found).is_none(), "there is one header"),
                CarItem::Block(block) => blocks.push(block),
            }
        }
    }
    reader.finish()?;
    Ok((roots.expect("a whole CAR has a header"), blocks))
}

fn strings(cids: &[Cid]) -> Vec<String> {
    cids.iter().map(Cid::to_string).collect()
}
