//! How bad things get in one schedule: numbers that are drawn once from the seed, under a name that says which.

use serde::{Deserialize, Serialize};

use crate::network::Draws;

/// What one schedule does to its lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Lablets.
    pub lablets: u32,
    /// Executions that are submitted.
    pub executions: u32,
    /// Most instances of one group.
    pub group_size: u32,
    /// Messages lost, in parts per million.
    pub loss_ppm: u32,
    /// Messages doubled, in parts per million.
    pub double_ppm: u32,
    /// Messages and copies that come very late, in parts per million.
    pub late_ppm: u32,
    /// Shortest delay of a message in microseconds.
    pub delay_min_us: u64,
    /// Longest delay of a message in microseconds; messages with different delays overtake each other.
    pub delay_max_us: u64,
    /// Crashes of the orchestrator.
    pub orchestrator_crashes: u32,
    /// Crashes of lablets.
    pub lablet_crashes: u32,
    /// Partitions between a lablet and the orchestrator, half of them one-way.
    pub partitions: u32,
    /// Times in which a node stands still.
    pub freezes: u32,
    /// Times in which a disk is slow.
    pub slow_disks: u32,
    /// Times in which a disk is full.
    pub full_disks: u32,
    /// Jumps of wall clocks.
    pub clock_jumps: u32,
    /// Largest drift of a monotonic clock, in parts per million.
    pub drift_ppm: u32,
    /// Owners who want their machine back.
    pub drains: u32,
    /// Preparations that fail, in parts per million.
    pub prepare_fail_ppm: u32,
    /// Instances that never end by themselves, in parts per million.
    pub hang_ppm: u32,
    /// Cancellations, in parts per million of executions.
    pub cancel_ppm: u32,
    /// Attempts that runs allow for each instance.
    pub max_attempts: u32,
    /// Whether runs and their groups say what is to happen to what is lost or fails, and want machines for themselves.
    #[serde(default)]
    pub policies: bool,
    /// Instances that fail, in parts per million.
    #[serde(default)]
    pub fail_ppm: u32,
    /// Virtual time after which nothing bad happens any more, in seconds.
    pub faults_until_s: u64,
}

/// Names of the profiles, for people; `mixed` is all of them in turn.
pub const NAMES: &[&str] = &["mixed", "calm", "rough", "crashes", "partitions", "disks", "clocks", "owners", "crowd"];

impl Profile {
    /// Draws the profile of a seed under a name; none where nobody knows the name.
    pub fn named(name: &str, seed: u64, draws: &mut Draws) -> Option<Profile> {
        let profile = Profile::drawn(name, seed, draws)?;
        // Of other draws, so that the rest of a schedule does not depend on them.
        let mut further = Draws::new(seed, 40_000);
        let policies = further.chance(500_000);
        let fail_ppm = if further.chance(300_000) { further.between(1_000, 100_000) as u32 } else { 0 };
        Some(Profile { policies, fail_ppm, ..profile })
    }

    fn drawn(name: &str, seed: u64, draws: &mut Draws) -> Option<Profile> {
        Some(match name {
            "mixed" => match seed % 20 {
                0 | 1 => Profile::calm(draws),
                2 | 3 => Profile::crashes(draws),
                4 | 5 => Profile::partitions(draws),
                6 | 7 => Profile::disks(draws),
                8 => Profile::clocks(draws),
                9 => Profile::owners(draws),
                _ => Profile::rough(draws),
            },
            "calm" => Profile::calm(draws),
            "rough" => Profile::rough(draws),
            "crashes" => Profile::crashes(draws),
            "partitions" => Profile::partitions(draws),
            "disks" => Profile::disks(draws),
            "clocks" => Profile::clocks(draws),
            "owners" => Profile::owners(draws),
            "crowd" => Profile::crowd(draws),
            _ => return None,
        })
    }

    /// A lab in which nothing goes wrong.
    fn calm(draws: &mut Draws) -> Profile {
        Profile {
            lablets: draws.between(1, 6) as u32,
            executions: draws.between(1, 5) as u32,
            group_size: 6,
            delay_min_us: 500,
            delay_max_us: 500,
            max_attempts: 1,
            faults_until_s: 20,
            ..Profile::default()
        }
    }

    /// Delays that let messages overtake each other, several attempts now and then, and a minute for faults.
    fn uneven(draws: &mut Draws) -> Profile {
        Profile {
            lablets: draws.between(1, 8) as u32,
            executions: draws.between(1, 6) as u32,
            delay_min_us: draws.between(100, 5_000),
            delay_max_us: draws.between(5_000, 400_000),
            max_attempts: if draws.chance(400_000) { draws.between(2, 3) as u32 } else { 1 },
            faults_until_s: 60,
            ..Profile::calm(draws)
        }
    }

    /// A lab in which anything may go wrong, each seed something else.
    fn rough(draws: &mut Draws) -> Profile {
        let calm = Profile::uneven(draws);
        let mut maybe = |most: u64| if draws.chance(400_000) { draws.between(0, most) as u32 } else { 0 };
        Profile {
            loss_ppm: maybe(100_000),
            double_ppm: maybe(200_000),
            late_ppm: maybe(100_000),
            orchestrator_crashes: maybe(4),
            lablet_crashes: maybe(6),
            partitions: maybe(6),
            freezes: maybe(4),
            slow_disks: maybe(4),
            full_disks: maybe(3),
            clock_jumps: maybe(4),
            drift_ppm: maybe(500),
            drains: maybe(3),
            prepare_fail_ppm: maybe(150_000),
            hang_ppm: maybe(100_000),
            cancel_ppm: maybe(500_000),
            ..calm
        }
    }

    /// Deaths of nodes alone.
    fn crashes(draws: &mut Draws) -> Profile {
        let orchestrator_crashes = draws.between(0, 6) as u32;
        let lablet_crashes = draws.between(1, 8) as u32;
        let cancel_ppm = if draws.chance(300_000) { 500_000 } else { 0 };
        Profile { orchestrator_crashes, lablet_crashes, cancel_ppm, ..Profile::uneven(draws) }
    }

    /// Broken networks alone.
    fn partitions(draws: &mut Draws) -> Profile {
        let partitions = draws.between(1, 10) as u32;
        let freezes = draws.between(0, 3) as u32;
        let loss_ppm = draws.between(0, 100_000) as u32;
        let late_ppm = draws.between(0, 60_000) as u32;
        let double_ppm = draws.between(0, 200_000) as u32;
        Profile { partitions, freezes, loss_ppm, late_ppm, double_ppm, ..Profile::uneven(draws) }
    }

    /// Slow and full disks, and crashes that meet what they had not written yet.
    fn disks(draws: &mut Draws) -> Profile {
        let slow_disks = draws.between(1, 8) as u32;
        let full_disks = draws.between(0, 5) as u32;
        let orchestrator_crashes = draws.between(0, 3) as u32;
        let lablet_crashes = draws.between(0, 3) as u32;
        Profile { slow_disks, full_disks, orchestrator_crashes, lablet_crashes, ..Profile::uneven(draws) }
    }

    /// Clocks that drift and jump, in a lab that is fine otherwise: nothing may be lost.
    fn clocks(draws: &mut Draws) -> Profile {
        Profile { clock_jumps: draws.between(1, 6) as u32, drift_ppm: 500, ..Profile::calm(draws) }
    }

    /// Owners who come and go, and people who cancel.
    fn owners(draws: &mut Draws) -> Profile {
        let drains = draws.between(1, 6) as u32;
        let cancel_ppm = draws.between(0, 800_000) as u32;
        Profile { drains, cancel_ppm, ..Profile::uneven(draws) }
    }

    /// Many lablets, some of which die.
    fn crowd(draws: &mut Draws) -> Profile {
        Profile {
            lablets: draws.between(60, 240) as u32,
            group_size: 300,
            lablet_crashes: draws.between(0, 20) as u32,
            orchestrator_crashes: draws.between(0, 1) as u32,
            partitions: draws.between(0, 20) as u32,
            loss_ppm: draws.between(0, 20_000) as u32,
            ..Profile::uneven(draws)
        }
    }
}
