//! The tests that hold the architecture.

mod edges;
mod files;
mod mutations;
mod purity;
