//! Links do what they are asked for, as programs measure it.

use std::time::{Duration, Instant};

use iptl_labnet::LinkConfig;

use crate::privileged;
use crate::support::{MS, World, clean, delay, pass};

#[test]
fn datagram_takes_the_time_that_its_link_asks_for() {
    privileged!();
    let world = World::of(&[delay(50 * MS), clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    let mut times: Vec<Duration> = (0..11).map(|_| pass(&a, &b, b"x")).collect();
    times.sort();
    // Never sooner; the median is not later than a busy machine makes it.
    assert!(times[0] >= Duration::from_millis(50), "{times:?}");
    assert!(times[5] < Duration::from_millis(60), "{times:?}");
    let link = world.report().nodes[&0].up[0];
    assert_eq!((link.offered, link.delivered, link.asked_ns), (11, 11, 11 * 50 * MS));
    assert!(link.measured_ns >= link.asked_ns);
}

#[test]
fn datagrams_keep_their_distance_and_do_not_wait_for_each_other() {
    privileged!();
    let world = World::of(&[delay(100 * MS), clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    let begun = Instant::now();
    for i in 0..20u8 {
        a.send_to(&[i], b.local_addr().unwrap()).unwrap();
    }
    let mut bytes = [0];
    for i in 0..20 {
        b.recv(&mut bytes).unwrap();
        assert_eq!(bytes, [i], "in order");
    }
    let took = begun.elapsed();
    assert!((100..300).contains(&took.as_millis()), "all at once after 100 ms: {took:?}");
}

#[test]
fn share_that_is_lost_lies_within_five_deviations() {
    privileged!();
    const SENT: u64 = 20_000;
    let loss_ppm = 50_000;
    let world = World::of(&[LinkConfig { loss_ppm, ..clean() }, clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    for i in 0..SENT {
        a.send_to(b"x", b.local_addr().unwrap()).unwrap();
        if i % 256 == 0 {
            // Not faster than they are taken: what the device has no room for is not the link's loss.
            world.until("taken", |report| report.nodes[&0].up[0].offered + report.nodes[&0].overrun > i);
        }
    }
    // What was offered a moment ago may be on its way still.
    let report = world.until("all lost or delivered", |report| {
        let link = report.nodes[&0].up[0];
        link.lost + link.delivered + report.nodes[&0].overrun == SENT
    });
    let link = report.nodes[&0].up[0];
    let expected = link.offered as f64 * 0.05;
    let deviation = (link.offered as f64 * 0.05 * 0.95).sqrt();
    assert!((link.lost as f64 - expected).abs() < 5.0 * deviation, "{} of {} lost", link.lost, link.offered);
    assert_eq!(link.lost + link.delivered, link.offered);
    assert_eq!(report.nodes[&0].overrun, 0, "nothing was lost by the lab");
}

#[test]
fn link_carries_what_its_rate_allows_and_no_more() {
    privileged!();
    // 8 Mbit/s are a million bytes a second: 300 packets of 1000 bytes take 0.3 s, and a queue holds them all.
    let link = LinkConfig { rate_bps: 8_000_000, queue_bytes: 1 << 20, ..clean() };
    let world = World::of(&[link, clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    let begun = Instant::now();
    for _ in 0..300 {
        a.send_to(&[0; 972], b.local_addr().unwrap()).unwrap();
    }
    let mut bytes = [0; 1000];
    for _ in 0..300 {
        b.recv(&mut bytes).unwrap();
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(299), "{took:?}");
    assert!(took < Duration::from_millis(600), "{took:?}");
    assert_eq!(world.report().nodes[&0].up[0].overflowed, 0);
}

#[test]
fn link_changes_while_packets_pass() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    pass(&a, &b, b"x");
    world.network.configure(iptl_labnet::LinkId::NodeUp(world.nodes[0].0), delay(80 * MS));
    world.report();
    assert!(pass(&a, &b, b"x") >= Duration::from_millis(80));
    world.network.partition(vec![Some(0), Some(1)]);
    world.report();
    a.send_to(b"x", b.local_addr().unwrap()).unwrap();
    world.until("parted", |report| report.engine.partitioned == 1);
    world.network.partition(Vec::new());
    world.report();
    pass(&a, &b, b"x");
}
