//! What a node asks of its own network happens to what it sends, on top of the network's, and to nothing else.

use std::net::Ipv4Addr;

use iptl_labnet::{
    Access, Engine, EngineConfig, Filter, Header, LinkConfig, MAX_RULES, MAX_SHAPED, NodeId, Output, RealmId, Shape,
    Topology, Transport, Wish, WishError,
};

use crate::bytes::{assert_sound, udp};

const MS: u64 = 1_000_000;

/// Three nodes with 5 ms up, 10.0.0.1 to 10.0.0.3.
fn three() -> (Engine, [NodeId; 3]) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let access = Access { up: LinkConfig { delay_ns: 5 * MS, ..LinkConfig::default() }, ..Access::default() };
    let nodes =
        [1, 2, 3].map(|last| topology.add_node(RealmId::PUBLIC, Ipv4Addr::new(10, 0, 0, last), None, access).unwrap());
    (Engine::new(topology, EngineConfig::default()), nodes)
}

fn latency(ms: u64) -> Shape {
    Shape { latency_ns: ms * MS, ..Shape::default() }
}

fn filter(filter: Filter) -> Shape {
    Shape { filter, ..Shape::default() }
}

fn wish(shape: Shape, rules: &[(&str, Shape)]) -> Wish {
    let rules = rules.iter().map(|(subnet, shape)| (subnet.parse().unwrap(), *shape)).collect();
    Wish { enabled: true, shape, rules }
}

fn run(engine: &mut Engine) -> Vec<Output> {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    std::iter::from_fn(|| engine.poll_output()).collect()
}

/// Sends from one node to the others of a list, and returns when each got it, in milliseconds.
fn send(engine: &mut Engine, from: (NodeId, u8), to: &[u8]) -> Vec<(NodeId, u64)> {
    let now_ns = engine.lateness().max_ns().max(engine_time(engine));
    for last in to {
        engine.handle_packet(now_ns, from.0, udp(&format!("10.0.0.{}:5", from.1), &format!("10.0.0.{last}:6")));
    }
    let outputs = run(engine);
    outputs.iter().for_each(|output| assert_sound(&output.bytes));
    outputs.iter().map(|output| (output.node, (output.due_ns - now_ns) / MS)).collect()
}

/// Packets before these tests' were sent long ago.
fn engine_time(engine: &Engine) -> u64 {
    engine.stats().received * 1_000_000 * MS
}

#[test]
fn what_a_node_sends_waits_as_it_asked_and_then_as_the_network_says() {
    let (mut engine, [a, b, c]) = three();
    engine.shape(a, &wish(latency(100), &[])).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2, 3]), [(b, 105), (c, 105)]);
    assert_eq!(send(&mut engine, (b, 2), &[1]), [(a, 5)], "what others send to it is not its own");
    engine.shape(a, &wish(latency(10), &[])).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), [(b, 15)]);
    engine.shape(a, &Wish::default()).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), [(b, 5)]);
    let own = engine.own_use(a).unwrap();
    assert_eq!((own.offered, own.delivered, own.asked_ns), (4, 4, 210 * MS));
    assert_eq!(engine.own_use(b), None, "it asked for nothing");
    let (up, _) = engine.links_of(a);
    assert_eq!((up[0].offered, up[0].asked_ns), (4, 20 * MS), "its link is what it was");
    assert_eq!(engine.across().offered, 5);
}

#[test]
fn packets_under_way_are_not_overtaken_by_those_for_which_less_was_asked() {
    let (mut engine, [a, b, _]) = three();
    engine.shape(a, &wish(latency(100), &[])).unwrap();
    engine.handle_packet(0, a, udp("10.0.0.1:1", "10.0.0.2:6"));
    engine.shape(a, &wish(Shape::default(), &[])).unwrap();
    engine.handle_packet(MS, a, udp("10.0.0.1:2", "10.0.0.2:6"));
    let due: Vec<(NodeId, u64)> = run(&mut engine).iter().map(|output| (output.node, output.due_ns / MS)).collect();
    assert_eq!(due, [(b, 105), (b, 105)]);
}

#[test]
fn the_smallest_subnet_counts_and_a_rule_that_shapes_nothing_keeps_the_shape() {
    let (mut engine, [a, b, c]) = three();
    let rules = [("10.0.0.0/24", latency(30)), ("10.0.0.2/32", latency(70)), ("10.0.0.3/32", filter(Filter::Accept))];
    engine.shape(a, &wish(latency(1), &rules)).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), [(b, 75)]);
    assert_eq!(send(&mut engine, (a, 1), &[3]), [(c, 6)], "as if no rule were there");
    let rules = [("0.0.0.0/0", filter(Filter::Drop)), ("10.0.0.2/31", latency(20))];
    engine.shape(a, &wish(latency(1), &rules)).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2, 3]), [(b, 25), (c, 25)]);
    engine.handle_packet(engine_time(&engine), a, udp("10.0.0.1:1", "10.0.0.9:6"));
    assert_eq!((run(&mut engine), engine.own_use(a).unwrap().lost), (vec![], 1));
}

#[test]
fn dropped_packets_are_gone_and_rejected_ones_are_answered_at_once() {
    let (mut engine, [a, b, c]) = three();
    let rules = [("10.0.0.2/32", filter(Filter::Drop)), ("10.0.0.3/32", filter(Filter::Reject))];
    engine.shape(a, &wish(latency(10), &rules)).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), []);
    let now_ns = engine_time(&engine);
    engine.handle_packet(now_ns, a, udp("10.0.0.1:5", "10.0.0.3:6"));
    let [told] = &run(&mut engine)[..] else { panic!("one answer") };
    assert_eq!((told.node, told.due_ns), (a, now_ns));
    let header = Header::parse(&told.bytes).unwrap();
    assert_eq!(header.transport, Transport::Error);
    assert_eq!(told.bytes[20..22], [3, 13], "administratively prohibited");
    assert_eq!(send(&mut engine, (b, 2), &[1]), [(a, 5)], "a filter is for what it sends");
    let own = engine.own_use(a).unwrap();
    assert_eq!((own.offered, own.lost, own.delivered), (2, 2, 0));
    // All of it, but for whom a rule accepts.
    engine.shape(a, &wish(filter(Filter::Drop), &[("10.0.0.3/32", filter(Filter::Accept))])).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2, 3]), [(c, 5)]);
}

#[test]
fn a_network_that_is_not_enabled_lets_nothing_out_and_nothing_in() {
    let (mut engine, [a, b, _]) = three();
    engine.shape(a, &Wish { enabled: false, ..Wish::default() }).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), []);
    assert_eq!(send(&mut engine, (b, 2), &[1]), []);
    assert_eq!((engine.stats().disabled, engine.own_use(a).unwrap().lost), (1, 1));
    engine.shape(a, &Wish::default()).unwrap();
    assert_eq!(send(&mut engine, (a, 1), &[2]), [(b, 5)]);
    assert_eq!(send(&mut engine, (b, 2), &[1]), [(a, 5)]);
}

#[test]
fn a_bandwidth_is_kept_and_its_queue_overflows() {
    let (mut engine, [a, ..]) = three();
    // 33 bytes each: a packet takes 264 µs.
    engine.shape(a, &wish(Shape { bandwidth_bps: 1_000_000, ..Shape::default() }, &[])).unwrap();
    for _ in 0..50_000 {
        engine.handle_packet(0, a, udp("10.0.0.1:5", "10.0.0.2:6"));
    }
    let outputs = run(&mut engine);
    let own = engine.own_use(a).unwrap();
    assert_eq!(outputs.len() as u64, own.delivered);
    assert_eq!(own.offered, own.delivered + own.overflowed);
    assert_eq!(own.delivered, iptl_labnet::WISH_QUEUE_BYTES / 33);
    assert_eq!(outputs.last().unwrap().due_ns, own.delivered * 264_000 + 5 * MS);
}

#[test]
fn chances_are_those_that_were_asked_for_and_differ_between_nodes() {
    let lost = |node: usize| {
        let (mut engine, nodes) = three();
        engine.shape(nodes[node], &wish(Shape { loss_ppm: 200_000, ..Shape::default() }, &[])).unwrap();
        let packets = (0..2_000).map(|n| {
            let from = format!("10.0.0.{}:{}", node + 1, n + 1);
            engine.handle_packet(n, nodes[node], udp(&from, &format!("10.0.0.{}:6", 3 - node)));
            run(&mut engine).is_empty()
        });
        packets.collect::<Vec<bool>>()
    };
    let (first, second) = (lost(0), lost(1));
    for lost in [&first, &second] {
        let count = lost.iter().filter(|lost| **lost).count();
        // Five standard deviations.
        assert!((310..=490).contains(&count), "{count} of 2000");
    }
    assert_ne!(first, second);
    assert_eq!(first, lost(0), "the same packets each time");
}

#[test]
fn rules_stay_until_another_for_their_subnet_ends_them() {
    let first = Wish::default().then(&wish(latency(1), &[("10.0.0.2/32", filter(Filter::Drop))])).unwrap();
    let second = first.then(&wish(latency(2), &[("10.0.0.3/32", latency(9))])).unwrap();
    let rules = [("10.0.0.2/32", filter(Filter::Drop)), ("10.0.0.3/32", latency(9))];
    assert_eq!(second, wish(latency(2), &rules));
    let third = second.then(&wish(latency(2), &[("10.0.0.2/32", Shape::default())])).unwrap();
    assert_eq!(third, wish(latency(2), &rules[1..]));
    // One that lets through what a larger subnet would not is still needed.
    let narrow = [("10.0.0.0/8", filter(Filter::Drop)), ("10.0.0.7/32", Shape::default())];
    assert_eq!(Wish::default().then(&wish(latency(1), &narrow)).unwrap(), wish(latency(1), &narrow));
    assert_eq!(Wish { enabled: false, ..Wish::default() }.then(&Wish::default()), Ok(Wish::default()));
}

#[test]
fn wishes_beyond_bounds_are_refused_and_what_was_before_stays() {
    let before = wish(latency(3), &[]);
    let day_ns = 86_400_000 * MS;
    let refused = |shape: Shape| before.then(&wish(shape, &[])).unwrap_err();
    assert!(before.then(&wish(Shape { latency_ns: day_ns, jitter_ns: day_ns, ..Shape::default() }, &[])).is_ok());
    assert_eq!(
        refused(Shape { latency_ns: day_ns + 1, ..Shape::default() }).to_string(),
        "a latency of 86400000000001 ns is longer than a day"
    );
    assert_eq!(
        refused(Shape { jitter_ns: u64::MAX, ..Shape::default() }),
        WishError::TooLong { what: "jitter", ns: u64::MAX }
    );
    assert_eq!(
        refused(Shape { loss_ppm: 1_000_001, ..Shape::default() }).to_string(),
        "a chance of loss of more than 100 %"
    );
    let many = |count: usize, shape: Shape| {
        let subnet = |n: usize| iptl_labnet::Subnet::new(Ipv4Addr::from(0x0a00_0000 + n as u32), 32).unwrap();
        Wish { rules: (0..count).map(|n| (subnet(n), shape)).collect(), ..Wish::default() }
    };
    let dropping = filter(Filter::Drop);
    let full = before.then(&many(MAX_RULES, dropping)).unwrap();
    assert_eq!(full.then(&many(MAX_RULES, dropping)).unwrap(), full, "the same once more");
    let error = before.then(&many(MAX_RULES + 1, dropping)).unwrap_err();
    assert_eq!(error.to_string(), "4097 rules; an instance may have 4096");
    let error = before.then(&many(MAX_SHAPED + 1, latency(1))).unwrap_err();
    assert_eq!(error.to_string(), "65 subnets with a link of their own; an instance may have 64");

    let (mut engine, _) = three();
    assert_eq!(engine.shape(NodeId::from_index(3), &before), Err(WishError::Unknown));
}

#[test]
fn lines_of_subnets_that_are_no_longer_named_are_used_again() {
    let (mut engine, [a, b, _]) = three();
    for round in 0..1_000u32 {
        let subnet = format!("10.{}.{}.0/24", round / 250, round % 250);
        engine
            .shape(a, &wish(latency(u64::from(round % 7)), &[(&subnet, latency(9)), ("10.0.0.2/32", latency(4))]))
            .unwrap();
        assert_eq!(send(&mut engine, (a, 1), &[2]), [(b, 9)]);
    }
    let said = format!("{engine:?}");
    assert!(said.matches("Line {").count() < 12, "a thousand requests keep to a few lines");
}

#[test]
fn subnets_have_one_spelling() {
    let read = |text: &str| text.parse::<iptl_labnet::Subnet>().map(|subnet| subnet.to_string());
    assert_eq!(read("10.1.2.3/16").unwrap(), "10.1.0.0/16");
    assert_eq!(read("255.255.255.255/0").unwrap(), "0.0.0.0/0");
    assert_eq!(read("10.0.0.7/32").unwrap(), "10.0.0.7/32");
    for bad in ["", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/+8", "10.0.0.1/08", "::/0", "x/8"]
    {
        assert!(read(bad).is_err(), "{bad}");
    }
}
