//! The live view of an execution: once for programs, live on a terminal; and samples of components in receipts.

use std::process::Command;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Lab, repository, run, until};
use serde_json::Value;

/// Two instances that compute and two that wait at a barrier for everybody.
const PLAN: &str = r#"
[plan]
name = "seen"
version = "0.1.0"

[workloads.work]
runner = "wasm"
path = "hostile.wasm"

[workloads.meet]
runner = "wasm"
path = "mixed.wasm"

[cases.only]
timeout = "3m"

[cases.only.groups.spin]
workload = "work"
count = 2
args = ["loop"]
affinity = "spread"
resources = { memory = "16MiB", cpu = "2m", wall = "3m" }

[cases.only.groups.wait]
workload = "meet"
count = 2
affinity = "spread"
resources = { memory = "16MiB", cpu = "2m", wall = "3m" }

[cases.only.params.rounds]
type = "int"
default = 1
"#;

#[test]
fn an_execution_is_seen_while_it_runs_and_its_samples_are_in_the_receipts() {
    let lab = Lab::start(2);
    lab.run(&["top"]).fails(3, "execution.unknown");
    let plan = tempfile::tempdir().unwrap();
    for name in ["hostile", "mixed"] {
        let program = repository().join(format!("plans/{name}/target/wasm32-wasip2/release/{name}.wasm"));
        std::fs::copy(program, plan.path().join(format!("{name}.wasm"))).unwrap();
    }
    std::fs::write(plan.path().join("plan.toml"), PLAN).unwrap();
    lab.run(&["run", &plan.path().display().to_string(), "--no-build", "--detach"]).exits(0);

    // For programs: once, with everything in it.
    let seen = until("a view with what is used", || {
        let top = lab.run(&["top", "--json"]).exits(0).json();
        let spins = top["groups"]["spin"]["cpu_milli"].as_u64().is_some_and(|milli| milli > 50);
        (spins && top["groups"]["wait"]["running"] == 2 && top["barriers"][0]["count"] == 2).then_some(top)
    });
    assert_eq!(seen["schema"], "iptl.top/1");
    assert_eq!((&seen["lablets"], &seen["heard"]), (&Value::from(2), &Value::from(2)), "{seen}");
    let spin = &seen["groups"]["spin"];
    assert_eq!((&spin["count"], &spin["running"], &spin["ended"]), (&2.into(), &2.into(), &0.into()), "{seen}");
    assert!(spin["memory_bytes"].as_u64().unwrap() > 0 && spin["cpu_us"].as_u64().unwrap() > 0, "{seen}");
    let barrier = &seen["barriers"][0];
    assert_eq!((&barrier["state"], &barrier["target"]), (&Value::from("ready"), &Value::from(4)), "{seen}");
    assert!(seen["busiest"][0]["instance"].as_str().unwrap().starts_with("spin/"), "{seen}");
    // Who is missing is asked of the lablets, and told when they have answered.
    until("who is missing", || {
        let top = lab.run(&["top", "--json"]).exits(0).json();
        let missing = top["barriers"][0]["missing"].as_array()?.clone();
        missing.iter().any(|who| who.as_str().is_some_and(|who| who.starts_with("spin/0 on "))).then_some(())
    });

    // A member's node, which is no orchestrator, asks that.
    let member = iptl_e2e::Home::new();
    let _node = iptl_e2e::Foreground::start(member.path(), &[]);
    let ticket = lab.run(&["invite", "--role", "developer", "-q"]).exits(0).word();
    member.run(&["join", &ticket]).exits(0);
    let there = member.run(&["top", "last", "--json"]).exits(0).json();
    assert_eq!((&there["execution"], &there["lablets"]), (&seen["execution"], &seen["lablets"]), "{there}");
    assert_eq!(there["groups"]["spin"]["running"], 2, "{there}");
    let far = Beside::start(&mut member.iptl(&["top", "last", "--json", "--follow"]));
    until("two views", || (far.said().0.matches("iptl.top/1").count() >= 2).then_some(()));
    let lablet = lab.lablets[0].run(&["top", "last", "--json"]);
    assert!(matches!(lablet.code, 0 | 4), "{lablet:?}");

    // Without a terminal plain lines, with one all of it until a key.
    let plain = lab.run(&["top", "last"]).exits(0).stdout;
    assert!(plain.contains("GROUP") && plain.contains("ready") && !plain.contains('\u{1b}'), "{plain}");
    let iptl = lab.iptl(&["top", "last"]);
    let words: Vec<String> = std::iter::once(iptl.get_program())
        .chain(iptl.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let session = format!("stty rows 30 cols 60; exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &session, "/dev/null"]).env("SHELL", "/bin/sh");
    let mut terminal = Beside::start_with_input(&mut script);
    terminal.says("q leaves");
    until("a second picture", || (terminal.said().0.matches("q leaves").count() >= 2).then_some(()));
    terminal.types("q");
    let said = terminal.end().exits(0).stdout;
    assert!(said.contains("\u{1b}[?1049h") && said.contains("\u{1b}[?1049l"), "{said:?}");
    let drawn = said.split("\u{1b}[?1049l").next().unwrap();
    let longest = drawn.split("\r\n").map(|line| line.split("\u{1b}[K").next().unwrap().len()).max().unwrap();
    assert!(longest <= 80, "a line of {longest} on a terminal of 60 columns");

    let mut following = Beside::start(&mut lab.iptl(&["top", "last", "--json", "--follow"]));
    following.says("iptl.top/1");
    lab.run(&["cancel", "last"]).exits(0);
    lab.run(&["watch", "last"]).exits(12);
    following.end().exits(0);
    far.end().exits(0);
    lab.run(&["top", "last"]).fails(3, "execution.over");

    let shown = lab.run(&["show", "last", "--json"]).exits(0).json();
    let shards = lab.run(&["dag", "get", &format!("{}/body/receipts", shown["attestation"].as_str().unwrap())]);
    let mut sampled = 0;
    for shard in shards.exits(0).json().as_array().unwrap() {
        let receipts = lab.run(&["dag", "get", &format!("{}/receipts", shard["/"].as_str().unwrap())]).exits(0).json();
        for body in receipts.as_array().unwrap().iter().map(|signed| &signed["body"]) {
            if body["instance"]["group"] == "spin" {
                let out = lab.path().join(format!("samples-{}", body["instance"]["index"]));
                let cid = body["samples"]["/"].as_str().unwrap_or_else(|| panic!("no samples in {body}"));
                run(&mut lab.iptl(&["get", cid, "-o", &out.display().to_string()])).exits(0);
                let text = std::fs::read_to_string(out).unwrap();
                assert!(text.lines().count() >= 1 && text.contains("\"cpu_us\":"), "{text}");
                sampled += 1;
            }
        }
    }
    assert_eq!(sampled, 2);
}
