//! Followers of who leads: the streams on which they follow, and what is held back until they have it.
//!
//! Nothing follows from a fact before every follower *in contact* has it on its disk. One is in contact once it has
//! answered a beat, until its stream ends or it says nothing for a lease. Before it is waited for no longer it is asked
//! who leads: where the answer is somebody else, what was held back is never done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::Epoch;
use iptl_scheduler::Effect;
use iptl_wire::Timestamp;
use iptl_wire::control::FollowerRow;
use iptl_wire::session::ToLablet;
use iptl_wire::takeover::{FOLLOW_PROTOCOL, MAX_FOLLOW_SIZE, ToFollower, ToLeader};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::candidacy::{Note, seat};
use super::driver::{Parts, Promised};
use super::replicate::Newcomer;
use super::{Command, Number};
use crate::clock;
use crate::framed;
use crate::gate::{Gate, Place};
use crate::links::Stream;

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 16;

/// Streams of one peer at a time: one that follows, one that is about to, and questions.
const MAX_STREAMS_PER_PEER: usize = 8;

/// Longest wait for the first message.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that wait to be written to a follower; one that takes them slower is cut off and comes back. All facts of
/// the executions that go on are among them when it comes.
const OUT_QUEUE: usize = 262_144;

/// Silence of a follower after which it is not in contact: a lease.
const SILENCE: Duration = Duration::from_secs(5);

/// Longest wait for an answer to who leads.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// Accepts streams of other orchestrators until the node ends.
pub(super) async fn accept(
    parts: Arc<Parts>,
    driver: watch::Receiver<Option<mpsc::Sender<Command>>>,
    notes: mpsc::Sender<Note>,
) {
    let mut incoming = parts.links.accept(FOLLOW_PROTOCOL, ACCEPT_QUEUE).await;
    let gate = Gate::new(MAX_STREAMS_PER_PEER);
    let mut number = 0;
    while let Some((peer, stream)) = incoming.recv().await {
        let Some(place) = gate.enter(&peer) else {
            tracing::debug!(%peer, "too many follow streams of one peer");
            continue;
        };
        number += 1;
        tokio::spawn(serve(parts.clone(), driver.clone(), notes.clone(), peer, stream, place, number));
    }
}

async fn serve(
    parts: Arc<Parts>,
    driver: watch::Receiver<Option<mpsc::Sender<Command>>>,
    notes: mpsc::Sender<Note>,
    peer: PeerId,
    stream: Stream,
    place: Place,
    number: Number,
) {
    let _place = place;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let first = tokio::time::timeout(FIRST_TIMEOUT, framed::expect::<ToLeader>(&mut reader, MAX_FOLLOW_SIZE)).await;
    let (seated, known, has) = match first {
        Ok(Ok(ToLeader::Follow { seat, known, heads, over })) => (seat, known, Some((heads, over))),
        Ok(Ok(ToLeader::Ask { seat, known })) => (seat, known, None),
        Ok(Ok(ToLeader::Has { .. }) | Err(_)) | Err(_) => {
            tracing::debug!(%peer, "a follow stream says not who it is");
            return;
        }
    };
    let lab = &parts.certificate.body.lab;
    let checked = iptl_trust::check_certificate(&seated.certificate, lab, &peer, clock::wall());
    if let Err(error) = checked.map_err(|e| e.to_string()).and_then(|()| match parts.members.is_revoked(&peer) {
        true => Err("its membership was revoked".to_owned()),
        false => Ok(()),
    }) {
        tracing::warn!(%peer, error, "refused a follow stream");
        return;
    }
    parts.members.learn_seat(seated);
    parts.members.learn_seat(seat(&parts).await);
    parts.members.learn_orchestrators(known);
    let leads = driver.borrow().clone();
    let all = parts.members.orchestrators();
    if let (None, Some((heads, _))) = (&leads, &has) {
        let heads = heads.iter().map(|(execution, seq, _)| (*execution, *seq)).collect();
        // It comes again where nobody takes this in now.
        let _busy = notes.try_send(Note::Seeks { from: peer.clone(), heads });
    }
    let (Some(driver), Some((heads, over))) = (leads.clone(), has) else {
        let answer = match leads {
            Some(_) => ToFollower::Orchestrators(all),
            None => ToFollower::Elsewhere(all),
        };
        let _gone = framed::write(&mut writer, &answer).await;
        let _gone = writer.shutdown().await;
        return;
    };
    let (outbox, queue) = mpsc::channel(OUT_QUEUE);
    if framed::write(&mut writer, &ToFollower::Orchestrators(all)).await.is_err() {
        return;
    }
    // It ends by itself once the driver has let go of the outbox and all was written.
    tokio::spawn(framed::write_queue(writer, queue, |_| {}));
    let newcomer = Newcomer { peer: peer.clone(), number, heads, over, outbox };
    if driver.send(Command::Followed { newcomer }).await.is_err() {
        return;
    }
    while let Ok(Some(ToLeader::Has { beat, missing })) = framed::read(&mut reader, MAX_FOLLOW_SIZE).await {
        if driver.send(Command::Has { peer: peer.clone(), number, beat, missing }).await.is_err() {
            return;
        }
    }
    let _ended = driver.send(Command::Unfollowed { peer, number }).await;
}

/// Returns the other orchestrators that this one knows.
pub(super) fn others(parts: &Parts) -> Vec<PeerId> {
    parts.members.ranking().into_iter().filter(|peer| peer != parts.links.peer()).collect()
}

/// Asks another orchestrator who leads; what it says is known afterwards. Returns whether it answered. Cancel safe.
pub(super) async fn ask_who_leads(parts: &Parts, peer: &PeerId) -> bool {
    let asking = async {
        let addrs = parts.members.addrs_of(peer);
        let mut stream = parts.links.open(peer, &addrs, FOLLOW_PROTOCOL).await.map_err(|e| e.to_string())?;
        let ask = ToLeader::Ask { seat: seat(parts).await, known: parts.members.orchestrators() };
        framed::write(&mut stream, &ask).await.map_err(|e| e.to_string())?;
        match framed::expect(&mut stream, MAX_FOLLOW_SIZE).await.map_err(|e| e.to_string())? {
            ToFollower::Orchestrators(known) | ToFollower::Elsewhere(known) => {
                parts.members.learn_orchestrators(known);
                Ok(())
            }
            _ => Err("it answered something else".to_owned()),
        }
    };
    match tokio::time::timeout(ASK_PATIENCE, asking).await {
        Ok(Ok(())) => return true,
        Ok(Err(reason)) => tracing::debug!(%peer, reason, "another orchestrator was not asked who leads"),
        Err(_) => tracing::debug!(%peer, "another orchestrator did not say who leads"),
    }
    false
}

/// What waits until the followers have the facts before it.
pub(super) struct Batch {
    /// Beat that followers must have.
    beat: u64,
    /// Answers to those who asked.
    pub(super) promised: Vec<Promised>,
    /// What the core wants done.
    pub(super) effects: Vec<Effect>,
}

struct Follower {
    number: Number,
    outbox: mpsc::Sender<ToFollower>,
    /// Last beat that it has; none before it is in contact.
    has: Option<u64>,
    missing: u32,
    heard: Timestamp,
}

/// The followers of who leads.
pub(super) struct Followers {
    parts: Arc<Parts>,
    driver: mpsc::Sender<Command>,
    term: Option<Epoch>,
    streams: BTreeMap<PeerId, Follower>,
    /// They were in contact a moment ago, and are asked who leads.
    doubted: BTreeSet<PeerId>,
    /// They are asked who leads, whether or not anything waits for it.
    asked: BTreeSet<PeerId>,
    beat: u64,
    held: VecDeque<Batch>,
}

impl Followers {
    pub(super) fn new(parts: Arc<Parts>, driver: mpsc::Sender<Command>, term: Option<Epoch>) -> Followers {
        Followers {
            parts,
            driver,
            term,
            streams: BTreeMap::new(),
            doubted: BTreeSet::new(),
            asked: BTreeSet::new(),
            beat: 0,
            held: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether one of them is in contact.
    pub(super) fn in_contact(&self) -> bool {
        self.streams.values().any(|follower| follower.has.is_some())
    }

    /// Whether another orchestrator was heard to lead in a later term: then nothing is done any more.
    pub(super) fn is_outdone(&self) -> bool {
        let claimed = self.parts.members.claim().map(|claim| claim.body.term);
        claimed > self.term
    }

    /// Takes a follower in; everything that it lacks is said before anything else.
    pub(super) fn admit(&mut self, peer: PeerId, number: Number, outbox: mpsc::Sender<ToFollower>) {
        tracing::info!(follower = %peer, "another orchestrator follows");
        let follower = Follower { number, outbox, has: None, missing: 0, heard: clock::now() };
        if let Some(before) = self.streams.insert(peer, follower) {
            drop(before.outbox);
        }
    }

    /// Says something to one follower.
    pub(super) fn say(&mut self, peer: &PeerId, message: ToFollower) {
        let Some(follower) = self.streams.get(peer) else { return };
        if follower.outbox.try_send(message).is_err() {
            tracing::warn!(follower = %peer, "an orchestrator takes what it is told too slowly and is cut off");
            self.cut(&peer.clone());
        }
    }

    /// Says something to all of them.
    pub(super) fn say_all(&mut self, message: &ToFollower) {
        for peer in self.streams.keys().cloned().collect::<Vec<_>>() {
            self.say(&peer, message.clone());
        }
    }

    /// Says to all that everything before was said.
    pub(super) fn beat(&mut self, lablets: Option<Vec<PeerId>>) {
        if !self.streams.is_empty() {
            self.beat += 1;
            let beat = ToFollower::Beat { beat: self.beat, term: self.term.clone(), lablets };
            self.say_all(&beat);
        }
    }

    /// Holds back what followers must have heard of before.
    pub(super) fn hold(&mut self, promised: Vec<Promised>, effects: Vec<Effect>) {
        if !promised.is_empty() || !effects.is_empty() {
            self.held.push_back(Batch { beat: self.beat, promised, effects });
        }
    }

    /// Takes the renewals of leases out of what is held: they follow from no fact, and lablets live by them.
    pub(super) fn take_renewals(&mut self) -> Vec<(PeerId, ToLablet)> {
        let mut renewals = Vec::new();
        for batch in &mut self.held {
            batch.effects.retain(|effect| match effect {
                Effect::Send { to, message: message @ ToLablet::Lease(_) } => {
                    renewals.push((to.clone(), message.clone()));
                    false
                }
                _ => true,
            });
        }
        renewals
    }

    /// Returns what may be done next.
    pub(super) fn next_ready(&mut self) -> Option<Batch> {
        if !self.doubted.is_empty() || self.is_outdone() {
            return None;
        }
        let acked = self.streams.values().filter_map(|follower| follower.has).min().unwrap_or(u64::MAX);
        let is_ready = self.held.front().is_some_and(|batch| batch.beat <= acked);
        if is_ready { self.held.pop_front() } else { None }
    }

    /// A follower has everything up to a beat.
    pub(super) fn has(&mut self, peer: &PeerId, number: Number, beat: u64, missing: u32) {
        let said = self.beat;
        if let Some(follower) = self.streams.get_mut(peer).filter(|follower| follower.number == number) {
            follower.has = follower.has.max(Some(beat.min(said)));
            follower.missing = missing;
            follower.heard = clock::now();
        }
    }

    /// The stream of a follower ended.
    pub(super) fn gone(&mut self, peer: &PeerId, number: Number) {
        if self.streams.get(peer).is_some_and(|follower| follower.number == number) {
            self.cut(peer);
        }
    }

    /// Cuts off those who are silent; asks those who do not follow who leads, where it is time.
    pub(super) fn look(&mut self, asks: bool) {
        let now = clock::now();
        let silent = |f: &Follower| f.has.is_none_or(|has| has < self.beat) && now.since(f.heard) >= SILENCE;
        let silent: Vec<_> = self.streams.iter().filter(|(_, f)| silent(f)).map(|(peer, _)| peer.clone()).collect();
        for peer in silent {
            tracing::warn!(follower = %peer, "an orchestrator that follows is silent, and is not waited for");
            self.cut(&peer);
        }
        for peer in others(&self.parts).into_iter().filter(|_| asks) {
            if !self.streams.contains_key(&peer) {
                self.ask(peer);
            }
        }
    }

    /// One that was asked who leads has answered, or does not.
    pub(super) fn answered(&mut self, peer: &PeerId) {
        self.asked.remove(peer);
        self.doubted.remove(peer);
    }

    /// Returns the follower that is to lead next: the one that is named, or the first in rank; in contact.
    pub(super) fn heir(&self, named: Option<&PeerId>) -> Option<PeerId> {
        let ranking = self.parts.members.ranking();
        let in_contact = |peer: &PeerId| self.streams.get(peer).is_some_and(|follower| follower.has.is_some());
        let mut ready = ranking.into_iter().filter(in_contact);
        ready.find(|peer| named.is_none_or(|named| named == peer))
    }

    /// Whether a follower has fetched all that facts name.
    pub(super) fn lacks_nothing(&self, peer: &PeerId) -> bool {
        self.streams.get(peer).is_some_and(|follower| follower.has.is_some() && follower.missing == 0)
    }

    /// Whether a follower has everything that was said.
    pub(super) fn has_all(&self, peer: &PeerId) -> bool {
        self.held.is_empty() && self.streams.get(peer).is_some_and(|follower| follower.has == Some(self.beat))
    }

    /// Says how far the followers are.
    pub(super) fn rows(&self) -> Vec<FollowerRow> {
        let known = others(&self.parts).into_iter().map(|peer| match self.streams.get(&peer) {
            Some(follower) => FollowerRow {
                in_contact: follower.has.is_some(),
                behind: self.beat.saturating_sub(follower.has.unwrap_or(0)),
                missing: follower.missing,
                peer,
            },
            None => FollowerRow { peer, in_contact: false, behind: self.beat, missing: 0 },
        });
        known.collect()
    }

    fn cut(&mut self, peer: &PeerId) {
        if let Some(follower) = self.streams.remove(peer)
            && follower.has.is_some()
        {
            self.doubted.insert(peer.clone());
            self.ask(peer.clone());
        }
    }

    fn ask(&mut self, peer: PeerId) {
        if self.asked.insert(peer.clone()) {
            let (parts, driver) = (self.parts.clone(), self.driver.clone());
            tokio::spawn(async move {
                ask_who_leads(&parts, &peer).await;
                let _ended = driver.send(Command::Answered { peer }).await;
            });
        }
    }
}
