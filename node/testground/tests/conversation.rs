//! Conversations without sockets.

use std::sync::Arc;

use iptl_runner::{SyncCall, SyncReply};
use iptl_testground::Dialect;
use iptl_testground::conversation::{Conversation, MAX_QUEUED, MAX_UNANSWERED, connection_of};
use serde_json::Value;

use crate::go::{key, publish};
use crate::lab::{NAMES, identity, instance};

fn conversation(dialect: Dialect) -> Conversation {
    Conversation::new(3, Arc::new(identity(0, NAMES[2])), dialect)
}

fn send(conversation: &mut Conversation, id: u32, request: &str) {
    conversation.receive(format!("{{\"id\":\"{id}\",{request}}}\n").as_bytes()).unwrap();
}

fn subscribe(topic: &str) -> String {
    format!("\"subscribe\":{{\"topic\":\"{}\"}}", key("topics", topic))
}

fn calls(conversation: &mut Conversation) -> Vec<SyncCall> {
    std::iter::from_fn(|| conversation.poll_call()).collect()
}

fn replies(conversation: &mut Conversation) -> Vec<Value> {
    std::iter::from_fn(|| conversation.poll_frame()).map(|frame| serde_json::from_str(&frame).unwrap()).collect()
}

fn message(call: u64, position: u64, payload: &[u8]) -> SyncReply {
    SyncReply::Message { id: instance(0), call, position, payload: payload.to_vec() }
}

#[test]
fn calls_carry_the_number_of_their_connection_and_bare_names() {
    let mut conversation = conversation(Dialect::Other);
    send(&mut conversation, 0, &format!("\"signal_entry\":{{\"state\":\"{}\"}}", key("states", "ready")));
    send(&mut conversation, 0, &publish("times", "{\"ms\": 1.50}"));
    let calls = calls(&mut conversation);
    let (first, second) = (3 << 32, (3 << 32) | 1);
    assert_eq!(
        calls,
        [
            SyncCall::Signal { call: first, state: "ready".into() },
            SyncCall::Publish { call: second, topic: "times".into(), payload: b"{\"ms\": 1.50}".to_vec() },
        ]
    );
    assert!(calls.iter().all(|call| connection_of(call.call()) == 3));
}

#[test]
fn an_answer_is_given_once() {
    let mut conversation = conversation(Dialect::Other);
    send(&mut conversation, 5, &publish("times", "1"));
    let call = calls(&mut conversation)[0].call();
    for _ in 0..2 {
        conversation.reply(SyncReply::Published { id: instance(0), call, position: 9 });
        conversation.reply(SyncReply::Failed { id: instance(0), call, reason: "late".into() });
    }
    let replies = replies(&mut conversation);
    assert_eq!((replies.len(), &replies[0]["id"], &replies[0]["publish"]["seq"]), (1, &"5".into(), &9.into()));
}

#[test]
fn bytes_go_through_base64_where_that_is_asked_for() {
    let mut conversation = conversation(Dialect::Other);
    let publish = |payload: &str| {
        let topic = key("topics", "raw");
        format!("\"publish\":{{\"topic\":\"{topic}\",\"payload\":{payload},\"encoding\":\"base64\"}}")
    };
    send(&mut conversation, 0, &publish("\"/wAB\""));
    let SyncCall::Publish { payload, .. } = &calls(&mut conversation)[0] else { panic!("no publication") };
    assert_eq!(payload, b"\xff\x00\x01");
    for bad in ["7", "\"?\"", "null"] {
        send(&mut conversation, 1, &publish(bad));
        assert!(replies(&mut conversation)[0]["error"].as_str().unwrap().contains("base64"), "{bad}");
    }
    let topic = key("topics", "raw");
    send(&mut conversation, 2, &format!("\"subscribe\":{{\"topic\":\"{topic}\",\"encoding\":\"base64\"}}"));
    let call = calls(&mut conversation)[0].call();
    conversation.reply(message(call, 1, b"\xff\x00\x01"));
    assert_eq!(replies(&mut conversation)[0]["subscribe"], "\"/wAB\"");
}

#[test]
fn what_is_given_up_is_cancelled_and_not_answered() {
    let mut conversation = conversation(Dialect::Other);
    send(&mut conversation, 0, &subscribe("news"));
    let barrier = format!("\"barrier\":{{\"state\":\"{}\",\"target\":2}}", key("states", "s"));
    send(&mut conversation, 1, &barrier);
    let asked: Vec<u64> = calls(&mut conversation).iter().map(SyncCall::call).collect();
    send(&mut conversation, 0, "\"is_cancel\":true");
    send(&mut conversation, 1, "\"is_cancel\":true");
    send(&mut conversation, 7, "\"is_cancel\":true");
    let given_up: Vec<SyncCall> = asked.iter().map(|call| SyncCall::Cancel { call: *call }).collect();
    assert_eq!(calls(&mut conversation), given_up);
    // What was on its way meets nobody.
    conversation.reply(message(asked[0], 1, b"1"));
    assert_eq!(replies(&mut conversation), [] as [Value; 0]);
}

#[test]
fn a_client_is_not_read_while_it_has_too_much_unanswered() {
    let mut conversation = conversation(Dialect::Other);
    let mut id = 0;
    while conversation.wants_request() {
        send(&mut conversation, id, &publish("times", "1"));
        id += 1;
    }
    assert_eq!(id as usize, MAX_UNANSWERED);
    let call = calls(&mut conversation)[0].call();
    conversation.reply(SyncReply::Published { id: instance(0), call, position: 1 });
    assert!(conversation.wants_request());
    send(&mut conversation, id, &publish("times", &format!("\"{}\"", "x".repeat(200_000))));
    assert!(!conversation.wants_request());
}

#[test]
fn a_subscription_pauses_where_nobody_reads_and_goes_on_behind_what_was_read() {
    let mut conversation = conversation(Dialect::Other);
    send(&mut conversation, 0, &subscribe("news"));
    let payload = vec![b'1'; 64 << 10];
    let mut call = calls(&mut conversation)[0].call();
    let mut read = 0;
    let mut rounds = 0;
    while read < 200 {
        rounds += 1;
        // The lab hands out the topic from its start.
        let mut calls_made = Vec::new();
        for position in 1..=200 {
            conversation.reply(message(call, position, &payload));
            calls_made.extend(calls(&mut conversation));
            if !calls_made.is_empty() {
                break;
            }
        }
        let held = replies(&mut conversation);
        assert!(held.len() * payload.len() <= MAX_QUEUED + payload.len());
        read += held.len();
        calls_made.extend(calls(&mut conversation));
        match &calls_made[..] {
            [SyncCall::Cancel { call: old }, SyncCall::Subscribe { call: new, topic }] => {
                assert_eq!((*old, topic.as_str()), (call, "news"));
                call = *new;
            }
            [] => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read, 200, "every message once");
    assert!(rounds > 3, "{rounds} rounds");
}

#[test]
fn the_end_gives_up_what_waits_and_keeps_what_was_said() {
    let mut conversation = conversation(Dialect::Other);
    send(&mut conversation, 0, &subscribe("old"));
    let old = calls(&mut conversation)[0].call();
    send(&mut conversation, 1, &subscribe("new"));
    send(&mut conversation, 2, &publish("times", "1"));
    conversation.close();
    let calls = calls(&mut conversation);
    assert!(matches!(&calls[..], [SyncCall::Publish { .. }, SyncCall::Cancel { call }] if *call == old), "{calls:?}");
}

#[test]
fn errors_of_the_lab_reach_the_client() {
    let mut conversation = conversation(Dialect::Rust);
    send(&mut conversation, 0, &publish("times", "1"));
    let call = calls(&mut conversation)[0].call();
    conversation.reply(SyncReply::Failed { id: instance(0), call, reason: "the topics are full".into() });
    assert_eq!(replies(&mut conversation)[0]["error"], "\"the topics are full\"");
}
