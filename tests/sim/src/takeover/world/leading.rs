//! The driver of a core that leads: facts made durable, then everything else.

use std::collections::BTreeSet;
use std::rc::Rc;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Counts, Epoch, ExecutionId, Exit, Fact, FactKind, InstanceId, ResultVerdict};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{AssembledResult, AssemblyOrder, CandidateInput, Effect, Input};
use iptl_wire::session::{ToLablet, Welcome};

use super::World;
use super::event::Event;
use super::following::end_of;
use super::node::Node;
use crate::takeover::Point;
use crate::world::{MILLI, SECOND};

/// Virtual time in which receipts are fetched from a lablet that is heard, in nanoseconds.
const FETCHED_WITHIN: u64 = 20 * SECOND;

impl World {
    pub(super) fn tell_core(&mut self, o: usize, input: Input) {
        let now = self.orchs[o].clock.stamp(self.now);
        let Some(core) = &mut self.orchs[o].core else { return };
        core.handle(now, input);
        self.drain_core(o);
    }

    pub(super) fn drain_core(&mut self, o: usize) {
        let orch = &mut self.orchs[o];
        let Some(core) = &mut orch.core else { return };
        while let Some(effect) = core.poll_effect() {
            orch.queue.push_back(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = orch.clock.when(at).max(self.now);
            if orch.core_timer.is_none_or(|timer| timer > at) {
                orch.core_timer = Some(at);
                self.at(at, Event::CoreTimer { o });
            }
        }
        self.pump_core(o);
    }

    /// Carries out effects up to the first fact that is not durable.
    pub(super) fn pump_core(&mut self, o: usize) {
        let life = self.orchs[o].life;
        while self.orchs[o].life == life && self.orchs[o].syncing.is_empty() {
            match self.orchs[o].queue.front() {
                None => return,
                Some(Effect::Persist { .. }) => self.sync_facts(o),
                Some(_) => {
                    if let Some(effect) = self.orchs[o].queue.pop_front() {
                        self.follow_up(o, effect);
                    }
                }
            }
        }
    }

    /// Group commit: all facts in a row become durable together.
    fn sync_facts(&mut self, o: usize) {
        let orch = &mut self.orchs[o];
        while let Some(Effect::Persist { .. }) = orch.queue.front() {
            let Some(Effect::Persist { execution, epoch, kind }) = orch.queue.pop_front() else { return };
            orch.syncing.push((execution, epoch, kind));
        }
        orch.syncing_since = self.now;
        if orch.machine.is_full(self.now) {
            // Without its log it can promise nothing: it stops, and is started again.
            self.truth.at(Point::FactsRefused);
            let down_ms = self.work.between(500, 20_000);
            return self.crash_orchestrator(o, down_ms, 0);
        }
        let dies = orch.machine.dies_in_write.take();
        if let Some((down_ms, written_pct)) = dies.filter(|_| self.faulty()) {
            return self.crash_orchestrator(o, down_ms, written_pct);
        }
        let takes = self.orchs[o].machine.write_takes(self.now, &mut self.work, self.schedule.profile.write_us);
        if takes == 0 {
            return self.commit_facts(o);
        }
        if takes > SECOND {
            self.truth.at(Point::SlowWrite);
        }
        let life = self.orchs[o].life;
        self.after(takes, Event::FactsDurable { o, life });
    }

    /// What was being written is durable; whoever follows is told before anything is done about it.
    pub(super) fn commit_facts(&mut self, o: usize) {
        let mut changed = BTreeSet::new();
        for (execution, epoch, kind) in std::mem::take(&mut self.orchs[o].syncing) {
            self.persist(o, execution, epoch, kind);
            changed.insert(execution);
        }
        self.hold(o, &changed);
        let orch = &self.orchs[o];
        let whole = orch.queue.iter().all(|effect| !matches!(effect, Effect::Persist { .. }));
        // A large lab is looked at less often: all logs are read each time.
        if whole && (self.nodes.len() < 20 || self.count.is_multiple_of(64)) {
            self.compare_with_log(o);
        }
    }

    /// It ends in the middle of a write: the first part of what was being written is durable, and nobody acts on it.
    pub(super) fn land_facts(&mut self, o: usize, written_pct: u32) {
        let writing = std::mem::take(&mut self.orchs[o].syncing);
        let written = writing.len() * written_pct as usize / 100;
        if !writing.is_empty() {
            self.truth.at(if written == writing.len() { Point::FactsLanded } else { Point::FactsTorn });
        }
        for (execution, epoch, kind) in writing.into_iter().take(written) {
            self.persist(o, execution, epoch, kind);
        }
    }

    /// A fact is durable here.
    fn persist(&mut self, o: usize, execution: ExecutionId, epoch: Epoch, kind: FactKind) {
        self.note_fact(o, &execution, &kind);
        let at_ms = self.wall_us(&self.orchs[o].clock) / 1000;
        let seq = self.orchs[o].logs.get(&execution).map_or(0, |log| log.len()) as u64;
        let fact = Fact { execution, seq, prev: None, epoch, at_ms, kind };
        if let Some(end) = end_of(&fact) {
            let peer = &self.orchs[o].peer;
            let serve = |node: &&Node| node.term().is_some_and(|term| term.peer == *peer);
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
            let name = self.orchs[o].peer.short();
            told.push(format!("           {name} writes {} {:?}", execution.alias(), fact.kind));
        }
        Rc::make_mut(self.orchs[o].logs.entry(execution).or_default()).push(fact);
    }

    fn compare_with_log(&mut self, o: usize) {
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
        self.check_effect(o, &effect);
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
                let takes = (5 + session % 40) * MILLI;
                self.after(takes, Event::Welcome { l, o, session, welcome: Box::new(welcome) });
            }
            Effect::Turn { to, session, .. } => {
                if let Some(l) = self.lablet_of(&to) {
                    self.after(5 * MILLI, Event::Elsewhere { l, session });
                }
            }
            Effect::PublishOffer(offer) => {
                let offer = Rc::new(offer);
                for l in 0..self.nodes.len() {
                    if !self.is_cut(o, self.node(l)) {
                        for delay in self.fates() {
                            self.after(delay, Event::Offer { l, offer: offer.clone() });
                        }
                    }
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let takes = self.work.between(1, 200) * MILLI;
                let lablet = Box::new(lablet);
                self.after(takes, Event::Pull { o, life, execution, lablet, shard });
            }
            Effect::Assemble(order) => {
                let received = self.received(o, &order.execution);
                self.truth.assembles(&order, &received);
                self.check_fetched(o, &order);
                let (accepted, missing) = (order.accepted.len() as u64, order.missing.len() as u64);
                let takes = self.work.between(1, 200) * MILLI;
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

    /// A result is made, where the disk takes it.
    pub(super) fn assembled(&mut self, o: usize, life: u64, execution: ExecutionId, accepted: u64, missing: u64) {
        if self.orchs[o].life != life {
            return;
        }
        let by_chance = self.faulty() && self.work.chance(self.schedule.profile.prepare_fail_ppm);
        if by_chance || self.orchs[o].machine.is_full(self.now) {
            self.truth.at(Point::AssembleFailed);
            let reason = "disk full".into();
            return self.tell_core(o, Input::AssembleFailed { execution, reason, may_pass: true });
        }
        let cid = codec::cid_of(&(execution, accepted, missing));
        let verdict = if missing > 0 { ResultVerdict::Inconclusive } else { ResultVerdict::Pass };
        let counts = Counts { ok: accepted, failed: 0, lost: missing };
        let (thresholds, inconclusive, failures) = (Vec::new(), Vec::new(), Vec::new());
        let result = AssembledResult { cid, verdict, counts, thresholds, inconclusive, failures, notes: Vec::new() };
        self.tell_core(o, Input::Assembled { execution, result });
    }

    /// Instances with a durable receipt of an end of their own.
    pub(super) fn received(&self, o: usize, id: &ExecutionId) -> BTreeSet<InstanceId> {
        let orch = &self.orchs[o];
        let shards = orch.logs.get(id).into_iter().flat_map(|log| log.iter()).filter_map(|f| match &f.kind {
            FactKind::Received { shard, .. } => orch.store.get(shard),
            _ => None,
        });
        shards.flatten().filter(|r| !matches!(r.exit, Exit::Stopped { .. })).map(|r| r.instance.clone()).collect()
    }

    /// What lies sealed on a lablet that could be asked for long is not missing from a result.
    fn check_fetched(&mut self, o: usize, order: &AssemblyOrder) {
        let orch = &self.orchs[o];
        for (l, node) in
            self.nodes.iter().enumerate().filter(|(_, node)| node.session.is_some_and(|(with, _)| with == o))
        {
            let cut = |from, to| self.cuts.get(&(from, to)).copied().unwrap_or(0);
            let machines = [&orch.machine, &node.machine].map(|machine| machine.frozen_until.max(machine.full_until));
            let ways = [cut(o, self.node(l)), cut(self.node(l), o)];
            let calm_since = machines.into_iter().chain(ways).fold(node.session_since, u64::max);
            let shards = node.records.iter().filter(|(cell, _)| cell.execution == order.execution);
            let shards = shards.flat_map(|(_, (_, shards))| shards).map(|(shard, _)| shard);
            let long_ago = |at: u64| self.now.saturating_sub(at.max(calm_since)) >= FETCHED_WITHIN;
            let sealed = shards.filter(|shard| node.sealed_at.get(shard).is_some_and(|at| long_ago(*at)));
            let missing: Vec<String> = sealed
                .filter_map(|shard| node.store.get(shard))
                .flatten()
                .filter(|receipt| order.missing.contains_key(&receipt.instance))
                .map(|receipt| receipt.instance.to_string())
                .collect();
            self.truth.check("unfetched", missing.is_empty(), || {
                format!("{}: {} has had receipts of {missing:?} for long", order.execution.alias(), node.peer.short())
            });
        }
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
            let (node, number) = (&self.nodes[*l], self.node(*l));
            let answers = node.core.is_some() && node.machine.frozen_until <= self.now;
            answers && !self.is_cut(number, o) && !self.is_cut(o, number)
        });
        let there = at_lablet.and_then(|l| self.nodes[l].store.get(&shard)).cloned();
        let full = self.orchs[o].machine.is_full(self.now);
        match self.orchs[o].store.get(&shard).cloned().or(there.filter(|_| !full)) {
            Some(receipts) => {
                self.orchs[o].store.insert(shard, receipts.clone());
                self.tell_core(o, Input::Pulled { execution, lablet, shard, receipts });
            }
            // The driver asks again, and says nothing meanwhile.
            None => {
                let lablet = Box::new(lablet);
                self.after(500 * MILLI, Event::Pull { o, life, execution, lablet, shard });
            }
        }
    }
}
