//! What goes into an orchestrator core and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_dag::model::{
    CannotStart, Counts, Distortion, Epoch, Execution, ExecutionId, Exit, Fact, FactKind, InstanceId, LabletRecord,
    Placement, ResultVerdict,
};
use iptl_dag::{Cid, PeerId};
use iptl_wire::Verified;
use iptl_wire::control::Event;
use iptl_wire::offer::Offer;
use iptl_wire::session::{Grant, Hello, KnownRun, ToLablet, ToOrchestrator};
use iptl_wire::takeover::Finished;

/// How much longer leases last where another orchestrator follows: a candidate claims after a lease of silence, one that is
/// ranked behind it after one and a half, and lablets need a moment to turn.
pub const FOLLOWED_LEASES: u32 = 2;

/// Names, times and bounds of an orchestrator; all times in milliseconds.
#[derive(Clone, Debug)]
pub struct OrchestratorConfig {
    /// This orchestrator.
    pub peer: PeerId,
    /// The lab's key.
    pub lab: PeerId,
    /// The lab's name, for people.
    pub lab_name: String,
    /// Time between heartbeats while the lab is small; it grows so that `heartbeats_per_s` is kept.
    pub heartbeat_ms: u32,
    /// Heartbeats that a lease lasts: some may be lost, so many in a row mean that the lablet is gone.
    pub lease_heartbeats: u32,
    /// Most heartbeats per second over all lablets.
    pub heartbeats_per_s: u32,
    /// Time between repetitions of an offer.
    pub offer_repeat_ms: u64,
    /// Time that an offer is valid on the wall clock.
    pub offer_ttl_ms: u64,
    /// Time that a placed lablet has to confirm by a bid before others are asked in its place.
    pub bid_timeout_ms: u64,
    /// Time that a lablet has to take a grant.
    pub accept_timeout_ms: u64,
    /// Time that a cell has to get prepared, blocks included.
    pub prepare_timeout_ms: u64,
    /// Time that a run may wait for lablets that could hold it on an otherwise empty lab.
    pub capacity_timeout_ms: u64,
    /// Time that lost instances may wait for another lablet, where the run allows another attempt.
    pub replace_timeout_ms: u64,
    /// Time before the second attempt of an instance; twice as long before each further one.
    pub rerun_backoff_ms: u64,
    /// Longest time before another attempt.
    pub max_backoff_ms: u64,
    /// Time that stopped cells have to hand in their receipts.
    pub stop_grace_ms: u64,
    /// Time between attempts to pull receipts or to assemble a result.
    pub retry_ms: u64,
    /// Rounds of grants before start, the first included; then the lab is declared unable.
    pub max_rounds: u32,
    /// Most instances of a run.
    pub max_instances: u64,
    /// Seed of the jitter in leases.
    pub seed: u64,
    /// Term in which it leads; none in a lab that never had a second orchestrator. `TakeOver` sets it.
    pub term: Option<Epoch>,
}

impl OrchestratorConfig {
    /// Returns the configuration that a lab has where nobody says otherwise.
    pub fn new(peer: PeerId, lab: PeerId, lab_name: String) -> OrchestratorConfig {
        OrchestratorConfig {
            peer,
            lab,
            lab_name,
            heartbeat_ms: 1_000,
            lease_heartbeats: 5,
            heartbeats_per_s: 50,
            offer_repeat_ms: 2_000,
            offer_ttl_ms: 30_000,
            bid_timeout_ms: 1_000,
            accept_timeout_ms: 5_000,
            prepare_timeout_ms: 120_000,
            capacity_timeout_ms: 30_000,
            replace_timeout_ms: 30_000,
            rerun_backoff_ms: 1_000,
            max_backoff_ms: 30_000,
            stop_grace_ms: 5_000,
            retry_ms: 1_000,
            max_rounds: 5,
            max_instances: 1_000_000,
            seed: 0,
            term: None,
        }
    }
}

/// What a log's first fact stands for: the nodes that `Submitted` links.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The execution.
    pub execution: Execution,
    /// Its run.
    pub run: KnownRun,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Someone wants a run executed. The blocks of execution and run are stored.
    Submit {
        /// The execution; its nonce makes it new.
        execution: Execution,
        /// The run.
        run: KnownRun,
        /// Who asks.
        by: PeerId,
        /// Its place before others: the higher goes first.
        priority: i32,
    },
    /// A lablet opened a session and was found to be a member; the claim that it promised was checked.
    Hello {
        /// The lablet.
        from: PeerId,
        /// The driver's number for the stream.
        session: u64,
        /// What it said.
        hello: Verified<Hello>,
    },
    /// A session ended.
    Gone {
        /// The lablet.
        from: PeerId,
        /// The driver's number for the stream; that of an older session does nothing.
        session: u64,
    },
    /// A lablet said something on its current session. `Hello`, `Sync` and `Output` do nothing here.
    Message {
        /// The lablet.
        from: PeerId,
        /// What it said.
        message: Verified<ToOrchestrator>,
    },
    /// A chunk of receipts is here, with everything that it links, verified and pinned.
    Pulled {
        /// Execution.
        execution: ExecutionId,
        /// Lablet that announced it.
        lablet: PeerId,
        /// The chunk.
        shard: Cid,
        /// Its receipts, each signed by `lablet`.
        receipts: Vec<ReceiptSummary>,
    },
    /// A chunk of receipts could not be had.
    PullFailed {
        /// Execution.
        execution: ExecutionId,
        /// Lablet that announced it.
        lablet: PeerId,
        /// The chunk.
        shard: Cid,
        /// Why.
        reason: String,
        /// Whether it may still come: false where what came was wrong.
        retry: bool,
    },
    /// The result is made and stored.
    Assembled {
        /// Execution.
        execution: ExecutionId,
        /// The result.
        result: AssembledResult,
    },
    /// The result could not be made or stored.
    AssembleFailed {
        /// Execution.
        execution: ExecutionId,
        /// Why.
        reason: String,
        /// Whether it may work later: the disk is full, say. It is tried until it does.
        may_pass: bool,
    },
    /// Someone wants an execution to end.
    Cancel {
        /// Execution.
        execution: ExecutionId,
        /// Who asks.
        by: PeerId,
    },
    /// The wall clock, read together with `now`: at start, then at least every minute and after every jump.
    Wall {
        /// Microseconds since 1970.
        unix_us: u64,
    },
    /// Facts of logs that were found at start, each in the order of its log, as many at once as the driver likes. Before
    /// anything but `Wall`.
    Replay {
        /// The facts.
        facts: Vec<Fact>,
        /// What a `Submitted` fact among them links, of which there is one at most; none where there is none.
        submission: Option<Box<Submission>>,
    },
    /// How long ago executions were submitted and started, by a clock that nobody sets: after their facts were replayed,
    /// before `Replayed`. What is not known goes by the wall clock.
    Aged {
        /// Execution.
        execution: ExecutionId,
        /// Since its submission.
        submitted: Option<Duration>,
        /// Since its start.
        started: Option<Duration>,
    },
    /// An execution is over whose log is laid aside, of this orchestrator or of one before: whoever asks is told. Between
    /// `Replay` and `Replayed`, and whenever the end of a later term was found to be what it is said to be. It does
    /// nothing where the execution goes on, or where an end of a later term is known.
    Over(Finished),
    /// Other orchestrators follow from now on, or none does. Where one does, leases last [`FOLLOWED_LEASES`] times as
    /// long: who takes over is heard before they run out, and what runs goes on.
    Followed {
        /// Whether one does.
        is_followed: bool,
    },
    /// All logs were replayed: go on from here.
    Replayed,
    /// All logs that are here of the orchestrator before were replayed: go on from here in a new term, which is
    /// durable. Instead of `Replayed`; said again by a later life where `Reconciled` did not come.
    TakeOver {
        /// The term; its peer is this orchestrator.
        term: Epoch,
        /// Lablets that may hold something: those that the one before named, and all that are known of it.
        lablets: BTreeSet<PeerId>,
        /// Whether the one before handed over, so that its logs are whole.
        handed_over: bool,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// What the core needs to know of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptSummary {
    /// Instance.
    pub instance: InstanceId,
    /// Attempt.
    pub attempt: u32,
    /// Term of the grant under which it ran.
    pub epoch: Epoch,
    /// How it ended.
    pub exit: Exit,
}

/// What the driver made of an [`AssemblyOrder`].
#[derive(Clone, Debug, PartialEq)]
pub struct AssembledResult {
    /// The result node.
    pub cid: Cid,
    /// Its verdict.
    pub verdict: ResultVerdict,
    /// Instances by how they ended.
    pub counts: Counts,
    /// Thresholds: text, what was measured, whether it holds.
    pub thresholds: Vec<(String, Option<f64>, bool)>,
    /// Why it is inconclusive.
    pub inconclusive: Vec<String>,
    /// Instances that failed or were lost, at most twenty, with their causes.
    pub failures: Vec<(String, String)>,
    /// What else is to be known: losses that the plan accepts, further attempts, an early end.
    pub notes: Vec<String>,
}

/// One thing to do. Effects are carried out in order; an effect after a `Persist` waits until that fact is durable.
///
/// The effects of one input come as placements to store, then facts, then acts: one sync makes all its facts durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Appends a fact to the execution's log. Blocks that it names are flushed first.
    Persist {
        /// Execution.
        execution: ExecutionId,
        /// Term in which the fact is written.
        epoch: Epoch,
        /// The fact.
        kind: FactKind,
    },
    /// Sends a message on the lablet's current session; without one it is dropped. The driver stamps `wall_us` of a
    /// lease renewal when it writes it. Never a grant.
    Send {
        /// Lablet.
        to: PeerId,
        /// Message.
        message: ToLablet,
    },
    /// Signs a grant and sends it.
    SendGrant {
        /// Lablet.
        to: PeerId,
        /// Grant.
        grant: Grant,
    },
    /// Answers a hello: signs the offers and adds the certificate.
    Welcome {
        /// Lablet.
        to: PeerId,
        /// The session that is now the lablet's current one; an older one is closed.
        session: u64,
        /// Time between heartbeats.
        heartbeat_ms: u32,
        /// Lease from the sending of the hello.
        lease_ms: u32,
        /// Offers that are open.
        offers: Vec<Offer>,
        /// Term in which this orchestrator leads: the driver adds its claim of it.
        term: Option<Epoch>,
    },
    /// Answers a hello with `Turned`, then closes that session; others of the same peer stay.
    Turn {
        /// Peer.
        to: PeerId,
        /// The session.
        session: u64,
        /// Why.
        reason: String,
    },
    /// Signs an offer and publishes it by gossip.
    PublishOffer(Offer),
    /// Stores the block of a placement.
    StorePlacement(Placement),
    /// Fetches a chunk of receipts with everything that it links, from `lablet` or the store; `Pulled` or
    /// `PullFailed` answers.
    Pull {
        /// Execution.
        execution: ExecutionId,
        /// Lablet that announced it.
        lablet: PeerId,
        /// The chunk.
        shard: Cid,
    },
    /// Makes and stores the result; `Assembled` or `AssembleFailed` answers.
    Assemble(Box<AssemblyOrder>),
    /// Tells those who watch.
    Notify {
        /// Execution.
        execution: ExecutionId,
        /// What happened.
        event: Event,
    },
    /// Another orchestrator had ended an execution, as a lablet was told. One that went on here is over: its result is
    /// fetched and told to those who watch, as that of any other. One that was over has another end of a later term: it
    /// is fetched, and counts once `Over` says that it is what the lablet says. It is said again until then.
    Adopt(Finished),
    /// Every lablet was asked what it holds, or was waited for: a later life needs no `TakeOver` for this term.
    Reconciled,
    /// Somebody leads in a later term, as a lablet says: nothing follows. The driver's candidate hears of it.
    StepDown {
        /// The term.
        term: Epoch,
    },
    /// Ends a lablet's current session.
    Close {
        /// Lablet.
        lablet: PeerId,
        /// Why.
        reason: String,
    },
}

/// All that a result and its attestation are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct AssemblyOrder {
    /// The execution's name.
    pub execution: ExecutionId,
    /// The execution.
    pub node: Execution,
    /// The run.
    pub run: KnownRun,
    /// Chunks of receipts that were pinned, with the lablet that each came from.
    pub shards: Vec<(PeerId, Cid)>,
    /// The receipt that came first for each instance that ended: lablet and attempt. Where `shards` hold more of it, the rule
    /// of results says which counts.
    pub accepted: BTreeMap<InstanceId, (PeerId, u32)>,
    /// Instances without a receipt that counts, with the reason.
    pub missing: BTreeMap<InstanceId, String>,
    /// Placements, oldest first.
    pub placements: Vec<Cid>,
    /// Wall time of submission in milliseconds since 1970.
    pub submitted_ms: u64,
    /// Wall time of the start; zero where nothing was started.
    pub started_ms: u64,
    /// Wall time at which the last receipt was in.
    pub ended_ms: u64,
    /// Lablets that were granted instances.
    pub lablets: Vec<LabletRecord>,
    /// What the lab itself did to the figures, as far as the core saw it.
    pub distortions: Vec<Distortion>,
    /// Who cancelled it.
    pub cancelled: Option<PeerId>,
    /// Whether the run's time was over.
    pub timed_out: bool,
    /// Why the plan had it ended before it was over.
    pub ended_early: Option<String>,
    /// Why nothing was ever started.
    pub cannot_start: Option<CannotStart>,
    /// Last attempt of every instance that was granted more than once after the start.
    pub attempts: BTreeMap<InstanceId, u32>,
    /// Term of the lab in which this orchestrator leads; none where the lab has none.
    pub term: Option<Epoch>,
}
