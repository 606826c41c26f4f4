//! One cell, as the lablet sees it: a task that reads what the worker says until the cell is over.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use iptl_dag::model::{Exit, InstanceId, Usage};
use iptl_runner::files::CellFiles;
use iptl_runner::{CellControl, CellEvent, CellInput, CellSpec, Ended, PrepareError, PreparedCell, SyncReply};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::process::{Process, Worker};
use super::{Inner, Reservation};
use crate::ipc::{self, CellOrder, FromWorker, ToWorker};

/// Events that the reader of a cell may lag behind before its instances wait.
const EVENT_QUEUE: usize = 1024;

/// Frames that wait for the worker before callers of `input` wait.
const INPUT_QUEUE: usize = 256;

/// Instances in one frame.
const INSTANCES_PER_FRAME: usize = 64;

/// Bytes of answers and packets in one frame, but for a single larger one.
const MAX_INPUT_FRAME: usize = 1 << 20;

/// Bytes that an input takes in a frame beside its payload: the names of its fields, and an instance.
const INPUT_OVERHEAD: usize = 128;

/// Time that a worker has to end its instances before it is killed: guests yield every 10 ms, so this is ample even on
/// a machine that swaps.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a worker has to die after its socket closed, before it is killed.
const DEATH_TIMEOUT: Duration = Duration::from_secs(1);

/// A worker whose instances are made and wait for the start.
pub(crate) struct Held {
    process: Process,
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

/// Hands a cell to a worker and waits until it is ready. Dropping the future kills the worker.
pub(crate) async fn hand_over(inner: &Inner, worker: Worker, cell: &CellSpec) -> Result<Held, PrepareError> {
    let Worker { socket, mut process } = worker;
    let (from, mut to) = socket.into_split();
    let mut from = BufReader::with_capacity(64 << 10, from);
    let order = encode_order(inner, cell)
        .map_err(|source| PrepareError::Io { what: "the cell cannot be handed to its worker".to_owned(), source })?;
    // A worker that dies meanwhile is noticed below, where the reason is known too.
    let _ = to.write_all(&order).await;
    drop(order);
    let answer = tokio::select! {
        answer = ipc::read_async::<FromWorker>(&mut from) => answer,
        () = inner.over.cancelled() => Err(io::Error::other("the runner shuts down")),
    };
    match answer {
        Ok(Some(FromWorker::Prepared)) => Ok(Held { process, from, to }),
        Ok(Some(FromWorker::Refused(refusal))) => Err(refusal.into()),
        Ok(Some(FromWorker::Event(_)) | None) | Err(_) => {
            let reason = match tokio::time::timeout(DEATH_TIMEOUT, process.ended()).await {
                Ok(reason) => reason,
                Err(_) => process.kill().await,
            };
            Err(PrepareError::WorkerDied { reason })
        }
    }
}

/// Follows a cell from here to its end.
pub(crate) fn follow(inner: &Arc<Inner>, held: Held, cell: CellSpec, reservation: Reservation) -> PreparedCell {
    let Held { process, from, to } = held;
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let (inputs, queue) = mpsc::channel(INPUT_QUEUE);
    let shared = Arc::new(Shared {
        pid: process.pid(),
        stop: Mutex::new(None),
        stopping: CancellationToken::new(),
        over: CancellationToken::new(),
        started_ms: AtomicU64::new(0),
    });
    let life = Life {
        inner: Arc::clone(inner),
        process,
        events,
        unfinished: cell.instances.iter().map(|i| i.id.clone()).collect(),
        files: CellFiles::new(cell.scratch),
        shared: Arc::clone(&shared),
        _reservation: reservation,
    };
    inner.tasks.spawn(write_inputs(queue, to, shared.over.clone()));
    inner.tasks.spawn(life.run(from));
    PreparedCell { control: Box::new(Control { shared, inputs }), events: receiver }
}

/// Encodes everything that a worker needs to prepare a cell. Its working directory is another: paths become absolute.
fn encode_order(inner: &Inner, cell: &CellSpec) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = CellSpec {
        name: cell.name.clone(),
        seed: cell.seed,
        run_id: cell.run_id.clone(),
        plan: cell.plan.clone(),
        case: cell.case.clone(),
        params: cell.params.clone(),
        groups: cell.groups.clone(),
        network: cell.network.clone(),
        mixed: cell.mixed,
        faults: cell.faults.clone(),
        instances: Vec::new(),
        scratch: cell.scratch.clone(),
        origin: cell.origin.clone(),
    };
    let order =
        CellOrder { cell: head, cache_dir: inner.config.cache_dir.clone(), memory_bytes: inner.capacity.memory_bytes };
    ipc::encode(&mut bytes, &ToWorker::Cell(Box::new(order)))?;
    for chunk in cell.instances.chunks(INSTANCES_PER_FRAME) {
        let mut instances = chunk.to_vec();
        for instance in &mut instances {
            instance.artifact.path = std::path::absolute(&instance.artifact.path)?;
        }
        ipc::encode(&mut bytes, &ToWorker::Instances(instances))?;
    }
    ipc::encode(&mut bytes, &ToWorker::Prepare)?;
    Ok(bytes)
}

/// Writes what the cell is told, in order, several frames at once where they wait.
///
/// Ends when the control of the cell is dropped, which the worker sees as the end of its socket, or when the cell is
/// over; inputs are ignored from then on.
async fn write_inputs(mut queue: mpsc::Receiver<ToWorker>, mut to: OwnedWriteHalf, over: CancellationToken) {
    let mut batch = Vec::new();
    let mut bytes = Vec::new();
    loop {
        let count = tokio::select! {
            count = queue.recv_many(&mut batch, INPUT_QUEUE) => count,
            () = over.cancelled() => 0,
        };
        if count == 0 {
            break;
        }
        bytes.clear();
        for message in batch.drain(..) {
            if let Err(e) = ipc::encode(&mut bytes, &message) {
                tracing::warn!(error = %e, "an input of a cell was dropped");
            }
        }
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

/// What the control of a cell and the task that reads its worker share.
struct Shared {
    pid: Option<u32>,
    /// Why the cell was stopped, where it was.
    stop: Mutex<Option<String>>,
    stopping: CancellationToken,
    /// Cancelled when the worker is gone.
    over: CancellationToken,
    /// Wall time of the start; zero before it.
    started_ms: AtomicU64,
}

impl Shared {
    /// Notes the first reason to stop; false where there was one already.
    fn stop(&self, reason: &str) -> bool {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let first = stop.is_none();
        if first {
            *stop = Some(reason.to_owned());
        }
        drop(stop);
        self.stopping.cancel();
        first
    }

    fn stop_reason(&self) -> Option<String> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Control {
    shared: Arc<Shared>,
    inputs: mpsc::Sender<ToWorker>,
}

#[async_trait]
impl CellControl for Control {
    async fn start(&self) {
        let _ = self.shared.started_ms.compare_exchange(0, wall_ms(), Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.inputs.send(ToWorker::Start).await;
    }

    async fn stop(&self, reason: String) {
        if self.shared.stop(&reason) {
            let _ = self.inputs.send(ToWorker::Stop { reason }).await;
        }
    }

    async fn input(&self, inputs: Vec<CellInput>) {
        let mut frame = Vec::new();
        let mut size = 0;
        for input in inputs {
            let next = size_of_input(&input);
            if size + next > MAX_INPUT_FRAME && !frame.is_empty() {
                let _ = self.inputs.send(ToWorker::Input(std::mem::take(&mut frame))).await;
                size = 0;
            }
            size += next;
            frame.push(input);
        }
        if !frame.is_empty() {
            let _ = self.inputs.send(ToWorker::Input(frame)).await;
        }
    }

    fn worker_pid(&self) -> Option<u32> {
        self.shared.pid
    }
}

/// Returns about how many bytes an input takes in a frame.
fn size_of_input(input: &CellInput) -> usize {
    INPUT_OVERHEAD
        + match input {
            CellInput::Sync(SyncReply::Message { payload, .. }) => payload.len(),
            CellInput::Sync(
                SyncReply::Signalled { .. }
                | SyncReply::Opened { .. }
                | SyncReply::Published { .. }
                | SyncReply::Failed { .. },
            ) => 0,
            CellInput::Packets(batch) => batch.as_bytes().len(),
            CellInput::Cut(addrs) => addrs.len() * 16,
        }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The input queue ends with this, the worker sees the end of its socket and goes.
        self.shared.stop("its control was dropped");
    }
}

/// The task of one cell.
struct Life {
    inner: Arc<Inner>,
    process: Process,
    events: mpsc::Sender<CellEvent>,
    unfinished: BTreeSet<InstanceId>,
    files: CellFiles,
    shared: Arc<Shared>,
    _reservation: Reservation,
}

impl Life {
    async fn run(mut self, mut from: BufReader<OwnedReadHalf>) {
        let shared = Arc::clone(&self.shared);
        let over = self.inner.over.clone();
        let deadline = async {
            shared.stopping.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        let finished = tokio::select! {
            finished = self.forward(&mut from) => finished,
            () = deadline => false,
            () = over.cancelled() => {
                shared.stop("the runner shuts down");
                false
            }
        };
        if finished {
            self.process.kill().await;
            shared.over.cancel();
            return;
        }
        let death = self.death().await;
        shared.over.cancel();
        let exit = match self.shared.stop_reason() {
            Some(reason) => Exit::Stopped { reason },
            None => Exit::WorkerDied { reason: death },
        };
        self.end_unfinished(&exit).await;
        let _ = self.events.send(CellEvent::CellOver).await;
    }

    /// Forwards events until the cell is over (true) or the worker is gone (false).
    async fn forward(&mut self, from: &mut BufReader<OwnedReadHalf>) -> bool {
        loop {
            let event = match ipc::read_async::<FromWorker>(from).await {
                Ok(Some(FromWorker::Event(event))) => event,
                Ok(Some(FromWorker::Prepared | FromWorker::Refused(_))) => continue,
                Ok(None) => return false,
                Err(e) => {
                    tracing::debug!(error = %e, "the socket of a worker broke");
                    return false;
                }
            };
            if let CellEvent::Ended { id, .. } = &event
                && !self.unfinished.remove(id)
            {
                continue;
            }
            let over = matches!(event, CellEvent::CellOver);
            // Nobody may be reading any more; the cell is followed to its end all the same.
            let _ = self.events.send(event).await;
            if over {
                return true;
            }
        }
    }

    /// Returns how the worker died, killing it where it lives on without its socket.
    async fn death(&mut self) -> String {
        if self.shared.stopping.is_cancelled() {
            return self.process.kill().await;
        }
        match tokio::time::timeout(DEATH_TIMEOUT, self.process.ended()).await {
            Ok(reason) => reason,
            Err(_) => self.process.kill().await,
        }
    }

    /// Says how the instances ended that the worker cannot speak for any more; what they left so far is kept.
    async fn end_unfinished(&mut self, exit: &Exit) {
        let started_ms = self.shared.started_ms.load(Ordering::Relaxed);
        for id in std::mem::take(&mut self.unfinished) {
            let left = self.files.left(&id);
            let ended = Ended {
                exit: exit.clone(),
                usage: Usage::default(),
                started_ms,
                ended_ms: wall_ms(),
                left,
                limits_met: Vec::new(),
                adopted: None,
                network: None,
            };
            let _ = self.events.send(CellEvent::Ended { id, ended }).await;
        }
    }
}

/// Returns the wall time in milliseconds since 1970.
fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
