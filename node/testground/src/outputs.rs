//! The files that SDKs leave in the directory of outputs, read into a [`Journal`].
//!
//! The directory belongs to the workload, which may have put anything there: links are not followed, nothing but plain
//! files is opened, and no more is read than a journal can hold. The files stay among the artifacts as they are;
//! `diagnostics.out` is not read at all, since what it holds says how the process did rather than what it measured.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::journal::{Journal, MAX_LINE};

/// Events of our own SDK, and a copy of stdout by others.
pub const RUN_OUT: &str = "run.out";

/// Measures.
pub const RESULTS_OUT: &str = "results.out";

/// Bytes of one file that are read at most.
pub const MAX_FILE: u64 = 256 << 20;

/// Reads what an ended instance left in `dir`; `start_ns` is the start of its cell in nanoseconds since 1970.
///
/// # Errors
///
/// Fails where a file is there and cannot be read. What is no plain file is passed over.
pub fn read_outputs(dir: &Path, journal: &mut Journal, start_ns: u64) -> io::Result<()> {
    each_line(&dir.join(RUN_OUT), |line| journal.own_event(line, start_ns))?;
    each_line(&dir.join(RESULTS_OUT), |line| journal.result(line, start_ns))
}

/// Calls `take` for each line of UTF-8 that is not too long.
fn each_line(path: &Path, mut take: impl FnMut(&str)) -> io::Result<()> {
    let Some(file) = open_plain(path)? else { return Ok(()) };
    let mut reader = BufReader::new(file.take(MAX_FILE));
    let mut line = Vec::new();
    loop {
        line.clear();
        let size = (&mut reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if size == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') || size <= MAX_LINE {
            if let Ok(line) = std::str::from_utf8(&line) {
                take(line.trim_end_matches(['\n', '\r']));
            }
        } else {
            reader.skip_until(b'\n')?;
        }
    }
}

/// Opens a plain file; none where there is nothing, or something else.
fn open_plain(path: &Path) -> io::Result<Option<File>> {
    // Without waiting, since a pipe may have been put there.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        // A link; a socket.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}
