//! Processes: kept warm, respawned, gone when they should be.

use std::time::Duration;

use iptl_runner::Runner;
use iptl_runner::contract::{Behaviour, Lab};

use crate::{fixture, runner};

#[tokio::test]
async fn one_worker_is_kept_warm_and_used() {
    let runner = runner();
    assert_eq!(runner.warm_pid(), None);
    runner.warm().await;
    let warm = runner.warm_pid().expect("a warm worker");
    let dir = tempfile::tempdir().unwrap();
    let cell = fixture().cell(dir.path(), &[Behaviour::Park]);
    let lab = Lab::prepare(&runner, cell).await;
    assert_eq!(lab.control.worker_pid(), Some(warm));
    runner.warm().await;
    assert!(runner.warm_pid().is_some_and(|pid| pid != warm));
    runner.shutdown().await;
    assert!(!is_running(warm), "shutdown leaves nothing running");
}

#[tokio::test]
async fn dead_warm_worker_is_replaced() {
    let runner = runner();
    runner.warm().await;
    let pid = runner.warm_pid().expect("a warm worker");
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    while is_running(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::prepare(&runner, fixture().cell(dir.path(), &[Behaviour::Succeed])).await;
    lab.control.start().await;
    lab.finish().await;
    runner.shutdown().await;
}

#[tokio::test]
async fn worker_inherits_nothing() {
    let runner = runner();
    runner.warm().await;
    let pid = runner.warm_pid().expect("a warm worker");
    // The worker is hardened once it has set its limits.
    let limits = loop {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        if core.split_whitespace().nth(4) == Some("0") && files.contains("4096") {
            break limits;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(limits.contains("Max core file size"));
    assert!(std::fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    // When memory runs out, the kernel takes the worker and not its lablet.
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
    runner.shutdown().await;
}

#[tokio::test]
async fn prepare_that_is_given_up_leaves_no_process_and_no_reservation() {
    let runner = runner();
    runner.warm().await;
    let pid = runner.warm_pid().expect("a warm worker");
    let dir = tempfile::tempdir().unwrap();
    let cell = fixture().cell(dir.path(), &[Behaviour::Succeed]);
    {
        let prepare = runner.prepare(cell);
        tokio::pin!(prepare);
        // One poll hands the cell over; then the caller loses interest.
        let _ = futures::poll!(prepare.as_mut());
    }
    while is_running(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    runner.shutdown().await;
}

#[tokio::test]
async fn capacity_is_that_of_the_machine() {
    let capacity = runner().capacity();
    assert!(capacity.instances > 0 && capacity.memory_bytes > 0, "{capacity:?}");
    assert!(!capacity.bound.is_empty());
}

/// Returns whether a process exists and is no zombie.
fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}
