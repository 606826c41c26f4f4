//! A long log, to measure how fast one is opened: cut into records, chained, its last signature checked, replayed.

use iptl_dag::model::{self, Assignment, Epoch, Execution, ExecutionId, Fact, FactKind};
use iptl_dag::{PeerId, codec};
use iptl_scheduler::log::{self, Opening};
use iptl_scheduler::{Effect, Input, Orchestrator, OrchestratorConfig, Submission};
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
    /// Its execution.
    pub execution: ExecutionId,
    submission: Submission,
}

/// A core that a log is replayed into.
#[derive(Debug)]
pub struct Replay {
    core: Orchestrator,
    submission: Submission,
    facts: usize,
}

impl LongLog {
    /// Returns the key of the orchestrator that wrote it.
    pub fn key(&self) -> Keypair {
        key()
    }

    /// Makes a core that knows nothing yet.
    pub fn replay(&self) -> Replay {
        let peer = key().peer().clone();
        let config = OrchestratorConfig::new(peer.clone(), peer, "sim".into());
        Replay { core: Orchestrator::new(config), submission: self.submission.clone(), facts: 0 }
    }
}

impl Replay {
    /// Takes in what the log says next.
    pub fn take(&mut self, facts: Vec<Fact>) {
        self.facts += facts.len();
        let is_first = |fact: &Fact| matches!(fact.kind, FactKind::Submitted { .. });
        let submission = facts.iter().any(is_first).then(|| Box::new(self.submission.clone()));
        self.core.handle(Timestamp(1), Input::Replay { facts, submission });
    }

    /// Ends the replay, and takes the orders to read receipts again; returns the facts, and these orders.
    pub fn end(mut self) -> (usize, usize) {
        self.core.handle(Timestamp(1), Input::Replayed);
        let mut pulls = 0;
        while let Some(effect) = self.core.poll_effect() {
            pulls += usize::from(matches!(effect, Effect::Pull { .. }));
        }
        // That memory is given back is no part of what is measured: an orchestrator keeps it.
        std::mem::forget(self.core);
        (self.facts, pulls)
    }
}

fn key() -> Keypair {
    Keypair::from_seed(&[1; 32])
}

/// Writes a log of `count` facts, most of which say that receipts came; or the snapshot of it, as its next file begins.
pub fn long_log(count: u32, snapshot: bool) -> LongLog {
    let key = key();
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
    let mut kinds =
        vec![FactKind::Submitted { execution: id.0, run: cid, by: key.peer().clone(), priority: 0, order: 0 }];
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
    let mut log =
        LongLog { bytes: Vec::new(), execution: id, submission: Submission { execution, run: KnownRun { cid, run } } };
    let mut head = snapshot.then(|| codec::cid_of(&"the last fact before"));
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

/// Records that are read before they are replayed.
const WINDOW: usize = 4096;

/// Opens a log as an orchestrator does at its start, on one thread; returns the facts that a core took in.
///
/// # Panics
///
/// Panics where the log does not hold: it was made by [`long_log`].
pub fn open_log(log: &LongLog) -> usize {
    let bodies = log::outline(&log.bytes);
    let last = bodies.last().cloned().expect("it holds facts");
    assert_eq!(last.end, log.bytes.len(), "it was written whole");
    let mut opening: Option<Opening> = None;
    let mut replay = log.replay();
    for window in bodies.chunks(WINDOW) {
        let mut facts = Vec::with_capacity(WINDOW);
        for body in window {
            let entry = log::read(&log.bytes, body.clone()).expect("it is whole").expect("it is a fact");
            let new = || Opening::new([log.key().peer().clone()], &entry.fact, true);
            opening.get_or_insert_with(new).take(entry, &mut facts).expect("it was written so");
        }
        replay.take(facts);
    }
    let opening = opening.expect("it holds facts");
    opening.end(&log.bytes[last]).expect("it was signed");
    replay.end().0
}
