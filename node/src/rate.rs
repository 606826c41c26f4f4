//! How fast something comes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate is of so long: what was before says little of what is now.
const WINDOW: Duration = Duration::from_secs(5);

/// Bytes in a second, over the last moments.
pub struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Begins at `now` with nothing.
    pub fn new(now: Instant) -> Rate {
        Rate { seen: VecDeque::from([(now, 0)]) }
    }

    /// Notes how many bytes there are now, and returns how many came in a second.
    pub fn at(&mut self, now: Instant, bytes: u64) -> u64 {
        self.seen.push_back((now, bytes));
        while self.seen.len() > 2 && self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        let Some((first, before)) = self.seen.front() else { return 0 };
        let seconds = now.duration_since(*first).as_secs_f64();
        if seconds < 0.001 { 0 } else { (bytes.saturating_sub(*before) as f64 / seconds) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_of_the_last_moments() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.at(start, 0), 0);
        assert_eq!(rate.at(after(1), 1000), 1000);
        assert_eq!(rate.at(after(2), 4000), 2000);
        // Nothing comes any more, and what came is long ago.
        for second in 3..20 {
            rate.at(after(second), 4000);
        }
        assert_eq!(rate.at(after(20), 4000), 0);
    }
}
