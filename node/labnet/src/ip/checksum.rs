//! The Internet checksum, in full and by difference.

use std::net::IpAddr;

use super::{put_u16, u16_at};

/// Adds bytes to a sum of 16-bit words; an odd last byte counts as the high half of one.
pub(crate) fn sum(start: u64, bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let last = pairs.remainder().first().map_or(0, |last| u64::from(*last) << 8);
    pairs.fold(start + last, |sum, pair| sum + u64::from(u16::from_be_bytes([pair[0], pair[1]])))
}

/// Folds a sum into 16 bits.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Returns the checksum of bytes after `start` has been summed.
pub(crate) fn of(start: u64, bytes: &[u8]) -> u16 {
    !fold(sum(start, bytes))
}

/// Sums the pseudo-header of a transport: addresses, length and protocol.
pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u64 {
    let of_addr = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => sum(0, &addr.octets()),
        IpAddr::V6(addr) => sum(0, &addr.octets()),
    };
    of_addr(src) + of_addr(dst) + u64::from(protocol) + len as u64
}

/// Changes the checksum at a place for bytes that were replaced (RFC 1624, eqn. 3); both have the same, even length.
/// Returns nothing where there is no checksum any more.
pub(crate) fn adjust(bytes: &mut [u8], at: usize, old: &[u8], new: &[u8]) -> Option<()> {
    let before = u16_at(bytes, at)?;
    let complement = old.chunks_exact(2).map(|pair| u64::from(!u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
    put_u16(bytes, at, !fold(u64::from(!before) + complement + sum(0, new)))
}

/// Does the same to a checksum that is only a sum so far, not yet complemented.
pub(crate) fn adjust_partial(bytes: &mut [u8], at: usize, old: &[u8], new: &[u8]) -> Option<()> {
    let before = u16_at(bytes, at)?;
    let complement = old.chunks_exact(2).map(|pair| u64::from(!u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
    put_u16(bytes, at, fold(u64::from(before) + complement + sum(0, new)))
}
