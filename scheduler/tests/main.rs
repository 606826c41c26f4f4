//! The cores through their three verbs, and placement by properties.

mod cores;
mod lablet;
mod log;
mod placement;
mod queue;
mod takeover;
