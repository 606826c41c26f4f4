//! What one peer wants, and what is on its way to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iptl_dag::{Cid, Multihash};

use super::TurnId;
use crate::message::Entry;
use crate::{Ask, Message, Presence};

/// Messages in the outbox beyond which a peer gets no turn: one is written, one waits.
const MAX_OUTBOX: usize = 1;

/// Answers that wants are refused, kept until the peer's next turn; further wants are refused in silence.
const MAX_REFUSALS: usize = 4_096;

/// One peer's.
#[derive(Default)]
pub(super) struct Ledger {
    wants: BTreeMap<Multihash, Want>,
    /// Wants to be looked up, in the order in which they are.
    ready: BTreeSet<(Reverse<i32>, u64, Multihash)>,
    /// Wants of absent blocks, those first that are evicted first.
    absent: BTreeSet<(i32, u64, Multihash)>,
    next_place: u64,
    refusals: Vec<Presence>,
    /// What is looked up.
    pub(super) turn: Option<Turn>,
    /// Messages, with the bytes that each counts for.
    pub(super) outbox: VecDeque<(Message, usize)>,
    pub(super) sending: Option<Sending>,
    pub(super) is_queued: bool,
    /// Wants that there was no room for, since `excess_since`.
    pub(super) refused: u64,
    /// Wants of absent blocks that made room for others, since then.
    pub(super) evicted: u64,
    pub(super) excess_since: Duration,
    /// It was said since then that the peer wants too much.
    pub(super) is_named: bool,
}

/// What is on its way to the peer.
pub(super) struct Sending {
    pub(super) bytes: usize,
    pub(super) since: Duration,
}

/// What is looked up for the peer.
pub(super) struct Turn {
    pub(super) id: TurnId,
    pub(super) haves: Vec<Multihash>,
    pub(super) blocks: Vec<Multihash>,
    /// Wanted, and not for this peer.
    pub(super) hidden: Vec<Multihash>,
}

pub(super) struct Want {
    pub(super) cid: Cid,
    pub(super) ask: Ask,
    pub(super) send_dont_have: bool,
    priority: i32,
    place: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Looking,
    Absent,
}

/// What came of a want.
pub(super) enum Admitted {
    /// It was there already.
    Known,
    /// It is new, perhaps at the cost of an older one.
    New { evicted: Option<Multihash> },
    /// There is no room.
    Refused,
}

impl Ledger {
    pub(super) fn len(&self) -> usize {
        self.wants.len()
    }

    /// Says whether a turn would do something.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.refusals.is_empty()
    }

    /// Says whether a turn may begin.
    pub(super) fn is_ready(&self) -> bool {
        self.turn.is_none() && self.outbox.len() <= MAX_OUTBOX && self.has_work()
    }

    /// Says whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        let nothing_due = self.turn.is_none() && self.outbox.is_empty() && self.sending.is_none();
        nothing_due && self.wants.is_empty() && self.refusals.is_empty() && self.refused == 0
    }

    /// Returns the bytes that wait for the peer.
    pub(super) fn bytes(&self) -> usize {
        let sending = self.sending.as_ref().map_or(0, |sending| sending.bytes);
        self.outbox.iter().map(|(_, bytes)| bytes).sum::<usize>() + sending
    }

    /// Takes a want in, where there is room among `room` of them or an absent block can make some.
    pub(super) fn admit(&mut self, entry: &Entry, room: usize) -> Admitted {
        let hash = *entry.cid.hash();
        if let Some(mut want) = self.wants.remove(&hash) {
            self.unlist(&hash, &want);
            // Who wants the bytes is not content with less, and a question asked again is answered again.
            want.ask = want.ask.max(entry.ask);
            want.cid = entry.cid;
            want.priority = entry.priority;
            want.send_dont_have = entry.send_dont_have;
            if want.state == State::Absent {
                want.state = State::Ready;
            }
            self.list(hash, want);
            return Admitted::Known;
        }
        let mut evicted = None;
        if self.wants.len() >= room {
            let Some((_, _, oldest)) = self.absent.first().copied() else {
                if entry.send_dont_have && self.refusals.len() < MAX_REFUSALS {
                    self.refusals.push(super::presence(entry.cid, false));
                }
                return Admitted::Refused;
            };
            self.remove(&oldest);
            evicted = Some(oldest);
        }
        let want = Want {
            cid: entry.cid,
            ask: entry.ask,
            send_dont_have: entry.send_dont_have,
            priority: entry.priority,
            place: self.next_place,
            state: State::Ready,
        };
        self.next_place += 1;
        self.list(hash, want);
        Admitted::New { evicted }
    }

    /// Removes a want; says whether it was there.
    pub(super) fn remove(&mut self, hash: &Multihash) -> bool {
        let Some(want) = self.wants.remove(hash) else { return false };
        self.unlist(hash, &want);
        true
    }

    /// Removes all wants and returns them.
    pub(super) fn clear(&mut self) -> Vec<Multihash> {
        self.ready.clear();
        self.absent.clear();
        self.refusals.clear();
        std::mem::take(&mut self.wants).into_keys().collect()
    }

    /// Makes a want of an absent block ready: the block may be there now.
    pub(super) fn wake(&mut self, hash: &Multihash) {
        self.set_state(hash, State::Absent, State::Ready);
    }

    /// Takes wants to be looked up, in their order.
    pub(super) fn take(&mut self, haves: usize, blocks: usize) -> Vec<(Multihash, Ask)> {
        let (mut haves, mut blocks) = (haves, blocks);
        let mut taken = Vec::new();
        for (_, _, hash) in &self.ready {
            let Some(want) = self.wants.get(hash) else { continue };
            let left = if want.ask == Ask::Block { &mut blocks } else { &mut haves };
            if *left == 0 {
                break;
            }
            *left -= 1;
            taken.push((*hash, want.ask));
        }
        for (hash, _) in &taken {
            self.set_state(hash, State::Ready, State::Looking);
        }
        taken
    }

    /// Returns a want that is being looked up; none where it was cancelled meanwhile.
    pub(super) fn looking(&self, hash: &Multihash) -> Option<&Want> {
        self.wants.get(hash).filter(|want| want.state == State::Looking)
    }

    /// Puts a want back that was to be looked up and was not.
    pub(super) fn put_back(&mut self, hash: &Multihash) {
        self.set_state(hash, State::Looking, State::Ready);
    }

    /// Keeps a want until its block arrives.
    pub(super) fn keep_absent(&mut self, hash: &Multihash) {
        self.set_state(hash, State::Looking, State::Absent);
    }

    /// Takes the answers that wants are refused.
    pub(super) fn take_refusals(&mut self) -> Vec<Presence> {
        std::mem::take(&mut self.refusals)
    }

    fn set_state(&mut self, hash: &Multihash, from: State, to: State) {
        let Some(mut want) = self.wants.remove(hash) else { return };
        self.unlist(hash, &want);
        if want.state == from {
            want.state = to;
        }
        self.list(*hash, want);
    }

    fn list(&mut self, hash: Multihash, want: Want) {
        match want.state {
            State::Ready => drop(self.ready.insert((Reverse(want.priority), want.place, hash))),
            State::Absent => drop(self.absent.insert((want.priority, want.place, hash))),
            State::Looking => {}
        }
        self.wants.insert(hash, want);
    }

    fn unlist(&mut self, hash: &Multihash, want: &Want) {
        match want.state {
            State::Ready => drop(self.ready.remove(&(Reverse(want.priority), want.place, *hash))),
            State::Absent => drop(self.absent.remove(&(want.priority, want.place, *hash))),
            State::Looking => {}
        }
    }
}
