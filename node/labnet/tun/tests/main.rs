//! The engine between real network namespaces.
//!
//! These tests make namespaces and devices, which takes privilege. Without it they say so on stderr and pass; where `CI`
//! or `IPTL_NETNS=required` is set they fail.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

mod bad_input;
mod containment;
mod delays;
mod life;
mod streams;
mod support;

/// Ends the test where namespaces cannot be made.
macro_rules! privileged {
    () => {
        if !crate::support::privileged() {
            return;
        }
    };
}
pub(crate) use privileged;
