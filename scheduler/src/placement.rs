//! Placement: which lablet gets which instances, as a pure function of run and inventory.
//!
//! Equal input gives equal output: lablets are visited in the order of their peer IDs, groups by how hard they are to
//! place; among equals, those go first that have a workload ready. Nothing here knows of executions that compete; the caller hands in what is free *after* its reservations.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Affinity, Assignment, Destination, GroupRun, Refusal, Run, WorkloadKind};
use iptl_wire::session::{Inventory, WITHOUT_DOCKER};

/// Characters of what a lablet says of itself that are told on.
const MAX_WHY: usize = 200;

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

/// Label that says which lablets fail together: a group that spreads is spread over regions before lablets.
pub const REGION: &str = "region";

/// Slots by kind that are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Free([u32; 2]);

impl Free {
    const KINDS: [WorkloadKind; 2] = [WorkloadKind::Wasm, WorkloadKind::Docker];

    /// Takes over what an inventory says is free, or what it has in all.
    fn of(inventory: &Inventory, count: fn(&Inventory, WorkloadKind) -> u32) -> Free {
        Free(Free::KINDS.map(|kind| count(inventory, kind)))
    }

    pub(crate) fn get(self, kind: WorkloadKind) -> u32 {
        self.0[Free::at(kind)]
    }

    /// Takes slots away, as far as there are any.
    pub(crate) fn take(&mut self, kind: WorkloadKind, count: u32) {
        let free = &mut self.0[Free::at(kind)];
        *free = free.saturating_sub(count);
    }

    /// Leaves no more than `most(kind)` of each kind.
    pub(crate) fn at_most(&mut self, most: impl Fn(WorkloadKind) -> u32) {
        for (free, kind) in self.0.iter_mut().zip(Free::KINDS) {
            *free = (*free).min(most(kind));
        }
    }

    fn at(kind: WorkloadKind) -> usize {
        match kind {
            WorkloadKind::Wasm => 0,
            WorkloadKind::Docker => 1,
        }
    }
}

/// What a lablet can take beyond all that was promised: what its inventory says, less what the caller took off it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    pub peer: &'a PeerId,
    /// What does not change with what is taken: labels, runners, whether it is draining.
    pub inventory: &'a Inventory,
    pub free: Free,
    /// One memory for all kinds.
    pub memory_bytes: u64,
}

impl<'a> Room<'a> {
    /// All that an inventory says is free.
    pub(crate) fn of(peer: &'a PeerId, inventory: &'a Inventory) -> Room<'a> {
        let free = Free::of(inventory, Inventory::free);
        Room { peer, inventory, free, memory_bytes: inventory.free_memory_bytes }
    }

    /// All that an inventory says there is.
    pub(crate) fn emptied(peer: &'a PeerId, inventory: &'a Inventory, memory_bytes: u64) -> Room<'a> {
        Room { peer, inventory, free: Free::of(inventory, Inventory::total), memory_bytes }
    }
}

/// Where instances go, and what is left over.
pub(crate) struct Plan {
    /// All assignments, those that were kept included, merged and sorted by group and start.
    pub assignments: Vec<Assignment>,
    /// Instances without a place, by group.
    pub unplaced: BTreeMap<String, u32>,
    matching: u32,
    /// Instances of the run that each lablet holds, kept ones included, in the order of the rooms.
    of_run: Vec<u32>,
}

impl Plan {
    /// Whether every instance has a place.
    pub(crate) fn is_whole(&self) -> bool {
        self.unplaced.is_empty()
    }

    /// Returns the number of instances without a place.
    pub(crate) fn missing(&self) -> u64 {
        self.unplaced.values().map(|n| u64::from(*n)).sum()
    }

    /// Returns what the lablets are that got nothing and could not take any instance, with the reason.
    pub(crate) fn refused<'a>(
        &'a self,
        run: &'a Run,
        rooms: &'a [Room<'a>],
        excluded: &'a BTreeMap<PeerId, String>,
    ) -> impl Iterator<Item = Refusal> + 'a {
        let idle = rooms.iter().zip(&self.of_run).filter(|(_, of_run)| **of_run == 0);
        idle.filter_map(|(room, _)| {
            let reason = excluded.get(room.peer).cloned().or_else(|| refusal(run, room))?;
            Some(Refusal { lablet: room.peer.clone(), reason })
        })
    }

    /// Says all of it.
    pub(crate) fn placed(self, run: &Run, rooms: &[Room<'_>], excluded: &BTreeMap<PeerId, String>) -> Placed {
        let refused = self.refused(run, rooms, excluded).collect();
        let Plan { assignments, unplaced, matching, of_run: _ } = self;
        Placed { assignments, refused, unplaced, matching }
    }
}

/// A lablet with room for a group.
#[derive(Clone, Copy)]
struct Cap {
    /// Which, among all lablets.
    room: usize,
    /// Instances that it can still take.
    free: u32,
    /// Instances of the group that it holds already.
    held: u32,
    /// It would have to fetch the workload: among equals, others go before it.
    is_far: bool,
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
    let rooms: Vec<Room<'_>> = inventory.iter().map(|(peer, inventory)| Room::of(peer, inventory)).collect();
    plan(run, &rooms, kept, excluded).placed(run, &rooms, excluded)
}

/// Places as [`placement()`] does, in rooms that are sorted by peer, and leaves out to say who was refused.
pub(crate) fn plan(run: &Run, rooms: &[Room<'_>], kept: &[Assignment], excluded: &BTreeMap<PeerId, String>) -> Plan {
    let mut kept_of_run: BTreeMap<&PeerId, u32> = BTreeMap::new();
    let mut of_group: BTreeMap<(&str, &PeerId), u32> = BTreeMap::new();
    for a in kept {
        *kept_of_run.entry(&a.lablet).or_default() += a.count;
        *of_group.entry((&a.group, &a.lablet)).or_default() += a.count;
    }
    let mut of_run: Vec<u32> = match kept_of_run.is_empty() {
        true => vec![0; rooms.len()],
        false => rooms.iter().map(|room| kept_of_run.get(room.peer).copied().unwrap_or(0)).collect(),
    };
    let mut left: Vec<(Free, u64)> = rooms.iter().map(|room| (room.free, room.memory_bytes)).collect();
    let mut assignments = kept.to_vec();
    let mut unplaced = BTreeMap::new();
    let mut matches = vec![false; rooms.len()];

    for (name, group, matching) in groups_by_difficulty(run, rooms) {
        for at in &matching {
            matches[*at] = true;
        }
        // Those that are to be together go as one.
        let unit = group.requires.together.unwrap_or(1).max(1);
        let open = open_ranges(name, group.count, kept);
        let mut open = if unit > 1 { cut(&open, unit) } else { open };
        let instances: u32 = open.iter().map(|(_, count)| count).sum();
        let wanted = if unit > 1 { open.len() as u32 } else { instances };
        let mut caps: Vec<Cap> = matching
            .into_iter()
            .filter(|at| excluded.is_empty() || !excluded.contains_key(rooms[*at].peer))
            .map(|at| {
                let held = match of_group.is_empty() {
                    true => 0,
                    false => of_group.get(&(name.as_str(), rooms[at].peer)).copied().unwrap_or(0),
                };
                let is_far = !rooms[at].inventory.has_ready(&group.workload);
                Cap { room: at, free: room_for(group, left[at], held) / unit, held: held / unit, is_far }
            })
            .filter(|cap| unit > 1 || cap.free > 0)
            .collect();
        if group.requires.affinity == Affinity::Spread {
            // The odd instances of a group go where this run has the fewest: not all groups' to the same lablet.
            caps.sort_by_key(|cap| (of_run[cap.room], cap.is_far, cap.room));
        }
        let shares = distribute(group.requires.affinity, wanted, &caps, rooms);
        let before = if unit > 1 { left.clone() } else { Vec::new() };
        let mut placed = 0;
        let mut place = |cap: &Cap, start, count| {
            placed += count;
            of_run[cap.room] += count;
            let (free, memory_bytes) = &mut left[cap.room];
            free.take(group.kind, count);
            *memory_bytes -= u64::from(count) * group.resources.memory_bytes;
            let lablet = rooms[cap.room].peer.clone();
            assignments.push(Assignment { group: name.clone(), start, count, lablet });
        };
        let mut taken: Vec<u32> = vec![0; caps.len()];
        for ((cap, share), taken) in caps.iter().zip(shares).zip(&mut taken) {
            let mut take_it = |start, count| {
                *taken += count;
                place(cap, start, count);
            };
            match unit {
                1 => take(&mut open, share, take_it),
                _ => open
                    .split_off(open.len() - share as usize)
                    .into_iter()
                    .rev()
                    .for_each(|(start, count)| take_it(start, count)),
            }
        }
        if unit > 1 {
            // The last may be fewer than others, and have room where no others do.
            open.retain(|(start, count)| {
                let room = |at: &usize| {
                    let cap = &caps[*at];
                    let held = of_group.get(&(name.as_str(), rooms[cap.room].peer)).copied().unwrap_or(0);
                    room_for(group, before[cap.room], held).saturating_sub(taken[*at]) >= *count
                };
                let Some(at) = (0..caps.len()).find(room) else { return true };
                taken[at] += count;
                place(&caps[at], *start, *count);
                false
            });
        }
        if placed < instances {
            unplaced.insert(name.clone(), instances - placed);
        }
    }
    let matching = matches.into_iter().filter(|matches| *matches).count();
    Plan { assignments: merge(assignments), unplaced, matching: matching as u32, of_run }
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

/// Groups that fewest lablets match come first, then those with the largest instances; each with the lablets that match.
fn groups_by_difficulty<'a>(run: &'a Run, rooms: &[Room<'_>]) -> Vec<(&'a String, &'a GroupRun, Vec<usize>)> {
    let mut groups: Vec<_> = run
        .groups
        .iter()
        .map(|(name, group)| {
            let matching = rooms.iter().enumerate().filter(|(_, room)| matches(group, room.inventory));
            (name, group, matching.map(|(at, _)| at).collect::<Vec<_>>())
        })
        .collect();
    groups.sort_by_key(|(name, group, matching)| {
        (matching.len(), std::cmp::Reverse(group.resources.memory_bytes), *name)
    });
    groups
}

/// Whether a lablet can take instances of the group, where enough is free.
fn matches(group: &GroupRun, inventory: &Inventory) -> bool {
    !inventory.draining
        && inventory.runs(group.kind)
        && labelled(&group.requires.labels, inventory)
        && places_outside(group).all(|place| grants(inventory, place))
}

/// Returns the label under which a lablet says that its owner grants a way out of the lab to a place.
pub fn egress_label(place: &Destination) -> String {
    format!("{EGRESS}{place}")
}

/// What such labels begin with; labels that plans may ask for have no slash.
pub const EGRESS: &str = "egress/";

/// Their value.
pub const GRANTED: &str = "granted";

fn places_outside(group: &GroupRun) -> impl Iterator<Item = &Destination> {
    group.container.iter().flat_map(|container| &container.egress)
}

fn grants(inventory: &Inventory, place: &Destination) -> bool {
    inventory.labels.get(&egress_label(place)).is_some_and(|value| value == GRANTED)
}

/// Returns why a lablet can never take instances of the group, whatever is free.
fn mismatch(group: &GroupRun, inventory: &Inventory) -> Option<String> {
    if inventory.draining {
        return Some("draining: its owner lets it take no new work".into());
    }
    if !inventory.runs(group.kind) {
        return Some(lacks_runner(group.kind, inventory));
    }
    let other_label = group.requires.labels.iter().find_map(|(key, want)| match inventory.labels.get(key) {
        Some(have) if have == want => None,
        Some(have) => Some(format!("label {key}={want} wanted, has {key}={have}")),
        None => Some(format!("label {key}={want} wanted, has no {key}")),
    });
    other_label.or_else(|| {
        let place = places_outside(group).find(|place| !grants(inventory, place))?;
        Some(format!("way out of the lab to {place} wanted, its owner does not grant it"))
    })
}

/// Whether a lablet has labels with these values.
pub(crate) fn labelled(labels: &BTreeMap<String, String>, inventory: &Inventory) -> bool {
    labels.iter().all(|(key, want)| inventory.labels.get(key) == Some(want))
}

/// Says that a lablet has no runner for a kind.
pub(crate) fn no_runner(kind: WorkloadKind) -> String {
    format!("has no {} runner", kind.name())
}

/// Says that a lablet has no runner for a kind, and why, where it says that itself.
fn lacks_runner(kind: WorkloadKind, inventory: &Inventory) -> String {
    let missing = no_runner(kind);
    match (kind, inventory.labels.get(WITHOUT_DOCKER)) {
        (WorkloadKind::Docker, Some(why)) => {
            let why: String = why.chars().filter(|c| !c.is_control()).take(MAX_WHY).collect();
            format!("{missing}: {why}")
        }
        (WorkloadKind::Docker, None) | (WorkloadKind::Wasm, _) => missing,
    }
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
pub(crate) fn unmatched(run: &Run, plan: &Plan, rooms: &[Room<'_>]) -> Option<String> {
    plan.unplaced.keys().filter_map(|name| run.groups.get(name)).find_map(|group| {
        let reasons: Option<Vec<String>> = rooms.iter().map(|room| mismatch(group, room.inventory)).collect();
        let reasons = reasons?;
        let missing = no_runner(group.kind);
        reasons.iter().find(|why| !why.starts_with(&missing)).or(reasons.first()).cloned()
    })
}

/// Returns for each group with instances that have no place why each lablet does not take them, for people who ask
/// before they run. Lablets that are refused altogether have said why.
pub fn left_out(run: &Run, placed: &Placed, inventory: &BTreeMap<PeerId, Inventory>) -> Vec<Refusal> {
    let kinds = run.kinds().len();
    let mut left_out = Vec::new();
    for (name, group) in placed.unplaced.keys().filter_map(|name| run.groups.get_key_value(name)) {
        for (peer, inventory) in inventory {
            if placed.refused.iter().any(|refusal| refusal.lablet == *peer) {
                continue;
            }
            let why = mismatch(group, inventory).unwrap_or_else(|| {
                let of_kind = |a: &&Assignment| {
                    a.lablet == *peer && run.groups.get(&a.group).is_some_and(|other| other.kind == group.kind)
                };
                let taken: u32 = placed.assignments.iter().filter(of_kind).map(|a| a.count).sum();
                let (free, slot) = (inventory.free(group.kind), slot_name(group.kind, kinds));
                match (free, taken < free) {
                    (0, _) => format!("no free {slot} of {}", inventory.total(group.kind)),
                    (_, false) => format!("this run takes all its {free} free {slot}s"),
                    (_, true) => {
                        "neither its memory nor what the group allows on one lablet has room for more".to_owned()
                    }
                }
            });
            left_out.push(Refusal { lablet: peer.clone(), reason: format!("group {name}: {why}") });
        }
    }
    left_out
}

/// Returns why a lablet got nothing, or `None` where it was just not needed.
fn refusal(run: &Run, room: &Room<'_>) -> Option<String> {
    let inventory = room.inventory;
    let mut reason = None;
    let alone = run.kinds().len() <= 1;
    for group in run.groups.values() {
        let found = mismatch(group, inventory).or_else(|| {
            if room.free.get(group.kind) == 0 {
                let total = inventory.total(group.kind);
                return Some(match alone {
                    true => format!("no free slot of {total}"),
                    false => format!("no free {} slot of {total}", group.kind.name()),
                });
            }
            (room.memory_bytes < group.resources.memory_bytes).then(|| {
                format!(
                    "{} MiB of memory free, an instance may take {} MiB",
                    room.memory_bytes >> 20,
                    group.resources.memory_bytes.div_ceil(1 << 20)
                )
            })
        })?;
        reason.get_or_insert(found);
    }
    reason
}

fn room_for(group: &GroupRun, (free, memory_bytes): (Free, u64), held: u32) -> u32 {
    let slots = free.get(group.kind);
    let by_memory = match group.resources.memory_bytes {
        0 => u32::MAX,
        each => u32::try_from(memory_bytes / each).unwrap_or(u32::MAX),
    };
    let by_rule = match group.requires.max_per_lablet {
        0 => u32::MAX,
        most => most.saturating_sub(held),
    };
    slots.min(by_memory).min(by_rule)
}

/// Returns the ranges `(start, count)` of a group that nobody holds, the last one first.
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
    open.reverse();
    open
}

/// Cuts ranges at multiples of `unit`, in their order.
fn cut(open: &[(u32, u32)], unit: u32) -> Vec<(u32, u32)> {
    let mut pieces = Vec::new();
    for (start, count) in open.iter().rev() {
        let (mut at, end) = (*start, start + count);
        while at < end {
            let next = (at - at % unit).saturating_add(unit).min(end);
            pieces.push((at, next - at));
            at = next;
        }
    }
    pieces.reverse();
    pieces
}

/// Takes `wanted` indexes off `open`, whose last range is the first.
fn take(open: &mut Vec<(u32, u32)>, mut wanted: u32, mut taken: impl FnMut(u32, u32)) {
    while wanted > 0 {
        let Some((start, count)) = open.last_mut() else { break };
        let n = wanted.min(*count);
        taken(*start, n);
        *start += n;
        *count -= n;
        wanted -= n;
        if *count == 0 {
            open.pop();
        }
    }
}

/// Divides `wanted` instances over lablets; never more than the room of each.
fn distribute(affinity: Affinity, wanted: u32, caps: &[Cap], rooms: &[Room<'_>]) -> Vec<u32> {
    let total: u64 = caps.iter().map(|cap| u64::from(cap.free)).sum();
    if u64::from(wanted) >= total {
        return caps.iter().map(|cap| cap.free).collect();
    }
    match affinity {
        Affinity::Balance => balance(wanted, total, caps),
        Affinity::Spread => spread_over_regions(wanted, caps, rooms),
        Affinity::Pack => pack(wanted, caps),
    }
}

fn balance(wanted: u32, total: u64, caps: &[Cap]) -> Vec<u32> {
    let exact = |cap: u32| u128::from(wanted) * u128::from(cap);
    let mut shares: Vec<u32> = caps.iter().map(|cap| (exact(cap.free) / u128::from(total)) as u32).collect();
    let mut order: Vec<usize> = (0..caps.len()).collect();
    order.sort_by_cached_key(|i| (std::cmp::Reverse(exact(caps[*i].free) % u128::from(total)), caps[*i].is_far, *i));
    let mut rest = wanted - shares.iter().sum::<u32>();
    // A remainder is below one instance for each lablet that has one, and its floor is then below its room.
    for i in order {
        if rest == 0 {
            break;
        }
        if shares[i] < caps[i].free {
            shares[i] += 1;
            rest -= 1;
        }
    }
    shares
}

/// Spreads over regions first, then over the lablets of each; a lablet without a region fails alone.
fn spread_over_regions(wanted: u32, caps: &[Cap], rooms: &[Room<'_>]) -> Vec<u32> {
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut regions: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, cap) in caps.iter().enumerate() {
        match rooms[cap.room].inventory.labels.get(REGION) {
            Some(region) => {
                let region = *regions.entry(region).or_insert_with(|| {
                    members.push(Vec::new());
                    members.len() - 1
                });
                members[region].push(at);
            }
            None => members.push(vec![at]),
        }
    }
    let sum = |of: &[usize], what: fn(&Cap) -> u32| of.iter().map(|at| what(&caps[*at])).fold(0, u32::saturating_add);
    let whole: Vec<(u32, u32)> = members.iter().map(|of| (sum(of, |cap| cap.free), sum(of, |cap| cap.held))).collect();
    let mut shares = vec![0; caps.len()];
    for (of, share) in members.iter().zip(spread(wanted, &whole)) {
        let each: Vec<(u32, u32)> = of.iter().map(|at| (caps[*at].free, caps[*at].held)).collect();
        for (at, share) in of.iter().zip(spread(share, &each)) {
            shares[*at] = share;
        }
    }
    shares
}

/// Divides as evenly as room allows, what is held already counted: `(room, held)` of each.
fn spread(wanted: u32, caps: &[(u32, u32)]) -> Vec<u32> {
    let at =
        |level: u32| -> u64 { caps.iter().map(|(cap, held)| u64::from(level.saturating_sub(*held).min(*cap))).sum() };
    // The highest level that does not need more than is wanted; one more instance each for the rest.
    let (mut low, mut high) = (0u32, u32::MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if at(middle) <= u64::from(wanted) { low = middle } else { high = middle - 1 }
    }
    let mut shares: Vec<u32> = caps.iter().map(|(cap, held)| low.saturating_sub(*held).min(*cap)).collect();
    let mut rest = wanted - shares.iter().sum::<u32>();
    for (share, (cap, held)) in shares.iter_mut().zip(caps) {
        if rest > 0 && *share < *cap && *held <= low {
            *share += 1;
            rest -= 1;
        }
    }
    shares
}

fn pack(wanted: u32, caps: &[Cap]) -> Vec<u32> {
    let mut shares = vec![0; caps.len()];
    // Smallest first: the largest is taken off the end, the first that holds the whole rest ends it.
    let mut order: Vec<usize> = (0..caps.len()).collect();
    order.sort_by_key(|i| (caps[*i].free, caps[*i].is_far, std::cmp::Reverse(*i)));
    let mut rest = wanted;
    while rest > 0 && !order.is_empty() {
        let fits = order.partition_point(|i| caps[*i].free < rest);
        let last = order.len() - 1;
        let at = if fits <= last {
            fits
        } else {
            let largest = caps[order[last]].free;
            let first = order.partition_point(|i| caps[*i].free < largest);
            if caps[order[first]].is_far { last } else { first }
        };
        let chosen = order.remove(at);
        shares[chosen] = caps[chosen].free.min(rest);
        rest -= shares[chosen];
    }
    shares
}
