//! Blocks for whoever may read them, by both protocols.

use std::sync::Arc;

use iptl_artifacts::BlobStore;
use iptl_artifacts_iroh::{Provider, ServeError};

use crate::clock;
use crate::gate::Turns;
use crate::hush::Hush;
use crate::links::Links;
use crate::readers::Readers;
use crate::traffic::Traffic;

/// Blob streams that wait to be accepted.
const BLOB_QUEUE: usize = 256;

/// Blob streams of one peer that are answered at a time, each with up to 32 MiB in memory where its blocks are large. The
/// fetcher has two open for a DAG.
const BLOB_TURNS: usize = 8;

/// Serves blocks to whoever speaks iroh-blobs and may read them.
pub(crate) async fn by_iroh(links: &Links, store: Arc<dyn BlobStore>, readers: Readers, traffic: Traffic) {
    let mut incoming = links.accept(iptl_artifacts_iroh::PROTOCOL, BLOB_QUEUE).await;
    let provider = Provider::over(store);
    let turns = Turns::new(BLOB_TURNS);
    let refused = Arc::<Hush>::default();
    tokio::spawn(async move {
        while let Some((peer, stream)) = incoming.recv().await {
            let (readers, reader) = (readers.clone(), peer.clone());
            let may_read = move |hash: &[u8; 32]| readers.may_read(&reader, &iptl_artifacts_iroh::multihash(hash));
            let provider = provider.clone().filtered(Arc::new(may_read));
            let turns = turns.of(&peer);
            let (stream, refused) = (traffic.counted(stream), refused.clone());
            tokio::spawn(async move {
                let _turn = turns.acquire().await.expect("it is never closed");
                match provider.serve(stream).await {
                    Ok(_) => {}
                    Err(error @ (ServeError::Refused { .. } | ServeError::Stalled)) => {
                        if let Some(others) = refused.due(clock::now()) {
                            tracing::warn!(%peer, %error, others, "a peer that asked for blocks is hung up on");
                        }
                    }
                    Err(error) => tracing::debug!(%peer, %error, "a blob stream ended early"),
                }
            });
        }
    });
}

/// Serves blocks to whoever speaks Bitswap, as they are served to whoever speaks iroh-blobs.
pub(crate) async fn by_bitswap(
    net: &iptl_net::Net,
    store: Arc<dyn BlobStore>,
    readers: Readers,
) -> Option<iptl_net::Bitswap> {
    let visible = Arc::new(move |peer: &_, hash: &_| readers.may_read(peer, hash));
    match iptl_net::Bitswap::start(net, store, visible).await {
        Ok(bitswap) => Some(bitswap),
        Err(error) => {
            tracing::error!(%error, "no Bitswap");
            None
        }
    }
}
