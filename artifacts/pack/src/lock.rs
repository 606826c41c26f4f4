//! One store, one process: the lock, and why a store could not be opened.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

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
        /// What was found.
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

/// Takes the lock of a directory, or says who has it.
pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
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
    // A full disk must not keep the store from being opened and emptied: the number is a courtesy.
    if let Err(error) = writeln!(file, "{}", std::process::id()) {
        tracing::warn!(%error, "the lock does not say who has it");
    }
    Ok(file)
}
