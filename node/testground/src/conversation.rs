//! One connection of an instance to the sync service, without its socket.
//!
//! Messages of the client go in ([`Conversation::receive`]) and calls to the lab come out
//! ([`Conversation::poll_call`]); answers of the lab go in ([`Conversation::reply`]) and messages for the client come
//! out ([`Conversation::poll_frame`]). Whoever carries them asks [`Conversation::wants_request`] before it reads on.
//!
//! What an instance asks of its network comes out too ([`Conversation::poll_wish`]), and whoever can give it says so
//! ([`Conversation::settle_wish`]): only then is its publication made, and the state signalled that the program waits for.
//!
//! *Bounds.* A client that asks faster than the lab answers is not read until answers are on their way to it. A client
//! that does not read its messages loses none: a subscription whose messages have nowhere to wait is given up, and
//! taken up again behind the last message that was handed out once the client has read.
//!
//! *Answers.* Each publication, signal and barrier gets one reply and never a second, which the Go SDK would not
//! survive; an error is a reply only where no other end would say as much.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use data_encoding::BASE64;
use iptl_labnet::Wish;
use iptl_runner::{SyncCall, SyncReply};
use serde_json::value::RawValue;

use crate::keys::{Identity, NETWORK_INITIALIZED, Topic};
use crate::network;
use crate::reply::{self, Answer, Dialect, MAX_GO_MESSAGE};
use crate::request::{self, Encoding, RequestError};

/// Largest payload of one publication in bytes: what Wasm instances may publish.
pub const MAX_PAYLOAD: usize = 256 << 10;

/// Requests with one answer that are not answered yet; the client is not read beyond it.
pub const MAX_UNANSWERED: usize = 64;

/// Bytes of publications that are not answered yet; the client is not read beyond it.
pub const MAX_UNANSWERED_BYTES: usize = 128 << 10;

/// Barriers and subscriptions that one connection may have open; with the unanswered requests of all connections that
/// an instance may have they are as many calls as the lab takes from it.
pub const MAX_WAITING: usize = 448;

/// Bytes of messages that wait for the client; its subscriptions pause beyond it.
pub const MAX_QUEUED: usize = 2 << 20;

/// Bytes of waiting messages below which paused subscriptions go on.
const RESUME_AT: usize = MAX_QUEUED / 4;

/// Bits of the number of a call that count within its connection.
const CALL_BITS: u32 = 32;

/// One connection, see the head of this module.
#[derive(Debug)]
pub struct Conversation {
    number: u64,
    next_call: u64,
    identity: Arc<Identity>,
    dialect: Dialect,
    open: BTreeMap<u64, Open>,
    paused: VecDeque<(String, Subscription)>,
    unanswered: usize,
    unanswered_bytes: usize,
    calls: VecDeque<SyncCall>,
    frames: VecDeque<Frame>,
    queued: usize,
    /// Frames that wait and are no messages of a subscription.
    queued_replies: usize,
    events: VecDeque<String>,
    wishes: VecDeque<(u64, Wish)>,
    refusals: VecDeque<String>,
}

/// A message for the client.
#[derive(Debug)]
struct Frame {
    text: String,
    /// Whether it is a message of a subscription.
    message: bool,
}

/// A request that the lab has not answered.
#[derive(Debug)]
struct Open {
    id: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Signal,
    Publication {
        bytes: usize,
        /// State to signal once the publication stands.
        then: Option<String>,
    },
    /// A publication that is made once the network is as it says.
    Wish {
        topic: String,
        payload: Vec<u8>,
        then: String,
    },
    Barrier,
    Subscription(Subscription),
    /// A signal of this server's own: nobody waits for its answer.
    Own,
}

#[derive(Debug)]
struct Subscription {
    topic: String,
    encoding: Option<Encoding>,
    /// Position of the last message that was handed out.
    delivered: u64,
}

/// Why a connection is to be closed, with the status and reason that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// WebSocket status code.
    pub code: u16,
    /// Reason.
    pub reason: String,
}

impl From<RequestError> for Close {
    fn from(error: RequestError) -> Close {
        let code = match error {
            RequestError::NoJson => 1007,
            RequestError::LongId { size: _ } => 1008,
        };
        Close { code, reason: error.to_string() }
    }
}

/// Returns the number of the connection that a call came from.
pub fn connection_of(call: u64) -> u64 {
    call >> CALL_BITS
}

impl Conversation {
    /// Starts the conversation of the connection of this number, which is unique in its instance and under 2^32.
    pub fn new(number: u32, identity: Arc<Identity>, dialect: Dialect) -> Conversation {
        Conversation {
            number: number.into(),
            next_call: 0,
            identity,
            dialect,
            open: BTreeMap::new(),
            paused: VecDeque::new(),
            unanswered: 0,
            unanswered_bytes: 0,
            calls: VecDeque::new(),
            frames: VecDeque::new(),
            queued: 0,
            queued_replies: 0,
            events: VecDeque::new(),
            wishes: VecDeque::new(),
            refusals: VecDeque::new(),
        }
    }

    /// Returns whether the client may be read: what it asks finds room.
    pub fn wants_request(&self) -> bool {
        self.unanswered < MAX_UNANSWERED
            && self.unanswered_bytes < MAX_UNANSWERED_BYTES
            && self.queued_replies < MAX_UNANSWERED + MAX_WAITING
    }

    /// Returns whether the client is owed something that it could not know to be lost: an answer, or messages.
    pub fn owes(&self) -> bool {
        let asked = |open: &Open| !matches!(open.kind, Kind::Own);
        !self.frames.is_empty() || !self.paused.is_empty() || self.open.values().any(asked)
    }

    /// Returns whether the client connects again by itself where its connection ends.
    pub fn comes_again(&self) -> bool {
        self.dialect == Dialect::Lab
    }

    /// Takes a message of the client.
    ///
    /// # Errors
    ///
    /// Fails where the message is no request; the connection is to be closed so.
    pub fn receive(&mut self, message: &[u8]) -> Result<(), Close> {
        let request = request::read(message)?;
        let id = request.id.unwrap_or_default();
        let refused = if request.is_cancel == Some(true) {
            self.cancel(&id);
            Ok(())
        } else if let Some(publish) = request.publish {
            let payload = publish.payload.map_or("null", RawValue::get);
            self.publish(&id, &publish.topic, payload, publish.encoding)
        } else if let Some(subscribe) = request.subscribe {
            self.subscribe(&id, &subscribe.topic, subscribe.encoding)
        } else if let Some(barrier) = request.barrier {
            self.barrier(&id, &barrier.state, barrier.target)
        } else if let Some(signal) = request.signal_entry {
            self.signal(&id, &signal.state)
        } else {
            Err("the request names none of publish, subscribe, barrier and signal_entry".to_owned())
        };
        if let Err(reason) = refused {
            self.say(&id, Answer::Failed(&reason));
        }
        Ok(())
    }

    /// Takes an answer of the lab; one that nobody waits for is dropped.
    pub fn reply(&mut self, reply: SyncReply) {
        let call = reply.target().1;
        match reply {
            SyncReply::Message { position, payload, .. } => self.message(call, position, &payload),
            SyncReply::Signalled { seq, .. } => self.settle(call, Answer::Signalled(seq)),
            SyncReply::Published { position, .. } => self.settle(call, Answer::Published(position)),
            SyncReply::Opened { .. } => self.settle(call, Answer::Opened),
            SyncReply::Failed { reason, .. } => self.settle(call, Answer::Failed(&reason)),
        }
    }

    /// Returns the next call to the lab.
    pub fn poll_call(&mut self) -> Option<SyncCall> {
        self.calls.pop_front()
    }

    /// Returns the next message for the client.
    pub fn poll_frame(&mut self) -> Option<String> {
        let Frame { text, message } = self.frames.pop_front()?;
        self.queued -= text.len();
        self.queued_replies -= usize::from(!message);
        if self.queued < RESUME_AT {
            self.resume();
        }
        Some(text)
    }

    /// Returns the next event that the program published for the run: `{"success_event":{"group":"single"}}`.
    pub fn poll_event(&mut self) -> Option<String> {
        self.events.pop_front()
    }

    /// Returns what the program asks of its network next, with the number by which that is settled.
    pub fn poll_wish(&mut self) -> Option<(u64, Wish)> {
        self.wishes.pop_front()
    }

    /// Returns why the program cannot have a network that it asked for: one for each that is no [`Wish`].
    pub fn poll_refusal(&mut self) -> Option<String> {
        self.refusals.pop_front()
    }

    /// Takes note that what was asked of the network is in force, or why it never will be.
    pub fn settle_wish(&mut self, call: u64, outcome: Result<(), String>) {
        let Some(open) = self.open.get_mut(&call) else { return };
        let Kind::Wish { topic, payload, then } = &mut open.kind else { return };
        match outcome {
            Ok(()) => {
                let (topic, payload) = (std::mem::take(topic), std::mem::take(payload));
                open.kind = Kind::Publication { bytes: payload.len(), then: Some(std::mem::take(then)) };
                self.calls.push_back(SyncCall::Publish { call, topic, payload });
            }
            Err(reason) => self.settle(call, Answer::Failed(&reason)),
        }
    }

    /// Ends the conversation; what is still to be called is asked for once more.
    ///
    /// Publications and signals that the client sent before it went count; what it waited for is given up.
    pub fn close(&mut self) {
        let unsent: Vec<u64> = self.calls.iter().map(SyncCall::call).collect();
        self.calls.retain(|call| match call {
            SyncCall::Barrier { .. } | SyncCall::Subscribe { .. } => false,
            SyncCall::Signal { .. }
            | SyncCall::SignalAndWait { .. }
            | SyncCall::Publish { .. }
            | SyncCall::Cancel { .. } => true,
        });
        for (call, open) in std::mem::take(&mut self.open) {
            match open.kind {
                Kind::Barrier | Kind::Subscription(_) if !unsent.contains(&call) => {
                    self.calls.push_back(SyncCall::Cancel { call });
                }
                Kind::Barrier
                | Kind::Subscription(_)
                | Kind::Signal
                | Kind::Publication { .. }
                | Kind::Wish { .. }
                | Kind::Own => {}
            }
        }
        self.paused.clear();
        self.frames.clear();
        self.queued = 0;
        self.queued_replies = 0;
    }

    // Requests.

    fn publish(&mut self, id: &str, key: &str, payload: &str, encoding: Option<Encoding>) -> Result<(), String> {
        let identity = Arc::clone(&self.identity);
        let topic = identity.topic(key).map_err(|e| e.to_string())?;
        if payload.len() > MAX_PAYLOAD && encoding.is_none() {
            return Err(too_large(payload.len()));
        }
        if !request::is_shallow(payload) {
            return Err(format!("a payload that nests deeper than {}", request::MAX_DEPTH));
        }
        let bytes = match encoding {
            None => payload.as_bytes().to_vec(),
            Some(Encoding::Base64) => decode(payload)?,
        };
        if bytes.len() > MAX_PAYLOAD {
            return Err(too_large(bytes.len()));
        }
        match topic {
            Topic::RunEvents => self.events.push_back(payload.to_owned()),
            Topic::Named(name) if identity.is_network(name) => return self.wish(id, name, bytes),
            Topic::Named(_) => {}
        }
        let kind = Kind::Publication { bytes: bytes.len(), then: None };
        let call = self.ask(id, kind);
        self.calls.push_back(SyncCall::Publish { call, topic: topic.name().to_owned(), payload: bytes });
        Ok(())
    }

    fn wish(&mut self, id: &str, topic: &str, payload: Vec<u8>) -> Result<(), String> {
        match network::read(&payload) {
            Ok((wish, then)) => {
                let call = self.ask(id, Kind::Wish { topic: topic.to_owned(), payload, then });
                self.wishes.push_back((call, wish));
                Ok(())
            }
            Err(reason) => {
                self.refusals.push_back(reason.clone());
                Err(reason)
            }
        }
    }

    fn subscribe(&mut self, id: &str, key: &str, encoding: Option<Encoding>) -> Result<(), String> {
        let identity = Arc::clone(&self.identity);
        let topic = identity.topic(key).map_err(|e| e.to_string())?.name().to_owned();
        self.check_waiting()?;
        self.follow(id, Subscription { topic, encoding, delivered: 0 });
        Ok(())
    }

    fn barrier(&mut self, id: &str, key: &str, target: i64) -> Result<(), String> {
        let identity = Arc::clone(&self.identity);
        let state = identity.state(key).map_err(|e| e.to_string())?.to_owned();
        let target = u64::try_from(target).unwrap_or(0);
        // The network of every instance was in place before any program started.
        if target == 0 || state == NETWORK_INITIALIZED {
            self.say(id, Answer::Opened);
            return Ok(());
        }
        self.check_waiting()?;
        let call = self.ask(id, Kind::Barrier);
        self.calls.push_back(SyncCall::Barrier { call, state, target });
        Ok(())
    }

    fn signal(&mut self, id: &str, key: &str) -> Result<(), String> {
        let identity = Arc::clone(&self.identity);
        let state = identity.state(key).map_err(|e| e.to_string())?.to_owned();
        let call = self.ask(id, Kind::Signal);
        self.calls.push_back(SyncCall::Signal { call, state });
        Ok(())
    }

    /// Gives up a barrier or a subscription. Nothing is answered: whoever cancels waits for nothing.
    fn cancel(&mut self, id: &str) {
        self.paused.retain(|(paused, _)| paused != id);
        let waits = |open: &Open| matches!(open.kind, Kind::Barrier | Kind::Subscription(_)) && open.id == id;
        let given_up: Vec<u64> = self.open.iter().filter(|(_, open)| waits(open)).map(|(call, _)| *call).collect();
        for call in given_up {
            self.open.remove(&call);
            self.calls.push_back(SyncCall::Cancel { call });
        }
    }

    fn check_waiting(&self) -> Result<(), String> {
        if self.open.len() - self.unanswered + self.paused.len() >= MAX_WAITING {
            return Err(format!("{MAX_WAITING} barriers and subscriptions of this connection are open already"));
        }
        Ok(())
    }

    fn follow(&mut self, id: &str, subscription: Subscription) {
        let topic = subscription.topic.clone();
        let call = self.ask(id, Kind::Subscription(subscription));
        self.calls.push_back(SyncCall::Subscribe { call, topic });
    }

    fn ask(&mut self, id: &str, kind: Kind) -> u64 {
        let call = self.number << CALL_BITS | self.next_call;
        self.next_call += 1;
        if let Some(bytes) = kind.counts() {
            self.unanswered += 1;
            self.unanswered_bytes += bytes;
        }
        self.open.insert(call, Open { id: id.to_owned(), kind });
        call
    }

    // Answers.

    fn settle(&mut self, call: u64, answer: Answer<'_>) {
        let Some(Open { id, kind }) = self.open.remove(&call) else { return };
        if let Some(bytes) = kind.counts() {
            self.unanswered -= 1;
            self.unanswered_bytes -= bytes;
        }
        match (&kind, answer) {
            (Kind::Own, _) => return,
            (Kind::Publication { then: Some(state), .. }, Answer::Published(_)) => {
                let state = state.clone();
                let call = self.ask("", Kind::Own);
                self.calls.push_back(SyncCall::Signal { call, state });
            }
            (
                Kind::Signal | Kind::Publication { .. } | Kind::Wish { .. } | Kind::Barrier | Kind::Subscription(_),
                _,
            ) => {}
        }
        self.say(&id, answer);
    }

    fn message(&mut self, call: u64, position: u64, payload: &[u8]) {
        let (queued, dialect) = (self.queued, self.dialect);
        let Some(open) = self.open.get_mut(&call) else { return };
        let Kind::Subscription(subscription) = &mut open.kind else { return };
        if position <= subscription.delivered {
            return;
        }
        if queued >= MAX_QUEUED {
            self.pause(call);
            return;
        }
        let json = reply::payload_as_json(payload, subscription.encoding);
        let frame = reply::write(&open.id, Answer::Message(&json), dialect);
        if dialect == Dialect::Go && frame.len() > MAX_GO_MESSAGE {
            let reason = format!(
                "message {position} of topic {} takes {} bytes, and clients built on the Go SDK read {MAX_GO_MESSAGE}",
                subscription.topic,
                frame.len()
            );
            self.calls.push_back(SyncCall::Cancel { call });
            self.settle(call, Answer::Failed(&reason));
            return;
        }
        subscription.delivered = position;
        self.push(frame, true);
    }

    fn pause(&mut self, call: u64) {
        if let Some(Open { id, kind: Kind::Subscription(subscription) }) = self.open.remove(&call) {
            self.calls.push_back(SyncCall::Cancel { call });
            self.paused.push_back((id, subscription));
        }
    }

    fn resume(&mut self) {
        for (id, subscription) in std::mem::take(&mut self.paused) {
            self.follow(&id, subscription);
        }
    }

    fn say(&mut self, id: &str, answer: Answer<'_>) {
        self.push(reply::write(id, answer, self.dialect), false);
    }

    fn push(&mut self, text: String, message: bool) {
        self.queued += text.len();
        self.queued_replies += usize::from(!message);
        self.frames.push_back(Frame { text, message });
    }
}

impl Kind {
    /// Returns the bytes that the request counts for, where it counts as one with one answer soon.
    fn counts(&self) -> Option<usize> {
        match self {
            Kind::Signal | Kind::Own => Some(0),
            Kind::Publication { bytes, .. } => Some(*bytes),
            Kind::Wish { payload, .. } => Some(payload.len()),
            Kind::Barrier | Kind::Subscription(_) => None,
        }
    }
}

fn decode(payload: &str) -> Result<Vec<u8>, String> {
    let text: String = serde_json::from_str(payload).map_err(|_| "a payload of base64 that is no string".to_owned())?;
    BASE64.decode(text.as_bytes()).map_err(|e| format!("a payload that is no base64: {e}"))
}

fn too_large(size: usize) -> String {
    format!("a message of {size} bytes; {MAX_PAYLOAD} are allowed")
}
