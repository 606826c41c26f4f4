//! Which of the blocks below those that came a fetch goes on to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iptl_artifacts::Seen;
use iptl_dag::unixfs::{UnixFs, UnixFsError};
use iptl_dag::{Block, Cid, Codec, walk};

use super::error::FetchError;

/// What is wanted below the root, with what is known of it.
pub(super) enum Below {
    /// Nothing.
    Nothing,
    /// Everything, each block once.
    Everything(Seen),
    /// What holds some bytes of the file that the root is.
    Bytes(Bytes),
}

impl Below {
    pub(super) fn everything(root: &Cid) -> Below {
        let mut seen = Seen::default();
        seen.insert(root);
        Below::Everything(seen)
    }

    pub(super) fn bytes(root: &Cid, range: Range<u64>) -> Below {
        let size = range.end.saturating_sub(range.start);
        let here = BTreeMap::from([(*root, BTreeSet::from([(range.start, range.end)]))]);
        Below::Bytes(Bytes { root: *root, size, here, next: BTreeMap::new(), seen: Seen::default() })
    }

    /// Returns the blocks that a block leads to, and that are to come in the next level because of it.
    pub(super) fn links(&mut self, block: &Block) -> Result<Vec<Cid>, FetchError> {
        match self {
            Below::Nothing => Ok(Vec::new()),
            Below::Everything(seen) => {
                let mut links = walk::links(block.cid(), block.data())
                    .map_err(|e| FetchError::Damaged { cid: *block.cid(), reason: e.to_string() })?;
                links.retain(|cid| seen.insert(cid));
                Ok(links)
            }
            Below::Bytes(bytes) => bytes.links(block),
        }
    }

    /// Goes a level down.
    pub(super) fn descend(&mut self) {
        if let Below::Bytes(bytes) = self {
            bytes.here = std::mem::take(&mut bytes.next);
        }
    }

    /// Returns how many are known to be wanted.
    pub(super) fn len(&self) -> u64 {
        match self {
            Below::Nothing => 1,
            Below::Everything(seen) => seen.len() as u64,
            Below::Bytes(bytes) => bytes.seen.len() as u64,
        }
    }

    /// Returns the bytes that a node says are wanted below it; what does not say so says nothing.
    pub(super) fn claimed_size(&self, block: &Block) -> u64 {
        match (self, Codec::of(block.cid())) {
            (Below::Nothing, _) => 0,
            (Below::Bytes(bytes), _) => bytes.size,
            (Below::Everything(_), Some(Codec::DagPb)) => walk::claimed_size(block.data()),
            (Below::Everything(_), Some(Codec::Raw | Codec::DagCbor | Codec::DagJson) | None) => 0,
        }
    }
}

/// Some bytes of a file. A block may stand in it more than once, and other bytes of it may be wanted each time.
pub(super) struct Bytes {
    root: Cid,
    /// How many are wanted, at most; none where that is not known.
    size: u64,
    /// What is wanted of each block of this level, and of the next, as bytes of its own content.
    here: BTreeMap<Cid, BTreeSet<(u64, u64)>>,
    next: BTreeMap<Cid, BTreeSet<(u64, u64)>>,
    seen: Seen,
}

impl Bytes {
    fn links(&mut self, block: &Block) -> Result<Vec<Cid>, FetchError> {
        let cid = *block.cid();
        let Some(wanted) = self.here.get(&cid) else { return Ok(Vec::new()) };
        let refused = |error: UnixFsError| match cid == self.root {
            true => FetchError::NotAFile { cid, reason: error.to_string() },
            false => FetchError::Damaged { cid, reason: error.to_string() },
        };
        let UnixFs::File(node) = UnixFs::of_block(block).map_err(refused)? else {
            return Err(refused(UnixFsError::NotAFile));
        };
        // What is known of its size by now: the root says it.
        if cid == self.root {
            self.size = self.size.min(node.size);
        }
        let mut links = Vec::new();
        for (part, of) in wanted.iter().flat_map(|(start, end)| node.parts_of(&(*start..*end)).collect::<Vec<_>>()) {
            if self.seen.insert(&(part, of.start, of.end)) {
                let all = self.next.entry(part).or_default();
                if all.is_empty() {
                    links.push(part);
                }
                all.insert((of.start, of.end));
            }
        }
        Ok(links)
    }
}
