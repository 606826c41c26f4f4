//! A network of namespaces.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iptl_labnet::{Access, Addrs, Away, Engine, EngineConfig, LinkConfig, NodeId, RealmId, Topology};
use iptl_labnet_tun::{DEVICE_NAME, End, Interface, Namespace, Network, Options, Outlets, Report};

pub(crate) const MS: u64 = 1_000_000;

/// Time after which something that has to happen has not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Returns whether namespaces can be made; says so where they cannot.
pub(crate) fn privileged() -> bool {
    let Err(error) = Namespace::empty() else { return true };
    let required =
        std::env::var_os("CI").is_some() || std::env::var_os("IPTL_NETNS").is_some_and(|value| value == "required");
    assert!(!required, "these tests need the privilege to make network namespaces: {error}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _closed = writeln!(std::io::stderr(), "NOT RUN: {test}: network namespaces cannot be made: {error}");
    false
}

/// Nodes with a namespace each, and the network between them.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) nodes: Vec<(NodeId, Namespace, Ipv4Addr)>,
    pub(crate) away: mpsc::Receiver<Away>,
    pub(crate) ended: mpsc::Receiver<End>,
}

impl World {
    /// Makes the network of a topology and gives each of these nodes a namespace.
    pub(crate) fn new(topology: Topology, nodes: &[NodeId]) -> World {
        World::with(Engine::new(topology, EngineConfig::default()), nodes, Options::default())
    }

    pub(crate) fn with(engine: Engine, nodes: &[NodeId], options: Options) -> World {
        let (away_sender, away) = mpsc::channel();
        let (ended_sender, ended) = mpsc::channel();
        let topology = engine.topology().clone();
        let outlets = Outlets {
            away: Box::new(move |packet| {
                // A packet of this many bytes is one that breaks the network.
                assert_ne!(packet.bytes.len(), BREAKING, "as the test asked for");
                let _gone = away_sender.send(packet);
            }),
            captured: Box::new(|_| {}),
            happened: Box::new(|_| {}),
            ended: Box::new(move |end| drop(ended_sender.send(end))),
        };
        let network = Network::start(engine, options, outlets).unwrap();
        let nodes = nodes.iter().map(|node| {
            let namespace = Namespace::empty().unwrap();
            let addrs = topology.addrs(*node).unwrap();
            let addr = addrs.v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let mtu = topology.mtu(*node).unwrap();
            let device = namespace.open(&Interface { mtu, ..with_addrs(addrs) }).unwrap();
            network.attach(*node, device);
            (*node, namespace, addr)
        });
        let nodes = nodes.collect();
        let world = World { network, nodes, away, ended };
        // The devices are there once an order that came after them is carried out.
        world.report();
        world
    }

    /// Makes public nodes with these links up.
    pub(crate) fn of(ups: &[LinkConfig]) -> World {
        let (topology, nodes) = public(ups);
        World::new(topology, &nodes)
    }

    pub(crate) fn udp(&self, node: usize) -> UdpSocket {
        self.udp_at(node, self.nodes[node].2.into())
    }

    pub(crate) fn udp_at(&self, node: usize, addr: IpAddr) -> UdpSocket {
        let socket = self.nodes[node].1.run(|| UdpSocket::bind((addr, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Opens a connection between two nodes.
    pub(crate) fn tcp(&self, from: usize, to: usize) -> (TcpStream, TcpStream) {
        self.tcp_to(from, to, self.nodes[to].2.into())
    }

    /// Opens a connection between two nodes, to an address of the second.
    pub(crate) fn tcp_to(&self, from: usize, to: usize, addr: IpAddr) -> (TcpStream, TcpStream) {
        let listener = self.nodes[to].1.run(|| TcpListener::bind((addr, 0)).unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let opened = self.nodes[from].1.run(|| TcpStream::connect_timeout(&at, PATIENCE).unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for stream in [&opened, &accepted] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        (opened, accepted)
    }

    pub(crate) fn report(&self) -> Report {
        let (sender, receiver) = mpsc::channel();
        self.network.report(move |report| drop(sender.send(report)));
        receiver.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits until a report is as it should be.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Report) -> bool) -> Report {
        let begun = Instant::now();
        loop {
            let report = self.report();
            if holds(&report) {
                return report;
            }
            assert!(begun.elapsed() < PATIENCE, "not {what}: {report:?}");
            std::thread::yield_now();
        }
    }

    /// Ends the network and returns how it ended.
    pub(crate) fn end(self) -> End {
        self.network.stop();
        self.ended.recv_timeout(PATIENCE).unwrap()
    }
}

/// Size of a packet for another machine at which the network breaks.
pub(crate) const BREAKING: usize = 777;

pub(crate) fn interface(addr: Ipv4Addr) -> Interface {
    with_addrs(Addrs { v4: Some(addr), v6: None })
}

pub(crate) fn with_addrs(addrs: Addrs) -> Interface {
    let addrs = addrs.iter().map(|addr| (addr, if addr.is_ipv4() { 8 } else { 96 })).collect();
    Interface { name: DEVICE_NAME.to_owned(), addrs, mtu: 1500 }
}

/// Makes a topology of public nodes with these links up.
pub(crate) fn public(ups: &[LinkConfig]) -> (Topology, Vec<NodeId>) {
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let mut add = |(i, up): (usize, &LinkConfig)| {
        let addr = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + u32::try_from(i).unwrap());
        topology.add_node(RealmId::PUBLIC, addr, None, Access { up: *up, ..Access::default() }).unwrap()
    };
    let nodes = ups.iter().enumerate().map(&mut add).collect();
    (topology, nodes)
}

pub(crate) fn clean() -> LinkConfig {
    LinkConfig::default()
}

pub(crate) fn delay(delay_ns: u64) -> LinkConfig {
    LinkConfig { delay_ns, ..LinkConfig::default() }
}

/// Sends a datagram and waits for it; returns how long it took.
pub(crate) fn pass(from: &UdpSocket, to: &UdpSocket, payload: &[u8]) -> Duration {
    let at = to.local_addr().unwrap();
    let mut bytes = vec![0; 65_536];
    let begun = Instant::now();
    from.send_to(payload, at).unwrap();
    let (size, sender) = to.recv_from(&mut bytes).unwrap();
    let took = begun.elapsed();
    assert!(bytes[..size] == *payload, "it arrived changed");
    assert_eq!(sender, from.local_addr().unwrap());
    took
}

/// Makes an IPv4 packet that holds a datagram, without the code under test.
pub(crate) fn datagram(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    packet.extend([0x10, 0, 0x20, 0, length[0], length[1], 0, 0]);
    packet.extend_from_slice(payload);
    packet
}

pub(crate) fn at(addr: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(addr), port)
}
