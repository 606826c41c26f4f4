//! Captures are read by programs of others, and hold what passed.

use std::net::{IpAddr, Ipv4Addr};

use iptl_labnet::{
    Access, Engine, EngineConfig, Header, LinkConfig, NatConfig, NodeId, PCAP_HEADER, RealmId, Topology,
};
use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{LegacyPcapReader, Linktype, PcapBlockOwned, PcapError};

use crate::bytes::udp;

const MS: u64 = 1_000_000;

/// 2026-01-01, in nanoseconds since 1970.
const WALL_NS: u64 = 1_767_225_600_000_000_000;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A public node and one behind a NAT, 5 ms apart.
fn world() -> (Engine, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let link = LinkConfig { delay_ns: 5 * MS, ..LinkConfig::default() };
    let access = Access { up: link, ..Access::default() };
    let public = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, Access::default()).unwrap();
    let (_, home) =
        topology.add_gateway(RealmId::PUBLIC, Some(v4("172.16.0.1")), NatConfig::default(), access).unwrap();
    let inner = topology.add_node(home, v4("192.168.1.2"), None, Access::default()).unwrap();
    (Engine::new(topology, EngineConfig::default()), public, inner)
}

fn settle(engine: &mut Engine) {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    while let Some(output) = engine.poll_output() {
        engine.recycle(output.bytes);
    }
}

/// Returns times and packets of a capture, as another program reads it.
fn read(capture: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut reader = LegacyPcapReader::new(1 << 20, capture).unwrap();
    let mut packets = Vec::new();
    loop {
        match reader.next() {
            Ok((size, PcapBlockOwned::LegacyHeader(head))) => {
                assert!(head.is_nanosecond_precision() && !head.is_bigendian());
                assert_eq!((head.network, head.version_major, head.version_minor), (Linktype::RAW, 2, 4));
                reader.consume(size);
            }
            Ok((size, PcapBlockOwned::Legacy(packet))) => {
                assert_eq!(packet.caplen, packet.origlen);
                let at_ns = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_usec);
                packets.push((at_ns, packet.data.to_vec()));
                reader.consume(size);
            }
            Ok((_, PcapBlockOwned::NG(_))) => panic!("another format"),
            Err(PcapError::Eof) => return packets,
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    let header = Header::parse(packet).unwrap();
    (header.src, header.dst)
}

#[test]
fn capture_has_what_a_node_sees_when_it_sees_it_and_nothing_else() {
    let (mut engine, public, inner) = world();
    engine.capture(inner, 1 << 20, WALL_NS);
    engine.handle_packet(MS, inner, udp("192.168.1.2:4000", "10.0.0.1:6"));
    engine.handle_timeout(6 * MS);
    let out = engine.poll_output().unwrap();
    assert_eq!(out.node, public);
    let Some(iptl_labnet::Transport::Udp { src, .. }) = Some(out.header.transport) else { panic!("no datagram") };
    engine.handle_packet(9 * MS, public, udp("10.0.0.1:6", &format!("172.16.0.1:{src}")));
    settle(&mut engine);
    // What others say to each other is theirs.
    engine.handle_packet(10 * MS, public, udp("10.0.0.1:6", "10.0.0.1:7"));
    settle(&mut engine);

    let piece = engine.poll_captured().unwrap();
    assert_eq!((piece.node, piece.full), (inner, false));
    assert_eq!(engine.poll_captured(), None);
    let packets = read(&[&PCAP_HEADER[..], &piece.bytes].concat());
    let seen: Vec<_> = packets.iter().map(|(at_ns, packet)| (at_ns - WALL_NS, ends(packet))).collect();
    let (own, other) = (IpAddr::V4(v4("192.168.1.2")), IpAddr::V4(v4("10.0.0.1")));
    assert_eq!(seen, [(MS, (own, other)), (9 * MS, (other, own))], "by its own address, not its gateway's");
}

#[test]
fn capture_that_is_full_says_so_once_and_grows_no_more() {
    let (mut engine, public, inner) = world();
    let packet = udp("192.168.1.2:4000", "10.0.0.1:6");
    engine.capture(inner, 3 * (packet.len() as u64 + 16), 0);
    let mut capture = PCAP_HEADER.to_vec();
    let mut full = 0;
    for n in 0..1_000 {
        engine.handle_packet(n * MS, inner, packet.clone());
        settle(&mut engine);
        while let Some(piece) = engine.poll_captured() {
            full += usize::from(piece.full);
            capture.extend(piece.bytes);
        }
    }
    assert_eq!((read(&capture).len(), full), (3, 1));
    assert_eq!(engine.links_of(public).1[0].delivered, 1_000, "the network goes on");
}

#[test]
fn capture_takes_whatever_a_node_sends_also_what_is_no_packet() {
    let (mut engine, _, inner) = world();
    engine.capture(inner, 1 << 20, 0);
    let spoofed = udp("10.9.9.9:1", "10.0.0.1:6");
    for bytes in [vec![0x45; 3], spoofed.clone()] {
        engine.handle_packet(0, inner, bytes);
    }
    let piece = engine.poll_captured().unwrap();
    let packets: Vec<_> = read(&[&PCAP_HEADER[..], &piece.bytes].concat()).into_iter().map(|(_, p)| p).collect();
    assert_eq!(packets, [vec![0x45; 3], spoofed]);
}
