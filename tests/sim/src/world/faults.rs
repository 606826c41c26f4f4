//! What breaks: nodes die, stand still, lose their network, their disks and their time.

use iptl_scheduler::Input;
use iptl_scheduler::lablet::LabletInput;
use iptl_wire::session::CellPhase;

use super::{MILLI, SECOND, World};
use crate::event::Event;
use crate::reach::Point;
use crate::schedule::Fault;

/// A lease in a lab that is not large, in milliseconds.
const LEASE_MS: u64 = 5_000;

/// By how much a clock is set between two lives, in microseconds: longer than any run takes.
const SET_BY_US: i64 = 7_200_000_000;

impl World {
    pub(super) fn fault(&mut self, n: usize) {
        self.disturb(n);
        match self.schedule.faults[n].fault.clone() {
            Fault::Crash { node: None, down_ms, in_write: true, written_pct } => {
                self.orchestrator.dies_in_write = Some((down_ms, written_pct));
            }
            Fault::Crash { node: None, down_ms, in_write: false, written_pct } => {
                self.crash_orchestrator(down_ms, written_pct);
            }
            Fault::Crash { node: Some(lablet), down_ms, in_write: true, written_pct } => {
                self.lablets[lablet as usize].dies_in_write = Some((down_ms, written_pct));
            }
            Fault::Crash { node: Some(lablet), down_ms, in_write: false, written_pct } => {
                self.crash_lablet(lablet as usize, down_ms, written_pct);
            }
            Fault::Cut { lablet, ms, up, down } => self.cut(lablet as usize, ms, up, down),
            Fault::Freeze { node, ms } => self.freeze(node, ms),
            Fault::SlowDisk { node, ms, factor } => {
                let until = self.now + ms * MILLI;
                match node {
                    Some(lablet) => self.lablets[lablet as usize].slow = (until, factor),
                    None => self.orchestrator.slow = (until, factor),
                }
            }
            Fault::FullDisk { node, ms } => {
                let until = self.now + ms * MILLI;
                match node {
                    Some(lablet) => self.lablets[lablet as usize].full_until = until,
                    None => self.orchestrator.full_until = until,
                }
            }
            Fault::Jump { node, by_ms } => self.jump(node, by_ms),
            Fault::Drain { lablet, at_once, ms } => {
                let lablet = lablet as usize;
                for status in self.lablets[lablet].core.iter().flat_map(|core| core.cells()) {
                    match status.phase {
                        CellPhase::Preparing | CellPhase::Prepared => self.reached.at(Point::DrainedPreparing),
                        CellPhase::Running => self.reached.at(Point::DrainedRunning),
                        CellPhase::Ended => {}
                    }
                }
                self.tell_lablet(lablet, LabletInput::Drain { now: at_once });
                self.after(ms * MILLI, Event::Undrain { lablet });
            }
        }
    }

    /// Notes until when a fault may slow things down.
    fn disturb(&mut self, n: usize) {
        let fault = &self.schedule.faults[n].fault;
        let until = self.now + fault.lasts_ms() * MILLI;
        let calm_since = match fault.lablet() {
            Some(lablet) => &mut self.lablets[lablet as usize].calm_since,
            None => &mut self.orchestrator.calm_since,
        };
        *calm_since = (*calm_since).max(until);
    }

    fn cut(&mut self, lablet: usize, ms: u64, up: bool, down: bool) {
        let until = self.now + ms * MILLI;
        let node = &mut self.lablets[lablet];
        if up {
            node.cut_up_until = node.cut_up_until.max(until);
        }
        if down {
            node.cut_down_until = node.cut_down_until.max(until);
        }
        self.reached.at(match (up, down) {
            (true, true) => Point::CutBoth,
            (true, false) => Point::CutUp,
            (false, _) => Point::CutDown,
        });
        self.drop_session(lablet);
    }

    /// Both sides notice at some time that their connection is gone.
    pub(super) fn drop_session(&mut self, lablet: usize) {
        let life = self.lablets[lablet].life;
        let greeting = self.lablets[lablet].greeting.map(|(s, _)| s);
        if let Some(session) = self.lablets[lablet].session.or(greeting) {
            let hears = self.fate.between(0, 12 * SECOND);
            self.after(hears, Event::LabletHears { lablet, life, session });
        }
        if let Some(session) = self.orchestrator.sessions.get(&self.lablets[lablet].peer).copied() {
            let hears = self.fate.between(0, 12 * SECOND);
            self.after(hears, Event::OrchestratorHears { lablet, session });
        }
    }

    fn freeze(&mut self, node: Option<u32>, ms: u64) {
        let until = self.now + ms * MILLI;
        match node {
            Some(lablet) => {
                let node = &mut self.lablets[lablet as usize];
                node.frozen_until = node.frozen_until.max(until);
                if ms > LEASE_MS {
                    self.reached.at(Point::FrozenLablet);
                }
            }
            None => {
                self.orchestrator.frozen_until = self.orchestrator.frozen_until.max(until);
                if ms > LEASE_MS {
                    self.reached.at(Point::FrozenOrchestrator);
                }
            }
        }
    }

    fn jump(&mut self, node: Option<u32>, by_ms: i64) {
        if by_ms.abs() >= 3_600_000 {
            self.reached.at(Point::ClockJumped);
        }
        let true_us = self.true_wall_us();
        match node {
            Some(lablet) => {
                let clock = &mut self.lablets[lablet as usize].clock;
                clock.skew_us = clock.skew_us.saturating_add(by_ms.saturating_mul(1000));
                let unix_us = clock.wall_us(true_us);
                self.tell_lablet(lablet as usize, LabletInput::Wall { unix_us });
            }
            None => {
                let clock = &mut self.orchestrator.clock;
                clock.skew_us = clock.skew_us.saturating_add(by_ms.saturating_mul(1000));
                let unix_us = clock.wall_us(true_us);
                self.orchestrator.was_set |= by_ms.abs() >= 3_600_000;
                self.tell_orchestrator(Input::Wall { unix_us });
            }
        }
    }

    pub(super) fn crash_orchestrator(&mut self, down_ms: u64, written_pct: u32) {
        let Some(core) = &self.orchestrator.core else { return };
        for view in core.executions() {
            match view.phase.split(':').next() {
                Some("offered") => self.reached.at(Point::OrchestratorDiesOffered),
                Some("preparing") => self.reached.at(Point::OrchestratorDiesPreparing),
                Some("running") => self.reached.at(Point::OrchestratorDiesRunning),
                Some("stopping") => self.reached.at(Point::OrchestratorDiesStopping),
                Some("sealing") => self.reached.at(Point::OrchestratorDiesSealing),
                _ => {}
            }
        }
        // What was being written may have reached the disk or not; what came after it never happened.
        let writing = self.orchestrator.syncing.len();
        let written = writing * written_pct as usize / 100;
        if writing > 0 {
            self.reached.at(if written == writing { Point::FactsLanded } else { Point::FactsTorn });
        }
        self.orchestrator.syncing.truncate(written);
        self.commit_facts();
        let node = &mut self.orchestrator;
        node.core = None;
        node.life += 1;
        node.syncing.clear();
        node.queue.clear();
        node.books.clear();
        node.again.clear();
        node.timer = None;
        node.frozen_until = 0;
        for lablet in 0..self.lablets.len() {
            self.drop_session(lablet);
        }
        self.orchestrator.sessions.clear();
        if self.schedule.profile.clock_jumps > 0 && self.faulty() && self.count.is_multiple_of(2) {
            // Its clock is set while nobody looks.
            let clock = &mut self.orchestrator.clock;
            let by_us = if self.count.is_multiple_of(4) { SET_BY_US } else { -SET_BY_US };
            clock.skew_us = clock.skew_us.saturating_add(by_us);
            self.orchestrator.was_set = true;
        }
        self.after(down_ms * MILLI, Event::StartOrchestrator);
    }

    pub(super) fn crash_lablet(&mut self, lablet: usize, down_ms: u64, written_pct: u32) {
        let node = &mut self.lablets[lablet];
        let Some(core) = &node.core else { return };
        for status in core.cells() {
            match status.phase {
                CellPhase::Preparing => self.reached.at(Point::LabletDiesPreparing),
                CellPhase::Prepared => self.reached.at(Point::LabletDiesPrepared),
                CellPhase::Running => self.reached.at(Point::LabletDiesRunning),
                CellPhase::Ended => {}
            }
        }
        if node.cells.values().any(|cell| !cell.unsealed.is_empty()) {
            self.reached.at(Point::LabletDiesUnsealed);
        }
        if node.records.values().any(|(_, shards)| !shards.is_empty()) {
            self.reached.at(Point::LabletDiesSealed);
        }
        let landed = written_pct >= 50;
        if node.syncing.is_some() {
            self.reached.at(if landed { Point::PromiseLanded } else { Point::PromiseTorn });
        }
        if landed {
            self.commit_promise(lablet);
        }
        self.drop_session(lablet);
        let node = &mut self.lablets[lablet];
        node.core = None;
        node.life += 1;
        node.session = None;
        node.greeting = None;
        node.timer = None;
        node.syncing = None;
        node.frozen_until = 0;
        node.queue.clear();
        node.cells.clear();
        self.model.lablet_died(lablet);
        self.after(down_ms * MILLI, Event::StartLablet { lablet });
    }
}
