//! The two protobuf messages of UnixFS, in the one canonical form that gives every file its CID.
//!
//! A dag-pb node is written with its links before its data although the field numbers say otherwise: that is how the
//! first implementation wrote them, and CIDs have depended on it ever since.

use crate::Cid;

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
                    cid = Some(whole_cid(hash).ok_or(PbError::Link)?);
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
///
/// Mode, time and the parameters of shards are read over: the lab writes none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PbUnixFs {
    /// What the node is.
    pub kind: PbKind,
    /// Content that stands in the node itself; a symlink's target.
    pub data: Option<Vec<u8>>,
    /// Size of the file under this node in bytes.
    pub file_size: Option<u64>,
    /// File bytes under each link.
    pub block_sizes: Vec<u64>,
}

impl PbUnixFs {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.data.as_ref().map_or(0, Vec::len) + self.block_sizes.len() * 5);
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
        out
    }

    /// Decodes a message; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<PbUnixFs, PbError> {
        const MESSAGE: &str = "a UnixFS message";
        let (mut kind, mut data, mut file_size, mut block_sizes) = (None, None, None, Vec::new());
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Varint(number)) => kind = Some(PbKind::of(number).ok_or(PbError::Kind { kind: number })?),
                (2, Wire::Bytes(bytes)) => data = Some(bytes.to_vec()),
                (3, Wire::Varint(size)) => file_size = Some(size),
                (4, Wire::Varint(size)) => block_sizes.push(size),
                (4, Wire::Bytes(packed)) => {
                    let mut sizes = Reader::new(packed);
                    while !sizes.rest.is_empty() {
                        block_sizes.push(sizes.varint()?);
                    }
                }
                (1..=4, _) => return Err(PbError::Field { message: MESSAGE, number }),
                // Later versions of UnixFS add fields; a reader of content can do without them.
                _ => {}
            }
        }
        let kind = kind.ok_or(PbError::Kind { kind: u64::MAX })?;
        Ok(PbUnixFs { kind, data, file_size, block_sizes })
    }
}

fn whole_cid(bytes: &[u8]) -> Option<Cid> {
    let mut rest = bytes;
    let cid = Cid::read_bytes(&mut rest).ok()?;
    rest.is_empty().then_some(cid)
}

fn put_varint(out: &mut Vec<u8>, number: u64, value: u64) {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    out.extend_from_slice(unsigned_varint::encode::u64(number << 3, &mut buffer));
    out.extend_from_slice(unsigned_varint::encode::u64(value, &mut buffer));
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    out.extend_from_slice(unsigned_varint::encode::u64(number << 3 | 2, &mut buffer));
    out.extend_from_slice(unsigned_varint::encode::u64(bytes.len() as u64, &mut buffer));
    out.extend_from_slice(bytes);
}

enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
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
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return Err(self.malformed()),
        };
        Ok(Some((key >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64, PbError> {
        let (value, rest) = unsigned_varint::decode::u64(self.rest).map_err(|_| self.malformed())?;
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
