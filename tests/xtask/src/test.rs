//! `cargo xtask test`: everything that must hold, in one pass over one set of builds.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::Shell;
use crate::witness;
use crate::{engine, setup};

/// Budget of the whole on a cold machine with two cores.
const WHOLE: Duration = Duration::from_secs(40 * 60);

/// Budget of a test suite that is not listed below, from its first test to its last.
const SUITE: Duration = Duration::from_secs(30);

/// Budgets of suites that need more, by crate, each with its reason.
const SUITES: &[(&str, u64)] = &[
    // Real processes; every test starts a lab.
    ("iptl_e2e", 600),
    // Compiles guests and runs thousands of instances.
    ("iptl_runner_wasm", 180),
    // Real containers, some hundred of them.
    ("iptl_runner_docker", 240),
    // Seeds of whole labs, not optimised.
    ("iptl_sim", 120),
    // Many seeds of nodes on a bad network.
    ("iptl_bitswap", 90),
    // A whole node with its swarm.
    ("iptl_node", 120),
    ("iptl_net", 120),
    // Stores of many thousand blocks, killed and opened again.
    ("iptl_artifacts_pack", 180),
];

/// Programs for containers, built by what uses them, each a workspace of its own.
const STATIC_PROGRAMS: [&str; 2] = ["node/runner-docker/init", "node/runner-docker/tests/programs"];

/// Which part of the checks.
#[derive(clap::Args)]
pub struct Args {
    /// Only steps whose name contains this: fmt, deny, plans, witnesses, clippy, build, sim, test, doc
    #[arg(long)]
    only: Option<String>,
}

/// Runs every step, the later ones too where one fails, and says what each took.
pub fn run(shell: &Shell, args: &Args) -> Result<()> {
    let started = Instant::now();
    setup::for_build(shell)?;
    setup::for_checks(shell)?;
    setup::for_witnesses(shell)?;
    let engine = engine_for_tests(shell)?;
    let mut tests = Tests::default();
    let mut report = Report { rows: vec![Row::new("setup", 300, started.elapsed(), true)], only: args.only.clone() };
    report.step("fmt", 30, || fmt(shell));
    report.step("deny", 30, || deny(shell));
    report.step("plans", 300, || build_plans(shell));
    report.step("witnesses", 300, || witness::build(shell));
    report.step("clippy", 600, || clippy(shell));
    report.step("build", 900, || build(shell));
    report.step("sim", 300, || simulate(shell));
    report.step("test", 900, || test(shell, engine, &mut tests));
    report.step("doc", 240, || doc(shell));
    report.print(&tests, started.elapsed())
}

fn fmt(shell: &Shell) -> Result<()> {
    shell.run(shell.cargo().args(["fmt", "--all", "--check"]))?;
    for guest in shell.guests()? {
        shell.run(shell.cargo().args(["fmt", "--check"]).current_dir(guest))?;
    }
    Ok(())
}

fn deny(shell: &Shell) -> Result<()> {
    let program = setup::deny(shell)?;
    // By itself cargo-deny wants the packages of every platform there is; it is given those of this one.
    let version = shell.ask(shell.command("rustc").arg("-vV")).context("rustc does not say its host")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    let mut metadata = shell.cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host]);
    let metadata = shell.ask(&mut metadata).context("cargo cannot resolve the workspace: see `cargo metadata`")?;
    std::fs::create_dir_all(&shell.target)?;
    let path = shell.target.join("metadata.json");
    std::fs::write(&path, metadata)?;
    // Advisories need a database from the network; where there is one, run `cargo deny check advisories`.
    let mut command = shell.command(program);
    command.args(["--offline", "--locked", "--config", ".cargo/deny.toml", "--metadata-path"]).arg(path);
    command.args(["check", "licenses", "bans", "sources"]);
    // It complains of packages of other platforms, which it then does without; what it says counts where it fails.
    let output = command.output()?;
    if !output.status.success() {
        eprint!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        bail!("cargo deny refuses a dependency ({})", output.status);
    }
    Ok(())
}

/// Builds the guests of every plan that ships, each in its own workspace, as a user's plan is built.
pub fn build_plans(shell: &Shell) -> Result<()> {
    for guest in shell.guests()? {
        // The manifest stands beside the code, or above it where the plan has code in other languages too.
        let above = guest.parent().map(Path::to_path_buf).unwrap_or_default();
        let Some(plan) = [guest.clone(), above].into_iter().find(|plan| plan.join("plan.toml").exists()) else {
            continue;
        };
        let name = plan.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        eprintln!("   plan {name}");
        let manifest = std::fs::read_to_string(plan.join("plan.toml"))?;
        for target in [setup::WASM, setup::STATIC] {
            if !manifest.contains(target) {
                continue;
            }
            let mut cargo = shell.cargo();
            cargo.args(["build", "--quiet", "--release", "--locked", "--target", target]).current_dir(&guest);
            // A plan's manifest says where its build goes.
            cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
            shell.run(&mut cargo)?;
        }
    }
    Ok(())
}

fn clippy(shell: &Shell) -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
    shell.run(shell.cargo().args(args))?;
    for program in STATIC_PROGRAMS {
        let args = ["clippy", "--release", "--locked", "--quiet", "--target", setup::STATIC, "--manifest-path"];
        let mut cargo = shell.cargo();
        cargo.args(args).arg(shell.root.join(program).join("Cargo.toml"));
        cargo.arg("--target-dir").arg(shell.target.join("static")).args(["--", "-D", "warnings"]);
        shell.run(&mut cargo)?;
    }
    Ok(())
}

/// Programs and tests in one build: the same flags and features as the tests after it, so nothing is compiled twice.
fn build(shell: &Shell) -> Result<()> {
    shell.run(shell.cargo().args(["build", "--workspace", "--bins", "--tests", "--locked"]))
}

/// Schedules of whole labs: profile and how many.
const SCHEDULES: [(&str, u32); 4] = [("mixed", 10_000), ("takeover", 10_000), ("crowd", 20), ("takeover-crowd", 40)];

/// Runs schedules with an optimised build that has every check; fails where a rule is broken, or where one of the points
/// that so many come through was never reached.
fn simulate(shell: &Shell) -> Result<()> {
    shell.run(shell.cargo().args(["build", "--profile", "sim", "--quiet", "--locked", "--package", "iptl-sim"]))?;
    let jobs = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).to_string();
    for (profile, seeds) in SCHEDULES {
        let mut sim = shell.command(shell.target.join("sim/iptl-sim"));
        sim.args(["run", "--profile", profile, "--seeds", &seeds.to_string(), "--jobs", &jobs]);
        let output = sim.output().context("the simulator was built a moment ago")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("schedules of profile {profile} fail:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        eprintln!("   {}", text.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}

fn doc(shell: &Shell) -> Result<()> {
    let mut cargo = shell.cargo();
    cargo.args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings");
    shell.run(&mut cargo)
}

/// Returns whether there is a container engine; fails where none can be had and somebody counts on every test.
fn engine_for_tests(shell: &Shell) -> Result<bool> {
    match engine::ensure(shell) {
        Ok(()) => Ok(true),
        Err(error) if std::env::var_os("CI").is_some() => Err(error.context("tests of containers need an engine")),
        Err(error) => {
            eprintln!("tests of containers are skipped: {error:#}");
            Ok(false)
        }
    }
}

fn test(shell: &Shell, engine: bool, tests: &mut Tests) -> Result<()> {
    let mut cargo = shell.cargo();
    cargo.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    if engine {
        // Where there is one, a test that does not find it has failed.
        cargo.env("IPTL_DOCKER", "required");
    }
    let ok = shell.watch(&mut cargo, |line| tests.read(line))?;
    if !ok || tests.failed > 0 {
        bail!("{} tests failed", tests.failed);
    }
    if tests.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// What cargo's test output says, read line by line.
#[derive(Default)]
struct Tests {
    suite: String,
    /// The crate whose tests run.
    package: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Seconds by suite.
    suites: BTreeMap<String, f64>,
    /// Tests of bad input: passed, all.
    bad_input: (u64, u64),
    failures: Vec<String>,
}

impl Tests {
    fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            let program = program(rest);
            // Integration tests are all called `main` and come right after the unit tests of their crate.
            self.suite = if program == "main" { format!("{} (tests)", self.package) } else { program.clone() };
            if program != "main" {
                self.package = program;
            }
        } else if let Some(rest) = line.strip_prefix("Doc-tests ") {
            self.suite = format!("{rest} (doc)");
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let before = rest.split(word).next().unwrap_or_default().trim_end();
                before.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
            };
            self.passed += number("passed");
            self.failed += number("failed;");
            self.ignored += number("ignored");
            let took = rest.rsplit("finished in ").next().and_then(|t| t.trim_end_matches('s').parse::<f64>().ok());
            *self.suites.entry(self.suite.clone()).or_default() += took.unwrap_or(0.0);
        } else if let Some(rest) = line.strip_prefix("test ") {
            let bad_input = rest.starts_with("bad_input::");
            self.bad_input.1 += u64::from(bad_input);
            if rest.ends_with("... ok") {
                self.bad_input.0 += u64::from(bad_input);
            } else if rest.ends_with("FAILED") {
                self.failures.push(format!("{}: {}", self.suite, rest.split(" ...").next().unwrap_or(rest)));
            }
        }
    }
}

/// Returns the program behind `unittests src/lib.rs (target/debug/deps/iptl_dag-0123)`.
fn program(running: &str) -> String {
    let path = running.rsplit('(').next().unwrap_or(running).trim_end_matches(')');
    let file = Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    file.rsplit_once('-').map_or(file.as_str(), |(name, _)| name).to_owned()
}

struct Row {
    name: &'static str,
    budget: Duration,
    took: Duration,
    ok: bool,
}

impl Row {
    fn new(name: &'static str, budget_s: u64, took: Duration, ok: bool) -> Row {
        Row { name, budget: Duration::from_secs(budget_s), took, ok }
    }
}

struct Report {
    rows: Vec<Row>,
    only: Option<String>,
}

impl Report {
    fn step(&mut self, name: &'static str, budget_s: u64, work: impl FnOnce() -> Result<()>) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        eprintln!("\n── {name}");
        let started = Instant::now();
        let result = work();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        self.rows.push(Row::new(name, budget_s, started.elapsed(), result.is_ok()));
    }

    fn print(&self, tests: &Tests, whole: Duration) -> Result<()> {
        println!("\nstep         took   budget");
        for row in &self.rows {
            let late = if row.took > row.budget { "  over budget" } else { "" };
            let failed = if row.ok { "" } else { "  FAILED" };
            println!("{:<9} {:>5} s  {:>5} s{late}{failed}", row.name, row.took.as_secs(), row.budget.as_secs());
        }
        if !tests.suites.is_empty() {
            println!("\nsuite                                took   budget");
            for (name, seconds) in &tests.suites {
                let budget = SUITES.iter().find(|(n, _)| name.starts_with(n)).map_or(SUITE.as_secs(), |(_, s)| *s);
                let late = if *seconds > budget as f64 { "  over budget" } else { "" };
                println!("{name:<32} {seconds:>6.1} s  {budget:>5} s{late}");
            }
        }
        for failure in &tests.failures {
            println!("failed  {failure}");
        }
        if tests.bad_input.1 > 0 {
            println!("\nbad input: {} of {}", tests.bad_input.0, tests.bad_input.1);
        }
        let failed: Vec<&str> = self.rows.iter().filter(|r| !r.ok).map(|r| r.name).collect();
        let late = if whole > WHOLE { ", over the budget of 40 m" } else { "" };
        println!(
            "\n{}: {} tests passed, {} failed, {} ignored in {} suites; {} m {} s{late}",
            if failed.is_empty() { "ok" } else { "FAILED" },
            tests.passed,
            tests.failed,
            tests.ignored,
            tests.suites.len(),
            whole.as_secs() / 60,
            whole.as_secs() % 60
        );
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_cargo_is_counted() {
        let mut tests = Tests::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/iptl_dag-0a1b)",
            "test block::wrong ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.42s",
            "     Running unittests src/lib.rs (target/debug/deps/iptl_e2e-77)",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/main.rs (target/debug/deps/main-99)",
            "test bad_input::garbled_ticket ... ok",
            "test bad_input::full_disk ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.50s",
        ] {
            tests.read(line);
        }
        assert_eq!((tests.passed, tests.failed, tests.ignored), (15, 1, 1));
        assert_eq!(tests.bad_input, (1, 2));
        assert_eq!(tests.suites["iptl_e2e (tests)"], 9.5);
        assert_eq!(tests.failures, ["iptl_e2e (tests): bad_input::full_disk"]);
    }
}
