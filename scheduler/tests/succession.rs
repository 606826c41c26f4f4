//! Going on with what another orchestrator began, as the core does it.

use std::slice;

use iptl_dag::codec;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, Epoch, ExecutionId, FactKind, LossPolicy};
use iptl_scheduler::{Effect, Input};
use iptl_wire::WallTime;
use iptl_wire::lab::Certificate;
use iptl_wire::session::{CellPhase, CellStatus, ReceiptsReady, ToLablet, ToOrchestrator};
use iptl_wire::takeover::{Claim, Finished};

use crate::bench::{Bench, cell, epoch, grants, inventory, order, peer, persisted, result, run, sent_to};

pub(crate) fn claim() -> Signed<Claim> {
    let body = Certificate {
        lab: peer(201),
        orchestrator: peer(200),
        name: "lab".into(),
        expires: WallTime(u64::MAX),
        private: false,
    };
    let certificate = Signed { body, signer: peer(201), signature: Vec::new() };
    let body = Claim { lab: peer(201), term: epoch(1), certificate };
    Signed { body, signer: peer(200), signature: Vec::new() }
}

/// A lablet that serves the successor says what it holds.
fn heard(bench: &mut Bench, n: u8, cells: Vec<CellStatus>) -> Vec<Effect> {
    bench.hello_in_term(n, n, 20 + u64::from(n), inventory(2), cells, Some(claim()))
}

fn running(execution: ExecutionId, counter: u64, n: u8, start: u32, attempt: u32) -> CellStatus {
    let assignments = vec![Assignment { group: "a".into(), start, count: 1, lablet: peer(n) }];
    let cell = cell(execution, counter);
    CellStatus { cell, assignments, phase: CellPhase::Running, running: 1, ended: 0, directory: counter, attempt }
}

#[test]
fn another_cell_of_a_lablet_is_recovered_where_the_log_lacks_receipts_of_the_one_before() {
    let mut bench = Bench::new();
    let mut four = run(&[("a", 4)]);
    four.loss = LossPolicy { max_attempts: 2, ..LossPolicy::default() };
    let id = bench.started_with(four);
    // The log has the first of two receipts of lablet 1, and not the second, nor the loss of lablet 2 and what was
    // granted for it.
    let (first, shard) = (cell(id, 1), codec::cid_of(&"shard"));
    bench.say(1, ToOrchestrator::Receipts(ReceiptsReady { cell: first.clone(), shard, count: 1 }));
    bench.pulled(1, &first, shard, &[("a", 0)]);
    bench.take_over(&[1, 2]);
    let effects = heard(&mut bench, 1, vec![running(id, 2, 1, 2, 2)]);
    let recovered = |kind: &FactKind| matches!(kind, FactKind::Recovered { lablet, attempt: 2, granted, .. } if (lablet, granted) == (&peer(1), &epoch(2)));
    assert!(persisted(&effects).iter().any(recovered), "{effects:?}");
    let mut effects = heard(&mut bench, 2, Vec::new());
    effects.extend(bench.pulled(1, &first, shard, &[("a", 0)]));
    // The second receipt was lost with the one before; what runs is neither stopped nor granted to anybody else.
    let lost: Vec<u32> = persisted(&effects)
        .into_iter()
        .filter_map(|kind| match kind {
            FactKind::Lost { lablet: None, instances, .. } => Some(instances),
            _ => None,
        })
        .flatten()
        .map(|instance| instance.index)
        .collect();
    assert_eq!(lost, [1], "{effects:?}");
    effects.extend(bench.wait(3_000));
    assert!(grants(&effects).is_empty() && order(&effects).is_none(), "{effects:?}");
    // A later life comes to the same.
    let before = bench.core.remembered();
    bench.restart();
    bench.pulled(1, &first, shard, &[("a", 0)]);
    assert!(before.is_some());
    assert_eq!(bench.core.remembered(), before);
}

fn end(execution: ExecutionId, result: &str, term: Option<Epoch>) -> Finished {
    Finished { execution, result: Some(codec::cid_of(&result)), term }
}

/// A lablet that was told an end serves the successor.
fn told(bench: &mut Bench, n: u8, end: &Finished) -> Vec<Effect> {
    let (session, finished) = (20 + u64::from(n), vec![end.clone()]);
    bench.hello_of_ends(n, n, session, inventory(2), Vec::new(), Some(claim()), finished)
}

fn adopts(effects: &[Effect]) -> Vec<Finished> {
    let adopted = effects.iter().filter_map(|effect| match effect {
        Effect::Adopt(end) => Some(end.clone()),
        _ => None,
    });
    adopted.collect()
}

#[test]
fn of_two_ends_that_lablets_were_told_that_of_the_later_term_counts() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 4)]));
    bench.take_over(&[1, 2]);
    let (early, late) = (end(id, "early", None), end(id, "late", Some(epoch(0))));
    let effects = told(&mut bench, 1, &early);
    assert_eq!(persisted(&effects), [FactKind::Sealed { result: early.result.unwrap(), term: None }]);
    assert_eq!(adopts(&effects), slice::from_ref(&early));
    // The later end is said until it was found to be one, and is told to nobody before.
    for _ in 0..2 {
        let effects = told(&mut bench, 2, &late);
        assert_eq!((adopts(&effects), persisted(&effects)), (vec![late.clone()], Vec::new()));
        assert_eq!(bench.core.result(&id), Some(early.result));
    }
    bench.give(Input::Over(late.clone()));
    assert_eq!(bench.core.result(&id), Some(late.result));
    assert!(adopts(&told(&mut bench, 2, &late)).is_empty());
    // Who was told the earlier one is told so, and it does not come back.
    let effects = told(&mut bench, 1, &early);
    assert!(adopts(&effects).is_empty() && sent_to(&effects, 1).contains(&ToLablet::Finished(late.clone())));
    bench.give(Input::Over(early));
    assert_eq!(bench.core.result(&id), Some(late.result));
}

#[test]
fn a_lablet_cannot_have_been_told_an_end_of_a_later_term_than_it_promised() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 4)]));
    bench.take_over(&[1, 2]);
    let effects = told(&mut bench, 1, &end(id, "forged", Some(epoch(2))));
    assert!(adopts(&effects).is_empty() && persisted(&effects).is_empty() && bench.core.result(&id).is_none());
    // Nor does a lablet's word end what ended with a result.
    told(&mut bench, 1, &end(id, "sealed", None));
    assert!(adopts(&told(&mut bench, 2, &Finished { result: None, ..end(id, "", Some(epoch(0))) })).is_empty());
}

#[test]
fn a_result_and_the_fact_that_names_it_say_in_which_term_they_were_sealed() {
    let mut bench = Bench::new();
    let id = bench.started_with(run(&[("a", 4)]));
    bench.take_over(&[1, 2]);
    let mut effects = Vec::new();
    for n in [1, 2] {
        effects.extend(heard(&mut bench, n, Vec::new()));
    }
    let order = order(&effects).expect("nobody holds anything: all are lost");
    assert_eq!(order.term, Some(epoch(1)));
    let effects = bench.give(Input::Assembled { execution: id, result: result() });
    let sealed = FactKind::Sealed { result: result().cid, term: Some(epoch(1)) };
    assert_eq!(persisted(&effects), [sealed]);
}
