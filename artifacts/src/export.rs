//! Blocks back into files and directories.
//!
//! What is read came from strangers: names that could leave the destination are refused, nothing that exists is
//! overwritten, links are not followed, and what a few blocks can blow up to is bounded. A file appears under its name
//! when it is complete.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use iptl_dag::path::{PathError, Resolve, Step, Target};
use iptl_dag::unixfs::{FileReader, NameError, UnixFs, UnixFsError, check_name};
use iptl_dag::{Block, Cid, HashError, Multihash};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{BlobStore, StoreError, read_block};

/// Blocks of a file that are read from the store together.
const READ_AHEAD: usize = 16;

/// Most files and directories that one export writes: a few blocks can name each other into billions.
const MAX_ENTRIES: u64 = 1_000_000;

/// Deepest nesting of directories.
const MAX_DEPTH: usize = 128;

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
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
    /// Something is there already.
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
    /// A symbolic link, which is not written: it could lead anywhere.
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
    let mut exported = Exported::default();
    let mut pending = vec![(*cid, dest.to_path_buf(), 0)];
    while let Some((node, path, depth)) = pending.pop() {
        if exported.files + exported.directories >= MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(ExportError::TooMany { cid: *cid });
        }
        let block = need(store, &node).await?;
        match UnixFs::of_block(&block).map_err(|source| ExportError::UnixFs { cid: node, source })? {
            UnixFs::File(_) => {
                exported.bytes += write_file(store, &node, &path).await?;
                exported.files += 1;
            }
            UnixFs::Directory(entries) => {
                make_directory(&path)?;
                exported.directories += 1;
                for entry in entries.into_iter().rev() {
                    check_name(&entry.name).map_err(|source| ExportError::Name { cid: node, source })?;
                    pending.push((entry.cid, path.join(entry.name), depth + 1));
                }
            }
            UnixFs::Symlink(target) => return Err(ExportError::Symlink { cid: node, target }),
        }
    }
    Ok(exported)
}

/// Writes one file and returns its size in bytes. It appears when it is complete, and replaces nothing.
///
/// Safe to drop half-way: nothing is left.
pub async fn write_file(store: &dyn BlobStore, cid: &Cid, path: &Path) -> Result<u64, ExportError> {
    let write = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ExportError::Exists { path: path.into() },
        _ => ExportError::Write { path: path.into(), source },
    };
    if fs::symlink_metadata(path).is_ok() {
        return Err(ExportError::Exists { path: path.into() });
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".iptl-")
        // Less the umask, as for any file that a person makes.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(write)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(write)?);
    let size = copy_file(store, cid, &mut file, u64::MAX, path).await?;
    file.flush().await.map_err(write)?;
    temporary.persist_noclobber(path).map_err(|error| write(error.error))?;
    Ok(size)
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
    copy_file(store, cid, out, limit, Path::new("a stream")).await
}

/// Reads a whole file of at most `limit` bytes into memory. Cancel safe.
pub async fn read_file(store: &dyn BlobStore, cid: &Cid, limit: u64) -> Result<Bytes, ExportError> {
    let mut contents = Contents::new(store, *cid, limit);
    let mut whole = BytesMut::new();
    while let Some(piece) = contents.next().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
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

async fn copy_file(
    store: &dyn BlobStore,
    cid: &Cid,
    out: &mut (dyn AsyncWrite + Unpin + Send),
    limit: u64,
    name: &Path,
) -> Result<u64, ExportError> {
    let mut contents = Contents::new(store, *cid, limit);
    let mut size = 0;
    while let Some(piece) = contents.next().await? {
        out.write_all(&piece).await.map_err(|source| ExportError::Write { path: name.into(), source })?;
        size += piece.len() as u64;
    }
    Ok(size)
}

/// The content of a file, piece by piece, reading ahead.
struct Contents<'a> {
    store: &'a dyn BlobStore,
    root: Cid,
    limit: u64,
    reader: FileReader,
    ahead: BTreeMap<Cid, Block>,
}

impl<'a> Contents<'a> {
    fn new(store: &'a dyn BlobStore, root: Cid, limit: u64) -> Contents<'a> {
        Contents { store, root, limit, reader: FileReader::new(root), ahead: BTreeMap::new() }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ExportError> {
        while let Some(cid) = self.reader.next().copied() {
            let block = match self.ahead.remove(&cid) {
                Some(block) => block,
                None => self.read_ahead(cid).await?,
            };
            let content =
                self.reader.supply(&block).map_err(|source| ExportError::UnixFs { cid: *block.cid(), source })?;
            let size = self.reader.size().unwrap_or(0);
            if size > self.limit {
                return Err(ExportError::TooLarge { cid: self.root, size, limit: self.limit });
            }
            if !content.is_empty() {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// Reads the next block together with those after it, and returns it.
    async fn read_ahead(&mut self, cid: Cid) -> Result<Block, ExportError> {
        self.ahead.clear();
        let mut cids: Vec<Cid> = self.reader.upcoming(READ_AHEAD).copied().collect();
        cids.sort_unstable();
        cids.dedup();
        let hashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in cids.into_iter().zip(self.store.get_batch(&hashes).await?) {
            // One that lies further on and is missing is reported when it is next.
            let Some(data) = data else { continue };
            self.ahead.insert(cid, verified(cid, data)?);
        }
        self.ahead.remove(&cid).ok_or(ExportError::Missing { cid })
    }
}

pub(crate) fn verified(cid: Cid, data: Bytes) -> Result<Block, StoreError> {
    Block::verify(cid, data).map_err(|error| match error {
        HashError::Mismatch { cid } => StoreError::Corrupt { hash: *cid.hash() },
        HashError::UnknownHash { .. } | HashError::TooLarge { .. } => StoreError::Hash(error),
    })
}

async fn need(store: &dyn BlobStore, cid: &Cid) -> Result<Block, ExportError> {
    read_block(store, cid).await?.ok_or(ExportError::Missing { cid: *cid })
}

/// Makes a directory, or accepts the one that is there; a link to one is not one.
fn make_directory(path: &Path) -> Result<(), ExportError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) | Err(_) => Err(ExportError::Exists { path: path.into() }),
        },
        Err(source) => Err(ExportError::Write { path: path.into(), source }),
    }
}
