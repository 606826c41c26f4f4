//! Results: run, execution, outcome and attestation under one CID.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::execution::{Epoch, ExecutionId};
use crate::model::fact::CannotStart;
use crate::model::outcome::Counts;
use crate::model::signed::Signable;
use crate::{Cid, PeerId};

/// Tag of a result.
pub(super) const TAG: &str = "iptl.result/2";

/// What stands beside the tag of a result. Paths part at slashes, of which a tag holds one: so `RESULT/files` leads
/// somewhere in software that knows nothing of tags.
pub(super) const FILES: &str = "files";

/// The root of everything that an execution left.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultNode {
    /// The run.
    pub run: Cid,
    /// The execution.
    pub execution: ExecutionId,
    /// What the software did.
    pub outcome: Cid,
    /// What the lab states about it.
    pub attestation: Cid,
    /// UnixFS directory for people and data tools.
    pub files: Cid,
    /// Verdict over run and lab together.
    pub verdict: ResultVerdict,
    /// Instances by how they ended.
    pub counts: Counts,
}

/// What stands under the tag of a result.
#[derive(Serialize, Deserialize)]
pub(super) struct Body {
    run: Cid,
    execution: ExecutionId,
    outcome: Cid,
    attestation: Cid,
    verdict: ResultVerdict,
    counts: Counts,
}

impl ResultNode {
    /// Returns `files`, and what stands under the tag.
    pub(super) fn to_parts(&self) -> (Cid, Body) {
        let ResultNode { run, execution, outcome, attestation, files, verdict, counts } = self.clone();
        (files, Body { run, execution, outcome, attestation, verdict, counts })
    }

    pub(super) fn of_parts(files: Cid, body: Body) -> ResultNode {
        let Body { run, execution, outcome, attestation, verdict, counts } = body;
        ResultNode { run, execution, outcome, attestation, files, verdict, counts }
    }
}

/// A result of version 1, which had everything under its tag: it says the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormerResult(#[serde(with = "Former")] pub ResultNode);

/// What stands under the tag of version 1.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ResultNode")]
struct Former {
    run: Cid,
    execution: ExecutionId,
    outcome: Cid,
    attestation: Cid,
    files: Cid,
    verdict: ResultVerdict,
    counts: Counts,
}

/// Verdict over run and lab together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultVerdict {
    /// The software passed.
    Pass,
    /// The software failed.
    Fail,
    /// The lab lost too much to tell, or the run was cancelled.
    Inconclusive,
}

impl ResultVerdict {
    /// Returns the word that people and programs read: `pass`, `fail` or `inconclusive`.
    pub const fn name(self) -> &'static str {
        match self {
            ResultVerdict::Pass => "pass",
            ResultVerdict::Fail => "fail",
            ResultVerdict::Inconclusive => "inconclusive",
        }
    }
}

/// What the orchestrator states about an execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// Execution.
    pub execution: ExecutionId,
    /// The lab's key as a peer ID.
    pub lab: PeerId,
    /// Outcome that this vouches for.
    pub outcome: Cid,
    /// Directory that this vouches for.
    pub files: Cid,
    /// Chunks of receipts; each links a [`ReceiptShard`](crate::model::ReceiptShard).
    pub receipts: Vec<Cid>,
    /// Placements, oldest first.
    pub placements: Vec<Cid>,
    /// Last fact of the log before the result was sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Cid>,
    /// Lablets that took part.
    pub lablets: Vec<LabletRecord>,
    /// Wall times in milliseconds since 1970.
    pub submitted_ms: u64,
    /// When all cells were told to start; zero where none was.
    pub started_ms: u64,
    /// When the last receipt was in.
    pub ended_ms: u64,
    /// Instances that have no receipt, with the reason: `group/index` or `group/first-last` to reason.
    pub missing: BTreeMap<String, String>,
    /// What the lab itself did to the figures.
    pub distortions: Vec<Distortion>,
    /// Why the verdict is inconclusive; empty where it is not.
    pub inconclusive: Vec<String>,
    /// Instances that were granted more than once after the start, with the number of their last attempt:
    /// `group/index` or `group/first-last`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attempts: BTreeMap<String, u32>,
    /// Why the plan had the execution ended before it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<String>,
    /// Why nothing was ever started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_start: Option<Box<CannotStart>>,
    /// Term of the lab in which the signer led; none where the lab had none. Of two results of one execution the one of the
    /// later term counts, and one without a term before all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Epoch>,
}

impl Signable for Attestation {
    const DOMAIN: &'static str = "iptl/attestation/1";
}

/// A lablet that took part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabletRecord {
    /// Its key.
    pub peer: PeerId,
    /// Name that its owner gave.
    pub name: String,
    /// Version of its software.
    pub version: String,
    /// Logical processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Its wall clock less the orchestrator's in microseconds, from the heartbeat with the shortest round trip.
    pub clock_offset_us: i64,
    /// That round trip in microseconds, the bound of the offset's error.
    pub clock_error_us: u64,
}

/// Something that the lab did to the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distortion {
    /// Lablet or link that it concerns.
    pub place: String,
    /// What and how much.
    pub what: String,
}
