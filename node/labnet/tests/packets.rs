use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use iptl_labnet::{Flow, MAX_CHUNK_SIZE, MAX_DATAGRAM_SIZE, MAX_PACKET_SIZE, Packet, PacketError, v6_of};

use crate::rng::Rng;

fn samples() -> Vec<Packet> {
    let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 1, 7));
    let v6 = between((v6_of(src), 49_152).into(), (v6_of(dst), 80).into());
    [between((src, 49_152).into(), (dst, 80).into()), v6].concat()
}

fn between(src: SocketAddr, dst: SocketAddr) -> Vec<Packet> {
    let flow = Flow { src, dst, serial: 0xdead_beef };
    vec![
        Packet::Udp { src, dst, payload: Bytes::new() },
        Packet::Udp { src, dst, payload: vec![1; MAX_DATAGRAM_SIZE].into() },
        Packet::TcpOpen { flow },
        Packet::TcpAccept { flow },
        Packet::TcpRefuse { flow },
        Packet::TcpData { flow, payload: vec![7; MAX_CHUNK_SIZE].into() },
        Packet::TcpWindow { flow, credit: 65_536 },
        Packet::TcpFin { flow },
        Packet::TcpReset { flow },
    ]
}

#[test]
fn every_packet_survives_its_encoding() {
    for packet in samples() {
        let bytes = Bytes::from(packet.encode());
        assert!(bytes.len() <= MAX_PACKET_SIZE);
        assert_eq!(Packet::decode(&bytes), Ok(packet));
    }
}

#[test]
fn wrong_lengths_and_versions_are_refused() {
    for packet in samples() {
        let bytes = packet.encode();
        let mut longer = bytes.clone();
        longer.extend([0; MAX_PACKET_SIZE]);
        let size = longer.len();
        assert_eq!(Packet::decode(&longer.into()), Err(PacketError::Length { size }));
        let mut newer = bytes.clone();
        newer[0] = 2 << 4 | newer[0] & 0x0f;
        assert_eq!(Packet::decode(&newer.into()), Err(PacketError::Version { version: 2 }));
        for cut in 0..bytes.len().min(13) {
            let short = Bytes::copy_from_slice(&bytes[..cut]);
            assert_eq!(Packet::decode(&short), Err(PacketError::Length { size: cut }));
        }
    }
}

#[test]
fn random_bytes_never_panic_and_what_decodes_is_canonical() {
    let mut rng = Rng(7);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..rng.below(40)).map(|_| rng.next() as u8).collect();
        if let (Some(first), true) = (bytes.first_mut(), rng.below(4) > 0) {
            *first = 0x10 | *first & 0x0f;
        }
        let bytes = Bytes::from(bytes);
        if let Ok(packet) = Packet::decode(&bytes) {
            assert_eq!(packet.encode(), bytes);
        }
    }
}
