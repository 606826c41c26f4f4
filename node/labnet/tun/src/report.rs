//! What a network really did.

use std::collections::BTreeMap;

use iptl_labnet::{Between, EngineStats, Lateness, LinkStats};
use serde::{Deserialize, Serialize};

/// What a network did so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By node of the topology: those that have had a device.
    pub nodes: BTreeMap<usize, NodeReport>,
    /// Links between regions that were used, and within one; nothing where there is one region.
    pub regions: Between,
    /// All links between regions, and within one, together.
    pub across: LinkStats,
    /// What happened to packets elsewhere than in links.
    pub engine: EngineStats,
    /// How late packets were handled: the network's own doing.
    pub lateness: Lateness,
    /// What the network itself did.
    pub lab: LabReport,
}

/// What one node saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its link up, then those of the gateways before it, its own first.
    pub up: Vec<LinkStats>,
    /// Its link down, then those of the gateways before it, its own first.
    pub down: Vec<LinkStats>,
    /// What its own requests did to what it sent; none where it made none.
    pub own: Option<LinkStats>,
    /// Packets that it sent with another source than its own.
    pub spoofed: u64,
    /// Packets that it sent and for which its device had no room, because the network was late.
    pub overrun: u64,
    /// Packets that its system did not take.
    pub refused: u64,
}

impl NodeReport {
    /// Returns how many packets the lab itself lost for this node: none of them is the model's doing.
    pub fn lost_by_lab(&self) -> u64 {
        let links: u64 = self.up.iter().chain(&self.down).chain(&self.own).map(|link| link.dropped_by_lab).sum();
        links + self.overrun + self.refused
    }
}

/// What the network itself did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabReport {
    /// CPU time of its thread, in microseconds.
    pub cpu_us: u64,
    /// Time that it lives, in microseconds.
    pub wall_us: u64,
    /// Whether its thread goes before others at the end of that time.
    pub realtime: bool,
    /// Packets for nodes that had no device: not yet, or no longer.
    pub undelivered: u64,
    /// Packets from other machines that found too many waiting.
    pub crowded_out: u64,
}
