//! The driver of a core that leads: facts made durable, then everything else.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Epoch, Execution, ExecutionId, Exit, Fact, FactKind, InstanceId};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{CandidateInput, Effect, Input, Submission};
use iptl_wire::session::{KnownRun, ToLablet, Welcome};

use super::{Event, Node, World, following::end_of};
use crate::takeover::truth::Point;
use crate::world::lab::{group, peer, run};
use crate::world::{MILLI, SECOND};

impl World {
    pub(super) fn tell_core(&mut self, o: usize, input: Input) {
        let now = self.orchs[o].clock.stamp(self.now);
        let Some(core) = &mut self.orchs[o].core else { return };
        core.handle(now, input);
        self.drain_core(o);
    }

    pub(super) fn drain_core(&mut self, o: usize) {
        let Some(core) = &mut self.orchs[o].core else { return };
        let mut effects = Vec::new();
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = self.orchs[o].clock.when(at);
            self.at(at, Event::CoreTimer { o });
        }
        let facts = effects.iter().filter(|e| matches!(e, Effect::Persist { .. })).count();
        let dies = if facts > 0 && self.faulty() { self.orchs[o].dies_in_write.take() } else { None };
        let written = dies.map_or(facts, |_| self.draws.between(0, facts as u64) as usize);
        let mut wrote = 0;
        let (mut changed, mut follows) = (BTreeSet::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Persist { execution, epoch, kind } => {
                    if wrote < written {
                        self.persist(o, execution, epoch, kind);
                        changed.insert(execution);
                        wrote += 1;
                    }
                }
                effect => follows.push(effect),
            }
        }
        if let Some(down) = dies {
            return self.crash_orchestrator(o, down);
        }
        let life = self.orchs[o].life;
        self.follow_up(o, &changed, follows);
        if facts > 0 && self.orchs[o].life == life {
            self.compare_with_log(o);
        }
    }

    /// A fact is durable here; whoever follows is told.
    pub(super) fn persist(&mut self, o: usize, execution: ExecutionId, epoch: Epoch, kind: FactKind) {
        match &kind {
            FactKind::Recovered { .. } => self.truth.at(Point::GrantRecovered),
            FactKind::Granted { attempt, .. } if *attempt > 1 => {
                let taken = self.orchs[o]
                    .logs
                    .get(&execution)
                    .is_some_and(|log| log.iter().any(|f| matches!(f.kind, FactKind::TakenOver { .. })));
                if taken {
                    self.truth.at(Point::Replaced);
                }
            }
            FactKind::Lost { lablet: None, reason, .. } if reason.contains("was not heard") => {
                self.truth.at(Point::Doubted);
            }
            _ => {}
        }
        if kind == (FactKind::Started {}) && !self.orchs[o].reconciled {
            self.truth.at(Point::StartRecovered);
        }
        let at_ms = self.wall_us(&self.orchs[o].clock) / 1000;
        let log = self.orchs[o].logs.entry(execution).or_default();
        let seq = log.len() as u64;
        let fact = Fact { execution, seq, prev: None, epoch, at_ms, kind };
        if let Some(end) = end_of(&fact) {
            let peer = &self.orchs[o].peer;
            let serve = |node: &&Node| node.term.as_ref().is_some_and(|claim| claim.body.term.peer == *peer);
            let known: BTreeSet<Option<Cid>> = self
                .nodes
                .iter()
                .filter(serve)
                .flat_map(|node| node.finished.iter().filter(|f| f.execution == execution).map(|f| f.result))
                .collect();
            self.truth.ended(end.clone(), &known);
            self.record_end(o, end);
        }
        if let Some(told) = &mut self.told {
            told.push(format!(
                "           {} writes {} {:?}",
                self.orchs[o].peer.short(),
                execution.alias(),
                fact.kind
            ));
        }
        self.orchs[o].logs.entry(execution).or_default().push(fact);
    }

    pub(super) fn compare_with_log(&mut self, o: usize) {
        let orch = &self.orchs[o];
        let (Some(core), Some(term), true) = (&orch.core, &orch.term, orch.reconciled) else { return };
        let Some(expected) = core.remembered() else { return };
        let mut again = self.replayed(o, term, None);
        let now = orch.clock.stamp(self.now);
        while let Some(effect) = again.poll_effect() {
            if let Effect::Pull { execution, lablet, shard } = effect {
                let receipts = orch.store.get(&shard).cloned().unwrap_or_default();
                again.handle(now, Input::Pulled { execution, lablet, shard, receipts });
            }
        }
        let found = again.remembered().unwrap_or_default();
        for (id, remembered) in &expected {
            let other = found.get(id);
            let unequal = other.is_some_and(|other| other != remembered);
            self.truth
                .check("replay", !unequal, || format!("{} is\n{remembered:?}\nafter a replay\n{other:?}", id.alias()));
        }
    }

    pub(super) fn core_effect(&mut self, o: usize, life: u64, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) | Effect::Notify { .. } => {}
            Effect::Send { to, message } => {
                let message = match message {
                    ToLablet::Lease(mut renewal) => {
                        renewal.wall_us = self.wall_us(&self.orchs[o].clock);
                        ToLablet::Lease(renewal)
                    }
                    other => other,
                };
                self.post_down(o, &to, message);
            }
            Effect::SendGrant { to, grant } => {
                let signer = self.orchs[o].peer.clone();
                self.post_down(o, &to, ToLablet::Grant(Signed { body: grant, signer, signature: Vec::new() }));
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers, term } => {
                let Some(l) = self.lablet_of(&to) else { return };
                self.orchs[o].sessions.insert(to, session);
                let signer = self.orchs[o].peer.clone();
                let claim = term.as_ref().map(|term| self.claim(term));
                let own = Epoch { counter: 0, peer: signer.clone() };
                let certificate = self.claim(term.as_ref().unwrap_or(&own)).body.certificate;
                let offers =
                    offers.into_iter().map(|body| Signed { body, signer: signer.clone(), signature: Vec::new() });
                let welcome = Welcome { certificate, heartbeat_ms, lease_ms, offers: offers.collect(), claim };
                self.after(5 * MILLI, Event::Welcome { l, o, session, welcome: Box::new(welcome) });
            }
            Effect::Turn { to, session, .. } => {
                if let Some(l) = self.lablet_of(&to) {
                    self.after(5 * MILLI, Event::Elsewhere { l, session });
                }
            }
            Effect::PublishOffer(offer) => {
                for l in 0..self.nodes.len() {
                    if !self.is_cut(o, self.node(l)) {
                        for delay in self.fates() {
                            self.after(delay, Event::Offer { l, offer: Box::new(offer.clone()) });
                        }
                    }
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let takes = self.draws.between(1, 200) * MILLI;
                self.after(takes, Event::Pull { o, life, execution, lablet, shard });
            }
            Effect::Assemble(order) => {
                let received = self.received(o, &order.execution);
                self.truth.assembles(&order, &received);
                let (accepted, missing) = (order.accepted.len() as u64, order.missing.len() as u64);
                let takes = self.draws.between(1, 200) * MILLI;
                self.after(takes, Event::Assemble { o, life, execution: order.execution, accepted, missing });
            }
            Effect::Adopt(end) if self.orchs[o].ends.get(&end.execution) == Some(&end) => {
                self.truth.at(Point::EndAdopted);
            }
            Effect::Adopt(end) => {
                self.truth.at(Point::OutdoneByLablet);
                self.look_for(o, end);
            }
            Effect::Reconciled => self.orchs[o].reconciled = true,
            Effect::StepDown { term } => {
                self.truth.at(Point::ToldByLablet);
                self.tell_candidate(o, CandidateInput::Heard { term });
            }
            Effect::Close { lablet, .. } => {
                if let Some(session) = self.orchs[o].sessions.remove(&lablet)
                    && let Some(l) = self.lablet_of(&lablet)
                {
                    self.after(MILLI, Event::LabletHears { l, session });
                }
            }
        }
    }

    /// Instances with a durable receipt of an end of their own.
    pub(super) fn received(&self, o: usize, id: &ExecutionId) -> BTreeSet<InstanceId> {
        let orch = &self.orchs[o];
        let shards = orch.logs.get(id).into_iter().flatten().filter_map(|f| match &f.kind {
            FactKind::Received { shard, .. } => orch.store.get(shard),
            _ => None,
        });
        shards.flatten().filter(|r| !matches!(r.exit, Exit::Stopped { .. })).map(|r| r.instance.clone()).collect()
    }

    pub(super) fn post_down(&mut self, o: usize, to: &PeerId, message: ToLablet) {
        let Some(session) = self.orchs[o].sessions.get(to).copied() else { return };
        let Some(l) = self.lablet_of(to) else { return };
        for delay in self.fates() {
            self.after(delay, Event::Down { l, o, session, message: Box::new(message.clone()) });
        }
    }

    pub(super) fn pull(&mut self, o: usize, life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid) {
        if self.orchs[o].life != life || self.orchs[o].core.is_none() {
            return;
        }
        let at_lablet = self.lablet_of(&lablet).filter(|l| {
            self.nodes[*l].core.is_some() && !self.is_cut(self.node(*l), o) && !self.is_cut(o, self.node(*l))
        });
        let there = at_lablet.and_then(|l| self.nodes[l].store.get(&shard)).cloned();
        let receipts = self.orchs[o].store.get(&shard).cloned().or(there);
        let input = match receipts {
            Some(receipts) => {
                self.orchs[o].store.insert(shard, receipts.clone());
                Input::Pulled { execution, lablet, shard, receipts }
            }
            None => Input::PullFailed { execution, lablet, shard, reason: "no provider".into(), retry: true },
        };
        if matches!(input, Input::PullFailed { .. }) {
            // A recall is asked for again at once: the driver waits.
            self.after(
                500 * MILLI,
                Event::Pull {
                    o,
                    life,
                    execution,
                    lablet: match &input {
                        Input::PullFailed { lablet, .. } => lablet.clone(),
                        _ => return,
                    },
                    shard,
                },
            );
            return;
        }
        self.tell_core(o, input);
    }

    pub(super) fn submit(&mut self, n: u64) {
        let known = self.wanted.get(&n).is_some_and(|id| self.orchs.iter().any(|o| o.logs.contains_key(id)));
        if known {
            return;
        }
        self.after(3 * SECOND, Event::Submit { n });
        let Some(o) =
            (0..self.orchs.len()).find(|o| self.orchs[*o].core.is_some() && self.orchs[*o].frozen_until <= self.now)
        else {
            return;
        };
        let groups = (0..self.draws.between(1, 2))
            .map(|g| (format!("g{g}"), group(self.draws.between(1, 4) as u32)))
            .collect::<BTreeMap<_, _>>();
        let timeout_ms = self.draws.between(5_000, 30_000);
        let run = run(groups, n, self.max_attempts, timeout_ms);
        let cid = codec::cid_of(&run);
        let execution = Execution { run: cid, orchestrator: self.orchs[o].peer.clone(), nonce: self.draws.bytes() };
        let submission = Submission { execution, run: KnownRun { cid, run } };
        let id = submission.execution.id();
        self.wanted.insert(n, id);
        self.submissions.insert(id, submission.clone());
        let Submission { execution, run } = submission;
        self.tell_core(o, Input::Submit { execution, run, by: peer(250), priority: 0 });
    }
}
