//! Lablets: whom they dial, and cells that pretend to run.

use std::collections::BTreeSet;

use iptl_dag::codec;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{ExecutionId, Exit, FactKind, InstanceId, WorkloadKind};
use iptl_scheduler::Lablet;
use iptl_scheduler::lablet::{LabletConfig, LabletEffect, LabletInput};
use iptl_wire::WallTime;
use iptl_wire::lab::{MemberToken, Role};
use iptl_wire::session::{CellRef, Hello, ToOrchestrator};

use super::World;
use super::event::Event;
use super::node::Write;
use crate::lablet::FakeCell;
use crate::takeover::Point;
use crate::world::{MILLI, SECOND};

/// Wait of a lablet that wants to say hello and has to write down first what that says.
const WRITES: u64 = 5 * MILLI;

impl World {
    pub(super) fn start_lablet(&mut self, l: usize) {
        let boot = self.fate.bytes();
        let unix_us = self.wall_us(&self.nodes[l].clock);
        let lab = self.lab.clone();
        let node = &mut self.nodes[l];
        if node.core.is_some() {
            return;
        }
        node.boot = boot;
        node.core = Some(Lablet::new(LabletConfig::new(node.peer.clone(), lab)));
        let promised = node.promised.clone().into_iter().collect();
        let cells = node.records.values().cloned().collect();
        let (promised_term, finished) = (node.term.clone(), node.finished.clone());
        let (machine, life) = (node.inventory.clone(), node.life);
        self.tell_lablet(l, LabletInput::Wall { unix_us });
        self.tell_lablet(l, LabletInput::Restore { promised, cells, promised_term, finished });
        self.tell_lablet(l, LabletInput::Inventory(machine));
        self.after(MILLI, Event::Connect { l, life });
    }

    pub(super) fn connect(&mut self, l: usize, life: u64) {
        self.next_session += 1;
        let (session, lab) = (self.next_session, self.lab.clone());
        let node = &mut self.nodes[l];
        let Some(core) = node.core.as_ref().filter(|_| node.life == life && node.session.is_none()) else { return };
        if node.greeting.is_some() {
            return;
        }
        if node.syncing.is_some() {
            return self.after(WRITES, Event::Connect { l, life });
        }
        let body = MemberToken {
            lab: lab.clone(),
            member: node.peer.clone(),
            role: Role::Lablet,
            expires: WallTime(u64::MAX),
        };
        let hello = Hello {
            token: Signed { body, signer: lab, signature: Vec::new() },
            version: "sim".into(),
            boot: node.boot,
            inventory: core.inventory(),
            cells: core.cells(),
            promised: core.promised_term().cloned(),
            finished: core.finished_executions(),
        };
        let (o, sent) = (node.target, node.clock.stamp(self.now));
        node.greeting = Some((o, session, sent));
        node.said = hello.promised.as_ref().map(|claim| claim.body.term.clone());
        self.truth.greets(self.now, l);
        self.after(5 * MILLI, Event::Hello { o, l, session, hello: Box::new(hello) });
        self.after(2 * SECOND, Event::GiveUp { l, session });
    }

    pub(super) fn tell_lablet(&mut self, l: usize, input: LabletInput) {
        let now = self.nodes[l].clock.stamp(self.now);
        let Some(core) = &mut self.nodes[l].core else { return };
        core.handle(now, input);
        self.check_session(l);
        self.drain_lablet(l);
        self.check_lease(l);
    }

    pub(super) fn drain_lablet(&mut self, l: usize) {
        let node = &mut self.nodes[l];
        let Some(core) = &mut node.core else { return };
        while let Some(effect) = core.poll_effect() {
            node.queue.push_back(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = node.clock.when(at).max(self.now);
            if node.timer.is_none_or(|timer| timer > at) {
                node.timer = Some(at);
                self.at(at, Event::LabletTimer { l });
            }
        }
        self.pump_lablet(l);
    }

    /// Carries out effects up to the first that has to be durable.
    fn pump_lablet(&mut self, l: usize) {
        while self.nodes[l].syncing.is_none() {
            let Some(effect) = self.nodes[l].queue.pop_front() else { return };
            self.lablet_effect(l, effect);
        }
    }

    fn check_session(&mut self, l: usize) {
        let node = &self.nodes[l];
        let Some(core) = &node.core else { return };
        if let Some(orchestrator) = core.in_session_with() {
            let promised = core.promised_term().map(|claim| &claim.body.term);
            self.truth.in_session(&node.peer, orchestrator, promised, node.said.as_ref());
        }
    }

    /// Nothing runs on longer than the lease of who granted it, or of who leads. A lablet that writes stops nothing
    /// meanwhile, as its driver waits for the disk.
    fn check_lease(&mut self, l: usize) {
        let node = &self.nodes[l];
        if node.syncing.is_some() || node.core.is_none() {
            return;
        }
        let runs = |fake: &FakeCell| fake.started && !fake.stopping && !fake.running.is_empty();
        for (cell, _) in node.cells.iter().filter(|(_, fake)| runs(fake)) {
            self.truth.leased(self.now, (l, &node.peer), cell);
        }
    }

    /// Makes something durable, or dies of it.
    fn write(&mut self, l: usize, write: Write) {
        let node = &mut self.nodes[l];
        if node.machine.is_full(self.now) {
            // Without the promise nothing that follows from it may be done: the lablet stops and comes back.
            self.truth.at(Point::PromiseRefused);
            let down_ms = self.work.between(500, 5_000);
            return self.crash_lablet(l, down_ms, 0);
        }
        node.syncing = Some(write);
        let dies = node.machine.dies_in_write.take();
        if let Some((down_ms, written_pct)) = dies.filter(|_| self.faulty()) {
            return self.crash_lablet(l, down_ms, written_pct);
        }
        let node = &mut self.nodes[l];
        let takes = node.machine.write_takes(self.now, &mut self.work, self.schedule.profile.write_us);
        if takes == 0 {
            if let Some(write) = node.syncing.take() {
                node.commit(write);
            }
            return;
        }
        let life = node.life;
        node.blocked_until = node.blocked_until.max(self.now + takes);
        self.after(takes, Event::WriteDurable { l, life });
    }

    pub(super) fn write_durable(&mut self, l: usize, life: u64) {
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        if let Some(write) = node.syncing.take() {
            node.commit(write);
        }
        self.pump_lablet(l);
        self.check_lease(l);
    }

    fn lablet_effect(&mut self, l: usize, effect: LabletEffect) {
        let life = self.nodes[l].life;
        match effect {
            LabletEffect::Send { to, message } => {
                let Some((o, session)) = self.nodes[l].session.filter(|(o, _)| self.orchs[*o].peer == to) else {
                    return;
                };
                let node = &self.nodes[l];
                self.truth.obeys(&node.peer, &to, node.term());
                if let ToOrchestrator::Heartbeat(heartbeat) = &message {
                    self.truth.beats(self.now, l, heartbeat.seq);
                }
                if let ToOrchestrator::Accept(cell) = &message {
                    let promised = node.promised.get(&cell.execution).is_some_and(|promised| *promised >= cell.epoch);
                    let kept = promised && node.records.contains_key(cell);
                    self.truth.check("promise", kept, || format!("{cell:?} is taken before its promise is durable"));
                }
                for delay in self.fates() {
                    self.after(delay, Event::Up { o, l, session, message: Box::new(message.clone()) });
                }
            }
            LabletEffect::Promise(record) => self.write(l, Write::Promise(record)),
            LabletEffect::Prepare { cell, grant } => {
                self.nodes[l].cells.insert(cell.clone(), FakeCell::new(*grant));
                self.check_room(l, &cell);
                let takes = self.work.between(1, 1500) * MILLI;
                self.after(takes, Event::Prepared { l, life, cell: Box::new(cell) });
            }
            LabletEffect::Directory { .. } => {}
            LabletEffect::Start { cell } => self.start_cell(l, life, cell),
            LabletEffect::Stop { cell, reason } => {
                let Some(fake) = self.nodes[l].cells.get_mut(&cell) else { return };
                fake.stopping = true;
                let running: Vec<InstanceId> = fake.running.iter().cloned().collect();
                if !running.is_empty() && reason.contains("lease") {
                    self.truth.at(Point::LeaseEndsRunning);
                    self.truth.lease_over(self.now, (l, &self.nodes[l].peer), &cell);
                }
                for instance in running {
                    let takes = self.work.between(0, 200) * MILLI;
                    self.ends(l, life, &cell, instance, Exit::Stopped { reason: reason.clone() }, takes);
                }
            }
            LabletEffect::Seal { cell } => {
                let takes = self.work.between(1, 40) * MILLI;
                self.after(takes, Event::Seal { l, life, cell: Box::new(cell) });
            }
            LabletEffect::PromiseTerm(claim) => {
                let before = self.nodes[l].term().cloned();
                let newer = before.as_ref() < Some(&claim.body.term);
                self.truth.check("term-back", newer, || format!("{before:?} {claim:?}"));
                let held: Vec<&CellRef> = self.nodes[l].cells.keys().collect();
                self.truth.turns(l, &held, &claim.body.term.peer);
                if self.nodes[l].draining && before.is_some() {
                    self.truth.at(Point::DrainedTurns);
                }
                self.write(l, Write::Term(Box::new(claim)));
            }
            LabletEffect::Turn { to } => {
                self.nodes[l].session = None;
                self.nodes[l].turned_from = self.nodes[l].greeting.take();
                if let Some(o) = self.orch_of(&to) {
                    self.nodes[l].target = o;
                }
                self.after(10 * MILLI, Event::Connect { l, life });
            }
            LabletEffect::Tombstone(end) => self.write(l, Write::Tombstone(end)),
            LabletEffect::Forget { cell } => {
                self.check_forgotten(l, &cell);
                self.nodes[l].cells.remove(&cell);
                self.nodes[l].records.remove(&cell);
            }
        }
    }

    /// A cell begins to prepare: all that is held has room on the machine.
    fn check_room(&mut self, l: usize, cell: &CellRef) {
        let node = &self.nodes[l];
        let held = node.cells.values().filter(|held| held.holds_room());
        let taken: u32 = held.flat_map(|held| &held.grant.assignments).map(|a| a.count).sum();
        let has = node.inventory.total(WorkloadKind::Wasm);
        let name = node.peer.short();
        self.truth.check("slots", taken <= has, || format!("{name} holds {taken} in {has} slots with {cell:?}"));
    }

    /// A lablet drops a cell: what it sealed is kept by who leads, or of no use any more.
    fn check_forgotten(&mut self, l: usize, cell: &CellRef) {
        let node = &self.nodes[l];
        let Some((_, shards)) = node.records.get(cell).filter(|_| !self.truth.is_over(&cell.execution)) else { return };
        let leads = node.term().and_then(|term| self.orch_of(&term.peer));
        let has = |shard| leads.is_some_and(|o| self.orchs[o].store.contains_key(shard));
        let dropped: Vec<String> = shards.iter().filter(|(s, _)| !has(s)).map(|(s, _)| s.to_string()).collect();
        let name = node.peer.short();
        self.truth.check("receipts-dropped", dropped.is_empty(), || {
            format!("{name} drops receipts of {} that who leads has not: {dropped:?}", cell.execution.alias())
        });
    }

    pub(super) fn prepared(&mut self, l: usize, life: u64, cell: CellRef) {
        let full = self.nodes[l].machine.is_full(self.now);
        let fails = full || (self.faulty() && self.work.chance(self.schedule.profile.prepare_fail_ppm));
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        if fails {
            let reason = "no blocks".to_owned();
            return self.tell_lablet(l, LabletInput::PrepareFailed { cell, reason, unfit: false });
        }
        fake.prepared = true;
        self.truth.prepared(&cell.execution, fake.instances());
        self.tell_lablet(l, LabletInput::Prepared { cell });
    }

    fn start_cell(&mut self, l: usize, life: u64, cell: CellRef) {
        let profile = &self.schedule.profile;
        let (hang_ppm, fail_ppm) = (profile.hang_ppm, profile.fail_ppm);
        let node = &mut self.nodes[l];
        let fake = node.cells.get_mut(&cell).filter(|fake| fake.prepared && !fake.started);
        self.truth.check("start-unprepared", fake.is_some(), || format!("{cell:?} is started and not prepared"));
        let (Some(fake), Some(submission)) = (fake, self.submissions.get(&cell.execution)) else { return };
        fake.started = true;
        let (all, attempt) = (fake.instances(), fake.grant.attempt);
        fake.running = all.iter().cloned().collect();
        let run = &submission.run.run;
        // Who took over cannot tell a cell that died before the start from one that died after it: it begins without.
        let taken = |kind: &FactKind| matches!(kind, FactKind::TakenOver { .. });
        if !self.orchs.iter().any(|orch| orch.has_fact(&cell.execution, taken)) {
            self.truth.starts_all(&cell.execution, run);
        }
        for instance in &all {
            self.truth.started(self.now, cell.execution, instance, attempt, &node.peer, run);
        }
        self.check_alone(l);
        for instance in all {
            let takes = self.work.between(1, 9_000) * MILLI;
            let code = i32::from(self.work.chance(fail_ppm));
            if !self.work.chance(hang_ppm) {
                self.ends(l, life, &cell, instance, Exit::Exited { code }, takes);
            }
        }
    }

    /// A run that wants its machines for itself runs alone on them.
    fn check_alone(&mut self, l: usize) {
        let node = &self.nodes[l];
        let running = node.cells.iter().filter(|(_, held)| !held.running.is_empty());
        let running: BTreeSet<_> = running.map(|(cell, _)| cell.execution).collect();
        let dedicated = |id| self.submissions.get(id).is_some_and(|s| s.run.run.placing.dedicated);
        let wrong = running.len() > 1 && running.iter().any(dedicated);
        let name = node.peer.short();
        self.truth.check("dedicated", !wrong, || {
            let names: Vec<String> = running.iter().map(ExecutionId::alias).collect();
            format!("{name} runs {} together, and one of them wants it alone", names.join(", "))
        });
    }

    fn ends(&mut self, l: usize, life: u64, cell: &CellRef, instance: InstanceId, exit: Exit, after: u64) {
        let (cell, instance, exit) = (Box::new(cell.clone()), Box::new(instance), Box::new(exit));
        self.after(after, Event::Ends { l, life, cell, instance, exit });
    }

    pub(super) fn instance_ends(&mut self, l: usize, life: u64, cell: CellRef, instance: InstanceId, exit: Exit) {
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        if fake.running.remove(&instance) {
            self.truth.runs(self.now, node.blocked_until, cell.execution, &instance, fake.grant.attempt);
            fake.unsealed.push((instance.clone(), exit));
            self.tell_lablet(l, LabletInput::InstanceEnded { cell, instance });
        }
    }

    pub(super) fn seal(&mut self, l: usize, life: u64, cell: CellRef) {
        let by_chance = self.faulty() && self.work.chance(self.schedule.profile.prepare_fail_ppm / 2);
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        if by_chance || node.machine.is_full(self.now) {
            self.truth.at(Point::SealFailed);
            let reason = "disk full".to_owned();
            return self.tell_lablet(l, LabletInput::SealFailed { cell, reason });
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        let receipts = fake.receipts();
        let count = receipts.len() as u32;
        let named: Vec<(String, u32)> = receipts.iter().map(|r| (r.instance.to_string(), r.attempt)).collect();
        let shard = codec::cid_of(&(&cell, &node.peer, named));
        node.store.insert(shard, receipts);
        node.sealed_at.insert(shard, self.now);
        if let Some((_, shards)) = node.records.get_mut(&cell) {
            shards.push((shard, count));
        }
        self.tell_lablet(l, LabletInput::ShardSealed { cell, shard, count, last: true });
    }
}
