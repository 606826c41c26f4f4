//! The queue: who is placed next, and who waits for whom.

use iptl_dag::model::ExecutionId;
use iptl_scheduler::{Effect, Input};

use crate::bench::{Bench, both, mixed, order, result, run};

fn offered(effects: &[Effect], id: ExecutionId) -> bool {
    effects.iter().any(|e| matches!(e, Effect::PublishOffer(offer) if offer.execution == id))
}

fn phase(bench: &Bench, id: ExecutionId) -> String {
    bench.core.executions().into_iter().find(|view| view.execution == id).map(|view| view.phase).unwrap_or_default()
}

/// Ends an execution that was not started.
fn end(bench: &mut Bench, id: ExecutionId) -> Vec<Effect> {
    let effects = bench.give(Input::Cancel { execution: id, by: crate::bench::peer(202) });
    assert!(order(&effects).is_some());
    bench.give(Input::Assembled { execution: id, result: result() })
}

#[test]
fn a_run_that_waits_for_docker_slots_does_not_hold_up_later_wasm_runs() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(8, 2), vec![]);
    let (first, effects) = bench.submit_by(202, 1, mixed(1, 2));
    assert!(offered(&effects, first));
    // Both docker slots are taken; this one wants them, and two of the seven other slots.
    let (waits, effects) = bench.submit_by(202, 2, mixed(2, 2));
    assert!(!offered(&effects, waits));
    assert!(phase(&bench, waits).contains("2 docker slots, 0 free"), "{}", phase(&bench, waits));
    let (small, effects) = bench.submit_by(202, 3, run(&[("a", 5)]));
    assert!(offered(&effects, small), "{}", phase(&bench, small));
    // What is left is kept for the run that waits.
    let (next, effects) = bench.submit_by(202, 4, run(&[("a", 1)]));
    assert!(!offered(&effects, next));
    assert!(phase(&bench, next).contains(&format!("behind {}", waits.alias())), "{}", phase(&bench, next));
    assert!(offered(&end(&mut bench, first), waits));
}

#[test]
fn who_holds_the_fewest_instances_is_placed_next() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 0), vec![]);
    let (first, _) = bench.submit_by(1, 1, run(&[("a", 2)]));
    let (other, effects) = bench.submit_by(1, 2, run(&[("a", 2)]));
    assert!(offered(&effects, other));
    let (again, _) = bench.submit_by(1, 3, run(&[("a", 2)]));
    let (newcomer, _) = bench.submit_by(2, 4, run(&[("a", 2)]));
    let effects = end(&mut bench, first);
    assert!(offered(&effects, newcomer), "somebody who holds nothing comes before one who does");
    assert!(!offered(&effects, again));
    assert!(offered(&end(&mut bench, other), again));
}

#[test]
fn room_that_comes_free_at_once_is_shared_by_all_who_wait() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(8, 0), vec![]);
    let (first, _) = bench.submit_by(1, 1, run(&[("a", 8)]));
    let early: Vec<_> = (10..18).map(|nonce| bench.submit_by(2, nonce, run(&[("a", 1)])).0).collect();
    let late: Vec<_> = (20..28).map(|nonce| bench.submit_by(3, nonce, run(&[("a", 1)])).0).collect();
    let effects = end(&mut bench, first);
    for runs in [&early, &late] {
        let placed: Vec<bool> = runs.iter().map(|id| offered(&effects, *id)).collect();
        assert_eq!(placed, [true, true, true, true, false, false, false, false], "of each the first four");
    }
}

#[test]
fn a_large_run_is_not_starved_by_small_ones() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 0), vec![]);
    let (first, _) = bench.submit_by(1, 1, run(&[("a", 1)]));
    let (large, _) = bench.submit_by(2, 2, run(&[("a", 4)]));
    for nonce in 3..8 {
        let (small, effects) = bench.submit_by(2, nonce, run(&[("a", 1)]));
        assert!(!offered(&effects, small), "the whole lab is kept for the large run");
    }
    assert!(offered(&end(&mut bench, first), large));
}

#[test]
fn the_higher_priority_goes_first_whoever_holds_what() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 0), vec![]);
    let (first, _) = bench.submit_by(1, 1, run(&[("a", 4)]));
    let (usual, _) = bench.submit_with(2, 2, run(&[("a", 4)]), 0);
    let (low, _) = bench.submit_with(2, 3, run(&[("a", 4)]), -1);
    let (high, _) = bench.submit_with(1, 4, run(&[("a", 4)]), 3);
    let effects = end(&mut bench, first);
    assert!(offered(&effects, high) && !offered(&effects, usual));
    let effects = end(&mut bench, high);
    assert!(offered(&effects, usual) && !offered(&effects, low));
}

#[test]
fn a_run_that_wants_machines_for_itself_shares_none() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(8, 0), vec![]);
    let alone = || {
        let mut run = run(&[("a", 2)]);
        run.placing.dedicated = true;
        run
    };
    let (first, effects) = bench.submit_by(1, 1, run(&[("a", 2)]));
    assert!(offered(&effects, first));
    let (dedicated, effects) = bench.submit_by(1, 2, alone());
    assert!(!offered(&effects, dedicated), "something else runs there");
    assert!(phase(&bench, dedicated).contains("where nothing else runs: 1 of 1"), "{}", phase(&bench, dedicated));
    let effects = end(&mut bench, first);
    assert!(offered(&effects, dedicated));
    let (other, effects) = bench.submit_by(1, 3, run(&[("a", 2)]));
    assert!(!offered(&effects, other), "six slots are free, and kept");
    assert!(phase(&bench, other).contains("1 of 1 are kept for a run alone"), "{}", phase(&bench, other));
    assert!(offered(&end(&mut bench, dedicated), other));
}

#[test]
fn a_run_says_which_label_it_waits_for_and_how_much_of_it_is_free() {
    let mut bench = Bench::new();
    for (n, nat) in [(1, "symmetric"), (2, "symmetric"), (3, "none")] {
        let labels = [("nat".to_owned(), nat.to_owned())].into();
        bench.hello_with(n, n, u64::from(n), iptl_wire::session::Inventory { labels, ..both(10, 0) }, vec![]);
    }
    let mut wants = run(&[("a", 25)]);
    let labels = [("nat".to_owned(), "symmetric".to_owned())];
    wants.groups.get_mut("a").unwrap().requires.labels = labels.into();
    let (id, _) = bench.submit_by(1, 1, wants);
    assert_eq!(phase(&bench, id), "waiting: waits for 25 slots labelled nat=symmetric, 20 free on 2 lablets");
}

/// A lab whose only lablet is taken, and runs of one priority that wait for it, in the order of their submission.
fn full_with_a_queue() -> (Bench, ExecutionId, Vec<ExecutionId>) {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 0), vec![]);
    let (first, _) = bench.submit_by(1, 1, run(&[("a", 4)]));
    let waiting: Vec<_> = (2..10).map(|nonce| bench.submit_by(2, nonce, run(&[("a", 4)])).0).collect();
    assert!(!waiting.is_sorted(), "their names are in another order");
    (bench, first, waiting)
}

/// Whoever waits gets its turn in this order.
fn check_turns(bench: &mut Bench, first: ExecutionId, waiting: &[ExecutionId]) {
    let listed: Vec<_> = bench.core.executions().into_iter().map(|view| view.execution).collect();
    assert_eq!(listed, [&[first], waiting].concat());
    let mut before = first;
    for (n, next) in waiting.iter().enumerate() {
        let effects = end(bench, before);
        let placed: Vec<_> = waiting.iter().filter(|id| offered(&effects, **id)).collect();
        assert_eq!(placed, [next], "turn {n}");
        before = *next;
    }
}

#[test]
fn runs_that_wait_keep_their_order_over_a_restart() {
    let (mut bench, first, mut waiting) = full_with_a_queue();
    bench.restart();
    // Whoever comes after the restart comes last.
    waiting.push(bench.submit_by(2, 10, run(&[("a", 4)])).0);
    bench.restart();
    waiting.push(bench.submit_by(2, 11, run(&[("a", 4)])).0);
    bench.hello_with(1, 1, 2, both(4, 0), vec![]);
    check_turns(&mut bench, first, &waiting);
}

#[test]
fn runs_that_wait_keep_their_order_over_a_takeover() {
    let (mut bench, first, waiting) = full_with_a_queue();
    bench.take_over(&[]);
    bench.hello_in_term(1, 1, 2, both(4, 0), vec![], Some(crate::succession::claim()));
    check_turns(&mut bench, first, &waiting);
}

#[test]
fn runs_of_a_log_that_says_nothing_of_their_order_are_ordered_by_their_times() {
    let mut bench = Bench::new();
    let waiting: Vec<_> = (2..10)
        .map(|nonce| {
            bench.wait(10);
            bench.submit_by(2, nonce, run(&[("a", 4)])).0
        })
        .collect();
    bench.forget_orders();
    bench.restart();
    let listed: Vec<_> = bench.core.executions().into_iter().map(|view| view.execution).collect();
    assert_eq!(listed, waiting);
}

#[test]
fn all_that_is_known_of_runs_that_wait_and_run_is_known_after_a_restart() {
    let (mut bench, first, _) = full_with_a_queue();
    bench.bid(1, first, 4);
    let before = bench.core.remembered();
    bench.restart();
    assert!(before.is_some());
    assert_eq!(bench.core.remembered(), before);
}

#[test]
fn what_was_cancelled_before_its_start_says_so_after_a_restart() {
    let (mut bench, _, waiting) = full_with_a_queue();
    let said = |effects: &[Effect]| order(effects).expect("a result is ordered").missing;
    let before = said(&bench.give(Input::Cancel { execution: waiting[0], by: crate::bench::peer(202) }));
    assert_eq!(said(&bench.restart()), before);
    assert!(before.values().all(|why| why == "cancelled before it was started"), "{before:?}");
}
