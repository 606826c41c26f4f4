//! Schedules on many seeds.

use std::collections::BTreeMap;

use iptl_sim::{Report, run_seed};

/// Runs seeds on as many threads as the smallest machine has cores; each schedule keeps to one.
#[expect(clippy::disallowed_methods, reason = "the harness runs schedules side by side; no core leaves its thread")]
fn run_seeds(count: u64) -> Vec<Report> {
    let halves = [0, 1]
        .map(|half| std::thread::spawn(move || (0..count).filter(|s| s % 2 == half).map(run_seed).collect::<Vec<_>>()));
    halves.into_iter().flat_map(|half| half.join().expect("no schedule panics")).collect()
}

#[test]
fn no_schedule_breaks_a_promise() {
    let reports = run_seeds(300);
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| !report.violations.is_empty())
        .map(|report| format!("seed {}: {}", report.seed, report.violations.join("; ")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));

    // A schedule in which nothing happens breaks no promise either.
    let mut ended: BTreeMap<&str, u32> = BTreeMap::new();
    for (how, count) in reports.iter().flat_map(|r| &r.ended) {
        *ended.entry(how.split(':').next().unwrap_or_default()).or_insert(0) += count;
    }
    assert!(ended.get("sealed").is_some_and(|n| *n > 300), "{ended:?}");
    assert!(ended.get("failed").is_some_and(|n| *n > 10), "{ended:?}");
    for kinds in ["docker", "wasm and docker"] {
        let how = format!("sealed: {kinds}");
        let sealed: u32 = reports.iter().filter_map(|r| r.ended.get(&how)).sum();
        assert!(sealed > 10, "{sealed} {how}");
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in [0, 1, 7, 42] {
        assert_eq!(run_seed(seed), run_seed(seed));
    }
    assert_ne!(run_seed(1).trace, run_seed(2).trace);
}
