//! Peers that ask without end, say nothing, or go on for ever: bounded, while the honest ones are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_bitswap::{Ask, Entry, Message, PROTOCOL, frame};
use iptl_dag::{Block, Cid, Codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Dag, Stranger, bystander, node, store_of, within};

/// Long enough for everything that succeeds.
const PATIENT_MS: u64 = 60_000;

/// Streams that a hostile peer holds open: more than are answered at a time, and more than have a place in the queue.
const STREAMS: usize = 300;

/// Wants without end, by Bitswap.
const WANTS: usize = 80_000;

fn unheard_of(number: usize) -> Cid {
    *Block::new(Codec::Raw, format!("unheard of {number}")).cid()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_honest_are_served_while_others_ask_without_end() {
    let keeper = node().await;
    let dag = Dag::new(3, 40, 10_000);
    keeper.put(&dag.blocks()).await;

    // One opens streams and says nothing on them.
    let silent = Stranger::new(41).await;
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(silent.open(&keeper, iptl_artifacts_iroh::PROTOCOL).await);
    }
    // One sends a request that has no end. It is hung up on once the request is longer than any may be.
    let endless = Stranger::new(42).await;
    let mut stream = endless.open(&keeper, iptl_artifacts_iroh::PROTOCOL).await;
    let sending = tokio::spawn(async move {
        let part = vec![9; 64 << 10];
        let mut sent = 0_u64;
        while stream.write_all(&part).await.is_ok() && stream.flush().await.is_ok() {
            sent += part.len() as u64;
        }
        sent
    });
    // One wants more by Bitswap than there is: old wants make room for new ones, and none is ever answered.
    let greedy = Stranger::new(43).await;
    greedy.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    let mut wants = greedy.net.open(&keeper.peer(), PROTOCOL).await.unwrap();
    let wanting = tokio::spawn(async move {
        for start in (0..WANTS).step_by(2_000) {
            let entry = |n| Entry { cid: unheard_of(n), priority: 1, ask: Ask::Block, send_dont_have: false };
            let message = Message { entries: (start..start + 2_000).map(entry).collect(), ..Message::default() };
            wants.write_all(&frame(&message)).await.unwrap();
            wants.flush().await.unwrap();
        }
        wants
    });

    let honest = bystander().await;
    let (report, _) = honest.fetch(dag.cid(), vec![keeper.addr().await], PATIENT_MS).await;
    assert_eq!(report.unwrap().bytes_fetched, dag.bytes());
    let sent = within("the end of an endless request", sending).await.unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken of a request");
    let _open = within("all wants to be taken in", wanting).await.unwrap();
    let again = bystander().await;
    again.fetch(dag.cid(), vec![keeper.addr().await], PATIENT_MS).await.0.unwrap();
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_last_block_is_not_read() {
    let asker = bystander().await;
    let dag = Dag::new(1, 3, 500);
    let endless = Stranger::new(44).await;
    let mut incoming = endless.blob_streams().await;
    let provider = iptl_artifacts_iroh::Provider::over(store_of(dag.blocks()).await);
    let taken = Arc::new(AtomicU64::new(0));
    let counted = taken.clone();
    let serving = tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let (provider, counted) = (provider.clone(), counted.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await.unwrap();
                let (mut pipe, end) = tokio::io::duplex(1 << 20);
                pipe.write_all(&request).await.unwrap();
                pipe.shutdown().await.unwrap();
                provider.serve(end).await.unwrap();
                let mut answer = Vec::new();
                pipe.read_to_end(&mut answer).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                while stream.write_all(&[7; 64 << 10]).await.is_ok() && stream.flush().await.is_ok() {
                    counted.fetch_add(64 << 10, Ordering::Relaxed);
                }
            });
        }
    });
    let (report, _) = asker.fetch(dag.cid(), vec![endless.addr().await], PATIENT_MS).await;
    assert_eq!(report.unwrap().bytes, dag.bytes());
    serving.abort();
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken < 64 << 20, "{taken} bytes were taken behind answers");
}

/// A batch is given up after 20 s, and that is what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_never_answers_keeps_nobody_from_another() {
    let asker = bystander().await;
    let dag = Dag::new(1, 30, 1000);
    let (silent, honest) = (Stranger::new(45).await, node().await);
    honest.put(&dag.blocks()).await;
    let mut incoming = silent.blob_streams().await;
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(stream) = incoming.next().await {
            held.push(stream);
        }
    });
    // It is asked for something at first, and given up for what the other one has.
    let peers = vec![silent.addr().await, honest.addr().await];
    let fetching = asker.fetch(dag.cid(), peers, PATIENT_MS);
    let (report, _) = tokio::time::timeout(Duration::from_secs(50), fetching).await.expect("it is given up");
    assert_eq!(report.unwrap().providers, [(honest.peer(), dag.bytes())]);
    holding.abort();
}
