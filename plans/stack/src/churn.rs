//! Who leaves and comes back, the same to all instances.

use std::collections::BTreeSet;
use std::time::Duration;

use iptl_sdk::{Env, Result, Rng};

/// How instances come and go.
#[derive(Clone, Copy)]
pub struct Churn {
    /// Share of them that do, from 0 to 1.
    share: f64,
    stay: Duration,
    /// Time that one is away.
    pub away: Duration,
}

impl Churn {
    /// Reads the parameters `churn`, `stay` and `away`.
    ///
    /// # Errors
    ///
    /// Fails where the run has none.
    pub fn of(env: &Env) -> Result<Churn> {
        Ok(Churn { share: env.param("churn")?, stay: env.param("stay")?, away: env.param("away")? })
    }

    /// Returns which instances come and go, of those from the ordinal `first`. One stays, whatever the share.
    pub fn leavers(&self, env: &Env, first: u32) -> BTreeSet<u32> {
        let mut left: Vec<u32> = (first..env.total).collect();
        let count = ((left.len() as f64 * self.share).round() as usize).min(left.len().saturating_sub(1));
        let mut rng = Rng::new(env.seed ^ 0x6c65_6176_6572_7321);
        rng.shuffle(&mut left);
        left.into_iter().take(count).collect()
    }

    /// Returns how long one stays this time: half of what the run says to one and a half.
    pub fn stay(&self, rng: &mut Rng) -> Duration {
        self.stay / 2 + Duration::from_millis(rng.below(self.stay.as_millis() as u64 + 1))
    }
}
