//! The task that owns the core: what the orchestrator and the cells say goes in, what is to be done comes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::BlobStore;
use iptl_dag::model::{ExecutionId, Signed};
use iptl_dag::{Cid, PeerId};
use iptl_runner::Runners;
use iptl_scheduler::{Lablet, LabletConfig, LabletEffect, LabletInput};
use iptl_trust::Keypair;
use iptl_wire::Verified;
use iptl_wire::offer::Offer;
use iptl_wire::session::{CellRef, Grant, Hello, Inventory, Slots, ToLablet, ToOrchestrator};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::artifacts::Artifacts;
use super::cell::CellNote;
use super::held::{Cell, preparer};
use super::journal::Journal;
use super::lease::LeaseFile;
use super::session::SessionKeeper;
use super::{Command, LabletHandle, LabletStatus, adopt, exec, offers};
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
    /// Told whenever this node can be reached at other addresses.
    pub(crate) addrs_changed: watch::Receiver<()>,
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
    offers::hear(&parts, commands.clone()).await;
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

pub(super) struct Driver {
    pub(super) parts: Parts,
    core: Lablet,
    pub(super) lease: LeaseFile,
    pub(super) artifacts: Artifacts,
    pub(super) journal: Journal,
    pub(super) carrier: Carrier,
    uplink: watch::Sender<Option<mpsc::Sender<ToOrchestrator>>>,
    pub(super) uplink_seen: watch::Receiver<Option<mpsc::Sender<ToOrchestrator>>>,
    boot: [u8; 16],
    pub(super) cells: BTreeMap<CellRef, Cell>,
    /// The grant that the core is deciding on.
    granted: BTreeMap<CellRef, Grant>,
    /// Workloads of cells that were prepared in this life, the latest first.
    pub(super) ready: VecDeque<Cid>,
    /// They are not said yet.
    pub(super) has_news: bool,
    draining: Option<oneshot::Sender<()>>,
    /// Executions whose output somebody follows, also before their cell is here and can be told.
    pub(super) followed: BTreeSet<ExecutionId>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let stop = self.parts.stop.clone();
        let mut inventory = tokio::time::interval(INVENTORY_TICK);
        inventory.reset();
        let mut learned = self.parts.members.learned();
        let mut addrs_changed = self.parts.addrs_changed.clone();
        self.hear_claim();
        let mut batch = Vec::with_capacity(MAX_COMMANDS_AT_ONCE);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                taken = queue.recv_many(&mut batch, MAX_COMMANDS_AT_ONCE) => if taken == 0 { break },
                () = clock::sleep_until(self.core.poll_timeout()) => self.input(LabletInput::Timeout),
                _ = learned.changed() => self.hear_claim(),
                Ok(()) = addrs_changed.changed() => self.take_inventory().await,
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

    pub(super) fn input(&mut self, input: LabletInput) {
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
            Command::Up { orchestrator, hello_at, promised, mut welcome, out } => {
                welcome.offers.retain(|offer| iptl_trust::verify_by(offer, &orchestrator).is_ok());
                self.uplink.send_replace(Some(out));
                tracing::info!(%orchestrator, "the lab is online");
                let welcome = Verified::vouch(welcome);
                self.input(LabletInput::SessionUp { orchestrator, hello_at, promised, welcome });
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
                if let Some(notes) = self.notes_of(&execution)
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
            Command::PrepareFailed { cell, reason, unfit } => self.prepare_failed(cell, reason, unfit),
            Command::Ended { cell, ended } => self.ended(cell, ended),
            Command::CellOver { cell } => self.cell_over(&cell),
            Command::Sealed { cell, shards } => self.sealed(cell, shards),
            Command::SealFailed { cell, reason } => self.seal_failed(cell, reason),
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

    pub(super) fn send(&mut self, message: ToOrchestrator) {
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
                if let Some(notes) = self.notes_of(execution) {
                    let _busy = notes.try_send(CellNote::Follow(*on));
                }
            }
            ToLablet::Gauge(execution) => {
                if let Some(notes) = self.notes_of(execution) {
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
    pub(super) fn leader(&self) -> PeerId {
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
            LabletEffect::Tombstone(end) => {
                if let Err(error) = self.journal.finish(end) {
                    self.stop_unwritten(&error, "the end of an execution");
                }
            }
            LabletEffect::Prepare { cell, grant } => self.prepare(cell, *grant),
            LabletEffect::Directory { cell, directory } => self.tell_directory(&cell, directory),
            LabletEffect::Start { cell } => self.start_cell(&cell),
            LabletEffect::Stop { cell, reason } => self.stop_cell(&cell, reason),
            LabletEffect::Seal { cell } => self.seal(cell),
            LabletEffect::Forget { cell } => {
                self.followed.remove(&cell.execution);
                self.journal.forget(&cell);
                self.parts.keeper.release(&cell.execution, Holder::Lablet);
                self.forget_cell(&cell);
            }
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
            labels: self.parts.config.told_labels(),
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
