//! Files that instances leave behind: logs, events and metrics as JSON lines, artifacts as they are.
//!
//! Below the scratch directory of a cell stands `<group>/<index>/` with `logs.jsonl`, `events.jsonl`, `metrics.jsonl`,
//! `samples.jsonl` and `artifacts/`; nothing is made before it is written to. Every append reaches the kernel before it
//! returns, so that what was said stays said when the process that runs the cell is killed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iptl_dag::model::{FaultKind, InstanceId, Usage};
use iptl_labnet::Wish;
use serde::{Deserialize, Serialize};

use crate::cell::OutputStream;

/// Most files that one cell keeps open; a cell of 10,000 instances must not need 30,000 descriptors, and a worker has
/// 4096.
const MAX_OPEN_FILES: usize = 2048;

/// Name of the events that say what was done to an instance on purpose.
pub const FAULT_EVENT: &str = "iptl.fault";

/// Name of the events that say whether a capture has everything.
pub const CAPTURE_EVENT: &str = "iptl.capture";

/// Name of the events that say what an instance asked of its network.
pub const NETWORK_EVENT: &str = "iptl.network";

/// Name of the capture of an instance's link among its artifacts.
pub const CAPTURE: &str = "lab-link.pcap";

/// Longest path of an artifact in bytes.
const MAX_ARTIFACT_PATH: usize = 512;

/// Writes the files of one cell.
#[derive(Debug)]
pub struct CellFiles {
    scratch: PathBuf,
    /// By path below `scratch`.
    open: Mutex<BTreeMap<String, File>>,
}

/// The files that one instance left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFiles {
    /// Lines that it wrote, as JSON lines `{"t":us,"stream":"out","line":…}`; none where it wrote nothing.
    pub logs: Option<PathBuf>,
    /// Events, as JSON lines `{"t":us,"name":…,"data":…}`.
    pub events: Option<PathBuf>,
    /// Metrics, as JSON lines `{"t":us,"name":"ping.rtt","value":1.25,"unit":"ms"}`.
    pub metrics: Option<PathBuf>,
    /// Directory of its artifacts.
    pub artifacts: Option<PathBuf>,
    /// What it used second by second, as JSON lines
    /// `{"t":us,"cpu_us":…,"memory":…,"sent":…,"received":…,"read":…,"written":…}`: totals since its start but for the
    /// memory, all in bytes but for the time.
    pub samples: Option<PathBuf>,
}

/// Why a path is none for an artifact.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a relative path of plain names: {reason}")]
pub struct BadArtifactPath {
    path: String,
    reason: &'static str,
}

#[derive(Serialize)]
struct LogLine<'a> {
    t: u64,
    stream: &'a str,
    line: &'a str,
}

#[derive(Serialize)]
struct EventLine<'a> {
    t: u64,
    name: &'a str,
    data: &'a serde_json::value::RawValue,
}

#[derive(Serialize)]
struct MetricLine<'a> {
    t: u64,
    name: &'a str,
    value: f64,
    unit: &'a str,
}

#[derive(Serialize)]
struct SampleLine {
    t: u64,
    cpu_us: u64,
    memory: u64,
    sent: u64,
    received: u64,
    read: u64,
    written: u64,
}

impl CellFiles {
    /// Writes below `scratch`, which exists.
    pub fn new(scratch: PathBuf) -> CellFiles {
        CellFiles { scratch, open: Mutex::new(BTreeMap::new()) }
    }

    /// Encodes a line of output.
    pub fn log_line(out: &mut Vec<u8>, at_us: u64, stream: OutputStream, line: &str) {
        push_line(out, &LogLine { t: at_us, stream: stream.name(), line });
    }

    /// Encodes an event.
    pub fn event_line(out: &mut Vec<u8>, at_us: u64, name: &str, data: &serde_json::value::RawValue) {
        push_line(out, &EventLine { t: at_us, name, data });
    }

    /// Encodes an event that says what was done to an instance on purpose, and when that was due.
    pub fn fault_line(out: &mut Vec<u8>, at_us: u64, fault: FaultKind, due_us: u64) {
        let data = format!(r#"{{"fault":{},"due_us":{due_us}}}"#, serde_json::Value::from(fault.name()));
        if let Ok(data) = serde_json::value::RawValue::from_string(data) {
            CellFiles::event_line(out, at_us, FAULT_EVENT, &data);
        }
    }

    /// Encodes an event that says whether the capture of an instance's link has everything.
    pub fn capture_line(out: &mut Vec<u8>, at_us: u64, whole: bool) {
        let data = format!(r#"{{"artifact":"{CAPTURE}","whole":{whole}}}"#);
        if let Ok(data) = serde_json::value::RawValue::from_string(data) {
            CellFiles::event_line(out, at_us, CAPTURE_EVENT, &data);
        }
    }

    /// Returns the data of an event that says what an instance asked of its network, as far as that was understood, and
    /// why it was refused where it was.
    pub fn network_data(asked: Option<&Wish>, refused: Option<&str>) -> Box<serde_json::value::RawValue> {
        #[derive(Serialize)]
        struct Data<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            asked: Option<&'a Wish>,
            #[serde(skip_serializing_if = "Option::is_none")]
            refused: Option<&'a str>,
        }
        let data = serde_json::value::to_raw_value(&Data { asked, refused });
        data.unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned())
    }

    /// Encodes a value of a metric, which must be finite.
    pub fn metric_line(out: &mut Vec<u8>, at_us: u64, name: &str, value: f64, unit: &str) {
        push_line(out, &MetricLine { t: at_us, name, value, unit });
    }

    /// Encodes what an instance has used so far, and the memory that it has now.
    pub fn sample_line(out: &mut Vec<u8>, at_us: u64, used: &Usage) {
        let Usage { cpu_us, memory_bytes, sent_bytes, received_bytes, read_bytes, written_bytes } = *used;
        push_line(
            out,
            &SampleLine {
                t: at_us,
                cpu_us,
                memory: memory_bytes,
                sent: sent_bytes,
                received: received_bytes,
                read: read_bytes,
                written: written_bytes,
            },
        );
    }

    /// Appends encoded lines to the log of an instance.
    pub fn append_logs(&self, id: &InstanceId, lines: &[u8]) -> io::Result<()> {
        self.append(id, "logs.jsonl", lines)
    }

    /// Appends encoded lines to the events of an instance.
    pub fn append_events(&self, id: &InstanceId, lines: &[u8]) -> io::Result<()> {
        self.append(id, "events.jsonl", lines)
    }

    /// Appends encoded lines to the metrics of an instance.
    pub fn append_metrics(&self, id: &InstanceId, lines: &[u8]) -> io::Result<()> {
        self.append(id, "metrics.jsonl", lines)
    }

    /// Appends encoded lines to the samples of an instance.
    pub fn append_samples(&self, id: &InstanceId, lines: &[u8]) -> io::Result<()> {
        self.append(id, "samples.jsonl", lines)
    }

    /// Appends to an artifact of an instance, whose path was checked by [`check_artifact_path`].
    pub fn append_artifact(&self, id: &InstanceId, path: &str, data: &[u8]) -> io::Result<()> {
        self.append(id, &format!("artifacts/{path}"), data)
    }

    /// Appends to the capture of an instance's link, which stands beside its artifacts until it is kept.
    pub fn append_capture(&self, id: &InstanceId, data: &[u8]) -> io::Result<()> {
        self.append(id, CAPTURE, data)
    }

    /// Returns the size of the capture of an instance's link so far.
    pub fn capture_size(&self, id: &InstanceId) -> u64 {
        std::fs::metadata(self.dir(id).join(CAPTURE)).map_or(0, |file| file.len())
    }

    /// Puts the capture of an instance's link among its artifacts, in the place of one that has its name. Where there is
    /// none, does nothing.
    pub fn keep_capture(&self, id: &InstanceId) -> io::Result<()> {
        self.open().remove(&format!("{}/{}/{CAPTURE}", id.group, id.index));
        let (from, artifacts) = (self.dir(id).join(CAPTURE), self.dir(id).join("artifacts"));
        if !from.is_file() {
            return Ok(());
        }
        let to = artifacts.join(CAPTURE);
        if to.is_dir() {
            std::fs::remove_dir_all(&to)?;
        }
        std::fs::create_dir_all(&artifacts)?;
        std::fs::rename(from, to)
    }

    /// Returns what an instance has left so far.
    pub fn left(&self, id: &InstanceId) -> LeftFiles {
        let dir = self.dir(id);
        if !dir.is_dir() {
            return LeftFiles::default();
        }
        let existing = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        LeftFiles {
            logs: existing("logs.jsonl"),
            events: existing("events.jsonl"),
            metrics: existing("metrics.jsonl"),
            artifacts: existing("artifacts"),
            samples: existing("samples.jsonl"),
        }
    }

    fn dir(&self, id: &InstanceId) -> PathBuf {
        self.scratch.join(&id.group).join(id.index.to_string())
    }

    fn append(&self, id: &InstanceId, name: &str, data: &[u8]) -> io::Result<()> {
        let path = format!("{}/{}/{name}", id.group, id.index);
        let mut open = self.open();
        if let Some(file) = open.get_mut(&path) {
            return file.write_all(data);
        }
        if open.len() >= MAX_OPEN_FILES {
            open.clear();
        }
        let mut file = open_append(&self.scratch.join(&path))?;
        file.write_all(data)?;
        open.insert(path, file);
        Ok(())
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the path of an artifact: relative, with `/`, of plain names only.
pub fn check_artifact_path(path: &str) -> Result<(), BadArtifactPath> {
    let bad = |reason| Err(BadArtifactPath { path: path.chars().take(80).collect(), reason });
    if path.is_empty() || path.len() > MAX_ARTIFACT_PATH {
        return bad("it is empty or too long");
    }
    for name in path.split('/') {
        if name.is_empty() || name == "." || name == ".." {
            return bad("a name in it is empty, . or ..");
        }
        if name.len() > 255 {
            return bad("a name in it is too long");
        }
        if name.chars().any(|c| c.is_control() || c == '\\') {
            return bad("a name in it has a control character or a backslash");
        }
    }
    Ok(())
}

fn push_line<T: Serialize>(out: &mut Vec<u8>, line: &T) {
    serde_json::to_writer(&mut *out, line).expect("lines have string keys and go to memory");
    out.push(b'\n');
}

fn open_append(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().create(true).append(true).open(path);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_paths_cannot_leave_their_directory() {
        for good in ["a", "a/b.txt", "..a", "deep/er/still"] {
            assert_eq!(check_artifact_path(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", "a\\b", &"x".repeat(600)] {
            assert!(check_artifact_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_left_where_nothing_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = CellFiles::new(dir.path().to_owned());
        let id = InstanceId { group: "g".into(), index: 0 };
        assert_eq!(files.left(&id), LeftFiles::default());
        files.append_logs(&id, b"{}\n").unwrap();
        assert_eq!(files.left(&id).logs, Some(dir.path().join("g/0/logs.jsonl")));
        assert_eq!(files.left(&id).events, None);
    }

    #[test]
    fn more_files_than_may_be_open_are_all_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = CellFiles::new(dir.path().to_owned());
        for round in 0..2 {
            for index in 0..(MAX_OPEN_FILES as u32 + 10) {
                let id = InstanceId { group: "g".into(), index };
                files.append_logs(&id, format!("{round}\n").as_bytes()).unwrap();
            }
        }
        let left = files.left(&InstanceId { group: "g".into(), index: 3 });
        assert_eq!(std::fs::read_to_string(left.logs.unwrap()).unwrap(), "0\n1\n");
    }
}
