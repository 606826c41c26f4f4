//! Large packets are worth the packets that a network card would make of them.

use std::net::Ipv4Addr;

use iptl_labnet::{
    Access, Engine, EngineConfig, Header, LinkConfig, LinkId, MIN_MTU_V6, NatConfig, NodeId, OFFLOAD_SIZE, Offload,
    Output, RealmId, Topology,
};

use crate::bytes::{TCP, UDP, assert_sound, at, ends, packet, parts};
use crate::rng::Rng;

const FIN_PSH_CWR_ACK: u8 = 0x01 | 0x08 | 0x80 | 0x10;

/// Makes a large packet as a system hands it down: its checksum is the sum over what the card does not know.
pub(crate) fn large(protocol: u8, src: &str, dst: &str, payload: usize, segment: u16) -> (Vec<u8>, [u8; OFFLOAD_SIZE]) {
    let payload: Vec<u8> = (0..payload).map(|i| (i * 7 % 251) as u8).collect();
    let mut bytes = packet(protocol, at(src), at(dst), FIN_PSH_CWR_ACK, &payload);
    let header = Header::parse(&bytes).unwrap();
    let start = header.transport_at;
    let offset = if protocol == TCP { 16 } else { 6 };
    let mut pseudo = [&bytes[start - if bytes[0] >> 4 == 4 { 8 } else { 32 }..start], &[0, protocol]].concat();
    pseudo.extend_from_slice(&u32::try_from(bytes.len() - start).unwrap().to_be_bytes());
    let total: u64 = pseudo.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    let folded = (total & 0xffff) + (total >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    bytes[start + offset..start + offset + 2].copy_from_slice(&folded.to_be_bytes());
    let kind = match (protocol, bytes[0] >> 4) {
        (UDP, _) => 5,
        (_, 4) => 1,
        _ => 4,
    };
    let mut description = [0; OFFLOAD_SIZE];
    description[0] = 1;
    description[1] = if segment > 0 { kind } else { 0 };
    description[4..6].copy_from_slice(&segment.to_ne_bytes());
    description[6..8].copy_from_slice(&u16::try_from(start).unwrap().to_ne_bytes());
    description[8..10].copy_from_slice(&u16::try_from(offset).unwrap().to_ne_bytes());
    (bytes, description)
}

/// Does all that is left to be done to an output.
pub(crate) fn finish(output: &Output) -> Vec<Vec<u8>> {
    let parts = output.offload.split(&output.bytes, &output.header, Vec::with_capacity);
    let one = |mut bytes: Vec<u8>| {
        let mut header = Header { partial: output.header.partial, ..Header::parse(&bytes).unwrap() };
        Offload { segment: None, ..output.offload }.complete(&mut bytes, &mut header);
        bytes
    };
    parts.into_iter().map(one).collect()
}

fn payload_of(bytes: &[u8]) -> &[u8] {
    let (_, _, protocol, transport) = parts(bytes);
    &transport[if protocol == TCP { 20 } else { 8 }..]
}

fn two_nodes(up: LinkConfig, down: LinkConfig, mtu: u16) -> (Engine, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let six = |text: &str| Some(text.parse().unwrap());
    let v4 = |last| Ipv4Addr::new(10, 0, 0, last);
    let access = Access { up, ..Access::default() };
    let a = topology.add_node(RealmId::PUBLIC, v4(1), six("fd00::1"), access).unwrap();
    let access = Access { down, mtu, ..Access::default() };
    let b = topology.add_node(RealmId::PUBLIC, v4(2), six("fd00::2").filter(|_| mtu >= MIN_MTU_V6), access).unwrap();
    (Engine::new(topology, EngineConfig::default()), a, b)
}

fn outputs(engine: &mut Engine) -> Vec<Output> {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    std::iter::from_fn(|| engine.poll_output()).collect()
}

const ENDS: [(u8, &str, &str); 4] = [
    (TCP, "10.0.0.1:5", "10.0.0.2:6"),
    (UDP, "10.0.0.1:5", "10.0.0.2:6"),
    (TCP, "[fd00::1]:5", "[fd00::2]:6"),
    (UDP, "[fd00::1]:5", "[fd00::2]:6"),
];

#[test]
fn large_packet_is_cut_into_sound_packets_with_the_same_bytes() {
    for (protocol, src, dst) in ENDS {
        for (size, segment) in [(40_000, 1428), (2856, 1428), (1, 1428), (1429, 1428), (2_000, 1), (300, 100)] {
            let (bytes, description) = large(protocol, src, dst, size, segment);
            let (mut engine, a, _) = two_nodes(LinkConfig::default(), LinkConfig::default(), 1500);
            engine.handle_offloaded(0, a, bytes.clone(), description);
            let whole = outputs(&mut engine);
            assert_eq!(whole.len(), 1, "clean links pass it whole");
            assert!(whole[0].bytes[20..] == bytes[20..], "all but its hops is as it was");
            assert_eq!(whole[0].offload.encode(&whole[0].bytes, &whole[0].header)[4..], description[4..]);

            let cut = finish(&whole[0]);
            assert_eq!(cut.len(), size.div_ceil(usize::from(segment)));
            cut.iter().for_each(|part| assert_sound(part));
            let joined: Vec<u8> = cut.iter().flat_map(|part| payload_of(part).to_vec()).collect();
            assert!(joined == payload_of(&bytes), "{protocol} {size} {segment}");
            if protocol == TCP {
                let numbers: Vec<u32> =
                    cut.iter().map(|part| u32::from_be_bytes(parts(part).3[4..8].try_into().unwrap())).collect();
                assert!(numbers.iter().enumerate().all(|(i, n)| *n == i as u32 * u32::from(segment)));
                let flags: Vec<u8> = cut.iter().map(|part| parts(part).3[13]).collect();
                let last = flags.len() - 1;
                assert!(flags.iter().enumerate().all(|(i, flags)| (flags & 0x09 != 0) == (i == last)), "{flags:x?}");
                assert!(flags.iter().enumerate().all(|(i, flags)| (flags & 0x80 != 0) == (i == 0)), "{flags:x?}");
            }
            let up = engine.link_stats(LinkId::NodeUp(a)).unwrap();
            assert_eq!((up.offered, up.delivered), (cut.len() as u64, cut.len() as u64));
            assert_eq!(up.offered_bytes, cut.iter().map(|part| part.len() as u64).sum::<u64>());
        }
    }
}

#[test]
fn links_that_look_at_packets_see_those_on_the_wire() {
    let (bytes, description) = large(TCP, "10.0.0.1:5", "10.0.0.2:6", 14_480, 1448);
    let slow = LinkConfig { rate_bps: 12_000_000, queue_bytes: 1 << 20, ..LinkConfig::default() };
    let (mut engine, a, _) = two_nodes(slow, LinkConfig::default(), 1500);
    engine.handle_offloaded(0, a, bytes.clone(), description);
    let due: Vec<u64> = outputs(&mut engine).iter().map(|output| output.due_ns / 1_000).collect();
    // 1488 bytes at 12 Mbit/s are 992 µs.
    assert_eq!(due, (1..=10).map(|i| i * 992).collect::<Vec<_>>());

    let lossy = LinkConfig { loss_ppm: 300_000, ..LinkConfig::default() };
    let (mut engine, a, _) = two_nodes(LinkConfig::default(), lossy, 1500);
    for i in 0..200 {
        engine.handle_offloaded(i, a, bytes.clone(), description);
    }
    let arrived = outputs(&mut engine);
    assert!((1_300..1_500).contains(&arrived.len()), "{} of 2000 packets, of which 30 % are lost", arrived.len());
    arrived.iter().for_each(|output| finish(output).iter().for_each(|part| assert_sound(part)));
}

#[test]
fn corrupted_packet_is_not_made_right_by_who_completes_its_checksum() {
    let (bytes, description) = large(UDP, "10.0.0.1:5", "10.0.0.2:6", 1000, 0);
    let corrupt = LinkConfig { corrupt_ppm: 1_000_000, ..LinkConfig::default() };
    let (mut engine, a, _) = two_nodes(corrupt, LinkConfig::default(), 1500);
    for now in 0..20 {
        engine.handle_offloaded(now, a, bytes.clone(), description);
    }
    // Some have their wrong bit in the head, and end.
    let arrived = outputs(&mut engine);
    assert!(arrived.len() > 15);
    for output in arrived {
        assert_eq!(output.offload, Offload::default());
        let wrong = std::panic::catch_unwind(|| assert_sound(&output.bytes));
        assert!(wrong.is_err(), "the wrong bit is under a checksum");
    }
}

#[test]
fn translation_before_and_after_the_checksum_is_complete_is_the_same() {
    let mut rng = Rng(3);
    for (protocol, offload) in [(TCP, true), (UDP, true), (TCP, false), (UDP, false)] {
        let mut topology = Topology::new(vec![vec![0]]).unwrap();
        topology.add_node(RealmId::PUBLIC, Ipv4Addr::new(10, 0, 0, 2), None, Access::default()).unwrap();
        let outside = Some(Ipv4Addr::new(5, 5, 5, 5));
        let (_, home) =
            topology.add_gateway(RealmId::PUBLIC, outside, NatConfig::default(), Access::default()).unwrap();
        let inner = topology.add_node(home, Ipv4Addr::new(192, 168, 1, 2), None, Access::default()).unwrap();
        let mut engine = Engine::new(topology, EngineConfig::default());
        for now in 0..200 {
            let src = format!("192.168.1.2:{}", 1024 + rng.below(60_000));
            let size = 1 + rng.below(if offload { 9_000 } else { 1_400 });
            let (bytes, description) = large(protocol, &src, "10.0.0.2:6", size, if offload { 1448 } else { 0 });
            engine.handle_offloaded(now, inner, bytes.clone(), description);
            let output = outputs(&mut engine).remove(0);
            for part in finish(&output) {
                assert_sound(&part);
                assert_eq!(ends(&part).0.ip().to_string(), "5.5.5.5");
            }
        }
    }
}

#[test]
fn packet_with_a_checksum_to_complete_is_completed_before_it_becomes_fragments() {
    let (bytes, description) = large(UDP, "10.0.0.1:5", "10.0.0.2:6", 1400, 0);
    let (mut engine, a, _) = two_nodes(LinkConfig::default(), LinkConfig::default(), 576);
    engine.handle_offloaded(0, a, bytes, description);
    let fragments = outputs(&mut engine);
    assert_eq!(fragments.len(), 3);
    assert!(fragments.iter().all(|fragment| fragment.offload == Offload::default() && fragment.bytes.len() <= 576));
    let transport: Vec<u8> = fragments.iter().flat_map(|fragment| fragment.bytes[20..].to_vec()).collect();
    let src = at("10.0.0.1:5").ip();
    assert_sound(&crate::bytes::wrap(src, at("10.0.0.2:6").ip(), UDP, &transport));
}

#[test]
fn descriptions_that_do_not_fit_are_malformed() {
    let (bytes, good) = large(TCP, "10.0.0.1:5", "10.0.0.2:6", 4000, 1448);
    let with = |at: usize, value: &[u8]| {
        let mut description = good;
        description[at..at + value.len()].copy_from_slice(value);
        description
    };
    let rows = [
        ("kind of datagrams", with(1, &[5])),
        ("kind of IPv6", with(1, &[4])),
        ("unknown kind", with(1, &[3])),
        ("no size of segments", with(4, &[0, 0])),
        ("no checksum for parts", with(0, &[0])),
        ("checksum of the head", with(6, &[0, 0])),
        ("checksum beyond the end", with(8, &u16::MAX.to_ne_bytes())),
        ("checksum on a port", with(8, &2u16.to_ne_bytes())),
    ];
    for (what, description) in rows {
        let (mut engine, a, _) = two_nodes(LinkConfig::default(), LinkConfig::default(), 1500);
        engine.handle_offloaded(0, a, bytes.clone(), description);
        assert_eq!((engine.stats().malformed, outputs(&mut engine).len()), (1, 0), "{what}");
    }
    // Whatever the bytes, nothing panics.
    let mut rng = Rng(11);
    let lossy = LinkConfig { loss_ppm: 1, corrupt_ppm: 500_000, ..LinkConfig::default() };
    let (mut engine, a, _) = two_nodes(lossy, LinkConfig { rate_bps: 1 << 40, queue_bytes: 1 << 40, ..lossy }, 600);
    for now in 0..20_000 {
        let (mut bytes, mut description) = large(TCP, "10.0.0.1:5", "10.0.0.2:6", rng.below(3000), 700);
        for _ in 0..rng.below(4) {
            let at = rng.below(bytes.len().min(48));
            bytes[at] = rng.next() as u8;
        }
        for _ in 0..rng.below(3) {
            description[rng.below(OFFLOAD_SIZE)] = rng.next() as u8;
        }
        bytes.truncate(bytes.len() - rng.below(bytes.len() / 2));
        engine.handle_offloaded(now, a, bytes, description);
        for output in outputs(&mut engine) {
            let _ = output.offload.encode(&output.bytes, &output.header);
        }
    }
}
