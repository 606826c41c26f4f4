//! Conversations under requests, answers and reading in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iptl_runner::{SyncCall, SyncReply};
use iptl_testground::conversation::Conversation;
use iptl_testground::{Dialect, Journal};
use proptest::prelude::*;
use serde_json::Value;

use crate::go::key;
use crate::lab::{NAMES, identity, instance};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        size: usize,
    },
    Signal,
    Barrier {
        target: i64,
    },
    Subscribe,
    /// Gives up the request that is so many before the last.
    Cancel {
        back: u32,
    },
    Garbage {
        bytes: Vec<u8>,
    },
    /// The lab answers one of its open calls, or says a message.
    Answer {
        at: usize,
        fail: bool,
    },
    Read {
        frames: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![0..100usize, 40_000..60_000usize].prop_map(|size| Step::Publish { size }),
        3 => Just(Step::Signal),
        2 => (-1..3i64).prop_map(|target| Step::Barrier { target }),
        1 => Just(Step::Subscribe),
        1 => (0..5u32).prop_map(|back| Step::Cancel { back }),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Step::Garbage { bytes }),
        6 => (any::<usize>(), proptest::bool::weighted(0.1)).prop_map(|(at, fail)| Step::Answer { at, fail }),
        4 => (0..20usize).prop_map(|frames| Step::Read { frames }),
    ]
}

/// A client, its conversation, and a lab that answers when it is told to.
struct World {
    conversation: Conversation,
    next_id: u32,
    /// Replies by id, for requests that get exactly one.
    owed: BTreeMap<u32, usize>,
    subscriptions: BTreeMap<u32, u64>,
    cancelled: BTreeSet<u32>,
    calls: Vec<SyncCall>,
    numbers: BTreeSet<u64>,
    positions: BTreeMap<u64, u64>,
}

impl World {
    fn new() -> World {
        World {
            conversation: Conversation::new(1, Arc::new(identity(0, NAMES[2])), Dialect::Other),
            next_id: 0,
            owed: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            calls: Vec::new(),
            numbers: BTreeSet::new(),
            positions: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: Step) {
        let id = self.next_id;
        let request = match step {
            Step::Answer { at, fail } => return self.answer(at, fail),
            Step::Read { frames } => return self.read(frames),
            Step::Garbage { bytes } => {
                let _ = self.conversation.receive(&bytes);
                return;
            }
            Step::Cancel { back } => {
                if let Some(cancelled) = id.checked_sub(back + 1) {
                    self.conversation
                        .receive(format!("{{\"id\":\"{cancelled}\",\"is_cancel\":true}}").as_bytes())
                        .unwrap();
                    self.cancelled.insert(cancelled);
                }
                return self.carry();
            }
            _ if !self.conversation.wants_request() => return,
            Step::Publish { size } => {
                self.owed.insert(id, 0);
                format!("\"publish\":{{\"topic\":\"{}\",\"payload\":\"{}\"}}", key("topics", "t"), "x".repeat(size))
            }
            Step::Signal => {
                self.owed.insert(id, 0);
                format!("\"signal_entry\":{{\"state\":\"{}\"}}", key("states", "s"))
            }
            Step::Barrier { target } => {
                self.owed.insert(id, 0);
                format!("\"barrier\":{{\"state\":\"{}\",\"target\":{target}}}", key("states", "s"))
            }
            Step::Subscribe => {
                self.subscriptions.insert(id, 0);
                format!("\"subscribe\":{{\"topic\":\"{}\"}}", key("topics", "t"))
            }
        };
        self.next_id += 1;
        self.conversation.receive(format!("{{\"id\":\"{id}\",{request}}}").as_bytes()).unwrap();
        self.carry();
    }

    fn carry(&mut self) {
        while let Some(call) = self.conversation.poll_call() {
            match call {
                SyncCall::Cancel { call } => self.calls.retain(|open| open.call() != call),
                call => {
                    assert!(self.numbers.insert(call.call()), "the number {} is used twice", call.call());
                    self.calls.push(call);
                }
            }
        }
    }

    fn answer(&mut self, at: usize, fail: bool) {
        if self.calls.is_empty() {
            return;
        }
        let at = at % self.calls.len();
        let (id, call) = (instance(0), self.calls[at].call());
        let reply = match &self.calls[at] {
            _ if fail => SyncReply::Failed { id, call, reason: "no".into() },
            SyncCall::Signal { .. } => SyncReply::Signalled { id, call, seq: 1 },
            SyncCall::Publish { .. } => SyncReply::Published { id, call, position: 1 },
            SyncCall::Barrier { .. } => SyncReply::Opened { id, call, seq: 0 },
            SyncCall::Subscribe { .. } => {
                let position = self.positions.entry(call).or_default();
                *position += 1;
                let payload = format!("[{position},\"{}\"]", "x".repeat(50_000)).into_bytes();
                let reply = SyncReply::Message { id, call, position: *position, payload };
                self.conversation.reply(reply);
                return self.carry();
            }
            other => panic!("{other:?}"),
        };
        self.calls.remove(at);
        self.conversation.reply(reply);
        self.carry();
    }

    fn read(&mut self, frames: usize) {
        for _ in 0..frames {
            let Some(frame) = self.conversation.poll_frame() else { break };
            let reply: Value = serde_json::from_str(&frame).unwrap();
            assert_eq!(reply.as_object().unwrap().len(), 5);
            let Some(id) = reply["id"].as_str().unwrap().parse::<u32>().ok() else { continue };
            if let Some(replies) = self.owed.get_mut(&id) {
                *replies += 1;
                assert_eq!(*replies, 1, "request {id} is answered twice");
            } else if reply["error"] == "" {
                let message: Value = serde_json::from_str(reply["subscribe"].as_str().unwrap()).unwrap();
                let seen = self.subscriptions.get_mut(&id).unwrap();
                *seen += 1;
                assert_eq!(message[0], *seen, "subscription {id} has lost or repeated a message");
            }
        }
        self.carry();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_each_request_is_answered_once_and_no_message_is_lost(
        steps in proptest::collection::vec(step(), 1..250)
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        // The lab answers all that is open, and the client reads.
        loop {
            world.read(usize::MAX);
            let open = world.calls.iter().position(|call| !matches!(call, SyncCall::Subscribe { .. }));
            match open {
                Some(at) => world.answer(at, false),
                None => break,
            }
        }
        prop_assert!(world.conversation.wants_request());
        for (id, replies) in &world.owed {
            prop_assert!(*replies == 1 || world.cancelled.contains(id), "request {} was never answered", id);
        }
        // The end leaves nothing open but what is already known to be over.
        world.conversation.close();
        world.carry();
        prop_assert!(world.calls.is_empty(), "{:?}", world.calls);
    }

    #[test]
    fn lines_of_any_kind_are_read(lines in proptest::collection::vec(any::<String>(), 0..20), bytes in any::<Vec<u8>>()) {
        let mut journal = Journal::new(1 << 20);
        for line in &lines {
            let log = journal.line(0, line);
            prop_assert_eq!(log.as_deref(), Some(line.as_str()));
            journal.published(0, line);
            journal.result(line, 0);
            journal.own_event(line, 0);
        }
        let _ = iptl_testground::request::read(&bytes);
        journal.finish();
        prop_assert!(journal.take_events().is_empty() && journal.take_metrics().is_empty());
    }
}
