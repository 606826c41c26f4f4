//! Bitswap through its public surface: messages, the two cores alone, and many of both on a bad network.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails may panic, and has no users")]

mod client;
mod message;
mod server;
mod support;
mod world;
