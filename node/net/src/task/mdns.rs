//! Peers of the local network.

use std::collections::BTreeMap;

use libp2p::{PeerId, mdns};

use super::Task;
use crate::addr::{is_loopback, to_peer};
use crate::event::NetEvent;

impl Task {
    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(found) => {
                let mut peers: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
                for (peer, addr) in found.into_iter().filter(|(_, addr)| !is_loopback(addr)) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::addr::parse;
    use crate::config::Config;
    use crate::streams::Protocols;

    #[tokio::test]
    async fn discovered_peer_is_told_once_and_can_be_dialled() {
        let config = Config { listen: Vec::new(), ..Config::default() };
        let (_commands, queue) = mpsc::channel(1);
        let (mut task, mut events) = Task::start(config, Protocols::default(), queue).await.unwrap();
        let peer = PeerId::random();
        let addrs = ["/ip4/10.0.0.7/tcp/1", "/ip4/10.0.0.7/udp/1/quic-v1"].map(|addr| format!("{addr}/p2p/{peer}"));
        let found = addrs.iter().map(|addr| (peer, parse(addr).unwrap())).collect();
        task.on_mdns(mdns::Event::Discovered(found));
        let told = events.try_recv().unwrap();
        assert_eq!(told, NetEvent::Discovered { peer: to_peer(&peer), addrs: addrs.to_vec() });
        assert!(events.try_recv().is_err());
        assert_eq!(task.book.get(&peer).len(), 2);
    }
}
