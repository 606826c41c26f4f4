use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use iptl_labnet::{Flow, Half, Limits, NetError, Packet, Read, SocketId, Switch, UDP_QUEUE_SIZE, WINDOW_SIZE};

use crate::directory::{directory, id};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn addr(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from((ip(host), port))
}

fn ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

/// A switch of a run with ten instances, of which these (by host number) are here.
fn switch(here: std::ops::RangeInclusive<u32>) -> Switch {
    let mut switch = Switch::new(Arc::new(directory(&[("g", 10)])), Limits::default());
    for host in here {
        switch.add_instance(&id("g", host - 1)).unwrap();
    }
    switch
}

/// Two cells: hosts 1 to 5, and 6 to 10.
fn cells() -> [Switch; 2] {
    [switch(1..=5), switch(6..=10)]
}

/// Carries packets between two cells until none is left.
fn carry(cells: &mut [Switch; 2]) {
    loop {
        let mut moved = false;
        for from in 0..2 {
            while let Some((_, packet)) = cells[from].poll_packet() {
                let bytes = Bytes::from(packet.encode());
                cells[1 - from].handle_packet(Packet::decode(&bytes).unwrap());
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}

fn listen(switch: &mut Switch, host: u8, port: u16, backlog: u32) -> SocketId {
    let listener = switch.tcp_socket(ip(host)).unwrap();
    switch.tcp_bind(listener, any(port)).unwrap();
    switch.tcp_listen(listener, backlog).unwrap();
    listener
}

fn connect(switch: &mut Switch, host: u8, dst: SocketAddr) -> SocketId {
    let client = switch.tcp_socket(ip(host)).unwrap();
    switch.tcp_connect(client, dst).unwrap();
    client
}

/// Host 1 in the first cell connected with host 6 in the second.
fn connected() -> ([Switch; 2], SocketId, SocketId) {
    let mut cells = cells();
    let listener = listen(&mut cells[1], 6, 80, 8);
    let client = connect(&mut cells[0], 1, addr(6, 80));
    carry(&mut cells);
    let (server, peer) = cells[1].tcp_accept(listener).unwrap().unwrap();
    assert_eq!(cells[0].tcp_connected(client), Ok(true));
    assert_eq!(Some(peer), cells[0].local_addr(client).unwrap());
    cells[1].close(listener);
    (cells, client, server)
}

fn read(switch: &mut Switch, id: SocketId) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(Read::Data(bytes)) = switch.tcp_read(id, 10_000) {
        all.extend(bytes);
    }
    all
}

fn ready(switch: &mut Switch) -> Vec<SocketId> {
    std::iter::from_fn(|| switch.poll_ready()).collect()
}

#[test]
fn datagrams_arrive_within_a_cell_over_loopback_and_between_cells() {
    let mut cells = cells();
    for (from, to, to_cell, dst, src_ip) in [
        (1, 2, 0, addr(2, 53), ip(1)),
        (1, 1, 0, SocketAddr::from((Ipv4Addr::LOCALHOST, 53)), Ipv4Addr::LOCALHOST),
        (1, 1, 0, any(53), Ipv4Addr::LOCALHOST),
        (1, 6, 1, addr(6, 53), ip(1)),
    ] {
        let server = cells[to_cell].udp_socket(ip(to)).unwrap();
        cells[to_cell].udp_bind(server, any(53)).unwrap();
        let client = cells[0].udp_socket(ip(from)).unwrap();
        cells[0].udp_send(client, Some(dst), Bytes::from_static(b"ask")).unwrap();
        let port = cells[0].local_addr(client).unwrap().unwrap().port();
        assert!(port >= 49_152);
        carry(&mut cells);
        assert_eq!(ready(&mut cells[to_cell]), [server]);
        let datagram = cells[to_cell].udp_recv(server).unwrap().unwrap();
        assert_eq!((datagram.src, &datagram.payload[..]), (SocketAddr::from((src_ip, port)), &b"ask"[..]));
        cells[to_cell].udp_send(server, Some(datagram.src), Bytes::from_static(b"answer")).unwrap();
        carry(&mut cells);
        assert_eq!(&cells[0].udp_recv(client).unwrap().unwrap().payload[..], b"answer");
        cells[to_cell].close(server);
        cells[0].close(client);
        ready(&mut cells[0]);
        ready(&mut cells[1]);
    }
    assert_eq!(cells[1].stats(ip(6)).received_bytes, 3);
    assert_eq!(cells[1].stats(ip(6)).sent_bytes, 6);
}

#[test]
fn loopback_of_one_instance_is_not_that_of_another() {
    let mut switch = switch(1..=2);
    let server = switch.udp_socket(ip(1)).unwrap();
    switch.udp_bind(server, SocketAddr::from((Ipv4Addr::LOCALHOST, 53))).unwrap();
    let client = switch.udp_socket(ip(2)).unwrap();
    for dst in [SocketAddr::from((Ipv4Addr::LOCALHOST, 53)), addr(1, 53)] {
        switch.udp_send(client, Some(dst), Bytes::from_static(b"x")).unwrap();
        assert_eq!(switch.udp_recv(server), Ok(None));
    }
}

#[test]
fn full_datagram_queues_drop_and_count() {
    let mut cells = cells();
    let server = cells[0].udp_socket(ip(2)).unwrap();
    cells[0].udp_bind(server, any(53)).unwrap();
    let client = cells[0].udp_socket(ip(1)).unwrap();
    for _ in 0..300 {
        cells[0].udp_send(client, Some(addr(2, 53)), vec![0; 1024].into()).unwrap();
    }
    let kept = std::iter::from_fn(|| cells[0].udp_recv(server).unwrap()).count();
    assert_eq!(kept, UDP_QUEUE_SIZE / (1024 + 64));
    assert_eq!(cells[0].udp_dropped(server), Ok(300 - kept as u64));
    assert_eq!(cells[0].stats(ip(2)).dropped_datagrams, 300 - kept as u64);

    let far = Some(addr(6, 53));
    let sent = (0..300).take_while(|_| cells[0].udp_send(client, far, vec![0; 1024].into()).is_ok()).count();
    assert!(sent < 300);
    assert_eq!(cells[0].udp_send(client, far, Bytes::new()), Err(NetError::WouldBlock));
    assert!(!cells[0].is_writable(client));
    ready(&mut cells[0]);
    carry(&mut cells);
    assert_eq!(ready(&mut cells[0]), [client]);
    assert!(cells[0].is_writable(client));
    assert_eq!(cells[1].dropped().unbound, sent as u64);
}

#[test]
fn connected_datagram_socket_hears_only_its_peer() {
    let mut switch = switch(1..=3);
    let server = switch.udp_socket(ip(1)).unwrap();
    switch.udp_bind(server, any(53)).unwrap();
    switch.udp_connect(server, Some(addr(2, 9))).unwrap();
    for host in [2, 3] {
        let client = switch.udp_socket(ip(host)).unwrap();
        switch.udp_bind(client, any(9)).unwrap();
        switch.udp_send(client, Some(addr(1, 53)), vec![host].into()).unwrap();
    }
    assert_eq!(switch.udp_recv(server).unwrap().unwrap().payload[..], [2]);
    assert_eq!(switch.udp_recv(server), Ok(None));
}

#[test]
fn errors_of_addresses_and_limits() {
    let mut switch = switch(1..=2);
    let first = switch.udp_socket(ip(1)).unwrap();
    let second = switch.udp_socket(ip(1)).unwrap();
    switch.udp_bind(first, addr(1, 53)).unwrap();
    assert_eq!(switch.udp_bind(second, any(53)), Err(NetError::AddressInUse { port: 53 }));
    assert_eq!(switch.udp_bind(second, addr(2, 53)), Err(NetError::AddressNotAvailable { addr: ip(2).into() }));
    switch.udp_bind(second, SocketAddr::from((Ipv4Addr::LOCALHOST, 53))).unwrap();
    assert_eq!(switch.udp_bind(second, any(54)), Err(NetError::InvalidState));
    for outside in [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::BROADCAST] {
        let dst = SocketAddr::from((outside, 80));
        let error = Err(NetError::Unreachable { addr: outside.into() });
        assert_eq!(switch.udp_send(first, Some(dst), Bytes::new()), error);
        let client = switch.tcp_socket(ip(1)).unwrap();
        assert_eq!(switch.tcp_connect(client, dst), error);
    }
    let long = vec![0; 65_508].into();
    assert_eq!(switch.udp_send(first, Some(addr(2, 1)), long), Err(NetError::DatagramTooLong { size: 65_508 }));
    assert_eq!(switch.tcp_socket(ip(9)), Err(NetError::NoInstance { addr: ip(9) }));
    let mut last = Ok(first);
    while last.is_ok() {
        last = switch.tcp_socket(ip(2));
    }
    assert_eq!(last, Err(NetError::TooManySockets { limit: 4096 }));
    assert!(switch.udp_socket(ip(1)).is_ok());
}

#[test]
fn ephemeral_ports_run_out_and_come_back() {
    let limits = Limits { sockets_per_instance: 20_000, ..Limits::default() };
    let mut switch = Switch::new(Arc::new(directory(&[("g", 1)])), limits);
    switch.add_instance(&id("g", 0)).unwrap();
    let sockets: Vec<SocketId> = (0..16_384)
        .map(|_| {
            let socket = switch.udp_socket(ip(1)).unwrap();
            switch.udp_bind(socket, ANY).unwrap();
            socket
        })
        .collect();
    let one_more = switch.udp_socket(ip(1)).unwrap();
    assert_eq!(switch.udp_bind(one_more, ANY), Err(NetError::NoPorts));
    switch.close(sockets[77]);
    assert_eq!(switch.udp_bind(one_more, ANY), Ok(()));
    assert_eq!(switch.local_addr(one_more).unwrap().unwrap().port(), 49_152 + 77);
}

#[test]
fn connection_is_refused_where_nobody_listens() {
    let mut cells = cells();
    for dst in [addr(2, 80), addr(6, 80), SocketAddr::from((Ipv4Addr::LOCALHOST, 80))] {
        let client = connect(&mut cells[0], 1, dst);
        carry(&mut cells);
        assert_eq!(ready(&mut cells[0]), [client]);
        assert_eq!(cells[0].tcp_connected(client), Err(NetError::ConnectionRefused));
        cells[0].close(client);
    }
    assert_eq!(cells[0].sockets() + cells[1].sockets(), 0);
}

#[test]
fn a_full_backlog_makes_openers_wait_and_closing_refuses_them() {
    let mut cells = cells();
    let listener = listen(&mut cells[0], 1, 80, 2);
    let near: Vec<_> = (0..3).map(|_| connect(&mut cells[0], 2, addr(1, 80))).collect();
    let far: Vec<_> = (0..3).map(|_| connect(&mut cells[1], 6, addr(1, 80))).collect();
    carry(&mut cells);
    let open = |cells: &[Switch; 2]| {
        near.iter().filter(|c| cells[0].tcp_connected(**c) == Ok(true)).count()
            + far.iter().filter(|c| cells[1].tcp_connected(**c) == Ok(true)).count()
    };
    assert_eq!(open(&cells), 2);
    // One that gives up while it waits takes no place.
    cells[1].close(far[0]);
    carry(&mut cells);
    for _ in 0..2 {
        cells[0].tcp_accept(listener).unwrap().unwrap();
    }
    carry(&mut cells);
    assert_eq!(open(&cells), 4);
    cells[0].close(listener);
    carry(&mut cells);
    assert_eq!(cells[1].tcp_connected(far[2]), Err(NetError::ConnectionRefused));
    assert_eq!(cells[0].tcp_write(near[2], Bytes::from_static(b"x")), Err(NetError::ConnectionReset));
    assert_eq!(cells[1].tcp_write(far[1], Bytes::from_static(b"x")), Err(NetError::ConnectionReset));
    assert_eq!(cells[0].tcp_write(near[0], Bytes::from_static(b"x")), Ok(1));
}

#[test]
fn half_closed_connection_carries_the_other_direction() {
    let (mut cells, client, server) = connected();
    cells[0].tcp_write(client, Bytes::from_static(b"request")).unwrap();
    cells[0].tcp_shutdown(client, Half::Write).unwrap();
    assert_eq!(cells[0].tcp_write(client, Bytes::from_static(b"more")), Err(NetError::Shutdown));
    carry(&mut cells);
    assert_eq!(read(&mut cells[1], server), b"request");
    assert_eq!(cells[1].tcp_read(server, 1), Ok(Read::End));
    cells[1].tcp_write(server, Bytes::from_static(b"response")).unwrap();
    cells[1].close(server);
    carry(&mut cells);
    assert_eq!(read(&mut cells[0], client), b"response");
    assert_eq!(cells[0].tcp_read(client, 1), Ok(Read::End));
    cells[0].close(client);
    carry(&mut cells);
    assert_eq!(cells[0].sockets() + cells[1].sockets(), 0);
    assert_eq!(cells[0].dropped().violations + cells[1].dropped().violations, 0);
}

#[test]
fn what_was_written_before_closing_is_read_and_then_writing_fails() {
    let (mut cells, client, server) = connected();
    cells[1].tcp_write(server, Bytes::from_static(b"unread")).unwrap();
    carry(&mut cells);
    cells[0].tcp_write(client, vec![7; 100_000].into()).unwrap();
    cells[0].close(client);
    carry(&mut cells);
    assert_eq!(cells[1].tcp_write(server, Bytes::from_static(b"x")), Err(NetError::ConnectionReset));
    assert_eq!(read(&mut cells[1], server).len(), 100_000);
    assert_eq!(cells[1].tcp_read(server, 1), Ok(Read::End));
}

#[test]
fn a_full_window_blocks_the_writer_until_the_reader_reads() {
    let (mut far, client, server) = connected();
    let mut near = cells();
    let listener = listen(&mut near[0], 2, 80, 1);
    let near_client = connect(&mut near[0], 1, addr(2, 80));
    let (near_server, _) = near[0].tcp_accept(listener).unwrap().unwrap();
    for (cells, client, server, at) in [(&mut far, client, server, 1), (&mut near, near_client, near_server, 0)] {
        let big = Bytes::from(vec![1; WINDOW_SIZE + 100]);
        assert_eq!(cells[0].tcp_write(client, big.clone()), Ok(WINDOW_SIZE));
        assert_eq!(cells[0].tcp_write(client, big.clone()), Ok(0));
        carry(cells);
        ready(&mut cells[0]);
        assert!(!cells[0].is_writable(client));
        for _ in 0..8 {
            assert!(matches!(cells[at].tcp_read(server, 8192), Ok(Read::Data(_))));
        }
        carry(cells);
        assert!(ready(&mut cells[0]).contains(&client));
        assert_eq!(cells[0].tcp_room(client), Ok(65_536));
    }
}

#[test]
fn one_byte_writes_cost_no_more_than_their_bytes() {
    let (mut cells, client, server) = connected();
    for n in 0..WINDOW_SIZE {
        assert_eq!(cells[0].tcp_write(client, vec![n as u8].into()), Ok(1));
    }
    let mut packets = 0;
    while let Some((_, packet)) = cells[0].poll_packet() {
        cells[1].handle_packet(packet);
        packets += 1;
    }
    assert_eq!(packets, WINDOW_SIZE / (64 << 10));
    assert!(read(&mut cells[1], server).iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

#[test]
fn an_instance_that_ends_resets_its_connections_and_is_refused_afterwards() {
    let (mut cells, client, server) = connected();
    cells[1].tcp_write(server, Bytes::from_static(b"last words")).unwrap();
    carry(&mut cells);
    listen(&mut cells[1], 6, 80, 1);
    cells[1].remove_instance(ip(6));
    carry(&mut cells);
    assert_eq!(read(&mut cells[0], client), b"last words");
    assert_eq!(cells[0].tcp_read(client, 1), Err(NetError::ConnectionReset));
    assert_eq!(cells[1].sockets(), 0);
    let again = connect(&mut cells[0], 1, addr(6, 80));
    carry(&mut cells);
    assert_eq!(cells[0].tcp_connected(again), Err(NetError::ConnectionRefused));
    assert_eq!(cells[1].tcp_socket(ip(6)), Err(NetError::NoInstance { addr: ip(6) }));
    assert_eq!(cells[1].stats(ip(6)).sent_bytes, 10);
}

#[test]
fn a_lost_lablet_resets_connections_with_its_instances() {
    let (mut cells, client, _) = connected();
    let opening = connect(&mut cells[0], 2, addr(7, 80));
    let other = connect(&mut cells[0], 2, addr(3, 80));
    ready(&mut cells[0]);
    cells[0].lost_peer((6..=10).map(ip));
    assert_eq!(ready(&mut cells[0]), [client, opening]);
    assert_eq!(cells[0].tcp_read(client, 1), Err(NetError::ConnectionReset));
    assert_eq!(cells[0].tcp_connected(opening), Err(NetError::ConnectionReset));
    assert_eq!(cells[0].tcp_connected(other), Err(NetError::ConnectionRefused));
    let again = cells[0].tcp_socket(ip(1)).unwrap();
    assert_eq!(cells[0].tcp_connect(again, addr(6, 80)), Err(NetError::Unreachable { addr: ip(6).into() }));
    cells[0].found_peer([ip(6)]);
    assert_eq!(cells[0].tcp_connect(again, addr(6, 80)), Ok(()));
}

#[test]
fn hostile_packets_end_at_most_their_own_connection() {
    let dst = addr(1, 80);
    let flow = move |host, port, serial| Flow { src: addr(host, port), dst, serial };
    let bytes = |n| Bytes::from(vec![0; n]);
    type Step = Box<dyn Fn() -> Packet>;
    let cases: Vec<(&str, Step, bool)> = vec![
        (
            "data beyond the window",
            Box::new(move || Packet::TcpData { flow: flow(6, 40_000, 5), payload: bytes(64 << 10) }),
            true,
        ),
        ("credit beyond the window", Box::new(move || Packet::TcpWindow { flow: flow(6, 40_000, 5), credit: 1 }), true),
        ("no credit", Box::new(move || Packet::TcpWindow { flow: flow(6, 40_000, 5), credit: 0 }), true),
        ("a wrong serial", Box::new(move || Packet::TcpReset { flow: flow(6, 40_000, 6) }), false),
        ("a wrong port", Box::new(move || Packet::TcpReset { flow: flow(6, 40_001, 5) }), false),
        ("data of nobody", Box::new(move || Packet::TcpData { flow: flow(7, 40_000, 5), payload: bytes(1) }), false),
        ("an answer to no question", Box::new(move || Packet::TcpAccept { flow: flow(6, 40_000, 5) }), false),
        ("a refusal of an open connection", Box::new(move || Packet::TcpRefuse { flow: flow(6, 40_000, 5) }), false),
        ("opened twice", Box::new(move || Packet::TcpOpen { flow: flow(6, 40_000, 5) }), false),
        (
            "from an instance of this cell",
            Box::new(move || Packet::TcpReset { flow: Flow { src: addr(2, 40_000), dst, serial: 5 } }),
            false,
        ),
        (
            "from nowhere",
            Box::new(move || Packet::TcpReset { flow: Flow { src: addr(77, 40_000), dst, serial: 5 } }),
            false,
        ),
        (
            "for elsewhere",
            Box::new(move || Packet::TcpReset { flow: Flow { src: addr(6, 40_000), dst: addr(8, 80), serial: 5 } }),
            false,
        ),
        (
            "over loopback",
            Box::new(move || Packet::Udp {
                src: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                dst,
                payload: Bytes::new(),
            }),
            false,
        ),
    ];
    for (what, packet, ends) in cases {
        let mut switch = switch(1..=5);
        let listener = listen(&mut switch, 1, 80, 8);
        switch.handle_packet(Packet::TcpOpen { flow: flow(6, 40_000, 5) });
        let (server, _) = switch.tcp_accept(listener).unwrap().unwrap();
        while switch.poll_packet().is_some() {}
        for _ in 0..5 {
            switch.handle_packet(packet());
        }
        let dropped = switch.dropped();
        assert!(dropped.misrouted + dropped.spoofed + dropped.unknown + dropped.violations > 0, "{what}");
        let ended = switch.tcp_write(server, Bytes::from_static(b"x")) == Err(NetError::ConnectionReset);
        assert_eq!(ended, ends, "{what}");
        switch.close(server);
        switch.close(listener);
        assert_eq!(switch.sockets(), 0, "{what}");
    }
}

#[test]
fn a_port_used_again_is_not_confused_by_late_packets() {
    let mut cells = cells();
    let listener = listen(&mut cells[1], 6, 80, 8);
    let open = |cells: &mut [Switch; 2]| {
        let client = cells[0].tcp_socket(ip(1)).unwrap();
        cells[0].tcp_bind(client, any(4000)).unwrap();
        cells[0].tcp_connect(client, addr(6, 80)).unwrap();
        client
    };
    let first = open(&mut cells);
    carry(&mut cells);
    let (old, _) = cells[1].tcp_accept(listener).unwrap().unwrap();
    cells[1].tcp_write(old, Bytes::from_static(b"late")).unwrap();
    cells[0].close(first);
    let second = open(&mut cells);
    carry(&mut cells);
    let (new, _) = cells[1].tcp_accept(listener).unwrap().unwrap();
    cells[1].tcp_write(new, Bytes::from_static(b"new")).unwrap();
    carry(&mut cells);
    assert_eq!(read(&mut cells[0], second), b"new");
    assert_eq!(cells[1].tcp_write(old, Bytes::from_static(b"x")), Err(NetError::ConnectionReset));
}
