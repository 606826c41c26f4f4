//! The orchestrator core: happy path, refusals, cancellation, replay.

use std::collections::BTreeMap;

use iptl_dag::model::{self, Epoch, ExecutionId, FactKind, WorkloadKind};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{Effect, Input};
use iptl_wire::control::{Event, FailureKind};
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Heartbeat, ReceiptsReady, Slots, ToLablet, ToOrchestrator};
use iptl_wire::takeover::Finished;

use crate::bench::{
    Bench, both, cell, failure, grants, mixed, order, peer, persisted, placements, result, run, sent_to,
};

#[test]
fn a_run_goes_from_submission_to_seal() {
    let mut bench = Bench::new();
    for n in [1, 2, 3] {
        let slots = if n == 3 { 1 } else { 4 };
        let effects = bench.hello(n, n, u64::from(n), slots, vec![]);
        assert!(
            effects
                .iter()
                .any(|e| matches!(e, Effect::Welcome { heartbeat_ms: 900..=1100, lease_ms: 4750..=5000, .. }))
        );
    }
    let (id, effects) = bench.submit(run(&[("a", 8)]));
    assert!(matches!(persisted(&effects)[..], [FactKind::Submitted { .. }, FactKind::Placed { .. }]));
    assert!(matches!(effects[0], Effect::StorePlacement(_)), "a placement is stored before its fact");
    assert!(effects.iter().any(|e| matches!(
        e,
        Effect::PublishOffer(offer) if offer.wanted[&WorkloadKind::Wasm].instances == 8 && offer.wanted.len() == 1
    )));

    assert!(grants(&bench.bid(3, id, 1)).is_empty());
    assert!(grants(&bench.bid(1, id, 4)).is_empty());
    let effects = bench.bid(2, id, 4);
    let granted = grants(&effects);
    assert_eq!(granted.iter().flat_map(|g| &g.assignments).map(|a| a.count).sum::<u32>(), 8);
    assert_eq!(persisted(&effects).len(), granted.len());
    assert!(granted.iter().all(|g| g.memory_bytes > 0 && g.placement.len() == granted.len()));
    assert!(granted.iter().all(|g| g.slots == BTreeMap::from([(WorkloadKind::Wasm, g.assignments[0].count)])));

    let named = cell(id, 1);
    let lablets: Vec<u8> = (1..=3).filter(|n| granted.iter().any(|g| g.lablet == peer(*n))).collect();
    for n in &lablets {
        let effects = bench.say(*n, ToOrchestrator::Accept(named.clone()));
        assert_eq!(persisted(&effects), [FactKind::Accepted { lablet: peer(*n) }]);
        assert!(bench.say(*n, ToOrchestrator::Accept(named.clone())).is_empty(), "twice is once");
    }
    let (last, first) = lablets.split_last().unwrap();
    for n in first {
        let effects = bench.say(*n, ToOrchestrator::Prepared(named.clone()));
        assert!(!effects.iter().any(|e| matches!(e, Effect::Send { message: ToLablet::Start(_), .. })));
    }
    let effects = bench.say(*last, ToOrchestrator::Prepared(named.clone()));
    assert_eq!(persisted(&effects), [FactKind::Started {}]);
    for n in &lablets {
        assert!(sent_to(&effects, *n).contains(&ToLablet::Start(named.clone())));
    }

    let mut assembly = None;
    for grant in &granted {
        let n = lablets.iter().copied().find(|n| peer(*n) == grant.lablet).unwrap();
        let mine: Vec<(&str, u32)> =
            grant.assignments.iter().flat_map(|a| (a.start..a.start + a.count).map(|i| ("a", i))).collect();
        let effects = bench.receipts(n, &named, &mine);
        assert!(sent_to(&effects, n).iter().any(|m| matches!(m, ToLablet::Kept(..))));
        assembly = order(&effects).or(assembly);
    }
    let assembly = assembly.expect("all receipts are in");
    assert_eq!((assembly.accepted.len(), assembly.missing.len()), (8, 0));
    assert!(assembly.started_ms > 0 && assembly.ended_ms >= assembly.started_ms);
    assert_eq!(assembly.lablets.len(), lablets.len());

    let effects = bench.give(Input::Assembled { execution: id, result: result() });
    assert_eq!(persisted(&effects), [FactKind::Sealed { result: result().cid, term: None }]);
    for n in &lablets {
        assert!(sent_to(&effects, *n).contains(&ToLablet::Finished(Finished {
            execution: id,
            result: Some(result().cid),
            term: None
        })));
    }
    assert!(effects.iter().any(|e| matches!(e, Effect::Notify { event: Event::Finished { .. }, .. })));
    assert!(bench.core.executions().is_empty());
    assert_eq!(bench.core.result(&id), Some(Some(result().cid)));
}

#[test]
fn losers_are_told_after_the_winners_accepted() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 8, vec![]);
    bench.hello(2, 2, 2, 8, vec![]);
    let mut packed = run(&[("a", 4)]);
    packed.groups.get_mut("a").unwrap().requires.affinity = iptl_dag::model::Affinity::Pack;
    let (id, _) = bench.submit(packed);
    bench.bid(1, id, 8);
    let granted = grants(&bench.bid(2, id, 8));
    // Whoever is placed first is granted as soon as it bid; the other one has lost.
    let granted = if granted.is_empty() { vec![peer(1)] } else { vec![granted[0].lablet.clone()] };
    let (winner, loser) = if granted[0] == peer(1) { (1, 2) } else { (2, 1) };
    let effects = bench.say(winner, ToOrchestrator::Accept(cell(id, 1)));
    assert_eq!(sent_to(&effects, loser), [ToLablet::NotNeeded(id)]);
}

#[test]
fn a_missing_bid_moves_instances_to_others() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 8, vec![]);
    bench.hello(2, 2, 2, 8, vec![]);
    let (id, effects) = bench.submit(run(&[("a", 4)]));
    let first = placements(&effects).pop().expect("it is placed");
    bench.bid(2, id, 8);
    let effects = bench.wait(1_100);
    let granted = grants(&effects);
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].lablet, peer(2));
    assert_eq!(granted[0].assignments[0].count, 4);
    let parents: Vec<Option<Cid>> = placements(&effects).into_iter().map(|placement| placement.parent).collect();
    assert_eq!(parents, [Some(*model::to_block(first).cid())]);
}

#[test]
fn what_was_given_back_is_placed_again_as_soon_as_its_lablet_may_get_something() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 2, vec![]);
    bench.hello(2, 2, 2, 2, vec![]);
    let (id, _) = bench.submit(run(&[("a", 3), ("b", 1)]));
    bench.bid(1, id, 2);
    bench.bid(2, id, 2);
    // Between two looks at those that wait.
    bench.wait(300);
    bench.say(2, ToOrchestrator::Refuse(cell(id, 1), "no room".into()));
    let granted = |effects: &[Effect]| {
        persisted(effects).iter().any(|kind| matches!(kind, FactKind::Granted { lablet, .. } if *lablet == peer(2)))
    };
    let effects = bench.wait(1_999);
    assert!(!granted(&effects), "it gave the same back a moment ago");
    let effects = bench.wait(1);
    assert!(granted(&effects), "{effects:?}");
}

#[test]
fn a_refused_grant_is_placed_elsewhere_and_the_rest_is_kept() {
    let mut bench = Bench::new();
    for n in [1, 2, 3] {
        bench.hello(n, n, u64::from(n), 2, vec![]);
    }
    let (id, effects) = bench.submit(run(&[("a", 4)]));
    let placed: Vec<PeerId> = effects
        .iter()
        .find_map(|e| match e {
            Effect::StorePlacement(p) => Some(p.assignments.iter().map(|a| a.lablet.clone()).collect()),
            _ => None,
        })
        .unwrap();
    let mut granted = Vec::new();
    for n in [1, 2, 3] {
        granted.extend(grants(&bench.bid(n, id, 2)));
    }
    assert_eq!(granted.len(), placed.len());
    let refuser = (1..=3).find(|n| peer(*n) == granted[0].lablet).unwrap();
    let effects = bench.say(refuser, ToOrchestrator::Refuse(cell(id, 1), "no room".into()));
    assert!(matches!(&persisted(&effects)[0], FactKind::Refused { .. } | FactKind::Placed { .. }));
    let anew = grants(&effects);
    assert!(!anew.is_empty() && anew.iter().all(|g| g.lablet != peer(refuser) && g.cell.epoch.counter == 2));
    let kept: Vec<_> = granted[1..].iter().filter(|g| !anew.iter().any(|a| a.lablet == g.lablet)).collect();
    for grant in kept {
        let n = (1..=3).find(|n| peer(*n) == grant.lablet).unwrap();
        assert!(
            sent_to(&effects, n).iter().any(|m| matches!(m, ToLablet::Directory(..))),
            "who keeps its cell hears where the others went"
        );
    }
}

#[test]
fn a_result_is_written_as_soon_as_the_disk_takes_it_and_given_up_only_where_that_cannot_be() {
    for may_pass in [true, false] {
        let mut bench = Bench::new();
        let (id, _) = bench.submit(run(&[("a", 1)]));
        let mut effects = bench.give(Input::Cancel { execution: id, by: peer(202) });
        let mut tries = 0;
        while order(&effects).is_some() && tries < 12 {
            tries += 1;
            let reason = "the disk is full".to_owned();
            let failed = bench.give(Input::AssembleFailed { execution: id, reason, may_pass });
            assert_eq!(persisted(&failed).is_empty(), may_pass || tries < 5, "attempt {tries}: {failed:?}");
            effects = bench.wait(30_000);
        }
        assert_eq!(tries, if may_pass { 12 } else { 5 });
        if may_pass {
            let said = bench.core.executions().into_iter().find(|view| view.execution == id).unwrap().phase;
            assert!(said.contains("waits for the result to be written: the disk is full"), "{said}");
            let effects = bench.give(Input::Assembled { execution: id, result: result() });
            assert!(matches!(persisted(&effects)[..], [FactKind::Sealed { .. }]), "{effects:?}");
        }
    }
}

#[test]
fn a_round_of_many_grants_counts_once_after_a_restart_too() {
    let lablets = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut bench = Bench::new();
    for n in lablets {
        bench.hello(n, n, u64::from(n), 2, vec![]);
    }
    let (id, _) = bench.submit(run(&[("a", 14)]));
    let granted: Vec<_> = lablets.iter().flat_map(|n| grants(&bench.bid(*n, id, 2))).collect();
    assert!(granted.len() >= 7, "more than the rounds that are tried: {granted:?}");
    let with = |n: u8| granted.iter().find(|grant| grant.lablet == peer(n)).cloned();
    for n in lablets.into_iter().filter(|n| with(*n).is_some()) {
        bench.say(n, ToOrchestrator::Accept(cell(id, 1)));
    }
    bench.restart();
    for n in lablets {
        let cells = with(n).map(|grant| CellStatus {
            cell: grant.cell,
            assignments: grant.assignments,
            phase: CellPhase::Preparing,
            running: 0,
            ended: 0,
            directory: 1,
            attempt: 1,
        });
        bench.hello(n, n, 100 + u64::from(n), 2, cells.into_iter().collect());
    }
    let refuser = lablets.into_iter().find(|n| with(*n).is_some()).unwrap();
    let mut effects = bench.say(refuser, ToOrchestrator::Refuse(cell(id, 1), "no room".into()));
    effects.extend(bench.wait(3_000));
    let facts = persisted(&effects);
    assert!(facts.iter().any(|fact| matches!(fact, FactKind::Refused { .. })), "{facts:?}");
    assert!(!facts.iter().any(|fact| matches!(fact, FactKind::CannotStart(_))), "{facts:?}");
    assert!(facts.iter().any(|fact| matches!(fact, FactKind::Granted { .. })), "placed anew: {facts:?}");
}

#[test]
fn an_unfit_workload_fails_the_run_as_a_mistake_of_its_author() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 8, vec![]);
    let (id, _) = bench.submit(run(&[("a", 1)]));
    bench.bid(1, id, 1);
    bench.say(1, ToOrchestrator::Accept(cell(id, 1)));
    let effects = bench.say(1, ToOrchestrator::Unfit(cell(id, 1), "a.wasm is no component".into()));
    let failure = failure(&effects).unwrap();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Usage, "workload.bad"));
    assert!(failure.message.contains("a.wasm is no component"));
    let result = result();
    let end = Finished { execution: id, result: Some(result.cid), term: None };
    let effects = bench.give(Input::Assembled { execution: id, result });
    assert!(sent_to(&effects, 1).contains(&ToLablet::Finished(end)));
}

#[test]
fn a_run_waits_for_room_with_a_reason_and_is_placed_when_a_lablet_joins() {
    let mut bench = Bench::new();
    let (_, effects) = bench.submit(run(&[("a", 20)]));
    assert!(!effects.iter().any(|e| matches!(e, Effect::PublishOffer(_))));
    let waiting = |effects: &[Effect]| {
        effects.iter().rev().find_map(|e| match e {
            Effect::Notify { event: Event::Waiting { reason }, .. } => Some(reason.clone()),
            _ => None,
        })
    };
    assert_eq!(waiting(&bench.wait(1_100)).as_deref(), Some("waits for a lablet: none is connected"));
    bench.hello(1, 1, 1, 17, vec![]);
    assert_eq!(waiting(&bench.wait(1_100)).as_deref(), Some("waits for 20 slots, 17 free on 1 lablet"));
    let effects = bench.hello(2, 2, 2, 3, vec![]);
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(_))));
}

fn waits_for(effects: &[Effect]) -> Option<String> {
    effects.iter().rev().find_map(|e| match e {
        Effect::Notify { event: Event::Waiting { reason }, .. } => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn a_run_of_both_kinds_is_granted_as_one_cell_for_each_lablet() {
    use WorkloadKind::{Docker, Wasm};
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 2), vec![]);
    bench.hello_with(2, 2, 2, both(4, 0), vec![]);
    bench.hello_with(3, 3, 3, both(0, 4), vec![]);
    let (id, effects) = bench.submit(mixed(8, 6));
    let offer = effects.iter().find_map(|e| match e {
        Effect::PublishOffer(offer) => Some(offer.clone()),
        _ => None,
    });
    let wanted = offer.expect("it fits").wanted.into_iter().map(|(kind, w)| (kind, w.instances));
    assert_eq!(wanted.collect::<Vec<_>>(), [(Wasm, 8), (Docker, 6)]);

    assert!(grants(&bench.bid_with(2, id, &[(Wasm, 4)])).is_empty());
    assert!(grants(&bench.bid_with(3, id, &[(Docker, 4)])).is_empty());
    let granted = grants(&bench.bid_with(1, id, &[(Wasm, 4), (Docker, 2)]));
    let slots: BTreeMap<PeerId, Vec<(WorkloadKind, u32)>> =
        granted.iter().map(|g| (g.lablet.clone(), g.slots.clone().into_iter().collect())).collect();
    let want = [(peer(1), vec![(Wasm, 4), (Docker, 2)]), (peer(2), vec![(Wasm, 4)]), (peer(3), vec![(Docker, 4)])];
    assert_eq!((granted.len(), slots), (3, BTreeMap::from(want)));
    // All of it is promised: there is nothing left for others, of either kind.
    let sums = bench.core.inventory().into_values().map(|i| i.sum().free);
    assert_eq!(sums.collect::<Vec<_>>(), [0, 0, 0]);
}

#[test]
fn a_bid_that_lacks_a_kind_moves_only_what_it_lacks() {
    use WorkloadKind::{Docker, Wasm};
    let mut bench = Bench::new();
    bench.hello_with(1, 1, 1, both(4, 4), vec![]);
    bench.hello_with(2, 2, 2, both(4, 4), vec![]);
    let (id, _) = bench.submit(mixed(4, 2));
    // Its containers were taken for something else meanwhile.
    bench.bid_with(1, id, &[(Wasm, 4)]);
    let granted = grants(&bench.bid_with(2, id, &[(Wasm, 4), (Docker, 4)]));
    let of = |n: u8, kind| granted.iter().find(|g| g.lablet == peer(n)).and_then(|g| g.slots.get(&kind).copied());
    assert_eq!((of(1, Wasm), of(1, Docker)), (Some(2), None));
    assert_eq!((of(2, Wasm), of(2, Docker)), (Some(2), Some(2)));
}

#[test]
fn a_lab_without_docker_waits_with_the_reason_and_then_fails() {
    let mut bench = Bench::new();
    for n in [1, 2, 3] {
        bench.hello(n, n, u64::from(n), 8, vec![]);
    }
    let (_, effects) = bench.submit(mixed(4, 2));
    assert!(!effects.iter().any(|e| matches!(e, Effect::PublishOffer(_))));
    let mut effects = Vec::new();
    for seq in 1..34 {
        effects.extend(bench.wait(1_000));
        for n in [1, 2, 3] {
            effects.extend(bench.heartbeat(n, seq, 8, vec![]));
        }
    }
    let why = "a lablet that matches: none of 3 does (has no docker runner)";
    let waits = format!("waits for {why}");
    let said =
        |effect: &Effect| matches!(effect, Effect::Notify { event: Event::Waiting { reason }, .. } if *reason == waits);
    assert!(effects.iter().any(said), "{effects:?}");
    let failure = failure(&effects).unwrap();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::LabUnable, "lab.no-capacity"));
    assert!(failure.message.ends_with(why), "{}", failure.message);
}

#[test]
fn a_wait_for_slots_names_the_kinds_that_are_short() {
    let rows = [
        (mixed(20, 0), "waits for 20 slots, 17 free on 1 lablet"),
        (mixed(0, 20), "waits for 20 docker slots, 5 free on 2 lablets"),
        (mixed(3, 20), "waits for 20 docker slots, 5 free on 2 lablets"),
        (mixed(20, 2), "waits for 20 wasm slots, 17 free on 1 lablet"),
        (mixed(18, 6), "waits for 18 wasm slots, 17 free on 1 lablet; 6 docker slots, 5 free on 2 lablets"),
    ];
    for (run, want) in rows {
        let mut bench = Bench::new();
        bench.hello_with(1, 1, 1, both(17, 4), vec![]);
        bench.hello_with(2, 2, 2, both(0, 1), vec![]);
        bench.submit(run);
        assert_eq!(waits_for(&bench.wait(1_100)).as_deref(), Some(want));
    }
}

#[test]
fn docker_slots_that_get_free_let_a_run_go_on() {
    let mut bench = Bench::new();
    let full = |docker_free: u32| {
        let mut inventory = both(8, 2);
        inventory.slots.insert(WorkloadKind::Docker, Slots { total: 2, free: docker_free });
        inventory
    };
    bench.hello_with(1, 1, 1, full(0), vec![]);
    let (id, _) = bench.submit(mixed(1, 2));
    assert_eq!(waits_for(&bench.wait(1_100)).as_deref(), Some("waits for 2 docker slots, 0 free on 0 lablets"));
    let beat =
        Heartbeat { seq: 1, wall_us: 0, inventory: full(2), cells: Vec::new(), clock: None, fetching: Vec::new() };
    let effects = bench.say(1, ToOrchestrator::Heartbeat(beat));
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(o) if o.execution == id)));
}

#[test]
fn a_run_beyond_what_owners_lend_fails_even_where_their_machines_could_hold_it() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 100, vec![]);
    let mut large = run(&[("a", 20)]);
    large.groups.get_mut("a").unwrap().resources.memory_bytes = 5 << 30;
    let (_, mut effects) = bench.submit(large);
    for seq in 1..34 {
        effects.extend(bench.wait(1_000));
        effects.extend(bench.heartbeat(1, seq, 100, vec![]));
    }
    assert_eq!(failure(&effects).map(|f| f.code).as_deref(), Some("lab.no-capacity"));
}

#[test]
fn a_run_that_never_fits_fails_as_the_labs_inability() {
    let mut bench = Bench::new();
    let (id, _) = bench.submit(run(&[("a", 20)]));
    let effects = bench.wait(32_000);
    let failure = failure(&effects).unwrap();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::LabUnable, "lab.no-capacity"));
    assert!(matches!(persisted(&effects)[..], [FactKind::CannotStart(_)]));
    // Its result says so too.
    let order = order(&effects).unwrap();
    assert_eq!((order.accepted.len(), order.missing.len(), order.started_ms), (0, 20, 0));
    assert!(order.missing.values().all(|why| *why == failure.message), "{:?}", order.missing);
    let effects = bench.give(Input::Assembled { execution: id, result: result() });
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Notify { event: Event::Finished { failure: Some(told), .. }, .. } if **told == failure
    )));
}

#[test]
fn two_executions_do_not_share_a_slot() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 4, vec![]);
    let (first, _) = bench.submit(run(&[("a", 3)]));
    let (second, effects) = bench.submit_by(202, 8, run(&[("b", 2)]));
    assert!(!effects.iter().any(|e| matches!(e, Effect::PublishOffer(_))));
    let effects = bench.give(Input::Cancel { execution: first, by: peer(202) });
    assert!(order(&effects).is_some_and(|o| o.missing.len() == 3 && o.cancelled == Some(peer(202))));
    let effects = bench.give(Input::Assembled { execution: first, result: result() });
    assert!(effects.iter().any(|e| matches!(e, Effect::PublishOffer(o) if o.execution == second)));
}

#[test]
fn a_lost_lablets_instances_are_lost_under_at_most_once() {
    let mut bench = Bench::new();
    let id = bench.started();
    bench.wait(500);
    bench.receipts(1, &cell(id, 1), &[("a", 0), ("a", 1)]);
    let mut effects = Vec::new();
    for seq in 1..=8 {
        bench.heartbeat(1, seq, 2, vec![]);
        effects.extend(bench.wait(1_000));
    }
    assert!(persisted(&effects).iter().any(|f| matches!(
        f,
        FactKind::Lost { lablet: Some(l), instances, .. } if *l == peer(2) && instances.len() == 2
    )));
    let order = order(&effects).expect("nothing more is expected");
    assert_eq!((order.accepted.len(), order.missing.len()), (2, 2));
    assert!(order.missing.values().all(|why| why.contains("was not heard for")));
}

#[test]
fn a_disconnected_lablet_is_not_lost_before_its_lease_is_over() {
    let mut bench = Bench::new();
    let id = bench.started();
    bench.give(Input::Gone { from: peer(2), session: 2 });
    assert!(persisted(&bench.wait(4_000)).is_empty());
    let status = CellStatus {
        cell: cell(id, 1),
        assignments: Vec::new(),
        phase: CellPhase::Running,
        running: 2,
        ended: 0,
        directory: 1,
        attempt: 1,
    };
    let effects = bench.hello(2, 2, 9, 2, vec![status]);
    assert!(persisted(&effects).is_empty());
    assert!(effects.iter().any(|e| matches!(e, Effect::Welcome { session: 9, .. })));
    assert_eq!(bench.core.cells(&id).len(), 2);
}

#[test]
fn a_second_lablet_with_the_same_identity_is_turned_away() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 2, vec![]);
    bench.wait(500);
    let effects = bench.hello(1, 99, 2, 2, vec![]);
    let [Effect::Turn { session: 2, reason, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(reason.starts_with("two lablets use this identity"));
    // A restart is served as soon as the first life has fallen silent.
    bench.wait(2_500);
    assert!(bench.hello(1, 99, 3, 2, vec![]).iter().any(|e| matches!(e, Effect::Welcome { session: 3, .. })));
}

#[test]
fn a_run_whose_time_is_over_is_stopped_and_sealed() {
    let mut bench = Bench::new();
    let id = bench.started();
    let mut effects = Vec::new();
    for seq in 1..=18 {
        for n in [1, 2] {
            let status = CellStatus {
                cell: cell(id, 1),
                assignments: Vec::new(),
                phase: CellPhase::Running,
                running: 2,
                ended: 0,
                directory: 1,
                attempt: 1,
            };
            effects.extend(bench.heartbeat(n, seq, 0, vec![status]));
        }
        effects.extend(bench.wait(1_000));
    }
    assert!(persisted(&effects).contains(&FactKind::TimedOut {}));
    assert!(sent_to(&effects, 1).iter().any(|m| matches!(m, ToLablet::Stop(..))));
    let order = order(&effects).unwrap();
    assert!(order.timed_out && order.missing.len() == 4);
}

#[test]
fn an_execution_goes_on_after_a_restart_of_its_orchestrator() {
    let mut bench = Bench::new();
    let id = bench.started();
    let named = cell(id, 1);
    bench.receipts(1, &named, &[("a", 0), ("a", 1)]);
    let effects = bench.restart();
    // What was kept is read again, and nothing is written twice.
    let [Effect::Pull { shard, .. }] = effects[..] else { panic!("{effects:?}") };
    let effects = bench.pulled(1, &named, shard, &[("a", 0), ("a", 1)]);
    assert!(persisted(&effects).is_empty());
    let status = CellStatus {
        cell: named.clone(),
        assignments: Vec::new(),
        phase: CellPhase::Ended,
        running: 0,
        ended: 2,
        directory: 1,
        attempt: 1,
    };
    bench.hello(2, 2, 1, 2, vec![status]);
    let shard = codec::cid_of(&"late");
    let ready = ReceiptsReady { cell: named.clone(), shard, count: 2 };
    // The chunk was announced before the account of the ended cell was taken.
    bench.say(2, ToOrchestrator::Receipts(ready));
    let effects = bench.pulled(2, &named, shard, &[("a", 2), ("b", 0)]);
    let order = order(&effects).expect("all receipts are in");
    assert_eq!((order.accepted.len(), order.missing.len(), order.shards.len()), (4, 0, 2));
}

#[test]
fn a_lablet_that_does_not_come_back_after_a_restart_is_lost_after_two_leases() {
    let mut bench = Bench::new();
    bench.started();
    bench.restart();
    assert!(persisted(&bench.wait(9_000)).iter().all(|f| !matches!(f, FactKind::Lost { .. })));
    let effects = bench.wait(2_000);
    assert!(order(&effects).is_some_and(|o| o.missing.len() == 4));
}

#[test]
fn messages_of_strangers_and_of_nobody_do_nothing() {
    let mut bench = Bench::new();
    let id = bench.started();
    let stranger = CellRef { execution: id, epoch: Epoch { counter: 9, peer: peer(77) } };
    let messages = [
        ToOrchestrator::Accept(stranger.clone()),
        ToOrchestrator::Refuse(stranger.clone(), String::new()),
        ToOrchestrator::Unfit(stranger.clone(), String::new()),
        ToOrchestrator::Prepared(stranger.clone()),
        ToOrchestrator::Receipts(ReceiptsReady { cell: stranger, shard: codec::cid_of(&1), count: 1 }),
    ];
    for message in messages {
        for n in [1, 50] {
            assert!(bench.say(n, message.clone()).is_empty(), "{message:?}");
        }
    }
    let unknown = ExecutionId(codec::cid_of(&"unknown"));
    assert!(bench.give(Input::Cancel { execution: unknown, by: peer(1) }).is_empty());
    assert!(bench.give(Input::Assembled { execution: id, result: result() }).is_empty());
}

#[test]
fn a_run_without_instances_is_a_mistake() {
    let mut bench = Bench::new();
    let (_, effects) = bench.submit(run(&[]));
    assert_eq!(failure(&effects).unwrap().code, "run.empty");
    assert!(bench.core.executions().is_empty());
}

#[test]
fn a_lablet_that_announces_more_receipts_than_there_are_breaks_nothing() {
    let mut bench = Bench::new();
    let id = bench.started();
    for (shard, index) in [("first", 0), ("second", 1)] {
        let shard = codec::cid_of(&shard);
        let ready = ReceiptsReady { cell: cell(id, 1), shard, count: u32::MAX };
        bench.say(1, ToOrchestrator::Receipts(ready));
        bench.pulled(1, &cell(id, 1), shard, &[("b", index)]);
    }
    let status = CellStatus {
        cell: cell(id, 1),
        assignments: Vec::new(),
        phase: CellPhase::Ended,
        running: 0,
        ended: 3,
        directory: 1,
        attempt: 1,
    };
    // Two receipts were there, whatever was announced: a third may still come.
    let effects = bench.heartbeat(1, 1, 2, vec![status]);
    assert!(!persisted(&effects).iter().any(|fact| matches!(fact, FactKind::Lost { .. })), "{effects:?}");
}
