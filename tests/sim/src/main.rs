//! `iptl-sim run` runs schedules and keeps what fails, `show` prints the schedule and the events of one seed, `replay`
//! runs a trace again, event by event where asked.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iptl_sim::{Point, Reached, Report, Schedule, Trace, World, profile, shrink, takeover};

/// Schedules from which on every point must have been reached by profile `mixed`.
const ENOUGH_TO_REACH: u64 = 1_000;

/// Name of the profile with several orchestrators; `mixed` has one.
const TAKEOVER: &str = "takeover";

/// Failing seeds after which a run gives up.
const MAX_FAILED: usize = 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("run") => run(&args[1..]),
        Some("show") => show(&args[1..]),
        Some("replay") => replay(&args[1..]),
        Some("measure") => measure(&args[1..]),
        Some(_) | None => Err(USAGE.to_owned()),
    };
    result.unwrap_or_else(|message| {
        eprintln!("{message}");
        ExitCode::from(2)
    })
}

const USAGE: &str = "\
usage: iptl-sim run [--seeds N] [--first-seed S] [--jobs J] [--profile P] [--keep DIR]
                    [--first-failure]
       iptl-sim show SEED [--profile P]
       iptl-sim replay TRACE [--step]
       iptl-sim measure [--lablets N] [--instances N] [--facts N]

run     runs schedules; prints each that fails, shrunk, and writes it to DIR as a trace. Exits with 1 where one failed,
        or where one of the points that many schedules must come through was never reached. With --first-failure, ends
        at the first that fails, and leaves it as it is.
        Profile `takeover` is a lab with several orchestrators; its schedules are run and shown, not shrunk or kept.
show    prints the schedule of a seed and every event of it
replay  runs a trace; with --step, an empty line shows the next event, a number that many, `q` ends
measure places one run of so many instances on so many lablets, opens a log of so many facts, and says how fast and in
        how much memory";

/// Returns the value of an option.
fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1).map(String::as_str)
}

fn number(args: &[String], name: &str, otherwise: u64) -> Result<u64, String> {
    match option(args, name) {
        Some(text) => text.parse().map_err(|_| format!("{name} wants a number, not {text}")),
        None => Ok(otherwise),
    }
}

fn profile_of(args: &[String]) -> Result<String, String> {
    let name = option(args, "--profile").unwrap_or("mixed");
    match profile::NAMES.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("no profile {name}; there are {}", profile::NAMES.join(", "))),
    }
}

/// What many schedules came to.
#[derive(Default)]
struct Sum {
    schedules: u64,
    events: u64,
    ended: BTreeMap<String, u32>,
    reached: Reached,
    failed: Vec<Report>,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.schedules += 1;
        self.events += report.events;
        self.reached.add(&report.reached);
        for (how, count) in &report.ended {
            *self.ended.entry(how.clone()).or_insert(0) += count;
        }
        if !report.violations.is_empty() {
            self.failed.push(report);
        }
    }

    fn join(&mut self, other: Sum) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.reached.add(&other.reached);
        for (how, count) in other.ended {
            *self.ended.entry(how).or_insert(0) += count;
        }
        self.failed.extend(other.failed);
    }
}

#[expect(clippy::disallowed_methods, reason = "schedules run side by side and are timed; no core leaves its thread")]
fn run(args: &[String]) -> Result<ExitCode, String> {
    if option(args, "--profile") == Some(TAKEOVER) {
        return run_takeover(args);
    }
    let seeds = number(args, "--seeds", 1_000)?;
    let first = number(args, "--first-seed", 0)?;
    let jobs = number(args, "--jobs", 1)?.max(1);
    let profile = profile_of(args)?;
    let first_failure = args.iter().any(|arg| arg == "--first-failure");
    let most = if first_failure { 1 } else { MAX_FAILED };
    let enough = Arc::new(AtomicBool::new(false));
    let began = std::time::Instant::now();
    let threads: Vec<_> = (0..jobs)
        .map(|job| {
            let profile = profile.clone();
            let enough = enough.clone();
            std::thread::spawn(move || {
                let mut sum = Sum::default();
                for seed in (first..first.saturating_add(seeds)).filter(|seed| seed % jobs == job) {
                    sum.add(iptl_sim::run_seed(seed, &profile).expect("the profile was looked up before"));
                    if sum.failed.len() >= most {
                        enough.store(true, Ordering::Relaxed);
                    }
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
                sum
            })
        })
        .collect();
    let mut sum = Sum::default();
    for thread in threads {
        sum.join(thread.join().map_err(|_| "a schedule panicked".to_owned())?);
    }
    let took = began.elapsed().as_secs_f64();
    sum.failed.sort_by_key(|report| report.seed);
    for (n, report) in sum.failed.iter().enumerate() {
        let what: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
        println!("seed {} at {} ms: {}", report.seed, report.virtual_ms, what.join("; "));
        if n == 0 && !first_failure {
            keep(report, &profile, option(args, "--keep"))?;
        }
    }
    for (how, count) in &sum.ended {
        println!("{count:>9} {how}");
    }
    for point in Point::ALL {
        println!("{:>9} {}", sum.reached.count(*point), point.name());
    }
    println!(
        "{} schedules of profile {profile}, {} events in {took:.1} s ({:.0}/s for each of {jobs} threads), {} failed",
        sum.schedules,
        sum.events,
        sum.events as f64 / took / jobs as f64,
        sum.failed.len()
    );
    let missed = match profile == "mixed" && seeds >= ENOUGH_TO_REACH && sum.failed.is_empty() {
        true => sum.reached.missed(),
        false => Vec::new(),
    };
    for point in &missed {
        println!("never reached: {}", point.name());
    }
    Ok(if sum.failed.is_empty() && missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs schedules of a lab with several orchestrators.
#[expect(clippy::disallowed_methods, reason = "schedules run side by side and are timed; no core leaves its thread")]
fn run_takeover(args: &[String]) -> Result<ExitCode, String> {
    let seeds = number(args, "--seeds", 1_000)?;
    let first = number(args, "--first-seed", 0)?;
    let jobs = number(args, "--jobs", 1)?.max(1);
    let most = if args.iter().any(|arg| arg == "--first-failure") { 1 } else { MAX_FAILED };
    let enough = Arc::new(AtomicBool::new(false));
    let began = std::time::Instant::now();
    let threads: Vec<_> = (0..jobs)
        .map(|job| {
            let enough = enough.clone();
            std::thread::spawn(move || {
                let (mut reports, mut failed) = (Vec::new(), 0);
                for seed in (first..first.saturating_add(seeds)).filter(|seed| seed % jobs == job) {
                    let report = takeover::run_seed(seed, false);
                    failed += usize::from(!report.violations.is_empty());
                    reports.push(report);
                    if failed >= most {
                        enough.store(true, Ordering::Relaxed);
                    }
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
                reports
            })
        })
        .collect();
    let mut reports = Vec::new();
    for thread in threads {
        reports.extend(thread.join().map_err(|_| "a schedule panicked".to_owned())?);
    }
    reports.sort_by_key(|report| report.seed);
    let (mut events, mut failed) = (0, 0);
    let (mut reached, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for report in &reports {
        events += report.events;
        for (point, count) in &report.reached {
            *reached.entry(*point).or_insert(0) += count;
        }
        for (how, count) in &report.ended {
            *ended.entry(*how).or_insert(0) += count;
        }
        if let Some(violation) = report.violations.first() {
            failed += 1;
            println!("seed {}: {violation}", report.seed);
        }
    }
    for (how, count) in ended {
        println!("{count:>9} {how}");
    }
    for point in takeover::Point::ALL {
        println!("{:>9} {point:?}", reached.get(point).copied().unwrap_or(0));
    }
    let took = began.elapsed().as_secs_f64();
    let count = reports.len();
    println!("{count} schedules of profile {TAKEOVER}, {events} events in {took:.1} s, {failed} failed");
    let all = takeover::Point::ALL.iter().all(|point| reached.contains_key(point));
    let complete = all || failed > 0 || seeds < ENOUGH_TO_REACH;
    if !complete {
        println!("some points were never reached");
    }
    Ok(if failed == 0 && complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shrinks what failed and prints it, or writes it where traces are kept.
fn keep(report: &Report, profile: &str, dir: Option<&str>) -> Result<(), String> {
    let violation = &report.violations[0];
    let schedule = Schedule::draw(report.seed, profile).ok_or("the profile was looked up before")?;
    let trace = Trace { about: violation.to_string(), schedule: shrink(schedule, violation.rule) };
    match dir {
        Some(dir) => {
            let path = format!("{dir}/{}-{}.json", violation.rule, report.seed);
            std::fs::create_dir_all(dir).map_err(|error| format!("{dir}: {error}"))?;
            std::fs::write(&path, trace.to_text()).map_err(|error| format!("{path}: {error}"))?;
            println!("kept as {path}");
        }
        None => print!("{}", trace.to_text()),
    }
    Ok(())
}

fn show(args: &[String]) -> Result<ExitCode, String> {
    let seed = args.first().and_then(|seed| seed.parse().ok()).ok_or(USAGE)?;
    if option(args, "--profile") == Some(TAKEOVER) {
        let report = takeover::run_seed(seed, true);
        for line in &report.told {
            println!("{line}");
        }
        for violation in &report.violations {
            println!("violated {violation}");
        }
        return Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let schedule = Schedule::draw(seed, &profile_of(args)?).ok_or(USAGE)?;
    print!("{}", Trace { about: format!("seed {seed}"), schedule: schedule.clone() }.to_text());
    Ok(walk(schedule, false))
}

fn replay(args: &[String]) -> Result<ExitCode, String> {
    let path = args.first().ok_or(USAGE)?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let trace = Trace::parse(&text)?;
    println!("{}", trace.about);
    Ok(walk(trace.schedule, args.iter().any(|arg| arg == "--step")))
}

/// Places one large run in each way there is.
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn measure(args: &[String]) -> Result<ExitCode, String> {
    let lablets = number(args, "--lablets", 10_000)? as u32;
    let instances = number(args, "--instances", 1_000_000)? as u32;
    for (name, run, inventory) in iptl_sim::crowd(lablets, instances) {
        let began = std::time::Instant::now();
        let placed = iptl_scheduler::placement(&run, &inventory, &[], &BTreeMap::new());
        let took = began.elapsed().as_secs_f64();
        println!(
            "{name}: {} of {instances} instances on {lablets} lablets in {:.0} ms ({:.0}/s), {} ranges, {} refused",
            u64::from(instances) - placed.missing(),
            took * 1e3,
            f64::from(instances) / took,
            placed.assignments.len(),
            placed.refused.len()
        );
    }
    let facts = number(args, "--facts", 1_000_000)? as u32;
    for (name, log) in [
        ("as it was written", iptl_sim::long_log(facts, false)),
        ("behind a snapshot", iptl_sim::long_log(facts, true)),
    ] {
        let began = std::time::Instant::now();
        let opened = iptl_sim::open_log(&log);
        println!(
            "log of {facts} facts {name}: {} MiB opened on one thread in {:.0} ms, {opened} facts replayed",
            log.bytes.len() >> 20,
            began.elapsed().as_secs_f64() * 1e3,
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown");
    println!("most memory: {}", peak.trim());
    Ok(ExitCode::SUCCESS)
}

/// Prints every event; one after another where somebody steps.
fn walk(schedule: Schedule, step: bool) -> ExitCode {
    let mut world = World::new(schedule);
    world.tell();
    let mut lines = std::io::stdin().lock().lines();
    let mut ahead = 0u64;
    loop {
        if step && ahead == 0 {
            let Some(Ok(line)) = lines.next() else { break };
            match line.trim() {
                "q" => break,
                "" => ahead = 1,
                many => ahead = many.parse().unwrap_or(1),
            }
        }
        ahead = ahead.saturating_sub(1);
        let more = world.step();
        for line in world.told() {
            println!("{line}");
        }
        if !more {
            break;
        }
    }
    let report = world.report();
    for violation in &report.violations {
        println!("violated {violation}");
    }
    println!("{} events, {} ms of virtual time, hash {:016x}", report.events, report.virtual_ms, report.trace);
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
