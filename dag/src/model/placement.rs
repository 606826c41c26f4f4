//! Placements: which lablet runs which instances, as ranges.

use serde::{Deserialize, Serialize};

use crate::model::execution::ExecutionId;
use crate::{Cid, PeerId};

/// A decision of placement. A change is a child that links what it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Execution that it concerns.
    pub execution: ExecutionId,
    /// Placement that it replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Cid>,
    /// All assignments, sorted by group and start.
    pub assignments: Vec<Assignment>,
    /// Lablets that were left out, with the reason.
    pub refused: Vec<Refusal>,
}

/// A range of one group's instances on one lablet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Group.
    pub group: String,
    /// First index.
    pub start: u32,
    /// Number of instances.
    pub count: u32,
    /// Lablet.
    pub lablet: PeerId,
}

/// Why a lablet got nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Lablet.
    pub lablet: PeerId,
    /// Reason, for people.
    pub reason: String,
}
