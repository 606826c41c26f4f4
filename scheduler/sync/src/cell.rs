//! The lablet's end: calls of a cell's instances summed up.

mod memory;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use iptl_dag::model::InstanceId;
use iptl_wire::session::{
    Absent, BarrierAsk, Publication, Restore, SignalNumbers, SyncDown, SyncUp, TopicMessage, Unreachable,
};

pub use memory::Record;

use crate::{
    BATCH_SIZE, FLOW_WINDOW, ITEM_OVERHEAD, MAX_CALLS_PER_INSTANCE, MAX_KEPT_SIZE, MAX_NAME_SIZE, MAX_NAMES_PER_CELL,
    MAX_NAMES_PER_INSTANCE, MAX_PAYLOAD_SIZE, MAX_UNRECORDED_SIZE, Reply, SyncError, SyncOp,
};

/// Messages to the orchestrator that it has not answered: further calls are summed up until it has. One would add a
/// round trip to a call that just missed it; many would make ten thousand signals as many messages.
const UPS_UNDER_WAY: u64 = 4;

/// The same where all that is to be said are signals that others of the cell will follow: a crowd that gathers at a
/// barrier arrives one by one, and nobody waits for less than the last.
const UPS_WHILE_GATHERING: u64 = 1;

/// Messages of the orchestrator after which the cell says that it has them, where it has nothing else to say.
const DOWNS_UNTOLD: u64 = 64;

/// Instances that are named where a barrier does not open.
const MAX_NAMED_MISSING: usize = 20;

/// Longest word on why a barrier fails, in bytes.
const MAX_WHY_SIZE: usize = 4096;

/// An instance of the cell, by its place in the cell's list, and a call of it.
type Caller = (u32, u64);

/// Sync of one cell's instances.
///
/// After [`call`](CellSync::call), [`handle`](CellSync::handle) and the session's coming up, ask
/// [`poll_up`](CellSync::poll_up) and [`poll_reply`](CellSync::poll_reply) until they have nothing. Many calls before
/// one `poll_up` cost one message.
#[derive(Debug)]
pub struct CellSync {
    instances: Vec<Instance>,
    by_id: BTreeMap<InstanceId, u32>,
    /// Instances that have not ended, and those of them that wait at a barrier and for nothing else.
    alive: usize,
    waiting: usize,
    /// The lab stops the cell.
    is_stopped: bool,
    names: usize,
    states: BTreeMap<String, State>,
    topics: BTreeMap<String, Topic>,
    /// Everything that the cell published: kept, so that it can be contributed again. Number one is at index zero.
    published: Vec<Own>,
    published_size: usize,
    replies: VecDeque<(Caller, Reply)>,
    /// Subscriptions that have messages to give out.
    feed: VecDeque<Caller>,
    link: Link,
    dirty: Dirty,
    /// What is to be remembered and was not asked for yet; none where nothing is.
    records: Option<VecDeque<Record>>,
}

#[derive(Debug)]
struct Instance {
    id: InstanceId,
    alive: bool,
    calls: BTreeMap<u64, Call>,
    /// Calls that wait at a barrier, and those that the orchestrator will answer without anybody's doing.
    waits: usize,
    owed: usize,
    names: usize,
    unrecorded: usize,
}

#[derive(Debug)]
enum Call {
    Signal,
    Barrier {
        state: String,
        target: u64,
    },
    /// Both: answered when its signal has a number, zero until then, and the barrier is open.
    SignalAndWait {
        state: String,
        target: u64,
        seq: u64,
        open: bool,
    },
    Publish {
        size: usize,
    },
    Subscribe {
        topic: String,
    },
}

#[derive(Debug, Default)]
struct State {
    /// Signals of this cell.
    given: u64,
    /// How many of them have their number, from the first.
    numbered: u64,
    numbers: Vec<SignalNumbers>,
    /// Signals without a number, oldest first; those of instances that have ended included.
    unanswered: VecDeque<Caller>,
    signalled: BTreeSet<u32>,
    /// Signals over all cells, as far as known.
    total: u64,
    waiting: BTreeMap<u64, BTreeSet<Caller>>,
}

#[derive(Debug, Default)]
struct Topic {
    log: Vec<(u64, Bytes)>,
    /// Position of the last message in `log`.
    received: u64,
    /// Subscriptions by caller: index of the next message, and whether they stand in the feed.
    subscribers: BTreeMap<Caller, (usize, bool)>,
}

/// A publication of this cell.
#[derive(Debug)]
struct Own {
    topic: String,
    payload: Bytes,
    position: u64,
    caller: Caller,
    refused: bool,
}

/// The session with the orchestrator.
#[derive(Debug, Default)]
struct Link {
    up: bool,
    session: u64,
    /// Nothing has been said in this session.
    fresh: bool,
    /// Last message said, and the last of them that was heard.
    said: u64,
    said_heard: u64,
    /// Last message heard, and the last of them that the orchestrator was told of.
    heard: u64,
    heard_told: u64,
    /// Bytes of messages received that the orchestrator does not know of.
    untold: u64,
    /// Publications said in this session or recorded before it.
    published: usize,
    /// The orchestrator has lost what the cell contributed: numbers that it has to be told again.
    restore: Option<VecDeque<SignalNumbers>>,
    /// The orchestrator wants to know who is missing at a barrier, and so when the cell comes to rest.
    watched: bool,
    /// What was said last of the cell's rest, and holds as far as the orchestrator knows.
    rest: Option<u64>,
}

/// What has to be said.
#[derive(Debug, Default)]
struct Dirty {
    states: BTreeSet<String>,
    asks: BTreeSet<BarrierAsk>,
    topics: BTreeSet<String>,
    inquired: BTreeSet<String>,
}

impl CellSync {
    /// Makes the sync of a cell with these instances. It says nothing before [`session_up`](CellSync::session_up).
    pub fn new(instances: impl IntoIterator<Item = InstanceId>) -> CellSync {
        let mut cell = CellSync {
            instances: Vec::new(),
            by_id: BTreeMap::new(),
            alive: 0,
            waiting: 0,
            is_stopped: false,
            names: 0,
            states: BTreeMap::new(),
            topics: BTreeMap::new(),
            published: Vec::new(),
            published_size: 0,
            replies: VecDeque::new(),
            feed: VecDeque::new(),
            link: Link::default(),
            dirty: Dirty::default(),
            records: None,
        };
        for id in instances {
            cell.add_instance(id);
        }
        cell
    }

    /// Adds an instance, or a further attempt of one that has ended; its calls are counted from nothing again.
    pub fn add_instance(&mut self, id: InstanceId) {
        self.end_instance(&id);
        let at = u32::try_from(self.instances.len()).expect("a cell has fewer instances than lab addresses");
        self.by_id.insert(id.clone(), at);
        self.instances.push(Instance::new(id));
        self.alive += 1;
    }

    /// Drops what an instance that ended waits for. What it contributed stays.
    pub fn end_instance(&mut self, id: &InstanceId) {
        let Some(at) = self.by_id.get(id).copied() else { return };
        self.alive -= usize::from(self.instances[at as usize].alive);
        let calls = self.change(at, Instance::end);
        for (call, kind) in calls {
            self.forget((at, call), kind);
        }
    }

    /// The lab stops the cell under its instances: only the orchestrator knows which of them begin anew elsewhere. To be
    /// called before their ends are told. From now on the cell does not call itself at rest, so that nobody takes them for
    /// gone before their receipts, or the loss of the cell, have told more.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Takes a call of an instance; `call` is a number that the instance has not used before.
    ///
    /// Calls of instances that are not in the cell, or have ended, are ignored.
    pub fn call(&mut self, instance: &InstanceId, call: u64, op: SyncOp) {
        let Some(at) = self.by_id.get(instance).copied() else { return };
        if !self.instances[at as usize].alive {
            return;
        }
        let caller = (at, call);
        if let Err(error) = self.take(caller, op) {
            self.replies.push_back((caller, Reply::Failed(error)));
        }
    }

    /// A session with the orchestrator is up, the first or another: says all that may not have been heard.
    pub fn session_up(&mut self) {
        // What was said and not recorded is said again; positions that were lost come again by themselves.
        let recorded = self.published.iter().rposition(|own| own.position > 0 || own.refused);
        self.link = Link {
            up: true,
            session: self.link.session + 1,
            fresh: true,
            published: recorded.map_or(0, |last| last + 1),
            ..Link::default()
        };
        let session = self.link.session;
        self.note(|| Record::Session(session));
        for (name, state) in &self.states {
            if state.given > 0 {
                self.dirty.states.insert(name.clone());
            }
            for target in state.waiting.keys() {
                self.dirty.asks.insert(BarrierAsk { state: name.clone(), target: *target });
            }
        }
        self.dirty.topics = self.topics.iter().filter(|(_, t)| t.is_wanted()).map(|(name, _)| name.clone()).collect();
    }

    /// The session is over: nothing is said until another is up.
    pub fn session_down(&mut self) {
        self.link.up = false;
    }

    /// Returns what the orchestrator has to be told, if anything and if it keeps up.
    pub fn poll_up(&mut self) -> Option<SyncUp> {
        let most = if self.is_gathering() { UPS_WHILE_GATHERING } else { UPS_UNDER_WAY };
        if !self.link.up || !self.is_due() || self.link.said - self.link.said_heard >= most {
            return None;
        }
        self.link.said += 1;
        self.link.fresh = false;
        self.link.rest = self.rest();
        self.link.heard_told = self.link.heard;
        let mut up =
            SyncUp { session: self.link.session, number: self.link.said, heard: self.link.heard, ..SyncUp::default() };
        up.rest = self.link.rest;
        self.say_names(&mut up);
        self.say_publications(&mut up);
        self.say_restore(&mut up);
        Some(up)
    }

    /// Takes what the orchestrator says. Repetitions and messages of an earlier session are ignored.
    pub fn handle(&mut self, down: SyncDown) {
        if !self.link.up || down.session != self.link.session || down.number <= self.link.heard {
            return;
        }
        self.link.heard = down.number;
        self.link.said_heard = down.heard.clamp(self.link.said_heard, self.link.said);
        if !down.states.is_empty() || !down.failed.is_empty() || !down.messages.is_empty() {
            // The orchestrator takes it, too, that some go on.
            self.link.rest = None;
        }
        self.link.watched |= !down.inquire.is_empty();
        if down.again {
            self.link.published = 0;
            self.link.restore = Some(self.states.values().flat_map(|state| state.numbers.iter().cloned()).collect());
        }
        for message in down.messages {
            self.on_message(message);
        }
        for (seq, position) in down.positions {
            self.on_position(seq, position);
        }
        for numbers in down.numbers {
            self.on_numbers(numbers);
        }
        for (name, total) in down.states {
            if let Some(state) = self.states.get_mut(&name) {
                state.total = state.total.max(total);
                self.open(&name);
            }
        }
        for (name, why) in down.failed {
            self.fail(&name, &why);
        }
        self.dirty.inquired.extend(down.inquire.into_iter().filter(|name| name.len() <= MAX_NAME_SIZE));
    }

    /// Returns the next answer: instance, number of its call, answer.
    ///
    /// Messages are handed out one by one, so that a slow reader costs no memory beyond the topic itself.
    pub fn poll_reply(&mut self) -> Option<(InstanceId, u64, Reply)> {
        while let Some((caller, reply)) = self.replies.pop_front() {
            let instance = &self.instances[caller.0 as usize];
            if instance.alive {
                return Some((instance.id.clone(), caller.1, reply));
            }
        }
        while let Some(caller) = self.feed.pop_front() {
            let instance = &self.instances[caller.0 as usize];
            let Some(Call::Subscribe { topic }) = instance.calls.get(&caller.1) else { continue };
            let Some(topic) = self.topics.get_mut(topic) else { continue };
            let Some((next, queued)) = topic.subscribers.get_mut(&caller) else { continue };
            let Some((position, payload)) = topic.log.get(*next).cloned() else {
                *queued = false;
                continue;
            };
            *next += 1;
            *queued = *next < topic.log.len();
            if *queued {
                self.feed.push_back(caller);
            }
            return Some((instance.id.clone(), caller.1, Reply::Message { position, payload }));
        }
        None
    }

    /// Returns how many instances of the cell have not signalled a state, how many of them never will, and the first of
    /// them.
    pub fn missing(&self, state: &str) -> Absent {
        let signalled = self.states.get(state).map(|state| &state.signalled);
        let mut absent = Absent::default();
        let mut living = Vec::new();
        for (id, at) in &self.by_id {
            if signalled.is_some_and(|signalled| signalled.contains(at)) {
                continue;
            }
            absent.count += 1;
            let alive = self.instances[*at as usize].alive;
            absent.ended += u64::from(!alive);
            let named = if alive { &mut living } else { &mut absent.instances };
            if named.len() < MAX_NAMED_MISSING {
                named.push(id.clone());
            }
        }
        absent.instances.extend(living);
        absent.instances.truncate(MAX_NAMED_MISSING);
        absent
    }

    /// The same where so few are missing that all of them are named: it goes with what is said of the signals, since the
    /// cell may be lost before anybody asks, and then decides whose signals will come again.
    fn last_missing(&self, state: &str) -> Option<Absent> {
        let signalled = self.states.get(state).map_or(0, |state| state.signalled.len());
        let missing = self.by_id.len().saturating_sub(signalled);
        (1..=MAX_NAMED_MISSING).contains(&missing).then(|| self.missing(state))
    }

    /// Returns how many instances have ended, where all others wait at barriers and for nothing else: nothing will come
    /// of the cell before something comes to it.
    fn rest(&self) -> Option<u64> {
        let is_idle = self.waiting == self.alive && self.replies.is_empty() && self.feed.is_empty();
        let at_rest = is_idle && !self.is_stopped;
        at_rest.then(|| (self.by_id.len() - self.alive) as u64)
    }

    /// Whether the orchestrator is to hear that the cell came to rest, or that it is at rest no longer.
    fn is_rest_news(&self) -> bool {
        match self.rest() {
            Some(ended) => self.link.watched && self.link.rest != Some(ended),
            None => self.link.rest.is_some(),
        }
    }

    /// Changes an instance, and with it how many wait.
    fn change<T>(&mut self, at: u32, change: impl FnOnce(&mut Instance) -> T) -> T {
        let instance = &mut self.instances[at as usize];
        let before = usize::from(instance.is_waiting());
        let value = change(instance);
        self.waiting = self.waiting + usize::from(instance.is_waiting()) - before;
        value
    }

    // Calls.

    fn take(&mut self, caller: Caller, op: SyncOp) -> Result<(), SyncError> {
        let (at, call) = caller;
        let kind = match op {
            SyncOp::Cancel => {
                if let Some(kind) = self.change(at, |instance| instance.remove(call)) {
                    self.forget(caller, kind);
                }
                return Ok(());
            }
            SyncOp::Signal { state } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                self.signal(caller, state);
                Call::Signal
            }
            SyncOp::Barrier { state, target } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                if !self.wait(caller, &state, target) {
                    self.replies.push_back((caller, Reply::Opened { seq: 0 }));
                    return Ok(());
                }
                Call::Barrier { state, target }
            }
            SyncOp::SignalAndWait { state, target } => {
                self.check_call(caller)?;
                self.name_state(at, &state)?;
                let open = !self.wait(caller, &state, target);
                let kind = Call::SignalAndWait { state: state.clone(), target, seq: 0, open };
                self.change(at, |instance| instance.insert(call, kind));
                self.signal(caller, state);
                return Ok(());
            }
            SyncOp::Publish { topic, payload } => {
                self.check_call(caller)?;
                self.name_topic(at, &topic)?;
                let size = payload.len();
                self.publish(caller, topic, payload)?;
                Call::Publish { size }
            }
            SyncOp::Subscribe { topic } => {
                self.check_call(caller)?;
                self.name_topic(at, &topic)?;
                let entry = self.topics.entry(topic.clone()).or_default();
                if !entry.is_wanted() {
                    self.dirty.topics.insert(topic.clone());
                }
                let queued = !entry.log.is_empty();
                entry.subscribers.insert(caller, (0, queued));
                if queued {
                    self.feed.push_back(caller);
                }
                Call::Subscribe { topic }
            }
        };
        self.change(at, |instance| instance.insert(call, kind));
        Ok(())
    }

    fn check_call(&self, (at, call): Caller) -> Result<(), SyncError> {
        let calls = &self.instances[at as usize].calls;
        if calls.contains_key(&call) {
            Err(SyncError::CallTaken { call })
        } else if calls.len() >= MAX_CALLS_PER_INSTANCE {
            Err(SyncError::TooManyCalls)
        } else {
            Ok(())
        }
    }

    fn name_state(&mut self, at: u32, name: &str) -> Result<(), SyncError> {
        let known = self.states.contains_key(name);
        self.check_name(at, name, known)
    }

    fn name_topic(&mut self, at: u32, name: &str) -> Result<(), SyncError> {
        let known = self.topics.contains_key(name);
        self.check_name(at, name, known)?;
        self.topics.entry(name.to_owned()).or_default();
        Ok(())
    }

    fn check_name(&mut self, at: u32, name: &str, known: bool) -> Result<(), SyncError> {
        let size = name.len();
        if size == 0 || size > MAX_NAME_SIZE {
            return Err(SyncError::BadName { size });
        }
        if known {
            return Ok(());
        }
        let instance = &mut self.instances[at as usize];
        for (count, limit) in [(instance.names, MAX_NAMES_PER_INSTANCE), (self.names, MAX_NAMES_PER_CELL)] {
            if count >= limit {
                return Err(SyncError::TooManyNames { limit });
            }
        }
        instance.names += 1;
        self.names += 1;
        Ok(())
    }

    fn signal(&mut self, caller: Caller, name: String) {
        let state = self.states.entry(name.clone()).or_default();
        state.given += 1;
        state.unanswered.push_back(caller);
        state.signalled.insert(caller.0);
        if self.records.is_some() {
            let instance = self.instances[caller.0 as usize].id.clone();
            self.note(|| Record::Signal { instance, state: name.clone() });
        }
        self.open(&name);
        self.dirty.states.insert(name);
    }

    /// Puts a caller where it waits for `target` signals; false where the state has had them.
    fn wait(&mut self, caller: Caller, name: &str, target: u64) -> bool {
        let state = self.states.entry(name.to_owned()).or_default();
        if target <= state.total.max(state.given) {
            return false;
        }
        let waiting = state.waiting.entry(target).or_default();
        if waiting.is_empty() {
            self.dirty.asks.insert(BarrierAsk { state: name.to_owned(), target });
        }
        waiting.insert(caller);
        true
    }

    fn publish(&mut self, caller: Caller, topic: String, payload: Bytes) -> Result<(), SyncError> {
        let size = payload.len();
        if size > MAX_PAYLOAD_SIZE {
            return Err(SyncError::PayloadTooLong { size });
        }
        let instance = &mut self.instances[caller.0 as usize];
        if instance.unrecorded + size > MAX_UNRECORDED_SIZE {
            return Err(SyncError::TooFast);
        }
        if self.published_size + size + ITEM_OVERHEAD > MAX_KEPT_SIZE {
            return Err(SyncError::TopicsFull);
        }
        instance.unrecorded += size;
        if self.records.is_some() {
            let instance = instance.id.clone();
            self.note(|| Record::Publication { instance, topic: topic.clone(), payload: payload.clone() });
        }
        self.published_size += size + ITEM_OVERHEAD;
        self.published.push(Own { topic, payload, position: 0, caller, refused: false });
        Ok(())
    }

    /// Takes a call that has gone out of the tables in which it waits.
    fn forget(&mut self, caller: Caller, kind: Call) {
        match kind {
            // Their answers meet nobody; what they contributed stays.
            Call::Signal => {}
            Call::Publish { size } => {
                let instance = &mut self.instances[caller.0 as usize];
                instance.unrecorded = instance.unrecorded.saturating_sub(size);
            }
            Call::Barrier { state, target } | Call::SignalAndWait { state, target, .. } => {
                let Some(state) = self.states.get_mut(&state) else { return };
                if let Some(waiting) = state.waiting.get_mut(&target) {
                    waiting.remove(&caller);
                    if waiting.is_empty() {
                        state.waiting.remove(&target);
                    }
                }
            }
            Call::Subscribe { topic } => {
                if let Some(topic) = self.topics.get_mut(&topic) {
                    topic.subscribers.remove(&caller);
                }
            }
        }
    }

    /// Answers a call that gets one answer, if somebody still wants it.
    fn answer(&mut self, caller: Caller, reply: Reply) {
        if let Some(kind) = self.change(caller.0, |instance| instance.remove(caller.1)) {
            if let Call::Publish { size } = kind {
                let instance = &mut self.instances[caller.0 as usize];
                instance.unrecorded = instance.unrecorded.saturating_sub(size);
            }
            self.replies.push_back((caller, reply));
        }
    }

    /// Tells a caller that its signal has this number.
    fn number(&mut self, caller: Caller, number: u64) {
        let mut reply = Reply::Signalled { seq: number };
        if let Some(Call::SignalAndWait { seq, open, .. }) = self.call_of(caller) {
            *seq = number;
            if !*open {
                return;
            }
            reply = Reply::Opened { seq: number };
        }
        self.answer(caller, reply);
    }

    /// Tells a caller that the barrier it waits for is open.
    fn release(&mut self, caller: Caller) {
        let own = self.change(caller.0, |instance| instance.open(caller.1));
        if let Some(seq) = own {
            self.answer(caller, Reply::Opened { seq });
        }
    }

    fn call_of(&mut self, (at, call): Caller) -> Option<&mut Call> {
        self.instances[at as usize].calls.get_mut(&call)
    }

    /// Opens the barriers of a state that have their signals.
    fn open(&mut self, name: &str) {
        let Some(state) = self.states.get_mut(name) else { return };
        let reached = state.total.max(state.given);
        let closed = state.waiting.split_off(&reached.saturating_add(1));
        let open = std::mem::replace(&mut state.waiting, closed);
        for (target, waiting) in open {
            self.dirty.asks.remove(&BarrierAsk { state: name.to_owned(), target });
            for caller in waiting {
                self.release(caller);
            }
        }
    }

    // What the orchestrator says.

    /// Fails the barriers of a state that cannot be reached any more.
    fn fail(&mut self, name: &str, why: &Unreachable) {
        let Some(state) = self.states.get_mut(name) else { return };
        let reachable = why.reachable.max(state.total).max(state.given);
        let failed = state.waiting.split_off(&reachable.saturating_add(1));
        let missing = &why.missing[..why.missing.floor_char_boundary(MAX_WHY_SIZE)];
        for (target, waiting) in failed {
            self.dirty.asks.remove(&BarrierAsk { state: name.to_owned(), target });
            for caller in waiting {
                let state = name.to_owned();
                let error = SyncError::Unreachable { state, target, reachable, missing: missing.to_owned() };
                self.answer(caller, Reply::Failed(error));
            }
        }
    }

    fn on_message(&mut self, message: TopicMessage) {
        self.link.untold += (message.payload.len() + ITEM_OVERHEAD) as u64;
        let Some(topic) = self.topics.get_mut(&message.topic) else { return };
        if message.position <= topic.received || message.after > topic.received {
            return;
        }
        topic.received = message.position;
        topic.log.push((message.position, message.payload));
        for (caller, (_, queued)) in &mut topic.subscribers {
            if !*queued {
                *queued = true;
                self.feed.push_back(*caller);
            }
        }
    }

    fn on_position(&mut self, seq: u64, position: u64) {
        let index = usize::try_from(seq).ok().and_then(|seq| seq.checked_sub(1));
        let Some(own) = index.and_then(|index| self.published.get_mut(index)) else { return };
        if own.position > 0 || own.refused {
            return;
        }
        own.position = position;
        own.refused = position == 0;
        let caller = own.caller;
        if let Some(records) = &mut self.records {
            records.push_back(Record::Position { seq, position });
        }
        let reply = if own.refused {
            self.published_size -= own.payload.len();
            own.payload = Bytes::new();
            Reply::Failed(SyncError::TopicsFull)
        } else {
            Reply::Published { position }
        };
        self.answer(caller, reply);
    }

    fn on_numbers(&mut self, told: SignalNumbers) {
        let Some(state) = self.states.get_mut(&told.state) else { return };
        let end = told.from.saturating_add(told.count).saturating_sub(1).min(state.given);
        if told.from == 0 || told.from > state.numbered + 1 || end <= state.numbered {
            return;
        }
        let skip = state.numbered + 1 - told.from;
        let count = end - state.numbered;
        let number = told.number.saturating_add(skip);
        let from = state.numbered + 1;
        if let Some(records) = &mut self.records {
            records.push_back(Record::Numbers(SignalNumbers { state: told.state.clone(), from, count, number }));
        }
        match state.numbers.last_mut() {
            Some(last) if last.number + last.count == number => last.count += count,
            _ => state.numbers.push(SignalNumbers { state: told.state, from, count, number }),
        }
        state.numbered = end;
        let callers: Vec<Caller> = state.unanswered.drain(..usize::try_from(count).unwrap_or(usize::MAX)).collect();
        for (caller, seq) in callers.into_iter().zip(number..) {
            self.number(caller, seq);
        }
    }

    // What the orchestrator is told.

    fn is_due(&self) -> bool {
        self.link.fresh
            || self.link.restore.is_some()
            || self.link.published < self.published.len()
            || self.link.heard - self.link.heard_told >= DOWNS_UNTOLD
            || self.link.untold >= FLOW_WINDOW / 4
            || !self.dirty.states.is_empty()
            || !self.dirty.asks.is_empty()
            || !self.dirty.topics.is_empty()
            || !self.dirty.inquired.is_empty()
            || self.is_rest_news()
    }

    /// Whether nothing is to be said but signals of states that some of the cell have not signalled yet.
    fn is_gathering(&self) -> bool {
        let others = self.link.fresh
            || self.link.restore.is_some()
            || self.link.published < self.published.len()
            || !self.dirty.topics.is_empty()
            || !self.dirty.inquired.is_empty();
        let alive = self.by_id.len();
        let complete = |name: &String| self.states.get(name).is_none_or(|state| state.signalled.len() >= alive);
        !others && !self.dirty.states.is_empty() && !self.dirty.states.iter().any(complete)
    }

    fn say_names(&mut self, up: &mut SyncUp) {
        let mut room = BATCH_SIZE;
        let mut fits = |size: usize| {
            room = room.saturating_sub(size + ITEM_OVERHEAD);
            room > 0
        };
        while let Some(name) = self.dirty.states.pop_first() {
            let mut size = name.len();
            if let Some(state) = self.states.get(&name) {
                let given = state.given;
                if let Some(absent) = self.last_missing(&name) {
                    size += name.len() + size_of_names(&absent);
                    up.absent.insert(name.clone(), absent);
                }
                up.signals.insert(name, given);
            }
            if !fits(size) {
                return;
            }
        }
        while let Some(ask) = self.dirty.asks.pop_first() {
            let size = ask.state.len();
            up.barriers.push(ask);
            if !fits(size) {
                return;
            }
        }
        if self.link.untold >= FLOW_WINDOW / 4 {
            let wanted = self.topics.iter().filter(|(_, topic)| topic.is_wanted());
            self.dirty.topics.extend(wanted.map(|(name, _)| name.clone()));
            self.link.untold = 0;
        }
        while let Some(name) = self.dirty.topics.pop_first() {
            let size = name.len();
            if let Some(topic) = self.topics.get(&name) {
                up.subscribed.insert(name, topic.received);
            }
            if !fits(size) {
                return;
            }
        }
        while let Some(name) = self.dirty.inquired.pop_first() {
            let absent = self.missing(&name);
            let size = size_of_names(&absent);
            up.absent.insert(name, absent);
            if !fits(size) {
                return;
            }
        }
    }

    fn say_publications(&mut self, up: &mut SyncUp) {
        let mut size = 0;
        while let Some(own) = self.published.get(self.link.published) {
            size += own.payload.len() + own.topic.len() + ITEM_OVERHEAD;
            if size > BATCH_SIZE && !up.published.is_empty() {
                break;
            }
            self.link.published += 1;
            up.published.push(Publication {
                seq: self.link.published as u64,
                topic: if own.refused { String::new() } else { own.topic.clone() },
                position: own.position,
                payload: own.payload.clone(),
            });
        }
    }

    fn say_restore(&mut self, up: &mut SyncUp) {
        let Some(numbers) = &mut self.link.restore else { return };
        let mut restore = Restore::default();
        let mut size = 0;
        while let Some(next) = numbers.front() {
            size += next.state.len() + ITEM_OVERHEAD;
            if size > BATCH_SIZE {
                break;
            }
            restore.numbers.extend(numbers.pop_front());
        }
        restore.last =
            numbers.is_empty() && self.link.published == self.published.len() && self.dirty.states.is_empty();
        if restore.last {
            self.link.restore = None;
        }
        up.restore = Some(restore);
    }
}

impl Instance {
    fn new(id: InstanceId) -> Instance {
        Instance { id, alive: true, calls: BTreeMap::new(), waits: 0, owed: 0, names: 0, unrecorded: 0 }
    }

    fn is_waiting(&self) -> bool {
        self.alive && self.waits > 0 && self.owed == 0
    }

    fn insert(&mut self, call: u64, kind: Call) {
        let (waits, owed) = kind.weight();
        self.waits += waits;
        self.owed += owed;
        self.calls.insert(call, kind);
    }

    fn remove(&mut self, call: u64) -> Option<Call> {
        let kind = self.calls.remove(&call)?;
        let (waits, owed) = kind.weight();
        self.waits -= waits;
        self.owed -= owed;
        Some(kind)
    }

    /// The barrier of a call is open: returns the number to answer it with, zero where it gave no signal; none where its
    /// signal has no number yet.
    fn open(&mut self, call: u64) -> Option<u64> {
        let Some(Call::SignalAndWait { seq, open, .. }) = self.calls.get_mut(&call) else { return Some(0) };
        let (number, was_open) = (*seq, std::mem::replace(open, true));
        if !was_open {
            self.waits -= 1;
            self.owed += 1;
        }
        (number > 0).then_some(number)
    }

    fn end(&mut self) -> BTreeMap<u64, Call> {
        self.alive = false;
        (self.waits, self.owed, self.unrecorded) = (0, 0, 0);
        std::mem::take(&mut self.calls)
    }
}

impl Call {
    /// Whether it waits at a barrier, and whether the orchestrator will answer it without anybody's doing.
    fn weight(&self) -> (usize, usize) {
        match self {
            Call::Barrier { .. } | Call::SignalAndWait { open: false, .. } => (1, 0),
            Call::Signal | Call::Publish { .. } | Call::SignalAndWait { open: true, .. } => (0, 1),
            Call::Subscribe { .. } => (0, 0),
        }
    }
}

impl Topic {
    /// Whether the orchestrator is asked for the topic: once somebody has subscribed, the cell keeps it for others.
    fn is_wanted(&self) -> bool {
        !self.subscribers.is_empty() || self.received > 0
    }
}

/// What the names of missing instances take of a message, in bytes.
fn size_of_names(absent: &Absent) -> usize {
    absent.instances.iter().map(|id| id.group.len() + ITEM_OVERHEAD).sum()
}
