//! The orchestrator core: from a submitted run to an order for its result.
//!
//! One file per family of messages: [`session`] hello, heartbeats and leases · [`offer`] submission,
//! placement and bids · [`queue`] who is placed next, [`room`] where there is room · [`grant`] the three-way grant · [`start`] the barrier before the start · [`receipts`] what
//! lablets hand in, [`pulls`] what of it is on its way, and what is lost · [`faults`] what they did on purpose · [`ways`] how
//! far they are from each other · [`seal`] the end · [`rerun`] further attempts · [`cancel`] ends that someone or the clock
//! asks for, [`early`] those that the plan does ·
//! [`fold`] what facts make of an execution · [`replay`] the state as a fold over facts · [`takeover`] going
//! on with what another orchestrator began · [`waits`] what it waits for · [`view`] what people may see. [`state`] holds the types, [`api`] what
//! goes in and out.
//!
//! **Terms.** The counter of an execution's epoch starts at one and rises with every later round of grants, never with
//! a restart: it is part of each fact, so the fold finds it again, and a grant whose fact was not durable was never
//! sent. A lablet holds at most one live cell of an execution; before the start a grant of a higher epoch replaces it.
//!
//! **Losses.** Nothing is sent again by a timer of its own. Every heartbeat lists the cells that a lablet holds; what
//! it should hold and does not, or should have done and has not, is said again.

mod api;
mod cancel;
mod early;
mod faults;
mod fold;
mod grant;
mod offer;
mod pulls;
mod queue;
mod receipts;
mod replay;
mod rerun;
mod room;
mod seal;
mod session;
mod start;
mod state;
mod steps;
mod takeover;
mod view;
mod waits;
mod ways;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::{CannotStart, Epoch, ExecutionId, FactKind};
use iptl_wire::control::{Event, Failure};
use iptl_wire::session::{CellRef, ToLablet, ToOrchestrator};
use iptl_wire::takeover::Finished;
use iptl_wire::{Timestamp, Verified};

pub use api::{
    AssembledResult, AssemblyOrder, Effect, FOLLOWED_LEASES, Input, OrchestratorConfig, ReceiptSummary, Submission,
};
use state::{Exec, LabletState, Stage};
use takeover::Reconcile;
pub use view::{ExecutionView, LabletView, Remembered, RememberedCell};

/// Executions that are remembered after their end, to answer lablets that come back late.
const MAX_REMEMBERED: usize = 4096;

/// Whoever waits hears at least this often what for.
const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// The orchestrator's half of the protocol, without IO.
#[derive(Debug)]
pub struct Orchestrator {
    config: OrchestratorConfig,
    /// Wall clock: monotonic time of reading and microseconds since 1970.
    wall: (Timestamp, u64),
    lablets: BTreeMap<PeerId, LabletState>,
    /// When the lease of each lablet ends, the next one first.
    leases: BTreeSet<(Timestamp, PeerId)>,
    executions: BTreeMap<ExecutionId, Exec>,
    /// Executions that are over, with the ends that count.
    over: BTreeMap<ExecutionId, Finished>,
    over_order: VecDeque<ExecutionId>,
    /// Those of them that had their lablets for themselves: what of them still runs is left alone.
    over_alone: BTreeSet<ExecutionId>,
    effects: VecDeque<Effect>,
    /// Lablets whose receipts the logs name, to be read again after all other effects.
    recalls: VecDeque<(ExecutionId, PeerId)>,
    /// Something changed that may let a waiting execution be placed.
    replan: bool,
    /// After a takeover, until lablets said what they hold.
    reconcile: Option<Reconcile>,
    /// Another orchestrator leads: nothing is done any more.
    deposed: bool,
    /// Since when another orchestrator follows this one, where one does.
    followed_since: Option<Timestamp>,
}

impl Orchestrator {
    /// Makes a core that knows nothing yet: replay logs, then say `Replayed`.
    pub fn new(config: OrchestratorConfig) -> Orchestrator {
        Orchestrator {
            config,
            wall: (Timestamp(0), 0),
            lablets: BTreeMap::new(),
            leases: BTreeSet::new(),
            executions: BTreeMap::new(),
            over: BTreeMap::new(),
            over_order: VecDeque::new(),
            over_alone: BTreeSet::new(),
            effects: VecDeque::new(),
            recalls: VecDeque::new(),
            replan: false,
            reconcile: None,
            deposed: false,
            followed_since: None,
        }
    }

    /// Takes in one thing that happened at `now`. Never panics, whatever the input.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        let before = self.effects.len();
        self.decide(now, input);
        // All that one input makes durable comes first, what facts name before the facts: one sync for all of it.
        let rank = |effect: &Effect| match effect {
            Effect::StorePlacement(_) => 0,
            Effect::Persist { .. } => 1,
            Effect::Send { .. }
            | Effect::SendGrant { .. }
            | Effect::Welcome { .. }
            | Effect::Turn { .. }
            | Effect::PublishOffer(_)
            | Effect::Pull { .. }
            | Effect::Assemble(_)
            | Effect::Notify { .. }
            | Effect::Adopt(_)
            | Effect::Reconciled
            | Effect::StepDown { .. }
            | Effect::Close { .. } => 2,
        };
        if !self.effects.range(before..).is_sorted_by_key(rank) {
            self.effects.make_contiguous()[before..].sort_by_key(rank);
        }
    }

    fn decide(&mut self, now: Timestamp, input: Input) {
        if self.deposed {
            return;
        }
        match input {
            Input::Submit { execution, run, by, priority } => self.submit(now, execution, run, by, priority),
            Input::Hello { from, session, hello } => self.hello(now, from, session, hello.into_inner()),
            Input::Gone { from, session } => self.gone(from, session),
            Input::Message { from, message } => self.message(now, from, message),
            Input::Pulled { execution, lablet, shard, receipts } => {
                self.pulled(now, execution, &lablet, shard, receipts);
            }
            Input::PullFailed { execution, lablet, shard, reason, retry } => {
                self.pull_failed(now, execution, &lablet, shard, reason, retry);
            }
            Input::Assembled { execution, result } => self.assembled(now, execution, result),
            Input::AssembleFailed { execution, reason, may_pass } => {
                self.assemble_failed(now, execution, reason, may_pass);
            }
            Input::Cancel { execution, by } => self.cancel(now, execution, by),
            Input::Wall { unix_us } => self.wall = (now, unix_us),
            // Nothing is decided while logs are read: time and other inputs come after `Replayed`.
            Input::Replay { facts, mut submission } => {
                for fact in &facts {
                    self.replay(now, fact, &mut submission);
                }
                return;
            }
            Input::Aged { execution, submitted, started } => {
                if let Some(exec) = self.executions.get_mut(&execution) {
                    exec.age = (submitted, started);
                }
                return;
            }
            Input::Over(end) => {
                let known = self.over.get(&end.execution);
                if !self.executions.contains_key(&end.execution) && known.is_none_or(|known| end.outdoes(known)) {
                    self.remember(end, false);
                }
                return;
            }
            Input::Followed { is_followed } => {
                self.followed_since = is_followed.then(|| self.followed_since.unwrap_or(now));
            }
            Input::Replayed => self.replayed(now),
            Input::TakeOver { term, lablets, handed_over } => self.take_over(now, term, lablets, handed_over),
            Input::Timeout => {}
        }
        if self.deposed {
            return;
        }
        self.expire_reconcile(now);
        self.expire_leases(now);
        self.expire_stages(now);
        if self.replan && self.reconcile.is_none() {
            self.replan = false;
            self.plan_queue(now);
        }
        self.notices(now);
    }

    /// Returns the next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        while self.effects.is_empty() && !self.deposed && self.recall_next() {}
        self.effects.pop_front()
    }

    /// Returns when `handle` wants to be called with `Timeout`, where nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        debug_assert_eq!(self.leases.len(), self.lablets.len(), "each lablet has one lease");
        let lease = self.leases.first().map(|(until, _)| *until);
        let stages = self.executions.values().filter_map(|exec| match self.undecided(exec) {
            true => exec.next_pull(),
            false => exec.next_timeout(),
        });
        let reconcile = self.reconcile.as_ref().map(|r| r.until);
        stages.chain(lease).chain(reconcile).min().filter(|_| !self.deposed)
    }

    fn message(&mut self, now: Timestamp, from: PeerId, message: Verified<ToOrchestrator>) {
        if self.lablets.get(&from).is_none_or(|l| l.session.is_none()) {
            return;
        }
        match message.into_inner() {
            ToOrchestrator::Heartbeat(heartbeat) => self.heartbeat(now, from, heartbeat),
            ToOrchestrator::Bid(bid) => self.bid(now, from, bid),
            ToOrchestrator::Accept(cell) => self.accepted(now, &from, &cell),
            ToOrchestrator::Refuse(cell, reason) => self.refused(now, &from, &cell, reason),
            ToOrchestrator::Unfit(cell, reason) => self.unfit(now, &from, &cell, reason),
            ToOrchestrator::Prepared(cell) => self.prepared(now, &from, &cell),
            ToOrchestrator::Receipts(ready) => self.receipts_ready(&from, ready),
            ToOrchestrator::Ways(cell, ways) => self.measured(now, &from, &cell, ways),
            ToOrchestrator::Faults(cell, faults) => self.faulted(&from, &cell, faults),
            // A start shows in the next heartbeat; the others are not for the core.
            ToOrchestrator::Started(_)
            | ToOrchestrator::Hello(_)
            | ToOrchestrator::Sync(..)
            | ToOrchestrator::Output(..)
            | ToOrchestrator::Usage(..) => {}
        }
    }

    fn wall_ms(&self, now: Timestamp) -> u64 {
        (self.wall.1.saturating_add(now.since(self.wall.0).as_micros() as u64)) / 1000
    }

    fn epoch(&self, counter: u64) -> Epoch {
        Epoch { counter, peer: self.config.peer.clone() }
    }

    fn persist(&mut self, execution: ExecutionId, kind: FactKind) {
        if let Some(exec) = self.executions.get_mut(&execution).filter(|e| e.recalling()) {
            // It takes its place after what is being read.
            exec.steps.push(kind.clone());
        }
        self.persist_only(execution, kind);
    }

    fn persist_only(&mut self, execution: ExecutionId, kind: FactKind) {
        let counter = self.executions.get(&execution).map_or(1, |e| e.epoch);
        let epoch = self.epoch(counter);
        self.effects.push_back(Effect::Persist { execution, epoch, kind });
    }

    fn send(&mut self, to: &PeerId, message: ToLablet) {
        if self.lablets.get(to).is_some_and(|l| l.session.is_some()) {
            self.effects.push_back(Effect::Send { to: to.clone(), message });
        }
    }

    fn notify(&mut self, execution: ExecutionId, event: Event) {
        self.effects.push_back(Effect::Notify { execution, event });
    }

    /// Names a lablet for people.
    pub fn name_of(&self, lablet: &PeerId) -> String {
        match self.lablets.get(lablet) {
            Some(l) if !l.inventory.name.is_empty() => format!("{} ({})", l.inventory.name, lablet.short()),
            _ => lablet.short(),
        }
    }

    /// Ends an execution with nothing to seal.
    fn fail(&mut self, execution: ExecutionId, failure: Failure) {
        let term = self.config.term.clone();
        self.persist(execution, FactKind::Failed { reason: failure.message.clone(), term: term.clone() });
        self.stop_cells(execution, &failure.message);
        self.notify(execution, Event::Failed { execution: execution.0, failure });
        self.finish(Finished { execution, result: None, term });
    }

    /// Lets go of an execution that is over and tells its lablets.
    fn finish(&mut self, end: Finished) {
        let execution = end.execution;
        let Some(exec) = self.executions.remove(&execution) else { return };
        let holders: BTreeSet<_> = exec.cells.into_keys().chain(exec.former).collect();
        for lablet in &holders {
            self.send(lablet, ToLablet::Finished(end.clone()));
        }
        for lablet in exec.bids.into_keys().filter(|l| !holders.contains(l)) {
            self.send(&lablet, ToLablet::NotNeeded(execution));
        }
        self.remember(end, exec.run.run.placing.dedicated);
        self.replan = true;
    }

    fn remember(&mut self, end: Finished, alone: bool) {
        let execution = end.execution;
        if self.over.insert(execution, end).is_none() {
            self.over_order.push_back(execution);
        }
        if alone {
            self.over_alone.insert(execution);
        }
        while self.over_order.len() > MAX_REMEMBERED {
            if let Some(oldest) = self.over_order.pop_front() {
                self.over.remove(&oldest);
                self.over_alone.remove(&oldest);
            }
        }
    }

    /// Acts on every stage whose time has come.
    fn expire_stages(&mut self, now: Timestamp) {
        let due: Vec<ExecutionId> = self
            .executions
            .iter()
            .filter(|(_, exec)| exec.next_timeout().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.replan |= self.executions.get_mut(&id).is_some_and(|exec| exec.lapse_bans(now));
            self.retry_pulls(now, id);
            if self.executions.get(&id).is_none_or(|e| self.undecided(e)) {
                continue;
            }
            self.expire_start(now, id);
            let Some(exec) = self.executions.get(&id) else { continue };
            match &exec.stage {
                Stage::Waiting => self.expire_waiting(now, id),
                Stage::Offered { .. } => self.expire_bids(now, id),
                Stage::Granted => {
                    self.expire_grants(now, id);
                    self.expire_waiting(now, id);
                }
                Stage::Running { .. } => {
                    self.expire_replacement(now, id);
                    self.expire_run(now, id);
                }
                Stage::Stopping { .. } => self.expire_grace(now, id),
                Stage::Assembling { .. } => self.retry_assembly(now, id),
            }
        }
    }

    /// Says what executions wait for.
    fn notices(&mut self, now: Timestamp) {
        let mut events = Vec::new();
        for (id, exec) in &mut self.executions {
            if exec.notice_at > now && exec.noticed.is_none() {
                continue;
            }
            let Some(reason) = exec.waits_for() else { continue };
            if exec.notice_at <= now || exec.noticed.as_ref() != Some(&reason) {
                let reason = reason.into_owned();
                events.push((*id, Event::Waiting { reason: reason.to_string() }));
                exec.notice_at = now.after(NOTICE_INTERVAL);
                exec.noticed = Some(reason);
            }
        }
        for (id, event) in events {
            self.notify(id, event);
        }
    }
}

/// Names the cell of an execution that was granted in a term.
fn cell_ref(execution: ExecutionId, epoch: &Epoch) -> CellRef {
    CellRef { execution, epoch: epoch.clone() }
}

/// Says why an execution cannot be started.
fn unable(code: &str, reason: String, help: &str) -> CannotStart {
    CannotStart { code: code.into(), reason, help: help.into() }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
