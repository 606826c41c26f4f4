//! Directories in memory that lose what the workload wrote there, as with a disk that is lost.
//!
//! Nothing else runs in the container meanwhile, so that nothing changes under the hands of this. What the workload left may
//! be anything all the same: links are removed and not followed, directories that it took its own rights from are given
//! them back, and however deeply they are nested the stack does not grow.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories below directories, beyond which one is moved up before it is emptied.
const MAX_DEPTH: usize = 32;

/// Empties some directories. What is mounted below them stays, and so do the directories that lead there.
pub(crate) fn all<'a>(directories: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
    let mounted = mounted(&fs::read("/proc/self/mountinfo")?);
    for directory in directories {
        Emptying { root: Path::new(directory), mounted: &mounted, moved: 0 }.run()?;
    }
    Ok(())
}

struct Emptying<'a> {
    root: &'a Path,
    mounted: &'a BTreeSet<PathBuf>,
    /// Directories that were moved up.
    moved: u64,
}

impl Emptying<'_> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let before = self.moved;
            self.level(self.root, 0)?;
            if self.moved == before {
                return Ok(());
            }
        }
    }

    /// Empties a directory, which may have others so far above it; returns whether nothing is left in it.
    fn level(&mut self, directory: &Path, depth: usize) -> io::Result<bool> {
        let mut is_empty = true;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if self.mounted.contains(&path) {
                is_empty = false;
            } else if !entry.file_type()?.is_dir() {
                fs::remove_file(&path)?;
            } else {
                // It is not its owner's where the engine made it, to mount something there.
                let _ = fs::set_permissions(&path, Permissions::from_mode(0o700));
                if depth == MAX_DEPTH {
                    fs::rename(&path, self.free_name())?;
                } else if self.level(&path, depth + 1)? {
                    fs::remove_dir(&path)?;
                } else {
                    is_empty = false;
                }
            }
        }
        Ok(is_empty)
    }

    fn free_name(&mut self) -> PathBuf {
        loop {
            let name = self.root.join(format!(".lost-{}", self.moved));
            self.moved += 1;
            if name.symlink_metadata().is_err() {
                return name;
            }
        }
    }
}

/// Reads where something is mounted: the fifth word of each line, with spaces and the like in octal.
fn mounted(table: &[u8]) -> BTreeSet<PathBuf> {
    let words = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    words.map(|word| PathBuf::from(std::ffi::OsString::from_vec(unescaped(word)))).collect()
}

fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = word;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &tail[3..];
            }
            None => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is gone with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("iptl-init-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn empty(root: &Path, mounted: &[PathBuf]) {
        Emptying { root, mounted: &mounted.iter().cloned().collect(), moved: 0 }.run().unwrap();
    }

    #[test]
    fn whatever_a_workload_left_is_gone_and_links_are_not_followed() {
        let (scratch, other) = (Scratch::new("all"), Scratch::new("other"));
        fs::write(other.0.join("stays"), "x").unwrap();
        let mut deep = scratch.0.clone();
        for _ in 0..200 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        fs::create_dir(scratch.0.join(".lost-0")).unwrap();
        std::os::unix::fs::symlink(&other.0, scratch.0.join("link")).unwrap();
        let closed = scratch.0.join("closed");
        fs::create_dir_all(closed.join("in")).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0)).unwrap();
        empty(&scratch.0, &[]);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
        assert!(other.0.join("stays").exists());
    }

    #[test]
    fn what_is_mounted_stays_with_the_way_to_it() {
        let scratch = Scratch::new("mounted");
        fs::create_dir_all(scratch.0.join("etc")).unwrap();
        let mounted = scratch.0.join("etc/node.toml");
        fs::write(&mounted, "x").unwrap();
        fs::write(scratch.0.join("etc/other"), "x").unwrap();
        empty(&scratch.0, std::slice::from_ref(&mounted));
        assert!(mounted.exists() && !scratch.0.join("etc/other").exists());
    }

    #[test]
    fn places_of_mounts_are_read_with_their_spaces() {
        let table = b"36 35 98:0 / /data/a\\040b rw - tmpfs tmpfs rw\n37 35 98:0 / /dev/shm rw - tmpfs shm rw\n";
        assert_eq!(mounted(table), BTreeSet::from(["/data/a b".into(), "/dev/shm".into()]));
    }
}
