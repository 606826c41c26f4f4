//! A network whose nodes are on two machines is the same as one on one.

use std::net::Ipv4Addr;

use bytes::Bytes;
use iptl_labnet::{
    Access, Away, Engine, EngineConfig, LinkConfig, LinkId, NatConfig, NodeId, Packet, RealmId, Topology,
};

use crate::bytes::{assert_sound, at, ends, udp};

const MS: u64 = 1_000_000;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A public node in one region, one behind a NAT in another, 30 ms there and 40 ms back.
fn topology() -> (Topology, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![MS, 30 * MS], vec![40 * MS, MS]]).unwrap();
    let link = |delay_ns| LinkConfig { delay_ns, ..LinkConfig::default() };
    let access = |region| Access { region, up: link(2 * MS), down: link(3 * MS), ..Access::default() };
    let public = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, access(0)).unwrap();
    let (_, home) =
        topology.add_gateway(RealmId::PUBLIC, Some(v4("172.16.0.1")), NatConfig::default(), access(1)).unwrap();
    let inner = topology.add_node(home, v4("192.168.1.2"), None, Access::default()).unwrap();
    (topology, public, inner)
}

/// The engines of two machines: the first has the public node, the second the other.
fn two() -> ([Engine; 2], NodeId, NodeId) {
    let (topology, public, inner) = topology();
    let engine = |away| {
        let mut engine = Engine::new(topology.clone(), EngineConfig::default());
        engine.set_away(away, true);
        engine
    };
    ([engine(inner), engine(public)], public, inner)
}

/// Runs an engine until nothing is under way in it.
fn settle(engine: &mut Engine) {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
}

#[test]
fn packets_arrive_when_they_would_on_one_machine_however_long_the_way_between_the_two() {
    for way_ns in [0, 5 * MS, 29 * MS, 39 * MS] {
        let ([mut first, mut second], public, inner) = two();
        second.handle_packet(0, inner, udp("192.168.1.2:4000", "10.0.0.1:6"));
        settle(&mut second);
        let out = second.poll_away().unwrap();
        assert_eq!((out.to, out.origin, out.from_ns), (public, Some(inner), 2 * MS));
        first.handle_away(2 * MS + way_ns, out);
        settle(&mut first);
        let there = first.poll_output().unwrap();
        assert_eq!((there.node, there.due_ns), (public, 45 * MS));
        assert_sound(&there.bytes);
        assert_eq!(ends(&there.bytes), (at("172.16.0.1:4000"), at("10.0.0.1:6")));
        assert_eq!(first.stats().overdue, 0);
        assert_eq!(first.link_stats(LinkId::Region { from: 1, to: 0 }).unwrap().asked_ns, 40 * MS);

        first.handle_packet(50 * MS, public, udp("10.0.0.1:6", "172.16.0.1:4000"));
        settle(&mut first);
        let back = first.poll_away().unwrap();
        assert_eq!((back.to, back.origin, back.from_ns), (inner, Some(public), 52 * MS));
        second.handle_away(52 * MS + way_ns.min(29 * MS), back);
        settle(&mut second);
        let here = second.poll_output().unwrap();
        assert_eq!((here.node, here.due_ns), (inner, 85 * MS));
        assert_sound(&here.bytes);
    }
}

#[test]
fn packet_that_takes_longer_than_its_delay_goes_on_at_once_and_is_counted() {
    let ([mut first, _], public, inner) = two();
    let packet =
        Away { to: public, origin: Some(inner), bytes: udp("172.16.0.1:7", "10.0.0.1:6"), from_ns: 0, relayed: false };
    first.handle_away(70 * MS, packet);
    settle(&mut first);
    assert_eq!((first.stats().overdue, first.stats().max_overdue_ns), (1, 30 * MS));
    assert!(first.lateness().max_ns() >= 30 * MS);
    assert_eq!(first.poll_output().unwrap().node, public);
}

#[test]
fn other_machine_speaks_for_its_own_nodes_alone() {
    let ([mut first, _], public, inner) = two();
    let forged = [
        ("of a node of ours", Some(public), udp("10.0.0.1:5", "10.0.0.1:6")),
        ("with our address", Some(inner), udp("10.0.0.1:5", "10.0.0.1:6")),
        ("with its private address", Some(inner), udp("192.168.1.2:5", "10.0.0.1:6")),
        ("with nobody's address", Some(inner), udp("10.9.9.9:5", "10.0.0.1:6")),
        ("of a router that sends datagrams", None, udp("192.0.2.1:5", "10.0.0.1:6")),
    ];
    let count = forged.len() as u64;
    for (what, origin, bytes) in forged {
        first.handle_away(MS, Away { to: public, origin, bytes, from_ns: 0, relayed: false });
        settle(&mut first);
        assert_eq!(first.poll_output(), None, "{what}");
    }
    assert_eq!(first.stats().spoofed, count);

    // Nor does it pass on what is for somebody else, or read what is no packet.
    for (bytes, to) in [(udp("172.16.0.1:5", "10.8.8.8:6"), public), (udp("172.16.0.1:5", "172.16.0.1:6"), inner)] {
        first.handle_away(MS, Away { to, origin: Some(inner), bytes, from_ns: 0, relayed: false });
    }
    first.handle_away(
        MS,
        Away { to: public, origin: Some(inner), bytes: vec![0x45; 9], from_ns: u64::MAX, relayed: false },
    );
    settle(&mut first);
    assert_eq!((first.stats().unroutable, first.stats().malformed, first.poll_output()), (2, 1, None));
}

#[test]
fn packets_between_machines_are_read_as_they_were_written() {
    let (_, public, inner) = topology();
    for origin in [None, Some(inner)] {
        let away =
            Away { to: public, origin, bytes: udp("172.16.0.1:7", "10.0.0.1:6"), from_ns: 1 << 40 | 7, relayed: false };
        let mut bytes = away.encode();
        assert!(Away::is_encoded(&bytes));
        assert_eq!(Away::decode(&bytes), Some(away.clone()));
        Away::stamp(&mut bytes, true, |from_ns| from_ns - 3);
        let stamped = Away { from_ns: away.from_ns - 3, relayed: true, ..away.clone() };
        assert_eq!(Away::decode(&bytes), Some(stamped));
        assert_eq!((Away::origin_of(&bytes), Away::target_of(&bytes)), (Some(origin), Some(public)));
        for cut in 0..17 {
            assert_eq!(Away::decode(&bytes[..cut]), None);
        }
    }
    let socket =
        Packet::Udp { src: "10.0.0.1:1".parse().unwrap(), dst: "10.0.0.2:2".parse().unwrap(), payload: Bytes::new() };
    assert!(!Away::is_encoded(&socket.encode()) && Away::decode(&socket.encode()).is_none());
}

#[test]
fn partition_holds_between_machines() {
    let ([mut first, _], public, inner) = two();
    first.partition(&[Some(0), Some(1)]);
    let bytes = udp("172.16.0.1:7", "10.0.0.1:6");
    first.handle_away(0, Away { to: public, origin: Some(inner), bytes, from_ns: 0, relayed: false });
    settle(&mut first);
    assert_eq!((first.stats().partitioned, first.poll_output()), (1, None));
}
