//! Who leads, as a candidate and a lablet see it.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, Epoch, ExecutionId, WorkloadKind};
use iptl_dag::{PeerId, codec};
use iptl_scheduler::lablet::{CellRecord, LabletConfig, LabletEffect, LabletInput};
use iptl_scheduler::{Candidate, CandidateConfig, CandidateEffect, CandidateInput, Lablet};
use iptl_wire::lab::Certificate;
use iptl_wire::session::{CellRef, ToLablet, Welcome};
use iptl_wire::takeover::{Claim, Finished, LAST_COUNTER};
use iptl_wire::{Timestamp, Verified, WallTime};

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn term(counter: u64, n: u8) -> Epoch {
    Epoch { counter, peer: peer(n) }
}

fn ms(ms: u64) -> Timestamp {
    Timestamp(ms * 1_000_000)
}

fn candidate(n: u8, rank: u32) -> Candidate {
    Candidate::new(ms(0), CandidateConfig { peer: peer(n), rank, silence_ms: 5_000, step_ms: 2_500 })
}

fn effects(candidate: &mut Candidate) -> Vec<CandidateEffect> {
    std::iter::from_fn(|| candidate.poll_effect()).collect()
}

#[test]
fn a_candidate_claims_after_a_silence_that_its_rank_prolongs_and_writes_the_term_down_first() {
    for (rank, at) in [(0, 5_000), (1, 7_500), (3, 12_500)] {
        let mut one = candidate(1, rank);
        assert_eq!(one.poll_timeout(), Some(ms(at)));
        one.handle(ms(at - 1), CandidateInput::Timeout);
        assert_eq!(effects(&mut one), []);
        one.handle(ms(at), CandidateInput::Timeout);
        let lead = CandidateEffect::Lead { term: term(1, 1), handed_over: false };
        assert_eq!(effects(&mut one), [CandidateEffect::Persist(term(1, 1)), lead]);
        assert_eq!(one.poll_timeout(), None);
    }
}

#[test]
fn beats_of_who_leads_put_a_claim_off_and_those_of_others_do_not() {
    let mut one = candidate(1, 0);
    one.handle(ms(4_000), CandidateInput::Beat { from: peer(2), term: Some(term(3, 2)) });
    let follow = CandidateEffect::Follow { term: term(3, 2) };
    assert_eq!(effects(&mut one), [CandidateEffect::Persist(term(3, 2)), follow]);
    assert_eq!(one.poll_timeout(), Some(ms(9_000)));
    // An older term, one that somebody else leads in, and none at all where there is one.
    for (from, of) in [(3, Some(term(2, 3))), (3, Some(term(3, 2))), (2, None)] {
        one.handle(ms(6_000), CandidateInput::Beat { from: peer(from), term: of });
        assert_eq!(one.poll_timeout(), Some(ms(9_000)));
    }
    one.handle(ms(6_000), CandidateInput::Beat { from: peer(2), term: Some(term(3, 2)) });
    assert_eq!(one.poll_timeout(), Some(ms(11_000)));
}

#[test]
fn of_two_that_claim_at_once_the_higher_leads() {
    let (low, high) = if peer(1) < peer(2) { (1, 2) } else { (2, 1) };
    let (mut lower, mut higher) = (candidate(low, 0), candidate(high, 0));
    for one in [&mut lower, &mut higher] {
        one.handle(ms(5_000), CandidateInput::Timeout);
        effects(one);
    }
    lower.handle(ms(5_001), CandidateInput::Heard { term: term(1, high) });
    higher.handle(ms(5_001), CandidateInput::Heard { term: term(1, low) });
    assert!(!lower.leads() && higher.leads());
    assert_eq!(effects(&mut higher), []);
}

#[test]
fn who_led_leads_on_after_a_restart_until_it_hears_of_a_later_term() {
    let mut one = candidate(1, 0);
    one.handle(ms(0), CandidateInput::Restore { term: Some(term(4, 1)) });
    assert_eq!(effects(&mut one), [CandidateEffect::Resume { term: term(4, 1) }]);
    one.handle(ms(1), CandidateInput::Heard { term: term(5, 2) });
    assert!(!one.leads());
    // A claim of its own that it does not remember is spent.
    one.handle(ms(2), CandidateInput::Heard { term: term(9, 1) });
    effects(&mut one);
    one.handle(ms(6_000), CandidateInput::Timeout);
    assert!(effects(&mut one).contains(&CandidateEffect::Lead { term: term(10, 1), handed_over: false }));
}

#[test]
fn who_steps_back_waits_for_another_to_claim_and_claims_anew_where_nobody_does() {
    for claimed in [true, false] {
        let mut one = candidate(1, 0);
        one.handle(ms(0), CandidateInput::Restore { term: Some(term(4, 1)) });
        effects(&mut one);
        one.set_rank(ms(100), 2);
        one.handle(ms(100), CandidateInput::StepBack);
        assert_eq!((effects(&mut one), one.leads(), one.poll_timeout()), (Vec::new(), false, Some(ms(10_100))));
        // Others still name it as who leads.
        one.handle(ms(200), CandidateInput::Heard { term: term(4, 1) });
        assert_eq!((effects(&mut one), one.leads()), (Vec::new(), false));
        if claimed {
            one.handle(ms(5_000), CandidateInput::Heard { term: term(5, 2) });
            let follow = CandidateEffect::Follow { term: term(5, 2) };
            assert_eq!(effects(&mut one), [CandidateEffect::Persist(term(5, 2)), follow]);
        } else {
            one.handle(ms(10_100), CandidateInput::Timeout);
            let lead = CandidateEffect::Lead { term: term(5, 1), handed_over: false };
            assert_eq!(effects(&mut one), [CandidateEffect::Persist(term(5, 1)), lead]);
        }
    }
}

#[test]
fn nobody_is_handed_a_lab_by_who_does_not_lead_it() {
    let mut one = candidate(1, 0);
    one.handle(ms(0), CandidateInput::Heard { term: term(3, 2) });
    effects(&mut one);
    one.handle(ms(1), CandidateInput::HandedOver { from: peer(3), term: Some(term(3, 3)) });
    assert!(!one.leads());
    one.handle(ms(1), CandidateInput::HandedOver { from: peer(2), term: Some(term(3, 2)) });
    let lead = CandidateEffect::Lead { term: term(4, 1), handed_over: true };
    assert_eq!(effects(&mut one), [CandidateEffect::Persist(term(4, 1)), lead]);
}

#[test]
fn the_last_term_is_neither_followed_nor_claimed() {
    let mut one = candidate(1, 0);
    one.handle(ms(0), CandidateInput::Heard { term: term(LAST_COUNTER, 2) });
    assert_eq!((effects(&mut one), one.term()), (Vec::new(), None));
    one.handle(ms(0), CandidateInput::Restore { term: Some(term(LAST_COUNTER - 1, 2)) });
    one.handle(ms(9_000), CandidateInput::Timeout);
    assert_eq!((effects(&mut one), one.leads()), (Vec::new(), false));
}

fn claim(counter: u64, n: u8) -> Signed<Claim> {
    let body = Certificate {
        lab: peer(99),
        orchestrator: peer(n),
        name: "lab".into(),
        expires: WallTime(u64::MAX),
        private: false,
    };
    let certificate = Signed { body, signer: peer(99), signature: Vec::new() };
    let body = Claim { lab: peer(99), term: term(counter, n), certificate };
    Signed { body, signer: peer(n), signature: Vec::new() }
}

fn lablet() -> Lablet {
    Lablet::new(LabletConfig::new(peer(50), peer(99)))
}

fn give(lablet: &mut Lablet, input: LabletInput) -> Vec<LabletEffect> {
    lablet.handle(ms(1), input);
    std::iter::from_fn(|| lablet.poll_effect()).collect()
}

fn welcomed(lablet: &mut Lablet, n: u8, claim: Option<Signed<Claim>>) -> Vec<LabletEffect> {
    let promised = lablet.promised_term().map(|claim| claim.body.term.clone());
    answered(lablet, promised, n, claim)
}

/// A welcome comes to a hello that said this term.
fn answered(lablet: &mut Lablet, said: Option<Epoch>, n: u8, claim: Option<Signed<Claim>>) -> Vec<LabletEffect> {
    let certificate = self::claim(1, n).body.certificate;
    let welcome = Welcome { certificate, heartbeat_ms: 1_000, lease_ms: 5_000, offers: Vec::new(), claim };
    let (orchestrator, welcome) = (peer(n), Verified::vouch(welcome));
    give(lablet, LabletInput::SessionUp { orchestrator, hello_at: ms(1), promised: said, welcome })
}

fn heard(lablet: &mut Lablet, claim: Signed<Claim>) -> Vec<LabletEffect> {
    give(lablet, LabletInput::Claim(Verified::vouch(claim)))
}

fn speaks(effects: &[LabletEffect]) -> bool {
    effects.iter().any(|effect| matches!(effect, LabletEffect::Send { .. }))
}

#[test]
fn a_lablet_promises_a_newer_term_before_it_says_anything_in_it() {
    let mut lablet = lablet();
    assert!(speaks(&welcomed(&mut lablet, 1, None)));
    let turned = [LabletEffect::PromiseTerm(claim(2, 2)), LabletEffect::Turn { to: peer(2) }];
    assert_eq!(heard(&mut lablet, claim(2, 2)), turned);
    assert_eq!(lablet.promised_term(), Some(&claim(2, 2)));
    // Nothing of it in the session that there was; all of it in a new one.
    assert!(speaks(&welcomed(&mut lablet, 2, Some(claim(2, 2)))));
    // A term that it first hears of in an answer is promised, and the session made anew.
    let turned = [LabletEffect::PromiseTerm(claim(3, 1)), LabletEffect::Turn { to: peer(1) }];
    assert_eq!(welcomed(&mut lablet, 1, Some(claim(3, 1))), turned);
}

#[test]
fn a_welcome_to_a_hello_that_said_an_older_term_is_no_session_and_hello_is_said_anew() {
    for said in [None, Some(term(1, 1))] {
        let mut lablet = lablet();
        // It hears who leads after its hello was sent: the answer is of the right one, who has not heard of the promise.
        heard(&mut lablet, claim(2, 2));
        let turn = [LabletEffect::Turn { to: peer(2) }];
        assert_eq!(answered(&mut lablet, said, 2, Some(claim(2, 2))), turn);
        assert_eq!((lablet.in_session_with(), lablet.leased_until(&peer(2))), (None, None));
        assert!(speaks(&answered(&mut lablet, Some(term(2, 2)), 2, Some(claim(2, 2)))));
        assert_eq!(lablet.in_session_with(), Some(&peer(2)));
    }
}

#[test]
fn a_lablet_serves_nobody_of_an_older_term() {
    let mut lablet = lablet();
    heard(&mut lablet, claim(5, 2));
    assert_eq!(heard(&mut lablet, claim(4, 1)), []);
    let turn = [LabletEffect::Turn { to: peer(2) }];
    for (n, claim) in [(1, Some(claim(4, 1))), (1, None), (2, Some(claim(4, 2)))] {
        assert_eq!(welcomed(&mut lablet, n, claim), turn);
    }
    // A claim of somebody else, of another lab, and the last term.
    assert_eq!(welcomed(&mut lablet, 1, Some(claim(9, 2))), []);
    let mut foreign = claim(9, 1);
    foreign.body.lab = peer(98);
    assert_eq!(heard(&mut lablet, foreign), []);
    assert_eq!(heard(&mut lablet, claim(LAST_COUNTER, 1)), []);
    assert_eq!(lablet.promised_term(), Some(&claim(5, 2)));
}

#[test]
fn a_promise_outlives_the_lablet() {
    let mut lablet = lablet();
    let over = Finished { execution: iptl_dag::model::ExecutionId(codec::cid_of(&"over")), result: None, term: None };
    give(
        &mut lablet,
        LabletInput::Restore {
            promised: Vec::new(),
            cells: Vec::new(),
            promised_term: Some(claim(5, 2)),
            finished: vec![over.clone()],
        },
    );
    assert_eq!(lablet.finished_executions(), [over]);
    assert_eq!(welcomed(&mut lablet, 1, Some(claim(4, 1))), [LabletEffect::Turn { to: peer(2) }]);
}

#[test]
fn what_runs_goes_on_under_the_lease_of_who_led_between_two_takeovers() {
    let mut lablet = lablet();
    let cell = CellRef { execution: ExecutionId(codec::cid_of(&"runs")), epoch: term(1, 1) };
    let assignments = vec![Assignment { group: "a".into(), start: 0, count: 1, lablet: peer(50) }];
    let record = CellRecord {
        cell: cell.clone(),
        assignments,
        slots: BTreeMap::from([(WorkloadKind::Wasm, 1)]),
        memory_bytes: 1,
        attempt: 1,
    };
    give(
        &mut lablet,
        LabletInput::Restore {
            promised: vec![(cell.execution, cell.epoch.clone())],
            cells: vec![(record, Vec::new())],
            promised_term: Some(claim(1, 1)),
            finished: Vec::new(),
        },
    );
    give(&mut lablet, LabletInput::Adopted { cell: cell.clone(), sealed: BTreeSet::new(), leased_until: ms(1_000) });
    heard(&mut lablet, claim(2, 2));
    welcomed(&mut lablet, 2, Some(claim(2, 2)));
    heard(&mut lablet, claim(3, 3));
    let mut stops_at = |at| {
        lablet.handle(ms(at), LabletInput::Timeout);
        let stopped = |e: LabletEffect| matches!(e, LabletEffect::Stop { cell: stopped, .. } if stopped == cell);
        std::iter::from_fn(|| lablet.poll_effect()).any(stopped)
    };
    assert!(!stops_at(5_000), "the second one's lease lasts until then");
    assert!(stops_at(5_001));
}

fn over(lablet: &mut Lablet, term: Option<Epoch>) -> Vec<LabletEffect> {
    let execution = iptl_dag::model::ExecutionId(codec::cid_of(&"over"));
    let message = ToLablet::Finished(Finished { execution, result: None, term });
    give(lablet, LabletInput::Message { from: peer(2), message: Verified::vouch(message) })
}

#[test]
fn a_lablet_remembers_the_end_of_the_latest_term_of_what_it_had_a_part_in() {
    let mut lablet = lablet();
    heard(&mut lablet, claim(5, 2));
    welcomed(&mut lablet, 2, Some(claim(5, 2)));
    // What it had no part in is nothing to it.
    assert_eq!(over(&mut lablet, Some(term(4, 1))), []);
    let known = Finished { execution: iptl_dag::model::ExecutionId(codec::cid_of(&"over")), result: None, term: None };
    give(
        &mut lablet,
        LabletInput::Restore {
            promised: Vec::new(),
            cells: Vec::new(),
            promised_term: Some(claim(5, 2)),
            finished: vec![known.clone()],
        },
    );
    let later = Finished { term: Some(term(4, 1)), ..known };
    assert_eq!(over(&mut lablet, later.term.clone()), [LabletEffect::Tombstone(later.clone())]);
    for before in [None, Some(term(3, 1)), later.term.clone()] {
        assert_eq!(over(&mut lablet, before), []);
    }
    assert_eq!(lablet.finished_executions(), [later]);
}
