//! Cutting packets that are too large for a link: routers do it to those of IPv4, senders to their own of either family.

use super::{FRAGMENT, Header, V4_HEAD, V6_HEAD, checksum, put_u16};

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

/// Length of the head that a fragment over IPv6 has beside that of every packet, in bytes.
const FRAGMENT_HEAD: usize = 8;

/// Cuts a packet as its sender may, over either family, into fragments of at most `mtu` bytes, in order; over IPv6 they
/// have this number. Returns none where that cannot be: as [`fragments`] says, and over IPv6 of a packet that has heads
/// before its transport's already, is longer than one may be, or where not even eight bytes fit. The bytes are those of a
/// packet that [`Header::parse`] has read as `header`.
pub fn source_fragments(packet: &[u8], header: &Header, mtu: usize, number: u32) -> Option<Vec<Vec<u8>>> {
    if header.src.is_ipv4() {
        return fragments(packet, header, mtu);
    }
    let room = mtu.checked_sub(V6_HEAD + FRAGMENT_HEAD)? & !7;
    if header.transport_at != V6_HEAD || room == 0 {
        return None;
    }
    let (head, payload) = packet.get(..header.len)?.split_at_checked(V6_HEAD)?;
    let count = payload.len().div_ceil(room);
    let mut parts = Vec::with_capacity(count);
    for (i, chunk) in payload.chunks(room).enumerate() {
        let mut part = Vec::with_capacity(V6_HEAD + FRAGMENT_HEAD + chunk.len());
        part.extend_from_slice(head);
        put_u16(&mut part, 4, u16::try_from(FRAGMENT_HEAD + chunk.len()).ok()?)?;
        *part.get_mut(6)? = FRAGMENT;
        let offset = u16::try_from(i * room).ok()? | u16::from(i + 1 < count);
        part.extend_from_slice(&[header.protocol, 0]);
        part.extend_from_slice(&offset.to_be_bytes());
        part.extend_from_slice(&number.to_be_bytes());
        part.extend_from_slice(chunk);
        parts.push(part);
    }
    Some(parts)
}
