//! Topics, validation, late subscribers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use iptl_net::{GossipVerdict, PublishError, SubscribeError, Validate};

use crate::lab::{Node, QUIC, TCP, config, node, pair, within};

const TOPIC: &str = "/iptl/1/test/offers";

fn accept_all() -> Validate {
    Arc::new(|_, _| GossipVerdict::Accept)
}

#[tokio::test]
async fn message_published_right_after_connecting_arrives() {
    for listen in [TCP, QUIC] {
        let (a, b) = (node(config(&[listen])).await, node(config(&[listen])).await);
        let mut messages = b.net.subscribe(TOPIC, accept_all()).await.unwrap();
        a.net.connect(b.net.peer(), &b.net.addrs().await).await.unwrap();
        a.net.publish(TOPIC, b"offer".to_vec()).await.unwrap();
        let message = within("the message", messages.recv()).await.unwrap();
        assert_eq!((&message.source, message.data.as_slice()), (a.net.peer(), &b"offer"[..]));
    }
}

#[tokio::test]
async fn message_waits_for_a_late_subscriber() {
    let (a, b) = pair(TCP).await;
    let net = a.net.clone();
    let publishing = tokio::spawn(async move { net.publish(TOPIC, b"early".to_vec()).await });
    let mut messages = b.net.subscribe(TOPIC, accept_all()).await.unwrap();
    within("the publisher", publishing).await.unwrap().unwrap();
    assert_eq!(within("the message", messages.recv()).await.unwrap().data, b"early");
}

#[tokio::test]
async fn message_without_subscribers_is_told() {
    let (a, _b) = pair(TCP).await;
    let error = within("the answer", a.net.publish(TOPIC, b"nobody".to_vec())).await.unwrap_err();
    assert_eq!(error, PublishError::NoPeers { topic: TOPIC.into() });
    let error = a.net.publish(TOPIC, vec![0; 1 << 15]).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { size: 32_768, .. }), "{error}");
}

#[tokio::test]
async fn topic_is_subscribed_once_and_free_again_after_its_end() {
    let a = node(config(&[TCP])).await;
    let messages = a.net.subscribe(TOPIC, accept_all()).await.unwrap();
    let error = a.net.subscribe(TOPIC, accept_all()).await.unwrap_err();
    assert_eq!(error, SubscribeError::Taken { topic: TOPIC.into() });
    drop(messages);
    a.net.subscribe(TOPIC, accept_all()).await.unwrap();
    a.net.unsubscribe(TOPIC).await;
    a.net.subscribe(TOPIC, accept_all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_deliver_what_validators_accept_and_nothing_else() {
    let mut nodes: Vec<Node> = Vec::new();
    let mut queues = Vec::new();
    let judged = Arc::new(Mutex::new(BTreeMap::<_, usize>::new()));
    for at in 0..5 {
        let judged = judged.clone();
        let validate: Validate = Arc::new(move |source, data| {
            *judged.lock().unwrap().entry((at, source.clone(), data.to_vec())).or_default() += 1;
            match data {
                [b'!', ..] => GossipVerdict::Reject,
                [b'?', ..] => GossipVerdict::Ignore,
                _ => GossipVerdict::Accept,
            }
        });
        let node = node(config(&[TCP])).await;
        queues.push(node.net.subscribe(TOPIC, validate).await.unwrap());
        // A chain: messages reach the far end only by being forwarded.
        if let Some(before) = nodes.last() {
            node.net.connect(before.net.peer(), &before.net.addrs().await).await.unwrap();
        }
        nodes.push(node);
    }
    // Until subscriptions have gone round a probe may stop half-way, so probes are repeated until every node saw one.
    let probes = async {
        for i in 0.. {
            nodes[0].net.publish(TOPIC, format!("probe {i}").into_bytes()).await.unwrap();
            let all = queues.iter_mut().skip(1).map(|queue| async {
                tokio::time::timeout(std::time::Duration::from_millis(200), queue.recv()).await.is_ok()
            });
            if futures::future::join_all(all).await.into_iter().all(|seen| seen) {
                break;
            }
        }
    };
    within("the mesh", probes).await;
    nodes[0].net.publish(TOPIC, b"!bad".to_vec()).await.unwrap();
    nodes[0].net.publish(TOPIC, b"?dull".to_vec()).await.unwrap();
    nodes[0].net.publish(TOPIC, b"same".to_vec()).await.unwrap();
    nodes[4].net.publish(TOPIC, b"same".to_vec()).await.unwrap();
    // The same payload of two signers is two messages; what comes before it on the same path has been judged by then.
    for (i, queue) in queues.iter_mut().enumerate() {
        let mut sources = BTreeSet::new();
        let wanted = if i == 0 || i == 4 { 1 } else { 2 };
        while sources.len() < wanted {
            let message = within("both messages", queue.recv()).await.unwrap();
            if message.data.starts_with(b"probe") {
                continue;
            }
            assert_eq!(message.data, b"same");
            sources.insert(message.source);
        }
    }
    let judged = judged.lock().unwrap();
    assert!(judged.values().all(|times| *times == 1), "{judged:?}");
    assert!(judged.keys().any(|(_, _, data)| data == b"!bad"));
}
