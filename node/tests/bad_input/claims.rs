//! DAGs that claim to be larger, longer or deeper than anything that is accepted.

use std::sync::Arc;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_dag::unixfs::{DirectoryBuilder, Entry};
use iptl_dag::walk::Limits;
use iptl_dag::{Block, Cid, Codec, Ipld, codec};
use iptl_node::fetch::{FetchError, Fetcher, Wanted};

use super::unheard_of;
use crate::lab::{Dag, Stranger, parent, serve, store_of, wanted};

#[tokio::test(flavor = "multi_thread")]
async fn root_that_claims_more_than_there_is_room_for_is_refused_before_anything_below_it_comes() {
    let leaf = Block::new(Codec::Raw, "small");
    let mut blocks = vec![leaf.clone()];
    let mut directory = DirectoryBuilder::new();
    let huge = Entry { cid: *leaf.cid(), total_size: 1_000_000_000_000, content_size: 1_000_000_000_000 };
    directory.insert("huge", huge).unwrap();
    let root = directory.finish(&mut blocks).unwrap().cid;
    let (origin, asker) = (Stranger::new(110).await, Stranger::new(111).await);
    let _serving = serve(&origin, store_of(blocks).await).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let fetcher = Fetcher::new(store.clone(), asker.links.clone()).with_room(Arc::new(|stored| 100_000_000 + stored));
    let from = vec![(origin.links.peer().clone(), vec![origin.addr().await])];
    let error = fetcher.fetch(&Wanted { from, ..wanted(&root) }, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { claimed: 1_000_000_000_000, .. }), "{error}");
    assert_eq!(store.usage().await.unwrap().blocks, 1, "only the root came");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_nothing_ends_where_the_room_ends() {
    let dag = Dag::new(4, 100, 10_000);
    let (origin, asker) = (Stranger::new(112).await, Stranger::new(113).await);
    let _serving = serve(&origin, store_of(dag.blocks()).await).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let fetcher = Fetcher::new(store.clone(), asker.links.clone()).with_room(Arc::new(|stored| 500_000 + stored));
    let from = vec![(origin.links.peer().clone(), vec![origin.addr().await])];
    let error = fetcher.fetch(&Wanted { from, ..wanted(dag.cid()) }, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { room: 500_000, .. }), "{error}");
    let stored = store.usage().await.unwrap().bytes;
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
    let (error, stored) = refused([vec![root.clone()], nodes].concat(), root.cid(), limits).await;
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
    assert!(stored <= 41, "{stored} blocks came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_goes_deeper_than_is_accepted_is_left_where_it_does() {
    let mut chain = vec![Block::new(Codec::Raw, "bottom")];
    for _ in 0..400 {
        chain.push(parent(std::slice::from_ref(chain.last().unwrap())));
    }
    let root = *chain.last().unwrap().cid();
    let (error, stored) = refused(chain, &root, Limits { depth: 50, ..Limits::default() }).await;
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
    assert_eq!(stored, 51);
}

/// Fetches what must be refused within limits; returns why, and how many blocks came.
async fn refused(blocks: Vec<Block>, root: &Cid, limits: Limits) -> (FetchError, u64) {
    let (origin, asker) = (Stranger::new(114).await, Stranger::new(115).await);
    let _serving = serve(&origin, store_of(blocks).await).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let fetcher = Fetcher::new(store.clone(), asker.links.clone()).within(limits);
    let from = vec![(origin.links.peer().clone(), vec![origin.addr().await])];
    let error = fetcher.fetch(&Wanted { from, ..wanted(root) }, |_| {}).await.unwrap_err();
    (error, store.usage().await.unwrap().blocks)
}
