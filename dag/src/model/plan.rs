//! Plans and workloads: what can be run, as its author published it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Cid;
use crate::model::container::Container;
use crate::model::loss::{BarrierLoss, GroupLoss, Placing, is_default};
use crate::model::rolling::Rolling;
use crate::model::run::Network;

/// A test plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Short name, for people.
    pub name: String,
    /// Version that the author gave.
    pub version: String,
    /// What the plan shows.
    pub description: String,
    /// UnixFS directory of the plan's source, where it was published with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Cid>,
    /// Workloads by name; each links a [`Workload`].
    pub workloads: BTreeMap<String, Cid>,
    /// Cases by name.
    pub cases: BTreeMap<String, Case>,
}

/// What an instance executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name, for people.
    pub name: String,
    /// How the content is executed.
    pub kind: WorkloadKind,
    /// Content: for Wasm the UnixFS file of the component, for Docker the image's node.
    pub content: Cid,
    /// Size of the content in bytes.
    pub size: u64,
}

/// How a workload's content is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadKind {
    /// A WASI 0.2 command component.
    Wasm,
    /// A container image.
    Docker,
}

impl WorkloadKind {
    /// Returns its name as manifests, nodes and messages have it.
    pub fn name(self) -> &'static str {
        match self {
            WorkloadKind::Wasm => "wasm",
            WorkloadKind::Docker => "docker",
        }
    }
}

/// One test case of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// What the case shows.
    pub description: String,
    /// Groups by name.
    pub groups: BTreeMap<String, GroupSpec>,
    /// Parameters that a run may set, by name.
    pub params: BTreeMap<String, ParamSpec>,
    /// Conditions under which the case passes.
    pub thresholds: Vec<Threshold>,
    /// Longest wall time of an execution from its start, in milliseconds.
    pub timeout_ms: u64,
    /// Share of instances that may be lost before the verdict is inconclusive, in parts per million.
    pub max_lost_ppm: u32,
    /// How an instance is executed.
    pub engine: Engine,
    /// Network between the instances.
    pub network: Network,
    /// Faults that are injected; each links a [`FaultSchedule`](crate::model::FaultSchedule) node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Cid>,
    /// Number of instances that may be lost, which then counts instead of the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lost: Option<u32>,
    /// What becomes of barriers when instances are lost.
    #[serde(default, skip_serializing_if = "is_default")]
    pub barriers: BarrierLoss,
    /// What it wants of machines and of its start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placing: Placing,
}

/// Engine class: what kind of time a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Wall time; two executions of a run may differ.
    Live,
}

/// Instances that share a workload and a role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Name of the workload in the plan.
    pub workload: String,
    /// How many instances there may be.
    pub count: Count,
    /// Arguments after the program name.
    pub args: Vec<String>,
    /// Environment beside what the lab sets.
    pub env: BTreeMap<String, String>,
    /// What each instance may use.
    pub resources: Resources,
    /// Where instances may be placed.
    pub requires: Requirements,
    /// Settings of its containers; only where the workload is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// What happens to instances that are lost or fail; none is as the case says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<GroupLoss>,
    /// How its instances start; none is together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Rolling>,
}

/// Bounds of a group's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Size where the run does not say.
    pub default: u32,
    /// Smallest size.
    pub min: u32,
    /// Largest size.
    pub max: u32,
}

/// What one instance may use; the lab ends an instance that wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// CPU time in milliseconds over the instance's life.
    pub cpu_ms: u64,
    /// Wall time in milliseconds from its start.
    pub wall_ms: u64,
    /// Bytes of stdout and stderr together.
    pub output_bytes: u64,
    /// Bytes of events and metrics together.
    pub record_bytes: u64,
    /// Bytes of artifacts.
    pub artifact_bytes: u64,
    /// Open sockets.
    pub sockets: u32,
}

impl Default for Resources {
    /// What an instance gets where the plan does not say: room for a small p2p node.
    fn default() -> Resources {
        Resources {
            memory_bytes: 64 << 20,
            cpu_ms: 60_000,
            wall_ms: 300_000,
            output_bytes: 1 << 20,
            record_bytes: 4 << 20,
            artifact_bytes: 16 << 20,
            sockets: 1024,
        }
    }
}

/// Conditions on the lablets of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// Labels that a lablet must have, with their values.
    pub labels: BTreeMap<String, String>,
    /// How instances are distributed.
    pub affinity: Affinity,
    /// Most instances of the group on one lablet; zero means no bound.
    pub max_per_lablet: u32,
    /// How many instances with neighbouring indices are on one lablet, beginning at multiples of it: those that share a LAN;
    /// none is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<u32>,
}

/// How the instances of a group are distributed over lablets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// In proportion to free capacity.
    #[default]
    Balance,
    /// As evenly as capacity allows.
    Spread,
    /// On as few lablets as can hold them.
    Pack,
}

/// A parameter that a run may set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// Type and bounds.
    pub kind: ParamKind,
    /// Value where the run does not say.
    pub default: Value,
    /// What it does.
    pub description: String,
}

/// Type and bounds of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParamKind {
    /// True or false.
    Bool {},
    /// A whole number within bounds.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A number within bounds.
    Float {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// Text, one of `choices` where there are any.
    Text {
        /// Values that are allowed; empty means any.
        choices: Vec<String>,
    },
    /// Time in milliseconds within bounds, written `250ms`, `5s`, `2m` in a manifest.
    Duration {
        /// Shortest, in milliseconds.
        min_ms: u64,
        /// Longest, in milliseconds.
        max_ms: u64,
    },
    /// Size in bytes within bounds, written `64KiB`, `1MiB` in a manifest.
    Size {
        /// Smallest, in bytes.
        min_bytes: u64,
        /// Largest, in bytes.
        max_bytes: u64,
    },
}

/// Value of a parameter. Durations are integers in milliseconds, sizes integers in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// Text.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(v) => write!(f, "{v}"),
            Value::Int(v) => write!(f, "{v}"),
            Value::Float(v) => write!(f, "{v}"),
            Value::Text(v) => f.write_str(v),
        }
    }
}

/// A condition under which a case passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// What is looked at.
    pub subject: Subject,
    /// Group that it concerns; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub value: f64,
    /// Unit of the value, for people: `ms`, `MB/s`, empty for a ratio.
    pub unit: String,
}

/// What a threshold looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Share of instances that ended well, 0 to 1.
    SuccessRate {},
    /// A statistic over the values of a metric.
    Metric {
        /// Name of the metric.
        name: String,
        /// Which number of its distribution.
        statistic: Statistic,
    },
}

/// A number of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Statistic {
    /// How many values.
    Count,
    /// Sum of the values.
    Sum,
    /// Arithmetic mean.
    Mean,
    /// Smallest.
    Min,
    /// Largest.
    Max,
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
}

/// How a threshold compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Comparison {
    /// Less than.
    #[serde(rename = "<")]
    Less,
    /// At most.
    #[serde(rename = "<=")]
    AtMost,
    /// More than.
    #[serde(rename = ">")]
    More,
    /// At least.
    #[serde(rename = ">=")]
    AtLeast,
    /// Equal.
    #[serde(rename = "==")]
    Equal,
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.subject {
            Subject::SuccessRate {} => f.write_str("success rate")?,
            Subject::Metric { name, statistic } => write!(f, "{name} {}", statistic.name())?,
        }
        if let Some(group) = &self.group {
            write!(f, " of {group}")?;
        }
        write!(f, " {} {}", self.comparison.symbol(), self.value)?;
        if self.unit.is_empty() { Ok(()) } else { write!(f, " {}", self.unit) }
    }
}

impl Statistic {
    /// Returns the word that manifests and people use.
    pub const fn name(self) -> &'static str {
        match self {
            Statistic::Count => "count",
            Statistic::Sum => "sum",
            Statistic::Mean => "mean",
            Statistic::Min => "min",
            Statistic::Max => "max",
            Statistic::P50 => "p50",
            Statistic::P90 => "p90",
            Statistic::P95 => "p95",
            Statistic::P99 => "p99",
        }
    }
}

impl Comparison {
    /// Returns the sign: `<`, `<=`, `>`, `>=` or `==`.
    pub const fn symbol(self) -> &'static str {
        match self {
            Comparison::Less => "<",
            Comparison::AtMost => "<=",
            Comparison::More => ">",
            Comparison::AtLeast => ">=",
            Comparison::Equal => "==",
        }
    }
}
