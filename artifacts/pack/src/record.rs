//! The format of pack files: a header, then records that say themselves what they hold.
//!
//! ```text
//! pack    "iptlpack" | u8 version | 7 zero bytes | 16 bytes salt           32 bytes, synced before the first record
//! record  4 bytes magic | u32 length of the data | 8 bytes check | u8 length of the multihash | multihash | data
//! ```
//!
//! Numbers are little endian. The check is keyed by the salt of the pack and covers the record's place: bytes of a block
//! that look like a record cannot be taken for one, whoever wrote them, since nobody outside knows the salt. The data
//! needs no check of its own; it hashes to the multihash.

use iptl_dag::{MAX_BLOCK_SIZE, Multihash};

/// Length of a pack's header.
pub(crate) const PACK_HEADER: u64 = 32;

/// Length of a record without multihash and data.
pub(crate) const FIXED: usize = 17;

/// Longest multihash in bytes: two varints and 64 bytes of digest.
pub(crate) const MAX_HASH: usize = 10 + 10 + 64;

/// Begins every record.
pub(crate) const MAGIC: [u8; 4] = [0xb1, 0x0c, 0x5e, 0xa7];

const PACK_MAGIC: &[u8; 8] = b"iptlpack";

const VERSION: u8 = 1;

/// The random number of a pack.
pub(crate) type Salt = [u8; 16];

/// Where a record is, and how much data it holds. Ordered by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

impl Place {
    pub(crate) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.pack.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; 12]) -> Place {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Place { pack: word(0), offset: word(4), size: word(8) }
    }
}

/// What stands before the data of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) hash: Multihash,
    pub(crate) size: u32,
}

impl Header {
    /// Returns the length up to the data.
    pub(crate) fn len(&self) -> u64 {
        (FIXED + hash_len(&self.hash)) as u64
    }

    /// Returns the length of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        self.len() + u64::from(self.size)
    }
}

/// Returns the length of a multihash in bytes.
pub(crate) fn hash_len(hash: &Multihash) -> usize {
    varint_len(hash.code()) + varint_len(hash.size().into()) + usize::from(hash.size())
}

/// Returns the length of the whole record of a block.
pub(crate) fn record_len(hash: &Multihash, size: usize) -> u64 {
    (FIXED + hash_len(hash) + size) as u64
}

/// Encodes the header of a pack.
pub(crate) fn pack_header(salt: &Salt) -> [u8; PACK_HEADER as usize] {
    let mut bytes = [0; PACK_HEADER as usize];
    bytes[..8].copy_from_slice(PACK_MAGIC);
    bytes[8] = VERSION;
    bytes[16..].copy_from_slice(salt);
    bytes
}

/// Reads the header of a pack; none where it is not one of this version.
pub(crate) fn parse_pack_header(bytes: &[u8]) -> Option<Salt> {
    let salt = bytes.get(16..32)?.try_into().ok()?;
    (bytes[..8] == *PACK_MAGIC && bytes[8] == VERSION && bytes[9..16] == [0; 7]).then_some(salt)
}

/// Appends what stands before the data of a record at `offset`.
pub(crate) fn encode(salt: &Salt, offset: u32, hash: &Multihash, size: u32, out: &mut Vec<u8>) {
    let hash = hash.to_bytes();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&check(salt, offset, size, &hash));
    out.push(u8::try_from(hash.len()).expect("a multihash is short"));
    out.extend_from_slice(&hash);
}

/// Reads what stands before the data of the record at `offset`; none where there is no record, or a damaged one.
pub(crate) fn parse(salt: &Salt, offset: u32, bytes: &[u8]) -> Option<Header> {
    let (fixed, rest) = bytes.split_at_checked(FIXED)?;
    let hash = rest.get(..usize::from(fixed[16]))?;
    let size = u32::from_le_bytes(fixed[4..8].try_into().ok()?);
    let is_whole = fixed[..4] == MAGIC
        && size as usize <= MAX_BLOCK_SIZE
        && hash.len() <= MAX_HASH
        && fixed[8..16] == check(salt, offset, size, hash);
    // A record that was checked holds a multihash of ours, so decoding it fails only where this code changed.
    is_whole.then(|| Multihash::from_bytes(hash).ok()).flatten().map(|hash| Header { hash, size })
}

fn check(salt: &Salt, offset: u32, size: u32, hash: &[u8]) -> [u8; 8] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(salt);
    let mut bytes = [0; 8 + MAX_HASH];
    bytes[..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..8].copy_from_slice(&size.to_le_bytes());
    bytes[8..8 + hash.len()].copy_from_slice(hash);
    let digest = blake3::keyed_hash(&key, &bytes[..8 + hash.len()]);
    digest.as_bytes()[..8].try_into().expect("a digest is longer")
}

fn varint_len(number: u64) -> usize {
    let bits = 64 - number.leading_zeros() as usize;
    bits.div_ceil(7).max(1)
}

#[cfg(test)]
mod tests {
    use iptl_artifacts::contract::{sample, sha2_256};

    use super::*;

    #[test]
    fn record_that_is_changed_anywhere_or_moved_is_none() {
        for block in [sample(1, 100), sha2_256(sample(2, 70).data().clone())] {
            let (hash, size) = (*block.cid().hash(), 100);
            let mut bytes = Vec::new();
            encode(&[7; 16], 32, &hash, size, &mut bytes);
            let header = Header { hash, size };
            assert_eq!(header.len(), bytes.len() as u64);
            assert_eq!(parse(&[7; 16], 32, &bytes), Some(header));
            assert_eq!(parse(&[7; 16], 33, &bytes), None);
            assert_eq!(parse(&[8; 16], 32, &bytes), None);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(&[7; 16], 32, &damaged), None, "bit {bit}");
            }
            for cut in 0..bytes.len() {
                assert_eq!(parse(&[7; 16], 32, &bytes[..cut]), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn places_and_packs_come_back() {
        let place = Place { pack: 1, offset: u32::MAX, size: 77 };
        assert_eq!(Place::from_bytes(&place.to_bytes()), place);
        let header = pack_header(&[9; 16]);
        assert_eq!(parse_pack_header(&header), Some([9; 16]));
        for at in 0..16 {
            let mut damaged = header;
            damaged[at] ^= 1;
            assert_eq!(parse_pack_header(&damaged), None, "byte {at}");
        }
    }
}
