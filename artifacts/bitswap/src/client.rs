//! The getting half: sessions want blocks, and peers are asked for them.
//!
//! A want is live in one place however many sessions have it. Who is asked, and for what, is decided in
//! `client/schedule.rs`: a peer that said it has the block, or one that has served well; else the session's peers are
//! asked whether they have it. What a peer owes stands in `client/peer.rs`: a window of blocks it is asked for, and the
//! blocks that it may send at all. Times out what is due: `client/timers.rs`.
//!
//! A block is taken only from a peer that was asked for it, and is delivered under the CIDs that it was wanted by. One
//! peer's lie costs that peer its place and the want nothing: it stays, and others are asked.

mod peer;
mod schedule;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iptl_dag::{Block, Cid, Multihash, PeerId};

use crate::message::{Entry, is_sendable};
use crate::{Ask, Fault, Incoming, Message, Presence};
use peer::Peer;

/// Wants of one session that are live; the others wait for their turn in the order in which they came.
const MAX_LIVE: usize = 1_024;

/// Blocks that nobody asked for, after which a peer is dropped: one or two may be a peer's error.
const MAX_UNWANTED: u32 = 3;

/// Blocks that a peer may first say to have and then not: garbage collection happens, so often it does not.
const MAX_BROKEN_WORDS: u32 = 32;

/// Liars are not asked again for so long.
const BAN: Duration = Duration::from_secs(600);

/// Liars that are remembered; the first ones are forgotten beyond it.
const MAX_BANNED: usize = 1_024;

/// Tells sessions apart; the driver gives the numbers, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum ClientInput {
    /// Peers that may have what a session wants; the first input of a session, or a later one.
    Peers {
        /// The session.
        session: SessionId,
        /// They need not be connected. One that was dropped and did not lie gets another chance.
        peers: Vec<PeerId>,
    },
    /// A session wants blocks.
    Want {
        /// The session.
        session: SessionId,
        /// Those that cannot go over the wire (identity, short digests) are [`ClientEffect::Lacking`] at once.
        cids: Vec<Cid>,
    },
    /// A session wants blocks no more.
    Cancel {
        /// The session.
        session: SessionId,
        /// Which.
        cids: Vec<Cid>,
    },
    /// A session ends.
    Close {
        /// The session.
        session: SessionId,
    },
    /// There is a stream to a peer.
    Connected {
        /// The peer.
        peer: PeerId,
        /// It says what it has and lacks: everything from Bitswap 1.2.
        says_have: bool,
    },
    /// A message came.
    Received {
        /// From whom.
        peer: PeerId,
        /// What came; the entries are the server's.
        incoming: Incoming,
    },
    /// The last message to a peer was written.
    Sent {
        /// To whom.
        peer: PeerId,
    },
    /// A peer is gone, or its streams are: what was asked of it is lost.
    Gone {
        /// Who.
        peer: PeerId,
    },
    /// A peer cannot be reached: the message for it is lost.
    Failed {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// The driver saw a peer do what no honest one does.
    Faulty {
        /// Who.
        peer: PeerId,
        /// What.
        fault: Fault,
    },
    /// The time that [`Client::poll_timeout`] named has come.
    Timeout,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEffect {
    /// Send a message, over a connection that is made where there is none, and answer with [`ClientInput::Sent`],
    /// [`ClientInput::Gone`] or [`ClientInput::Failed`].
    Send {
        /// To whom.
        peer: PeerId,
        /// The message.
        message: Message,
    },
    /// A session gets a block.
    Deliver {
        /// The session.
        session: SessionId,
        /// The block, under the CID that was wanted.
        block: Block,
        /// Who sent it.
        from: PeerId,
    },
    /// None of the session's peers has a block. It stays wanted, and is asked for again from time to time; this comes
    /// again then. Other peers would help.
    Lacking {
        /// The session.
        session: SessionId,
        /// The block.
        cid: Cid,
    },
    /// A peer is asked nothing more.
    Drop {
        /// Who.
        peer: PeerId,
        /// Why.
        fault: Fault,
        /// Sessions that had it among their peers.
        sessions: Vec<SessionId>,
    },
}

/// The getting half of a node.
#[derive(Default)]
pub struct Client {
    peers: BTreeMap<PeerId, Peer>,
    sessions: BTreeMap<SessionId, Session>,
    wants: BTreeMap<Multihash, Want>,
    /// Wants to decide on, by age.
    open: BTreeSet<(u64, Multihash)>,
    /// Wants that wait for room at a peer, by age.
    hungry: BTreeSet<(u64, Multihash)>,
    next_order: u64,
    /// When peers that lack blocks are asked again.
    next_round: Option<Duration>,
    banned: BTreeMap<PeerId, (Duration, Fault)>,
    /// Peers with something to send.
    touched: BTreeSet<PeerId>,
    effects: VecDeque<ClientEffect>,
}

#[derive(Default)]
struct Session {
    peers: BTreeSet<PeerId>,
    /// Wants that are not live yet.
    queue: VecDeque<Cid>,
    live: BTreeSet<Multihash>,
}

/// A block that is wanted.
struct Want {
    /// The CIDs under which sessions want it.
    names: BTreeMap<SessionId, Vec<Cid>>,
    /// What is known of the peers, where something is.
    at: BTreeMap<PeerId, At>,
    order: u64,
    /// Sessions were told that nobody has it.
    is_lacking: bool,
}

/// What is known of a block at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Was asked whether it has it.
    AskedHave,
    /// Says that it has it.
    Has,
    /// Says that it lacks it.
    Lacks,
    /// Was asked, and did not answer in time.
    Mute,
    /// Was asked for the bytes; `late` where that is so long ago that others may be asked as well.
    Asked { late: bool, said_has: bool },
}

impl Client {
    /// Makes a client without sessions.
    pub fn new() -> Client {
        Client::default()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, input: ClientInput) {
        match input {
            ClientInput::Peers { session, peers } => self.on_peers(now, session, peers),
            ClientInput::Want { session, cids } => self.on_want(session, cids),
            ClientInput::Cancel { session, cids } => {
                for cid in cids {
                    self.cancel(session, &cid);
                }
                self.fill(session);
            }
            ClientInput::Close { session } => self.on_close(now, session),
            ClientInput::Connected { peer, says_have } => self.on_connected(&peer, says_have),
            ClientInput::Received { peer, incoming } => self.on_received(now, &peer, incoming),
            ClientInput::Sent { peer } => self.on_sent(&peer),
            ClientInput::Gone { peer } => self.on_gone(now, &peer, None),
            ClientInput::Failed { peer, reason } => self.on_gone(now, &peer, Some(reason)),
            ClientInput::Faulty { peer, fault } => self.drop_peer(now, &peer, fault),
            ClientInput::Timeout => self.on_timeout(now),
        }
        self.schedule(now);
        self.flush();
    }

    /// Returns the next thing to do.
    pub fn poll_effect(&mut self) -> Option<ClientEffect> {
        self.effects.pop_front()
    }

    /// Returns the number of blocks that are wanted and live.
    pub fn live_wants(&self) -> usize {
        self.wants.len()
    }

    /// Returns the number of peers that something is remembered of.
    pub fn known_peers(&self) -> usize {
        self.peers.len() + self.banned.len()
    }

    fn on_peers(&mut self, now: Duration, session: SessionId, peers: Vec<PeerId>) {
        for peer in peers {
            if let Some((_, fault)) = self.banned.get(&peer).filter(|(until, _)| *until > now) {
                let (fault, sessions) = (fault.clone(), vec![session]);
                self.effects.push_back(ClientEffect::Drop { peer, fault, sessions });
                continue;
            }
            let is_new = self.sessions.entry(session).or_default().peers.insert(peer.clone());
            self.peers.entry(peer).or_default().join(is_new);
        }
        self.sessions.entry(session).or_default();
        self.reopen_session(session);
    }

    fn on_want(&mut self, session: SessionId, cids: Vec<Cid>) {
        for cid in cids {
            if is_sendable(cid.hash()) {
                self.sessions.entry(session).or_default().queue.push_back(cid);
            } else {
                self.effects.push_back(ClientEffect::Lacking { session, cid });
            }
        }
        self.fill(session);
    }

    /// Makes wants of a session live while there is room.
    fn fill(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        while session.live.len() < MAX_LIVE {
            let Some(cid) = session.queue.pop_front() else { return };
            let hash = *cid.hash();
            session.live.insert(hash);
            let order = self.next_order;
            let want = self.wants.entry(hash).or_insert_with(|| Want::new(order));
            self.next_order += u64::from(want.order == order);
            let names = want.names.entry(id).or_default();
            if !names.contains(&cid) {
                names.push(cid);
            }
            want.is_lacking = false;
            self.open.insert((want.order, hash));
        }
    }

    fn on_close(&mut self, now: Duration, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for hash in session.live {
            self.leave(id, &hash);
        }
        for peer in session.peers {
            if let Some(known) = self.peers.get_mut(&peer) {
                known.leave(now);
            }
        }
    }

    fn cancel(&mut self, id: SessionId, cid: &Cid) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.queue.retain(|queued| queued != cid);
        let hash = *cid.hash();
        let Some(names) = self.wants.get_mut(&hash).and_then(|want| want.names.get_mut(&id)) else { return };
        names.retain(|name| name != cid);
        if names.is_empty() {
            session.live.remove(&hash);
            self.leave(id, &hash);
        }
    }

    /// Takes a session off a want; a want without sessions ends.
    fn leave(&mut self, session: SessionId, hash: &Multihash) {
        let Some(want) = self.wants.get_mut(hash) else { return };
        want.names.remove(&session);
        if want.names.is_empty() {
            self.end_want(hash, None);
        }
    }

    /// Ends a want and tells everybody who was asked, the one aside who sent the block.
    fn end_want(&mut self, hash: &Multihash, sender: Option<&PeerId>) -> Option<Want> {
        let want = self.wants.remove(hash)?;
        self.open.remove(&(want.order, *hash));
        self.hungry.remove(&(want.order, *hash));
        for peer in want.at.keys() {
            let Some(known) = self.peers.get_mut(peer) else { continue };
            known.settle(hash);
            if sender != Some(peer) && known.withdraw(&want.cid(hash)) {
                self.touched.insert(peer.clone());
            }
        }
        Some(want)
    }

    fn on_connected(&mut self, peer: &PeerId, says_have: bool) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.connected(says_have);
            self.touched.insert(peer.clone());
            self.reopen_peer(peer);
        }
    }

    fn on_sent(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.is_sending = false;
            self.touched.insert(peer.clone());
        }
    }

    fn on_received(&mut self, now: Duration, peer: &PeerId, incoming: Incoming) {
        let Some(known) = self.peers.get_mut(peer) else {
            // Late answers come to peers that are remembered; from others nothing was ever wanted.
            let count = u32::try_from(incoming.blocks.len()).unwrap_or(u32::MAX).saturating_add(incoming.unverifiable);
            if count > 0 {
                let fault = Fault::Unwanted { count };
                self.effects.push_back(ClientEffect::Drop { peer: peer.clone(), fault, sessions: Vec::new() });
            }
            return;
        };
        known.unwanted = known.unwanted.saturating_add(incoming.unverifiable);
        for block in incoming.blocks {
            self.on_block(now, peer, block);
        }
        for presence in incoming.presences {
            self.on_presence(now, peer, &presence);
        }
        let Some(known) = self.peers.get(peer) else { return };
        if known.unwanted > MAX_UNWANTED {
            let fault = Fault::Unwanted { count: known.unwanted };
            self.drop_peer(now, peer, fault);
        } else if known.broken_words > MAX_BROKEN_WORDS {
            let fault = Fault::Fickle { count: known.broken_words };
            self.drop_peer(now, peer, fault);
        }
    }

    fn on_block(&mut self, now: Duration, peer: &PeerId, block: Block) {
        let hash = *block.cid().hash();
        let Some(known) = self.peers.get_mut(peer) else { return };
        if !known.may_send(&hash) {
            known.unwanted = known.unwanted.saturating_add(1);
            return;
        }
        known.delivered(now, &hash);
        let Some(want) = self.end_want(&hash, Some(peer)) else { return };
        let mut sessions = Vec::new();
        for (session, names) in &want.names {
            for cid in names {
                let block = block.named(*cid).expect("the want is found by the hash of its names");
                self.effects.push_back(ClientEffect::Deliver { session: *session, block, from: peer.clone() });
            }
            if let Some(state) = self.sessions.get_mut(session) {
                state.live.remove(&hash);
            }
            sessions.push(*session);
        }
        for (other, at) in &want.at {
            if other != peer && matches!(at, At::Asked { late: true, .. }) {
                self.count_beaten(now, other);
            }
        }
        for session in sessions {
            self.fill(session);
        }
    }

    fn on_presence(&mut self, now: Duration, peer: &PeerId, presence: &Presence) {
        let hash = *presence.cid.hash();
        let Some(known) = self.peers.get_mut(peer) else { return };
        let Some(want) = self.wants.get_mut(&hash) else { return };
        // What was not asked is no answer.
        let Some(at) = want.at.get(peer).copied() else { return };
        known.answered(now, &hash);
        let at_now = match (at, presence.is_here) {
            (At::Asked { .. }, true) => return,
            (_, true) => {
                known.forget_registration(&hash);
                At::Has
            }
            (at, false) => {
                known.lacks(&hash, matches!(at, At::Asked { said_has: true, .. }));
                At::Lacks
            }
        };
        want.at.insert(peer.clone(), at_now);
        if at_now == At::Lacks && known.trim_registrations(&want.cid(&hash)) {
            self.touched.insert(peer.clone());
        }
        self.open.insert((want.order, hash));
    }

    /// A block that a peer was asked for long ago came from somebody else.
    fn count_beaten(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if let Some(fault) = known.beaten() {
            self.drop_peer(now, peer, fault);
        }
    }

    fn on_gone(&mut self, now: Duration, peer: &PeerId, failure: Option<String>) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        let fault = known.gone(now, failure);
        self.forget_at(peer);
        match fault {
            Some(fault) => self.drop_peer(now, peer, fault),
            None => self.reopen_peer(peer),
        }
    }

    /// Ends the service of a peer: what was asked of it is asked of others.
    fn drop_peer(&mut self, now: Duration, peer: &PeerId, fault: Fault) {
        let sessions: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| session.peers.contains(peer)).map(|(id, _)| *id).collect();
        if let Some(known) = self.peers.get_mut(peer) {
            if known.dropped.is_some() {
                return;
            }
            known.dropped(fault.clone());
        }
        self.touched.remove(peer);
        if fault.is_lie() {
            while self.banned.len() >= MAX_BANNED {
                let first = self.banned.iter().min_by_key(|(_, (until, _))| *until).map(|(peer, _)| peer.clone());
                self.banned.remove(&first.expect("there are some"));
            }
            self.banned.insert(peer.clone(), (now + BAN, fault.clone()));
        }
        self.forget_at(peer);
        self.reopen_peer(peer);
        self.effects.push_back(ClientEffect::Drop { peer: peer.clone(), fault, sessions });
    }

    /// Forgets what is known of blocks at a peer.
    fn forget_at(&mut self, peer: &PeerId) {
        for (hash, want) in &mut self.wants {
            if want.at.remove(peer).is_some() {
                self.open.insert((want.order, *hash));
            }
        }
    }

    /// Decides anew on every want of a session.
    fn reopen_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        for hash in &session.live {
            if let Some(want) = self.wants.get_mut(hash) {
                want.is_lacking = false;
                self.open.insert((want.order, *hash));
            }
        }
    }

    /// Decides anew on every want that a peer could serve.
    fn reopen_peer(&mut self, peer: &PeerId) {
        let ids: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| session.peers.contains(peer)).map(|(id, _)| *id).collect();
        for id in ids {
            self.reopen_session(id);
        }
    }

    /// Hands over what there is to send to peers that have taken in the last message.
    fn flush(&mut self) {
        for peer in std::mem::take(&mut self.touched) {
            if let Some(message) = self.peers.get_mut(&peer).and_then(Peer::next_message) {
                self.effects.push_back(ClientEffect::Send { peer, message });
            }
        }
    }
}

impl Want {
    fn new(order: u64) -> Want {
        Want { names: BTreeMap::new(), at: BTreeMap::new(), order, is_lacking: false }
    }

    /// Returns the CID to ask by: the first name, or a raw one where there is none any more.
    fn cid(&self, hash: &Multihash) -> Cid {
        let named = self.names.values().flatten().next().copied();
        named.unwrap_or_else(|| Cid::new_v1(iptl_dag::Codec::Raw.number(), *hash))
    }

    /// Makes an entry for this want.
    fn entry(&self, hash: &Multihash, ask: Ask) -> Entry {
        // Older wants come first.
        let priority = i32::MAX.saturating_sub(i32::try_from(self.order).unwrap_or(i32::MAX - 1));
        Entry { cid: self.cid(hash), priority, ask, send_dont_have: ask != Ask::Cancel }
    }
}
