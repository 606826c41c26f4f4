//! Schedules on many seeds, and those that once failed.

use std::collections::BTreeMap;

use iptl_sim::{Point, Reached, Report, Schedule, Trace, World, run_seed, takeover};

/// Schedules in every run of the tests; `iptl-sim run` runs more.
const SCHEDULES: u64 = 1_000;

/// Runs seeds on as many threads as the smallest machine has cores; each schedule keeps to one.
#[expect(clippy::disallowed_methods, reason = "the harness runs schedules side by side; no core leaves its thread")]
fn run_seeds(count: u64) -> Vec<Report> {
    let run = |seed| run_seed(seed, "mixed").expect("the profile is known");
    let halves = [0, 1]
        .map(|half| std::thread::spawn(move || (0..count).filter(|s| s % 2 == half).map(run).collect::<Vec<_>>()));
    halves.into_iter().flat_map(|half| half.join().expect("no schedule panics")).collect()
}

#[test]
fn no_schedule_breaks_a_rule_and_all_together_come_everywhere() {
    let reports = run_seeds(SCHEDULES);
    let failed: Vec<String> = reports
        .iter()
        .flat_map(|report| report.violations.iter().map(move |what| format!("seed {}: {what}", report.seed)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));

    // A schedule in which nothing happens breaks no rule either.
    let mut reached = Reached::default();
    let mut ended: BTreeMap<&str, u32> = BTreeMap::new();
    for report in &reports {
        reached.add(&report.reached);
        for (how, count) in &report.ended {
            *ended.entry(how).or_insert(0) += count;
        }
    }
    let missed: Vec<&str> = reached.missed().into_iter().map(Point::name).collect();
    assert!(missed.is_empty(), "never reached: {}", missed.join(", "));
    for kinds in ["wasm", "docker", "wasm and docker"] {
        let sealed = ended.get(format!("sealed: {kinds}").as_str()).copied().unwrap_or_default();
        assert!(sealed > 30, "{sealed} sealed: {kinds}; {ended:?}");
    }
}

#[test]
fn equal_schedules_give_equal_reports() {
    for seed in [0, 1, 7, 42] {
        assert_eq!(run_seed(seed, "rough"), run_seed(seed, "rough"));
    }
    let traces = [1, 2].map(|seed| run_seed(seed, "rough").expect("the profile is known").trace);
    assert_ne!(traces[0], traces[1]);
}

#[test]
fn a_snapshot_and_the_rest_leave_the_state_that_all_facts_leave_at_every_prefix() {
    let mut openings = 0;
    for (profile, seeds) in [("mixed", 0..8), ("rough", 0..8)] {
        for seed in seeds {
            let schedule = Schedule::draw(seed, profile).expect("the profile is known");
            match World::new(schedule).open_logs() {
                Ok(opened) => openings += opened.from_snapshot,
                Err(what) => panic!("seed {seed} of {profile}: {what}"),
            }
        }
    }
    assert!(openings > 2_000, "{openings} openings from a snapshot");
}

#[test]
fn a_lab_of_hundreds_keeps_the_rules_too() {
    for seed in 0..2 {
        let report = run_seed(seed, "crowd").expect("the profile is known");
        assert!(report.violations.is_empty(), "seed {seed}: {:?}", report.violations);
    }
}

#[test]
fn what_failed_once_does_not_fail_again() {
    let traces = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/traces")).expect("there are traces");
    let mut count = 0;
    for entry in traces {
        let path = entry.expect("it can be listed").path();
        let text = std::fs::read_to_string(&path).expect("a trace is text");
        let trace = Trace::parse(&text).expect("it is a trace");
        let report = trace.replay();
        assert!(report.violations.is_empty(), "{}: {:?}", path.display(), report.violations);
        count += 1;
    }
    assert!(count > 0, "no trace was kept");
}

#[test]
fn a_trace_is_read_as_it_was_written() {
    let schedule = Schedule::draw(11, "rough").expect("the profile is known");
    let trace = Trace { about: "a test".into(), schedule: schedule.clone() };
    assert_eq!(Trace::parse(&trace.to_text()), Ok(trace));
    assert!(Trace::parse("{}").is_err());
    assert_eq!(World::new(schedule.clone()).run(), World::new(schedule).run());
}

/// Schedules of a lab with several orchestrators in every run of the tests.
const TAKEOVERS: u64 = 1_500;

#[test]
#[expect(clippy::disallowed_methods, reason = "the harness runs schedules side by side; no core leaves its thread")]
fn no_takeover_breaks_a_rule_and_all_together_come_everywhere() {
    let run = |half| (0..TAKEOVERS).filter(move |s| s % 2 == half).map(|s| takeover::run_seed(s, false));
    let halves = [0, 1].map(|half| std::thread::spawn(move || run(half).collect::<Vec<_>>()));
    let reports: Vec<_> = halves.into_iter().flat_map(|half| half.join().expect("no schedule panics")).collect();
    let mut reached = BTreeMap::new();
    let mut over = 0;
    for report in &reports {
        assert!(report.violations.is_empty(), "seed {}: {:?}", report.seed, report.violations);
        over += report.ended.get("over").copied().unwrap_or(0);
        for (point, count) in &report.reached {
            *reached.entry(*point).or_insert(0) += count;
        }
    }
    let missed: Vec<_> = takeover::Point::ALL.iter().filter(|point| !reached.contains_key(*point)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
    assert!(u64::from(over) > TAKEOVERS * 2, "{over} executions ended");
}
