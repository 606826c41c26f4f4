//! Files, directories and paths: single nodes, and trees of sharded directories that somebody made up.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::path::{Resolve, Step, Target};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{DirectoryReader, FileReader, UnixFs, UnixFsError, metadata_of};
use iptl_dag::{Block, Cid, Codec};

use crate::memory::bounded;

/// What a node takes in memory for each of its bytes: an entry of a directory has room for every digest.
const NODE: usize = 256;

/// A node, read as every reader reads it.
pub(crate) fn unixfs(data: &[u8]) -> bool {
    if let Ok(message) = bounded(NODE, data, || PbUnixFs::decode(data)) {
        assert_eq!(PbUnixFs::decode(&message.encode()).as_ref(), Ok(&message));
    }
    let block = Block::new(Codec::DagPb, data.to_vec());
    let read = bounded(NODE, data, || UnixFs::of_block(&block));
    let metadata = metadata_of(&block);
    let mut file = FileReader::new(*block.cid());
    let content = file.supply(&block);
    let mut directory = DirectoryReader::new(*block.cid());
    let entries = directory.supply(&block);
    let Ok(node) = read else {
        assert!(content.is_err() && entries.is_err());
        return false;
    };
    metadata.expect("a node that is read has readable metadata");
    match node {
        UnixFs::File(node) => {
            assert_eq!(content.as_ref(), Ok(&node.data));
            assert_eq!(file.size(), Some(node.size));
            let parts: u64 = node.parts.iter().map(|part| part.size).sum();
            assert_eq!(node.data.len() as u64 + parts, node.size, "sizes add up");
            assert!(file.upcoming(usize::MAX).count() <= node.parts.len());
        }
        UnixFs::Directory(found) => assert_eq!(entries, Ok(found)),
        UnixFs::Shard(shard) => {
            if let Ok(entries) = entries {
                assert!(shard.entries().eq(&entries));
                assert!(shard.shards().eq(directory.upcoming(usize::MAX)));
            }
        }
        UnixFs::Symlink(_) => assert_eq!(entries, Err(UnixFsError::NotADirectory)),
    }
    true
}

/// The bytes choose nodes of a sharded directory, each of entries and of nodes made before it; all of it is read.
///
/// A few nodes can stand for a tree of billions. What is listed is listed once, found by its name, and the work is bounded
/// by what there is.
pub(crate) fn hamt(data: &[u8]) -> bool {
    let mut feed = Feed(data);
    let mut blocks: Vec<Block> = Vec::new();
    let mut entries = 0;
    while let Some(head) = feed.byte() {
        let width = [8_u64, 16, 256, 1024][usize::from(head & 3)];
        let mut children: BTreeMap<u32, PbLink> = BTreeMap::new();
        for _ in 0..head >> 4 {
            let (Some(slot), Some(kind)) = (feed.byte(), feed.byte()) else { break };
            let slot = (u32::from(slot) * 5) % u32::try_from(width).unwrap_or(8);
            let digits = usize::try_from(width.ilog2().div_ceil(4)).unwrap_or(1);
            let child = blocks.get(usize::from(kind >> 1));
            let (suffix, cid) = match child.filter(|_| kind & 1 == 0) {
                Some(child) => (String::new(), *child.cid()),
                None => (format!("{}", kind >> 1), leaf(kind)),
            };
            entries += 1;
            let name = Some(format!("{slot:0digits$X}{suffix}"));
            children.insert(slot, PbLink { cid, name, tsize: Some(1) });
        }
        let mut bits = vec![0_u8; usize::try_from(width / 8).unwrap_or(1)];
        let last = bits.len() - 1;
        for slot in children.keys() {
            bits[last - *slot as usize / 8] |= 1 << (slot % 8);
        }
        let mut message = PbUnixFs::new(PbKind::HamtShard);
        message.data = Some(bits);
        message.hash_type = Some(if head & 4 == 0 { 0x22 } else { u64::from(head) });
        message.fanout = Some(width);
        let node = PbNode { links: children.into_values().collect(), data: Some(message.encode()) };
        blocks.push(Block::new(Codec::DagPb, node.encode()));
    }
    let Some(root) = blocks.last().map(|block| *block.cid()) else { return false };
    let by_cid: BTreeMap<Cid, Block> = blocks.into_iter().map(|block| (*block.cid(), block)).collect();
    let mut reader = DirectoryReader::new(root);
    let mut listed: BTreeMap<String, Cid> = BTreeMap::new();
    let mut steps = 0;
    let is_whole = loop {
        let Some(next) = reader.next().copied() else { break true };
        steps += 1;
        match reader.supply(&by_cid[&next]) {
            Ok(found) => {
                for entry in found {
                    assert!(listed.insert(entry.name.clone(), entry.cid).is_none(), "{} is given twice", entry.name);
                }
            }
            Err(_) => break false,
        }
    };
    // Each path ends in an entry, or it ends the reading. 64 bits of a hash are 22 levels at most.
    assert!(steps <= 22 * (listed.len() + 2) + entries, "{steps} steps for {entries} entries");
    for (name, cid) in listed.iter().filter(|(name, _)| !name.is_empty() && !name.contains('/')) {
        assert_eq!(found(root, name, &by_cid), Some(*cid), "{name} is listed and not found");
    }
    is_whole
}

fn leaf(seed: u8) -> Cid {
    *Block::new(Codec::Raw, vec![seed]).cid()
}

fn found(root: Cid, path: &str, blocks: &BTreeMap<Cid, Block>) -> Option<Cid> {
    let mut resolve = Resolve::new(root, path).ok()?;
    let mut seen = BTreeSet::new();
    loop {
        match resolve.step().clone() {
            Step::Found(Target::Block { cid }) => return Some(cid),
            Step::Found(Target::Value { .. }) => return None,
            Step::Need(cid) => {
                assert!(seen.len() <= blocks.len() * 22, "a path goes round in circles");
                seen.insert(cid);
                resolve.supply(blocks.get(&cid)?).ok()?;
            }
        }
    }
}

/// A path in its first line, below the block that follows.
pub(crate) fn path(data: &[u8]) -> bool {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return false };
    let (Ok(path), [_, codec, content @ ..]) = (std::str::from_utf8(&data[..end]), &data[end..]) else { return false };
    let codecs = [Codec::Raw, Codec::DagPb, Codec::DagCbor, Codec::DagJson];
    let block = Block::new(codecs[usize::from(codec % 4)], content.to_vec());
    let Ok(mut resolve) = Resolve::new(*block.cid(), path) else { return false };
    match resolve.step() {
        Step::Need(cid) => assert_eq!(cid, block.cid()),
        Step::Found(_) => assert!(path.chars().all(|c| c == '/'), "nothing is found without its block"),
    }
    resolve.supply(&block).is_ok()
}

/// Takes bytes off the front.
struct Feed<'a>(&'a [u8]);

impl Feed<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}
