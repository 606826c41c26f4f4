//! Bytes of a codec into values and back.
//!
//! [`encode`] and [`decode`] are DAG-CBOR of the lab's own types; [`encode_as`] and [`decode_as`] are values of any shape
//! in any codec, DAG-JSON being the form for people. What is written is canonical. What is read must be valid, and
//! DAG-CBOR and dag-pb must be in their canonical form.

mod cbor;
mod pb;

pub(crate) use cbor::after_first;
use serde::{Serialize, de::DeserializeOwned};

use crate::unixfs::pb::PbNode;
use crate::{Block, Cid, Codec, Ipld};

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

/// Why a value has no form in a codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this value has no form in {}: {reason}", codec.name())]
pub struct EncodeError {
    /// Codec in question.
    pub codec: Codec,
    /// What the encoder met.
    pub reason: String,
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

/// Decodes DAG-CBOR; never panics, whatever the bytes, and takes memory in proportion to them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let shape = |reason: String| DecodeError::Shape { expected: short_name::<T>(), reason };
    cbor::check_lengths(bytes).map_err(|reason| shape(reason.to_owned()))?;
    serde_ipld_dagcbor::from_slice(bytes).map_err(|e| shape(e.to_string()))
}

/// Decodes DAG-CBOR and checks that it is the canonical encoding of what it decodes to.
///
/// Control records pass through here: a record that can be written in two ways has two hashes for one signature.
pub fn decode_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let value = decode::<T>(bytes)?;
    if encode(&value) == bytes { Ok(value) } else { Err(DecodeError::NotCanonical { expected: short_name::<T>() }) }
}

/// Returns whether `bytes` are the canonical encoding of a value that holds everything in `known`, and perhaps further
/// entries of maps.
pub(crate) fn is_extension(bytes: &[u8], known: &[u8]) -> Result<bool, DecodeError> {
    let value: Ipld = decode(bytes)?;
    Ok(encode(&value) == bytes && extends(&value, &decode(known)?))
}

/// The decoder bounds the depth of values, so recursion is safe.
fn extends(value: &Ipld, known: &Ipld) -> bool {
    match (value, known) {
        (Ipld::Map(value), Ipld::Map(known)) => {
            known.iter().all(|(key, known)| value.get(key).is_some_and(|value| extends(value, known)))
        }
        (Ipld::List(value), Ipld::List(known)) => {
            value.len() == known.len() && value.iter().zip(known).all(|(value, known)| extends(value, known))
        }
        (value, known) => value == known,
    }
}

/// Decodes DAG-JSON; never panics, whatever the bytes.
///
/// A map whose first key is the slash is a link or bytes, or it is refused: nothing could write it.
pub fn from_dag_json(bytes: &[u8]) -> Result<Ipld, DecodeError> {
    let value = decode_dag_json(bytes)?;
    match has_reserved_map(&value) {
        true => Err(DecodeError::Shape { expected: "DAG-JSON value", reason: RESERVED.to_owned() }),
        false => Ok(value),
    }
}

pub(crate) fn decode_dag_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    serde_ipld_dagjson::from_slice(bytes)
        .map_err(|e| DecodeError::Shape { expected: "DAG-JSON value", reason: e.to_string() })
}

/// Writes a value as DAG-JSON, on one line.
///
/// # Panics
///
/// Panics on values that no codec can hold (NaN, infinities): no decoder gives one.
pub fn to_dag_json(value: &Ipld) -> Vec<u8> {
    serde_ipld_dagjson::to_vec(value).expect("decoded values have a form in DAG-JSON")
}

/// Reads any block as a value: structured ones as they are, dag-pb by its logical form, raw ones as bytes.
pub fn to_ipld(block: &Block) -> Result<Ipld, DecodeError> {
    match Codec::of(block.cid()) {
        Some(codec) => decode_as(codec, block.data()),
        None => Err(DecodeError::Shape {
            expected: "block of a known codec",
            reason: format!("its codec is {:#x}", block.cid().codec()),
        }),
    }
}

/// Decodes bytes of a codec; never panics, whatever the bytes.
pub fn decode_as(codec: Codec, bytes: &[u8]) -> Result<Ipld, DecodeError> {
    match codec {
        Codec::Raw => Ok(Ipld::Bytes(bytes.to_vec())),
        // The decoder passes over bytes that stand behind the CID in a link; all else that is not canonical it refuses.
        Codec::DagCbor => decode_canonical(bytes),
        Codec::DagJson => from_dag_json(bytes),
        Codec::DagPb => PbNode::decode(bytes)
            .map(pb::to_value)
            .map_err(|e| DecodeError::Shape { expected: "dag-pb node", reason: e.to_string() }),
    }
}

/// Encodes a value in a codec, in the one form that gives it its CID.
///
/// Not every value has a form in every codec: raw holds bytes, dag-pb its nodes, and DAG-JSON no map whose only key is
/// the slash that marks links and bytes.
pub fn encode_as(codec: Codec, value: &Ipld) -> Result<Vec<u8>, EncodeError> {
    let error = |reason: String| EncodeError { codec, reason };
    match (codec, value) {
        (Codec::Raw, Ipld::Bytes(bytes)) => Ok(bytes.clone()),
        (Codec::Raw, _) => Err(error("it is not bytes".to_owned())),
        (Codec::DagCbor, value) => serde_ipld_dagcbor::to_vec(value).map_err(|e| error(e.to_string())),
        (Codec::DagJson, value) if has_reserved_map(value) => Err(error(RESERVED.to_owned())),
        (Codec::DagJson, value) => serde_ipld_dagjson::to_vec(value).map_err(|e| error(e.to_string())),
        (Codec::DagPb, value) => pb::of_value(value).map(|node| node.encode()).map_err(|e| error(e.to_owned())),
    }
}

const RESERVED: &str = "a map whose first key is a slash stands for a link or bytes";

/// Says whether a map would be read back from DAG-JSON as something else. Whatever decoded the value has bounded its depth.
fn has_reserved_map(value: &Ipld) -> bool {
    match value {
        Ipld::Map(map) => {
            map.first_key_value().is_some_and(|(key, _)| key == "/") || map.values().any(has_reserved_map)
        }
        Ipld::List(list) => list.iter().any(has_reserved_map),
        Ipld::Null
        | Ipld::Bool(_)
        | Ipld::Integer(_)
        | Ipld::Float(_)
        | Ipld::String(_)
        | Ipld::Bytes(_)
        | Ipld::Link(_) => false,
    }
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let head = name.split('<').next().unwrap_or(name);
    head.rsplit("::").next().unwrap_or(head)
}
