//! `cargo xtask fuzz`: runs the targets of `tests/fuzz`, guided by coverage, and adds up what was run.
//!
//! The stable compiler of the repository instruments code for libFuzzer: the pass is LLVM's, and `-C passes` names it. Only
//! the sanitizers themselves need a nightly one; code without `unsafe` gains little from them. Arguments for the
//! compiler are given with `--target`, so that build scripts and macros stay as they are.
//!
//! What is found grows under `target/fuzz/corpus`. `--minimise` takes what each target's corpus needs into
//! `tests/fuzz/corpus`, where it becomes an ordinary test; an input that breaks something does too, once it is mended.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::setup;
use crate::shell::Shell;

/// What cargo-fuzz gives the compiler too, the sanitizer aside.
const INSTRUMENT: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Branches that were folded into one cannot be told apart.
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Cforce-frame-pointers",
];

/// Seconds that one input may take. The slowest honest one takes milliseconds.
const INPUT_SECONDS: u32 = 10;

/// Memory of the process in MiB.
const MEMORY_MIB: u32 = 2048;

/// Longest input that is taken into the repository, in bytes.
const KEPT_INPUT: u64 = 2048;

/// Inputs that one call takes into the repository for each target, and bytes of a whole corpus there: all together stay
/// below the megabyte that the tests allow.
const KEPT_INPUTS: usize = 32;
const KEPT_TOTAL: u64 = 40 << 10;

/// Which targets, and for how long.
#[derive(clap::Args)]
pub struct Args {
    /// Targets; all where none is named
    targets: Vec<String>,
    /// Time for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Take what the corpora need into tests/fuzz/corpus instead
    #[arg(long)]
    minimise: bool,
}

/// Runs targets one after another, the later ones too where one fails.
pub fn run(shell: &Shell, args: &Args) -> Result<()> {
    setup::for_fuzzing(shell)?;
    let all = targets(shell)?;
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let chosen: Vec<&String> =
        all.iter().filter(|name| args.targets.is_empty() || args.targets.contains(name)).collect();
    let lab = Lab::build(shell)?;
    if args.minimise {
        return chosen.into_iter().try_for_each(|target| lab.minimise(shell, target));
    }
    let mut failed = Vec::new();
    for target in chosen {
        shell.step("fuzz", &format!("{target}, {} s", args.seconds));
        let run = lab.fuzz(shell, target, args.seconds)?;
        if !run.passed {
            failed.push(format!("{target}: see {}", lab.found(target).display()));
        }
        // Read again each time: another terminal may fuzz other targets at the same time.
        let mut report = lab.report()?;
        report.add(target, &run);
        report.write()?;
    }
    let report = lab.report()?;
    eprintln!("\n{}\n{} and report.md beside it", report.table(), report.path.display());
    if !failed.is_empty() {
        bail!("inputs that break something:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Lists the targets, which are the folders of corpora: a test holds that each has one.
fn targets(shell: &Shell) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(shell.root.join("tests/fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What one run of a target came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Run {
    passed: bool,
    executions: u64,
    seconds: u64,
    /// Parts of the program that were reached, as the engine counts them.
    coverage: u64,
    corpus_files: u64,
    corpus_bytes: u64,
}

impl Run {
    /// Reads what the engine prints.
    fn read(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse().ok();
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:").and_then(number) {
            self.executions = count;
        } else if let Some(at) = line.split("cov: ").nth(1).and_then(|rest| number(rest.split(' ').next()?)) {
            self.coverage = at;
            // It is killed without statistics where an input breaks something.
            let count = line.trim_start_matches('#').split_whitespace().next().and_then(number);
            self.executions = self.executions.max(count.unwrap_or(0));
        }
    }
}

/// The built program and its folders.
struct Lab {
    dir: PathBuf,
    program: PathBuf,
    kept: PathBuf,
}

impl Lab {
    fn build(shell: &Shell) -> Result<Lab> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let about = shell.ask(shell.command(rustc).arg("-vV")).context("rustc does not run")?;
        let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc has no host")?.to_owned();
        let dir = shell.target.join("fuzz");
        shell.step("fuzz", "build the targets, instrumented");
        let mut build = shell.cargo();
        build.args(["build", "--locked", "--package", "iptl-fuzz", "--features", "engine", "--bin", "iptl-fuzz"]);
        build.args(["--profile", "fuzz", "--target", &host, "--target-dir"]).arg(dir.join("build"));
        build.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENT.join("\x1f"));
        shell.run(&mut build)?;
        let program = dir.join("build").join(&host).join("fuzz/iptl-fuzz");
        Ok(Lab { dir, program, kept: shell.root.join("tests/fuzz/corpus") })
    }

    fn corpus(&self, target: &str) -> PathBuf {
        self.dir.join("corpus").join(target)
    }

    fn report(&self) -> Result<Report> {
        Report::open(self.dir.join("report.json"))
    }

    fn found(&self, target: &str) -> PathBuf {
        self.dir.join("found").join(target)
    }

    fn engine(&self, shell: &Shell, target: &str) -> Command {
        let mut engine = shell.command(&self.program);
        engine.env("IPTL_FUZZ_TARGET", target).env("RUST_BACKTRACE", "0");
        engine.args([format!("-rss_limit_mb={MEMORY_MIB}"), format!("-timeout={INPUT_SECONDS}")]);
        engine
    }

    fn fuzz(&self, shell: &Shell, target: &str, seconds: u32) -> Result<Run> {
        let (corpus, found) = (self.corpus(target), self.found(target));
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&found)?;
        let mut run = Run::default();
        let began = Instant::now();
        let mut engine = self.engine(shell, target);
        engine.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        engine.arg(format!("-artifact_prefix={}/", found.display()));
        engine.arg(&corpus).arg(self.kept.join(target));
        run.passed = shell.watch(&mut engine, |line| run.read(line))?;
        run.seconds = began.elapsed().as_secs();
        for file in files(&corpus)? {
            run.corpus_files += 1;
            run.corpus_bytes += file.size;
        }
        if run.passed && run.executions == 0 {
            bail!("the engine ran nothing of {target}");
        }
        Ok(run)
    }

    /// Takes inputs into the repository that reach what no smaller one does: where there are many, some of every size.
    ///
    /// What is kept already stays: among it are inputs that once broke something.
    fn minimise(&self, shell: &Shell, target: &str) -> Result<()> {
        shell.step("minimise", target);
        let (kept, chosen) = (self.kept.join(target), self.dir.join("chosen").join(target));
        if chosen.exists() {
            std::fs::remove_dir_all(&chosen)?;
        }
        std::fs::create_dir_all(&chosen)?;
        let mut engine = self.engine(shell, target);
        engine.arg("-set_cover_merge=1").arg(&chosen).arg(&kept).arg(self.corpus(target));
        if !shell.watch(&mut engine, |_| {})? {
            bail!("an input of {target} breaks something: run `cargo xtask fuzz {target}` first");
        }
        let mut total: u64 = files(&kept)?.iter().map(|file| file.size).sum();
        let mut files = files(&chosen)?;
        files.retain(|file| file.size <= KEPT_INPUT);
        files.sort_by(|a, b| (a.size, &a.name).cmp(&(b.size, &b.name)));
        let step = files.len().div_ceil(KEPT_INPUTS).max(1);
        for file in files.into_iter().step_by(step) {
            // The engine's names are hashes of the content.
            let to = kept.join(&file.name[..16.min(file.name.len())]);
            if total + file.size > KEPT_TOTAL {
                break;
            }
            if !to.exists() {
                total += file.size;
                std::fs::copy(chosen.join(&file.name), to)?;
            }
        }
        eprintln!("{target}: {total} bytes are kept");
        Ok(())
    }
}

struct File {
    name: String,
    size: u64,
}

fn files(folder: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        files.push(File { name: entry.file_name().to_string_lossy().into_owned(), size: entry.metadata()?.len() });
    }
    Ok(files)
}

/// What all runs came to, since somebody removed the file.
struct Report {
    path: PathBuf,
    rows: BTreeMap<String, Value>,
}

impl Report {
    fn open(path: PathBuf) -> Result<Report> {
        let rows = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: remove it, and counting begins anew", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Report { path, rows })
    }

    fn add(&mut self, target: &str, run: &Run) {
        let before = |what: &str| self.rows.get(target).and_then(|row| row[what].as_u64()).unwrap_or(0);
        let row = json!({
            "executions": before("executions") + run.executions,
            "seconds": before("seconds") + run.seconds,
            "failures": before("failures") + u64::from(!run.passed),
            "coverage": run.coverage,
            "corpus_files": run.corpus_files,
            "corpus_bytes": run.corpus_bytes,
        });
        self.rows.insert(target.to_owned(), row);
    }

    fn table(&self) -> String {
        let mut table =
            String::from("| target | executions | seconds | failures | coverage | corpus, files | bytes |\n");
        table += "| --- | --: | --: | --: | --: | --: | --: |\n";
        for (target, row) in &self.rows {
            let columns = ["executions", "seconds", "failures", "coverage", "corpus_files", "corpus_bytes"];
            let cells: Vec<String> = columns.iter().map(|name| row[*name].to_string()).collect();
            writeln!(table, "| {target} | {} |", cells.join(" | ")).expect("a String takes all");
        }
        table
    }

    fn write(&self) -> Result<()> {
        std::fs::write(&self.path, serde_json::to_vec_pretty(&self.rows)?)?;
        std::fs::write(self.path.with_extension("md"), self.table())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_prints_is_read() {
        let mut run = Run::default();
        for line in [
            "#2\tINITED cov: 17 ft: 18 corp: 1/1b exec/s: 0 rss: 33Mb",
            "#4096\tpulse  cov: 1723 ft: 2810 corp: 214/9871b lim: 43 exec/s: 2048 rss: 60Mb",
            "INFO: seed corpus: files: 3 min: 1b max: 9b total: 12b rss: 33Mb",
        ] {
            run.read(line);
        }
        assert_eq!((run.coverage, run.executions), (1723, 4096));
        run.read("stat::number_of_executed_units: 5000");
        assert_eq!((run.coverage, run.executions), (1723, 5000));
    }

    #[test]
    fn runs_add_up() {
        let mut report = Report { path: PathBuf::new(), rows: BTreeMap::new() };
        let run = Run { passed: true, executions: 10, seconds: 2, coverage: 5, corpus_files: 3, corpus_bytes: 40 };
        report.add("cid", &run);
        report.add("cid", &Run { passed: false, corpus_files: 4, ..run });
        assert!(report.table().ends_with("| cid | 20 | 4 | 1 | 5 | 4 | 40 |\n"), "{}", report.table());
    }
}
