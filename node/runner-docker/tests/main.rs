//! The Docker runner against a real engine.
//!
//! Where there is none these tests say so on stderr and pass; where `CI` or `IPTL_DOCKER=required` is set they fail. Images are
//! made here, from a static program of the tests' own (`programs/`) and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod contract;
mod egress;
mod engine_restart;
mod faults;
mod hostile;
mod life;
mod measures;
mod network;
mod removal;
mod support;
mod take_over;
mod wishes;
mod witnesses;

/// Returns what a test needs of an engine, or ends the test where there is none.
macro_rules! engine {
    () => {
        match crate::support::Bench::new().await {
            Some(bench) => bench,
            None => return,
        }
    };
}
pub(crate) use engine;
