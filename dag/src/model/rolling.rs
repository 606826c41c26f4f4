//! How the instances of a group start where they do not start together.

use serde::{Deserialize, Serialize};

/// A start in batches, by the index of instances: the first batch starts with the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// Instances in a batch, one at least; zero counts as one.
    pub count: u32,
    /// Time from the start of one batch to that of the next, in milliseconds.
    pub every_ms: u64,
}

impl Rolling {
    /// Returns how long after the run's start an instance starts, in milliseconds.
    pub fn delay_ms(self, index: u32) -> u64 {
        u64::from(index / self.count.max(1)).saturating_mul(self.every_ms)
    }

    /// Returns how long after the run's start the last of so many instances starts, in milliseconds.
    pub fn last_ms(self, count: u32) -> u64 {
        self.delay_ms(count.saturating_sub(1))
    }
}
