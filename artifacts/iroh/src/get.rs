//! The asking half of GetMany: many hashes out, verified blocks in.

use std::io;

use bao_tree::io::BaoContentItem;
use bao_tree::io::DecodeError;
use bao_tree::io::sync::DecodeResponseIter;
use bao_tree::{BaoTree, ChunkRanges};
use bytes::{Buf, Bytes, BytesMut};
use iptl_dag::{Block, MAX_BLOCK_SIZE, block};
use iroh_blobs::Hash;
use iroh_blobs::protocol::{ChunkRangesSeq, GetManyRequest, Request};
use iroh_blobs::store::IROH_BLOCK_SIZE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most hashes in one request: 128 KiB of request, and at 64 KiB each 256 MiB of answer.
pub const MAX_HASHES: usize = 4096;

/// Room made for each read from the stream, in bytes: a QUIC or yamux stream hands out less than this at a time.
const READ_AHEAD: usize = 64 << 10;

/// Length of the header before each block: its size, little endian.
const HEADER: usize = 8;

/// Multihash code of BLAKE3-256.
const BLAKE3: u64 = 0x1e;

/// Length of a pair of hashes between chunk groups.
const PARENT: usize = 64;

/// How a request ended that the provider answered honestly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetManyOutcome {
    /// Blocks delivered, from the front of the list; where it is less than asked, the provider lacks the next one, and
    /// may have others behind it.
    pub received: usize,
    /// Bytes read from the stream.
    pub bytes_read: u64,
}

/// How a request failed. Blocks that were delivered before are verified and stay good.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// What the provider sent does not hash to what was asked for.
    #[error("the provider's answer for block {index} does not hash to it")]
    Lie {
        /// Place in the list of hashes.
        index: usize,
    },
    /// The provider announced more than a block may hold; none of it was read.
    #[error("the provider announced {size} bytes for block {index}; no block is larger than {MAX_BLOCK_SIZE}")]
    TooLarge {
        /// Place in the list of hashes.
        index: usize,
        /// Size that was announced.
        size: u64,
    },
    /// More was asked for than fits in one request.
    #[error("{count} hashes in one request; at most {MAX_HASHES} fit")]
    TooManyHashes {
        /// Number of hashes given.
        count: usize,
    },
    /// The stream failed.
    #[error("stream to the provider")]
    Io(#[from] io::Error),
}

/// Asks for blocks by their BLAKE3 hashes and hands each over, verified, in the order asked.
///
/// `on_block` gets the place in `hashes` and the block, as a raw one; where the CID that was wanted is another,
/// [`Block::named`] gives it that. It is called from within the future and must not block: hand the block to a channel or
/// collect it. Each block is held in memory until it is verified, at most [`MAX_BLOCK_SIZE`]; small ones that came together
/// share one piece of memory.
///
/// The stream must be fresh; it is half-closed after the request and of no more use afterwards. Where the answer ends
/// early, at whatever byte, the provider lacks the rest. A damaged size header at the very end of an answer cannot be told
/// from that; nothing wrong is delivered either way.
///
/// Cancel safe: what was handed over is verified, and dropping the future loses only the block under way. No time limit
/// is kept here; wrap the call, or watch `on_block`, to give up on a provider that stalls.
pub async fn get_many(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    hashes: &[[u8; 32]],
    on_block: &mut (dyn FnMut(usize, Block) + Send),
) -> Result<GetManyOutcome, TransferError> {
    if hashes.len() > MAX_HASHES {
        return Err(TransferError::TooManyHashes { count: hashes.len() });
    }
    if hashes.is_empty() {
        return Ok(GetManyOutcome { received: 0, bytes_read: 0 });
    }
    stream.write_all(&encode_request(hashes)).await?;
    // The provider answers when it has seen the end of the request.
    stream.shutdown().await?;

    let mut answer = Answer { stream, buffer: BytesMut::new(), bytes_read: 0 };
    for (index, hash) in hashes.iter().enumerate() {
        let lacking = |bytes_read| Ok(GetManyOutcome { received: index, bytes_read });
        if !answer.fill(HEADER).await? {
            return lacking(answer.bytes_read);
        }
        let size = answer.buffer.get_u64_le();
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_BLOCK_SIZE)
            .ok_or(TransferError::TooLarge { index, size })?;
        let encoded = encoded_len(size);
        let is_whole = answer.fill(encoded).await?;
        let end = encoded.min(answer.buffer.len());
        let decoded = match size <= IROH_BLOCK_SIZE.bytes() {
            // One chunk group: no pairs of hashes, so the encoding is the block.
            true if is_whole => check(*hash, answer.buffer.split_to(end).freeze()),
            true => Err(Undecodable::Incomplete),
            false => {
                let decoded = decode(*hash, size, &answer.buffer[..end]);
                answer.buffer.advance(end);
                decoded
            }
        };
        match decoded {
            Ok(block) => on_block(index, block),
            Err(Undecodable::Incomplete) if !is_whole => return lacking(answer.bytes_read),
            Err(Undecodable::Incomplete | Undecodable::Mismatch) => return Err(TransferError::Lie { index }),
        }
    }
    Ok(GetManyOutcome { received: hashes.len(), bytes_read: answer.bytes_read })
}

/// Encodes the request as iroh-blobs reads it.
pub(crate) fn encode_request(hashes: &[[u8; 32]]) -> Vec<u8> {
    let hashes = hashes.iter().map(|hash| Hash::from_bytes(*hash)).collect();
    let request = Request::GetMany(GetManyRequest::new(hashes, ChunkRangesSeq::all()));
    postcard::to_stdvec(&request).expect("a request of bounded size has an encoding")
}

/// Returns the length of a whole block on the wire, without its header.
pub(crate) fn encoded_len(size: usize) -> usize {
    size + size.div_ceil(IROH_BLOCK_SIZE.bytes()).saturating_sub(1) * PARENT
}

struct Answer<S> {
    stream: S,
    buffer: BytesMut,
    bytes_read: u64,
}

impl<S: AsyncRead + Unpin> Answer<S> {
    /// Reads until `needed` bytes are there; says whether they are, or the stream ended first.
    async fn fill(&mut self, needed: usize) -> io::Result<bool> {
        while self.buffer.len() < needed {
            self.buffer.reserve((needed - self.buffer.len()).max(READ_AHEAD));
            match self.stream.read_buf(&mut self.buffer).await? {
                0 => return Ok(false),
                read => self.bytes_read += read as u64,
            }
        }
        Ok(true)
    }
}

enum Undecodable {
    /// What is there is right, but not all is there.
    Incomplete,
    /// Something hashes to something else.
    Mismatch,
}

/// Verifies the encoding of a block of several chunk groups, or the part of it that arrived, and returns the block.
fn decode(hash: [u8; 32], size: usize, encoded: &[u8]) -> Result<Block, Undecodable> {
    let tree = BaoTree::new(size as u64, IROH_BLOCK_SIZE);
    let ranges = ChunkRanges::all();
    let mut data = Vec::with_capacity(size.min(encoded.len()));
    for item in DecodeResponseIter::new(hash.into(), tree, encoded, &ranges) {
        match item {
            Ok(BaoContentItem::Leaf(leaf)) => data.extend_from_slice(&leaf.data),
            Ok(BaoContentItem::Parent(_)) => {}
            Err(DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_)) => {
                return Err(Undecodable::Mismatch);
            }
            // Reading from memory fails only at its end.
            Err(DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) | DecodeError::Io(_)) => {
                return Err(Undecodable::Incomplete);
            }
        }
    }
    if data.len() != size {
        return Err(Undecodable::Mismatch);
    }
    // Once more as a whole, which costs a seventh of a nanosecond per byte and means that no block is made on the word of
    // another crate.
    check(hash, data.into())
}

fn check(hash: [u8; 32], data: Bytes) -> Result<Block, Undecodable> {
    let block = Block::hashed(BLAKE3, data).ok_or(Undecodable::Mismatch)?;
    if block::blake3_digest(block.cid()) == Some(hash) { Ok(block) } else { Err(Undecodable::Mismatch) }
}
