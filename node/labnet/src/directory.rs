//! Addresses and names of instances.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use iptl_dag::model::InstanceId;

/// Host numbers used in each /24: `.0` and `.255` look like network and broadcast addresses to software under test.
const HOSTS_PER_BLOCK: u64 = 254;

/// /24 blocks of 10.0.0.0/8.
const BLOCKS: u64 = 1 << 16;

/// First octet of every lab address.
const NET: u8 = 10;

/// Names and addresses of all instances of a run.
///
/// Instances are numbered over all groups, groups in the order of their names; instance number `n` has the address
/// `10.0.0.1 + n`, where last octets 0 and 255 are skipped.
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

    /// Returns the address behind `<group>-<index>`, `<index>.<group>.lab`, or an address of an instance as text.
    pub fn resolve(&self, name: &str) -> Option<Ipv4Addr> {
        if let Ok(addr) = name.parse::<Ipv4Addr>() {
            return self.contains(addr).then_some(addr);
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let (group, index) = match name.strip_suffix(".lab") {
            Some(rest) => {
                let (index, group) = rest.split_once('.')?;
                (group, index)
            }
            None => name.rsplit_once('-')?,
        };
        // One spelling for each index: `007` and `+7` are nobody.
        let number = index.parse::<u32>().ok().filter(|n| n.to_string() == index)?;
        self.ordinal_of(group, number).map(address)
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
