//! Who watches, from the start, late, or for a while.

use iptl_e2e::beside::Beside;
use iptl_e2e::{Foreground, Lab, until};

use super::{Plan, passed_once, reaches, row, submit, watch};

#[test]
fn a_run_is_seen_while_it_lives_and_after() {
    let lab = Lab::start(2);
    let plan = Plan::new(2).quick(2);
    let execution = submit(&lab, &plan.write(&lab), "15s");
    let mut early = Beside::start(&mut lab.iptl(&["watch", &execution, "--json"]));
    early.says("\"submitted\"");
    reaches(&lab, &execution, "running");
    let mut following = Beside::start(&mut lab.iptl(&["logs", &execution, "-f"]));
    let status = lab.run(&["status", "--json"]).exits(0).json();
    assert_eq!(status["running"][0]["instances"], 4, "{status}");
    assert!(status["running"][0]["phase"].as_str().unwrap().starts_with("running"), "{status}");
    let live = row(&lab, &execution).unwrap();
    assert_eq!(live["instances"], "4", "{live}");
    assert_eq!(lab.run(&["ls", "results", "-q"]).exits(0).stdout, "");
    lab.run(&["show", "last"]).fails(3, "execution.no-result");
    // Nothing was said yet: logs that are not followed end.
    lab.run(&["logs", &execution]).exits(0);

    following.says("undisturbed");
    let late = watch(&lab, &execution);
    let (early, followed) = (early.end().exits(0), following.end().exits(0));
    assert_eq!(early.last_json(), late.last_json());
    assert_eq!(followed.stdout.matches("undisturbed").count(), 2, "{}", followed.stdout);
    passed_once(&lab, late, 4);

    let logs = lab.run(&["logs", &execution]).exits(0).stdout;
    assert_eq!(logs.matches("undisturbed").count(), 2, "{logs}");
    let one = lab.run(&["logs", &format!("{execution}/steady-1/0"), "-f"]).exits(0).stdout;
    assert_eq!(one.matches("undisturbed").count(), 1, "{one}");
    let ended = row(&lab, &execution).unwrap();
    assert_eq!((ended["state"].as_str(), ended["verdict"].as_str()), (Some("sealed"), Some("pass")), "{ended}");
    let status = lab.run(&["status", "--json"]).exits(0).json();
    assert_eq!(status["running"], serde_json::json!([]), "{status}");
    // The end is told in the same words, however late.
    assert_eq!(watch(&lab, "last").exits(0).last_json(), early.last_json());
}

#[test]
fn who_follows_before_anything_is_prepared_misses_nothing() {
    let lab = Lab::start(1);
    lab.lablets[0].kill();
    until("the end of its lease", || (lab.run(&["status", "--json"]).json()["lablets_ready"] == 0).then_some(()));
    let plan = Plan::new(1).quick(2);
    let execution = submit(&lab, &plan.write(&lab), "1s");
    reaches(&lab, &execution, "waiting");
    let mut following = Beside::start(&mut lab.iptl(&["logs", &execution, "-f"]));
    let mut one = Beside::start(&mut lab.iptl(&["logs", &format!("{execution}/steady-0"), "--follow", "--json"]));
    let again = Foreground::again(&lab.lablets[0].home, &[]);
    following.says("undisturbed");
    one.says("undisturbed");
    passed_once(&lab, watch(&lab, &execution), 3);
    let said = following.end().exits(0).stdout;
    let kept = lab.run(&["logs", &execution]).exits(0).stdout;
    assert_eq!(said.lines().count(), kept.lines().count(), "{said}\n{kept}");
    assert!(one.end().exits(0).stdout.contains("\"steady-0\""));
    drop(again);
}

#[test]
fn logs_that_are_followed_go_on_after_the_orchestrator_was_killed_with_nothing_lost_and_nothing_twice() {
    let lab = Lab::start(2);
    let plan = super::turns::plan(&lab, "resting", 4, "", "");
    // Shorter than what is left of any lease, which a slow restart might let run out.
    let execution = submit(&lab, &plan, "3s");
    let mut here = Beside::start(&mut lab.iptl(&["logs", &execution, "-f"]));
    let mut there = Beside::start(&mut iptl_e2e::iptl(&lab.lablets[0].home, &["logs", &execution, "-f"]));
    here.says("began");
    there.says("began");
    lab.orchestrator.kill();
    let _again = Foreground::again(&lab.orchestrator.home, &[]);
    passed_once(&lab, watch(&lab, &execution), 4);
    let kept = lab.run(&["logs", &execution]).exits(0).stdout;
    assert_eq!((kept.matches("began").count(), kept.matches("rested").count()), (4, 4), "{kept}");
    let mut kept: Vec<&str> = kept.lines().collect();
    kept.sort_unstable();
    for following in [here, there] {
        let output = following.end().exits(0);
        let mut said: Vec<&str> = output.stdout.lines().collect();
        said.sort_unstable();
        assert_eq!(said, kept, "{}", output.stderr);
        assert!(output.stderr.contains("attached again"), "{}", output.stderr);
    }
}

#[test]
fn who_attaches_after_an_instance_ended_is_shown_all_that_it_said_before_the_run_is_over() {
    let lab = Lab::start(1);
    let plan = super::turns::plan(&lab, "rolling", 2, "", "start = { rolling = 1, every = \"5s\" }");
    let execution = submit(&lab, &plan, "10ms");
    let mut watching = Beside::start(&mut lab.iptl(&["watch", &execution, "--json"]));
    watching.says("\"ended\":{\"work\":1}");
    let mut following = Beside::start(&mut lab.iptl(&["logs", "last", "-f"]));
    let first = Beside::start(&mut lab.iptl(&["logs", &format!("{execution}/work/0"), "-f"]));
    following.says("began");
    // It is this one to the end, whatever is the last one by then.
    submit(&lab, &plan, "11ms");
    passed_once(&lab, watching.end(), 2);
    let kept = lab.run(&["logs", &execution]).exits(0).stdout;
    assert_eq!((kept.matches("began").count(), kept.matches("rested").count()), (2, 2), "{kept}");
    let mut kept: Vec<&str> = kept.lines().collect();
    kept.sort_unstable();
    let output = following.end().exits(0);
    let mut said: Vec<&str> = output.stdout.lines().collect();
    said.sort_unstable();
    assert_eq!(said, kept);
    let first = first.end().exits(0).stdout;
    assert_eq!((first.matches("began").count(), first.matches("rested").count()), (1, 1), "{first}");
}

#[test]
fn an_interrupt_leaves_the_run_going_on() {
    let lab = Lab::start(1);
    let plan = Plan::new(2);
    let mut run = Beside::start(&mut lab.iptl(&["run", &plan.write(&lab), "--no-build", "-p", "watch=3s"]));
    run.says("running");
    run.signal("INT");
    let output = run.end().exits(130);
    assert!(output.stderr.contains("iptl watch"), "{}", output.stderr);
    assert_eq!(output.stdout, "");
    passed_once(&lab, watch(&lab, "last"), 2);
}

#[test]
fn what_nobody_knows_is_not_found() {
    let lab = Lab::start(1);
    for verb in ["watch", "cancel", "logs"] {
        lab.run(&[verb, "x-aaaaa"]).fails(3, "execution.unknown");
    }
    lab.run(&["watch", "last"]).fails(3, "execution.unknown");
}
