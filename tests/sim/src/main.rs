//! `iptl-sim run` runs schedules and keeps what fails, `show` prints the schedule and the events of one seed, `replay`
//! runs a trace again, event by event where asked, `measure` says how fast cores are.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iptl_sim::model::Violation;
use iptl_sim::{Lab, Point, Trace, profile, takeover};

/// Schedules from which on every point must have been reached by profiles `mixed` and `takeover`.
const ENOUGH_TO_REACH: u64 = 1_000;

/// Schedules of profile `takeover-crowd` from which on points of a crowd must have been reached.
const ENOUGH_CROWDS: u64 = 40;

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
        at the first that fails, and shrinks it only where --keep says where to write it.
        Profiles `takeover` and `takeover-crowd` are labs with several orchestrators.
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
    let names = [profile::NAMES, takeover::NAMES].concat();
    match names.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("no profile {name}; there are {}", names.join(", "))),
    }
}

/// What a schedule came to, of whichever lab.
struct Outcome {
    seed: u64,
    events: u64,
    virtual_ms: u64,
    ended: BTreeMap<String, u32>,
    /// How often each point was reached, by its place among all.
    reached: Vec<u64>,
    violations: Vec<Violation>,
}

/// Runs the schedule of a seed under a profile that is known.
fn run_seed(seed: u64, profile: &str) -> Outcome {
    if let Some(report) = takeover::run_seed(seed, profile) {
        let count = |point| report.reached.get(point).copied().unwrap_or(0);
        return Outcome {
            seed,
            events: report.events,
            virtual_ms: report.virtual_ms,
            ended: report.ended.iter().map(|(how, count)| ((*how).to_owned(), *count)).collect(),
            reached: takeover::Point::ALL.iter().map(count).collect(),
            violations: report.violations,
        };
    }
    let report = iptl_sim::run_seed(seed, profile).expect("the profile was looked up before");
    Outcome {
        seed,
        events: report.events,
        virtual_ms: report.virtual_ms,
        reached: Point::ALL.iter().map(|point| report.reached.count(*point)).collect(),
        ended: report.ended,
        violations: report.violations,
    }
}

/// Returns the points of a profile, for people.
fn points_of(profile: &str) -> Vec<&'static str> {
    match takeover::NAMES.contains(&profile) {
        true => takeover::Point::ALL.iter().map(|point| point.name()).collect(),
        false => Point::ALL.iter().map(|point| point.name()).collect(),
    }
}

/// Returns the points that so many schedules of a profile must have reached.
fn demanded(profile: &str, seeds: u64) -> Vec<&'static str> {
    match profile {
        "mixed" | "takeover" if seeds >= ENOUGH_TO_REACH => points_of(profile),
        "takeover-crowd" if seeds >= ENOUGH_CROWDS => takeover::Point::CROWD.iter().map(|point| point.name()).collect(),
        _ => Vec::new(),
    }
}

/// What many schedules came to.
#[derive(Default)]
struct Sum {
    schedules: u64,
    events: u64,
    ended: BTreeMap<String, u32>,
    reached: Vec<u64>,
    failed: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.schedules += 1;
        self.events += outcome.events;
        self.count(&outcome.reached, &outcome.ended);
        if !outcome.violations.is_empty() {
            self.failed.push(outcome);
        }
    }

    fn join(&mut self, other: Sum) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.count(&other.reached, &other.ended);
        self.failed.extend(other.failed);
    }

    fn count(&mut self, reached: &[u64], ended: &BTreeMap<String, u32>) {
        self.reached.resize(self.reached.len().max(reached.len()), 0);
        for (sum, count) in self.reached.iter_mut().zip(reached) {
            *sum += count;
        }
        for (how, count) in ended {
            *self.ended.entry(how.clone()).or_insert(0) += count;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "schedules run side by side and are timed; no core leaves its thread")]
fn run(args: &[String]) -> Result<ExitCode, String> {
    let seeds = number(args, "--seeds", 1_000)?;
    let first = number(args, "--first-seed", 0)?;
    let jobs = number(args, "--jobs", 1)?.max(1);
    let profile = profile_of(args)?;
    let first_failure = args.iter().any(|arg| arg == "--first-failure");
    let keep_dir = option(args, "--keep");
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
                    sum.add(run_seed(seed, &profile));
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
    sum.failed.sort_by_key(|outcome| outcome.seed);
    for (n, outcome) in sum.failed.iter().enumerate() {
        let what: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        println!("seed {} at {} ms: {}", outcome.seed, outcome.virtual_ms, what.join("; "));
        if n == 0 && (!first_failure || keep_dir.is_some()) {
            keep(outcome, &profile, keep_dir)?;
        }
    }
    for (how, count) in &sum.ended {
        println!("{count:>9} {how}");
    }
    let points = points_of(&profile);
    for (name, count) in points.iter().zip(&sum.reached) {
        println!("{count:>9} {name}");
    }
    println!(
        "{} schedules of profile {profile}, {} events in {took:.1} s ({:.0}/s for each of {jobs} threads), {} failed",
        sum.schedules,
        sum.events,
        sum.events as f64 / took / jobs as f64,
        sum.failed.len()
    );
    let never = |name: &&str| points.iter().zip(&sum.reached).any(|(point, count)| point == name && *count == 0);
    let demanded = if sum.failed.is_empty() { demanded(&profile, seeds) } else { Vec::new() };
    let missed: Vec<&str> = demanded.into_iter().filter(never).collect();
    for name in &missed {
        println!("never reached: {name}");
    }
    Ok(if sum.failed.is_empty() && missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shrinks what failed and prints it, or writes it where traces are kept.
fn keep(outcome: &Outcome, profile: &str, dir: Option<&str>) -> Result<(), String> {
    let violation = &outcome.violations[0];
    let lab = Lab::draw(outcome.seed, profile).ok_or("the profile was looked up before")?;
    let trace = Trace { about: violation.to_string(), lab: lab.shrunk(violation.rule) };
    match dir {
        Some(dir) => {
            let path = format!("{dir}/{}-{}.json", violation.rule, outcome.seed);
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
    let lab = Lab::draw(seed, &profile_of(args)?).ok_or(USAGE)?;
    print!("{}", Trace { about: format!("seed {seed}"), lab: lab.clone() }.to_text());
    Ok(walk(lab, false))
}

fn replay(args: &[String]) -> Result<ExitCode, String> {
    let path = args.first().ok_or(USAGE)?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let trace = Trace::parse(&text)?;
    println!("{}", trace.about);
    Ok(walk(trace.lab, args.iter().any(|arg| arg == "--step")))
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
    println!("most memory with lablets and placements: {}", most_memory());
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
    println!("most memory with the logs: {}", most_memory());
    Ok(ExitCode::SUCCESS)
}

/// Returns the most memory that this process had so far.
fn most_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}

/// Prints every event; one after another where somebody steps.
fn walk(lab: Lab, step: bool) -> ExitCode {
    let mut walk = lab.walk();
    walk.tell();
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
        let more = walk.step();
        for line in walk.told() {
            println!("{line}");
        }
        if !more {
            break;
        }
    }
    let came = walk.end();
    for violation in &came.violations {
        println!("violated {violation}");
    }
    println!("{} events, {} ms of virtual time, hash {:016x}", came.events, came.virtual_ms, came.trace);
    if came.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
