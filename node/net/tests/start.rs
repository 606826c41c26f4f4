//! Starting, listening, connecting.

use iptl_net::{Config, DialError, KadMode, NetEvent, StartError, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{QUIC, TCP, config, node, until, within};

fn port_of(addr: &str) -> String {
    addr.split('/').nth(4).unwrap().to_owned()
}

#[tokio::test]
async fn port_in_use_is_told_for_tcp_and_quic() {
    let first = node(config(&[TCP, QUIC])).await;
    for addr in first.net.addrs().await {
        let taken = addr.rsplit_once("/p2p/").unwrap().0.to_owned();
        let error = start(config(&[&taken])).await.unwrap_err();
        assert!(matches!(&error, StartError::PortInUse { addr } if *addr == taken), "{error}");
    }
}

#[tokio::test]
async fn port_taken_by_another_program_is_told() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("/ip4/127.0.0.1/tcp/{}", tcp.local_addr().unwrap().port());
    let error = start(config(&[&taken])).await.unwrap_err();
    assert!(matches!(&error, StartError::PortInUse { addr } if *addr == taken), "{error}");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = format!("/ip4/127.0.0.1/udp/{}/quic-v1", udp.local_addr().unwrap().port());
    let error = start(config(&[&taken])).await.unwrap_err();
    assert!(matches!(&error, StartError::PortInUse { addr } if *addr == taken), "{error}");
}

#[tokio::test]
async fn port_is_free_again_after_shutdown() {
    let first = node(config(&[TCP, QUIC])).await;
    let addrs = first.net.addrs().await;
    first.net.shutdown().await;
    for addr in addrs {
        let again = addr.rsplit_once("/p2p/").unwrap().0.to_owned();
        node(config(&[&again])).await;
    }
}

#[tokio::test]
async fn bad_addresses_are_named() {
    let error = start(config(&["nonsense"])).await.unwrap_err();
    assert!(matches!(&error, StartError::BadAddr(bad) if bad.addr == "nonsense"), "{error}");
    let error = start(Config { known: vec![TCP.into()], ..config(&[TCP]) }).await.unwrap_err();
    assert!(matches!(&error, StartError::BadAddr(bad) if bad.addr == TCP), "{error}");
    // TEST-NET-2: no machine has it.
    let error = start(config(&["/ip4/198.51.100.1/tcp/0"])).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
}

#[tokio::test]
async fn addresses_name_the_port_and_the_peer() {
    let node = node(config(&[TCP, QUIC])).await;
    let addrs = node.net.addrs().await;
    assert_eq!(addrs.len(), 2, "{addrs:?}");
    for addr in addrs {
        assert_ne!(port_of(&addr), "0");
        assert!(addr.ends_with(&format!("/p2p/{}", node.net.peer())), "{addr}");
    }
}

#[tokio::test]
async fn peer_id_follows_from_the_seed() {
    let config = config(&[TCP]);
    let first = node(config.clone()).await;
    let second = node(config).await;
    assert_eq!(first.net.peer(), second.net.peer());
    assert!(first.net.peer().ed25519().is_some());
}

#[tokio::test]
async fn address_without_peer_tells_who_answers() {
    for listen in [TCP, QUIC] {
        let (a, mut b) = (node(config(&[listen])).await, node(config(&[listen])).await);
        let addr = b.net.addrs().await.remove(0);
        let bare = addr.rsplit_once("/p2p/").unwrap().0;
        assert_eq!(&a.net.connect_addr(bare).await.unwrap(), b.net.peer());
        let (peer, relayed) = b
            .wait("the connection", |event| match event {
                NetEvent::Connected { peer, relayed, .. } => Some((peer.clone(), *relayed)),
                _ => None,
            })
            .await;
        assert_eq!((&peer, relayed), (a.net.peer(), false));
        let peers = b.net.peers().await;
        assert_eq!(peers.len(), 1);
        assert_eq!(&peers[0].peer, a.net.peer());
    }
}

#[tokio::test]
async fn dials_that_cannot_work_say_why() {
    let (a, b, c) = (node(config(&[TCP])).await, node(config(&[TCP])).await, node(config(&[TCP])).await);
    let of_b = b.net.addrs().await.remove(0);
    let bare = of_b.rsplit_once("/p2p/").unwrap().0.to_owned();
    let error = a.net.connect(c.net.peer(), &[bare]).await.unwrap_err();
    assert!(matches!(&error, DialError::WrongPeer { actual, .. } if actual == b.net.peer()), "{error}");
    let error = a.net.connect(a.net.peer(), &[]).await.unwrap_err();
    assert!(matches!(error, DialError::Own), "{error}");
    let error = a.net.connect(c.net.peer(), &["rubbish".into()]).await.unwrap_err();
    assert!(matches!(error, DialError::BadAddr(_)), "{error}");
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = a.net.connect(c.net.peer(), &[format!("/ip4/127.0.0.1/tcp/{}", unused.port())]).await.unwrap_err();
    assert!(matches!(error, DialError::Unreachable { tried: 1, .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn address_that_leads_home_does_not_spoil_the_others() {
    for listen in [TCP, QUIC] {
        let (a, b) = (node(config(&[listen])).await, node(config(&[listen])).await);
        let own = a.net.addrs().await.remove(0).rsplit_once("/p2p/").unwrap().0.to_owned();
        let addrs = [vec![own], b.net.addrs().await].concat();
        a.net.connect(b.net.peer(), &addrs).await.unwrap();
    }
}

#[tokio::test]
async fn loopback_is_dialled_when_nothing_else_answers() {
    let (a, b) = (node(config(&[TCP])).await, node(config(&[TCP])).await);
    // TCP to the broadcast address fails at once.
    let addrs = [b.net.addrs().await, vec!["/ip4/255.255.255.255/tcp/1".into()]].concat();
    a.net.connect(b.net.peer(), &addrs).await.unwrap();
}

#[tokio::test]
async fn known_peer_is_connected_again_after_it_comes_back() {
    let hub_config = config(&[TCP]);
    let hub = node(hub_config.clone()).await;
    let addr = hub.net.addrs().await.remove(0);
    let mut leaf = node(Config { known: vec![addr.clone()], kad: KadMode::Client, ..config(&[]) }).await;
    let connected = |event: &NetEvent| matches!(event, NetEvent::Connected { .. }).then_some(());
    leaf.wait("the first connection", connected).await;
    within("the end of the hub", hub.net.shutdown()).await;
    leaf.wait("the loss", |event| matches!(event, NetEvent::Disconnected { .. }).then_some(())).await;
    let listen = addr.rsplit_once("/p2p/").unwrap().0.to_owned();
    let _hub = node(Config { listen: vec![listen], ..hub_config }).await;
    leaf.wait("the second connection", connected).await;
}

#[tokio::test]
async fn node_ends_with_its_last_handle() {
    let (a, mut b) = crate::lab::pair(TCP).await;
    b.wait("the connection", |event| matches!(event, NetEvent::Connected { .. }).then_some(())).await;
    drop(a.net);
    b.wait("the loss", |event| matches!(event, NetEvent::Disconnected { .. }).then_some(())).await;
}

#[tokio::test]
async fn node_with_mdns_starts() {
    // Multicast does not cross loopback, so that discovery itself needs a real interface.
    let node = node(Config { mdns: true, ..config(&[TCP]) }).await;
    assert_eq!(node.net.addrs().await.len(), 1);
}

/// A node that was killed leaves connections behind that nobody closes. Nodes of one identity that live at the same time are
/// as many connections of one peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_connection_of_a_peer_takes_the_place_of_the_oldest() {
    let server = node(config(&[QUIC])).await;
    let mut calls = server.net.accept("/iptl/test/call/1", 1).await.unwrap();
    let lives = config(&[]);
    let mut before = Vec::new();
    for life in 0..20_u8 {
        let client = node(lives.clone()).await;
        client.net.connect(server.net.peer(), &server.net.addrs().await).await.unwrap();
        let mut call = client.net.open(server.net.peer(), "/iptl/test/call/1").await.unwrap();
        call.write_all(&[life]).await.unwrap();
        call.shutdown().await.unwrap();
        let (from, mut heard) = within("the call", calls.next()).await.unwrap();
        assert_eq!(&from, client.net.peer());
        let mut said = Vec::new();
        within("what is said", heard.read_to_end(&mut said)).await.unwrap();
        assert_eq!(said, [life]);
        before.push(client);
    }
    let connections = until("old connections to go", || async {
        let peers = server.net.peers().await;
        let addrs = peers.iter().find(|info| &info.peer == before[0].net.peer()).map(|info| info.addrs.len());
        addrs.filter(|count| *count <= 8)
    });
    assert_eq!(connections.await, 8);
}
