//! CAR, the stream form of a DAG: a header with the roots, then every block with its CID.
//!
//! Version 1 is written: [`header`], then a [`frame`] for each block. Whoever writes one walks the DAG and leaves identity
//! CIDs out: they are their own content. Versions 1 and 2 are read, by a [`CarReader`] that is fed with bytes and holds one
//! block at a time, each checked against its CID. Whether the blocks are a whole DAG is not its question: a CAR may lack
//! some, and a [`Walk`](crate::walk::Walk) over what was read tells which.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;

use crate::codec::DecodeError;
use crate::varint::MAX_CID_SIZE;
use crate::{Block, Cid, HashError, Ipld, MAX_BLOCK_SIZE, codec};

/// Longest header that is read, in bytes: room for some twenty thousand roots.
pub const MAX_HEADER_SIZE: usize = 1 << 20;

/// Longest section that is read, in bytes: the largest block and the longest CID.
const MAX_SECTION_SIZE: usize = MAX_BLOCK_SIZE + MAX_CID_SIZE;

/// Longest number before a section in bytes; that of a section which is not refused has four.
const MAX_VARINT_SIZE: usize = 10;

/// What a CAR of version 2 begins with: a header of version 1 that says version 2.
const PRAGMA: &[u8; 11] = b"\x0a\xa1\x67version\x02";

/// Bytes of the fixed header of version 2: characteristics, and where data and index are.
const HEADER_V2_SIZE: usize = 40;

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
    let mut out = Vec::with_capacity(MAX_VARINT_SIZE);
    crate::varint::encode(value as u64, &mut out);
    out
}

/// Why a stream cannot be read as a CAR. Offsets are in bytes from the beginning of the stream.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// The stream ends before the CAR does.
    #[error("the CAR ends at byte {offset}, in the middle of {what}")]
    Truncated {
        /// Where the stream ended.
        offset: u64,
        /// What should have gone on.
        what: &'static str,
    },
    /// The header is not one.
    #[error("byte {offset}: the header of the CAR cannot be read: {reason}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A length, or the CID of a section, is not one.
    #[error("byte {offset}: {reason}")]
    Section {
        /// Where the section begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A section is longer than a block may be.
    #[error("byte {offset}: a section of {size} bytes is longer than any block may be")]
    TooLarge {
        /// Where the section begins.
        offset: u64,
        /// Its length in bytes, as it says.
        size: u64,
    },
    /// The bytes of a block are not what its CID names.
    #[error("byte {offset}: {source}")]
    Block {
        /// Where the section of the block begins.
        offset: u64,
        /// What the check met.
        #[source]
        source: HashError,
    },
}

/// What comes next in a CAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarItem {
    /// The roots, before everything else. The stream need not hold their blocks.
    Roots(Vec<Cid>),
    /// A block that has been checked.
    Block(Block),
}

/// Reads a CAR from bytes that arrive in pieces.
///
/// [`push`](CarReader::push) a piece, take what [`next_item`](CarReader::next_item) gives until it gives nothing, and at the end of
/// the stream [`finish`](CarReader::finish). Holds what was pushed and not taken, and at most one section besides. An
/// error is for good: `next_item` gives it again.
///
/// ```
/// use iptl_dag::car::{self, CarItem, CarReader};
/// use iptl_dag::{Block, Codec};
///
/// let block = Block::new(Codec::Raw, "leaf");
/// let stream = [car::header(&[*block.cid()]), car::frame(&block)].concat();
/// let mut reader = CarReader::new();
/// let mut items = Vec::new();
/// for piece in stream.chunks(7) {
///     reader.push(piece);
///     while let Some(item) = reader.next_item()? {
///         items.push(item);
///     }
/// }
/// reader.finish()?;
/// assert_eq!(items, [CarItem::Roots(vec![*block.cid()]), CarItem::Block(block)]);
/// # Ok::<(), iptl_dag::car::CarError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct CarReader {
    buffer: BytesMut,
    /// Where in the stream the buffer begins.
    offset: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The header of version 1, or the pragma of version 2.
    #[default]
    Start,
    /// The fixed header of version 2.
    HeaderV2,
    /// What stands before the data of version 2, and is passed over.
    Padding {
        /// Bytes of it that are left.
        left: u64,
        /// Bytes of data after it.
        data_size: u64,
    },
    /// The header of the data.
    Header { end: u64 },
    /// The sections.
    Sections { end: u64 },
    /// What stands behind the data of version 2: an index, which a stream has no use for.
    Behind,
}

impl CarReader {
    /// Starts at the beginning of a stream.
    pub fn new() -> CarReader {
        CarReader::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != State::Behind {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Returns how many bytes of the stream were read as part of the CAR.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next item, or `None` where it takes more bytes or nothing follows.
    pub fn next_item(&mut self) -> Result<Option<CarItem>, CarError> {
        loop {
            match self.state {
                State::Start => {
                    let is_pragma = self.buffer.len() >= PRAGMA.len() && self.buffer.starts_with(PRAGMA);
                    if is_pragma {
                        self.advance(PRAGMA.len());
                        self.state = State::HeaderV2;
                    } else if PRAGMA.starts_with(&self.buffer) {
                        // Either of both, or nothing yet.
                        return Ok(None);
                    } else {
                        self.state = State::Header { end: NO_END };
                    }
                }
                State::HeaderV2 => {
                    if self.buffer.len() < HEADER_V2_SIZE {
                        return Ok(None);
                    }
                    self.state = self.header_v2()?;
                    self.advance(HEADER_V2_SIZE);
                }
                State::Padding { left: 0, data_size } => {
                    self.state = State::Header { end: self.offset + data_size };
                }
                State::Padding { left, data_size } => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                    self.advance(taken);
                    self.state = State::Padding { left: left - taken as u64, data_size };
                    if taken == 0 {
                        return Ok(None);
                    }
                }
                State::Header { end } => {
                    let Some((head, size)) = self.length(end, MAX_HEADER_SIZE)? else { return Ok(None) };
                    let Some(bytes) = self.buffer.get(head..head + size) else { return Ok(None) };
                    let roots = roots(bytes).map_err(|reason| CarError::Header { offset: self.offset, reason })?;
                    self.advance(head + size);
                    self.state = State::Sections { end };
                    return Ok(Some(CarItem::Roots(roots)));
                }
                State::Sections { end } if self.offset == end => {
                    self.state = State::Behind;
                    self.buffer = BytesMut::new();
                }
                State::Sections { end } => {
                    let Some((head, size)) = self.length(end, MAX_SECTION_SIZE)? else { return Ok(None) };
                    let Some(section) = self.buffer.get(head..head + size) else { return Ok(None) };
                    let block = block(section, self.offset)?;
                    self.advance(head + size);
                    return Ok(Some(CarItem::Block(block)));
                }
                State::Behind => return Ok(None),
            }
        }
    }

    /// Ends the stream, which must be at the end of the CAR or of one of its sections.
    pub fn finish(self) -> Result<(), CarError> {
        let what = match self.state {
            State::Behind => return Ok(()),
            State::Sections { end: NO_END } if self.buffer.is_empty() => return Ok(()),
            State::Start | State::HeaderV2 | State::Padding { .. } | State::Header { .. } => "its header",
            State::Sections { .. } if self.buffer.is_empty() => "its blocks",
            State::Sections { .. } => "a block",
        };
        Err(CarError::Truncated { offset: self.offset.saturating_add(self.buffer.len() as u64), what })
    }

    /// Reads the number before a header or section: its own length, and the length of what follows.
    ///
    /// What is read must end at `end`, or before it.
    fn length(&self, end: u64, max: usize) -> Result<Option<(usize, usize)>, CarError> {
        let offset = self.offset;
        let head = self.buffer.iter().take(MAX_VARINT_SIZE).position(|byte| byte & 0x80 == 0);
        let Some(head) = head.map(|last| last + 1) else {
            let is_too_long = self.buffer.len() >= MAX_VARINT_SIZE;
            return if is_too_long { Err(CarError::Section { offset, reason: BAD_LENGTH }) } else { Ok(None) };
        };
        let (size, _) = crate::varint::decode(&self.buffer[..head])
            .map_err(|_| CarError::Section { offset, reason: BAD_LENGTH })?;
        if size == 0 {
            return Err(CarError::Section { offset, reason: "a section is empty" });
        }
        let Some(known) = usize::try_from(size).ok().filter(|size| *size <= max) else {
            return Err(CarError::TooLarge { offset, size });
        };
        if offset.saturating_add((head + known) as u64) > end {
            return Err(CarError::Section { offset, reason: "a section goes on behind the data" });
        }
        Ok(Some((head, known)))
    }

    fn header_v2(&self) -> Result<State, CarError> {
        let error = |reason: &str| CarError::Header { offset: self.offset, reason: reason.to_owned() };
        let mut fields = &self.buffer[16..HEADER_V2_SIZE];
        let (data_offset, data_size) = (fields.get_u64_le(), fields.get_u64_le());
        let after = self.offset + HEADER_V2_SIZE as u64;
        let left = data_offset.checked_sub(after).ok_or_else(|| error("its data stand within it"))?;
        if data_size == 0 {
            return Err(error("it was not finished: it holds no data"));
        }
        if data_offset.checked_add(data_size).is_none_or(|end| end == NO_END) {
            return Err(error("its data have no end"));
        }
        Ok(State::Padding { left, data_size })
    }

    fn advance(&mut self, count: usize) {
        self.buffer.advance(count);
        self.offset += count as u64;
    }
}

/// Where the data of version 1 end: nowhere but with the stream.
const NO_END: u64 = u64::MAX;

const BAD_LENGTH: &str = "a length is not a number in its shortest form";

/// What is read of a header. Anything else in it is passed over and not held: a value of a few bytes would take hundreds.
#[derive(Deserialize)]
struct Header {
    version: Option<u64>,
    roots: Option<Vec<Cid>>,
}

/// Reads the roots out of a header.
fn roots(bytes: &[u8]) -> Result<Vec<Cid>, String> {
    let header: Header = codec::decode(bytes).map_err(|e: DecodeError| e.to_string())?;
    match header.version {
        Some(1) => {}
        Some(version) => return Err(format!("its version is {version}")),
        None => return Err("it has no version".to_owned()),
    }
    header.roots.ok_or_else(|| "it has no list of roots".to_owned())
}

/// Reads and checks the block of a section.
fn block(section: &[u8], offset: u64) -> Result<Block, CarError> {
    let (cid, data) = crate::varint::decode_cid(section)
        .map_err(|_| CarError::Section { offset, reason: "a section does not begin with a CID that can be checked" })?;
    // A copy: a slice would keep all that was pushed with it.
    Block::verify(cid, Bytes::copy_from_slice(data)).map_err(|source| CarError::Block { offset, source })
}
