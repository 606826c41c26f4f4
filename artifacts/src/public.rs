//! Which blocks strangers may read: those that a public root leads to.
//!
//! [`PublicIndex`] is asked for every block before it is served, so it is a set in memory, 16 bytes for a block, and a file
//! from which it is there again at once. A root is added by a walk over its structure; leaves are not read, nor what was
//! walked before. A root is taken out by walking those that stay: blocks belong to as many roots as lead to them.
//!
//! The pins say which roots are public. The index is made of them, and is made anew where it and they differ.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use iptl_dag::{Cid, Codec, Multihash, block, walk};

use crate::{BlobStore, Seen, StoreError};

/// What stands for a block: the first half of the BLAKE3 hash of its multihash. To get a block served that is not public,
/// somebody would have to find another one with the same half.
type Key = [u8; 16];

/// What the file begins with.
const MAGIC: &[u8; 16] = b"iptl-public/1\n\0\0";

/// Bytes of the checksum of a record.
const SUM: usize = 8;

/// Bytes of a record beside its keys: two counts and a checksum.
const RECORD_FRAME: u64 = 4 + 4 + SUM as u64;

/// Largest file that is read, in bytes: some 250 million blocks; a larger one is not ours.
const MAX_FILE_SIZE: u64 = 4 << 30;

/// Keys of one record: a megabyte, which is in memory while it is written or read.
const RECORD_KEYS: usize = 1 << 16;

/// Blocks read from the store together.
const READ_AHEAD: usize = 32;

/// Keys that are kept beside the sorted ones before they are sorted in, at least.
const MIN_FRESH: usize = 4096;

/// What a key is of.
#[derive(Clone, Copy)]
enum Of {
    /// A block that may be read.
    Block = 0,
    /// A node whose links are in the index, and all below it.
    Walked = 1,
    /// A root.
    Root = 2,
}

fn key(of: Of, bytes: &[u8]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[of as u8]).update(bytes);
    let hash = hasher.finalize();
    let (half, _) = hash.as_bytes().split_at(16);
    half.try_into().expect("16 of 32 bytes")
}

fn block_key(hash: &Multihash) -> Key {
    let mut bytes = [0; 96];
    let size = hash.write(&mut bytes[..]).expect("two numbers and a digest of 64 bytes");
    key(Of::Block, &bytes[..size])
}

/// Why the index could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PublicError {
    /// Its file.
    #[error("index of public blocks in {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a walk over a root came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Blocks that were not public before.
    pub blocks: u64,
    /// Structure that is not in the store: what is below it is not public until the root is added again.
    pub missing: u64,
}

/// The blocks that strangers may read.
pub struct PublicIndex {
    path: PathBuf,
    set: RwLock<Set>,
    /// One change at a time; the set itself is locked only for moments.
    changing: tokio::sync::Mutex<()>,
}

/// Sorted keys, and those that came since.
#[derive(Default)]
struct Set {
    roots: BTreeSet<Key>,
    sorted: Vec<Key>,
    fresh: HashSet<Key>,
}

impl Set {
    fn contains(&self, key: &Key) -> bool {
        self.sorted.binary_search(key).is_ok() || self.fresh.contains(key)
    }

    fn extend(&mut self, keys: Vec<Key>) {
        let few = MIN_FRESH.max(self.sorted.len() / 4);
        if self.fresh.len() + keys.len() < few {
            self.fresh.extend(keys);
            return;
        }
        match self.sorted.is_empty() {
            true => self.sorted = keys,
            false => self.sorted.extend(keys),
        }
        self.sorted.extend(self.fresh.drain());
        self.fresh.shrink_to_fit();
        self.settle();
    }

    fn settle(&mut self) {
        // Mostly sorted already, which the algorithm makes use of.
        self.sorted.sort();
        self.sorted.dedup();
        self.sorted.shrink_to_fit();
    }
}

/// Keys that are gathered, each once in the end. In between some are there twice: no more than there are others.
#[derive(Default)]
struct Keys {
    all: Vec<Key>,
    /// So many at the beginning are sorted, and there once.
    sorted: usize,
}

impl Keys {
    fn push(&mut self, key: Key) {
        if self.all.len() >= self.sorted * 2 + MIN_FRESH {
            self.settle();
        }
        self.all.push(key);
    }

    fn settle(&mut self) {
        self.all.sort_unstable();
        self.all.dedup();
        self.sorted = self.all.len();
    }

    fn into_sorted(mut self) -> Vec<Key> {
        self.settle();
        self.all
    }
}

/// What a walk over one root found.
#[derive(Default)]
struct Found {
    blocks: Keys,
    /// Nodes, each once.
    walked: Vec<Key>,
    seen: Seen,
    missing: u64,
}

impl PublicIndex {
    /// Reads the index of the public `roots`, and returns those that it lacks, to be [added](PublicIndex::add).
    ///
    /// An index that is damaged, or has a root that is public no more, is begun anew: everything is lacking then.
    pub fn open(path: impl Into<PathBuf>, roots: &[Cid]) -> Result<(PublicIndex, Vec<Cid>), PublicError> {
        let path = path.into();
        let failed = |source| PublicError::Io { path: path.clone(), source };
        let public: BTreeSet<Key> = roots.iter().map(root_key).collect();
        let set = match load(&path).map_err(failed)? {
            Some(set) if set.roots.is_subset(&public) => set,
            Some(_) | None => {
                write_whole(&path, &[], &[]).map_err(failed)?;
                Set::default()
            }
        };
        let lacking = roots.iter().filter(|root| !set.roots.contains(&root_key(root))).copied().collect();
        Ok((PublicIndex { path, set: RwLock::new(set), changing: tokio::sync::Mutex::default() }, lacking))
    }

    /// Says whether strangers may read a block. Asked for every block of every answer: well under a microsecond.
    pub fn contains(&self, hash: &Multihash) -> bool {
        let key = block_key(hash);
        self.read().contains(&key)
    }

    /// Makes everything public that a root leads to. Durable on return; dropped half-way, it has changed nothing.
    pub async fn add(&self, store: &dyn BlobStore, root: &Cid) -> Result<Added, PublicError> {
        let _changing = self.changing.lock().await;
        let found = self.walk(store, root, |walked| self.read().contains(walked)).await?;
        let (is_whole, missing) = (found.is_whole(), found.missing);
        let Found { blocks, walked, .. } = found;
        let mut keys = blocks.into_sorted();
        {
            let set = self.read();
            keys.retain(|block| !set.contains(block));
        }
        let added = Added { blocks: keys.len() as u64, missing };
        let mut roots = Vec::new();
        // Above a hole nothing counts as walked: what is missing may come, and then the root is added again.
        if is_whole {
            roots.push(root_key(root));
            keys.extend(walked);
        }
        if !self.read().roots.is_superset(&roots.iter().copied().collect()) || !keys.is_empty() {
            (roots, keys) = self.change(roots, keys, append).await?;
        }
        let mut set = self.write();
        set.roots.extend(roots);
        set.extend(keys);
        Ok(added)
    }

    /// Makes public what these roots lead to, and nothing else. Durable on return; dropped half-way, it has changed
    /// nothing, and what was public is so until then.
    pub async fn replace(&self, store: &dyn BlobStore, roots: &[Cid]) -> Result<Added, PublicError> {
        let _changing = self.changing.lock().await;
        let (mut blocks, mut walked, mut known) = (Keys::default(), Vec::new(), Seen::default());
        let (mut whole, mut missing) = (Vec::new(), 0);
        for root in roots {
            let found = self.walk(store, root, |walked| known.contains(walked)).await?;
            missing += found.missing;
            if found.is_whole() {
                whole.push(root_key(root));
                for key in &found.walked {
                    known.insert(key);
                }
                walked.extend(found.walked);
            }
            found.blocks.all.into_iter().for_each(|key| blocks.push(key));
        }
        let mut keys = blocks.into_sorted();
        let added = Added { blocks: keys.len() as u64, missing };
        keys.extend(walked);
        let (whole, keys) = self.change(whole, keys, write_whole).await?;
        let mut set = Set { roots: whole.into_iter().collect(), ..Set::default() };
        set.extend(keys);
        *self.write() = set;
        Ok(added)
    }

    /// Writes roots and keys to the file, and hands them back.
    async fn change(
        &self,
        roots: Vec<Key>,
        keys: Vec<Key>,
        write: fn(&Path, &[Key], &[Key]) -> io::Result<()>,
    ) -> Result<(Vec<Key>, Vec<Key>), PublicError> {
        let path = self.path.clone();
        let writing = move || write(&path, &roots, &keys).map(|()| (roots, keys));
        let written = tokio::task::spawn_blocking(writing).await.expect("writing does not panic");
        written.map_err(|source| PublicError::Io { path: self.path.clone(), source })
    }

    /// Walks what `root` leads to, but for nodes that were walked before.
    async fn walk(
        &self,
        store: &dyn BlobStore,
        root: &Cid,
        is_known: impl Fn(&Key) -> bool,
    ) -> Result<Found, PublicError> {
        let mut found = Found::default();
        let mut stack = Vec::new();
        found.meet(*root, &is_known, &mut stack);
        while !stack.is_empty() {
            let part = stack.split_off(stack.len().saturating_sub(READ_AHEAD));
            let hashes: Vec<Multihash> = part.iter().map(|cid| *cid.hash()).collect();
            for (cid, data) in part.iter().zip(store.get_batch(&hashes).await?) {
                let Some(data) = data else {
                    found.missing += 1;
                    continue;
                };
                match walk::links(cid, &data) {
                    Ok(links) => links.into_iter().for_each(|link| found.meet(link, &is_known, &mut stack)),
                    Err(error) => tracing::warn!(%cid, %error, "a block under a public root cannot be decoded"),
                }
            }
        }
        Ok(found)
    }

    fn read(&self) -> RwLockReadGuard<'_, Set> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Set> {
        self.set.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    /// Notes a link, and puts what it names on the stack where there may be more below it.
    fn meet(&mut self, cid: Cid, is_known: impl Fn(&Key) -> bool, stack: &mut Vec<Cid>) {
        let mut met = vec![cid];
        while let Some(cid) = met.pop() {
            if let Some(data) = block::identity_data(&cid) {
                // It is its own content, and no longer than a CID may be: there are few links in it.
                met.extend(walk::links(&cid, data).unwrap_or_default());
                continue;
            }
            self.blocks.push(block_key(cid.hash()));
            if Codec::of(&cid).is_some_and(|codec| codec != Codec::Raw) && self.seen.insert(&cid) {
                let walked = key(Of::Walked, &cid.to_bytes());
                if !is_known(&walked) {
                    self.walked.push(walked);
                    stack.push(cid);
                }
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.missing == 0
    }
}

fn root_key(root: &Cid) -> Key {
    key(Of::Root, &root.to_bytes())
}

/// Writes records: how many roots and keys, these, and a checksum. The roots stand in the last one.
fn write_records(out: &mut impl Write, roots: &[Key], keys: &[Key]) -> io::Result<()> {
    let mut parts: Vec<&[Key]> = keys.chunks(RECORD_KEYS).collect();
    if parts.is_empty() && !roots.is_empty() {
        parts.push(&[]);
    }
    let last = parts.len().saturating_sub(1);
    let mut record = Vec::new();
    for (at, keys) in parts.into_iter().enumerate() {
        let roots = if at == last { roots } else { &[] };
        record.clear();
        for count in [roots.len(), keys.len()] {
            record.extend(u32::try_from(count).expect("a record is small").to_le_bytes());
        }
        record.extend(roots.iter().chain(keys).flatten());
        let sum = blake3::hash(&record);
        record.extend(&sum.as_bytes()[..SUM]);
        out.write_all(&record)?;
    }
    Ok(())
}

/// Reads one record, of which there are so many bytes at most, into a set; returns its length. None where it is cut or
/// damaged.
fn read_record(from: &mut impl Read, left: u64, set: &mut Set) -> io::Result<Option<u64>> {
    if left < RECORD_FRAME {
        return Ok(None);
    }
    let mut record = vec![0; 8];
    from.read_exact(&mut record)?;
    let count = |at: usize| record[at..at + 4].iter().rev().fold(0, |count, byte| count << 8 | u64::from(*byte));
    let (roots, keys) = (count(0), count(4));
    let size = (roots + keys) * 16;
    if size > left - RECORD_FRAME {
        return Ok(None);
    }
    let body = usize::try_from(size).expect("it is no longer than the file, whose length is limited");
    record.resize(8 + body, 0);
    from.read_exact(&mut record[8..])?;
    let mut sum = [0; SUM];
    from.read_exact(&mut sum)?;
    if blake3::hash(&record).as_bytes()[..SUM] != sum {
        return Ok(None);
    }
    let (all, _) = record[8..].as_chunks::<16>();
    let (roots, keys) = all.split_at(usize::try_from(roots).expect("they are in memory"));
    set.roots.extend(roots);
    set.sorted.extend(keys);
    Ok(Some(size + RECORD_FRAME))
}

/// Reads the index; none where there is none that can be read. What a crash has left of a record is cut off.
fn load(path: &Path) -> io::Result<Option<Set>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let mut from = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    let is_ours = size >= MAGIC.len() as u64 && size <= MAX_FILE_SIZE && {
        from.read_exact(&mut magic)?;
        magic == *MAGIC
    };
    if !is_ours {
        tracing::warn!(path = %path.display(), size, "an index of public blocks that is none is begun anew");
        return Ok(None);
    }
    let mut set = Set::default();
    let mut good = MAGIC.len() as u64;
    while let Some(read) = read_record(&mut from, size - good, &mut set)? {
        good += read;
    }
    if good < size {
        tracing::warn!(path = %path.display(), bytes = size - good, "the index of public blocks ends in a damaged record");
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(good)?;
        file.sync_all()?;
    }
    set.settle();
    Ok(Some(set))
}

fn append(path: &Path, roots: &[Key], keys: &[Key]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    let before = file.metadata()?.len();
    let written = write_records(&mut file, roots, keys).and_then(|()| file.sync_data());
    if written.is_err() {
        // Half a record would hide all that come after it.
        file.set_len(before)?;
    }
    written
}

/// Replaces the file, so that a crash leaves the old or the new one.
fn write_whole(path: &Path, roots: &[Key], keys: &[Key]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(MAGIC)?;
    write_records(&mut temporary, roots, keys)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
