//! Offers that come by gossip, and the bids that answer them. A bid reserves nothing; a grant does.

use iptl_dag::model::WorkloadKind;
use iptl_wire::Timestamp;
use iptl_wire::offer::Offer;
use iptl_wire::session::{Bid, ToOrchestrator};

use super::Lablet;

impl Lablet {
    pub(super) fn offer(&mut self, now: Timestamp, offer: Offer) {
        let orchestrator = offer.epoch.peer.clone();
        let stale = self.promised.get(&offer.execution).is_some_and(|promised| *promised > offer.epoch);
        let served = self.session.as_ref().is_some_and(|s| s.orchestrator == orchestrator);
        let lapsed = self.wall.1 > 0 && offer.expires <= self.wall_time(now);
        if offer.lab != self.config.lab || !served || stale || lapsed {
            return;
        }
        if self.cells.get(&offer.execution).is_some_and(|c| !c.replaceable()) {
            return;
        }
        let (slots, reason) = self.what_fits(&offer);
        let bid = Bid { execution: offer.execution, epoch: offer.epoch, slots, reason };
        self.send(&orchestrator, ToOrchestrator::Bid(bid));
    }

    fn what_fits(&self, offer: &Offer) -> (u32, String) {
        let free = self.inventory();
        if free.draining {
            return (0, "draining: its owner lets it take no new work".into());
        }
        if offer.kinds.contains(&WorkloadKind::Wasm) && free.wasm_slots == 0 {
            return (0, "has no wasm runner".into());
        }
        if offer.kinds.contains(&WorkloadKind::Docker) {
            return (0, "has no docker runner".into());
        }
        let by_memory = match offer.memory_bytes {
            0 => u32::MAX,
            each => u32::try_from(free.free_memory_bytes / each).unwrap_or(u32::MAX),
        };
        let slots = free.free_wasm_slots.min(by_memory).min(offer.instances);
        if slots > 0 {
            return (slots, String::new());
        }
        let what = if free.free_wasm_slots == 0 { "slot" } else { "memory" };
        (0, format!("no free {what}"))
    }
}
