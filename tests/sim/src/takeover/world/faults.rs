//! What breaks: nodes die, stand still, are cut off, hand over, and lie.

use std::collections::BTreeSet;

use iptl_dag::codec;
use iptl_dag::model::Epoch;
use iptl_scheduler::CandidateInput;
use iptl_wire::session::{CellRef, ReceiptsReady, ToOrchestrator};

use super::{Event, World};
use crate::takeover::truth::Point;
use crate::world::{MILLI, SECOND};

impl World {
    pub(super) fn fault(&mut self) {
        let count = self.orchs.len() as u64;
        let leader = self.leader().unwrap_or(0);
        let any = self.draws.between(0, count - 1) as usize;
        let o = if self.draws.chance(700_000) { leader } else { any };
        let l = self.draws.between(0, self.nodes.len() as u64 - 1) as usize;
        let long = self.draws.between(2, 25) * SECOND;
        match self.draws.between(0, 9) {
            0 | 1 => {
                let down = long;
                if self.draws.chance(500_000) {
                    self.orchs[o].dies_in_write = Some(down);
                } else {
                    self.crash_orchestrator(o, down);
                }
            }
            2 => self.crash_lablet(l, long),
            3 => self.orchs[o].frozen_until = self.orchs[o].frozen_until.max(self.now + long),
            4 | 5 => {
                // From the other orchestrators, in one direction or both.
                let (up, down) = [(true, true), (true, false), (false, true)][self.draws.between(0, 2) as usize];
                for other in (0..self.orchs.len()).filter(|other| *other != o) {
                    self.cut(o, other, long, up, down);
                }
                // And from some of the lablets.
                for l in 0..self.nodes.len() {
                    if self.draws.chance(500_000) {
                        self.cut(o, self.node(l), long, true, true);
                    }
                }
            }
            6 => {
                let (up, down) = [(true, true), (true, false), (false, true)][self.draws.between(0, 2) as usize];
                self.cut(o, self.node(l), long, up, down);
            }
            7 => {
                // A lablet is cut off from all.
                for o in 0..self.orchs.len() {
                    self.cut(o, self.node(l), long, true, true);
                }
            }
            8 => self.hand_over(leader, any),
            _ => self.forge(l),
        }
    }

    pub(super) fn cut(&mut self, a: usize, b: usize, ms: u64, there: bool, back: bool) {
        let until = self.now + ms;
        if there {
            self.cuts.push((a, b, until));
        }
        if back {
            self.cuts.push((b, a, until));
        }
        if let Some(l) = b.checked_sub(self.orchs.len()) {
            let hears = self.draws.between(0, 8 * SECOND);
            if let Some((_, session)) = self.nodes[l].session.filter(|(o, _)| *o == a) {
                self.after(hears, Event::LabletHears { l, session });
            }
            if let Some(session) = self.orchs[a].sessions.get(&self.nodes[l].peer).copied() {
                let hears = self.draws.between(0, 8 * SECOND);
                self.after(hears, Event::OrchestratorHears { o: a, l, session });
            }
        }
    }

    pub(super) fn crash_orchestrator(&mut self, o: usize, down: u64) {
        if self.orchs[o].candidate.is_none() {
            return;
        }
        self.drop_core(o);
        self.orchs[o].candidate = None;
        self.orchs[o].frozen_until = 0;
        self.after(down, Event::StartOrchestrator { o });
    }

    pub(super) fn crash_lablet(&mut self, l: usize, down: u64) {
        let node = &mut self.nodes[l];
        if node.core.is_none() {
            return;
        }
        node.core = None;
        node.life += 1;
        node.greeting = None;
        node.cells.clear();
        if let Some((o, session)) = node.session.take() {
            let hears = self.draws.between(0, 5 * SECOND);
            self.after(hears, Event::OrchestratorHears { o, l, session });
        }
        self.after(down, Event::StartLablet { l });
    }

    pub(super) fn hand_over(&mut self, from: usize, to: usize) {
        let ready = from != to
            && self.orchs[from].core.is_some()
            && self.orchs[from].held.is_empty()
            && self.orchs[from].frozen_until <= self.now
            && self.orchs[to].candidate.as_ref().is_some_and(|c| c.term() == self.orchs[from].term.as_ref())
            && self.orchs[to].frozen_until <= self.now
            && !self.is_cut(from, to)
            && !self.is_cut(to, from);
        if !ready {
            return;
        }
        // It stops, and everything that it wrote is there before the other one leads.
        let (peer, term, logs) =
            (self.orchs[from].peer.clone(), self.orchs[from].term.clone(), self.orchs[from].logs.clone());
        let handed = self.orchs[from].reconciled;
        self.drop_core(from);
        for (id, log) in logs {
            self.take_log(to, id, log);
        }
        let store = self.orchs[from].store.clone();
        self.orchs[to].store.extend(store);
        if handed {
            self.tell_candidate(to, CandidateInput::HandedOver { from: peer, term });
        }
        if let Some(term) = self.orchs[to].term.clone() {
            self.tell_candidate(from, CandidateInput::Heard { term });
        }
        if !handed {
            self.crash_orchestrator(from, SECOND);
        }
    }

    /// A lablet speaks of what another one holds.
    pub(super) fn forge(&mut self, l: usize) {
        let Some((o, session)) = self.nodes[l].session else { return };
        let cells: Vec<CellRef> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(n, _)| *n != l)
            .flat_map(|(_, n)| n.records.keys().cloned())
            .collect();
        self.truth.at(Point::Forged);
        let own: BTreeSet<CellRef> = self.nodes[l].records.keys().cloned().collect();
        for cell in cells.into_iter().filter(|cell| !own.contains(cell)) {
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
