//! Who is asked: known providers, what they lack, and where more are found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use iptl_dag::{Cid, PeerId};

use super::Source;
use super::batch::{BatchDone, BatchEnd};
use super::share::{Batch, Share, Whom};
use crate::links::Links;

/// Batches in flight with one provider.
const MAX_BATCHES_PER_PROVIDER: u32 = 2;

/// A provider that broke so often in a row is dropped.
const MAX_FAILURES: u32 = 3;

/// Longest search in the DHT before the connected peers are looked at again.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The providers of one fetch.
pub(super) struct Pool {
    links: Links,
    /// What its providers are found by in the DHT.
    keys: Vec<Vec<u8>>,
    providers: BTreeMap<PeerId, Provider>,
    /// Peers of the swarm were added.
    asked_swarm: bool,
}

#[derive(Default)]
struct Provider {
    addrs: Vec<String>,
    /// Lower is asked first: peers that were named, then those that a search found.
    rank: u32,
    flying: u32,
    failures: u32,
    bytes: u64,
    lacks: BTreeSet<Cid>,
    dropped: Option<String>,
}

impl Provider {
    /// Counts a failure; after some in a row nobody asks it any more.
    fn failed(&mut self, reason: &str) {
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.dropped = Some(reason.to_owned());
        }
    }

    fn lied(&self) -> bool {
        self.dropped.as_ref().is_some_and(|reason| reason.starts_with("lied"))
    }
}

impl Pool {
    pub(super) fn new(links: Links, keys: Vec<Vec<u8>>, named: Vec<Source>) -> Pool {
        let mut pool = Pool { links, keys, providers: BTreeMap::new(), asked_swarm: false };
        for (peer, addrs) in named {
            pool.add(peer, addrs, 0);
        }
        pool
    }

    /// Chooses a provider for a batch: the one with the least in flight, then the steadiest, then the best rank.
    pub(super) fn take_for(&mut self, batch: &Batch, share: &Share) -> Option<Source> {
        let first = batch.cids.first()?;
        let may = |peer: &PeerId| match &batch.whom {
            Whom::Anyone => true,
            Whom::Origins => !share.is_fellow(peer),
            Whom::Fellow(fellow) => fellow == peer,
        };
        let (peer, provider) = self
            .providers
            .iter_mut()
            .filter(|(_, p)| p.dropped.is_none() && p.flying < MAX_BATCHES_PER_PROVIDER && !p.lacks.contains(first))
            .filter(|(peer, _)| may(peer))
            .min_by_key(|(_, p)| (p.flying, p.failures, p.rank))?;
        provider.flying += 1;
        Some((peer.clone(), provider.addrs.clone()))
    }

    /// Says whether there is somebody to ask beside fellows.
    pub(super) fn has_origin(&self, share: &Share) -> bool {
        self.providers.iter().any(|(peer, provider)| provider.dropped.is_none() && !share.is_fellow(peer))
    }

    /// Says whether a provider is asked no more.
    pub(super) fn is_dropped(&self, peer: &PeerId) -> bool {
        self.providers.get(peer).is_none_or(|provider| provider.dropped.is_some())
    }

    /// Learns from a batch.
    pub(super) fn give_back(&mut self, done: &BatchDone, whom: &Whom) {
        let Some(provider) = self.providers.get_mut(&done.provider) else { return };
        provider.flying = provider.flying.saturating_sub(1);
        provider.bytes += done.blocks.iter().map(|b| b.data().len() as u64).sum::<u64>();
        if !done.blocks.is_empty() {
            provider.failures = 0;
        }
        match &done.end {
            BatchEnd::Complete | BatchEnd::Full => {}
            // A fellow has it in a moment.
            BatchEnd::Lacks if matches!(whom, Whom::Fellow(_)) => {}
            BatchEnd::Lacks => provider.lacks.extend(done.rest().first()),
            BatchEnd::Slow(reason) => {
                tracing::warn!(peer = %done.provider, reason, "dropped a provider that is too slow");
                provider.dropped = Some(reason.clone());
            }
            BatchEnd::Lied(reason) => {
                tracing::warn!(peer = %done.provider, reason, "dropped a provider that lies");
                provider.dropped = Some(format!("lied: {reason}"));
            }
            // A fellow has more to do than it can at the moment.
            BatchEnd::Silent(reason) if matches!(whom, Whom::Fellow(_)) => provider.failed(reason),
            BatchEnd::Silent(reason) => {
                tracing::warn!(peer = %done.provider, reason, "a provider does not answer");
                provider.failed(reason);
            }
            BatchEnd::Broke(reason) => {
                tracing::debug!(peer = %done.provider, reason, "a provider broke off");
                provider.failed(reason);
            }
        }
    }

    /// Returns everybody who did not lie.
    pub(super) fn sources(&self) -> Vec<Source> {
        let honest = self.providers.iter().filter(|(_, p)| !p.lied());
        honest.map(|(peer, provider)| (peer.clone(), provider.addrs.clone())).collect()
    }

    /// Looks for more providers; returns whether there are any new ones.
    pub(super) async fn search(&mut self, limit: Duration) -> bool {
        let Some(net) = self.links.net().cloned() else { return false };
        let mut found = false;
        if !self.asked_swarm {
            self.asked_swarm = true;
            for peer in net.peers().await {
                found |= self.add(peer.peer, Vec::new(), 2);
            }
        }
        let searches = self.keys.iter().map(|key| net.providers(key, limit.min(SEARCH_TIMEOUT)));
        let mut searches: FuturesUnordered<_> = searches.collect();
        let mut providers = Vec::new();
        // It has one of them; that nobody has the others can take long to tell.
        while providers.is_empty()
            && let Some(told) = searches.next().await
        {
            providers = told;
        }
        drop(searches);
        for peer in providers {
            found |= self.add(peer, Vec::new(), 1);
        }
        found
    }

    /// Gives everybody another chance who did not lie: they may have got it meanwhile, or be reachable again.
    pub(super) fn retry(&mut self) {
        self.asked_swarm = false;
        for provider in self.providers.values_mut() {
            provider.lacks.clear();
            if provider.dropped.is_some() && !provider.lied() {
                provider.dropped = None;
                provider.failures = MAX_FAILURES - 1;
            }
        }
    }

    /// Returns bytes by provider, for those who gave any.
    pub(super) fn served(&self) -> Vec<(PeerId, u64)> {
        self.providers.iter().filter(|(_, p)| p.bytes > 0).map(|(peer, p)| (peer.clone(), p.bytes)).collect()
    }

    /// Returns dropped providers with the reasons.
    pub(super) fn dropped(&self) -> Vec<(PeerId, String)> {
        self.providers.iter().filter_map(|(peer, p)| Some((peer.clone(), p.dropped.clone()?))).collect()
    }

    fn add(&mut self, peer: PeerId, addrs: Vec<String>, rank: u32) -> bool {
        if peer == *self.links.peer() || self.providers.contains_key(&peer) {
            return false;
        }
        self.providers.insert(peer, Provider { addrs, rank, ..Provider::default() });
        true
    }
}
