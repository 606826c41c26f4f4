//! The store of a node as seen from here: the back end through which the command line imports and exports.
//!
//! Blocks are verified on both ends, where these are two processes; nothing is kept here.

use async_trait::async_trait;
use bytes::Bytes;
use iptl_artifacts::{BlobStore, Multihash, StoreError};
use iptl_dag::{Block, Cid, Codec};
use iptl_wire::control::{Reply, Request};

use crate::client::{Client, unexpected};
use crate::exit::{Error, Exit, Result};
use crate::progress::Counter;

/// Blocks asked for in one request: small ones fill a frame's worth, large ones some ten MiB.
const BATCH: usize = 64;

/// A node's store.
#[derive(Clone)]
pub struct RemoteStore {
    client: Client,
    counter: Counter,
}

impl RemoteStore {
    /// Makes the store of the node behind a client.
    pub fn new(client: Client) -> RemoteStore {
        RemoteStore { client, counter: Counter::default() }
    }

    /// Returns what counts the bytes that are put.
    pub fn counter(&self) -> Counter {
        self.counter.clone()
    }

    async fn read(&self, hashes: &[Multihash]) -> Result<Vec<Bytes>> {
        // The node keys its store by multihash, so any codec names the bytes.
        let cids: Vec<Cid> = hashes.iter().map(|hash| Cid::new_v1(Codec::Raw.number(), *hash)).collect();
        let replies = self.client.call_all(Request::Blocks { cids: cids.clone() }).await?;
        if replies.len() != cids.len() {
            return Err(unexpected(&format!("{} blocks where {} were asked for", replies.len(), cids.len())));
        }
        let mut blocks = Vec::with_capacity(cids.len());
        for (cid, reply) in cids.into_iter().zip(replies) {
            match reply {
                Reply::Block { data, .. } => {
                    let block = Block::verify(cid, data).map_err(|e| unexpected(&e.to_string()))?;
                    blocks.push(block.data().clone());
                }
                other => return Err(unexpected(&format!("{other:?}"))),
            }
        }
        Ok(blocks)
    }
}

#[async_trait]
impl BlobStore for RemoteStore {
    /// Says that nothing is there: sending a block again costs less than asking.
    async fn has(&self, hashes: &[Multihash]) -> std::result::Result<Vec<bool>, StoreError> {
        Ok(vec![false; hashes.len()])
    }

    async fn get(&self, hash: &Multihash) -> std::result::Result<Option<Bytes>, StoreError> {
        if let Some(data) = iptl_artifacts::identity_of(hash) {
            return Ok(Some(data));
        }
        match self.read(std::slice::from_ref(hash)).await {
            Ok(mut blocks) => Ok(blocks.pop()),
            Err(error) if error.exit == Exit::NotFound => Ok(None),
            Err(error) => Err(wrap("reading a block of the node", error)),
        }
    }

    async fn get_batch(&self, hashes: &[Multihash]) -> std::result::Result<Vec<Option<Bytes>>, StoreError> {
        let mut all = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(BATCH) {
            match self.read(batch).await {
                Ok(blocks) => all.extend(blocks.into_iter().map(Some)),
                Err(_) => {
                    // One of them is missing: which one shows only one by one.
                    for hash in batch {
                        all.push(self.get(hash).await?);
                    }
                }
            }
        }
        Ok(all)
    }

    async fn put(&self, blocks: Vec<Block>) -> std::result::Result<(), StoreError> {
        let bytes = blocks.iter().map(|block| block.data().len() as u64).sum();
        let put = match &self.client {
            Client::Daemon { .. } => self.client.put(&blocks).await,
            Client::Here(node) => node.put(blocks).await.map_err(Error::from),
        };
        put.map_err(|e| wrap("giving blocks to the node", e))?;
        self.counter.add(bytes);
        Ok(())
    }

    /// A daemon answers a put once it is durable.
    async fn flush(&self) -> std::result::Result<(), StoreError> {
        match &self.client {
            Client::Daemon { .. } => Ok(()),
            Client::Here(node) => node.flush().await.map_err(|e| wrap("flushing the node's store", e.into())),
        }
    }

    async fn remove(&self, _: &[Multihash]) -> std::result::Result<(), StoreError> {
        Err(foreign("removing blocks of a node"))
    }

    async fn list(&self) -> std::result::Result<Vec<Multihash>, StoreError> {
        Err(foreign("listing the blocks of a node"))
    }

    async fn usage(&self) -> std::result::Result<iptl_artifacts::Usage, StoreError> {
        Err(foreign("measuring the store of a node"))
    }
}

/// What the control API has no request for: a node's store is its own to keep and to drop.
fn foreign(doing: &str) -> StoreError {
    StoreError::Io { doing: doing.to_owned(), source: std::io::ErrorKind::Unsupported.into() }
}

fn wrap(doing: &str, error: Error) -> StoreError {
    StoreError::Io { doing: doing.to_owned(), source: std::io::Error::other(error) }
}

/// A block that ought to be at the node is not.
pub fn missing(cid: Cid) -> Error {
    Error::new(
        Exit::NotFound,
        "block.missing",
        format!("block {cid} is not in the store"),
        "fetch it: `iptl get CID`, with --peer MULTIADDR where you know who has it",
    )
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let text = error.to_string();
        match error {
            StoreError::Full { path, .. } => Error::broken(
                "store.full",
                text,
                format!("free some space on the disk of {}, then repeat the command; nothing was lost", path.display()),
            ),
            StoreError::Corrupt { .. } => {
                Error::broken("store.corrupt", text, "fetch the content again; check the disk")
            }
            StoreError::Closed => Error::broken("store.closed", text, "start the node again with `iptl up`"),
            StoreError::Missing { cid } => missing(cid),
            StoreError::Hash(_) => Error::usage("block.hash", text, "the CID cannot be verified here"),
            StoreError::Io { source, .. } => match source.downcast::<Error>() {
                // A failure that the node reported keeps its own code.
                Ok(error) => error,
                Err(source) => {
                    let mut error = Error::from(source);
                    error.message = format!("{text}: {}", error.message);
                    error
                }
            },
        }
    }
}
