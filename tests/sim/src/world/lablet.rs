//! A lablet's driver: promises made durable, cells that pretend to prepare and run, receipts written.

use iptl_dag::codec;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Exit, InstanceId};
use iptl_scheduler::Lablet;
use iptl_scheduler::lablet::{LabletConfig, LabletEffect, LabletInput};
use iptl_sync::CellSync;
use iptl_wire::lab::{MemberToken, Role};
use iptl_wire::session::{CellRef, Hello, Inventory, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::{Verified, WallTime};

use super::{MICRO, MILLI, SECOND, World};
use crate::event::Event;
use crate::lablet::FakeCell;
use crate::reach::Point;

impl World {
    pub(super) fn tell_lablet(&mut self, lablet: usize, input: LabletInput) {
        let now = self.lablets[lablet].clock.stamp(self.now);
        if self.lablets[lablet].core.is_none() {
            return;
        }
        if let LabletInput::Message { message, .. } = &input {
            match message.get() {
                ToLablet::Lease(renewal) => self.model.renewed(lablet, renewal.seq, renewal.lease_ms),
                ToLablet::Grant(grant) => {
                    let id = grant.body.cell.execution;
                    let promised = self.lablets[lablet].promised.get(&id);
                    if promised.is_some_and(|promised| *promised > grant.body.cell.epoch) {
                        self.reached.at(Point::LateGrant);
                    }
                }
                _ => {}
            }
        }
        if let Some(heard) = &mut self.heard {
            heard.lablet(lablet, now, &input);
        }
        let node = &mut self.lablets[lablet];
        let Some(core) = &mut node.core else { return };
        core.handle(now, input);
        while let Some(effect) = core.poll_effect() {
            node.queue.push_back(effect);
        }
        let next = core.poll_timeout().map(|t| node.clock.when(t).max(self.now));
        if let Some(at) = next
            && node.timer.is_none_or(|t| t > at)
        {
            node.timer = Some(at);
            self.at(at, Event::LabletTimer { lablet });
        }
        self.pump_lablet(lablet);
        self.model.leased(self.now, lablet, &self.lablets[lablet]);
    }

    pub(super) fn pump_lablet(&mut self, lablet: usize) {
        while self.lablets[lablet].syncing.is_none() {
            let Some(effect) = self.lablets[lablet].queue.pop_front() else { return };
            self.lablet_effect(lablet, effect);
        }
    }

    fn lablet_effect(&mut self, lablet: usize, effect: LabletEffect) {
        let life = self.lablets[lablet].life;
        match effect {
            LabletEffect::Send { message, .. } => self.post_to_orchestrator(lablet, message),
            LabletEffect::Promise(record) => {
                if self.now < self.lablets[lablet].full_until {
                    // Without the promise the grant must not be taken: the lablet stops and comes back.
                    self.reached.at(Point::PromiseRefused);
                    let down_ms = self.work.between(500, 5_000);
                    return self.crash_lablet(lablet, down_ms, 0);
                }
                self.lablets[lablet].syncing = Some(record);
                if let Some((down_ms, written_pct)) =
                    self.lablets[lablet].dies_in_write.take().filter(|_| self.faulty())
                {
                    return self.crash_lablet(lablet, down_ms, written_pct);
                }
                let takes = self.work.between(MILLI / 10, 10 * MILLI) * self.lablet_slowness(lablet);
                self.after(takes, Event::PromiseDurable { lablet, life });
            }
            LabletEffect::Prepare { cell, grant } => {
                self.lablets[lablet].cells.insert(cell.clone(), FakeCell::new(*grant));
                self.model.preparing(&self.lablets[lablet], &cell);
                let takes = self.work.between(MILLI, 800 * MILLI) * self.lablet_slowness(lablet).min(20);
                self.after(takes, Event::PrepareDone { lablet, life, cell: Box::new(cell) });
            }
            LabletEffect::Directory { .. } => {}
            LabletEffect::PromiseTerm(_) | LabletEffect::Turn { .. } | LabletEffect::Tombstone { .. } => {
                self.model.violated("stranger", format!("there is one orchestrator, and a lablet wants {effect:?}"));
            }
            LabletEffect::Start { cell } => self.start_cell(lablet, life, cell),
            LabletEffect::Stop { cell, reason } => self.stop_cell(lablet, life, cell, &reason),
            LabletEffect::Seal { cell } => {
                let takes = self.work.between(MILLI / 2, 30 * MILLI) * self.lablet_slowness(lablet).min(20);
                self.after(takes, Event::SealDone { lablet, life, cell: Box::new(cell) });
            }
            LabletEffect::Forget { cell } => {
                self.model.forgotten(&self.orchestrator, &self.lablets[lablet], &cell);
                self.lablets[lablet].cells.remove(&cell);
                self.lablets[lablet].records.remove(&cell);
            }
        }
    }

    fn lablet_slowness(&mut self, lablet: usize) -> u64 {
        let (until, factor) = self.lablets[lablet].slow;
        if self.now < until { factor } else { 1 }
    }

    fn post_to_orchestrator(&mut self, lablet: usize, message: ToOrchestrator) {
        match &message {
            ToOrchestrator::Accept(cell) => self.model.accepts(&self.lablets[lablet], cell),
            ToOrchestrator::Heartbeat(heartbeat) => self.model.beats(self.now, lablet, heartbeat.seq),
            ToOrchestrator::Refuse(cell, reason) => self.model.refuses(&self.lablets[lablet], cell, reason),
            _ => {}
        }
        let Some(session) = self.lablets[lablet].session else { return };
        let delays = self.fate.fate(&self.schedule.profile, self.faulty());
        if delays.is_empty() {
            match &message {
                ToOrchestrator::Bid(_) => self.reached.at(Point::BidLost),
                ToOrchestrator::Accept(_) => self.reached.at(Point::AcceptLost),
                ToOrchestrator::Prepared(_) => self.reached.at(Point::PreparedLost),
                ToOrchestrator::Receipts(_) => self.reached.at(Point::ReceiptsLost),
                ToOrchestrator::Heartbeat(_) => self.reached.at(Point::HeartbeatLost),
                _ => {}
            }
        }
        let mut message = Some(message);
        let copies = delays.len();
        for (n, delay) in delays.into_iter().enumerate() {
            let Some(message) = (if n + 1 == copies { message.take() } else { message.clone() }) else { return };
            let message = Box::new(message);
            self.after(delay * MICRO, Event::ToOrchestrator { lablet, session, message });
        }
    }

    pub(super) fn commit_promise(&mut self, lablet: usize) {
        let node = &mut self.lablets[lablet];
        if let Some(record) = node.syncing.take() {
            node.promised.insert(record.cell.execution, record.cell.epoch.clone());
            node.records.insert(record.cell.clone(), (record, Vec::new()));
        }
    }

    pub(super) fn prepare_done(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let full = self.now < self.lablets[lablet].full_until;
        let fails = full || (self.faulty() && self.work.chance(self.schedule.profile.prepare_fail_ppm));
        let unfit = fails && !full && self.work.chance(100_000);
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        if fails && !full && !unfit && self.count.is_multiple_of(4) {
            // It goes on preparing until it is told to stop.
            return;
        }
        if fails {
            let reason = "no blocks".to_owned();
            self.tell_lablet(lablet, LabletInput::PrepareFailed { cell, reason, unfit });
        } else {
            fake.prepared = true;
            let ready = fake.instances();
            self.model.prepared(&cell, ready);
            self.tell_lablet(lablet, LabletInput::Prepared { cell });
        }
    }

    fn start_cell(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let node = &mut self.lablets[lablet];
        let Some(fake) = node.cells.get_mut(&cell) else {
            return self.model.violated("start-unprepared", format!("{cell:?} started and not prepared"));
        };
        if !fake.prepared || fake.started {
            self.model.violated("start-unprepared", format!("{cell:?} started while prepared={}", fake.prepared));
        }
        fake.started = true;
        let all = fake.instances();
        fake.running = all.iter().cloned().collect();
        fake.sync = CellSync::new(all.iter().cloned()).of_attempt(fake.grant.attempt);
        if node.session.is_some() {
            fake.sync.session_up();
        }
        let attempt = fake.grant.attempt;
        let peer = node.peer.clone();
        self.model.started(self.now, &self.orchestrator, &peer, &cell, attempt, &all);
        self.model.alone(&self.lablets[lablet]);
        // Every other run is over before messages that are late have arrived.
        let short = self.model.run(&cell.execution).is_some_and(|run| run.seed.is_multiple_of(2));
        let longest = if short { 30 * MILLI } else { 4 * SECOND };
        let meets = self.meets(&cell.execution);
        self.pump_cells(lablet);
        for instance in all {
            if self.work.chance(self.schedule.profile.hang_ppm) {
                continue;
            }
            let takes = self.work.between(MILLI, longest);
            if meets {
                let (cell, instance) = (Box::new(cell.clone()), Box::new(instance));
                self.after(takes, Event::Comes { lablet, life, cell, instance });
                continue;
            }
            let code = i32::from(self.work.chance(self.schedule.profile.fail_ppm));
            self.ends(lablet, life, &cell, instance, Exit::Exited { code }, takes);
        }
    }

    fn stop_cell(&mut self, lablet: usize, life: u64, cell: CellRef, reason: &str) {
        let Some(fake) = self.lablets[lablet].cells.get_mut(&cell) else { return };
        fake.stopping = true;
        fake.sync.stop();
        let running: Vec<InstanceId> = fake.running.iter().cloned().collect();
        if !running.is_empty() && reason.contains("lease") {
            self.reached.at(Point::LeaseEndsRunning);
            self.reached.at(Point::LabletStopsAlone);
        }
        for instance in running {
            let takes = self.work.between(0, 200 * MILLI);
            self.ends(lablet, life, &cell, instance, Exit::Stopped { reason: reason.to_owned() }, takes);
        }
    }

    pub(super) fn ends(
        &mut self,
        lablet: usize,
        life: u64,
        cell: &CellRef,
        instance: InstanceId,
        exit: Exit,
        after: u64,
    ) {
        let (cell, instance, exit) = (Box::new(cell.clone()), Box::new(instance), Box::new(exit));
        self.after(after, Event::InstanceEnds { lablet, life, cell, instance, exit });
    }

    pub(super) fn instance_ends(&mut self, lablet: usize, life: u64, cell: CellRef, instance: InstanceId, exit: Exit) {
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        let thawed_at = node.frozen_until;
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        if fake.running.remove(&instance) {
            self.model.runs(self.now, thawed_at, cell.execution, &instance, fake.grant.attempt);
            fake.unsealed.push((instance.clone(), exit));
            fake.sync.end_instance(&instance);
            self.tell_lablet(lablet, LabletInput::InstanceEnded { cell, instance });
            self.pump_cells(lablet);
        }
    }

    pub(super) fn seal_done(&mut self, lablet: usize, life: u64, cell: CellRef) {
        let by_chance = self.faulty() && self.schedule.profile.prepare_fail_ppm > 0 && self.work.chance(50_000);
        let fails = by_chance || self.now < self.lablets[lablet].full_until;
        let node = &mut self.lablets[lablet];
        if node.life != life {
            return;
        }
        if fails {
            self.reached.at(Point::SealFailed);
            let reason = "disk full".to_owned();
            return self.tell_lablet(lablet, LabletInput::SealFailed { cell, reason });
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        let receipts = fake.receipts();
        let count = receipts.len() as u32;
        let named: Vec<(String, u32)> = receipts.iter().map(|r| (r.instance.to_string(), r.attempt)).collect();
        let shard = codec::cid_of(&(&cell, &node.peer, named));
        node.store.insert(shard, receipts);
        node.sealed_at.entry(shard).or_insert(self.now);
        if let Some((_, shards)) = node.records.get_mut(&cell) {
            shards.push((shard, count));
        }
        self.tell_lablet(lablet, LabletInput::ShardSealed { cell, shard, count, last: true });
    }

    pub(super) fn connect(&mut self, lablet: usize, life: u64) {
        self.next_session += 1;
        let session = self.next_session;
        let lab = self.lab.clone();
        let node = &mut self.lablets[lablet];
        let sent = node.clock.stamp(self.now);
        let Some(core) = node.core.as_ref().filter(|_| node.life == life && node.session.is_none()) else { return };
        let token = MemberToken {
            lab: lab.clone(),
            member: node.peer.clone(),
            role: Role::Lablet,
            expires: WallTime(u64::MAX),
        };
        let hello = Hello {
            token: Signed { body: token, signer: lab, signature: Vec::new() },
            version: "sim".into(),
            boot: node.boot,
            inventory: core.inventory(),
            cells: core.cells(),
            promised: None,
            finished: Vec::new(),
        };
        node.greeting = Some((session, sent));
        self.model.greets(self.now, lablet);
        let delay = self.schedule.profile.delay_min_us * MICRO;
        self.after(delay, Event::HelloArrives { lablet, life, session, hello: Box::new(hello) });
        // An answer that does not come is not waited for for ever.
        self.after(5 * SECOND, Event::GiveUpHello { lablet, life, session });
    }

    pub(super) fn welcomed(&mut self, lablet: usize, life: u64, session: u64, welcome: Welcome) {
        let now = self.now;
        let node = &mut self.lablets[lablet];
        let Some((expected, hello_at)) = node.greeting else { return };
        if node.life != life || expected != session || node.cut_down(now) {
            return;
        }
        node.greeting = None;
        node.session = Some(session);
        node.calm_since = node.calm_since.max(now);
        self.model.welcomed(lablet, welcome.lease_ms);
        if node.cells.values().any(|cell| cell.started) && now < self.orchestrator.restarted_at + 10 * SECOND {
            self.reached.at(Point::BackInGrace);
        }
        let orchestrator = self.orchestrator.peer.clone();
        let welcome = Verified::vouch(welcome);
        self.tell_lablet(lablet, LabletInput::SessionUp { orchestrator, hello_at, promised: None, welcome });
        self.tell_cells(lablet, true);
    }

    pub(super) fn lablet_hears(&mut self, lablet: usize, life: u64, session: u64) {
        let node = &mut self.lablets[lablet];
        let greeting = node.greeting.is_some_and(|(s, _)| s == session);
        if node.life != life || (node.session != Some(session) && !greeting) {
            return;
        }
        node.greeting = None;
        if node.session.take().is_some() {
            let orchestrator = self.orchestrator.peer.clone();
            self.tell_lablet(lablet, LabletInput::SessionDown { orchestrator });
            self.tell_cells(lablet, false);
        }
        let wait = self.fate.between(SECOND / 5, SECOND);
        self.after(wait, Event::Connect { lablet, life });
    }

    pub(super) fn start_lablet(&mut self, lablet: usize) {
        let boot = self.fate.bytes();
        let true_us = self.true_wall_us();
        let lab = self.lab.clone();
        let node = &mut self.lablets[lablet];
        if node.core.is_some() {
            return;
        }
        node.boot = boot;
        let config = LabletConfig::new(node.peer.clone(), lab);
        if let Some(heard) = &mut self.heard {
            heard.lablet_starts(lablet, config.clone());
        }
        node.core = Some(Lablet::new(config));
        let life = node.life;
        let unix_us = node.clock.wall_us(true_us);
        let promised = node.promised.clone().into_iter().collect();
        let cells = node.records.values().cloned().collect();
        let machine: Inventory = node.machine.clone();
        self.tell_lablet(lablet, LabletInput::Wall { unix_us });
        self.tell_lablet(lablet, LabletInput::Restore { promised, cells, promised_term: None, finished: Vec::new() });
        self.tell_lablet(lablet, LabletInput::Inventory(machine));
        self.after(MILLI, Event::Connect { lablet, life });
    }
}
