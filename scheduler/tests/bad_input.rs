//! What is bad is refused or repaired with a clear word, and nothing is lost by it: one test for each kind.

use std::collections::BTreeMap;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{FactKind, WorkloadKind};
use iptl_scheduler::log::{Misfit, Tail, audit, records};
use iptl_scheduler::{Effect, Input, placement};
use iptl_wire::control::FailureKind;
use iptl_wire::session::{Bid, Inventory, Slots, ToLablet, ToOrchestrator};
use iptl_wire::takeover::LAST_COUNTER;

use crate::cores::{Bench, cell, epoch, failure, grants, inventory, order, peer, persisted, run};
use crate::lablet;
use crate::log::{Writer, execution, granted, key, submitted, whole, writers};

#[test]
fn a_log_that_is_cut_at_any_byte_keeps_the_facts_before_the_cut() {
    let log = whole();
    let bytes = log.bytes();
    let ends: Vec<usize> = records(&bytes).bodies.iter().map(|body| body.end).collect();
    for cut in 0..bytes.len() {
        let found = records(&bytes[..cut]);
        let before = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(found.bodies.len(), before, "cut at {cut}");
        let expected = if found.whole == cut { Tail::Clean } else { Tail::Torn };
        assert_eq!(found.tail, expected, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_never_a_fact_and_before_the_last_record_it_is_damage() {
    let log = whole();
    let bytes = log.bytes();
    let bodies = records(&bytes).bodies;
    let last = bodies[bodies.len() - 2].end;
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let found = records(&flipped);
        let before = bodies.iter().filter(|body| body.end <= at).count();
        assert_eq!(found.bodies.len(), before, "flipped at {at}");
        let expected = if at < last { Tail::Damaged } else { Tail::Torn };
        assert_eq!(found.tail, expected, "flipped at {at}");
    }
}

#[test]
fn two_logs_of_one_execution_are_a_fork() {
    let mut one = Writer::new();
    one.write(1, 1, submitted()).write(1, 1, granted(1)).write(1, 1, FactKind::Started {});
    let mut two = Writer::new();
    two.write(1, 1, submitted()).write(1, 1, granted(2)).write(1, 1, FactKind::Started {});
    let spliced = [one.blocks[0].clone(), one.blocks[1].clone(), two.blocks[2].clone()];
    assert_eq!(audit(execution(), writers(), &spliced).misfit, Some(Misfit::Forked { seq: 2 }));
}

#[test]
fn a_log_that_a_stranger_signed_is_refused_and_named_and_what_was_before_it_stands() {
    let mut log = Writer::new();
    log.write(1, 1, submitted()).write(1, 1, granted(1)).write(3, 1, FactKind::Started {});
    let audited = audit(execution(), writers(), &log.blocks);
    assert_eq!(audited.facts.len(), 2);
    assert_eq!(audited.misfit, Some(Misfit::Stranger { seq: 2, signer: key(3).peer().clone() }));
    // All of it by a stranger is no log at all.
    let mut foreign = Writer::new();
    foreign.write(3, 1, submitted()).write(3, 1, granted(1));
    let audited = audit(execution(), writers(), &foreign.blocks);
    assert_eq!((audited.facts.len(), audited.misfit.is_some()), (0, true));
}

#[test]
fn a_clock_that_jumps_a_year_ends_nothing_and_loses_nothing() {
    const YEAR_US: u64 = 31_536_000_000_000;
    for unix_us in [1_800_000_000_000_000 + YEAR_US, 1_800_000_000_000_000 - YEAR_US] {
        let mut bench = Bench::new();
        let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
        let effects = bench.give(Input::Wall { unix_us });
        assert_eq!(persisted(&effects), [], "the wall clock decides nothing that runs");
        let effects = bench.wait(2_000);
        assert_eq!(persisted(&effects), []);
        let phase = bench.core.executions().into_iter().find(|view| view.execution == id).map(|view| view.phase);
        assert!(phase.as_deref().is_some_and(|phase| phase.starts_with("running")), "{phase:?}");
        // Leases and the run's time go by the other clock, which goes on as before.
        let effects = bench.wait(60_000);
        assert!(persisted(&effects).iter().any(|fact| matches!(fact, FactKind::Lost { .. })), "{effects:?}");
    }
}

#[test]
fn an_epoch_that_leaves_none_after_it_is_refused_and_earlier_ones_go_on() {
    let mut lablet = lablet::Bench::up();
    for counter in [LAST_COUNTER, u64::MAX] {
        let mut grant = lablet::grant(1, 1);
        grant.cell.epoch.counter = counter;
        let signed = Signed { body: grant.clone(), signer: peer(lablet::ORCHESTRATOR), signature: Vec::new() };
        let said = lablet::sent(&lablet.hear(ToLablet::Grant(signed)));
        let [ToOrchestrator::Refuse(named, reason)] = &said[..] else { panic!("{said:?}") };
        assert_eq!(named, &grant.cell);
        assert_eq!(reason, "the grant spends the last term there is");
    }
    let said = lablet::sent(&lablet.grant(1, 1));
    assert!(matches!(said[..], [ToOrchestrator::Accept(_)]), "{said:?}");

    // What says to come from there means no cell that the orchestrator knows.
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
    for counter in [0, LAST_COUNTER, u64::MAX] {
        let refused = ToOrchestrator::Refuse(cell(id, counter), "spent".into());
        assert_eq!(persisted(&bench.say(1, refused)), []);
    }
}

#[test]
fn a_lab_of_no_lablets_has_runs_wait_and_says_what_for() {
    let nobody = placement(&run(&[("a", 3)]), &BTreeMap::new(), &[], &BTreeMap::new());
    assert_eq!((nobody.assignments.len(), nobody.missing()), (0, 3));
    let mut bench = Bench::new();
    let (id, effects) = bench.submit(run(&[("a", 3)]));
    assert_eq!(failure(&effects), None);
    let view = bench.core.executions().into_iter().find(|view| view.execution == id).expect("it waits");
    assert_eq!(view.phase, "waiting: waits for a lablet: none is connected");
    // Who comes in time is asked.
    let effects = bench.hello(1, 1, 1, 3, vec![]);
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(_))), "{effects:?}");
}

#[test]
fn a_liar_that_claims_a_million_cores_gets_no_more_than_it_takes() {
    let lie = Inventory {
        cpus: 1_000_000,
        memory_bytes: u64::MAX,
        free_memory_bytes: u64::MAX,
        slots: BTreeMap::from([(WorkloadKind::Wasm, Slots::of(u32::MAX))]),
        ..inventory(0)
    };
    let mut bench = Bench::new();
    for n in [1, 2] {
        bench.hello_with(n, n, u64::from(n), lie.clone(), vec![]);
    }
    bench.hello(3, 3, 3, 4, vec![]);
    let (id, _) = bench.submit(run(&[("a", 4)]));
    // Asked for what it claimed, it declines or says nothing: the honest one gets all.
    bench.bid(3, id, 4);
    let declined = Bid { execution: id, epoch: epoch(1), slots: BTreeMap::new(), reason: "not so many".into() };
    bench.say(1, ToOrchestrator::Bid(declined));
    let effects = bench.wait(3_000);
    let granted = grants(&effects);
    let [grant] = &granted[..] else { panic!("{granted:?}") };
    let count: u32 = grant.assignments.iter().map(|assignment| assignment.count).sum();
    assert_eq!((&grant.lablet, count), (&peer(3), 4));
    bench.say(3, ToOrchestrator::Accept(grant.cell.clone()));
    let effects = bench.say(3, ToOrchestrator::Prepared(grant.cell.clone()));
    assert!(persisted(&effects).contains(&FactKind::Started {}), "{effects:?}");
}

#[test]
fn a_run_of_nobody_is_refused_with_a_word_of_what_to_do() {
    for empty in [run(&[("a", 0)]), run(&[])] {
        let mut bench = Bench::new();
        bench.hello(1, 1, 1, 3, vec![]);
        let (id, effects) = bench.submit(empty);
        let failure = failure(&effects).expect("it is refused");
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Usage, "run.empty"));
        assert_eq!(order(&effects), None, "there is nothing to make a result of");
        assert!(bench.core.executions().iter().all(|view| view.execution != id));
    }
}

#[test]
fn a_run_of_ten_million_is_refused_before_anything_is_placed() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 3, vec![]);
    let (id, effects) = bench.submit(run(&[("a", 10_000_000)]));
    let failure = failure(&effects).expect("it is refused");
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Usage, "run.too-large"));
    assert!(failure.message.contains("10000000 instances"), "{}", failure.message);
    assert!(!effects.iter().any(|e| matches!(e, Effect::StorePlacement(_) | Effect::PublishOffer(_))));
    assert!(bench.core.executions().iter().all(|view| view.execution != id));
    // A sum that is larger than any number of instances is one, too.
    let groups: Vec<(String, u32)> = (0..5).map(|n| (format!("g{n}"), u32::MAX)).collect();
    let groups: Vec<(&str, u32)> = groups.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    let (_, effects) = bench.submit_by(202, 9, run(&groups));
    assert!(crate::cores::failure(&effects).is_some());
    // The lab goes on with what fits.
    let (id, effects) = bench.submit_by(202, 8, run(&[("a", 3)]));
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(offer) if offer.execution == id)));
}
