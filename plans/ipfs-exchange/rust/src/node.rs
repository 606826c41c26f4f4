//! One node: its swarm, both halves of Bitswap, and a store in memory.
//!
//! One task owns all of it. Streams go one way, as everywhere in Bitswap: each peer has one that this node writes
//! (`writer.rs`), and those that the peer opens are read here. What comes is hashed before either half sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use futures::{AsyncReadExt, StreamExt};
use futures_timer::Delay;
use iptl_bitswap::{
    Client, ClientEffect, ClientInput, Frames, Incoming, Message, PROTOCOL, Server, ServerEffect, ServerInput,
    SessionId,
};
use iptl_dag::{Block, Cid, Multihash};
use iptl_sdk::{Env, Error, Peer, Result, event};
use iptl_stack::{PORT, keys, multiaddr, own_address, resolve};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, Stream, Swarm, identify};

use crate::content::links;
use crate::streams::{Event, Streams};
use crate::writer::{Side, Writer, Written};

/// Connections stay for as long as the run.
const IDLE: Duration = Duration::from_secs(3600);

/// Bytes that are read of a stream at once.
const PART: usize = 16 << 10;

/// A node.
pub struct Node {
    swarm: Swarm<Behaviour>,
    client: Client,
    server: Server,
    /// Both halves count time from here.
    started: Instant,
    store: BTreeMap<Multihash, Bytes>,
    writers: BTreeMap<PeerId, Writer>,
    writing: FuturesUnordered<Pin<Box<dyn Future<Output = Written>>>>,
    reading: SelectAll<BoxStream<'static, (PeerId, std::result::Result<Incoming, String>)>>,
    /// Peers that did what no honest one does; nothing of theirs is taken in.
    shut: BTreeSet<PeerId>,
    /// What became of connections that were asked for and not made.
    undialled: BTreeMap<PeerId, String>,
    fetch: Fetch,
    /// Blocks that came.
    pub received: u64,
    /// Those of them that were there already.
    pub duplicates: u64,
    /// Blocks that were handed to streams.
    pub sent: u64,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    /// Others open streams of Bitswap only to whom they know to speak it.
    identify: identify::Behaviour,
    streams: Streams,
}

/// What is being fetched.
#[derive(Default)]
struct Fetch {
    session: u64,
    wanted: BTreeSet<Cid>,
    /// Peers of which nothing is asked, until nobody else has what is wanted.
    dropped: Vec<iptl_dag::PeerId>,
    bytes: BTreeMap<PeerId, u64>,
}

impl Node {
    /// Listens; it connects to nobody.
    pub fn start(env: &Env, patience: Duration) -> Result<Node> {
        let key = keys::key(env.seed, env.ordinal);
        let identify = identify::Behaviour::new(identify::Config::new("ipfs-exchange/1".into(), key.public()));
        let behaviour = Behaviour { identify, streams: Streams::default() };
        let mut swarm = iptl_stack::swarm(&key, behaviour, IDLE, patience)?;
        swarm
            .listen_on(multiaddr(own_address(env)))
            .map_err(|error| Error::Refused(format!("port {PORT}: {error}")))?;
        Ok(Node {
            swarm,
            client: Client::new(),
            server: Server::new(Arc::new(|_, _| true)),
            started: Instant::now(),
            store: BTreeMap::new(),
            writers: BTreeMap::new(),
            writing: FuturesUnordered::new(),
            reading: SelectAll::new(),
            shut: BTreeSet::new(),
            undialled: BTreeMap::new(),
            fetch: Fetch::default(),
            received: 0,
            duplicates: 0,
            sent: 0,
        })
    }

    /// Puts blocks into the store.
    pub fn put(&mut self, blocks: Vec<Block>) {
        let hashes = blocks.iter().map(|block| *block.cid().hash()).collect();
        self.store.extend(blocks.into_iter().map(|block| (*block.cid().hash(), block.into_parts().1)));
        self.server(ServerInput::Arrived { hashes });
    }

    /// Returns how many others are connected.
    pub fn connected(&self) -> usize {
        self.swarm.connected_peers().count()
    }

    /// Connects to instances.
    ///
    /// # Errors
    ///
    /// Fails where one of them is not connected in time, or cannot be.
    pub async fn connect(&mut self, env: &Env, instances: &[Peer], patience: Duration) -> Result<()> {
        let mut missing: BTreeMap<PeerId, String> = BTreeMap::new();
        for instance in instances {
            let peer = keys::peer(env.seed, instance.ordinal);
            let options = DialOpts::peer_id(peer).addresses(vec![multiaddr(resolve(&instance.host())?)]);
            // Refused where the other was faster.
            let _ = self.swarm.dial(options.build());
            missing.insert(peer, instance.host());
        }
        let mut over = Delay::new(patience);
        loop {
            missing.retain(|peer, _| !self.swarm.is_connected(peer));
            let Some((peer, host)) = missing.first_key_value() else { return Ok(()) };
            if let Some(reason) = self.undialled.get(peer) {
                return Err(Error::Refused(format!("connecting to {host}: {reason}")));
            }
            if let Either::Right(_) = select(pin!(self.step()), &mut over).await {
                return Err(Error::Refused(format!("connecting to {host} took longer than {patience:?}")));
            }
        }
    }

    /// Fetches a whole DAG from whoever is connected; returns the bytes of blocks that each peer gave.
    ///
    /// # Errors
    ///
    /// Fails where it does not have everything in time.
    pub async fn fetch(&mut self, root: Cid, patience: Duration) -> Result<BTreeMap<PeerId, u64>> {
        self.fetch = Fetch { session: self.fetch.session + 1, ..Fetch::default() };
        let peers = self.swarm.connected_peers().map(of_libp2p).collect();
        let session = self.session();
        self.client(ClientInput::Peers { session, peers });
        self.want(vec![root]);
        let mut over = Delay::new(patience);
        while !self.fetch.wanted.is_empty() {
            let is_over = matches!(select(pin!(self.step()), &mut over).await, Either::Right(_));
            if is_over {
                let missing = self.fetch.wanted.len();
                return Err(Error::Refused(format!("{missing} blocks of {root} did not come in {patience:?}")));
            }
        }
        self.client(ClientInput::Close { session });
        Ok(std::mem::take(&mut self.fetch.bytes))
    }

    /// Gives others what they want until a future has its value.
    pub async fn serve<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = pin!(until);
        loop {
            if let Either::Left((value, _)) = select(until.as_mut(), pin!(self.step())).await {
                return value;
            }
        }
    }

    /// Carries out what both halves want, and takes in one thing that happens. Cancel safe.
    async fn step(&mut self) {
        self.carry_out();
        let now = self.now();
        let due = [self.client.poll_timeout(), self.server.poll_timeout()].into_iter().flatten().min();
        let mut due = match due {
            Some(due) => Either::Left(Delay::new(due.saturating_sub(now))),
            None => Either::Right(futures::future::pending()),
        };
        futures::select_biased! {
            written = self.writing.select_next_some() => self.on_written(written),
            event = self.swarm.select_next_some() => self.on_event(event),
            (peer, message) = self.reading.select_next_some() => self.on_message(peer, message),
            () = futures::FutureExt::fuse(&mut due) => {
                self.client(ClientInput::Timeout);
                self.server(ServerInput::Timeout);
            }
        }
        // Whoever waits for what has just come looks now, not after the next thing that happens.
        self.carry_out();
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn session(&self) -> SessionId {
        SessionId(self.fetch.session)
    }

    fn client(&mut self, input: ClientInput) {
        let now = self.now();
        self.client.handle(now, input);
    }

    fn server(&mut self, input: ServerInput) {
        let now = self.now();
        self.server.handle(now, input);
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Streams(event)) => self.on_stream(event),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                let (session, peers) = (self.session(), vec![of_libp2p(&peer_id)]);
                if !self.fetch.wanted.is_empty() {
                    self.client(ClientInput::Peers { session, peers });
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established, .. } => {
                if num_established == 0 {
                    self.writers.remove(&peer_id);
                    self.gone(&peer_id);
                } else if self.writers.get(&peer_id).is_some_and(Writer::is_opening) {
                    // The stream may have been asked of the connection that is closed.
                    self.swarm.behaviour_mut().streams.open(peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.undialled.insert(peer, error.to_string());
            }
            // The enum is libp2p's and grows; what identify tells is libp2p's own business too.
            _ => {}
        }
    }

    fn on_stream(&mut self, event: Event) {
        match event {
            Event::Inbound { peer, stream } => self.reading.push(read(peer, stream).boxed()),
            Event::Opened { peer, stream, protocol } => {
                if self.writers.get_mut(&peer).is_some_and(|writer| writer.opened(stream)) {
                    self.client(ClientInput::Connected { peer: of_libp2p(&peer), says_have: protocol == PROTOCOL });
                    self.write(peer);
                }
            }
            Event::Failed { peer, reason } => {
                self.writers.remove(&peer);
                self.failed(&peer, reason);
            }
        }
    }

    fn on_written(&mut self, written: Written) {
        let peer = written.peer;
        let Some(writer) = self.writers.get_mut(&peer) else { return };
        match writer.written(written) {
            Some(Ok(Side::Client)) => self.client(ClientInput::Sent { peer: of_libp2p(&peer) }),
            Some(Ok(Side::Server)) => self.server(ServerInput::Sent { peer: of_libp2p(&peer) }),
            Some(Err(_)) => {
                self.writers.remove(&peer);
                self.gone(&peer);
                return;
            }
            // Once more, on a new stream.
            None => {}
        }
        self.write(peer);
    }

    fn on_message(&mut self, peer: PeerId, message: std::result::Result<Incoming, String>) {
        if self.shut.contains(&peer) {
            return;
        }
        let mut incoming = match message {
            Ok(incoming) => incoming,
            Err(reason) => {
                let fault = iptl_bitswap::Fault::Malformed { reason };
                return self.client(ClientInput::Faulty { peer: of_libp2p(&peer), fault });
            }
        };
        let (full, skipped) = (incoming.full, incoming.skipped);
        let entries = std::mem::take(&mut incoming.entries);
        if full || skipped > 0 || !entries.is_empty() {
            self.server(ServerInput::Wants { peer: of_libp2p(&peer), full, entries, skipped });
        }
        self.received += incoming.blocks.len() as u64;
        let known = incoming.blocks.iter().filter(|block| self.store.contains_key(block.cid().hash()));
        self.duplicates += known.count() as u64;
        if !incoming.blocks.is_empty() || !incoming.presences.is_empty() || incoming.unverifiable > 0 {
            self.client(ClientInput::Received { peer: of_libp2p(&peer), incoming });
        }
    }

    fn carry_out(&mut self) {
        loop {
            if let Some(effect) = self.client.poll_effect() {
                self.on_client_effect(effect);
            } else if let Some(effect) = self.server.poll_effect() {
                self.on_server_effect(effect);
            } else {
                return;
            }
        }
    }

    fn on_client_effect(&mut self, effect: ClientEffect) {
        match effect {
            ClientEffect::Send { peer, message } => self.send(&to_libp2p(&peer), Side::Client, &message),
            ClientEffect::Deliver { session, block, from } => {
                if session == self.session() && self.fetch.wanted.remove(block.cid()) {
                    *self.fetch.bytes.entry(to_libp2p(&from)).or_default() += block.data().len() as u64;
                    self.want(links(&block));
                }
                self.put(vec![block]);
            }
            ClientEffect::Lacking { session, .. } => {
                let peers = std::mem::take(&mut self.fetch.dropped);
                if session == self.session() && !peers.is_empty() {
                    self.client(ClientInput::Peers { session, peers });
                }
            }
            ClientEffect::Drop { peer, fault, .. } => {
                self.tell_dropped(&peer, &fault);
                if fault.is_lie() {
                    self.shut.insert(to_libp2p(&peer));
                    self.server(ServerInput::Gone { peer });
                } else {
                    self.fetch.dropped.push(peer);
                }
            }
        }
    }

    fn on_server_effect(&mut self, effect: ServerEffect) {
        match effect {
            ServerEffect::Send { peer, message } => {
                self.sent += message.payload.len() as u64;
                self.send(&to_libp2p(&peer), Side::Server, &message);
            }
            ServerEffect::Look { turn, haves, blocks, budget, .. } => {
                let haves = haves.iter().map(|hash| self.store.contains_key(hash)).collect();
                let mut read = 0;
                let mut found = Vec::new();
                for hash in &blocks {
                    if read >= budget {
                        break;
                    }
                    let block = self.store.get(hash).cloned();
                    read += block.as_ref().map_or(0, Bytes::len);
                    found.push(block);
                }
                self.server(ServerInput::Looked { turn, haves, blocks: found });
            }
            // A node that fetches a lot at once wants more than is kept for it, and asks again.
            ServerEffect::Excess { .. } => {}
            ServerEffect::Drop { peer, fault } => {
                self.tell_dropped(&peer, &fault);
                self.shut.insert(to_libp2p(&peer));
                self.server(ServerInput::Gone { peer });
            }
        }
    }

    fn want(&mut self, cids: Vec<Cid>) {
        let cids: Vec<Cid> = cids.into_iter().filter(|cid| !self.store.contains_key(cid.hash())).collect();
        self.fetch.wanted.extend(cids.iter().copied());
        let session = self.session();
        self.client(ClientInput::Want { session, cids });
    }

    fn send(&mut self, peer: &PeerId, side: Side, message: &Message) {
        if !self.swarm.is_connected(peer) {
            return self.failed(peer, "it is not connected".to_owned());
        }
        self.writers.entry(*peer).or_default().push(side, message);
        self.write(*peer);
    }

    /// Writes what waits for a peer, or opens a stream for it.
    fn write(&mut self, peer: PeerId) {
        let Some(writer) = self.writers.get_mut(&peer) else { return };
        match writer.next(peer) {
            Some(Either::Left(writing)) => self.writing.push(writing),
            Some(Either::Right(())) => self.swarm.behaviour_mut().streams.open(peer),
            None => {}
        }
    }

    fn gone(&mut self, peer: &PeerId) {
        self.server(ServerInput::Gone { peer: of_libp2p(peer) });
        self.client(ClientInput::Gone { peer: of_libp2p(peer) });
    }

    fn failed(&mut self, peer: &PeerId, reason: String) {
        self.server(ServerInput::Gone { peer: of_libp2p(peer) });
        self.client(ClientInput::Failed { peer: of_libp2p(peer), reason });
    }

    fn tell_dropped(&self, peer: &iptl_dag::PeerId, fault: &iptl_bitswap::Fault) {
        // An instance that may record nothing more goes on.
        let _ = event("dropped", [("peer", to_libp2p(peer).to_string()), ("fault", fault.to_string())]);
    }
}

/// Reads messages until the stream ends, and hashes their blocks.
fn read(peer: PeerId, stream: Stream) -> impl futures::Stream<Item = (PeerId, std::result::Result<Incoming, String>)> {
    stream::unfold(Some((stream, Frames::default(), vec![0; PART])), move |state| async move {
        let (mut stream, mut frames, mut part) = state?;
        loop {
            let popped = frames.pop().map_err(|error| error.to_string());
            let message = popped.and_then(|bytes| match bytes {
                Some(bytes) => Message::decode(&bytes).map(Some).map_err(|error| error.to_string()),
                None => Ok(None),
            });
            match message {
                Ok(Some(message)) => return Some(((peer, Ok(message.check())), Some((stream, frames, part)))),
                Err(reason) => return Some(((peer, Err(reason)), None)),
                Ok(None) => {}
            }
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => frames.buffer().extend_from_slice(&part[..read]),
            }
        }
    })
}

fn of_libp2p(peer: &PeerId) -> iptl_dag::PeerId {
    iptl_dag::PeerId::from_bytes(&peer.to_bytes()).expect("no peer ID is longer than it takes")
}

fn to_libp2p(peer: &iptl_dag::PeerId) -> PeerId {
    PeerId::from_bytes(peer.as_bytes()).expect("it was made of one")
}
