//! `cargo xtask demo`: the whole path once, by the real programs, under the build folder.

mod containers;
mod lab;
mod network;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::lab::Lab;
use crate::shell::Shell;
use crate::{engine, setup, test};

/// Lablets of the demo's lab.
const LABLETS: &str = "3";

/// Instances of the demo's run.
const INSTANCES: &str = "30";

/// Which demo.
#[derive(clap::Args)]
pub struct Args {
    /// Containers: beside components, in a second version, looked into, and one that misbehaves
    #[arg(long)]
    docker: bool,
    /// A network of two regions over three lablets that parts and heals
    #[arg(long, conflicts_with = "docker")]
    network: bool,
}

/// Shows the one that was asked for.
pub fn run(shell: &Shell, args: &Args) -> Result<()> {
    setup::for_build(shell)?;
    if args.docker {
        engine::ensure(shell)?;
    }
    shell.step("build", "the workspace and the plans that ship");
    shell.run(shell.cargo().args(["build", "--workspace", "--locked"]))?;
    test::build_plans(shell)?;
    if args.docker {
        containers::run(shell)
    } else if args.network {
        network::run(shell)
    } else {
        whole_path(shell)
    }
}

/// Publishes a plan, runs it, and fetches the result by its CID.
fn whole_path(shell: &Shell) -> Result<()> {
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
