//! The handle.

use std::sync::Arc;
use std::time::Duration;

use iptl_dag::PeerId;
use libp2p::{Multiaddr, StreamProtocol};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::addr::{self, from_peer, to_peer};
use crate::config::Config;
use crate::error::{
    AcceptError, AddrError, DialError, ListenError, OpenError, ProvideError, PublishError, StartError, SubscribeError,
};
use crate::event::{GossipMessage, NetEvent, PeerInfo, Reach, Validate};
use crate::stream::{Incoming, Stream};
use crate::streams::{ADMITTED, NoStream, NotRegistered, Protocols, REFUSED, is_admitted};
use crate::task::{Command, Task};

/// Commands on their way to the swarm task; callers wait beyond them.
const COMMAND_QUEUE: usize = 256;
/// Streams that this node opens at a time, over all peers; further calls of `open` wait.
const MAX_OPENING: usize = 1_024;
/// Lookups in the DHT at a time; further ones wait, within their time.
const MAX_LOOKUPS: usize = 64;
/// Time for a stream to be negotiated and admitted.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one round of dials: libp2p's own limits end earlier, a relay's may not.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for looking up the addresses of a peer that is to be connected.
const FIND_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at whether a direct connection came.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
/// ADD_PROVIDER is not acknowledged, so a record may be on its way while it is looked up.
const EMPTY_LOOKUP_PAUSE: Duration = Duration::from_millis(100);
/// Longest key in bytes: a 64-byte digest with its multihash head, doubled.
const MAX_KEY_SIZE: usize = 128;

/// A running node. Cloning gives another handle of the same node; the node ends with [`Net::shutdown`] or when the last
/// handle is dropped.
///
/// Every method may be dropped half-way: what was asked for may then still happen, and nothing else does.
#[derive(Clone)]
pub struct Net {
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    protocols: Protocols,
    opening: Arc<Semaphore>,
    looking: Arc<Semaphore>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("peer", &self.peer).finish()
    }
}

/// Starts a node. It listens on every address of the configuration when this returns; reservations at relays and
/// connections to known peers are made in the background.
///
/// The receiver must be read: events beyond a few thousand unread ones are dropped, with an error in the log. Dropping
/// it is fine.
///
/// # Errors
///
/// [`StartError::PortInUse`] names the address that another process listens on.
pub async fn start(config: Config) -> Result<(Net, mpsc::Receiver<NetEvent>), StartError> {
    let protocols = Protocols::default();
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let (task, events) = Task::start(config, protocols.clone(), queue).await?;
    let peer = to_peer(task.local_peer());
    tokio::spawn(task.run());
    let (opening, looking) = (Arc::new(Semaphore::new(MAX_OPENING)), Arc::new(Semaphore::new(MAX_LOOKUPS)));
    Ok((Net { peer, commands, protocols, opening, looking }, events))
}

impl Net {
    /// Returns the node's own peer ID.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// Returns the addresses that others can try, each with `/p2p/<self>`: those confirmed from outside first, then
    /// those listened on; and last those at relays.
    pub async fn addrs(&self) -> Vec<String> {
        self.ask(Command::Addrs).await.unwrap_or_default()
    }

    /// Listens on a further address, or asks a relay for a reservation (`…/p2p/<relay>/p2p-circuit`), and returns the
    /// addresses that this gave.
    pub async fn listen(&self, addr: &str) -> Result<Vec<String>, ListenError> {
        let parsed = addr::parse(addr)?;
        self.ask(|reply| Command::Listen { addr: parsed, reply }).await.unwrap_or(Err(ListenError::Closed))
    }

    /// Makes a connection to a peer, unless there is one.
    ///
    /// Tries `addrs` with whatever is known here (mDNS, identify, earlier lookups); when that fails, the addresses in
    /// the peer's own provider record. Direct addresses come first; those at relays are dialled once the others have failed,
    /// or have not answered for a second. Where there is a relayed connection only, a direct one is tried at those of
    /// `addrs` that are direct, once in a while; the relayed one is enough when that fails, or takes over a second.
    pub async fn connect(&self, peer: &PeerId, addrs: &[String]) -> Result<(), DialError> {
        let addrs = addrs.iter().map(|addr| addr::parse(addr)).collect::<Result<Vec<_>, _>>()?;
        let error = match self.dial(peer, addrs).await {
            Err(error @ (DialError::NoAddress { .. } | DialError::Unreachable { .. } | DialError::Timeout { .. })) => {
                error
            }
            done => return done,
        };
        match self.find_peer(peer, FIND_TIMEOUT).await {
            found if found.is_empty() => Err(error),
            // What was found is known to the swarm now.
            _ => self.dial(peer, Vec::new()).await,
        }
    }

    /// Makes a connection to whoever answers at an address, and returns the peer.
    ///
    /// When the address ends in `/p2p/<peer>`, only that peer will do.
    pub async fn connect_addr(&self, addr: &str) -> Result<PeerId, DialError> {
        let parsed = addr::parse(addr)?;
        if let Some(peer) = addr::peer_of(&parsed) {
            let peer = to_peer(&peer);
            self.dial(&peer, vec![parsed]).await?;
            return Ok(peer);
        }
        match timeout(DIAL_TIMEOUT, self.ask(|reply| Command::DialAddr { addr: parsed, reply })).await {
            Ok(done) => done.unwrap_or(Err(DialError::Closed)).map(|peer| to_peer(&peer)),
            Err(_) => Err(DialError::Timeout { seconds: DIAL_TIMEOUT.as_secs() }),
        }
    }

    async fn dial(&self, peer: &PeerId, addrs: Vec<Multiaddr>) -> Result<(), DialError> {
        let Some(id) = from_peer(peer) else { return Err(DialError::NoAddress { peer: peer.clone() }) };
        match timeout(DIAL_TIMEOUT, self.ask(|reply| Command::Dial { peer: id, addrs, reply })).await {
            Ok(done) => done.unwrap_or(Err(DialError::Closed)).map(|_| ()),
            Err(_) => Err(DialError::Timeout { seconds: DIAL_TIMEOUT.as_secs() }),
        }
    }

    /// Opens a stream. Where there is no connection, the addresses known here are dialled first; the DHT is not asked
    /// ([`Net::connect`] does that).
    ///
    /// For `/iptl/…` protocols this returns when the peer has room for the stream in its queue.
    pub async fn open(&self, peer: &PeerId, protocol: &'static str) -> Result<Stream, OpenError> {
        self.open_in_time(peer, protocol, true).await
    }

    /// Opens a stream on a connection that is there, whoever made it; nobody is dialled.
    ///
    /// For `/iptl/…` protocols this returns when the peer has room for the stream in its queue.
    pub async fn open_connected(&self, peer: &PeerId, protocol: &'static str) -> Result<Stream, OpenError> {
        self.open_in_time(peer, protocol, false).await
    }

    async fn open_in_time(&self, peer: &PeerId, protocol: &'static str, dial: bool) -> Result<Stream, OpenError> {
        let name = StreamProtocol::try_from_owned(protocol.into()).map_err(|_| OpenError::BadProtocol { protocol })?;
        match timeout(OPEN_TIMEOUT, self.open_now(peer, protocol, name, dial)).await {
            Ok(done) => done,
            Err(_) => Err(OpenError::Timeout { peer: peer.clone(), seconds: OPEN_TIMEOUT.as_secs() }),
        }
    }

    async fn open_now(
        &self,
        peer: &PeerId,
        protocol: &'static str,
        name: StreamProtocol,
        dial: bool,
    ) -> Result<Stream, OpenError> {
        let Some(id) = from_peer(peer) else {
            let source = DialError::NoAddress { peer: peer.clone() };
            return Err(OpenError::NotConnected { peer: peer.clone(), source });
        };
        let _turn = self.opening.acquire().await.map_err(|_| OpenError::Closed)?;
        let lost = |reason: String| OpenError::Lost { peer: peer.clone(), reason };
        let mut last_reason = String::from("the connection closed");
        // Once more, as the connection may close between its choice and the negotiation, and may not have been there.
        for _ in 0..3 {
            let (reply, opened) = oneshot::channel();
            let command = Command::Open { peer: id, protocol: name.clone(), reply };
            self.commands.send(command).await.map_err(|_| OpenError::Closed)?;
            match opened.await {
                Ok(Ok(opened)) => {
                    let mut stream = Stream::new(opened);
                    if is_admitted(protocol) {
                        let mut answer = [0];
                        match stream.read_exact(&mut answer).await {
                            Ok(_) if answer[0] == ADMITTED => {}
                            Ok(_) if answer[0] == REFUSED => return Err(OpenError::Refused { peer: peer.clone() }),
                            Ok(_) => return Err(lost(format!("unknown answer {}", answer[0]))),
                            Err(error) => return Err(lost(error.to_string())),
                        }
                    }
                    return Ok(stream);
                }
                Ok(Err(NoStream::Unsupported)) => {
                    return Err(OpenError::Unsupported { peer: peer.clone(), protocol });
                }
                Ok(Err(NoStream::Timeout)) => {
                    return Err(OpenError::Timeout { peer: peer.clone(), seconds: OPEN_TIMEOUT.as_secs() });
                }
                Ok(Err(NoStream::Lost(error))) => last_reason = error.to_string(),
                Ok(Err(NoStream::NotConnected)) if !dial => {
                    let source = DialError::NoAddress { peer: peer.clone() };
                    return Err(OpenError::NotConnected { peer: peer.clone(), source });
                }
                Ok(Err(NoStream::NotConnected)) => {
                    if let Err(source) = self.dial(peer, Vec::new()).await {
                        return Err(OpenError::NotConnected { peer: peer.clone(), source });
                    }
                }
                // The handler went, and the request with it.
                Err(_) => {}
            }
        }
        Err(lost(last_reason))
    }

    /// Accepts streams of a protocol: up to `queue` of them (at least 1) wait here, further ones at their openers.
    pub async fn accept(&self, protocol: &'static str, queue: usize) -> Result<Incoming, AcceptError> {
        let name =
            StreamProtocol::try_from_owned(protocol.into()).map_err(|_| AcceptError::BadProtocol { protocol })?;
        let (sender, queue) = mpsc::channel(queue.max(1));
        match self.protocols.register(name, sender) {
            Ok(registration) => Ok(Incoming { queue, _registration: registration }),
            Err(NotRegistered::Taken) => Err(AcceptError::Taken { protocol }),
            Err(NotRegistered::Closed) => Err(AcceptError::Closed),
        }
    }

    /// Subscribes to a topic. Messages come once `validate` accepts them; own messages do not come back. A receiver that
    /// is not read loses messages beyond 1,024 unread ones, with a warning in the log; dropping it unsubscribes.
    pub async fn subscribe(
        &self,
        topic: &str,
        validate: Validate,
    ) -> Result<mpsc::Receiver<GossipMessage>, SubscribeError> {
        let topic = topic.to_owned();
        self.ask(|reply| Command::Subscribe { topic, validate, reply }).await.unwrap_or(Err(SubscribeError::Closed))
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&self, topic: &str) {
        let topic = topic.to_owned();
        self.ask(|reply| Command::Unsubscribe { topic, reply }).await;
    }

    /// Sends a message to all subscribers of a topic; this node need not be one.
    ///
    /// Where no connected peer is known to subscribe, the message waits up to 2 s for the first one (subscriptions are
    /// told right after connecting), then [`PublishError::NoPeers`] comes back.
    pub async fn publish(&self, topic: &str, data: Vec<u8>) -> Result<(), PublishError> {
        let topic = topic.to_owned();
        self.ask(|reply| Command::Publish { topic, data, reply }).await.unwrap_or(Err(PublishError::Closed))
    }

    /// Announces that this node provides `key` (the bytes of a multihash), now and again until [`Net::stop_providing`].
    /// Returns when the first announcement was sent.
    pub async fn provide(&self, key: &[u8]) -> Result<(), ProvideError> {
        if key.is_empty() || key.len() > MAX_KEY_SIZE {
            return Err(ProvideError::BadKey { size: key.len() });
        }
        let key = key.to_vec();
        self.ask(|reply| Command::Provide { key, reply }).await.unwrap_or(Err(ProvideError::Closed))
    }

    /// Stops announcing `key`. Others forget within the hour.
    pub async fn stop_providing(&self, key: &[u8]) {
        let key = key.to_vec();
        self.ask(|reply| Command::StopProviding { key, reply }).await;
    }

    /// Returns peers that provide `key`, without this node itself. Their addresses are known to the swarm afterwards, so
    /// that [`Net::open`] and [`Net::connect`] reach them.
    ///
    /// Ends soon after the first providers were found, when the whole lookup is done, or after `limit`; a lookup that
    /// finds none is repeated once.
    pub async fn providers(&self, key: &[u8], limit: Duration) -> Vec<PeerId> {
        if key.is_empty() || key.len() > MAX_KEY_SIZE {
            return Vec::new();
        }
        let found = self.lookup(key, limit, None).await;
        found.into_iter().filter(|peer| *peer != self.peer).collect()
    }

    /// Returns the addresses of a peer, each with `/p2p/<peer>`: those known here and those in the peer's own provider
    /// record, which is looked up.
    pub async fn find_peer(&self, peer: &PeerId, limit: Duration) -> Vec<String> {
        let Some(id) = from_peer(peer) else { return Vec::new() };
        self.lookup(peer.as_bytes(), limit, Some(id)).await;
        self.ask(|reply| Command::AddrsOf { peer: id, reply }).await.unwrap_or_default()
    }

    /// Looks providers up, twice when the first lookup finds none; with `wanted`, others do not count.
    async fn lookup(&self, key: &[u8], limit: Duration, wanted: Option<libp2p::PeerId>) -> Vec<PeerId> {
        let deadline = tokio::time::Instant::now() + limit;
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.looking.acquire()).await else { return Vec::new() };
        for attempt in 0..2 {
            if attempt > 0 {
                tokio::time::sleep(EMPTY_LOOKUP_PAUSE).await;
            }
            let key = key.to_vec();
            let found = self.ask(|reply| Command::Providers { key, wanted, deadline, reply }).await.unwrap_or_default();
            if !found.is_empty() || tokio::time::Instant::now() >= deadline {
                return found.iter().map(to_peer).collect();
            }
        }
        Vec::new()
    }

    /// Names relays, each with its addresses, that this node asks for a place while nobody can dial it; the best first. It
    /// asks by itself, two at a time at most, renews, asks others when one goes, and gives the places back once one of
    /// these relays has reached it. They replace those named before; whoever is in both keeps its place.
    ///
    /// Cancel safe: dropped half-way, they may be named or not.
    ///
    /// # Errors
    ///
    /// An address that is none; those named before it count.
    pub async fn set_relays(&self, relays: Vec<(PeerId, Vec<String>)>) -> Result<(), AddrError> {
        // A node that was shut down asks nobody.
        self.ask(|reply| Command::SetRelays { relays, reply }).await.unwrap_or(Ok(()))
    }

    /// Relays connections for others from now on, or not; those that are there end by themselves.
    pub async fn serve_relay(&self, serve: bool) {
        self.ask(|reply| Command::ServeRelay { serve, reply }).await;
    }

    /// Returns how this node is reached; nothing once it was shut down.
    pub async fn reach(&self) -> Option<Reach> {
        self.ask(Command::Reach).await
    }

    /// Waits while the only way to a peer leads through a relay and is so new that hole punching may still make a direct
    /// one: some seconds at most. Returns at once where there is no connection.
    pub async fn settle(&self, peer: &PeerId) {
        while self.peers().await.iter().any(|info| info.peer == *peer && info.unsettled) {
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Closes all connections to a peer. Nothing keeps either side from connecting again.
    pub async fn disconnect(&self, peer: &PeerId) {
        if let Some(peer) = from_peer(peer) {
            self.ask(|reply| Command::Disconnect { peer, reply }).await;
        }
    }

    /// Returns the connected peers, in the order of their IDs.
    pub async fn peers(&self) -> Vec<PeerInfo> {
        self.ask(Command::Peers).await.unwrap_or_default()
    }

    /// Returns whether this node serves the DHT at the moment.
    pub async fn is_kad_server(&self) -> bool {
        self.ask(Command::IsKadServer).await.unwrap_or_default()
    }

    /// Closes all connections and ends the node. Afterwards every method returns `Closed` or nothing.
    pub async fn shutdown(&self) {
        self.ask(Command::Shutdown).await;
    }

    /// Sends a command and waits for its reply; `None` once the node was shut down.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}
