//! Programs in two namespaces talk through the engine.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};

use iptl_labnet::{Access, LinkConfig, NatConfig, RealmId, Topology, v6_of};

use crate::privileged;
use crate::support::{MS, PATIENCE, World, clean, delay, pass};

/// Sends bytes over a connection in both directions at once and checks that they arrive.
fn exchange(world: &World, size: usize) {
    exchange_over(world.tcp(0, 1), size);
}

fn exchange_over((mut opened, mut accepted): (TcpStream, TcpStream), size: usize) {
    let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
    let (sent, heard) = (bytes.clone(), accepted.try_clone().unwrap());
    let receiver = std::thread::spawn(move || {
        let mut heard = heard;
        let mut received = vec![0; sent.len()];
        heard.read_exact(&mut received).unwrap();
        assert!(received == sent, "the bytes arrived changed");
        heard.write_all(&sent).unwrap();
    });
    opened.write_all(&bytes).unwrap();
    let mut back = vec![0; size];
    opened.read_exact(&mut back).unwrap();
    assert!(back == bytes, "the bytes came back changed");
    receiver.join().unwrap();
    opened.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0, "and then the end");
}

#[test]
fn bytes_arrive_whole_over_links_of_every_kind() {
    privileged!();
    let rows = [
        ("clean", clean()),
        ("delayed", delay(5 * MS)),
        ("lossy", LinkConfig { loss_ppm: 10_000, ..clean() }),
        ("reordering", LinkConfig { reorder_ppm: 50_000, jitter_ns: MS / 2, delay_ns: MS, ..clean() }),
        ("duplicating and corrupting", LinkConfig { duplicate_ppm: 50_000, corrupt_ppm: 10_000, ..clean() }),
        ("slow", LinkConfig { rate_bps: 100_000_000, queue_bytes: 256 << 10, ..clean() }),
    ];
    for (what, link) in rows {
        println!("{what}");
        let world = World::of(&[link, link]);
        exchange(&world, if link.is_clean() { 16 << 20 } else { 1 << 20 });
        let report = world.report();
        assert_eq!(report.nodes.values().map(|node| node.refused).sum::<u64>(), 0, "{what}");
        let wrong: u64 = report.nodes.values().map(|node| node.up[0].corrupted).sum();
        assert_eq!(wrong > 0, link.corrupt_ppm > 0, "{what}");
        assert!(report.engine.malformed <= wrong && report.engine.spoofed == 0, "{what}: {report:?}");
    }
}

#[test]
fn large_packets_pass_a_clean_link_whole() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    exchange(&world, 16 << 20);
    let report = world.report();
    let wire = report.nodes[&0].up[0].offered;
    // 16 MiB in packets of 1448 bytes, and what acknowledges 16 MiB back.
    assert!(wire > (16 << 20) / 1448, "{wire} packets on the wire");
    assert_eq!(report.engine.received, report.engine.delivered);
}

#[test]
fn datagrams_of_every_size_arrive() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    for size in [0, 1, 512, 1472, 1473, 9_000, 65_507] {
        pass(&a, &b, &vec![7; size]);
    }
    assert_eq!(world.report().engine.malformed, 0);
}

#[test]
fn node_behind_a_nat_is_answered_through_it() {
    privileged!();
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let public = topology.add_node(RealmId::PUBLIC, Ipv4Addr::new(10, 0, 0, 1), None, Access::default()).unwrap();
    let (_, home) = topology
        .add_gateway(RealmId::PUBLIC, Some([172, 16, 0, 1].into()), NatConfig::default(), Access::default())
        .unwrap();
    let inner = topology.add_node(home, Ipv4Addr::new(192, 168, 1, 2), None, Access::default()).unwrap();
    let world = World::new(topology, &[inner, public]);
    exchange(&world, 4 << 20);
    let (a, b) = (world.udp(0), world.udp(1));
    a.send_to(b"hello", b.local_addr().unwrap()).unwrap();
    let mut bytes = [0; 16];
    let (_, seen) = b.recv_from(&mut bytes).unwrap();
    assert_eq!(seen.ip().to_string(), "172.16.0.1");
    b.send_to(b"you", seen).unwrap();
    let (size, from) = a.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..size], from), (&b"you"[..], b.local_addr().unwrap()));
}

/// Two public nodes with both families and these links up, the second with this MTU.
fn of_both_families(link: LinkConfig, mtu: u16) -> World {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let nodes = [(1, 1500), (2, mtu)].map(|(last, mtu)| {
        let addr = Ipv4Addr::new(10, 0, 0, last);
        topology.add_node(RealmId::PUBLIC, addr, v6_of(addr), Access { up: link, mtu, ..Access::default() }).unwrap()
    });
    World::new(topology, &nodes)
}

fn six(last: u8) -> IpAddr {
    v6_of(Ipv4Addr::new(10, 0, 0, last)).into()
}

#[test]
fn bytes_arrive_whole_over_ipv6_and_its_kernels_say_nothing_by_themselves() {
    privileged!();
    let rows = [
        ("clean", clean(), 1500),
        ("delayed and lossy", LinkConfig { loss_ppm: 10_000, delay_ns: MS, ..clean() }, 1500),
        ("slow", LinkConfig { rate_bps: 100_000_000, queue_bytes: 256 << 10, ..clean() }, 1500),
        ("narrow", clean(), 1280),
    ];
    for (what, link, mtu) in rows {
        println!("{what}");
        let world = of_both_families(link, mtu);
        let before = world.report().engine;
        // But for who listens to what, which every kernel says to its own link, and which goes nowhere.
        assert_eq!((before.received, before.spoofed), (before.multicast, 0), "{what}: {before:?}");
        exchange_over(world.tcp_to(0, 1, six(2)), if link.is_clean() { 8 << 20 } else { 1 << 20 });
        exchange(&world, 1 << 20);
        let report = world.report();
        assert_eq!((report.engine.malformed, report.engine.spoofed), (0, 0), "{what}: {report:?}");
    }
}

#[test]
fn datagrams_of_every_size_arrive_over_ipv6() {
    privileged!();
    let world = of_both_families(clean(), 1500);
    let (a, b) = (world.udp_at(0, six(1)), world.udp_at(1, six(2)));
    for size in [0, 1, 512, 1452, 1453, 9_000, 65_507] {
        pass(&a, &b, &vec![7; size]);
    }
    assert_eq!(world.report().engine.malformed, 0);
}

#[test]
fn kernel_learns_how_large_a_packet_may_be_where_the_path_is_narrower() {
    privileged!();
    let world = of_both_families(clean(), 1300);
    let (a, b) = (world.udp_at(0, six(1)), world.udp_at(1, six(2)));
    b.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
    // The first goes in whole, is too large and is said to be; later ones are cut by who sends them.
    let begun = std::time::Instant::now();
    let mut bytes = [0; 2_000];
    loop {
        a.send_to(&[7; 1_400], b.local_addr().unwrap()).unwrap();
        if b.recv_from(&mut bytes).is_ok_and(|(size, _)| size == 1_400) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "no datagram came");
    }
    let engine = world.report().engine;
    assert!(engine.too_big >= 1 && engine.icmp_errors >= 1, "{engine:?}");
}
