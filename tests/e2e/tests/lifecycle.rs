//! What dies, waits, joins and leaves while a lab works.
//!
//! [`deaths`] ends nodes and workers at the worst moment, [`stops`] is about standing still and disks, [`following`] is
//! about who watches, [`ends`] about runs that are cancelled, late or find no room, [`members`] about who comes and goes,
//! [`takeover`] and [`parted`] about labs of two orchestrators, [`turns`] about who goes before whom, [`alone`] about what needs no lab,
//! [`collecting`] about what is dropped and what rots, [`crowds`] about size, [`health`] about a lab that looks after itself,
//! [`losses`] about what plans say of all that, [`series`] about what is submitted whole or not at all. All run plans of
//! [`Plan`], but [`random_deaths`], [`turns`], [`losses`] and [`series`].

mod alone;
mod collecting;
mod crowds;
mod deaths;
mod ends;
mod following;
mod health;
mod losses;
mod members;
mod parted;
pub(crate) mod random_deaths;
mod series;
mod stops;
pub(crate) mod takeover;
mod turns;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use iptl_e2e::{Lab, Output, repository, until};
use serde_json::Value;

/// A plan of instances that know nothing of each other, so that what happens to one says nothing about others.
///
/// Each of `steady-<i>` works for as long as the parameter `watch` says and ends well; `quick` (where there are any)
/// ends at once with an exit of its own, and `nap` sleeps until its two seconds are over: the plan expects both to fail.
/// A steady one asks the lab for sync at its end, the others never do.
struct Plan {
    steady: u32,
    quick: u32,
    naps: u32,
    timeout: &'static str,
    max_lost: &'static str,
}

impl Plan {
    fn new(steady: u32) -> Plan {
        Plan { steady, quick: 0, naps: 0, timeout: "2m", max_lost: "0%" }
    }

    fn quick(self, quick: u32) -> Plan {
        Plan { quick, ..self }
    }

    fn naps(self, naps: u32) -> Plan {
        Plan { naps, ..self }
    }

    fn timeout(self, timeout: &'static str) -> Plan {
        Plan { timeout, ..self }
    }

    fn max_lost(self, max_lost: &'static str) -> Plan {
        Plan { max_lost, ..self }
    }

    fn instances(&self) -> u64 {
        u64::from(self.steady + self.quick + self.naps)
    }

    /// Writes it into a lab's directory and returns the folder. The program is that of the plan `hostile`.
    fn write(&self, lab: &Lab) -> String {
        let dir = lab.path().join(format!("plan-{}-{}-{}", self.steady, self.quick, self.naps));
        self.write_to(&dir);
        dir.display().to_string()
    }

    fn write_to(&self, dir: &std::path::Path) {
        std::fs::create_dir_all(dir).unwrap();
        let (timeout, max_lost) = (self.timeout, self.max_lost);
        let resources = |wall: &str| format!("{{ memory = \"16MiB\", cpu = \"60s\", wall = \"{wall}\" }}");
        let mut text = format!(
            "[plan]\nname = \"lifecycle\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"wasm\"\n\
             path = \"work.wasm\"\n\n[cases.only]\ntimeout = \"{timeout}\"\nmax_lost = \"{max_lost}\"\n\n\
             [cases.only.params.watch]\ntype = \"duration\"\ndefault = \"1s\"\nmin = \"1ms\"\nmax = \"5m\"\n"
        );
        for i in 0..self.steady {
            write!(
                text,
                "\n[cases.only.groups.steady-{i}]\nworkload = \"work\"\nargs = [\"good\"]\ncount = {{ default = 1, \
                 min = 1, max = 1 }}\naffinity = \"spread\"\nresources = {}\n\n[[cases.only.thresholds]]\n\
                 success_rate = {{ at_least = 1.0 }}\ngroup = \"steady-{i}\"\n",
                resources("5m")
            )
            .unwrap();
        }
        for (group, behaviour, count, wall) in [("quick", "exit", self.quick, "5m"), ("nap", "sleep", self.naps, "2s")]
        {
            if count == 0 {
                continue;
            }
            write!(
                text,
                "\n[cases.only.groups.{group}]\nworkload = \"work\"\nargs = [\"{behaviour}\"]\ncount = {{ default = \
                 {count}, min = 1, max = {count} }}\naffinity = \"spread\"\nresources = {}\n\n\
                 [[cases.only.thresholds]]\nsuccess_rate = {{ at_most = 0.0 }}\ngroup = \"{group}\"\n",
                resources(wall)
            )
            .unwrap();
        }
        std::fs::write(dir.join("plan.toml"), text).unwrap();
        std::fs::copy(program_of("hostile"), dir.join("work.wasm")).unwrap();
    }
}

/// Where command lines are run.
pub(crate) trait Asks {
    fn ask(&self, args: &[&str]) -> Output;
}

impl Asks for Lab {
    fn ask(&self, args: &[&str]) -> Output {
        self.run(args)
    }
}

/// Returns the program of a plan that ships; `cargo xtask setup` builds it.
fn program_of(plan: &str) -> PathBuf {
    repository().join(format!("plans/{plan}/target/wasm32-wasip2/release/{plan}.wasm"))
}

/// Submits a plan and returns the execution.
#[track_caller]
fn submit(lab: &Lab, plan: &str, watch: &str) -> String {
    let watch = format!("watch={watch}");
    lab.run(&["run", plan, "--no-build", "-p", &watch, "--detach"]).exits(0).word()
}

/// Follows an execution to its end and returns how it ended.
#[track_caller]
fn watch(lab: &Lab, execution: &str) -> Output {
    lab.run(&["watch", execution, "--json"])
}

/// Returns the row of an execution in the list of runs.
fn row(lab: &Lab, execution: &str) -> Option<Value> {
    let rows = lab.run(&["ls", "runs", "--json"]);
    rows.stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|row: &Value| row["execution"] == execution)
}

/// Waits until an execution is in a state: the word that `ls runs` begins it with.
#[track_caller]
fn reaches(lab: &Lab, execution: &str, state: &str) {
    until(&format!("state {state} of {execution}"), || {
        row(lab, execution)?["state"].as_str()?.starts_with(state).then_some(())
    });
}

/// A receipt out of a result: who ran what, and how it ended.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) attempt: u64,
    pub(crate) lablet: String,
    pub(crate) started_ms: u64,
    pub(crate) exit: Value,
}

/// Verifies a result and returns its receipts by instance; fails the test where an instance has two.
#[track_caller]
pub(crate) fn receipts(lab: &impl Asks, result: &Value) -> BTreeMap<String, Receipt> {
    let mut receipts = BTreeMap::new();
    for (instance, receipt) in all_receipts(lab, result) {
        if let Some(other) = receipts.insert(instance.clone(), receipt) {
            panic!("{instance} ran twice: {other:?} and {:?}", receipts[&instance]);
        }
    }
    receipts
}

/// Verifies a result and returns its receipts, those of every attempt, with their instances.
#[track_caller]
pub(crate) fn all_receipts(lab: &impl Asks, result: &Value) -> Vec<(String, Receipt)> {
    let result = result.as_str().expect("a result");
    let shown = lab.ask(&["show", result, "--json"]).exits(0).json();
    assert_eq!(shown["verified"], true, "{shown}");
    assert_eq!(shown["outcome_equal"], true, "{shown}");
    let shards = lab.ask(&["dag", "get", &format!("{result}/attestation/body/receipts")]).exits(0).json();
    let mut receipts = Vec::new();
    for shard in shards.as_array().expect("a list of links") {
        let node = lab.ask(&["dag", "get", &format!("{}/receipts", shard["/"].as_str().unwrap())]).exits(0).json();
        for signed in node.as_array().expect("a list of receipts") {
            let body = &signed["body"];
            let instance = format!("{}/{}", body["instance"]["group"].as_str().unwrap(), body["instance"]["index"]);
            let receipt = Receipt {
                attempt: body["attempt"].as_u64().unwrap(),
                lablet: signed["signer"].to_string(),
                started_ms: body["started_ms"].as_u64().unwrap(),
                exit: body["exit"].clone(),
            };
            receipts.push((instance, receipt));
        }
    }
    receipts
}

/// Asserts that a run passed with a receipt for each instance, each at its first attempt.
#[track_caller]
fn passed_once(lab: &impl Asks, output: Output, instances: u64) -> BTreeMap<String, Receipt> {
    let last = output.exits(0).last_json();
    assert_eq!((last["verdict"].as_str(), last["lost"].as_u64()), (Some("pass"), Some(0)), "{last}");
    let receipts = receipts(lab, &last["result"]);
    assert_eq!(receipts.len() as u64, instances, "{receipts:?}");
    assert!(receipts.values().all(|receipt| receipt.attempt == 1), "{receipts:?}");
    receipts
}
