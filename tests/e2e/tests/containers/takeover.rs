//! An orchestrator that dies while containers run, and another one that goes on.

use iptl_e2e::{Home, Lab, docker_is_required};

use super::restarts::{INSTANCES, containers, passed_once, pausing};
use crate::lifecycle::receipts;
use crate::lifecycle::takeover::Pair;

#[test]
fn containers_run_on_where_their_orchestrator_is_killed_and_the_successor_has_every_receipt() {
    engine!();
    let pair = Pair::of(Lab::start_with_docker(2));
    let execution = pausing(&pair.lab, "16s");
    let before = containers(&execution);
    assert_eq!(before.len() as u64, INSTANCES);
    pair.lab.orchestrator.kill();
    assert_eq!(pair.second_leads(), 1);
    assert_eq!(containers(&execution), before, "they are the same under the successor");
    let last = passed_once(&pair.second, &execution);
    let receipts = receipts(&pair.second, &last["result"]);
    assert_eq!(receipts.len() as u64, INSTANCES);
    assert!(
        receipts.values().all(|receipt| receipt.attempt == 1 && receipt.exit["exited"]["code"] == 0),
        "{receipts:?}"
    );
}
