//! Decoders meet arbitrary bytes, and valid blocks with a few bytes changed: none panics.

use std::sync::LazyLock;

use iptl_dag::path::{Resolve, Step};
use iptl_dag::unixfs::pb::{PbKind, PbNode, PbUnixFs};
use iptl_dag::unixfs::{
    DirectoryBuilder, DirectoryReader, FileBuilder, FileReader, Metadata, Modified, UnixFs, metadata_of,
};
use iptl_dag::walk::links;
use iptl_dag::{Block, Cid, Codec, PeerId, codec, model::Node};
use proptest::prelude::*;

use crate::examples;
use crate::generate::keystream;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn valid_blocks_with_a_few_bytes_changed_are_read_or_refused(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..4),
    ) {
        let blocks = &*VALID_BLOCKS;
        let mut bytes = blocks[pick.index(blocks.len())].clone();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match how {
                _ if bytes.is_empty() => bytes.push(byte),
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes[at] = byte,
            }
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn arbitrary_json_is_read_or_refused(text in "([\\[\\]{}:,]|\"/\"|\"bytes\"|\"a\"|1|-0|1e999|null|true|\"bafkqaaa\"){0,40}") {
        read_as_everything(text.as_bytes());
    }

    #[test]
    fn arbitrary_paths_lead_somewhere_or_nowhere(path in "\\PC{0,40}") {
        for block in &*PATHS_START_AT {
            let Ok(mut resolve) = Resolve::new(*block.cid(), &path) else { continue };
            if matches!(resolve.step(), Step::Need(_)) {
                let _ = resolve.supply(block);
            }
        }
    }
}

/// What is decoded is written as it was read, wherever there is one canonical form.
fn read_as_everything(bytes: &[u8]) {
    if let Ok(node) = PbNode::decode(bytes) {
        assert_eq!(PbNode::decode(&node.encode()).as_ref(), Ok(&node));
    }
    if let Ok(message) = PbUnixFs::decode(bytes) {
        assert_eq!(PbUnixFs::decode(&message.encode()), Ok(message));
    }
    let _ = UnixFs::decode(bytes);
    let node = Block::new(Codec::DagPb, bytes.to_vec());
    let _ = metadata_of(&node);
    let _ = DirectoryReader::new(*node.cid()).supply(&node);
    let _ = FileReader::of_range(*node.cid(), 1..u64::MAX - 1).supply(&node);
    for codec in [Codec::Raw, Codec::DagCbor, Codec::DagPb, Codec::DagJson] {
        let Ok(value) = codec::decode_as(codec, bytes) else { continue };
        codec::to_dag_json(&value);
        match codec::encode_as(codec, &value) {
            // What has one canonical form is read in that form alone.
            Ok(written) if matches!(codec, Codec::Raw | Codec::DagCbor) => assert_eq!(written, bytes),
            Ok(written) => assert_eq!(codec::decode_as(codec, &written).expect("it was written here"), value),
            // A node whose links are not sorted is read, since others wrote such, and has no form of its own.
            Err(error) => assert_eq!(codec, Codec::DagPb, "{error}"),
        }
    }
    if let Ok(node) = Node::from_bytes(bytes) {
        let written = node.to_block();
        assert!(Node::from_bytes(written.data()).is_ok_and(|again| again == node));
        if node.is_control() {
            assert_eq!(written.data(), bytes);
        }
    }
    let hash = *Block::new(Codec::Raw, bytes.to_vec()).cid().hash();
    for number in [0x55, 0x70, 0x71, 0x0129, 0x78] {
        let cid = Cid::new_v1(number, hash);
        let _ = links(&cid, bytes);
        let _ = codec::to_ipld(&Block::verify(cid, bytes.to_vec()).expect("it is its hash"));
    }
    let _ = PeerId::from_bytes(bytes);
    let _ = Cid::try_from(bytes).map(|cid| iptl_dag::block::check(&cid, bytes));
}

static VALID_BLOCKS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(valid_blocks);

fn valid_blocks() -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    let entry = FileBuilder::of_bytes(&keystream("decoding", 300_000), &mut blocks);
    let mut directory = DirectoryBuilder::new();
    for name in ["a", "b", "c"] {
        directory.insert(name, entry.clone()).expect("free");
    }
    directory.finish(&mut blocks).expect("fits");
    let mut sharded = DirectoryBuilder::new();
    for i in 0..6_000 {
        sharded.insert(format!("{i}"), entry.clone()).expect("free");
    }
    let mut shards = Vec::new();
    sharded.finish(&mut shards).expect("fits");
    // The smallest of them, so that a change meets something.
    shards.sort_by_key(|block| block.data().len());
    blocks.extend(shards.into_iter().take(2));
    blocks.retain(|b| Codec::of(b.cid()) == Some(Codec::DagPb));
    let mut bytes: Vec<Vec<u8>> = blocks.iter().map(|b| b.data().to_vec()).collect();
    for (_, node) in examples::nodes() {
        let block = node.to_block();
        bytes.push(codec::to_dag_json(&codec::to_ipld(&block).expect("DAG-CBOR")));
        bytes.push(block.data().to_vec());
    }
    let metadata = Metadata { mode: Some(0o644), modified: Some(Modified { seconds: 1_700_000_000, nanos: 5 }) };
    bytes.push(PbUnixFs { metadata, fanout: Some(256), ..PbUnixFs::new(PbKind::HamtShard) }.encode());
    bytes.push(b"\x08\x02\x12\x03abc\x18\x05\x20\x01\x20\x01".to_vec());
    bytes
}

static PATHS_START_AT: LazyLock<Vec<Block>> = LazyLock::new(|| {
    let (_, node) = examples::nodes().remove(0);
    vec![Block::new(Codec::Raw, "x"), iptl_dag::unixfs::empty_directory(), node.to_block()]
});
