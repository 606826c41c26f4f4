//! The time of the network, and a thread that wakes it when something is due.
//!
//! A thread of its own, since a timer of the runtime counts whole milliseconds: a wait on a condition variable ends
//! within tens of microseconds where a processor is free.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How late the kernel may wake the thread, in nanoseconds, so that it wakes others along with it; it is 50 µs
/// where nobody says.
const TIMER_SLACK_NS: u64 = 1;

#[derive(Default)]
pub(super) struct Clock {
    /// When the thread is to wake; none while nothing is due.
    due_ns: Mutex<Option<u64>>,
    earlier: Condvar,
}

impl Clock {
    /// Returns nanoseconds by the clock that all lab networks of a machine go by.
    pub(super) fn now_ns(&self) -> u64 {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        now.map_or(0, |now| u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
    }

    /// Has the thread wake at a time at the latest.
    pub(super) fn wake_at(&self, at_ns: u64) {
        let mut due_ns = self.due_ns.lock().unwrap_or_else(PoisonError::into_inner);
        if due_ns.is_none_or(|due_ns| at_ns < due_ns) {
            *due_ns = Some(at_ns);
            self.earlier.notify_one();
        }
    }

    /// Calls `wake` whenever something is due, for as long as the process lives.
    pub(super) fn run(&self, wake: impl Fn()) {
        if let Err(error) = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS) {
            tracing::warn!(%error, "packets will be late by up to 50 µs more than they need be");
        }
        loop {
            let mut due_ns = self.due_ns.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let now_ns = self.now_ns();
                due_ns = match *due_ns {
                    Some(at_ns) if at_ns <= now_ns => break,
                    Some(at_ns) => {
                        let wait = Duration::from_nanos(at_ns - now_ns);
                        self.earlier.wait_timeout(due_ns, wait).unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.earlier.wait(due_ns).unwrap_or_else(PoisonError::into_inner),
                };
            }
            *due_ns = None;
            drop(due_ns);
            wake();
        }
    }
}
