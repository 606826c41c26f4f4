//! Hosts of one network in several cells are those of one: what a cell has for another takes a while to be there, and
//! nobody notices as long as the model asks for more.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use iptl_dag::model::{AccessClass, IpModel, LinkModel, NetworkModel};
use iptl_labnet::{Datagram, Directory, EngineConfig, Hosts, Limits, Packet, Read, SocketId, Sockets, compile};

use crate::directory::id;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn addr(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from((ip(host), port))
}

/// A packet under way between cells: when it is there, and in which order it left.
type Key = (u64, u64);

/// Two cells, each with one of two instances, `way_ns` apart.
struct World {
    cells: [Hosts; 2],
    way_ns: u64,
    under_way: BTreeMap<Key, (usize, Vec<u8>)>,
    sent: u64,
    now_ns: u64,
}

impl World {
    fn new(delay_us: u64, way_ns: u64, link: LinkModel) -> World {
        let class = AccessClass { up: link, down: LinkModel::default(), mtu: 1500 };
        let network = NetworkModel {
            ip: IpModel::default(),
            regions: vec!["here".into()],
            delays_us: vec![vec![delay_us]],
            access: BTreeMap::from([("class".to_owned(), class)]),
            groups: BTreeMap::new(),
        };
        let groups = BTreeMap::from([("g".to_owned(), 2)]);
        let directory = Arc::new(Directory::new(&groups).unwrap());
        let cells = [0, 1].map(|index| {
            let compiled = compile(&network, &groups, 7).unwrap();
            let config = EngineConfig { seed: 7, ..EngineConfig::default() };
            let mut hosts = Hosts::new(Arc::clone(&directory), compiled, Limits::default(), config);
            hosts.add_instance(&id("g", index)).unwrap();
            hosts
        });
        World { cells, way_ns, under_way: BTreeMap::new(), sent: 0, now_ns: 0 }
    }

    /// Lets time pass until something is the case, or nothing more can happen before `until_ns`.
    fn until(&mut self, until_ns: u64, mut done: impl FnMut(&mut [Hosts; 2]) -> bool) -> bool {
        loop {
            self.collect();
            if done(&mut self.cells) {
                return true;
            }
            // What that has led to.
            self.collect();
            let there = self.under_way.first_key_value().map(|((at_ns, _), _)| *at_ns);
            let next = self.cells.iter().filter_map(Sockets::poll_timeout).chain(there).min();
            match next.filter(|at_ns| *at_ns <= until_ns) {
                Some(at_ns) => self.now_ns = at_ns.max(self.now_ns),
                None => return false,
            }
            for cell in &mut self.cells {
                cell.advance(self.now_ns);
            }
            while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now_ns) {
                let (to, bytes) = entry.remove();
                assert!(self.cells[to].handle_packet(bytes.into()));
            }
        }
    }

    /// Takes what cells have for each other.
    fn collect(&mut self) {
        for (of, cell) in self.cells.iter_mut().enumerate() {
            while let Some((dst, bytes)) = cell.poll_packet() {
                assert_eq!(dst, ip(if of == 0 { 2 } else { 1 }));
                self.sent += 1;
                self.under_way.insert((self.now_ns + self.way_ns, self.sent), (1 - of, bytes));
            }
            while cell.poll_ready().is_some() {}
        }
    }

    fn udp(&mut self, host: u8) -> SocketId {
        let cell = &mut self.cells[usize::from(host) - 1];
        let socket = cell.udp_socket(ip(host)).unwrap();
        cell.udp_bind(socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7))).unwrap();
        socket
    }

    /// A connection from host 1 to port 80 of host 2, and its end there.
    fn pair(&mut self) -> (SocketId, SocketId) {
        let listener = self.cells[1].tcp_socket(ip(2)).unwrap();
        self.cells[1].tcp_bind(listener, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80))).unwrap();
        self.cells[1].tcp_listen(listener, 16).unwrap();
        let client = self.cells[0].tcp_socket(ip(1)).unwrap();
        self.cells[0].tcp_connect(client, addr(2, 80)).unwrap();
        let open = |cells: &mut [Hosts; 2]| cells[0].tcp_connected(client).unwrap() && cells[1].is_readable(listener);
        assert!(self.until(SECOND, open));
        let (server, peer) = self.cells[1].tcp_accept(listener).unwrap().unwrap();
        assert_eq!(peer.ip(), ip(1));
        (client, server)
    }
}

#[test]
fn datagrams_between_cells_take_the_delay_of_the_network_whatever_the_way_takes() {
    for way_ns in [0, 10 * MS, 50 * MS] {
        let mut world = World::new(50_000, way_ns, LinkModel::default());
        let (a, b) = (world.udp(1), world.udp(2));
        world.cells[0].udp_send(a, Some(addr(2, 7)), Bytes::from_static(b"ping")).unwrap();
        assert!(world.until(SECOND, |cells| cells[1].is_readable(b)), "{way_ns}");
        assert_eq!(world.now_ns, 50 * MS);
        let got = world.cells[1].udp_recv(b).unwrap();
        assert_eq!(got, Some(Datagram { src: addr(1, 7), payload: Bytes::from_static(b"ping") }));
        let used = world.cells[1].network_use(ip(2)).unwrap().cell;
        assert_eq!((used.overdue, used.across.asked_ns, used.across.measured_ns), (0, 50 * MS, 50 * MS));
    }
}

#[test]
fn a_way_that_is_longer_than_the_delay_is_told() {
    let mut world = World::new(50_000, 70 * MS, LinkModel::default());
    let (a, b) = (world.udp(1), world.udp(2));
    world.cells[0].udp_send(a, Some(addr(2, 7)), Bytes::from_static(b"ping")).unwrap();
    assert!(world.until(SECOND, |cells| cells[1].is_readable(b)));
    let used = world.cells[1].network_use(ip(2)).unwrap().cell;
    assert_eq!((world.now_ns, used.overdue, used.max_overdue_ns), (70 * MS, 1, 20 * MS));
    // What is no longer than a millisecond is late, as it could be within one cell.
    let mut world = World::new(0, MS / 2, LinkModel::default());
    let (a, b) = (world.udp(1), world.udp(2));
    world.cells[0].udp_send(a, Some(addr(2, 7)), Bytes::from_static(b"ping")).unwrap();
    assert!(world.until(SECOND, |cells| cells[1].is_readable(b)));
    let used = world.cells[1].network_use(ip(2)).unwrap().cell;
    assert_eq!((used.overdue, used.max_late_ns), (0, MS / 2));
}

#[test]
fn streams_between_cells_arrive_whole_through_links_that_lose() {
    let link = LinkModel { loss_ppm: 20_000, delay_us: 2_000, ..LinkModel::default() };
    let mut world = World::new(20_000, 3 * MS, link);
    let (client, server) = world.pair();
    let bytes: Vec<u8> = (0..1_usize << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut written, mut got) = (0, Vec::new());
    world.until(120 * SECOND, |cells| {
        while written < bytes.len() {
            match cells[0].tcp_write(client, Bytes::copy_from_slice(&bytes[written..])).unwrap() {
                0 => break,
                size => written += size,
            }
        }
        while let Ok(Read::Data(part)) = cells[1].tcp_read(server, 64 << 10) {
            got.extend_from_slice(&part);
        }
        got.len() == bytes.len()
    });
    assert_eq!(got.len(), bytes.len());
    assert_eq!(got, bytes);
}

#[test]
fn what_is_no_packet_of_such_a_network_is_not_taken() {
    let mut world = World::new(1_000, 0, LinkModel::default());
    let packet = Packet::Udp { src: addr(2, 1), dst: addr(1, 7), payload: Bytes::new() };
    assert!(!world.cells[0].handle_packet(packet.encode().into()));
    assert!(!world.cells[0].handle_packet(Bytes::new()));
    // From an instance that is here, as if it were elsewhere: taken, and dropped.
    let receiver = world.udp(1);
    let sender = world.udp(2);
    world.cells[1].udp_send(sender, Some(addr(1, 7)), Bytes::from_static(b"x")).unwrap();
    let (_, mut bytes) = world.cells[1].poll_packet().unwrap();
    bytes[5..9].copy_from_slice(&0_u32.to_be_bytes());
    assert!(world.cells[0].handle_packet(bytes.into()));
    assert!(!world.until(SECOND, |cells| cells[0].is_readable(receiver)));
    assert_eq!(world.cells[0].engine().stats().spoofed, 1);
}
