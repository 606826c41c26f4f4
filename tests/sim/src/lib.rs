//! Many cores in one thread: the same state machines that nodes run, on a virtual clock and a bad network.
//!
//! [`Schedule`] says what happens to a lab before it happens: it is drawn from a seed under a [`Profile`]. [`World`]
//! owns an orchestrator, its lablets, what each has on disk, and the network between them; it moves events in the order
//! of virtual time. [`model`] watches: it knows nothing of how the cores decide, only what must never happen, and it is
//! asked after every event. [`reach`] counts what schedules came through, [`mod@shrink`] makes a failing one small, and
//! [`Trace`] keeps it. [`takeover`] has labs with several orchestrators.
//!
//! Everything comes from one schedule: equal schedules give equal events, down to the hash.

pub mod clock;
mod event;
mod heard;
pub mod lablet;
pub mod model;
pub mod network;
pub mod opening;
pub mod orchestrator;
pub mod prefixes;
pub mod profile;
pub mod reach;
pub mod schedule;
pub mod shrink;
pub mod takeover;
pub mod trace;
pub mod world;

pub use heard::Heard;
pub use opening::{LongLog, Replay, long_log, open_log};
pub use prefixes::Opened;
pub use profile::Profile;
pub use reach::{Point, Reached};
pub use schedule::Schedule;
pub use shrink::{Shrinks, shrink};
pub use trace::{Came, Lab, Trace, Walk};
pub use world::{Report, World, crowd};

/// Runs one schedule to its end; none where nobody knows the profile.
pub fn run_seed(seed: u64, profile: &str) -> Option<Report> {
    Some(World::new(Schedule::draw(seed, profile)?).run())
}
