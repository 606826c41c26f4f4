//! The connection to the lablet.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::protocol::{FromInit, LAB_DIR, MAX_FRAME, SOCKET_NAME, ToInit};
use crate::sys;

/// How long the lablet may not read before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Link {
    stream: UnixStream,
    received: Vec<u8>,
    buffer: Vec<u8>,
}

impl Link {
    pub(crate) fn connect(hello: &FromInit, fds: &[RawFd]) -> io::Result<Link> {
        let stream = UnixStream::connect(format!("{LAB_DIR}/{SOCKET_NAME}"))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut buffer = Vec::new();
        hello.encode(&mut buffer);
        let sent = sys::send_with_descriptors(stream.as_fd(), &buffer, fds)?;
        (&stream).write_all(&buffer[sent..])?;
        Ok(Link { stream, received: Vec::new(), buffer })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Returns whether a small message can be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        sys::is_writable(self.stream.as_fd())
    }

    pub(crate) fn send(&mut self, message: &FromInit) -> io::Result<()> {
        self.buffer.clear();
        message.encode(&mut self.buffer);
        self.stream.write_all(&self.buffer)
    }

    /// Returns the next message, none where there is none yet.
    pub(crate) fn receive(&mut self) -> io::Result<Option<ToInit>> {
        loop {
            if let Some(head) = self.received.first_chunk::<4>() {
                let length = u32::from_le_bytes(*head) as usize;
                if length > MAX_FRAME {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if let Some(frame) = self.received.get(4..4 + length) {
                    let message = ToInit::decode(frame).ok_or(io::ErrorKind::InvalidData)?;
                    self.received.drain(..4 + length);
                    return Ok(Some(message));
                }
            }
            if !sys::is_readable(self.stream.as_fd()) {
                return Ok(None);
            }
            let mut bytes = [0; 4096];
            let size = (&self.stream).read(&mut bytes)?;
            if size == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&bytes[..size]);
        }
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
