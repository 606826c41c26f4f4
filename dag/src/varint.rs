//! Numbers of variable length, and the CIDs that begin with them, in their one form.
//!
//! Seven bits a byte, the lowest first. What decodes them elsewhere passes over bits of a tenth byte that 64 have no room
//! for: then a number, and with it a CID, has several forms, and what is told apart by bytes is one thing to us.

use crate::Cid;

/// Longest CID in bytes: three numbers of at most ten bytes each, a length, and a digest of 64.
pub const MAX_CID_SIZE: usize = 128;

/// Bytes that do not begin with a number in its shortest form, of 64 bits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the number that `bytes` begin with, and returns it with what follows.
pub fn decode(bytes: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let (value, rest) = unsigned_varint::decode::u64(bytes).map_err(|_| Malformed)?;
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let read = &bytes[..bytes.len() - rest.len()];
    if read == unsigned_varint::encode::u64(value, &mut buffer) { Ok((value, rest)) } else { Err(Malformed) }
}

/// Appends a number.
pub fn encode(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(unsigned_varint::encode::u64(value, &mut unsigned_varint::encode::u64_buffer()));
}

/// Returns the bytes that a number takes.
pub fn encoded_len(value: u64) -> usize {
    (value.max(1).ilog2() / 7 + 1) as usize
}

/// Reads the CID that `bytes` begin with, and returns it with what follows.
pub fn decode_cid(bytes: &[u8]) -> Result<(Cid, &[u8]), Malformed> {
    let mut rest = bytes;
    let cid = Cid::read_bytes(&mut rest).map_err(|_| Malformed)?;
    let mut written = [0; MAX_CID_SIZE];
    let size = cid.write_bytes(&mut written[..]).map_err(|_| Malformed)?;
    if written[..size] == bytes[..bytes.len() - rest.len()] { Ok((cid, rest)) } else { Err(Malformed) }
}

/// Reads bytes that are one CID and nothing else.
pub fn whole_cid(bytes: &[u8]) -> Result<Cid, Malformed> {
    match decode_cid(bytes)? {
        (cid, []) => Ok(cid),
        _ => Err(Malformed),
    }
}
