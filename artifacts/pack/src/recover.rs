//! Opening: what the packs say and the index does not know yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use iptl_dag::Multihash;

use crate::OpenError;
use crate::engine::{Active, Damage, Engine, Options, View, Writer, pack_id, pack_name};
use crate::files::{FileAt, Files};
use crate::index::{Changes, Index, PackState, Remembered, Tail};
use crate::places::Places;
use crate::record::{PACK_HEADER, Place, Salt, parse_pack_header, record_len};
use crate::scan::Scan;

/// Name of the database that an earlier version of the store had.
const EARLIER: &str = "blobs.db";

/// Largest size of a pack: places in it are 32 bits, and the last record may go over it.
const MAX_PACK: u64 = 1 << 30;

/// Blocks that are put into the index by one commit while it is made again.
const BATCH: usize = 128 << 10;

/// Opens the store in `files`; `dir` is where people find it.
pub(crate) fn open(files: Arc<dyn Files>, dir: PathBuf, options: Options) -> Result<Engine, OpenError> {
    assert!(options.pack_size <= MAX_PACK, "a pack of {} bytes is too large", options.pack_size);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => OpenError::Corrupt { path: dir.clone(), reason: source.to_string() },
        _ => OpenError::Io { path: dir.clone(), source },
    };
    let names = files.names().map_err(failed)?;
    if names.iter().any(|name| name == EARLIER) {
        let reason = "an earlier version made it; move it away, then publish or fetch again what it held".into();
        return Err(OpenError::Corrupt { path: dir, reason });
    }
    let ids: BTreeSet<u32> = names.iter().filter_map(|name| pack_id(name)).collect();
    let (index, was_there) = Index::open(files.clone()).map_err(failed)?;
    let (index, remembered) = match index.remembered() {
        Ok(remembered) => (index, remembered),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let mut index = index;
            index.begin_again().map_err(failed)?;
            let remembered = index.remembered().map_err(failed)?;
            (index, remembered)
        }
        Err(error) => return Err(failed(error)),
    };
    if !was_there && !ids.is_empty() {
        tracing::info!(packs = ids.len(), "the index of the store is made from its packs");
    }
    let mut replay = Replay::new(files.clone(), index, remembered);
    replay.run(&ids).map_err(failed)?;
    let Replay { index, writer, fresh, table, damaged, .. } = replay;
    let view = View { fresh, frozen: Arc::default(), table: Some(Arc::new(table)) };
    let damaged: BTreeMap<Multihash, Damage> =
        damaged.into_iter().map(|(hash, place)| (hash, Damage { place, counted: true })).collect();
    let mut writer = writer;
    if writer.active.as_ref().is_some_and(|active| active.end >= options.pack_size) {
        writer.active = None;
    }
    Ok(Engine {
        dir,
        files,
        options,
        index: Mutex::new(Some(index)),
        syncing: Mutex::new(0),
        writer: Mutex::new(writer),
        view: RwLock::new(view),
        damages: damaged.len().into(),
        damaged: Mutex::new(damaged),
        open: Mutex::default(),
        closed: AtomicBool::new(false),
    })
}

/// Reads packs into an index.
pub(crate) struct Replay {
    files: Arc<dyn Files>,
    pub(crate) index: Index,
    pub(crate) writer: Writer,
    pub(crate) fresh: Places,
    pub(crate) table: crate::index::Table,
    pub(crate) damaged: BTreeMap<Multihash, Place>,
    tail: Tail,
}

impl Replay {
    fn new(files: Arc<dyn Files>, index: Index, remembered: Remembered) -> Replay {
        let table = index.table().expect("an index that was just read from has its table");
        let Remembered { packs, damaged, tail } = remembered;
        // A number is never used again, though its pack be lost: the index knows places in it.
        let next_id = packs.keys().max().map_or(1, |id| id + 1).max(tail.pack + u32::from(tail.offset > 0));
        let writer = Writer { packs, next_id, appended: 1, ..Writer::default() };
        Replay { files, index, writer, fresh: Places::default(), table, damaged, tail }
    }

    fn run(&mut self, ids: &BTreeSet<u32>) -> io::Result<()> {
        let last = ids.last().copied();
        self.writer.packs.retain(|id, state| ids.contains(id) || state.live > 0);
        for id in ids {
            let file = self.files.open(&pack_name(*id))?;
            let len = file.size()?;
            let Some(salt) = self.salt(*id, &*file, len)? else { continue };
            self.writer.next_id = self.writer.next_id.max(id + 1);
            self.writer.packs.entry(*id).or_insert(PackState { salt, live: 0 });
            let known = match () {
                () if *id < self.tail.pack => len,
                () if *id == self.tail.pack => u64::from(self.tail.offset).max(PACK_HEADER),
                () => PACK_HEADER,
            };
            let is_last = Some(*id) == last;
            let end = self.read(*id, file.clone(), salt, known, is_last)?;
            if !is_last {
                continue;
            }
            if end < len {
                tracing::warn!(pack = id, bytes = len - end, "cut a torn end off the last pack of the store");
                file.set_size(end)?;
            }
            // Where the file is shorter than what the index knows, something was lost, and its place stays unused.
            if known <= len {
                self.writer.active = Some(Active { id: *id, file, salt, end });
            }
        }
        self.writer.committed = 1;
        if !self.fresh.is_empty() {
            self.writer.appended += 1;
        }
        Ok(())
    }

    /// Returns the salt of a pack; none where it has none, and is removed if nothing can be lost with it.
    fn salt(&mut self, id: u32, file: &dyn FileAt, len: u64) -> io::Result<Option<Salt>> {
        let mut header = [0; PACK_HEADER as usize];
        let read = file.read_at(0, &mut header)?;
        let salt = parse_pack_header(&header[..read]);
        if salt.is_some() {
            return Ok(salt);
        }
        if let Some(known) = self.writer.packs.get(&id) {
            tracing::warn!(pack = id, "the header of a pack is damaged; the index remembers what it said");
            return Ok(Some(known.salt));
        }
        // The header is synced before anything else is written.
        if len <= PACK_HEADER {
            self.files.remove(&pack_name(id))?;
        } else {
            tracing::error!(pack = id, "a pack's header is damaged and the index does not know it; it is left alone");
        }
        self.writer.next_id = self.writer.next_id.max(id + 1);
        Ok(None)
    }

    /// Reads the records of a pack from `known` on; returns the end of the last one.
    fn read(&mut self, id: u32, file: Arc<dyn FileAt>, salt: Salt, known: u64, is_last: bool) -> io::Result<u64> {
        // Packs before the last were synced before the next was begun. So only what is behind the index, or in the last
        // pack, may have been torn; what else is damaged is found when it is read.
        let verify = is_last || id == self.tail.pack;
        let mut scan = Scan::new(file, salt, known, verify)?;
        while let Some(found) = scan.next()? {
            let hash = found.header.hash;
            let place = Place { pack: id, offset: found.offset, size: found.header.size };
            let old = match self.fresh.insert(&hash, place) {
                Some(old) => Some(old),
                None => self.table.get(&hash)?,
            };
            if let Some(old) = old {
                self.writer.sub_live(&hash, old);
            }
            self.writer.add_live(&hash, place);
            self.damaged.remove(&hash);
            if self.fresh.len() >= BATCH {
                self.commit(Tail { pack: id, offset: found.offset + record_len_u32(&hash, place) })?;
            }
        }
        if scan.damaged > 0 {
            tracing::warn!(pack = id, bytes = scan.damaged, "a pack has damaged places");
        }
        Ok(scan.end())
    }

    fn commit(&mut self, tail: Tail) -> io::Result<()> {
        // It is on the disk: packs before the last were synced, and of the last one what is read here now.
        self.files.open(&pack_name(tail.pack))?.sync()?;
        let changes =
            Changes { insert: &self.fresh, remove: &[], damaged: &BTreeMap::new(), packs: &self.writer.packs, tail };
        self.table = self.index.commit(&changes)?;
        self.fresh = Places::default();
        Ok(())
    }
}

fn record_len_u32(hash: &Multihash, place: Place) -> u32 {
    u32::try_from(record_len(hash, place.size as usize)).expect("a record is small")
}

/// Makes the index of a store again, out of its packs.
pub(crate) fn rebuild(files: Arc<dyn Files>, mut index: Index) -> io::Result<Replay> {
    index.begin_again()?;
    let remembered = index.remembered()?;
    let ids: BTreeSet<u32> = files.names()?.iter().filter_map(|name| pack_id(name)).collect();
    let mut replay = Replay::new(files, index, remembered);
    replay.run(&ids)?;
    Ok(replay)
}
