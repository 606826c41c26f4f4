//! Bytes that wait to be read or sent.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Shorter pieces are copied together: a queue of single bytes would cost fifty times their size.
const COPY_BELOW: usize = 1024;

/// A queue of bytes that moves large pieces without copying them.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < COPY_BELOW {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.seal();
            self.pieces.push_back(bytes);
        }
    }

    /// Takes out the next bytes, at least one where there are any, at most `max`.
    pub(super) fn pop(&mut self, max: usize) -> Option<Bytes> {
        if max == 0 {
            return None;
        }
        if self.pieces.is_empty() {
            self.seal();
        }
        let front = self.pieces.front_mut()?;
        let bytes = if front.len() > max { front.split_to(max) } else { self.pieces.pop_front()? };
        self.len -= bytes.len();
        Some(bytes)
    }

    pub(super) fn clear(&mut self) {
        *self = Buffer::default();
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            // Taken whole, so that an idle socket holds no spare capacity.
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}
