//! No packet leaves the lab, and none is taken for another's.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use iptl_labnet::{Access, RealmId, Topology};

use crate::privileged;
use crate::support::{World, at, clean, datagram, pass};

/// A socket that sends packets as they are, which takes privilege that no instance has.
struct Raw(OwnedFd);

impl Raw {
    fn new(world: &World, node: usize) -> Raw {
        let open = || {
            // SAFETY: takes numbers alone; the descriptor is nobody else's.
            #[expect(unsafe_code, reason = "there is no safe way to a raw socket")]
            unsafe {
                let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW);
                assert!(fd >= 0, "{}", std::io::Error::last_os_error());
                OwnedFd::from_raw_fd(fd)
            }
        };
        Raw(world.nodes[node].1.run(open).unwrap())
    }

    fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        let mut octets = [0; 4];
        octets.copy_from_slice(&packet[16..20]);
        // SAFETY: every field of the structure may be zero; it and the packet live until the call is over.
        #[expect(unsafe_code, reason = "there is no safe way to a raw socket")]
        let sent = unsafe {
            let mut to: libc::sockaddr_in = std::mem::zeroed();
            to.sin_family = libc::AF_INET as libc::sa_family_t;
            to.sin_addr.s_addr = u32::from_ne_bytes(octets);
            let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            let (bytes, length) = (packet.as_ptr().cast(), packet.len());
            libc::sendto(self.0.as_raw_fd(), bytes, length, 0, (&raw const to).cast(), size)
        };
        if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[test]
fn packets_with_another_source_end_where_they_start_and_are_counted() {
    privileged!();
    let world = World::of(&[clean(), clean(), clean()]);
    let raw = Raw::new(&world, 0);
    let [(_, _, own), (_, _, second), (_, _, third)] = &world.nodes[..] else { panic!() };
    for forged in [*third, *second, Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(127, 0, 0, 1)] {
        raw.send(&datagram(forged, *second, b"forged")).unwrap();
    }
    let report = world.until("counted", |report| report.engine.spoofed == 4);
    assert_eq!(report.engine.delivered, 0);
    raw.send(&datagram(*own, *second, b"own")).unwrap();
    // And it is answered that nobody listens there.
    world.until("delivered", |report| report.nodes[&1].down[0].delivered == 1 && report.engine.delivered == 2);
}

#[test]
fn nothing_but_nodes_can_be_reached() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    // Something of the machine's own, at an address that it has outside and one that the lab uses too.
    let host = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let namespace = &world.nodes[0].1;
    for addr in ["127.0.0.1", "10.255.0.1", "192.168.0.1", "172.17.0.1", "169.254.169.254", "8.8.8.8"] {
        let to = at(addr.parse().unwrap(), port);
        let refused = namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap_err();
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable, ErrorKind::ConnectionRefused];
        assert!(kinds.contains(&refused.kind()), "{addr}: {refused}");
    }
    host.set_nonblocking(true).unwrap();
    assert_eq!(host.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody came");
    let report = world.report();
    assert_eq!(report.engine.unroutable, 5, "all but the loopback");
    assert_eq!(report.engine.icmp_errors, 5, "and they were told");
}

#[test]
fn nothing_of_the_machine_can_be_reached_by_datagrams_or_over_ipv6() {
    privileged!();
    let mut topology = Topology::new(vec![vec![0]]).unwrap();
    let both = |last: u8| (Ipv4Addr::new(10, 0, 0, last), Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into())));
    let nodes =
        [both(1), both(2)].map(|(v4, v6)| topology.add_node(RealmId::PUBLIC, v4, v6, Access::default()).unwrap());
    let world = World::new(topology, &nodes);
    let (tcp, udp) = listening();
    let port = tcp.local_addr().unwrap().port();
    let namespace = &world.nodes[0].1;
    // The machine's loopbacks, neighbours, and others by both families; and IPv4 in the clothes of IPv6.
    let addrs = [
        "127.0.0.1",
        "10.255.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "8.8.8.8",
        "::1",
        "fd00::99",
        "fe80::1%1",
        "fe80::1%2",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.255.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::a00:1",
    ];
    let own = own_addresses().into_iter().map(|addr| addr.to_string());
    for addr in addrs.into_iter().map(str::to_owned).chain(own) {
        let to: SocketAddr = match addr.contains(':') {
            true => format!("[{addr}]:{port}").parse().unwrap(),
            false => format!("{addr}:{port}").parse().unwrap(),
        };
        let connected = namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok()).unwrap();
        assert!(!connected, "{to} by TCP");
        let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = namespace.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
        let _nowhere = socket.send_to(b"escaped", to);
    }
    for listener in [tcp.set_nonblocking(true), udp.set_nonblocking(true)] {
        listener.unwrap();
    }
    // What was sent has been looked at, since this came later.
    pass(&world.udp(0), &world.udp(1), b"last");
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody came");
    assert_eq!(udp.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing came");
    let engine = world.report().engine;
    assert!(engine.unroutable >= 8, "both families and both protocols: {engine:?}");
}

/// Listens on one port of all addresses of this machine, of both families where it has both.
fn listening() -> (TcpListener, UdpSocket) {
    loop {
        let any = |port| [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), (Ipv4Addr::UNSPECIFIED, port).into()];
        let tcp = TcpListener::bind(&any(0)[..]).unwrap();
        // Another program may have it for datagrams.
        if let Ok(udp) = UdpSocket::bind(&any(tcp.local_addr().unwrap().port())[..]) {
            return (tcp, udp);
        }
    }
}

/// Returns the addresses of this machine, but for its loopback.
fn own_addresses() -> Vec<IpAddr> {
    let output = std::process::Command::new("hostname").arg("--all-ip-addresses").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(|addr| addr.parse().unwrap()).collect()
}

#[test]
fn nobody_outside_reaches_a_node() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let inside = world.udp(0);
    let outside = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Where the machine has a route at all, it leads elsewhere.
    let _elsewhere = outside.send_to(b"x", inside.local_addr().unwrap());
    pass(&world.udp(1), &inside, b"first");
    inside.set_nonblocking(true).unwrap();
    assert_eq!(inside.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn loopback_is_each_nodes_own() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7000);
    let sockets: Vec<UdpSocket> =
        (0..2).map(|i| world.nodes[i].1.run(|| UdpSocket::bind(loopback).unwrap()).unwrap()).collect();
    sockets[0].send_to(b"x", loopback).unwrap();
    sockets[0].recv(&mut [0; 8]).unwrap();
    sockets[1].set_nonblocking(true).unwrap();
    assert_eq!(sockets[1].recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(world.report().engine.received, 0, "it is no packet of the network");
}

#[test]
fn hostile_packets_harm_nobody() {
    privileged!();
    let world = World::of(&[clean(), clean(), clean()]);
    let raw = Raw::new(&world, 0);
    let [(_, _, own), (_, _, second), _] = &world.nodes[..] else { panic!() };
    let good = datagram(*own, *second, &[9; 600]);
    let mut seed = 1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut sent = 0;
    for round in 0..5_000 {
        let mut packet = good.clone();
        match round % 4 {
            // Parts of packets that never become one.
            0 => packet[6] = 0x20 | (random() as u8 & 0x1f),
            1 => packet[7] = random() as u8,
            // Protocols that there are not, and transports that say anything.
            2 => packet[9] = random() as u8,
            _ => (20..28).for_each(|at| packet[at] = random() as u8),
        }
        // A full device is no failure: it is what a flood meets.
        sent += u32::from(raw.send(&packet).is_ok());
    }
    assert!(sent > 1_000, "{sent}");
    // Others do not notice.
    for _ in 0..20 {
        pass(&world.udp(1), &world.udp(2), b"undisturbed");
    }
    let report = world.report();
    assert_eq!(report.engine.spoofed, 0);
    assert!(matches!(world.end(), iptl_labnet_tun::End::Stopped(_)));
}

#[test]
fn flood_of_one_node_leaves_others_their_turn() {
    privileged!();
    let world = World::of(&[clean(), clean(), clean()]);
    let (flooder, victim) = (world.udp(0), world.udp(1).local_addr().unwrap());
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let _full = flooder.send_to(&[0; 1000], victim);
            }
        });
        let (a, b) = (world.udp(1), world.udp(2));
        // The flood may begin after the first of these.
        let mut passed = 0;
        while passed < 50 || (world.report().engine.received < 1_000 && passed < 100_000) {
            pass(&a, &b, b"in between");
            passed += 1;
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let received = world.report().engine.received;
    assert!(received >= 1_000, "{received} packets are no flood");
}
