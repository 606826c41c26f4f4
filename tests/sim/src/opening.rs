//! A long log, to measure how fast one is opened: cut into records, chained, its last signature checked, replayed.

use std::ops::Range;

use iptl_dag::model::{self, Assignment, Epoch, Execution, ExecutionId, Fact, FactKind};
use iptl_dag::{PeerId, codec};
use iptl_scheduler::log::{self, Chain, Entry};
use iptl_scheduler::{Input, Orchestrator, OrchestratorConfig, Submission};
use iptl_trust::{Keypair, sign};
use iptl_wire::Timestamp;
use iptl_wire::session::KnownRun;

use crate::world::crowd;

/// Lablets that hand receipts in.
const LABLETS: u32 = 1_000;

/// Receipts in each chunk.
const RECEIPTS: u32 = 1;

/// A log as it is on disk, with what its first fact links.
#[derive(Debug)]
pub struct LongLog {
    /// Records.
    pub bytes: Vec<u8>,
    submission: Submission,
    orchestrator: PeerId,
}

/// Writes a log of `count` facts, most of which say that receipts came; or the snapshot of it, as its next file begins.
pub fn long_log(count: u32, snapshot: bool) -> LongLog {
    let key = Keypair::from_seed(&[1; 32]);
    let peer = |n: u32| {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        PeerId::from_ed25519(&bytes)
    };
    let (_, run, _) = crowd(LABLETS, count.max(LABLETS)).remove(0);
    let cid = codec::cid_of(&run);
    let execution = Execution { run: cid, orchestrator: key.peer().clone(), nonce: [0; 16] };
    let id = execution.id();
    let each = count.div_ceil(LABLETS);
    let mut kinds = vec![FactKind::Submitted { execution: id.0, run: cid, by: key.peer().clone(), priority: 0 }];
    for n in 0..LABLETS {
        let assignments = vec![Assignment { group: "a".into(), start: n * each, count: each, lablet: peer(n) }];
        kinds.push(FactKind::Granted { lablet: peer(n), assignments, attempt: 1 });
    }
    kinds.push(FactKind::Started {});
    let left = count.saturating_sub(kinds.len() as u32);
    kinds.extend((0..left).map(|n| FactKind::Received {
        lablet: peer(n % LABLETS),
        shard: codec::cid_of(&n),
        count: RECEIPTS,
    }));
    let epoch = Epoch { counter: 1, peer: key.peer().clone() };
    let mut log = LongLog {
        bytes: Vec::new(),
        submission: Submission { execution, run: KnownRun { cid, run } },
        orchestrator: key.peer().clone(),
    };
    let mut head = None;
    let mut write = |log: &mut LongLog, seq: usize, kind: FactKind, last: bool| {
        let fact = Fact { execution: id, seq: seq as u64, prev: head, epoch: epoch.clone(), at_ms: 1, kind };
        // Only the last signature is looked at where a log is opened; making a million takes long.
        let signed = match last {
            true => sign(&key, fact),
            false => model::Signed { body: fact, signer: key.peer().clone(), signature: vec![0; 64] },
        };
        let block = model::to_block(signed);
        log::append_record(&mut log.bytes, block.data());
        head = Some(*block.cid());
    };
    let count = kinds.len();
    if snapshot {
        let fact =
            |(seq, kind)| Fact { execution: id, seq: seq as u64, prev: None, epoch: epoch.clone(), at_ms: 1, kind };
        let facts: Vec<Fact> = kinds.into_iter().enumerate().map(fact).collect();
        let parts = log::snapshot(&facts);
        let whole = parts.len();
        for (n, part) in parts.into_iter().enumerate() {
            write(&mut log, count + n, part, n + 1 == whole);
        }
    } else {
        for (seq, kind) in kinds.into_iter().enumerate() {
            write(&mut log, seq, kind, seq + 1 == count);
        }
    }
    log
}

/// Opens a log as an orchestrator does at its start; returns the facts that a core took in. Records are read by
/// `read_all`, which may do it on several threads.
///
/// # Panics
///
/// Panics where the log does not hold: it was made by [`long_log`].
pub fn open_log(log: &LongLog, read_all: impl FnOnce(&[u8], &[Range<usize>]) -> Vec<Entry>) -> usize {
    let id: ExecutionId = log.submission.execution.id();
    let bodies = log::outline(&log.bytes);
    let last = bodies.last().cloned().expect("it holds facts");
    assert_eq!(last.end, log.bytes.len(), "it was written whole");
    let mut chain: Option<Chain> = None;
    let mut facts = Vec::with_capacity(bodies.len());
    for entry in read_all(&log.bytes, &bodies) {
        let chain = chain.get_or_insert_with(|| {
            let writers = [log.orchestrator.clone()];
            let first = &entry.signed.body;
            Chain::at_snapshot(id, writers.clone(), first).unwrap_or_else(|| Chain::new(id, writers))
        });
        chain.fit(&entry.cid, &entry.signed).expect("it was written so");
        facts.push(entry.signed.body);
    }
    let head: model::Signed<Fact> = model::from_bytes(&log.bytes[last]).expect("it was written so");
    log::check_signature(&head, head.body.seq).expect("it was signed");
    let config = OrchestratorConfig::new(log.orchestrator.clone(), log.orchestrator.clone(), "sim".into());
    let mut core = Orchestrator::new(config);
    let facts = log::resume(facts);
    let count = facts.len();
    for fact in facts {
        let submission = matches!(fact.kind, FactKind::Submitted { .. }).then(|| Box::new(log.submission.clone()));
        core.handle(Timestamp(1), Input::Replay { fact: Box::new(fact), submission });
    }
    core.handle(Timestamp(1), Input::Replayed);
    count
}

/// Reads records one after another.
///
/// # Panics
///
/// Panics where one is not whole.
pub fn read_in_turn(bytes: &[u8], bodies: &[Range<usize>]) -> Vec<Entry> {
    let read = |body: &Range<usize>| log::read(bytes, body.clone()).expect("it is whole").expect("it is a fact");
    bodies.iter().map(read).collect()
}
