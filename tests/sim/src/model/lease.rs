//! Until when a lablet may run anything, counted from what it sent and what it was answered.

use std::collections::BTreeMap;

use super::Model;
use crate::lablet::LabletNode;

/// How much longer than its lease a cell may run, in nanoseconds: what clocks drift in a lease.
const SLACK: u64 = 20_000_000;

/// A lablet's lease, in virtual time.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// When it runs out.
    until: u64,
    /// When the hello that waits for an answer was sent.
    greeted_at: u64,
    /// When heartbeats of this session were sent.
    beats: BTreeMap<u64, u64>,
}

impl Model {
    /// A lablet says hello.
    pub fn greets(&mut self, now: u64, lablet: usize) {
        self.leases.entry(lablet).or_default().greeted_at = now;
    }

    /// A lablet's hello is answered.
    pub fn welcomed(&mut self, lablet: usize, lease_ms: u32) {
        let lease = self.leases.entry(lablet).or_default();
        lease.until = lease.until.max(lease.greeted_at + u64::from(lease_ms) * 1_000_000);
        lease.beats.clear();
    }

    /// A lablet sends a heartbeat.
    pub fn beats(&mut self, now: u64, lablet: usize, seq: u64) {
        let beats = &mut self.leases.entry(lablet).or_default().beats;
        beats.insert(seq, now);
        while beats.len() > 128 {
            beats.pop_first();
        }
    }

    /// A lablet's heartbeat is answered.
    pub fn renewed(&mut self, lablet: usize, seq: u64, lease_ms: u32) {
        let lease = self.leases.entry(lablet).or_default();
        if let Some(sent) = lease.beats.get(&seq) {
            lease.until = lease.until.max(sent + u64::from(lease_ms) * 1_000_000);
        }
    }

    /// A lablet dies; its next life has no lease.
    pub fn lablet_died(&mut self, lablet: usize) {
        self.leases.remove(&lablet);
    }

    /// A lablet has taken something in: nothing that may run has no lease.
    pub fn leased(&mut self, now: u64, lablet: usize, node: &LabletNode) {
        let until = self.leases.get(&lablet).map_or(0, |lease| lease.until);
        if now <= until.saturating_add(SLACK) {
            return;
        }
        let runs = node.cells.iter().find(|(_, cell)| cell.started && !cell.stopping && !cell.running.is_empty());
        if let Some((named, _)) = runs {
            let over = (now - until) / 1_000_000;
            self.violated("lease", format!("{} runs {named:?} {over} ms after its lease", node.peer.short()));
        }
    }
}
