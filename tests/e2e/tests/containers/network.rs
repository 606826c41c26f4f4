//! Containers on several lablets reach each other over the lab network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use iptl_dag::model::{self, AccessClass, IpModel, LinkModel, Network, NetworkModel, Node, Run};
use iptl_dag::{Block, car, codec};
use iptl_e2e::{Foreground, Home, Lab, Output, docker_is_required, repository, run, until, without_tun};
use iptl_labnet::{Access, RealmId, Topology};
use iptl_labnet_tun::Namespace;
use serde_json::Value;

/// Instances that reach the one that answers.
const REACHING: u64 = 3;

/// A lab, however it was made.
pub(super) trait AnyLab {
    fn run(&self, args: &[&str]) -> Output;
    fn path(&self) -> &Path;
}

impl AnyLab for Lab {
    fn run(&self, args: &[&str]) -> Output {
        Lab::run(self, args)
    }

    fn path(&self) -> &Path {
        Lab::path(self)
    }
}

impl AnyLab for Home {
    fn run(&self, args: &[&str]) -> Output {
        Home::run(self, args)
    }

    fn path(&self) -> &Path {
        Home::path(self)
    }
}

/// Builds the program of the Docker runner's tests.
pub(super) fn program() -> PathBuf {
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
fn plan(lab: &dyn AnyLab) -> String {
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
pub(super) fn receipts(lab: &dyn AnyLab, result: &str) -> Vec<Value> {
    let attestation = lab.run(&["dag", "get", &format!("{result}/attestation")]).exits(0).json();
    let of = |node: &Value| node.as_object().unwrap().values().next().unwrap().clone();
    let shards = of(&attestation)["body"]["receipts"].as_array().unwrap().clone();
    let all = shards.iter().flat_map(|link| {
        let shard = lab.run(&["dag", "get", link["/"].as_str().unwrap()]).exits(0).json();
        of(&shard)["receipts"].as_array().unwrap().clone()
    });
    all.map(|signed| signed["body"].clone()).collect()
}

/// Tells whether all but a few packets, which a busy machine may have kept, came within their delay.
fn in_time(receipts: &[Value]) -> bool {
    let sum = |of: &dyn Fn(&Value) -> u64| receipts.iter().map(|receipt| of(&receipt["network"])).sum::<u64>();
    let down = sum(&|network| network["down"][0]["delivered"].as_u64().unwrap());
    let overdue = sum(&|network| network["cell"]["overdue"].as_u64().unwrap());
    overdue * 20 < down
}

/// Puts blocks into the store of a lab's orchestrator.
fn import(lab: &dyn AnyLab, blocks: &[Block]) {
    let mut bytes = car::header(&[*blocks.last().unwrap().cid()]);
    blocks.iter().for_each(|block| bytes.extend(car::frame(block)));
    let path = lab.path().join("blocks.car");
    std::fs::write(&path, bytes).unwrap();
    lab.run(&["import", &path.display().to_string()]).exits(0);
}

/// Returns a run that is another but for its network.
fn in_a_network(lab: &dyn AnyLab, run: &str, network: NetworkModel) -> String {
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

/// Returns a run that is another but for bearing slow ways.
fn bearing(lab: &dyn AnyLab, run: &str) -> String {
    let shown = lab.run(&["dag", "get", run]).exits(0).stdout;
    let value = codec::from_dag_json(shown.trim().as_bytes()).unwrap();
    let mut run: Run = model::from_bytes(&codec::encode(&value)).unwrap();
    run.placing.slow_ways = true;
    let run = Node::from(run).to_block();
    let cid = run.cid().to_string();
    import(lab, &[run]);
    cid
}

/// Returns what the instances said that something took, in milliseconds.
fn took(lab: &dyn AnyLab, result: &str, what: &str) -> Vec<f64> {
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

/// Describes a network in which any two are so far apart.
fn apart(delay_us: u64) -> NetworkModel {
    let class = AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu: 1500 };
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["here".to_owned()],
        delays_us: vec![vec![delay_us]],
        access: BTreeMap::from([("line".to_owned(), class)]),
        groups: BTreeMap::new(),
    }
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

    // The same run, 50 ms between any two. Where this machine is too busy to keep to that, the result says so, and the
    // run is made again.
    let run = in_a_network(&lab, &format!("{result}/run"), apart(50_000));
    let result = (0..4)
        .find_map(|_| {
            let slow = lab.run(&["run", &run, "--json"]).exits(0).last_json();
            assert_eq!(slow["verdict"], "pass");
            let result = slow["result"].as_str().unwrap().to_owned();
            in_time(&receipts(&lab, &result)).then_some(result)
        })
        .expect("the way between the two is shorter than what is asked for");
    for what in ["datagram", "echo"] {
        // Each knows the other's clock to within a part of the round trip of 20 ms between them: a twentieth is allowed.
        // What a busy machine adds to one of them is no part of the way.
        let times = took(&lab, &result, what);
        let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((99.0..150.0).contains(&fastest), "{what}: {times:?} ms there and back");
    }
}

/// Network namespaces, as machines in a network of their own would be, this far from each other.
fn machines(count: u8, delay_ns: u64) -> (iptl_labnet_tun::Network, Vec<(Namespace, Ipv4Addr)>) {
    let mut topology = Topology::new(vec![vec![delay_ns]]).unwrap();
    let mut nodes = Vec::new();
    for number in 1..=count {
        let addr = Ipv4Addr::new(10, 77, 0, number);
        nodes.push((topology.add_node(RealmId::PUBLIC, addr, None, Access::default()).unwrap(), addr));
    }
    crate::machines::machines(topology, nodes, 16)
}

#[test]
fn way_between_two_lablets_is_part_of_the_delay_that_a_run_asks_for() {
    engine!();
    if let Err(error) = Namespace::empty() {
        assert!(!docker_is_required(), "network namespaces cannot be made: {error}");
        return iptl_e2e::not_run(&format!("network namespaces cannot be made: {error}"));
    }
    // Three machines, 10 ms from each other.
    let (_network, machines) = machines(3, 10_000_000);
    let homes: Vec<Home> = machines.iter().map(|_| Home::new()).collect();
    let mut nodes = Vec::new();
    for (number, (home, (namespace, addr))) in homes.iter().zip(&machines).enumerate() {
        let (quic, tcp) = (format!("/ip4/{addr}/udp/4001/quic-v1"), format!("/ip4/{addr}/tcp/4001"));
        let mut args = vec!["--no-mdns", "--listen", &quic, "--listen", &tcp];
        if number == 0 {
            args.push("--no-docker");
        }
        nodes.push(namespace.run(|| Foreground::again(home.path(), &args)).unwrap());
    }
    let owner = &homes[0];
    owner.run(&["lab", "init", "--name", "far"]).exits(0);
    for (name, home) in ["one", "two"].iter().zip(&homes[1..]) {
        let ticket = owner.run(&["invite", "-q"]).exits(0).word();
        home.run(&["join", &ticket, "--name", name]).exits(0);
    }
    until("two lablets", || {
        let status = owner.run(&["status", "--json"]).json();
        (status["lablets_ready"].as_u64() == Some(2)).then_some(())
    });
    let clean = owner.run(&["run", &plan(owner), "--json"]).exits(0).last_json();
    let result = clean["result"].as_str().unwrap();
    let lablets: BTreeSet<String> = receipts(owner, result).iter().map(|r| r["lablet"].to_string()).collect();
    assert_eq!(lablets.len(), 2, "they are on both");

    let run = in_a_network(owner, &format!("{result}/run"), apart(50_000));
    // Twice 50 ms, and not twice 60: of three runs the fastest datagram, since this machine may be busy with others.
    let mut fastest = f64::INFINITY;
    let mut held = String::new();
    for _ in 0..3 {
        let ended = owner.run(&["run", &run, "--json"]).exits(0).last_json();
        held = ended["result"].as_str().unwrap().to_owned();
        fastest = took(owner, &held, "datagram").into_iter().fold(fastest, f64::min);
        if fastest < 115.0 {
            break;
        }
    }
    assert!((99.5..115.0).contains(&fastest), "{fastest} ms there and back");
    // The stream between the lablets has to grow first: what it holds up of a burst is late, and counted.
    let counted = receipts(owner, &held);
    assert!(counted.iter().all(|receipt| receipt["network"]["cell"]["relayed"] == 0), "the way is direct");

    // The way is in the result, and in the log.
    let shown = owner.run(&["show", &held, "--json"]).exits(0).json();
    let ways = shown["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 2, "each way: {ways:?}");
    for way in ways {
        let measured = way["measured_us"].as_u64().unwrap();
        // Ten there are; a busy machine adds to them, and what is longer than what is asked for is refused.
        assert!((10_000..=50_000).contains(&measured) && way["asked_us"] == 50_000, "{way}");
    }

    // What cannot be had over this way is refused before anything starts.
    let run = in_a_network(owner, &format!("{result}/run"), apart(2_000));
    let refused = owner.run(&["run", &run]).fails(5, "network.too-slow");
    let text = &refused.stderr;
    let ends = [["from one (", "to two ("], ["from two (", "to one ("]];
    assert!(ends.iter().any(|way| way.iter().all(|end| text.contains(end))), "{text}");
    assert!(text.contains("asks for 2.0 ms"), "{text}");

    // Unless it is borne: then it is said.
    let run = bearing(owner, &run);
    let late = owner.run(&["run", &run, "--json"]).exits(0).last_json();
    let shown = owner.run(&["show", late["result"].as_str().unwrap()]).exits(0);
    let text = format!("{}{}", shown.stdout, shown.stderr);
    assert!(text.contains("packets from other lablets took longer than the network's delay"), "{text}");
    drop(nodes);
}

#[test]
fn lablet_that_can_make_no_devices_takes_no_containers_and_says_why() {
    engine!();
    let root = run(Command::new("id").arg("-u")).stdout.trim() == "0";
    if !root {
        return iptl_e2e::not_run("only root may hide devices");
    }
    let (owner, lender) = (Home::new(), Home::new());
    let _orchestrator = Foreground::start(owner.path(), &[]);
    owner.run(&["lab", "init", "--name", "deviceless"]).exits(0);
    let _lablet = Foreground::without_tun(lender.path(), &["--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns"]);
    let ticket = owner.run(&["invite", "-q"]).exits(0).word();
    lender.run(&["join", &ticket, "--name", "lender"]).exits(0);
    until("a lablet", || {
        let status = owner.run(&["status", "--json"]).json();
        (status["lablets_ready"].as_u64() == Some(1)).then_some(())
    });
    let why = "lender: has no docker runner: containers would have no network: /dev/net/tun";
    let refused = owner.run(&["run", &plan(&owner), "--dry-run"]).fails(5, "lab.no-room");
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    let looked = run(&mut without_tun(lender.iptl(&["doctor"]))).stdout;
    let line = looked.lines().position(|line| line.contains("containers would have no network")).expect("a finding");
    assert!(looked.lines().nth(line + 1).is_some_and(|fix| fix.contains("modprobe tun")), "{looked}");
    // What needs no container runs.
    let ping = crate::network::ping_over(owner.path(), "").display().to_string();
    owner.run(&["run", &ping, "--no-build", "-g", "node=2", "-p", "rounds=2"]).exits(0);
}
