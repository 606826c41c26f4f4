//! An orchestrator core on a bench: what is put in, and what comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use iptl_dag::model::signed::Signed;
use iptl_dag::model::{
    Counts, Engine, Epoch, Execution, ExecutionId, Exit, Fact, FactKind, GroupRun, InstanceId, LossPolicy, Network,
    Placement, Placing, Requirements, Resources, ResultVerdict, Run, WorkloadKind,
};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{
    AssembledResult, AssemblyOrder, Effect, Input, Orchestrator, OrchestratorConfig, ReceiptSummary, Submission,
};
use iptl_wire::control::Event;
use iptl_wire::lab::{MemberToken, Role};
use iptl_wire::session::{
    Bid, CellPhase, CellRef, CellStatus, Grant, Heartbeat, Hello, Inventory, KnownRun, ReceiptsReady, Slots, ToLablet,
    ToOrchestrator,
};
use iptl_wire::takeover::{Claim, Finished};
use iptl_wire::{Timestamp, Verified, WallTime};

pub(crate) fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

pub(crate) fn group(count: u32) -> GroupRun {
    GroupRun {
        workload: codec::cid_of(&"workload"),
        kind: WorkloadKind::Wasm,
        count,
        args: Vec::new(),
        env: BTreeMap::new(),
        resources: Resources::default(),
        requires: Requirements::default(),
        container: None,
        loss: None,
        start: None,
    }
}

pub(crate) fn run(groups: &[(&str, u32)]) -> Run {
    Run {
        plan: codec::cid_of(&"plan"),
        case: "case".into(),
        groups: groups.iter().map(|(name, count)| ((*name).to_owned(), group(*count))).collect(),
        params: BTreeMap::new(),
        seed: 1,
        engine: Engine::Live,
        network: Network::Clean,
        faults: Vec::new(),
        loss: LossPolicy::default(),
        thresholds: Vec::new(),
        timeout_ms: 10_000,
        placing: Placing::default(),
        captures: BTreeMap::new(),
    }
}

pub(crate) fn inventory(slots: u32) -> Inventory {
    Inventory {
        // Its owner lends half of it.
        memory_bytes: 128 << 30,
        free_memory_bytes: 64 << 30,
        slots: BTreeMap::from([(WorkloadKind::Wasm, Slots::of(slots))]),
        cpus: 4,
        ..Inventory::default()
    }
}

/// What a lablet has that runs containers too.
pub(crate) fn both(wasm: u32, docker: u32) -> Inventory {
    let slots = [(WorkloadKind::Wasm, wasm), (WorkloadKind::Docker, docker)];
    let slots = slots.into_iter().filter(|(_, n)| *n > 0).map(|(kind, n)| (kind, Slots::of(n)));
    Inventory { slots: slots.collect(), ..inventory(0) }
}

/// A run of one group of each kind: `w` and `d`.
pub(crate) fn mixed(wasm: u32, docker: u32) -> Run {
    let mut mixed = run(&[("w", wasm), ("d", docker)]);
    mixed.groups.get_mut("d").expect("it was just made").kind = WorkloadKind::Docker;
    mixed
}

/// An orchestrator with its log and a clock.
pub(crate) struct Bench {
    pub(crate) core: Orchestrator,
    pub(crate) now: Timestamp,
    facts: Vec<Fact>,
    submissions: BTreeMap<ExecutionId, Submission>,
    seq: u64,
}

const ORCHESTRATOR: u8 = 200;

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut OrchestratorConfig)) -> Bench {
        let mut config = OrchestratorConfig::new(peer(ORCHESTRATOR), peer(201), "lab".into());
        change(&mut config);
        let mut bench = Bench {
            core: Orchestrator::new(config),
            now: Timestamp(1_000_000_000),
            facts: Vec::new(),
            submissions: BTreeMap::new(),
            seq: 100,
        };
        bench.give(Input::Wall { unix_us: 1_800_000_000_000_000 });
        bench.give(Input::Replayed);
        bench
    }

    /// Says one thing and returns what came of it, facts written down.
    pub(crate) fn give(&mut self, input: Input) -> Vec<Effect> {
        self.core.handle(self.now, input);
        let effects: Vec<Effect> = std::iter::from_fn(|| self.core.poll_effect()).collect();
        for effect in &effects {
            if let Effect::Persist { execution, epoch, kind } = effect {
                let seq = self.facts.len() as u64;
                self.facts.push(Fact {
                    execution: *execution,
                    seq,
                    prev: None,
                    epoch: epoch.clone(),
                    at_ms: 1_800_000_000_000 + self.now.0 / 1_000_000,
                    kind: kind.clone(),
                });
            }
        }
        effects
    }

    /// A number of heartbeats that rises.
    pub(crate) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Effect> {
        let end = self.now.0 + ms * 1_000_000;
        let mut effects = Vec::new();
        while let Some(at) = self.core.poll_timeout().filter(|at| at.0 <= end) {
            self.now = Timestamp(at.0.max(self.now.0));
            effects.extend(self.give(Input::Timeout));
        }
        self.now = Timestamp(end);
        effects
    }

    pub(crate) fn hello(&mut self, n: u8, boot: u8, session: u64, slots: u32, cells: Vec<CellStatus>) -> Vec<Effect> {
        self.hello_with(n, boot, session, inventory(slots), cells)
    }

    pub(crate) fn hello_with(
        &mut self,
        n: u8,
        boot: u8,
        session: u64,
        inventory: Inventory,
        cells: Vec<CellStatus>,
    ) -> Vec<Effect> {
        self.hello_in_term(n, boot, session, inventory, cells, None)
    }

    /// Says hello as a lablet that has promised a term.
    pub(crate) fn hello_in_term(
        &mut self,
        n: u8,
        boot: u8,
        session: u64,
        inventory: Inventory,
        cells: Vec<CellStatus>,
        promised: Option<Signed<Claim>>,
    ) -> Vec<Effect> {
        self.hello_of_ends(n, boot, session, inventory, cells, promised, Vec::new())
    }

    /// The same of one that was told how executions ended.
    #[expect(clippy::too_many_arguments, reason = "it is what a hello has")]
    pub(crate) fn hello_of_ends(
        &mut self,
        n: u8,
        boot: u8,
        session: u64,
        inventory: Inventory,
        cells: Vec<CellStatus>,
        promised: Option<Signed<Claim>>,
        finished: Vec<Finished>,
    ) -> Vec<Effect> {
        let hello = Hello {
            token: Signed {
                body: MemberToken { lab: peer(201), member: peer(n), role: Role::Lablet, expires: WallTime(u64::MAX) },
                signer: peer(201),
                signature: Vec::new(),
            },
            version: "1".into(),
            boot: [boot; 16],
            inventory: Inventory { name: format!("l{n}"), ..inventory },
            cells,
            promised,
            finished,
        };
        self.give(Input::Hello { from: peer(n), session, hello: Verified::vouch(hello) })
    }

    pub(crate) fn say(&mut self, n: u8, message: ToOrchestrator) -> Vec<Effect> {
        self.give(Input::Message { from: peer(n), message: Verified::vouch(message) })
    }

    /// Submits a run for somebody.
    pub(crate) fn submit_by(&mut self, by: u8, nonce: u8, run: Run) -> (ExecutionId, Vec<Effect>) {
        self.submit_with(by, nonce, run, 0)
    }

    /// The same with a priority.
    pub(crate) fn submit_with(&mut self, by: u8, nonce: u8, run: Run, priority: i32) -> (ExecutionId, Vec<Effect>) {
        let known = KnownRun { cid: codec::cid_of(&run), run };
        let node = Execution { run: known.cid, orchestrator: peer(ORCHESTRATOR), nonce: [nonce; 16] };
        let id = node.id();
        self.submissions.insert(id, Submission { execution: node.clone(), run: known.clone() });
        (id, self.give(Input::Submit { execution: node, run: known, by: peer(by), priority }))
    }

    pub(crate) fn submit(&mut self, run: Run) -> (ExecutionId, Vec<Effect>) {
        self.submit_by(202, 7, run)
    }

    pub(crate) fn bid(&mut self, n: u8, execution: ExecutionId, slots: u32) -> Vec<Effect> {
        self.bid_with(n, execution, &[(WorkloadKind::Wasm, slots)])
    }

    pub(crate) fn bid_with(&mut self, n: u8, execution: ExecutionId, slots: &[(WorkloadKind, u32)]) -> Vec<Effect> {
        let slots = slots.iter().copied().collect();
        self.say(n, ToOrchestrator::Bid(Bid { execution, epoch: epoch(1), slots, reason: String::new() }))
    }

    pub(crate) fn heartbeat(&mut self, n: u8, seq: u64, slots: u32, cells: Vec<CellStatus>) -> Vec<Effect> {
        let inventory = inventory(slots);
        let heartbeat = Heartbeat { seq, wall_us: 0, inventory, cells, clock: None, fetching: Vec::new() };
        self.say(n, ToOrchestrator::Heartbeat(heartbeat))
    }

    pub(crate) fn receipts(&mut self, n: u8, cell: &CellRef, instances: &[(&str, u32)]) -> Vec<Effect> {
        let shard = codec::cid_of(&(n, instances));
        let count = instances.len() as u32;
        let ready = ReceiptsReady { cell: cell.clone(), shard, count };
        let mut effects = self.say(n, ToOrchestrator::Receipts(ready));
        assert!(effects.iter().any(|e| matches!(e, Effect::Pull { .. })), "{effects:?}");
        effects.extend(self.pulled(n, cell, shard, instances));
        effects
    }

    pub(crate) fn pulled(&mut self, n: u8, cell: &CellRef, shard: Cid, instances: &[(&str, u32)]) -> Vec<Effect> {
        let receipts = instances
            .iter()
            .map(|(group, index)| ReceiptSummary {
                instance: InstanceId { group: (*group).to_owned(), index: *index },
                attempt: 1,
                epoch: cell.epoch.clone(),
                exit: Exit::Exited { code: 0 },
            })
            .collect();
        self.give(Input::Pulled { execution: cell.execution, lablet: peer(n), shard, receipts })
    }

    /// Brings an execution of two lablets with two instances each to its start.
    pub(crate) fn started(&mut self) -> ExecutionId {
        self.started_with(run(&[("a", 3), ("b", 1)]))
    }

    /// The same with another run of four instances.
    pub(crate) fn started_with(&mut self, run: Run) -> ExecutionId {
        self.hello(1, 1, 1, 2, vec![]);
        self.hello(2, 2, 2, 2, vec![]);
        let (id, _) = self.submit(run);
        self.bid(1, id, 2);
        self.bid(2, id, 2);
        for n in [1, 2] {
            self.say(n, ToOrchestrator::Accept(cell(id, 1)));
        }
        self.say(1, ToOrchestrator::Prepared(cell(id, 1)));
        let effects = self.say(2, ToOrchestrator::Prepared(cell(id, 1)));
        assert!(persisted(&effects).contains(&FactKind::Started {}));
        id
    }

    /// Makes first facts say nothing of the order, as they once did.
    pub(crate) fn forget_orders(&mut self) {
        for fact in &mut self.facts {
            if let FactKind::Submitted { order, .. } = &mut fact.kind {
                *order = 0;
            }
        }
    }

    /// Makes a new orchestrator out of the log.
    pub(crate) fn restart(&mut self) -> Vec<Effect> {
        self.reborn(Input::Replayed)
    }

    /// Makes one that takes over in a later term, and asks these lablets what they hold.
    pub(crate) fn take_over(&mut self, lablets: &[u8]) -> Vec<Effect> {
        let lablets = lablets.iter().map(|n| peer(*n)).collect();
        self.reborn(Input::TakeOver { term: epoch(1), lablets, handed_over: false })
    }

    /// Makes a new orchestrator out of the log once the wall clock was set, with what is known of how many milliseconds
    /// ago executions were submitted and started.
    pub(crate) fn restart_at(&mut self, jump_us: i64, ages: &[(ExecutionId, Option<u64>, Option<u64>)]) -> Vec<Effect> {
        self.reborn_at(Input::Replayed, jump_us, ages)
    }

    pub(crate) fn reborn(&mut self, ready: Input) -> Vec<Effect> {
        self.reborn_at(ready, 0, &[])
    }

    pub(crate) fn reborn_at(
        &mut self,
        ready: Input,
        jump_us: i64,
        ages: &[(ExecutionId, Option<u64>, Option<u64>)],
    ) -> Vec<Effect> {
        let facts = std::mem::take(&mut self.facts);
        let mut next = Bench::with(|_| {});
        next.now = self.now;
        next.core = Orchestrator::new(OrchestratorConfig::new(peer(ORCHESTRATOR), peer(201), "lab".into()));
        let unix_us = (1_800_000_000_000_000 + self.now.0 / 1_000).saturating_add_signed(jump_us);
        next.give(Input::Wall { unix_us });
        // As logs are read: one after the other, by the names of their executions.
        let mut logs: Vec<&Fact> = facts.iter().collect();
        logs.sort_by_key(|fact| fact.execution);
        for fact in logs {
            let is_first = matches!(fact.kind, FactKind::Submitted { .. });
            let submission = self.submissions.get(&fact.execution).filter(|_| is_first).cloned().map(Box::new);
            let effects = next.give(Input::Replay { facts: vec![fact.clone()], submission });
            assert!(effects.is_empty(), "a replayed fact is not acted on");
        }
        for (execution, submitted, started) in ages.iter().copied() {
            let (submitted, started) = (submitted.map(Duration::from_millis), started.map(Duration::from_millis));
            next.give(Input::Aged { execution, submitted, started });
        }
        next.facts = facts;
        next.submissions = std::mem::take(&mut self.submissions);
        *self = next;
        self.give(ready)
    }
}

pub(crate) fn epoch(counter: u64) -> Epoch {
    Epoch { counter, peer: peer(ORCHESTRATOR) }
}

pub(crate) fn cell(execution: ExecutionId, counter: u64) -> CellRef {
    CellRef { execution, epoch: epoch(counter) }
}

/// What a lablet says of a cell.
pub(crate) fn status(cell: CellRef, phase: CellPhase, running: u32, ended: u32) -> CellStatus {
    CellStatus { cell, assignments: Vec::new(), phase, running, ended, directory: 1, attempt: 1 }
}

pub(crate) fn persisted(effects: &[Effect]) -> Vec<FactKind> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Persist { kind, .. } => Some(kind.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn sent_to(effects: &[Effect], n: u8) -> Vec<ToLablet> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Send { to, message } if *to == peer(n) => Some(message.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn grants(effects: &[Effect]) -> Vec<Grant> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::SendGrant { grant, .. } => Some(grant.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn placements(effects: &[Effect]) -> Vec<Placement> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::StorePlacement(placement) => Some(placement.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn order(effects: &[Effect]) -> Option<AssemblyOrder> {
    effects.iter().find_map(|e| match e {
        Effect::Assemble(order) => Some((**order).clone()),
        _ => None,
    })
}

pub(crate) fn failure(effects: &[Effect]) -> Option<iptl_wire::control::Failure> {
    effects.iter().find_map(|e| match e {
        Effect::Notify { event: Event::Failed { failure, .. }, .. } => Some(failure.clone()),
        Effect::Persist { kind: FactKind::CannotStart(why), .. } => Some(why.clone().into()),
        _ => None,
    })
}

pub(crate) fn result() -> AssembledResult {
    AssembledResult {
        cid: codec::cid_of(&"result"),
        verdict: ResultVerdict::Pass,
        counts: Counts { ok: 4, failed: 0, lost: 0 },
        thresholds: Vec::new(),
        inconclusive: Vec::new(),
        failures: Vec::new(),
        notes: Vec::new(),
    }
}
