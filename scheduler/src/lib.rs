//! Both ends of the lab's protocol as state machines without IO, clock or randomness of their own.
//!
//! [`Orchestrator`] accepts runs, places them, grants cells to lablets, waits for all of them to be prepared, starts
//! them, gathers receipts and orders the result. [`Lablet`] bids, keeps its promises, runs cells under a lease and
//! seals receipts. [`placement()`] is the pure function between inventory and assignments.
//!
//! Both cores have three verbs: `handle(now, input)`, `poll_effect()` and `poll_timeout()`. A driver checks what comes
//! in, carries out what comes out **in order**, and calls `handle` with `Timeout` when the time that `poll_timeout`
//! names has come. Messages may be lost, doubled, late and reordered: what counts is repeated with heartbeats until
//! the other side shows that it knows.
//!
//! [`candidate`] says who leads where a lab has several orchestrators. [`log`] is what an orchestrator wrote down, as a value: records, the chain of facts, snapshots.
//!
//! Sync between instances and their output bypass the cores. Start reading at [`orchestrator`].

pub mod candidate;
pub mod lablet;
pub mod log;
pub mod orchestrator;
pub mod placement;

pub use candidate::{Candidate, CandidateConfig, CandidateEffect, CandidateInput};
pub use lablet::{Lablet, LabletConfig, LabletEffect, LabletInput};
pub use orchestrator::{
    AssembledResult, AssemblyOrder, Effect, Input, Orchestrator, OrchestratorConfig, ReceiptSummary, Remembered,
    RememberedCell, Submission,
};
pub use placement::{EGRESS, GRANTED, Placed, egress_label, placement};
