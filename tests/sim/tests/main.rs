//! Schedules on many seeds, and those that once failed.

use std::collections::BTreeMap;

use iptl_sim::schedule::{Fault, NodeIndex};
use iptl_sim::{Lab, Point, Reached, Report, Schedule, Shrinks, Trace, World, run_seed, shrink, takeover};

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
    let trace = Trace { about: "a test".into(), lab: Lab::Schedule(schedule.clone()) };
    assert_eq!(Trace::parse(&trace.to_text()), Ok(trace));
    assert!(Trace::parse("{}").is_err());
    assert_eq!(World::new(schedule.clone()).run(), World::new(schedule).run());
}

#[test]
fn cores_that_are_told_again_what_they_were_told_take_in_as_much() {
    let schedule = Schedule::draw(6, "rough").expect("the profile is known");
    let told = [(); 2].map(|()| World::new(schedule.clone()).hear().again());
    assert_eq!(told[0], told[1]);
    assert!(told[0] > 100, "{} inputs", told[0]);
}

/// Schedules of a lab with several orchestrators in every run of the tests.
const TAKEOVERS: u64 = 1_500;

#[expect(clippy::disallowed_methods, reason = "the harness runs schedules side by side; no core leaves its thread")]
fn run_takeovers(profile: &'static str, count: u64) -> Vec<takeover::Report> {
    let run = move |seed| takeover::run_seed(seed, profile).expect("the profile is known");
    let halves = [0, 1]
        .map(|half| std::thread::spawn(move || (0..count).filter(|s| s % 2 == half).map(run).collect::<Vec<_>>()));
    halves.into_iter().flat_map(|half| half.join().expect("no schedule panics")).collect()
}

#[test]
fn no_takeover_breaks_a_rule_and_all_together_come_everywhere() {
    let reports = run_takeovers("takeover", TAKEOVERS);
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

#[test]
fn a_hundred_lablets_keep_the_rules_through_a_takeover() {
    let reports = run_takeovers("takeover-crowd", 4);
    for report in &reports {
        assert!(report.violations.is_empty(), "seed {}: {:?}", report.seed, report.violations);
    }
    let taken = reports.iter().filter(|report| report.reached.contains_key(&takeover::Point::TakenOver)).count();
    assert!(taken > 2, "{taken} of {} were taken over", reports.len());
}

#[test]
fn equal_schedules_of_several_orchestrators_give_equal_reports() {
    for seed in [0, 1, 7, 42] {
        assert_eq!(takeover::run_seed(seed, "takeover"), takeover::run_seed(seed, "takeover"));
    }
    let traces = [1, 2].map(|seed| takeover::run_seed(seed, "takeover").expect("the profile is known").trace);
    assert_ne!(traces[0], traces[1]);
    assert_eq!(takeover::run_seed(0, "mixed"), None);
}

/// Returns the first schedule that has what a test needs.
fn first<S>(draw: impl Fn(u64) -> Option<S>, wanted: impl Fn(&S) -> bool) -> S {
    (0..1_000).filter_map(draw).find(wanted).expect("one of a thousand has it")
}

/// Shrinks a schedule by a rule that no run is needed for; none that names who is not there is asked about.
fn shrunk<S: Shrinks>(schedule: S, fails: impl Fn(&S) -> bool) -> S {
    assert!(fails(&schedule));
    shrink(schedule, |candidate| {
        assert!(candidate.is_whole(), "it names nobody who is not there");
        fails(candidate)
    })
}

#[test]
fn what_a_failure_does_not_need_is_left_out() {
    let dies = |s: &Schedule| s.faults.iter().filter(|f| matches!(f.fault, Fault::Crash { .. })).count();
    let needs = |s: &Schedule| dies(s) >= 2 && s.submissions.len() >= 2 && s.profile.loss_ppm > 0;
    let draw = |seed| Schedule::draw(seed, "rough");
    let schedule = first(draw, |s| needs(s) && s.faults.len() > 5 && s.submissions.len() > 2 && s.profile.policies);
    let small = shrunk(schedule.clone(), needs);
    assert_eq!((small.faults.len(), dies(&small), small.submissions.len()), (2, 2, 2));
    let last = small.faults.iter().filter_map(|f| f.fault.lablet()).max();
    let lablets: NodeIndex = Some(small.profile.lablets);
    assert_eq!(lablets, Some(last.map_or(1, |last| last + 1)), "as many as its faults name");
    assert!(!small.profile.policies && small.profile.drift_ppm == 0 && small.profile.hang_ppm == 0);
    // What it needs is as it was.
    assert_eq!((small.seed, small.profile.loss_ppm), (schedule.seed, schedule.profile.loss_ppm));
    // A smallest one stays as it is, and so does one that never fails.
    assert_eq!(shrunk(small.clone(), needs), small);
    assert_eq!(shrink(schedule.clone(), |_| false), schedule);
}

#[test]
fn what_a_failing_takeover_does_not_need_is_left_out() {
    let hands_over =
        |s: &takeover::Schedule| s.faults.iter().any(|f| matches!(f.fault, takeover::Fault::HandOver { .. }));
    let needs = |s: &takeover::Schedule| hands_over(s) && !s.submissions.is_empty();
    let draw = |seed| takeover::Schedule::draw(seed, "takeover");
    let schedule = first(draw, |s| needs(s) && s.faults.len() > 5 && s.submissions.len() > 2);
    let small = shrunk(schedule, needs);
    assert_eq!((small.faults.len(), small.submissions.len()), (1, 1));
    assert_eq!((small.profile.lablets, small.profile.group_size, small.profile.late_ppm), (1, 1, 0));
}

#[test]
fn a_takeover_that_shows_something_is_shrunk_kept_and_replayed_event_by_event() {
    // Nothing is wrong with the cores here: that a grant is recovered stands for a rule that is broken.
    let shows = |s: &takeover::Schedule| {
        takeover::World::new(s.clone()).run().reached.contains_key(&takeover::Point::GrantRecovered)
    };
    let draw = |seed| takeover::Schedule::draw(seed, "takeover");
    let schedule = first(draw, |s| s.faults.len() > 4 && s.submissions.len() > 1 && shows(s));
    let small = shrink(schedule.clone(), shows);
    assert!(small.faults.len() < schedule.faults.len(), "{} of {}", small.faults.len(), schedule.faults.len());
    assert!(small.submissions.len() < schedule.submissions.len());
    let report = takeover::World::new(small.clone()).run();
    assert!(report.reached.contains_key(&takeover::Point::GrantRecovered));

    let trace = Trace { about: "a test".into(), lab: Lab::Takeover(small) };
    let text = trace.to_text();
    assert_eq!(Trace::parse(&text), Ok(trace.clone()));
    let mut walk = trace.lab.clone().walk();
    walk.tell();
    let (mut steps, mut lines) = (0, 0);
    while walk.step() {
        steps += 1;
        lines += walk.told().len();
    }
    let came = walk.end();
    assert_eq!((came.events, came.virtual_ms, came.trace), (report.events, report.virtual_ms, report.trace));
    assert_eq!(came, trace.replay());
    assert!(steps + 1 >= came.events && lines as u64 >= came.events, "{steps} steps, {lines} lines");
}
