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

/// Serves one byte per stream: whether the connection it came on is the only one, told by the serving side's peers.
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
    let mut open = node(config(&[listen])).await;
    open.net.connect(hidden.net.peer(), &[external]).await.unwrap();
    let relayed = open
        .wait("the relayed connection", |event| match event {
            NetEvent::Connected { peer, relayed, .. } if peer == hidden.net.peer() => Some(*relayed),
            _ => None,
        })
        .await;
    assert!(relayed);
    echo(&open.net, &hidden.net, &vec![1; 1 << 20]).await;

    // The hidden node dials out; from then on new streams take the direct connection, which shows when the relay ends.
    hidden.net.disconnect(open.net.peer()).await;
    open.wait("the end", |event| {
        matches!(event, NetEvent::Disconnected { peer } if peer == hidden.net.peer()).then_some(())
    })
    .await;
    hidden.net.connect(open.net.peer(), &open.net.addrs().await).await.unwrap();
    until("the direct connection", || async {
        let peers = open.net.peers().await;
        peers.iter().any(|peer| &peer.peer == hidden.net.peer() && !peer.relayed).then_some(())
    })
    .await;
    relay.net.shutdown().await;
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
