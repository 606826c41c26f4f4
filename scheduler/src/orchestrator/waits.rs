//! What an execution waits for: compared after every input, put into words where somebody reads them.

use std::borrow::Cow;
use std::fmt;

use super::state::{Exec, Phase, Stage};

/// What an execution waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waits<'a> {
    /// What placement or bids said.
    For(Cow<'a, str>),
    /// Lablets take their grants: how many did, of how many.
    Grants(usize, usize),
    /// Lablets prepare: how many are ready, of how many.
    Cells(usize, usize),
    /// Lablets replace so many lost instances.
    Replacement(usize),
    /// Receipts of what was stopped.
    Receipts,
    /// The result, and why it could not be written yet; empty before that.
    Result(Cow<'a, str>),
}

impl Waits<'_> {
    pub(super) fn into_owned(self) -> Waits<'static> {
        match self {
            Waits::For(reason) => Waits::For(Cow::Owned(reason.into_owned())),
            Waits::Grants(accepted, cells) => Waits::Grants(accepted, cells),
            Waits::Cells(prepared, cells) => Waits::Cells(prepared, cells),
            Waits::Replacement(count) => Waits::Replacement(count),
            Waits::Receipts => Waits::Receipts,
            Waits::Result(reason) => Waits::Result(Cow::Owned(reason.into_owned())),
        }
    }
}

impl fmt::Display for Waits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waits::For(reason) => f.write_str(reason),
            Waits::Grants(accepted, cells) => {
                write!(f, "waits for lablets to take their grants: {accepted} of {cells} did")
            }
            Waits::Cells(prepared, cells) => {
                write!(f, "waits for lablets to prepare: {prepared} of {cells} are ready")
            }
            Waits::Replacement(count) => write!(f, "waits for lablets to replace {count} lost instances"),
            Waits::Receipts => f.write_str("waits for receipts of stopped instances"),
            Waits::Result(reason) if reason.is_empty() => f.write_str("waits for the result to be written"),
            Waits::Result(reason) => write!(f, "waits for the result to be written: {reason}"),
        }
    }
}

impl Exec {
    /// What it waits for, before it runs.
    pub(super) fn waits_for(&self) -> Option<Waits<'_>> {
        let said = || Some(Waits::For(Cow::Borrowed(&self.reason))).filter(|_| !self.reason.is_empty());
        match &self.stage {
            Stage::Waiting => said(),
            Stage::Offered { .. } => Some(said().unwrap_or(Waits::For("waits for bids of lablets".into()))),
            Stage::Granted if self.open() > 0 => said(),
            Stage::Granted => {
                let (mut cells, mut accepted, mut prepared) = (0, 0, 0);
                for (_, cell) in self.live_cells() {
                    cells += 1;
                    accepted += usize::from(cell.phase >= Phase::Accepted);
                    prepared += usize::from(cell.phase >= Phase::Prepared);
                }
                Some(if accepted < cells { Waits::Grants(accepted, cells) } else { Waits::Cells(prepared, cells) })
            }
            Stage::Running { .. } if !self.replace.is_empty() => Some(Waits::Replacement(self.replace.len())),
            Stage::Running { .. } => None,
            Stage::Stopping { .. } => Some(Waits::Receipts),
            Stage::Assembling { .. } => Some(Waits::Result(Cow::Borrowed(&self.reason))),
        }
    }

    /// Whether it waits for something that can be said.
    pub(super) fn waits(&self) -> bool {
        match &self.stage {
            Stage::Waiting => !self.reason.is_empty(),
            Stage::Granted => !self.reason.is_empty() || self.open() == 0,
            Stage::Running { .. } => !self.replace.is_empty(),
            Stage::Offered { .. } | Stage::Stopping { .. } | Stage::Assembling { .. } => true,
        }
    }
}
