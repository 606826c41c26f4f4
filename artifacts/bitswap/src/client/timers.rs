//! What is due.

use std::time::Duration;

use iptl_dag::{Multihash, PeerId};

use super::{At, Client};
use crate::Ask;

/// A block that did not come within this is asked of another peer as well, where there is one.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// A peer that owes blocks and says nothing for so long is taken for silent: a block of 2 MiB takes less at 1 Mbit/s.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// An ask without an answer for so long is sent once more.
const AGAIN: Duration = Duration::from_secs(20);

/// A question without an answer for so long is given up.
const QUESTION_PATIENCE: Duration = Duration::from_secs(5);

/// Peers that lack a block are asked for it again after this.
pub(super) const ROUND: Duration = Duration::from_secs(10);

/// Peers without a session are remembered for so long: late answers are no lies.
const MEMORY: Duration = Duration::from_secs(60);

impl Client {
    /// Returns when [`ClientInput::Timeout`](super::ClientInput::Timeout) is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let peers = self.peers.values().flat_map(|peer| {
            [
                peer.owes_since().map(|since| since + SILENCE),
                peer.oldest_ask().map(|(since, _)| since + LATE),
                peer.oldest_late().map(|(since, _)| since + AGAIN),
                peer.oldest_question().map(|(since, _)| since + QUESTION_PATIENCE),
                peer.retry_at,
                peer.is_idle().then(|| peer.idle_since + MEMORY),
            ]
        });
        let bans = self.banned.values().map(|(until, _)| *until).min();
        peers.flatten().chain(self.next_round).chain(bans).min()
    }

    pub(super) fn on_timeout(&mut self, now: Duration) {
        self.peers.retain(|_, peer| !peer.is_idle() || now < peer.idle_since + MEMORY);
        self.banned.retain(|_, (until, _)| *until > now);
        let peers: Vec<PeerId> = self.peers.keys().cloned().collect();
        for peer in &peers {
            if let Some(known) = self.peers.get_mut(peer) {
                known.forget_done();
            }
            self.pass_questions(now, peer);
            self.pass_late(now, peer);
            self.pass_silent(now, peer);
            self.ask_again(now, peer);
            self.retry(now, peer);
        }
        if self.next_round.is_some_and(|at| at <= now) {
            self.next_round = None;
            self.begin_round();
        }
    }

    /// Gives questions up that nobody answered.
    fn pass_questions(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        let heard = known.heard;
        let mut is_silent = false;
        while let Some((since, hash)) = known.oldest_question().filter(|(since, _)| now >= *since + QUESTION_PATIENCE) {
            known.pass_question();
            is_silent |= heard <= since;
            reopen(&mut self.wants, &mut self.open, peer, &hash, |at| match at {
                At::AskedHave => At::Mute,
                other => other,
            });
        }
        if let Some(fault) = is_silent.then(|| known.silent()).flatten() {
            self.drop_peer(now, peer, fault);
        }
    }

    /// Lets what is late be asked of others as well.
    fn pass_late(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        while let Some((_, hash)) = known.oldest_ask().filter(|(since, _)| now >= *since + LATE) {
            known.pass_ask();
            reopen(&mut self.wants, &mut self.open, peer, &hash, |at| match at {
                At::Asked { said_has, .. } => At::Asked { late: true, said_has },
                other => other,
            });
        }
    }

    /// Takes back what a silent peer was asked for.
    fn pass_silent(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if known.owes_since().is_none_or(|since| now < since + SILENCE) {
            return;
        }
        let fault = known.silent();
        for hash in known.take_asked() {
            reopen(&mut self.wants, &mut self.open, peer, &hash, |_| At::Mute);
        }
        if let Some(fault) = fault {
            self.drop_peer(now, peer, fault);
        }
    }

    /// Sends asks once more that a peer did not answer though it is not silent.
    fn ask_again(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        while let Some((_, hash)) = known.oldest_late().filter(|(since, _)| now >= *since + AGAIN) {
            let Some(want) = self.wants.get(&hash) else { break };
            known.ask_again(now, hash, want.entry(&hash, Ask::Block));
            self.touched.insert(peer.clone());
        }
    }

    fn retry(&mut self, now: Duration, peer: &PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if known.retry_at.is_some_and(|at| at <= now) {
            known.retry_at = None;
            self.touched.insert(peer.clone());
            self.reopen_peer(peer);
        }
    }

    /// Forgets who lacks what nobody is asked for, so that everybody is asked again.
    fn begin_round(&mut self) {
        for (hash, want) in &mut self.wants {
            if want.at.values().any(|at| matches!(at, At::Asked { .. })) {
                continue;
            }
            want.at.retain(|_, at| !matches!(at, At::Lacks | At::Mute));
            want.is_lacking = false;
            self.open.insert((want.order, *hash));
        }
    }
}

/// Changes what is known of a block at a peer, and decides on its want anew.
fn reopen(
    wants: &mut std::collections::BTreeMap<Multihash, super::Want>,
    open: &mut std::collections::BTreeSet<(u64, Multihash)>,
    peer: &PeerId,
    hash: &Multihash,
    change: impl Fn(At) -> At,
) {
    let Some(want) = wants.get_mut(hash) else { return };
    let Some(at) = want.at.get_mut(peer) else { return };
    *at = change(*at);
    open.insert((want.order, *hash));
}
