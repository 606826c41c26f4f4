//! Nodes and workers that are killed at the worst moment.

use iptl_e2e::beside::{self, Beside};
use iptl_e2e::{Foreground, Lab, until};

use super::{Plan, passed_once, reaches, receipts, row, submit, watch};

#[test]
fn an_orchestrator_killed_while_instances_run_goes_on_and_nothing_runs_twice() {
    let lab = Lab::start(3);
    let plan = Plan::new(6).quick(3);
    // Shorter than what is left of any lease, which a slow restart might let run out.
    let execution = submit(&lab, &plan.write(&lab), "3s");
    reaches(&lab, &execution, "running");
    lab.orchestrator.kill();
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    passed_once(&lab, watch(&lab, &execution), plan.instances());
}

#[test]
fn an_orchestrator_killed_after_everything_ended_gets_all_receipts() {
    let lab = Lab::start(2);
    let plan = Plan::new(0).naps(4).quick(2);
    let execution = submit(&lab, &plan.write(&lab), "1s");
    reaches(&lab, &execution, "running");
    lab.orchestrator.kill();
    // The lablets finish while nobody hears them.
    for lablet in &lab.lablets {
        until("the end of the instances", || {
            let status = lablet.run(&["status", "--json"]).json();
            let running = status["running"].as_array()?;
            running.iter().all(|cell| cell["ended"] == cell["instances"]).then_some(())
        });
    }
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    passed_once(&lab, watch(&lab, &execution), plan.instances());
}

#[test]
fn an_orchestrator_killed_during_prepare_goes_on() {
    let lab = Lab::start(2);
    let plan = Plan::new(4);
    let execution = submit(&lab, &plan.write(&lab), "1s");
    // The lablets compile the program now; how far they are is theirs to say.
    lab.orchestrator.kill();
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    passed_once(&lab, watch(&lab, &execution), plan.instances());
}

#[test]
fn an_execution_that_was_named_survives_the_death_of_its_orchestrator() {
    let lab = Lab::start(1);
    let plan = Plan::new(1);
    let folder = plan.write(&lab);
    let mut again = None;
    for _ in 0..3 {
        let execution = submit(&lab, &folder, "200ms");
        match again.take() {
            None => lab.orchestrator.kill(),
            Some(node) => drop::<Foreground>(node),
        }
        again = Some(Foreground::again(&lab.orchestrator.home, &[]));
        passed_once(&lab, watch(&lab, &execution), 1);
    }
}

#[test]
fn a_lablet_killed_in_mid_run_loses_its_instances_and_no_others() {
    let lab = Lab::start(3);
    let plan = Plan::new(3);
    let execution = submit(&lab, &plan.write(&lab), "9s");
    reaches(&lab, &execution, "running");
    lab.lablets[1].kill();
    let ended = watch(&lab, &execution).exits(12);
    let last = ended.last_json();
    assert_eq!((last["verdict"].as_str(), last["ok"].as_u64()), (Some("inconclusive"), Some(2)), "{last}");
    assert_eq!((last["lost"].as_u64(), last["failed"].as_u64()), (Some(1), Some(0)), "{last}");
    let cause = last["failures"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("not heard"), "{cause}");
    assert!(ended.stdout.contains("lost: not heard"), "the narrative does not say it:\n{}", ended.stdout);
    let receipts = receipts(&lab, &last["result"]);
    assert_eq!(receipts.len(), 2, "{receipts:?}");
}

#[test]
fn a_plan_that_bears_the_loss_of_a_lablet_is_judged_by_the_rest() {
    let lab = Lab::start(3);
    // The lost instance is one without a threshold of its own, so that the rest decides.
    let plan = Plan::new(3).max_lost("40%");
    let execution = submit(&lab, &plan.write(&lab), "8s");
    reaches(&lab, &execution, "running");
    lab.lablets[2].kill();
    let last = watch(&lab, &execution).last_json();
    assert_eq!((last["ok"].as_u64(), last["lost"].as_u64()), (Some(2), Some(1)), "{last}");
    let inconclusive = last["inconclusive"].as_array().unwrap();
    let about_loss = inconclusive.iter().any(|why| why.as_str().unwrap().contains("max_lost"));
    assert!(!about_loss, "{last}");
}

#[test]
fn a_lablet_killed_and_started_again_says_that_its_instances_died() {
    let lab = Lab::start(2);
    let plan = Plan::new(2).quick(4);
    let execution = submit(&lab, &plan.write(&lab), "8s");
    // The quick ones are sealed before the lablet dies.
    until("receipts of those that ended", || (row(&lab, &execution)?["ended"] == "4").then_some(()));
    lab.lablets[0].kill();
    let _again = Foreground::again(&lab.lablets[0].home, &[]);
    let last = watch(&lab, &execution).exits(12).last_json();
    assert_eq!((last["ok"].as_u64(), last["failed"].as_u64()), (Some(1), Some(4)), "{last}");
    assert_eq!(last["lost"].as_u64(), Some(1), "{last}");
    let causes = last["failures"].to_string();
    assert!(causes.contains("lablet died"), "{causes}");
    let receipts = receipts(&lab, &last["result"]);
    let quick = receipts.iter().filter(|(id, receipt)| id.starts_with("quick/") && receipt.exit["exited"]["code"] == 1);
    assert_eq!(quick.count(), 4, "{receipts:?}");
    // It has taken its place again.
    let next = submit(&lab, &plan.write(&lab), "100ms");
    passed_once(&lab, watch(&lab, &next), plan.instances());
}

#[test]
fn a_killed_worker_ends_its_cell_and_no_other() {
    let lab = Lab::start(1);
    let plan = Plan::new(2);
    let folder = plan.write(&lab);
    let lablet = lab.lablets[0].pid;
    let before =
        until("a worker that is kept warm", || Some(beside::children(lablet)).filter(|found| !found.is_empty()));
    let doomed = submit(&lab, &folder, "60s");
    reaches(&lab, &doomed, "running");
    // The doomed cell has the worker that was kept warm; a new one is warmed for the next cell.
    let other = submit(&lab, &folder, "5s");
    reaches(&lab, &other, "running");
    for worker in before {
        beside::signal(worker, "KILL");
    }
    let last = watch(&lab, &doomed).last_json();
    let causes = last["failures"].to_string();
    assert!(causes.contains("worker died: signal 9"), "{last}");
    let receipts = receipts(&lab, &last["result"]);
    assert_eq!(receipts.len(), 2, "{receipts:?}");
    passed_once(&lab, watch(&lab, &other), 2);
}

#[test]
fn an_attached_run_follows_on_after_its_orchestrator_died() {
    let lab = Lab::start(2);
    let plan = Plan::new(2);
    let mut run = Beside::start(&mut lab.iptl(&["run", &plan.write(&lab), "--no-build", "-p", "watch=3s"]));
    run.says("running");
    lab.orchestrator.kill();
    run.says("Attaching again");
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    let output = run.end().exits(0);
    assert!(output.stderr.contains("PASS"), "{}", output.stderr);
}
