//! Standard output and error: lines that go to the log of the instance and to whoever follows it.

use std::io;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_runner::files::CellFiles;
use iptl_runner::{CellEvent, OutputStream};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{OutputStream as WasiOutputStream, StreamError, StreamResult};

use super::cell::Cell;
use super::exit::Ending;
use super::guest::Instance;

/// Longest line in bytes; longer ones are split.
const MAX_LINE: usize = 16 << 10;

/// Bytes that a guest may write at once: what wasmtime-wasi allows for its own streams.
const WRITE_SIZE: usize = 64 << 10;

/// One of the two output streams of an instance.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) cell: Arc<Cell>,
    pub(crate) instance: Arc<Instance>,
    pub(crate) stream: OutputStream,
}

/// Output that is no line yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    out: Vec<u8>,
    err: Vec<u8>,
    written: u64,
}

impl Lines {
    fn buffer(&mut self, stream: OutputStream) -> &mut Vec<u8> {
        match stream {
            OutputStream::Out => &mut self.out,
            OutputStream::Err => &mut self.err,
        }
    }
}

/// Takes what a guest wrote.
fn write(cell: &Cell, instance: &Instance, stream: OutputStream, bytes: &[u8]) -> Result<(), Ending> {
    let mut lines = instance.lines.lock().unwrap_or_else(PoisonError::into_inner);
    let room = instance.limits.output_bytes.saturating_sub(lines.written);
    let taken = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
    lines.written += taken as u64;
    let buffer = lines.buffer(stream);
    buffer.extend_from_slice(&bytes[..taken]);
    keep(cell, instance, stream, take_lines(buffer))?;
    if taken == bytes.len() { Ok(()) } else { Err(Ending::TooMuch { what: "output" }) }
}

/// Keeps what was written without an end of line.
pub(crate) fn flush(cell: &Cell, instance: &Instance) -> Result<(), Ending> {
    let mut lines = instance.lines.lock().unwrap_or_else(PoisonError::into_inner);
    for stream in [OutputStream::Out, OutputStream::Err] {
        let rest = std::mem::take(lines.buffer(stream));
        if !rest.is_empty() {
            keep(cell, instance, stream, vec![text(&rest)])?;
        }
    }
    Ok(())
}

/// Takes the complete lines out of a buffer, and pieces of one that is too long.
fn take_lines(buffer: &mut Vec<u8>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut start = 0;
    loop {
        let rest = &buffer[start..];
        let window = &rest[..rest.len().min(MAX_LINE + 1)];
        if let Some(end) = window.iter().position(|b| *b == b'\n') {
            lines.push(text(&rest[..end]));
            start += end + 1;
        } else if rest.len() > MAX_LINE {
            let end = boundary(rest, MAX_LINE);
            lines.push(text(&rest[..end]));
            start += end;
        } else {
            break;
        }
    }
    buffer.drain(..start);
    lines
}

/// Returns the last position up to `at` where a character of UTF-8 may start.
fn boundary(bytes: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at).rev().find(|i| bytes[*i] & 0xc0 != 0x80).unwrap_or(at)
}

/// Makes text of a line; what is not UTF-8 is replaced.
fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

/// Appends lines to the log and tells them.
fn keep(cell: &Cell, instance: &Instance, stream: OutputStream, lines: Vec<String>) -> Result<(), Ending> {
    if lines.is_empty() {
        return Ok(());
    }
    let at_us = cell.at_us();
    let mut log = Vec::new();
    for line in &lines {
        CellFiles::log_line(&mut log, at_us, stream, line);
    }
    cell.files
        .append_logs(&instance.id, &log)
        .map_err(|e: io::Error| Ending::Lost { what: "output", reason: e.to_string() })?;
    for line in lines {
        cell.say(CellEvent::Output { id: instance.id.clone(), stream, at_us, line });
    }
    Ok(())
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // WASI 0.3 alone asks for this one, and its interfaces are not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn WasiOutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.cell.outbox.wait_for_room().await;
    }
}

#[async_trait]
impl WasiOutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        write(&self.cell, &self.instance, self.stream, &bytes)
            .map_err(|ending| StreamError::Trap(wasmtime::Error::new(ending)))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if self.cell.outbox.has_room() { WRITE_SIZE } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_their_ends_and_when_too_long() {
        let mut buffer = b"one\r\ntwo\nthr".to_vec();
        assert_eq!(take_lines(&mut buffer), ["one", "two"]);
        assert_eq!(buffer, b"thr");
        let mut long = vec![b'x'; MAX_LINE];
        assert!(take_lines(&mut long).is_empty());
        long.extend_from_slice("é\n".as_bytes());
        let lines = take_lines(&mut long);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, 2]);
        assert!(long.is_empty());
    }

    #[test]
    fn characters_are_not_torn_by_the_split() {
        let mut long = vec![b'x'; MAX_LINE - 1];
        long.extend_from_slice("éé".as_bytes());
        let lines = take_lines(&mut long);
        assert_eq!(lines, ["x".repeat(MAX_LINE - 1)]);
        assert_eq!(long, "éé".as_bytes());
    }

    #[test]
    fn what_is_not_text_is_replaced() {
        assert_eq!(text(&[b'a', 0xff, b'b']), "a\u{fffd}b");
    }
}
