//! Nodes and first processes of containers that are killed at random moments while containers run.
//!
//! What must hold is read from the result, and held against what instances themselves left ([`iptl_e2e::marks`]): whatever
//! died, no program began twice, or not more often than it may. The engine is a witness too: it says of each container when
//! it starts one, whoever asked it and has died since.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use iptl_e2e::beside::Beside;
use iptl_e2e::marks::{BEFORE_MARKS, Marks, Words, said};
use iptl_e2e::{Home, Lab, docker_is_required, until_within};

use super::restarts::containers;
use crate::lifecycle::random_deaths::{Draw, Mortal, ended_well, holds_again};
use crate::lifecycle::receipts;

/// Time that each instance rests between its marks, in seconds.
const REST_S: u64 = 6;

/// Time after which a lablet that is not heard has lost its instances, and another one, whose own have ended by then, has
/// begun them anew: what has ended by itself counts where it comes back before.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(14);

/// Longest time in which all containers of an execution are made, or are gone, on a machine with much else to do.
const FOR_ALL: Duration = Duration::from_secs(300);

/// What is killed, and how often.
struct Deaths {
    executions: u32,
    /// In each execution.
    each: u64,
    /// How many of these come before the start, in every other execution.
    early: u64,
    /// Instances of each execution.
    instances: u64,
    /// How often an instance that was lost begins anew.
    rerun: u32,
}

impl Deaths {
    /// Longest time between two of them in milliseconds: they go on until instances end.
    fn pause_ms(&self) -> u64 {
        2_000 * REST_S / self.each
    }

    fn plan(&self, lab: &Lab) -> String {
        write_plan(lab, REST_S, self.instances, self.rerun)
    }
}

/// Writes a plan of containers that leave marks and rest between them for so many seconds.
pub(super) fn write_plan(lab: &Lab, rest_s: u64, instances: u64, rerun: u32) -> String {
    let dir = lab.path().join("plan-of-rest");
    crate::exec::write_shell(&dir.join("rootfs"));
    let script = format!("{BEFORE_MARKS}; mark began; echo began; sleep {rest_s}; mark rested; echo rested");
    let text = format!(
        "[plan]\nname = \"deaths\"\nversion = \"0.1.0\"\n\n[workloads.shell]\nrunner = \"docker\"\nrootfs = \"rootfs\"\n\n\
         [cases.only]\ntimeout = \"5m\"\nmax_lost = \"100%\"\n\n\
         [cases.only.groups.work]\nworkload = \"shell\"\nargs = [\"-c\", '''{script}''']\n\
         affinity = \"spread\"\nrerun = {rerun}\ncount = {{ default = {instances}, min = 1, max = {instances} }}\n\
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

/// Tells whether there is a container of an execution, running or not.
fn has_containers(execution: &str) -> bool {
    let filter = format!("label=iptl.execution={execution}");
    let output = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    !output.stdout.is_empty()
}

/// Kills the first process of a container of an execution; tells whether there was one.
fn kill_one(execution: &str, draw: &mut Draw) -> bool {
    let running = containers(execution);
    if running.is_empty() {
        return false;
    }
    let victim = &running[draw.below(running.len() as u64) as usize];
    // It may have ended meanwhile.
    Command::new("docker").args(["kill", "--signal", "KILL", victim]).output().unwrap().status.success()
}

/// Kills at random in so many executions, and holds each to the promise.
fn survives(deaths: &Deaths, seed: u64) {
    let lab = Lab::start_with_docker(2);
    let plan = deaths.plan(&lab);
    let events = engine_events();
    let marks = Marks::of_containers(lab.path(), lab.lablets.iter().map(|node| node.home.clone()));
    let mut orchestrator = Mortal::new(&lab.orchestrator, &[]);
    let mut lablets: Vec<Mortal> = lab.lablets.iter().map(|node| Mortal::new(node, &[])).collect();
    let (mut draw, seed) = Draw::new(seed);
    let mut given_up = 0;
    for number in 0..deaths.executions {
        let execution = lab.run(&["run", &plan, "--no-build", "--detach"]).exits(0).word();
        // Some die while containers are made, the others while they run; in every other execution all do.
        let early = if number % 2 == 0 { deaths.early } else { 0 };
        let (mut victims, mut story, mut now, mut is_given_up) = (BTreeSet::new(), Vec::new(), 0, false);
        let mut away = None;
        for death in 0..deaths.each {
            if death == early {
                if !starts(&lab, &execution) {
                    story.push("it was given up before it started".to_owned());
                    is_given_up = true;
                    break;
                }
                story.push("it started".to_owned());
                now = 0;
                if deaths.rerun > 0 {
                    // Containers outlive their lablet, and their programs begin anew only where it does not come back in time.
                    // Nor is it waited for longer: an orchestrator that starts again gives all of them two leases.
                    let lablet = draw.below(2) as usize;
                    away = Some(lablet);
                    lablets[lablet].dies_for(LONGER_THAN_A_LEASE);
                    story.push(format!("lablet {lablet} for {LONGER_THAN_A_LEASE:?}"));
                }
            }
            // A death has no cause that could be waited for: its moment is what is drawn.
            let moment = now + draw.below(deaths.pause_ms());
            std::thread::sleep(Duration::from_millis(moment - now));
            now = moment;
            let drawn = draw.below(5) as usize;
            match away.filter(|_| !matches!(drawn, 2 | 3)).map_or(drawn, |away| 1 - away) {
                lablet @ (0 | 1) => {
                    lablets[lablet].dies_and_comes_back();
                    victims.insert(lablets[lablet].node.peer.clone());
                    story.push(format!("lablet {lablet} at {moment} ms"));
                }
                2 | 3 if kill_one(&execution, &mut draw) => {
                    victims.insert("a container".to_owned());
                    story.push(format!("a container at {moment} ms"));
                }
                _ if away.is_some() => story.push(format!("nobody at {moment} ms")),
                _ => {
                    orchestrator.dies_and_comes_back();
                    story.push(format!("the orchestrator at {moment} ms"));
                }
            }
        }
        let story = format!("seed {seed}, execution {number}: {}", story.join(", then "));
        eprintln!("{story}");
        match deaths.rerun {
            _ if is_given_up => {
                given_up += 1;
                began_nowhere(&lab, &execution, &marks, &story);
            }
            0 => holds(&lab, &execution, &events, &lablets, &marks, deaths.instances, &victims, &story),
            rerun => {
                // What runs on where nobody waits for it counts too.
                lab.run(&["watch", &execution]);
                until_within(FOR_ALL, "the end of all containers", || (!has_containers(&execution)).then_some(()));
                let anew = holds_again(&lab, &execution, &lablets, &marks, rerun, &story);
                let log = || lab.run(&["audit", &execution]).stdout;
                assert!(anew > 0, "{story}: nothing began anew; {}", log());
            }
        }
    }
    assert!(given_up < deaths.executions, "seed {seed}: none of {given_up} executions ever started");
}

/// Waits until an execution starts; false where the lab gives it up since whoever was to prepare it died too often.
fn starts(lab: &Lab, execution: &str) -> bool {
    until_within(FOR_ALL, "the start", || {
        let rows = lab.run(&["ls", "runs", "--json"]).stdout;
        let mut rows = rows.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let row = rows.find(|row| row["execution"] == execution)?;
        match row["state"].as_str()?.split_whitespace().next()? {
            "running" => Some(true),
            // What was given up has a result that says why.
            "sealed" => Some(lab.run(&["watch", execution, "--json"]).last_json()["code"].is_null()),
            _ => None,
        }
    })
}

/// Asserts that an execution which was given up began nowhere, and says so.
#[track_caller]
fn began_nowhere(lab: &Lab, execution: &str, marks: &Marks, story: &str) {
    let last = lab.run(&["watch", execution, "--json"]).exits(5).last_json();
    let (code, result) = (last["code"].as_str().unwrap_or_default(), last["result"].as_str());
    assert!(["lab.cannot-prepare", "lab.no-capacity"].contains(&code) && result.is_some(), "{story}: {last}");
    until_within(FOR_ALL, "the end of all containers", || (!has_containers(execution)).then_some(()));
    assert_eq!(marks.take(execution), Words::new(), "{story}: it was given up, and yet something began");
}

/// Asserts that an execution ended in a result that tells the truth, and that nothing began twice.
#[track_caller]
fn holds(
    lab: &Lab,
    execution: &str,
    events: &Beside,
    lablets: &[Mortal],
    marks: &Marks,
    instances: u64,
    victims: &BTreeSet<String>,
    story: &str,
) {
    let last = lab.run(&["watch", execution, "--json"]).last_json();
    assert_eq!(last["schema"], "iptl.result/1", "{story}: {last}");
    let count = |key: &str| last[key].as_u64().unwrap();
    let (ok, lost) = (count("ok"), count("lost"));
    assert_eq!((ok + lost, count("failed")), (instances, 0), "{story}: {last}");
    if victims.is_empty() {
        assert_eq!(ok, instances, "{story}: only the orchestrator died, and yet: {last}");
    }
    let receipts = receipts(lab, &last["result"]);
    assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{story}: {receipts:?}");
    // Nobody's container is left, and so the engine has nothing to start any more.
    until_within(FOR_ALL, "the end of all containers", || (!has_containers(execution)).then_some(()));
    // A held container is started with its init, and held again by a lablet that died before it began: its workload is
    // what must not begin twice, and that is what it says itself.
    let left = marks.take(execution);
    let mut ordered: BTreeMap<String, u32> = BTreeMap::new();
    for (instance, times) in lablets.iter().flat_map(|lablet| lablet.started(execution)) {
        *ordered.entry(instance).or_default() += times;
    }
    assert!(ordered.values().all(|times| *times == 1), "{story}: started more than once: {ordered:?}");
    let engine = engine_started(events, execution);
    for instance in left.keys() {
        let (began, rested) = (said(&left, instance, "began"), said(&left, instance, "rested"));
        assert!(began == 1 && rested <= 1, "{story}: {instance} began {began} times and rested {rested} times");
        assert!(ordered.contains_key(instance), "{story}: {instance} began, and nobody says that it was started");
        assert!(engine.contains_key(instance), "{story}: {instance} began, and the engine does not say so");
    }
    let out = lab.path().join(format!("out-{execution}"));
    let result = last["result"].as_str().unwrap();
    // Where all were lost before they said anything, nobody has a log.
    if ok > 0 {
        lab.run(&["get", &format!("{result}/files/logs"), "-o", &out.display().to_string()]).exits(0);
    }
    for (instance, receipt) in &receipts {
        let log = std::fs::read_to_string(out.join(format!("{instance}.jsonl"))).unwrap_or_default();
        let sealed = |word: &str| log.matches(&format!("\"{word}\"")).count();
        assert!(sealed("began") <= 1, "{story}: {instance} said\n{log}");
        if receipt.exit["exited"]["code"] == 0 {
            assert_eq!((sealed("began"), sealed("rested")), (1, 1), "{story}: {instance} said\n{log}");
            ended_well(&left, instance, story);
        }
        // One that began was not made again afterwards, whoever died.
        let times = engine.get(instance).copied().unwrap_or(0);
        if sealed("began") == 1 && victims.is_empty() {
            assert_eq!(times, 1, "{story}: the engine started {instance} {times} times");
        }
    }
    let twice = engine.values().filter(|times| **times > 1).count();
    eprintln!(
        "  {ok} ok, {lost} lost; {} began by their own word; the engine started {} containers, {twice} of them again",
        left.len(),
        engine.len()
    );
    let _ = std::fs::remove_dir_all(out);
}

#[test]
fn twenty_deaths_at_random_moments_run_no_container_twice() {
    engine!();
    survives(&Deaths { executions: 2, each: 10, early: 2, instances: 30, rerun: 0 }, 0x1db7_1064);
}

/// None of them before the start, so that each lablet has a part of the execution to lose.
#[test]
fn ten_deaths_at_random_moments_have_lost_containers_begin_anew_within_their_bound() {
    engine!();
    survives(&Deaths { executions: 1, each: 10, early: 0, instances: 20, rerun: 2 }, 0x04c1_1db7);
}

#[test]
#[ignore = "soak: ten times the deaths of the test before, over larger executions"]
fn two_hundred_deaths_at_random_moments_run_no_container_twice() {
    engine!();
    survives(&Deaths { executions: 20, each: 10, early: 2, instances: 100, rerun: 0 }, 0x82f6_3b78);
}
