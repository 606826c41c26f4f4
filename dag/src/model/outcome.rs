//! Outcomes: what the software under test did, with nothing of the lab in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Cid;
use crate::model::loss::MaxLost;
use crate::model::plan::Threshold;

/// What the software under test did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The run.
    pub run: Cid,
    /// Groups by name.
    pub groups: BTreeMap<String, GroupOutcome>,
    /// Every threshold with what was measured.
    pub thresholds: Vec<ThresholdOutcome>,
    /// Pass or fail by the thresholds.
    pub verdict: Verdict,
    /// What was lost of groups with a bound of their own, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, LossOutcome>,
    /// The group whose failure ends the run, where one did: the first by name of those with `fail_fast` that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<String>,
}

/// What was lost of a group, beside what may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossOutcome {
    /// Instances that were lost.
    pub lost: u64,
    /// What the plan accepts.
    pub max_lost: MaxLost,
    /// Whether it was accepted.
    pub accepted: bool,
}

/// What one group did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// Instances by how they ended.
    pub counts: Counts,
    /// Chunks of instances in the order of their index; each links an [`OutcomeShard`].
    pub instances: Vec<Cid>,
    /// Distribution of every metric: UnixFS file of an uncompressed HDR V2 histogram, in thousandths of the unit.
    pub histograms: BTreeMap<String, Cid>,
}

/// A chunk of the instances of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeShard {
    /// Instances, sorted by index.
    pub instances: Vec<InstanceOutcome>,
}

/// Most instances in one chunk.
pub const MAX_INSTANCES_PER_SHARD: usize = 2048;

/// What one instance did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceOutcome {
    /// Index within the group.
    pub index: u32,
    /// How it ended.
    pub termination: Termination,
    /// UnixFS file of its events as JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Cid>,
    /// UnixFS file of its metrics as JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Cid>,
}

/// How an instance ended, as far as the software is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Termination {
    /// Ended by itself with status zero.
    Ok {},
    /// Ended by itself with another status, broke, or used more than it may.
    Failed {
        /// Cause: `exit 3`, `trap unreachable`, `out of memory`.
        cause: String,
    },
    /// The lab lost it or stopped it before it ended.
    Lost {},
}

/// Instances by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Ended well.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Lost by the lab.
    pub lost: u64,
}

/// A threshold with what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdOutcome {
    /// The threshold.
    pub threshold: Threshold,
    /// What was measured; none where there was nothing to measure, which never passes.
    pub measured: Option<f64>,
    /// Whether it holds.
    pub holds: bool,
}

/// Verdict over the software under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All thresholds hold.
    Pass,
    /// One does not.
    Fail,
}
