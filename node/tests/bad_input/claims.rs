//! DAGs that claim to be larger, longer or deeper than anything that is accepted: refused, with a word in the log about who
//! gave them, while what an honest peer has is fetched beside.

use std::sync::Arc;

use iptl_artifacts::export::{ExportError, export_path};
use iptl_artifacts::{BlobStore, MemStore};
use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::unixfs::{DirectoryBuilder, Entry, UnixFsError};
use iptl_dag::walk::Limits;
use iptl_dag::{Block, Cid, Codec, Ipld, codec};
use iptl_node::fetch::{FetchError, Fetcher, Wanted};
use iptl_wire::control::FetchReport;

use super::unheard_of;
use crate::lab::{Dag, Stranger, is_logged, listen_to_log, parent, serve, store_of, wanted, within};

#[tokio::test(flavor = "multi_thread")]
async fn root_that_claims_more_than_there_is_room_for_is_refused_before_anything_below_it_comes() {
    let leaf = Block::new(Codec::Raw, "small");
    let mut blocks = vec![leaf.clone()];
    let mut directory = DirectoryBuilder::new();
    let huge = Entry { cid: *leaf.cid(), total_size: 1_000_000_000_000, content_size: 1_000_000_000_000 };
    directory.insert("huge", huge).unwrap();
    let root = directory.finish(&mut blocks).unwrap().cid;
    let room = |fetcher: Fetcher| fetcher.with_room(Arc::new(|stored| 100_000_000 + stored));
    let fetched = fetch_beside_honest(110, blocks, &root, room).await;
    let error = fetched.refused("there is room for").await;
    assert!(matches!(error, FetchError::NoRoom { claimed: 1_000_000_000_000, .. }), "{error}");
    assert_eq!(fetched.store.usage().await.unwrap().blocks, 1, "only the root came");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_nothing_ends_where_the_room_ends() {
    let dag = Dag::new(4, 100, 10_000);
    let room = |fetcher: Fetcher| fetcher.with_room(Arc::new(|stored| 500_000 + stored));
    let fetched = fetch_beside_honest(113, dag.blocks(), dag.cid(), room).await;
    let error = fetched.refused("there is room for 500000").await;
    assert!(matches!(error, FetchError::NoRoom { room: 500_000, .. }), "{error}");
    let stored = fetched.store.usage().await.unwrap().bytes;
    assert!(stored < 500_000 + 4 * 64 * 11_000, "{stored} bytes: what was under way, and no more");
}

/// A few nodes can name more blocks than there are in the world; each name costs who is told of it some memory.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_name_more_blocks_than_are_accepted_are_refused_before_those_are_asked_for() {
    let claiming = |first: usize| {
        let links = (first..first + 5_000).map(|number| Ipld::Link(unheard_of(number)));
        codec::to_block(&Ipld::List(links.collect()))
    };
    let nodes: Vec<Block> = (0..40).map(|number| claiming(number * 5_000)).collect();
    let root = parent(&nodes);
    let limits = Limits { blocks: 50_000, ..Limits::default() };
    let blocks = [vec![root.clone()], nodes].concat();
    let fetched = fetch_beside_honest(116, blocks, root.cid(), |fetcher| fetcher.within(limits)).await;
    let error = fetched.refused("more than 50000 blocks").await;
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
    let stored = fetched.store.usage().await.unwrap().blocks;
    assert!(stored <= 41, "{stored} blocks came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_goes_deeper_than_is_accepted_is_left_where_it_does() {
    let mut chain = vec![Block::new(Codec::Raw, "bottom")];
    for _ in 0..400 {
        chain.push(parent(std::slice::from_ref(chain.last().unwrap())));
    }
    let root = *chain.last().unwrap().cid();
    let limits = Limits { depth: 50, ..Limits::default() };
    let fetched = fetch_beside_honest(119, chain, &root, |fetcher| fetcher.within(limits)).await;
    let error = fetched.refused("or 50 levels").await;
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
    assert_eq!(fetched.store.usage().await.unwrap().blocks, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_none_of_its_codec_is_refused() {
    let broken = Block::new(Codec::DagCbor, vec![0x9f, 0xff]);
    let root = parent(std::slice::from_ref(&broken));
    let fetched = fetch_beside_honest(122, vec![root.clone(), broken.clone()], root.cid(), |fetcher| fetcher).await;
    let error = fetched.refused("is damaged").await;
    assert!(matches!(&error, FetchError::Damaged { cid, .. } if cid == broken.cid()), "{error}");
}

/// Shards of a directory that stand for 256^7 names, or never end, are few blocks: as many come, and none is written out.
#[tokio::test(flavor = "multi_thread")]
async fn shards_that_stand_for_more_than_all_disks_hold_cost_their_blocks_alone() {
    for (seed, levels) in [(125, 3), (133, 40)] {
        let file = Block::new(Codec::Raw, "a file");
        let mut shards = vec![shard(&["00name"], *file.cid()), file];
        shards.rotate_left(1);
        for _ in 0..levels {
            let below = *shards.last().unwrap().cid();
            let slots: Vec<String> = (0..256).map(|slot| format!("{slot:02X}")).collect();
            shards.push(shard(&slots, below));
        }
        let root = *shards.last().unwrap().cid();
        let fetched = fetch_beside_honest(seed, shards, &root, |fetcher| fetcher).await;
        assert_eq!(fetched.report.as_ref().unwrap().blocks, levels + 2);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let writing = export_path(&*fetched.store, &root, &out);
        let error = within("the end of an export", writing).await.unwrap_err();
        assert!(matches!(&error, ExportError::UnixFs { source: UnixFsError::Shard { .. }, .. }), "{error:?}");
    }
}

/// Makes a node of a sharded directory in which every name leads to the same.
fn shard(names: &[impl AsRef<str>], below: Cid) -> Block {
    let link = |name: &str| PbLink { cid: below, name: Some(name.to_owned()), tsize: Some(1) };
    let mut slots = vec![0; 32];
    for name in names {
        let slot = usize::from_str_radix(&name.as_ref()[..2], 16).unwrap();
        slots[31 - slot / 8] |= 1 << (slot % 8);
    }
    let shard =
        PbUnixFs { data: Some(slots), hash_type: Some(0x22), fanout: Some(256), ..PbUnixFs::new(PbKind::HamtShard) };
    let links = names.iter().map(|name| link(name.as_ref())).collect();
    Block::new(Codec::DagPb, PbNode { links, data: Some(shard.encode()) }.encode())
}

/// What came of a DAG that a hostile peer gave.
struct Fetched {
    report: Result<FetchReport, FetchError>,
    store: Arc<dyn BlobStore>,
    hostile: Stranger,
}

impl Fetched {
    /// Asserts that it was refused, with a word in the log about who gave it; returns why.
    async fn refused(&self, why: &str) -> &FetchError {
        is_logged(self.hostile.links.peer(), "refused a DAG").await;
        is_logged(self.hostile.links.peer(), why).await;
        self.report.as_ref().unwrap_err()
    }
}

/// Fetches a DAG that a hostile peer has, and meanwhile another one that an honest peer has, which comes whole.
async fn fetch_beside_honest(
    seed: u8,
    blocks: Vec<Block>,
    root: &Cid,
    bounded: impl Fn(Fetcher) -> Fetcher,
) -> Fetched {
    listen_to_log();
    let (hostile, honest, asker) =
        (Stranger::new(seed).await, Stranger::new(seed + 1).await, Stranger::new(seed + 2).await);
    let _serving = serve(&hostile, store_of(blocks).await).await;
    let good = Dag::new(3, 40, 1000);
    let _serving_too = serve(&honest, store_of(good.blocks()).await).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let fetcher = bounded(Fetcher::new(store.clone(), asker.links.clone()));
    let other = bounded(Fetcher::new(Arc::new(MemStore::default()), asker.links.clone()));
    let from = vec![(hostile.links.peer().clone(), vec![hostile.addr().await])];
    let from_honest = vec![(honest.links.peer().clone(), vec![honest.addr().await])];
    let (bad, beside) = (Wanted { from, ..wanted(root) }, Wanted { from: from_honest, ..wanted(good.cid()) });
    let both = async { tokio::join!(fetcher.fetch(&bad, |_| {}), other.fetch(&beside, |_| {})) };
    let (report, got) = within("both", both).await;
    assert_eq!(got.unwrap().bytes_fetched, good.bytes());
    Fetched { report, store, hostile }
}
