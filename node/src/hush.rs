//! How often something is spoken of that a peer can bring about as often as it likes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iptl_wire::Timestamp;

/// Time between two words.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one word through in a while, and counts the others.
#[derive(Default)]
pub(crate) struct Hush {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Timestamp>,
    silent: u64,
}

impl Hush {
    /// Returns how often nothing was said since the last word, where it is time to speak; else counts one more.
    pub(crate) fn due(&self, now: Timestamp) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.since(last) < PAUSE) {
            state.silent += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_asks_for_thousands_fills_no_log() {
        let hush = Hush::default();
        let start = Timestamp(7);
        assert_eq!(hush.due(start), Some(0));
        for _ in 0..5000 {
            assert_eq!(hush.due(start.after(PAUSE / 2)), None);
        }
        assert_eq!(hush.due(start.after(PAUSE)), Some(5000));
        assert_eq!(hush.due(start.after(PAUSE)), None);
        assert_eq!(hush.due(start.after(PAUSE * 2)), Some(1));
    }
}
