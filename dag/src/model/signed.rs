//! Signed bodies: the shape only; `iptl-trust` makes and checks the signatures.

use serde::{Deserialize, Serialize};

use crate::{PeerId, codec};

/// A body with its signer's signature over a domain and the canonical encoding of the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// What is stated.
    pub body: T,
    /// Who states it.
    pub signer: PeerId,
    /// ed25519 signature over [`signing_bytes`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// A body that can be signed: its domain keeps a signature from being used for anything else.
pub trait Signable: Serialize {
    /// Prefix of the signed bytes, with its version: `iptl/receipt/1`.
    const DOMAIN: &'static str;
}

/// Returns what is signed: the domain, a zero byte, and the canonical DAG-CBOR of the body.
pub fn signing_bytes<T: Signable>(body: &T) -> Vec<u8> {
    let mut bytes = T::DOMAIN.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(codec::encode(body));
    bytes
}
