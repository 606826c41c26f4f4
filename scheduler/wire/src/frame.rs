//! Frames: a length in four bytes, big-endian, then that many bytes of DAG-CBOR.

use iptl_dag::codec::{self, DecodeError};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of a frame's length.
pub const HEADER_SIZE: usize = 4;

/// Why a frame was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the protocol allows.
    #[error("message of {size} bytes is longer than the {limit} allowed here")]
    TooLong {
        /// Its length in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Not a message of the protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Encodes a message with its length.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = codec::encode(message);
    let length = u32::try_from(body.len()).expect("no message comes near 4 GiB");
    let mut frame = Vec::with_capacity(HEADER_SIZE + body.len());
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    frame
}

/// Reads the length out of a header and checks it against `limit`.
pub fn length(header: [u8; HEADER_SIZE], limit: usize) -> Result<usize, FrameError> {
    let size = u32::from_be_bytes(header) as usize;
    if size > limit { Err(FrameError::TooLong { size, limit }) } else { Ok(size) }
}

/// Tells whether bytes begin with a whole frame.
pub fn is_whole(bytes: &[u8]) -> bool {
    let header = bytes.first_chunk::<HEADER_SIZE>();
    header.is_some_and(|header| bytes.len() - HEADER_SIZE >= u32::from_be_bytes(*header) as usize)
}

/// Decodes the body of a frame.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(codec::decode(body)?)
}
