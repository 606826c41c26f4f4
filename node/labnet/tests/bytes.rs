//! Packets as bytes, made and checked without the code under test.

use std::net::{IpAddr, SocketAddr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Returns an endpoint that is written as text.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns the one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let folded = (total & 0xffff) + (total >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Wraps a transport in a head of the family of its addresses.
pub(crate) fn wrap(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = if src.is_ipv4() {
        let len = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
        vec![0x45, 0, len[0], len[1], 0x12, 0x34, 0, 0, 64, protocol, 0, 0]
    } else {
        let len = u16::try_from(transport.len()).unwrap().to_be_bytes();
        vec![0x60, 0, 0, 0, len[0], len[1], protocol, 64]
    };
    packet.extend(octets(src));
    packet.extend(octets(dst));
    if src.is_ipv4() {
        seal(&mut packet);
    }
    packet.extend_from_slice(transport);
    packet
}

/// Writes the checksum of an IPv4 head anew.
pub(crate) fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = !sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Makes a packet of a protocol with ports: a datagram, a segment with flags, or an echo request whose identifier is
/// the sender's port.
pub(crate) fn packet(protocol: u8, src: SocketAddr, dst: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (src.port().to_be_bytes(), dst.port().to_be_bytes());
    let (mut transport, sum_at) = match protocol {
        UDP => {
            let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
            (vec![from[0], from[1], to[0], to[1], len[0], len[1], 0, 0], 6)
        }
        TCP => {
            let ports = vec![from[0], from[1], to[0], to[1]];
            ([ports, vec![0; 8], vec![0x50, flags, 0xff, 0xff, 0, 0, 0, 0]].concat(), 16)
        }
        _ => (vec![8, 0, 0, 0, from[0], from[1], 0, 1], 2),
    };
    transport.extend_from_slice(payload);
    let check = !transport_sum(src.ip(), dst.ip(), protocol, &transport);
    transport[sum_at..sum_at + 2].copy_from_slice(&check.to_be_bytes());
    wrap(src.ip(), dst.ip(), protocol, &transport)
}

pub(crate) fn udp(src: &str, dst: &str) -> Vec<u8> {
    packet(UDP, at(src), at(dst), 0, b"hello")
}

pub(crate) fn transport_sum(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) -> u16 {
    let len = u32::try_from(transport.len()).unwrap().to_be_bytes();
    let pseudo = if protocol == ICMP {
        Vec::new()
    } else {
        [octets(src), octets(dst), len.to_vec(), vec![0, 0, 0, protocol]].concat()
    };
    sum(&[pseudo, transport.to_vec()].concat())
}

/// Returns the endpoints of an unfragmented packet without options.
pub(crate) fn ends(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let (src, dst, protocol, transport) = parts(packet);
    let number = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let (from, to) = if protocol == ICMP { (number(4), number(4)) } else { (number(0), number(2)) };
    (SocketAddr::new(src, from), SocketAddr::new(dst, to))
}

/// Returns addresses, protocol and transport of a packet without options.
pub(crate) fn parts(packet: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
    let address4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let address6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    match packet[0] >> 4 {
        4 => (address4(12), address4(16), packet[9], &packet[20..]),
        _ => (address6(8), address6(24), packet[6], &packet[40..]),
    }
}

/// Fails unless every checksum of an unfragmented packet is right.
#[track_caller]
pub(crate) fn assert_sound(packet: &[u8]) {
    if packet[0] >> 4 == 4 {
        assert_eq!(sum(&packet[..20]), 0xffff, "checksum of the head");
    }
    let (src, dst, protocol, transport) = parts(packet);
    assert_eq!(transport_sum(src, dst, protocol, transport), 0xffff, "checksum of the transport");
}
