//! `cargo xtask demo --docker`: containers beside components, a second version that moves what changed, a look into a
//! container that runs, and one that misbehaves.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::lab::Lab;
use crate::setup::STATIC;
use crate::shell::Shell;

/// Lablets of the lab.
const LABLETS: &str = "2";

/// Files of a megabyte in the image of which a second version is made.
const FILES: u32 = 20;

/// Time that a run has to come up on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shows it.
pub fn run(shell: &Shell) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::new(shell)?;
    shell.step("1 of 5", "an orchestrator and two lablets, whose owners let commands be executed in containers");
    let up = lab.json(lab.iptl("lab").args(["dev", "up", "-n", LABLETS, "--allow-exec", "--json"]))?;
    let address = up["orchestrator"]["addrs"][0].as_str().context("the orchestrator has no address")?.to_owned();

    shell.step("2 of 5", "one run of components and containers, which meet at the same barriers and topics");
    let groups = ["-g", "component=6", "-g", "container=6"];
    let result = lab.text(lab.iptl("lab").args(["run", "plans/mixed", "--no-build"]).args(groups))?;

    shell
        .step("3 of 5", "an image is published, then a second version of it: what moves to a node that has the first?");
    second_version(shell, &lab, &address)?;

    shell.step("4 of 5", "a command in a container that runs, over the swarm");
    look_inside(&lab)?;

    shell.step("5 of 5", "a fork bomb in a container, beside components that must not notice");
    lab.run(lab.iptl("lab").args(["run", "plans/hostile", "--no-build", "--case", "fork-bomb"]))?;

    lab.stop()?;
    println!("\nresult  {result}");
    println!("the demo took {} s; nothing of it runs any more", started.elapsed().as_secs());
    Ok(())
}

fn second_version(shell: &Shell, lab: &Lab, address: &str) -> Result<()> {
    let rootfs = lab.dir.join("rootfs");
    fs::create_dir_all(rootfs.join("data"))?;
    for number in 0..FILES {
        fs::write(rootfs.join(format!("data/{number}")), unlike(number))?;
    }
    let program = shell.root.join("plans/mixed/target").join(STATIC).join("release/mixed");
    let mut program = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let mut sizes = Vec::new();
    for version in 1..=2 {
        fs::write(rootfs.join("program"), &program)?;
        let cid = lab.text(lab.iptl("lab").args(["-q", "publish", "workload", "--rootfs"]).arg(&rootfs))?;
        let mut get = lab.iptl("fresh");
        get.args(["get", &cid, "--car", "--json", "--peer", address, "-o", "/dev/null"]);
        let answer = lab.text(&mut get)?;
        let answer: Value = serde_json::from_str(answer.lines().last().unwrap_or_default())?;
        let moved = answer["bytes_fetched"].as_u64().context("no count of bytes")?;
        eprintln!("   version {version}  {cid}  {moved:>9} bytes moved");
        sizes.push(moved);
        // The next build of it: the same program but for a function.
        let middle = program.len() / 2;
        program[middle..].iter_mut().take(1000).for_each(|byte| *byte ^= 0x55);
    }
    let [first, second] = sizes[..] else { bail!("two versions") };
    eprintln!("   {:.1} % of the image moved again", second as f64 / first as f64 * 100.0);
    Ok(())
}

/// Runs containers that stay for a while, executes a command in the first, and ends the run.
fn look_inside(lab: &Lab) -> Result<()> {
    let arguments = ["--no-build", "-g", "component=1", "-g", "container=2", "-p", "pause=50s", "--json"];
    let mut running = Running(
        lab.iptl("lab").args(["run", "plans/mixed", "--detach"]).args(arguments).stdout(Stdio::piped()).spawn()?,
    );
    let answer = running.answer()?;
    let execution = answer["execution"].as_str().context("no execution")?.to_owned();
    let place = format!("{execution}/container/0");
    let begun = Instant::now();
    eprintln!("   $ iptl exec {place} -- /app/mixed about");
    loop {
        let output = lab.iptl("lab").args(["exec", &place, "--", "/app/mixed", "about"]).output()?;
        if output.status.success() {
            String::from_utf8_lossy(&output.stdout).lines().for_each(|line| eprintln!("   {line}"));
            break;
        }
        // Until it runs, it is refused with a status of the tool's own; another one is the command's.
        let said = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
        if begun.elapsed() > PATIENCE || !said.contains("exec.not-running") {
            bail!("no command can be executed: {}", said.trim());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    lab.run(lab.iptl("lab").args(["-q", "cancel", &execution]))
}

/// A command line whose answer is read; it ends with the value.
struct Running(Child);

impl Running {
    fn answer(&mut self) -> Result<Value> {
        let text = std::io::read_to_string(self.0.stdout.take().context("no output")?)?;
        Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.wait();
    }
}

/// A megabyte that has nothing in common with that of another number: xorshift64* after Vigna, 2014.
fn unlike(number: u32) -> Vec<u8> {
    let mut state = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(1_000_000);
    while bytes.len() < 1_000_000 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes
}
