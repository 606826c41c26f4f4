//! Networks of plans: what instances measure is what the plan asked for, and what a lab cannot carry is refused.

use std::path::{Path, PathBuf};

use iptl_e2e::{Home, Lab, Output, repository};
use serde_json::Value;

/// Writes a plan that runs `ping` over a network, and returns its folder.
fn ping_over(dir: &Path, network: &str) -> PathBuf {
    let dir = dir.join("plan");
    std::fs::create_dir_all(&dir).unwrap();
    let program = repository().join("plans/ping/target/wasm32-wasip2/release/ping.wasm");
    std::fs::copy(&program, dir.join("ping.wasm")).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let manifest = std::fs::read_to_string(repository().join("plans/ping/plan.toml")).unwrap();
    let (head, _) = manifest.split_once("[[cases.mesh.thresholds]]").unwrap();
    let head = head.replace("target/wasm32-wasip2/release/ping.wasm", "ping.wasm");
    std::fs::write(dir.join("plan.toml"), format!("{head}\n{network}")).unwrap();
    dir
}

/// Two regions 50 ms apart; with two instances there is one in each.
const APART: &str = r#"
[network]
regions = ["east", "west"]
delay = "50ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "min"
at_least = "100ms"

[[cases.mesh.thresholds]]
metric = "ping.udp.rtt"
stat = "min"
at_least = "100ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.connect"
stat = "min"
at_least = "100ms"

# What a loaded machine may add.
[[cases.mesh.thresholds]]
metric = "ping.udp.rtt"
stat = "p50"
below = "140ms"
"#;

fn run_local(home: &Home, plan: &Path, more: &[&str]) -> Output {
    let plan = plan.display().to_string();
    home.run(&[&["run", &plan, "--no-build", "--local"], more].concat())
}

/// Fetches the files of a result and returns the events of its instances.
fn events(home: &Home, result: &str, instances: u32) -> Vec<String> {
    let out = home.path().join("out");
    let local = home.path().join("local").display().to_string();
    home.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string(), "--home", &local]).exits(0);
    let of = |index| std::fs::read_to_string(out.join(format!("events/node/{index}.jsonl"))).unwrap();
    (0..instances).map(of).collect()
}

#[test]
fn round_trips_are_as_long_as_the_network_asks() {
    let home = Home::new();
    let plan = ping_over(home.path(), APART);
    let checked = home.run(&["check", &plan.display().to_string()]).exits(0);
    assert!(checked.stderr.contains("2 regions, 0ms to 50ms one way"), "{}", checked.stderr);
    let output = run_local(&home, &plan, &["-g", "node=2", "-p", "rounds=5"]).exits(0);
    assert!(output.stderr.contains("network ") && output.stderr.contains("2 regions"), "{}", output.stderr);
    // The same plan on another network.
    let output = run_local(&home, &plan, &["-g", "node=2", "-p", "rounds=5", "--network", "clean", "--json"]);
    assert_eq!(output.exits(10).last_json()["verdict"], "fail", "no round trip takes 100 ms");
    let unknown = run_local(&home, &plan, &["--network", "claen"]).fails(2, "run.invalid");
    assert!(unknown.stderr.contains("did you mean `clean`?"), "{}", unknown.stderr);
    let dry = run_local(&home, &plan, &["-g", "node=2", "--dry-run", "--network", "world-2019"]).exits(0);
    assert!(dry.stderr.contains("6 regions, 5.5ms to 162.5ms one way"), "{}", dry.stderr);
}

#[test]
fn a_partition_is_seen_by_instances_and_told_in_their_events() {
    let home = Home::new();
    let plan = repository().join("plans/split");
    let output = run_local(&home, &plan, &["-g", "node=4", "--json"]).exits(0);
    let last = output.last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let events = events(&home, last["result"].as_str().unwrap(), 4);
    let events: Vec<Value> = events[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).cloned().collect::<Vec<_>>();
    let faults: Vec<_> = named("iptl.fault").iter().map(|event| event["data"]["fault"].clone()).collect();
    assert_eq!(faults, ["partition", "heal"]);
    // Half of four are in the other region.
    assert_eq!((named("lost").len(), named("found").len()), (2, 2));
}

#[test]
fn crashed_instances_start_again_with_their_address() {
    let home = Home::new();
    let crash = "[[faults]]\nat = \"1s\"\ncrash = { group = \"node\", share = \"50%\", restart = \"500ms\" }\n";
    let plan = ping_over(home.path(), crash);
    let options = ["-g", "node=2", "-p", "rounds=100", "-p", "interval=100ms", "-p", "patience=3s", "--json"];
    let last = run_local(&home, &plan, &options).last_json();
    let events = events(&home, last["result"].as_str().unwrap(), 2);
    let crashed: Vec<&String> = events.iter().filter(|events| events.contains("iptl.fault")).collect();
    let [crashed] = crashed.as_slice() else { panic!("one of two crashes: {events:?}") };
    assert_eq!(crashed.matches("\"listening\"").count(), 2, "it listens again: {crashed}");
}

#[test]
fn a_network_that_is_no_network_is_refused_with_its_place() {
    let home = Home::new();
    let plan = ping_over(home.path(), "[network]\nregions = [\"a\", \"b\"]\ndelays = [[\"1ms\"]]\n");
    let output = home.run(&["check", &plan.display().to_string()]).exits(2);
    assert!(output.stderr.contains("E0315"), "{}", output.stderr);
    home.run(&["explain", "E0315"]).exits(0);
}

#[test]
fn a_lab_refuses_a_network_that_it_cannot_carry() {
    let lab = Lab::start(2);
    let plan = ping_over(lab.path(), APART);
    // A run with a network is on one lablet where it may be.
    let last =
        lab.run(&["run", &plan.display().to_string(), "--no-build", "-g", "node=2", "--json"]).exits(0).last_json();
    assert_eq!(last["verdict"], "pass");
    let manifest = std::fs::read_to_string(plan.join("plan.toml")).unwrap();
    let spread = manifest.replace("affinity = \"spread\"", "max_per_lablet = 2");
    std::fs::write(plan.join("plan.toml"), spread).unwrap();
    let plan = plan.display().to_string();
    let output = lab.run(&["run", &plan, "--no-build", "-g", "node=4"]);
    assert_ne!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("links between components on other lablets are clean only"), "{}", output.stderr);
    // The lab is none the worse for it.
    lab.run(&["run", &plan, "--no-build", "-g", "node=4", "--network", "clean", "-p", "rounds=1", "--json"]).exits(10);
}
