//! How an instance ended, from what its init, its engine and the lab know.

use iptl_dag::model::Exit;

use crate::protocol::{End, Sample};

/// What became of an instance that does not connect to sync again.
pub(crate) const SYNC_LOST: &str =
    "its connection to sync had ended with its lablet's process, and it did not connect again";

/// Why the lab ended an instance; the first reason counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Stopped(String),
    OutOfTime,
    OutOfCpu,
    TooMuch(&'static str),
    Unwell(String),
    /// The lab could not go on with it.
    Failed(String),
}

impl Ending {
    /// Returns what a receipt says.
    pub(crate) fn into_exit(self) -> Exit {
        self.exit()
    }

    fn exit(&self) -> Exit {
        match self {
            Ending::Stopped(reason) => Exit::Stopped { reason: reason.clone() },
            Ending::OutOfTime => Exit::OutOfTime {},
            Ending::OutOfCpu => Exit::OutOfCpu {},
            Ending::TooMuch(what) => Exit::TooMuchOutput { what: (*what).to_owned() },
            Ending::Unwell(reason) => Exit::Unwell { reason: reason.clone() },
            Ending::Failed(reason) => Exit::WorkerDied { reason: reason.clone() },
        }
    }
}

/// Says how a workload ended whose init told its end.
pub(crate) fn of_workload(ending: Option<&Ending>, end: End, last: &Sample, cpu_us: u64) -> Exit {
    if let Some(ending) = ending {
        return ending.exit();
    }
    match end {
        End::Signalled(libc::SIGKILL) if last.oom_kills > 0 => Exit::OutOfMemory {},
        _ if last.met & Sample::RECORDS != 0 => Ending::TooMuch("records").exit(),
        _ if last.met & Sample::ARTIFACTS != 0 => Ending::TooMuch("artifacts").exit(),
        End::Signalled(libc::SIGXFSZ) => Ending::TooMuch("disk").exit(),
        _ if cpu_us > 0 && last.cpu_us > cpu_us => Exit::OutOfCpu {},
        End::Signalled(signal) => Exit::Signalled { signal: signal_name(signal) },
        End::Exited(code) => Exit::Exited { code },
    }
}

/// Says how an instance ended that lost its connection to sync with an earlier life of the lablet and did not connect
/// again. What succeeds without it succeeds; anything else may well be the lab's doing.
pub(crate) fn without_sync(exit: Exit) -> Exit {
    let how = match &exit {
        Exit::Exited { code: 0 } | Exit::Reported { failure: None, .. } => return exit,
        Exit::Exited { code } => format!("it ended with status {code}"),
        Exit::Reported { failure: Some(failure), .. } => format!("it ended with failure ({failure})"),
        Exit::Signalled { signal } => format!("it was ended by {signal}"),
        Exit::Unwell { reason } => format!("it was unwell ({reason})"),
        Exit::OutOfTime {} => "its time was over".to_owned(),
        Exit::Trapped { .. }
        | Exit::StackOverflow {}
        | Exit::OutOfMemory {}
        | Exit::OutOfCpu {}
        | Exit::TooMuchOutput { .. }
        | Exit::Stopped { .. }
        | Exit::WorkerDied { .. }
        | Exit::NotStarted { .. } => return exit,
    };
    Exit::WorkerDied { reason: format!("{how} after {SYNC_LOST}") }
}

/// Says how an instance ended whose container is gone without a word.
pub(crate) fn of_container(ending: Option<&Ending>, oom_killed: bool, reason: String) -> Exit {
    match ending {
        Some(ending) => ending.exit(),
        None if oom_killed => Exit::OutOfMemory {},
        None => Exit::WorkerDied { reason },
    }
}

/// Says why a program could not be executed, in words that help.
pub(crate) fn not_started(errno: i32, program: &str) -> Exit {
    let why = match errno {
        libc::ENOENT => "there is no such program in the image, or the loader or interpreter that it names is missing",
        libc::EACCES => "it is not executable by the container's user",
        libc::ENOEXEC => "it is no program of this machine's kind",
        libc::ENOTDIR => "a part of its path is no directory",
        _ => "",
    };
    let error = std::io::Error::from_raw_os_error(errno);
    let reason = if why.is_empty() {
        format!("cannot execute {program}: {error}")
    } else {
        format!("cannot execute {program}: {why}")
    };
    Exit::NotStarted { reason }
}

/// Returns the limits that were met, sorted.
pub(crate) fn limits_met(last: &Sample, links: u32, exit: &Exit) -> Vec<String> {
    let mut met = Vec::new();
    if links > 0 {
        met.push("links among artifacts".to_owned());
    }
    if last.oom_kills > 0 && !matches!(exit, Exit::OutOfMemory {}) {
        met.push("memory".to_owned());
    }
    if last.met & Sample::OPEN_FILES != 0 {
        met.push("open files".to_owned());
    }
    if last.pids_refused > 0 {
        met.push("processes".to_owned());
    }
    met
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned())
}
