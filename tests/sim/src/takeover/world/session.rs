//! What passes between an orchestrator and its lablets, and how each hears that the other is gone.

use iptl_scheduler::lablet::LabletInput;
use iptl_scheduler::{CandidateInput, Input};
use iptl_wire::Verified;
use iptl_wire::session::{CellRef, Hello, ToLablet, ToOrchestrator, Welcome};

use super::event::Event;
use super::{SILENCE_MS, World};
use crate::lablet::FakeCell;
use crate::takeover::Point;
use crate::world::MILLI;

impl World {
    pub(super) fn hears_up(&mut self, o: usize, l: usize, session: u64, message: ToOrchestrator) {
        let from = self.nodes[l].peer.clone();
        if self.orchs[o].sessions.get(&from) == Some(&session) && !self.is_cut(self.node(l), o) {
            self.tell_core(o, Input::Message { from, message: Verified::vouch(message) });
        }
    }

    pub(super) fn hears_down(&mut self, l: usize, o: usize, session: u64, message: ToLablet) {
        // What an orchestrator says that leads no more comes to nobody.
        let leads = self.nodes[l].term().is_none_or(|term| term.peer == self.orchs[o].peer);
        if !leads && self.nodes[l].core.is_some() && matches!(message, ToLablet::Start(_) | ToLablet::Grant(_)) {
            self.truth.at(Point::OldRefused);
        }
        if self.nodes[l].session != Some((o, session)) || self.is_cut(o, self.node(l)) {
            return;
        }
        let from = self.orchs[o].peer.clone();
        let renewed = match &message {
            ToLablet::Lease(renewal) => Some((renewal.seq, renewal.lease_ms)),
            _ => None,
        };
        self.tell_lablet(l, LabletInput::Message { from: from.clone(), message: Verified::vouch(message) });
        // A lablet that stood still looks at its leases first: what ran out meanwhile is not saved by what waited for it.
        if let Some((seq, lease_ms)) = renewed {
            if u64::from(lease_ms) > SILENCE_MS {
                self.truth.at(Point::LeaseDoubled);
            }
            self.truth.renewed(l, &from, seq, lease_ms);
        }
    }

    pub(super) fn hello(&mut self, o: usize, l: usize, session: u64, hello: Hello) {
        if self.orchs[o].candidate.is_none() || self.is_cut(self.node(l), o) {
            return;
        }
        if let Some(claim) = &hello.promised
            && self.orchs[o].core.is_none()
        {
            // The driver has checked it: its candidate hears of it, too.
            self.tell_candidate(o, CandidateInput::Heard { term: claim.body.term.clone() });
        }
        if self.orchs[o].core.is_some() {
            let from = self.nodes[l].peer.clone();
            self.tell_core(o, Input::Hello { from, session, hello: Verified::vouch(hello) });
        } else {
            self.after(10 * MILLI, Event::Elsewhere { l, session });
        }
    }

    pub(super) fn welcomed(&mut self, l: usize, o: usize, session: u64, welcome: Welcome) {
        let greeted = self.nodes[l].greeting.filter(|(at, s, _)| (*at, *s) == (o, session));
        let Some((_, greeted, hello_at)) = greeted else { return self.welcomed_late(l, o, session, welcome) };
        if self.is_cut(o, self.node(l)) {
            return;
        }
        let term = welcome.claim.as_ref().map(|claim| &claim.body.term);
        let of_another = |(cell, fake): (&CellRef, &FakeCell)| {
            cell.epoch.peer != self.orchs[o].peer && !fake.running.is_empty() && !fake.stopping
        };
        if self.nodes[l].cells.iter().any(of_another) {
            self.truth.at(Point::RanOn);
        }
        let orchestrator = self.orchs[o].peer.clone();
        let core = self.nodes[l].core.as_ref();
        let promised = self.nodes[l].said.clone();
        let serves = core.is_some_and(|core| core.promised_term().map(|claim| &claim.body.term) == term);
        let serves = serves && promised.as_ref() == term;
        let lease_ms = welcome.lease_ms;
        self.nodes[l].greeting = None;
        self.nodes[l].session = Some((o, greeted));
        self.nodes[l].session_since = self.now;
        let welcome = Verified::vouch(welcome);
        self.truth.begins(l);
        self.tell_lablet(l, LabletInput::SessionUp { orchestrator: orchestrator.clone(), hello_at, promised, welcome });
        if serves {
            self.truth.welcomed(l, &orchestrator, lease_ms);
        }
    }

    /// An answer that was on its way to the driver when the lablet turned to somebody else, and did not say hello since.
    fn welcomed_late(&mut self, l: usize, o: usize, session: u64, welcome: Welcome) {
        let turned = self.nodes[l].turned_from.take_if(|(at, s, _)| (*at, *s) == (o, session));
        let Some((_, _, hello_at)) = turned.filter(|_| self.nodes[l].greeting.is_none()) else { return };
        self.truth.at(Point::WelcomedLate);
        let (orchestrator, welcome) = (self.orchs[o].peer.clone(), Verified::vouch(welcome));
        let promised = self.nodes[l].said.clone();
        self.tell_lablet(l, LabletInput::SessionUp { orchestrator, hello_at, promised, welcome });
    }

    /// Who was dialled does not lead, or does not answer: the next one is.
    pub(super) fn turned_away(&mut self, l: usize, session: u64) {
        if self.nodes[l].greeting.is_some_and(|(_, s, _)| s == session) {
            self.nodes[l].greeting = None;
            self.nodes[l].target = (self.nodes[l].target + 1) % self.orchs.len();
            let life = self.nodes[l].life;
            let wait = self.fate.between(50, 400) * MILLI;
            self.after(wait, Event::Connect { l, life });
        }
    }

    pub(super) fn lablet_hears(&mut self, l: usize, session: u64) {
        let Some((o, _)) = self.nodes[l].session.take_if(|(_, s)| *s == session) else { return };
        let orchestrator = self.orchs[o].peer.clone();
        self.tell_lablet(l, LabletInput::SessionDown { orchestrator });
        let life = self.nodes[l].life;
        self.after(200 * MILLI, Event::Connect { l, life });
    }

    pub(super) fn orchestrator_hears(&mut self, o: usize, l: usize, session: u64) {
        let from = self.nodes[l].peer.clone();
        if self.orchs[o].sessions.get(&from) == Some(&session) {
            self.orchs[o].sessions.remove(&from);
            self.tell_core(o, Input::Gone { from, session });
        }
    }
}
