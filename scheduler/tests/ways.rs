//! Ways between lablets: measured before the start, facts, and what they decide.

use iptl_dag::model::{FactKind, Run, Way};
use iptl_scheduler::Effect;
use iptl_wire::control::FailureKind;
use iptl_wire::session::ToOrchestrator;

use crate::bench::{Bench, cell, failure, peer, persisted, run};

fn way(to: u8, asked_us: u64, measured_us: Option<u64>) -> Way {
    let (from_region, to_region) = ("east".to_owned(), "west".to_owned());
    Way { to: peer(to), from_region, to_region, asked_us, measured_us, relayed: false }
}

/// Two lablets prepare a run; the first says how far the second is. Returns what follows, up to the start where there is
/// one.
fn prepare(run: Run, way: Way) -> (Vec<Effect>, bool) {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 2, vec![]);
    bench.hello(2, 2, 2, 2, vec![]);
    let (id, _) = bench.submit(run);
    bench.bid(1, id, 2);
    bench.bid(2, id, 2);
    for n in [1, 2] {
        bench.say(n, ToOrchestrator::Accept(cell(id, 1)));
    }
    let mut effects = bench.say(1, ToOrchestrator::Ways(cell(id, 1), vec![way.clone()]));
    // Said again it is no other fact.
    effects.extend(bench.say(1, ToOrchestrator::Ways(cell(id, 1), vec![way])));
    for n in [1, 2] {
        effects.extend(bench.say(n, ToOrchestrator::Prepared(cell(id, 1))));
    }
    let started = persisted(&effects).contains(&FactKind::Started {});
    (effects, started)
}

fn four() -> Run {
    run(&[("a", 3), ("b", 1)])
}

#[test]
fn a_run_whose_delays_hide_the_ways_between_its_lablets_starts_and_the_log_has_them() {
    for measured_us in [Some(12_000), Some(50_000), Some(51_000), None] {
        let way = way(2, 50_000, measured_us);
        let (effects, started) = prepare(four(), way.clone());
        assert!(started && failure(&effects).is_none(), "{measured_us:?}");
        let measured: Vec<_> =
            persisted(&effects).into_iter().filter(|kind| matches!(kind, FactKind::Measured { .. })).collect();
        assert_eq!(measured, [FactKind::Measured { lablet: peer(1), ways: vec![way] }]);
    }
}

#[test]
fn a_run_whose_delays_cannot_hide_a_way_is_refused_before_anything_starts() {
    let (effects, started) = prepare(four(), way(2, 5_000, Some(6_100)));
    assert!(!started);
    let refused = failure(&effects).unwrap();
    assert_eq!((refused.kind, refused.code.as_str()), (FailureKind::LabUnable, "network.too-slow"));
    for part in ["l1", "l2", "6.1 ms", "5.0 ms from east to west"] {
        assert!(refused.message.contains(part), "{part}: {}", refused.message);
    }
    let facts = persisted(&effects);
    assert!(matches!(facts[..], [FactKind::Measured { .. }, FactKind::CannotStart(_)]), "{facts:?}");
}

#[test]
fn a_run_that_bears_slow_ways_starts() {
    let mut bears = four();
    bears.placing.slow_ways = true;
    let (effects, started) = prepare(bears, way(2, 5_000, Some(60_000)));
    assert!(started && failure(&effects).is_none());
}
