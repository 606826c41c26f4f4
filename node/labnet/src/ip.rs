//! IP packets as bytes: what stands in their heads, and how it is changed.
//!
//! [`Header::parse`] reads the head of an IPv4 or IPv6 packet and its transport; `patch.rs` changes addresses, ports
//! and hop limits with their checksums; `icmp.rs` makes errors; `fragment.rs` cuts packets that are too large;
//! `offload.rs` does what a network card would do.
//! Whatever the bytes, nothing here panics, and nothing is written outside the packet.

pub(crate) mod checksum;
mod fragment;
mod icmp;
mod offload;
mod patch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use fragment::{fragments, source_fragments};
pub use icmp::{IcmpError, embedded};
pub use offload::{OFFLOAD_SIZE, Offload};
pub(crate) use patch::{End, finish_icmp, lower_hop_limit, set_end};

/// Protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
/// The head of a fragment over IPv6.
pub(crate) const FRAGMENT: u8 = 44;

/// Length of an IPv4 head without options, in bytes.
pub(crate) const V4_HEAD: usize = 20;
/// Length of an IPv6 head, in bytes.
pub(crate) const V6_HEAD: usize = 40;

/// Extension heads that are walked over; a packet with more is malformed.
const MAX_EXTENSIONS: usize = 8;

/// What stands in the head of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub src: IpAddr,
    /// Receiver.
    pub dst: IpAddr,
    /// Length of the packet as its head says, in bytes: not more than there are.
    pub len: usize,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Whether routers must not cut it into fragments; always so in IPv6.
    pub dont_fragment: bool,
    /// Where it belongs, if it is a part of a packet.
    pub fragment: Option<Fragment>,
    /// Number of the transport's protocol.
    pub protocol: u8,
    /// Where the transport's head begins, in bytes.
    pub transport_at: usize,
    /// What the transport's head says.
    pub transport: Transport,
    /// Whether the transport's checksum is only the sum over addresses, protocol and length so far: see [`Offload`].
    pub partial: bool,
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Number of the packet, the sender's.
    pub id: u32,
    /// Where its bytes belong, in bytes.
    pub offset: usize,
    /// Whether more follows.
    pub more: bool,
}

/// What the head of a transport says, as far as the lab looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp {
        /// Port of the sender.
        src: u16,
        /// Port of the receiver.
        dst: u16,
    },
    /// A segment.
    Tcp {
        /// Port of the sender.
        src: u16,
        /// Port of the receiver.
        dst: u16,
        /// Flags, as in the head: FIN 1, SYN 2, RST 4, ACK 16.
        flags: u8,
    },
    /// An echo request or reply.
    Echo {
        /// Identifier, which takes the place of ports.
        id: u16,
    },
    /// An ICMP error, which holds the beginning of the packet that it is about.
    Error,
    /// Anything else, a fragment that is not the first included.
    Other,
}

/// Why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpError {
    /// Neither IPv4 nor IPv6.
    #[error("IP version {version}, known are 4 and 6")]
    Version {
        /// Its version.
        version: u8,
    },
    /// The bytes end before what the head promises, or the head contradicts itself.
    #[error("packet of {size} bytes is cut off or contradicts itself")]
    Malformed {
        /// Bytes that there are.
        size: usize,
    },
    /// The checksum of the head is wrong.
    #[error("checksum of the IPv4 head is wrong")]
    Checksum,
}

impl Header {
    /// Reads the head of a packet; bytes after its end are ignored. Checksums of transports are not looked at: they
    /// are the receiver's.
    ///
    /// # Errors
    ///
    /// Returns why the bytes cannot be routed.
    pub fn parse(bytes: &[u8]) -> Result<Header, IpError> {
        let header = Header::parse_start(bytes)?;
        let v4 = header.src.is_ipv4();
        if header.len > bytes.len() {
            return Err(IpError::Malformed { size: bytes.len() });
        }
        if v4 && checksum::fold(checksum::sum(0, head_v4(bytes).unwrap_or_default())) != 0xffff {
            return Err(IpError::Checksum);
        }
        // A first or only part must hold the ports of a transport that has them.
        let has_ports = matches!(header.protocol, UDP | TCP) || header.protocol == if v4 { ICMP } else { ICMPV6 };
        let first = header.fragment.is_none_or(|fragment| fragment.offset == 0);
        let missing =
            has_ports && first && header.transport == Transport::Other && header.len < header.transport_at + 8;
        if missing { Err(IpError::Malformed { size: bytes.len() }) } else { Ok(header) }
    }

    /// Reads a head whose packet may be cut off after it, as ICMP errors hold them.
    pub(crate) fn parse_start(bytes: &[u8]) -> Result<Header, IpError> {
        let malformed = IpError::Malformed { size: bytes.len() };
        match bytes.first().map(|first| first >> 4) {
            Some(4) => parse_v4(bytes).ok_or(malformed),
            Some(6) => parse_v6(bytes).ok_or(malformed),
            Some(version) => Err(IpError::Version { version }),
            None => Err(malformed),
        }
    }
}

/// Returns two bytes at a place, as a number.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Writes a number in two bytes; returns nothing where there is no room.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes.get_mut(at..at.checked_add(2)?)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// Returns the IPv4 head with its options.
fn head_v4(bytes: &[u8]) -> Option<&[u8]> {
    let size = usize::from(bytes.first()? & 0x0f) * 4;
    if size < V4_HEAD { None } else { bytes.get(..size) }
}

fn parse_v4(bytes: &[u8]) -> Option<Header> {
    let head = head_v4(bytes)?;
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]));
    let len = usize::from(u16_at(head, 2)?);
    let part = u16_at(head, 6)?;
    let (offset, more) = (usize::from(part & 0x1fff) * 8, part & 0x2000 != 0);
    if len < head.len() || offset + (len - head.len()) > 0xffff {
        return None;
    }
    let fragment = (offset > 0 || more).then_some(Fragment { id: u32::from(u16_at(head, 4)?), offset, more });
    let protocol = head[9];
    Some(Header {
        src: address(12),
        dst: address(16),
        len,
        hop_limit: head[8],
        dont_fragment: part & 0x4000 != 0,
        fragment,
        protocol,
        transport_at: head.len(),
        transport: if offset == 0 { transport(bytes, head.len(), len, protocol) } else { Transport::Other },
        partial: false,
    })
}

fn parse_v6(bytes: &[u8]) -> Option<Header> {
    let head = bytes.first_chunk::<V6_HEAD>()?;
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|i| head[at + i]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let len = V6_HEAD + usize::from(u16_at(head, 4)?);
    let header = |protocol, fragment, transport_at, transport| Header {
        src: address(8),
        dst: address(24),
        len,
        hop_limit: head[7],
        dont_fragment: true,
        fragment,
        protocol,
        transport_at,
        transport,
        partial: false,
    };
    let (mut protocol, mut at, mut fragment) = (head[6], V6_HEAD, None);
    for _ in 0..MAX_EXTENSIONS {
        // Hop-by-hop options, routing, destination options; a fragment's head has a fixed size.
        let size = match protocol {
            0 | 43 | 60 => (usize::from(*bytes.get(at + 1)?) + 1) * 8,
            FRAGMENT => {
                let part = u16_at(bytes, at + 2)?;
                let id = bytes.get(at + 4..at + 8)?;
                fragment = Some(Fragment {
                    id: u32::from_be_bytes([id[0], id[1], id[2], id[3]]),
                    offset: usize::from(part & 0xfff8),
                    more: part & 1 != 0,
                });
                8
            }
            _ => {
                let first = fragment.is_none_or(|fragment: Fragment| fragment.offset == 0);
                let transport = if first { transport(bytes, at, len, protocol) } else { Transport::Other };
                return Some(header(protocol, fragment, at, transport));
            }
        };
        protocol = *bytes.get(at)?;
        at += size;
        if at > len {
            return None;
        }
        // What follows the head of a later fragment is not a head.
        if fragment.is_some_and(|fragment| fragment.offset > 0) {
            break;
        }
    }
    fragment.filter(|fragment| fragment.offset > 0)?;
    Some(header(protocol, fragment, at, Transport::Other))
}

/// Reads the eight bytes with which every known transport begins.
fn transport(bytes: &[u8], at: usize, len: usize, protocol: u8) -> Transport {
    let Some(head) = bytes.get(at..at + 8).filter(|_| at + 8 <= len) else { return Transport::Other };
    let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    match (protocol, head[0]) {
        (UDP, _) => Transport::Udp { src: number(0), dst: number(2) },
        (TCP, _) => {
            let flags = bytes.get(at + 13).copied().unwrap_or(0);
            Transport::Tcp { src: number(0), dst: number(2), flags }
        }
        (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => Transport::Echo { id: number(4) },
        // Unreachable, source quench, redirect, time exceeded, parameter problem; of ICMPv6 all below 128.
        (ICMP, 3 | 4 | 5 | 11 | 12) | (ICMPV6, 1..=127) => Transport::Error,
        _ => Transport::Other,
    }
}
