//! The pack store against its contract, a reference model, a failing disk, and `kill -9`.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails may panic, and has no users")]

mod contract;
mod crash;
mod damage;
mod disk;
mod kill;
mod model;
