//! The logs of executions on disk: signed, hash-chained facts, durable before anyone acts on them.
//!
//! The form of a record and what fits into a log stand in [`iptl_scheduler::log`]. A tail that was torn by a crash is cut
//! off when the log is opened; a record that was durable and is not what was written is damage, and is reported.
//!
//! A log is a file, and after a snapshot another one: `EXECUTION.log`, then `EXECUTION.SEQ.log`, where `SEQ` is the
//! position of the snapshot's first part. Opening reads the last file with a whole snapshot, in windows and on all
//! processors ([`reading`]); an audit reads all.
//!
//! A log that is damaged holds up no other: whoever reads the logs is told which, and lays it aside as it is.
//!
//! Beside a log stands `EXECUTION.clock`: when it was submitted and started by a clock that nobody sets ([`ages`]).

mod ages;
mod files;
mod reading;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind};
use iptl_dag::{Block, Cid, Codec, PeerId};
use iptl_scheduler::log::{self, Chain, Opening, Tail};
use iptl_trust::Keypair;

pub use self::ages::Age;
use self::ages::Ages;
use self::files::{aside, begin_at, first_seq, move_to, segments};
use crate::clock;

/// Facts after which a log gets a snapshot, and as many as the last one repeats where that is more, so that all snapshots
/// of a log together repeat no more than twice what it says: reading so many takes some milliseconds.
const SNAPSHOT_FACTS: u64 = 16_384;

/// Folder of the logs of executions that are over.
const OVER: &str = "over";

/// Folder of logs that are not what was written, byte for byte as they were found.
const DAMAGED: &str = "damaged";

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

/// A log that cannot be gone on with.
#[derive(Debug)]
pub struct Broken {
    /// Whose log it is by the name of its files; none where that names nobody.
    pub execution: Option<ExecutionId>,
    /// What is wrong with it.
    pub error: LogError,
    files: Vec<PathBuf>,
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
    /// Which start of the machine this is.
    boot: String,
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
    /// Facts that the last snapshot repeats.
    repeated: u64,
    /// When it began by a clock that nobody sets.
    ages: Ages,
}

impl Logs {
    /// Opens the logs in `dir`; facts are signed by `key`.
    pub fn new(dir: PathBuf, key: Arc<Keypair>) -> Logs {
        Logs { dir, key, others: Vec::new(), open: BTreeMap::new(), boot: clock::boot() }
    }

    /// Returns the same logs, of which none was read yet.
    pub fn unread(&self) -> Logs {
        Logs { others: self.others.clone(), ..Logs::new(self.dir.clone(), self.key.clone()) }
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

    /// Reads the facts of all executions back, oldest first within each, and gives them to `take`, many at a time; cuts
    /// torn tails off. Returns the logs that are not what was written: what was given of such a one counts for nothing,
    /// since signatures are looked at last, and it stays where it is until [`Logs::lay_damaged`].
    ///
    /// What a snapshot replaces is not read.
    pub fn replay(&mut self, mut take: impl FnMut(Vec<Fact>)) -> Result<Vec<Broken>, LogError> {
        let mut logs: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| io_error(&self.dir, e))? {
            let path = entry.map_err(|e| io_error(&self.dir, e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log"));
            if let Some(name) = name {
                let execution = name.split('.').next().unwrap_or(name).to_owned();
                logs.entry(execution).or_default().push(path);
            }
        }
        let mut broken = Vec::new();
        for (name, mut files) in logs {
            files.sort_by_key(|path| first_seq(path));
            match self.reopen(&name, &files, &mut take) {
                Ok(()) => {}
                Err(error @ LogError::Damaged { .. }) => {
                    let execution = name.parse().ok().map(ExecutionId);
                    broken.push(Broken { execution, error, files });
                }
                Err(error @ LogError::Io { .. }) => return Err(error),
            }
        }
        Ok(broken)
    }

    /// Lays a log aside that is not what was written, as it is: it can be audited, and is not read again. Returns where.
    pub fn lay_damaged(&mut self, broken: &Broken) -> Result<PathBuf, LogError> {
        let folder = self.dir.join(DAMAGED);
        let named: Vec<PathBuf> = broken.files.iter().filter_map(|file| Some(folder.join(file.file_name()?))).collect();
        // One that was laid here before is kept, too.
        let before: Vec<PathBuf> = named.iter().filter(|path| path.exists()).cloned().collect();
        if !before.is_empty() {
            move_to(&self.dir.join(aside()), before)?;
        }
        if let Some(execution) = &broken.execution {
            self.open.remove(execution);
            ages::remove(&self.dir, execution);
        }
        move_to(&folder, broken.files.clone())?;
        Ok(folder)
    }

    /// Reads the log that stands in these files, and goes on with the last of them.
    fn reopen(&mut self, name: &str, segments: &[PathBuf], take: &mut impl FnMut(Vec<Fact>)) -> Result<(), LogError> {
        let Some(path) = segments.last() else { return Ok(()) };
        let snapshot = begin_at(segments)?;
        let writers: Vec<PeerId> = self.writers().collect();
        let mut opening: Option<Opening> = None;
        let mut end: Vec<u8> = Vec::new();
        for (n, path) in segments.iter().enumerate().skip(snapshot.unwrap_or(0)) {
            let is_last = n + 1 == segments.len();
            reading::read_file(path, is_last, log::read, |window| {
                let mut facts = Vec::with_capacity(window.records.len());
                for (seq, entry) in (window.seq..).zip(window.records) {
                    let fits = entry.map_err(|e| damaged(path, seq, &e.to_string())).and_then(|entry| {
                        let execution = entry.fact.execution;
                        if opening.is_none() && execution.to_string() != name {
                            let what = format!("it belongs to {}, whose log has another name", execution.alias());
                            return Err(damaged(path, seq, &what));
                        }
                        let new = || Opening::new(writers.iter().cloned(), &entry.fact, snapshot.is_some());
                        let opening = opening.get_or_insert_with(new);
                        opening.take(entry, &mut facts).map_err(|e| damaged(path, seq, &e.to_string()))
                    });
                    if let Err(error) = fits {
                        return ControlFlow::Break(Err(error));
                    }
                }
                end = window.last;
                take(facts);
                ControlFlow::Continue(())
            })?;
        }
        // A file without a whole fact was made a moment before a crash.
        let Some(opening) = opening else { return Ok(()) };
        let (execution, next) = (opening.execution(), opening.next_seq());
        let log::Opened { chain, fresh, repeated } =
            opening.end(&end).map_err(|e| damaged(path, next.saturating_sub(1), &e.to_string()))?;
        let Some(epoch) = chain.epoch().cloned() else { return Ok(()) };
        let head = chain.head();
        let file = OpenOptions::new().append(true).open(path).map_err(|e| io_error(path, e))?;
        let ages = Ages::read(&self.dir, &execution, &self.boot);
        let log = Log { file, chain, path: path.clone(), next, head, epoch, dirty: false, fresh, repeated, ages };
        self.open.insert(execution, log);
        Ok(())
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
        let signed = iptl_trust::sign(&self.key, fact);
        self.note_age(&signed.body);
        let block = model::to_block(signed);
        self.write(execution, epoch, &block)?;
        Ok(block)
    }

    fn begin(&mut self, execution: ExecutionId, epoch: &Epoch) -> Result<(), LogError> {
        if !self.open.contains_key(&execution) {
            let path = self.dir.join(format!("{execution}.log"));
            let file = self.create(&path)?;
            let chain = Chain::new(execution, self.writers());
            let log = Log {
                file,
                chain,
                path,
                next: 0,
                head: None,
                epoch: epoch.clone(),
                dirty: false,
                fresh: 0,
                repeated: 0,
                ages: Ages::default(),
            };
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
            self.lay_over_aside(&execution)?;
            self.begin(execution, &epoch)?;
        }
        let log = self.open.get_mut(&execution).expect("it was inserted above");
        let fact = log.chain.follow(block)?.body;
        self.note_age(&fact);
        self.write(execution, epoch, block)?;
        Ok(fact)
    }

    fn note_age(&mut self, fact: &Fact) {
        if let Some(log) = self.open.get_mut(&fact.execution) {
            log.ages.note(&self.dir, &self.boot, fact);
        }
    }

    /// Returns how long ago executions whose logs are open were submitted and started, as far as that is known without the
    /// wall clock.
    pub fn ages(&self) -> Vec<(ExecutionId, Age)> {
        let now = clock::now();
        self.open.iter().map(|(id, log)| (*id, log.ages.at(now))).collect()
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
        self.set_aside(execution, &aside())
    }

    /// Lays the log of an execution aside that is over here, and that another orchestrator goes on with.
    fn lay_over_aside(&self, execution: &ExecutionId) -> Result<(), LogError> {
        let over = self.dir.join(OVER);
        if !over.is_dir() {
            return Ok(());
        }
        let replaced = segments(&over, execution)?;
        if replaced.is_empty() { Ok(()) } else { move_to(&self.dir.join(aside()), replaced) }
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
        let is_long = |log: &Log| wants_snapshot(log.fresh, log.repeated);
        let long: Vec<ExecutionId> = self.open.iter().filter(|(_, log)| is_long(log)).map(|(id, _)| *id).collect();
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
        let mut repeated = 0;
        for part in log::snapshot(&facts) {
            if let FactKind::Snapshot { facts, .. } = &part {
                repeated += facts.len() as u64;
            }
            written.push(self.append(execution, epoch.clone(), part, at_ms)?);
        }
        if let Some(log) = self.open.get_mut(&execution) {
            (log.fresh, log.repeated) = (0, repeated);
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
        let in_folder = |name| match self.dir.join(name) {
            folder if folder.is_dir() => segments(&folder, execution),
            _ => Ok(Vec::new()),
        };
        let mut files = in_folder(OVER)?;
        files.extend(segments(&self.dir, execution)?);
        if files.is_empty() {
            // A follower may have a whole one again.
            files = in_folder(DAMAGED)?;
        }
        // A crash may have come between laying one file aside and the next.
        files.sort_by_key(|path| first_seq(path));
        let mut blocks = Vec::new();
        for (n, path) in files.iter().enumerate() {
            let bytes = fs::read(path).map_err(|e| io_error(path, e))?;
            let found = log::records(&bytes);
            blocks.extend(found.bodies.into_iter().map(|body| Block::new(Codec::DagCbor, bytes[body].to_vec())));
            match found.tail {
                Tail::Clean => {}
                Tail::Torn if n + 1 == files.len() => return Ok((blocks, Tail::Torn)),
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
        ages::remove(&self.dir, execution);
        move_to(&self.dir.join(folder), segments(&self.dir, execution)?)
    }

    /// Removes the log of an execution.
    pub fn remove(&mut self, execution: &ExecutionId) -> Result<(), LogError> {
        self.open.remove(execution);
        ages::remove(&self.dir, execution);
        for path in segments(&self.dir, execution)? {
            fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        }
        Ok(())
    }
}

/// Whether a log gets a snapshot that has grown by `fresh` facts since the last one, which repeats `repeated` of them.
fn wants_snapshot(fresh: u64, repeated: u64) -> bool {
    fresh >= SNAPSHOT_FACTS.max(repeated)
}

fn damaged(path: &Path, seq: u64, reason: &str) -> LogError {
    LogError::Damaged { path: path.to_owned(), seq, reason: reason.to_owned() }
}

fn io_error(path: &Path, source: io::Error) -> LogError {
    LogError::Io { path: path.to_owned(), source }
}
