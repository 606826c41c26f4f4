//! The bare thing beside our transfer: iroh-blobs over its own endpoint, from memory into memory.

use std::time::Instant;

use anyhow::{Context, Result};
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr};
use iroh_blobs::store::mem::MemStore;
use iroh_blobs::{ALPN, BlobsProtocol, HashAndFormat};

use crate::process::own_cpu;
use crate::reference::mb_per;

/// What a transfer took, of the clock and of the processors of both ends.
pub struct Native {
    /// Bytes per second of the clock, in MB.
    pub mb_s: f64,
    /// MB per second of processor time of both ends.
    pub mb_cpu_s: f64,
}

/// Moves `data` as one blob between two endpoints of this process, verified. No disk takes part, which is to the
/// advantage of this side: ours reads from and appends to one.
pub async fn transfer(data: Vec<u8>) -> Result<Native> {
    let bytes = data.len() as u64;
    let source = MemStore::new();
    let tag = source.add_bytes(data).temp_tag().await?;
    let server = Endpoint::builder(presets::Minimal).bind().await?;
    let port = server.bound_sockets().iter().find(|addr| addr.is_ipv4()).context("no IPv4 socket")?.port();
    let addr = EndpointAddr::new(server.id()).with_ip_addr(([127, 0, 0, 1], port).into());
    let router = Router::builder(server).accept(ALPN, BlobsProtocol::new(&source, None)).spawn();
    let client = Endpoint::builder(presets::Minimal).bind().await?;
    let connection = client.connect(addr, ALPN).await?;
    let sink = MemStore::new();
    let (started, cpu) = (Instant::now(), own_cpu());
    let stats = sink.remote().fetch(connection.clone(), HashAndFormat::raw(tag.hash())).complete().await?;
    let (took, cpu) = (started.elapsed(), own_cpu().saturating_sub(cpu));
    anyhow::ensure!(stats.payload_bytes_read == bytes, "{} of {bytes} bytes came", stats.payload_bytes_read);
    connection.close(0u32.into(), b"done");
    router.shutdown().await?;
    client.close().await;
    Ok(Native { mb_s: mb_per(bytes, took), mb_cpu_s: mb_per(bytes, cpu) })
}
