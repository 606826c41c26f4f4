//! One binary for every integration test of the crate.

mod files;
mod mem;
mod pins;
