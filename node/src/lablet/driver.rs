//! The task that owns the core: what the orchestrator and the cells say goes in, what is to be done comes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::BlobStore;
use iptl_dag::model::{Assignment, ExecutionId, Exit, InstanceId, Network, Run, Signed, Usage, Way, WorkloadKind};
use iptl_dag::{Cid, PeerId};
use iptl_labnet::DirectoryError;
use iptl_runner::files::LeftFiles;
use iptl_runner::{CellControl, Ended, PreparedCell, Runners};
use iptl_scheduler::{Lablet, LabletConfig, LabletEffect, LabletInput};
use iptl_trust::Keypair;
use iptl_wire::Verified;
use iptl_wire::control::Failure;
use iptl_wire::exec::ExecOrder;
use iptl_wire::offer::{self, MAX_OFFER_SIZE, Offer};
use iptl_wire::session::{
    CellFetch, CellPhase, CellRef, CellStatus, Grant, Hello, Inventory, MAX_FETCHES, MAX_HOLDS, Slots, ToLablet,
    ToOrchestrator,
};
use iptl_wire::takeover::{Claim, MAX_CLAIM_SIZE, Orchestrators};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::adopt::{self, Found};
use super::artifacts::Artifacts;
use super::cell::{CellNote, CellTask, Routes};
use super::exec::{self, Permit};
use super::interventions::Interventions;
use super::journal::Journal;
use super::lease::LeaseFile;
use super::prepare::{Prepared, Preparer, scratch_path};
use super::receipts::Sealer;
use super::session::SessionKeeper;
use super::ways;
use super::{Command, LabletHandle, LabletStatus};
use crate::carrier::Carrier;
use crate::clock;
use crate::fetch::Fetcher;
use crate::home::{Config, Home, HomeError, Membership};
use crate::keeper::{Holder, Keeper};
use crate::links::Links;
use crate::members::Members;
use crate::probe::Prober;

/// Commands that wait for the driver.
const COMMAND_QUEUE: usize = 4096;

/// Commands that are taken together.
const MAX_COMMANDS_AT_ONCE: usize = 256;

/// Notes that wait for one cell.
const NOTE_QUEUE: usize = 1024;

/// Time between two looks at what the machine has.
const INVENTORY_TICK: Duration = Duration::from_secs(10);

/// What a lablet is made of.
pub(crate) struct Parts {
    pub(crate) home: Home,
    pub(crate) config: Config,
    pub(crate) key: Arc<Keypair>,
    pub(crate) membership: Membership,
    pub(crate) links: Links,
    pub(crate) members: Members,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) fetcher: Fetcher,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) runners: Runners,
    /// Offers of an orchestrator on the same node.
    pub(crate) offers: broadcast::Sender<Signed<Offer>>,
    pub(crate) stop: CancellationToken,
    /// It stops to be started again: what can outlive it runs on.
    pub(crate) leave: CancellationToken,
    /// Why there is no session; empty where there is one.
    pub(crate) waiting: Arc<watch::Sender<String>>,
}

/// Starts the lablet of a node.
pub(crate) async fn start(parts: Parts) -> Result<LabletHandle, HomeError> {
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let (uplink, uplink_seen) = watch::channel(None);
    let mut boot = [0; 16];
    getrandom::fill(&mut boot).expect("the kernel gives random bytes");
    let journal = Journal::open(parts.home.clone())?;
    let artifacts = Artifacts::new(parts.home.clone(), parts.store.clone(), parts.runners.clone());
    for (grant, shards) in journal.held() {
        for root in shards.into_iter().chain([grant.run]) {
            parts.keeper.hold(grant.cell.execution, Holder::Lablet, root);
        }
    }
    let found = adopt::adopt(&parts, &journal, &preparer(&parts, &artifacts)).await;
    let carrier = Carrier::start(parts.links.clone()).await;
    hear_offers(&parts, commands.clone()).await;
    let keeper = SessionKeeper {
        links: parts.links.clone(),
        lab: parts.membership.lab().clone(),
        members: parts.members.clone(),
        lablet: commands.clone(),
        stop: parts.stop.clone(),
        state: parts.waiting.clone(),
    };
    let core = Lablet::new(LabletConfig::new(parts.links.peer().clone(), parts.membership.lab().clone()));
    let lease = LeaseFile::new(&parts.home);
    let mut driver = Driver {
        core,
        lease,
        artifacts,
        journal,
        carrier,
        uplink,
        uplink_seen,
        boot,
        cells: BTreeMap::new(),
        granted: BTreeMap::new(),
        draining: None,
        followed: BTreeSet::new(),
        commands: commands.clone(),
        ready: VecDeque::new(),
        has_news: false,
        parts,
    };
    driver.input(LabletInput::Wall { unix_us: clock::wall_us() });
    driver.take_inventory().await;
    let (promised, cells) = driver.journal.restore();
    let (promised_term, finished) = driver.journal.leader();
    driver.input(LabletInput::Restore { promised, cells, promised_term, finished });
    for cell in found {
        driver.adopt(cell);
    }
    driver.act();
    tokio::spawn(keeper.run());
    let (links, members, stop) = (driver.parts.links.clone(), driver.parts.members.clone(), driver.parts.stop.clone());
    let prober = Prober {
        links: links.clone(),
        members: members.clone(),
        carrier: driver.carrier.clone(),
        name: driver.parts.config.name.clone(),
        stop: stop.clone(),
    };
    tokio::spawn(prober.serve());
    tokio::spawn(exec::serve(links, members, commands.clone(), stop));
    tokio::spawn(driver.run(queue));
    Ok(LabletHandle { commands })
}

/// Executions of which it is remembered that somebody follows them: more than a lablet has cells.
const MAX_FOLLOWED: usize = 1024;

/// A cell that the lablet holds.
struct Cell {
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

struct Driver {
    parts: Parts,
    core: Lablet,
    lease: LeaseFile,
    artifacts: Artifacts,
    journal: Journal,
    carrier: Carrier,
    uplink: watch::Sender<Option<mpsc::Sender<ToOrchestrator>>>,
    uplink_seen: watch::Receiver<Option<mpsc::Sender<ToOrchestrator>>>,
    boot: [u8; 16],
    cells: BTreeMap<CellRef, Cell>,
    /// The grant that the core is deciding on.
    granted: BTreeMap<CellRef, Grant>,
    /// Workloads of cells that were prepared in this life, the latest first.
    ready: VecDeque<Cid>,
    /// They are not said yet.
    has_news: bool,
    draining: Option<oneshot::Sender<()>>,
    /// Executions whose output somebody follows, also before their cell is here and can be told.
    followed: BTreeSet<ExecutionId>,
    commands: mpsc::Sender<Command>,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let stop = self.parts.stop.clone();
        let mut inventory = tokio::time::interval(INVENTORY_TICK);
        inventory.reset();
        let mut learned = self.parts.members.learned();
        self.hear_claim();
        let mut batch = Vec::with_capacity(MAX_COMMANDS_AT_ONCE);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                taken = queue.recv_many(&mut batch, MAX_COMMANDS_AT_ONCE) => if taken == 0 { break },
                () = clock::sleep_until(self.core.poll_timeout()) => self.input(LabletInput::Timeout),
                _ = learned.changed() => self.hear_claim(),
                _ = inventory.tick() => {
                    self.take_inventory().await;
                    self.input(LabletInput::Wall { unix_us: clock::wall_us() });
                }
            }
            for command in batch.drain(..) {
                self.command(command);
            }
            if std::mem::take(&mut self.has_news) {
                self.take_inventory().await;
            }
            self.act();
            if self.cells.is_empty()
                && let Some(answer) = self.draining.take()
            {
                let _gone = answer.send(());
            }
        }
        match self.parts.leave.is_cancelled() {
            true => self.parts.runners.leave().await,
            false => self.parts.runners.shutdown().await,
        }
    }

    fn input(&mut self, input: LabletInput) {
        self.core.handle(clock::now(), input);
    }

    /// Hears of the highest term that anybody claimed, whoever told this node of it.
    fn hear_claim(&mut self) {
        if let Some(claim) = self.parts.members.claim() {
            self.input(LabletInput::Claim(Verified::vouch(claim)));
            self.act();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Up { orchestrator, hello_at, mut welcome, out } => {
                welcome.offers.retain(|offer| iptl_trust::verify_by(offer, &orchestrator).is_ok());
                self.uplink.send_replace(Some(out));
                tracing::info!(%orchestrator, "the lab is online");
                self.input(LabletInput::SessionUp { orchestrator, hello_at, welcome: Verified::vouch(welcome) });
            }
            Command::Hello { answer } => {
                let _gone = answer.send(Box::new(self.hello()));
            }
            Command::Down { orchestrator } => {
                self.uplink.send_replace(None);
                self.input(LabletInput::SessionDown { orchestrator });
            }
            Command::Message { from, message } => self.message(from, message),
            Command::Sync { execution, down } => {
                if let Some(cell) = self.cell_of(&execution)
                    && let Some(notes) = &cell.notes
                    && notes.try_send(CellNote::Sync(down)).is_err()
                {
                    // What is lost here is asked for again when the session is new.
                    tracing::warn!(execution = %execution.alias(), "a cell takes sync too slowly");
                }
            }
            Command::Offer(signed) => {
                // What one signed that leads no longer is passed over by the core.
                match iptl_trust::verify(&signed) {
                    Ok(())
                        if !self.parts.members.is_orchestrator(&signed.signer)
                            || signed.signer != signed.body.epoch.peer =>
                    {
                        tracing::warn!(signer = %signed.signer, "refused an offer of somebody who is no orchestrator");
                    }
                    Ok(()) => self.input(LabletInput::Offer(Verified::vouch(signed.body))),
                    Err(error) => tracing::warn!(signer = %signed.signer, %error, "refused an offer"),
                }
            }
            Command::Prepared { cell, run, prepared, ways } => self.prepared(cell, run, prepared, ways),
            Command::PrepareFailed { cell, reason, unfit } => {
                tracing::warn!(execution = %cell.execution.alias(), reason, "cannot prepare a cell");
                if let Some(held) = self.cells.get_mut(&cell) {
                    held.preparing = None;
                }
                self.input(LabletInput::PrepareFailed { cell, reason, unfit });
            }
            Command::Ended { cell, mut ended } => {
                let Some(held) = self.cells.get_mut(&cell) else { return };
                // A runner that took a cell over tells again what an earlier life of the lablet heard.
                ended.retain(|(id, _)| !held.sealed.contains(id));
                let instances: Vec<_> = ended.iter().map(|(id, _)| id.clone()).collect();
                held.ended.extend(ended);
                for instance in instances {
                    self.input(LabletInput::InstanceEnded { cell: cell.clone(), instance });
                }
            }
            Command::CellOver { cell } => {
                if let Some(held) = self.cells.get_mut(&cell) {
                    held.control = None;
                }
            }
            Command::Sealed { cell, shards } => self.sealed(cell, shards),
            Command::SealFailed { cell, reason } => {
                tracing::error!(execution = %cell.execution.alias(), reason, "cannot write receipts");
                if let Some(held) = self.cells.get_mut(&cell) {
                    let kept = std::mem::take(&mut held.sealing);
                    held.ended.extend(kept);
                }
                self.input(LabletInput::SealFailed { cell, reason });
            }
            Command::Exec { order, answer } => {
                let _gone = answer.send(self.permit(&order));
            }
            Command::Status { answer } => {
                let _gone = answer.send(self.status());
            }
            Command::Drain { now, answer } => {
                self.draining = Some(answer);
                self.input(LabletInput::Drain { now });
            }
        }
    }

    fn send(&mut self, message: ToOrchestrator) {
        let outbox = self.uplink.borrow().clone();
        if let Some(outbox) = outbox
            && outbox.try_send(message).is_err()
        {
            // The session's writer is stuck or gone; the session ends and comes back with everything in hello.
            self.uplink.send_replace(None);
        }
    }

    fn message(&mut self, from: PeerId, message: ToLablet) {
        match &message {
            ToLablet::Grant(signed) => {
                if let Err(error) = iptl_trust::verify_by(signed, &from) {
                    tracing::warn!(%from, %error, "refused a grant");
                    return;
                }
                if signed.body.lablet != *self.parts.links.peer() {
                    tracing::warn!(%from, "refused a grant for another lablet");
                    return;
                }
                self.granted = BTreeMap::from([(signed.body.cell.clone(), signed.body.clone())]);
            }
            ToLablet::Offer(signed) => {
                if let Err(error) = iptl_trust::verify_by(signed, &from) {
                    tracing::warn!(%from, %error, "refused an offer");
                    return;
                }
            }
            ToLablet::Follow(execution, on) => {
                if !*on {
                    self.followed.remove(execution);
                } else if self.followed.len() < MAX_FOLLOWED {
                    self.followed.insert(*execution);
                }
                if let Some(notes) = self.cell_of(execution).and_then(|cell| cell.notes.as_ref()) {
                    let _busy = notes.try_send(CellNote::Follow(*on));
                }
            }
            ToLablet::Gauge(execution) => {
                if let Some(notes) = self.cell_of(execution).and_then(|cell| cell.notes.as_ref()) {
                    let _busy = notes.try_send(CellNote::Gauge);
                }
            }
            _ => {}
        }
        self.input(LabletInput::Message { from, message: Verified::vouch(message) });
    }

    fn act(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            self.carry_out(effect);
        }
        let leader = self.leader();
        if !self.cells.is_empty()
            && let Some(until) = self.core.leased_until(&leader)
        {
            self.lease.write(&leader, until);
        }
    }

    /// Returns who leads, as far as was promised.
    fn leader(&self) -> PeerId {
        let promised = self.core.promised_term().map(|claim| claim.body.term.peer.clone());
        promised.unwrap_or_else(|| self.parts.membership.orchestrator().clone())
    }

    fn hello(&self) -> Hello {
        let (inventory, cells) = (self.core.inventory(), self.core.cells());
        Hello {
            token: self.parts.membership.token.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.boot,
            inventory,
            cells,
            promised: self.core.promised_term().cloned(),
            finished: self.core.finished_executions(),
        }
    }

    /// What had to be durable is not: the lablet stops and comes back.
    fn stop_unwritten(&self, error: &HomeError, what: &str) {
        tracing::error!(%error, "cannot write {what} down; the lablet stops");
        self.parts.leave.cancel();
        self.parts.stop.cancel();
    }

    fn carry_out(&mut self, effect: LabletEffect) {
        match effect {
            LabletEffect::Send { to: _, mut message } => {
                if let ToOrchestrator::Heartbeat(heartbeat) = &mut message {
                    heartbeat.fetching = self.fetching(&heartbeat.cells);
                }
                self.send(message);
            }
            LabletEffect::Promise(record) => {
                let grant = self.granted.remove(&record.cell);
                if let Some(grant) = &grant {
                    self.parts.keeper.hold(record.cell.execution, Holder::Lablet, grant.run);
                }
                if let Err(error) = self.journal.promise(&record, grant) {
                    // Without the promise the grant must not be taken.
                    self.stop_unwritten(&error, "a promise");
                }
            }
            LabletEffect::PromiseTerm(claim) => {
                if let Err(error) = self.journal.promise_term(claim) {
                    self.stop_unwritten(&error, "the promise of a term");
                }
            }
            LabletEffect::Turn { to } => {
                // The session's keeper dials again, and says hello with what was promised.
                tracing::info!(orchestrator = %to, "another orchestrator leads the lab");
                self.uplink.send_replace(None);
            }
            LabletEffect::Tombstone { execution, result } => {
                if let Err(error) = self.journal.finish(execution, result) {
                    self.stop_unwritten(&error, "the end of an execution");
                }
            }
            LabletEffect::Prepare { cell, grant } => self.prepare(cell, *grant),
            LabletEffect::Directory { cell, directory } => {
                if let Some(notes) = self.cells.get(&cell).and_then(|held| held.notes.as_ref()) {
                    let _busy = notes.try_send(CellNote::Directory(Box::new(directory)));
                }
            }
            LabletEffect::Start { cell } => {
                if let Some(held) = self.cells.get(&cell) {
                    // What an owner, or a test, counts: an instance that is started is named here.
                    let ranges: Vec<String> = held.grant.assignments.iter().map(Assignment::to_string).collect();
                    tracing::info!(execution = %cell.execution, instances = ranges.join(" "), "starting instances");
                }
                if let Some(control) = self.cells.get(&cell).and_then(|held| held.control.clone()) {
                    tokio::spawn(async move { control.start().await });
                }
            }
            LabletEffect::Stop { cell, reason } => {
                let Some(held) = self.cells.get_mut(&cell) else { return };
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
            LabletEffect::Seal { cell } => self.seal(cell),
            LabletEffect::Forget { cell } => {
                self.followed.remove(&cell.execution);
                self.journal.forget(&cell);
                self.parts.keeper.release(&cell.execution, Holder::Lablet);
                if let Some(held) = self.cells.remove(&cell) {
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
            }
        }
    }

    /// Says how far cells are that are not started.
    fn fetching(&self, cells: &[CellStatus]) -> Vec<CellFetch> {
        let waiting = cells.iter().filter(|status| status.phase <= CellPhase::Prepared);
        let told = waiting.filter_map(|status| self.cells.get(&status.cell)?.fetched.borrow().clone());
        told.take(MAX_FETCHES).collect()
    }

    fn prepare(&mut self, cell: CellRef, grant: Grant) {
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

    fn prepared(&mut self, cell: CellRef, run: Box<Run>, prepared: PreparedCell, ways: Vec<Way>) {
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

    /// Goes on with a cell that outlived an earlier life of the lablet.
    fn adopt(&mut self, found: Found) {
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
        self.command(Command::Ended { cell, ended });
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
        let routes = Arc::new(Routes::new(&groups, &held.grant)?);
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

    /// Decides whether a command may be executed in an instance: the plan and the owner of this machine must allow it.
    fn permit(&self, order: &ExecOrder) -> Result<Permit, Failure> {
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

    fn seal(&mut self, cell: CellRef) {
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

    fn sealed(&mut self, cell: CellRef, shards: Vec<(Cid, u32)>) {
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

    fn status(&self) -> LabletStatus {
        let (inventory, cells) = (self.core.inventory(), self.core.cells());
        LabletStatus {
            online: self.uplink.borrow().is_some(),
            slots: inventory.slots,
            cells: cells.into_iter().map(|c| (c.cell.execution, c.running, c.ended)).collect(),
        }
    }

    fn cell_of(&self, execution: &ExecutionId) -> Option<&Cell> {
        self.cells.iter().rev().find(|(cell, _)| cell.execution == *execution).map(|(_, held)| held)
    }

    async fn take_inventory(&mut self) {
        let limits = self.parts.config.limits;
        let capacities: BTreeMap<_, _> = self.parts.runners.iter().map(|r| (r.kind(), r.capacity())).collect();
        let most = limits.instances.unwrap_or(u32::MAX);
        let slots = capacities.iter().map(|(kind, has)| (*kind, Slots::of(most.min(has.instances)))).collect();
        // All kinds take from one memory.
        let memory = capacities.values().map(|has| has.memory_bytes).max().unwrap_or(0);
        let memory = limits.memory_bytes.unwrap_or(u64::MAX).min(memory);
        let addrs = match self.parts.links.net() {
            Some(net) => net.addrs().await,
            None => Vec::new(),
        };
        let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        self.input(LabletInput::Inventory(Inventory {
            name: self.parts.config.name.clone(),
            labels: self.parts.config.labels.clone(),
            cpus,
            memory_bytes: total_memory(),
            free_memory_bytes: memory,
            slots,
            addrs,
            draining: false,
            holds: self.ready.iter().copied().collect(),
        }));
    }
}

fn preparer(parts: &Parts, artifacts: &Artifacts) -> Preparer {
    Preparer {
        lab: parts.membership.lab().clone(),
        artifacts: artifacts.clone(),
        fetcher: parts.fetcher.clone(),
        runners: parts.runners.clone(),
    }
}

/// Passes offers on that are heard by gossip or from an orchestrator on the same node.
async fn hear_offers(parts: &Parts, commands: mpsc::Sender<Command>) {
    let mut local = parts.offers.subscribe();
    let own = commands.clone();
    tokio::spawn(async move {
        loop {
            match local.recv().await {
                Ok(offer) => {
                    if own.send(Command::Offer(offer)).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    let Some(net) = parts.links.net() else { return };
    let (members, lab) = (parts.members.clone(), parts.membership.lab().clone());
    let validate = {
        let (members, lab) = (members.clone(), lab.clone());
        Arc::new(move |signer: &PeerId, data: &[u8]| judge(&members, &lab, signer, data))
    };
    match net.subscribe(&offer::topic(&lab), validate).await {
        Ok(mut heard) => {
            tokio::spawn(async move {
                while let Some(message) = heard.recv().await {
                    if let Ok(claim) = iptl_dag::decode::<Signed<Claim>>(&message.data) {
                        members.learn_orchestrators(Orchestrators { claim: Some(claim), seats: Vec::new() });
                    } else if let Ok(offer) = iptl_dag::decode::<Signed<Offer>>(&message.data)
                        && commands.send(Command::Offer(offer)).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
        Err(error) => tracing::error!(%error, "cannot hear offers by gossip"),
    }
}

/// Decides whether gossip is passed on, cheapest checks first.
fn judge(members: &Members, lab: &PeerId, signer: &PeerId, data: &[u8]) -> iptl_net::GossipVerdict {
    use iptl_net::GossipVerdict::{Accept, Ignore, Reject};
    if data.len() > MAX_OFFER_SIZE.max(MAX_CLAIM_SIZE) {
        return Reject;
    }
    let now = clock::wall();
    if let Ok(claim) = iptl_dag::codec::decode_canonical::<Signed<Claim>>(data) {
        // Whoever claims proves by its certificate that it may; it need not be known yet.
        let holds = data.len() <= MAX_CLAIM_SIZE && claim.signer == *signer;
        return match holds && iptl_trust::check_claim(&claim, lab, now).is_ok() {
            true if members.is_revoked(signer) => Reject,
            true => Accept,
            false => Reject,
        };
    }
    if data.len() > MAX_OFFER_SIZE || !members.is_orchestrator(signer) {
        return Reject;
    }
    match iptl_dag::codec::decode_canonical::<Signed<Offer>>(data) {
        Ok(offer) if offer.body.lab != *lab => Reject,
        Ok(offer) if offer.body.expires < now => Ignore,
        Ok(offer) if iptl_trust::verify_by(&offer, signer).is_ok() => Accept,
        Ok(_) | Err(_) => Reject,
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

pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn total_memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total())
}
