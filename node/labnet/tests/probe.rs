//! A probe finds what a network asks for where nothing is late, and says by how much where something is.

use std::collections::BTreeMap;

use iptl_dag::model::{AccessClass, IpModel, LinkModel, NetworkModel};
use iptl_labnet::{CompileError, Probe, Probed};

const MS: u64 = 1_000_000;

fn network() -> NetworkModel {
    let up = LinkModel {
        delay_us: 3_000,
        rate_bps: 2_000_000,
        queue_bytes: 64 << 10,
        loss_ppm: 50_000,
        ..LinkModel::default()
    };
    let down = LinkModel { rate_bps: 16_000_000, queue_bytes: 64 << 10, ..LinkModel::default() };
    let fast = LinkModel { rate_bps: 10_000_000_000, ..LinkModel::default() };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["east".to_owned(), "west".to_owned()],
        delays_us: vec![vec![500, 40_000], vec![60_000, 0]],
        access: BTreeMap::from([
            ("dsl".to_owned(), AccessClass { up, down, mtu: 1500 }),
            ("fibre".to_owned(), AccessClass { up: fast, down: fast, mtu: 1500 }),
        ]),
        groups: BTreeMap::new(),
    }
}

/// Probes under a clock that is late by this much whenever something is due.
fn probe(network: &NetworkModel, late_ns: u64) -> (BTreeMap<String, Probed>, u64) {
    let mut probe = Probe::new(network).unwrap();
    probe.advance(MS);
    while let Some(due_ns) = probe.poll_timeout() {
        probe.advance(due_ns + late_ns);
    }
    (probe.links().into_iter().map(|link| (link.link.clone(), link)).collect(), probe.lateness().max_ns())
}

#[test]
fn probe_without_lateness_finds_what_was_asked_for() {
    let (links, late_ns) = probe(&network(), 0);
    assert_eq!(late_ns, 0);
    for (name, ns) in
        [("east to east", 500_000), ("east to west", 40 * MS), ("west to east", 60 * MS), ("west to west", 0)]
    {
        let link = &links[name];
        assert!(link.packets >= 100, "{link:?}");
        assert_eq!((link.asked_ns, link.measured_ns), (ns, ns), "{name}");
    }
    let up = &links["dsl up"];
    assert_eq!(up.asked_ns, up.measured_ns);
    assert!((3 * MS..5 * MS).contains(&up.asked_ns), "{up:?}");
    // 1,000 packets with a chance of 5 %: four standard deviations.
    assert!((22_000..78_000).contains(&up.measured_loss_ppm), "{up:?}");
    for (name, rate_bps) in [("dsl up", 2_000_000), ("dsl down", 16_000_000)] {
        let link = &links[name];
        let off = link.measured_rate_bps.unwrap().abs_diff(rate_bps);
        assert!(off * 50 <= rate_bps, "{link:?}");
    }
    assert_eq!(links["fibre up"].measured_rate_bps, None, "faster than what is sent");
    assert_eq!(links["dsl down"].measured_loss_ppm, 0);
}

#[test]
fn probe_on_a_late_clock_finds_it_late() {
    // So that nothing that is 40 ms away is due just when the clock moves.
    let (links, late_ns) = probe(&network(), 3_300_000);
    assert!(late_ns >= 3 * MS);
    let link = &links["east to west"];
    assert!(link.measured_ns >= link.asked_ns + MS, "{link:?}");
}

#[test]
fn probe_of_what_is_no_network_is_refused() {
    let odd = NetworkModel { delays_us: vec![vec![0]], ..network() };
    assert_eq!(Probe::new(&odd).unwrap_err(), CompileError::Regions { regions: 2, rows: 1 });
    let odd = NetworkModel { delays_us: vec![vec![0], vec![0]], ..network() };
    assert!(matches!(Probe::new(&odd), Err(CompileError::Topology(_))));
}
