//! The fetcher: providers × protocols → verified blocks in the store.
//!
//! A DAG is fetched level by level. What the store has is read there; what is missing is asked for in batches, several
//! in flight over all providers that are good for it: by iroh-blobs what is under BLAKE3, by Bitswap the rest, and what
//! no provider that speaks iroh-blobs has. Every block is checked by the transfer protocol before it is seen here. A
//! provider that lies is dropped and named; one that lacks a block is not asked for that block again; a fetch that was cut
//! goes on where it stopped, since what arrived stays in the store.

mod batch;
mod below;
mod error;
mod pool;
mod share;
mod trade;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_artifacts::BlobStore;
use iptl_dag::walk::Limits;
use iptl_dag::{Block, Cid, Codec, PeerId, block};
use iptl_net::Bitswap;
use iptl_wire::control::{FetchProgress, FetchReport, MAX_PROVIDERS_TOLD};
use tokio::time::Instant;

use crate::announce;
use crate::links::Links;
use crate::members::Members;
use crate::traffic::Traffic;
pub use batch::Patience;
use batch::{BatchDone, BatchEnd, run_batch};
use below::Below;
pub use error::FetchError;
use pool::Pool;
use share::{Batch, Share, Whom};
use trade::Trade;

/// Hashes in one request for structure: blocks of a few kilobytes, so that a batch is a megabyte or so.
const NODES_PER_BATCH: usize = 256;

/// Hashes in one request for leaves, as long as nothing is known of their size: 4 MiB on average.
const LEAVES_PER_BATCH: usize = 64;

/// Bytes in one request for leaves, once it is known what those that came hold, and most hashes.
const BATCH_BYTES: u64 = 4 << 20;
const MAX_LEAVES_PER_BATCH: u64 = 1024;

/// Batches in flight over all providers: enough to hide the round trip, little enough to stay within memory.
const MAX_BATCHES: usize = 4;

/// Blocks by Bitswap that are stored at once, where as many are there.
const MAX_TRADED: usize = 64;

/// Pause between two searches for providers.
const SEARCH_PAUSE: Duration = Duration::from_millis(500);

/// A peer that may have the content, with addresses to dial it at.
pub type Source = (PeerId, Vec<String>);

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Root.
    pub root: Cid,
    /// Peers to ask first.
    pub from: Vec<Source>,
    /// Those of them that fetch the same now: they share what comes, so that the others need not send it to each.
    pub fellows: Vec<PeerId>,
    /// Gives up after so long without a block from anybody.
    pub timeout: Duration,
    /// Only the root block.
    pub shallow: bool,
}

/// Fetches DAGs.
#[derive(Clone)]
pub struct Fetcher {
    store: Arc<dyn BlobStore>,
    links: Links,
    bitswap: Option<Bitswap>,
    members: Option<Members>,
    limits: Limits,
    patience: Patience,
    room: Option<Room>,
    traffic: Traffic,
}

/// Says how large a DAG may be, of which what is in the store already may be a part; it is given the store's bytes.
pub type Room = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

impl Fetcher {
    /// Makes a fetcher that fills `store`, within the limits of any walk.
    pub fn new(store: Arc<dyn BlobStore>, links: Links) -> Fetcher {
        let (limits, patience) = (Limits::default(), Patience::default());
        Fetcher {
            store,
            links,
            bitswap: None,
            members: None,
            limits,
            patience,
            room: None,
            traffic: Traffic::default(),
        }
    }

    /// Gets blocks by Bitswap as well.
    pub fn with_bitswap(self, bitswap: Option<Bitswap>) -> Fetcher {
        Fetcher { bitswap, ..self }
    }

    /// Shows providers that this node is a member of its lab.
    pub fn with_members(self, members: Members) -> Fetcher {
        Fetcher { members: Some(members), ..self }
    }

    /// Waits for providers as long as this says.
    pub fn with_patience(self, patience: Patience) -> Fetcher {
        Fetcher { patience, ..self }
    }

    /// Refuses what is larger than the room that there is, before it fills the disk.
    pub fn with_room(self, room: Room) -> Fetcher {
        Fetcher { room: Some(room), ..self }
    }

    /// Counts what comes.
    pub fn counted(self, traffic: Traffic) -> Fetcher {
        Fetcher { traffic, ..self }
    }

    /// Accepts no larger DAGs than these.
    pub fn within(self, limits: Limits) -> Fetcher {
        Fetcher { limits, ..self }
    }

    /// Brings what `wanted` names into the store and reports where it came from; `progress` is told of all providers.
    ///
    /// Cancel safe: what arrived stays, and the next call goes on from there. The blocks are acknowledged by the store
    /// but not flushed.
    pub async fn fetch(&self, wanted: &Wanted, progress: impl FnMut(FetchProgress)) -> Result<FetchReport, FetchError> {
        let below = if wanted.shallow { Below::Nothing } else { Below::everything(&wanted.root) };
        self.fetch_below(wanted, below, progress).await
    }

    /// Brings those blocks of a file into the store that hold some of a range of its bytes, and the nodes above them. As
    /// [`fetch`](Fetcher::fetch) otherwise.
    pub async fn fetch_range(
        &self,
        wanted: &Wanted,
        range: Range<u64>,
        progress: impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        self.fetch_below(wanted, Below::bytes(&wanted.root, range), progress).await
    }

    async fn fetch_below(
        &self,
        wanted: &Wanted,
        below: Below,
        mut progress: impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        let lab = self.members.as_ref().and_then(Members::lab);
        let keys = announce::keys(lab.as_ref(), &wanted.root);
        let mut pool = Pool::new(self.links.clone(), keys, wanted.from.clone());
        let mut trade = Trade::new(self.bitswap.clone(), self.links.clone(), self.members.clone());
        let fetched = self.fetch_levels(wanted, below, &mut pool, &mut trade, &mut progress).await;
        if let Err(error) = &fetched
            && error.is_of_dag()
        {
            // Whoever made such a DAG is not known, and who gave its blocks may have been taken in as well.
            let from = names(&served(&pool, &trade));
            tracing::warn!(root = %wanted.root, from, %error, "refused a DAG");
        }
        fetched
    }

    /// Brings a DAG into the store, level by level.
    async fn fetch_levels(
        &self,
        wanted: &Wanted,
        mut below: Below,
        pool: &mut Pool,
        trade: &mut Trade,
        progress: &mut impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        let mut share = Share::new(self.links.peer().clone(), &wanted.fellows);
        let mut report = FetchReport::default();
        let room = match &self.room {
            Some(room) => room(self.store.usage().await?.bytes),
            None => u64::MAX,
        };
        // What the root says of the whole, for whoever waits.
        let size = AtomicU64::new(0);
        let mut level = vec![wanted.root];
        let too_large = || FetchError::TooLarge { root: wanted.root, limits: self.limits };
        for _ in 0..=self.limits.depth {
            let mut next = Vec::new();
            let mut visit = |block: &Block, report: &mut FetchReport| -> Result<(), FetchError> {
                report.blocks += 1;
                report.bytes += block.data().len() as u64;
                next.append(&mut below.links(block)?);
                let claimed = below.claimed_size(block);
                size.fetch_max(claimed, Ordering::Relaxed);
                let claimed = report.bytes.max(claimed);
                if claimed > room {
                    return Err(FetchError::NoRoom { root: wanted.root, claimed, room });
                }
                let is_within = below.len() <= self.limits.blocks && report.bytes <= self.limits.bytes;
                if is_within { Ok(()) } else { Err(too_large()) }
            };
            let missing = self.visit_present(level, &mut report, &mut visit).await?;
            let parties = Parties { pool: &mut *pool, trade: &mut *trade, share: &mut share, size: &size };
            self.fetch_missing(wanted, missing, parties, &mut report, &mut visit, progress).await?;
            if next.is_empty() {
                report.providers = served(pool, trade);
                report.dropped = dropped(pool, trade);
                return Ok(report);
            }
            below.descend();
            level = next;
        }
        Err(too_large())
    }

    /// Visits the blocks of a level that are here and returns the others, which stay where they are: there may be
    /// millions.
    async fn visit_present(
        &self,
        mut level: Vec<Cid>,
        report: &mut FetchReport,
        visit: &mut (dyn FnMut(&Block, &mut FetchReport) -> Result<(), FetchError> + Send),
    ) -> Result<Vec<Cid>, FetchError> {
        let mut missing = 0;
        for begin in (0..level.len()).step_by(NODES_PER_BATCH) {
            let part = begin..level.len().min(begin + NODES_PER_BATCH);
            let hashes: Vec<_> = level[part.clone()].iter().map(|cid| *cid.hash()).collect();
            let present = self.store.has(&hashes).await?;
            for (position, here) in part.zip(present) {
                let cid = level[position];
                let block = if here { iptl_artifacts::read_block(&*self.store, &cid).await? } else { inline(&cid) };
                if let Some(block) = block {
                    visit(&block, report)?;
                } else {
                    level[missing] = cid;
                    missing += 1;
                }
            }
        }
        level.truncate(missing);
        Ok(level)
    }

    /// Fetches the missing blocks of a level.
    async fn fetch_missing(
        &self,
        wanted: &Wanted,
        missing: Vec<Cid>,
        parties: Parties<'_>,
        report: &mut FetchReport,
        visit: &mut (dyn FnMut(&Block, &mut FetchReport) -> Result<(), FetchError> + Send),
        progress: &mut impl FnMut(FetchProgress),
    ) -> Result<(), FetchError> {
        let Parties { pool, trade, share, size } = parties;
        let mut left = missing.len();
        let (blake3, others) = by_protocol(missing, trade.is_open())?;
        let mut queue: VecDeque<Batch> = batches(blake3, share).into();
        trade.want(others).await;
        trade.add_peers(pool.sources(), false).await;
        // Came by Bitswap while a batch that asks for it may be in flight.
        let mut traded = BTreeSet::new();
        let mut flying = tokio::task::JoinSet::new();
        let mut leaves = Leaves::default();
        let mut last_block = Instant::now();
        loop {
            queue = pass_on(queue, share, pool);
            while flying.len() < MAX_BATCHES {
                let now = Instant::now();
                let due = queue.iter().enumerate().filter(|(_, batch)| batch.is_due(now));
                let taken = due.filter_map(|(i, batch)| Some((i, pool.take_for(batch, share)?))).next();
                let Some((position, provider)) = taken else { break };
                let taken = Batch::take(&mut queue, position, leaves.per_batch());
                let Batch { cids, whom, .. } = taken.expect("it was found there");
                let (links, members, store) = (self.links.clone(), self.members.clone(), self.store.clone());
                let patience = match whom {
                    Whom::Fellow(_) => Patience { stall: self.patience.stall.min(share::STALL), ..self.patience },
                    Whom::Anyone | Whom::Origins => self.patience,
                };
                let batch = run_batch(links, members, store, provider, cids, patience);
                flying.spawn(async move { (whom, now, batch.await) });
            }
            let ready = trade.ready();
            let later = share::next_look(&queue, flying.is_empty());
            if ready.is_none() && flying.is_empty() && !trade.is_moving() && later.is_none() {
                let first = queue.front().and_then(|batch| batch.cids.first()).copied().or(trade.first());
                let Some(first) = first else { return Ok(()) };
                let wait = format!("looking for a provider of {first}");
                progress(FetchProgress { waiting: wait, ..told(report, left, size, pool, trade) });
                if last_block.elapsed() >= wanted.timeout {
                    let dropped = dropped(pool, trade);
                    return Err(FetchError::NoProvider { cid: first, timeout: wanted.timeout, dropped });
                }
                let rest = wanted.timeout.saturating_sub(last_block.elapsed());
                let is_new = pool.search(rest).await;
                if !is_new {
                    // Those that are left may speak Bitswap alone.
                    trade.want(queue.iter().flat_map(|batch| &batch.cids).copied()).await;
                    tokio::time::sleep(SEARCH_PAUSE.min(rest)).await;
                    pool.retry();
                }
                trade.add_peers(pool.sources(), !is_new).await;
                continue;
            }
            let arrived = match ready {
                Some(block) => Arrived::Traded(block),
                None => tokio::select! {
                    Some(joined) = flying.join_next() => {
                        let (whom, asked, done) = joined.expect("a batch does not panic and is not aborted");
                        Arrived::Batch(whom, asked, done?)
                    }
                    block = trade.next() => Arrived::Traded(block),
                    () = until(later) => continue,
                },
            };
            let blocks = match arrived {
                Arrived::Traded(None) => continue,
                Arrived::Traded(Some(block)) => {
                    let mut blocks = vec![block];
                    while blocks.len() < MAX_TRADED {
                        match trade.ready() {
                            Some(Some(block)) => blocks.push(block),
                            Some(None) => {}
                            None => break,
                        }
                    }
                    self.store.put(blocks.clone()).await?;
                    traded.extend(blocks.iter().map(|block| *block.cid()));
                    queue.iter_mut().for_each(|batch| batch.cids.retain(|cid| !traded.contains(cid)));
                    queue.retain(|batch| !batch.cids.is_empty());
                    trade.fill().await;
                    blocks
                }
                Arrived::Batch(whom, asked, done) => {
                    pool.give_back(&done, &whom);
                    match &whom {
                        Whom::Fellow(peer) if done.blocks.is_empty() => share.gave_nothing(peer, asked, Instant::now()),
                        _ if done.blocks.is_empty() => {}
                        Whom::Fellow(peer) => share.gave(peer),
                        Whom::Anyone | Whom::Origins => share.got_own(),
                    }
                    let rest: Vec<Cid> = done.rest().iter().filter(|cid| !traded.contains(cid)).copied().collect();
                    match (&done.end, &whom) {
                        (BatchEnd::Complete, _) => {}
                        // What its blocks hold is known by now, so that the next ones are smaller.
                        (BatchEnd::Full, Whom::Anyone) => queue.push_front(Batch::loose(rest)),
                        (BatchEnd::Full, Whom::Origins | Whom::Fellow(_)) => queue.push_front(Batch::of(rest, whom)),
                        // It is about to come there.
                        (BatchEnd::Lacks, Whom::Fellow(_)) => queue.push_back(Batch::of(rest, whom).later()),
                        // Only the first one is known to be missing there; the others are asked for again.
                        (BatchEnd::Lacks, Whom::Anyone | Whom::Origins) => {
                            let (lacking, others) = rest.split_at(rest.len().min(1));
                            queue.push_back(Batch::of(lacking.to_vec(), Whom::Anyone));
                            queue.push_back(Batch::of(others.to_vec(), whom));
                        }
                        // It may have more to do than it can at the moment.
                        (BatchEnd::Broke(_), Whom::Fellow(peer)) if !pool.is_dropped(peer) => {
                            queue.push_back(Batch::of(rest, whom).later());
                        }
                        (BatchEnd::Lied(_) | BatchEnd::Slow(_) | BatchEnd::Broke(_), Whom::Fellow(peer)) => {
                            share.pass_over(peer);
                            queue.extend(share.split(rest, LEAVES_PER_BATCH));
                        }
                        (BatchEnd::Lied(_) | BatchEnd::Slow(_) | BatchEnd::Broke(_), Whom::Anyone | Whom::Origins) => {
                            queue.push_back(Batch::of(rest, Whom::Anyone));
                        }
                    }
                    queue.retain(|batch| !batch.cids.is_empty());
                    let mut blocks = done.blocks;
                    blocks.retain(|block| !traded.contains(block.cid()));
                    for block in &blocks {
                        trade.forget(block.cid()).await;
                    }
                    blocks
                }
            };
            for block in &blocks {
                last_block = Instant::now();
                left = left.saturating_sub(1);
                report.bytes_fetched += block.data().len() as u64;
                self.traffic.add_received(block.data().len() as u64);
                leaves.saw(block);
                visit(block, report)?;
            }
            if let Some(bitswap) = self.bitswap.as_ref().filter(|_| !blocks.is_empty()) {
                bitswap.arrived(blocks.iter().map(|block| *block.cid().hash()).collect()).await;
            }
            progress(told(report, left, size, pool, trade));
        }
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

/// From whom blocks come.
struct Parties<'a> {
    pool: &'a mut Pool,
    trade: &'a mut Trade,
    share: &'a mut Share,
    /// Bytes of the whole, as far as the root says.
    size: &'a AtomicU64,
}

/// Gives what was to come from fellows that are passed over to those whose turn it is then. Where nobody but fellows
/// is good for something, they are asked for it like everybody.
fn pass_on(queue: VecDeque<Batch>, share: &mut Share, pool: &Pool) -> VecDeque<Batch> {
    let fellow = |batch: &Batch| match &batch.whom {
        Whom::Fellow(peer) => Some(peer.clone()),
        Whom::Anyone | Whom::Origins => None,
    };
    // Once the last fellow was passed over nothing is shared, and what it was to give is still in the queue.
    if !share.is_shared() && !queue.iter().any(|batch| fellow(batch).is_some()) {
        return queue;
    }
    let mut kept = VecDeque::with_capacity(queue.len());
    for mut batch in queue {
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
    kept
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

/// Says how far a fetch is, of which so many blocks are known to be missing.
fn told(report: &FetchReport, missing: usize, size: &AtomicU64, pool: &Pool, trade: &Trade) -> FetchProgress {
    FetchProgress {
        blocks: report.blocks,
        wanted: report.blocks + missing as u64,
        bytes_fetched: report.bytes_fetched,
        bytes: report.bytes,
        size: size.load(Ordering::Relaxed),
        from: served(pool, trade),
        waiting: String::new(),
    }
}

/// Returns bytes by provider, over both protocols.
fn served(pool: &Pool, trade: &Trade) -> Vec<(PeerId, u64)> {
    let mut served = trade.served().clone();
    for (peer, bytes) in pool.served() {
        *served.entry(peer).or_default() += bytes;
    }
    served.into_iter().collect()
}

/// Names those who gave most, most of all first.
fn names(served: &[(PeerId, u64)]) -> String {
    if served.is_empty() {
        return "this node's own store".to_owned();
    }
    let mut served: Vec<&(PeerId, u64)> = served.iter().collect();
    served.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names: Vec<String> = served.iter().take(MAX_PROVIDERS_TOLD).map(|(peer, _)| peer.to_string()).collect();
    names.join(" ")
}

/// Returns dropped providers with the reasons, over both protocols.
fn dropped(pool: &Pool, trade: &Trade) -> Vec<(PeerId, String)> {
    let mut dropped: BTreeMap<PeerId, String> = trade.dropped().collect();
    dropped.extend(pool.dropped());
    dropped.into_iter().collect()
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

/// Cuts the missing blocks of a level into requests.
fn batches(mut missing: Vec<Cid>, share: &Share) -> Vec<Batch> {
    let nodes: Vec<Cid> = missing.extract_if(.., |cid| Codec::of(cid) != Some(Codec::Raw)).collect();
    // Nodes are few, and all need them at once.
    let whom = if share.is_shared() { Whom::Origins } else { Whom::Anyone };
    let nodes = nodes.chunks(NODES_PER_BATCH).map(|part| Batch::of(part.to_vec(), whom.clone()));
    nodes.chain(share.split(missing, LEAVES_PER_BATCH)).collect()
}
