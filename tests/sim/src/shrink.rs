//! A failing schedule made small: what can be left out while the same rule is broken is left out.

use crate::schedule::Schedule;
use crate::world::World;

/// Runs that shrinking may take.
const MAX_RUNS: u32 = 2_000;

/// Returns the smallest schedule found that breaks `rule`.
pub fn shrink(mut schedule: Schedule, rule: &str) -> Schedule {
    let mut runs = 0;
    let mut fails = |candidate: &Schedule| {
        runs += 1;
        runs <= MAX_RUNS
            && World::new(candidate.clone()).run().violations.iter().any(|violation| violation.rule == rule)
    };
    loop {
        let before = schedule.clone();
        // Halves first, then ever smaller parts.
        let mut size = schedule.faults.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < schedule.faults.len() {
                let mut candidate = schedule.clone();
                candidate.faults.drain(at..(at + size).min(schedule.faults.len()));
                if fails(&candidate) { schedule = candidate } else { at += size }
            }
            size /= 2;
        }
        let mut at = 0;
        while at < schedule.submissions.len() {
            let mut candidate = schedule.clone();
            candidate.submissions.remove(at);
            if fails(&candidate) { schedule = candidate } else { at += 1 }
        }
        for simpler in simpler_profiles(&schedule) {
            if fails(&simpler) {
                schedule.profile = simpler.profile;
            }
        }
        if schedule == before {
            return schedule;
        }
    }
}

/// Schedules with one number set to nothing; each is taken from the original, so that one may fail and another not.
fn simpler_profiles(schedule: &Schedule) -> Vec<Schedule> {
    let mut simpler = Vec::new();
    let knobs: [fn(&mut crate::Profile); 11] = [
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
    for knob in knobs {
        let mut candidate = schedule.clone();
        knob(&mut candidate.profile);
        let most = candidate.profile.lablets;
        if candidate.profile != schedule.profile
            && candidate.faults.iter().all(|f| f.fault.lablet().is_none_or(|l| l < most))
        {
            simpler.push(candidate);
        }
    }
    simpler
}
