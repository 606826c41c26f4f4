//! The `files` directory: the same result for people, browsers and data tools.
//!
//! ```text
//! summary.json
//! logs/<group>/<index>.jsonl       events/<group>/<index>.jsonl       metrics/<group>/<index>.jsonl
//! artifacts/<group>/<index>/
//! histograms/<group>/<metric>.hdr
//! ```
//!
//! Instances' files are the ones that their lablets made, linked and not copied. A directory appears where there is
//! something in it, and is sharded where a group has some thousands of entries, which paths do not show.

use std::collections::BTreeMap;

use iptl_dag::model::{Counts, ThresholdOutcome, Verdict};
use iptl_dag::unixfs::{DirectoryBuilder, DirectoryError, Entry, FileBuilder};
use iptl_dag::{Block, Cid};
use serde::Serialize;

use crate::metrics::MetricSummary;

/// What stands in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `iptl.summary/1`.
    pub schema: &'static str,
    /// The run.
    pub run: String,
    /// Case of the plan.
    pub case: String,
    /// Verdict over the software; the result's own verdict also weighs what the lab did.
    pub verdict: Verdict,
    /// All instances.
    pub counts: Counts,
    /// By group.
    pub groups: BTreeMap<String, GroupSummary>,
    /// Every threshold with what was measured.
    pub thresholds: Vec<ThresholdOutcome>,
}

/// One group in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupSummary {
    /// Instances by how they ended.
    pub counts: Counts,
    /// Metrics by name.
    pub metrics: BTreeMap<String, MetricSummary>,
    /// Lines of metrics files that could not be read.
    pub malformed_lines: u64,
}

/// A kind of per-instance file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Artifacts,
    Events,
    Logs,
    Metrics,
}

impl Kind {
    const fn directory(self) -> &'static str {
        match self {
            Kind::Artifacts => "artifacts",
            Kind::Events => "events",
            Kind::Logs => "logs",
            Kind::Metrics => "metrics",
        }
    }

    fn file_name(self, index: u32) -> String {
        match self {
            Kind::Artifacts => index.to_string(),
            Kind::Events | Kind::Logs | Kind::Metrics => format!("{index}.jsonl"),
        }
    }
}

/// Entries of `files` as they are collected.
#[derive(Default)]
pub(crate) struct Files {
    instances: BTreeMap<(Kind, String), BTreeMap<u32, Entry>>,
    histograms: BTreeMap<String, BTreeMap<String, Entry>>,
}

impl Files {
    pub(crate) fn add(&mut self, kind: Kind, group: &str, index: u32, entry: Entry) {
        self.instances.entry((kind, group.to_owned())).or_default().insert(index, entry);
    }

    /// Adds a histogram as a file and returns its CID.
    pub(crate) fn add_histogram(&mut self, group: &str, metric: &str, bytes: &[u8], blocks: &mut Vec<Block>) -> Cid {
        let entry = FileBuilder::of_bytes(bytes, blocks);
        let cid = entry.cid;
        self.histograms.entry(group.to_owned()).or_default().insert(format!("{metric}.hdr"), entry);
        cid
    }

    /// Builds the directory.
    pub(crate) fn finish(self, summary: &Summary, blocks: &mut Vec<Block>) -> Result<Entry, DirectoryError> {
        let mut kinds: BTreeMap<&str, DirectoryBuilder> = BTreeMap::new();
        for ((kind, group), entries) in self.instances {
            let directory = instance_directory(kind, entries, blocks)?;
            kinds.entry(kind.directory()).or_default().insert(group, directory)?;
        }
        for (group, entries) in self.histograms {
            let mut directory = DirectoryBuilder::new();
            for (name, entry) in entries {
                directory.insert(name, entry)?;
            }
            kinds.entry("histograms").or_default().insert(group, directory.finish(blocks)?)?;
        }
        let mut root = DirectoryBuilder::new();
        for (name, directory) in kinds {
            root.insert(name, directory.finish(blocks)?)?;
        }
        let mut text = serde_json::to_vec_pretty(summary).expect("a summary has only finite numbers and text keys");
        text.push(b'\n');
        root.insert("summary.json", FileBuilder::of_bytes(&text, blocks))?;
        root.finish(blocks)
    }
}

fn instance_directory(
    kind: Kind,
    entries: BTreeMap<u32, Entry>,
    blocks: &mut Vec<Block>,
) -> Result<Entry, DirectoryError> {
    let mut directory = DirectoryBuilder::new();
    for (index, entry) in entries {
        directory.insert(kind.file_name(index), entry)?;
    }
    directory.finish(blocks)
}
