//! The two protobuf messages of UnixFS, in the one canonical form that gives every file its CID.
//!
//! A dag-pb node is written with its links before its data although the field numbers say otherwise: that is how the
//! first implementation wrote them, and CIDs have depended on it ever since.

use crate::{Cid, varint};

/// Why bytes are not a dag-pb node or a UnixFS message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PbError {
    /// A varint or a length runs past the end, or is written longer than it need be.
    #[error("truncated or malformed protobuf at byte {at}")]
    Malformed {
        /// Offset within the message.
        at: usize,
    },
    /// A field that the message does not have, twice, out of order or of another type.
    #[error("unexpected protobuf field {number} in {message}")]
    Field {
        /// Message in question.
        message: &'static str,
        /// Number of the field.
        number: u64,
    },
    /// A link without a hash, or with one that is not a CID.
    #[error("a link has no valid CID")]
    Link,
    /// A name that is not UTF-8.
    #[error("a link's name is not UTF-8")]
    Name,
    /// A UnixFS message without a type, or with one that nobody defined.
    #[error("unknown UnixFS type {kind}")]
    Kind {
        /// Type number.
        kind: u64,
    },
}

/// A dag-pb node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PbNode {
    /// Links in the order of the block.
    pub links: Vec<PbLink>,
    /// Payload; for UnixFS a [`PbUnixFs`].
    pub data: Option<Vec<u8>>,
}

/// A link of a dag-pb node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PbLink {
    /// Target.
    pub cid: Cid,
    /// Name; empty within files. A link may also have none, which other writers do.
    pub name: Option<String>,
    /// Bytes of all blocks under the target, as far as the writer knew.
    pub tsize: Option<u64>,
}

impl PbNode {
    /// Encodes the node; the links are written as they stand, so whoever names them sorts them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.links.len() * 56 + self.data.as_ref().map_or(0, Vec::len) + 16);
        let mut link_bytes = Vec::with_capacity(64);
        for link in &self.links {
            link_bytes.clear();
            put_bytes(&mut link_bytes, 1, &link.cid.to_bytes());
            if let Some(name) = &link.name {
                put_bytes(&mut link_bytes, 2, name.as_bytes());
            }
            if let Some(tsize) = link.tsize {
                put_varint(&mut link_bytes, 3, tsize);
            }
            put_bytes(&mut out, 2, &link_bytes);
        }
        if let Some(data) = &self.data {
            put_bytes(&mut out, 1, data);
        }
        out
    }

    /// Decodes a node; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<PbNode, PbError> {
        const MESSAGE: &str = "a dag-pb node";
        let mut node = PbNode::default();
        let mut links_closed = false;
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Bytes(data)) if node.data.is_none() => {
                    node.data = Some(data.to_vec());
                    links_closed = !node.links.is_empty();
                }
                (2, Wire::Bytes(link)) if !links_closed => node.links.push(PbLink::decode(link)?),
                _ => return Err(PbError::Field { message: MESSAGE, number }),
            }
        }
        Ok(node)
    }
}

impl PbLink {
    fn decode(bytes: &[u8]) -> Result<PbLink, PbError> {
        const MESSAGE: &str = "a dag-pb link";
        let (mut cid, mut name, mut tsize) = (None, None, None);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Bytes(hash)) if cid.is_none() && name.is_none() && tsize.is_none() => {
                    cid = Some(varint::whole_cid(hash).map_err(|_| PbError::Link)?);
                }
                (2, Wire::Bytes(text)) if name.is_none() && tsize.is_none() => {
                    name = Some(std::str::from_utf8(text).map_err(|_| PbError::Name)?.to_owned());
                }
                (3, Wire::Varint(size)) if tsize.is_none() => tsize = Some(size),
                _ => return Err(PbError::Field { message: MESSAGE, number }),
            }
        }
        Ok(PbLink { cid: cid.ok_or(PbError::Link)?, name, tsize })
    }
}

/// What a UnixFS node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PbKind {
    /// A leaf of a file, from before leaves were raw blocks.
    Raw,
    /// A directory in one block.
    Directory,
    /// A file.
    File,
    /// Metadata, which nobody writes.
    Metadata,
    /// A symbolic link.
    Symlink,
    /// A shard of a directory.
    HamtShard,
}

impl PbKind {
    const fn number(self) -> u64 {
        match self {
            PbKind::Raw => 0,
            PbKind::Directory => 1,
            PbKind::File => 2,
            PbKind::Metadata => 3,
            PbKind::Symlink => 4,
            PbKind::HamtShard => 5,
        }
    }

    const fn of(number: u64) -> Option<PbKind> {
        match number {
            0 => Some(PbKind::Raw),
            1 => Some(PbKind::Directory),
            2 => Some(PbKind::File),
            3 => Some(PbKind::Metadata),
            4 => Some(PbKind::Symlink),
            5 => Some(PbKind::HamtShard),
            _ => None,
        }
    }
}

/// The UnixFS message in the data of a dag-pb node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PbUnixFs {
    /// What the node is.
    pub kind: PbKind,
    /// Content that stands in the node itself; a symlink's target; the slots of a shard that are taken.
    pub data: Option<Vec<u8>>,
    /// Size of the file under this node in bytes.
    pub file_size: Option<u64>,
    /// File bytes under each link.
    pub block_sizes: Vec<u64>,
    /// Multihash code of the function that a shard's names are placed by.
    pub hash_type: Option<u64>,
    /// Slots of a shard.
    pub fanout: Option<u64>,
    /// Mode and time.
    pub metadata: Metadata,
}

/// What a file system knows of a file beside its content. Nothing of it is in a node unless its writer wanted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions, in the lowest 12 bits; what the others say is not known.
    pub mode: Option<u32>,
    /// Time of the last modification.
    pub modified: Option<Modified>,
}

/// A time of modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modified {
    /// Seconds since 1970, in UTC.
    pub seconds: i64,
    /// Nanoseconds after that, less than a second.
    pub nanos: u32,
}

/// Nanoseconds of a second.
const SECOND_NANOS: u32 = 1_000_000_000;

impl Metadata {
    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Metadata::default()
    }
}

impl Modified {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        put_varint(&mut out, 1, self.seconds.cast_unsigned());
        if self.nanos > 0 {
            put_fixed32(&mut out, 2, self.nanos);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Modified, PbError> {
        const MESSAGE: &str = "a time of UnixFS";
        let (mut seconds, mut nanos) = (None, 0);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Varint(value)) => seconds = Some(value.cast_signed()),
                (2, Wire::Fixed32(value)) if (1..SECOND_NANOS).contains(&value) => nanos = value,
                (1 | 2, _) => return Err(PbError::Field { message: MESSAGE, number }),
                _ => {}
            }
        }
        let seconds = seconds.ok_or(PbError::Field { message: MESSAGE, number: 1 })?;
        Ok(Modified { seconds, nanos })
    }
}

impl PbUnixFs {
    /// Returns a message with nothing but its kind.
    pub fn new(kind: PbKind) -> PbUnixFs {
        PbUnixFs {
            kind,
            data: None,
            file_size: None,
            block_sizes: Vec::new(),
            hash_type: None,
            fanout: None,
            metadata: Metadata::default(),
        }
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48 + self.data.as_ref().map_or(0, Vec::len) + self.block_sizes.len() * 5);
        put_varint(&mut out, 1, self.kind.number());
        if let Some(data) = &self.data {
            put_bytes(&mut out, 2, data);
        }
        if let Some(size) = self.file_size {
            put_varint(&mut out, 3, size);
        }
        for size in &self.block_sizes {
            put_varint(&mut out, 4, *size);
        }
        let Metadata { mode, modified } = self.metadata;
        for (number, value) in [(5, self.hash_type), (6, self.fanout), (7, mode.map(u64::from))] {
            if let Some(value) = value {
                put_varint(&mut out, number, value);
            }
        }
        if let Some(modified) = modified {
            put_bytes(&mut out, 8, &modified.encode());
        }
        out
    }

    /// Decodes a message; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<PbUnixFs, PbError> {
        const MESSAGE: &str = "a UnixFS message";
        let mut kind = None;
        // The kind is set at the end, once it is known.
        let mut message = PbUnixFs::new(PbKind::Raw);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            let field = PbError::Field { message: MESSAGE, number };
            match (number, wire) {
                (1, Wire::Varint(number)) => kind = Some(PbKind::of(number).ok_or(PbError::Kind { kind: number })?),
                (2, Wire::Bytes(bytes)) => message.data = Some(bytes.to_vec()),
                (3, Wire::Varint(size)) => message.file_size = Some(size),
                (4, Wire::Varint(size)) => message.block_sizes.push(size),
                (4, Wire::Bytes(packed)) => {
                    let mut sizes = Reader::new(packed);
                    while !sizes.rest.is_empty() {
                        message.block_sizes.push(sizes.varint()?);
                    }
                }
                (5, Wire::Varint(code)) => message.hash_type = Some(code),
                (6, Wire::Varint(fanout)) => message.fanout = Some(fanout),
                (7, Wire::Varint(mode)) => message.metadata.mode = Some(u32::try_from(mode).map_err(|_| field)?),
                (8, Wire::Bytes(bytes)) => message.metadata.modified = Some(Modified::decode(bytes)?),
                (1..=8, _) => return Err(field),
                // Later versions of UnixFS add fields; a reader of content can do without them.
                _ => {}
            }
        }
        message.kind = kind.ok_or(PbError::Kind { kind: u64::MAX })?;
        Ok(message)
    }
}

fn put_varint(out: &mut Vec<u8>, number: u64, value: u64) {
    varint::encode(number << 3, out);
    varint::encode(value, out);
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint::encode(number << 3 | 2, out);
    varint::encode(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_fixed32(out: &mut Vec<u8>, number: u64, value: u32) {
    varint::encode(number << 3 | 5, out);
    out.extend_from_slice(&value.to_le_bytes());
}

enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64,
}

struct Reader<'a> {
    rest: &'a [u8],
    size: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, size: bytes.len() }
    }

    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, PbError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => Wire::Fixed32(self.take(4)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))),
            _ => return Err(self.malformed()),
        };
        Ok(Some((key >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64, PbError> {
        let (value, rest) = varint::decode(self.rest).map_err(|_| self.malformed())?;
        self.rest = rest;
        Ok(value)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PbError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(head)
    }

    fn malformed(&self) -> PbError {
        PbError::Malformed { at: self.size - self.rest.len() }
    }
}
