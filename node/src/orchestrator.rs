//! The orchestrator of a node: one task owns the scheduler's core and everything that belongs to it.
//!
//! `candidacy` decides whether this node leads its lab or follows who does. Where it leads, [`driver`] is the task that
//! owns the core, with `sync` for what instances say to each other and `answers` for who asks; `sessions` brings lablets
//! to it, `lead` the orchestrators that follow (to whom `replicate` tells all facts, and `leave` hands over),
//! [`registry`] remembers what is told about executions, and `records` how they ended, `seal` fetches receipts and makes results, `replay` begins with
//! what logs say, `ends` looks for what others ended, `fetching` sums up how far lablets are,
//! `locate` and `top` answer who looks into a run, `health` remembers what was seen to work, and `canary`
//! sees to it where nobody executes. Where it does not lead, `follow` keeps the logs of who leads, and `wants` what they
//! name. Everybody else talks to it by [`OrchestratorHandle`].

mod answers;
mod canary;
mod candidacy;
mod driver;
mod ends;
mod fetching;
mod follow;
mod health;
mod lead;
mod leave;
mod locate;
mod records;
mod registry;
mod replay;
mod replicate;
mod seal;
mod sealed;
mod sessions;
mod sync;
mod top;
mod wants;

use std::sync::Arc;

use iptl_dag::model::{Epoch, Execution, ExecutionId, InstanceId};
use iptl_dag::{Block, Cid, PeerId};
use iptl_scheduler::log::Tail;
use iptl_scheduler::{AssembledResult, Placed, ReceiptSummary};
use iptl_wire::control::{Event, Failure, FollowerRow, Top};
use iptl_wire::session::{Hello, Inventory, KnownRun, OutputLine, ToOrchestrator};
use iptl_wire::takeover::Finished;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use candidacy::start;
pub(crate) use driver::{OrchestratorError, Parts};
use ends::NoEnd;
use follow::Progress;
pub(crate) use health::Health;
pub(crate) use records::RunRecord;
pub(crate) use registry::Watching;
use replicate::Newcomer;
use sessions::Outbox;

/// Number of a follow stream.
pub(crate) type Number = u64;

/// Commands that wait for the driver; whoever has more waits with them.
const COMMAND_QUEUE: usize = 4096;

/// What the driver is told.
#[expect(clippy::large_enum_variant, reason = "a command is made, handled and gone; the queue is short")]
pub(crate) enum Command {
    /// A lablet opened a session.
    Hello { from: PeerId, session: u64, hello: Box<Hello>, outbox: Outbox },
    /// A lablet said something.
    Message { from: PeerId, session: u64, message: ToOrchestrator },
    /// A session ended.
    Gone { from: PeerId, session: u64 },
    /// A chunk of receipts is here.
    Pulled { execution: ExecutionId, lablet: PeerId, shard: Cid, receipts: Vec<ReceiptSummary> },
    /// A chunk of receipts could not be had.
    PullFailed { execution: ExecutionId, lablet: PeerId, shard: Cid, reason: String, retry: bool },
    /// A result is stored.
    Assembled { execution: ExecutionId, result: Box<AssembledResult> },
    /// A result could not be made.
    AssembleFailed { execution: ExecutionId, reason: String, may_pass: bool },
    /// Another orchestrator follows.
    Followed { newcomer: Newcomer },
    /// It has everything up to a beat.
    Has { peer: PeerId, number: Number, beat: u64, missing: u32 },
    /// Its stream ended.
    Unfollowed { peer: PeerId, number: Number },
    /// It was asked who leads, and what it said is known; or it did not answer.
    Answered { peer: PeerId },
    /// What is told of an end that another orchestrator gave an execution; or why that is not what it was said to be.
    Adopted { end: Finished, last: Result<Box<Event>, NoEnd> },
    /// Somebody asks something.
    Ask(Ask),
}

/// What is asked of the driver, each with the place for its answer.
pub(crate) enum Ask {
    Submit {
        execution: Execution,
        run: Box<KnownRun>,
        by: PeerId,
        priority: i32,
        answer: oneshot::Sender<ExecutionId>,
    },
    DryRun {
        run: Box<KnownRun>,
        answer: oneshot::Sender<DryRun>,
    },
    Watch {
        name: String,
        answer: oneshot::Sender<Result<(ExecutionId, Watching), Failure>>,
    },
    Follow {
        id: ExecutionId,
        answer: oneshot::Sender<Option<broadcast::Receiver<OutputLine>>>,
    },
    /// What an execution does now; its lablets are asked what they use.
    Top {
        name: String,
        answer: oneshot::Sender<Result<Top, Failure>>,
    },
    /// Where an instance runs in which `by` wants to execute something; nobody means the lab's owner.
    Locate {
        name: String,
        instance: InstanceId,
        by: Option<PeerId>,
        answer: oneshot::Sender<Result<(ExecutionId, PeerId), Failure>>,
    },
    Cancel {
        name: String,
        by: PeerId,
        answer: oneshot::Sender<Result<Cancelled, Failure>>,
    },
    /// The log of an execution, as it is on disk.
    Audit {
        name: String,
        answer: oneshot::Sender<Result<ReadLog, Failure>>,
    },
    Find {
        name: String,
        answer: oneshot::Sender<Result<(ExecutionId, Option<RunRecord>), Failure>>,
    },
    Runs {
        answer: oneshot::Sender<Vec<RunRow>>,
    },
    Lablets {
        answer: oneshot::Sender<Vec<LabletRow>>,
    },
    /// Another orchestrator is to lead: this one, or the first in rank that follows. Answered with its term.
    HandOver {
        to: Option<PeerId>,
        answer: oneshot::Sender<Result<Epoch, Failure>>,
    },
    /// How far those are that follow.
    Followers {
        answer: oneshot::Sender<Vec<FollowerRow>>,
    },
}

/// What a cancel found.
pub(crate) struct Cancelled {
    pub(crate) execution: ExecutionId,
    /// It was over before.
    pub(crate) over: bool,
}

/// A log as it is on disk.
pub(crate) struct ReadLog {
    pub(crate) id: ExecutionId,
    /// Orchestrators that may have written it.
    pub(crate) writers: Vec<PeerId>,
    /// Facts that are whole, oldest first.
    pub(crate) blocks: Vec<Block>,
    pub(crate) tail: Tail,
}

/// A placement that would be made now.
pub(crate) struct DryRun {
    pub(crate) placed: Placed,
    pub(crate) names: std::collections::BTreeMap<PeerId, String>,
}

/// An execution in a list.
#[expect(clippy::large_enum_variant, reason = "a list holds few that go on")]
pub(crate) enum RunRow {
    /// It goes on.
    Active {
        id: ExecutionId,
        run: Option<Cid>,
        plan: Option<Cid>,
        case: Option<String>,
        submitted_ms: u64,
        instances: u64,
        ended: u64,
        phase: String,
    },
    /// It is over.
    Ended(Box<RunRecord>),
}

/// A lablet in a list.
pub(crate) struct LabletRow {
    pub(crate) peer: PeerId,
    pub(crate) inventory: Inventory,
    /// Whether its lease holds.
    pub(crate) ready: bool,
    /// Whether it is expected back since a restart or a takeover, and was not heard yet.
    pub(crate) unknown: bool,
    pub(crate) version: String,
}

/// The way to a node's orchestrator.
#[derive(Clone)]
pub(crate) struct OrchestratorHandle {
    driver: watch::Receiver<Option<mpsc::Sender<Command>>>,
    progress: watch::Receiver<Progress>,
    /// What was seen to work.
    pub(crate) health: Arc<Health>,
}

/// The orchestrator does not lead, or no longer: its log cannot be written, the node stops, or another one leads.
#[derive(Debug, thiserror::Error)]
#[error("this orchestrator does not lead the lab")]
pub(crate) struct Stopped;

impl OrchestratorHandle {
    /// Whether it leads the lab.
    pub(crate) fn leads(&self) -> bool {
        self.driver.borrow().is_some()
    }

    /// Returns once it leads the lab, or never will: the node ends. Cancel safe.
    pub(crate) async fn takes_up(&self) {
        let mut driver = self.driver.clone();
        let _ends = driver.wait_for(Option::is_some).await;
    }

    /// Returns a way to it on which it does not lead before the second value is called.
    #[cfg(test)]
    pub(crate) fn before_it_leads(&self) -> (OrchestratorHandle, impl FnOnce() + use<>) {
        let (leads, driver) = watch::channel(None);
        let commands = self.driver.borrow().clone();
        (OrchestratorHandle { driver, ..self.clone() }, move || drop(leads.send_replace(commands)))
    }

    /// Returns how far it follows, where it does not lead.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Asks and waits for the answer. Cancel safe: a question whose answer nobody waits for is answered all the same.
    pub(crate) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Stopped> {
        let (answer, received) = oneshot::channel();
        let driver = self.driver.borrow().clone().ok_or(Stopped)?;
        driver.send(Command::Ask(question(answer))).await.map_err(|_| Stopped)?;
        received.await.map_err(|_| Stopped)
    }
}
