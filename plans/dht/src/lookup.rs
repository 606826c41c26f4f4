//! What one query found, and what it took.

use iptl_sdk::{Json, Result, event, metric};
use libp2p::PeerId;
use libp2p::kad::{GetClosestPeersError, GetProvidersOk, QueryResult, QueryStats};

/// A query that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lookup {
    /// Whether what was looked for was found.
    pub found: bool,
    /// Time until it was found; of what was not found, and of what is only done, until the end.
    pub took_ms: f64,
    /// Requests to peers until the end.
    pub requests: u32,
    /// Requests that got no answer.
    pub failures: u32,
}

impl Lookup {
    /// Leaves its figures with the lab: how often such look-ups find something, and what one takes that does.
    pub fn record(&self, name: &str) -> Result<()> {
        let data = [("of", Json::from(name)), ("found", self.found.into()), ("ms", self.took_ms.into())];
        event("looked-up", data)?;
        metric(&format!("{name}.found"), if self.found { 1.0 } else { 0.0 }, "share")?;
        metric(&format!("{name}.requests"), self.requests.into(), "requests")?;
        metric(&format!("{name}.failures"), self.failures.into(), "requests")?;
        if self.found { metric(name, self.took_ms, "ms") } else { metric(&format!("{name}.vain"), self.took_ms, "ms") }
    }

    /// Takes what libp2p counted.
    pub fn count(&mut self, stats: &QueryStats) {
        self.requests = stats.num_requests();
        self.failures = stats.num_failures();
    }
}

/// Tells whether a result names `target`: as one of the closest peers that answered, or as a provider.
pub fn names(result: &QueryResult, target: &PeerId) -> bool {
    match result {
        QueryResult::GetClosestPeers(Ok(closest)) => closest.peers.iter().any(|peer| peer.peer_id == *target),
        // Others did not answer in time; who is named did.
        QueryResult::GetClosestPeers(Err(GetClosestPeersError::Timeout { peers, .. })) => {
            peers.iter().any(|peer| peer.peer_id == *target)
        }
        QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => providers.contains(target),
        _ => false,
    }
}
