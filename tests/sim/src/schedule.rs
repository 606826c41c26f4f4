//! What happens to one lab, written down before it happens: the seed, the numbers, and every fault with its time.
//!
//! A schedule is all that a run of the simulator depends on. It is what a failing seed is shrunk to, and what a trace
//! file holds; taking a fault out leaves the others as they are.

use serde::{Deserialize, Serialize};

use crate::Profile;
use crate::network::Draws;

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Seed of all that is not written here: delays, durations, what machines have.
    pub seed: u64,
    /// Numbers.
    pub profile: Profile,
    /// What is submitted when.
    pub submissions: Vec<Submit>,
    /// What goes wrong when, sorted by time.
    pub faults: Vec<Planned>,
}

/// A run that somebody submits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Which: groups and sizes are drawn from it.
    pub number: u32,
    /// Virtual time in milliseconds.
    pub at_ms: u64,
    /// Milliseconds after which somebody cancels it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_after_ms: Option<u64>,
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Virtual time in milliseconds.
    pub at_ms: u64,
    /// What happens.
    pub fault: Fault,
}

/// A node: a lablet by its number, or the orchestrator.
pub type NodeIndex = Option<u32>;

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A node dies and is started again.
    Crash {
        /// Which.
        node: NodeIndex,
        /// How long it is down.
        down_ms: u64,
        /// Whether it dies in its next write that makes something durable, rather than at once.
        in_write: bool,
        /// How much of what was being written reached the disk, in percent: a log keeps its first part.
        written_pct: u32,
    },
    /// Nothing passes between a lablet and the orchestrator, in one direction or both.
    Cut {
        /// Lablet.
        lablet: u32,
        /// How long.
        ms: u64,
        /// Whether what the lablet says is lost.
        up: bool,
        /// Whether what it is told is lost.
        down: bool,
    },
    /// A node stands still, and takes in afterwards what came meanwhile.
    Freeze {
        /// Which.
        node: NodeIndex,
        /// How long.
        ms: u64,
    },
    /// Writes take long.
    SlowDisk {
        /// Whose.
        node: NodeIndex,
        /// How long it is slow.
        ms: u64,
        /// How often longer each write takes.
        factor: u64,
    },
    /// Writes fail.
    FullDisk {
        /// Whose.
        node: NodeIndex,
        /// How long.
        ms: u64,
    },
    /// A wall clock jumps.
    Jump {
        /// Whose.
        node: NodeIndex,
        /// By how much; the node is told at once, as its driver looks often.
        by_ms: i64,
    },
    /// The owner of a lablet wants it back, and lends it again later.
    Drain {
        /// Lablet.
        lablet: u32,
        /// Whether what runs is stopped.
        at_once: bool,
        /// How long.
        ms: u64,
    },
}

impl Schedule {
    /// Draws the schedule of a seed; none where nobody knows the profile.
    pub fn draw(seed: u64, profile: &str) -> Option<Schedule> {
        let mut draws = Draws::new(seed, 0);
        let profile = Profile::named(profile, seed, &mut draws)?;
        let until_ms = profile.faults_until_s * 1000;
        let submissions = (0..profile.executions)
            .map(|number| Submit {
                number,
                at_ms: draws.between(2_000, until_ms / 2),
                cancel_after_ms: draws.chance(profile.cancel_ppm).then(|| draws.between(0, 6_000)),
            })
            .collect();
        let mut faults = Vec::new();
        let lablet = |draws: &mut Draws| draws.between(0, u64::from(profile.lablets) - 1) as u32;
        let any = |draws: &mut Draws| if draws.chance(300_000) { None } else { Some(lablet(draws)) };
        let mut plan = |draws: &mut Draws, count: u32, fault: &dyn Fn(&mut Draws) -> Fault| {
            for _ in 0..count {
                let at_ms = draws.between(2_000, until_ms);
                faults.push(Planned { at_ms, fault: fault(draws) });
            }
        };
        let crash = |draws: &mut Draws, node| Fault::Crash {
            node,
            down_ms: draws.between(100, 20_000),
            in_write: draws.chance(400_000),
            written_pct: [0, 50, 100][draws.between(0, 2) as usize],
        };
        plan(&mut draws, profile.orchestrator_crashes, &|d| crash(d, None));
        plan(&mut draws, profile.lablet_crashes, &|d| {
            let node = Some(lablet(d));
            crash(d, node)
        });
        plan(&mut draws, profile.partitions, &|d| {
            let (up, down) = match d.between(0, 3) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            Fault::Cut { lablet: lablet(d), ms: d.between(500, 15_000), up, down }
        });
        plan(&mut draws, profile.freezes, &|d| Fault::Freeze { node: any(d), ms: d.between(500, 15_000) });
        plan(&mut draws, profile.slow_disks, &|d| Fault::SlowDisk {
            node: any(d),
            ms: d.between(1_000, 20_000),
            factor: d.between(10, 400),
        });
        plan(&mut draws, profile.full_disks, &|d| Fault::FullDisk { node: any(d), ms: d.between(500, 10_000) });
        plan(&mut draws, profile.clock_jumps, &|d| {
            let size = [1_000, 60_000, 3_600_000, 31_536_000_000][d.between(0, 3) as usize];
            let by_ms = d.between(1, size) as i64;
            Fault::Jump { node: any(d), by_ms: if d.chance(500_000) { by_ms } else { -by_ms } }
        });
        plan(&mut draws, profile.drains, &|d| Fault::Drain {
            lablet: lablet(d),
            at_once: d.chance(500_000),
            ms: d.between(1_000, 20_000),
        });
        faults.sort_by_key(|planned| planned.at_ms);
        Some(Schedule { seed, profile, submissions, faults })
    }

    /// Whether nothing is lost and nobody dies, so that no instance may be lost either.
    pub fn is_gentle(&self) -> bool {
        let p = &self.profile;
        let quiet = [p.loss_ppm, p.double_ppm, p.late_ppm, p.prepare_fail_ppm, p.hang_ppm].iter().all(|ppm| *ppm == 0);
        let jumps_only = self.faults.iter().all(|planned| matches!(planned.fault, Fault::Jump { .. }));
        quiet && jumps_only && self.submissions.iter().all(|s| s.cancel_after_ms.is_none())
    }
}

impl Fault {
    /// Returns how long it lasts, in milliseconds; a jump of a clock is over at once.
    pub fn lasts_ms(&self) -> u64 {
        match self {
            Fault::Crash { down_ms, .. } => *down_ms,
            Fault::Cut { ms, .. }
            | Fault::Freeze { ms, .. }
            | Fault::SlowDisk { ms, .. }
            | Fault::FullDisk { ms, .. }
            | Fault::Drain { ms, .. } => *ms,
            Fault::Jump { .. } => 0,
        }
    }

    /// Returns the lablet that it concerns, where it is one.
    pub fn lablet(&self) -> NodeIndex {
        match self {
            Fault::Crash { node, .. }
            | Fault::Freeze { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::FullDisk { node, .. }
            | Fault::Jump { node, .. } => *node,
            Fault::Cut { lablet, .. } | Fault::Drain { lablet, .. } => Some(*lablet),
        }
    }
}
