//! Changing heads in place, checksums included.

use std::net::{IpAddr, SocketAddr};

use super::{Header, ICMP, ICMPV6, TCP, Transport, UDP, checksum, put_u16, u16_at};

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Src,
    Dst,
}

/// Replaces the address of one end, and its port or the identifier of an echo. Checksums follow; those that the
/// packet is too short for are left out, as in the packets inside ICMP errors. A packet that has no ports, a later
/// fragment say, changes its address alone.
///
/// `header` is that of the packet, and is brought up to date. Nothing happens where the families differ.
pub(crate) fn set_end(bytes: &mut [u8], header: &mut Header, end: End, to: SocketAddr) {
    let (held, at) = match (end, header.src) {
        (End::Src, IpAddr::V4(_)) => (&mut header.src, 12),
        (End::Dst, IpAddr::V4(_)) => (&mut header.dst, 16),
        (End::Src, IpAddr::V6(_)) => (&mut header.src, 8),
        (End::Dst, IpAddr::V6(_)) => (&mut header.dst, 24),
    };
    let old = std::mem::replace(held, to.ip());
    let transport_at = header.transport_at;
    // Where the transport keeps its checksum, and whether that covers addresses.
    let (sum_at, covers_addresses) = match header.protocol {
        TCP => (transport_at + 16, true),
        UDP => (transport_at + 6, true),
        ICMPV6 => (transport_at + 2, true),
        _ => (transport_at + 2, false),
    };
    let has_sum = match header.transport {
        // A datagram over IPv4 may have none.
        Transport::Udp { .. } => u16_at(bytes, sum_at).is_some_and(|sum| sum != 0),
        Transport::Tcp { .. } | Transport::Echo { .. } => true,
        Transport::Error => header.protocol == ICMPV6,
        Transport::Other => header.protocol == ICMPV6 && header.fragment.is_none(),
    };
    let partial = header.partial;
    let adjust = if partial { checksum::adjust_partial } else { checksum::adjust };
    match (old, to.ip()) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            replace(bytes, at, &old.octets(), &new.octets());
            checksum::adjust(bytes, 10, &old.octets(), &new.octets());
            if has_sum && covers_addresses {
                adjust(bytes, sum_at, &old.octets(), &new.octets());
            }
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            replace(bytes, at, &old.octets(), &new.octets());
            if has_sum && covers_addresses {
                adjust(bytes, sum_at, &old.octets(), &new.octets());
            }
        }
        (old, _) => {
            *match end {
                End::Src => &mut header.src,
                End::Dst => &mut header.dst,
            } = old;
            return;
        }
    }
    let (old, port_at) = match (&mut header.transport, end) {
        (Transport::Udp { src, .. } | Transport::Tcp { src, .. }, End::Src) => {
            (std::mem::replace(src, to.port()), transport_at)
        }
        (Transport::Udp { dst, .. } | Transport::Tcp { dst, .. }, End::Dst) => {
            (std::mem::replace(dst, to.port()), transport_at + 2)
        }
        (Transport::Echo { id }, _) => (std::mem::replace(id, to.port()), transport_at + 4),
        (Transport::Error | Transport::Other, _) => return,
    };
    put_u16(bytes, port_at, to.port());
    if partial {
        // A sum over addresses does not cover ports yet.
        return;
    }
    if has_sum {
        checksum::adjust(bytes, sum_at, &old.to_be_bytes(), &to.port().to_be_bytes());
    }
    // A sum of zero would say that there is none; all ones is the same sum.
    if header.protocol == UDP && has_sum && u16_at(bytes, sum_at) == Some(0) {
        put_u16(bytes, sum_at, 0xffff);
    }
}

/// Computes the checksum of an ICMP or ICMPv6 packet anew.
pub(crate) fn finish_icmp(bytes: &mut [u8], header: &Header) {
    let (at, len) = (header.transport_at, header.len.min(bytes.len()));
    let start = match header.protocol {
        ICMP => 0,
        ICMPV6 => checksum::pseudo(header.src, header.dst, ICMPV6, len.saturating_sub(at)),
        _ => return,
    };
    if put_u16(bytes, at + 2, 0).is_some()
        && let Some(message) = bytes.get(at..len)
    {
        let sum = checksum::of(start, message);
        put_u16(bytes, at + 2, sum);
    }
}

/// Takes one hop from a packet; returns whether it may go on.
pub(crate) fn lower_hop_limit(bytes: &mut [u8], header: &mut Header) -> bool {
    if header.hop_limit <= 1 {
        return false;
    }
    let new = header.hop_limit - 1;
    let at = if header.src.is_ipv4() { 8 } else { 7 };
    if let Some(field) = bytes.get_mut(at) {
        *field = new;
    }
    if header.src.is_ipv4() {
        let protocol = header.protocol;
        checksum::adjust(bytes, 10, &[header.hop_limit, protocol], &[new, protocol]);
    }
    header.hop_limit = new;
    true
}

fn replace(bytes: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + old.len()) {
        place.copy_from_slice(new);
    }
}
