//! Tying outcome, files and attestation under one CID.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use iptl_dag::model::{
    self, Attestation, CannotStart, Distortion, Epoch, Execution, InstanceId, LabletRecord, Node, ResultNode, Signed,
};
use iptl_dag::{Block, Cid, PeerId};

use crate::assemble::{Assembled, Assembly, try_to_block};

/// Most instances that the attestation names because people executed commands in them; receipts name all.
const MAX_TOUCHED: usize = 100;

/// Lateness of the 99th packet of a hundred, in nanoseconds, beyond which figures are not the model's any more: an
/// engine that has its processor stays far below, and the shortest delays between hosts of a region are about as long.
const MAX_LATE_NS: u64 = 1 << 20;

/// Share of a processor, in a hundred, beyond which an engine has too little of it left to be in time: packets come in
/// bursts, and an average of so much has times of all.
const MAX_BUSY_PERCENT: u64 = 70;

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
    /// Last attempt of every instance that was granted more than once after the start.
    pub attempts: BTreeMap<InstanceId, u32>,
    /// Why the plan had it ended before it was over.
    pub ended_early: Option<String>,
    /// Why nothing was ever started.
    pub cannot_start: Option<CannotStart>,
    /// Term of the lab in which the signer leads; none where the lab has none.
    pub term: Option<Epoch>,
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
    let network = of_network(assembly, &record.lablets);
    let distortions = record.distortions.into_iter().chain(network).chain(touched(assembly)).collect();
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
        missing: ranges(&assembled.missing),
        distortions,
        inconclusive: assembled.inconclusive.clone(),
        attempts: ranges(&record.attempts),
        ended_early: record.ended_early,
        cannot_start: record.cannot_start.map(Box::new),
        term: record.term,
    }
}

/// Says where the lab network did not keep to its model, by lablet.
fn of_network(assembly: &Assembly, lablets: &[LabletRecord]) -> Vec<Distortion> {
    let mut by_lablet: BTreeMap<&PeerId, Kept> = BTreeMap::new();
    for receipt in assembly.receipts.iter().map(|signed| &signed.body) {
        let Some(network) = &receipt.network else { continue };
        let kept = by_lablet.entry(&receipt.lablet).or_default();
        let cell = &network.cell;
        kept.lost = kept.lost.saturating_add(network.lost_by_lab);
        kept.lost_by_cell = kept.lost_by_cell.max(cell.lost_by_lab);
        kept.late_ns = kept.late_ns.max(cell.late_ns(990));
        kept.max_late_ns = kept.max_late_ns.max(cell.max_late_ns);
        kept.relayed = kept.relayed.max(cell.relayed);
        kept.overdue = kept.overdue.max(cell.overdue);
        kept.max_overdue_ns = kept.max_overdue_ns.max(cell.max_overdue_ns);
        if let Some(busy) = cell.cpu_us.and_then(|cpu_us| cpu_us.saturating_mul(100).checked_div(cell.wall_us)) {
            kept.busy_percent = kept.busy_percent.max(busy);
        }
    }
    let ms = |ns: u64| format!("{:.1} ms", ns as f64 / 1e6);
    let mut distortions = Vec::new();
    for (lablet, kept) in by_lablet {
        let named = lablets.iter().find(|record| record.peer == *lablet).map(|record| record.name.clone());
        let place = named.unwrap_or_else(|| lablet.to_string());
        let mut say = |what: String| distortions.push(Distortion { place: place.clone(), what });
        let lost = kept.lost.saturating_add(kept.lost_by_cell);
        if lost > 0 {
            say(format!("{lost} packets of the lab network were lost by the lab and by no model"));
        }
        if kept.late_ns > MAX_LATE_NS {
            let (late, most) = (ms(kept.late_ns), ms(kept.max_late_ns));
            say(format!("1 % of the lab network's packets were about {late} late or more, {most} at worst"));
        }
        if kept.busy_percent > MAX_BUSY_PERCENT {
            let (busy, most) = (kept.busy_percent, MAX_BUSY_PERCENT);
            say(format!(
                "the lab network took {busy} % of a processor, and cannot be counted on beyond {most} %: more was sent than \
                 the machine carries"
            ));
        }
        if kept.relayed > 0 {
            say(format!("{} packets from other lablets came over a relay, whose times are its own", kept.relayed));
        }
        if kept.overdue > 0 {
            let most = ms(kept.max_overdue_ns);
            say(format!(
                "{} packets from other lablets took longer than the network's delay, {most} at worst",
                kept.overdue
            ));
        }
    }
    distortions
}

/// How well a lablet kept to the network's model.
#[derive(Default)]
struct Kept {
    lost: u64,
    lost_by_cell: u64,
    late_ns: u64,
    max_late_ns: u64,
    relayed: u64,
    overdue: u64,
    max_overdue_ns: u64,
    busy_percent: u64,
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

/// Joins neighbours of which the same is said: `group/4`, `group/6-9`.
pub(crate) fn ranges<T: Clone + PartialEq>(said: &BTreeMap<InstanceId, T>) -> BTreeMap<String, T> {
    let mut ranges = BTreeMap::new();
    let mut rest = said.iter().peekable();
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

/// Reads a key of such ranges: a group and a range of indices, both ends included.
pub(crate) fn parse_range(key: &str) -> Option<(&str, RangeInclusive<u32>)> {
    let (group, indices) = key.rsplit_once('/')?;
    let (first, last) = indices.split_once('-').unwrap_or((indices, indices));
    Some((group, first.parse().ok()?..=last.parse().ok()?))
}
