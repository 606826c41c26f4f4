//! Relays, hole punching and reachability: the swarm acts on these by itself, so they are only told to the log. Their
//! effects come as connections (`dial`) and as addresses (`listen`).

use libp2p::{autonat, dcutr, relay};

pub(super) fn on_server(event: &relay::Event) {
    tracing::debug!(?event, "relay server");
}

pub(super) fn on_client(event: &relay::client::Event) {
    tracing::debug!(?event, "relay client");
}

pub(super) fn on_dcutr(event: &dcutr::Event) {
    match &event.result {
        Ok(_) => tracing::info!(peer = %event.remote_peer_id, "direct connection made through a relay"),
        Err(error) => tracing::debug!(peer = %event.remote_peer_id, %error, "no direct connection: stays relayed"),
    }
}

pub(super) fn on_autonat_client(event: &autonat::v2::client::Event) {
    tracing::debug!(?event, "reachability");
}

pub(super) fn on_autonat_server(event: &autonat::v2::server::Event) {
    tracing::debug!(?event, "reachability of a peer");
}
