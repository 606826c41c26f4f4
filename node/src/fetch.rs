//! The fetcher: providers × protocols → verified blocks in the store.
//!
//! A DAG is fetched from its root down, some thousands of links ahead. What the store has is read there; what is missing
//! is asked for in batches, several in flight over all providers that are good for it: by iroh-blobs what is under BLAKE3,
//! by Bitswap the rest, and what no provider that speaks iroh-blobs has. Every block is checked by the transfer protocol
//! before it is seen here. A provider that lies is dropped and named; one that lacks a block is not asked for that block
//! again; a fetch that was cut goes on where it stopped, since what arrived stays in the store.
//!
//! `going` is one fetch, `frontier` what it knows of and has not come to: the memory of a fetch hardly depends on the
//! width of its DAG. Of each block 16 bytes are kept, so that it is come to once.

mod batch;
mod below;
mod error;
mod frontier;
mod going;
mod pool;
mod share;
mod trade;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::BlobStore;
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};
use iptl_net::Bitswap;
use iptl_wire::control::{FetchProgress, FetchReport, MAX_PROVIDERS_TOLD};

use crate::links::Links;
use crate::members::Members;
use crate::traffic::Traffic;
pub use batch::Patience;
use below::Below;
pub use error::FetchError;
use going::Going;

/// Pause between two searches for providers.
const SEARCH_PAUSE: Duration = Duration::from_millis(500);

/// A peer that may have the content, with addresses to dial it at.
pub type Source = (PeerId, Vec<String>);

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Root.
    pub root: Cid,
    /// Peers to ask first.
    pub from: Vec<Source>,
    /// Those of them that fetch the same now: they share what comes, so that the others need not send it to each.
    pub fellows: Vec<PeerId>,
    /// Gives up after so long without a block from anybody.
    pub timeout: Duration,
    /// Only the root block.
    pub shallow: bool,
}

/// Fetches DAGs.
#[derive(Clone)]
pub struct Fetcher {
    store: Arc<dyn BlobStore>,
    links: Links,
    bitswap: Option<Bitswap>,
    members: Option<Members>,
    limits: Limits,
    patience: Patience,
    room: Option<Room>,
    traffic: Traffic,
}

/// Says how large a DAG may be, of which what is in the store already may be a part; it is given the store's bytes.
pub type Room = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

impl Fetcher {
    /// Makes a fetcher that fills `store`, within the limits of any walk.
    pub fn new(store: Arc<dyn BlobStore>, links: Links) -> Fetcher {
        let (limits, patience) = (Limits::default(), Patience::default());
        Fetcher {
            store,
            links,
            bitswap: None,
            members: None,
            limits,
            patience,
            room: None,
            traffic: Traffic::default(),
        }
    }

    /// Gets blocks by Bitswap as well.
    pub fn with_bitswap(self, bitswap: Option<Bitswap>) -> Fetcher {
        Fetcher { bitswap, ..self }
    }

    /// Shows providers that this node is a member of its lab.
    pub fn with_members(self, members: Members) -> Fetcher {
        Fetcher { members: Some(members), ..self }
    }

    /// Waits for providers as long as this says.
    pub fn with_patience(self, patience: Patience) -> Fetcher {
        Fetcher { patience, ..self }
    }

    /// Refuses what is larger than the room that there is, before it fills the disk.
    pub fn with_room(self, room: Room) -> Fetcher {
        Fetcher { room: Some(room), ..self }
    }

    /// Counts what comes.
    pub fn counted(self, traffic: Traffic) -> Fetcher {
        Fetcher { traffic, ..self }
    }

    /// Accepts no larger DAGs than these.
    pub fn within(self, limits: Limits) -> Fetcher {
        Fetcher { limits, ..self }
    }

    /// Brings what `wanted` names into the store and reports where it came from; `progress` is told of all providers.
    ///
    /// Cancel safe: what arrived stays, and the next call goes on from there. The blocks are acknowledged by the store
    /// but not flushed.
    pub async fn fetch(&self, wanted: &Wanted, progress: impl FnMut(FetchProgress)) -> Result<FetchReport, FetchError> {
        let below = if wanted.shallow { Below::Nothing } else { Below::everything(&wanted.root) };
        self.fetch_below(wanted, below, progress).await
    }

    /// Brings those blocks of a file into the store that hold some of a range of its bytes, and the nodes above them. As
    /// [`fetch`](Fetcher::fetch) otherwise.
    pub async fn fetch_range(
        &self,
        wanted: &Wanted,
        range: Range<u64>,
        progress: impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        self.fetch_below(wanted, Below::bytes(&wanted.root, range), progress).await
    }

    async fn fetch_below(
        &self,
        wanted: &Wanted,
        below: Below,
        progress: impl FnMut(FetchProgress),
    ) -> Result<FetchReport, FetchError> {
        let mut going = Going::new(self, wanted, below, progress).await?;
        let fetched = going.run().await;
        if let Err(error) = &fetched
            && error.is_of_dag()
        {
            // Whoever made such a DAG is not known, and who gave its blocks may have been taken in as well.
            let from = names(&going.served());
            tracing::warn!(root = %wanted.root, from, %error, "refused a DAG");
        }
        fetched
    }
}

/// Names those who gave most, most of all first.
fn names(served: &[(PeerId, u64)]) -> String {
    if served.is_empty() {
        return "this node's own store".to_owned();
    }
    let mut served: Vec<&(PeerId, u64)> = served.iter().collect();
    served.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names: Vec<String> = served.iter().take(MAX_PROVIDERS_TOLD).map(|(peer, _)| peer.to_string()).collect();
    names.join(" ")
}
