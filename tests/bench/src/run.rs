//! A trivial run of three instances on three lablets, from its submission to the CID of its sealed result.

use std::time::Instant;

use anyhow::Result;
use iptl_dag::model::{Fact, FactKind};
use iptl_wire::control::{Event, Reply, Request};

use crate::lab::{Guest, Lab};
use crate::reference::{Transport, fdatasync, plain_stream};
use crate::report::{Row, percentile};
use crate::{bare, idle};

/// Runs before the ones that count.
const WARM_UP: u32 = 5;

/// Milliseconds that the median of the runs may take.
const GOAL_MS: f64 = 50.0;

/// Stages of a run, in their order, as the table of times names them.
const STAGES: [&str; 8] = ["submitted", "placed", "granted", "accepted", "started", "receipts here", "sealed", "told"];

/// Measures runs, and the idle lab after them.
pub async fn measure(guest: &Guest, runs: u32) -> Result<Vec<Row>> {
    let lab = Lab::start(3, guest)?;
    let submitted = lab.submit("trivial", &[])?;
    lab.watch(submitted.execution, |_| {}).await?;
    let mut times = Vec::new();
    let mut stages: Vec<Vec<f64>> = vec![Vec::new(); STAGES.len()];
    let block = lab.block(submitted.run).await?;
    for number in 0..runs + WARM_UP {
        let begun = Instant::now();
        lab.put(&block).await?;
        let request = Request::Submit { run: submitted.run, source: None, source_addrs: Vec::new(), priority: 0 };
        let reply = lab.call(&request).await?.next().await?;
        let Some(Reply::Submitted { execution, .. }) = reply else { anyhow::bail!("{reply:?} instead of a name") };
        let mut told = f64::NAN;
        let ended = lab
            .watch(execution, |event| {
                if matches!(event, Event::Finished { .. }) {
                    told = begun.elapsed().as_secs_f64() * 1e3;
                }
            })
            .await?;
        anyhow::ensure!(ended.counts.ok == 3, "a trivial run failed");
        if number >= WARM_UP {
            times.push(told);
            stages_of(&lab.facts(execution)?, told, &mut stages);
        }
    }
    eprintln!("  medians since submission, in ms, by the facts of the orchestrator:");
    let line: Vec<String> =
        STAGES.iter().zip(&stages).map(|(name, times)| format!("{name} {:.0}", percentile(times, 50))).collect();
    eprintln!("  {}", line.join(" · "));
    let dir = tempfile::tempdir()?;
    let round_trip = plain_stream(Transport::Quic, 1 << 20).await?.round_trip_ms;
    let sync = fdatasync(dir.path())?;
    let bare = percentile(&bare::runs(&guest.component, runs)?, 50);
    let reference = 3.0 * round_trip + 6.0 * sync + bare;
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    let mut rows = vec![Row {
        measure: format!("trivial Wasm run, 3 instances on 3 lablets, submission → result CID, {runs} warm runs"),
        figure: format!("p50 {p50:.1} ms, p99 {p99:.1} ms"),
        reference: format!(
            "{reference:.2} ms = 3 round trips of {round_trip:.2} + 6 fdatasync of {sync:.2} + bare run of {bare:.2}"
        ),
        ratio: format!("{:.0} ×", p50 / reference),
        goal: format!("p50 ≤ {GOAL_MS} ms"),
        reached: Some(p50 <= GOAL_MS),
        bound: format!("median times: {}", line.join(", ")),
    }];
    rows.extend(idle::measure(&lab).await?);
    Ok(rows)
}

/// Adds the times of a run's stages, each the last fact of its kind, since the first fact.
fn stages_of(facts: &[Fact], told: f64, stages: &mut [Vec<f64>]) {
    let begun = facts.first().map_or(0, |fact| fact.at_ms);
    let mut last = [None; 7];
    for fact in facts {
        let stage = match &fact.kind {
            FactKind::Submitted { .. } => 0,
            FactKind::Placed { .. } => 1,
            FactKind::Granted { .. } => 2,
            FactKind::Accepted { .. } => 3,
            FactKind::Started {} => 4,
            FactKind::Received { .. } => 5,
            FactKind::Sealed { .. } => 6,
            FactKind::Refused { .. }
            | FactKind::Faulted { .. }
            | FactKind::Measured { .. }
            | FactKind::Lost { .. }
            | FactKind::Cancelled { .. }
            | FactKind::TimedOut {}
            | FactKind::EndedEarly { .. }
            | FactKind::CannotStart(_)
            | FactKind::Failed { .. }
            | FactKind::TakenOver { .. }
            | FactKind::Recovered { .. }
            | FactKind::Snapshot { .. } => continue,
        };
        last[stage] = Some(fact.at_ms.saturating_sub(begun) as f64);
    }
    for (stage, at) in last.into_iter().enumerate() {
        stages[stage].extend(at);
    }
    stages[7].push(told);
}
