//! Who leads: an orchestrator that follows another one, and takes over where that one is gone.
//!
//! A candidate hears the beats of who leads. Where it hears none for [`CandidateConfig::silence_ms`], and longer by its
//! rank, it claims the next term: candidates are ranked so that two rarely claim at once. Two that do have claimed
//! different terms, because a term names its peer, and whoever hears of the higher one follows.
//!
//! A term is durable before it is claimed, so that nobody claims one twice with two meanings.

use std::collections::VecDeque;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::Epoch;
use iptl_wire::Timestamp;
use iptl_wire::takeover::LAST_COUNTER;

/// Times and place of a candidate.
#[derive(Clone, Debug)]
pub struct CandidateConfig {
    /// This orchestrator.
    pub peer: PeerId,
    /// Place among the candidates of the lab, from zero: the order of their certificates.
    pub rank: u32,
    /// Silence of who leads in milliseconds after which the first candidate claims: a lease.
    pub silence_ms: u64,
    /// How much longer each later candidate waits.
    pub step_ms: u64,
}

/// One thing that happened to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidateInput {
    /// What was durable at start: the highest term ever claimed or followed.
    Restore {
        /// The term; none where there never was one.
        term: Option<Epoch>,
    },
    /// Who leads said so on the follow stream, and everything that it did came before.
    Beat {
        /// Who.
        from: PeerId,
        /// Its term.
        term: Option<Epoch>,
    },
    /// Somebody claims a term, or was heard to lead in one: by a claim, by a lablet's hello, by another orchestrator.
    /// Whoever signs claims was checked.
    Heard {
        /// The term.
        term: Epoch,
    },
    /// Who leads hands over to this candidate; all its facts are here.
    HandedOver {
        /// Who.
        from: PeerId,
        /// Its term.
        term: Option<Epoch>,
    },
    /// This orchestrator led, and has less of its logs than another one: it waits for that one, or another, to claim.
    StepBack,
    /// The time that `poll_timeout` named has come.
    Timeout,
    /// This process stood still for a while: that nobody was heard meanwhile says nothing of who leads.
    StoodStill,
}

/// One thing for the driver to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidateEffect {
    /// Makes the highest term durable; everything after it waits for that.
    Persist(Epoch),
    /// Leads from now on: replays the logs that are here into a new core, says `TakeOver` to it, signs a claim and
    /// publishes it, and goes on publishing it with offers.
    Lead {
        /// The term.
        term: Epoch,
        /// Whether the one before handed over, so that nothing is missing.
        handed_over: bool,
    },
    /// Leads on in the term of an earlier life: replays its logs and says `Replayed` to the core, whose configuration
    /// has the term; or `TakeOver` where the earlier life had not been told `Reconciled`.
    Resume {
        /// The term.
        term: Epoch,
    },
    /// Somebody leads in a later term: the core is dropped with all that it waits for, sessions end, and who leads is
    /// followed.
    Follow {
        /// The term.
        term: Epoch,
    },
}

/// An orchestrator's view of who leads, without IO.
#[derive(Debug)]
pub struct Candidate {
    config: CandidateConfig,
    term: Option<Epoch>,
    leading: bool,
    claim_at: Timestamp,
    effects: VecDeque<CandidateEffect>,
}

impl Candidate {
    /// Makes a candidate that has heard nobody yet.
    pub fn new(now: Timestamp, config: CandidateConfig) -> Candidate {
        let claim_at = now.after(wait(&config));
        Candidate { config, term: None, leading: false, claim_at, effects: VecDeque::new() }
    }

    /// Returns the highest term that is known.
    pub fn term(&self) -> Option<&Epoch> {
        self.term.as_ref()
    }

    /// Says which place among the candidates this one has now: orchestrators come, and who led leads no more.
    pub fn set_rank(&mut self, now: Timestamp, rank: u32) {
        if rank != self.config.rank {
            self.config.rank = rank;
            self.claim_at = now.after(wait(&self.config));
        }
    }

    /// Whether this orchestrator leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.leading
    }

    /// Takes in one thing that happened at `now`. Never panics, whatever the input.
    pub fn handle(&mut self, now: Timestamp, input: CandidateInput) {
        match input {
            CandidateInput::Restore { term } => {
                self.term = term;
                if let Some(term) = self.term.clone().filter(|term| term.peer == self.config.peer) {
                    self.leading = true;
                    self.effects.push_back(CandidateEffect::Resume { term });
                }
            }
            CandidateInput::Beat { from, term } => self.beat(now, &from, term),
            CandidateInput::Heard { term } => self.heard(now, term),
            CandidateInput::HandedOver { from, term } => {
                let current = self.term.as_ref().is_none_or(|known| known.peer == from && term.as_ref() >= Some(known));
                if current && !self.leading && from != self.config.peer {
                    self.term = self.term.take().max(term);
                    self.lead(true);
                }
            }
            CandidateInput::Timeout => {
                if !self.leading && self.claim_at <= now {
                    self.lead(false);
                }
            }
            CandidateInput::StepBack => {
                self.leading = false;
                self.claim_at = now.after(wait(&self.config));
            }
            CandidateInput::StoodStill => self.claim_at = now.after(wait(&self.config)),
        }
    }

    /// Returns the next thing to do.
    pub fn poll_effect(&mut self) -> Option<CandidateEffect> {
        self.effects.pop_front()
    }

    /// Returns when `handle` wants to be called with `Timeout`, where nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        (!self.leading).then_some(self.claim_at)
    }

    fn beat(&mut self, now: Timestamp, from: &PeerId, term: Option<Epoch>) {
        let Some(term) = term else {
            // A lab without terms has one who leads.
            if self.term.is_none() {
                self.claim_at = now.after(wait(&self.config));
            }
            return;
        };
        if term.peer == *from && self.term.as_ref().is_none_or(|known| *known <= term) {
            self.heard(now, term);
            self.claim_at = now.after(wait(&self.config));
        }
    }

    fn heard(&mut self, now: Timestamp, term: Epoch) {
        if term.counter == LAST_COUNTER || self.term.as_ref().is_some_and(|known| *known >= term) {
            return;
        }
        if term.peer == self.config.peer {
            // A claim of an earlier life whose disk was lost: its term is spent, and the next one is higher.
            self.term = Some(term.clone());
            self.effects.push_back(CandidateEffect::Persist(term));
            if self.leading {
                self.lead(false);
            }
            return;
        }
        self.term = Some(term.clone());
        self.leading = false;
        self.claim_at = now.after(wait(&self.config));
        self.effects.push_back(CandidateEffect::Persist(term.clone()));
        self.effects.push_back(CandidateEffect::Follow { term });
    }

    fn lead(&mut self, handed_over: bool) {
        let counter = self.term.as_ref().map_or(0, |known| known.counter);
        if counter >= LAST_COUNTER - 1 {
            // Nobody comes here by taking over; whoever did has forged its way.
            return;
        }
        let term = Epoch { counter: counter + 1, peer: self.config.peer.clone() };
        self.term = Some(term.clone());
        self.leading = true;
        self.effects.push_back(CandidateEffect::Persist(term.clone()));
        self.effects.push_back(CandidateEffect::Lead { term, handed_over });
    }
}

fn wait(config: &CandidateConfig) -> Duration {
    Duration::from_millis(config.silence_ms.saturating_add(u64::from(config.rank).saturating_mul(config.step_ms)))
}
