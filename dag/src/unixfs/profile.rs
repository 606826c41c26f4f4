//! The rules by which bytes become blocks, by name.

use bytes::Bytes;
use fastcdc::v2020::cut;
use multihash_codetable::Code;

use crate::{Block, Codec};

/// Smallest leaf in bytes, but for the last of a file. With the next two fixed for ever: every file's CID hangs on it.
pub const LEAF_MIN: usize = 16 << 10;
/// Average leaf in bytes, about which cut points are normalised.
pub const LEAF_AVERAGE: usize = 64 << 10;
/// Largest leaf in bytes: what IPFS peers accept without being asked for more.
pub const LEAF_MAX: usize = 1 << 20;
/// Most links of a node within a file, from the profile `unixfs-v1-2025`.
pub const FILE_WIDTH: usize = 1024;
/// Size in bytes up to which a directory stays in one block; what it measures is the profile's.
pub const DIRECTORY_MAX: usize = 256 << 10;

/// Leaves of `unixfs-v0-2015` in bytes.
const LEAF_V0: usize = 256 << 10;
/// Most links of a node within a file, from the profile `unixfs-v0-2015`.
const FILE_WIDTH_V0: usize = 174;

/// Rules by which bytes become blocks; the same bytes under the same profile give the same CID for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The lab's own: FastCDC leaves under BLAKE3-256, so that a leaf's digest is its hash on the wire.
    #[default]
    Iptl,
    /// `unixfs-v1-2025` of IPIP-499: leaves of 1 MiB under SHA2-256, the CIDs that IPFS tools give under that name.
    UnixFsV1,
    /// `unixfs-v0-2015` of IPIP-499: CIDs of version 0, leaves of 256 KiB in dag-pb; what a plain `ipfs add` gives.
    UnixFsV0,
}

/// Not the name of a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no profile {name:?}; there are iptl, unixfs-v1-2025 and unixfs-v0-2015")]
pub struct ProfileError {
    /// What was given.
    pub name: String,
}

impl Profile {
    /// Every profile, the lab's own first.
    pub const ALL: [Profile; 3] = [Profile::Iptl, Profile::UnixFsV1, Profile::UnixFsV0];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Iptl => "iptl",
            Profile::UnixFsV1 => "unixfs-v1-2025",
            Profile::UnixFsV0 => "unixfs-v0-2015",
        }
    }

    /// Returns the length of the leaf at the front of `bytes`, which are the rest of the file or [`LEAF_MAX`] of it.
    pub(super) fn leaf_length(self, bytes: &[u8], (strict, relaxed): (u64, u64)) -> usize {
        match self {
            Profile::Iptl => {
                let (_, length) =
                    cut(bytes, LEAF_MIN, LEAF_AVERAGE, LEAF_MAX, strict, relaxed, strict << 1, relaxed << 1);
                length
            }
            Profile::UnixFsV1 => bytes.len().min(LEAF_MAX),
            Profile::UnixFsV0 => bytes.len().min(LEAF_V0),
        }
    }

    /// Says whether leaves are raw blocks, and not nodes that hold their bytes.
    pub(super) const fn has_raw_leaves(self) -> bool {
        match self {
            Profile::Iptl | Profile::UnixFsV1 => true,
            Profile::UnixFsV0 => false,
        }
    }

    /// Returns how many links a node within a file has at most.
    pub(super) const fn file_width(self) -> usize {
        match self {
            Profile::Iptl | Profile::UnixFsV1 => FILE_WIDTH,
            Profile::UnixFsV0 => FILE_WIDTH_V0,
        }
    }

    /// Says whether a directory is sharded, by the size of its block and by that of its names and CIDs, in bytes.
    pub(super) const fn shards(self, block_size: usize, links_size: usize) -> bool {
        match self {
            Profile::Iptl | Profile::UnixFsV1 => block_size > DIRECTORY_MAX,
            Profile::UnixFsV0 => links_size > DIRECTORY_MAX,
        }
    }

    pub(super) fn block(self, codec: Codec, data: Bytes) -> Block {
        match self {
            Profile::Iptl => Block::new(codec, data),
            Profile::UnixFsV1 => Block::with_hash(codec, Code::Sha2_256, data),
            Profile::UnixFsV0 => Block::with_cid_v0(data),
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Profile {
    type Err = ProfileError;

    fn from_str(name: &str) -> Result<Profile, ProfileError> {
        let known = Profile::ALL.into_iter().find(|profile| profile.name() == name);
        known.ok_or_else(|| ProfileError { name: name.to_owned() })
    }
}
