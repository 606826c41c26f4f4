//! What the container has used, from the files of its own control group, version 1 or 2, as it sees them.

use std::fs;
use std::path::Path;

use crate::protocol::Sample;

/// Processes whose open files are counted in one sample.
const MAX_PROCESSES: usize = 64;

/// Reads what was used so far; what the kernel does not say is zero.
pub(crate) fn read() -> Sample {
    let mut sample = read_group(Path::new("/sys/fs/cgroup"));
    (sample.received, sample.sent) = network();
    sample
}

fn read_group(root: &Path) -> Sample {
    let unified_one = fs::exists(root.join("cgroup.controllers")).unwrap_or(false);
    if unified_one { unified(root) } else { split(root) }
}

fn unified(root: &Path) -> Sample {
    let group = |file: &str| text(root.join(file));
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

fn split(root: &Path) -> Sample {
    let group = |file: &str| text(root.join(file));
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

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Reads the number behind a word at the beginning of a line.
fn row(text: &str, word: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).map_or(0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: Sample) {
        let dir = std::env::temp_dir().join(format!("iptl-usage-{}-{}", std::process::id(), files.len()));
        for (name, content) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let read = read_group(&dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }

    #[test]
    fn group_of_version_2_is_read() {
        let files = [
            ("cgroup.controllers", "cpu io memory pids\n"),
            ("cpu.stat", "usage_usec 1834219\nuser_usec 1200000\nsystem_usec 634219\nnr_periods 12\nnr_throttled 3\n"),
            ("memory.current", "7340032\n"),
            ("memory.peak", "33554432\n"),
            ("memory.events", "low 0\nhigh 0\nmax 41\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("pids.events", "max 17\n"),
            (
                "io.stat",
                "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n\
                 254:1 rbytes=100 wbytes=200 rios=1 wios=1 dbytes=0 dios=0\n",
            ),
        ];
        let expected = Sample {
            cpu_us: 1_834_219,
            memory: 7_340_032,
            memory_peak: 33_554_432,
            read: 4196,
            written: 8392,
            oom_kills: 1,
            pids_refused: 17,
            ..Sample::default()
        };
        check(&files, expected);
        // Kernels before 5.19 have no peak, and a group without a controller has not its files.
        let expected = Sample { cpu_us: 5, ..Sample::default() };
        check(&[("cgroup.controllers", "cpu\n"), ("cpu.stat", "usage_usec 5\n")], expected);
    }

    #[test]
    fn groups_of_version_1_are_read() {
        let files = [
            ("cpuacct/cpuacct.usage", "1834219000\n"),
            ("memory/memory.usage_in_bytes", "7340032\n"),
            ("memory/memory.max_usage_in_bytes", "33554432\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("pids/pids.events", "max 17\n"),
            ("blkio/blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n"),
        ];
        let expected = Sample {
            cpu_us: 1_834_219,
            memory: 7_340_032,
            memory_peak: 33_554_432,
            read: 4096,
            written: 8192,
            oom_kills: 1,
            pids_refused: 17,
            ..Sample::default()
        };
        check(&files, expected);
    }
}
