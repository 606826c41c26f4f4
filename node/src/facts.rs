//! The log of an execution on disk: signed, hash-chained facts, durable before anyone acts on them.
//!
//! A record is a length in four bytes (big-endian), the BLAKE3 hash of the body, and the body: a fact's node in
//! DAG-CBOR. A tail that was torn by a crash fails its length or hash and is cut off when the log is opened; a record
//! whose hash holds but whose chain or signature does not is damage, and is reported.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iptl_dag::model::{self, Epoch, ExecutionId, Fact, FactKind, Signed};
use iptl_dag::{Block, Cid};
use iptl_trust::Keypair;

/// Longest record that is read back, in bytes; a fact that grants 10,000 instances stays far below.
const MAX_RECORD_SIZE: usize = 2 << 20;

/// Bytes before a record's body.
const HEADER_SIZE: usize = 4 + 32;

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

/// The logs of all executions of an orchestrator.
pub struct Logs {
    dir: PathBuf,
    key: Arc<Keypair>,
    open: BTreeMap<ExecutionId, Log>,
}

struct Log {
    file: File,
    path: PathBuf,
    next: u64,
    head: Option<Cid>,
    dirty: bool,
}

impl Logs {
    /// Opens the logs in `dir`; facts are signed by `key`.
    pub fn new(dir: PathBuf, key: Arc<Keypair>) -> Logs {
        Logs { dir, key, open: BTreeMap::new() }
    }

    /// Reads the facts of all executions back, oldest first within each; cuts torn tails off.
    pub fn replay(&mut self) -> Result<Vec<Fact>, LogError> {
        let mut names: Vec<PathBuf> = fs::read_dir(&self.dir)
            .map_err(|e| io_error(&self.dir, e))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        names.sort();
        let mut all = Vec::new();
        for path in names {
            let records = read_log(&path, &self.key)?;
            if let Some((last, fact)) = records.last() {
                let file = OpenOptions::new().append(true).open(&path).map_err(|e| io_error(&path, e))?;
                let log = Log { file, path, next: fact.seq + 1, head: Some(*last), dirty: false };
                self.open.insert(fact.execution, log);
            }
            all.extend(records.into_iter().map(|(_, fact)| fact));
        }
        Ok(all)
    }

    /// Appends a fact; durable only after [`Logs::commit`].
    pub fn append(
        &mut self,
        execution: ExecutionId,
        epoch: Epoch,
        kind: FactKind,
        at_ms: u64,
    ) -> Result<Cid, LogError> {
        if !self.open.contains_key(&execution) {
            let path = self.dir.join(format!("{execution}.log"));
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .and_then(|file| File::open(&self.dir)?.sync_all().map(|()| file))
                .map_err(|e| io_error(&path, e))?;
            self.open.insert(execution, Log { file, path, next: 0, head: None, dirty: false });
        }
        let log = self.open.get_mut(&execution).expect("it was inserted above");
        let fact = Fact { execution, seq: log.next, prev: log.head, epoch, at_ms, kind };
        let block = model::to_block(iptl_trust::sign(&self.key, fact));
        let mut record = Vec::with_capacity(HEADER_SIZE + block.data().len());
        record.extend(u32::try_from(block.data().len()).expect("facts are small").to_be_bytes());
        record.extend(blake3::hash(block.data()).as_bytes());
        record.extend(block.data());
        log.file.write_all(&record).map_err(|e| io_error(&log.path, e))?;
        log.next += 1;
        log.head = Some(*block.cid());
        log.dirty = true;
        Ok(*block.cid())
    }

    /// Makes all appended facts durable: one sync for each log that was written to.
    pub fn commit(&mut self) -> Result<(), LogError> {
        for log in self.open.values_mut().filter(|log| log.dirty) {
            log.file.sync_data().map_err(|e| io_error(&log.path, e))?;
            log.dirty = false;
        }
        Ok(())
    }

    /// Returns the facts of an execution as blocks, oldest first.
    pub fn blocks(&self, execution: &ExecutionId) -> Result<Vec<Block>, LogError> {
        let path = self.dir.join(format!("{execution}.log"));
        let bytes = fs::read(&path).map_err(|e| io_error(&path, e))?;
        Ok(bodies(&bytes).map(|body| Block::new(iptl_dag::Codec::DagCbor, body.to_vec())).collect())
    }

    /// Closes the file of an execution that is over.
    pub fn close(&mut self, execution: &ExecutionId) {
        self.open.remove(execution);
    }
}

/// Yields the bodies of all whole records.
fn bodies(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, after) = rest.split_at_checked(HEADER_SIZE)?;
        let length = u32::from_be_bytes(header[..4].try_into().expect("four bytes")) as usize;
        if length > MAX_RECORD_SIZE {
            return None;
        }
        let (body, after) = after.split_at_checked(length)?;
        if blake3::hash(body).as_bytes() != &header[4..] {
            return None;
        }
        rest = after;
        Some(body)
    })
}

fn read_log(path: &Path, key: &Keypair) -> Result<Vec<(Cid, Fact)>, LogError> {
    let bytes = fs::read(path).map_err(|e| io_error(path, e))?;
    let mut records = Vec::new();
    let mut whole = 0;
    let mut prev = None;
    for body in bodies(&bytes) {
        let seq = records.len() as u64;
        let damaged = |reason: String| LogError::Damaged { path: path.to_owned(), seq, reason };
        let signed: Signed<Fact> = model::from_bytes(body).map_err(|e| damaged(e.to_string()))?;
        iptl_trust::verify_by(&signed, key.peer()).map_err(|e| damaged(e.to_string()))?;
        if signed.body.seq != seq || signed.body.prev != prev {
            return Err(damaged("it does not follow the fact before it".to_owned()));
        }
        let cid = *Block::new(iptl_dag::Codec::DagCbor, body.to_vec()).cid();
        prev = Some(cid);
        whole += HEADER_SIZE + body.len();
        records.push((cid, signed.body));
    }
    if whole < bytes.len() {
        tracing::warn!(log = %path.display(), bytes = bytes.len() - whole, "cut off a tail that a crash tore");
        let file = OpenOptions::new().write(true).open(path).map_err(|e| io_error(path, e))?;
        file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(|e| io_error(path, e))?;
    }
    Ok(records)
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

    fn written(dir: &Path) -> PathBuf {
        let mut logs = logs(dir);
        for reason in ["a", "b", "c"] {
            logs.append(execution(), epoch(), FactKind::Failed { reason: reason.to_owned() }, 5).unwrap();
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
        again.append(execution(), epoch(), FactKind::TimedOut {}, 6).unwrap();
        again.commit().unwrap();
        assert_eq!(logs(dir.path()).replay().unwrap().len(), 4);
    }

    #[test]
    fn a_torn_tail_is_cut_off_at_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = fs::read(&path).unwrap();
        let two: usize = bodies(&whole).take(2).map(|body| body.len() + HEADER_SIZE).sum();
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
        let first = bodies(&whole).next().unwrap().len() + HEADER_SIZE;
        fs::write(&path, &whole[first..]).unwrap();
        assert!(matches!(logs(dir.path()).replay(), Err(LogError::Damaged { seq: 0, .. })));
    }
}
