//! Who of those that fetch the same content at the same time fetches which part of it from whoever had it first.
//!
//! Each leaf has one fellow whose turn it is, the same for all of them, with nothing said between them: the highest of a
//! hash over peer and leaf. That one asks the origin; the others ask that one, and ask again while it has not got it yet.
//! So the origin sends about one copy, however many fetch. A fellow that gives nothing for a while is passed over, and its
//! part falls to the next in the same order.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use iptl_dag::{Cid, Codec, PeerId, block};
use tokio::time::Instant;

/// A fellow is passed over that had nothing whenever it was asked in so long, counted from when this node last got
/// something of its own part: it may not have begun, or fetch from where it is slow. That it was not asked does not count,
/// nor that what it sends takes long.
const PATIENCE: Duration = Duration::from_secs(3);

/// A fellow that sends no block for so long after it was asked is given up for that batch: as long as a stream may take to
/// open, since others are there who have it as soon.
pub(super) const STALL: Duration = Duration::from_secs(10);

/// Pause before a fellow is asked again for what it did not have: short beside the time that a batch takes it.
const RETRY: Duration = Duration::from_millis(50);

/// Hashes in one request for structure: blocks of a few kilobytes, so that a batch is a megabyte or so.
pub(super) const NODES_PER_BATCH: usize = 256;

/// Most of the content's fellows that are told apart: more of them make the hashing dear, and save the origin nothing.
const MAX_FELLOWS: usize = 64;

/// Blocks to ask for together.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) cids: Vec<Cid>,
    pub(super) whom: Whom,
    /// How many are asked for together is settled when they are.
    is_loose: bool,
    /// Not before this: whoever is asked did not have it a moment ago.
    not_before: Option<Instant>,
}

/// Who may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Everybody.
    Anyone,
    /// Everybody but the fellows, who have no more than this node.
    Origins,
    /// The fellow whose turn it is.
    Fellow(PeerId),
}

impl Batch {
    pub(super) fn of(cids: Vec<Cid>, whom: Whom) -> Batch {
        Batch { cids, whom, is_loose: false, not_before: None }
    }

    /// Makes one of leaves, or of nodes, that may be asked for together with others, and apart.
    pub(super) fn loose(cids: Vec<Cid>, whom: Whom) -> Batch {
        Batch { is_loose: true, ..Batch::of(cids, whom) }
    }

    /// Takes the batch at a place of the queue. One that is loose is taken with as much of what stands behind it as makes
    /// `leaves` of them, or the nodes of one request.
    pub(super) fn take(queue: &mut VecDeque<Batch>, position: usize, leaves: usize) -> Option<Batch> {
        let mut batch = queue.remove(position)?;
        let count = if batch.is_of_leaves() { leaves } else { NODES_PER_BATCH };
        while batch.cids.len() < count && queue.get(position).is_some_and(|next| batch.goes_with(next)) {
            batch.cids.append(&mut queue.remove(position)?.cids);
        }
        if batch.is_loose && batch.cids.len() > count {
            let rest = batch.cids.split_off(count);
            queue.insert(position, Batch::loose(rest, batch.whom.clone()));
        }
        Some(batch)
    }

    fn is_of_leaves(&self) -> bool {
        self.cids.first().is_some_and(|cid| Codec::of(cid) == Some(Codec::Raw))
    }

    fn goes_with(&self, next: &Batch) -> bool {
        self.is_loose && next.is_loose && self.whom == next.whom && self.is_of_leaves() == next.is_of_leaves()
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    pub(super) fn later(mut self) -> Batch {
        self.not_before = Some(Instant::now() + RETRY);
        self
    }
}

/// Returns when to look at the queue again though nothing came: when a batch is due; or in a moment where nothing is
/// under way, since a fellow may have to be passed over.
pub(super) fn next_look(queue: &VecDeque<Batch>, is_idle: bool) -> Option<Instant> {
    let now = Instant::now();
    let due = queue.iter().filter_map(|batch| batch.not_before).filter(|at| *at > now).min();
    let waits = is_idle && queue.iter().any(|batch| matches!(batch.whom, Whom::Fellow(_)));
    due.or(waits.then(|| now + RETRY))
}

/// The fellows of one fetch.
pub(super) struct Share {
    me: PeerId,
    /// Since when each of them had nothing when it was asked; those that are passed over are gone.
    fellows: BTreeMap<PeerId, Option<Instant>>,
}

impl Share {
    pub(super) fn new(me: PeerId, fellows: &[PeerId]) -> Share {
        // The same ones on every node, so that they agree.
        let mut all: Vec<&PeerId> = fellows.iter().chain([&me]).collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_FELLOWS);
        let fellows = all.into_iter().filter(|peer| **peer != me).map(|peer| (peer.clone(), None)).collect();
        Share { me, fellows }
    }

    /// Says whether somebody is asked in turn.
    pub(super) fn is_shared(&self) -> bool {
        !self.fellows.is_empty()
    }

    pub(super) fn is_fellow(&self, peer: &PeerId) -> bool {
        self.fellows.contains_key(peer)
    }

    /// Notes that something of this node's own part came. As long as that takes, it takes the fellows too.
    pub(super) fn got_own(&mut self) {
        self.fellows.values_mut().for_each(|since| *since = None);
    }

    /// Notes that a fellow gave something.
    pub(super) fn gave(&mut self, peer: &PeerId) {
        if let Some(since) = self.fellows.get_mut(peer) {
            *since = None;
        }
    }

    /// Notes that a fellow had nothing that it was asked for at `asked`, as is known `now`; passes it over where that is
    /// so for long.
    pub(super) fn gave_nothing(&mut self, peer: &PeerId, asked: Instant, now: Instant) {
        let Some(since) = self.fellows.get_mut(peer) else { return };
        if now - *since.get_or_insert(asked) > PATIENCE {
            tracing::debug!(%peer, "a fellow had nothing for a while, and is passed over");
            self.fellows.remove(peer);
        }
    }

    /// Passes a fellow over from now on.
    pub(super) fn pass_over(&mut self, peer: &PeerId) {
        self.fellows.remove(peer);
    }

    /// Parts leaves by whose turn they are, this node's own first.
    pub(super) fn split(&self, cids: Vec<Cid>, size: usize) -> Vec<Batch> {
        if !self.is_shared() {
            return cids.chunks(size).map(|part| Batch::loose(part.to_vec(), Whom::Anyone)).collect();
        }
        let mut own = Vec::new();
        let mut others: BTreeMap<PeerId, Vec<Cid>> = BTreeMap::new();
        for cid in cids {
            match self.turn(&cid) {
                Some(peer) => others.entry(peer).or_default().push(cid),
                None => own.push(cid),
            }
        }
        let own = own.chunks(size).map(|part| Batch::of(part.to_vec(), Whom::Origins)).collect::<Vec<_>>();
        let others = others.into_iter().flat_map(|(peer, cids)| {
            let batches = cids.chunks(size).map(|part| Batch::of(part.to_vec(), Whom::Fellow(peer.clone())));
            batches.collect::<Vec<_>>()
        });
        own.into_iter().chain(others).collect()
    }

    /// Returns the fellow whose turn a leaf is; none where it is this node's.
    fn turn(&self, cid: &Cid) -> Option<PeerId> {
        let weight = |peer: &PeerId| {
            let text = [peer.as_bytes(), cid.hash().digest()].concat();
            block::digest(BLAKE3, &text).map(|hash| hash.digest().to_vec())
        };
        let best = self.fellows.keys().max_by_key(|peer| weight(peer))?;
        (weight(best) > weight(&self.me)).then(|| best.clone())
    }
}

/// Multihash code of BLAKE3-256.
const BLAKE3: u64 = 0x1e;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use iptl_dag::Block;
    use iptl_trust::Keypair;

    use super::*;

    fn peers(count: u8) -> Vec<PeerId> {
        (1..=count).map(|seed| Keypair::from_seed(&[seed; 32]).peer().clone()).collect()
    }

    fn leaves() -> Vec<Cid> {
        (0..800_u32).map(|number| *Block::new(Codec::Raw, number.to_le_bytes().to_vec()).cid()).collect()
    }

    #[test]
    fn every_leaf_is_the_turn_of_one_and_all_agree_on_it() {
        let all = peers(8);
        let mut own = Vec::new();
        for me in &all {
            let batches = Share::new(me.clone(), &all).split(leaves(), 64);
            assert_eq!(batches.iter().map(|batch| batch.cids.len()).sum::<usize>(), 800);
            let mine = batches.iter().filter(|batch| batch.whom == Whom::Origins);
            own.push(mine.flat_map(|batch| batch.cids.clone()).collect::<Vec<_>>());
        }
        assert!(own.iter().all(|part| (50..200).contains(&part.len())), "{:?}", own.iter().map(Vec::len));
        assert_eq!(own.iter().flatten().collect::<BTreeSet<_>>().len(), 800);
        assert_eq!(own.iter().map(Vec::len).sum::<usize>(), 800);
    }

    #[test]
    fn part_of_one_that_is_passed_over_falls_to_the_others() {
        let all = peers(3);
        let mut shares: Vec<Share> = all[..2].iter().map(|me| Share::new(me.clone(), &all)).collect();
        shares.iter_mut().for_each(|share| share.pass_over(&all[2]));
        let own = |share: &Share| {
            let batches = share.split(leaves(), 64);
            batches.iter().filter(|b| b.whom == Whom::Origins).map(|batch| batch.cids.len()).sum::<usize>()
        };
        assert_eq!(shares.iter().map(own).sum::<usize>(), 800);
    }

    #[test]
    fn leaves_are_asked_for_together_as_many_as_fit() {
        let me = peers(1);
        let mut queue: VecDeque<Batch> = Share::new(me[0].clone(), &me).split(leaves(), 64).into();
        queue.push_back(Batch::of(leaves(), Whom::Anyone));
        let mut taken = Vec::new();
        for count in [64, 10, 300, 300, 300, 1] {
            taken.push(Batch::take(&mut queue, 0, count).unwrap().cids);
        }
        assert_eq!(
            taken.iter().map(Vec::len).collect::<Vec<_>>(),
            [64, 10, 300, 300, 126, 800],
            "the last is not loose"
        );
        assert_eq!(taken[..5].concat(), leaves());
        assert!(queue.is_empty());
    }

    /// Nodes are looked for a few at a time where few are known, and asked for together all the same.
    #[test]
    fn nodes_are_asked_for_together_and_not_with_leaves() {
        let nodes: Vec<Cid> = leaves().iter().map(|leaf| Cid::new_v1(Codec::DagPb.number(), *leaf.hash())).collect();
        for whom in [Whom::Anyone, Whom::Origins] {
            let mut queue: VecDeque<Batch> =
                nodes[..600].chunks(7).map(|part| Batch::loose(part.to_vec(), whom.clone())).collect();
            queue.push_back(Batch::loose(leaves()[..10].to_vec(), whom.clone()));
            let taken: Vec<usize> =
                std::iter::from_fn(|| Batch::take(&mut queue, 0, 1000)).map(|batch| batch.cids.len()).collect();
            assert_eq!(taken, [256, 256, 88, 10]);
        }
    }

    #[test]
    fn fellow_is_passed_over_that_has_nothing_for_long_and_none_that_is_only_not_asked() {
        let all = peers(4);
        let mut share = Share::new(all[0].clone(), &all);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        // It has nothing yet, gives something, and has nothing again for a moment.
        share.gave_nothing(&all[1], start, after(1));
        share.gave(&all[1]);
        share.gave_nothing(&all[1], after(60), after(61));
        // It has nothing as often as it is asked.
        share.gave_nothing(&all[2], start, after(1));
        share.gave_nothing(&all[2], after(2), after(2));
        assert!(share.is_fellow(&all[2]));
        share.gave_nothing(&all[2], after(4), after(4));
        assert_eq!([1, 2, 3].map(|n: usize| share.is_fellow(&all[n])), [true, false, true]);
        // What this node gets of its own part takes the others as long.
        share.got_own();
        share.gave_nothing(&all[1], after(62), after(64));
        assert!(share.is_fellow(&all[1]));
        // One that cannot be reached is asked once.
        share.gave_nothing(&all[3], after(70), after(80));
        assert!(!share.is_fellow(&all[3]));
    }

    #[test]
    fn alone_everybody_is_asked() {
        let me = peers(1);
        let batches = Share::new(me[0].clone(), &me).split(leaves(), 64);
        assert!(batches.iter().all(|batch| batch.whom == Whom::Anyone));
    }
}
