//! Hello, heartbeats, leases: who is there, what they hold, and who is lost.

use iptl_dag::PeerId;
use iptl_dag::model::ExecutionId;
use iptl_wire::control::Event;
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Heartbeat, Hello, Inventory, LeaseRenewal, ToLablet};
use iptl_wire::takeover::Finished;
use iptl_wire::{Timestamp, WallTime};

use super::api::FOLLOWED_LEASES;
use super::state::{LabletState, Pull, UNKNOWN_BOOT};
use super::{Effect, Orchestrator, cell_ref, ms};

/// Part of a lease by which it may be shorter, as a divisor: who follows in second rank claims after three quarters of the
/// lease that a followed lab has, and lablets need a moment to turn.
const LEASE_JITTER: u32 = 20;

/// Heartbeats in a row that do not list a cell before it counts as forgotten: one may have overtaken an accept.
const MAX_ABSENT: u32 = 3;

impl Orchestrator {
    pub(super) fn hello(&mut self, now: Timestamp, from: PeerId, session: u64, hello: Hello) {
        let promised = hello.promised.as_ref().map(|claim| &claim.body.term);
        if let Some(term) = promised
            && promised > self.config.term.as_ref()
        {
            self.step_down(term.clone());
            return;
        }
        if promised < self.config.term.as_ref() {
            // It promises first, and says hello again.
            let (heartbeat_ms, lease_ms) = self.dictate(&from, 0);
            let term = self.config.term.clone();
            self.effects.push_back(Effect::Welcome {
                to: from,
                session,
                heartbeat_ms,
                lease_ms,
                offers: Vec::new(),
                term,
            });
            return;
        }
        if let Some(known) = self.lablets.get(&from)
            && known.session.is_some()
            && known.boot != hello.boot
            && now.since(known.heard_at) < ms(u64::from(known.heartbeat_ms) * 2)
        {
            // The first may also be a lablet that died a moment ago: then it falls silent, and the next try is served.
            let reason = format!(
                "two lablets use this identity: another one, started separately, was heard {} ms ago; \
                 give each machine a home of its own, or try again if this one was just restarted",
                now.since(known.heard_at).as_millis()
            );
            self.effects.push_back(Effect::Turn { to: from, session, reason });
            return;
        }
        let before = self.lablets.remove(&from);
        if let Some(before) = &before {
            self.leases.remove(&(before.lease_until, from.clone()));
        }
        // After a restart of the orchestrator it is not known which life of the lablet it was.
        let died = before.as_ref().is_some_and(|l| l.boot != UNKNOWN_BOOT && l.boot != hello.boot);
        self.lablets.insert(
            from.clone(),
            LabletState {
                session: Some(session),
                boot: hello.boot,
                version: hello.version,
                inventory: hello.inventory,
                cells: hello.cells.clone(),
                seq: 0,
                heard_at: now,
                lease_until: now,
                heartbeat_ms: 0,
                clock: before.as_ref().and_then(|l| l.clock),
                away_since: None,
            },
        );
        self.leases.insert((now, from.clone()));
        let (heartbeat_ms, lease_ms) = self.dictate(&from, 0);
        self.renew(now, &from, heartbeat_ms, lease_ms);
        let wall = WallTime(self.wall_ms(now));
        let offers = self.open_offers(wall);
        let term = self.config.term.clone();
        self.effects.push_back(Effect::Welcome { to: from.clone(), session, heartbeat_ms, lease_ms, offers, term });
        self.recover(now, &from, &hello.cells, &hello.finished);
        // The end of a session may not have been noticed: a connection of a process that was killed can look alive.
        let unnoticed = |l: &LabletState| died.then_some(l.heard_at);
        if let Some(away) = before.and_then(|l| l.away_since.or_else(|| unnoticed(&l))) {
            self.note_absence(&from, now.since(away).as_millis() as u64);
        }
        if died {
            for exec in self.executions.values_mut() {
                if let Some(cell) = exec.cells.get_mut(&from) {
                    cell.died = true;
                }
            }
        }
        self.reconcile(now, &from, true);
        self.replan = true;
    }

    pub(super) fn gone(&mut self, from: PeerId, session: u64) {
        if let Some(lablet) = self.lablets.get_mut(&from)
            && lablet.session == Some(session)
        {
            lablet.session = None;
            lablet.away_since = Some(lablet.heard_at);
        }
    }

    pub(super) fn heartbeat(&mut self, now: Timestamp, from: PeerId, heartbeat: Heartbeat) {
        let (heartbeat_ms, lease_ms) = self.dictate(&from, heartbeat.seq);
        let Some(lablet) = self.lablets.get_mut(&from) else { return };
        if heartbeat.seq <= lablet.seq {
            return;
        }
        lablet.seq = heartbeat.seq;
        let ended = |cells: &[CellStatus]| cells.iter().filter(|status| status.phase == CellPhase::Ended).count();
        let grew = more_room(&lablet.inventory, &heartbeat.inventory)
            || lablet.cells.len() != heartbeat.cells.len()
            || ended(&lablet.cells) != ended(&heartbeat.cells);
        lablet.inventory = heartbeat.inventory;
        lablet.cells = heartbeat.cells;
        lablet.clock = match (lablet.clock, heartbeat.clock) {
            (Some(old), Some(new)) => Some(old.or_newer(new)),
            (old, new) => new.or(old),
        };
        self.replan |= grew;
        self.renew(now, &from, heartbeat_ms, lease_ms);
        let renewal = LeaseRenewal { seq: heartbeat.seq, heartbeat_ms, lease_ms, wall_us: self.wall_ms(now) * 1000 };
        self.send(&from, ToLablet::Lease(renewal));
        self.reconcile(now, &from, false);
    }

    fn renew(&mut self, now: Timestamp, lablet: &PeerId, heartbeat_ms: u32, lease_ms: u32) {
        if let Some(state) = self.lablets.get_mut(lablet) {
            state.heard_at = now;
            state.heartbeat_ms = heartbeat_ms;
            // The lablet counts from its sending, which was earlier: its own timer runs out first.
            let until = state.lease_until.max(now.after(ms(u64::from(lease_ms))));
            self.leases.remove(&(state.lease_until, lablet.clone()));
            self.leases.insert((until, lablet.clone()));
            state.lease_until = until;
        }
    }

    /// Returns the heartbeat interval and the lease for a lablet: slower in a large lab, the interval with jitter of a
    /// tenth, the lease up to a twentieth shorter, so that leases that were given together do not end together.
    fn dictate(&self, lablet: &PeerId, seq: u64) -> (u32, u32) {
        let lablets = u32::try_from(self.lablets.len()).unwrap_or(u32::MAX);
        let scaled = lablets.saturating_mul(1000) / self.config.heartbeats_per_s.max(1);
        let base = self.config.heartbeat_ms.max(scaled).max(1);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.config.seed.to_le_bytes()).update(lablet.as_bytes()).update(&seq.to_le_bytes());
        let drawn = hasher.finalize();
        let draw = |from: usize, most: u32| {
            let mut draw = [0; 4];
            draw.copy_from_slice(&drawn.as_bytes()[from..from + 4]);
            u32::from_le_bytes(draw) % most.saturating_add(1)
        };
        let heartbeat = base - base / 10 + draw(0, base / 5);
        let lease = base.saturating_mul(self.lease_heartbeats());
        (heartbeat, lease - draw(4, lease / LEASE_JITTER))
    }

    /// Whether every lablet that is here holds a lease that is longer than a follower's patience: one that was renewed since
    /// there is a follower.
    pub fn leases_outlast_a_takeover(&self) -> bool {
        self.followed_since.is_some_and(|since| {
            self.lablets.values().filter(|lablet| lablet.session.is_some()).all(|lablet| lablet.heard_at > since)
        })
    }

    fn lease_heartbeats(&self) -> u32 {
        self.config.lease_heartbeats.saturating_mul(if self.followed_since.is_some() { FOLLOWED_LEASES } else { 1 })
    }

    /// Longest lease that a lablet may hold, in milliseconds.
    pub(super) fn lease_ms(&self) -> u64 {
        let lablets = self.lablets.len() as u64;
        let scaled = lablets * 1000 / u64::from(self.config.heartbeats_per_s.max(1));
        scaled.max(u64::from(self.config.heartbeat_ms)) * u64::from(self.lease_heartbeats())
    }

    /// Compares what a lablet holds with what it should hold, and says again what it has not heard.
    fn reconcile(&mut self, now: Timestamp, from: &PeerId, hello: bool) {
        let listed: Vec<CellStatus> = self.lablets.get(from).map(|l| l.cells.clone()).unwrap_or_default();
        for exec in self.executions.values_mut().filter(|e| !e.lose_later.is_empty()) {
            // It is here again: what it says now decides.
            exec.lose_later.remove(from);
        }
        for status in &listed {
            self.reconcile_listed(now, from, status);
        }
        let expected: Vec<ExecutionId> = self
            .executions
            .iter()
            .filter(|(id, exec)| {
                exec.cells
                    .get(from)
                    .is_some_and(|c| !c.over && !listed.iter().any(|s| s.cell == cell_ref(**id, &c.epoch)))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in expected {
            self.reconcile_absent(now, from, id, hello);
        }
    }

    /// Returns how the execution of a cell ended, where it is over: as it is remembered, and of a grant of this
    /// orchestrator's own that is not remembered any more, without a result and before all terms.
    pub(super) fn end_of(&self, id: ExecutionId, cell: &CellRef) -> Option<Finished> {
        let own = cell.epoch.peer == self.config.peer;
        let forgotten = own.then_some(Finished { execution: id, result: None, term: None });
        self.over.get(&id).cloned().or(forgotten)
    }

    fn reconcile_listed(&mut self, now: Timestamp, from: &PeerId, status: &CellStatus) {
        let id = status.cell.execution;
        let Some(exec) = self.executions.get_mut(&id) else {
            if status.phase != CellPhase::Ended {
                let reason = "the orchestrator does not know this execution as one that runs".to_owned();
                self.send(from, ToLablet::Stop(status.cell.clone(), reason));
            }
            // What another orchestrator granted and this one never heard of keeps its receipts.
            if let Some(end) = self.end_of(id, &status.cell) {
                self.send(from, ToLablet::Finished(end));
            }
            return;
        };
        let stopping = exec.ending();
        let Some(cell) = exec.cells.get_mut(from).filter(|c| c.epoch == status.cell.epoch) else {
            // An older term of a cell that is granted anew, or one that was given back: what counts is said elsewhere.
            if status.phase != CellPhase::Ended {
                self.send(from, ToLablet::Stop(status.cell.clone(), "the grant was replaced".into()));
            }
            return;
        };
        cell.absent = 0;
        // What runs on after its lablet was started again did not die with it.
        cell.died &= status.phase != CellPhase::Running;
        if cell.over {
            if status.phase != CellPhase::Ended {
                self.send(from, ToLablet::Stop(status.cell.clone(), "counted as lost".into()));
            }
            return;
        }
        let started = exec.started_ms > 0;
        let directory = exec.epoch;
        if !started {
            match status.phase {
                CellPhase::Preparing => self.accepted(now, from, &status.cell),
                CellPhase::Prepared => {
                    self.accepted(now, from, &status.cell);
                    self.prepared(now, from, &status.cell);
                }
                CellPhase::Running => {}
                CellPhase::Ended => {
                    self.refused(now, from, &status.cell, "the cell died with its lablet before it was started".into());
                    return;
                }
            }
        } else if stopping {
            if status.phase != CellPhase::Ended {
                self.send(from, ToLablet::Stop(status.cell.clone(), "the execution ends".into()));
            }
        } else if status.phase == CellPhase::Prepared {
            self.send(from, ToLablet::Start(status.cell.clone()));
        } else if status.phase == CellPhase::Preparing {
            // A replacement that still prepares.
            self.accepted(now, from, &status.cell);
        }
        if status.directory < directory && status.phase < CellPhase::Ended {
            self.send_directory(id, from);
        }
        if status.phase == CellPhase::Ended {
            self.account_ended(now, id, from, status.ended);
        }
    }

    /// An ended cell whose announced receipts are all here gives no more: what it did not hand in is lost.
    pub(super) fn account_ended(&mut self, now: Timestamp, id: ExecutionId, from: &PeerId, ended: u32) {
        let Some(cell) = self.executions.get(&id).and_then(|e| e.cells.get(from)) else { return };
        let done = cell.shards.values().filter(|s| matches!(s.state, Pull::Kept | Pull::Bad));
        let accounted: u64 = done.map(|s| u64::from(s.count)).sum();
        let reason = match cell.died {
            true => "its lablet died under it and was started again",
            false => "its lablet ended it without a receipt",
        };
        if accounted >= u64::from(ended) {
            self.lose_cell(now, id, from, reason.into());
        }
    }

    fn reconcile_absent(&mut self, now: Timestamp, from: &PeerId, id: ExecutionId, hello: bool) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Some(cell) = exec.cells.get_mut(from) else { return };
        if cell.phase == super::state::Phase::Granted {
            self.send_grant(id, from);
            return;
        }
        cell.absent += 1;
        if hello || cell.absent >= MAX_ABSENT {
            self.lose_cell(now, id, from, "its lablet holds the cell no more".into());
        }
    }

    /// Ends the leases that ran out.
    pub(super) fn expire_leases(&mut self, now: Timestamp) {
        let mut gone: Vec<PeerId> =
            self.leases.iter().take_while(|(until, _)| *until <= now).map(|(_, peer)| peer.clone()).collect();
        gone.sort();
        for peer in gone {
            let name = self.name_of(&peer);
            let silent_ms = self.lablets.get(&peer).map_or(0, |l| now.since(l.heard_at).as_millis());
            let lablet = self.lablets.remove(&peer);
            if let Some(lablet) = &lablet {
                self.leases.remove(&(lablet.lease_until, peer.clone()));
            }
            if lablet.is_some_and(|l| l.session.is_some()) {
                self.effects.push_back(Effect::Close { lablet: peer.clone(), reason: "its lease ran out".into() });
            }
            let reason = format!("lablet {name} was not heard for {silent_ms} ms");
            let held: Vec<ExecutionId> = self
                .executions
                .iter()
                .filter(|(_, e)| e.cells.get(&peer).is_some_and(|c| !c.over))
                .map(|(id, _)| *id)
                .collect();
            for id in held {
                let what = format!("lost: not heard for {silent_ms} ms");
                self.notify(id, Event::Lablet { lablet: name.clone(), what });
                self.lose_cell(now, id, &peer, reason.clone());
            }
            self.replan = true;
        }
    }

    /// A lablet that was away while it ran instances may have starved them of sync and network.
    fn note_absence(&mut self, lablet: &PeerId, away_ms: u64) {
        let name = self.name_of(lablet);
        let mut back = Vec::new();
        for (id, exec) in &mut self.executions {
            if exec.started_ms > 0 && exec.cells.get(lablet).is_some_and(|c| !c.over) {
                exec.distortions.push((name.clone(), format!("no session with the orchestrator for {away_ms} ms")));
                back.push(*id);
            }
        }
        for id in back {
            let what = format!("back after {away_ms} ms");
            self.notify(id, Event::Lablet { lablet: name.clone(), what });
        }
    }
}

fn more_room(old: &Inventory, new: &Inventory) -> bool {
    new.slots.keys().any(|kind| new.free(*kind) > old.free(*kind))
        || new.free_memory_bytes > old.free_memory_bytes
        || new.labels != old.labels
        || new.draining != old.draining
}
