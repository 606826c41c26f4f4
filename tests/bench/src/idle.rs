//! A lablet that has nothing to do, with its warm worker.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::{cpu_ticks, pss_kib, workers};
use crate::report::Row;

/// Time without work before it is looked at.
const SETTLE: Duration = Duration::from_secs(30);

/// Time over which processor time is counted.
const WATCH: Duration = Duration::from_secs(30);

/// Looks at the first lablet of a lab that has run something.
pub async fn measure(lab: &Lab) -> Result<Vec<Row>> {
    eprintln!("  the lab idles for a minute");
    tokio::time::sleep(SETTLE).await;
    let lablet = lab.lablets.first().context("a lab without lablets")?.pid;
    let workers = workers(lablet);
    let before = cpu(lablet, &workers)?;
    tokio::time::sleep(WATCH).await;
    let ticks = cpu(lablet, &workers)? - before;
    let share = ticks as f64 / 100.0 / WATCH.as_secs_f64() * 100.0;
    let own = pss_kib(lablet)? as f64 / 1024.0;
    let mut warm = 0.0;
    for worker in &workers {
        warm += pss_kib(*worker)? as f64 / 1024.0;
    }
    Ok(vec![Row {
        measure: "idle lablet with its warm worker, after 60 s".to_owned(),
        figure: format!("{own:.1} + {warm:.1} MiB PSS, {share:.2} % of a processor"),
        reference: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "< 80 MB, < 1 %".to_owned(),
        reached: Some((own + warm) * 1.048_576 < 80.0 && share < 1.0 && !workers.is_empty()),
        bound: "timers of the swarm, heartbeats every few seconds; pages of the program are shared by its processes"
            .to_owned(),
    }])
}

fn cpu(lablet: u32, workers: &[u32]) -> Result<u64> {
    workers.iter().try_fold(cpu_ticks(lablet)?, |sum, worker| Ok(sum + cpu_ticks(*worker)?))
}
