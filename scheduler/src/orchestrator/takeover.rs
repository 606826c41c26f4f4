//! Going on with what another orchestrator began.
//!
//! The log that a successor has may lack the last things that its predecessor did. Lablets know them: before anything is
//! granted, started or ended, every lablet that may hold something is asked, by its hello in the new term. What they
//! hold and the log does not is recovered; what one was told to be over is over.
//!
//! Where a lablet was not heard within two leases, nobody knows what it was granted. Then nothing of these executions
//! is granted anew: what was not seen to start is sealed as lost, and what runs is finished where it runs.

use std::collections::BTreeSet;

use iptl_dag::PeerId;
use iptl_dag::model::{Epoch, ExecutionId, FactKind, InstanceId};
use iptl_wire::Timestamp;
use iptl_wire::session::{CellPhase, CellStatus, ToLablet};
use iptl_wire::takeover::Finished;

use super::replay::{GRACE_LEASES, placed};
use super::state::{Cell, Exec, Phase, Stage};
use super::{Effect, Orchestrator, cell_ref, ms};
use crate::placement::merge;

/// Terms of an execution that a predecessor may have gone through unseen; a lablet that names a later one lies.
const MAX_UNSEEN_TERMS: u64 = 64;

/// How a reason begins that names lablets which were not heard after a takeover.
const UNHEARD: &str = "the orchestrator was lost, and ";

/// What such a reason distorts a result by, as people read it.
const TAKEOVER: &str = "the takeover";

impl Exec {
    /// Notes that lablets were not heard after a takeover, where a loss has that as its reason: whoever reads the result
    /// should know.
    pub(super) fn note_unheard(&mut self, reason: &str) {
        if reason.starts_with(UNHEARD) {
            self.distortions.push((TAKEOVER.to_owned(), reason.to_owned()));
        }
    }

    /// Returns what was noted so.
    pub(super) fn unheard(&self) -> Vec<String> {
        self.distortions.iter().filter(|(what, _)| what == TAKEOVER).map(|(_, reason)| reason.clone()).collect()
    }
}

/// The time in which lablets are asked what they hold.
#[derive(Debug)]
pub(super) struct Reconcile {
    /// When it is over, whoever was heard.
    pub until: Timestamp,
    /// Lablets that were not heard yet.
    pub unheard: BTreeSet<PeerId>,
}

impl Orchestrator {
    /// Takes all replayed executions over. Where the one before handed over, its logs are whole.
    pub(super) fn take_over(&mut self, now: Timestamp, term: Epoch, mut lablets: BTreeSet<PeerId>, handed_over: bool) {
        self.config.term = Some(term);
        self.recall();
        let mut taken = Vec::new();
        for (id, exec) in &mut self.executions {
            let from = Epoch { counter: exec.epoch, peer: exec.leader.clone() };
            exec.epoch = exec.epoch.saturating_add(1);
            exec.note_takeover();
            exec.leader = self.config.peer.clone();
            lablets.extend(exec.live_cells().map(|(lablet, _)| lablet.clone()));
            taken.push((*id, from));
        }
        if !handed_over && !taken.is_empty() && !lablets.is_empty() {
            let until = now.after(ms(self.lease_ms() * GRACE_LEASES));
            self.reconcile = Some(Reconcile { until, unheard: lablets });
        }
        for (id, from) in taken {
            self.persist(id, FactKind::TakenOver { from });
        }
        self.replayed(now);
        if self.reconcile.is_none() {
            self.effects.push_back(Effect::Reconciled);
        }
    }

    /// Whether nothing of an execution may be decided before lablets were asked.
    pub(super) fn undecided(&self, exec: &Exec) -> bool {
        self.reconcile.is_some() && exec.taken_over
    }

    /// Another orchestrator leads: nothing is done any more.
    pub(super) fn step_down(&mut self, term: Epoch) {
        self.deposed = true;
        self.effects.push_back(Effect::StepDown { term });
    }

    /// Takes in what a lablet holds that has promised this term.
    pub(super) fn recover(&mut self, now: Timestamp, from: &PeerId, cells: &[CellStatus], finished: &[Finished]) {
        // What is over is over, whenever it is heard.
        for end in finished {
            self.hear_end(from, end);
        }
        if self.reconcile.is_none() {
            return;
        }
        for status in cells {
            self.recover_cell(now, from, status);
        }
        if let Some(reconcile) = &mut self.reconcile {
            reconcile.unheard.remove(from);
        }
    }

    /// Another orchestrator has ended an execution, and a lablet was told.
    fn hear_end(&mut self, from: &PeerId, end: &Finished) {
        if end.term > self.config.term {
            // Nobody can have told it so: it has promised no later term than this one.
            return;
        }
        let id = end.execution;
        match self.executions.get(&id) {
            Some(exec) if exec.taken_over => self.adopt_end(end.clone()),
            // It ends in this term, which is later.
            Some(_) => {}
            None => {
                let Some(known) = self.over.get(&id) else { return };
                if end.outdoes(known) && end.result.is_some() {
                    self.effects.push_back(Effect::Adopt(end.clone()));
                } else if known.outdoes(end) {
                    let known = known.clone();
                    self.send(from, ToLablet::Finished(known));
                }
            }
        }
    }

    /// One that was taken over is over: whoever ended it told lablets, and these have let go of it.
    fn adopt_end(&mut self, end: Finished) {
        let term = end.term.clone();
        let kind = match end.result {
            Some(result) => FactKind::Sealed { result, term },
            None => FactKind::Failed { reason: "the orchestrator before ended it without a result".into(), term },
        };
        self.persist(end.execution, kind);
        self.effects.push_back(Effect::Adopt(end.clone()));
        self.finish(end);
    }

    fn recover_cell(&mut self, now: Timestamp, from: &PeerId, status: &CellStatus) {
        let id = status.cell.execution;
        let granted = &status.cell.epoch;
        let Some(exec) = self.executions.get_mut(&id).filter(|e| e.taken_over) else { return };
        let known = exec.cells.get(from);
        if known.is_none_or(|cell| cell.epoch < *granted) {
            let sizes = &exec.run.run.groups;
            let fits = status.assignments.iter().all(|a| {
                let end = a.start.checked_add(a.count);
                a.lablet == *from
                    && a.count > 0
                    && sizes.get(&a.group).is_some_and(|g| end.is_some_and(|e| e <= g.count))
            });
            let run = &exec.run.run;
            let most = status.assignments.iter().map(|a| run.attempts_of(&a.group)).min().unwrap_or(1);
            let attempts = 1..=most;
            // Another cell of a lablet that had handed in all of the one before, to who was there then: it was given
            // only once that one was spent, whatever the log here has of its receipts.
            let another = exec.started() && known.is_some_and(|c| c.attempt <= status.attempt);
            let possible = granted.counter <= exec.epoch.saturating_add(MAX_UNSEEN_TERMS);
            let holds_receipts = known.is_some_and(|c| !c.shards.is_empty());
            if !fits || !possible || !attempts.contains(&status.attempt) || (holds_receipts && !another) {
                // It is told to stop by what comes after every hello.
                return;
            }
            let mut cell = Cell::new(now, granted.clone(), status.assignments.clone(), status.attempt);
            cell.phase = Phase::Accepted;
            for instance in cell.instances() {
                exec.lost.remove(&instance);
                exec.replace.remove(&instance);
            }
            exec.hold_recovered(from.clone(), cell);
            exec.rounds = exec.rounds.max(1);
            exec.epoch = exec.epoch.max(granted.counter);
            exec.assignments = merge(placed(exec));
            let kind = FactKind::Recovered {
                lablet: from.clone(),
                granted: granted.clone(),
                assignments: status.assignments.clone(),
                attempt: status.attempt,
            };
            let record = self.record_of(from);
            self.persist(id, kind);
            if let Some(exec) = self.executions.get_mut(&id) {
                exec.records.insert(from.clone(), record);
            }
        }
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.cells.get(from).is_some_and(|c| c.epoch == *granted) && status.phase >= CellPhase::Running {
            // An end may be that of a cell which was never started, and died: it counts as started all the same.
            exec.seen_started = true;
        }
    }

    /// Decides, once every lablet was heard or was waited for long enough.
    pub(super) fn expire_reconcile(&mut self, now: Timestamp) {
        let Some(reconcile) = self.reconcile.take_if(|r| r.unheard.is_empty() || r.until <= now) else { return };
        let names: Vec<String> = reconcile.unheard.iter().map(|l| self.name_of(l)).collect();
        let taken: Vec<ExecutionId> = self.executions.iter().filter(|(_, e)| e.taken_over).map(|(id, _)| *id).collect();
        for id in taken {
            self.drop_outdone(now, id);
            let Some(exec) = self.executions.get(&id) else { continue };
            // What its orchestrator before had given up was not started after that, whatever died of it.
            let seen = exec.seen_started && exec.cannot_start.is_none();
            if !exec.started() && seen {
                self.start_late(now, id);
            }
            if !names.is_empty() {
                let reason = format!("{UNHEARD}{} may hold it and was not heard", names.join(", "));
                self.doubt(now, id, &reason);
            }
            let later = self.executions.get_mut(&id).map(|e| std::mem::take(&mut e.lose_later)).unwrap_or_default();
            for (lablet, reason) in later {
                self.lose_cell(now, id, &lablet, reason);
            }
            self.lose_unheld(id);
            let Some(exec) = self.executions.get_mut(&id) else { continue };
            if exec.stage == Stage::Waiting && exec.live_cells().next().is_some() {
                // The log had no grant, and lablets hold some.
                exec.stage = Stage::Granted;
                exec.unfit_since = (exec.open() > 0).then_some(now);
            }
            let ending = exec.ending() || (exec.doubtful && !exec.started());
            if ending && !matches!(exec.stage, Stage::Stopping { .. } | Stage::Assembling { .. }) {
                let reason = exec.end_reason();
                self.wind_down(now, id, &reason);
            }
            self.start_if_ready(now, id);
            self.settle(now, id);
        }
        self.effects.push_back(Effect::Reconciled);
        self.replan = true;
    }

    /// Of two grants of one instance the later one counts: the earlier had been given back.
    fn drop_outdone(&mut self, now: Timestamp, id: ExecutionId) {
        let Some(exec) = self.executions.get(&id) else { return };
        let outdone: Vec<(PeerId, Epoch)> = exec
            .live_cells()
            .filter(|(_, cell)| {
                let later = |(_, c): (&PeerId, &Cell)| {
                    c.attempt == cell.attempt && c.epoch > cell.epoch && cell.instances().any(|i| c.holds(&i))
                };
                exec.live_cells().any(later)
            })
            .map(|(lablet, cell)| (lablet.clone(), cell.epoch.clone()))
            .collect();
        for (lablet, epoch) in outdone {
            self.send(&lablet, ToLablet::Stop(cell_ref(id, &epoch), "the grant was replaced".into()));
            self.lose_cell(now, id, &lablet, "its grant was replaced before a takeover".into());
        }
    }

    /// The one before had started it, and its fact was lost with it.
    fn start_late(&mut self, now: Timestamp, id: ExecutionId) {
        let wall_ms = self.wall_ms(now);
        let Some(exec) = self.executions.get_mut(&id) else { return };
        exec.started_ms = wall_ms.max(1);
        exec.stage = Stage::Running { deadline: now.after(ms(exec.run.run.timeout_ms)) };
        let ready: Vec<(PeerId, Epoch)> = exec
            .live_cells()
            .filter(|(_, c)| c.phase == Phase::Prepared)
            .map(|(lablet, cell)| (lablet.clone(), cell.epoch.clone()))
            .collect();
        self.persist(id, FactKind::Started {});
        for (lablet, epoch) in ready {
            self.send(&lablet, ToLablet::Start(cell_ref(id, &epoch)));
        }
    }

    /// Grants nothing anew from here on.
    fn doubt(&mut self, now: Timestamp, id: ExecutionId, reason: &str) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        if exec.ending() {
            // It ends, and nothing is granted anew anyway.
            return;
        }
        exec.doubtful = true;
        exec.reason = reason.to_owned();
        let lost = exec.give_up_replacement().unwrap_or_default();
        exec.note_unheard(reason);
        self.persist(id, FactKind::Lost { lablet: None, instances: lost, reason: reason.to_owned() });
        self.settle(now, id);
    }

    /// Counts instances of a started execution as lost that no lablet holds: the one before had lost them, or had their
    /// receipts and was lost with these.
    pub(super) fn lose_unheld(&mut self, id: ExecutionId) {
        let taken_over = |e: &&mut Exec| e.taken_over && e.started() && !e.recalling();
        let Some(exec) = self.executions.get_mut(&id).filter(taken_over) else { return };
        let all = exec.run.run.groups.iter().flat_map(|(name, g)| InstanceId::range(name, 0, g.count));
        let unheld: Vec<InstanceId> = all
            .filter(|i| !exec.cells.values().any(|c| c.holds(i)))
            .filter(|i| !exec.received.contains_key(i) && !exec.lost.contains_key(i))
            .collect();
        if unheld.is_empty() {
            return;
        }
        let reason = "nobody held it after a takeover";
        exec.doubtful = true;
        exec.lost.extend(unheld.iter().map(|i| (i.clone(), reason.to_owned())));
        exec.give_up_replacement();
        self.persist(id, FactKind::Lost { lablet: None, instances: unheld, reason: reason.into() });
    }
}
