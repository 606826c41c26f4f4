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
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
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
    /// Packets would be too small.
    #[error("an MTU of {mtu} bytes is less than {MIN_MTU}")]
    Mtu {
        /// MTU asked for.
        mtu: u16,
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
        v4: Ipv4Addr,
        v6: Option<Ipv6Addr>,
        access: Access,
    ) -> Result<NodeId, TopologyError> {
        self.check(realm, &access)?;
        let node = self.nodes.len();
        let mut entries = self.entries(realm.0, v4.into(), Entity::Node(node))?;
        if let Some(v6) = v6 {
            entries.extend(self.entries(realm.0, v6.into(), Entity::Node(node))?);
        }
        self.enter(entries);
        self.realms[realm.0].nodes.push(node);
        self.nodes.push(Node { realm: realm.0, v4, v6, access });
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
        self.nodes.get(node.0).map(|node| node.v4)
    }

    /// Returns the IPv4 address under which others know a node: its own, or that of its outermost NAT.
    pub fn public_addr(&self, node: NodeId) -> Option<Ipv4Addr> {
        let translated = self.gateways(node).into_iter().rev().find_map(|gateway| self.gateways[gateway.0].external);
        translated.or_else(|| self.addr(node))
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

    fn check(&self, realm: RealmId, access: &Access) -> Result<(), TopologyError> {
        if realm.0 >= self.realms.len() {
            return Err(TopologyError::NoRealm);
        }
        if usize::from(access.region) >= self.regions() {
            return Err(TopologyError::NoRegion { region: access.region, regions: self.regions() });
        }
        if access.mtu < MIN_MTU { Err(TopologyError::Mtu { mtu: access.mtu }) } else { Ok(()) }
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
