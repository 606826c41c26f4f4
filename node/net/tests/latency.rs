//! The hot path: small messages on a stream that stays open.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{QUIC, TCP, pair};

const PROTOCOL: &str = "/iptl/test/latency/1";
const MESSAGE: usize = 200;
const ROUNDS: usize = 2_000;

async fn measure(listen: &str) -> (Duration, Duration) {
    let (a, b) = pair(listen).await;
    let mut incoming = b.net.accept(PROTOCOL, 1).await.unwrap();
    tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut message = [0; MESSAGE];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(&message).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    let mut stream = a.net.open(b.net.peer(), PROTOCOL).await.unwrap();
    let mut times = Vec::new();
    let mut message = [1; MESSAGE];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        stream.write_all(&message).await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut message).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    (times[ROUNDS / 2], times[ROUNDS * 99 / 100])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_request_and_response_take_less_than_a_millisecond() {
    for (name, listen) in [("TCP", TCP), ("QUIC", QUIC)] {
        let (p50, p99) = measure(listen).await;
        println!("{name}: {MESSAGE} B there and back: p50 {p50:?}, p99 {p99:?}");
        // Generous for a debug build on a loaded machine; Nagle or a delayed acknowledgement costs 40 ms.
        assert!(p50 < Duration::from_millis(20), "{name}: p50 {p50:?}");
    }
}
