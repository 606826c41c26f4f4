//! A node that nobody can dial, reached through a relay, and directly once that is possible.

use iptl_net::{Config, KadMode, Net, NetEvent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Node, QUIC, TCP, config, node, until, within};

const ECHO: &str = "/iptl/test/echo/1";

async fn relay(listen: &str) -> (Node, String) {
    let relay = node(Config { relay_server: true, kad: KadMode::Server, ..config(&[listen]) }).await;
    let circuit = format!("{}/p2p-circuit", relay.net.addrs().await[0]);
    (relay, circuit)
}

/// Echoes each stream once it is complete.
async fn serve(net: &Net) {
    let mut incoming = net.accept(ECHO, 16).await.unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            tokio::spawn(async move {
                let mut message = Vec::new();
                stream.read_to_end(&mut message).await.unwrap();
                stream.write_all(&message).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
}

async fn echo(net: &Net, to: &Net, message: &[u8]) {
    let mut stream = net.open(to.peer(), ECHO).await.unwrap();
    stream.write_all(message).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the echo", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, message);
}

async fn check_relayed_then_direct(listen: &str) {
    let (relay, circuit) = relay(listen).await;
    // No listen address of its own: only the relay reaches it.
    let mut hidden = node(Config { listen: vec![circuit.clone()], ..config(&[]) }).await;
    let external = hidden
        .wait("the reservation", |event| match event {
            NetEvent::External { addr } => Some(addr.clone()),
            _ => None,
        })
        .await;
    assert!(external.contains("/p2p-circuit/p2p/"), "{external}");
    // A reservation confirms an address, and must not make the hidden node a server of the DHT.
    assert!(!hidden.net.is_kad_server().await);
    serve(&hidden.net).await;
    // A client of the DHT, or the hidden node would find it there and dial it.
    let mut open = node(Config { kad: KadMode::Client, ..config(&[listen]) }).await;
    open.net.connect(hidden.net.peer(), &[external]).await.unwrap();
    let relayed = open
        .wait("the relayed connection", |event| match event {
            NetEvent::Connected { peer, relayed, .. } if peer == hidden.net.peer() => Some(*relayed),
            _ => None,
        })
        .await;
    assert!(relayed);
    echo(&open.net, &hidden.net, &vec![1; 1 << 20]).await;

    // The hidden node dials out as well: both connections are there now, and new streams of either side take the direct
    // one, which shows when the relay ends.
    hidden.net.connect(open.net.peer(), &open.net.addrs().await).await.unwrap();
    let direct = |node: &Node, other: &Node| {
        let (net, other) = (node.net.clone(), other.net.peer().clone());
        async move {
            let peers = net.peers().await;
            peers.into_iter().find(|peer| peer.peer == other && !peer.relayed)
        }
    };
    for (node, other) in [(&open, &hidden), (&hidden, &open)] {
        let peer = until("the direct connection", || direct(node, other)).await;
        assert!(peer.addrs.len() >= 2, "{:?}", peer.addrs);
    }
    let mut stream = open.net.open(hidden.net.peer(), ECHO).await.unwrap();
    stream.write_all(b"before the relay ends").await.unwrap();
    relay.net.shutdown().await;
    stream.write_all(b" and after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the echo", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"before the relay ends and after");
    echo(&open.net, &hidden.net, b"direct").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_node_is_reached_over_tcp_relay_and_then_directly() {
    check_relayed_then_direct(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_node_is_reached_over_quic_relay_and_then_directly() {
    check_relayed_then_direct(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_record_leads_through_the_relay() {
    let (relay, circuit) = relay(TCP).await;
    let known = relay.net.addrs().await;
    let hidden = node(Config { listen: vec![circuit], known: known.clone(), ..config(&[]) }).await;
    serve(&hidden.net).await;
    let seeker = node(Config { known, ..config(&[TCP]) }).await;
    until("the record", || async { seeker.net.connect(hidden.net.peer(), &[]).await.ok() }).await;
    echo(&seeker.net, &hidden.net, b"found").await;
}

#[tokio::test]
async fn reservation_can_be_asked_for_later() {
    let (_relay, circuit) = relay(QUIC).await;
    let hidden = node(config(&[])).await;
    let addrs = within("the reservation", hidden.net.listen(&circuit)).await.unwrap();
    assert!(addrs[0].contains("/p2p-circuit/p2p/"), "{addrs:?}");
    let stranger = node(config(&[QUIC])).await;
    let no_relay = format!("{}/p2p-circuit", stranger.net.addrs().await[0]);
    within("the refusal", hidden.net.listen(&no_relay)).await.unwrap_err();
}

#[tokio::test]
async fn reservation_is_made_again_after_the_relay_came_back() {
    let relay_config = Config { relay_server: true, kad: KadMode::Server, ..config(&[TCP]) };
    let relay = node(relay_config.clone()).await;
    let addr = relay.net.addrs().await.remove(0);
    let mut hidden = node(Config { listen: vec![format!("{addr}/p2p-circuit")], ..config(&[]) }).await;
    let reserved = |event: &NetEvent| matches!(event, NetEvent::External { .. }).then_some(());
    hidden.wait("the reservation", reserved).await;
    relay.net.shutdown().await;
    let listen = addr.rsplit_once("/p2p/").unwrap().0.to_owned();
    let _relay = node(Config { listen: vec![listen], ..relay_config }).await;
    hidden.wait("the second reservation", reserved).await;
}
