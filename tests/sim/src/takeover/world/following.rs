//! Following: beats with what the logs say, answers to them, and what is held back until these are here.

use std::collections::BTreeSet;
use std::rc::Rc;

use iptl_dag::model::fact::End;
use iptl_dag::model::{Epoch, ExecutionId, Fact};
use iptl_scheduler::{CandidateInput, Effect, Input};
use iptl_wire::session::ToLablet;
use iptl_wire::takeover::Finished;

use super::event::{Event, Logs, Said};
use super::node::Held;
use super::{SILENCE_MS, World};
use crate::takeover::Point;
use crate::world::{MILLI, SECOND};

/// Time in which a candidate that fell silent is asked who leads.
const ASK: u64 = 2 * SECOND;

/// How long an orchestrator is down whose disk is full, in milliseconds.
const STOPPED_MS: u64 = 3_000;

impl World {
    pub(super) fn beats(&mut self) {
        self.after(SECOND, Event::Beats);
        let leads = |o: &usize| self.orchs[*o].leads(self.now);
        let leaders: Vec<usize> = (0..self.orchs.len()).filter(leads).collect();
        if let [one, other] = leaders[..]
            && self.orchs.len() > 2
            && self.is_cut(one, other)
        {
            self.truth.at(Point::PartedLeaders);
        }
        for from in leaders {
            let Some(term) = self.orchs[from].term.clone() else { continue };
            self.miss(from);
            self.say_logs(from, None);
            if (self.now / SECOND).is_multiple_of(2) {
                self.publish_claim(from, &term);
            }
        }
    }

    /// Says what the logs say to all others, or only what some of them say to those in contact.
    fn say_logs(&mut self, from: usize, only: Option<&BTreeSet<ExecutionId>>) {
        let Some(term) = self.orchs[from].term.clone() else { return };
        let wanted = |id: &ExecutionId| only.is_none_or(|only| only.contains(id));
        let orch = &self.orchs[from];
        let beat = orch.beat;
        let logs: Logs = orch.logs.iter().filter(|(id, _)| wanted(id)).map(|(id, log)| (*id, log.clone())).collect();
        let said = Said { logs: Rc::new(logs), ends: Rc::new(orch.ends.values().cloned().collect()) };
        for to in (0..self.orchs.len()).filter(|to| *to != from) {
            let follows = only.is_none() || self.orchs[from].contact.contains_key(&to);
            if follows && !self.is_cut(from, to) {
                let (said, delay) = (said.clone(), self.fate.between(1, 60) * MILLI);
                self.after(delay, Event::Beat { to, from, term: term.clone(), beat, said });
            }
        }
    }

    pub(super) fn beat(&mut self, to: usize, from: usize, term: Epoch, beat: u64, said: &Said) {
        if self.orchs[to].candidate.is_none() {
            return;
        }
        let peer = self.orchs[from].peer.clone();
        self.tell_candidate(to, CandidateInput::Beat { from: peer, term: Some(term.clone()) });
        let known = self.orchs[to].candidate.as_ref().and_then(|c| c.term().cloned());
        if known.as_ref() == Some(&term) {
            let new = |(id, log): (&ExecutionId, &Rc<Vec<Fact>>)| {
                self.orchs[to].logs.get(id).is_none_or(|mine| !Rc::ptr_eq(mine, log) && mine != log)
            };
            if self.orchs[to].machine.is_full(self.now) && said.logs.iter().any(new) {
                // What it cannot write it may not say to have.
                self.truth.at(Point::FollowerFull);
                return self.crash_orchestrator(to, STOPPED_MS, 0);
            }
            for (id, log) in said.logs.iter() {
                self.take_log(to, *id, log);
            }
            for end in said.ends.iter() {
                if self.orchs[to].ends.get(&end.execution).is_some_and(|known| end.outdoes(known)) {
                    self.truth.at(Point::EndOutdone);
                    self.record_end(to, end.clone());
                }
            }
            if !self.is_cut(to, from) {
                let (life, delay) = (self.orchs[from].life, self.fate.between(1, 60) * MILLI);
                let ends = self.orchs[to].ends.values().cloned().collect();
                self.after(delay, Event::Has { o: from, life, from: to, beat, ends });
            }
        } else if let Some(known) = known
            && known > term
            && !self.is_cut(to, from)
        {
            self.after(10 * MILLI, Event::Claim { to: from, term: known });
        }
    }

    /// A log of who leads is kept. Nobody says one that is over to who has it that it is.
    pub(super) fn take_log(&mut self, to: usize, id: ExecutionId, log: &Rc<Vec<Fact>>) {
        let mine = self.orchs[to].logs.entry(id).or_default();
        if Rc::ptr_eq(mine, log) {
            return;
        }
        let end = log.last().and_then(end_of);
        if end.is_some() && mine.last().is_some_and(|last| end_of(last).is_some()) {
            return;
        }
        let same = mine.iter().zip(log.iter()).all(|(a, b)| a == b);
        if !same {
            self.truth.at(Point::Forked);
        }
        if !same || mine.len() < log.len() {
            *mine = log.clone();
            if let Some(end) = end {
                self.record_end(to, end);
            }
        }
    }

    /// Writes down how an execution ended, where that is not outdone by what is written down.
    pub(super) fn record_end(&mut self, o: usize, end: Finished) {
        let ends = &mut self.orchs[o].ends;
        if ends.get(&end.execution).is_none_or(|known| end.outdoes(known)) {
            ends.insert(end.execution, end);
        }
    }

    /// Looks at what is said to be the end of an execution that is over.
    pub(super) fn look_for(&mut self, o: usize, end: Finished) {
        let (life, takes) = (self.orchs[o].life, self.work.between(1, 400) * MILLI);
        self.after(takes, Event::Found { o, life, end });
    }

    pub(super) fn found(&mut self, o: usize, life: u64, end: Finished) {
        let known = self.orchs[o].ends.get(&end.execution);
        if self.orchs[o].life == life && self.truth.is_end(&end) && known.is_some_and(|known| end.outdoes(known)) {
            self.truth.at(Point::EndOutdone);
            self.record_end(o, end.clone());
            self.tell_core(o, Input::Over(end));
        }
    }

    /// A candidate has everything up to a beat.
    pub(super) fn has(&mut self, o: usize, life: u64, from: usize, beat: u64, ends: Vec<Finished>) {
        if self.orchs[o].life != life || self.orchs[o].core.is_none() {
            return;
        }
        for end in ends {
            let known = self.orchs[o].ends.get(&end.execution);
            if known.is_some_and(|known| end.outdoes(known)) {
                self.look_for(o, end);
            }
        }
        let followed = !self.orchs[o].contact.is_empty();
        self.orchs[o].contact.insert(from, self.now);
        for held in self.orchs[o].held.iter_mut().filter(|held| held.beat <= beat) {
            held.waits.remove(&from);
        }
        if !followed {
            self.tell_core(o, Input::Followed { is_followed: true });
        }
        self.release(o);
    }

    /// Takes candidates as out of contact that were silent for a lease, and asks them who leads.
    fn miss(&mut self, o: usize) {
        let silent = |heard: u64| self.now.saturating_sub(heard) >= SILENCE_MS * MILLI;
        let missed: Vec<usize> = self.orchs[o].contact.iter().filter(|(_, at)| silent(**at)).map(|(f, _)| *f).collect();
        for from in missed {
            self.truth.at(Point::ContactLost);
            self.orchs[o].contact.remove(&from);
            let known = self.orchs[from].candidate.as_ref().and_then(|c| c.term().cloned());
            let reaches =
                !self.is_cut(o, from) && !self.is_cut(from, o) && self.orchs[from].machine.frozen_until <= self.now;
            if let Some(term) = known.filter(|known| reaches && Some(known) > self.orchs[o].term.as_ref()) {
                self.after(20 * MILLI, Event::Claim { to: o, term });
            }
            let life = self.orchs[o].life;
            self.after(ASK, Event::Asked { o, life, from });
            if self.orchs[o].contact.is_empty() {
                self.tell_core(o, Input::Followed { is_followed: false });
            }
        }
    }

    /// Whoever fell silent knew of nobody else who leads: it is not waited for.
    pub(super) fn asked(&mut self, o: usize, life: u64, from: usize) {
        if self.orchs[o].life != life || self.orchs[o].contact.contains_key(&from) {
            return;
        }
        for held in &mut self.orchs[o].held {
            if held.waits.remove(&from) {
                self.truth.at(Point::NotWaitedFor);
            }
        }
        self.release(o);
    }

    /// Facts became durable here: what comes after them is held back until all who follow have them.
    pub(super) fn hold(&mut self, o: usize, changed: &BTreeSet<ExecutionId>) {
        if changed.is_empty() || self.orchs[o].contact.is_empty() {
            return;
        }
        self.orchs[o].beat += 1;
        let waits: BTreeSet<usize> = self.orchs[o].contact.keys().copied().collect();
        let beat = self.orchs[o].beat;
        self.orchs[o].held.push_back(Held { beat, waits, effects: Vec::new() });
        self.truth.at(Point::HeldBack);
        self.say_logs(o, Some(changed));
    }

    /// Carries out an effect whose facts are durable here, or holds it back. Leases are renewed at once.
    pub(super) fn follow_up(&mut self, o: usize, effect: Effect) {
        let at_once = matches!(&effect, Effect::Send { message: ToLablet::Lease(_), .. });
        match self.orchs[o].held.back_mut().filter(|_| !at_once) {
            Some(held) => held.effects.push(effect),
            None => {
                let life = self.orchs[o].life;
                self.core_effect(o, life, effect);
            }
        }
    }

    fn release(&mut self, o: usize) {
        let life = self.orchs[o].life;
        while self.orchs[o].life == life && self.orchs[o].held.front().is_some_and(|held| held.waits.is_empty()) {
            let Some(held) = self.orchs[o].held.pop_front() else { return };
            for effect in held.effects {
                self.core_effect(o, life, effect);
                if self.orchs[o].life != life || self.orchs[o].core.is_none() {
                    return;
                }
            }
        }
    }
}

/// Returns the end that a fact writes down.
pub(super) fn end_of(fact: &Fact) -> Option<Finished> {
    let result = match fact.kind.end()? {
        End::Sealed(result) => Some(result),
        End::Failed(_) => None,
    };
    Some(Finished { execution: fact.execution, result, term: fact.kind.ended_in().cloned() })
}
