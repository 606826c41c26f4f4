//! Lablets that are started again while their containers run.

use std::process::Command;

use iptl_e2e::beside::{Beside, signal};
use iptl_e2e::{Foreground, Home, Lab, docker_is_required, is_alive, until};
use serde_json::Value;

use super::program;
use crate::lifecycle::Asks;

/// Instances of a run, spread over two lablets.
pub(super) const INSTANCES: u64 = 4;

/// Writes a plan of containers alone that meet, pause, and meet again.
fn plan(lab: &Lab) -> String {
    let dir = lab.path().join("plan-of-containers");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("work")).unwrap();
    let text = format!(
        "[plan]\nname = \"restarts\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"docker\"\n\
         binary = \"work\"\n\n[cases.only]\ntimeout = \"2m\"\n\n\
         [cases.only.params.rounds]\ntype = \"int\"\ndefault = 3\nmin = 1\nmax = 10\n\n\
         [cases.only.params.pause]\ntype = \"duration\"\ndefault = \"1s\"\nmin = \"1ms\"\nmax = \"1m\"\n\n\
         [cases.only.groups.work]\nworkload = \"work\"\ncount = {{ default = {INSTANCES}, min = 1, max = 9 }}\n\
         affinity = \"spread\"\nresources = {{ memory = \"32MiB\", cpu = \"10s\", wall = \"1m\" }}\n\n\
         [[cases.only.thresholds]]\nsuccess_rate = {{ at_least = 1.0 }}\n"
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

/// Starts a run and returns it once every instance pauses.
pub(super) fn pausing(lab: &Lab, pause: &str) -> String {
    let pause = format!("pause={pause}");
    let execution = lab.run(&["run", &plan(lab), "--no-build", "-p", &pause, "--detach"]).exits(0).word();
    until("the start", || {
        let rows = lab.run(&["ls", "runs", "--json"]).stdout;
        rows.contains("\"running").then_some(())
    });
    let follower = Beside::start(&mut lab.iptl(&["logs", &execution, "-f"]));
    until("a pause of every instance", || {
        let lines = follower.said().0;
        (lines.lines().filter(|line| line.ends_with("pauses")).count() as u64 == INSTANCES).then_some(())
    });
    execution
}

/// Returns the containers of an execution that there are.
pub(super) fn containers(execution: &str) -> Vec<String> {
    let filter = format!("label=iptl.execution={execution}");
    let output = Command::new("docker").args(["ps", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// Asserts that a run ended as if nothing had happened, each instance having run once.
pub(super) fn passed_once(lab: &impl Asks, execution: &str) -> Value {
    let last = lab.ask(&["watch", execution, "--json"]).exits(0).last_json();
    assert_eq!((last["verdict"].as_str(), last["ok"].as_u64()), (Some("pass"), Some(INSTANCES)), "{last}");
    let result = last["result"].as_str().unwrap();
    let shown = lab.ask(&["show", result, "--json"]).exits(0).json();
    assert_eq!((&shown["verified"], &shown["receipts"]), (&Value::from(true), &Value::from(INSTANCES)), "{shown}");
    let folder = Home::new();
    let out = folder.path().join("out");
    lab.ask(&["get", &format!("{result}/files"), "-o", &out.display().to_string()]).exits(0);
    for index in 0..INSTANCES {
        let read = |kind: &str| std::fs::read_to_string(out.join(format!("{kind}/work/{index}.jsonl"))).unwrap();
        let (log, events) = (read("logs"), read("events"));
        assert_eq!(events.matches("began").count(), 1, "it began twice: {events}");
        assert_eq!(log.matches("pauses").count(), 1, "{log}");
        assert!(log.contains(&format!("work-{index} heard {} others", INSTANCES - 1)), "{log}");
    }
    last
}

#[test]
fn a_lablet_killed_in_mid_run_takes_its_containers_up_again_and_nothing_runs_twice() {
    engine!();
    let lab = Lab::start_with_docker(2);
    let execution = pausing(&lab, "10s");
    let before = containers(&execution);
    assert_eq!(before.len() as u64, INSTANCES);
    lab.lablets[0].kill();
    assert_eq!(containers(&execution), before, "containers outlive their lablet");
    let again = Foreground::again(&lab.lablets[0].home, &[]);
    assert_eq!(containers(&execution), before, "they are the same when it is there again");
    let last = passed_once(&lab, &execution);
    // What the lab did to the run stands in its result, and in the receipts of those that ran on.
    let result = last["result"].as_str().unwrap();
    let shown = lab.run(&["show", result, "--json"]).exits(0).json();
    let adopted = shown["adopted"].as_array().unwrap();
    assert!(!adopted.is_empty() && (adopted.len() as u64) < INSTANCES, "{shown}");
    for told in adopted {
        assert_eq!(told["at_ms"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told["sync_lost"], false, "programs on our SDK connect again: {told}");
    }
    let said = lab.run(&["show", result]).exits(0).stdout;
    assert!(said.contains("its lablet was started again, and had it back at"), "{said}");
    let told = lab.run(&["dag", "get", &format!("{}/attestation/body", last["result"].as_str().unwrap())]).exits(0);
    assert!(told.stdout.contains("no session with the orchestrator for"), "{}", told.stdout);
    until("the end of all containers", || containers(&execution).is_empty().then_some(()));
    drop(again);
}

#[test]
fn a_lablet_that_is_asked_to_end_leaves_its_containers_to_its_next_life() {
    engine!();
    let lab = Lab::start_with_docker(2);
    let execution = pausing(&lab, "10s");
    let before = containers(&execution);
    let pid = lab.lablets[1].pid;
    signal(pid, "TERM");
    until("its end", || (!is_alive(pid)).then_some(()));
    let again = Foreground::again(&lab.lablets[1].home, &[]);
    assert_eq!(containers(&execution), before);
    passed_once(&lab, &execution);
    drop(again);
}

#[test]
fn containers_of_a_lease_that_ran_out_are_ended_when_their_lablet_is_back() {
    engine!();
    let lab = Lab::start_with_docker(2);
    let execution = pausing(&lab, "40s");
    lab.lablets[0].kill();
    // The other lablet's instances are stopped with the execution, which is lost without these.
    let mut watching = Beside::start(&mut lab.iptl(&["watch", &execution]));
    watching.says("not heard");
    let held = containers(&execution);
    assert!(!held.is_empty(), "nobody is there to end them");
    let again = Foreground::again(&lab.lablets[0].home, &[]);
    lab.run(&["cancel", &execution]);
    until("the end of all containers", || containers(&execution).is_empty().then_some(()));
    watching.end();
    drop(again);
}
