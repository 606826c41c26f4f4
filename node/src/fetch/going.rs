//! One fetch that is under way: what is looked for here, asked for, and taken in.
//!
//! It looks further as long as little is asked for, and asks for nodes before leaves: all that is below them waits for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iptl_artifacts::{StoreError, read_block};
use iptl_dag::{Block, Cid, Codec, PeerId, block};
use iptl_wire::control::{FetchProgress, FetchReport};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::batch::{BatchDone, BatchEnd, Patience, run_batch};
use super::below::Below;
use super::frontier::Frontier;
use super::pool::Pool;
use super::share::{self, Batch, NODES_PER_BATCH, Share, Whom};
use super::trade::Trade;
use super::{FetchError, Fetcher, SEARCH_PAUSE, Wanted};
use crate::announce;
use crate::members::Members;

/// Hashes in one request for leaves, as long as nothing is known of their size: 4 MiB on average.
const LEAVES_PER_BATCH: usize = 64;

/// Bytes in one request for leaves, once it is known what those that came hold, and most hashes.
const BATCH_BYTES: u64 = 4 << 20;
const MAX_LEAVES_PER_BATCH: u64 = 1024;

/// Batches in flight over all providers: enough to hide the round trip, little enough to stay within memory.
const MAX_BATCHES: usize = 4;

/// Blocks by Bitswap that are stored at once, where as many are there.
const MAX_TRADED: usize = 64;

/// As long as fewer blocks than these are asked for, or wait to be, of whoever has them, more are looked for: twice what may
/// be in flight.
const FEW_ASKED: usize = 2 * MAX_BATCHES * MAX_LEAVES_PER_BATCH as usize;

/// Most blocks that wait to be asked for, some 100 bytes of memory each. They are many where fellows have not begun, or
/// where nobody has what was looked for first.
const MANY_ASKED: usize = 128 << 10;

/// Blocks that are looked for before what arrived is taken in: some milliseconds.
const LOOKED_FOR: usize = 4096;

/// One fetch.
pub(super) struct Going<'a, P> {
    fetcher: &'a Fetcher,
    wanted: &'a Wanted,
    progress: P,
    pool: Pool,
    trade: Trade,
    share: Share,
    frontier: Frontier,
    /// What somebody is to be asked for, as soon as there is a place in flight.
    queue: VecDeque<Batch>,
    flying: JoinSet<(Whom, Instant, Result<BatchDone, StoreError>)>,
    /// Came by Bitswap while a batch that asks for it may be in flight.
    traded: BTreeSet<Cid>,
    leaves: Leaves,
    report: FetchReport,
    /// Bytes of the whole, as far as the root says.
    size: u64,
    /// Bytes that there is room for.
    room: u64,
    /// When the last block came, or something was asked for after nothing was.
    last_block: Instant,
}

impl<'a, P: FnMut(FetchProgress)> Going<'a, P> {
    pub(super) async fn new(
        fetcher: &'a Fetcher,
        wanted: &'a Wanted,
        below: Below,
        progress: P,
    ) -> Result<Self, FetchError> {
        let lab = fetcher.members.as_ref().and_then(Members::lab);
        let keys = announce::keys(lab.as_ref(), &wanted.root);
        let room = match &fetcher.room {
            Some(room) => room(fetcher.store.usage().await?.bytes),
            None => u64::MAX,
        };
        Ok(Going {
            fetcher,
            wanted,
            progress,
            pool: Pool::new(fetcher.links.clone(), keys, wanted.from.clone()),
            trade: Trade::new(fetcher.bitswap.clone(), fetcher.links.clone(), fetcher.members.clone()),
            share: Share::new(fetcher.links.peer().clone(), &wanted.fellows),
            frontier: Frontier::new(wanted.root, below, fetcher.limits),
            queue: VecDeque::new(),
            flying: JoinSet::new(),
            traded: BTreeSet::new(),
            leaves: Leaves::default(),
            report: FetchReport::default(),
            size: 0,
            room,
            last_block: Instant::now(),
        })
    }

    /// Brings everything that is wanted into the store.
    pub(super) async fn run(&mut self) -> Result<FetchReport, FetchError> {
        loop {
            self.pass_on();
            self.launch();
            let ready = self.trade.ready();
            let later = share::next_look(&self.queue, self.flying.is_empty());
            let is_idle = ready.is_none() && self.flying.is_empty() && !self.trade.is_moving() && later.is_none();
            let arrived = match ready {
                Some(block) => Arrived::Traded(block),
                None if self.looks_further(is_idle) => match self.flying.try_join_next() {
                    Some(joined) => Arrived::of(joined)?,
                    None => {
                        self.look_further().await?;
                        continue;
                    }
                },
                None if is_idle => {
                    let first = self.queue.front().and_then(|batch| batch.cids.first()).copied().or(self.trade.first());
                    let Some(first) = first else { return Ok(self.reported()) };
                    self.search(first).await?;
                    continue;
                }
                None => tokio::select! {
                    Some(joined) = self.flying.join_next() => Arrived::of(joined)?,
                    block = self.trade.next() => Arrived::Traded(block),
                    () = until(later) => continue,
                },
            };
            let blocks = match arrived {
                Arrived::Traded(None) => continue,
                Arrived::Traded(Some(block)) => self.take_traded(block).await?,
                Arrived::Batch(whom, asked, done) => self.take_batch(&whom, asked, done).await,
            };
            self.take_in(&blocks)?;
            if let Some(bitswap) = self.fetcher.bitswap.as_ref().filter(|_| !blocks.is_empty()) {
                bitswap.arrived(blocks.iter().map(|block| *block.cid().hash()).collect()).await;
            }
            let told = self.told(String::new());
            (self.progress)(told);
        }
    }

    /// Says whether more is to be looked for before anything is waited for.
    fn looks_further(&self, is_idle: bool) -> bool {
        if self.frontier.is_empty() {
            return false;
        }
        let (mut all, mut open) = (self.trade.waiting(), self.trade.waiting());
        for batch in &self.queue {
            all += batch.cids.len();
            open += if matches!(batch.whom, Whom::Fellow(_)) { 0 } else { batch.cids.len() };
        }
        // Where nobody has what was looked for, somebody may have the rest.
        all < MANY_ASKED && (open < FEW_ASKED || is_idle)
    }

    /// Takes in what is here of what is ahead, and has the rest asked for.
    async fn look_further(&mut self) -> Result<(), FetchError> {
        let store = &*self.fetcher.store;
        let (mut looked_for, mut missing) = (0, Vec::new());
        while looked_for < LOOKED_FOR {
            let part = self.frontier.take(NODES_PER_BATCH);
            if part.is_empty() {
                let Some(node) = self.frontier.next_folded() else { break };
                let block = read_block(store, &node.cid).await?.ok_or(StoreError::Missing { cid: node.cid })?;
                self.frontier.unfold(&node, &block)?;
                continue;
            }
            looked_for += part.len();
            let hashes: Vec<_> = part.iter().map(|(cid, _)| *cid.hash()).collect();
            let present = store.has(&hashes).await?;
            for ((cid, depth), here) in part.into_iter().zip(present) {
                let block = if here { read_block(store, &cid).await? } else { inline(&cid) };
                match block {
                    Some(block) => {
                        let is_first = self.frontier.meet(&block, depth)?;
                        self.count(&block, is_first)?;
                    }
                    None => {
                        self.frontier.ask(cid, depth);
                        missing.push(cid);
                    }
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if self.flying.is_empty() {
            // The wait for it begins now.
            self.last_block = Instant::now();
        }
        let (mut blake3, others) = by_protocol(missing, self.trade.is_open())?;
        let nodes: Vec<Cid> = blake3.extract_if(.., |cid| Codec::of(cid) != Some(Codec::Raw)).collect();
        self.queue.extend(self.share.split(blake3, LEAVES_PER_BATCH));
        // All need them, and at once.
        let whom = if self.share.is_shared() { Whom::Origins } else { Whom::Anyone };
        for part in nodes.chunks(NODES_PER_BATCH).rev() {
            self.queue.push_front(Batch::loose(part.to_vec(), whom.clone()));
        }
        self.trade.want(others).await;
        self.trade.add_peers(self.pool.sources(), false).await;
        Ok(())
    }

    /// Asks for what is first in the queue, as far as there are places in flight and providers for it.
    fn launch(&mut self) {
        while self.flying.len() < MAX_BATCHES {
            let now = Instant::now();
            let due = self.queue.iter().enumerate().filter(|(_, batch)| batch.is_due(now));
            let taken = due.filter_map(|(i, batch)| Some((i, self.pool.take_for(batch, &self.share)?))).next();
            let Some((position, provider)) = taken else { break };
            let taken = Batch::take(&mut self.queue, position, self.leaves.per_batch());
            let Batch { cids, whom, .. } = taken.expect("it was found there");
            let fetcher = self.fetcher;
            let (links, members, store) = (fetcher.links.clone(), fetcher.members.clone(), fetcher.store.clone());
            let patience = match whom {
                Whom::Fellow(_) => Patience { stall: fetcher.patience.stall.min(share::STALL), ..fetcher.patience },
                Whom::Anyone | Whom::Origins => fetcher.patience,
            };
            let batch = run_batch(links, members, store, provider, cids, patience);
            self.flying.spawn(async move { (whom, now, batch.await) });
        }
    }

    /// Looks for somebody who has what nobody has who is known.
    async fn search(&mut self, first: Cid) -> Result<(), FetchError> {
        let told = self.told(format!("looking for a provider of {first}"));
        (self.progress)(told);
        let timeout = self.wanted.timeout;
        if self.last_block.elapsed() >= timeout {
            return Err(FetchError::NoProvider { cid: first, timeout, dropped: self.dropped() });
        }
        let rest = timeout.saturating_sub(self.last_block.elapsed());
        let is_new = self.pool.search(rest).await;
        if !is_new {
            // Those that are left may speak Bitswap alone.
            self.trade.want(self.queue.iter().flat_map(|batch| &batch.cids).copied()).await;
            tokio::time::sleep(SEARCH_PAUSE.min(rest)).await;
            self.pool.retry();
        }
        self.trade.add_peers(self.pool.sources(), !is_new).await;
        Ok(())
    }

    /// Stores a block that came by Bitswap, with others that came already.
    async fn take_traded(&mut self, block: Block) -> Result<Vec<Block>, FetchError> {
        let mut blocks = vec![block];
        while blocks.len() < MAX_TRADED {
            match self.trade.ready() {
                Some(Some(block)) => blocks.push(block),
                Some(None) => {}
                None => break,
            }
        }
        self.fetcher.store.put(blocks.clone()).await?;
        let twice = blocks.iter().map(|block| *block.cid()).filter(|cid| block::blake3_digest(cid).is_some());
        let twice: BTreeSet<Cid> = twice.collect();
        if !twice.is_empty() {
            self.queue.iter_mut().for_each(|batch| batch.cids.retain(|cid| !twice.contains(cid)));
            self.queue.retain(|batch| !batch.cids.is_empty());
        }
        // What is in the queue no more is asked for by nobody but those in flight.
        if self.flying.is_empty() {
            self.traded.clear();
        } else {
            self.traded.extend(twice);
        }
        self.trade.fill().await;
        Ok(blocks)
    }

    /// Learns from the end of a batch, and has the rest of it asked for again. Returns what came.
    async fn take_batch(&mut self, whom: &Whom, asked: Instant, done: BatchDone) -> Vec<Block> {
        let (pool, share, queue) = (&mut self.pool, &mut self.share, &mut self.queue);
        pool.give_back(&done, whom);
        match whom {
            Whom::Fellow(peer) if done.blocks.is_empty() => share.gave_nothing(peer, asked, Instant::now()),
            _ if done.blocks.is_empty() => {}
            Whom::Fellow(peer) => share.gave(peer),
            Whom::Anyone | Whom::Origins => share.got_own(),
        }
        let rest: Vec<Cid> = done.rest().iter().filter(|cid| !self.traded.contains(cid)).copied().collect();
        match (&done.end, whom) {
            (BatchEnd::Complete, _) => {}
            // What its blocks hold is known by now, so that the next ones are smaller.
            (BatchEnd::Full, Whom::Anyone) => queue.push_front(Batch::loose(rest, Whom::Anyone)),
            (BatchEnd::Full, Whom::Origins | Whom::Fellow(_)) => queue.push_front(Batch::of(rest, whom.clone())),
            // It is about to come there.
            (BatchEnd::Lacks, Whom::Fellow(_)) => queue.push_back(Batch::of(rest, whom.clone()).later()),
            // Only the first one is known to be missing there; the others are asked for again.
            (BatchEnd::Lacks, Whom::Anyone | Whom::Origins) => {
                let (lacking, others) = rest.split_at(rest.len().min(1));
                queue.push_back(Batch::of(lacking.to_vec(), Whom::Anyone));
                queue.push_back(Batch::of(others.to_vec(), whom.clone()));
            }
            // It may have more to do than it can at the moment.
            (BatchEnd::Broke(_) | BatchEnd::Silent(_), Whom::Fellow(peer)) if !pool.is_dropped(peer) => {
                queue.push_back(Batch::of(rest, whom.clone()).later());
            }
            (BatchEnd::Lied(_) | BatchEnd::Slow(_) | BatchEnd::Broke(_) | BatchEnd::Silent(_), Whom::Fellow(peer)) => {
                share.pass_over(peer);
                queue.extend(share.split(rest, LEAVES_PER_BATCH));
            }
            (
                BatchEnd::Lied(_) | BatchEnd::Slow(_) | BatchEnd::Broke(_) | BatchEnd::Silent(_),
                Whom::Anyone | Whom::Origins,
            ) => queue.push_back(Batch::of(rest, Whom::Anyone)),
        }
        queue.retain(|batch| !batch.cids.is_empty());
        let mut blocks = done.blocks;
        blocks.retain(|block| !self.traded.contains(block.cid()));
        for block in &blocks {
            self.trade.forget(block.cid()).await;
        }
        blocks
    }

    /// Goes on from blocks that came.
    fn take_in(&mut self, blocks: &[Block]) -> Result<(), FetchError> {
        for block in blocks {
            self.last_block = Instant::now();
            self.report.bytes_fetched += block.data().len() as u64;
            self.fetcher.traffic.add_received(block.data().len() as u64);
            self.leaves.saw(block);
            let is_first = self.frontier.arrived(block)?;
            self.count(block, is_first)?;
        }
        Ok(())
    }

    /// Counts a block that is here, and holds all that are against what is accepted.
    fn count(&mut self, block: &Block, is_first: bool) -> Result<(), FetchError> {
        if is_first {
            self.report.blocks += 1;
            self.report.bytes += block.data().len() as u64;
        }
        let claimed = self.frontier.claimed_size(block);
        self.size = self.size.max(claimed);
        let claimed = self.report.bytes.max(claimed);
        if claimed > self.room {
            return Err(FetchError::NoRoom { root: self.wanted.root, claimed, room: self.room });
        }
        if self.report.bytes > self.fetcher.limits.bytes { Err(self.frontier.too_large()) } else { Ok(()) }
    }

    /// Gives what was to come from fellows that are passed over to those whose turn it is then. Where nobody but fellows is
    /// good for something, they are asked for it like everybody.
    fn pass_on(&mut self) {
        let fellow = |batch: &Batch| match &batch.whom {
            Whom::Fellow(peer) => Some(peer.clone()),
            Whom::Anyone | Whom::Origins => None,
        };
        let (share, pool) = (&mut self.share, &self.pool);
        // Once the last fellow was passed over nothing is shared, and what it was to give is still in the queue.
        if !share.is_shared() && !self.queue.iter().any(|batch| fellow(batch).is_some()) {
            return;
        }
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for mut batch in self.queue.drain(..) {
            if let Whom::Fellow(peer) = &batch.whom
                && pool.is_dropped(peer)
            {
                share.pass_over(peer);
            }
            match fellow(&batch) {
                Some(peer) if !share.is_fellow(&peer) => kept.extend(share.split(batch.cids, LEAVES_PER_BATCH)),
                Some(_) => kept.push_back(batch),
                None => {
                    if batch.whom == Whom::Origins && !pool.has_origin(share) {
                        batch.whom = Whom::Anyone;
                    }
                    kept.push_back(batch);
                }
            }
        }
        self.queue = kept;
    }

    /// Says how far it is, and what it waits for.
    fn told(&self, waiting: String) -> FetchProgress {
        FetchProgress {
            blocks: self.report.blocks,
            wanted: self.frontier.known().max(self.report.blocks),
            bytes_fetched: self.report.bytes_fetched,
            bytes: self.report.bytes,
            size: self.size,
            from: self.served(),
            waiting,
        }
    }

    fn reported(&self) -> FetchReport {
        FetchReport { providers: self.served(), dropped: self.dropped(), ..self.report.clone() }
    }

    /// Returns bytes by provider, over both protocols.
    pub(super) fn served(&self) -> Vec<(PeerId, u64)> {
        let mut served = self.trade.served().clone();
        for (peer, bytes) in self.pool.served() {
            *served.entry(peer).or_default() += bytes;
        }
        served.into_iter().collect()
    }

    /// Returns dropped providers with the reasons, over both protocols.
    fn dropped(&self) -> Vec<(PeerId, String)> {
        let mut dropped: BTreeMap<PeerId, String> = self.trade.dropped().collect();
        dropped.extend(self.pool.dropped());
        dropped.into_iter().collect()
    }
}

/// What the leaves that came hold.
#[derive(Default)]
struct Leaves {
    count: u64,
    bytes: u64,
}

impl Leaves {
    fn saw(&mut self, block: &Block) {
        if Codec::of(block.cid()) == Some(Codec::Raw) {
            self.count += 1;
            self.bytes += block.data().len() as u64;
        }
    }

    /// Returns how many to ask for together: as many as make [`BATCH_BYTES`], if they are like those before.
    fn per_batch(&self) -> usize {
        let average = self.bytes.checked_div(self.count).map(|average| average.max(1));
        average.map_or(LEAVES_PER_BATCH, |average| (BATCH_BYTES / average).clamp(1, MAX_LEAVES_PER_BATCH) as usize)
    }
}

/// Waits until a moment; for ever where there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What came.
enum Arrived {
    /// A batch of iroh-blobs has ended that was asked for then.
    Batch(Whom, Instant, BatchDone),
    /// A block by Bitswap; none where something else happened there.
    Traded(Option<Block>),
}

impl Arrived {
    fn of(joined: Result<(Whom, Instant, Result<BatchDone, StoreError>), JoinError>) -> Result<Arrived, StoreError> {
        let (whom, asked, done) = joined.expect("a batch does not panic and is not aborted");
        Ok(Arrived::Batch(whom, asked, done?))
    }
}

/// Returns the block of a CID that carries its own content.
fn inline(cid: &Cid) -> Option<Block> {
    (cid.hash().code() == 0).then(|| Block::verify(*cid, cid.hash().digest().to_vec()).ok()).flatten()
}

/// Parts blocks that iroh-blobs can move from those that only Bitswap can.
fn by_protocol(mut missing: Vec<Cid>, has_bitswap: bool) -> Result<(Vec<Cid>, Vec<Cid>), FetchError> {
    let others: Vec<Cid> = missing.extract_if(.., |cid| block::blake3_digest(cid).is_none()).collect();
    let is_fetchable = |cid: &Cid| has_bitswap && block::digest(cid.hash().code(), &[]).is_some();
    match others.iter().find(|cid| !is_fetchable(cid)) {
        Some(cid) => Err(FetchError::NotFetchable { cid: *cid, code: cid.hash().code() }),
        None => Ok((missing, others)),
    }
}
