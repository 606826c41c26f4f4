//! DAGs of many small blocks: what each costs of memory while they are fetched, and in how few requests they come.

use std::sync::Arc;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_iroh::Provider;
use iptl_dag::Codec;
use iptl_node::fetch::{Fetcher, Wanted};
use iptl_node::links::Links;
use iptl_trust::Keypair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::lab::{Dag, Stranger, store_of, wanted, within};
use crate::memory::most_held;

/// The whole is here, so that everything happens on this thread: what is walked is as wide as what comes over the network.
#[tokio::test]
async fn memory_of_a_fetch_hardly_grows_with_the_width_of_its_dag() {
    let mut held_by = Vec::new();
    for nodes in [20, 120] {
        let dag = Dag::new(nodes, 1000, 8);
        let links = Links::new(Keypair::from_seed(&[1; 32]).peer().clone(), None);
        let fetcher = Fetcher::new(store_of(dag.blocks()).await, links);
        let wanted = wanted(dag.cid());
        let (report, held) = most_held(fetcher.fetch(&wanted, |_| {})).await;
        assert_eq!(report.unwrap().blocks, dag.blocks().len() as u64);
        println!("{nodes}000 leaves: {held} bytes");
        held_by.push(held);
    }
    // 16 bytes for each are kept, in a table that is never full.
    assert!(held_by[1] < held_by[0] + 100_000 * 24, "{held_by:?} bytes for 20,000 and 120,000 leaves");
    assert!(held_by[0] < 6 << 20, "{} bytes for 20,000 leaves", held_by[0]);
}

/// However little is looked ahead for, what is asked for together is as much as a request may hold.
#[tokio::test(flavor = "multi_thread")]
async fn wide_dag_comes_in_requests_that_are_full() {
    let dag = Dag::new(60, 1000, 8);
    let (origin, asker) = (Stranger::new(160).await, Stranger::new(161).await);
    let mut incoming = origin.blob_streams().await;
    let provider = Provider::over(store_of(dag.blocks()).await);
    let (asked, mut heard) = mpsc::unbounded_channel();
    let _serving = tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let (provider, asked) = (provider.clone(), asked.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await.unwrap();
                // Some bytes around 32 of each hash.
                asked.send(request.len() / 32).unwrap();
                let (mut pipe, end) = tokio::io::duplex(1 << 20);
                pipe.write_all(&request).await.unwrap();
                pipe.shutdown().await.unwrap();
                let sending = async {
                    tokio::io::copy(&mut pipe, &mut stream).await.unwrap();
                    stream.shutdown().await.unwrap();
                };
                let (served, ()) = tokio::join!(provider.serve(end), sending);
                served.unwrap();
            });
        }
    });
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let from = vec![(origin.links.peer().clone(), vec![origin.addr().await])];
    let fetcher = Fetcher::new(store.clone(), asker.links.clone());
    let wanted = Wanted { from, ..wanted(dag.cid()) };
    let mut most_known = 0;
    let fetching = fetcher.fetch(&wanted, |now| most_known = most_known.max(now.wanted));
    let report = within("the whole", fetching).await.unwrap();
    assert_eq!((report.blocks, report.bytes_fetched), (dag.blocks().len() as u64, dag.bytes()));
    assert_eq!(most_known, report.blocks, "what is told to be wanted is what came");
    let leaves = store.list().await.unwrap().len() - dag.nodes.len() - 1;
    assert_eq!((leaves, Codec::of(dag.leaves[0].cid())), (60_000, Some(Codec::Raw)));
    let mut counts = Vec::new();
    while let Ok(count) = heard.try_recv() {
        counts.push(count);
    }
    // The root, all nodes together, and leaves: as soon as some came, their size is known, and 1024 fit.
    assert!(counts.len() < 60_000 / 1024 * 3 / 2, "{} requests: {counts:?}", counts.len());
    assert_eq!(counts[1], 60, "{counts:?}");
}
