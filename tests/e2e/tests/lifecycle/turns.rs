//! Who goes before whom, in how much time, alone or in company, and one after the other.

use iptl_e2e::beside::Beside;
use iptl_e2e::{Lab, until};
use serde_json::Value;

use super::ends::narrow;
use super::{passed_once, program_of, reaches, receipts, row, submit, watch};

/// Writes a plan of one group that rests, with what its case and its group say beside that.
pub(super) fn plan(lab: &Lab, name: &str, count: u32, case: &str, group: &str) -> String {
    let dir = lab.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program_of("hostile"), dir.join("work.wasm")).unwrap();
    let text = format!(
        "[plan]\nname = \"{name}\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"wasm\"\npath = \"work.wasm\"\n\n\
         [cases.only]\ntimeout = \"2m\"\n{case}\n\n[cases.only.params.watch]\ntype = \"duration\"\ndefault = \"1s\"\n\
         min = \"1ms\"\nmax = \"5m\"\n\n[cases.only.groups.work]\nworkload = \"work\"\nargs = [\"rest\"]\n\
         affinity = \"spread\"\ncount = {count}\n{group}\n\
         resources = {{ memory = \"16MiB\", cpu = \"60s\", wall = \"5m\" }}\n"
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

#[test]
fn a_run_with_a_higher_priority_goes_before_one_that_came_earlier() {
    let lab = Lab::start(1);
    let _narrow = narrow(&lab);
    let plan = plan(&lab, "pair", 2, "", "");
    let first = submit(&lab, &plan, "100s");
    reaches(&lab, &first, "running");
    let early = submit(&lab, &plan, "1s");
    reaches(&lab, &early, "waiting");
    let args = ["run", &plan, "--no-build", "-p", "watch=1s", "--priority", "5", "--detach"];
    let urgent = lab.run(&args).exits(0).word();
    // Both wait for the same room, which there is from here on, and for one of them at a time.
    lab.run(&["cancel", &first]).exits(0);
    let started = |execution: &str| -> Vec<u64> {
        passed_once(&lab, watch(&lab, execution), 2).into_values().map(|receipt| receipt.started_ms).collect()
    };
    let (urgent, early) = (started(&urgent), started(&early));
    assert!(urgent.iter().max() < early.iter().min(), "{urgent:?} before {early:?}");
}

#[test]
fn a_run_that_does_not_start_in_time_ends_with_a_result_that_says_why() {
    let lab = Lab::start(1);
    let _narrow = narrow(&lab);
    let first = submit(&lab, &plan(&lab, "pair", 2, "", ""), "20s");
    reaches(&lab, &first, "running");
    let hasty = plan(&lab, "hasty", 2, "start_within = \"2s\"", "");
    let output = lab.run(&["run", &hasty, "--no-build"]);
    let output = output.fails(5, "lab.not-started");
    assert!(output.stderr.contains("start_within"), "{}", output.stderr);
    let shown = lab.run(&["show", &output.word()]).exits(0);
    assert!(shown.stdout.contains("nothing was started: not started within 2s"), "{}", shown.stdout);
    // It took nothing from who runs.
    lab.run(&["cancel", &first]).exits(0);
    watch(&lab, &first).exits(12);
}

#[test]
fn a_dedicated_run_has_its_lablet_for_itself_and_waits_until_it_has() {
    let lab = Lab::start(1);
    let alone = plan(&lab, "alone", 1, "dedicated = true", "");
    let company = plan(&lab, "company", 1, "", "");
    let first = submit(&lab, &alone, "100s");
    reaches(&lab, &first, "running");
    let args = ["run", &company, "--no-build", "-p", "watch=100s", "--json"];
    let mut second = Beside::start(&mut lab.iptl(&args));
    second.says("waits for");
    let running = row(&lab, &first).unwrap()["state"].as_str().unwrap().to_owned();
    assert!(running.starts_with("running"), "{running}");
    lab.run(&["cancel", &first]).exits(0);
    watch(&lab, &first).exits(12);
    // The other way round, it waits for the lablet to be empty, though there is room.
    let second_runs = || {
        let rows = lab.run(&["ls", "runs", "--json"]).stdout;
        let mut rows = rows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let row = rows.find(|row| row["state"].as_str().is_some_and(|state| state.starts_with("running")))?;
        row["execution"].as_str().map(str::to_owned)
    };
    let running = until("the second to run", second_runs);
    assert_ne!(running, first);
    let third = submit(&lab, &alone, "10ms");
    reaches(&lab, &third, "waiting");
    lab.run(&["cancel", &running]).exits(0);
    second.end().exits(12);
    passed_once(&lab, watch(&lab, &third), 1);
}

#[test]
fn a_group_that_rolls_starts_one_batch_after_the_other_on_all_lablets() {
    let lab = Lab::start(2);
    let plan = plan(&lab, "rolling", 6, "", "start = { rolling = 2, every = \"1s\" }");
    let execution = submit(&lab, &plan, "10ms");
    let last = watch(&lab, &execution).last_json();
    let all = receipts(&lab, &last["result"]);
    assert_eq!((all.len(), last["verdict"].as_str()), (6, Some("pass")), "{last}");
    let started = |index: u64| all[&format!("work/{index}")].started_ms;
    let begin = started(0).min(started(1));
    for index in 0..6 {
        // Lablets hear of the start within a moment, and no batch begins before it is due.
        let (due, after) = (index / 2 * 1_000, started(index) - begin);
        assert!((due.saturating_sub(500)..due + 5_000).contains(&after), "work/{index} started after {after} ms");
    }
    assert!(started(4).min(started(5)) >= begin + 1_500, "{all:?}");
    let holders: std::collections::BTreeSet<&String> = all.values().map(|receipt| &receipt.lablet).collect();
    assert_eq!(holders.len(), 2, "{all:?}");
}

#[test]
fn an_owner_who_wants_the_machine_back_has_it_at_once_and_the_result_says_why_an_instance_is_lost() {
    let lab = Lab::start(2);
    let plan = plan(&lab, "again", 2, "", "");
    let execution = submit(&lab, &plan, "12s");
    reaches(&lab, &execution, "running");
    let begun = std::time::Instant::now();
    lab.lablets[0].run(&["down", "--now"]).exits(0);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    let last = watch(&lab, &execution).exits(12).last_json();
    let counts = (last["verdict"].as_str(), last["ok"].as_u64(), last["lost"].as_u64());
    assert_eq!(counts, (Some("inconclusive"), Some(1), Some(1)), "{last}");
    assert!(last["failures"].to_string().contains("its owner wants the machine back"), "{last}");
}

#[test]
fn a_run_goes_again_to_the_lablet_that_has_its_workload_ready() {
    let lab = Lab::start(2);
    let plan = plan(&lab, "one", 1, "", "");
    let holder = || {
        let execution = submit(&lab, &plan, "10ms");
        let all = passed_once(&lab, watch(&lab, &execution), 1);
        all.into_values().map(|receipt| receipt.lablet).next().unwrap()
    };
    // Among equals it is always the same one that goes first; without it, the other one gets the work.
    let first = holder();
    let has_worked = |node: &&iptl_e2e::Node| {
        std::fs::read_to_string(node.home.join("node.log")).unwrap().contains("starting instances")
    };
    let node = lab.lablets.iter().find(has_worked).unwrap();
    node.kill();
    ready(&lab, 1);
    let second = holder();
    assert_ne!(second, first);
    // The first is back and would go before, but the second has what the run needs.
    let _again = iptl_e2e::Foreground::again(&node.home, &[]);
    ready(&lab, 2);
    assert_eq!(holder(), second);
}

#[track_caller]
fn ready(lab: &Lab, count: u64) {
    let ready = || (lab.run(&["status", "--json"]).json()["lablets_ready"].as_u64() == Some(count)).then_some(());
    until(&format!("{count} lablets that are ready"), ready);
}
