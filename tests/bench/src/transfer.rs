//! A file from another node's store into ours, every block verified.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use iptl_artifacts::BlobStore;
use iptl_artifacts::import::{ImportOptions, import_path};
use iptl_artifacts_iroh::{PROTOCOL, Provider};
use iptl_artifacts_pack::PackStore;
use iptl_node::fetch::{Fetcher, Wanted};
use iptl_node::links::Links;

use crate::blocks::write_noise;
use crate::native;
use crate::process::own_cpu;
use crate::reference::{Transport, mb_per, plain_stream};
use crate::report::Row;

/// Streams that wait to be served.
const QUEUE: usize = 64;

/// Measures both transports.
pub async fn measure(bytes: u64) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
    let file = dir.path().join("file");
    write_noise(&file, bytes)?;
    let source = PackStore::open(dir.path().join("source")).await?;
    let imported = import_path(&source, &file, &ImportOptions::default()).await?;
    source.flush().await?;
    let native = native::transfer(&file, dir.path()).await?;
    std::fs::remove_file(&file)?;
    let mut rows = Vec::new();
    for (transport, goal) in [(Transport::Quic, 0.5), (Transport::Tcp, 0.35)] {
        let (a, b) = (transport.node(103).await?, transport.node(104).await?);
        let provider = Provider::over(Arc::new(source.clone()));
        let mut incoming = Links::new(a.peer().clone(), Some(a.clone())).accept(PROTOCOL, QUEUE).await;
        let serving = tokio::spawn(async move {
            while let Some((_, stream)) = incoming.recv().await {
                let provider = provider.clone();
                tokio::spawn(async move { provider.serve(stream).await });
            }
        });
        let path = dir.path().join(transport.name());
        let sink: Arc<dyn BlobStore> = Arc::new(PackStore::open(&path).await?);
        let fetcher = Fetcher::new(sink.clone(), Links::new(b.peer().clone(), Some(b.clone())));
        b.connect(a.peer(), &a.addrs().await).await?;
        let wanted = Wanted {
            root: imported.cid,
            from: vec![(a.peer().clone(), a.addrs().await)],
            fellows: Vec::new(),
            timeout: Duration::from_secs(30),
            shallow: false,
        };
        let (started, cpu) = (Instant::now(), own_cpu());
        let report = fetcher.fetch(&wanted, |_| {}).await?;
        sink.flush().await?;
        let (took, cpu) = (started.elapsed(), own_cpu().saturating_sub(cpu));
        anyhow::ensure!(report.bytes_fetched >= bytes, "{} of {bytes} bytes came", report.bytes_fetched);
        serving.abort();
        a.shutdown().await;
        b.shutdown().await;
        drop((fetcher, sink));
        let plain = plain_stream(transport, bytes).await?;
        let per_cpu = mb_per(bytes, cpu);
        let ratio = per_cpu / plain.mb_cpu_s;
        rows.push(Row {
            measure: format!("{} MiB from another node's store into ours over {}", bytes >> 20, transport.name()),
            figure: format!("{per_cpu:.0} MB per CPU second, {:.0} MB/s", mb_per(bytes, took)),
            reference: format!(
                "plain copy over one stream: {:.0} MB per CPU second, {:.0} MB/s",
                plain.mb_cpu_s, plain.mb_s
            ),
            ratio: format!("{ratio:.2} × per CPU second"),
            goal: format!("≥ {goal} ×"),
            reached: Some(ratio >= goal),
            bound: format!("{} blocks, each read and hashed, sent, hashed and appended to a pack", report.blocks),
        });
        if transport == Transport::Tcp {
            let ratio = per_cpu / native.mb_cpu_s;
            rows.push(Row {
                measure: format!("the same over {} beside iroh-blobs on its own endpoint", transport.name()),
                figure: format!("{per_cpu:.0} MB per CPU second, {:.0} MB/s", mb_per(bytes, took)),
                reference: format!(
                    "from its store into another: {:.0} MB per CPU second, {:.0} MB/s",
                    native.mb_cpu_s, native.mb_s
                ),
                ratio: format!("{ratio:.2} × per CPU second"),
                goal: "> 1 ×".to_owned(),
                reached: Some(ratio > 1.0),
                bound: "one stream of noise and yamux against QUIC in the user's space; the stores at both ends"
                    .to_owned(),
            });
        }
    }
    Ok(rows)
}
