//! Lablets: whom they dial, and cells that pretend to run.

use iptl_dag::codec;
use iptl_dag::model::Exit;
use iptl_dag::model::signed::Signed;
use iptl_scheduler::Lablet;
use iptl_scheduler::lablet::{LabletConfig, LabletEffect, LabletInput};
use iptl_wire::WallTime;
use iptl_wire::lab::{MemberToken, Role};
use iptl_wire::session::{CellRef, Hello};

use super::{Event, World};
use crate::lablet::FakeCell;
use crate::world::{MILLI, SECOND};

impl World {
    pub(super) fn start_lablet(&mut self, l: usize) {
        let boot = self.draws.bytes();
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
        let (machine, life) = (node.machine.clone(), node.life);
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
        self.after(5 * MILLI, Event::Hello { o, l, session, hello: Box::new(hello) });
        self.after(2 * SECOND, Event::GiveUp { l, session });
    }

    pub(super) fn tell_lablet(&mut self, l: usize, input: LabletInput) {
        let now = self.nodes[l].clock.stamp(self.now);
        let Some(core) = &mut self.nodes[l].core else { return };
        core.handle(now, input);
        let mut effects = Vec::new();
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        if let Some(at) = core.poll_timeout() {
            let at = self.nodes[l].clock.when(at);
            self.at(at, Event::LabletTimer { l });
        }
        for effect in effects {
            self.lablet_effect(l, effect);
        }
    }

    pub(super) fn lablet_effect(&mut self, l: usize, effect: LabletEffect) {
        let life = self.nodes[l].life;
        match effect {
            LabletEffect::Send { to, message } => {
                let Some((o, session)) = self.nodes[l].session.filter(|(o, _)| self.orchs[*o].peer == to) else {
                    return;
                };
                let promised = self.nodes[l].term.as_ref().map(|c| c.body.term.clone());
                let lablet = self.nodes[l].peer.clone();
                self.truth.obeys(&lablet, &to, promised.as_ref());
                for delay in self.fates() {
                    self.after(delay, Event::Up { o, l, session, message: Box::new(message.clone()) });
                }
            }
            LabletEffect::Promise(record) => {
                let node = &mut self.nodes[l];
                node.promised.insert(record.cell.execution, record.cell.epoch.clone());
                node.records.insert(record.cell.clone(), (record, Vec::new()));
            }
            LabletEffect::Prepare { cell, grant } => {
                self.nodes[l].cells.insert(cell.clone(), FakeCell::new(*grant));
                let takes = self.draws.between(1, 1500) * MILLI;
                self.after(takes, Event::Prepared { l, life, cell });
            }
            LabletEffect::Directory { .. } => {}
            LabletEffect::Start { cell } => self.start_cell(l, life, cell),
            LabletEffect::Stop { cell, reason } => {
                let Some(fake) = self.nodes[l].cells.get_mut(&cell) else { return };
                for instance in fake.running.clone() {
                    let (cell, exit) = (cell.clone(), Exit::Stopped { reason: reason.clone() });
                    let takes = self.draws.between(0, 200) * MILLI;
                    self.after(takes, Event::Ends { l, life, cell, instance, exit });
                }
            }
            LabletEffect::Seal { cell } => {
                let takes = self.draws.between(1, 40) * MILLI;
                self.after(takes, Event::Seal { l, life, cell });
            }
            LabletEffect::PromiseTerm(claim) => {
                let before = self.nodes[l].term.as_ref().map(|c| c.body.term.clone());
                self.truth
                    .check("term-back", before < Some(claim.body.term.clone()), || format!("{before:?} {claim:?}"));
                self.nodes[l].term = Some(claim);
            }
            LabletEffect::Turn { to } => {
                self.nodes[l].session = None;
                self.nodes[l].greeting = None;
                if let Some(o) = self.orch_of(&to) {
                    self.nodes[l].target = o;
                }
                self.after(10 * MILLI, Event::Connect { l, life });
            }
            LabletEffect::Tombstone(end) => {
                self.nodes[l].finished.retain(|known| known.execution != end.execution);
                self.nodes[l].finished.push(end);
            }
            LabletEffect::Forget { cell } => {
                self.nodes[l].cells.remove(&cell);
                self.nodes[l].records.remove(&cell);
            }
        }
    }

    pub(super) fn start_cell(&mut self, l: usize, life: u64, cell: CellRef) {
        let peer = self.nodes[l].peer.clone();
        let Some(fake) = self.nodes[l].cells.get_mut(&cell) else { return };
        fake.started = true;
        let (all, attempt) = (fake.instances(), fake.grant.attempt);
        fake.running = all.iter().cloned().collect();
        for instance in all {
            self.truth.started(cell.execution, instance.clone(), attempt, &peer, self.max_attempts);
            let takes = self.draws.between(1, 9_000) * MILLI;
            if self.draws.chance(950_000) {
                let (cell, exit) = (cell.clone(), Exit::Exited { code: 0 });
                self.after(takes, Event::Ends { l, life, cell, instance, exit });
            }
        }
    }

    pub(super) fn seal(&mut self, l: usize, life: u64, cell: CellRef) {
        let node = &mut self.nodes[l];
        if node.life != life {
            return;
        }
        let Some(fake) = node.cells.get_mut(&cell) else { return };
        let receipts = fake.receipts();
        let count = receipts.len() as u32;
        let named: Vec<(String, u32)> = receipts.iter().map(|r| (r.instance.to_string(), r.attempt)).collect();
        let shard = codec::cid_of(&(&cell, &node.peer, named));
        node.store.insert(shard, receipts);
        if let Some((_, shards)) = node.records.get_mut(&cell) {
            shards.push((shard, count));
        }
        self.tell_lablet(l, LabletInput::ShardSealed { cell, shard, count, last: true });
    }
}
