//! The stream to a peer.

use std::time::Duration;

use iptl_bitswap::{Message, PROTOCOL, PROTOCOLS, frame};
use iptl_dag::PeerId;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::task::{Happened, Side};
use crate::error::OpenError;
use crate::net::Net;
use crate::stream::Stream;

/// Time within which a message must be written; the server gives a peer up by itself at about the same time.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// A stream without a message for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// Writes messages to a peer until one cannot be written; opens the stream with the first one.
pub(super) async fn write(
    net: Net,
    peer: PeerId,
    addrs: Vec<String>,
    mut queue: mpsc::Receiver<(Side, Message)>,
    happened: mpsc::Sender<Happened>,
) {
    let mut stream: Option<Stream> = None;
    loop {
        let (side, message) = match timeout(IDLE, queue.recv()).await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(_) => {
                if let Some(mut idle) = stream.take() {
                    // It is dropped whatever comes of it.
                    let _ = timeout(WRITE_PATIENCE, idle.shutdown()).await;
                }
                continue;
            }
        };
        let bytes = frame(&message);
        // The peer may have ended a stream that was used before; that is no failure of the peer's.
        let reused = stream.is_some();
        let mut written = false;
        for _ in 0..=usize::from(reused) {
            if stream.is_none() {
                match open(&net, &peer, &addrs).await {
                    Ok((fresh, says_have)) => {
                        stream = Some(fresh);
                        if happened.send(Happened::Connected { peer: peer.clone(), says_have }).await.is_err() {
                            return;
                        }
                    }
                    Err((reason, is_not_spoken)) => {
                        // A task that is gone need not be told.
                        let _ = happened.send(Happened::Failed { peer, reason, is_not_spoken }).await;
                        return;
                    }
                }
            }
            let Some(open) = stream.as_mut() else { continue };
            let writing = async {
                open.write_all(&bytes).await?;
                open.flush().await
            };
            match timeout(WRITE_PATIENCE, writing).await {
                Ok(Ok(())) => {
                    written = true;
                    break;
                }
                Ok(Err(_)) => stream = None,
                Err(_) => break,
            }
        }
        let told = match written {
            true => happened.send(Happened::Sent { peer: peer.clone(), side }).await,
            false => {
                let _ = happened.send(Happened::Gone { peer }).await;
                return;
            }
        };
        if told.is_err() {
            return;
        }
    }
    if let Some(mut stream) = stream {
        let _ = timeout(WRITE_PATIENCE, stream.shutdown()).await;
    }
}

/// Opens a stream in the best version that the peer speaks; says whether peers of it say what they have. On failure, says
/// whether it is that it speaks none.
async fn open(net: &Net, peer: &PeerId, addrs: &[String]) -> Result<(Stream, bool), (String, bool)> {
    if !addrs.is_empty() {
        net.connect(peer, addrs).await.map_err(|error| (error.to_string(), false))?;
    }
    for protocol in PROTOCOLS {
        match net.open(peer, protocol).await {
            Ok(stream) => return Ok((stream, protocol == PROTOCOL)),
            Err(OpenError::Unsupported { .. }) => {}
            Err(error) => return Err((error.to_string(), false)),
        }
    }
    Err(("it does not speak Bitswap".to_owned(), true))
}
