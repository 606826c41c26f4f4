//! What one peer owes, and how well it serves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iptl_dag::{Cid, Multihash};

use crate::message::Entry;
use crate::{Ask, Fault, Message};

/// Blocks that a peer is asked for at first. It grows by one with each that comes soon, so it doubles with every round.
const FIRST_WINDOW: usize = 32;

/// Fewest blocks that a slow peer is asked for at a time.
const MIN_WINDOW: usize = 4;

/// Most blocks that a peer is asked for at a time: with what else a peer remembers of us, below the
/// [`MAX_WANTS_PER_PEER`](crate::MAX_WANTS_PER_PEER) that others keep.
const MAX_WINDOW: usize = 512;

/// Questions that a peer has not answered.
const MAX_HAVES: usize = 256;

/// Wants that stay with a peer that lacks the block, so that it can tell when it gets it.
const MAX_KEPT: usize = 256;

/// A block that comes within this makes the window grow.
const SOON: Duration = Duration::from_secs(1);

/// A block that comes after this makes the window shrink.
const LONG: Duration = Duration::from_secs(3);

/// Entries in one message.
const MAX_ENTRIES: usize = 1_024;

/// Blocks that a peer may send for one ask. An honest one may send a block twice where an ask crossed its answer.
const SENDS_PER_ASK: u8 = 2;

/// Hashes of blocks that a peer may send which are remembered.
const MAX_CREDITS: usize = 8_192;

/// Blocks that others sent first after which a peer may be dropped.
const MAX_BEATEN: u32 = 16;

/// Failures in a row after which a peer is dropped.
const MAX_FAILURES: u32 = 3;

/// Wait after the first failure; it doubles with each.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Optimistic asks in a row that were in vain after which a peer is asked whether it has a block first.
const MAX_MISSES: u32 = 16;

/// One peer.
pub(super) struct Peer {
    /// Sessions that have it.
    sessions: usize,
    /// Since when no session has it.
    pub(super) idle_since: Duration,
    /// Peers before Bitswap 1.2 do not say what they have.
    says_have: bool,
    /// What is not sent yet; a later entry for a hash takes the place of an earlier one.
    outgoing: BTreeMap<Multihash, Entry>,
    pub(super) is_sending: bool,
    /// The next message is the first one: it holds all that is wanted.
    is_fresh: bool,
    /// Wants that the peer keeps, as far as is known.
    registered: BTreeSet<Multihash>,
    /// Blocks that it was asked for, and when.
    asked: BTreeMap<Multihash, Duration>,
    /// The same in the order of time, as far as they are not late; some are not in `asked` any more.
    not_late: VecDeque<(Duration, Multihash)>,
    /// Asks that are late, in the order in which they were last sent.
    late: VecDeque<(Duration, Multihash)>,
    /// Questions, and when they were asked.
    haves: BTreeMap<Multihash, Duration>,
    /// The same in the order of time.
    haves_in_order: VecDeque<(Duration, Multihash)>,
    window: usize,
    /// When it last gave an answer, or was asked after a time without asks.
    pub(super) heard: Duration,
    /// How many times it may send a block.
    credits: BTreeMap<Multihash, u8>,
    credits_in_order: VecDeque<Multihash>,
    pub(super) unwanted: u32,
    pub(super) broken_words: u32,
    silences: u32,
    failures: u32,
    /// It is not asked before this.
    pub(super) retry_at: Option<Duration>,
    delivered: u64,
    misses: u32,
    beaten: u32,
    won: u32,
    pub(super) dropped: Option<Fault>,
}

impl Default for Peer {
    fn default() -> Peer {
        Peer {
            sessions: 0,
            idle_since: Duration::ZERO,
            says_have: true,
            outgoing: BTreeMap::new(),
            is_sending: false,
            is_fresh: true,
            registered: BTreeSet::new(),
            asked: BTreeMap::new(),
            not_late: VecDeque::new(),
            late: VecDeque::new(),
            haves: BTreeMap::new(),
            haves_in_order: VecDeque::new(),
            window: FIRST_WINDOW,
            heard: Duration::ZERO,
            credits: BTreeMap::new(),
            credits_in_order: VecDeque::new(),
            unwanted: 0,
            broken_words: 0,
            silences: 0,
            failures: 0,
            retry_at: None,
            delivered: 0,
            misses: 0,
            beaten: 0,
            won: 0,
            dropped: None,
        }
    }
}

impl Peer {
    /// A session has it, or names it again; one that was dropped and did not lie gets another chance.
    pub(super) fn join(&mut self, is_new: bool) {
        if self.dropped.as_ref().is_some_and(|fault| !fault.is_lie()) {
            *self = Peer { sessions: self.sessions, credits: std::mem::take(&mut self.credits), ..Peer::default() };
            self.credits_in_order = self.credits.keys().copied().collect();
        }
        self.sessions += usize::from(is_new);
    }

    pub(super) fn leave(&mut self, now: Duration) {
        self.sessions -= 1;
        self.idle_since = now;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sessions == 0
    }

    /// Says whether it may be asked at all.
    pub(super) fn is_usable(&self) -> bool {
        self.dropped.is_none()
    }

    /// Says whether it has served well, so that asking it for a block without a question first is worth it.
    pub(super) fn is_productive(&self) -> bool {
        !self.says_have || (self.delivered > 0 && self.misses < MAX_MISSES)
    }

    /// Returns how busy it is, in thousandths of its window; none where it has no room for another block.
    pub(super) fn load(&self) -> Option<usize> {
        (self.asked.len() < self.window).then(|| self.asked.len() * 1_000 / self.window)
    }

    pub(super) fn has_room_for_question(&self) -> bool {
        self.haves.len() < MAX_HAVES
    }

    pub(super) fn ask_block(&mut self, now: Duration, hash: Multihash, entry: Entry) {
        self.owe(now);
        self.haves.remove(&hash);
        self.asked.insert(hash, now);
        self.not_late.push_back((now, hash));
        if self.not_late.len() > 4 * MAX_WINDOW {
            let asked = &self.asked;
            self.not_late.retain(|(since, hash)| asked.get(hash) == Some(since));
        }
        self.send(hash, entry);
    }

    pub(super) fn ask_have(&mut self, now: Duration, hash: Multihash, entry: Entry) {
        self.owe(now);
        self.haves.insert(hash, now);
        self.haves_in_order.push_back((now, hash));
        if self.haves_in_order.len() > 4 * MAX_HAVES {
            let haves = &self.haves;
            self.haves_in_order.retain(|(since, hash)| haves.get(hash) == Some(since));
        }
        self.send(hash, entry);
    }

    fn owe(&mut self, now: Duration) {
        if self.asked.is_empty() && self.haves.is_empty() {
            self.heard = now;
        }
    }

    fn send(&mut self, hash: Multihash, entry: Entry) {
        self.registered.insert(hash);
        self.outgoing.insert(hash, entry);
        match self.credits.get_mut(&hash) {
            Some(credit) => *credit = credit.saturating_add(SENDS_PER_ASK).min(3 * SENDS_PER_ASK),
            None => {
                self.credits.insert(hash, SENDS_PER_ASK);
                self.credits_in_order.push_back(hash);
            }
        }
        // What it was asked for and has not sent is looked for no further than there are asks.
        for _ in 0..=(self.asked.len() + self.haves.len()) {
            if self.credits.len() <= MAX_CREDITS {
                break;
            }
            let Some(oldest) = self.credits_in_order.pop_front() else { break };
            if self.registered.contains(&oldest) {
                self.credits_in_order.push_back(oldest);
            } else {
                self.credits.remove(&oldest);
            }
        }
    }

    /// Says whether it may send this block, and counts that it did.
    pub(super) fn may_send(&mut self, hash: &Multihash) -> bool {
        match self.credits.get_mut(hash) {
            Some(credit) if *credit > 0 => {
                *credit -= 1;
                true
            }
            _ => false,
        }
    }

    /// A block came that it may send.
    pub(super) fn delivered(&mut self, now: Duration, hash: &Multihash) {
        if let Some(since) = self.asked.remove(hash) {
            let took = now.saturating_sub(since);
            if took < SOON {
                self.window = (self.window + 1).min(MAX_WINDOW);
            } else if took > LONG {
                self.window = (self.window - 1).max(MIN_WINDOW);
            }
        }
        self.haves.remove(hash);
        self.registered.remove(hash);
        self.heard = now;
        self.silences = 0;
        self.failures = 0;
        self.misses = 0;
        self.delivered += 1;
        self.won += 1;
        self.halve();
    }

    /// It said whether it has a block.
    pub(super) fn answered(&mut self, now: Duration, hash: &Multihash) {
        self.heard = now;
        self.silences = 0;
        self.haves.remove(hash);
    }

    /// It lacks a block; `said_has` where it had said otherwise before.
    pub(super) fn lacks(&mut self, hash: &Multihash, said_has: bool) {
        let was_asked = self.asked.remove(hash).is_some();
        if said_has {
            self.broken_words += 1;
        } else if was_asked {
            self.misses = self.misses.saturating_add(1);
        }
    }

    /// The want of a block ended, or is asked of others.
    pub(super) fn settle(&mut self, hash: &Multihash) {
        self.asked.remove(hash);
        self.haves.remove(hash);
    }

    /// It keeps no want for a block any more: it has answered that it has it.
    pub(super) fn forget_registration(&mut self, hash: &Multihash) {
        self.registered.remove(hash);
    }

    /// Tells it that a block is wanted no more, where it keeps the want; says whether there is something to send.
    pub(super) fn withdraw(&mut self, cid: &Cid) -> bool {
        let hash = *cid.hash();
        if !self.registered.remove(&hash) {
            return false;
        }
        // A want that was not sent yet needs no cancel; it may repeat an earlier one that was, so one is sent anyway.
        let entry = Entry { cid: *cid, priority: 0, ask: Ask::Cancel, send_dont_have: false };
        self.outgoing.insert(hash, entry);
        true
    }

    /// Takes a want back from a peer that lacks the block, where it keeps many of them.
    pub(super) fn trim_registrations(&mut self, cid: &Cid) -> bool {
        let kept = self.registered.len().saturating_sub(self.asked.len() + self.haves.len());
        kept > MAX_KEPT && self.withdraw(cid)
    }

    /// Somebody else sent first what it was asked for long ago; returns why it is dropped, where it is.
    pub(super) fn beaten(&mut self) -> Option<Fault> {
        self.beaten += 1;
        let is_slow = self.beaten >= MAX_BEATEN && self.beaten > 2 * self.won;
        let fault = is_slow.then(|| Fault::Slow { seconds: super::timers::LATE.as_secs(), count: self.beaten });
        self.halve();
        fault
    }

    /// Lets what is long ago count less.
    fn halve(&mut self) {
        if self.beaten + self.won > 256 {
            self.beaten /= 2;
            self.won /= 2;
        }
    }

    pub(super) fn connected(&mut self, says_have: bool) {
        self.says_have = says_have;
        self.retry_at = None;
    }

    /// The connection is gone, or there is none; returns why it is dropped, where it is.
    pub(super) fn gone(&mut self, now: Duration, failure: Option<String>) -> Option<Fault> {
        let owed = !self.asked.is_empty() || failure.is_some();
        self.lose_all();
        if owed && self.dropped.is_none() {
            self.failures += 1;
            self.retry_at = Some(now + FIRST_BACKOFF * (1 << self.failures.min(6)));
        }
        let reason = failure.unwrap_or_else(|| "the connection breaks".to_owned());
        (owed && self.failures >= MAX_FAILURES).then_some(Fault::Unreachable { reason })
    }

    pub(super) fn dropped(&mut self, fault: Fault) {
        self.lose_all();
        self.dropped = Some(fault);
        self.retry_at = None;
    }

    fn lose_all(&mut self) {
        self.outgoing.clear();
        self.is_sending = false;
        self.is_fresh = true;
        self.registered.clear();
        self.asked.clear();
        self.not_late.clear();
        self.late.clear();
        self.haves.clear();
        self.haves_in_order.clear();
        self.window = self.window.min(FIRST_WINDOW);
    }

    /// It sent nothing for too long: returns what it was asked for, to be asked of others.
    pub(super) fn take_asked(&mut self) -> Vec<Multihash> {
        self.window = (self.window / 4).max(1);
        self.not_late.clear();
        self.late.clear();
        std::mem::take(&mut self.asked).into_keys().collect()
    }

    /// It did not answer; returns why it is dropped, where it is.
    pub(super) fn silent(&mut self) -> Option<Fault> {
        self.silences += 1;
        (self.silences >= MAX_FAILURES).then_some(Fault::Silent { times: self.silences })
    }

    /// Returns since when it owes an answer to the oldest ask for a block.
    pub(super) fn owes_since(&self) -> Option<Duration> {
        (!self.asked.is_empty()).then_some(self.heard)
    }

    /// Returns the oldest ask that is not late.
    pub(super) fn oldest_ask(&self) -> Option<(Duration, Multihash)> {
        self.not_late.front().copied()
    }

    /// Takes the oldest ask as late.
    pub(super) fn pass_ask(&mut self) {
        self.late.extend(self.not_late.pop_front());
        self.forget_done();
    }

    /// Returns the ask that is late for the longest time.
    pub(super) fn oldest_late(&self) -> Option<(Duration, Multihash)> {
        self.late.front().copied()
    }

    /// Sends the ask again that is late for the longest time: it, or its answer, may be lost. Where it is not, the peer
    /// has the want already, and nothing changes.
    pub(super) fn ask_again(&mut self, now: Duration, hash: Multihash, entry: Entry) {
        self.late.pop_front();
        self.asked.insert(hash, now);
        self.late.push_back((now, hash));
        self.send(hash, entry);
        self.forget_done();
    }

    /// Returns the oldest question.
    pub(super) fn oldest_question(&self) -> Option<(Duration, Multihash)> {
        self.haves_in_order.front().copied()
    }

    /// Gives a question up.
    pub(super) fn pass_question(&mut self) {
        if let Some((since, hash)) = self.haves_in_order.pop_front()
            && self.haves.get(&hash) == Some(&since)
        {
            self.haves.remove(&hash);
        }
        self.forget_done();
    }

    /// Keeps the lists in order of time free of what is answered, at least at their fronts.
    pub(super) fn forget_done(&mut self) {
        while self.not_late.front().is_some_and(|(since, hash)| self.asked.get(hash) != Some(since)) {
            self.not_late.pop_front();
        }
        while self.late.front().is_some_and(|(since, hash)| self.asked.get(hash) != Some(since)) {
            self.late.pop_front();
        }
        while self.haves_in_order.front().is_some_and(|(since, hash)| self.haves.get(hash) != Some(since)) {
            self.haves_in_order.pop_front();
        }
    }

    /// Returns the next message, where there is something to say and the last one was taken in.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        if self.is_sending || self.outgoing.is_empty() || self.dropped.is_some() || self.retry_at.is_some() {
            return None;
        }
        let mut message = Message { full: self.is_fresh, ..Message::default() };
        while message.entries.len() < MAX_ENTRIES {
            let Some((_, entry)) = self.outgoing.pop_first() else { break };
            message.entries.push(entry);
        }
        if self.is_fresh {
            // Everything that is wanted follows, so there is nothing to cancel.
            message.entries.retain(|entry| entry.ask != Ask::Cancel);
        }
        self.is_fresh = false;
        self.is_sending = true;
        Some(message)
    }
}
