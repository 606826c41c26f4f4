//! Who leads: candidates, their claims, beats and logs.

use std::collections::BTreeSet;

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, FactKind};
use iptl_scheduler::{
    Candidate, CandidateConfig, CandidateEffect, CandidateInput, Input, Orchestrator, OrchestratorConfig,
};

use super::{Event, SILENCE_MS, STEP_MS, World};
use crate::takeover::truth::Point;
use crate::world::SECOND;

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
        let mut effects = Vec::new();
        while let Some(effect) = candidate.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = candidate.poll_timeout() {
            let at = self.orchs[o].clock.when(at);
            self.at(at, Event::CandidateTimer { o });
        }
        for effect in effects {
            match effect {
                CandidateEffect::Persist(term) => {
                    self.orchs[o].term = Some(term);
                    self.orchs[o].reconciled = false;
                }
                CandidateEffect::Lead { term, handed_over } => {
                    self.truth.claimed(&term);
                    self.truth.at(if handed_over { Point::HandedOver } else { Point::TakenOver });
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
                    self.drop_core(o);
                }
            }
        }
    }

    pub(super) fn drop_core(&mut self, o: usize) {
        self.orchs[o].core = None;
        self.orchs[o].life += 1;
        self.orchs[o].contact.clear();
        self.orchs[o].held.clear();
        for (peer, session) in std::mem::take(&mut self.orchs[o].sessions) {
            if let Some(l) = self.lablet_of(&peer) {
                let hears = self.draws.between(0, 3 * SECOND);
                self.after(hears, Event::LabletHears { l, session });
            }
        }
    }

    pub(super) fn config(&self, o: usize, term: &Epoch) -> OrchestratorConfig {
        let mut config = OrchestratorConfig::new(self.orchs[o].peer.clone(), self.lab.clone(), "sim".into());
        config.prepare_timeout_ms = 20_000;
        config.seed = self.seed;
        config.term = Some(term.clone());
        config
    }

    /// Replays what is here, as `Replayed` or as a takeover.
    pub(super) fn replayed(&self, o: usize, term: &Epoch, take: Option<bool>) -> Orchestrator {
        let orch = &self.orchs[o];
        let now = orch.clock.stamp(self.now);
        let mut core = Orchestrator::new(self.config(o, term));
        core.handle(now, Input::Wall { unix_us: self.wall_us(&orch.clock) });
        for fact in orch.logs.values().flatten() {
            let mut fact = fact.clone();
            if take.is_none() && orch.core.is_some() {
                // Compared is what facts say, not how long ago.
                fact.at_ms = self.wall_us(&orch.clock) / 1000;
            }
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| self.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            core.handle(now, Input::Replay { fact: Box::new(fact), submission });
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
