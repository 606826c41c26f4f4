//! Places for what one peer may keep open here at a time, whatever the number of streams that the swarm lets it have.
//!
//! A stream costs its buffers and its task before anything is known of who opened it: a stranger gets a few of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iptl_dag::PeerId;
use tokio::sync::Semaphore;

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

/// Lets one peer have so many things done for it at a time; the others wait for their turn, and for nobody else's.
#[derive(Clone)]
pub(crate) struct Turns {
    each: usize,
    peers: Arc<Mutex<BTreeMap<PeerId, Weak<Semaphore>>>>,
}

impl Turns {
    /// Gives every peer `each` turns at a time.
    pub(crate) fn new(each: usize) -> Turns {
        Turns { each, peers: Arc::default() }
    }

    /// Returns the turns of a peer.
    pub(crate) fn of(&self, peer: &PeerId) -> Arc<Semaphore> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = peers.get(peer).and_then(Weak::upgrade) {
            return turns;
        }
        peers.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(self.each));
        peers.insert(peer.clone(), Arc::downgrade(&turns));
        turns
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

    #[test]
    fn a_peer_waits_for_its_own_turns_alone() {
        let (a, b) = (PeerId::from_ed25519(&[1; 32]), PeerId::from_ed25519(&[2; 32]));
        let turns = Turns::new(1);
        let first = turns.of(&a).try_acquire_owned().unwrap();
        assert!(turns.of(&a).try_acquire_owned().is_err());
        assert!(turns.of(&b).try_acquire_owned().is_ok());
        drop(first);
        assert!(turns.of(&a).try_acquire_owned().is_ok());
        // Those who are gone are forgotten.
        drop(turns.of(&PeerId::from_ed25519(&[3; 32])));
        assert_eq!(turns.peers.lock().unwrap().len(), 1);
    }
}
