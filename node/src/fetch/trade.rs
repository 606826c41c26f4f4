//! Blocks by Bitswap: one session for a fetch, opened when the first block needs it.
//!
//! What is not under BLAKE3 comes this way alone. What is, comes this way too where nobody who speaks iroh-blobs has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::FutureExt as _;
use iptl_bitswap::Fault;
use iptl_dag::{Block, Cid, PeerId};
use iptl_net::{Bitswap, BitswapSession, SessionEvent};

use super::Source;
use crate::links::Links;
use crate::members::Members;

/// Blocks wanted at a time: 16 MiB of them on average, and at most 512.
const MAX_WANTED: usize = 256;

/// The session of one fetch.
pub(super) struct Trade {
    bitswap: Option<Bitswap>,
    links: Links,
    members: Option<Members>,
    session: Option<BitswapSession>,
    /// Wanted later, in this order; what is not in `queued` any more came in another way.
    queue: VecDeque<Cid>,
    queued: BTreeSet<Cid>,
    wanted: BTreeSet<Cid>,
    /// Wanted, and nobody who was named has it.
    lacking: BTreeSet<Cid>,
    named: BTreeSet<PeerId>,
    served: BTreeMap<PeerId, u64>,
    dropped: BTreeMap<PeerId, Fault>,
}

impl Trade {
    /// Makes the trade of a fetch; without Bitswap it gets nothing.
    pub(super) fn new(bitswap: Option<Bitswap>, links: Links, members: Option<Members>) -> Trade {
        Trade {
            bitswap,
            links,
            members,
            session: None,
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            wanted: BTreeSet::new(),
            lacking: BTreeSet::new(),
            named: BTreeSet::new(),
            served: BTreeMap::new(),
            dropped: BTreeMap::new(),
        }
    }

    /// Says whether anything can be got at all.
    pub(super) fn is_open(&self) -> bool {
        self.bitswap.is_some()
    }

    /// Wants blocks; those that are wanted already are wanted once.
    pub(super) async fn want(&mut self, cids: impl IntoIterator<Item = Cid>) {
        for cid in cids {
            if !self.wanted.contains(&cid) && self.queued.insert(cid) {
                self.queue.push_back(cid);
            }
        }
        self.fill().await;
    }

    /// Wants a block no more: it came in another way.
    pub(super) async fn forget(&mut self, cid: &Cid) {
        self.queued.remove(cid);
        if self.wanted.remove(cid)
            && let Some(session) = &self.session
        {
            self.lacking.remove(cid);
            session.cancel(vec![*cid]).await;
            self.fill().await;
        }
    }

    /// Names peers; `again` also those that were named before, for another chance.
    pub(super) async fn add_peers(&mut self, sources: Vec<Source>, again: bool) {
        let Some(session) = &self.session else { return };
        let fresh: Vec<Source> =
            sources.into_iter().filter(|(peer, _)| self.named.insert(peer.clone()) || again).collect();
        if !fresh.is_empty() {
            self.lacking.clear();
            if let Some(members) = &self.members {
                let all = fresh.iter().map(|(peer, addrs)| members.introduce(&self.links, peer, addrs));
                futures::future::join_all(all).await;
            }
            session.peers(fresh).await;
        }
    }

    /// Returns a block that is waited for.
    pub(super) fn first(&self) -> Option<Cid> {
        self.wanted.first().copied()
    }

    /// Returns how many blocks are waited for, or will be.
    pub(super) fn waiting(&self) -> usize {
        self.queued.len() + self.wanted.len()
    }

    /// Says whether some peer may still send what is waited for.
    pub(super) fn is_moving(&self) -> bool {
        self.lacking.len() < self.wanted.len()
    }

    /// Waits for the next block; for ever where none is wanted. Returns none where something else happened, and the
    /// caller should look again. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Block> {
        let Some(session) = self.session.as_mut().filter(|_| !self.wanted.is_empty()) else {
            return std::future::pending().await;
        };
        match session.next().await {
            Some(SessionEvent::Block { block, from }) => {
                // A want that was withdrawn may have been answered before.
                let is_wanted = self.wanted.remove(block.cid());
                self.lacking.remove(block.cid());
                *self.served.entry(from).or_default() += block.data().len() as u64;
                is_wanted.then_some(block)
            }
            Some(SessionEvent::Lacking { cid }) => {
                if self.wanted.contains(&cid) {
                    self.lacking.insert(cid);
                }
                None
            }
            Some(SessionEvent::Dropped { peer, fault }) => {
                match &fault {
                    _ if fault.is_lie() => tracing::warn!(%peer, %fault, "dropped a provider that lies"),
                    Fault::Slow { .. } | Fault::Silent { .. } => {
                        tracing::warn!(%peer, %fault, "dropped a provider that is too slow");
                    }
                    _ => {}
                }
                self.dropped.insert(peer, fault);
                None
            }
            None => {
                // The node is shutting down.
                self.lacking.extend(self.wanted.iter().copied());
                self.session = None;
                None
            }
        }
    }

    /// Returns the next block that came already.
    pub(super) fn ready(&mut self) -> Option<Option<Block>> {
        self.next().now_or_never()
    }

    /// Asks for more, once there is room; call it after each block.
    pub(super) async fn fill(&mut self) {
        let room = MAX_WANTED.saturating_sub(self.wanted.len());
        let Some(bitswap) = self.bitswap.as_ref().filter(|_| room > 0 && !self.queued.is_empty()) else { return };
        if self.session.is_none() {
            self.session = Some(bitswap.session().await);
        }
        let mut cids = Vec::new();
        while cids.len() < room
            && let Some(cid) = self.queue.pop_front()
        {
            if self.queued.remove(&cid) {
                cids.push(cid);
            }
        }
        self.wanted.extend(cids.iter().copied());
        if let Some(session) = &self.session {
            session.want(cids).await;
        }
    }

    /// Returns bytes by provider.
    pub(super) fn served(&self) -> &BTreeMap<PeerId, u64> {
        &self.served
    }

    /// Returns providers that were dropped for what they did, with the reasons. One that cannot be reached did nothing.
    pub(super) fn dropped(&self) -> impl Iterator<Item = (PeerId, String)> {
        let told = self.dropped.iter().filter(|(_, fault)| !matches!(fault, Fault::Unreachable { .. }));
        told.map(|(peer, fault)| match fault.is_lie() {
            true => (peer.clone(), format!("lied: {fault}")),
            false => (peer.clone(), fault.to_string()),
        })
    }
}
