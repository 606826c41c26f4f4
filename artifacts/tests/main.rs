//! One binary for every integration test of the crate.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod car;
mod collectable;
mod files;
mod hostile;
mod mem;
mod memory;
mod pins;
mod public;
mod trees;
mod wide;
