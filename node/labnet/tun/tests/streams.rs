//! Programs in two namespaces talk through the engine.

use std::io::{Read, Write};

use iptl_labnet::{Access, LinkConfig, NatConfig, RealmId, Topology};

use crate::privileged;
use crate::support::{MS, World, clean, delay, pass};

/// Sends bytes over a connection in both directions at once and checks that they arrive.
fn exchange(world: &World, size: usize) {
    let (mut opened, mut accepted) = world.tcp(0, 1);
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
    let public = topology.add_node(RealmId::PUBLIC, [10, 0, 0, 1].into(), None, Access::default()).unwrap();
    let (_, home) = topology
        .add_gateway(RealmId::PUBLIC, Some([172, 16, 0, 1].into()), NatConfig::default(), Access::default())
        .unwrap();
    let inner = topology.add_node(home, [192, 168, 1, 2].into(), None, Access::default()).unwrap();
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
