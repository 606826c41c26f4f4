//! The store on disk: iroh-blobs' file store behind the trait.
//!
//! What the file store does not do by itself is done here: a second process is refused by a lock of our own; [`flush`]
//! syncs data files too, which iroh-blobs leaves to the kernel; bytes are hashed again when they are read; a nearly full
//! disk is refused before its database meets it, since the database stops at the first failed commit; and blocks are
//! removed through its collector, the only door it has, which otherwise never runs.
//!
//! [`flush`]: BlobStore::flush

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iptl_artifacts::{BlobStore, StoreError, blake3_of, identity_of};
use iptl_dag::{Block, MAX_BLOCK_SIZE, Multihash};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::{Options, PathOptions};
use iroh_blobs::store::{GcConfig, ProtectOutcome};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};

use crate::alias::Aliases;

/// Requests to the file store's actor under way at once in one call: enough to hide its hops, few enough to hold in memory.
const IN_FLIGHT: usize = 32;

/// Room that is left free on the disk, in bytes: the database needs some for its next commit, and stops where it fails.
const DISK_RESERVE: u64 = 8 << 20;

/// Data files that a flush syncs one by one; for more, one sync of the whole file system is quicker.
const SYNC_ONE_BY_ONE: usize = 16;

/// How long opening waits for an earlier handle of this process to close the database in the background.
const CLOSING_PATIENCE: Duration = Duration::from_secs(10);

/// Pause of the collector between two runs; it then waits for the next removal.
const SWEEP_PAUSE: Duration = Duration::from_millis(1);

/// Largest block that the file store keeps inside its database, in bytes; larger ones are files.
const INLINED: usize = 16 << 10;

type Digest = [u8; 32];

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, holds it.
    #[error("the store in {} is in use{}", path.display(), pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Locked {
        /// Directory of the store.
        path: PathBuf,
        /// Process that holds it, as far as it left its number.
        pid: Option<u32>,
    },
    /// What is there is no store, or a damaged one.
    #[error("the store in {} is damaged: {reason}", path.display())]
    Corrupt {
        /// Directory of the store.
        path: PathBuf,
        /// What the database said.
        reason: String,
    },
    /// Anything else that the operating system reports.
    #[error("store in {}", path.display())]
    Io {
        /// Directory of the store.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A store in one directory.
///
/// Handles are cheap to clone and share one store. [`close`](FsBlobStore::close) ends it in order; dropping the last
/// handle does the same, and waits for it.
#[derive(Clone)]
pub struct FsBlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    paths: PathOptions,
    blobs: FsStore,
    aliases: Mutex<Aliases>,
    /// Data files written since the last flush.
    unsynced: Mutex<BTreeSet<Digest>>,
    /// Entries whose bytes were found damaged: absent until put again.
    damaged: Mutex<BTreeSet<Digest>>,
    /// Puts share it, a removal has it alone: the collector must not meet a block that it has not seen.
    gate: Arc<RwLock<()>>,
    /// One flush at a time; the next one finds most of its work done.
    flushing: tokio::sync::Mutex<()>,
    sweeps: Mutex<Option<mpsc::Sender<Sweep>>>,
    closed: AtomicBool,
    /// Holds the lock until the database is closed: declared last, so dropped last.
    _lock: File,
}

/// A removal on its way through the collector.
struct Sweep {
    /// Everything that stays.
    live: Vec<Hash>,
    done: oneshot::Sender<()>,
    /// Kept until the collector is through, even where the caller went away.
    _gate: OwnedRwLockWriteGuard<()>,
}

impl FsBlobStore {
    /// Opens the store in `dir`, and makes it where there is none.
    ///
    /// Not cancel safe: dropped half-way, the database may stay open in the background for a moment.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<FsBlobStore, OpenError> {
        let dir = dir.into();
        let io = |source| OpenError::Io { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(io)?;
        let dir = fs::canonicalize(&dir).map_err(io)?;
        let lock = lock(&dir)?;
        let aliases = Aliases::open(&dir.join("other-hashes")).map_err(io)?;

        let (sweeps, requests) = mpsc::channel(1);
        let mut options = Options::new(&dir);
        options.inline.max_data_inlined = INLINED as u64;
        options.gc = Some(collector(requests));
        let paths = options.path.clone();
        let blobs = load(&dir, options).await?;

        let inner = Inner {
            dir,
            paths,
            blobs,
            aliases: Mutex::new(aliases),
            unsynced: Mutex::default(),
            damaged: Mutex::default(),
            gate: Arc::default(),
            flushing: tokio::sync::Mutex::default(),
            sweeps: Mutex::new(Some(sweeps)),
            closed: AtomicBool::new(false),
            _lock: lock,
        };
        Ok(FsBlobStore { inner: Arc::new(inner) })
    }

    /// Returns the directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Flushes, closes the database and gives up the lock with the last handle; other handles then report
    /// [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        let flushed = self.flush().await;
        self.inner.shut().await;
        flushed
    }

    /// Returns iroh-blobs' own handle.
    pub(crate) fn blobs(&self) -> &FsStore {
        &self.inner.blobs
    }
}

impl Inner {
    /// Stops the database and lets the collector go. Harmless when repeated.
    async fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.blobs.shutdown().await.ok();
        lock_plain(&self.sweeps).take();
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::SeqCst) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Returns the BLAKE3 digest under which the bytes of `hash` are kept, if it is known at all.
    fn digest(&self, hash: &Multihash) -> Option<Digest> {
        blake3_of(hash).or_else(|| lock_plain(&self.aliases).target(hash))
    }

    async fn is_present(&self, digest: Digest) -> Result<bool, StoreError> {
        if lock_plain(&self.damaged).contains(&digest) {
            return Ok(false);
        }
        let hash = Hash::from_bytes(digest);
        if hash == Hash::EMPTY {
            // iroh-blobs has the empty blob always; the trait's store has it once it was put.
            return Ok(lock_plain(&self.aliases).target(&empty_marker()).is_some());
        }
        match self.blobs.status(hash).await {
            Ok(BlobStatus::Complete { .. }) => Ok(true),
            Ok(BlobStatus::Partial { .. } | BlobStatus::NotFound) => Ok(false),
            Err(error) => Err(self.actor_error(error.to_string())),
        }
    }

    /// Reads blocks that are files; the others come back as `None`. Damaged files are told apart from absent ones.
    async fn read_files(self: &Arc<Self>, digests: Vec<Digest>) -> Result<Vec<Option<FileRead>>, StoreError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || digests.into_iter().map(|digest| this.read_file(digest)).collect())
            .await
            .map_err(|error| StoreError::Io { doing: "reading blocks".into(), source: io::Error::other(error) })?
    }

    fn read_file(&self, digest: Digest) -> Result<Option<FileRead>, StoreError> {
        let hash = Hash::from_bytes(digest);
        let path = self.paths.data_path(&hash);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(format!("opening {}", path.display()), &self.dir, error)),
        };
        let io = |error| StoreError::io(format!("reading {}", path.display()), &self.dir, error);
        let size = usize::try_from(file.metadata().map_err(io)?.len()).unwrap_or(usize::MAX);
        if size > MAX_BLOCK_SIZE {
            return Ok(Some(FileRead::Damaged));
        }
        let mut data = Vec::with_capacity(size);
        Read::by_ref(&mut file).take(MAX_BLOCK_SIZE as u64 + 1).read_to_end(&mut data).map_err(io)?;
        let whole = Hash::new(&data) == hash;
        Ok(Some(if whole { FileRead::Whole(data.into()) } else { FileRead::Damaged }))
    }

    /// Reads a block that is kept inside the database; none where it is absent or broken.
    async fn read_inlined(&self, digest: Digest) -> Option<Bytes> {
        let data = self.blobs.get_bytes(Hash::from_bytes(digest)).await.ok()?;
        (*Hash::new(&data).as_bytes() == digest).then_some(data)
    }

    async fn finish_read(
        self: &Arc<Self>,
        digest: Digest,
        read: Option<FileRead>,
    ) -> Result<Option<Bytes>, StoreError> {
        if let Some(data) = self.whole(digest, read).await {
            return Ok(Some(data));
        }
        // A file that no entry names was left by a crash before its entry was written.
        if !self.is_present(digest).await? {
            return Ok(None);
        }
        // It may have been put between the read and this look. An entry that is there and cannot be read is damaged.
        let again = self.read_files(vec![digest]).await?.pop().flatten();
        match self.whole(digest, again).await {
            Some(data) => Ok(Some(data)),
            None => {
                tracing::error!(hash = %Hash::from_bytes(digest), "a stored block cannot be read");
                Err(self.damaged(digest))
            }
        }
    }

    async fn whole(&self, digest: Digest, read: Option<FileRead>) -> Option<Bytes> {
        match read {
            Some(FileRead::Whole(data)) => Some(data),
            Some(FileRead::Damaged) => None,
            None => self.read_inlined(digest).await,
        }
    }

    /// Notes that an entry is damaged, so that it can be put again.
    fn damaged(&self, digest: Digest) -> StoreError {
        lock_plain(&self.damaged).insert(digest);
        StoreError::Corrupt { hash: multihash(digest) }
    }

    /// Refuses what would leave less than the reserve.
    fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let needed = DISK_RESERVE + bytes;
        match available(&self.dir) {
            Ok(available) if available < needed => Err(StoreError::Full { path: self.dir.clone(), available, needed }),
            // A file system that does not tell its free space is written to until it refuses.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Explains why the actor did not answer.
    fn actor_error(&self, reason: String) -> StoreError {
        if let Err(full) = self.check_room(0) {
            return full;
        }
        tracing::debug!(%reason, "the file store does not answer");
        StoreError::Closed
    }

    fn api_error(&self, doing: &str, error: iroh_blobs::api::Error) -> StoreError {
        let iroh_blobs::api::Error::Io(source) = error;
        match StoreError::io(doing, &self.dir, source) {
            StoreError::Full { path, .. } => {
                let available = available(&path).unwrap_or(0);
                StoreError::Full { path, available, needed: DISK_RESERVE }
            }
            StoreError::Io { doing, source } => match self.check_room(0) {
                Err(full) => full,
                Ok(()) => StoreError::Io { doing, source },
            },
            other @ (StoreError::Corrupt { .. }
            | StoreError::Closed
            | StoreError::Missing { .. }
            | StoreError::Hash(_)) => other,
        }
    }

    fn sync_files(&self, digests: &BTreeSet<Digest>) -> io::Result<()> {
        if digests.is_empty() {
            return Ok(());
        }
        let dir = File::open(&self.paths.data_path)?;
        if digests.len() > SYNC_ONE_BY_ONE {
            return nix::unistd::syncfs(&dir).map_err(io::Error::from);
        }
        for digest in digests {
            match File::open(self.paths.data_path(&Hash::from_bytes(*digest))) {
                Ok(file) => file.sync_data()?,
                // Removed again before it was flushed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        dir.sync_all()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The database must be closed before the lock goes, or the next process finds it open. Its actors run on
        // threads of their own, so waiting for them here cannot deadlock.
        futures::executor::block_on(self.shut());
    }
}

enum FileRead {
    Whole(Bytes),
    Damaged,
}

#[async_trait]
impl BlobStore for FsBlobStore {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        self.inner.check_open()?;
        futures::stream::iter(hashes.to_vec())
            .map(|hash| async move {
                if identity_of(&hash).is_some() {
                    return Ok(true);
                }
                match self.inner.digest(&hash) {
                    Some(digest) => self.inner.is_present(digest).await,
                    None => Ok(false),
                }
            })
            .buffered(IN_FLIGHT)
            .try_collect()
            .await
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        let mut batch = self.get_batch(std::slice::from_ref(hash)).await?;
        Ok(batch.pop().expect("a batch answers every hash"))
    }

    async fn get_batch(&self, hashes: &[Multihash]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.inner.check_open()?;
        let mut answers: Vec<Option<Bytes>> = hashes.iter().map(identity_of).collect();
        let mut wanted: Vec<(usize, Digest)> = Vec::with_capacity(hashes.len());
        for (i, hash) in hashes.iter().enumerate() {
            if answers[i].is_none()
                && let Some(digest) = self.inner.digest(hash)
                && !lock_plain(&self.inner.damaged).contains(&digest)
            {
                if digest == *Hash::EMPTY.as_bytes() {
                    answers[i] = self.inner.is_present(digest).await?.then(Bytes::new);
                } else {
                    wanted.push((i, digest));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(answers);
        }
        let reads = self.inner.read_files(wanted.iter().map(|(_, digest)| *digest).collect()).await?;
        let mut rest =
            futures::stream::iter(wanted.into_iter().zip(reads))
                .map(|((i, digest), read)| async move {
                    Ok::<_, StoreError>((i, self.inner.finish_read(digest, read).await?))
                })
                .buffered(IN_FLIGHT);
        while let Some((i, data)) = rest.try_next().await? {
            answers[i] = data;
        }
        Ok(answers)
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.inner.check_open()?;
        let bytes: u64 = blocks.iter().map(|block| block.data().len() as u64).sum();
        self.inner.check_room(bytes)?;
        let _gate = self.inner.gate.clone().read_owned().await;
        let mut others = Vec::new();
        let mut wanted: BTreeMap<Digest, Bytes> = BTreeMap::new();
        for block in blocks {
            let (cid, data) = block.into_parts();
            let hash = *cid.hash();
            if identity_of(&hash).is_some() {
                continue;
            }
            let digest = blake3_of(&hash).unwrap_or_else(|| {
                let digest = *Hash::new(&data).as_bytes();
                others.push((hash, digest));
                digest
            });
            wanted.insert(digest, data);
        }
        if wanted.remove(Hash::EMPTY.as_bytes()).is_some() {
            others.push((empty_marker(), *Hash::EMPTY.as_bytes()));
        }
        futures::stream::iter(wanted)
            .map(|(digest, data)| async move {
                if self.inner.is_present(digest).await? {
                    return Ok(());
                }
                let is_file = data.len() > INLINED;
                let added = self.inner.blobs.add_bytes(data).temp_tag().await;
                let tag = added.map_err(|error| self.inner.api_error("adding a block", error.into()))?;
                assert_eq!(*tag.hash().as_bytes(), digest, "a block is kept under the hash that was verified");
                if is_file {
                    lock_plain(&self.inner.unsynced).insert(digest);
                }
                lock_plain(&self.inner.damaged).remove(&digest);
                Ok::<_, StoreError>(())
            })
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        if !others.is_empty() {
            lock_plain(&self.inner.aliases)
                .add(&others)
                .map_err(|error| StoreError::io("writing the index of other hashes", &self.inner.dir, error))?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.inner.check_open()?;
        let _one = self.inner.flushing.lock().await;
        let io = |error| StoreError::io("syncing the store", &self.inner.dir, error);
        let files = std::mem::take(&mut *lock_plain(&self.inner.unsynced));
        let aliases = lock_plain(&self.inner.aliases).handle_to_sync();
        if !files.is_empty() || !matches!(aliases, Ok(None)) {
            let inner = self.inner.clone();
            // Runs to its end even where the caller goes away, so that what it could not sync is not forgotten.
            let sync = move || {
                let synced = inner.sync_files(&files);
                if synced.is_err() {
                    lock_plain(&inner.unsynced).extend(files);
                }
                let aliased = aliases.and_then(|file| file.map_or(Ok(()), |file| file.sync_data()));
                if aliased.is_err() {
                    lock_plain(&inner.aliases).sync_failed();
                }
                synced.and(aliased)
            };
            tokio::task::spawn_blocking(sync).await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(io)?;
        }
        // Its arrival ends the batch of up to 500 ms that the database is in, and is answered after the commit.
        self.inner.blobs.sync_db().await.map_err(|error| self.inner.api_error("committing the store", error.into()))
    }

    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        self.inner.check_open()?;
        let gate = self.inner.gate.clone().write_owned().await;
        let mut doomed: BTreeSet<Digest> = hashes.iter().filter_map(blake3_of).collect();
        {
            let mut aliases = lock_plain(&self.inner.aliases);
            let mut names: Vec<Multihash> = hashes.iter().filter(|hash| blake3_of(hash).is_none()).copied().collect();
            if doomed.remove(Hash::EMPTY.as_bytes()) {
                names.push(empty_marker());
            }
            let targets = aliases
                .remove(&names)
                .map_err(|error| StoreError::io("writing the index of other hashes", &self.inner.dir, error))?;
            drop(targets);
            doomed.retain(|digest| !aliases.leads_to(digest));
        }
        if doomed.is_empty() {
            return Ok(());
        }
        lock_plain(&self.inner.unsynced).retain(|digest| !doomed.contains(digest));
        lock_plain(&self.inner.damaged).retain(|digest| !doomed.contains(digest));
        let stored = self.inner.blobs.blobs().list().hashes().await;
        let stored = stored.map_err(|error| self.inner.api_error("listing the store", error.into()))?;
        let live = stored.into_iter().filter(|hash| !doomed.contains(hash.as_bytes())).collect();
        let (done, swept) = oneshot::channel();
        let sweeps = lock_plain(&self.inner.sweeps).clone().ok_or(StoreError::Closed)?;
        sweeps.send(Sweep { live, done, _gate: gate }).await.map_err(|_| StoreError::Closed)?;
        swept.await.map_err(|_| self.inner.actor_error("the collector stopped".into()))
    }

    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        self.inner.check_open()?;
        let stored = self.inner.blobs.blobs().list().hashes().await;
        let stored = stored.map_err(|error| self.inner.api_error("listing the store", error.into()))?;
        let mut hashes: Vec<Multihash> = stored.iter().map(|hash| multihash(*hash.as_bytes())).collect();
        for (hash, target) in lock_plain(&self.inner.aliases).hashes() {
            if *hash == empty_marker() {
                hashes.push(multihash(*target));
            } else {
                hashes.push(*hash);
            }
        }
        Ok(hashes)
    }
}

/// Takes the lock of a directory, or says who has it.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let io = |source| OpenError::Io { path: dir.to_path_buf(), source };
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::Locked { path: dir.to_path_buf(), pid });
        }
        Err(fs::TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

async fn load(dir: &Path, options: Options) -> Result<FsStore, OpenError> {
    let began = Instant::now();
    loop {
        let reason = match FsStore::load_with_opts(dir.join("blobs.db"), options.clone()).await {
            Ok(store) => return Ok(store),
            Err(error) => format!("{error:#}"),
        };
        // Our lock is held, so only a handle of this process that is still closing can have it open.
        if !reason.contains("already open") || began.elapsed() > CLOSING_PATIENCE {
            return Err(match available(dir) {
                Ok(free) if free < DISK_RESERVE => OpenError::Io {
                    path: dir.to_path_buf(),
                    source: io::Error::new(io::ErrorKind::StorageFull, reason),
                },
                Ok(_) | Err(_) => OpenError::Corrupt { path: dir.to_path_buf(), reason },
            });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes the collector that runs only when something is to be removed, and then removes just that.
fn collector(requests: mpsc::Receiver<Sweep>) -> GcConfig {
    let requests = Arc::new(tokio::sync::Mutex::new((requests, None::<Sweep>)));
    let add_protected: iroh_blobs::store::ProtectCb = Arc::new(move |live: &mut HashSet<Hash>| {
        let requests = requests.clone();
        Box::pin(async move {
            let mut state = requests.lock().await;
            let (requests, current) = &mut *state;
            // Being asked again means that the run for the last removal is over and committed.
            if let Some(sweep) = current.take() {
                sweep.done.send(()).ok();
            }
            let Some(sweep) = requests.recv().await else {
                // The store is closed. The collector holds a handle on it and ends by nothing but an error, which it
                // logs as one; unwinding ends its task in silence, since no panic hook runs.
                if cfg!(panic = "unwind") {
                    std::panic::resume_unwind(Box::new("the store is closed"));
                }
                return std::future::pending().await;
            };
            live.extend(sweep.live.iter().copied());
            *current = Some(sweep);
            ProtectOutcome::Continue
        })
    });
    GcConfig { interval: SWEEP_PAUSE, add_protected: Some(add_protected) }
}

/// Returns the multihash of a BLAKE3 digest.
fn multihash(digest: Digest) -> Multihash {
    Multihash::wrap(0x1e, &digest).expect("32 bytes fit into a multihash")
}

/// Stands in the index of other hashes for the empty block, which iroh-blobs can neither store nor lack.
fn empty_marker() -> Multihash {
    Multihash::wrap(0, &[]).expect("nothing fits into a multihash")
}

/// Returns the bytes that this user may still write to the disk of `dir`.
fn available(dir: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn lock_plain<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Guards are held for single operations on collections, which a panic elsewhere cannot leave half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
