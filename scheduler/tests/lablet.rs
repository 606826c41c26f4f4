//! The lablet core: promises, leases, receipts.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::WorkloadKind::{self, Docker, Wasm};
use iptl_dag::model::signed::Signed;
use iptl_dag::model::{Assignment, ExecutionId, InstanceId};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::lablet::CellRecord;
use iptl_scheduler::{Lablet, LabletConfig, LabletEffect, LabletInput};
use iptl_wire::lab::Certificate;
use iptl_wire::offer::{Offer, Wanted};
use iptl_wire::session::{
    Bid, CellPhase, CellRef, ClockSample, Grant, Inventory, LeaseRenewal, ToLablet, ToOrchestrator, Welcome,
};
use iptl_wire::takeover::{Finished, Orchestrators, Seat};
use iptl_wire::{Timestamp, Verified, WallTime};

use crate::bench::{both, cell, epoch, inventory, peer};

const ME: u8 = 1;
pub(crate) const ORCHESTRATOR: u8 = 200;

pub(crate) struct Bench {
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

    /// Restores a cell of three instances with these receipts.
    fn restore(&mut self, shards: Vec<(Cid, u32)>) {
        let Grant { assignments, slots, .. } = grant(1, 3);
        let record = CellRecord { cell: named(1), assignments, slots, memory_bytes: 1, attempt: 1 };
        self.give(LabletInput::Restore {
            promised: Vec::new(),
            cells: vec![(record, shards)],
            promised_term: None,
            finished: Vec::new(),
        });
    }

    fn after(&self, ms: u64) -> Timestamp {
        self.now.after(std::time::Duration::from_millis(ms))
    }

    pub(crate) fn up() -> Bench {
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
            private: false,
        };
        let welcome = Welcome {
            certificate: Signed { body: certificate, signer: peer(201), signature: Vec::new() },
            heartbeat_ms: 1_000,
            lease_ms: 5_000,
            offers: Vec::new(),
            claim: None,
        };
        let hello_at = self.now;
        self.give(LabletInput::SessionUp {
            orchestrator: peer(ORCHESTRATOR),
            hello_at,
            promised: None,
            welcome: Verified::vouch(welcome),
        })
    }

    fn give(&mut self, input: LabletInput) -> Vec<LabletEffect> {
        self.core.handle(self.now, input);
        std::iter::from_fn(|| self.core.poll_effect()).collect()
    }

    pub(crate) fn hear(&mut self, message: ToLablet) -> Vec<LabletEffect> {
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

    pub(crate) fn grant(&mut self, counter: u64, count: u32) -> Vec<LabletEffect> {
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
        self.give(LabletInput::InstanceEnded { cell: named(1), instance: instance(index) })
    }
}

fn execution() -> ExecutionId {
    ExecutionId(codec::cid_of(&"execution"))
}

fn instance(index: u32) -> InstanceId {
    InstanceId { group: "a".into(), index }
}

fn named(counter: u64) -> CellRef {
    cell(execution(), counter)
}

pub(crate) fn grant(counter: u64, count: u32) -> Grant {
    Grant {
        cell: named(counter),
        lablet: peer(ME),
        run: codec::cid_of(&"run"),
        assignments: vec![Assignment { group: "a".into(), start: 0, count, lablet: peer(ME) }],
        slots: BTreeMap::from([(Wasm, count)]),
        attempt: 1,
        memory_bytes: 1 << 20,
        placement: Vec::new(),
        roster: BTreeMap::new(),
    }
}

pub(crate) fn sent(effects: &[LabletEffect]) -> Vec<ToOrchestrator> {
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
    assert_eq!(bench.core.inventory().free(Wasm), 2);
}

#[test]
fn a_lower_term_is_refused_even_after_a_restart() {
    let mut bench = Bench::new();
    bench.give(LabletInput::Restore {
        promised: vec![(execution(), epoch(5))],
        cells: Vec::new(),
        promised_term: None,
        finished: Vec::new(),
    });
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
    assert_eq!(
        bench.hear(ToLablet::Finished(Finished { execution: execution(), result: None, term: None })),
        [LabletEffect::Forget { cell: named(1) }]
    );
    // What is over is not run again by a late grant.
    assert!(matches!(&sent(&bench.grant(1, 1))[..], [ToOrchestrator::Refuse(..)]));
}

#[test]
fn a_restored_cell_hands_in_what_was_sealed_and_runs_nothing() {
    let mut bench = Bench::new();
    let shard = codec::cid_of(&"sealed");
    let Grant { assignments, slots, .. } = grant(1, 3);
    let record = CellRecord { cell: named(1), assignments, slots, memory_bytes: 1, attempt: 1 };
    bench.give(LabletInput::Restore {
        promised: Vec::new(),
        cells: vec![(record, vec![(shard, 2)])],
        promised_term: None,
        finished: Vec::new(),
    });
    let effects = bench.session();
    assert!(sent(&effects).iter().any(|m| matches!(m, ToOrchestrator::Receipts(r) if r.shard == shard)));
    let status = &bench.core.cells()[0];
    assert_eq!((status.phase, status.ended), (CellPhase::Ended, 2));
    assert_eq!(bench.core.inventory().free(Wasm), 4);
    assert!(!bench.hear(ToLablet::Start(named(1))).iter().any(|e| matches!(e, LabletEffect::Start { .. })));
}

#[test]
fn an_adopted_cell_runs_on_and_seals_what_was_not_sealed() {
    let mut bench = Bench::new();
    let first = codec::cid_of(&"first");
    bench.restore(vec![(first, 1)]);
    let until = bench.after(5_000);
    bench.give(LabletInput::Adopted { cell: named(1), sealed: BTreeSet::from([instance(0)]), leased_until: until });
    let status = &bench.core.cells()[0];
    assert_eq!((status.phase, status.running, status.ended), (CellPhase::Running, 2, 1));
    assert_eq!(bench.core.inventory().free(Wasm), 1, "it holds its room again");
    let effects = bench.session();
    assert!(sent(&effects).iter().any(|m| matches!(m, ToOrchestrator::Receipts(r) if r.shard == first)));
    assert!(bench.end(0).is_empty(), "an instance with a receipt is told as ended again");
    assert!(!bench.hear(ToLablet::Start(named(1))).iter().any(|e| matches!(e, LabletEffect::Start { .. })));
    assert!(bench.end(1).contains(&LabletEffect::Seal { cell: named(1) }));
    let second = codec::cid_of(&"second");
    bench.give(LabletInput::ShardSealed { cell: named(1), shard: second, count: 1, last: true });
    assert!(bench.end(2).contains(&LabletEffect::Seal { cell: named(1) }));
    assert_eq!(bench.core.cells()[0].phase, CellPhase::Ended);
    assert!(matches!(&sent(&bench.grant(2, 1))[..], [ToOrchestrator::Refuse(..)]), "its receipts are not kept yet");
}

#[test]
fn a_cell_whose_lease_ran_out_while_its_lablet_was_away_is_stopped() {
    let mut bench = Bench::new();
    bench.restore(Vec::new());
    let until = bench.after(300);
    bench.give(LabletInput::Adopted { cell: named(1), sealed: BTreeSet::new(), leased_until: until });
    assert!(bench.wait(200).is_empty());
    assert!(matches!(&bench.wait(200)[..], [LabletEffect::Stop { reason, .. }] if reason.contains("lease")));
}

#[test]
fn a_cell_that_all_have_receipts_of_is_over_when_it_is_adopted() {
    let mut bench = Bench::new();
    bench.restore(vec![(codec::cid_of(&"all"), 3)]);
    let sealed = (0..3).map(instance).collect();
    bench.give(LabletInput::Adopted { cell: named(1), sealed, leased_until: Timestamp(0) });
    assert_eq!(bench.core.cells()[0].phase, CellPhase::Ended);
    assert!(bench.wait(1_000).is_empty(), "nothing is stopped or sealed");
}

#[test]
fn a_restored_cell_of_containers_holds_no_room_and_keeps_nobody_out() {
    let mut bench = Bench::new();
    bench.give(LabletInput::Inventory(both(4, 2)));
    let Grant { cell, assignments, slots, .. } = mixed_grant(1, 3, 2);
    let record = CellRecord { cell, assignments, slots, memory_bytes: 1, attempt: 1 };
    bench.give(LabletInput::Restore {
        promised: Vec::new(),
        cells: vec![(record, Vec::new())],
        promised_term: None,
        finished: Vec::new(),
    });
    bench.session();
    // Its instances died with the lablet: other executions and later terms of its own may have all slots.
    assert_eq!(bench.free(), [4, 2]);
    assert_eq!(bench.hear_grant(mixed_grant(2, 4, 2)), [ToOrchestrator::Accept(named(2))]);
    assert_eq!(bench.free(), [0, 0]);
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
fn what_became_ready_is_told_at_once() {
    let mut bench = Bench::up();
    let ready = Inventory { holds: vec![codec::cid_of(&"workload")], ..inventory(4) };
    let told = |effects: &[LabletEffect]| match &sent(effects)[..] {
        [ToOrchestrator::Heartbeat(beat)] => beat.inventory.holds.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&bench.give(LabletInput::Inventory(ready.clone()))), ready.holds);
    // Of what was told before, or is no more, nothing is said before the next heartbeat.
    for known in [ready, inventory(4)] {
        assert_eq!(bench.give(LabletInput::Inventory(known)), []);
    }
}

#[test]
fn a_clock_that_was_set_is_measured_anew() {
    let sample = |offset_us, round_trip_us| ClockSample { offset_us, round_trip_us };
    let check = |before: ClockSample, newer, counts| assert_eq!(before.or_newer(newer), counts);
    check(sample(500, 40), sample(510, 30), sample(510, 30));
    check(sample(500, 30), sample(530, 40), sample(500, 30));
    // A minute apart: both cannot be true, and the newer one is.
    check(sample(500, 30), sample(60_000_500, 900), sample(60_000_500, 900));
    check(sample(500, 30), sample(-60_000_500, 900), sample(-60_000_500, 900));
}

#[test]
fn an_offer_lapses_by_the_clock_of_who_made_it() {
    let mut bench = Bench::up();
    // The lablet's clock is a year ahead, and it was measured.
    bench.give(LabletInput::Wall { unix_us: 1_831_536_000_000_000 });
    bench.now = Timestamp(bench.now.0 + 1_000_000_000);
    bench.give(LabletInput::Timeout);
    let renewal = LeaseRenewal { seq: 2, heartbeat_ms: 1_000, lease_ms: 5_000, wall_us: 1_800_000_001_000_000 };
    bench.hear(ToLablet::Lease(renewal));
    let offer = |expires_ms| {
        let wanted = [(Wasm, Wanted { instances: 1, memory_bytes: 1 })].into();
        let run = codec::cid_of(&"run");
        Offer { lab: peer(201), execution: execution(), run, epoch: epoch(1), wanted, expires: WallTime(expires_ms) }
    };
    let bids = |effects: &[LabletEffect]| sent(effects).iter().any(|m| matches!(m, ToOrchestrator::Bid(_)));
    assert!(bids(&bench.give(LabletInput::Offer(Verified::vouch(offer(1_800_000_030_000))))));
    assert!(!bids(&bench.give(LabletInput::Offer(Verified::vouch(offer(1_799_999_999_000))))));
}

#[test]
fn strangers_cannot_speak_for_the_orchestrator() {
    let mut bench = Bench::running(1);
    for message in [
        ToLablet::Stop(named(1), String::new()),
        ToLablet::Finished(Finished { execution: execution(), result: None, term: None }),
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

/// A grant of so many instances of each kind, in the groups `a` and `b`.
fn mixed_grant(counter: u64, wasm: u32, docker: u32) -> Grant {
    let mut grant = grant(counter, wasm);
    grant.assignments.push(Assignment { group: "b".into(), start: 0, count: docker, lablet: peer(ME) });
    grant.slots.insert(Docker, docker);
    grant
}

impl Bench {
    /// A lablet with four slots for components and two for containers.
    fn both() -> Bench {
        let mut bench = Bench::up();
        bench.give(LabletInput::Inventory(both(4, 2)));
        bench
    }

    fn hear_grant(&mut self, grant: Grant) -> Vec<ToOrchestrator> {
        let signed = Signed { body: grant, signer: peer(ORCHESTRATOR), signature: Vec::new() };
        sent(&self.hear(ToLablet::Grant(signed)))
    }

    fn free(&self) -> [u32; 2] {
        [Wasm, Docker].map(|kind| self.core.inventory().free(kind))
    }

    fn offer(&mut self, wanted: &[(WorkloadKind, u32, u64)]) -> Option<Bid> {
        let offer = Offer {
            lab: peer(201),
            execution: execution(),
            run: codec::cid_of(&"run"),
            epoch: epoch(1),
            wanted: wanted
                .iter()
                .map(|(k, instances, memory_bytes)| (*k, Wanted { instances: *instances, memory_bytes: *memory_bytes }))
                .collect(),
            expires: WallTime(u64::MAX),
        };
        sent(&self.give(LabletInput::Offer(Verified::vouch(offer)))).into_iter().find_map(|m| match m {
            ToOrchestrator::Bid(bid) => Some(bid),
            _ => None,
        })
    }
}

#[test]
fn a_cell_of_both_kinds_takes_room_of_both_until_it_ended() {
    let mut bench = Bench::both();
    assert_eq!(bench.hear_grant(mixed_grant(1, 3, 2)), [ToOrchestrator::Accept(named(1))]);
    assert_eq!(bench.free(), [1, 0]);
    // A later term takes the place of the first, whatever the first took.
    assert_eq!(bench.hear_grant(mixed_grant(2, 4, 1)), [ToOrchestrator::Accept(named(2))]);
    assert_eq!(bench.free(), [0, 1]);
    bench.give(LabletInput::Prepared { cell: named(2) });
    bench.hear(ToLablet::Start(named(2)));
    for (group, count) in [("a", 4), ("b", 1)] {
        for instance in InstanceId::range(group, 0, count) {
            assert_eq!(bench.free(), [0, 1]);
            bench.give(LabletInput::InstanceEnded { cell: named(2), instance });
        }
    }
    assert_eq!(bench.free(), [4, 2]);
}

#[test]
fn a_grant_whose_slots_do_not_add_up_or_have_no_runner_is_refused() {
    let with = |slots: &[(WorkloadKind, u32)]| Grant { slots: slots.iter().copied().collect(), ..mixed_grant(1, 2, 1) };
    let rows = [
        (both(4, 2), with(&[(Wasm, 2)]), "the grant has 2 slots for 3 instances"),
        (both(4, 2), with(&[(Wasm, 2), (Docker, 2)]), "the grant has 4 slots for 3 instances"),
        (both(4, 2), with(&[(Wasm, u32::MAX), (Docker, 4)]), "the grant has 4294967299 slots for 3 instances"),
        (both(4, 2), with(&[]), "the grant has 0 slots for 3 instances"),
        (both(4, 0), with(&[(Wasm, 2), (Docker, 1)]), "has no docker runner"),
        (both(0, 2), with(&[(Wasm, 2), (Docker, 1)]), "has no wasm runner"),
        (both(4, 2), with(&[(Docker, 3)]), "3 docker slots wanted, 2 free"),
        (both(1, 2), with(&[(Wasm, 2), (Docker, 1)]), "2 wasm slots wanted, 1 free"),
    ];
    for (machine, grant, want) in rows {
        let mut bench = Bench::up();
        bench.give(LabletInput::Inventory(machine));
        assert_eq!(bench.hear_grant(grant), [ToOrchestrator::Refuse(named(1), want.into())]);
    }
}

#[test]
fn a_lablet_bids_for_the_kinds_that_it_has() {
    const GIB: u64 = 1 << 30;
    // It has so many slots of each kind, and 64 GiB are free.
    let check = |wasm, docker, wanted: &[(WorkloadKind, u32, u64)], slots: &[(WorkloadKind, u32)], reason: &str| {
        let mut bench = Bench::up();
        bench.give(LabletInput::Inventory(both(wasm, docker)));
        let bid = bench.offer(wanted).expect("every offer is answered");
        assert_eq!(bid.slots, slots.iter().copied().collect(), "{wanted:?} of {wasm} and {docker}");
        assert_eq!(bid.reason, reason);
    };
    check(4, 2, &[(Wasm, 9, GIB), (Docker, 9, GIB)], &[(Wasm, 4), (Docker, 2)], "");
    check(4, 2, &[(Wasm, 3, GIB), (Docker, 1, GIB)], &[(Wasm, 3), (Docker, 1)], "");
    check(4, 2, &[(Wasm, 3, GIB), (Docker, 2, 40 * GIB)], &[(Wasm, 3), (Docker, 1)], "");
    check(4, 0, &[(Wasm, 3, GIB), (Docker, 1, GIB)], &[(Wasm, 3)], "");
    check(0, 2, &[(Wasm, 3, GIB), (Docker, 1, GIB)], &[(Docker, 1)], "");
    check(4, 0, &[(Docker, 1, GIB)], &[], "has no docker runner");
    check(0, 2, &[(Wasm, 1, GIB)], &[], "has no wasm runner");
    check(4, 2, &[(Docker, 1, 65 * GIB)], &[], "no free memory");
    check(0, 2, &[(Wasm, 1, GIB), (Docker, 1, 65 * GIB)], &[], "has no wasm runner, no free memory");
    let mut full = Bench::both();
    let busy = Grant { cell: cell(ExecutionId(codec::cid_of(&"other")), 1), ..mixed_grant(1, 4, 2) };
    full.hear_grant(busy);
    assert_eq!(full.offer(&[(Wasm, 1, 1)]).unwrap().reason, "no free slot");
    assert_eq!(full.offer(&[(Docker, 1, 1)]).unwrap().reason, "no free docker slot");
    assert_eq!(full.offer(&[(Wasm, 1, 1), (Docker, 1, 1)]).unwrap().reason, "no free wasm slot, no free docker slot");
}

#[test]
fn an_end_is_remembered_where_somebody_could_take_over_who_does_not_know_it() {
    let seat = |n: u8| {
        let body = Certificate {
            lab: peer(201),
            orchestrator: peer(n),
            name: "lab".into(),
            expires: WallTime(u64::MAX),
            private: false,
        };
        Seat { certificate: Signed { body, signer: peer(201), signature: Vec::new() }, addrs: Vec::new() }
    };
    let end = Finished { execution: execution(), result: None, term: None };
    for (seats, remembered) in [(1, vec![]), (2, vec![end.clone()])] {
        let mut bench = Bench::running(1);
        let seats = (0..seats).map(|n| seat(200 + n)).collect();
        bench.hear(ToLablet::Orchestrators(Orchestrators { claim: None, seats }));
        bench.hear(ToLablet::Finished(end.clone()));
        assert_eq!(bench.core.finished_executions(), remembered);
    }
}
