//! Who is asked for what.
//!
//! For each want, in the order of age:
//!
//! 1. a peer that said it has the block is asked for it: the one with the most room;
//! 2. else one that has served well and of which nothing is known yet is asked for the bytes at once, which saves a
//!    round trip where it has them and costs one where it has not;
//! 3. else, where a single peer is left, that one;
//! 4. else several peers are asked whether they have it;
//! 5. and where none is left to ask and none owes an answer, the sessions are told that the block is lacking.
//!
//! A want that was asked for and is late is decided on once more, for another peer, while the first may still answer.

use std::time::Duration;

use iptl_dag::{Multihash, PeerId};

use super::{At, Client, ClientEffect};
use crate::Ask;

/// Peers asked at a time whether they have a block.
const MAX_ASKED_HAVE: usize = 8;

/// What is done about a want.
enum Decision {
    /// Ask this peer for the block.
    Block(PeerId),
    /// Ask these peers whether they have it.
    Have(Vec<PeerId>),
    /// Wait until a peer has room.
    Hungry,
    /// Wait for an answer.
    Wait,
    /// Nobody has it.
    Lacking,
}

impl Client {
    /// Decides on what is open, and on what waits for room.
    pub(super) fn schedule(&mut self, now: Duration) {
        while let Some((_, hash)) = self.open.pop_first() {
            self.decide(now, hash);
        }
        let mut waiting = match self.has_room() {
            true => std::mem::take(&mut self.hungry),
            false => return,
        };
        while let Some((order, hash)) = waiting.pop_first() {
            self.decide(now, hash);
            if self.hungry.contains(&(order, hash)) && !self.has_room() {
                break;
            }
        }
        self.hungry.append(&mut waiting);
    }

    fn has_room(&self) -> bool {
        self.peers
            .values()
            .any(|peer| !peer.is_idle() && peer.is_usable() && peer.retry_at.is_none() && peer.load().is_some())
    }

    fn decide(&mut self, now: Duration, hash: Multihash) {
        let decision = self.decision(&hash);
        let Some(want) = self.wants.get_mut(&hash) else { return };
        match decision {
            Decision::Block(peer) => {
                let said_has = want.at.get(&peer) == Some(&At::Has);
                want.at.insert(peer.clone(), At::Asked { late: false, said_has });
                let entry = want.entry(&hash, Ask::Block);
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.ask_block(now, hash, entry);
                }
                self.touched.insert(peer);
            }
            Decision::Have(peers) => {
                let entry = want.entry(&hash, Ask::Have);
                for peer in peers {
                    want.at.insert(peer.clone(), At::AskedHave);
                    if let Some(known) = self.peers.get_mut(&peer) {
                        known.ask_have(now, hash, entry.clone());
                    }
                    self.touched.insert(peer);
                }
            }
            Decision::Hungry => drop(self.hungry.insert((want.order, hash))),
            Decision::Wait => {}
            Decision::Lacking => {
                self.next_round = self.next_round.or(Some(now + super::timers::ROUND));
                if !std::mem::replace(&mut want.is_lacking, true) {
                    for (session, names) in &want.names {
                        self.effects
                            .extend(names.iter().map(|cid| ClientEffect::Lacking { session: *session, cid: *cid }));
                    }
                }
            }
        }
    }

    fn decision(&self, hash: &Multihash) -> Decision {
        let Some(want) = self.wants.get(hash) else { return Decision::Wait };
        let asked = want.at.values().filter(|at| matches!(at, At::Asked { .. })).count();
        let on_time = want.at.values().filter(|at| matches!(at, At::Asked { late: false, .. })).count();
        if on_time > 0 {
            return Decision::Wait;
        }
        let mut view = View { owed: asked > 0, ..View::default() };
        for session in want.names.keys() {
            let Some(session) = self.sessions.get(session) else { continue };
            for id in &session.peers {
                let Some(peer) = self.peers.get(id).filter(|peer| peer.is_usable()) else { continue };
                if peer.retry_at.is_some() {
                    // It is tried again soon.
                    view.owed = true;
                    continue;
                }
                match want.at.get(id) {
                    Some(At::Asked { .. } | At::Lacks | At::Mute) => {}
                    Some(At::AskedHave) => view.questions += 1,
                    Some(At::Has) => view.has.offer(id, peer.load()),
                    None if peer.is_productive() => view.productive.offer(id, peer.load()),
                    None if view.unknown.contains(&id) => {}
                    None => view.unknown.push(id),
                }
            }
        }
        self.choose(&view)
    }

    fn choose(&self, view: &View<'_>) -> Decision {
        for good in [&view.has, &view.productive] {
            if let Some((_, peer)) = good.best {
                return Decision::Block(peer.clone());
            }
            if good.is_full {
                return Decision::Hungry;
            }
        }
        let load = |peer: &PeerId| self.peers.get(peer).and_then(super::Peer::load);
        match view.unknown.as_slice() {
            [] if view.owed || view.questions > 0 => Decision::Wait,
            [] => Decision::Lacking,
            [only] if view.questions == 0 && !view.owed => match load(only) {
                Some(_) => Decision::Block((*only).clone()),
                None => Decision::Hungry,
            },
            unknown => {
                let free = MAX_ASKED_HAVE.saturating_sub(view.questions);
                let able = |peer: &&&PeerId| self.peers.get(**peer).is_some_and(super::Peer::has_room_for_question);
                let peers: Vec<PeerId> = unknown.iter().filter(able).take(free).map(|peer| (*peer).clone()).collect();
                match peers.is_empty() {
                    false => Decision::Have(peers),
                    true if view.questions > 0 || view.owed => Decision::Wait,
                    true => Decision::Hungry,
                }
            }
        }
    }
}

/// What is known of the peers that could serve a want.
#[derive(Default)]
struct View<'a> {
    has: Good<'a>,
    productive: Good<'a>,
    /// Nothing is known of these.
    unknown: Vec<&'a PeerId>,
    /// Peers that were asked whether they have it.
    questions: usize,
    /// Somebody may still answer.
    owed: bool,
}

/// Peers that are good for a block.
#[derive(Default)]
struct Good<'a> {
    /// The one with the most room.
    best: Option<(usize, &'a PeerId)>,
    /// There are some without room.
    is_full: bool,
}

impl<'a> Good<'a> {
    fn offer(&mut self, peer: &'a PeerId, load: Option<usize>) {
        match load {
            Some(load) if self.best.is_none_or(|(least, _)| load < least) => self.best = Some((load, peer)),
            Some(_) => {}
            None => self.is_full = true,
        }
    }
}
