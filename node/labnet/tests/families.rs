//! IPv6 beside IPv4: the same links, filters and errors, other heads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use iptl_dag::model::{IpModel, LinkModel, NetworkModel};
use iptl_labnet::{
    Access, Addrs, CompileError, Datagram, Engine, EngineConfig, Header, IpError, LinkConfig, LinkId, NatConfig,
    NetError, NodeId, PRIVATE_ADDR, RealmId, SocketId, Sockets, Switch, Topology, TopologyError, compile,
    source_fragments, v4_of, v6_of,
};

use crate::bytes::{UDP, assert_sound, at, packet, parts, wrap};
use crate::directory::{directory, id};
use crate::hosts::{World, ip, network, noise};
use crate::rng::Rng;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const ICMPV6: u8 = 58;

fn six(host: u8, port: u16) -> SocketAddr {
    (v6_of(ip(host)), port).into()
}

fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn of(ip: IpModel, delay_us: u64, link: LinkModel) -> NetworkModel {
    NetworkModel { ip, ..network(delay_us, link) }
}

fn pair(world: &mut World, client: u8, server: u8) -> (SocketId, SocketId) {
    let listener = world.listen_on(server, any(80));
    let client = world.connect(client, six(server, 80));
    let until = world.now_ns + 30 * SECOND;
    assert!(world.until(until, |hosts| hosts.tcp_connected(client).unwrap() && hosts.is_readable(listener)));
    let (accepted, _) = world.hosts.tcp_accept(listener).unwrap().unwrap();
    (client, accepted)
}

#[test]
fn each_address_of_one_family_is_that_of_the_other_and_no_other_is() {
    let mut rng = Rng(3);
    for _ in 0..1_000 {
        let four = Ipv4Addr::from(rng.next() as u32);
        assert_eq!(v4_of(v6_of(four).into()), Some(four));
        assert_eq!(v4_of(four.into()), Some(four));
        let mut octets = v6_of(four).octets();
        octets[rng.below(12)] ^= 1u8 << rng.below(8);
        assert_eq!(v4_of(IpAddr::from(octets)), None);
    }
    assert_eq!(v6_of(Ipv4Addr::new(10, 0, 0, 1)).to_string(), "fd69:7074:6c00::a00:1");
}

#[test]
fn a_network_says_which_families_its_instances_have() {
    let groups = BTreeMap::from([("g".to_owned(), 1), ("n".to_owned(), 1)]);
    let addrs = |family, group| {
        let compiled = compile(&of(family, 0, LinkModel::default()), &groups, 1).unwrap();
        compiled.topology.addrs(compiled.nodes[&id(group, 0)]).unwrap()
    };
    let (first, second) = (ip(1), v6_of(ip(2)));
    assert_eq!(addrs(IpModel::Ipv4, "g"), Addrs { v4: Some(first), v6: None });
    assert_eq!(addrs(IpModel::Ipv6, "g"), Addrs { v4: None, v6: Some(v6_of(first)) });
    assert_eq!(addrs(IpModel::Both, "g"), Addrs { v4: Some(first), v6: Some(v6_of(first)) });
    // Translated is IPv4 alone.
    assert_eq!(addrs(IpModel::Both, "n"), Addrs { v4: Some(PRIVATE_ADDR), v6: Some(second) });
    assert_eq!(addrs(IpModel::Ipv6, "n"), Addrs { v4: None, v6: Some(second) });
    let mut narrow = of(IpModel::Both, 0, LinkModel::default());
    narrow.access.get_mut("class").unwrap().mtu = 1279;
    let refused = CompileError::Topology(TopologyError::Mtu { mtu: 1279, least: 1280 });
    assert_eq!(compile(&narrow, &groups, 1).unwrap_err(), refused);
}

#[test]
fn delays_and_round_trips_are_those_of_ipv4() {
    for family in [IpModel::Ipv6, IpModel::Both] {
        let mut world = World::new(&of(family, 50_000, LinkModel::default()));
        let (a, b) = (world.udp_on(1, any(7)), world.udp_on(2, any(7)));
        world.send(a, six(2, 7), b"ping");
        assert!(world.until(SECOND, |hosts| hosts.is_readable(b)));
        assert_eq!(world.now_ns, 50 * MS);
        let got = world.hosts.udp_recv(b).unwrap();
        assert_eq!(got, Some(Datagram { src: six(1, 7), payload: Bytes::from_static(b"ping") }));
        world.listen_on(2, any(80));
        let client = world.connect(1, six(2, 80));
        assert!(world.until(SECOND, |hosts| hosts.tcp_connected(client) == Ok(true)));
        assert_eq!(world.now_ns, 150 * MS);
        assert_eq!(world.hosts.peer_addr(client), Ok(six(2, 80)));
        assert_eq!(world.hosts.local_addr(client).unwrap().unwrap().ip(), six(1, 0).ip());
    }
}

#[test]
fn streams_arrive_whole_through_links_that_lose_and_reorder() {
    let link =
        LinkModel { loss_ppm: 30_000, reorder_ppm: 20_000, jitter_us: 2_000, delay_us: 5_000, ..LinkModel::default() };
    let mut world = World::new(&of(IpModel::Both, 10_000, link));
    let (client, server) = pair(&mut world, 1, 2);
    let bytes = noise(1 << 20);
    assert!(world.transfer(client, server, &bytes, 120 * SECOND) == bytes);
    let back = noise(100_000);
    assert!(world.transfer(server, client, &back, 240 * SECOND) == back);
}

#[test]
fn a_nat_is_a_firewall_for_what_it_does_not_translate() {
    let mut world = World::new(&of(IpModel::Both, 10_000, LinkModel::default()));
    let listener = world.listen_on(1, any(80));
    let client = world.connect(4, six(1, 80));
    assert!(world.until(SECOND, |hosts| hosts.is_readable(listener) && hosts.tcp_connected(client) == Ok(true)));
    let (server, peer) = world.hosts.tcp_accept(listener).unwrap().unwrap();
    assert_eq!(peer.ip(), six(4, 0).ip(), "its own address");
    assert_eq!(world.transfer(client, server, b"hello", 2 * SECOND), b"hello");
    // Who was not asked is not let in; who was asked is.
    world.listen_on(4, any(81));
    let dialled = world.connect(2, six(4, 81));
    world.until(5 * SECOND, |hosts| hosts.tcp_connected(dialled) != Ok(false));
    assert_eq!(world.hosts.tcp_connected(dialled), Ok(false), "nobody says anything");
    let (inner, outer) = (world.udp_on(4, any(9)), world.udp_on(2, any(9)));
    world.send(outer, six(4, 9), b"in");
    let until = world.now_ns + SECOND;
    assert!(!world.until(until, |hosts| hosts.is_readable(inner)));
    world.send(inner, six(2, 9), b"out");
    assert!(world.until(until, |hosts| hosts.is_readable(outer)));
    world.send(outer, six(4, 9), b"in");
    assert!(world.until(until, |hosts| hosts.is_readable(inner)));
}

#[test]
fn datagrams_larger_than_a_packet_arrive_whole_or_not_at_all() {
    let mut world = World::new(&of(IpModel::Ipv6, 10_000, LinkModel::default()));
    let (a, b) = (world.udp_on(1, any(7)), world.udp_on(2, any(7)));
    for size in [1, 1452, 1453, 5_000, 65_000, 65_507] {
        let bytes = noise(size);
        world.send(a, six(2, 7), &bytes);
        let until = world.now_ns + SECOND;
        assert!(world.until(until, |hosts| hosts.is_readable(b)), "{size}");
        let got = world.hosts.udp_recv(b).unwrap().unwrap();
        assert!(got.payload == bytes, "{size}");
    }
    let lossy = LinkModel { loss_ppm: 200_000, ..LinkModel::default() };
    let mut world = World::new(&of(IpModel::Both, 0, lossy));
    let (a, b) = (world.udp_on(1, any(7)), world.udp_on(2, any(7)));
    let mut came = 0;
    for number in 0..200u8 {
        world.send(a, six(2, 7), &vec![number; 4_000]);
        let until = world.now_ns + SECOND;
        world.until(until, |_| false);
        while let Some(got) = world.hosts.udp_recv(b).unwrap() {
            assert_eq!(got.payload, vec![number; 4_000]);
            came += 1;
        }
    }
    // Three parts of four in five each.
    assert!((70..140).contains(&came), "{came} of 200");
}

#[test]
fn who_is_nobody_is_unreachable_and_families_do_not_mix() {
    let mut world = World::new(&of(IpModel::Both, 10_000, LinkModel::default()));
    let refused = world.connect(1, six(2, 80));
    let nobody = six(99, 80);
    let lost = world.connect(1, nobody);
    world.run_to(SECOND);
    assert_eq!(world.hosts.tcp_connected(refused), Err(NetError::ConnectionRefused));
    assert_eq!(world.hosts.tcp_connected(lost), Err(NetError::Unreachable { addr: nobody.ip() }));
    let socket = world.udp_on(1, any(7));
    let four: SocketAddr = (ip(2), 7).into();
    let mixed = world.hosts.udp_send(socket, Some(four), Bytes::new());
    assert_eq!(mixed, Err(NetError::InvalidDestination { addr: four }));
    // A port of one family is none of the other.
    let beside = world.hosts.udp_socket(ip(1)).unwrap();
    assert_eq!(world.hosts.udp_bind(beside, any(7)), Err(NetError::AddressInUse { port: 7 }));
    assert_eq!(world.hosts.udp_bind(beside, (Ipv4Addr::UNSPECIFIED, 7).into()), Ok(()));
    // Where a family is not, nothing is.
    let mut world = World::new(&of(IpModel::Ipv4, 10_000, LinkModel::default()));
    let socket = world.hosts.udp_socket(ip(1)).unwrap();
    let nowhere = world.hosts.udp_send(socket, Some(six(2, 7)), Bytes::new());
    assert_eq!(nowhere, Err(NetError::Unreachable { addr: six(2, 0).ip() }));
}

#[test]
fn an_instance_reaches_itself_by_loopback_and_by_its_address_at_once() {
    let mut world = World::new(&of(IpModel::Both, 10_000, LinkModel::default()));
    for (port, to) in [(80, six(1, 0).ip()), (81, Ipv6Addr::LOCALHOST.into()), (82, Ipv6Addr::UNSPECIFIED.into())] {
        let listener = world.listen_on(1, any(port));
        let client = world.connect(1, (to, port).into());
        while world.hosts.poll_ready().is_some() {}
        assert_eq!(world.hosts.tcp_connected(client), Ok(true), "{to}");
        assert!(world.hosts.is_readable(listener));
        let (socket, receiver) = (world.udp_on(1, any(0)), world.udp_on(1, any(port)));
        world.send(socket, (to, port).into(), b"me");
        assert!(world.hosts.is_readable(receiver), "{to}");
    }
}

#[test]
fn listeners_of_one_port_hear_their_own_family_alone() {
    let four = |host, port| SocketAddr::from((ip(host), port));
    let mut world = World::new(&of(IpModel::Both, 1_000, LinkModel::default()));
    let listeners = [world.listen_on(2, any(80)), world.listen_on(2, (Ipv4Addr::UNSPECIFIED, 80).into())];
    for round in 0..8 {
        let family = round % 2;
        let to = [six(2, 80), four(2, 80)][family];
        let client = world.connect(1, to);
        let until = world.now_ns + SECOND;
        let open = |hosts: &mut iptl_labnet::Hosts| hosts.is_readable(listeners[family]);
        assert!(world.until(until, open), "{to}");
        assert!(!world.hosts.is_readable(listeners[1 - family]), "{to}");
        let (server, peer) = world.hosts.tcp_accept(listeners[family]).unwrap().unwrap();
        assert_eq!(peer.is_ipv4(), to.is_ipv4());
        assert_eq!(world.transfer(client, server, b"hello", until), b"hello");
    }
    // Where nobody of a family listens, it is refused, again and again.
    for (host, listens, dials) in [(2, four(2, 81), six(2, 81)), (3, six(3, 81), four(3, 81))] {
        world.listen_on(host, listens);
        for _ in 0..3 {
            let refused = world.connect(1, dials);
            let until = world.now_ns + SECOND;
            world.until(until, |hosts| hosts.tcp_connected(refused) != Ok(false));
            assert_eq!(world.hosts.tcp_connected(refused), Err(NetError::ConnectionRefused), "{dials}");
            let client = world.connect(1, listens);
            assert!(world.until(until, |hosts| hosts.tcp_connected(client) == Ok(true)), "{listens}");
        }
    }
}

#[test]
fn components_answer_echo_requests_of_both_families() {
    let mut world = World::new(&of(IpModel::Both, 10_000, LinkModel::default()));
    let [asker, asked] = [0, 1].map(|index| world.hosts.nodes()[&id("g", index)]);
    let requests = [
        packet(1, (ip(1), 9).into(), (ip(2), 0).into(), 0, b"ping"),
        wrap(six(1, 0).ip(), six(2, 0).ip(), ICMPV6, &echo_v6(six(1, 0).ip(), six(2, 0).ip())),
    ];
    for (answered, request) in (1..).zip(requests) {
        let now_ns = world.now_ns;
        world.hosts.engine_mut().handle_packet(now_ns, asker, request);
        world.run_to(now_ns + SECOND);
        let engine = world.hosts.engine();
        assert_eq!(engine.link_stats(LinkId::NodeUp(asked)).unwrap().delivered, answered);
        assert_eq!(engine.link_stats(LinkId::NodeDown(asker)).unwrap().delivered, answered);
    }
}

/// An echo request of ICMPv6 with its checksum.
fn echo_v6(src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0, 9, 0, 1, 7, 7];
    let sum = !crate::bytes::transport_sum(src, dst, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn a_switch_has_both_families_within_a_cell_and_between_cells() {
    let directory = Arc::new(directory(&[("g", 3)]));
    let mut cells = [0, 1].map(|_| Switch::new(Arc::clone(&directory), Default::default()));
    cells[0].add_instance(&id("g", 0)).unwrap();
    cells[0].add_instance(&id("g", 1)).unwrap();
    cells[1].add_instance(&id("g", 2)).unwrap();
    let carry = |cells: &mut [Switch; 2]| {
        for from in [0, 1, 0, 1] {
            while let Some((_, packet)) = cells[from].poll_packet() {
                let bytes = packet.encode();
                cells[1 - from].handle_packet(iptl_labnet::Packet::decode(&bytes.into()).unwrap());
            }
        }
    };
    for (host, cell) in [(2, 0), (3, 1)] {
        let listener = cells[cell].tcp_socket(ip(host)).unwrap();
        cells[cell].tcp_bind(listener, any(80)).unwrap();
        cells[cell].tcp_listen(listener, 4).unwrap();
        let client = cells[0].tcp_socket(ip(1)).unwrap();
        cells[0].tcp_connect(client, six(host, 80)).unwrap();
        carry(&mut cells);
        assert_eq!(cells[0].tcp_connected(client), Ok(true), "{host}");
        let (server, peer) = cells[cell].tcp_accept(listener).unwrap().unwrap();
        assert_eq!((peer.ip(), cells[0].peer_addr(client)), (six(1, 0).ip(), Ok(six(host, 80))));
        cells[0].tcp_write(client, Bytes::from_static(b"hello")).unwrap();
        carry(&mut cells);
        assert_eq!(
            cells[cell].tcp_read(server, 9),
            Ok(iptl_labnet::Read::Data(Bytes::from_static(b"hello"))),
            "{host}"
        );
        // Over IPv4 nobody listens.
        let other = cells[0].tcp_socket(ip(1)).unwrap();
        cells[0].tcp_connect(other, (ip(host), 80).into()).unwrap();
        carry(&mut cells);
        assert_eq!(cells[0].tcp_connected(other), Err(NetError::ConnectionRefused));
        let (a, b) = (cells[0].udp_socket(ip(1)).unwrap(), cells[cell].udp_socket(ip(host)).unwrap());
        cells[cell].udp_bind(b, any(7)).unwrap();
        cells[0].udp_send(a, Some(six(host, 7)), Bytes::from_static(b"hi")).unwrap();
        carry(&mut cells);
        assert_eq!(cells[cell].udp_recv(b).unwrap().unwrap().src.ip(), six(1, 0).ip());
    }
    let unknown = cells[0].tcp_socket(ip(1)).unwrap();
    let nobody = NetError::Unreachable { addr: six(9, 0).ip() };
    assert_eq!(cells[0].tcp_connect(unknown, six(9, 80)), Err(nobody));
    assert_eq!(
        cells[0].tcp_connect(unknown, at("[2001:db8::7]:80")),
        Err(NetError::Unreachable { addr: at("[2001:db8::7]:80").ip() })
    );
}

/// Two nodes, the second with this MTU; behind a firewall if asked for.
fn narrow(mtu: u16, walled: bool) -> (Engine, NodeId, NodeId) {
    let mut topology = Topology::new(vec![vec![MS]]).unwrap();
    let wide = Access { mtu: 9000, ..Access::default() };
    let a = topology.add_node(RealmId::PUBLIC, ip(1), v6_of(ip(1)), wide).unwrap();
    let access = Access { mtu, up: LinkConfig::default(), ..Access::default() };
    let open = NatConfig { filtering: iptl_labnet::Dependence::Endpoint, ..NatConfig::default() };
    let realm =
        if walled { topology.add_gateway(RealmId::PUBLIC, None, open, access).unwrap().1 } else { RealmId::PUBLIC };
    let b = topology.add_node(realm, ip(2), v6_of(ip(2)), access).unwrap();
    (Engine::new(topology, EngineConfig::default()), a, b)
}

fn run(engine: &mut Engine) -> Vec<(NodeId, Vec<u8>)> {
    while let Some(at_ns) = engine.poll_timeout() {
        engine.handle_timeout(at_ns);
    }
    std::iter::from_fn(|| engine.poll_output()).map(|output| (output.node, output.bytes)).collect()
}

#[test]
fn a_router_cuts_no_packet_of_ipv6_and_says_how_large_one_may_be() {
    let mut rng = Rng(11);
    for round in 0..300 {
        let mtu = 1280 + rng.below(1500) as u16;
        let walled = round % 2 == 1;
        let (mut engine, a, b) = narrow(mtu, walled);
        if walled {
            // Whoever was asked may answer.
            engine.handle_packet(0, b, packet(UDP, six(2, 7), six(1, 7), 0, b"?"));
            assert_eq!(run(&mut engine).len(), 1);
        }
        let payload = noise(rng.below(3_000));
        let sent = packet(UDP, six(1, 7), six(2, 7), 0, &payload);
        engine.handle_packet(engine.poll_timeout().unwrap_or(0), a, sent.clone());
        let got = run(&mut engine);
        let [(node, bytes)] = got.as_slice() else { panic!("{} packets", got.len()) };
        assert_sound(bytes);
        if sent.len() <= usize::from(mtu) {
            assert_eq!(*node, b);
            assert_eq!(bytes.len(), sent.len());
            continue;
        }
        let (_, dst, protocol, message) = parts(bytes);
        assert_eq!((*node, dst, protocol), (a, six(1, 0).ip(), ICMPV6));
        assert_eq!((message[0], message[1]), (2, 0), "packet too big");
        assert_eq!(u32::from_be_bytes([message[4], message[5], message[6], message[7]]), u32::from(mtu));
        // All of it but the hops that it had left.
        assert!(bytes.len() <= 1280 && message[16..] == sent[8..message.len() - 8], "it holds the packet's beginning");
    }
}

#[test]
fn fragments_of_a_sender_are_its_packet_cut_and_nothing_else() {
    let mut rng = Rng(5);
    for _ in 0..300 {
        let transport = noise(1 + rng.below(20_000));
        let whole = wrap(six(1, 0).ip(), six(2, 0).ip(), 99, &transport);
        let header = Header::parse(&whole).unwrap();
        let mtu = 1280 + rng.below(8_000);
        let cut = source_fragments(&whole, &header, mtu, 77).unwrap();
        let (mut joined, count) = (Vec::new(), cut.len());
        for (i, part) in cut.iter().enumerate() {
            let header = Header::parse(part).unwrap();
            let fragment = header.fragment.unwrap();
            assert!(part.len() <= mtu && header.len == part.len());
            assert_eq!((fragment.id, fragment.offset, fragment.more), (77, joined.len(), i + 1 < count));
            assert_eq!(header.protocol, 99);
            joined.extend_from_slice(&part[header.transport_at..]);
        }
        assert!(joined == transport);
    }
    let whole = wrap(six(1, 0).ip(), six(2, 0).ip(), 99, &[0; 100]);
    assert_eq!(source_fragments(&whole, &Header::parse(&whole).unwrap(), 50, 1), None, "no room for eight bytes");
}

#[test]
fn what_a_kernel_says_to_its_own_link_is_no_lie_and_goes_nowhere() {
    let (mut engine, a, _) = narrow(1500, false);
    for (src, dst, spoofed) in [
        ("::", "ff02::16", 0),
        ("fe80::1", "ff02::2", 0),
        ("::", "ff05::2", 1),
        ("fe80::1", "fd69:7074:6c00::a00:2", 2),
        ("fd69:7074:6c00::a00:2", "ff02::16", 3),
    ] {
        let talk = wrap(src.parse().unwrap(), dst.parse().unwrap(), ICMPV6, &[143, 0, 0, 0, 0, 0, 0, 0]);
        engine.handle_packet(0, a, talk);
        assert_eq!(engine.stats().spoofed, spoofed, "{src} to {dst}");
    }
    assert_eq!(run(&mut engine), []);
    assert_eq!(engine.stats().multicast, 2);
}

#[test]
fn heads_that_lie_are_refused_at_any_cut() {
    let mut rng = Rng(9);
    let good = packet(UDP, six(1, 7), six(2, 7), 0, &noise(200));
    for cut in 0..good.len() {
        assert!(matches!(Header::parse(&good[..cut]), Err(IpError::Malformed { .. })), "{cut}");
    }
    for _ in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(60);
            bad[at] = rng.next() as u8;
        }
        // Whatever it says, nothing outside it is believed.
        if let Ok(header) = Header::parse(&bad) {
            assert!(header.len <= bad.len() && header.transport_at <= header.len);
        }
        let (mut engine, a, _) = narrow(1500, false);
        engine.handle_packet(0, a, bad);
        run(&mut engine);
    }
}
