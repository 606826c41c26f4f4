//! Fetchers among themselves: many that want the same, one that drips, and roots that claim more than there is room for.

use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_iroh::Provider;
use iptl_dag::unixfs::{DirectoryBuilder, Entry};
use iptl_dag::{Block, Cid, Codec};
use iptl_node::fetch::{FetchError, Fetcher, Patience, Wanted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Dag, Stranger, store_of, within};

/// Lablets that want one artifact at once.
const LABLETS: u8 = 8;

/// Answers requests for blobs out of a store.
async fn serve(stranger: &Stranger, store: Arc<dyn BlobStore>) -> tokio::task::JoinHandle<()> {
    let mut incoming = stranger.blob_streams().await;
    let provider = Provider::over(store);
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            let provider = provider.clone();
            // Whoever asked sees it when a stream breaks.
            tokio::spawn(async move { provider.serve(stream).await });
        }
    })
}

fn wanted(root: &Cid) -> Wanted {
    Wanted { root: *root, from: Vec::new(), fellows: Vec::new(), timeout: Duration::from_secs(30), shallow: false }
}

/// Lets lablets fetch one DAG at once, of whom some know each other as fellows and never begin; returns the bytes that
/// the origin sent.
async fn fetched_at_once(dag: &Dag, seed: u8, absent: u8) -> u64 {
    let origin = Stranger::new(seed).await;
    let _serving = serve(&origin, store_of(dag.blocks()).await).await;
    let mut lablets = Vec::new();
    for number in 1..=LABLETS {
        let stranger = Stranger::new(seed + number).await;
        let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
        serve(&stranger, store.clone()).await;
        lablets.push((stranger, store));
    }
    let mut all = Vec::new();
    for (lablet, _) in &lablets {
        all.push((lablet.links.peer().clone(), vec![lablet.addr().await]));
    }
    let from_origin = (origin.links.peer().clone(), vec![origin.addr().await]);
    let fetches = lablets.iter().skip(absent.into()).map(|(lablet, store)| {
        let fellows: Vec<_> = all.iter().filter(|(peer, _)| peer != lablet.links.peer()).cloned().collect();
        let wanted = Wanted {
            from: [vec![from_origin.clone()], fellows.clone()].concat(),
            fellows: fellows.into_iter().map(|(peer, _)| peer).collect(),
            ..wanted(dag.cid())
        };
        let fetcher = Fetcher::new(store.clone(), lablet.links.clone());
        async move { fetcher.fetch(&wanted, |_| {}).await.unwrap() }
    });
    let reports = within("all lablets", futures::future::join_all(fetches)).await;
    let sent = |report: &iptl_wire::control::FetchReport| {
        assert_eq!((report.bytes, report.bytes_fetched), (dag.bytes(), dag.bytes()));
        assert_eq!(report.dropped, []);
        let of_origin = report.providers.iter().filter(|(peer, _)| peer == origin.links.peer());
        of_origin.map(|(_, bytes)| bytes).sum::<u64>()
    };
    reports.iter().map(sent).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_of_an_artifact_that_eight_lablets_want_sends_about_one_copy() {
    let dag = Dag::new(8, 200, 10_000);
    let sent = fetched_at_once(&dag, 60, 0).await;
    assert!(sent >= dag.bytes() && sent * 2 <= dag.bytes() * 3, "{sent} of {} bytes", dag.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn fellow_that_never_begins_holds_nobody_up() {
    let dag = Dag::new(4, 100, 10_000);
    let sent = fetched_at_once(&dag, 80, 1).await;
    assert!(sent >= dag.bytes() && sent <= dag.bytes() * 3, "{sent} of {} bytes", dag.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_that_drips_is_dropped_and_named() {
    let dag = Dag::new(1, 190, 1000);
    let (drip, honest, asker) = (Stranger::new(100).await, Stranger::new(101).await, Stranger::new(102).await);
    let _serving = serve(&honest, store_of(dag.blocks()).await).await;
    let mut incoming = drip.blob_streams().await;
    let provider = Provider::over(store_of(dag.blocks()).await);
    let dripping = tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let provider = provider.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await.unwrap();
                let (mut pipe, end) = tokio::io::duplex(1 << 20);
                pipe.write_all(&request).await.unwrap();
                pipe.shutdown().await.unwrap();
                provider.serve(end).await.unwrap();
                let mut answer = Vec::new();
                pipe.read_to_end(&mut answer).await.unwrap();
                // A block now and then, always sooner than it would be given up for silence.
                let mut pause = tokio::time::interval(Duration::from_millis(50));
                for piece in answer.chunks(1100) {
                    pause.tick().await;
                    if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let patience = Patience { stall: Duration::from_millis(400), least_bytes: 40_000, grace: 2 };
    let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
    let fetcher = Fetcher::new(store, asker.links.clone()).with_patience(patience);
    let mut from = Vec::new();
    for stranger in [&drip, &honest] {
        from.push((stranger.links.peer().clone(), vec![stranger.addr().await]));
    }
    // Three batches, so that each of them is asked for one at least.
    let report = within("the whole", fetcher.fetch(&Wanted { from, ..wanted(dag.cid()) }, |_| {})).await.unwrap();
    assert_eq!(report.bytes, dag.bytes());
    let [(peer, reason)] = &report.dropped[..] else { panic!("{:?}", report.dropped) };
    assert_eq!(peer, drip.links.peer());
    assert!(reason.starts_with("sent ") && reason.contains(" bytes in "), "{reason}");
    let dripped = report.providers.iter().find(|(peer, _)| peer == drip.links.peer()).map_or(0, |(_, bytes)| *bytes);
    assert!(dripped < dag.bytes() / 3, "{dripped} of {} bytes dripped", dag.bytes());
    dripping.abort();
}

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
