//! The lablet's end: calls of a cell's instances summed up.
//!
//! `calls.rs` takes the calls, `say.rs` has what the orchestrator is told, `hear.rs` what it says, `memory.rs` what another
//! life of the lablet must know.

mod calls;
mod hear;
mod memory;
mod say;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use iptl_dag::model::InstanceId;
use iptl_wire::session::{Absent, BarrierAsk, SignalNumbers, SyncDown, SyncUp};

pub use memory::Record;

use crate::{MAX_NAME_SIZE, Reply, SyncOp};

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
    /// Attempts that came before that of its instances.
    attempts_before: u32,
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
    /// Place of its first attempt in the cell's list.
    first: u32,
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
    /// Attempts that signalled.
    signalled: BTreeSet<u32>,
    /// Signals of each instance over its attempts, by the place of its first, and those of whom it has to be said.
    times: BTreeMap<u32, u64>,
    unsaid: BTreeSet<u32>,
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
            attempts_before: 0,
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

    /// Makes it that of a cell of this attempt, which counts from one; without it, of the first.
    pub fn of_attempt(self, attempt: u32) -> CellSync {
        CellSync { attempts_before: attempt.saturating_sub(1), ..self }
    }

    /// Adds an instance, or a further attempt of one that has ended; its calls are counted from nothing again.
    pub fn add_instance(&mut self, id: InstanceId) {
        self.end_instance(&id);
        let at = u32::try_from(self.instances.len()).expect("a cell has fewer instances than lab addresses");
        let before = self.by_id.insert(id.clone(), at);
        let first = before.map_or(at, |before| self.instances[before as usize].first);
        self.instances.push(Instance::new(id, first));
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
        self.say_signals_again();
        for (name, state) in &self.states {
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
        up.attempts_before = self.attempts_before;
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
            self.say_signals_again();
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

    /// The same where so few are missing that all of them are named: it goes with what is said of the signals, so that they
    /// can be named where the lablet goes away before anybody asks.
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
}

impl Instance {
    fn new(id: InstanceId, first: u32) -> Instance {
        Instance { id, first, alive: true, calls: BTreeMap::new(), waits: 0, owed: 0, names: 0, unrecorded: 0 }
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
