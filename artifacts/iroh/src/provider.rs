//! The answering half: requests of the iroh-blobs protocol, served on any stream.
//!
//! GetMany for whole blocks, which is what the lab asks, is answered from any [`BlobStore`], a batch of blocks at a time.
//! Get of one block, and parts of blocks, which only others ask, are answered one by one. Sequences of hashes are refused:
//! the lab's blocks are linked by CIDs, and no sequence of ours exists. So are Push and Observe: nobody writes into a
//! store from outside, and nobody waits in it for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, ChunkRanges};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::Multihash;
use iroh_blobs::protocol::{GetManyRequest, GetRequest, RequestType};
use iroh_blobs::store::IROH_BLOCK_SIZE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::get::{MAX_HASHES, encoded_len};

/// Most blocks of which one request may want parts: each is read and hashed whole, however little of it goes out.
const MAX_PARTS: usize = 64;

/// Largest request that is read, in bytes: the hashes of the largest GetMany, and as much again for its ranges.
const MAX_REQUEST: usize = 2 * 32 * MAX_HASHES;

/// Time within which the whole request must have arrived: it is small, and sent at once.
const REQUEST_PATIENCE: Duration = Duration::from_secs(15);

/// Time within which a requester must have taken in [`WRITE_BUFFER`] bytes: 2 KiB/s is no transfer.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes gathered before they are written, so that neither hashes nor small blocks become packets of their own.
const WRITE_BUFFER: usize = 64 << 10;

/// Blocks read from the store at once. Two batches are in memory: at most 32 MiB, 1 MiB where blocks are of average size.
const READ_BATCH: usize = 8;

/// Whether a hash may be served to the requester.
type Filter = Arc<dyn Fn(&[u8; 32]) -> bool + Send + Sync>;

/// What one stream was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Blocks of which something was sent.
    pub blocks: usize,
    /// Bytes written to the stream.
    pub bytes: u64,
}

/// Why a stream was not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The request is none, or too large, or of a kind that is refused.
    #[error("the request is refused: {reason}")]
    Refused {
        /// What is wrong with it, for the log.
        reason: String,
    },
    /// The requester did not send, or did not take in, within the time that it has.
    #[error("the requester stalled")]
    Stalled,
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream failed.
    #[error("stream to the requester")]
    Io(#[from] io::Error),
}

/// Answers requests out of one store. Cheap to clone.
#[derive(Clone)]
pub struct Provider {
    blocks: Arc<dyn BlobStore>,
    filter: Option<Filter>,
}

impl Provider {
    /// Makes a provider of everything in a store.
    pub fn over(blocks: Arc<dyn BlobStore>) -> Provider {
        Provider { blocks, filter: None }
    }

    /// Serves only what `filter` lets pass; the rest is as if it were absent.
    pub fn filtered(self, filter: Filter) -> Provider {
        Provider { filter: Some(filter), ..self }
    }

    /// Reads one request from a stream, answers it and closes the stream.
    ///
    /// Ends by itself within a bounded time however the other side behaves, as long as it takes in some 2 KiB/s. Where a
    /// block is lacking, the answer ends before it. Cancel safe: nothing is changed.
    pub async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin + Send) -> Result<Served, ServeError> {
        let request = read_request(&mut stream).await?;
        let mut out = Out { stream, buffer: Vec::with_capacity(WRITE_BUFFER + (WRITE_BUFFER >> 2)), written: 0 };
        let blocks = match understand(&request)? {
            Asked::Blocks(hashes) => self.send_blocks(&hashes, &mut out).await?,
            Asked::Parts(parts) => self.send_parts(&parts, &mut out).await?,
        };
        out.flush().await?;
        timeout(WRITE_PATIENCE, out.stream.shutdown()).await.map_err(|_| ServeError::Stalled)??;
        Ok(Served { blocks, bytes: out.written })
    }

    fn is_allowed(&self, hash: &[u8; 32]) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter(hash))
    }

    /// Sends blocks in order, up to the first that is absent or may not be seen; returns how many.
    async fn send_blocks<S>(&self, hashes: &[[u8; 32]], out: &mut Out<S>) -> Result<usize, ServeError>
    where
        S: AsyncWrite + Unpin + Send,
    {
        let allowed = hashes.iter().position(|hash| !self.is_allowed(hash)).unwrap_or(hashes.len());
        // Owned, so that the future can be moved to another thread.
        let batches: Vec<Vec<[u8; 32]>> = hashes[..allowed].chunks(READ_BATCH).map(<[_]>::to_vec).collect();
        let mut batches = futures::stream::iter(batches)
            .map(|batch| {
                let blocks = self.blocks.clone();
                async move {
                    let keys: Vec<Multihash> = batch.iter().map(multihash).collect();
                    let blocks = blocks.get_batch(&keys).await?;
                    Ok::<_, StoreError>((batch, blocks))
                }
            })
            .buffered(2);
        let mut sent = 0;
        while let Some((batch, blocks)) = batches.try_next().await? {
            for (hash, block) in batch.iter().zip(blocks) {
                let Some(data) = block else { return Ok(sent) };
                encode(hash, &data, &mut out.buffer)?;
                sent += 1;
                if out.buffer.len() >= WRITE_BUFFER {
                    out.flush().await?;
                }
            }
        }
        Ok(sent)
    }

    /// Sends parts of blocks in order, up to the first block that is absent or may not be seen; returns of how many.
    async fn send_parts<S>(&self, parts: &[([u8; 32], ChunkRanges)], out: &mut Out<S>) -> Result<usize, ServeError>
    where
        S: AsyncWrite + Unpin + Send,
    {
        let mut sent = 0;
        for (hash, ranges) in parts.iter().filter(|(_, ranges)| !ranges.is_empty()) {
            if !self.is_allowed(hash) {
                break;
            }
            let Some(data) = self.blocks.get(&multihash(hash)).await? else { break };
            encode_parts(hash, &data, ranges, &mut out.buffer)?;
            sent += 1;
            if out.buffer.len() >= WRITE_BUFFER {
                out.flush().await?;
            }
        }
        Ok(sent)
    }
}

enum Asked {
    Blocks(Vec<[u8; 32]>),
    Parts(Vec<([u8; 32], ChunkRanges)>),
}

fn understand(request: &[u8]) -> Result<Asked, ServeError> {
    let refused = |reason: &str| ServeError::Refused { reason: reason.into() };
    let (kind, body) = request.split_first().ok_or_else(|| refused("it is empty"))?;
    let kind: RequestType =
        postcard::from_bytes(std::slice::from_ref(kind)).map_err(|_| refused("its type is unknown"))?;
    let garbled = |_| refused("it cannot be decoded");
    let (hashes, ranges) = match kind {
        RequestType::GetMany => {
            let asked: GetManyRequest = postcard::from_bytes(body).map_err(garbled)?;
            (asked.hashes, asked.ranges)
        }
        RequestType::Get => {
            let asked: GetRequest = postcard::from_bytes(body).map_err(garbled)?;
            if !asked.ranges.is_blob() {
                return Err(refused("there are no sequences of hashes here: ask for blocks, by GetMany"));
            }
            (vec![asked.hash], asked.ranges)
        }
        RequestType::Push => return Err(refused("nobody writes into this store")),
        RequestType::Observe => return Err(refused("stores are not observed")),
        RequestType::Slot2
        | RequestType::Slot3
        | RequestType::Slot4
        | RequestType::Slot5
        | RequestType::Slot6
        | RequestType::Slot7 => return Err(refused("its type is reserved")),
    };
    if hashes.len() > MAX_HASHES {
        return Err(refused("it asks for too many blocks"));
    }
    if ranges.iter_infinite().take(hashes.len()).all(|ranges| ranges.is_all()) {
        return Ok(Asked::Blocks(hashes.iter().map(|hash| *hash.as_bytes()).collect()));
    }
    if hashes.len() > MAX_PARTS {
        return Err(refused("it asks for parts of too many blocks"));
    }
    let parts = hashes.iter().zip(ranges.iter_infinite()).map(|(hash, ranges)| (*hash.as_bytes(), ranges.clone()));
    Ok(Asked::Parts(parts.collect()))
}

/// Reads to the end of the request, which the requester marks by closing its half.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, ServeError> {
    let mut request = Vec::new();
    let mut limited = stream.take(MAX_REQUEST as u64 + 1);
    timeout(REQUEST_PATIENCE, limited.read_to_end(&mut request)).await.map_err(|_| ServeError::Stalled)??;
    if request.len() > MAX_REQUEST {
        return Err(ServeError::Refused { reason: format!("it is larger than {MAX_REQUEST} bytes") });
    }
    Ok(request.into())
}

/// Appends the size of a block, and its bytes with the hashes that verify them on the way.
fn encode(hash: &[u8; 32], data: &[u8], out: &mut Vec<u8>) -> Result<(), StoreError> {
    out.reserve(8 + encoded_len(data.len()));
    out.extend_from_slice(&(data.len() as u64).to_le_bytes());
    if data.len() <= IROH_BLOCK_SIZE.bytes() {
        out.extend_from_slice(data);
        return Ok(());
    }
    let outboard = PreOrderMemOutboard::create(data, IROH_BLOCK_SIZE);
    if outboard.root.as_bytes() != hash {
        return Err(StoreError::Corrupt { hash: multihash(hash) });
    }
    // Pairs of hashes stand in the outboard in the order in which they go out.
    let mut pairs = outboard.data.chunks_exact(64);
    let tree = BaoTree::new(data.len() as u64, IROH_BLOCK_SIZE);
    for item in tree.ranges_pre_order_chunks_iter_ref(&ChunkRanges::all(), 0) {
        match item {
            BaoChunk::Parent { .. } => out.extend_from_slice(pairs.next().expect("a tree has one pair per parent")),
            BaoChunk::Leaf { start_chunk, size, .. } => {
                let start = usize::try_from(start_chunk.to_bytes()).expect("a block is small");
                out.extend_from_slice(&data[start..start + size]);
            }
        }
    }
    Ok(())
}

/// Appends the size of a block, and some chunks of it with the hashes that verify them.
fn encode_parts(hash: &[u8; 32], data: &[u8], ranges: &ChunkRanges, out: &mut Vec<u8>) -> Result<(), StoreError> {
    let outboard = PreOrderMemOutboard::create(data, IROH_BLOCK_SIZE);
    if outboard.root.as_bytes() != hash {
        return Err(StoreError::Corrupt { hash: multihash(hash) });
    }
    out.extend_from_slice(&(data.len() as u64).to_le_bytes());
    encode_ranges_validated(data, outboard, ranges, out)
        .map_err(|error| StoreError::Io { doing: "encoding a block".into(), source: io::Error::other(error) })
}

/// Returns the multihash of a BLAKE3 digest, as every request here names its blocks.
pub fn multihash(digest: &[u8; 32]) -> Multihash {
    Multihash::wrap(0x1e, digest).expect("32 bytes fit into a multihash")
}

/// The stream with its write buffer.
struct Out<S> {
    stream: S,
    buffer: Vec<u8>,
    written: u64,
}

impl<S: AsyncWrite + Unpin + Send> Out<S> {
    async fn flush(&mut self) -> Result<(), ServeError> {
        for piece in self.buffer.chunks(WRITE_BUFFER) {
            timeout(WRITE_PATIENCE, self.stream.write_all(piece)).await.map_err(|_| ServeError::Stalled)??;
            self.written += piece.len() as u64;
        }
        self.buffer.clear();
        timeout(WRITE_PATIENCE, self.stream.flush()).await.map_err(|_| ServeError::Stalled)??;
        Ok(())
    }
}
