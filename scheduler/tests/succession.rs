//! Going on with what another orchestrator began, as the core does it.

use iptl_dag::codec;
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, ExecutionId, FactKind, LossPolicy};
use iptl_scheduler::Effect;
use iptl_wire::WallTime;
use iptl_wire::lab::Certificate;
use iptl_wire::session::{CellPhase, CellStatus, ReceiptsReady, ToOrchestrator};
use iptl_wire::takeover::Claim;

use crate::cores::{Bench, cell, epoch, grants, inventory, order, peer, persisted, run};

fn claim() -> Signed<Claim> {
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
