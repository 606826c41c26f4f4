//! Runs: the pure specification of one experiment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Cid;
use crate::model::container::Container;
use crate::model::execution::InstanceId;
use crate::model::loss::{GroupLoss, LossPolicy, MAX_RERUNS, Placing, is_default};
use crate::model::plan::{Engine, Requirements, Resources, Threshold, Value, WorkloadKind};
use crate::model::rolling::Rolling;

/// One experiment: no time, no name of a machine, no nonce, so that equal runs have equal CIDs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Plan that it was made from.
    pub plan: Cid,
    /// Case of the plan.
    pub case: String,
    /// Groups by name; their order is the order of lab addresses.
    pub groups: BTreeMap<String, GroupRun>,
    /// Values of all parameters, defaults included.
    pub params: BTreeMap<String, Value>,
    /// Seed of everything random that the lab controls.
    pub seed: u64,
    /// Kind of time.
    pub engine: Engine,
    /// Network between the instances.
    pub network: Network,
    /// Faults that are injected; each links a [`FaultSchedule`](crate::model::FaultSchedule) node.
    pub faults: Vec<Cid>,
    /// What happens to lost instances.
    pub loss: LossPolicy,
    /// Conditions under which it passes.
    pub thresholds: Vec<Threshold>,
    /// Longest wall time from start, in milliseconds.
    pub timeout_ms: u64,
    /// What it wants of machines and of its start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placing: Placing,
    /// Instances whose links are captured, by group; at most [`MAX_CAPTURES`](Run::MAX_CAPTURES) in all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub captures: BTreeMap<String, BTreeSet<u32>>,
}

/// One group of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRun {
    /// The [`Workload`](crate::model::Workload) node.
    pub workload: Cid,
    /// How it is executed, repeated here so that a lablet can decide on an offer without fetching it.
    pub kind: WorkloadKind,
    /// Number of instances.
    pub count: u32,
    /// Arguments after the program name.
    pub args: Vec<String>,
    /// Environment beside what the lab sets.
    pub env: BTreeMap<String, String>,
    /// What each instance may use.
    pub resources: Resources,
    /// Where instances may be placed.
    pub requires: Requirements,
    /// Settings of its containers; only where `kind` is Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// What happens to instances that are lost or fail; none is as the run says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<GroupLoss>,
    /// How its instances start; none is together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Rolling>,
}

/// Network between instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Every instance reaches every other one, with no delay or loss but the machines' own.
    #[default]
    Clean,
    /// A [`NetworkModel`](crate::model::NetworkModel) node.
    Model(Cid),
}

impl Run {
    /// Most instances whose links are captured: what a lablet writes beside their work must not be the work.
    pub const MAX_CAPTURES: usize = 8;

    /// Returns whether the link of an instance is captured.
    pub fn captures(&self, id: &InstanceId) -> bool {
        self.captures.get(&id.group).is_some_and(|of_group| of_group.contains(&id.index))
    }

    /// Returns how many links are captured.
    pub fn capture_count(&self) -> usize {
        self.captures.values().map(BTreeSet::len).sum()
    }

    /// Returns whether its instances send packets that can be captured: between components with ideal streams there are
    /// none.
    pub fn has_packets(&self) -> bool {
        self.network != Network::Clean || self.kinds().contains_key(&WorkloadKind::Docker)
    }

    /// Returns the number of instances over all groups.
    pub fn instances(&self) -> u64 {
        self.groups.values().map(|g| u64::from(g.count)).sum()
    }

    /// Returns how often an instance of a group may be started at most, the first time included.
    pub fn attempts_of(&self, group: &str) -> u32 {
        let reruns = self.groups.get(group).and_then(|g| g.loss).map_or(0, |loss| loss.rerun.min(MAX_RERUNS));
        self.loss.max_attempts.max(1).max(reruns + 1)
    }

    /// Returns how long after the run's start an instance of a group starts at its first attempt, in milliseconds: no
    /// later than the end of the run's time.
    pub fn delay_ms(&self, group: &str, index: u32) -> u64 {
        let start = self.groups.get(group).and_then(|group| group.start);
        start.map_or(0, |start| start.delay_ms(index)).min(self.timeout_ms)
    }

    /// Returns the most attempts that any group allows.
    pub fn most_attempts(&self) -> u32 {
        self.groups.keys().map(|group| self.attempts_of(group)).max().unwrap_or(1)
    }

    /// Returns the number of instances of each kind; kinds of which there are none are absent.
    pub fn kinds(&self) -> BTreeMap<WorkloadKind, u64> {
        let mut kinds = BTreeMap::new();
        for group in self.groups.values().filter(|group| group.count > 0) {
            *kinds.entry(group.kind).or_default() += u64::from(group.count);
        }
        kinds
    }
}
