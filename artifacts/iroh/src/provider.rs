//! The answering half: requests of the iroh-blobs protocol, served on any stream.
//!
//! GetMany for whole blocks, which is what the lab asks, is answered here, from any [`BlobStore`] and a batch of blocks
//! at a time. Get, and GetMany for parts of blobs, which only others ask, go to iroh-blobs' own provider. Push and
//! Observe are refused: nobody writes into a store from outside, and nobody waits in it for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, ChunkRanges};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iptl_artifacts::{BlobStore, StoreError};
use iptl_dag::Multihash;
use iroh::endpoint::VarInt;
use iroh_blobs::api::Store;
use iroh_blobs::protocol::{GetManyRequest, GetRequest, RequestType};
use iroh_blobs::provider::StreamPair;
use iroh_blobs::provider::events::EventSender;
use iroh_blobs::store::IROH_BLOCK_SIZE;
use iroh_blobs::util::SendStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::FsBlobStore;
use crate::get::{MAX_HASHES, encoded_len};

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
    /// Whole blocks that were sent; not counted where iroh-blobs' own provider answered.
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
    /// iroh-blobs' handle on the same store, for what it alone answers.
    blobs: Option<Store>,
    filter: Option<Filter>,
}

/// Makes a provider of everything in `store`.
pub fn provider(store: &FsBlobStore) -> Provider {
    Provider { blocks: Arc::new(store.clone()), blobs: Some(store.blobs().clone().into()), filter: None }
}

impl Provider {
    /// Makes a provider out of any store; it answers GetMany for whole blocks alone.
    pub fn over(blocks: Arc<dyn BlobStore>) -> Provider {
        Provider { blocks, blobs: None, filter: None }
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
        let blocks = match self.understand(request)? {
            Asked::Blocks(hashes) => self.send_blocks(&hashes, &mut out).await?,
            Asked::Other { blobs, request } => {
                let pair = StreamPair::new(0, request, &mut out, EventSender::DEFAULT);
                // It logs its own failures; the requester sees the answer end.
                iroh_blobs::provider::handle_stream(pair, blobs).await.ok();
                0
            }
        };
        out.flush().await?;
        timeout(WRITE_PATIENCE, out.stream.shutdown()).await.map_err(|_| ServeError::Stalled)??;
        Ok(Served { blocks, bytes: out.written })
    }

    fn understand(&self, request: Bytes) -> Result<Asked, ServeError> {
        let refused = |reason: &str| ServeError::Refused { reason: reason.into() };
        let (kind, body) = request.split_first().ok_or_else(|| refused("it is empty"))?;
        let kind: RequestType =
            postcard::from_bytes(std::slice::from_ref(kind)).map_err(|_| refused("its type is unknown"))?;
        let garbled = |_| refused("it cannot be decoded");
        let mut is_allowed = true;
        match kind {
            RequestType::GetMany => {
                let asked: GetManyRequest = postcard::from_bytes(body).map_err(garbled)?;
                if asked.hashes.len() > MAX_HASHES {
                    return Err(refused("it asks for too many blocks"));
                }
                let count = asked.hashes.len();
                if asked.ranges.iter_infinite().take(count).all(|ranges| ranges.is_all()) {
                    return Ok(Asked::Blocks(asked.hashes.iter().map(|hash| *hash.as_bytes()).collect()));
                }
                is_allowed &= asked.hashes.iter().all(|hash| self.is_allowed(hash.as_bytes()));
            }
            RequestType::Get => {
                let asked: GetRequest = postcard::from_bytes(body).map_err(garbled)?;
                // The children of a sequence of hashes are not known here, so with a filter only single blobs pass.
                is_allowed &= self.is_allowed(asked.hash.as_bytes());
                is_allowed &= self.filter.is_none() || asked.ranges.is_blob();
            }
            RequestType::Push => return Err(refused("nobody writes into this store")),
            RequestType::Observe => return Err(refused("stores are not observed")),
            RequestType::Slot2
            | RequestType::Slot3
            | RequestType::Slot4
            | RequestType::Slot5
            | RequestType::Slot6
            | RequestType::Slot7 => return Err(refused("its type is reserved")),
        }
        if !is_allowed {
            return Err(refused("it asks for what the requester may not read"));
        }
        let blobs = self.blobs.clone().ok_or_else(|| refused("only whole blocks are served here"))?;
        Ok(Asked::Other { blobs, request })
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
}

enum Asked {
    Blocks(Vec<[u8; 32]>),
    Other { blobs: Store, request: Bytes },
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

fn multihash(digest: &[u8; 32]) -> Multihash {
    Multihash::wrap(0x1e, digest).expect("32 bytes fit into a multihash")
}

/// The stream with its write buffer; also what iroh-blobs' provider writes to.
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

    async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BUFFER {
            self.flush().await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin + Send> SendStream for Out<S> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.push(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.push(bytes).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.flush().await.map_err(io::Error::other)
    }

    fn reset(&mut self, _: VarInt) -> io::Result<()> {
        // The swarm's streams carry no code; the requester sees the answer end.
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        // It is raced against sending, so it must not end while the stream is well.
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}
