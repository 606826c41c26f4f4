//! What facts and effects show: rules that hold for every orchestrator by itself, and points that schedules come to.

use iptl_dag::model::{Assignment, ExecutionId, Exit, FactKind};
use iptl_scheduler::Effect;
use iptl_wire::session::ToLablet;

use super::World;
use crate::takeover::Point;

impl World {
    /// An orchestrator carries out an effect: the facts that it needs are durable in its log.
    pub(super) fn check_effect(&mut self, o: usize, effect: &Effect) {
        let orch = &self.orchs[o];
        let (rule, holds) = match effect {
            Effect::SendGrant { to, grant } => {
                let log = orch.logs.get(&grant.cell.execution);
                let known = log.into_iter().flat_map(|log| log.iter()).any(|fact| {
                    fact.epoch == grant.cell.epoch
                        && matches!(&fact.kind, FactKind::Granted { lablet, .. } if lablet == to)
                });
                ("grant-fact", known)
            }
            Effect::Send { message: ToLablet::Start(cell), .. } => {
                ("start-fact", orch.has_fact(&cell.execution, |kind| *kind == FactKind::Started {}))
            }
            Effect::Send { to, message: ToLablet::Kept(cell, cid) } => {
                let received = |kind: &FactKind| matches!(kind, FactKind::Received { lablet, shard, .. } if lablet == to && shard == cid);
                ("kept-fact", orch.has_fact(&cell.execution, received))
            }
            Effect::Send { message: ToLablet::Finished(end), .. } => {
                let unknown = end.result.is_none() && !orch.logs.contains_key(&end.execution);
                ("end-fact", unknown || self.truth.is_end(end))
            }
            _ => return,
        };
        let name = orch.peer.short();
        self.truth.check(rule, holds, || format!("{name} does {effect:?} before its fact is durable"));
    }

    /// A fact is about to be in a log.
    pub(super) fn note_fact(&mut self, o: usize, id: &ExecutionId, kind: &FactKind) {
        let orch = &self.orchs[o];
        let taken = orch.has_fact(id, |kind| matches!(kind, FactKind::TakenOver { .. }));
        let started = orch.has_fact(id, |kind| *kind == FactKind::Started {});
        let succeeded = orch.term.as_ref().is_some_and(|term| term.counter > 1);
        let mut points = Vec::new();
        match kind {
            FactKind::TakenOver { .. } => {
                let alone = self.submissions.get(id).is_some_and(|s| s.run.run.placing.dedicated);
                if alone {
                    points.push(Point::WantsAlone);
                }
            }
            FactKind::Recovered { .. } => points.push(Point::GrantRecovered),
            FactKind::Granted { assignments, attempt, .. } => {
                if *attempt > 1 && taken {
                    points.push(Point::Replaced);
                }
                self.check_grant(o, id, assignments);
                if taken && self.was_halted(o, id, assignments, *attempt) {
                    points.push(Point::HaltedAgain);
                }
            }
            FactKind::Lost { lablet: None, reason, .. } if reason.contains("was not heard") => {
                points.push(Point::Doubted);
            }
            FactKind::Started {} if !orch.reconciled => points.push(Point::StartRecovered),
            FactKind::Received { shard, .. } => {
                let lost = |kind: &FactKind| match kind {
                    FactKind::Lost { instances, .. } => {
                        let receipts = orch.store.get(shard);
                        receipts.into_iter().flatten().any(|receipt| instances.contains(&receipt.instance))
                    }
                    _ => false,
                };
                if taken && orch.has_fact(id, lost) {
                    points.push(Point::LateReceipt);
                }
            }
            FactKind::Cancelled { .. } => {
                points.push(if started { Point::CancelledRunning } else { Point::CancelledEarly });
                if taken {
                    points.push(Point::CancelledTaken);
                }
            }
            FactKind::TimedOut {} if taken => points.push(Point::TimedOutTaken),
            FactKind::EndedEarly { .. } if succeeded => points.push(Point::FailedFast),
            FactKind::CannotStart(why) if why.code == "lab.not-started" => {
                points.push(Point::NotStarted);
            }
            _ => {}
        }
        for point in points {
            self.truth.at(point);
        }
    }

    /// Nothing that has finished is granted, nor anything of an execution that is to end.
    fn check_grant(&mut self, o: usize, id: &ExecutionId, assignments: &[Assignment]) {
        let orch = &self.orchs[o];
        let ends = |kind: &FactKind| {
            matches!(
                kind,
                FactKind::Cancelled { .. }
                    | FactKind::TimedOut {}
                    | FactKind::EndedEarly { .. }
                    | FactKind::CannotStart(_)
            )
        };
        let (name, is_to_end) = (orch.peer.short(), orch.has_fact(id, ends));
        self.truth.check("grants-at-end", !is_to_end, || format!("{name} grants {}, which is to end", id.alias()));
        let received = self.received(o, id);
        let again = received.into_iter().find(|instance| assignments.iter().any(|a| a.holds(instance)));
        self.truth.check("finished-again", again.is_none(), || {
            format!("{name} grants {again:?} of {}, which has finished", id.alias())
        });
    }

    /// Whether a lablet says that it stopped the attempt before.
    fn was_halted(&self, o: usize, id: &ExecutionId, assignments: &[Assignment], attempt: u32) -> bool {
        let orch = &self.orchs[o];
        orch.has_fact(id, |kind| match kind {
            FactKind::Received { shard, .. } => orch.store.get(shard).into_iter().flatten().any(|receipt| {
                matches!(receipt.exit, Exit::Stopped { .. })
                    && receipt.attempt + 1 == attempt
                    && assignments.iter().any(|a| a.holds(&receipt.instance))
            }),
            _ => false,
        })
    }
}
