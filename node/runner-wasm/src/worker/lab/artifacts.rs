//! Files that an instance leaves behind.

use std::io::ErrorKind;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use iptl_runner::files::check_artifact_path;
use wasmtime::Result;

use super::LabView;
use super::wit::artifacts::Host;
use crate::worker::exit::Ending;

/// Files that one instance may leave: each costs an inode on the lablet, whatever its size.
const MAX_ARTIFACTS: usize = 1024;

impl LabView<'_> {
    /// Counts what an artifact takes; ends the instance where it is more than it may.
    fn charge_artifact(&self, path: &str, bytes: usize) -> Result<()> {
        let before = self.instance.artifact_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut paths = self.instance.artifact_paths.lock().unwrap_or_else(PoisonError::into_inner);
        if !paths.contains(path) {
            paths.insert(path.to_owned());
        }
        let too_large = before.saturating_add(bytes as u64) > self.instance.limits.artifact_bytes;
        if too_large || paths.len() > MAX_ARTIFACTS {
            return Err(Ending::TooMuch { what: "artifacts" }.into());
        }
        Ok(())
    }
}

impl Host for LabView<'_> {
    fn append(&mut self, path: String, data: Vec<u8>) -> Result<Result<(), String>> {
        if let Err(e) = check_artifact_path(&path) {
            return Ok(Err(e.to_string()));
        }
        self.charge_artifact(&path, data.len())?;
        match self.cell.files.append_artifact(&self.instance.id, &path, &data) {
            Ok(()) => Ok(Ok(())),
            // The guest's own doing: a file where it wants a directory, or the other way round.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists
                ) =>
            {
                Ok(Err(format!("{path}: {e}")))
            }
            Err(e) => Err(Ending::Lost { what: "artifacts", reason: e.to_string() }.into()),
        }
    }
}
