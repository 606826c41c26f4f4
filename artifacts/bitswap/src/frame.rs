//! Messages on a stream: each behind its length as a varint.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::protobuf::put_raw_varint;
use crate::{MAX_MESSAGE_SIZE, Message};

/// Longest length, in bytes: nobody needs more for [`MAX_MESSAGE_SIZE`].
const MAX_LENGTH_SIZE: usize = 5;

/// Why a stream carries no messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length that is none.
    #[error("the length of a message is malformed")]
    BadLength,
    /// A message that is larger than any may be; nothing of it was kept.
    #[error("a message of {size} bytes is larger than {MAX_MESSAGE_SIZE}")]
    TooLarge {
        /// Length that was announced, in bytes.
        size: u64,
    },
}

/// Cuts a stream into messages.
///
/// Holds at most one message and what was read with it: read on only when [`Frames::pop`] has none.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Returns the buffer that bytes of the stream are appended to.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Says whether a message has begun and is not complete.
    pub fn is_within_message(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Takes the next whole message without its length; none where more bytes are needed.
    pub fn pop(&mut self) -> Result<Option<Bytes>, FrameError> {
        let head = &self.buffer[..self.buffer.len().min(MAX_LENGTH_SIZE)];
        let (size, rest) = match unsigned_varint::decode::u64(head) {
            Ok(read) => read,
            Err(unsigned_varint::decode::Error::Insufficient) if head.len() < MAX_LENGTH_SIZE => return Ok(None),
            Err(_) => return Err(FrameError::BadLength),
        };
        let length_size = head.len() - rest.len();
        let size =
            usize::try_from(size).ok().filter(|size| *size <= MAX_MESSAGE_SIZE).ok_or(FrameError::TooLarge { size })?;
        if self.buffer.len() - length_size < size {
            return Ok(None);
        }
        self.buffer.advance(length_size);
        Ok(Some(self.buffer.split_to(size).freeze()))
    }
}

/// Returns a message with its length before it, ready for a stream.
///
/// # Panics
///
/// Panics where the message is larger than [`MAX_MESSAGE_SIZE`]: those that [`Client`](crate::Client) and
/// [`Server`](crate::Server) make are not.
pub fn frame(message: &Message) -> Bytes {
    let body = message.encode();
    assert!(body.len() <= MAX_MESSAGE_SIZE, "a message of {} bytes was made", body.len());
    let mut out = Vec::with_capacity(body.len() + MAX_LENGTH_SIZE);
    put_raw_varint(&mut out, body.len() as u64);
    out.extend_from_slice(&body);
    out.into()
}
