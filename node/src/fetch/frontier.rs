//! What a fetch knows of and has not come to: little of it at a time, however wide the DAG is.
//!
//! Of the links that blocks hold some thousands are ahead, to be looked for here and then asked for. A node that comes
//! while there are enough of them stays folded: it is in the store by then, and is read there again when its links are
//! needed. What its links are new for, the walk has seen at once, so that each block is counted and come to once.
//!
//! As long as few nodes are folded those nearest to the root are unfolded first, so that what many blocks lead to is met
//! early and asked for together; where they are many, the deepest are, so that they become fewer.

use std::collections::{BTreeMap, VecDeque};

use iptl_dag::walk::Limits;
use iptl_dag::{Block, Cid, Codec};

use super::below::Below;
use super::error::FetchError;

/// Links that are ahead at most, but for those of one node: some 100 bytes each.
const MAX_AHEAD: usize = 16 << 10;

/// Nodes above which the deepest are unfolded first.
const MANY_FOLDED: usize = 8 << 10;

/// The edge of what is known of a DAG.
pub(super) struct Frontier {
    root: Cid,
    limits: Limits,
    below: Below,
    /// Neither looked for nor asked for, with how many links they are from the root.
    ahead: VecDeque<(Cid, u32)>,
    /// By how many links they are from the root.
    folded: BTreeMap<u32, VecDeque<Folded>>,
    folds: usize,
    /// Nodes that are asked for, as `ahead`; leaves lead nowhere.
    asked: BTreeMap<Cid, u32>,
    known: u64,
}

/// A node that is in the store and whose links are not ahead yet.
pub(super) struct Folded {
    pub(super) cid: Cid,
    depth: u32,
    /// A bit for each of its links, set where it leads somewhere new; none where all do.
    new: Option<Box<[u8]>>,
}

impl Frontier {
    pub(super) fn new(root: Cid, below: Below, limits: Limits) -> Frontier {
        Frontier {
            root,
            limits,
            below,
            ahead: VecDeque::from([(root, 0)]),
            folded: BTreeMap::new(),
            folds: 0,
            asked: BTreeMap::new(),
            known: 1,
        }
    }

    /// Says whether everything that is known was looked for.
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty() && self.folds == 0
    }

    /// Returns how many blocks are known to be wanted, those that came included.
    pub(super) fn known(&self) -> u64 {
        self.known
    }

    /// Returns the bytes that a node says are wanted below it.
    pub(super) fn claimed_size(&self, block: &Block) -> u64 {
        self.below.claimed_size(block)
    }

    /// Returns what is to be looked for next. Where that is nothing, a node is to be unfolded.
    pub(super) fn take(&mut self, count: usize) -> Vec<(Cid, u32)> {
        self.ahead.drain(..count.min(self.ahead.len())).collect()
    }

    /// Notes that somebody is asked for a block.
    pub(super) fn ask(&mut self, cid: Cid, depth: u32) {
        if Codec::of(&cid) != Some(Codec::Raw) {
            self.asked.insert(cid, depth);
        }
    }

    /// Comes to a block that was asked for, as [`meet`](Frontier::meet) does.
    pub(super) fn arrived(&mut self, block: &Block) -> Result<bool, FetchError> {
        let depth = self.asked.remove(block.cid()).unwrap_or(0);
        self.meet(block, depth)
    }

    /// Comes to a block that is in the store now; says whether it is the first time.
    pub(super) fn meet(&mut self, block: &Block, depth: u32) -> Result<bool, FetchError> {
        let is_first = self.below.is_first(block.cid());
        let has_room = |count: usize| self.ahead.is_empty() || self.ahead.len() + count <= MAX_AHEAD;
        let folded = |new| Folded { cid: *block.cid(), depth, new };
        match &mut self.below {
            Below::Nothing => {}
            Below::Everything(below) => {
                let links = below.links(block)?;
                let new: Vec<bool> = links.iter().map(|cid| below.seen.insert(cid)).collect();
                let count = new.iter().filter(|is_new| **is_new).count();
                self.known += count as u64;
                if below.seen.len() as u64 > self.limits.blocks {
                    return Err(self.too_large());
                }
                if has_room(count) {
                    let links = links.into_iter().zip(new).filter(|(_, is_new)| *is_new).map(|(cid, _)| cid);
                    self.go_on(links.collect(), depth)?;
                } else {
                    let some = (count < new.len()).then(|| bits(&new));
                    self.fold(folded(some))?;
                }
            }
            Below::Bytes(_) if !has_room(1) => self.fold(folded(None))?,
            Below::Bytes(below) => {
                let links = below.links(block)?;
                self.known += links.len() as u64;
                if below.len() > self.limits.blocks {
                    return Err(self.too_large());
                }
                self.go_on(links, depth)?;
            }
        }
        Ok(is_first)
    }

    /// Returns the node that is unfolded next; its block is in the store.
    pub(super) fn next_folded(&mut self) -> Option<Folded> {
        let entry = if self.folds <= MANY_FOLDED { self.folded.first_entry() } else { self.folded.last_entry() };
        let mut entry = entry?;
        let folded = entry.get_mut().pop_front();
        if entry.get().is_empty() {
            entry.remove();
        }
        self.folds -= usize::from(folded.is_some());
        folded
    }

    /// Has the links of a node ahead.
    pub(super) fn unfold(&mut self, node: &Folded, block: &Block) -> Result<(), FetchError> {
        let links = match &mut self.below {
            Below::Nothing => Vec::new(),
            Below::Everything(below) => {
                let mut links = below.links(block)?;
                if let Some(new) = &node.new {
                    let mut number = 0..;
                    links.retain(|_| number.next().is_some_and(|number| bit(new, number)));
                }
                links
            }
            Below::Bytes(below) => {
                let links = below.links(block)?;
                self.known += links.len() as u64;
                if below.len() > self.limits.blocks {
                    return Err(self.too_large());
                }
                links
            }
        };
        self.go_on(links, node.depth)
    }

    fn go_on(&mut self, links: Vec<Cid>, depth: u32) -> Result<(), FetchError> {
        if depth >= self.limits.depth && !links.is_empty() {
            return Err(self.too_large());
        }
        self.ahead.extend(links.into_iter().map(|cid| (cid, depth + 1)));
        Ok(())
    }

    fn fold(&mut self, node: Folded) -> Result<(), FetchError> {
        if node.depth >= self.limits.depth {
            return Err(self.too_large());
        }
        self.folds += 1;
        self.folded.entry(node.depth).or_default().push_back(node);
        Ok(())
    }

    pub(super) fn too_large(&self) -> FetchError {
        FetchError::TooLarge { root: self.root, limits: self.limits }
    }
}

fn bits(all: &[bool]) -> Box<[u8]> {
    all.chunks(8).map(|part| part.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

fn bit(bits: &[u8], number: usize) -> bool {
    bits.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use iptl_dag::{Ipld, codec};

    use super::*;

    fn node(children: &[Cid]) -> Block {
        codec::to_block(&Ipld::List(children.iter().map(|cid| Ipld::Link(*cid)).collect()))
    }

    /// Makes a DAG in which every second child of a node is one of the node before, and some stand in a node twice.
    fn woven(nodes: u32, width: u32) -> (Cid, BTreeMap<Cid, Block>) {
        let mut blocks = BTreeMap::new();
        let mut add = |block: Block| {
            let cid = *block.cid();
            blocks.insert(cid, block);
            cid
        };
        let mut rows: Vec<Cid> = Vec::new();
        let mut before: Vec<Cid> = Vec::new();
        for row in 0..nodes {
            let mut children: Vec<Cid> = (0..width)
                .map(|place| match before.get(place as usize) {
                    Some(old) if place % 2 == 1 => *old,
                    Some(_) | None => add(Block::new(Codec::Raw, [row, place].map(u32::to_le_bytes).concat())),
                })
                .collect();
            children.push(children[0]);
            rows.push(add(node(&children)));
            before = children;
        }
        (add(node(&rows)), blocks)
    }

    /// Walks a DAG that is all here; returns how often each block was come to, and how much was ahead or folded at most.
    fn walked(blocks: &BTreeMap<Cid, Block>, root: Cid, below: Below) -> (BTreeMap<Cid, u32>, usize) {
        let mut frontier = Frontier::new(root, below, Limits::default());
        let (mut met, mut most) = (BTreeMap::new(), 0);
        while !frontier.is_empty() {
            let part = frontier.take(256);
            for (cid, depth) in &part {
                *met.entry(*cid).or_default() += 1;
                frontier.meet(&blocks[cid], *depth).unwrap();
            }
            if part.is_empty() {
                let folded = frontier.next_folded().unwrap();
                frontier.unfold(&folded, &blocks[&folded.cid]).unwrap();
            }
            most = most.max(frontier.ahead.len() + frontier.folds);
        }
        assert_eq!(frontier.known(), met.len() as u64);
        (met, most)
    }

    #[test]
    fn every_block_is_come_to_once_and_few_are_ahead_however_many_there_are() {
        let (root, blocks) = woven(300, 600);
        let (met, most) = walked(&blocks, root, Below::everything(&root));
        let all: BTreeSet<Cid> = blocks.values().map(|block| *block.cid()).collect();
        assert!(all.len() > 5 * MAX_AHEAD, "{}", all.len());
        assert_eq!(met.keys().copied().collect::<BTreeSet<_>>(), all);
        assert!(met.values().all(|times| *times == 1));
        assert!(most <= MAX_AHEAD + 300, "{most} of {}", all.len());
    }

    #[test]
    fn bits_are_those_that_were_set() {
        for count in [0, 1, 7, 8, 9, 100] {
            let all: Vec<bool> = (0..count).map(|number| number % 3 == 0).collect();
            let packed = bits(&all);
            assert_eq!((0..count).map(|number| bit(&packed, number)).collect::<Vec<_>>(), all);
        }
    }
}
