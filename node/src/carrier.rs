//! Lab packets between cells of different lablets, carried over streams of the swarm.
//!
//! One stream for each direction and pair of lablets, whatever the number of connections between instances: packets of
//! all executions share it, each under the name of its execution. TCP between instances is bounded by the credit
//! windows of `iptl-labnet`; a UDP packet that finds the queue full is dropped and counted, as a network would.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::ExecutionId;
use iptl_runner::{CellControl, CellInput};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;

use crate::framed;
use crate::lablet::Routes;
use crate::links::{Incoming, Links, Stream};

/// Protocol ID of the stream that carries lab packets one way.
pub(crate) const PROTOCOL: &str = "/iptl/labnet/1";

/// Largest frame: a packet of 64 KiB with its wrapping.
const MAX_FRAME_SIZE: usize = 128 << 10;

/// Packets that wait for one lablet: the windows of some hundred connections.
const QUEUE: usize = 4096;

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;

/// Pause before a stream that broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Carried {
    execution: ExecutionId,
    packet: Bytes,
}

/// Carries packets for all cells of a lablet.
#[derive(Clone)]
pub(crate) struct Carrier {
    links: Links,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cells: Mutex<BTreeMap<ExecutionId, Cell>>,
    queues: Mutex<BTreeMap<PeerId, mpsc::Sender<Carried>>>,
    dropped: AtomicU64,
}

struct Cell {
    /// Says whose instances may send: a lablet speaks for its own alone.
    routes: Arc<Routes>,
    control: Arc<dyn CellControl>,
}

impl Carrier {
    /// Starts to accept packets from other lablets.
    pub(crate) async fn start(links: Links) -> Carrier {
        let incoming = links.accept(PROTOCOL, ACCEPT_QUEUE).await;
        let carrier = Carrier { links, shared: Arc::default() };
        tokio::spawn(carrier.clone().accept(incoming));
        carrier
    }

    /// Lets a cell take packets from the lablets of its placement.
    pub(crate) fn attach(&self, execution: ExecutionId, routes: Arc<Routes>, control: Arc<dyn CellControl>) {
        lock(&self.shared.cells).insert(execution, Cell { routes, control });
    }

    /// Ends that.
    pub(crate) fn detach(&self, execution: &ExecutionId) {
        lock(&self.shared.cells).remove(execution);
    }

    /// Sends a packet to the cell of `execution` on `peer`.
    pub(crate) fn send(&self, peer: &PeerId, addrs: &[String], execution: ExecutionId, packet: Bytes) {
        let queue = lock(&self.shared.queues)
            .entry(peer.clone())
            .or_insert_with(|| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(deliver(self.links.clone(), peer.clone(), addrs.to_vec(), receiver));
                sender
            })
            .clone();
        if queue.try_send(Carried { execution, packet }).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn accept(self, mut incoming: Incoming) {
        while let Some((peer, stream)) = incoming.recv().await {
            let carrier = self.clone();
            tokio::spawn(async move {
                if let Err(error) = carrier.receive(&peer, stream).await {
                    tracing::warn!(%peer, %error, "a lablet's packets end");
                }
            });
        }
    }

    async fn receive(&self, peer: &PeerId, stream: Stream) -> std::io::Result<()> {
        let mut stream = tokio::io::BufReader::with_capacity(MAX_FRAME_SIZE, stream);
        while let Some(carried) = framed::read::<Carried>(&mut stream, MAX_FRAME_SIZE).await? {
            let control = lock(&self.shared.cells)
                .get(&carried.execution)
                .filter(|cell| cell.routes.may_send(peer, &carried.packet))
                .map(|cell| cell.control.clone());
            match control {
                Some(control) => control.input(CellInput::Packet(carried.packet.into())).await,
                // The cell is over, or not prepared yet, or the packet is not the sender's to send.
                None => {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

/// Writes the packets for one lablet, opening a new stream where one breaks.
async fn deliver(links: Links, peer: PeerId, addrs: Vec<String>, mut queue: mpsc::Receiver<Carried>) {
    while let Some(first) = queue.recv().await {
        let stream = match links.open(&peer, &addrs, PROTOCOL).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%peer, %error, "cannot carry lab packets");
                tokio::time::sleep(REOPEN_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = deliver_on(stream, first, &mut queue).await {
            tracing::debug!(%peer, %error, "a stream of lab packets broke");
        }
    }
}

async fn deliver_on(stream: Stream, first: Carried, queue: &mut mpsc::Receiver<Carried>) -> std::io::Result<()> {
    let mut stream = BufWriter::with_capacity(MAX_FRAME_SIZE, stream);
    let mut next = Some(first);
    while let Some(carried) = next {
        stream.write_all(&iptl_wire::frame::encode(&carried)).await?;
        next = match queue.try_recv() {
            Ok(carried) => Some(carried),
            Err(_) => {
                stream.flush().await?;
                queue.recv().await
            }
        };
    }
    stream.shutdown().await
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
