//! Random schedules: sessions that break, messages that are repeated and held up, orchestrators that are lost. Whatever
//! happens, the model's answer is given.

use std::collections::{BTreeMap, BTreeSet};

use iptl_sync::Reply;

use crate::world::{World, barrier, publish, signal, signal_and_wait, subscribe};

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// What was asked for, by a simple account.
#[derive(Default)]
struct Model {
    signals: BTreeMap<String, u64>,
    /// Caller to state.
    signalled: BTreeMap<(usize, u32, u64), String>,
    barriers: BTreeMap<(usize, u32, u64), (String, u64)>,
    /// Caller to state and target, of calls that do both.
    meetings: BTreeMap<(usize, u32, u64), (String, u64)>,
    /// Caller to topic and payload.
    published: BTreeMap<(usize, u32, u64), (String, Vec<u8>)>,
    subscribed: BTreeMap<(usize, u32, u64), String>,
    /// Signals and publications whose answer went with the lablet: they count, and nobody heard how.
    unheard: BTreeSet<(usize, u32, u64)>,
}

impl Model {
    /// The lablet of a cell was started again: what its instances still wait for they ask for again, by other numbers.
    fn ask_again(&mut self, world: &mut World, cell: usize, next_call: &mut u64) {
        let open =
            |caller: &(usize, u32, u64)| caller.0 == cell && world.answers(caller.0, caller.1, caller.2).is_empty();
        self.unheard.extend(self.signalled.keys().chain(self.published.keys()).filter(|caller| open(caller)));
        let mut again = Vec::new();
        let meetings: Vec<_> = self.meetings.keys().filter(|caller| open(caller)).copied().collect();
        for caller in meetings {
            let (state, target) = self.meetings.remove(&caller).unwrap();
            self.signalled.insert(caller, state.clone());
            self.unheard.insert(caller);
            again.push((caller.1, state, Some(target)));
        }
        let barriers: Vec<_> = self.barriers.keys().filter(|caller| open(caller)).copied().collect();
        for caller in barriers {
            let (state, target) = self.barriers.remove(&caller).unwrap();
            again.push((caller.1, state, Some(target)));
        }
        let subscribed: Vec<_> = self.subscribed.keys().filter(|caller| caller.0 == cell).copied().collect();
        for caller in subscribed {
            again.push((caller.1, self.subscribed.remove(&caller).unwrap(), None));
        }
        for (index, name, target) in again {
            *next_call += 1;
            let caller = (cell, index, *next_call);
            match target {
                Some(target) => {
                    world.call(cell, index, *next_call, barrier(&name, target));
                    self.barriers.insert(caller, (name, target));
                }
                None => {
                    world.call(cell, index, *next_call, subscribe(&name));
                    self.subscribed.insert(caller, name);
                }
            }
        }
    }
}

const STATES: [&str; 3] = ["a", "b", "c"];

/// Whose processes die in a schedule.
#[derive(Clone, Copy, PartialEq)]
enum Dies {
    Nobody,
    Orchestrator,
    Lablets,
}

/// Runs one schedule and returns the world, settled, with its model.
fn schedule(seed: u64, dies: Dies) -> (World, Model) {
    let mut rng = Rng(seed);
    let mut world = World::new(&[1, 3, 5]);
    let mut model = Model::default();
    let mut next_call = 0;
    for _ in 0..600 {
        let cell = rng.below(3);
        match rng.below(60) {
            0..18 => {
                let index = rng.below(world.cells[cell].instances as usize) as u32;
                next_call += 1;
                let caller = (cell, index, next_call);
                let name = STATES[rng.below(3)];
                let op = match rng.below(10) {
                    0..4 => {
                        *model.signals.entry(name.into()).or_default() += 1;
                        model.signalled.insert(caller, name.into());
                        signal(name)
                    }
                    4 | 5 => {
                        let target = rng.below(60) as u64;
                        model.barriers.insert(caller, (name.into(), target));
                        barrier(name, target)
                    }
                    6 | 7 => {
                        let target = rng.below(60) as u64;
                        *model.signals.entry(name.into()).or_default() += 1;
                        model.meetings.insert(caller, (name.into(), target));
                        signal_and_wait(name, target)
                    }
                    8 => {
                        let mut payload = next_call.to_be_bytes().to_vec();
                        payload.resize(8 + rng.below(10), 0);
                        model.published.insert(caller, (name.into(), payload.clone()));
                        publish(name, payload)
                    }
                    _ => {
                        model.subscribed.insert(caller, name.into());
                        subscribe(name)
                    }
                };
                world.call(cell, index, next_call, op);
            }
            18..30 => world.say_up(cell),
            30..40 => world.hear_up(cell, rng.below(4) == 0),
            40..48 => world.say_down(),
            48..57 => world.hear_down(cell, rng.below(4) == 0),
            57 => world.disconnect(cell),
            58 => world.connect(cell),
            _ if dies == Dies::Orchestrator && rng.below(3) == 0 => world.restart(),
            _ if dies == Dies::Lablets => {
                world.restart_lablet(cell);
                model.ask_again(&mut world, cell, &mut next_call);
            }
            _ => {}
        }
        let before = world.replies.len();
        world.take_replies(cell);
        for (id, call, reply) in &world.replies[before..] {
            if let Reply::Opened { seq } = reply {
                let waiting = if *seq == 0 { &model.barriers } else { &model.meetings };
                let (state, target) = &waiting[&(cell, id.index, *call)];
                let count = model.signals.get(state).copied().unwrap_or(0);
                assert!(count >= *target, "seed {seed}: {state} opened at {count} of {target}");
            }
        }
    }
    for cell in 0..3 {
        if !world.cells[cell].connected {
            world.connect(cell);
        }
    }
    world.settle();
    (world, model)
}

fn check(seed: u64, world: &World, model: &Model, exact: bool) {
    let mut numbers: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for ((cell, index, call), state) in &model.signalled {
        match &world.answers(*cell, *index, *call)[..] {
            [] if model.unheard.contains(&(*cell, *index, *call)) => {}
            [Reply::Signalled { seq }] => {
                assert!(numbers.entry(state).or_default().insert(*seq), "seed {seed}: {state} has two signals {seq}")
            }
            other => panic!("seed {seed}: a signal of {state} is answered by {other:?}"),
        }
    }
    for ((cell, index, call), (state, target)) in &model.meetings {
        let reached = model.signals[state] >= *target;
        match &world.answers(*cell, *index, *call)[..] {
            [Reply::Opened { seq }] if reached => {
                assert!(numbers.entry(state).or_default().insert(*seq), "seed {seed}: {state} has two signals {seq}")
            }
            [] if !reached => {}
            other => panic!("seed {seed}: a meeting at {state} {target} is answered by {other:?}"),
        }
    }
    for (state, numbers) in numbers {
        let unanswered = model.meetings.values().any(|(at, target)| at == state && model.signals[at] < *target);
        // Also where orchestrators died: a number that nobody was told is given to somebody else.
        if !unanswered && model.unheard.is_empty() {
            assert_eq!(numbers, (1..=model.signals[state]).collect(), "seed {seed}");
        }
    }
    for ((cell, index, call), (state, target)) in &model.barriers {
        let reached = model.signals.get(state).copied().unwrap_or(0) >= *target;
        let expected = if reached { vec![Reply::Opened { seq: 0 }] } else { vec![] };
        assert_eq!(world.answers(*cell, *index, *call), expected, "seed {seed}: barrier {state} {target}");
    }
    let waiting: BTreeSet<(String, u64)> =
        world.run.waiting().into_iter().map(|barrier| (barrier.state, barrier.target)).collect();
    let closed = model
        .barriers
        .values()
        .chain(model.meetings.values())
        .filter(|(state, target)| model.signals.get(state).unwrap_or(&0) < target);
    assert_eq!(waiting, closed.cloned().collect(), "seed {seed}");

    let mut positions: BTreeMap<(&str, u64), &[u8]> = BTreeMap::new();
    for ((cell, index, call), (topic, payload)) in &model.published {
        match &world.answers(*cell, *index, *call)[..] {
            [] if model.unheard.contains(&(*cell, *index, *call)) => {}
            [Reply::Published { position }] => {
                assert_eq!(positions.insert((topic, *position), payload), None, "seed {seed}: one position twice")
            }
            other => panic!("seed {seed}: a publication is answered by {other:?}"),
        }
    }
    for ((cell, index, call), topic) in &model.subscribed {
        let mut last = 0;
        let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
        for reply in world.answers(*cell, *index, *call) {
            let Reply::Message { position, payload } = reply else { panic!("seed {seed}: {reply:?}") };
            assert!(position > last, "seed {seed}: {topic} goes back from {last} to {position}");
            assert!(!exact || position == last + 1, "seed {seed}: {topic} leaps from {last} to {position}");
            last = position;
            let published = positions.get(&(topic.as_str(), position));
            assert!(published.is_none_or(|published| *published == &payload[..]), "seed {seed}: {topic} {position}");
            assert!(
                !exact || published.is_some() || !model.unheard.is_empty(),
                "seed {seed}: a message that nobody published"
            );
            assert!(seen.insert(payload.to_vec()) || !exact, "seed {seed}: a message twice");
        }
        let all = model.published.values().filter(|(t, _)| t == topic).map(|(_, payload)| payload.clone());
        assert_eq!(seen, all.collect(), "seed {seed}: messages of {topic}");
    }
}

#[test]
fn broken_sessions_and_repetitions_change_no_answer() {
    for seed in 0..120 {
        let (world, model) = schedule(seed, Dies::Nobody);
        check(seed, &world, &model, true);
    }
}

#[test]
fn a_lost_orchestrator_learns_from_its_cells_what_it_knew() {
    for seed in 1_000..1_120 {
        let (world, model) = schedule(seed, Dies::Orchestrator);
        assert!(!world.run.is_recovering());
        check(seed, &world, &model, false);
    }
}

#[test]
fn a_lablet_that_was_started_again_contributes_once_what_its_instances_gave() {
    for seed in 2_000..2_120 {
        let (world, model) = schedule(seed, Dies::Lablets);
        check(seed, &world, &model, true);
    }
}
