//! Streams of Bitswap for the swarm: those that peers open come as events, and so do those that were asked for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll, Waker};

use iptl_bitswap::PROTOCOLS;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream};

/// What happened to streams.
#[derive(Debug)]
pub enum Event {
    /// A peer opened one.
    Inbound { peer: PeerId, stream: Stream },
    /// One that was asked for is open, in this protocol.
    Opened { peer: PeerId, stream: Stream, protocol: &'static str },
    /// One that was asked for is not to be had.
    Failed { peer: PeerId, reason: String },
}

/// The behaviour.
#[derive(Default)]
pub struct Streams {
    /// Peers to which a stream is wanted.
    to_open: VecDeque<PeerId>,
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

impl Streams {
    /// Asks for a stream to a peer that is connected; an event says what becomes of it.
    pub fn open(&mut self, peer: PeerId) {
        self.to_open.push_back(peer);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        self.events.push_back(match event {
            FromHandler::Inbound(stream) => Event::Inbound { peer, stream },
            FromHandler::Opened(stream, protocol) => Event::Opened { peer, stream, protocol },
            FromHandler::Failed(reason) => Event::Failed { peer, reason },
        });
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(event));
        }
        if let Some(peer_id) = self.to_open.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event: Open });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Asks a connection for a stream.
#[derive(Debug)]
pub struct Open;

/// What a connection tells.
#[derive(Debug)]
pub enum FromHandler {
    Inbound(Stream),
    Opened(Stream, &'static str),
    Failed(String),
}

/// The streams of one connection.
#[derive(Default)]
pub struct Handler {
    to_open: usize,
    told: VecDeque<FromHandler>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Bitswap;
    type OutboundProtocol = Bitswap;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Bitswap> {
        SubstreamProtocol::new(Bitswap, ())
    }

    /// Connections are the plan's, used or not.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Bitswap, (), FromHandler>> {
        if let Some(event) = self.told.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if self.to_open > 0 {
            self.to_open -= 1;
            let protocol = SubstreamProtocol::new(Bitswap, ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        // The swarm polls again after each of the calls below.
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, Open: Open) {
        self.to_open += 1;
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Bitswap, Bitswap, (), ()>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, _), .. }) => {
                self.told.push_back(FromHandler::Inbound(stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, name), .. }) => {
                self.told.push_back(FromHandler::Opened(stream, name));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.told.push_back(FromHandler::Failed(match error {
                    StreamUpgradeError::NegotiationFailed => "it does not speak Bitswap".to_owned(),
                    StreamUpgradeError::Timeout => "it opened no stream in time".to_owned(),
                    StreamUpgradeError::Io(error) => error.to_string(),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            // The enum is libp2p's and grows.
            _ => {}
        }
    }
}

/// A stream in the best version of Bitswap that both ends speak.
#[derive(Clone, Copy, Debug)]
pub struct Bitswap;

impl UpgradeInfo for Bitswap {
    type Info = &'static str;
    type InfoIter = std::array::IntoIter<&'static str, 2>;

    fn protocol_info(&self) -> Self::InfoIter {
        PROTOCOLS.into_iter()
    }
}

impl InboundUpgrade<Stream> for Bitswap {
    type Output = (Stream, &'static str);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: &'static str) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Bitswap {
    type Output = (Stream, &'static str);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: &'static str) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
