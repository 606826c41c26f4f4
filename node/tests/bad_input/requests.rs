//! Peers that ask without end, or for nothing: bounded, named, and nobody else waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iptl_artifacts_iroh::get_many;
use iptl_bitswap::{Ask, Entry, Message, PROTOCOL, Payload, frame};
use iptl_dag::{Block, Cid, Codec, block};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{is_served_meanwhile, unheard_of};
use crate::lab::{Dag, Stranger, is_logged, listen_to_log, node, within};

/// Streams that a hostile peer holds open: more than are answered at a time, and more than have a place in the queue.
const STREAMS: usize = 300;

/// Wants without end, by Bitswap.
const WANTS: usize = 80_000;

/// Bytes that may be taken of what has no end: what is buffered on the way, several times over.
const TAKEN: u64 = 64 << 20;

/// Silence is borne for 15 s, and that is what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn streams_on_which_nothing_is_said_are_ended() {
    listen_to_log();
    let keeper = node().await;
    let silent = Stranger::new(41).await;
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        held.push(silent.open(&keeper, iptl_artifacts_iroh::PROTOCOL).await);
    }
    is_served_meanwhile(&keeper).await;
    let mut first = held.swap_remove(0);
    let ended = within("the end of a stream", first.read_to_end(&mut Vec::new())).await;
    assert!(!matches!(ended, Ok(1..)), "nothing is said to who says nothing");
    is_logged(&silent.links.peer().clone(), "hung up on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_end_is_hung_up_on() {
    listen_to_log();
    let keeper = node().await;
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
    is_served_meanwhile(&keeper).await;
    let sent = within("the end of an endless request", sending).await.unwrap();
    assert!(sent < TAKEN, "{sent} bytes were taken of a request");
    is_logged(&endless.links.peer().clone(), "the request is refused").await;
}

/// Streams on which a greedy peer asks at a time, again and again: far more than are answered at a time.
const GREED: usize = 200;

/// How much more of the node a peer may get by asking on more streams: as many as are answered at a time, three times over,
/// since streams end and begin anew meanwhile. Where all waited in one row, it would be as many as it has.
const MOST_OF_ANOTHER: u64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_on_many_streams_gets_a_few_times_what_another_gets_and_no_more() {
    let keeper = node().await;
    let dag = Dag::new(1, 32, 50_000);
    keeper.put(&dag.blocks()).await;
    let hashes: Arc<[[u8; 32]]> = dag.leaves.iter().map(|leaf| block::blake3_digest(leaf.cid()).unwrap()).collect();
    let (greedy, modest) = (Arc::new(Stranger::new(49).await), Stranger::new(50).await);
    let taken = Arc::new(AtomicU64::new(0));
    let (peer, addrs) = (keeper.peer(), vec![keeper.addr().await]);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..GREED {
        let (greedy, hashes, taken) = (greedy.clone(), hashes.clone(), taken.clone());
        let (peer, addrs) = (peer.clone(), addrs.clone());
        asking.spawn(async move {
            loop {
                // The node may refuse it one, which is no harm to others.
                let opened = greedy.links.open(&peer, &addrs, iptl_artifacts_iroh::PROTOCOL).await;
                let Ok(stream) = opened else { continue };
                let mut take = |_, block: Block| {
                    taken.fetch_add(block.data().len() as u64, Ordering::Relaxed);
                };
                let _refused = get_many(stream, &hashes, &mut take).await;
            }
        });
    }
    let is_under_way = async {
        while taken.load(Ordering::Relaxed) < 10_000_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the greedy to be served", is_under_way).await;
    let (before, mut got) = (taken.load(Ordering::Relaxed), 0);
    for _ in 0..8 {
        let stream = modest.open(&keeper, iptl_artifacts_iroh::PROTOCOL).await;
        let mut take = |_, block: Block| got += block.data().len() as u64;
        let asked = get_many(stream, &hashes, &mut take);
        assert_eq!(within("an answer to who asks for little", asked).await.unwrap().received, hashes.len());
    }
    let others = taken.load(Ordering::Relaxed) - before;
    assert!(others < MOST_OF_ANOTHER * got, "{others} bytes went to one peer while {got} went to another");
}

/// Writes messages until the peer takes no more; returns the bytes that it took.
async fn flood(stream: &mut (impl tokio::io::AsyncWrite + Unpin), message: &[u8], times: usize) -> u64 {
    let mut sent = 0;
    for _ in 0..times {
        let write = async {
            stream.write_all(message).await?;
            stream.flush().await
        };
        match tokio::time::timeout(Duration::from_secs(10), write).await {
            Ok(Ok(())) => sent += message.len() as u64,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn wants_without_end_make_room_for_each_other_hold_nobody_up_and_are_named() {
    listen_to_log();
    let keeper = node().await;
    // Old wants make room for new ones, and none is ever answered.
    let greedy = Stranger::new(43).await;
    greedy.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    let mut wants = greedy.net.open(&keeper.peer(), PROTOCOL).await.unwrap();
    let wanting = tokio::spawn(async move {
        for start in (0..WANTS).step_by(2_000) {
            let entry = |n| Entry { cid: unheard_of(n), priority: 1, ask: Ask::Block, send_dont_have: false };
            let message = Message { entries: (start..start + 2_000).map(entry).collect(), ..Message::default() };
            if flood(&mut wants, &frame(&message), 1).await == 0 {
                break;
            }
        }
        wants
    });
    is_served_meanwhile(&keeper).await;
    let _open = within("all wants to be taken in", wanting).await.unwrap();
    is_logged(greedy.links.peer(), "wants more blocks than are kept").await;
    is_served_meanwhile(&keeper).await;
}

/// Streams that say nothing are not ended, since peers keep theirs for later; those beyond what is borne are.
#[tokio::test(flavor = "multi_thread")]
async fn streams_for_wants_without_end_are_refused_and_named() {
    listen_to_log();
    let keeper = node().await;
    let opening = Stranger::new(48).await;
    opening.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    // Each says that it wants nothing.
    let message = frame(&Message { full: true, ..Message::default() });
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = opening.net.open(&keeper.peer(), PROTOCOL).await.unwrap();
        flood(&mut stream, &message, 1).await;
        held.push(stream);
    }
    is_logged(opening.links.peer(), "more Bitswap streams than are read").await;
    is_served_meanwhile(&keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_nobody_asked_for_are_not_kept_and_their_sender_is_shut_out() {
    listen_to_log();
    let keeper = node().await;
    let pushy = Stranger::new(46).await;
    pushy.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    let mut stream = pushy.net.open(&keeper.peer(), PROTOCOL).await.unwrap();
    let block = Block::new(Codec::Raw, vec![3; 1 << 20]);
    let payload = vec![Payload::new(block.cid(), block.data().clone())];
    let message = frame(&Message { payload, ..Message::default() });
    let pushing = tokio::spawn(async move { flood(&mut stream, &message, 256).await });
    is_served_meanwhile(&keeper).await;
    let sent = within("the end of what is pushed", pushing).await.unwrap();
    assert!(sent < TAKEN, "{sent} bytes of unasked blocks were taken");
    is_logged(&pushy.links.peer().clone(), "shut out").await;
    assert_eq!(keeper.denied(blocks(block.cid())).await, "block.missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_larger_than_any_may_be_ends_the_service_of_its_sender() {
    listen_to_log();
    let keeper = node().await;
    let boaster = Stranger::new(47).await;
    boaster.net.connect(&keeper.peer(), &[keeper.addr().await]).await.unwrap();
    let mut stream = boaster.net.open(&keeper.peer(), PROTOCOL).await.unwrap();
    // By hand: field 3 of a message, in it fields 1, the prefix, and 2, the data, one byte more than a block may have.
    let size = iptl_dag::MAX_BLOCK_SIZE + 1;
    let prefix = [1, 0x55, 0x1e, 32];
    let mut payload = [&[0x0a, 4][..], &prefix, &[0x12], &varint(size)].concat();
    payload.extend(vec![7; size]);
    let body = [&[0x1a][..], &varint(payload.len()), &payload].concat();
    let sent = flood(&mut stream, &[&varint(body.len()), &body[..]].concat(), 1).await;
    assert!(sent > 0, "the message can be sent");
    is_served_meanwhile(&keeper).await;
    is_logged(&boaster.links.peer().clone(), "shut out").await;
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn blocks(cid: &Cid) -> iptl_wire::control::Request {
    iptl_wire::control::Request::Blocks { cids: vec![*cid] }
}
