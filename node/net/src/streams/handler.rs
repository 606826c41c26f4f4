//! The streams of one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Ready, ready};
use futures::stream::FuturesUnordered;
use futures::{AsyncWriteExt as _, FutureExt as _, StreamExt as _};
use iptl_dag::PeerId;
use libp2p::StreamProtocol;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard, PollSemaphore};

use super::{
    ADMISSION_TIMEOUT, ADMITTED, Acceptors, MAX_OUTBOUND_STREAMS_PER_CONNECTION, Protocols, REFUSED, is_admitted,
};
use crate::stream::Stream;

/// Outbound streams in negotiation at a time on one connection. A peer negotiates up to 256 inbound ones at a time, and
/// other protocols need some of these.
const MAX_NEGOTIATING: usize = 128;

/// Asks a connection for a stream.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) protocol: StreamProtocol,
    pub(crate) reply: oneshot::Sender<Result<Opened, NoStream>>,
}

/// A negotiated stream, not yet admitted by its acceptor, with its place under the limit and what its connection is.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: libp2p::Stream,
    pub(crate) place: OwnedSemaphorePermit,
    pub(crate) relayed: bool,
    /// Cancelled when the connection is closed.
    pub(crate) closed: CancellationToken,
}

/// Why a connection gave no stream.
#[derive(Debug)]
pub(crate) enum NoStream {
    /// There is no connection to the peer.
    NotConnected,
    /// The peer does not speak the protocol.
    Unsupported,
    /// No answer within the swarm's time for negotiations.
    Timeout,
    /// The connection said otherwise.
    Lost(io::Error),
}

/// The handler of one connection. Pending work lives here and ends with the connection.
pub(crate) struct Handler {
    peer: PeerId,
    /// The connection leads through a relay, and its streams with it.
    relayed: bool,
    protocols: Protocols,
    /// Places for inbound streams, shared by the connections of the peer.
    inbound_places: Arc<Semaphore>,
    outbound_places: PollSemaphore,
    to_open: VecDeque<Open>,
    negotiating: usize,
    /// Inbound streams on their way into their queues.
    admitting: FuturesUnordered<BoxFuture<'static, ()>>,
    /// The connection is closed once its handler is dropped.
    closed: CancellationToken,
    _closes: DropGuard,
}

impl Handler {
    pub(super) fn new(peer: PeerId, relayed: bool, protocols: Protocols, inbound_places: Arc<Semaphore>) -> Handler {
        let outbound_places = PollSemaphore::new(Arc::new(Semaphore::new(MAX_OUTBOUND_STREAMS_PER_CONNECTION)));
        let closed = CancellationToken::new();
        Handler {
            peer,
            relayed,
            protocols,
            inbound_places,
            outbound_places,
            to_open: VecDeque::new(),
            negotiating: 0,
            admitting: FuturesUnordered::new(),
            _closes: closed.clone().drop_guard(),
            closed,
        }
    }

    fn opened(&self, stream: libp2p::Stream, place: OwnedSemaphorePermit) -> Opened {
        Opened { stream, place, relayed: self.relayed, closed: self.closed.clone() }
    }

    fn on_inbound(&mut self, stream: libp2p::Stream, protocol: StreamProtocol) {
        let place = self.inbound_places.clone().try_acquire_owned().ok();
        let queue = self.protocols.snapshot().get(&protocol).cloned();
        match (place, queue) {
            (Some(place), Some(queue)) => {
                let opened = self.opened(stream, place);
                self.admitting.push(admit(self.peer.clone(), opened, protocol, queue).boxed());
            }
            (place, queue) => {
                let (full, gone) = (place.is_none(), queue.is_none());
                tracing::warn!(peer = %self.peer.short(), %protocol, full, gone, "stream refused");
                // Refusals are themselves bounded: past twice the limit a peer's streams are reset without a word.
                if self.admitting.len() < 2 * super::MAX_INBOUND_STREAMS_PER_PEER {
                    self.admitting.push(refuse(stream, protocol).boxed());
                }
            }
        }
    }

    fn on_outbound_failure(&mut self, error: StreamUpgradeError<Infallible>, info: OpenInfo) {
        let reason = match error {
            StreamUpgradeError::NegotiationFailed => NoStream::Unsupported,
            StreamUpgradeError::Timeout => NoStream::Timeout,
            StreamUpgradeError::Io(error) => NoStream::Lost(error),
            StreamUpgradeError::Apply(never) => match never {},
        };
        // The opener may be gone; then nobody wants to know.
        let _ = info.reply.send(Err(reason));
    }
}

/// Waits for room in the queue, tells the opener, and puts the stream in.
async fn admit(peer: PeerId, mut opened: Opened, protocol: StreamProtocol, queue: mpsc::Sender<(PeerId, Stream)>) {
    let room = match tokio::time::timeout(ADMISSION_TIMEOUT, queue.reserve_owned()).await {
        Ok(Ok(room)) => room,
        Ok(Err(_)) => return refuse(opened.stream, protocol).await,
        Err(_) => {
            tracing::warn!(peer = %peer.short(), %protocol, "stream refused: its queue did not move");
            return refuse(opened.stream, protocol).await;
        }
    };
    if is_admitted(protocol.as_ref()) {
        // An opener that has given up has reset the stream: it is not worth anybody's turn.
        match tokio::time::timeout(ADMISSION_TIMEOUT, say(&mut opened.stream, ADMITTED)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    room.send((peer, Stream::new(opened)));
}

async fn refuse(mut stream: libp2p::Stream, protocol: StreamProtocol) {
    if is_admitted(protocol.as_ref()) {
        let farewell = async {
            say(&mut stream, REFUSED).await?;
            stream.close().await
        };
        // The stream is dropped whatever comes of it.
        let _ = tokio::time::timeout(ADMISSION_TIMEOUT, farewell).await;
    }
}

async fn say(stream: &mut libp2p::Stream, byte: u8) -> io::Result<()> {
    stream.write_all(&[byte]).await?;
    stream.flush().await
}

/// What travels with an outbound negotiation.
pub(crate) struct OpenInfo {
    reply: oneshot::Sender<Result<Opened, NoStream>>,
    place: OwnedSemaphorePermit,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Inbound;
    type OutboundProtocol = Outbound;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Inbound> {
        SubstreamProtocol::new(Inbound(self.protocols.snapshot()), ())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Outbound, OpenInfo, Infallible>> {
        while let Poll::Ready(Some(())) = self.admitting.poll_next_unpin(cx) {}
        while self.negotiating < MAX_NEGOTIATING {
            if self.to_open.front().is_none() {
                break;
            }
            let Poll::Ready(Some(place)) = self.outbound_places.poll_acquire(cx) else { break };
            let Some(Open { protocol, reply }) = self.to_open.pop_front() else { break };
            if reply.is_closed() {
                continue;
            }
            self.negotiating += 1;
            let protocol = SubstreamProtocol::new(Outbound(protocol), OpenInfo { reply, place });
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.to_open.push_back(open);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Inbound, Outbound, (), OpenInfo>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => {
                self.on_inbound(stream, protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info }) => {
                self.negotiating -= 1;
                // An opener that is gone drops the stream, which resets it.
                let _ = info.reply.send(Ok(self.opened(stream, info.place)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.negotiating -= 1;
                self.on_outbound_failure(error, info);
            }
            // Inbound negotiations cannot fail after a protocol was chosen; the enum is libp2p's and grows.
            _ => {}
        }
    }
}

/// Inbound streams: any registered protocol.
#[derive(Debug)]
pub(crate) struct Inbound(Arc<Acceptors>);

impl UpgradeInfo for Inbound {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.keys().cloned().collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Inbound {
    type Output = (libp2p::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

/// An outbound stream: the one protocol asked for.
#[derive(Debug)]
pub(crate) struct Outbound(StreamProtocol);

impl UpgradeInfo for Outbound {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<libp2p::Stream> for Outbound {
    type Output = libp2p::Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
