//! Both halves of GetMany, against each other, against iroh-blobs, and against liars.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use iptl_artifacts::contract::sample;
use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_iroh::{GetManyOutcome, MAX_HASHES, Provider, ServeError, TransferError, get_many};
use iptl_dag::{Block, MAX_BLOCK_SIZE};
use iroh_blobs::Hash;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Sizes around those of chunk groups and their trees.
const SIZES: [usize; 10] = [1, 1_000, 16_384, 16_385, 32_768, 40_000, 65_536, 200_001, 1 << 20, MAX_BLOCK_SIZE];

fn digest(block: &Block) -> [u8; 32] {
    block.cid().hash().digest().try_into().unwrap()
}

fn blocks(count: usize) -> Vec<Block> {
    (0..count).map(|i| sample(i as u64, SIZES[i % SIZES.len()])).collect()
}

async fn mem_provider(blocks: &[Block]) -> Provider {
    let store = MemStore::new();
    store.put_now(blocks.iter().cloned());
    Provider::over(Arc::new(store))
}

type Received = Vec<(usize, Bytes)>;

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    hashes: &[[u8; 32]],
) -> (Result<GetManyOutcome, TransferError>, Received) {
    let mut received = Vec::new();
    let outcome = get_many(stream, hashes, &mut |index, block| received.push((index, block.data().clone()))).await;
    (outcome, received)
}

/// Asks a provider over a pipe.
async fn transfer(provider: &Provider, hashes: &[[u8; 32]]) -> (Result<GetManyOutcome, TransferError>, Received) {
    let (near, far) = tokio::io::duplex(32 << 10);
    let provider = provider.clone();
    // On a task of its own, as nodes serve.
    let served = tokio::spawn(async move { provider.serve(far).await });
    let asked = ask(near, hashes).await;
    served.await.unwrap().unwrap();
    asked
}

/// Asserts that what was delivered is a prefix of what was asked for.
fn assert_prefix(blocks: &[Block], received: &Received) {
    for (place, (index, data)) in received.iter().enumerate() {
        assert_eq!(place, *index);
        assert!(data == blocks[*index].data(), "block {index} is delivered as it is");
    }
}

#[tokio::test]
async fn all_blocks_arrive_in_order() {
    let blocks = blocks(20);
    let hashes: Vec<_> = blocks.iter().map(digest).collect();
    let (outcome, received) = transfer(&mem_provider(&blocks).await, &hashes).await;
    assert_eq!(outcome.unwrap().received, 20);
    assert_eq!(received.len(), 20);
    assert_prefix(&blocks, &received);
}

#[tokio::test]
async fn empty_request_and_empty_block_are_answered() {
    let empty = sample(1, 0);
    let provider = mem_provider(std::slice::from_ref(&empty)).await;
    let (near, _far) = tokio::io::duplex(1024);
    assert_eq!(ask(near, &[]).await.0.unwrap().received, 0);
    let (outcome, received) = transfer(&provider, &[digest(&empty)]).await;
    assert_eq!(outcome.unwrap(), GetManyOutcome { received: 1, bytes_read: 8 });
    assert_eq!(received, [(0, Bytes::new())]);
}

#[tokio::test]
async fn answer_ends_before_the_first_block_that_is_lacking() {
    let blocks = blocks(12);
    let hashes: Vec<_> = blocks.iter().map(digest).collect();
    for lacking in 0..12 {
        let mut held = blocks.clone();
        held.remove(lacking);
        let (outcome, received) = transfer(&mem_provider(&held).await, &hashes).await;
        assert_eq!(outcome.unwrap().received, lacking);
        assert_eq!(received.len(), lacking);
        assert_prefix(&blocks, &received);
    }
}

#[tokio::test]
async fn filtered_blocks_are_as_if_absent() {
    let blocks = blocks(5);
    let hashes: Vec<_> = blocks.iter().map(digest).collect();
    let secret = hashes[3];
    let provider = mem_provider(&blocks).await.filtered(Arc::new(move |hash| *hash != secret));
    let (outcome, _) = transfer(&provider, &hashes).await;
    assert_eq!(outcome.unwrap().received, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_blocks_move_in_batches() {
    let blocks: Vec<Block> = (0..10_000).map(|i| sample(i, 30 + i as usize % 700)).collect();
    let (source, sink) = (MemStore::new(), MemStore::new());
    source.put(blocks.clone()).await.unwrap();
    let provider = Provider::over(Arc::new(source.clone()));
    for batch in blocks.chunks(MAX_HASHES) {
        let hashes: Vec<_> = batch.iter().map(digest).collect();
        let (outcome, received) = transfer(&provider, &hashes).await;
        assert_eq!(outcome.unwrap().received, batch.len());
        let arrived = received.into_iter().map(|(i, data)| Block::verify(*batch[i].cid(), data).unwrap()).collect();
        sink.put(arrived).await.unwrap();
    }
    let mut expected = source.list().await.unwrap();
    let mut found = sink.list().await.unwrap();
    expected.sort();
    found.sort();
    assert_eq!(expected.len(), 10_000);
    assert_eq!(expected, found);
    let too_many = vec![[0; 32]; MAX_HASHES + 1];
    let (near, _far) = tokio::io::duplex(1024);
    assert!(matches!(ask(near, &too_many).await.0, Err(TransferError::TooManyHashes { .. })));
}

/// Answers any request with given bytes, handed out in pieces of given sizes.
struct Canned {
    answer: Bytes,
    piece: usize,
}

impl AsyncRead for Canned {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.piece.min(buf.remaining()).min(self.answer.len());
        buf.put_slice(&self.answer.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Canned {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Records the honest answer for some blocks, with the place at which each begins.
async fn recorded(blocks: &[Block]) -> (Vec<[u8; 32]>, Bytes, Vec<usize>) {
    let hashes: Vec<_> = blocks.iter().map(digest).collect();
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let provider = mem_provider(blocks).await;
    let request = request_for(&hashes);
    let (served, answer) = tokio::join!(provider.serve(far), async {
        near.write_all(&request).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    });
    assert_eq!(served.unwrap().blocks, blocks.len());
    let mut starts = vec![0];
    for block in blocks {
        let groups = block.data().len().div_ceil(16 << 10).max(1);
        starts.push(starts.last().unwrap() + 8 + block.data().len() + 64 * (groups - 1));
    }
    assert_eq!(*starts.last().unwrap(), answer.len(), "the encoding has the length that is expected of it");
    (hashes, answer.into(), starts)
}

fn request_for(hashes: &[[u8; 32]]) -> Vec<u8> {
    use iroh_blobs::protocol::{ChunkRangesSeq, GetManyRequest, Request};
    let hashes = hashes.iter().map(|hash| Hash::from_bytes(*hash)).collect();
    postcard::to_stdvec(&Request::GetMany(GetManyRequest::new(hashes, ChunkRangesSeq::all()))).unwrap()
}

/// Numbers without end from a fixed seed.
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let block = sample(seed, MAX_BLOCK_SIZE);
    let mut at = 0;
    move |below| {
        let word = u64::from_le_bytes(block.data()[at..at + 8].try_into().unwrap());
        at = (at + 8) % (MAX_BLOCK_SIZE - 8);
        usize::try_from(word % below as u64).unwrap()
    }
}

/// Blocks that are small enough to try many damages on.
fn few_blocks() -> Vec<Block> {
    [5, 16_384, 16_385, 100, 70_000, 1, 33_000].iter().enumerate().map(|(i, size)| sample(i as u64, *size)).collect()
}

#[tokio::test]
async fn truncation_anywhere_means_that_the_rest_is_lacking() {
    let blocks = few_blocks();
    let (hashes, answer, starts) = recorded(&blocks).await;
    let mut number = numbers(1);
    let mut cuts: Vec<usize> = (0..300).map(|_| number(answer.len())).collect();
    cuts.extend(starts.iter().flat_map(|start| [start.saturating_sub(1), *start, start + 1, start + 8, start + 9]));
    for cut in cuts.into_iter().filter(|cut| *cut <= answer.len()) {
        let canned = Canned { answer: answer.slice(..cut), piece: 1 + number(40_000) };
        let (outcome, received) = ask(canned, &hashes).await;
        let whole = starts.iter().filter(|start| **start > 0 && **start <= cut).count();
        assert_eq!(outcome.unwrap(), GetManyOutcome { received: whole, bytes_read: cut as u64 }, "cut at {cut}");
        assert_eq!(received.len(), whole);
        assert_prefix(&blocks, &received);
    }
}

#[tokio::test]
async fn flipped_bit_anywhere_is_a_lie_about_its_block() {
    let blocks = few_blocks();
    let (hashes, answer, starts) = recorded(&blocks).await;
    let mut number = numbers(2);
    // Every bit of every header, and bits anywhere else.
    let headers = starts[..blocks.len()].iter().flat_map(|start| (0..64).map(move |bit| start * 8 + bit));
    let bits: Vec<usize> = headers.chain((0..600).map(|_| number(answer.len() * 8))).collect();
    for bit in bits {
        let mut damaged = answer.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let hit = starts.iter().filter(|start| **start <= bit / 8).count() - 1;
        let is_header = bit / 8 < starts[hit] + 8;
        let canned = Canned { answer: damaged.into(), piece: 1 + number(40_000) };
        let (outcome, received) = ask(canned, &hashes).await;
        match outcome {
            Err(TransferError::Lie { index }) => assert_eq!(index, hit),
            Err(TransferError::TooLarge { index, size }) => {
                assert!(is_header && size > MAX_BLOCK_SIZE as u64);
                assert_eq!(index, hit);
            }
            // A size that asks for more than there is looks like a truncated answer.
            Ok(outcome) => assert!(is_header && outcome.received == hit, "bit {bit} of block {hit}: {outcome:?}"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(received.len(), hit, "what was verified before stays, and nothing else is delivered");
        assert_prefix(&blocks, &received);
    }
}

#[tokio::test]
async fn swapped_block_is_a_lie() {
    let blocks = [sample(1, 50_000), sample(2, 50_000)];
    let (hashes, answer, _) = recorded(&blocks).await;
    let (outcome, received) = ask(Canned { answer, piece: 1000 }, &[hashes[1], hashes[0]]).await;
    assert!(matches!(outcome, Err(TransferError::Lie { index: 0 })));
    assert!(received.is_empty());
}

#[tokio::test]
async fn announced_size_over_the_limit_is_refused_unread() {
    for size in [MAX_BLOCK_SIZE as u64 + 1, 1 << 40, u64::MAX] {
        let answer = Bytes::copy_from_slice(&size.to_le_bytes());
        let (outcome, _) = ask(Canned { answer, piece: 8 }, &[[7; 32]]).await;
        assert!(matches!(outcome, Err(TransferError::TooLarge { index: 0, size: found }) if found == size));
    }
}

#[tokio::test]
async fn iroh_blobs_provider_is_understood() {
    let blocks = blocks(20);
    let hashes: Vec<_> = blocks.iter().map(digest).collect();
    let store = their_store(&blocks).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    let ((), (outcome, received)) = tokio::join!(their_provider(&store, far), ask(near, &hashes));
    assert_eq!(outcome.unwrap().received, 20);
    assert_prefix(&blocks, &received);
}

async fn their_store(blocks: &[Block]) -> iroh_blobs::store::mem::MemStore {
    let store = iroh_blobs::store::mem::MemStore::new();
    for block in blocks {
        store.add_bytes(block.data().clone()).temp_tag().await.unwrap().leak();
    }
    store
}

/// Answers one request as iroh-blobs does.
async fn their_provider(store: &iroh_blobs::store::mem::MemStore, far: tokio::io::DuplexStream) {
    use iroh_blobs::provider::{StreamPair, events::EventSender, handle_stream};
    use iroh_blobs::util::{AsyncReadRecvStream, AsyncWriteSendStream};

    let (reader, mut writer) = tokio::io::split(far);
    let reader = AsyncReadRecvStream::new(Theirs(reader));
    let writer_half = AsyncWriteSendStream::new(Theirs(&mut writer));
    handle_stream(StreamPair::new(1, reader, writer_half, EventSender::DEFAULT), (**store).clone()).await.unwrap();
    writer.shutdown().await.unwrap();
}

/// Gives tokio's halves what iroh-blobs wants to know beside reading and writing.
struct Theirs<T>(T);

impl<T: AsyncRead + Unpin + Send> iroh_blobs::util::AsyncReadRecvStreamExtra for Theirs<T> {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        &mut self.0
    }
    fn stop(&mut self, _: iroh::endpoint::VarInt) -> io::Result<()> {
        Ok(())
    }
    fn id(&self) -> u64 {
        0
    }
}

impl<T: AsyncWrite + Unpin + Send> iroh_blobs::util::AsyncWriteSendStreamExtra for Theirs<T> {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        &mut self.0
    }
    fn reset(&mut self, _: iroh::endpoint::VarInt) -> io::Result<()> {
        Ok(())
    }
    async fn stopped(&mut self) -> io::Result<Option<iroh::endpoint::VarInt>> {
        std::future::pending().await
    }
    fn id(&self) -> u64 {
        0
    }
}

/// Sends raw request bytes and returns how serving ended, with the answer.
async fn raw(provider: &Provider, request: &[u8]) -> (Result<usize, ServeError>, Vec<u8>) {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (served, answer) = tokio::join!(provider.serve(far), async {
        // The provider may hang up while it is told too much.
        near.write_all(request).await.ok();
        near.shutdown().await.ok();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    });
    (served.map(|served| served.blocks), answer)
}

#[tokio::test]
async fn parts_of_blocks_are_served_as_iroh_blobs_serves_them() {
    use bao_tree::{ChunkNum, ChunkRanges};
    use iroh_blobs::protocol::{ChunkRangesSeq, GetManyRequest, GetRequest, Request};

    let blocks = [sample(3, 100_000), sample(4, 10), sample(5, MAX_BLOCK_SIZE), sample(6, 16_385)];
    let hashes: Vec<Hash> = blocks.iter().map(|block| Hash::from_bytes(digest(block))).collect();
    let ours = mem_provider(&blocks).await;
    let theirs = their_store(&blocks).await;
    let range = |from: u64, to: u64| ChunkRanges::from(ChunkNum(from)..ChunkNum(to));
    let several = range(0, 3) | range(40, 55) | range(90, 1_000_000);
    let mut requests: Vec<Request> = Vec::new();
    for hash in &hashes {
        requests.push(Request::Get(GetRequest::blob(*hash)));
        for ranges in [range(16, 32), range(0, 1), range(17, 18), range(97, 98), range(5_000, 6_000), several.clone()] {
            requests.push(Request::Get(GetRequest::blob_ranges(*hash, ranges)));
        }
    }
    let seq = ChunkRangesSeq::from_ranges([range(0, 16), ChunkRanges::empty(), several, ChunkRanges::all()]);
    requests.push(Request::GetMany(GetManyRequest::new(hashes.clone(), seq)));
    for request in requests {
        let bytes = postcard::to_stdvec(&request).unwrap();
        let (served, answer) = raw(&ours, &bytes).await;
        served.unwrap();
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let ((), expected) = tokio::join!(their_provider(&theirs, far), async {
            near.write_all(&bytes).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        });
        assert!(expected.len() > 8 && answer == expected, "{request:?}: {} and {}", answer.len(), expected.len());
    }
}

#[tokio::test]
async fn parts_that_may_not_be_seen_or_are_too_many_are_not_served() {
    use bao_tree::{ChunkNum, ChunkRanges};
    use iroh_blobs::protocol::{ChunkRangesSeq, GetManyRequest, GetRequest, ObserveRequest, PushRequest, Request};

    let blocks = [sample(3, 100_000), sample(4, 100_000)];
    let secret = digest(&blocks[1]);
    let provider = mem_provider(&blocks).await.filtered(Arc::new(move |hash| *hash != secret));
    let hashes: Vec<Hash> = blocks.iter().map(|block| Hash::from_bytes(digest(block))).collect();
    let part = ChunkRanges::from(ChunkNum(0)..ChunkNum(16));
    let seq = ChunkRangesSeq::from_ranges_infinite([part.clone()]);
    let two = Request::GetMany(GetManyRequest::new(hashes.clone(), seq.clone()));
    let (served, answer) = raw(&provider, &postcard::to_stdvec(&two).unwrap()).await;
    assert_eq!(served.unwrap(), 1);
    assert!(answer.len() < 17_000, "nothing of the second is told, not even its size");
    let hidden = Request::Get(GetRequest::blob_ranges(hashes[1], part));
    let (served, answer) = raw(&provider, &postcard::to_stdvec(&hidden).unwrap()).await;
    assert_eq!((served.unwrap(), answer.len()), (0, 0));

    let hash = hashes[0];
    let refused = [
        Request::GetMany(GetManyRequest::new(vec![hash; 65], seq)),
        Request::Get(GetRequest::all(hash)),
        Request::Push(PushRequest::new(hash, GetRequest::blob(hash).ranges)),
        Request::Observe(ObserveRequest::new(hash)),
    ];
    for request in refused {
        let (served, answer) = raw(&provider, &postcard::to_stdvec(&request).unwrap()).await;
        assert!(matches!(served, Err(ServeError::Refused { .. })), "{request:?}");
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn garbled_requests_are_refused() {
    let provider = mem_provider(&blocks(3)).await;
    let mut number = numbers(5);
    let good = request_for(&[[1; 32], [2; 32]]);
    let mut requests = vec![Vec::new(), vec![2], vec![99; 100], vec![9; 1 << 20], good[..good.len() - 1].to_vec()];
    requests.extend((0..300).map(|_| {
        let mut bad = good.clone();
        for _ in 0..=number(4) {
            let at = number(bad.len());
            bad[at] = number(256) as u8;
        }
        bad
    }));
    for request in requests {
        let (served, answer) = raw(&provider, &request).await;
        assert!(answer.is_empty());
        assert!(matches!(served, Ok(0) | Err(ServeError::Refused { .. })), "{served:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requester_that_stalls_is_let_go() {
    let provider = mem_provider(&blocks(20)).await;
    let (near, far) = tokio::io::duplex(1 << 10);
    assert!(matches!(provider.serve(far).await, Err(ServeError::Stalled)), "one that never asks");
    drop(near);
    let (mut near, far) = tokio::io::duplex(1 << 10);
    let hashes: Vec<_> = blocks(20).iter().map(digest).collect();
    let request = request_for(&hashes);
    let (served, ()) = tokio::join!(provider.serve(far), async {
        near.write_all(&request).await.unwrap();
        near.shutdown().await.unwrap();
    });
    assert!(matches!(served, Err(ServeError::Stalled)), "one that never reads");
}
