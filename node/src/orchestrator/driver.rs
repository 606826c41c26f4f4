//! The task that owns the core: inputs in, effects out, facts durable before acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_artifacts::{BlobStore, StoreError, read_block};
use iptl_dag::model::{self, Epoch, Execution, ExecutionId, FactKind, Run, Signed};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::orchestrator::ExecutionView;
use iptl_scheduler::{Effect, Input, Orchestrator, OrchestratorConfig, Submission};
use iptl_sync::{MissingCell, RunSync};
use iptl_trust::Keypair;
use iptl_wire::Verified;
use iptl_wire::control::{Event, Failure, FailureKind, Top, TopBarrier};
use iptl_wire::lab::Certificate;
use iptl_wire::offer::{self, Offer};
use iptl_wire::session::{KnownRun, MAX_BUSIEST, ToLablet, ToOrchestrator, Welcome};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::canary::Canary;
use super::health::Health;
use super::registry::{Active, Registry};
use super::seal::Sealer;
use super::sessions::{self, Outbox};
use super::{Ask, COMMAND_QUEUE, Command, DryRun, LabletRow, OrchestratorHandle, ReadLog, RunRow};
use super::{locate, top};
use crate::clock;
use crate::facts::{LogError, Logs};
use crate::fetch::Fetcher;
use crate::home::{Home, HomeError};
use crate::keeper::{Holder, Keeper};
use crate::links::Links;
use crate::members::Members;

/// Commands that are taken together, so that their facts share a sync.
const MAX_COMMANDS_AT_ONCE: usize = 256;

/// Time between two looks at barriers that are waited for; one that opens sooner is not told of.
const BARRIER_TICK: Duration = Duration::from_secs(1);

/// A barrier whose count does not move is told of again after so many looks.
const BARRIER_REPEAT: u32 = 5;

/// Instances that are named when a barrier waits for them.
const MAX_MISSING: usize = 20;

/// Looks after a start in which cells contribute again to sync what this orchestrator lost: longer than the two leases
/// that lablets have to come back.
const RECOVERY_LOOKS: u32 = 15;

/// Time between two readings of the wall clock.
const WALL_TICK: Duration = Duration::from_secs(30);

/// Why an orchestrator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum OrchestratorError {
    /// Its log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block that its log names is gone.
    #[error("the log names {cid}, which is not in the store")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// A block that its log names is not what it should be.
    #[error("{cid}: {reason}")]
    Damaged {
        /// The block.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
}

/// What an orchestrator is made of.
pub(crate) struct Parts {
    pub(crate) home: Home,
    pub(crate) key: Arc<Keypair>,
    pub(crate) certificate: Signed<Certificate>,
    pub(crate) links: Links,
    pub(crate) members: Members,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) fetcher: Fetcher,
    pub(crate) keeper: Arc<Keeper>,
    /// Offers for a lablet on the same node.
    pub(crate) offers: broadcast::Sender<Signed<Offer>>,
    /// Time without a sign of the lab's health after which its canary runs; none where there is no canary.
    pub(crate) canary: Option<Duration>,
    pub(crate) stop: CancellationToken,
}

/// Starts the orchestrator of a node: replays its logs, then serves.
pub(crate) async fn start(parts: Parts) -> Result<OrchestratorHandle, OrchestratorError> {
    let peer = parts.links.peer().clone();
    let lab = parts.certificate.body.lab.clone();
    let mut logs = Logs::new(parts.home.path("log"), parts.key.clone());
    let facts = logs.replay()?;
    let mut config = OrchestratorConfig::new(peer, lab.clone(), parts.certificate.body.name.clone());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("the kernel gives random bytes");
    config.seed = u64::from_le_bytes(seed);
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let health = Arc::new(Health::default());
    let handle = OrchestratorHandle { commands: commands.clone(), health: health.clone() };
    let sealer = Sealer {
        lab,
        key: parts.key.clone(),
        store: parts.store.clone(),
        fetcher: parts.fetcher.clone(),
        keeper: parts.keeper.clone(),
        driver: commands.clone(),
    };
    let mut driver = Driver {
        core: Orchestrator::new(config),
        registry: Registry::open(parts.home.clone(), health.clone())?,
        logs,
        sealer,
        sessions: BTreeMap::new(),
        newcomers: BTreeMap::new(),
        syncs: BTreeMap::new(),
        versions: BTreeMap::new(),
        following: BTreeSet::new(),
        barriers: BTreeMap::new(),
        looks: 0,
        promised: Vec::new(),
        spoken: BTreeSet::new(),
        parts,
    };
    driver.replay(facts).await?;
    driver.act().await?;
    tokio::spawn(sessions::accept(driver.parts.links.clone(), driver.parts.members.clone(), commands.clone()));
    if let Some(pause) = driver.parts.canary {
        let canary = Canary {
            lab: handle.clone(),
            health,
            store: driver.parts.store.clone(),
            keeper: driver.parts.keeper.clone(),
            own: driver.parts.links.peer().clone(),
            pause,
            stop: driver.parts.stop.clone(),
        };
        tokio::spawn(canary.watch());
    }
    tokio::spawn(driver.run(queue));
    Ok(handle)
}

struct Session {
    number: u64,
    outbox: Outbox,
}

struct Driver {
    parts: Parts,
    core: Orchestrator,
    registry: Registry,
    logs: Logs,
    sealer: Sealer,
    /// Current session of each lablet.
    sessions: BTreeMap<PeerId, Session>,
    /// Sessions that the core has not answered yet.
    newcomers: BTreeMap<(PeerId, u64), Outbox>,
    syncs: BTreeMap<ExecutionId, RunSync>,
    /// Software of each lablet that was here.
    versions: BTreeMap<PeerId, String>,
    /// Executions whose output somebody follows.
    following: BTreeSet<ExecutionId>,
    /// Barriers at the last look: their counts, and looks since the count moved.
    barriers: BTreeMap<(ExecutionId, String, u64), (u64, u32)>,
    /// Looks at barriers since the start.
    looks: u32,
    /// Answers that wait until what they promise is durable.
    promised: Vec<Promised>,
    /// Executions of whose sync something was heard and not yet answered.
    spoken: BTreeSet<ExecutionId>,
}

/// An answer about an execution, held back until its facts are durable: who was told of an execution finds it after a
/// crash.
enum Promised {
    Submitted(oneshot::Sender<ExecutionId>, ExecutionId),
    Cancelled(oneshot::Sender<Result<ExecutionId, Failure>>, Result<ExecutionId, Failure>),
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let stop = self.parts.stop.clone();
        let mut barriers = tokio::time::interval(BARRIER_TICK);
        barriers.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut wall = tokio::time::interval(WALL_TICK);
        let mut batch = Vec::with_capacity(MAX_COMMANDS_AT_ONCE);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                taken = queue.recv_many(&mut batch, MAX_COMMANDS_AT_ONCE) => if taken == 0 { return },
                () = clock::sleep_until(self.core.poll_timeout()) => self.input(Input::Timeout),
                _ = barriers.tick() => self.tell_barriers(),
                _ = wall.tick() => self.input(Input::Wall { unix_us: clock::wall_us() }),
            }
            for command in batch.drain(..) {
                self.command(command);
            }
            // What came together is answered together.
            for execution in std::mem::take(&mut self.spoken) {
                self.send_sync(execution);
            }
            if let Err(error) = self.act().await {
                // Without its log it can promise nothing: it stops, and the next start goes on from what is durable.
                tracing::error!(%error, "the orchestrator stops");
                stop.cancel();
                return;
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.core.handle(clock::now(), input);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Hello { from, session, hello, outbox } => {
                self.newcomers.insert((from.clone(), session), outbox);
                self.versions.insert(from.clone(), hello.version.clone());
                self.input(Input::Hello { from, session, hello: Verified::vouch(*hello) });
            }
            Command::Message { from, session, message } => {
                if self.sessions.get(&from).is_some_and(|current| current.number == session) {
                    self.message(from, message);
                }
            }
            Command::Gone { from, session } => {
                self.newcomers.remove(&(from.clone(), session));
                if self.sessions.get(&from).is_some_and(|current| current.number == session) {
                    self.sessions.remove(&from);
                    for sync in self.syncs.values_mut() {
                        sync.session_down(&from);
                    }
                }
                self.input(Input::Gone { from, session });
            }
            Command::Pulled { execution, lablet, shard, receipts } => {
                self.input(Input::Pulled { execution, lablet, shard, receipts });
            }
            Command::PullFailed { execution, lablet, shard, reason, retry } => {
                tracing::warn!(execution = %execution.alias(), %lablet, %shard, reason, retry, "receipts are missing");
                self.input(Input::PullFailed { execution, lablet, shard, reason, retry });
            }
            Command::Assembled { execution, result } => {
                self.input(Input::Assembled { execution, result: *result });
            }
            Command::AssembleFailed { execution, reason } => {
                tracing::warn!(execution = %execution.alias(), reason, "the result is not made yet");
                self.input(Input::AssembleFailed { execution, reason });
            }
            Command::Ask(ask) => self.answer(ask),
        }
    }

    fn message(&mut self, from: PeerId, message: ToOrchestrator) {
        match message {
            ToOrchestrator::Sync(execution, up) => {
                if self.takes_part(&execution, &from) {
                    if let Some(sync) = self.syncs.get_mut(&execution)
                        && let Err(error) = sync.handle(&from, up)
                    {
                        tracing::warn!(%from, %error, "refused what a lablet said of sync");
                    }
                    self.spoken.insert(execution);
                }
            }
            ToOrchestrator::Output(execution, lines) => {
                if self.takes_part(&execution, &from)
                    && let Some(active) = self.registry.active.get(&execution)
                {
                    for line in lines {
                        let _nobody_follows = active.output.send(line);
                    }
                }
            }
            ToOrchestrator::Usage(execution, mut usage) => {
                if self.takes_part(&execution, &from)
                    && let Some(active) = self.registry.active.get_mut(&execution)
                {
                    usage.groups.retain(|name, _| active.groups.contains_key(name));
                    usage.busiest.truncate(MAX_BUSIEST);
                    active.usage.insert(from, (Instant::now(), usage));
                }
            }
            other => self.input(Input::Message { from, message: Verified::vouch(other) }),
        }
    }

    fn takes_part(&self, execution: &ExecutionId, lablet: &PeerId) -> bool {
        self.registry.active.get(execution).is_some_and(|active| active.lablets.contains_key(lablet))
    }

    fn send_sync(&mut self, execution: ExecutionId) {
        let Some(sync) = self.syncs.get_mut(&execution) else { return };
        while let Some((lablet, down)) = sync.poll_down() {
            send(&mut self.sessions, &lablet, ToLablet::Sync(execution, down));
        }
    }

    fn tell_barriers(&mut self) {
        let now_ms = clock::wall().0;
        let mut events = Vec::new();
        let mut asked = Vec::new();
        self.looks = self.looks.saturating_add(1);
        let mut told = BTreeMap::new();
        for (execution, sync) in &mut self.syncs {
            if self.looks >= RECOVERY_LOOKS && sync.is_recovering() {
                tracing::warn!(execution = %execution.alias(), "some cells told nothing of what they had contributed");
                sync.end_recovery();
            }
            sync.inquire();
            asked.push(*execution);
            let Some(active) = self.registry.active.get(execution) else { continue };
            for barrier in sync.waiting() {
                // Who waits since the last look is told of at the next one.
                let key = (*execution, barrier.state.clone(), barrier.target);
                let (count, looks) = self.barriers.get(&key).copied().unwrap_or((u64::MAX, 0));
                let moved = count != barrier.count && count != u64::MAX;
                let looks = if moved { 0 } else { looks + 1 };
                told.insert(key, (barrier.count, looks));
                if !moved && looks % BARRIER_REPEAT != 2 {
                    continue;
                }
                let event = Event::Barrier {
                    state: barrier.state,
                    count: barrier.count,
                    target: barrier.target,
                    missing: barrier.missing.iter().flat_map(missing).take(MAX_MISSING).collect(),
                    after_ms: now_ms.saturating_sub(active.submitted_ms),
                };
                events.push((*execution, event));
            }
        }
        self.barriers = told;
        for (execution, event) in events {
            self.registry.notify(execution, event, now_ms);
        }
        for execution in asked {
            self.send_sync(execution);
        }
    }

    /// Carries out what the core wants: blocks, then facts, both durable, then everything else in order.
    async fn act(&mut self) -> Result<(), OrchestratorError> {
        let mut effects = Vec::new();
        while let Some(effect) = self.core.poll_effect() {
            effects.push(effect);
        }
        let placements: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::StorePlacement(placement) => Some(model::to_block(placement.clone())),
                _ => None,
            })
            .collect();
        if !placements.is_empty() {
            self.parts.store.put(placements).await?;
        }
        let facts: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Persist { execution, epoch, kind } => Some((*execution, epoch.clone(), kind.clone())),
                _ => None,
            })
            .collect();
        self.write(facts).await?;
        for promised in std::mem::take(&mut self.promised) {
            let _gone = match promised {
                Promised::Submitted(answer, id) => answer.send(id).is_ok(),
                Promised::Cancelled(answer, found) => answer.send(found).is_ok(),
            };
        }
        for effect in effects {
            self.carry_out(effect);
        }
        Ok(())
    }

    /// Writes facts and makes them durable, one sync for all facts of an execution.
    ///
    /// Facts that were decided in the same moment become durable together, before the first of them is acted on:
    /// a fact that is durable early is a promise not yet kept, which a restart keeps.
    async fn write(&mut self, facts: Vec<(ExecutionId, Epoch, FactKind)>) -> Result<(), OrchestratorError> {
        if facts.is_empty() {
            return Ok(());
        }
        if facts.iter().any(|(_, _, kind)| names_new_blocks(kind)) {
            self.parts.store.flush().await?;
        }
        for (execution, _, kind) in &facts {
            self.hold_named(*execution, kind);
        }
        let at_ms = clock::wall().0;
        tokio::task::block_in_place(|| {
            for (execution, epoch, kind) in &facts {
                self.logs.append(*execution, epoch.clone(), kind.clone(), at_ms)?;
            }
            self.logs.commit()?;
            self.logs.snapshot_long(at_ms)
        })?;
        for (execution, _, kind) in facts {
            self.note(execution, &kind, false);
        }
        Ok(())
    }

    /// Holds the blocks that a fact names until the execution is over.
    fn hold_named(&self, execution: ExecutionId, kind: &FactKind) {
        let hold = |root: &Cid| self.parts.keeper.hold(execution, Holder::Orchestrator, *root);
        match kind {
            FactKind::Submitted { execution, run, .. } => [execution, run].into_iter().for_each(hold),
            FactKind::Placed { placement } => hold(placement),
            FactKind::Received { shard, .. } => hold(shard),
            FactKind::Snapshot { facts, .. } => facts.iter().for_each(|fact| self.hold_named(execution, &fact.kind)),
            FactKind::Granted { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Recovered { .. }
            | FactKind::Accepted { .. }
            | FactKind::Refused { .. }
            | FactKind::Started {}
            | FactKind::Lost { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::Sealed { .. }
            | FactKind::Failed { .. } => {}
        }
    }

    /// Keeps who takes part in an execution, for sync; a `replayed` fact's cells have contributed before.
    fn note(&mut self, execution: ExecutionId, kind: &FactKind, replayed: bool) {
        let Some(active) = self.registry.active.get_mut(&execution) else { return };
        match kind {
            FactKind::Granted { lablet, assignments, .. } | FactKind::Recovered { lablet, assignments, .. } => {
                let instances = assignments.iter().map(|a| u64::from(a.count)).sum();
                *active.lablets.entry(lablet.clone()).or_default() += instances;
                if !replayed {
                    let sync = self.syncs.entry(execution).or_insert_with(|| RunSync::new([]));
                    sync.add_cell(lablet.clone(), instances);
                }
            }
            FactKind::Refused { lablet, .. } => {
                active.lablets.remove(lablet);
                if let Some(sync) = self.syncs.get_mut(&execution) {
                    sync.replace_cell(lablet);
                }
            }
            FactKind::Lost { lablet: Some(lablet), .. } => {
                let replaces = active.replaces;
                active.lablets.remove(lablet);
                if let Some(sync) = self.syncs.get_mut(&execution) {
                    if replaces { sync.replace_cell(lablet) } else { sync.drop_cell(lablet) }
                }
            }
            FactKind::Submitted { .. }
            | FactKind::Placed { .. }
            | FactKind::Accepted { .. }
            | FactKind::Started {}
            | FactKind::Received { .. }
            | FactKind::Lost { lablet: None, .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::Sealed { .. }
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Snapshot { .. } => {}
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) => {}
            Effect::Send { to, message } => send(&mut self.sessions, &to, message),
            Effect::SendGrant { to, grant } => {
                let grant = iptl_trust::sign(&self.parts.key, grant);
                send(&mut self.sessions, &to, ToLablet::Grant(grant));
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers, term: _ } => {
                let Some(outbox) = self.newcomers.remove(&(to.clone(), session)) else { return };
                self.sessions.insert(to.clone(), Session { number: session, outbox });
                let offers = offers.into_iter().map(|offer| iptl_trust::sign(&self.parts.key, offer)).collect();
                let certificate = self.parts.certificate.clone();
                // This node leads from the first start of its lab on, and claims no term.
                let welcome = Welcome { certificate, heartbeat_ms, lease_ms, offers, claim: None };
                send(&mut self.sessions, &to, ToLablet::Welcome(welcome));
                for execution in self.following.clone() {
                    send(&mut self.sessions, &to, ToLablet::Follow(execution, true));
                }
            }
            Effect::Turn { to, session, reason } => {
                tracing::warn!(lablet = %to, reason, "turned a lablet away");
                if let Some(outbox) = self.newcomers.remove(&(to, session)) {
                    let _gone = outbox.try_send(ToLablet::Turned(reason));
                }
            }
            Effect::PublishOffer(offer) => self.publish(offer),
            Effect::Pull { execution, lablet, shard } => self.sealer.pull(execution, lablet, shard),
            Effect::Assemble(order) => match self.logs.blocks(&order.execution) {
                Ok(log) => self.sealer.assemble(*order, log),
                Err(error) => {
                    self.input(Input::AssembleFailed { execution: order.execution, reason: error.to_string() })
                }
            },
            Effect::Notify { execution, event } => {
                let over = matches!(event, Event::Finished { .. } | Event::Failed { .. });
                let canary = self.registry.active.get(&execution).is_some_and(|active| active.canary);
                self.registry.notify(execution, event, clock::wall().0);
                if over {
                    self.syncs.remove(&execution);
                    self.following.remove(&execution);
                    if canary {
                        self.forget(&execution)
                    } else {
                        self.lay_aside(&execution)
                    }
                    // A sealed result is pinned by itself; of a failed execution nothing is kept.
                    self.parts.keeper.release(&execution, Holder::Orchestrator);
                }
            }
            Effect::Close { lablet, reason } => {
                tracing::info!(%lablet, reason, "closed a session");
                self.sessions.remove(&lablet);
            }
            Effect::Adopt { execution, .. } => self.lay_aside(&execution),
            Effect::Reconciled => {}
            Effect::StepDown { term } => {
                let (counter, leader) = (term.counter, term.peer);
                tracing::error!(counter, %leader, "another orchestrator leads this lab; this one does nothing any more");
                self.sessions.clear();
            }
        }
    }

    fn publish(&self, offer: Offer) {
        let topic = offer::topic(&offer.lab);
        let signed = iptl_trust::sign(&self.parts.key, offer);
        let bytes = iptl_dag::encode(&signed);
        let _no_lablet_here = self.parts.offers.send(signed);
        if let Some(net) = self.parts.links.net().cloned() {
            tokio::spawn(async move {
                // Nobody listening is no failure: the offer is repeated, and who comes later asks for it.
                if let Err(error) = net.publish(&topic, bytes).await {
                    tracing::debug!(%error, "an offer found nobody");
                }
            });
        }
    }

    /// Lays the log of an execution aside whose end is recorded; one that stays is read at the next start, and no harm.
    fn lay_aside(&mut self, execution: &ExecutionId) {
        if let Err(error) = tokio::task::block_in_place(|| self.logs.close(execution)) {
            tracing::warn!(%execution, %error, "the log of an execution that is over could not be laid aside");
        }
    }

    /// Removes the log of an execution of which nothing is kept.
    fn forget(&mut self, execution: &ExecutionId) {
        if let Err(error) = tokio::task::block_in_place(|| self.logs.forget(execution)) {
            tracing::warn!(%execution, %error, "the log of the lab's canary could not be removed");
        }
    }

    async fn replay(&mut self, facts: Vec<model::Fact>) -> Result<(), OrchestratorError> {
        self.input(Input::Wall { unix_us: clock::wall_us() });
        let over: BTreeSet<ExecutionId> = facts
            .iter()
            .filter(|fact| matches!(fact.kind, FactKind::Sealed { .. } | FactKind::Failed { .. }))
            .map(|fact| fact.execution)
            .filter(|execution| self.registry.ended(execution).is_some())
            .collect();
        for execution in &over {
            self.lay_aside(execution);
        }
        for fact in facts.into_iter().filter(|fact| !over.contains(&fact.execution)) {
            self.hold_named(fact.execution, &fact.kind);
            let submission = match &fact.kind {
                FactKind::Submitted { execution, run, by } => {
                    let submission = self.submission(execution, run).await?;
                    let run_node = &submission.run.run;
                    self.registry.begin(fact.execution, *run, run_node, by.clone(), fact.at_ms);
                    let event = Event::Submitted {
                        execution: fact.execution.0,
                        alias: fact.execution.alias(),
                        run: *run,
                        lab: self.parts.certificate.body.name.clone(),
                        groups: run_node.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect(),
                    };
                    self.registry.notify(fact.execution, event, fact.at_ms);
                    Some(Box::new(submission))
                }
                kind => {
                    self.note(fact.execution, kind, true);
                    if let (FactKind::Started {}, Some(active)) = (kind, self.registry.active.get(&fact.execution)) {
                        let event = Event::Started { after_ms: fact.at_ms.saturating_sub(active.submitted_ms) };
                        self.registry.notify(fact.execution, event, fact.at_ms);
                    }
                    None
                }
            };
            self.input(Input::Replay { fact: Box::new(fact), submission });
        }
        for (execution, active) in &self.registry.active {
            if !active.lablets.is_empty() {
                let cells = active.lablets.iter().map(|(lablet, instances)| (lablet.clone(), *instances));
                self.syncs.insert(*execution, RunSync::recovering(cells));
            }
        }
        self.input(Input::Replayed);
        Ok(())
    }

    async fn submission(&self, execution: &Cid, run: &Cid) -> Result<Submission, OrchestratorError> {
        let execution: Execution = self.node(execution).await?;
        let cid = *run;
        let run: Run = self.node(run).await?;
        Ok(Submission { execution, run: KnownRun { cid, run } })
    }

    async fn node<T>(&self, cid: &Cid) -> Result<T, OrchestratorError>
    where
        T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
    {
        let block = read_block(&*self.parts.store, cid).await?.ok_or(OrchestratorError::Missing { cid: *cid })?;
        model::from_bytes(block.data()).map_err(|e| OrchestratorError::Damaged { cid: *cid, reason: e.to_string() })
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Submit { execution, run, by, answer } => {
                let id = execution.id();
                self.registry.begin(id, run.cid, &run.run, by.clone(), clock::wall().0);
                self.input(Input::Submit { execution, run: *run, by });
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
                    for lablet in active.lablets.clone().into_keys() {
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
                let found = self.registry.find(&name);
                if let Ok(id) = &found {
                    self.input(Input::Cancel { execution: *id, by });
                }
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
                    Ok(ReadLog { id, writers: vec![self.parts.key.peer().clone()], blocks, tail })
                });
                let _gone = answer.send(found);
            }
            Ask::Find { name, answer } => {
                let found = self.registry.find(&name).map(|id| (id, self.registry.ended(&id).cloned()));
                let _gone = answer.send(found);
            }
            Ask::Runs { answer } => {
                let _gone = answer.send(self.runs());
            }
            Ask::Lablets { answer } => {
                let rows = self.lablets();
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
        let barriers = self.syncs.get(&id).map(RunSync::waiting).unwrap_or_default();
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
                peer: view.peer,
            })
            .collect()
    }

    fn runs(&self) -> Vec<RunRow> {
        let views: BTreeMap<_, _> = self.core.executions().into_iter().map(|view| (view.execution, view)).collect();
        let ended = self.registry.records().into_iter().cloned().map(|record| RunRow::Ended(Box::new(record)));
        let active = self.registry.listed().map(|(id, active)| active_row(*id, active, views.get(id)));
        ended.chain(active).collect()
    }
}

fn active_row(id: ExecutionId, active: &Active, view: Option<&ExecutionView>) -> RunRow {
    RunRow::Active {
        id,
        run: active.run,
        plan: active.plan,
        case: active.case.clone(),
        submitted_ms: active.submitted_ms,
        instances: active.instances,
        ended: view.map_or(0, |view| view.ended),
        phase: view.map_or_else(|| "submitted".to_owned(), |view| view.phase.clone()),
    }
}

/// Names who is missing at a barrier.
fn missing(cell: &MissingCell) -> Vec<String> {
    let lablet = cell.lablet.short();
    if cell.lost {
        return vec![format!("{lablet} is lost")];
    }
    if cell.absent.instances.is_empty() {
        return vec![format!("instances on {lablet}")];
    }
    cell.absent.instances.iter().map(|id| format!("{id} on {lablet}")).collect()
}

/// Hands a message to a lablet's session; one whose queue is full is cut off and comes back with a new one.
fn send(sessions: &mut BTreeMap<PeerId, Session>, to: &PeerId, message: ToLablet) {
    let Some(session) = sessions.get(to) else { return };
    if session.outbox.try_send(message).is_err() {
        tracing::warn!(lablet = %to, "a lablet takes its messages too slowly and is cut off");
        sessions.remove(to);
    }
}

/// Tells whether a fact names blocks that may not be durable yet.
fn names_new_blocks(kind: &FactKind) -> bool {
    match kind {
        FactKind::Submitted { .. } | FactKind::Placed { .. } | FactKind::Received { .. } | FactKind::Sealed { .. } => {
            true
        }
        FactKind::Granted { .. }
        | FactKind::Accepted { .. }
        | FactKind::Refused { .. }
        | FactKind::Started {}
        | FactKind::Lost { .. }
        | FactKind::Cancelled { .. }
        | FactKind::TimedOut {}
        | FactKind::Failed { .. }
        | FactKind::TakenOver { .. }
        | FactKind::Recovered { .. }
        | FactKind::Snapshot { .. } => false,
    }
}
