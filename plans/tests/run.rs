//! Runs made from plans.

use std::collections::BTreeMap;

use iptl_dag::Cid;
use iptl_dag::model::{Plan, Run, Value, Workload, WorkloadKind, to_block};
use iptl_plans::{RunOptions, make_run, parse};

pub(crate) const PLAN_CID: &str = "bafyr4ifkgnumvzf6goyb2uxa2ge2sq4z6vsa2cpgc5dcq6y4erhs3n44pq";

const MANIFEST: &str = r#"
[plan]
name = "example"
version = "0.1.0"

[workloads.node]
runner = "wasm"
path = "node.wasm"

[cases.default]
timeout = "60s"
max_lost = "5%"

[cases.default.groups.node]
workload = "node"
count = { default = 3, min = 1, max = 10 }

[cases.default.groups.idle]
workload = "node"
count = { default = 0, min = 0 }

[cases.default.params.rounds]
type = "int"
default = 5
min = 1

[cases.default.params.rate]
type = "float"
default = 0.5

[cases.default.params.pause]
type = "duration"
default = "2s"

[cases.default.params.block]
type = "size"
default = "64KiB"

[cases.default.params.mode]
type = "text"
default = "slow"
choices = ["slow", "quick"]

[cases.default.params.loud]
type = "bool"
default = false

[cases.other.groups.node]
workload = "node"
count = 1
"#;

/// A workload whose content is the CID of the plan: it need not exist.
pub(crate) fn workload() -> (Cid, Workload) {
    let content = PLAN_CID.parse().expect("a CID");
    let node = Workload { name: "node".to_owned(), kind: WorkloadKind::Wasm, content, size: 7 };
    (*to_block(node.clone()).cid(), node)
}

fn plan() -> Plan {
    let manifest = parse(MANIFEST, "plan.toml").expect("it has no mistakes");
    manifest
        .to_plan(&BTreeMap::from([("node".to_owned(), workload().0)]), &BTreeMap::new(), None)
        .expect("all workloads have CIDs")
}

fn run(options: &RunOptions) -> Run {
    let workloads = BTreeMap::from([("node".to_owned(), workload())]);
    make_run(&plan(), PLAN_CID.parse().expect("a CID"), &workloads, options).expect("the choices are allowed")
}

fn choose(groups: &[(&str, u32)], params: &[(&str, &str)], seed: u64) -> RunOptions {
    RunOptions {
        case: None,
        groups: groups.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
        params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        seed,
        ..RunOptions::default()
    }
}

fn cid(options: &RunOptions) -> String {
    to_block(run(options)).cid().to_string()
}

#[test]
fn equal_choices_make_equal_runs_with_these_cids() {
    assert_eq!(to_block(plan()).cid().to_string(), GOLDEN_PLAN);
    assert_eq!(cid(&RunOptions::default()), GOLDEN_RUN);
    assert_eq!(cid(&choose(&[("node", 3), ("idle", 0)], &[], 1)), GOLDEN_RUN);
    let spelt = [("pause", "2000ms"), ("block", "65536B"), ("rate", "5e-1"), ("mode", "slow"), ("loud", "false")];
    assert_eq!(cid(&choose(&[], &spelt, 1)), GOLDEN_RUN);
}

const GOLDEN_PLAN: &str = "bafyr4igcmreottimisltieytswyj5co7jfk3ghtgsn3f4cqwrmim76p63q";
const GOLDEN_RUN: &str = "bafyr4ibgibttptsn6nh7u5q5kua4j2dpxtheydbuxpycs4jbsu2okihvbu";

#[test]
fn other_choices_make_other_runs() {
    let mut seen = vec![cid(&RunOptions::default())];
    for options in [
        choose(&[("node", 4)], &[], 1),
        choose(&[], &[("rounds", "6")], 1),
        choose(&[], &[("loud", "true")], 1),
        choose(&[], &[], 2),
        RunOptions { case: Some("other".to_owned()), ..RunOptions::default() },
    ] {
        seen.push(cid(&options));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn values_are_read_by_the_type_of_their_parameter() {
    let run = run(&choose(&[], &[("pause", "1.5s"), ("block", "1MiB"), ("rate", "-0"), ("rounds", " 7 ")], 1));
    assert_eq!(run.params["pause"], Value::Int(1500));
    assert_eq!(run.params["block"], Value::Int(1 << 20));
    assert_eq!(run.params["rounds"], Value::Int(7));
    assert!(matches!(run.params["rate"], Value::Float(v) if v == 0.0 && v.is_sign_positive()));
}

#[test]
fn every_mistake_in_the_choices_is_reported() {
    let workloads = BTreeMap::from([("node".to_owned(), workload())]);
    let options = choose(&[("node", 11), ("nod", 1)], &[("rounds", "0"), ("rate", "NaN"), ("x", "1")], 1);
    let found = make_run(&plan(), PLAN_CID.parse().expect("a CID"), &workloads, &options).expect_err("mistakes");
    let codes: Vec<&str> = found.iter().map(|mistake| mistake.code).collect();
    assert_eq!(codes, ["E0403", "E0404", "E0405", "E0406", "E0407"]);
    assert!(found.iter().all(|mistake| mistake.span.is_empty()));
}
