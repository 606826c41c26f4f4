//! The fetcher: providers × protocols → verified blocks in the store.
//!
//! A DAG is fetched level by level. What the store has is read there; what is missing is asked for in batches, several
//! in flight over all providers that are good for it. Every block is checked by the transfer protocol before it is
//! seen here. A provider that lies is dropped and named; one that lacks a block is not asked for that block again; a
//! fetch that was cut goes on where it stopped, since what arrived stays in the store.

mod batch;
mod pool;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::walk::{self, Limits};
use iptl_dag::{Block, Cid, Codec, PeerId, block};
use iptl_wire::control::{FetchProgress, FetchReport};
use tokio::time::Instant;

use crate::links::Links;
use batch::{BatchEnd, run_batch};
use pool::Pool;

/// Hashes in one request for structure: blocks of a few kilobytes, so that a batch is a megabyte or so.
const NODES_PER_BATCH: usize = 256;

/// Hashes in one request for leaves: at most 64 MiB, 4 MiB on average.
const LEAVES_PER_BATCH: usize = 64;

/// Batches in flight over all providers: enough to hide the round trip, little enough to stay within memory.
const MAX_BATCHES: usize = 4;

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
    limits: Limits,
}

impl Fetcher {
    /// Makes a fetcher that fills `store`, within the limits of any walk.
    pub fn new(store: Arc<dyn BlobStore>, links: Links) -> Fetcher {
        Fetcher { store, links, limits: Limits::default() }
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
            self.fetch_missing(wanted, missing, &mut pool, &mut report, &mut visit, &mut progress).await?;
            if next.is_empty() {
                report.providers = pool.served();
                report.dropped = pool.dropped();
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
        report: &mut FetchReport,
        visit: &mut (dyn FnMut(&Block, &mut FetchReport) -> Result<(), FetchError> + Send),
        progress: &mut impl FnMut(FetchProgress),
    ) -> Result<(), FetchError> {
        let mut queue = batches(missing)?;
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
                flying.spawn(run_batch(self.links.clone(), self.store.clone(), provider, batch));
            }
            let waiting: usize = queue.iter().map(Vec::len).sum();
            if flying.is_empty() {
                let Some(first) = queue.first().and_then(|batch| batch.first()).copied() else { return Ok(()) };
                progress(FetchProgress {
                    blocks: report.blocks,
                    wanted: report.blocks + waiting as u64,
                    bytes_fetched: report.bytes_fetched,
                    waiting: format!("looking for a provider of {first}"),
                });
                if last_block.elapsed() >= wanted.timeout {
                    let dropped = pool.dropped();
                    return Err(FetchError::NoProvider { cid: first, timeout: wanted.timeout, dropped });
                }
                let rest = wanted.timeout.saturating_sub(last_block.elapsed());
                if !pool.search(rest).await {
                    tokio::time::sleep(SEARCH_PAUSE.min(rest)).await;
                    pool.retry();
                }
                continue;
            }
            let Some(joined) = flying.join_next().await else { continue };
            let done = joined.expect("a batch does not panic and is not aborted")?;
            for block in &done.blocks {
                last_block = Instant::now();
                report.bytes_fetched += block.data().len() as u64;
                visit(block, report)?;
            }
            pool.give_back(&done);
            let rest = done.rest();
            match &done.end {
                BatchEnd::Complete => {}
                // Only the first one is known to be missing there; the others are asked for again.
                BatchEnd::Lacks => {
                    queue.push(rest[..1].to_vec());
                    if rest.len() > 1 {
                        queue.push(rest[1..].to_vec());
                    }
                }
                BatchEnd::Lied(_) | BatchEnd::Broke(_) => queue.push(rest.to_vec()),
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

/// Returns the block of a CID that carries its own content.
fn inline(cid: &Cid) -> Option<Block> {
    (cid.hash().code() == 0).then(|| Block::verify(*cid, cid.hash().digest().to_vec()).ok()).flatten()
}

/// Cuts the missing blocks of a level into requests.
fn batches(missing: Vec<Cid>) -> Result<Vec<Vec<Cid>>, FetchError> {
    if let Some(cid) = missing.iter().find(|cid| block::blake3_digest(cid).is_none()) {
        return Err(FetchError::NotFetchable { cid: *cid, code: cid.hash().code() });
    }
    let (leaves, nodes): (Vec<Cid>, Vec<Cid>) = missing.into_iter().partition(|cid| Codec::of(cid) == Some(Codec::Raw));
    let nodes = nodes.chunks(NODES_PER_BATCH).map(<[Cid]>::to_vec);
    let leaves = leaves.chunks(LEAVES_PER_BATCH).map(<[Cid]>::to_vec);
    Ok(nodes.chain(leaves).collect())
}
