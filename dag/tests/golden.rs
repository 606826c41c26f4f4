//! CIDs that must never change: results of years ago are found by them.
//!
//! `IPTL_BLESS=1 cargo test -p iptl-dag golden` writes the fixtures anew, for a kind of node that is new or has a new
//! version. It refuses where `CI` is set. A fixture that changes without a new tag is a mistake.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use iptl_dag::model::Node;
use iptl_dag::unixfs::{DirectoryBuilder, FileBuilder};
use iptl_dag::{Block, Codec};

use crate::examples;
use crate::generate::keystream;

#[test]
fn nodes_encode_to_the_bytes_of_their_fixtures() {
    let nodes = examples::nodes();
    let mut table = String::new();
    for (name, node) in &nodes {
        let block = node.to_block();
        writeln!(table, "{name} {}", block.cid()).expect("a string takes all");
        compare(&format!("{name}.dag-cbor"), block.data());
    }
    compare("nodes.txt", table.as_bytes());
    let stored: Vec<PathBuf> = std::fs::read_dir(fixtures())
        .expect("the fixtures are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "dag-cbor"))
        .collect();
    assert_eq!(stored.len(), nodes.len(), "a fixture has lost its node");
}

#[test]
fn fixtures_decode_to_their_nodes() {
    let nodes: BTreeMap<String, Node> = examples::nodes().into_iter().collect();
    let table = std::fs::read_to_string(fixtures().join("nodes.txt")).expect("the fixtures are there");
    assert_eq!(table.lines().count(), nodes.len());
    for line in table.lines() {
        let (name, cid) = line.split_once(' ').expect("a name and a CID");
        let bytes = std::fs::read(fixtures().join(format!("{name}.dag-cbor"))).expect(name);
        let block = Block::verify(cid.parse().expect("a CID"), bytes).expect(name);
        assert_eq!(Codec::of(block.cid()), Some(Codec::DagCbor));
        assert_eq!(Node::from_bytes(block.data()).expect(name), nodes[name], "{name}");
    }
}

#[test]
fn files_and_directories_have_the_cids_of_the_table() {
    let sizes = [0, 1, 16 << 10, (16 << 10) + 1, (1 << 20) + 1, 10 << 20];
    let mut table = String::from("# content: ChaCha20 keystream under SHA-256 of \"iptl golden\"\n");
    let mut directory = DirectoryBuilder::new();
    let mut blocks = Vec::new();
    for size in sizes {
        let from = blocks.len();
        let entry = FileBuilder::of_bytes(&keystream("iptl golden", size), &mut blocks);
        writeln!(table, "file of {size} bytes: {} in {} blocks", entry.cid, blocks.len() - from).expect("a string");
        directory.insert(format!("{size}.bin"), entry).expect("free");
    }
    let zeros = FileBuilder::of_bytes(&vec![0; 3 << 20], &mut blocks);
    writeln!(table, "file of 3 MiB of zeros: {}", zeros.cid).expect("a string");
    directory.insert("zeros", zeros).expect("free");
    let entry = directory.finish(&mut blocks).expect("fits");
    writeln!(table, "directory of these: {} of {} bytes", entry.cid, entry.total_size).expect("a string");
    let empty = DirectoryBuilder::new().finish(&mut blocks).expect("fits");
    writeln!(table, "empty directory: {}", empty.cid).expect("a string");
    compare("unixfs.txt", table.as_bytes());
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn compare(name: &str, bytes: &[u8]) {
    let path = fixtures().join(name);
    if std::env::var_os("IPTL_BLESS").is_some() {
        assert!(std::env::var_os("CI").is_none(), "fixtures are not written where CI is set");
        std::fs::write(&path, bytes).expect("the fixture can be written");
    }
    let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}; IPTL_BLESS=1 writes it"));
    assert!(
        stored == bytes,
        "{name} differs.\nstored: {}\nencoded: {}",
        String::from_utf8_lossy(&stored),
        String::from_utf8_lossy(bytes)
    );
}
