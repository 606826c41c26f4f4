//! Tying outcome, files and attestation under one CID.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use iptl_dag::model::{self, Attestation, Distortion, Execution, InstanceId, LabletRecord, Node, ResultNode, Signed};
use iptl_dag::{Block, Cid, PeerId};

use crate::assemble::{Assembled, Assembly, try_to_block};

/// What the orchestrator adds to an outcome from its own knowledge.
#[derive(Clone, Debug)]
pub struct AttestationRecord {
    /// The lab's key as a peer ID.
    pub lab: PeerId,
    /// Chunks of receipts as the lablets sealed them.
    pub receipts: Vec<Cid>,
    /// Placements, oldest first.
    pub placements: Vec<Cid>,
    /// Last fact of the log before the result is sealed.
    pub log: Option<Cid>,
    /// Lablets that took part.
    pub lablets: Vec<LabletRecord>,
    /// Wall time of the submission in milliseconds since 1970.
    pub submitted_ms: u64,
    /// When all cells were told to start; zero where none was.
    pub started_ms: u64,
    /// When the last receipt was in.
    pub ended_ms: u64,
    /// What the lab itself did to the figures.
    pub distortions: Vec<Distortion>,
}

/// Why a result could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The attestation exceeds a block: too many instances are missing, each for a reason of its own.
    #[error("an attestation of {size} bytes, more than a block holds")]
    AttestationTooLarge {
        /// Size in bytes.
        size: usize,
    },
}

/// Writes the attestation that the orchestrator then signs.
pub fn attestation(assembly: &Assembly, assembled: &Assembled, record: AttestationRecord) -> Attestation {
    Attestation {
        execution: assembly.execution,
        lab: record.lab,
        outcome: assembled.outcome,
        files: assembled.files,
        receipts: record.receipts,
        placements: record.placements,
        log: record.log,
        lablets: record.lablets,
        submitted_ms: record.submitted_ms,
        started_ms: record.started_ms,
        ended_ms: record.ended_ms,
        missing: missing_ranges(&assembled.missing),
        distortions: record.distortions,
        inconclusive: assembled.inconclusive.clone(),
    }
}

/// Seals a result: returns its root and the blocks that are new since [`Assembled::blocks`], the root last.
pub fn seal(
    assembly: &Assembly,
    assembled: &Assembled,
    execution: &Execution,
    attestation: Signed<Attestation>,
) -> Result<(ResultNode, Vec<Block>), SealError> {
    let execution = Node::from(execution.clone()).to_block();
    let attestation = try_to_block(attestation).map_err(|size| SealError::AttestationTooLarge { size })?;
    let node = ResultNode {
        run: assembly.run_cid,
        execution: assembly.execution,
        outcome: assembled.outcome,
        attestation: *attestation.cid(),
        files: assembled.files,
        verdict: assembled.result_verdict,
        counts: assembled.counts,
    };
    let root = model::to_block(node.clone());
    Ok((node, vec![execution, attestation, root]))
}

/// Joins neighbours that are missing for the same reason: `group/4`, `group/6-9`.
pub(crate) fn missing_ranges(missing: &BTreeMap<InstanceId, String>) -> BTreeMap<String, String> {
    let mut ranges = BTreeMap::new();
    let mut rest = missing.iter().peekable();
    while let Some((first, reason)) = rest.next() {
        let mut last = first.index;
        while let Some((next, _)) =
            rest.next_if(|(id, r)| id.group == first.group && Some(id.index) == last.checked_add(1) && *r == reason)
        {
            last = next.index;
        }
        let key = if last == first.index { first.to_string() } else { format!("{first}-{last}") };
        ranges.insert(key, reason.clone());
    }
    ranges
}

/// Reads a key of the missing: a group and a range of indices, both ends included.
pub(crate) fn parse_missing(key: &str) -> Option<(&str, RangeInclusive<u32>)> {
    let (group, indices) = key.rsplit_once('/')?;
    let (first, last) = indices.split_once('-').unwrap_or((indices, indices));
    Some((group, first.parse().ok()?..=last.parse().ok()?))
}
