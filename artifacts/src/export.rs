//! Blocks back into files and directories.
//!
//! What is read came from strangers: names that could leave the destination are refused, nothing that exists is
//! overwritten, links are not followed, and what a few blocks can blow up to is bounded. A file appears under its name
//! when it is complete. Symbolic links are written last, and those alone that lead to somewhere inside the destination.
//! Mode and time are restored where the blocks have them: permissions less the umask, and no more than permissions.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use iptl_dag::path::{PathError, Resolve, Step, Target};
use iptl_dag::unixfs::{
    DirEntry, DirectoryReader, Metadata, Modified, NameError, UnixFs, UnixFsError, check_name, metadata_of,
};
use iptl_dag::{Block, Cid};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::contents::Contents;
pub use crate::contents::{read_file, read_range};
use crate::{BlobStore, StoreError, read_block};

/// Most files and directories that one export writes: a few blocks can name each other into billions.
const MAX_ENTRIES: u64 = 1_000_000;

/// Deepest nesting of directories.
const MAX_DEPTH: usize = 128;

/// Longest target of a symbolic link in bytes, from Linux.
const MAX_TARGET_SIZE: usize = 4095;

/// Permissions of a mode: neither the identity of whoever runs it nor stickiness is a stranger's to give.
const PERMISSIONS: u32 = 0o777;

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Why something was not read out of the store, or not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A block is not in the store.
    #[error("block {cid} is not in the store")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// A directory holds a name that must not become a path.
    #[error("directory {cid} cannot be written")]
    Name {
        /// The directory.
        cid: Cid,
        /// What is wrong with the name.
        #[source]
        source: NameError,
    },
    /// Something is there already: from before, or under a name that the file system takes for the same.
    #[error("{} exists already", path.display())]
    Exists {
        /// Path in question.
        path: PathBuf,
    },
    /// A node is not UnixFS, or not of a kind that is read.
    #[error("{cid} cannot be read as a file or directory")]
    UnixFs {
        /// The node.
        cid: Cid,
        /// What is wrong with it.
        #[source]
        source: UnixFsError,
    },
    /// A symbolic link that is not written: it could lead out of the destination.
    #[error("{cid} is a symbolic link to {target:?}, which is not written")]
    Symlink {
        /// The node.
        cid: Cid,
        /// Where it leads.
        target: String,
    },
    /// The file is larger than the caller can take.
    #[error("the file {cid} has {size} bytes, more than {limit}")]
    TooLarge {
        /// Root of the file.
        cid: Cid,
        /// Its size in bytes.
        size: u64,
        /// What the caller takes, in bytes.
        limit: u64,
    },
    /// More files than any honest tree has.
    #[error("{cid} holds more than {MAX_ENTRIES} files, or directories deeper than {MAX_DEPTH}")]
    TooMany {
        /// The root.
        cid: Cid,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something cannot be written.
    #[error("writing {}", path.display())]
    Write {
        /// Path in question.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A block on the way is not in the store.
    #[error("block {cid} is not in the store")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// The path does not fit what it meets.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes a file or a directory to `dest`, whose parent must exist.
///
/// A directory may go into one that exists, as long as no file meets one. Not atomic: after an error, or when dropped
/// half-way, some files are there, each complete.
pub async fn export_path(store: &dyn BlobStore, cid: &Cid, dest: &Path) -> Result<Exported, ExportError> {
    let mut export = Export { store, root: *cid, exported: Exported::default(), entered: BTreeSet::new() };
    let mut pending = vec![Node { cid: *cid, path: dest.to_path_buf(), depth: 0 }];
    let (mut links, mut finished) = (Vec::new(), Vec::new());
    while let Some(node) = pending.pop() {
        export.check_bounds(pending.len() + links.len(), node.depth)?;
        let block = need(store, &node.cid).await?;
        let unusable = |source| ExportError::UnixFs { cid: node.cid, source };
        let metadata = metadata_of(&block).map_err(unusable)?;
        match UnixFs::of_block(&block).map_err(unusable)? {
            UnixFs::File(_) => {
                export.exported.bytes += write_with(store, &node.cid, &node.path, metadata).await?;
                export.exported.files += 1;
            }
            UnixFs::Directory(_) | UnixFs::Shard(_) => {
                export.make_directory(&node.path)?;
                for entry in export.list(&node.cid, pending.len()).await?.into_iter().rev() {
                    check_name(&entry.name).map_err(|source| ExportError::Name { cid: node.cid, source })?;
                    let path = node.path.join(entry.name);
                    pending.push(Node { cid: entry.cid, path, depth: node.depth + 1 });
                }
                if !metadata.is_empty() {
                    finished.push((node.path, metadata));
                }
            }
            UnixFs::Symlink(target) => {
                if !stays_inside(&target, node.depth) {
                    return Err(ExportError::Symlink { cid: node.cid, target });
                }
                links.push((node.path, target));
            }
        }
    }
    // Nothing is written below a link, since every directory is there by now.
    for (path, target) in links {
        std::os::unix::fs::symlink(target, &path).map_err(|source| write_error(&path, source))?;
        export.exported.links += 1;
    }
    // Inner directories first: what is written into one changes its time, and its mode may forbid it.
    for (path, metadata) in finished.into_iter().rev() {
        finish_directory(&path, metadata).map_err(|source| write_error(&path, source))?;
    }
    Ok(export.exported)
}

/// Something to be written.
struct Node {
    cid: Cid,
    path: PathBuf,
    /// Directories of the export above it.
    depth: usize,
}

/// One export under way.
struct Export<'a> {
    store: &'a dyn BlobStore,
    root: Cid,
    exported: Exported,
    /// Directories that were made or entered, by device and number.
    entered: BTreeSet<(u64, u64)>,
}

impl Export<'_> {
    fn check_bounds(&self, waiting: usize, depth: usize) -> Result<(), ExportError> {
        let entries = self.exported.files + self.exported.directories + waiting as u64;
        if entries >= MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(ExportError::TooMany { cid: self.root });
        }
        Ok(())
    }

    /// Reads all entries of a directory, sharded or not.
    async fn list(&self, cid: &Cid, waiting: usize) -> Result<Vec<DirEntry>, ExportError> {
        let mut reader = DirectoryReader::new(*cid);
        let mut entries = Vec::new();
        while let Some(next) = reader.next().copied() {
            let block = need(self.store, &next).await?;
            entries.extend(reader.supply(&block).map_err(|source| ExportError::UnixFs { cid: next, source })?);
            self.check_bounds(waiting + entries.len(), 0)?;
        }
        Ok(entries)
    }

    /// Makes a directory, or enters the one that is there, if it was there before; a link to one is not one.
    fn make_directory(&mut self, path: &Path) -> Result<(), ExportError> {
        match fs::create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(ExportError::Write { path: path.into(), source }),
        }
        let metadata = fs::symlink_metadata(path).map_err(|source| write_error(path, source))?;
        // Two directories of one tree are one here where their names are the same to the file system.
        if !metadata.is_dir() || !self.entered.insert((metadata.dev(), metadata.ino())) {
            return Err(ExportError::Exists { path: path.into() });
        }
        self.exported.directories += 1;
        Ok(())
    }
}

/// Says whether a link in a directory that lies `depth - 1` levels below the destination leads to somewhere inside.
///
/// It may go up first, no further than to the destination, and then down. What it meets on the way down are directories
/// of the export, or links of it, which lead inside as well. To go up after that could lead out through such a link.
fn stays_inside(target: &str, depth: usize) -> bool {
    let Some(above) = depth.checked_sub(1) else { return false };
    let mut ups = 0;
    let mut went_down = false;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if went_down => return false,
            ".." => ups += 1,
            _ => went_down = true,
        }
    }
    let is_relative = !target.is_empty() && !target.starts_with('/');
    is_relative && ups <= above && target.len() <= MAX_TARGET_SIZE && !target.contains('\0')
}

/// Writes one file and returns its size in bytes. It appears when it is complete, and replaces nothing.
///
/// Safe to drop half-way: nothing is left.
pub async fn write_file(store: &dyn BlobStore, cid: &Cid, path: &Path) -> Result<u64, ExportError> {
    let root = need(store, cid).await?;
    let metadata = metadata_of(&root).map_err(|source| ExportError::UnixFs { cid: *cid, source })?;
    write_with(store, cid, path, metadata).await
}

/// Writes some bytes of a file to a file of their own and returns how many they are: as many of the range as it has. As
/// [`write_file`] otherwise; mode and time are those of a new file.
pub async fn write_range(store: &dyn BlobStore, cid: &Cid, range: Range<u64>, path: &Path) -> Result<u64, ExportError> {
    write_contents(Contents::of_range(store, *cid, range), path, Metadata::default()).await
}

async fn write_with(store: &dyn BlobStore, cid: &Cid, path: &Path, metadata: Metadata) -> Result<u64, ExportError> {
    let dir = folder_of(path);
    // A few blocks can stand for more bytes than any disk has: refused before the first, and not when it is full.
    let room = room_in(dir);
    write_contents(Contents::new(store, *cid, room), path, metadata).await.map_err(|error| match error {
        ExportError::TooLarge { size, limit, .. } => {
            StoreError::Full { path: dir.into(), available: limit, needed: size }.into()
        }
        other => other,
    })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    }
}

async fn write_contents(contents: Contents<'_>, path: &Path, metadata: Metadata) -> Result<u64, ExportError> {
    let write = |source| write_error(path, source);
    if fs::symlink_metadata(path).is_ok() {
        return Err(ExportError::Exists { path: path.into() });
    }
    let mode = metadata.mode.map_or(0o666, |mode| mode & PERMISSIONS);
    let temporary = tempfile::Builder::new()
        .prefix(".iptl-")
        // Less the umask, as for any file that a person makes.
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))
        .map_err(write)?;
    // The same open file and not the path, which the mode may forbid to open.
    let mut file = tokio::fs::File::from_std(temporary.as_file().try_clone().map_err(write)?);
    let size = copy(contents, &mut file, path).await?;
    if let Some(time) = metadata.modified.and_then(system_time) {
        temporary.as_file().set_modified(time).map_err(write)?;
    }
    temporary.persist_noclobber(path).map_err(|error| write(error.error))?;
    Ok(size)
}

/// Returns how many bytes a directory's disk has left; a file system that does not tell is written to until it refuses.
fn room_in(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Gives a directory its mode and its time. What the umask has taken stays taken.
fn finish_directory(path: &Path, metadata: Metadata) -> io::Result<()> {
    let directory = fs::File::open(path)?;
    if let Some(time) = metadata.modified.and_then(system_time) {
        directory.set_modified(time)?;
    }
    if let Some(mode) = metadata.mode {
        let mode = directory.metadata()?.permissions().mode() & mode & PERMISSIONS;
        directory.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Returns a time as the system counts it, or `None` where it cannot.
fn system_time(modified: Modified) -> Option<SystemTime> {
    let seconds = Duration::from_secs(modified.seconds.unsigned_abs());
    let whole = match modified.seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    whole?.checked_add(Duration::from_nanos(modified.nanos.into()))
}

fn write_error(path: &Path, source: io::Error) -> ExportError {
    match source.kind() {
        io::ErrorKind::AlreadyExists => ExportError::Exists { path: path.into() },
        _ => ExportError::Write { path: path.into(), source },
    }
}

/// Streams a file's content to a writer and returns its size in bytes; files over `limit` are refused before the first byte.
///
/// Not cancel safe: the writer has some of it.
pub async fn stream_file(
    store: &dyn BlobStore,
    cid: &Cid,
    out: &mut (dyn AsyncWrite + Unpin + Send),
    limit: u64,
) -> Result<u64, ExportError> {
    copy(Contents::new(store, *cid, limit), out, Path::new("a stream")).await
}

/// Streams some bytes of a file to a writer and returns how many they are: as many of the range as it has. Blocks that
/// hold none of them are not read, and may be missing.
///
/// Not cancel safe: the writer has some of it.
pub async fn stream_range(
    store: &dyn BlobStore,
    cid: &Cid,
    range: Range<u64>,
    out: &mut (dyn AsyncWrite + Unpin + Send),
) -> Result<u64, ExportError> {
    copy(Contents::of_range(store, *cid, range), out, Path::new("a stream")).await
}

/// Follows a path from a root. Cancel safe.
pub async fn resolve_path(store: &dyn BlobStore, root: &Cid, path: &str) -> Result<Target, ResolveError> {
    let mut resolve = Resolve::new(*root, path)?;
    loop {
        match resolve.step() {
            Step::Need(cid) => {
                let cid = *cid;
                let block = read_block(store, &cid).await?.ok_or(ResolveError::Missing { cid })?;
                resolve.supply(&block)?;
            }
            Step::Found(target) => return Ok(target.clone()),
        }
    }
}

async fn copy(
    mut contents: Contents<'_>,
    out: &mut (dyn AsyncWrite + Unpin + Send),
    name: &Path,
) -> Result<u64, ExportError> {
    let write = |source| ExportError::Write { path: name.into(), source };
    let mut size = 0;
    while let Some(piece) = contents.next().await? {
        out.write_all(&piece).await.map_err(write)?;
        size += piece.len() as u64;
    }
    out.flush().await.map_err(write)?;
    Ok(size)
}

async fn need(store: &dyn BlobStore, cid: &Cid) -> Result<Block, ExportError> {
    read_block(store, cid).await?.ok_or(ExportError::Missing { cid: *cid })
}
