//! Workloads as files: what a runner is handed, written once per lablet and kept by CID until room is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use iptl_artifacts::export::{self, ExportError};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_oci as oci;
use iptl_dag::Cid;
use iptl_dag::model::{Workload, WorkloadKind};
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
    pub(super) store: Arc<dyn BlobStore>,
}

impl Artifacts {
    /// Returns the content of a workload as a file: a component, or an archive that engines load.
    ///
    /// Safe to drop: a file appears whole or not at all.
    pub(super) async fn of(&self, workload: &Workload) -> Result<PathBuf, ArtifactError> {
        let cid = workload.content;
        let write = |e: std::io::Error| ArtifactError::Write { cid, reason: e.to_string() };
        let dir = self.home.path("cache").join("artifacts");
        let path = dir.join(cid.to_string());
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
        tokio::fs::rename(&file, &path).await.map_err(write)?;
        let kept = path.clone();
        // What is removed meanwhile is made again by whoever needs it; a cell that prepares has its own file open.
        tokio::task::spawn_blocking(move || make_room(&dir, &kept, MAX_KEPT));
        Ok(path)
    }

    /// Writes a file or directory for one cell to `dest`, whose parent exists.
    pub(super) async fn file(&self, cid: &Cid, dest: &Path) -> Result<(), ArtifactError> {
        export::export_path(&*self.store, cid, dest).await.map_err(|e| of_export(*cid, e))?;
        Ok(())
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

/// Removes the files of `dir` that were used longest ago until the others have `most` bytes; never `keep`.
fn make_room(dir: &Path, keep: &Path, most: u64) {
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
    for (_, bytes, path) in files {
        if size <= most {
            return;
        }
        if path == keep {
            continue;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => size -= bytes,
            Err(error) => tracing::warn!(%error, path = %path.display(), "an artifact cannot be removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
        make_room(dir.path(), &old, 1000);
        assert!(oldest.exists());
        touch(&oldest);
        make_room(dir.path(), &old, 200);
        assert!(oldest.exists() && old.exists() && !new.exists());
        make_room(dir.path(), &old, 0);
        assert!(!oldest.exists() && old.exists());
    }
}
