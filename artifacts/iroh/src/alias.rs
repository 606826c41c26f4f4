//! The index from other multihashes to the BLAKE3 hashes under which their bytes are kept.
//!
//! An append-only file of checked records, read whole when the store opens:
//!
//! ```text
//! u8 length of the multihash | u8 1 = added, 0 = removed | multihash | 32 bytes BLAKE3 | 4 bytes checksum of the rest
//! ```
//!
//! A crash can only tear the tail, which is cut off; nothing durable named it yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use iptl_dag::Multihash;

/// Records that say nothing any more, above which opening writes the file anew.
const DEAD_RECORDS_KEPT: usize = 1_000;

/// Digest length of BLAKE3-256 in bytes.
const DIGEST: usize = 32;

/// Bytes of a record's checksum: it finds torn writes, nobody forges one's own file.
const CHECKSUM: usize = 4;

/// The index in memory and on disk.
pub(crate) struct Aliases {
    file: File,
    forward: BTreeMap<Multihash, [u8; DIGEST]>,
    backward: BTreeSet<([u8; DIGEST], Multihash)>,
    /// Something was appended since the last sync.
    dirty: bool,
}

impl Aliases {
    /// Reads the index, cuts off a torn tail and compacts where much of it is dead.
    pub(crate) fn open(path: &Path) -> io::Result<Aliases> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut aliases = Aliases { file, forward: BTreeMap::new(), backward: BTreeSet::new(), dirty: false };
        let mut rest = bytes.as_slice();
        let mut records = 0;
        while let Some(((hash, target), after)) = parse(rest) {
            records += 1;
            rest = after;
            match target {
                Some(target) => aliases.note(hash, target),
                None => aliases.forget(&hash),
            }
        }
        if !rest.is_empty() {
            tracing::warn!(path = %path.display(), bytes = rest.len(), "cut a torn tail off the index of other hashes");
            aliases.file.set_len((bytes.len() - rest.len()) as u64)?;
            aliases.file.sync_all()?;
        }
        if records > aliases.forward.len() + DEAD_RECORDS_KEPT {
            aliases.file = rewritten(path, &aliases.forward)?;
        }
        aliases.file.seek(SeekFrom::End(0))?;
        Ok(aliases)
    }

    /// Returns the BLAKE3 hash of the bytes behind `hash`.
    pub(crate) fn target(&self, hash: &Multihash) -> Option<[u8; DIGEST]> {
        self.forward.get(hash).copied()
    }

    /// Says whether some other hash leads to `target`.
    pub(crate) fn leads_to(&self, target: &[u8; DIGEST]) -> bool {
        let first = Multihash::default();
        self.backward.range((*target, first)..).next().is_some_and(|(digest, _)| digest == target)
    }

    /// Adds entries; they are durable after [`Aliases::handle_to_sync`] was synced.
    pub(crate) fn add(&mut self, entries: &[(Multihash, [u8; DIGEST])]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (hash, target) in entries {
            if self.forward.get(hash) != Some(target) {
                record(hash, Some(target), &mut bytes);
            }
        }
        self.append(&bytes)?;
        for (hash, target) in entries {
            self.note(*hash, *target);
        }
        Ok(())
    }

    /// Removes entries; returns what they led to.
    pub(crate) fn remove(&mut self, hashes: &[Multihash]) -> io::Result<Vec<[u8; DIGEST]>> {
        let mut bytes = Vec::new();
        let mut targets = Vec::new();
        for hash in hashes {
            if let Some(target) = self.forward.get(hash) {
                targets.push(*target);
                record(hash, None, &mut bytes);
            }
        }
        self.append(&bytes)?;
        for hash in hashes {
            self.forget(hash);
        }
        Ok(targets)
    }

    /// Returns every hash of the index.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (&Multihash, &[u8; DIGEST])> {
        self.forward.iter()
    }

    /// Returns a handle to sync where something was appended since the last call.
    pub(crate) fn handle_to_sync(&mut self) -> io::Result<Option<File>> {
        if !self.dirty {
            return Ok(None);
        }
        let handle = self.file.try_clone()?;
        self.dirty = false;
        Ok(Some(handle))
    }

    /// Takes back what [`Aliases::handle_to_sync`] promised, after its sync failed.
    pub(crate) fn sync_failed(&mut self) {
        self.dirty = true;
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = self.file.stream_position()?;
        if let Err(error) = self.file.write_all(bytes) {
            // A record that is half there would hide those that come after it.
            self.file.set_len(end)?;
            self.file.seek(SeekFrom::Start(end))?;
            return Err(error);
        }
        self.dirty = true;
        Ok(())
    }

    fn note(&mut self, hash: Multihash, target: [u8; DIGEST]) {
        self.forget(&hash);
        self.forward.insert(hash, target);
        self.backward.insert((target, hash));
    }

    fn forget(&mut self, hash: &Multihash) {
        if let Some(target) = self.forward.remove(hash) {
            self.backward.remove(&(target, *hash));
        }
    }
}

fn record(hash: &Multihash, target: Option<&[u8; DIGEST]>, out: &mut Vec<u8>) {
    let start = out.len();
    let hash = hash.to_bytes();
    out.push(u8::try_from(hash.len()).expect("a multihash of at most 64 digest bytes has a short encoding"));
    out.push(u8::from(target.is_some()));
    out.extend_from_slice(&hash);
    out.extend_from_slice(target.unwrap_or(&[0; DIGEST]));
    let checksum = checksum(&out[start..]);
    out.extend_from_slice(&checksum);
}

/// What one record says: `None` stands for a removal.
type Record = (Multihash, Option<[u8; DIGEST]>);

/// Reads one record and returns it with the bytes after it.
fn parse(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let length = usize::from(*bytes.first()?);
    let end = 2 + length + DIGEST;
    let (body, found) = (bytes.get(..end)?, bytes.get(end..end + CHECKSUM)?);
    if checksum(body) != found {
        return None;
    }
    let hash = Multihash::from_bytes(&body[2..2 + length]).ok()?;
    let target: [u8; DIGEST] = body[2 + length..].try_into().ok()?;
    Some(((hash, (body[1] == 1).then_some(target)), &bytes[end + CHECKSUM..]))
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&iroh_blobs::Hash::new(bytes).as_bytes()[..CHECKSUM]);
    checksum
}

fn rewritten(path: &Path, forward: &BTreeMap<Multihash, [u8; DIGEST]>) -> io::Result<File> {
    let beside = path.with_extension("new");
    let mut bytes = Vec::new();
    for (hash, target) in forward {
        record(hash, Some(target), &mut bytes);
    }
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn hash(n: u8) -> Multihash {
        Multihash::wrap(0x12, &[n; 32]).unwrap()
    }

    #[test]
    fn index_survives_reopening_and_torn_tails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases");
        let mut aliases = Aliases::open(&path).unwrap();
        aliases.add(&[(hash(1), [1; 32]), (hash(2), [2; 32]), (hash(3), [2; 32])]).unwrap();
        assert_eq!(aliases.remove(&[hash(1), hash(9)]).unwrap(), [[1; 32]]);
        assert!(!aliases.leads_to(&[1; 32]));
        drop(aliases);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut aliases = Aliases::open(&path).unwrap();
            let complete = cut / (whole.len() / 4);
            assert_eq!(aliases.hashes().count(), [0, 1, 2, 3, 2][complete], "cut at {cut}");
            aliases.add(&[(hash(7), [7; 32])]).unwrap();
            drop(aliases);
            let aliases = Aliases::open(&path).unwrap();
            assert_eq!(aliases.target(&hash(7)), Some([7; 32]), "what is added after a torn tail is found");
            assert_eq!(aliases.leads_to(&[2; 32]), complete >= 2);
        }
    }

    #[test]
    fn dead_records_are_compacted_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases");
        let mut aliases = Aliases::open(&path).unwrap();
        for round in 0..600u32 {
            aliases.add(&[(hash(1), [1; 32])]).unwrap();
            aliases.add(&[(hash((round % 2) as u8 + 2), [3; 32])]).unwrap();
            aliases.remove(&[hash(1)]).unwrap();
        }
        drop(aliases);
        let before = std::fs::metadata(&path).unwrap().len();
        let aliases = Aliases::open(&path).unwrap();
        assert_eq!(aliases.hashes().map(|(hash, _)| *hash).collect::<Vec<_>>(), [hash(2), hash(3)]);
        assert!(std::fs::metadata(&path).unwrap().len() < before / 100);
    }
}
