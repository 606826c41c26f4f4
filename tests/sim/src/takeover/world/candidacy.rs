//! Who leads: candidates, their claims, beats and logs.

use std::collections::BTreeSet;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, FactKind};
use iptl_scheduler::{
    Candidate, CandidateConfig, CandidateEffect, CandidateInput, Input, Orchestrator, OrchestratorConfig,
};

use super::event::Event;
use super::{SILENCE_MS, STEP_MS, World};
use crate::takeover::Point;
use crate::world::SECOND;

/// How late a timer fires in a process that stood still, as the driver takes it.
pub(super) const STANDSTILL: Duration = Duration::from_millis(1_500);

/// How long an orchestrator is down that cannot write, in milliseconds.
const STOPPED_MS: u64 = 3_000;

impl World {
    pub(super) fn start_orchestrator(&mut self, o: usize) {
        let now = self.orchs[o].clock.stamp(self.now);
        let orch = &mut self.orchs[o];
        if orch.candidate.is_some() {
            return;
        }
        orch.life += 1;
        let (silence_ms, step_ms) = (SILENCE_MS, STEP_MS);
        let config = CandidateConfig { peer: orch.peer.clone(), rank: o as u32, silence_ms, step_ms };
        orch.candidate = Some(Candidate::new(now, config));
        let term = orch.term.clone();
        self.tell_candidate(o, CandidateInput::Restore { term });
    }

    pub(super) fn tell_candidate(&mut self, o: usize, input: CandidateInput) {
        let now = self.orchs[o].clock.stamp(self.now);
        let Some(candidate) = &mut self.orchs[o].candidate else { return };
        candidate.handle(now, input);
        self.drain_candidate(o);
    }

    pub(super) fn drain_candidate(&mut self, o: usize) {
        let Some(candidate) = &mut self.orchs[o].candidate else { return };
        let mut effects = Vec::new();
        while let Some(effect) = candidate.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = candidate.poll_timeout() {
            let at = self.orchs[o].clock.when(at).max(self.now);
            if self.orchs[o].candidate_timer.is_none_or(|timer| timer > at) {
                self.orchs[o].candidate_timer = Some(at);
                self.at(at, Event::CandidateTimer { o });
            }
        }
        for effect in effects {
            match effect {
                CandidateEffect::Persist(term) => {
                    // Without its term it may not claim: it stops.
                    let dies = self.orchs[o].machine.dies_in_write.take().filter(|_| self.faulty());
                    let dies = dies.or(self.orchs[o].machine.is_full(self.now).then_some((STOPPED_MS, 0)));
                    if dies.is_none_or(|(_, written_pct)| written_pct >= 50) {
                        self.orchs[o].term = Some(term);
                        self.orchs[o].reconciled = false;
                    }
                    if let Some((down_ms, written_pct)) = dies {
                        self.truth.at(Point::ClaimTorn);
                        return self.crash_orchestrator(o, down_ms, written_pct);
                    }
                }
                CandidateEffect::Lead { term, handed_over } => {
                    self.truth.claimed(&term);
                    self.truth.at(if handed_over { Point::HandedOver } else { Point::TakenOver });
                    self.note_frozen(&term);
                    self.lead(o, term.clone(), Some(handed_over));
                    self.publish_claim(o, &term);
                }
                CandidateEffect::Resume { term } => {
                    self.truth.at(Point::Resumed);
                    let asks = !self.orchs[o].reconciled;
                    if asks {
                        self.truth.at(Point::ResumedAsking);
                    }
                    self.lead(o, term, asks.then_some(false));
                }
                CandidateEffect::Follow { .. } => {
                    if self.orchs[o].core.is_some() {
                        self.truth.at(Point::OldReturns);
                    }
                    if !self.orchs[o].held.is_empty() {
                        self.truth.at(Point::HeldForEver);
                    }
                    if !self.orchs[o].syncing.is_empty() {
                        // What is being written may land or not; nobody acts on it any more.
                        self.truth.at(Point::WritingOutrun);
                        let written_pct = self.work.between(0, 100) as u32;
                        self.land_facts(o, written_pct);
                    }
                    self.drop_core(o);
                }
            }
        }
    }

    /// Lablets that stand still with what they run do not hear that somebody else leads.
    fn note_frozen(&mut self, term: &Epoch) {
        let frozen = |node: &&super::node::Node| node.machine.frozen_until > self.now && node.runs();
        let elsewhere = |node: &&super::node::Node| node.term().is_some_and(|served| served.peer != term.peer);
        if self.nodes.iter().filter(frozen).any(|node| elsewhere(&node)) {
            self.truth.at(Point::ThawedElsewhere);
        }
    }

    pub(super) fn drop_core(&mut self, o: usize) {
        let orch = &mut self.orchs[o];
        orch.core = None;
        orch.life += 1;
        orch.contact.clear();
        orch.held.clear();
        orch.queue.clear();
        orch.syncing.clear();
        orch.core_timer = None;
        for (peer, session) in std::mem::take(&mut self.orchs[o].sessions) {
            if let Some(l) = self.lablet_of(&peer) {
                let hears = self.fate.between(0, 3 * SECOND);
                self.after(hears, Event::LabletHears { l, session });
            }
        }
    }

    pub(super) fn config(&self, o: usize, term: &Epoch) -> OrchestratorConfig {
        let mut config = OrchestratorConfig::new(self.orchs[o].peer.clone(), self.lab.clone(), "sim".into());
        config.prepare_timeout_ms = 20_000;
        config.seed = self.schedule.seed;
        config.term = Some(term.clone());
        config
    }

    /// Replays what is here, as `Replayed` or as a takeover.
    pub(super) fn replayed(&self, o: usize, term: &Epoch, take: Option<bool>) -> Orchestrator {
        let orch = &self.orchs[o];
        let now = orch.clock.stamp(self.now);
        let mut core = Orchestrator::new(self.config(o, term));
        core.handle(now, Input::Wall { unix_us: self.wall_us(&orch.clock) });
        for fact in orch.logs.values().flat_map(|log| log.iter()) {
            let mut fact = fact.clone();
            if take.is_none() && orch.core.is_some() {
                // Compared is what facts say, not how long ago.
                fact.at_ms = self.wall_us(&orch.clock) / 1000;
            }
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| self.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            core.handle(now, Input::Replay { facts: vec![fact], submission });
        }
        for end in orch.ends.values() {
            core.handle(now, Input::Over(end.clone()));
        }
        let lablets: BTreeSet<PeerId> = self.nodes.iter().map(|n| n.peer.clone()).collect();
        core.handle(
            now,
            match take {
                Some(handed_over) => Input::TakeOver { term: term.clone(), lablets, handed_over },
                None => Input::Replayed,
            },
        );
        core
    }

    pub(super) fn lead(&mut self, o: usize, term: Epoch, take: Option<bool>) {
        self.drop_core(o);
        if take.is_some() {
            for log in self.orchs[o].logs.values() {
                let has = |wanted: fn(&FactKind) -> bool| log.iter().any(|f| wanted(&f.kind));
                if has(|k| k.end().is_some()) {
                    continue;
                }
                self.truth.at(if has(|k| matches!(k, FactKind::Cancelled { .. } | FactKind::TimedOut {})) {
                    Point::TakenEnding
                } else if has(|k| matches!(k, FactKind::Started {})) {
                    Point::TakenRunning
                } else if has(|k| matches!(k, FactKind::Granted { .. } | FactKind::Recovered { .. })) {
                    Point::TakenPreparing
                } else {
                    Point::TakenWaiting
                });
            }
        }
        let core = self.replayed(o, &term, take);
        self.orchs[o].core = Some(core);
        self.drain_core(o);
    }

    pub(super) fn publish_claim(&mut self, o: usize, term: &Epoch) {
        for to in (0..self.orchs.len()).filter(|to| *to != o) {
            if !self.is_cut(o, to) {
                for delay in self.fates() {
                    self.after(delay, Event::Claim { to, term: term.clone() });
                }
            }
        }
        for l in 0..self.nodes.len() {
            let fates = if self.is_cut(o, self.node(l)) { Vec::new() } else { self.fates() };
            if fates.is_empty() {
                self.truth.at(Point::ClaimLost);
            }
            for delay in fates {
                self.after(delay, Event::ClaimToLablet { l, term: term.clone() });
            }
        }
    }
}
