//! The stream that users hold, and the queue that they take accepted streams from.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use iptl_dag::PeerId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::streams::{Opened, Registration};

/// A byte stream to a peer, in both directions.
///
/// Shutting the writing half down lets the peer read an end of file; this side can go on reading. Dropping the stream
/// ends both directions. A connection that breaks, and a stream that is dropped half-way, can look like a clean end of
/// file to the other side: what is sent must carry its own lengths. Where this node closes the connection, what waits on the
/// stream fails.
#[derive(Debug)]
pub struct Stream {
    inner: Compat<libp2p::Stream>,
    relayed: bool,
    reading: Closing,
    writing: Closing,
    /// The stream's place under the limit on streams; free again when the stream is dropped.
    _place: OwnedSemaphorePermit,
}

impl Stream {
    pub(crate) fn new(opened: Opened) -> Stream {
        let Opened { stream, place, relayed, closed } = opened;
        let (reading, writing) = (Closing::new(closed.clone()), Closing::new(closed));
        Stream { inner: stream.compat(), relayed, reading, writing, _place: place }
    }

    /// Returns whether it leads through a relay. It does so to its end, whatever other connections to the peer come.
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }
}

/// The close of a stream's connection, for one half of it.
///
/// yamux 0.14 wakes nobody who waits on a stream when its connection is closed on this side; those would wait for ever.
#[derive(Debug)]
struct Closing {
    closed: CancellationToken,
    /// Made when something is waited for first.
    wait: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Closing {
    fn new(closed: CancellationToken) -> Closing {
        Closing { closed, wait: None }
    }

    /// Ends a wait once the connection is closed.
    fn or_closed<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        let wait = self.wait.get_or_insert_with(|| Box::pin(self.closed.clone().cancelled_owned()));
        let aborted = || io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was closed");
        wait.as_mut().poll(cx).map(|()| Err(aborted()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.reading.or_closed(polled, cx)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.writing.or_closed(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.writing.or_closed(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.writing.or_closed(polled, cx)
    }
}

/// Streams that peers opened on one protocol, in the order in which they were admitted.
///
/// Dropping it ends the registration: peers are then told that the protocol is not spoken here.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) queue: mpsc::Receiver<(PeerId, Stream)>,
    pub(crate) _registration: Registration,
}

impl Incoming {
    /// Waits for the next stream; `None` once the node was shut down. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<(PeerId, Stream)> {
        self.queue.recv().await
    }
}
