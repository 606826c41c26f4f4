//! `cargo xtask demo --network`: a hundred nodes of a DHT on three lablets, in two regions of a network that the lab
//! emulates, three in ten of them behind NATs. The regions lose each other in the middle of the run.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::Lab;
use crate::shell::Shell;

/// Lablets of the lab.
const LABLETS: &str = "3";

/// The parts of a run, as its faults divide it.
const PARTS: [&str; 3] = ["before", "apart", "after"];

/// What is looked up, by the names that the plan gives it.
const KINDS: [&str; 2] = ["dht.find-peer", "dht.find-providers"];

/// Shows it.
pub fn run(shell: &Shell) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::new(shell)?;
    shell.step("1 of 4", "an orchestrator and three lablets");
    lab.run(lab.iptl("lab").args(["dev", "up", "-n", LABLETS]))?;

    shell.step(
        "2 of 4",
        "Kademlia of rust-libp2p on 100 nodes in two regions, 40 ms apart, three in ten behind NATs: they join, provide \
         and look up, and in the middle the regions lose each other for 15 s; it takes a minute and a half",
    );
    let run = ["run", "plans/dht", "--no-build", "--case", "partition"];
    let result = lab.text(lab.iptl("lab").args(run))?;

    shell.step("3 of 4", "what was found before, while the regions were apart, and after");
    let files = lab.dir.join("result");
    lab.run(lab.iptl("lab").args(["-q", "get", &format!("{result}/files"), "-o"]).arg(&files))?;
    let seen = Seen::read(&files.join("events/peer"))?;
    seen.tell();
    ensure!(seen.faults == ["partition", "heal"], "the faults of the run are {:?}", seen.faults);
    ensure!(seen.lookups.iter().flatten().all(|lookups| lookups.made > 0), "nothing was looked up in one of the three");

    shell.step("4 of 4", "the result as a whole, with what the lab could not keep to");
    lab.run(lab.iptl("lab").args(["show", &result]))?;

    lab.stop()?;
    println!("\nresult  {result}");
    println!("the demo took {} s; nothing of it runs any more", started.elapsed().as_secs());
    Ok(())
}

/// What all peers saw.
#[derive(Default)]
struct Seen {
    /// Faults in the order of one peer.
    faults: Vec<String>,
    /// Look-ups by the part in which they ended, and what was looked up.
    lookups: [[Lookups; KINDS.len()]; PARTS.len()],
}

#[derive(Default)]
struct Lookups {
    made: usize,
    /// Times of those that found it, in milliseconds.
    found_ms: Vec<f64>,
}

impl Seen {
    /// Reads a folder with the events of each peer.
    fn read(folder: &Path) -> Result<Seen> {
        let mut seen = Seen::default();
        for entry in std::fs::read_dir(folder).context("the result has no events of peers")? {
            seen.add(&std::fs::read_to_string(entry?.path())?)?;
        }
        Ok(seen)
    }

    /// Adds the events of a peer, a line each.
    fn add(&mut self, events: &str) -> Result<()> {
        let mut faults = Vec::new();
        for line in events.lines() {
            let event: Value = serde_json::from_str(line)?;
            let data = &event["data"];
            match event["name"].as_str().unwrap_or_default() {
                "iptl.fault" => faults.push(data["fault"].as_str().unwrap_or_default().to_owned()),
                "looked-up" => {
                    let kind = KINDS.iter().position(|kind| data["of"] == *kind);
                    let kind = kind.with_context(|| format!("the plan looked up {}", data["of"]))?;
                    let lookups = &mut self.lookups[faults.len().min(PARTS.len() - 1)][kind];
                    lookups.made += 1;
                    if data["found"] == true {
                        lookups.found_ms.push(data["ms"].as_f64().context("a look-up without its time")?);
                    }
                }
                _ => {}
            }
        }
        self.faults = faults;
        Ok(())
    }

    fn tell(&self) {
        eprintln!("           look-ups of peers                   of providers of a key");
        for (part, [peers, providers]) in PARTS.iter().zip(&self.lookups) {
            eprintln!("   {part:6}  {:34}  {}", peers.say(), providers.say());
        }
        eprintln!(
            "   A peer on the other side cannot be found; that it has a key, twenty others know, some of them on this side."
        );
    }
}

impl Lookups {
    /// Says how many there were, how many found something, and how long half of those took at most.
    fn say(&self) -> String {
        let mut took_ms = self.found_ms.clone();
        took_ms.sort_by(f64::total_cmp);
        let share = 100 * took_ms.len() / self.made.max(1);
        match took_ms.get(took_ms.len() / 2) {
            Some(half_ms) => format!("{:>4}: {share:>3} % found, p50 {half_ms:.0} ms", self.made),
            None => format!("{:>4}: none found", self.made),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_count_in_the_part_in_which_they_ended() {
        let mut seen = Seen::default();
        let lookup = |of: &str, found: bool| {
            format!("{{\"t\":1,\"name\":\"looked-up\",\"data\":{{\"of\":\"{of}\",\"found\":{found},\"ms\":7}}}}\n")
        };
        let fault = |what: &str| format!("{{\"t\":1,\"name\":\"iptl.fault\",\"data\":{{\"fault\":\"{what}\"}}}}\n");
        let events = [lookup(KINDS[0], true), fault("partition"), lookup(KINDS[0], false), fault("heal")];
        seen.add(&(events.concat() + &lookup(KINDS[1], true))).unwrap();
        assert_eq!(seen.faults, ["partition", "heal"]);
        assert_eq!(
            seen.lookups.each_ref().map(|kinds| kinds.each_ref().map(|l| (l.made, l.found_ms.len()))),
            [[(1, 1), (0, 0)], [(1, 0), (0, 0)], [(0, 0), (1, 1)]]
        );
        assert_eq!(seen.lookups[0][0].say(), "   1: 100 % found, p50 7 ms");
        assert!(seen.add(&lookup("dht.other", true)).is_err());
    }
}
