//! A lab with several orchestrators: who leads dies, stands still, is cut off or hands over, and another one goes on.
//!
//! [`run_seed`] draws and runs one schedule. It has what a takeover needs of a driver and nothing else: facts are
//! durable in groups and on the followers that are in contact before they are acted on, promises are durable at once.
//! The network cuts pairs of nodes one way or both, loses, doubles and delays; some lablets say what is not true.
//!
//! [`truth`] watches, and knows nothing of how the cores decide.

mod truth;
mod world;

use std::collections::BTreeMap;

pub use truth::{Point, Violation};

/// What a schedule came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events.
    pub events: u64,
    /// How often each point was reached.
    pub reached: BTreeMap<Point, u64>,
    /// Executions by how they ended.
    pub ended: BTreeMap<&'static str, u32>,
    /// What was found wrong.
    pub violations: Vec<Violation>,
    /// Events as text, where they were asked for.
    pub told: Vec<String>,
}

/// Runs the schedule of a seed; tells its events where asked.
pub fn run_seed(seed: u64, tell: bool) -> Report {
    world::World::new(seed, tell).run()
}
