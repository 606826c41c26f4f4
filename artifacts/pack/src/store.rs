//! The store as tasks see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_artifacts::{BlobStore, StoreError, Usage};
use iptl_dag::{Block, Multihash};

use crate::check::Checked;
use crate::engine::{Engine, Glance, Options, lock};
use crate::files::{Directory, Files};
use crate::lock::OpenError;
use crate::recover;

/// Hashes that are looked up where they are asked for; more of them go to a thread that may wait.
const FEW: usize = 64;

/// Bytes of a batch that are read where they are asked for, in some 100 µs; the rest goes to a thread that may wait.
const GLANCED_BYTES: usize = 512 << 10;

/// Times that the index may lag behind what it should before puts wait for it.
const MAX_LAG: f64 = 4.0;

/// Blocks in pack files with an index, in one directory.
///
/// Handles are cheap to clone and share one store. [`close`](PackStore::close) ends it in order; dropping the last
/// handle does the same, and waits for it.
#[derive(Clone)]
pub struct PackStore {
    handle: Arc<Handle>,
}

/// What is closed with the last handle. Calls that nobody waits for any more hold the engine alone.
struct Handle {
    engine: Arc<Engine>,
    is_committing: Arc<AtomicBool>,
    is_flushing: Arc<AtomicBool>,
    lock: Mutex<Option<fs::File>>,
}

impl PackStore {
    /// Opens the store in `dir`, and makes it where there is none.
    ///
    /// Dropped half-way, it ends in the background.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<PackStore, OpenError> {
        PackStore::open_with(dir, Options::default()).await
    }

    /// As [`PackStore::open`], with other sizes.
    pub async fn open_with(dir: impl Into<PathBuf>, options: Options) -> Result<PackStore, OpenError> {
        let dir = dir.into();
        let path = dir.clone();
        let opening = move || {
            let io = |source| OpenError::Io { path: dir.clone(), source };
            fs::create_dir_all(&dir).map_err(io)?;
            let dir = fs::canonicalize(&dir).map_err(io)?;
            let lock = crate::lock::lock(&dir)?;
            let engine = recover::open(Arc::new(Directory::new(&dir)), dir, options)?;
            Ok(PackStore::of(engine, Some(lock)))
        };
        blocking(opening).await.unwrap_or_else(|source| Err(OpenError::Io { path, source }))
    }

    /// Opens a store on other files than a directory's: for tests of what a disk can do.
    pub async fn open_on(files: Arc<dyn Files>, options: Options) -> Result<PackStore, OpenError> {
        let path = PathBuf::from("store");
        let opening = {
            let path = path.clone();
            move || recover::open(files, path, options).map(|engine| PackStore::of(engine, None))
        };
        blocking(opening).await.unwrap_or_else(|source| Err(OpenError::Io { path, source }))
    }

    fn of(engine: Engine, lock: Option<fs::File>) -> PackStore {
        let handle = Handle {
            engine: Arc::new(engine),
            is_committing: Arc::default(),
            is_flushing: Arc::default(),
            lock: Mutex::new(lock),
        };
        PackStore { handle: Arc::new(handle) }
    }

    /// Returns the directory of the store.
    pub fn dir(&self) -> &Path {
        self.engine().dir()
    }

    /// Flushes, closes the index and gives up the lock; other handles then report [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        let handle = self.handle.clone();
        self.run(move |engine| {
            let closed = engine.close();
            lock(&handle.lock).take();
            closed
        })
        .await
    }

    /// Hashes every block again; what is damaged is named, and absent from then on. `progress` gets blocks and bytes.
    ///
    /// Dropped half-way, it goes on without being heard.
    pub async fn check(&self, mut progress: impl FnMut(u64, u64) + Send + 'static) -> Result<Checked, StoreError> {
        self.run(move |engine| engine.check(&mut progress)).await
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.handle.engine
    }

    /// Does something that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let engine = self.engine().clone();
        blocking(move || work(&engine))
            .await
            .unwrap_or_else(|source| Err(StoreError::Io { doing: "using the store".into(), source }))
    }

    /// Does what nobody asked for and everybody gains by: dirty pages go to the disk, the index follows.
    async fn follow(&self) -> Result<(), StoreError> {
        let lag = self.engine().lag();
        if lag > MAX_LAG {
            return self.run(Engine::commit).await;
        }
        if lag >= 1.0 {
            self.once(&self.handle.is_committing, Engine::commit);
        } else if self.engine().wants_flush() {
            self.once(&self.handle.is_flushing, Engine::flush);
        }
        Ok(())
    }

    /// Starts something in the background unless it is under way.
    fn once(&self, is_running: &Arc<AtomicBool>, work: fn(&Engine) -> Result<(), StoreError>) {
        if is_running.swap(true, Ordering::SeqCst) {
            return;
        }
        let (engine, is_running) = (self.engine().clone(), is_running.clone());
        tokio::task::spawn_blocking(move || {
            match work(&engine) {
                Ok(()) | Err(StoreError::Closed) => {}
                // Whoever flushes next meets it too, and is told.
                Err(error) => tracing::warn!(%error, "the store fell behind"),
            }
            is_running.store(false, Ordering::SeqCst);
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.engine.close() {
            tracing::warn!(%error, "the store did not close in order; it is put right when it opens");
        }
    }
}

/// Runs what may block on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}

#[async_trait]
impl BlobStore for PackStore {
    async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        if hashes.len() <= FEW {
            return self.engine().has(hashes);
        }
        let hashes = hashes.to_vec();
        self.run(move |engine| engine.has(&hashes)).await
    }

    async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
        match self.engine().glance(hash)? {
            Glance::Known(data) => Ok(data),
            Glance::Unknown => {
                let hash = *hash;
                self.run(move |engine| engine.get(&hash)).await
            }
        }
    }

    async fn get_batch(&self, hashes: &[Multihash]) -> Result<Vec<Option<Bytes>>, StoreError> {
        if let [hash] = hashes {
            return Ok(vec![self.get(hash).await?]);
        }
        // What is in memory is read where it is asked for; from the first block on that is not, a thread does it.
        let (mut found, mut bytes) = (Vec::with_capacity(hashes.len()), 0);
        for hash in hashes {
            match self.engine().glance(hash)? {
                Glance::Known(data) => {
                    bytes += data.as_ref().map_or(0, Bytes::len);
                    found.push(data);
                }
                Glance::Unknown => break,
            }
            if bytes >= GLANCED_BYTES {
                break;
            }
        }
        let rest = hashes[found.len()..].to_vec();
        if !rest.is_empty() {
            let read = self.run(move |engine| rest.iter().map(|hash| engine.get(hash)).collect::<Result<Vec<_>, _>>());
            found.extend(read.await?);
        }
        Ok(found)
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.run(move |engine| engine.put(&blocks)).await?;
        self.follow().await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.engine().check_open()?;
        self.run(Engine::flush).await
    }

    async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
        let hashes = hashes.to_vec();
        self.run(move |engine| engine.remove(&hashes)).await
    }

    async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
        self.run(Engine::list).await
    }

    async fn compact(&self) -> Result<u64, StoreError> {
        self.run(|engine| engine.compact(u64::MAX)).await
    }

    async fn compact_within(&self, on_disk: u64) -> Result<u64, StoreError> {
        self.run(move |engine| engine.compact(on_disk)).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.run(Engine::usage).await
    }
}
