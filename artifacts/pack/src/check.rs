//! Reading everything again: what is damaged is named, set aside, and where only its frame is damaged written anew.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iptl_artifacts::StoreError;
use iptl_dag::Multihash;

use crate::engine::{Damage, Engine, Writer, lock};
use crate::record::{FIXED, Header, MAX_HASH, Place, parse};
use crate::recover::rebuild;

/// Blocks that are looked up together and then read in order of their place.
const BATCH: usize = 64 << 10;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that are whole.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that are damaged, those found before among them: absent until they are put again.
    pub damaged: Vec<Multihash>,
    /// Blocks that are whole and whose frame was not: they were written again.
    pub reframed: u64,
    /// The index was damaged, and was made again from the packs.
    pub reindexed: bool,
}

impl Engine {
    /// Hashes every block again. `progress` gets blocks and bytes so far.
    pub(crate) fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Checked, StoreError> {
        self.check_open()?;
        let is_broken = match self.commit() {
            Ok(()) => false,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => true,
            Err(error) => return Err(error),
        };
        let mut checked = Checked { reindexed: self.check_index(is_broken)?, ..Checked::default() };
        let mut after = None;
        loop {
            let table = self.view().table.clone().ok_or(StoreError::Closed)?;
            let mut found: Vec<(Place, Multihash)> = Vec::new();
            let last = table
                .walk(after.as_ref(), |hash, place| {
                    found.push((place, hash));
                    found.len() < BATCH
                })
                .map_err(|error| self.error("reading the index", error))?;
            found.sort_unstable();
            for (place, hash) in found {
                self.check_open()?;
                self.check_block(&hash, place, &mut checked)?;
                progress(checked.blocks, checked.bytes);
            }
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        self.commit()?;
        checked.damaged = lock(&self.damaged).keys().copied().collect();
        Ok(checked)
    }

    fn check_block(&self, hash: &Multihash, place: Place, checked: &mut Checked) -> Result<(), StoreError> {
        // Removed or moved since it was listed: whoever moved it has read it.
        if self.find(hash)? != Some(place) {
            return Ok(());
        }
        let Some(data) = self.read(hash, place)? else {
            if self.find(hash)? == Some(place) {
                self.note_damage(hash, place);
            }
            return Ok(());
        };
        checked.blocks += 1;
        checked.bytes += data.len() as u64;
        if !self.is_framed(hash, place)? {
            let mut writer = lock(&self.writer);
            if self.find(hash)? == Some(place) {
                self.append(&mut writer, &[(*hash, data)])?;
                writer.sub_live(hash, place);
                checked.reframed += 1;
            }
        }
        Ok(())
    }

    /// Says whether the index could be made again from what stands before the data.
    fn is_framed(&self, hash: &Multihash, place: Place) -> Result<bool, StoreError> {
        let Some(salt) = lock(&self.writer).packs.get(&place.pack).map(|state| state.salt) else { return Ok(true) };
        let mut bytes = [0; FIXED + MAX_HASH];
        let read = self.pack(place.pack).and_then(|file| file.read_at(place.offset.into(), &mut bytes));
        let read = read.map_err(|error| self.error("reading a block", error))?;
        Ok(parse(&salt, place.offset, &bytes[..read]) == Some(Header { hash: *hash, size: place.size }))
    }

    /// Makes the index again where it is damaged; says whether it was.
    fn check_index(&self, is_broken: bool) -> Result<bool, StoreError> {
        let mut slot = lock(&self.index);
        let mut writer = lock(&self.writer);
        let mut view = self.view_mut();
        let index = slot.as_mut().ok_or(StoreError::Closed)?;
        if !view.fresh.is_empty() && !is_broken {
            // Something was put since the commit: it is in no danger, and the next check sees it.
            let changes = crate::index::Changes {
                insert: &view.fresh,
                remove: &[],
                damaged: &Default::default(),
                packs: &writer.packs,
                tail: writer.tail(),
            };
            if let Some(active) = &writer.active {
                active.file.sync().map_err(|error| self.error("syncing the store", error))?;
            }
            let table = index.commit(&changes).map_err(|error| self.error("committing the index", error))?;
            view.fresh = Default::default();
            view.table = Some(Arc::new(table));
        }
        // The database checks itself only while nobody reads it.
        view.table = None;
        let sound = match is_broken {
            true => Ok(false),
            false => index.is_sound().map_err(|error| self.error("checking the index", error)),
        };
        if !matches!(sound, Ok(false)) {
            view.table = Some(Arc::new(index.table().map_err(|error| self.error("reading the index", error))?));
            return sound.map(|_| false);
        }
        tracing::warn!("the index of the store is damaged and is made again");
        let index = slot.take().ok_or(StoreError::Closed)?;
        let replay = rebuild(self.files.clone(), index).map_err(|error| self.error("making the index again", error))?;
        *slot = Some(replay.index);
        // What is counted since the store was opened goes on: a flush must not find its work done.
        let (appended, committed) = (writer.appended + 1, writer.committed);
        *writer = Writer { appended, committed, ..replay.writer };
        view.fresh = replay.fresh;
        view.table = Some(Arc::new(replay.table));
        let mut damaged = lock(&self.damaged);
        *damaged = replay.damaged.into_iter().map(|(hash, place)| (hash, Damage { place, counted: true })).collect();
        self.damages.store(damaged.len(), Ordering::Release);
        drop(damaged);
        drop((view, writer, slot));
        self.commit()?;
        Ok(true)
    }
}
