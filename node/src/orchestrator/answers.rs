//! What the driver answers to who asks about executions and lablets.

use std::collections::BTreeMap;

use iptl_dag::model::ExecutionId;
use iptl_scheduler::Input;
use iptl_scheduler::orchestrator::ExecutionView;
use iptl_sync::RunSync;
use iptl_wire::control::{Failure, FailureKind, Top, TopBarrier};
use iptl_wire::session::ToLablet;

use super::driver::{Driver, Promised, send};
use super::records::RunRecord;
use super::registry::Active;
use super::sync::{MAX_MISSING, missing};
use super::{Ask, Cancelled, DryRun, LabletRow, ReadLog, RunRow, locate, top};
use crate::clock;

impl Driver {
    pub(super) fn answer(&mut self, ask: Ask) {
        if self.leaving.as_ref().is_some_and(|leaving| leaving.is_frozen)
            && matches!(ask, Ask::Submit { .. } | Ask::Cancel { .. })
        {
            // The heir is asked instead: whoever asks hears that this one does not lead.
            return;
        }
        match ask {
            Ask::Submit { execution, run, by, priority, answer } => {
                let id = execution.id();
                self.registry.begin(id, run.cid, &run.run, by.clone(), clock::wall().0);
                self.input(Input::Submit { execution, run: *run, by, priority });
                self.promised.push(Promised::Submitted(answer, id));
            }
            Ask::DryRun { run, answer } => {
                let placed = self.core.dry_run(&run.run);
                let names = self.lablets().into_iter().map(|l| (l.peer, l.inventory.name)).collect();
                let _gone = answer.send(DryRun { placed, names });
            }
            Ask::Watch { name, answer } => {
                let found = self.registry.find(&name);
                let watching = found.map(|id| (id, self.registry.watch(&id).expect("it was just found")));
                let _gone = answer.send(watching);
            }
            Ask::Follow { id, answer } => {
                let output = self.registry.active.get(&id).map(|active| active.output.subscribe());
                if let Some(active) = self.registry.active.get(&id)
                    && self.following.insert(id)
                {
                    for lablet in active.book.lablets().cloned().collect::<Vec<_>>() {
                        send(&mut self.sessions, &lablet, ToLablet::Follow(id, true));
                    }
                }
                let _gone = answer.send(output);
            }
            Ask::Top { name, answer } => {
                let found = self.registry.find(&name).and_then(|id| self.top(id));
                let _gone = answer.send(found);
            }
            Ask::Locate { name, instance, by, answer } => {
                let _gone = answer.send(locate::lablet_of(&self.registry, &self.core, &name, &instance, by.as_ref()));
            }
            Ask::Cancel { name, by, answer } => {
                let found = self.registry.find(&name).map(|execution| {
                    let over = self.registry.ended(&execution).is_some();
                    if !over {
                        self.input(Input::Cancel { execution, by });
                    }
                    Cancelled { execution, over }
                });
                self.promised.push(Promised::Cancelled(answer, found));
            }
            Ask::Audit { name, answer } => {
                let found = self.registry.find(&name).and_then(|id| {
                    let read = tokio::task::block_in_place(|| self.logs.read(&id));
                    let (blocks, tail) = read.map_err(|error| Failure {
                        kind: FailureKind::Broken,
                        code: "log.unreadable".to_owned(),
                        message: error.to_string(),
                        help: "look at the orchestrator's disk with `iptl doctor`".to_owned(),
                    })?;
                    Ok(ReadLog { id, writers: self.parts.members.writers(), blocks, tail })
                });
                let _gone = answer.send(found);
            }
            Ask::Find { name, answer } => {
                let found = self.registry.find(&name).map(|id| (id, self.registry.told(&id).cloned()));
                let _gone = answer.send(found);
            }
            Ask::Runs { answer } => {
                let _gone = answer.send(self.runs());
            }
            Ask::Lablets { answer } => {
                let rows = self.lablets();
                let _gone = answer.send(rows);
            }
            Ask::HandOver { to, answer } => self.leave_to(to, answer),
            Ask::Followers { answer } => {
                let mut rows = self.followers.rows();
                let covered = self.core.leases_outlast_a_takeover();
                rows.iter_mut().for_each(|row| row.in_contact &= covered);
                let _gone = answer.send(rows);
            }
        }
    }

    /// Says what an execution does now, and has its lablets say what it uses.
    fn top(&mut self, id: ExecutionId) -> Result<Top, Failure> {
        let Some(active) = self.registry.active.get(&id) else {
            return Err(Failure {
                kind: FailureKind::NotFound,
                code: "execution.over".to_owned(),
                message: format!("{} is over", id.alias()),
                help: format!("see its result: `iptl show {}`", id.alias()),
            });
        };
        let sync = self.registry.active.get(&id).and_then(|active| active.book.sync());
        let barriers = sync.map(RunSync::waiting).unwrap_or_default();
        let barriers = barriers.into_iter().map(|barrier| TopBarrier {
            missing: barrier.missing.iter().flat_map(missing).take(MAX_MISSING).collect(),
            state: barrier.state,
            count: barrier.count,
            target: barrier.target,
        });
        let views = self.core.executions();
        let phase = views.into_iter().find(|view| view.execution == id).map(|view| view.phase);
        let cells = self.core.cells(&id);
        let names = self.core.inventory().into_iter().map(|(peer, inventory)| (peer, inventory.name)).collect();
        let top = top::of(id, active, phase, barriers.collect(), &cells.keys().cloned().collect(), &names);
        for lablet in cells.into_keys() {
            send(&mut self.sessions, &lablet, ToLablet::Gauge(id));
        }
        Ok(top)
    }

    /// Returns the lablets with what they have free after all that was promised.
    fn lablets(&self) -> Vec<LabletRow> {
        let free = self.core.inventory();
        self.core
            .lablets(clock::now())
            .into_iter()
            .map(|view| LabletRow {
                inventory: free.get(&view.peer).cloned().unwrap_or(view.inventory),
                version: self.versions.get(&view.peer).cloned().unwrap_or_default(),
                ready: view.online,
                unknown: view.unknown,
                peer: view.peer,
            })
            .collect()
    }

    fn runs(&self) -> Vec<RunRow> {
        let views: BTreeMap<_, _> = self.core.executions().into_iter().map(|view| (view.execution, view)).collect();
        let ended = self.registry.records().into_iter().map(ended_row);
        let active = self.registry.listed().map(|(id, active)| active_row(*id, active, views.get(id)));
        ended.chain(active).collect()
    }
}

/// Of an execution of which another end counts than the one that is here, that one is waited for.
fn ended_row(record: &RunRecord) -> RunRow {
    let Some(term) = record.later.as_ref().map(|later| later.term.as_ref()) else {
        return RunRow::Ended(Box::new(record.clone()));
    };
    let who = term.map_or_else(|| "another orchestrator".to_owned(), |term| term.peer.short());
    let instances = record.result().map_or(0, |(_, _, counts)| counts.ok + counts.failed + counts.lost);
    RunRow::Active {
        id: record.execution,
        run: record.run,
        plan: record.plan,
        case: record.case.clone(),
        submitted_ms: record.submitted_ms,
        instances,
        ended: instances,
        phase: format!("sealing: waits for the result that {who} sealed in a later term"),
    }
}

fn active_row(id: ExecutionId, active: &Active, view: Option<&ExecutionView>) -> RunRow {
    RunRow::Active {
        id,
        run: Some(active.run),
        plan: Some(active.plan),
        case: Some(active.case.clone()),
        submitted_ms: active.submitted_ms,
        instances: active.instances,
        ended: view.map_or(0, |view| view.ended),
        phase: view.map_or_else(|| "submitted".to_owned(), |view| view.phase.clone()),
    }
}
