//! Faults: what the lab does to a run on purpose, as data.

use serde::{Deserialize, Serialize};

use crate::model::loss::is_default;
use crate::model::network::LinkModel;

/// What happens to a run, and when. Times count from the start of its cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSchedule {
    /// In any order; those of one time happen in the order in which they stand here.
    pub faults: Vec<ScheduledFault>,
}

/// One fault with its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledFault {
    /// When it happens first, in milliseconds.
    pub at_ms: u64,
    /// After how many milliseconds it happens again, each time; zero is never.
    pub every_ms: u64,
    /// What happens.
    pub fault: Fault,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Nothing passes between the sides any more; who is on none reaches all. It takes the place of an earlier one.
    Partition {
        /// Who is on each side.
        sides: Vec<Vec<FaultTarget>>,
    },
    /// Everything passes again.
    Heal {},
    /// The links of an access class are others from now on.
    Link {
        /// The class.
        access: String,
        /// What is sent.
        up: LinkModel,
        /// What is received.
        down: LinkModel,
    },
    /// The delay from one region to another is another from now on.
    Delay {
        /// The sending region.
        from: String,
        /// The receiving region.
        to: String,
        /// One way, in microseconds.
        delay_us: u64,
    },
    /// The gateways before instances forget their mappings, as they do when their provider gives them new ones.
    Rebind {
        /// Which instances.
        who: FaultTarget,
    },
    /// Instances have other addresses from now on, and nobody has the old ones any more, as when a provider gives new ones
    /// or somebody changes networks.
    Address {
        /// Which instances.
        who: FaultTarget,
    },
    /// The wall clocks of instances jump.
    Clock {
        /// Which instances.
        who: FaultTarget,
        /// By how many milliseconds: forwards, or backwards where it is less than zero.
        by_ms: i64,
    },
    /// Instances end at once, as at a loss of power, and start again.
    Crash {
        /// Which instances.
        who: FaultTarget,
        /// After how many milliseconds they start again.
        restart_ms: u64,
        /// Whether what they had written is gone, as with a disk that is lost.
        #[serde(default, skip_serializing_if = "is_default")]
        files_lost: bool,
        /// Whether they have other addresses from then on, and nobody has the old ones any more.
        #[serde(default, skip_serializing_if = "is_default")]
        new_address: bool,
    },
    /// Instances compute nothing for a while, as on a machine that sleeps or is overloaded, and go on.
    Pause {
        /// Which instances.
        who: FaultTarget,
        /// For how many milliseconds.
        for_ms: u64,
    },
}

impl Fault {
    /// Returns the instances to which something is done; none where it is done to the network between all.
    pub fn who(&self) -> Option<&FaultTarget> {
        match self {
            Fault::Rebind { who }
            | Fault::Address { who }
            | Fault::Clock { who, .. }
            | Fault::Crash { who, .. }
            | Fault::Pause { who, .. } => Some(who),
            Fault::Partition { .. } | Fault::Heal {} | Fault::Link { .. } | Fault::Delay { .. } => None,
        }
    }
}

/// Some instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultTarget {
    /// Of this group; none is all groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// In this region; none is all regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// So many of those, in parts per million; the run's seed says which, and others each time.
    pub share_ppm: u32,
}

/// What was done to a run on purpose: a fault, or the end of one that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Sides were parted.
    Partition,
    /// All sides reach each other again.
    Heal,
    /// The links of an access class are others.
    Link,
    /// The delay between two regions is another.
    Delay,
    /// Gateways forgot their mappings.
    Rebind,
    /// Instances got other addresses.
    Address,
    /// Wall clocks jumped.
    Clock,
    /// Instances were ended at once.
    Crash,
    /// An instance that was crashed starts again.
    Restart,
    /// Instances were stopped.
    Pause,
    /// An instance that was paused goes on.
    Resume,
}

impl FaultKind {
    /// Returns the name that events and people know it by: `partition`.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Partition => "partition",
            FaultKind::Heal => "heal",
            FaultKind::Link => "link",
            FaultKind::Delay => "delay",
            FaultKind::Rebind => "rebind",
            FaultKind::Address => "address",
            FaultKind::Clock => "clock",
            FaultKind::Crash => "crash",
            FaultKind::Restart => "restart",
            FaultKind::Pause => "pause",
            FaultKind::Resume => "resume",
        }
    }
}

/// One thing that was done in a cell on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultDone {
    /// When it was due, in microseconds since the release of the cell's instances.
    pub due_us: u64,
    /// What it was.
    pub kind: FaultKind,
    /// When it was done, by the same clock.
    pub done_us: u64,
    /// Instances of the cell that it concerned.
    pub instances: u32,
}
