//! The lablet core: promises, leases, receipts.

use std::collections::BTreeMap;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, ExecutionId, InstanceId};
use iptl_dag::{PeerId, codec};
use iptl_scheduler::lablet::CellRecord;
use iptl_scheduler::{Lablet, LabletConfig, LabletEffect, LabletInput};
use iptl_wire::lab::Certificate;
use iptl_wire::session::{CellPhase, CellRef, Grant, LeaseRenewal, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::{Timestamp, Verified, WallTime};

use crate::cores::{cell, epoch, inventory, peer};

const ME: u8 = 1;
const ORCHESTRATOR: u8 = 200;

struct Bench {
    core: Lablet,
    now: Timestamp,
}

impl Bench {
    fn new() -> Bench {
        let mut bench =
            Bench { core: Lablet::new(LabletConfig::new(peer(ME), peer(201))), now: Timestamp(1_000_000_000) };
        bench.give(LabletInput::Wall { unix_us: 1_800_000_000_000_000 });
        bench.give(LabletInput::Inventory(inventory(4)));
        bench
    }

    fn up() -> Bench {
        let mut bench = Bench::new();
        bench.session();
        bench
    }

    fn session(&mut self) -> Vec<LabletEffect> {
        let certificate = Certificate {
            lab: peer(201),
            orchestrator: peer(ORCHESTRATOR),
            name: "lab".into(),
            expires: WallTime(u64::MAX),
        };
        let welcome = Welcome {
            certificate: Signed { body: certificate, signer: peer(201), signature: Vec::new() },
            heartbeat_ms: 1_000,
            lease_ms: 5_000,
            offers: Vec::new(),
        };
        let hello_at = self.now;
        self.give(LabletInput::SessionUp {
            orchestrator: peer(ORCHESTRATOR),
            hello_at,
            welcome: Verified::vouch(welcome),
        })
    }

    fn give(&mut self, input: LabletInput) -> Vec<LabletEffect> {
        self.core.handle(self.now, input);
        std::iter::from_fn(|| self.core.poll_effect()).collect()
    }

    fn hear(&mut self, message: ToLablet) -> Vec<LabletEffect> {
        self.give(LabletInput::Message { from: peer(ORCHESTRATOR), message: Verified::vouch(message) })
    }

    fn wait(&mut self, ms: u64) -> Vec<LabletEffect> {
        let end = self.now.0 + ms * 1_000_000;
        let mut effects = Vec::new();
        while let Some(at) = self.core.poll_timeout().filter(|at| at.0 <= end) {
            self.now = Timestamp(at.0.max(self.now.0));
            effects.extend(self.give(LabletInput::Timeout));
        }
        self.now = Timestamp(end);
        effects
    }

    fn grant(&mut self, counter: u64, count: u32) -> Vec<LabletEffect> {
        let grant = grant(counter, count);
        self.hear(ToLablet::Grant(Signed { body: grant, signer: peer(ORCHESTRATOR), signature: Vec::new() }))
    }

    /// Brings a cell of so many instances to its start.
    fn running(count: u32) -> Bench {
        let mut bench = Bench::up();
        bench.grant(1, count);
        bench.give(LabletInput::Prepared { cell: named(1) });
        assert!(bench.hear(ToLablet::Start(named(1))).contains(&LabletEffect::Start { cell: named(1) }));
        bench
    }

    fn end(&mut self, index: u32) -> Vec<LabletEffect> {
        self.give(LabletInput::InstanceEnded { cell: named(1), instance: InstanceId { group: "a".into(), index } })
    }
}

fn execution() -> ExecutionId {
    ExecutionId(codec::cid_of(&"execution"))
}

fn named(counter: u64) -> CellRef {
    cell(execution(), counter)
}

fn grant(counter: u64, count: u32) -> Grant {
    Grant {
        cell: named(counter),
        lablet: peer(ME),
        run: codec::cid_of(&"run"),
        assignments: vec![Assignment { group: "a".into(), start: 0, count, lablet: peer(ME) }],
        attempt: 1,
        memory_bytes: 1 << 20,
        placement: Vec::new(),
        roster: BTreeMap::new(),
    }
}

fn sent(effects: &[LabletEffect]) -> Vec<ToOrchestrator> {
    effects
        .iter()
        .filter_map(|e| match e {
            LabletEffect::Send { message, .. } => Some(message.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_promise_is_durable_before_the_grant_is_taken() {
    let mut bench = Bench::up();
    let effects = bench.grant(3, 2);
    let [LabletEffect::Promise(record), LabletEffect::Send { message, .. }, LabletEffect::Prepare { .. }] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(record.cell, named(3));
    assert_eq!(*message, ToOrchestrator::Accept(named(3)));
    assert_eq!(bench.core.inventory().free_wasm_slots, 2);
}

#[test]
fn a_lower_term_is_refused_even_after_a_restart() {
    let mut bench = Bench::new();
    bench.give(LabletInput::Restore { promised: vec![(execution(), epoch(5))], cells: Vec::new() });
    bench.session();
    for counter in [4, 5] {
        assert!(matches!(&sent(&bench.grant(counter, 1))[..], [ToOrchestrator::Refuse(..)]), "{counter}");
    }
    assert_eq!(sent(&bench.grant(6, 1)), [ToOrchestrator::Accept(named(6))]);
}

#[test]
fn a_grant_that_does_not_fit_is_refused() {
    let mut bench = Bench::up();
    let [ToOrchestrator::Refuse(_, reason)] = &sent(&bench.grant(1, 5))[..] else { panic!() };
    assert_eq!(reason, "5 slots wanted, 4 free");
}

#[test]
fn a_grant_without_a_lease_is_refused() {
    let mut bench = Bench::up();
    bench.wait(6_000);
    let effects = bench.grant(1, 1);
    assert!(sent(&effects).contains(&ToOrchestrator::Refuse(named(1), "has no lease".into())));
}

#[test]
fn a_higher_term_replaces_a_cell_that_was_not_started() {
    let mut bench = Bench::up();
    bench.grant(1, 3);
    let effects = bench.grant(2, 4);
    assert_eq!(effects[0], LabletEffect::Forget { cell: named(1) });
    assert!(effects.iter().any(|e| matches!(e, LabletEffect::Prepare { cell, .. } if *cell == named(2))));
}

#[test]
fn a_cell_is_stopped_when_the_lease_runs_out_counted_from_sending() {
    let mut bench = Bench::running(2);
    bench.wait(1_000);
    // The answer to the second heartbeat comes late: the lease still counts from when that was sent.
    bench.wait(900);
    bench.hear(ToLablet::Lease(LeaseRenewal { seq: 2, heartbeat_ms: 1_000, lease_ms: 5_000, wall_us: 0 }));
    let stops = |effects: &[LabletEffect]| effects.iter().any(|e| matches!(e, LabletEffect::Stop { .. }));
    assert!(!stops(&bench.wait(4_000)));
    assert!(stops(&bench.wait(200)));
}

#[test]
fn a_lease_outlives_its_session() {
    let mut bench = Bench::running(1);
    bench.give(LabletInput::SessionDown { orchestrator: peer(ORCHESTRATOR) });
    assert!(bench.wait(4_900).is_empty());
    assert!(matches!(bench.wait(200)[..], [LabletEffect::Stop { .. }]));
}

#[test]
fn receipts_are_sealed_at_intervals_and_at_once_when_all_ended() {
    let mut bench = Bench::running(3);
    let seals = |effects: &[LabletEffect]| effects.iter().filter(|e| matches!(e, LabletEffect::Seal { .. })).count();
    assert_eq!(seals(&bench.end(0)), 1);
    let shard = codec::cid_of(&"first");
    let effects = bench.give(LabletInput::ShardSealed { cell: named(1), shard, count: 1, last: true });
    assert!(matches!(&sent(&effects)[..], [ToOrchestrator::Receipts(r)] if r.shard == shard));
    assert_eq!(seals(&bench.end(1)), 0, "the interval is not over");
    assert_eq!(seals(&bench.end(2)), 1, "all have ended");
    assert_eq!(bench.core.cells()[0].phase, CellPhase::Ended);
}

#[test]
fn receipts_that_nobody_kept_are_announced_again_after_a_reconnection() {
    let mut bench = Bench::running(1);
    bench.end(0);
    let shard = codec::cid_of(&"only");
    bench.give(LabletInput::ShardSealed { cell: named(1), shard, count: 1, last: true });
    bench.give(LabletInput::SessionDown { orchestrator: peer(ORCHESTRATOR) });
    assert!(sent(&bench.session()).iter().any(|m| matches!(m, ToOrchestrator::Receipts(r) if r.shard == shard)));
    bench.hear(ToLablet::Kept(named(1), shard));
    assert!(bench.core.idle());
    assert!(!sent(&bench.session()).iter().any(|m| matches!(m, ToOrchestrator::Receipts(_))));
    assert_eq!(bench.hear(ToLablet::Finished(execution(), None)), [LabletEffect::Forget { cell: named(1) }]);
    // What is over is not run again by a late grant.
    assert!(matches!(&sent(&bench.grant(1, 1))[..], [ToOrchestrator::Refuse(..)]));
}

#[test]
fn a_restored_cell_hands_in_what_was_sealed_and_runs_nothing() {
    let mut bench = Bench::new();
    let shard = codec::cid_of(&"sealed");
    let record = CellRecord { cell: named(1), assignments: grant(1, 3).assignments, memory_bytes: 1 };
    bench.give(LabletInput::Restore { promised: Vec::new(), cells: vec![(record, vec![(shard, 2)])] });
    let effects = bench.session();
    assert!(sent(&effects).iter().any(|m| matches!(m, ToOrchestrator::Receipts(r) if r.shard == shard)));
    let status = &bench.core.cells()[0];
    assert_eq!((status.phase, status.ended), (CellPhase::Ended, 2));
    assert_eq!(bench.core.inventory().free_wasm_slots, 4);
    assert!(!bench.hear(ToLablet::Start(named(1))).iter().any(|e| matches!(e, LabletEffect::Start { .. })));
}

#[test]
fn the_clock_is_measured_half_way_and_told_at_once() {
    let mut bench = Bench::new();
    let effects = bench.session();
    let [ToOrchestrator::Heartbeat(first)] = &sent(&effects)[..] else { panic!() };
    assert_eq!(first.clock, None);
    bench.now = Timestamp(bench.now.0 + 4_000_000);
    let answered_us = first.wall_us + 2_000 - 500_000;
    let renewal = LeaseRenewal { seq: 1, heartbeat_ms: 1_000, lease_ms: 5_000, wall_us: answered_us };
    let effects = bench.hear(ToLablet::Lease(renewal));
    let [ToOrchestrator::Heartbeat(second)] = &sent(&effects)[..] else { panic!("{effects:?}") };
    let clock = second.clock.unwrap();
    assert_eq!((clock.offset_us, clock.round_trip_us), (500_000, 4_000));
}

#[test]
fn strangers_cannot_speak_for_the_orchestrator() {
    let mut bench = Bench::running(1);
    for message in [
        ToLablet::Stop(named(1), String::new()),
        ToLablet::Finished(execution(), None),
        ToLablet::Grant(Signed { body: grant(9, 1), signer: peer(66), signature: Vec::new() }),
    ] {
        let from: PeerId = peer(66);
        assert!(bench.give(LabletInput::Message { from, message: Verified::vouch(message) }).is_empty());
    }
}

#[test]
fn a_draining_lablet_takes_nothing_new_and_finishes_what_it_has() {
    let mut bench = Bench::running(1);
    assert!(bench.give(LabletInput::Drain { now: false }).is_empty());
    assert!(bench.core.inventory().draining);
    let mut stopped = Bench::running(1);
    assert!(matches!(stopped.give(LabletInput::Drain { now: true })[..], [LabletEffect::Stop { .. }]));
}
