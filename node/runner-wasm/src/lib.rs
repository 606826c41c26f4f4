//! Runs WASI 0.2 components: the only crate that names wasmtime.
//!
//! Every cell runs in a process of its own, started from the same binary, so that limits, crashes of compiled code and
//! `kill -9` concern a process that is not the lablet. [`parent`] is this side of it: [`WasmRunner`] starts workers,
//! keeps one warm, and says how a cell ended whose worker died. [`ipc`] are the frames between the two. [`worker`] is
//! the other side: the engine, the limits, the virtual network, the host functions of `iptl:lab`. [`capacity`] says
//! what the machine can hold. [`bare`] is the engine without all that, for benchmarks.
//!
//! Guests get no directory, no variable and no network of the host. Start reading at [`parent`] for the life of a
//! cell, at `worker/guest.rs` for the life of an instance.

pub mod bare;
mod capacity;
mod ipc;
mod parent;
mod worker;

pub use parent::{WasmConfig, WasmRunner};
pub use worker::worker_main;

/// Version of the engine that receipts carry.
const ENGINE: &str = "wasmtime-48.0.8";
