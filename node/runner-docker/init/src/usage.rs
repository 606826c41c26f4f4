//! What the container has used, from the files of its own control group, version 1 or 2, as it sees them.

use std::fs;

use crate::protocol::Sample;

/// Processes whose open files are counted in one sample.
const MAX_PROCESSES: usize = 64;

/// Reads what was used so far; what the kernel does not say is zero.
pub(crate) fn read() -> Sample {
    let mut sample = if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { unified() } else { split() };
    (sample.received, sample.sent) = network();
    sample
}

fn unified() -> Sample {
    let group = |file: &str| text(&format!("/sys/fs/cgroup/{file}"));
    let io = group("io.stat");
    let io = |key: &str| {
        let fields = io.split_ascii_whitespace().filter_map(|field| field.strip_prefix(key));
        fields.filter_map(|n| n.parse::<u64>().ok()).sum()
    };
    Sample {
        cpu_us: row(&group("cpu.stat"), "usage_usec"),
        memory: number(&group("memory.current")),
        memory_peak: number(&group("memory.peak")),
        read: io("rbytes="),
        written: io("wbytes="),
        oom_kills: row(&group("memory.events"), "oom_kill"),
        pids_refused: row(&group("pids.events"), "max"),
        ..Sample::default()
    }
}

fn split() -> Sample {
    let group = |file: &str| text(&format!("/sys/fs/cgroup/{file}"));
    let io = group("blkio/blkio.throttle.io_service_bytes");
    let io = |word: &str| {
        let lines = io.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(word));
        lines.map(number).sum()
    };
    Sample {
        cpu_us: number(&group("cpuacct/cpuacct.usage")) / 1000,
        memory: number(&group("memory/memory.usage_in_bytes")),
        memory_peak: number(&group("memory/memory.max_usage_in_bytes")),
        read: io("Read"),
        written: io("Write"),
        oom_kills: row(&group("memory/memory.oom_control"), "oom_kill"),
        pids_refused: row(&group("pids/pids.events"), "max"),
        ..Sample::default()
    }
}

/// Bytes received and sent over all interfaces but loopback.
fn network() -> (u64, u64) {
    let text = text("/proc/self/net/dev");
    let mut sums = (0, 0);
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut fields = numbers.split_ascii_whitespace();
        sums.0 += fields.next().map_or(0, number);
        sums.1 += fields.nth(7).map_or(0, number);
    }
    sums
}

/// Returns how many files that process has open which has most of them.
pub(crate) fn most_open_files() -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let own = std::process::id().to_string();
    let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own);
    pids.take(MAX_PROCESSES).map(|pid| open_files(&pid)).max().unwrap_or(0)
}

fn open_files(pid: &str) -> u64 {
    let path = format!("/proc/{pid}/fd");
    match fs::metadata(&path) {
        // Since Linux 6.2 the directory says itself how many there are.
        Ok(metadata) if metadata.len() > 0 => metadata.len(),
        Ok(_) => fs::read_dir(&path).map_or(0, |entries| entries.count() as u64),
        Err(_) => 0,
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Reads the number behind a word at the beginning of a line.
fn row(text: &str, word: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).map_or(0, number)
}
