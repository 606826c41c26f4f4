//! What is bad is refused or repaired with a clear word, and nothing is lost by it: one test for each kind.

use std::collections::BTreeMap;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{ExecutionId, FactKind, WorkloadKind};
use iptl_scheduler::log::{Misfit, Tail, audit, records, tail};
use iptl_scheduler::{Effect, Input, placement};
use iptl_wire::control::FailureKind;
use iptl_wire::session::{Bid, CellPhase, CellRef, Inventory, Slots, ToLablet, ToOrchestrator};
use iptl_wire::takeover::LAST_COUNTER;

use crate::bench::{Bench, cell, epoch, failure, grants, inventory, order, peer, persisted, run, sent_to, status};
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
fn a_flipped_bit_anywhere_is_never_a_fact_and_is_damage_that_is_not_cut_off() {
    let log = whole();
    let bytes = log.bytes();
    let bodies = records(&bytes).bodies;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let found = records(&flipped);
            let before = bodies.iter().filter(|body| body.end <= at).count();
            assert_eq!(found.bodies.len(), before, "bit {bit} flipped at {at}");
            assert_eq!(found.tail, Tail::Damaged, "bit {bit} flipped at {at}");
        }
    }
}

#[test]
fn a_last_record_of_which_sectors_were_not_written_is_torn_and_cut_off() {
    let log = whole();
    let bytes = log.bytes();
    let bodies = records(&bytes).bodies;
    let last = bodies[bodies.len() - 2].end;
    for lead in 0..512 {
        // The same record wherever it begins in a sector.
        let at = last + lead;
        let sectors = at / 512..bytes.len().div_ceil(512) + 1;
        for sector in sectors {
            let hole = (sector * 512).max(at)..((sector + 1) * 512).min(bytes.len() + lead);
            if hole.len() <= 4 {
                continue;
            }
            let mut torn = bytes[last..].to_vec();
            torn[hole.start - at..hole.end - at].fill(0);
            assert_eq!(tail(&torn, at), Tail::Torn, "{hole:?} are zeros in a record at {at}");
        }
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
fn a_clock_that_jumps_a_year_before_a_restart_ends_nothing_and_gives_nobody_another_year() {
    const YEAR_US: i64 = 31_536_000_000_000;
    for jump_us in [YEAR_US, -YEAR_US] {
        let mut bench = Bench::new();
        let mut runs = run(&[("a", 3), ("b", 1)]);
        runs.timeout_ms = 15_000;
        let id = bench.started_with(runs);
        let mut waits = run(&[("a", 3)]);
        waits.placing.within_ms = Some(12_000);
        let (waiting, _) = bench.submit_by(202, 9, waits);
        bench.wait(1_000);
        // It ran for a second when the orchestrator went, and the machine's clock is set before it is back.
        let ages = [(id, Some(1_000), Some(1_000)), (waiting, Some(1_000), None)];
        let effects = bench.restart_at(jump_us, &ages);
        assert_eq!(persisted(&effects), [], "nothing has ended");
        for n in [1, 2] {
            let status = status(cell(id, 1), CellPhase::Running, 2, 0);
            bench.hello(n, n, 10 + u64::from(n), 2, vec![status]);
        }
        let ended = |facts: &[FactKind], wanted: fn(&FactKind) -> bool| facts.iter().any(wanted);
        let timed_out: fn(&FactKind) -> bool = |fact| matches!(fact, FactKind::TimedOut {});
        let failed: fn(&FactKind) -> bool = |fact| matches!(fact, FactKind::CannotStart(_));
        let mut facts = Vec::new();
        let mut times = (None, None);
        for tick in 1..=16_u64 {
            facts.extend(persisted(&bench.wait(1_000)));
            for n in [1, 2] {
                let status = status(cell(id, 1), CellPhase::Running, 2, 0);
                let seq = bench.next_seq();
                facts.extend(persisted(&bench.heartbeat(n, seq, 2, vec![status])));
            }
            times.0 = times.0.or(ended(&facts, timed_out).then_some(tick));
            times.1 = times.1.or(ended(&facts, failed).then_some(tick));
        }
        // Of fifteen seconds for the run and twelve for the start one is over.
        assert_eq!(times, (Some(14), Some(11)), "jump of {jump_us} us: {facts:?}");
    }
}

#[test]
fn a_lab_that_was_down_for_two_days_hears_its_lablets_before_it_ends_what_is_late() {
    const TWO_DAYS_MS: u64 = 2 * 24 * 3600 * 1000;
    // Whether the machine kept its clocks, or only the wall clock says how long it was.
    for known in [true, false] {
        let mut bench = Bench::new();
        let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
        let mut waits = run(&[("a", 3)]);
        waits.placing.within_ms = Some(60_000);
        let (waiting, _) = bench.submit_by(202, 9, waits);
        bench.wait(1_000);
        let age = TWO_DAYS_MS + 1_000;
        let ages = [(id, Some(age), Some(age)), (waiting, Some(age), None)];
        let ages = if known { &ages[..] } else { &[] };
        let effects = bench.restart_at(TWO_DAYS_MS as i64 * 1_000, ages);
        assert_eq!(persisted(&effects), [], "lablets may have receipts");
        // One comes back with what it finished; the other never does.
        let named = cell(id, 1);
        bench.hello(1, 1, 11, 2, vec![status(named.clone(), CellPhase::Ended, 0, 2)]);
        bench.receipts(1, &named, &[("a", 0), ("a", 1)]);
        let effects = bench.wait(16_000);
        let orders = effects.iter().filter_map(|effect| match effect {
            Effect::Assemble(order) => Some(order),
            _ => None,
        });
        let order = orders.into_iter().find(|order| order.execution == id).expect("it ends");
        assert_eq!((order.accepted.len(), order.missing.len()), (2, 2));
        let failure = failure(&effects).expect("it comes too late");
        assert_eq!(failure.code, "lab.not-started");
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

/// A run of four that a liar holds alone which claims a million cores and bids for all of it, and an honest lablet that
/// would hold it.
fn held_by_a_liar(bench: &mut Bench) -> (ExecutionId, CellRef) {
    let (id, _) = bench.submit(run(&[("a", 4)]));
    let granted = grants(&bench.bid(1, id, u32::MAX));
    let [grant] = &granted[..] else { panic!("{granted:?}") };
    assert_eq!(grant.lablet, peer(1), "nobody else is there");
    bench.say(1, ToOrchestrator::Accept(grant.cell.clone()));
    (id, grant.cell.clone())
}

/// Has both of them say that they are there for so many seconds, the liar with its cell in a phase.
fn both_there(bench: &mut Bench, seconds: u64, named: &CellRef, phase: CellPhase) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..seconds {
        effects.extend(bench.wait(1_000));
        let seq = bench.next_seq();
        effects.extend(bench.heartbeat(1, seq, u32::MAX, vec![status(named.clone(), phase, 0, 0)]));
        effects.extend(bench.heartbeat(3, seq, 4, vec![]));
    }
    effects
}

#[test]
fn a_liar_that_takes_all_and_prepares_nothing_gives_way_to_who_does() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, inventory(u32::MAX), vec![]);
    let (id, named) = held_by_a_liar(&mut bench);
    bench.hello(3, 3, 3, 4, vec![]);
    let effects = both_there(&mut bench, 123, &named, CellPhase::Preparing);
    let granted = grants(&effects);
    let grant = granted.first().expect("it is granted to the honest one");
    // A grant that nobody takes is sent again with every heartbeat.
    assert!(granted.iter().all(|again| again == grant), "{granted:?}");
    assert_eq!((&grant.lablet, grant.cell.execution), (&peer(3), id));
    bench.say(3, ToOrchestrator::Accept(grant.cell.clone()));
    let effects = bench.say(3, ToOrchestrator::Prepared(grant.cell.clone()));
    assert!(persisted(&effects).contains(&FactKind::Started {}), "{effects:?}");
}

#[test]
fn a_liar_that_takes_all_and_starts_nothing_holds_a_run_no_longer_than_its_time() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, inventory(u32::MAX), vec![]);
    let (id, named) = held_by_a_liar(&mut bench);
    bench.hello(3, 3, 3, 4, vec![]);
    let effects = bench.say(1, ToOrchestrator::Prepared(named.clone()));
    assert!(persisted(&effects).contains(&FactKind::Started {}));
    let effects = both_there(&mut bench, 17, &named, CellPhase::Prepared);
    let told = |wanted: fn(&ToLablet) -> bool| sent_to(&effects, 1).iter().filter(|said| wanted(said)).count();
    assert!(told(|said| matches!(said, ToLablet::Start(_))) >= 8, "it is told again with each heartbeat");
    assert!(told(|said| matches!(said, ToLablet::Stop(..))) > 0);
    let order = order(&effects).expect("it is sealed");
    assert!(order.timed_out && order.missing.len() == 4, "{order:?}");
    assert_eq!(order.execution, id);
    // The honest one was free all the time, and is for whoever comes next.
    let (next, effects) = bench.submit_by(202, 8, run(&[("a", 4)]));
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(offer) if offer.execution == next)));
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
    assert!(crate::bench::failure(&effects).is_some());
    // The lab goes on with what fits.
    let (id, effects) = bench.submit_by(202, 8, run(&[("a", 3)]));
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(offer) if offer.execution == id)));
}
