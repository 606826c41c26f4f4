//! Programs that know nothing of this crate, as instances: on the published SDKs of Testground for Rust and JavaScript,
//! on the native back end of our own SDK, and what a program on the Go SDK puts on the wire.
//!
//! They are built by `cargo xtask witnesses`, which `cargo xtask test` does too. The Rust SDK finds its sync service by
//! a name and a port that cannot be changed; so its instances get a mount namespace with a hosts file of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU8, Ordering};

use iptl_dag::Cid;
use iptl_dag::model::{Exit, Resources, WorkloadKind};
use iptl_labnet::{Filter, Shape, Wish};
use iptl_runner::cell::Origin;
use iptl_runner::{Addrs, Artifact, CellSpec, InstanceSpec};
use iptl_sync::{Reply, SyncOp};
use iptl_testground::{SYNC_HOST, SYNC_PORT, Setting, environment, read_outputs};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::go::{Client, Heard};
use crate::lab::{Lab, NAMES, PATIENCE, instance};

/// What an instance left.
#[derive(Debug)]
struct Left {
    exit: Exit,
    log: Vec<String>,
    errors: String,
    events: String,
    metrics: String,
    outputs: tempfile::TempDir,
}

/// What starts a program.
#[derive(Clone)]
struct Witness {
    command: Vec<String>,
    /// Whether it needs names: of the service, at its fixed port, and of other instances.
    by_name: bool,
    /// Folder of packages for Node.
    packages: Option<PathBuf>,
}

/// Returns a file that `cargo xtask witnesses` makes.
fn built(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the build folder");
    let path = target.join("interop").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask witnesses`", path.display());
    path
}

fn rust() -> Witness {
    let program = built("rust/x86_64-unknown-linux-musl/release/witness-rust");
    Witness { command: vec![program.display().to_string()], by_name: true, packages: None }
}

fn native() -> Witness {
    let program = built("native/release/witness-native");
    Witness { command: vec![program.display().to_string()], by_name: false, packages: None }
}

/// The plan that ships, compiled for the machine.
fn ping() -> Witness {
    let program = built("ping/release/ping");
    Witness { command: vec![program.display().to_string()], by_name: true, packages: None }
}

fn js() -> Witness {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/js/main.js");
    let command = vec!["node".to_owned(), program.display().to_string()];
    Witness { command, by_name: false, packages: Some(built("js/node_modules")) }
}

/// Runs so many instances of a case together, to their ends.
async fn run(lab: &Lab, witness: &Witness, case: &str, count: u32) -> Vec<Left> {
    let addresses = addresses(count);
    let instances = (0..count).map(|index| run_one(lab, witness, case, index, &addresses));
    futures::future::join_all(instances).await
}

async fn run_one(lab: &Lab, witness: &Witness, case: &str, index: u32, addresses: &[Ipv4Addr]) -> Left {
    let outputs = tempfile::tempdir().unwrap();
    let temp = tempfile::tempdir().unwrap();
    let port = if witness.by_name { SYNC_PORT } else { 0 };
    let service = lab.serve_case_on(index, case, (addresses[index as usize], port).into());
    let setting = setting(index, service, outputs.path(), temp.path());
    let names = witness.by_name.then(|| hosts(service.ip(), addresses));
    let mut command = launch(witness, names, temp.path());
    command.envs(variables(case, index, addresses.len() as u32, &setting));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", witness.command));

    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stderr = child.stderr.take().unwrap();
    let (mut log, mut errors) = (Vec::new(), String::new());
    let ended = async {
        let out = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                log.extend(lab.journal(index, |journal| journal.line(0, &line).map(|text| text.into_owned())));
            }
        };
        let (_, err, status) = tokio::join!(out, stderr.read_to_string(&mut errors), child.wait());
        err.unwrap();
        status.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, ended).await;
    let status = status.unwrap_or_else(|_| panic!("instance {index} of {case} does not end"));
    lab.finish(index).await;
    let (events, metrics) = lab.journal(index, |journal| {
        read_outputs(outputs.path(), journal, 0).unwrap();
        journal.finish();
        (journal.take_events(), journal.take_metrics())
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let exit = lab.exit(index, status.code().unwrap_or(-1));
    Left { exit, log, errors, events: text(events), metrics: text(metrics), outputs }
}

/// Returns addresses of loopback that nobody else in this process or another run of it has.
fn addresses(count: u32) -> Vec<Ipv4Addr> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low, ..] = (std::process::id() as u16).to_be_bytes();
    (0..count).map(|_| Ipv4Addr::new(127, high.max(1), low, NEXT.fetch_add(1, Ordering::Relaxed))).collect()
}

/// Writes the names that a lab gives: the service, and the instances of group `g`.
fn hosts(service: IpAddr, addresses: &[Ipv4Addr]) -> String {
    let instances = addresses.iter().enumerate().map(|(index, address)| format!("{address} g-{index}\n"));
    format!("127.0.0.1 localhost\n{service} {SYNC_HOST}\n{}", instances.collect::<String>())
}

/// Makes the command of an instance; where it needs names, in a namespace with a hosts file that has them.
fn launch(witness: &Witness, hosts: Option<String>, temp: &Path) -> Command {
    let mut line: Vec<String> = Vec::new();
    if let Some(hosts) = hosts {
        let file = temp.join("hosts");
        std::fs::write(&file, hosts).unwrap();
        line.push("unshare".into());
        if !is_root() {
            line.push("--map-root-user".into());
        }
        let inside = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
        line.extend(["--mount", "--", "sh", "-ec", inside, "sh"].map(str::to_owned));
        line.push(file.display().to_string());
    }
    line.extend(witness.command.iter().cloned());
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).current_dir(temp).kill_on_drop(true);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if let Some(packages) = &witness.packages {
        command.env("NODE_PATH", packages);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0)
}

fn setting(index: u32, service: SocketAddr, outputs: &Path, temp: &Path) -> Setting {
    Setting {
        plan: NAMES[1].to_owned(),
        ordinal: index,
        addrs: match service.ip() {
            IpAddr::V4(address) => Addrs { v4: Some(address), v6: None },
            IpAddr::V6(address) => Addrs { v4: None, v6: Some(address) },
        },
        subnet: "127.0.0.0/8".to_owned(),
        hostname: format!("g-{index}"),
        sync_host: service.ip().to_string(),
        sync_port: service.port(),
        outputs: outputs.to_owned(),
        temp: temp.to_owned(),
        start_time: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn variables(case: &str, index: u32, count: u32, setting: &Setting) -> std::collections::BTreeMap<String, String> {
    let spec = InstanceSpec {
        id: instance(index),
        kind: WorkloadKind::Docker,
        artifact: Artifact { cid: Cid::default(), path: PathBuf::new() },
        args: Vec::new(),
        env: Default::default(),
        limits: Resources::default(),
        attempt: 1,
        start_after_ms: 0,
        container: None,
        capture: false,
    };
    let params = [
        ("greeting", "hello"),
        ("odd", "a=b"),
        ("rounds", "4"),
        // Those of the plan ping, as a lab writes them.
        ("peers", "32"),
        ("interval", "1"),
        ("payload", "64"),
        ("patience", "20000"),
        ("udp-timeout", "1000"),
    ];
    let cell = CellSpec {
        name: "x-test".into(),
        seed: 7,
        run_id: NAMES[0].into(),
        plan: NAMES[1].into(),
        case: case.into(),
        params: params.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        groups: [("g".to_owned(), count)].into(),
        network: None,
        mixed: false,
        faults: Vec::new(),
        instances: vec![spec.clone()],
        scratch: PathBuf::new(),
        origin: Origin::default(),
    };
    environment(&cell, &spec, setting)
}

fn reported(code: i32, failure: Option<&str>) -> Exit {
    Exit::Reported { code, failure: failure.map(str::to_owned) }
}

#[tokio::test]
async fn rust_program_gets_parameters_meets_others_and_succeeds() {
    let lab = Lab::new(3);
    for (index, left) in run(&lab, &rust(), "tour", 3).await.into_iter().enumerate() {
        assert_eq!(left.exit, reported(0, None), "{left:?}");
        let expected = [format!("hello from g-{index}, with a=b"), "saw [1, 2, 3]".to_owned()];
        for line in expected {
            assert!(left.log.contains(&line), "{line}: {left:?}");
        }
        for event in ["stage_start_event", "stage_end_event", "message_event", "success_event"] {
            assert!(left.events.contains(event), "{event}: {left:?}");
        }
        assert_eq!(left.events.matches("success_event").count(), 1, "{left:?}");
    }
}

/// The second instance is one of another kind, such as Wasm: it knows bare names and bytes alone.
#[tokio::test]
async fn rust_program_shares_states_and_topics_with_groups_of_other_kinds() {
    let lab = Lab::new(2);
    let other = async {
        let signal_and_wait = |state: &str| SyncOp::SignalAndWait { state: state.to_owned(), target: 2 };
        assert!(matches!(lab.ask(1, signal_and_wait("initialized_global"), 1).await[..], [Reply::Opened { .. }]));
        assert!(matches!(lab.ask(1, signal_and_wait("initialized_group_g"), 1).await[..], [Reply::Opened { .. }]));
        let places = lab.ask(1, SyncOp::Subscribe { topic: "places".into() }, 1).await;
        let [Reply::Message { position: 1, payload }] = &places[..] else { panic!("{places:?}") };
        let place: serde_json::Value = serde_json::from_slice(payload).unwrap();
        assert_eq!(place["host"], "g-0");
        let free = 3 - place["seq"].as_u64().unwrap();
        lab.publish(1, "places", format!("{{\"seq\":{free}}}")).await;
        assert!(matches!(lab.ask(1, signal_and_wait("seen"), 1).await[..], [Reply::Opened { .. }]));
    };
    let witness = rust();
    let addresses = addresses(2);
    let (left, ()) = tokio::join!(run_one(&lab, &witness, "tour", 0, &addresses), other);
    assert_eq!(left.exit, reported(0, None), "{left:?}");
    assert!(left.log.contains(&"saw [1, 2]".to_owned()), "{left:?}");
}

#[tokio::test]
async fn rust_program_that_says_that_it_failed_has_failed() {
    let lab = Lab::new(1);
    let left = run(&lab, &rust(), "fail", 1).await.remove(0);
    assert_eq!(left.exit, reported(0, Some("as it was told")), "{left:?}");
    let lab = Lab::new(1);
    let left = run(&lab, &rust(), "panic", 1).await.remove(0);
    assert_eq!(left.exit, reported(101, Some("it ended without saying that it succeeded")), "{left:?}");
}

#[tokio::test]
async fn javascript_program_gets_parameters_meets_others_and_succeeds() {
    let lab = Lab::new(3);
    for left in run(&lab, &js(), "tour", 3).await {
        assert_eq!(left.exit, reported(0, None), "{left:?}");
        for line in ["hello from g", "saw [1,2,3]"] {
            assert!(left.log.iter().any(|logged| logged == line), "{line}: {left:?}");
        }
        for event in ["start_event", "message_event", "success_event"] {
            assert!(left.events.contains(event), "{event}: {left:?}");
        }
        // It says each on stdout and to the sync service.
        assert_eq!(left.events.matches("success_event").count(), 1, "{left:?}");
        assert_eq!(left.events.matches("message_event").count(), 2, "{left:?}");
        let copy = std::fs::read_to_string(left.outputs.path().join("run.out")).unwrap();
        assert!(copy.contains("success_event"), "{copy}");
    }
}

#[tokio::test]
async fn javascript_program_that_fails_with_status_zero_has_failed() {
    let lab = Lab::new(1);
    let left = run(&lab, &js(), "fail", 1).await.remove(0);
    assert_eq!(left.exit, reported(0, Some("Error: as it was told")), "{left:?}");
    let lab = Lab::new(1);
    let left = run(&lab, &js(), "silent", 1).await.remove(0);
    assert_eq!(left.exit, reported(0, Some("it ended without saying that it succeeded")), "{left:?}");
}

#[tokio::test]
async fn plan_compiled_natively_does_all_that_the_sdk_has() {
    let lab = Lab::new(3);
    for left in run(&lab, &native(), "tour", 3).await {
        assert_eq!((&left.exit, left.errors.as_str()), (&Exit::Exited { code: 0 }, ""), "{left:?}");
        assert_eq!(left.log, ["done"]);
        assert!(left.events.contains(r#""name":"started","data":{"ordinal":"#), "{left:?}");
        assert!(left.events.contains(r#""name":"done","data":null}"#), "{left:?}");
        assert!(left.metrics.contains(r#""name":"tour.rounds","value":4.0,"unit":"rounds"}"#), "{left:?}");
        let notes = std::fs::read_to_string(left.outputs.path().join("notes/tour.txt")).unwrap();
        assert_eq!(notes, "first\nsecond\n");
    }
    // Others of the run got the very bytes.
    let last = Lab::new(2);
    run_one(&last, &native(), "quiet", 0, &addresses(2)).await;
    assert_eq!(last.ask(1, SyncOp::Signal { state: "left".into() }, 1).await, [Reply::Signalled { seq: 2 }]);
}

/// Names and sockets are the machine's own here, as they are the lab network's in a lab.
#[tokio::test]
async fn plan_that_ships_runs_natively_as_well() {
    let lab = Lab::new(3);
    for left in run(&lab, &ping(), "mesh", 3).await {
        assert_eq!((&left.exit, left.errors.as_str()), (&Exit::Exited { code: 0 }, ""), "{left:?}");
        assert!(left.events.contains(r#""name":"pinged","data":{"tcp":8,"udp":8,"#), "{left:?}");
        assert_eq!(left.metrics.matches(r#""name":"ping.tcp.rtt""#).count(), 8, "{left:?}");
        assert!(left.metrics.contains(r#""unit":"ms""#), "{left:?}");
    }
}

#[tokio::test]
async fn plan_compiled_natively_has_its_network_shaped() {
    let lab = Lab::new(1);
    let answering = async {
        let (wish, asked) = lab.wish().await;
        let shape = Shape { latency_ns: 50_000_000, jitter_ns: 1_000, loss_ppm: 1, ..Shape::default() };
        let none = Shape { filter: Filter::Drop, bandwidth_bps: 1_000_000, ..Shape::default() };
        let rules = BTreeMap::from([("10.9.0.0/16".parse().unwrap(), none)]);
        assert_eq!(wish, Wish { enabled: true, shape, rules });
        asked.in_force();
        // What it asked for in between was refused before it came here.
        let (wish, asked) = lab.wish().await;
        assert_eq!(wish, Wish { enabled: false, ..Wish::default() });
        assert_eq!(lab.refused(), ["a rule: \"nowhere\" is no subnet of IPv4, as 10.0.0.0/24 is one"]);
        asked.in_force();
    };
    let (witness, addresses) = (native(), addresses(1));
    let (left, ()) = tokio::join!(run_one(&lab, &witness, "shape", 0, &addresses), answering);
    assert_eq!((&left.exit, left.errors.as_str()), (&Exit::Exited { code: 0 }, ""), "{left:?}");
}

#[tokio::test]
async fn plan_compiled_natively_sees_that_its_lab_is_gone() {
    let lab = Lab::new(1);
    let witness = native();
    let ending = async {
        lab.called().await;
        lab.drop_server(0);
    };
    let outputs = tempfile::tempdir().unwrap();
    let temp = tempfile::tempdir().unwrap();
    let address = lab.serve_case_on(0, "stall", (Ipv4Addr::LOCALHOST, 0).into());
    let setting = setting(0, address, outputs.path(), temp.path());
    let mut command = launch(&witness, None, temp.path());
    command.envs(variables("stall", 0, 1, &setting));
    let (output, ()) = tokio::join!(command.output(), ending);
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the lab is gone"), "{output:?}");

    // Nobody listens any more.
    let mut command = launch(&witness, None, temp.path());
    let output = command.envs(variables("stall", 0, 1, &setting)).output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not listen"), "{output:?}");
    // And there is no lab at all.
    let output = launch(&witness, None, temp.path()).output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not started by a lab"), "{output:?}");
}

/// What a plan on the Go SDK sends between its start and its end, in this order.
#[tokio::test]
async fn go_program_is_answered_from_its_start_to_its_end() {
    let lab = Lab::new(2);
    let [run, plan, case] = NAMES;
    let mut clients = Vec::new();
    for index in 0..2 {
        clients.push(Client::connect(lab.serve(index)).await);
    }
    let event = |event: &str| {
        format!("\"publish\":{{\"topic\":\"run:{run}:plan:{plan}:case:{case}:run_events\",\"payload\":{event}}}")
    };
    for client in &mut clients {
        let stage = r#"{"stage_start_event":{"name":"network-initialized","group":"g"}}"#;
        assert_eq!(client.ask(&event(stage)).await["error"], "");
        client.barrier("network-initialized", 2).await;
        assert_eq!(client.reply().await["error"], "");
        let stage = r#"{"stage_end_event":{"name":"network-initialized","group":"g"}}"#;
        assert_eq!(client.ask(&event(stage)).await["error"], "");
    }
    for (client, number) in clients.iter_mut().zip(1..) {
        assert_eq!(client.signal("initialized_global").await, number);
        assert_eq!(client.signal("initialized_group_g").await, number);
    }
    let outcomes =
        [r#"{"success_event":{"group":"g"}}"#, r#"{"crash_event":{"group":"g","error":"boom","stacktrace":""}}"#];
    for (mut client, outcome) in clients.into_iter().zip(outcomes) {
        assert_eq!(client.ask(&event(outcome)).await["error"], "");
        assert_eq!(client.close().await, Heard::Closed(1000, String::new()));
    }
    // All events carry the same group; whose they are is known by the listener.
    assert_eq!(lab.exit(0, 0), reported(0, None));
    assert_eq!(lab.exit(1, 0), reported(0, Some("crash: boom")));
}
