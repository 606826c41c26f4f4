//! The table: figures beside their references, and what bounds them.

use std::fmt::Write as _;
use std::process::Command;

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub measure: String,
    /// What came of it.
    pub figure: String,
    /// What it is held against, in the same run.
    pub reference: String,
    /// One over the other.
    pub ratio: String,
    /// What it should be.
    pub goal: String,
    /// Whether it is; none where there is no goal.
    pub reached: Option<bool>,
    /// What bounds it.
    pub bound: String,
}

/// All rows with where they come from.
pub struct Report {
    rows: Vec<Row>,
    load_before: String,
}

impl Report {
    /// Makes an empty one and looks at how busy the machine is.
    pub fn begin() -> Report {
        Report { rows: Vec::new(), load_before: load() }
    }

    /// Adds a row, and tells it.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}: {} (goal {}, reference {})", row.measure, row.figure, row.goal, row.reference);
        self.rows.push(row);
    }

    /// Writes the page.
    pub fn text(&self, note: &str) -> String {
        let ask = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().map(|o| o.stdout).unwrap_or_default();
            String::from_utf8_lossy(&output).trim().to_owned()
        };
        let mut args: Vec<String> = std::env::args().skip(1).collect();
        // Where the page goes and what it is told besides is nobody's concern.
        while let Some(at) = args.iter().position(|arg| arg == "--out" || arg == "--note") {
            args.drain(at..args.len().min(at + 2));
        }
        let command = format!("cargo xtask bench {}", args.join(" "));
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let mut text = String::from(
            "# Benchmarks\n\nEvery figure stands beside a reference that was measured in the same run on the same machine: \
             read the ratios, not the\nmilliseconds. Orchestrator, lablets and workers of a lab share one machine here, and \
             its processors. What bounds a figure is read from the code where it gives no times; it is not profiled.\n\n",
        );
        let _infallible = write!(
            text,
            "- date: {}\n- command: `{}`{}\n- machine: {cpus} × {}, Linux {}, {}\n- load average: {} before, {} after\n",
            ask("date", &["-u", "+%Y-%m-%d"]),
            command.trim(),
            if cfg!(debug_assertions) { " (a debug build: not comparable)" } else { "" },
            cpu.unwrap_or("unknown processor"),
            kernel.trim(),
            ask("rustc", &["--version"]),
            self.load_before,
            load(),
        );
        if !note.is_empty() {
            let _infallible = writeln!(text, "- note: {note}");
        }
        text.push('\n');
        text.push_str("| measure | figure | reference | ratio | goal | reached | what bounds it |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            let reached = match row.reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "–",
            };
            let cells = [&row.measure, &row.figure, &row.reference, &row.ratio, &row.goal];
            let cells = cells.into_iter().map(String::as_str).chain([reached, &row.bound]);
            // A bar in a command would end its cell.
            let cells: Vec<String> = cells.map(|cell| cell.replace('|', "\\|")).collect();
            let _infallible = writeln!(text, "| {} |", cells.join(" | "));
        }
        text
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// Returns a percentile of values, in any order.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The smallest value that so many percent do not exceed.
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}
