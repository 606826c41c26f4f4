//! Thresholds and verdicts.

use std::collections::BTreeMap;

use iptl_dag::model::{
    Comparison, Counts, ResultVerdict, Run, Subject, Termination, Threshold, ThresholdOutcome, Verdict,
};

use crate::metrics::Collector;

/// Adds an ending to the counts.
pub(crate) fn count(counts: &mut Counts, termination: &Termination) {
    match termination {
        Termination::Ok {} => counts.ok += 1,
        Termination::Failed { cause: _ } => counts.failed += 1,
        Termination::Lost {} => counts.lost += 1,
    }
}

/// Adds the counts of all groups.
pub(crate) fn total(groups: &BTreeMap<String, Counts>) -> Counts {
    groups.values().fold(Counts::default(), |sum, c| Counts {
        ok: sum.ok + c.ok,
        failed: sum.failed + c.failed,
        lost: sum.lost + c.lost,
    })
}

/// Measures every threshold and says whether it holds.
pub(crate) fn thresholds(
    thresholds: &[Threshold],
    groups: &BTreeMap<String, Counts>,
    metrics: &Collector,
) -> Vec<ThresholdOutcome> {
    thresholds
        .iter()
        .map(|threshold| {
            let group = threshold.group.as_deref();
            let measured = match &threshold.subject {
                Subject::SuccessRate {} => success_rate(group, groups),
                Subject::Metric { name, statistic } => metrics.statistic(group, name, *statistic),
            };
            let holds = measured.is_some_and(|measured| holds(threshold.comparison, measured, threshold.value));
            ThresholdOutcome { threshold: threshold.clone(), measured, holds }
        })
        .collect()
}

fn success_rate(group: Option<&str>, groups: &BTreeMap<String, Counts>) -> Option<f64> {
    let counts = match group {
        Some(group) => *groups.get(group)?,
        None => total(groups),
    };
    let ended = counts.ok + counts.failed;
    (ended > 0).then(|| counts.ok as f64 / ended as f64)
}

#[expect(clippy::float_cmp, reason = "a plan that says == means it")]
fn holds(comparison: Comparison, measured: f64, value: f64) -> bool {
    match comparison {
        Comparison::Less => measured < value,
        Comparison::AtMost => measured <= value,
        Comparison::More => measured > value,
        Comparison::AtLeast => measured >= value,
        Comparison::Equal => measured == value,
    }
}

/// Judges the software under test.
pub(crate) fn verdict(groups: &BTreeMap<String, Counts>, thresholds: &[ThresholdOutcome]) -> Verdict {
    let all = total(groups);
    let something_ran = all.ok + all.failed > 0;
    let failures_are_judged = |group: &str| {
        thresholds.iter().any(|t| {
            t.threshold.subject == Subject::SuccessRate {} && t.threshold.group.as_deref().is_none_or(|g| g == group)
        })
    };
    let unforgiven = groups.iter().any(|(group, counts)| counts.failed > 0 && !failures_are_judged(group));
    if something_ran && !unforgiven && thresholds.iter().all(|t| t.holds) { Verdict::Pass } else { Verdict::Fail }
}

/// Says why a verdict is inconclusive, by what the lab did; empty where it is not.
pub fn inconclusive(run: &Run, counts: &Counts, cancelled: bool, timed_out: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if cancelled {
        reasons.push("the run was cancelled".to_owned());
    }
    if timed_out {
        reasons.push(format!("the run was not over after {} ms", run.timeout_ms));
    }
    reasons.extend(lost_too_many(run, counts));
    reasons
}

/// Returns the reason where more instances were lost than the run allows.
pub(crate) fn lost_too_many(run: &Run, counts: &Counts) -> Option<String> {
    let all = u128::from(counts.ok) + u128::from(counts.failed) + u128::from(counts.lost);
    let allowed = run.loss.max_lost_ppm;
    (u128::from(counts.lost) * 1_000_000 > all * u128::from(allowed)).then(|| {
        format!(
            "the lab lost {} of {all} instances, more than {} % may be lost",
            counts.lost,
            f64::from(allowed) / 10_000.0
        )
    })
}

/// Joins the verdict of the software with what the lab did.
pub(crate) fn result_verdict(verdict: Verdict, inconclusive: &[String]) -> ResultVerdict {
    match verdict {
        _ if !inconclusive.is_empty() => ResultVerdict::Inconclusive,
        Verdict::Pass => ResultVerdict::Pass,
        Verdict::Fail => ResultVerdict::Fail,
    }
}
