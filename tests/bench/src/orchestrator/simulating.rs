//! The orchestrator's core in the simulator: what a lab of it takes in with its model and all checks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use iptl_sim::{Schedule, World};

use crate::report::Row;

/// Schedules that are simulated in each profile.
const SIMULATED: u64 = 400;

/// Events that the simulator is to take in in a second, with its model and all checks.
const SIMULATING_GOAL: f64 = 50_000.0;

/// Schedules of whole labs on one thread, with the model and all checks, and what their cores take in alone.
pub fn measure() -> Result<Vec<Row>> {
    let mut inputs = 0;
    let mut alone = Duration::ZERO;
    for seed in 0..SIMULATED {
        let heard = World::new(Schedule::draw(seed, "mixed").context("there is no such profile")?).hear();
        let begun = Instant::now();
        inputs += heard.again();
        alone += begun.elapsed();
    }
    let alone = inputs as f64 / alone.as_secs_f64();
    let bound = "the lab's logs are read into a new core after each fact, and its state is compared";
    let mut rows = Vec::new();
    for profile in ["mixed", "takeover"] {
        let (mut events, begun) = (0, Instant::now());
        for seed in 0..SIMULATED {
            let mut walk = iptl_sim::Lab::draw(seed, profile).context("there is no such profile")?.walk();
            while walk.step() {}
            let came = walk.end();
            anyhow::ensure!(came.violations.is_empty(), "seed {seed} of {profile}: {:?}", came.violations);
            events += came.events;
        }
        let rate = events as f64 / begun.elapsed().as_secs_f64();
        rows.push(Row {
            measure: format!(
                "simulator with model and checks, {SIMULATED} schedules of profile {profile}, on one thread"
            ),
            figure: format!("{:.0} thousand events/s", rate / 1e3),
            reference: format!("the cores of profile mixed alone, told the same: {:.0} thousand inputs/s", alone / 1e3),
            ratio: format!("{:.2} ×", rate / alone),
            goal: format!("≥ {SIMULATING_GOAL}/s"),
            reached: Some(rate >= SIMULATING_GOAL),
            bound: bound.to_owned(),
        });
    }
    Ok(rows)
}
