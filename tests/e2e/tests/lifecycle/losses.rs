//! What a plan says of losses and failures, with nodes that die.

use iptl_e2e::{Lab, Node, until};
use serde_json::Value;

use super::{all_receipts, reaches, submit, watch};

/// Writes a plan of one program into a lab's directory: groups with their sections, and what the case says.
fn plan(lab: &Lab, case: &str, groups: &[(&str, &str, u32, &str)]) -> String {
    let dir = lab.path().join("plan-of-losses");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(super::program_of("hostile"), dir.join("work.wasm")).unwrap();
    let mut text = format!(
        "[plan]\nname = \"losses\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"wasm\"\npath = \"work.wasm\"\n\n\
         [cases.only]\ntimeout = \"2m\"\n{case}\n\n[cases.only.params.watch]\ntype = \"duration\"\ndefault = \"1s\"\n\
         min = \"1ms\"\nmax = \"5m\"\n"
    );
    for (name, behaviour, count, more) in groups {
        text += &format!(
            "\n[cases.only.groups.{name}]\nworkload = \"work\"\nargs = [\"{behaviour}\"]\naffinity = \"spread\"\n\
             count = {{ default = {count}, min = 1, max = 100 }}\n{more}\n\
             resources = {{ memory = \"16MiB\", cpu = \"60s\", wall = \"5m\" }}\n"
        );
    }
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

fn shown(lab: &Lab, last: &Value) -> Value {
    let shown = lab.run(&["show", last["result"].as_str().unwrap(), "--json"]).exits(0).json();
    assert_eq!(shown["verified"], true, "{shown}");
    shown
}

#[test]
fn losses_of_a_group_are_accepted_as_its_plan_says_and_the_result_says_so() {
    let lab = Lab::start(2);
    let plan = plan(&lab, "", &[("work", "rest", 4, "max_lost = 2")]);
    let execution = submit(&lab, &plan, "6s");
    reaches(&lab, &execution, "running");
    lab.lablets[1].kill();
    let last = watch(&lab, &execution).exits(0).last_json();
    assert_eq!((last["verdict"].as_str(), last["lost"].as_u64()), (Some("pass"), Some(2)), "{last}");
    assert!(last["notes"][0].as_str().unwrap().contains("2 of work lost, which the plan accepts"), "{last}");
    let shown = shown(&lab, &last);
    assert_eq!(shown["losses"]["work"]["accepted"], true, "{shown}");
}

#[test]
fn a_group_that_fails_fast_has_the_others_stopped_and_the_run_failed() {
    let lab = Lab::start(2);
    let plan = plan(&lab, "", &[("canary", "exit", 1, "fail_fast = true"), ("work", "rest", 4, "")]);
    let execution = submit(&lab, &plan, "100s");
    let last = watch(&lab, &execution).exits(10).last_json();
    assert_eq!((last["failed"].as_u64(), last["lost"].as_u64()), (Some(1), Some(4)), "{last}");
    assert!(last["notes"][0].as_str().unwrap().starts_with("the plan had it ended: canary/0 failed"), "{last}");
    let shown = shown(&lab, &last);
    assert_eq!(shown["fail_fast"], "canary", "{shown}");
    assert!(lab.run(&["audit", &execution]).exits(0).stdout.contains("ended early: canary/0 failed"));
}

#[test]
fn a_barrier_that_a_lost_lablet_was_to_reach_fails_or_opens_as_the_plan_says() {
    for (barriers, ok, failed) in [("fail", 0, 1), ("release", 1, 0)] {
        let lab = Lab::start(2);
        let case = format!("max_lost = \"100%\"\nbarriers = \"{barriers}\"");
        let plan = plan(&lab, &case, &[("work", "gather", 2, "")]);
        let execution = submit(&lab, &plan, "100s");
        reaches(&lab, &execution, "running");
        let rows = lab.run(&["ls", "lablets", "--json"]).stdout;
        let rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
        let names: Vec<String> = rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect();
        // Who comes late is the first; the other waits at the barrier.
        holder_of_the_first(&lab).kill();
        let last = watch(&lab, &execution).last_json();
        let counts = (last["ok"].as_u64(), last["failed"].as_u64(), last["lost"].as_u64());
        assert_eq!(counts, (Some(ok), Some(failed), Some(1)), "{barriers}: {last}");
        if failed > 0 {
            let logs = lab.run(&["logs", &execution]).exits(0).stdout;
            assert!(logs.contains("cannot reach 2"), "{logs}");
            let named = names.iter().any(|name| logs.contains(&format!("work/0 lost with {name} (")));
            assert!(named, "by its name, of {names:?}: {logs}");
        }
    }
}

/// Returns the lablet that has started the first instance.
fn holder_of_the_first(lab: &Lab) -> &Node {
    let starts_first = |node: &Node| {
        let log = std::fs::read_to_string(node.home.join("node.log")).unwrap();
        log.lines().any(|line| line.contains("starting instances") && line.contains("work/0"))
    };
    until("the start of the first", || lab.lablets.iter().find(|lablet| starts_first(lablet)))
}

#[test]
fn what_an_owner_stopped_goes_again_on_another_machine_and_who_waits_for_it_goes_on() {
    let lab = Lab::start(3);
    let plan = plan(&lab, "", &[("work", "gather", 2, "rerun = 1")]);
    let execution = submit(&lab, &plan, "4s");
    reaches(&lab, &execution, "running");
    holder_of_the_first(&lab).run(&["down", "--now"]).exits(0);
    let last = watch(&lab, &execution).exits(0).last_json();
    let counts = (last["verdict"].as_str(), last["ok"].as_u64(), last["lost"].as_u64());
    assert_eq!(counts, (Some("pass"), Some(2), Some(0)), "{last}");
    let all = all_receipts(&lab, &last["result"]);
    assert_eq!(all.len(), 3, "one for each attempt: {all:?}");
    let of = |attempt: u64| {
        let found = all.iter().find(|(instance, receipt)| instance == "work/0" && receipt.attempt == attempt);
        &found.unwrap_or_else(|| panic!("no attempt {attempt}: {all:?}")).1
    };
    assert!(of(1).exit.to_string().contains("its owner wants the machine back"), "{all:?}");
    assert_ne!(of(1).lablet, of(2).lablet);
}

#[test]
fn a_barrier_that_an_instance_left_without_signalling_fails_or_opens_as_the_plan_says() {
    let lab = Lab::start(2);
    for (barriers, ok, failed) in [("fail", 1, 3), ("release", 4, 0)] {
        let plan = plan(&lab, &format!("barriers = \"{barriers}\""), &[("work", "quit", 4, "")]);
        let execution = submit(&lab, &plan, "1s");
        let last = watch(&lab, &execution).last_json();
        let counts = (last["ok"].as_u64(), last["failed"].as_u64(), last["lost"].as_u64());
        assert_eq!(counts, (Some(ok), Some(failed), Some(0)), "{barriers}: {last}");
        if failed > 0 {
            let logs = lab.run(&["logs", &execution]).exits(0).stdout;
            assert!(logs.contains("cannot reach 4, of which 3 are possible: work/0 ended without it"), "{logs}");
        }
    }
}

#[test]
fn a_matrix_repeated_is_one_submission_with_one_cid_and_the_exit_of_its_worst() {
    let lab = Lab::start(1);
    let plan = plan(&lab, "", &[("work", "rest", 1, "")]);
    let args = ["run", &plan, "--no-build", "--matrix", "watch=5ms,10ms", "--matrix", "work=1,2", "--repeat", "2"];
    let output = lab.run(&args).exits(0);
    let series = output.word();
    for name in ["WATCH", "WORK", "VERDICT", "8 executions: 8 passed"] {
        assert!(output.stderr.contains(name), "{}", output.stderr);
    }
    let shown = lab.run(&["show", &series, "--json"]).exits(0).json();
    let rows = shown["value"]["executions"].as_array().unwrap();
    assert_eq!((rows.len(), shown["kind"].as_str()), (8, Some("series")), "{shown}");
    let runs: std::collections::BTreeSet<String> = rows.iter().map(|row| row["run"].to_string()).collect();
    assert_eq!(runs.len(), 4, "repetitions are of equal runs: {shown}");
    // Everything that it links is here and kept.
    assert!(lab.run(&["ls", "pins"]).exits(0).stdout.contains(&series));
    let first = rows[0]["result"]["/"].as_str().unwrap();
    lab.run(&["show", first]).exits(0);

    let missing = lab.run(&["run", &plan, "--no-build", "--matrix", "watch=5ms,nonsense"]).exits(2);
    assert!(missing.stderr.contains("watch"), "{}", missing.stderr);
}

#[test]
fn a_detached_series_is_watched_and_cancelled_by_its_cid() {
    let lab = Lab::start(1);
    let plan = plan(&lab, "", &[("work", "rest", 1, "")]);
    let begin = |watch| {
        let args = ["run", &plan, "--no-build", "--repeat", "3", "-p", watch, "--detach"];
        lab.run(&args).exits(0).word()
    };
    let begun = begin("watch=5ms");
    let output = lab.run(&["watch", &begun]).exits(0);
    assert!(output.stderr.contains("3 executions: 3 passed"), "{}", output.stderr);
    let shown = lab.run(&["show", &output.word(), "--json"]).exits(0).json();
    assert!(shown["value"]["executions"].as_array().unwrap().iter().all(|row| row["result"].is_object()), "{shown}");

    let begun = begin("watch=1m");
    lab.run(&["cancel", &begun]).exits(0);
    let output = lab.run(&["watch", &begun]);
    assert!(output.stderr.contains("3 executions: 0 passed, 0 failed"), "{}", output.stderr);
}
