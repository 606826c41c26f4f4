//! Compiled code, kept by content and engine.
//!
//! Code that is loaded runs with the rights of the worker, so the directory is private to the user, everything in it
//! was compiled here, and nothing in it ever comes from a peer.

use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use iptl_dag::Cid;
use wasmtime::Engine;
use wasmtime::component::Component;

/// A private directory of compiled components.
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the directory; makes it where it does not exist.
    ///
    /// # Errors
    ///
    /// Fails where the directory belongs to somebody else or others may write to it.
    pub(crate) fn open(dir: &Path) -> io::Result<Cache> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Cache { dir: dir.to_owned() })
    }

    /// Returns where the code of a component for this engine stands, or would stand.
    pub(crate) fn path(&self, engine: &Engine, content: &Cid) -> PathBuf {
        let mut hasher = CompatibilityHasher(blake3::Hasher::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = &hasher.0.finalize().to_hex()[..16];
        self.dir.join(format!("{content}-{engine}.cwasm"))
    }

    /// Keeps code at `path`; a reader sees all of it or nothing.
    pub(crate) fn put(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(code)?;
        file.as_file().sync_data()?;
        file.persist(path)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Loads code that [`Cache::put`] has kept.
///
/// # Errors
///
/// Fails where the file does not exist or is for another engine.
#[expect(unsafe_code, reason = "loading compiled code is trusting it")]
pub(crate) fn load(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: `path` is in a directory that belongs to this user and that nobody else may write to (`Cache::open`);
    // the files in it were compiled by this program from verified components and renamed into place complete.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Makes a stable hash of what `Hash` feeds it: the standard hasher promises nothing between processes.
struct CompatibilityHasher(blake3::Hasher);

impl Hasher for CompatibilityHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.finalize();
        u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_others_may_read_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Cache::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }
}
