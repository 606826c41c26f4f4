//! Thresholds and verdicts.

use std::collections::BTreeMap;

use iptl_dag::model::{
    Comparison, Counts, LossOutcome, MaxLost, ResultVerdict, Run, Subject, Termination, Threshold, ThresholdOutcome,
    Verdict,
};

use crate::assemble::Assembly;
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
pub(crate) fn verdict(run: &Run, groups: &BTreeMap<String, Counts>, thresholds: &[ThresholdOutcome]) -> Verdict {
    let all = total(groups);
    let something_ran = all.ok + all.failed > 0;
    let failures_are_judged = |group: &str| {
        thresholds.iter().any(|t| {
            t.threshold.subject == Subject::SuccessRate {} && t.threshold.group.as_deref().is_none_or(|g| g == group)
        })
    };
    let unforgiven = groups.iter().any(|(group, counts)| counts.failed > 0 && !failures_are_judged(group));
    let fine = !unforgiven && failed_fast(run, groups).is_none() && thresholds.iter().all(|t| t.holds);
    if something_ran && fine { Verdict::Pass } else { Verdict::Fail }
}

/// Returns the group whose failure ends the run, where one did: the first by name.
pub(crate) fn failed_fast<'r>(run: &'r Run, groups: &BTreeMap<String, Counts>) -> Option<&'r str> {
    let failed = |name: &str| groups.get(name).is_some_and(|counts| counts.failed > 0);
    run.groups
        .iter()
        .find(|(name, group)| group.loss.is_some_and(|loss| loss.fail_fast) && failed(name))
        .map(|(name, _)| name.as_str())
}

/// Says of every group with a bound of its own what was lost of it; nothing of those that lost nothing.
pub(crate) fn losses(run: &Run, groups: &BTreeMap<String, Counts>) -> BTreeMap<String, LossOutcome> {
    let mut losses = BTreeMap::new();
    for (name, group) in &run.groups {
        let Some(max_lost) = group.loss.and_then(|loss| loss.max_lost) else { continue };
        let lost = groups.get(name).map_or(0, |counts| counts.lost);
        if lost > 0 {
            let accepted = max_lost.allows(lost, u64::from(group.count));
            losses.insert(name.clone(), LossOutcome { lost, max_lost, accepted });
        }
    }
    losses
}

/// Says why a verdict is inconclusive, by what the lab did; empty where it is not.
pub fn inconclusive(run: &Run, groups: &BTreeMap<String, Counts>, ended: &Assembly) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(why) = &ended.cannot_start {
        reasons.push(format!("nothing was started: {why}"));
    }
    if ended.cancelled {
        reasons.push("the run was cancelled".to_owned());
    }
    if ended.timed_out {
        reasons.push(format!("the run was not over after {} ms", run.timeout_ms));
    }
    // What was never started was not lost. What a failure had stopped was not lost by the lab: the plan wants it so.
    if ended.cannot_start.is_none() && failed_fast(run, groups).is_none() {
        reasons.extend(lost_too_many(run, groups));
    }
    reasons
}

/// Returns the reasons where more instances were lost than the run allows, or one of its groups.
fn lost_too_many(run: &Run, groups: &BTreeMap<String, Counts>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut rest = Counts::default();
    for (name, counts) in groups {
        let own = run.groups.get(name).and_then(|group| group.loss).and_then(|loss| loss.max_lost);
        let all = counts.ok + counts.failed + counts.lost;
        match own {
            Some(max_lost) if !max_lost.allows(counts.lost, all) => {
                let lost = counts.lost;
                reasons.push(format!(
                    "the lab lost {lost} of {all} instances of {name}, more than {max_lost} may be lost"
                ));
            }
            Some(_) => {}
            None => {
                rest.ok += counts.ok;
                rest.failed += counts.failed;
                rest.lost += counts.lost;
            }
        }
    }
    let all = rest.ok + rest.failed + rest.lost;
    let allowed = run.loss.max_lost.map_or(MaxLost::Share(run.loss.max_lost_ppm), MaxLost::Count);
    if !allowed.allows(rest.lost, all) {
        let lost = rest.lost;
        reasons.push(format!("the lab lost {lost} of {all} instances, more than {allowed} may be lost"));
    }
    reasons
}

/// Joins the verdict of the software with what the lab did.
pub(crate) fn result_verdict(verdict: Verdict, inconclusive: &[String]) -> ResultVerdict {
    match verdict {
        _ if !inconclusive.is_empty() => ResultVerdict::Inconclusive,
        Verdict::Pass => ResultVerdict::Pass,
        Verdict::Fail => ResultVerdict::Fail,
    }
}
