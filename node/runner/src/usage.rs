//! What the instances of a cell use now, summed up: never a row for each.

use std::collections::BTreeMap;

use iptl_dag::model::{InstanceId, Usage};
use serde::{Deserialize, Serialize};

/// Most instances that are named.
pub const MAX_BUSIEST: usize = 8;

/// What the instances of a cell use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellUsage {
    /// Sums by group, also of groups of which no instance runs any more.
    pub groups: BTreeMap<String, GroupUsage>,
    /// The instances that use most CPU, and of those that use equally much the largest; at most [`MAX_BUSIEST`].
    pub busiest: Vec<InstanceUsage>,
}

/// What the running instances of a group use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupUsage {
    /// Instances that run.
    pub running: u32,
    /// CPU in thousandths of a processor over about the last second.
    pub cpu_milli: u64,
    /// CPU time so far in microseconds.
    pub cpu_us: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Bytes sent so far.
    pub sent_bytes: u64,
    /// Bytes received so far.
    pub received_bytes: u64,
}

/// What one instance uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceUsage {
    /// Instance.
    pub id: InstanceId,
    /// CPU in thousandths of a processor over about the last second.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl CellUsage {
    /// Begins with groups of which nothing runs.
    pub fn of_groups<'a>(groups: impl IntoIterator<Item = &'a str>) -> CellUsage {
        let groups = groups.into_iter().map(|name| (name.to_owned(), GroupUsage::default())).collect();
        CellUsage { groups, busiest: Vec::new() }
    }

    /// Adds a running instance.
    pub fn add(&mut self, id: &InstanceId, used: &Usage, cpu_milli: u64) {
        let group = self.groups.entry(id.group.clone()).or_default();
        group.running += 1;
        group.cpu_milli += cpu_milli;
        group.cpu_us += used.cpu_us;
        group.memory_bytes += used.memory_bytes;
        group.sent_bytes += used.sent_bytes;
        group.received_bytes += used.received_bytes;
        let is_busier = |other: &InstanceUsage| (cpu_milli, used.memory_bytes) > (other.cpu_milli, other.memory_bytes);
        let place = self.busiest.iter().position(is_busier).unwrap_or(self.busiest.len());
        if place < MAX_BUSIEST {
            let row = InstanceUsage { id: id.clone(), cpu_milli, memory_bytes: used.memory_bytes };
            self.busiest.insert(place, row);
            self.busiest.truncate(MAX_BUSIEST);
        }
    }
}

/// Returns thousandths of a processor, from CPU time and the time in which it was used, both in microseconds.
pub fn cpu_milli(cpu_us: u64, in_us: u64) -> u64 {
    cpu_us.saturating_mul(1000) / in_us.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_all_and_names_of_the_busiest() {
        let mut usage = CellUsage::of_groups(["g", "idle"]);
        for index in 0..100 {
            let used = Usage { cpu_us: 10, memory_bytes: 1 + u64::from(index), ..Usage::default() };
            usage.add(&InstanceId { group: "g".into(), index }, &used, u64::from(index % 10));
        }
        let group = usage.groups["g"];
        assert_eq!((group.running, group.cpu_us, group.cpu_milli, group.memory_bytes), (100, 1000, 450, 5050));
        assert_eq!(usage.groups["idle"], GroupUsage::default());
        let named: Vec<u32> = usage.busiest.iter().map(|row| row.id.index).collect();
        assert_eq!(named, [99, 89, 79, 69, 59, 49, 39, 29], "by CPU, then by memory");
        assert_eq!(cpu_milli(500_000, 1_000_000), 500);
    }
}
