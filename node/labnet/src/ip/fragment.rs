//! Cutting packets that are too large for a link.

use super::{Header, V4_HEAD, checksum, put_u16};

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes, in order. Returns none where that cannot be: over IPv6,
/// where the sender forbids it, with options, or where not even eight bytes fit beside the head. The bytes are those
/// of a packet that [`Header::parse`] has read as `header`.
pub fn fragments(packet: &[u8], header: &Header, mtu: usize) -> Option<Vec<Vec<u8>>> {
    let room = mtu.checked_sub(V4_HEAD)? & !7;
    if !header.src.is_ipv4() || header.dont_fragment || header.transport_at != V4_HEAD || room == 0 {
        return None;
    }
    let (head, payload) = packet.get(..header.len)?.split_at_checked(V4_HEAD)?;
    let (first, more_after) = header.fragment.map_or((0, false), |fragment| (fragment.offset, fragment.more));
    let count = payload.len().div_ceil(room);
    let mut parts = Vec::with_capacity(count);
    for (i, chunk) in payload.chunks(room).enumerate() {
        let mut part = Vec::with_capacity(V4_HEAD + chunk.len());
        part.extend_from_slice(head);
        part.extend_from_slice(chunk);
        let more = more_after || i + 1 < count;
        let offset = u16::try_from((first + i * room) / 8).ok()?;
        put_u16(&mut part, 2, u16::try_from(V4_HEAD + chunk.len()).ok()?)?;
        put_u16(&mut part, 6, offset | if more { 0x2000 } else { 0 })?;
        put_u16(&mut part, 10, 0)?;
        let sum = checksum::of(0, &part[..V4_HEAD]);
        put_u16(&mut part, 10, sum)?;
        parts.push(part);
    }
    Some(parts)
}
