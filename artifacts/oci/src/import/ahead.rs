//! Layers of an archive that still arrives: taken apart as soon as they are there, before its end says what they are for.
//!
//! What an archive holds beside the image that is meant is taken apart too. Its blocks are unpinned, as those of an import
//! that fails; and it counts to what the image may be. Nothing is decided here: what is wrong with a layer is kept, and
//! said when its turn comes.
//!
//! The archive is written down for that turn, but for the contents of layers that were taken apart: nobody reads them
//! again, and there is a hole in their place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use iptl_artifacts::StoreError;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::source::{Blob, Index};
use super::{Digest, ImportError, ImportOptions, MadeLayer, archive_limit, read_layer, scratch_error};
use crate::compression::Compression;
use crate::layer::{CHUNK, Chunks, LayerStop, make_layer};
use crate::limits::{Limits, MAX_ARCHIVE_ENTRIES, MAX_JSON_SIZE};
use crate::out::Out;
use crate::pages::BlockSink;
use crate::tar::BLOCK;
use crate::tar::scan::{Kind, Scanner};

/// Parts of the stream that wait to be taken apart, of 256 KiB each.
const PARTS_AHEAD: usize = 16;

/// First bytes of a layer, which say how it is compressed.
const HEAD: usize = 8;

/// A layer that was taken apart before anybody asked for it.
pub(super) enum Early {
    /// It is one.
    Made {
        made: MadeLayer,
        /// Digest of its compressed form, where it has one.
        digest: Option<Digest>,
    },
    /// It is none, or one that is refused.
    Refused(LayerStop),
}

impl Early {
    /// Returns why it was refused.
    pub(super) fn refusal(self) -> Option<LayerStop> {
        match self {
            Early::Made { .. } => None,
            Early::Refused(stop) => Some(stop),
        }
    }
}

/// By the name in the archive.
pub(super) type Earlies = BTreeMap<Vec<u8>, Early>;

/// What comes of a stream.
enum Part {
    Bytes(Bytes),
    /// All of it came.
    End,
}

/// A stream on its way to whoever takes it apart.
pub(super) struct Arriving {
    parts: mpsc::Receiver<Part>,
    /// What came and was not taken yet.
    rest: Bytes,
    /// Bytes that were taken.
    offset: u64,
    is_whole: bool,
}

/// The end of a stream at which it comes in. Dropped before the stream's end, it says that no more comes.
pub(super) struct Reading(mpsc::Sender<Part>);

/// Makes both ends.
pub(super) fn arriving() -> (Reading, Arriving) {
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    (Reading(sender), Arriving { parts, rest: Bytes::new(), offset: 0, is_whole: false })
}

impl Reading {
    /// Reads a stream to its end. Where nobody takes it any more, it stops without an error: they say why.
    pub(super) async fn read(
        self,
        mut stream: impl AsyncRead + Unpin + Send,
        options: &ImportOptions,
    ) -> Result<(), ImportError> {
        let limit = archive_limit(options);
        let mut total = 0;
        loop {
            let (mut part, mut is_last) = (BytesMut::with_capacity(CHUNK), false);
            while part.len() < CHUNK && !is_last {
                let is_empty = part.is_empty();
                let mut room = (&mut stream).take((CHUNK - part.len()) as u64);
                let read = tokio::select! {
                    biased;
                    read = room.read_buf(&mut part) => read,
                    // What came is handed on where the stream pauses.
                    () = std::future::ready(()), if !is_empty => break,
                };
                is_last = read.map_err(|source| ImportError::Read { path: "the stream".into(), source })? == 0;
            }
            total += part.len() as u64;
            if total > limit {
                return Err(ImportError::ArchiveTooLarge { limit });
            }
            if self.0.send(Part::Bytes(part.freeze())).await.is_err() {
                return Ok(());
            }
            if is_last {
                // Nobody listens where this fails.
                let _ = self.0.send(Part::End).await;
                return Ok(());
            }
        }
    }
}

impl Arriving {
    /// Waits for the next bytes; says whether there are any.
    fn wait(&mut self) -> bool {
        while self.rest.is_empty() {
            match self.parts.blocking_recv() {
                Some(Part::Bytes(bytes)) => self.rest = bytes,
                Some(Part::End) => self.is_whole = true,
                None => return false,
            }
        }
        true
    }

    /// Takes the next bytes, at most `most`; none at the end.
    fn next(&mut self, most: u64) -> Option<Bytes> {
        if most == 0 || !self.wait() {
            return None;
        }
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.rest.len());
        self.offset += count as u64;
        Some(self.rest.split_to(count))
    }

    /// Passes over the bytes up to `end`.
    fn skip_to(&mut self, end: u64) {
        while self.next(end.saturating_sub(self.offset)).is_some() {}
    }

    /// Writes the bytes up to `end` down at their place, or as many as come.
    fn keep_to(&mut self, end: u64, file: &File) -> io::Result<()> {
        loop {
            let at = self.offset;
            let Some(bytes) = self.next(end.saturating_sub(at)) else { return Ok(()) };
            file.write_all_at(&bytes, at)?;
        }
    }
}

/// Takes apart what may be a layer, until the archive is there as a whole; `file` gets the archive.
pub(super) fn take_apart(
    mut from: Arriving,
    file: &File,
    options: &ImportOptions,
    out: &mut Out,
) -> Result<Earlies, ImportError> {
    let scratch = scratch_error(options);
    let mut earlies = Earlies::new();
    let mut left = options.limits;
    let mut scanner = Scanner::of_archive(Limits { bytes: u64::MAX, entries: MAX_ARCHIVE_ENTRIES });
    let mut sink = Index::default();
    while !scanner.at_end() {
        // Up to the next block, so that a header is the last that is read before its content.
        let room = BLOCK as u64 - scanner.offset() % BLOCK as u64;
        let at = from.offset;
        let Some(bytes) = from.next(room) else { break };
        file.write_all_at(&bytes, at).map_err(&scratch)?;
        if scanner.push(&bytes, &mut sink).is_err() {
            break;
        }
        let Some(entry) = sink.entry.take() else { continue };
        scanner.skip_content();
        let end = from.offset.saturating_add(entry.size);
        // What is no larger may be JSON, and as a layer is soon done when its turn comes.
        if entry.kind != Kind::File || entry.size <= MAX_JSON_SIZE {
            from.keep_to(end, file).map_err(&scratch)?;
            continue;
        }
        let shared = Arc::new(Mutex::new(from));
        let section = Section { from: shared.clone(), end };
        let made = make_layer(left, out, |tar| section.layer(entry.size, tar));
        from = Arc::into_inner(shared)
            .expect("whoever read it is done")
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        from.skip_to(end);
        let early = match made {
            Ok((made, digest)) => {
                left.bytes = left.bytes.saturating_sub(made.size);
                left.entries = left.entries.saturating_sub(made.entries);
                Early::Made { made, digest }
            }
            Err(LayerStop::Store(error)) => return Err(error.into()),
            // Whether it matters shows when the manifest is there.
            Err(stop) => {
                out.settle()?;
                Early::Refused(stop)
            }
        };
        earlies.insert(entry.path, early);
    }
    from.keep_to(u64::MAX, file).map_err(&scratch)?;
    // The last may be a hole.
    file.set_len(from.offset).map_err(&scratch)?;
    // Where it is broken off, whoever read it says why.
    if from.is_whole { Ok(earlies) } else { Err(StoreError::Closed.into()) }
}

/// A stretch of a stream that arrives.
struct Section {
    from: Arc<Mutex<Arriving>>,
    end: u64,
}

impl Section {
    fn next(&self, most: usize) -> Option<Bytes> {
        let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.end.saturating_sub(from.offset);
        from.next(left.min(most as u64))
    }

    fn is_over(&self) -> bool {
        self.from.lock().unwrap_or_else(PoisonError::into_inner).offset >= self.end
    }

    /// Unpacks a layer of `size` bytes; one that is not compressed is handed on as it came.
    fn layer(self, size: u64, tar: &mut Chunks) -> Result<Option<Digest>, LayerStop> {
        let mut head = BytesMut::new();
        while let Some(bytes) = self.next(HEAD - head.len()) {
            head.extend_from_slice(&bytes);
        }
        let head = head.freeze();
        if !matches!(Compression::of(&head), Compression::Plain) {
            let reader = Read::chain(io::Cursor::new(head), self);
            return read_layer(Blob { reader: Box::new(reader), size }, true, tar);
        }
        tar.pass(head).map_err(|_| LayerStop::Stopped)?;
        while let Some(bytes) = self.next(CHUNK) {
            tar.pass(bytes).map_err(|_| LayerStop::Stopped)?;
        }
        match self.is_over() {
            true => Ok(None),
            false => Err(LayerStop::Read(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next(buffer.len()) {
            Some(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            None if buffer.is_empty() || self.is_over() => Ok(0),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
