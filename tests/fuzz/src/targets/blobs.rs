//! iroh-blobs: the requests that anybody may send, and the answers that come from whoever was asked.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use iptl_artifacts::MemStore;
use iptl_artifacts_iroh::{MAX_HASHES, Provider, ServeError, get_many};
use iptl_dag::{Block, Codec, block};
use tokio::io::AsyncWrite;
use tokio::runtime::Runtime;

use crate::memory::typed;

/// What stands in the block that nobody may read, and nowhere else.
const SECRET: &[u8; 16] = b"nobody reads it!";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// Of one group of chunks, of exactly one, and of several; the last is hidden.
static BLOCKS: LazyLock<[Block; 4]> = LazyLock::new(|| {
    let text = |size: usize| (0..size).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
    [text(100), text(16 << 10), text(33_000), SECRET.repeat(8)].map(|data| Block::new(Codec::Raw, data))
});

static PROVIDER: LazyLock<Provider> = LazyLock::new(|| {
    let store = MemStore::new();
    store.put_now(BLOCKS.iter().cloned());
    let [.., hidden] = hashes();
    Provider::over(Arc::new(store)).filtered(Arc::new(move |hash| *hash != hidden))
});

/// The hashes of the blocks that the targets know; the last may not be read.
pub fn hashes() -> [[u8; 32]; 4] {
    BLOCKS.each_ref().map(|block| block::blake3_digest(block.cid()).expect("its hash is of BLAKE3"))
}

/// Returns the request for some blocks, as it is written.
pub fn request_for(hashes: &[[u8; 32]]) -> Vec<u8> {
    let mut written = Vec::new();
    let mut nothing_comes = |_: usize, _: Block| {};
    let asked = get_many(tokio::io::join(tokio::io::empty(), &mut written), hashes, &mut nothing_comes);
    RUNTIME.block_on(asked).expect("a request can be written into memory");
    written
}

/// Feeds a provider with one request; takes what it answers, and none of what may not be seen.
pub(crate) fn request(data: &[u8]) -> bool {
    let mut answer = Answer::default();
    let served = typed(data, || RUNTIME.block_on(PROVIDER.serve(tokio::io::join(data, &mut answer))));
    match served {
        Ok(served) => {
            assert_eq!(served.bytes, answer.bytes, "what is counted is what was written");
            assert!(served.blocks <= MAX_HASHES);
            // A header of 8 bytes, and a pair of hashes between groups, of which the largest has three.
            let most = (33_000 + 8 + 2 * 64) * served.blocks as u64;
            assert!(answer.bytes <= most, "{} bytes for parts of {} blocks", answer.bytes, served.blocks);
            served.blocks > 0
        }
        Err(ServeError::Refused { .. }) => {
            assert_eq!(answer.bytes, 0, "who is refused is given nothing");
            false
        }
        Err(error) => panic!("neither store nor stream can fail: {error}"),
    }
}

/// Counts what is answered, and looks for what must not be in it.
#[derive(Default)]
struct Answer {
    bytes: u64,
    /// The last bytes of what was written before.
    tail: Vec<u8>,
}

impl AsyncWrite for Answer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.bytes += data.len() as u64;
        let seam = [&self.tail, &data[..data.len().min(SECRET.len())]].concat();
        for text in [&seam[..], data] {
            assert!(!text.windows(SECRET.len()).any(|window| window == SECRET), "a hidden block is given");
        }
        self.tail = data[data.len().saturating_sub(SECRET.len())..].to_vec();
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a provider says that is asked for the blocks that may be read.
static TRUTH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let [first, second, third, _] = hashes();
    let request = request_for(&[first, second, third]);
    let mut answer = Vec::new();
    let served = RUNTIME.block_on(PROVIDER.serve(tokio::io::join(&request[..], &mut answer)));
    served.expect("what is asked for is there");
    answer
});

/// Makes an answer of the first byte: what follows as it is, or the true one changed by records of four bytes: what to
/// do, where, and the byte for it.
fn answer_of(data: &[u8]) -> Option<Vec<u8>> {
    let (kind, rest) = data.split_first()?;
    if kind % 2 == 0 {
        return Some(rest.to_vec());
    }
    let mut answer = TRUTH.clone();
    for change in rest.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([change[1], change[2]]));
        if at >= answer.len() {
            continue;
        }
        match change[0] % 4 {
            0 => answer[at] = change[3],
            1 => answer.truncate(at),
            2 => answer.insert(at, change[3]),
            _ => drop(answer.remove(at)),
        }
    }
    Some(answer)
}

/// Takes an answer to what was asked for: only the blocks themselves come of it, in their order.
pub(crate) fn answer(data: &[u8]) -> bool {
    let Some(answer) = answer_of(data) else { return false };
    let [first, second, third, _] = hashes();
    let asked = [first, second, third];
    let mut given = Vec::new();
    let outcome = typed(&answer, || {
        let stream = tokio::io::join(&answer[..], tokio::io::sink());
        let mut take = |index: usize, block: Block| given.push((index, block));
        RUNTIME.block_on(get_many(stream, &asked, &mut take))
    });
    for (place, (index, block)) in given.iter().enumerate() {
        assert_eq!((place, block), (*index, &BLOCKS[*index]), "a block is given that is another");
    }
    match outcome {
        Ok(outcome) => {
            assert_eq!(outcome.received, given.len());
            assert!(outcome.bytes_read <= answer.len() as u64);
            assert!(outcome.received < asked.len() || answer.starts_with(&TRUTH), "all came of an answer that lies");
            outcome.received > 0
        }
        Err(_) => false,
    }
}
