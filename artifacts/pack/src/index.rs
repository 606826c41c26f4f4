//! The index: from multihash to place, in a redb database beside the packs.
//!
//! It may lag behind the packs, whose records say the same, and never runs ahead of what is durable there. Every commit
//! notes the position up to which it knows the packs. Where it is damaged it is made again.
//!
//! redb trusts its own pages, so a flipped bit in one may make it panic: every call goes through `sheltered`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_dag::Multihash;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::files::{FileAt, Files};
use crate::places::Places;
use crate::record::{Place, Salt};

/// Name of the database.
pub(crate) const INDEX: &str = "index.redb";

/// Memory for pages, in bytes: the inner pages of 10^7 blocks, and the leaves in use. The kernel keeps the rest.
const CACHE: usize = 32 << 20;

/// How long a check of the database waits for reads that are under way: they take milliseconds.
const READING: Duration = Duration::from_secs(10);

/// Where each block is.
const BLOCKS: TableDefinition<'static, &[u8], &[u8; 12]> = TableDefinition::new("blocks/1");

/// Of each pack its salt and the bytes of records that the index names.
const PACKS: TableDefinition<'static, u32, &[u8; 24]> = TableDefinition::new("packs/1");

/// Blocks that were found damaged, and where.
const DAMAGED: TableDefinition<'static, &[u8], &[u8; 12]> = TableDefinition::new("damaged/1");

/// The one entry `tail`: up to where the index knows the packs.
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta/1");

const TAIL: &str = "tail";

/// A position in the packs, in the order in which they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tail {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
}

/// What the index knows of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackState {
    pub(crate) salt: Salt,
    /// Bytes of records that are in use.
    pub(crate) live: u64,
}

/// What a commit changes.
pub(crate) struct Changes<'a> {
    pub(crate) insert: &'a Places,
    pub(crate) remove: &'a [Multihash],
    /// Blocks found damaged, each where it was: one that is meanwhile elsewhere stays.
    pub(crate) damaged: &'a BTreeMap<Multihash, Place>,
    pub(crate) packs: &'a BTreeMap<u32, PackState>,
    pub(crate) tail: Tail,
}

/// Everything but the blocks, as read when the store opens.
pub(crate) struct Remembered {
    pub(crate) packs: BTreeMap<u32, PackState>,
    pub(crate) damaged: BTreeMap<Multihash, Place>,
    pub(crate) tail: Tail,
}

/// The database.
pub(crate) struct Index {
    files: Arc<dyn Files>,
    database: Option<Database>,
}

impl Index {
    /// Opens the database, and makes it where there is none; says too whether there was one that could be used.
    pub(crate) fn open(files: Arc<dyn Files>) -> io::Result<(Index, bool)> {
        let found = match files.open(INDEX) {
            Ok(file) => match load(file) {
                Ok(database) => return Ok((Index { files, database: Some(database) }, true)),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            Err(error) => return Err(error),
        };
        if found.kind() != io::ErrorKind::NotFound {
            tracing::warn!(error = %found, "the index of the store is damaged and is made again");
        }
        let mut index = Index { files, database: None };
        index.begin_again()?;
        Ok((index, false))
    }

    /// Throws the database away and makes an empty one.
    pub(crate) fn begin_again(&mut self) -> io::Result<()> {
        self.discard();
        let file = self.files.create(INDEX)?;
        self.files.sync_names()?;
        self.database = Some(load(file)?);
        Ok(())
    }

    /// Opens the database anew after an error, which it does not get over by itself.
    fn reopen(&mut self) {
        self.discard();
        let reopened = self.files.open(INDEX).and_then(load);
        match reopened {
            Ok(database) => self.database = Some(database),
            Err(error) => tracing::error!(%error, "the index of the store cannot be opened again"),
        }
    }

    /// Says whether every page is as it was written; waits for those who read.
    pub(crate) fn is_sound(&mut self) -> io::Result<bool> {
        let Some(database) = &mut self.database else { return Ok(false) };
        let began = Instant::now();
        loop {
            let checked = sheltered(|| match database.check_integrity() {
                Err(redb::DatabaseError::TransactionInProgress) => Err(io::ErrorKind::ResourceBusy.into()),
                checked => checked.map_err(database_error),
            });
            match checked {
                Ok(sound) => return Ok(sound),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < READING => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads everything but the blocks.
    pub(crate) fn remembered(&self) -> io::Result<Remembered> {
        let database = self.database()?;
        sheltered(|| {
            let read = database.begin_read().map_err(other)?;
            let mut remembered = Remembered { packs: BTreeMap::new(), damaged: BTreeMap::new(), tail: Tail::default() };
            for entry in read.open_table(PACKS).map_err(other)?.iter().map_err(storage)? {
                let (id, state) = entry.map_err(storage)?;
                let (salt, live) = state.value().split_at(16);
                let state = PackState {
                    salt: salt.try_into().expect("16 bytes were split off"),
                    live: u64::from_le_bytes(live.try_into().expect("8 bytes are left")),
                };
                remembered.packs.insert(id.value(), state);
            }
            for entry in read.open_table(DAMAGED).map_err(other)?.iter().map_err(storage)? {
                let (hash, place) = entry.map_err(storage)?;
                remembered.damaged.insert(multihash(hash.value())?, Place::from_bytes(place.value()));
            }
            let tail = read.open_table(META).map_err(other)?.get(TAIL).map_err(storage)?;
            let tail = tail.map_or(0, |tail| tail.value());
            let [a, b, c, d, e, f, g, h] = tail.to_be_bytes();
            remembered.tail = Tail { pack: u32::from_be_bytes([a, b, c, d]), offset: u32::from_be_bytes([e, f, g, h]) };
            Ok(remembered)
        })
    }

    /// Returns the blocks as they are now; later commits do not change what was returned.
    pub(crate) fn table(&self) -> io::Result<Table> {
        let database = self.database()?;
        sheltered(|| {
            let read = database.begin_read().map_err(other)?;
            Ok(Table(read.open_table(BLOCKS).map_err(other)?))
        })
    }

    /// Commits changes durably. After an error nothing is changed.
    pub(crate) fn commit(&mut self, changes: &Changes<'_>) -> io::Result<Table> {
        let committed = self.database().and_then(|database| sheltered(|| write(database, changes)));
        match committed {
            Ok(()) => self.table(),
            Err(error) => {
                self.reopen();
                Err(error)
            }
        }
    }

    /// Closes the database, whatever state it is in.
    fn discard(&mut self) {
        let database = self.database.take();
        if let Err(error) = sheltered(|| {
            drop(database);
            Ok(())
        }) {
            tracing::warn!(%error, "the index did not close in order");
        }
    }

    fn database(&self) -> io::Result<&Database> {
        self.database.as_ref().ok_or_else(|| io::Error::other("the index is not open"))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.discard();
    }
}

fn write(database: &Database, changes: &Changes<'_>) -> io::Result<()> {
    let mut transaction = database.begin_write().map_err(other)?;
    // The state of its allocator goes with each commit, so that opening after a crash walks no tree.
    transaction.set_quick_repair(true);
    {
        let mut blocks = transaction.open_table(BLOCKS).map_err(other)?;
        let mut damaged = transaction.open_table(DAMAGED).map_err(other)?;
        let any_damaged = !damaged.is_empty().map_err(storage)?;
        for (key, place) in changes.insert.entries() {
            blocks.insert(key, &place.to_bytes()).map_err(storage)?;
            if any_damaged {
                damaged.remove(key).map_err(storage)?;
            }
        }
        for hash in changes.remove {
            let key = hash.to_bytes();
            blocks.remove(key.as_slice()).map_err(storage)?;
            damaged.remove(key.as_slice()).map_err(storage)?;
        }
        for (hash, place) in changes.damaged {
            let key = hash.to_bytes();
            let stands = blocks.get(key.as_slice()).map_err(storage)?.map(|found| Place::from_bytes(found.value()));
            if stands == Some(*place) {
                blocks.remove(key.as_slice()).map_err(storage)?;
                damaged.insert(key.as_slice(), &place.to_bytes()).map_err(storage)?;
            }
        }
        let mut packs = transaction.open_table(PACKS).map_err(other)?;
        let mut known = BTreeSet::new();
        for entry in packs.iter().map_err(storage)? {
            known.insert(entry.map_err(storage)?.0.value());
        }
        for gone in known.iter().filter(|id| !changes.packs.contains_key(id)) {
            packs.remove(gone).map_err(storage)?;
        }
        for (id, state) in changes.packs {
            let mut bytes = [0; 24];
            bytes[..16].copy_from_slice(&state.salt);
            bytes[16..].copy_from_slice(&state.live.to_le_bytes());
            packs.insert(id, &bytes).map_err(storage)?;
        }
        let tail = u64::from(changes.tail.pack) << 32 | u64::from(changes.tail.offset);
        transaction.open_table(META).map_err(other)?.insert(TAIL, tail).map_err(storage)?;
    }
    transaction.commit().map_err(other)
}

/// The blocks at one moment.
pub(crate) struct Table(ReadOnlyTable<&'static [u8], &'static [u8; 12]>);

impl Table {
    /// Returns the place of a block.
    pub(crate) fn get(&self, hash: &Multihash) -> io::Result<Option<Place>> {
        let key = hash.to_bytes();
        sheltered(|| {
            let found = self.0.get(key.as_slice()).map_err(storage)?;
            Ok(found.map(|place| Place::from_bytes(place.value())))
        })
    }

    /// Returns the number of blocks.
    pub(crate) fn len(&self) -> io::Result<u64> {
        sheltered(|| self.0.len().map_err(storage))
    }

    /// Hands over the blocks behind `after` until `take` says that it has enough; returns the last one where it had.
    pub(crate) fn walk(
        &self,
        after: Option<&Multihash>,
        mut take: impl FnMut(Multihash, Place) -> bool,
    ) -> io::Result<Option<Multihash>> {
        use std::ops::Bound;
        let key = after.map(Multihash::to_bytes);
        let from = match &key {
            Some(key) => Bound::Excluded(key.as_slice()),
            None => Bound::Unbounded,
        };
        sheltered(|| {
            for entry in self.0.range::<&[u8]>((from, Bound::Unbounded)).map_err(storage)? {
                let (hash, place) = entry.map_err(storage)?;
                let hash = multihash(hash.value())?;
                if !take(hash, Place::from_bytes(place.value())) {
                    return Ok(Some(hash));
                }
            }
            Ok(None)
        })
    }
}

fn load(file: Arc<dyn FileAt>) -> io::Result<Database> {
    let database = sheltered(|| {
        Database::builder().set_cache_size(CACHE).create_with_backend(Backend(file)).map_err(database_error)
    })?;
    sheltered(|| {
        let transaction = database.begin_write().map_err(other)?;
        // Reading needs the tables to be there; where they are, this writes nothing.
        let is_new = transaction.list_tables().map_err(storage)?.next().is_none();
        if is_new {
            transaction.open_table(BLOCKS).map_err(other)?;
            transaction.open_table(PACKS).map_err(other)?;
            transaction.open_table(DAMAGED).map_err(other)?;
            transaction.open_table(META).map_err(other)?;
            transaction.commit().map_err(other)
        } else {
            transaction.abort().map_err(storage)
        }
    })?;
    Ok(database)
}

fn multihash(bytes: &[u8]) -> io::Result<Multihash> {
    Multihash::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Calls into redb, and makes a panic in there an error like any other damage.
fn sheltered<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the index is damaged: its database gave up"))
    })
}

fn database_error(error: redb::DatabaseError) -> io::Error {
    match error {
        redb::DatabaseError::Storage(error) => storage(error),
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

fn storage(error: redb::StorageError) -> io::Error {
    other(error)
}

fn other(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        // redb takes a file that ends early, and one that is none of its own, for an error of the system.
        redb::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        redb::Error::Io(error) => error,
        error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed) => io::Error::other(error),
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

/// Gives redb a file of the store.
#[derive(Debug)]
struct Backend(Arc<dyn FileAt>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(offset, out)? {
            read if read == out.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, &[data])
    }
}
