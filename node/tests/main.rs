//! Nodes in one process, each with a home, a store and a swarm of its own on loopback.
//!
//! `lab` starts them and talks to them; `fetching` has the fetcher and its providers; `resuming` its cuts; `ranges` parts of
//! files; `wide` DAGs of many small blocks; `feeding` many fetchers at once; `announcing` what the DHT is told; `bad_input`
//! peers that lie, drip, flood and claim; `control` what a node answers to whom; `joining` the door of a lab; `runs`
//! executions without lablets; `keeping` what it keeps and drops; `homes` what a node finds when it starts. `memory` counts
//! what a test holds.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails may panic, and has no users")]

mod announcing;
mod bad_input;
mod control;
mod feeding;
mod fetching;
mod homes;
mod joining;
mod keeping;
mod lab;
#[path = "../../artifacts/tests/memory.rs"]
mod memory;
mod ranges;
mod resuming;
mod runs;
mod sharing;
mod wide;
