//! Peer identity as plain bytes, so that the pure half needs no networking crate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest peer ID that is accepted, in bytes; ed25519 peer IDs have 38.
const MAX_PEER_ID_SIZE: usize = 64;

/// Prefix of an ed25519 peer ID: identity multihash of the protobuf of the public key.
const ED25519_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The bytes of a libp2p peer ID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(Box<[u8]>);

/// Why a text or bytes are not a peer ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a peer ID: {reason}")]
pub struct PeerIdError {
    reason: &'static str,
}

impl PeerId {
    /// Makes the peer ID of an ed25519 public key.
    pub fn from_ed25519(key: &[u8; 32]) -> PeerId {
        PeerId([&ED25519_PREFIX[..], key].concat().into())
    }

    /// Accepts the bytes of a peer ID.
    pub fn from_bytes(bytes: &[u8]) -> Result<PeerId, PeerIdError> {
        if bytes.is_empty() || bytes.len() > MAX_PEER_ID_SIZE {
            return Err(PeerIdError { reason: "wrong length" });
        }
        Ok(PeerId(bytes.into()))
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the ed25519 public key that the peer ID carries.
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        self.0.strip_prefix(&ED25519_PREFIX[..])?.try_into().ok()
    }

    /// Returns the form for people: `12D3…fQ9a`.
    pub fn short(&self) -> String {
        let full = self.to_string();
        match (full.get(..4), full.get(full.len().saturating_sub(4)..)) {
            (Some(head), Some(tail)) if full.len() > 8 => format!("{head}…{tail}"),
            _ => full,
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cid::multibase::Base::Base58Btc.encode(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(s: &str) -> Result<PeerId, PeerIdError> {
        let bytes = cid::multibase::Base::Base58Btc.decode(s).map_err(|_| PeerIdError { reason: "not base58" })?;
        PeerId::from_bytes(&bytes)
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PeerId, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(d)?;
        PeerId::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}
