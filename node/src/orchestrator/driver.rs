//! The task that owns the core: inputs in, effects out, facts durable before acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::model::fact::FactLink;
use iptl_dag::model::{self, Epoch, ExecutionId, FactKind, Signed};
use iptl_dag::{Cid, PeerId};
use iptl_scheduler::{Effect, Input, Orchestrator, OrchestratorConfig};
use iptl_trust::Keypair;
use iptl_wire::Verified;
use iptl_wire::control::{Event, Failure};
use iptl_wire::lab::Certificate;
use iptl_wire::offer::{self, Offer};
use iptl_wire::session::{CellFetch, MAX_BUSIEST, MAX_FETCHES, MAX_WAITING, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::takeover::Claim;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::candidacy::Note;
use super::health::Health;
use super::lead::Followers;
use super::leave::Leaving;
use super::registry::Registry;
use super::replay::Spoiled;
use super::replicate::Newcomer;
use super::seal::Sealer;
use super::sessions::Outbox;
use super::{COMMAND_QUEUE, Cancelled, Command};
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

/// How long offers go over a lablet's session as well as by gossip. A lablet that was killed and started again has an old
/// connection here that looks alive until QUIC gives it up, after 30 s, and gossip may go into that one.
const FRESH_SESSION: Duration = Duration::from_secs(60);

/// Time between two readings of the wall clock.
const WALL_TICK: Duration = Duration::from_secs(30);

/// Time between two claims by gossip, as between two offers: who comes later hears the next one.
const CLAIM_PAUSE: Duration = Duration::from_secs(2);

/// Time between two beats to those who follow: a heartbeat.
const BEAT_PAUSE: Duration = Duration::from_secs(1);

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
    /// It is the one that the lab was made with: it leads where nobody ever claimed to.
    pub(crate) is_first: bool,
    pub(crate) links: Links,
    pub(crate) members: Members,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) fetcher: Fetcher,
    pub(crate) keeper: Arc<Keeper>,
    /// Offers for a lablet on the same node.
    pub(crate) offers: broadcast::Sender<Signed<Offer>>,
    /// What was seen to work.
    pub(crate) health: Arc<Health>,
    /// Time without a sign of the lab's health after which its canary runs; none where there is no canary.
    pub(crate) canary: Option<Duration>,
    pub(crate) stop: CancellationToken,
}

/// How an orchestrator begins to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// As in its earlier life.
    Resume,
    /// After another one.
    TakeOver { handed_over: bool },
}

/// What the driver is told when it begins.
pub(super) struct Post {
    /// Claim of the term; none in a lab that never had a second orchestrator lead.
    pub(super) claim: Option<Signed<Claim>>,
    pub(super) how: How,
    /// Lablets that may hold something.
    pub(super) lablets: BTreeSet<PeerId>,
    pub(super) notes: mpsc::Sender<Note>,
    /// Another orchestrator is in reach, which may have whole what is damaged here.
    pub(super) is_spared: bool,
    /// Executions whose logs were laid aside as damaged for another orchestrator to lead, and none did.
    pub(super) spoiled: BTreeSet<ExecutionId>,
    /// Somebody else leads, or the node ends.
    pub(super) stop: CancellationToken,
}

/// What came of beginning to lead.
pub(super) enum Started {
    /// It leads.
    Leads(mpsc::Sender<Command>, JoinHandle<()>),
    /// Logs are damaged here that another orchestrator may have whole: nothing was begun.
    Spared(Spoiled),
}

/// Begins to lead: replays the logs, then serves.
pub(super) async fn start(parts: Arc<Parts>, post: Post) -> Result<Started, OrchestratorError> {
    let peer = parts.links.peer().clone();
    let lab = parts.certificate.body.lab.clone();
    let logs = Logs::new(parts.home.path("log"), parts.key.clone()).with_writers(parts.members.writers());
    let mut config = OrchestratorConfig::new(peer, lab.clone(), parts.certificate.body.name.clone());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("the kernel gives random bytes");
    config.seed = u64::from_le_bytes(seed);
    config.term = post.claim.as_ref().map(|claim| claim.body.term.clone());
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let sealer = Sealer {
        lab,
        key: parts.key.clone(),
        store: parts.store.clone(),
        fetcher: parts.fetcher.clone(),
        keeper: parts.keeper.clone(),
        driver: commands.clone(),
    };
    let mut driver = Driver {
        followers: Followers::new(parts.clone(), commands.clone(), config.term.clone()),
        registry: Registry::open(parts.home.clone(), parts.health.clone(), config.term.clone())?,
        core: Orchestrator::new(config),
        looked_for: BTreeSet::new(),
        logs,
        sealer,
        sessions: BTreeMap::new(),
        newcomers: BTreeMap::new(),
        versions: BTreeMap::new(),
        following: BTreeSet::new(),
        barriers: BTreeMap::new(),
        looks: 0,
        promised: Vec::new(),
        spoken: BTreeSet::new(),
        commands: commands.clone(),
        leaving: None,
        newly_followed: Vec::new(),
        ticks: 1,
        is_followed: false,
        post,
        parts,
    };
    if let Some(spoiled) = driver.replay().await? {
        return Ok(Started::Spared(spoiled));
    }
    driver.act().await?;
    let task = tokio::spawn(driver.run(queue));
    Ok(Started::Leads(commands, task))
}

pub(super) struct Session {
    number: u64,
    outbox: Outbox,
    since: Instant,
}

pub(super) struct Driver {
    pub(super) parts: Arc<Parts>,
    pub(super) post: Post,
    pub(super) core: Orchestrator,
    pub(super) registry: Registry,
    /// Ends that others gave to executions, and that are looked for.
    pub(super) looked_for: BTreeSet<(ExecutionId, Option<Cid>)>,
    pub(super) logs: Logs,
    sealer: Sealer,
    pub(super) followers: Followers,
    /// To whom it hands over: nothing new is decided meanwhile.
    pub(super) leaving: Option<Leaving>,
    /// Orchestrators that follow from now on.
    pub(super) newly_followed: Vec<Newcomer>,
    /// Whether one that follows is in contact, as the core was told.
    pub(super) is_followed: bool,
    /// Beats so far.
    pub(super) ticks: u64,
    /// The way back to this task.
    pub(super) commands: mpsc::Sender<Command>,
    /// Current session of each lablet.
    pub(super) sessions: BTreeMap<PeerId, Session>,
    /// Sessions that the core has not answered yet.
    newcomers: BTreeMap<(PeerId, u64), Outbox>,
    /// Software of each lablet that was here.
    pub(super) versions: BTreeMap<PeerId, String>,
    /// Executions whose output somebody follows.
    pub(super) following: BTreeSet<ExecutionId>,
    /// Barriers at the last look: their counts, and looks since the count moved.
    pub(super) barriers: BTreeMap<(ExecutionId, String, u64), (u64, u32)>,
    /// Looks at barriers since the start.
    pub(super) looks: u32,
    /// Answers that wait until what they promise is durable.
    pub(super) promised: Vec<Promised>,
    /// Executions of whose sync something was heard and not yet answered.
    pub(super) spoken: BTreeSet<ExecutionId>,
}

/// An answer about an execution, held back until its facts are durable: who was told of an execution finds it after a
/// crash.
pub(super) enum Promised {
    Submitted(oneshot::Sender<ExecutionId>, ExecutionId),
    Cancelled(oneshot::Sender<Result<Cancelled, Failure>>, Result<Cancelled, Failure>),
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let (stop, post) = (self.parts.stop.clone(), self.post.stop.clone());
        let mut learned = self.parts.members.learned();
        let mut claims = tokio::time::interval(CLAIM_PAUSE);
        let mut beats = tokio::time::interval(BEAT_PAUSE);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut barriers = tokio::time::interval(BARRIER_TICK);
        barriers.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut wall = tokio::time::interval(WALL_TICK);
        let mut batch = Vec::with_capacity(MAX_COMMANDS_AT_ONCE);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = post.cancelled() => return,
                taken = queue.recv_many(&mut batch, MAX_COMMANDS_AT_ONCE) => if taken == 0 { return },
                _ = learned.changed() => self.name_orchestrators(),
                _ = claims.tick() => self.publish_claim(),
                _ = beats.tick() => self.beat(),
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
            if self.followers.in_contact() != self.is_followed {
                self.is_followed = !self.is_followed;
                self.input(Input::Followed { is_followed: self.is_followed });
            }
            let acted = match self.act().await {
                Ok(()) => self.hand_over().await,
                Err(error) => Err(error),
            };
            if let Err(error) = acted {
                // Without its log it can promise nothing: it stops, and the next start goes on from what is durable.
                tracing::error!(%error, "the orchestrator stops");
                stop.cancel();
                return;
            }
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        match &mut self.leaving {
            Some(leaving) if leaving.is_frozen => leaving.deferred.push(input),
            Some(_) | None => self.core.handle(clock::now(), input),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Followed { newcomer } => self.newly_followed.push(newcomer),
            Command::Has { peer, number, beat, missing } => self.followers.has(&peer, number, beat, missing),
            Command::Unfollowed { peer, number } => self.followers.gone(&peer, number),
            Command::Answered { peer } => self.followers.answered(&peer),
            Command::Adopted { end, last } => self.adopted(&end, last.map(|last| *last)),
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
                    for sync in self.registry.active.values_mut().filter_map(|active| active.book.sync_mut()) {
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
            Command::AssembleFailed { execution, reason, may_pass } => {
                tracing::warn!(execution = %execution.alias(), reason, "the result is not made yet");
                self.input(Input::AssembleFailed { execution, reason, may_pass });
            }
            Command::Ask(ask) => self.answer(ask),
        }
    }

    fn message(&mut self, from: PeerId, message: ToOrchestrator) {
        match message {
            ToOrchestrator::Sync(execution, up) => {
                if self.takes_part(&execution, &from) {
                    let active = self.registry.active.get_mut(&execution);
                    if let Some(sync) = active.and_then(|active| active.book.sync_mut())
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
            ToOrchestrator::Heartbeat(mut heartbeat) => {
                let fetching = std::mem::take(&mut heartbeat.fetching);
                fetching.into_iter().take(MAX_FETCHES).for_each(|what| self.fetching(&from, what));
                let message = Verified::vouch(ToOrchestrator::Heartbeat(heartbeat));
                self.input(Input::Message { from, message });
            }
            other => self.input(Input::Message { from, message: Verified::vouch(other) }),
        }
    }

    /// Takes in how far a lablet is with what its cell needs, and tells those who watch.
    fn fetching(&mut self, from: &PeerId, mut what: CellFetch) {
        let id = what.execution;
        if !self.takes_part(&id, from) {
            return;
        }
        if what.waiting.len() > MAX_WAITING {
            what.waiting = what.waiting.chars().take(MAX_WAITING / 4).collect();
        }
        let core = &self.core;
        let Some(active) = self.registry.active.get_mut(&id) else { return };
        if let Some(event) = active.fetching.said(Instant::now(), from.clone(), what, |peer| core.name_of(peer)) {
            self.registry.notify(id, event, clock::wall().0);
        }
    }

    /// Carries out what the core wants: blocks, then facts, both durable, here and at those who follow, then everything
    /// else in order.
    async fn act(&mut self) -> Result<(), OrchestratorError> {
        for newcomer in std::mem::take(&mut self.newly_followed) {
            self.admit(newcomer).await?;
        }
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
        if !facts.is_empty() {
            self.write(facts).await?;
            self.followers.beat(None);
        }
        let promised = std::mem::take(&mut self.promised);
        self.followers.hold(promised, effects);
        while let Some(batch) = self.followers.next_ready() {
            for promised in batch.promised {
                let _gone = match promised {
                    Promised::Submitted(answer, id) => answer.send(id).is_ok(),
                    Promised::Cancelled(answer, found) => answer.send(found).is_ok(),
                };
            }
            for effect in batch.effects {
                self.carry_out(effect);
            }
        }
        for (lablet, renewal) in self.followers.take_renewals() {
            send(&mut self.sessions, &lablet, renewal);
        }
        Ok(())
    }

    /// Writes facts and makes them durable, one sync for all facts of an execution.
    ///
    /// Facts that were decided in the same moment become durable together, before the first of them is acted on:
    /// a fact that is durable early is a promise not yet kept, which a restart keeps.
    async fn write(&mut self, facts: Vec<(ExecutionId, Epoch, FactKind)>) -> Result<(), OrchestratorError> {
        if facts.iter().any(|(_, _, kind)| kind.links().next().is_some()) {
            // They may not be durable yet.
            self.parts.store.flush().await?;
        }
        for (execution, _, kind) in &facts {
            self.hold_named(*execution, kind);
        }
        let at_ms = clock::wall().0;
        let written = tokio::task::block_in_place(|| {
            let mut written = Vec::with_capacity(facts.len());
            for (execution, epoch, kind) in &facts {
                written.push(self.logs.append(*execution, epoch.clone(), kind.clone(), at_ms)?);
            }
            self.logs.commit()?;
            written.extend(self.logs.snapshot_long(at_ms)?);
            Ok::<_, LogError>(written)
        })?;
        self.tell_followers(&written).await?;
        self.note_all(&facts);
        Ok(())
    }

    /// Holds the blocks that a fact names until the execution is over.
    pub(super) fn hold_named(&self, execution: ExecutionId, kind: &FactKind) {
        let mut named = Vec::new();
        name_blocks(kind, &mut named);
        if !named.is_empty() {
            self.parts.keeper.hold_all(execution, Holder::Orchestrator, named);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { .. } | Effect::StorePlacement(_) => {}
            Effect::Send { to, message } => send(&mut self.sessions, &to, message),
            Effect::SendGrant { to, grant } => {
                let execution = grant.cell.execution;
                let grant = iptl_trust::sign(&self.parts.key, grant);
                send(&mut self.sessions, &to, ToLablet::Grant(grant));
                // Who follows did not know of this lablet yet.
                if self.following.contains(&execution) {
                    send(&mut self.sessions, &to, ToLablet::Follow(execution, true));
                }
            }
            Effect::Welcome { to, session, heartbeat_ms, lease_ms, offers, term: _ } => {
                // The term is that of the claim, with which this driver began.
                let Some(outbox) = self.newcomers.remove(&(to.clone(), session)) else { return };
                self.sessions.insert(to.clone(), Session { number: session, outbox, since: Instant::now() });
                let offers = offers.into_iter().map(|offer| iptl_trust::sign(&self.parts.key, offer)).collect();
                let certificate = self.parts.certificate.clone();
                let claim = self.post.claim.clone();
                let welcome = Welcome { certificate, heartbeat_ms, lease_ms, offers, claim };
                send(&mut self.sessions, &to, ToLablet::Welcome(welcome));
                let orchestrators = self.parts.members.orchestrators();
                if !orchestrators.is_empty() {
                    send(&mut self.sessions, &to, ToLablet::Orchestrators(orchestrators));
                }
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
                    let (execution, reason) = (order.execution, error.to_string());
                    self.input(Input::AssembleFailed { execution, reason, may_pass: false })
                }
            },
            Effect::Notify { execution, event } => {
                let over = matches!(event, Event::Finished { .. } | Event::Failed { .. });
                let canary = self.registry.active.get(&execution).is_some_and(|active| active.canary);
                self.registry.notify(execution, event, clock::wall().0);
                if over {
                    if canary { self.erase(&execution) } else { self.forget(&execution) }
                }
            }
            Effect::Close { lablet, reason } => {
                tracing::info!(%lablet, reason, "closed a session");
                self.sessions.remove(&lablet);
            }
            Effect::Adopt(end) => self.adopt(end),
            Effect::Reconciled => self.reconciled(),
            Effect::StepDown { term } => {
                // The claim that the lablet showed is known already: this task is stopped because of it.
                tracing::debug!(counter = term.counter, leader = %term.peer, "a lablet has promised a later term");
                self.sessions.clear();
            }
        }
    }

    fn publish(&mut self, offer: Offer) {
        let topic = offer::topic(&offer.lab);
        let signed = iptl_trust::sign(&self.parts.key, offer);
        let bytes = iptl_dag::encode(&signed);
        let is_fresh = |session: &Session| session.since.elapsed() < FRESH_SESSION;
        let fresh = self.sessions.iter().filter(|(_, session)| is_fresh(session)).map(|(lablet, _)| lablet.clone());
        for lablet in fresh.collect::<Vec<_>>() {
            send(&mut self.sessions, &lablet, ToLablet::Offer(signed.clone()));
        }
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
}

/// Hands a message to a lablet's session; one whose queue is full is cut off and comes back with a new one.
pub(super) fn send(sessions: &mut BTreeMap<PeerId, Session>, to: &PeerId, message: ToLablet) {
    let Some(session) = sessions.get(to) else { return };
    if session.outbox.try_send(message).is_err() {
        tracing::warn!(lablet = %to, "a lablet takes its messages too slowly and is cut off");
        sessions.remove(to);
    }
}

/// Appends the blocks that a fact names and that its execution needs until it is over.
pub(super) fn name_blocks(kind: &FactKind, named: &mut Vec<Cid>) {
    named.extend(kind.links().filter_map(|link| match link {
        FactLink::Execution(cid) | FactLink::Run(cid) | FactLink::Placement(cid) | FactLink::Receipts(cid) => Some(cid),
        FactLink::Result(_) => None,
    }));
}
