//! Metrics: lines to values, values to distributions.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use iptl_dag::Cid;
use iptl_dag::model::{Statistic, Subject, Threshold};
use iptl_dag::unixfs::check_name;
use serde::{Deserialize, Serialize};

use crate::source::{Source, SourceError};

/// Most metrics of one group; lines of further ones count as malformed. A name is part of a path and of a table.
pub const MAX_METRICS_PER_GROUP: usize = 256;

/// Most metrics over all groups, the first groups first: an outcome links each, and is one block.
pub const MAX_METRICS: usize = 4096;

/// Largest value that a histogram holds, in thousandths of the unit; larger ones are recorded as this.
pub const MAX_TRACKABLE: u64 = 1 << 53;

/// Longest name of a metric in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Longest line that is looked at, in bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Significant decimal digits of a histogram.
const SIGNIFICANT_DIGITS: u8 = 3;

/// One value of a metric, as an instance wrote it.
#[derive(Debug, PartialEq, Deserialize)]
pub struct MetricValue<'a> {
    /// Name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Value, finite.
    pub value: f64,
    /// Unit; empty for plain numbers.
    #[serde(borrow, default)]
    pub unit: Cow<'a, str>,
}

/// Reads one line of a metrics file; `None` where it is malformed.
pub fn parse_line(line: &[u8]) -> Option<MetricValue<'_>> {
    let value: MetricValue<'_> = serde_json::from_slice(line).ok()?;
    let named = value.name.len() <= MAX_NAME_BYTES
        && check_name(&value.name).is_ok()
        && !value.name.chars().any(char::is_control);
    (named && value.value.is_finite() && value.unit.len() <= MAX_NAME_BYTES).then_some(value)
}

/// The distribution of one metric over one group.
struct Distribution {
    unit: String,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    negative: u64,
    histogram: Histogram<u64>,
}

/// A distribution in numbers; percentiles are the histogram's, to three digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricSummary {
    /// Unit that the instances gave.
    pub unit: String,
    /// Number of values.
    pub count: u64,
    /// Sum.
    pub sum: Option<f64>,
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Values below zero, which the histogram and the percentiles leave out.
    pub negative: u64,
}

impl Distribution {
    fn new(unit: &str) -> Distribution {
        let mut histogram = Histogram::new_with_bounds(1, 2, SIGNIFICANT_DIGITS)
            .expect("the bounds are those of the smallest histogram");
        histogram.auto(true);
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Distribution { unit: unit.to_owned(), count: 0, sum: 0.0, min, max, negative: 0, histogram }
    }

    fn record(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if value < 0.0 {
            self.negative += 1;
        } else {
            self.histogram.record(thousandths(value)).expect("the histogram grows up to the largest value");
        }
    }

    /// Encodes as HDR V2, uncompressed. The bounds are taken from the values alone, whatever order they came in: from
    /// 1 to the largest, at least 2.
    fn encode(&self) -> Vec<u8> {
        let high = self.histogram.max().max(2);
        let mut exact = Histogram::<u64>::new_with_bounds(1, high, SIGNIFICANT_DIGITS).expect("high is at least 2");
        exact.add(&self.histogram).expect("it covers every value");
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&exact, &mut bytes).expect("a vector takes all bytes");
        bytes
    }

    fn summary(&self) -> MetricSummary {
        let percentile = |q: f64| self.histogram.value_at_quantile(q) as f64 / 1000.0;
        MetricSummary {
            unit: self.unit.clone(),
            count: self.count,
            sum: finite(self.sum),
            mean: finite(self.sum / self.count as f64),
            min: self.min,
            max: self.max,
            p50: percentile(0.50),
            p90: percentile(0.90),
            p95: percentile(0.95),
            p99: percentile(0.99),
            negative: self.negative,
        }
    }
}

fn thousandths(value: f64) -> u64 {
    // The cast saturates, so a value past all bounds becomes the largest.
    ((value * 1000.0).round() as u64).min(MAX_TRACKABLE)
}

fn finite(value: f64) -> Option<f64> {
    // Adding zero makes zero of negative zero, which canonical encodings do not know.
    value.is_finite().then_some(value + 0.0)
}

/// Distributions of a group, closed.
pub(crate) struct GroupMetrics {
    pub(crate) histograms: BTreeMap<String, Vec<u8>>,
    pub(crate) summaries: BTreeMap<String, MetricSummary>,
    pub(crate) malformed: u64,
}

/// Reads the metrics of one group after another and keeps what the thresholds ask for.
pub(crate) struct Collector {
    /// Samples by group and metric, for the metrics that a threshold names.
    samples: BTreeMap<(String, String), Samples>,
    watched: BTreeSet<(Option<String>, String)>,
    /// Metrics of the groups that were read.
    metrics: usize,
}

/// Raw values as far as thresholds need them.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Collector {
    pub(crate) fn new(thresholds: &[Threshold]) -> Collector {
        let watched = thresholds
            .iter()
            .filter_map(|t| match &t.subject {
                Subject::Metric { name, statistic: _ } => Some((t.group.clone(), name.clone())),
                Subject::SuccessRate {} => None,
            })
            .collect();
        Collector { samples: BTreeMap::new(), watched, metrics: 0 }
    }

    /// Reads the files of a group, each with the index of its instance and in that order. An error names the index.
    pub(crate) fn group(
        &mut self,
        group: &str,
        files: impl IntoIterator<Item = (u32, Cid)>,
        source: &mut Source<'_>,
    ) -> Result<GroupMetrics, (u32, SourceError)> {
        let mut distributions: BTreeMap<String, Distribution> = BTreeMap::new();
        let mut malformed = 0;
        for (index, file) in files {
            let mut lines = Lines::default();
            let mut on_line = |line: &[u8]| {
                if !self.take(group, line, &mut distributions) {
                    malformed += 1;
                }
            };
            source.for_each_piece(&file, |piece| lines.push(piece, &mut on_line)).map_err(|e| (index, e))?;
            lines.finish(&mut on_line);
        }
        self.metrics += distributions.len();
        Ok(GroupMetrics {
            histograms: distributions.iter().map(|(name, d)| (name.clone(), d.encode())).collect(),
            summaries: distributions.iter().map(|(name, d)| (name.clone(), d.summary())).collect(),
            malformed,
        })
    }

    fn take(&mut self, group: &str, line: &[u8], distributions: &mut BTreeMap<String, Distribution>) -> bool {
        let Some(metric) = parse_line(line) else { return false };
        let room = distributions.len() < MAX_METRICS_PER_GROUP.min(MAX_METRICS - self.metrics);
        match distributions.get_mut(&*metric.name) {
            Some(distribution) => distribution.record(metric.value),
            None if room => {
                let mut distribution = Distribution::new(&metric.unit);
                distribution.record(metric.value);
                distributions.insert(metric.name.clone().into_owned(), distribution);
            }
            None => return false,
        }
        if !self.watched.is_empty() {
            let name = metric.name.into_owned();
            if self.watched.contains(&(None, name.clone()))
                || self.watched.contains(&(Some(group.to_owned()), name.clone()))
            {
                self.samples.entry((group.to_owned(), name)).or_default().0.push(metric.value);
            }
        }
        true
    }

    /// Returns a number of a metric's distribution over one group or all; `None` where there are no values.
    pub(crate) fn statistic(&self, group: Option<&str>, name: &str, statistic: Statistic) -> Option<f64> {
        let mut values: Vec<f64> = self
            .samples
            .iter()
            .filter(|((g, n), _)| n == name && group.is_none_or(|group| group == g))
            .flat_map(|(_, samples)| samples.0.iter().copied())
            .collect();
        if values.is_empty() {
            return None;
        }
        let sum = || values.iter().sum::<f64>();
        let value = match statistic {
            Statistic::Count => values.len() as f64,
            Statistic::Sum => sum(),
            Statistic::Mean => sum() / values.len() as f64,
            Statistic::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            Statistic::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Statistic::P50 => nearest_rank(&mut values, 50),
            Statistic::P90 => nearest_rank(&mut values, 90),
            Statistic::P95 => nearest_rank(&mut values, 95),
            Statistic::P99 => nearest_rank(&mut values, 99),
        };
        finite(value)
    }
}

/// Returns the smallest value that at least `percent` of all values do not exceed.
fn nearest_rank(values: &mut [f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1);
    *values.select_nth_unstable_by(rank - 1, f64::total_cmp).1
}

/// Splits pieces of a file into lines, holding at most one.
#[derive(Default)]
struct Lines {
    carry: Vec<u8>,
    /// The current line is longer than any is looked at.
    overlong: bool,
}

impl Lines {
    fn push(&mut self, piece: &[u8], on_line: &mut impl FnMut(&[u8])) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, tail) = (&rest[..end], &rest[end + 1..]);
            if self.carry.is_empty() && !self.overlong && line.len() <= MAX_LINE_BYTES {
                emit(line, on_line);
            } else {
                self.extend(line);
                self.finish(on_line);
            }
            rest = tail;
        }
        self.extend(rest);
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.carry.len() + bytes.len() > MAX_LINE_BYTES {
            self.overlong = true;
            self.carry.clear();
        }
        if !self.overlong {
            self.carry.extend_from_slice(bytes);
        }
    }

    /// Ends the line at hand, whether or not a newline did.
    fn finish(&mut self, on_line: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.overlong) {
            on_line(b"\0");
        } else {
            emit(&self.carry, on_line);
        }
        self.carry.clear();
    }
}

/// Blank lines say nothing and are no mistake.
fn emit(line: &[u8], on_line: &mut impl FnMut(&[u8])) {
    if !line.trim_ascii().is_empty() {
        on_line(line);
    }
}
