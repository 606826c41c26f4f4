//! The fetcher: providers × protocols → verified blocks in the store.
//!
//! A DAG is fetched level by level. What the store has is read there; what is missing is asked for in batches, several
//! in flight over all providers that are good for it: by iroh-blobs what is under BLAKE3, by Bitswap the rest, and what
//! no provider that speaks iroh-blobs has. Every block is checked by the transfer protocol before it is seen here. A provider that lies is dropped and named; one that lacks a block is not asked for that block again; a
//! fetch that was cut goes on where it stopped, since what arrived stays in the store.

mod batch;
mod pool;
mod trade;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::walk::{self, Limits};
use iptl_dag::{Block, Cid, Codec, PeerId, block};
use iptl_net::Bitswap;
use iptl_wire::control::{FetchProgress, FetchReport};
use tokio::time::Instant;

use crate::links::Links;
use crate::members::Members;
use batch::{BatchDone, BatchEnd, run_batch};
use pool::Pool;
use trade::Trade;

/// Hashes in one request for structure: blocks of a few kilobytes, so that a batch is a megabyte or so.
const NODES_PER_BATCH: usize = 256;

/// Hashes in one request for leaves: at most 64 MiB, 4 MiB on average.
const LEAVES_PER_BATCH: usize = 64;

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
    /// Gives up after so long without a block from anybody.
    pub timeout: Duration,
    /// Only the root block.
    pub shallow: bool,
}

/// Why a DAG is not complete here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody who can be found has it.
    #[error("nobody who was found within {} s has {cid}{}", timeout.as_secs_f32(), dropped_text(dropped))]
    NoProvider {
        /// First block that is missing.
        cid: Cid,
        /// Wait.
        timeout: Duration,
        /// Providers that were dropped, with the reasons.
        dropped: Vec<(PeerId, String)>,
    },
    /// It cannot be moved by a protocol that this node speaks.
    #[error("{cid} uses hash function {code:#x}, which this node cannot fetch")]
    NotFetchable {
        /// The block.
        cid: Cid,
        /// Multihash code.
        code: u64,
    },
    /// A block is no valid node of its codec.
    #[error("{cid} is damaged: {reason}")]
    Damaged {
        /// The block.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// The DAG is larger than any that is accepted.
    #[error(
        "the DAG under {root} has more than {} blocks, {} bytes or {} levels",
        limits.blocks, limits.bytes, limits.depth
    )]
    TooLarge {
        /// Its root.
        root: Cid,
        /// What is accepted.
        limits: Limits,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn dropped_text(dropped: &[(PeerId, String)]) -> String {
    dropped.iter().map(|(peer, reason)| format!("; dropped {}: {reason}", peer.short())).collect()
}

/// Fetches DAGs.
#[derive(Clone)]
pub struct Fetcher {
    store: Arc<dyn BlobStore>,
    links: Links,
    bitswap: Option<Bitswap>,
    members: Option<Members>,
    limits: Limits,
}

impl Fetcher {
    /// Makes a fetcher that fills `store`, within the limits of any walk.
    pub fn new(store: Arc<dyn BlobStore>, links: Links) -> Fetcher {
        Fetcher { store, links, bitswap: None, members: None, limits: Limits::default() }
    }

    /// Gets blocks by Bitswap as well.
    pub fn with_bitswap(self, bitswap: Option<Bitswap>) -> Fetcher {
        Fetcher { bitswap, ..self }
    }

    /// Shows providers that this node is a member of its lab.
    pub fn with_members(self, members: Members) -> Fetcher {
        Fetcher { members: Some(members), ..self }
    }

    /// Accepts no larger DAGs than these.
    pub fn within(self, limits: Limits) -> Fetcher {
        Fetcher { limits, ..self }
    }

    /// Brings what `wanted` names into the store and reports where it came from.
    ///
    /// Cancel safe: what arrived stays, and the next call goes on from there. The blocks are acknowledged by the store
    /// but not flushed.
    pub async fn fetch(
        &self,
        wanted: &Wanted,
        mut progress: impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        let mut pool = Pool::new(self.links.clone(), wanted.root, wanted.from.clone());
        let mut trade = Trade::new(self.bitswap.clone(), self.links.clone(), self.members.clone());
        let mut report = FetchReport::default();
        let mut seen = BTreeSet::from([wanted.root]);
        let mut level = vec![wanted.root];
        let too_large = || FetchError::TooLarge { root: wanted.root, limits: self.limits };
        for _ in 0..=self.limits.depth {
            let mut next = Vec::new();
            let mut visit = |block: &Block, report: &mut FetchReport| -> Result<(), FetchError> {
                report.blocks += 1;
                report.bytes += block.data().len() as u64;
                if wanted.shallow {
                    return Ok(());
                }
                let links = walk::links(block.cid(), block.data())
                    .map_err(|e| FetchError::Damaged { cid: *block.cid(), reason: e.to_string() })?;
                next.extend(links.into_iter().filter(|cid| seen.insert(*cid)));
                let is_within = seen.len() as u64 <= self.limits.blocks && report.bytes <= self.limits.bytes;
                if is_within { Ok(()) } else { Err(too_large()) }
            };
            let missing = self.visit_present(&level, &mut report, &mut visit).await?;
            self.fetch_missing(wanted, missing, &mut pool, &mut trade, &mut report, &mut visit, &mut progress).await?;
            if next.is_empty() {
                report.providers = served(&pool, &trade);
                report.dropped = dropped(&pool, &trade);
                return Ok(report);
            }
            level = next;
        }
        Err(too_large())
    }

    /// Visits the blocks of a level that are here and returns the others.
    async fn visit_present(
        &self,
        level: &[Cid],
        report: &mut FetchReport,
        visit: &mut (dyn FnMut(&Block, &mut FetchReport) -> Result<(), FetchError> + Send),
    ) -> Result<Vec<Cid>, FetchError> {
        let mut missing = Vec::new();
        for part in level.chunks(NODES_PER_BATCH) {
            let hashes: Vec<_> = part.iter().map(|cid| *cid.hash()).collect();
            let present = self.store.has(&hashes).await?;
            for (cid, here) in part.iter().zip(present) {
                let block = if here { iptl_artifacts::read_block(&*self.store, cid).await? } else { inline(cid) };
                match block {
                    Some(block) => visit(&block, report)?,
                    None => missing.push(*cid),
                }
            }
        }
        Ok(missing)
    }

    /// Fetches the missing blocks of a level.
    async fn fetch_missing(
        &self,
        wanted: &Wanted,
        missing: Vec<Cid>,
        pool: &mut Pool,
        trade: &mut Trade,
        report: &mut FetchReport,
        visit: &mut (dyn FnMut(&Block, &mut FetchReport) -> Result<(), FetchError> + Send),
        progress: &mut impl FnMut(FetchProgress),
    ) -> Result<(), FetchError> {
        let (blake3, others) = by_protocol(missing, trade.is_open())?;
        let mut queue = batches(blake3);
        trade.want(others).await;
        trade.add_peers(pool.sources(), false).await;
        // Came by Bitswap while a batch that asks for it may be in flight.
        let mut traded = BTreeSet::new();
        let mut flying = tokio::task::JoinSet::new();
        let mut last_block = Instant::now();
        loop {
            while flying.len() < MAX_BATCHES {
                let Some((position, provider)) =
                    queue.iter().enumerate().find_map(|(i, batch)| Some((i, pool.take_for(batch)?)))
                else {
                    break;
                };
                let batch = queue.remove(position);
                flying.spawn(run_batch(self.links.clone(), self.members.clone(), self.store.clone(), provider, batch));
            }
            let waiting = queue.iter().map(Vec::len).sum::<usize>() + trade.waiting();
            let ready = trade.ready();
            if ready.is_none() && flying.is_empty() && !trade.is_moving() {
                let first = queue.first().and_then(|batch| batch.first()).copied().or(trade.first());
                let Some(first) = first else { return Ok(()) };
                progress(FetchProgress {
                    blocks: report.blocks,
                    wanted: report.blocks + waiting as u64,
                    bytes_fetched: report.bytes_fetched,
                    waiting: format!("looking for a provider of {first}"),
                });
                if last_block.elapsed() >= wanted.timeout {
                    let dropped = dropped(pool, trade);
                    return Err(FetchError::NoProvider { cid: first, timeout: wanted.timeout, dropped });
                }
                let rest = wanted.timeout.saturating_sub(last_block.elapsed());
                let is_new = pool.search(rest).await;
                if !is_new {
                    // Those that are left may speak Bitswap alone.
                    trade.want(queue.iter().flatten().copied()).await;
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
                        Arrived::Batch(joined.expect("a batch does not panic and is not aborted")?)
                    }
                    block = trade.next() => Arrived::Traded(block),
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
                    queue.iter_mut().for_each(|batch| batch.retain(|cid| !traded.contains(cid)));
                    queue.retain(|batch| !batch.is_empty());
                    trade.fill().await;
                    blocks
                }
                Arrived::Batch(done) => {
                    pool.give_back(&done);
                    let rest: Vec<Cid> = done.rest().iter().filter(|cid| !traded.contains(cid)).copied().collect();
                    match &done.end {
                        BatchEnd::Complete => {}
                        // Only the first one is known to be missing there; the others are asked for again.
                        BatchEnd::Lacks => {
                            let (lacking, others) = rest.split_at(rest.len().min(1));
                            queue.extend([lacking, others].map(<[Cid]>::to_vec));
                        }
                        BatchEnd::Lied(_) | BatchEnd::Broke(_) => queue.push(rest),
                    }
                    queue.retain(|batch| !batch.is_empty());
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
                report.bytes_fetched += block.data().len() as u64;
                visit(block, report)?;
            }
            if let Some(bitswap) = self.bitswap.as_ref().filter(|_| !blocks.is_empty()) {
                bitswap.arrived(blocks.iter().map(|block| *block.cid().hash()).collect()).await;
            }
            progress(FetchProgress {
                blocks: report.blocks,
                wanted: report.blocks + waiting as u64,
                bytes_fetched: report.bytes_fetched,
                waiting: String::new(),
            });
        }
    }
}

/// What came.
enum Arrived {
    /// A batch of iroh-blobs has ended.
    Batch(BatchDone),
    /// A block by Bitswap; none where something else happened there.
    Traded(Option<Block>),
}

/// Returns bytes by provider, over both protocols.
fn served(pool: &Pool, trade: &Trade) -> Vec<(PeerId, u64)> {
    let mut served = trade.served().clone();
    for (peer, bytes) in pool.served() {
        *served.entry(peer).or_default() += bytes;
    }
    served.into_iter().collect()
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
fn by_protocol(missing: Vec<Cid>, has_bitswap: bool) -> Result<(Vec<Cid>, Vec<Cid>), FetchError> {
    let (blake3, others): (Vec<Cid>, Vec<Cid>) =
        missing.into_iter().partition(|cid| block::blake3_digest(cid).is_some());
    let is_fetchable = |cid: &Cid| has_bitswap && block::digest(cid.hash().code(), &[]).is_some();
    match others.iter().find(|cid| !is_fetchable(cid)) {
        Some(cid) => Err(FetchError::NotFetchable { cid: *cid, code: cid.hash().code() }),
        None => Ok((blake3, others)),
    }
}

/// Cuts the missing blocks of a level into requests.
fn batches(missing: Vec<Cid>) -> Vec<Vec<Cid>> {
    let (leaves, nodes): (Vec<Cid>, Vec<Cid>) = missing.into_iter().partition(|cid| Codec::of(cid) == Some(Codec::Raw));
    let nodes = nodes.chunks(NODES_PER_BATCH).map(<[Cid]>::to_vec);
    let leaves = leaves.chunks(LEAVES_PER_BATCH).map(<[Cid]>::to_vec);
    nodes.chain(leaves).collect()
}
