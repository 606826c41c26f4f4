//! What was done to a cell on purpose, on its way to the orchestrator.

use std::time::{Duration, Instant};

use iptl_dag::model::FaultDone;
use iptl_wire::session::MAX_FAULTS_TOLD;

/// Time in which what is done to instances of the same fault is summed up, before it is told.
const FAULT_PAUSE: Duration = Duration::from_millis(200);

/// What was done to a cell on purpose: summed up, told once, and again to whom it may not have reached.
#[derive(Default)]
pub(super) struct Faults {
    /// Done, as it is told from now on; the first [`MAX_FAULTS_TOLD`].
    closed: Vec<FaultDone>,
    /// Done a moment ago: more of the same may follow.
    open: Vec<FaultDone>,
    open_since: Option<Instant>,
    /// How many of `closed` were told in this session.
    told: usize,
}

impl Faults {
    /// Takes in what a runner says.
    pub(super) fn add(&mut self, done: FaultDone) {
        // The runners of a cell, and instances that start again, tell of the same fault one by one.
        let same = |open: &&mut FaultDone| (open.due_us, open.kind) == (done.due_us, done.kind);
        if let Some(open) = self.open.iter_mut().find(same) {
            open.done_us = open.done_us.max(done.done_us);
            open.instances = open.instances.saturating_add(done.instances);
        } else if self.closed.len() + self.open.len() < MAX_FAULTS_TOLD {
            self.open.push(done);
            self.open_since.get_or_insert_with(Instant::now);
        }
    }

    /// Waits until what was summed up is to be told; without end where there is nothing. Safe to drop.
    pub(super) async fn due(&self) {
        match self.open_since {
            Some(since) => tokio::time::sleep_until((since + FAULT_PAUSE).into()).await,
            None => std::future::pending().await,
        }
    }

    /// Ends the summing up of what is there: it is told from now on.
    pub(super) fn close(&mut self) {
        self.closed.append(&mut self.open);
        self.open_since = None;
    }

    /// Begins again: there is a new session.
    pub(super) fn say_again(&mut self) {
        self.told = 0;
    }

    /// Returns what this session was not told yet; none where that is nothing.
    pub(super) fn news(&mut self) -> Option<Vec<FaultDone>> {
        let news = self.closed.get(self.told..).filter(|news| !news.is_empty())?.to_vec();
        self.told = self.closed.len();
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::model::FaultKind;

    use super::*;

    fn done(due_us: u64, kind: FaultKind, done_us: u64) -> FaultDone {
        FaultDone { due_us, kind, done_us, instances: 1 }
    }

    #[test]
    fn what_instances_meet_of_one_fault_is_told_as_one_with_the_latest_time() {
        let mut faults = Faults::default();
        for late in [30, 900, 40] {
            faults.add(done(5_000, FaultKind::Restart, 5_000 + late));
        }
        faults.add(done(5_000, FaultKind::Pause, 5_010));
        assert_eq!(faults.news(), None, "more of the same may follow");
        faults.close();
        let restart = FaultDone { instances: 3, ..done(5_000, FaultKind::Restart, 5_900) };
        let told = vec![restart, done(5_000, FaultKind::Pause, 5_010)];
        assert_eq!(faults.news(), Some(told.clone()));
        assert_eq!(faults.news(), None, "once is enough");
        faults.say_again();
        assert_eq!(faults.news(), Some(told), "a new session has not heard it");
    }

    #[test]
    fn no_more_faults_are_told_than_a_log_takes() {
        let mut faults = Faults::default();
        for due_us in 0..10_000 {
            faults.add(done(due_us, FaultKind::Crash, due_us));
        }
        faults.close();
        assert_eq!(faults.news().unwrap().len(), MAX_FAULTS_TOLD);
    }
}
