//! What goes over the wire.

use bytes::Bytes;
use iptl_dag::{Block, Cid, MAX_BLOCK_SIZE, Multihash, varint};

use crate::protobuf::{Fields, Malformed, Value, put_bytes, put_raw_varint, put_varint};
use crate::{MAX_CID_SIZE, MAX_ITEMS};

/// Most bytes that an entry or a presence takes beside its CID.
const ITEM_OVERHEAD: usize = 32;

/// Most bytes that a payload takes beside its data: four varints and two lengths.
const PAYLOAD_OVERHEAD: usize = 56;

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No protobuf, or a field of another type.
    #[error("malformed protobuf at byte {at}")]
    Malformed {
        /// Offset within the message, or within the part of it that is malformed.
        at: usize,
    },
    /// A field has another type than it should.
    #[error("field {number} of {part} has another type")]
    Type {
        /// Part of the message.
        part: &'static str,
        /// Number of the field.
        number: u64,
    },
    /// A block is larger than any may be.
    #[error("a block of {size} bytes is larger than {MAX_BLOCK_SIZE}")]
    BlockTooLarge {
        /// Size in bytes.
        size: usize,
    },
    /// There is more in it than in any message that is honest.
    #[error("more than {MAX_ITEMS} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
    },
}

impl From<Malformed> for MessageError {
    fn from(malformed: Malformed) -> MessageError {
        MessageError::Malformed { at: malformed.at }
    }
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The entries are all that the sender wants, instead of a change to that.
    pub full: bool,
    /// Changes to what the sender wants.
    pub entries: Vec<Entry>,
    /// Blocks, unverified.
    pub payload: Vec<Payload>,
    /// What the sender has, and what not.
    pub presences: Vec<Presence>,
    /// Bytes that the sender would send next, as it says.
    pub pending_bytes: u32,
    /// Entries, presences and blocks that were read over: their CIDs cannot be read here, or there were too many.
    pub skipped: usize,
}

/// A change to what the sender wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What of.
    pub cid: Cid,
    /// Larger comes first.
    pub priority: i32,
    /// What is wanted.
    pub ask: Ask,
    /// Wants to hear it where the block is lacking.
    pub send_dont_have: bool,
}

/// What is wanted of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Nothing any more.
    Cancel,
    /// Whether it is there.
    Have,
    /// Its bytes.
    Block,
}

/// A block as it was sent: bytes, and what to hash them with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What makes a CID of their hash.
    pub prefix: Prefix,
    /// The bytes; at most [`MAX_BLOCK_SIZE`].
    pub data: Bytes,
}

/// A CID without its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Version of the CID.
    pub version: u64,
    /// Codec of the content.
    pub codec: u64,
    /// Multihash code.
    pub hash: u64,
    /// Length of the digest in bytes.
    pub digest_size: u64,
}

/// Whether the sender has a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Which.
    pub cid: Cid,
    /// It has.
    pub is_here: bool,
}

/// What arrived, with every block hashed: what the cores take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// The entries are all that the sender wants.
    pub full: bool,
    /// Changes to what the sender wants.
    pub entries: Vec<Entry>,
    /// Blocks under the hashes of their bytes. The codec of their CIDs says nothing.
    pub blocks: Vec<Block>,
    /// Blocks whose hash function cannot be computed here, so that nobody here has asked for them.
    pub unverifiable: u32,
    /// What the sender has, and what not.
    pub presences: Vec<Presence>,
    /// Entries that were read over.
    pub skipped: usize,
}

impl Message {
    /// Decodes a message; never panics, whatever the bytes, and takes memory in proportion to them.
    pub fn decode(bytes: &Bytes) -> Result<Message, MessageError> {
        const PART: &str = "a message";
        let mut message = Message::default();
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(wantlist)) => message.decode_wantlist(wantlist)?,
                // Blocks of Bitswap 1.0, which have no prefix.
                (2, Value::Bytes(data)) => message.add_payload(Some(Prefix::V0), data, bytes)?,
                (3, Value::Bytes(payload)) => message.decode_payload(payload, bytes)?,
                (4, Value::Bytes(presence)) => message.decode_presence(presence)?,
                (5, Value::Varint(pending)) => message.pending_bytes = u32::try_from(pending).unwrap_or(u32::MAX),
                (1..=5, _) => return Err(MessageError::Type { part: PART, number }),
                // Later versions add fields.
                _ => {}
            }
        }
        Ok(message)
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        let mut part = Vec::new();
        if self.full || !self.entries.is_empty() {
            let mut wantlist = Vec::with_capacity(self.entries.len() * 48 + 2);
            for entry in &self.entries {
                part.clear();
                entry.encode(&mut part);
                put_bytes(&mut wantlist, 1, &part);
            }
            if self.full {
                put_varint(&mut wantlist, 2, 1);
            }
            put_bytes(&mut out, 1, &wantlist);
        }
        for payload in &self.payload {
            part.clear();
            payload.prefix.encode(&mut part);
            // Written by hand, so that the bytes of a block are copied once.
            let length = field_size(part.len()) + field_size(payload.data.len());
            put_raw_varint(&mut out, 3 << 3 | 2);
            put_raw_varint(&mut out, length as u64);
            put_bytes(&mut out, 1, &part);
            put_bytes(&mut out, 2, &payload.data);
        }
        for presence in &self.presences {
            part.clear();
            put_bytes(&mut part, 1, &presence.cid.to_bytes());
            if !presence.is_here {
                put_varint(&mut part, 2, 1);
            }
            put_bytes(&mut out, 4, &part);
        }
        if self.pending_bytes > 0 {
            put_varint(&mut out, 5, u64::from(self.pending_bytes));
        }
        out
    }

    /// Returns at least the length of the encoded message in bytes, and not much more.
    pub fn size(&self) -> usize {
        let named = |cid: &Cid| cid.encoded_len() + ITEM_OVERHEAD;
        let entries: usize = self.entries.iter().map(|entry| named(&entry.cid)).sum();
        let presences: usize = self.presences.iter().map(|presence| named(&presence.cid)).sum();
        let payload: usize = self.payload.iter().map(Payload::size).sum();
        entries + presences + payload + ITEM_OVERHEAD
    }

    /// Says whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        !self.full && self.entries.is_empty() && self.payload.is_empty() && self.presences.is_empty()
    }

    /// Hashes every block: a few milliseconds for a message that is full, so not for a thread that others wait for.
    pub fn check(self) -> Incoming {
        let mut incoming = Incoming {
            full: self.full,
            entries: self.entries,
            presences: self.presences,
            skipped: self.skipped,
            ..Incoming::default()
        };
        for payload in self.payload {
            match payload.verify() {
                Some(block) => incoming.blocks.push(block),
                None => incoming.unverifiable += 1,
            }
        }
        incoming
    }

    fn decode_wantlist(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        const PART: &str = "a wantlist";
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(_)) if self.entries.len() >= MAX_ITEMS => self.skipped += 1,
                (1, Value::Bytes(entry)) => match Entry::decode(entry)? {
                    Some(entry) => self.entries.push(entry),
                    None => self.skipped += 1,
                },
                (2, Value::Varint(full)) => self.full = full != 0,
                (1 | 2, _) => return Err(MessageError::Type { part: PART, number }),
                _ => {}
            }
        }
        Ok(())
    }

    fn decode_payload(&mut self, bytes: &[u8], whole: &Bytes) -> Result<(), MessageError> {
        const PART: &str = "a block";
        let (mut prefix, mut data) = (None, &[][..]);
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => prefix = Prefix::decode(bytes),
                (2, Value::Bytes(bytes)) => data = bytes,
                (1 | 2, _) => return Err(MessageError::Type { part: PART, number }),
                _ => {}
            }
        }
        self.add_payload(prefix, data, whole)
    }

    fn add_payload(&mut self, prefix: Option<Prefix>, data: &[u8], whole: &Bytes) -> Result<(), MessageError> {
        if data.len() > MAX_BLOCK_SIZE {
            return Err(MessageError::BlockTooLarge { size: data.len() });
        }
        if self.payload.len() >= MAX_ITEMS {
            return Err(MessageError::TooMany { what: "blocks" });
        }
        // One without a prefix cannot be told from one with a prefix of hash functions that are unknown here.
        let prefix = prefix.unwrap_or(Prefix { version: 1, codec: 0, hash: u64::MAX, digest_size: 0 });
        // A small part of a message would keep all of it in memory.
        let data = if data.len() >= whole.len() / 2 { whole.slice_ref(data) } else { Bytes::copy_from_slice(data) };
        self.payload.push(Payload { prefix, data });
        Ok(())
    }

    fn decode_presence(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        const PART: &str = "a presence";
        let (mut cid, mut is_here) = (None, true);
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => cid = whole_cid(bytes),
                (2, Value::Varint(kind)) => is_here = kind == 0,
                (1 | 2, _) => return Err(MessageError::Type { part: PART, number }),
                _ => {}
            }
        }
        match cid {
            Some(_) if self.presences.len() >= MAX_ITEMS => return Err(MessageError::TooMany { what: "presences" }),
            Some(cid) => self.presences.push(Presence { cid, is_here }),
            None => self.skipped += 1,
        }
        Ok(())
    }
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.cid.to_bytes());
        if self.priority != 0 {
            // A negative number goes as the 64 bits that it has when widened.
            put_varint(out, 2, i64::from(self.priority) as u64);
        }
        match self.ask {
            Ask::Cancel => put_varint(out, 3, 1),
            Ask::Have => put_varint(out, 4, 1),
            Ask::Block => {}
        }
        if self.send_dont_have {
            put_varint(out, 5, 1);
        }
    }

    /// Decodes an entry; none where its CID cannot be read here.
    fn decode(bytes: &[u8]) -> Result<Option<Entry>, MessageError> {
        const PART: &str = "an entry";
        let (mut cid, mut priority, mut is_cancel, mut is_have, mut send_dont_have) = (None, 0, false, false, false);
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => cid = whole_cid(bytes),
                (2, Value::Varint(number)) => priority = number as i64 as i32,
                (3, Value::Varint(flag)) => is_cancel = flag != 0,
                (4, Value::Varint(kind)) => is_have = kind == 1,
                (5, Value::Varint(flag)) => send_dont_have = flag != 0,
                (1..=5, _) => return Err(MessageError::Type { part: PART, number }),
                _ => {}
            }
        }
        let ask = match (is_cancel, is_have) {
            (true, _) => Ask::Cancel,
            (false, true) => Ask::Have,
            (false, false) => Ask::Block,
        };
        Ok(cid.map(|cid| Entry { cid, priority, ask, send_dont_have }))
    }
}

impl Payload {
    /// Makes the payload that answers a want for `cid`.
    pub fn new(cid: &Cid, data: Bytes) -> Payload {
        Payload { prefix: Prefix::of(cid), data }
    }

    /// Hashes the bytes as the prefix says; none where that cannot be done here.
    pub fn verify(self) -> Option<Block> {
        Block::hashed_to(self.prefix.hash, usize::try_from(self.prefix.digest_size).ok()?, self.data)
    }

    /// Returns at least the length of the encoded payload in bytes.
    pub(crate) fn size(&self) -> usize {
        self.data.len() + PAYLOAD_OVERHEAD
    }
}

impl Prefix {
    /// What every CIDv0 has.
    const V0: Prefix = Prefix { version: 0, codec: 0x70, hash: 0x12, digest_size: 32 };

    /// Takes the digest off a CID.
    pub fn of(cid: &Cid) -> Prefix {
        let hash = cid.hash();
        Prefix {
            version: cid.version().into(),
            codec: cid.codec(),
            hash: hash.code(),
            digest_size: u64::from(hash.size()),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.version, self.codec, self.hash, self.digest_size] {
            put_raw_varint(out, number);
        }
    }

    fn decode(bytes: &[u8]) -> Option<Prefix> {
        let mut numbers = Fields::of(bytes);
        let mut next = || numbers.varint().ok();
        let prefix = Prefix { version: next()?, codec: next()?, hash: next()?, digest_size: next()? };
        (numbers.is_at_end() && prefix.version <= 1).then_some(prefix)
    }
}

/// Says whether blocks under this hash may go over the wire: the digest is long enough, and is not the block itself.
pub(crate) fn is_sendable(hash: &Multihash) -> bool {
    hash.code() != 0 && hash.digest().len() >= crate::MIN_DIGEST_SIZE
}

/// Length of a field whose number is below 16.
fn field_size(length: usize) -> usize {
    1 + varint::encoded_len(length as u64) + length
}

/// Reads bytes that are one CID and nothing else.
fn whole_cid(bytes: &[u8]) -> Option<Cid> {
    if bytes.len() > MAX_CID_SIZE {
        return None;
    }
    varint::whole_cid(bytes).ok()
}
