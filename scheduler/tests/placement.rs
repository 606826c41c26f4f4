//! Placement: what holds for every run and inventory.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Affinity, Assignment, GroupRun, Run};
use iptl_scheduler::placement;
use iptl_wire::session::Inventory;
use proptest::prelude::*;

use crate::cores::{group, inventory, peer, run};

const MIB: u64 = 1 << 20;

fn affinities() -> impl Strategy<Value = Affinity> {
    prop_oneof![Just(Affinity::Balance), Just(Affinity::Spread), Just(Affinity::Pack)]
}

fn groups() -> impl Strategy<Value = BTreeMap<String, GroupRun>> {
    let one = (0u32..40, 1u64..200, affinities(), 0u32..6, any::<bool>()).prop_map(
        |(count, memory_mib, affinity, most, labelled)| {
            let mut group = group(count);
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
    let one = (0u32..30, 0u64..4_000, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(slots, memory_mib, eu, draining)| {
            let mut inventory = inventory(slots);
            inventory.free_memory_bytes = memory_mib * MIB;
            inventory.draining = draining;
            if eu {
                inventory.labels.insert("region".into(), "eu".into());
            }
            inventory
        },
    );
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
            let slots: u32 = mine.iter().map(|a| a.count).sum();
            let memory: u64 =
                mine.iter().map(|a| u64::from(a.count) * run.groups[&a.group].resources.memory_bytes).sum();
            prop_assert!(slots <= has.free_wasm_slots);
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
    fn all_are_placed_where_slots_suffice(
        counts in prop::collection::vec((0u32..40, affinities()), 1..4),
        slots in prop::collection::vec(0u32..30, 1..8),
    ) {
        let groups = counts.iter().enumerate().map(|(n, (count, affinity))| {
            let mut group = group(*count);
            group.requires.affinity = *affinity;
            (format!("g{n}"), group)
        });
        let run = run_of(groups.collect());
        let lab = slots.iter().enumerate().map(|(n, s)| (peer(n as u8), inventory(*s))).collect();
        let placed = placement(&run, &lab, &[], &BTreeMap::new());
        let room: u64 = slots.iter().map(|s| u64::from(*s)).sum();
        prop_assert_eq!(placed.missing(), run.instances().saturating_sub(room));
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
            has.free_wasm_slots -= a.count;
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
    let full = Inventory { free_wasm_slots: 0, ..eu(inventory(8)) };
    let dockerless = Inventory { wasm_slots: 0, free_wasm_slots: 0, ..eu(inventory(0)) };
    let rows = [
        (us, "label region=eu wanted, has region=us"),
        (inventory(8), "label region=eu wanted, has no region"),
        (draining, "draining: its owner lets it take no new work"),
        (small, "12 MiB of memory free, an instance may take 512 MiB"),
        (full, "no free slot of 8"),
        (dockerless, "has no wasm runner"),
    ];
    let lab: BTreeMap<_, _> = rows.iter().enumerate().map(|(n, (i, _))| (peer(n as u8), i.clone())).collect();
    let placed = placement(&run, &lab, &[], &BTreeMap::new());
    assert_eq!(placed.missing(), 4);
    let reasons: Vec<&str> = placed.refused.iter().map(|r| r.reason.as_str()).collect();
    assert_eq!(reasons, rows.iter().map(|(_, why)| *why).collect::<Vec<_>>());
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
