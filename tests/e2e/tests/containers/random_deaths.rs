//! Nodes that are killed at random moments while containers run.
//!
//! The engine is the witness: it says of each container when it starts one, whoever asked it and has died since. What
//! must hold besides is read from the result, and from what each lablet wrote down.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use iptl_e2e::beside::Beside;
use iptl_e2e::{Home, Lab, docker_is_required, until};

use crate::lifecycle::random_deaths::{Draw, Mortal};
use crate::lifecycle::receipts;

/// Instances of each execution.
const INSTANCES: u64 = 30;

/// Deaths in each execution.
const DEATHS: u64 = 3;

/// Latest moment of a death in milliseconds, after the submission or after the start: until the other, or the last end.
const LATEST_MS: u64 = 3_500;

fn plan(lab: &Lab) -> String {
    let dir = lab.path().join("plan-of-rest");
    crate::exec::write_shell(&dir.join("rootfs"));
    let text = format!(
        "[plan]\nname = \"deaths\"\nversion = \"0.1.0\"\n\n[workloads.shell]\nrunner = \"docker\"\nrootfs = \"rootfs\"\n\n\
         [cases.only]\ntimeout = \"2m\"\nmax_lost = \"100%\"\n\n\
         [cases.only.groups.work]\nworkload = \"shell\"\nargs = [\"-c\", \"echo began; sleep 3; echo rested\"]\n\
         affinity = \"spread\"\ncount = {{ default = {INSTANCES}, min = 1, max = {INSTANCES} }}\n\
         resources = {{ memory = \"16MiB\", cpu = \"10s\", wall = \"1m\" }}\n\n\
         [cases.only.groups.work.container]\nentrypoint = [\"/bin/sh\"]\n"
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

/// Follows what the engine starts: one line for each container, with execution, group and index.
fn engine_events() -> Beside {
    let format = "start {{index .Actor.Attributes \"iptl.execution\"}} {{index .Actor.Attributes \"iptl.group\"}}/\
                  {{index .Actor.Attributes \"iptl.instance\"}}";
    let mut events = Command::new("docker");
    events.args(["events", "--filter", "type=container", "--filter", "event=start", "--filter", "label=iptl.instance"]);
    Beside::start(events.args(["--format", format]))
}

/// Returns how often the engine started each instance of an execution.
fn engine_started(events: &Beside, execution: &str) -> BTreeMap<String, u32> {
    let mut started = BTreeMap::new();
    for line in events.said().0.lines() {
        if let Some(instance) = line.strip_prefix("start ").and_then(|rest| rest.strip_prefix(execution)) {
            *started.entry(instance.trim().to_owned()).or_default() += 1;
        }
    }
    started
}

/// Returns how many containers of an execution there are, running or not.
fn containers(execution: &str) -> usize {
    let filter = format!("label=iptl.execution={execution}");
    let output = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
}

/// Kills at random in so many executions, and holds each to the promise.
fn survives(executions: u32, seed: u64) {
    let lab = Lab::start_with_docker(2);
    let plan = plan(&lab);
    let events = engine_events();
    let mut orchestrator = Mortal::new(&lab.orchestrator, &[]);
    let mut lablets: Vec<Mortal> = lab.lablets.iter().map(|node| Mortal::new(node, &[])).collect();
    let (mut draw, seed) = Draw::new(seed);
    for number in 0..executions {
        let execution = lab.run(&["run", &plan, "--no-build", "--detach"]).exits(0).word();
        // Every other one dies while its containers are made, and every other one while they run.
        let since = if number % 2 == 0 { "the submission" } else { "the start" };
        if number % 2 == 1 {
            until("the start", || {
                let rows = lab.run(&["ls", "runs", "--json"]).stdout;
                let row = rows.lines().find(|line| line.contains(&execution))?;
                (row.contains("\"running") || row.contains("\"sealed\"")).then_some(())
            });
        }
        let mut moments: Vec<u64> = (0..DEATHS).map(|_| draw.below(LATEST_MS)).collect();
        moments.sort_unstable();
        let (mut victims, mut story, mut now) = (BTreeSet::new(), Vec::new(), 0);
        for moment in moments {
            // A death has no cause that could be waited for: its moment is what is drawn.
            std::thread::sleep(Duration::from_millis(moment - now));
            now = moment;
            match draw.below(3) as usize {
                2 => {
                    orchestrator.dies_and_comes_back();
                    story.push(format!("the orchestrator at {moment} ms"));
                }
                lablet => {
                    lablets[lablet].dies_and_comes_back();
                    victims.insert(lablets[lablet].node.peer.clone());
                    story.push(format!("lablet {lablet} at {moment} ms"));
                }
            }
        }
        let story = format!("seed {seed}, execution {number}, after {since}: {}", story.join(", then "));
        eprintln!("{story}");
        holds(&lab, &execution, &events, &lablets, &victims, &story);
    }
}

/// Asserts that an execution ended in a result that tells the truth, and that nothing was started twice.
#[track_caller]
fn holds(lab: &Lab, execution: &str, events: &Beside, lablets: &[Mortal], victims: &BTreeSet<String>, story: &str) {
    let last = lab.run(&["watch", execution, "--json"]).last_json();
    assert_eq!(last["schema"], "iptl.result/1", "{story}: {last}");
    let count = |key: &str| last[key].as_u64().unwrap();
    let (ok, lost) = (count("ok"), count("lost"));
    assert_eq!((ok + lost, count("failed")), (INSTANCES, 0), "{story}: {last}");
    if victims.is_empty() {
        assert_eq!(ok, INSTANCES, "{story}: no lablet died, and yet: {last}");
    }
    let receipts = receipts(lab, &last["result"]);
    assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{story}: {receipts:?}");
    // Nobody's container is left, and so the engine has nothing to start any more.
    until("the end of all containers", || (containers(execution) == 0).then_some(()));
    // A held container is started with its init, and held again by a lablet that died before it began: its workload is
    // what must not begin twice, and that is what its lablet wrote down.
    let mut begun: BTreeMap<String, u32> = BTreeMap::new();
    for (instance, times) in lablets.iter().flat_map(|lablet| lablet.started(execution)) {
        *begun.entry(instance).or_default() += times;
    }
    assert!(begun.values().all(|times| *times == 1), "{story}: started more than once: {begun:?}");
    let engine = engine_started(events, execution);
    let out = lab.path().join(format!("out-{execution}"));
    let result = last["result"].as_str().unwrap();
    // Where all were lost before they said anything, nobody has a log.
    if ok > 0 {
        lab.run(&["get", &format!("{result}/files/logs"), "-o", &out.display().to_string()]).exits(0);
    }
    for (instance, receipt) in &receipts {
        let log = std::fs::read_to_string(out.join(format!("{instance}.jsonl"))).unwrap_or_default();
        let said = |word: &str| log.matches(&format!("\"{word}\"")).count();
        assert!(said("began") <= 1, "{story}: {instance} said\n{log}");
        if receipt.exit["exited"]["code"] == 0 {
            assert_eq!((said("began"), said("rested")), (1, 1), "{story}: {instance} said\n{log}");
            assert_eq!(begun.get(instance), Some(&1), "{story}: {instance} ended and was never started");
        }
        // One that began was not made again afterwards, whoever died.
        let times = engine.get(instance).copied().unwrap_or(0);
        if said("began") == 1 && victims.is_empty() {
            assert_eq!(times, 1, "{story}: the engine started {instance} {times} times");
        }
    }
    let twice = engine.values().filter(|times| **times > 1).count();
    eprintln!("  {ok} ok, {lost} lost; the engine started {} containers, {twice} of them again", engine.len());
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn six_deaths_at_random_moments_run_no_container_twice() {
    engine!();
    survives(2, 0x1db7_1064);
}

#[test]
#[ignore = "soak: ten times the deaths of the test before"]
fn sixty_deaths_at_random_moments_run_no_container_twice() {
    engine!();
    survives(20, 0x82f6_3b78);
}
