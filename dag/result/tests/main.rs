//! Tests of results through their public surface.

mod assembling;
mod bad_input;
mod metrics;
mod verifying;
mod world;
