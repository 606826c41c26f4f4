//! Who comes to a lab that works, and who goes.

use std::collections::BTreeSet;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Home, Lab, until};

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
    let mut asking = Beside::start(&mut home.iptl(&["join", &lab.orchestrator.addrs[0], "--name", "second"]));
    asking.says("approv");
    let peer = until("a peer that asks", || {
        lab.run(&["status", "--json"]).json()["asking"][0]["peer"].as_str().map(str::to_owned)
    });
    lab.run(&["lab", "approve", &peer]).exits(0);
    asking.end().exits(0);
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
    let execution = submit(&lab, &plan.write(&lab), "4s");
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
