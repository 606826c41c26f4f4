//! What the plan says of losses and failures: further attempts, early ends, the time of the start.

use iptl_dag::codec;
use iptl_dag::model::{Assignment, ExecutionId, Exit, FactKind, GroupLoss, InstanceId, MaxLost, Run};
use iptl_scheduler::{AssemblyOrder, Effect, Input, ReceiptSummary};
use iptl_wire::control::Event;
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Grant, ReceiptsReady, ToOrchestrator};

use crate::bench::{Bench, cell, failure, grants, order, peer, persisted, result, run};

/// Four instances: three of `a`, one of `b`, with what `a` says of losses.
fn lossy(loss: GroupLoss) -> Run {
    let mut run = run(&[("a", 3), ("b", 1)]);
    run.timeout_ms = 600_000;
    run.groups.get_mut("a").expect("it was just made").loss = Some(loss);
    run
}

fn rerun(rerun: u32) -> GroupLoss {
    GroupLoss { rerun, ..GroupLoss::default() }
}

/// Hands in a receipt of each of these instances, with how it ended.
fn ends(bench: &mut Bench, n: u8, cell: &CellRef, attempt: u32, ended: &[(&str, u32, i32)]) -> Vec<Effect> {
    let ended: Vec<_> =
        ended.iter().map(|(group, index, code)| (*group, *index, Exit::Exited { code: *code })).collect();
    ends_as(bench, n, cell, attempt, &ended)
}

fn ends_as(bench: &mut Bench, n: u8, cell: &CellRef, attempt: u32, ended: &[(&str, u32, Exit)]) -> Vec<Effect> {
    let shard = codec::cid_of(&(n, attempt, ended));
    let ready = ReceiptsReady { cell: cell.clone(), shard, count: ended.len() as u32 };
    let mut effects = bench.say(n, ToOrchestrator::Receipts(ready));
    let receipts = ended
        .iter()
        .map(|(group, index, exit)| ReceiptSummary {
            instance: InstanceId { group: (*group).to_owned(), index: *index },
            attempt,
            epoch: cell.epoch.clone(),
            exit: exit.clone(),
        })
        .collect();
    effects.extend(bench.give(Input::Pulled { execution: cell.execution, lablet: peer(n), shard, receipts }));
    effects
}

/// What lablet `n` was granted at first.
fn holds(bench: &Bench, id: ExecutionId, n: u8) -> Vec<InstanceId> {
    let cells = bench.core.cells(&id);
    cells.get(&peer(n)).into_iter().flat_map(|(_, a)| a.iter().flat_map(Assignment::instances)).collect()
}

/// Lets time go by in which lablet 1 is heard every second, and 3 where there is one, and lablet 2 is not.
fn without_two(bench: &mut Bench, id: ExecutionId, seconds: u64, phase: CellPhase, ended: u32) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..seconds {
        effects.extend(bench.wait(1_000));
        let (seq, assignments) = (bench.next_seq(), Vec::new());
        let status =
            CellStatus { cell: cell(id, 1), assignments, phase, running: 2 - ended, ended, directory: 99, attempt: 1 };
        effects.extend(bench.heartbeat(1, seq, 2, vec![status]));
        effects.extend(bench.heartbeat(3, seq, 8, vec![]));
    }
    effects
}

fn lost(effects: &[Effect]) -> Vec<InstanceId> {
    let lost = persisted(effects).into_iter().filter_map(|kind| match kind {
        FactKind::Lost { instances, .. } => Some(instances),
        _ => None,
    });
    lost.flatten().collect()
}

#[test]
fn a_lost_instance_is_granted_again_where_its_group_allows_it_and_only_there() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    let had = holds(&bench, id, 2);
    bench.hello(3, 3, 3, 8, vec![]);
    let effects = without_two(&mut bench, id, 8, CellPhase::Running, 0);
    assert_eq!(lost(&effects), had);
    let granted: Vec<Grant> = grants(&effects);
    // A grant that nobody takes is sent again with every heartbeat.
    assert!(granted.windows(2).all(|pair| pair[0] == pair[1]), "{granted:?}");
    let again: Vec<InstanceId> = granted[0].assignments.iter().flat_map(Assignment::instances).collect();
    let of_a: Vec<InstanceId> = had.into_iter().filter(|i| i.group == "a").collect();
    assert_eq!(again, of_a);
    assert!(granted.iter().all(|g| g.attempt == 2 && g.lablet == peer(3)), "{granted:?}");
}

#[test]
fn what_was_lost_and_given_up_has_one_reason_before_and_after_a_restart() {
    let mut bench = Bench::new();
    let mut lossy = lossy(rerun(1));
    lossy.timeout_ms = 90_000;
    let id = bench.started_with(lossy);
    let effects = without_two(&mut bench, id, 45, CellPhase::Running, 0);
    let given_up = |kind: &FactKind| matches!(kind, FactKind::Lost { lablet: None, .. });
    assert!(persisted(&effects).iter().any(given_up), "no lablet comes for another attempt");
    let before = bench.core.remembered();
    assert!(before.is_some());
    bench.restart();
    assert_eq!(bench.core.remembered(), before);
}

#[test]
fn a_lablet_that_is_back_was_away_though_nobody_noticed_the_end_of_its_session() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(0)));
    bench.wait(3_000);
    let effects = bench.hello(2, 22, 9, 2, vec![]);
    let said: Vec<&String> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Notify { execution, event: Event::Lablet { what, .. } } if *execution == id => Some(what),
            _ => None,
        })
        .collect();
    assert!(said.iter().any(|what| what.starts_with("back after ")), "{effects:?}");
}

#[test]
fn an_attempt_waits_longer_after_each_loss() {
    let mut bench = Bench::with(|config| config.lease_heartbeats = 1_000);
    let id = bench.started_with(lossy(rerun(3)));
    for (n, wait_ms) in [(3u8, 1_000u64), (4, 2_000), (5, 4_000)] {
        bench.hello(n, n, u64::from(n), 8, vec![]);
        let (lablet, counter) = if n == 3 { (2, 1) } else { (n - 1, u64::from(n) - 2) };
        let refused = ToOrchestrator::Refuse(cell(id, counter), "its disk is full".into());
        let effects = bench.say(lablet, refused);
        assert!(grants(&effects).is_empty(), "not at once");
        assert!(grants(&bench.wait(wait_ms - 1)).is_empty(), "attempt {} came early", n - 1);
        let granted = grants(&bench.wait(1));
        assert!(granted.iter().any(|g| g.attempt == u32::from(n) - 1), "{granted:?} after {wait_ms} ms");
    }
}

#[test]
fn the_bound_of_attempts_is_never_passed_and_the_last_loss_is_for_good() {
    let mut bench = Bench::new();
    let mut run = lossy(rerun(2));
    run.loss.max_lost = Some(4);
    let id = bench.started_with(run);
    for n in 3..9 {
        bench.hello(n, n, u64::from(n), 8, vec![]);
    }
    let mut most = 1;
    bench.say(2, ToOrchestrator::Refuse(cell(id, 1), "gone".into()));
    for _ in 0..20 {
        let effects = bench.wait(4_000);
        for grant in grants(&effects) {
            most = most.max(grant.attempt);
            let n = (1..9).find(|n| peer(*n) == grant.lablet).unwrap();
            bench.say(n, ToOrchestrator::Refuse(grant.cell, "gone".into()));
        }
        for n in [1u8, 3, 4, 5, 6, 7, 8] {
            let seq = bench.next_seq();
            bench.heartbeat(n, seq, 8, vec![]);
        }
    }
    assert_eq!(most, 3);
}

#[test]
fn a_lablet_that_handed_in_all_it_had_takes_over_from_a_lost_one() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    let (first, second) = (holds(&bench, id, 1), holds(&bench, id, 2));
    let effects = without_two(&mut bench, id, 10, CellPhase::Running, 0);
    assert!(grants(&effects).is_empty(), "the only lablet left still runs what it has");
    let ended: Vec<(&str, u32, i32)> = first.iter().map(|i| (i.group.as_str(), i.index, 0)).collect();
    ends(&mut bench, 1, &cell(id, 1), 1, &ended);
    let granted = grants(&without_two(&mut bench, id, 1, CellPhase::Ended, 2));
    assert_eq!(granted.len(), 1, "{granted:?}");
    assert_eq!((granted[0].attempt, &granted[0].lablet), (2, &peer(1)));
    let again: Vec<InstanceId> = granted[0].assignments.iter().flat_map(Assignment::instances).collect();
    assert!(again.iter().all(|i| second.contains(i) && i.group == "a"));

    // A restart knows both cells of the lablet, and the result counts the receipts of both.
    bench.restart();
    let now = granted[0].cell.clone();
    let status = CellStatus {
        cell: now.clone(),
        assignments: granted[0].assignments.clone(),
        phase: CellPhase::Running,
        running: 1,
        ended: 0,
        directory: 99,
        attempt: 2,
    };
    let effects = bench.hello(1, 1, 9, 2, vec![status]);
    let recalled: Vec<_> = effects.iter().filter(|e| matches!(e, Effect::Pull { .. })).collect();
    assert!(recalled.is_empty(), "what the log names was asked for at once");
    let kept: Vec<_> =
        ended.iter().map(|(group, index, code)| (*group, *index, Exit::Exited { code: *code })).collect();
    let shard = codec::cid_of(&(1u8, 1u32, &kept[..]));
    let receipts = first
        .iter()
        .map(|i| ReceiptSummary {
            instance: i.clone(),
            attempt: 1,
            epoch: cell(id, 1).epoch,
            exit: Exit::Exited { code: 0 },
        })
        .collect();
    bench.give(Input::Pulled { execution: id, lablet: peer(1), shard, receipts });
    let ended: Vec<(&str, u32, i32)> = again.iter().map(|i| (i.group.as_str(), i.index, 0)).collect();
    let effects = ends(&mut bench, 1, &now, 2, &ended);
    let order = order(&effects).expect("all are accounted for");
    assert_eq!(order.attempts, again.iter().map(|i| (i.clone(), 2)).collect());
    assert_eq!(order.shards.len(), 2);
    assert_eq!(order.accepted.len(), first.len() + again.len());
}

/// What lablet `n` held, stopped by its owner.
fn stopped(had: &[InstanceId]) -> Vec<(&str, u32, Exit)> {
    let exit = || Exit::Stopped { reason: "its owner wants the machine back".to_owned() };
    had.iter().map(|i| (i.group.as_str(), i.index, exit())).collect()
}

#[test]
fn what_an_owner_stopped_goes_again_elsewhere_where_its_group_allows_it() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    let had = holds(&bench, id, 2);
    bench.hello(3, 3, 3, 8, vec![]);
    let effects = ends_as(&mut bench, 2, &cell(id, 1), 1, &stopped(&had));
    let of_a: Vec<InstanceId> = had.iter().filter(|i| i.group == "a").cloned().collect();
    assert!(!of_a.is_empty() && of_a.len() < had.len(), "it held some of both groups: {had:?}");
    assert_eq!(lost(&effects), of_a, "at once, and with no lease to wait for; the other group is at most once");
    let granted = grants(&bench.wait(1_000));
    assert_eq!(granted.len(), 1, "{granted:?}");
    assert_eq!((granted[0].attempt, &granted[0].lablet), (2, &peer(3)));
    let again: Vec<InstanceId> = granted[0].assignments.iter().flat_map(Assignment::instances).collect();
    assert_eq!(again, of_a);
    // The second attempt is the last: it counts as it ended, and so does what ended well before.
    let order = all_end(&mut bench, id, &granted[0], &stopped(&of_a));
    assert_eq!(order.accepted.values().filter(|(_, attempt)| *attempt == 2).count(), of_a.len());
    assert_eq!((order.accepted.len(), order.missing.len()), (4, 0));
}

#[test]
fn the_receipt_of_what_an_owner_stopped_counts_where_no_lablet_comes_for_it() {
    let mut bench = Bench::with(|config| config.lease_heartbeats = 1_000);
    let id = bench.started_with(lossy(rerun(1)));
    let (first, had) = (holds(&bench, id, 1), holds(&bench, id, 2));
    ends_as(&mut bench, 2, &cell(id, 1), 1, &stopped(&had));
    let ended: Vec<(&str, u32, i32)> = first.iter().map(|i| (i.group.as_str(), i.index, 0)).collect();
    let effects = ends(&mut bench, 1, &cell(id, 1), 1, &ended);
    assert!(order(&effects).is_none(), "it waits for another attempt");
    let mut effects = Vec::new();
    for _ in 0..60 {
        // Both lablets are there and have no room.
        for n in [1, 2] {
            let seq = bench.next_seq();
            effects.extend(bench.heartbeat(n, seq, 0, vec![]));
        }
        effects.extend(bench.wait(1_000));
    }
    let order = order(&effects).expect("it is sealed with what there is");
    assert_eq!((order.accepted.len(), order.missing.len()), (4, 0), "{:?}", order.missing);
    assert!(order.attempts.is_empty(), "{:?}", order.attempts);
}

#[test]
fn what_an_owner_stopped_goes_again_after_a_restart_of_the_orchestrator() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    let had = holds(&bench, id, 2);
    let ended = stopped(&had);
    ends_as(&mut bench, 2, &cell(id, 1), 1, &ended);
    bench.restart();
    let shard = codec::cid_of(&(2u8, 1u32, &ended[..]));
    let receipts = ended.iter().map(|(group, index, exit)| ReceiptSummary {
        instance: InstanceId { group: (*group).to_owned(), index: *index },
        attempt: 1,
        epoch: cell(id, 1).epoch,
        exit: exit.clone(),
    });
    let receipts = receipts.collect();
    bench.give(Input::Pulled { execution: id, lablet: peer(2), shard, receipts });
    let effects = bench.hello(3, 3, 3, 8, vec![]);
    let granted: Vec<Grant> = [grants(&effects), grants(&bench.wait(1_000))].concat();
    assert!(granted.iter().any(|g| g.attempt == 2 && g.lablet == peer(3)), "{granted:?}");
}

#[test]
fn what_is_stopped_late_does_not_take_the_place_of_an_attempt_that_is_still_to_come() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    let had = holds(&bench, id, 2);
    let effects = without_two(&mut bench, id, 8, CellPhase::Running, 0);
    assert_eq!(lost(&effects), had, "its lease ran out, and nobody has room");
    bench.hello(2, 2, 9, 0, vec![]);
    ends_as(&mut bench, 2, &cell(id, 1), 1, &stopped(&had));
    let effects = bench.hello(3, 3, 3, 8, vec![]);
    let granted: Vec<Grant> = [grants(&effects), grants(&bench.wait(1_000))].concat();
    assert!(granted.iter().any(|g| g.attempt == 2 && g.lablet == peer(3)), "{granted:?}");
}

#[test]
fn what_is_stopped_because_the_run_ends_does_not_go_again() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(rerun(1)));
    bench.hello(3, 3, 3, 8, vec![]);
    bench.give(Input::Cancel { execution: id, by: peer(202) });
    let mut effects = Vec::new();
    for n in [1, 2] {
        let had = holds(&bench, id, n);
        effects.extend(ends_as(&mut bench, n, &cell(id, 1), 1, &stopped(&had)));
    }
    assert_eq!(lost(&effects), vec![]);
    assert_eq!(order(&effects).expect("all are accounted for").accepted.len(), 4);
}

/// Ends what lablet 1 has well and what was granted anew in some way, and returns what is sealed.
fn all_end(bench: &mut Bench, id: ExecutionId, again: &Grant, ended: &[(&str, u32, Exit)]) -> AssemblyOrder {
    let first = holds(bench, id, 1);
    let well: Vec<(&str, u32, i32)> = first.iter().map(|i| (i.group.as_str(), i.index, 0)).collect();
    let mut effects = ends(bench, 1, &cell(id, 1), 1, &well);
    bench.say(3, ToOrchestrator::Accept(again.cell.clone()));
    bench.say(3, ToOrchestrator::Prepared(again.cell.clone()));
    effects.extend(ends_as(bench, 3, &again.cell, again.attempt, ended));
    order(&effects).expect("all are accounted for")
}

#[test]
fn a_group_that_fails_fast_ends_the_run_at_its_first_failure() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(GroupLoss { fail_fast: true, ..GroupLoss::default() }));
    let first = holds(&bench, id, 1);
    let of_a = first.iter().find(|i| i.group == "a").unwrap();
    let effects = ends(&mut bench, 1, &cell(id, 1), 1, &[("a", of_a.index, 3)]);
    let facts = persisted(&effects);
    let reason = format!("{of_a} failed: exit 3");
    assert!(facts.contains(&FactKind::EndedEarly { reason: reason.clone() }), "{facts:?}");
    let told =
        effects.iter().filter(|e| matches!(e, Effect::Send { message: iptl_wire::session::ToLablet::Stop(..), .. }));
    assert!(told.count() >= 1, "the others are stopped");
    let effects = bench.wait(6_000);
    assert_eq!(order(&effects).expect("it is sealed").ended_early, Some(reason));
}

#[test]
fn a_failure_of_a_group_that_does_not_fail_fast_ends_nothing() {
    let mut bench = Bench::new();
    let id = bench.started_with(lossy(GroupLoss::default()));
    let first = holds(&bench, id, 1);
    let of_a = first.iter().find(|i| i.group == "a").unwrap();
    let effects = ends(&mut bench, 1, &cell(id, 1), 1, &[("a", of_a.index, 3)]);
    assert!(!persisted(&effects).iter().any(|kind| matches!(kind, FactKind::EndedEarly { .. })));
}

#[test]
fn more_losses_than_a_group_that_fails_fast_bears_end_the_run() {
    for (most, early) in [(0, true), (3, false)] {
        let mut bench = Bench::new();
        let loss = GroupLoss { fail_fast: true, max_lost: Some(MaxLost::Count(most)), ..GroupLoss::default() };
        let id = bench.started_with(lossy(loss));
        let effects = without_two(&mut bench, id, 8, CellPhase::Running, 0);
        let ended = persisted(&effects).iter().any(|kind| matches!(kind, FactKind::EndedEarly { .. }));
        assert_eq!(ended, early, "{most} may be lost");
    }
}

#[test]
fn a_run_that_is_not_started_in_time_ends_and_says_what_it_waited_for() {
    let mut bench = Bench::new();
    bench.hello(1, 1, 1, 2, vec![]);
    let (_, _) = bench.submit_by(202, 1, run(&[("a", 2)]));
    let mut late = run(&[("a", 2)]);
    late.placing.within_ms = Some(5_000);
    let (id, _) = bench.submit_by(202, 2, late);
    let mut effects = Vec::new();
    for _ in 0..5 {
        let seq = bench.next_seq();
        bench.heartbeat(1, seq, 2, vec![]);
        effects.extend(bench.wait(1_000));
    }
    let failed = failure(&effects).expect("it is given up");
    assert_eq!(failed.code, "lab.not-started");
    assert!(failed.message.contains("within 5s") && failed.message.contains("waits for"), "{}", failed.message);
    let order = order(&effects).expect("its result says so");
    assert_eq!(order.cannot_start.map(|why| why.reason), Some(failed.message));
    bench.give(Input::Assembled { execution: id, result: result() });
    assert!(bench.core.result(&id).is_some());
}
