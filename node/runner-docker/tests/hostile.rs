//! Workloads that do what none should: each ends in a receipt that names the cause, and its neighbour does not notice.

use iptl_dag::model::{Container, Exit, Resources};
use iptl_runner::contract::{Lab, Outcome, instance};
use iptl_runner::{CellSpec, OutputStream};

use crate::engine;
use crate::support::{Bench, until, wrote};

/// Runs a workload beside one that only says something when it has seen the other at work.
async fn beside(bench: &Bench, settings: &Container, args: &[&str], limits: impl FnOnce(&mut Resources)) -> Outcome {
    let mut cell = bench.cell(settings, &[args, &["print"]]);
    limits(&mut cell.instances[0].limits);
    let outcome = bench.run(cell).await;
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 }, "the neighbour");
    assert_eq!(outcome.lines(1, OutputStream::Out), ["one", "two", "four"], "the neighbour");
    outcome
}

fn met(outcome: &Outcome) -> Vec<&str> {
    outcome.ended[&instance(0)].limits_met.iter().map(String::as_str).collect()
}

fn too_much(what: &str) -> Exit {
    Exit::TooMuchOutput { what: what.to_owned() }
}

#[tokio::test]
async fn memory_hog_is_seen_as_what_it_is() {
    let bench = engine!();
    let outcome = beside(&bench, &Container::usual(), &["eat-memory"], |_| {}).await;
    assert_eq!(outcome.exit(0), &Exit::OutOfMemory {});
    let usage = outcome.ended[&instance(0)].usage;
    assert!((24 << 20..=32 << 20).contains(&usage.memory_bytes), "{usage:?}");
    bench.close().await;
}

#[tokio::test]
async fn fork_bomb_stays_in_its_container() {
    let bench = engine!();
    let settings = Container { pids: 32, ..Container::usual() };
    let outcome = beside(&bench, &settings, &["fork-bomb"], |limits| {
        limits.cpu_ms = 1_500;
        limits.memory_bytes = 256 << 20;
    })
    .await;
    assert_eq!(outcome.exit(0), &Exit::OutOfCpu {});
    assert_eq!(met(&outcome), ["processes"]);
    bench.close().await;
}

#[tokio::test]
async fn flood_of_open_files_is_named() {
    let bench = engine!();
    let settings = Container { open_files: 64, ..Container::usual() };
    let outcome = beside(&bench, &settings, &["open-files"], |limits| limits.wall_ms = 3_000).await;
    assert_eq!(outcome.exit(0), &Exit::OutOfTime {});
    assert_eq!(met(&outcome), ["open files"]);
    bench.close().await;
}

#[tokio::test]
async fn root_cannot_be_written_to_by_itself() {
    let bench = engine!();
    let (exit, lines) = bench.run_one(&Container::usual(), &["fill-disk", "/"]).await;
    assert_eq!((exit, lines), (Exit::Exited { code: 5 }, vec!["refused at 0".to_owned()]));
    bench.close().await;
}

#[tokio::test]
async fn directory_in_memory_is_bounded() {
    let bench = engine!();
    let settings =
        Container { writable: true, disk_bytes: 48 << 20, user: Some("1000".to_owned()), ..Container::usual() };
    let outcome = beside(&bench, &settings, &["fill-disk", "/tmp"], |limits| limits.wall_ms = 4_000).await;
    // It is refused more and waits, or there was no memory for what it wrote.
    assert!(matches!(outcome.exit(0), Exit::OutOfMemory {} | Exit::OutOfTime {}), "{:?}", outcome.exit(0));
    let usage = outcome.ended[&instance(0)].usage;
    assert!(usage.memory_bytes <= 32 << 20, "{usage:?}");
    bench.close().await;
}

#[tokio::test]
async fn disk_filler_that_is_root_is_ended_at_its_bound() {
    let Some(bench) = Bench::with(iptl_runner_docker::OwnerLimits { root: true, ..Default::default() }).await else {
        return;
    };
    let settings = Container { writable: true, disk_bytes: 48 << 20, user: Some("0".to_owned()), ..Container::usual() };
    let outcome = beside(&bench, &settings, &["fill-disk", "/"], |limits| limits.memory_bytes = 256 << 20).await;
    assert_eq!(outcome.exit(0), &too_much("disk"));
    bench.close().await;
}

#[tokio::test]
async fn log_flood_is_cut_at_its_bound_and_kept_up_to_it() {
    let bench = engine!();
    let outcome = beside(&bench, &Container::usual(), &["flood-output"], |_| {}).await;
    assert_eq!(outcome.exit(0), &too_much("output"));
    let bytes: usize = outcome.lines(0, OutputStream::Out).iter().map(|line| line.len() + 1).sum();
    assert_eq!(bytes, 64 << 10);
    bench.close().await;
}

#[tokio::test]
async fn busy_loop_ends_with_its_cpu_time() {
    let bench = engine!();
    let outcome = beside(&bench, &Container::usual(), &["spin"], |limits| limits.cpu_ms = 500).await;
    assert_eq!(outcome.exit(0), &Exit::OutOfCpu {});
    let usage = outcome.ended[&instance(0)].usage;
    assert!((500_000..2_000_000).contains(&usage.cpu_us), "{usage:?}");
    bench.close().await;
}

#[tokio::test]
async fn share_of_a_processor_is_a_condition() {
    let bench = engine!();
    let settings = Container { cpu_milli: 200, ..Container::usual() };
    let outcome = beside(&bench, &settings, &["spin"], |limits| limits.wall_ms = 3_000).await;
    assert_eq!(outcome.exit(0), &Exit::OutOfTime {});
    let usage = outcome.ended[&instance(0)].usage;
    assert!((200_000..900_000).contains(&usage.cpu_us), "a fifth of three seconds: {usage:?}");
    bench.close().await;
}

#[tokio::test]
async fn ignored_signal_is_followed_by_one_that_cannot_be() {
    let bench = engine!();
    let settings = Container { stop_grace_ms: 500, ..Container::usual() };
    let mut lab = Lab::prepare(&bench.runner, bench.cell(&settings, &[&["ignore-term"], &["catch-term"]])).await;
    lab.control.start().await;
    until(&mut lab, "both run", |outcome| wrote(0, "ignoring")(outcome) && wrote(1, "catching")(outcome)).await;
    let began = std::time::Instant::now();
    lab.control.stop("enough".to_owned()).await;
    let outcome = lab.finish().await;
    assert!(began.elapsed() >= std::time::Duration::from_millis(500));
    for index in 0..2 {
        assert_eq!(outcome.exit(index), &Exit::Stopped { reason: "enough".to_owned() });
    }
    assert!(wrote(1, "caught")(&outcome), "it was asked first");
    bench.close().await;
}

#[tokio::test]
async fn processes_that_nobody_waits_for_are_reaped() {
    let bench = engine!();
    let (exit, lines) = bench.run_one(&Container::usual(), &["zombies", "40"]).await;
    assert_eq!((exit, lines), (Exit::Exited { code: 0 }, vec!["orphaned zombies: 0".to_owned()]));
    bench.close().await;
}

#[tokio::test]
async fn process_that_is_left_behind_does_not_hold_the_instance_up() {
    let bench = engine!();
    let (exit, lines) = bench.run_one(&Container::usual(), &["orphan"]).await;
    assert_eq!((exit, lines), (Exit::Exited { code: 0 }, vec!["done".to_owned()]));
    bench.close().await;
}

#[tokio::test]
async fn links_among_artifacts_lead_nowhere() {
    let bench = engine!();
    let outcome = bench.run(bench.cell(&Container::usual(), &[&["links"]])).await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(met(&outcome), ["links among artifacts"]);
    let artifacts = outcome.ended[&instance(0)].left.artifacts.clone().unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(&artifacts).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["closed", "hard", "real"]);
    assert_eq!(std::fs::read(artifacts.join("closed")).unwrap(), b"closed");
    bench.close().await;
}

#[tokio::test]
async fn nothing_of_the_machine_is_in_reach() {
    let bench = engine!();
    // A neighbour that could be found, and the metadata address that clouds have.
    let mut cell: CellSpec = bench.cell(&Container::usual(), &[&["look-around"], &["park"]]);
    cell.instances[1].limits.wall_ms = 8_000;
    let outcome = bench.run(cell).await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(outcome.lines(0, OutputStream::Out), ["reached interface eth0", "processes: 2", "looked"]);
    bench.close().await;
}

#[tokio::test]
async fn first_process_withstands_its_workload() {
    let bench = engine!();
    let (exit, lines) = bench.run_one(&Container::usual(), &["attack-init"]).await;
    assert_eq!((exit, lines), (Exit::Exited { code: 0 }, vec!["attacked".to_owned()]));
    bench.close().await;
}

#[tokio::test]
async fn signal_that_ends_a_workload_is_named() {
    let bench = engine!();
    let rows = [("8", "SIGFPE"), ("9", "SIGKILL"), ("6", "SIGABRT")];
    let args: Vec<[&str; 2]> = rows.iter().map(|(number, _)| ["kill-self", number]).collect();
    let args: Vec<&[&str]> = args.iter().map(|args| &args[..]).collect();
    let outcome = bench.run(bench.cell(&Container::usual(), &args)).await;
    for (index, (_, name)) in (0..).zip(rows) {
        assert_eq!(outcome.exit(index), &Exit::Signalled { signal: name.to_owned() });
    }
    bench.close().await;
}
