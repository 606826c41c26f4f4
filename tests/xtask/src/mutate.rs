//! `cargo xtask mutate`: puts one plausible bug after another into a copy of the cores, and demands that the simulator
//! finds it.
//!
//! A bug is a patch under `tests/sim/mutations/`, with a line that says what it does. What the simulator does not find
//! within [`SCHEDULES`] schedules is a rule that nobody watches, or a schedule that nobody draws. The schedule that found it
//! is left shrunk, as a trace in `target/mutate/traces/`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell::Shell;

/// Schedules of each profile in which each bug must show.
const SCHEDULES: u32 = 10_000;

/// Where they are looked for, one after the other: in labs with one orchestrator and with several, the first schedules
/// of both before the rest of either. Profile, first seed, schedules.
const ROUNDS: [(&str, u32, u32); 4] = [
    ("mixed", 0, 1_000),
    ("takeover", 0, 1_000),
    ("mixed", 1_000, SCHEDULES - 1_000),
    ("takeover", 1_000, SCHEDULES - 1_000),
];

/// Characters of what the simulator says of a schedule that are shown: the trace says the rest.
const MAX_SAID: usize = 400;

/// Which bugs.
#[derive(clap::Args)]
pub struct Args {
    /// Only bugs whose name contains this; may be said several times
    #[arg(long)]
    only: Vec<String>,
    /// Threads on which schedules run
    #[arg(long, default_value_t = 2)]
    jobs: u32,
}

/// Tries every mutation, and the source without any, and says which seed found it.
pub fn run(shell: &Shell, args: &Args) -> Result<()> {
    let mut patches: Vec<PathBuf> = std::fs::read_dir(shell.root.join("tests/sim/mutations"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .filter(|path| args.only.is_empty() || args.only.iter().any(|only| name_of(path).contains(only.as_str())))
        .collect();
    patches.sort();
    if patches.is_empty() {
        bail!("no mutation has such a name");
    }
    let lab = Lab::new(shell)?;
    shell.step("mutate", "the source as it is must pass");
    // The rest of the schedules is run by `cargo xtask test`.
    if let Some(seed) = lab.first_failure(shell, args.jobs, &ROUNDS[..2], "none")? {
        bail!("the simulator finds something without any mutation: {seed}");
    }
    let mut missed = Vec::new();
    for patch in &patches {
        let name = name_of(patch);
        let began = Instant::now();
        // One that rotted is missed, and the others are tried all the same.
        let found = match lab.apply(shell, patch, false) {
            Ok(()) => {
                let found = lab.first_failure(shell, args.jobs, &ROUNDS, &name);
                lab.apply(shell, patch, true)?;
                found.with_context(|| format!("{name} does not build"))
            }
            Err(error) => Err(error),
        };
        let took = began.elapsed().as_secs();
        match found.unwrap_or_else(|error| {
            eprintln!("  {error:#}");
            None
        }) {
            Some(seed) => eprintln!("  found  {name} ({took} s): {seed}"),
            None => {
                eprintln!("  MISSED {name} ({took} s)");
                missed.push(name);
            }
        }
    }
    if !missed.is_empty() {
        bail!("{} of {} mutations were not found: {}", missed.len(), patches.len(), missed.join(", "));
    }
    eprintln!("\nall {} mutations were found within {SCHEDULES} schedules", patches.len());
    Ok(())
}

fn name_of(patch: &Path) -> String {
    patch.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A copy of the source, with builds of its own.
struct Lab {
    tree: PathBuf,
    builds: PathBuf,
    traces: PathBuf,
}

impl Lab {
    /// Copies what git knows and what is new in the work tree.
    fn new(shell: &Shell) -> Result<Lab> {
        let target = shell.target.join("mutate");
        let lab = Lab { tree: target.join("tree"), builds: target.join("builds"), traces: target.join("traces") };
        let listed = ["ls-files", "--cached", "--others", "--exclude-standard"];
        let files = shell.ask(shell.command("git").args(listed)).context("the source is no git work tree")?;
        for old in [&lab.tree, &lab.traces] {
            if old.exists() {
                std::fs::remove_dir_all(old)?;
            }
        }
        for file in files.lines() {
            let (from, to) = (shell.root.join(file), lab.tree.join(file));
            if from.is_file() {
                std::fs::create_dir_all(to.parent().context("every file is in a folder")?)?;
                std::fs::copy(&from, &to).with_context(|| format!("cannot copy {file}"))?;
            }
        }
        Ok(lab)
    }

    fn apply(&self, shell: &Shell, patch: &Path, back: bool) -> Result<()> {
        let mut git = shell.command("git");
        // The copy stands below the work tree, whose index it must not ask.
        git.current_dir(&self.tree).env("GIT_CEILING_DIRECTORIES", &shell.target).args(["apply"]);
        if back {
            git.arg("--reverse");
        }
        shell.run(git.arg(patch)).with_context(|| format!("{} does not fit the source any more", name_of(patch)))
    }

    /// Builds the simulator and runs it; returns what it says of the first schedule that fails, and leaves that one shrunk
    /// among the traces of this name.
    fn first_failure(
        &self,
        shell: &Shell,
        jobs: u32,
        rounds: &[(&str, u32, u32)],
        name: &str,
    ) -> Result<Option<String>> {
        let mut cargo = shell.cargo();
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.builds);
        cargo.env("CARGO_INCREMENTAL", "1");
        cargo.args(["build", "--profile", "sim", "--quiet", "--locked", "--package", "iptl-sim"]);
        // Built once for each bug and run for seconds: compiling counts for more than the last half of speed.
        for package in ["iptl-scheduler", "iptl-sync", "iptl-sim"] {
            cargo.args(["--config", &format!("profile.sim.package.{package}.opt-level=1")]);
        }
        shell.run(&mut cargo)?;
        for round in rounds {
            let found = self.first_failure_in(shell, *round, jobs, name)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn first_failure_in(
        &self,
        shell: &Shell,
        (profile, first, seeds): (&str, u32, u32),
        jobs: u32,
        name: &str,
    ) -> Result<Option<String>> {
        let mut sim = shell.command(self.builds.join("sim/iptl-sim"));
        sim.args(["run", "--first-failure", "--profile", profile, "--first-seed", &first.to_string()]);
        sim.args(["--seeds", &seeds.to_string(), "--jobs", &jobs.to_string()]);
        sim.arg("--keep").arg(self.traces.join(name));
        let output = sim.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let kept = text.lines().find_map(|line| line.strip_prefix("kept as "));
        let kept = kept.map(|path| format!("; kept as {path}")).unwrap_or_default();
        let seed = text.lines().find(|line| line.starts_with("seed "));
        let seed = seed.map(|seed| format!("{profile}, {}{kept}", seed.chars().take(MAX_SAID).collect::<String>()));
        if seed.is_none() && !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            // A core that panics is found too.
            let panic = error.lines().find(|line| line.contains("panicked"));
            return Ok(Some(panic.unwrap_or("it fails without saying where").to_owned()));
        }
        Ok(seed)
    }
}
