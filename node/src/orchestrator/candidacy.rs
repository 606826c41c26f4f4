//! Who leads: the task that has this orchestrator lead the lab, or follow the one that does.
//!
//! It owns the [`Candidate`] and carries out what that decides: it starts and stops the driver, which leads, and the
//! follower, which keeps the logs of who leads. What is heard of terms comes in by one way: [`Members`] knows the claim of
//! the highest one, whoever showed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iptl_dag::model::{Epoch, ExecutionId, Signed};
use iptl_dag::{PeerId, codec};
use iptl_scheduler::{Candidate, CandidateConfig, CandidateEffect, CandidateInput};
use iptl_wire::Timestamp;
use iptl_wire::takeover::{Claim, Orchestrators, Seat};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::canary::Canary;
use super::driver::{self, How, OrchestratorError, Parts, Started};
use super::follow::{self, Progress};
use super::replay::Spoiled;
use super::{Command, OrchestratorHandle, lead, sessions};
use crate::clock;
use crate::home::HomeError;

/// Part of the home that holds what must not be forgotten of who leads.
const OFFICE: &str = "office.cbor";

/// Silence of who leads after which the first candidate claims: the lease of a lab, in milliseconds.
const SILENCE_MS: u64 = 5_000;

/// How much longer each later candidate waits: longer than a claim takes to be heard.
const STEP_MS: u64 = 2_500;

/// A timer that comes so much too late tells of a process that stood still, and nothing of who leads.
const STANDSTILL: Duration = Duration::from_millis(1_500);

/// An orchestrator that starts asks the others so long who leads before it goes on leading: what it could do wrong
/// meanwhile, lablets refuse.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// An orchestrator that would go on with a damaged log waits so long for another one to say which logs it has. Who was in
/// contact notices after three beats that this one had died, and leases of lablets are longer then; who was not looks for
/// who leads several times a second.
const SECOND_LOOK: Duration = Duration::from_millis(3_500);

/// Notes that wait; drivers and followers have few.
const NOTE_QUEUE: usize = 64;

/// What must not be forgotten of who leads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Office {
    /// Highest term that was claimed or followed.
    term: Option<Epoch>,
    /// Term in which every lablet was asked what it holds.
    reconciled: Option<Epoch>,
    /// Lablets that who leads named last.
    lablets: Vec<PeerId>,
}

/// What the driver and the follower tell.
#[derive(Debug)]
pub(super) enum Note {
    /// Who leads says so.
    Beat { from: PeerId, term: Option<Epoch>, lablets: Option<Vec<PeerId>> },
    /// Who leads hands over to this orchestrator.
    HandedOver { from: PeerId, term: Option<Epoch> },
    /// This orchestrator has handed over: this term is another's.
    HandedOn { term: Epoch },
    /// Every lablet was asked in this term.
    Reconciled { term: Epoch },
    /// Another orchestrator, which has these logs up to these facts, looks here for who leads, in vain.
    Seeks { from: PeerId, heads: BTreeMap<ExecutionId, u64> },
}

enum Post {
    None,
    Leads { stop: CancellationToken, task: JoinHandle<()> },
    Follows { stop: CancellationToken, task: JoinHandle<()> },
}

struct Candidacy {
    parts: Arc<Parts>,
    office: Office,
    candidate: Candidate,
    /// It leads a lab that never had a second orchestrator lead.
    leads_without_term: bool,
    /// The first in rank of the others that answered at the start.
    heir: Option<PeerId>,
    /// It led, and waits for others to claim; executions whose logs are damaged here.
    steps_back: Option<BTreeSet<ExecutionId>>,
    post: Post,
    notes: mpsc::Receiver<Note>,
    noting: mpsc::Sender<Note>,
    driver: watch::Sender<Option<mpsc::Sender<Command>>>,
    progress: watch::Sender<Progress>,
    learned: watch::Receiver<u64>,
}

/// Starts the orchestrator of a node: it leads, or follows who does.
pub(crate) async fn start(parts: Parts) -> Result<OrchestratorHandle, OrchestratorError> {
    let parts = Arc::new(parts);
    let office = parts.home.read::<Office>(OFFICE)?.unwrap_or_default();
    let (driver, driver_seen) = watch::channel(None);
    let (progress, progress_seen) = watch::channel(Progress::default());
    let (noting, notes) = mpsc::channel(NOTE_QUEUE);
    let config =
        CandidateConfig { peer: parts.links.peer().clone(), rank: 0, silence_ms: SILENCE_MS, step_ms: STEP_MS };
    tokio::spawn(sessions::accept(parts.links.clone(), parts.members.clone(), driver_seen.clone()));
    tokio::spawn(lead::accept(parts.clone(), driver_seen.clone(), noting.clone()));
    let mut candidacy = Candidacy {
        learned: parts.members.learned(),
        candidate: Candidate::new(clock::now(), config),
        leads_without_term: false,
        heir: None,
        steps_back: None,
        post: Post::None,
        office,
        notes,
        noting,
        driver,
        progress,
        parts,
    };
    candidacy.begin().await?;
    let parts = candidacy.parts.clone();
    let handle = OrchestratorHandle { driver: driver_seen, progress: progress_seen, health: parts.health.clone() };
    if let Some(pause) = parts.canary {
        tokio::spawn(Canary { lab: handle.clone(), parts, pause }.watch());
    }
    tokio::spawn(candidacy.run());
    Ok(handle)
}

impl Candidacy {
    /// Takes up the post that this orchestrator had, unless another one says that it leads.
    async fn begin(&mut self) -> Result<(), OrchestratorError> {
        self.sit().await;
        let others = lead::others(&self.parts);
        if !others.is_empty() {
            let parts = &self.parts;
            let answered = others.iter().map(|peer| async move {
                let asking = lead::ask_who_leads(parts, peer);
                matches!(tokio::time::timeout(FIRST_LOOK, asking).await, Ok(true)).then(|| peer.clone())
            });
            self.heir = futures::future::join_all(answered).await.into_iter().flatten().next();
        }
        self.candidate.handle(clock::now(), CandidateInput::Restore { term: self.office.term.clone() });
        self.hear_claim();
        self.rank();
        let is_led = self.candidate.term().is_some();
        self.carry_out().await?;
        if !is_led && self.parts.is_first {
            // Nobody else ever led this lab.
            self.leads_without_term = true;
            self.lead(None, How::Resume).await?;
        } else if matches!(self.post, Post::None) {
            self.follow().await;
        }
        self.heir = None;
        Ok(())
    }

    async fn run(mut self) {
        let stop = self.parts.stop.clone();
        loop {
            let claims_at = match self.leads_without_term {
                true => None,
                false => self.candidate.poll_timeout(),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.leave_post().await,
                Some(note) = self.notes.recv() => self.note(note),
                _ = self.learned.changed() => {
                    self.hear_claim();
                    self.rank();
                }
                () = clock::sleep_until(claims_at) => self.silent(claims_at),
            }
            if let Err(error) = self.carry_out().await {
                tracing::error!(%error, "the orchestrator stops");
                stop.cancel();
            }
        }
    }

    fn silent(&mut self, claims_at: Option<Timestamp>) {
        let now = clock::now();
        let stood_still = claims_at.is_some_and(|at| now.since(at) > STANDSTILL);
        let input = if stood_still { CandidateInput::StoodStill } else { CandidateInput::Timeout };
        self.candidate.handle(now, input);
    }

    fn note(&mut self, note: Note) {
        let now = clock::now();
        match note {
            Note::Beat { from, term, lablets } => {
                if let Some(lablets) = lablets.filter(|named| *named != self.office.lablets) {
                    self.office.lablets = lablets;
                    if let Err(error) = self.save() {
                        tracing::error!(%error, "the lablets of who leads are not written down");
                    }
                }
                self.candidate.handle(now, CandidateInput::Beat { from, term });
            }
            Note::HandedOver { from, term } => self.candidate.handle(now, CandidateInput::HandedOver { from, term }),
            Note::HandedOn { term } => self.candidate.handle(now, CandidateInput::Heard { term }),
            // It is told where to look, and found what it looks for.
            Note::Seeks { .. } => {}
            Note::Reconciled { term } => {
                self.office.reconciled = Some(term);
                if let Err(error) = self.save() {
                    tracing::warn!(%error, "that lablets were asked is not written down; they will be asked again");
                }
            }
        }
    }

    /// Tells the candidate of the claim of the highest term that this node heard of.
    fn hear_claim(&mut self) {
        if let Some(claim) = self.parts.members.claim() {
            self.candidate.handle(clock::now(), CandidateInput::Heard { term: claim.body.term });
        }
    }

    /// Takes the place among the candidates that follows from the certificates, without who leads.
    fn rank(&mut self) {
        let leader = self.parts.members.leader().map(|(peer, _)| peer);
        let ranking = self.parts.members.ranking();
        let before = ranking.iter().take_while(|peer| *peer != self.parts.links.peer());
        let rank = match self.steps_back {
            // All others go before.
            Some(_) => lead::others(&self.parts).len(),
            None => before.filter(|peer| Some(*peer) != leader.as_ref()).count(),
        };
        self.candidate.set_rank(clock::now(), u32::try_from(rank).unwrap_or(u32::MAX));
    }

    async fn carry_out(&mut self) -> Result<(), OrchestratorError> {
        let mut effects = Vec::new();
        while let Some(effect) = self.candidate.poll_effect() {
            effects.push(effect);
        }
        // Of several posts in one moment only the last is taken up.
        let last = effects.iter().rposition(|effect| !matches!(effect, CandidateEffect::Persist(_)));
        for (n, effect) in effects.into_iter().enumerate() {
            match effect {
                CandidateEffect::Persist(term) => {
                    self.office.term = Some(term);
                    self.save()?;
                }
                _ if Some(n) != last => {}
                CandidateEffect::Lead { term, handed_over } => {
                    self.lead(Some(term), How::TakeOver { handed_over }).await?;
                }
                CandidateEffect::Resume { term } => {
                    let how = match self.office.reconciled.as_ref() == Some(&term) {
                        true => How::Resume,
                        false => How::TakeOver { handed_over: false },
                    };
                    self.lead(Some(term), how).await?;
                }
                CandidateEffect::Follow { term } => {
                    if matches!(self.post, Post::Leads { .. }) {
                        tracing::warn!(counter = term.counter, leader = %term.peer, "steps down: another one leads");
                    }
                    self.leads_without_term = false;
                    self.steps_back = None;
                    self.rank();
                    self.follow().await;
                }
            }
        }
        Ok(())
    }

    async fn lead(&mut self, term: Option<Epoch>, how: How) -> Result<(), OrchestratorError> {
        self.leave_post().await;
        let claim = match term.clone() {
            Some(term) => Some(self.claim(term).await),
            None => None,
        };
        if let Some(term) = &term {
            tracing::info!(counter = term.counter, ?how, "leads the lab");
        }
        let stop = CancellationToken::new();
        let heir = self.heir.take();
        let spoiled = self.steps_back.take().unwrap_or_default();
        let post = |is_spared| {
            let lablets = self.office.lablets.iter().cloned().collect();
            let (claim, notes, spoiled, stop) = (claim.clone(), self.noting.clone(), spoiled.clone(), stop.clone());
            driver::Post { claim, how, lablets, notes, is_spared, spoiled, stop }
        };
        let (spared, anyway) = (post(heir.is_some()), post(false));
        let mut started = driver::start(self.parts.clone(), spared).await?;
        if let Started::Spared(spoiled) = started {
            if let Some(heir) = heir
                && self.has_better(&heir, &spoiled).await
            {
                tracing::warn!(%heir, "a log is damaged here that another orchestrator has: steps back for it to lead");
                self.steps_back = Some(spoiled.damaged.into_keys().collect());
                self.step_back().await;
                return Ok(());
            }
            started = driver::start(self.parts.clone(), anyway).await?;
        }
        if let Started::Leads(commands, task) = started {
            self.driver.send_replace(Some(commands));
            self.post = Post::Leads { stop, task };
        }
        Ok(())
    }

    /// Waits for the heir, which looks for who leads, to name logs with which it could lead with less loss.
    async fn has_better(&mut self, heir: &PeerId, spoiled: &Spoiled) -> bool {
        let seeking = async {
            while let Some(note) = self.notes.recv().await {
                if let Note::Seeks { from, heads } = note
                    && from == *heir
                {
                    return spoiled.is_better_at(&heads);
                }
            }
            false
        };
        tokio::time::timeout(SECOND_LOOK, seeking).await.unwrap_or(false)
    }

    /// Leaves it to the others to lead; where none does, it claims after all of them.
    async fn step_back(&mut self) {
        self.leads_without_term = false;
        self.rank();
        self.candidate.handle(clock::now(), CandidateInput::StepBack);
        self.follow().await;
    }

    /// Signs the claim to lead, and lets everybody on this node know.
    async fn claim(&self, term: Epoch) -> Signed<Claim> {
        let Parts { certificate, key, members, .. } = &*self.parts;
        let body = Claim { lab: certificate.body.lab.clone(), term, certificate: certificate.clone() };
        let claim = iptl_trust::sign(key, body);
        members.learn_orchestrators(Orchestrators { claim: Some(claim.clone()), seats: vec![seat(&self.parts).await] });
        claim
    }

    /// One of several orchestrators is known to itself too, so that it is named to others.
    async fn sit(&self) {
        if !self.parts.is_first || !self.parts.members.ranking().is_empty() {
            self.parts.members.learn_seat(seat(&self.parts).await);
        }
    }

    async fn follow(&mut self) {
        self.leave_post().await;
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(follow::run(self.parts.clone(), self.noting.clone(), self.progress.clone(), stop.clone()));
        self.post = Post::Follows { stop, task };
    }

    async fn leave_post(&mut self) {
        self.driver.send_replace(None);
        match std::mem::replace(&mut self.post, Post::None) {
            Post::None => {}
            Post::Leads { stop, task } | Post::Follows { stop, task } => {
                stop.cancel();
                let _ended = task.await;
            }
        }
    }

    fn save(&self) -> Result<(), HomeError> {
        tokio::task::block_in_place(|| self.parts.home.write(OFFICE, &codec::encode(&self.office)))
    }
}

/// Returns this orchestrator with its addresses of now.
pub(super) async fn seat(parts: &Parts) -> Seat {
    let addrs = match parts.links.net() {
        Some(net) => net.addrs().await,
        None => Vec::new(),
    };
    Seat { certificate: parts.certificate.clone(), addrs }
}
