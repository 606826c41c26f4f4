//! What the instances of each group used, as their lablets state it.
//!
//! None of it is in the outcome: the same software uses more on a machine that is slower.

use std::collections::BTreeMap;

use iptl_dag::model::{InstanceId, Receipt, Usage};

/// What the instances of a group used that started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUse {
    /// Instances.
    pub instances: u64,
    /// CPU time of one, all its attempts together, in microseconds.
    pub cpu_us: Spread,
    /// The largest memory of one, in bytes.
    pub memory_bytes: Spread,
    /// Bytes that one sent over the lab network, all its attempts together.
    pub sent_bytes: Spread,
    /// Bytes that one received over it.
    pub received_bytes: Spread,
}

/// A number that each of several instances has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Half of them have no more, by nearest rank.
    pub p50: u64,
    /// The largest.
    pub max: u64,
    /// All together.
    pub sum: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Spread {
        values.sort_unstable();
        let p50 = values.get(values.len().div_ceil(2).saturating_sub(1)).copied().unwrap_or(0);
        let sum = values.iter().fold(0, |sum: u64, value| sum.saturating_add(*value));
        Spread { p50, max: values.last().copied().unwrap_or(0), sum }
    }
}

/// Returns what the instances of each group used. What receipts say may be anything; sums end at the largest number.
pub(crate) fn used<'a>(receipts: impl IntoIterator<Item = &'a Receipt>) -> BTreeMap<String, GroupUse> {
    let mut of_instances: BTreeMap<&InstanceId, Usage> = BTreeMap::new();
    for receipt in receipts.into_iter().filter(|receipt| receipt.started_ms > 0) {
        let (sum, more) = (of_instances.entry(&receipt.instance).or_default(), &receipt.usage);
        sum.cpu_us = sum.cpu_us.saturating_add(more.cpu_us);
        sum.memory_bytes = sum.memory_bytes.max(more.memory_bytes);
        sum.sent_bytes = sum.sent_bytes.saturating_add(more.sent_bytes);
        sum.received_bytes = sum.received_bytes.saturating_add(more.received_bytes);
    }
    let mut groups: BTreeMap<String, Vec<Usage>> = BTreeMap::new();
    for (id, usage) in of_instances {
        groups.entry(id.group.clone()).or_default().push(usage);
    }
    let of_group = |all: &[Usage]| {
        let spread = |what: fn(&Usage) -> u64| Spread::of(all.iter().map(what).collect());
        GroupUse {
            instances: all.len() as u64,
            cpu_us: spread(|usage| usage.cpu_us),
            memory_bytes: spread(|usage| usage.memory_bytes),
            sent_bytes: spread(|usage| usage.sent_bytes),
            received_bytes: spread(|usage| usage.received_bytes),
        }
    };
    groups.into_iter().map(|(name, all)| (name, of_group(&all))).collect()
}
