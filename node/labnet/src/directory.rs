//! Addresses and names of instances.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iptl_dag::model::InstanceId;

/// Host numbers used in each /24: `.0` and `.255` look like network and broadcast addresses to software under test.
const HOSTS_PER_BLOCK: u64 = 254;

/// The network of a home: 192.168.1.0/24.
const PRIVATE_NET: [u8; 3] = [192, 168, 1];

/// /24 blocks of 10.0.0.0/8.
const BLOCKS: u64 = 1 << 16;

/// First octet of every lab address.
const NET: u8 = 10;

/// The first 96 bits of every lab address over IPv6, `fd69:7074:6c00::/96`; the rest is the address over IPv4. Unique
/// local addresses, of which the lab takes the prefix that spells its name.
const NET_V6: [u16; 6] = [0xfd69, 0x7074, 0x6c00, 0, 0, 0];

/// Returns how long the prefix of the network is that an instance sees around one of its addresses, in bits.
pub fn prefix_of(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(addr) if addr.octets().starts_with(&PRIVATE_NET) => 24,
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => 96,
    }
}

/// Returns the IPv6 address of the instance that has this IPv4 address in the directory.
pub fn v6_of(addr: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = addr.octets();
    let [n0, n1, n2, n3, n4, n5] = NET_V6;
    Ipv6Addr::new(n0, n1, n2, n3, n4, n5, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// Returns the address of the directory to which one of either family leads; the unspecified one, which nobody has, where
/// it is no lab address.
pub(crate) fn home_of(addr: IpAddr) -> Ipv4Addr {
    v4_of(addr).unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// Returns the address of any, in the family of another.
pub(crate) fn any_like(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Returns the address of oneself, in the family of another.
pub(crate) fn loopback_like(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Returns the IPv4 address of the directory that belongs to an address of either family; none where an IPv6 address is
/// no lab address.
pub fn v4_of(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(addr) => {
            let (net, [.., a, b, c, d]) = (addr.segments(), addr.octets());
            net.starts_with(&NET_V6).then(|| Ipv4Addr::new(a, b, c, d))
        }
    }
}

/// Names and addresses of all instances of a run.
///
/// Instances are numbered over all groups, groups in the order of their names; instance number `n` has the address
/// `10.0.0.1 + n`, where last octets 0 and 255 are skipped; over IPv6 it has that behind `fd69:7074:6c00::`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Groups in the order of names: name, number of the first instance, size.
    groups: Vec<(String, u64, u32)>,
    total: u64,
}

/// Why a run has no directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// More instances than lab addresses.
    #[error("{instances} instances are more than the {limit} lab addresses")]
    TooMany {
        /// Instances of the run.
        instances: u64,
        /// Addresses that there are.
        limit: u64,
    },
}

impl Directory {
    /// Makes the directory of a run from the sizes of its groups.
    pub fn new(groups: &BTreeMap<String, u32>) -> Result<Directory, DirectoryError> {
        let mut total = 0;
        let groups = groups
            .iter()
            .map(|(name, size)| {
                let first = total;
                total += u64::from(*size);
                (name.clone(), first, *size)
            })
            .collect();
        let limit = HOSTS_PER_BLOCK * BLOCKS;
        if total > limit {
            return Err(DirectoryError::TooMany { instances: total, limit });
        }
        Ok(Directory { groups, total })
    }

    /// Returns the number of instances.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Returns whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the number of an instance over all groups, from zero.
    pub fn ordinal(&self, instance: &InstanceId) -> Option<u64> {
        self.ordinal_of(&instance.group, instance.index)
    }

    /// Returns the address of an instance.
    pub fn addr(&self, instance: &InstanceId) -> Option<Ipv4Addr> {
        self.ordinal(instance).map(address)
    }

    /// Returns the IPv6 address of an instance.
    pub fn addr_v6(&self, instance: &InstanceId) -> Option<Ipv6Addr> {
        self.addr(instance).map(v6_of)
    }

    /// Returns the instance that has an address.
    pub fn instance(&self, addr: Ipv4Addr) -> Option<InstanceId> {
        let ordinal = self.ordinal_at(addr)?;
        let after = self.groups.partition_point(|(_, first, _)| *first <= ordinal);
        // Groups of size zero share the first number of their successor; walk back over them.
        let (group, first, _) =
            self.groups[..after].iter().rev().find(|(_, first, size)| ordinal - first < u64::from(*size))?;
        Some(InstanceId { group: group.clone(), index: u32::try_from(ordinal - first).ok()? })
    }

    /// Returns the instance of a number over all groups.
    pub fn at(&self, ordinal: u64) -> Option<InstanceId> {
        if ordinal >= self.total { None } else { self.instance(address(ordinal)) }
    }

    /// Returns whether an instance has this address.
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        self.ordinal_at(addr).is_some()
    }

    /// Returns the IPv4 address behind `<group>-<index>`, `<index>.<group>.lab`, or an address of an instance as text.
    pub fn resolve(&self, name: &str) -> Option<Ipv4Addr> {
        if let Ok(addr) = name.parse::<IpAddr>() {
            return v4_of(addr).filter(|addr| self.contains(*addr));
        }
        self.find(name).and_then(|instance| self.addr(&instance))
    }

    /// Returns the instance that is called `<group>-<index>` or `<index>.<group>.lab`; a dot at the end does no harm.
    pub fn find(&self, name: &str) -> Option<InstanceId> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let (group, index) = match name.strip_suffix(".lab") {
            Some(rest) => {
                let (index, group) = rest.split_once('.')?;
                (group, index)
            }
            None => name.rsplit_once('-')?,
        };
        // One spelling for each index: `007` and `+7` are nobody.
        let index = index.parse::<u32>().ok().filter(|n| n.to_string() == index)?;
        self.ordinal_of(group, index)?;
        Some(InstanceId { group: group.to_owned(), index })
    }

    /// Returns whether there are instances of a group.
    pub fn has_group(&self, group: &str) -> bool {
        self.ordinal_of(group, 0).is_some()
    }

    fn ordinal_of(&self, group: &str, index: u32) -> Option<u64> {
        let at = self.groups.binary_search_by(|(name, _, _)| name.as_str().cmp(group)).ok()?;
        let (_, first, size) = &self.groups[at];
        (index < *size).then_some(first + u64::from(index))
    }

    fn ordinal_at(&self, addr: Ipv4Addr) -> Option<u64> {
        let [net, high, low, host] = addr.octets();
        if net != NET || host == 0 || host == 255 {
            return None;
        }
        let ordinal = (u64::from(high) * 256 + u64::from(low)) * HOSTS_PER_BLOCK + u64::from(host) - 1;
        (ordinal < self.total).then_some(ordinal)
    }
}

/// Returns the address of the instance with this number, which `Directory::new` has bounded.
fn address(ordinal: u64) -> Ipv4Addr {
    let block = ordinal / HOSTS_PER_BLOCK;
    let octet = |n: u64| u8::try_from(n).expect("a directory holds no more instances than addresses");
    Ipv4Addr::new(NET, octet(block / 256), octet(block % 256), octet(1 + ordinal % HOSTS_PER_BLOCK))
}
