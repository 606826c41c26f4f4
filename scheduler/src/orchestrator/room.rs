//! What lablets have free, for whom, and what a run waits for where it is not enough.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, ExecutionId, Run, WorkloadKind};
use iptl_wire::session::{CellPhase, Inventory};

use super::state::{Bids, Exec, Stage, kinds_of, memory_of};
use super::{Orchestrator, cell_ref};
use crate::placement::{Placed, labelled, slot_name, unmatched};

impl Orchestrator {
    /// Returns what lablets have free after all that was promised, within what they bid for `bids`' execution.
    ///
    /// What `except` was only offered is not counted; what its cells hold is. A lablet that somebody has for themselves
    /// has nothing free for others.
    pub(super) fn available(&self, except: Option<ExecutionId>, bids: &Bids) -> BTreeMap<PeerId, Inventory> {
        let mut free: BTreeMap<PeerId, Inventory> = self
            .lablets
            .iter()
            .filter(|(_, l)| l.session.is_some())
            .map(|(peer, l)| (peer.clone(), l.inventory.clone()))
            .collect();
        let mut take = |lablet: &PeerId, exec: &Exec, assignments: &[Assignment]| {
            if let Some(i) = free.get_mut(lablet) {
                i.take(&kinds_of(&exec.run.run, assignments));
                i.free_memory_bytes = i.free_memory_bytes.saturating_sub(memory_of(&exec.run.run, assignments));
            }
        };
        for (id, exec) in &self.executions {
            for (lablet, cell) in exec.live_cells() {
                let named = cell_ref(*id, &cell.epoch);
                let counted = self.lablets.get(lablet).is_some_and(|l| l.cells.iter().any(|s| s.cell == named));
                if !counted {
                    take(lablet, exec, &cell.assignments);
                }
            }
            if matches!(exec.stage, Stage::Offered { .. }) && Some(*id) != except {
                for assignment in &exec.assignments {
                    take(&assignment.lablet, exec, std::slice::from_ref(assignment));
                }
            }
        }
        let alone = except.and_then(|id| self.executions.get(&id)).is_some_and(|exec| exec.run.run.placing.dedicated);
        for lablet in self.not_to_share(except, alone) {
            if let Some(i) = free.get_mut(&lablet) {
                leave_nothing(i);
            }
        }
        for (lablet, (slots, _)) in bids {
            if let Some(i) = free.get_mut(lablet) {
                for (kind, has) in &mut i.slots {
                    has.free = has.free.min(slots.get(kind).copied().unwrap_or(0));
                }
            }
        }
        free
    }

    /// Returns what lablets would have free if they held nothing.
    pub(super) fn emptied(&self) -> BTreeMap<PeerId, Inventory> {
        self.lablets
            .iter()
            .filter(|(_, l)| l.session.is_some())
            .map(|(peer, l)| {
                let mut inventory = l.inventory.clone();
                for slots in inventory.slots.values_mut() {
                    slots.free = slots.total;
                }
                // What the owner lends is less than what the machine has: it is what is free and what cells hold.
                let held = self.executions.iter().filter_map(|(id, exec)| {
                    let (_, cell) = exec.live_cells().find(|(lablet, _)| *lablet == peer)?;
                    let named = cell_ref(*id, &cell.epoch);
                    l.cells.iter().any(|s| s.cell == named).then(|| memory_of(&exec.run.run, &cell.assignments))
                });
                inventory.free_memory_bytes = held.fold(inventory.free_memory_bytes, u64::saturating_add);
                (peer.clone(), inventory)
            })
            .collect()
    }

    /// Returns the lablets of which an execution gets nothing, since another has them for itself; or, where it wants
    /// `alone` what it gets, since another has a part of them.
    pub(super) fn not_to_share(&self, execution: Option<ExecutionId>, alone: bool) -> BTreeSet<PeerId> {
        let others = |id: &ExecutionId| Some(*id) != execution;
        let counts = |exec: &Exec| alone || exec.run.run.placing.dedicated;
        let mut taken = BTreeSet::new();
        for (_, exec) in self.executions.iter().filter(|(id, exec)| others(id) && counts(exec)) {
            taken.extend(exec.live_cells().map(|(lablet, _)| lablet.clone()));
            if matches!(exec.stage, Stage::Offered { .. }) {
                taken.extend(exec.assignments.iter().map(|assignment| assignment.lablet.clone()));
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
                taken.insert(lablet.clone());
            }
        }
        taken
    }

    pub(super) fn reason_to_wait(&self, exec: &Exec, placed: &Placed) -> String {
        let id = exec.node.id();
        let free = self.available(Some(id), &BTreeMap::new());
        if free.is_empty() {
            return "waits for a lablet: none is connected".into();
        }
        if let Some(why) = unmatched(&exec.run.run, placed, &free) {
            return format!("waits for a lablet that matches: none of {} does ({why})", free.len());
        }
        let run = &exec.run.run;
        let shared = self.not_to_share(Some(id), run.placing.dedicated).len();
        let note = match (shared, run.placing.dedicated) {
            (0, _) => String::new(),
            (n, true) => format!(", where nothing else runs: {} of {} have other work", n, free.len()),
            (n, false) => format!("; {n} of {} are kept for a run alone", free.len()),
        };
        let mut short = short_of_labels(run, placed, &free);
        if short.is_empty() {
            short = short_of_kinds(run, &free);
        }
        if short.is_empty() {
            let (missing, wanted) = (placed.missing(), run.instances());
            let why = placed.refused.first().map_or("memory, labels or a bound per lablet", |r| r.reason.as_str());
            return format!("waits for room for {missing} of {wanted} instances ({why}){note}");
        }
        format!("waits for {}{note}", short.join("; "))
    }
}

/// Takes all that is free of an inventory.
pub(super) fn leave_nothing(inventory: &mut Inventory) {
    inventory.slots.values_mut().for_each(|slots| slots.free = 0);
}

/// Says of which kinds too little is free, labels aside.
fn short_of_kinds(run: &Run, free: &BTreeMap<PeerId, Inventory>) -> Vec<String> {
    let wanted = run.kinds();
    let kinds = wanted.len();
    let short = wanted.into_iter().filter_map(|(kind, wanted)| short_of(wanted, kind, kinds, "", &mut free.values()));
    short.collect()
}

/// Says of which labels too little is free: all groups of a kind with equal labels together.
fn short_of_labels(run: &Run, placed: &Placed, free: &BTreeMap<PeerId, Inventory>) -> Vec<String> {
    let mut wanted: BTreeMap<(WorkloadKind, &BTreeMap<String, String>), u64> = BTreeMap::new();
    let mut unplaced = BTreeSet::new();
    for (name, group) in run.groups.iter().filter(|(_, group)| !group.requires.labels.is_empty()) {
        let these = (group.kind, &group.requires.labels);
        *wanted.entry(these).or_default() += u64::from(group.count);
        if placed.unplaced.contains_key(name) {
            unplaced.insert(these);
        }
    }
    let kinds = run.kinds().len();
    let short =
        wanted.into_iter().filter(|(these, _)| unplaced.contains(these)).filter_map(|((kind, labels), wanted)| {
            let named: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let label = format!(" labelled {}", named.join(", "));
            short_of(wanted, kind, kinds, &label, &mut free.values().filter(|inventory| labelled(labels, inventory)))
        });
    short.collect()
}

/// Says how much is free of what is wanted, where that is less: `20 slots labelled nat=symmetric, 17 free on 4 lablets`.
fn short_of(
    wanted: u64,
    kind: WorkloadKind,
    kinds: usize,
    label: &str,
    lablets: &mut dyn Iterator<Item = &Inventory>,
) -> Option<String> {
    let rooms: Vec<u64> = lablets.map(|i| u64::from(i.free(kind))).filter(|room| *room > 0).collect();
    let slots: u64 = rooms.iter().sum();
    if slots >= wanted {
        return None;
    }
    let name = slot_name(kind, kinds);
    let lablets = if rooms.len() == 1 { "lablet" } else { "lablets" };
    Some(format!("{wanted} {name}s{label}, {slots} free on {} {lablets}", rooms.len()))
}
