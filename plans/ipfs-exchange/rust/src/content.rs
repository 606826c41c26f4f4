//! What is exchanged: leaves whose bytes follow from the run's seed and the round, and a node of dag-pb that links them.
//! The nodes in Go and JavaScript make the same.

use iptl_dag::unixfs::pb::{PbLink, PbNode};
use iptl_dag::{Block, Cid, Codec};

/// Multihash code of SHA2-256, which every implementation takes.
const SHA2_256: u64 = 0x12;

/// Makes the content of a round: `count` leaves of `size` bytes, and last the root.
pub fn content(seed: u64, round: &str, count: usize, size: usize) -> Vec<Block> {
    let leaves = (0..count).map(|leaf| block(Codec::Raw, bytes(seed, round, leaf, size)));
    let mut blocks: Vec<Block> = leaves.collect();
    let links = blocks.iter().map(|leaf| PbLink {
        cid: *leaf.cid(),
        name: Some(String::new()),
        tsize: Some(leaf.data().len() as u64),
    });
    let root = PbNode { links: links.collect(), data: None };
    blocks.push(block(Codec::DagPb, root.encode()));
    blocks
}

/// Returns what a block links.
pub fn links(block: &Block) -> Vec<Cid> {
    match Codec::of(block.cid()) {
        Some(Codec::DagPb) => {
            let node = PbNode::decode(block.data());
            node.map(|node| node.links.into_iter().map(|link| link.cid).collect()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// The bytes of a leaf: Marsaglia's xorshift of 128 bits, which begins with the hash of what the leaf is.
fn bytes(seed: u64, round: &str, leaf: usize, size: usize) -> Vec<u8> {
    let name = Block::hashed(SHA2_256, format!("{seed} {round} {leaf}").into_bytes()).expect("it is computed here");
    let word = |at: usize| {
        let digest = name.cid().hash().digest();
        u32::from_le_bytes(digest[at * 4..][..4].try_into().expect("they are four"))
    };
    let (mut x, mut y, mut z, mut w) = (word(0), word(1), word(2), word(3));
    let mut bytes = Vec::with_capacity(size + 4);
    while bytes.len() < size {
        let t = x ^ (x << 11);
        (x, y, z) = (y, z, w);
        w = w ^ (w >> 19) ^ t ^ (t >> 8);
        bytes.extend_from_slice(&w.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn block(codec: Codec, data: Vec<u8>) -> Block {
    let block = Block::hashed(SHA2_256, data).expect("it is computed here");
    let cid = Cid::new_v1(codec.number(), *block.cid().hash());
    block.named(cid).expect("the hash is the same")
}
