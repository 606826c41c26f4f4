//! Very many instances of one lablet, all at one barrier.

use std::time::Duration;

use anyhow::{Context, Result};
use iptl_wire::control::Event;
use tokio::sync::mpsc;

use crate::bare;
use crate::lab::{Guest, Lab};
use crate::process::{cpu_ticks, pss_kib, workers};
use crate::report::Row;

/// Part of the bare engine's rate that must be reached.
const GOAL: f64 = 0.5;

/// KiB that an instance may take beyond its guest's own memory.
const GOAL_KIB: f64 = 100.0;

/// A worker whose processor time stands still for so long has parked all its instances.
const QUIET: Duration = Duration::from_secs(1);

/// Time that the instances stay parked, as the plan's parameter says it: long enough to be looked at.
const HOLD: &str = "hold=20s";

/// Measures parking.
pub async fn measure(guest: &Guest, count: u32) -> Result<Vec<Row>> {
    let lab = Lab::start(1, guest)?;
    lab.run("park", &["-g", "node=100", "-p", "hold=0s"]).await?;
    let lablet = lab.lablets.first().context("a lab without lablets")?.pid;
    let idle = pss_kib(lablet)?;
    let group = format!("node={count}");
    let submitted = lab.submit("park", &["-g", &group, "-p", HOLD])?;
    let (started, mut starts) = mpsc::channel(1);
    let watching = lab.watch(submitted.execution, |event| {
        if let Event::Started { after_ms } = event {
            let _once = started.try_send(*after_ms);
        }
    });
    let looking = async {
        let after_ms = starts.recv().await.context("it never started")?;
        let busiest = workers(lablet).into_iter().max_by_key(|pid| cpu_ticks(*pid).unwrap_or(0));
        let worker = busiest.context("a lablet without workers")?;
        let mut ticks = cpu_ticks(worker)?;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = cpu_ticks(worker)?;
            // The engine's clock ticks a hundred times a second, which costs a little.
            if now - ticks <= 3 {
                break;
            }
            ticks = now;
        }
        anyhow::Ok((after_ms, pss_kib(worker)?, pss_kib(lablet)?))
    };
    let (ended, looked) = tokio::join!(watching, looking);
    let (ended, (prepared_ms, worker_kib, lablet_kib)) = (ended?, looked?);
    anyhow::ensure!(ended.counts.ok == u64::from(count), "{:?} of {count} parked well", ended.counts);
    let lines = lab.output(ended.execution).await?;
    let (open_us, _) = lines.into_iter().find(|(_, line)| line == "open").context("the barrier never opened")?;
    drop(lab);
    let parked = bare::park(&guest.component, count)?;
    let open = open_us as f64 / 1e6;
    let prepared = prepared_ms as f64 / 1e3;
    let (rate, whole) = (f64::from(count) / open, f64::from(count) / (open + prepared));
    let bare_rate = f64::from(count) / parked.seconds;
    let each = worker_kib as f64 / f64::from(count);
    let beside = lablet_kib.saturating_sub(idle) as f64 / f64::from(count);
    Ok(vec![
        Row {
            measure: format!("{count} parked instances on one lablet, start → all at the barrier"),
            figure: format!(
                "{open:.2} s ({rate:.0}/s); with submission and preparing {:.2} s ({whole:.0}/s)",
                open + prepared
            ),
            reference: format!("bare wasmtime, make and park one by one: {:.2} s ({bare_rate:.0}/s)", parked.seconds),
            ratio: format!("{:.2} ×; with preparing {:.2} ×", rate / bare_rate, whole / bare_rate),
            goal: format!("≥ {GOAL} ×"),
            reached: Some(whole / bare_rate >= GOAL),
            bound:
                "making is part of preparing, so the second ratio is the fair one; each instance also signals, and the \
                    barrier's answers go to all of them through one pipe"
                    .to_owned(),
        },
        Row {
            measure: format!("memory of each of {count} parked instances"),
            figure: format!("{each:.1} KiB of the worker, {beside:.1} KiB more of the lablet"),
            reference: format!("bare wasmtime: {:.1} KiB, the guest's own pages included", parked.kib_each),
            ratio: format!("{:.2} ×", each / parked.kib_each),
            goal: format!("≤ {GOAL_KIB} KB beyond the guest's own"),
            reached: Some((each + beside - parked.kib_each) * 1.024 <= GOAL_KIB),
            bound: "PSS; page tables are not in it".to_owned(),
        },
    ])
}
