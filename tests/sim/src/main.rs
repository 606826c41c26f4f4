//! `iptl-sim run --seeds N --first-seed S`: runs schedules and prints the seeds that fail.
//! `iptl-sim show SEED`: prints every event of one schedule.

use std::collections::BTreeMap;
use std::process::ExitCode;

use iptl_sim::{World, run_seed};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("run") => run(number(&args, "--seeds").unwrap_or(1_000), number(&args, "--first-seed").unwrap_or(0)),
        Some("show") => match args.get(1).and_then(|seed| seed.parse().ok()) {
            Some(seed) => {
                println!("{:#?}", World::new(seed, true).run());
                ExitCode::SUCCESS
            }
            None => usage(),
        },
        Some(_) | None => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: iptl-sim run [--seeds N] [--first-seed S] | iptl-sim show SEED");
    ExitCode::from(2)
}

fn number(args: &[String], name: &str) -> Option<u64> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1)?.parse().ok()
}

fn run(seeds: u64, first: u64) -> ExitCode {
    let mut failed = 0;
    let mut events = 0;
    let mut ended: BTreeMap<String, u32> = BTreeMap::new();
    for seed in first..first.saturating_add(seeds) {
        let report = run_seed(seed);
        events += report.events;
        for (how, count) in report.ended {
            *ended.entry(how).or_insert(0) += count;
        }
        if !report.violations.is_empty() {
            failed += 1;
            println!("seed {seed} at {} ms: {}", report.virtual_ms, report.violations.join("; "));
        }
    }
    println!("{seeds} schedules, {events} events, {failed} failed; executions: {ended:?}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
