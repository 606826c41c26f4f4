//! The orchestrator's driver: facts made durable in groups, then everything else in order.

use std::collections::BTreeMap;

use iptl_dag::model::fact::End;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Counts, ExecutionId, Fact, FactKind, InstanceId, ResultVerdict, Run, WorkloadKind};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{AssembledResult, AssemblyOrder, Effect, Input, Orchestrator, log};
use iptl_wire::lab::Certificate;
use iptl_wire::offer::Offer;
use iptl_wire::session::{ToLablet, Welcome};
use iptl_wire::takeover::Finished;
use iptl_wire::{Timestamp, WallTime};

use super::{MICRO, MILLI, World};
use crate::event::Event;
use crate::network::Draws;
use crate::reach::Point;

impl World {
    pub(super) fn tell_orchestrator(&mut self, input: Input) {
        let now = self.orchestrator_stamp();
        let Some(core) = &mut self.orchestrator.core else { return };
        if let Some(heard) = &mut self.heard {
            heard.orchestrator(now, &input);
        }
        core.handle(now, input);
        let (mut durable, mut lost) = (false, Vec::new());
        while let Some(effect) = core.poll_effect() {
            durable |= matches!(effect, Effect::Persist { .. });
            if let Effect::Persist { execution, kind: FactKind::Lost { lablet: Some(_), instances, .. }, .. } = &effect
            {
                lost.push((*execution, instances.clone()));
            }
            if let Effect::Persist { execution, kind: FactKind::Started {}, .. } = &effect {
                self.model.decides_start(self.now, execution);
            }
            self.orchestrator.queue.push_back(effect);
        }
        for (execution, instances) in lost {
            self.note_again(execution, &instances);
        }
        let Some(core) = &self.orchestrator.core else { return };
        let next = core.poll_timeout().map(|t| self.orchestrator.clock.when(t).max(self.now));
        if let Some(at) = next
            && self.orchestrator.timer.is_none_or(|t| t > at)
        {
            self.orchestrator.timer = Some(at);
            self.at(at, Event::OrchestratorTimer);
        }
        // A large lab is looked at less often: the whole log is read each time.
        if (durable || self.count.is_multiple_of(16)) && (self.lablets.len() < 20 || self.count.is_multiple_of(64)) {
            self.compare_with_log(now);
        }
        self.pump_orchestrator();
    }

    /// Reads the log again, up to the last fact that was decided: another core must come to the same state.
    ///
    /// Half of the time it begins at a snapshot of what came before a place in the middle.
    fn compare_with_log(&mut self, now: Timestamp) {
        let Some(core) = &self.orchestrator.core else { return };
        let Some(expected) = core.remembered() else { return };
        let node = &self.orchestrator;
        let queued = node.queue.iter().filter_map(|effect| match effect {
            Effect::Persist { execution, epoch, kind } => Some((execution, epoch, kind)),
            _ => None,
        });
        let unix_us = node.clock.wall_us(self.true_wall_us());
        let at_ms = unix_us / 1000;
        let mut log: BTreeMap<ExecutionId, Vec<Fact>> = node.log.clone();
        let syncing = node.syncing.iter().map(|f| (&f.execution, &f.epoch, &f.kind));
        for (execution, epoch, kind) in syncing.chain(queued) {
            let facts = log.entry(*execution).or_default();
            let (seq, epoch, kind) = (facts.len() as u64, epoch.clone(), kind.clone());
            facts.push(Fact { execution: *execution, seq, prev: None, epoch, at_ms, kind });
        }
        if self.count.is_multiple_of(2) {
            for facts in log.values_mut() {
                let middle = facts.len() / 2;
                let parts = log::snapshot(&facts[..middle]);
                let Some(before) = facts[..middle].last().cloned() else { continue };
                facts.splice(middle..middle, parts.into_iter().map(|kind| Fact { kind, ..before.clone() }));
                *facts = log::resume(std::mem::take(facts));
            }
        }
        let mut again = Orchestrator::new(node.config.clone());
        again.handle(now, Input::Wall { unix_us });
        for mut fact in log.into_values().flatten() {
            // How long ago it was is no part of what is compared: a jump of the clock must not end a run here.
            fact.at_ms = at_ms;
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| node.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            again.handle(now, Input::Replay { facts: vec![fact], submission });
        }
        again.handle(now, Input::Replayed);
        while let Some(effect) = again.poll_effect() {
            if let Effect::Pull { execution, lablet, shard } = effect {
                let receipts = node.store.get(&shard).cloned().unwrap_or_default();
                again.handle(now, Input::Pulled { execution, lablet, shard, receipts });
            }
        }
        let found = again.remembered().unwrap_or_default();
        if found != expected {
            let differs = expected.iter().find(|(id, remembered)| found.get(id) != Some(remembered));
            let what = match differs {
                Some((id, remembered)) => {
                    format!("{} is\n{remembered:?}\nand after a replay\n{:?}", id.alias(), found.get(id))
                }
                None => "a replay brings back what was over".to_owned(),
            };
            self.model.violated("replay", what);
        }
    }

    /// Carries out effects up to the first fact that is not durable.
    pub(super) fn pump_orchestrator(&mut self) {
        while self.orchestrator.syncing.is_empty() {
            let Some(effect) = self.orchestrator.queue.pop_front() else { return };
            if let Effect::Persist { .. } = effect {
                self.orchestrator.queue.push_front(effect);
                self.sync_facts();
                return;
            }
            self.model.effect(self.now, &self.orchestrator, &self.lablets, &effect);
            self.orchestrator_effect(effect);
        }
    }

    /// Group commit: all facts in a row become durable together.
    fn sync_facts(&mut self) {
        while let Some(Effect::Persist { .. }) = self.orchestrator.queue.front() {
            let Some(Effect::Persist { execution, epoch, kind }) = self.orchestrator.queue.pop_front() else { return };
            let at_ms = self.orchestrator.clock.wall_us(self.true_wall_us()) / 1000;
            self.orchestrator.syncing.push(Fact { execution, seq: 0, prev: None, epoch, at_ms, kind });
        }
        if self.now < self.orchestrator.full_until {
            // Without its log it can promise nothing: it stops, and is started again.
            self.reached.at(Point::FactsRefused);
            let down_ms = self.work.between(500, 5_000);
            self.crash_orchestrator(down_ms, 0);
            return;
        }
        if let Some((down_ms, written_pct)) = self.orchestrator.dies_in_write.take().filter(|_| self.faulty()) {
            return self.crash_orchestrator(down_ms, written_pct);
        }
        let life = self.orchestrator.life;
        let takes = self.work.between(MILLI / 10, 5 * MILLI) * self.orchestrator_slowness();
        self.after(takes, Event::FactsDurable { life });
    }

    fn orchestrator_slowness(&mut self) -> u64 {
        let (until, factor) = self.orchestrator.slow;
        if self.now >= until {
            return 1;
        }
        if factor >= 200 {
            self.reached.at(Point::SlowWrite);
        }
        factor
    }

    pub(super) fn commit_facts(&mut self) {
        let mut noted: BTreeMap<ExecutionId, (Vec<FactKind>, Vec<InstanceId>)> = BTreeMap::new();
        for fact in std::mem::take(&mut self.orchestrator.syncing) {
            let (kinds, again) = noted.entry(fact.execution).or_default();
            kinds.push(fact.kind.clone());
            if let FactKind::Lost { lablet: Some(_), .. } = fact.kind {
                again.extend(self.orchestrator.again.pop_front().unwrap_or_default());
            }
            if let Some(told) = &mut self.told {
                told.push(format!("           fact of {}: {:?}", fact.execution.alias(), fact.kind));
            }
            self.model.fact(self.now, &self.orchestrator, &fact);
            if let FactKind::CannotStart(why) = &fact.kind {
                self.model.given_up(&fact.execution, &self.lablets, &why.reason);
            }
            match fact.kind.end() {
                Some(End::Sealed(_)) => {
                    let kinds = self.model.run(&fact.execution).map(Run::kinds).unwrap_or_default();
                    let names: Vec<&str> = kinds.into_keys().map(WorkloadKind::name).collect();
                    self.model.over(self.now, fact.execution, format!("sealed: {}", names.join(" and ")));
                }
                Some(End::Failed(reason)) => {
                    let short = reason.split(':').next().unwrap_or_default().to_owned();
                    self.model.over(self.now, fact.execution, format!("failed: {short}"));
                }
                None => {}
            }
            self.orchestrator.append(fact, self.now);
        }
        for (execution, (kinds, again)) in noted {
            self.note_facts(execution, &kinds, &again);
        }
    }

    fn orchestrator_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) | Effect::Notify { .. } => {}
            Effect::Adopt(_) | Effect::Reconciled | Effect::StepDown { .. } => {
                self.model.violated("stranger", format!("there is one orchestrator, and its core wants {effect:?}"));
            }
            Effect::Send { to, message } => {
                if let ToLablet::Finished(end) = &message
                    && self.orchestrator.aside.contains(&end.execution)
                {
                    self.reached.at(Point::ToldOfAside);
                }
                let message = match message {
                    ToLablet::Lease(mut renewal) => {
                        renewal.wall_us = self.orchestrator.clock.wall_us(self.true_wall_us());
                        ToLablet::Lease(renewal)
                    }
                    other => other,
                };
                self.post_to_lablet(&to, message);
            }
            Effect::SendGrant { to, grant } => {
                let signer = self.orchestrator.peer.clone();
                let signed = Signed { body: grant, signer, signature: Vec::new() };
                self.post_to_lablet(&to, ToLablet::Grant(signed));
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers, term: _ } => {
                self.welcome(to, session, heartbeat_ms, lease_ms, offers);
            }
            Effect::Turn { to, session, .. } => {
                let Some(lablet) = self.index(&to) else { return };
                let life = self.lablets[lablet].life;
                self.after(MILLI, Event::Turned { lablet, life, session });
            }
            Effect::PublishOffer(offer) => {
                for lablet in 0..self.lablets.len() {
                    let life = self.lablets[lablet].life;
                    let delays = self.fate.fate(&self.schedule.profile, self.faulty());
                    if delays.is_empty() {
                        self.reached.at(Point::OfferLost);
                    }
                    for delay in delays {
                        self.after(delay * MICRO, Event::Gossip { lablet, life, offer: Box::new(offer.clone()) });
                    }
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let life = self.orchestrator.life;
                let takes = self.work.between(MILLI, 300 * MILLI);
                let lablet = Box::new(lablet);
                self.after(takes, Event::PullDone { life, execution, lablet, shard });
            }
            Effect::Assemble(order) => self.assemble(&order),
            Effect::Close { lablet, .. } => {
                if let Some(session) = self.orchestrator.sessions.remove(&lablet)
                    && let Some(index) = self.index(&lablet)
                {
                    let life = self.lablets[index].life;
                    self.after(MILLI, Event::LabletHears { lablet: index, life, session });
                }
            }
        }
    }

    fn welcome(&mut self, to: PeerId, session: u64, heartbeat_ms: u32, lease_ms: u32, offers: Vec<Offer>) {
        let Some(lablet) = self.index(&to) else { return };
        self.orchestrator.sessions.insert(to, session);
        let signer = self.orchestrator.peer.clone();
        let certificate = Certificate {
            lab: self.lab.clone(),
            orchestrator: signer.clone(),
            name: "sim".into(),
            expires: WallTime(u64::MAX),
            private: false,
        };
        let offers = offers.into_iter().map(|body| Signed { body, signer: signer.clone(), signature: Vec::new() });
        let welcome = Welcome {
            certificate: Signed { body: certificate, signer: self.lab.clone(), signature: Vec::new() },
            heartbeat_ms,
            lease_ms,
            offers: offers.collect(),
            claim: None,
        };
        // The stream is ordered up to here: what is lost is the connection.
        let life = self.lablets[lablet].life;
        let delay = self.schedule.profile.delay_min_us * MICRO;
        self.after(delay, Event::WelcomeArrives { lablet, life, session, welcome: Box::new(welcome) });
    }

    fn assemble(&mut self, order: &AssemblyOrder) {
        let life = self.orchestrator.life;
        let takes = self.work.between(MILLI, 200 * MILLI) * self.orchestrator_slowness().min(10);
        let (accepted, missing) = (order.accepted.len() as u64, order.missing.len() as u64);
        self.reached.at(if missing == 0 { Point::SealedWhole } else { Point::SealedPart });
        if order.cancelled.is_some() {
            self.reached.at(if order.started_ms > 0 { Point::CancelledRunning } else { Point::CancelledEarly });
        }
        if missing > 0 && order.run.run.most_attempts() > 1 && order.cancelled.is_none() && !order.timed_out {
            self.reached.at(Point::NothingToReplaceOn);
        }
        if order.timed_out {
            self.reached.at(Point::TimedOut);
        }
        self.after(takes, Event::AssembleDone { life, execution: order.execution, accepted, missing });
    }

    pub(super) fn assemble_done(&mut self, life: u64, execution: ExecutionId, accepted: u64, missing: u64) {
        if self.orchestrator.life != life {
            return;
        }
        let by_chance = self.faulty() && self.work.chance(self.schedule.profile.prepare_fail_ppm);
        if by_chance || self.now < self.orchestrator.full_until {
            self.reached.at(Point::AssembleFailed);
            let reason = "disk full".into();
            return self.tell_orchestrator(Input::AssembleFailed { execution, reason, may_pass: true });
        }
        let cid = codec::cid_of(&(execution, accepted, missing));
        self.orchestrator.results.insert(cid);
        let verdict = if missing > 0 { ResultVerdict::Inconclusive } else { ResultVerdict::Pass };
        let counts = Counts { ok: accepted, failed: 0, lost: missing };
        let result = AssembledResult {
            cid,
            verdict,
            counts,
            thresholds: Vec::new(),
            inconclusive: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        };
        self.tell_orchestrator(Input::Assembled { execution, result });
    }

    pub(super) fn index(&self, peer: &PeerId) -> Option<usize> {
        self.index.get(peer).copied()
    }

    fn post_to_lablet(&mut self, to: &PeerId, message: ToLablet) {
        let Some(session) = self.orchestrator.sessions.get(to).copied() else { return };
        let Some(lablet) = self.index(to) else { return };
        let life = self.lablets[lablet].life;
        let delays = self.fate.fate(&self.schedule.profile, self.faulty());
        match (&message, delays.len()) {
            (ToLablet::Grant(_), 0) => self.reached.at(Point::GrantLost),
            (ToLablet::Grant(_), 2) => self.reached.at(Point::GrantDoubled),
            (ToLablet::Start(_), 0) => self.reached.at(Point::StartLost),
            (ToLablet::Start(_), 2) => self.reached.at(Point::StartDoubled),
            (ToLablet::Stop(..), 0) => self.reached.at(Point::StopLost),
            (ToLablet::Kept(..), 0) => self.reached.at(Point::KeptLost),
            (ToLablet::Finished(..), 0) => self.reached.at(Point::FinishedLost),
            (ToLablet::Lease(_), 0) => self.reached.at(Point::LeaseLost),
            _ => {}
        }
        let mut message = Some(message);
        let copies = delays.len();
        for (n, delay) in delays.into_iter().enumerate() {
            let Some(message) = (if n + 1 == copies { message.take() } else { message.clone() }) else { return };
            self.after(delay * MICRO, Event::ToLablet { lablet, session, life, message: Box::new(message) });
        }
    }

    pub(super) fn pull_done(&mut self, life: u64, execution: ExecutionId, lablet: PeerId, shard: Cid) {
        if self.orchestrator.life != life || self.orchestrator.core.is_none() {
            return;
        }
        let now = self.now;
        let source = self.index(&lablet).map(|i| &self.lablets[i]);
        let reachable = source.filter(|n| n.core.is_some() && !n.cut_up(now) && n.frozen_until <= now);
        let there = reachable.and_then(|n| n.store.get(&shard)).cloned();
        let fits = now >= self.orchestrator.full_until;
        let receipts = self.orchestrator.store.get(&shard).cloned().or(there.filter(|_| fits));
        let input = match receipts {
            Some(receipts) => {
                self.orchestrator.store.insert(shard, receipts.clone());
                Input::Pulled { execution, lablet, shard, receipts }
            }
            None => {
                self.reached.at(Point::PullFailed);
                Input::PullFailed { execution, lablet, shard, reason: "no provider".into(), retry: true }
            }
        };
        self.tell_orchestrator(input);
    }

    pub(super) fn start_orchestrator(&mut self) {
        if self.orchestrator.core.is_some() {
            return;
        }
        self.orchestrator.life += 1;
        let now = self.orchestrator_stamp();
        let mut inputs = vec![Input::Wall { unix_us: self.orchestrator.clock.wall_us(self.true_wall_us()) }];
        // The log of what is over is laid aside at some time: from then on, nothing but its end is known.
        let mut draws = Draws::new(self.schedule.seed, 80_000 + self.orchestrator.life);
        let over: Vec<_> =
            self.orchestrator.log.keys().filter_map(|id| Some((*id, self.orchestrator.end(id)?))).collect();
        let over: BTreeMap<ExecutionId, Option<Cid>> =
            over.into_iter().filter(|(id, _)| self.orchestrator.aside.contains(id) || draws.chance(500_000)).collect();
        let logs = self.orchestrator.log.iter().filter(|(id, _)| !over.contains_key(id));
        for fact in logs.flat_map(|(_, facts)| facts) {
            match fact.kind {
                FactKind::Started {} => self.reached.at(Point::ReplayedRunning),
                FactKind::Received { .. } => self.reached.at(Point::ReplayedReceipts),
                _ => {}
            }
            let submission = matches!(fact.kind, FactKind::Submitted { .. })
                .then(|| self.orchestrator.submissions.get(&fact.execution).cloned().map(Box::new))
                .flatten();
            inputs.push(Input::Replay { facts: vec![fact.clone()], submission });
        }
        for (execution, result) in &over {
            self.reached.at(Point::LaidAside);
            inputs.push(Input::Over(Finished { execution: *execution, result: *result, term: None }));
        }
        let mut core = Orchestrator::new(self.orchestrator.config.clone());
        if let Some(heard) = &mut self.heard {
            heard.orchestrator_starts(self.orchestrator.config.clone());
            inputs.iter().for_each(|input| heard.orchestrator(now, input));
        }
        for input in inputs {
            core.handle(now, input);
        }
        for (execution, (submitted, started)) in &self.orchestrator.began {
            let (submitted, started) = (Some(now.since(*submitted)), started.map(|at| now.since(at)));
            core.handle(now, Input::Aged { execution: *execution, submitted, started });
        }
        let goes_on = core.executions().iter().any(|view| self.orchestrator.has_started(&view.execution));
        if std::mem::take(&mut self.orchestrator.was_set) && goes_on {
            self.reached.at(Point::ReplayedLater);
        }
        self.orchestrator.aside = over.into_keys().collect();
        self.read_books();
        self.orchestrator.core = Some(core);
        self.orchestrator.restarted_at = self.now;
        self.orchestrator.calm_since = self.orchestrator.calm_since.max(self.now);
        self.tell_orchestrator(Input::Replayed);
    }
}
