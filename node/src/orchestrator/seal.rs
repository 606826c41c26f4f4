//! From receipts to a sealed result: every block is here, checked and pinned before anything is stated about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iptl_artifacts::{BlobStore, PinKind, StoreError, read_block};
use iptl_dag::model::{
    self, ByLab, ExecutionId, Exit, InstanceId, Outcome, OutcomeShard, Receipt, ReceiptShard, Signed, Termination,
};
use iptl_dag::walk::{self, Limits};
use iptl_dag::{Block, Cid, PeerId};
use iptl_result::{Assembled, Assembly, AttestationRecord};
use iptl_scheduler::{AssembledResult, AssemblyOrder, ReceiptSummary};
use iptl_trust::Keypair;
use tokio::sync::mpsc;

use super::{Command, canary};
use crate::fetch::{Fetcher, Wanted};
use crate::keeper::{Holder, Keeper};

/// Receipts of a lablet that is gone are waited for no longer than this before the core decides.
const PULL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a chunk of receipts with all that its instances left: 512 of them with 64 MiB each.
const MAX_PULL_SIZE: u64 = 32 << 30;

/// Bytes of metrics that are held while a result is made. Instances whose metrics lie beyond are given up as missing.
const MAX_METRICS_SIZE: usize = 2 << 30;

/// Failures that are told with a result.
pub(super) const MAX_FAILURES: usize = 20;

/// Fetches receipts and makes results, each in a task of its own.
pub(super) struct Sealer {
    pub(super) lab: PeerId,
    pub(super) key: Arc<Keypair>,
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) fetcher: Fetcher,
    pub(super) keeper: Arc<Keeper>,
    pub(super) driver: mpsc::Sender<Command>,
}

impl Sealer {
    /// Fetches a chunk of receipts with everything that it links; `Pulled` or `PullFailed` follows.
    pub(super) fn pull(&self, execution: ExecutionId, lablet: PeerId, shard: Cid) {
        let (fetcher, store, keeper, driver) =
            (self.fetcher.clone(), self.store.clone(), self.keeper.clone(), self.driver.clone());
        tokio::spawn(async move {
            keeper.hold(execution, Holder::Orchestrator, shard);
            let from = vec![(lablet.clone(), Vec::new())];
            let wanted = Wanted { root: shard, from, fellows: Vec::new(), timeout: PULL_TIMEOUT, shallow: false };
            let limits = Limits { bytes: MAX_PULL_SIZE, ..Limits::default() };
            let command = match fetcher.within(limits).fetch(&wanted, |_| {}).await {
                Err(error) => Command::PullFailed { execution, lablet, shard, reason: error.to_string(), retry: true },
                Ok(_) => match summaries(&*store, execution, &lablet, &shard).await {
                    Ok(receipts) => Command::Pulled { execution, lablet, shard, receipts },
                    Err(reason) => Command::PullFailed { execution, lablet, shard, reason, retry: false },
                },
            };
            let _stopping = driver.send(command).await;
        });
    }

    /// Makes and stores the result; `Assembled` or `AssembleFailed` follows.
    pub(super) fn assemble(&self, order: AssemblyOrder, log: Vec<Block>) {
        let work = Work {
            lab: self.lab.clone(),
            key: self.key.clone(),
            store: self.store.clone(),
            keeper: self.keeper.clone(),
        };
        let driver = self.driver.clone();
        tokio::spawn(async move {
            let execution = order.execution;
            let command = match work.seal(order, log).await {
                Ok(result) => Command::Assembled { execution, result: Box::new(result) },
                Err(error) => {
                    Command::AssembleFailed { execution, reason: error.to_string(), may_pass: may_pass(&error) }
                }
            };
            let _stopping = driver.send(command).await;
        });
    }
}

/// Returns whether what failed may work later, with the same receipts.
fn may_pass(error: &anyhow::Error) -> bool {
    let passes = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Full { .. })) || cause.is::<std::io::Error>()
    };
    error.chain().any(passes)
}

/// Checks the receipts of a chunk that is here.
async fn summaries(
    store: &dyn BlobStore,
    execution: ExecutionId,
    lablet: &PeerId,
    shard: &Cid,
) -> Result<Vec<ReceiptSummary>, String> {
    let block = read_block(store, shard).await.map_err(|e| e.to_string())?.ok_or("it vanished from the store")?;
    let shard: ReceiptShard = model::from_bytes(block.data()).map_err(|e| e.to_string())?;
    let mut receipts = Vec::with_capacity(shard.receipts.len());
    for signed in shard.receipts {
        iptl_trust::verify_by(&signed, lablet).map_err(|e| e.to_string())?;
        let receipt = signed.body;
        if receipt.execution != execution || receipt.lablet != *lablet {
            return Err(format!("the receipt of {} is for something else", receipt.instance));
        }
        receipts.push(ReceiptSummary {
            instance: receipt.instance,
            attempt: receipt.attempt,
            epoch: receipt.epoch,
            exit: receipt.exit,
        });
    }
    Ok(receipts)
}

struct Work {
    lab: PeerId,
    key: Arc<Keypair>,
    store: Arc<dyn BlobStore>,
    keeper: Arc<Keeper>,
}

impl Work {
    async fn seal(&self, order: AssemblyOrder, log: Vec<Block>) -> anyhow::Result<AssembledResult> {
        let receipts = receipts(&*self.store, &order.shards, &order.accepted).await?;
        let mut assembly = Assembly {
            run_cid: order.run.cid,
            run: order.run.run.clone(),
            execution: order.execution,
            receipts,
            missing: order.missing.clone(),
            cancelled: order.cancelled.is_some(),
            timed_out: order.timed_out,
            cannot_start: order.cannot_start.as_ref().map(|why| why.reason.clone()),
        };
        let blocks = preload(&*self.store, &assembly, MAX_METRICS_SIZE).await?;
        let (assembly, assembled) = tokio::task::spawn_blocking(move || {
            let mut read = |cid: &Cid| blocks.get(cid).cloned();
            iptl_result::give_up_unreadable(&mut assembly, &mut read);
            let assembled = iptl_result::assemble(&assembly, &mut read);
            (assembly, assembled)
        })
        .await?;
        let assembled = assembled?;
        let record = AttestationRecord {
            lab: self.lab.clone(),
            receipts: order.shards.iter().map(|(_, shard)| *shard).collect(),
            placements: order.placements.clone(),
            log: log.last().map(|block| *block.cid()),
            lablets: order.lablets.clone(),
            submitted_ms: order.submitted_ms,
            started_ms: order.started_ms,
            ended_ms: order.ended_ms,
            distortions: order.distortions.clone(),
            attempts: order.attempts.clone(),
            ended_early: order.ended_early.clone(),
            cannot_start: order.cannot_start.clone(),
            term: order.term.clone(),
        };
        let attestation = iptl_trust::sign(&self.key, iptl_result::attestation(&assembly, &assembled, record));
        let (_, sealed) = iptl_result::seal(&assembly, &assembled, &order.node, attestation)?;
        let root = *sealed.last().ok_or_else(|| anyhow::anyhow!("a result has a root"))?.cid();
        let told = AssembledResult { notes: notes(&order, &assembled), ..told(&assembly, &assembled, root) };
        let all = log.into_iter().chain(assembled.blocks).chain(sealed).collect();
        self.store.put(all).await?;
        self.store.flush().await?;
        if !canary::is_canary(&order.run.cid) {
            self.keeper.keep(root, PinKind::Result, &order.execution.alias(), None).await?;
        }
        self.keeper.release(&order.execution, Holder::Orchestrator);
        Ok(told)
    }
}

/// Reads the receipts of instances of which one was accepted.
///
/// Of an instance that ended in two attempts all receipts are there, as they are for whoever verifies the result: which of them
/// counts is chosen by one rule, and not by which came first.
async fn receipts(
    store: &dyn BlobStore,
    shards: &[(PeerId, Cid)],
    accepted: &BTreeMap<InstanceId, (PeerId, u32)>,
) -> anyhow::Result<Vec<Signed<Receipt>>> {
    let mut receipts = Vec::new();
    for (_, cid) in shards {
        let block = read_block(store, cid).await?.ok_or_else(|| anyhow::anyhow!("{cid} is not in the store"))?;
        let shard: ReceiptShard = model::from_bytes(block.data())?;
        receipts.extend(shard.receipts.into_iter().filter(|signed| accepted.contains_key(&signed.body.instance)));
    }
    Ok(receipts)
}

/// Reads what the pure half will ask for: metrics, up to `limit` bytes, and the roots of everything that receipts link.
/// What is gone since it was pulled, or damaged, or too much, is left out, and its instances are given up.
async fn preload(store: &dyn BlobStore, assembly: &Assembly, limit: usize) -> anyhow::Result<BTreeMap<Cid, Bytes>> {
    let mut blocks = BTreeMap::new();
    let mut walked = BTreeSet::new();
    let mut size = 0;
    for receipt in assembly.receipts.iter().map(|signed| &signed.body) {
        let roots = [receipt.logs, receipt.events, receipt.artifacts].into_iter().flatten();
        for root in roots {
            if let Some(block) = read_block(store, &root).await? {
                blocks.insert(root, block.data().clone());
            }
        }
        let mut open: Vec<Cid> = receipt.metrics.into_iter().collect();
        while let Some(cid) = open.pop() {
            // A few blocks can link each other in more ways than anybody can walk: each is walked once.
            if size > limit || !walked.insert(cid) {
                continue;
            }
            let Some(block) = read_block(store, &cid).await? else { continue };
            open.extend(walk::links(&cid, block.data()).unwrap_or_default());
            size += block.data().len();
            blocks.insert(cid, block.data().clone());
        }
    }
    Ok(blocks)
}

/// Says about a result what its narrative ends with.
fn told(assembly: &Assembly, assembled: &Assembled, cid: Cid) -> AssembledResult {
    let failures = failures(assembly, assembled);
    AssembledResult {
        cid,
        verdict: assembled.result_verdict,
        counts: assembled.counts,
        thresholds: assembled.thresholds.iter().map(|t| (t.threshold.to_string(), t.measured, t.holds)).collect(),
        inconclusive: assembled.inconclusive.clone(),
        failures,
        notes: Vec::new(),
    }
}

/// Says what else is to be known of a result.
fn notes(order: &AssemblyOrder, assembled: &Assembled) -> Vec<String> {
    let blocks = &assembled.blocks;
    let outcome = blocks.iter().find(|block| *block.cid() == assembled.outcome);
    let outcome = outcome.and_then(|block| model::from_bytes::<Outcome>(block.data()).ok());
    let mut notes: Vec<String> = order.ended_early.iter().map(|why| format!("the plan had it ended: {why}")).collect();
    for (group, loss) in outcome.iter().flat_map(|outcome| &outcome.losses).filter(|(_, loss)| loss.accepted) {
        notes.push(format!("{} of {group} lost, which the plan accepts: {} may be", loss.lost, loss.max_lost));
    }
    if let Some(most) = order.attempts.values().max() {
        let further: u64 = order.attempts.values().map(|attempt| u64::from(attempt - 1)).sum();
        let instances = order.attempts.len();
        notes.push(format!("{instances} began anew: {further} further attempts, {most} in all for one at most"));
    }
    notes
}

/// Says how the lab lost an instance that left a receipt.
fn ended_by(exit: &Exit) -> String {
    match exit.by_lab() {
        Some(ByLab::Stopped(reason)) => format!("stopped: {reason}"),
        Some(ByLab::WorkerDied(reason)) => format!("worker died: {reason}"),
        Some(ByLab::NotStarted(reason)) => format!("not started: {reason}"),
        None => "its receipt could not be used".to_owned(),
    }
}

/// Returns the first instances that did not end well, with their causes, out of the outcome.
fn failures(assembly: &Assembly, assembled: &Assembled) -> Vec<(String, String)> {
    let lost_by = |id: &InstanceId| match assembled.missing.get(id) {
        Some(reason) => reason.clone(),
        None => {
            let receipts = assembly.receipts.iter().filter(|signed| signed.body.instance == *id);
            let receipt = receipts.max_by_key(|signed| signed.body.attempt);
            receipt.map_or_else(|| "stopped".to_owned(), |signed| ended_by(&signed.body.exit))
        }
    };
    let blocks: BTreeMap<&Cid, &Block> = assembled.blocks.iter().map(|block| (block.cid(), block)).collect();
    let Some(outcome) =
        blocks.get(&assembled.outcome).and_then(|block| model::from_bytes::<Outcome>(block.data()).ok())
    else {
        return Vec::new();
    };
    let mut failures = Vec::new();
    for (name, group) in &outcome.groups {
        for shard in &group.instances {
            let shard = blocks.get(shard).and_then(|block| model::from_bytes::<OutcomeShard>(block.data()).ok());
            for instance in shard.into_iter().flat_map(|shard| shard.instances) {
                if failures.len() == MAX_FAILURES {
                    return failures;
                }
                let id = InstanceId { group: name.clone(), index: instance.index };
                match instance.termination {
                    Termination::Ok {} => {}
                    Termination::Failed { cause } => failures.push((id.to_string(), cause)),
                    Termination::Lost {} => {
                        failures.push((id.to_string(), format!("lost: {}", lost_by(&id))));
                    }
                }
            }
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use iptl_artifacts::MemStore;
    use iptl_dag::Codec;
    use iptl_dag::model::{
        Engine, Epoch, Execution, GroupRun, LossPolicy, Network, Placing, Requirements, Resources, Run, Usage,
        WorkloadKind,
    };

    use super::*;

    /// Makes the assembly of an execution with one receipt, whose metrics are `metrics`.
    fn assembly(metrics: Cid) -> Assembly {
        let peer = PeerId::from_ed25519(&[1; 32]);
        let run = Run {
            plan: metrics,
            case: "case".into(),
            groups: BTreeMap::new(),
            params: BTreeMap::new(),
            seed: 1,
            engine: Engine::Live,
            network: Network::Clean,
            faults: Vec::new(),
            loss: LossPolicy::default(),
            thresholds: Vec::new(),
            timeout_ms: 1,
            placing: Placing::default(),
            captures: BTreeMap::new(),
        };
        let run_cid = iptl_dag::codec::cid_of(&run);
        let execution = Execution { run: run_cid, orchestrator: peer.clone(), nonce: [0; 16] }.id();
        let receipt = Receipt {
            execution,
            instance: InstanceId { group: "g".into(), index: 0 },
            attempt: 1,
            epoch: Epoch { counter: 1, peer: peer.clone() },
            workload: metrics,
            lablet: peer.clone(),
            runner: String::new(),
            started_ms: 0,
            ended_ms: 0,
            exit: Exit::Exited { code: 0 },
            usage: Usage::default(),
            logs: None,
            events: None,
            metrics: Some(metrics),
            artifacts: None,
            samples: None,
            limits_met: Vec::new(),
            interventions: Vec::new(),
            adopted: None,
            network: None,
        };
        Assembly {
            run_cid,
            run,
            execution,
            receipts: vec![Signed { body: receipt, signer: peer, signature: Vec::new() }],
            missing: BTreeMap::new(),
            cancelled: false,
            timed_out: false,
            cannot_start: None,
        }
    }

    /// Puts levels of blocks that each link the one below twice: 2^levels ways down.
    async fn bomb(store: &MemStore, levels: u32) -> Cid {
        let leaf = Block::new(Codec::Raw, "leaf");
        let mut top = *leaf.cid();
        store.put(vec![leaf]).await.unwrap();
        for _ in 0..levels {
            let block = Block::new(Codec::DagCbor, iptl_dag::codec::encode(&(top, top)));
            top = *block.cid();
            store.put(vec![block]).await.unwrap();
        }
        top
    }

    #[tokio::test]
    async fn metrics_that_link_each_other_in_endless_ways_are_read_once() {
        let store = MemStore::default();
        let top = bomb(&store, 64).await;
        let blocks = preload(&store, &assembly(top), usize::MAX).await.unwrap();
        assert_eq!(blocks.len(), 65);
    }

    #[tokio::test]
    async fn metrics_beyond_what_memory_holds_are_left_out() {
        let store = MemStore::default();
        let top = bomb(&store, 20).await;
        let blocks = preload(&store, &assembly(top), 200).await.unwrap();
        assert!(blocks.len() < 10, "{}", blocks.len());
    }

    #[tokio::test]
    async fn attempt_that_counts_is_not_the_one_whose_receipt_came_first() {
        let store = MemStore::default();
        let nothing = iptl_dag::codec::cid_of(&"nothing");
        let mut assembly = assembly(nothing);
        let mut first = assembly.receipts.remove(0);
        first.body.metrics = None;
        let other = PeerId::from_ed25519(&[2; 32]);
        let mut second = Signed { signer: other.clone(), ..first.clone() };
        second.body.lablet = other.clone();
        second.body.attempt = 2;
        second.body.epoch.counter = 2;
        second.body.exit = Exit::Exited { code: 3 };
        let instance = first.body.instance.clone();
        let accepted = BTreeMap::from([(instance, (first.signer.clone(), 1))]);
        let mut shards = Vec::new();
        for receipt in [first, second] {
            let signer = receipt.signer.clone();
            let block = iptl_dag::model::to_block(ReceiptShard { receipts: vec![receipt] });
            shards.push((signer, *block.cid()));
            store.put(vec![block]).await.unwrap();
        }
        let group = GroupRun {
            workload: nothing,
            kind: WorkloadKind::Wasm,
            count: 1,
            args: Vec::new(),
            env: BTreeMap::new(),
            resources: Resources::default(),
            requires: Requirements::default(),
            container: None,
            loss: None,
            start: None,
        };
        assembly.run.groups.insert("g".into(), group);
        assembly.receipts = receipts(&store, &shards, &accepted).await.unwrap();
        let assembled = iptl_result::assemble(&assembly, &mut |_| None).unwrap();
        let failed = failures(&assembly, &assembled);
        assert!(failed.len() == 1 && failed[0].1.contains('3'), "the second attempt failed: {failed:?}");
    }
}
