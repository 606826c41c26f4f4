//! Peers that answer with something else than what was asked for, without end, or hardly at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_bitswap::{Frames, Message, PROTOCOL, Payload, frame};
use iptl_dag::{Block, Cid};
use iptl_node::fetch::{Fetcher, Patience, Wanted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::PATIENT_MS;
use crate::lab::{
    Dag, Stranger, answering, bystander, is_logged, listen_to_log, node, parent, serve, serve_by, store_of, wanted,
    within,
};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_something_else_are_refused_and_the_honest_serve_the_rest() {
    listen_to_log();
    let wrong = [&100_u64.to_le_bytes()[..], &[9; 100]].concat();
    // Not only what does not hash to what was asked for: what is larger than any block is refused before it comes.
    let oversized = (iptl_dag::MAX_BLOCK_SIZE as u64 + 1).to_le_bytes().to_vec();
    for (seed, answer, why) in [(130, wrong, "does not hash to it"), (131, oversized, "no block is larger than")] {
        let (honest, asker) = (bystander().await, bystander().await);
        let liar = answering(seed, answer).await;
        // Two batches on one level: both are asked, whatever the order of their names.
        let dag = Dag::new(2, 40, 1000);
        honest.put(&dag.blocks()).await;
        let peers = vec![liar.addr().await, honest.addr().await];
        let report = asker.fetch(dag.cid(), peers, PATIENT_MS).await.0.unwrap();
        assert_eq!(report.providers, [(honest.peer(), dag.bytes())]);
        assert_eq!(report.dropped.len(), 1);
        is_logged(liar.links.peer(), why).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_something_else_are_refused_by_bitswap_too() {
    listen_to_log();
    let sha = |data: Vec<u8>| Block::hashed(0x12, data).unwrap();
    let leaves: Vec<Block> = (0..30).map(|n| sha(vec![n; 900])).collect();
    let node_of = parent(&leaves);
    let root = sha(node_of.data().to_vec());
    let root = root.named(Cid::new_v1(node_of.cid().codec(), *root.cid().hash())).unwrap();
    let (honest, asker) = (bystander().await, bystander().await);
    honest.put(&[vec![root.clone()], leaves].concat()).await;

    let liar = Stranger::new(132).await;
    let mut incoming = liar.net.accept(PROTOCOL, 4).await.unwrap();
    let net = liar.net.clone();
    let lying = tokio::spawn(async move {
        while let Some((peer, mut stream)) = incoming.next().await {
            let net = net.clone();
            tokio::spawn(async move {
                let mut out = net.open(&peer, PROTOCOL).await.unwrap();
                let mut frames = Frames::default();
                loop {
                    while let Some(bytes) = frames.pop().unwrap() {
                        let wants = Message::decode(&bytes).unwrap().entries;
                        let lie = |cid: &Cid, number| Payload::new(cid, format!("{cid} {number}").into_bytes().into());
                        let lies = |cid| (0..8).map(move |number| lie(cid, number));
                        let payload = wants.iter().flat_map(|want| lies(&want.cid)).collect();
                        let lies = frame(&Message { payload, ..Message::default() });
                        // Whoever is lied to hangs up.
                        if out.write_all(&lies).await.is_err() || out.flush().await.is_err() {
                            return;
                        }
                    }
                    if !matches!(stream.read_buf(frames.buffer()).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    let peers = vec![liar.addr().await, honest.addr().await];
    let report = asker.fetch(root.cid(), peers, PATIENT_MS).await.0.unwrap();
    assert_eq!(report.blocks, 31);
    assert_eq!(report.providers.iter().map(|(peer, _)| peer).collect::<Vec<_>>(), [&honest.peer()]);
    is_logged(liar.links.peer(), "shut out").await;
    lying.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drips_is_dropped_and_named() {
    listen_to_log();
    let dag = Dag::new(1, 190, 1000);
    let (drip, honest, asker) = (Stranger::new(100).await, Stranger::new(101).await, Stranger::new(102).await);
    let _serving = serve(&honest, store_of(dag.blocks()).await).await;
    let dripping = serve_by(&drip, dag.blocks(), |mut stream, answer| async move {
        // A block now and then, always sooner than it would be given up for silence.
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        for piece in answer.chunks(1100) {
            pause.tick().await;
            if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    })
    .await;
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
    is_logged(drip.links.peer(), "too slow").await;
    dripping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_last_block_is_not_read() {
    let asker = bystander().await;
    let dag = Dag::new(1, 3, 500);
    let endless = Stranger::new(44).await;
    let taken = Arc::new(AtomicU64::new(0));
    let counted = taken.clone();
    let serving = serve_by(&endless, dag.blocks(), move |mut stream, answer| {
        let counted = counted.clone();
        async move {
            stream.write_all(&answer).await.unwrap();
            while stream.write_all(&[7; 64 << 10]).await.is_ok() && stream.flush().await.is_ok() {
                counted.fetch_add(64 << 10, Ordering::Relaxed);
            }
        }
    })
    .await;
    let (report, _) = asker.fetch(dag.cid(), vec![endless.addr().await], PATIENT_MS).await;
    assert_eq!(report.unwrap().bytes, dag.bytes());
    serving.abort();
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken < 64 << 20, "{taken} bytes were taken behind answers");
}

/// A batch is given up after 20 s, and that is what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_never_answers_keeps_nobody_from_another_and_is_named() {
    listen_to_log();
    let asker = bystander().await;
    // Two batches on one level: both are asked, whatever the order of their names.
    let dag = Dag::new(2, 40, 1000);
    let (silent, honest) = (Stranger::new(45).await, node().await);
    honest.put(&dag.blocks()).await;
    let mut incoming = silent.blob_streams().await;
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(stream) = incoming.next().await {
            held.push(stream);
        }
    });
    let peers = vec![silent.addr().await, honest.addr().await];
    let fetching = asker.fetch(dag.cid(), peers, PATIENT_MS);
    let (report, _) = tokio::time::timeout(Duration::from_secs(120), fetching).await.expect("it is given up");
    assert_eq!(report.unwrap().providers, [(honest.peer(), dag.bytes())]);
    is_logged(silent.links.peer(), "does not answer").await;
    holding.abort();
}
