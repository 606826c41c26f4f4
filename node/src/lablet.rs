//! The lablet of a node: one task owns the scheduler's core and the cells that it runs.
//!
//! [`driver`] is that task, with `held`, what it does for the cells that it holds; `session` keeps the stream to the
//! orchestrator, `offers` hears what is offered, `prepare` turns a grant into a cell with what `content` brings and
//! `artifacts` makes files of, `cell` runs it, `exec` lets people execute commands in it, which `interventions` notes,
//! `receipts` writes what it left.
//! `journal` is what survives a crash; with it, `memory` and `lease`, the next life of the lablet takes over by `adopt`
//! what outlived this one.

mod adopt;
mod artifacts;
mod cell;
mod content;
mod driver;
mod egress;
mod exec;
mod faults;
mod held;
mod interventions;
mod journal;
mod lease;
mod memory;
mod offers;
mod prepare;
mod receipts;
mod session;
mod ways;

use std::collections::BTreeMap;

use iptl_dag::model::{Epoch, ExecutionId, InstanceId, Run, Signed, Way, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_runner::Ended;
use iptl_wire::Timestamp;
use iptl_wire::control::Failure;
use iptl_wire::exec::ExecOrder;
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Hello, Slots, SyncDown, ToLablet, ToOrchestrator, Welcome};
use tokio::sync::{mpsc, oneshot};

pub(crate) use cell::Routes;
pub(crate) use driver::{Parts, start};
use exec::Permit;

/// What the driver is told.
pub(crate) enum Command {
    /// Asks for hello as it would be said now.
    Hello { answer: oneshot::Sender<Box<Hello>> },
    /// The orchestrator answered hello.
    Up {
        orchestrator: PeerId,
        hello_at: Timestamp,
        /// Term that the hello said was promised.
        promised: Option<Epoch>,
        welcome: Welcome,
        out: mpsc::Sender<ToOrchestrator>,
    },
    /// The session with it ended.
    Down { orchestrator: PeerId },
    /// The orchestrator said something.
    Message { from: PeerId, message: ToLablet },
    /// Sync for a cell.
    Sync { execution: ExecutionId, down: SyncDown },
    /// An offer was heard.
    Offer(Signed<Offer>),
    /// A cell is prepared.
    Prepared { cell: CellRef, run: Box<Run>, prepared: iptl_runner::PreparedCell, ways: Vec<Way> },
    /// A cell could not be prepared.
    PrepareFailed { cell: CellRef, reason: String, unfit: bool },
    /// Instances ended.
    Ended { cell: CellRef, ended: Vec<(InstanceId, Ended)> },
    /// All instances of a cell ended and were told.
    CellOver { cell: CellRef },
    /// Receipts are in the store.
    Sealed { cell: CellRef, shards: Vec<(Cid, u32)> },
    /// Receipts could not be written.
    SealFailed { cell: CellRef, reason: String },
    /// Somebody wants to execute a command in an instance: may they?
    Exec { order: ExecOrder, answer: oneshot::Sender<Result<Permit, Failure>> },
    /// What is going on?
    Status { answer: oneshot::Sender<LabletStatus> },
    /// Finishes or drops its work, then answers.
    Drain { now: bool, answer: oneshot::Sender<()> },
}

/// What a lablet does.
#[derive(Clone, Debug)]
pub(crate) struct LabletStatus {
    pub(crate) online: bool,
    pub(crate) slots: BTreeMap<WorkloadKind, Slots>,
    pub(crate) cells: Vec<(ExecutionId, u32, u32)>,
}

/// The way to a node's lablet.
#[derive(Clone)]
pub(crate) struct LabletHandle {
    commands: mpsc::Sender<Command>,
}

impl LabletHandle {
    /// Asks what is going on; none where the lablet has stopped.
    pub(crate) async fn status(&self) -> Option<LabletStatus> {
        let (answer, received) = oneshot::channel();
        self.commands.send(Command::Status { answer }).await.ok()?;
        received.await.ok()
    }

    /// Takes no new work and returns once no cell is left; `now` stops them.
    pub(crate) async fn drain(&self, now: bool) {
        let (answer, received) = oneshot::channel();
        if self.commands.send(Command::Drain { now, answer }).await.is_ok() {
            let _stopped = received.await;
        }
    }
}
