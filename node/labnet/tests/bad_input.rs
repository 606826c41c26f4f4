//! What an engine is given that is no network, no packet, or nobody's: refused or dropped, counted, and neighbours live.

use std::net::Ipv4Addr;

use iptl_labnet::{
    Access, Engine, EngineConfig, Header, LinkConfig, NodeId, RealmId, Topology, TopologyError, fragments,
};

use crate::bytes::{UDP, at, packet, seal, udp};
use crate::rng::Rng;

const MS: u64 = 1_000_000;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A hostile node and two honest ones; each has a link that carries 10 Mbit/s.
fn world() -> (Engine, NodeId) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let up = LinkConfig { rate_bps: 10_000_000, queue_bytes: 64 << 10, ..LinkConfig::default() };
    let access = Access { up, ..Access::default() };
    let nodes = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let nodes = nodes.map(|addr| topology.add_node(RealmId::PUBLIC, v4(addr), None, access).unwrap());
    (Engine::new(topology, EngineConfig::default()), nodes[0])
}

/// Runs until nothing is under way and returns how many packets came to the two honest nodes.
fn settle(engine: &mut Engine) -> usize {
    let mut arrived = 0;
    loop {
        while let Some(output) = engine.poll_output() {
            arrived += usize::from(output.node.index() > 0);
            engine.recycle(output.bytes);
        }
        let Some(at_ns) = engine.poll_timeout() else { return arrived };
        engine.handle_timeout(at_ns);
    }
}

/// The honest nodes still reach each other, at once.
fn neighbours_live(engine: &mut Engine) {
    settle(engine);
    let sender = NodeId::from_index(1);
    engine.handle_packet(0, sender, udp("10.0.0.2:5", "10.0.0.3:5"));
    assert_eq!(settle(engine), 1, "the neighbours");
}

#[test]
fn addresses_that_clash() {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let addr = v4("10.0.0.1");
    topology.add_node(RealmId::PUBLIC, addr, None, Access::default()).unwrap();
    let clash = topology.add_node(RealmId::PUBLIC, addr, None, Access::default());
    assert_eq!(clash, Err(TopologyError::AddressTaken { addr: addr.into() }));
    assert_eq!(topology.len(), 1, "it is as it was");
}

#[test]
fn packets_with_malformed_heads() {
    let (mut engine, hostile) = world();
    let good = udp("10.0.0.1:4", "10.0.0.2:4");
    let mut bad = vec![Vec::new(), vec![0x45], vec![0xff; 40], vec![0; 2000]];
    bad.extend((1..good.len()).map(|len| good[..len].to_vec()));
    for (at, value) in [(0, 0x41), (0, 0x4f), (0, 0x75), (2, 0xff), (3, 0)] {
        let mut packet = good.clone();
        packet[at] = value;
        seal(&mut packet);
        bad.push(packet);
    }
    let count = bad.len() as u64;
    bad.into_iter().for_each(|packet| engine.handle_packet(0, hostile, packet));
    assert_eq!(settle(&mut engine), 0, "none of them is carried");
    let stats = engine.stats();
    assert_eq!(stats.malformed + stats.spoofed, count, "{stats:?}");
    neighbours_live(&mut engine);
}

#[test]
fn packets_with_the_source_of_somebody_else() {
    let (mut engine, hostile) = world();
    for source in ["10.0.0.2:4", "0.0.0.0:4", "127.0.0.1:4", "255.255.255.255:4", "8.8.8.8:4", "192.0.2.1:4"] {
        engine.handle_packet(0, hostile, udp(source, "10.0.0.3:4"));
    }
    assert_eq!(settle(&mut engine), 0);
    assert_eq!(engine.spoofed_by(hostile), Some(6));
    neighbours_live(&mut engine);
}

#[test]
fn fragments_that_lie() {
    let (mut engine, hostile) = world();
    let whole = crate::bytes::packet(17, "10.0.0.1:4".parse().unwrap(), "10.0.0.2:4".parse().unwrap(), 0, &[7; 4000]);
    let header = Header::parse(&whole).unwrap();
    let parts = fragments(&whole, &header, 600).unwrap();
    assert!(parts.len() > 6);
    for (n, part) in parts.iter().enumerate() {
        // The same place again and again, beyond the end of any packet, and none of the first.
        for field in [0x2000u16, 0x3fff, 0x1fff, 0x2001 + u16::try_from(n).unwrap()] {
            let mut lie = part.clone();
            lie[6..8].copy_from_slice(&field.to_be_bytes());
            seal(&mut lie);
            engine.handle_packet(0, hostile, lie);
        }
    }
    settle(&mut engine);
    neighbours_live(&mut engine);
}

#[test]
fn packets_that_are_jumbo() {
    let (mut engine, hostile) = world();
    let payload = vec![7; 60_000];
    let large = crate::bytes::packet(17, "10.0.0.1:4".parse().unwrap(), "10.0.0.2:4".parse().unwrap(), 0, &payload);
    let mut endless = large.clone();
    endless.extend(vec![0; 1 << 20]);
    let mut never = large.clone();
    never[6..8].copy_from_slice(&0x4000u16.to_be_bytes());
    seal(&mut never);
    for packet in [large, endless, never] {
        engine.handle_packet(0, hostile, packet);
    }
    settle(&mut engine);
    neighbours_live(&mut engine);
}

#[test]
fn flood() {
    let (mut engine, hostile) = world();
    let packet = udp("10.0.0.1:4", "10.0.0.2:4");
    for n in 0..200_000u64 {
        // A second of it, at twenty times what its link carries.
        engine.handle_packet(n * MS / 200, hostile, packet.clone());
        while let Some(output) = engine.poll_output() {
            engine.recycle(output.bytes);
        }
    }
    let up = engine.links_of(hostile).0[0];
    assert!(up.overflowed > 100_000, "its own link holds it: {up:?}");
    assert_eq!(up.offered, 200_000);
    neighbours_live(&mut engine);
}

#[test]
fn packets_of_ipv6_with_heads_that_lie() {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let nodes = [1, 2, 3].map(|last| {
        let addr = Ipv4Addr::new(10, 0, 0, last);
        topology.add_node(RealmId::PUBLIC, addr, iptl_labnet::v6_of(addr), Access::default()).unwrap()
    });
    let mut engine = Engine::new(topology, EngineConfig::default());
    let good = packet(UDP, at("[fd69:7074:6c00::a00:1]:4"), at("[fd69:7074:6c00::a00:2]:4"), 0, b"hello");
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    // Lengths beyond the bytes, extension heads without end or end, another version.
    let mut bad = vec![changed(4, 0xff), changed(6, 0), changed(6, 43), changed(6, 60), changed(0, 0x75)];
    bad.extend((1..good.len()).map(|len| good[..len].to_vec()));
    let chain = [&changed(6, 0)[..40], &[0, 0, 1, 4, 0, 0, 0, 0].repeat(200)].concat();
    bad.push([&chain[..4], &1600u16.to_be_bytes(), &chain[6..]].concat());
    let count = bad.len() as u64;
    bad.into_iter().for_each(|packet| engine.handle_packet(0, nodes[0], packet));
    assert_eq!(settle(&mut engine), 0, "none of them is carried");
    assert_eq!(engine.stats().malformed + engine.stats().spoofed, count, "{:?}", engine.stats());
    engine.handle_packet(0, nodes[0], good);
    assert_eq!(settle(&mut engine), 1);
    neighbours_live(&mut engine);
}

#[test]
fn queries_of_names_without_end_or_sense() {
    let (mut engine, hostile) = world();
    let directory = crate::directory::directory(&[("g", 3)]);
    engine.serve_names(std::sync::Arc::new(directory), &[]);
    let mut rng = Rng(1);
    let mut bytes = 0;
    for number in 0..20_000 {
        let query: Vec<u8> =
            (0..rng.below(600)).map(|_| rng.next() as u8 & if number % 2 == 0 { 0x7f } else { 0xff }).collect();
        let asked = packet(UDP, at("10.0.0.1:4000"), at("192.0.2.53:53"), 0, &query);
        engine.handle_packet(0, hostile, asked);
        while let Some(output) = engine.poll_output() {
            assert!(output.node == hostile && output.bytes.len() <= 540, "who asks is told, and shortly");
            bytes += output.bytes.len();
        }
    }
    assert!(bytes > 0 && engine.held_bytes() == 0, "nothing is kept");
    neighbours_live(&mut engine);
}
