//! Chunks of receipts on their way: which are read again, and which are fetched again when.

use std::collections::BTreeMap;

use iptl_dag::{Cid, PeerId};
use iptl_wire::Timestamp;

use super::state::{Cell, Exec, Pull, Shard};
use super::steps::Name;

/// What chunks of receipts wait for, so that nobody has to look at each of them to know.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// Chunks that the log names and that were not read again yet.
    recalled: usize,
    /// Chunks that are fetched again, by time.
    retries: BTreeMap<Timestamp, usize>,
}

impl Pulls {
    fn enter(&mut self, state: Pull) {
        match state {
            Pull::Recalled => self.recalled += 1,
            Pull::Retry(at) => *self.retries.entry(at).or_default() += 1,
            Pull::Pulling | Pull::Kept | Pull::Bad => {}
        }
    }

    fn leave(&mut self, state: Pull) {
        match state {
            Pull::Recalled => self.recalled = self.recalled.saturating_sub(1),
            Pull::Retry(at) => {
                if let Some(count) = self.retries.get_mut(&at) {
                    *count -= 1;
                    if *count == 0 {
                        self.retries.remove(&at);
                    }
                }
            }
            Pull::Pulling | Pull::Kept | Pull::Bad => {}
        }
    }
}

impl Exec {
    /// Returns the cell of a lablet that announced a chunk of receipts.
    pub(super) fn cell_of_shard(&mut self, lablet: &PeerId, shard: &Cid) -> Option<&mut Cell> {
        let past = self.past.iter_mut().filter(|(holder, _)| holder == lablet).map(|(_, cell)| cell);
        self.cells.get_mut(lablet).into_iter().chain(past).find(|cell| cell.shards.contains_key(shard))
    }

    /// Takes in a chunk of receipts of the cell that a lablet holds.
    pub(super) fn announce(&mut self, lablet: &PeerId, shard: Cid, count: u32, state: Pull) {
        let Some(cell) = self.cells.get_mut(lablet) else { return };
        self.pulls.enter(state);
        if let Some(before) = cell.shards.insert(shard, Shard { count, state }) {
            self.pulls.leave(before.state);
        }
    }

    /// Takes in a chunk of receipts that the log names, as its next step; it counts once [`Exec::recall`] was called.
    pub(super) fn name(&mut self, lablet: &PeerId, shard: &Cid, count: u32) {
        // What nobody holds counts for nothing.
        let Some(cell) = self.cells.get_mut(lablet) else { return };
        cell.named.push((Name::of(shard), count));
        self.steps.push_received(lablet, cell, shard, count);
    }

    /// Puts the chunks that the log named in their places; all of them are to be read again.
    pub(super) fn recall(&mut self) {
        let past = self.past.iter_mut().map(|(_, cell)| cell);
        for cell in self.cells.values_mut().chain(past).filter(|cell| !cell.named.is_empty()) {
            let recalled = |(shard, count): (Name, u32)| (shard.cid(), Shard { count, state: Pull::Recalled });
            // There were none while the log was read, and a map that is made of what is in order is made fast. Of those
            // that were named twice the last counts.
            cell.named.sort_by(|(a, _), (b, _)| a.digest().cmp(b.digest()));
            cell.shards = std::mem::take(&mut cell.named).into_iter().map(recalled).collect();
        }
        self.count_pulls();
    }

    /// Returns the chunks of a lablet that are to be read again.
    pub(super) fn recalled_of(&self, lablet: &PeerId) -> Vec<Cid> {
        let cells = self.all_cells().filter(|(holder, _)| *holder == lablet);
        let recalled = |(shard, entry): (&Cid, &Shard)| (entry.state == Pull::Recalled).then_some(*shard);
        cells.flat_map(|(_, cell)| cell.shards.iter().filter_map(recalled)).collect()
    }

    /// Says how far a chunk of receipts is that was announced.
    pub(super) fn set_pull(&mut self, lablet: &PeerId, shard: &Cid, state: Pull) {
        let Some(entry) = self.cell_of_shard(lablet, shard).and_then(|cell| cell.shards.get_mut(shard)) else { return };
        let before = std::mem::replace(&mut entry.state, state);
        self.pulls.enter(state);
        self.pulls.leave(before);
    }

    /// Fetches again what waited for that until `now`; returns these chunks.
    pub(super) fn due_pulls(&mut self, now: Timestamp) -> Vec<(PeerId, Cid)> {
        if self.next_pull().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let past = self.past.iter_mut().map(|(lablet, cell)| (&*lablet, cell));
        for (lablet, cell) in self.cells.iter_mut().chain(past) {
            for (shard, entry) in &mut cell.shards {
                if matches!(entry.state, Pull::Retry(at) if at <= now) {
                    self.pulls.leave(entry.state);
                    entry.state = Pull::Pulling;
                    due.push((lablet.clone(), *shard));
                }
            }
        }
        due
    }

    /// Takes the cell of a lablet out, and whatever was announced of it.
    pub(super) fn drop_cell(&mut self, lablet: &PeerId) -> Option<Cell> {
        let cell = self.cells.remove(lablet)?;
        for shard in cell.shards.values() {
            self.pulls.leave(shard.state);
        }
        Some(cell)
    }

    /// Counts anew what chunks of receipts wait for, after cells were put in their places.
    pub(super) fn count_pulls(&mut self) {
        let mut pulls = Pulls::default();
        for shard in self.all_cells().flat_map(|(_, cell)| cell.shards.values()) {
            pulls.enter(shard.state);
        }
        self.pulls = pulls;
    }

    /// Whether receipts that the log names were not read again yet: until then nobody knows what has finished.
    pub(super) fn recalling(&self) -> bool {
        self.pulls.recalled > 0
    }

    /// When receipts are to be pulled again.
    pub(super) fn next_pull(&self) -> Option<Timestamp> {
        self.pulls.retries.first_key_value().map(|(at, _)| *at)
    }
}
