//! Barriers where instances are lost.

use iptl_dag::model::BarrierLoss;
use iptl_sync::{Reply, SyncError};
use iptl_wire::session::{BarrierAsk, SyncUp};

use crate::world::{World, barrier, instance, peer, signal, signal_and_wait, signalled};

/// Three cells of two instances; cells 0 and 1 wait for all six, and cell 2 is lost before its second has signalled.
fn parted(barriers: BarrierLoss) -> World {
    let mut world = World::new(&[2, 2, 2]);
    world.run.on_loss(barriers);
    for (cell, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        world.call(cell, index, 1, signal_and_wait("all", 6));
    }
    world.call(2, 0, 1, signal("all"));
    world.settle();
    world
}

fn error(world: &World, cell: usize, index: u32, call: u64) -> Option<SyncError> {
    match world.answers(cell, index, call).as_slice() {
        [Reply::Failed(error)] => Some(error.clone()),
        [] => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_barrier_that_lost_instances_do_not_reach_fails_for_all_who_wait_and_names_them() {
    let mut world = parted(BarrierLoss::Fail);
    world.run.call_lablet(&peer(2), "attic (2)".to_owned());
    // The first of the cell had finished, and its signal counts.
    world.run.lose_cell(&peer(2), &[], &[instance(2, 1)]);
    world.settle();
    for (cell, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let error = error(&world, cell, index, 1).expect("it fails");
        let SyncError::Unreachable { target: 6, reachable: 5, .. } = &error else { panic!("{error}") };
        assert_eq!(
            error.to_string(),
            "barrier \"all\" cannot reach 6, of which 5 are possible: g2/1 lost with attic (2)"
        );
    }
    // Whoever comes later hears it at once; what can be reached opens.
    world.call(0, 0, 2, barrier("all", 6));
    world.call(0, 0, 3, barrier("all", 5));
    world.settle();
    assert!(error(&world, 0, 0, 2).is_some());
    assert_eq!(world.answers(0, 0, 3), [Reply::Opened { seq: 0 }]);
}

#[test]
fn a_released_barrier_opens_and_signals_of_the_living_count_further() {
    let mut world = parted(BarrierLoss::Release);
    world.run.lose_cell(&peer(2), &[], &[instance(2, 0), instance(2, 1)]);
    world.settle();
    for (cell, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!(matches!(world.answers(cell, index, 1)[..], [Reply::Opened { .. }]));
    }
    world.call(0, 0, 2, signal_and_wait("then", 6));
    world.settle();
    assert_eq!(world.answers(0, 0, 2), [], "four are alive and one of them has signalled");
    for (cell, index) in [(0, 1), (1, 0), (1, 1)] {
        world.call(cell, index, 2, signal("then"));
    }
    world.settle();
    assert!(matches!(world.answers(0, 0, 2)[..], [Reply::Opened { .. }]));
}

#[test]
fn where_the_plan_waits_nothing_happens() {
    let mut world = parted(BarrierLoss::Wait);
    world.run.lose_cell(&peer(2), &[], &[instance(2, 1)]);
    world.settle();
    assert_eq!(world.answers(0, 0, 1), []);
    let [state] = &world.run.waiting()[..] else { panic!("one barrier is waited for") };
    assert!(state.missing.iter().all(|m| m.name == m.lablet.short()), "nobody said what they are called");
    assert!(state.missing.iter().any(|m| m.lost && m.lablet == peer(2) && m.absent.instances == [instance(2, 1)]));
}

#[test]
fn instances_that_begin_anew_are_waited_for_and_missed_once_nobody_takes_them() {
    for taken in [true, false] {
        let mut world = parted(BarrierLoss::Fail);
        let again = [instance(2, 0), instance(2, 1)];
        world.run.lose_cell(&peer(2), &again, &[]);
        world.settle();
        assert_eq!(world.answers(0, 0, 1), [], "they will signal again");
        if taken {
            world.restart_cell(2);
            world.run.add_cell_again(peer(2), &again);
            world.connect(2);
            for index in 0..2 {
                world.call(2, index, 1, signal("all"));
            }
            world.settle();
            assert!(matches!(world.answers(0, 0, 1)[..], [Reply::Opened { .. }]));
        } else {
            world.run.give_up();
            world.settle();
            assert!(error(&world, 0, 0, 1).is_some());
        }
    }
}

#[test]
fn a_lablet_that_gets_another_cell_counts_from_the_beginning_and_keeps_what_it_gave() {
    let mut world = World::new(&[1, 1]);
    world.run.on_loss(BarrierLoss::Fail);
    world.call(0, 0, 1, signal("done"));
    world.settle();
    // Cell 1 is lost, and cell 0, which has finished, takes its instance.
    world.run.lose_cell(&peer(1), &[instance(1, 0)], &[]);
    world.restart_cell(0);
    world.run.add_cell_again(peer(0), &[instance(1, 0)]);
    world.connect(0);
    world.call(0, 0, 1, signal_and_wait("done", 2));
    world.settle();
    assert!(world.answers(0, 0, 1).contains(&Reply::Opened { seq: 2 }), "{:?}", world.answers(0, 0, 1));
}

#[test]
fn after_a_restart_of_the_orchestrator_lost_instances_are_still_missed() {
    let mut world = parted(BarrierLoss::Fail);
    world.restart_without(2);
    world.run.on_loss(BarrierLoss::Fail);
    world.run.lost_before(&peer(2), &[], &[instance(2, 0), instance(2, 1)]);
    for cell in 0..2 {
        world.connect(cell);
    }
    world.settle();
    assert!(error(&world, 1, 1, 1).is_some());
}

/// A cell of four that waits for all eight, and one of four: the last of them has not signalled.
fn all_but_one() -> World {
    let mut world = World::new(&[4, 4]);
    world.run.on_loss(BarrierLoss::Fail);
    for (cell, index) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)] {
        world.call(cell, index, 1, signal_and_wait("all", 8));
    }
    world.settle();
    world
}

#[test]
fn who_ended_without_a_signal_is_not_stood_for_by_one_who_begins_anew() {
    let mut world = all_but_one();
    let again = [instance(1, 0), instance(1, 1)];
    // The third had signalled when it was stopped, the last had not; neither begins anew.
    world.run.lose_cell(&peer(1), &again, &[]);
    world.settle();
    assert_eq!(world.run.waiting()[0].count, 5, "nobody was asked who is missing");
}

#[test]
fn who_is_lost_for_good_without_a_signal_is_not_stood_for_by_one_who_begins_anew() {
    let mut world = all_but_one();
    let again = [instance(1, 0), instance(1, 1)];
    world.run.lose_cell(&peer(1), &again, &[instance(1, 2), instance(1, 3)]);
    world.settle();
    let state = &world.run.waiting()[0];
    assert_eq!(state.count, 5);
    let lost = state.missing.iter().find(|missing| missing.lost).expect("one is lost and missing");
    assert_eq!(lost.absent.count, 1);
}

#[test]
fn of_a_cell_that_lacks_many_only_what_comes_again_is_taken_back() {
    let mut world = World::new(&[1, 80]);
    world.run.on_loss(BarrierLoss::Wait);
    world.call(0, 0, 1, signal_and_wait("all", 81));
    // Every second one signalled, some of them twice.
    for index in (0..80).step_by(2) {
        for call in 1..=if index % 20 == 0 { 2 } else { 1 } {
            world.call(1, index, call, signal("all"));
        }
    }
    world.settle();
    assert_eq!(world.run.waiting()[0].count, 1 + 40 + 4);
    let again: Vec<_> = (10..40).map(|index| instance(1, index)).collect();
    let for_good: Vec<_> = (40..60).map(|index| instance(1, index)).collect();
    world.run.lose_cell(&peer(1), &again, &for_good);
    world.settle();
    let state = &world.run.waiting()[0];
    assert_eq!(state.count, 1 + 40 + 4 - 15 - 1);
    let lost = state.missing.iter().find(|missing| missing.lost).expect("some are lost and missing");
    assert_eq!(lost.absent.count, 10);
    let odd: Vec<_> = (41..60).step_by(2).map(|index| instance(1, index)).collect();
    assert_eq!(lost.absent.instances, odd);
}

#[test]
fn what_an_instance_gave_before_it_was_started_again_in_its_cell_is_taken_back_with_the_rest() {
    let mut world = World::new(&[1, 2]);
    world.run.on_loss(BarrierLoss::Wait);
    world.call(0, 0, 1, signal_and_wait("all", 9));
    world.call(1, 0, 1, signal("all"));
    world.call(1, 1, 1, signal("all"));
    world.settle();
    world.cells[1].sync.add_instance(instance(1, 0));
    world.call(1, 0, 1, signal("all"));
    world.settle();
    assert_eq!(world.run.waiting()[0].count, 4);
    world.run.lose_cell(&peer(1), &[instance(1, 0)], &[instance(1, 1)]);
    world.settle();
    assert_eq!(world.run.waiting()[0].count, 2);
}

#[test]
fn who_signalled_is_said_again_to_an_orchestrator_that_has_lost_it() {
    let mut world = World::new(&[1, 40]);
    world.call(0, 0, 1, signal_and_wait("all", 41));
    for index in 0..15 {
        world.call(1, index, 1, signal("all"));
    }
    world.settle();
    world.restart();
    for cell in 0..2 {
        world.connect(cell);
    }
    world.settle();
    assert_eq!(world.run.waiting()[0].count, 16);
    let again: Vec<_> = (10..40).map(|index| instance(1, index)).collect();
    world.run.lose_cell(&peer(1), &again, &[]);
    assert_eq!(world.run.waiting()[0].count, 11);
}

#[test]
fn what_a_cell_says_after_another_has_followed_it_is_nothing_of_that_one() {
    let mut world = World::new(&[3, 1]);
    world.run.on_loss(BarrierLoss::Wait);
    for index in 0..3 {
        world.call(0, index, 1, signal("all"));
    }
    world.settle();
    // The first cell has ended, and its lablet takes what another lost.
    world.run.lose_cell(&peer(1), &[instance(1, 0)], &[]);
    world.run.add_cell_again(peer(0), &[instance(1, 0)]);
    world.run.of_attempt(&peer(0), 2);
    world.connect(0);
    world.settle();
    let again = SyncUp { session: 9, number: 1, signals: signalled("all", 0, 1, 1), ..SyncUp::default() };
    let of_second = SyncUp { attempts_before: 1, session: 1, ..again.clone() };
    let barriers = vec![BarrierAsk { state: "all".to_owned(), target: 9 }];
    for (up, count) in [(again, 3), (SyncUp { barriers, ..of_second }, 4)] {
        world.run.handle(&peer(0), up).unwrap();
        let waiting = world.run.waiting();
        assert!(count == 3 && waiting.is_empty() || waiting[0].count == count, "{waiting:?}");
    }
}
