//! `cargo xtask demo --network`: instances on three lablets in two regions of a network that the lab emulates, which lose
//! each other in the middle of the run and find each other again.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::Lab;
use crate::shell::Shell;

/// Lablets of the lab.
const LABLETS: &str = "3";

/// Instances; everybody tells everybody else what it knows, which on two processors a debug build can carry for so many.
const NODES: &str = "node=45";

/// Time from one heartbeat of an instance to the next, and without one after which a peer counts as lost.
const CHOICES: [&str; 4] = ["-p", "interval=1s", "-p", "silence=3s"];

/// Shows it.
pub fn run(shell: &Shell) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::new(shell)?;
    shell.step("1 of 4", "an orchestrator and three lablets");
    lab.run(lab.iptl("lab").args(["dev", "up", "-n", LABLETS]))?;

    shell.step("2 of 4", "45 instances in two regions that are 40 ms apart; after 4 s they lose each other for 5 s");
    let result = lab.text(lab.iptl("lab").args(["run", "plans/split", "--no-build", "-g", NODES]).args(CHOICES))?;

    shell.step("3 of 4", "what one instance saw of it");
    let files = lab.dir.join("result");
    lab.run(lab.iptl("lab").args(["-q", "get", &format!("{result}/files"), "-o"]).arg(&files))?;
    let events = std::fs::read_to_string(files.join("events/node/0.jsonl")).context("the events of node/0")?;
    let seen = tell(&events)?;
    ensure!(seen.faults == ["partition", "heal"], "the faults of the run are {:?}", seen.faults);
    ensure!(seen.lost > 0 && seen.found > 0, "nobody was lost, or nobody was found again");

    shell.step("4 of 4", "the result as a whole, with what the lab could not keep to");
    lab.run(lab.iptl("lab").args(["show", &result]))?;

    lab.stop()?;
    println!("\nresult  {result}");
    println!("the demo took {} s; nothing of it runs any more", started.elapsed().as_secs());
    Ok(())
}

/// What an instance saw.
struct Seen {
    faults: Vec<String>,
    lost: usize,
    found: usize,
}

/// Says it in lines: what the lab did, and whom the instance lost and found between.
fn tell(events: &str) -> Result<Seen> {
    let mut seen = Seen { faults: Vec::new(), lost: 0, found: 0 };
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        let seconds = event["t"].as_f64().unwrap_or_default() / 1e6;
        match event["name"].as_str().unwrap_or_default() {
            "lost" => seen.lost += 1,
            "found" => seen.found += 1,
            "iptl.fault" => {
                let fault = event["data"]["fault"].as_str().unwrap_or_default().to_owned();
                eprintln!("   {seconds:6.2} s  the lab: {fault}");
                seen.faults.push(fault);
            }
            "agreed" => eprintln!("   {seconds:6.2} s  it knows what all others know"),
            _ => {}
        }
    }
    eprintln!("   it lost {} peers and found {} again", seen.lost, seen.found);
    Ok(seen)
}
