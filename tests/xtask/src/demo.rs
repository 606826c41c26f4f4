//! `cargo xtask demo`: the whole path once, by the real programs, under the build folder.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::Shell;
use crate::{setup, test};

/// Lablets of the demo's lab.
const LABLETS: &str = "3";

/// Instances of the demo's run.
const INSTANCES: &str = "30";

/// Shows the whole path.
pub fn run(shell: &Shell) -> Result<()> {
    setup::for_build(shell)?;
    shell.step("build", "the workspace and the plans that ship");
    shell.run(shell.cargo().args(["build", "--workspace", "--locked"]))?;
    test::build_plans(shell)?;

    let started = Instant::now();
    let lab = Lab::new(shell)?;
    shell.step("1 of 5", "an orchestrator and three lablets, four processes with keys, stores and ports of their own");
    let up = lab.json(lab.iptl("lab").args(["dev", "up", "-n", LABLETS, "--json"]))?;
    let orchestrator = &up["orchestrator"];
    let address = orchestrator["addrs"][0].as_str().context("the orchestrator has no address")?.to_owned();
    let nodes: Vec<&Value> =
        std::iter::once(orchestrator).chain(up["lablets"].as_array().into_iter().flatten()).collect();
    for node in &nodes {
        let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
        eprintln!("   {:<12}  process {:<8} {}", text("role"), node["pid"].to_string(), text("peer"));
    }
    let pids: Vec<u64> = nodes.iter().filter_map(|n| n["pid"].as_u64()).collect();

    shell.step("2 of 5", "publish plans/ping: the plan gets a CID");
    let plan = lab.text(lab.iptl("lab").args(["publish", "plan", "plans/ping", "--no-build"]))?;
    eprintln!("   {plan}");

    shell.step("3 of 5", &format!("run {INSTANCES} instances of it over the three lablets"));
    let group = format!("{}={INSTANCES}", group_of_ping(shell)?);
    let result = lab.text(lab.iptl("lab").args(["run", &plan, "-g", &group]))?;
    eprintln!("   {result}");

    shell.step("4 of 5", "a fifth, fresh node that knows one address fetches the result, verifies it and shows it");
    lab.run(lab.iptl("fresh").args(["show", &result, "--peer", &address]))?;
    let files = lab.dir.join("result");
    lab.run(lab.iptl("fresh").args(["get", &format!("{result}/files"), "-o"]).arg(&files))?;

    shell.step("5 of 5", "stop everything");
    lab.stop()?;
    if let Some(pid) = pids.iter().find(|pid| runs(**pid)) {
        bail!("process {pid} still runs");
    }
    println!("\nresult  {result}");
    println!("plan    {plan}");
    println!("files   {}", files.strip_prefix(&shell.root).unwrap_or(&files).display());
    println!(
        "the demo took {} s; nothing runs any more, and all it wrote is in {}",
        started.elapsed().as_secs(),
        lab.dir.strip_prefix(&shell.root).unwrap_or(&lab.dir).display()
    );
    Ok(())
}

/// Returns whether a process runs; one that has ended and that nobody has asked about yet has no command line.
fn runs(pid: u64) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// The group whose size the demo sets: the first of the plan's case.
fn group_of_ping(shell: &Shell) -> Result<String> {
    let text = std::fs::read_to_string(shell.root.join("plans/ping/plan.toml"))?;
    let group =
        text.lines().find_map(|line| line.trim().strip_prefix("[cases.")?.strip_suffix(']')?.split_once(".groups."));
    group.map(|(_, name)| name.to_owned()).context("plans/ping has no group")
}

/// The demo's lab; stopped when it goes out of scope, whatever happened.
struct Lab {
    dir: PathBuf,
    program: PathBuf,
    root: PathBuf,
    stopped: std::cell::Cell<bool>,
}

impl Lab {
    fn new(shell: &Shell) -> Result<Lab> {
        let lab = Lab {
            dir: shell.target.join("demo"),
            program: shell.target.join("debug/iptl"),
            root: shell.root.clone(),
            stopped: std::cell::Cell::new(false),
        };
        if lab.dir.exists() {
            // One that was interrupted hard may still run.
            lab.stop()?;
            lab.stopped.set(false);
            std::fs::remove_dir_all(&lab.dir)?;
        }
        std::fs::create_dir_all(lab.dir.join("tmp"))?;
        Ok(lab)
    }

    fn iptl(&self, home: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.root).arg("--home").arg(self.dir.join(home));
        command.env("TMPDIR", self.dir.join("tmp")).env_remove("IPTL_HOME").stdin(Stdio::null());
        command
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let status = command.status().context("cannot run iptl")?;
        if !status.success() {
            bail!("iptl ended with {status}");
        }
        Ok(())
    }

    fn text(&self, command: &mut Command) -> Result<String> {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output().context("cannot run iptl")?;
        if !output.status.success() {
            bail!("iptl ended with {}", output.status);
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn json(&self, command: &mut Command) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(command)?)?)
    }

    fn stop(&self) -> Result<()> {
        self.stopped.set(true);
        self.run(self.iptl("lab").args(["dev", "down"]))?;
        // A process that was told to stop is gone from the table a moment after its socket.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.stopped.get()
            && let Err(error) = self.stop()
        {
            eprintln!("the demo's lab could not be stopped: {error:#}");
        }
    }
}
