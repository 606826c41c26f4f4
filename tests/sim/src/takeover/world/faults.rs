//! What breaks: nodes die, stand still, are cut off, hand over, lie, and lose their disks and their time.

use std::collections::BTreeSet;

use iptl_dag::codec;
use iptl_dag::model::Epoch;
use iptl_scheduler::lablet::LabletInput;
use iptl_scheduler::{CandidateInput, Input};
use iptl_wire::session::{CellPhase, CellRef, ReceiptsReady, ToOrchestrator};

use super::event::Event;
use super::node::{Machine, Write};
use super::{SILENCE_MS, World};
use crate::takeover::{Fault, Node, Point};
use crate::world::{MILLI, SECOND};

/// A node of the lab by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Orchestrator(usize),
    Lablet(usize),
}

impl World {
    pub(super) fn fault(&mut self, n: usize) {
        match self.schedule.faults[n].fault.clone() {
            Fault::Crash { node, down_ms, in_write: true, written_pct } => {
                self.machine(self.find(node)).dies_in_write = Some((down_ms, written_pct));
            }
            Fault::Crash { node, down_ms, in_write: false, written_pct } => match self.find(node) {
                At::Orchestrator(o) => self.crash_orchestrator(o, down_ms, written_pct),
                At::Lablet(l) => self.crash_lablet(l, down_ms, written_pct),
            },
            Fault::Freeze { node, ms } => self.freeze(self.find(node), ms),
            Fault::Cut { node, from, ms, there, back } => {
                let (until, at) = (self.now + ms * MILLI, self.find(node));
                let named = from.into_iter().filter(|other| self.is_there(*other));
                let others: Vec<At> = named.map(|other| self.find(other)).collect();
                for other in others.into_iter().filter(|other| *other != at) {
                    self.cut(at, other, until, there, back);
                }
            }
            Fault::HandOver { to } => self.hand_over(self.leader().unwrap_or(0), to as usize),
            Fault::Forge { lablet } => self.forge(lablet as usize),
            Fault::SlowDisk { node, ms, factor } => {
                let until = self.now + ms * MILLI;
                self.machine(self.find(node)).slow = (until, factor);
            }
            Fault::FullDisk { node, ms } => {
                let until = self.now + ms * MILLI;
                self.machine(self.find(node)).full_until = until;
            }
            Fault::Jump { node, by_ms } => self.jump(self.find(node), by_ms),
            Fault::Drain { lablet, at_once, ms } => self.drain_machine(lablet as usize, at_once, ms),
        }
    }

    fn is_there(&self, node: Node) -> bool {
        match node {
            Node::Leader => true,
            Node::Orchestrator(n) => (n as usize) < self.orchs.len(),
            Node::Lablet(n) => (n as usize) < self.nodes.len(),
        }
    }

    fn find(&self, node: Node) -> At {
        match node {
            Node::Leader => At::Orchestrator(self.leader().unwrap_or(0)),
            Node::Orchestrator(n) => At::Orchestrator(n as usize),
            Node::Lablet(n) => At::Lablet(n as usize),
        }
    }

    fn machine(&mut self, at: At) -> &mut Machine {
        match at {
            At::Orchestrator(o) => &mut self.orchs[o].machine,
            At::Lablet(l) => &mut self.nodes[l].machine,
        }
    }

    fn freeze(&mut self, at: At, ms: u64) {
        let until = self.now + ms * MILLI;
        let machine = self.machine(at);
        machine.frozen_until = machine.frozen_until.max(until);
        if let At::Lablet(l) = at {
            let node = &mut self.nodes[l];
            node.blocked_until = node.blocked_until.max(until);
            if node.runs() && ms > 2 * SILENCE_MS {
                self.truth.at(Point::FrozenLablet);
            }
        }
    }

    fn cut(&mut self, a: At, b: At, until: u64, there: bool, back: bool) {
        let number = |world: &World, at| match at {
            At::Orchestrator(o) => o,
            At::Lablet(l) => world.node(l),
        };
        let (from, to) = (number(self, a), number(self, b));
        for (pair, is_cut) in [((from, to), there), ((to, from), back)] {
            if is_cut {
                let known = self.cuts.entry(pair).or_default();
                *known = (*known).max(until);
            }
        }
        if there != back {
            self.truth.at(if there { Point::CutThere } else { Point::CutBack });
        }
        if let (At::Orchestrator(o), At::Lablet(l)) | (At::Lablet(l), At::Orchestrator(o)) = (a, b) {
            let hears = self.fate.between(0, 8 * SECOND);
            if let Some((_, session)) = self.nodes[l].session.filter(|(with, _)| *with == o) {
                self.after(hears, Event::LabletHears { l, session });
            }
            if let Some(session) = self.orchs[o].sessions.get(&self.nodes[l].peer).copied() {
                let hears = self.fate.between(0, 8 * SECOND);
                self.after(hears, Event::OrchestratorHears { o, l, session });
            }
        }
    }

    fn jump(&mut self, at: At, by_ms: i64) {
        let by_us = by_ms.saturating_mul(1000);
        match at {
            At::Orchestrator(o) => {
                let clock = &mut self.orchs[o].clock;
                clock.skew_us = clock.skew_us.saturating_add(by_us);
                if self.orchs[o].core.is_some() && by_ms.abs() >= 3_600_000 {
                    self.truth.at(Point::ClockJumped);
                }
                let unix_us = self.wall_us(&self.orchs[o].clock);
                self.tell_core(o, Input::Wall { unix_us });
            }
            At::Lablet(l) => {
                let clock = &mut self.nodes[l].clock;
                clock.skew_us = clock.skew_us.saturating_add(by_us);
                let unix_us = self.wall_us(&self.nodes[l].clock);
                self.tell_lablet(l, LabletInput::Wall { unix_us });
            }
        }
    }

    fn drain_machine(&mut self, l: usize, at_once: bool, ms: u64) {
        for status in self.nodes[l].core.iter().flat_map(|core| core.cells()) {
            match status.phase {
                CellPhase::Preparing | CellPhase::Prepared => self.truth.at(Point::DrainedPreparing),
                CellPhase::Running => self.truth.at(Point::DrainedRunning),
                CellPhase::Ended => {}
            }
        }
        self.nodes[l].draining = true;
        self.tell_lablet(l, LabletInput::Drain { now: at_once });
        self.after(ms * MILLI, Event::Undrain { l });
    }

    pub(super) fn crash_orchestrator(&mut self, o: usize, down_ms: u64, written_pct: u32) {
        if self.orchs[o].candidate.is_none() {
            return;
        }
        self.land_facts(o, written_pct);
        self.drop_core(o);
        let orch = &mut self.orchs[o];
        orch.candidate = None;
        orch.candidate_timer = None;
        orch.machine.frozen_until = 0;
        self.after(down_ms * MILLI, Event::StartOrchestrator { o });
    }

    pub(super) fn crash_lablet(&mut self, l: usize, down_ms: u64, written_pct: u32) {
        let node = &mut self.nodes[l];
        if node.core.is_none() {
            return;
        }
        if let Some(write) = node.syncing.take() {
            let landed = written_pct >= 50;
            let point = match (&write, landed) {
                (Write::Promise(_), true) => Some(Point::PromiseLanded),
                (Write::Promise(_), false) => Some(Point::PromiseTorn),
                (Write::Term(_), true) => Some(Point::TermLanded),
                (Write::Term(_), false) => Some(Point::TermTorn),
                (Write::Tombstone(_), true) => None,
                (Write::Tombstone(_), false) => Some(Point::TombstoneTorn),
            };
            if let Some(point) = point {
                self.truth.at(point);
            }
            if landed {
                node.commit(write);
            }
        }
        node.core = None;
        node.life += 1;
        node.greeting = None;
        node.timer = None;
        node.machine.frozen_until = 0;
        node.queue.clear();
        node.cells.clear();
        node.draining = false;
        self.truth.lablet_died(l);
        if let Some((o, session)) = self.nodes[l].session.take() {
            let hears = self.fate.between(0, 5 * SECOND);
            self.after(hears, Event::OrchestratorHears { o, l, session });
        }
        self.after(down_ms * MILLI, Event::StartLablet { l });
    }

    fn hand_over(&mut self, from: usize, to: usize) {
        let (one, other) = (&self.orchs[from], &self.orchs[to]);
        let ready = from != to
            && one.leads(self.now)
            && one.held.is_empty()
            && one.syncing.is_empty()
            && one.queue.is_empty()
            && other.candidate.as_ref().is_some_and(|c| c.term() == one.term.as_ref())
            && other.machine.frozen_until <= self.now
            && !other.machine.is_full(self.now)
            && !self.is_cut(from, to)
            && !self.is_cut(to, from);
        if !ready {
            return;
        }
        // It stops, and everything that it wrote is there before the other one leads.
        let (peer, term, logs) = (one.peer.clone(), one.term.clone(), one.logs.clone());
        let (store, handed) = (one.store.clone(), one.reconciled);
        self.drop_core(from);
        for (id, log) in &logs {
            self.take_log(to, *id, log);
        }
        self.orchs[to].store.extend(store);
        if handed {
            self.tell_candidate(to, CandidateInput::HandedOver { from: peer, term });
        }
        if let Some(term) = self.orchs[to].term.clone() {
            self.tell_candidate(from, CandidateInput::Heard { term });
        }
        if !handed {
            self.crash_orchestrator(from, 1_000, 0);
        }
    }

    /// A lablet speaks of what another one holds.
    fn forge(&mut self, l: usize) {
        let Some((o, session)) = self.nodes[l].session else { return };
        let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != l);
        let cells: Vec<CellRef> = others.flat_map(|(_, n)| n.records.keys().cloned()).collect();
        self.truth.at(Point::Forged);
        let own: BTreeSet<CellRef> = self.nodes[l].records.keys().cloned().collect();
        for cell in cells.into_iter().filter(|cell| !own.contains(cell)) {
            self.truth.lied(&cell.execution);
            let shard = codec::cid_of(&"forged");
            let high = CellRef { epoch: Epoch { counter: u64::MAX, ..cell.epoch.clone() }, ..cell.clone() };
            for message in [
                ToOrchestrator::Accept(cell.clone()),
                ToOrchestrator::Prepared(cell.clone()),
                ToOrchestrator::Refuse(cell.clone(), "forged".into()),
                ToOrchestrator::Unfit(high.clone(), "forged".into()),
                ToOrchestrator::Receipts(ReceiptsReady { cell: cell.clone(), shard, count: 9 }),
                ToOrchestrator::Started(high),
            ] {
                self.after(MILLI, Event::Up { o, l, session, message: Box::new(message) });
            }
        }
    }
}
