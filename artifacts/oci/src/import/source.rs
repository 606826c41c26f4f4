//! Where an image comes from: a directory, or an archive in which its files are found without unpacking it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImportError;
use crate::limits::{Limits, MAX_ARCHIVE_ENTRIES, MAX_JSON_SIZE};
use crate::tar::scan::{Entry, Kind, Scanner, Sink, Slot, TarError};
use crate::tar::{BLOCK, TarBlock};

/// Most links from one name of an archive to another: engines write one.
const MAX_LINKS: usize = 8;

/// Named files.
pub(crate) enum Source {
    /// In a directory.
    Dir(PathBuf),
    /// In an archive.
    Archive(Archive),
}

/// A file of a source.
pub(crate) struct Blob {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) size: u64,
}

impl Source {
    /// Opens a file by the name that a manifest gives it; `None` where there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Blob>, ImportError> {
        let Some(name) = plain_name(name) else { return Ok(None) };
        match self {
            Source::Archive(archive) => Ok(archive.open(name.into_bytes())),
            Source::Dir(dir) => {
                let path = dir.join(name);
                let read = |source| ImportError::Read { path: path.clone(), source };
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(read(error)),
                };
                let metadata = file.metadata().map_err(read)?;
                if !metadata.is_file() {
                    return Ok(None);
                }
                Ok(Some(Blob { size: metadata.len(), reader: Box::new(file) }))
            }
        }
    }

    /// Returns the name under which an archive has the content of a file; `None` where there is none.
    pub(crate) fn place(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Source::Archive(archive) => archive.find(plain_name(name)?.into_bytes()).map(|(name, _)| name),
            Source::Dir(_) => None,
        }
    }

    /// Reads a small file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(blob) = self.open(name)? else { return Ok(None) };
        if blob.size > MAX_JSON_SIZE {
            return Err(ImportError::JsonTooLarge { name: shown(name), size: blob.size });
        }
        let mut bytes = Vec::new();
        let read = blob.reader.take(MAX_JSON_SIZE + 1).read_to_end(&mut bytes);
        read.map_err(|source| ImportError::Read { path: shown(name).into(), source })?;
        if bytes.len() as u64 > MAX_JSON_SIZE {
            return Err(ImportError::JsonTooLarge { name: shown(name), size: bytes.len() as u64 });
        }
        Ok(Some(bytes))
    }
}

/// A name of a stranger, for people.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Takes `.` and doubled slashes out of a name; `None` where it leads out of the source.
fn plain_name(name: &str) -> Option<String> {
    if name.starts_with('/') || name.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// A tar whose files are found by name.
pub(crate) struct Archive {
    file: Arc<File>,
    entries: BTreeMap<Vec<u8>, Located>,
}

enum Located {
    At { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Archive {
    /// Reads the headers of a tar; `path` is for people.
    pub(crate) fn index(file: File, path: &Path) -> Result<Archive, ImportError> {
        let read = |source| ImportError::Read { path: path.into(), source };
        let archive = |source| ImportError::Archive { path: path.into(), source };
        let length = file.metadata().map_err(read)?.len();
        let mut scanner = Scanner::of_archive(Limits { bytes: u64::MAX, entries: MAX_ARCHIVE_ENTRIES });
        let mut sink = Index::default();
        let mut entries = BTreeMap::new();
        let mut buffer = [0; BLOCK];
        while scanner.offset() < length && !scanner.at_end() {
            // Up to the next block, so that a header is the last that is read before its content.
            let room = BLOCK - (scanner.offset() % BLOCK as u64) as usize;
            let count = file.read_at(&mut buffer[..room], scanner.offset()).map_err(read)?;
            if count == 0 {
                break;
            }
            scanner.push(&buffer[..count], &mut sink).map_err(archive)?;
            if let Some(entry) = sink.entry.take() {
                let offset = scanner.offset();
                if offset.checked_add(entry.size).is_none_or(|end| end > length) {
                    return Err(archive(TarError::Truncated { size: length }));
                }
                scanner.skip_content();
                match entry.kind {
                    Kind::File => drop(entries.insert(entry.path, Located::At { offset, size: entry.size })),
                    Kind::HardLink => drop(entries.insert(entry.path, Located::Link(entry.link))),
                    Kind::Symlink => {
                        if let Some(target) = follow(&entry.path, &entry.link) {
                            entries.insert(entry.path, Located::Link(target));
                        }
                    }
                    Kind::Directory => {}
                }
            }
        }
        scanner.finish(&mut sink).map_err(archive)?;
        Ok(Archive { file: Arc::new(file), entries })
    }

    fn open(&self, name: Vec<u8>) -> Option<Blob> {
        let (_, (at, size)) = self.find(name)?;
        let reader = Section { file: self.file.clone(), at, left: size };
        Some(Blob { reader: Box::new(reader), size })
    }

    /// Follows links to a content; returns its name, where it is, and its size.
    fn find(&self, mut name: Vec<u8>) -> Option<(Vec<u8>, (u64, u64))> {
        for _ in 0..=MAX_LINKS {
            match self.entries.get(&name)? {
                Located::Link(target) => name.clone_from(target),
                Located::At { offset, size } => return Some((name, (*offset, *size))),
            }
        }
        None
    }
}

/// Returns where a symbolic link at `path` leads within the archive.
fn follow(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    parts.pop();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// Takes headers alone.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) entry: Option<Entry>,
}

impl Sink for Index {
    type Error = TarError;

    fn entry(&mut self, entry: &Entry, _: &[(Slot, TarBlock)]) -> Result<(), TarError> {
        self.entry = Some(entry.clone());
        Ok(())
    }

    fn content(&mut self, _: &[u8]) -> Result<(), TarError> {
        Ok(())
    }

    fn end(&mut self, _: &[u8]) -> Result<(), TarError> {
        Ok(())
    }

    fn rest(&mut self, _: &[u8]) -> Result<(), TarError> {
        Ok(())
    }
}

/// A stretch of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
