//! Following links, within bounds.
//!
//! [`links`] lists what one block links, whatever its codec. [`Walk`] is the state of a walk over a whole DAG: it says
//! which blocks it wants next and takes them in any order, so that a fetcher keeps many of them in flight, and never
//! holds more than its [`Limits`] allow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipld_core::serde::ExtractLinks;

use crate::codec::DecodeError;
use crate::unixfs::pb::{PbError, PbNode};
use crate::{Block, Cid, Codec, HashError, codec};

/// Why the links of a block could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The codec is not one that the lab reads.
    #[error("{cid} has codec {codec:#x}, whose links cannot be read")]
    Codec {
        /// Block in question.
        cid: Cid,
        /// Multicodec number.
        codec: u64,
    },
    /// The bytes are not valid in the block's codec.
    #[error("{cid} is not valid")]
    Decode {
        /// Block in question.
        cid: Cid,
        /// What the decoder met.
        #[source]
        source: DecodeError,
    },
    /// The bytes are not a dag-pb node.
    #[error("{cid} is not a valid dag-pb node")]
    Pb {
        /// Block in question.
        cid: Cid,
        /// What the decoder met.
        #[source]
        source: PbError,
    },
}

/// Lists the links of a block in the order in which they stand in it, repetitions included.
///
/// The bytes are taken to be those that `cid` names.
pub fn links(cid: &Cid, bytes: &[u8]) -> Result<Vec<Cid>, LinkError> {
    match Codec::of(cid) {
        Some(Codec::Raw) => Ok(Vec::new()),
        Some(Codec::DagPb) => PbNode::decode(bytes)
            .map(|node| node.links.into_iter().map(|l| l.cid).collect())
            .map_err(|source| LinkError::Pb { cid: *cid, source }),
        Some(Codec::DagCbor) => value_links(cid, codec::decode(bytes)),
        Some(Codec::DagJson) => value_links(cid, codec::decode_dag_json(bytes)),
        None => Err(LinkError::Codec { cid: *cid, codec: cid.codec() }),
    }
}

/// Decodes to links alone: a value in memory takes up to a hundred times the bytes of its block.
fn value_links(cid: &Cid, links: Result<ExtractLinks<64>, DecodeError>) -> Result<Vec<Cid>, LinkError> {
    links.map(ExtractLinks::into_vec).map_err(|source| LinkError::Decode { cid: *cid, source })
}

/// Bounds of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most distinct blocks.
    pub blocks: u64,
    /// Most bytes over all blocks that were accepted.
    pub bytes: u64,
    /// Most links from a root to a block.
    pub depth: u32,
}

impl Default for Limits {
    /// Room for a terabyte of small leaves; depth for a log of a hundred thousand facts, each linking the one before.
    fn default() -> Limits {
        Limits { blocks: 16 << 20, bytes: 1 << 40, depth: 100_000 }
    }
}

/// Why a walk cannot go on. The walk stays usable: what it wants beside the refused block is not touched.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// More blocks than allowed.
    #[error("the DAG has more than {limit} blocks")]
    TooManyBlocks {
        /// The limit.
        limit: u64,
    },
    /// More bytes than allowed.
    #[error("the DAG has more than {limit} bytes")]
    TooManyBytes {
        /// The limit.
        limit: u64,
    },
    /// Deeper than allowed.
    #[error("the DAG is deeper than {limit} links at {cid}")]
    TooDeep {
        /// Block below which it would go on.
        cid: Cid,
        /// The limit.
        limit: u32,
    },
    /// A block that the walk did not ask for, or has already.
    #[error("{cid} was not wanted")]
    Unwanted {
        /// Block in question.
        cid: Cid,
    },
    /// A link carries its content, and that is wrong.
    #[error(transparent)]
    Identity(#[from] HashError),
    /// The links of a block cannot be read.
    #[error(transparent)]
    Links(#[from] LinkError),
}

/// State of a walk over everything under some roots.
///
/// [`wants`](Walk::wants) hands out CIDs breadth first, each once; [`accept`](Walk::accept) takes their blocks in any
/// order; [`missing`](Walk::missing) gives one up. Links that carry their content (identity hash) are followed inside.
///
/// ```
/// use iptl_dag::{Block, Codec, walk::{Limits, Walk}};
///
/// let block = Block::new(Codec::Raw, "leaf");
/// let mut walk = Walk::new([*block.cid()], Limits::default())?;
/// assert_eq!(walk.wants(10), vec![*block.cid()]);
/// walk.accept(&block)?;
/// assert!(walk.is_done());
/// # Ok::<(), iptl_dag::walk::WalkError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Walk {
    limits: Limits,
    seen: BTreeSet<Cid>,
    queue: VecDeque<(Cid, u32)>,
    /// Handed out and neither accepted nor given up, with their depth.
    in_flight: BTreeMap<Cid, u32>,
    given_up: Vec<Cid>,
    blocks: u64,
    bytes: u64,
}

impl Walk {
    /// Starts at `roots`.
    pub fn new(roots: impl IntoIterator<Item = Cid>, limits: Limits) -> Result<Walk, WalkError> {
        let mut walk = Walk {
            limits,
            seen: BTreeSet::new(),
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            given_up: Vec::new(),
            blocks: 0,
            bytes: 0,
        };
        walk.discover(&roots.into_iter().collect::<Vec<_>>(), 0)?;
        Ok(walk)
    }

    /// Hands out up to `max` further CIDs. Each is handed out once; whoever fails to get one calls
    /// [`missing`](Walk::missing) or [`retry`](Walk::retry).
    pub fn wants(&mut self, max: usize) -> Vec<Cid> {
        let count = max.min(self.queue.len());
        let wants: Vec<(Cid, u32)> = self.queue.drain(..count).collect();
        self.in_flight.extend(wants.iter().copied());
        wants.into_iter().map(|(cid, _)| cid).collect()
    }

    /// Takes a block that was handed out and returns its links, repetitions included.
    pub fn accept(&mut self, block: &Block) -> Result<Vec<Cid>, WalkError> {
        let cid = *block.cid();
        let depth = *self.in_flight.get(&cid).ok_or(WalkError::Unwanted { cid })?;
        let bytes = self.bytes.saturating_add(block.data().len() as u64);
        if bytes > self.limits.bytes {
            return Err(WalkError::TooManyBytes { limit: self.limits.bytes });
        }
        let links = links(&cid, block.data())?;
        if depth >= self.limits.depth && links.iter().any(|link| !self.seen.contains(link)) {
            return Err(WalkError::TooDeep { cid, limit: self.limits.depth });
        }
        self.discover(&links, depth + 1)?;
        self.in_flight.remove(&cid);
        self.blocks += 1;
        self.bytes = bytes;
        Ok(links)
    }

    /// Gives a CID up that was handed out: the walk goes on without what is below it.
    pub fn missing(&mut self, cid: &Cid) {
        if self.in_flight.remove(cid).is_some() {
            self.given_up.push(*cid);
        }
    }

    /// Puts a CID back that was handed out, to be handed out again before all others.
    pub fn retry(&mut self, cid: &Cid) {
        if let Some(depth) = self.in_flight.remove(cid) {
            self.queue.push_front((*cid, depth));
        }
    }

    /// Returns whether nothing is wanted or in flight any more.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// Returns the CIDs that were given up.
    pub fn given_up(&self) -> &[Cid] {
        &self.given_up
    }

    /// Returns how many CIDs are handed out and not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Returns how many blocks are known to be wanted still, those in flight included; more may turn up below them.
    pub fn open(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// Returns how many blocks were accepted.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns the bytes of the blocks that were accepted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns every CID that was met, the roots included.
    pub fn seen(&self) -> &BTreeSet<Cid> {
        &self.seen
    }

    /// Queues what was not seen before, all or nothing.
    fn discover(&mut self, found: &[Cid], depth: u32) -> Result<(), WalkError> {
        let mut new = Vec::new();
        let mut added = BTreeSet::new();
        let mut stack: Vec<(Cid, u32)> = found.iter().rev().map(|cid| (*cid, depth)).collect();
        while let Some((cid, depth)) = stack.pop() {
            if self.seen.contains(&cid) || !added.insert(cid) {
                continue;
            }
            if (self.seen.len() + added.len()) as u64 > self.limits.blocks {
                return Err(WalkError::TooManyBlocks { limit: self.limits.blocks });
            }
            match crate::block::identity_data(&cid) {
                Some(data) => {
                    crate::block::check(&cid, data)?;
                    let inner = links(&cid, data)?;
                    if depth >= self.limits.depth && !inner.is_empty() {
                        return Err(WalkError::TooDeep { cid, limit: self.limits.depth });
                    }
                    stack.extend(inner.into_iter().rev().map(|cid| (cid, depth + 1)));
                }
                None => new.push((cid, depth)),
            }
        }
        self.seen.extend(added);
        self.queue.extend(new);
        Ok(())
    }
}

/// Returns how many bytes a node of dag-pb says are below it: the sum of what its links say. A node that cannot be read
/// says nothing.
///
/// Whoever made the node may have written any number: it is a reason to refuse, and none to trust.
pub fn claimed_size(node: &[u8]) -> u64 {
    let Ok(node) = PbNode::decode(node) else { return 0 };
    node.links.iter().filter_map(|link| link.tsize).fold(0, u64::saturating_add)
}
