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
const HOLD: &str = "hold=40s";

/// Time over which the processor time of parked instances is counted.
const WATCH: Duration = Duration::from_secs(15);

/// Parked instances that cost next to nothing: what a worker and a lablet do anyway.
const FEW: u32 = 10;

/// Measures parking.
pub async fn measure(guest: &Guest, count: u32) -> Result<Vec<Row>> {
    let lab = Lab::start(1, guest)?;
    lab.run("park", &["-g", "node=100", "-p", "hold=0s"]).await?;
    let lablet = lab.lablets.first().context("a lab without lablets")?.pid;
    let few = look(&lab, FEW).await?;
    let idle = pss_kib(lablet)?;
    let Looked { prepared_ms, open_us, worker_kib, lablet_kib, ticks } = look(&lab, count).await?;
    drop(lab);
    let parked = bare::park(&guest.component, count)?;
    let open = open_us as f64 / 1e6;
    let prepared = prepared_ms as f64 / 1e3;
    let (rate, whole) = (f64::from(count) / open, f64::from(count) / (open + prepared));
    let bare_rate = f64::from(count) / parked.seconds;
    let each = worker_kib as f64 / f64::from(count);
    let beside = lablet_kib.saturating_sub(idle) as f64 / f64::from(count);
    let share = |ticks: u64| ticks as f64 / WATCH.as_secs_f64();
    let more = (share(ticks) - share(few.ticks)).max(0.0);
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
        Row {
            measure: format!("sampling of {count} parked instances, each second, over {} s", WATCH.as_secs()),
            figure: format!(
                "{:.2} % of a processor, worker and lablet; {:.0} ns for an instance and second",
                share(ticks),
                more * 1e7 / f64::from(count)
            ),
            reference: format!("{FEW} of them on the same lablet: {:.2} %", share(few.ticks)),
            ratio: format!("{more:.2} points more"),
            goal: "report".to_owned(),
            reached: None,
            bound: "a look at each instance's memory and CPU time; the kernel counts time by hundredths of a second"
                .to_owned(),
        },
    ])
}

/// What is seen of instances that are parked together.
struct Looked {
    prepared_ms: u64,
    /// Until the barrier was open for all, in microseconds since the start.
    open_us: u64,
    worker_kib: u64,
    lablet_kib: u64,
    /// Hundredths of a second of processor time that worker and lablet took while nothing happened.
    ticks: u64,
}

/// Parks so many instances and looks at them.
async fn look(lab: &Lab, count: u32) -> Result<Looked> {
    let lablet = lab.lablets.first().context("a lab without lablets")?.pid;
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
        let sizes = (pss_kib(worker)?, pss_kib(lablet)?);
        let both = || anyhow::Ok(cpu_ticks(worker)? + cpu_ticks(lablet)?);
        let before = both()?;
        tokio::time::sleep(WATCH).await;
        anyhow::Ok((after_ms, sizes, both()? - before))
    };
    let (ended, looked) = tokio::join!(watching, looking);
    let (ended, (prepared_ms, (worker_kib, lablet_kib), ticks)) = (ended?, looked?);
    anyhow::ensure!(ended.counts.ok == u64::from(count), "{:?} of {count} parked well", ended.counts);
    let lines = lab.output(ended.execution).await?;
    let (open_us, _) = lines.into_iter().find(|(_, line)| line == "open").context("the barrier never opened")?;
    Ok(Looked { prepared_ms, open_us, worker_kib, lablet_kib, ticks })
}
