//! The log of an execution as a value: records in bytes, the chain of its facts, and snapshots.
//!
//! [`records`] cuts a file into bodies and tells a tail that a crash tore from damage; [`outline`] and [`read`] read one
//! that is whole, window by window and on several threads where the caller has them, and an [`Opening`] makes of that the
//! facts to replay. [`Chain`] follows facts from the
//! first one and says which does not fit, in one word for each way not to. [`snapshot`] folds a long log into few
//! facts, and [`resume`] begins at the last whole one.
//!
//! A fact holds the CID of the fact before it, so the signature of the last one covers all. Whoever opens a log of its
//! own checks that one; whoever audits checks every one.

mod opening;

use std::collections::BTreeSet;
use std::ops::Range;

use iptl_dag::block::blake3_cid;
use iptl_dag::model::fact::CellFact;
use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind, Recorded, Signed};
use iptl_dag::{Block, Cid, Codec, DecodeError, PeerId, codec};
use iptl_trust::SignatureError;
pub use opening::{OpenError, Opened, Opening};

/// Longest record that is read, in bytes: no block is larger.
pub const MAX_RECORD_SIZE: usize = 2 << 20;

/// Bytes before a record's body: its length in four bytes, big-endian, and its BLAKE3 hash.
pub const HEADER_SIZE: usize = 4 + 32;

/// Size at which a part of a snapshot is full, in bytes: half of the largest record, so that one more fact fits.
const PART_SIZE: usize = MAX_RECORD_SIZE / 2;

/// What disks write at once, in bytes.
const SECTOR_SIZE: usize = 512;

/// Zeros in a row at the end of a record that no fact ends with, which ends with a signature.
const HOLE_SIZE: usize = 8;

/// Appends a record with `body` to the bytes of a log.
pub fn append_record(log: &mut Vec<u8>, body: &[u8]) {
    log.extend(u32::try_from(body.len()).expect("a record is far below 4 GiB").to_be_bytes());
    log.extend(blake3::hash(body).as_bytes());
    log.extend(body);
}

/// The bytes of a log, cut into records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// Where the bodies of whole records are, in order.
    pub bodies: Vec<Range<usize>>,
    /// Bytes of all whole records together.
    pub whole: usize,
    /// How the log ends.
    pub tail: Tail,
}

/// What comes after the last whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// The beginning of one more record, which a crash tore: it was never acted on, and is cut off.
    Torn,
    /// A record that is not what was written, and was durable: whole ones come after it, or all of it is there and its
    /// hash is another. The disk changed it.
    Damaged,
}

/// Cuts the bytes of a log into records.
pub fn records(log: &[u8]) -> Records {
    let mut bodies = Vec::new();
    let mut at = 0;
    while let Some(body) = record_at(log, at) {
        at = body.end;
        bodies.push(body);
    }
    Records { bodies, whole: at, tail: tail(&log[at..], at) }
}

/// Says what stands behind the last whole record of a log, at `at` in its file.
pub fn tail(rest: &[u8], at: usize) -> Tail {
    match rest.is_empty() {
        true => Tail::Clean,
        false if any_record_after(rest, 1) || was_whole(rest, at) => Tail::Damaged,
        false => Tail::Torn,
    }
}

/// Whether the record that begins here was once written whole, and is not what was written now.
///
/// A crash leaves less than a record, or one with holes: a file may have its length before all of its sectors have what
/// was written, and these read as zeros. What is there to its last byte and has no hole was written, and may have been
/// acted on.
fn was_whole(rest: &[u8], at: usize) -> bool {
    let Some(header) = rest.get(..HEADER_SIZE) else { return false };
    if *blake3::hash(&rest[HEADER_SIZE..]).as_bytes() == header[4..] {
        // Only its length is another.
        return true;
    }
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let record = rest.get(..HEADER_SIZE.saturating_add(length)).filter(|_| length > 0);
    record.is_some_and(|record| !has_hole(record, at))
}

/// Whether a sector of a record that begins at `at` in its file was not written.
fn has_hole(record: &[u8], at: usize) -> bool {
    let first = (SECTOR_SIZE - at % SECTOR_SIZE).min(record.len());
    let (begun, others) = record.split_at(first);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // The first bytes of a length are zeros anyway.
    let in_first = begun.len() > size_of::<u32>() && is_zero(begun);
    let end = record.len().saturating_sub(HOLE_SIZE);
    in_first || is_zero(&record[end..]) || others.chunks(SECTOR_SIZE).any(is_zero)
}

/// Returns where the body of a whole record that begins at `at` is.
fn record_at(log: &[u8], at: usize) -> Option<Range<usize>> {
    let header = log.get(at..at.checked_add(HEADER_SIZE)?)?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = at + HEADER_SIZE..at + HEADER_SIZE + length;
    let whole =
        length <= MAX_RECORD_SIZE && log.get(body.clone()).is_some_and(|b| *blake3::hash(b).as_bytes() == header[4..]);
    whole.then_some(body)
}

/// Whether a whole fact stands anywhere from `from` on: found by how every fact begins.
fn any_record_after(log: &[u8], from: usize) -> bool {
    // A map of one entry whose key is this tag.
    const BEGINNING: &[u8] = b"\xa1\x6biptl.fact/1";
    let mut at = from + HEADER_SIZE;
    while let Some(found) = log.get(at..).and_then(|rest| rest.windows(BEGINNING.len()).position(|w| w == BEGINNING)) {
        at += found;
        if record_at(log, at - HEADER_SIZE).is_some() {
            return true;
        }
        at += 1;
    }
    false
}

/// Returns where the bodies of records are by what their headers say of lengths, as far as these lie within the bytes.
/// Nothing is checked: [`read`] does that, record by record, so that several can be read at once.
pub fn outline(log: &[u8]) -> Vec<Range<usize>> {
    let mut bodies = Vec::new();
    let mut at = 0;
    while let Some(header) = log.get(at..at + HEADER_SIZE) {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = at + HEADER_SIZE..at + HEADER_SIZE + length;
        if length > MAX_RECORD_SIZE || body.end > log.len() {
            break;
        }
        at = body.end;
        bodies.push(body);
    }
    bodies
}

/// A fact as it stands in a log of one's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its CID.
    pub cid: Cid,
    /// Who signed it. The signature stays in the record: only the last one's is looked at.
    pub signer: PeerId,
    /// The fact.
    pub fact: Fact,
}

/// Reads the record whose body stands at `body`; none where the bytes are not those that its header names.
///
/// The hash in the header is that in the CID, so each byte is hashed once. Whether the form is canonical is not looked
/// at: it was when the fact was appended, and the chain of hashes up to the last fact, of which form and signature are
/// looked at, says that these are the bytes that were appended.
pub fn read(log: &[u8], body: Range<usize>) -> Option<Result<Entry, DecodeError>> {
    let (data, hash) = checked(log, body)?;
    let cid = blake3_cid(Codec::DagCbor, hash.as_bytes());
    if let Some((fact, signer)) = model::fact::read_frequent_body(data) {
        return Some(Ok(Entry { cid, signer, fact }));
    }
    let signed = codec::decode::<model::Node>(data).and_then(Signed::<Fact>::try_from);
    Some(signed.map(|Signed { body, signer, .. }| Entry { cid, signer, fact: body }))
}

/// Whether the record whose body stands at `body` is what its header names.
pub fn is_whole(log: &[u8], body: Range<usize>) -> bool {
    checked(log, body).is_some()
}

/// Returns the bytes of a body that are what its header names, with their hash.
fn checked(log: &[u8], body: Range<usize>) -> Option<(&[u8], blake3::Hash)> {
    let header = log.get(body.start.checked_sub(HEADER_SIZE)?..body.start)?;
    let data = log.get(body)?;
    let hash = blake3::hash(data);
    (hash.as_bytes() == &header[4..]).then_some((data, hash))
}

/// Why a fact does not fit into the log of an execution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Something else than a fact, or one in a form of its own.
    #[error("record {seq} is no fact: {reason}")]
    NoFact {
        /// Position in the log.
        seq: u64,
        /// What the decoder met.
        reason: String,
    },
    /// The log of one execution has a fact of another.
    #[error("fact {seq} belongs to {}", found.alias())]
    OtherExecution {
        /// Position in the log.
        seq: u64,
        /// The other.
        found: ExecutionId,
    },
    /// Facts are missing, or were put in between: `found` stands where `seq` should.
    #[error("fact {found} stands where fact {seq} should")]
    OutOfOrder {
        /// Position in the log.
        seq: u64,
        /// Position that the fact has by its own word.
        found: u64,
    },
    /// The fact does not link the one before it: two logs were made of one, or a fact was changed.
    #[error("fact {seq} does not follow the one before it: the log was forked or changed")]
    Forked {
        /// Position in the log.
        seq: u64,
    },
    /// Whoever signed is not who may write into this log.
    #[error("fact {seq} is signed by {signer}, who may not write into this log")]
    Stranger {
        /// Position in the log.
        seq: u64,
        /// Who signed.
        signer: PeerId,
    },
    /// The signature does not hold.
    #[error("fact {seq}: {source}")]
    BadSignature {
        /// Position in the log.
        seq: u64,
        /// What is wrong with it.
        source: SignatureError,
    },
    /// An older term after a newer one.
    #[error("fact {seq} goes back to term {to} from {from}")]
    TermBack {
        /// Position in the log.
        seq: u64,
        /// Term before.
        from: u64,
        /// Term of the fact.
        to: u64,
    },
    /// Another orchestrator writes without having taken over in a later term.
    #[error("fact {seq} is of another orchestrator, which did not take over in a later term")]
    NotTakenOver {
        /// Position in the log.
        seq: u64,
    },
    /// No term can follow: nobody reaches this by working.
    #[error("fact {seq} spends the last term there is")]
    TermSpent {
        /// Position in the log.
        seq: u64,
    },
    /// Facts in an order in which nothing can have happened.
    #[error("fact {seq} {what}")]
    Impossible {
        /// Position in the log.
        seq: u64,
        /// What it does, as the rest of a sentence.
        what: &'static str,
    },
}

/// Follows the facts of one execution and remembers what the next one must fit to.
#[derive(Clone, Debug)]
pub struct Chain {
    execution: ExecutionId,
    writers: BTreeSet<PeerId>,
    next: u64,
    head: Option<Cid>,
    epoch: Option<Epoch>,
    granted: BTreeSet<PeerId>,
    started: bool,
    over: bool,
    /// Part of a snapshot that must follow.
    part: Option<u32>,
}

impl Chain {
    /// Begins before the first fact; `writers` are the orchestrators that may have written it.
    pub fn new(execution: ExecutionId, writers: impl IntoIterator<Item = PeerId>) -> Chain {
        Chain {
            execution,
            writers: writers.into_iter().collect(),
            next: 0,
            head: None,
            epoch: None,
            granted: BTreeSet::new(),
            started: false,
            over: false,
            part: None,
        }
    }

    /// Accepts facts of these orchestrators too.
    pub fn add_writers(&mut self, writers: impl IntoIterator<Item = PeerId>) {
        self.writers.extend(writers);
    }

    /// Begins at a snapshot: what comes before its first part is not at hand, and who signs it vouches for that.
    pub fn at_snapshot(
        execution: ExecutionId,
        writers: impl IntoIterator<Item = PeerId>,
        first: &Fact,
    ) -> Option<Chain> {
        let FactKind::Snapshot { part: 0, facts, .. } = &first.kind else { return None };
        let mut chain = Chain::new(execution, writers);
        chain.next = first.seq;
        chain.head = first.prev;
        chain.epoch = Some(facts.first()?.epoch.clone());
        // What was granted and started before stands in the parts; they are looked at as they come.
        Some(chain)
    }

    /// Returns the position of the next fact.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Returns the last fact, where there is one.
    pub fn head(&self) -> Option<Cid> {
        self.head
    }

    /// Returns the term of the last fact.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// Whether the last fact ended the execution.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes in the next fact and checks everything about it, its signature too.
    pub fn follow(&mut self, block: &Block) -> Result<Signed<Fact>, Misfit> {
        let seq = self.next;
        let signed = self.link(block)?;
        check_signature(&signed, seq)?;
        Ok(signed)
    }

    /// Takes in the next fact and checks everything but its signature. The log counts for nothing before
    /// [`check_signature`] holds for a later fact, or for this one.
    pub fn link(&mut self, block: &Block) -> Result<Signed<Fact>, Misfit> {
        let seq = self.next;
        let no_fact = |reason: String| Misfit::NoFact { seq, reason };
        if Codec::of(block.cid()) != Some(Codec::DagCbor) {
            return Err(no_fact("it is not DAG-CBOR".into()));
        }
        let signed: Signed<Fact> = model::from_bytes(block.data()).map_err(|e| no_fact(e.to_string()))?;
        self.fit(block.cid(), &signed.signer, &signed.body)?;
        Ok(signed)
    }

    /// Takes in the next fact of a log of one's own, whose signature and form count only with those of a later fact, or
    /// with its own.
    pub fn fit(&mut self, cid: &Cid, signer: &PeerId, fact: &Fact) -> Result<(), Misfit> {
        let seq = self.next;
        if fact.execution != self.execution {
            return Err(Misfit::OtherExecution { seq, found: fact.execution });
        }
        if fact.seq != seq {
            return Err(Misfit::OutOfOrder { seq, found: fact.seq });
        }
        if fact.prev != self.head {
            return Err(Misfit::Forked { seq });
        }
        if *signer != fact.epoch.peer || !self.writers.contains(signer) {
            return Err(Misfit::Stranger { seq, signer: signer.clone() });
        }
        self.check_term(fact)?;
        self.check_part(fact)?;
        if let Some(what) = self.impossible(&fact.kind) {
            return Err(Misfit::Impossible { seq, what });
        }
        self.next += 1;
        self.head = Some(*cid);
        if self.epoch.as_ref() != Some(&fact.epoch) {
            self.epoch = Some(fact.epoch.clone());
        }
        Ok(())
    }

    fn check_term(&self, fact: &Fact) -> Result<(), Misfit> {
        let seq = fact.seq;
        let is_spent = |term: &Epoch| term.counter == u64::MAX;
        if is_spent(&fact.epoch) || fact.kind.ended_in().is_some_and(is_spent) {
            return Err(Misfit::TermSpent { seq });
        }
        let Some(before) = &self.epoch else { return Ok(()) };
        if fact.epoch.counter < before.counter {
            return Err(Misfit::TermBack { seq, from: before.counter, to: fact.epoch.counter });
        }
        let takes_over = matches!(fact.kind, FactKind::TakenOver { .. }) && fact.epoch.counter > before.counter;
        if fact.epoch.peer != before.peer && !takes_over {
            return Err(Misfit::NotTakenOver { seq });
        }
        Ok(())
    }

    fn check_part(&mut self, fact: &Fact) -> Result<(), Misfit> {
        let impossible = |what| Err(Misfit::Impossible { seq: fact.seq, what });
        let FactKind::Snapshot { part, last, facts } = &fact.kind else {
            // A snapshot that was cut off by a crash counts for nothing.
            self.part = None;
            return Ok(());
        };
        if *part != self.part.unwrap_or(0) && *part != 0 {
            return impossible("is a part of a snapshot that does not follow the part before it");
        }
        if facts.iter().any(|f| matches!(f.kind, FactKind::Snapshot { .. })) {
            return impossible("is a snapshot within a snapshot");
        }
        if facts.iter().any(|f| f.epoch.counter > fact.epoch.counter) {
            return impossible("is a snapshot of what comes after it");
        }
        self.part = if *last { None } else { Some(part + 1) };
        if self.granted.is_empty() && !self.started {
            // Where the log begins with it, it says what was granted and started.
            for recorded in facts {
                let _ = self.impossible(&recorded.kind);
            }
        }
        Ok(())
    }

    /// Says what cannot have happened after what the log says so far; otherwise takes it in.
    fn impossible(&mut self, kind: &FactKind) -> Option<&'static str> {
        let begins = matches!(kind, FactKind::Submitted { .. } | FactKind::Snapshot { .. });
        if self.over {
            return Some("comes after the last");
        }
        if self.head.is_none() && !begins {
            return Some("comes before the execution was submitted");
        }
        let (possible, what) = match kind {
            FactKind::Submitted { .. } => (self.head.is_none(), "submits the execution again"),
            FactKind::Granted { lablet, .. } | FactKind::Recovered { lablet, .. } => {
                self.granted.insert(lablet.clone());
                return None;
            }
            FactKind::Accepted { lablet } => {
                (self.granted.contains(lablet), "has a lablet take what it was not granted")
            }
            FactKind::Refused { lablet, .. } => {
                (self.granted.remove(lablet), "has a lablet give back what it was not granted")
            }
            FactKind::Measured { lablet, .. } => {
                (self.granted.contains(lablet), "has a lablet measure for what it was not granted")
            }
            FactKind::Faulted { lablet, .. } => {
                let works = self.started && self.granted.contains(lablet);
                (works, "has faults done in what was not granted and started")
            }
            FactKind::Received { lablet, .. } => {
                let works = self.started && self.granted.contains(lablet);
                (works, "receives receipts of what was not granted and started")
            }
            FactKind::Lost { lablet: Some(lablet), .. } => {
                (self.granted.contains(lablet), "loses with a lablet what that was not granted")
            }
            FactKind::Started {} => (!std::mem::replace(&mut self.started, true), "starts it again"),
            FactKind::CannotStart(_) => (!self.started, "gives up as never started what was"),
            FactKind::Sealed { .. } | FactKind::Failed { .. } => {
                self.over = true;
                return None;
            }
            FactKind::Lost { lablet: None, .. }
            | FactKind::Placed { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Snapshot { .. } => return None,
        };
        (!possible).then_some(what)
    }
}

/// Checks the signature of a fact that was linked at position `seq`.
pub fn check_signature(fact: &Signed<Fact>, seq: u64) -> Result<(), Misfit> {
    iptl_trust::verify(fact).map_err(|source| Misfit::BadSignature { seq, source })
}

/// What an audit of a log found.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// Facts that fit, in order, with their CIDs.
    pub facts: Vec<(Cid, Fact)>,
    /// Why the audit went no further, where it did not reach the end.
    pub misfit: Option<Misfit>,
}

/// Follows a log from its first fact on, every signature checked, as far as it fits.
pub fn audit<'a>(
    execution: ExecutionId,
    writers: impl IntoIterator<Item = PeerId>,
    blocks: impl IntoIterator<Item = &'a Block>,
) -> Audit {
    let mut chain = Chain::new(execution, writers);
    let mut facts: Vec<(Cid, Fact)> = Vec::new();
    for block in blocks {
        let followed = chain.follow(block).and_then(|signed| check_snapshot(&facts, signed.body));
        match followed {
            Ok(fact) => facts.push((*block.cid(), fact)),
            Err(misfit) => return Audit { facts, misfit: Some(misfit) },
        }
    }
    Audit { facts, misfit: None }
}

/// Compares a snapshot that is whole with `fact` with what the log said before it.
fn check_snapshot(before: &[(Cid, Fact)], fact: Fact) -> Result<Fact, Misfit> {
    if let FactKind::Snapshot { part, last: true, facts } = &fact.kind {
        let earlier = before.len().saturating_sub(*part as usize);
        let recorded = |f: &Fact| Recorded { epoch: f.epoch.clone(), at_ms: f.at_ms, kind: f.kind.clone() };
        let expected = compact(before[..earlier].iter().map(|(_, f)| recorded(f)));
        let mut said = Vec::new();
        for (_, f) in &before[earlier..] {
            if let FactKind::Snapshot { facts, .. } = &f.kind {
                said.extend(facts.iter().cloned());
            }
        }
        said.extend(facts.iter().cloned());
        if said != expected {
            return Err(Misfit::Impossible { seq: fact.seq, what: "is a snapshot of something else than the log" });
        }
    }
    Ok(fact)
}

/// Leaves out the facts that make no difference any more: grants before the start that were given back or replaced,
/// what lablets said to those, and snapshots.
pub fn compact(facts: impl IntoIterator<Item = Recorded>) -> Vec<Recorded> {
    let facts: Vec<Recorded> = facts.into_iter().filter(|f| !matches!(f.kind, FactKind::Snapshot { .. })).collect();
    let started = facts.iter().position(|f| f.kind == FactKind::Started {}).unwrap_or(facts.len());
    let mut kept = vec![true; facts.len()];
    // Backwards: what was seen of a lablet already comes later.
    let mut granted_later = BTreeSet::new();
    let mut refused_later = BTreeSet::new();
    for (n, fact) in facts.iter().enumerate().take(started).rev() {
        let Some((lablet, said)) = fact.kind.of_cell() else { continue };
        match said {
            CellFact::Held { .. } => {
                kept[n] = granted_later.insert(lablet) && !refused_later.contains(lablet);
            }
            CellFact::Accepted => {
                kept[n] = !granted_later.contains(lablet) && !refused_later.contains(lablet);
            }
            CellFact::Refused => kept[n] = refused_later.insert(lablet),
            CellFact::Measured(_) | CellFact::Faulted(_) | CellFact::Received(_) | CellFact::Lost(_) => {}
        }
    }
    facts.into_iter().zip(kept).filter_map(|(fact, kept)| kept.then_some(fact)).collect()
}

/// Makes the parts of a snapshot of these facts, which are all of a log, or what [`resume`] made of one.
pub fn snapshot<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Vec<FactKind> {
    let recorded = facts.into_iter().map(|f| Recorded { epoch: f.epoch.clone(), at_ms: f.at_ms, kind: f.kind.clone() });
    let mut parts: Vec<Vec<Recorded>> = vec![Vec::new()];
    let mut size = 0;
    for fact in compact(recorded) {
        let bytes = codec::encode(&fact).len();
        if size + bytes > PART_SIZE && size > 0 {
            parts.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(part) = parts.last_mut() {
            part.push(fact);
        }
    }
    let last = parts.len() - 1;
    let part = |(n, facts)| FactKind::Snapshot { part: n as u32, last: n == last, facts };
    parts.into_iter().enumerate().map(part).collect()
}

/// Returns the facts to replay: those of the last whole snapshot and what comes after it, or all where there is none.
///
/// Facts of a snapshot stand at the position of its first part.
pub fn resume(facts: Vec<Fact>) -> Vec<Fact> {
    let ends = |f: &Fact| matches!(f.kind, FactKind::Snapshot { last: true, .. });
    let begins = |f: &Fact| matches!(f.kind, FactKind::Snapshot { part: 0, .. });
    let Some(end) = facts.iter().rposition(ends) else {
        return facts.into_iter().filter(|f| !matches!(f.kind, FactKind::Snapshot { .. })).collect();
    };
    let begin = facts[..=end].iter().rposition(begins).unwrap_or(0);
    let mut resumed = Vec::new();
    for (n, fact) in facts.into_iter().enumerate().skip(begin) {
        let Fact { execution, seq, prev, epoch, at_ms, kind } = fact;
        match kind {
            FactKind::Snapshot { facts, .. } if n <= end => {
                let unfold = |r: Recorded| Fact { execution, seq, prev, epoch: r.epoch, at_ms: r.at_ms, kind: r.kind };
                resumed.extend(facts.into_iter().map(unfold));
            }
            // One that a crash cut off says nothing that was not said.
            FactKind::Snapshot { .. } => {}
            kind => resumed.push(Fact { execution, seq, prev, epoch, at_ms, kind }),
        }
    }
    resumed
}
