//! Runners of several kinds as one: an execution may have instances of each on one lablet.
//!
//! A cell is split by kind, every part goes to its runner, and what the parts say is said as one. To each other the parts
//! are what cells of other lablets are: a packet that one has for an instance of another goes there, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use iptl_dag::Cid;
use iptl_dag::model::{InstanceId, WorkloadKind};
use iptl_labnet::{Batch, Directory};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cell::{
    CellControl, CellEvent, CellInput, CellSpec, ExecError, ExecOrder, ExecStream, Origin, PreparedCell,
};
use crate::runner::{PrepareError, Runner};

/// Events of all parts that the reader of a cell may lag behind.
const EVENT_QUEUE: usize = 1024;

/// The runners of a lablet, one of each kind at most.
#[derive(Clone, Default)]
pub struct Runners {
    by_kind: BTreeMap<WorkloadKind, Arc<dyn Runner>>,
}

impl Runners {
    /// Collects runners; of two of one kind the later one is kept.
    pub fn new(runners: impl IntoIterator<Item = Arc<dyn Runner>>) -> Runners {
        Runners { by_kind: runners.into_iter().map(|runner| (runner.kind(), runner)).collect() }
    }

    /// Returns the runner of a kind.
    pub fn get(&self, kind: WorkloadKind) -> Option<&Arc<dyn Runner>> {
        self.by_kind.get(&kind)
    }

    /// Returns all of them, in the order of their kinds.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Runner>> {
        self.by_kind.values()
    }

    /// Makes every instance of a cell ready, as [`Runner::prepare`] does.
    ///
    /// # Errors
    ///
    /// Fails as the first runner that does, and where there is none for a kind; nothing is left running.
    pub async fn prepare(&self, cell: CellSpec) -> Result<PreparedCell, PrepareError> {
        let directory = directory(&cell)?;
        let mut preparing = JoinSet::new();
        for (kind, part) in split(cell) {
            let runner = Arc::clone(self.get(kind).ok_or(PrepareError::NoRunner { kind })?);
            let instances = part.instances.iter().map(|i| i.id.clone()).collect();
            preparing.spawn(async move { runner.prepare(part).await.map(|cell| (instances, cell)) });
        }
        let mut parts = Vec::new();
        while let Some(prepared) = preparing.join_next().await {
            // Leaving drops the others, prepared or not, and that gives them up.
            parts.push(prepared.map_err(|e| PrepareError::WorkerDied { reason: e.to_string() })??);
        }
        Ok(join(parts, directory))
    }

    /// Takes over what an earlier life of the lablet started, as [`Runner::adopt`] does. The second value names the
    /// instances of which nothing is left.
    ///
    /// # Errors
    ///
    /// Fails as the first runner that does; what runs goes on.
    pub async fn adopt(&self, cell: CellSpec) -> Result<(Option<PreparedCell>, BTreeSet<InstanceId>), PrepareError> {
        let directory = directory(&cell)?;
        let (mut parts, mut gone) = (Vec::new(), BTreeSet::new());
        for (kind, part) in split(cell) {
            let instances: BTreeSet<InstanceId> = part.instances.iter().map(|i| i.id.clone()).collect();
            let adopted = match self.get(kind) {
                Some(runner) => runner.adopt(part).await?,
                None => None,
            };
            match adopted {
                Some(cell) => parts.push((instances, cell)),
                None => gone.extend(instances),
            }
        }
        Ok(((!parts.is_empty()).then(|| join(parts, directory)), gone))
    }

    /// Removes what an earlier life of the lablet left, as [`Runner::reap`] does.
    pub async fn reap(&self, keep: &BTreeSet<Origin>) {
        for runner in self.iter() {
            runner.reap(keep).await;
        }
    }

    /// Keeps workers ready, as [`Runner::warm`] does.
    pub async fn warm(&self) {
        for runner in self.iter() {
            runner.warm().await;
        }
    }

    /// Lets go of what is kept of a workload, as [`Runner::forget`] does.
    pub async fn forget(&self, workload: &Cid) -> bool {
        let mut all = true;
        for runner in self.iter() {
            all &= runner.forget(workload).await;
        }
        all
    }

    /// Lets go of everything, as [`Runner::leave`] does.
    pub async fn leave(&self) {
        for runner in self.iter() {
            runner.leave().await;
        }
    }

    /// Ends everything, as [`Runner::shutdown`] does.
    pub async fn shutdown(&self) {
        for runner in self.iter() {
            runner.shutdown().await;
        }
    }
}

impl std::fmt::Debug for Runners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|runner| runner.version())).finish()
    }
}

/// Splits a cell by the kinds of its instances; a cell without any stays one of Wasm.
fn split(mut cell: CellSpec) -> BTreeMap<WorkloadKind, CellSpec> {
    let mut instances = BTreeMap::<WorkloadKind, Vec<_>>::new();
    for instance in std::mem::take(&mut cell.instances) {
        instances.entry(instance.kind).or_default().push(instance);
    }
    if instances.is_empty() {
        instances.insert(WorkloadKind::Wasm, Vec::new());
    }
    instances.into_iter().map(|(kind, instances)| (kind, CellSpec { instances, ..cell.clone() })).collect()
}

fn directory(cell: &CellSpec) -> Result<Directory, PrepareError> {
    Directory::new(&cell.groups).map_err(|e| PrepareError::BadNetwork { reason: e.to_string() })
}

/// Makes one cell of its parts.
fn join(mut parts: Vec<(BTreeSet<InstanceId>, PreparedCell)>, directory: Directory) -> PreparedCell {
    if parts.len() == 1
        && let Some((_, cell)) = parts.pop()
    {
        return cell;
    }
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let mut running = JoinSet::new();
    let (controls, said): (Vec<_>, Vec<_>) = parts
        .into_iter()
        .map(|(instances, cell)| (Part { instances, control: Arc::from(cell.control) }, cell.events))
        .unzip();
    let together = Arc::new(Together { parts: controls, directory });
    for (number, part) in said.into_iter().enumerate() {
        running.spawn(forward(number, part, events.clone(), Arc::downgrade(&together)));
    }
    tokio::spawn(async move {
        while running.join_next().await.is_some() {}
        // A reader that is gone wants to hear nothing.
        let _gone = events.send(CellEvent::CellOver).await;
    });
    PreparedCell { control: Box::new(Handle(together)), events: receiver }
}

/// Hands on what a part says, up to its end, which is not the end of the cell. Packets for another part go to that one:
/// it takes them whatever its own reader does, so that two parts do not wait for each other.
async fn forward(
    number: usize,
    mut part: mpsc::Receiver<CellEvent>,
    cell: mpsc::Sender<CellEvent>,
    together: Weak<Together>,
) {
    while let Some(event) = part.recv().await {
        let events = match event {
            CellEvent::Packets(batch) => {
                let (here, elsewhere) = for_parts(number, batch, &together);
                for (control, batch) in here {
                    control.input(vec![CellInput::Packets(batch)]).await;
                }
                elsewhere.map(CellEvent::Packets)
            }
            event => Some(event),
        };
        let Some(event) = events else { continue };
        if matches!(event, CellEvent::CellOver) || cell.send(event).await.is_err() {
            return;
        }
    }
}

/// Packets for another part, with its control.
type ForPart = (Arc<dyn CellControl>, Batch);

/// Sorts packets of a part by who has the instances for which they are: other parts of the cell, or other cells. Nothing is
/// held of the parts meanwhile but their controls, which the cell's reader may let go of.
fn for_parts(number: usize, batch: Batch, together: &Weak<Together>) -> (Vec<ForPart>, Option<Batch>) {
    let Some(together) = together.upgrade() else { return (Vec::new(), Some(batch)) };
    let part = |packet: &Bytes| {
        let id = together.directory.destination(packet).and_then(|dst| together.directory.instance(dst));
        Some(id.and_then(|id| together.with(&id)).filter(|part| *part != number))
    };
    let (mut here, mut elsewhere) = (Vec::new(), None);
    for (part, batch) in batch.split(part) {
        match part {
            Some(part) => here.push((Arc::clone(&together.parts[part].control), batch)),
            None => elsewhere = Some(batch),
        }
    }
    (here, elsewhere)
}

struct Part {
    instances: BTreeSet<InstanceId>,
    control: Arc<dyn CellControl>,
}

/// A cell of several parts.
struct Together {
    parts: Vec<Part>,
    directory: Directory,
}

/// The control of a cell of several parts; the only one that holds it for longer than a packet takes.
struct Handle(Arc<Together>);

impl Together {
    /// Returns the number of the part that has an instance.
    fn with(&self, id: &InstanceId) -> Option<usize> {
        self.parts.iter().position(|part| part.instances.contains(id))
    }

    /// Returns the number of the part that has an instance for which a packet is.
    fn for_whom(&self, packet: &Bytes) -> Option<usize> {
        self.with(&self.directory.instance(self.directory.destination(packet)?)?)
    }
}

#[async_trait]
impl CellControl for Handle {
    async fn start(&self) {
        for part in &self.0.parts {
            part.control.start().await;
        }
    }

    async fn stop(&self, reason: String) {
        for part in &self.0.parts {
            part.control.stop(reason.clone()).await;
        }
    }

    async fn input(&self, inputs: Vec<CellInput>) {
        let mut of_parts: Vec<Vec<CellInput>> = self.0.parts.iter().map(|_| Vec::new()).collect();
        for input in inputs {
            match input {
                CellInput::Sync(reply) => {
                    if let Some(number) = self.0.with(reply.target().0) {
                        of_parts[number].push(CellInput::Sync(reply));
                    }
                }
                CellInput::Packets(batch) => {
                    for (number, batch) in batch.split(|packet| self.0.for_whom(packet)) {
                        of_parts[number].push(CellInput::Packets(batch));
                    }
                }
                // Each part passes over what concerns none of its instances.
                CellInput::Cut(addrs) => {
                    of_parts.iter_mut().for_each(|of_part| of_part.push(CellInput::Cut(addrs.clone())));
                }
            }
        }
        for (part, of_part) in self.0.parts.iter().zip(of_parts) {
            if !of_part.is_empty() {
                part.control.input(of_part).await;
            }
        }
    }

    fn worker_pid(&self) -> Option<u32> {
        self.0.parts.iter().find_map(|part| part.control.worker_pid())
    }

    async fn exec(&self, order: ExecOrder) -> Result<ExecStream, ExecError> {
        match self.0.with(&order.id) {
            Some(number) => self.0.parts[number].control.exec(order).await,
            None => Err(ExecError::NotRunning(order.id)),
        }
    }
}
