//! Executions: one carrying-out of a run, and the names inside it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Cid, PeerId, codec};

/// One carrying-out of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// The run.
    pub run: Cid,
    /// The orchestrator that accepted it.
    pub orchestrator: PeerId,
    /// What tells it from other executions of the same run.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 16],
}

impl Execution {
    /// Returns the name under which offers, grants, leases, log and receipts are kept.
    pub fn id(&self) -> ExecutionId {
        ExecutionId(*codec::to_block(&super::Node::from(self.clone())).cid())
    }
}

/// Name of an execution: the CID of its [`Execution`] node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionId(pub Cid);

impl ExecutionId {
    /// Returns the name for people: `x-` and five characters of the digest.
    pub fn alias(&self) -> String {
        let text = cid::multibase::Base::Base32Lower.encode(self.0.hash().digest());
        format!("x-{}", &text[..5.min(text.len())])
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutionId({})", self.alias())
    }
}

/// One instance of an execution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceId {
    /// Group.
    pub group: String,
    /// Index within the group, from zero.
    pub index: u32,
}

impl InstanceId {
    /// Names `count` instances of a group from index `start` on; what would lie beyond the largest index is none.
    pub fn range(group: &str, start: u32, count: u32) -> impl Iterator<Item = InstanceId> + '_ {
        let indexes = (0..count).map_while(move |n| start.checked_add(n));
        indexes.map(|index| InstanceId { group: group.to_owned(), index })
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.index)
    }
}

/// Term of an orchestrator over an execution: lablets promise the highest that they saw and refuse lower ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Counter; a takeover raises it.
    pub counter: u64,
    /// Orchestrator; breaks ties.
    pub peer: PeerId,
}
