//! The pack store against its contract, a reference model, a failing disk, and `kill -9`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    reason = "a test program has no outside; `pub` here says what a module means for its siblings"
)]

mod contract;
mod crash;
mod damage;
mod disk;
mod kill;
mod model;
