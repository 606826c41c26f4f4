//! The whole path: publish a plan, run it on lablets, fetch the result by CID elsewhere.

use std::process::{Command, Stdio};

use iptl_e2e::{Home, LIMIT, Lab, Output, repository, until, wait};
use serde_json::Value;

fn plan(name: &str) -> String {
    repository().join("plans").join(name).display().to_string()
}

/// Runs `ping` and returns the last line of its narrative.
fn ping(lab: &Lab, group: &str) -> (Output, Value) {
    let output = lab.run(&["run", &plan("ping"), "--no-build", "-g", group, "-p", "rounds=3", "--json"]);
    let last = output.last_json();
    (output, last)
}

#[test]
fn a_run_over_three_lablets_passes_and_a_fresh_node_verifies_its_result() {
    let lab = Lab::start(3);
    let (output, last) = ping(&lab, "node=9");
    output.exits(0);
    assert_eq!(last["schema"], "iptl.result/1");
    assert_eq!(last["verdict"], "pass");
    assert_eq!((last["ok"].as_u64(), last["failed"].as_u64(), last["lost"].as_u64()), (Some(9), Some(0), Some(0)));
    let result = last["result"].as_str().unwrap();

    let fresh = Home::new();
    let address = &lab.orchestrator.addrs[0];
    let out = fresh.path().join("out").display().to_string();
    let got = fresh.run(&["get", &format!("{result}/files"), "-o", &out, "--peer", address, "--json"]).exits(0).json();
    assert!(got["bytes"].as_u64().unwrap() > 0);
    assert!(got["bytes_fetched"].as_u64().unwrap() > 0);
    assert_eq!(got["providers"][0]["peer"], lab.orchestrator.peer.as_str());
    assert!(fresh.path().join("out/summary.json").exists());

    let shown = fresh.run(&["show", result, "--peer", address, "--json"]).exits(0).json();
    assert_eq!(shown["verified"], true, "{shown}");
    assert_eq!(shown["receipts"], 9);
    assert_eq!(shown["outcome_equal"], true);

    // What is here is not fetched again.
    let again = fresh.run(&["show", result, "--json"]).exits(0).json();
    assert_eq!(again["fetch"]["bytes_fetched"], 0);
}

#[test]
fn equal_choices_make_equal_runs_and_the_lab_lists_them() {
    let lab = Lab::start(1);
    let (first, one) = ping(&lab, "node=2");
    let (second, two) = ping(&lab, "node=2");
    first.exits(0);
    second.exits(0);
    assert_eq!(one["run"], two["run"]);
    assert_ne!(one["execution"], two["execution"]);
    let rows = lab.run(&["ls", "runs", "--json"]).exits(0).stdout;
    assert_eq!(rows.lines().count(), 2, "{rows}");
    let results = lab.run(&["ls", "results", "-q"]).exits(0).stdout;
    assert!(results.contains(one["result"].as_str().unwrap()), "{results}");
    lab.run(&["logs", "last"]).exits(0);
    let watched = lab.run(&["watch", "last", "--json"]).exits(0).last_json();
    assert_eq!(watched["result"], two["result"]);
}

#[test]
fn a_detached_run_is_watched_to_its_end() {
    let lab = Lab::start(1);
    let args = ["run", &plan("ping"), "--no-build", "-g", "node=3", "--detach"];
    let execution = lab.run(&args).exits(0).word();
    let last = lab.run(&["watch", &execution, "--json"]).exits(0).last_json();
    assert_eq!(last["execution"], execution.as_str());
    assert_eq!(last["verdict"], "pass");
}

/// Choices with which `ping` would take minutes.
const LONG: [&str; 6] = ["-g", "node=10", "-p", "rounds=1000", "-p", "patience=90s"];

#[test]
fn a_cancelled_run_is_sealed_as_inconclusive() {
    let lab = Lab::start(1);
    let ping = plan("ping");
    let args = [&["run", &ping, "--no-build", "--detach"][..], &LONG].concat();
    let execution = lab.run(&args).exits(0).word();
    lab.run(&["cancel", &execution]).exits(0);
    let last = lab.run(&["watch", &execution, "--json"]).exits(12).last_json();
    assert_eq!(last["verdict"], "inconclusive");
    assert_eq!(last["lost"], 10);
}

#[test]
fn an_interrupt_detaches_and_the_run_goes_on() {
    let lab = Lab::start(1);
    let ping = plan("ping");
    let args = [&["run", &ping, "--no-build", "--json"][..], &LONG].concat();
    let mut attached = lab.iptl(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = || lab.run(&["status", "--json"]).json()["running"][0]["alias"].as_str().map(str::to_owned);
    let alias = until("the run", running);
    Command::new("kill").args(["-INT", &attached.id().to_string()]).status().unwrap();
    assert_eq!(wait(&mut attached, LIMIT), Some(130));
    assert_eq!(running(), Some(alias.clone()));
    lab.run(&["cancel", &alias]).exits(0);
    lab.run(&["watch", &alias, "-q"]).exits(12);
}

#[test]
fn a_dry_run_places_and_runs_nothing() {
    let lab = Lab::start(2);
    let args = ["run", &plan("ping"), "--no-build", "-g", "node=4", "--dry-run", "--json"];
    let placed = lab.run(&args).exits(0).json();
    let count: u64 = placed["rows"].as_array().unwrap().iter().map(|r| r["count"].as_u64().unwrap()).sum();
    assert_eq!((count, placed["unplaced"].as_u64()), (4, Some(0)));
    assert_eq!(lab.run(&["ls", "runs", "-q"]).exits(0).stdout, "");
}

#[test]
fn a_dry_run_says_why_one_kind_has_no_place() {
    let lab = Lab::start(2);
    let args = ["run", &plan("mixed"), "--no-build", "-g", "component=2", "-g", "container=3", "--dry-run"];
    let said = lab.run(&args).fails(5, "lab.no-room").stderr;
    assert!(said.contains("3 instances would have no place"), "{said}");
    assert_eq!(said.matches("has no docker runner").count(), 2, "each lablet says why: {said}");
    assert!(said.contains("group container: "), "{said}");
}

#[test]
fn a_local_run_needs_no_lab() {
    let home = Home::new();
    let args = ["run", &plan("ping"), "--no-build", "-g", "node=3", "--local", "--json"];
    let last = home.run(&args).exits(0).last_json();
    assert_eq!(last["verdict"], "pass");
}

#[test]
fn dev_down_leaves_nothing_running() {
    let lab = Lab::start(2);
    lab.run(&["dev", "down"]).exits(0);
    for node in std::iter::once(&lab.orchestrator).chain(&lab.lablets) {
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", node.pid)).unwrap_or_default();
        assert!(cmdline.is_empty(), "process {} still runs", node.pid);
    }
}
