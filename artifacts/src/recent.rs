//! Which unpinned roots were used last, so that those that were not go first where room is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iptl_dag::{Cid, codec};
use serde::{Deserialize, Serialize};

/// Roots that are remembered; what belongs to older ones goes first.
const MAX_ROOTS: usize = 4096;

/// Largest file that is read, in bytes: of as many roots.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// The file, as DAG-CBOR.
#[derive(Serialize, Deserialize)]
enum RecentFile {
    #[serde(rename = "recent/1")]
    V1(Vec<(Cid, Used)>),
}

/// When a root was used, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    /// Milliseconds since 1970, as the caller knows it.
    at_ms: u64,
    /// Bytes of all blocks below it, where that is known.
    bytes: Option<u64>,
}

/// Roots that somebody used and nobody pins, in memory and in one file.
///
/// The file is a help and no promise: after a crash it may be older, or gone, and then what it named goes with the next
/// collection.
pub struct Recent {
    path: PathBuf,
    roots: Mutex<BTreeMap<Cid, Used>>,
}

impl Recent {
    /// Reads the roots in `path`; a file that is not there or cannot be read names none.
    pub fn open(path: impl Into<PathBuf>) -> Recent {
        let path = path.into();
        let roots = read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what was used last is not known");
            BTreeMap::new()
        });
        Recent { path, roots: Mutex::new(roots) }
    }

    /// Notes that a root is used now.
    pub fn used(&self, root: Cid, now_ms: u64, bytes: Option<u64>) {
        let mut roots = self.lock();
        let bytes = bytes.or_else(|| roots.get(&root).and_then(|used| used.bytes));
        roots.insert(root, Used { at_ms: now_ms, bytes });
        while roots.len() > MAX_ROOTS {
            let Some(oldest) = oldest(&roots) else { break };
            roots.remove(&oldest);
        }
        self.write(&roots);
    }

    /// Returns the roots.
    pub fn roots(&self) -> Vec<Cid> {
        self.lock().keys().copied().collect()
    }

    /// Forgets those that were used longest ago, until they are known to take `bytes`, or one is gone of which that is
    /// not known; returns them.
    pub fn forget(&self, bytes: u64) -> Vec<Cid> {
        let mut roots = self.lock();
        let (mut gone, mut sum) = (Vec::new(), 0_u64);
        while sum < bytes
            && let Some(root) = oldest(&roots)
        {
            let used = roots.remove(&root);
            gone.push(root);
            match used.and_then(|used| used.bytes) {
                Some(bytes) => sum = sum.saturating_add(bytes),
                None => break,
            }
        }
        self.write(&roots);
        gone
    }

    fn write(&self, roots: &BTreeMap<Cid, Used>) {
        let file = RecentFile::V1(roots.iter().map(|(root, used)| (*root, *used)).collect());
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut temporary| {
            temporary.write_all(&codec::encode(&file))?;
            temporary.persist(&self.path).map_err(|error| error.error)
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "what was used last is not written down");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cid, Used>> {
        // Held for single operations on the map.
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn oldest(roots: &BTreeMap<Cid, Used>) -> Option<Cid> {
    roots.iter().min_by_key(|(_, used)| used.at_ms).map(|(root, _)| *root)
}

fn read(path: &Path) -> io::Result<BTreeMap<Cid, Used>> {
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_SIZE => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let RecentFile::V1(roots) =
        codec::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(roots.into_iter().take(MAX_ROOTS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::sample;

    fn root(seed: u64) -> Cid {
        *sample(seed, 10).cid()
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_first_and_no_more_than_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let recent = Recent::open(dir.path().join("recent"));
        for seed in 1..=4 {
            recent.used(root(seed), seed * 10, Some(100));
        }
        recent.used(root(1), 100, None);
        let recent = Recent::open(dir.path().join("recent"));
        assert_eq!(recent.forget(150), [root(2), root(3)]);
        recent.used(root(5), 1, None);
        assert_eq!(recent.forget(150), [root(5)], "what it takes is not known");
        assert_eq!(recent.forget(1000), [root(4), root(1)]);
        assert!(recent.forget(1).is_empty());
    }

    #[test]
    fn roots_without_end_are_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let recent = Recent::open(dir.path().join("recent"));
        let mut roots = recent.lock();
        roots.extend((0..MAX_ROOTS as u64).map(|seed| (root(seed), Used { at_ms: seed, bytes: None })));
        drop(roots);
        recent.used(root(1 << 20), 1 << 20, None);
        assert_eq!(recent.roots().len(), MAX_ROOTS);
        assert!(!recent.roots().contains(&root(0)));
    }

    #[test]
    fn file_that_is_damaged_names_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recent");
        for bytes in [&b"not a list"[..], &[0x9f; 2 << 20]] {
            fs::write(&path, bytes).unwrap();
            assert!(Recent::open(&path).roots().is_empty());
        }
    }
}
