//! The server of names within an engine: it stands at every node's own end of its link.
//!
//! So an answer comes at once and always, whatever the links of the network do: names are a service of the lab, and no
//! part of the network that is described. What is asked crosses no link and counts in none.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use iptl_dag::model::InstanceId;

use super::{Engine, Output};
use crate::directory::Directory;
use crate::hosts::datagram;
use crate::ip::{Header, Offload, Transport};
use crate::names::{self, Known};
use crate::topology::{Addrs, Entity, NodeId, Topology};

/// Bytes of the head of a datagram.
const UDP_HEAD: usize = 8;

/// What is served.
#[derive(Debug)]
pub(super) struct Served {
    directory: Arc<Directory>,
    /// Names of whoever asks.
    own: Vec<String>,
}

struct View<'a> {
    topology: &'a Topology,
    behind: &'a [Option<usize>],
    served: &'a Served,
}

impl Known for View<'_> {
    fn directory(&self) -> &Directory {
        &self.served.directory
    }

    fn addrs(&self, ordinal: u64) -> Option<Addrs> {
        self.topology.public_addrs(NodeId::from_index(usize::try_from(ordinal).ok()?))
    }

    fn holder(&self, addr: IpAddr) -> Option<InstanceId> {
        let mut holder = *self.topology.realms[0].addresses.get(&addr)?;
        loop {
            let node = match holder {
                Entity::Node(node) => node,
                Entity::Gateway(gateway) => {
                    let inner = &self.topology.realms[self.topology.gateways[gateway].inner];
                    match inner.addresses.get(&addr) {
                        // Behind a firewall, or over IPv6: the address is known in there too.
                        Some(inside) => {
                            holder = *inside;
                            continue;
                        }
                        None => self.behind[gateway]?,
                    }
                }
            };
            return self.served.directory.at(node as u64);
        }
    }

    fn is_asker(&self, name: &str) -> bool {
        self.served.own.iter().any(|own| own == name)
    }
}

impl Engine {
    /// Answers queries of names from now on, at the addresses of the [configuration](super::EngineConfig::names): those of
    /// instances, whose nodes have their numbers, and these further ones, which mean whoever asks.
    pub fn serve_names(&mut self, directory: Arc<Directory>, own: &[&str]) {
        let own = own.iter().map(|name| name.to_ascii_lowercase()).collect();
        self.names = Some(Served { directory, own });
    }

    /// Returns whether a packet is for the server of names, where there is one.
    pub(super) fn is_for_names(&self, header: &Header) -> bool {
        self.names.is_some()
            && self.config.names.contains(header.dst)
            && matches!(header.transport, Transport::Udp { dst: names::PORT, .. })
    }

    /// Returns the packet that answers one for the server of names; none where it asks nothing.
    pub(super) fn ask_names(&self, header: &Header, packet: &[u8]) -> Option<Vec<u8>> {
        let served = self.names.as_ref()?;
        let Transport::Udp { src: port, .. } = header.transport else { return None };
        // A query fits a packet.
        if header.fragment.is_some() || port == 0 {
            return None;
        }
        let query = packet.get(header.transport_at + UDP_HEAD..header.len)?;
        let view = View { topology: &self.topology, behind: &self.behind, served };
        let answer = names::answer(query, &view)?;
        let (from, to) = (SocketAddr::new(header.dst, names::PORT), SocketAddr::new(header.src, port));
        Some(datagram(from, to, 0, &answer))
    }

    /// Hands a packet to a node at once, without a link.
    pub(super) fn hand_over(&mut self, node: NodeId, bytes: Vec<u8>) {
        let Ok(header) = Header::parse(&bytes) else { return };
        self.stats.delivered += 1;
        self.captures.take(node.0, self.now_ns, &bytes);
        self.outputs.push_back(Output { node, bytes, header, offload: Offload::default(), due_ns: self.now_ns });
    }
}
