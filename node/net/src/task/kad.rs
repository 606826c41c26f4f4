//! The DHT: provider records of roots and of the peer itself.
//!
//! A peer's record is a provider record for the bytes of its peer ID (which are a multihash); only the peer itself can
//! be its provider. It carries the peer's confirmed addresses, at relays too.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::kad::store::RecordStore as _;
use libp2p::kad::{
    Event, GetProvidersOk, InboundRequest, Mode, ProviderRecord, QueryId, QueryResult, RecordKey, store,
};
use libp2p::swarm::{ConnectionId, NetworkBehaviour as _};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Task;
use crate::addr::is_worth_telling;
use crate::config::KadMode;
use crate::error::ProvideError;
use crate::swarm::MAX_PROVIDED_KEYS;

/// After the first providers were found, more may come for this long.
const MORE_PROVIDERS: Duration = Duration::from_millis(100);
/// Changes of addresses and new peers come in groups; one round of announcements follows each group.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(200);
/// Announcements in progress at a time.
const MAX_ANNOUNCING: usize = 8;
/// Peers beyond which a new one changes little about where records lie: the size of one Kademlia bucket.
const FEW_PEERS: usize = 20;
/// Addresses kept of one provider record.
const MAX_RECORD_ADDRS: usize = 16;
/// Longest key kept for others, in bytes.
const MAX_KEY_SIZE: usize = 128;

/// State of the DHT's users.
#[derive(Default)]
pub(super) struct Kad {
    provided: BTreeSet<Vec<u8>>,
    /// First announcements that somebody waits for.
    providing: HashMap<QueryId, oneshot::Sender<Result<(), ProvideError>>>,
    lookups: HashMap<QueryId, Lookup>,
    routing_peers: usize,
    announce_at: Option<Instant>,
    to_announce: VecDeque<Vec<u8>>,
    announcing: HashSet<QueryId>,
}

struct Lookup {
    /// The only provider that counts, where one peer's record is looked up.
    wanted: Option<PeerId>,
    found: BTreeSet<PeerId>,
    deadline: Instant,
    reply: oneshot::Sender<Vec<PeerId>>,
}

impl Kad {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let lookups = self.lookups.values().map(|lookup| lookup.deadline);
        lookups.chain(self.announce_at).min()
    }
}

impl Task {
    /// Takes up the role in the DHT, and announces the node's own record first of all.
    pub(super) fn start_kad(&mut self, mode: KadMode) {
        if mode == KadMode::Auto && self.is_told_anywhere() {
            self.swarm.behaviour_mut().kad.set_mode(Some(Mode::Server));
        }
        self.kad.provided.insert(self.local_peer().to_bytes());
        self.on_own_addrs_changed();
    }

    pub(super) fn is_kad_server(&self) -> bool {
        self.swarm.behaviour().kad.mode() == Mode::Server
    }

    pub(super) fn provide(&mut self, key: Vec<u8>, reply: oneshot::Sender<Result<(), ProvideError>>) {
        match self.swarm.behaviour_mut().kad.start_providing(RecordKey::new(&key)) {
            Ok(query) => {
                self.kad.provided.insert(key);
                self.kad.providing.insert(query, reply);
            }
            // A caller that is gone does not want to know.
            Err(store::Error::MaxProvidedKeys | store::Error::MaxRecords | store::Error::ValueTooLarge) => {
                drop(reply.send(Err(ProvideError::TooMany { limit: MAX_PROVIDED_KEYS })));
            }
        }
    }

    pub(super) fn stop_providing(&mut self, key: Vec<u8>) {
        // The node's own record stays.
        if key != self.local_peer().to_bytes() && self.kad.provided.remove(&key) {
            self.kad.to_announce.retain(|other| *other != key);
            self.swarm.behaviour_mut().kad.stop_providing(&RecordKey::new(&key));
        }
    }

    pub(super) fn look_up(
        &mut self,
        key: Vec<u8>,
        wanted: Option<PeerId>,
        deadline: Instant,
        reply: oneshot::Sender<Vec<PeerId>>,
    ) {
        let key = RecordKey::new(&key);
        let kad = &mut self.swarm.behaviour_mut().kad;
        // What this node stores for others it knows at once, addresses included.
        let stored = kad.store_mut().providers(&key);
        let query = kad.get_providers(key);
        for record in stored {
            let addrs = record.addresses.into_iter().filter(|addr| is_worth_telling(addr, self.private_addrs_ok));
            for addr in addrs.take(MAX_RECORD_ADDRS) {
                self.book.add(record.provider, addr);
            }
        }
        self.kad.lookups.insert(query, Lookup { wanted, found: BTreeSet::new(), deadline, reply });
    }

    pub(super) fn on_kad(&mut self, event: Event) {
        match event {
            Event::OutboundQueryProgressed { id, result, step, .. } => self.on_query(id, result, step.last),
            Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.store_provider(record);
            }
            Event::RoutingUpdated { is_new_peer, old_peer, .. } => {
                if is_new_peer && old_peer.is_none() {
                    self.kad.routing_peers += 1;
                    if self.kad.routing_peers <= FEW_PEERS {
                        self.on_own_addrs_changed();
                    }
                }
            }
            Event::InboundRequest { .. }
            | Event::UnroutablePeer { .. }
            | Event::RoutablePeer { .. }
            | Event::PendingRoutablePeer { .. }
            | Event::ModeChanged { .. } => {}
        }
    }

    /// Keeps a record for the DHT, within bounds on its parts; the store bounds their number.
    fn store_provider(&mut self, mut record: ProviderRecord) {
        if record.key.as_ref().len() > MAX_KEY_SIZE {
            return;
        }
        record.addresses.retain(|addr| is_worth_telling(addr, self.private_addrs_ok));
        record.addresses.truncate(MAX_RECORD_ADDRS);
        if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
            tracing::warn!(%error, "provider record not kept");
        }
    }

    fn on_query(&mut self, id: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.on_found(id, providers);
            }
            QueryResult::StartProviding(_) => {
                // Whether it reached anybody is not told; it is repeated in any case.
                if let Some(reply) = self.kad.providing.remove(&id) {
                    let _ = reply.send(Ok(()));
                }
                if self.kad.announcing.remove(&id) {
                    self.announce_more();
                }
            }
            QueryResult::GetProviders(_)
            | QueryResult::Bootstrap(_)
            | QueryResult::GetClosestPeers(_)
            | QueryResult::RepublishProvider(_)
            | QueryResult::GetRecord(_)
            | QueryResult::PutRecord(_)
            | QueryResult::RepublishRecord(_) => {}
        }
        if last {
            self.finish_lookup(id);
        }
    }

    /// Takes providers in, with their addresses: the DHT knows these only while the query runs.
    fn on_found(&mut self, id: QueryId, providers: HashSet<PeerId>) {
        let local = *self.local_peer();
        let Some(wanted) = self.kad.lookups.get(&id).map(|lookup| lookup.wanted) else { return };
        let counting =
            providers.into_iter().filter(|peer| *peer != local && wanted.is_none_or(|wanted| wanted == *peer));
        let counting = counting.collect::<Vec<_>>();
        let mut addressed = false;
        for peer in &counting {
            let addrs = self.kad_addrs(peer).into_iter().filter(|addr| is_worth_telling(addr, self.private_addrs_ok));
            for addr in addrs.take(MAX_RECORD_ADDRS) {
                addressed = true;
                self.book.add(*peer, addr);
            }
        }
        let Some(lookup) = self.kad.lookups.get_mut(&id) else { return };
        if lookup.found.is_empty() && !counting.is_empty() {
            lookup.deadline = lookup.deadline.min(Instant::now() + MORE_PROVIDERS);
        }
        lookup.found.extend(counting);
        if wanted.is_some() && addressed {
            self.finish_lookup(id);
        }
    }

    /// Returns the addresses of a peer in the routing table and in the queries that run.
    pub(super) fn kad_addrs(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let kad = &mut self.swarm.behaviour_mut().kad;
        // What the swarm asks before it dials; it changes nothing.
        let no_connection = ConnectionId::new_unchecked(0);
        kad.handle_pending_outbound_connection(no_connection, Some(*peer), &[], Endpoint::Dialer).unwrap_or_default()
    }

    fn finish_lookup(&mut self, id: QueryId) {
        if let Some(lookup) = self.kad.lookups.remove(&id) {
            if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
                query.finish();
            }
            // A caller that is gone does not want to know.
            let _ = lookup.reply.send(lookup.found.into_iter().collect());
        }
    }

    /// Announces everything again soon: others must learn the addresses, or the first other was found.
    pub(super) fn on_own_addrs_changed(&mut self) {
        self.kad.announce_at.get_or_insert_with(|| Instant::now() + ANNOUNCE_DELAY);
    }

    pub(super) fn on_kad_deadline(&mut self, now: Instant) {
        let due = self.kad.lookups.iter().filter(|(_, lookup)| lookup.deadline <= now).map(|(id, _)| *id);
        for id in due.collect::<Vec<_>>() {
            self.finish_lookup(id);
        }
        if self.kad.announce_at.is_some_and(|at| at <= now) {
            self.kad.announce_at = None;
            let local = self.local_peer().to_bytes();
            let others = self.kad.provided.iter().filter(|key| **key != local).cloned().collect::<Vec<_>>();
            self.kad.to_announce = std::iter::once(local).chain(others).collect();
            self.announce_more();
        }
    }

    fn announce_more(&mut self) {
        while self.kad.announcing.len() < MAX_ANNOUNCING {
            let Some(key) = self.kad.to_announce.pop_front() else { break };
            match self.swarm.behaviour_mut().kad.start_providing(RecordKey::new(&key)) {
                Ok(query) => {
                    self.kad.announcing.insert(query);
                }
                Err(error) => tracing::warn!(%error, "key not announced"),
            }
        }
    }
}
