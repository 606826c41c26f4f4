//! Cells: granted, promised, prepared, started, ended.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Assignment, Epoch, ExecutionId, InstanceId};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Directory, Grant, ToOrchestrator};
use iptl_wire::takeover::{Finished, LAST_COUNTER};

use super::receipts::Shard;
use super::{CellRecord, Lablet, LabletEffect};
use crate::placement::{no_runner, slot_name};

/// The instances of an execution that this lablet holds.
#[derive(Debug)]
pub(super) struct Cell {
    pub record: CellRecord,
    pub phase: CellPhase,
    /// Version of the directory.
    pub directory: u64,
    pub stopping: bool,
    /// Instances that have ended in this life of the lablet, and of an adopted cell in earlier ones.
    pub ended: BTreeSet<InstanceId>,
    /// Receipts in sealed chunks.
    pub sealed: u32,
    /// A seal is under way.
    pub sealing: bool,
    /// When the next seal may be made.
    pub seal_at: Timestamp,
    pub shards: BTreeMap<Cid, Shard>,
    /// The cell came out of a restart and was not adopted: it has no instances any more.
    pub restored: bool,
}

impl Cell {
    fn new(record: CellRecord) -> Cell {
        let directory = record.cell.epoch.counter;
        Cell {
            record,
            phase: CellPhase::Preparing,
            directory,
            stopping: false,
            ended: BTreeSet::new(),
            sealed: 0,
            sealing: false,
            seal_at: Timestamp(0),
            shards: BTreeMap::new(),
            restored: false,
        }
    }

    pub(super) fn orchestrator(&self) -> &PeerId {
        &self.record.cell.epoch.peer
    }

    pub(super) fn slots(&self) -> u32 {
        self.record.assignments.iter().map(|a| a.count).sum()
    }

    /// Whether instances may exist that need a lease.
    pub(super) fn may_run(&self) -> bool {
        self.phase != CellPhase::Ended && !self.stopping
    }

    /// Whether its instances take room of the machine.
    pub(super) fn holds_room(&self) -> bool {
        self.phase != CellPhase::Ended
    }

    /// Whether a grant of a later term may take its place: it was never started, or has ended and left nothing that the
    /// orchestrator does not have.
    pub(super) fn replaceable(&self) -> bool {
        match self.phase {
            CellPhase::Preparing | CellPhase::Prepared => true,
            CellPhase::Running => false,
            CellPhase::Ended => self.all_kept(),
        }
    }

    pub(super) fn holds(&self, instance: &InstanceId) -> bool {
        self.record.assignments.iter().any(|a| a.holds(instance))
    }

    pub(super) fn status(&self) -> CellStatus {
        let ended = if self.restored { self.sealed } else { self.ended.len() as u32 };
        CellStatus {
            cell: self.record.cell.clone(),
            assignments: self.record.assignments.clone(),
            phase: self.phase,
            running: if self.phase == CellPhase::Running { self.slots().saturating_sub(ended) } else { 0 },
            ended,
            directory: self.directory,
            attempt: self.record.attempt,
        }
    }
}

impl Lablet {
    pub(super) fn grant(&mut self, now: Timestamp, from: PeerId, grant: Grant) {
        let named = grant.cell.clone();
        if grant.lablet != self.config.peer || named.epoch.peer != from {
            return;
        }
        if let Some(held) = self.cells.get(&named.execution)
            && held.record.cell == named
        {
            self.say_again(&named);
            return;
        }
        if let Err(reason) = self.check_grant(now, &from, &grant) {
            self.say(ToOrchestrator::Refuse(named, reason));
            return;
        }
        if let Some(old) = self.cells.remove(&named.execution) {
            self.effects.push_back(LabletEffect::Forget { cell: old.record.cell });
        }
        let record = CellRecord {
            cell: named.clone(),
            assignments: grant.assignments.clone(),
            slots: grant.slots.clone(),
            memory_bytes: grant.memory_bytes,
            attempt: grant.attempt,
        };
        self.promise(named.execution, named.epoch.clone());
        self.cells.insert(named.execution, Cell::new(record.clone()));
        self.effects.push_back(LabletEffect::Promise(record));
        self.say(ToOrchestrator::Accept(named.clone()));
        self.effects.push_back(LabletEffect::Prepare { cell: named, grant: Box::new(grant) });
    }

    /// Returns why a grant that is not held yet cannot be taken.
    fn check_grant(&self, now: Timestamp, from: &PeerId, grant: &Grant) -> Result<(), String> {
        let id = grant.cell.execution;
        if grant.cell.epoch.counter == LAST_COUNTER {
            return Err("the grant spends the last term there is".into());
        }
        if let Some(promised) = self.promised.get(&id)
            && *promised >= grant.cell.epoch
        {
            return Err(format!("promised term {} of this execution already", promised.counter));
        }
        if !self.leased(now, from) {
            return Err("has no lease".into());
        }
        // The new cell takes the place of the old one.
        let free = self.inventory_without(Some(&id));
        if free.draining {
            return Err("draining: its owner lets it take no new work".into());
        }
        let Some(instances) = count_of(&grant.assignments) else {
            return Err("the grant names no instances, or some twice".into());
        };
        if self.cells.get(&id).is_some_and(|old| !old.replaceable()) {
            return Err("holds a cell of this execution that has not ended, or not handed in all of it".into());
        }
        let slots: u64 = grant.slots.values().map(|n| u64::from(*n)).sum();
        if slots != u64::from(instances) {
            return Err(format!("the grant has {slots} slots for {instances} instances"));
        }
        for (kind, wanted) in grant.slots.iter().filter(|(_, wanted)| **wanted > 0) {
            if !free.runs(*kind) {
                return Err(no_runner(*kind));
            }
            let (name, has) = (slot_name(*kind, grant.slots.len()), free.free(*kind));
            if *wanted > has {
                return Err(format!("{wanted} {name}s wanted, {has} free"));
            }
        }
        if grant.memory_bytes > free.free_memory_bytes {
            let (want, have) = (grant.memory_bytes >> 20, free.free_memory_bytes >> 20);
            return Err(format!("{want} MiB of memory wanted, {have} MiB free"));
        }
        Ok(())
    }

    fn say_again(&mut self, named: &CellRef) {
        let Some(phase) = self.cell_mut(named).map(|c| c.phase) else { return };
        match phase {
            CellPhase::Preparing => self.say(ToOrchestrator::Accept(named.clone())),
            CellPhase::Prepared => self.say(ToOrchestrator::Prepared(named.clone())),
            CellPhase::Running | CellPhase::Ended => {}
        }
    }

    pub(super) fn prepared(&mut self, named: &CellRef) {
        let Some(cell) = self.cell_mut(named).filter(|c| c.phase == CellPhase::Preparing) else { return };
        cell.phase = CellPhase::Prepared;
        self.say(ToOrchestrator::Prepared(named.clone()));
    }

    pub(super) fn prepare_failed(&mut self, named: &CellRef, reason: String, unfit: bool) {
        if self.cell_mut(named).is_none_or(|c| c.phase != CellPhase::Preparing) {
            return;
        }
        self.forget(named.execution);
        let message = if unfit { ToOrchestrator::Unfit } else { ToOrchestrator::Refuse };
        self.say(message(named.clone(), reason));
    }

    pub(super) fn directory(&mut self, named: &CellRef, directory: Directory) {
        let Some(cell) = self.cell_mut(named) else { return };
        if directory.version > cell.directory && cell.phase != CellPhase::Ended {
            cell.directory = directory.version;
            self.effects.push_back(LabletEffect::Directory { cell: named.clone(), directory });
        }
    }

    pub(super) fn start(&mut self, named: &CellRef) {
        let Some(cell) = self.cell_mut(named) else {
            let reason = "does not hold this cell".to_owned();
            self.say(ToOrchestrator::Refuse(named.clone(), reason));
            return;
        };
        // A start that overtakes the end of preparation is said again after the next heartbeat.
        if cell.phase == CellPhase::Prepared {
            cell.phase = CellPhase::Running;
            self.effects.push_back(LabletEffect::Start { cell: named.clone() });
            self.say(ToOrchestrator::Started(named.clone()));
        }
    }

    pub(super) fn stop(&mut self, named: &CellRef, reason: String) {
        if self.cell_mut(named).is_some() {
            self.end_cell(named.execution, &reason);
        }
    }

    /// Stops a cell that runs; forgets one that was never started.
    pub(super) fn end_cell(&mut self, id: ExecutionId, reason: &str) {
        let Some(cell) = self.cells.get_mut(&id) else { return };
        match cell.phase {
            CellPhase::Preparing | CellPhase::Prepared => self.forget(id),
            CellPhase::Running if !cell.stopping => {
                cell.stopping = true;
                let named = cell.record.cell.clone();
                self.effects.push_back(LabletEffect::Stop { cell: named, reason: reason.to_owned() });
            }
            CellPhase::Running | CellPhase::Ended => {}
        }
    }

    pub(super) fn finished(&mut self, end: Finished) {
        let id = end.execution;
        let is_held = self.cells.contains_key(&id);
        self.remember_finished(end, is_held);
        if is_held {
            self.end_cell(id, "the execution is over");
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ExecutionId) {
        if let Some(cell) = self.cells.remove(&id) {
            self.effects.push_back(LabletEffect::Forget { cell: cell.record.cell });
        }
    }

    pub(super) fn restore(&mut self, promised: Vec<(ExecutionId, Epoch)>, cells: Vec<(CellRecord, Vec<(Cid, u32)>)>) {
        for (execution, epoch) in promised {
            self.promise(execution, epoch);
        }
        for (record, shards) in cells {
            let id = record.cell.execution;
            if self.promised.get(&id).is_none_or(|p| *p < record.cell.epoch) {
                self.promise(id, record.cell.epoch.clone());
            }
            let mut cell = Cell::new(record);
            cell.phase = CellPhase::Ended;
            cell.restored = true;
            cell.sealed = shards.iter().map(|(_, count)| *count).sum();
            cell.shards = shards.into_iter().map(|(cid, count)| (cid, Shard::new(count))).collect();
            self.cells.insert(id, cell);
        }
    }

    /// Takes a restored cell as one that runs: it holds its room, and stops where its lease is over.
    pub(super) fn adopted(&mut self, named: &CellRef, mut sealed: BTreeSet<InstanceId>, leased_until: Timestamp) {
        let Some(cell) = self.cell_mut(named).filter(|c| c.restored) else { return };
        sealed.retain(|instance| cell.holds(instance));
        cell.restored = false;
        cell.ended = sealed;
        let over = cell.ended.len() as u32 >= cell.slots();
        cell.phase = if over { CellPhase::Ended } else { CellPhase::Running };
        let lease = self.leases.entry(named.epoch.peer.clone()).or_default();
        *lease = (*lease).max(leased_until);
    }
}

/// Counts the instances of assignments; none where there are none, or where two ranges meet.
fn count_of(assignments: &[Assignment]) -> Option<u32> {
    let mut sorted: Vec<&Assignment> = assignments.iter().collect();
    sorted.sort();
    let mut total = 0u32;
    let mut last: Option<(&str, u32)> = None;
    for a in sorted {
        let end = a.start.checked_add(a.count).filter(|_| a.count > 0)?;
        if last.is_some_and(|(group, before)| group == a.group && before > a.start) {
            return None;
        }
        last = Some((&a.group, end));
        total = total.checked_add(a.count)?;
    }
    (total > 0).then_some(total)
}
