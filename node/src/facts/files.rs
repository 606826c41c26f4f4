//! The files of a log: which there are, in what order, and which of them is enough.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use iptl_dag::model::{self, ExecutionId};
use iptl_scheduler::log;

use super::{LogError, io_error};

/// Returns the name of a folder that is there for what is laid aside now.
pub(super) fn aside() -> String {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("aside/{at}")
}

pub(super) fn move_to(folder: &Path, paths: Vec<PathBuf>) -> Result<(), LogError> {
    fs::create_dir_all(folder).map_err(|e| io_error(folder, e))?;
    for path in paths {
        let Some(name) = path.file_name() else { continue };
        fs::rename(&path, folder.join(name)).map_err(|e| io_error(&path, e))?;
    }
    Ok(())
}

/// Returns the files of a log in a folder, in their order.
pub(super) fn segments(dir: &Path, execution: &ExecutionId) -> Result<Vec<PathBuf>, LogError> {
    let name = execution.to_string();
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io_error(dir, e))? {
        let path = entry.map_err(|e| io_error(dir, e))?.path();
        let named = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next());
        if path.extension().is_some_and(|e| e == "log") && named == Some(&name) {
            segments.push(path);
        }
    }
    segments.sort_by_key(|path| first_seq(path));
    Ok(segments)
}

/// Returns the position of the first fact of a file, by its name.
pub(super) fn first_seq(path: &Path) -> u64 {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
    name.split('.').nth(1).and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

/// Returns the last of these files that begins with a snapshot which is whole, so that nothing before it is needed.
pub(super) fn begin_at(segments: &[PathBuf]) -> Result<Option<usize>, LogError> {
    for (n, path) in segments.iter().enumerate().rev() {
        if begins_whole(path)? {
            return Ok(Some(n));
        }
    }
    Ok(None)
}

/// Whether a file begins with a snapshot of which every part is what was written.
fn begins_whole(path: &Path) -> Result<bool, LogError> {
    let io = |e| io_error(path, e);
    let mut file = io::BufReader::new(File::open(path).map_err(io)?);
    let mut record = Vec::new();
    for expected in 0.. {
        record.resize(log::HEADER_SIZE, 0);
        let length = match file.read_exact(&mut record) {
            Ok(()) => u32::from_be_bytes([record[0], record[1], record[2], record[3]]) as usize,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(io(error)),
        };
        if length > log::MAX_RECORD_SIZE {
            return Ok(false);
        }
        let read = (&mut file).take(length as u64).read_to_end(&mut record).map_err(io)?;
        let body = log::HEADER_SIZE..record.len();
        let part = (read == length && log::is_whole(&record, body.clone()))
            .then(|| model::fact::snapshot_part(&record[body]))
            .flatten();
        match part {
            Some((part, last)) if part == expected => {
                if last {
                    return Ok(true);
                }
            }
            Some(_) | None => return Ok(false),
        }
    }
    Ok(false)
}
