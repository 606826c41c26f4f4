//! Many cores in one thread: the same state machines that nodes run, on a virtual clock and a bad network.
//!
//! [`World`] owns an orchestrator, its lablets, what each has on disk, and the network between them; it moves events in
//! the order of virtual time. [`Profile`] says how bad things get. [`model`] watches: it knows nothing of how the cores
//! decide, only what must never happen, and it is asked after every event.
//!
//! Everything is drawn from one seed: equal seeds give equal traces, down to the hash.

pub mod lablet;
pub mod model;
pub mod network;
pub mod orchestrator;
pub mod profile;
pub mod world;

pub use profile::Profile;
pub use world::{Report, World, run_seed};
