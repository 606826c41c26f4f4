//! Tests of the lab network: rows of facts, and random schedules against a model.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

mod away;
mod bad_input;
mod batches;
mod bytes;
mod captures;
mod cells;
mod compile;
mod directory;
mod doors;
mod engine;
mod families;
mod faults;
mod firewalls;
mod hosts;
mod ip;
mod links;
mod model;
mod names;
mod nats;
mod offload;
mod packets;
mod probe;
mod rng;
mod sockets;
mod topology;
mod wishes;
