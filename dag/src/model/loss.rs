//! What a plan says of instances that are lost, of those that fail, and of the machines that it wants.

use serde::{Deserialize, Serialize};

/// Most times that a plan may have a lost instance run again: whoever needs more has a lab to mend.
pub const MAX_RERUNS: u32 = 20;

/// What happens when instances of a run are lost with their lablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossPolicy {
    /// Attempts per instance, the first included; 1 is at-most-once. A group may allow more.
    pub max_attempts: u32,
    /// Share of instances that may be lost before the verdict is inconclusive, in parts per million. Groups with a
    /// bound of their own do not count.
    pub max_lost_ppm: u32,
    /// The same as a number, which then counts instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lost: Option<u32>,
    /// What becomes of barriers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub barriers: BarrierLoss,
}

impl Default for LossPolicy {
    fn default() -> LossPolicy {
        LossPolicy { max_attempts: 1, max_lost_ppm: 0, max_lost: None, barriers: BarrierLoss::default() }
    }
}

/// What one group says of its instances that are lost or fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLoss {
    /// How often a lost instance is run again; zero is at-most-once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rerun: u32,
    /// How many may be lost before the verdict is inconclusive; none is as the run says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lost: Option<MaxLost>,
    /// Whether the run ends as soon as one of them fails, or more are lost than may be.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fail_fast: bool,
}

/// How many instances of a group may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaxLost {
    /// So many.
    Count(u32),
    /// A share of them, in parts per million.
    Share(u32),
}

impl MaxLost {
    /// Whether so many of `all` may be lost.
    pub fn allows(self, lost: u64, all: u64) -> bool {
        match self {
            MaxLost::Count(most) => lost <= u64::from(most),
            MaxLost::Share(ppm) => u128::from(lost) * 1_000_000 <= u128::from(all) * u128::from(ppm),
        }
    }
}

impl std::fmt::Display for MaxLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MaxLost::Count(most) => most.fmt(f),
            MaxLost::Share(ppm) => write!(f, "{} %", f64::from(*ppm) / 10_000.0),
        }
    }
}

/// What becomes of a barrier that nobody is left to open, because instances are lost or have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarrierLoss {
    /// It fails for all who wait, and who is missing is said.
    #[default]
    Fail,
    /// It opens: they count as if they had signalled.
    Release,
    /// Who waits goes on waiting, until the instance's or the run's time is over.
    Wait,
}

/// What a run wants of the machines that it is placed on, and of its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    /// Whether its lablets run nothing else meanwhile.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dedicated: bool,
    /// Longest time from submission to start, in milliseconds; one that is not started by then ends without a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
    /// Whether it is started where the way between lablets is longer than the delays that are to hide it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub slow_ways: bool,
}

/// Whether a value is what stands for it where it is left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
