//! Events, metrics and artifacts, in the directory that the lab collects.
//!
//! Events go to `run.out` and metrics to `results.out`, in the lines of Testground's SDKs, each written at once and
//! whole: what was said stays said when the program is killed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Json, Result};

/// Longest name of an event or a metric, longest unit, longest path of an artifact, in bytes; as for Wasm programs.
const MAX_NAME: usize = 256;
const MAX_UNIT: usize = 32;
const MAX_PATH: usize = 512;

const EVENTS: &str = "run.out";
const METRICS: &str = "results.out";

pub(crate) fn event(name: &str, data: &str) -> Result<()> {
    static FILE: OnceLock<Mutex<Option<File>>> = OnceLock::new();
    check_name("an event", name)?;
    let text = |name: &str| Json::Text(std::env::var(name).unwrap_or_default());
    let line = format!(
        "{{\"ts\":{},\"msg\":\"\",\"group_id\":{},\"run_id\":{},\"event\":{{\"iptl_event\":{{\"name\":{},\"data\":{data}}}}}}}\n",
        now(),
        text("TEST_GROUP_ID"),
        text("TEST_RUN"),
        Json::from(name),
    );
    append_line(FILE.get_or_init(Mutex::default), EVENTS, &line)
}

pub(crate) fn metric(name: &str, value: f64, unit: &str) -> Result<()> {
    static FILE: OnceLock<Mutex<Option<File>>> = OnceLock::new();
    check_name("a metric", name)?;
    if !value.is_finite() {
        return Err(Error::Refused(format!("the value of {name} is {value}, which is no number")));
    }
    if unit.len() > MAX_UNIT {
        return Err(Error::Refused(format!("a unit of {} bytes; {MAX_UNIT} are allowed", unit.len())));
    }
    let line = format!(
        "{{\"ts\":{},\"type\":\"point\",\"name\":{},\"unit\":{},\"measures\":{{\"value\":{}}}}}\n",
        now(),
        Json::from(name),
        Json::from(unit),
        Json::from(value),
    );
    append_line(FILE.get_or_init(Mutex::default), METRICS, &line)
}

pub(crate) fn artifact(path: &str, data: &[u8]) -> Result<()> {
    check_path(path)?;
    let file = outputs()?.join(path);
    let refused = |error: std::io::Error| Error::Refused(format!("{path}: {error}"));
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).map_err(refused)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(file).map_err(refused)?;
    file.write_all(data).map_err(refused)
}

fn append_line(file: &Mutex<Option<File>>, name: &str, line: &str) -> Result<()> {
    let refused = |error: std::io::Error| Error::Refused(format!("{name}: {error}"));
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut open = match file.take() {
        Some(open) => open,
        None => OpenOptions::new().create(true).append(true).open(outputs()?.join(name)).map_err(refused)?,
    };
    open.write_all(line.as_bytes()).map_err(refused)?;
    *file = Some(open);
    Ok(())
}

fn outputs() -> Result<PathBuf> {
    let path = std::env::var_os("TEST_OUTPUTS_PATH").filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| Error::NotInLab { variable: "TEST_OUTPUTS_PATH".to_owned() })
}

/// Nanoseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        let size = name.len();
        return Err(Error::Refused(format!("the name of {what} has {size} bytes; it may have 1 to {MAX_NAME}")));
    }
    Ok(())
}

/// Checks the path of an artifact: relative, with `/`, of plain names only.
fn check_path(path: &str) -> Result<()> {
    let is_plain = |name: &str| {
        !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(|c: char| c.is_control() || c == '\\')
    };
    let reason = if path.len() > MAX_PATH || !path.split('/').all(is_plain) {
        "is not a relative path of plain names"
    } else if path == EVENTS || path == METRICS {
        "is where events and metrics are written"
    } else {
        return Ok(());
    };
    Err(Error::Refused(format!("{:?} {reason}", path.chars().take(80).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_paths_cannot_leave_their_directory() {
        for good in ["a", "a/b.txt", "..a", "deep/er/run.out"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", "a\\b", &"x".repeat(600), "run.out", "results.out"]
        {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_outside_a_lab_are_refused() {
        for bad in
            [event("", "1"), event(&"n".repeat(257), "1"), metric("m", f64::NAN, ""), metric("m", 1.0, &"u".repeat(33))]
        {
            assert!(matches!(bad, Err(Error::Refused(_))), "{bad:?}");
        }
    }
}
