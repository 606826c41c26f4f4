//! Sockets of the standard library over the lab network.

use std::collections::BTreeMap;
use std::net::TcpListener;

use iptl_dag::model::{
    AccessClass, Exit, Fault, FaultKind, FaultSchedule, FaultTarget, InstanceId, IpModel, LinkModel, NetworkModel,
    ScheduledFault,
};
use iptl_runner::contract::places::{check_rebound, homes_of_three, one_behind_a_nat};
use iptl_runner::contract::{Behaviour, Lab, Outcome, instance};
use iptl_runner::{CellEvent, CellInput, CellSpec, OutputStream, PreparedCell};

use crate::fixture;

#[tokio::test]
async fn instances_talk_by_tcp() {
    let outcome = run(5, &["tcp-echo"]).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), ["served"], "{outcome:?}");
    for index in 1..5 {
        assert_eq!(outcome.lines(index, OutputStream::Out), [format!("HELLO FROM {index}")]);
    }
    let usage = outcome.ended[&instance(1)].usage;
    assert_eq!((usage.sent_bytes, usage.received_bytes), (12, 12));
}

#[tokio::test]
async fn network_of_an_instance_is_as_it_asks() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let cell = CellSpec { network: Some(apart(0)), ..cell(&fixture, dir.path(), 2, &["shape"]) };
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    let lines = outcome.lines(1, OutputStream::Out);
    let said = |what: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {what} in {outcome:?}"))
    };
    let ms = |what: &str| said(what).parse::<f64>().unwrap() / 1_000.0;
    assert!(ms("clean") < 20.0, "{lines:?}");
    for (what, asked) in [("slow", 100.0), ("faster", 20.0)] {
        assert!((asked..asked + 20.0).contains(&ms(what)), "{lines:?}");
    }
    assert_eq!((said("reject"), said("nowhere").contains("no subnet")), ("HostUnreachable", true));
    let ended = &outcome.ended[&instance(1)];
    let events = std::fs::read_to_string(ended.left.events.as_ref().unwrap()).unwrap();
    let told: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told.len() == 4 && told.iter().all(|event| event["name"] == "iptl.network"), "{events}");
    assert_eq!(told[0]["data"]["asked"]["shape"]["latency_ns"], 100_000_000);
    assert!(told[3]["data"]["refused"].as_str().unwrap().contains("nowhere"), "{events}");
    assert!(ended.network.as_ref().unwrap().own.unwrap().delivered > 10, "{ended:?}");
}

#[tokio::test]
async fn network_where_links_are_clean_cannot_be_shaped() {
    let outcome = run(2, &["shape"]).await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert!(lines[1].starts_with("refused: components of a run with a clean network"), "{outcome:?}");
}

#[tokio::test]
async fn instances_talk_by_udp() {
    let outcome = run(5, &["udp-ring"]).await;
    for index in 0..5 {
        assert_eq!(outcome.lines(index, OutputStream::Out), ["three laps"], "instance {index}: {outcome:?}");
    }
}

#[tokio::test]
async fn instances_talk_over_ipv6_on_clean_links_and_on_others() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    for (name, network) in [
        ("clean", None),
        ("both", Some(NetworkModel { ip: IpModel::Both, ..apart(5_000) })),
        ("alone", Some(NetworkModel { ip: IpModel::Ipv6, ..apart(5_000) })),
    ] {
        let scratch = dir.path().join(name);
        std::fs::create_dir(&scratch).unwrap();
        let mut cell = cell(&fixture, &scratch, 3, &["v6"]);
        cell.network = network;
        let lab = Lab::prepare(&*fixture.runner, cell).await;
        lab.control.start().await;
        let outcome = lab.finish().await;
        assert_eq!(outcome.lines(0, OutputStream::Out), ["served"], "{name}: {outcome:?}");
        for index in 1..3 {
            assert_eq!(outcome.lines(index, OutputStream::Out), ["HostUnreachable"], "{name}: {outcome:?}");
        }
    }
    fixture.runner.shutdown().await;
}

#[tokio::test]
async fn megabytes_arrive_whole() {
    let outcome = run(2, &["bulk", "16"]).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), [(16u64 << 20).to_string()], "{outcome:?}");
}

#[tokio::test]
async fn names_are_those_of_instances() {
    let outcome = run(2, &["names"]).await;
    let expected = [
        "g-0 10.0.0.1 fd69:7074:6c00::a00:1",
        "g-1 10.0.0.2 fd69:7074:6c00::a00:2",
        "1.g.lab 10.0.0.2 fd69:7074:6c00::a00:2",
        "localhost 127.0.0.1 ::1",
        "g-2 -",
        "example.com -",
    ];
    assert_eq!(outcome.lines(0, OutputStream::Out), expected);
}

#[tokio::test]
async fn connecting_to_nobody_fails_as_the_host_would() {
    let outcome = run(1, &["refused"]).await;
    assert_eq!(
        outcome.lines(0, OutputStream::Out),
        ["ConnectionRefused", "ConnectionRefused", "HostUnreachable"],
        "{outcome:?}"
    );
}

#[tokio::test]
async fn nothing_of_the_host_can_be_reached() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let outcome = run(1, &["no-host", &port]).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), ["nothing"], "{outcome:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a guest has reached the host");
}

#[tokio::test]
async fn sockets_are_limited_and_given_back() {
    let outcome = run(1, &["sockets"]).await;
    // EMFILE of wasi-libc is 33.
    assert_eq!(outcome.lines(0, OutputStream::Out), ["16 Some(33)"], "{outcome:?}");
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
}

#[tokio::test]
async fn connection_ends_with_its_instance() {
    let outcome = run(2, &["reset"]).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), ["ended"], "{outcome:?}");
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(outcome.exit(1), &Exit::Trapped { trap: "unreachable".to_owned() });
}

#[tokio::test]
async fn guest_that_waits_uses_no_cpu_time() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let mut cell = cell(&fixture, dir.path(), 1, &["idle-poll"]);
    cell.instances[0].limits.wall_ms = 500;
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(0), &Exit::OutOfTime {});
    let cpu_us = outcome.ended[&instance(0)].usage.cpu_us;
    assert!(cpu_us < 50_000, "{cpu_us} µs of CPU time");
    fixture.runner.shutdown().await;
}

/// Two cells of one run, with their packets carried between them.
#[tokio::test]
async fn cells_talk_by_packets() {
    for what in [vec!["tcp-echo"], vec!["udp-ring"], vec!["bulk", "8"]] {
        let outcome = run_split(&what).await;
        match what[0] {
            "tcp-echo" => assert_eq!(outcome[&1], ["HELLO FROM 1"]),
            "udp-ring" => assert_eq!(outcome[&1], ["three laps"]),
            _ => assert_eq!(outcome[&0], [(8u64 << 20).to_string()]),
        }
    }
}

#[tokio::test]
async fn a_network_delays_what_instances_say_and_receipts_say_so() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    for what in ["tcp-echo", "udp-ring"] {
        let scratch = dir.path().join(what);
        std::fs::create_dir(&scratch).unwrap();
        let mut cell = cell(&fixture, &scratch, 3, &[what]);
        cell.network = Some(apart(20_000));
        let lab = Lab::prepare(&*fixture.runner, cell).await;
        lab.control.start().await;
        let outcome = lab.finish().await;
        match what {
            "tcp-echo" => assert_eq!(outcome.lines(1, OutputStream::Out), ["HELLO FROM 1"], "{outcome:?}"),
            _ => assert_eq!(outcome.lines(1, OutputStream::Out), ["three laps"], "{outcome:?}"),
        }
        let network = outcome.ended[&instance(1)].network.clone().expect("its links were not clean");
        assert!(network.up[0].delivered > 0 && network.down[0].delivered > 0, "{network:?}");
        let across = network.cell.across;
        assert_eq!(across.asked_ns, 20_000_000 * across.delivered, "{network:?}");
        assert!(across.measured_ns >= across.asked_ns, "{network:?}");
        assert!(network.cell.lateness.iter().sum::<u64>() >= across.delivered, "{network:?}");
        assert_eq!((network.lost_by_lab, network.cell.lost_by_lab, network.crashes), (0, 0, 0));
    }
    fixture.runner.shutdown().await;
}

#[tokio::test]
async fn megabytes_arrive_whole_through_a_link_that_loses_packets() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let mut cell = cell(&fixture, dir.path(), 2, &["bulk", "2"]);
    let mut network = apart(2_000);
    for class in network.access.values_mut() {
        class.up.loss_ppm = 10_000;
    }
    cell.network = Some(network);
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.lines(0, OutputStream::Out), [(2u64 << 20).to_string()], "{outcome:?}");
    let lost: u64 = outcome.ended.values().filter_map(|ended| Some(ended.network.as_ref()?.up[0].lost)).sum();
    assert!(lost > 0, "a hundredth of some two thousand packets");
    fixture.runner.shutdown().await;
}

/// One region in which everything takes some time.
fn apart(delay_us: u64) -> NetworkModel {
    let class = AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu: 1500 };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["here".to_owned()],
        delays_us: vec![vec![delay_us]],
        access: BTreeMap::from([("class".to_owned(), class)]),
        groups: BTreeMap::new(),
    }
}

async fn run(size: usize, args: &[&str]) -> Outcome {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::prepare(&*fixture.runner, cell(&fixture, dir.path(), size, args)).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    fixture.runner.shutdown().await;
    outcome
}

fn cell(fixture: &iptl_runner::contract::Fixture, dir: &std::path::Path, size: usize, args: &[&str]) -> CellSpec {
    let mut cell = fixture.cell(dir, &vec![Behaviour::Succeed; size]);
    for instance in &mut cell.instances {
        instance.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        instance.limits.cpu_ms = 20_000;
    }
    cell
}

async fn run_split(args: &[&str]) -> BTreeMap<u32, Vec<String>> {
    let fixture = fixture();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut cells = Vec::new();
    for (index, dir) in (0u32..).zip(&dirs) {
        let mut cell = cell(&fixture, dir.path(), 2, args);
        cell.instances.retain(|i| i.id == InstanceId { group: "g".to_owned(), index });
        cells.push(fixture.runner.prepare(cell).await.unwrap());
    }
    let [a, b]: [PreparedCell; 2] = cells.try_into().ok().unwrap();
    a.control.start().await;
    b.control.start().await;
    let (mut events_a, mut events_b) = (a.events, b.events);
    let mut lines = BTreeMap::<u32, Vec<String>>::new();
    let (mut over_a, mut over_b) = (false, false);
    while !(over_a && over_b) {
        let (event, other) = tokio::select! {
            event = events_a.recv(), if !over_a => (event.unwrap(), &b.control),
            event = events_b.recv(), if !over_b => (event.unwrap(), &a.control),
        };
        match event {
            CellEvent::Output { id, line, .. } => lines.entry(id.index).or_default().push(line),
            CellEvent::Packets(batch) => other.input(vec![CellInput::Packets(batch)]).await,
            CellEvent::Ended { id, ended } => {
                assert_eq!(ended.exit, Exit::Exited { code: 0 }, "{id} {lines:?}");
            }
            CellEvent::CellOver if std::ptr::eq(other, &b.control) => over_a = true,
            CellEvent::CellOver => over_b = true,
            CellEvent::Usage(_) | CellEvent::Fault(_) => {}
            CellEvent::Sync { .. } => panic!("these guests call nobody"),
        }
    }
    fixture.runner.shutdown().await;
    lines
}

/// A cell with a fault in a network of both families, run until the given instance has ended.
async fn with_faults(size: usize, args: &[&str], faults: Vec<ScheduledFault>, of: u32) -> (Outcome, Vec<FaultKind>) {
    let network = NetworkModel { ip: IpModel::Both, ..apart(1_000) };
    with_faults_in(network, size, args, faults, |outcome| outcome.ended.contains_key(&instance(of))).await
}

async fn with_faults_in(
    network: NetworkModel,
    size: usize,
    args: &[&str],
    faults: Vec<ScheduledFault>,
    until: impl FnMut(&Outcome) -> bool,
) -> (Outcome, Vec<FaultKind>) {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let mut cell = cell(&fixture, dir.path(), size, args);
    cell.network = Some(network);
    cell.faults = vec![FaultSchedule { faults }];
    let mut lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    lab.until(until).await;
    lab.control.stop("it has ended".to_owned()).await;
    let outcome = lab.finish().await;
    fixture.runner.shutdown().await;
    let kinds = outcome.faults.iter().map(|fault| fault.kind).collect();
    (outcome, kinds)
}

fn first() -> FaultTarget {
    FaultTarget { group: Some("g".to_owned()), region: None, share_ppm: 1_000_000 }
}

#[tokio::test]
async fn instance_that_gets_another_address_is_found_there_by_its_name() {
    let fault = ScheduledFault { at_ms: 1_500, every_ms: 0, fault: Fault::Address { who: first() } };
    let (outcome, kinds) = with_faults(2, &["moves"], vec![fault], 1).await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert_eq!(lines, ["10.0.0.1", "198.18.0.1", "hello", "HostUnreachable"], "{outcome:?}");
    assert_eq!(kinds, [FaultKind::Address], "and it is told");
}

#[tokio::test]
async fn wall_clock_jumps_and_time_goes_on() {
    let at = |at_ms, by_ms| ScheduledFault { at_ms, every_ms: 0, fault: Fault::Clock { who: first(), by_ms } };
    let hour = 3_600_000;
    let (outcome, kinds) = with_faults(1, &["clock"], vec![at(1_000, 2 * hour), at(2_000, -3 * hour)], 0).await;
    assert_eq!(outcome.lines(0, OutputStream::Out), ["120", "-60"], "{outcome:?}");
    assert_eq!(kinds, [FaultKind::Clock, FaultKind::Clock]);
}

#[tokio::test]
async fn mappings_of_a_nat_that_forgets_are_others_and_the_old_ones_lead_nowhere() {
    let fault = ScheduledFault { at_ms: 1_500, every_ms: 0, fault: Fault::Rebind { who: first() } };
    let network = one_behind_a_nat(apart(1_000));
    let (outcome, kinds) = with_faults_in(network, 2, &["mirror"], vec![fault], |o| !o.ended.is_empty()).await;
    check_rebound(&outcome);
    assert_eq!(kinds, [FaultKind::Rebind]);
}

#[tokio::test]
async fn crashed_components_have_the_address_that_they_had_or_another_where_that_is_asked_for() {
    let crash = |at_ms, new_address| {
        let fault = Fault::Crash { who: first(), restart_ms: 100, files_lost: true, new_address };
        ScheduledFault { at_ms, every_ms: 0, fault }
    };
    let faults = vec![crash(1_000, false), crash(2_500, true), crash(4_000, false)];
    let network = NetworkModel { ip: IpModel::Both, ..apart(1_000) };
    let lives = |outcome: &Outcome| outcome.lines(0, OutputStream::Out).len();
    let (outcome, kinds) = with_faults_in(network, 1, &["where"], faults, |outcome| lives(outcome) == 4).await;
    let old = "10.0.0.1 fd69:7074:6c00::a00:1, found at 10.0.0.1";
    let new = "198.18.0.1 fd69:7074:6c00:1::c612:1, found at 198.18.0.1";
    assert_eq!(outcome.lines(0, OutputStream::Out), [old, old, new, new]);
    assert_eq!(kinds, [FaultKind::Crash, FaultKind::Restart].repeat(3));
}

/// A cell of an instance outside and three in a home.
fn with_a_home(fixture: &iptl_runner::contract::Fixture, dir: &std::path::Path) -> CellSpec {
    let mut cell = cell(fixture, dir, 4, &["lan", "g-0"]);
    cell.network = Some(homes_of_three(apart(1_000)));
    cell.groups = BTreeMap::from([("g".to_owned(), 1), ("h".to_owned(), 3)]);
    for (index, instance) in (0..).zip(&mut cell.instances[1..]) {
        instance.id = InstanceId { group: "h".to_owned(), index };
    }
    cell.instances[0].args = ["mirror", "h-0"].map(str::to_owned).to_vec();
    cell
}

#[tokio::test]
async fn components_in_one_home_find_each_other_there_and_have_one_address_outside() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::prepare(&*fixture.runner, with_a_home(&fixture, dir.path())).await;
    lab.control.start().await;
    lab.until(|outcome| outcome.ended.len() == 3).await;
    lab.control.stop("all is said".to_owned()).await;
    let outcome = lab.finish().await;
    for (index, line) in [
        (0, "192.168.1.2 finds 192.168.1.3 192.168.1.4"),
        (1, "192.168.1.3 finds 192.168.1.2 192.168.1.4"),
        (2, "192.168.1.4 finds 192.168.1.2 192.168.1.3"),
    ] {
        let id = InstanceId { group: "h".to_owned(), index };
        let said: Vec<_> =
            outcome.output.iter().filter(|(of, ..)| *of == id).map(|(_, _, line)| line.as_str()).collect();
        assert_eq!(said, [line, "seen as 172.16.0.1"], "{outcome:?}");
        assert_eq!(outcome.ended[&id].network.as_ref().unwrap().up.len(), 2, "its own link and its gateway's");
    }
    // Two of the three are no home.
    let dir = tempfile::tempdir().unwrap();
    let mut parted = with_a_home(&fixture, dir.path());
    parted.instances.pop();
    let error = fixture.runner.prepare(parted).await.err().unwrap();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.contains("h/1 and h/2 share a LAN, and are not on one lablet"), "{error}");
    fixture.runner.shutdown().await;
}
