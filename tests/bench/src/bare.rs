//! The bare engine, in a process of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use iptl_runner_wasm::bare::Bare;

use crate::process::pss_kib;

/// First argument of the process.
pub const VERB: &str = "bare";

/// Runs before the ones that count.
const WARM_UP: u32 = 5;

/// Milliseconds that a program takes from being made to its end, for each of `count` runs.
pub fn runs(component: &Path, count: u32) -> Result<Vec<f64>> {
    ask(component, "run", count)
}

/// Many instances, made and run until they wait, one after the other.
pub struct Parked {
    /// Seconds for all.
    pub seconds: f64,
    /// KiB of memory for each.
    pub kib_each: f64,
}

/// Parks instances in the bare engine.
pub fn park(component: &Path, count: u32) -> Result<Parked> {
    let numbers = ask(component, "park", count)?;
    let [seconds, kib] = numbers[..] else { anyhow::bail!("two numbers were expected") };
    Ok(Parked { seconds, kib_each: kib / f64::from(count) })
}

fn ask(component: &Path, what: &str, count: u32) -> Result<Vec<f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args([VERB, what]).arg(component).arg(count.to_string()).output()?;
    anyhow::ensure!(output.status.success(), "bare engine: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().map(|word| word.parse::<f64>().context("a number")).collect()
}

/// The whole of the process: prints numbers.
pub fn child(args: Vec<String>) -> Result<()> {
    let [what, component, count] = &args[..] else { anyhow::bail!("run|park, a component and a count are needed") };
    let count: u32 = count.parse()?;
    let component = Path::new(component);
    if what == "run" {
        let bare = Bare::new(component, 1)?;
        for _ in 0..WARM_UP {
            bare.run("bare-end")?;
        }
        for _ in 0..count {
            println!("{}", bare.run("bare-end")?.as_secs_f64() * 1e3);
        }
        return Ok(());
    }
    let bare = Bare::new(component, count)?;
    let own = std::process::id();
    let before = pss_kib(own)?;
    let parked = bare.park(count, "bare-park")?;
    println!("{} {}", parked.took.as_secs_f64(), pss_kib(own)?.saturating_sub(before));
    // Taking them down one by one is not measured.
    std::process::exit(0);
}
