//! What the lab does to containers on purpose.

use std::collections::BTreeMap;

use iptl_dag::model::{
    AccessClass, Container, Exit, Fault, FaultSchedule, FaultTarget, IpModel, LinkModel, NetworkModel, ScheduledFault,
};
use iptl_runner::contract::places::{check_rebound, one_behind_a_nat};
use iptl_runner::contract::{Lab, instance};
use iptl_runner::{CellSpec, OutputStream, Runner};

use crate::engine;
use crate::support::{Bench, until, wrote};

/// A cell with faults that happen once to all instances, or to a part of them.
fn cell(bench: &Bench, args: &[&[&str]], faults: &[(u64, Fault)]) -> CellSpec {
    cell_of(bench, &Container::usual(), args, faults)
}

/// The same of containers with these settings.
fn cell_of(bench: &Bench, container: &Container, args: &[&[&str]], faults: &[(u64, Fault)]) -> CellSpec {
    let class = AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu: 1500 };
    let network = NetworkModel {
        ip: IpModel::default(),
        regions: vec!["here".to_owned()],
        delays_us: vec![vec![0]],
        access: BTreeMap::from([("line".to_owned(), class)]),
        groups: BTreeMap::new(),
    };
    let faults =
        faults.iter().map(|(at_ms, fault)| ScheduledFault { at_ms: *at_ms, every_ms: 0, fault: fault.clone() });
    let faults = vec![FaultSchedule { faults: faults.collect() }];
    CellSpec { network: Some(network), faults, ..bench.cell(container, args) }
}

fn all() -> FaultTarget {
    FaultTarget { group: None, region: None, share_ppm: 1_000_000 }
}

fn crash(restart_ms: u64, files_lost: bool, new_address: bool) -> Fault {
    Fault::Crash { who: all(), restart_ms, files_lost, new_address }
}

/// Returns the faults that an instance was told of, in their order.
fn told(left: &iptl_runner::files::LeftFiles) -> Vec<String> {
    let text = left.events.as_ref().map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let faults = lines.filter(|line| line["name"] == "iptl.fault");
    faults.map(|line| line["data"]["fault"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn crashed_containers_start_again_with_their_address_and_their_files() {
    let bench = engine!();
    let crash = |restart_ms| crash(restart_ms, false, false);
    let cell = cell(&bench, &[&["lives"], &["lives"]], &[(1_500, crash(100)), (3_000, crash(0))]);
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    let lives = |index: u32, life: u32| wrote(index, Box::leak(format!("life {life} at 10.0.0.{}", index + 1).into()));
    until(&mut lab, "both live for the third time", |o| lives(0, 3)(o) && lives(1, 3)(o)).await;
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    for index in [0, 1] {
        assert!(lives(index, 1)(&outcome) && lives(index, 2)(&outcome), "{:?}", outcome.output);
        let ended = &outcome.ended[&instance(index)];
        assert_eq!(ended.network.as_ref().unwrap().crashes, 2);
        assert_eq!(told(&ended.left), ["crash", "restart", "crash", "restart"]);
        let artifacts = ended.left.artifacts.clone().unwrap();
        assert_eq!(std::fs::read_to_string(artifacts.join("lives")).unwrap(), "...");
    }
    bench.close().await;
}

#[tokio::test]
async fn crashed_containers_lose_their_files_or_their_address_where_that_is_asked_for() {
    let bench = engine!();
    let mut container = Container::usual();
    container.tmpfs.insert("/data".to_owned(), 1 << 20);
    // What is written outlasts the first crash, not the second, and each further crash changes the address.
    let moves = [3_000, 4_000, 5_000].map(|at_ms| (at_ms, crash(100, false, true)));
    let faults = [&[(1_000, crash(100, false, false)), (2_000, crash(100, true, false))], &moves[..]].concat();
    let mut cell = cell_of(&bench, &container, &[&["stores", "/data", "/tmp", "/dev/shm"]], &faults);
    cell.network = cell.network.map(|network| NetworkModel { ip: IpModel::Both, ..network });
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "it has moved", |o| {
        o.lines(0, OutputStream::Out).iter().any(|line| line.starts_with("198.18.0.3"))
    })
    .await;
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    let old = "10.0.0.1 fd69:7074:6c00::a00:1 10.0.0.0/8";
    let moved = [1, 2, 3].map(|n| format!("198.18.0.{n} fd69:7074:6c00:1::c612:{n} 198.0.0.0/8"));
    let lives = [
        (old, "1 1 1", 1),
        (old, "2 2 2", 2),
        (old, "1 1 1", 3),
        (&moved[0], "2 2 2", 4),
        (&moved[1], "3 3 3", 5),
        (&moved[2], "4 4 4", 6),
    ];
    let lives = lives.map(|(at, stored, outputs)| format!("{at} has {stored}, and {outputs} for the lab"));
    assert_eq!(outcome.lines(0, OutputStream::Out), lives);
    let ended = &outcome.ended[&instance(0)];
    assert_eq!(told(&ended.left), ["crash", "restart"].repeat(5));
    assert_eq!(ended.network.as_ref().unwrap().spoofed, 0);
    bench.close().await;
}

#[tokio::test]
async fn files_of_a_writable_root_cannot_be_lost_and_that_is_said_before_anything_starts() {
    let bench = engine!();
    let container = Container { writable: true, ..Container::usual() };
    let cell = cell_of(&bench, &container, &[&["succeed"]], &[(100, crash(100, true, false))]);
    let refused = bench.runner.prepare(cell).await.err().expect("it was let through").to_string();
    assert!(refused.contains("files of group `g` are to be lost"), "{refused}");
    bench.close().await;
}

#[tokio::test]
async fn addresses_change_only_where_the_lablet_may_change_them_and_that_is_said_before_anything_starts() {
    let Some(bench) = Bench::unprivileged().await else { return };
    for fault in [Fault::Address { who: all() }, crash(100, false, true)] {
        let refused = bench.runner.prepare(cell(&bench, &[&["succeed"]], &[(100, fault)])).await;
        let refused = refused.err().expect("it was let through").to_string();
        assert!(refused.contains("may not change those of containers"), "{refused}");
    }
    bench.close().await;
}

#[tokio::test]
async fn mappings_of_a_nat_that_forgets_are_others_and_the_old_ones_lead_nowhere() {
    let bench = engine!();
    let faults = [(1_000, Fault::Rebind { who: all() })];
    let mut cell = cell(&bench, &[&["mirror", "g-1"], &["mirror", "g-0"]], &faults);
    cell.network = cell.network.map(one_behind_a_nat);
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "it is seen elsewhere", |o| !o.ended.is_empty()).await;
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    check_rebound(&outcome);
    bench.close().await;
}

#[tokio::test]
async fn cell_that_is_stopped_while_its_containers_are_crashed_ends_at_once() {
    let bench = engine!();
    let crash = crash(50_000, false, false);
    let cell = cell(&bench, &[&["lives"]], &[(300, crash)]);
    let events = cell.scratch.join("g/0/events.jsonl");
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "it lives", wrote(0, "life 1 at 10.0.0.1")).await;
    until(&mut lab, "it crashes", |_| events.exists()).await;
    let begun = std::time::Instant::now();
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert!(begun.elapsed().as_secs() < 20, "it was not waited for");
    assert_eq!(outcome.exit(0), &Exit::Stopped { reason: "enough".to_owned() });
    assert_eq!(told(&outcome.ended[&instance(0)].left), ["crash"]);
    bench.close().await;
}

#[tokio::test]
async fn paused_containers_stand_still_and_go_on() {
    let bench = engine!();
    let pause = Fault::Pause { who: all(), for_ms: 1_500 };
    let mut lab = Lab::prepare(&bench.runner, cell(&bench, &[&["lives"]], &[(300, pause)])).await;
    lab.control.start().await;
    until(&mut lab, "it goes on", wrote(0, "stood still")).await;
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    let ended = &outcome.ended[&instance(0)];
    assert_eq!(
        (told(&ended.left), ended.network.as_ref().unwrap().crashes),
        (vec!["pause".to_owned(), "resume".to_owned()], 0)
    );
    bench.close().await;
}

#[tokio::test]
async fn partition_of_containers_heals_and_connections_go_on() {
    let bench = engine!();
    let one = FaultTarget { share_ppm: 500_000, ..all() };
    let faults = [(0, Fault::Partition { sides: vec![vec![all()], vec![one]] }), (1_500, Fault::Heal {})];
    let mut lab = Lab::prepare(&bench.runner, cell(&bench, &[&["answer"], &["reach", "g-0", "1000"]], &faults)).await;
    let begun = std::time::Instant::now();
    lab.control.start().await;
    until(&mut lab, "the other is done", |o| o.ended.contains_key(&instance(1))).await;
    assert!(begun.elapsed().as_millis() >= 1_500, "nothing passed before");
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 });
    assert_eq!(told(&outcome.ended[&instance(1)].left), ["partition", "heal"]);
    bench.close().await;
}

#[tokio::test]
async fn container_that_gets_another_address_is_found_there_by_its_name() {
    let bench = engine!();
    let first = FaultTarget { group: Some("g".to_owned()), region: None, share_ppm: 1_000_000 };
    let mut cell = cell(&bench, &[&["answer"], &["follow", "g-0"]], &[(1_000, Fault::Address { who: first })]);
    cell.network = cell.network.map(|network| NetworkModel { ip: IpModel::Both, ..network });
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "the other is done", |o| o.ended.contains_key(&instance(1))).await;
    lab.control.stop("seen".to_owned()).await;
    let outcome = lab.finish().await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 }, "{lines:?}");
    // By the file of names and by the server of names, over IPv4 and over IPv6.
    assert_eq!(
        lines,
        [
            "file 10.0.0.1 fd69:7074:6c00::a00:1",
            "server 10.0.0.1 fd69:7074:6c00::a00:1",
            "file 198.18.0.1 fd69:7074:6c00:1::c612:1",
            "server 198.18.0.1 fd69:7074:6c00:1::c612:1",
            "198.18.0.1 answers",
            "fd69:7074:6c00:1::c612:1 answers",
            "10.0.0.1 is nobody's",
            "fd69:7074:6c00::a00:1 is nobody's",
        ]
    );
    assert_eq!(told(&outcome.ended[&instance(0)].left), ["address"]);
    assert_eq!(outcome.ended[&instance(0)].network.as_ref().unwrap().spoofed, 0);
    bench.close().await;
}

#[tokio::test]
async fn clocks_of_containers_are_refused_before_anything_starts() {
    let bench = engine!();
    for (group, says) in [(None, true), (Some("g"), true), (Some("h"), false)] {
        let who = FaultTarget { group: group.map(str::to_owned), ..all() };
        let mut cell = cell(&bench, &[&["succeed"]], &[(100, Fault::Clock { who, by_ms: 1_000 })]);
        cell.groups.insert("h".to_owned(), 1);
        let prepared = bench.runner.prepare(cell).await;
        match prepared {
            Err(refused) => {
                assert!(says, "{refused}");
                assert!(refused.to_string().contains("containers have that of their machine"), "{refused}");
            }
            Ok(prepared) => {
                assert!(!says, "it was let through");
                Lab::of(prepared).abandon().await;
            }
        }
    }
    bench.close().await;
}
