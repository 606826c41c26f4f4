//! Sharded directories: names spread over a tree of nodes by their hash.
//!
//! Each level takes the next bits of a name's hash and gives the name a slot. A slot holds the entry itself where it is
//! alone, or a node for the next level. What a stranger wrote is held to that: an entry whose hash does not lead to where
//! it stands is refused, so that no two paths lead to one entry and a few blocks cannot be walked as billions.

use super::Profile;
use super::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use super::read::{DirEntry, UnixFsError};
use super::{DirectoryError, Entry, Metadata};
use crate::{Block, Cid, Codec, MAX_BLOCK_SIZE};

/// Slots of a node that is written, from the profiles. Each level takes eight bits of the hash.
const WIDTH: usize = 256;

/// Fewest and most slots of a node that is read: the bounds of other writers.
const WIDTHS: std::ops::RangeInclusive<u64> = 8..=1024;

/// Bits of a name's hash.
const HASH_BITS: u32 = 64;

/// Multihash code of the first half of MurmurHash3 x64-128, the one function that sharded directories use.
const MURMUR3_X64_64: u64 = 0x22;

/// A node of a sharded directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Bits of the hash that choose a slot.
    bits: u32,
    /// In the order of their slots.
    children: Vec<(u32, Child)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Child {
    Entry(DirEntry),
    Shard(Cid),
}

/// What a shard holds for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Entry(&'a DirEntry),
    /// The search goes on in this node, one level further down.
    Shard(Cid),
    Nothing,
}

/// Where in the tree a node stands: the bits of the hash that everything below it begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    used: u32,
    prefix: u64,
}

/// What a node holds.
pub(super) struct Parts {
    /// Entries that belong there, in the order of their slots.
    pub(super) entries: Vec<DirEntry>,
    /// Nodes below with their places, in the order of their slots.
    pub(super) shards: Vec<(Cid, Place)>,
}

impl Shard {
    pub(super) fn of_node(links: Vec<PbLink>, message: &PbUnixFs) -> Result<Shard, UnixFsError> {
        let malformed = |reason| Err(UnixFsError::Shard { reason });
        if message.hash_type != Some(MURMUR3_X64_64) {
            return malformed("its hash function is not the one that is in use");
        }
        let width = message.fanout.unwrap_or(0);
        if !WIDTHS.contains(&width) || !width.is_power_of_two() {
            return malformed("its width is not one that is in use");
        }
        let bitfield = message.data.as_deref().unwrap_or_default();
        // One digit for each four bits of the highest slot.
        let digits = usize::try_from((width.ilog2()).div_ceil(4)).unwrap_or(usize::MAX);
        let mut children: Vec<(u32, Child)> = Vec::with_capacity(links.len());
        for link in links {
            let name = link.name.unwrap_or_default();
            let Some((slot, name)) = slot_of_name(&name, digits) else {
                return malformed("a link is not named by its slot");
            };
            if children.last().is_some_and(|(last, _)| *last >= slot) {
                return malformed("its links are out of order");
            }
            if u64::from(slot) >= width || !bit(bitfield, slot) {
                return malformed("a link has a slot that is free");
            }
            let child = if name.is_empty() {
                Child::Shard(link.cid)
            } else {
                let total_size = link.tsize.unwrap_or(0);
                Child::Entry(DirEntry { name: name.to_owned(), cid: link.cid, total_size })
            };
            children.push((slot, child));
        }
        // Every link has a bit of its own, so the numbers tell whether each bit has a link.
        if bitfield.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() != children.len() {
            return malformed("a slot that is taken has no link");
        }
        Ok(Shard { bits: width.ilog2(), children })
    }

    /// Returns the entries that stand in this node itself, in the order of their slots.
    pub fn entries(&self) -> impl Iterator<Item = &DirEntry> {
        self.children.iter().filter_map(|(_, child)| match child {
            Child::Entry(entry) => Some(entry),
            Child::Shard(_) => None,
        })
    }

    /// Returns the nodes below this one, in the order of their slots.
    pub fn shards(&self) -> impl Iterator<Item = &Cid> {
        self.children.iter().filter_map(|(_, child)| match child {
            Child::Shard(cid) => Some(cid),
            Child::Entry(_) => None,
        })
    }

    /// Looks for a name in this node, which stands at `place`; where the search goes on below, so does `place`.
    pub(crate) fn find(&self, name: &str, place: &mut Place) -> Result<Found<'_>, UnixFsError> {
        let slot = place.slot(name_hash(name.as_bytes()), self.bits)?;
        let child = self.children.iter().find(|(taken, _)| *taken == slot);
        Ok(match child {
            Some((_, Child::Entry(entry))) if entry.name == name => Found::Entry(entry),
            Some((_, Child::Shard(cid))) => {
                *place = place.below(slot, self.bits)?;
                Found::Shard(*cid)
            }
            Some((_, Child::Entry(_))) | None => Found::Nothing,
        })
    }

    /// Takes the node apart, which stands at `place`.
    ///
    /// An entry that does not belong there is refused, and a node without a child that is not the root.
    pub(super) fn take_apart(self, place: Place) -> Result<Parts, UnixFsError> {
        if self.children.is_empty() && place != Place::default() {
            return Err(UnixFsError::Shard { reason: "a node below the root is empty" });
        }
        let mut parts = Parts { entries: Vec::new(), shards: Vec::new() };
        for (slot, child) in self.children {
            let below = place.below(slot, self.bits)?;
            match child {
                Child::Entry(entry) if below.leads_to(name_hash(entry.name.as_bytes())) => parts.entries.push(entry),
                Child::Entry(_) => {
                    return Err(UnixFsError::Shard { reason: "a name stands where its hash does not lead" });
                }
                Child::Shard(cid) => parts.shards.push((cid, below)),
            }
        }
        Ok(parts)
    }
}

impl Place {
    /// Returns the slot of a name's hash in a node that stands here and has a slot for each value of `bits` bits.
    fn slot(self, hash: u64, bits: u32) -> Result<u32, UnixFsError> {
        if self.used + bits > HASH_BITS {
            return Err(UnixFsError::Shard { reason: "it is deeper than a hash is long" });
        }
        let slot = hash << self.used >> (HASH_BITS - bits);
        Ok(u32::try_from(slot).expect("a slot has ten bits at most"))
    }

    /// Returns the place of a slot of the node that stands here.
    fn below(self, slot: u32, bits: u32) -> Result<Place, UnixFsError> {
        // The same check as for the slot of a name.
        self.slot(0, bits)?;
        Ok(Place { used: self.used + bits, prefix: self.prefix << bits | u64::from(slot) })
    }

    fn leads_to(self, hash: u64) -> bool {
        self.used == 0 || hash >> (HASH_BITS - self.used) == self.prefix
    }
}

/// Splits a link's name into its slot and the name of the entry, which a node below does not have.
fn slot_of_name(name: &str, digits: usize) -> Option<(u32, &str)> {
    let (slot, name) = name.split_at_checked(digits)?;
    let is_upper_hex = slot.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    is_upper_hex.then(|| u32::from_str_radix(slot, 16).ok()).flatten().map(|slot| (slot, name))
}

/// Returns whether a slot is taken; the field is one large number, its zero bytes at the front left out.
fn bit(bitfield: &[u8], slot: u32) -> bool {
    let from_end = usize::try_from(slot / 8).unwrap_or(usize::MAX);
    bitfield.iter().rev().nth(from_end).is_some_and(|byte| byte >> (slot % 8) & 1 == 1)
}

/// An entry on its way into a sharded directory.
struct Hashed {
    hash: u64,
    name: String,
    entry: Entry,
}

/// Builds a sharded directory of distinct names and appends its blocks, the root at the end. Returns its CID and the bytes
/// of all blocks under it.
pub(super) fn build(
    profile: Profile,
    entries: impl Iterator<Item = (String, Entry)>,
    metadata: Metadata,
    blocks: &mut Vec<Block>,
) -> Result<(Cid, u64), DirectoryError> {
    let mut entries: Vec<Hashed> =
        entries.map(|(name, entry)| Hashed { hash: name_hash(name.as_bytes()), name, entry }).collect();
    entries.sort_by_key(|entry| entry.hash);
    build_node(profile, &entries, 0, metadata, blocks)
}

/// Builds the node of the entries whose hashes agree in their first `used` bits.
fn build_node(
    profile: Profile,
    entries: &[Hashed],
    used: u32,
    metadata: Metadata,
    blocks: &mut Vec<Block>,
) -> Result<(Cid, u64), DirectoryError> {
    const BITS: u32 = WIDTH.ilog2();
    if let ([first, second, ..], HASH_BITS) = (entries, used) {
        return Err(DirectoryError::Collision { first: first.name.clone(), second: second.name.clone() });
    }
    let slot = |entry: &Hashed| (entry.hash << used >> (HASH_BITS - BITS)) as u8;
    let mut bitfield = [0; WIDTH / 8];
    let mut links = Vec::new();
    for group in entries.chunk_by(|a, b| slot(a) == slot(b)) {
        let slot = slot(&group[0]);
        bitfield[WIDTH / 8 - 1 - usize::from(slot / 8)] |= 1 << (slot % 8);
        links.push(match group {
            [only] => {
                let name = format!("{slot:02X}{}", only.name);
                PbLink { cid: only.entry.cid, name: Some(name), tsize: Some(only.entry.total_size) }
            }
            several => {
                let (cid, size) = build_node(profile, several, used + BITS, Metadata::default(), blocks)?;
                PbLink { cid, name: Some(format!("{slot:02X}")), tsize: Some(size) }
            }
        });
    }
    let zeros = bitfield.iter().take_while(|byte| **byte == 0).count();
    let message = PbUnixFs {
        data: Some(bitfield[zeros..].to_vec()),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(WIDTH as u64),
        metadata,
        ..PbUnixFs::new(PbKind::HamtShard)
    };
    let below = links.iter().filter_map(|link| link.tsize).fold(0, u64::saturating_add);
    let count = links.len();
    let data = PbNode { links, data: Some(message.encode()) }.encode();
    let size = data.len();
    if size > MAX_BLOCK_SIZE {
        return Err(DirectoryError::TooLarge { entries: count, size });
    }
    let block = profile.block(Codec::DagPb, data.into());
    let cid = *block.cid();
    blocks.push(block);
    Ok((cid, below.saturating_add(size as u64)))
}

/// Returns the first half of MurmurHash3 x64-128 under seed 0.
fn name_hash(bytes: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
    let finish = |mut h: u64| {
        h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ h >> 33
    };
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = chunk.split_at(8);
        h1 = (h1 ^ mix1(word(low))).rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ mix2(word(high))).rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = chunks.remainder();
    let (low, high) = tail.split_at(tail.len().min(8));
    h1 ^= mix1(word(low));
    h2 ^= mix2(word(high));
    let size = bytes.len() as u64;
    h1 ^= size;
    h2 ^= size;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hash_as_elsewhere() {
        // From the reference implementation of MurmurHash3_x64_128: the first eight bytes, as other software prints them.
        let rows = [
            ("", 0),
            ("hello", 0xcbd8_a7b3_41bd_9b02),
            ("The quick brown fox jumps over the lazy dog", 0xe34b_bc7b_bc07_1b6c),
        ];
        for (name, hash) in rows {
            assert_eq!(name_hash(name.as_bytes()), hash, "{name:?}");
        }
    }

    #[test]
    fn names_whose_hashes_are_equal_are_refused_and_not_nested_for_ever() {
        let block = Block::new(Codec::Raw, "x");
        let hashed = |name: &str| Hashed { hash: 7, name: name.to_owned(), entry: Entry::of_block(&block) };
        let entries = [hashed("a"), hashed("b")];
        let error = build_node(Profile::Iptl, &entries, 0, Metadata::default(), &mut Vec::new()).expect_err("equal");
        assert_eq!(error, DirectoryError::Collision { first: "a".into(), second: "b".into() });
    }

    #[test]
    fn place_is_told_from_the_hash_to_its_last_bit() {
        let hash = 0x0123_4567_89ab_cdef;
        let mut place = Place::default();
        for expected in [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef] {
            assert!(place.leads_to(hash));
            let slot = place.slot(hash, 8).expect("bits are left");
            assert_eq!(slot, expected);
            assert!(!place.below(slot ^ 1, 8).expect("bits are left").leads_to(hash));
            place = place.below(slot, 8).expect("bits are left");
        }
        assert!(place.leads_to(hash) && !place.leads_to(hash ^ 1));
        assert!(place.slot(hash, 3).is_err() && place.below(0, 3).is_err());
    }
}
