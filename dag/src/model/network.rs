//! Networks: what lies between the instances of a run, as data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::PeerId;

/// A description of a network, without names of instances: a run, a group, an index and the run's seed say which place
/// in it an instance has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkModel {
    /// Regions; their order is that of the rows and columns of `delays_us`.
    pub regions: Vec<String>,
    /// One-way delay from each region (row) to each (column), in microseconds; the diagonal is that within a region.
    pub delays_us: Vec<Vec<u64>>,
    /// Ways to be connected, by name.
    pub access: BTreeMap<String, AccessClass>,
    /// Which families of addresses instances have; IPv4 where nothing is said.
    #[serde(default, skip_serializing_if = "IpModel::is_v4_alone")]
    pub ip: IpModel,
    /// Where instances are, by group. A group that is missing is spread evenly over regions and access classes, and
    /// reachable from everywhere.
    pub groups: BTreeMap<String, GroupNetwork>,
}

/// Families of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpModel {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Each instance has an address of both.
    Both,
}

impl IpModel {
    /// Returns whether instances have IPv4 addresses.
    pub fn has_v4(self) -> bool {
        self != IpModel::Ipv6
    }

    /// Returns whether instances have IPv6 addresses.
    pub fn has_v6(self) -> bool {
        self != IpModel::Ipv4
    }

    fn is_v4_alone(&self) -> bool {
        *self == IpModel::Ipv4
    }
}

/// A way to be connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessClass {
    /// What an instance or its outermost gateway sends.
    pub up: LinkModel,
    /// What is sent to it.
    pub down: LinkModel,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// What one direction of a link does to packets. Everything at zero is a clean link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkModel {
    /// Delay after transmission, in microseconds.
    pub delay_us: u64,
    /// Spread of the delay, in microseconds; its meaning depends on `jitter`.
    pub jitter_us: u64,
    /// Distribution of the spread.
    pub jitter: JitterModel,
    /// Bits per second, IP heads included; zero is no limit.
    pub rate_bps: u64,
    /// Bytes that may wait for transmission, where there is a rate.
    pub queue_bytes: u64,
    /// Chance of loss, in a million.
    pub loss_ppm: u32,
    /// Chance of a copy, in a million.
    pub duplicate_ppm: u32,
    /// Chance of overtaking, in a million.
    pub reorder_ppm: u32,
    /// Chance that a bit is turned, in a million.
    pub corrupt_ppm: u32,
}

/// Distribution of a spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JitterModel {
    /// Evenly to both sides, at most the spread.
    #[default]
    Uniform,
    /// A bell with the spread as its standard deviation.
    Normal,
    /// Later only, the spread more in the mean, with a long tail.
    Exponential,
}

/// Where the instances of a group are. Weights are relative to their sum; the instances are divided as exactly as whole
/// numbers allow, and the seed says which is which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupNetwork {
    /// Weights of regions; none is an even spread over all.
    pub regions: BTreeMap<String, u32>,
    /// Weights of access classes; none is an even spread over all.
    pub access: BTreeMap<String, u32>,
    /// What instances are behind; none is nothing.
    pub sites: Vec<SiteShare>,
    /// How many instances with neighbouring indices share what they are behind, and so a LAN: `per`, where they are behind
    /// anything, beginning at multiples of it; one where nothing is said. The last place may have fewer.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub per: u32,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_one(per: &u32) -> bool {
    *per == 1
}

impl Default for GroupNetwork {
    /// Spread evenly over everything, and behind nothing.
    fn default() -> GroupNetwork {
        GroupNetwork { regions: BTreeMap::new(), access: BTreeMap::new(), sites: Vec::new(), per: 1 }
    }
}

impl GroupNetwork {
    /// Most instances that share a place: 192.168.1.2 and on, up to 192.168.1.254.
    pub const MAX_PER: u32 = 253;
}

impl NetworkModel {
    /// Returns of each group whose instances share places how many are to be on one lablet.
    pub fn together(&self) -> BTreeMap<String, u32> {
        let shared = self.groups.iter().filter(|(_, group)| group.per > 1);
        shared.map(|(name, group)| (name.clone(), group.per)).collect()
    }
}

/// A kind of place, and how many instances are in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteShare {
    /// Weight.
    pub weight: u32,
    /// Gateways between the public network and the instance, the outermost first; none is a public address.
    pub gateways: Vec<GatewayModel>,
}

/// A NAT or a firewall, in the words of RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayModel {
    /// Whether addresses are translated; otherwise it is a firewall, and `mapping`, `ports` and `hairpin` mean nothing.
    pub translates: bool,
    /// When an inner endpoint keeps its mapping.
    pub mapping: DependenceModel,
    /// Who may send to a mapping.
    pub filtering: DependenceModel,
    /// Which external ports there are.
    pub ports: PortsModel,
    /// Whether inner hosts reach each other by the external address.
    pub hairpin: bool,
    /// Whether packets from outside keep a mapping alive.
    pub inbound_refresh: bool,
    /// Life of a UDP mapping, in milliseconds.
    pub udp_timeout_ms: u64,
    /// Life of an established TCP connection, in milliseconds.
    pub tcp_timeout_ms: u64,
}

impl Default for GatewayModel {
    /// The NAT of most homes: port-restricted, with the lives that RFC 4787 (REQ-5) recommends for UDP and that are the
    /// least which RFC 5382 (REQ-5) allows for established TCP connections.
    fn default() -> GatewayModel {
        GatewayModel {
            translates: true,
            mapping: DependenceModel::Endpoint,
            filtering: DependenceModel::AddressPort,
            ports: PortsModel::Preserve,
            hairpin: true,
            inbound_refresh: false,
            udp_timeout_ms: 300_000,
            tcp_timeout_ms: 7_440_000,
        }
    }
}

/// What of the remote endpoint a behaviour depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DependenceModel {
    /// Nothing.
    Endpoint,
    /// Its address.
    Address,
    /// Its address and port.
    AddressPort,
}

/// Which external port a mapping gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortsModel {
    /// The inner one where it is free.
    Preserve,
    /// One after the other.
    Sequential,
    /// Any.
    Random,
}

/// The way between two lablets, and the shortest delay that is to hide it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// The other lablet.
    pub to: PeerId,
    /// Region of instances on the lablet that measured.
    pub from_region: String,
    /// Region of instances on the other.
    pub to_region: String,
    /// Delay from the one to the other, in microseconds.
    pub asked_us: u64,
    /// Time that the way takes, in microseconds; none where there is no way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_us: Option<u64>,
    /// Whether it goes by way of a third machine.
    pub relayed: bool,
}

impl Way {
    /// By how much a way may be longer than its delay, in microseconds: as late as one packet in a hundred may be before
    /// a result says so.
    pub const GRACE_US: u64 = 1_000;

    /// Returns whether the way cannot be hidden in the delay.
    pub fn is_too_slow(&self) -> bool {
        self.measured_us.is_some_and(|us| us > self.asked_us.saturating_add(Way::GRACE_US))
    }
}
