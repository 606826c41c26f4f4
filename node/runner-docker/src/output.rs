//! What a workload writes: two pipes, read here as lines, within limits.
//!
//! Within one stream the order is exact. Between the two it is that in which they are seen here, where whatever was
//! written to stdout before something was written to stderr is seen before it too.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use iptl_dag::model::InstanceId;
use iptl_runner::files::CellFiles;
use iptl_runner::{CellEvent, OutputStream};
use iptl_testground::Journal;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Bytes that are read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Longest line; a longer one is several.
const MAX_LINE: usize = 256 << 10;

/// Reads what one workload writes.
pub(crate) struct Output {
    pub(crate) id: InstanceId,
    pub(crate) files: Arc<CellFiles>,
    pub(crate) events: mpsc::Sender<CellEvent>,
    pub(crate) journal: Arc<Mutex<Journal>>,
    /// Start of the cell.
    pub(crate) origin: Instant,
    /// Bytes that may still be logged.
    pub(crate) room: u64,
    /// Told once, what there was too much of.
    pub(crate) exceeded: mpsc::Sender<Exceeded>,
}

/// Why output is not taken any more; it is still read, so that the workload does not hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// More than it may write.
    TooMuch(&'static str),
    /// What it writes cannot be kept.
    Lost(String),
}

struct Stream {
    kind: OutputStream,
    pipe: Option<pipe::Receiver>,
    /// A line without its end.
    partial: Vec<u8>,
}

/// Lines of one reading.
#[derive(Default)]
struct Batch {
    log: Vec<u8>,
    lines: Vec<(OutputStream, u64, String)>,
}

impl Output {
    /// Reads until nothing can write any more. Safe to drop half-way: what is not read stays in the pipes.
    pub(crate) async fn read(mut self, out: OwnedFd, err: OwnedFd) -> io::Result<()> {
        let mut out = Stream::open(OutputStream::Out, out)?;
        let mut err = Stream::open(OutputStream::Err, err)?;
        let mut open = true;
        while out.pipe.is_some() || err.pipe.is_some() {
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                ready = readable(&out.pipe), if out.pipe.is_some() => { ready?; }
                ready = readable(&err.pipe), if err.pipe.is_some() => { ready?; }
            }
            // In the order in which it stands above; what is read of stderr was there before stdout was looked at
            // again, so nothing of it comes before what stdout had.
            let ended_err = err.fill(CHUNK)?;
            let ended_out = out.fill(CHUNK)?;
            out.take_lines(ended_out && err.pipe.is_none(), |line| self.line(OutputStream::Out, line, &mut batch));
            err.take_lines(ended_err, |line| self.line(OutputStream::Err, line, &mut batch));
            if out.pipe.is_none() && err.pipe.is_none() {
                out.take_lines(true, |line| self.line(OutputStream::Out, line, &mut batch));
            }
            open = self.tell(batch, open).await;
        }
        Ok(())
    }

    fn line(&mut self, stream: OutputStream, line: &[u8], batch: &mut Batch) {
        let at_us = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let text = String::from_utf8_lossy(line);
        let text = match stream {
            OutputStream::Err => Some(text),
            OutputStream::Out => {
                let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                journal.line(at_us, &text).map(|kept| std::borrow::Cow::Owned(kept.into_owned()))
            }
        };
        let Some(text) = text else { return };
        let size = text.len() as u64 + 1;
        let kept = if size <= self.room {
            self.room -= size;
            text.into_owned()
        } else {
            let room = usize::try_from(self.room.saturating_sub(1)).unwrap_or(usize::MAX);
            self.room = 0;
            let _ = self.exceeded.try_send(Exceeded::TooMuch("output"));
            if room == 0 {
                return;
            }
            text[..text.floor_char_boundary(room)].to_owned()
        };
        CellFiles::log_line(&mut batch.log, at_us, stream, &kept);
        batch.lines.push((stream, at_us, kept));
    }

    /// Writes what was read to the files, then tells it to whoever follows the cell; false where nobody does.
    async fn tell(&mut self, batch: Batch, open: bool) -> bool {
        if let Err(e) = self.write(&batch.log) {
            let _ = self.exceeded.try_send(Exceeded::Lost(format!("its output cannot be written: {e}")));
            self.room = 0;
        }
        if !open {
            return false;
        }
        for (stream, at_us, line) in batch.lines {
            let event = CellEvent::Output { id: self.id.clone(), stream, at_us, line };
            if self.events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }

    fn write(&self, log: &[u8]) -> io::Result<()> {
        if !log.is_empty() {
            self.files.append_logs(&self.id, log)?;
        }
        write_records(&self.id, &self.files, &self.journal)?;
        if self.journal.lock().unwrap_or_else(PoisonError::into_inner).is_over_limit() {
            let _ = self.exceeded.try_send(Exceeded::TooMuch("records"));
        }
        Ok(())
    }
}

/// Writes the records that a journal has made since the last time.
pub(crate) fn write_records(id: &InstanceId, files: &CellFiles, journal: &Mutex<Journal>) -> io::Result<()> {
    let (events, metrics) = {
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        (journal.take_events(), journal.take_metrics())
    };
    if !events.is_empty() {
        files.append_events(id, &events)?;
    }
    if !metrics.is_empty() {
        files.append_metrics(id, &metrics)?;
    }
    Ok(())
}

async fn readable(pipe: &Option<pipe::Receiver>) -> io::Result<()> {
    match pipe {
        Some(pipe) => pipe.readable().await,
        None => std::future::pending().await,
    }
}

impl Stream {
    fn open(kind: OutputStream, fd: OwnedFd) -> io::Result<Stream> {
        Ok(Stream { kind, pipe: Some(pipe::Receiver::from_owned_fd(fd)?), partial: Vec::new() })
    }

    /// Reads once, what is there; true where that was the end.
    fn fill(&mut self, most: usize) -> io::Result<bool> {
        let Some(pipe) = &self.pipe else { return Ok(false) };
        self.partial.reserve(most);
        match pipe.try_read_buf(&mut self.partial) {
            Ok(0) => {
                self.pipe = None;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => {
                tracing::debug!(error = %e, stream = self.kind.name(), "a pipe broke");
                self.pipe = None;
                Ok(true)
            }
        }
    }

    /// Takes complete lines, and at the end what is left too.
    fn take_lines(&mut self, ended: bool, mut take: impl FnMut(&[u8])) {
        let mut at = 0;
        loop {
            let rest = &self.partial[at..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            match end {
                Some(end) => {
                    let line = &rest[..end];
                    take(line.strip_suffix(b"\r").unwrap_or(line));
                    at += end + 1;
                }
                None if rest.len() >= MAX_LINE || (ended && !rest.is_empty()) => {
                    take(rest);
                    at = self.partial.len();
                }
                None => break,
            }
        }
        if at == self.partial.len() {
            // An idle container keeps no buffer.
            self.partial = Vec::new();
        } else {
            self.partial.drain(..at);
        }
    }
}
