//! What is for a door out of the lab comes back to its node, from an address that says which door it was; nothing leaves.

use std::net::{Ipv4Addr, SocketAddr};

use iptl_labnet::{Access, Door, Doors, Engine, EngineConfig, NatConfig, NodeId, Output, RealmId, Topology};

use crate::bytes::{TCP, UDP, assert_sound, at, ends, packet};
use crate::offload::{finish, large};

/// Ports of the carrier.
const CARRIER: [(u8, u16); 2] = [(TCP, 40_001), (UDP, 40_002)];

/// A public node and one behind a NAT, each with its address; the doors of both.
fn world() -> (Engine, [(NodeId, &'static str, &'static str); 2]) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let six = |text: &str| Some(text.parse().unwrap());
    let access = Access::default();
    let a = topology.add_node(RealmId::PUBLIC, Ipv4Addr::new(10, 0, 0, 1), six("fd00::1"), access).unwrap();
    let outer = Some(Ipv4Addr::new(172, 16, 0, 1));
    let (_, realm) = topology.add_gateway(RealmId::PUBLIC, outer, NatConfig::default(), access).unwrap();
    let b = topology.add_node(realm, Ipv4Addr::new(192, 168, 1, 2), six("fd00::2"), access).unwrap();
    (Engine::new(topology, EngineConfig::default()), [(a, "10.0.0.1", "[fd00::1]"), (b, "192.168.1.2", "[fd00::2]")])
}

fn doors() -> Doors {
    let door = |place: &str, tcp, seen_as: &str| Door { at: at(place), tcp, seen_as: seen_as.parse().unwrap() };
    let doors = vec![
        door("192.0.2.64:443", true, "192.0.2.128"),
        door("192.0.2.64:443", false, "192.0.2.129"),
        door("192.0.2.64:80", true, "192.0.2.130"),
        door("[2001:db8::40]:443", true, "2001:db8::80"),
        door("[2001:db8::40]:443", false, "2001:db8::81"),
    ];
    Doors { doors, tcp_port: CARRIER[0].1, udp_port: CARRIER[1].1 }
}

fn outputs(engine: &mut Engine) -> Vec<Output> {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    std::iter::from_fn(|| engine.poll_output()).collect()
}

#[test]
fn packets_go_to_the_carrier_and_its_answers_come_from_the_door() {
    let (mut engine, nodes) = world();
    for (node, v4, v6) in nodes {
        engine.set_doors(node, doors());
        for (protocol, door, seen_as) in [
            (TCP, "192.0.2.64:443", "192.0.2.128"),
            (UDP, "192.0.2.64:443", "192.0.2.129"),
            (TCP, "192.0.2.64:80", "192.0.2.130"),
            (TCP, "[2001:db8::40]:443", "[2001:db8::80]"),
            (UDP, "[2001:db8::40]:443", "[2001:db8::81]"),
        ] {
            let own = if door.starts_with('[') { v6 } else { v4 };
            let carrier = CARRIER.iter().find(|(of, _)| *of == protocol).unwrap().1;
            let here = |port: u16| at(&format!("{own}:{port}"));
            let seen = at(&format!("{seen_as}:5555"));
            let check = |output: &Output, expected: (SocketAddr, SocketAddr)| {
                for part in finish(output) {
                    assert_eq!((output.node, ends(&part)), (node, expected));
                    assert_sound(&part);
                }
            };
            // There, as one packet and as many in one whose checksums are not complete.
            engine.handle_packet(0, node, packet(protocol, here(5555), at(door), 2, b"hello"));
            let (bytes, description) = large(protocol, &here(5555).to_string(), door, 5_000, 1_000);
            engine.handle_offloaded(0, node, bytes, description);
            let there = outputs(&mut engine);
            assert_eq!(there.iter().map(|output| finish(output).len()).collect::<Vec<_>>(), [1, 5]);
            there.iter().for_each(|output| check(output, (seen, here(carrier))));
            // And back.
            engine.handle_packet(0, node, packet(protocol, here(carrier), seen, 2, b"hello"));
            let (bytes, description) = large(protocol, &here(carrier).to_string(), &seen.to_string(), 5_000, 1_000);
            engine.handle_offloaded(0, node, bytes, description);
            let back = outputs(&mut engine);
            assert_eq!(back.iter().map(|output| finish(output).len()).collect::<Vec<_>>(), [1, 5]);
            back.iter().for_each(|output| check(output, (at(door), here(5555))));
        }
    }
    assert_eq!((engine.stats().turned, engine.stats().unroutable), (2 * 5 * 4, 0));
}

#[test]
fn what_is_for_no_door_is_not_turned() {
    let (mut engine, [(a, ..), (b, ..)]) = world();
    engine.set_doors(a, doors());
    let from = |port: u16| at(&format!("10.0.0.1:{port}"));
    for (protocol, to) in [
        // Another port, another way to speak, another host, the other side of a door, and what is nobody's.
        (TCP, "192.0.2.64:444"),
        (UDP, "192.0.2.64:80"),
        (TCP, "192.0.2.65:443"),
        (TCP, "192.0.2.128:443"),
        (TCP, "192.0.2.128:40001"),
        (UDP, "127.0.0.1:443"),
        (TCP, "8.8.8.8:443"),
    ] {
        engine.handle_packet(0, a, packet(protocol, from(5555), at(to), 2, b"hello"));
    }
    // From the carrier's port of the other kind, to nobody's door.
    engine.handle_packet(0, a, packet(UDP, from(40_001), at("192.0.2.128:5555"), 0, b"hello"));
    engine.handle_packet(0, a, packet(TCP, from(40_001), at("192.0.2.131:5555"), 2, b"hello"));
    // With a source that is not its own.
    engine.handle_packet(0, a, packet(TCP, at("192.0.2.128:5555"), from(40_001), 2, b"hello"));
    // Of a node that has no doors, and of one that has none any more.
    engine.handle_packet(0, b, packet(TCP, at("192.168.1.2:5555"), at("192.0.2.64:443"), 2, b"hello"));
    engine.set_doors(a, Doors::default());
    engine.handle_packet(0, a, packet(TCP, from(5555), at("192.0.2.64:443"), 2, b"hello"));
    assert_eq!(engine.stats().turned, 0);
    assert_eq!(engine.stats().spoofed, 1);
}
