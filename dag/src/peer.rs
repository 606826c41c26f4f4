//! Peer identity as plain bytes, so that the pure half needs no networking crate.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest peer ID that is accepted, in bytes; ed25519 peer IDs have 38.
const MAX_PEER_ID_SIZE: usize = 64;

/// Prefix of an ed25519 peer ID: identity multihash of the protobuf of the public key.
const ED25519_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Length of an ed25519 peer ID in bytes.
const ED25519_SIZE: usize = ED25519_PREFIX.len() + 32;

/// The bytes of a libp2p peer ID; ordered as these are.
#[derive(Clone)]
pub struct PeerId(Bytes);

/// What has the length of an ed25519 peer ID, as nearly all have, is held in place: it is copied and compared far more
/// often than made.
#[derive(Clone)]
enum Bytes {
    InPlace([u8; ED25519_SIZE]),
    Apart(Box<[u8]>),
}

/// Why a text or bytes are not a peer ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a peer ID: {reason}")]
pub struct PeerIdError {
    reason: &'static str,
}

impl PeerId {
    /// Makes the peer ID of an ed25519 public key.
    pub fn from_ed25519(key: &[u8; 32]) -> PeerId {
        let mut bytes = [0; ED25519_SIZE];
        bytes[..ED25519_PREFIX.len()].copy_from_slice(&ED25519_PREFIX);
        bytes[ED25519_PREFIX.len()..].copy_from_slice(key);
        PeerId(Bytes::InPlace(bytes))
    }

    /// Accepts the bytes of a peer ID.
    pub fn from_bytes(bytes: &[u8]) -> Result<PeerId, PeerIdError> {
        if bytes.is_empty() || bytes.len() > MAX_PEER_ID_SIZE {
            return Err(PeerIdError { reason: "wrong length" });
        }
        Ok(match <[u8; ED25519_SIZE]>::try_from(bytes) {
            Ok(bytes) => PeerId(Bytes::InPlace(bytes)),
            Err(_) => PeerId(Bytes::Apart(bytes.into())),
        })
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::InPlace(bytes) => bytes,
            Bytes::Apart(bytes) => bytes,
        }
    }

    /// Returns the ed25519 public key that the peer ID carries.
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        self.as_bytes().strip_prefix(&ED25519_PREFIX[..])?.try_into().ok()
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

impl PartialEq for PeerId {
    fn eq(&self, other: &PeerId) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for PeerId {}

impl PartialOrd for PeerId {
    fn partial_cmp(&self, other: &PeerId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PeerId {
    fn cmp(&self, other: &PeerId) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for PeerId {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.as_bytes().hash(hasher);
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cid::multibase::Base::Base58Btc.encode(self.as_bytes()))
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
        s.serialize_bytes(self.as_bytes())
    }
}

struct Visitor;

impl<'de> serde::de::Visitor<'de> for Visitor {
    type Value = PeerId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of a peer ID")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<PeerId, E> {
        PeerId::from_bytes(bytes).map_err(E::custom)
    }

    /// Formats without bytes have a list of numbers.
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<PeerId, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
            if bytes.len() > MAX_PEER_ID_SIZE {
                break;
            }
        }
        PeerId::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PeerId, D::Error> {
        d.deserialize_bytes(Visitor)
    }
}
