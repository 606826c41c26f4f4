//! A directory as the tar of one layer.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::elf::Program;
use super::{Architecture, BuildError, RootfsOptions};
use crate::layer::Chunks;
use crate::limits::MAX_COMPONENTS;
use crate::tar::padding;
use crate::tar::scan::WHITEOUT;
use crate::tar::write::{Body, END, Meta, headers};

/// Largest extended attribute in bytes, that of Linux.
const MAX_XATTR: usize = 64 << 10;

/// Writes the entries of a layer.
pub(super) struct Writer<'a> {
    tar: &'a mut Chunks,
    mtime: u64,
    /// Directories that were written.
    last_parent: PathBuf,
}

impl<'a> Writer<'a> {
    pub(super) fn new(tar: &'a mut Chunks, mtime: u64) -> Writer<'a> {
        Writer { tar, mtime, last_parent: PathBuf::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        // It fails where the layer was refused, and the reason for that is what is reported.
        self.tar.write_all(bytes).map_err(|source| BuildError::Read { path: "the tree".into(), source })
    }

    /// Writes a program or a library, readable and executable by all, with the directories above it. Calls come sorted.
    pub(super) fn program(&mut self, path: &str, file: &Path) -> Result<(), BuildError> {
        let above: Vec<&Path> =
            Path::new(path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        for directory in above.into_iter().rev() {
            if !self.last_parent.starts_with(directory) {
                let meta = self.meta(directory.as_os_str().as_bytes(), 0o755);
                self.put(&headers(&meta, Body::Directory))?;
            }
        }
        self.last_parent = Path::new(path).parent().unwrap_or(Path::new("")).into();
        let read = |source| BuildError::Read { path: file.into(), source };
        let opened = File::open(file).map_err(read)?;
        let size = opened.metadata().map_err(read)?.len();
        let meta = self.meta(path.as_bytes(), 0o755);
        self.put(&headers(&meta, Body::File { size }))?;
        self.content(opened, file, size)
    }

    fn meta<'m>(&self, path: &'m [u8], mode: u32) -> Meta<'m> {
        Meta { path, mode, uid: 0, gid: 0, mtime: self.mtime, xattrs: &[] }
    }

    fn content(&mut self, file: File, path: &Path, size: u64) -> Result<(), BuildError> {
        let read = |source| BuildError::Read { path: path.into(), source };
        let changed = || BuildError::Changed { path: path.into() };
        // One byte more tells a file that grew.
        let mut content = file.take(size.saturating_add(1));
        let mut buffer = vec![0; (size as usize).clamp(1, 256 << 10)];
        let mut left = size;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read(error)),
            };
            left = left.checked_sub(count as u64).ok_or_else(changed)?;
            self.put(&buffer[..count])?;
        }
        if left > 0 {
            return Err(changed());
        }
        self.put(&END[..padding(size)])
    }

    /// Writes the end of the layer.
    pub(super) fn end(&mut self) -> Result<(), BuildError> {
        self.put(&END)
    }
}

/// Refuses what is no directory; a link to one is one here.
pub(super) fn check_directory(dir: &Path) -> Result<(), BuildError> {
    let metadata = fs::metadata(dir).map_err(|source| BuildError::Read { path: dir.into(), source })?;
    if metadata.is_dir() { Ok(()) } else { Err(BuildError::NotADirectory { path: dir.into() }) }
}

/// Writes everything below a directory, sorted.
pub(super) fn write_tree(dir: &Path, options: &RootfsOptions, writer: &mut Writer<'_>) -> Result<(), BuildError> {
    let mut tree = Tree { options, writer, linked: BTreeMap::new() };
    tree.directory(dir, &[], 0)?;
    tree.writer.end()
}

struct Tree<'t, 'w, 'a> {
    options: &'t RootfsOptions,
    writer: &'w mut Writer<'a>,
    /// Files with several names, by device and number: the name under which each was written.
    linked: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Tree<'_, '_, '_> {
    fn directory(&mut self, dir: &Path, name: &[u8], depth: usize) -> Result<(), BuildError> {
        let read = |source| BuildError::Read { path: dir.into(), source };
        if depth > MAX_COMPONENTS {
            return Err(read(io::Error::other("it lies too many directories deep")));
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(read)? {
            found.push(entry.map_err(read)?.file_name());
        }
        found.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for child in found {
            let path = dir.join(&child);
            if child.as_bytes().starts_with(WHITEOUT) {
                return Err(BuildError::Whiteout { path });
            }
            let mut below = name.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(child.as_bytes());
            self.entry(&path, &below, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &[u8], depth: usize) -> Result<(), BuildError> {
        let read = |source| BuildError::Read { path: path.into(), source };
        let metadata = fs::symlink_metadata(path).map_err(read)?;
        let kind = metadata.file_type();
        if kind.is_block_device() || kind.is_char_device() {
            return Err(BuildError::Device { path: path.into() });
        }
        if kind.is_fifo() || kind.is_socket() {
            return Err(BuildError::Special { path: path.into() });
        }
        let xattrs = if kind.is_symlink() { Vec::new() } else { xattrs(path).map_err(read)? };
        let (uid, gid) = if self.options.keep_owners { (metadata.uid(), metadata.gid()) } else { (0, 0) };
        // A symbolic link has no mode of its own, and file systems report different ones.
        let mode = if kind.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 };
        let meta = Meta { path: name, mode, uid, gid, mtime: self.options.mtime, xattrs: &xattrs };
        if kind.is_dir() {
            self.writer.put(&headers(&meta, Body::Directory))?;
            return self.directory(path, name, depth + 1);
        }
        if let Some(first) = self.first_name(&metadata, name) {
            return self.writer.put(&headers(&meta, Body::HardLink { target: &first }));
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(read)?;
            return self.writer.put(&headers(&meta, Body::Symlink { target: target.as_os_str().as_bytes() }));
        }
        let size = metadata.len();
        self.writer.put(&headers(&meta, Body::File { size }))?;
        self.writer.content(File::open(path).map_err(read)?, path, size)
    }

    /// Returns the name under which the same file was written already.
    fn first_name(&mut self, metadata: &Metadata, name: &[u8]) -> Option<Vec<u8>> {
        if metadata.nlink() < 2 {
            return None;
        }
        let key = (metadata.dev(), metadata.ino());
        let first = self.linked.get(&key).cloned();
        if first.is_none() {
            self.linked.insert(key, name.to_vec());
        }
        first
    }
}

/// Reads the attributes that mean something in an image: capabilities and those of users.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; MAX_XATTR];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0; MAX_XATTR];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Tells for which architecture a tree is, by its entrypoint or a program that most trees have.
pub(super) fn architecture(dir: &Path, entrypoint: &[String]) -> Result<Option<Architecture>, BuildError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, dir, flags, Mode::empty())
        .map_err(|error| BuildError::Read { path: dir.into(), source: error.into() })?;
    let known = ["bin/sh", "bin/busybox", "usr/bin/env"];
    let candidates = entrypoint.first().map(String::as_str).into_iter().chain(known);
    Ok(candidates.filter_map(|path| program_in(&root, path)).next())
}

fn program_in(root: &OwnedFd, path: &str) -> Option<Architecture> {
    let path = path.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(root, path, flags, Mode::empty(), resolve).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    Program::read(file, Path::new(path)).ok().map(|program| program.architecture)
}
