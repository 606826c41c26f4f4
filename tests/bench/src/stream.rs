//! TCP between two instances: in one cell, over two lablets, and over two lablets with a network's delay between them.

use std::time::Duration;

use anyhow::{Context, Result};
use iptl_dag::model::FactKind;

use crate::lab::{Guest, Lab};
use crate::reference::{Transport, plain_stream};
use crate::report::Row;

/// Bytes of the reference's copy; the guest's own is as large.
const BYTES: u64 = 64 << 20;

/// Round trips of small messages over the delay, which take 40 ms each.
const FAR_ROUNDS: &str = "rounds=100";

/// The delay there and back, in milliseconds.
const DELAY_MS: f64 = 40.0;

/// How far two lablets are from each other, and their instances by the network of their run; one way.
const UNDERLAY: Duration = Duration::from_millis(20);
const OVERLAND_MS: f64 = 50.0;

/// Measures all.
pub async fn measure(guest: &Guest) -> Result<Vec<Row>> {
    let lab = Lab::start(2, guest)?;
    let mut figures = Vec::new();
    for case in ["near", "far"] {
        lab.run(case, &["-p", "bytes=1MiB", "-p", "rounds=10"]).await?;
        let ended = lab.run(case, &[]).await?;
        anyhow::ensure!(ended.counts.ok == 2, "case {case}: {:?}", ended.counts);
        let lines = lab.output(ended.execution).await?;
        let (_, line) = lines.into_iter().next().context("the guest said nothing")?;
        let (rate, round_trip) = line.split_once(' ').context("two numbers")?;
        figures.push((rate.parse::<f64>()?, round_trip.parse::<f64>()? / 1e3));
    }
    lab.run("apart", &["-p", "bytes=1MiB", "-p", "rounds=10"]).await?;
    let ended = lab.run("apart", &["-p", FAR_ROUNDS]).await?;
    anyhow::ensure!(ended.counts.ok == 2, "case apart: {:?}", ended.counts);
    let line = lab.output(ended.execution).await?.into_iter().next().context("the guest said nothing")?.1;
    drop(lab);
    let (rate, round_trip) = line.split_once(' ').context("two numbers")?;
    let (rate, round_trip) = (rate.parse::<f64>()?, round_trip.parse::<f64>()? / 1e3);
    let apart = Row {
        measure: "TCP between two instances over two lablets, 20 ms apart by the network".to_owned(),
        figure: format!("{rate:.1} MB/s, round trip {round_trip:.3} ms"),
        reference: format!("the delays alone: {DELAY_MS:.0} ms"),
        ratio: format!("{:+.0} µs added to a round trip, p50", (round_trip - DELAY_MS) * 1e3),
        goal: "report".to_owned(),
        reached: None,
        bound: "a window of a connection in each round trip; wake-ups of two workers and of what holds packets back"
            .to_owned(),
    };
    let (quic, tcp) = (plain_stream(Transport::Quic, BYTES).await?, plain_stream(Transport::Tcp, BYTES).await?);
    let names = ["in one cell", "over two lablets"];
    let bounds = [
        "host calls of the guest: a readiness check and a copy each way for every read and write",
        "packets of at most 64 KiB, four processes, a window of credit per stream; round trips: eight wake-ups",
    ];
    let rows = names.into_iter().zip(figures).zip(bounds).map(|((name, (rate, round_trip)), bound)| Row {
        measure: format!("TCP between two instances {name}"),
        figure: format!("{rate:.0} MB/s, round trip {round_trip:.3} ms"),
        reference: format!(
            "plain stream of the swarm: QUIC {:.0} MB/s, {:.3} ms; TCP {:.0} MB/s, {:.3} ms",
            quic.mb_s, quic.round_trip_ms, tcp.mb_s, tcp.round_trip_ms
        ),
        ratio: format!(
            "{:.2} × of QUIC, {:.2} × of TCP; round trip {:.1} × of TCP",
            rate / quic.mb_s,
            rate / tcp.mb_s,
            round_trip / tcp.round_trip_ms
        ),
        goal: "report".to_owned(),
        reached: None,
        bound: bound.to_owned(),
    });
    Ok(rows.chain([apart, overland(guest).await?]).collect())
}

/// Has lablets be far from each other: the way between them is to be a part of the delay that the run asks for.
async fn overland(guest: &Guest) -> Result<Row> {
    let lab = Lab::start_far(UNDERLAY, guest)?;
    lab.run("overland", &["-p", "rounds=10"]).await?;
    let ended = lab.run("overland", &[]).await?;
    anyhow::ensure!(ended.counts.ok == 2, "case overland: {:?}", ended.counts);
    let line = lab.output(ended.execution).await?.into_iter().next().context("the guest said nothing")?.1;
    let (_, round_trip) = line.split_once(' ').context("two numbers")?;
    let (round_trip, asked) = (round_trip.parse::<f64>()? / 1e3, 2.0 * OVERLAND_MS);
    let ways = lab.facts(ended.execution)?.into_iter().filter_map(|fact| match fact.kind {
        FactKind::Measured { ways, .. } => Some(ways),
        _ => None,
    });
    let ways: Vec<String> =
        ways.flatten().filter_map(|way| way.measured_us).map(|us| format!("{:.1}", us as f64 / 1e3)).collect();
    Ok(Row {
        measure: format!(
            "round trip between two instances {OVERLAND_MS:.0} ms apart, on two lablets {} ms from each other",
            UNDERLAY.as_millis()
        ),
        figure: format!("{round_trip:.3} ms, p50; ways measured as {} ms", ways.join(" and ")),
        reference: format!("the delays alone: {asked:.0} ms"),
        ratio: format!("{:+.0} µs added to a round trip", (round_trip - asked) * 1e3),
        goal: "report".to_owned(),
        reached: None,
        bound: "what each lablet knows of the other's clock, by halves of round trips; wake-ups of two workers"
            .to_owned(),
    })
}
