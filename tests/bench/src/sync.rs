//! Barriers and topics over three lablets.

use anyhow::{Context, Result};

use crate::lab::{Guest, Lab};
use crate::reference::loopback_round_trip;
use crate::report::Row;

/// Numbers of instances, with barriers and messages of the run.
const SIZES: [(u32, u32, u32); 4] = [(20, 100, 50), (50, 100, 50), (100, 100, 50), (1_000, 20, 10)];

/// Milliseconds that a barrier of a hundred instances may take.
const BARRIER_GOAL_MS: f64 = 2.0;

/// Milliseconds that a message may take.
const MESSAGE_GOAL_MS: f64 = 1.0;

/// Measures all sizes in one lab.
pub async fn measure(guest: &Guest) -> Result<Vec<Row>> {
    let lab = Lab::start(3, guest)?;
    lab.run("sync", &["-g", "node=20", "-p", "barriers=5", "-p", "messages=5"]).await?;
    let round_trip = loopback_round_trip()?;
    let (mut barriers, mut messages) = (Vec::new(), Vec::new());
    for (size, rounds, sent) in SIZES {
        let group = format!("node={size}");
        let (rounds, sent) = (format!("barriers={rounds}"), format!("messages={sent}"));
        let ended = lab.run("sync", &["-g", &group, "-p", &rounds, "-p", &sent]).await?;
        anyhow::ensure!(ended.counts.ok == u64::from(size), "{:?} of {size} ended well", ended.counts);
        let measured: Vec<f64> = ended.measured.into_iter().flatten().collect();
        let [barrier, barrier_99, message, message_99] = measured[..] else {
            anyhow::bail!("the run measured {} of 4 values", measured.len())
        };
        barriers.push((size, barrier, barrier_99));
        messages.push((size, message, message_99));
    }
    let at = |values: &[(u32, f64, f64)], size: u32| {
        values.iter().find(|(n, ..)| *n == size).map(|(_, p50, _)| *p50).context("a size was not measured")
    };
    let (barrier, message) = (at(&barriers, 100)?, at(&messages, 20)?);
    let row = |measure: &str, values: &[(u32, f64, f64)], value: f64, goal: String, reached: bool, bound: &str| Row {
        measure: measure.to_owned(),
        figure: values
            .iter()
            .map(|(size, p50, p99)| format!("{size}: p50 {p50:.2} ms, p99 {p99:.1} ms"))
            .collect::<Vec<_>>()
            .join("; "),
        reference: format!("round trip over the loopback {round_trip:.3} ms"),
        ratio: format!("{:.0} ×", value / round_trip),
        goal,
        reached: Some(reached),
        bound: bound.to_owned(),
    };
    Ok(vec![
        row(
            "barrier on 3 lablets, by instances, as each instance sees it",
            &barriers,
            barrier,
            format!("p50 ≤ {BARRIER_GOAL_MS} ms at 100"),
            barrier <= BARRIER_GOAL_MS,
            "four processes and the guests share the processors: every hop between guest, worker, lablet and \
             orchestrator is a wake-up, and each instance is woken in its turn",
        ),
        row(
            "publish → subscriber on 3 lablets, by subscribers",
            &messages,
            message,
            format!("p50 ≤ {MESSAGE_GOAL_MS} ms at 20"),
            message <= MESSAGE_GOAL_MS,
            "six hops: guest, worker, lablet, orchestrator, lablet, worker, guest; then every subscriber in its turn",
        ),
    ])
}
