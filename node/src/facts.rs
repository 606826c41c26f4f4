//! The logs of executions on disk: signed, hash-chained facts, durable before anyone acts on them.
//!
//! The form of a record and what fits into a log stand in [`iptl_scheduler::log`]. A tail that was torn by a crash is cut
//! off when the log is opened; a record that was durable and is not what was written is damage, and is reported.
//!
//! A log is a file, and after a snapshot another one: `EXECUTION.log`, then `EXECUTION.SEQ.log`, where `SEQ` is the
//! position of the snapshot's first part. Opening reads the last file with a whole snapshot; an audit reads all.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind};
use iptl_dag::{Block, Cid, Codec, PeerId};
use iptl_scheduler::log::{self, Chain, Entry, Tail};
use iptl_trust::Keypair;

/// Facts after which a log gets a snapshot: reading so many takes some milliseconds.
const SNAPSHOT_FACTS: u64 = 16_384;

/// Folder of the logs of executions that are over.
const OVER: &str = "over";

/// Why a log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A record that was durable is not what was written.
    #[error("fact {seq} in {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which fact.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
}

/// Why a fact of another orchestrator is not kept.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It is none.
    #[error("what came is no fact: {reason}")]
    NoFact {
        /// What is wrong.
        reason: String,
    },
    /// It does not fit to the log that is here.
    #[error(transparent)]
    Misfit(#[from] log::Misfit),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The logs of all executions of an orchestrator.
pub struct Logs {
    dir: PathBuf,
    key: Arc<Keypair>,
    /// Other orchestrators that may have written them.
    others: Vec<PeerId>,
    open: BTreeMap<ExecutionId, Log>,
}

struct Log {
    file: File,
    /// What the next fact must fit to, where another orchestrator writes it.
    chain: Chain,
    path: PathBuf,
    next: u64,
    head: Option<Cid>,
    epoch: Epoch,
    dirty: bool,
    /// Facts since the last snapshot.
    fresh: u64,
}

impl Logs {
    /// Opens the logs in `dir`; facts are signed by `key`.
    pub fn new(dir: PathBuf, key: Arc<Keypair>) -> Logs {
        Logs { dir, key, others: Vec::new(), open: BTreeMap::new() }
    }

    /// Accepts facts of these orchestrators of the lab too.
    pub fn with_writers(self, others: Vec<PeerId>) -> Logs {
        Logs { others, ..self }
    }

    /// Accepts facts of one more orchestrator from here on.
    pub fn add_writers(&mut self, writers: Vec<PeerId>) {
        if self.others != writers {
            for log in self.open.values_mut() {
                log.chain.add_writers(writers.iter().cloned());
            }
            self.others = writers;
        }
    }

    fn writers(&self) -> impl Iterator<Item = PeerId> {
        std::iter::once(self.key.peer().clone()).chain(self.others.iter().cloned())
    }

    /// Reads the facts of all executions back, oldest first within each; cuts torn tails off.
    ///
    /// What a snapshot replaces is not read.
    pub fn replay(&mut self) -> Result<Vec<Fact>, LogError> {
        let mut logs: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| io_error(&self.dir, e))? {
            let path = entry.map_err(|e| io_error(&self.dir, e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log"));
            if let Some(name) = name {
                let execution = name.split('.').next().unwrap_or(name).to_owned();
                logs.entry(execution).or_default().push(path);
            }
        }
        let mut all = Vec::new();
        for mut segments in logs.into_values() {
            segments.sort_by_key(|path| first_seq(path));
            all.extend(self.reopen(&segments)?);
        }
        Ok(all)
    }

    /// Reads the log that stands in these files, and goes on with the last of them.
    fn reopen(&mut self, segments: &[PathBuf]) -> Result<Vec<Fact>, LogError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut end: Option<Vec<u8>> = None;
        for (n, path) in segments.iter().enumerate().rev() {
            let segment = read_segment(path, n + 1 == segments.len())?;
            end = end.or(segment.last);
            let later = std::mem::replace(&mut entries, segment.entries);
            entries.extend(later);
            if begins_whole(&entries) {
                break;
            }
        }
        let (Some(path), Some(end)) = (segments.last(), end) else { return Ok(Vec::new()) };
        let (chain, facts) = follow(path, entries, &end, self.writers())?;
        let Some(last) = facts.last() else { return Ok(Vec::new()) };
        let (head, execution, next, epoch) = (chain.head(), last.execution, last.seq + 1, last.epoch.clone());
        let snapshot = facts.iter().rposition(|f| matches!(f.kind, FactKind::Snapshot { last: true, .. }));
        let fresh = (facts.len() - snapshot.map_or(0, |at| at + 1)) as u64;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| io_error(path, e))?;
        let log = Log { file, chain, path: path.clone(), next, head, epoch, dirty: false, fresh };
        self.open.insert(execution, log);
        Ok(log::resume(facts))
    }

    /// Appends a fact; durable only after [`Logs::commit`].
    pub fn append(
        &mut self,
        execution: ExecutionId,
        epoch: Epoch,
        kind: FactKind,
        at_ms: u64,
    ) -> Result<Block, LogError> {
        self.begin(execution, &epoch)?;
        let log = self.open.get_mut(&execution).expect("it was inserted above");
        let fact = Fact { execution, seq: log.next, prev: log.head, epoch: epoch.clone(), at_ms, kind };
        let block = model::to_block(iptl_trust::sign(&self.key, fact));
        self.write(execution, epoch, &block)?;
        Ok(block)
    }

    fn begin(&mut self, execution: ExecutionId, epoch: &Epoch) -> Result<(), LogError> {
        if !self.open.contains_key(&execution) {
            let path = self.dir.join(format!("{execution}.log"));
            let file = self.create(&path)?;
            let chain = Chain::new(execution, self.writers());
            let log = Log { file, chain, path, next: 0, head: None, epoch: epoch.clone(), dirty: false, fresh: 0 };
            self.open.insert(execution, log);
        }
        Ok(())
    }

    /// Appends a fact that another orchestrator wrote, once it fits; durable only after [`Logs::commit`].
    pub fn append_followed(&mut self, block: &Block) -> Result<Fact, FollowError> {
        let signed: model::Signed<Fact> =
            model::from_bytes(block.data()).map_err(|e| FollowError::NoFact { reason: e.to_string() })?;
        let (execution, epoch) = (signed.body.execution, signed.body.epoch.clone());
        let is_new = !self.open.contains_key(&execution);
        if is_new {
            // Nothing is made for a fact that does not fit.
            Chain::new(execution, self.writers()).follow(block)?;
            self.begin(execution, &epoch)?;
        }
        let log = self.open.get_mut(&execution).expect("it was inserted above");
        let fact = log.chain.follow(block)?.body;
        self.write(execution, epoch, block)?;
        Ok(fact)
    }

    /// Returns the last fact of every log that is open, by its position.
    pub fn heads(&self) -> Vec<(ExecutionId, u64, Cid)> {
        self.open.iter().filter_map(|(id, log)| Some((*id, log.next.checked_sub(1)?, log.head?))).collect()
    }

    /// Returns the last fact of a log that is open.
    pub fn head(&self, execution: &ExecutionId) -> Option<Cid> {
        self.open.get(execution)?.head
    }

    /// Returns the executions whose logs are open.
    pub fn executions(&self) -> Vec<ExecutionId> {
        self.open.keys().copied().collect()
    }

    /// Lays a log aside that another orchestrator's replaces. It is not read again, and is not lost.
    pub fn lay_aside(&mut self, execution: &ExecutionId) -> Result<(), LogError> {
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
        self.set_aside(execution, &format!("aside/{at}"))
    }

    fn write(&mut self, execution: ExecutionId, epoch: Epoch, block: &Block) -> Result<(), LogError> {
        let Some(log) = self.open.get_mut(&execution) else { return Ok(()) };
        let mut record = Vec::with_capacity(log::HEADER_SIZE + block.data().len());
        log::append_record(&mut record, block.data());
        log.file.write_all(&record).map_err(|e| io_error(&log.path, e))?;
        log.next += 1;
        log.fresh += 1;
        log.head = Some(*block.cid());
        log.epoch = epoch;
        log.dirty = true;
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<File, LogError> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|file| File::open(&self.dir)?.sync_all().map(|()| file))
            .map_err(|e| io_error(path, e))
    }

    /// Makes all appended facts durable: one sync for each log that was written to.
    pub fn commit(&mut self) -> Result<(), LogError> {
        for log in self.open.values_mut().filter(|log| log.dirty) {
            log.file.sync_data().map_err(|e| io_error(&log.path, e))?;
            log.dirty = false;
        }
        Ok(())
    }

    /// Begins a new file with a snapshot for every log that has grown long since its last one; returns the facts.
    pub fn snapshot_long(&mut self, at_ms: u64) -> Result<Vec<Block>, LogError> {
        let long: Vec<ExecutionId> =
            self.open.iter().filter(|(_, log)| log.fresh >= SNAPSHOT_FACTS).map(|(id, _)| *id).collect();
        let mut written = Vec::new();
        for execution in long {
            written.extend(self.snapshot(execution, at_ms)?);
        }
        Ok(written)
    }

    fn snapshot(&mut self, execution: ExecutionId, at_ms: u64) -> Result<Vec<Block>, LogError> {
        let mut facts = Vec::new();
        for block in self.blocks(&execution)? {
            let signed: model::Signed<Fact> =
                model::from_bytes(block.data()).map_err(|e| damaged(&self.dir, facts.len() as u64, &e.to_string()))?;
            facts.push(signed.body);
        }
        let Some(log) = self.open.get(&execution) else { return Ok(Vec::new()) };
        let (next, epoch) = (log.next, log.epoch.clone());
        let path = self.dir.join(format!("{execution}.{next}.log"));
        let file = self.create(&path)?;
        if let Some(log) = self.open.get_mut(&execution) {
            // The old file is whole: what is not committed there yet is committed before the new one begins.
            log.file.sync_data().map_err(|e| io_error(&log.path, e))?;
            log.file = file;
            log.path = path;
        }
        let mut written = Vec::new();
        for part in log::snapshot(&facts) {
            written.push(self.append(execution, epoch.clone(), part, at_ms)?);
        }
        if let Some(log) = self.open.get_mut(&execution) {
            log.fresh = 0;
        }
        self.commit()?;
        Ok(written)
    }

    /// Returns the facts of an execution as blocks, oldest first.
    pub fn blocks(&self, execution: &ExecutionId) -> Result<Vec<Block>, LogError> {
        Ok(self.read(execution)?.0)
    }

    /// Returns the facts of an execution as blocks, oldest first, as far as they are whole, and how its log ends.
    pub fn read(&self, execution: &ExecutionId) -> Result<(Vec<Block>, Tail), LogError> {
        let over = self.dir.join(OVER);
        let mut segments = if over.is_dir() { segments(&over, execution)? } else { Vec::new() };
        segments.extend(self::segments(&self.dir, execution)?);
        // A crash may have come between laying one file aside and the next.
        segments.sort_by_key(|path| first_seq(path));
        let mut blocks = Vec::new();
        for (n, path) in segments.iter().enumerate() {
            let bytes = fs::read(path).map_err(|e| io_error(path, e))?;
            let found = log::records(&bytes);
            blocks.extend(found.bodies.into_iter().map(|body| Block::new(Codec::DagCbor, bytes[body].to_vec())));
            match found.tail {
                Tail::Clean => {}
                Tail::Torn if n + 1 == segments.len() => return Ok((blocks, Tail::Torn)),
                Tail::Torn | Tail::Damaged => return Ok((blocks, Tail::Damaged)),
            }
        }
        Ok((blocks, Tail::Clean))
    }

    /// Lays the log of an execution aside that is over, and is recorded as such: it is not read at the next start.
    pub fn close(&mut self, execution: &ExecutionId) -> Result<(), LogError> {
        self.set_aside(execution, OVER)
    }

    fn set_aside(&mut self, execution: &ExecutionId, folder: &str) -> Result<(), LogError> {
        self.open.remove(execution);
        let over = self.dir.join(folder);
        fs::create_dir_all(&over).map_err(|e| io_error(&over, e))?;
        for path in segments(&self.dir, execution)? {
            let Some(name) = path.file_name() else { continue };
            fs::rename(&path, over.join(name)).map_err(|e| io_error(&path, e))?;
        }
        Ok(())
    }

    /// Removes the log of an execution.
    pub fn remove(&mut self, execution: &ExecutionId) -> Result<(), LogError> {
        self.open.remove(execution);
        for path in segments(&self.dir, execution)? {
            fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        }
        Ok(())
    }
}

/// Returns the files of a log in a folder, in their order.
fn segments(dir: &Path, execution: &ExecutionId) -> Result<Vec<PathBuf>, LogError> {
    let name = execution.to_string();
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io_error(dir, e))? {
        let path = entry.map_err(|e| io_error(dir, e))?.path();
        let named = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next());
        if path.extension().is_some_and(|e| e == "log") && named == Some(&name) {
            segments.push(path);
        }
    }
    segments.sort_by_key(|path| first_seq(path));
    Ok(segments)
}

/// Returns the position of the first fact of a file, by its name.
fn first_seq(path: &Path) -> u64 {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
    name.split('.').nth(1).and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

/// The facts of one file.
struct Segment {
    entries: Vec<Entry>,
    /// Bytes of the last of them.
    last: Option<Vec<u8>>,
}

/// Reads the facts of a file; of the last one of a log, cuts off what a crash tore.
fn read_segment(path: &Path, last: bool) -> Result<Segment, LogError> {
    let bytes = fs::read(path).map_err(|e| io_error(path, e))?;
    let mut bodies = log::outline(&bytes);
    let mut read = read_all(&bytes, &bodies);
    if read.contains(&None) || bodies.last().is_none_or(|body| body.end < bytes.len()) {
        // Something is not whole: it is looked at one by one.
        let found = log::records(&bytes);
        match found.tail {
            Tail::Clean => {}
            Tail::Torn if last => {
                tracing::warn!(log = %path.display(), bytes = bytes.len() - found.whole, "cut off a tail that a crash tore");
                let file = OpenOptions::new().write(true).open(path).map_err(|e| io_error(path, e))?;
                file.set_len(found.whole as u64).and_then(|()| file.sync_all()).map_err(|e| io_error(path, e))?;
            }
            Tail::Torn | Tail::Damaged => {
                let seq = first_seq(path) + found.bodies.len() as u64;
                return Err(damaged(path, seq, "it is not what was written, and whole facts come after it"));
            }
        }
        bodies = found.bodies;
        read.truncate(bodies.len());
    }
    let mut entries = Vec::with_capacity(bodies.len());
    for (n, entry) in read.into_iter().flatten().enumerate() {
        let seq = first_seq(path) + n as u64;
        entries.push(entry.map_err(|reason| damaged(path, seq, &reason))?);
    }
    Ok(Segment { entries, last: bodies.pop().map(|body| bytes[body].to_vec()) })
}

/// What was read of a record: none where it is not what was written, and why where it is no fact.
type ReadRecord = Option<Result<Entry, String>>;

/// Bytes from which on several threads read.
const MANY: usize = 1 << 20;

/// Reads records, many of them on all processors there are.
fn read_all(bytes: &[u8], bodies: &[Range<usize>]) -> Vec<ReadRecord> {
    let read = |body: &Range<usize>| log::read(bytes, body.clone()).map(|read| read.map_err(|e| e.to_string()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if threads == 1 || bytes.len() < MANY {
        return bodies.iter().map(read).collect();
    }
    let part = bodies.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            bodies.chunks(part).map(|part| scope.spawn(move || part.iter().map(read).collect::<Vec<_>>())).collect();
        parts.into_iter().flat_map(|part| part.join().expect("reading does not panic, whatever the bytes")).collect()
    })
}

/// Whether these facts begin with a snapshot that is whole, so that nothing before them is needed.
fn begins_whole(entries: &[Entry]) -> bool {
    for (n, entry) in entries.iter().enumerate() {
        match &entry.signed.body.kind {
            FactKind::Snapshot { part, last, .. } if *part as usize == n => {
                if *last {
                    return true;
                }
            }
            _ => return false,
        }
    }
    false
}

/// Checks how the facts of a log hang together, from its beginning or from a snapshot on.
///
/// Each fact names the one before it by hash, so the form and the signature of the last one are enough for all of them.
fn follow(
    path: &Path,
    entries: Vec<Entry>,
    last: &[u8],
    writers: impl Iterator<Item = PeerId>,
) -> Result<(Chain, Vec<Fact>), LogError> {
    let first = &entries.first().ok_or_else(|| damaged(path, 0, "it holds no fact"))?.signed.body;
    let (execution, writers) = (first.execution, writers.collect::<Vec<_>>());
    let mut chain =
        Chain::at_snapshot(execution, writers.clone(), first).unwrap_or_else(|| Chain::new(execution, writers));
    let mut facts = Vec::with_capacity(entries.len());
    for Entry { cid, signed } in entries {
        let seq = chain.next_seq();
        chain.fit(&cid, &signed).map_err(|e| damaged(path, seq, &e.to_string()))?;
        facts.push(signed.body);
    }
    let seq = chain.next_seq().saturating_sub(1);
    let last: model::Signed<Fact> = model::from_bytes(last).map_err(|e| damaged(path, seq, &e.to_string()))?;
    log::check_signature(&last, seq).map_err(|e| damaged(path, seq, &e.to_string()))?;
    Ok((chain, facts))
}

fn damaged(path: &Path, seq: u64, reason: &str) -> LogError {
    LogError::Damaged { path: path.to_owned(), seq, reason: reason.to_owned() }
}

fn io_error(path: &Path, source: io::Error) -> LogError {
    LogError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execution() -> ExecutionId {
        ExecutionId(iptl_dag::codec::cid_of(&"execution"))
    }

    fn logs(dir: &Path) -> Logs {
        Logs::new(dir.to_owned(), Arc::new(Keypair::from_seed(&[7; 32])))
    }

    fn epoch() -> Epoch {
        Epoch { counter: 1, peer: Keypair::from_seed(&[7; 32]).peer().clone() }
    }

    fn submitted() -> FactKind {
        let by = epoch().peer;
        FactKind::Submitted { execution: execution().0, run: iptl_dag::codec::cid_of(&"run"), by, priority: 0 }
    }

    fn cancelled() -> FactKind {
        FactKind::Cancelled { by: epoch().peer }
    }

    fn written(dir: &Path) -> PathBuf {
        let mut logs = logs(dir);
        for kind in [submitted(), FactKind::Started {}, FactKind::TimedOut {}] {
            logs.append(execution(), epoch(), kind, 5).unwrap();
        }
        logs.commit().unwrap();
        dir.join(format!("{}.log", execution()))
    }

    #[test]
    fn facts_are_read_back_in_order_and_the_chain_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let mut again = logs(dir.path());
        let facts = again.replay().unwrap();
        assert_eq!(facts.iter().map(|f| f.seq).collect::<Vec<_>>(), [0, 1, 2]);
        again.append(execution(), epoch(), cancelled(), 6).unwrap();
        again.commit().unwrap();
        assert_eq!(logs(dir.path()).replay().unwrap().len(), 4);
    }

    #[test]
    fn a_torn_tail_is_cut_off_at_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = fs::read(&path).unwrap();
        let two = log::records(&whole).bodies[1].end;
        for cut in two + 1..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(logs(dir.path()).replay().unwrap().len(), 2, "cut at {cut}");
            assert_eq!(fs::read(&path).unwrap(), whole[..two]);
        }
    }

    #[test]
    fn a_fact_that_is_missing_in_the_middle_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = fs::read(&path).unwrap();
        let first = log::records(&whole).bodies[0].end;
        fs::write(&path, &whole[first..]).unwrap();
        assert!(matches!(logs(dir.path()).replay(), Err(LogError::Damaged { seq: 0, .. })));
    }

    #[test]
    fn a_bit_that_flipped_before_the_last_fact_is_damage_and_nothing_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = fs::read(&path).unwrap();
        let two = log::records(&whole).bodies[1].end;
        for at in 0..two {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            fs::write(&path, &flipped).unwrap();
            let error = logs(dir.path()).replay().unwrap_err();
            assert!(matches!(error, LogError::Damaged { .. }), "flipped at {at}: {error}");
            assert_eq!(fs::read(&path).unwrap(), flipped);
        }
    }

    #[test]
    fn a_log_signed_by_a_stranger_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let mut stranger = Logs::new(dir.path().to_owned(), Arc::new(Keypair::from_seed(&[8; 32])));
        let error = stranger.replay().unwrap_err().to_string();
        assert!(error.contains("who may not write into this log"), "{error}");
    }

    #[test]
    fn a_log_goes_on_in_another_file_after_a_snapshot_and_only_that_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = written(dir.path());
        let mut grown = logs(dir.path());
        let before = grown.replay().unwrap();
        grown.snapshot(execution(), 6).unwrap();
        grown.append(execution(), epoch(), cancelled(), 7).unwrap();
        grown.commit().unwrap();
        assert_eq!(grown.blocks(&execution()).unwrap().len(), 5);

        let kinds = |facts: Vec<Fact>| facts.into_iter().map(|f| f.kind).collect::<Vec<_>>();
        let mut expected = kinds(before);
        expected.push(cancelled());
        // Whatever happens to the first file, it is not looked at.
        fs::write(&first, b"lost").unwrap();
        let mut again = logs(dir.path());
        assert_eq!(kinds(again.replay().unwrap()), expected);
        again.append(execution(), epoch(), FactKind::TimedOut {}, 8).unwrap();
        again.commit().unwrap();
        assert_eq!(again.read(&execution()).unwrap().1, Tail::Damaged);
    }

    #[test]
    fn a_snapshot_that_a_crash_tore_at_any_byte_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let mut grown = logs(dir.path());
        let before = grown.replay().unwrap();
        grown.snapshot(execution(), 6).unwrap();
        drop(grown);
        let second = dir.path().join(format!("{}.3.log", execution()));
        let whole = fs::read(&second).unwrap();
        for cut in 0..whole.len() {
            fs::write(&second, &whole[..cut]).unwrap();
            let mut again = logs(dir.path());
            assert_eq!(again.replay().unwrap(), before, "cut at {cut}");
            again.append(execution(), epoch(), cancelled(), 7).unwrap();
            again.commit().unwrap();
            assert_eq!(logs(dir.path()).replay().unwrap().len(), before.len() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn the_log_of_what_is_over_is_laid_aside_and_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let mut grown = logs(dir.path());
        grown.replay().unwrap();
        grown.snapshot(execution(), 6).unwrap();
        grown.close(&execution()).unwrap();
        assert_eq!(logs(dir.path()).replay().unwrap(), []);
        assert_eq!(logs(dir.path()).blocks(&execution()).unwrap().len(), 4);
    }
}
