//! Cuts at any byte: what came stays, and nothing of it comes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iptl_artifacts::{BlobStore, MemStore};
use iptl_node::fetch::{FetchError, Fetcher, Wanted};
use tokio::io::AsyncWriteExt as _;

use crate::lab::{Dag, Stranger, serve_by, wanted, within};

/// Bytes of a leaf.
const LEAF: usize = 10_000;

/// Bytes that a stream has at most before it is cut: a few leaves.
const MOST: u64 = 61_001;

/// What a provider did whose streams are all cut.
#[derive(Default)]
struct Cut {
    streams: AtomicU64,
    bytes: AtomicU64,
}

/// Answers out of a store, and ends every answer after another number of bytes.
async fn serve_in_parts(stranger: &Stranger, dag: &Dag) -> Arc<Cut> {
    let cut = Arc::<Cut>::default();
    let counted = cut.clone();
    let _serving = serve_by(stranger, dag.blocks(), move |mut stream, mut answer| {
        let cut = counted.clone();
        async move {
            let number = cut.streams.fetch_add(1, Ordering::Relaxed) + 1;
            answer.truncate((number * 17_077 % MOST) as usize);
            cut.bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    })
    .await;
    cut
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_cut_again_and_again_gets_no_block_twice() {
    let dag = Dag::new(4, 40, LEAF);
    let (origin, asker) = (Stranger::new(140).await, Stranger::new(141).await);
    let cut = serve_in_parts(&origin, &dag).await;
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let from = vec![(origin.links.peer().clone(), vec![origin.addr().await])];
    let wanted = Wanted { from, ..wanted(dag.cid()) };
    let fetching = async {
        let mut fetched = 0;
        loop {
            // A node that was killed would begin like this too: all it has is its store.
            let fetcher = Fetcher::new(store.clone(), asker.links.clone());
            let mut before = 0;
            let ended = fetcher.fetch(&wanted, |now| before = now.bytes_fetched).await;
            match ended {
                Ok(report) => return fetched + report.bytes_fetched,
                Err(FetchError::NoProvider { .. }) => fetched += before,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let fetched = within("the whole", fetching).await;
    assert_eq!(fetched, dag.bytes(), "every block came once");
    assert_eq!(store.usage().await.unwrap().bytes, dag.bytes());
    let (streams, bytes) = (cut.streams.load(Ordering::Relaxed), cut.bytes.load(Ordering::Relaxed));
    assert!(streams > 20, "{streams} streams were cut");
    // Of each cut, the part of one block that came in vain; of each block, its size before it.
    let most = dag.bytes() + streams * (LEAF as u64 + 8) + dag.blocks().len() as u64 * 8;
    assert!(bytes <= most, "{bytes} bytes in {streams} streams for a DAG of {}", dag.bytes());
}
