//! When an instance's turns are.

use std::time::{Duration, Instant};

use iptl_sdk::Rng;

/// Turns of one instance: all together have as many in a second as the run says, however many they are, and each has its
/// own at times of its own. So what the software meets does not depend on the number of peers, nor on who waited for whom.
pub struct Pace {
    every: Duration,
    next: Instant,
}

impl Pace {
    /// Begins now: the first turn is within as long as all need for one each.
    pub fn new(rng: &mut Rng, peers: u32, per_second: f64) -> Pace {
        let every = Duration::from_secs_f64(f64::from(peers) / per_second);
        let first = Duration::from_micros(rng.below(every.as_micros() as u64 + 1));
        Pace { every, next: Instant::now() + first }
    }

    /// Returns how long the next turn is away. A turn that has passed is at once, and those after it are later.
    pub fn wait(&mut self) -> Duration {
        let now = Instant::now();
        let turn = self.next.max(now);
        self.next = turn + self.every;
        turn - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_far_apart_as_all_peers_need_for_one_each() {
        let mut pace = Pace::new(&mut Rng::new(7), 100, 10.0);
        let first = pace.wait();
        assert!(first <= Duration::from_secs(10));
        let second = pace.wait();
        let apart = second - first;
        assert!(apart > Duration::from_secs(9) && apart <= Duration::from_secs(10), "{apart:?}");
    }
}
