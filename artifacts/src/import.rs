//! Files and directories into blocks.
//!
//! The same tree gives the same CID on any machine: names are ordered by their bytes, and owners leave no trace; nor do
//! times and modes, unless they are asked for. Memory does not grow with the size of files. Special files are refused, and
//! symbolic links where they are not asked for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use iptl_dag::unixfs::{self, DirectoryBuilder, DirectoryError, Entry, FileBuilder, Metadata, Modified, Profile};
use iptl_dag::{Block, Cid, Multihash};
use tokio::sync::mpsc;

use crate::{BlobStore, StoreError};

/// What is left out of source trees: build output and history.
pub const SOURCE_IGNORES: [&str; 2] = [".git", "target/"];

/// Bytes in memory that are taken at a time.
const PIECE: usize = 1 << 20;

/// Blocks of one batch are put together once they hold this many bytes, or there are [`BATCH_BLOCKS`] of them.
const BATCH_BYTES: usize = 4 << 20;

/// Most blocks of one batch.
const BATCH_BLOCKS: usize = 256;

/// Batches that wait for the store while the next is made.
const BATCHES_AHEAD: usize = 4;

/// Deepest nesting of directories: deeper ones are loops or mistakes.
const MAX_DEPTH: usize = 128;

/// How something is imported.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Compute the CID and store nothing.
    pub only_hash: bool,
    /// What to leave out. `*` stands for anything but a slash and `?` for one character. A pattern with a slash inside is
    /// matched against the path below the imported directory, others against the last name, at any depth; one that ends
    /// in a slash matches directories alone.
    pub ignore: Vec<String>,
    /// Rules by which bytes become blocks.
    pub profile: Profile,
    /// Keep symbolic links as they are, instead of refusing them. Nobody follows them.
    pub links: bool,
    /// Keep mode and time of modification of files and directories, which changes their CIDs.
    pub metadata: bool,
}

/// What an import made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Root.
    pub cid: Cid,
    /// Bytes of content.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Blocks, repetitions included.
    pub blocks: u64,
    /// Blocks that were not in the store before.
    pub new_blocks: u64,
}

/// Why something was not imported. What was stored by then is unpinned, and goes with the next collection.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A symbolic link, whose target another machine would not have.
    #[error("{} is a symbolic link", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A socket, device or pipe.
    #[error("{} is neither a file nor a directory", path.display())]
    Special {
        /// Path in question.
        path: PathBuf,
    },
    /// A name that is not UTF-8.
    #[error("the name of {} is not UTF-8", path.display())]
    Name {
        /// Path in question.
        path: PathBuf,
    },
    /// Directories nested deeper than any real tree.
    #[error("{} lies more than {MAX_DEPTH} directories deep", path.display())]
    TooDeep {
        /// Path in question.
        path: PathBuf,
    },
    /// A directory cannot be encoded.
    #[error("directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DirectoryError,
    },
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Path in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store did not take the blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Imports a file or a directory, at constant memory.
///
/// `path` itself may be a symbolic link, which is followed. The blocks are acknowledged but not flushed. Safe to
/// drop half-way: blocks that were stored by then are unpinned.
pub async fn import_path(store: &dyn BlobStore, path: &Path, options: &ImportOptions) -> Result<Imported, ImportError> {
    let (path, options) = (path.to_path_buf(), options.clone());
    import(store, options.only_hash, move |out| {
        let metadata = fs::metadata(&path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
        let maker = Maker { root: &path, options: &options };
        if metadata.is_dir() {
            maker.directory(&path, &metadata, 0, out)
        } else if metadata.is_file() {
            maker.file(&path, &metadata, out)
        } else {
            Err(ImportError::Special { path: path.clone() })
        }
    })
    .await
}

/// Imports bytes that are in memory as a file. Safe to drop half-way.
pub async fn add_bytes(store: &dyn BlobStore, bytes: bytes::Bytes) -> Result<Imported, ImportError> {
    import(store, false, move |out| {
        let mut file = FileBuilder::new();
        for piece in bytes.chunks(PIECE) {
            file.push(piece, &mut out.blocks);
            out.hand_over_full()?;
        }
        let entry = file.finish(&mut out.blocks);
        out.files += 1;
        Ok(entry)
    })
    .await
}

/// Does two things at once, one of them on a thread of its own; where there can be none, one after the other.
pub fn at_once(beside: &(dyn Fn() + Sync), here: &mut dyn FnMut()) {
    std::thread::scope(|threads| {
        let other = std::thread::Builder::new().spawn_scoped(threads, beside).ok();
        here();
        match other.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(())) => {}
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => beside(),
        }
    });
}

/// Runs `make` on a thread for blocking work, and puts the blocks that it hands over.
async fn import(
    store: &dyn BlobStore,
    only_hash: bool,
    make: impl FnOnce(&mut Out) -> Result<Entry, ImportError> + Send + 'static,
) -> Result<Imported, ImportError> {
    let (batches, mut ready) = mpsc::channel(BATCHES_AHEAD);
    let maker = tokio::task::spawn_blocking(move || {
        let mut out = Out { batches: (!only_hash).then_some(batches), blocks: Vec::new(), made: 0, files: 0 };
        let entry = make(&mut out)?;
        out.hand_over()?;
        Ok::<_, ImportError>((entry, out.made, out.files))
    });
    let mut new_blocks = 0;
    while let Some(batch) = ready.recv().await {
        let mut hashes: Vec<Multihash> = Vec::with_capacity(batch.len());
        hashes.extend(batch.iter().map(|block: &Block| *block.cid().hash()));
        hashes.sort_unstable();
        hashes.dedup();
        new_blocks += store.has(&hashes).await?.iter().filter(|has| !**has).count() as u64;
        store.put(batch).await?;
    }
    let joined =
        maker.await.map_err(|error| StoreError::Io { doing: "importing".into(), source: io::Error::other(error) });
    let (entry, blocks, files) = joined??;
    Ok(Imported { cid: entry.cid, bytes: entry.content_size, files, blocks, new_blocks })
}

/// Where made blocks go.
struct Out {
    /// `None` where nothing is stored.
    batches: Option<mpsc::Sender<Vec<Block>>>,
    blocks: Vec<Block>,
    made: u64,
    files: u64,
}

impl Out {
    fn hand_over_full(&mut self) -> Result<(), StoreError> {
        let bytes: usize = self.blocks.iter().map(|block| block.data().len()).sum();
        if bytes >= BATCH_BYTES || self.blocks.len() >= BATCH_BLOCKS { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<(), StoreError> {
        let blocks = std::mem::take(&mut self.blocks);
        self.made += blocks.len() as u64;
        match &self.batches {
            // The other side is gone when it met an error, which it reports, or was dropped.
            Some(batches) if !blocks.is_empty() => batches.blocking_send(blocks).map_err(|_| StoreError::Closed),
            Some(_) | None => Ok(()),
        }
    }
}

struct Maker<'a> {
    root: &'a Path,
    options: &'a ImportOptions,
}

impl Maker<'_> {
    fn directory(
        &self,
        path: &Path,
        metadata: &fs::Metadata,
        depth: usize,
        out: &mut Out,
    ) -> Result<Entry, ImportError> {
        if depth > MAX_DEPTH {
            return Err(ImportError::TooDeep { path: path.into() });
        }
        let read = |source| ImportError::Read { path: path.into(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name().into_string().map_err(|_| ImportError::Name { path: entry.path() })?;
            found.push((name, entry.file_type().map_err(read)?, entry));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let mut directory = DirectoryBuilder::with_profile(self.options.profile).metadata(self.metadata_of(metadata));
        for (name, kind, found) in found {
            let child = found.path();
            if self.is_ignored(&name, &child, kind.is_dir()) {
                continue;
            }
            let metadata = || found.metadata().map_err(|source| ImportError::Read { path: child.clone(), source });
            let entry = if kind.is_symlink() {
                self.link(&child, out)?
            } else if kind.is_dir() {
                self.directory(&child, &metadata()?, depth + 1, out)?
            } else if kind.is_file() {
                self.file(&child, &metadata()?, out)?
            } else {
                return Err(ImportError::Special { path: child });
            };
            let at = |source| ImportError::Directory { path: path.into(), source };
            directory.insert(name, entry).map_err(at)?;
        }
        let entry =
            directory.finish(&mut out.blocks).map_err(|source| ImportError::Directory { path: path.into(), source })?;
        out.hand_over_full()?;
        Ok(entry)
    }

    fn link(&self, path: &Path, out: &mut Out) -> Result<Entry, ImportError> {
        if !self.options.links {
            return Err(ImportError::Symlink { path: path.into() });
        }
        let target = fs::read_link(path).map_err(|source| ImportError::Read { path: path.into(), source })?;
        let target = target.to_str().ok_or_else(|| ImportError::Name { path: path.into() })?;
        // The mode of a link means nothing, and its time cannot be restored everywhere.
        Ok(unixfs::symlink(self.options.profile, target, Metadata::default(), &mut out.blocks))
    }

    fn file(&self, path: &Path, metadata: &fs::Metadata, out: &mut Out) -> Result<Entry, ImportError> {
        let read = |source| ImportError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(read)?;
        let builder = FileBuilder::with_profile(self.options.profile).metadata(self.metadata_of(metadata));
        let mut builder = builder.at_once(at_once);
        while builder.push_from(&mut file, metadata.len(), &mut out.blocks).map_err(read)? > 0 {
            out.hand_over_full()?;
        }
        let entry = builder.finish(&mut out.blocks);
        out.files += 1;
        out.hand_over_full()?;
        Ok(entry)
    }

    fn metadata_of(&self, found: &fs::Metadata) -> Metadata {
        if !self.options.metadata {
            return Metadata::default();
        }
        let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
        let modified = Modified { seconds: found.mtime(), nanos };
        Metadata { mode: Some(found.mode() & 0o7777), modified: Some(modified) }
    }

    fn is_ignored(&self, name: &str, path: &Path, is_dir: bool) -> bool {
        let below = path.strip_prefix(self.root).ok().and_then(Path::to_str).unwrap_or(name);
        self.options.ignore.iter().any(|pattern| {
            let (pattern, dirs_alone) = match pattern.strip_suffix('/') {
                Some(pattern) => (pattern, true),
                None => (pattern.as_str(), false),
            };
            let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
            let subject = if pattern.contains('/') { below } else { name };
            (is_dir || !dirs_alone) && matches(pattern.trim_start_matches('/').as_bytes(), subject.as_bytes())
        })
    }
}

/// Matches a whole text against a pattern with `*` and `?`, in time bounded by the product of their lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star did not match: the star takes one more byte.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') if text[t] != b'/' => {
                // One character may be several bytes.
                t += 1;
                while t < text.len() && text[t] & 0b1100_0000 == 0b1000_0000 {
                    t += 1;
                }
                p += 1;
                continue;
            }
            Some(byte) if *byte == text[t] => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            Some(_) | None => {}
        }
        match retry {
            Some((star, taken)) if text[taken] != b'/' => {
                retry = Some((star, taken + 1));
                (p, t) = (star + 1, taken + 1);
            }
            Some(_) | None => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_whole_names() {
        let rows = [
            ("target", "target", true),
            ("target", "targets", false),
            ("*.log", "a.log", true),
            ("*.log", ".log", true),
            ("*.log", "a.logs", false),
            ("*", "anything", true),
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("src/*.rs", "src/lib.rs", true),
            ("src/*.rs", "src/a/lib.rs", false),
            ("?", "ü", true),
            ("?", "ab", false),
            ("a/?", "a//", false),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, text, expected) in rows {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} on {text}");
        }
    }
}
