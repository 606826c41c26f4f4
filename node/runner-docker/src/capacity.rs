//! What the machine can hold in containers.
//!
//! A container costs a shim process of the engine's besides itself, so memory is the wall; processes come next. Each is
//! read from the kernel, none is a wish.

use std::fs;

use iptl_runner::Capacity;

use crate::config::OwnerLimits;

/// Memory of a container beside its workload: the engine's shim (measured: 11 to 14 MB) and what the engine and the
/// lablet know of it.
const MEMORY_PER_CONTAINER: u64 = 16 << 20;

/// Least memory of a workload: what engines ask for.
const MEMORY_PER_WORKLOAD: u64 = 6 << 20;

/// Share of the machine's memory that containers may have together; the rest is for the lablet and its owner.
const MEMORY_SHARE_PERCENT: u64 = 80;

/// Processes and threads of a container beside its workload: the shim's threads and init.
const TASKS_PER_CONTAINER: u64 = 16;

/// Returns what this machine can hold, with the bound that is met first.
pub(crate) fn read(owner: &OwnerLimits) -> Capacity {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let memory = total.unwrap_or(1 << 20) * 1024;
    let threads = fs::read_to_string("/proc/sys/kernel/threads-max").ok().and_then(|n| n.trim().parse::<u64>().ok());
    capacity(memory, threads.unwrap_or(10_000), owner)
}

fn capacity(memory: u64, threads: u64, owner: &OwnerLimits) -> Capacity {
    let machine = memory / 100 * MEMORY_SHARE_PERCENT;
    let memory_bytes = owner.memory_bytes.unwrap_or(u64::MAX).min(machine);
    let mut bounds = vec![
        (
            machine / (MEMORY_PER_CONTAINER + MEMORY_PER_WORKLOAD),
            format!("containers may have {} MiB of memory", machine >> 20),
        ),
        (threads / 2 / TASKS_PER_CONTAINER, format!("kernel.threads-max is {threads}")),
    ];
    if let Some(instances) = owner.instances {
        bounds.push((u64::from(instances), format!("the owner allows {instances} instances")));
    }
    let (instances, bound) = bounds.into_iter().min_by_key(|(n, _)| *n).expect("there are two bounds at least");
    Capacity { instances: u32::try_from(instances).unwrap_or(u32::MAX), memory_bytes, bound }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_bound_wins_and_is_named() {
        let machine = |owner: &OwnerLimits| capacity(24 << 30, 180_000, owner);
        let usual = machine(&OwnerLimits::default());
        assert_eq!((usual.instances, usual.bound.as_str()), (893, "containers may have 19660 MiB of memory"));
        let owner = OwnerLimits { instances: Some(4), memory_bytes: Some(1 << 30), ..OwnerLimits::default() };
        let small = machine(&owner);
        assert_eq!((small.instances, small.memory_bytes), (4, 1 << 30));
        assert_eq!(small.bound, "the owner allows 4 instances");
    }
}
