//! How a tar becomes pages, files and the file of small files, and the other way round.
//!
//! A page is a sequence of operations, each one byte and its arguments; numbers are unsigned LEB128. Carried out in order,
//! the operations of all pages give the tar:
//!
//! | byte | arguments | gives |
//! | --- | --- | --- |
//! | 0, 1, 2 | difference | a block: an entry's header, an extension's header, an extension's content |
//! | 3 | size | the content of the page's next file, and zeros up to the next block |
//! | 4 | size | the next `size` bytes of the layer's small files, and zeros up to the next block |
//! | 5 | size | the content of the page's next file, and nothing after it |
//! | 6 | size | the next `size` bytes of the layer's small files, and nothing after them |
//! | 7 | count | zeros |
//! | 8 | count, bytes | these bytes |
//!
//! A difference is a number of runs, and for each how many bytes stay, how many change, and to what; it is taken from the
//! block before it of the same kind, in a page's beginning from zeros. Headers of neighbours differ in name, size, time
//! and checksum: that makes 30 to 60 bytes of 512.
//!
//! A page begins before an entry whose path hashes to a zero byte, or where it would get too large. So an entry that comes
//! or goes changes one page, and no page says where it stands.

use std::collections::VecDeque;

use iptl_artifacts::import::at_once;
use iptl_dag::model::image::MAX_PAGES_PER_LAYER;
use iptl_dag::model::{Layer, LayerPage, to_block};
use iptl_dag::unixfs::FileBuilder;
use iptl_dag::{Block, Cid};

use crate::tar::scan::{Entry, Kind, Sink, Slot, TarError};
use crate::tar::{BLOCK, TarBlock, padding};

/// Largest content of a small file in bytes.
///
/// A block of its own costs about 200 bytes beside its content, in links, requests and entries of stores, and most of the
/// time of moving it. Three of four files of a program's packages are smaller than this, and all of them together are a
/// tenth of its bytes. As one file they are cut by content into leaves of 64 KiB, so that an unchanged stretch stays one.
pub const MAX_SMALL_FILE: u64 = 4096;

/// A page ends before it is longer than this, in bytes, unless one entry is.
const MAX_PAGE: usize = 256 << 10;

/// Most entries of a page: four times as many as paths leave on average.
const MAX_PAGE_ENTRIES: usize = 1024;

/// Differences with fewer equal bytes between them are one run: two numbers cost two bytes or more.
const MIN_GAP: usize = 4;

/// Bytes that are compared at once.
const STRETCH: usize = 16;

mod op {
    pub(super) const HEADER: u8 = 0;
    pub(super) const EXTENSION_HEADER: u8 = 1;
    pub(super) const EXTENSION_DATA: u8 = 2;
    pub(super) const FILE: u8 = 3;
    pub(super) const SMALL: u8 = 4;
    pub(super) const FILE_UNPADDED: u8 = 5;
    pub(super) const SMALL_UNPADDED: u8 = 6;
    pub(super) const ZEROS: u8 = 7;
    pub(super) const BYTES: u8 = 8;
}

/// Blocks that differences are taken from.
#[derive(Clone, Debug)]
struct Last {
    blocks: [TarBlock; 3],
}

impl Default for Last {
    fn default() -> Last {
        Last { blocks: [[0; BLOCK]; 3] }
    }
}

fn op_of(slot: Slot) -> u8 {
    match slot {
        Slot::Header => op::HEADER,
        Slot::ExtensionHeader => op::EXTENSION_HEADER,
        Slot::ExtensionData => op::EXTENSION_DATA,
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_difference(out: &mut Vec<u8>, last: &TarBlock, block: &TarBlock) {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    // Most of two headers is equal, so look at stretches first.
    for start in (0..BLOCK).step_by(STRETCH).filter(|at| last[*at..*at + STRETCH] != block[*at..*at + STRETCH]) {
        for i in (start..start + STRETCH).filter(|i| last[*i] != block[*i]) {
            match runs.last_mut() {
                Some((_, end)) if i - *end < MIN_GAP => *end = i + 1,
                Some(_) | None => runs.push((i, i + 1)),
            }
        }
    }
    put_number(out, runs.len() as u64);
    let mut at = 0;
    for (start, end) in runs {
        put_number(out, (start - at) as u64);
        put_number(out, (end - start) as u64);
        out.extend_from_slice(&block[start..end]);
        at = end;
    }
}

/// Where the content of the current entry goes.
enum Content {
    None,
    /// To a file of its own.
    File {
        file: Box<FileBuilder>,
        size: u64,
    },
    /// To the small files.
    Small {
        size: u64,
    },
}

/// Takes finished blocks.
pub(crate) trait BlockSink {
    /// Why it takes no more.
    type Error;

    /// Where blocks are appended before [`settle`](BlockSink::settle).
    fn blocks(&mut self) -> &mut Vec<Block>;

    /// Called between appends, often: passes blocks on when there are many.
    fn settle(&mut self) -> Result<(), Self::Error>;
}

/// Takes a tar apart into blocks.
pub(crate) struct LayerBuilder<'a, O: BlockSink> {
    out: &'a mut O,
    last: Last,
    tar: Vec<u8>,
    files: Vec<Cid>,
    page_entries: usize,
    pages: Vec<Cid>,
    content: Content,
    small: Option<FileBuilder>,
    /// Zeros after the last entry that are not written yet.
    zeros: u64,
    /// What follows the last entry and is not zeros.
    rest: Option<(Box<FileBuilder>, u64)>,
}

impl<'a, O: BlockSink> LayerBuilder<'a, O> {
    /// Starts a layer whose blocks go to `out`.
    pub(crate) fn new(out: &'a mut O) -> LayerBuilder<'a, O> {
        LayerBuilder {
            out,
            last: Last::default(),
            tar: Vec::new(),
            files: Vec::new(),
            page_entries: 0,
            pages: Vec::new(),
            content: Content::None,
            small: None,
            zeros: 0,
            rest: None,
        }
    }

    /// Ends the layer and returns its node, and the CID that it has.
    pub(crate) fn finish<E>(mut self, diff_id: [u8; 32], size: u64, entries: u64) -> Result<(Cid, Layer), E>
    where
        E: From<TarError> + From<PageError> + From<O::Error>,
    {
        if self.zeros > 0 {
            self.tar.push(op::ZEROS);
            put_number(&mut self.tar, self.zeros);
        }
        if let Some((file, size)) = self.rest.take() {
            let entry = file.finish(self.out.blocks());
            self.tar.push(op::FILE_UNPADDED);
            put_number(&mut self.tar, size);
            self.files.push(entry.cid);
        }
        self.end_page()?;
        let small = self.small.take().map(|small| small.finish(self.out.blocks()).cid);
        let layer = Layer { diff_id, size, entries, small, pages: std::mem::take(&mut self.pages) };
        let block = to_block(layer.clone());
        let cid = *block.cid();
        self.out.blocks().push(block);
        self.out.settle()?;
        Ok((cid, layer))
    }

    fn end_page(&mut self) -> Result<(), PageError> {
        if self.tar.is_empty() {
            return Ok(());
        }
        if self.pages.len() == MAX_PAGES_PER_LAYER {
            return Err(PageError::TooMany);
        }
        let page = LayerPage { tar: std::mem::take(&mut self.tar), files: std::mem::take(&mut self.files) };
        let block = to_block(page);
        self.pages.push(*block.cid());
        self.out.blocks().push(block);
        self.last = Last::default();
        self.page_entries = 0;
        Ok(())
    }
}

/// Says whether a page begins at a path: for one of 256.
fn begins_page(path: &[u8]) -> bool {
    blake3::hash(path).as_bytes()[0] == 0
}

/// An error of a builder's sink, of the tar or of the pages.
#[derive(Debug)]
pub(crate) enum BuildStop<E> {
    Tar(TarError),
    Page(PageError),
    Out(E),
}

impl<E> From<TarError> for BuildStop<E> {
    fn from(error: TarError) -> Self {
        BuildStop::Tar(error)
    }
}

impl<E> From<PageError> for BuildStop<E> {
    fn from(error: PageError) -> Self {
        BuildStop::Page(error)
    }
}

impl<O: BlockSink> Sink for LayerBuilder<'_, O> {
    type Error = BuildStop<O::Error>;

    fn entry(&mut self, entry: &Entry, blocks: &[(Slot, TarBlock)]) -> Result<(), Self::Error> {
        let full = self.page_entries == MAX_PAGE_ENTRIES || self.tar.len() + blocks.len() * (BLOCK + 8) > MAX_PAGE;
        if full || begins_page(&entry.path) {
            self.end_page()?;
        }
        self.page_entries += 1;
        for (slot, block) in blocks {
            self.tar.push(op_of(*slot));
            let last = &mut self.last.blocks[op_of(*slot) as usize];
            put_difference(&mut self.tar, last, block);
            *last = *block;
        }
        self.content = match (entry.kind, entry.size) {
            (Kind::File, 1..=MAX_SMALL_FILE) => Content::Small { size: entry.size },
            (Kind::File, size @ 1..) => Content::File { file: Box::new(FileBuilder::new().at_once(at_once)), size },
            (Kind::File, 0) | (Kind::Directory | Kind::Symlink | Kind::HardLink, _) => Content::None,
        };
        self.out.settle().map_err(BuildStop::Out)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        match &mut self.content {
            Content::None => {}
            Content::File { file, .. } => file.push(bytes, self.out.blocks()),
            Content::Small { .. } => self.small.get_or_insert_default().push(bytes, self.out.blocks()),
        }
        self.out.settle().map_err(BuildStop::Out)
    }

    fn end(&mut self, padding: &[u8]) -> Result<(), Self::Error> {
        let (padded, unpadded, size) = match std::mem::replace(&mut self.content, Content::None) {
            Content::None => return Ok(()),
            Content::Small { size } => (op::SMALL, op::SMALL_UNPADDED, size),
            Content::File { file, size } => {
                self.files.push(file.finish(self.out.blocks()).cid);
                (op::FILE, op::FILE_UNPADDED, size)
            }
        };
        // A tar may end before its last padding.
        let plain = padding.len() == crate::tar::padding(size) && padding.iter().all(|byte| *byte == 0);
        self.tar.push(if plain { padded } else { unpadded });
        put_number(&mut self.tar, size);
        if !plain && !padding.is_empty() {
            self.tar.push(op::BYTES);
            put_number(&mut self.tar, padding.len() as u64);
            self.tar.extend_from_slice(padding);
        }
        self.out.settle().map_err(BuildStop::Out)
    }

    fn rest(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        let zeros = match &self.rest {
            None => bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len()),
            Some(_) => 0,
        };
        self.zeros += zeros as u64;
        let others = &bytes[zeros..];
        if !others.is_empty() {
            let (file, size) = self.rest.get_or_insert_default();
            file.push(others, self.out.blocks());
            *size += others.len() as u64;
        }
        self.out.settle().map_err(BuildStop::Out)
    }
}

/// Why a page cannot be read, or a layer not be written as pages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The names and attributes take more room than a layer has.
    #[error("its names and attributes take more than {MAX_PAGES_PER_LAYER} pages")]
    TooMany,
    /// An operation that there is not, or one that is cut off.
    #[error("operation {number} of a page cannot be read")]
    Operation {
        /// Which one, from zero.
        number: u64,
    },
    /// An operation wants a file, and the page has no more.
    #[error("a page names fewer files than it uses")]
    Files,
    /// A page links files that it does not use.
    #[error("a page names more files than it uses")]
    Unused,
}

/// What one operation gives.
#[expect(clippy::large_enum_variant, reason = "blocks are most of them, and each is passed on at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Block(TarBlock),
    File { cid: Cid, size: u64, padding: usize },
    Small { size: u64, padding: usize },
    Zeros(u64),
    Bytes(&'a [u8]),
}

/// Reads the operations of one page. Nothing in a page is trusted.
pub(crate) struct Pieces<'a> {
    left: &'a [u8],
    files: VecDeque<Cid>,
    last: Last,
    number: u64,
}

impl<'a> Pieces<'a> {
    /// Starts at the beginning of a page.
    pub(crate) fn new(page: &'a LayerPage) -> Pieces<'a> {
        Pieces { left: &page.tar, files: page.files.iter().copied().collect(), last: Last::default(), number: 0 }
    }

    /// Files that the operations to come will name.
    pub(crate) fn upcoming(&self) -> impl Iterator<Item = &Cid> {
        self.files.iter()
    }

    /// Carries out the next operation; `None` at the end of the page.
    pub(crate) fn next(&mut self) -> Result<Option<Piece<'a>>, PageError> {
        if self.left.is_empty() {
            return if self.files.is_empty() { Ok(None) } else { Err(PageError::Unused) };
        }
        let wrong = PageError::Operation { number: self.number };
        self.number += 1;
        self.operation().unwrap_or(Err(wrong)).map(Some)
    }

    /// Returns `None` where the operation cannot be read.
    fn operation(&mut self) -> Option<Result<Piece<'a>, PageError>> {
        let padding_of = |padded: bool, size: u64| if padded { padding(size) } else { 0 };
        let piece = match self.byte()? {
            code @ (op::HEADER | op::EXTENSION_HEADER | op::EXTENSION_DATA) => Piece::Block(self.block(code)?),
            code @ (op::FILE | op::FILE_UNPADDED) => {
                let size = self.number()?;
                let Some(cid) = self.files.pop_front() else { return Some(Err(PageError::Files)) };
                Piece::File { cid, size, padding: padding_of(code == op::FILE, size) }
            }
            code @ (op::SMALL | op::SMALL_UNPADDED) => {
                let size = self.number()?;
                Piece::Small { size, padding: padding_of(code == op::SMALL, size) }
            }
            op::ZEROS => Piece::Zeros(self.number()?),
            op::BYTES => {
                let count = usize::try_from(self.number()?).ok()?;
                Piece::Bytes(self.bytes(count)?)
            }
            _ => return None,
        };
        Some(Ok(piece))
    }

    fn block(&mut self, code: u8) -> Option<TarBlock> {
        let runs = self.number()?;
        let mut at = 0_usize;
        for _ in 0..runs {
            let start = at.checked_add(usize::try_from(self.number()?).ok()?)?;
            let length = usize::try_from(self.number()?).ok()?;
            let end = start.checked_add(length)?;
            let bytes = self.bytes(length)?;
            self.last.blocks.get_mut(code as usize)?.get_mut(start..end)?.copy_from_slice(bytes);
            at = end;
        }
        self.last.blocks.get(code as usize).copied()
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.left.split_first()?;
        self.left = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.left.split_at_checked(count)?;
        self.left = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn differences_give_the_block_back(blocks in prop::collection::vec(block(), 1..5)) {
            let mut page = LayerPage { tar: Vec::new(), files: Vec::new() };
            let mut last = [0; BLOCK];
            for block in &blocks {
                page.tar.push(op::HEADER);
                put_difference(&mut page.tar, &last, block);
                last = *block;
            }
            let mut pieces = Pieces::new(&page);
            for block in &blocks {
                prop_assert_eq!(pieces.next(), Ok(Some(Piece::Block(*block))));
            }
            prop_assert_eq!(pieces.next(), Ok(None));
        }

        #[test]
        fn difference_is_little_longer_than_its_block(blocks in (block(), block())) {
            let mut out = Vec::new();
            put_difference(&mut out, &blocks.0, &blocks.1);
            prop_assert!(out.len() <= BLOCK + 8, "{} bytes", out.len());
        }

        #[test]
        fn arbitrary_pages_are_read_or_refused(tar in prop::collection::vec(any::<u8>(), 0..200)) {
            let page = LayerPage { tar, files: Vec::new() };
            let mut pieces = Pieces::new(&page);
            while let Ok(Some(_)) = pieces.next() {}
        }

        #[test]
        fn numbers_are_read_back(number in any::<u64>()) {
            let mut page = LayerPage { tar: vec![op::ZEROS], files: Vec::new() };
            put_number(&mut page.tar, number);
            prop_assert_eq!(Pieces::new(&page).next(), Ok(Some(Piece::Zeros(number))));
        }
    }

    fn block() -> impl Strategy<Value = TarBlock> {
        let dense = prop::collection::vec(any::<u8>(), BLOCK);
        let sparse = prop::collection::vec(prop_oneof![9 => Just(0), 1 => any::<u8>()], BLOCK);
        let every_fifth = any::<u8>().prop_map(|byte| (0..BLOCK).map(|i| if i % 5 == 0 { byte } else { 0 }).collect());
        prop_oneof![dense, sparse, every_fifth].prop_map(|bytes: Vec<u8>| bytes.try_into().expect("as long as a block"))
    }
}
