//! Doors out of the lab: addresses that are nobody's in the network, at which a node reaches a carrier of its own.
//!
//! A packet for a door goes nowhere: at its node's own end of its link it is turned round, and comes back to the node as
//! from the door's other address, at the port on which the carrier listens. What the carrier answers is turned round the
//! same way. So kernel and carrier see connections as any other, the one with the door, the other with an address that
//! tells which door it is; and no packet of a node leaves the lab. Nothing is kept of a packet: what a door does follows
//! from the packet alone.

use std::net::{IpAddr, SocketAddr};

use super::{Engine, Output};
use crate::ip::{End, Header, Offload, Transport, set_end};
use crate::topology::NodeId;

/// One door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// Where the node reaches it.
    pub at: SocketAddr,
    /// Whether by TCP, else by UDP.
    pub tcp: bool,
    /// From where its carrier sees what came to it; each door of a node has another.
    pub seen_as: IpAddr,
}

/// The doors of a node, and where their carrier is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// The doors.
    pub doors: Vec<Door>,
    /// Port on which the carrier takes connections, at the node's own address.
    pub tcp_port: u16,
    /// Port on which it takes datagrams.
    pub udp_port: u16,
}

impl Doors {
    /// Turns a packet of the node round, where it is for a door or from their carrier; says whether it was.
    fn turn(&self, bytes: &mut [u8], header: &mut Header) -> bool {
        let (src, dst, tcp) = match header.transport {
            Transport::Tcp { src, dst, .. } => (src, dst, true),
            Transport::Udp { src, dst } => (src, dst, false),
            Transport::Echo { .. } | Transport::Error | Transport::Other => return false,
        };
        // The first part of a datagram whose others have no ports; it would not be put together again.
        if header.fragment.is_some() {
            return false;
        }
        let own = header.src;
        let carrier = if tcp { self.tcp_port } else { self.udp_port };
        let mut doors = self.doors.iter().filter(|door| door.tcp == tcp);
        let (from, to) = match src == carrier {
            true => match doors.find(|door| door.seen_as == header.dst) {
                Some(door) => (door.at, SocketAddr::new(own, dst)),
                None => return false,
            },
            false => match doors.find(|door| door.at == SocketAddr::new(header.dst, dst)) {
                Some(door) => (SocketAddr::new(door.seen_as, src), SocketAddr::new(own, carrier)),
                None => return false,
            },
        };
        set_end(bytes, header, End::Src, from);
        set_end(bytes, header, End::Dst, to);
        true
    }
}

impl Engine {
    /// Gives a node these doors, and no others. What comes to them crosses no link and counts in none.
    pub fn set_doors(&mut self, node: NodeId, doors: Doors) {
        if doors.doors.is_empty() {
            self.doors.remove(&node.0);
        } else {
            self.doors.insert(node.0, doors);
        }
    }

    /// Turns a packet round where it is for a door or from a carrier, and hands it back to its node; returns it where it
    /// is not.
    pub(super) fn try_doors(
        &mut self,
        node: NodeId,
        mut bytes: Vec<u8>,
        mut header: Header,
        offload: Offload,
    ) -> Option<Vec<u8>> {
        if !self.doors.get(&node.0).is_some_and(|doors| doors.turn(&mut bytes, &mut header)) {
            return Some(bytes);
        }
        bytes.truncate(header.len);
        self.stats.turned += 1;
        self.captures.take(node.0, self.now_ns, &bytes);
        self.outputs.push_back(Output { node, bytes, header, offload, due_ns: self.now_ns });
        None
    }
}
