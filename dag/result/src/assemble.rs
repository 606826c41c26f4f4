//! From receipts to an outcome and its files.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use iptl_dag::model::outcome::MAX_INSTANCES_PER_SHARD;
use iptl_dag::model::{
    self, Counts, ExecutionId, GroupOutcome, InstanceId, InstanceOutcome, Node, Outcome, OutcomeShard, Receipt,
    ResultVerdict, Run, Signed, Termination, ThresholdOutcome, Verdict,
};
use iptl_dag::unixfs::DirectoryError;
use iptl_dag::{Block, Cid, Codec, MAX_BLOCK_SIZE, codec};

use crate::choose::{choose, termination};
use crate::files::{Files, GroupSummary, Kind, Summary};
use crate::judge;
use crate::metrics::Collector;
use crate::source::{Source, SourceError};

/// Most instances of a run that can be assembled: an outcome of them stays a few hundred megabytes.
pub const MAX_INSTANCES: u64 = 1_000_000;

/// What an outcome is assembled from.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The run.
    pub run_cid: Cid,
    /// Its node.
    pub run: Run,
    /// The execution.
    pub execution: ExecutionId,
    /// Receipts of all attempts, in any order, with signatures that the caller has checked. Those of another
    /// execution or of no instance of the run are left out.
    pub receipts: Vec<Signed<Receipt>>,
    /// Instances that have no receipt, with the reason. They are lost, as is any instance that nobody speaks of.
    pub missing: BTreeMap<InstanceId, String>,
    /// Someone ended the execution before it was over.
    pub cancelled: bool,
    /// The run's wall time was over before it was.
    pub timed_out: bool,
    /// Why nothing was ever started, where that was so.
    pub cannot_start: Option<String>,
}

/// An outcome with everything that stands below it.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// New blocks: outcome, shards, histograms, directories, summary. What receipts link is not repeated.
    pub blocks: Vec<Block>,
    /// CID of the outcome.
    pub outcome: Cid,
    /// CID of the `files` directory.
    pub files: Cid,
    /// Verdict over the software.
    pub verdict: Verdict,
    /// Verdict over software and lab together.
    pub result_verdict: ResultVerdict,
    /// All instances by how they ended.
    pub counts: Counts,
    /// Every threshold with what was measured.
    pub thresholds: Vec<ThresholdOutcome>,
    /// Why the verdict is inconclusive; empty where it is not.
    pub inconclusive: Vec<String>,
    /// What stands in `summary.json`.
    pub summary: Summary,
    /// Instances without a receipt, with the reason, for the attestation: the given ones that have indeed none, and
    /// those of which nobody spoke.
    pub missing: BTreeMap<InstanceId, String>,
}

/// Why an outcome could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The run has more instances than can be assembled.
    #[error("a run of {instances} instances, of which {MAX_INSTANCES} can be assembled")]
    TooManyInstances {
        /// Number of instances.
        instances: u64,
    },
    /// Something that an instance's receipt links cannot be used; [`give_up_unreadable`] finds all such instances.
    #[error("{what} of {instance}")]
    Content {
        /// Instance in question.
        instance: InstanceId,
        /// `logs`, `events`, `metrics`, `artifacts`.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<SourceError>,
    },
    /// The run has so many groups and thresholds that its outcome exceeds a block.
    #[error("an outcome of {size} bytes, more than a block holds")]
    OutcomeTooLarge {
        /// Size in bytes.
        size: usize,
    },
    /// The directory cannot be built: a group's name is no file name, or there are too many groups.
    #[error("the files directory cannot be built")]
    Files(#[from] DirectoryError),
}

/// Assembles the outcome and its files, and judges them.
///
/// `read` gives the bytes of blocks; every block is checked against its CID. Only metrics are read as a whole; of logs,
/// events and artifacts only the roots.
pub fn assemble(input: &Assembly, read: &mut dyn FnMut(&Cid) -> Option<Bytes>) -> Result<Assembled, AssembleError> {
    let run = &input.run;
    if run.instances() > MAX_INSTANCES {
        return Err(AssembleError::TooManyInstances { instances: run.instances() });
    }
    let mut source = Source::new(read);
    let chosen = choose(run, &input.execution, &input.receipts);
    let mut metrics = Collector::new(&run.thresholds);
    let mut assembler = Assembler::default();
    for (name, group) in &run.groups {
        let instances = InstanceId::range(name, 0, group.count).map(|id| {
            let receipt = chosen.get(&id).copied();
            (id, receipt)
        });
        assembler.group(name, instances, &input.missing, &mut metrics, &mut source)?;
    }

    let Assembler { mut blocks, files, groups, counts, summaries, missing } = assembler;
    let thresholds = judge::thresholds(&run.thresholds, &counts, &metrics);
    let verdict = judge::verdict(run, &counts, &thresholds);
    let total = judge::total(&counts);
    let outcome = Outcome {
        run: input.run_cid,
        groups,
        thresholds: thresholds.clone(),
        verdict,
        losses: judge::losses(run, &counts),
        fail_fast: judge::failed_fast(run, &counts).map(ToOwned::to_owned),
    };
    let outcome_block = try_to_block(outcome).map_err(|size| AssembleError::OutcomeTooLarge { size })?;
    let outcome = *outcome_block.cid();
    blocks.push(outcome_block);
    let summary = Summary {
        schema: "iptl.summary/1",
        run: input.run_cid.to_string(),
        case: run.case.clone(),
        verdict,
        counts: total,
        groups: summaries,
        thresholds: thresholds.clone(),
    };
    let files = files.finish(&summary, &mut blocks)?.cid;
    let mut seen = BTreeSet::new();
    blocks.retain(|block| seen.insert(*block.cid()));
    let inconclusive = judge::inconclusive(run, &counts, input);
    let result_verdict = judge::result_verdict(verdict, &inconclusive);
    Ok(Assembled {
        blocks,
        outcome,
        files,
        verdict,
        result_verdict,
        counts: total,
        thresholds,
        inconclusive,
        summary,
        missing,
    })
}

/// Takes out the receipts of every instance whose content cannot be used, and puts it among the missing with the
/// reason: what an orchestrator does at its deadline. Returns how many there were.
///
/// The receipts may stay in the chunks that are attested: an instance that is attested as missing is lost, whatever
/// receipts there are of it.
pub fn give_up_unreadable(input: &mut Assembly, read: &mut dyn FnMut(&Cid) -> Option<Bytes>) -> usize {
    let mut source = Source::new(read);
    let chosen = choose(&input.run, &input.execution, &input.receipts);
    let unreadable: BTreeMap<InstanceId, String> = chosen
        .into_iter()
        .filter_map(|(id, receipt)| {
            let (what, error) = unusable(receipt, &mut source)?;
            Some((id.clone(), format!("its {what} cannot be had: {}", chain(&error))))
        })
        .collect();
    input.receipts.retain(|receipt| !unreadable.contains_key(&receipt.body.instance));
    let count = unreadable.len();
    input.missing.extend(unreadable);
    count
}

fn unusable(receipt: &Receipt, source: &mut Source<'_>) -> Option<(&'static str, SourceError)> {
    for (_, what, cid) in content(receipt) {
        if let Some(error) = cid.and_then(|cid| source.entry(&cid).err()) {
            return Some((what, error));
        }
    }
    let metrics = instance_outcome(receipt).metrics?;
    source.for_each_piece(&metrics, |_| {}).err().map(|error| ("metrics", error))
}

/// What a receipt links, with its name for people.
fn content(receipt: &Receipt) -> [(Kind, &'static str, Option<Cid>); 4] {
    [
        (Kind::Logs, "logs", receipt.logs),
        (Kind::Events, "events", receipt.events),
        (Kind::Metrics, "metrics", receipt.metrics),
        (Kind::Artifacts, "artifacts", receipt.artifacts),
    ]
}

/// Writes an error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Encodes a node whose size others decide; fails with the size where it exceeds a block.
pub(crate) fn try_to_block(node: impl Into<Node>) -> Result<Block, usize> {
    let bytes = codec::encode(&node.into());
    if bytes.len() <= MAX_BLOCK_SIZE { Ok(Block::new(Codec::DagCbor, bytes)) } else { Err(bytes.len()) }
}

/// What is known after some groups.
#[derive(Default)]
struct Assembler {
    blocks: Vec<Block>,
    files: Files,
    groups: BTreeMap<String, GroupOutcome>,
    counts: BTreeMap<String, Counts>,
    summaries: BTreeMap<String, GroupSummary>,
    missing: BTreeMap<InstanceId, String>,
}

impl Assembler {
    fn group<'r>(
        &mut self,
        name: &str,
        instances: impl Iterator<Item = (InstanceId, Option<&'r Receipt>)>,
        reasons: &BTreeMap<InstanceId, String>,
        metrics: &mut Collector,
        source: &mut Source<'_>,
    ) -> Result<(), AssembleError> {
        let mut counts = Counts::default();
        let mut outcomes = Vec::new();
        for (id, receipt) in instances {
            let outcome = match receipt {
                Some(receipt) => {
                    self.link_files(receipt, source)?;
                    instance_outcome(receipt)
                }
                None => {
                    let outcome = lost(id.index);
                    let reason = reasons.get(&id).cloned().unwrap_or_else(|| "no receipt arrived".to_owned());
                    self.missing.insert(id, reason);
                    outcome
                }
            };
            judge::count(&mut counts, &outcome.termination);
            outcomes.push(outcome);
        }
        let collected = metrics
            .group(name, outcomes.iter().filter_map(|o| Some((o.index, o.metrics?))), source)
            .map_err(|(index, source)| AssembleError::Content {
                instance: InstanceId { group: name.to_owned(), index },
                what: "metrics",
                source: Box::new(source),
            })?;
        let mut histograms = BTreeMap::new();
        for (metric, bytes) in collected.histograms {
            let cid = self.files.add_histogram(name, &metric, &bytes, &mut self.blocks);
            histograms.insert(metric, cid);
        }
        let mut shards = Vec::new();
        for instances in outcomes.chunks(MAX_INSTANCES_PER_SHARD) {
            let block = model::to_block(OutcomeShard { instances: instances.to_vec() });
            shards.push(*block.cid());
            self.blocks.push(block);
        }
        self.groups.insert(name.to_owned(), GroupOutcome { counts, instances: shards, histograms });
        self.counts.insert(name.to_owned(), counts);
        self.summaries.insert(
            name.to_owned(),
            GroupSummary { counts, metrics: collected.summaries, malformed_lines: collected.malformed },
        );
        Ok(())
    }

    fn link_files(&mut self, receipt: &Receipt, source: &mut Source<'_>) -> Result<(), AssembleError> {
        let id = &receipt.instance;
        for (kind, what, cid) in content(receipt) {
            let Some(cid) = cid else { continue };
            let entry = source.entry(&cid).map_err(|source| AssembleError::Content {
                instance: id.clone(),
                what,
                source: Box::new(source),
            })?;
            self.files.add(kind, &id.group, id.index, entry);
        }
        Ok(())
    }
}

/// What the outcome says of an instance. Of a lost one it says nothing more: how far it came is the lab's doing.
fn instance_outcome(receipt: &Receipt) -> InstanceOutcome {
    let index = receipt.instance.index;
    match termination(&receipt.exit) {
        Termination::Lost {} => lost(index),
        termination @ (Termination::Ok {} | Termination::Failed { .. }) => {
            InstanceOutcome { index, termination, events: receipt.events, metrics: receipt.metrics }
        }
    }
}

fn lost(index: u32) -> InstanceOutcome {
    InstanceOutcome { index, termination: Termination::Lost {}, events: None, metrics: None }
}
