//! A concrete network: realms, the nodes in them, and the gateways between them.
//!
//! A realm is a space of addresses. The first is the public one, whose nodes and gateways stand in regions with a
//! delay between each two. Every other realm is the inside of one gateway, made together with it, so that no gateway
//! can be inside itself; private addresses may be the same in each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::LinkConfig;
use crate::nat::NatConfig;

/// Most regions: their links are one for each ordered pair.
pub const MAX_REGIONS: usize = 256;

/// Smallest packet size that a node or gateway can be limited to, in bytes: what every IPv4 link must carry is 68,
/// and a lab address is worth nothing where a datagram of the usual 576 does not pass.
pub const MIN_MTU: u16 = 576;

/// A realm of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealmId(pub(crate) usize);

/// A node of a topology: an instance's place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

/// A gateway of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayId(pub(crate) usize);

impl RealmId {
    /// The public realm.
    pub const PUBLIC: RealmId = RealmId(0);
}

impl NodeId {
    /// Returns its number: nodes are numbered from zero as they are added.
    pub fn index(self) -> usize {
        self.0
    }

    /// Returns the node of a number, which may be none of a topology's.
    pub fn from_index(index: usize) -> NodeId {
        NodeId(index)
    }
}

/// Smallest packet size over IPv6, in bytes: every link must carry that (RFC 8200).
pub const MIN_MTU_V6: u16 = 1280;

/// The addresses that a node has for itself: at least one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addrs {
    /// Over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Over IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Addrs {
    /// Returns whether one of them is this.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.like(addr) == Some(addr)
    }

    /// Returns the one of the family of another.
    pub fn like(&self, addr: IpAddr) -> Option<IpAddr> {
        match addr {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Returns the one to be named where only one is: the first there is, IPv4 before IPv6.
    pub fn first(&self) -> Option<IpAddr> {
        self.iter().next()
    }

    /// Returns them, IPv4 before IPv6.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// How a node or a gateway is connected to its realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Region; counts in the public realm only.
    pub region: u16,
    /// What it sends.
    pub up: LinkConfig,
    /// What is sent to it.
    pub down: LinkConfig,
    /// Largest packet, in bytes.
    pub mtu: u16,
}

impl Default for Access {
    /// Clean links in the first region with the MTU of Ethernet.
    fn default() -> Access {
        Access { region: 0, up: LinkConfig::default(), down: LinkConfig::default(), mtu: 1500 }
    }
}

/// Who holds an address in a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entity {
    Node(usize),
    Gateway(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Realm {
    pub(crate) addresses: BTreeMap<IpAddr, Entity>,
    /// The gateway whose inside it is; none for the public realm.
    pub(crate) gateway: Option<usize>,
    pub(crate) nodes: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) realm: usize,
    pub(crate) addrs: Addrs,
    pub(crate) access: Access,
}

#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) inner: usize,
    pub(crate) outer: usize,
    pub(crate) external: Option<Ipv4Addr>,
    pub(crate) nat: NatConfig,
    pub(crate) access: Access,
}

/// A concrete network.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(crate) realms: Vec<Realm>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) gateways: Vec<Gateway>,
    /// One row for each region: delay to each region, in nanoseconds.
    pub(crate) delays_ns: Vec<Vec<u64>>,
}

/// Why something cannot be added to a topology.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The matrix of delays has no rows, too many, or rows of another length than its own.
    #[error(
        "{rows} rows of delays, one of them with {columns} columns; there are to be from 1 to {MAX_REGIONS}, as many as rows"
    )]
    Matrix {
        /// Rows.
        rows: usize,
        /// Columns of the first row that does not fit, or of the first.
        columns: usize,
    },
    /// No such realm.
    #[error("there is no such realm")]
    NoRealm,
    /// No such region.
    #[error("region {region} is none of {regions}")]
    NoRegion {
        /// Region asked for.
        region: u16,
        /// Regions that there are.
        regions: usize,
    },
    /// The address is taken in its realm, or in one to which it is announced.
    #[error("address {addr} is taken")]
    AddressTaken {
        /// The address.
        addr: IpAddr,
    },
    /// The address is none that a host can have.
    #[error("address {addr} is no host's")]
    BadAddress {
        /// The address.
        addr: IpAddr,
    },
    /// The node would have no address.
    #[error("a node without an address")]
    NoAddress,
    /// Packets would be too small.
    #[error("an MTU of {mtu} bytes is less than {least}")]
    Mtu {
        /// MTU asked for.
        mtu: u16,
        /// Smallest that there may be.
        least: u16,
    },
}

impl Topology {
    /// Makes a topology with a public realm and nothing in it. `delays_ns` has a row for each region with the delay
    /// to each region, in nanoseconds; the diagonal is the delay within a region.
    ///
    /// # Errors
    ///
    /// Returns an error if the matrix is not square, empty or larger than [`MAX_REGIONS`].
    pub fn new(delays_ns: Vec<Vec<u64>>) -> Result<Topology, TopologyError> {
        let rows = delays_ns.len();
        let unfit = delays_ns.iter().map(Vec::len).find(|columns| *columns != rows);
        if unfit.is_some() || rows == 0 || rows > MAX_REGIONS {
            return Err(TopologyError::Matrix { rows, columns: unfit.unwrap_or(rows) });
        }
        let public = Realm { addresses: BTreeMap::new(), gateway: None, nodes: Vec::new() };
        Ok(Topology { realms: vec![public], nodes: Vec::new(), gateways: Vec::new(), delays_ns })
    }

    /// Adds a node with its addresses to a realm. Addresses that the realm's gateway does not translate are known
    /// outside too, up to the public realm.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be there; the topology is then unchanged.
    pub fn add_node(
        &mut self,
        realm: RealmId,
        v4: impl Into<Option<Ipv4Addr>>,
        v6: impl Into<Option<Ipv6Addr>>,
        access: Access,
    ) -> Result<NodeId, TopologyError> {
        let addrs = Addrs { v4: v4.into(), v6: v6.into() };
        self.check(realm, &access)?;
        if addrs.first().is_none() {
            return Err(TopologyError::NoAddress);
        }
        if addrs.v6.is_some() && access.mtu < MIN_MTU_V6 {
            return Err(TopologyError::Mtu { mtu: access.mtu, least: MIN_MTU_V6 });
        }
        let node = self.nodes.len();
        let mut entries = Vec::new();
        for addr in addrs.iter() {
            entries.extend(self.entries(realm.0, addr, Entity::Node(node))?);
        }
        self.enter(entries);
        self.realms[realm.0].nodes.push(node);
        self.nodes.push(Node { realm: realm.0, addrs, access });
        Ok(NodeId(node))
    }

    /// Adds a gateway to a realm and makes the realm inside it. With an external address it translates IPv4 to that;
    /// without one, and for IPv6, it is a firewall.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be there; the topology is then unchanged.
    pub fn add_gateway(
        &mut self,
        outer: RealmId,
        external: Option<Ipv4Addr>,
        nat: NatConfig,
        access: Access,
    ) -> Result<(GatewayId, RealmId), TopologyError> {
        self.check(outer, &access)?;
        let gateway = self.gateways.len();
        let entries = match external {
            Some(addr) => self.entries(outer.0, addr.into(), Entity::Gateway(gateway))?,
            None => Vec::new(),
        };
        self.enter(entries);
        let inner = self.realms.len();
        self.realms.push(Realm { addresses: BTreeMap::new(), gateway: Some(gateway), nodes: Vec::new() });
        self.gateways.push(Gateway { inner, outer: outer.0, external, nat, access });
        Ok((GatewayId(gateway), RealmId(inner)))
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the number of regions.
    pub fn regions(&self) -> usize {
        self.delays_ns.len()
    }

    /// Returns the IPv4 address that a node has for itself.
    pub fn addr(&self, node: NodeId) -> Option<Ipv4Addr> {
        self.addrs(node).and_then(|addrs| addrs.v4)
    }

    /// Returns the addresses that a node has for itself.
    pub fn addrs(&self, node: NodeId) -> Option<Addrs> {
        self.nodes.get(node.0).map(|node| node.addrs)
    }

    /// Returns the IPv4 address under which others know a node: its own, or that of its outermost NAT.
    pub fn public_addr(&self, node: NodeId) -> Option<Ipv4Addr> {
        let translated = self.gateways(node).into_iter().rev().find_map(|gateway| self.gateways[gateway.0].external);
        let own = self.addr(node)?;
        Some(translated.unwrap_or(own))
    }

    /// Returns the addresses under which others know a node. Over IPv6 that is its own: nothing translates it.
    pub fn public_addrs(&self, node: NodeId) -> Option<Addrs> {
        self.addrs(node).map(|own| Addrs { v4: self.public_addr(node), v6: own.v6 })
    }

    /// Returns the largest packet that a node's access takes, in bytes.
    pub fn mtu(&self, node: NodeId) -> Option<u16> {
        self.nodes.get(node.0).map(|node| node.access.mtu)
    }

    /// Returns the region in which a node is.
    pub fn region(&self, node: NodeId) -> Option<u16> {
        self.nodes.get(node.0).map(|node| node.access.region)
    }

    /// Returns the region in which a node, or its outermost gateway, stands in the public realm.
    pub fn public_region(&self, node: NodeId) -> Option<u16> {
        match self.gateways(node).last() {
            Some(gateway) => self.gateways.get(gateway.0).map(|gateway| gateway.access.region),
            None => self.region(node),
        }
    }

    /// Returns the gateways between a node and the public realm, the node's own first.
    pub fn gateways(&self, node: NodeId) -> Vec<GatewayId> {
        let mut realm = self.nodes.get(node.0).map_or(0, |node| node.realm);
        let mut gateways = Vec::new();
        while let Some(gateway) = self.realms[realm].gateway {
            gateways.push(GatewayId(gateway));
            realm = self.gateways[gateway].outer;
        }
        gateways
    }

    /// Gives a node another address under which others know it: its own, and over IPv4 that of its outermost NAT where it
    /// is behind one. What it does not have of a family it does not get. Nobody has the old ones any more.
    ///
    /// Returns the NAT that has another address now, if one has.
    ///
    /// # Errors
    ///
    /// Returns an error where somebody has one of the new ones; the topology is then unchanged.
    pub(crate) fn readdress(&mut self, node: NodeId, to: Addrs) -> Result<Option<GatewayId>, TopologyError> {
        let Some(Node { realm, addrs: old, .. }) = self.nodes.get(node.0).cloned() else { return Ok(None) };
        let nat = self.gateways(node).into_iter().rev().find(|gateway| self.gateways[gateway.0].external.is_some());
        let mut entries = Vec::new();
        let mut now = old;
        if let Some(v4) = to.v4.filter(|_| old.v4.is_some()) {
            match nat {
                Some(nat) => {
                    entries.extend(self.entries(self.gateways[nat.0].outer, v4.into(), Entity::Gateway(nat.0))?);
                }
                None => {
                    entries.extend(self.entries(realm, v4.into(), Entity::Node(node.0))?);
                    now.v4 = Some(v4);
                }
            }
        }
        if let Some(v6) = to.v6.filter(|_| old.v6.is_some()) {
            entries.extend(self.entries(realm, v6.into(), Entity::Node(node.0))?);
            now.v6 = Some(v6);
        }
        let external = nat.and_then(|nat| self.gateways[nat.0].external).filter(|_| !entries.is_empty());
        let gone: Vec<IpAddr> =
            old.iter().filter(|addr| !now.contains(*addr)).chain(external.map(IpAddr::V4)).collect();
        // Private addresses may be the same in other realms: theirs stay.
        let gateways = self.gateways(node);
        let mut realms = vec![realm];
        realms.extend(gateways.iter().map(|gateway| self.gateways[gateway.0].outer));
        for realm in realms {
            self.realms[realm].addresses.retain(|addr, _| !gone.contains(addr));
        }
        self.enter(entries);
        self.nodes[node.0].addrs = now;
        if let (Some(nat), Some(_)) = (nat, external) {
            self.gateways[nat.0].external = to.v4;
        }
        Ok(nat.filter(|_| external.is_some()))
    }

    fn check(&self, realm: RealmId, access: &Access) -> Result<(), TopologyError> {
        if realm.0 >= self.realms.len() {
            return Err(TopologyError::NoRealm);
        }
        if usize::from(access.region) >= self.regions() {
            return Err(TopologyError::NoRegion { region: access.region, regions: self.regions() });
        }
        if access.mtu < MIN_MTU { Err(TopologyError::Mtu { mtu: access.mtu, least: MIN_MTU }) } else { Ok(()) }
    }

    /// Returns in which realms an address is known, and as whose.
    fn entries(
        &self,
        realm: usize,
        addr: IpAddr,
        holder: Entity,
    ) -> Result<Vec<(usize, IpAddr, Entity)>, TopologyError> {
        let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
        if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || broadcast {
            return Err(TopologyError::BadAddress { addr });
        }
        let mut entries = vec![(realm, addr, holder)];
        let mut at = realm;
        while let Some(gateway) = self.realms[at].gateway {
            let Gateway { outer, external, .. } = self.gateways[gateway];
            if addr.is_ipv4() && external.is_some() {
                break;
            }
            entries.push((outer, addr, Entity::Gateway(gateway)));
            at = outer;
        }
        let taken = |(realm, addr, _): &(usize, IpAddr, Entity)| self.realms[*realm].addresses.contains_key(addr);
        if entries.iter().any(taken) { Err(TopologyError::AddressTaken { addr }) } else { Ok(entries) }
    }

    fn enter(&mut self, entries: Vec<(usize, IpAddr, Entity)>) {
        for (realm, addr, holder) in entries {
            self.realms[realm].addresses.insert(addr, holder);
        }
    }
}
