//! A failing schedule made small: what can be left out while the same rule is broken is left out.

use std::ops::Range;

use crate::{Profile, Schedule, takeover};

/// Schedules that may be tried.
const MAX_RUNS: u32 = 2_000;

/// A schedule of which parts can be left out, each without the others.
pub trait Shrinks: Clone + PartialEq {
    /// Returns how many faults it has.
    fn faults(&self) -> usize;
    /// Leaves out faults.
    fn leave_out_faults(&mut self, which: Range<usize>);
    /// Returns how many submissions it has.
    fn submissions(&self) -> usize;
    /// Leaves out a submission.
    fn leave_out_submission(&mut self, which: usize);
    /// Makes it simpler in the n-th way; false where there are no more ways.
    fn simplify(&mut self, way: usize) -> bool;
    /// Whether all that it names is there.
    fn is_whole(&self) -> bool;
}

/// Returns the smallest schedule found that still `fails`, as this one does.
///
/// No part can be left out of it alone, unless the search ended before, after some thousand schedules.
pub fn shrink<S: Shrinks>(mut schedule: S, mut fails: impl FnMut(&S) -> bool) -> S {
    let mut runs = 0;
    let mut accept = |schedule: &mut S, candidate: S| {
        if candidate == *schedule || !candidate.is_whole() || runs >= MAX_RUNS {
            return false;
        }
        runs += 1;
        let smaller = fails(&candidate);
        if smaller {
            *schedule = candidate;
        }
        smaller
    };
    loop {
        let before = schedule.clone();
        // Halves first, then ever smaller parts.
        let mut size = schedule.faults().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < schedule.faults() {
                let mut candidate = schedule.clone();
                candidate.leave_out_faults(at..(at + size).min(schedule.faults()));
                if !accept(&mut schedule, candidate) {
                    at += size;
                }
            }
            size /= 2;
        }
        let mut at = 0;
        while at < schedule.submissions() {
            let mut candidate = schedule.clone();
            candidate.leave_out_submission(at);
            if !accept(&mut schedule, candidate) {
                at += 1;
            }
        }
        for way in 0.. {
            let mut candidate = schedule.clone();
            if !candidate.simplify(way) {
                break;
            }
            accept(&mut schedule, candidate);
        }
        if schedule == before {
            return schedule;
        }
    }
}

impl Shrinks for Schedule {
    fn faults(&self) -> usize {
        self.faults.len()
    }

    fn leave_out_faults(&mut self, which: Range<usize>) {
        self.faults.drain(which);
    }

    fn submissions(&self) -> usize {
        self.submissions.len()
    }

    fn leave_out_submission(&mut self, which: usize) {
        self.submissions.remove(which);
    }

    fn simplify(&mut self, way: usize) -> bool {
        let ways: [fn(&mut Profile); 11] = [
            |p| p.loss_ppm = 0,
            |p| p.double_ppm = 0,
            |p| p.late_ppm = 0,
            |p| p.drift_ppm = 0,
            |p| p.prepare_fail_ppm = 0,
            |p| p.hang_ppm = 0,
            |p| p.delay_max_us = p.delay_min_us,
            |p| p.max_attempts = 1,
            |p| p.policies = false,
            |p| p.fail_ppm = 0,
            |p| p.lablets = p.lablets.saturating_sub(1).max(1),
        ];
        ways.get(way).map(|simplify| simplify(&mut self.profile)).is_some()
    }

    fn is_whole(&self) -> bool {
        self.faults.iter().all(|f| f.fault.lablet().is_none_or(|lablet| lablet < self.profile.lablets))
    }
}

impl Shrinks for takeover::Schedule {
    fn faults(&self) -> usize {
        self.faults.len()
    }

    fn leave_out_faults(&mut self, which: Range<usize>) {
        self.faults.drain(which);
    }

    fn submissions(&self) -> usize {
        self.submissions.len()
    }

    fn leave_out_submission(&mut self, which: usize) {
        self.submissions.remove(which);
    }

    fn simplify(&mut self, way: usize) -> bool {
        let ways: [fn(&mut takeover::Schedule); 16] = [
            |s| s.profile.loss_ppm = 0,
            |s| s.profile.double_ppm = 0,
            |s| s.profile.late_ppm = 0,
            |s| s.profile.drift_ppm = 0,
            |s| s.profile.write_us = 0,
            |s| s.profile.prepare_fail_ppm = 0,
            |s| s.profile.hang_ppm = 0,
            |s| s.profile.fail_ppm = 0,
            |s| s.profile.policies = false,
            |s| s.profile.max_attempts = 1,
            |s| s.submissions.iter_mut().for_each(|submission| submission.cancel_after_ms = None),
            |s| s.profile.group_size = 1,
            |s| s.profile.lablets = (s.profile.lablets / 2).max(1),
            |s| s.profile.lablets = s.profile.lablets.saturating_sub(1).max(1),
            |s| s.profile.orchestrators = s.profile.orchestrators.saturating_sub(1).max(2),
            takeover::Schedule::forget_who_is_gone,
        ];
        ways.get(way).map(|simplify| simplify(self)).is_some()
    }

    fn is_whole(&self) -> bool {
        self.names_who_is_there()
    }
}
