//! A stream that a peer writes.

use std::sync::Arc;
use std::time::Duration;

use iptl_bitswap::{Frames, Incoming, Message};
use iptl_dag::PeerId;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

use crate::stream::Stream;

/// Time within which a message that has begun must be there: 35 KiB/s for the largest.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(120);

/// Bytes that every stream may have read ahead; for more it needs one of the [`MAX_LARGE`] places.
const SMALL: usize = 64 << 10;

/// Streams that may be within a message larger than [`SMALL`] at a time, over all peers: 256 MiB of them.
pub(super) const MAX_LARGE: usize = 64;

/// Reads messages until the stream ends, and hashes their blocks; returns what is wrong with one, where something is.
pub(super) async fn read(
    peer: &PeerId,
    mut stream: Stream,
    large: Arc<Semaphore>,
    messages: mpsc::Sender<(PeerId, Incoming)>,
) -> Result<(), String> {
    let mut frames = Frames::default();
    let mut place: Option<OwnedSemaphorePermit> = None;
    let mut deadline = None;
    loop {
        while let Some(bytes) = frames.pop().map_err(|error| error.to_string())? {
            let message = Message::decode(&bytes).map_err(|error| error.to_string())?;
            if messages.send((peer.clone(), message.check())).await.is_err() {
                return Ok(());
            }
            deadline = None;
        }
        if !frames.is_within_message() {
            place = None;
        } else {
            let until = *deadline.get_or_insert_with(|| Instant::now() + MESSAGE_PATIENCE);
            if place.is_none() && frames.buffer().len() > SMALL {
                let Ok(Ok(free)) = timeout_at(until, large.clone().acquire_owned()).await else { return Ok(()) };
                place = Some(free);
            }
        }
        let buffer = frames.buffer();
        buffer.reserve(SMALL);
        // A stream may be silent for as long as it likes between messages, not within one.
        let read = match deadline {
            Some(until) => match timeout_at(until, stream.read_buf(buffer)).await {
                Ok(read) => read,
                Err(_) => return Err("a message did not come to its end in time".into()),
            },
            None => stream.read_buf(buffer).await,
        };
        match read {
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}
