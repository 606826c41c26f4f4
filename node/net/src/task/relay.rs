//! What the node does for others as a relay and as a witness, and hole punching: the swarm acts on these by itself, so they
//! are only told to the log. Their effects come as connections (`dial`) and as addresses (`listen`).

use libp2p::{autonat, dcutr, relay};

pub(super) fn on_server(event: &relay::Event) {
    tracing::debug!(?event, "relay server");
}

pub(super) fn on_dcutr(event: &dcutr::Event) {
    match &event.result {
        Ok(_) => tracing::info!(peer = %event.remote_peer_id, "direct connection made through a relay"),
        Err(error) => tracing::debug!(peer = %event.remote_peer_id, %error, "no direct connection: stays relayed"),
    }
}

pub(super) fn on_autonat_server(event: &autonat::v2::server::Event) {
    tracing::debug!(?event, "reachability of a peer");
}
