//! Sockets over a model of links, under virtual time.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use iptl_dag::model::{
    AccessClass, Fault, FaultSchedule, FaultTarget, GatewayModel, GroupNetwork, IpModel, LinkModel, NetworkModel,
    ScheduledFault, SiteShare,
};
use iptl_labnet::{
    Addrs, Datagram, Directory, EngineConfig, Faults, Half, Hosts, Limits, NetError, PRIVATE_ADDR, Read, SocketId,
    Sockets, compile,
};

use crate::directory::id;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

/// Instance number `host - 1` of group `g`.
pub(crate) fn ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn addr(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from((ip(host), port))
}

/// One region in which everything takes `delay_us` and whose links are `link`; group `n` is behind NATs.
pub(crate) fn network(delay_us: u64, link: LinkModel) -> NetworkModel {
    let class = AccessClass { up: link, down: LinkModel::default(), mtu: 1500 };
    let behind = GroupNetwork {
        regions: BTreeMap::new(),
        access: BTreeMap::new(),
        sites: vec![SiteShare { weight: 1, gateways: vec![GatewayModel::default()] }],
        per: 1,
    };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["here".into()],
        delays_us: vec![vec![delay_us]],
        access: BTreeMap::from([("class".to_owned(), class)]),
        groups: BTreeMap::from([("n".to_owned(), behind)]),
    }
}

/// Three instances of group `g` (hosts 1 to 3), and two of group `n` behind NATs (hosts 4 and 5), with their time.
pub(crate) struct World {
    pub(crate) hosts: Hosts,
    pub(crate) now_ns: u64,
}

impl World {
    pub(crate) fn new(network: &NetworkModel) -> World {
        let groups = BTreeMap::from([("g".to_owned(), 3), ("n".to_owned(), 2)]);
        let directory = Arc::new(Directory::new(&groups).unwrap());
        let compiled = compile(network, &groups, 7).unwrap();
        let config = EngineConfig { seed: 7, ..EngineConfig::default() };
        let mut hosts = Hosts::new(directory, compiled, Limits::default(), config);
        for (group, size) in &groups {
            for index in 0..*size {
                hosts.add_instance(&id(group, index)).unwrap();
            }
        }
        World { hosts, now_ns: 0 }
    }

    /// Lets time pass until something is the case, or nothing more can happen before `until_ns`.
    pub(crate) fn until(&mut self, until_ns: u64, mut done: impl FnMut(&mut Hosts) -> bool) -> bool {
        loop {
            while self.hosts.poll_ready().is_some() {}
            if done(&mut self.hosts) {
                return true;
            }
            match self.hosts.poll_timeout().filter(|at_ns| *at_ns <= until_ns) {
                Some(at_ns) => self.now_ns = at_ns.max(self.now_ns),
                None => return false,
            }
            self.hosts.advance(self.now_ns);
        }
    }

    pub(crate) fn run_to(&mut self, until_ns: u64) {
        self.until(until_ns, |_| false);
        self.now_ns = until_ns;
        self.hosts.advance(until_ns);
    }

    pub(crate) fn listen(&mut self, host: u8, port: u16) -> SocketId {
        self.listen_on(host, any(port))
    }

    pub(crate) fn listen_on(&mut self, host: u8, addr: SocketAddr) -> SocketId {
        let listener = self.hosts.tcp_socket(ip(host)).unwrap();
        self.hosts.tcp_bind(listener, addr).unwrap();
        self.hosts.tcp_listen(listener, 16).unwrap();
        listener
    }

    pub(crate) fn connect(&mut self, host: u8, to: SocketAddr) -> SocketId {
        let client = self.hosts.tcp_socket(ip(host)).unwrap();
        self.hosts.tcp_connect(client, to).unwrap();
        client
    }

    /// A connection from host 1 to port 80 of host 2, and its end there.
    fn pair(&mut self) -> (SocketId, SocketId) {
        let listener = self.listen(2, 80);
        let client = self.connect(1, addr(2, 80));
        let until = self.now_ns + 30 * SECOND;
        assert!(self.until(until, |hosts| hosts.tcp_connected(client).unwrap() && hosts.is_readable(listener)));
        let (server, _) = self.hosts.tcp_accept(listener).unwrap().unwrap();
        (client, server)
    }

    pub(crate) fn udp(&mut self, host: u8, port: u16) -> SocketId {
        self.udp_on(host, any(port))
    }

    pub(crate) fn udp_on(&mut self, host: u8, addr: SocketAddr) -> SocketId {
        let socket = self.hosts.udp_socket(ip(host)).unwrap();
        self.hosts.udp_bind(socket, addr).unwrap();
        socket
    }

    pub(crate) fn send(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        self.hosts.udp_send(socket, Some(to), Bytes::copy_from_slice(bytes)).unwrap();
    }

    /// Writes everything at one end and reads it at the other; returns what was read.
    pub(crate) fn transfer(&mut self, from: SocketId, to: SocketId, bytes: &[u8], until_ns: u64) -> Vec<u8> {
        let (mut written, mut got) = (0, Vec::new());
        self.until(until_ns, |hosts| {
            while written < bytes.len() {
                match hosts.tcp_write(from, Bytes::copy_from_slice(&bytes[written..])).unwrap() {
                    0 => break,
                    size => written += size,
                }
            }
            while let Ok(Read::Data(part)) = hosts.tcp_read(to, 64 << 10) {
                got.extend_from_slice(&part);
            }
            while hosts.poll_ready().is_some() {}
            got.len() == bytes.len()
        });
        got
    }
}

pub(crate) fn noise(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn datagrams_take_the_delay_between_regions() {
    let mut world = World::new(&network(50_000, LinkModel::default()));
    let (a, b) = (world.udp(1, 7), world.udp(2, 7));
    world.send(a, addr(2, 7), b"ping");
    assert!(world.until(SECOND, |hosts| hosts.is_readable(b)));
    assert_eq!(world.now_ns, 50 * MS);
    let got = world.hosts.udp_recv(b).unwrap();
    assert_eq!(got, Some(Datagram { src: addr(1, 7), payload: Bytes::from_static(b"ping") }));
    assert_eq!((world.hosts.stats(ip(1)).sent_bytes, world.hosts.stats(ip(2)).received_bytes), (4, 4));
}

#[test]
fn a_connection_is_open_after_one_round_trip() {
    let mut world = World::new(&network(50_000, LinkModel::default()));
    world.listen(2, 80);
    let client = world.connect(1, addr(2, 80));
    assert_eq!(world.hosts.tcp_connected(client), Ok(false));
    assert!(world.until(SECOND, |hosts| hosts.tcp_connected(client) == Ok(true)));
    assert_eq!(world.now_ns, 100 * MS);
    assert_eq!(world.hosts.peer_addr(client), Ok(addr(2, 80)));
}

#[test]
fn streams_arrive_whole_through_links_that_lose_and_reorder() {
    let link =
        LinkModel { loss_ppm: 30_000, reorder_ppm: 20_000, jitter_us: 2_000, delay_us: 5_000, ..LinkModel::default() };
    let mut world = World::new(&network(10_000, link));
    let (client, server) = world.pair();
    let bytes = noise(2 << 20);
    assert_eq!(world.transfer(client, server, &bytes, 120 * SECOND).len(), bytes.len());
    let back = noise(100_000);
    assert_eq!(world.transfer(server, client, &back, 240 * SECOND), back);
    assert!(world.hosts.engine().held_bytes() < 1 << 20);
}

#[test]
fn a_stream_is_as_fast_as_its_link_and_no_faster() {
    let link = LinkModel { rate_bps: 10_000_000, queue_bytes: 128 << 10, ..LinkModel::default() };
    let mut world = World::new(&network(10_000, link));
    let (client, server) = world.pair();
    let (begun, bytes) = (world.now_ns, noise(4 << 20));
    assert_eq!(world.transfer(client, server, &bytes, 60 * SECOND).len(), bytes.len());
    let seconds = (world.now_ns - begun) as f64 / SECOND as f64;
    let rate = bytes.len() as f64 * 8.0 / seconds;
    assert!((7_500_000.0..10_000_000.0).contains(&rate), "{rate} bit/s");
}

#[test]
fn who_does_not_listen_refuses_and_who_is_nobody_is_unreachable() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    let refused = world.connect(1, addr(2, 80));
    let nobody = world.connect(1, SocketAddr::from((Ipv4Addr::new(10, 9, 9, 9), 80)));
    world.run_to(SECOND);
    assert_eq!(world.hosts.tcp_connected(refused), Err(NetError::ConnectionRefused));
    assert_eq!(
        world.hosts.tcp_connected(nobody),
        Err(NetError::Unreachable { addr: Ipv4Addr::new(10, 9, 9, 9).into() })
    );
}

#[test]
fn who_is_behind_a_nat_can_dial_and_cannot_be_dialled() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    assert_eq!(world.hosts.own_addrs(ip(4)), Addrs { v4: Some(PRIVATE_ADDR), v6: None });
    let listener = world.listen(1, 80);
    let client = world.connect(4, addr(1, 80));
    assert!(world.until(SECOND, |hosts| hosts.is_readable(listener) && hosts.tcp_connected(client) == Ok(true)));
    let (server, peer) = world.hosts.tcp_accept(listener).unwrap().unwrap();
    assert!(peer.ip().to_string().starts_with("172.16."), "its gateway's address");
    assert_eq!(world.transfer(client, server, b"hello", 2 * SECOND), b"hello");
    world.listen(4, 80);
    for to in [addr(4, 80), SocketAddr::from((peer.ip(), 80))] {
        let dialled = world.connect(2, to);
        world.until(SECOND * 5, |hosts| hosts.tcp_connected(dialled) != Ok(false));
        assert_ne!(world.hosts.tcp_connected(dialled), Ok(true), "{to}");
    }
}

#[test]
fn an_instance_reaches_itself_by_each_of_its_addresses_at_once() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    for (host, to) in [
        (1, addr(1, 80)),
        (2, SocketAddr::from((Ipv4Addr::LOCALHOST, 80))),
        (4, SocketAddr::from((PRIVATE_ADDR, 80))),
        (5, addr(5, 80)),
    ] {
        let listener = world.listen(host, 80);
        let client = world.connect(host, to);
        while world.hosts.poll_ready().is_some() {}
        assert_eq!(world.hosts.tcp_connected(client), Ok(true), "{host} to {to}");
        assert!(world.hosts.is_readable(listener));
        let (socket, receiver) = (world.udp(host, 7), world.udp(host, 8));
        world.send(socket, SocketAddr::from((to.ip(), 8)), b"me");
        assert!(world.hosts.is_readable(receiver), "{host} to {to}");
    }
}

#[test]
fn datagrams_larger_than_a_packet_arrive_whole_or_not_at_all() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    let (a, b) = (world.udp(1, 7), world.udp(2, 7));
    let bytes = noise(40_000);
    world.send(a, addr(2, 7), &bytes);
    assert!(world.until(SECOND, |hosts| hosts.is_readable(b)));
    assert_eq!(world.hosts.udp_recv(b).unwrap().unwrap().payload, bytes);
    let lossy = LinkModel { loss_ppm: 200_000, ..LinkModel::default() };
    let mut world = World::new(&network(10_000, lossy));
    let (a, b) = (world.udp(1, 7), world.udp(2, 7));
    for _ in 0..50 {
        world.send(a, addr(2, 7), &noise(4_000));
    }
    world.run_to(SECOND);
    let mut whole = 0;
    while let Some(datagram) = world.hosts.udp_recv(b).unwrap() {
        assert_eq!(datagram.payload, noise(4_000));
        whole += 1;
    }
    assert!((10..45).contains(&whole), "{whole} of 50 at three packets each");
}

#[test]
fn datagrams_with_turned_bits_are_not_delivered() {
    let link = LinkModel { corrupt_ppm: 1_000_000, ..LinkModel::default() };
    let mut world = World::new(&network(1_000, link));
    let (a, b) = (world.udp(1, 7), world.udp(2, 7));
    for _ in 0..100 {
        world.send(a, addr(2, 7), &noise(1_000));
    }
    world.run_to(SECOND);
    assert!(!world.hosts.is_readable(b));
}

#[test]
fn a_partition_stops_what_is_under_way_and_streams_go_on_when_it_heals() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    let (client, server) = world.pair();
    let (a, b) = (world.udp(1, 7), world.udp(2, 7));
    let sides: Vec<Option<u8>> = [0, 1, 0, 1, 0].map(Some).to_vec();
    world.hosts.engine_mut().partition(&sides);
    world.send(a, addr(2, 7), b"lost");
    world.hosts.tcp_write(client, Bytes::from_static(b"late")).unwrap();
    let healed_at = world.now_ns + 5 * SECOND;
    world.run_to(healed_at);
    assert!(!world.hosts.is_readable(b) && !world.hosts.is_readable(server));
    assert!(world.hosts.engine().stats().partitioned >= 2);
    world.hosts.engine_mut().partition(&[]);
    assert_eq!(world.transfer(client, server, b"", 0).len(), 0);
    assert!(world.until(healed_at + 30 * SECOND, |hosts| hosts.is_readable(server)));
    assert_eq!(world.hosts.tcp_read(server, 100), Ok(Read::Data(Bytes::from_static(b"late"))));
    assert!(!world.hosts.is_readable(b), "a datagram is not sent twice");
}

#[test]
fn the_end_of_a_stream_comes_after_its_bytes_and_a_reset_ends_it_at_once() {
    let mut world = World::new(&network(10_000, LinkModel::default()));
    let (client, server) = world.pair();
    world.hosts.tcp_write(client, Bytes::from_static(b"last words")).unwrap();
    world.hosts.tcp_shutdown(client, Half::Write).unwrap();
    assert_eq!(world.hosts.tcp_write(client, Bytes::from_static(b"x")), Err(NetError::Shutdown));
    assert!(world.until(SECOND, |hosts| hosts.is_readable(server)));
    assert_eq!(world.hosts.tcp_read(server, 100), Ok(Read::Data(Bytes::from_static(b"last words"))));
    assert_eq!(world.hosts.tcp_read(server, 100), Ok(Read::End));
    world.hosts.tcp_write(server, Bytes::from_static(b"and you")).unwrap();
    world.hosts.close(server);
    assert!(world.until(2 * SECOND, |hosts| hosts.is_readable(client)));
    assert_eq!(world.hosts.tcp_read(client, 100), Ok(Read::Data(Bytes::from_static(b"and you"))));
    assert!(world.until(2 * SECOND, |hosts| hosts.tcp_read(client, 100) == Ok(Read::End)));

    let mut world = World::new(&network(10_000, LinkModel::default()));
    let (client, server) = world.pair();
    world.hosts.remove_instance(ip(2));
    assert!(world.until(SECOND, |hosts| hosts.is_readable(client)));
    assert_eq!(world.hosts.tcp_read(client, 100), Err(NetError::ConnectionReset));
    assert_eq!(world.hosts.tcp_room(client), Err(NetError::ConnectionReset));
    assert_eq!(world.hosts.tcp_read(server, 1), Err(NetError::NoSocket));
}

#[test]
fn what_an_instance_wrote_before_it_ended_still_arrives() {
    let link = LinkModel { loss_ppm: 20_000, ..LinkModel::default() };
    let mut world = World::new(&network(10_000, link));
    let (client, server) = world.pair();
    let bytes = noise(200_000);
    assert_eq!(world.hosts.tcp_write(client, Bytes::from(bytes.clone())), Ok(bytes.len()));
    world.hosts.close(client);
    world.hosts.remove_instance(ip(1));
    assert!(world.hosts.udp_socket(ip(1)).is_err(), "it has ended");
    let (mut got, mut ended) = (Vec::new(), false);
    world.until(60 * SECOND, |hosts| {
        loop {
            match hosts.tcp_read(server, 64 << 10).unwrap() {
                Read::Data(part) => got.extend_from_slice(&part),
                Read::End => ended = true,
                Read::Pending => {}
            }
            if ended || !hosts.is_readable(server) {
                break;
            }
        }
        while hosts.poll_ready().is_some() {}
        ended
    });
    assert!(ended && got == bytes, "{} of {} bytes", got.len(), bytes.len());
}

#[test]
fn a_full_backlog_makes_openers_wait_and_refuses_nobody() {
    let mut world = World::new(&network(1_000, LinkModel::default()));
    let listener = world.hosts.tcp_socket(ip(2)).unwrap();
    world.hosts.tcp_bind(listener, any(80)).unwrap();
    world.hosts.tcp_listen(listener, 2).unwrap();
    let clients: Vec<SocketId> = (0..8).map(|_| world.connect(1, addr(2, 80))).collect();
    let mut accepted = Vec::new();
    world.until(60 * SECOND, |hosts| {
        while let Some((server, _)) = hosts.tcp_accept(listener).unwrap() {
            accepted.push(server);
        }
        while hosts.poll_ready().is_some() {}
        accepted.len() == clients.len()
    });
    let outcomes: Vec<_> = clients.iter().map(|client| world.hosts.tcp_connected(*client)).collect();
    assert_eq!(accepted.len(), clients.len(), "{outcomes:?}");
    assert!(clients.iter().all(|client| world.hosts.tcp_connected(*client) == Ok(true)));
}

#[test]
fn many_connections_share_what_a_cell_holds_and_give_it_back() {
    let mut world = World::new(&network(0, LinkModel::default()));
    let listener = world.listen(2, 80);
    let open = |world: &mut World| {
        let client = world.connect(1, addr(2, 80));
        let until = world.now_ns + SECOND;
        assert!(world.until(until, |hosts| hosts.tcp_connected(client).unwrap() && hosts.is_readable(listener)));
        let (server, _) = world.hosts.tcp_accept(listener).unwrap().unwrap();
        (client, server)
    };
    let ends: Vec<(SocketId, SocketId)> = (0..1_000).map(|_| open(&mut world)).collect();
    let rooms: Vec<usize> = ends.iter().map(|(client, _)| world.hosts.tcp_room(*client).unwrap()).collect();
    assert_eq!((rooms[0], rooms[300]), (256 << 10, 256 << 10));
    assert!(rooms.is_sorted_by(|one, next| one >= next));
    let (last, all) = (rooms[999], rooms.iter().sum::<usize>());
    assert!((32 << 10..64 << 10).contains(&last), "{last} bytes");
    assert!(all < 160 << 20, "{all} bytes in one direction of one end");

    for (client, server) in ends {
        world.hosts.close(client);
        world.hosts.close(server);
    }
    // Both ends have waited for what may still be under way.
    world.run_to(world.now_ns + 60 * SECOND);
    let (client, _) = open(&mut world);
    assert_eq!(world.hosts.tcp_room(client), Ok(256 << 10));
}

#[test]
fn equal_runs_are_equal_to_the_packet() {
    let link = LinkModel { loss_ppm: 50_000, jitter_us: 3_000, delay_us: 5_000, ..LinkModel::default() };
    let run = || {
        let mut world = World::new(&network(10_000, link));
        let (client, server) = world.pair();
        let bytes = noise(300_000);
        assert_eq!(world.transfer(client, server, &bytes, 120 * SECOND).len(), bytes.len());
        (world.now_ns, world.hosts.engine().stats())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_host_with_another_address_is_found_by_its_name_and_its_old_connections_are_dead() {
    let target = FaultTarget { group: Some("g".to_owned()), region: None, share_ppm: 1_000_000 };
    let fault = ScheduledFault { at_ms: 1_000, every_ms: 0, fault: Fault::Address { who: target } };
    let network = NetworkModel { ip: IpModel::Both, ..network(1_000, LinkModel::default()) };
    let mut world = World::new(&network);
    let groups = BTreeMap::from([("g".to_owned(), 3), ("n".to_owned(), 2)]);
    let compiled = compile(&network, &groups, 7).unwrap();
    let schedule = FaultSchedule { faults: vec![fault] };
    world.hosts.set_faults(Faults::new(&[schedule], &network, &compiled, &groups, 7).unwrap());
    world.hosts.advance(0);
    world.hosts.start();
    let (client, server) = world.pair();
    assert_eq!(world.transfer(client, server, b"before", SECOND / 2), b"before");
    let old = world.hosts.resolve("g-1").unwrap();
    assert_eq!(old.v4, Some(ip(2)));
    world.run_to(2 * SECOND);
    let happened = world.hosts.poll_fault().unwrap();
    assert_eq!((happened.what.name(), happened.hit.len()), ("address", 3));
    let new = world.hosts.resolve("g-1").unwrap();
    assert_eq!(new, world.hosts.own_addrs(ip(2)));
    assert!(new.v4 != old.v4 && new.v6 != old.v6);
    // The old connection is over, nobody answers at the old address, and a new one is like any.
    for end in [client, server] {
        assert_eq!(world.hosts.tcp_room(end), Err(NetError::ConnectionReset));
    }
    assert_eq!(world.hosts.engine().stats().spoofed, 0);
    let dead = world.connect(3, addr(2, 80));
    let until = world.now_ns + SECOND;
    assert!(world.until(until, |hosts| hosts.tcp_connected(dead).is_err()));
    for to in new.iter() {
        world.listen_on(2, (to, 81).into());
        let again = world.connect(1, (to, 81).into());
        let until = world.now_ns + SECOND;
        assert!(world.until(until, |hosts| hosts.tcp_connected(again) == Ok(true)), "{to}");
    }
}
