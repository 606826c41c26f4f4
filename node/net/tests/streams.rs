//! Opening, accepting, half-closing, pushing back, refusing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use iptl_net::{AcceptError, Config, Net, OpenError, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{Node, QUIC, TCP, config, node, pair, until, within};

const ECHO: &str = "/iptl/test/echo/1";

/// Echoes all streams of a protocol until their ends; returns the count of accepted ones.
async fn echo(net: &Net, protocol: &'static str, queue: usize) -> Arc<AtomicUsize> {
    let mut incoming = net.accept(protocol, queue).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                writer.shutdown().await.unwrap();
            });
        }
    });
    count
}

async fn round_trip(mut stream: Stream, message: &[u8]) -> Vec<u8> {
    stream.write_all(message).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

async fn check_many_streams(listen: &str) {
    let (a, b) = pair(listen).await;
    let count = echo(&b.net, ECHO, 4).await;
    let done = futures::stream::iter(0..1_000_u32)
        .map(|i| {
            let (net, peer) = (a.net.clone(), b.net.peer().clone());
            async move {
                let stream = net.open(&peer, ECHO).await.unwrap();
                assert_eq!(round_trip(stream, &i.to_le_bytes()).await, i.to_le_bytes());
            }
        })
        .buffer_unordered(64)
        .count();
    assert_eq!(within("1,000 streams", done).await, 1_000);
    assert_eq!(count.load(Ordering::Relaxed), 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_over_tcp_lose_nothing() {
    check_many_streams(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_over_quic_lose_nothing() {
    // As in a node that links another TLS user: two providers are compiled in, and none is the process's default.
    let _other = rustls::crypto::ring::default_provider();
    check_many_streams(QUIC).await;
}

async fn check_half_close(listen: &str) {
    let (a, b) = pair(listen).await;
    let mut incoming = b.net.accept(ECHO, 1).await.unwrap();
    let mut stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let (from, mut served) = within("the stream", incoming.next()).await.unwrap();
    assert_eq!(&from, a.net.peer());
    let mut question = Vec::new();
    within("the end of the question", served.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    // The other half is open still.
    served.write_all(b"answer").await.unwrap();
    served.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the end of the answer", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn half_closed_stream_carries_the_answer() {
    check_half_close(TCP).await;
    check_half_close(QUIC).await;
}

async fn check_copy(listen: &str) {
    const SIZE: usize = 64 << 20;
    let (a, b) = pair(listen).await;
    let mut incoming = b.net.accept(ECHO, 1).await.unwrap();
    let sender = tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        let block = (0..1 << 16).map(|i: u32| i as u8).collect::<Vec<_>>();
        for _ in 0..SIZE / block.len() {
            stream.write_all(&block).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        // The node, and with it the connection, must outlive what is under way.
        let _ = stream.read(&mut [0]).await;
    });
    let mut stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
    let mut buffer = vec![0; 1 << 18];
    let mut received = 0;
    loop {
        let n = within("the next bytes", stream.read(&mut buffer)).await.unwrap();
        if n == 0 {
            break;
        }
        let right = buffer[..n].iter().enumerate().all(|(i, byte)| *byte == (received + i) as u8);
        assert!(right, "wrong bytes after {received}");
        received += n;
    }
    assert_eq!(received, SIZE);
    drop(stream);
    within("the sender", sender).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_of_64_mib_is_complete() {
    check_copy(TCP).await;
    check_copy(QUIC).await;
}

async fn check_back_pressure(listen: &str) {
    const QUEUE: usize = 4;
    const OPENERS: usize = 40;
    let (a, b) = pair(listen).await;
    let mut incoming = b.net.accept(ECHO, QUEUE).await.unwrap();
    let opened = Arc::new(AtomicUsize::new(0));
    let openers = (0..OPENERS).map(|i| {
        let (net, peer, opened) = (a.net.clone(), b.net.peer().clone(), opened.clone());
        tokio::spawn(async move {
            let mut stream = net.open(&peer, ECHO).await.unwrap();
            opened.fetch_add(1, Ordering::SeqCst);
            stream.write_all(&[i as u8]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"ok");
        })
    });
    let openers = openers.collect::<Vec<_>>();
    until("a full queue", || async { (opened.load(Ordering::SeqCst) == QUEUE).then_some(()) }).await;
    // Another protocol of the same connection goes on meanwhile, and what comes back shows that all openers' requests
    // were seen before: they wait.
    echo(&b.net, "/iptl/test/other/1", 1).await;
    let other = a.net.open(b.net.peer(), "/iptl/test/other/1").await.unwrap();
    assert_eq!(round_trip(other, b"x").await, b"x");
    assert_eq!(opened.load(Ordering::SeqCst), QUEUE);
    let mut seen = Vec::new();
    for _ in 0..OPENERS {
        let (_, mut stream) = within("a waiting stream", incoming.next()).await.unwrap();
        seen.push(stream.read_u8().await.unwrap());
        stream.write_all(b"ok").await.unwrap();
        stream.shutdown().await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, (0..OPENERS as u8).collect::<Vec<_>>());
    for opener in openers {
        within("an opener", opener).await.unwrap();
    }
}

#[tokio::test]
async fn full_queue_holds_openers_back_and_drops_none() {
    check_back_pressure(TCP).await;
    check_back_pressure(QUIC).await;
}

#[tokio::test]
async fn protocol_of_other_people_has_no_admission_byte() {
    let (a, b) = pair(TCP).await;
    echo(&b.net, "/ipfs/test/1.0.0", 1).await;
    let stream = a.net.open(b.net.peer(), "/ipfs/test/1.0.0").await.unwrap();
    assert_eq!(round_trip(stream, b"plain").await, b"plain");
}

#[tokio::test]
async fn unknown_protocol_is_unsupported() {
    let (a, b) = pair(TCP).await;
    let error = a.net.open(b.net.peer(), "/iptl/test/nothing/1").await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported { protocol: "/iptl/test/nothing/1", .. }), "{error}");
}

#[tokio::test]
async fn protocol_is_accepted_once_and_free_again_after_its_end() {
    let (a, b) = pair(QUIC).await;
    let incoming = b.net.accept(ECHO, 1).await.unwrap();
    assert_eq!(b.net.accept(ECHO, 1).await.unwrap_err(), AcceptError::Taken { protocol: ECHO });
    drop(incoming);
    let error = a.net.open(b.net.peer(), ECHO).await.unwrap_err();
    assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
    echo(&b.net, ECHO, 1).await;
    let stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
    assert_eq!(round_trip(stream, b"again").await, b"again");
}

#[tokio::test]
async fn peer_without_address_is_not_connected() {
    let (a, b) = (node(config(&[TCP])).await, node(config(&[TCP])).await);
    let error = a.net.open(b.net.peer(), ECHO).await.unwrap_err();
    assert!(matches!(error, OpenError::NotConnected { .. }), "{error}");
}

#[tokio::test]
async fn open_dials_an_address_known_from_before() {
    let (a, mut b): (Node, Node) = pair(TCP).await;
    echo(&b.net, ECHO, 1).await;
    a.net.disconnect(b.net.peer()).await;
    b.wait("the end of the connection", |event| matches!(event, iptl_net::NetEvent::Disconnected { .. }).then_some(()))
        .await;
    let stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
    assert_eq!(round_trip(stream, b"back").await, b"back");
}

#[tokio::test]
async fn streams_beyond_the_limit_of_a_peer_are_refused() {
    let (a, b) = (node(config(&[TCP])).await, node(Config { inbound_streams_per_peer: 3, ..config(&[TCP]) }).await);
    a.net.connect(b.net.peer(), &b.net.addrs().await).await.unwrap();
    let mut incoming = b.net.accept(ECHO, 8).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(a.net.open(b.net.peer(), ECHO).await.unwrap());
    }
    let error = a.net.open(b.net.peer(), ECHO).await.unwrap_err();
    assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    // A stream that ends makes room.
    drop(within("a stream", incoming.next()).await);
    let stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
    drop((stream, held));
}

#[tokio::test]
async fn accepted_streams_end_with_the_node() {
    let (a, b) = pair(QUIC).await;
    let mut incoming = b.net.accept(ECHO, 1).await.unwrap();
    b.net.shutdown().await;
    assert!(within("the end", incoming.next()).await.is_none());
    let error = b.net.open(a.net.peer(), ECHO).await.unwrap_err();
    assert!(matches!(error, OpenError::Closed), "{error}");
    assert_eq!(b.net.accept(ECHO, 1).await.unwrap_err(), AcceptError::Closed);
}

#[tokio::test]
async fn stream_ends_and_open_says_why_when_the_peer_is_gone() {
    for listen in [TCP, QUIC] {
        let (mut a, b) = pair(listen).await;
        let mut incoming = b.net.accept(ECHO, 1).await.unwrap();
        let mut stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
        let _served = within("the stream", incoming.next()).await.unwrap();
        b.net.shutdown().await;
        let end = within("the end of the stream", stream.read(&mut [0])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        a.wait("the loss", |event| matches!(event, iptl_net::NetEvent::Disconnected { .. }).then_some(())).await;
        let error = within("the answer", a.net.open(b.net.peer(), ECHO)).await.unwrap_err();
        assert!(matches!(error, OpenError::NotConnected { .. } | OpenError::Timeout { .. }), "{listen}: {error}");
    }
}

#[tokio::test]
async fn stream_ends_on_both_sides_when_this_side_closes_the_connection() {
    for listen in [TCP, QUIC] {
        let (a, b) = pair(listen).await;
        let mut incoming = b.net.accept(ECHO, 1).await.unwrap();
        let stream = a.net.open(b.net.peer(), ECHO).await.unwrap();
        let (_, mut served) = within("the stream", incoming.next()).await.unwrap();
        // It is read from, and written to without anybody who reads, each in a task of its own that nothing else wakes.
        let (mut reader, mut writer) = tokio::io::split(stream);
        let read = tokio::spawn(async move { reader.read(&mut [0]).await });
        let written = tokio::spawn(async move {
            loop {
                if let Err(error) = writer.write_all(&[0; 4096]).await {
                    return error;
                }
                tokio::task::yield_now().await;
            }
        });
        let mut first = [0; 4096];
        within("the first of it", served.read_exact(&mut first)).await.unwrap();
        a.net.disconnect(b.net.peer()).await;
        let read = within("the end of reading", read).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{listen}: {read:?}");
        let _error = within("the end of writing", written).await.unwrap();
        let end = within("the end there", served.read_to_end(&mut Vec::new())).await;
        assert!(matches!(end, Ok(_) | Err(_)), "{listen}: {end:?}");
    }
}
