//! The store without async: appending, reading, syncing, and the commits of the index.
//!
//! Locks are taken in this order: `index`, `syncing`, `writer`, `view`; `damaged` and `open` are held for single
//! operations. Readers take `view` alone, so they wait for nobody's disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use iptl_artifacts::{StoreError, Usage, identity_of};
use iptl_dag::block::is_hash_of;
use iptl_dag::{Block, MAX_BLOCK_SIZE, Multihash};

use crate::files::{FileAt, Files};
use crate::index::{Changes, Index, PackState, Table, Tail};
use crate::places::Places;
use crate::record::{self, PACK_HEADER, Place, Salt, pack_header, record_len};

/// Room that is left free on the disk, in bytes: the index needs some for its next commit, and removals need the index.
pub(crate) const DISK_RESERVE: u64 = 8 << 20;

/// Most records that are written by one system call: each takes two pieces of the 1,024 that fit.
const MAX_GROUP: usize = 256;

/// Bytes of records that are written by one system call, so that readers of the list of blocks need not wait long.
const GROUP_BYTES: u64 = 4 << 20;

/// Packs that are held open: enough for 32 GiB at random, far below a process's usual limit of 1,024 files.
const MAX_OPEN: usize = 64;

/// Sizes that tests make small.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes after which a pack is closed and the next begun, at most 1 GiB.
    ///
    /// Larger ones mean fewer files; smaller ones give space back sooner, and less is copied to get at it.
    pub pack_size: u64,
    /// Bytes that the index may lag behind the packs: what opening reads again after a crash.
    pub max_lag_bytes: u64,
    /// Blocks that the index may lag behind: they are held in memory until then.
    pub max_lag_blocks: usize,
    /// Bytes after which what was written is sent to the disk without being asked to, so that a flush finds less to do.
    pub write_behind: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { pack_size: 512 << 20, max_lag_bytes: 256 << 20, max_lag_blocks: 64 << 10, write_behind: 32 << 20 }
    }
}

/// What the store knows beyond the index on disk.
#[derive(Default)]
pub(crate) struct View {
    /// Put since the last commit began.
    pub(crate) fresh: Places,
    /// In the commit that is under way.
    pub(crate) frozen: Arc<Places>,
    /// As of the last commit; none once the store is closed.
    pub(crate) table: Option<Arc<Table>>,
}

/// The pack that is written.
pub(crate) struct Active {
    pub(crate) id: u32,
    pub(crate) file: Arc<dyn FileAt>,
    pub(crate) salt: Salt,
    /// Where the next record goes.
    pub(crate) end: u64,
}

/// What whoever changes packs holds.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) active: Option<Active>,
    pub(crate) packs: BTreeMap<u32, PackState>,
    pub(crate) next_id: u32,
    /// Bytes appended since the store was opened, and one at first: what was found may not be on the disk.
    pub(crate) appended: u64,
    /// `appended` when the last commit began.
    pub(crate) committed: u64,
}

impl Writer {
    /// Returns the position behind everything that was written.
    pub(crate) fn tail(&self) -> Tail {
        match &self.active {
            Some(active) => Tail { pack: active.id, offset: u32::try_from(active.end).unwrap_or(u32::MAX) },
            None => Tail { pack: self.next_id, offset: 0 },
        }
    }

    pub(crate) fn add_live(&mut self, hash: &Multihash, place: Place) {
        if let Some(state) = self.packs.get_mut(&place.pack) {
            state.live += record_len(hash, place.size as usize);
        }
    }

    pub(crate) fn sub_live(&mut self, hash: &Multihash, place: Place) {
        if let Some(state) = self.packs.get_mut(&place.pack) {
            state.live = state.live.saturating_sub(record_len(hash, place.size as usize));
        }
    }
}

/// A block that was found damaged.
#[derive(Clone, Copy)]
pub(crate) struct Damage {
    pub(crate) place: Place,
    /// Its pack no longer counts it.
    pub(crate) counted: bool,
}

/// The store.
pub(crate) struct Engine {
    pub(crate) dir: PathBuf,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) options: Options,
    /// None once the store is closed.
    pub(crate) index: Mutex<Option<Index>>,
    /// How much of what was appended is on the disk.
    pub(crate) syncing: Mutex<u64>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) view: RwLock<View>,
    /// Blocks that are named by the index and cannot be read: absent until put again.
    pub(crate) damaged: Mutex<BTreeMap<Multihash, Damage>>,
    /// How many `damaged` has, so that readers need not ask.
    pub(crate) damages: AtomicUsize,
    pub(crate) open: Mutex<BTreeMap<u32, Arc<dyn FileAt>>>,
    pub(crate) closed: AtomicBool,
}

/// What a read that does not wait came to.
pub(crate) enum Glance {
    Known(Option<Bytes>),
    /// The disk has to be asked.
    Unknown,
}

impl Engine {
    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::SeqCst) { Err(StoreError::Closed) } else { Ok(()) }
    }

    pub(crate) fn error(&self, doing: &str, source: io::Error) -> StoreError {
        match StoreError::io(doing, &self.dir, source) {
            StoreError::Full { path, .. } => {
                let available = self.files.available().unwrap_or(0);
                StoreError::Full { path, available, needed: DISK_RESERVE }
            }
            other @ (StoreError::Corrupt { .. }
            | StoreError::Closed
            | StoreError::Missing { .. }
            | StoreError::Hash(_)
            | StoreError::Io { .. }) => other,
        }
    }

    /// Refuses what would leave less than the reserve.
    fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let needed = DISK_RESERVE + bytes;
        match self.files.available() {
            Ok(available) if available < needed => Err(StoreError::Full { path: self.dir.clone(), available, needed }),
            // A file system that does not tell its free space is written to until it refuses.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Returns where a block is; none where it is absent or known to be damaged.
    pub(crate) fn find(&self, hash: &Multihash) -> Result<Option<Place>, StoreError> {
        let table = {
            let view = self.view();
            match view.fresh.get(hash).or_else(|| view.frozen.get(hash)) {
                Some(place) => return Ok(self.unless_damaged(hash, place)),
                None => view.table.clone().ok_or(StoreError::Closed)?,
            }
        };
        let place = table.get(hash).map_err(|error| self.error("reading the index", error))?;
        Ok(place.and_then(|place| self.unless_damaged(hash, place)))
    }

    fn unless_damaged(&self, hash: &Multihash, place: Place) -> Option<Place> {
        if self.damages.load(Ordering::Acquire) == 0 {
            return Some(place);
        }
        lock(&self.damaged).get(hash).is_none_or(|damage| damage.place != place).then_some(place)
    }

    pub(crate) fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        self.check_open()?;
        hashes.iter().map(|hash| Ok(identity_of(hash).is_some() || self.find(hash)?.is_some())).collect()
    }

    /// Reads a block where nothing of it has to come from the disk.
    pub(crate) fn glance(&self, hash: &Multihash) -> Result<Glance, StoreError> {
        self.check_open()?;
        if let Some(data) = identity_of(hash) {
            return Ok(Glance::Known(Some(data)));
        }
        let Some(place) = self.find(hash)? else { return Ok(Glance::Known(None)) };
        let Some(file) = lock(&self.open).get(&place.pack).cloned() else { return Ok(Glance::Unknown) };
        let mut data = vec![0; place.size as usize];
        match file.read_now(data_at(hash, place), &mut data) {
            Ok(Some(read)) if read == data.len() && is_hash_of(hash, &data) => Ok(Glance::Known(Some(data.into()))),
            // Whatever is wrong here, the thorough way says what.
            Ok(_) | Err(_) => Ok(Glance::Unknown),
        }
    }

    pub(crate) fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        self.check_open()?;
        if let Some(data) = identity_of(hash) {
            return Ok(Some(data));
        }
        let mut place = self.find(hash)?;
        while let Some(now) = place {
            if let Some(data) = self.read(hash, now)? {
                return Ok(Some(data));
            }
            // It may have been moved or removed between the look into the index and the read.
            place = self.find(hash)?;
            if place == Some(now) {
                tracing::error!(hash = %iptl_artifacts::HashName(hash), ?now, "a stored block is damaged");
                self.note_damage(hash, now);
                return Err(StoreError::Corrupt { hash: *hash });
            }
        }
        Ok(None)
    }

    /// Reads the data of a record; none where it is not what it should be, or not there.
    pub(crate) fn read(&self, hash: &Multihash, place: Place) -> Result<Option<Bytes>, StoreError> {
        if place.size as usize > MAX_BLOCK_SIZE {
            return Ok(None);
        }
        let mut data = vec![0; place.size as usize];
        let read = self.pack(place.pack).and_then(|file| file.read_at(data_at(hash, place), &mut data));
        match read {
            Ok(read) => Ok((read == data.len() && is_hash_of(hash, &data)).then(|| data.into())),
            // The pack is gone, or the disk cannot read this place: for whoever asks the block is damaged.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_bad_sector(&error) => Ok(None),
            Err(error) => Err(self.error("reading a block", error)),
        }
    }

    /// Returns the file of a pack.
    pub(crate) fn pack(&self, id: u32) -> io::Result<Arc<dyn FileAt>> {
        if let Some(file) = lock(&self.open).get(&id) {
            return Ok(file.clone());
        }
        let file = self.files.open(&pack_name(id))?;
        let mut open = lock(&self.open);
        while open.len() >= MAX_OPEN {
            // Which one goes hardly matters: opening it again costs microseconds. The oldest is read least.
            open.pop_first();
        }
        open.insert(id, file.clone());
        Ok(file)
    }

    pub(crate) fn note_damage(&self, hash: &Multihash, place: Place) {
        let mut damaged = lock(&self.damaged);
        damaged.insert(*hash, Damage { place, counted: false });
        self.damages.store(damaged.len(), Ordering::Release);
    }

    pub(crate) fn put(&self, blocks: &[Block]) -> Result<(), StoreError> {
        self.check_open()?;
        let bytes = blocks.iter().map(|block| block.data().len() as u64).sum();
        self.check_room(bytes)?;
        let mut writer = lock(&self.writer);
        self.check_open()?;
        let mut seen = BTreeSet::new();
        let mut new = Vec::with_capacity(blocks.len());
        for block in blocks {
            let hash = block.cid().hash();
            if identity_of(hash).is_none() && self.find(hash)?.is_none() && seen.insert(hash) {
                new.push((*hash, block.data().clone()));
            }
        }
        self.append(&mut writer, &new)
    }

    /// Appends records and makes them what the store has under their hashes.
    pub(crate) fn append(&self, writer: &mut Writer, blocks: &[(Multihash, Bytes)]) -> Result<(), StoreError> {
        let mut rest = blocks;
        while let Some((first, data)) = rest.first() {
            self.make_room(writer, record_len(first, data.len()))?;
            let active = writer.active.as_mut().expect("room was made in a pack");
            let (mut heads, mut cuts, mut places) = (Vec::new(), vec![0], Vec::new());
            let mut end = active.end;
            for (hash, data) in rest.iter().take(MAX_GROUP) {
                let next = end + record_len(hash, data.len());
                let is_too_far = next > self.options.pack_size || next - active.end > GROUP_BYTES;
                if is_too_far && !places.is_empty() {
                    break;
                }
                let offset = u32::try_from(end).expect("a pack is shorter than 4 GiB");
                let size = u32::try_from(data.len()).expect("a block is small");
                record::encode(&active.salt, offset, hash, size, &mut heads);
                cuts.push(heads.len());
                places.push(Place { pack: active.id, offset, size });
                end = next;
            }
            let (group, after) = rest.split_at(places.len());
            let pieces: Vec<&[u8]> =
                cuts.windows(2).zip(group).flat_map(|(cut, (_, data))| [&heads[cut[0]..cut[1]], &data[..]]).collect();
            if let Err(error) = active.file.write_at(active.end, &pieces) {
                // What was half written is cut off; where even that fails, the next record is written over it.
                if let Err(error) = active.file.set_size(active.end) {
                    tracing::warn!(%error, "half a record stays in a pack for now");
                }
                return Err(self.error("writing blocks", error));
            }
            writer.appended += end - active.end;
            active.end = end;
            for ((hash, _), place) in group.iter().zip(places) {
                writer.add_live(hash, place);
                self.supersede(writer, hash, place)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Makes a place the one of a block.
    fn supersede(&self, writer: &mut Writer, hash: &Multihash, place: Place) -> Result<(), StoreError> {
        if self.damages.load(Ordering::Acquire) > 0 {
            let mut damaged = lock(&self.damaged);
            if let Some(damage) = damaged.remove(hash)
                && !damage.counted
            {
                writer.sub_live(hash, damage.place);
            }
            self.damages.store(damaged.len(), Ordering::Release);
        }
        self.view_mut().fresh.insert(hash, place);
        Ok(())
    }

    /// Sees to it that the active pack has room for a record.
    fn make_room(&self, writer: &mut Writer, bytes: u64) -> Result<(), StoreError> {
        match &writer.active {
            Some(active) if active.end + bytes <= self.options.pack_size || active.end == PACK_HEADER => Ok(()),
            Some(_) | None => self.next_pack(writer),
        }
    }

    /// Closes the active pack, durably, and begins another.
    pub(crate) fn next_pack(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if let Some(active) = &writer.active {
            // Only the last pack can be torn: opening relies on it.
            active.file.sync().map_err(|error| self.sync_failed(error))?;
        }
        let id = writer.next_id;
        let name = pack_name(id);
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| self.error("drawing a random number", io::Error::other(error)))?;
        let made = self.files.create(&name).and_then(|file| {
            file.write_at(0, &[&pack_header(&salt)])?;
            file.sync()?;
            self.files.sync_names()?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                // Opening removes it too where this fails.
                if let Err(error) = self.files.remove(&name) {
                    tracing::debug!(%error, "an empty pack stays for now");
                }
                return Err(self.error("beginning a pack", error));
            }
        };
        lock(&self.open).insert(id, file.clone());
        writer.next_id = id + 1;
        writer.packs.insert(id, PackState { salt, live: 0 });
        writer.active = Some(Active { id, file, salt, end: PACK_HEADER });
        Ok(())
    }

    /// Stops the store: after a failed sync nobody can say what is on the disk.
    fn sync_failed(&self, error: io::Error) -> StoreError {
        tracing::error!(%error, "the store stops, since the disk did not take what was written");
        self.closed.store(true, Ordering::SeqCst);
        self.error("syncing the store", error)
    }

    /// Makes durable what was appended before the call. Flushes at once share one sync.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let wanted = lock(&self.writer).appended;
        let mut synced = lock(&self.syncing);
        if *synced >= wanted {
            return Ok(());
        }
        self.check_open()?;
        let (file, appended) = {
            let writer = lock(&self.writer);
            (writer.active.as_ref().map(|active| active.file.clone()), writer.appended)
        };
        if let Some(file) = file {
            file.sync().map_err(|error| self.sync_failed(error))?;
        }
        *synced = appended;
        Ok(())
    }

    /// Says whether so much was written that it should be sent to the disk.
    pub(crate) fn wants_flush(&self) -> bool {
        match self.syncing.try_lock() {
            Ok(synced) => lock(&self.writer).appended.saturating_sub(*synced) >= self.options.write_behind,
            Err(_) => false,
        }
    }

    /// Returns by how much the index lags behind, in parts of what it may.
    pub(crate) fn lag(&self) -> f64 {
        let bytes = {
            let writer = lock(&self.writer);
            writer.appended - writer.committed
        };
        let blocks = self.view().fresh.len();
        let of_bytes = bytes as f64 / self.options.max_lag_bytes as f64;
        of_bytes.max(blocks as f64 / self.options.max_lag_blocks as f64)
    }

    /// Brings the index up to date.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        let mut index = lock(&self.index);
        let index = index.as_mut().ok_or(StoreError::Closed)?;
        let (frozen, tail, packs, damaged, before) = {
            let mut writer = lock(&self.writer);
            self.count_damage(&mut writer);
            let mut view = self.view_mut();
            view.frozen = Arc::new(std::mem::take(&mut view.fresh));
            let before = writer.committed;
            writer.committed = writer.appended;
            (view.frozen.clone(), writer.tail(), writer.packs.clone(), self.damaged_places(), before)
        };
        // The index must not name what is not on the disk.
        let committed = self.flush().and_then(|()| {
            let changes = Changes { insert: &frozen, remove: &[], damaged: &damaged, packs: &packs, tail };
            index.commit(&changes).map_err(|error| self.error("committing the index", error))
        });
        let mut writer = lock(&self.writer);
        let mut view = self.view_mut();
        match committed {
            Ok(table) => {
                view.frozen = Arc::default();
                view.table = Some(Arc::new(table));
                Ok(())
            }
            Err(error) => {
                unfreeze(&mut view);
                writer.committed = before;
                // The database was opened again, so what was read from it before is of no use.
                if let Ok(table) = index.table() {
                    view.table = Some(Arc::new(table));
                }
                Err(error)
            }
        }
    }

    fn count_damage(&self, writer: &mut Writer) {
        for (hash, damage) in lock(&self.damaged).iter_mut() {
            if !damage.counted {
                writer.sub_live(hash, damage.place);
                damage.counted = true;
            }
        }
    }

    fn damaged_places(&self) -> BTreeMap<Multihash, Place> {
        lock(&self.damaged).iter().map(|(hash, damage)| (*hash, damage.place)).collect()
    }

    /// Removes blocks, durably.
    pub(crate) fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        self.check_open()?;
        self.flush()?;
        let mut index = lock(&self.index);
        let index = index.as_mut().ok_or(StoreError::Closed)?;
        // Held until the end: nothing that is put meanwhile can be among what is removed.
        let mut writer = lock(&self.writer);
        let mut gone = BTreeMap::new();
        for hash in hashes {
            if let Some(place) = self.find(hash)? {
                gone.insert(*hash, Some(place));
            } else if lock(&self.damaged).contains_key(hash) {
                gone.insert(*hash, None);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        if let Some(active) = &writer.active {
            active.file.sync().map_err(|error| self.sync_failed(error))?;
        }
        self.count_damage(&mut writer);
        let mut damaged = self.damaged_places();
        damaged.retain(|hash, _| !gone.contains_key(hash));
        let mut insert = self.view().fresh.clone();
        gone.keys().for_each(|hash| insert.remove(hash));
        let mut packs = Writer { packs: writer.packs.clone(), ..Writer::default() };
        for (hash, place) in &gone {
            if let Some(place) = place {
                packs.sub_live(hash, *place);
            }
        }
        let remove: Vec<Multihash> = gone.into_keys().collect();
        let changes =
            Changes { insert: &insert, remove: &remove, damaged: &damaged, packs: &packs.packs, tail: writer.tail() };
        let table = match index.commit(&changes) {
            Ok(table) => table,
            Err(error) => {
                if let Ok(table) = index.table() {
                    self.view_mut().table = Some(Arc::new(table));
                }
                return Err(self.error("removing blocks", error));
            }
        };
        writer.packs = packs.packs;
        writer.committed = writer.appended;
        {
            let mut view = self.view_mut();
            view.fresh = Places::default();
            view.table = Some(Arc::new(table));
        }
        let mut known = lock(&self.damaged);
        known.retain(|hash, _| !remove.contains(hash));
        self.damages.store(known.len(), Ordering::Release);
        Ok(())
    }

    pub(crate) fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        self.check_open()?;
        let (mut hashes, table) = {
            let view = self.view();
            let newer: BTreeSet<Multihash> =
                view.frozen.iter().chain(view.fresh.iter()).map(|(hash, _)| hash).collect();
            (newer, view.table.clone().ok_or(StoreError::Closed)?)
        };
        let damaged = self.damaged_places();
        hashes.retain(|hash| !damaged.contains_key(hash) || matches!(self.find(hash), Ok(Some(_))));
        let mut listed: Vec<Multihash> = hashes.iter().copied().collect();
        table
            .walk(None, |hash, place| {
                if !hashes.contains(&hash) && damaged.get(&hash) != Some(&place) {
                    listed.push(hash);
                }
                true
            })
            .map_err(|error| self.error("reading the index", error))?;
        Ok(listed)
    }

    pub(crate) fn usage(&self) -> Result<Usage, StoreError> {
        let (newer, table) = {
            let view = self.view();
            (view.fresh.len() + view.frozen.len(), view.table.clone().ok_or(StoreError::Closed)?)
        };
        let blocks = table.len().map_err(|error| self.error("reading the index", error))? + newer as u64;
        let (packs, active) = {
            let writer = lock(&self.writer);
            (writer.packs.clone(), writer.active.as_ref().map(|active| (active.id, active.end)))
        };
        let mut usage = Usage { blocks, bytes: packs.values().map(|state| state.live).sum(), on_disk: 0 };
        for id in packs.keys() {
            usage.on_disk += match active {
                Some((active, end)) if active == *id => end,
                Some(_) | None => match self.pack(*id).and_then(|file| file.size()) {
                    Ok(size) => size,
                    // Compaction has just removed it, or it was lost.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(self.error("measuring the store", error)),
                },
            };
        }
        Ok(usage)
    }

    /// Brings the index up to date and closes it. Harmless when repeated.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let is_pending = {
            let writer = lock(&self.writer);
            writer.appended != writer.committed
        };
        let committed = match self.closed.load(Ordering::SeqCst) || !is_pending {
            true => Ok(()),
            false => self.commit(),
        };
        self.closed.store(true, Ordering::SeqCst);
        // A put that is under way ends first; the next one finds the store closed.
        drop(lock(&self.writer));
        self.view_mut().table = None;
        *lock(&self.index) = None;
        committed
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        // Held for single operations on collections, which a panic elsewhere cannot leave half done.
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back what a failed commit had set apart; what was put meanwhile is newer.
fn unfreeze(view: &mut View) {
    let frozen = std::mem::take(&mut view.frozen);
    view.fresh.complete(&frozen);
}

/// Returns the name of a pack's file.
pub(crate) fn pack_name(id: u32) -> String {
    format!("{id:08}.pack")
}

/// Returns the number of a pack from the name of its file.
pub(crate) fn pack_id(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".pack")?;
    let id = digits.parse().ok()?;
    (pack_name(id) == name).then_some(id)
}

pub(crate) fn data_at(hash: &Multihash, place: Place) -> u64 {
    u64::from(place.offset) + record_len(hash, 0)
}

fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic could leave half done is only ever an append, which the next one goes over.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
