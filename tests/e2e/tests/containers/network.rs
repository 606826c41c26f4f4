//! Containers on several lablets reach each other over the lab network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use iptl_dag::model::{self, AccessClass, LinkModel, Network, NetworkModel, Node, Run};
use iptl_dag::{Block, car, codec};
use iptl_e2e::{Home, Lab, docker_is_required, repository};
use serde_json::Value;

/// Instances that reach the one that answers.
const REACHING: u64 = 3;

/// Builds the program of the Docker runner's tests.
fn program() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("programs");
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target", &triple, "--manifest-path"])
        .arg(repository().join("node/runner-docker/tests/programs/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "the program does not build; is the target {triple} installed?");
    target.join(triple).join("release/iptl-test-program")
}

/// Writes a plan in which some reach another, and all leave together.
fn plan(lab: &Lab) -> String {
    let dir = lab.path().join("plan-of-a-network");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(program(), dir.join("work")).unwrap();
    let group = |name: &str, count: u64, args: &str| {
        format!(
            "[cases.only.groups.{name}]\nworkload = \"work\"\ncount = {{ default = {count}, min = 1, max = 9 }}\n\
             args = [{args}]\naffinity = \"spread\"\nresources = {{ memory = \"32MiB\", cpu = \"20s\", wall = \"1m\" }}\n\n"
        )
    };
    let text = format!(
        "[plan]\nname = \"reaching\"\nversion = \"0.1.0\"\n\n[workloads.work]\nrunner = \"docker\"\n\
         binary = \"work\"\n\n[cases.only]\ntimeout = \"2m\"\n\n{}{}\
         [[cases.only.thresholds]]\nsuccess_rate = {{ at_least = 1.0 }}\n",
        group("answering", 1, "\"meet\", \"answer\""),
        group("reaching", REACHING, "\"meet\", \"reach\", \"answering-0\", \"200000\""),
    );
    std::fs::write(dir.join("plan.toml"), text).unwrap();
    dir.display().to_string()
}

/// Returns the receipts of a result.
fn receipts(lab: &Lab, result: &str) -> Vec<Value> {
    let attestation = lab.run(&["dag", "get", &format!("{result}/attestation")]).exits(0).json();
    let of = |node: &Value| node.as_object().unwrap().values().next().unwrap().clone();
    let shards = of(&attestation)["body"]["receipts"].as_array().unwrap().clone();
    let all = shards.iter().flat_map(|link| {
        let shard = lab.run(&["dag", "get", link["/"].as_str().unwrap()]).exits(0).json();
        of(&shard)["receipts"].as_array().unwrap().clone()
    });
    all.map(|signed| signed["body"].clone()).collect()
}

/// Puts blocks into the store of a lab's orchestrator.
fn import(lab: &Lab, blocks: &[Block]) {
    let mut bytes = car::header(&[*blocks.last().unwrap().cid()]);
    blocks.iter().for_each(|block| bytes.extend(car::frame(block)));
    let path = lab.path().join("blocks.car");
    std::fs::write(&path, bytes).unwrap();
    lab.run(&["import", &path.display().to_string()]).exits(0);
}

/// Returns a run that is another but for its network.
fn in_a_network(lab: &Lab, run: &str, network: NetworkModel) -> String {
    let shown = lab.run(&["dag", "get", run]).exits(0).stdout;
    let value = codec::from_dag_json(shown.trim().as_bytes()).unwrap();
    let mut run: Run = model::from_bytes(&codec::encode(&value)).unwrap();
    let network = Node::from(network).to_block();
    run.network = Network::Model(*network.cid());
    let run = Node::from(run).to_block();
    let cid = run.cid().to_string();
    import(lab, &[network, run]);
    cid
}

/// Returns what the instances said that something took, in milliseconds.
fn took(lab: &Lab, result: &str, what: &str) -> Vec<f64> {
    let out = lab.path().join(format!("out-{what}-{}", &result[result.len() - 8..]));
    lab.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string()]).exits(0);
    (0..REACHING)
        .map(|index| {
            let log = std::fs::read_to_string(out.join(format!("logs/reaching/{index}.jsonl"))).unwrap();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let mut said = lines.filter_map(|line| {
                line["line"].as_str().and_then(|text| text.strip_prefix(what)?.trim().parse::<f64>().ok())
            });
            said.next_back().unwrap_or_else(|| panic!("nobody said {what} in {log}")) / 1_000.0
        })
        .collect()
}

#[test]
fn containers_on_two_lablets_reach_each_other_through_the_delays_of_their_run() {
    engine!();
    let lab = Lab::start_with_docker(2);
    let clean = lab.run(&["run", &plan(&lab), "--json"]).exits(0).last_json();
    assert_eq!((&clean["verdict"], &clean["ok"]), (&Value::from("pass"), &Value::from(REACHING + 1)));
    let result = clean["result"].as_str().unwrap();
    let all = receipts(&lab, result);
    let lablets: BTreeSet<String> = all.iter().map(|receipt| receipt["lablet"].to_string()).collect();
    assert_eq!(lablets.len(), 2, "they are on both");
    for receipt in &all {
        let network = &receipt["network"];
        assert!(network["up"][0]["delivered"].as_u64().unwrap() > 10, "{receipt}");
        assert_eq!((&network["spoofed"], &network["cell"]["relayed"]), (&Value::from(0), &Value::from(0)));
    }

    // The same run, 50 ms between any two.
    let class = AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu: 1500 };
    let network = NetworkModel {
        regions: vec!["here".to_owned()],
        delays_us: vec![vec![50_000]],
        access: BTreeMap::from([("line".to_owned(), class)]),
        groups: BTreeMap::new(),
    };
    let run = in_a_network(&lab, &format!("{result}/run"), network);
    let slow = lab.run(&["run", &run, "--json"]).exits(0).last_json();
    assert_eq!(slow["verdict"], "pass");
    let result = slow["result"].as_str().unwrap();
    for what in ["datagram", "echo"] {
        for ms in took(&lab, result, what) {
            assert!((100.0..150.0).contains(&ms), "{what}: {ms} ms there and back");
        }
    }
    for receipt in receipts(&lab, result) {
        assert_eq!(receipt["network"]["cell"]["overdue"], 0, "the way between the two is shorter: {receipt}");
    }
}
