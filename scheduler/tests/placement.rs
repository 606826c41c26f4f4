//! Placement: what holds for every run and inventory.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Affinity, Assignment, Container, Destination, GroupRun, Network, Run, WorkloadKind};
use iptl_scheduler::{GRANTED, egress_label, placement};
use iptl_wire::session::{Inventory, MAX_HOLDS};
use proptest::prelude::*;

use crate::bench::{both, group, inventory, mixed, peer, run};

const MIB: u64 = 1 << 20;

fn affinities() -> impl Strategy<Value = Affinity> {
    prop_oneof![Just(Affinity::Balance), Just(Affinity::Spread), Just(Affinity::Pack)]
}

fn kinds() -> impl Strategy<Value = WorkloadKind> {
    prop_oneof![2 => Just(WorkloadKind::Wasm), 1 => Just(WorkloadKind::Docker)]
}

fn groups() -> impl Strategy<Value = BTreeMap<String, GroupRun>> {
    let one = (0u32..40, 1u64..200, affinities(), 0u32..6, any::<bool>(), kinds()).prop_map(
        |(count, memory_mib, affinity, most, labelled, kind)| {
            let mut group = group(count);
            group.kind = kind;
            group.resources.memory_bytes = memory_mib * MIB;
            group.requires.affinity = affinity;
            group.requires.max_per_lablet = most;
            if labelled {
                group.requires.labels.insert("region".into(), "eu".into());
            }
            group
        },
    );
    prop::collection::vec(one, 1..4)
        .prop_map(|groups| groups.into_iter().enumerate().map(|(n, g)| (format!("g{n}"), g)).collect())
}

fn labs() -> impl Strategy<Value = BTreeMap<PeerId, Inventory>> {
    let one = (0u32..30, prop_oneof![Just(0), 0u32..12], 0u64..4_000, any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(wasm, docker, memory_mib, eu, draining)| {
            let mut inventory = both(wasm, docker);
            inventory.free_memory_bytes = memory_mib * MIB;
            inventory.draining = draining;
            if eu {
                inventory.labels.insert("region".into(), "eu".into());
            }
            inventory
        });
    prop::collection::vec(one, 0..8)
        .prop_map(|lablets| lablets.into_iter().enumerate().map(|(n, i)| (peer(n as u8), i)).collect())
}

fn run_of(groups: BTreeMap<String, GroupRun>) -> Run {
    Run { groups, ..run(&[]) }
}

/// Checks that assignments cover every index of every group at most once, and nothing else.
fn check_indexes(run: &Run, assignments: &[Assignment], unplaced: &BTreeMap<String, u32>) {
    for (name, group) in &run.groups {
        let mut seen = vec![false; group.count as usize];
        for a in assignments.iter().filter(|a| a.group == *name) {
            for index in a.start..a.start + a.count {
                assert!(!std::mem::replace(&mut seen[index as usize], true), "{name}/{index} placed twice");
            }
        }
        let placed = seen.iter().filter(|s| **s).count() as u32;
        assert_eq!(placed + unplaced.get(name).copied().unwrap_or(0), group.count, "{name}");
    }
    assert!(assignments.iter().all(|a| run.groups.contains_key(&a.group)));
}

proptest! {
    #[test]
    fn nobody_gets_more_than_it_has_room_for(groups in groups(), lab in labs()) {
        let run = run_of(groups);
        let placed = placement(&run, &lab, &[], &BTreeMap::new());
        check_indexes(&run, &placed.assignments, &placed.unplaced);
        for (lablet, has) in &lab {
            let mine: Vec<_> = placed.assignments.iter().filter(|a| a.lablet == *lablet).collect();
            let memory: u64 =
                mine.iter().map(|a| u64::from(a.count) * run.groups[&a.group].resources.memory_bytes).sum();
            for kind in [WorkloadKind::Wasm, WorkloadKind::Docker] {
                let of_kind = mine.iter().filter(|a| run.groups[&a.group].kind == kind);
                prop_assert!(of_kind.map(|a| a.count).sum::<u32>() <= has.free(kind));
            }
            prop_assert!(memory <= has.free_memory_bytes);
            prop_assert!(mine.is_empty() || !has.draining);
            for (name, group) in &run.groups {
                let count: u32 = mine.iter().filter(|a| a.group == *name).map(|a| a.count).sum();
                let most = group.requires.max_per_lablet;
                prop_assert!(most == 0 || count <= most);
                prop_assert!(count == 0 || group.requires.labels.iter().all(|(k, v)| has.labels.get(k) == Some(v)));
            }
        }
    }

    #[test]
    fn all_are_placed_where_slots_of_their_kind_suffice(
        counts in prop::collection::vec((0u32..40, affinities(), kinds()), 1..5),
        slots in prop::collection::vec((0u32..30, 0u32..30), 1..8),
    ) {
        let groups = counts.iter().enumerate().map(|(n, (count, affinity, kind))| {
            let mut group = group(*count);
            group.requires.affinity = *affinity;
            group.kind = *kind;
            (format!("g{n}"), group)
        });
        let run = run_of(groups.collect());
        let lab = slots.iter().enumerate().map(|(n, (wasm, docker))| (peer(n as u8), both(*wasm, *docker))).collect();
        let placed = placement(&run, &lab, &[], &BTreeMap::new());
        for kind in [WorkloadKind::Wasm, WorkloadKind::Docker] {
            let room: u64 = lab.values().map(|has: &Inventory| u64::from(has.free(kind))).sum();
            let of_kind = |name: &String| run.groups[name].kind == kind;
            let missing = placed.unplaced.iter().filter(|(name, _)| of_kind(name)).map(|(_, n)| u64::from(*n));
            let wanted = run.kinds().get(&kind).copied().unwrap_or(0);
            prop_assert_eq!(missing.sum::<u64>(), wanted.saturating_sub(room), "{:?}", kind);
        }
    }

    #[test]
    fn those_that_are_to_be_together_are(
        sizes in prop::collection::vec((0u32..40, 1u32..6, affinities(), kinds()), 1..4),
        lab in labs(),
        gone in 0u8..8,
    ) {
        let groups = sizes.iter().enumerate().map(|(n, (count, together, affinity, kind))| {
            let mut group = group(*count);
            group.requires.affinity = *affinity;
            group.requires.together = Some(*together);
            group.kind = *kind;
            (format!("g{n}"), group)
        });
        let run = run_of(groups.collect());
        let first = placement(&run, &lab, &[], &BTreeMap::new());
        let kept: Vec<_> = first.assignments.iter().filter(|a| a.lablet != peer(gone)).cloned().collect();
        let mut left = lab.clone();
        for a in &kept {
            left.get_mut(&a.lablet).expect("it is there").slots.get_mut(&run.groups[&a.group].kind).expect("a runner").free -=
                a.count;
        }
        let child = placement(&run, &left, &kept, &BTreeMap::from([(peer(gone), "gone".to_owned())]));
        for placed in [first, child] {
            check_indexes(&run, &placed.assignments, &placed.unplaced);
            for (name, group) in &run.groups {
                let together = group.requires.together.unwrap_or(1);
                let mut places: BTreeMap<u32, BTreeMap<&PeerId, u32>> = BTreeMap::new();
                for a in placed.assignments.iter().filter(|a| a.group == *name) {
                    for index in a.start..a.start + a.count {
                        *places.entry(index / together).or_default().entry(&a.lablet).or_default() += 1;
                    }
                }
                for (place, by_lablet) in places {
                    let whole = together.min(group.count - place * together);
                    prop_assert!(by_lablet.len() == 1 && by_lablet.values().all(|n| *n == whole), "{} {}", name, place);
                }
            }
            for kind in [WorkloadKind::Wasm, WorkloadKind::Docker] {
                for (lablet, has) in &lab {
                    let mine = placed.assignments.iter().filter(|a| a.lablet == *lablet && run.groups[&a.group].kind == kind);
                    prop_assert!(mine.map(|a| a.count).sum::<u32>() <= has.free(kind));
                }
            }
        }
    }

    #[test]
    fn ranges_are_sorted_and_merged(groups in groups(), lab in labs()) {
        let placed = placement(&run_of(groups), &lab, &[], &BTreeMap::new());
        for pair in placed.assignments.windows(2) {
            prop_assert!((&pair[0].group, pair[0].start) < (&pair[1].group, pair[1].start));
            let touch = pair[0].group == pair[1].group && pair[0].start + pair[0].count == pair[1].start;
            prop_assert!(!touch || pair[0].lablet != pair[1].lablet);
        }
    }

    #[test]
    fn the_order_in_which_lablets_became_known_does_not_matter(groups in groups(), lab in labs()) {
        let run = run_of(groups);
        let backwards: BTreeMap<_, _> = lab.iter().rev().map(|(l, i)| (l.clone(), i.clone())).collect();
        let first = placement(&run, &lab, &[], &BTreeMap::new());
        prop_assert_eq!(first, placement(&run, &backwards, &[], &BTreeMap::new()));
    }

    #[test]
    fn a_child_keeps_what_others_hold(groups in groups(), lab in labs(), gone in 0u8..8) {
        let run = run_of(groups);
        let first = placement(&run, &lab, &[], &BTreeMap::new());
        let (lost, kept): (Vec<_>, Vec<_>) = first.assignments.into_iter().partition(|a| a.lablet == peer(gone));
        let mut left = lab.clone();
        for a in &kept {
            let has = left.get_mut(&a.lablet).expect("placed on a lablet of the lab");
            has.slots.get_mut(&run.groups[&a.group].kind).expect("it has a runner").free -= a.count;
            has.free_memory_bytes -= u64::from(a.count) * run.groups[&a.group].resources.memory_bytes;
        }
        let excluded = BTreeMap::from([(peer(gone), "gave its grant back".to_owned())]);
        let child = placement(&run, &left, &kept, &excluded);
        check_indexes(&run, &child.assignments, &child.unplaced);
        prop_assert!(child.assignments.iter().all(|a| a.lablet != peer(gone)));
        for a in &kept {
            let held = child.assignments.iter().any(|c| {
                c.lablet == a.lablet && c.group == a.group && c.start <= a.start && c.start + c.count >= a.start + a.count
            });
            prop_assert!(held, "{a:?} moved");
        }
        if lab.contains_key(&peer(gone)) && !lost.is_empty() {
            prop_assert!(child.refused.iter().any(|r| r.lablet == peer(gone) && r.reason == "gave its grant back"));
        }
    }

    /// What changes in the lab moves what it takes away, and nothing else: whoever joins, grows, shrinks or drains has
    /// nothing moved to it or from it, and of a lablet that goes, what it held goes elsewhere as far as there is room.
    #[test]
    fn a_small_change_of_inventory_moves_no_more_than_it_takes_away(
        groups in groups(),
        lab in labs(),
        at in 0u8..9,
        change in 0u8..4,
    ) {
        let run = run_of(groups);
        let first = placement(&run, &lab, &[], &BTreeMap::new());
        let mut left = lab.clone();
        for a in &first.assignments {
            let has = left.get_mut(&a.lablet).expect("placed on a lablet of the lab");
            has.slots.get_mut(&run.groups[&a.group].kind).expect("it has a runner").free -= a.count;
            has.free_memory_bytes -= u64::from(a.count) * run.groups[&a.group].resources.memory_bytes;
        }
        let mut kept = first.assignments.clone();
        match (change, left.get_mut(&peer(at))) {
            (0, _) => drop(left.insert(peer(100), both(30, 12))),
            (1, Some(grows)) => grows.slots.values_mut().for_each(|slots| slots.free += 7),
            (2, Some(drains)) => drains.draining = true,
            (3, Some(_)) => {
                left.remove(&peer(at));
                kept.retain(|a| a.lablet != peer(at));
            }
            (_, Some(_) | None) => {}
        }
        let holder = |placed: &[Assignment], group: &str, index: u32| {
            placed.iter().find(|a| a.group == group && a.start <= index && index - a.start < a.count).map(|a| a.lablet.clone())
        };
        let next = placement(&run, &left, &kept, &BTreeMap::new());
        check_indexes(&run, &next.assignments, &next.unplaced);
        let mut moved = 0;
        for (name, group) in &run.groups {
            for index in 0..group.count {
                let (before, after) = (holder(&first.assignments, name, index), holder(&next.assignments, name, index));
                moved += u32::from(before.is_some() && before != after);
            }
        }
        let gone = if change == 3 { peer(at) } else { peer(200) };
        let bound: u32 = first.assignments.iter().filter(|a| a.lablet == gone).map(|a| a.count).sum();
        prop_assert_eq!(moved, bound);
        if change != 0 && change != 1 {
            prop_assert!(next.missing() <= first.missing() + u64::from(bound));
        }
    }
}

fn shares(affinity: Affinity, wanted: u32, slots: &[u32]) -> Vec<u32> {
    let mut only = group(wanted);
    only.requires.affinity = affinity;
    let run = run_of(BTreeMap::from([("all".to_owned(), only)]));
    let lab = slots.iter().enumerate().map(|(n, s)| (peer(n as u8), inventory(*s))).collect();
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    (0..slots.len())
        .map(|n| placed.assignments.iter().filter(|a| a.lablet == peer(n as u8)).map(|a| a.count).sum())
        .collect()
}

#[test]
fn affinities_distribute_as_they_say() {
    let rows: [(Affinity, u32, &[u32], &[u32]); 9] = [
        (Affinity::Balance, 30, &[10, 20, 30], &[5, 10, 15]),
        (Affinity::Balance, 3, &[100, 100, 100], &[1, 1, 1]),
        (Affinity::Balance, 1, &[5, 50], &[0, 1]),
        (Affinity::Spread, 30, &[10, 20, 30], &[10, 10, 10]),
        (Affinity::Spread, 31, &[4, 20, 30], &[4, 14, 13]),
        (Affinity::Spread, 2, &[9, 9, 9], &[1, 1, 0]),
        (Affinity::Pack, 25, &[10, 20, 30], &[0, 0, 25]),
        (Affinity::Pack, 9, &[10, 20, 30], &[9, 0, 0]),
        (Affinity::Pack, 38, &[10, 20, 30], &[8, 0, 30]),
    ];
    for (affinity, wanted, slots, want) in rows {
        assert_eq!(shares(affinity, wanted, slots), want, "{affinity:?} {wanted} over {slots:?}");
    }
}

#[test]
fn among_equals_who_has_the_workload_ready_is_preferred_and_never_before_a_better_one() {
    let check = |affinity, wanted, slots: &[u32], ready: &[u8], want: &[u32]| {
        let mut only = group(wanted);
        only.requires.affinity = affinity;
        let workload = only.workload;
        let run = run_of(BTreeMap::from([("all".to_owned(), only)]));
        let lab = slots.iter().zip(0..).map(|(slots, n)| {
            let holds = if ready.contains(&n) { vec![workload] } else { Vec::new() };
            (peer(n), Inventory { holds, ..inventory(*slots) })
        });
        let placed = placement(&run, &lab.collect(), &[], &BTreeMap::new());
        let of = |n| placed.assignments.iter().filter(|a| a.lablet == peer(n)).map(|a| a.count).sum::<u32>();
        let shares: Vec<u32> = (0..).take(slots.len()).map(of).collect();
        assert_eq!(shares, want, "{affinity:?} {wanted} over {slots:?}, ready {ready:?}");
    };
    check(Affinity::Balance, 1, &[9, 9, 9], &[], &[1, 0, 0]);
    check(Affinity::Balance, 1, &[9, 9, 9], &[2], &[0, 0, 1]);
    check(Affinity::Balance, 1, &[9, 90, 9], &[2], &[0, 1, 0]);
    check(Affinity::Spread, 2, &[9, 9, 9], &[1, 2], &[0, 1, 1]);
    check(Affinity::Spread, 4, &[9, 9, 9], &[1], &[1, 2, 1]);
    check(Affinity::Pack, 5, &[9, 9, 9], &[1], &[0, 5, 0]);
    check(Affinity::Pack, 5, &[5, 9, 9], &[1], &[5, 0, 0]);
    check(Affinity::Pack, 12, &[9, 9, 9], &[1], &[0, 9, 3]);
    // What it says beyond bounds counts for nothing.
    let mut boasts = inventory(1);
    boasts.holds = (0..=MAX_HOLDS).map(|n| iptl_dag::codec::cid_of(&(n as u64))).collect();
    assert!(boasts.has_ready(&boasts.holds[MAX_HOLDS - 1]) && !boasts.has_ready(&boasts.holds[MAX_HOLDS]));
}

#[test]
fn every_refused_lablet_is_told_why() {
    let mut spec = group(4);
    spec.requires.labels.insert("region".into(), "eu".into());
    spec.resources.memory_bytes = 512 * MIB;
    let run = run_of(BTreeMap::from([("g".to_owned(), spec)]));
    let eu = |mut i: Inventory| {
        i.labels.insert("region".into(), "eu".into());
        i
    };
    let mut us = inventory(8);
    us.labels.insert("region".into(), "us".into());
    let draining = Inventory { draining: true, ..eu(inventory(8)) };
    let small = Inventory { free_memory_bytes: 12 * MIB, ..eu(inventory(8)) };
    let mut full = eu(inventory(8));
    full.take(&BTreeMap::from([(WorkloadKind::Wasm, 8)]));
    let wasmless = eu(both(0, 8));
    let rows = [
        (us, "label region=eu wanted, has region=us"),
        (inventory(8), "label region=eu wanted, has no region"),
        (draining, "draining: its owner lets it take no new work"),
        (small, "12 MiB of memory free, an instance may take 512 MiB"),
        (full, "no free slot of 8"),
        (wasmless, "has no wasm runner"),
    ];
    let lab: BTreeMap<_, _> = rows.iter().enumerate().map(|(n, (i, _))| (peer(n as u8), i.clone())).collect();
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 4);
    let reasons: Vec<&str> = placed.refused.iter().map(|r| r.reason.as_str()).collect();
    assert_eq!(reasons, rows.iter().map(|(_, why)| *why).collect::<Vec<_>>());
}

#[test]
fn containers_that_reach_out_of_the_lab_go_where_the_owner_grants_each_place() {
    let places = ["bootstrap.example:4001/udp", "192.0.2.7:443/tcp"].map(|place| place.parse().unwrap());
    let container = Container { egress: places.clone().into(), ..Container::usual() };
    let reaching = GroupRun { kind: WorkloadKind::Docker, container: Some(container), ..group(4) };
    let run = run_of(BTreeMap::from([("g".to_owned(), reaching)]));
    let granting = |places: &[&Destination]| {
        let labels = places.iter().map(|place| (egress_label(place), GRANTED.to_owned()));
        Inventory { labels: labels.collect(), ..both(0, 8) }
    };
    let none = "way out of the lab to 192.0.2.7:443/tcp wanted, its owner does not grant it";
    let one = "way out of the lab to bootstrap.example:4001/udp wanted, its owner does not grant it";
    let lab = BTreeMap::from([(peer(0), both(0, 8)), (peer(1), granting(&[&places[0]]))]);
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 4);
    assert_eq!(placed.refused.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), [one, none]);

    let lab = BTreeMap::from([(peer(0), both(0, 8)), (peer(1), granting(&[&places[0], &places[1]]))]);
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 0);
    assert!(placed.assignments.iter().all(|assignment| assignment.lablet == peer(1)), "{:?}", placed.assignments);
}

#[test]
fn an_instance_that_only_one_lablet_may_hold_comes_first() {
    let mut picky = group(4);
    picky.requires.labels.insert("nat".into(), "symmetric".into());
    let run = run_of(BTreeMap::from([("a".to_owned(), group(4)), ("b".to_owned(), picky)]));
    let mut special = inventory(4);
    special.labels.insert("nat".into(), "symmetric".into());
    let lab = BTreeMap::from([(peer(0), special), (peer(1), inventory(4))]);
    assert_eq!(placement(&run, &lab, &[], &BTreeMap::new()).missing(), 0);
}

#[test]
fn groups_of_one_that_spread_go_to_different_lablets() {
    let mut alone = group(1);
    alone.requires.affinity = Affinity::Spread;
    let groups = ["a", "b", "c"].map(|name| (name.to_owned(), alone.clone()));
    let lab: BTreeMap<_, _> = (0..3).map(|n| (peer(n), inventory(8))).collect();
    let placed = placement(&run_of(BTreeMap::from(groups)), &lab, &[], &BTreeMap::new());
    let lablets: std::collections::BTreeSet<&PeerId> = placed.assignments.iter().map(|a| &a.lablet).collect();
    assert_eq!(lablets.len(), 3, "{:?}", placed.assignments);
}

#[test]
fn groups_of_both_kinds_go_where_their_kind_has_room() {
    let lab = BTreeMap::from([(peer(0), both(4, 0)), (peer(1), both(0, 3)), (peer(2), both(2, 2))]);
    let placed = placement(&mixed(6, 5), &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 0);
    let of = |n: u8, group: &str| -> u32 {
        placed.assignments.iter().filter(|a| a.lablet == peer(n) && a.group == group).map(|a| a.count).sum()
    };
    assert_eq!([0, 1, 2].map(|n| (of(n, "w"), of(n, "d"))), [(4, 0), (0, 3), (2, 2)]);
}

#[test]
fn memory_is_shared_by_both_kinds() {
    let mut has = both(8, 8);
    has.free_memory_bytes = 10 * MIB;
    let mut run = mixed(8, 8);
    for (name, memory_mib) in [("w", 1), ("d", 2)] {
        run.groups.get_mut(name).unwrap().resources.memory_bytes = memory_mib * MIB;
    }
    // The larger instances come first.
    let placed = placement(&run, &BTreeMap::from([(peer(0), has)]), &[], &BTreeMap::new());
    assert_eq!(placed.unplaced, BTreeMap::from([("d".to_owned(), 3), ("w".to_owned(), 8)]));
}

#[test]
fn a_lablet_is_refused_by_kind() {
    let taken = |mut has: Inventory| {
        for slots in has.slots.values_mut() {
            slots.free = 0;
        }
        has
    };
    let saying = |why: &str| {
        let mut has = both(8, 0);
        has.labels.insert(iptl_wire::session::WITHOUT_DOCKER.to_owned(), why.to_owned());
        has
    };
    let rows = [
        (mixed(0, 4), both(8, 0), "has no docker runner"),
        (mixed(0, 4), saying("it has\u{1b} no devices"), "has no docker runner: it has no devices"),
        (mixed(4, 0), both(0, 8), "has no wasm runner"),
        (mixed(4, 0), taken(both(8, 3)), "no free slot of 8"),
        (mixed(0, 4), taken(both(8, 3)), "no free slot of 3"),
        (mixed(4, 4), taken(both(8, 3)), "no free docker slot of 3"),
        (mixed(4, 4), taken(both(8, 0)), "has no docker runner"),
    ];
    for (mut run, has, why) in rows {
        run.groups.retain(|_, group| group.count > 0);
        let placed = placement(&run, &BTreeMap::from([(peer(0), has)]), &[], &BTreeMap::new());
        assert_eq!(placed.refused.first().map(|r| r.reason.as_str()), Some(why));
    }
}

#[test]
fn who_asks_before_a_run_is_told_why_one_kind_has_no_place() {
    let mut narrow = both(8, 8);
    narrow.free_memory_bytes = 3 * MIB;
    let lab = BTreeMap::from([(peer(0), both(8, 0)), (peer(1), both(8, 2)), (peer(2), narrow)]);
    let mut run = mixed(8, 9);
    for group in run.groups.values_mut() {
        group.resources.memory_bytes = MIB;
    }
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.unplaced, BTreeMap::from([("d".to_owned(), 4)]));
    assert_eq!(placed.refused, [], "each of them has something of the run");
    let why = iptl_scheduler::placement::left_out(&run, &placed, &lab);
    let why: Vec<_> = why.iter().map(|refusal| (refusal.lablet.clone(), refusal.reason.as_str())).collect();
    let full = "group d: neither its memory nor what the group allows on one lablet has room for more";
    let expected = [
        (peer(0), "group d: has no docker runner"),
        (peer(1), "group d: this run takes all its 2 free docker slots"),
        (peer(2), full),
    ];
    assert_eq!(why, expected);
    // What has a place needs no reason.
    let placed = placement(&mixed(2, 2), &lab, &[], &BTreeMap::new());
    assert_eq!(iptl_scheduler::placement::left_out(&mixed(2, 2), &placed, &lab), []);
}

#[test]
fn a_group_that_spreads_is_spread_over_regions_first() {
    let mut spread = run(&[("a", 9)]);
    spread.groups.get_mut("a").expect("it was just made").requires.affinity = Affinity::Spread;
    let mut lab: BTreeMap<PeerId, Inventory> = (0..6).map(|n| (peer(n), inventory(9))).collect();
    // Four lablets in one region, one in another, one that says nothing.
    for (n, region) in ["eu", "eu", "eu", "eu", "us"].into_iter().enumerate() {
        let inventory = lab.get_mut(&peer(n as u8)).expect("it was just made");
        inventory.labels.insert("region".into(), region.into());
    }
    let placed = placement(&spread, &lab, &[], &BTreeMap::new());
    let of = |lablets: &[u8]| -> u32 {
        let here = |a: &&Assignment| lablets.iter().any(|n| a.lablet == peer(*n));
        placed.assignments.iter().filter(here).map(|a| a.count).sum()
    };
    assert_eq!((of(&[0, 1, 2, 3]), of(&[4]), of(&[5])), (3, 3, 3));
    // The loss of a lablet moves what it held, and nothing else.
    let gone = peer(4);
    let kept: Vec<_> = placed.assignments.iter().filter(|a| a.lablet != gone).cloned().collect();
    lab.remove(&gone);
    let child = placement(&spread, &lab, &kept, &BTreeMap::new());
    assert_eq!(child.missing(), 0);
    let held = |of: &[Assignment], n: u8| of.iter().filter(|a| a.lablet == peer(n)).map(|a| a.count).sum::<u32>();
    let moved: u32 = (0..6).map(|n| held(&child.assignments, n).saturating_sub(held(&kept, n))).sum();
    assert_eq!(moved, 3);
}

#[test]
fn a_large_lab_is_placed_and_placed_again() {
    const LABLETS: u32 = 2_000;
    for affinity in [Affinity::Balance, Affinity::Spread, Affinity::Pack] {
        let mut large = run(&[("a", 60_000), ("b", 40_000)]);
        for group in large.groups.values_mut() {
            group.requires.affinity = affinity;
        }
        let name = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            PeerId::from_ed25519(&key)
        };
        let lab: BTreeMap<PeerId, Inventory> = (0..LABLETS).map(|n| (name(n), inventory(40 + n % 40))).collect();
        let placed = placement(&large, &lab, &[], &BTreeMap::new());
        assert_eq!(placed.missing(), 0);
        let gone: Vec<PeerId> = (0..LABLETS).step_by(100).map(name).collect();
        let kept: Vec<_> = placed.assignments.iter().filter(|a| !gone.contains(&a.lablet)).cloned().collect();
        let excluded = gone.iter().map(|lablet| (lablet.clone(), "gone".to_owned())).collect();
        let free = lab
            .iter()
            .map(|(lablet, inventory)| {
                let mut left = inventory.clone();
                let taken = kept.iter().filter(|a| a.lablet == *lablet).map(|a| a.count).sum();
                left.take(&[(WorkloadKind::Wasm, taken)].into());
                (lablet.clone(), left)
            })
            .collect();
        let child = placement(&large, &free, &kept, &excluded);
        assert_eq!(child.missing(), 0);
        assert!(child.assignments.iter().all(|a| !gone.contains(&a.lablet)));
        assert_eq!(child.refused.iter().filter(|r| r.reason == "gone").count(), gone.len());
    }
}

#[test]
fn a_network_changes_nothing_about_where_a_run_is_placed() {
    for (kind, affinity) in [WorkloadKind::Wasm, WorkloadKind::Docker]
        .into_iter()
        .flat_map(|kind| [(kind, Affinity::Spread), (kind, Affinity::Pack)])
    {
        let lab: BTreeMap<PeerId, Inventory> = [0, 1, 2].map(|n| (peer(n), both(4, 4))).into();
        let mut members = GroupRun { kind, ..group(6) };
        members.requires.affinity = affinity;
        let run = run_of(BTreeMap::from([("g".to_owned(), members)]));
        let clean = placement(&run, &lab, &[], &BTreeMap::new());
        let lablets = if affinity == Affinity::Spread { 3 } else { 2 };
        assert_eq!((clean.assignments.len(), clean.missing()), (lablets, 0));
        let run = Run { network: Network::Model(run.plan), ..run };
        assert_eq!(placement(&run, &lab, &[], &BTreeMap::new()), clean);
    }
}

#[test]
fn those_that_are_to_be_together_fill_the_last_slot() {
    // Three, three, three and one in ten slots; then one less, and a lablet beside it that has none to spare.
    let mut members = group(10);
    members.requires.together = Some(3);
    let run = run_of(BTreeMap::from([("g".to_owned(), members)]));
    let placed = placement(&run, &BTreeMap::from([(peer(1), inventory(10))]), &[], &BTreeMap::new());
    assert_eq!((placed.assignments.len(), placed.missing()), (1, 0));
    let lab = BTreeMap::from([(peer(1), inventory(9)), (peer(2), inventory(1))]);
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 0);
    let lab = BTreeMap::from([(peer(1), inventory(8)), (peer(2), inventory(2))]);
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 3, "two slots each are no place for three");
}
