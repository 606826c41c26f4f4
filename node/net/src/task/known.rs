//! Peers to stay connected to.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::Task;
use crate::addr::parse_with_peer;
use crate::error::AddrError;

/// First pause before a lost known peer is dialled again; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause: a lab owner who restarts the machine that everybody knows waits at most this long.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// The peers of `Config::known`, with when to dial them.
#[derive(Debug)]
pub(super) struct Known {
    addrs: Vec<(PeerId, Multiaddr)>,
    /// Peers that are not connected: when to dial, and the pause after that.
    missing: BTreeMap<PeerId, (Instant, Duration)>,
}

impl Known {
    pub(super) fn new(addrs: &[String]) -> Result<Known, AddrError> {
        let addrs = addrs.iter().map(|addr| parse_with_peer(addr)).collect::<Result<Vec<_>, _>>()?;
        Ok(Known { addrs, missing: BTreeMap::new() })
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.missing.values().map(|(at, _)| *at).min()
    }

    fn contains(&self, peer: &PeerId) -> bool {
        self.addrs.iter().any(|(known, _)| known == peer)
    }
}

impl Task {
    pub(super) fn start_known(&mut self) {
        let now = Instant::now();
        let local = *self.local_peer();
        self.known.addrs.retain(|(peer, _)| *peer != local);
        self.known.missing = self.known.addrs.iter().map(|(peer, _)| (*peer, (now, MIN_PAUSE))).collect();
        self.on_known_deadline(now);
    }

    pub(super) fn on_known_deadline(&mut self, now: Instant) {
        let due = self.known.missing.iter_mut().filter(|(_, (at, _))| *at <= now);
        let due = due
            .map(|(peer, (at, pause))| {
                *at = now + *pause;
                *pause = MAX_PAUSE.min(*pause * 2);
                *peer
            })
            .collect::<Vec<_>>();
        for peer in due {
            // They come first again, whatever else was learned about the peer.
            for (_, addr) in self.known.addrs.iter().filter(|(known, _)| *known == peer) {
                self.book.add(peer, addr.clone());
            }
            self.dial(peer, Vec::new(), None);
        }
    }

    pub(super) fn on_known_connected(&mut self, peer: &PeerId) {
        self.known.missing.remove(peer);
    }

    pub(super) fn on_known_disconnected(&mut self, peer: &PeerId) {
        if self.known.contains(peer) {
            self.known.missing.insert(*peer, (Instant::now() + MIN_PAUSE, MIN_PAUSE));
        }
    }
}
