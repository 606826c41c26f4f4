//! Nodes and workers that are killed at random moments, one after the other, while instances run.
//!
//! What must hold is read from the result, and held against what instances themselves left ([`iptl_e2e::marks`]), which no
//! lab can take back: nothing began twice, or not more often than it may, and whoever is said to have ended well did so.
//! What each lablet wrote down when it started instances says whose they were: only those whose lablet or worker died have
//! not ended well.
//!
//! A failure names its seed. With `IPTL_SEED`, a number as it is named there, these tests and those of containers draw from
//! that seed instead of their own: to repeat a failure, or to look for another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iptl_e2e::beside::children;
use iptl_e2e::marks::{Marks, Words, said};
use iptl_e2e::{Foreground, Lab, Node, kill};
use serde_json::Value;

use super::{all_receipts, receipts, submit, watch};

/// Instances of each execution.
const INSTANCES: u64 = 100;

/// Time that each of them works, in milliseconds.
const REST_MS: u64 = 1_500;

/// Latest moment of a death after the submission: from the first offer until after the last end.
const LATEST_MS: u64 = REST_MS + 1_500;

/// Nodes of these tests run components alone.
const NO_CONTAINERS: &[&str] = &["--no-docker"];

/// A node that dies and comes back.
pub(crate) struct Mortal {
    pub(crate) node: Node,
    again: Option<Foreground>,
    /// What its command line says besides.
    args: &'static [&'static str],
}

impl Mortal {
    pub(crate) fn new(node: &Node, args: &'static [&'static str]) -> Mortal {
        Mortal { node: node.clone(), again: None, args }
    }

    fn pid(&self) -> u32 {
        self.again.as_ref().map_or(self.node.pid, Foreground::pid)
    }

    pub(crate) fn dies_and_comes_back(&mut self) {
        self.dies_for(Duration::ZERO);
    }

    /// Has it die and come back only after so long.
    pub(crate) fn dies_for(&mut self, away: Duration) {
        match self.again.take() {
            None => self.node.kill(),
            Some(process) => drop(process),
        }
        // Nothing tells how long somebody is away.
        std::thread::sleep(away);
        self.again = Some(Foreground::again(&self.node.home, self.args));
    }

    /// Returns how often it started each instance of an execution.
    pub(crate) fn started(&self, execution: &str) -> BTreeMap<String, u32> {
        let log = std::fs::read_to_string(self.node.home.join("node.log")).unwrap();
        let mut started = BTreeMap::new();
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let fields = &line["fields"];
            if fields["message"] != "starting instances" || fields["execution"] != execution {
                continue;
            }
            for range in fields["instances"].as_str().unwrap().split(' ') {
                let (group, rest) = range.split_once('/').unwrap();
                let (first, last) = rest.split_once('-').unwrap_or((rest, rest));
                for index in first.parse::<u32>().unwrap()..=last.parse().unwrap() {
                    *started.entry(format!("{group}/{index}")).or_default() += 1;
                }
            }
        }
        started
    }
}

/// Draws numbers: xorshift64* after Vigna, 2014.
pub(crate) struct Draw(u64);

impl Draw {
    /// Begins with a seed, or with that of `IPTL_SEED` where it is set; returns what it began with too.
    pub(crate) fn new(seed: u64) -> (Draw, u64) {
        let wanted = std::env::var("IPTL_SEED").ok();
        let seed = wanted.map_or(seed, |text| text.parse().unwrap_or_else(|e| panic!("IPTL_SEED={text}: {e}")));
        assert!(seed != 0, "of zero nothing else is drawn");
        (Draw(seed), seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn plan(lab: &Lab, rerun: u32) -> String {
    let dir = lab.path().join("plan-of-rest");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(super::program_of("hostile"), dir.join("work.wasm")).unwrap();
    let text = format!(
        "[plan]\nname = \"deaths\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"wasm\"\npath = \"work.wasm\"\n\n\
         [cases.only]\ntimeout = \"2m\"\nmax_lost = \"100%\"\n\n\
         [cases.only.params.watch]\ntype = \"duration\"\ndefault = \"1s\"\nmin = \"1ms\"\nmax = \"5m\"\n\n\
         [cases.only.groups.work]\nworkload = \"work\"\nargs = [\"rest\"]\naffinity = \"spread\"\nrerun = {rerun}\n\
         count = {{ default = {INSTANCES}, min = 1, max = {INSTANCES} }}\n\
         resources = {{ memory = \"16MiB\", cpu = \"60s\", wall = \"1m\" }}\n"
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

/// Kills at random until there were so many deaths, and holds every execution to the promise: no instance is started
/// more often than once and `rerun` times again.
fn survives(deaths: u32, seed: u64, rerun: u32) {
    let lab = Lab::start(3);
    let plan = plan(&lab, rerun);
    let mut orchestrator = Mortal::new(&lab.orchestrator, NO_CONTAINERS);
    let mut lablets: Vec<Mortal> = lab.lablets.iter().map(|node| Mortal::new(node, NO_CONTAINERS)).collect();
    let marks = Marks::of_components(lab.lablets.iter().map(|node| node.home.clone()));
    let (mut draw, seed) = Draw::new(seed);
    let (mut died, mut story) = (0, Vec::new());
    while died < deaths {
        let execution = submit(&lab, &plan, &format!("{REST_MS}ms"));
        let mut victims = BTreeSet::new();
        let mut moments = [draw.below(LATEST_MS), draw.below(LATEST_MS)];
        moments.sort_unstable();
        let mut now = 0;
        story.clear();
        for moment in &moments[..1 + draw.below(2) as usize] {
            // A death has no cause that could be waited for: its moment is what is drawn.
            std::thread::sleep(Duration::from_millis(moment - now));
            now = *moment;
            let lablet = draw.below(3) as usize;
            let what = match draw.below(5) {
                0 | 1 => {
                    orchestrator.dies_and_comes_back();
                    "the orchestrator".to_owned()
                }
                2 | 3 => {
                    lablets[lablet].dies_and_comes_back();
                    victims.insert(lablets[lablet].node.peer.clone());
                    format!("lablet {lablet}")
                }
                _ => {
                    // A cell that is over lets its worker go, whoever kills it.
                    children(lablets[lablet].pid()).into_iter().for_each(kill);
                    victims.insert(lablets[lablet].node.peer.clone());
                    format!("the workers of lablet {lablet}")
                }
            };
            died += 1;
            story.push(format!("{what} at {moment} ms"));
        }
        let story = format!("seed {seed}, death {died}: {}", story.join(", then "));
        eprintln!("{story}");
        match rerun {
            0 => holds(&lab, &execution, &lablets, &marks, &victims, &story),
            _ => {
                holds_again(&lab, &execution, &lablets, &marks, rerun, &story);
            }
        }
    }
}

/// Asserts that an execution ended in a result that tells the truth.
#[track_caller]
fn holds(lab: &Lab, execution: &str, lablets: &[Mortal], marks: &Marks, victims: &BTreeSet<String>, story: &str) {
    let last = watch(lab, execution).last_json();
    assert_eq!(last["schema"], "iptl.result/1", "{story}: {last}");
    let count = |key: &str| last[key].as_u64().unwrap();
    let (ok, lost) = (count("ok"), count("lost"));
    assert_eq!(ok + lost + count("failed"), INSTANCES, "{story}: {last}");
    let receipts = receipts(lab, &last["result"]);
    // Of one that is lost there may be a receipt, where its lablet lived to say so.
    assert!((INSTANCES - lost..=INSTANCES).contains(&(receipts.len() as u64)), "{story}: {last}");
    assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{story}: {receipts:?}");
    if victims.is_empty() {
        assert_eq!(ok, INSTANCES, "{story}: no lablet died, and yet: {last}");
    }
    let mut started: BTreeMap<String, Vec<(&str, u32)>> = BTreeMap::new();
    for lablet in lablets {
        for (instance, times) in lablet.started(execution) {
            started.entry(instance).or_default().push((&lablet.node.peer, times));
        }
    }
    for (instance, by) in &started {
        assert!(matches!(by[..], [(_, 1)]), "{story}: {instance} was started more than once: {by:?}");
    }
    let left = marks.take(execution);
    for instance in left.keys() {
        let (began, rested) = (said(&left, instance, "began"), said(&left, instance, "rested"));
        // A place is there before its instance has said a word, and a death may come between the two.
        assert!(rested <= began && began <= 1, "{story}: {instance} began {began} times and rested {rested} times");
        let is_told = began == 0 || started.contains_key(instance);
        assert!(is_told, "{story}: {instance} began, and nobody says that it was started");
    }
    let out = lab.path().join(format!("out-{execution}"));
    let result = last["result"].as_str().unwrap();
    // Where all were on one lablet, and that died, nobody has a log.
    if ok > 0 {
        lab.run(&["get", &format!("{result}/files/logs"), "-o", &out.display().to_string()]).exits(0);
    }
    // A receipt names its signer as a key; whoever started an instance is the one who signs for it.
    let mut signers: BTreeMap<&str, &str> = BTreeMap::new();
    for (instance, receipt) in &receipts {
        let by = started.get(instance).map(|by| by[0].0);
        if let Some(lablet) = by {
            let signer = signers.entry(&receipt.lablet).or_insert(lablet);
            assert_eq!(*signer, lablet, "{story}: {instance} has a receipt of another lablet");
        }
        if receipt.exit["exited"]["code"] == 0 {
            assert!(by.is_some(), "{story}: {instance} ended and was never started");
            let log = std::fs::read_to_string(out.join(format!("{instance}.jsonl"))).unwrap();
            let sealed = |word: &str| log.matches(&format!("\"{word}\"")).count();
            assert_eq!((sealed("began"), sealed("rested")), (1, 1), "{story}: {instance} said\n{log}");
            ended_well(&left, instance, story);
        } else {
            let died = by.is_none_or(|lablet| victims.contains(lablet));
            assert!(died && !victims.is_empty(), "{story}: {instance} did not end well: {receipt:?}");
        }
    }
    if ok > 0 {
        std::fs::remove_dir_all(out).unwrap();
    }
}

/// Asserts that an instance has left the marks of one that ended well.
#[track_caller]
pub(crate) fn ended_well(left: &Words, instance: &str, story: &str) {
    let (began, rested) = (said(left, instance, "began"), said(left, instance, "rested"));
    assert!(
        rested > 0 && began >= rested,
        "{story}: {instance} is said to have ended well, began {began} times and rested {rested} times"
    );
}

/// Asserts that an execution whose lost instances begin anew ended in a result that tells the truth: how often each began
/// is what it says itself, how often it was started is counted where it was, and log and receipts say as much at least.
/// Returns how many began anew.
#[track_caller]
pub(crate) fn holds_again(
    lab: &Lab,
    execution: &str,
    lablets: &[Mortal],
    marks: &Marks,
    rerun: u32,
    story: &str,
) -> usize {
    let last = watch(lab, execution).last_json();
    assert_eq!(last["schema"], "iptl.result/1", "{story}: {last}");
    let audited = lab.run(&["audit", execution, "--json"]).exits(0).last_json();
    let attempts: BTreeMap<String, u32> = serde_json::from_value(audited["attempts"].clone()).unwrap();
    let granted = |instance: &str| attempts.get(instance).copied().unwrap_or(1);
    let mut started: BTreeMap<String, u32> = BTreeMap::new();
    for lablet in lablets {
        for (instance, times) in lablet.started(execution) {
            *started.entry(instance).or_default() += times;
        }
    }
    for (instance, times) in &started {
        let granted = granted(instance);
        assert!(granted <= 1 + rerun, "{story}: attempt {granted} of {instance}");
        assert!(*times <= granted, "{story}: {instance} was started {times} times in {granted} attempts");
    }
    let left = marks.take(execution);
    for instance in left.keys() {
        let (began, times) = (said(&left, instance, "began"), started.get(instance).copied().unwrap_or(0));
        assert!(began <= times, "{story}: {instance} began {began} times and was started {times} times");
    }
    let (mut told, mut died) = (BTreeSet::new(), 0);
    for (instance, receipt) in all_receipts(lab, &last["result"]) {
        let attempt = receipt.attempt;
        assert!(attempt <= granted(&instance).into(), "{story}: {instance} has a receipt of attempt {attempt}");
        assert!(told.insert((instance.clone(), attempt)), "{story}: {instance} has two receipts of attempt {attempt}");
        assert!(started.contains_key(&instance), "{story}: {instance} has a receipt and was never started");
        if receipt.exit["exited"]["code"] == 0 {
            ended_well(&left, &instance, story);
        }
        died += u64::from(receipt.exit.get("worker-died").is_some());
    }
    // What is lost with its lablet begins anew and is lost for good only where that happens more often than it may; what
    // is lost with its worker does not begin anew, and has a receipt that says so.
    let lost = last["lost"].as_u64().unwrap();
    let spent = attempts.values().any(|n| *n == 1 + rerun);
    assert!(lost <= died || spent, "{story}: {lost} lost, {died} with their workers, {attempts:?}: {last}");
    let anew = last["notes"].as_array().is_some_and(|notes| notes.iter().any(|n| n.as_str().unwrap().contains("anew")));
    assert_eq!(anew, !attempts.is_empty(), "{story}: {last}");
    let began: u32 = left.keys().map(|instance| said(&left, instance, "began")).sum();
    eprintln!("  {lost} lost; {} granted anew; {} began {began} times by their own word", attempts.len(), left.len());
    attempts.len()
}

#[test]
fn ten_deaths_at_random_moments_have_lost_instances_begin_anew_within_their_bound() {
    survives(10, 0x04c1_1db7, 2);
}

#[test]
fn twenty_deaths_at_random_moments_rerun_nothing_and_lose_no_receipt() {
    survives(20, 0x1db7_1064, 0);
}

#[test]
#[ignore = "soak: ten times the deaths of the test before"]
fn two_hundred_deaths_at_random_moments_rerun_nothing_and_lose_no_receipt() {
    survives(200, 0x82f6_3b78, 0);
}
