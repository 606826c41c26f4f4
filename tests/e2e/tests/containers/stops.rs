//! Lablets that stand still while their containers run on.

use iptl_e2e::beside::signal;
use iptl_e2e::marks::{Marks, said};
use iptl_e2e::{Home, Lab, docker_is_required, until};

use super::random_deaths::write_plan;
use super::restarts::{INSTANCES, containers};
use crate::lifecycle::{Asks, all_receipts};

/// Has a lablet stand still for longer than its lease while its containers run, of which those that are lost begin anew as
/// often as `rerun` says. Returns how often instances began, and how often they rested, by their own word.
fn stands_still(rerun: u32) -> (u32, u32) {
    let lab = Lab::start_with_docker(2);
    let marks = Marks::of_containers(lab.path(), lab.lablets.iter().map(|node| node.home.clone()));
    let run = |plan: &str| lab.run(&["run", plan, "--no-build", "--detach"]).exits(0).word();
    let execution = run(&write_plan(&lab, 8, INSTANCES, rerun));
    let all = |word: &str| {
        let left = marks.now(&execution);
        left.keys().map(|instance| said(&left, instance, word)).sum::<u32>()
    };
    until("that all have begun", || (u64::from(all("began")) == INSTANCES).then_some(()));
    let before = containers(&execution);
    signal(lab.lablets[0].pid, "STOP");
    let last = lab.run(&["watch", &execution, "--json"]).last_json();
    let half = INSTANCES / 2;
    let (ok, lost) = if rerun == 0 { (half, half) } else { (INSTANCES, 0) };
    assert_eq!((last["ok"].as_u64(), last["lost"].as_u64()), (Some(ok), Some(lost)), "{last}");
    assert_eq!(last["failed"].as_u64(), Some(0), "{last}");
    for (instance, receipt) in all_receipts(&lab, &last["result"]) {
        assert_eq!(receipt.exit["exited"]["code"], 0, "{instance}: {receipt:?}");
    }
    let held = containers(&execution);
    assert!(!held.is_empty() && held.iter().all(|one| before.contains(one)), "who stands still ends none: {held:?}");
    signal(lab.lablets[0].pid, "CONT");
    until("the end of all containers", || containers(&execution).is_empty().then_some(()));
    let left = marks.take(&execution);
    let most = left.keys().map(|instance| said(&left, instance, "began")).max();
    assert_eq!((left.len() as u64, most), (INSTANCES, Some(1 + rerun)), "{left:?}");
    // It has its place again.
    let next = run(&write_plan(&lab, 0, INSTANCES, rerun));
    let last = lab.ask(&["watch", &next, "--json"]).exits(0).last_json();
    assert_eq!((last["ok"].as_u64(), last["lost"].as_u64()), (Some(INSTANCES), Some(0)), "{last}");
    let sum = |word: &str| left.keys().map(|instance| said(&left, instance, word)).sum();
    (sum("began"), sum("rested"))
}

#[test]
fn containers_of_a_lablet_that_stands_still_for_longer_than_its_lease_are_lost_and_none_begins_twice() {
    engine!();
    let (began, rested) = stands_still(0);
    assert_eq!(u64::from(began), INSTANCES);
    assert!(u64::from(rested) >= INSTANCES / 2, "{rested}");
}

#[test]
fn containers_of_a_lablet_that_stands_still_begin_anew_on_another_as_often_as_they_may() {
    engine!();
    let (began, rested) = stands_still(1);
    assert_eq!(u64::from(began), INSTANCES + INSTANCES / 2);
    assert!(u64::from(rested) >= INSTANCES, "{rested}");
}
