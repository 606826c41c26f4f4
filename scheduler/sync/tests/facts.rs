use std::collections::BTreeSet;

use iptl_sync::{
    MAX_CALLS_PER_INSTANCE, MAX_KEPT_SIZE, MAX_NAMES_PER_INSTANCE, MAX_PAYLOAD_SIZE, MAX_TOLD_BARRIERS, Reply, RunSync,
    SyncError, SyncOp, UpError,
};
use iptl_wire::frame;
use iptl_wire::session::{BarrierAsk, MAX_MESSAGE_SIZE, Publication, Restore, SignalNumbers, SyncUp};

use crate::world::{World, barrier, instance, peer, publish, signal, signal_and_wait, signalled, subscribe};

#[test]
fn signals_are_numbered_over_all_cells() {
    let mut world = World::new(&[2, 3]);
    for (cell, index) in [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2)] {
        world.call(cell, index, 1, signal("ready"));
    }
    world.settle();
    let numbers: BTreeSet<u64> = world
        .replies
        .iter()
        .map(|(_, _, reply)| match reply {
            Reply::Signalled { seq } => *seq,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, (1..=5).collect());
    assert_eq!(world.replies.len(), 5);
}

#[test]
fn a_barrier_opens_at_its_target_and_at_once_where_that_is_reached() {
    let mut world = World::new(&[1, 1]);
    world.call(0, 0, 1, barrier("ready", 2));
    world.call(0, 0, 2, barrier("ready", 0));
    world.call(0, 0, 3, signal("ready"));
    world.settle();
    assert_eq!(world.answers(0, 0, 1), []);
    assert_eq!(world.answers(0, 0, 2), [Reply::Opened { seq: 0 }]);
    world.call(1, 0, 1, signal("ready"));
    world.settle();
    assert_eq!(world.answers(0, 0, 1), [Reply::Opened { seq: 0 }]);
    // Known here and there, also to a cell that never asked.
    world.call(0, 0, 4, barrier("ready", 1));
    world.call(1, 0, 2, barrier("ready", 2));
    world.call(1, 0, 3, barrier("ready", 3));
    world.settle();
    assert_eq!(world.answers(0, 0, 4), [Reply::Opened { seq: 0 }]);
    assert_eq!(world.answers(1, 0, 2), [Reply::Opened { seq: 0 }]);
    assert_eq!(world.answers(1, 0, 3), []);
}

#[test]
fn ten_thousand_instances_at_one_barrier_cost_a_few_messages_for_each_cell() {
    let mut world = World::new(&[4000, 3000, 3000]);
    for cell in 0..3 {
        for index in 0..world.cells[cell].instances {
            world.call(cell, index, 1, signal("all"));
            world.call(cell, index, 2, barrier("all", 10_000));
            // A driver that asks after each call.
            world.say_up(cell);
        }
    }
    world.settle();
    assert_eq!(world.replies.len(), 20_000);
    assert!(world.ups <= 3 * 6, "{} messages up", world.ups);
    assert!(world.downs <= 3 * 6, "{} messages down", world.downs);
}

#[test]
fn every_subscriber_gets_every_message_in_one_order() {
    let mut world = World::new(&[2, 1, 1]);
    world.call(0, 0, 1, subscribe("news"));
    for n in 0..10u8 {
        world.call(0, 1, u64::from(n), publish("news", [n]));
        world.call(1, 0, u64::from(n), publish("news", [100 + n]));
        if n == 5 {
            world.settle();
        }
    }
    world.settle();
    world.call(0, 1, 50, subscribe("news"));
    world.call(2, 0, 1, subscribe("news"));
    world.settle();
    let first = world.answers(0, 0, 1);
    assert_eq!(first.len(), 20);
    for (n, reply) in (1..).zip(&first) {
        assert!(matches!(reply, Reply::Message { position, .. } if *position == n));
    }
    assert_eq!(world.answers(0, 1, 50), first);
    assert_eq!(world.answers(2, 0, 1), first);
    let Some(Reply::Published { position }) = world.answers(1, 0, 3).pop() else { panic!("no answer") };
    assert!(first.contains(&Reply::Message { position, payload: vec![103].into() }));
}

#[test]
fn large_topics_travel_in_bounded_messages() {
    let mut world = World::new(&[8, 1]);
    world.call(1, 0, 1, subscribe("bulk"));
    for index in 0..8 {
        for call in 0..8 {
            world.call(0, index, call, publish("bulk", vec![index as u8; MAX_PAYLOAD_SIZE - 1]));
        }
    }
    // The size of each message is checked where it is sent.
    world.settle();
    assert_eq!(world.answers(1, 0, 1).len(), 64);
    assert!(world.downs >= 64);
}

#[test]
fn calls_beyond_the_limits_fail_and_others_do_not_notice() {
    let mut world = World::new(&[3]);
    let long = "x".repeat(257);
    for (call, op, error) in [
        (1, signal(""), SyncError::BadName { size: 0 }),
        (2, barrier(&long, 1), SyncError::BadName { size: 257 }),
        (3, subscribe(&long), SyncError::BadName { size: 257 }),
        (4, publish("t", vec![0; MAX_PAYLOAD_SIZE + 1]), SyncError::PayloadTooLong { size: MAX_PAYLOAD_SIZE + 1 }),
    ] {
        world.call(0, 0, call, op);
        world.take_replies(0);
        assert_eq!(world.answers(0, 0, call), [Reply::Failed(error)]);
    }
    for n in 0..9 {
        world.call(0, 0, 10 + n, publish("t", vec![0; MAX_PAYLOAD_SIZE]));
    }
    for n in 0..=MAX_NAMES_PER_INSTANCE as u64 {
        world.call(0, 1, n, signal(&format!("s{n}")));
    }
    for n in 0..=MAX_CALLS_PER_INSTANCE as u64 {
        world.call(0, 2, n, barrier("s0", 5));
    }
    world.take_replies(0);
    assert_eq!(world.answers(0, 0, 18), [Reply::Failed(SyncError::TooFast)]);
    let limit = MAX_NAMES_PER_INSTANCE;
    let last = limit as u64;
    assert_eq!(world.answers(0, 1, last), [Reply::Failed(SyncError::TooManyNames { limit })]);
    assert_eq!(world.answers(0, 2, MAX_CALLS_PER_INSTANCE as u64), [Reply::Failed(SyncError::TooManyCalls)]);
    world.settle();
    assert_eq!(world.answers(0, 0, 10), [Reply::Published { position: 1 }]);
    assert_eq!(world.answers(0, 1, 0), [Reply::Signalled { seq: 1 }]);
}

#[test]
fn an_instance_that_ends_gets_no_answers_and_its_successor_none_of_its_own() {
    let mut world = World::new(&[2]);
    world.call(0, 0, 1, signal("s"));
    world.call(0, 0, 2, barrier("s", 2));
    world.call(0, 0, 3, subscribe("t"));
    world.call(0, 1, 1, publish("t", "x"));
    world.cells[0].sync.end_instance(&instance(0, 0));
    world.cells[0].sync.add_instance(instance(0, 0));
    world.call(0, 0, 1, barrier("s", 3));
    world.call(0, 1, 2, signal("s"));
    world.settle();
    assert_eq!(world.replies.len(), 2, "{:?}", world.replies);
    assert_eq!(world.answers(0, 1, 2), [Reply::Signalled { seq: 2 }]);
    world.call(0, 0, 2, signal("s"));
    world.settle();
    assert_eq!(world.answers(0, 0, 1), [Reply::Opened { seq: 0 }]);
}

#[test]
fn a_cancelled_call_gets_no_answer() {
    let mut world = World::new(&[1]);
    world.call(0, 0, 1, barrier("s", 1));
    world.call(0, 0, 2, subscribe("t"));
    world.call(0, 0, 1, SyncOp::Cancel);
    world.call(0, 0, 2, SyncOp::Cancel);
    world.call(0, 0, 3, signal("s"));
    world.call(0, 0, 4, publish("t", "x"));
    world.settle();
    assert_eq!(world.replies.len(), 2, "{:?}", world.replies);
}

#[test]
fn a_closed_barrier_names_who_is_missing() {
    let mut world = World::new(&[3, 30, 2]);
    for index in 0..2 {
        world.call(0, index, 1, signal("ready"));
    }
    world.call(1, 7, 1, signal("ready"));
    world.call(0, 0, 2, barrier("ready", 35));
    world.settle();
    world.run.lose_cell(&peer(2), &[], &[instance(2, 0), instance(2, 1)]);
    world.run.inquire();
    world.settle();
    let [state] = &world.run.waiting()[..] else { panic!("one barrier is waited for") };
    assert_eq!((state.state.as_str(), state.count, state.target), ("ready", 3, 35));
    let mut rows: Vec<_> = state.missing.iter().map(|m| (m.lablet.clone(), m.lost, m.absent.count)).collect();
    let mut expected = vec![(peer(0), false, 1), (peer(1), false, 29), (peer(2), true, 2)];
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
    let of = |n| state.missing.iter().find(|m| m.lablet == peer(n)).unwrap();
    assert_eq!(of(0).absent.instances, [instance(0, 2)]);
    assert_eq!(of(1).absent.instances.len(), 20);
    assert!(!of(1).absent.instances.contains(&instance(1, 7)));
}

#[test]
fn signals_of_a_lost_cell_count_unless_it_is_replaced() {
    for (replaced, opens) in [(false, true), (true, false)] {
        let mut world = World::new(&[1, 1, 1]);
        world.call(0, 0, 1, signal("s"));
        world.call(1, 0, 1, signal("s"));
        world.call(1, 0, 2, barrier("s", 3));
        world.call(1, 0, 3, barrier("s", 2));
        world.settle();
        assert_eq!(world.answers(1, 0, 3), [Reply::Opened { seq: 0 }]);
        if replaced {
            world.run.lose_cell(&peer(0), &[instance(0, 0)], &[]);
        } else {
            world.run.lose_cell(&peer(0), &[], &[instance(0, 0)]);
        }
        world.disconnect(0);
        world.call(2, 0, 1, signal("s"));
        // What was open stays open.
        world.call(2, 0, 2, barrier("s", 2));
        world.settle();
        assert_eq!(world.answers(1, 0, 2), if opens { vec![Reply::Opened { seq: 0 }] } else { vec![] });
        assert_eq!(world.answers(2, 0, 1), [Reply::Signalled { seq: 3 }]);
        assert_eq!(world.answers(2, 0, 2), [Reply::Opened { seq: 0 }]);
    }
}

#[test]
fn what_a_cell_may_not_say_is_refused() {
    let mut run = RunSync::new([(peer(0), 1)]);
    let mut number = 0;
    let mut say = |mut up: SyncUp| {
        number += 1;
        (up.session, up.number) = (1, number);
        run.handle(&peer(0), up)
    };
    let publication =
        |seq, topic: &str, size| Publication { seq, topic: topic.into(), position: 0, payload: vec![0; size].into() };
    let up = |published| SyncUp { published, ..SyncUp::default() };
    assert_eq!(say(up(vec![publication(2, "t", 1)])), Err(UpError::Gap { seq: 2, expected: 1 }));
    assert!(matches!(say(up(vec![publication(1, "t", MAX_PAYLOAD_SIZE + 1)])), Err(UpError::TooMuch { .. })));
    assert!(matches!(say(up(vec![publication(1, &"t".repeat(257), 1)])), Err(UpError::TooMuch { .. })));
    let signals = |start, count, times| SyncUp { signals: signalled("s", start, count, times), ..SyncUp::default() };
    for (start, count, times) in [(0, 1, u64::MAX), (0, 2, 1), (u32::MAX, u32::MAX, 1)] {
        assert!(matches!(say(signals(start, count, times)), Err(UpError::TooMuch { .. })));
    }
    assert_eq!(say(signals(0, 1, 5)), Ok(()));
    assert_eq!(say(signals(0, 1, 3)), Ok(()));
    assert!(matches!(say(signals(1, 1, 1)), Err(UpError::TooMuch { .. })), "the one that it has is another");
    assert_eq!(run.handle(&peer(9), SyncUp::default()), Err(UpError::UnknownCell { lablet: peer(9) }));
}

#[test]
fn a_program_that_waits_at_thousands_of_barriers_breaks_no_session() {
    let mut run = RunSync::new([(peer(0), 8), (peer(1), 8)]);
    for cell in 0..2 {
        for number in 1..=8 {
            // Names as long as they may be, in as many messages as a cell would take for them.
            let barriers = (0..1024).map(|i| BarrierAsk { state: format!("{cell}-{number}-{i:0>250}"), target: 99 });
            let up = SyncUp { session: 1, number, barriers: barriers.collect(), ..SyncUp::default() };
            run.handle(&peer(cell), up).unwrap();
        }
    }
    while run.poll_down().is_some() {}
    run.inquire();
    while let Some((_, down)) = run.poll_down() {
        assert!(frame::encode(&down).len() < MAX_MESSAGE_SIZE);
    }
    assert_eq!(run.waiting().len(), MAX_TOLD_BARRIERS);
}

#[test]
fn what_is_published_while_a_lab_recovers_is_bounded() {
    let mut run = RunSync::recovering([(peer(0), 1), (peer(1), 1)]);
    let payload: bytes::Bytes = vec![0; MAX_PAYLOAD_SIZE].into();
    let fits = (MAX_KEPT_SIZE / MAX_PAYLOAD_SIZE) as u64;
    for seq in 1..=fits + 10 {
        let published = vec![Publication { seq, topic: "t".into(), position: 0, payload: payload.clone() }];
        let restore = Some(Restore::default());
        run.handle(&peer(0), SyncUp { session: 1, number: seq, published, restore, ..SyncUp::default() }).unwrap();
    }
    let mut refused = 0;
    while let Some((_, down)) = run.poll_down() {
        refused += down.positions.iter().filter(|(_, position)| *position == 0).count();
    }
    assert!(refused >= 10, "{refused} were refused");
}

#[test]
fn numbers_that_died_with_the_orchestrator_before_anybody_was_told_are_given_out_after_it() {
    let mut run = RunSync::recovering([(peer(0), 2), (peer(1), 3)]);
    // The first cell was told 3 and 4; who had 1 and 2, and who would have had 5, was not told.
    let told = SignalNumbers { state: "ready".into(), from: 1, count: 2, number: 3 };
    for (n, numbers, given) in [(0, vec![told], 2), (1, vec![], 3)] {
        let restore = Some(Restore { numbers, last: true });
        let signals = signalled("ready", 0, given, 1);
        run.handle(&peer(n), SyncUp { session: 1, number: 1, restore, signals, ..SyncUp::default() }).unwrap();
    }
    let mut given = Vec::new();
    while let Some((lablet, down)) = run.poll_down() {
        given.extend(down.numbers.into_iter().map(|n| (lablet.clone(), n.from, n.count, n.number)));
    }
    assert_eq!(given, [(peer(1), 1, 2, 1), (peer(1), 3, 1, 5)]);
}

#[test]
fn a_cell_that_turns_up_after_a_takeover_frees_no_number_that_was_given_meanwhile() {
    let up = |number, given, restore| {
        let signals = signalled("ready", 0, given, 1);
        SyncUp { session: 1, number, restore, signals, ..SyncUp::default() }
    };
    let mut run = RunSync::recovering([(peer(0), 2)]);
    run.handle(&peer(0), up(1, 2, Some(Restore { numbers: Vec::new(), last: true }))).unwrap();
    // The one before had granted another cell, and told it of its number.
    run.recover_cell(peer(1), 2);
    let told = SignalNumbers { state: "ready".into(), from: 1, count: 1, number: 3 };
    run.handle(&peer(1), up(1, 2, Some(Restore { numbers: vec![told], last: true }))).unwrap();
    let mut given = Vec::new();
    while let Some((lablet, down)) = run.poll_down() {
        given.extend(down.numbers.into_iter().map(|n| (lablet.clone(), n.from, n.count, n.number)));
    }
    assert_eq!(given, [(peer(0), 1, 2, 1), (peer(1), 2, 1, 4)]);
}

#[test]
fn a_cell_that_is_forgotten_holds_recovery_up_until_it_is_given_up() {
    let mut world = World::new(&[1, 1]);
    for cell in [0, 1] {
        world.call(cell, 0, 1, signal("ready"));
    }
    world.settle();
    // The lablet of the second cell died after its instance had ended: nobody speaks for the cell any more.
    world.restart();
    world.connect(0);
    world.call(0, 0, 2, signal("ready"));
    world.settle();
    assert!(world.run.is_recovering());
    assert_eq!(world.answers(0, 0, 2), []);

    world.run.end_recovery();
    world.settle();
    let [Reply::Signalled { seq }] = world.answers(0, 0, 2)[..] else { panic!("no number") };
    assert!(seq >= 2, "number {seq} was given before");
}

#[test]
fn call_that_signals_and_waits_is_answered_once_with_its_number() {
    let mut world = World::new(&[2, 1]);
    world.call(0, 0, 1, signal_and_wait("a", 3));
    world.call(1, 0, 1, signal_and_wait("a", 3));
    world.settle();
    assert_eq!(world.answers(0, 0, 1), []);
    world.call(0, 1, 1, signal_and_wait("a", 3));
    world.settle();
    let mut numbers = Vec::new();
    for (cell, index) in [(0, 0), (0, 1), (1, 0)] {
        match &world.answers(cell, index, 1)[..] {
            [Reply::Opened { seq }] => numbers.push(*seq),
            other => panic!("{other:?}"),
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
    // One more finds the barrier open, and still learns its number.
    world.call(0, 0, 2, signal_and_wait("a", 3));
    world.settle();
    assert_eq!(world.answers(0, 0, 2), [Reply::Opened { seq: 4 }]);
}

#[test]
fn meeting_that_is_given_up_keeps_its_signal() {
    let mut world = World::new(&[2]);
    world.call(0, 0, 1, signal_and_wait("a", 2));
    world.call(0, 0, 1, SyncOp::Cancel);
    world.call(0, 1, 1, signal_and_wait("a", 2));
    world.settle();
    assert_eq!(world.answers(0, 0, 1), []);
    assert_eq!(world.answers(0, 1, 1), [Reply::Opened { seq: 2 }]);
}
