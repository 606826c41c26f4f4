//! Lab packets between cells of different lablets, carried over streams of the swarm.
//!
//! One stream for each direction and pair of lablets, whatever the number of connections between instances: packets of
//! all executions share it, each under the name of its execution. TCP between instances is bounded by the credit
//! windows of `iptl-labnet`; IP packets are whatever they are on any network. Where packets are lost, because a stream broke or too many waited, the connections between
//! instances of the two lablets are reset, so that no connection waits for ever; UDP loses packets, as on any network.
//!
//! IP packets are held where they arrive until the delay of their link is over. So each carries its time by the
//! receiver's clock, which the sender knows from asking for it on the same stream.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iptl_dag::PeerId;
use iptl_dag::model::ExecutionId;
use iptl_labnet::{Away, Batch, Packet};
use iptl_labnet_tun::now_ns;
use iptl_runner::{CellControl, CellInput};
use iptl_wire::frame;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWriteExt, BufWriter};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::framed;
use crate::gate::Gate;
use crate::lablet::Routes;
use crate::links::{Incoming, LinkError, Links, Stream};

/// Protocol ID of the stream that carries lab packets one way, and of the version before, in which each packet has a
/// frame of its own.
pub(crate) const PROTOCOL: &str = "/iptl/labnet/2";
const PROTOCOL_1: &str = "/iptl/labnet/1";

/// Largest frame: a batch with a packet of 64 KiB as its last, and their wrapping.
const MAX_FRAME_SIZE: usize = 128 << 10;

/// Largest frame with what a clock shows.
const MAX_ANSWER_SIZE: usize = 256;

/// Bytes of packets that wait for one lablet. TCP between instances is bounded far below by its windows, unless it is
/// written in tiny pieces; what comes beyond is lost, and its connections are reset.
const QUEUE_BYTES: usize = 64 << 20;

/// What a waiting packet costs beside its payload.
const PACKET_COST: usize = 160;

/// A stream that carried nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// Streams of packets that one peer may have open towards us: one, and those of connections that just broke.
const MAX_STREAMS_PER_PEER: usize = 8;

/// Packets that are handed to cells together at most.
const MAX_TOGETHER: usize = 256;

/// Streams that wait to be accepted.
const ACCEPT_QUEUE: usize = 64;

/// Time between two looks at a receiver's clock: clocks drift some 50 µs apart in it.
const ASK: Duration = Duration::from_secs(1);

/// Looks before the first packet, and how many of the last are remembered: the one that took least time counts.
const FIRST_LOOKS: usize = 3;
const LOOKS: usize = 8;

/// Time in which a receiver says what its clock shows.
const ANSWER: Duration = Duration::from_secs(10);

/// Looks at a way that is measured; as many where it is not known what is enough, and as many more, with a pause between
/// two of them, where it is and they were all too long: a machine that is busy is so for a moment.
const MEASURED_LOOKS: usize = 20;
const FURTHER_LOOKS: usize = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The way to another lablet, one way: half of round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Of the shortest, in nanoseconds.
    pub(crate) best_ns: u64,
    /// Of the median.
    pub(crate) median_ns: u64,
    /// Whether it goes by way of a third machine.
    pub(crate) relayed: bool,
}

/// What stands in a frame.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Letter {
    /// What does the receiver's clock show? Answered on the same stream.
    Ask {
        /// By the sender's clock, in nanoseconds.
        at_ns: u64,
    },
    /// A packet, in the first version.
    Packet(Carried),
    /// Packets that go together.
    Packets(Together),
    /// No more on this stream: it was idle. A stream that ends without it has lost packets.
    End {},
}

/// What a receiver's clock shows.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    /// As in the question.
    asked_ns: u64,
    /// By the receiver's clock, in nanoseconds.
    here_ns: u64,
}

/// What is known of a receiver's clock.
#[derive(Default)]
struct Looks {
    /// Round trip and how much the clock is ahead, of the last few looks; in nanoseconds.
    last: Mutex<VecDeque<(u64, i64)>>,
    seen: Notify,
}

impl Looks {
    /// Takes an answer that came at a time by the own clock.
    fn take(&self, answer: &Clock, now_ns: u64) {
        let round_ns = now_ns.saturating_sub(answer.asked_ns);
        let then_ns = answer.asked_ns.saturating_add(round_ns / 2);
        let mut last = lock(&self.last);
        if last.len() == LOOKS {
            last.pop_front();
        }
        last.push_back((round_ns, answer.here_ns.wrapping_sub(then_ns).cast_signed()));
        self.seen.notify_one();
    }

    /// Returns how much the receiver's clock is ahead, in nanoseconds; zero before the first look.
    fn ahead_ns(&self) -> i64 {
        lock(&self.last).iter().min_by_key(|(round_ns, _)| *round_ns).map_or(0, |(_, ahead_ns)| *ahead_ns)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Carried {
    execution: ExecutionId,
    packet: Bytes,
}

/// Packets of one execution.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Together {
    execution: ExecutionId,
    packets: Batch,
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
    queues: Mutex<BTreeMap<PeerId, Queue>>,
    dropped: AtomicU64,
}

/// What waits for a lablet.
enum Queued {
    Packets(Together),
    /// Packets will come that are timed: the stream is to be there, and the clock known.
    Ready,
}

#[derive(Clone)]
struct Queue {
    sender: mpsc::UnboundedSender<Queued>,
    bytes: Arc<AtomicUsize>,
}

struct Cell {
    /// Says whose instances may send: a lablet speaks for its own alone.
    routes: Arc<Routes>,
    control: Arc<dyn CellControl>,
}

impl Carrier {
    /// Starts to accept packets from other lablets.
    pub(crate) async fn start(links: Links) -> Carrier {
        let carrier = Carrier { links, shared: Arc::default() };
        let gate = Gate::new(MAX_STREAMS_PER_PEER);
        for protocol in [PROTOCOL, PROTOCOL_1] {
            let incoming = carrier.links.accept(protocol, ACCEPT_QUEUE).await;
            tokio::spawn(carrier.clone().accept(incoming, gate.clone()));
        }
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

    /// Sends packets to the cell of `execution` on `peer`.
    pub(crate) fn send(&self, peer: &PeerId, addrs: &[String], execution: ExecutionId, packets: Batch) {
        let mut queues = lock(&self.shared.queues);
        let queue = self.queue(&mut queues, peer, addrs);
        let cost = cost_of(&packets);
        if queue.bytes.fetch_add(cost, Ordering::Relaxed) + cost <= QUEUE_BYTES {
            // The task ends only once it has taken itself out of the queues.
            let _ended = queue.sender.send(Queued::Packets(Together { execution, packets }));
            return;
        }
        queue.bytes.fetch_sub(cost, Ordering::Relaxed);
        drop(queues);
        self.shared.dropped.fetch_add(packets.len() as u64, Ordering::Relaxed);
        let may_be_lost =
            |packet: &Bytes| Away::is_encoded(packet) || matches!(Packet::decode(packet), Ok(Packet::Udp { .. }));
        if packets.packets().all(|packet| may_be_lost(&packet)) {
            return;
        }
        let carrier = self.clone();
        let peer = peer.clone();
        tokio::spawn(async move { carrier.cut(&peer).await });
    }

    /// Tells whether a lablet is this one.
    pub(crate) fn is_here(&self, peer: &PeerId) -> bool {
        self.links.peer() == peer
    }

    /// Measures the way to a lablet, on a stream of its own; where what is enough is found to be kept after
    /// [`FIRST_LOOKS`], no longer. Takes two seconds and a half at most, and longer where the lablet is far.
    ///
    /// Dropped half-way, the stream ends.
    ///
    /// # Errors
    ///
    /// Fails where there is no way, or the lablet does not answer.
    pub(crate) async fn measure(
        &self,
        peer: &PeerId,
        addrs: &[String],
        enough_ns: Option<u64>,
    ) -> std::io::Result<Way> {
        if let Some(net) = self.links.net() {
            // Where nobody answers, opening the stream says so.
            let _connected = net.connect(peer, addrs).await;
            net.settle(peer).await;
        }
        let (stream, _) = self.open(peer, addrs).await.map_err(std::io::Error::other)?;
        let relayed = stream.is_relayed();
        let (mut answers, mut stream) = tokio::io::split(stream);
        let mut one_ways = Vec::with_capacity(MEASURED_LOOKS);
        let most = if enough_ns.is_some() { MEASURED_LOOKS + FURTHER_LOOKS } else { MEASURED_LOOKS };
        while one_ways.len() < most {
            framed::write(&mut stream, &Letter::Ask { at_ns: now_ns() }).await?;
            let answer = framed::expect::<Clock>(&mut answers, MAX_ANSWER_SIZE);
            let answer = tokio::time::timeout(ANSWER, answer).await??;
            one_ways.push(now_ns().saturating_sub(answer.asked_ns) / 2);
            let best_ns = one_ways.iter().min().copied().unwrap_or(u64::MAX);
            if one_ways.len() >= FIRST_LOOKS && enough_ns.is_some_and(|enough_ns| best_ns <= enough_ns) {
                break;
            }
            if one_ways.len() >= MEASURED_LOOKS {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        }
        framed::write(&mut stream, &Letter::End {}).await?;
        stream.shutdown().await?;
        one_ways.sort_unstable();
        Ok(Way { best_ns: one_ways[0], median_ns: one_ways[one_ways.len() / 2], relayed })
    }

    /// Opens the stream to a lablet and looks at its clock, so that the first timed packet is not late.
    pub(crate) fn make_ready(&self, peer: &PeerId, addrs: &[String]) {
        let mut queues = lock(&self.shared.queues);
        let _ended = self.queue(&mut queues, peer, addrs).sender.send(Queued::Ready);
    }

    /// Opens a stream, and says whether each packet is to have a frame of its own: lablets of an earlier version know no
    /// other.
    async fn open(&self, peer: &PeerId, addrs: &[String]) -> Result<(Stream, bool), LinkError> {
        match self.links.open(peer, addrs, PROTOCOL).await {
            Err(LinkError::NotSpoken { .. }) => Ok((self.links.open(peer, addrs, PROTOCOL_1).await?, true)),
            opened => Ok((opened?, false)),
        }
    }

    fn queue<'a>(&self, queues: &'a mut BTreeMap<PeerId, Queue>, peer: &PeerId, addrs: &[String]) -> &'a mut Queue {
        queues.entry(peer.clone()).or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let bytes = Arc::new(AtomicUsize::new(0));
            let delivery = Delivery {
                carrier: self.clone(),
                peer: peer.clone(),
                addrs: addrs.to_vec(),
                queue: receiver,
                bytes: bytes.clone(),
            };
            tokio::spawn(delivery.run());
            Queue { sender, bytes }
        })
    }

    /// Tells whether a cell here has others on a lablet.
    fn is_wanted(&self, peer: &PeerId) -> bool {
        lock(&self.shared.cells).values().any(|cell| cell.routes.is_on(peer))
    }

    /// Has all cells reset their connections with the instances of a lablet: packets between them were lost.
    async fn cut(&self, peer: &PeerId) {
        let cells: Vec<_> = lock(&self.shared.cells)
            .values()
            .map(|cell| (cell.control.clone(), cell.routes.addrs_on(peer)))
            .filter(|(_, addrs)| !addrs.is_empty())
            .collect();
        for (control, addrs) in cells {
            control.input(vec![CellInput::Cut(addrs)]).await;
        }
    }

    async fn accept(self, mut incoming: Incoming, gate: Gate) {
        while let Some((peer, stream)) = incoming.recv().await {
            let Some(place) = gate.enter(&peer) else {
                tracing::debug!(%peer, "too many streams of packets of one peer");
                continue;
            };
            let carrier = self.clone();
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = carrier.receive(&peer, stream).await {
                    tracing::info!(%peer, %error, "a lablet's packets end");
                    carrier.cut(&peer).await;
                }
            });
        }
    }

    async fn receive(&self, peer: &PeerId, stream: Stream) -> std::io::Result<()> {
        let mut stream = tokio::io::BufReader::with_capacity(MAX_FRAME_SIZE, stream);
        let mut waiting = Vec::new();
        loop {
            match framed::expect::<Letter>(&mut stream, MAX_FRAME_SIZE).await? {
                Letter::Packet(Carried { execution, packet }) => {
                    waiting.push(Together { execution, packets: Batch::of(&packet) });
                }
                Letter::Packets(together) => waiting.push(together),
                Letter::Ask { at_ns } => {
                    let clock = Clock { asked_ns: at_ns, here_ns: now_ns() };
                    framed::write(stream.get_mut(), &clock).await?;
                }
                Letter::End {} => {
                    self.deliver(peer, &mut waiting).await;
                    return Ok(());
                }
            }
            // What came together is handed over together: a frame for each packet costs more than the packet.
            if waiting.len() >= MAX_TOGETHER || !frame::is_whole(stream.buffer()) {
                self.deliver(peer, &mut waiting).await;
            }
        }
    }

    /// Hands packets over to their cells, in their order.
    async fn deliver(&self, peer: &PeerId, waiting: &mut Vec<Together>) {
        let mut rest = waiting.drain(..).peekable();
        while let Some(first) = rest.next() {
            let execution = first.execution;
            let same = std::iter::from_fn(|| rest.next_if(|next| next.execution == execution));
            let batches: Vec<Batch> = std::iter::once(first).chain(same).map(|together| together.packets).collect();
            if let Some((control, inputs)) = self.of_cell(peer, &execution, batches) {
                control.input(inputs).await;
            }
        }
    }

    /// Returns the control of a cell with those of some packets that it is to have. The cell may be over, or not prepared
    /// yet, and a packet may not be the sender's to send.
    fn of_cell(
        &self,
        peer: &PeerId,
        execution: &ExecutionId,
        batches: Vec<Batch>,
    ) -> Option<(Arc<dyn CellControl>, Vec<CellInput>)> {
        let count: usize = batches.iter().map(Batch::len).sum();
        let cells = lock(&self.shared.cells);
        let wanted = cells.get(execution).map(|cell| {
            let of_peer = batches.into_iter().map(|batch| batch.retain(|packet| cell.routes.may_send(peer, packet)));
            (cell.control.clone(), of_peer.filter(|batch| !batch.is_empty()).collect::<Vec<Batch>>())
        });
        drop(cells);
        let taken: usize = wanted.iter().flat_map(|(_, batches)| batches).map(Batch::len).sum();
        self.shared.dropped.fetch_add((count - taken) as u64, Ordering::Relaxed);
        let (control, batches) = wanted.filter(|_| taken > 0)?;
        Some((control, batches.into_iter().map(CellInput::Packets).collect()))
    }
}

/// Writes the packets for one lablet.
struct Delivery {
    carrier: Carrier,
    peer: PeerId,
    addrs: Vec<String>,
    queue: mpsc::UnboundedReceiver<Queued>,
    bytes: Arc<AtomicUsize>,
}

impl Delivery {
    /// Runs until nothing was sent for some time. Where a stream breaks, what waits is lost with it and connections are
    /// reset: a gap in a connection would never be filled.
    async fn run(mut self) {
        while let Some(first) = self.next().await {
            let ended = match self.carrier.open(&self.peer, &self.addrs).await {
                Ok((stream, each)) => self.write(stream, first, each).await,
                Err(error) => Err(std::io::Error::other(error)),
            };
            if let Err(error) = ended {
                tracing::warn!(peer = %self.peer, %error, "lab packets for a lablet are lost");
                while let Ok(queued) = self.queue.try_recv() {
                    self.taken(&queued);
                }
                self.carrier.cut(&self.peer).await;
            }
        }
    }

    async fn write(&mut self, stream: Stream, first: Queued, each: bool) -> std::io::Result<()> {
        // A stream stays on the connection on which it was opened, whatever comes later.
        let relayed = stream.is_relayed();
        let (answers, stream) = tokio::io::split(stream);
        let mut stream = BufWriter::with_capacity(MAX_FRAME_SIZE, stream);
        let looks = Arc::new(Looks::default());
        let mut listening = tokio::spawn(listen(answers, Arc::clone(&looks)));
        let _listening = AbortOnDrop(listening.abort_handle());
        let mut looked = Instant::now();
        let mut is_left = false;
        let mut asked: Option<Instant> = None;
        let mut next = Some(first);
        while let Some(queued) = next {
            let timed = match &queued {
                Queued::Packets(together) => together.packets.packets().any(|packet| Away::is_encoded(&packet)),
                Queued::Ready => true,
            };
            if timed {
                if asked.is_none() {
                    for _ in 0..FIRST_LOOKS {
                        framed::write(&mut stream, &Letter::Ask { at_ns: now_ns() }).await?;
                        tokio::time::timeout(ANSWER, looks.seen.notified()).await?;
                    }
                    asked = Some(Instant::now());
                } else if asked.is_some_and(|asked| asked.elapsed() >= ASK) {
                    framed::write(&mut stream, &Letter::Ask { at_ns: now_ns() }).await?;
                    asked = Some(Instant::now());
                }
            }
            if let Queued::Packets(Together { execution, mut packets }) = queued {
                if timed {
                    let ahead_ns = looks.ahead_ns();
                    packets = packets.edit(|packet| {
                        Away::stamp(packet, relayed, |from_ns| from_ns.saturating_add_signed(ahead_ns));
                    });
                }
                if each {
                    for packet in packets.packets() {
                        stream.write_all(&frame::encode(&Letter::Packet(Carried { execution, packet }))).await?;
                    }
                } else {
                    stream.write_all(&frame::encode(&Letter::Packets(Together { execution, packets }))).await?;
                }
            }
            if relayed && looked.elapsed() >= ASK {
                looked = Instant::now();
                is_left = self.is_direct().await;
            }
            if is_left {
                break;
            }
            next = match self.queue.try_recv() {
                Ok(queued) => {
                    self.taken(&queued);
                    Some(queued)
                }
                Err(_) => {
                    stream.flush().await?;
                    self.next().await
                }
            };
        }
        stream.write_all(&frame::encode(&Letter::End {})).await?;
        stream.shutdown().await?;
        if is_left {
            // There is a direct connection by now, and the next stream takes it. What went by way of the relay is to be there
            // first: the receiver closes once it has it.
            tokio::time::timeout(ANSWER, &mut listening).await?.map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    /// Tells whether there is a direct connection to the lablet. Where there is none, one is tried once in a while: the
    /// lablet may have become one that can be dialled.
    async fn is_direct(&self) -> bool {
        let Some(net) = self.carrier.links.net() else { return false };
        if net.peers().await.iter().any(|info| info.peer == self.peer && !info.relayed) {
            return true;
        }
        let (net, peer, addrs) = (net.clone(), self.peer.clone(), self.addrs.clone());
        // What comes of it the next look shows.
        tokio::spawn(async move { drop(net.connect(&peer, &addrs).await) });
        false
    }

    /// Returns the next packet; none once nothing was sent for some time, and then this lablet has no queue any more.
    async fn next(&mut self) -> Option<Queued> {
        loop {
            match tokio::time::timeout(IDLE, self.queue.recv()).await {
                Ok(queued) => return queued.inspect(|queued| self.taken(queued)),
                // A cell that says nothing for a while is not over: its next packet is not to wait for a stream.
                Err(_) if self.carrier.is_wanted(&self.peer) => {}
                Err(_) => {
                    let mut queues = lock(&self.carrier.shared.queues);
                    if self.queue.is_empty() {
                        queues.remove(&self.peer);
                        return None;
                    }
                }
            }
        }
    }

    fn taken(&self, queued: &Queued) {
        if let Queued::Packets(together) = queued {
            self.bytes.fetch_sub(cost_of(&together.packets), Ordering::Relaxed);
        }
    }
}

/// Returns what packets count for while they wait.
fn cost_of(packets: &Batch) -> usize {
    packets.as_bytes().len() + packets.len() * PACKET_COST
}

/// Takes what a receiver says of its clock, until the stream ends.
async fn listen(mut answers: impl AsyncRead + Unpin, looks: Arc<Looks>) {
    while let Ok(Some(clock)) = framed::read::<Clock>(&mut answers, MAX_ANSWER_SIZE).await {
        looks.take(&clock, now_ns());
    }
}

/// Ends a task with whoever holds this.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
