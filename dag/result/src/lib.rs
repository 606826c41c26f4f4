//! Results: outcomes assembled from receipts, judged, sealed, and verified again by whoever reads them.
//!
//! [`assemble`] is a pure function from a run and its receipts to the outcome and the `files` directory; the same
//! inputs in any order give the same CIDs on any machine. [`seal`] ties them and a signed attestation under one CID.
//! [`verify`] takes such a CID and does it all again: signatures, receipts, placements, outcome and files.
//!
//! The rules, in the order in which they apply:
//!
//! * *Attempt.* Of an instance's receipts the one counts that ended by itself, under the highest epoch and then with
//!   the highest attempt (see [`assemble`]). An instance without one is lost: the lab stopped it, lost it, or
//!   never ran it. So is one that the orchestrator attests as missing.
//! * *Threshold.* A success rate is the share of instances that ended well among those that ended by themselves: what
//!   the lab lost says nothing about the software. Statistics of metrics are over raw values, percentiles by nearest
//!   rank, instances that were lost left out. A threshold with nothing to measure does not hold.
//! * *Verdict of the outcome.* It passes when at least one instance ended well or badly by itself, all thresholds
//!   hold, and no instance failed. Failed instances are forgiven only where a success-rate threshold of their group,
//!   or of all groups, says how many may fail. A group that fails fast is forgiven nothing.
//! * *Verdict of the result.* It is inconclusive when the run was cancelled or timed out, or when more instances were
//!   lost than the run allows, or than a group with a bound of its own does; else it is the verdict of the outcome. Where
//!   a group that fails fast has failed, the plan itself had the others stopped, and they are not held against the lab.
//! * *Attempts.* No receipt is of an attempt beyond what the run allows, and the attempts that are attested are those
//!   of which log and receipts tell.
//!
//! Nothing here touches a file, a socket or a clock; signatures are checked by a function that the caller gives.

mod assemble;
mod choose;
mod files;
mod judge;
mod metrics;
mod seal;
mod source;
mod used;
mod verify;

pub use assemble::{AssembleError, Assembled, Assembly, MAX_INSTANCES, assemble, give_up_unreadable};
pub use files::{GroupSummary, Summary};
pub use judge::inconclusive;
pub use metrics::{MAX_METRICS, MAX_METRICS_PER_GROUP, MAX_TRACKABLE, MetricSummary, MetricValue, parse_line};
pub use seal::{AttestationRecord, SealError, attestation, seal};
pub use source::SourceError;
pub use used::{GroupUse, Spread};
pub use verify::{CheckSignature, LabletCount, Networked, Verification, VerifyError, verify};
