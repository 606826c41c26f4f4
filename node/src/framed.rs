//! Frames of `iptl-wire` on asynchronous streams.

use std::io;

use iptl_wire::frame::{self, HEADER_SIZE};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;

/// Reads one message, or `None` where the stream ended between two messages.
///
/// Not cancel safe: a dropped call may have read half a frame.
///
/// # Errors
///
/// `InvalidData` where the frame is longer than `limit` bytes or is no message of this protocol.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Option<T>> {
    let mut header = [0; HEADER_SIZE];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let length = frame::length(header, limit).map_err(invalid)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    frame::decode(&body).map(Some).map_err(invalid)
}

/// Reads one message and takes the end of the stream for an error.
///
/// Not cancel safe, as [`read`].
pub async fn expect<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<T> {
    read(stream, limit).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Writes one message and flushes.
///
/// Not cancel safe: a dropped call may have written half a frame.
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    stream.write_all(&frame::encode(message)).await?;
    stream.flush().await
}

/// Writes what is queued, many messages at once where they wait, until the queue or the peer ends; `stamp` sees each
/// message at the moment of its sending.
///
/// Dropped half-way, the stream is useless.
pub(crate) async fn write_queue<M: Serialize>(
    writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<M>,
    stamp: impl Fn(&mut M),
) {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(mut message) = next {
            stamp(&mut message);
            if writer.write_all(&frame::encode(&message)).await.is_err() {
                return;
            }
            next = queue.try_recv().ok();
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
    let _gone = writer.shutdown().await;
}

fn invalid(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_survive_and_the_end_between_two_is_no_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"one".to_owned()).await.unwrap();
        write(&mut bytes, &"two".to_owned()).await.unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(read::<String>(&mut rest, 100).await.unwrap().as_deref(), Some("one"));
        assert_eq!(read::<String>(&mut rest, 100).await.unwrap().as_deref(), Some("two"));
        assert_eq!(read::<String>(&mut rest, 100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut header = 1_000_000_u32.to_be_bytes().to_vec();
        header.push(0);
        let error = read::<String>(&mut header.as_slice(), 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_torn_frame_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"one".to_owned()).await.unwrap();
        bytes.pop();
        let error = read::<String>(&mut bytes.as_slice(), 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
