//! One layer on its way in: a thread brings the tar, one hashes it, one takes it apart.

use std::io::{self, Read, Write};
use std::sync::mpsc::{self, SyncSender};

use bytes::Bytes;
use iptl_artifacts::StoreError;
use iptl_dag::Cid;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::limits::Limits;
use crate::out::Out;
use crate::pages::{BuildStop, LayerBuilder, PageError};
use crate::tar::scan::{Scanner, TarError};

/// Bytes that go from thread to thread at a time: large enough that waking one costs little.
pub(crate) const CHUNK: usize = 256 << 10;

/// Chunks that wait for each thread.
const CHUNKS_AHEAD: usize = 8;

/// A layer that was taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeLayer {
    pub(crate) cid: Cid,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) entries: u64,
}

/// Why a layer was not made; whoever knows which layer it is says it to people.
#[derive(Debug)]
pub(crate) enum LayerStop {
    Tar(TarError),
    Page(PageError),
    Store(StoreError),
    /// What the tar is made of cannot be read.
    Read(io::Error),
    /// It unpacks to many times its size.
    Bomb,
    /// It is compressed in a way that is not read.
    Compression(&'static str),
    /// The tar was refused; the reason is known elsewhere.
    Stopped,
    /// A file of a tree, which the producer reports by itself.
    Tree(Box<crate::build::BuildError>),
}

impl From<TarError> for LayerStop {
    fn from(error: TarError) -> LayerStop {
        LayerStop::Tar(error)
    }
}

impl From<PageError> for LayerStop {
    fn from(error: PageError) -> LayerStop {
        LayerStop::Page(error)
    }
}

impl From<StoreError> for LayerStop {
    fn from(error: StoreError) -> LayerStop {
        LayerStop::Store(error)
    }
}

impl From<BuildStop<StoreError>> for LayerStop {
    fn from(stop: BuildStop<StoreError>) -> LayerStop {
        match stop {
            BuildStop::Tar(error) => error.into(),
            BuildStop::Page(error) => error.into(),
            BuildStop::Out(error) => error.into(),
        }
    }
}

/// Takes a tar apart.
///
/// `produce` runs on a thread of its own and writes the tar. When the tar is refused, its writes fail with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe), and the reason for the refusal is what is returned.
pub(crate) fn make_layer<P: Send>(
    limits: Limits,
    out: &mut Out,
    produce: impl FnOnce(&mut Chunks) -> Result<P, LayerStop> + Send,
) -> Result<(MadeLayer, P), LayerStop> {
    std::thread::scope(|threads| {
        let (to_maker, chunks) = mpsc::sync_channel::<Bytes>(CHUNKS_AHEAD);
        let (to_hasher, hashed) = mpsc::sync_channel::<Bytes>(CHUNKS_AHEAD);
        let hasher = threads.spawn(move || {
            let mut hash = Sha256::new();
            hashed.iter().for_each(|chunk| hash.update(&chunk));
            Digest(hash.finalize().into())
        });
        let producer = threads.spawn(move || {
            let mut tar = Chunks { to_maker, to_hasher, chunk: vec![0; CHUNK], filled: 0 };
            let produced = produce(&mut tar)?;
            // Where this fails the maker has stopped, and says why.
            let _ = tar.flush();
            Ok::<P, LayerStop>(produced)
        });
        let mut scanner = Scanner::new(limits);
        let mut builder = LayerBuilder::new(out);
        let pushed = chunks.iter().try_for_each(|chunk| scanner.push(&chunk, &mut builder));
        // Closed before the join, so that a producer that waits to send ends.
        drop(chunks);
        let produced = joined(producer.join());
        pushed?;
        let produced = produced?;
        scanner.finish(&mut builder)?;
        let diff_id = joined(hasher.join());
        let (size, entries) = (scanner.offset(), scanner.entries());
        let (cid, _) = builder.finish::<LayerStop>(diff_id.0, size, entries)?;
        Ok((MadeLayer { cid, diff_id, size, entries }, produced))
    })
}

/// A panic of a thread is a bug, and goes on where it would have gone without the thread.
fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Where a producer writes its tar.
pub(crate) struct Chunks {
    to_maker: SyncSender<Bytes>,
    to_hasher: SyncSender<Bytes>,
    /// Of the size of a chunk; the first `filled` bytes count.
    chunk: Vec<u8>,
    filled: usize,
}

impl Chunks {
    /// Hands bytes on as they are, without a copy.
    pub(crate) fn pass(&mut self, bytes: Bytes) -> io::Result<()> {
        self.flush()?;
        self.send(bytes)
    }

    fn send(&mut self, chunk: Bytes) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.to_maker.send(chunk.clone()).map_err(gone)?;
        self.to_hasher.send(chunk).map_err(gone)
    }

    /// Copies all that `from` has; `check` is asked after each read, with it and the bytes so far.
    pub(crate) fn copy_from<R: Read>(
        &mut self,
        from: &mut R,
        mut check: impl FnMut(&R, u64) -> Result<(), LayerStop>,
    ) -> Result<u64, LayerStop> {
        let mut total = 0;
        loop {
            let count = match from.read(&mut self.chunk[self.filled..]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerStop::Read(error)),
            };
            self.filled += count;
            total += count as u64;
            check(from, total)?;
            if count == 0 {
                return Ok(total);
            }
            if self.filled == CHUNK {
                self.flush().map_err(|_| LayerStop::Stopped)?;
            }
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.filled);
        self.chunk[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        if self.filled == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let mut chunk = std::mem::replace(&mut self.chunk, vec![0; CHUNK]);
        chunk.truncate(self.filled);
        self.filled = 0;
        self.send(chunk.into())
    }
}
