//! Schedules on many seeds.

use iptl_sim::run_seed;

#[test]
fn no_schedule_breaks_a_promise() {
    let failed: Vec<String> = (0..300)
        .map(run_seed)
        .filter(|report| !report.violations.is_empty())
        .map(|report| format!("seed {}: {}", report.seed, report.violations.join("; ")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in [0, 1, 7, 42] {
        assert_eq!(run_seed(seed), run_seed(seed));
    }
    assert_ne!(run_seed(1).trace, run_seed(2).trace);
}

#[test]
fn schedules_reach_what_they_are_meant_to_reach() {
    let mut ended = std::collections::BTreeMap::new();
    for report in (0..200).map(run_seed) {
        for (how, count) in report.ended {
            let kind = how.split_inclusive(':').next().unwrap_or_default().to_owned();
            *ended.entry(kind).or_insert(0u32) += count;
        }
    }
    assert!(ended.get("sealed").is_some_and(|n| *n > 200), "{ended:?}");
    assert!(ended.get("failed:").is_some_and(|n| *n > 10), "{ended:?}");
}
