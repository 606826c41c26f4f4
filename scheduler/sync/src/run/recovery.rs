//! What was lost here is put together again from what cells contribute once more.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_wire::session::{Publication, Restore, SignalNumbers};

use super::{MAX_COUNT, MAX_NAMES, RunSync, check_name};
use crate::ITEM_OVERHEAD;

/// Ranges of numbers that are kept of a state while an orchestrator recovers: a lablet may say any number of them.
const MAX_RANGES: usize = 4_096;

impl RunSync {
    /// Makes the sync of an execution that ran before, under this orchestrator or another, with these cells.
    ///
    /// Each cell is asked for what it contributed. Barriers open as soon as their signals are known; numbers and
    /// positions are given out again once the last cell has answered or is dropped, none of them twice. A message whose
    /// position its own cell had not heard gets another one: who had already received it receives it again.
    pub fn recovering(cells: impl IntoIterator<Item = (PeerId, u64)>) -> RunSync {
        let mut run = RunSync::new(cells);
        for cell in run.cells.values_mut() {
            cell.restored = false;
        }
        run.recovering = !run.cells.is_empty();
        run
    }

    /// Adds a cell that worked before under another orchestrator, which told nothing of it: it is asked for what it
    /// contributed, as all cells of [`recovering`](RunSync::recovering) are.
    pub fn recover_cell(&mut self, lablet: PeerId, instances: u64) {
        self.add_cell(lablet.clone(), instances);
        if let Some(cell) = self.cells.get_mut(&lablet) {
            cell.restored = false;
        }
        if !std::mem::replace(&mut self.recovering, true) {
            // All numbers that are not free were given out, here or before.
            for state in self.states.values_mut() {
                let free = std::mem::take(&mut state.ranges);
                state.ranges = gaps(&free, state.last_number);
            }
        }
    }

    /// Returns whether cells have yet to contribute again what was lost.
    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// Waits no longer for cells that have not contributed again: what only they knew is lost. Their lablets forgot them
    /// when they died, after all their instances had ended.
    pub fn end_recovery(&mut self) {
        for cell in self.cells.values_mut() {
            cell.restored = true;
        }
        self.finish_recovery();
    }

    pub(super) fn take_restore(&mut self, lablet: &PeerId, restore: Restore) {
        let Some(cell) = self.cells.get_mut(lablet).filter(|cell| !cell.restored) else { return };
        for numbers in restore.numbers {
            let SignalNumbers { state, from, count, number } = numbers;
            let believable = [from, count, number].iter().all(|n| *n <= MAX_COUNT);
            let room = self.states.len() < MAX_NAMES || self.states.contains_key(&state);
            if !believable || !room || from == 0 || check_name(&state).is_err() {
                continue;
            }
            let numbered = &mut cell.signals.entry(state.clone()).or_default().numbered;
            *numbered = (*numbered).max(from + count - 1);
            let state = self.states.entry(state).or_default();
            state.last_number = state.last_number.max((number + count).saturating_sub(1));
            if state.ranges.len() >= MAX_RANGES {
                // Then all before the last count as known.
                state.ranges = BTreeMap::from([(1, MAX_COUNT)]);
            }
            let known = state.ranges.entry(number).or_default();
            *known = (*known).max(count);
        }
        cell.restored |= restore.last;
    }

    /// Gives out numbers and positions again once every cell has said what it had.
    pub(super) fn finish_recovery(&mut self) {
        if !self.recovering || self.cells.values().any(|cell| !cell.restored) {
            return;
        }
        self.recovering = false;
        // What a lost cell was told is not known: then nothing is given out that somebody may have had.
        let all_are_known = self.lost.is_empty();
        for state in self.states.values_mut() {
            let known = std::mem::take(&mut state.ranges);
            if all_are_known {
                state.ranges = gaps(&known, state.last_number);
            }
        }
        for topic in self.topics.values_mut() {
            topic.log.sort_by_key(|logged| logged.position);
            topic.log.dedup_by_key(|logged| logged.position);
            let mut end = 0;
            topic.last = topic.log.last().map_or(0, |logged| logged.position);
            for logged in &mut topic.log {
                end += (logged.payload.len() + ITEM_OVERHEAD) as u64;
                logged.end = end;
            }
        }
        let lablets: Vec<PeerId> = self.cells.keys().cloned().collect();
        let mut held: Vec<(Option<PeerId>, Publication)> =
            std::mem::take(&mut self.orphans).into_iter().map(|publication| (None, publication)).collect();
        for lablet in &lablets {
            let Some(cell) = self.cells.get_mut(lablet) else { continue };
            cell.in_flight = 0;
            for (name, cursor) in &mut cell.topics {
                let Some(topic) = self.topics.get_mut(name) else { continue };
                // A position that somebody has seen is not given again, even where its message was lost.
                topic.last = topic.last.max(cursor.seen);
                cursor.received = topic.after(cursor.told);
                cursor.sent = cursor.received;
                if cursor.sent < topic.log.len() {
                    cell.behind.insert(name.clone());
                }
            }
            held.extend(cell.held.drain(..).map(|publication| (Some(lablet.clone()), publication)));
        }
        for (lablet, publication) in held {
            self.kept = self.kept.saturating_sub(publication.payload.len() + ITEM_OVERHEAD);
            self.record(lablet.as_ref(), publication);
        }
        for lablet in &lablets {
            let names: Vec<String> = self.cells.get(lablet).map_or(vec![], |c| c.signals.keys().cloned().collect());
            for name in names {
                self.number(lablet, &name);
            }
            self.mark_due(lablet);
        }
        self.look_at_barriers();
    }
}

/// Returns the ranges up to a number that lie between others, each by its first number with its count.
fn gaps(ranges: &BTreeMap<u64, u64>, last: u64) -> BTreeMap<u64, u64> {
    let mut gaps = BTreeMap::new();
    let mut next = 1;
    for (first, count) in ranges.iter().map(|(first, count)| (*first, *count)).chain([(last.saturating_add(1), 0)]) {
        if first > next {
            gaps.insert(next, first - next);
        }
        next = next.max(first.saturating_add(count));
    }
    gaps
}
