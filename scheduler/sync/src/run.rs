//! The orchestrator's end: cells summed up, signals numbered, topics put in order.
//!
//! `signals.rs` counts signals and opens barriers, `topics.rs` has the topics, `loss.rs` cells that are lost, `rest.rs`
//! barriers that cannot be reached, `recovery.rs` what is put together again after a restart.

mod loss;
mod recovery;
mod rest;
mod signals;
mod topics;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::{Absent, Publication, SignalNumbers, SyncDown, SyncUp, Unreachable};

use loss::Lost;
pub use rest::FailedBarrier;
use topics::next_messages;

use crate::tally::Tally;
use crate::{BATCH_SIZE, ITEM_OVERHEAD, MAX_NAME_SIZE};

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
    /// Attempts that came before that of its instances.
    attempts_before: u32,
    up: bool,
    session: u64,
    /// Last message taken in this session.
    heard: u64,
    /// Last message sent in this session.
    said: u64,
    restored: bool,
    /// It was asked in this session to contribute all again.
    asked_again: bool,
    signals: BTreeMap<String, Signals>,
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

/// Signals that a cell gave of one state.
#[derive(Debug, Default)]
struct Signals {
    /// Who gave them.
    given: Tally,
    /// How many of them have a number.
    numbered: u64,
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

    /// Says of which attempt the cell of a lablet is; without it, of the first. What the lablet says of another cell of the
    /// execution is not heard.
    pub fn of_attempt(&mut self, lablet: &PeerId, attempt: u32) {
        if let Some(cell) = self.cells.get_mut(lablet) {
            cell.attempts_before = attempt.saturating_sub(1);
        }
    }

    /// A cell was given back before the start: its signals are taken back, for they will come again. Barriers that were
    /// open stay open; what it published stays.
    pub fn replace_cell(&mut self, lablet: &PeerId) {
        if let Some(cell) = self.take_cell(lablet) {
            for (name, signals) in cell.signals {
                if let Some(state) = self.states.get_mut(&name) {
                    state.count = state.count.saturating_sub(signals.given.signals());
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

    /// Takes what a cell says. Repetitions and messages of an earlier session or cell are ignored.
    ///
    /// An error tells of a part that was not taken; the rest was.
    pub fn handle(&mut self, lablet: &PeerId, up: SyncUp) -> Result<(), UpError> {
        let unknown = UpError::UnknownCell { lablet: lablet.clone() };
        let Some(cell) = self.cells.get_mut(lablet) else { return Err(unknown) };
        if up.attempts_before != cell.attempts_before {
            return Ok(());
        }
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

    fn check_names(&self, name: &str) -> Result<(), UpError> {
        let known = self.states.contains_key(name) || self.topics.contains_key(name);
        if !known && self.states.len() + self.topics.len() >= MAX_NAMES {
            return Err(UpError::TooMuch { what: "the number of states and topics" });
        }
        Ok(())
    }
}

impl Cell {
    fn given(&self, state: &str) -> u64 {
        self.signals.get(state).map_or(0, |signals| signals.given.signals())
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

fn check_name(name: &str) -> Result<(), UpError> {
    if name.is_empty() || name.len() > MAX_NAME_SIZE {
        return Err(UpError::TooMuch { what: "the length of a name" });
    }
    Ok(())
}
