//! The orchestrator's end: cells summed up, signals numbered, topics put in order.

mod loss;
mod rest;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::{Absent, Publication, Restore, SignalNumbers, SyncDown, SyncUp, TopicMessage, Unreachable};

use loss::Lost;
pub use rest::FailedBarrier;

use crate::{BATCH_SIZE, FLOW_WINDOW, ITEM_OVERHEAD, MAX_KEPT_SIZE, MAX_NAME_SIZE, MAX_PAYLOAD_SIZE};

/// Highest count, number and position that is believed: far beyond any run, and no sum of them overflows.
const MAX_COUNT: u64 = 1 << 48;

/// States and topics of one execution, over all cells.
const MAX_NAMES: usize = 100_000;

/// Barriers that one cell may wait for.
const MAX_ASKS: usize = 100_000;

/// Instances that a cell may name as missing from one state.
const MAX_NAMED: usize = 20;

/// Barriers of one execution that people are told of: a program may wait at thousands, whose names alone would fill a
/// message, and nobody reads past the first few.
pub const MAX_TOLD_BARRIERS: usize = 64;

/// Bytes of one topic that go into a message before the next topic has its turn.
const TURN_SIZE: u64 = 64 << 10;

/// What a position takes of a message, in bytes.
const POSITION_SIZE: usize = 20;

/// Sync of one execution.
///
/// After [`handle`](RunSync::handle) and the other calls that change something, ask
/// [`poll_down`](RunSync::poll_down) until it has nothing. However many instances signalled, each cell is told once.
#[derive(Debug)]
pub struct RunSync {
    cells: BTreeMap<PeerId, Cell>,
    /// What lablets are called, as far as somebody has said it.
    names: BTreeMap<PeerId, String>,
    /// Instances that are lost for good, by the lablet that lost them.
    lost: BTreeMap<PeerId, Lost>,
    /// Lost instances that begin anew, with the lablet that lost them.
    pending: BTreeMap<InstanceId, PeerId>,
    /// What becomes of barriers that cannot be reached any more.
    barriers: BarrierLoss,
    /// Barriers that failed and were not told of.
    failures: VecDeque<FailedBarrier>,
    /// A cell that was seen to be at work: while it is, nothing is out of reach.
    at_work: Option<PeerId>,
    /// Looks since anybody signalled, published or asked for a barrier, and those of them at which all were at rest.
    quiet_looks: u32,
    rest_looks: u32,
    states: BTreeMap<String, State>,
    topics: BTreeMap<String, Topic>,
    kept: usize,
    /// Some cells have not yet contributed again what another orchestrator, or this one before it broke, had lost.
    /// Until they have, nothing gets a number or a position.
    recovering: bool,
    /// Publications without a position of cells that went away while recovering.
    orphans: Vec<Publication>,
    due: VecDeque<PeerId>,
}

#[derive(Debug, Default)]
struct Cell {
    instances: u64,
    up: bool,
    session: u64,
    /// Last message taken in this session.
    heard: u64,
    /// Last message sent in this session.
    said: u64,
    restored: bool,
    /// It was asked in this session to contribute all again.
    asked_again: bool,
    /// Signals by state: given, and how many of them have a number.
    signals: BTreeMap<String, (u64, u64)>,
    /// Barriers that it waits for: targets by state, and how many there are.
    asks: BTreeMap<String, BTreeSet<u64>>,
    ask_count: usize,
    /// Publications taken, all up to this number.
    taken: u64,
    /// Publications taken while recovering, without a position yet.
    held: Vec<Publication>,
    topics: BTreeMap<String, Cursor>,
    /// Topics with messages that it has not been sent.
    behind: BTreeSet<String>,
    /// Bytes of messages sent and not known to be received.
    in_flight: u64,
    /// What it has to be told, and what it was told in which message of this session and may not have heard.
    news: News,
    unheard: VecDeque<(u64, News)>,
    inquire: BTreeSet<String>,
    /// States of which it was asked in this session.
    asked: BTreeSet<String>,
    /// What it answered, and what it said of its rest in the same message.
    absent: BTreeMap<String, (Absent, Option<u64>)>,
    /// All its instances wait at barriers but those that have ended, of which it has said how many there are.
    rest: Option<u64>,
    /// Last message of this session that may have let an instance go on.
    moved: u64,
    /// Instances of which everything has arrived: they have ended.
    received: u64,
    /// It stands in the queue of cells that have to be told something.
    due: bool,
    must_answer: bool,
}

#[derive(Clone, Debug, Default)]
struct News {
    states: BTreeMap<String, u64>,
    failed: BTreeMap<String, Unreachable>,
    numbers: Vec<SignalNumbers>,
    positions: Vec<(u64, u64)>,
}

/// How far a cell is in a topic, as indices of the next message.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    sent: usize,
    received: usize,
    /// Position of the last message that the cell said in this session to have.
    told: u64,
    /// The same over all sessions: a lablet that was started again asks from the first message.
    seen: u64,
}

/// Ranges of numbers that are kept of a state while an orchestrator recovers: a lablet may say any number of them.
const MAX_RANGES: usize = 4_096;

#[derive(Debug, Default)]
struct State {
    count: u64,
    /// Highest that the count has been: what has been open stays open.
    peak: u64,
    /// Last number that was given to a signal.
    last_number: u64,
    /// While it is recovering: numbers that cells know, by the first of each range. After it: numbers before the last
    /// that nobody was told, which go first.
    ranges: BTreeMap<u64, u64>,
    waiting: BTreeMap<u64, BTreeSet<PeerId>>,
    /// Why barriers of it failed since it was signalled last: who comes to them later hears the same.
    failed: Option<Unreachable>,
}

#[derive(Debug, Default)]
struct Topic {
    log: Vec<Logged>,
    /// Last position that was given to a message.
    last: u64,
    subscribers: BTreeSet<PeerId>,
}

#[derive(Debug)]
struct Logged {
    position: u64,
    payload: Bytes,
    /// Bytes of the topic up to and with this message.
    end: u64,
}

/// Why a message of a cell, or a part of it, was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpError {
    /// The lablet has no cell of this execution.
    #[error("{lablet} has no cell of this execution")]
    UnknownCell {
        /// The lablet.
        lablet: PeerId,
    },
    /// It names more, longer or larger things than a cell may.
    #[error("{what} is beyond what a cell may say")]
    TooMuch {
        /// What.
        what: &'static str,
    },
    /// A publication before it is missing.
    #[error("publication {seq} came where {expected} was expected")]
    Gap {
        /// Its number.
        seq: u64,
        /// Number that was expected.
        expected: u64,
    },
}

/// A barrier that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierState {
    /// State whose signals are counted.
    pub state: String,
    /// Signals so far.
    pub count: u64,
    /// Signals that open it.
    pub target: u64,
    /// Cells with instances that have not signalled.
    pub missing: Vec<MissingCell>,
}

/// A cell with instances that have not signalled a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCell {
    /// Its lablet.
    pub lablet: PeerId,
    /// What people call that.
    pub name: String,
    /// The cell is lost, with all its instances.
    pub lost: bool,
    /// Which instances; as far as the cell has said when it was asked ([`RunSync::inquire`]).
    pub absent: Absent,
}

impl RunSync {
    /// Makes the sync of an execution whose cells have so many instances each.
    pub fn new(cells: impl IntoIterator<Item = (PeerId, u64)>) -> RunSync {
        let mut run = RunSync {
            cells: BTreeMap::new(),
            names: BTreeMap::new(),
            lost: BTreeMap::new(),
            pending: BTreeMap::new(),
            barriers: BarrierLoss::Wait,
            failures: VecDeque::new(),
            at_work: None,
            quiet_looks: 0,
            rest_looks: 0,
            states: BTreeMap::new(),
            topics: BTreeMap::new(),
            kept: 0,
            recovering: false,
            orphans: Vec::new(),
            due: VecDeque::new(),
        };
        for (lablet, instances) in cells {
            run.add_cell(lablet, instances);
        }
        run
    }

    /// Makes the sync of an execution that ran before, under this orchestrator or another, with these cells.
    ///
    /// Each cell is asked for what it contributed. Barriers open as soon as their signals are known; numbers and
    /// positions are given out again once the last cell has answered or is dropped, none of them twice. A message whose
    /// position its own cell had not heard gets another one: who had already received it receives it again.
    pub fn recovering(cells: impl IntoIterator<Item = (PeerId, u64)>) -> RunSync {
        let mut run = RunSync::new(cells);
        for cell in run.cells.values_mut() {
            cell.restored = false;
        }
        run.recovering = !run.cells.is_empty();
        run
    }

    /// Says what people call a lablet, also once it is lost; without this it is named by its peer ID.
    pub fn call_lablet(&mut self, lablet: &PeerId, name: String) {
        if self.names.get(lablet) != Some(&name) {
            self.names.insert(lablet.clone(), name);
        }
    }

    fn name_of(&self, lablet: &PeerId) -> String {
        self.names.get(lablet).cloned().unwrap_or_else(|| lablet.short())
    }

    /// A lablet holds a cell with so many instances in all: another than before where it was granted again before the start.
    pub fn add_cell(&mut self, lablet: PeerId, instances: u64) {
        let cell = self.cells.entry(lablet).or_insert_with(|| Cell { restored: true, ..Cell::default() });
        cell.instances = instances;
    }

    /// Adds a cell that worked before under another orchestrator, which told nothing of it: it is asked for what it
    /// contributed, as all cells of [`recovering`](RunSync::recovering) are.
    pub fn recover_cell(&mut self, lablet: PeerId, instances: u64) {
        self.add_cell(lablet.clone(), instances);
        if let Some(cell) = self.cells.get_mut(&lablet) {
            cell.restored = false;
        }
        if !std::mem::replace(&mut self.recovering, true) {
            // All numbers that are not free were given out, here or before.
            for state in self.states.values_mut() {
                let free = std::mem::take(&mut state.ranges);
                state.ranges = gaps(&free, state.last_number);
            }
        }
    }

    /// A cell was given back before the start: its signals are taken back, for they will come again. Barriers that were
    /// open stay open; what it published stays.
    pub fn replace_cell(&mut self, lablet: &PeerId) {
        if let Some(cell) = self.take_cell(lablet) {
            for (name, (given, _)) in cell.signals {
                if let Some(state) = self.states.get_mut(&name) {
                    state.count = state.count.saturating_sub(given);
                }
            }
        }
        self.finish_recovery();
    }

    /// The session with a lablet is over: nothing is said to its cell until it speaks in another.
    pub fn session_down(&mut self, lablet: &PeerId) {
        if let Some(cell) = self.cells.get_mut(lablet) {
            cell.up = false;
        }
    }

    /// Takes what a cell says. Repetitions and messages of an earlier session are ignored.
    ///
    /// An error tells of a part that was not taken; the rest was.
    pub fn handle(&mut self, lablet: &PeerId, up: SyncUp) -> Result<(), UpError> {
        let unknown = UpError::UnknownCell { lablet: lablet.clone() };
        let Some(cell) = self.cells.get_mut(lablet) else { return Err(unknown) };
        if up.session < cell.session || (up.session == cell.session && up.number <= cell.heard) {
            return Ok(());
        }
        if up.session > cell.session {
            cell.resume(up.session);
            self.forget_asks(lablet);
        }
        if !up.published.is_empty() || !up.barriers.is_empty() {
            (self.quiet_looks, self.rest_looks) = (0, 0);
        }
        let Some(cell) = self.cells.get_mut(lablet) else { return Err(unknown) };
        cell.up = true;
        cell.heard = up.number;
        cell.rest = up.rest.filter(|_| up.heard >= cell.moved);
        cell.must_answer = true;
        while cell.unheard.front().is_some_and(|(number, _)| *number <= up.heard) {
            cell.unheard.pop_front();
        }
        self.mark_due(lablet);

        // Publications come first: who passes a barrier finds what was published before the signals that opened it.
        let published = self.take_publications(lablet, up.published, up.restore.is_some());
        if let Some(restore) = up.restore {
            self.take_restore(lablet, restore);
        }
        let signals = self.take_signals(lablet, up.signals);
        let barriers = up.barriers.into_iter().try_for_each(|ask| self.take_ask(lablet, ask.state, ask.target));
        let subscribed = up.subscribed.into_iter().try_for_each(|(name, at)| self.take_subscription(lablet, name, at));
        if let Some(cell) = self.cells.get_mut(lablet) {
            for (name, mut absent) in up.absent {
                if self.states.contains_key(&name) {
                    absent.instances.truncate(MAX_NAMED);
                    cell.absent.insert(name, (absent, up.rest));
                }
            }
        }
        self.finish_recovery();
        if up.rest.is_some() {
            self.settle_barriers();
        }
        published.and(signals).and(barriers).and(subscribed)
    }

    /// Returns what the next cell has to be told.
    pub fn poll_down(&mut self) -> Option<(PeerId, SyncDown)> {
        while let Some(lablet) = self.due.pop_front() {
            let Some(cell) = self.cells.get_mut(&lablet) else { continue };
            cell.due = false;
            if !cell.up {
                continue;
            }
            let messages = if self.recovering { Vec::new() } else { next_messages(cell, &self.topics) };
            let again = !cell.restored && !cell.asked_again;
            cell.asked_again |= again;
            let inquire: Vec<String> = std::mem::take(&mut cell.inquire).into_iter().collect();
            let news = cell.next_news();
            let more = !cell.news.is_empty() || (!messages.is_empty() && !cell.behind.is_empty());
            if !cell.must_answer && !again && inquire.is_empty() && messages.is_empty() && news.is_empty() {
                continue;
            }
            cell.must_answer = false;
            cell.said += 1;
            if !news.states.is_empty() || !news.failed.is_empty() || !messages.is_empty() {
                cell.rest = None;
                cell.moved = cell.said;
            }
            let down = SyncDown {
                session: cell.session,
                number: cell.said,
                heard: cell.heard,
                again,
                states: news.states.clone(),
                numbers: news.numbers.clone(),
                messages,
                positions: news.positions.clone(),
                inquire,
                failed: news.failed.clone(),
            };
            if !news.is_empty() {
                cell.unheard.push_back((cell.said, news));
            }
            if more {
                self.mark_due(&lablet);
            }
            return Some((lablet, down));
        }
        None
    }

    /// Asks cells who is missing at the barriers that [`waiting`](RunSync::waiting) tells of, which then names them.
    ///
    /// To be called now and then, as once a second: barriers that nobody can reach any more are found by it.
    pub fn inquire(&mut self) {
        self.quiet_looks = self.quiet_looks.saturating_add(1);
        self.rest_looks = if self.is_at_rest() { self.rest_looks.saturating_add(1) } else { 0 };
        for name in self.waited_for() {
            let lacks = |cell: &Cell| cell.given(&name) < cell.instances;
            self.ask(&name, lacks);
        }
        self.look_for_rest();
    }

    /// Returns the first states that somebody waits for.
    fn waited_for(&self) -> Vec<String> {
        let waited_for = self.states.iter().filter(|(_, state)| !state.waiting.is_empty());
        waited_for.take(MAX_TOLD_BARRIERS).map(|(name, _)| name.clone()).collect()
    }

    /// Asks some cells who has not signalled a state.
    fn ask(&mut self, name: &str, whom: impl Fn(&Cell) -> bool) {
        let mut due = Vec::new();
        for (lablet, cell) in &mut self.cells {
            if cell.up && whom(cell) && cell.inquire.insert(name.to_owned()) {
                cell.asked.insert(name.to_owned());
                due.push(lablet.clone());
            }
        }
        for lablet in due {
            self.mark_due(&lablet);
        }
    }

    /// Returns the barriers that somebody waits for, with who is missing; the first [`MAX_TOLD_BARRIERS`] of them.
    pub fn waiting(&self) -> Vec<BarrierState> {
        let mut barriers = Vec::new();
        for (name, state) in &self.states {
            for target in state.waiting.keys() {
                if barriers.len() == MAX_TOLD_BARRIERS {
                    return barriers;
                }
                let missing = self.missing(name);
                barriers.push(BarrierState { state: name.clone(), count: state.count, target: *target, missing });
            }
        }
        barriers
    }

    /// Returns whether cells have yet to contribute again what was lost.
    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// Waits no longer for cells that have not contributed again: what only they knew is lost. Their lablets forgot them
    /// when they died, after all their instances had ended.
    pub fn end_recovery(&mut self) {
        for cell in self.cells.values_mut() {
            cell.restored = true;
        }
        self.finish_recovery();
    }

    fn missing(&self, name: &str) -> Vec<MissingCell> {
        let mut missing = Vec::new();
        for (lablet, cell) in &self.cells {
            let absent = match cell.absent.get(name) {
                Some((absent, _)) => absent.clone(),
                None => Absent { count: cell.instances.saturating_sub(cell.given(name)), ..Absent::default() },
            };
            if absent.count > 0 {
                missing.push(MissingCell { lablet: lablet.clone(), name: self.name_of(lablet), lost: false, absent });
            }
        }
        missing.extend(self.missing_of_lost(name));
        missing
    }

    // Cells.

    fn mark_due(&mut self, lablet: &PeerId) {
        if let Some(cell) = self.cells.get_mut(lablet)
            && !cell.due
        {
            cell.due = true;
            self.due.push_back(lablet.clone());
        }
    }

    fn take_cell(&mut self, lablet: &PeerId) -> Option<Cell> {
        self.forget_asks(lablet);
        let cell = self.cells.remove(lablet)?;
        for name in cell.topics.keys() {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.subscribers.remove(lablet);
            }
        }
        self.orphans.extend(cell.held.iter().cloned());
        Some(cell)
    }

    fn forget_asks(&mut self, lablet: &PeerId) {
        let Some(cell) = self.cells.get_mut(lablet) else { return };
        cell.ask_count = 0;
        for (name, targets) in std::mem::take(&mut cell.asks) {
            let Some(state) = self.states.get_mut(&name) else { continue };
            for target in targets {
                if let Some(waiting) = state.waiting.get_mut(&target) {
                    waiting.remove(lablet);
                    if waiting.is_empty() {
                        state.waiting.remove(&target);
                    }
                }
            }
        }
    }

    // Signals and barriers.

    fn take_signals(&mut self, lablet: &PeerId, signals: BTreeMap<String, u64>) -> Result<(), UpError> {
        for (name, total) in signals {
            check_name(&name)?;
            if total > MAX_COUNT {
                return Err(UpError::TooMuch { what: "a number of signals" });
            }
            self.check_names(&name)?;
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            let (given, _) = cell.signals.entry(name.clone()).or_default();
            let more = total.saturating_sub(*given);
            if more == 0 {
                continue;
            }
            *given = total;
            cell.absent.remove(&name);
            let state = self.states.entry(name.clone()).or_default();
            state.count = state.count.saturating_add(more);
            state.peak = state.peak.max(state.count);
            state.failed = None;
            (self.quiet_looks, self.rest_looks) = (0, 0);
            if !self.recovering {
                self.number(lablet, &name);
            }
            self.open(&name);
        }
        Ok(())
    }

    /// Gives numbers to the signals of a cell that have none.
    fn number(&mut self, lablet: &PeerId, name: &str) {
        let (Some(cell), Some(state)) = (self.cells.get_mut(lablet), self.states.get_mut(name)) else { return };
        let Some((given, numbered)) = cell.signals.get_mut(name) else { return };
        let count = given.saturating_sub(*numbered);
        if count == 0 {
            return;
        }
        let mut left = count;
        while left > 0 {
            let (number, count) = match state.ranges.pop_first() {
                Some((first, free)) if free > left => {
                    state.ranges.insert(first + left, free - left);
                    (first, left)
                }
                Some(range) => range,
                None => (state.last_number + 1, left),
            };
            cell.news.numbers.push(SignalNumbers { state: name.to_owned(), from: *numbered + 1, count, number });
            *numbered += count;
            left -= count;
            state.last_number = state.last_number.max((number + count).saturating_sub(1));
        }
        self.mark_due(lablet);
    }

    fn open(&mut self, name: &str) {
        let released = self.released(name);
        let Some(state) = self.states.get_mut(name) else { return };
        if released > 0 {
            state.peak = state.peak.max(state.count.saturating_add(released));
        }
        let closed = state.waiting.split_off(&state.peak.saturating_add(1));
        let open = std::mem::replace(&mut state.waiting, closed);
        let peak = state.peak;
        for (target, lablets) in open {
            for lablet in lablets {
                if let Some(cell) = self.cells.get_mut(&lablet) {
                    cell.news.states.insert(name.to_owned(), peak);
                    if let Some(targets) = cell.asks.get_mut(name) {
                        cell.ask_count -= usize::from(targets.remove(&target));
                        if targets.is_empty() {
                            cell.asks.remove(name);
                        }
                    }
                }
                self.mark_due(&lablet);
            }
        }
    }

    fn take_ask(&mut self, lablet: &PeerId, name: String, target: u64) -> Result<(), UpError> {
        check_name(&name)?;
        self.check_names(&name)?;
        let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
        if cell.ask_count >= MAX_ASKS {
            return Err(UpError::TooMuch { what: "the number of barriers" });
        }
        cell.ask_count += usize::from(cell.asks.entry(name.clone()).or_default().insert(target));
        let state = self.states.entry(name.clone()).or_default();
        state.waiting.entry(target).or_default().insert(lablet.clone());
        self.open(&name);
        self.fail_again(&name);
        Ok(())
    }

    fn check_names(&self, name: &str) -> Result<(), UpError> {
        let known = self.states.contains_key(name) || self.topics.contains_key(name);
        if !known && self.states.len() + self.topics.len() >= MAX_NAMES {
            return Err(UpError::TooMuch { what: "the number of states and topics" });
        }
        Ok(())
    }

    // Topics.

    fn take_publications(
        &mut self,
        lablet: &PeerId,
        published: Vec<Publication>,
        restoring: bool,
    ) -> Result<(), UpError> {
        for publication in published {
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            if !cell.restored && !restoring {
                // It will come again, with all that was before it.
                return Ok(());
            }
            let (seq, expected) = (publication.seq, cell.taken + 1);
            if seq < expected {
                continue;
            }
            if seq > expected {
                return Err(UpError::Gap { seq, expected });
            }
            let refused = publication.topic.is_empty();
            if publication.payload.len() > MAX_PAYLOAD_SIZE || publication.position > MAX_COUNT {
                return Err(UpError::TooMuch { what: "a publication" });
            }
            if !refused {
                check_name(&publication.topic)?;
                self.check_names(&publication.topic)?;
            }
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            cell.taken = seq;
            if refused {
                continue;
            }
            match publication.position {
                0 if self.recovering => self.hold(lablet, publication),
                0 => self.record(Some(lablet), publication),
                _ if self.recovering => self.put_back(publication),
                // Known from before; there is nothing to restore.
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps a publication until recovery ends; refuses it, as [`record`](RunSync::record) does, where all is full.
    fn hold(&mut self, lablet: &PeerId, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        let Some(cell) = self.cells.get_mut(lablet) else { return };
        if self.kept + size <= MAX_KEPT_SIZE {
            self.kept += size;
            cell.held.push(publication);
        } else {
            cell.news.positions.push((publication.seq, 0));
            self.mark_due(lablet);
        }
    }

    /// Gives a publication the next position of its topic.
    fn record(&mut self, lablet: Option<&PeerId>, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        let mut position = 0;
        if self.kept + size <= MAX_KEPT_SIZE {
            self.kept += size;
            let topic = self.topics.entry(publication.topic.clone()).or_default();
            let end = topic.log.last().map_or(0, |logged| logged.end);
            topic.last += 1;
            position = topic.last;
            topic.log.push(Logged { position, payload: publication.payload, end: end + size as u64 });
            let subscribers: Vec<PeerId> = topic.subscribers.iter().cloned().collect();
            for subscriber in subscribers {
                if let Some(cell) = self.cells.get_mut(&subscriber) {
                    cell.behind.insert(publication.topic.clone());
                }
                self.mark_due(&subscriber);
            }
        }
        let Some(lablet) = lablet else { return };
        if let Some(cell) = self.cells.get_mut(lablet) {
            cell.news.positions.push((publication.seq, position));
        }
        self.mark_due(lablet);
    }

    /// Puts a publication where it was before it was lost here. The log is sorted when recovery ends.
    fn put_back(&mut self, publication: Publication) {
        let size = publication.payload.len() + ITEM_OVERHEAD;
        if self.kept + size > MAX_KEPT_SIZE {
            return;
        }
        self.kept += size;
        let topic = self.topics.entry(publication.topic).or_default();
        topic.log.push(Logged { position: publication.position, payload: publication.payload, end: 0 });
    }

    fn take_subscription(&mut self, lablet: &PeerId, name: String, received: u64) -> Result<(), UpError> {
        check_name(&name)?;
        self.check_names(&name)?;
        let topic = self.topics.entry(name.clone()).or_default();
        topic.subscribers.insert(lablet.clone());
        let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
        let cursor = cell.topics.entry(name.clone()).or_default();
        cursor.told = cursor.told.max(received.min(MAX_COUNT));
        cursor.seen = cursor.seen.max(cursor.told);
        if self.recovering {
            // The log is not in order yet; the cursor moves when it is.
            return Ok(());
        }
        let before = topic.bytes(cursor.sent) - topic.bytes(cursor.received);
        cursor.received = cursor.received.max(topic.after(received));
        cursor.sent = cursor.sent.max(cursor.received);
        let after = topic.bytes(cursor.sent) - topic.bytes(cursor.received);
        cell.in_flight = (cell.in_flight + after).saturating_sub(before);
        if cursor.sent < topic.log.len() {
            cell.behind.insert(name);
        }
        // It may have been the window that held the topics back.
        self.mark_due(lablet);
        Ok(())
    }

    // Recovery.

    fn take_restore(&mut self, lablet: &PeerId, restore: Restore) {
        let Some(cell) = self.cells.get_mut(lablet).filter(|cell| !cell.restored) else { return };
        for numbers in restore.numbers {
            let SignalNumbers { state, from, count, number } = numbers;
            let believable = [from, count, number].iter().all(|n| *n <= MAX_COUNT);
            let room = self.states.len() < MAX_NAMES || self.states.contains_key(&state);
            if !believable || !room || from == 0 || check_name(&state).is_err() {
                continue;
            }
            let (_, numbered) = cell.signals.entry(state.clone()).or_default();
            *numbered = (*numbered).max(from + count - 1);
            let state = self.states.entry(state).or_default();
            state.last_number = state.last_number.max((number + count).saturating_sub(1));
            if state.ranges.len() >= MAX_RANGES {
                // Then all before the last count as known.
                state.ranges = BTreeMap::from([(1, MAX_COUNT)]);
            }
            let known = state.ranges.entry(number).or_default();
            *known = (*known).max(count);
        }
        cell.restored |= restore.last;
    }

    /// Gives out numbers and positions again once every cell has said what it had.
    fn finish_recovery(&mut self) {
        if !self.recovering || self.cells.values().any(|cell| !cell.restored) {
            return;
        }
        self.recovering = false;
        // What a lost cell was told is not known: then nothing is given out that somebody may have had.
        let all_are_known = self.lost.is_empty();
        for state in self.states.values_mut() {
            let known = std::mem::take(&mut state.ranges);
            if all_are_known {
                state.ranges = gaps(&known, state.last_number);
            }
        }
        for topic in self.topics.values_mut() {
            topic.log.sort_by_key(|logged| logged.position);
            topic.log.dedup_by_key(|logged| logged.position);
            let mut end = 0;
            topic.last = topic.log.last().map_or(0, |logged| logged.position);
            for logged in &mut topic.log {
                end += (logged.payload.len() + ITEM_OVERHEAD) as u64;
                logged.end = end;
            }
        }
        let lablets: Vec<PeerId> = self.cells.keys().cloned().collect();
        let mut held: Vec<(Option<PeerId>, Publication)> =
            std::mem::take(&mut self.orphans).into_iter().map(|publication| (None, publication)).collect();
        for lablet in &lablets {
            let Some(cell) = self.cells.get_mut(lablet) else { continue };
            cell.in_flight = 0;
            for (name, cursor) in &mut cell.topics {
                let Some(topic) = self.topics.get_mut(name) else { continue };
                // A position that somebody has seen is not given again, even where its message was lost.
                topic.last = topic.last.max(cursor.seen);
                cursor.received = topic.after(cursor.told);
                cursor.sent = cursor.received;
                if cursor.sent < topic.log.len() {
                    cell.behind.insert(name.clone());
                }
            }
            held.extend(cell.held.drain(..).map(|publication| (Some(lablet.clone()), publication)));
        }
        for (lablet, publication) in held {
            self.kept = self.kept.saturating_sub(publication.payload.len() + ITEM_OVERHEAD);
            self.record(lablet.as_ref(), publication);
        }
        for lablet in &lablets {
            let names: Vec<String> = self.cells.get(lablet).map_or(vec![], |c| c.signals.keys().cloned().collect());
            for name in names {
                self.number(lablet, &name);
            }
            self.mark_due(lablet);
        }
        self.look_at_barriers();
    }
}

impl Cell {
    fn given(&self, state: &str) -> u64 {
        self.signals.get(state).map_or(0, |(given, _)| *given)
    }

    /// Begins another session: what was not heard in the last is news again.
    fn resume(&mut self, session: u64) {
        self.session = session;
        self.heard = 0;
        self.said = 0;
        self.asked_again = false;
        let later = std::mem::take(&mut self.news);
        for (_, news) in std::mem::take(&mut self.unheard) {
            self.news.extend(news);
        }
        self.news.extend(later);
        // It says anew how far it is in each topic, and is sent nothing of one before.
        for cursor in self.topics.values_mut() {
            *cursor = Cursor { seen: cursor.seen, ..Cursor::default() };
        }
        self.in_flight = 0;
        self.behind.clear();
        self.rest = None;
        self.moved = 0;
        self.asked.clear();
    }

    /// Takes out as much news as one message holds.
    fn next_news(&mut self) -> News {
        let mut size = 0;
        let mut next = News::default();
        while size < BATCH_SIZE
            && let Some((name, total)) = self.news.states.pop_first()
        {
            size += name.len() + ITEM_OVERHEAD;
            next.states.insert(name, total);
        }
        while size < BATCH_SIZE
            && let Some((name, why)) = self.news.failed.pop_first()
        {
            size += name.len() + why.missing.len() + ITEM_OVERHEAD;
            next.failed.insert(name, why);
        }
        let fit = self.news.numbers.iter().take_while(|numbers| {
            size += numbers.state.len() + ITEM_OVERHEAD;
            size < BATCH_SIZE
        });
        let count = fit.count();
        next.numbers = self.news.numbers.drain(..count).collect();
        let count = (BATCH_SIZE.saturating_sub(size) / POSITION_SIZE).min(self.news.positions.len());
        next.positions = self.news.positions.drain(..count).collect();
        next
    }
}

impl News {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.failed.is_empty() && self.numbers.is_empty() && self.positions.is_empty()
    }

    fn extend(&mut self, later: News) {
        self.states.extend(later.states);
        self.failed.extend(later.failed);
        self.numbers.extend(later.numbers);
        self.positions.extend(later.positions);
    }
}

impl Topic {
    /// Returns the bytes of the first `count` messages.
    fn bytes(&self, count: usize) -> u64 {
        count.checked_sub(1).and_then(|last| self.log.get(last)).map_or(0, |logged| logged.end)
    }

    /// Returns how many messages are at or before a position.
    fn after(&self, position: u64) -> usize {
        self.log.partition_point(|logged| logged.position <= position)
    }
}

/// Takes the next messages for a cell: topics in turns, within the size of a message and the window.
fn next_messages(cell: &mut Cell, topics: &BTreeMap<String, Topic>) -> Vec<TopicMessage> {
    let mut messages = Vec::new();
    let mut size = 0;
    while !cell.behind.is_empty() {
        for name in cell.behind.iter().cloned().collect::<Vec<String>>() {
            let (Some(topic), Some(cursor)) = (topics.get(&name), cell.topics.get_mut(&name)) else {
                cell.behind.remove(&name);
                continue;
            };
            let mut turn = 0;
            while turn < TURN_SIZE {
                let Some(logged) = topic.log.get(cursor.sent) else {
                    cell.behind.remove(&name);
                    break;
                };
                let next = (logged.payload.len() + ITEM_OVERHEAD + name.len()) as u64;
                let full = size + next > BATCH_SIZE as u64 && !messages.is_empty();
                if full || cell.in_flight >= FLOW_WINDOW {
                    return messages;
                }
                size += next;
                turn += next;
                cell.in_flight += topic.bytes(cursor.sent + 1) - topic.bytes(cursor.sent);
                let before = cursor.sent.checked_sub(1).and_then(|last| topic.log.get(last));
                messages.push(TopicMessage {
                    topic: name.clone(),
                    position: logged.position,
                    after: before.map_or(0, |logged| logged.position),
                    payload: logged.payload.clone(),
                });
                cursor.sent += 1;
            }
        }
    }
    messages
}

/// Returns the ranges up to a number that lie between others, each by its first number with its count.
fn gaps(ranges: &BTreeMap<u64, u64>, last: u64) -> BTreeMap<u64, u64> {
    let mut gaps = BTreeMap::new();
    let mut next = 1;
    for (first, count) in ranges.iter().map(|(first, count)| (*first, *count)).chain([(last.saturating_add(1), 0)]) {
        if first > next {
            gaps.insert(next, first - next);
        }
        next = next.max(first.saturating_add(count));
    }
    gaps
}

fn check_name(name: &str) -> Result<(), UpError> {
    if name.is_empty() || name.len() > MAX_NAME_SIZE {
        return Err(UpError::TooMuch { what: "the length of a name" });
    }
    Ok(())
}
