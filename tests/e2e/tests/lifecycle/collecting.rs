//! Collecting while executions go on, and blocks that rot.

use iptl_e2e::{Foreground, Home, Lab, Node, noise, until};

use super::{Plan, passed_once, reaches, submit, watch};

#[test]
fn what_an_execution_needs_stays_while_everything_else_is_collected() {
    let lab = Lab::start(2);
    let file = lab.path().join("rubbish");
    std::fs::write(&file, noise(3_000_000)).unwrap();
    lab.run(&["publish", "data", &file.display().to_string()]).exits(0);
    let plan = Plan::new(4);
    let execution = submit(&lab, &plan.write(&lab), "12s");
    reaches(&lab, &execution, "running");
    // What was uploaded stays for some minutes in any case: the next life of the orchestrator knows of no upload.
    lab.orchestrator.kill();
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    for line in lab.run(&["ls", "pins", "--json"]).exits(0).stdout.lines() {
        let pin: serde_json::Value = serde_json::from_str(line).unwrap();
        lab.run(&["unpin", pin["cid"].as_str().unwrap()]).exits(0);
    }
    let first = collect(&lab.orchestrator);
    assert!(first["freed_bytes"].as_u64().unwrap() >= 3_000_000 && first["missing"] == 0, "{first}");
    assert_eq!(collect(&lab.orchestrator)["missing"], 0);
    // Lablets have of a run what they need, and not the plan that it was made of.
    lab.lablets.iter().for_each(|lablet| drop(collect(lablet)));
    let row = super::row(&lab, &execution).unwrap();
    assert!(
        row["state"].as_str().unwrap().starts_with("running"),
        "it was collected while the execution went on: {row}"
    );
    let ended = watch(&lab, &execution);
    // Its receipts, logs and result are all there, and stay.
    passed_once(&lab, ended, plan.instances());
    assert_eq!(collect(&lab.orchestrator)["missing"], 0);
    let shown = lab.run(&["show", "last", "--json"]).exits(0).json();
    assert_eq!(shown["verified"], true, "{shown}");
}

fn collect(node: &Node) -> serde_json::Value {
    node.run(&["gc", "--json"]).exits(0).json()
}

#[test]
fn a_block_that_rots_is_named_served_no_more_and_fetched_again() {
    let (home, other) = (Home::new(), Home::new());
    let file = home.path().join("file");
    let bytes = noise(3_000_000);
    std::fs::write(&file, &bytes).unwrap();
    let file = file.display().to_string();
    let cid = home.run(&["publish", "data", &file, "-q"]).exits(0).word();
    assert_eq!(other.run(&["publish", "data", &file, "-q"]).exits(0).word(), cid);
    let pack = home.path().join("store/00000001.pack");
    let mut packed = std::fs::read(&pack).unwrap();
    let middle = packed.len() / 2;
    packed[middle] ^= 1;
    std::fs::write(&pack, packed).unwrap();

    let checked = home.run(&["store", "check"]).fails(1, "store.damaged");
    let damaged = checked.word();
    assert_eq!(checked.stdout.lines().count(), 1, "{}", checked.stdout);
    let out = home.path().join("out").display().to_string();
    home.run(&["get", &cid, "-o", &out, "--timeout", "1s"]).fails(3, "fetch.no-provider");
    assert!(!std::path::Path::new(&out).exists(), "half a file is no file");

    // A node that is connected has it.
    let _others = Foreground::start(other.path(), &[]);
    let address = other.run(&["status", "--json"]).exits(0).json()["addrs"][0].as_str().unwrap().to_owned();
    let _node = Foreground::start(home.path(), &["--known", &address]);
    until("a peer", || (home.run(&["status", "--json"]).json()["peers"].as_u64()? > 0).then_some(()));
    let repaired = home.run(&["store", "check", "--repair", "--json"]).exits(0).json();
    assert_eq!((repaired["damaged"].as_u64(), repaired["repaired"].as_u64()), (Some(1), Some(1)), "{repaired}");
    home.run(&["dag", "stat", &damaged, "--timeout", "1s"]).exits(0);
    assert_eq!(home.run(&["store", "check", "--repair", "--json"]).exits(0).json()["damaged"], 0);
    home.run(&["get", &cid, "-o", &out, "--timeout", "1s"]).exits(0);
    assert!(std::fs::read(&out).unwrap() == bytes);
}
