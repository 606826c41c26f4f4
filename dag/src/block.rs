//! Blocks: bytes under the CID that they hash to.

use bytes::Bytes;
use multihash_codetable::{Code, MultihashDigest};

pub use cid::Cid;

/// Largest block that is ever made or accepted, in bytes: the limit of Bitswap 1.2 peers.
pub const MAX_BLOCK_SIZE: usize = 2 << 20;

/// Longest identity digest that is accepted, in bytes: a CID that carries its content must stay a name, and has no room
/// for more.
pub const MAX_IDENTITY_SIZE: usize = MAX_DIGEST_SIZE;

/// Shortest digest that is accepted, in bytes: of a shorter one, other content with the same digest can be found. Other
/// IPFS software draws the line at the same size.
pub const MIN_DIGEST_SIZE: usize = 20;

/// Longest digest that a CID holds here, in bytes.
const MAX_DIGEST_SIZE: usize = 64;

/// Multihash code of the identity function.
const IDENTITY: u64 = 0x00;

/// Multihash code of BLAKE3, whatever the size of its digest.
const BLAKE3: u64 = 0x1e;

/// What the size of a BLAKE2b digest in bytes is added to for its multihash code.
const BLAKE2B: u64 = 0xb200;

/// Content codecs that the lab reads, by their multicodec numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// Plain bytes (`0x55`).
    Raw,
    /// Protobuf nodes of UnixFS (`0x70`).
    DagPb,
    /// Structured data (`0x71`).
    DagCbor,
    /// Structured data as JSON (`0x0129`).
    DagJson,
}

impl Codec {
    /// Returns the multicodec number.
    pub const fn number(self) -> u64 {
        match self {
            Codec::Raw => 0x55,
            Codec::DagPb => 0x70,
            Codec::DagCbor => 0x71,
            Codec::DagJson => 0x0129,
        }
    }

    /// Returns the name in the table of multicodecs.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::DagPb => "dag-pb",
            Codec::DagCbor => "dag-cbor",
            Codec::DagJson => "dag-json",
        }
    }

    /// Returns the codec of a CID, or `None` where the lab cannot read it.
    pub const fn of(cid: &Cid) -> Option<Codec> {
        match cid.codec() {
            0x55 => Some(Codec::Raw),
            0x70 => Some(Codec::DagPb),
            0x71 => Some(Codec::DagCbor),
            0x0129 => Some(Codec::DagJson),
            _ => None,
        }
    }
}

/// Why bytes were not accepted as a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The bytes hash to something else, or the digest is too short to prove anything.
    #[error("bytes offered as {cid} do not hash to it")]
    Mismatch {
        /// The CID under which the bytes were offered.
        cid: Cid,
    },
    /// The CID names a hash function that cannot be verified here.
    #[error("{cid} uses hash function {code:#x}, which cannot be verified")]
    UnknownHash {
        /// The CID in question.
        cid: Cid,
        /// Multihash code of the function.
        code: u64,
    },
    /// The block is larger than any block may be.
    #[error("block of {size} bytes is larger than {MAX_BLOCK_SIZE}")]
    TooLarge {
        /// Size in bytes.
        size: usize,
    },
}

/// Bytes that have been checked against their CID.
///
/// A value of this type cannot be made from unchecked bytes, so whoever holds one need not check again.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    data: Bytes,
}

impl Block {
    /// Makes a block under BLAKE3-256, the lab's own hash.
    ///
    /// # Panics
    ///
    /// Panics where `data` is larger than [`MAX_BLOCK_SIZE`]: whoever makes blocks splits them first.
    pub fn new(codec: Codec, data: impl Into<Bytes>) -> Block {
        let data = data.into();
        assert!(data.len() <= MAX_BLOCK_SIZE, "a block of {} bytes was made; split it first", data.len());
        Block { cid: Cid::new_v1(codec.number(), Code::Blake3_256.digest(&data)), data }
    }

    /// Makes a block under another hash function, for content that has its CID from elsewhere.
    ///
    /// # Panics
    ///
    /// Panics where `data` is larger than [`MAX_BLOCK_SIZE`]: whoever makes blocks splits them first.
    pub(crate) fn with_hash(codec: Codec, code: Code, data: impl Into<Bytes>) -> Block {
        let data = data.into();
        assert!(data.len() <= MAX_BLOCK_SIZE, "a block of {} bytes was made; split it first", data.len());
        Block { cid: Cid::new_v1(codec.number(), code.digest(&data)), data }
    }

    /// Makes a dag-pb block under a CID of version 0, which always is SHA2-256.
    ///
    /// # Panics
    ///
    /// Panics where `data` is larger than [`MAX_BLOCK_SIZE`]: whoever makes blocks splits them first.
    pub(crate) fn with_cid_v0(data: impl Into<Bytes>) -> Block {
        let data = data.into();
        assert!(data.len() <= MAX_BLOCK_SIZE, "a block of {} bytes was made; split it first", data.len());
        let cid = Cid::new_v0(Code::Sha2_256.digest(&data)).expect("a SHA2-256 of 32 bytes");
        Block { cid, data }
    }

    /// Accepts bytes from elsewhere after checking size and hash.
    pub fn verify(cid: Cid, data: impl Into<Bytes>) -> Result<Block, HashError> {
        let data = data.into();
        check(&cid, &data)?;
        Ok(Block { cid, data })
    }

    /// Hashes bytes from elsewhere with the function of a multihash code, as a raw block; none where the function cannot
    /// be computed here, or where they are more than a block may hold.
    ///
    /// Whoever wanted a block compares the hash, and takes the block under the CID that it wanted: [`Block::named`].
    pub fn hashed(code: u64, data: impl Into<Bytes>) -> Option<Block> {
        Block::of_hash(data.into(), |data| digest(code, data))
    }

    /// As [`Block::hashed`], with a digest of `size` bytes: cut off, or of BLAKE3 extended.
    pub fn hashed_to(code: u64, size: usize, data: impl Into<Bytes>) -> Option<Block> {
        Block::of_hash(data.into(), |data| digest_to(code, size, data))
    }

    fn of_hash(data: Bytes, hash: impl FnOnce(&[u8]) -> Option<crate::Multihash>) -> Option<Block> {
        let hash = (data.len() <= MAX_BLOCK_SIZE).then(|| hash(&data)).flatten()?;
        Some(Block { cid: Cid::new_v1(Codec::Raw.number(), hash), data })
    }

    /// Returns the same bytes under another CID of the same hash; none where the hash differs.
    pub fn named(&self, cid: Cid) -> Option<Block> {
        (cid.hash() == self.cid.hash()).then(|| Block { cid, data: self.data.clone() })
    }

    /// Returns the CID.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// Returns the bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Splits into CID and bytes.
    pub fn into_parts(self) -> (Cid, Bytes) {
        (self.cid, self.data)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.data.len())
    }
}

/// Checks that `data` is what `cid` names, within the size of a block.
///
/// A digest may be cut off, down to [`MIN_DIGEST_SIZE`]; one of BLAKE3 may be extended, up to 64 bytes. A CID that carries
/// its content may carry 64 bytes, since it has no room for more.
pub fn check(cid: &Cid, data: &[u8]) -> Result<(), HashError> {
    if data.len() > MAX_BLOCK_SIZE {
        return Err(HashError::TooLarge { size: data.len() });
    }
    let code = cid.hash().code();
    if is_hash_of(cid.hash(), data) {
        Ok(())
    } else if digest(code, &[]).is_none() {
        Err(HashError::UnknownHash { cid: *cid, code })
    } else {
        Err(HashError::Mismatch { cid: *cid })
    }
}

/// Returns whether a multihash is one of `data`, of any size that [`check`] accepts.
pub fn is_hash_of(hash: &crate::Multihash, data: &[u8]) -> bool {
    digest_to(hash.code(), hash.digest().len(), data).as_ref() == Some(hash)
}

/// Hashes `data` as [`digest`] does, to a digest of `size` bytes: cut off, or of BLAKE3 extended. None where such a digest
/// proves nothing or cannot be computed here.
pub fn digest_to(code: u64, size: usize, data: &[u8]) -> Option<crate::Multihash> {
    let is_proof = code == IDENTITY || size >= MIN_DIGEST_SIZE;
    if is_proof && code == BLAKE3 && size != blake3::OUT_LEN {
        let mut whole = [0; MAX_DIGEST_SIZE];
        blake3::Hasher::new().update(data).finalize_xof().fill(&mut whole);
        return crate::Multihash::wrap(code, whole.get(..size)?).ok();
    }
    let whole = is_proof.then(|| digest(code, data)).flatten()?;
    match whole.digest().len() {
        length if length == size => Some(whole),
        _ if code == IDENTITY => None,
        _ => crate::Multihash::wrap(code, whole.digest().get(..size)?).ok(),
    }
}

/// Hashes `data` with the function of a multihash code, or returns `None` where it cannot be computed here.
pub fn digest(code: u64, data: &[u8]) -> Option<crate::Multihash> {
    if code == IDENTITY {
        return (data.len() <= MAX_IDENTITY_SIZE).then(|| crate::Multihash::wrap(IDENTITY, data).ok()).flatten();
    }
    if let Some(size) = code.checked_sub(BLAKE2B).filter(|size| (1..=MAX_DIGEST_SIZE as u64).contains(size)) {
        let hash = blake2b_simd::Params::new().hash_length(size as usize).hash(data);
        return crate::Multihash::wrap(code, hash.as_bytes()).ok();
    }
    Code::try_from(code).ok().map(|function| function.digest(data))
}

/// Returns the BLAKE3 digest of a CID that uses BLAKE3-256, the only ones that iroh-blobs can move.
pub fn blake3_digest(cid: &Cid) -> Option<[u8; 32]> {
    (cid.hash().code() == BLAKE3).then(|| cid.hash().digest().try_into().ok()).flatten()
}

/// Returns the CID of what has this BLAKE3-256 hash.
pub fn blake3_cid(codec: Codec, hash: &[u8; 32]) -> Cid {
    let hash = crate::Multihash::wrap(BLAKE3, hash).expect("32 bytes fit");
    Cid::new_v1(codec.number(), hash)
}

/// Returns the content that a CID carries in itself, where it has the identity hash; check it before use.
pub fn identity_data(cid: &Cid) -> Option<&[u8]> {
    (cid.hash().code() == IDENTITY).then(|| cid.hash().digest())
}
