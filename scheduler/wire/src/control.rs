//! The control API: one request enum between a command line and a node, over a local socket or a swarm stream.
//!
//! A connection carries one [`Request`] and then [`Reply`] frames until [`Reply::End`] or [`Reply::Error`]. Two are
//! followed by more frames of the asker: `Put` by [`Upload`]s, `Exec` by [`ExecInput`](crate::exec::ExecInput)s.

use std::collections::BTreeMap;
use std::ops::Range;

use iptl_dag::model::{CannotStart, Counts, FaultDone, InstanceId, NetworkModel, ResultVerdict, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use serde::{Deserialize, Serialize};

use crate::exec::{ExecOutput, Window};
use crate::lab::Role;
use crate::probe::ProbeReport;
use crate::session::{FetchSum, GroupUsage, InstanceUsage, OutputLine, Slots};

/// Protocol ID of the control stream.
pub const PROTOCOL: &str = "/iptl/control/1";

/// Largest frame of the control API, in bytes: a block with its wrapping.
pub const MAX_FRAME_SIZE: usize = (2 << 20) + (64 << 10);

/// Highest priority of a submission, and with a minus the lowest.
pub const MAX_PRIORITY: i32 = 9;

/// Providers that are named while a fetch goes on.
pub const MAX_PROVIDERS_TOLD: usize = 16;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_none_of_it(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is going on. Answer: `Status`.
    Status {},
    /// Stores the blocks that follow as [`Upload`] frames. Answer: `End`.
    Put {},
    /// Pins a root and announces it. Answer: `End`.
    Publish {
        /// Root.
        root: Cid,
        /// Kind for lists: `plan`, `workload`, `data`, `result`.
        kind: String,
        /// Name for lists.
        name: String,
        /// Whether strangers may read it. None leaves it as it is where it was pinned before, and is what the lab does
        /// where not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        public: Option<bool>,
    },
    /// Lets strangers read what a root leads to; pins it. Answer: `Shared`, then `End`.
    Share {
        /// Root.
        root: Cid,
    },
    /// Lets only members read what a root leads to; it stays pinned. Answer: `Shared`, then `End`.
    Unshare {
        /// Root.
        root: Cid,
    },
    /// Keeps a root that is here: itself alone, or with everything that it leads to. Answer: `End`.
    Pin {
        /// Root.
        root: Cid,
        /// Only its block.
        direct: bool,
        /// Name for lists; none leaves the one that it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Keeps a root no more: it goes with the next collection. Answer: `End`.
    Unpin {
        /// Root.
        root: Cid,
    },
    /// Executes a run whose blocks the node has or can fetch. Answer: `Submitted`, then `End`.
    Submit {
        /// The run.
        run: Cid,
        /// Peer that has the run's blocks, where it is not the node itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<PeerId>,
        /// Addresses of that peer.
        #[serde(default)]
        source_addrs: Vec<String>,
        /// Its place before other runs that wait: the higher goes first; from -[`MAX_PRIORITY`] to [`MAX_PRIORITY`].
        #[serde(default, skip_serializing_if = "is_zero")]
        priority: i32,
    },
    /// Computes the placement that a run would get now. Answer: `Placement`, then `End`.
    DryRun {
        /// The run.
        run: Cid,
    },
    /// Follows an execution from its first event. Answers: `Event`s, ended by `Event::Finished`, then `End`.
    Watch {
        /// Execution: CID, alias, or `last`.
        execution: String,
    },
    /// Ends an execution; a partial result is sealed. Answer: `End`.
    Cancel {
        /// Execution: CID, alias, or `last`.
        execution: String,
    },
    /// The log of an execution, as it is on its orchestrator's disk. Answers: `Log`, one `Block` for each fact, oldest
    /// first, then `End`. Who asks checks it.
    Audit {
        /// Execution: CID, alias, or `last`.
        execution: String,
    },
    /// Output of instances, from the execution while it runs and from its result afterwards. Answers: `Output`s.
    Logs {
        /// Execution: CID, alias, or `last`.
        execution: String,
        /// Group; none means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
        /// Index in the group; none means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<u32>,
        /// Goes on until the execution ends.
        follow: bool,
    },
    /// Executes a command in a running instance; frames of [`ExecInput`](crate::exec::ExecInput) follow. Answers:
    /// `Exec`s, then `End`. An asker who goes away before ends the command.
    Exec {
        /// Execution: CID, alias, or `last`.
        execution: String,
        /// Instance.
        instance: InstanceId,
        /// Program with its arguments.
        command: Vec<String>,
        /// Terminal that it gets; none where it gets pipes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terminal: Option<Window>,
    },
    /// What an execution does now: groups, barriers, use. Answers: `Top`s, one a second until it is over, then `End`.
    Top {
        /// Execution: CID, alias, or `last`.
        execution: String,
        /// One answer is enough.
        once: bool,
    },
    /// What the lab's lablets make of a network, one after the other. Answers: one `Probed` for each, then `End`.
    Probe {
        /// The network.
        network: Box<NetworkModel>,
    },
    /// Lists things. Answers: one `Row` each, then `End`.
    List {
        /// What: `runs`, `plans`, `results`, `lablets`, `pins`.
        what: ListKind,
    },
    /// Finds the CID behind a name: CID, alias of an execution with a result, `last`. Answer: `Resolved`, then `End`.
    Resolve {
        /// Name.
        name: String,
    },
    /// Fetches what `root` reaches, within the store and then from providers. Answers: `Progress`, then `Fetched`.
    Fetch {
        /// Root.
        root: Cid,
        /// Multiaddrs of peers to ask first.
        peers: Vec<String>,
        /// Gives up after so long without a provider, in milliseconds.
        timeout_ms: u64,
        /// Only the root block.
        shallow: bool,
    },
    /// Fetches the blocks of a file that hold some of its bytes, as `Fetch` does. Answers: `Progress`, then `Fetched`.
    FetchRange {
        /// Root of the file.
        root: Cid,
        /// Bytes: as many of them as the file has.
        range: Range<u64>,
        /// Multiaddrs of peers to ask first.
        peers: Vec<String>,
        /// Gives up after so long without a provider, in milliseconds.
        timeout_ms: u64,
    },
    /// Reads blocks out of the node's store. Answers: one `Block` each in the order asked, then `End`.
    Blocks {
        /// CIDs.
        cids: Vec<Cid>,
    },
    /// Drops what no pin and no execution leads to. Answer: `Collected`, then `End`.
    Collect {},
    /// Hashes every stored block again. Answers: `Checking`s, then `Checked`, then `End`.
    Check {
        /// Fetches what is damaged from whoever has it.
        repair: bool,
    },
    /// Makes a lab of which this node is the orchestrator. Answer: `End`.
    LabInit {
        /// Name for people.
        name: String,
        /// Everybody who asks is let in.
        open: bool,
        /// What members keep is for members alone, until they share it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        private: bool,
    },
    /// Makes a ticket. Answer: `Ticket`, then `End`.
    Invite {
        /// Role of who joins by it.
        role: Role,
        /// Lapses after so long, in milliseconds.
        ttl_ms: u64,
    },
    /// Joins a lab by ticket or peer ID. Answers: `Note`s while it waits, then `Joined`, then `End`.
    Join {
        /// Ticket, peer ID or multiaddr with a peer ID.
        target: String,
        /// Name of this machine.
        name: String,
        /// Role that is asked for where there is no ticket.
        role: Role,
    },
    /// Lets a peer in that asked. Answer: `End`.
    Approve {
        /// Peer.
        peer: PeerId,
    },
    /// Takes a member's membership away. Answer: `End`.
    Revoke {
        /// Peer.
        peer: PeerId,
    },
    /// Has another orchestrator lead the lab: the peer, or the first in rank that follows. Answer: `HandedOver`,
    /// then `End`.
    HandOver {
        /// Who.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<PeerId>,
    },
    /// Leaves the lab. Answer: `End`.
    Leave {},
    /// Stops the node. Answer: `End`, before it stops.
    Shutdown {
        /// Finishes running cells first.
        finish: bool,
    },
}

/// Frames after `Request::Put`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Upload {
    /// A block.
    Block {
        /// Its CID.
        cid: Cid,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// No more.
    End {},
}

/// Kinds of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListKind {
    /// Executions.
    Runs,
    /// Published plans.
    Plans,
    /// Sealed results.
    Results,
    /// Lablets of the lab.
    Lablets,
    /// Pinned roots.
    Pins,
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectReport {
    /// Blocks that stay.
    pub kept: u64,
    /// Blocks that were dropped.
    pub removed: u64,
    /// Bytes that went back to the disk.
    pub freed: u64,
    /// Blocks that something kept leads to and that are not there.
    pub missing: u64,
    /// Bytes that the store takes now.
    pub on_disk: u64,
}

/// What a check of the store found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// Blocks that are whole.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were found damaged.
    pub damaged: u64,
    /// Those of them that came again from elsewhere.
    pub repaired: u64,
    /// Blocks whose frame was damaged, and was written again.
    pub reframed: u64,
    /// The index was made again.
    pub reindexed: bool,
    /// Damaged blocks that were not repaired, as CIDs of raw blocks, at most some.
    pub left: Vec<String>,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// What is going on.
    Status(Status),
    /// What became of a cancel.
    Cancelled {
        /// CID of the execution.
        execution: Cid,
        /// Name for people.
        alias: String,
        /// It was over before: there was nothing to cancel.
        over: bool,
    },
    /// The execution that a submission made.
    Submitted {
        /// CID of the execution.
        execution: Cid,
        /// Name for people.
        alias: String,
    },
    /// A placement that would be made.
    Placement {
        /// Rows: lablet name and peer, group, first index, count.
        rows: Vec<PlacementRow>,
        /// Lablets left out, with reasons.
        refused: Vec<(String, String)>,
        /// Instances without a place; zero where all have one.
        unplaced: u64,
    },
    /// Something happened in a watched execution.
    Event(Event),
    /// Output of an instance.
    Output(OutputLine),
    /// What a command in an instance says.
    Exec(ExecOutput),
    /// What an execution does now.
    Top(Box<Top>),
    /// What a lablet makes of a network, or why it does not say: its name, and the reason.
    Probed(Result<Box<ProbeReport>, (String, String)>),
    /// One thing of a list: columns by name.
    Row(BTreeMap<String, String>),
    /// Another orchestrator leads from now on.
    HandedOver {
        /// Who.
        to: PeerId,
        /// Counter of its term.
        term: u64,
    },
    /// CID behind a name.
    Resolved {
        /// The CID.
        cid: Cid,
    },
    /// A root is for everybody, or for members alone.
    Shared {
        /// Blocks that strangers may read now and could not before.
        blocks: u64,
        /// Blocks under it that are not here: what is below them is shared when the root is shared again.
        missing: u64,
        /// Strangers may read it all the same, under another root.
        still_public: bool,
    },
    /// A fetch goes on.
    Progress(FetchProgress),
    /// What a collection did.
    Collected(CollectReport),
    /// A check goes on.
    Checking {
        /// Blocks so far.
        blocks: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// What a check found.
    Checked(CheckReport),
    /// A fetch is complete.
    Fetched(FetchReport),
    /// A block.
    Block {
        /// Its CID.
        cid: Cid,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// A log follows.
    Log {
        /// Execution.
        execution: Cid,
        /// Orchestrators that may have written into it.
        writers: Vec<PeerId>,
        /// How it ends.
        tail: LogTail,
    },
    /// A ticket, complete, to be shown once.
    Ticket {
        /// The ticket.
        ticket: String,
    },
    /// What a long request waits for.
    Note {
        /// For people.
        text: String,
    },
    /// Joined a lab.
    Joined {
        /// The lab.
        lab: PeerId,
        /// Its name.
        name: String,
        /// Role in it.
        role: Role,
    },
    /// All was answered.
    End {},
    /// The request failed; nothing follows.
    Error(Failure),
}

/// What comes after the last whole fact of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTail {
    /// Nothing.
    Clean,
    /// A fact that a crash tore while it was written; nobody acted on it.
    Torn,
    /// Something that is not what was written.
    Damaged,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What kind; decides the exit code.
    pub kind: FailureKind,
    /// Stable code: `lab.no-lablets`, `fetch.no-provider`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl From<CannotStart> for Failure {
    /// A workload that no lablet can run is a mistake of its author; whatever else cannot be started, the lab cannot.
    fn from(why: CannotStart) -> Failure {
        let CannotStart { code, reason, help } = why;
        let kind = if code.starts_with("workload.") { FailureKind::Usage } else { FailureKind::LabUnable };
        Failure { kind, code, message: reason, help }
    }
}

/// Kinds of failures, one for each exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The tool broke (exit 1).
    Broken,
    /// The request makes no sense (exit 2).
    Usage,
    /// Content or peer not found in time (exit 3).
    NotFound,
    /// Not authorised (exit 4).
    Denied,
    /// The lab cannot (exit 5).
    LabUnable,
}

/// What is going on at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The node.
    pub peer: PeerId,
    /// Its addresses, each with `/p2p/…`.
    pub addrs: Vec<String>,
    /// Version of its software.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Role in the lab; none without a lab.
    pub role: Option<Role>,
    /// The lab.
    pub lab: Option<PeerId>,
    /// Name of the lab.
    pub lab_name: String,
    /// Whether the lab can be used: on an orchestrator unless it saw that it cannot, else whether a session is up.
    pub online: bool,
    /// Peers connected.
    pub peers: u32,
    /// Lablets known, on an orchestrator.
    pub lablets: u32,
    /// Lablets with a valid lease.
    pub lablets_ready: u32,
    /// Slots of each kind over all ready lablets, or of this lablet.
    pub slots: BTreeMap<WorkloadKind, Slots>,
    /// Executions that are not over.
    pub running: Vec<RunningRow>,
    /// Why the lab cannot be used; empty where it can, or nothing is known yet.
    #[serde(default)]
    pub offline_reason: String,
    /// Peers that ask to join.
    pub asking: Vec<(PeerId, String)>,
    /// Who leads the lab, as far as this node knows; none without a lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads: Option<Leads>,
    /// What users need of the lab, on its orchestrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Blocks that moved since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// How it is reached; none without a swarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
}

/// How a node is reached from outside, as the relays of its lab see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Whether it can be dialled; none while that is not known, and where nobody is asked.
    pub directly: Option<bool>,
    /// Relays that gave it a place, through which it is reached where it cannot be dialled.
    pub through: Vec<PeerId>,
    /// Whether others are reached through it.
    pub relays: bool,
}

/// Blocks that moved between a node and its peers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// Sent to peers that asked, with what proves them.
    pub sent: u64,
    /// Came from peers, and were what they should be.
    pub received: u64,
}

/// Who leads a lab, and who follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leads {
    /// Who leads.
    pub leader: PeerId,
    /// Counter of its term; zero in a lab that never had a second orchestrator lead.
    pub term: u64,
    /// The others, as who leads sees them; as an orchestrator that follows sees itself.
    pub followers: Vec<FollowerRow>,
}

/// An orchestrator that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowerRow {
    /// Who.
    pub peer: PeerId,
    /// Whether it is in contact: everything that is acted on is on its disk before, and lablets hold leases that outlast a
    /// takeover.
    pub in_contact: bool,
    /// Beats that it has not answered yet, each with the facts before it.
    pub behind: u64,
    /// Runs, receipts and results that it does not have yet.
    pub missing: u32,
}

/// What users need of a lab, each as it was seen last; none where it was not seen since the orchestrator's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// An instance is placed and made ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Sign>,
    /// It runs, and its receipt comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Sign>,
    /// A result is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Sign>,
}

/// Whether something works, as it was seen last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sign {
    /// Whether it worked.
    pub ok: bool,
    /// Milliseconds since then.
    pub age_ms: u64,
    /// Why it did not; empty where it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

/// An execution that is not over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningRow {
    /// Name for people.
    pub alias: String,
    /// Phase, with what it waits for.
    pub phase: String,
    /// Instances in all.
    pub instances: u64,
    /// Instances that ended.
    pub ended: u64,
}

/// What an execution does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    /// The execution.
    pub execution: Cid,
    /// Name for people.
    pub alias: String,
    /// Phase, with what it waits for.
    pub phase: String,
    /// Milliseconds since submission.
    pub after_ms: u64,
    /// Groups.
    pub groups: BTreeMap<String, TopGroup>,
    /// Barriers that are waited for.
    pub barriers: Vec<TopBarrier>,
    /// The instances that use most, at most twenty.
    pub busiest: Vec<TopInstance>,
    /// Lablets that hold instances.
    pub lablets: u32,
    /// Of these, how many have said within the last seconds what is used there; the sums are of them.
    pub heard: u32,
}

/// A group as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopGroup {
    /// Instances.
    pub count: u32,
    /// Instances that ended and whose receipts are here.
    pub ended: u32,
    /// What those use that run.
    pub usage: GroupUsage,
}

/// A barrier that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopBarrier {
    /// State.
    pub state: String,
    /// Signals so far.
    pub count: u64,
    /// Signals that open it.
    pub target: u64,
    /// Instances or lablets that are missing, where some are known; at most twenty.
    pub missing: Vec<String>,
}

/// An instance that uses much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopInstance {
    /// What it uses.
    pub usage: InstanceUsage,
    /// Its lablet.
    pub lablet: String,
}

/// One row of a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementRow {
    /// Name of the lablet.
    pub lablet: String,
    /// Its peer ID.
    pub peer: PeerId,
    /// Group.
    pub group: String,
    /// First index.
    pub start: u32,
    /// Instances.
    pub count: u32,
}

/// How far a fetch is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchProgress {
    /// Blocks that are here.
    pub blocks: u64,
    /// Blocks known to be wanted.
    pub wanted: u64,
    /// Bytes that came over the network.
    pub bytes_fetched: u64,
    /// Bytes that are here, those that were here before included.
    #[serde(default, skip_serializing_if = "is_none_of_it")]
    pub bytes: u64,
    /// Bytes of the whole, as far as the root says; zero where it does not.
    #[serde(default, skip_serializing_if = "is_none_of_it")]
    pub size: u64,
    /// Bytes by provider, at most [`MAX_PROVIDERS_TOLD`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<(PeerId, u64)>,
    /// What it waits for, where it waits.
    pub waiting: String,
}

/// What a fetch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchReport {
    /// Blocks under the root, the root included.
    pub blocks: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Bytes that came over the network.
    pub bytes_fetched: u64,
    /// Bytes by provider.
    pub providers: Vec<(PeerId, u64)>,
    /// Providers that were dropped, with the reason.
    pub dropped: Vec<(PeerId, String)>,
}

/// Something that happened in an execution, as its narrative tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// Accepted.
    Submitted {
        /// CID of the execution.
        execution: Cid,
        /// Name for people.
        alias: String,
        /// The run.
        run: Cid,
        /// Name of the lab.
        lab: String,
        /// Instances by group.
        groups: BTreeMap<String, u32>,
    },
    /// Placed, wholly or as far as there was room.
    Placed {
        /// Lablets that match.
        matching: u32,
        /// Lablets in all.
        lablets: u32,
        /// Lablets left out, by name, with reasons.
        refused: Vec<(String, String)>,
        /// Instances placed.
        instances: u64,
        /// Milliseconds since submission.
        after_ms: u64,
    },
    /// Waits for something; repeated when it changes and at least every second.
    Waiting {
        /// For what.
        reason: String,
    },
    /// A lablet prepares: it fetches blocks and makes instances.
    Preparing {
        /// Cells that are prepared.
        prepared: u32,
        /// Cells in all.
        cells: u32,
    },
    /// Lablets fetch what their instances need: told at most each second while some of it is missing, and once when all
    /// is there.
    Fetching {
        /// Lablets that said how far they are.
        lablets: u32,
        /// Those of them that lack some of it.
        fetching: u32,
        /// What came, over all of them.
        sum: FetchSum,
        /// Bytes that came in a second, over the last few.
        rate: u64,
        /// The lablet that lacks most: name, bytes that it has, bytes that it needs; where several fetch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        behind: Option<(String, u64, u64)>,
        /// A lablet that waits for somebody who has something, by name, and for what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waiting: Option<(String, String)>,
    },
    /// All cells were told to start.
    Started {
        /// Milliseconds since submission.
        after_ms: u64,
    },
    /// Counts of instances by group changed.
    Progress {
        /// Running instances by group.
        running: BTreeMap<String, u32>,
        /// Ended instances by group.
        ended: BTreeMap<String, u32>,
    },
    /// A barrier filled up, or has been waited for over a second.
    Barrier {
        /// State.
        state: String,
        /// Signals so far.
        count: u64,
        /// Signals that open it.
        target: u64,
        /// Instances or lablets that are missing, where some are known.
        missing: Vec<String>,
        /// Milliseconds since start.
        after_ms: u64,
    },
    /// Something was done on purpose in a lablet's part of it, as its schedules of faults say.
    Fault {
        /// Name and short peer ID.
        lablet: String,
        /// What, and when.
        done: FaultDone,
    },
    /// A lablet was lost, came back, or gave a grant back.
    Lablet {
        /// Name and short peer ID.
        lablet: String,
        /// What happened.
        what: String,
    },
    /// Sealed. Nothing follows.
    Finished {
        /// The run.
        run: Cid,
        /// The execution.
        execution: Cid,
        /// The result.
        result: Cid,
        /// Verdict.
        verdict: ResultVerdict,
        /// Instances by how they ended.
        counts: Counts,
        /// Thresholds: text, what was measured, whether it holds.
        thresholds: Vec<(String, Option<f64>, bool)>,
        /// Why it is inconclusive.
        inconclusive: Vec<String>,
        /// Instances that failed or were lost, at most twenty, with their causes.
        failures: Vec<(String, String)>,
        /// What else is to be known: losses that the plan accepts, further attempts, an early end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
        /// Milliseconds since submission.
        after_ms: u64,
        /// Why nothing was started, where that was so; it decides the exit code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Box<Failure>>,
    },
    /// Ended with nothing sealed. Nothing follows.
    Failed {
        /// The execution.
        execution: Cid,
        /// Why.
        failure: Failure,
    },
}
