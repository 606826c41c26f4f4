//! The store in memory against the contract.

use std::sync::Arc;

use iptl_artifacts::contract::{Harness, check_blob_store};
use iptl_artifacts::{BlobStore, MemStore};

struct InMemory;

#[async_trait::async_trait]
impl Harness for InMemory {
    async fn make(&mut self) -> Arc<dyn BlobStore> {
        Arc::new(MemStore::new())
    }

    async fn reopen(&mut self, _: Arc<dyn BlobStore>) -> Option<Arc<dyn BlobStore>> {
        None
    }
}

#[tokio::test]
async fn mem_store_keeps_the_contract() {
    check_blob_store(&mut InMemory).await;
}
