//! A layer taken apart and put together in memory, for tests and fuzzing: no thread, no file, no store.

use std::collections::BTreeMap;

use bytes::Bytes;
use iptl_dag::model::{LayerPage, from_bytes};
use iptl_dag::unixfs::FileReader;
use iptl_dag::{Block, Cid};
use sha2::{Digest as _, Sha256};

use crate::layer::LayerStop;
use crate::limits::Limits;
use crate::pages::{BlockSink, LayerBuilder, Piece, Pieces};
use crate::tar::scan::Scanner;

/// Blocks in memory, whatever their number.
#[derive(Default)]
struct Kept(Vec<Block>);

impl BlockSink for Kept {
    type Error = LayerStop;

    fn blocks(&mut self) -> &mut Vec<Block> {
        &mut self.0
    }

    fn settle(&mut self) -> Result<(), LayerStop> {
        Ok(())
    }
}

/// Takes a tar apart that comes in pieces of `piece` bytes, and puts it together out of its blocks; none where it is
/// refused.
pub fn rebuild_layer(tar: &[u8], piece: usize, limits: &Limits) -> Option<Vec<u8>> {
    let mut kept = Kept::default();
    let mut builder = LayerBuilder::new(&mut kept);
    let mut scanner = Scanner::new(*limits);
    for piece in tar.chunks(piece.max(1)) {
        scanner.push(piece, &mut builder).ok()?;
    }
    scanner.finish(&mut builder).ok()?;
    let (size, entries) = (scanner.offset(), scanner.entries());
    let (_, layer) = builder.finish::<LayerStop>(Sha256::digest(tar).into(), size, entries).ok()?;
    let blocks: BTreeMap<Cid, Block> = kept.0.into_iter().map(|block| (*block.cid(), block)).collect();
    let small = layer.small.map(|cid| content(&blocks, cid)).unwrap_or_default();
    let (mut out, mut small) = (Vec::with_capacity(tar.len()), &small[..]);
    for page in &layer.pages {
        let page: LayerPage = from_bytes(blocks[page].data()).expect("it was just made");
        let mut pieces = Pieces::new(&page);
        while let Some(piece) = pieces.next().expect("it was just made") {
            match piece {
                Piece::Block(block) => out.extend(block),
                Piece::File { cid, size, padding } => {
                    let bytes = content(&blocks, cid);
                    assert_eq!(bytes.len() as u64, size, "a file has the size that its page says");
                    out.extend(bytes);
                    out.resize(out.len() + padding, 0);
                }
                Piece::Small { size, padding } => {
                    let (bytes, rest) = small.split_at(usize::try_from(size).expect("a small file is small"));
                    out.extend(bytes);
                    small = rest;
                    out.resize(out.len() + padding, 0);
                }
                Piece::Zeros(count) => out.resize(out.len() + usize::try_from(count).expect("they were in memory"), 0),
                Piece::Bytes(bytes) => out.extend(bytes),
            }
        }
    }
    assert!(small.is_empty(), "all small files are used");
    Some(out)
}

/// Reads the operations of a page that came from somewhere, to its end or to the first that cannot be read; returns
/// whether it came to its end.
pub fn read_page(page: &LayerPage) -> bool {
    let mut pieces = Pieces::new(page);
    loop {
        match pieces.next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn content(blocks: &BTreeMap<Cid, Block>, cid: Cid) -> Vec<u8> {
    let mut reader = FileReader::new(cid);
    let mut out: Vec<u8> = Vec::new();
    while let Some(next) = reader.next().copied() {
        let bytes: Bytes = reader.supply(&blocks[&next]).expect("it was just made");
        out.extend(&bytes[..]);
    }
    out
}
