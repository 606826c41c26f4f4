//! Workloads as files: what a runner is handed, written once per lablet and kept by CID until room is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use iptl_artifacts::export::{self, ExportError};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_oci as oci;
use iptl_dag::Cid;
use iptl_dag::model::{Workload, WorkloadKind};
use iptl_runner::Runners;
use tokio::io::AsyncWriteExt;

use crate::home::Home;

/// Largest component in bytes: far above any, far below what a lender's disk should hold. A few blocks can stand for
/// more than all disks.
const MAX_COMPONENT_SIZE: u64 = 256 << 20;

/// Bytes of files that are kept for later runs; those that were used longest ago go first.
const MAX_KEPT: u64 = 8 << 30;

/// Why a workload could not be made a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArtifactError {
    /// It is not what it says, or too large: any other lablet would say the same.
    #[error("{cid}: {reason}")]
    Bad {
        /// Content.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// This machine could not write it.
    #[error("cannot write {cid} down: {reason}")]
    Write {
        /// Content.
        cid: Cid,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes files of content that is in the store.
#[derive(Clone)]
pub(super) struct Artifacts {
    pub(super) home: Home,
    store: Arc<dyn BlobStore>,
    runners: Runners,
    /// Bytes of files that are kept.
    most: u64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What is being made: whoever wants the same waits and finds it there.
    making: Mutex<BTreeMap<Cid, Weak<tokio::sync::Mutex<()>>>>,
    /// Workloads whose files are gone and that runners still keep, because an instance has them.
    forgetting: tokio::sync::Mutex<BTreeSet<Cid>>,
}

impl Artifacts {
    pub(super) fn new(home: Home, store: Arc<dyn BlobStore>, runners: Runners) -> Artifacts {
        Artifacts { home, store, runners, most: MAX_KEPT, shared: Arc::default() }
    }

    /// Returns the store that content is read from.
    pub(super) fn store(&self) -> &dyn BlobStore {
        &*self.store
    }

    /// Returns the content of a workload as a file: a component, or an archive that engines load.
    ///
    /// Safe to drop: a file appears whole or not at all.
    pub(super) async fn of(&self, workload: &Workload) -> Result<PathBuf, ArtifactError> {
        let cid = workload.content;
        let write = |e: std::io::Error| ArtifactError::Write { cid, reason: e.to_string() };
        let dir = self.home.path("cache").join("artifacts");
        let path = dir.join(cid.to_string());
        let lock = self.shared.lock_of(cid);
        let _one = lock.lock().await;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            touch(&path);
            return Ok(path);
        }
        tokio::fs::create_dir_all(&dir).await.map_err(write)?;
        let temp = tempfile::Builder::new().prefix(".making-").tempdir_in(&dir).map_err(write)?;
        let file = temp.path().join("artifact");
        let mut out = tokio::fs::File::create(&file).await.map_err(write)?;
        match workload.kind {
            WorkloadKind::Wasm => {
                export::stream_file(&*self.store, &cid, &mut out, MAX_COMPONENT_SIZE)
                    .await
                    .map_err(|e| of_export(cid, e))?;
            }
            WorkloadKind::Docker => {
                let mut out = tokio::io::BufWriter::with_capacity(1 << 20, &mut out);
                oci::write_docker_archive(&*self.store, &cid, None, &oci::Limits::default(), &mut out)
                    .await
                    .map_err(|e| of_rebuild(cid, e))?;
                out.flush().await.map_err(write)?;
            }
        }
        out.flush().await.map_err(write)?;
        // As exact as other uses are, which decide what goes first.
        touch(&file);
        tokio::fs::rename(&file, &path).await.map_err(write)?;
        let (this, kept) = (self.clone(), path.clone());
        // What is removed meanwhile is made again by whoever needs it; a cell that prepares has its own file open.
        tokio::spawn(async move { this.make_room(dir, kept).await });
        Ok(path)
    }

    /// Removes what was used longest ago where there is too much, here and where runners keep it.
    async fn make_room(&self, dir: PathBuf, keep: PathBuf) {
        let (place, most) = (dir.clone(), self.most);
        let removed = tokio::task::spawn_blocking(move || make_room(&place, &keep, most)).await.unwrap_or_default();
        let names = removed.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<Cid>().ok());
        let mut forgetting = self.shared.forgetting.lock().await;
        forgetting.extend(names);
        for cid in std::mem::take(&mut *forgetting) {
            // One that was made again meanwhile is in use.
            if !dir.join(cid.to_string()).exists() && !self.runners.forget(&cid).await {
                forgetting.insert(cid);
            }
        }
    }

    /// Writes a file or directory for one cell to `dest`, whose parent exists.
    pub(super) async fn file(&self, cid: &Cid, dest: &Path) -> Result<(), ArtifactError> {
        export::export_path(&*self.store, cid, dest).await.map_err(|e| of_export(*cid, e))?;
        Ok(())
    }
}

impl Shared {
    fn lock_of(&self, cid: Cid) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = making.get(&cid).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        making.insert(cid, Arc::downgrade(&lock));
        lock
    }
}

fn of_export(cid: Cid, error: ExportError) -> ArtifactError {
    match error {
        ExportError::TooLarge { .. } | ExportError::UnixFs { .. } => {
            ArtifactError::Bad { cid, reason: error.to_string() }
        }
        ExportError::Store(error) => error.into(),
        other => ArtifactError::Write { cid, reason: other.to_string() },
    }
}

fn of_rebuild(cid: Cid, error: oci::RebuildError) -> ArtifactError {
    match error {
        oci::RebuildError::Write(source) => ArtifactError::Write { cid, reason: source.to_string() },
        other => ArtifactError::Bad { cid, reason: super::driver::describe(&other) },
    }
}

/// Notes that a file was used now.
fn touch(path: &Path) {
    let touched =
        std::fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, path = %path.display(), "a kept artifact cannot be marked as used");
    }
}

/// Removes the files of `dir` that were used longest ago until the others have `most` bytes; never `keep`, nor what was
/// used after it, which makes room for itself. Returns those that it removed.
fn make_room(dir: &Path, keep: &Path, most: u64) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut size: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    // Where it is gone already, whoever took it has made room.
    let before = files.iter().position(|(_, _, path)| path == keep).unwrap_or(0);
    for (_, bytes, path) in files.into_iter().take(before) {
        if size <= most {
            break;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {
                size -= bytes;
                removed.push(path);
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "an artifact cannot be removed"),
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use iptl_artifacts::MemStore;
    use iptl_dag::{Block, Multihash};
    use iptl_runner::{Capacity, CellSpec, PrepareError, PreparedCell, Runner};

    use super::*;

    /// A store that counts what is read.
    struct Counting {
        blocks: MemStore,
        read: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl BlobStore for Counting {
        async fn has(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
            self.blocks.has(hashes).await
        }

        async fn get(&self, hash: &Multihash) -> Result<Option<Bytes>, StoreError> {
            self.read.fetch_add(1, Ordering::Relaxed);
            self.blocks.get(hash).await
        }

        async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
            self.blocks.put(blocks).await
        }

        async fn flush(&self) -> Result<(), StoreError> {
            self.blocks.flush().await
        }

        async fn remove(&self, hashes: &[Multihash]) -> Result<(), StoreError> {
            self.blocks.remove(hashes).await
        }

        async fn list(&self) -> Result<Vec<Multihash>, StoreError> {
            self.blocks.list().await
        }

        async fn usage(&self) -> Result<iptl_artifacts::Usage, StoreError> {
            self.blocks.usage().await
        }
    }

    /// A runner that notes what it is told to forget and says that the first time it cannot.
    #[derive(Default)]
    struct Forgetful(Mutex<Vec<Cid>>);

    #[async_trait::async_trait]
    impl Runner for Forgetful {
        fn kind(&self) -> WorkloadKind {
            WorkloadKind::Docker
        }

        fn version(&self) -> String {
            String::new()
        }

        fn capacity(&self) -> Capacity {
            Capacity { instances: 0, memory_bytes: 0, bound: String::new() }
        }

        async fn prepare(&self, _cell: CellSpec) -> Result<PreparedCell, PrepareError> {
            Err(PrepareError::NoRunner { kind: WorkloadKind::Docker })
        }

        async fn forget(&self, workload: &Cid) -> bool {
            let mut told = self.0.lock().unwrap();
            told.push(*workload);
            told.len() > 1
        }

        async fn warm(&self) {}

        async fn shutdown(&self) {}
    }

    /// An image of one file, as a workload.
    async fn image(store: &dyn BlobStore, dir: &Path, text: &str) -> Workload {
        let rootfs = dir.join(text);
        std::fs::create_dir_all(&rootfs).unwrap();
        std::fs::write(rootfs.join("file"), text).unwrap();
        let made = oci::image_from_rootfs(store, &rootfs, oci::RootfsOptions::default()).await.unwrap();
        Workload { name: text.to_owned(), kind: WorkloadKind::Docker, content: made.image, size: made.size }
    }

    #[tokio::test]
    async fn an_image_is_rebuilt_once_however_many_cells_want_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Counting { blocks: MemStore::new(), read: AtomicUsize::new(0) });
        let workload = image(&*store, dir.path(), "one").await;
        let home = Home::open(dir.path().join("home")).unwrap();
        let artifacts = || Artifacts::new(home.clone(), store.clone(), Runners::default());
        let first = artifacts();
        store.read.store(0, Ordering::Relaxed);
        let (a, b, c) = tokio::join!(first.of(&workload), first.of(&workload), first.of(&workload));
        let path = a.unwrap();
        assert_eq!((&b.unwrap(), &c.unwrap()), (&path, &path));
        let once = store.read.load(Ordering::Relaxed);
        assert!(path.ends_with(workload.content.to_string()));
        // Another life of the lablet finds it.
        assert_eq!(artifacts().of(&workload).await.unwrap(), path);
        assert_eq!(store.read.load(Ordering::Relaxed), once, "it was rebuilt again");
        std::fs::remove_file(&path).unwrap();
        artifacts().of(&workload).await.unwrap();
        assert_eq!(store.read.load(Ordering::Relaxed), 2 * once, "three cells at once cost as much as one");
    }

    #[tokio::test]
    async fn what_goes_from_the_cache_is_forgotten_by_runners_as_soon_as_they_can() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(MemStore::new());
        let runner = Arc::new(Forgetful::default());
        let home = Home::open(dir.path().join("home")).unwrap();
        let runners = Runners::new([runner.clone() as Arc<dyn Runner>]);
        let artifacts = Artifacts { most: 0, ..Artifacts::new(home, store.clone(), runners) };
        let (one, two) = (image(&*store, dir.path(), "one").await, image(&*store, dir.path(), "two").await);
        let place = artifacts.home.path("cache").join("artifacts");
        let first = artifacts.of(&one).await.unwrap();
        let second = artifacts.of(&two).await.unwrap();
        artifacts.make_room(place.clone(), second.clone()).await;
        assert!(!first.exists() && second.exists());
        // An instance had it; it is tried again the next time that room is made.
        artifacts.make_room(place, second).await;
        let told = runner.0.lock().unwrap().clone();
        assert!(told.len() >= 2 && told.iter().all(|cid| *cid == one.content), "{told:?}");
        assert!(artifacts.shared.forgetting.lock().await.is_empty());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, age_s: u64| {
            let path = dir.path().join(name);
            std::fs::write(&path, [0; 100]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age_s);
            std::fs::File::options().append(true).open(&path).unwrap().set_modified(used).unwrap();
            path
        };
        let (oldest, old, new) = (file("a", 300), file("b", 200), file("c", 100));
        make_room(dir.path(), &new, 1000);
        assert!(oldest.exists());
        touch(&oldest);
        make_room(dir.path(), &oldest, 200);
        assert!(oldest.exists() && !old.exists() && new.exists());
        // Room that is made late takes nothing from who came after.
        make_room(dir.path(), &new, 0);
        assert!(oldest.exists() && new.exists());
        make_room(dir.path(), &oldest, 0);
        assert!(oldest.exists() && !new.exists());
    }
}
