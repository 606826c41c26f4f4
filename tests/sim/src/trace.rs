//! Traces: a schedule with what it once broke, as JSON text that people can read and change.

use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;
use crate::world::{Report, World};

/// A schedule that once failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// What it showed when it was kept.
    pub about: String,
    /// The schedule.
    pub schedule: Schedule,
}

impl Trace {
    /// Reads a trace.
    pub fn parse(text: &str) -> Result<Trace, String> {
        serde_json::from_str(text).map_err(|error| format!("not a trace: {error}"))
    }

    /// Writes it.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a schedule is numbers and names") + "\n"
    }

    /// Runs it again.
    pub fn replay(&self) -> Report {
        World::new(self.schedule.clone()).run()
    }
}
