//! Tests of the lab network: rows of facts, and random schedules against a model.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

mod directory;
mod model;
mod packets;
mod rng;
mod sockets;
