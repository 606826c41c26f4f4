//! Nodes that nobody can dial, and those through which they are reached.
//!
//! The swarm finds out whether it needs a relay, and asks for a place by itself (`iptl_net`); which relays it may ask, and
//! for whom it is one, is said here.

use iptl_dag::PeerId;
use iptl_net::RelayFor;
use iptl_wire::lab::Role;
use tokio_util::sync::CancellationToken;

use crate::home::Relay;
use crate::links::Links;
use crate::members::Members;

/// Returns who is given a place at this node: members of its lab.
pub(crate) fn for_members(members: &Members) -> RelayFor {
    let members = members.clone();
    std::sync::Arc::new(move |peer| members.is_member(peer))
}

/// Takes up a role: relays for others where the owner lets it, and names the relays that may be asked, until the node stops.
/// Who only submits runs need not be reached.
pub(crate) async fn start(relay: &Relay, role: Role, members: &Members, links: &Links, stop: &CancellationToken) {
    let Some(net) = links.net() else { return };
    net.serve_relay(relay.serves(role)).await;
    if relay.ask && role != Role::Developer {
        let further = relay.at.iter().filter_map(|addr| further(addr)).collect();
        tokio::spawn(name_relays(members.clone(), links.clone(), further, stop.clone()));
    }
}

/// Returns the peer at the end of an address.
fn further(addr: &str) -> Option<(PeerId, Vec<String>)> {
    let peer = addr.rsplit_once("/p2p/").and_then(|(_, peer)| peer.parse().ok());
    if peer.is_none() {
        tracing::warn!(addr, "no relay: the address does not end in /p2p/ and a peer ID");
    }
    Some((peer?, vec![addr.to_owned()]))
}

/// Names the lab's orchestrators as relays, whoever leads first, and then those that the owner names.
async fn name_relays(members: Members, links: Links, further: Vec<(PeerId, Vec<String>)>, stop: CancellationToken) {
    let Some(net) = links.net() else { return };
    let mut learned = members.learned();
    for (peer, addrs) in &further {
        // It gives places to members alone. One that cannot be reached is met when it gives a place to nobody yet.
        members.introduce(&links, peer, addrs).await;
    }
    loop {
        let relays = members.candidates().into_iter().chain(further.iter().cloned()).collect();
        if let Err(error) = net.set_relays(relays).await {
            tracing::warn!(%error, "a relay is not asked");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = learned.changed() => if changed.is_err() { return },
        }
    }
}
