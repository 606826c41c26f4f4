//! Bitswap over the swarm: `iptl-bitswap`'s client and server, driven.
//!
//! One task owns both cores (`bitswap/task.rs`). Streams go one way: each peer has one that this node writes
//! (`bitswap/writer.rs`), and a few that it reads (`bitswap/reader.rs`). Blocks are looked up by tasks of their own, so
//! that a slow disk holds nobody up but those who wait for it.
//!
//! What comes from a peer is bounded before it is understood: streams for each peer, time for each message, bytes over all
//! of them.

mod reader;
mod task;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iptl_artifacts::BlobStore;
use iptl_bitswap::{Fault, PROTOCOL, PROTOCOL_1_1, SessionId, Visible};
use iptl_dag::{Block, Cid, Multihash, PeerId};
use tokio::sync::mpsc;

use crate::error::AcceptError;
use crate::net::Net;
use task::{Happened, Task};

/// Streams that wait to be accepted.
const STREAM_QUEUE: usize = 256;

/// What sessions ask for, on its way to the task; callers wait beyond it.
const COMMAND_QUEUE: usize = 256;

/// What a session is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A block that was wanted, verified.
    Block {
        /// The block.
        block: Block,
        /// Who sent it.
        from: PeerId,
    },
    /// None of the session's peers has a block. It stays wanted; other peers would help.
    Lacking {
        /// The block.
        cid: Cid,
    },
    /// A peer of the session is asked nothing more, unless it is named again.
    Dropped {
        /// Who.
        peer: PeerId,
        /// Why.
        fault: Fault,
    },
}

/// The node's Bitswap. Cloning gives another handle; it ends with the node.
#[derive(Clone, Debug)]
pub struct Bitswap {
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

/// Wants of one purpose, with the peers that may have them. Dropping it withdraws what it wanted.
#[derive(Debug)]
pub struct BitswapSession {
    id: SessionId,
    commands: mpsc::Sender<Command>,
    events: mpsc::UnboundedReceiver<SessionEvent>,
}

/// What handles ask of the task.
#[derive(Debug)]
enum Command {
    Open { session: SessionId, events: mpsc::UnboundedSender<SessionEvent> },
    Peers { session: SessionId, peers: Vec<(PeerId, Vec<String>)> },
    Want { session: SessionId, cids: Vec<Cid> },
    Cancel { session: SessionId, cids: Vec<Cid> },
    Arrived { hashes: Vec<Multihash> },
}

impl Bitswap {
    /// Serves what is in `store`, to each peer what `visible` lets it read, and gets blocks for sessions.
    ///
    /// # Errors
    ///
    /// Where the protocols are accepted already, or the node was shut down.
    pub async fn start(net: &Net, store: Arc<dyn BlobStore>, visible: Visible) -> Result<Bitswap, AcceptError> {
        let incoming = [net.accept(PROTOCOL, STREAM_QUEUE).await?, net.accept(PROTOCOL_1_1, STREAM_QUEUE).await?];
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let sent = Arc::<AtomicU64>::default();
        let (task, happened) = Task::new(net.clone(), store, visible, queue, sent.clone());
        for mut streams in incoming {
            let happened = happened.clone();
            tokio::spawn(async move {
                while let Some((peer, stream)) = streams.next().await {
                    if happened.send(Happened::Stream { peer, stream }).await.is_err() {
                        return;
                    }
                }
                // The node was shut down. A task that is gone already need not be told.
                let _ = happened.send(Happened::Closed).await;
            });
        }
        tokio::spawn(task.run());
        Ok(Bitswap { commands, next: Arc::default(), sent })
    }

    /// Returns the bytes of blocks that were handed to streams of peers who wanted them.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Opens a session. Cancel safe.
    pub async fn session(&self) -> BitswapSession {
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        // What is told is bounded by what is wanted, which the session's owner knows.
        let (events, receiver) = mpsc::unbounded_channel();
        let commands = self.commands.clone();
        // Where the task is gone, the session ends at once: its events do.
        let _ = commands.send(Command::Open { session: id, events }).await;
        BitswapSession { id, commands, events: receiver }
    }

    /// Says that blocks came into the store, so that peers get them who wait for them. Cancel safe.
    pub async fn arrived(&self, hashes: Vec<Multihash>) {
        let _ = self.commands.send(Command::Arrived { hashes }).await;
    }
}

impl BitswapSession {
    /// Names peers that may have what is wanted, with addresses to dial them at. One that was dropped and did not lie gets
    /// another chance. Cancel safe.
    pub async fn peers(&self, peers: Vec<(PeerId, Vec<String>)>) {
        let _ = self.commands.send(Command::Peers { session: self.id, peers }).await;
    }

    /// Wants blocks. All of them may be in memory before they are taken by [`BitswapSession::next`]: want as many as that
    /// allows. Cancel safe.
    pub async fn want(&self, cids: Vec<Cid>) {
        let _ = self.commands.send(Command::Want { session: self.id, cids }).await;
    }

    /// Wants blocks no more; one may come all the same that is on its way. Cancel safe.
    pub async fn cancel(&self, cids: Vec<Cid>) {
        let _ = self.commands.send(Command::Cancel { session: self.id, cids }).await;
    }

    /// Waits for what happens next; `None` once the node was shut down. Cancel safe.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        self.events.recv().await
    }
}
