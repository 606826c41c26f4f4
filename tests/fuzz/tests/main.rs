//! The corpora as ordinary tests: what fuzzing has found stays found.

#![expect(clippy::unwrap_used, reason = "what a test needs and does not get ends it")]

mod corpora;
mod seeds;
