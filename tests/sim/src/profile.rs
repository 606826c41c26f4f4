//! How bad things get in one schedule.

use crate::network::Draws;

/// What one schedule does to its lab; drawn from the seed.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Lablets.
    pub lablets: u32,
    /// Executions that are submitted.
    pub executions: u32,
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
    /// Partitions between a lablet and the orchestrator.
    pub partitions: u32,
    /// Preparations that fail, in parts per million.
    pub prepare_fail_ppm: u32,
    /// Instances that never end by themselves, in parts per million.
    pub hang_ppm: u32,
    /// Cancellations, in parts per million of executions.
    pub cancel_ppm: u32,
    /// Attempts that runs allow for each instance.
    pub max_attempts: u32,
    /// Virtual time after which nothing bad happens any more, in seconds.
    pub faults_until_s: u64,
}

impl Profile {
    /// A lab in which nothing goes wrong.
    pub fn calm(draws: &mut Draws) -> Profile {
        Profile {
            lablets: draws.between(1, 6) as u32,
            executions: draws.between(1, 5) as u32,
            loss_ppm: 0,
            double_ppm: 0,
            late_ppm: 0,
            delay_min_us: 500,
            delay_max_us: 500,
            orchestrator_crashes: 0,
            lablet_crashes: 0,
            partitions: 0,
            prepare_fail_ppm: 0,
            hang_ppm: 0,
            cancel_ppm: 0,
            max_attempts: 1,
            faults_until_s: 20,
        }
    }

    /// A lab in which anything may go wrong, each seed something else.
    pub fn rough(draws: &mut Draws) -> Profile {
        let mut maybe = |most: u64| if draws.chance(500_000) { draws.between(0, most) as u32 } else { 0 };
        Profile {
            loss_ppm: maybe(100_000),
            double_ppm: maybe(200_000),
            late_ppm: maybe(100_000),
            orchestrator_crashes: maybe(4),
            lablet_crashes: maybe(6),
            partitions: maybe(6),
            prepare_fail_ppm: maybe(150_000),
            hang_ppm: maybe(100_000),
            cancel_ppm: maybe(500_000),
            lablets: draws.between(1, 8) as u32,
            executions: draws.between(1, 6) as u32,
            delay_min_us: draws.between(100, 5_000),
            delay_max_us: draws.between(5_000, 400_000),
            max_attempts: if draws.chance(300_000) { draws.between(2, 3) as u32 } else { 1 },
            faults_until_s: 60,
        }
    }

    /// The profile of a seed: one in five is calm.
    pub fn of_seed(seed: u64, draws: &mut Draws) -> Profile {
        if seed.is_multiple_of(5) { Profile::calm(draws) } else { Profile::rough(draws) }
    }
}
