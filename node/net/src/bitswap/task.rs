//! The task that owns both cores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use iptl_artifacts::BlobStore;
use iptl_bitswap::{
    Client, ClientEffect, ClientInput, Fault, Incoming, Message, Server, ServerEffect, ServerInput, SessionId, Visible,
};
use iptl_dag::{Multihash, PeerId};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::reader::{self, MAX_LARGE};
use super::{Command, SessionEvent, writer};
use crate::net::Net;
use crate::stream::Stream;

/// What tasks of streams tell, beside messages.
const HAPPENED_QUEUE: usize = 256;

/// Messages that wait to be taken in: up to 32 MiB of them.
const MESSAGE_QUEUE: usize = 8;

/// Streams of one peer that are read at a time; further ones wait for their turn. Others open one, or, as boxo does, one
/// for each message, of which eight are on their way at a time.
const MAX_READERS: usize = 32;

/// Streams of one peer that are read or wait for it; further ones are refused.
const MAX_STREAMS: usize = 256;

/// The client has at most one message on its way to a peer, and so has the server.
const WRITER_QUEUE: usize = 2;

/// How often it is looked who is connected still.
const SWEEP: Duration = Duration::from_secs(30);

/// A peer that lied or flooded is not read for so long.
const SHUT: Duration = Duration::from_secs(600);

/// Peers that are not read which are remembered.
const MAX_SHUT: usize = 4_096;

/// Blocks that are read at once.
const READ_BATCH: usize = 16;

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What tasks tell.
pub(super) enum Happened {
    /// A peer opened a stream.
    Stream {
        peer: PeerId,
        stream: Stream,
    },
    /// A stream that was read has ended; `malformed` where by a message that is none.
    ReaderEnded {
        peer: PeerId,
        malformed: Option<String>,
    },
    Connected {
        peer: PeerId,
        says_have: bool,
    },
    Sent {
        peer: PeerId,
        side: Side,
    },
    Failed {
        peer: PeerId,
        reason: String,
        is_not_spoken: bool,
    },
    Gone {
        peer: PeerId,
    },
    Looked(ServerInput),
    SessionEnded(SessionId),
    /// Who is connected.
    Swept(BTreeSet<PeerId>),
    /// The node was shut down.
    Closed,
}

/// See the head of this file.
pub(super) struct Task {
    net: Net,
    store: Arc<dyn BlobStore>,
    client: Client,
    server: Server,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    happened: mpsc::Receiver<Happened>,
    messages: mpsc::Receiver<(PeerId, Incoming)>,
    tell: mpsc::Sender<Happened>,
    tell_message: mpsc::Sender<(PeerId, Incoming)>,
    sessions: BTreeMap<SessionId, Session>,
    peers: BTreeMap<PeerId, Peer>,
    shut: BTreeMap<PeerId, Instant>,
    large: Arc<Semaphore>,
    next_sweep: Instant,
    is_sweeping: bool,
    /// Bytes of blocks that were sent.
    sent: Arc<AtomicU64>,
    /// Ends with the task, and ends those who watch for it.
    end: CancellationToken,
}

struct Session {
    events: mpsc::UnboundedSender<SessionEvent>,
    addrs: BTreeMap<PeerId, Vec<String>>,
}

/// A peer's streams.
struct Peer {
    writer: Option<mpsc::Sender<(Side, Message)>>,
    /// Streams that are read or wait for it.
    streams: usize,
    /// It was said that streams of it are refused.
    is_named: bool,
    /// Places for those that are read.
    reading: Arc<Semaphore>,
    /// Ends its readers.
    token: CancellationToken,
}

impl Peer {
    fn new(end: &CancellationToken) -> Peer {
        let reading = Arc::new(Semaphore::new(MAX_READERS));
        Peer { writer: None, streams: 0, is_named: false, reading, token: end.child_token() }
    }
}

impl Task {
    pub(super) fn new(
        net: Net,
        store: Arc<dyn BlobStore>,
        visible: Visible,
        commands: mpsc::Receiver<Command>,
        sent: Arc<AtomicU64>,
    ) -> (Task, mpsc::Sender<Happened>) {
        let (tell, happened) = mpsc::channel(HAPPENED_QUEUE);
        let (tell_message, messages) = mpsc::channel(MESSAGE_QUEUE);
        let started = Instant::now();
        let task = Task {
            net,
            store,
            client: Client::new(),
            server: Server::new(visible),
            started,
            commands,
            happened,
            messages,
            tell: tell.clone(),
            tell_message,
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            shut: BTreeMap::new(),
            large: Arc::new(Semaphore::new(MAX_LARGE)),
            next_sweep: started + SWEEP,
            is_sweeping: false,
            sent,
            end: CancellationToken::new(),
        };
        (task, tell)
    }

    /// Runs until the node is shut down, or nobody can ask any more.
    pub(super) async fn run(mut self) {
        loop {
            let due = [self.client.poll_timeout(), self.server.poll_timeout()].into_iter().flatten().min();
            let deadline = due.map_or(self.next_sweep, |due| (self.started + due).min(self.next_sweep));
            // Own work first.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                happened = self.happened.recv() => match happened {
                    Some(Happened::Closed) | None => break,
                    Some(happened) => self.on_happened(happened),
                },
                Some((peer, incoming)) = self.messages.recv() => self.on_message(peer, incoming),
                () = sleep_until(deadline) => self.on_deadline(),
            }
            self.carry_out();
        }
        self.end.cancel();
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn client(&mut self, input: ClientInput) {
        let now = self.now();
        self.client.handle(now, input);
    }

    fn server(&mut self, input: ServerInput) {
        let now = self.now();
        self.server.handle(now, input);
    }

    fn on_deadline(&mut self) {
        self.client(ClientInput::Timeout);
        self.server(ServerInput::Timeout);
        let now = Instant::now();
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP;
        self.shut.retain(|_, until| *until > now);
        if !std::mem::replace(&mut self.is_sweeping, true) {
            let (net, tell) = (self.net.clone(), self.tell.clone());
            tokio::spawn(async move {
                let connected = net.peers().await.into_iter().map(|info| info.peer).collect();
                // A task that is gone need not be told, here and below.
                let _ = tell.send(Happened::Swept(connected)).await;
            });
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Open { session, events } => {
                let (ended, tell, end) = (events.clone(), self.tell.clone(), self.end.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = ended.closed() => {}
                        () = end.cancelled() => return,
                    }
                    let _ = tell.send(Happened::SessionEnded(session)).await;
                });
                self.sessions.insert(session, Session { events, addrs: BTreeMap::new() });
            }
            Command::Peers { session, peers } => {
                let Some(state) = self.sessions.get_mut(&session) else { return };
                let mut named = Vec::with_capacity(peers.len());
                for (peer, addrs) in peers {
                    if !addrs.is_empty() {
                        state.addrs.insert(peer.clone(), addrs);
                    }
                    named.push(peer);
                }
                self.client(ClientInput::Peers { session, peers: named });
            }
            Command::Want { session, cids } => {
                if self.sessions.contains_key(&session) {
                    self.client(ClientInput::Want { session, cids });
                }
            }
            Command::Cancel { session, cids } => self.client(ClientInput::Cancel { session, cids }),
            Command::Arrived { hashes } => self.server(ServerInput::Arrived { hashes }),
        }
    }

    fn on_happened(&mut self, happened: Happened) {
        match happened {
            Happened::Stream { peer, stream } => self.on_stream(peer, stream),
            Happened::ReaderEnded { peer, malformed } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.streams = state.streams.saturating_sub(1);
                }
                if let Some(reason) = malformed {
                    self.client(ClientInput::Faulty { peer, fault: Fault::Malformed { reason } });
                }
            }
            Happened::Connected { peer, says_have } => self.client(ClientInput::Connected { peer, says_have }),
            Happened::Sent { peer, side: Side::Client } => self.client(ClientInput::Sent { peer }),
            Happened::Sent { peer, side: Side::Server } => self.server(ServerInput::Sent { peer }),
            Happened::Failed { peer, reason, is_not_spoken } => {
                self.writer_ended(&peer);
                self.server(ServerInput::Gone { peer: peer.clone() });
                self.client(match is_not_spoken {
                    true => ClientInput::Faulty { peer, fault: Fault::Unreachable { reason } },
                    false => ClientInput::Failed { peer, reason },
                });
            }
            Happened::Gone { peer } => {
                self.writer_ended(&peer);
                self.gone(peer);
            }
            Happened::Looked(input) => self.server(input),
            Happened::SessionEnded(session) => {
                self.sessions.remove(&session);
                self.client(ClientInput::Close { session });
            }
            Happened::Swept(connected) => {
                self.is_sweeping = false;
                let gone: Vec<PeerId> = self.peers.keys().filter(|peer| !connected.contains(*peer)).cloned().collect();
                for peer in gone {
                    // One that is being dialled is not connected yet, and its writer tells what comes of it.
                    if self.peers.get(&peer).is_some_and(|state| state.writer.is_none()) {
                        self.peers.remove(&peer);
                        self.gone(peer);
                    }
                }
            }
            Happened::Closed => {}
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.server(ServerInput::Gone { peer: peer.clone() });
        self.client(ClientInput::Gone { peer });
    }

    fn writer_ended(&mut self, peer: &PeerId) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.writer = None;
        }
    }

    fn on_stream(&mut self, peer: PeerId, stream: Stream) {
        if self.shut.get(&peer).is_some_and(|until| *until > Instant::now()) {
            return;
        }
        let state = self.peers.entry(peer.clone()).or_insert_with(|| Peer::new(&self.end));
        if state.streams >= MAX_STREAMS {
            if !std::mem::replace(&mut state.is_named, true) {
                tracing::warn!(peer = %peer.short(), "a peer opens more Bitswap streams than are read: they are refused");
            }
            return;
        }
        state.streams += 1;
        let (token, reading, large) = (state.token.clone(), state.reading.clone(), self.large.clone());
        let (tell, messages) = (self.tell.clone(), self.tell_message.clone());
        tokio::spawn(async move {
            let reading = async {
                // The places are never closed.
                let _place = reading.acquire().await;
                reader::read(&peer, stream, large, messages).await
            };
            let malformed = tokio::select! {
                () = token.cancelled() => None,
                read = reading => read.err(),
            };
            let _ = tell.send(Happened::ReaderEnded { peer, malformed }).await;
        });
    }

    fn on_message(&mut self, peer: PeerId, mut incoming: Incoming) {
        if self.shut.contains_key(&peer) {
            return;
        }
        let (full, skipped) = (incoming.full, incoming.skipped);
        let entries = std::mem::take(&mut incoming.entries);
        if full || skipped > 0 || !entries.is_empty() {
            self.server(ServerInput::Wants { peer: peer.clone(), full, entries, skipped });
        }
        if !incoming.blocks.is_empty() || !incoming.presences.is_empty() || incoming.unverifiable > 0 {
            self.client(ClientInput::Received { peer, incoming });
        }
    }

    /// Carries out what the cores want.
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
            ClientEffect::Send { peer, message } => self.send(peer, Side::Client, message),
            ClientEffect::Deliver { session, block, from } => {
                self.tell_session(session, SessionEvent::Block { block, from });
            }
            ClientEffect::Lacking { session, cid } => self.tell_session(session, SessionEvent::Lacking { cid }),
            ClientEffect::Drop { peer, fault, sessions } => {
                if fault.is_lie() {
                    self.shut_out(&peer, &fault);
                } else {
                    tracing::debug!(peer = %peer.short(), %fault, "a peer is asked for blocks no more");
                }
                for session in sessions {
                    self.tell_session(session, SessionEvent::Dropped { peer: peer.clone(), fault: fault.clone() });
                }
            }
        }
    }

    fn on_server_effect(&mut self, effect: ServerEffect) {
        match effect {
            ServerEffect::Send { peer, message } => {
                let bytes = message.payload.iter().map(|block| block.data.len() as u64).sum();
                self.sent.fetch_add(bytes, Ordering::Relaxed);
                self.send(peer, Side::Server, message);
            }
            ServerEffect::Look { turn, haves, blocks, budget, .. } => {
                let (store, tell) = (self.store.clone(), self.tell.clone());
                tokio::spawn(async move {
                    let haves = has(&*store, &haves).await;
                    let blocks = read(&*store, &blocks, budget).await;
                    let _ = tell.send(Happened::Looked(ServerInput::Looked { turn, haves, blocks })).await;
                });
            }
            ServerEffect::Excess { peer, count } => {
                tracing::warn!(peer = %peer.short(), count, "a peer wants more blocks than are kept for one: the first make room");
            }
            ServerEffect::Drop { peer, fault } => self.shut_out(&peer, &fault),
        }
    }

    fn tell_session(&self, session: SessionId, event: SessionEvent) {
        if let Some(state) = self.sessions.get(&session) {
            // A session that is gone says so by itself.
            let _ = state.events.send(event);
        }
    }

    /// Ends a peer's streams, and takes none of it for a while.
    fn shut_out(&mut self, peer: &PeerId, fault: &Fault) {
        tracing::warn!(peer = %peer.short(), %fault, "a peer is shut out of Bitswap");
        while self.shut.len() >= MAX_SHUT {
            self.shut.pop_first();
        }
        self.shut.insert(peer.clone(), Instant::now() + SHUT);
        if let Some(state) = self.peers.remove(peer) {
            state.token.cancel();
        }
        self.server(ServerInput::Gone { peer: peer.clone() });
    }

    fn send(&mut self, peer: PeerId, side: Side, message: Message) {
        let state = self.peers.entry(peer.clone()).or_insert_with(|| Peer::new(&self.end));
        let writer = state.writer.get_or_insert_with(|| {
            let (writer, queue) = mpsc::channel(WRITER_QUEUE);
            let addrs =
                self.sessions.values().find_map(|session| session.addrs.get(&peer)).cloned().unwrap_or_default();
            tokio::spawn(writer::write(self.net.clone(), peer.clone(), addrs, queue, self.tell.clone()));
            writer
        });
        if writer.try_send((side, message)).is_err() {
            // The writer has just ended, and says why; what it was to write is lost with it.
            tracing::debug!(peer = %peer.short(), "message lost with its stream");
        }
    }
}

/// Looks up what is there; where the store fails, nothing is.
async fn has(store: &dyn BlobStore, hashes: &[Multihash]) -> Vec<bool> {
    if hashes.is_empty() {
        return Vec::new();
    }
    store.has(hashes).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the store does not say what it has");
        vec![false; hashes.len()]
    })
}

/// Reads blocks in order until `budget` bytes are read. One that cannot be read is absent.
async fn read(store: &dyn BlobStore, hashes: &[Multihash], budget: usize) -> Vec<Option<Bytes>> {
    let mut blocks: Vec<Option<Bytes>> = Vec::with_capacity(hashes.len());
    let mut bytes = 0;
    let mut rest = hashes;
    while !rest.is_empty() && bytes < budget {
        // By the size of those before: as many as the budget may hold.
        let average = bytes.checked_div(blocks.len()).unwrap_or(budget / 4).max(1);
        let count = ((budget - bytes) / average).clamp(1, READ_BATCH).min(rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        match store.get_batch(batch).await {
            Ok(found) => blocks.extend(found),
            Err(_) => {
                for hash in batch {
                    blocks.push(store.get(hash).await.unwrap_or_else(|error| {
                        tracing::warn!(%error, "a block cannot be read");
                        None
                    }));
                }
            }
        }
        bytes = blocks.iter().flatten().map(Bytes::len).sum();
    }
    blocks
}
