//! Whom the lablet serves: the orchestrator of the highest term that it heard of, and nobody of an older one.

use std::collections::{BTreeSet, VecDeque};

use iptl_dag::PeerId;
use iptl_dag::model::Epoch;
use iptl_dag::model::signed::Signed;
use iptl_wire::Timestamp;
use iptl_wire::takeover::{Claim, Finished, LAST_COUNTER, MAX_FINISHED};

use super::{Lablet, LabletEffect};

/// What the lablet knows of who leads.
#[derive(Debug, Default)]
pub(super) struct Leader {
    /// The claim of the term that was promised; none in a lab that never had one.
    pub claim: Option<Signed<Claim>>,
    /// Executions that are over, in the order in which the lablet was told.
    pub finished: VecDeque<Finished>,
    /// The lab has several orchestrators, whether or not a second one ever led.
    pub has_heirs: bool,
}

impl Leader {
    pub(super) fn term(&self) -> Option<&Epoch> {
        self.claim.as_ref().map(|claim| &claim.body.term)
    }
}

impl Lablet {
    /// Returns what a hello says was promised.
    pub fn promised_term(&self) -> Option<&Signed<Claim>> {
        self.leader.claim.as_ref()
    }

    /// Returns what a hello says is over; nothing in a lab of one orchestrator.
    pub fn finished_executions(&self) -> Vec<Finished> {
        self.leader.finished.iter().cloned().collect()
    }

    /// Somebody claims to lead. An older term than that which was promised does nothing.
    pub(super) fn claimed(&mut self, claim: Signed<Claim>) {
        if claim.body.lab == self.config.lab && self.is_newer(&claim.body.term) {
            self.promise_term(claim);
        }
    }

    fn is_newer(&self, term: &Epoch) -> bool {
        term.counter != LAST_COUNTER && self.leader.term().is_none_or(|promised| promised < term)
    }

    /// Whether a session with an orchestrator that leads in a term may be used. A newer term is promised first, and
    /// then the session is made anew, so that its hello says so; of an older one nothing is heard.
    pub(super) fn serves(&mut self, orchestrator: &PeerId, claim: Option<&Signed<Claim>>) -> bool {
        let promised = self.leader.term().cloned();
        let Some(claim) = claim else {
            // Who has no term leads where there never was one.
            self.turn_to(promised.as_ref());
            return promised.is_none();
        };
        let term = &claim.body.term;
        if term.peer != *orchestrator || claim.body.lab != self.config.lab {
            return false;
        }
        if self.is_newer(term) {
            self.promise_term(claim.clone());
            return false;
        }
        if promised.as_ref() != Some(term) {
            self.turn_to(promised.as_ref());
        }
        promised.as_ref() == Some(term)
    }

    fn turn_to(&mut self, promised: Option<&Epoch>) {
        if let Some(term) = promised {
            self.effects.push_back(LabletEffect::Turn { to: term.peer.clone() });
        }
    }

    /// Whether who leads counts a session whose hello said this term. What was promised after the hello was sent it does not
    /// know: the session is made anew, so that its hello says so.
    pub(super) fn is_counted(&mut self, said: Option<&Epoch>) -> bool {
        let promised = self.leader.term().cloned();
        let counts = said == promised.as_ref();
        if !counts {
            self.turn_to(promised.as_ref());
        }
        counts
    }

    /// Promises a term, durably, before anything is said to who leads in it.
    ///
    /// Cells run on under the lease that they have, so that who leads now has time to be heard. Receipts are announced
    /// anew: who held them may be gone.
    fn promise_term(&mut self, claim: Signed<Claim>) {
        let to = claim.body.term.peer.clone();
        // The lease of who led until now is theirs: nobody else remembers it from here on.
        let orchestrators: BTreeSet<PeerId> = self.cells.values().map(|cell| cell.orchestrator().clone()).collect();
        for orchestrator in orchestrators {
            let until = self.lease_of(&orchestrator);
            self.leases.insert(orchestrator, until);
        }
        self.leader.claim = Some(claim.clone());
        self.session = None;
        for cell in self.cells.values_mut() {
            cell.unkeep();
        }
        self.effects.push_back(LabletEffect::PromiseTerm(claim));
        self.effects.push_back(LabletEffect::Turn { to });
    }

    /// Remembers how an execution ended that had a cell here, or of which an earlier end was told: a successor that does
    /// not know it must not run it again.
    pub(super) fn remember_finished(&mut self, end: Finished, had_cell: bool) {
        if self.leader.claim.is_none() && !self.leader.has_heirs {
            return;
        }
        let known = self.leader.finished.iter().position(|f| f.execution == end.execution);
        let counts = match known.and_then(|at| self.leader.finished.get(at)) {
            Some(known) => end.outdoes(known),
            None => had_cell,
        };
        if !counts {
            return;
        }
        if let Some(at) = known {
            self.leader.finished.remove(at);
        }
        self.leader.finished.push_back(end.clone());
        while self.leader.finished.len() > MAX_FINISHED {
            self.leader.finished.pop_front();
        }
        self.effects.push_back(LabletEffect::Tombstone(end));
    }

    /// Until when a cell of an orchestrator may run: under its lease, or that of who leads now.
    pub(super) fn lease_of(&self, orchestrator: &PeerId) -> Timestamp {
        let of = |peer: &PeerId| self.leases.get(peer).copied().unwrap_or_default();
        let leads = self.leader.term().map_or(Timestamp(0), |term| of(&term.peer));
        of(orchestrator).max(leads)
    }
}
