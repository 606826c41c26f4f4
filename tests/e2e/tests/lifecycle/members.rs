//! Who comes to a lab that works, and who goes.

use std::collections::BTreeSet;
use std::process::Command;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Home, Lab, Output, until};

use super::{Plan, passed_once, reaches, submit, watch};

/// Runs one instance on each of `lablets` lablets and returns how many took part.
#[track_caller]
fn spread_over(lab: &Lab, lablets: u32) -> usize {
    let plan = Plan::new(0).quick(lablets);
    let execution = submit(lab, &plan.write(lab), "1s");
    let receipts = passed_once(lab, watch(lab, &execution), plan.instances());
    receipts.values().map(|receipt| receipt.lablet.clone()).collect::<BTreeSet<_>>().len()
}

#[track_caller]
fn ready(lab: &Lab, lablets: u64) {
    until(&format!("{lablets} lablets"), || {
        (lab.run(&["status", "--json"]).json()["lablets_ready"] == lablets).then_some(())
    });
}

#[test]
fn a_node_that_joins_by_ticket_while_the_lab_works_gets_work() {
    let lab = Lab::start(2);
    let working = submit(&lab, &Plan::new(2).write(&lab), "4s");
    reaches(&lab, &working, "running");
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    let ticket = lab.run(&["invite", "-q"]).exits(0).word();
    home.run(&["join", &ticket, "--name", "third"]).exits(0);
    ready(&lab, 3);
    assert_eq!(spread_over(&lab, 3), 3);
    passed_once(&lab, watch(&lab, &working), 2);
    // Used once, it is worth nothing.
    let late = Home::new();
    late.run(&["join", &ticket]).fails(4, "ticket.used");
}

#[test]
fn a_node_that_asks_waits_for_approval_and_gets_work() {
    let lab = Lab::start(1);
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    joins_by_approval(&home, &lab.orchestrator.addrs[0], |args| lab.run(args));
    ready(&lab, 2);
    assert_eq!(spread_over(&lab, 2), 2);
}

#[test]
fn a_lablet_that_leaves_is_missed_by_nobody() {
    let lab = Lab::start(2);
    lab.lablets[0].run(&["leave"]).exits(0);
    until("the end of its lease", || (lab.run(&["status", "--json"]).json()["lablets_ready"] == 1).then_some(()));
    assert_eq!(spread_over(&lab, 2), 1);
    lab.lablets[0].run(&["status"]).fails(5, "node.not-running");
    // Started again, it is in no lab.
    let _again = Foreground::again(&lab.lablets[0].home, &[]);
    let status = lab.lablets[0].run(&["status", "--json"]).json();
    assert_eq!(status["lab"], serde_json::Value::Null, "{status}");
}

#[test]
fn a_lablet_that_goes_down_finishes_its_work_first() {
    let lab = Lab::start(2);
    let plan = Plan::new(2).quick(2);
    let execution = submit(&lab, &plan.write(&lab), "15s");
    reaches(&lab, &execution, "running");
    let mut down = Vec::new();
    for lablet in &lab.lablets {
        down.push(Beside::start(&mut iptl_e2e::iptl(&lablet.home, &["down"])));
    }
    until("lablets that drain", || {
        let rows = lab.run(&["ls", "lablets", "--json"]).exits(0).stdout;
        (rows.matches("\"draining\"").count() == 2).then_some(())
    });
    // New work waits for somebody who takes it.
    let next = submit(&lab, &plan.write(&lab), "1s");
    reaches(&lab, &next, "waiting");
    lab.run(&["cancel", &next]).exits(0);
    passed_once(&lab, watch(&lab, &execution), plan.instances());
    for down in down {
        down.end().exits(0);
    }
}

#[test]
fn a_lab_is_found_through_a_node_that_is_known() {
    let lab = Lab::start(1);
    let home = Home::new();
    let known = &lab.lablets[0].addrs[0];
    let _node = Foreground::start(home.path(), &["--known", known]);
    joins_by_approval(&home, &lab.orchestrator.peer, |args| lab.run(args));
    ready(&lab, 2);
}

#[test]
fn nodes_of_a_lab_on_this_computer_have_ports_that_nobody_is_given_by_chance_while_they_are_away() {
    let lab = Lab::start(1);
    let given = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let given = given.split_whitespace().map(|port| port.parse::<u16>().unwrap()).collect::<Vec<_>>();
    for addr in lab.orchestrator.addrs.iter().chain(&lab.lablets[0].addrs) {
        let port: u16 = addr.split('/').nth(4).unwrap().parse().unwrap();
        assert!(!(given[0]..=given[1]).contains(&port), "{addr} is one of {given:?}");
    }
}

/// Where the child process of the test below runs in a network of its own.
const IN_A_NETWORK_OF_ITS_OWN: &str = "IPTL_TEST_LOCAL_NETWORK";

/// Multicast does not cross the loopback, and tests stay off real networks: this one runs in a network namespace with an
/// link that leads nowhere.
#[test]
fn a_lab_is_found_on_the_local_network() {
    if std::env::var_os(IN_A_NETWORK_OF_ITS_OWN).is_none() {
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        let mut child = Command::new("unshare");
        if !is_root {
            child.args(["--user", "--map-root-user"]);
        }
        child.arg("--net").arg(std::env::current_exe().unwrap());
        child.args(["--exact", "lifecycle::members::a_lab_is_found_on_the_local_network", "--nocapture"]);
        let output = child.env(IN_A_NETWORK_OF_ITS_OWN, "1").output().expect("`unshare` of util-linux is there");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}\n{}", said(&output.stdout), said(&output.stderr));
        return;
    }
    for line in [
        "link set lo up",
        "link add lan type veth peer name far",
        "addr add 10.77.0.1/24 dev lan",
        "link set lan up",
        "link set far up",
    ] {
        let done = Command::new("ip").args(line.split(' ')).status().expect("`ip` of iproute2 is there");
        assert!(done.success(), "ip {line}");
    }
    let (lab, home) = (Home::new(), Home::new());
    let listen = ["--listen", "/ip4/10.77.0.1/udp/0/quic-v1", "--listen", "/ip4/10.77.0.1/tcp/0"];
    let _orchestrator = Foreground::again(lab.path(), &listen);
    lab.run(&["lab", "init", "--name", "attic"]).exits(0);
    let peer = lab.run(&["status", "--json"]).json()["peer"].as_str().unwrap().to_owned();
    let _lablet = Foreground::again(home.path(), &listen);
    joins_by_approval(&home, &peer, |args| lab.run(args));
    until("a lablet", || (lab.run(&["status", "--json"]).json()["lablets_ready"] == 1).then_some(()));
}

/// Asks the orchestrator at an address, or with a peer ID, and is let in.
#[track_caller]
fn joins_by_approval(home: &Home, orchestrator: &str, owner: impl Fn(&[&str]) -> Output) {
    let mut asking = Beside::start(&mut home.iptl(&["join", orchestrator, "--name", "second"]));
    asking.says("approv");
    let peer = until("a peer that asks", || {
        owner(&["status", "--json"]).json()["asking"][0]["peer"].as_str().map(str::to_owned)
    });
    owner(&["lab", "approve", &peer]).exits(0);
    asking.end().exits(0);
}
