//! The server of names answers what every resolver asks, and anything else without harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use iptl_labnet::{
    Access, Directory, Engine, EngineConfig, LinkConfig, NAMES, NatConfig, NodeId, RealmId, Topology, v6_of,
};

use crate::bytes::{UDP, assert_sound, ends, packet, parts};
use crate::directory::directory;
use crate::rng::Rng;

const A: u16 = 1;
const SOA: u16 = 6;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const ANY: u16 = 255;

/// Group `a` with two public instances, group `b` with one behind a NAT; links lose everything.
fn world() -> (Engine, Directory) {
    let directory = directory(&[("a", 2), ("b", 1)]);
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let lossy = LinkConfig { loss_ppm: 1_000_000, ..LinkConfig::default() };
    let access = Access { up: lossy, down: lossy, ..Access::default() };
    for last in [1, 2] {
        let addr = Ipv4Addr::new(10, 0, 0, last);
        topology.add_node(RealmId::PUBLIC, addr, v6_of(addr), access).unwrap();
    }
    let outer = Some(Ipv4Addr::new(172, 16, 0, 1));
    let (_, realm) = topology.add_gateway(RealmId::PUBLIC, outer, NatConfig::default(), access).unwrap();
    let own = v6_of(Ipv4Addr::new(10, 0, 0, 3));
    topology.add_node(realm, Ipv4Addr::new(192, 168, 1, 2), own, access).unwrap();
    let mut engine = Engine::new(topology, EngineConfig::default());
    engine.serve_names(Arc::new(directory.clone()), &["localhost", "Sync-Service"]);
    (engine, directory)
}

/// Writes a query for a name in the notation of text.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend([0, (kind >> 8) as u8, kind as u8, 0, 1]);
    bytes
}

/// Asks over IPv4 or IPv6 from a node, and returns what comes back at once.
fn ask(engine: &mut Engine, node: usize, v6: bool, query: &[u8]) -> Option<Vec<u8>> {
    let node = NodeId::from_index(node);
    let like: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let own = engine.addrs(node).unwrap().like(like).unwrap();
    let (from, to) = (SocketAddr::new(own, 5353), SocketAddr::new(NAMES.like(like).unwrap(), 53));
    engine.handle_packet(0, node, packet(UDP, from, to, 0, query));
    let output = engine.poll_output()?;
    assert_eq!((output.node, ends(&output.bytes)), (node, (to, from)));
    assert_sound(&output.bytes);
    assert_eq!(engine.poll_output(), None, "one answer");
    Some(parts(&output.bytes).3[8..].to_vec())
}

/// What an answer says: its code, and its records as text.
fn said(answer: &[u8], asked: &[u8]) -> (u8, Vec<String>) {
    assert_eq!(answer[..2], asked[..2], "its number");
    assert_eq!(answer[2] & 0x84, 0x84, "an answer of who knows");
    assert!(answer.len() <= 512, "{} bytes", answer.len());
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    if u16::from_be_bytes([answer[4], answer[5]]) == 0 {
        assert_eq!((count, answer.len()), (0, 12));
        return (answer[3] & 15, Vec::new());
    }
    let mut rest = answer[asked.len()..].to_vec();
    assert_eq!(answer[12..asked.len()], asked[12..], "the question as it was asked");
    let records = (0..count).map(|_| {
        assert_eq!(rest[..2], [0xc0, 12]);
        let (kind, size) = (u16::from_be_bytes([rest[2], rest[3]]), usize::from(rest[11]));
        let data = rest[12..12 + size].to_vec();
        rest.drain(..12 + size);
        match kind {
            A => Ipv4Addr::from(<[u8; 4]>::try_from(&data[..]).unwrap()).to_string(),
            AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(&data[..]).unwrap()).to_string(),
            _ => String::from_utf8(data[1..=usize::from(data[0])].to_vec()).unwrap(),
        }
    });
    (answer[3] & 15, records.collect())
}

#[test]
fn names_and_addresses_are_those_of_instances_whatever_links_do() {
    let (mut engine, _) = world();
    let v6 = |last: u8| v6_of(Ipv4Addr::new(10, 0, 0, last)).to_string();
    let nibbles = |last: u8| {
        let hex = format!("{:032x}", u128::from(v6_of(Ipv4Addr::new(10, 0, 0, last))));
        let digits: Vec<String> = hex.chars().rev().map(String::from).collect();
        format!("{}.ip6.arpa", digits.join("."))
    };
    let rows: Vec<(String, u16, u8, Vec<String>)> = vec![
        ("a-0".into(), A, 0, vec!["10.0.0.1".into()]),
        ("a-1".into(), AAAA, 0, vec![v6(2)]),
        ("A-1".into(), A, 0, vec!["10.0.0.2".into()]),
        ("1.a.lab".into(), A, 0, vec!["10.0.0.2".into()]),
        ("a-0".into(), ANY, 0, vec!["10.0.0.1".into(), v6(1)]),
        ("a-0".into(), SOA, 0, vec![]),
        ("b-0".into(), A, 0, vec!["172.16.0.1".into()]),
        ("b-0".into(), AAAA, 0, vec![v6(3)]),
        ("localhost".into(), A, 0, vec!["127.0.0.1".into()]),
        ("sync-service".into(), AAAA, 0, vec!["::1".into()]),
        ("1.0.0.10.in-addr.arpa".into(), PTR, 0, vec!["a-0".into()]),
        ("1.0.16.172.in-addr.arpa".into(), PTR, 0, vec!["b-0".into()]),
        (nibbles(2), PTR, 0, vec!["a-1".into()]),
        (nibbles(3), PTR, 0, vec!["b-0".into()]),
        ("lab".into(), A, 0, vec![]),
        ("a.lab".into(), A, 0, vec![]),
        ("a-2".into(), A, 3, vec![]),
        ("a-01".into(), A, 3, vec![]),
        ("c.lab".into(), A, 3, vec![]),
        ("example.org".into(), AAAA, 3, vec![]),
        ("9.0.0.10.in-addr.arpa".into(), PTR, 3, vec![]),
        ("01.0.0.10.in-addr.arpa".into(), PTR, 3, vec![]),
        (nibbles(9), PTR, 3, vec![]),
        ("10.0.0.1".into(), A, 3, vec![]),
        (String::new(), A, 3, vec![]),
    ];
    for over_v6 in [false, true] {
        for node in 0..3 {
            for (name, kind, code, records) in &rows {
                let asked = query(name, *kind);
                let answer = ask(&mut engine, node, over_v6, &asked).unwrap();
                assert_eq!(said(&answer, &asked), (*code, records.clone()), "{name} {kind}");
            }
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.names, stats.spoofed, stats.unroutable), (6 * rows.len() as u64, 0, 0));
    assert_eq!(engine.link_stats(iptl_labnet::LinkId::NodeUp(NodeId::from_index(0))).unwrap().offered, 0);
}

#[test]
fn queries_that_are_none_are_refused_or_not_answered() {
    let (mut engine, _) = world();
    let good = query("a-0", A);
    let changed = |at: usize, value: u8| {
        let mut query = good.clone();
        query[at] = value;
        query
    };
    for (what, asked, code) in [
        ("another operation", changed(2, 0x20), 4),
        ("no question", changed(5, 0), 1),
        ("two questions", changed(5, 2), 1),
        ("another class", changed(good.len() - 1, 3), 5),
        ("a reference", [&good[..12], &[0xc0, 0x0c, 0, 1, 0, 1]].concat(), 1),
        ("a label that goes on and on", [&good[..12], &[63], &[b'x'; 20][..]].concat(), 1),
        ("a name of 300 bytes", query(&vec!["x".repeat(60); 5].join("."), A), 1),
        ("a name without an end", [&good[..12], &[1, b'x'].repeat(200)].concat(), 1),
    ] {
        let answer = ask(&mut engine, 0, false, &asked).unwrap();
        assert_eq!(said(&answer, &asked), (code, vec![]), "{what}");
    }
    for (what, asked) in [("nothing", vec![]), ("eleven bytes", vec![0; 11]), ("an answer", changed(2, 0x81))] {
        assert_eq!(ask(&mut engine, 0, false, &asked), None, "{what}");
    }
    // A dot within a label is no border between two.
    let dotted = [&good[..12], &[7], b"0.a.lab", &[0, 0, 1, 0, 1]].concat();
    assert_eq!(said(&ask(&mut engine, 0, false, &dotted).unwrap(), &dotted), (3, vec![]));
}

#[test]
fn random_queries_never_panic_and_never_get_long_answers() {
    let (mut engine, _) = world();
    let mut rng = Rng(53);
    for _ in 0..20_000 {
        let mut asked = query(["a-0", "1.a.lab", "1.0.0.10.in-addr.arpa", "b-0"][rng.below(4)], A);
        for _ in 0..rng.below(6) {
            let at = rng.below(asked.len());
            asked[at] = rng.next() as u8;
        }
        asked.truncate(rng.below(2 * asked.len()));
        if let Some(answer) = ask(&mut engine, rng.below(3), rng.below(2) == 0, &asked) {
            assert!(answer.len() <= 512 && answer[2] & 0x80 != 0);
        }
        while engine.poll_output().is_some() {}
    }
}

#[test]
fn other_ports_of_the_server_are_nobody() {
    let (mut engine, _) = world();
    let node = NodeId::from_index(0);
    let to = SocketAddr::new(NAMES.v4.unwrap().into(), 54);
    engine.configure(iptl_labnet::LinkId::NodeUp(node), LinkConfig::default());
    engine.handle_packet(0, node, packet(UDP, "10.0.0.1:9".parse().unwrap(), to, 0, &query("a-0", A)));
    let stats = engine.stats();
    assert_eq!((stats.names, stats.unroutable), (0, 1));
}
