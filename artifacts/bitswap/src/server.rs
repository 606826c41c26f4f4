//! The giving half: what each peer wants, and answers in turns.
//!
//! A peer's wants stand in its [`Ledger`], by priority and then in the order of their coming. Peers take turns: in one, the
//! driver looks up a bounded part of what a peer wants, and the answer becomes one or a few messages. The next turn of
//! a peer comes when it has taken in its last message but one, so a slow peer holds its own answers up and nobody
//! else's. What is absent stays in the ledger and is answered when it arrives.
//!
//! What a peer may not read is absent for it, to the byte: the answer is the same, and there is nothing to tell it by but
//! time. Visibility is asked before a block is read, and again before it is sent.
//!
//! The ledger of one peer is in `server/ledger.rs`, the making of messages in `server/answer.rs`.

mod answer;
mod ledger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iptl_dag::{Cid, Multihash, PeerId};

use crate::message::{Entry, is_sendable};
use crate::{Ask, Fault, MAX_WANTS_PER_PEER, Message, Presence};
use ledger::{Admitted, Ledger, Sending, Turn};

/// Wants of all peers that are kept: some 100 MiB of them.
const MAX_WANTS: usize = 262_144;

/// Turns that are looked up at a time, over all peers.
const MAX_TURNS: usize = 4;

/// Blocks of one turn.
const BLOCKS_PER_TURN: usize = 256;

/// Questions whether a block is there, of one turn.
const HAVES_PER_TURN: usize = 512;

/// Bytes of blocks after which the driver ends a turn: enough to hide what a turn costs, little enough that a peer's
/// turn comes soon.
const TURN_BYTES: usize = 512 << 10;

/// Bytes of blocks in one message, where it has more than one: what a turn reads fits, unless the last block is large.
const MESSAGE_BYTES: usize = 768 << 10;

/// Bytes that wait for peers to take them in, over all of them; beyond it no turn begins.
const MAX_WAITING_BYTES: usize = 128 << 20;

/// A peer that takes in no message for so long is dropped: less than 10 KiB/s is no transfer.
const SEND_PATIENCE: Duration = Duration::from_secs(60);

/// Wants that a peer may have refused in one [`FLOOD_WINDOW`].
const MAX_REFUSED: u64 = 65_536;

/// Wants beyond those that are kept after which a peer is named, once in each [`FLOOD_WINDOW`]: an honest one may want a
/// few more than others keep of it, and not as many again.
const MAX_EXCESS: u64 = MAX_WANTS_PER_PEER as u64;

/// Time after which wants that were refused, or made room for others, are forgotten.
const FLOOD_WINDOW: Duration = Duration::from_secs(60);

/// Says whether a peer may read the block of a hash. It is asked for every want, so it must be quick.
pub type Visible = Arc<dyn Fn(&PeerId, &Multihash) -> bool + Send + Sync>;

/// Tells the answer of one turn from that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnId(u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum ServerInput {
    /// A peer said what it wants.
    Wants {
        /// Who.
        peer: PeerId,
        /// It wants nothing else.
        full: bool,
        /// Changes to what it wants.
        entries: Vec<Entry>,
        /// Entries that could not be read, or were too many for one message.
        skipped: usize,
    },
    /// The driver looked up what a turn asks for.
    Looked {
        /// The turn.
        turn: TurnId,
        /// Whether each of `haves` is there.
        haves: Vec<bool>,
        /// The first of `blocks`, as many as were read; none for those that are absent.
        blocks: Vec<Option<Bytes>>,
    },
    /// Blocks came into the store.
    Arrived {
        /// Their hashes.
        hashes: Vec<Multihash>,
    },
    /// The last message to a peer was written.
    Sent {
        /// To whom.
        peer: PeerId,
    },
    /// A peer is gone, or its streams are.
    Gone {
        /// Who.
        peer: PeerId,
    },
    /// The time that [`Server::poll_timeout`] named has come.
    Timeout,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEffect {
    /// Look up blocks and answer with [`ServerInput::Looked`].
    Look {
        /// The turn.
        turn: TurnId,
        /// For whom.
        peer: PeerId,
        /// Blocks that need only be there.
        haves: Vec<Multihash>,
        /// Blocks to read, in this order. Those that follow when `budget` is used up are left out of the answer.
        blocks: Vec<Multihash>,
        /// Bytes to read. The last block may go beyond it.
        budget: usize,
    },
    /// Send a message and answer with [`ServerInput::Sent`].
    Send {
        /// To whom.
        peer: PeerId,
        /// The message.
        message: Message,
    },
    /// Name a peer that wants more than is kept for one; it is served on, with as much as is kept.
    Excess {
        /// Who.
        peer: PeerId,
        /// Wants beyond those, refused or in the place of older ones.
        count: u64,
    },
    /// End the service of a peer: it is forgotten here, and nothing more of it should come.
    Drop {
        /// Who.
        peer: PeerId,
        /// Why.
        fault: Fault,
    },
}

/// The giving half of a node.
pub struct Server {
    visible: Visible,
    peers: BTreeMap<PeerId, Ledger>,
    /// Who waits for blocks that are absent.
    waiting: BTreeMap<Multihash, BTreeSet<PeerId>>,
    /// Peers whose turn comes, in order.
    ring: VecDeque<PeerId>,
    turns: BTreeMap<TurnId, PeerId>,
    next_turn: u64,
    /// Wants in all ledgers.
    wants: usize,
    /// Bytes in all outboxes, and on their way.
    waiting_bytes: usize,
    /// Messages that are being written, by the time since when.
    writing: BTreeSet<(Duration, PeerId)>,
    effects: VecDeque<ServerEffect>,
}

impl Server {
    /// Makes a server that gives each peer what `visible` lets it read.
    pub fn new(visible: Visible) -> Server {
        Server {
            visible,
            peers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ring: VecDeque::new(),
            turns: BTreeMap::new(),
            next_turn: 0,
            wants: 0,
            waiting_bytes: 0,
            writing: BTreeSet::new(),
            effects: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, input: ServerInput) {
        match input {
            ServerInput::Wants { peer, full, entries, skipped } => self.on_wants(now, peer, full, entries, skipped),
            ServerInput::Looked { turn, haves, blocks } => self.on_looked(now, turn, &haves, blocks),
            ServerInput::Arrived { hashes } => self.on_arrived(&hashes),
            ServerInput::Sent { peer } => self.on_sent(now, &peer),
            ServerInput::Gone { peer } => self.forget(&peer),
            ServerInput::Timeout => self.give_up_stalled(now),
        }
        self.begin_turns(now);
    }

    /// Returns the next thing to do.
    pub fn poll_effect(&mut self) -> Option<ServerEffect> {
        self.effects.pop_front()
    }

    /// Returns when [`ServerInput::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.writing.first().map(|(since, _)| *since + SEND_PATIENCE)
    }

    /// Returns the number of wants that are kept, over all peers.
    pub fn wants(&self) -> usize {
        self.wants
    }

    /// Returns the bytes of blocks that wait for peers to take them in.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    fn on_wants(&mut self, now: Duration, peer: PeerId, full: bool, entries: Vec<Entry>, skipped: usize) {
        if full {
            self.cancel_all(&peer);
        }
        let (mut refused, mut evicted) = (skipped as u64, 0);
        for entry in entries {
            let hash = *entry.cid.hash();
            if entry.ask == Ask::Cancel {
                self.cancel(&peer, &hash);
                continue;
            }
            match is_sendable(&hash).then(|| self.admit(&peer, entry)) {
                Some(Admitted::Known | Admitted::New { evicted: None }) => {}
                Some(Admitted::New { evicted: Some(_) }) => evicted += 1,
                Some(Admitted::Refused) | None => refused += 1,
            }
        }
        if refused > 0 || evicted > 0 {
            self.count_excess(now, &peer, refused, evicted);
        }
        if self.peers.get(&peer).is_some_and(Ledger::has_work) {
            self.enqueue(&peer);
        }
        self.clear_idle(&peer);
    }

    /// Puts a want into the peer's ledger, where there is room.
    fn admit(&mut self, peer: &PeerId, entry: Entry) -> Admitted {
        let is_full = self.wants >= MAX_WANTS;
        let ledger = self.peers.entry(peer.clone()).or_default();
        let admitted = ledger.admit(&entry, if is_full { ledger.len() } else { MAX_WANTS_PER_PEER });
        match &admitted {
            Admitted::New { evicted: None } => self.wants += 1,
            // One came and one went.
            Admitted::New { evicted: Some(evicted) } => self.stop_waiting(peer, evicted),
            Admitted::Known | Admitted::Refused => {}
        }
        admitted
    }

    /// Names a peer that wants too much, and drops one that goes on wanting what is refused.
    fn count_excess(&mut self, now: Duration, peer: &PeerId, refused: u64, evicted: u64) {
        let ledger = self.peers.entry(peer.clone()).or_default();
        if now.saturating_sub(ledger.excess_since) > FLOOD_WINDOW {
            (ledger.refused, ledger.evicted, ledger.is_named) = (0, 0, false);
            ledger.excess_since = now;
        }
        ledger.refused += refused;
        ledger.evicted += evicted;
        let (refused, count) = (ledger.refused, ledger.refused + ledger.evicted);
        if refused > MAX_REFUSED {
            self.forget(peer);
            let fault = Fault::Flood { count: refused };
            self.effects.push_back(ServerEffect::Drop { peer: peer.clone(), fault });
        } else if count > MAX_EXCESS && !std::mem::replace(&mut ledger.is_named, true) {
            self.effects.push_back(ServerEffect::Excess { peer: peer.clone(), count });
        }
    }

    fn cancel(&mut self, peer: &PeerId, hash: &Multihash) {
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        if ledger.remove(hash) {
            self.wants -= 1;
            self.stop_waiting(peer, hash);
        }
    }

    fn cancel_all(&mut self, peer: &PeerId) {
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        for hash in ledger.clear() {
            self.wants -= 1;
            self.stop_waiting(peer, &hash);
        }
    }

    fn stop_waiting(&mut self, peer: &PeerId, hash: &Multihash) {
        if let Some(peers) = self.waiting.get_mut(hash) {
            peers.remove(peer);
            if peers.is_empty() {
                self.waiting.remove(hash);
            }
        }
    }

    fn on_arrived(&mut self, hashes: &[Multihash]) {
        for hash in hashes {
            let Some(peers) = self.waiting.remove(hash) else { continue };
            for peer in peers {
                if let Some(ledger) = self.peers.get_mut(&peer) {
                    ledger.wake(hash);
                    self.enqueue(&peer);
                }
            }
        }
    }

    fn on_sent(&mut self, now: Duration, peer: &PeerId) {
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        if let Some(sending) = ledger.sending.take() {
            self.waiting_bytes -= sending.bytes;
            self.writing.remove(&(sending.since, peer.clone()));
        }
        self.send_next(now, peer);
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        if ledger.has_work() {
            self.enqueue(peer);
        }
        self.clear_idle(peer);
    }

    /// Forgets all of a peer.
    fn forget(&mut self, peer: &PeerId) {
        self.cancel_all(peer);
        let Some(ledger) = self.peers.remove(peer) else { return };
        self.waiting_bytes -= ledger.bytes();
        if let Some(sending) = &ledger.sending {
            self.writing.remove(&(sending.since, peer.clone()));
        }
        if let Some(turn) = ledger.turn {
            self.turns.remove(&turn.id);
        }
        self.ring.retain(|queued| queued != peer);
    }

    /// Forgets a ledger that has nothing in it.
    fn clear_idle(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(Ledger::is_idle) {
            self.forget(peer);
        }
    }

    fn enqueue(&mut self, peer: &PeerId) {
        if let Some(ledger) = self.peers.get_mut(peer)
            && !ledger.is_queued
        {
            ledger.is_queued = true;
            self.ring.push_back(peer.clone());
        }
    }

    /// Begins turns while there is room for their answers.
    fn begin_turns(&mut self, now: Duration) {
        while self.turns.len() < MAX_TURNS && self.waiting_bytes < MAX_WAITING_BYTES {
            let Some(peer) = self.ring.pop_front() else { return };
            let Some(ledger) = self.peers.get_mut(&peer) else { continue };
            ledger.is_queued = false;
            // Its next turn comes when it has taken in what waits for it.
            if !ledger.is_ready() {
                continue;
            }
            self.begin_turn(now, &peer);
        }
    }

    fn begin_turn(&mut self, now: Duration, peer: &PeerId) {
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        let taken = ledger.take(HAVES_PER_TURN, BLOCKS_PER_TURN);
        let id = TurnId(self.next_turn);
        self.next_turn += 1;
        let (mut haves, mut blocks, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
        for (hash, ask) in taken {
            match ask {
                _ if !(self.visible)(peer, &hash) => hidden.push(hash),
                Ask::Block => blocks.push(hash),
                Ask::Have | Ask::Cancel => haves.push(hash),
            }
        }
        let is_empty = haves.is_empty() && blocks.is_empty();
        ledger.turn = Some(Turn { id, haves: haves.clone(), blocks: blocks.clone(), hidden });
        self.turns.insert(id, peer.clone());
        if is_empty {
            self.on_looked(now, id, &[], Vec::new());
        } else {
            let peer = peer.clone();
            self.effects.push_back(ServerEffect::Look { turn: id, peer, haves, blocks, budget: TURN_BYTES });
        }
    }

    /// Makes messages of what was found.
    fn on_looked(&mut self, now: Duration, turn: TurnId, haves: &[bool], blocks: Vec<Option<Bytes>>) {
        // A peer that went away in between has no such turn.
        let Some(peer) = self.turns.remove(&turn) else { return };
        let Some(ledger) = self.peers.get_mut(&peer) else { return };
        let Some(turn) = ledger.turn.take() else { return };
        let answer = answer::answer(ledger, &turn, haves, blocks, |hash| (self.visible)(&peer, hash));
        let has_work = ledger.has_work();
        self.wants -= answer.done.len();
        self.waiting_bytes += answer.bytes;
        for hash in &answer.done {
            self.stop_waiting(&peer, hash);
        }
        for hash in answer.absent {
            self.waiting.entry(hash).or_default().insert(peer.clone());
        }
        self.send_next(now, &peer);
        if has_work {
            self.enqueue(&peer);
        }
        self.clear_idle(&peer);
    }

    /// Hands over the next message to a peer that has taken in the last one.
    fn send_next(&mut self, now: Duration, peer: &PeerId) {
        let Some(ledger) = self.peers.get_mut(peer).filter(|ledger| ledger.sending.is_none()) else { return };
        if let Some((message, bytes)) = ledger.outbox.pop_front() {
            ledger.sending = Some(Sending { bytes, since: now });
            self.writing.insert((now, peer.clone()));
            self.effects.push_back(ServerEffect::Send { peer: peer.clone(), message });
        }
    }

    fn give_up_stalled(&mut self, now: Duration) {
        while let Some((since, peer)) = self.writing.first().cloned() {
            if now < since + SEND_PATIENCE {
                return;
            }
            self.forget(&peer);
            let fault = Fault::Stalled { seconds: SEND_PATIENCE.as_secs() };
            self.effects.push_back(ServerEffect::Drop { peer, fault });
        }
    }
}

/// Returns the presence that answers a want for `cid`.
fn presence(cid: Cid, is_here: bool) -> Presence {
    Presence { cid, is_here }
}
