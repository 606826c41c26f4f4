//! Placement: which lablet gets which instances, as a pure function of run and inventory.
//!
//! Equal input gives equal output: lablets are visited in the order of their peer IDs, groups by how hard they are to
//! place. Nothing here knows of executions that compete; the caller hands in what is free *after* its reservations.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{Affinity, Assignment, GroupRun, Refusal, Run, WorkloadKind};
use iptl_wire::session::{Inventory, Slots};

/// What [`placement()`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// All assignments, those that were kept included, merged and sorted by group and start.
    pub assignments: Vec<Assignment>,
    /// Lablets that could not take any instance, with the reason; a lablet that was just not needed is not among them.
    pub refused: Vec<Refusal>,
    /// Instances without a place, by group; empty where all have one.
    pub unplaced: BTreeMap<String, u32>,
    /// Lablets that have the runner and labels of at least one group.
    pub matching: u32,
}

impl Placed {
    /// Returns the number of instances without a place.
    pub fn missing(&self) -> u64 {
        self.unplaced.values().map(|n| u64::from(*n)).sum()
    }
}

/// What is left of one lablet while groups are placed: slots of each kind, and one memory for all of them.
struct Room {
    slots: BTreeMap<WorkloadKind, Slots>,
    memory_bytes: u64,
}

/// Places the instances of `run` that `kept` does not hold yet.
///
/// `inventory` says what is free beyond `kept` and beyond everything else that the caller has promised. `excluded`
/// lablets get nothing new, for the reason given. Assignments in `kept` stay as they are.
pub fn placement(
    run: &Run,
    inventory: &BTreeMap<PeerId, Inventory>,
    kept: &[Assignment],
    excluded: &BTreeMap<PeerId, String>,
) -> Placed {
    let mut rooms: BTreeMap<&PeerId, Room> = inventory
        .iter()
        .filter(|(peer, _)| !excluded.contains_key(*peer))
        .map(|(peer, i)| (peer, Room { slots: i.slots.clone(), memory_bytes: i.free_memory_bytes }))
        .collect();
    let mut assignments = kept.to_vec();
    let mut unplaced = BTreeMap::new();
    let mut got: BTreeSet<&PeerId> = kept.iter().map(|a| &a.lablet).collect();

    for (name, group) in groups_by_difficulty(run, inventory) {
        let mut open = open_ranges(name, group.count, kept);
        let wanted: u32 = open.iter().map(|(_, count)| count).sum();
        let held = |peer: &PeerId| held_of(name, peer, kept);
        let mut caps: Vec<(&PeerId, u32, u32)> = rooms
            .iter()
            .filter(|(peer, _)| inventory.get(**peer).is_some_and(|i| mismatch(group, i).is_none()))
            .map(|(peer, room)| (*peer, room_for(group, room, held(peer)), held(peer)))
            .filter(|(_, cap, _)| *cap > 0)
            .collect();
        if group.requires.affinity == Affinity::Spread {
            // The odd instances of a group go where this run has the fewest: not all groups' to the same lablet.
            caps.sort_by_key(|(peer, _, _)| {
                let of_run = assignments.iter().filter(|a: &&Assignment| a.lablet == **peer).map(|a| a.count);
                (of_run.sum::<u32>(), *peer)
            });
        }
        let shares = distribute(group.requires.affinity, wanted, &caps);
        let mut placed = 0;
        for ((peer, _, _), share) in caps.iter().zip(shares) {
            if share == 0 {
                continue;
            }
            placed += share;
            got.insert(*peer);
            if let Some(room) = rooms.get_mut(*peer) {
                if let Some(slots) = room.slots.get_mut(&group.kind) {
                    slots.free -= share;
                }
                room.memory_bytes -= u64::from(share) * group.resources.memory_bytes;
            }
            for (start, count) in take(&mut open, share) {
                assignments.push(Assignment { group: name.clone(), start, count, lablet: (*peer).clone() });
            }
        }
        if placed < wanted {
            unplaced.insert(name.clone(), wanted - placed);
        }
    }

    let refused = inventory
        .iter()
        .filter(|(peer, _)| !got.contains(peer))
        .filter_map(|(peer, i)| {
            let reason = excluded.get(peer).cloned().or_else(|| refusal(run, i))?;
            Some(Refusal { lablet: peer.clone(), reason })
        })
        .collect();
    let matching = inventory.values().filter(|i| run.groups.values().any(|g| mismatch(g, i).is_none())).count();
    Placed { assignments: merge(assignments), refused, unplaced, matching: matching as u32 }
}

/// Sorts assignments by group and start and joins ranges that touch on one lablet.
pub fn merge(mut assignments: Vec<Assignment>) -> Vec<Assignment> {
    assignments.retain(|a| a.count > 0);
    assignments.sort();
    let mut merged: Vec<Assignment> = Vec::with_capacity(assignments.len());
    for next in assignments {
        match merged.last_mut() {
            Some(last)
                if last.group == next.group
                    && last.lablet == next.lablet
                    && last.start.checked_add(last.count) == Some(next.start) =>
            {
                last.count += next.count;
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// Groups that fewest lablets match come first, then those with the largest instances.
fn groups_by_difficulty<'a>(run: &'a Run, inventory: &BTreeMap<PeerId, Inventory>) -> Vec<(&'a String, &'a GroupRun)> {
    let mut groups: Vec<_> = run
        .groups
        .iter()
        .map(|(name, group)| {
            let matching = inventory.values().filter(|i| mismatch(group, i).is_none()).count();
            (matching, std::cmp::Reverse(group.resources.memory_bytes), name, group)
        })
        .collect();
    groups.sort_by_key(|(matching, memory, name, _)| (*matching, *memory, *name));
    groups.into_iter().map(|(_, _, name, group)| (name, group)).collect()
}

/// Returns why a lablet can never take instances of the group, whatever is free.
fn mismatch(group: &GroupRun, inventory: &Inventory) -> Option<String> {
    if inventory.draining {
        return Some("draining: its owner lets it take no new work".into());
    }
    if !inventory.runs(group.kind) {
        return Some(no_runner(group.kind));
    }
    group.requires.labels.iter().find_map(|(key, want)| match inventory.labels.get(key) {
        Some(have) if have == want => None,
        Some(have) => Some(format!("label {key}={want} wanted, has {key}={have}")),
        None => Some(format!("label {key}={want} wanted, has no {key}")),
    })
}

/// Says that a lablet has no runner for a kind.
pub(crate) fn no_runner(kind: WorkloadKind) -> String {
    format!("has no {} runner", kind.name())
}

/// Names a slot of one of so many kinds: where only Wasm is spoken of, a slot is a slot.
pub(crate) fn slot_name(kind: WorkloadKind, kinds: usize) -> &'static str {
    match kind {
        WorkloadKind::Wasm if kinds <= 1 => "slot",
        WorkloadKind::Wasm => "wasm slot",
        WorkloadKind::Docker => "docker slot",
    }
}

/// Returns why no lablet can ever take instances of one of the groups that have none, whatever is free.
///
/// Where lablets give different reasons, the first that has the runner counts.
pub(crate) fn unmatched(run: &Run, placed: &Placed, inventory: &BTreeMap<PeerId, Inventory>) -> Option<String> {
    placed.unplaced.keys().filter_map(|name| run.groups.get(name)).find_map(|group| {
        let reasons: Option<Vec<String>> = inventory.values().map(|i| mismatch(group, i)).collect();
        let reasons = reasons?;
        let missing = no_runner(group.kind);
        reasons.iter().find(|why| **why != missing).or(reasons.first()).cloned()
    })
}

/// Returns why a lablet got nothing, or `None` where it was just not needed.
fn refusal(run: &Run, inventory: &Inventory) -> Option<String> {
    let mut reason = None;
    let alone = run.kinds().len() <= 1;
    for group in run.groups.values() {
        let found = mismatch(group, inventory).or_else(|| {
            if inventory.free(group.kind) == 0 {
                let total = inventory.total(group.kind);
                return Some(match alone {
                    true => format!("no free slot of {total}"),
                    false => format!("no free {} slot of {total}", group.kind.name()),
                });
            }
            (inventory.free_memory_bytes < group.resources.memory_bytes).then(|| {
                format!(
                    "{} MiB of memory free, an instance may take {} MiB",
                    inventory.free_memory_bytes >> 20,
                    group.resources.memory_bytes.div_ceil(1 << 20)
                )
            })
        })?;
        reason.get_or_insert(found);
    }
    reason
}

fn room_for(group: &GroupRun, room: &Room, held: u32) -> u32 {
    let slots = room.slots.get(&group.kind).map_or(0, |slots| slots.free);
    let by_memory = match group.resources.memory_bytes {
        0 => u32::MAX,
        each => u32::try_from(room.memory_bytes / each).unwrap_or(u32::MAX),
    };
    let by_rule = match group.requires.max_per_lablet {
        0 => u32::MAX,
        most => most.saturating_sub(held),
    };
    slots.min(by_memory).min(by_rule)
}

fn held_of(group: &str, peer: &PeerId, kept: &[Assignment]) -> u32 {
    kept.iter().filter(|a| a.group == group && a.lablet == *peer).map(|a| a.count).sum()
}

/// Returns the ranges `(start, count)` of a group that nobody holds.
fn open_ranges(group: &str, count: u32, kept: &[Assignment]) -> Vec<(u32, u32)> {
    let mut held: Vec<(u32, u32)> = kept.iter().filter(|a| a.group == group).map(|a| (a.start, a.count)).collect();
    held.sort_unstable();
    let mut open = Vec::new();
    let mut next = 0;
    for (start, len) in held {
        if start > next {
            open.push((next, start.min(count) - next));
        }
        next = next.max(start.saturating_add(len)).min(count);
    }
    if next < count {
        open.push((next, count - next));
    }
    open
}

/// Takes `wanted` indexes off the front of `open`.
fn take(open: &mut Vec<(u32, u32)>, mut wanted: u32) -> Vec<(u32, u32)> {
    let mut taken = Vec::new();
    while wanted > 0 {
        let Some((start, count)) = open.first_mut() else { break };
        let n = wanted.min(*count);
        taken.push((*start, n));
        *start += n;
        *count -= n;
        wanted -= n;
        if *count == 0 {
            open.remove(0);
        }
    }
    taken
}

/// Divides `wanted` instances over `(peer, room, already held)`; never more than the room of each.
fn distribute(affinity: Affinity, wanted: u32, caps: &[(&PeerId, u32, u32)]) -> Vec<u32> {
    let total: u64 = caps.iter().map(|(_, cap, _)| u64::from(*cap)).sum();
    if u64::from(wanted) >= total {
        return caps.iter().map(|(_, cap, _)| *cap).collect();
    }
    match affinity {
        Affinity::Balance => balance(wanted, total, caps),
        Affinity::Spread => spread(wanted, caps),
        Affinity::Pack => pack(wanted, caps),
    }
}

fn balance(wanted: u32, total: u64, caps: &[(&PeerId, u32, u32)]) -> Vec<u32> {
    let exact = |cap: u32| u128::from(wanted) * u128::from(cap);
    let mut shares: Vec<u32> = caps.iter().map(|(_, cap, _)| (exact(*cap) / u128::from(total)) as u32).collect();
    let mut order: Vec<usize> = (0..caps.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(exact(caps[*i].1) % u128::from(total)), *i));
    let mut rest = wanted - shares.iter().sum::<u32>();
    // A remainder is below one instance for each lablet that has one, and its floor is then below its room.
    for i in order {
        if rest == 0 {
            break;
        }
        if shares[i] < caps[i].1 {
            shares[i] += 1;
            rest -= 1;
        }
    }
    shares
}

fn spread(wanted: u32, caps: &[(&PeerId, u32, u32)]) -> Vec<u32> {
    let at = |level: u32| -> u64 {
        caps.iter().map(|(_, cap, held)| u64::from(level.saturating_sub(*held).min(*cap))).sum()
    };
    // The highest level that does not need more than is wanted; one more instance each for the rest.
    let (mut low, mut high) = (0u32, u32::MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if at(middle) <= u64::from(wanted) { low = middle } else { high = middle - 1 }
    }
    let mut shares: Vec<u32> = caps.iter().map(|(_, cap, held)| low.saturating_sub(*held).min(*cap)).collect();
    let mut rest = wanted - shares.iter().sum::<u32>();
    for (share, (_, cap, held)) in shares.iter_mut().zip(caps) {
        if rest > 0 && *share < *cap && *held <= low {
            *share += 1;
            rest -= 1;
        }
    }
    shares
}

fn pack(wanted: u32, caps: &[(&PeerId, u32, u32)]) -> Vec<u32> {
    let mut shares = vec![0; caps.len()];
    let mut order: Vec<usize> = (0..caps.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(caps[*i].1), *i));
    let mut rest = wanted;
    while rest > 0 && !order.is_empty() {
        // The smallest that holds the whole rest, else the largest.
        let fits = order.iter().rposition(|i| caps[*i].1 >= rest);
        let chosen = order.remove(fits.unwrap_or(0));
        shares[chosen] = caps[chosen].1.min(rest);
        rest -= shares[chosen];
    }
    shares
}
