//! What users need of a lab, and when it was seen to work last: an instance is placed, runs, and its result is sealed.
//!
//! Every execution shows it. Where nobody executes anything, the lab's canary does ([`super::canary`]). Only the canary
//! shows that something does not work: why somebody's own run fails is theirs to know.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iptl_wire::control::{self, Event};

/// One thing that users need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Lablets take what they are offered and make it ready.
    Place,
    /// Instances end, and their receipts come back.
    Run,
    /// A result is made of them.
    Seal,
}

/// What was seen of one need last.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    /// Why it does not work; none where it does.
    trouble: Option<String>,
}

/// What was seen of each last. Shared by whoever executes and whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Health {
    seen: Mutex<[Option<Seen>; 3]>,
}

impl Health {
    /// Takes in what happened to an execution.
    pub(crate) fn told(&self, event: &Event) {
        match event {
            Event::Started { .. } => self.works(Need::Place),
            Event::Finished { counts, .. } => {
                if counts.ok + counts.failed > 0 {
                    self.works(Need::Run);
                }
                self.works(Need::Seal);
            }
            Event::Submitted { .. }
            | Event::Placed { .. }
            | Event::Waiting { .. }
            | Event::Preparing { .. }
            | Event::Fetching { .. }
            | Event::Progress { .. }
            | Event::Barrier { .. }
            | Event::Fault { .. }
            | Event::Lablet { .. }
            | Event::Failed { .. } => {}
        }
    }

    /// Takes in that something works.
    pub(crate) fn works(&self, need: Need) {
        self.put(need, None);
    }

    /// Takes in that something does not work.
    pub(crate) fn fails(&self, need: Need, trouble: String) {
        self.put(need, Some(trouble));
    }

    /// Returns how long ago the oldest of the three was seen; none where one was not seen yet.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.lock()
            .iter()
            .map(|seen| seen.as_ref().map(|seen| seen.at.elapsed()))
            .try_fold(Duration::ZERO, |a, b| Some(a.max(b?)))
    }

    /// Returns the first trouble, where something does not work.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.lock().iter().flatten().find_map(|seen| seen.trouble.clone())
    }

    /// Returns what to tell of it.
    pub(crate) fn tell(&self) -> control::Health {
        let seen = self.lock();
        let sign = |need: Need| {
            seen[need as usize].as_ref().map(|seen| control::Sign {
                ok: seen.trouble.is_none(),
                age_ms: u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX),
                trouble: seen.trouble.clone().unwrap_or_default(),
            })
        };
        control::Health { place: sign(Need::Place), run: sign(Need::Run), seal: sign(Need::Seal) }
    }

    fn put(&self, need: Need, trouble: Option<String>) {
        self.lock()[need as usize] = Some(Seen { at: Instant::now(), trouble });
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Seen>; 3]> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::Cid;
    use iptl_dag::model::{Counts, ResultVerdict};

    use super::*;

    fn finished(counts: Counts) -> Event {
        Event::Finished {
            run: Cid::default(),
            execution: Cid::default(),
            result: Cid::default(),
            verdict: ResultVerdict::Pass,
            counts,
            thresholds: Vec::new(),
            inconclusive: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
            after_ms: 0,
            failure: None,
        }
    }

    #[test]
    fn nothing_is_said_of_what_was_not_seen() {
        let health = Health::default();
        assert_eq!(health.tell(), control::Health::default());
        assert_eq!(health.age(), None);
        health.told(&Event::Started { after_ms: 1 });
        let told = health.tell();
        assert!(told.place.is_some_and(|sign| sign.ok) && told.run.is_none() && told.seal.is_none());
        assert_eq!(health.age(), None);
    }

    #[test]
    fn an_execution_whose_instances_are_lost_shows_that_results_are_sealed_and_not_that_instances_run() {
        let health = Health::default();
        health.told(&finished(Counts { lost: 3, ..Counts::default() }));
        let told = health.tell();
        assert!(told.run.is_none() && told.seal.is_some_and(|sign| sign.ok), "{:?}", health.tell());
    }

    #[test]
    fn trouble_lasts_until_it_works_again() {
        let health = Health::default();
        health.told(&Event::Started { after_ms: 1 });
        health.told(&finished(Counts { ok: 1, ..Counts::default() }));
        assert_eq!((health.trouble(), health.age().is_some()), (None, true));
        health.fails(Need::Place, "no lablet is here".into());
        assert_eq!(health.trouble().as_deref(), Some("no lablet is here"));
        health.told(&Event::Started { after_ms: 1 });
        assert_eq!(health.trouble(), None);
    }
}
