//! What plan code says to the lab: where it is ([`env()`]), what it waits for ([`signal`], [`barrier`], [`publish`],
//! [`subscribe`]) and what it found out ([`event`], [`metric`], [`artifact`]).
//!
//! ```no_run
//! fn main() -> iptl_sdk::Result<()> {
//!     let env = iptl_sdk::env()?;
//!     iptl_sdk::signal_and_wait("ready", env.total.into())?;
//!     iptl_sdk::metric("answer", 42.0, "ms")
//! }
//! ```
//!
//! A program succeeds by ending with status zero. One thread runs it, so calls that wait come in two forms: the
//! functions here block, those of [`pending`] return handles that one loop can look at ([`Pending::try_take`]) or wait
//! for together ([`wait_any`]). [`net`] waits for sockets of std in the same way, [`network`] has what they send shaped.
//!
//! On `wasm32-wasip2` the lab answers through the WIT world in `wit/`. Compiled for a machine's own system, as for a
//! container, the same program speaks the sync protocol of Testground, and leaves its records as files; sockets and
//! names are then the system's own. Outside a lab, as in a test of a plan's logic, calls fail with
//! [`Error::NotInLab`].

mod back;
mod env;
mod error;
mod json;
pub mod net;
pub mod network;
mod rng;
mod sync;

pub use env::{Env, Param, Peer, env};
pub use error::{Error, Result};
pub use json::Json;
pub use rng::Rng;
pub use sync::{
    Message, Pending, Source, Subscription, barrier, pending, publish, signal, signal_and_wait, subscribe, wait_any,
    wait_any_for,
};

/// Records an event with its data: `event("connected", [("peer", "node-3")])`.
///
/// # Errors
///
/// Fails where the instance has recorded more than it may.
pub fn event(name: &str, data: impl Into<Json>) -> Result<()> {
    back::event(name, &data.into().to_string())
}

/// Records a value of a metric. The unit is the one that thresholds and reports write: `ms`, `MB/s`.
///
/// # Errors
///
/// Fails where the value is not finite or the instance has recorded more than it may.
pub fn metric(name: &str, value: f64, unit: &str) -> Result<()> {
    back::metric(name, value, unit)
}

/// Appends to the artifact at `path` (relative, with `/`), which is made where it does not exist.
///
/// # Errors
///
/// Fails on a path that leaves the instance's artifacts, and where it has written more than it may.
pub fn artifact(path: &str, data: &[u8]) -> Result<()> {
    back::artifact(path, data)
}
