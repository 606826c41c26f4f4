//! One binary for every integration test of the crate.

mod store;
mod transfer;
