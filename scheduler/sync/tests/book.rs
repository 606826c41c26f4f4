//! What facts make of who takes part.

use std::collections::BTreeMap;

use iptl_dag::codec;
use iptl_dag::model::{
    Assignment, Engine, FactKind, GroupLoss, GroupRun, InstanceId, LossPolicy, Network, Placing, Requirements,
    Resources, Run, WorkloadKind,
};
use iptl_sync::SyncBook;
use iptl_wire::session::{BarrierAsk, SyncUp};

use crate::world::{World, instance, peer, signal_and_wait, signalled};

/// Two groups of one instance each, each on a lablet of its own; what is lost may begin anew once.
fn run() -> Run {
    let group = GroupRun {
        workload: codec::cid_of(&"workload"),
        kind: WorkloadKind::Wasm,
        count: 1,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
        loss: Some(GroupLoss { rerun: 1, ..GroupLoss::default() }),
        start: None,
    };
    Run {
        plan: codec::cid_of(&"plan"),
        case: "case".into(),
        groups: BTreeMap::from([("g0".to_owned(), group.clone()), ("g1".to_owned(), group)]),
        params: BTreeMap::new(),
        seed: 1,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy::default(),
        thresholds: Vec::new(),
        timeout_ms: 10_000,
        placing: Placing::default(),
        captures: BTreeMap::new(),
    }
}

fn granted(cell: usize) -> FactKind {
    let assignment = Assignment { group: format!("g{cell}"), start: 0, count: 1, lablet: peer(cell) };
    FactKind::Granted { lablet: peer(cell), assignments: vec![assignment], attempt: 1 }
}

fn received(cell: usize) -> FactKind {
    FactKind::Received { lablet: peer(cell), shard: codec::cid_of(&cell), count: 1 }
}

fn lost(cell: usize) -> FactKind {
    let instances = vec![instance(cell, 0)];
    FactKind::Lost { lablet: Some(peer(cell)), instances, reason: "its lablet stopped it".to_owned() }
}

/// Two cells of which the first waits for the second, and the book of both.
fn waiting() -> (World, SyncBook) {
    let mut book = SyncBook::new(&run());
    book.note(&[granted(0), granted(1)], |_| true);
    let mut world = World::new(&[1, 1]);
    std::mem::swap(&mut world.run, book.sync_mut().unwrap());
    world.connect(0);
    world.connect(1);
    world.call(0, 0, 1, signal_and_wait("all", 2));
    world.settle();
    (world, book)
}

fn note(world: &mut World, book: &mut SyncBook, facts: &[FactKind], again: impl Fn(&InstanceId) -> bool) {
    std::mem::swap(&mut world.run, book.sync_mut().unwrap());
    book.note(facts, again);
    std::mem::swap(&mut world.run, book.sync_mut().unwrap());
    for _ in 0..40 {
        world.run.inquire();
        world.settle();
    }
}

#[test]
fn a_cell_that_is_lost_with_its_last_receipts_is_waited_for_where_it_begins_anew() {
    for anew in [true, false] {
        let (mut world, mut book) = waiting();
        note(&mut world, &mut book, &[received(1), lost(1)], |_| anew);
        assert_eq!(world.answers(0, 0, 1).is_empty(), anew, "{:?}", world.answers(0, 0, 1));
        assert!(!book.takes_part(&peer(1)) && book.takes_part(&peer(0)));
    }
}

#[test]
fn nothing_is_waited_for_any_more_once_what_was_lost_is_given_up_whatever_the_fact_names() {
    let (mut world, mut book) = waiting();
    note(&mut world, &mut book, &[lost(1)], |_| true);
    assert_eq!(world.answers(0, 0, 1), []);
    let given_up = FactKind::Lost { lablet: None, instances: vec![], reason: "no lablet came".to_owned() };
    note(&mut world, &mut book, &[given_up], |_| false);
    assert!(!world.answers(0, 0, 1).is_empty());
}

#[test]
fn a_log_that_is_read_again_gives_the_same_cells() {
    let mut book = SyncBook::new(&run());
    for fact in [granted(0), granted(1), received(1), lost(1)] {
        book.read(&fact);
    }
    assert!(book.sync().is_none());
    book.resume();
    assert!(book.sync().unwrap().is_recovering());
    assert_eq!(book.lablets().collect::<Vec<_>>(), [&peer(0)]);
}

#[test]
fn a_cell_that_is_granted_more_before_the_start_holds_what_was_granted_last() {
    let assignments = |groups: &[usize]| {
        let one = |group: &usize| Assignment { group: format!("g{group}"), start: 0, count: 1, lablet: peer(1) };
        groups.iter().map(one).collect()
    };
    let grant = |groups: &[usize]| FactKind::Granted { lablet: peer(1), assignments: assignments(groups), attempt: 1 };
    let refused = FactKind::Refused { lablet: peer(0), reason: "its owner wants the machine back".to_owned() };
    let facts = [granted(0), grant(&[1]), refused, grant(&[0, 1])];
    let mut book = SyncBook::new(&run());
    book.note(&facts, |_| true);
    let signals = signalled("all", 0, 1, 1);
    let barriers = vec![BarrierAsk { state: "all".to_owned(), target: 3 }];
    let up = SyncUp { session: 1, number: 1, signals, barriers, ..SyncUp::default() };
    let sync = book.sync_mut().unwrap();
    sync.handle(&peer(1), up).unwrap();
    assert_eq!(sync.waiting()[0].missing[0].absent.count, 1, "it holds two");
}
