//! Packets that a network card would still have to finish: cut into segments, and given their checksums.
//!
//! A system that sends a lot hands down one large packet with the size of its segments, and leaves its checksum at the
//! sum over addresses, protocol and length. Such a packet passes a clean network whole, which saves most of the work.
//! The description of it is the one of virtio (`struct virtio_net_hdr`), which TUN devices use.

use super::{Header, IpError, TCP, Transport, UDP, V4_HEAD, checksum, put_u16, u16_at};

/// Bytes of the description as TUN devices write it.
pub const OFFLOAD_SIZE: usize = 10;

/// The checksum is to be completed.
const NEEDS_CSUM: u8 = 1;

/// Kinds of large packets.
mod gso {
    pub(super) const NONE: u8 = 0;
    pub(super) const TCP_V4: u8 = 1;
    pub(super) const TCP_V6: u8 = 4;
    pub(super) const UDP_L4: u8 = 5;
    /// Beside a kind: the first segment alone says that congestion was answered.
    pub(super) const ECN: u8 = 0x80;
}

/// Flags of a TCP segment that belong to the last or the first part of a large one.
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const CWR: u8 = 0x80;
}

/// What is still to be done to a packet. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Where the part begins that the checksum covers, and where in that part the checksum stands; none where it is
    /// complete.
    pub checksum: Option<(u16, u16)>,
    /// Bytes of payload in each packet into which this one is to be cut; none where it is one packet.
    pub segment: Option<u16>,
}

impl Offload {
    /// Reads the description that comes with a packet from a TUN device, in the machine's byte order.
    ///
    /// # Errors
    ///
    /// Returns an error where the description does not fit the packet.
    pub fn decode(bytes: [u8; OFFLOAD_SIZE], packet: &[u8], header: &Header) -> Result<Offload, IpError> {
        let [flags, kind, _, _, size @ .., start_0, start_1, offset_0, offset_1] = bytes;
        let malformed = IpError::Malformed { size: packet.len() };
        let (start, offset) = (u16::from_ne_bytes([start_0, start_1]), u16::from_ne_bytes([offset_0, offset_1]));
        let size = u16::from_ne_bytes(size);
        let checksum = (flags & NEEDS_CSUM != 0).then_some((start, offset));
        let segment = (kind & !gso::ECN != gso::NONE).then_some(size);
        let offload = Offload { checksum, segment };
        if offload.fits(header, kind & !gso::ECN) { Ok(offload) } else { Err(malformed) }
    }

    /// Returns the description to be written before a packet.
    pub fn encode(&self, packet: &[u8], header: &Header) -> [u8; OFFLOAD_SIZE] {
        let mut bytes = [0; OFFLOAD_SIZE];
        if let Some((start, offset)) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(segment) = self.segment {
            let congestion = packet.get(header.transport_at + 13).is_some_and(|flags| flags & flag::CWR != 0);
            bytes[1] = match (header.protocol, header.src.is_ipv4()) {
                (UDP, _) => gso::UDP_L4,
                (_, true) => gso::TCP_V4,
                (_, false) => gso::TCP_V6,
            };
            if congestion && header.protocol == TCP {
                bytes[1] |= gso::ECN;
            }
            let heads = u16::try_from(heads(packet, header)).unwrap_or(u16::MAX);
            bytes[2..4].copy_from_slice(&heads.to_ne_bytes());
            bytes[4..6].copy_from_slice(&segment.to_ne_bytes());
        }
        bytes
    }

    /// Returns how many packets there are on the wire, and with how many bytes.
    pub fn on_the_wire(&self, packet: &[u8], header: &Header) -> (u64, u64) {
        let len = packet.len() as u64;
        let Some(segment) = self.segment else { return (1, len) };
        let heads = heads(packet, header);
        let payload = packet.len().saturating_sub(heads);
        let count = payload.div_ceil(usize::from(segment).max(1)).max(1) as u64;
        (count, len + (count - 1) * heads as u64)
    }

    /// Returns the size of the largest packet on the wire, in bytes.
    pub fn largest(&self, packet: &[u8], header: &Header) -> usize {
        match self.segment {
            Some(segment) => packet.len().min(heads(packet, header) + usize::from(segment)),
            None => packet.len(),
        }
    }

    /// Completes the checksum, where it is not; the packet is then one that may go anywhere.
    pub fn complete(&mut self, packet: &mut [u8], header: &mut Header) {
        let Some((start, offset)) = self.checksum.take() else { return };
        header.partial = false;
        let (start, len) = (usize::from(start), header.len.min(packet.len()));
        let Some(covered) = packet.get(start..len) else { return };
        let sum = match checksum::of(0, covered) {
            // Of a datagram zero would say that there is none; all ones is the same sum.
            0 => 0xffff,
            sum => sum,
        };
        put_u16(packet, start + usize::from(offset), sum);
    }

    /// Cuts a large packet into those that are on the wire, each with its checksum still to be completed. One that is
    /// not to be cut comes back as it is.
    pub fn split(&self, packet: &[u8], header: &Header, mut buffer: impl FnMut(usize) -> Vec<u8>) -> Vec<Vec<u8>> {
        let (at, heads) = (header.transport_at, heads(packet, header));
        let (Some(segment), Some((head, payload))) = (self.segment, packet.split_at_checked(heads)) else {
            return vec![packet.to_vec()];
        };
        let chunks = payload.chunks(usize::from(segment).max(1));
        let count = chunks.len();
        let sequence = head.get(at + 4..at + 8).map_or(0, |n| u32::from_be_bytes([n[0], n[1], n[2], n[3]]));
        let id = u16_at(head, 4).unwrap_or(0);
        let mut parts = Vec::with_capacity(count);
        for (i, chunk) in chunks.enumerate() {
            let mut part = buffer(heads + chunk.len());
            part.extend_from_slice(head);
            part.extend_from_slice(chunk);
            let number = u16::try_from(i).unwrap_or(u16::MAX);
            let length = |without: usize| u16::try_from(heads + chunk.len() - without).unwrap_or(u16::MAX);
            if header.src.is_ipv4() {
                put_u16(&mut part, 2, length(0));
                put_u16(&mut part, 4, id.wrapping_add(number));
                put_u16(&mut part, 10, 0);
                let sum = checksum::of(0, part.get(..at).unwrap_or_default());
                put_u16(&mut part, 10, sum);
            } else {
                put_u16(&mut part, 4, length(super::V6_HEAD));
            }
            if header.protocol == UDP {
                put_u16(&mut part, at + 4, length(at));
            } else {
                let before = u32::try_from(i * usize::from(segment)).unwrap_or(0);
                if let Some(place) = part.get_mut(at + 4..at + 8) {
                    place.copy_from_slice(&sequence.wrapping_add(before).to_be_bytes());
                }
                if let Some(flags) = part.get_mut(at + 13) {
                    let not_last = if i + 1 < count { flag::FIN | flag::PSH } else { 0 };
                    let not_first = if i > 0 { flag::CWR } else { 0 };
                    *flags &= !(not_last | not_first);
                }
            }
            if let Some((start, offset)) = self.checksum {
                let pseudo = checksum::pseudo(header.src, header.dst, header.protocol, usize::from(length(at)));
                put_u16(&mut part, usize::from(start) + usize::from(offset), checksum::fold(pseudo));
            }
            parts.push(part);
        }
        parts
    }

    fn fits(&self, header: &Header, kind: u8) -> bool {
        let transport = match header.transport {
            Transport::Udp { .. } => 8,
            Transport::Tcp { .. } => V4_HEAD,
            Transport::Echo { .. } | Transport::Error | Transport::Other => 0,
        };
        let checksum = self.checksum.is_none_or(|(start, offset)| {
            usize::from(start) == header.transport_at
                && header.transport_at + usize::from(offset) + 2 <= header.len
                && matches!((header.protocol, offset), (TCP, 16) | (UDP, 6))
        });
        let segment = self.segment.is_none_or(|segment| {
            // What is to be cut has a checksum for each part.
            let known = match kind {
                gso::TCP_V4 => header.protocol == TCP && header.src.is_ipv4(),
                gso::TCP_V6 => header.protocol == TCP && header.src.is_ipv6(),
                gso::UDP_L4 => header.protocol == UDP,
                _ => false,
            };
            known && segment > 0 && self.checksum.is_some() && header.fragment.is_none()
        });
        checksum && segment && (self.segment.is_none() || header.transport_at + transport <= header.len)
    }
}

/// Returns the length of all heads of a packet of TCP or UDP, in bytes.
fn heads(packet: &[u8], header: &Header) -> usize {
    let at = header.transport_at;
    let transport = match header.protocol {
        TCP => packet.get(at + 12).map_or(V4_HEAD, |byte| usize::from(byte >> 4) * 4).max(V4_HEAD),
        _ => 8,
    };
    (at + transport).min(packet.len())
}
