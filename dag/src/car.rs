//! CARv1, the stream form of a DAG: a header with the roots, then every block with its CID.
//!
//! Whoever writes one walks the DAG and leaves identity CIDs out: they are their own content. Reading a CAR is the
//! business of whoever has the stream; every block of it passes [`Block::verify`].

use std::collections::BTreeMap;

use crate::{Block, Cid, Ipld, codec};

/// Returns the header of a CAR with these roots.
pub fn header(roots: &[Cid]) -> Vec<u8> {
    let header = Ipld::Map(BTreeMap::from([
        ("roots".to_owned(), Ipld::List(roots.iter().map(|cid| Ipld::Link(*cid)).collect())),
        ("version".to_owned(), Ipld::Integer(1)),
    ]));
    let bytes = codec::encode(&header);
    let mut out = varint(bytes.len());
    out.extend(bytes);
    out
}

/// Returns what stands before the bytes of a block: the length of both, and the CID.
pub fn frame_head(block: &Block) -> Vec<u8> {
    let cid = block.cid().to_bytes();
    let mut out = varint(cid.len() + block.data().len());
    out.extend(cid);
    out
}

/// Returns the section of a block: its head and its bytes.
pub fn frame(block: &Block) -> Vec<u8> {
    let mut out = frame_head(block);
    out.extend_from_slice(block.data());
    out
}

fn varint(value: usize) -> Vec<u8> {
    unsigned_varint::encode::u64(value as u64, &mut unsigned_varint::encode::u64_buffer()).to_vec()
}
