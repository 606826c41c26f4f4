//! What lablets do on purpose: facts, told once.

use iptl_dag::model::{FactKind, FaultDone, FaultKind};
use iptl_scheduler::Effect;
use iptl_wire::control::Event;
use iptl_wire::session::{MAX_FAULTS_TOLD, ToOrchestrator};

use crate::bench::{Bench, cell, inventory, peer, persisted, run};

fn done(due_us: u64) -> FaultDone {
    FaultDone { due_us, kind: FaultKind::Partition, done_us: due_us + 20, instances: 2 }
}

fn faulted(n: u8, faults: Vec<FaultDone>) -> FactKind {
    FactKind::Faulted { lablet: peer(n), faults }
}

fn told(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Notify { event: Event::Fault { .. }, .. })).count()
}

#[test]
fn a_fault_is_a_fact_of_each_lablet_and_told_to_who_watches() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
    let effects = bench.say(1, ToOrchestrator::Faults(cell(id, 1), vec![done(1), done(2)]));
    assert_eq!((persisted(&effects), told(&effects)), (vec![faulted(1, vec![done(1), done(2)])], 2));
    // A new session says all of it again.
    let effects = bench.say(1, ToOrchestrator::Faults(cell(id, 1), vec![done(1), done(2), done(3)]));
    assert_eq!((persisted(&effects), told(&effects)), (vec![faulted(1, vec![done(3)])], 1));
    let effects = bench.say(2, ToOrchestrator::Faults(cell(id, 1), vec![done(1)]));
    assert_eq!(persisted(&effects), [faulted(2, vec![done(1)])]);
}

#[test]
fn a_fault_that_is_in_the_log_is_not_written_again_after_a_restart() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
    bench.say(1, ToOrchestrator::Faults(cell(id, 1), vec![done(1)]));
    bench.restart();
    bench.hello(1, 1, 9, 2, vec![]);
    let effects = bench.say(1, ToOrchestrator::Faults(cell(id, 1), vec![done(1), done(2)]));
    assert_eq!(persisted(&effects), [faulted(1, vec![done(2)])]);
}

#[test]
fn a_lablet_that_tells_of_faults_without_end_fills_no_log() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
    let mut written = 0;
    for round in 0..20 {
        let faults = (0..100).map(|n| done(round * 100 + n)).collect();
        for kind in persisted(&bench.say(1, ToOrchestrator::Faults(cell(id, 1), faults))) {
            let FactKind::Faulted { faults, .. } = kind else { panic!("{kind:?}") };
            written += faults.len();
        }
    }
    assert_eq!(written, MAX_FAULTS_TOLD);
}

#[test]
fn faults_of_what_a_lablet_does_not_hold_or_what_never_started_count_for_nothing() {
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, inventory(4), vec![]);
    let (id, _) = bench.submit(run(&[("a", 2)]));
    let faults = || vec![done(1)];
    assert_eq!(persisted(&bench.say(1, ToOrchestrator::Faults(cell(id, 1), faults()))), []);

    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 3), ("b", 1)]));
    bench.hello(3, 3, 3, 2, vec![]);
    for (n, named) in [(3, cell(id, 1)), (1, cell(id, 2))] {
        assert_eq!(persisted(&bench.say(n, ToOrchestrator::Faults(named, faults()))), []);
    }
}
