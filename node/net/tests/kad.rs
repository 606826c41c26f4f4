//! Provider records, peer records, connecting by peer ID alone.

use std::time::Duration;

use iptl_net::{Config, KadMode, Net};

use crate::lab::{Node, QUIC, TCP, config, node, until};

const LOOKUP: Duration = Duration::from_secs(10);

/// Waits until the DHT has taken `net` in: another node can look it up.
async fn findable(by: &Net, net: &Net) -> Vec<String> {
    until("a peer record", || async {
        let addrs = by.find_peer(net.peer(), LOOKUP).await;
        (!addrs.is_empty()).then_some(addrs)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_is_found_among_ten_nodes() {
    let hub = node(config(&[TCP])).await;
    let known = hub.net.addrs().await;
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..9 {
        nodes.push(node(Config { known: known.clone(), ..config(&[TCP]) }).await);
    }
    for leaf in &nodes {
        findable(&hub.net, &leaf.net).await;
    }
    let key = [&[0x1e, 0x20][..], &[42; 32]].concat();
    nodes[3].net.provide(&key).await.unwrap();
    nodes[6].net.provide(&key).await.unwrap();
    for seeker in [&nodes[0], &nodes[8], &hub] {
        let found = until("both providers", || async {
            let found = seeker.net.providers(&key, LOOKUP).await;
            (found.len() == 2).then_some(found)
        })
        .await;
        for provider in [&nodes[3], &nodes[6]] {
            assert!(found.contains(provider.net.peer()));
            // Its address came with the record.
            seeker.net.connect(provider.net.peer(), &[]).await.unwrap();
        }
    }
    // A provider does not find itself.
    assert!(!nodes[3].net.providers(&key, LOOKUP).await.contains(nodes[3].net.peer()));
    assert_eq!(hub.net.providers(&[0x1e, 0x01, 0x00], LOOKUP).await, Vec::new());
}

#[tokio::test]
async fn key_provided_before_the_first_connection_is_found_after_it() {
    let (a, b) = (node(config(&[QUIC])).await, node(config(&[QUIC])).await);
    let key = [&[0x1e, 0x20][..], &[43; 32]].concat();
    a.net.provide(&key).await.unwrap();
    a.net.connect(b.net.peer(), &b.net.addrs().await).await.unwrap();
    until("the provider", || async { b.net.providers(&key, LOOKUP).await.contains(a.net.peer()).then_some(()) }).await;
}

#[tokio::test]
async fn peer_is_connected_by_its_id_through_a_third_node() {
    let hub = node(config(&[TCP])).await;
    let known = hub.net.addrs().await;
    // A client does not serve the DHT, so that only its own record can tell where it is.
    let a = node(Config { known: known.clone(), kad: KadMode::Client, ..config(&[QUIC]) }).await;
    let b = node(Config { known, kad: KadMode::Client, ..config(&[QUIC]) }).await;
    let addrs = findable(&a.net, &b.net).await;
    assert_eq!(addrs, b.net.addrs().await);
    a.net.connect(b.net.peer(), &[]).await.unwrap();
    assert!(a.net.peers().await.iter().any(|peer| &peer.peer == b.net.peer() && !peer.relayed));
    assert!(!a.net.is_kad_server().await);
    assert!(hub.net.is_kad_server().await);
}

#[tokio::test]
async fn agent_is_told_to_peers() {
    let (a, b) = (node(Config { agent: "iptl/9 test".into(), ..config(&[TCP]) }).await, node(config(&[TCP])).await);
    b.net.connect(a.net.peer(), &a.net.addrs().await).await.unwrap();
    let agent = until("the agent", || async { b.net.peers().await.first().and_then(|peer| peer.agent.clone()) }).await;
    assert_eq!(agent, "iptl/9 test");
}

#[tokio::test]
async fn node_serves_the_dht_only_where_others_can_reach_it() {
    for (listen, private_addrs_ok, kad, serves) in [
        (vec![TCP], true, KadMode::Auto, true),
        (vec![TCP], false, KadMode::Auto, false),
        (vec![TCP], false, KadMode::Server, true),
        (vec![TCP], true, KadMode::Client, false),
        (vec![], true, KadMode::Auto, false),
    ] {
        let node = node(Config { private_addrs_ok, kad, ..config(&listen) }).await;
        assert_eq!(node.net.is_kad_server().await, serves, "{listen:?} {private_addrs_ok} {kad:?}");
    }
}
