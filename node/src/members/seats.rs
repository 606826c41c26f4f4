//! The orchestrators of a lab: who they are, where they are, and who claimed to lead last.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::Signed;
use iptl_wire::WallTime;
use iptl_wire::takeover::{Claim, LAST_COUNTER, MAX_ADDR_SIZE, MAX_ADDRS, MAX_ORCHESTRATORS, Orchestrators, Seat};

/// What is known of a lab's orchestrators. Whatever is in here was signed by the lab.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: BTreeMap<PeerId, Seat>,
    claim: Option<Signed<Claim>>,
}

impl Seats {
    /// Returns who leads, where somebody claimed to.
    pub(super) fn leader(&self) -> Option<&PeerId> {
        self.claim.as_ref().map(|claim| &claim.body.term.peer)
    }

    pub(super) fn claim(&self) -> Option<&Signed<Claim>> {
        self.claim.as_ref()
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Seat> {
        self.seats.get(peer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Seat)> {
        self.seats.iter()
    }

    pub(super) fn all(&self) -> Orchestrators {
        Orchestrators { claim: self.claim.clone(), seats: self.seats.values().cloned().collect() }
    }

    /// Returns the orchestrators in the order of their certificates: who was let in first, by when the certificate lapses.
    pub(super) fn ranking(&self) -> Vec<PeerId> {
        let mut all: Vec<_> = self.seats.iter().map(|(peer, s)| (s.certificate.body.expires, peer.clone())).collect();
        all.sort();
        all.into_iter().map(|(_, peer)| peer).collect()
    }

    /// Takes in what somebody says, as far as the signatures hold; tells whether something of it was new.
    pub(super) fn learn(&mut self, lab: &PeerId, said: Orchestrators, now: WallTime) -> bool {
        let mut is_new = false;
        if let Some(claim) = said.claim.filter(|claim| self.is_later(claim))
            && iptl_trust::check_claim(&claim, lab, now).is_ok()
        {
            self.seat(lab, Seat { certificate: claim.body.certificate.clone(), addrs: Vec::new() }, now);
            self.claim = Some(claim);
            is_new = true;
        }
        for seat in said.seats.into_iter().take(MAX_ORCHESTRATORS) {
            is_new |= self.seat(lab, seat, now);
        }
        is_new
    }

    fn is_later(&self, claim: &Signed<Claim>) -> bool {
        let term = &claim.body.term;
        term.counter != LAST_COUNTER && self.claim.as_ref().is_none_or(|known| known.body.term < *term)
    }

    fn seat(&mut self, lab: &PeerId, mut seat: Seat, now: WallTime) -> bool {
        let peer = seat.certificate.body.orchestrator.clone();
        if iptl_trust::check_certificate(&seat.certificate, lab, &peer, now).is_err() {
            return false;
        }
        seat.addrs.retain(|addr| addr.len() <= MAX_ADDR_SIZE);
        seat.addrs.truncate(MAX_ADDRS);
        let full = self.seats.len() >= MAX_ORCHESTRATORS;
        match self.seats.get_mut(&peer) {
            Some(known) => {
                // Who names no address does not know better.
                let moved = !seat.addrs.is_empty() && seat.addrs != known.addrs;
                let renewed = seat.certificate.body.expires > known.certificate.body.expires;
                if moved {
                    known.addrs = seat.addrs;
                }
                if renewed {
                    known.certificate = seat.certificate;
                }
                moved || renewed
            }
            None if full => false,
            None => {
                self.seats.insert(peer, seat);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::model::Epoch;
    use iptl_trust::Keypair;

    use super::*;

    fn key(n: u8) -> Keypair {
        Keypair::from_seed(&[n; 32])
    }

    fn seat(lab: u8, orchestrator: u8, expires: u64, addrs: &[&str]) -> Seat {
        let peer = key(orchestrator).peer().clone();
        let certificate = iptl_trust::issue_certificate(&key(lab), peer, "lab".into(), WallTime(expires), false);
        Seat { certificate, addrs: addrs.iter().map(|addr| (*addr).to_owned()).collect() }
    }

    fn claim(lab: u8, orchestrator: u8, counter: u64) -> Orchestrators {
        let term = Epoch { counter, peer: key(orchestrator).peer().clone() };
        let certificate = seat(lab, orchestrator, 100, &[]).certificate;
        let body = Claim { lab: key(lab).peer().clone(), term, certificate };
        Orchestrators { claim: Some(iptl_trust::sign(&key(orchestrator), body)), seats: Vec::new() }
    }

    fn learn(seats: &mut Seats, said: Orchestrators) -> bool {
        seats.learn(key(9).peer(), said, WallTime(5))
    }

    #[test]
    fn what_the_lab_did_not_sign_is_not_taken_in() {
        let mut seats = Seats::default();
        let of = |seat| Orchestrators { claim: None, seats: vec![seat] };
        assert!(!learn(&mut seats, of(seat(8, 1, 100, &["a"]))), "another lab");
        assert!(!learn(&mut seats, of(seat(9, 1, 5, &["a"]))), "it lapsed");
        assert!(!learn(&mut seats, claim(8, 1, 1)), "a claim of another lab");
        let mut forged = claim(9, 1, 1);
        if let Some(claim) = &mut forged.claim {
            claim.body.term.counter = 2;
        }
        assert!(!learn(&mut seats, forged), "a claim that was changed");
        assert!(!learn(&mut seats, claim(9, 1, LAST_COUNTER)), "the last term there is");
        assert!(seats.all().is_empty());
    }

    #[test]
    fn the_later_term_counts_and_addresses_are_not_forgotten() {
        let mut seats = Seats::default();
        assert!(learn(&mut seats, Orchestrators { claim: None, seats: vec![seat(9, 1, 100, &["a"])] }));
        assert!(learn(&mut seats, claim(9, 1, 2)));
        assert!(!learn(&mut seats, claim(9, 2, 1)), "an earlier term");
        assert_eq!(seats.leader(), Some(key(1).peer()));
        assert!(learn(&mut seats, claim(9, 2, 3)));
        assert_eq!(seats.leader(), Some(key(2).peer()));
        assert_eq!(seats.get(key(1).peer()).expect("it was named").addrs, ["a"]);
    }

    #[test]
    fn there_are_never_more_than_may_be() {
        let mut seats = Seats::default();
        for n in 0..30 {
            let long = "x".repeat(MAX_ADDR_SIZE + 1);
            let all = seat(9, 100 + n, 100 + u64::from(n), &[&long, "a"]);
            learn(&mut seats, Orchestrators { claim: None, seats: vec![all] });
        }
        assert_eq!(seats.ranking().len(), MAX_ORCHESTRATORS);
        assert!(seats.iter().all(|(_, seat)| seat.addrs == ["a"]));
    }
}
