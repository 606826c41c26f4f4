//! The stream that is written to a peer, and what waits for it.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::AsyncWriteExt;
use futures::future::Either;
use iptl_bitswap::{Message, frame};
use iptl_stack::runtime;
use libp2p::{PeerId, Stream};

/// A stream that was not used for so long is not used again: Helia ends those that are silent for ten seconds, and what
/// is on its way then is lost.
const REST: Duration = Duration::from_secs(5);

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// A message was written, or could not be.
pub struct Written {
    pub peer: PeerId,
    stream: Stream,
    outcome: io::Result<()>,
}

/// What is written to one peer. Each half of Bitswap has one message at most on its way.
#[derive(Default)]
pub struct Writer {
    queue: VecDeque<(Side, Bytes)>,
    stream: Option<(Stream, Instant)>,
    state: State,
    /// The stream has carried a message before, so that the peer may have ended it since.
    is_used: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Opening,
    Writing,
}

impl Writer {
    /// Takes a message in.
    pub fn push(&mut self, side: Side, message: &Message) {
        self.queue.push_back((side, frame(message)));
    }

    /// Says whether a stream is waited for.
    pub fn is_opening(&self) -> bool {
        self.state == State::Opening
    }

    /// Takes a stream; says whether it was waited for.
    pub fn opened(&mut self, stream: Stream) -> bool {
        let is_awaited = self.is_opening();
        if is_awaited {
            self.state = State::Idle;
            self.is_used = false;
            self.stream = Some((stream, Instant::now()));
        }
        is_awaited
    }

    /// Returns the writing of the next message, or that a stream is needed for it; none where nothing is to be done.
    #[expect(clippy::type_complexity, reason = "a future, or nothing but a wish")]
    pub fn next(&mut self, peer: PeerId) -> Option<Either<Pin<Box<dyn Future<Output = Written>>>, ()>> {
        if self.state != State::Idle {
            return None;
        }
        let (_, bytes) = self.queue.front()?;
        let bytes = bytes.clone();
        match self.stream.take() {
            Some((mut stream, since)) if since.elapsed() < REST => {
                self.state = State::Writing;
                Some(Either::Left(Box::pin(async move {
                    let outcome = write(&mut stream, &bytes).await;
                    Written { peer, stream, outcome }
                })))
            }
            rested => {
                if let Some((mut stream, _)) = rested {
                    // It has nothing to say any more.
                    runtime::spawn(Box::pin(async move { drop(stream.close().await) }));
                }
                self.state = State::Opening;
                Some(Either::Right(()))
            }
        }
    }

    /// Takes note of a writing that is over. Returns whose message was written, or why not; none where it is to be
    /// written again, since the peer had ended the stream before.
    pub fn written(&mut self, written: Written) -> Option<io::Result<Side>> {
        self.state = State::Idle;
        match written.outcome {
            Ok(()) => {
                self.stream = Some((written.stream, Instant::now()));
                self.is_used = true;
                let (side, _) = self.queue.pop_front()?;
                Some(Ok(side))
            }
            Err(_) if std::mem::take(&mut self.is_used) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
