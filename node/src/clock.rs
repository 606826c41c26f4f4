//! The two clocks of a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iptl_wire::{Timestamp, WallTime};

/// Where the kernel says which start of the machine this is; monotonic times of another are of no use.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Returns the name of this start of the machine; empty where the kernel does not say.
pub fn boot() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// Returns monotonic time that goes on while the machine sleeps (BOOTTIME), as leases need it.
pub fn now() -> Timestamp {
    let time =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("every supported kernel has BOOTTIME");
    Timestamp(u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0))
}

/// Returns wall time in milliseconds since 1970.
pub fn wall() -> WallTime {
    WallTime(u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX))
}

/// Returns wall time in microseconds since 1970.
pub fn wall_us() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Waits until `deadline`; for ever where there is none. Cancel safe.
pub async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(at) => tokio::time::sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}
