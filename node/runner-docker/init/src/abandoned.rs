//! Ends a command that a person executed and went away from, with all that it started.
//!
//! The engine starts such a command and cannot end it. Its processes are known by a mark in their environment, which
//! whatever they start has too, or is in one session with them.

use std::fs;
use std::time::Duration;

use crate::protocol::MARK;
use crate::sys;

/// Time between the signal of a terminal that is gone and force.
const GRACE: Duration = Duration::from_millis(500);

/// Looks for what was started while others were being ended.
const ROUNDS: u32 = 5;

/// Ends everything with this mark; returns the status to end with.
pub(crate) fn end(mark: &str) -> i32 {
    let found = marked(mark);
    if found.is_empty() {
        return 0;
    }
    found.iter().for_each(|pid| sys::signal(*pid, libc::SIGHUP));
    std::thread::sleep(GRACE);
    for _ in 0..ROUNDS {
        let left = marked(mark);
        if left.is_empty() {
            return 0;
        }
        left.iter().for_each(|pid| sys::signal(*pid, libc::SIGKILL));
        std::thread::sleep(GRACE / 10);
    }
    1
}

/// Lists processes with the mark and those in one session with them. This one and the container's first are no such.
fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let own = std::process::id().cast_signed();
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == 1 || pid == own {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let has_mark = environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
        let session = fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| session(&stat));
        all.push((pid, has_mark, session));
    }
    // Session 0 is that of processes whose leader is outside of the container.
    let sessions: Vec<i32> = all.iter().filter(|(_, marked, _)| *marked).filter_map(|(.., session)| *session).collect();
    let belongs = |marked: bool, session: Option<i32>| {
        marked || session.is_some_and(|session| session > 1 && sessions.contains(&session))
    };
    all.into_iter().filter(|(_, marked, session)| belongs(*marked, *session)).map(|(pid, ..)| pid).collect()
}

/// Reads the session out of a process's `stat`; its name, in brackets, may hold anything.
fn session(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_stands_behind_any_name() {
        assert_eq!(session("7 (a) b) S 1 7 5 0 -1 4194560"), Some(5));
        assert_eq!(session("7 (sh"), None);
    }
}
