//! Translation of peer IDs and addresses, and the book of addresses learned.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptl_dag::PeerId;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::error::AddrError;

/// Peers whose addresses are remembered; the one learned first is forgotten first.
const MAX_BOOK_PEERS: usize = 4_096;
/// Addresses remembered of one peer, the newest ones: more are noise or an attack.
const MAX_BOOK_ADDRS: usize = 16;

/// Returns our form of a libp2p peer ID.
pub(crate) fn to_peer(peer: &libp2p::PeerId) -> PeerId {
    PeerId::from_bytes(&peer.to_bytes()).expect("a libp2p peer ID has at most 44 bytes")
}

/// Returns libp2p's form of a peer ID, unless its bytes are no multihash.
pub(crate) fn from_peer(peer: &PeerId) -> Option<libp2p::PeerId> {
    libp2p::PeerId::from_bytes(peer.as_bytes()).ok()
}

/// Reads a multiaddr.
pub(crate) fn parse(addr: &str) -> Result<Multiaddr, AddrError> {
    addr.parse().map_err(|error: libp2p::multiaddr::Error| AddrError { addr: addr.into(), reason: error.to_string() })
}

/// Reads a multiaddr that ends in `/p2p/<peer>`.
pub(crate) fn parse_with_peer(addr: &str) -> Result<(libp2p::PeerId, Multiaddr), AddrError> {
    let parsed = parse(addr)?;
    match peer_of(&parsed) {
        Some(peer) => Ok((peer, parsed)),
        None => Err(AddrError { addr: addr.into(), reason: "it does not end in /p2p/<peer>".into() }),
    }
}

/// Returns the peer that an address ends in.
pub(crate) fn peer_of(addr: &Multiaddr) -> Option<libp2p::PeerId> {
    match addr.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Returns the IP address that an address begins with.
pub(crate) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(ip)),
        Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// Returns whether an address leads through a relay.
pub(crate) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

/// Returns whether an address leads to the machine that uses it.
pub(crate) fn is_loopback(addr: &Multiaddr) -> bool {
    ip_of(addr).is_some_and(|ip| ip.is_loopback())
}

/// Returns an address without the `/p2p/<peer>` at its end.
pub(crate) fn without_peer(mut addr: Multiaddr) -> Multiaddr {
    if peer_of(&addr).is_some() {
        addr.pop();
    }
    addr
}

/// Returns whether an address asks for a reservation at a relay.
pub(crate) fn is_circuit_listener(addr: &Multiaddr) -> bool {
    matches!(addr.iter().last(), Some(Protocol::P2pCircuit))
}

/// Returns whether an address can be announced: always when private ones are fine, else only what the internet routes.
pub(crate) fn is_worth_telling(addr: &Multiaddr, private_addrs_ok: bool) -> bool {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && (private_addrs_ok || is_global_v4(ip)),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && (private_addrs_ok || is_global_v6(ip)),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        _ => false,
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_broadcast() || ip.is_documentation() || shared)
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local())
}

/// Appends `/p2p/<peer>` unless it is there.
pub(crate) fn with_peer(addr: Multiaddr, peer: libp2p::PeerId) -> Multiaddr {
    addr.with_p2p(peer).unwrap_or_else(|addr| addr)
}

/// Addresses of peers, as told by people, mDNS, identify and provider records.
///
/// Kademlia knows the addresses in a provider record only while its query runs; the book keeps them for the dial that
/// follows.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    addrs: BTreeMap<libp2p::PeerId, VecDeque<Multiaddr>>,
    order: VecDeque<libp2p::PeerId>,
}

impl AddressBook {
    /// Remembers an address; the newest come first.
    pub(crate) fn add(&mut self, peer: libp2p::PeerId, addr: Multiaddr) {
        let addr = with_peer(addr, peer);
        if peer_of(&addr) != Some(peer) {
            return;
        }
        if !self.addrs.contains_key(&peer) {
            if self.order.len() >= MAX_BOOK_PEERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.addrs.remove(&oldest);
            }
            self.order.push_back(peer);
        }
        let known = self.addrs.entry(peer).or_default();
        known.retain(|other| *other != addr);
        known.push_front(addr);
        known.truncate(MAX_BOOK_ADDRS);
    }

    /// Forgets an address that another peer answers.
    pub(crate) fn remove(&mut self, peer: &libp2p::PeerId, addr: &Multiaddr) {
        if let Some(known) = self.addrs.get_mut(peer) {
            known.retain(|other| other != addr);
        }
    }

    /// Returns what is known of a peer, newest first.
    pub(crate) fn get(&self, peer: &libp2p::PeerId) -> Vec<Multiaddr> {
        self.addrs.get(peer).map(|addrs| addrs.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_told_only_where_they_are_fine() {
        for (addr, globally) in [
            ("/ip4/127.0.0.1/tcp/1", false),
            ("/ip4/192.168.1.2/udp/1/quic-v1", false),
            ("/ip4/100.64.0.1/tcp/1", false),
            ("/ip4/8.8.8.8/tcp/1", true),
            ("/ip6/::1/tcp/1", false),
            ("/ip6/fd00::1/tcp/1", false),
            ("/ip6/2a00::1/tcp/1", true),
            ("/dns4/lab.example.org/tcp/1", true),
        ] {
            let addr = parse(addr).unwrap();
            assert!(is_worth_telling(&addr, true), "{addr}");
            assert_eq!(is_worth_telling(&addr, false), globally, "{addr}");
        }
        assert!(!is_worth_telling(&parse("/ip4/0.0.0.0/tcp/1").unwrap(), true));
    }

    #[test]
    fn book_is_bounded_and_keeps_the_newest() {
        let mut book = AddressBook::default();
        let peer = libp2p::PeerId::random();
        for port in 1..=40 {
            book.add(peer, parse(&format!("/ip4/10.0.0.1/tcp/{port}")).unwrap());
        }
        let known = book.get(&peer);
        assert_eq!(known.len(), MAX_BOOK_ADDRS);
        assert_eq!(known[0].to_string(), format!("/ip4/10.0.0.1/tcp/40/p2p/{peer}"));
        for _ in 0..MAX_BOOK_PEERS {
            book.add(libp2p::PeerId::random(), parse("/ip4/10.0.0.1/tcp/1").unwrap());
        }
        assert_eq!(book.get(&peer), Vec::<Multiaddr>::new());
    }

    #[test]
    fn address_that_names_another_peer_is_not_booked() {
        let mut book = AddressBook::default();
        let (peer, other) = (libp2p::PeerId::random(), libp2p::PeerId::random());
        book.add(peer, parse(&format!("/ip4/10.0.0.1/tcp/1/p2p/{other}")).unwrap());
        assert_eq!(book.get(&peer), Vec::<Multiaddr>::new());
    }

    #[test]
    fn peer_ids_translate_both_ways() {
        let peer = libp2p::identity::Keypair::ed25519_from_bytes([7; 32]).unwrap().public().to_peer_id();
        let ours = to_peer(&peer);
        assert_eq!(ours.to_string(), peer.to_string());
        assert_eq!(from_peer(&ours), Some(peer));
    }
}
