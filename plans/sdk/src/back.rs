//! What answers: the lab through its WIT world, or through its sync service for programs compiled natively.

#[cfg(target_family = "wasm")]
mod bindings;
#[cfg(target_family = "wasm")]
mod rt;
#[cfg(target_family = "wasm")]
mod wasm;
#[cfg(target_family = "wasm")]
pub use wasm::Event;
#[cfg(target_family = "wasm")]
pub(crate) use wasm::{Pending, Subscription, artifact, configure, event, metric, wait};

#[cfg(not(target_family = "wasm"))]
mod native;
#[cfg(not(target_family = "wasm"))]
pub use native::Event;
#[cfg(not(target_family = "wasm"))]
pub(crate) use native::{Pending, Subscription, artifact, configure, event, metric, wait};
