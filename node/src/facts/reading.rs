//! The file of a log, read in windows on all processors: what is read is never in memory all at once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};

use iptl_scheduler::log::{self, MAX_RECORD_SIZE, Tail};

use super::{LogError, damaged, first_seq, io_error};

/// Bytes that are read at once: some thousand facts, which the caches of a processor hold with what becomes of them.
const WINDOW: usize = 1 << 20;

/// Bytes of a file from which on several threads read it.
const MANY: u64 = 4 << 20;

/// Records of a file, decoded.
pub(super) struct Window<T> {
    /// Position of the first of them in the log.
    pub(super) seq: u64,
    /// What was made of each.
    pub(super) records: Vec<T>,
    /// Body of the last of them.
    pub(super) last: Vec<u8>,
}

/// Reads the records of a file in their order and gives them to `take`, window by window, until that breaks off.
///
/// `decode` gets the bytes of a log and the body of a record; none says that it is not what was written. Where the rest of
/// the file is not whole and `is_last` says that nothing comes after this file, what a crash tore is cut off; all else
/// is damage.
pub(super) fn read_file<T: Send>(
    path: &Path,
    is_last: bool,
    decode: impl Fn(&[u8], Range<usize>) -> Option<T> + Sync,
    mut take: impl FnMut(Window<T>) -> ControlFlow<Result<(), LogError>>,
) -> Result<(), LogError> {
    let io = |e| io_error(path, e);
    let file = File::open(path).map_err(io)?;
    let many = file.metadata().map_err(io)?.len() >= MANY;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let source = Mutex::new(Source { file, rest: Vec::new(), at: 0, number: 0, ended: false });
    let mut seq = first_seq(path);
    let mut take = |read: Decoded<T>| {
        let count = read.records.len() as u64;
        let window = Window { seq, records: read.records, last: read.last };
        seq += count;
        if count > 0 {
            take(window)?;
        }
        match read.broken_at {
            Some(at) => ControlFlow::Break(cut_off(path, at, seq, is_last)),
            None => ControlFlow::Continue(()),
        }
    };
    let ended = if many && threads > 1 {
        in_parallel(&source, threads, &decode, &mut take)
    } else {
        let mut raw = Raw::default();
        loop {
            let read = source.lock().unwrap_or_else(PoisonError::into_inner).next(&mut raw);
            match read {
                Ok(true) => match take(raw.decode(&decode)) {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(result) => break Ok(ControlFlow::Break(result)),
                },
                Ok(false) => break Ok(ControlFlow::Continue(())),
                Err(error) => break Err(error),
            }
        }
    };
    match ended.map_err(io)? {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(result) => result,
    }
}

type Taken = ControlFlow<Result<(), LogError>>;

/// Has windows decoded on several threads, and given to `take` on this one in their order.
fn in_parallel<T: Send>(
    source: &Mutex<Source>,
    threads: usize,
    decode: &(impl Fn(&[u8], Range<usize>) -> Option<T> + Sync),
    take: &mut impl FnMut(Decoded<T>) -> Taken,
) -> io::Result<Taken> {
    std::thread::scope(|scope| {
        // What is decoded waits to be taken in: a window for each thread.
        let (done, coming) = mpsc::sync_channel::<io::Result<(usize, Decoded<T>)>>(threads);
        for _ in 0..threads {
            let done = done.clone();
            scope.spawn(move || {
                let mut raw = Raw::default();
                loop {
                    let read = source.lock().unwrap_or_else(PoisonError::into_inner).next(&mut raw);
                    let (read, goes_on) = match read {
                        Ok(true) => (Ok((raw.number, raw.decode(decode))), true),
                        Ok(false) => return,
                        Err(error) => (Err(error), false),
                    };
                    // Whoever takes may have enough.
                    if done.send(read).is_err() || !goes_on {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut next = 0;
        let mut early = BTreeMap::new();
        for read in coming {
            let (number, read) = read?;
            early.insert(number, read);
            while let Some(read) = early.remove(&next) {
                next += 1;
                if let ControlFlow::Break(result) = take(read) {
                    return Ok(ControlFlow::Break(result));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Cuts a file off at `at`, where what comes from there on was torn by a crash.
fn cut_off(path: &Path, at: u64, seq: u64, is_last: bool) -> Result<(), LogError> {
    let io = |e| io_error(path, e);
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_to_end(&mut rest)).map_err(io)?;
    match log::tail(&rest, usize::try_from(at).unwrap_or(usize::MAX)) {
        Tail::Torn if is_last => {
            tracing::warn!(log = %path.display(), bytes = rest.len(), "cut off a tail that a crash tore");
            file.set_len(at).and_then(|()| file.sync_all()).map_err(io)
        }
        Tail::Clean | Tail::Torn | Tail::Damaged => {
            Err(damaged(path, seq, "it is not what was written, and it was durable"))
        }
    }
}

/// A file that is cut into windows.
struct Source {
    file: File,
    /// Bytes of a record that was not whole in the window before.
    rest: Vec<u8>,
    /// Where these stand in the file.
    at: u64,
    /// Windows so far.
    number: usize,
    ended: bool,
}

/// A window as it is in the file; its memory is used for one after the other.
#[derive(Default)]
struct Raw {
    number: usize,
    /// Where it begins.
    at: u64,
    bytes: Vec<u8>,
    bodies: Vec<Range<usize>>,
    /// Whether the file ends with it and there is more than these bodies.
    is_torn: bool,
}

/// A window with what was made of its records.
struct Decoded<T> {
    records: Vec<T>,
    last: Vec<u8>,
    /// Where the first record begins that is not whole.
    broken_at: Option<u64>,
}

impl Source {
    /// Reads the next window; returns whether there was one, which there is not at the end of the file.
    fn next(&mut self, raw: &mut Raw) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let Raw { number, at, bytes, bodies, is_torn } = raw;
        bytes.clear();
        bodies.clear();
        bytes.reserve(self.rest.len() + WINDOW);
        bytes.append(&mut self.rest);
        while bodies.is_empty() && !self.ended {
            let read = (&mut self.file).take(WINDOW as u64).read_to_end(bytes)?;
            // A record that is not whole in so many bytes never will be.
            self.ended = read < WINDOW || bytes.len() > 2 * MAX_RECORD_SIZE;
            *bodies = log::outline(bytes);
        }
        let end = bodies.last().map_or(0, |body| body.end);
        *is_torn = self.ended && end < bytes.len();
        self.rest.extend_from_slice(&bytes[end..]);
        bytes.truncate(end);
        (*number, *at) = (self.number, self.at);
        self.at += end as u64;
        self.number += 1;
        Ok(true)
    }
}

impl Raw {
    fn decode<T>(&self, decode: &impl Fn(&[u8], Range<usize>) -> Option<T>) -> Decoded<T> {
        let mut records = Vec::with_capacity(self.bodies.len());
        let mut whole = 0..0;
        for body in &self.bodies {
            let Some(record) = decode(&self.bytes, body.clone()) else { break };
            records.push(record);
            whole = body.clone();
        }
        let is_broken = self.is_torn || records.len() < self.bodies.len();
        let broken_at = is_broken.then_some(self.at + whole.end as u64);
        Decoded { records, last: self.bytes[whole].to_vec(), broken_at }
    }
}
