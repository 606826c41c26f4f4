//! What processes use: memory and processor time, as the kernel tells.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Returns the proportional memory of a process in KiB.
pub fn pss_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the memory of a process")?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("smaps_rollup has no Pss")?;
    Ok(line.split_whitespace().nth(1).context("Pss has no value")?.parse()?)
}

/// Returns the most memory that a process had resident since it began, or since it forgot that, in KiB.
pub fn peak_kib(pid: u32) -> Result<u64> {
    of_status(pid, "VmHWM:")
}

/// Returns the memory that a process has resident, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    of_status(pid, "VmRSS:")
}

/// Has this process forget the most memory that it had: that is what it has now.
pub fn forget_peak() -> Result<()> {
    // By proc_pid_clear_refs(5).
    std::fs::write("/proc/self/clear_refs", "5").context("the peak of this process")
}

fn of_status(pid: u32, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the state of a process")?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("status has no {name}"))?;
    Ok(line.split_whitespace().nth(1).with_context(|| format!("{name} has no value"))?.parse()?)
}

/// Returns the processor time that a process has used, in ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the times of a process")?;
    let (_, rest) = stat.rsplit_once(')').context("stat has no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields 14 and 15 of the line; the first two stand before the rest.
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Returns the workers of a lablet.
pub fn workers(lablet: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(lablet) {
            found.push(pid);
        }
    }
    found
}

/// Returns the processor time that this process has used.
pub fn own_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    duration(usage.user_time()) + duration(usage.system_time())
}

fn duration(time: TimeVal) -> Duration {
    let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
