//! Traces: a schedule with what it once broke, as JSON text that people can read and change.

use serde::{Deserialize, Serialize};

use crate::model::Violation;
use crate::{Schedule, World, shrink, takeover};

/// A schedule that once failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// What it showed when it was kept.
    pub about: String,
    /// The schedule.
    #[serde(flatten)]
    pub lab: Lab,
}

/// The schedule of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lab {
    /// One with one orchestrator.
    Schedule(Schedule),
    /// One with several.
    Takeover(takeover::Schedule),
}

/// A schedule that runs, event by event.
#[derive(Debug)]
pub enum Walk {
    /// With one orchestrator.
    Schedule(Box<World>),
    /// With several.
    Takeover(Box<takeover::World>),
}

/// What a schedule came to, of whichever lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    /// Events.
    pub events: u64,
    /// Virtual time at its end in milliseconds.
    pub virtual_ms: u64,
    /// Hash over all events.
    pub trace: u64,
    /// What was found wrong.
    pub violations: Vec<Violation>,
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
    pub fn replay(&self) -> Came {
        let mut walk = self.lab.clone().walk();
        while walk.step() {}
        walk.end()
    }
}

impl Lab {
    /// Draws the schedule of a seed; none where nobody knows the profile.
    pub fn draw(seed: u64, profile: &str) -> Option<Lab> {
        match takeover::Schedule::draw(seed, profile) {
            Some(schedule) => Some(Lab::Takeover(schedule)),
            None => Schedule::draw(seed, profile).map(Lab::Schedule),
        }
    }

    /// Begins to run it.
    pub fn walk(self) -> Walk {
        match self {
            Lab::Schedule(schedule) => Walk::Schedule(Box::new(World::new(schedule))),
            Lab::Takeover(schedule) => Walk::Takeover(Box::new(takeover::World::new(schedule))),
        }
    }

    /// Returns the smallest schedule found that breaks a rule, as this one does.
    pub fn shrunk(self, rule: &str) -> Lab {
        let breaks = |violations: &[Violation]| violations.iter().any(|violation| violation.rule == rule);
        match self {
            Lab::Schedule(schedule) => {
                Lab::Schedule(shrink(schedule, |s| breaks(&World::new(s.clone()).run().violations)))
            }
            Lab::Takeover(schedule) => {
                Lab::Takeover(shrink(schedule, |s| breaks(&takeover::World::new(s.clone()).run().violations)))
            }
        }
    }
}

impl Walk {
    /// Keeps every event as text from now on.
    pub fn tell(&mut self) {
        match self {
            Walk::Schedule(world) => world.tell(),
            Walk::Takeover(world) => world.tell(),
        }
    }

    /// Takes in the next event; false where nothing more is to come.
    pub fn step(&mut self) -> bool {
        match self {
            Walk::Schedule(world) => world.step(),
            Walk::Takeover(world) => world.step(),
        }
    }

    /// Takes what was told since the last call.
    pub fn told(&mut self) -> Vec<String> {
        match self {
            Walk::Schedule(world) => world.told(),
            Walk::Takeover(world) => world.told(),
        }
    }

    /// Says what the schedule came to.
    pub fn end(self) -> Came {
        match self {
            Walk::Schedule(world) => {
                let report = world.report();
                let (events, virtual_ms) = (report.events, report.virtual_ms);
                Came { events, virtual_ms, trace: report.trace, violations: report.violations }
            }
            Walk::Takeover(world) => {
                let report = world.report();
                let (events, virtual_ms) = (report.events, report.virtual_ms);
                Came { events, virtual_ms, trace: report.trace, violations: report.violations }
            }
        }
    }
}
