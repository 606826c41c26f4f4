//! Signals are counted and get numbers; barriers open.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_wire::session::{SignalNumbers, Signallers};

use super::{MAX_ASKS, MAX_COUNT, RunSync, Signals, UpError, check_name};
use crate::MAX_NAME_SIZE;
use crate::tally::Tally;

impl RunSync {
    pub(super) fn take_signals(
        &mut self,
        lablet: &PeerId,
        signals: BTreeMap<String, Vec<Signallers>>,
    ) -> Result<(), UpError> {
        for (name, signallers) in signals {
            check_name(&name)?;
            self.check_names(&name)?;
            let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
            let given = &mut cell.signals.entry(name.clone()).or_default().given;
            let before = given.signals();
            let mut all = Ok(());
            for said in signallers {
                all = check_signallers(given, &said, cell.instances);
                if all.is_err() {
                    break;
                }
                given.raise(&said);
            }
            let more = given.signals() - before;
            if more == 0 {
                all?;
                continue;
            }
            cell.absent.remove(&name);
            let state = self.states.entry(name.clone()).or_default();
            state.count = state.count.saturating_add(more);
            state.peak = state.peak.max(state.count);
            state.failed = None;
            (self.quiet_looks, self.rest_looks) = (0, 0);
            if !self.recovering {
                self.number(lablet, &name);
            }
            self.open(&name);
            all?;
        }
        Ok(())
    }

    /// Gives numbers to the signals of a cell that have none.
    pub(super) fn number(&mut self, lablet: &PeerId, name: &str) {
        let (Some(cell), Some(state)) = (self.cells.get_mut(lablet), self.states.get_mut(name)) else { return };
        let Some(Signals { given, numbered }) = cell.signals.get_mut(name) else { return };
        let count = given.signals().saturating_sub(*numbered);
        if count == 0 {
            return;
        }
        let mut left = count;
        while left > 0 {
            let (number, count) = match state.ranges.pop_first() {
                Some((first, free)) if free > left => {
                    state.ranges.insert(first + left, free - left);
                    (first, left)
                }
                Some(range) => range,
                None => (state.last_number + 1, left),
            };
            cell.news.numbers.push(SignalNumbers { state: name.to_owned(), from: *numbered + 1, count, number });
            *numbered += count;
            left -= count;
            state.last_number = state.last_number.max((number + count).saturating_sub(1));
        }
        self.mark_due(lablet);
    }

    pub(super) fn open(&mut self, name: &str) {
        let released = self.released(name);
        let Some(state) = self.states.get_mut(name) else { return };
        if released > 0 {
            state.peak = state.peak.max(state.count.saturating_add(released));
        }
        let closed = state.waiting.split_off(&state.peak.saturating_add(1));
        let open = std::mem::replace(&mut state.waiting, closed);
        let peak = state.peak;
        for (target, lablets) in open {
            for lablet in lablets {
                if let Some(cell) = self.cells.get_mut(&lablet) {
                    cell.news.states.insert(name.to_owned(), peak);
                    if let Some(targets) = cell.asks.get_mut(name) {
                        cell.ask_count -= usize::from(targets.remove(&target));
                        if targets.is_empty() {
                            cell.asks.remove(name);
                        }
                    }
                }
                self.mark_due(&lablet);
            }
        }
    }

    pub(super) fn take_ask(&mut self, lablet: &PeerId, name: String, target: u64) -> Result<(), UpError> {
        check_name(&name)?;
        self.check_names(&name)?;
        let Some(cell) = self.cells.get_mut(lablet) else { return Ok(()) };
        if cell.ask_count >= MAX_ASKS {
            return Err(UpError::TooMuch { what: "the number of barriers" });
        }
        cell.ask_count += usize::from(cell.asks.entry(name.clone()).or_default().insert(target));
        let state = self.states.entry(name.clone()).or_default();
        state.waiting.entry(target).or_default().insert(lablet.clone());
        self.open(&name);
        self.fail_again(&name);
        Ok(())
    }
}

/// Whether a cell of so many instances may say this of who signalled, after what it said before.
fn check_signallers(given: &Tally, said: &Signallers, instances: u64) -> Result<(), UpError> {
    let more = given.more(said);
    if said.group.len() > MAX_NAME_SIZE || given.instances() + more.instances > instances {
        return Err(UpError::TooMuch { what: "a number of instances that signalled" });
    }
    if given.signals().saturating_add(more.signals) > MAX_COUNT {
        return Err(UpError::TooMuch { what: "a number of signals" });
    }
    Ok(())
}
