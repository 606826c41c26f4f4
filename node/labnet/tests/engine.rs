//! Packets of nodes arrive where and when the topology says, and nothing else arrives.

use std::net::Ipv4Addr;

use iptl_labnet::{
    Access, Engine, EngineConfig, IcmpError, LinkConfig, LinkId, LinkStats, NatConfig, NodeId, Output, RealmId,
    Topology, between_regions,
};

use crate::bytes::{TCP, UDP, assert_sound, at, ends, packet, parts, seal, udp};
use crate::rng::Rng;

const MS: u64 = 1_000_000;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn engine(topology: Topology) -> Engine {
    Engine::new(topology, EngineConfig::default())
}

fn delay(delay_ns: u64) -> LinkConfig {
    LinkConfig { delay_ns, ..LinkConfig::default() }
}

/// Runs an engine until nothing is under way.
fn run(engine: &mut Engine) -> Vec<Output> {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    std::iter::from_fn(|| engine.poll_output()).collect()
}

/// Two public nodes in two regions that are 30 ms apart there and 40 ms back, with 2 ms up and 3 ms down each.
fn two_regions() -> (Engine, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![MS, 30 * MS], vec![40 * MS, MS]]).unwrap();
    let access = |region| Access { region, up: delay(2 * MS), down: delay(3 * MS), ..Access::default() };
    let six = |text: &str| Some(text.parse().unwrap());
    let a = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), six("fd00::1"), access(0)).unwrap();
    let b = topology.add_node(RealmId::PUBLIC, v4("10.0.0.2"), six("fd00::2"), access(1)).unwrap();
    (engine(topology), a, b)
}

/// A public node, and one behind a home NAT inside a carrier's.
fn double_nat(nat: NatConfig) -> (Engine, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let public = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, Access::default()).unwrap();
    let access = Access { up: delay(5 * MS), down: delay(7 * MS), ..Access::default() };
    let (_, carrier) = topology.add_gateway(RealmId::PUBLIC, Some(v4("5.0.0.1")), nat, access).unwrap();
    let (_, home) = topology.add_gateway(carrier, Some(v4("100.64.0.2")), nat, access).unwrap();
    let inner = topology.add_node(home, v4("192.168.1.2"), None, Access::default()).unwrap();
    (engine(topology), public, inner)
}

#[test]
fn what_each_link_between_regions_did_is_told_apart() {
    let (mut engine, a, b) = two_regions();
    assert_eq!(engine.regions(), []);
    for _ in 0..3 {
        engine.handle_packet(0, a, udp("10.0.0.1:5", "10.0.0.2:6"));
    }
    engine.handle_packet(0, b, udp("10.0.0.2:6", "10.0.0.1:5"));
    run(&mut engine);
    let did: Vec<_> = engine
        .regions()
        .iter()
        .map(|(from, to, stats)| (*from, *to, stats.delivered, stats.asked_ns, stats.measured_ns))
        .collect();
    assert_eq!(did, [(0, 1, 3, 90 * MS, 90 * MS), (1, 0, 1, 40 * MS, 40 * MS)]);
    assert_eq!(engine.across().delivered, 4);
    // As receipts have it; of one region all is said by the sum.
    let in_receipt: Vec<_> =
        between_regions(&engine.regions()).iter().map(|link| (link.from, link.to, link.did.offered)).collect();
    assert_eq!(in_receipt, [(0, 1, 3), (1, 0, 1)]);
    let (mut engine, public, inner) = double_nat(NatConfig::default());
    let to = engine.addr(public).unwrap();
    engine.handle_packet(0, inner, udp("192.168.1.2:5", &format!("{to}:6")));
    run(&mut engine);
    assert_eq!((engine.across().delivered, engine.regions()), (1, Vec::new()));
}

#[test]
fn of_many_regions_receipts_have_the_links_with_most_packets() {
    let link = |from: u16, to: u16| {
        let offered = u64::from(from) * 100 + u64::from(to);
        (from, to, LinkStats { offered, delivered: offered, ..LinkStats::default() })
    };
    let links = (0..20).flat_map(|from| (0..20).map(move |to| link(from, to))).collect();
    let kept = between_regions(&links);
    assert_eq!(kept.len(), 128);
    let expected = (13..20).flat_map(|from| (0..20).map(move |to| (from, to))).skip(12);
    assert!(kept.iter().map(|link| (link.from, link.to)).eq(expected), "{kept:?}");
}

#[test]
fn delays_of_links_and_regions_add_up_exactly_however_late_the_engine_is_told() {
    let (mut engine, a, b) = two_regions();
    engine.handle_packet(MS, a, udp("10.0.0.1:5", "10.0.0.2:6"));
    engine.handle_packet(MS, b, packet(TCP, at("[fd00::2]:6"), at("[fd00::1]:5"), 2, b""));
    assert_eq!(engine.poll_timeout(), Some(3 * MS));
    engine.handle_timeout(500 * MS);
    let outputs = run(&mut engine);
    let due: Vec<(NodeId, u64)> = outputs.iter().map(|output| (output.node, output.due_ns)).collect();
    assert_eq!(due, [(b, 36 * MS), (a, 46 * MS)]);
    outputs.iter().for_each(|output| assert_sound(&output.bytes));

    let between = engine.link_stats(LinkId::Region { from: 0, to: 1 }).unwrap();
    assert_eq!((between.offered, between.delivered, between.asked_ns), (1, 1, 30 * MS));
    assert_eq!(between.measured_ns, 500 * MS - 3 * MS, "what was measured is not what was asked");
    assert_eq!(engine.lateness().max_ns(), 497 * MS);
    assert_eq!(engine.lateness().buckets().iter().sum::<u64>(), 6);
    assert!((464 * MS..=497 * MS).contains(&engine.lateness().quantile_ns(500)));
}

#[test]
fn a_node_behind_two_nats_reaches_out_and_is_answered_and_cannot_be_reached_first() {
    let (mut engine, public, inner) = double_nat(NatConfig::default());
    engine.handle_packet(0, public, udp("10.0.0.1:6", "5.0.0.1:4000"));
    assert_eq!(run(&mut engine), []);
    assert_eq!(engine.stats().filtered, 1);

    engine.handle_packet(20 * MS, inner, udp("192.168.1.2:4000", "10.0.0.1:6"));
    let sent = run(&mut engine).remove(0);
    assert_eq!((sent.node, sent.due_ns), (public, 30 * MS));
    assert_sound(&sent.bytes);
    assert_eq!(ends(&sent.bytes).0, at("5.0.0.1:4000"));

    engine.handle_packet(40 * MS, public, udp("10.0.0.1:6", "5.0.0.1:4000"));
    let answer = run(&mut engine).remove(0);
    assert_eq!((answer.node, answer.due_ns), (inner, 54 * MS));
    assert_sound(&answer.bytes);
    assert_eq!(ends(&answer.bytes), (at("10.0.0.1:6"), at("192.168.1.2:4000")));
}

#[test]
fn neighbours_behind_one_nat_meet_by_its_address_only_if_it_hairpins() {
    for hairpin in [false, true] {
        let mut topology = Topology::new(vec![vec![0]]).unwrap();
        let nat = NatConfig { hairpin, ..NatConfig::default() };
        let (_, home) = topology.add_gateway(RealmId::PUBLIC, Some(v4("5.0.0.1")), nat, Access::default()).unwrap();
        let a = topology.add_node(home, v4("192.168.1.2"), None, Access::default()).unwrap();
        let b = topology.add_node(home, v4("192.168.1.3"), None, Access::default()).unwrap();
        let mut engine = engine(topology);
        engine.handle_packet(0, b, udp("192.168.1.3:5000", "5.0.0.1:4000"));
        engine.handle_packet(1, a, udp("192.168.1.2:4000", "5.0.0.1:5000"));
        let outputs = run(&mut engine);
        if !hairpin {
            assert_eq!(outputs, []);
            continue;
        }
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].node, b);
        assert_eq!(ends(&outputs[0].bytes), (at("5.0.0.1:4000"), at("192.168.1.3:5000")));
        assert_sound(&outputs[0].bytes);
    }
}

#[test]
fn both_sides_punch_holes_at_once_only_where_packets_cross_as_they_do_in_time() {
    // Two port-restricted NATs 50 ms apart: a packet that arrives before the other side has sent is lost.
    for (second_ns, arrive) in [(49 * MS, 2), (51 * MS, 1)] {
        let mut topology = Topology::new(vec![vec![50 * MS]]).unwrap();
        let mut home = |external: &str, inner: &str| {
            let (_, realm) = topology
                .add_gateway(RealmId::PUBLIC, Some(v4(external)), NatConfig::default(), Access::default())
                .unwrap();
            topology.add_node(realm, v4(inner), None, Access::default()).unwrap()
        };
        let (a, b) = (home("5.0.0.1", "192.168.1.2"), home("5.0.0.2", "192.168.1.2"));
        let mut engine = engine(topology);
        engine.handle_packet(0, a, udp("192.168.1.2:4000", "5.0.0.2:4000"));
        engine.handle_packet(second_ns, b, udp("192.168.1.2:4000", "5.0.0.1:4000"));
        assert_eq!(run(&mut engine).len(), arrive);
    }
}

#[test]
fn what_is_not_from_its_sender_or_no_packet_goes_nowhere() {
    let (mut engine, a, _) = two_regions();
    engine.handle_packet(0, a, udp("10.0.0.2:5", "10.0.0.2:6"));
    engine.handle_packet(0, a, udp("10.9.9.9:5", "10.0.0.2:6"));
    assert_eq!(engine.stats().spoofed, 2);
    engine.handle_packet(0, a, vec![0x45; 10]);
    assert_eq!(engine.stats().malformed, 1);
    assert_eq!(run(&mut engine), []);
}

#[test]
fn routers_say_why_a_packet_ends() {
    let (mut engine, a, b) = two_regions();
    let told = |engine: &mut Engine, bytes: Vec<u8>| {
        engine.handle_packet(0, a, bytes);
        let output = run(engine).remove(0);
        assert_eq!(output.node, a);
        assert_sound(&output.bytes);
        let (_, _, _, message) = parts(&output.bytes);
        (message[0], message[1], u16::from_be_bytes([message[6], message[7]]))
    };
    assert_eq!(told(&mut engine, udp("10.0.0.1:5", "10.0.7.7:6")), (3, 1, 0));
    let mut last_hop = udp("10.0.0.1:5", "10.0.0.2:6");
    last_hop[8] = 1;
    seal(&mut last_hop);
    assert_eq!(told(&mut engine, last_hop), (11, 0, 0));
    let big = packet(UDP, at("[fd00::1]:5"), at("[fd00::2]:6"), 0, &[0; 2_000]);
    assert_eq!(told(&mut engine, big), (2, 0, 1500));
    let mut whole = packet(UDP, at("10.0.0.1:5"), at("10.0.0.2:6"), 0, &[0; 2_000]);
    whole[6] = 0x40;
    seal(&mut whole);
    assert_eq!(told(&mut engine, whole.clone()), (3, 4, 1500));
    assert_eq!(engine.stats().icmp_errors, 4);

    // Where it may be cut, it is.
    whole[6] = 0;
    seal(&mut whole);
    engine.handle_packet(0, a, whole);
    let sizes: Vec<(NodeId, usize)> = run(&mut engine).iter().map(|output| (output.node, output.bytes.len())).collect();
    assert_eq!(sizes, [(b, 1500), (b, 548)]);
}

#[test]
fn an_error_about_a_translated_packet_finds_its_sender() {
    let (mut engine, _, inner) = double_nat(NatConfig::default());
    let sent = udp("192.168.1.2:4000", "10.0.7.7:6");
    engine.handle_packet(0, inner, sent.clone());
    let output = run(&mut engine).remove(0);
    assert_eq!(output.node, inner);
    let (_, dst, _, message) = parts(&output.bytes);
    assert_eq!((dst, message[0]), (at("192.168.1.2:0").ip(), 3));
    assert_eq!(ends(&message[8..]), ends(&sent));
    let mut expected = Vec::new();
    IcmpError::HostUnreachable.write(&sent, at("192.0.2.1:0").ip(), &mut expected);
    assert_eq!(output.bytes.len(), expected.len());
}

#[test]
fn packets_to_many_reach_the_neighbours_in_a_lan_and_nobody_elsewhere() {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let access = Access::default();
    let nat = NatConfig::default();
    let (_, home) = topology.add_gateway(RealmId::PUBLIC, Some(v4("5.0.0.1")), nat, access).unwrap();
    let inside: Vec<NodeId> =
        (2..5).map(|host| topology.add_node(home, Ipv4Addr::new(192, 168, 1, host), None, access).unwrap()).collect();
    let outside = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, access).unwrap();
    let mut engine = engine(topology);
    engine.handle_packet(0, inside[0], udp("192.168.1.2:5353", "224.0.0.251:5353"));
    engine.handle_packet(0, outside, udp("10.0.0.1:5353", "224.0.0.251:5353"));
    let reached: Vec<NodeId> = run(&mut engine).iter().map(|output| output.node).collect();
    assert_eq!(reached, inside[1..]);
    assert_eq!(engine.stats().multicast, 1);
}

#[test]
fn a_partition_stops_what_is_under_way_and_healing_lets_packets_pass_again() {
    let (mut engine, a, b) = two_regions();
    let send = |engine: &mut Engine, now| engine.handle_packet(now, a, udp("10.0.0.1:5", "10.0.0.2:6"));
    send(&mut engine, 0);
    engine.handle_timeout(10 * MS);
    engine.partition(&[Some(0), Some(1)]);
    send(&mut engine, 11 * MS);
    assert_eq!(run(&mut engine), []);
    assert_eq!(engine.stats().partitioned, 2);
    engine.partition(&[]);
    send(&mut engine, 100 * MS);
    assert_eq!(run(&mut engine)[0].node, b);
}

#[test]
fn a_partition_keeps_packets_from_the_table_of_a_nat_on_the_other_side() {
    let (mut engine, public, inner) = double_nat(NatConfig::default());
    engine.handle_packet(0, inner, udp("192.168.1.2:4000", "10.0.0.1:6"));
    run(&mut engine);
    engine.partition(&[Some(0), Some(1)]);
    let minute = 60_000 * MS;
    for i in 1..4 {
        engine.handle_packet(i * minute, public, udp("10.0.0.1:6", "5.0.0.1:4000"));
    }
    engine.partition(&[]);
    engine.handle_packet(4 * minute, public, udp("10.0.0.1:6", "5.0.0.1:4000"));
    assert_eq!(run(&mut engine), [], "nothing kept the mapping alive");
}

#[test]
fn what_the_lab_has_no_memory_for_is_counted_as_its_own_doing() {
    let mut topology = Topology::new(vec![vec![MS]]).unwrap();
    let a = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, Access::default()).unwrap();
    topology.add_node(RealmId::PUBLIC, v4("10.0.0.2"), None, Access::default()).unwrap();
    let mut engine = Engine::new(topology, EngineConfig { max_held_bytes: 100, ..EngineConfig::default() });
    for _ in 0..5 {
        engine.handle_packet(0, a, udp("10.0.0.1:5", "10.0.0.2:6"));
    }
    let region = LinkId::Region { from: 0, to: 0 };
    assert_eq!(engine.held_bytes(), 99);
    assert_eq!(run(&mut engine).len(), 3);
    let stats = engine.link_stats(region).unwrap();
    assert_eq!((stats.offered, stats.delivered, stats.dropped_by_lab, stats.lost), (5, 3, 2, 0));
    assert_eq!(engine.held_bytes(), 0);
}

/// Nodes of all kinds with links that do everything; hostile and honest packets at random times.
fn storm(seed: u64) -> (Vec<Output>, Engine) {
    let mut rng = Rng(seed);
    let mut topology = Topology::new(vec![vec![MS, 20 * MS], vec![25 * MS, MS]]).unwrap();
    let mut addresses = Vec::new();
    for i in 0..6u8 {
        let link = LinkConfig {
            delay_ns: rng.next() % (5 * MS),
            jitter_ns: rng.next() % (2 * MS),
            rate_bps: 1_000_000,
            queue_bytes: 20_000,
            loss_ppm: 20_000,
            duplicate_ppm: 50_000,
            reorder_ppm: if i < 3 { 0 } else { 50_000 },
            corrupt_ppm: 50_000,
            ..LinkConfig::default()
        };
        let access = Access { region: u16::from(i % 2), up: link, down: link, mtu: 576 };
        let (realm, addr) = match i {
            0..2 => (RealmId::PUBLIC, Ipv4Addr::new(10, 0, 0, i + 1)),
            2 => {
                let wall = topology.add_gateway(RealmId::PUBLIC, None, NatConfig::default(), access).unwrap();
                (wall.1, v4("10.0.0.3"))
            }
            _ => {
                let external = Some(Ipv4Addr::new(5, 0, 0, i));
                (
                    topology.add_gateway(RealmId::PUBLIC, external, NatConfig::default(), access).unwrap().1,
                    v4("192.168.1.2"),
                )
            }
        };
        let node = topology.add_node(realm, addr, None, access).unwrap();
        addresses.push((node, addr));
    }
    let mut engine = Engine::new(topology, EngineConfig { seed, ..EngineConfig::default() });
    let mut now = 0;
    let mut outputs = Vec::new();
    for _ in 0..3_000 {
        now += rng.next() % (2 * MS);
        let (node, addr) = addresses[rng.below(6)];
        let dst = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3", "5.0.0.4:4", "5.0.0.5:1", "9.9.9.9:9", "224.0.0.1:1"];
        let protocol = [UDP, TCP, 1][rng.below(3)];
        let src = at(&format!("{addr}:{}", 1 + rng.below(5)));
        let mut bytes = packet(protocol, src, at(dst[rng.below(7)]), 2, &vec![7; rng.below(900)]);
        if rng.below(3) == 0 {
            for _ in 0..3 {
                let at = rng.below(40.min(bytes.len()));
                bytes[at] = rng.next().to_le_bytes()[0];
            }
            seal(&mut bytes);
        }
        engine.handle_packet(now, node, bytes);
        outputs.extend(std::iter::from_fn(|| engine.poll_output()));
    }
    outputs.extend(run(&mut engine));
    (outputs, engine)
}

#[test]
fn hostile_and_honest_packets_on_links_that_do_everything_are_all_accounted_for() {
    for seed in 0..12 {
        let (outputs, engine) = storm(seed);
        assert!(outputs.len() > 300, "seed {seed}: {}", outputs.len());
        assert_eq!(engine.stats().delivered, outputs.len() as u64);
        assert_eq!(engine.held_bytes(), 0);
        let nodes = outputs.iter().map(|output| output.node).max().unwrap();
        assert!(nodes.index() < 6);
        for output in &outputs {
            let links = [LinkId::NodeUp(output.node), LinkId::NodeDown(output.node), LinkId::Region { from: 0, to: 1 }];
            for stats in links.map(|link| engine.link_stats(link).unwrap()) {
                let ended = stats.lost + stats.overflowed + stats.dropped_by_lab;
                // A corrupted head ends a packet that the engine counts as malformed.
                let least = stats.offered + stats.duplicated - ended - stats.corrupted;
                assert!((least..=stats.offered + stats.duplicated - ended).contains(&stats.delivered), "{stats:?}");
            }
        }
    }
}

#[test]
fn one_seed_has_one_course_and_another_has_another() {
    let (first, engine) = storm(3);
    let (again, same) = storm(3);
    assert_eq!(first, again);
    assert_eq!(engine.stats(), same.stats());
    assert_ne!(first, storm(4).0);
}

/// Says how many packets per second one core carries through a clean network, through delays, and through NATs.
/// `cargo test --release -p iptl-labnet packets_per_second -- --ignored --nocapture` shows them.
#[test]
#[ignore = "a measure, not a fact"]
fn packets_per_second() {
    const PACKETS: u64 = 1_000_000;
    let (clean, a, _) = {
        let mut topology = Topology::new(vec![vec![0]]).unwrap();
        let a = topology.add_node(RealmId::PUBLIC, v4("10.0.0.1"), None, Access::default()).unwrap();
        let b = topology.add_node(RealmId::PUBLIC, v4("10.0.0.2"), None, Access::default()).unwrap();
        (engine(topology), a, b)
    };
    let (delayed, sender, _) = two_regions();
    let (translated, _, inner) = double_nat(NatConfig::default());
    let rows = [
        ("clean", clean, a, udp("10.0.0.1:5", "10.0.0.2:6")),
        ("three delays", delayed, sender, udp("10.0.0.1:5", "10.0.0.2:6")),
        ("two NATs, two delays", translated, inner, udp("192.168.1.2:5", "10.0.0.1:6")),
    ];
    for (name, mut engine, node, packet) in rows {
        let mut delivered = 0;
        #[expect(clippy::disallowed_methods, reason = "a measure needs a clock")]
        let start = std::time::Instant::now();
        for i in 0..PACKETS {
            let mut bytes = engine.buffer(0);
            bytes.extend_from_slice(&packet);
            engine.handle_packet(i * 10_000, node, bytes);
            while let Some(output) = engine.poll_output() {
                delivered += 1;
                engine.recycle(output.bytes);
            }
        }
        delivered += run(&mut engine).len() as u64;
        assert_eq!(delivered, PACKETS);
        println!("{name}: {:.0} packets/s", PACKETS as f64 / start.elapsed().as_secs_f64());
    }
}
