//! One request for many blocks from one provider.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_artifacts::{BlobStore, StoreError};
use iptl_artifacts_iroh::{TransferError, get_many};
use iptl_dag::{Block, Cid, PeerId, block};
use tokio::sync::{Notify, mpsc};

use super::Source;
use crate::links::Links;
use crate::members::Members;

/// Bytes after which a batch ends, whatever is left of it: what is in flight has to fit into memory, and what blocks hold
/// shows only when they come. Twice the limit of one block is far below it, so that a batch always brings some.
const MAX_BATCH_BYTES: u64 = 16 << 20;

/// Blocks, or bytes of them, that are put at once: a put costs a hop to another thread and a system call, whatever it
/// holds.
const PUT_BLOCKS: usize = 256;
const PUT_BYTES: usize = 512 << 10;

/// How long the first of them waits for the others: a kill loses no more than what came within it.
const PUT_PAUSE: Duration = Duration::from_millis(20);

/// How long a provider is waited for, and how little it may send meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A provider that sends no block for so long is given up.
    pub stall: Duration,
    /// One that sends fewer bytes in as long, on average since the batch began, is given up too: a block now and then
    /// must not hold a batch that others would send.
    pub least_bytes: u64,
    /// Averages count from this many times as long on: connections begin slowly.
    pub grace: u32,
}

impl Default for Patience {
    /// A block of 2 MiB takes less than 20 s at 1 Mbit/s; a batch of small ones is over by then. An eighth of that rate
    /// is taken for slow.
    fn default() -> Patience {
        Patience { stall: Duration::from_secs(20), least_bytes: 320 << 10, grace: 2 }
    }
}

/// What came of a batch.
pub(super) struct BatchDone {
    /// Who was asked.
    pub(super) provider: PeerId,
    /// What was asked for.
    pub(super) asked: Vec<Cid>,
    /// What came, verified and in the store: the first of what was asked for.
    pub(super) blocks: Vec<Block>,
    /// Why no more came.
    pub(super) end: BatchEnd,
}

impl BatchDone {
    /// Returns what did not come.
    pub(super) fn rest(&self) -> &[Cid] {
        &self.asked[self.blocks.len()..]
    }
}

/// How a batch ended.
pub(super) enum BatchEnd {
    /// Everything came.
    Complete,
    /// As much came as one batch may hold.
    Full,
    /// The provider lacks the first block that did not come.
    Lacks,
    /// The provider sent bytes that are not what was asked for.
    Lied(String),
    /// The provider sends too little, or nothing.
    Slow(String),
    /// The connection failed.
    Broke(String),
    /// The provider sent nothing for as long as it is waited for.
    Silent(String),
}

/// Asks a provider for blocks and puts them into the store while they come, so that a batch that is cut loses little.
pub(super) async fn run_batch(
    links: Links,
    members: Option<Members>,
    store: Arc<dyn BlobStore>,
    provider: Source,
    asked: Vec<Cid>,
    patience: Patience,
) -> Result<BatchDone, StoreError> {
    // The whole batch fits into memory, so nothing needs to push back: it ends when it is full.
    let (arrived, mut arriving) = mpsc::unbounded_channel();
    let keep = async {
        let mut blocks: Vec<Block> = Vec::with_capacity(asked.len());
        let mut fresh = Vec::new();
        while gather(&mut arriving, &mut fresh).await {
            store.put(fresh.clone()).await?;
            blocks.append(&mut fresh);
        }
        Ok::<_, StoreError>(blocks)
    };
    let receive =
        async { Ok::<_, StoreError>(receive(&links, members.as_ref(), &provider, &asked, arrived, patience).await) };
    let (end, blocks) = tokio::try_join!(receive, keep)?;
    let end = if blocks.len() < asked.len() && matches!(end, BatchEnd::Complete) {
        BatchEnd::Broke("sent blocks out of order".to_owned())
    } else {
        end
    };
    Ok(BatchDone { provider: provider.0, asked, blocks, end })
}

/// Waits for blocks: until a put is worth its while, the first of them has waited for long, or no more come. Says whether
/// there are any.
async fn gather(arriving: &mut mpsc::UnboundedReceiver<Block>, fresh: &mut Vec<Block>) -> bool {
    if arriving.recv_many(fresh, PUT_BLOCKS).await == 0 {
        return false;
    }
    let deadline = tokio::time::sleep(PUT_PAUSE);
    tokio::pin!(deadline);
    while fresh.len() < PUT_BLOCKS && fresh.iter().map(|block| block.data().len()).sum::<usize>() < PUT_BYTES {
        tokio::select! {
            more = arriving.recv_many(fresh, PUT_BLOCKS) => if more == 0 { break },
            () = &mut deadline => break,
        }
    }
    true
}

/// Asks for blocks and hands on what comes, verified.
async fn receive(
    links: &Links,
    members: Option<&Members>,
    (provider, addrs): &Source,
    asked: &[Cid],
    arrived: mpsc::UnboundedSender<Block>,
    patience: Patience,
) -> BatchEnd {
    let hashes: Vec<[u8; 32]> =
        asked.iter().map(|cid| block::blake3_digest(cid).expect("only BLAKE3 is put into a batch")).collect();
    if let Some(members) = members {
        members.introduce(links, provider, addrs).await;
    }
    let stream = match links.open(provider, addrs, iptl_artifacts_iroh::PROTOCOL).await {
        Err(error) => return BatchEnd::Broke(error.to_string()),
        Ok(stream) => stream,
    };
    let (count, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let full = Notify::new();
    let mut on_block = |index: usize, block: Block| {
        // What is no longer wanted, since the batch is full, counts no more.
        if bytes.load(Ordering::Relaxed) >= MAX_BATCH_BYTES {
            return;
        }
        if let Some(block) = asked.get(index).and_then(|cid| block.named(*cid)) {
            let size = block.data().len() as u64;
            let _store_failed = arrived.send(block);
            count.fetch_add(1, Ordering::Relaxed);
            if bytes.fetch_add(size, Ordering::Relaxed) + size >= MAX_BATCH_BYTES {
                full.notify_one();
            }
        }
    };
    let transfer = get_many(stream, &hashes, &mut on_block);
    tokio::select! {
        result = transfer => match result {
            // The last that it may hold may be the last that was asked for, or stand before it.
            Ok(_) if bytes.load(Ordering::Relaxed) >= MAX_BATCH_BYTES => BatchEnd::Full,
            Ok(outcome) if outcome.received == asked.len() => BatchEnd::Complete,
            Ok(_) => {
                members.inspect(|members| members.doubt(provider));
                BatchEnd::Lacks
            }
            Err(error @ (TransferError::Lie { .. } | TransferError::TooLarge { .. })) => {
                BatchEnd::Lied(error.to_string())
            }
            Err(error) => BatchEnd::Broke(error.to_string()),
        },
        () = full.notified() => BatchEnd::Full,
        slow = slow(&count, &bytes, patience) => slow,
    }
}

/// Returns once no block arrived for as long as one may take, or too few bytes did.
async fn slow(blocks: &AtomicU64, bytes: &AtomicU64, patience: Patience) -> BatchEnd {
    let mut last = blocks.load(Ordering::Relaxed);
    for periods in 1_u32.. {
        tokio::time::sleep(patience.stall).await;
        let (now, bytes) = (blocks.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        if now == last {
            return BatchEnd::Silent(format!("sent nothing for {} s", patience.stall.as_secs_f32()));
        }
        if periods >= patience.grace && bytes < patience.least_bytes.saturating_mul(periods.into()) {
            let seconds = patience.stall.as_secs_f32() * periods as f32;
            return BatchEnd::Slow(format!("sent {bytes} bytes in {seconds} s"));
        }
        last = now;
    }
    unreachable!("a fetch is over before it has waited four billion times")
}
