//! What figures are held against: the swarm's plain streams, the loopback, the disk.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use iptl_net::{Config, Net};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::own_cpu;
use crate::report::percentile;

/// Protocol of the plain streams.
const PROTOCOL: &str = "/iptl/bench/1";

/// Bytes of a small message: a header and a CID or two.
const SMALL: usize = 64;

/// Bytes of one write of a plain copy.
const CHUNK: usize = 64 << 10;

/// Round trips of which the median is taken.
const ROUNDS: usize = 500;

/// A transport of the swarm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// QUIC.
    Quic,
    /// TCP with noise and yamux.
    Tcp,
}

impl Transport {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Quic => "QUIC",
            Transport::Tcp => "TCP",
        }
    }

    /// Starts a node that listens on this transport alone.
    pub async fn node(self, seed: u8) -> Result<Net> {
        let listen = match self {
            Transport::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
            Transport::Tcp => "/ip4/127.0.0.1/tcp/0",
        };
        let config = Config { seed: [seed; 32], listen: vec![listen.to_owned()], ..Config::default() };
        let (net, mut events) = iptl_net::start(config).await?;
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        Ok(net)
    }
}

/// A plain stream of the swarm between two nodes of this process.
pub struct PlainStream {
    /// Bytes per second of the clock, in MB.
    pub mb_s: f64,
    /// MB per second of processor time of both ends.
    pub mb_cpu_s: f64,
    /// Median of a round trip of a small message, in milliseconds.
    pub round_trip_ms: f64,
}

/// Measures a plain stream.
pub async fn plain_stream(transport: Transport, bytes: u64) -> Result<PlainStream> {
    let (a, b) = (transport.node(101).await?, transport.node(102).await?);
    let mut incoming = b.accept(PROTOCOL, 4).await?;
    let answering = tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.context("no stream came")?;
        let mut message = [0; SMALL];
        for _ in 0..ROUNDS {
            stream.read_exact(&mut message).await?;
            stream.write_all(&message).await?;
            stream.flush().await?;
        }
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let read = stream.read(&mut chunk).await?;
            anyhow::ensure!(read > 0, "the stream ended");
            left -= read as u64;
        }
        stream.write_all(&[1]).await?;
        stream.flush().await?;
        Ok(stream)
    });
    a.connect(b.peer(), &b.addrs().await).await?;
    let mut stream = a.open(b.peer(), PROTOCOL).await?;
    let mut message = [0; SMALL];
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        stream.write_all(&message).await?;
        stream.flush().await?;
        stream.read_exact(&mut message).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let chunk = vec![7; CHUNK];
    let (started, cpu) = (Instant::now(), own_cpu());
    let mut left = bytes;
    while left > 0 {
        let part = left.min(CHUNK as u64);
        stream.write_all(&chunk[..usize::try_from(part)?]).await?;
        left -= part;
    }
    stream.flush().await?;
    stream.read_exact(&mut message[..1]).await?;
    let (took, cpu) = (started.elapsed(), own_cpu().saturating_sub(cpu));
    let _stream = answering.await??;
    a.shutdown().await;
    b.shutdown().await;
    Ok(PlainStream { mb_s: mb_per(bytes, took), mb_cpu_s: mb_per(bytes, cpu), round_trip_ms: percentile(&times, 50) })
}

/// Returns MB per second.
pub fn mb_per(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

/// Returns the median of a round trip over the loopback, in milliseconds.
pub fn loopback_round_trip() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let answering = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; SMALL];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut message = [0; SMALL];
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    drop(stream);
    let _ended = answering.join();
    Ok(percentile(&times, 50))
}

/// Returns the median of appending a record to a file and syncing it, in milliseconds.
pub fn fdatasync(dir: &Path) -> Result<f64> {
    let mut file = std::fs::File::create(dir.join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        file.write_all(&[7; 300])?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(percentile(&times, 50))
}
