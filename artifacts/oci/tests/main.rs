//! Images through their public surface. All of them are made here; no engine takes part.

#![expect(clippy::unwrap_used, reason = "what a test needs and does not get ends it")]

mod bad_input;
mod build;
mod dedup;
mod golden;
mod make;
mod messages;
mod mutations;
mod rebuild;
mod round_trip;
mod sources;
mod unpack;
