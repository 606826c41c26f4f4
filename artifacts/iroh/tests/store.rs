//! The store on disk: the contract, and what it promises beyond it.

use std::path::PathBuf;
use std::sync::Arc;

use iptl_artifacts::BlobStore;
use iptl_artifacts::contract::{Harness, check_blob_store};
use iptl_artifacts_iroh::FsBlobStore;

/// Numbered stores below one temporary directory.
struct OnDisk {
    root: tempfile::TempDir,
    made: usize,
}

impl OnDisk {
    fn dir(&self) -> PathBuf {
        self.root.path().join(self.made.to_string())
    }
}

#[async_trait::async_trait]
impl Harness for OnDisk {
    async fn make(&mut self) -> Arc<dyn BlobStore> {
        self.made += 1;
        Arc::new(FsBlobStore::open(self.dir()).await.unwrap())
    }

    async fn reopen(&mut self, store: Arc<dyn BlobStore>) -> Option<Arc<dyn BlobStore>> {
        drop(store);
        Some(Arc::new(FsBlobStore::open(self.dir()).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fs_store_keeps_the_contract() {
    check_blob_store(&mut OnDisk { root: tempfile::tempdir().unwrap(), made: 0 }).await;
}
