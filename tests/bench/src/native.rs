//! The bare thing beside our transfer: iroh-blobs over its own endpoint, from its own store into another.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr};
use iroh_blobs::store::fs::FsStore;
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

/// Moves `file` as one blob between two endpoints of this process, verified, from a store below `dir` into another.
pub async fn transfer(file: &Path, dir: &Path) -> Result<Native> {
    let bytes = file.metadata()?.len();
    let source = FsStore::load(dir.join("native-source")).await?;
    let tag = source.add_path(file).temp_tag().await?;
    let server = Endpoint::builder(presets::Minimal).bind().await?;
    let port = server.bound_sockets().iter().find(|addr| addr.is_ipv4()).context("no IPv4 socket")?.port();
    let addr = EndpointAddr::new(server.id()).with_ip_addr(([127, 0, 0, 1], port).into());
    let router = Router::builder(server).accept(ALPN, BlobsProtocol::new(&source, None)).spawn();
    let client = Endpoint::builder(presets::Minimal).bind().await?;
    let connection = client.connect(addr, ALPN).await?;
    let sink = FsStore::load(dir.join("native-sink")).await?;
    let (started, cpu) = (Instant::now(), own_cpu());
    let stats = sink.remote().fetch(connection.clone(), HashAndFormat::raw(tag.hash())).complete().await?;
    sink.sync_db().await?;
    let (took, cpu) = (started.elapsed(), own_cpu().saturating_sub(cpu));
    anyhow::ensure!(stats.payload_bytes_read == bytes, "{} of {bytes} bytes came", stats.payload_bytes_read);
    connection.close(0u32.into(), b"done");
    router.shutdown().await?;
    client.close().await;
    // The router has closed the source.
    sink.shutdown().await?;
    Ok(Native { mb_s: mb_per(bytes, took), mb_cpu_s: mb_per(bytes, cpu) })
}
