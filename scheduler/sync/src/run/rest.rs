//! Runs in which nobody is left to signal, and what becomes of their barriers.
//!
//! An instance may signal a state as often as it likes, so one that is at work can reach any barrier. A run is *at rest*
//! where none is: each instance has ended, is lost for good, or waits at a barrier. If a barrier waits then for somebody
//! who has ended or is lost without having signalled its state, the plan's policy applies.
//!
//! Of several barriers at which a run rests, those go first that even one signal of every living instance that has given
//! none would not open: their failing may let somebody go on who opens the others. Where there is no such barrier, all
//! whom somebody is missing at go together, after a while: a program may wait at a barrier and work beside that.

use std::collections::BTreeSet;

use iptl_dag::PeerId;
use iptl_dag::model::{BarrierLoss, InstanceId};
use iptl_wire::session::Unreachable;

use super::{Cell, RunSync};

/// Instances that are named where a barrier fails.
const MAX_TOLD: usize = 5;

/// Looks for which a run stays at rest before barriers fail that somebody who waits beside his work might open.
const REST_LOOKS: u32 = 15;

/// Looks after which cells are asked that seemed to lack nothing: an instance may have signalled for two.
const LOOKS_BEFORE_ALL: u32 = 2;

/// A barrier that failed for all who waited at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedBarrier {
    /// State whose signals were counted.
    pub state: String,
    /// Signals that were waited for; the fewest, where some waited for more.
    pub target: u64,
    /// Signals that there can be.
    pub reachable: u64,
    /// Who is missing, for people.
    pub missing: String,
}

/// What cells say of a state while the run is at rest.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Instances that have ended or are lost without having signalled it.
    gone: u64,
    /// Those that live and have not.
    living: u64,
}

impl RunSync {
    /// Returns the next barrier that failed.
    pub fn poll_failed(&mut self) -> Option<FailedBarrier> {
        self.failures.pop_front()
    }

    /// Everything of so many more instances of a cell has arrived: they have ended, whether or not their cell still says
    /// so. A lablet that was started again may know nothing of them.
    pub fn receive(&mut self, lablet: &PeerId, instances: u64) {
        if let Some(cell) = self.cells.get_mut(lablet) {
            cell.received = cell.received.saturating_add(instances);
            self.look_for_rest();
        }
    }

    /// Has cells say what decides whether the run is at rest, where that may be, and acts on it where it is.
    pub(super) fn look_for_rest(&mut self) {
        if self.barriers == BarrierLoss::Wait || self.recovering {
            return;
        }
        let at_rest = self.is_at_rest();
        for name in self.waited_for() {
            if at_rest || self.quiet_looks >= LOOKS_BEFORE_ALL || self.knows_of_gone(&name) {
                self.ask(&name, |cell| !cell.knows(&name) && (cell.rest.is_some() || !cell.asked.contains(&name)));
            }
        }
        self.settle_barriers();
    }

    /// Applies the plan's policy to barriers that nobody can reach any more.
    pub(super) fn settle_barriers(&mut self) {
        if self.barriers == BarrierLoss::Wait || self.recovering || !self.is_at_rest() {
            return;
        }
        let mut rows = Vec::new();
        for name in self.waited_for() {
            match self.tally(&name) {
                Some(tally) => rows.push((name, tally)),
                None => self.ask(&name, |cell| !cell.knows(&name)),
            }
        }
        // Of a lost cell only sums are known: one of its instances may have signalled for another.
        let is_lost = self.lost.values().any(|lost| lost.count() > 0);
        rows.retain(|(_, tally)| tally.gone > 0 || is_lost);
        let mut has_acted = false;
        for (name, tally) in &rows {
            let Some(state) = self.states.get(name) else { continue };
            let reachable = state.count.saturating_add(tally.living).max(state.peak);
            has_acted |= self.give_up_beyond(name, reachable, tally.gone);
        }
        if has_acted || self.rest_looks < REST_LOOKS {
            return;
        }
        for (name, tally) in &rows {
            let Some(state) = self.states.get(name) else { continue };
            let reachable = state.peak;
            self.give_up_beyond(name, reachable, tally.gone);
        }
    }

    /// Who comes to a barrier that failed hears the same as those before, until somebody signals.
    pub(super) fn fail_again(&mut self, name: &str) {
        let Some(why) = self.states.get(name).and_then(|state| state.failed.clone()) else { return };
        self.fail(name, why);
    }

    /// Opens or fails the barriers of a state with a target that is out of reach; false where there are none.
    fn give_up_beyond(&mut self, name: &str, reachable: u64, gone: u64) -> bool {
        let Some(state) = self.states.get_mut(name) else { return false };
        if state.waiting.range(reachable.saturating_add(1)..).next().is_none() {
            return false;
        }
        if self.barriers == BarrierLoss::Release {
            state.peak = state.peak.max(state.count.saturating_add(gone));
            self.open(name);
        }
        let Some(state) = self.states.get(name) else { return true };
        let reachable = reachable.max(state.peak);
        if let Some((target, _)) = state.waiting.range(reachable.saturating_add(1)..).next() {
            let (target, missing) = (*target, self.who_is_gone(name));
            let why = Unreachable { reachable, missing: missing.clone() };
            self.failures.push_back(FailedBarrier { state: name.to_owned(), target, reachable, missing });
            self.fail(name, why);
        }
        true
    }

    fn fail(&mut self, name: &str, why: Unreachable) {
        let Some(state) = self.states.get_mut(name) else { return };
        let beyond = why.reachable.saturating_add(1);
        let unreachable = state.waiting.split_off(&beyond);
        state.failed = Some(why.clone());
        let lablets: BTreeSet<PeerId> = unreachable.into_values().flatten().collect();
        for lablet in lablets {
            if let Some(cell) = self.cells.get_mut(&lablet) {
                cell.news.failed.insert(name.to_owned(), why.clone());
                if let Some(targets) = cell.asks.get_mut(name) {
                    let gone = targets.split_off(&beyond);
                    cell.ask_count -= gone.len();
                    if targets.is_empty() {
                        cell.asks.remove(name);
                    }
                }
            }
            self.mark_due(&lablet);
        }
    }

    /// Whether no instance of the run is at work.
    pub(super) fn is_at_rest(&mut self) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        if let Some(cell) = self.at_work.as_ref().and_then(|lablet| self.cells.get(lablet))
            && !cell.is_at_rest()
        {
            return false;
        }
        self.at_work = self.cells.iter().find(|(_, cell)| !cell.is_at_rest()).map(|(lablet, _)| lablet.clone());
        self.at_work.is_none()
    }

    /// Whether it is known of somebody that he will never signal a state.
    fn knows_of_gone(&self, name: &str) -> bool {
        let ended = |cell: &Cell| match cell.absent.get(name) {
            Some((absent, _)) => absent.ended > 0 || (cell.is_over() && absent.count > 0),
            None => cell.is_over() && cell.given(name) < cell.instances,
        };
        self.lost.values().any(|lost| lost.count() > 0) || self.cells.values().any(ended)
    }

    /// Counts who has not signalled a state; nothing where a cell has not said so since it came to rest.
    fn tally(&self, name: &str) -> Option<Tally> {
        let mut tally = Tally { gone: self.lost.values().map(|lost| lost.absent(name).count).sum(), living: 0 };
        for cell in self.cells.values() {
            if !cell.knows(name) {
                return None;
            }
            match cell.absent.get(name) {
                Some((absent, _)) if cell.is_over() => tally.gone += absent.count,
                Some((absent, _)) => {
                    tally.gone += absent.ended;
                    tally.living += absent.count.saturating_sub(absent.ended);
                }
                None => tally.gone += cell.instances.saturating_sub(cell.given(name)),
            }
        }
        Some(tally)
    }

    /// Says who will never signal a state.
    fn who_is_gone(&self, name: &str) -> String {
        let mut parts = Vec::new();
        let (mut count, mut named) = (0, Vec::new());
        for cell in self.cells.values() {
            match cell.absent.get(name) {
                Some((absent, _)) => {
                    let ended = if cell.is_over() { absent.count } else { absent.ended };
                    count += ended;
                    named.extend(absent.instances.iter().take(usize::try_from(ended).unwrap_or(usize::MAX)).cloned());
                }
                None => count += cell.instances.saturating_sub(cell.given(name)),
            }
        }
        if count > 0 {
            parts.push(format!("{} ended without it", listed(count, &named)));
        }
        let (mut count, mut named, mut lablets) = (0, Vec::new(), Vec::new());
        for (lablet, lost) in &self.lost {
            let absent = lost.absent(name);
            if absent.count > 0 {
                count += absent.count;
                lablets.push(self.name_of(lablet));
                named.extend(absent.instances);
            }
        }
        if count > 0 {
            let lablets =
                if lablets.len() > MAX_TOLD { format!("{} lablets", lablets.len()) } else { lablets.join(", ") };
            parts.push(format!("{} lost with {lablets}", listed(count, &named)));
        }
        if parts.is_empty() {
            return "all who are left wait, and some are lost".to_owned();
        }
        parts.join("; ")
    }
}

impl Cell {
    /// Whether all its instances have ended, and what they did has arrived.
    fn is_over(&self) -> bool {
        self.received >= self.instances
    }

    fn is_at_rest(&self) -> bool {
        let goes_on = !self.news.states.is_empty() || !self.news.failed.is_empty() || !self.behind.is_empty();
        self.is_over() || (self.up && self.rest.is_some() && !goes_on)
    }

    /// Whether it has said who has not signalled a state, and nothing has changed since.
    fn knows(&self, name: &str) -> bool {
        let told = |(_, rest): &(_, Option<u64>)| rest.is_some() && *rest == self.rest;
        self.is_over() || self.absent.get(name).is_some_and(told)
    }
}

fn listed(count: u64, named: &[InstanceId]) -> String {
    let shown: Vec<String> = named.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    match (shown.is_empty(), count.saturating_sub(shown.len() as u64)) {
        (true, _) => format!("{count} instances"),
        (false, 0) => shown.join(", "),
        (false, n) => format!("{} and {n} more", shown.join(", ")),
    }
}
