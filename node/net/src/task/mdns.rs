//! Peers of the local network.

use std::collections::BTreeMap;

use libp2p::{PeerId, mdns};

use super::Task;
use crate::addr::to_peer;
use crate::event::NetEvent;

impl Task {
    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(found) => {
                let mut peers: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
                for (peer, addr) in found {
                    self.book.add(peer, addr.clone());
                    peers.entry(peer).or_default().push(addr.to_string());
                }
                for (peer, addrs) in peers {
                    self.emit(NetEvent::Discovered { peer: to_peer(&peer), addrs });
                }
            }
            // What was learned stays in the book: an address that was right a minute ago is worth a try.
            mdns::Event::Expired(_) => {}
        }
    }
}
