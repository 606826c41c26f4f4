//! Ports of one instance: which of its sockets holds which.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::directory::any_like;
use crate::switch::{NetError, SocketId};

/// First ephemeral port: the range of RFC 6335, which no service is registered in.
const FIRST_EPHEMERAL: u16 = 49_152;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// The ports that sockets are bound to, each under the address of that.
#[derive(Debug)]
pub(crate) struct PortTable {
    holders: BTreeMap<(Protocol, u16), Vec<(IpAddr, SocketId)>>,
    next: u16,
}

impl Default for PortTable {
    fn default() -> PortTable {
        PortTable { holders: BTreeMap::new(), next: FIRST_EPHEMERAL }
    }
}

impl PortTable {
    /// Gives a socket the port of an address, or an ephemeral one where that is zero; returns which.
    pub(crate) fn take(&mut self, protocol: Protocol, addr: SocketAddr, id: SocketId) -> Result<u16, NetError> {
        let (ip, port) = (addr.ip(), addr.port());
        let port = match port {
            0 => self.ephemeral(protocol).ok_or(NetError::NoPorts)?,
            _ if self.is_taken(protocol, ip, port) => return Err(NetError::AddressInUse { port }),
            _ => port,
        };
        self.holders.entry((protocol, port)).or_default().push((ip, id));
        Ok(port)
    }

    /// Takes a port from the socket that holds it.
    pub(crate) fn release(&mut self, protocol: Protocol, port: u16, id: SocketId) {
        let key = (protocol, port);
        if let Some(holders) = self.holders.get_mut(&key) {
            holders.retain(|(_, holder)| *holder != id);
            if holders.is_empty() {
                self.holders.remove(&key);
            }
        }
    }

    /// Returns the socket that gets what comes to an address: the one that is bound to it, or to any of its family.
    pub(crate) fn holder(&self, protocol: Protocol, dst: SocketAddr) -> Option<SocketId> {
        let holders = self.holders.get(&(protocol, dst.port()))?;
        let exact = holders.iter().find(|(ip, _)| *ip == dst.ip());
        let any = any_like(dst.ip());
        exact.or_else(|| holders.iter().find(|(ip, _)| *ip == any)).map(|(_, id)| *id)
    }

    fn is_taken(&self, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
        self.holders.get(&(protocol, port)).is_some_and(|holders| holders.iter().any(|(held, _)| clash(*held, ip)))
    }

    /// Returns the next ephemeral port that no socket holds on any address.
    fn ephemeral(&mut self, protocol: Protocol) -> Option<u16> {
        for _ in FIRST_EPHEMERAL..=u16::MAX {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            if !self.holders.contains_key(&(protocol, port)) {
                return Some(port);
            }
        }
        None
    }
}

/// Returns whether two sockets cannot hold one port of these addresses: each family has ports of its own.
fn clash(a: IpAddr, b: IpAddr) -> bool {
    a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}
