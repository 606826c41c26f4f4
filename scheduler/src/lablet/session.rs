//! The session with the orchestrator: heartbeats, leases, the clock.

use std::collections::BTreeMap;
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId};
use iptl_wire::Timestamp;
use iptl_wire::session::{ClockSample, Heartbeat, Inventory, LeaseRenewal, ToOrchestrator, Welcome};

use super::Lablet;

/// Heartbeats whose answers are waited for; what is older cannot renew anything any more.
const MAX_UNANSWERED: usize = 64;

/// A session that is up.
#[derive(Debug)]
pub(super) struct Session {
    pub orchestrator: PeerId,
    pub heartbeat: Duration,
    pub beat_at: Timestamp,
    pub seq: u64,
    /// Heartbeats that were not answered: number to time of sending and wall time of sending.
    pub unanswered: BTreeMap<u64, (Timestamp, u64)>,
    /// The measurement that counts: that with the shortest round trip since a clock was set.
    pub clock: Option<ClockSample>,
    /// Number of answers so far.
    pub answers: u64,
}

impl Lablet {
    pub(super) fn session_up(
        &mut self,
        now: Timestamp,
        orchestrator: PeerId,
        hello_at: Timestamp,
        said: Option<&Epoch>,
        welcome: Welcome,
    ) {
        if !self.serves(&orchestrator, welcome.claim.as_ref()) || !self.is_counted(said) {
            return;
        }
        self.session = Some(Session {
            orchestrator: orchestrator.clone(),
            heartbeat: Duration::from_millis(u64::from(welcome.heartbeat_ms.max(1))),
            beat_at: now,
            seq: 0,
            unanswered: BTreeMap::new(),
            clock: None,
            answers: 0,
        });
        self.extend_lease(&orchestrator, hello_at, welcome.lease_ms);
        for cell in self.cells.values_mut() {
            cell.announce_again();
        }
        self.announce_receipts();
        for offer in welcome.offers {
            self.offer(now, offer.body);
        }
    }

    pub(super) fn session_down(&mut self, orchestrator: &PeerId) {
        if self.session.as_ref().is_some_and(|s| s.orchestrator == *orchestrator) {
            self.session = None;
        }
    }

    /// Takes in what the machine has. What became ready is told at once: the next run may be placed before the next
    /// heartbeat is due.
    pub(super) fn inventoried(&mut self, now: Timestamp, inventory: Inventory) {
        let is_ready = inventory.holds.iter().any(|workload| !self.machine.has_ready(workload));
        if let Some(session) = self.session.as_mut().filter(|_| is_ready) {
            session.beat_at = now;
        }
        self.machine = inventory;
    }

    /// Sends a heartbeat where it is time.
    pub(super) fn beat(&mut self, now: Timestamp) {
        if self.session.as_ref().is_none_or(|s| s.beat_at > now) {
            return;
        }
        let wall_us = self.wall_us(now);
        let inventory = self.inventory();
        let cells = self.cells();
        let Some(session) = &mut self.session else { return };
        session.seq += 1;
        session.beat_at = now.after(session.heartbeat);
        session.unanswered.insert(session.seq, (now, wall_us));
        while session.unanswered.len() > MAX_UNANSWERED {
            session.unanswered.pop_first();
        }
        // What is fetched the driver knows, and puts in.
        let (seq, clock) = (session.seq, session.clock);
        let heartbeat = Heartbeat { seq, wall_us, inventory, cells, clock, fetching: Vec::new() };
        self.say(ToOrchestrator::Heartbeat(heartbeat));
        for cell in self.cells.values_mut() {
            cell.announce_stale();
        }
        self.announce_receipts();
    }

    pub(super) fn renewed(&mut self, now: Timestamp, renewal: LeaseRenewal) {
        let received_us = self.wall_us(now);
        let Some(session) = &mut self.session else { return };
        let Some((sent_at, sent_us)) = session.unanswered.remove(&renewal.seq) else { return };
        session.unanswered = session.unanswered.split_off(&renewal.seq);
        session.heartbeat = Duration::from_millis(u64::from(renewal.heartbeat_ms.max(1)));
        session.answers += 1;
        let round_trip_us = now.since(sent_at).as_micros() as u64;
        // Half-way between sending and answer the two clocks are compared.
        let middle_us = i128::from(sent_us) + (i128::from(received_us) - i128::from(sent_us)) / 2;
        let offset_us = i64::try_from(middle_us - i128::from(renewal.wall_us)).unwrap_or(0);
        let measured = ClockSample { offset_us, round_trip_us };
        session.clock = Some(session.clock.map_or(measured, |before| before.or_newer(measured)));
        if session.answers == 1 {
            // The first measurement is told at once: short executions end before the next heartbeat.
            session.beat_at = now;
        }
        let orchestrator = session.orchestrator.clone();
        self.extend_lease(&orchestrator, sent_at, renewal.lease_ms);
    }

    fn extend_lease(&mut self, orchestrator: &PeerId, from: Timestamp, lease_ms: u32) {
        let until = from.after(Duration::from_millis(u64::from(lease_ms)));
        let lease = self.leases.entry(orchestrator.clone()).or_default();
        *lease = (*lease).max(until);
    }

    pub(super) fn leased(&self, now: Timestamp, orchestrator: &PeerId) -> bool {
        self.lease_of(orchestrator) > now
    }

    /// Stops what runs without a lease.
    pub(super) fn expire_leases(&mut self, now: Timestamp) {
        let fallen: Vec<ExecutionId> = self
            .cells
            .iter()
            .filter(|(_, c)| c.may_run() && !self.leased(now, c.orchestrator()))
            .map(|(id, _)| *id)
            .collect();
        for id in fallen {
            self.end_cell(id, "the lease ran out: the orchestrator was not heard");
        }
        let mut needed: std::collections::BTreeSet<_> = self.cells.values().map(|c| c.orchestrator().clone()).collect();
        needed.extend(self.leader.term().map(|term| term.peer.clone()));
        self.leases.retain(|orchestrator, until| *until > now || needed.contains(orchestrator));
    }
}
