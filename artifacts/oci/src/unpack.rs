//! The file system of an image, its layers merged, in a directory.
//!
//! Layers were written by strangers, and one entry prepares the ground for the next: a symbolic link that a later path
//! goes through, a hard link to a file that is then written. So no path is ever opened as text. Parents are resolved by
//! the kernel as if the destination were the root of the file system ([`openat2`] with `RESOLVE_IN_ROOT`), and the last
//! name is used without following it. The tree appears under its name when it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use iptl_artifacts::BlobStore;
use iptl_dag::Cid;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, openat2,
};
use rustix::io::Errno;

use crate::limits::Limits;
use crate::read::{ReadError, Taken, check_layer, open, pieces, stream_layer};
use crate::tar::TarBlock;
use crate::tar::scan::{Entry, Kind, OPAQUE, ShownPath, Sink, Slot, TarError, WHITEOUT, WHITEOUT_META};

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files that were written, those that a higher layer replaced included.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic and hard links.
    pub links: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Whether files got the owners of the image, which takes root.
    pub owners: bool,
    /// Extended attributes that were left out: those of the system but for capabilities, and what the file system refuses.
    pub left_out_xattrs: u64,
}

/// Why an image was not unpacked; nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Something is there already.
    #[error("{} exists already, and is no empty directory", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// The destination cannot be made.
    #[error("making {}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("unpacking safely needs openat2, which Linux has since 5.6")]
    Kernel,
    /// A hard link to what is not there.
    #[error("layer {layer}: {path} is a hard link to {target}, which is not there")]
    HardLink {
        /// Which layer, from 1.
        layer: usize,
        /// Path of the link.
        path: ShownPath,
        /// What it links.
        target: ShownPath,
    },
    /// A path goes through a file.
    #[error("layer {layer}: {path} lies below a file or a link that leads nowhere")]
    NotADirectory {
        /// Which layer, from 1.
        layer: usize,
        /// Path in question.
        path: ShownPath,
    },
    /// An entry cannot be written.
    #[error("layer {layer}: writing {path}")]
    Write {
        /// Which layer, from 1.
        layer: usize,
        /// Path in question.
        path: ShownPath,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Unpacks an image to `dest`, whose parent must exist and which must not, or be an empty directory.
///
/// Owners are set where this runs as root. Safe to drop half-way: what was written goes with a thread that ends soon.
pub async fn unpack(store: &dyn BlobStore, image: &Cid, dest: &Path, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let opened = open(store, image, limits).await?;
    if dest.symlink_metadata().is_ok() && !std::fs::read_dir(dest).is_ok_and(|mut dir| dir.next().is_none()) {
        return Err(UnpackError::Exists { path: dest.into() });
    }
    let destination = |source| UnpackError::Destination { path: dest.into(), source };
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let temporary = tempfile::Builder::new().prefix(".iptl-").tempdir_in(parent).map_err(destination)?;
    let mut tree = Tree::new(temporary).map_err(destination)?;
    for (number, layer) in (1..).zip(&opened.layers) {
        let (to_tree, taken) = pieces();
        let of_layer = layer.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut unpacker = Unpacker { tree, layer: number, paths: BTreeSet::new(), parent: None, file: None };
            check_layer(number, &of_layer, taken, &mut unpacker).map(|()| unpacker.tree)
        });
        // One that was cut off ends the writer too, and is the reason.
        let whole = stream_layer(store, number, layer, to_tree).await?;
        let written = writer.await.map_err(|error| destination(io::Error::other(error)))?;
        tree = written.map_err(|stop| match stop {
            Stop::Tar(source) => ReadError::Tar { layer: number, source }.into(),
            Stop::Unpack(error) => error,
        })?;
        match whole {
            Taken::Whole => {}
            Taken::Stopped => return Err(destination(io::ErrorKind::BrokenPipe.into())),
        }
    }
    let finish = tokio::task::spawn_blocking(move || tree.finish());
    let (temporary, unpacked) = finish.await.map_err(|error| destination(io::Error::other(error)))??;
    std::fs::rename(temporary.path(), dest).map_err(destination)?;
    // There is nothing under its name any more.
    let _ = temporary.keep();
    Ok(unpacked)
}

/// What is set on a file after its content.
#[derive(Clone, Debug)]
struct Meta {
    layer: usize,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    fn of(entry: &Entry, layer: usize) -> Meta {
        let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        Meta { layer, mode, uid, gid, mtime, xattrs: entry.xattrs.clone() }
    }

    /// Of a directory that no entry names.
    fn implied(layer: usize) -> Meta {
        Meta { layer, mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

/// The tree that is being written.
struct Tree {
    temporary: tempfile::TempDir,
    root: OwnedFd,
    is_root: bool,
    /// Directories get theirs at the end: what is written into them would change their times, and may need their modes.
    directories: BTreeMap<Vec<u8>, Meta>,
    unpacked: Unpacked,
}

impl Tree {
    fn new(temporary: tempfile::TempDir) -> io::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, temporary.path(), flags, Mode::empty())?;
        let is_root = rustix::process::geteuid().is_root();
        let directories = BTreeMap::from([(Vec::new(), Meta::implied(1))]);
        Ok(Tree {
            temporary,
            root,
            is_root,
            directories,
            unpacked: Unpacked { owners: is_root, ..Unpacked::default() },
        })
    }

    /// Opens a directory as if the tree were all that there is.
    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_directory_with(path, OFlags::empty())
    }

    fn open_directory_with(&self, path: &[u8], more: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Sets what a file has beside its content.
    fn set(&mut self, file: impl AsFd, meta: &Meta) -> io::Result<()> {
        if self.is_root {
            rustix::fs::fchown(&file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        }
        // After the owner, whose change takes capabilities away; before the mode, which may forbid to write.
        for (name, value) in &meta.xattrs {
            let ours = name.starts_with(b"user.") || (self.is_root && name == b"security.capability");
            let set = |()| rustix::fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty());
            match ours.then_some(()).map(set) {
                Some(Ok(())) => {}
                None | Some(Err(Errno::NOTSUP | Errno::PERM | Errno::NOSPC | Errno::RANGE | Errno::TOOBIG)) => {
                    self.unpacked.left_out_xattrs += 1;
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
        // After the owner, whose change takes special bits away.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(meta.mode))?;
        rustix::fs::futimens(&file, &times(meta.mtime))?;
        Ok(())
    }

    /// Sets what directories have, the deepest first.
    fn finish(mut self) -> Result<(tempfile::TempDir, Unpacked), UnpackError> {
        for (path, meta) in std::mem::take(&mut self.directories).into_iter().rev() {
            // One that a higher layer removed or replaced is not there, or a link by now.
            let Ok(directory) = self.open_directory_with(&path, OFlags::NOFOLLOW) else { continue };
            self.set(&directory, &meta).map_err(|source| UnpackError::Write {
                layer: meta.layer,
                path: ShownPath::new(&path),
                source,
            })?;
        }
        Ok((self.temporary, self.unpacked))
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes whatever is at a name, without following links. Open directories are as many as it is deep.
fn remove(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) | Ok(()) => return Ok(()),
        Err(error) => return Err(error),
    }
    let directory = open_child(parent, name)?;
    for child in children(&directory)? {
        remove(&directory, &child)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open_child(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn children(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Writes one layer into the tree.
struct Unpacker {
    tree: Tree,
    layer: usize,
    /// Paths of this layer and their parents: what an opaque directory keeps.
    paths: BTreeSet<Vec<u8>>,
    /// The directory that was used last.
    parent: Option<(Vec<u8>, OwnedFd)>,
    file: Option<(Vec<u8>, File, Meta)>,
}

enum Stop {
    Tar(TarError),
    Unpack(UnpackError),
}

impl From<TarError> for Stop {
    fn from(error: TarError) -> Stop {
        Stop::Tar(error)
    }
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Stop {
        Stop::Unpack(error.into())
    }
}

impl From<UnpackError> for Stop {
    fn from(error: UnpackError) -> Stop {
        Stop::Unpack(error)
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

impl Unpacker {
    fn failed(&self, path: &[u8], error: impl Into<io::Error>) -> UnpackError {
        let (layer, path, source) = (self.layer, ShownPath::new(path), error.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSYS) => UnpackError::Kernel,
            Some(Errno::NOTDIR | Errno::NOENT | Errno::LOOP | Errno::EXIST) => {
                UnpackError::NotADirectory { layer, path }
            }
            Some(_) | None => UnpackError::Write { layer, path, source },
        }
    }

    /// Opens the directory at `path`, and makes what is missing on the way.
    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.tree.open_directory(path) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            opened => return opened,
        }
        let (above, name) = split(path);
        let parent = self.directory(above)?;
        rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
        self.tree.directories.insert(path.to_vec(), Meta::implied(self.layer));
        self.tree.open_directory(path)
    }

    /// Opens the directory of an entry, which most often is that of the entry before.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if let Some((known, directory)) = &self.parent
            && known == path
        {
            return rustix::io::fcntl_dupfd_cloexec(directory, 0);
        }
        let directory = self.directory(path)?;
        self.parent = Some((path.to_vec(), rustix::io::fcntl_dupfd_cloexec(&directory, 0)?));
        Ok(directory)
    }

    /// Notes that a path is of this layer.
    fn note(&mut self, mut path: &[u8]) {
        while !path.is_empty() && self.paths.insert(path.to_vec()) {
            path = split(path).0;
        }
    }

    fn whiteout(&mut self, directory: &[u8], name: &[u8]) -> Result<(), Errno> {
        // A directory that is not there has nothing to remove.
        let parent = match self.tree.open_directory(directory) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.parent = None;
        if name == OPAQUE {
            return self.clear(&parent, directory);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or(name);
        // A whiteout is about lower layers.
        if self.paths.contains(&join(directory, hidden)) {
            return Ok(());
        }
        remove(&parent, hidden)
    }

    /// Removes what is not of this layer.
    fn clear(&self, directory: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
        for child in children(directory)? {
            let path = join(path, &child);
            if !self.paths.contains(&path) {
                remove(directory, &child)?;
            } else if let Ok(inner) = open_child(directory, &child) {
                self.clear(&inner, &path)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let failed = |this: &Unpacker, error: Errno| this.failed(&entry.path, error);
        let meta = Meta::of(entry, self.layer);
        if entry.path.is_empty() {
            self.tree.directories.insert(Vec::new(), meta);
            return Ok(());
        }
        let (above, name) = split(&entry.path);
        if name.starts_with(WHITEOUT) {
            return self.whiteout(above, name).map_err(|error| failed(self, error));
        }
        let parent = self.parent(above).map_err(|error| failed(self, error))?;
        self.note(&entry.path);
        match entry.kind {
            Kind::Directory => {
                let is_directory = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                if !is_directory {
                    self.make_room(&parent, name).map_err(|error| failed(self, error))?;
                    rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(|error| failed(self, error))?;
                }
                self.tree.directories.insert(entry.path.clone(), meta);
                self.tree.unpacked.directories += 1;
            }
            Kind::File => {
                self.make_room(&parent, name).map_err(|error| failed(self, error))?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(file.map_err(|error| failed(self, error))?);
                self.tree.unpacked.files += 1;
                self.file = Some((entry.path.clone(), file, meta));
                if entry.size == 0 {
                    self.close()?;
                }
            }
            Kind::Symlink => {
                self.make_room(&parent, name).map_err(|error| failed(self, error))?;
                self.symlink(&parent, name, entry, &meta).map_err(|error| failed(self, error))?;
                self.tree.unpacked.links += 1;
            }
            Kind::HardLink => self.hard_link(&parent, name, entry)?,
        }
        Ok(())
    }

    /// Removes what an entry replaces.
    fn make_room(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                // It may be on the way to the directory that was used last.
                self.parent = None;
                remove(parent, name)
            }
        }
    }

    fn symlink(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry, meta: &Meta) -> Result<(), Errno> {
        self.parent = None;
        rustix::fs::symlinkat(entry.link.as_slice(), parent, name)?;
        if self.tree.is_root {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.tree.unpacked.left_out_xattrs += meta.xattrs.len() as u64;
        rustix::fs::utimensat(parent, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let missing = |this: &Unpacker| UnpackError::HardLink {
            layer: this.layer,
            path: ShownPath::new(&entry.path),
            target: ShownPath::new(&entry.link),
        };
        let (above, target) = split(&entry.link);
        let of_target = self.tree.open_directory(above).map_err(|_| missing(self))?;
        let stat = |directory: &OwnedFd, name| rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = stat(&of_target, target).map_err(|_| missing(self))?;
        match stat(parent, name) {
            // The same file already.
            Ok(there) if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino) => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(missing(self));
        }
        self.make_room(parent, name).map_err(|error| self.failed(&entry.path, error))?;
        let linked = rustix::fs::linkat(&of_target, target, parent, name, AtFlags::empty());
        linked.map_err(|error| match error {
            Errno::NOENT => missing(self),
            error => self.failed(&entry.path, error),
        })?;
        self.tree.unpacked.links += 1;
        Ok(())
    }

    /// Ends the file that is being written.
    fn close(&mut self) -> Result<(), UnpackError> {
        let Some((path, file, meta)) = self.file.take() else { return Ok(()) };
        let set = self.tree.set(&file, &meta);
        set.map_err(|source| UnpackError::Write { layer: self.layer, path: ShownPath::new(&path), source })
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

impl Sink for Unpacker {
    type Error = Stop;

    fn entry(&mut self, entry: &Entry, _: &[(Slot, TarBlock)]) -> Result<(), Stop> {
        Ok(self.write(entry)?)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        // The content of a whiteout goes nowhere.
        let Some((path, file, _)) = &mut self.file else { return Ok(()) };
        self.tree.unpacked.bytes += bytes.len() as u64;
        file.write_all(bytes)
            .map_err(|source| UnpackError::Write { layer: self.layer, path: ShownPath::new(path), source }.into())
    }

    fn end(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(self.close()?)
    }

    fn rest(&mut self, _: &[u8]) -> Result<(), Stop> {
        Ok(())
    }
}
