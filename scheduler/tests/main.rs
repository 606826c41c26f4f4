//! The cores through their three verbs, and placement by properties.

mod bad_input;
mod bench;
mod cores;
mod faults;
mod lablet;
mod leases;
mod log;
mod losses;
mod placement;
mod queue;
mod succession;
mod takeover;
mod ways;
