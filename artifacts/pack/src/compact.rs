//! Giving space back: packs of which little is in use are copied and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use iptl_artifacts::StoreError;
use iptl_dag::Multihash;

use crate::engine::{Engine, lock, pack_name};
use crate::record::{PACK_HEADER, Place, record_len};

/// Records that are copied in one go, in order of their place.
const BATCH: usize = 16 << 10;

/// Bytes that are copied while puts wait.
const STEP: u64 = 4 << 20;

/// Bytes that are copied before packs are removed: how much more room is needed on the way.
const ROUND: u64 = 256 << 20;

/// Bytes of an active pack that must be of no use before it is closed for the sake of them.
const WORTH_CLOSING: u64 = 1 << 20;

/// A pack with its use.
struct Candidate {
    id: u32,
    live: u64,
    len: u64,
}

impl Engine {
    /// Gives back the space of removed blocks; returns how many bytes packs shrank by.
    ///
    /// Packs of which at most half is in use are emptied, by copying the rest to the end; others too, those with the most
    /// to give first, while more than `within` bytes are on the disk. A crash on the way leaves both copies. Reads and
    /// puts go on.
    pub(crate) fn compact(&self, within: u64) -> Result<u64, StoreError> {
        self.check_open()?;
        self.commit()?;
        let before = self.usage()?.on_disk;
        self.close_active(before > within)?;
        let mut candidates = self.candidates(before, within)?;
        // Those that are empty come first: they cost nothing, and on a full disk they make room for the others.
        candidates.sort_by_key(|candidate| candidate.live);
        let mut at = 0;
        while at < candidates.len() {
            let mut round = BTreeSet::new();
            let mut copied = 0;
            let only_empty = candidates[at].live == 0;
            while let Some(candidate) = candidates.get(at)
                && (round.is_empty() || copied + candidate.live <= ROUND)
                && (candidate.live == 0) == only_empty
            {
                copied += candidate.live;
                round.insert(candidate.id);
                at += 1;
            }
            self.empty(&round)?;
            self.drop_packs(round)?;
        }
        Ok(before.saturating_sub(self.usage()?.on_disk))
    }

    /// Closes the active pack where it is worth to be emptied; `is_scarce` makes less worth it.
    fn close_active(&self, is_scarce: bool) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        let Some(active) = &writer.active else { return Ok(()) };
        let live = writer.packs.get(&active.id).map_or(0, |state| state.live);
        let used = active.end - PACK_HEADER;
        let dead = used.saturating_sub(live);
        let is_worth_it = dead * 2 > used && (dead >= WORTH_CLOSING || live == 0);
        if is_worth_it || (is_scarce && dead > 0) {
            self.next_pack(&mut writer)?;
        }
        Ok(())
    }

    fn candidates(&self, on_disk: u64, within: u64) -> Result<Vec<Candidate>, StoreError> {
        let (packs, active) = {
            let writer = lock(&self.writer);
            (writer.packs.clone(), writer.active.as_ref().map(|active| active.id))
        };
        let mut candidates = Vec::new();
        for (id, state) in packs {
            if Some(id) == active {
                continue;
            }
            let len = match self.pack(id).and_then(|file| file.size()) {
                Ok(len) => len,
                // Lost: what the index names in it is damaged, and said to be so when it is read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.error("measuring a pack", error)),
            };
            candidates.push(Candidate { id, live: state.live, len });
        }
        let dead = |candidate: &Candidate| candidate.len.saturating_sub(PACK_HEADER).saturating_sub(candidate.live);
        candidates.sort_by_key(|candidate| std::cmp::Reverse(dead(candidate)));
        let mut left = on_disk;
        candidates.retain(|candidate| {
            let is_cheap = candidate.live <= dead(candidate);
            let is_needed = left > within && dead(candidate) > 0;
            if is_cheap || is_needed {
                left = left.saturating_sub(dead(candidate));
            }
            is_cheap || is_needed
        });
        candidates.retain(|candidate| candidate.len > PACK_HEADER || candidate.live == 0);
        Ok(candidates)
    }

    /// Copies what is in use of some packs to the end, and commits.
    fn empty(&self, packs: &BTreeSet<u32>) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let table = self.view().table.clone().ok_or(StoreError::Closed)?;
            let mut found: Vec<(Place, Multihash)> = Vec::new();
            let last = table
                .walk(after.as_ref(), |hash, place| {
                    if packs.contains(&place.pack) {
                        found.push((place, hash));
                    }
                    found.len() < BATCH
                })
                .map_err(|error| self.error("reading the index", error))?;
            found.sort_unstable();
            self.copy(&found)?;
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        self.commit()
    }

    fn copy(&self, found: &[(Place, Multihash)]) -> Result<(), StoreError> {
        let mut rest = found;
        while !rest.is_empty() {
            let mut blocks: BTreeMap<Multihash, (Place, Bytes)> = BTreeMap::new();
            let mut bytes = 0;
            while let Some(((place, hash), after)) = rest.split_first()
                && bytes < STEP
            {
                rest = after;
                match self.read(hash, *place)? {
                    Some(data) => {
                        bytes += data.len() as u64;
                        blocks.insert(*hash, (*place, data));
                    }
                    // Damaged: it is not worth a copy, and is told of from now on.
                    None if self.find(hash)? == Some(*place) => {
                        tracing::error!(hash = %iptl_artifacts::HashName(hash), "a stored block is damaged");
                        self.note_damage(hash, *place);
                    }
                    None => {}
                }
            }
            let mut writer = lock(&self.writer);
            self.check_open()?;
            let (mut still, mut places) = (Vec::with_capacity(blocks.len()), Vec::with_capacity(blocks.len()));
            for (hash, (old, data)) in blocks {
                // Others were removed meanwhile, or put again elsewhere.
                if self.find(&hash)? == Some(old) {
                    still.push((hash, data));
                    places.push(old);
                }
            }
            self.append(&mut writer, &still)?;
            still.iter().zip(places).for_each(|((hash, _), old)| writer.sub_live(hash, old));
        }
        Ok(())
    }

    /// Removes packs that no block is in any more, by what the index says and not by what was counted.
    fn drop_packs(&self, mut packs: BTreeSet<u32>) -> Result<(), StoreError> {
        let mut used: BTreeMap<u32, u64> = BTreeMap::new();
        let (newer, table) = {
            let view = self.view();
            let newer: Vec<(Multihash, Place)> = view.frozen.iter().chain(view.fresh.iter()).collect();
            (newer, view.table.clone().ok_or(StoreError::Closed)?)
        };
        let mut note = |hash: &Multihash, place: Place| {
            if packs.contains(&place.pack) {
                *used.entry(place.pack).or_default() += record_len(hash, place.size as usize);
            }
        };
        newer.iter().for_each(|(hash, place)| note(hash, *place));
        table
            .walk(None, |hash, place| {
                note(&hash, place);
                true
            })
            .map_err(|error| self.error("reading the index", error))?;
        packs.retain(|id| !used.contains_key(id));
        {
            let mut writer = lock(&self.writer);
            for (id, live) in used {
                tracing::warn!(pack = id, live, "a pack is in use that was counted as empty");
                if let Some(state) = writer.packs.get_mut(&id) {
                    state.live = live;
                }
            }
            writer.packs.retain(|id, _| !packs.contains(id));
        }
        for id in &packs {
            lock(&self.open).remove(id);
            match self.files.remove(&pack_name(*id)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.error("removing a pack", error)),
            }
        }
        self.files.sync_names().map_err(|error| self.error("removing a pack", error))?;
        self.commit()
    }
}
