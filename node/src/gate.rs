//! Places for what one peer may keep open here at a time, whatever the number of streams that the swarm lets it have.
//!
//! A stream costs its buffers and its task before anything is known of who opened it: a stranger gets a few of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iptl_dag::PeerId;

/// Hands out places, so many for each peer.
#[derive(Clone)]
pub(crate) struct Gate {
    each: usize,
    taken: Arc<Mutex<BTreeMap<PeerId, usize>>>,
}

/// A place of a peer; given back when dropped.
pub(crate) struct Place {
    gate: Gate,
    peer: PeerId,
}

impl Gate {
    /// Makes a gate with `each` places for every peer.
    pub(crate) fn new(each: usize) -> Gate {
        Gate { each, taken: Arc::default() }
    }

    /// Returns a place, or none where the peer has all of its places already.
    pub(crate) fn enter(&self, peer: &PeerId) -> Option<Place> {
        let mut taken = self.lock();
        let places = taken.entry(peer.clone()).or_default();
        if *places >= self.each {
            return None;
        }
        *places += 1;
        Some(Place { gate: self.clone(), peer: peer.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.gate.lock();
        if let Some(places) = taken.get_mut(&self.peer) {
            *places -= 1;
            if *places == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_its_places_and_no_more_and_others_do_not_notice() {
        let (a, b) = (PeerId::from_ed25519(&[1; 32]), PeerId::from_ed25519(&[2; 32]));
        let gate = Gate::new(2);
        let places = [gate.enter(&a), gate.enter(&a)];
        assert!(places.iter().all(Option::is_some));
        assert!(gate.enter(&a).is_none());
        assert!(gate.enter(&b).is_some());
        drop(places);
        assert!(gate.lock().is_empty());
        assert!(gate.enter(&a).is_some());
    }
}
