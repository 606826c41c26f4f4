//! Faults of plans and runs: what instances meet is what was asked for, and the result says so.

use std::collections::BTreeMap;

use iptl_e2e::{Home, Lab};
use serde_json::Value;

use crate::network::{by_kind, events, ping_over, receipts, run_local};

/// Pings that go on while something changes, with room for what a loaded machine may add.
const PINGS: [&str; 9] =
    ["-g", "node=2", "-p", "interval=100ms", "-p", "patience=20s", "-p", "udp-timeout=5s", "--json"];

/// Reads events of an instance, each with its name.
fn read(events: &str) -> Vec<(String, Value)> {
    let lines = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["name"].as_str().unwrap().to_owned(), line["data"].clone())).collect()
}

/// Returns the kinds of faults among events, with the times at which they were due, in milliseconds.
fn faults(events: &str) -> Vec<(String, u64)> {
    let faults = read(events).into_iter().filter(|(name, _)| name == "iptl.fault");
    faults
        .map(|(_, data)| (data["fault"].as_str().unwrap().to_owned(), data["due_us"].as_u64().unwrap() / 1_000))
        .collect()
}

/// Returns the addresses at which an instance has listened, one for each of its lives.
fn listened(events: &str) -> Vec<String> {
    let listening = read(events).into_iter().filter(|(name, _)| name == "listening");
    listening.map(|(_, data)| data["addr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn crashed_instances_start_again_with_their_address() {
    let home = Home::new();
    let crash = "[[faults]]\nat = \"1s\"\ncrash = { group = \"node\", share = \"50%\", restart = \"500ms\" }\n";
    let plan = ping_over(home.path(), crash);
    let options = ["-g", "node=2", "-p", "rounds=100", "-p", "interval=100ms", "-p", "patience=3s", "--json"];
    let last = run_local(&home, &plan, &options).last_json();
    let events = events(&home, last["result"].as_str().unwrap(), 2);
    let crashed: Vec<usize> = (0..2).filter(|index| !faults(&events[*index]).is_empty()).collect();
    let [crashed] = crashed.as_slice() else { panic!("one of two crashes: {events:?}") };
    let address = format!("10.0.0.{}", crashed + 1);
    assert_eq!(listened(&events[*crashed]), [address.clone(), address], "it listens again, where it did");
    assert_eq!(faults(&events[*crashed]), [("crash".to_owned(), 1_000), ("restart".to_owned(), 1_500)]);
    assert_eq!(listened(&events[1 - crashed]).len(), 1);
}

#[test]
fn crashed_instances_start_again_with_another_address_where_the_plan_says_so() {
    let home = Home::new();
    let crash = "[[faults]]\nat = \"1s\"\ncrash = { group = \"node\", share = \"50%\", restart = \"500ms\", \
                 address = \"new\" }\n";
    let plan = ping_over(home.path(), crash);
    let options = ["-g", "node=2", "-p", "rounds=20", "-p", "interval=100ms", "-p", "patience=3s", "--json"];
    let output = run_local(&home, &plan, &options);
    assert!(output.stderr.contains("restart after 500ms at another address"), "{}", output.stderr);
    let events = events(&home, output.last_json()["result"].as_str().unwrap(), 2);
    let crashed = (0..2).find(|index| !faults(&events[*index]).is_empty()).expect("one crashes");
    assert_eq!(listened(&events[crashed]), [format!("10.0.0.{}", crashed + 1), "198.18.0.1".to_owned()]);
}

#[test]
fn crashes_that_come_again_and_again_hit_others_and_are_counted() {
    let lab = Lab::start(1);
    let crash = "[[faults]]\nevery = \"2s\"\ncrash = { group = \"node\", share = \"25%\", restart = \"200ms\" }\n";
    let dir = ping_over(lab.path(), crash);
    // Nobody is done before its time is over.
    let manifest = std::fs::read_to_string(dir.join("plan.toml")).unwrap();
    std::fs::write(dir.join("plan.toml"), manifest.replace("wall = \"2m\"", "wall = \"9s\"")).unwrap();
    let options = ["-g", "node=4", "-p", "rounds=1000", "-p", "interval=100ms", "-p", "patience=90s", "--json"];
    let last = lab.run(&[&["run", &dir.display().to_string(), "--no-build"], &options[..]].concat()).last_json();
    let result = last["result"].as_str().unwrap();

    let out = lab.path().join("out");
    lab.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string()]).exits(0);
    let events = |index| std::fs::read_to_string(out.join(format!("events/node/{index}.jsonl"))).unwrap();
    let mut met: BTreeMap<(String, u64), Vec<u32>> = BTreeMap::new();
    for index in 0..4 {
        for fault in faults(&events(index)) {
            met.entry(fault).or_default().push(index);
        }
    }
    let at = |kind: &str, ms| met.get(&(kind.to_owned(), ms)).cloned().unwrap_or_default();
    // One of four each time, and never one alone at all four times.
    let victims: Vec<Vec<u32>> = (1..=4).map(|time| at("crash", time * 2_000)).collect();
    assert!(victims.iter().all(|hit| hit.len() == 1), "{met:?}");
    assert!(victims.windows(2).any(|pair| pair[0] != pair[1]), "others: {met:?}");
    for time in 1..=4u64 {
        assert_eq!(at("restart", time * 2_000 + 200), victims[time as usize - 1], "{met:?}");
    }
    for index in 0..4u32 {
        let lives = 1 + victims.iter().filter(|hit| hit.contains(&index)).count();
        assert_eq!(listened(&events(index)), vec![format!("10.0.0.{}", index + 1); lives]);
    }
    let (receipts, _) = receipts(&lab, &last["result"]);
    let counted: u64 = receipts.iter().map(|receipt| receipt["network"]["crashes"].as_u64().unwrap_or(0)).sum();
    assert_eq!(counted, 4, "{receipts:?}");
    let shown = lab.run(&["show", result, "--json"]).exits(0).json();
    assert_eq!(by_kind(shown["faults"].as_array().unwrap()), [("crash", 4), ("restart", 4)], "{shown}");
}

#[test]
fn delay_that_changes_in_mid_run_is_what_instances_measure_from_then_on() {
    let home = Home::new();
    let slower = r#"
[network]
regions = ["east", "west"]
delay = "50ms"

[[faults]]
at = "1s"
delay = { from = "east", to = "west", is = "200ms" }

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "max"
at_least = "400ms"

[[cases.mesh.thresholds]]
metric = "ping.udp.rtt"
stat = "max"
at_least = "400ms"

# What it was before.
[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "min"
below = "200ms"
"#;
    let plan = ping_over(home.path(), slower);
    let last = run_local(&home, &plan, &[&["-p", "rounds=20"], &PINGS[..]].concat()).exits(0).last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    for events in events(&home, last["result"].as_str().unwrap(), 2) {
        // A delay there, and the same back: each is a fault.
        assert_eq!(faults(&events), vec![("delay".to_owned(), 1_000); 2], "{events}");
    }
}

#[test]
fn links_of_an_access_class_change_in_mid_run_for_who_has_it() {
    let lab = Lab::start(1);
    let worse = r#"
[network.access.home]
delay = "10ms"

[network.groups.node]
access = "home"

[[faults]]
at = "1s"
link = { access = "home", delay = "100ms", down = { loss = "10%" } }

# Up and down, there and back.
[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "min"
at_least = "40ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "min"
below = "200ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "max"
at_least = "400ms"
"#;
    let plan = ping_over(lab.path(), worse).display().to_string();
    let options = [&["run", &plan, "--no-build", "-p", "rounds=20"], &PINGS[..]].concat();
    let last = lab.run(&options).exits(0).last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let shown = lab.run(&["show", last["result"].as_str().unwrap(), "--json"]).exits(0).json();
    assert_eq!(by_kind(shown["faults"].as_array().unwrap()), [("link", 1)], "{shown}");
    let (receipts, _) = receipts(&lab, &last["result"]);
    let lost = |way: &str| receipts.iter().map(|r| r["network"][way][0]["lost"].as_u64().unwrap()).sum::<u64>();
    // Some eighty packets come in after it; none of them in four thousand runs would be lost by chance in none.
    assert!(lost("up") == 0 && lost("down") > 0, "{receipts:?}");
}
