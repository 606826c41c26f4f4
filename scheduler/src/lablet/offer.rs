//! Offers that come by gossip, and the bids that answer them. A bid reserves nothing; a grant does.

use std::collections::BTreeMap;

use iptl_dag::model::WorkloadKind;
use iptl_wire::Timestamp;
use iptl_wire::offer::Offer;
use iptl_wire::session::{Bid, ToOrchestrator};

use super::Lablet;
use crate::placement::{no_runner, slot_name};

impl Lablet {
    pub(super) fn offer(&mut self, now: Timestamp, offer: Offer) {
        let orchestrator = offer.epoch.peer.clone();
        let stale = self.promised.get(&offer.execution).is_some_and(|promised| *promised > offer.epoch);
        let served = self.session.as_ref().is_some_and(|s| s.orchestrator == orchestrator);
        if offer.lab != self.config.lab || !served || stale || self.lapsed(now, &offer) {
            return;
        }
        if self.cells.get(&offer.execution).is_some_and(|c| !c.replaceable()) {
            return;
        }
        let (slots, reason) = self.what_fits(&offer);
        let bid = Bid { execution: offer.execution, epoch: offer.epoch, slots, reason };
        self.say(ToOrchestrator::Bid(bid));
    }

    /// Whether an offer is over by the clock of the orchestrator that made it. Two clocks need not agree: before they
    /// were compared nothing is over, and whoever bids for what is over is told so.
    fn lapsed(&self, now: Timestamp, offer: &Offer) -> bool {
        let Some(clock) = self.session.as_ref().and_then(|s| s.clock).filter(|_| self.wall.1 > 0) else { return false };
        let theirs_us = i128::from(self.wall_us(now)) - i128::from(clock.offset_us);
        i128::from(offer.expires.0) * 1000 <= theirs_us
    }

    /// Returns how many instances of each kind would fit, or why none do. Memory is one: each kind is looked at as if
    /// it got all of it.
    fn what_fits(&self, offer: &Offer) -> (BTreeMap<WorkloadKind, u32>, String) {
        let free = self.inventory();
        if free.draining {
            return (BTreeMap::new(), "draining: its owner lets it take no new work".into());
        }
        let mut slots = BTreeMap::new();
        let mut reasons = Vec::new();
        for (kind, wanted) in &offer.wanted {
            let by_memory = match wanted.memory_bytes {
                0 => u32::MAX,
                each => u32::try_from(free.free_memory_bytes / each).unwrap_or(u32::MAX),
            };
            let fit = free.free(*kind).min(by_memory).min(wanted.instances);
            if fit > 0 {
                slots.insert(*kind, fit);
            } else if !free.runs(*kind) {
                reasons.push(no_runner(*kind));
            } else if free.free(*kind) == 0 {
                reasons.push(format!("no free {}", slot_name(*kind, offer.wanted.len())));
            } else {
                reasons.push("no free memory".to_owned());
            }
        }
        let reason = if slots.is_empty() { reasons.join(", ") } else { String::new() };
        (slots, reason)
    }
}
