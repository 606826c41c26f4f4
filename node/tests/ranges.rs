//! Some bytes of a file: only the blocks that hold them move, and the nodes above those.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use iptl_artifacts::export::{ExportError, read_range};
use iptl_artifacts::{BlobStore, MemStore, Multihash};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{FileBuilder, FileReader, Profile};
use iptl_dag::{Block, Cid, Codec};
use iptl_node::fetch::{FetchError, Fetcher, Wanted};
use iptl_wire::control::{FetchReport, Reply, Request};

use crate::lab::{Dag, Stranger, bystander, parent, serve, store_of, wanted};

/// Bytes that no two leaves have in common.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// A file with its blocks.
struct File {
    bytes: Vec<u8>,
    root: Cid,
    blocks: Vec<Block>,
}

impl File {
    fn new(size: usize, profile: Profile) -> File {
        let (bytes, mut blocks) = (noise(size), Vec::new());
        let mut file = FileBuilder::with_profile(profile);
        file.push(&bytes, &mut blocks);
        File { root: file.finish(&mut blocks).cid, bytes, blocks }
    }

    /// Makes one of three levels, in which a leaf and a node over leaves stand twice, and a node has content of its own.
    fn of_three_levels() -> File {
        let leaves: Vec<Block> = noise(30_000).chunks(1000).map(|part| Block::new(Codec::Raw, part.to_vec())).collect();
        let above = |leaves: &[Block], own: &[u8]| {
            node(own, &leaves.iter().map(|leaf| (*leaf.cid(), leaf.data().len() as u64)).collect::<Vec<_>>())
        };
        let first = above(&leaves[..10], b"");
        let second = above(&[&leaves[10..20], &leaves[3..4]].concat(), b"its own");
        let third = above(&leaves[20..], b"");
        let order = [&first, &second, &first, &third];
        let sizes = [10_000, 11_007, 10_000, 10_000];
        let root = node(b"", &order.iter().zip(sizes).map(|(node, size)| (*node.cid(), size)).collect::<Vec<_>>());
        let all = |range: Range<usize>| leaves[range].iter().flat_map(|leaf| leaf.data().to_vec()).collect::<Vec<u8>>();
        let second_bytes = [b"its own".to_vec(), all(10..20), all(3..4)].concat();
        let bytes = [all(0..10), second_bytes, all(0..10), all(20..30)].concat();
        let blocks = [leaves, vec![first, second, third, root.clone()]].concat();
        File { bytes, root: *root.cid(), blocks }
    }

    /// Returns the blocks that somebody touches who reads a range, and no other.
    fn touched(&self, range: &Range<u64>) -> BTreeSet<Multihash> {
        let mut reader = FileReader::of_range(self.root, range.clone());
        let mut touched = BTreeSet::new();
        while let Some(cid) = reader.next().copied() {
            let block = self.blocks.iter().find(|block| *block.cid() == cid).unwrap();
            reader.supply(block).unwrap();
            touched.insert(*cid.hash());
        }
        touched
    }
}

/// A provider of blocks, and somebody who fetches from it into a store of their own.
struct Parties {
    origin: Stranger,
    asker: Stranger,
    _serving: tokio::task::JoinHandle<()>,
}

impl Parties {
    async fn new(seed: u8, blocks: Vec<Block>) -> Parties {
        let (origin, asker) = (Stranger::new(seed).await, Stranger::new(seed + 1).await);
        let _serving = serve(&origin, store_of(blocks).await).await;
        Parties { origin, asker, _serving }
    }

    async fn fetch(
        &self,
        store: &Arc<dyn BlobStore>,
        root: &Cid,
        range: Range<u64>,
    ) -> Result<FetchReport, FetchError> {
        let from = vec![(self.origin.links.peer().clone(), vec![self.origin.addr().await])];
        let fetcher = Fetcher::new(store.clone(), self.asker.links.clone());
        fetcher.fetch_range(&Wanted { from, ..wanted(root) }, range, |_| {}).await
    }
}

/// Makes a node of a file over parts, each with its size.
fn node(own: &[u8], parts: &[(Cid, u64)]) -> Block {
    let link = |&(cid, size): &(Cid, u64)| PbLink { cid, name: Some(String::new()), tsize: Some(size) };
    let message = PbUnixFs {
        data: Some(own.to_vec()),
        block_sizes: parts.iter().map(|(_, size)| *size).collect(),
        ..PbUnixFs::new(PbKind::File)
    };
    Block::new(Codec::DagPb, PbNode { links: parts.iter().map(link).collect(), data: Some(message.encode()) }.encode())
}

/// Asserts that of a file only the blocks come that hold some of a range, and that they are enough to read it.
async fn only_what_is_touched_comes(parties: &Parties, file: &File, range: Range<u64>) {
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let report = parties.fetch(&store, &file.root, range.clone()).await.unwrap();
    let came: BTreeSet<Multihash> = store.list().await.unwrap().into_iter().collect();
    assert_eq!(came, file.touched(&range), "{range:?}");
    assert_eq!(report.bytes_fetched, store.usage().await.unwrap().bytes, "{range:?}");
    let read = read_range(&*store, &file.root, range.clone()).await.unwrap();
    let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(file.bytes.len());
    let start = usize::try_from(range.start).unwrap().min(end);
    assert!(read[..] == file.bytes[start..end], "{range:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_blocks_move_that_a_range_touches() {
    for (seed, file) in [(150, File::of_three_levels()), (152, File::new(3_000_000, Profile::Iptl))] {
        let parties = Parties::new(seed, file.blocks.clone()).await;
        let size = file.bytes.len() as u64;
        let ranges =
            [0..1, size / 2..size / 2 + 1, size / 3..size / 2, size - 1..u64::MAX, 0..size, size..u64::MAX, 5..5];
        for range in ranges {
            only_what_is_touched_comes(&parties, &file, range).await;
        }
    }
}

/// A block that stands in a file twice may be wanted for other bytes each time, and comes once.
#[tokio::test(flavor = "multi_thread")]
async fn parts_that_repeat_are_followed_wherever_the_range_meets_them() {
    let file = File::of_three_levels();
    let parties = Parties::new(154, file.blocks.clone()).await;
    // The end of the first node, and the beginning of it where it stands again.
    only_what_is_touched_comes(&parties, &file, 9_500..21_500).await;
    // The leaf that stands twice, once at the end of the second node.
    only_what_is_touched_comes(&parties, &file, 20_500..20_600).await;
    // What is the node's own.
    only_what_is_touched_comes(&parties, &file, 10_001..10_003).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_of_a_range_is_not_fetched_again() {
    let file = File::new(3_000_000, Profile::Iptl);
    let parties = Parties::new(156, file.blocks.clone()).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let first = parties.fetch(&store, &file.root, 0..1_000_000).await.unwrap();
    let second = parties.fetch(&store, &file.root, 500_000..2_000_000).await.unwrap();
    assert!(first.bytes_fetched >= 1_000_000 && second.bytes_fetched < second.bytes, "{second:?}");
    assert_eq!(first.bytes_fetched + second.bytes_fetched, store.usage().await.unwrap().bytes);
    let whole = parties.fetch(&store, &file.root, 0..u64::MAX).await.unwrap();
    assert_eq!(whole.blocks, file.blocks.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_has_no_bytes() {
    let dag = Dag::new(2, 2, 100);
    let nested = node(b"", &[(*dag.cid(), 1000)]);
    let parties = Parties::new(158, [dag.blocks(), vec![nested.clone()]].concat()).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let error = parties.fetch(&store, dag.cid(), 0..10).await.unwrap_err();
    assert!(matches!(&error, FetchError::NotAFile { cid, .. } if cid == dag.cid()), "{error}");
    let error = parties.fetch(&store, nested.cid(), 0..10).await.unwrap_err();
    assert!(matches!(&error, FetchError::Damaged { cid, .. } if cid == dag.cid()), "{error}");
}

/// A file that is larger than the room there is can be had in part; one whose sizes do not add up cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_more_than_fits_is_fetched_and_sizes_that_lie_are_refused() {
    let leaf = Block::new(Codec::Raw, noise(1000));
    let huge = node(b"", &[(*leaf.cid(), 1000), (*parent(&[]).cid(), 1 << 50)]);
    let lying = node(b"", &[(*leaf.cid(), 2000)]);
    let parties = Parties::new(160, vec![leaf.clone(), huge.clone(), lying.clone()]).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let from = vec![(parties.origin.links.peer().clone(), vec![parties.origin.addr().await])];
    let fetcher =
        Fetcher::new(store.clone(), parties.asker.links.clone()).with_room(Arc::new(|stored| 10_000 + stored));
    let wanted = |root: &Cid| Wanted { from: from.clone(), ..wanted(root) };
    let report = fetcher.fetch_range(&wanted(huge.cid()), 10..1000, |_| {}).await.unwrap();
    assert_eq!(report.blocks, 2);
    assert!(read_range(&*store, huge.cid(), 10..1000).await.unwrap()[..] == leaf.data()[10..]);
    let error = fetcher.fetch_range(&wanted(huge.cid()), 0..1 << 40, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { claimed, .. } if claimed == 1 << 40), "{error}");
    fetcher.fetch_range(&wanted(lying.cid()), 0..10, |_| {}).await.unwrap();
    let error = read_range(&*store, lying.cid(), 0..10).await.unwrap_err();
    assert!(matches!(error, ExportError::UnixFs { .. }), "{error}");
}

/// By Bitswap as well, and as a command line asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_file_under_another_hash_comes_by_bitswap() {
    let (provider, asker) = (bystander().await, bystander().await);
    let file = File::new(3_000_000, Profile::UnixFsV0);
    provider.put(&file.blocks).await;
    let peers = vec![provider.addr().await];
    let request = Request::FetchRange { root: file.root, range: 300_000..600_000, peers, timeout_ms: 60_000 };
    let Some(Reply::Fetched(report)) = asker.ask(request).await.unwrap().pop() else { panic!("no report") };
    // Leaves have 256 KiB: the second and the third hold it.
    assert_eq!(report.blocks, 3);
    for (position, block) in file.blocks.iter().enumerate() {
        let is_wanted = file.touched(&(300_000..600_000)).contains(block.cid().hash());
        let is_here = asker.ask(Request::Blocks { cids: vec![*block.cid()] }).await.is_ok();
        assert_eq!(is_here, is_wanted, "block {position}");
    }
}
