//! Many lablets in one thread: the cores of a whole lab with nothing between them, and the orchestrator's log on disk.
//!
//! Only what the cores cost is in these figures, and what the disk does: no network, no instances.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use iptl_dag::model::{self, Counts, Execution, ExecutionId, Exit, Fact, FactKind, InstanceId, ResultVerdict, Signed};
use iptl_dag::{Cid, PeerId, codec};
use iptl_scheduler::{
    AssembledResult, Effect, Input, Lablet, LabletConfig, LabletEffect, LabletInput, Orchestrator, OrchestratorConfig,
    ReceiptSummary, log,
};
use iptl_trust::{Keypair, sign};
use iptl_wire::lab::{Certificate, MemberToken, Role};
use iptl_wire::session::{Hello, KnownRun, ToLablet, ToOrchestrator, Welcome};
use iptl_wire::{Timestamp, Verified, WallTime};

use crate::report::Row;

/// Lablets among which an offer finds its first bid.
const CROWDS: [u32; 3] = [50, 500, 5_000];

/// Instances of the large execution, and its lablets.
const LARGE: (u32, u32) = (10_000, 100);

/// Wall time of the beginning, in microseconds since 1970.
const WALL_US: u64 = 1_800_000_000_000_000;

/// The lab's own name.
const LAB: u8 = 250;

/// A lab of cores.
struct Crowd {
    now: Timestamp,
    key: Keypair,
    lead: Orchestrator,
    /// What it executes.
    run: model::Run,
    lablets: BTreeMap<PeerId, Member>,
    up: VecDeque<(PeerId, ToOrchestrator)>,
    down: VecDeque<(PeerId, Down)>,
    shards: BTreeMap<Cid, Vec<ReceiptSummary>>,
    log: Log,
    /// Messages that belong to executions, both ways.
    messages: u64,
    /// When the first bid was taken in.
    first_bid: Option<Instant>,
    is_over: bool,
}

struct Member {
    core: Lablet,
    /// What ended and has no receipt yet.
    unsealed: Vec<ReceiptSummary>,
}

#[expect(clippy::large_enum_variant, reason = "messages are made, sent and gone")]
enum Down {
    Offer(Verified<iptl_wire::offer::Offer>),
    Message(ToLablet),
}

/// The log of the orchestrator: signed facts in a chain, in a file.
struct Log {
    file: File,
    bytes: Vec<u8>,
    unwritten: Vec<u8>,
    head: Option<Cid>,
    facts: u64,
    syncs: u64,
}

impl Log {
    fn append(&mut self, key: &Keypair, execution: ExecutionId, epoch: model::Epoch, kind: FactKind) {
        let fact = Fact { execution, seq: self.facts, prev: self.head, epoch, at_ms: 1, kind };
        let block = model::to_block(sign(key, fact));
        log::append_record(&mut self.unwritten, block.data());
        (self.head, self.facts) = (Some(*block.cid()), self.facts + 1);
    }

    fn commit(&mut self) -> Result<()> {
        if !self.unwritten.is_empty() {
            self.file.write_all(&self.unwritten)?;
            self.file.sync_data()?;
            self.bytes.append(&mut self.unwritten);
            self.syncs += 1;
        }
        Ok(())
    }
}

impl Crowd {
    fn new(lablets: u32, instances: u32, dir: &Path) -> Result<Crowd> {
        let key = Keypair::from_seed(&[1; 32]);
        let mut lead = Orchestrator::new(OrchestratorConfig::new(key.peer().clone(), peer(LAB), "lab".to_owned()));
        let now = Timestamp(1_000_000_000);
        lead.handle(now, Input::Wall { unix_us: WALL_US });
        lead.handle(now, Input::Replayed);
        // The second of its runs spreads.
        let (_, run, inventory) = iptl_sim::crowd(lablets, instances).remove(1);
        let file = File::create(dir.join("log")).context("the log")?;
        let log = Log { file, bytes: Vec::new(), unwritten: Vec::new(), head: None, facts: 0, syncs: 0 };
        let mut crowd = Crowd {
            now,
            key,
            lead,
            run,
            lablets: BTreeMap::new(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            shards: BTreeMap::new(),
            log,
            messages: 0,
            first_bid: None,
            is_over: false,
        };
        for (name, inventory) in inventory {
            let mut core = Lablet::new(LabletConfig::new(name.clone(), peer(LAB)));
            core.handle(now, LabletInput::Wall { unix_us: WALL_US });
            core.handle(now, LabletInput::Inventory(inventory.clone()));
            crowd.lablets.insert(name.clone(), Member { core, unsealed: Vec::new() });
            let token =
                MemberToken { lab: peer(LAB), member: name.clone(), role: Role::Lablet, expires: WallTime(u64::MAX) };
            let hello = Hello {
                token: sign(&crowd.key, token),
                version: "1".to_owned(),
                boot: [1; 16],
                inventory,
                cells: Vec::new(),
                promised: None,
                finished: Vec::new(),
            };
            crowd.lead.handle(now, Input::Hello { from: name, session: 1, hello: Verified::vouch(hello) });
        }
        crowd.settle()?;
        Ok(crowd)
    }

    /// Runs an execution to its end; returns when it was submitted.
    fn execute(&mut self) -> Result<Instant> {
        let run = self.run.clone();
        let run = KnownRun { cid: codec::cid_of(&run), run };
        let execution = Execution { run: run.cid, orchestrator: self.key.peer().clone(), nonce: [7; 16] };
        let by = self.key.peer().clone();
        (self.messages, self.first_bid, self.is_over) = (0, None, false);
        let begun = Instant::now();
        self.lead.handle(self.now, Input::Submit { execution, run, by, priority: 0 });
        self.settle()?;
        while !self.is_over {
            self.wait()?;
        }
        Ok(begun)
    }

    /// Lets time pass until somebody has something to do.
    fn wait(&mut self) -> Result<()> {
        let lead = self.lead.poll_timeout();
        let next = self.lablets.values().filter_map(|member| member.core.poll_timeout()).chain(lead).min();
        self.now = Timestamp(next.context("nobody waits for anything, and nothing is over")?.0.max(self.now.0));
        if lead.is_some_and(|at| at <= self.now) {
            self.lead.handle(self.now, Input::Timeout);
        }
        for member in self.lablets.values_mut() {
            if member.core.poll_timeout().is_some_and(|at| at <= self.now) {
                member.core.handle(self.now, LabletInput::Timeout);
            }
        }
        self.settle()
    }

    /// Carries messages until nobody has anything to say. What lablets say goes first, as if each was by itself.
    fn settle(&mut self) -> Result<()> {
        let names: Vec<PeerId> = self.lablets.keys().cloned().collect();
        names.iter().for_each(|name| self.act(name));
        loop {
            self.lead_acts()?;
            if let Some((from, message)) = self.up.pop_front() {
                let is_bid = matches!(message, ToOrchestrator::Bid(_));
                self.messages += u64::from(!matches!(message, ToOrchestrator::Heartbeat(_)));
                self.lead.handle(self.now, Input::Message { from, message: Verified::vouch(message) });
                if is_bid {
                    self.first_bid.get_or_insert_with(Instant::now);
                }
            } else if let Some((to, down)) = self.down.pop_front() {
                let Some(member) = self.lablets.get_mut(&to) else { continue };
                let from = self.key.peer().clone();
                let input = match down {
                    Down::Offer(offer) => LabletInput::Offer(offer),
                    Down::Message(message) => {
                        self.messages += u64::from(!matches!(message, ToLablet::Lease(_)));
                        LabletInput::Message { from, message: Verified::vouch(message) }
                    }
                };
                member.core.handle(self.now, input);
                self.act(&to);
            } else {
                return Ok(());
            }
        }
    }

    /// Does what the orchestrator's core wants, facts first.
    fn lead_acts(&mut self) -> Result<()> {
        loop {
            let effects: Vec<Effect> = std::iter::from_fn(|| self.lead.poll_effect()).collect();
            if effects.is_empty() {
                return Ok(());
            }
            let mut acts = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Persist { execution, epoch, kind } => self.log.append(&self.key, execution, epoch, kind),
                    other => acts.push(other),
                }
            }
            self.log.commit()?;
            acts.into_iter().for_each(|effect| self.lead_act(effect));
        }
    }

    fn lead_act(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.down.push_back((to, Down::Message(message))),
            Effect::SendGrant { to, grant } => {
                let grant = sign(&self.key, grant);
                self.down.push_back((to, Down::Message(ToLablet::Grant(grant))));
            }
            Effect::PublishOffer(offer) => {
                for name in self.lablets.keys() {
                    self.down.push_back((name.clone(), Down::Offer(Verified::vouch(offer.clone()))));
                }
            }
            Effect::Welcome { to, heartbeat_ms, lease_ms, .. } => {
                let certificate = Certificate {
                    lab: peer(LAB),
                    orchestrator: self.key.peer().clone(),
                    name: "lab".to_owned(),
                    expires: WallTime(u64::MAX),
                    private: false,
                };
                let certificate = Signed { body: certificate, signer: peer(LAB), signature: Vec::new() };
                let welcome = Welcome { certificate, heartbeat_ms, lease_ms, offers: Vec::new(), claim: None };
                if let Some(member) = self.lablets.get_mut(&to) {
                    member.core.handle(
                        self.now,
                        LabletInput::SessionUp {
                            orchestrator: self.key.peer().clone(),
                            hello_at: self.now,
                            promised: None,
                            welcome: Verified::vouch(welcome),
                        },
                    );
                    self.act(&to);
                }
            }
            Effect::Pull { execution, lablet, shard } => {
                let receipts = self.shards.remove(&shard).unwrap_or_default();
                self.lead.handle(self.now, Input::Pulled { execution, lablet, shard, receipts });
            }
            Effect::Assemble(order) => {
                let result = AssembledResult {
                    cid: codec::cid_of(&"result"),
                    verdict: ResultVerdict::Pass,
                    counts: Counts::default(),
                    thresholds: Vec::new(),
                    inconclusive: Vec::new(),
                    failures: Vec::new(),
                    notes: Vec::new(),
                };
                self.is_over = true;
                self.lead.handle(self.now, Input::Assembled { execution: order.execution, result });
            }
            Effect::Persist { .. }
            | Effect::StorePlacement(_)
            | Effect::Notify { .. }
            | Effect::Turn { .. }
            | Effect::Close { .. }
            | Effect::Adopt { .. }
            | Effect::Reconciled
            | Effect::StepDown { .. } => {}
        }
    }

    /// Does what a lablet's core wants: cells that are ready at once, and instances that end as soon as they start.
    fn act(&mut self, name: &PeerId) {
        let Some(member) = self.lablets.get_mut(name) else { return };
        while let Some(effect) = member.core.poll_effect() {
            let input = match effect {
                LabletEffect::Send { message, .. } => {
                    self.up.push_back((name.clone(), message));
                    continue;
                }
                LabletEffect::Prepare { cell, grant } => {
                    let receipt = |instance| ReceiptSummary {
                        instance,
                        attempt: grant.attempt,
                        epoch: grant.cell.epoch.clone(),
                        exit: Exit::Exited { code: 0 },
                    };
                    let instances = grant.assignments.iter().flat_map(model::Assignment::instances);
                    member.unsealed.extend(instances.map(receipt));
                    LabletInput::Prepared { cell }
                }
                LabletEffect::Start { cell } => {
                    let ended: Vec<InstanceId> = member.unsealed.iter().map(|r| r.instance.clone()).collect();
                    for instance in ended {
                        member.core.handle(self.now, LabletInput::InstanceEnded { cell: cell.clone(), instance });
                    }
                    continue;
                }
                LabletEffect::Seal { cell } => {
                    let receipts = std::mem::take(&mut member.unsealed);
                    let count = receipts.len() as u32;
                    let first = receipts.first().map(|r| r.instance.to_string()).unwrap_or_default();
                    let shard = codec::cid_of(&(first, count));
                    self.shards.insert(shard, receipts);
                    LabletInput::ShardSealed { cell, shard, count, last: true }
                }
                LabletEffect::Promise(_)
                | LabletEffect::Directory { .. }
                | LabletEffect::Stop { .. }
                | LabletEffect::PromiseTerm(_)
                | LabletEffect::Turn { .. }
                | LabletEffect::Tombstone { .. }
                | LabletEffect::Forget { .. } => continue,
            };
            member.core.handle(self.now, input);
        }
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

/// Measures both.
pub fn measure() -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let mut rows = Vec::new();
    let mut smallest: Option<(f64, f64)> = None;
    for lablets in CROWDS {
        let mut crowd = Crowd::new(lablets, lablets, dir.path())?;
        let begun = crowd.execute()?;
        let bid = crowd.first_bid.context("nobody bid")?;
        let took = bid.duration_since(begun).as_secs_f64() * 1e3;
        let each = crowd.messages as f64 / f64::from(lablets);
        let (took_50, each_50) = *smallest.get_or_insert((took, each));
        rows.push(Row {
            measure: format!("submission → first bid, {lablets} lablets in one thread, as many instances"),
            figure: format!("{took:.1} ms, {each:.1} messages for each lablet to the end"),
            reference: format!("{} lablets: {took_50:.1} ms, {each_50:.1} messages", CROWDS[0]),
            ratio: format!("{:.1} × the time, {:.2} × the messages", took / took_50, each / each_50),
            goal: "messages flat".to_owned(),
            reached: Some(each <= each_50 * 1.1),
            bound: "placing the run, one look at each lablet".to_owned(),
        });
    }
    rows.push(large(dir.path())?);
    Ok(rows)
}

/// One large execution, and the same log written by itself.
fn large(dir: &Path) -> Result<Row> {
    let (instances, lablets) = LARGE;
    let mut crowd = Crowd::new(lablets, instances, dir)?;
    let begun = crowd.execute()?;
    let took = begun.elapsed().as_secs_f64();
    let Log { bytes, syncs, facts, .. } = &crowd.log;
    let begun = Instant::now();
    let mut file = File::create(dir.join("again"))?;
    for part in bytes.chunks(bytes.len().div_ceil((*syncs).max(1) as usize).max(1)) {
        file.write_all(part)?;
        file.sync_data()?;
    }
    let bare = begun.elapsed().as_secs_f64();
    Ok(Row {
        measure: format!("an execution of {instances} instances on {lablets} lablets in one thread, log on disk"),
        figure: format!("{took:.2} s, {:.0} instances/s; {facts} facts, {syncs} syncs", f64::from(instances) / took),
        reference: format!("writing the same {} KiB with as many syncs: {bare:.2} s", bytes.len() >> 10),
        ratio: format!("{:.1} ×", took / bare),
        goal: "report".to_owned(),
        reached: None,
        bound: "signing facts, taking receipts in one by one".to_owned(),
    })
}
