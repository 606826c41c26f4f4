//! Streams to peers, whether they are across the swarm or this very node.
//!
//! A node may be orchestrator and lablet at once, and may have no network at all. Drivers open and accept streams here
//! and need not know: a stream to oneself is a pipe in memory, all others go through `iptl-net`.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_net::Net;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// Bytes that a stream to oneself buffers each way; as much as a yamux window at its start.
const LOCAL_BUFFER_SIZE: usize = 256 << 10;

/// Longest wait for a stream, dialling included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a stream can do.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream to a peer.
///
/// The mutex is never locked: it makes the stream `Sync`, which futures of other crates ask for that hold it by
/// reference over an await.
pub struct Stream {
    io: Mutex<Box<dyn Duplex>>,
    relayed: bool,
}

impl Stream {
    /// Wraps whatever can be read and written.
    pub fn new(stream: impl Duplex + 'static) -> Stream {
        Stream { io: Mutex::new(Box::new(stream)), relayed: false }
    }

    fn of_net(stream: iptl_net::Stream) -> Stream {
        let relayed = stream.is_relayed();
        Stream { relayed, ..Stream::new(stream) }
    }

    /// Returns whether it leads by way of a third machine.
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut Box<dyn Duplex>> {
        Pin::new(self.get_mut().io.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

/// Streams that peers open under one protocol.
pub type Incoming = mpsc::Receiver<(PeerId, Stream)>;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer cannot be reached.
    #[error("cannot reach {}: {reason}", peer.short())]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// What is known.
        reason: String,
    },
    /// The peer does not speak the protocol.
    #[error("{} does not speak {protocol}", peer.short())]
    NotSpoken {
        /// The peer.
        peer: PeerId,
        /// The protocol.
        protocol: &'static str,
    },
    /// The node has no network.
    #[error("this node runs without a network")]
    Offline,
}

/// Opens and accepts streams.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    peer: PeerId,
    net: Option<Net>,
    local: Mutex<BTreeMap<&'static str, mpsc::Sender<(PeerId, Stream)>>>,
}

impl Links {
    /// Makes the links of `peer`; without `net` it reaches only itself.
    pub fn new(peer: PeerId, net: Option<Net>) -> Links {
        Links { inner: Arc::new(Inner { peer, net, local: Mutex::default() }) }
    }

    /// Returns this node's own peer ID.
    pub fn peer(&self) -> &PeerId {
        &self.inner.peer
    }

    /// Returns the swarm, where there is one.
    pub fn net(&self) -> Option<&Net> {
        self.inner.net.as_ref()
    }

    /// Opens a stream; dials `addrs`, and what the swarm knows, where there is no connection yet.
    ///
    /// Cancel safe: a dropped call leaves at most a connection behind. Gives up after ten seconds.
    pub async fn open(&self, peer: &PeerId, addrs: &[String], protocol: &'static str) -> Result<Stream, LinkError> {
        if peer == self.peer() {
            return self.open_local(protocol).await;
        }
        let net = self.net().ok_or(LinkError::Offline)?;
        let unreachable = |reason: String| LinkError::Unreachable { peer: peer.clone(), reason };
        let opening = async {
            net.connect(peer, addrs).await.map_err(|e| unreachable(e.to_string()))?;
            net.open(peer, protocol).await.map_err(|e| match e {
                iptl_net::OpenError::Unsupported { .. } => LinkError::NotSpoken { peer: peer.clone(), protocol },
                other => unreachable(other.to_string()),
            })
        };
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(stream) => Ok(Stream::of_net(stream?)),
            Err(_) => Err(unreachable(format!("no answer within {} s", OPEN_TIMEOUT.as_secs()))),
        }
    }

    /// Opens a stream to a peer on a connection that it has made; nobody is dialled.
    ///
    /// Cancel safe. Gives up after ten seconds.
    pub async fn open_connected(&self, peer: &PeerId, protocol: &'static str) -> Result<Stream, LinkError> {
        if peer == self.peer() {
            return self.open_local(protocol).await;
        }
        let net = self.net().ok_or(LinkError::Offline)?;
        let stream = net.open_connected(peer, protocol).await.map_err(|e| match e {
            iptl_net::OpenError::Unsupported { .. } => LinkError::NotSpoken { peer: peer.clone(), protocol },
            other => LinkError::Unreachable { peer: peer.clone(), reason: other.to_string() },
        })?;
        Ok(Stream::of_net(stream))
    }

    /// Accepts streams of a protocol, at most `queue` waiting; further ones wait at their opener.
    pub async fn accept(&self, protocol: &'static str, queue: usize) -> Incoming {
        let (sender, incoming) = mpsc::channel(queue);
        if let Some(net) = self.net() {
            match net.accept(protocol, queue).await {
                Ok(mut streams) => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        while let Some((peer, stream)) = streams.next().await {
                            if sender.send((peer, Stream::of_net(stream))).await.is_err() {
                                break;
                            }
                        }
                    });
                }
                Err(error) => tracing::error!(protocol, %error, "cannot accept streams"),
            }
        }
        self.inner.local.lock().unwrap_or_else(PoisonError::into_inner).insert(protocol, sender);
        incoming
    }

    /// Ends the queues of streams, so that the tasks that accept them end too; for a node that stops.
    pub(crate) fn close(&self) {
        self.inner.local.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn open_local(&self, protocol: &'static str) -> Result<Stream, LinkError> {
        let sender = self.inner.local.lock().unwrap_or_else(PoisonError::into_inner).get(protocol).cloned();
        let not_spoken = || LinkError::NotSpoken { peer: self.peer().clone(), protocol };
        let (here, there) = tokio::io::duplex(LOCAL_BUFFER_SIZE);
        sender
            .ok_or_else(not_spoken)?
            .send((self.peer().clone(), Stream::new(there)))
            .await
            .map_err(|_| not_spoken())?;
        Ok(Stream::new(here))
    }
}
