//! Tying outcome, files and attestation under one CID.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use iptl_dag::model::{self, Attestation, Distortion, Execution, InstanceId, LabletRecord, Node, ResultNode, Signed};
use iptl_dag::{Block, Cid, PeerId};

use crate::assemble::{Assembled, Assembly, try_to_block};

/// Most instances that the attestation names because people executed commands in them; receipts name all.
const MAX_TOUCHED: usize = 100;

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
        distortions: record.distortions.into_iter().chain(touched(assembly)).collect(),
        inconclusive: assembled.inconclusive.clone(),
    }
}

/// Says in which instances people executed commands: what these measured may be their doing.
fn touched(assembly: &Assembly) -> Vec<Distortion> {
    let mut by_instance: BTreeMap<&InstanceId, usize> = BTreeMap::new();
    for receipt in assembly.receipts.iter().map(|signed| &signed.body).filter(|r| !r.interventions.is_empty()) {
        *by_instance.entry(&receipt.instance).or_default() += receipt.interventions.len();
    }
    let further = by_instance.len().saturating_sub(MAX_TOUCHED);
    let mut touched: Vec<Distortion> = by_instance
        .into_iter()
        .take(MAX_TOUCHED)
        .map(|(instance, count)| {
            let commands = if count == 1 { "1 command was".to_owned() } else { format!("{count} commands were") };
            Distortion { place: instance.to_string(), what: format!("{commands} executed in it by people") }
        })
        .collect();
    if further > 0 {
        let what = "commands were executed in them by people".to_owned();
        touched.push(Distortion { place: format!("{further} more instances"), what });
    }
    touched
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
