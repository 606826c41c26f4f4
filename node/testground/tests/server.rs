//! Clients at real sockets.

use std::time::{Duration, Instant};

use iptl_dag::model::Exit;
use iptl_sync::{Reply, SyncOp};
use serde_json::json;

use crate::go::{Client, Heard, key, publish};
use crate::lab::{Lab, NAMES};

#[tokio::test]
async fn instances_meet_at_a_barrier() {
    let lab = Lab::new(3);
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(Client::connect(lab.serve(index)).await);
    }
    let mut numbers = Vec::new();
    for client in &mut clients[..2] {
        numbers.push(client.signal("ready").await);
        client.barrier("ready", 3).await;
    }
    numbers.push(clients[2].signal("ready").await);
    assert_eq!(numbers, [1, 2, 3]);
    for client in &mut clients[..2] {
        let opened = json!({"id": "1", "error": "", "publish": null, "subscribe": "", "signal_entry": null});
        assert_eq!(client.reply().await, opened);
    }
    // Reached before it is asked for, and targets that are met by nobody.
    for target in [3, 1, 0, -5] {
        let id = clients[2].barrier("ready", target).await;
        assert_eq!(clients[2].reply().await["id"], id.as_str(), "{target}");
    }
    for client in clients {
        assert_eq!(client.close().await, Heard::Closed(1000, String::new()));
    }
}

#[tokio::test]
async fn topics_are_replayed_and_then_live_in_one_order() {
    let lab = Lab::new(2);
    let mut publisher = Client::connect(lab.serve(0)).await;
    let mut subscriber = Client::connect(lab.serve(1)).await;
    // The payload comes through as it was written: number, order of keys and all.
    let exact = r#"{"seq":9007199254740993,"b":[1.50,"ü\n"],"a":null}"#;
    assert_eq!(publisher.publish("times", exact).await, 1);
    let id = subscriber.subscribe("times").await;
    let first = subscriber.reply().await;
    assert_eq!((&first["id"], &first["subscribe"]), (&json!(id), &json!(exact)));
    for n in 2..50u64 {
        assert_eq!(publisher.publish("times", &n.to_string()).await, n);
    }
    for n in 2..50u64 {
        assert_eq!(subscriber.reply().await["subscribe"], n.to_string());
    }
}

#[tokio::test]
async fn groups_of_other_kinds_meet_in_the_same_names() {
    let lab = Lab::new(2);
    let mut container = Client::connect(lab.serve(0)).await;
    assert_eq!(container.signal("ready").await, 1);
    assert_eq!(lab.ask(1, SyncOp::Signal { state: "ready".into() }, 1).await, [Reply::Signalled { seq: 2 }]);
    let topic = || "times".to_owned();
    container.publish("times", r#"{"ms":1.5}"#).await;
    lab.publish(1, "times", b"no json".to_vec()).await;
    lab.publish(1, "times", b"\xff\x00".to_vec()).await;
    let messages = lab.ask(1, SyncOp::Subscribe { topic: topic() }, 3).await;
    assert_eq!(messages[0], Reply::Message { position: 1, payload: r#"{"ms":1.5}"#.into() });
    container.subscribe("times").await;
    for expected in [r#"{"ms":1.5}"#, r#""no json""#, r#"{"base64":"/wA="}"#] {
        assert_eq!(container.reply().await["subscribe"], expected);
    }
}

#[tokio::test]
async fn text_and_binary_whole_and_in_fragments_are_read() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    let request = |id: u32| format!(r#"{{"id":"{id}","signal_entry":{{"state":"{}"}}}}"#, key("states", "s"));
    client.binary(request(7).as_bytes()).await;
    assert_eq!(client.reply().await["signal_entry"]["seq"], 1);
    let text = request(8);
    let (head, rest) = text.as_bytes().split_at(9);
    client.frame(1, head).await;
    // Control frames may come between fragments.
    client.ping(b"are you there").await;
    client.frame(0, &rest[..5]).await;
    client.frame(0x80, &rest[5..]).await;
    assert_eq!(client.hear().await, Heard::Pong(b"are you there".to_vec()));
    let reply = client.reply().await;
    assert_eq!((&reply["id"], &reply["signal_entry"]["seq"]), (&json!("8"), &json!(2)));
}

#[tokio::test]
async fn connections_of_one_instance_are_told_apart() {
    let lab = Lab::new(1);
    let address = lab.serve(0);
    let mut first = Client::connect(address).await;
    let mut second = Client::connect(address).await;
    // The same ids in both.
    first.barrier("both", 2).await;
    second.barrier("both", 2).await;
    assert_eq!(second.signal("both").await, 1);
    second.signal_twice_over("both").await;
    assert_eq!(first.reply().await["id"], "0");
}

impl Client {
    /// Signals where the barrier of id zero opens before the answer or after it.
    async fn signal_twice_over(&mut self, state: &str) {
        let id = self.request(&format!("\"signal_entry\":{{\"state\":\"{}\"}}", key("states", state))).await;
        let mut ids = [self.reply().await["id"].clone(), self.reply().await["id"].clone()];
        ids.sort_by_key(|id| id.to_string());
        assert_eq!(ids, [json!("0"), json!(id)]);
    }
}

#[tokio::test]
async fn clients_that_are_gone_leave_nothing_waiting() {
    let lab = Lab::new(1);
    let address = lab.serve(0);
    let mut dropped = Client::connect(address).await;
    dropped.barrier("never", 9).await;
    dropped.subscribe("news").await;
    dropped.signal("here").await;
    drop(dropped);
    // As many connections as may be, one after the other: the places are free again.
    for round in 0..20 {
        let mut client = Client::connect(address).await;
        assert_eq!(client.signal("here").await, 2 + round);
        assert_eq!(client.close().await, Heard::Closed(1000, String::new()));
    }
    lab.finish(0).await;
    // Two calls to wait, two to give that up, 21 signals.
    assert_eq!(lab.calls(), 25);
}

#[tokio::test]
async fn what_was_sent_before_the_end_counts() {
    let lab = Lab::new(2);
    let mut client = Client::connect(lab.serve(0)).await;
    let [run, plan, case] = NAMES;
    let event = r#"{"success_event":{"group":"g"}}"#;
    let key = format!("run:{run}:plan:{plan}:case:{case}:run_events");
    client.request(&format!("\"publish\":{{\"topic\":\"{key}\",\"payload\":{event}}}")).await;
    client.request(&publish("last words", "1")).await;
    drop(client);
    lab.finish(0).await;
    assert_eq!(lab.exit(0, 1), Exit::Reported { code: 1, failure: None });
    let words = lab.ask(1, SyncOp::Subscribe { topic: "last words".into() }, 1).await;
    assert_eq!(words, [Reply::Message { position: 1, payload: "1".into() }]);
    let events = lab.ask(1, SyncOp::Subscribe { topic: iptl_testground::keys::RUN_EVENTS.into() }, 1).await;
    assert_eq!(events, [Reply::Message { position: 1, payload: event.into() }]);
}

#[tokio::test]
async fn a_network_is_signalled_once_it_is_in_force_and_not_before() {
    let lab = Lab::new(2);
    let mut client = Client::connect(lab.serve(0)).await;
    client.barrier("network-initialized", 2).await;
    assert_eq!(client.reply().await["error"], "");
    let config = r#"{"network":"default","enable":true,"callback_state":"slow","default":{"latency":100000000}}"#;
    client.request(&publish("network:g-0", config)).await;
    client.barrier("slow", 1).await;
    let (wish, asked) = lab.wish().await;
    assert_eq!((wish.enabled, wish.shape.latency_ns), (true, 100_000_000));
    // Requests of one connection are answered in their order where the lab has nothing to wait for.
    assert_eq!(client.signal("meanwhile").await, 1);
    asked.in_force();
    let published = client.reply().await;
    assert_eq!((&published["error"], &published["publish"]["seq"]), (&"".into(), &1.into()), "{published}");
    assert_eq!(client.reply().await["error"], "");
    // Everybody can read what was asked for.
    let topic = lab.ask(1, SyncOp::Subscribe { topic: "network:g-0".into() }, 1).await;
    assert_eq!(topic, [Reply::Message { position: 1, payload: config.into() }]);
    assert_eq!(lab.refused(), Vec::<String>::new());
}

#[tokio::test]
async fn a_network_that_cannot_be_had_is_refused_in_words_and_nothing_is_published() {
    let lab = Lab::new(2);
    let mut client = Client::connect(lab.serve(0)).await;
    let config = |rest: &str| publish("network:g-0", &format!(r#"{{"enable":true,"callback_state":"x"{rest}}}"#));
    let refused = client.ask(&config(r#","routing_policy":"allow_all""#)).await;
    assert!(refused["error"].as_str().unwrap().ends_with("asks for: routes out of the lab"), "{refused}");
    assert_eq!(lab.refused(), [refused["error"].as_str().unwrap()]);

    client.request(&config("")).await;
    lab.wish().await.1.refused("not in this lab".to_owned());
    assert_eq!(client.reply().await["error"], "not in this lab");
    // A network that ends answers nobody.
    client.request(&config("")).await;
    drop(lab.wish().await);
    assert_eq!(client.reply().await["error"], "the network of this instance is gone");
    assert_eq!(client.signal("x").await, 1, "nobody else has signalled");
    assert_eq!(client.publish("network:g-1", "7").await, 1, "what another is called is any topic");
    lab.publish(1, "network:g-0", "the first").await;
    let topic = lab.ask(1, SyncOp::Subscribe { topic: "network:g-0".into() }, 1).await;
    assert_eq!(topic, [Reply::Message { position: 1, payload: "the first".into() }]);
}

#[tokio::test]
async fn a_slow_reader_loses_no_message() {
    let lab = Lab::new(2);
    let mut slow = Client::connect(lab.serve(0)).await;
    slow.subscribe("bulk").await;
    assert_eq!(slow.signal("subscribed").await, 1);
    // Several times what may wait for a client and what sockets take.
    let payload = |n: usize| format!("{{\"n\":{n},\"fill\":\"{}\"}}", "x".repeat(20_000));
    for n in 0..1000 {
        lab.publish(1, "bulk", payload(n)).await;
    }
    for n in 0..1000 {
        assert_eq!(slow.reply().await["subscribe"], payload(n), "message {n}");
    }
    assert_eq!(slow.signal("read").await, 1);
    // It was given up and taken up again, rather than kept in memory.
    assert!(lab.calls() > 4, "{} calls", lab.calls());
}

#[tokio::test]
async fn a_fast_writer_waits_and_is_answered_in_full() {
    let lab = Lab::new(1);
    let mut client = Client::connect(lab.serve(0)).await;
    for n in 0..3000u64 {
        client.request(&publish("burst", &n.to_string())).await;
    }
    for n in 0..3000u64 {
        let reply = client.reply().await;
        assert_eq!((&reply["id"], &reply["publish"]["seq"]), (&json!(n.to_string()), &json!(n + 1)));
    }
}

/// Without acknowledgement at once each request takes 40 ms: half of it is held back until the other half has arrived.
#[tokio::test]
async fn a_client_that_writes_in_pieces_is_not_kept_waiting() {
    let lab = Lab::new(1);
    let mut client = Client::connect_as_rust(lab.serve(0)).await;
    let started = Instant::now();
    for n in 1..=100 {
        assert_eq!(client.signal("here").await, n);
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "100 signals took {took:?}");
}

#[tokio::test]
async fn a_server_that_is_started_anew_uses_new_numbers() {
    let lab = Lab::new(1);
    let mut first = Client::connect(lab.serve(0)).await;
    first.barrier("never", 2).await;
    assert_eq!(first.signal("here").await, 1);
    lab.drop_server(0);
    assert_eq!(first.hear().await, Heard::Gone);
    let mut second = Client::connect(lab.serve(0)).await;
    second.barrier("never", 2).await;
    assert_eq!(second.signal("here").await, 2);
}
