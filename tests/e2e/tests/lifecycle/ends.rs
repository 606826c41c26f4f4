//! Runs that are cancelled, late, or find no room.

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Lab, until};

use super::{Plan, passed_once, reaches, receipts, row, submit, watch};

#[test]
fn a_run_cancelled_while_it_runs_is_sealed_as_inconclusive() {
    let lab = Lab::start(2);
    let plan = Plan::new(2).quick(2);
    let execution = submit(&lab, &plan.write(&lab), "60s");
    reaches(&lab, &execution, "running");
    lab.run(&["cancel", &execution]).exits(0);
    let last = watch(&lab, &execution).exits(12).last_json();
    assert_eq!(last["verdict"], "inconclusive");
    assert!(last["inconclusive"].to_string().contains("cancelled"), "{last}");
    // Whoever was stopped says so in a receipt.
    let receipts = receipts(&lab, &last["result"]);
    assert_eq!(receipts.len(), 4, "{receipts:?}");
    // Another cancel finds nothing to do and says so.
    let again = lab.run(&["cancel", &execution, "--json"]).exits(0).last_json();
    assert_eq!(again["over"].as_bool(), Some(true), "{again}");
}

#[test]
fn a_run_cancelled_while_it_waits_for_room_is_sealed_as_inconclusive() {
    let lab = Lab::start(1);
    let _narrow = narrow(&lab);
    let big = Plan::new(3).write(&lab);
    let execution = submit(&lab, &big, "1s");
    reaches(&lab, &execution, "waiting");
    lab.run(&["cancel", &execution]).exits(0);
    let last = watch(&lab, &execution).exits(12).last_json();
    assert_eq!((last["verdict"].as_str(), last["lost"].as_u64()), (Some("inconclusive"), Some(3)), "{last}");
    assert!(last["failures"].to_string().contains("before it was started"), "{last}");
}

#[test]
fn a_run_cancelled_at_once_never_goes_on() {
    let lab = Lab::start(1);
    let execution = submit(&lab, &Plan::new(2).write(&lab), "60s");
    lab.run(&["cancel", &execution]).exits(0);
    let last = watch(&lab, &execution).exits(12).last_json();
    assert_eq!(last["verdict"], "inconclusive");
    let next = submit(&lab, &Plan::new(2).write(&lab), "100ms");
    passed_once(&lab, watch(&lab, &next), 2);
}

#[test]
fn a_run_whose_time_is_over_is_stopped_and_sealed() {
    let lab = Lab::start(2);
    let execution = submit(&lab, &Plan::new(2).quick(2).timeout("3s").write(&lab), "60s");
    let last = watch(&lab, &execution).exits(12).last_json();
    assert!(last["inconclusive"].to_string().contains("was not over"), "{last}");
    assert_eq!(last["failed"].as_u64(), Some(2), "{last}");
    let receipts = receipts(&lab, &last["result"]);
    assert_eq!(receipts.len(), 4, "{receipts:?}");
}

#[test]
fn a_run_larger_than_the_lab_says_what_it_waits_for_and_fails() {
    let lab = Lab::start(1);
    let _narrow = narrow(&lab);
    let big = Plan::new(3).write(&lab);
    let mut run = Beside::start(&mut lab.iptl(&["run", &big, "--no-build"]));
    run.says("waits for 3 slots, 2 free on 1 lablet");
    let output = run.end().fails(5, "lab.no-capacity");
    // Its result says so too, and verifies.
    let shown = lab.run(&["show", &output.word(), "--json"]).exits(0).last_json();
    assert_eq!(shown["cannot_start"]["code"], "lab.no-capacity", "{shown}");
    assert_eq!(shown["verdict"], "inconclusive", "{shown}");
    // It is told in the same words to who comes later, and the lab goes on with what fits.
    lab.run(&["watch", "last"]).fails(5, "lab.no-capacity");
    let next = submit(&lab, &Plan::new(2).write(&lab), "100ms");
    passed_once(&lab, watch(&lab, &next), 2);
}

#[test]
fn a_run_waits_for_another_to_end() {
    let lab = Lab::start(1);
    let _narrow = narrow(&lab);
    let folder = Plan::new(2).write(&lab);
    let first = submit(&lab, &folder, "100s");
    reaches(&lab, &first, "running");
    let mut second = Beside::start(&mut lab.iptl(&["run", &folder, "--no-build", "-p", "watch=100ms", "--json"]));
    second.says("waits for 2 slots, 0 free");
    lab.run(&["cancel", &first]).exits(0);
    watch(&lab, &first).exits(12);
    passed_once(&lab, second.end(), 2);
}

/// Starts the only lablet of a lab again with room for two instances.
#[track_caller]
pub(super) fn narrow(lab: &Lab) -> Foreground {
    let lablet = &lab.lablets[0];
    lablet.run(&["down", "--now"]).exits(0);
    let node = Foreground::again(&lablet.home, &["--slots", "2"]);
    until("a lablet with two slots", || (lab.run(&["status", "--json"]).json()["free_slots"] == 2).then_some(()));
    node
}

#[test]
fn two_executions_share_the_lablets() {
    let lab = Lab::start(2);
    let plan = Plan::new(4);
    let folder = plan.write(&lab);
    let first = submit(&lab, &folder, "100s");
    reaches(&lab, &first, "running");
    let second = submit(&lab, &folder, "1s");
    passed_once(&lab, watch(&lab, &second), 4);
    let state = row(&lab, &first).unwrap()["state"].as_str().unwrap().to_owned();
    assert!(state.starts_with("running"), "{state}");
    lab.run(&["cancel", &first]).exits(0);
    watch(&lab, &first).exits(12);
}
