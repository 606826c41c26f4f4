//! Tests of results through their public surface.

mod assembling;
mod metrics;
mod verifying;
mod world;
