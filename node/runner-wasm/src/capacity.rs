//! What the machine can hold.
//!
//! Memory mappings are the wall: a pooled instance takes six, and a process that runs out of them is aborted rather
//! than refused. Memory and the number of processes come next. Each is read from the kernel, none is a wish.

use std::fs;

use iptl_runner::Capacity;

/// Mappings of one pooled instance with a copy-on-write image: its memory, its image, its tables, its stack and the
/// guards between them (measured: 6.0 at 10,000 instances).
const MAPPINGS_PER_INSTANCE: u64 = 6;

/// Mappings that a worker needs besides: code, libraries, heap, threads, one image per component.
const MAPPINGS_MARGIN: u64 = 2_000;

/// Least memory of an instance in bytes, guest and host side: a parked component of Rust's std (measured: 57 KiB and
/// page tables), rounded up.
const MEMORY_PER_INSTANCE: u64 = 100 << 10;

/// Share of the machine's memory that guests may have together; the rest is for the lablet and its owner.
const MEMORY_SHARE_PERCENT: u64 = 80;

/// Processes and threads that one cell needs: its worker's threads and room for a few more.
const TASKS_PER_CELL: u64 = 32;

/// Bound of `vm.max_map_count` where the kernel does not say.
const DEFAULT_MAX_MAP_COUNT: u64 = 65_530;

/// What the kernel says about the machine; `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Mappings per process.
    pub(crate) max_map_count: u64,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Further processes and threads.
    pub(crate) free_tasks: Option<u64>,
}

/// Bounds that the owner set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnerBounds {
    /// Most instances.
    pub(crate) instances: Option<u32>,
    /// Most memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
}

impl Machine {
    /// Reads the kernel's limits.
    pub(crate) fn read() -> Machine {
        let max_map_count = number("/proc/sys/vm/max_map_count").unwrap_or(DEFAULT_MAX_MAP_COUNT);
        let physical = meminfo("MemTotal:").unwrap_or(1 << 30);
        let group = cgroup("memory.max").unwrap_or(u64::MAX);
        let free_tasks = cgroup("pids.max").map(|max| max.saturating_sub(cgroup("pids.current").unwrap_or(0)));
        Machine { max_map_count, memory_bytes: physical.min(group), free_tasks }
    }

    /// Returns what it can hold, with the bound that is met first.
    pub(crate) fn capacity(self, owner: OwnerBounds) -> Capacity {
        let machine_memory = self.memory_bytes / 100 * MEMORY_SHARE_PERCENT;
        let memory_bytes = owner.memory_bytes.unwrap_or(u64::MAX).min(machine_memory);
        let by_mappings = self.max_map_count.saturating_sub(MAPPINGS_MARGIN) / MAPPINGS_PER_INSTANCE;
        let by_memory = memory_bytes / MEMORY_PER_INSTANCE;
        let mut bounds = vec![
            (by_mappings, format!("vm.max_map_count is {}", self.max_map_count)),
            (by_memory, format!("guests may have {} MiB of memory", memory_bytes >> 20)),
        ];
        if let Some(instances) = owner.instances {
            bounds.push((u64::from(instances), format!("the owner allows {instances} instances")));
        }
        if let Some(free) = self.free_tasks.filter(|free| *free < TASKS_PER_CELL) {
            bounds.push((0, format!("{free} more processes are allowed and a cell needs {TASKS_PER_CELL}")));
        }
        let (instances, bound) = bounds.into_iter().min_by_key(|(n, _)| *n).expect("there are at least two bounds");
        Capacity { instances: u32::try_from(instances).unwrap_or(u32::MAX), memory_bytes, bound }
    }
}

/// Returns what a process can hold in mappings, for the pool of a worker.
pub(crate) fn instances_per_process() -> u64 {
    let max = number("/proc/sys/vm/max_map_count").unwrap_or(DEFAULT_MAX_MAP_COUNT);
    max.saturating_sub(MAPPINGS_MARGIN) / MAPPINGS_PER_INSTANCE
}

/// Returns the bound of [`instances_per_process`], for people.
pub(crate) fn mappings_bound() -> String {
    format!("vm.max_map_count is {}", number("/proc/sys/vm/max_map_count").unwrap_or(DEFAULT_MAX_MAP_COUNT))
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Reads a limit of this process's own control group (version 2); `None` where there is none or it says `max`.
fn cgroup(file: &str) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    number(&format!("/sys/fs/cgroup{}/{file}", path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { max_map_count: 65_530, memory_bytes: 24 << 30, free_tasks: None };

    #[test]
    fn default_map_count_holds_ten_thousand_instances() {
        let capacity = MACHINE.capacity(OwnerBounds::default());
        assert_eq!(capacity.instances, 10_588);
        assert_eq!(capacity.bound, "vm.max_map_count is 65530");
    }

    #[test]
    fn smallest_bound_wins_and_is_named() {
        let small = Machine { memory_bytes: 100 << 20, ..MACHINE };
        assert_eq!(small.capacity(OwnerBounds::default()).bound, "guests may have 80 MiB of memory");
        let owner = OwnerBounds { instances: Some(4), memory_bytes: Some(1 << 30) };
        let capacity = MACHINE.capacity(owner);
        assert_eq!((capacity.instances, capacity.memory_bytes), (4, 1 << 30));
        let crowded = Machine { free_tasks: Some(3), ..MACHINE };
        assert_eq!(crowded.capacity(OwnerBounds::default()).instances, 0);
    }
}
