//! Real nodes on loopback sockets. Nothing sleeps: every wait is for an event, with a limit.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails may panic, and has no users")]

mod bitswap;
mod boxo;
mod gossip;
mod kad;
mod lab;
mod latency;
mod relay;
mod start;
mod streams;
