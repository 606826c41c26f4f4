//! Sockets around conversations: the sync service of one instance.
//!
//! A runner opens the listener where only the instance can reach it, in its network namespace, so that a connection's
//! listener says who is asking. Calls leave as [`CellEvent::Sync`] into the channel that the cell's events go through;
//! while that is full, this instance's requests wait and nobody else's. Answers come in by [`SyncServer::reply`],
//! which never waits.
//!
//! Each connection has a task that reads and one that writes, around a [`Conversation`] that both look at for moments.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use iptl_dag::model::InstanceId;
use iptl_labnet::Wish;
use iptl_runner::{CellEvent, SyncCall, SyncReply};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderMap;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use crate::conversation::{Close, Conversation, connection_of};
use crate::keys::Identity;
use crate::prompt::Prompt;
use crate::reply::Dialect;

/// Connections that an instance may have at once: an SDK opens one, and a container may hold a few programs. One more
/// is closed as it is opened.
pub const MAX_CONNECTIONS: usize = 8;

/// Longest message of a client in bytes: the largest payload as base64, and the keys around it.
pub const MAX_MESSAGE: usize = 512 << 10;

/// How long a connection may take to say that it is a WebSocket. After that it may stay silent for as long as its
/// instance runs: a program may wait at a barrier for hours.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Buffers of one connection; most messages are a hundred bytes, and a lablet has many connections.
const BUFFER: usize = 4 << 10;

/// Calls of ended connections that wait for the lab; no connection is accepted beyond it.
const MAX_LEFT_OVER: usize = 1024;

/// How long nothing is accepted where that failed: with no descriptor to be had, the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Numbers connections over all servers of the process: one that is started anew for an instance must not use numbers of
/// calls that an earlier one has left open.
static NEXT_CONNECTION: AtomicU32 = AtomicU32::new(0);

/// The sync service of one instance. Dropping it closes the listener and all connections.
#[derive(Debug)]
pub struct SyncServer {
    shared: Arc<Shared>,
    /// Accepts and reads; ends by itself once it is told to finish and the last connection is gone.
    accepting: JoinSet<()>,
    /// Carries calls to the lab; ends by itself once nothing can come any more.
    calling: JoinSet<()>,
}

/// What a runner is shown of the clients of its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// An event that the program publishes for the run, as JSON text, before the call that publishes it leaves.
    Event(&'a str),
    /// The program asked for a network that is none, with the reason why it is refused.
    Refused(&'a str),
    /// What would be lost now is something else than before.
    AtStake(Stake),
}

/// What is lost where the server ends now. Clients that connect again by themselves lose nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stake {
    /// No client that would notice.
    #[default]
    Nothing,
    /// A connection on which nothing is waited for.
    Connection,
    /// An answer, or messages of a subscription, that a client waits for.
    Answers,
}

type Observer = Box<dyn Fn(Seen<'_>) + Send + Sync>;
type Shaper = Box<dyn Fn(Wish, Asked) + Send + Sync>;

/// A program that waits for the network that it has asked for. Dropped, it is told that there is none.
#[derive(Debug)]
pub struct Asked {
    shared: Weak<Shared>,
    call: u64,
    settled: bool,
}

impl Asked {
    /// Tells it that its network is as it wished.
    pub fn in_force(mut self) {
        self.settle(Ok(()));
    }

    /// Tells it why its network stays as it is.
    pub fn refused(mut self, reason: String) {
        self.settle(Err(reason));
    }

    fn settle(&mut self, outcome: Result<(), String>) {
        self.settled = true;
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state();
        let Some(connection) = state.connections.get_mut(&connection_of(self.call)) else { return };
        connection.conversation.settle_wish(self.call, outcome);
        connection.wake.writer.notify_one();
        connection.wake.reader.notify_one();
        shared.show_stake(&mut state);
        drop(state);
        shared.calls.notify_one();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Err("the network of this instance is gone".to_owned()));
        }
    }
}

struct Shared {
    identity: Arc<Identity>,
    instance: InstanceId,
    observer: Observer,
    shaper: Shaper,
    state: Mutex<State>,
    /// There may be a call to carry, or nothing can come any more.
    calls: Notify,
    /// Calls were carried: there may be room for connections.
    room: Notify,
    /// No further connection is to be accepted.
    finish: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("instance", &self.instance).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<u64, Connection>,
    /// The connection whose call went last.
    served: u64,
    left_over: VecDeque<SyncCall>,
    over: bool,
    /// What the observer knows.
    at_stake: Stake,
}

#[derive(Debug)]
struct Connection {
    conversation: Conversation,
    wake: Arc<Wake>,
}

/// What the tasks of one connection wait for.
#[derive(Debug, Default)]
struct Wake {
    /// There may be something to write.
    writer: Notify,
    /// There may be room to read.
    reader: Notify,
}

impl SyncServer {
    /// Serves an instance on a listener; must be called within a tokio runtime.
    ///
    /// Calls go into `events`. `observer` is shown what happens, `shaper` is given what the program asks of its network;
    /// neither is to wait.
    ///
    /// # Errors
    ///
    /// Fails where the listener cannot be used.
    pub fn start(
        listener: std::net::TcpListener,
        instance: InstanceId,
        identity: Identity,
        events: mpsc::Sender<CellEvent>,
        observer: impl Fn(Seen<'_>) + Send + Sync + 'static,
        shaper: impl Fn(Wish, Asked) + Send + Sync + 'static,
    ) -> io::Result<SyncServer> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let shared = Arc::new(Shared {
            identity: Arc::new(identity),
            instance,
            observer: Box::new(observer),
            shaper: Box::new(shaper),
            state: Mutex::default(),
            calls: Notify::new(),
            room: Notify::new(),
            finish: Notify::new(),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(Arc::clone(&shared), listener));
        let mut calling = JoinSet::new();
        calling.spawn(carry(Arc::clone(&shared), events));
        Ok(SyncServer { shared, accepting, calling })
    }

    /// Hands over an answer of the lab. It never waits: what cannot be kept for a slow client is asked for again later.
    pub fn reply(&self, reply: SyncReply) {
        let mut state = self.shared.state();
        let Some(connection) = state.connections.get_mut(&connection_of(reply.target().1)) else { return };
        connection.conversation.reply(reply);
        connection.wake.writer.notify_one();
        connection.wake.reader.notify_one();
        self.shared.show_stake(&mut state);
        drop(state);
        self.shared.calls.notify_one();
    }

    /// Accepts no further connection, reads what the instance sent before it ended, and hands all its calls over.
    ///
    /// To be called once the instance is gone: its connections end with it. Whatever takes longer than `patience` is
    /// cut off. Dropped half-way, everything is closed at once.
    pub async fn finish(mut self, patience: Duration) {
        self.shared.finish.notify_one();
        let _ = tokio::time::timeout(patience, async {
            while self.accepting.join_next().await.is_some() {}
            self.shared.state().over = true;
            self.shared.calls.notify_one();
            while self.calling.join_next().await.is_some() {}
        })
        .await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a conversation; none where its connection is over.
    fn with<T>(&self, number: u64, look: impl FnOnce(&mut Conversation) -> T) -> Option<T> {
        self.state().connections.get_mut(&number).map(|connection| look(&mut connection.conversation))
    }

    fn open(&self, dialect: Dialect) -> (u64, Arc<Wake>) {
        let number = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let conversation = Conversation::new(number, Arc::clone(&self.identity), dialect);
        let wake = Arc::new(Wake::default());
        state.connections.insert(number.into(), Connection { conversation, wake: Arc::clone(&wake) });
        self.show_stake(&mut state);
        (number.into(), wake)
    }

    /// Ends a conversation. Where the client did not end it, the server does, and what is at stake is lost: that stays
    /// what the observer knows.
    fn close(&self, number: u64, by_client: bool) {
        let mut state = self.state();
        if let Some(mut connection) = state.connections.remove(&number) {
            connection.conversation.close();
            while let Some(call) = connection.conversation.poll_call() {
                state.left_over.push_back(call);
            }
        }
        if by_client {
            self.show_stake(&mut state);
        }
        drop(state);
        self.calls.notify_one();
    }

    /// Shows the observer what is at stake, where that is something else than it knows; in the order in which it was.
    fn show_stake(&self, state: &mut State) {
        let clients = state.connections.values().map(|connection| &connection.conversation);
        let at_stake = clients.filter(|client| !client.comes_again()).fold(Stake::Nothing, |at_stake, client| {
            if client.owes() || at_stake == Stake::Answers { Stake::Answers } else { Stake::Connection }
        });
        if at_stake != state.at_stake {
            state.at_stake = at_stake;
            (self.observer)(Seen::AtStake(at_stake));
        }
    }

    /// Returns the next call of any connection, each in its turn, and wakes its reader.
    fn next_call(&self) -> Option<SyncCall> {
        let mut state = self.state();
        if let Some(call) = state.left_over.pop_front() {
            return Some(call);
        }
        let served = state.served;
        let order: Vec<u64> = {
            let numbers = |range| state.connections.range::<u64, _>(range).map(|(number, _)| *number);
            use std::ops::Bound::{Excluded, Included, Unbounded};
            numbers((Excluded(served), Unbounded)).chain(numbers((Unbounded, Included(served)))).collect()
        };
        for number in order {
            let Some(connection) = state.connections.get_mut(&number) else { continue };
            if let Some(call) = connection.conversation.poll_call() {
                state.served = number;
                return Some(call);
            }
        }
        None
    }
}

/// Carries calls to the lab until nothing can come any more.
async fn carry(shared: Arc<Shared>, events: mpsc::Sender<CellEvent>) {
    loop {
        while let Some(call) = shared.next_call() {
            let event = CellEvent::Sync { id: shared.instance.clone(), call };
            if events.send(event).await.is_err() {
                return;
            }
            shared.room.notify_one();
        }
        if shared.state().over {
            return;
        }
        shared.calls.notified().await;
    }
}

/// Accepts connections until told to finish, and lives until the last of them is over.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let full = shared.state().left_over.len() >= MAX_LEFT_OVER;
        tokio::select! {
            () = shared.finish.notified() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = shared.room.notified(), if full => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(converse(Arc::clone(&shared), stream));
                }
                // Too many: closed as it is dropped, which the client sees at once.
                Ok(_) => {}
                // A connection that broke before it was accepted, or no descriptor to be had.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn converse(shared: Arc<Shared>, stream: TcpStream) {
    let mut dialect = Dialect::Other;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let listen = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        dialect = dialect_of(request.headers());
        Ok(response)
    };
    let handshake = accept_hdr_async_with_config(Prompt::new(stream), listen, Some(config));
    let Ok(Ok(socket)) = tokio::time::timeout(HANDSHAKE_TIME, handshake).await else { return };
    let (number, wake) = shared.open(dialect);
    // Closes the conversation whatever happens to this task.
    let mut open = Closer { shared: &shared, number, by_client: false };
    talk(&shared, number, &wake, socket).await;
    open.by_client = true;
}

struct Closer<'a> {
    shared: &'a Shared,
    number: u64,
    /// Rather than by whoever dropped the task.
    by_client: bool,
}

impl Drop for Closer<'_> {
    fn drop(&mut self) {
        self.shared.close(self.number, self.by_client);
    }
}

/// Reads and writes until the client is gone or has to go.
async fn talk(shared: &Arc<Shared>, number: u64, wake: &Wake, socket: WebSocketStream<Prompt>) {
    let (mut sink, mut source) = socket.split();
    let read = async {
        loop {
            while shared.with(number, |conversation| conversation.wants_request()) == Some(false) {
                wake.reader.notified().await;
            }
            let message = match source.next().await {
                Some(Ok(Message::Text(text))) => tokio_tungstenite::tungstenite::Bytes::from(text),
                Some(Ok(Message::Binary(bytes))) => bytes,
                // Answered by the library as the next message is read; after a close that is the end.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => continue,
                Some(Err(WsError::Capacity(CapacityError::MessageTooLong { .. }))) => {
                    let reason = format!("a message may have {MAX_MESSAGE} bytes");
                    return Some(Close { code: 1009, reason });
                }
                Some(Err(WsError::Utf8(_))) => return Some(Close { code: 1007, reason: "no UTF-8".to_owned() }),
                // Programs that end without a word are no error.
                Some(Err(_)) | None => return None,
            };
            match receive(shared, number, &message) {
                Ok(()) => {}
                Err(close) => return Some(close),
            }
            wake.writer.notify_one();
            shared.calls.notify_one();
        }
    };
    let write = async {
        loop {
            while let Some(Some(frame)) = shared.with(number, Conversation::poll_frame) {
                if sink.feed(Message::text(frame)).await.is_err() {
                    return;
                }
                wake.reader.notify_one();
            }
            // Subscriptions that go on have asked the lab again.
            shared.calls.notify_one();
            if sink.flush().await.is_err() {
                return;
            }
            shared.show_stake(&mut shared.state());
            wake.writer.notified().await;
        }
    };
    let close = tokio::select! {
        close = read => close,
        () = write => None,
    };
    if let Some(Close { code, reason }) = close {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        // A client that does not read is not waited for: dropping the socket tells it as well.
        let _ = tokio::time::timeout(HANDSHAKE_TIME, async {
            if sink.send(Message::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = source.next().await {}
            }
        })
        .await;
    }
}

fn receive(shared: &Arc<Shared>, number: u64, message: &[u8]) -> Result<(), Close> {
    let (mut events, mut wishes, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    let received = shared.with(number, |conversation| {
        let received = conversation.receive(message);
        events.extend(std::iter::from_fn(|| conversation.poll_event()));
        wishes.extend(std::iter::from_fn(|| conversation.poll_wish()));
        refusals.extend(std::iter::from_fn(|| conversation.poll_refusal()));
        received
    });
    for event in &events {
        (shared.observer)(Seen::Event(event));
    }
    for reason in &refusals {
        (shared.observer)(Seen::Refused(reason));
    }
    for (call, wish) in wishes {
        (shared.shaper)(wish, Asked { shared: Arc::downgrade(shared), call, settled: false });
    }
    shared.show_stake(&mut shared.state());
    received.unwrap_or(Ok(()))
}

/// Tells clients apart by what they say when they connect: the lab's SDK by its name, the Go SDK by its library, the Rust SDK by a host that is
/// none.
fn dialect_of(headers: &HeaderMap) -> Dialect {
    let starts = |name: &str, with: &str| headers.get(name).is_some_and(|v| v.as_bytes().starts_with(with.as_bytes()));
    if starts("user-agent", "iptl-sdk/") {
        Dialect::Lab
    } else if starts("user-agent", "Go-http-client") {
        Dialect::Go
    } else if starts("host", "...") {
        Dialect::Rust
    } else {
        Dialect::Other
    }
}
