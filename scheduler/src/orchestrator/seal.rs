//! The end: the result is ordered, made, and named by the last fact.

use iptl_dag::model::{Distortion, ExecutionId, FactKind};
use iptl_wire::Timestamp;
use iptl_wire::control::{Event, Failure, FailureKind};
use iptl_wire::takeover::Finished;

use super::api::{AssembledResult, AssemblyOrder};
use super::state::{Pull, Stage};
use super::{Effect, Orchestrator, ms};

/// Attempts to make a result that will hardly come out otherwise, before the execution ends without one.
const MAX_ASSEMBLY_TRIES: u32 = 5;

impl Orchestrator {
    pub(super) fn order_assembly(&mut self, now: Timestamp, id: ExecutionId) {
        let wall_ms = self.wall_ms(now);
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let tries = match exec.stage {
            Stage::Assembling { tries, .. } => tries + 1,
            Stage::Waiting
            | Stage::Offered { .. }
            | Stage::Granted
            | Stage::Running { .. }
            | Stage::Stopping { .. } => 1,
        };
        exec.stage = Stage::Assembling { tries, retry_at: None };
        if tries == 1 {
            exec.reason = String::new();
        }
        if exec.ended_ms == 0 {
            exec.ended_ms = wall_ms;
        }
        let fresh: Vec<_> = exec.records.keys().filter(|l| self.lablets.contains_key(*l)).cloned().collect();
        for lablet in fresh {
            let record = self.record_of(&lablet);
            if let Some(exec) = self.executions.get_mut(&id) {
                exec.records.insert(lablet, record);
            }
        }
        let Some(exec) = self.executions.get(&id) else { return };
        let shards = exec
            .all_cells()
            .flat_map(|(lablet, cell)| {
                cell.shards.iter().filter(|(_, s)| s.state == Pull::Kept).map(|(cid, _)| (lablet.clone(), *cid))
            })
            .collect();
        let order = AssemblyOrder {
            execution: id,
            node: exec.node.clone(),
            run: exec.run.clone(),
            shards,
            accepted: exec.received.clone(),
            missing: exec.lost.clone(),
            placements: exec.placements.clone(),
            submitted_ms: exec.submitted_ms,
            started_ms: exec.started_ms,
            ended_ms: exec.ended_ms,
            lablets: exec.records.values().cloned().collect(),
            distortions: exec
                .distortions
                .iter()
                .map(|(place, what)| Distortion { place: place.clone(), what: what.clone() })
                .collect(),
            cancelled: exec.cancelled.clone(),
            timed_out: exec.timed_out,
            ended_early: exec.ended_early.clone(),
            cannot_start: exec.cannot_start.clone(),
            attempts: exec.attempts(),
            term: self.config.term.clone(),
        };
        self.effects.push_back(Effect::Assemble(Box::new(order)));
    }

    pub(super) fn assembled(&mut self, now: Timestamp, id: ExecutionId, result: AssembledResult) {
        let Some(exec) = self.executions.get(&id) else { return };
        if !matches!(exec.stage, Stage::Assembling { .. }) {
            return;
        }
        let event = Event::Finished {
            run: exec.run.cid,
            execution: id.0,
            result: result.cid,
            verdict: result.verdict,
            counts: result.counts,
            thresholds: result.thresholds,
            inconclusive: result.inconclusive,
            failures: result.failures,
            notes: result.notes,
            after_ms: now.since(exec.submitted_at).as_millis() as u64,
            failure: exec.cannot_start.clone().map(|why| Box::new(why.into())),
        };
        let term = self.config.term.clone();
        self.persist(id, FactKind::Sealed { result: result.cid, term: term.clone() });
        self.notify(id, event);
        self.finish(Finished { execution: id, result: Some(result.cid), term });
    }

    /// Tries again, more and more rarely: what the lab did is not thrown away since its disk is full.
    pub(super) fn assemble_failed(&mut self, now: Timestamp, id: ExecutionId, reason: String, may_pass: bool) {
        let Some(exec) = self.executions.get_mut(&id) else { return };
        let Stage::Assembling { tries, retry_at } = &mut exec.stage else { return };
        if may_pass || *tries < MAX_ASSEMBLY_TRIES {
            let doublings = tries.saturating_sub(1).min(16);
            let pause = self.config.retry_ms.saturating_mul(1 << doublings).min(self.config.max_backoff_ms);
            *retry_at = Some(now.after(ms(pause)));
            exec.reason = reason;
            return;
        }
        let failure = Failure {
            kind: FailureKind::Broken,
            code: "result.not-written".into(),
            message: format!("the result could not be written: {reason}"),
            help: "look at the orchestrator's disk with `iptl doctor`".into(),
        };
        self.fail(id, failure);
    }

    pub(super) fn retry_assembly(&mut self, now: Timestamp, id: ExecutionId) {
        let due = self
            .executions
            .get(&id)
            .is_some_and(|e| matches!(e.stage, Stage::Assembling { retry_at: Some(at), .. } if at <= now));
        if due {
            self.order_assembly(now, id);
        }
    }
}
