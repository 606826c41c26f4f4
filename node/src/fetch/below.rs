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
    Everything(Everything),
    /// What holds some bytes of the file that the root is.
    Bytes(Bytes),
}

impl Below {
    pub(super) fn everything(root: &Cid) -> Below {
        let mut seen = Seen::default();
        seen.insert(root);
        Below::Everything(Everything { seen })
    }

    pub(super) fn bytes(root: &Cid, range: Range<u64>) -> Below {
        let size = range.end.saturating_sub(range.start);
        let wanted = BTreeMap::from([(*root, BTreeSet::from([(range.start, range.end)]))]);
        Below::Bytes(Bytes { root: *root, size, wanted, met: Seen::default(), seen: Seen::default() })
    }

    /// Says whether a block is come to for the first time: of a file, other bytes of it may be wanted later.
    pub(super) fn is_first(&mut self, cid: &Cid) -> bool {
        match self {
            Below::Nothing | Below::Everything(_) => true,
            Below::Bytes(bytes) => bytes.met.insert(cid),
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

/// Everything below a root.
pub(super) struct Everything {
    /// The root, and all that a block leads to that was come to.
    pub(super) seen: Seen,
}

impl Everything {
    /// Returns all that a block leads to, as often as it does.
    pub(super) fn links(&self, block: &Block) -> Result<Vec<Cid>, FetchError> {
        walk::links(block.cid(), block.data())
            .map_err(|e| FetchError::Damaged { cid: *block.cid(), reason: e.to_string() })
    }
}

/// Some bytes of a file. A block may stand in it more than once, and other bytes of it may be wanted each time.
pub(super) struct Bytes {
    root: Cid,
    /// How many are wanted, at most; none where that is not known.
    size: u64,
    /// What is wanted of each block that is to be come to, as bytes of its own content.
    wanted: BTreeMap<Cid, BTreeSet<(u64, u64)>>,
    met: Seen,
    seen: Seen,
}

impl Bytes {
    /// Returns the blocks that a block leads to, and that are to be come to because of it.
    pub(super) fn links(&mut self, block: &Block) -> Result<Vec<Cid>, FetchError> {
        let cid = *block.cid();
        let Some(wanted) = self.wanted.remove(&cid) else { return Ok(Vec::new()) };
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
                let all = self.wanted.entry(part).or_default();
                if all.is_empty() {
                    links.push(part);
                }
                all.insert((of.start, of.end));
            }
        }
        Ok(links)
    }

    /// Returns how many are known to be wanted, those that are wanted twice counted twice.
    pub(super) fn len(&self) -> u64 {
        self.seen.len() as u64
    }
}
