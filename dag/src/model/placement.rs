//! Placements: which lablet runs which instances, as ranges.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::execution::{ExecutionId, InstanceId};
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

impl fmt::Display for Assignment {
    /// Names its instances: `node/7`, or `node/0-33` with the last one included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.start)?;
        match self.count {
            0 | 1 => Ok(()),
            more => write!(f, "-{}", u64::from(self.start) + u64::from(more) - 1),
        }
    }
}

impl Assignment {
    /// Names its instances, in the order of their indexes.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        InstanceId::range(&self.group, self.start, self.count)
    }

    /// Whether an instance is one of them.
    pub fn holds(&self, instance: &InstanceId) -> bool {
        self.group == instance.group && instance.index.checked_sub(self.start).is_some_and(|at| at < self.count)
    }
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
