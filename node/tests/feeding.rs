//! Fetchers among themselves: many that want the same at once.

use std::sync::Arc;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_node::fetch::{Fetcher, Wanted};

use crate::lab::{Dag, Stranger, serve, store_of, wanted, within};

/// Lablets that want one artifact at once.
const LABLETS: u8 = 8;

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
async fn fellows_of_whom_none_begins_hold_nobody_up() {
    let dag = Dag::new(4, 100, 10_000);
    let sent = fetched_at_once(&dag, 100, LABLETS - 1).await;
    assert_eq!(sent, dag.bytes());
}
