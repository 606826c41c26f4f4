//! What lablets have free, for whom, and what a run waits for where it is not enough.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, Run, WorkloadKind};
use iptl_wire::session::{CellPhase, Inventory};

use super::Orchestrator;
use super::state::{Bids, Exec, Stage, memory_of};
use crate::placement::{Plan, Room, labelled, slot_name, unmatched};

/// What lablets that have a session have free after all that was promised, sorted by peer.
pub(super) struct Rooms<'a> {
    rooms: Vec<Room<'a>>,
    /// Executions that hold a part of each, and whether they have it for themselves.
    holders: Vec<Vec<(ExecutionId, bool)>>,
}

impl<'a> Rooms<'a> {
    /// Returns what an execution may have of it, within what lablets bid for it; one that wants it `alone` gets nothing
    /// of what another has a part of, and nobody of what another has for itself.
    pub(super) fn beside(&self, execution: Option<ExecutionId>, alone: bool, bids: &Bids) -> Vec<Room<'a>> {
        let mut rooms = self.rooms.clone();
        for (room, holders) in rooms.iter_mut().zip(&self.holders) {
            if holders.iter().any(|(holder, for_itself)| Some(*holder) != execution && (alone || *for_itself)) {
                leave_nothing(room);
            }
        }
        for (lablet, (slots, _)) in bids {
            if let Some(room) = find(&mut rooms, lablet) {
                room.free.at_most(|kind| slots.get(&kind).copied().unwrap_or(0));
            }
        }
        rooms
    }

    /// Whether no lablet has a session.
    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

/// Finds the room of a lablet among those that are sorted by peer.
pub(super) fn find<'r, 'a>(rooms: &'r mut [Room<'a>], lablet: &PeerId) -> Option<&'r mut Room<'a>> {
    let at = rooms.binary_search_by(|room| room.peer.cmp(lablet)).ok()?;
    rooms.get_mut(at)
}

/// Takes off a room what assignments of a run need.
pub(super) fn take(room: &mut Room<'_>, run: &Run, assignments: &[Assignment]) {
    for a in assignments {
        if let Some(group) = run.groups.get(&a.group) {
            room.free.take(group.kind, a.count);
        }
    }
    room.memory_bytes = room.memory_bytes.saturating_sub(memory_of(run, assignments));
}

impl Orchestrator {
    /// Returns what lablets have free after all that was promised. What `except` was only offered is not counted; what
    /// its cells hold is.
    pub(super) fn rooms(&self, except: Option<ExecutionId>) -> Rooms<'_> {
        let there = self.lablets.iter().filter(|(_, l)| l.session.is_some());
        let mut rooms: Vec<Room<'_>> = there.map(|(peer, l)| Room::of(peer, &l.inventory)).collect();
        let mut holders: Vec<Vec<(ExecutionId, bool)>> = vec![Vec::new(); rooms.len()];
        let at = |rooms: &[Room<'_>], lablet: &PeerId| rooms.binary_search_by(|room| room.peer.cmp(lablet)).ok();
        for (id, exec) in &self.executions {
            let for_itself = exec.run.run.placing.dedicated;
            for (lablet, cell) in exec.live_cells() {
                let Some(at) = at(&rooms, lablet) else { continue };
                holders[at].push((*id, for_itself));
                if !self.lablets.get(lablet).is_some_and(|l| l.lists(id, &cell.epoch)) {
                    take(&mut rooms[at], &exec.run.run, &cell.assignments);
                }
            }
            if matches!(exec.stage, Stage::Offered { .. }) {
                for assignment in &exec.assignments {
                    let Some(at) = at(&rooms, &assignment.lablet) else { continue };
                    holders[at].push((*id, for_itself));
                    if Some(*id) != except {
                        take(&mut rooms[at], &exec.run.run, std::slice::from_ref(assignment));
                    }
                }
            }
        }
        // What is over here may still be there.
        let there = self.lablets.values().filter(|l| l.session.is_some());
        for (holders, state) in holders.iter_mut().zip(there) {
            for status in state.cells.iter().filter(|status| status.phase != CellPhase::Ended) {
                let id = status.cell.execution;
                let for_itself = match self.executions.get(&id) {
                    Some(exec) => exec.run.run.placing.dedicated,
                    None => self.over_alone.contains(&id),
                };
                holders.push((id, for_itself));
            }
        }
        Rooms { rooms, holders }
    }

    /// Returns what lablets have free as an inventory of each.
    pub(super) fn available(&self) -> BTreeMap<PeerId, Inventory> {
        let rooms = self.rooms(None).beside(None, false, &BTreeMap::new());
        let inventory = |room: Room<'_>| {
            let mut inventory = room.inventory.clone();
            for (kind, slots) in &mut inventory.slots {
                slots.free = room.free.get(*kind);
            }
            inventory.free_memory_bytes = room.memory_bytes;
            (room.peer.clone(), inventory)
        };
        rooms.into_iter().map(inventory).collect()
    }

    /// Returns what lablets would have free if they held nothing, sorted by peer.
    pub(super) fn emptied(&self) -> Vec<Room<'_>> {
        let there = self.lablets.iter().filter(|(_, l)| l.session.is_some());
        there
            .map(|(peer, l)| {
                // What the owner lends is less than what the machine has: it is what is free and what cells hold.
                let held = self.executions.iter().filter_map(|(id, exec)| {
                    let cell = exec.cells.get(peer).filter(|cell| !cell.over)?;
                    l.lists(id, &cell.epoch).then(|| memory_of(&exec.run.run, &cell.assignments))
                });
                let memory_bytes = held.fold(l.inventory.free_memory_bytes, u64::saturating_add);
                Room::emptied(peer, &l.inventory, memory_bytes)
            })
            .collect()
    }

    /// Returns the lablets of which an execution gets nothing, since another has them for itself; or, where it wants
    /// `alone` what it gets, since another has a part of them.
    fn not_to_share(&self, execution: Option<ExecutionId>, alone: bool) -> BTreeSet<&PeerId> {
        let others = |id: &ExecutionId| Some(*id) != execution;
        let counts = |exec: &Exec| alone || exec.run.run.placing.dedicated;
        let mut taken = BTreeSet::new();
        for (_, exec) in self.executions.iter().filter(|(id, exec)| others(id) && counts(exec)) {
            taken.extend(exec.live_cells().map(|(lablet, _)| lablet));
            if matches!(exec.stage, Stage::Offered { .. }) {
                taken.extend(exec.assignments.iter().map(|assignment| &assignment.lablet));
            }
        }
        // What is over here may still be there.
        for (lablet, state) in &self.lablets {
            let held = |id: &ExecutionId| match self.executions.get(id) {
                Some(exec) => counts(exec),
                None => alone || self.over_alone.contains(id),
            };
            let mut cells = state.cells.iter().filter(|status| status.phase != CellPhase::Ended);
            if cells.any(|status| others(&status.cell.execution) && held(&status.cell.execution)) {
                taken.insert(lablet);
            }
        }
        taken
    }

    /// Says what a run waits for that `plan` could not place in `bidden`, where nobody waited before it.
    pub(super) fn reason_to_wait(
        &self,
        exec: &Exec,
        plan: &Plan,
        base: &Rooms<'_>,
        bidden: &[Room<'_>],
        bans: &BTreeMap<PeerId, String>,
    ) -> String {
        let id = exec.node.id();
        let run = &exec.run.run;
        if base.is_empty() {
            return "waits for a lablet: none is connected".into();
        }
        let free = base.beside(Some(id), run.placing.dedicated, &BTreeMap::new());
        if let Some(why) = unmatched(run, plan, &free) {
            return format!("waits for a lablet that matches: none of {} does ({why})", free.len());
        }
        let shared = self.not_to_share(Some(id), run.placing.dedicated).len();
        let note = match (shared, run.placing.dedicated) {
            (0, _) => String::new(),
            (n, true) => format!(", where nothing else runs: {} of {} have other work", n, free.len()),
            (n, false) => format!("; {n} of {} are kept for a run alone", free.len()),
        };
        let mut short = short_of_labels(run, plan, &free);
        if short.is_empty() {
            short = short_of_kinds(run, &free);
        }
        if short.is_empty() {
            let (missing, wanted) = (plan.missing(), run.instances());
            let refused = plan.refused(run, bidden, bans).next();
            let why = refused.map_or("memory, labels or a bound per lablet".to_owned(), |r| r.reason);
            return format!("waits for room for {missing} of {wanted} instances ({why}){note}");
        }
        format!("waits for {}{note}", short.join("; "))
    }
}

/// Takes all that is free of a room.
pub(super) fn leave_nothing(room: &mut Room<'_>) {
    room.free.at_most(|_| 0);
}

/// Says of which kinds too little is free, labels aside.
fn short_of_kinds(run: &Run, free: &[Room<'_>]) -> Vec<String> {
    let wanted = run.kinds();
    let kinds = wanted.len();
    let short = wanted.into_iter().filter_map(|(kind, wanted)| short_of(wanted, kind, kinds, "", &mut free.iter()));
    short.collect()
}

/// Says of which labels too little is free: all groups of a kind with equal labels together.
fn short_of_labels(run: &Run, plan: &Plan, free: &[Room<'_>]) -> Vec<String> {
    let mut wanted: BTreeMap<(WorkloadKind, &BTreeMap<String, String>), u64> = BTreeMap::new();
    let mut unplaced = BTreeSet::new();
    for (name, group) in run.groups.iter().filter(|(_, group)| !group.requires.labels.is_empty()) {
        let these = (group.kind, &group.requires.labels);
        *wanted.entry(these).or_default() += u64::from(group.count);
        if plan.unplaced.contains_key(name) {
            unplaced.insert(these);
        }
    }
    let kinds = run.kinds().len();
    let short =
        wanted.into_iter().filter(|(these, _)| unplaced.contains(these)).filter_map(|((kind, labels), wanted)| {
            let named: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let label = format!(" labelled {}", named.join(", "));
            short_of(wanted, kind, kinds, &label, &mut free.iter().filter(|room| labelled(labels, room.inventory)))
        });
    short.collect()
}

/// Says how much is free of what is wanted, where that is less: `20 slots labelled nat=symmetric, 17 free on 4 lablets`.
fn short_of(
    wanted: u64,
    kind: WorkloadKind,
    kinds: usize,
    label: &str,
    lablets: &mut dyn Iterator<Item = &Room<'_>>,
) -> Option<String> {
    let rooms: Vec<u64> = lablets.map(|room| u64::from(room.free.get(kind))).filter(|room| *room > 0).collect();
    let slots: u64 = rooms.iter().sum();
    if slots >= wanted {
        return None;
    }
    let name = slot_name(kind, kinds);
    let lablets = if rooms.len() == 1 { "lablet" } else { "lablets" };
    Some(format!("{wanted} {name}s{label}, {slots} free on {} {lablets}", rooms.len()))
}
