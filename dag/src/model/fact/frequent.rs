//! A second way to read the facts that long logs consist of: those that say that receipts came, and snapshots of such.
//!
//! The decoder of all nodes takes microseconds for a fact, most of them for names of fields. These have one form each, so
//! that they can be compared where they stand.

use cid::Cid;

use crate::codec::{self, after_first};
use crate::model::{Epoch, ExecutionId, Fact, FactKind, Recorded, Signed};
use crate::{Multihash, PeerId};

/// Multihash code of BLAKE3, whose digests have 32 bytes here.
const BLAKE3: u64 = 0x1e;

/// Bytes that a fact within a snapshot takes at least.
const LEAST_RECORDED: usize = 32;

/// Reads the bytes of a fact that says that receipts came, or of a snapshot; none where they are something else, or have
/// another form than the canonical one down to each fact within a snapshot.
///
/// What it reads is what the decoder of all nodes reads. Never panics, whatever the bytes, and takes memory in proportion
/// to them.
pub fn read_frequent(bytes: &[u8]) -> Option<Signed<Fact>> {
    let (body, signer, signature) = read(bytes)?;
    Some(Signed { body, signer, signature: signature.to_vec() })
}

/// Reads as [`read_frequent`] does what is signed, and who signed it, for whoever needs the signature of the last fact
/// of many alone.
pub fn read_frequent_body(bytes: &[u8]) -> Option<(Fact, PeerId)> {
    read(bytes).map(|(body, signer, _)| (body, signer))
}

#[inline]
fn read(bytes: &[u8]) -> Option<(Fact, PeerId, &[u8; 64])> {
    let mut reader = Reader(bytes);
    let (seq, has_prev) = reader.beginning()?;
    let kind = reader.received().or_else(|| reader.snapshot())?;
    let prev = match has_prev {
        true => {
            reader.literal(b"\x64prev")?;
            Some(reader.cid()?)
        }
        false => None,
    };
    reader.literal(b"\x65at_ms")?;
    let at_ms = reader.number()?;
    reader.literal(b"\x65epoch")?;
    let epoch = reader.epoch()?;
    reader.literal(b"\x69execution")?;
    let execution = ExecutionId(reader.cid()?);
    reader.literal(b"\x66signer")?;
    let signer = reader.peer()?;
    reader.literal(b"\x69signature\x58\x40")?;
    let signature = reader.take::<64>()?;
    if !reader.0.is_empty() {
        return None;
    }
    Some((Fact { execution, seq, prev, epoch, at_ms, kind }, signer, signature))
}

/// Says of the bytes of a fact which part of a snapshot it is, and whether it is the last one; none where it is no
/// snapshot. Only the beginning is looked at.
pub fn snapshot_part(bytes: &[u8]) -> Option<(u32, bool)> {
    let mut reader = Reader(bytes);
    reader.beginning()?;
    reader.part()
}

/// Bytes that were not read yet.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn literal(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// Reads a fact up to what it says; returns its position, and whether it links the one before it.
    fn beginning(&mut self) -> Option<(u64, bool)> {
        self.literal(b"\xa1\x6biptl.fact/1\xa3\x64body")?;
        let has_prev = match self.take::<1>()? {
            [0xa5] => false,
            [0xa6] => true,
            _ => return None,
        };
        self.literal(b"\x63seq")?;
        let seq = self.number()?;
        self.literal(b"\x64kind")?;
        Some((seq, has_prev))
    }

    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.head(0)
    }

    /// Reads the head of a value of a major type, in its shortest form.
    fn head(&mut self, major: u8) -> Option<u64> {
        let [head] = *self.take::<1>()?;
        if head >> 5 != major {
            return None;
        }
        let (number, least) = match head & 0x1f {
            small @ 0..=23 => (u64::from(small), 0),
            24 => (u64::from(self.take::<1>()?[0]), 24),
            25 => (u64::from(u16::from_be_bytes(*self.take()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(*self.take()?)), 1 << 16),
            27 => (u64::from_be_bytes(*self.take()?), 1 << 32),
            _ => return None,
        };
        (number >= least).then_some(number)
    }

    /// Reads a link of version 1 with BLAKE3 and a codec of one byte, as nearly all are.
    fn cid(&mut self) -> Option<Cid> {
        self.literal(b"\xd8\x2a\x58\x25\x00\x01")?;
        let [codec, code, size] = *self.take()?;
        if codec >= 0x80 || u64::from(code) != BLAKE3 || size != 32 {
            return None;
        }
        let hash = Multihash::wrap(BLAKE3, self.take::<32>()?).ok()?;
        Some(Cid::new_v1(u64::from(codec), hash))
    }

    fn peer(&mut self) -> Option<PeerId> {
        self.literal(b"\x58\x26")?;
        PeerId::from_bytes(self.take::<38>()?).ok()
    }

    fn epoch(&mut self) -> Option<Epoch> {
        self.literal(b"\xa2\x64peer")?;
        let peer = self.peer()?;
        self.literal(b"\x67counter")?;
        Some(Epoch { counter: self.number()?, peer })
    }

    /// Reads what a fact says where that is that receipts came; otherwise nothing was read.
    fn received(&mut self) -> Option<FactKind> {
        let mut ahead = *self;
        ahead.literal(b"\xa1\x68received\xa3\x65count")?;
        let count = u32::try_from(ahead.number()?).ok()?;
        ahead.literal(b"\x65shard")?;
        let shard = ahead.cid()?;
        ahead.literal(b"\x66lablet")?;
        let lablet = ahead.peer()?;
        *self = ahead;
        Some(FactKind::Received { lablet, shard, count })
    }

    /// Reads the beginning of a part of a snapshot.
    fn part(&mut self) -> Option<(u32, bool)> {
        self.literal(b"\xa1\x68snapshot\xa3\x64last")?;
        let last = match self.take::<1>()? {
            [0xf4] => false,
            [0xf5] => true,
            _ => return None,
        };
        self.literal(b"\x64part")?;
        Some((u32::try_from(self.number()?).ok()?, last))
    }

    fn snapshot(&mut self) -> Option<FactKind> {
        let (part, last) = self.part()?;
        self.literal(b"\x65facts")?;
        let count = usize::try_from(self.head(4)?).ok()?;
        let mut facts = Vec::with_capacity(count.min(self.0.len() / LEAST_RECORDED));
        for _ in 0..count {
            facts.push(self.recorded()?);
        }
        Some(FactKind::Snapshot { part, last, facts })
    }

    fn recorded(&mut self) -> Option<Recorded> {
        let mut ahead = *self;
        if let Some(recorded) = ahead.recorded_receipts() {
            *self = ahead;
            return Some(recorded);
        }
        let rest = after_first(self.0).ok()?;
        let recorded = codec::decode_canonical(&self.0[..self.0.len() - rest.len()]).ok()?;
        self.0 = rest;
        Some(recorded)
    }

    fn recorded_receipts(&mut self) -> Option<Recorded> {
        self.literal(b"\xa3\x64kind")?;
        let kind = self.received()?;
        self.literal(b"\x65at_ms")?;
        let at_ms = self.number()?;
        self.literal(b"\x65epoch")?;
        Some(Recorded { epoch: self.epoch()?, at_ms, kind })
    }
}
