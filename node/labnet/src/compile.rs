//! From a description to a concrete network.
//!
//! [`compile`] is a function of a network's description, the sizes of a run's groups and the run's seed: every lablet
//! makes the same topology. Which instance is where is drawn so that each share is met as exactly as whole numbers
//! allow: `share.rs` has that.
//!
//! Addresses: instances that are reachable as themselves, which are those behind nothing or behind firewalls alone,
//! have the address of the [`Directory`]. Those behind a NAT have the private address 192.168.1.2, each in a realm of
//! its own, or where several share a place the next ones, in one realm; gateways in the public realm have addresses of 172.16.0.0/12, those inside of another 100.64.0.2. Over IPv6
//! every instance has its address of the directory, whatever it is behind: nothing translates it, and each gateway is a
//! firewall with the filter that it has as a NAT.

mod share;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use iptl_dag::model::{
    AccessClass, DependenceModel, GatewayModel, GroupNetwork, InstanceId, JitterModel, LinkModel, NetworkModel,
    PortsModel,
};

use crate::directory::{Directory, DirectoryError, v6_of};
use crate::link::{Jitter, LinkConfig};
use crate::nat::{Dependence, NatConfig, Ports};
use crate::topology::{Access, GatewayId, NodeId, RealmId, Topology, TopologyError};

use share::{deal, seed_of};

/// Address of an instance behind a NAT, in its own realm; whoever shares it has one of the next.
pub const PRIVATE_ADDR: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

/// Address of a NAT inside another, in the realm between them.
const BETWEEN_ADDR: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

/// First address of NATs in the public realm, and how many there are: 172.16.0.0/12 without its first and last.
const FIRST_EXTERNAL: u32 = u32::from_be_bytes([172, 16, 0, 1]);
const EXTERNALS: u32 = (1 << 20) - 2;

/// Most gateways before one instance.
pub const MAX_GATEWAYS: usize = 4;

/// A topology with the instances in it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The network.
    pub topology: Topology,
    /// Where each instance is.
    pub nodes: BTreeMap<InstanceId, NodeId>,
    /// The access class of each; links without a description have none.
    pub classes: BTreeMap<InstanceId, String>,
    /// Whether somebody described it: only then is a delay promised, so that a packet can be late.
    pub described: bool,
}

impl Compiled {
    /// Checks that every LAN is in a cell of these instances with all of its own, or with none: what its gateways know of
    /// connections is in one engine.
    ///
    /// # Errors
    ///
    /// Returns an error that names one that is here, and one that is not.
    pub fn check_cell(&self, cell: &BTreeSet<InstanceId>) -> Result<(), CompileError> {
        let mut here: BTreeMap<GatewayId, &InstanceId> = BTreeMap::new();
        let gateway = |node: &NodeId| self.topology.gateways(*node).first().copied();
        for id in cell {
            let Some((id, node)) = self.nodes.get_key_value(id) else { continue };
            here.extend(gateway(node).map(|gateway| (gateway, id)));
        }
        for (id, node) in self.nodes.iter().filter(|(id, _)| !cell.contains(*id)) {
            if let Some(neighbour) = gateway(node).and_then(|gateway| here.get(&gateway)) {
                return Err(CompileError::PartedLan { here: (*neighbour).clone(), elsewhere: id.clone() });
            }
        }
        Ok(())
    }
}

/// Why a description is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// There are more instances than addresses.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The topology cannot hold it.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// As many names of regions as rows of delays are needed, each once.
    #[error("{regions} names of regions, or one of them twice, for {rows} rows of delays")]
    Regions {
        /// Names.
        regions: usize,
        /// Rows.
        rows: usize,
    },
    /// There is no way to be connected.
    #[error("there is no access class")]
    NoAccess,
    /// The run has no such group.
    #[error("group `{group}` is none of the run's")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// A group names what is not there.
    #[error("group `{group}` names `{name}`, which is no region or access class")]
    UnknownName {
        /// The group.
        group: String,
        /// The name.
        name: String,
    },
    /// No weight of a choice is more than zero.
    #[error("all weights of a choice of group `{group}` are zero")]
    NoWeight {
        /// The group.
        group: String,
    },
    /// A link has a chance of more than a million in a million, or a time that is longer than a day.
    #[error("a link of access class `{access}`, or a delay between regions, is out of range")]
    OutOfRange {
        /// The access class; empty for regions.
        access: String,
    },
    /// No instance would be in a place, or more than it has addresses for.
    #[error("{per} instances of group `{group}` in each place; there may be from 1 to {}", GroupNetwork::MAX_PER)]
    Per {
        /// The group.
        group: String,
        /// Instances.
        per: u32,
    },
    /// Instances of one LAN are not in one cell.
    #[error("{here} and {elsewhere} share a LAN, and are not on one lablet")]
    PartedLan {
        /// One that is.
        here: InstanceId,
        /// One that is not.
        elsewhere: InstanceId,
    },
    /// Too many gateways stand before an instance.
    #[error("{gateways} gateways before an instance of group `{group}`; there may be {MAX_GATEWAYS}")]
    TooDeep {
        /// The group.
        group: String,
        /// Gateways.
        gateways: usize,
    },
    /// More NATs than addresses for them.
    #[error("there are more NATs than the {EXTERNALS} addresses for them")]
    TooManyNats,
}

/// A day, in microseconds: longer than any link's time.
const MAX_TIME_US: u64 = 24 * 3_600 * 1_000_000;

/// Makes the network of a run that describes none: clean links between all instances, each of which has its address
/// of the directory.
///
/// # Errors
///
/// Returns an error where there are more instances than addresses.
pub fn clean(groups: &BTreeMap<String, u32>) -> Result<Compiled, CompileError> {
    let directory = Directory::new(groups)?;
    let (mut topology, mut nodes) = (Topology::new(vec![vec![0]])?, BTreeMap::new());
    for (group, size) in groups {
        for instance in InstanceId::range(group, 0, *size) {
            let Some(addr) = directory.addr(&instance) else { continue };
            let node = topology.add_node(RealmId::PUBLIC, addr, v6_of(addr), Access::default())?;
            nodes.insert(instance, node);
        }
    }
    Ok(Compiled { topology, nodes, classes: BTreeMap::new(), described: false })
}

/// Makes the network of a run. `groups` has the size of each group, `seed` is the run's.
///
/// # Errors
///
/// Returns the first thing in the description that is no network.
pub fn compile(network: &NetworkModel, groups: &BTreeMap<String, u32>, seed: u64) -> Result<Compiled, CompileError> {
    let directory = Directory::new(groups)?;
    check(network, groups)?;
    let delays = network.delays_us.iter().map(|row| row.iter().map(|us| us * 1_000).collect()).collect();
    let mut world = World { topology: Topology::new(delays)?, externals: 0, network };
    let (mut nodes, mut classes) = (BTreeMap::new(), BTreeMap::new());
    let nowhere = GroupNetwork::default();
    for (name, size) in groups {
        let group = network.groups.get(name).unwrap_or(&nowhere);
        let no_weight = || CompileError::NoWeight { group: name.clone() };
        let region_weights = weights(&network.regions, &group.regions);
        let access_weights = weights(network.access.keys(), &group.access);
        let site_weights: Vec<u32> = group.sites.iter().map(|site| site.weight).collect();
        let choice = |what, weights: &[u32]| deal(seed_of(seed, name, what), *size, weights).ok_or_else(no_weight);
        let regions = choice(0, &region_weights)?;
        let accesses = choice(1, &access_weights)?;
        // A place is dealt as one, to all that share it.
        let places = size.div_ceil(group.per);
        let sites = match group.sites.is_empty() {
            true => vec![0; places as usize],
            false => deal(seed_of(seed, name, 2), places, &site_weights).ok_or_else(no_weight)?,
        };
        let mut lan: Option<Lan> = None;
        for index in 0..*size {
            let place = (index / group.per) as usize;
            let gateways = group.sites.get(sites[place]).map_or(&[][..], |site| &site.gateways);
            if index % group.per == 0 {
                lan = None;
            }
            // Who shares a place is where the first of it is.
            let first = if gateways.is_empty() { index as usize } else { place * group.per as usize };
            let (class_name, class) = network.access.iter().nth(accesses[first]).ok_or(CompileError::NoAccess)?;
            let instance = InstanceId { group: name.clone(), index };
            let Some(addr) = directory.addr(&instance) else { continue };
            let region = u16::try_from(regions[first]).unwrap_or(u16::MAX);
            let node = match (&mut lan, gateways) {
                (_, []) => world.place(region, class, addr)?,
                (Some(lan), _) => world.join(lan, addr)?,
                (None, _) => {
                    let lan = lan.insert(world.lan(region, class, gateways)?);
                    world.join(lan, addr)?
                }
            };
            classes.insert(instance.clone(), class_name.clone());
            nodes.insert(instance, node);
        }
    }
    Ok(Compiled { topology: world.topology, nodes, classes, described: true })
}

pub(crate) fn check(network: &NetworkModel, groups: &BTreeMap<String, u32>) -> Result<(), CompileError> {
    let mut names: Vec<&String> = network.regions.iter().collect();
    names.sort();
    names.dedup();
    let (regions, rows) = (network.regions.len(), network.delays_us.len());
    if regions != rows || names.len() != regions {
        return Err(CompileError::Regions { regions, rows });
    }
    if network.access.is_empty() {
        return Err(CompileError::NoAccess);
    }
    if network.delays_us.iter().flatten().any(|us| *us > MAX_TIME_US) {
        return Err(CompileError::OutOfRange { access: String::new() });
    }
    for (access, class) in &network.access {
        for link in [&class.up, &class.down] {
            let chances = [link.loss_ppm, link.duplicate_ppm, link.reorder_ppm, link.corrupt_ppm];
            if chances.iter().any(|ppm| *ppm > 1_000_000) || link.delay_us.max(link.jitter_us) > MAX_TIME_US {
                return Err(CompileError::OutOfRange { access: access.clone() });
            }
        }
    }
    for (name, group) in &network.groups {
        if !groups.contains_key(name) {
            return Err(CompileError::UnknownGroup { group: name.clone() });
        }
        let regions = group.regions.keys().filter(|region| !network.regions.contains(region));
        let unknown = regions.chain(group.access.keys().filter(|class| !network.access.contains_key(*class))).next();
        if let Some(unknown) = unknown {
            return Err(CompileError::UnknownName { group: name.clone(), name: unknown.clone() });
        }
        if !(1..=GroupNetwork::MAX_PER).contains(&group.per) {
            return Err(CompileError::Per { group: name.clone(), per: group.per });
        }
        let gateways = group.sites.iter().map(|site| site.gateways.len()).max().unwrap_or(0);
        if gateways > MAX_GATEWAYS {
            return Err(CompileError::TooDeep { group: name.clone(), gateways });
        }
    }
    Ok(())
}

/// Returns the weight of each name; where none is given, all have the same.
fn weights<'a>(names: impl IntoIterator<Item = &'a String>, given: &BTreeMap<String, u32>) -> Vec<u32> {
    let names = names.into_iter();
    names.map(|name| if given.is_empty() { 1 } else { given.get(name).copied().unwrap_or(0) }).collect()
}

struct World<'a> {
    topology: Topology,
    /// External addresses given out.
    externals: u32,
    network: &'a NetworkModel,
}

/// The realm inside the gateways of a place, and who is in it so far.
struct Lan {
    realm: RealmId,
    /// The link of each inside it.
    access: Access,
    /// Whether a gateway translates IPv4.
    translated: bool,
    members: u8,
}

impl World<'_> {
    /// Adds an instance with a public address.
    fn place(&mut self, region: u16, class: &AccessClass, addr: Ipv4Addr) -> Result<NodeId, CompileError> {
        let (v4, v6) = (self.network.ip.has_v4().then_some(addr), self.network.ip.has_v6().then_some(v6_of(addr)));
        Ok(self.topology.add_node(RealmId::PUBLIC, v4, v6, self.access(region, class))?)
    }

    /// Adds gateways, and returns what is inside them.
    fn lan(&mut self, region: u16, class: &AccessClass, gateways: &[GatewayModel]) -> Result<Lan, CompileError> {
        // The link is that of whoever stands in the public realm; inside it everything is at once.
        let inside = Access { mtu: class.mtu, region, ..Access::default() };
        let mut lan = Lan { realm: RealmId::PUBLIC, access: self.access(region, class), translated: false, members: 0 };
        for gateway in gateways {
            let translates = gateway.translates && self.network.ip.has_v4();
            let external = match (translates, lan.translated) {
                (false, _) => None,
                (true, false) => Some(self.external()?),
                (true, true) => Some(BETWEEN_ADDR),
            };
            lan.translated |= translates;
            (_, lan.realm) = self.topology.add_gateway(lan.realm, external, nat(gateway), lan.access)?;
            lan.access = inside;
        }
        Ok(lan)
    }

    /// Adds an instance to a LAN.
    fn join(&mut self, lan: &mut Lan, addr: Ipv4Addr) -> Result<NodeId, CompileError> {
        let [a, b, c, first] = PRIVATE_ADDR.octets();
        // No more than have an address there are in one.
        let private = Ipv4Addr::new(a, b, c, first.saturating_add(lan.members));
        lan.members = lan.members.saturating_add(1);
        let v4 = if lan.translated { private } else { addr };
        let (v4, v6) = (self.network.ip.has_v4().then_some(v4), self.network.ip.has_v6().then_some(v6_of(addr)));
        Ok(self.topology.add_node(lan.realm, v4, v6, lan.access)?)
    }

    /// Returns the link of a class from a region into the public realm.
    fn access(&self, region: u16, class: &AccessClass) -> Access {
        debug_assert!(usize::from(region) < self.network.regions.len(), "regions are dealt from those there are");
        Access { region, up: link(&class.up), down: link(&class.down), mtu: class.mtu }
    }

    fn external(&mut self) -> Result<Ipv4Addr, CompileError> {
        if self.externals == EXTERNALS {
            return Err(CompileError::TooManyNats);
        }
        self.externals += 1;
        Ok(Ipv4Addr::from(FIRST_EXTERNAL + self.externals - 1))
    }
}

/// Returns what a link of the description does.
pub(crate) fn link(model: &LinkModel) -> LinkConfig {
    LinkConfig {
        delay_ns: model.delay_us.saturating_mul(1_000),
        jitter_ns: model.jitter_us.saturating_mul(1_000),
        jitter: match model.jitter {
            JitterModel::Uniform => Jitter::Uniform,
            JitterModel::Normal => Jitter::Normal,
            JitterModel::Exponential => Jitter::Exponential,
        },
        rate_bps: model.rate_bps,
        queue_bytes: model.queue_bytes,
        loss_ppm: model.loss_ppm,
        duplicate_ppm: model.duplicate_ppm,
        reorder_ppm: model.reorder_ppm,
        corrupt_ppm: model.corrupt_ppm,
        down: false,
    }
}

fn nat(model: &GatewayModel) -> NatConfig {
    let dependence = |model| match model {
        DependenceModel::Endpoint => Dependence::Endpoint,
        DependenceModel::Address => Dependence::Address,
        DependenceModel::AddressPort => Dependence::AddressPort,
    };
    NatConfig {
        mapping: dependence(model.mapping),
        filtering: dependence(model.filtering),
        ports: match model.ports {
            PortsModel::Preserve => Ports::Preserve,
            PortsModel::Sequential => Ports::Sequential,
            PortsModel::Random => Ports::Random,
        },
        hairpin: model.hairpin,
        inbound_refresh: model.inbound_refresh,
        udp_timeout_ns: model.udp_timeout_ms.saturating_mul(1_000_000),
        tcp_timeout_ns: model.tcp_timeout_ms.saturating_mul(1_000_000),
        ..NatConfig::default()
    }
}
