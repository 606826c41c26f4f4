//! How far lablets are from each other: what delays cannot hide is not started.

use iptl_dag::PeerId;
use iptl_dag::model::{FactKind, Way};
use iptl_wire::Timestamp;
use iptl_wire::session::{CellRef, MAX_WAYS};

use super::{Orchestrator, unable};

impl Orchestrator {
    /// Takes in what a lablet measured before its cell was prepared. Where a way is longer than the delay that is to hide
    /// it, the execution ends, unless its run bears that.
    pub(super) fn measured(&mut self, now: Timestamp, from: &PeerId, named: &CellRef, mut ways: Vec<Way>) {
        let id = named.execution;
        let Some(cell) = self.live_cell(from, named) else { return };
        // Once for each cell.
        if std::mem::replace(&mut cell.measured, true) {
            return;
        }
        ways.truncate(MAX_WAYS);
        let over_by = |way: &&Way| way.measured_us.unwrap_or(0).saturating_sub(way.asked_us);
        let slowest = ways.iter().filter(|way| way.is_too_slow()).max_by_key(over_by).cloned();
        self.persist(id, FactKind::Measured { lablet: from.clone(), ways });
        let Some(exec) = self.executions.get(&id) else { return };
        let (Some(way), false) = (slowest, exec.started() || exec.run.run.placing.slow_ways) else { return };
        let ms = |us: u64| us as f64 / 1e3;
        let message = format!(
            "the way from {} to {} takes {:.1} ms, and the network asks for {:.1} ms from {} to {}",
            self.name_of(from),
            self.name_of(&way.to),
            ms(way.measured_us.unwrap_or(0)),
            ms(way.asked_us),
            way.from_region,
            way.to_region
        );
        let help = "place both on one lablet, take a network with longer delays, or bear it: `--slow-ways`";
        self.cannot_start(now, id, unable("network.too-slow", message, help));
    }
}
