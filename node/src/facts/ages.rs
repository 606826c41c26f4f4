//! When executions were submitted and started by BOOTTIME, which nobody sets, beside their logs.
//!
//! What the log says of times is wall time, for people: a clock that is set between two lives of an orchestrator would end
//! runs whose time is not over, or give them another year. This file says what is true as long as the machine was not
//! started anew. It is written without a sync, and where it is not whole it says nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iptl_dag::model::{ExecutionId, Fact, FactKind};
use iptl_wire::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock;

/// How long ago an execution was submitted and started, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    /// Since its submission was written down here.
    pub submitted: Option<Duration>,
    /// Since its start was written down here.
    pub started: Option<Duration>,
}

/// When these facts were written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ages {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    submitted: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    /// Start of the machine in which these times were read.
    boot: String,
    ages: Ages,
}

impl Ages {
    /// Reads them back; nothing where they are of another start of the machine.
    pub(super) fn read(dir: &Path, execution: &ExecutionId, boot: &str) -> Ages {
        let clock = fs::read(path(dir, execution)).ok().and_then(|bytes| iptl_dag::decode::<Clock>(&bytes).ok());
        clock.filter(|clock| clock.boot == boot).map(|clock| clock.ages).unwrap_or_default()
    }

    /// Notes when a fact was written down, where it begins something.
    pub(super) fn note(&mut self, dir: &Path, boot: &str, fact: &Fact) {
        match fact.kind {
            FactKind::Submitted { .. } => self.submitted = Some(clock::now()),
            FactKind::Started {} => self.started = Some(clock::now()),
            _ => return,
        }
        let bytes = iptl_dag::encode(&Clock { boot: boot.to_owned(), ages: *self });
        if let Err(error) = fs::write(path(dir, &fact.execution), bytes) {
            tracing::warn!(%error, "a restart will go by the wall clock: when it began cannot be written down");
        }
    }

    pub(super) fn at(&self, now: Timestamp) -> Age {
        Age { submitted: self.submitted.map(|at| now.since(at)), started: self.started.map(|at| now.since(at)) }
    }
}

/// Forgets them.
pub(super) fn remove(dir: &Path, execution: &ExecutionId) {
    if let Err(error) = fs::remove_file(path(dir, execution))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "what says when an execution began is left behind");
    }
}

fn path(dir: &Path, execution: &ExecutionId) -> PathBuf {
    dir.join(format!("{execution}.clock"))
}
