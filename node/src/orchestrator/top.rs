//! What an execution does now, put together from what lablets say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_dag::PeerId;
use iptl_dag::model::ExecutionId;
use iptl_wire::control::{Top, TopBarrier, TopGroup, TopInstance};
use iptl_wire::session::GroupUsage;

use super::registry::Active;
use crate::clock;

/// What a lablet said longer ago counts no more.
const FRESH: Duration = Duration::from_secs(4);

/// Instances that are named.
const MAX_NAMED: usize = 20;

/// Sums up what the lablets in `cells` said.
pub(super) fn of(
    id: ExecutionId,
    active: &Active,
    phase: Option<String>,
    barriers: Vec<TopBarrier>,
    cells: &BTreeSet<PeerId>,
    names: &BTreeMap<PeerId, String>,
) -> Top {
    let ended = active.ended();
    let mut groups: BTreeMap<String, TopGroup> = active
        .groups
        .iter()
        .map(|(name, count)| {
            let ended = ended.get(name).copied().unwrap_or(0);
            (name.clone(), TopGroup { count: *count, ended, usage: GroupUsage::default() })
        })
        .collect();
    let mut busiest = Vec::new();
    let mut heard = 0;
    let fresh = active.usage.iter().filter(|(lablet, (at, _))| cells.contains(*lablet) && at.elapsed() < FRESH);
    for (lablet, (_, usage)) in fresh {
        heard += 1;
        for (name, used) in &usage.groups {
            if let Some(group) = groups.get_mut(name) {
                add(&mut group.usage, used);
            }
        }
        let name = names.get(lablet).cloned().unwrap_or_else(|| lablet.short());
        busiest.extend(usage.busiest.iter().map(|row| TopInstance { usage: row.clone(), lablet: name.clone() }));
    }
    busiest.sort_by_key(|row| std::cmp::Reverse((row.usage.cpu_milli, row.usage.memory_bytes)));
    busiest.truncate(MAX_NAMED);
    Top {
        execution: id.0,
        alias: id.alias(),
        phase: phase.unwrap_or_else(|| "submitted".to_owned()),
        after_ms: clock::wall().0.saturating_sub(active.submitted_ms),
        groups,
        barriers,
        busiest,
        lablets: u32::try_from(cells.len()).unwrap_or(u32::MAX),
        heard,
    }
}

/// Adds up; what a lablet claims may be any number.
fn add(sum: &mut GroupUsage, used: &GroupUsage) {
    sum.running = sum.running.saturating_add(used.running);
    sum.cpu_milli = sum.cpu_milli.saturating_add(used.cpu_milli);
    sum.cpu_us = sum.cpu_us.saturating_add(used.cpu_us);
    sum.memory_bytes = sum.memory_bytes.saturating_add(used.memory_bytes);
    sum.sent_bytes = sum.sent_bytes.saturating_add(used.sent_bytes);
    sum.received_bytes = sum.received_bytes.saturating_add(used.received_bytes);
}
