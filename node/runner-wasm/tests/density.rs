//! Very many instances in one cell.

use std::time::Instant;

use iptl_dag::model::Exit;
use iptl_runner::contract::{Behaviour, Lab, instance};

use crate::fixture;

#[tokio::test]
async fn a_thousand_instances_meet_at_a_barrier() {
    meet(1_000).await;
}

#[tokio::test]
#[ignore = "takes a minute in a debug build"]
async fn ten_thousand_instances_meet_at_a_barrier() {
    meet(10_000).await;
}

async fn meet(count: u32) {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let mut cell = fixture.cell(dir.path(), &vec![Behaviour::Barrier; count as usize]);
    for instance in &mut cell.instances {
        instance.limits.wall_ms = 300_000;
        instance.limits.memory_bytes = 2 << 20;
    }
    let begun = Instant::now();
    let mut lab = Lab::prepare(&*fixture.runner, cell).await;
    let prepared = begun.elapsed();
    let pid = lab.control.worker_pid().unwrap();
    let begun = Instant::now();
    lab.control.start().await;
    // The barrier opens when the last one has signalled; the first end comes right after it.
    let mut first_end = None;
    let mut parked = String::new();
    while lab.step().await {
        if lab.all_signalled("ready", u64::from(count)) && parked.is_empty() {
            parked = memory(pid);
        }
        if !lab.outcome.ended.is_empty() && first_end.is_none() {
            first_end = Some(begun.elapsed());
        }
    }
    let outcome = lab.outcome;
    for index in 0..count {
        assert_eq!(outcome.ended[&instance(index)].exit, Exit::Exited { code: 0 }, "instance {index}");
    }
    println!(
        "{count} instances: prepared in {prepared:.1?}, first end {first_end:.1?} after the start, all over after \
         {:.1?}; worker at the barrier: {parked}",
        begun.elapsed()
    );
    fixture.runner.shutdown().await;
}

/// Returns resident and proportional memory of a process, for people.
fn memory(pid: u32) -> String {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let mappings = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_or(0, |maps| maps.lines().count());
    format!(
        "RSS {} MiB, PSS {} MiB, {mappings} mappings",
        field("Rss:").unwrap_or(0) >> 10,
        field("Pss:").unwrap_or(0) >> 10
    )
}
