//! A large run placed on many lablets, once for each affinity, in a process whose memory is the placement's own.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process::{forget_peak, peak_kib, resident_kib};
use crate::report::Row;

/// First argument of the process.
pub const VERB: &str = "place";

/// Instances that are placed, and lablets that they are placed on.
const PLACED: (u32, u32) = (1_000_000, 10_000);

/// Instances that are to be placed in a second.
const GOAL: f64 = 500_000.0;

/// Places in a process for each affinity.
pub fn measure() -> Result<Vec<Row>> {
    let (instances, lablets) = PLACED;
    let begun = Instant::now();
    let mut dealt = vec![0_u32; lablets as usize];
    for instance in 0..instances {
        std::hint::black_box(&mut dealt)[(instance % lablets) as usize] += 1;
    }
    let dealing = f64::from(instances) / begun.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    let affinities: Vec<&str> = iptl_sim::crowd(1, 1).into_iter().map(|(affinity, ..)| affinity).collect();
    for affinity in &affinities {
        let mut command = Command::new(std::env::current_exe()?);
        let output = command.args([VERB, *affinity]).output()?;
        ensure!(output.status.success(), "placing: {}", String::from_utf8_lossy(&output.stderr).trim());
        let text = String::from_utf8(output.stdout)?;
        let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [seconds, missing, before_kib, peak_kib] = numbers[..] else { anyhow::bail!("{text:?} is no placement") };
        let rate = f64::from(instances) / seconds;
        let mib = |kib: f64| kib / 1024.0;
        rows.push(Row {
            measure: format!("placement of {instances} instances on {lablets} lablets, affinity {affinity}"),
            figure: format!(
                "{:.1} million/s, {missing} missing; {:.1} MiB of memory at most",
                rate / 1e6,
                mib(peak_kib - before_kib)
            ),
            reference: format!(
                "dealing them out in turn, blind: {:.0} million/s; {} inventories and the program: {:.1} MiB",
                dealing / 1e6,
                affinities.len(),
                mib(before_kib)
            ),
            ratio: format!("{:.3} ×", rate / dealing),
            goal: format!("≥ {GOAL}/s"),
            reached: Some(rate >= GOAL && missing == 0.0),
            bound: "one look at each lablet and its conditions, then ranges".to_owned(),
        });
    }
    Ok(rows)
}

/// The whole of the process: prints seconds, instances without a place, and KiB before and at most.
pub fn child(args: &[String]) -> Result<()> {
    let [wanted] = args else { anyhow::bail!("one affinity is needed") };
    let (instances, lablets) = PLACED;
    // All are held until the end: memory that was given back would be taken by the placement, and not be counted.
    let crowd = iptl_sim::crowd(lablets, instances);
    let (_, run, inventory) = crowd.iter().find(|(affinity, ..)| affinity == wanted).context("no such affinity")?;
    let own = std::process::id();
    forget_peak()?;
    let before = resident_kib(own)?;
    let begun = Instant::now();
    let placed = iptl_scheduler::placement(run, inventory, &[], &BTreeMap::new());
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seconds} {} {before} {}", placed.missing(), peak_kib(own)?);
    Ok(())
}
