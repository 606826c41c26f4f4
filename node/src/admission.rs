//! Who is let into a lab: tickets, peers that ask, and memberships. Lives where the lab was made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iptl_dag::model::Signed;
use iptl_dag::{PeerId, codec};
use iptl_trust::{Keypair, Secret, Ticket, TicketBook};
use iptl_wire::WallTime;
use iptl_wire::lab::{
    Certificate, JOIN_PROTOCOL, JoinAnswer, JoinRequest, MAX_JOIN_SIZE, MAX_REVOKED, Revocations, Revoked, Role,
};
use iptl_wire::takeover::Orchestrators;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock;
use crate::framed;
use crate::gate::Gate;
use crate::home::{Home, HomeError, Membership};
use crate::links::{Links, Stream};
use crate::members::Members;

/// A membership lasts for a year; a node renews it by asking again.
const MEMBERSHIP: Duration = Duration::from_secs(365 * 24 * 3600);

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 16;

/// Longest wait for the first message of a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams on which one peer may wait for its answer: one for each try of a person.
const MAX_STREAMS_PER_PEER: usize = 4;

/// Longest name that is kept, in bytes.
const MAX_NAME_SIZE: usize = 64;

/// Most peers that may ask at once; further ones are refused until the owner answered some.
const MAX_ASKING: usize = 256;

/// Part of the home that holds the state.
const STATE: &str = "admission.cbor";

/// A lab's door.
pub struct Admission {
    home: Home,
    key: Keypair,
    peer: PeerId,
    certificate: Signed<Certificate>,
    state: Mutex<State>,
    answered: Notify,
    /// Where the newest list of revocations is told.
    members: Members,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    certificate: Signed<Certificate>,
    open: bool,
    tickets: TicketBook,
    members: BTreeMap<String, Member>,
    asking: BTreeMap<String, Asking>,
    /// Members that are members no more, and when the last token that they may have lapses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    revoked: BTreeMap<String, WallTime>,
    /// Serial of the list of revocations.
    #[serde(default, skip_serializing_if = "is_zero")]
    revocations: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    role: Role,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asking {
    role: Role,
    name: String,
}

/// Why nobody was let in.
#[derive(Debug, thiserror::Error)]
pub enum ApproveError {
    /// The peer did not ask.
    #[error("{} has not asked to join", peer.short())]
    NotAsking {
        /// The peer.
        peer: PeerId,
    },
    /// The decision could not be written down.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Why nobody's membership was taken away.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The peer is none.
    #[error("{} is no member of this lab", peer.short())]
    NotMember {
        /// The peer.
        peer: PeerId,
    },
    /// It is the orchestrator itself.
    #[error("{} is the lab's orchestrator", peer.short())]
    Orchestrator {
        /// The peer.
        peer: PeerId,
    },
    /// The list of revocations is as long as any may be.
    #[error("{MAX_REVOKED} memberships are revoked already")]
    TooMany,
    /// The decision could not be written down.
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl Admission {
    /// Makes a lab whose first orchestrator is the node of `home`.
    ///
    /// In a `private` one, what members keep is for members alone until they share it.
    pub fn create(
        home: &Home,
        members: Members,
        name: &str,
        open: bool,
        private: bool,
    ) -> Result<Admission, HomeError> {
        let peer = home.identity()?.peer().clone();
        let key = home.lab_key()?;
        let expires = lapse();
        let certificate = iptl_trust::issue_certificate(&key, peer.clone(), name.to_owned(), expires, private);
        let token = iptl_trust::issue_token(&key, peer.clone(), Role::Orchestrator, expires);
        home.set_membership(&Membership { certificate: certificate.clone(), token, addrs: Vec::new(), own: None })?;
        let state = State {
            certificate: certificate.clone(),
            open,
            tickets: TicketBook::new(key.peer().clone()),
            members: BTreeMap::new(),
            asking: BTreeMap::new(),
            revoked: BTreeMap::new(),
            revocations: 0,
        };
        let admission = Admission {
            home: home.clone(),
            key,
            peer,
            certificate,
            state: Mutex::new(state),
            answered: Notify::new(),
            members,
        };
        admission.save(&admission.lock())?;
        Ok(admission)
    }

    /// Opens the door of a lab that was made before; none where this home made none.
    pub fn open(home: &Home, members: Members) -> Result<Option<Admission>, HomeError> {
        let Some(state) = home.read::<State>(STATE)? else { return Ok(None) };
        Ok(Some(Admission {
            home: home.clone(),
            key: home.lab_key()?,
            peer: home.identity()?.peer().clone(),
            certificate: state.certificate.clone(),
            state: Mutex::new(state),
            answered: Notify::new(),
            members,
        }))
    }

    /// Returns the orchestrator's certificate.
    pub fn certificate(&self) -> &Signed<Certificate> {
        &self.certificate
    }

    /// Makes a ticket that works once.
    pub fn mint(&self, role: Role, ttl: Duration, addrs: Vec<String>) -> Result<Ticket, HomeError> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).expect("the kernel gives random bytes");
        let expires = WallTime(clock::wall().0.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)));
        let mut state = self.lock();
        let ticket = state.tickets.mint(Secret::new(secret), role, expires, self.peer.clone(), addrs);
        self.save(&state)?;
        Ok(ticket)
    }

    /// Lets a peer in that asked.
    pub fn approve(&self, peer: &PeerId) -> Result<(), ApproveError> {
        let mut state = self.lock();
        let asking =
            state.asking.remove(&peer.to_string()).ok_or_else(|| ApproveError::NotAsking { peer: peer.clone() })?;
        state.members.insert(peer.to_string(), Member { role: asking.role, name: asking.name });
        self.let_back(&mut state, peer);
        self.save(&state)?;
        drop(state);
        self.answered.notify_waiters();
        Ok(())
    }

    /// Takes the membership of a peer away: its token means nothing any more to whoever has heard of it.
    ///
    /// It comes back by a new ticket, or by asking and being approved.
    pub fn revoke(&self, peer: &PeerId) -> Result<(), RevokeError> {
        if *peer == self.peer {
            return Err(RevokeError::Orchestrator { peer: peer.clone() });
        }
        let mut state = self.lock();
        let now = clock::wall();
        state.revoked.retain(|_, until| now < *until);
        if !state.members.contains_key(&peer.to_string()) {
            return Err(RevokeError::NotMember { peer: peer.clone() });
        }
        if state.revoked.len() >= MAX_REVOKED {
            return Err(RevokeError::TooMany);
        }
        state.members.remove(&peer.to_string());
        state.asking.remove(&peer.to_string());
        state.tickets.forget_used_by(peer);
        state.revoked.insert(peer.to_string(), lapse());
        state.revocations += 1;
        self.save(&state)?;
        self.tell(&state);
        Ok(())
    }

    /// Lets a peer be a member again, where it was revoked.
    fn let_back(&self, state: &mut State, peer: &PeerId) {
        if state.revoked.remove(&peer.to_string()).is_some() {
            state.revocations += 1;
            self.tell(state);
        }
    }

    /// Signs the list of revocations and tells this node of it, which passes it on.
    fn tell(&self, state: &State) {
        let revoked = state.revoked.iter().filter_map(|(peer, until)| {
            let peer = peer.parse().ok()?;
            Some(Revoked { peer, until: *until })
        });
        let list: Signed<Revocations> = iptl_trust::issue_revocations(&self.key, state.revocations, revoked.collect());
        if let Err(error) = self.members.learn(&list) {
            tracing::error!(error, "the list of revocations is not kept");
        }
    }

    /// Returns the peers that ask, with the names that they gave.
    pub fn asking(&self) -> Vec<(PeerId, String)> {
        self.lock()
            .asking
            .iter()
            .filter_map(|(peer, asking)| Some((peer.parse().ok()?, format!("{} as {}", asking.name, asking.role))))
            .collect()
    }

    /// Answers peers that want to join, until the node ends.
    pub async fn serve(self: Arc<Admission>, links: Links) {
        let mut incoming = links.accept(JOIN_PROTOCOL, ACCEPT_QUEUE).await;
        let gate = Gate::new(MAX_STREAMS_PER_PEER);
        while let Some((peer, stream)) = incoming.recv().await {
            let Some(place) = gate.enter(&peer) else {
                tracing::debug!(%peer, "too many join requests of one peer");
                continue;
            };
            let admission = self.clone();
            let links = links.clone();
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = admission.answer(&links, &peer, stream).await {
                    tracing::info!(%peer, %error, "a join request ended");
                }
            });
        }
    }

    async fn answer(&self, links: &Links, peer: &PeerId, mut stream: Stream) -> std::io::Result<()> {
        let request = tokio::time::timeout(REQUEST_TIMEOUT, framed::expect(&mut stream, MAX_JOIN_SIZE)).await??;
        let decision = match request {
            JoinRequest::Ticket { lab, secret, name } => self.redeem(peer, &lab, &secret, &name),
            JoinRequest::Ask { role, name } => self.ask(peer, role, &name),
        };
        let role = match decision {
            Ok(Some(role)) => role,
            Ok(None) => {
                let certificate = self.certificate.clone();
                framed::write(&mut stream, &JoinAnswer::Waiting { certificate }).await?;
                tokio::select! {
                    role = self.approved(peer) => role,
                    () = gone(&mut stream) => return Ok(()),
                }
            }
            Err((code, reason)) => {
                tracing::warn!(%peer, code, reason, "refused a peer that wants to join");
                let refused = JoinAnswer::Refused { code: code.to_owned(), reason };
                framed::write(&mut stream, &refused).await?;
                return tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            }
        };
        let addrs = match links.net() {
            Some(net) => net.addrs().await,
            None => Vec::new(),
        };
        let token = iptl_trust::issue_token(&self.key, peer.clone(), role, lapse());
        let own = (role == Role::Orchestrator).then(|| self.second(peer));
        let mut orchestrators = self.members.orchestrators();
        if codec::encode(&orchestrators).len() > MAX_JOIN_SIZE / 2 {
            // It hears of them when it introduces itself.
            orchestrators = Orchestrators::default();
        }
        tracing::info!(%peer, %role, "let a peer in");
        let certificate = self.certificate.clone();
        framed::write(&mut stream, &JoinAnswer::Joined { certificate, token, addrs, own, orchestrators }).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await
    }

    /// Makes another peer an orchestrator of the lab.
    fn second(&self, peer: &PeerId) -> Signed<Certificate> {
        let Certificate { name, private, .. } = &self.certificate.body;
        iptl_trust::issue_certificate(&self.key, peer.clone(), name.clone(), lapse(), *private)
    }

    /// Lets a peer in by ticket.
    fn redeem(
        &self,
        peer: &PeerId,
        lab: &PeerId,
        secret: &[u8],
        name: &str,
    ) -> Result<Option<Role>, (&'static str, String)> {
        let mut state = self.lock();
        let role = state.tickets.redeem(lab, secret, peer, clock::wall()).map_err(|e| (e.code(), e.to_string()))?;
        state.members.insert(peer.to_string(), Member { role, name: clip(name) });
        state.asking.remove(&peer.to_string());
        self.let_back(&mut state, peer);
        self.save(&state).map_err(|e| ("broken", e.to_string()))?;
        Ok(Some(role))
    }

    /// Lets a peer in that asks, where it was approved or the lab is open; none means that it waits.
    fn ask(&self, peer: &PeerId, role: Role, name: &str) -> Result<Option<Role>, (&'static str, String)> {
        let mut state = self.lock();
        if let Some(member) = state.members.get(&peer.to_string()) {
            return Ok(Some(member.role));
        }
        // Who asks again has changed nothing that must be written down.
        let asks = Asking { role, name: clip(name) };
        if !state.open && state.asking.get(&peer.to_string()) == Some(&asks) {
            return Ok(None);
        }
        if role == Role::Orchestrator {
            return Err(("denied", "a second orchestrator is made by the owner, not by asking".to_owned()));
        }
        let key = peer.to_string();
        if state.open && state.revoked.contains_key(&key) {
            return Err(("denied", "its membership was revoked; a new ticket lets it back".to_owned()));
        }
        if state.open {
            state.members.insert(key, Member { role, name: asks.name });
        } else if state.asking.len() >= MAX_ASKING && !state.asking.contains_key(&key) {
            return Err(("denied", "too many peers ask already".to_owned()));
        } else {
            state.asking.insert(key, asks);
        }
        self.save(&state).map_err(|e| ("broken", e.to_string()))?;
        Ok(state.open.then_some(role))
    }

    /// Waits until a peer is a member.
    async fn approved(&self, peer: &PeerId) -> Role {
        loop {
            let answered = self.answered.notified();
            if let Some(member) = self.lock().members.get(&peer.to_string()) {
                return member.role;
            }
            answered.await;
        }
    }

    fn save(&self, state: &State) -> Result<(), HomeError> {
        self.home.write(STATE, &codec::encode(state))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lapse() -> WallTime {
    WallTime(clock::wall().0.saturating_add(u64::try_from(MEMBERSHIP.as_millis()).unwrap_or(u64::MAX)))
}

/// Returns once the asker has closed its stream, or says more where it has nothing to say.
async fn gone(stream: &mut Stream) {
    let _ended = tokio::io::AsyncReadExt::read(stream, &mut [0]).await;
}

fn clip(name: &str) -> String {
    let mut end = name.len().min(MAX_NAME_SIZE);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    struct Door {
        _dir: tempfile::TempDir,
        home: Home,
        admission: Arc<Admission>,
        members: Members,
        links: Links,
    }

    fn door() -> Door {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let members = Members::open(&home).unwrap();
        let admission = Arc::new(Admission::create(&home, members.clone(), "lab", false, false).unwrap());
        members.set_own(home.membership().unwrap());
        let links = Links::new(home.identity().unwrap().peer().clone(), None);
        Door { _dir: dir, home, admission, members, links }
    }

    /// Asks, and returns the stream once the lab said that it waits for its owner.
    async fn ask(door: &Door, peer: &PeerId) -> (tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
        let (mut here, there) = tokio::io::duplex(64 << 10);
        let (admission, links, asker) = (door.admission.clone(), door.links.clone(), peer.clone());
        let answering = tokio::spawn(async move {
            let _broken = admission.answer(&links, &asker, Stream::new(there)).await;
        });
        let request = JoinRequest::Ask { role: Role::Lablet, name: "box".to_owned() };
        framed::write(&mut here, &request).await.unwrap();
        let answer = framed::expect::<JoinAnswer>(&mut here, MAX_JOIN_SIZE).await.unwrap();
        assert!(matches!(answer, JoinAnswer::Waiting { .. }), "{answer:?}");
        (here, answering)
    }

    #[tokio::test]
    async fn a_peer_that_asks_and_leaves_is_waited_for_no_longer() {
        let (door, peer) = (door(), PeerId::from_ed25519(&[7; 32]));
        let (stream, answering) = ask(&door, &peer).await;
        drop(stream);
        tokio::time::timeout(Duration::from_secs(10), answering).await.expect("the answer ends").unwrap();
        assert_eq!(door.admission.asking().len(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_asks_again_costs_no_write() {
        let (door, peer) = (door(), PeerId::from_ed25519(&[7; 32]));
        let _first = ask(&door, &peer).await;
        let written = std::fs::metadata(door.home.path(STATE)).unwrap().ino();
        let _second = ask(&door, &peer).await;
        assert_eq!(std::fs::metadata(door.home.path(STATE)).unwrap().ino(), written);
    }

    #[tokio::test]
    async fn a_peer_that_waits_is_let_in_when_it_is_approved() {
        let (door, peer) = (door(), PeerId::from_ed25519(&[7; 32]));
        let (mut stream, _answering) = ask(&door, &peer).await;
        door.admission.approve(&peer).unwrap();
        let answer = framed::expect::<JoinAnswer>(&mut stream, MAX_JOIN_SIZE).await.unwrap();
        assert!(matches!(answer, JoinAnswer::Joined { .. }), "{answer:?}");
    }

    #[tokio::test]
    async fn a_revoked_member_is_a_stranger_until_it_is_approved_again() {
        let (door, peer) = (door(), PeerId::from_ed25519(&[7; 32]));
        assert!(matches!(door.admission.revoke(&peer), Err(RevokeError::NotMember { .. })));
        let (mut stream, _answering) = ask(&door, &peer).await;
        door.admission.approve(&peer).unwrap();
        let answer = framed::expect::<JoinAnswer>(&mut stream, MAX_JOIN_SIZE).await.unwrap();
        let JoinAnswer::Joined { token, .. } = answer else { panic!("{answer:?}") };
        assert!(!door.members.is_member(&peer), "nobody has shown anything");
        assert_eq!(door.members.admit(&peer, &token), Ok(Role::Lablet));
        assert!(door.members.is_member(&peer));

        door.admission.revoke(&peer).unwrap();
        assert!(!door.members.is_member(&peer));
        door.members.admit(&peer, &token).unwrap_err();
        // It is known after a restart too.
        let again = Members::open(&door.home).unwrap();
        again.admit(&peer, &token).unwrap_err();
        let stored = Admission::open(&door.home, again).unwrap().unwrap();
        assert_eq!(stored.lock().revocations, 1);

        let (_stream, _answering) = ask(&door, &peer).await;
        door.admission.approve(&peer).unwrap();
        assert_eq!(door.members.admit(&peer, &token), Ok(Role::Lablet));
    }

    #[tokio::test]
    async fn nobody_revokes_the_orchestrator() {
        let door = door();
        let own = door.home.identity().unwrap().peer().clone();
        assert!(matches!(door.admission.revoke(&own), Err(RevokeError::Orchestrator { .. })));
    }
}
