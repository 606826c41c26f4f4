//! Facts: what an orchestrator wrote down before it acted on it.

mod about;
mod frequent;

pub use about::{CellFact, End, FactLink};
pub use frequent::{read_frequent, read_frequent_body, snapshot_part};
use serde::{Deserialize, Serialize};

use crate::model::execution::{Epoch, ExecutionId, InstanceId};
use crate::model::fault::FaultDone;
use crate::model::loss::is_default;
use crate::model::network::Way;
use crate::model::placement::Assignment;
use crate::model::signed::Signable;
use crate::{Cid, PeerId};

/// One entry of an execution's log; each links the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// Execution.
    pub execution: ExecutionId,
    /// Position in the log, from zero.
    pub seq: u64,
    /// The fact before; none at zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Cid>,
    /// Term in which it was written.
    pub epoch: Epoch,
    /// Wall time in milliseconds since 1970, for people.
    pub at_ms: u64,
    /// What happened.
    pub kind: FactKind,
}

impl Signable for Fact {
    const DOMAIN: &'static str = "iptl/fact/1";
}

/// What a fact says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FactKind {
    /// The run was accepted for execution.
    Submitted {
        /// The [`Execution`](crate::model::Execution) node.
        execution: Cid,
        /// The run.
        run: Cid,
        /// Who asked.
        by: PeerId,
        /// Its place before others: the higher goes first.
        #[serde(default, skip_serializing_if = "is_default")]
        priority: i32,
        /// Its place among those that were not over when it came: the lower came first.
        #[serde(default, skip_serializing_if = "is_default")]
        order: u64,
    },
    /// Instances were placed; links the Placement.
    Placed {
        /// The placement.
        placement: Cid,
    },
    /// A lablet was granted instances; it counts as theirs from here on.
    Granted {
        /// Lablet.
        lablet: PeerId,
        /// What it got.
        assignments: Vec<Assignment>,
        /// Attempt of these instances, from one.
        attempt: u32,
    },
    /// A lablet took its grant.
    Accepted {
        /// Lablet.
        lablet: PeerId,
    },
    /// A lablet gave its grant back before anything started.
    Refused {
        /// Lablet.
        lablet: PeerId,
        /// Why.
        reason: String,
    },
    /// Every cell was prepared and the start was given.
    Started {},
    /// A lablet measured the ways to others that the run's network lies between.
    Measured {
        /// Lablet.
        lablet: PeerId,
        /// To each other lablet, the pair of regions that asks for the shortest delay.
        ways: Vec<Way>,
    },
    /// Faults of the run's schedules were done in a lablet's cell, as it says.
    Faulted {
        /// Lablet.
        lablet: PeerId,
        /// Which.
        faults: Vec<FaultDone>,
    },
    /// Receipts of a lablet were fetched, verified and pinned.
    Received {
        /// Lablet.
        lablet: PeerId,
        /// Chunk of receipts.
        shard: Cid,
        /// How many.
        count: u32,
    },
    /// Instances were lost with their lablet, or never ran.
    Lost {
        /// Lablet that held them, where one did.
        lablet: Option<PeerId>,
        /// Which.
        instances: Vec<InstanceId>,
        /// Why.
        reason: String,
    },
    /// Someone asked for the end.
    Cancelled {
        /// Who.
        by: PeerId,
    },
    /// The wall time of the run was over.
    TimedOut {},
    /// An instance failed, or more were lost than may be, and the plan wants the run ended then.
    EndedEarly {
        /// Which, and how.
        reason: String,
    },
    /// It cannot be started, and ends with a result that says so.
    CannotStart(CannotStart),
    /// The result was sealed.
    Sealed {
        /// The result.
        result: Cid,
        /// Term of the lab in which it was; none where the lab had none. Of two ends the one of the later term counts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        term: Option<Epoch>,
    },
    /// It ended without a result: the run is none that this lab takes, or a result could not be written.
    Failed {
        /// Why.
        reason: String,
        /// Term of the lab in which it did, as of a result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        term: Option<Epoch>,
    },
    /// Another orchestrator goes on with it, in a later term.
    TakenOver {
        /// Term of the last fact that it had of the orchestrator before it.
        from: Epoch,
    },
    /// A lablet holds a grant of an earlier orchestrator that this log did not have; it counts from here on.
    Recovered {
        /// Lablet.
        lablet: PeerId,
        /// Term of the grant.
        granted: Epoch,
        /// What it got.
        assignments: Vec<Assignment>,
        /// Attempt of these instances, from one.
        attempt: u32,
    },
    /// Part of a snapshot: facts that together leave the state which all facts before the snapshot leave.
    Snapshot {
        /// Which part, from zero; parts follow each other.
        part: u32,
        /// Whether the snapshot is whole with this part.
        last: bool,
        /// Facts; none of them is a snapshot.
        facts: Vec<Recorded>,
    },
}

/// Why an execution was never started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CannotStart {
    /// Stable code of the failure, such as `lab.no-capacity`.
    pub code: String,
    /// What is so, for a person.
    pub reason: String,
    /// What to do about it.
    pub help: String,
}

/// A fact as a snapshot repeats it: without its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Term in which it was written.
    pub epoch: Epoch,
    /// Wall time in milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub kind: FactKind,
}
