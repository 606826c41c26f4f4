//! Layers of an archive that still arrives: taken apart as soon as they are there, before its end says what they are for.
//!
//! What an archive holds beside the image that is meant is taken apart too. Its blocks are unpinned, as those of an import
//! that fails. Nothing is decided here: whatever is wrong with a layer is found again, and said, when its turn comes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use iptl_artifacts::StoreError;

use super::source::{Blob, Index};
use super::{Digest, ImportOptions, MadeLayer, read_layer};
use crate::layer::{LayerStop, make_layer};
use crate::limits::{Limits, MAX_ARCHIVE_ENTRIES, MAX_JSON_SIZE};
use crate::out::Out;
use crate::pages::BlockSink;
use crate::tar::BLOCK;
use crate::tar::scan::{Kind, Scanner};

/// A layer that was taken apart before anybody asked for it.
pub(super) struct Early {
    pub(super) made: MadeLayer,
    /// Digest of its compressed form, where it has one.
    pub(super) digest: Option<Digest>,
}

/// By the name in the archive.
pub(super) type Earlies = BTreeMap<Vec<u8>, Early>;

/// A file that is written while it is read.
#[derive(Clone)]
pub(super) struct Growing {
    file: Arc<File>,
    grown: Arc<(Mutex<Grown>, Condvar)>,
}

#[derive(Default)]
struct Grown {
    written: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    /// The writer met an error, or is gone.
    Broken,
}

/// The writing end of a file that grows. Dropped before [`Writing::end`], it says that no more comes.
pub(super) struct Writing(Growing);

impl Growing {
    pub(super) fn new(file: Arc<File>) -> (Growing, Writing) {
        let growing = Growing { file, grown: Arc::default() };
        (growing.clone(), Writing(growing))
    }

    /// Waits until there are bytes behind `at`, or no more come; returns how many there are.
    fn wait(&self, at: u64) -> u64 {
        let (grown, changed) = &*self.grown;
        let grown = grown.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |grown: &mut Grown| grown.written <= at && grown.end.is_none();
        changed.wait_while(grown, waits).unwrap_or_else(PoisonError::into_inner).written
    }

    /// Waits for the end of the writing; says whether all of it is there.
    fn is_whole(&self) -> bool {
        self.wait(u64::MAX);
        let grown = self.grown.0.lock().unwrap_or_else(PoisonError::into_inner);
        grown.end == Some(End::Whole)
    }

    fn change(&self, change: impl FnOnce(&mut Grown)) {
        change(&mut self.grown.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.grown.1.notify_all();
    }

    /// Reads at a place, and waits for it.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let there = self.wait(at).saturating_sub(at);
        let count = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_at(&mut buffer[..count], at)
    }
}

impl Writing {
    pub(super) fn wrote(&self, bytes: u64) {
        self.0.change(|grown| grown.written += bytes);
    }

    pub(super) fn end(self) {
        self.0.change(|grown| grown.end = Some(End::Whole));
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.change(|grown| grown.end = grown.end.or(Some(End::Broken)));
    }
}

/// Takes apart what may be a layer, until the archive is there as a whole.
pub(super) fn take_apart(from: &Growing, options: &ImportOptions, out: &mut Out) -> Result<Earlies, StoreError> {
    let mut earlies = Earlies::new();
    let mut left = options.limits;
    let mut scanner = Scanner::of_archive(Limits { bytes: u64::MAX, entries: MAX_ARCHIVE_ENTRIES });
    let mut sink = Index::default();
    let mut buffer = [0; BLOCK];
    while !scanner.at_end() {
        // Up to the next block, so that a header is the last that is read before its content.
        let room = BLOCK - (scanner.offset() % BLOCK as u64) as usize;
        let Ok(count @ 1..) = from.read_at(&mut buffer[..room], scanner.offset()) else { break };
        if scanner.push(&buffer[..count], &mut sink).is_err() {
            break;
        }
        let Some(entry) = sink.entry.take() else { continue };
        let section = Section { from: from.clone(), at: scanner.offset(), left: entry.size };
        scanner.skip_content();
        // What is no larger may be JSON, and as a layer is soon done when its turn comes.
        if entry.kind != Kind::File || entry.size <= MAX_JSON_SIZE {
            continue;
        }
        let blob = Blob { reader: Box::new(section), size: entry.size };
        match make_layer(left, out, |tar| read_layer(blob, true, tar)) {
            Ok((made, digest)) => {
                left.bytes = left.bytes.saturating_sub(made.size);
                left.entries = left.entries.saturating_sub(made.entries);
                earlies.insert(entry.path, Early { made, digest });
            }
            Err(LayerStop::Store(error)) => return Err(error),
            // Whether it matters shows when the manifest is there.
            Err(
                LayerStop::Tar(_)
                | LayerStop::Page(_)
                | LayerStop::Read(_)
                | LayerStop::Bomb
                | LayerStop::Compression(_)
                | LayerStop::Stopped
                | LayerStop::Tree(_),
            ) => out.settle()?,
        }
    }
    // Where it is broken off, whoever wrote it says why.
    if from.is_whole() { Ok(earlies) } else { Err(StoreError::Closed) }
}

/// A stretch of a file that grows.
struct Section {
    from: Growing,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.from.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
