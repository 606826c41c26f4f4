//! Logs as values: what fits, what does not and in which word, and snapshots.

use iptl_dag::model::{self, Assignment, Epoch, ExecutionId, Fact, FactKind, InstanceId, Recorded};
use iptl_dag::{Block, PeerId, codec};
use iptl_scheduler::log::{self, Chain, Misfit, Tail, append_record, audit, records, resume, snapshot};
use iptl_trust::{Keypair, sign};

pub(crate) fn key(n: u8) -> Keypair {
    Keypair::from_seed(&[n; 32])
}

pub(crate) fn execution() -> ExecutionId {
    ExecutionId(codec::cid_of(&"execution"))
}

fn lablet(n: u8) -> PeerId {
    key(100 + n).peer().clone()
}

fn assignment(n: u8) -> Assignment {
    Assignment { group: "a".into(), start: u32::from(n), count: 1, lablet: lablet(n) }
}

pub(crate) fn granted(n: u8) -> FactKind {
    FactKind::Granted { lablet: lablet(n), assignments: vec![assignment(n)], attempt: 1 }
}

pub(crate) fn submitted() -> FactKind {
    FactKind::Submitted { execution: execution().0, run: codec::cid_of(&"run"), by: lablet(9), priority: 0, order: 0 }
}

/// A log that a test writes.
pub(crate) struct Writer {
    pub(crate) facts: Vec<Fact>,
    pub(crate) blocks: Vec<Block>,
}

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer { facts: Vec::new(), blocks: Vec::new() }
    }

    pub(crate) fn write(&mut self, by: u8, counter: u64, kind: FactKind) -> &mut Writer {
        let epoch = Epoch { counter, peer: key(by).peer().clone() };
        let prev = self.blocks.last().map(|b| *b.cid());
        let fact = Fact { execution: execution(), seq: self.facts.len() as u64, prev, epoch, at_ms: 5, kind };
        self.push(by, fact)
    }

    pub(crate) fn push(&mut self, by: u8, fact: Fact) -> &mut Writer {
        self.blocks.push(model::to_block(sign(&key(by), fact.clone())));
        self.facts.push(fact);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in &self.blocks {
            append_record(&mut bytes, block.data());
        }
        bytes
    }
}

/// A log of every kind of fact, from submission to result.
pub(crate) fn whole() -> Writer {
    let mut log = Writer::new();
    let shard = codec::cid_of(&"shard");
    let instances = vec![InstanceId { group: "a".into(), index: 2 }];
    log.write(1, 1, submitted()).write(1, 1, FactKind::Placed { placement: codec::cid_of(&"placement") });
    log.write(1, 1, granted(1)).write(1, 1, FactKind::Accepted { lablet: lablet(1) });
    log.write(1, 1, FactKind::Refused { lablet: lablet(1), reason: "full".into() });
    log.write(1, 2, granted(1)).write(1, 2, granted(2)).write(1, 2, FactKind::Accepted { lablet: lablet(1) });
    log.write(1, 2, FactKind::Started {});
    log.write(1, 2, FactKind::Received { lablet: lablet(1), shard, count: 1 });
    log.write(1, 2, FactKind::Lost { lablet: Some(lablet(2)), instances, reason: "gone".into() });
    log.write(1, 2, FactKind::Sealed { result: codec::cid_of(&"result"), term: None });
    log
}

pub(crate) fn writers() -> Vec<PeerId> {
    vec![key(1).peer().clone()]
}

#[test]
fn a_whole_log_is_followed_to_its_end() {
    let log = whole();
    let audit = audit(execution(), writers(), &log.blocks);
    assert_eq!(audit.misfit, None);
    assert_eq!(audit.facts.into_iter().map(|(_, f)| f).collect::<Vec<_>>(), log.facts);
}

/// Reads by outline; none where something is not whole.
fn read_by_outline(bytes: &[u8]) -> Option<Vec<log::Entry>> {
    let bodies = log::outline(bytes);
    let whole = bodies.last().map_or(0, |body| body.end) == bytes.len();
    bodies.into_iter().map(|body| log::read(bytes, body)?.ok()).collect::<Option<Vec<_>>>().filter(|_| whole)
}

fn fit(chain: &mut Chain, entry: &log::Entry) -> Result<(), Misfit> {
    chain.fit(&entry.cid, &entry.signer, &entry.fact)
}

#[test]
fn what_is_read_by_outline_is_what_was_written_and_fits() {
    let log = whole();
    let entries = read_by_outline(&log.bytes()).expect("it is whole");
    let mut chain = Chain::new(execution(), writers());
    for ((entry, block), fact) in entries.iter().zip(&log.blocks).zip(&log.facts) {
        assert_eq!((&entry.cid, &entry.fact), (block.cid(), fact));
        assert_eq!(fit(&mut chain, entry), Ok(()));
    }
    assert_eq!((entries.len(), chain.head()), (log.blocks.len(), log.blocks.last().map(|block| *block.cid())));
    // An entry that is left out is missed.
    let mut chain = Chain::new(execution(), writers());
    assert_eq!(fit(&mut chain, &entries[0]), Ok(()));
    assert_eq!(fit(&mut chain, &entries[2]), Err(Misfit::OutOfOrder { seq: 1, found: 2 }));
}

#[test]
fn a_flipped_bit_anywhere_is_found_by_whoever_reads_by_outline() {
    let bytes = whole().bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert_eq!(read_by_outline(&flipped), None, "bit {bit} of byte {at}");
        }
    }
    for cut in 1..bytes.len() {
        let whole = records(&bytes[..cut]).tail == Tail::Clean;
        assert_eq!(read_by_outline(&bytes[..cut]).is_some(), whole, "cut at {cut}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let me = key(1).peer().clone();
    let check = |make: &dyn Fn(&mut Writer), expected: Misfit| {
        let mut log = Writer::new();
        log.write(1, 1, submitted()).write(1, 3, granted(1));
        make(&mut log);
        let audit = audit(execution(), [me.clone(), key(2).peer().clone()], &log.blocks);
        assert_eq!(audit.misfit, Some(expected));
    };
    let last = |log: &Writer| log.facts[log.facts.len() - 1].clone();
    check(
        &|log| log.blocks[1] = Block::new(iptl_dag::Codec::Raw, vec![1]),
        Misfit::NoFact { seq: 1, reason: "it is not DAG-CBOR".into() },
    );
    check(
        &|log| {
            log.write(3, 3, FactKind::Started {});
        },
        Misfit::Stranger { seq: 2, signer: key(3).peer().clone() },
    );
    check(
        &|log| {
            // A stranger signs in the name of one who may write.
            let fact = Fact { seq: 2, prev: Some(*log.blocks[1].cid()), kind: FactKind::Started {}, ..last(log) };
            log.push(3, fact);
        },
        Misfit::Stranger { seq: 2, signer: key(3).peer().clone() },
    );
    check(
        &|log| {
            log.write(1, 2, FactKind::Started {});
        },
        Misfit::TermBack { seq: 2, from: 3, to: 2 },
    );
    check(
        &|log| {
            log.write(1, u64::MAX, FactKind::Started {});
        },
        Misfit::TermSpent { seq: 2 },
    );
    check(
        &|log| {
            log.write(2, 4, FactKind::Started {});
        },
        Misfit::NotTakenOver { seq: 2 },
    );
    check(
        &|log| {
            log.write(2, 3, FactKind::TakenOver { from: log.facts[1].epoch.clone() });
        },
        Misfit::NotTakenOver { seq: 2 },
    );
    check(
        &|log| {
            let other = ExecutionId(codec::cid_of(&"other"));
            let fact = Fact { execution: other, ..last(log) };
            log.push(1, fact);
        },
        Misfit::OtherExecution { seq: 2, found: ExecutionId(codec::cid_of(&"other")) },
    );
    check(
        &|log| {
            log.blocks.remove(0);
        },
        Misfit::OutOfOrder { seq: 0, found: 1 },
    );
    check(
        &|log| {
            log.write(1, 3, submitted());
        },
        impossible(2, "submits the execution again"),
    );
    check(
        &|log| {
            log.write(1, 3, FactKind::Accepted { lablet: lablet(5) });
        },
        impossible(2, "has a lablet take what it was not granted"),
    );
    check(
        &|log| {
            log.write(1, 3, FactKind::Failed { reason: "why".into(), term: None }).write(1, 3, FactKind::TimedOut {});
        },
        impossible(3, "comes after the last"),
    );
    check(
        &|log| {
            let term = Some(Epoch { counter: u64::MAX, ..last(log).epoch });
            log.write(1, 3, FactKind::Failed { reason: "why".into(), term });
        },
        Misfit::TermSpent { seq: 2 },
    );
    check(
        &|log| {
            let facts = vec![Recorded { epoch: last(log).epoch, at_ms: 5, kind: FactKind::Started {} }];
            log.write(1, 3, FactKind::Snapshot { part: 0, last: true, facts });
        },
        impossible(2, "is a snapshot of something else than the log"),
    );
}

fn impossible(seq: u64, what: &'static str) -> Misfit {
    Misfit::Impossible { seq, what }
}

#[test]
fn a_signature_that_does_not_hold_is_found_and_the_facts_before_it_stand() {
    let mut log = whole();
    let mut signed = sign(&key(1), log.facts[3].clone());
    signed.signature[10] ^= 1;
    log.blocks.truncate(3);
    log.blocks.push(model::to_block(signed));
    let audit = audit(execution(), writers(), &log.blocks);
    assert_eq!(audit.facts.len(), 3);
    assert!(matches!(audit.misfit, Some(Misfit::BadSignature { seq: 3, .. })), "{:?}", audit.misfit);
}

#[test]
fn a_takeover_in_a_later_term_goes_on_with_the_log() {
    let mut log = Writer::new();
    log.write(1, 2, submitted()).write(1, 2, granted(1));
    let from = log.facts[1].epoch.clone();
    log.write(2, 3, FactKind::TakenOver { from: from.clone() });
    let recovered =
        FactKind::Recovered { lablet: lablet(2), granted: from, assignments: vec![assignment(2)], attempt: 1 };
    log.write(2, 3, recovered).write(2, 3, FactKind::Started {});
    let both = [key(1).peer().clone(), key(2).peer().clone()];
    assert_eq!(audit(execution(), both, &log.blocks).misfit, None);
    let signer = key(2).peer().clone();
    assert_eq!(audit(execution(), writers(), &log.blocks).misfit, Some(Misfit::Stranger { seq: 2, signer }));
}

#[test]
fn a_snapshot_says_what_the_log_says_without_what_makes_no_difference() {
    let mut log = whole();
    let before = log.facts.len() - 1;
    let parts = snapshot(&log.facts[..before]);
    assert_eq!(parts.len(), 1);
    let last = log.facts.pop().expect("it has facts");
    log.blocks.pop();
    for part in parts {
        log.write(1, 2, part);
    }
    log.write(1, 2, last.kind);
    assert_eq!(audit(execution(), writers(), &log.blocks).misfit, None);

    let resumed = resume(log.facts.clone());
    let kinds: Vec<&FactKind> = resumed.iter().map(|f| &f.kind).collect();
    // The first grant was given back, and what was said to it is gone with it.
    assert_eq!(kinds.len(), before - 2 + 1);
    assert!(!resumed.iter().any(|f| f.epoch.counter == 1 && matches!(f.kind, FactKind::Granted { .. })));
    assert!(matches!(kinds[2], FactKind::Refused { .. }), "{kinds:?}");
    // A snapshot of what was resumed is the same.
    assert_eq!(snapshot(&resumed[..resumed.len() - 1]), snapshot(&log.facts[..before]));

    // Where only the snapshot and what follows is at hand, the chain goes on from there.
    let mut chain = Chain::at_snapshot(execution(), writers(), &log.facts[before]).expect("it is a first part");
    for block in &log.blocks[before..] {
        chain.follow(block).expect("it fits");
    }
    assert!(chain.is_over());
}

#[test]
fn a_snapshot_of_a_long_log_has_parts_and_a_part_that_is_missing_makes_it_nothing() {
    let mut log = Writer::new();
    log.write(1, 1, submitted()).write(1, 1, granted(1)).write(1, 1, FactKind::Started {});
    for n in 0..20_000u32 {
        let shard = codec::cid_of(&n);
        // Blocks are not needed here: only what facts say.
        let fact = Fact { kind: FactKind::Received { lablet: lablet(1), shard, count: 1 }, ..log.facts[2].clone() };
        log.facts.push(fact);
    }
    let parts = snapshot(&log.facts);
    assert!(parts.len() > 2, "{}", parts.len());
    for part in &parts {
        assert!(codec::encode(part).len() < log::MAX_RECORD_SIZE * 3 / 4);
    }
    let all = log.facts.clone();
    let with = |parts: &[FactKind]| {
        let parts = parts.iter().map(|kind| Fact { kind: kind.clone(), ..all[0].clone() });
        all.iter().cloned().chain(parts).collect::<Vec<_>>()
    };
    let kinds = |facts: Vec<Fact>| facts.into_iter().map(|f| f.kind).collect::<Vec<_>>();
    assert_eq!(kinds(resume(with(&parts))), kinds(all.clone()));
    // Torn off before its last part: the facts before it say all.
    assert_eq!(resume(with(&parts[..parts.len() - 1])), all);
}

#[test]
fn a_part_that_does_not_follow_the_part_before_it_does_not_fit() {
    let recorded =
        vec![Recorded { epoch: Epoch { counter: 1, peer: writers()[0].clone() }, at_ms: 5, kind: submitted() }];
    let part = |part, last| FactKind::Snapshot { part, last, facts: recorded.clone() };
    let nested = FactKind::Snapshot {
        part: 0,
        last: true,
        facts: vec![Recorded { epoch: recorded[0].epoch.clone(), at_ms: 5, kind: part(0, true) }],
    };
    for (kinds, seq, what) in [
        (vec![part(0, false), part(2, true)], 2, "is a part of a snapshot that does not follow the part before it"),
        (vec![part(1, true)], 1, "is a part of a snapshot that does not follow the part before it"),
        (vec![nested], 1, "is a snapshot within a snapshot"),
    ] {
        let mut log = Writer::new();
        log.write(1, 1, submitted());
        for kind in kinds {
            log.write(1, 1, kind);
        }
        assert_eq!(audit(execution(), writers(), &log.blocks).misfit, Some(impossible(seq, what)));
    }
}
