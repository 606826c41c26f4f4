//! Clocks of nodes: a monotonic one that drifts, and a wall clock that is wrong and may jump.

use iptl_wire::Timestamp;

/// The clocks of one node, as a function of virtual time in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Where its monotonic clock stands at virtual time zero: nodes have nothing in common.
    pub base: u64,
    /// How much faster than virtual time it runs, in parts per million.
    pub drift_ppm: i64,
    /// Its wall clock less the true one, in microseconds.
    pub skew_us: i64,
}

impl Clock {
    /// Returns what the monotonic clock shows.
    pub fn stamp(&self, now: u64) -> Timestamp {
        let drift = i128::from(now) * i128::from(self.drift_ppm) / 1_000_000;
        Timestamp(self.base.saturating_add_signed(drift as i64).saturating_add(now))
    }

    /// Returns the first virtual time at which the monotonic clock shows `stamp` or more.
    pub fn when(&self, stamp: Timestamp) -> u64 {
        let since = i128::from(stamp.0.saturating_sub(self.base));
        let mut at = (since * 1_000_000 / i128::from(1_000_000 + self.drift_ppm)) as u64;
        while self.stamp(at) < stamp && at < u64::MAX / 2 {
            at += 1;
        }
        at
    }

    /// Returns what the wall clock shows, in microseconds since 1970, where the true one shows `true_us`.
    pub fn wall_us(&self, true_us: u64) -> u64 {
        true_us.saturating_add_signed(self.skew_us)
    }
}
