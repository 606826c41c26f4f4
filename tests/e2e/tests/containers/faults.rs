//! Faults done to containers of a run: what a crash takes with it, and what a NAT forgets.

use std::path::Path;

use iptl_e2e::{Home, docker_is_required};
use serde_json::Value;

use super::network::program;

/// Runs a plan of containers of the runner's test program on this machine alone, and returns where its files are.
fn run(home: &Home, cases: &str) -> std::path::PathBuf {
    let dir = home.path().join("plan");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("work")).unwrap();
    let head = "[plan]\nname = \"faulty\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"docker\"\nbinary = \"work\"\n\n";
    std::fs::write(dir.join("plan.toml"), format!("{head}{cases}")).unwrap();
    let last = home.run(&["run", &dir.display().to_string(), "--local", "--json"]).last_json();
    let result = last["result"].as_str().unwrap_or_else(|| panic!("no result: {last}")).to_owned();
    let (out, local) = (home.path().join("out"), home.path().join("local").display().to_string());
    home.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string(), "--home", &local]).exits(0);
    out
}

/// Returns the lines that an instance wrote.
fn lines(out: &Path, instance: &str) -> Vec<String> {
    let log = std::fs::read_to_string(out.join(format!("logs/{instance}.jsonl"))).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line["line"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn containers_that_crash_again_and_again_keep_files_and_address_unless_the_plan_says_otherwise() {
    engine!();
    let group = |name: &str| {
        format!(
            "[cases.only.groups.{name}]\nworkload = \"work\"\ncount = 1\nargs = [\"stores\", \"/data\"]\n\
             resources = {{ memory = \"32MiB\", cpu = \"20s\", wall = \"9s\" }}\n\
             container = {{ tmpfs = {{ \"/data\" = \"1MiB\" }} }}\n\n"
        )
    };
    let crash = |name: &str, more: &str| {
        format!("[[faults]]\nevery = \"2s\"\ncrash = {{ group = \"{name}\", restart = \"100ms\"{more} }}\n\n")
    };
    let cases = [
        "[cases.only]\n\n".to_owned(),
        group("keeps"),
        group("loses"),
        group("moves"),
        crash("keeps", ""),
        crash("loses", ", files = \"lost\""),
        crash("moves", ", address = \"new\""),
    ]
    .concat();
    let home = Home::new();
    let out = run(&home, &cases);
    let life = |at: &str, stored: u32, life: u32| format!("{at} has {stored}, and {life} for the lab");
    let first = |ordinal: u32| format!("10.0.0.{ordinal} fd69:7074:6c00::a00:{ordinal} 10.0.0.0/8");
    let moved = |n: u32| format!("198.18.0.{n} fd69:7074:6c00:1::c612:{n} 198.0.0.0/8");
    // A crash every two seconds, so that a busy machine too has each life say what it finds.
    let said = |instance: &str| lines(&out, instance).into_iter().take(4).collect::<Vec<_>>();
    assert_eq!(said("keeps/0"), [1, 2, 3, 4].map(|n| life(&first(1), n, n)));
    assert_eq!(said("loses/0"), [1, 2, 3, 4].map(|n| life(&first(2), 1, n)));
    let places = [first(3), moved(1), moved(2), moved(3)];
    let lives: Vec<String> = (1..).zip(&places).map(|(n, at)| life(at, n, n)).collect();
    assert_eq!(said("moves/0"), lives);
    let events = std::fs::read_to_string(out.join("events/keeps/0.jsonl")).unwrap();
    assert!(events.matches("\"crash\"").count() >= 3 && events.matches("\"restart\"").count() >= 3, "{events}");
}

#[test]
fn a_nat_that_forgets_gives_others_ports_in_a_run_of_a_plan() {
    engine!();
    let group = |name: &str, other: &str| {
        format!(
            "[cases.only.groups.{name}]\nworkload = \"work\"\ncount = 1\nargs = [\"mirror\", \"{other}-0\"]\n\
             resources = {{ memory = \"32MiB\", cpu = \"20s\", wall = \"10s\" }}\n\n"
        )
    };
    let network = "[network.gateways.drawn]\nports = \"random\"\n\n[network.groups.inside]\nsites = \"drawn\"\n\n\
                   [[faults]]\nat = \"1s\"\nrebind = { group = \"inside\" }\n";
    let home = Home::new();
    let out =
        run(&home, &["[cases.only]\n\n", &group("inside", "outside"), &group("outside", "inside"), network].concat());
    let said = lines(&out, "inside/0");
    let [first, then, old, new] = said.as_slice() else { panic!("{said:?}") };
    let port = |line: &String| line.strip_prefix("seen as 172.16.0.1:").map(str::to_owned);
    assert!(port(first).is_some() && port(then).is_some() && port(first) != port(then), "{said:?}");
    assert_eq!((old.as_str(), new.as_str()), ("old mapping: nothing", "new mapping: heard"));
    let events = std::fs::read_to_string(out.join("events/inside/0.jsonl")).unwrap();
    assert!(events.contains("\"fault\":\"rebind\",\"due_us\":1000000"), "{events}");
}
