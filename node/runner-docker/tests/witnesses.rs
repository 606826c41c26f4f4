//! Programs that know nothing of the lab measure its network, as their packages have them: `ping`, `iperf3`, `curl`, a STUN
//! client and server, and the published JavaScript SDK of Testground on Node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use iptl_dag::model::{
    Container, DependenceModel, Exit, GatewayModel, GroupNetwork, InstanceId, LinkModel, NetworkModel, PortsModel,
    SiteShare,
};
use iptl_runner::contract::{Lab, Outcome, instance};
use iptl_runner::{Artifact, CellSpec, OutputStream};
use tar::{Builder, Header};

use crate::engine;
use crate::network::{delay, network};
use crate::support::{Bench, artifact, not_run, until};

/// What the packages have that `cargo xtask setup` installs.
const TOOLS: [&str; 5] = ["ping", "iperf3", "curl", "stun", "stund"];

/// Returns a program of this machine.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Puts files into the layer of an image.
struct Image {
    layer: Builder<Vec<u8>>,
    has: BTreeSet<PathBuf>,
}

impl Image {
    fn new() -> Image {
        Image { layer: Builder::new(Vec::new()), has: BTreeSet::new() }
    }

    /// Adds a file of this machine under a path of its own, once.
    fn file(&mut self, from: &Path, to: &Path) {
        if !self.has.insert(to.to_owned()) {
            return;
        }
        let bytes = std::fs::read(from).unwrap();
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        self.layer.append_data(&mut header, to.strip_prefix("/").unwrap(), &bytes[..]).unwrap();
    }

    /// Adds a program of this machine with all that it loads.
    fn program(&mut self, name: &str) {
        let path = find(name).unwrap();
        self.file(&path, &Path::new("/bin").join(name));
        let loads = Command::new("ldd").arg(&path).output().unwrap();
        for line in String::from_utf8(loads.stdout).unwrap().lines() {
            // `name => /path (address)`, or the loader without an arrow.
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.file(Path::new(library), Path::new(library));
            }
        }
    }

    /// Adds a folder of this machine, without its links.
    fn folder(&mut self, from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => self.folder(&from, &to),
                kind if kind.is_file() => self.file(&from, &to),
                _ => {}
            }
        }
    }

    fn save(self, name: &str) -> Artifact {
        let layer = self.layer.into_inner().unwrap();
        artifact(name, &layer, &serde_json::json!({ "Env": ["PATH=/bin"] }), "amd64")
    }
}

/// Returns the image with the tools and a shell; none where one is missing, which was said then.
#[track_caller]
fn tools() -> Option<Artifact> {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    let missing: Vec<&str> = TOOLS.into_iter().filter(|name| find(name).is_none()).collect();
    if !missing.is_empty() {
        not_run(&format!("{} missing: run `cargo xtask setup`", missing.join(", ")));
        return None;
    }
    let made = ARTIFACT.get_or_init(|| {
        let mut image = Image::new();
        TOOLS.into_iter().chain(["sh", "timeout"]).for_each(|name| image.program(name));
        image.save("tools")
    });
    Some(made.clone())
}

/// Returns the image with Node and the program on the JavaScript SDK; none where there is no Node, which was said then.
#[track_caller]
fn node() -> Option<Artifact> {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    if find("node").is_none() {
        not_run("node is missing: run `cargo xtask setup`");
        return None;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the build folder");
    let packages = target.join("interop/js/node_modules");
    assert!(packages.is_dir(), "{} is missing: run `cargo xtask witnesses`", packages.display());
    let made = ARTIFACT.get_or_init(|| {
        let mut image = Image::new();
        image.program("node");
        image.folder(&packages, Path::new("/node_modules"));
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/js/main.js");
        image.file(&program, Path::new("/main.js"));
        image.save("node")
    });
    Some(made.clone())
}

/// Makes a cell of instances that have these programs; the first is the one that others reach.
fn cell(bench: &Bench, network: Option<NetworkModel>, programs: &[(&Artifact, &[&str])]) -> CellSpec {
    let args: Vec<&[&str]> = programs.iter().map(|(_, args)| *args).collect();
    let mut cell = CellSpec { network, ..bench.cell(&Container::usual(), &args) };
    for (instance, (artifact, _)) in cell.instances.iter_mut().zip(programs) {
        instance.artifact = (*artifact).clone();
        instance.limits.memory_bytes = 256 << 20;
        instance.limits.output_bytes = 4 << 20;
    }
    cell
}

/// Runs a cell until some of it have ended; the others are told to.
async fn run_until(bench: &Bench, cell: CellSpec, last: &[InstanceId]) -> Outcome {
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "the witnesses are done", |o| last.iter().all(|id| o.ended.contains_key(id))).await;
    lab.control.stop("the witnesses are done".to_owned()).await;
    lab.finish().await
}

/// Returns what an instance wrote, and checks that it succeeded.
#[track_caller]
fn wrote(outcome: &Outcome, index: u32) -> String {
    let (out, err) = (outcome.lines(index, OutputStream::Out), outcome.lines(index, OutputStream::Err));
    assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "{out:#?} {err:#?}");
    out.join("\n")
}

#[tokio::test]
async fn ping_measures_twice_the_delay_that_is_asked_for() {
    let bench = engine!();
    let Some(tools) = tools() else { return };
    let described = network(20_000, LinkModel::default(), LinkModel::default());
    let programs: [(&Artifact, &[&str]); 2] = [
        (&tools, &["stund", "-h", "10.0.0.1", "-a", "127.0.0.1"]),
        (&tools, &["ping", "-n", "-c", "20", "-i", "0.2", "g-0"]),
    ];
    let outcome = run_until(&bench, cell(&bench, Some(described), &programs), &[instance(1)]).await;
    let said = wrote(&outcome, 1);
    assert!(said.contains("20 packets transmitted, 20 received, 0% packet loss"), "{said}");
    // rtt min/avg/max/mdev = 40.068/40.123/40.211/0.030 ms
    let times = said.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = ")).expect("ping sums up");
    let shortest: f64 = times.split('/').next().unwrap().parse().unwrap();
    assert!((40.0..41.0).contains(&shortest), "{times}");
    bench.close().await;
}

/// Returns the bits per second that iperf3's server says that it received.
fn received(said: &str) -> f64 {
    let said: serde_json::Value = serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"));
    said["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{said}"))
}

#[tokio::test]
async fn iperf3_receives_10_mbit_per_second_of_packets_over_a_link_of_that_rate() {
    const RATE: f64 = 10_000_000.0;
    let bench = engine!();
    let Some(tools) = tools() else { return };
    let up = LinkModel { rate_bps: RATE as u64, queue_bytes: 64 << 10, ..delay(1_000) };
    // Twice of what goes through; bits of payload are what iperf3 counts.
    let over_udp: &[&str] = &["-u", "-b", "20M", "-l", "1472", "-t", "5"];
    let over_tcp: &[&str] = &["-t", "5"];
    // Payload of a packet of 1500 bytes: behind heads of IP and UDP; of IP and TCP with its times.
    for (how, payload) in [(over_udp, 1472.0), (over_tcp, 1448.0)] {
        let client = format!("until iperf3 -c g-0 {}; do :; done", how.join(" "));
        let programs: [(&Artifact, &[&str]); 2] =
            [(&tools, &["iperf3", "-s", "-1", "-J", "-i", "0"]), (&tools, &["sh", "-c", &client])];
        // More than the rate never comes. Less does where a busy machine keeps a program from sending for a moment: then it is
        // asked again, and a few per cent are the machine's.
        let mut rates: Vec<f64> = Vec::new();
        while rates.len() < 4 && rates.last().is_none_or(|rate| rate / RATE < 0.995) {
            let described = network(0, up, delay(1_000));
            let both = [instance(0), instance(1)];
            let outcome = run_until(&bench, cell(&bench, Some(described), &programs), &both).await;
            rates.push(received(&wrote(&outcome, 0)) * 1500.0 / payload);
        }
        println!("iperf3 {}: {rates:.0?} bit/s at the receiver", how.join(" "));
        assert!(rates.iter().all(|rate| rate / RATE <= 1.005), "{how:?}: {rates:?} bit/s");
        assert!(rates.iter().any(|rate| rate / RATE >= 0.95), "{how:?}: {rates:?} bit/s");
    }
    bench.close().await;
}

#[tokio::test]
async fn curl_fetches_from_a_server_over_http() {
    const SERVER: &str = "require('http').createServer((_, to) => to.end('x'.repeat(1e6))).listen(8000)";
    let bench = engine!();
    let (Some(tools), Some(node)) = (tools(), node()) else { return };
    let fetch = ["curl", "--silent", "--show-error", "--retry", "100", "--retry-connrefused", "--retry-delay", "1"];
    let told = ["--output", "/dev/null", "--write-out", "%{http_code} %{size_download} %{time_connect}"];
    let fetch = [&fetch[..], &told, &["http://0.g.lab:8000/"]].concat();
    let programs: [(&Artifact, &[&str]); 2] = [(&node, &["node", "-e", SERVER]), (&tools, &fetch)];
    let described = network(20_000, LinkModel::default(), LinkModel::default());
    let outcome = run_until(&bench, cell(&bench, Some(described), &programs), &[instance(1)]).await;
    let said = wrote(&outcome, 1);
    let [code, size, connected] = said.split(' ').collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert_eq!((code, size), ("200", "1000000"));
    let connected: f64 = connected.parse().unwrap();
    assert!((0.040..0.080).contains(&connected), "a connection takes a round trip: {connected} s");
    bench.close().await;
}

#[tokio::test]
async fn stun_client_sees_the_public_address_of_its_nat_and_whether_it_depends_on_the_server() {
    let bench = engine!();
    let Some(tools) = tools() else { return };
    let mut described = network(1_000, LinkModel::default(), LinkModel::default());
    for (group, mapping) in [("home", DependenceModel::Endpoint), ("mobile", DependenceModel::AddressPort)] {
        let sites = vec![SiteShare {
            weight: 1,
            gateways: vec![GatewayModel {
                mapping,
                ports: PortsModel::Random,
                hairpin: false,
                ..GatewayModel::default()
            }],
        }];
        let model = GroupNetwork { regions: BTreeMap::new(), access: BTreeMap::new(), sites, per: 1 };
        described.groups.insert(group.to_owned(), model);
    }
    // From one port to two servers. Each is asked until it listens: the client sends once, and waits for ever.
    let ask = |server: &str| format!("until timeout 1 stun {server} 1 -v -p 40000 2>&1 | {FIND}; do :; done");
    let client = format!("{}; {}", ask("10.0.0.1"), ask("10.0.0.2"));
    let client: &[&str] = &["sh", "-c", &client];
    let server: [&[&str]; 2] =
        [&["stund", "-h", "10.0.0.1", "-a", "127.0.0.1"], &["stund", "-h", "10.0.0.2", "-a", "127.0.0.1"]];
    let programs = [(&tools, server[0]), (&tools, server[1]), (&tools, client), (&tools, client)];
    let mut cell = cell(&bench, Some(described), &programs);
    cell.groups = [("g", 2), ("home", 1), ("mobile", 1)].map(|(name, size)| (name.to_owned(), size)).into();
    let clients = ["home", "mobile"].map(|group| InstanceId { group: group.to_owned(), index: 0 });
    cell.instances[2].id = clients[0].clone();
    cell.instances[3].id = clients[1].clone();
    let outcome = run_until(&bench, cell, &clients).await;
    let mapped = clients.map(|client| {
        let lines: Vec<&String> =
            outcome.output.iter().filter(|(id, ..)| *id == client).map(|(_, _, line)| line).collect();
        assert_eq!(outcome.ended[&client].exit, Exit::Exited { code: 0 }, "{lines:?}");
        let mapped = lines.iter().filter_map(|line| line.strip_prefix("MappedAddress = ")?.rsplit_once(':'));
        let mapped: Vec<(String, u16)> = mapped.map(|(addr, port)| (addr.to_owned(), port.parse().unwrap())).collect();
        assert_eq!(mapped.len(), 2, "{lines:?}");
        [mapped[0].clone(), mapped[1].clone()]
    });
    let [home, mobile] = mapped;
    // NATs have addresses in the order of groups.
    assert!(home.iter().all(|(addr, _)| addr == "172.16.0.1"), "{home:?}");
    assert!(mobile.iter().all(|(addr, _)| addr == "172.16.0.2"), "{mobile:?}");
    assert_eq!(home[0], home[1], "one mapping for whomever it talks to");
    assert_ne!(mobile[0].1, mobile[1].1, "a mapping for each whom it talks to");
    bench.close().await;
}

/// Shell that passes on what says an address, and succeeds where something does.
const FIND: &str = r#"(found=1; while read -r line; do case "$line" in MappedAddress*) echo "$line"; found=0;; esac; done; exit $found)"#;

#[tokio::test]
async fn network_of_a_program_on_the_published_javascript_sdk_is_as_it_asks() {
    let bench = engine!();
    let Some(node) = node() else { return };
    let program: (&Artifact, &[&str]) = (&node, &["node", "/main.js"]);
    let mut cell = cell(&bench, None, &[program, program]);
    cell.case = "shape".to_owned();
    let outcome = bench.run(cell).await;
    let lines = outcome.lines(1, OutputStream::Out);
    for index in 0..2 {
        assert_eq!(outcome.exit(index), &Exit::Reported { code: 0, failure: None }, "{lines:#?}");
    }
    let said = |what: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {what} in {lines:#?}")).to_owned()
    };
    let ms = |what: &str| said(what).parse::<f64>().unwrap_or_else(|e| panic!("{what}: {e}: {lines:#?}"));
    assert_eq!(said("address"), "10.0.0.2");
    assert!(ms("clean") < 20.0 && ms("clear") < 20.0, "{lines:#?}");
    assert!((100.0..120.0).contains(&ms("slow")), "{lines:#?}");
    assert_eq!((said("lossy"), said("off")), ("silence".to_owned(), "silence".to_owned()));
    bench.close().await;
}
