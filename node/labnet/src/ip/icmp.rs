//! ICMP errors: packets that a router sends back.

use std::net::IpAddr;

use super::{Fragment, Header, ICMP, ICMPV6, Transport, V4_HEAD, V6_HEAD, checksum, finish_icmp};

/// Hops of a packet that the lab itself sends.
const HOP_LIMIT: u8 = 64;

/// Bytes of the packet in question that an error over IPv4 holds at most: with its own heads 576 (RFC 1812).
const QUOTED_V4: usize = 576 - V4_HEAD - 8;
/// The same over IPv6: with its own heads the smallest MTU (RFC 4443).
const QUOTED_V6: usize = 1280 - V6_HEAD - 8;

/// What a router has to say about a packet that it does not pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nothing has this address.
    HostUnreachable,
    /// It may not pass.
    Prohibited,
    /// It ran out of hops.
    HopLimit,
    /// It is larger than the next link takes, and may not be cut.
    TooBig {
        /// Largest packet that passes, in bytes.
        mtu: u16,
    },
}

impl IcmpError {
    /// Writes the error about a packet into `out`, sent by the router `from` to the packet's sender. Returns whether
    /// there is one: none is made about errors, about later fragments, about what was sent to many or comes from
    /// nobody, and none in another family than the packet's.
    pub fn write(self, packet: &[u8], from: IpAddr, out: &mut Vec<u8>) -> bool {
        let Ok(about) = Header::parse_start(packet) else { return false };
        let later = about.fragment.is_some_and(|Fragment { offset, .. }| offset > 0);
        let unanswerable = about.src.is_unspecified() || about.src.is_multicast() || about.dst.is_multicast();
        if about.transport == Transport::Error || later || unanswerable {
            return false;
        }
        out.clear();
        match (from, about.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let quoted = &packet[..packet.len().min(QUOTED_V4)];
                let len = u16::try_from(V4_HEAD + 8 + quoted.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&[0x45, 0]);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&[0, 0, 0, 0, HOP_LIMIT, ICMP, 0, 0]);
                out.extend_from_slice(&from.octets());
                out.extend_from_slice(&to.octets());
                let sum = checksum::of(0, out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
                let (kind, code, mtu) = match self {
                    IcmpError::HostUnreachable => (3, 1, 0),
                    IcmpError::Prohibited => (3, 13, 0),
                    IcmpError::HopLimit => (11, 0, 0),
                    IcmpError::TooBig { mtu } => (3, 4, mtu),
                };
                out.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
                out.extend_from_slice(&mtu.to_be_bytes());
                out.extend_from_slice(quoted);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let quoted = &packet[..packet.len().min(QUOTED_V6)];
                let len = u16::try_from(8 + quoted.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&[0x60, 0, 0, 0]);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&[ICMPV6, HOP_LIMIT]);
                out.extend_from_slice(&from.octets());
                out.extend_from_slice(&to.octets());
                let (kind, code, mtu) = match self {
                    IcmpError::HostUnreachable => (1, 0, 0),
                    IcmpError::Prohibited => (1, 1, 0),
                    IcmpError::HopLimit => (3, 0, 0),
                    IcmpError::TooBig { mtu } => (2, 0, mtu),
                };
                out.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
                out.extend_from_slice(&mtu.to_be_bytes());
                out.extend_from_slice(quoted);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        }
        if let Ok(header) = Header::parse_start(out) {
            finish_icmp(out, &header);
        }
        true
    }
}

/// Returns where the packet that an ICMP error is about begins.
pub fn embedded(header: &Header) -> Option<usize> {
    let at = header.transport_at + 8;
    (header.transport == Transport::Error && at < header.len).then_some(at)
}
