//! How the program ends: the exit codes, all of them, and the error that carries one.
//!
//! The split that matters most is *tool broke* (1), *lab could not* (5), *software under test failed* (10) and *cannot
//! tell* (12). The numbers are documented and stable.

use std::fmt;

use iptl_dag::model::ResultVerdict;
use iptl_wire::control::{Failure, FailureKind};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Ok,
    /// The tool broke.
    Broken,
    /// The request makes no sense.
    Usage,
    /// Content or peer not found in time.
    NotFound,
    /// Not authorised, or a ticket that is not valid.
    Denied,
    /// The lab cannot: no room, no lablets, offline.
    LabUnable,
    /// The run finished and the software under test failed.
    Failed,
    /// The lab lost too much to tell, or the run was cancelled.
    Inconclusive,
    /// Interrupted; an attached run goes on.
    Interrupted,
    /// A command that was executed elsewhere ended with this status.
    Remote(u8),
}

impl Exit {
    /// Returns the number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Broken => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Denied => 4,
            Exit::LabUnable => 5,
            Exit::Failed => 10,
            Exit::Inconclusive => 12,
            Exit::Interrupted => 130,
            Exit::Remote(status) => status,
        }
    }

    /// Returns how a run with this verdict ends the program.
    pub const fn of_verdict(verdict: ResultVerdict) -> Exit {
        match verdict {
            ResultVerdict::Pass => Exit::Ok,
            ResultVerdict::Fail => Exit::Failed,
            ResultVerdict::Inconclusive => Exit::Inconclusive,
        }
    }

    /// Returns how a failed request ends the program.
    pub const fn of_failure(kind: FailureKind) -> Exit {
        match kind {
            FailureKind::Broken => Exit::Broken,
            FailureKind::Usage => Exit::Usage,
            FailureKind::NotFound => Exit::NotFound,
            FailureKind::Denied => Exit::Denied,
            FailureKind::LabUnable => Exit::LabUnable,
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Error {
    /// How the program ends.
    pub exit: Exit,
    /// Stable code: `fetch.no-provider`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
    /// Mistakes in a plan file, shown with their spans.
    pub diagnostics: Vec<PlanDiagnostic>,
}

/// Result of a command.
pub type Result<T = Exit> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error with its exit, code, message and help.
    pub fn new(exit: Exit, code: &str, message: impl fmt::Display, help: impl fmt::Display) -> Error {
        Error {
            exit,
            code: code.to_owned(),
            message: message.to_string(),
            help: help.to_string(),
            diagnostics: Vec::new(),
        }
    }

    /// The request makes no sense.
    pub fn usage(code: &str, message: impl fmt::Display, help: impl fmt::Display) -> Error {
        Error::new(Exit::Usage, code, message, help)
    }

    /// The tool broke.
    pub fn broken(code: &str, message: impl fmt::Display, help: impl fmt::Display) -> Error {
        Error::new(Exit::Broken, code, message, help)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error {
            exit: Exit::of_failure(failure.kind),
            code: failure.code,
            message: failure.message,
            help: failure.help,
            diagnostics: Vec::new(),
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error::broken("internal", format!("{error:#}"), "")
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Error::broken(
                "disk.full",
                error,
                "free some space on the disk of the home, then repeat the command",
            );
        }
        Error::broken("io", error, "")
    }
}

impl std::error::Error for Error {}

impl miette::Diagnostic for Error {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.help.is_empty()).then(|| Box::new(&self.help) as Box<dyn fmt::Display>)
    }
}

/// One mistake in a plan file.
#[derive(Debug)]
pub struct PlanDiagnostic {
    /// Stable code: `E0203`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Where, in bytes.
    pub span: std::ops::Range<usize>,
    /// What stands there.
    pub label: String,
    /// Other places that have to do with it.
    pub related: Vec<(std::ops::Range<usize>, String)>,
    /// What to do about it.
    pub help: Option<String>,
    /// The file.
    pub source: miette::NamedSource<String>,
}

impl fmt::Display for PlanDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PlanDiagnostic {}

impl miette::Diagnostic for PlanDiagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(format!("iptl::plan::{}", self.code)))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let more = format!("iptl explain {}", self.code);
        Some(match &self.help {
            Some(help) => Box::new(format!("{help}   More: {more}")),
            None => Box::new(format!("more: {more}")),
        })
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        // A mistake in the choices of a run stands in no file.
        if self.span.is_empty() { None } else { Some(&self.source) }
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        if self.span.is_empty() {
            return None;
        }
        let first = std::iter::once((&self.span, &self.label));
        let rest = self.related.iter().map(|(span, label)| (span, label));
        Some(Box::new(first.chain(rest).map(|(span, label)| {
            let label = (!label.is_empty()).then(|| label.clone());
            miette::LabeledSpan::new(label, span.start, span.len())
        })))
    }
}
