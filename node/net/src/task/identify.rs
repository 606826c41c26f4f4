//! What peers tell about themselves.

use libp2p::{PeerId, identify};

use super::Task;
use crate::addr::{is_loopback, is_relayed, is_worth_telling};
use crate::swarm::KAD_PROTOCOL;

/// Longest name and version that is kept of a peer, in characters.
const MAX_AGENT_CHARS: usize = 128;
/// Addresses taken from one peer's account of itself.
const MAX_ADDRS: usize = 16;

impl Task {
    pub(super) fn on_identify(&mut self, event: identify::Event) {
        match event {
            identify::Event::Received { peer_id, info, .. } => self.on_identified(peer_id, info),
            identify::Event::Error { peer_id, error, .. } => tracing::debug!(peer = %peer_id, %error, "identify"),
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => {}
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        let near = match self.peers.get_mut(&peer) {
            Some(state) => {
                state.agent = Some(info.agent_version.chars().take(MAX_AGENT_CHARS).collect());
                state.connections.values().any(|connection| is_loopback(&connection.addr))
            }
            None => false,
        };
        self.on_observed(peer, info.observed_addr);
        // Only servers speak the DHT's protocol; a client's addresses would make others ask it in vain.
        let serves_kad = info.protocols.contains(&KAD_PROTOCOL);
        let told = info.listen_addrs.into_iter().filter(|addr| {
            // Another machine's loopback is not ours.
            is_worth_telling(addr, self.private_addrs_ok) && (near || !is_loopback(addr))
        });
        for addr in told.take(MAX_ADDRS) {
            self.book.add(peer, addr.clone());
            if serves_kad && !is_relayed(&addr) {
                self.swarm.behaviour_mut().kad.add_address(&peer, addr);
            }
        }
    }
}
