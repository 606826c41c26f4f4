//! Runs in which nobody is left who could signal.

use std::collections::BTreeMap;

use iptl_dag::model::BarrierLoss;
use iptl_sync::{Reply, SyncError};

use crate::schedules::Rng;
use crate::world::{World, barrier, instance, peer, signal, signal_and_wait};

fn world(sizes: &[u32], barriers: BarrierLoss) -> World {
    let mut world = World::new(sizes);
    world.run.on_loss(barriers);
    world
}

fn look(world: &mut World, times: usize) {
    for _ in 0..times {
        world.run.inquire();
        world.settle();
    }
}

fn error(world: &World, cell: usize, index: u32, call: u64) -> String {
    match &world.answers(cell, index, call)[..] {
        [Reply::Failed(error @ SyncError::Unreachable { .. })] => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_waits_for_an_instance_that_ended_hears_what_the_plan_says() {
    for barriers in [BarrierLoss::Fail, BarrierLoss::Release, BarrierLoss::Wait] {
        let mut world = world(&[2, 2], barriers);
        for (cell, index) in [(0, 0), (0, 1), (1, 0)] {
            world.call(cell, index, 1, signal_and_wait("all", 4));
        }
        world.settle();
        world.cells[1].sync.end_instance(&instance(1, 1));
        look(&mut world, 4);
        for (cell, index) in [(0, 0), (0, 1), (1, 0)] {
            match barriers {
                BarrierLoss::Fail => assert_eq!(
                    error(&world, cell, index, 1),
                    "barrier \"all\" cannot reach 4, of which 3 are possible: g1/1 ended without it"
                ),
                BarrierLoss::Release => assert!(matches!(world.answers(cell, index, 1)[..], [Reply::Opened { .. }])),
                BarrierLoss::Wait => assert_eq!(world.answers(cell, index, 1), []),
            }
        }
        let failed = world.run.poll_failed().map(|failed| (failed.state, failed.target, failed.reachable));
        assert_eq!(failed, (barriers == BarrierLoss::Fail).then(|| ("all".to_owned(), 4, 3)));
    }
}

#[test]
fn nothing_is_out_of_reach_while_one_is_at_work_who_may_signal_twice() {
    let mut world = world(&[1, 1, 1], BarrierLoss::Fail);
    world.call(0, 0, 1, signal_and_wait("all", 3));
    world.call(1, 0, 1, signal("all"));
    world.cells[2].sync.end_instance(&instance(2, 0));
    look(&mut world, 100);
    assert_eq!(world.answers(0, 0, 1), []);
    // One that is lost is no other than one that ended.
    world.run.lose_cell(&peer(2), &[], &[instance(2, 0)]);
    look(&mut world, 100);
    assert_eq!(world.answers(0, 0, 1), []);
    world.call(1, 0, 2, signal("all"));
    world.settle();
    assert!(matches!(world.answers(0, 0, 1)[..], [Reply::Opened { .. }]));
    // Once it has ended, too, nobody is left.
    world.call(0, 0, 2, barrier("all", 4));
    world.cells[1].sync.end_instance(&instance(1, 0));
    look(&mut world, 20);
    assert!(error(&world, 0, 0, 2).contains("g2/0 lost with"));
}

#[test]
fn a_barrier_that_somebody_might_open_beside_his_waiting_fails_after_a_while() {
    let mut world = world(&[2, 1], BarrierLoss::Fail);
    world.call(0, 0, 1, barrier("go", 1));
    world.call(0, 1, 1, barrier("go", 1));
    world.settle();
    world.cells[1].sync.end_instance(&instance(1, 0));
    look(&mut world, 10);
    assert_eq!(world.answers(0, 0, 1), []);
    // It works beside its waiting, and is believed to go on.
    world.call(0, 0, 2, signal("other"));
    look(&mut world, 10);
    assert_eq!(world.answers(0, 0, 1), []);
    look(&mut world, 10);
    for index in 0..2 {
        assert_eq!(
            error(&world, 0, index, 1),
            "barrier \"go\" cannot reach 1, of which 0 are possible: g1/0 ended without it"
        );
    }
}

#[test]
fn where_all_wait_and_nobody_is_gone_the_plan_has_its_time() {
    let mut world = world(&[2, 2], BarrierLoss::Fail);
    for (cell, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        world.call(cell, index, 1, signal_and_wait("all", 5));
    }
    look(&mut world, 100);
    assert_eq!(world.answers(0, 0, 1), []);
}

#[test]
fn of_several_barriers_those_fail_first_that_nobody_can_open() {
    let mut world = world(&[2, 2], BarrierLoss::Fail);
    world.call(0, 0, 1, signal_and_wait("gathered", 4));
    world.call(0, 1, 1, signal("gathered"));
    world.call(0, 1, 2, barrier("report", 1));
    world.call(1, 0, 1, signal_and_wait("gathered", 4));
    world.settle();
    world.cells[1].sync.end_instance(&instance(1, 1));
    look(&mut world, 4);
    for cell in 0..2 {
        assert!(error(&world, cell, 0, 1).contains("g1/1 ended without it"));
    }
    assert_eq!(world.answers(0, 1, 2), [], "who heard of it may still report");
    world.call(1, 0, 2, signal("report"));
    world.settle();
    assert_eq!(world.answers(0, 1, 2), [Reply::Opened { seq: 0 }]);
}

#[test]
fn who_comes_to_a_failed_barrier_hears_so_until_somebody_signals() {
    let mut world = world(&[2, 1], BarrierLoss::Fail);
    world.call(0, 0, 1, signal_and_wait("all", 3));
    world.call(0, 1, 1, signal_and_wait("all", 3));
    world.settle();
    world.cells[1].sync.end_instance(&instance(1, 0));
    look(&mut world, 4);
    world.call(0, 0, 2, barrier("all", 3));
    world.settle();
    assert!(error(&world, 0, 0, 2).contains("g1/0 ended without it"));
    world.call(0, 1, 2, signal("all"));
    world.settle();
    world.call(0, 0, 3, barrier("all", 4));
    look(&mut world, 4);
    assert_eq!(world.answers(0, 0, 3), []);
    world.call(0, 1, 3, signal("all"));
    world.settle();
    assert_eq!(world.answers(0, 0, 3), [Reply::Opened { seq: 0 }]);
}

#[test]
fn cell_that_its_lablet_forgot_counts_as_ended_once_its_receipts_are_here() {
    let mut world = world(&[1, 2], BarrierLoss::Fail);
    world.call(0, 0, 1, signal_and_wait("all", 3));
    world.call(1, 0, 1, signal("all"));
    world.settle();
    world.disconnect(1);
    look(&mut world, 100);
    assert_eq!(world.answers(0, 0, 1), [], "it may come back");
    world.run.receive(&peer(1), 1);
    look(&mut world, 4);
    assert_eq!(world.answers(0, 0, 1), []);
    world.run.receive(&peer(1), 1);
    look(&mut world, 4);
    assert!(error(&world, 0, 0, 1).contains("of which 2 are possible: g1/1 ended without it"));
}

#[derive(Clone, Debug, PartialEq)]
enum Doing {
    Work,
    Wait { call: u64, state: &'static str, target: u64 },
    Ended,
}

/// One instance as a plain account has it.
struct Actor {
    cell: usize,
    index: u32,
    doing: Doing,
    signals: BTreeMap<&'static str, u64>,
}

/// A world of instances that do one thing at a time, and what each of them does.
struct Play {
    world: World,
    actors: Vec<Actor>,
    barriers: BarrierLoss,
    lost: Option<usize>,
    calls: u64,
    failed: usize,
    seed: u64,
}

const STATES: [&str; 3] = ["a", "b", "c"];

impl Play {
    fn is_lost(&self, actor: &Actor) -> bool {
        self.lost == Some(actor.cell)
    }

    fn living(&self) -> impl Iterator<Item = &Actor> {
        self.actors.iter().filter(|actor| !self.is_lost(actor) && actor.doing != Doing::Ended)
    }

    /// Signals of a state, without those that went with the lost cell where they are not to count.
    fn signals(&self, state: &str, with_lost: bool) -> u64 {
        let counted = self.actors.iter().filter(|actor| with_lost || !self.is_lost(actor));
        counted.map(|actor| actor.signals.get(state).copied().unwrap_or(0)).sum()
    }

    /// Instances that will never signal a state again, and may not have.
    fn gone(&self, state: &str) -> u64 {
        let gone =
            |actor: &&Actor| self.is_lost(actor) || (actor.doing == Doing::Ended && !actor.signals.contains_key(state));
        self.actors.iter().filter(gone).count() as u64
    }

    /// Barriers fail only where nobody was left: every instance that lives had nothing but its waiting.
    fn look_at_failures(&mut self) {
        while let Some(failed) = self.world.run.poll_failed() {
            let seed = self.seed;
            self.failed += 1;
            assert_ne!(self.barriers, BarrierLoss::Wait, "seed {seed}");
            let at_work = self.living().find(|actor| actor.doing == Doing::Work);
            let at_work = at_work.map(|actor| (actor.cell, actor.index));
            assert_eq!(at_work, None, "seed {seed}: {failed:?} while somebody is at work");
            assert!(self.gone(&failed.state) > 0, "seed {seed}: {failed:?} and nobody is gone");
            let given = self.signals(&failed.state, false);
            assert!(failed.target > given, "seed {seed}: {failed:?} has {given}");
        }
    }

    fn look_at_replies(&mut self, from: usize) {
        let seed = self.seed;
        for (id, call, reply) in self.world.replies.split_off(from) {
            let find = |actor: &&mut Actor| instance(actor.cell, actor.index) == id;
            let actor = self.actors.iter_mut().find(find).unwrap();
            let Doing::Wait { call: waits, state, target } = actor.doing else { continue };
            if call != waits {
                continue;
            }
            actor.doing = Doing::Work;
            match reply {
                Reply::Opened { .. } => {
                    let credit = if self.barriers == BarrierLoss::Release { self.gone(state) } else { 0 };
                    let count = self.signals(state, true) + credit;
                    assert!(count >= target, "seed {seed}: {state} opened at {count} of {target}");
                }
                Reply::Failed(SyncError::Unreachable { .. }) => {
                    assert_ne!(self.barriers, BarrierLoss::Wait, "seed {seed}");
                }
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }

    fn act(&mut self, rng: &mut Rng) {
        let n = rng.below(self.actors.len());
        if self.is_lost(&self.actors[n]) || self.actors[n].doing == Doing::Ended {
            return;
        }
        let state = STATES[rng.below(3)];
        self.calls += 1;
        let call = self.calls;
        let actor = &mut self.actors[n];
        let (cell, index) = (actor.cell, actor.index);
        let waits = actor.doing != Doing::Work;
        match rng.below(20) {
            // Whoever waits may be killed.
            0 => {
                actor.doing = Doing::Ended;
                self.world.cells[cell].sync.end_instance(&instance(cell, index));
            }
            _ if waits => {}
            1..7 => {
                *actor.signals.entry(state).or_default() += 1;
                self.world.call(cell, index, call, signal(state));
            }
            7..12 => {
                let target = rng.below(14) as u64;
                actor.doing = Doing::Wait { call, state, target };
                self.world.call(cell, index, call, barrier(state, target));
            }
            _ => {
                let target = rng.below(14) as u64;
                *actor.signals.entry(state).or_default() += 1;
                actor.doing = Doing::Wait { call, state, target };
                self.world.call(cell, index, call, signal_and_wait(state, target));
            }
        }
    }

    /// The lablet of a cell is started again; its instances, which live on, ask again.
    fn restart_lablet(&mut self, cell: usize) {
        self.world.restart_lablet(cell);
        for actor in self.actors.iter_mut().filter(|actor| actor.cell == cell) {
            match actor.doing {
                Doing::Work => {}
                Doing::Ended => self.world.cells[cell].sync.end_instance(&instance(cell, actor.index)),
                Doing::Wait { state, target, .. } => {
                    self.calls += 1;
                    actor.doing = Doing::Wait { call: self.calls, state, target };
                    self.world.call(cell, actor.index, self.calls, barrier(state, target));
                }
            }
        }
    }

    fn for_good(&self, cell: usize) -> Vec<iptl_dag::model::InstanceId> {
        let lost = self.actors.iter().filter(|actor| actor.cell == cell && actor.doing != Doing::Ended);
        lost.map(|actor| instance(cell, actor.index)).collect()
    }

    fn lose(&mut self, cell: usize) {
        let for_good = self.for_good(cell);
        if self.lost.is_some() || for_good.is_empty() {
            return;
        }
        self.world.disconnect(cell);
        self.lost = Some(cell);
        self.world.run.lose_cell(&peer(cell), &[], &for_good);
    }

    fn restart(&mut self) {
        match self.lost {
            None => self.world.restart(),
            Some(lost) => {
                self.world.restart_without(lost);
                let for_good = self.for_good(lost);
                self.world.run.lost_before(&peer(lost), &[], &for_good);
            }
        }
        self.world.run.on_loss(self.barriers);
    }
}

fn play(seed: u64, barriers: BarrierLoss) -> usize {
    let mut rng = Rng(seed);
    let sizes = [1, 3, 4];
    let cells = sizes.iter().enumerate();
    let actors = cells.flat_map(|(cell, size)| (0..*size).map(move |index| (cell, index)));
    let actor = |(cell, index)| Actor { cell, index, doing: Doing::Work, signals: BTreeMap::new() };
    let actors = actors.map(actor).collect();
    let world = world(&sizes, barriers);
    let mut play = Play { world, actors, barriers, lost: None, calls: 0, failed: 0, seed };
    for _ in 0..500 {
        let cell = rng.below(3);
        let is_lost = play.lost == Some(cell);
        match rng.below(80) {
            0..24 => play.act(&mut rng),
            24..38 => play.world.say_up(cell),
            38..52 => play.world.hear_up(cell, rng.below(4) == 0),
            52..60 => play.world.say_down(),
            60..70 => play.world.hear_down(cell, rng.below(4) == 0),
            70..75 => play.world.run.inquire(),
            75 => play.world.disconnect(cell),
            76 | 77 if !is_lost => play.world.connect(cell),
            78 if rng.below(8) == 0 => play.restart(),
            78 if rng.below(3) == 0 && !is_lost => play.restart_lablet(cell),
            79 if rng.below(4) == 0 => play.lose(cell),
            _ => {}
        }
        play.look_at_failures();
        let before = play.world.replies.len();
        (0..3).for_each(|cell| play.world.take_replies(cell));
        play.look_at_replies(before);
    }
    for cell in (0..3).filter(|cell| play.lost != Some(*cell)) {
        play.world.connect(cell);
    }
    for _ in 0..60 {
        play.world.run.inquire();
        let before = play.world.replies.len();
        play.world.settle();
        play.look_at_failures();
        play.look_at_replies(before);
    }
    // Nobody waits for ever where all wait and somebody is gone for whom one waits.
    let waits = |actor: &Actor| match actor.doing {
        Doing::Wait { state, .. } => Some(state),
        Doing::Work | Doing::Ended => None,
    };
    if barriers != BarrierLoss::Wait && play.living().all(|actor| waits(actor).is_some()) {
        let hanging = play.living().filter_map(waits).find(|state| play.gone(state) > 0);
        assert_eq!(hanging, None, "seed {seed}: somebody waits for ever");
    }
    play.failed
}

#[test]
fn barriers_fail_where_nobody_is_left_and_nowhere_else() {
    for barriers in [BarrierLoss::Fail, BarrierLoss::Release, BarrierLoss::Wait] {
        let failed: usize = (0..400).map(|seed| play(5_000 + seed, barriers)).sum();
        // The rule was tried, and often.
        assert!(barriers == BarrierLoss::Wait || failed > 50, "{barriers:?}: {failed} failed");
    }
}

#[test]
fn a_cell_that_is_stopped_is_not_gone_before_the_orchestrator_knows_what_becomes_of_it() {
    // Its instance begins anew, its receipt is the last that comes of it, or nobody takes it up again.
    for (anew, given_up) in [(true, false), (false, false), (true, true)] {
        let mut world = world(&[1, 1], BarrierLoss::Fail);
        world.call(0, 0, 1, signal_and_wait("all", 2));
        world.cells[1].sync.stop();
        world.cells[1].sync.end_instance(&instance(1, 0));
        look(&mut world, 40);
        assert_eq!(world.answers(0, 0, 1), [], "its end alone says nothing");
        if anew {
            world.run.lose_cell(&peer(1), &[instance(1, 0)], &[]);
            look(&mut world, 40);
            assert_eq!(world.answers(0, 0, 1), [], "it will come");
        } else {
            world.run.receive(&peer(1), 1);
        }
        if given_up {
            world.run.give_up();
        }
        if given_up || !anew {
            look(&mut world, 4);
            assert!(error(&world, 0, 0, 1).contains("g1/0"), "{}", error(&world, 0, 0, 1));
        }
    }
}
