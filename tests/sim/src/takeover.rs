//! A lab with several orchestrators: who leads dies, stands still, is cut off or hands over, and another one goes on.
//!
//! [`Schedule`] says what happens before it happens, [`World`] runs it: orchestrators with their candidates, lablets,
//! their disks, and a network that cuts pairs of nodes one way or both, loses, doubles and delays; some lablets say what
//! is not true. Facts and promises are durable when their write is, and facts are on the followers that are in contact
//! before they are acted on.
//!
//! [`truth`] watches, and knows nothing of how the cores decide.

mod reach;
mod schedule;
mod truth;
mod world;

use std::collections::BTreeMap;

use crate::model::Violation;
pub use reach::Point;
pub use schedule::{Fault, NAMES, Node, Planned, Profile, Schedule};
pub use world::World;

/// What a schedule came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events.
    pub events: u64,
    /// Virtual time at its end in milliseconds.
    pub virtual_ms: u64,
    /// Hash over all events.
    pub trace: u64,
    /// How often each point was reached.
    pub reached: BTreeMap<Point, u64>,
    /// Executions by how they ended.
    pub ended: BTreeMap<&'static str, u32>,
    /// What was found wrong.
    pub violations: Vec<Violation>,
}

/// Runs one schedule to its end; none where nobody knows the profile.
pub fn run_seed(seed: u64, profile: &str) -> Option<Report> {
    Some(World::new(Schedule::draw(seed, profile)?).run())
}
