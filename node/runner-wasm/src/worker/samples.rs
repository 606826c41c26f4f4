//! What instances use, second by second: into their files of samples, and summed up to the lablet.
//!
//! One task looks at all instances of the worker once in a second, and writes a line for each that did something: ten
//! thousand that are parked cost ten thousand readings and no line. So a gap in a file means that nothing changed, and
//! an instance that never did anything after its start has no file.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use iptl_dag::model::Usage;
use iptl_runner::files::CellFiles;
use iptl_runner::usage::cpu_milli;
use iptl_runner::{CellEvent, CellUsage};

use super::cell::Cell;
use super::guest::Instance;

/// Time between two looks.
const SWEEP: Duration = Duration::from_secs(1);

/// CPU time in microseconds below which an instance counts as one that did nothing: a guest that is woken up and waits
/// again takes less.
const MIN_CPU_US: u64 = 1_000;

/// Instances that are looked at between two rests: guests wait for the lab network meanwhile.
const AT_ONCE: usize = 256;

/// What an instance has used so far, as whoever runs it says.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// CPU time in microseconds.
    pub(crate) cpu_us: AtomicU64,
    /// Memory in bytes.
    pub(crate) memory_bytes: AtomicU64,
}

/// What was written of an instance.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    last: Usage,
    written: bool,
    ended: bool,
}

/// Looks at all instances until they have ended.
pub(crate) async fn sweep(cell: Arc<Cell>) {
    if !cell.wait_for_release(Duration::ZERO).await {
        return;
    }
    let instances: Vec<Arc<Instance>> = cell.instances().cloned().collect();
    // What was used before the release is the lab's doing.
    for (instance, used) in instances.iter().zip(read(&cell, &instances)) {
        sampled(instance).last = used;
    }
    let mut before: Vec<u64> = instances.iter().map(|instance| sampled(instance).last.cpu_us).collect();
    let groups: BTreeSet<&str> = instances.iter().map(|instance| instance.id.group.as_str()).collect();
    let (mut looked_us, mut told) = (cell.at_us(), CellUsage::default());
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    while cell.is_live() {
        ticks.tick().await;
        let now_us = cell.at_us();
        let mut all = CellUsage::of_groups(groups.iter().copied());
        for (some, before) in instances.chunks(AT_ONCE).zip(before.chunks_mut(AT_ONCE)) {
            let used = read(&cell, some);
            tokio::task::block_in_place(|| {
                for ((instance, used), before) in some.iter().zip(used).zip(before) {
                    if look(&cell, instance, used) {
                        let cpu_us = used.cpu_us.saturating_sub(std::mem::replace(before, used.cpu_us));
                        all.add(&instance.id, &used, cpu_milli(cpu_us, now_us - looked_us));
                    }
                }
            });
        }
        looked_us = now_us;
        if all != told {
            cell.say(CellEvent::Usage(all.clone()));
            told = all;
        }
    }
}

/// Writes the last sample of an instance that had others, and lets no further one follow.
pub(crate) fn end(cell: &Cell, instance: &Instance, used: Usage) {
    let mut sampled = sampled(instance);
    sampled.ended = true;
    if sampled.written && sampled.last != used {
        write(cell, instance, &used);
    }
}

/// Writes a sample where there is something to write; returns whether the instance still runs.
fn look(cell: &Cell, instance: &Instance, used: Usage) -> bool {
    let mut sampled = sampled(instance);
    let last = sampled.last;
    let did_something = used.cpu_us >= last.cpu_us + MIN_CPU_US || Usage { cpu_us: last.cpu_us, ..used } != last;
    if !sampled.ended && did_something {
        write(cell, instance, &used);
        sampled.last = used;
        sampled.written = true;
    }
    !sampled.ended
}

fn read(cell: &Cell, instances: &[Arc<Instance>]) -> Vec<Usage> {
    let traffic = cell.net.traffic(instances.iter().map(|instance| instance.address));
    let of = |(instance, (sent_bytes, received_bytes)): (&Arc<Instance>, (u64, u64))| Usage {
        cpu_us: instance.gauges.cpu_us.load(Ordering::Relaxed),
        memory_bytes: instance.gauges.memory_bytes.load(Ordering::Relaxed),
        sent_bytes,
        received_bytes,
        ..Usage::default()
    };
    instances.iter().zip(traffic).map(of).collect()
}

fn write(cell: &Cell, instance: &Instance, used: &Usage) {
    let mut line = Vec::new();
    CellFiles::sample_line(&mut line, cell.at_us(), used);
    if let Err(e) = cell.files.append_samples(&instance.id, &line) {
        tracing::warn!(error = %e, instance = %instance.id, "a sample cannot be written");
    }
}

fn sampled(instance: &Instance) -> MutexGuard<'_, Sampled> {
    instance.sampled.lock().unwrap_or_else(PoisonError::into_inner)
}
