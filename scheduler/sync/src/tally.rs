//! How often each instance of a cell signalled a state.

use std::collections::BTreeMap;

use iptl_dag::model::InstanceId;
use iptl_wire::session::Signallers;

/// Totals by instance, as ranges of those with the same total: a crowd that has signalled once is one range.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Ranges by their first index. They do not touch where their totals are the same.
    groups: BTreeMap<String, BTreeMap<u64, Range>>,
    instances: u64,
    signals: u64,
}

/// Instances with the same total.
#[derive(Clone, Copy, Debug)]
struct Range {
    /// Index after the last.
    end: u64,
    /// Signals that each of them gave.
    times: u64,
}

/// What a [`Tally`] would have more of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct More {
    /// Instances that had not signalled.
    pub(crate) instances: u64,
    /// Signals.
    pub(crate) signals: u64,
}

impl Tally {
    /// Returns the signals of all instances.
    pub(crate) fn signals(&self) -> u64 {
        self.signals
    }

    /// Returns how many instances signalled.
    pub(crate) fn instances(&self) -> u64 {
        self.instances
    }

    /// Returns how often an instance signalled.
    pub(crate) fn of(&self, instance: &InstanceId) -> u64 {
        let index = u64::from(instance.index);
        let before = self.groups.get(&instance.group).and_then(|ranges| ranges.range(..=index).next_back());
        before.filter(|(_, range)| range.end > index).map_or(0, |(_, range)| range.times)
    }

    /// Returns what [`raise`](Tally::raise) would add, saturated where nobody counts so far.
    pub(crate) fn more(&self, said: &Signallers) -> More {
        let (start, end) = bounds(said);
        let mut more = More { instances: end - start, signals: (end - start).saturating_mul(said.times) };
        for (first, range) in self.touching(&said.group, start, end) {
            let shared = range.end.min(end).saturating_sub(first.max(start));
            more.instances -= shared;
            more.signals = more.signals.saturating_sub(shared.saturating_mul(range.times.min(said.times)));
        }
        more
    }

    /// Raises the totals of instances to what was said of them; none gets smaller. Whoever calls has looked at
    /// [`more`](Tally::more), so that no sum is beyond what a number holds.
    pub(crate) fn raise(&mut self, said: &Signallers) {
        let more = self.more(said);
        if more.signals == 0 {
            return;
        }
        self.instances += more.instances;
        self.signals += more.signals;
        let (start, end) = bounds(said);
        let mut pieces = Vec::new();
        let mut at = start;
        for (first, range) in self.touching(&said.group, start, end) {
            pieces.push((first, range.end.min(start), range.times));
            pieces.push((at, first, said.times));
            pieces.push((first.max(start), range.end.min(end), range.times.max(said.times)));
            pieces.push((first.max(end), range.end, range.times));
            at = range.end.clamp(at, end);
        }
        pieces.push((at, end, said.times));
        let ranges = self.groups.entry(said.group.clone()).or_default();
        let mut last: Option<(u64, Range)> = None;
        for (first, end, times) in pieces.into_iter().filter(|(first, end, _)| first < end) {
            ranges.remove(&first);
            match &mut last {
                Some((_, range)) if range.end == first && range.times == times => range.end = end,
                _ => {
                    ranges.extend(last.take());
                    last = Some((first, Range { end, times }));
                }
            }
        }
        ranges.extend(last);
    }

    /// Returns the ranges that overlap or touch another, in their order.
    fn touching(&self, group: &str, start: u64, end: u64) -> Vec<(u64, Range)> {
        let Some(ranges) = self.groups.get(group) else { return Vec::new() };
        let before = ranges.range(..=end).rev().take_while(|(_, range)| range.end >= start);
        let mut touching: Vec<(u64, Range)> = before.map(|(first, range)| (*first, *range)).collect();
        touching.reverse();
        touching
    }
}

/// Returns the first index of a range, and that after its last.
fn bounds(said: &Signallers) -> (u64, u64) {
    (u64::from(said.start), u64::from(said.start) + u64::from(said.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(start: u32, count: u32, times: u64) -> Signallers {
        Signallers { group: "g".to_owned(), start, count, times }
    }

    #[test]
    fn tally_of_ranges_is_that_of_single_instances() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..500 {
            let (mut tally, mut model) = (Tally::default(), [0_u64; 40]);
            for _ in 0..30 {
                let start = next(36) as u32;
                let said = said(start, next(5) as u32, next(4));
                let more = tally.more(&said);
                let before = (tally.instances(), tally.signals());
                tally.raise(&said);
                for total in &mut model[start as usize..(start + said.count) as usize] {
                    *total = (*total).max(said.times);
                }
                let index = |i: usize| InstanceId { group: "g".to_owned(), index: i as u32 };
                let totals: Vec<u64> = (0..model.len()).map(|i| tally.of(&index(i))).collect();
                assert_eq!(totals, model);
                assert_eq!(tally.signals(), model.iter().sum::<u64>());
                assert_eq!(tally.signals(), before.1 + more.signals);
                assert_eq!(tally.instances(), model.iter().filter(|total| **total > 0).count() as u64);
                assert_eq!(tally.instances(), before.0 + if said.times == 0 { 0 } else { more.instances });
            }
        }
    }

    #[test]
    fn crowd_that_comes_in_any_order_is_one_range() {
        let mut tally = Tally::default();
        for start in (0..1000).step_by(2).chain((1..1000).step_by(2)) {
            tally.raise(&said(start, 1, 1));
        }
        assert_eq!(tally.groups["g"].len(), 1);
        assert_eq!((tally.instances(), tally.signals()), (1000, 1000));
    }

    #[test]
    fn nothing_that_is_claimed_overflows() {
        let tally = Tally::default();
        let more = tally.more(&said(u32::MAX, u32::MAX, u64::MAX));
        assert_eq!((more.instances, more.signals), (u64::from(u32::MAX), u64::MAX));
    }
}
