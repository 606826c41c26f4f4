//! Until when a lablet may run anything, by orchestrator, counted from what it sent and what it was answered.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_wire::session::CellRef;

use super::Truth;

/// How much longer than its lease a cell may run, in nanoseconds: what clocks drift in a lease.
const SLACK: u64 = 20_000_000;

/// Heartbeats of which answers are waited for.
const MAX_BEATS: usize = 128;

/// A lablet's leases, in virtual time.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// When each runs out.
    until: BTreeMap<PeerId, u64>,
    /// When the hello that waits for an answer was sent.
    greeted_at: u64,
    /// When heartbeats of this session were sent.
    beats: BTreeMap<u64, u64>,
    /// Who leads, as the lablet knows it.
    leads: Option<PeerId>,
}

impl Lease {
    fn of(&self, orchestrator: &PeerId) -> u64 {
        self.until.get(orchestrator).copied().unwrap_or(0)
    }

    /// When the lease of a cell is over: that of who granted it, or of who leads.
    fn over(&self, granted_by: &PeerId) -> u64 {
        self.of(granted_by).max(self.leads.as_ref().map_or(0, |leads| self.of(leads)))
    }

    fn extend(&mut self, orchestrator: &PeerId, from: u64, lease_ms: u32) {
        let until = self.until.entry(orchestrator.clone()).or_default();
        *until = (*until).max(from + u64::from(lease_ms) * 1_000_000);
    }
}

impl Truth {
    /// A lablet says hello.
    pub(in crate::takeover) fn greets(&mut self, now: u64, l: usize) {
        self.leases.entry(l).or_default().greeted_at = now;
    }

    /// Who leads in the term that a lablet promised answers its hello.
    pub(in crate::takeover) fn welcomed(&mut self, l: usize, orchestrator: &PeerId, lease_ms: u32) {
        let lease = self.leases.entry(l).or_default();
        lease.extend(orchestrator, lease.greeted_at, lease_ms);
    }

    /// A session of a lablet begins, and with it the numbers of its heartbeats.
    pub(in crate::takeover) fn begins(&mut self, l: usize) {
        self.leases.entry(l).or_default().beats.clear();
    }

    /// A lablet sends a heartbeat.
    pub(in crate::takeover) fn beats(&mut self, now: u64, l: usize, seq: u64) {
        let beats = &mut self.leases.entry(l).or_default().beats;
        beats.insert(seq, now);
        while beats.len() > MAX_BEATS {
            beats.pop_first();
        }
    }

    /// A lablet's heartbeat is answered on the session in which it was sent.
    pub(in crate::takeover) fn renewed(&mut self, l: usize, orchestrator: &PeerId, seq: u64, lease_ms: u32) {
        let lease = self.leases.entry(l).or_default();
        if let Some(sent) = lease.beats.get(&seq).copied() {
            lease.extend(orchestrator, sent, lease_ms);
        }
    }

    /// A lablet dies; its next life has no lease.
    pub(in crate::takeover) fn lablet_died(&mut self, l: usize) {
        self.leases.remove(&l);
    }

    /// A lablet turns to who leads: what it holds keeps the lease of who led before.
    pub(in crate::takeover) fn turns(&mut self, l: usize, held: &[&CellRef], leads: &PeerId) {
        let lease = self.leases.entry(l).or_default();
        let kept: Vec<(PeerId, u64)> =
            held.iter().map(|cell| &cell.epoch.peer).map(|p| (p.clone(), lease.over(p))).collect();
        lease.until.extend(kept);
        lease.leads = Some(leads.clone());
    }

    fn over(&self, l: usize, cell: &CellRef) -> u64 {
        self.leases.get(&l).map_or(0, |lease| lease.over(&cell.epoch.peer))
    }

    /// A cell runs.
    pub(in crate::takeover) fn leased(&mut self, now: u64, (l, lablet): (usize, &PeerId), cell: &CellRef) {
        let until = self.over(l, cell);
        self.check("lease", now <= until.saturating_add(SLACK), || {
            format!("{} runs {cell:?} {} ms after its lease", lablet.short(), (now - until) / 1_000_000)
        });
    }

    /// A lablet stops a cell since its lease is over.
    pub(in crate::takeover) fn lease_over(&mut self, now: u64, (l, lablet): (usize, &PeerId), cell: &CellRef) {
        let until = self.over(l, cell);
        self.check("lease-cut", now.saturating_add(SLACK) >= until, || {
            format!("{} stops {cell:?} {} ms before its lease is over", lablet.short(), (until - now) / 1_000_000)
        });
    }
}
