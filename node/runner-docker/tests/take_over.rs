//! Containers outlive their lablet, and the engine's process; a lablet finds its own again and no others.

use std::collections::BTreeSet;
use std::path::Path;

use iptl_dag::model::{Container, Exit};
use iptl_runner::contract::{Lab, Outcome, instance};
use iptl_runner::{CellEvent, CellSpec, OutputStream, Runner};

use crate::engine;
use crate::support::{Bench, plain, until, wrote};

/// A cell whose first instance makes as many steps as a file says that the plan mounted.
pub(crate) fn steps(bench: &Bench) -> CellSpec {
    let given = bench.dir.path().join("given");
    std::fs::create_dir_all(&given).unwrap();
    ask(bench.dir.path(), 0);
    let mut cell = bench.cell(&Container::usual(), &[&["steps", "/given/steps"], &["fail"], &["park"]]);
    let mut container = plain(Container::usual());
    container.files.insert("/given".to_owned(), given);
    cell.instances[0].container = Some(container);
    cell
}

pub(crate) fn ask(dir: &Path, steps: u64) {
    let new = dir.join("given/new");
    std::fs::write(&new, steps.to_string()).unwrap();
    std::fs::rename(new, dir.join("given/steps")).unwrap();
}

/// Does to a runner and its cell what a killed process would: nothing is said to anybody.
fn abandon(lab: Lab) {
    std::mem::forget(lab.control);
}

#[tokio::test]
async fn running_containers_are_found_again_and_nothing_is_run_twice() {
    let mut bench = engine!();
    let spec = steps(&bench);
    // A runtime of its own, as the lablet's process would be: it ends with everything that it did.
    let first = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let outcome = runtime.block_on(async {
                    let runner = bench.again().await;
                    let mut lab = Lab::prepare(&runner, spec.clone()).await;
                    lab.control.start().await;
                    ask(bench.dir.path(), 3);
                    until(&mut lab, "three steps and an end", |outcome| {
                        wrote(0, "step 3")(outcome) && outcome.ended.contains_key(&instance(1))
                    })
                    .await;
                    let ended = lab.outcome.ended.clone();
                    abandon(lab);
                    std::mem::forget(runner);
                    ended
                });
                runtime.shutdown_background();
                outcome
            })
            .join()
            .unwrap()
    });
    // What happens while nobody is there.
    ask(bench.dir.path(), 6);
    bench.runner = bench.again().await;
    let adopted = bench.runner.adopt(spec.clone()).await.unwrap().unwrap();
    bench.runner.reap(&BTreeSet::from([spec.origin.clone()])).await;
    let mut outcome = Outcome::default();
    let mut events = adopted.events;
    let mut asked = false;
    while let Some(event) = events.recv().await {
        match event {
            CellEvent::Output { id, stream, line, .. } => {
                if line == "step 6" {
                    ask(bench.dir.path(), 7);
                }
                if line == "step 7" && !asked {
                    asked = true;
                    ask(bench.dir.path(), 100);
                    // The parked one goes on for ever.
                    adopted.control.start().await;
                }
                outcome.output.push((id, stream, line));
            }
            CellEvent::Ended { id, ended } => {
                if id == instance(0) {
                    adopted.control.stop("enough".to_owned()).await;
                }
                outcome.ended.insert(id, ended);
            }
            CellEvent::Sync { .. }
            | CellEvent::Packets(_)
            | CellEvent::Usage(_)
            | CellEvent::Fault(_)
            | CellEvent::CellOver => {}
        }
    }
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(outcome.ended[&instance(1)], first[&instance(1)], "what was told once is told again as it was");
    assert_eq!(outcome.exit(2), &Exit::Stopped { reason: "enough".to_owned() });
    let adopted_at = |index| outcome.ended[&instance(index)].adopted.clone().map(|told| told.at_ms.len());
    assert_eq!((adopted_at(0), adopted_at(1), adopted_at(2)), (Some(1), None, Some(1)));
    let log = std::fs::read_to_string(outcome.ended[&instance(0)].left.logs.as_ref().unwrap()).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<String> = lines.iter().map(|line| line["line"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<String> = (1..=100).map(|n| format!("step {n}")).collect();
    assert_eq!(told, expected, "each step once, in order");
    let times: Vec<u64> = lines.iter().map(|line| line["t"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(outcome.lines(0, OutputStream::Out).first().map(String::as_str), Some("step 4"));
    drop(adopted.control);
    bench.close().await;
}

/// Returns what the lablet has noted of what an instance would lose of sync.
fn stake(bench: &Bench, ordinal: u32) -> Option<String> {
    let cells = std::fs::read_dir(bench.dir.path().join("lablet/cells")).ok()?;
    let mut notes = cells
        .flatten()
        .filter_map(|cell| std::fs::read_to_string(cell.path().join(ordinal.to_string()).join("stake")).ok());
    notes.next()
}

#[tokio::test]
async fn program_that_lost_sync_with_its_lablet_says_so_rather_than_hang() {
    let mut bench = engine!();
    let given = bench.dir.path().join("given");
    std::fs::create_dir_all(&given).unwrap();
    ask(bench.dir.path(), 0);
    let args: &[&[&str]] = &[
        &["wait"],
        &["wait-and-hang"],
        &["signal-and-step", "/given/steps"],
        &["signal-and-step", "/given/steps", "and signal"],
        &["steps", "/given/steps"],
    ];
    let mut spec = bench.cell(&Container::usual(), args);
    for instance in &mut spec.instances {
        let mut container = plain(Container::usual());
        container.files.insert("/given".to_owned(), given.clone());
        instance.container = Some(container);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let runner = bench.again().await;
                let mut lab = Lab::prepare(&runner, spec.clone()).await;
                lab.control.start().await;
                ask(bench.dir.path(), 1);
                until(&mut lab, "the first step of three", |outcome| {
                    (2..5).all(|index| wrote(index, "step 1")(outcome))
                })
                .await;
                // Two wait for what never comes, and two have their answer.
                let noted = || (0..4).map(|index| stake(&bench, index).unwrap_or_default()).collect::<String>();
                let stepping = async { while lab.step().await {} };
                let noting = async {
                    while noted() != "aacc" {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                };
                let noted_in_time = async {
                    tokio::select! {
                        () = stepping => panic!("the cell is over"),
                        () = noting => {}
                    }
                };
                tokio::time::timeout(std::time::Duration::from_secs(60), noted_in_time)
                    .await
                    .unwrap_or_else(|_| panic!("{}", noted()));
                abandon(lab);
                std::mem::forget(runner);
            });
            runtime.shutdown_background();
        });
    });
    bench.runner = bench.again().await;
    let adopted = bench.runner.adopt(spec.clone()).await.unwrap().unwrap();
    ask(bench.dir.path(), 100);
    let mut outcome = Outcome::default();
    let mut events = adopted.events;
    while let Some(event) = events.recv().await {
        if let CellEvent::Ended { id, ended } = event {
            outcome.ended.insert(id, ended);
        }
    }
    let reason = |index| match outcome.exit(index) {
        Exit::WorkerDied { reason } => reason.clone(),
        other => panic!("{index} ended as {other:?}"),
    };
    let lost = "its connection to sync had ended with its lablet's process, and it did not connect again";
    assert_eq!(reason(0), format!("it was ended by SIGABRT after {lost}"));
    assert_eq!(reason(1), format!("it waited for sync, but {lost}"));
    assert_eq!(outcome.exit(2), &Exit::Exited { code: 0 }, "it needed no more of sync");
    assert_eq!(reason(3), format!("it was ended by SIGABRT after {lost}"));
    assert_eq!(outcome.exit(4), &Exit::Exited { code: 0 });
    for index in 0..5 {
        let told = outcome.ended[&instance(index)].adopted.clone().unwrap();
        assert_eq!((told.at_ms.len(), told.sync_lost), (1, index < 4), "{index}");
        assert!(told.at_ms[0] > outcome.ended[&instance(index)].started_ms);
    }
    drop(adopted.control);
    bench.close().await;
}

#[tokio::test]
async fn cell_of_which_nothing_is_left_is_not_adopted() {
    let bench = engine!();
    let spec = bench.cell(&Container::usual(), &[&["park"]]);
    assert!(bench.runner.adopt(spec).await.unwrap().is_none());
    bench.close().await;
}

#[tokio::test]
async fn containers_of_nobody_are_reaped_and_no_others() {
    let bench = engine!();
    let other = engine!();
    let mut neighbour = Lab::prepare(&other.runner, other.cell(&Container::usual(), &[&["ignore-term"]])).await;
    neighbour.control.start().await;
    until(&mut neighbour, "the neighbour runs", wrote(0, "ignoring")).await;
    let scratch = bench.dir.path().join("mine");
    let mine = Lab::prepare(&bench.runner, bench.cell_in(&scratch, &Container::usual(), &[&["park"]])).await;
    let spec = bench.cell(&Container::usual(), &[&["park"], &["park"]]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let runner = bench.again().await;
                let lab = Lab::prepare(&runner, spec.clone()).await;
                lab.control.start().await;
                abandon(lab);
                std::mem::forget(runner);
            });
            runtime.shutdown_background();
        });
    });
    assert_eq!(bench.containers().len(), 3);
    bench.runner.reap(&BTreeSet::new()).await;
    assert_eq!(bench.containers().len(), 1, "the cell of this life lives on");
    assert_eq!(other.containers().len(), 1, "another lablet's lives on");
    mine.control.stop("enough".to_owned()).await;
    mine.finish().await;
    neighbour.control.stop("enough".to_owned()).await;
    neighbour.finish().await;
    bench.close().await;
    other.close().await;
}
