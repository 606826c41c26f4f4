//! The session between a lablet and an orchestrator: one stream, opened by the lablet, messages both ways.

use std::collections::BTreeMap;
use std::iter::Sum;

use bytes::Bytes;
use iptl_dag::model::signed::{Signable, Signed};
use iptl_dag::model::{Assignment, Epoch, ExecutionId, FaultDone, InstanceId, Run, Way, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use serde::{Deserialize, Serialize};

use crate::lab::{Certificate, MemberToken};
use crate::offer::Offer;
use crate::takeover::{Claim, Finished, Orchestrators};

/// Protocol ID of the session stream.
pub const PROTOCOL: &str = "/iptl/session/1";

/// Largest message of a session, in bytes: a grant of 10,000 instances over 1,000 lablets fits many times.
pub const MAX_MESSAGE_SIZE: usize = 4 << 20;

/// What a lablet says.
#[expect(clippy::large_enum_variant, reason = "messages are made, sent and gone; hello comes once in a session")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToOrchestrator {
    /// First message: who it is and what it holds.
    Hello(Hello),
    /// Sign of life; asks for the lease to be renewed.
    Heartbeat(Heartbeat),
    /// Wants instances of an offer.
    Bid(Bid),
    /// Takes a grant.
    Accept(CellRef),
    /// Gives a grant back, before or while it prepares.
    Refuse(CellRef, String),
    /// Found that the cell's content cannot run on any lablet: it is no component, or wants what nobody gives.
    Unfit(CellRef, String),
    /// Has every block and every instance of the cell ready to start.
    Prepared(CellRef),
    /// Started the cell.
    Started(CellRef),
    /// Receipts of finished instances are ready to be pulled.
    Receipts(ReceiptsReady),
    /// Sync of the cell's instances; opaque here, `iptl-sync` reads it.
    Sync(ExecutionId, SyncUp),
    /// Output of instances that somebody follows.
    Output(ExecutionId, Vec<OutputLine>),
    /// What the cell's instances use; answers a `gauge`.
    Usage(ExecutionId, CellUsage),
    /// How far the other lablets of the cell's placement are, before it is prepared; of a run with a network.
    Ways(CellRef, Vec<Way>),
    /// Faults of the run's schedules that were done in the cell. What was said before may be said again.
    Faults(CellRef, Vec<FaultDone>),
}

/// What an orchestrator says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToLablet {
    /// Answer to hello: the orchestrator's certificate, the lease and all open offers.
    Welcome(Welcome),
    /// Answer to hello: the lablet is not served, and why.
    Turned(String),
    /// The lease is renewed; answers the heartbeat of this number.
    Lease(LeaseRenewal),
    /// Instances are granted.
    Grant(Signed<Grant>),
    /// What was published just now, for a lablet that gossip may not reach yet.
    Offer(Signed<Offer>),
    /// The bid is not needed; sent after the winners accepted.
    NotNeeded(ExecutionId),
    /// All cells are prepared: start.
    Start(CellRef),
    /// Instances moved: the cell's directory of the lab network from now on.
    Directory(CellRef, Directory),
    /// End the cell's instances and send receipts.
    Stop(CellRef, String),
    /// Receipts are pinned by the orchestrator.
    Kept(CellRef, Cid),
    /// The execution is over: drop its pins.
    Finished(Finished),
    /// Sync for the cell's instances.
    Sync(ExecutionId, SyncDown),
    /// Send the output of these instances from now on, or stop sending it.
    Follow(ExecutionId, bool),
    /// Say what the cell's instances use now; answered at most once in a second.
    Gauge(ExecutionId),
    /// The orchestrators of the lab, where there are several: whom to turn to when this one is gone.
    Orchestrators(Orchestrators),
}

/// Most ways of a cell that are told: the slowest of them.
pub const MAX_WAYS: usize = 1024;

/// Most faults of a cell that are told: the first of them. Events of instances have all.
pub const MAX_FAULTS_TOLD: usize = 256;

/// Most instances of a cell that are named with what they use.
pub const MAX_BUSIEST: usize = 8;

/// What the instances of a cell use, summed up: never a row for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellUsage {
    /// Sums by group.
    pub groups: BTreeMap<String, GroupUsage>,
    /// The instances that use most, at most [`MAX_BUSIEST`].
    pub busiest: Vec<InstanceUsage>,
}

/// What the running instances of a group on a lablet use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupUsage {
    /// Instances that run.
    pub running: u32,
    /// CPU in thousandths of a processor over about the last second.
    pub cpu_milli: u64,
    /// CPU time so far in microseconds.
    pub cpu_us: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Bytes sent so far.
    pub sent_bytes: u64,
    /// Bytes received so far.
    pub received_bytes: u64,
}

/// What one instance uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceUsage {
    /// Instance.
    pub instance: InstanceId,
    /// CPU in thousandths of a processor over about the last second.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// A cell of an execution in a term: one per lablet and execution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellRef {
    /// Execution.
    pub execution: ExecutionId,
    /// Term of the grant.
    pub epoch: Epoch,
}

/// First message of a lablet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Its membership.
    pub token: Signed<MemberToken>,
    /// Version of its software.
    pub version: String,
    /// Differs at each start of the lablet: tells two machines with one identity from one that reconnects.
    #[serde(with = "serde_bytes")]
    pub boot: [u8; 16],
    /// What it can do.
    pub inventory: Inventory,
    /// Cells that it still holds from before.
    pub cells: Vec<CellStatus>,
    /// Claim of the highest term of the lab that it promised, durably; absent where the lab never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Signed<Claim>>,
    /// Executions that it was told to be over; absent in a lab of one orchestrator. At most
    /// [`MAX_FINISHED`](crate::takeover::MAX_FINISHED).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finished: Vec<Finished>,
}

/// Label under which a lablet says why it has no runner of containers, for people; it is no owner's to give.
pub const WITHOUT_DOCKER: &str = "iptl.without-docker";

/// What a lablet can do and has free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Name that its owner gave.
    pub name: String,
    /// Labels that its owner gave.
    pub labels: BTreeMap<String, String>,
    /// Logical processors.
    pub cpus: u32,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Memory in bytes that instances may still take.
    pub free_memory_bytes: u64,
    /// Instances of each kind that it can hold; a kind that is absent has no runner.
    pub slots: BTreeMap<WorkloadKind, Slots>,
    /// Addresses at which other lablets may dial it.
    pub addrs: Vec<String>,
    /// Whether its owner lets it take new work.
    pub draining: bool,
    /// Workloads that it has ready from work before, the latest first; of more than [`MAX_HOLDS`] the others count for
    /// nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Cid>,
}

/// Workloads that a lablet says to have: what it did in the last hours, in a message that is sent each second.
pub const MAX_HOLDS: usize = 16;

impl Inventory {
    /// Whether it says to have a workload ready.
    pub fn has_ready(&self, workload: &Cid) -> bool {
        self.holds.iter().take(MAX_HOLDS).any(|held| held == workload)
    }

    /// Whether it can hold instances of a kind at all: it has a runner, to which its owner lends room.
    pub fn runs(&self, kind: WorkloadKind) -> bool {
        self.total(kind) > 0
    }

    /// Returns how many instances of a kind it can hold in all.
    pub fn total(&self, kind: WorkloadKind) -> u32 {
        self.slots.get(&kind).map_or(0, |slots| slots.total)
    }

    /// Returns how many instances of a kind it can still take.
    pub fn free(&self, kind: WorkloadKind) -> u32 {
        self.slots.get(&kind).map_or(0, |slots| slots.free)
    }

    /// Returns how many instances it can hold and can still take, of all kinds together.
    pub fn sum(&self) -> Slots {
        self.slots.values().sum()
    }

    /// Takes free slots away, as far as there are any.
    pub fn take(&mut self, taken: &BTreeMap<WorkloadKind, u32>) {
        for (kind, count) in taken {
            if let Some(slots) = self.slots.get_mut(kind) {
                slots.free = slots.free.saturating_sub(*count);
            }
        }
    }
}

/// Instances that can be held at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// In all.
    pub total: u32,
    /// Of these, how many more can be taken.
    pub free: u32,
}

impl Slots {
    /// Returns slots none of which is taken.
    pub fn of(total: u32) -> Slots {
        Slots { total, free: total }
    }
}

impl<'a> Sum<&'a Slots> for Slots {
    fn sum<I: Iterator<Item = &'a Slots>>(slots: I) -> Slots {
        slots.fold(Slots::default(), |sum, slots| Slots {
            total: sum.total.saturating_add(slots.total),
            free: sum.free.saturating_add(slots.free),
        })
    }
}

/// Sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Number, rising.
    pub seq: u64,
    /// Wall time of sending in microseconds since 1970, for the clock offset.
    pub wall_us: u64,
    /// What it can do now.
    pub inventory: Inventory,
    /// Cells that it holds.
    pub cells: Vec<CellStatus>,
    /// Best measurement of its clock so far; none before the first lease renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockSample>,
    /// How far it is with what cells need that are not started, at most [`MAX_FETCHES`] of them; of more the others are
    /// not told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetching: Vec<CellFetch>,
}

/// Cells of which a heartbeat says how much of their content has come: more of them rarely begin within a second.
pub const MAX_FETCHES: usize = 8;

/// Most bytes of what a fetch is said to wait for.
pub const MAX_WAITING: usize = 200;

/// How much of what a cell needs has come to its lablet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellFetch {
    /// Execution.
    pub execution: ExecutionId,
    /// What has come.
    pub sum: FetchSum,
    /// What it waits for, where it waits; at most [`MAX_WAITING`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting: String,
}

/// Bytes that came of those that are needed, and from whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchSum {
    /// Bytes that are here, those that were here before included.
    pub bytes: u64,
    /// Bytes that are needed, as far as workloads say before they are here.
    pub size: u64,
    /// Bytes that orchestrators sent.
    pub from_orchestrators: u64,
    /// Bytes that lablets sent that need the same.
    pub from_lablets: u64,
    /// Bytes that came from others.
    pub from_others: u64,
}

impl FetchSum {
    /// Adds up; what a peer claims may be any number.
    pub fn plus(self, other: FetchSum) -> FetchSum {
        FetchSum {
            bytes: self.bytes.saturating_add(other.bytes),
            size: self.size.saturating_add(other.size),
            from_orchestrators: self.from_orchestrators.saturating_add(other.from_orchestrators),
            from_lablets: self.from_lablets.saturating_add(other.from_lablets),
            from_others: self.from_others.saturating_add(other.from_others),
        }
    }

    /// Returns the bytes that came over the network.
    pub fn fetched(&self) -> u64 {
        self.from_orchestrators.saturating_add(self.from_lablets).saturating_add(self.from_others)
    }

    /// Returns the bytes that are needed and not here.
    pub fn left(&self) -> u64 {
        self.size.saturating_sub(self.bytes)
    }
}

/// A lablet's clock compared with its orchestrator's, from a heartbeat and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSample {
    /// The lablet's wall clock less the orchestrator's in microseconds.
    pub offset_us: i64,
    /// Round trip of the heartbeat in microseconds: the bound of the offset's error.
    pub round_trip_us: u64,
}

impl ClockSample {
    /// Returns which of this measurement and a newer one counts from now on.
    ///
    /// That with the shorter round trip says more. Where the two exclude each other a clock was set in between, or
    /// drifted, and only the newer one is true.
    pub fn or_newer(self, newer: ClockSample) -> ClockSample {
        let apart_us = self.offset_us.abs_diff(newer.offset_us);
        let possible_us = self.round_trip_us.saturating_add(newer.round_trip_us);
        if newer.round_trip_us <= self.round_trip_us || apart_us > possible_us { newer } else { self }
    }
}

/// A cell as its lablet sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellStatus {
    /// Which.
    pub cell: CellRef,
    /// What it was granted.
    pub assignments: Vec<Assignment>,
    /// How far it is.
    pub phase: CellPhase,
    /// Instances that run.
    pub running: u32,
    /// Instances that have ended; in phase `Ended` no other instance of the cell will get a receipt.
    pub ended: u32,
    /// Version of the directory that it routes by.
    pub directory: u64,
    /// Attempt of its instances; absent means the first.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
}

fn first() -> u32 {
    1
}

fn is_first(attempt: &u32) -> bool {
    *attempt == 1
}

/// Where the instances of an execution are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Version, rising with every change of placement; a grant's directory has its epoch's counter.
    pub version: u64,
    /// Placement of the whole execution.
    pub placement: Vec<Assignment>,
    /// Addresses of the lablets in `placement`, by the text of their peer IDs.
    pub roster: BTreeMap<String, Vec<String>>,
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellPhase {
    /// Fetching blocks or making instances.
    Preparing,
    /// Ready to start.
    Prepared,
    /// Started.
    Running,
    /// All instances ended; receipts may still be on their way.
    Ended,
}

/// Wants instances of an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bid {
    /// Execution of the offer.
    pub execution: ExecutionId,
    /// Term of the offer.
    pub epoch: Epoch,
    /// Instances of each kind that it would take if it took none of another; none at all declines with `reason`.
    pub slots: BTreeMap<WorkloadKind, u32>,
    /// Why it takes none; empty where it takes some.
    pub reason: String,
}

/// Instances for a lablet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Cell that it makes.
    pub cell: CellRef,
    /// Lablet that gets it.
    pub lablet: PeerId,
    /// CID of the run.
    pub run: Cid,
    /// Instances.
    pub assignments: Vec<Assignment>,
    /// Instances by kind, in all as many as `assignments` name: the lablet has not read the run when it takes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<WorkloadKind, u32>,
    /// Attempt of these instances, from one.
    pub attempt: u32,
    /// Memory in bytes that these instances may take together.
    pub memory_bytes: u64,
    /// Placement of the whole execution: the cell's directory of the lab network.
    pub placement: Vec<Assignment>,
    /// Addresses of the lablets in `placement`, for the lab network.
    pub roster: BTreeMap<String, Vec<String>>,
}

impl Signable for Grant {
    const DOMAIN: &'static str = "iptl/grant/1";
}

/// Receipts are ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptsReady {
    /// Cell.
    pub cell: CellRef,
    /// Chunk of receipts; links everything that they name.
    pub shard: Cid,
    /// Receipts in it.
    pub count: u32,
}

/// Answer to hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// What makes the orchestrator one of this lab.
    pub certificate: Signed<Certificate>,
    /// Time between heartbeats in milliseconds.
    pub heartbeat_ms: u32,
    /// Lease in milliseconds from the sending of a heartbeat.
    pub lease_ms: u32,
    /// Offers that are open.
    pub offers: Vec<Signed<Offer>>,
    /// Its claim of the term in which it leads; absent where the lab never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Signed<Claim>>,
}

/// Answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRenewal {
    /// Number of the heartbeat.
    pub seq: u64,
    /// Time between heartbeats in milliseconds.
    pub heartbeat_ms: u32,
    /// Lease in milliseconds from the sending of that heartbeat.
    pub lease_ms: u32,
    /// Wall time of the answer in microseconds since 1970, for the clock offset.
    pub wall_us: u64,
}

/// A line that an instance wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputLine {
    /// Instance.
    pub instance: InstanceId,
    /// `out`, `err` or `event`.
    pub stream: String,
    /// Time in microseconds since the instance's start.
    pub at_us: u64,
    /// The line without its end.
    pub line: String,
}

/// What a cell contributes to sync since it last spoke.
///
/// Every number is a total or a name for one thing, so that repetition and late arrival do no harm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncUp {
    /// Attempts that came before that of the cell's instances: a lablet may hold another cell of the execution once one has
    /// ended, and what the first says late is nothing of the second.
    #[serde(default, skip_serializing_if = "is_none_before")]
    pub attempts_before: u32,
    /// Session of the cell, rising from one: with a new one, what was not heard in the last is said again.
    pub session: u64,
    /// Number of this message within its session, from one.
    pub number: u64,
    /// Number of the last [`SyncDown`] of this session that was taken in; what it held need not be kept.
    pub heard: u64,
    /// Part of the answer to [`SyncDown::again`]: everything that the cell ever contributed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// Who of the cell's instances signalled a state: those of whom nothing, or less, was said in this session.
    pub signals: BTreeMap<String, Vec<Signallers>>,
    /// Barriers that the cell's instances wait for.
    pub barriers: Vec<BarrierAsk>,
    /// Messages published by the cell's instances, each with the cell's own number for it.
    pub published: Vec<Publication>,
    /// Topics that the cell's instances subscribe to, with the position of the last message received.
    pub subscribed: BTreeMap<String, u64>,
    /// Instances that have not signalled a state: answers to [`SyncDown::inquire`], and unasked with the signals of a state
    /// where few are missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: BTreeMap<String, Absent>,
    /// The cell is at rest: whoever of its instances has not ended waits at a barrier, and has no other answer to come.
    /// It says how many have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<u64>,
}

fn is_none_before(attempts: &u32) -> bool {
    *attempts == 0
}

/// Instances of a group that signalled a state equally often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signallers {
    /// Group.
    pub group: String,
    /// First index.
    pub start: u32,
    /// Number of instances.
    pub count: u32,
    /// Signals that each of them gave in all.
    pub times: u64,
}

/// What a cell had been told before its orchestrator lost it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Numbers that the cell's signals have got.
    pub numbers: Vec<SignalNumbers>,
    /// Nothing of it follows.
    pub last: bool,
}

/// Instances of a cell that have not signalled a state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// How many.
    pub count: u64,
    /// How many of them have ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ended: u64,
    /// The first of them: those that have ended before the others.
    pub instances: Vec<InstanceId>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A barrier that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarrierAsk {
    /// State whose signals are counted.
    pub state: String,
    /// Count at which the barrier opens.
    pub target: u64,
}

/// A published message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// Number within its cell, from one, without gaps.
    pub seq: u64,
    /// Topic; empty where the publication was refused and only keeps its number.
    pub topic: String,
    /// Position that it has got in the topic; zero where it has none yet.
    pub position: u64,
    /// Payload.
    pub payload: Bytes,
}

/// What sync tells a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncDown {
    /// Session of the cell that it answers.
    pub session: u64,
    /// Number of this message within its session, from one.
    pub number: u64,
    /// Number of the last [`SyncUp`] of this session that was taken in.
    pub heard: u64,
    /// What the cell contributed is lost here: send all of it again, with the numbers and positions it got.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Totals of states over the execution, where they opened one of the cell's barriers.
    pub states: BTreeMap<String, u64>,
    /// Numbers over the execution of the cell's signals.
    pub numbers: Vec<SignalNumbers>,
    /// Messages of subscribed topics, in the one order that all cells see.
    pub messages: Vec<TopicMessage>,
    /// Positions given to this cell's publications, which are recorded thereby: `(seq, position in its topic)`;
    /// position zero refuses it.
    pub positions: Vec<(u64, u64)>,
    /// States of which the cell is asked who has not signalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inquire: Vec<String>,
    /// States whose barriers fail, since instances are lost or have ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, Unreachable>,
}

/// Why barriers of a state fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreachable {
    /// Signals that there can be: barriers with a higher target fail.
    pub reachable: u64,
    /// Who is missing, for people.
    pub missing: String,
}

/// Numbers over the execution for a range of a cell's signals of one state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalNumbers {
    /// State.
    pub state: String,
    /// First of the cell's signals, counted from one within the cell.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// Number over the execution of the first; the others follow it.
    pub number: u64,
}

/// A message of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicMessage {
    /// Topic.
    pub topic: String,
    /// Position in the topic, from one.
    pub position: u64,
    /// Position of the message before it: one less, but where messages were lost with a lablet and an orchestrator.
    pub after: u64,
    /// Payload.
    pub payload: Bytes,
}

/// A run with its CID, as the driver hands it to a core after checking it.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownRun {
    /// CID.
    pub cid: Cid,
    /// What it says.
    pub run: Run,
}
