//! DAG-CBOR, the codec of everything structured.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Block, Cid, Codec};

/// Why bytes are not the value that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not DAG-CBOR of the expected shape.
    #[error("not a valid {expected}: {reason}")]
    Shape {
        /// Name of the expected type.
        expected: &'static str,
        /// What the decoder met.
        reason: String,
    },
    /// The bytes are DAG-CBOR, but not in the one canonical form.
    #[error("{expected} is not in canonical form")]
    NotCanonical {
        /// Name of the expected type.
        expected: &'static str,
    },
    /// The node is of another kind than the caller can use.
    #[error("expected a {expected} node and found a {found}")]
    WrongKind {
        /// Kind that the caller can use.
        expected: &'static str,
        /// Kind that was found.
        found: &'static str,
    },
}

/// Encodes a value as DAG-CBOR.
///
/// # Panics
///
/// Panics on values that DAG-CBOR cannot hold (NaN, infinities): the model's constructors refuse them.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("the model holds only what DAG-CBOR can encode")
}

/// Encodes a value as a block of DAG-CBOR.
pub fn to_block<T: Serialize>(value: &T) -> Block {
    Block::new(Codec::DagCbor, encode(value))
}

/// Returns the CID that a value has as DAG-CBOR.
pub fn cid_of<T: Serialize>(value: &T) -> Cid {
    *to_block(value).cid()
}

/// Decodes DAG-CBOR; never panics, whatever the bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|e| DecodeError::Shape { expected: short_name::<T>(), reason: e.to_string() })
}

/// Decodes DAG-CBOR and checks that it is the canonical encoding of what it decodes to.
///
/// Control records pass through here: a record that can be written in two ways has two hashes for one signature.
pub fn decode_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let value = decode::<T>(bytes)?;
    if encode(&value) == bytes { Ok(value) } else { Err(DecodeError::NotCanonical { expected: short_name::<T>() }) }
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let head = name.split('<').next().unwrap_or(name);
    head.rsplit("::").next().unwrap_or(head)
}
