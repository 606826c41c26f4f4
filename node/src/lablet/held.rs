//! The cells that the lablet holds: prepared, let live or adopted, stopped, their instances sealed, and forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use iptl_dag::model::{Assignment, ExecutionId, Exit, InstanceId, Network, Run, Usage, Way, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_labnet::DirectoryError;
use iptl_runner::files::LeftFiles;
use iptl_runner::{CellControl, Ended, PreparedCell};
use iptl_scheduler::LabletInput;
use iptl_wire::control::Failure;
use iptl_wire::exec::ExecOrder;
use iptl_wire::session::{
    CellFetch, CellPhase, CellRef, CellStatus, Directory, Grant, MAX_FETCHES, MAX_HOLDS, ToOrchestrator,
};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::Command;
use super::adopt::{self, Found};
use super::artifacts::Artifacts;
use super::cell::{CellNote, CellTask, Routes};
use super::driver::{Driver, Parts, describe};
use super::exec::{self, Permit};
use super::interventions::Interventions;
use super::prepare::{Prepared, Preparer, scratch_path};
use super::receipts::Sealer;
use super::ways;
use crate::clock;
use crate::home::Home;
use crate::keeper::Holder;

/// Notes that wait for one cell.
const NOTE_QUEUE: usize = 1024;

/// A cell that the lablet holds.
pub(super) struct Cell {
    grant: Grant,
    run: Option<Box<Run>>,
    control: Option<Arc<dyn CellControl>>,
    notes: Option<mpsc::Sender<CellNote>>,
    preparing: Option<AbortHandle>,
    /// How much of what it needs has come; none where it was taken over.
    fetched: watch::Receiver<Option<CellFetch>>,
    /// Commands that people executed in its instances.
    interventions: Interventions,
    /// Instances that have a receipt from an earlier life of the lablet, in which the cell was started.
    sealed: BTreeSet<InstanceId>,
    /// Instances that ended and have no receipt yet.
    ended: Vec<(InstanceId, Ended)>,
    /// Instances that are being sealed, kept until the receipts are in the store.
    sealing: Vec<(InstanceId, Ended)>,
}

impl Cell {
    fn new(home: &Home, grant: Grant) -> Cell {
        Cell {
            interventions: Interventions::of_cell(&scratch_path(home, &grant)),
            grant,
            run: None,
            control: None,
            notes: None,
            preparing: None,
            fetched: watch::channel(None).1,
            sealed: BTreeSet::new(),
            ended: Vec::new(),
            sealing: Vec::new(),
        }
    }
}

impl Driver {
    /// Says how far cells are that are not started.
    pub(super) fn fetching(&self, cells: &[CellStatus]) -> Vec<CellFetch> {
        let waiting = cells.iter().filter(|status| status.phase <= CellPhase::Prepared);
        let told = waiting.filter_map(|status| self.cells.get(&status.cell)?.fetched.borrow().clone());
        told.take(MAX_FETCHES).collect()
    }

    pub(super) fn prepare(&mut self, cell: CellRef, grant: Grant) {
        let preparer = preparer(&self.parts, &self.artifacts);
        // Who granted it has all of it; where that one dies meanwhile, those who followed it have it too.
        let mut orchestrators = self.parts.members.candidates();
        orchestrators.sort_by_key(|(peer, _)| *peer != grant.cell.epoch.peer);
        let commands = self.commands.clone();
        let (name, job, carrier) = (cell.clone(), grant.clone(), self.carrier.clone());
        let (told, fetched) = watch::channel(None);
        let task = tokio::spawn(async move {
            let command = match preparer.prepare(orchestrators, &job, told).await {
                Ok(Prepared { run, cell: prepared, asked }) => {
                    let addrs = |peer: &PeerId| job.roster.get(&peer.to_string()).cloned().unwrap_or_default();
                    let asked = asked.into_iter().map(|(peer, asked)| (peer.clone(), addrs(&peer), asked)).collect();
                    let ways = ways::measure(&carrier, asked).await;
                    Command::Prepared { cell: name, run: Box::new(run), prepared, ways }
                }
                Err(error) => {
                    Command::PrepareFailed { cell: name, reason: describe(&error), unfit: error.lies_in_the_workload() }
                }
            };
            let _gone = commands.send(command).await;
        });
        let held = Cell { preparing: Some(task.abort_handle()), fetched, ..Cell::new(&self.parts.home, grant) };
        self.cells.insert(cell, held);
    }

    pub(super) fn prepared(&mut self, cell: CellRef, run: Box<Run>, prepared: PreparedCell, ways: Vec<Way>) {
        let grant = self.cells.get(&cell).map(|held| held.grant.assignments.as_slice()).unwrap_or_default();
        let groups = grant.iter().filter_map(|assignment| run.groups.get(&assignment.group));
        let used: BTreeSet<Cid> = groups.map(|group| group.workload).collect();
        match self.run_cell(&cell, run, prepared, BTreeSet::new()) {
            Ok(()) => {
                self.ready.retain(|held| !used.contains(held));
                used.into_iter().for_each(|workload| self.ready.push_front(workload));
                self.ready.truncate(MAX_HOLDS);
                self.has_news = true;
                if !ways.is_empty() {
                    // Before it is said to be prepared: who decides on the start is to know.
                    self.send(ToOrchestrator::Ways(cell.clone(), ways));
                }
                self.input(LabletInput::Prepared { cell });
            }
            Err(error) => {
                self.input(LabletInput::PrepareFailed { cell, reason: error.to_string(), unfit: true });
            }
        }
    }

    pub(super) fn prepare_failed(&mut self, cell: CellRef, reason: String, unfit: bool) {
        tracing::warn!(execution = %cell.execution.alias(), reason, "cannot prepare a cell");
        if let Some(held) = self.cells.get_mut(&cell) {
            held.preparing = None;
        }
        self.input(LabletInput::PrepareFailed { cell, reason, unfit });
    }

    /// Goes on with a cell that outlived an earlier life of the lablet.
    pub(super) fn adopt(&mut self, found: Found) {
        let Found { cell, grant, run, prepared, sealed, gone } = found;
        let leased_until = self.lease.read(&cell.epoch.peer).max(self.lease.read(&self.leader()));
        self.cells.insert(cell.clone(), Cell { sealed: sealed.clone(), ..Cell::new(&self.parts.home, grant) });
        if let Err(error) = self.run_cell(&cell, Box::new(run), prepared, gone.clone()) {
            // It was in order when the cell was prepared. Dropping the cell has stopped it.
            tracing::error!(%error, execution = %cell.execution.alias(), "a cell cannot be taken over");
            self.cells.remove(&cell);
            return;
        }
        self.input(LabletInput::Adopted { cell: cell.clone(), sealed, leased_until });
        let ended = gone.into_iter().map(|id| (id, died())).collect();
        self.ended(cell, ended);
    }

    /// Lets a cell that its runner has made live, where it was not forgotten meanwhile: then dropping it stops it.
    fn run_cell(
        &mut self,
        cell: &CellRef,
        run: Box<Run>,
        prepared: PreparedCell,
        gone: BTreeSet<InstanceId>,
    ) -> Result<(), DirectoryError> {
        let Some(held) = self.cells.get_mut(cell) else { return Ok(()) };
        let groups = run.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect();
        let routes = Arc::new(Routes::new(&groups, &held.grant.placement, held.grant.roster.clone())?);
        let control: Arc<dyn CellControl> = prepared.control.into();
        let (notes, queue) = mpsc::channel(NOTE_QUEUE);
        self.carrier.attach(cell.execution, routes.clone(), control.clone());
        if run.network != Network::Clean || run.kinds().contains_key(&WorkloadKind::Docker) {
            // Packets of this run are timed.
            for (peer, addrs) in routes.others(self.parts.links.peer()) {
                self.carrier.make_ready(&peer, &addrs);
            }
        }
        let task = CellTask {
            cell: cell.clone(),
            control: Some(control.clone()),
            events: prepared.events,
            notes: queue,
            uplink: self.uplink_seen.clone(),
            lablet: self.commands.clone(),
            carrier: self.carrier.clone(),
            routes,
            instances: held.grant.assignments.iter().flat_map(Assignment::instances).collect(),
            attempt: held.grant.attempt,
            memory: adopt::memory(&self.parts, &held.grant),
            gone,
        };
        tokio::spawn(task.run());
        if self.followed.contains(&cell.execution) {
            let _has_room = notes.try_send(CellNote::Follow(true));
        }
        held.run = Some(run);
        held.control = Some(control);
        held.notes = Some(notes);
        held.preparing = None;
        Ok(())
    }

    pub(super) fn tell_directory(&self, cell: &CellRef, directory: Directory) {
        if let Some(notes) = self.cells.get(cell).and_then(|held| held.notes.as_ref()) {
            let _busy = notes.try_send(CellNote::Directory(Box::new(directory)));
        }
    }

    pub(super) fn start_cell(&self, cell: &CellRef) {
        let Some(held) = self.cells.get(cell) else { return };
        // What an owner, or a test, counts: an instance that is started is named here.
        let ranges: Vec<String> = held.grant.assignments.iter().map(Assignment::to_string).collect();
        tracing::info!(execution = %cell.execution, instances = ranges.join(" "), "starting instances");
        if let Some(control) = held.control.clone() {
            tokio::spawn(async move { control.start().await });
        }
    }

    pub(super) fn stop_cell(&mut self, cell: &CellRef, reason: String) {
        let Some(held) = self.cells.get_mut(cell) else { return };
        if let Some(preparing) = held.preparing.take() {
            preparing.abort();
        }
        if let Some(control) = held.control.clone() {
            let notes = held.notes.clone();
            tokio::spawn(async move {
                if let Some(notes) = notes {
                    let _it_is_over = notes.send(CellNote::Stopping).await;
                }
                control.stop(reason).await;
            });
        }
    }

    pub(super) fn ended(&mut self, cell: CellRef, mut ended: Vec<(InstanceId, Ended)>) {
        let Some(held) = self.cells.get_mut(&cell) else { return };
        // A runner that took a cell over tells again what an earlier life of the lablet heard.
        ended.retain(|(id, _)| !held.sealed.contains(id));
        let instances: Vec<_> = ended.iter().map(|(id, _)| id.clone()).collect();
        held.ended.extend(ended);
        for instance in instances {
            self.input(LabletInput::InstanceEnded { cell: cell.clone(), instance });
        }
    }

    pub(super) fn cell_over(&mut self, cell: &CellRef) {
        if let Some(held) = self.cells.get_mut(cell) {
            held.control = None;
        }
    }

    /// Drops a cell, and removes its files.
    pub(super) fn forget_cell(&mut self, cell: &CellRef) {
        let Some(held) = self.cells.remove(cell) else { return };
        if let Some(preparing) = held.preparing {
            preparing.abort();
        }
        self.carrier.detach(&cell.execution);
        let scratch = scratch_path(&self.parts.home, &held.grant);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&scratch)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %scratch.display(), "cannot remove the files of a cell");
            }
        });
    }

    /// Decides whether a command may be executed in an instance: the plan and the owner of this machine must allow it.
    pub(super) fn permit(&self, order: &ExecOrder) -> Result<Permit, Failure> {
        let id = &order.instance;
        let not_running = || exec::not_running(format!("{id} does not run here"));
        let held = self.cell_of(&order.execution).filter(|held| held.grant.assignments.iter().any(|a| a.holds(id)));
        let held = held.ok_or_else(not_running)?;
        let group = held.run.as_ref().and_then(|run| run.groups.get(&id.group)).ok_or_else(not_running)?;
        if group.kind != WorkloadKind::Docker {
            return Err(exec::unsupported(format!(
                "{id} is a component: there are no processes to execute anything in"
            )));
        }
        if !group.container.as_ref().is_some_and(|container| container.exec) {
            let message = format!("the plan does not allow commands in the group {:?}", id.group);
            let help = "set `exec = true` in the group's `container` section and run the plan again";
            return Err(exec::not_allowed(message, help));
        }
        if !self.parts.config.docker.exec {
            let message = format!("the owner of {:?} does not allow commands in containers", self.parts.config.name);
            let help = "ask them to start its node again with `iptl up --allow-exec`";
            return Err(exec::not_allowed(message, help));
        }
        let control = held.control.clone().ok_or_else(not_running)?;
        Ok(Permit { control, interventions: held.interventions.clone() })
    }

    pub(super) fn seal(&mut self, cell: CellRef) {
        let sealer = Sealer {
            store: self.parts.store.clone(),
            key: self.parts.key.clone(),
            lablet: self.parts.links.peer().clone(),
            runners: self.parts.runners.clone(),
        };
        let (grant, run, interventions, ended) = match self.cells.get_mut(&cell) {
            Some(held) => {
                let ended = std::mem::take(&mut held.ended);
                held.sealing = ended.clone();
                (held.grant.clone(), held.run.clone(), held.interventions.clone(), ended)
            }
            // A cell from before a crash: its instances died with the lablet.
            None => match self.journal.dead(&cell) {
                Some((grant, instances)) => {
                    let ended = instances.into_iter().map(|id| (id, died())).collect();
                    let interventions = Interventions::of_cell(&scratch_path(&self.parts.home, &grant));
                    (grant, None, interventions, ended)
                }
                None => {
                    return self.input(LabletInput::SealFailed { cell, reason: "nothing is known of it".to_owned() });
                }
            },
        };
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let command = match sealer.seal(&grant, run.as_deref(), &interventions, ended).await {
                Ok(shards) => Command::Sealed { cell, shards },
                Err(error) => Command::SealFailed { cell, reason: describe(&error) },
            };
            let _gone = commands.send(command).await;
        });
    }

    pub(super) fn sealed(&mut self, cell: CellRef, shards: Vec<(Cid, u32)>) {
        for (shard, _) in &shards {
            self.parts.keeper.hold(cell.execution, Holder::Lablet, *shard);
        }
        if let Err(error) = self.journal.sealed(&cell, &shards) {
            tracing::error!(%error, "cannot write receipts down");
        }
        if let Some(held) = self.cells.get_mut(&cell) {
            held.sealing.clear();
        }
        let last = shards.len().saturating_sub(1);
        for (i, (shard, count)) in shards.into_iter().enumerate() {
            self.input(LabletInput::ShardSealed { cell: cell.clone(), shard, count, last: i == last });
        }
    }

    pub(super) fn seal_failed(&mut self, cell: CellRef, reason: String) {
        tracing::error!(execution = %cell.execution.alias(), reason, "cannot write receipts");
        if let Some(held) = self.cells.get_mut(&cell) {
            let kept = std::mem::take(&mut held.sealing);
            held.ended.extend(kept);
        }
        self.input(LabletInput::SealFailed { cell, reason });
    }

    /// Returns the way to the task of an execution's cell, where there is one.
    pub(super) fn notes_of(&self, execution: &ExecutionId) -> Option<&mpsc::Sender<CellNote>> {
        self.cell_of(execution)?.notes.as_ref()
    }

    fn cell_of(&self, execution: &ExecutionId) -> Option<&Cell> {
        self.cells.iter().rev().find(|(cell, _)| cell.execution == *execution).map(|(_, held)| held)
    }
}

pub(super) fn preparer(parts: &Parts, artifacts: &Artifacts) -> Preparer {
    Preparer {
        lab: parts.membership.lab().clone(),
        artifacts: artifacts.clone(),
        fetcher: parts.fetcher.clone(),
        runners: parts.runners.clone(),
        granted: parts.config.network.egress.clone(),
    }
}

/// What is said of an instance whose lablet died under it.
fn died() -> Ended {
    Ended {
        exit: Exit::Stopped { reason: "its lablet died".to_owned() },
        usage: Usage::default(),
        started_ms: 0,
        ended_ms: clock::wall().0,
        left: LeftFiles::default(),
        limits_met: Vec::new(),
        adopted: None,
        network: None,
    }
}
