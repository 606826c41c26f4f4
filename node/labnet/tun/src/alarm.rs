//! How long the thread of an engine may sleep until something is due.
//!
//! A processor that sleeps takes some tens of microseconds to come back, so whoever sleeps until a packet is due delivers
//! it late by that. The thread wakes up earlier instead, and looks at its devices until the moment has come. What that may
//! use of a processor is bounded.

/// Time before something is due at which the thread wakes up, in nanoseconds.
const EARLY_NS: u64 = 100_000;

/// Time over which it is counted how long the thread was awake for that, in nanoseconds.
const PERIOD_NS: u64 = 1_000_000_000;

/// Time of a period that it may be, in nanoseconds: a twentieth.
const AWAKE_NS: u64 = PERIOD_NS / 20;

/// Says how long the thread may sleep.
#[derive(Default)]
pub(crate) struct Alarm {
    since_ns: u64,
    awake_ns: u64,
    /// When it was last said to stay awake.
    awake_from: Option<u64>,
}

impl Alarm {
    /// Returns for how many nanoseconds from now the thread may sleep, nothing where it may for ever. Zero asks it to look
    /// at its devices, and to ask again.
    pub(crate) fn sleep_ns(&mut self, now_ns: u64, due_ns: Option<u64>) -> Option<u64> {
        if let Some(from) = self.awake_from.take() {
            self.awake_ns += now_ns.saturating_sub(from);
        }
        if now_ns.saturating_sub(self.since_ns) >= PERIOD_NS {
            (self.since_ns, self.awake_ns) = (now_ns, 0);
        }
        let left_ns = due_ns?.saturating_sub(now_ns);
        if left_ns == 0 || self.awake_ns >= AWAKE_NS {
            return Some(left_ns);
        }
        let sleep_ns = left_ns.saturating_sub(EARLY_NS);
        if sleep_ns == 0 {
            self.awake_from = Some(now_ns);
        }
        Some(sleep_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn without_anything_due_the_thread_sleeps_for_ever() {
        assert_eq!(Alarm::default().sleep_ns(5, None), None);
    }

    #[test]
    fn the_thread_wakes_up_before_something_is_due_and_stays_awake_until_it_is() {
        let mut alarm = Alarm::default();
        assert_eq!(alarm.sleep_ns(0, Some(10 * MS)), Some(10 * MS - EARLY_NS));
        assert_eq!(alarm.sleep_ns(10 * MS - EARLY_NS, Some(10 * MS)), Some(0));
        assert_eq!(alarm.sleep_ns(10 * MS - 1, Some(10 * MS)), Some(0));
        assert_eq!(alarm.sleep_ns(10 * MS, Some(10 * MS)), Some(0));
        assert_eq!(alarm.sleep_ns(11 * MS, Some(10 * MS)), Some(0), "what is late is due");
    }

    #[test]
    fn staying_awake_takes_a_twentieth_of_a_processor_at_most() {
        let mut alarm = Alarm::default();
        let (mut now_ns, mut due_ns, mut awake_ns) = (0, EARLY_NS, 0);
        while now_ns < 3 * PERIOD_NS {
            let sleep_ns = alarm.sleep_ns(now_ns, Some(due_ns)).unwrap();
            // A look at the devices takes a microsecond.
            let passed_ns = if sleep_ns == 0 { 1_000 } else { sleep_ns };
            if sleep_ns == 0 {
                awake_ns += passed_ns;
            }
            now_ns += passed_ns;
            if now_ns >= due_ns {
                due_ns = now_ns + EARLY_NS;
            }
        }
        let bound_ns = 3 * (AWAKE_NS + EARLY_NS);
        assert!((bound_ns / 2..=bound_ns).contains(&awake_ns), "{awake_ns} of {bound_ns} ns");
    }
}
