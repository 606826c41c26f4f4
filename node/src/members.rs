//! Who is a member of this node's lab, and who is one no more: asked whenever something is for members alone.
//!
//! A member shows its token: on a session, on a control stream, or on a stream of `/iptl/member/1`, which it opens before
//! it asks somebody for blocks. That stream also carries the lab's list of revocations, whose newest version so reaches
//! everybody that speaks with anybody who has it.

mod seats;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use iptl_dag::model::Signed;
use iptl_dag::{PeerId, codec};
use iptl_wire::lab::{
    Introduction, IntroductionAnswer, MAX_MEMBER_SIZE, MEMBER_PROTOCOL, MemberToken, Revocations, Role,
};
use iptl_wire::takeover::{Claim, Orchestrators, Seat};
use iptl_wire::{Timestamp, WallTime};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::clock;
use crate::framed;
use crate::gate::Gate;
use crate::home::{Home, HomeError, Membership};
use crate::links::{LinkError, Links, Stream};
use seats::Seats;

/// Part of the home that holds the newest list of revocations.
const STATE: &str = "revoked.cbor";

/// Part of the home that holds the orchestrators of the lab, where there are several.
const ORCHESTRATORS: &str = "orchestrators.cbor";

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;

/// Streams of one peer at a time: one for each request that it is about to make.
const MAX_STREAMS_PER_PEER: usize = 8;

/// Longest wait for a whole introduction: two messages each way.
const PATIENCE: Duration = Duration::from_secs(5);

/// A peer that was told who we are is told again after so long: it may have been started anew.
const INTRODUCED: Duration = Duration::from_secs(600);

/// A peer that could not be reached is tried again after so long: who fetches does not wait for it each time.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// A peer that lacks what it was asked for is told again, but no sooner: it may have forgotten us.
const AGAIN: Duration = Duration::from_secs(2);

/// The members of the lab, as far as this node knows them. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    inner: Arc<Inner>,
}

type Introduced = BTreeMap<PeerId, (Timestamp, Duration)>;

struct Inner {
    home: Home,
    known: RwLock<Known>,
    /// To whom this node has made itself known, or tried to, when, and for how long that does.
    introduced: Mutex<Introduced>,
    /// Serial of the list of revocations.
    serial: watch::Sender<u64>,
    /// Rises with everything that is learned of orchestrators.
    learned: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    own: Option<Membership>,
    /// Members that have shown a token, and when it lapses. The lab has signed each, so there are no more than it let in.
    shown: BTreeMap<PeerId, WallTime>,
    revocations: Option<Signed<Revocations>>,
    revoked: BTreeMap<PeerId, WallTime>,
    /// The orchestrators of the lab.
    seats: Seats,
}

impl Members {
    /// Reads what the home knows.
    pub fn open(home: &Home) -> Result<Members, HomeError> {
        let members = Members {
            inner: Arc::new(Inner {
                home: home.clone(),
                known: RwLock::default(),
                introduced: Mutex::default(),
                serial: watch::Sender::new(0),
                learned: watch::Sender::new(0),
            }),
        };
        members.set_own(home.membership()?);
        if let Some(list) = home.read::<Signed<Revocations>>(STATE)? {
            // One of a lab that was left means nothing any more.
            let _other_lab = members.take(list);
        }
        if let Some(known) = home.read::<Orchestrators>(ORCHESTRATORS)? {
            members.take_orchestrators(known);
        }
        Ok(members)
    }

    /// Says of which lab this node is a member.
    pub fn set_own(&self, own: Option<Membership>) {
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        let same_lab = known.own.as_ref().map(|own| own.lab().clone()) == own.as_ref().map(|own| own.lab().clone());
        if !same_lab {
            *known = Known::default();
            self.inner.serial.send_replace(0);
        }
        known.own = own;
        drop(known);
        self.introduced().clear();
    }

    /// Says whether what this node keeps is for members alone, until it is shared.
    pub fn is_private(&self) -> bool {
        self.read().own.as_ref().is_some_and(|own| own.certificate.body.private)
    }

    /// Returns the lab of which this node is a member.
    pub fn lab(&self) -> Option<PeerId> {
        self.read().own.as_ref().map(|own| own.lab().clone())
    }

    /// Returns who leads the lab as far as this node knows, with its addresses.
    pub fn leader(&self) -> Option<(PeerId, Vec<String>)> {
        self.candidates().into_iter().next()
    }

    /// Returns the lab's orchestrators with their addresses: first who leads, then whom to ask when that one is gone.
    pub fn candidates(&self) -> Vec<(PeerId, Vec<String>)> {
        let known = self.read();
        let Some(own) = &known.own else { return Vec::new() };
        let leader = known.seats.leader().unwrap_or(own.orchestrator()).clone();
        let mut all: Vec<_> = known.seats.iter().map(|(peer, seat)| (peer.clone(), seat.addrs.clone())).collect();
        if known.seats.get(own.orchestrator()).is_none() {
            all.push((own.orchestrator().clone(), Vec::new()));
        }
        for (peer, addrs) in &mut all {
            // What it was told when it joined is a last resort.
            addrs.extend(own.addrs.iter().filter(|_| peer == own.orchestrator()).cloned());
            addrs.dedup();
        }
        let now = clock::wall();
        all.retain(|(peer, _)| !known.is_revoked(peer, now));
        all.sort_by_key(|(peer, _)| *peer != leader);
        all
    }

    /// Returns the addresses of an orchestrator, as far as they are known.
    pub fn addrs_of(&self, orchestrator: &PeerId) -> Vec<String> {
        self.candidates().into_iter().find(|(peer, _)| peer == orchestrator).map(|(_, addrs)| addrs).unwrap_or_default()
    }

    /// Returns the claim of the highest term that was heard of.
    pub fn claim(&self) -> Option<Signed<Claim>> {
        self.read().seats.claim().cloned()
    }

    /// Returns all that is known of the lab's orchestrators, to be passed on; nothing where there is only one.
    pub fn orchestrators(&self) -> Orchestrators {
        self.read().seats.all()
    }

    /// Returns the orchestrators in the order of their certificates.
    pub fn ranking(&self) -> Vec<PeerId> {
        let (known, now) = (self.read(), clock::wall());
        known.seats.ranking().into_iter().filter(|peer| !known.is_revoked(peer, now)).collect()
    }

    /// Returns who may have written a log of this lab: every orchestrator that was ever heard of.
    pub fn writers(&self) -> Vec<PeerId> {
        let known = self.read();
        let first = known.own.iter().map(|own| own.orchestrator().clone());
        first.chain(known.seats.iter().map(|(peer, _)| peer.clone())).collect()
    }

    /// Says whether a peer is an orchestrator of this node's lab.
    pub fn is_orchestrator(&self, peer: &PeerId) -> bool {
        let known = self.read();
        let now = clock::wall();
        let Some(own) = &known.own else { return false };
        let first = own.orchestrator() == peer && now < own.certificate.body.expires;
        let other = known.seats.get(peer).is_some_and(|seat| now < seat.certificate.body.expires);
        (first || other) && !known.is_revoked(peer, now)
    }

    /// Takes in what somebody says of the lab's orchestrators, as far as the lab's signatures hold.
    pub fn learn_orchestrators(&self, said: Orchestrators) {
        if !said.is_empty() && self.take_orchestrators(said) {
            let known = self.orchestrators();
            if let Err(error) = self.inner.home.write(ORCHESTRATORS, &codec::encode(&known)) {
                tracing::error!(%error, "what is known of orchestrators is not written down");
            }
            self.inner.learned.send_modify(|n| *n += 1);
        }
    }

    /// Takes in where an orchestrator is that was met.
    pub fn learn_seat(&self, seat: Seat) {
        self.learn_orchestrators(Orchestrators { claim: None, seats: vec![seat] });
    }

    /// Returns what changes whenever something is learned of orchestrators.
    pub fn learned(&self) -> watch::Receiver<u64> {
        self.inner.learned.subscribe()
    }

    fn take_orchestrators(&self, said: Orchestrators) -> bool {
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(lab) = known.own.as_ref().map(|own| own.lab().clone()) else { return false };
        known.seats.learn(&lab, said, clock::wall())
    }

    /// Says whether a peer is a member of this node's lab.
    pub fn is_member(&self, peer: &PeerId) -> bool {
        let known = self.read();
        let Some(own) = &known.own else { return false };
        let now = clock::wall();
        if known.is_revoked(peer, now) {
            return false;
        }
        let orchestrates = own.orchestrator() == peer && now < own.certificate.body.expires;
        let seated = known.seats.get(peer).is_some_and(|seat| now < seat.certificate.body.expires);
        orchestrates || seated || known.shown.get(peer).is_some_and(|until| now < *until)
    }

    /// Says whether a peer was a member and is one no more.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.read().is_revoked(peer, clock::wall())
    }

    /// Takes in the token that a peer shows, and returns its role.
    pub fn admit(&self, peer: &PeerId, token: &Signed<MemberToken>) -> Result<Role, String> {
        let now = clock::wall();
        let role = {
            let known = self.read();
            let own = known.own.as_ref().ok_or("this node is in no lab")?;
            let role = iptl_trust::check_token(token, own.lab(), peer, now).map_err(|e| e.to_string())?;
            if known.is_revoked(peer, now) {
                return Err("the membership was revoked".to_owned());
            }
            role
        };
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        known.shown.retain(|_, until| now < *until);
        known.shown.insert(peer.clone(), token.body.expires);
        Ok(role)
    }

    /// Takes in a list of revocations that somebody showed; says whether it is newer than the one that was known.
    pub fn learn(&self, list: &Signed<Revocations>) -> Result<bool, String> {
        let is_new = self.take(list.clone())?;
        if is_new {
            self.inner.home.write(STATE, &codec::encode(list)).map_err(|e| e.to_string())?;
            tracing::info!(serial = list.body.serial, revoked = list.body.revoked.len(), "a newer list of revocations");
        }
        Ok(is_new)
    }

    fn take(&self, list: Signed<Revocations>) -> Result<bool, String> {
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        let own = known.own.as_ref().ok_or("this node is in no lab")?;
        iptl_trust::check_revocations(&list, own.lab()).map_err(|e| e.to_string())?;
        if list.body.serial <= known.serial() {
            return Ok(false);
        }
        known.revoked = list.body.revoked.iter().map(|one| (one.peer.clone(), one.until)).collect();
        let serial = list.body.serial;
        known.revocations = Some(list);
        drop(known);
        self.inner.serial.send_replace(serial);
        Ok(true)
    }

    /// Returns once a peer is a member no more; for ever where it stays one. Cancel safe.
    pub async fn revoked(&self, peer: &PeerId) {
        let mut serial = self.inner.serial.subscribe();
        // It ends with this value, which holds its sender.
        let _ended = serial.wait_for(|_| self.is_revoked(peer)).await;
    }

    /// Answers members that make themselves known, until the node ends.
    pub async fn serve(self, links: Links) {
        let mut incoming = links.accept(MEMBER_PROTOCOL, ACCEPT_QUEUE).await;
        let gate = Gate::new(MAX_STREAMS_PER_PEER);
        while let Some((peer, stream)) = incoming.recv().await {
            let Some(place) = gate.enter(&peer) else {
                tracing::debug!(%peer, "too many introductions of one peer");
                continue;
            };
            let members = self.clone();
            tokio::spawn(async move {
                let _place = place;
                match tokio::time::timeout(PATIENCE, members.answer(&peer, stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "an introduction ended"),
                    Err(_) => tracing::debug!(%peer, "an introduction took too long"),
                }
            });
        }
    }

    async fn answer(&self, peer: &PeerId, mut stream: Stream) -> std::io::Result<()> {
        let Introduction::Member { token, serial } = framed::expect(&mut stream, MAX_MEMBER_SIZE).await? else {
            return Err(std::io::Error::other("it begins with a list of revocations"));
        };
        let Some(own) = self.read().own.clone() else { return stream.shutdown().await };
        let answer = match self.admit(peer, &token) {
            Ok(_) => {
                let known = self.read();
                let revocations = known.revocations.clone().filter(|list| list.body.serial > serial);
                let orchestrators = known.seats.all();
                IntroductionAnswer::Known { token: own.token, serial: known.serial(), revocations, orchestrators }
            }
            Err(reason) => {
                tracing::info!(%peer, reason, "a peer that is no member introduced itself");
                IntroductionAnswer::Unknown { reason }
            }
        };
        framed::write(&mut stream, &answer).await?;
        if let Some(Introduction::Revocations(list)) = framed::read(&mut stream, MAX_MEMBER_SIZE).await? {
            self.learn(&list).map_err(std::io::Error::other)?;
        }
        stream.shutdown().await
    }

    /// Makes this node known to a peer that it will ask for something, where it is in a lab and did not lately. That the
    /// peer knows nothing of it, or does not speak of members at all, is no error.
    pub(crate) async fn introduce(&self, links: &Links, peer: &PeerId, addrs: &[String]) {
        let is_known = self.introduced().get(peer).is_some_and(|(at, lasts)| clock::now().since(*at) < *lasts);
        if is_known || self.read().own.is_none() || peer == links.peer() {
            return;
        }
        let lasts = match tokio::time::timeout(PATIENCE, self.meet(links, peer, addrs)).await {
            Ok(Ok(())) => INTRODUCED,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "not introduced");
                let is_there = !matches!(error, Meeting::Link(LinkError::Unreachable { .. } | LinkError::Offline));
                if is_there { INTRODUCED } else { UNREACHABLE }
            }
            Err(_) => {
                tracing::debug!(%peer, "an introduction took too long");
                UNREACHABLE
            }
        };
        let mut introduced = self.introduced();
        introduced.retain(|_, (at, lasts)| clock::now().since(*at) < *lasts);
        introduced.insert(peer.clone(), (clock::now(), lasts));
    }

    /// Makes this node known to a peer again, which tells what it knows of orchestrators and revocations now.
    pub(crate) async fn ask_again(&self, links: &Links, peer: &PeerId, addrs: &[String]) {
        self.introduced().remove(peer);
        self.introduce(links, peer, addrs).await;
    }

    /// Tells all who are connected of the newest list of revocations.
    pub(crate) async fn spread(&self, links: &Links) {
        let Some(net) = links.net() else { return };
        self.introduced().clear();
        let peers = net.peers().await;
        futures::future::join_all(peers.iter().map(|info| self.introduce(links, &info.peer, &[]))).await;
    }

    /// A peer lacked what it was asked for: it may have been started anew and not know this node.
    pub(crate) fn doubt(&self, peer: &PeerId) {
        let now = clock::now();
        let mut introduced = self.introduced();
        if introduced.get(peer).is_some_and(|(at, _)| now.since(*at) >= AGAIN) {
            introduced.remove(peer);
        }
    }

    async fn meet(&self, links: &Links, peer: &PeerId, addrs: &[String]) -> Result<(), Meeting> {
        let (token, serial) = {
            let known = self.read();
            let Some(own) = &known.own else { return Ok(()) };
            (own.token.clone(), known.serial())
        };
        let mut stream = links.open(peer, addrs, MEMBER_PROTOCOL).await?;
        framed::write(&mut stream, &Introduction::Member { token, serial }).await?;
        match framed::expect(&mut stream, MAX_MEMBER_SIZE).await? {
            IntroductionAnswer::Known { token, serial: theirs, revocations, orchestrators } => {
                self.learn_orchestrators(orchestrators);
                if let Some(list) = revocations {
                    self.learn(&list).map_err(Meeting::Refused)?;
                }
                self.admit(peer, &token).map_err(Meeting::Refused)?;
                let newer = self.read().revocations.clone().filter(|list| list.body.serial > theirs);
                if let Some(list) = newer {
                    framed::write(&mut stream, &Introduction::Revocations(list)).await?;
                }
                stream.shutdown().await?;
                // What was written has arrived when the other side closes too.
                let _answered = framed::read::<IntroductionAnswer>(&mut stream, MAX_MEMBER_SIZE).await;
                Ok(())
            }
            IntroductionAnswer::Unknown { reason } => Err(Meeting::Refused(reason)),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.inner.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn introduced(&self) -> MutexGuard<'_, Introduced> {
        self.inner.introduced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn serial(&self) -> u64 {
        self.revocations.as_ref().map_or(0, |list| list.body.serial)
    }

    fn is_revoked(&self, peer: &PeerId, now: WallTime) -> bool {
        self.revoked.get(peer).is_some_and(|until| now < *until)
    }
}

/// Why a peer was not met.
#[derive(Debug, thiserror::Error)]
enum Meeting {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Refused(String),
}
