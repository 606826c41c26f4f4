//! Networks of plans: what instances measure is what the plan asked for, and what a lab cannot carry is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use iptl_e2e::{Home, Lab, Output, repository};
use serde_json::{Value, json};

/// Writes a plan that runs `ping` over a network, and returns its folder.
pub(super) fn ping_over(dir: &Path, network: &str) -> PathBuf {
    let dir = dir.join("plan");
    std::fs::create_dir_all(&dir).unwrap();
    let program = repository().join("plans/ping/target/wasm32-wasip2/release/ping.wasm");
    std::fs::copy(&program, dir.join("ping.wasm")).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let manifest = std::fs::read_to_string(repository().join("plans/ping/plan.toml")).unwrap();
    let (head, _) = manifest.split_once("[[cases.mesh.thresholds]]").unwrap();
    let head = head.replace("target/wasm32-wasip2/release/ping.wasm", "ping.wasm");
    std::fs::write(dir.join("plan.toml"), format!("{head}\n{network}")).unwrap();
    dir
}

/// Two regions 50 ms apart; with two instances there is one in each.
const APART: &str = r#"
[network]
regions = ["east", "west"]
delay = "50ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "min"
at_least = "100ms"

[[cases.mesh.thresholds]]
metric = "ping.udp.rtt"
stat = "min"
at_least = "100ms"

[[cases.mesh.thresholds]]
metric = "ping.tcp.connect"
stat = "min"
at_least = "100ms"

# What a loaded machine may add.
[[cases.mesh.thresholds]]
metric = "ping.udp.rtt"
stat = "p50"
below = "140ms"
"#;

pub(super) fn run_local(home: &Home, plan: &Path, more: &[&str]) -> Output {
    let plan = plan.display().to_string();
    home.run(&[&["run", &plan, "--no-build", "--local"], more].concat())
}

/// How long a peer of `split` is silent before it counts as lost: half of what the partition takes, since a busy machine
/// may keep one for a second that is in no other region.
pub(super) const SILENCE: &str = "silence=2500ms";

/// Fetches the files of a result and returns the events of its instances.
pub(super) fn events(home: &Home, result: &str, instances: u32) -> Vec<String> {
    let out = home.path().join("out");
    let local = home.path().join("local").display().to_string();
    home.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string(), "--home", &local]).exits(0);
    let of = |index| std::fs::read_to_string(out.join(format!("events/node/{index}.jsonl"))).unwrap();
    (0..instances).map(of).collect()
}

/// Verifies a result and returns the bodies of its receipts, and on how many lablets they were.
pub(super) fn receipts(lab: &Lab, result: &Value) -> (Vec<Value>, usize) {
    let result = result.as_str().expect("a result");
    assert_eq!(lab.run(&["show", result, "--json"]).exits(0).json()["verified"], true);
    let shards = lab.run(&["dag", "get", &format!("{result}/attestation/body/receipts")]).exits(0).json();
    let (mut receipts, mut lablets) = (Vec::new(), BTreeSet::new());
    for shard in shards.as_array().expect("a list of links") {
        let node = lab.run(&["dag", "get", &format!("{}/receipts", shard["/"].as_str().unwrap())]).exits(0).json();
        for signed in node.as_array().expect("a list of receipts") {
            lablets.insert(signed["signer"].to_string());
            receipts.push(signed["body"].clone());
        }
    }
    (receipts, lablets.len())
}

#[test]
fn round_trips_are_as_long_as_the_network_asks() {
    let home = Home::new();
    let plan = ping_over(home.path(), APART);
    let checked = home.run(&["check", &plan.display().to_string()]).exits(0);
    assert!(checked.stderr.contains("2 regions, 0ms to 50ms one way"), "{}", checked.stderr);
    let output = run_local(&home, &plan, &["-g", "node=2", "-p", "rounds=5"]).exits(0);
    assert!(output.stderr.contains("network ") && output.stderr.contains("2 regions"), "{}", output.stderr);
    // The same plan on another network.
    let output = run_local(&home, &plan, &["-g", "node=2", "-p", "rounds=5", "--network", "clean", "--json"]);
    assert_eq!(output.exits(10).last_json()["verdict"], "fail", "no round trip takes 100 ms");
    let unknown = run_local(&home, &plan, &["--network", "claen"]).fails(2, "run.invalid");
    assert!(unknown.stderr.contains("did you mean `clean`?"), "{}", unknown.stderr);
    let dry = run_local(&home, &plan, &["-g", "node=2", "--dry-run", "--network", "world-2019"]).exits(0);
    assert!(dry.stderr.contains("6 regions, 5.5ms to 162.5ms one way"), "{}", dry.stderr);
}

#[test]
fn a_partition_is_seen_by_instances_and_told_in_their_events() {
    let home = Home::new();
    let plan = repository().join("plans/split");
    let output = run_local(&home, &plan, &["-g", "node=4", "-p", SILENCE, "--json"]).exits(0);
    let last = output.last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let events = events(&home, last["result"].as_str().unwrap(), 4);
    let events: Vec<Value> = events[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).cloned().collect::<Vec<_>>();
    let faults: Vec<_> = named("iptl.fault").iter().map(|event| event["data"]["fault"].clone()).collect();
    assert_eq!(faults, ["partition", "heal"]);
    // Half of four are in the other region.
    assert_eq!((named("lost").len(), named("found").len()), (2, 2));
}

#[test]
fn link_of_an_instance_is_captured_into_its_artifacts() {
    let home = Home::new();
    let plan = ping_over(home.path(), APART);
    let options = ["-g", "node=2", "-p", "rounds=5", "--pcap", "node/1", "--json"];
    let last = run_local(&home, &plan, &options).exits(0).last_json();
    let events = events(&home, last["result"].as_str().unwrap(), 2);
    let said = |n: usize| events[n].contains("\"iptl.capture\"") && events[n].contains("\"whole\":true");
    assert!(!said(0) && said(1), "{events:?}");
    let artifacts = home.path().join("out/artifacts/node");
    assert!(!artifacts.join("0").exists(), "nobody asked for that one");
    let packets = packets(&artifacts.join("1/lab-link.pcap"));
    let ways: BTreeSet<_> = packets.iter().map(|(_, packet)| (packet.src, packet.dst, packet.protocol)).collect();
    let [a, b]: [std::net::IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    // TCP and UDP, both ways.
    assert_eq!(ways, BTreeSet::from([(a, b, 6), (b, a, 6), (a, b, 17), (b, a, 17)]));
    let times: Vec<u64> = packets.iter().map(|(at_ns, _)| *at_ns).collect();
    assert!(times.is_sorted());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.saturating_sub(std::time::Duration::from_nanos(times[0]));
    assert!(age.as_secs() < 600 && now.as_nanos() > u128::from(times[0]), "wall time: {age:?}");
}

/// Reads a capture as another program does; returns times and heads of its packets.
fn packets(capture: &Path) -> Vec<(u64, iptl_labnet::Header)> {
    use pcap_parser::traits::PcapReaderIterator;
    use pcap_parser::{LegacyPcapReader, Linktype, PcapBlockOwned, PcapError};
    let file = std::fs::File::open(capture).unwrap_or_else(|e| panic!("{}: {e}", capture.display()));
    let mut reader = LegacyPcapReader::new(1 << 20, file).unwrap();
    let mut packets = Vec::new();
    loop {
        let size = match reader.next() {
            Ok((size, PcapBlockOwned::LegacyHeader(head))) => {
                assert!(head.is_nanosecond_precision() && head.network == Linktype::RAW);
                size
            }
            Ok((size, PcapBlockOwned::Legacy(packet))) => {
                let at_ns = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_usec);
                packets.push((at_ns, iptl_labnet::Header::parse(packet.data).unwrap()));
                size
            }
            Ok((_, PcapBlockOwned::NG(_))) => panic!("another format"),
            Err(PcapError::Eof) => return packets,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().unwrap();
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        reader.consume(size);
    }
}

#[test]
fn capture_of_nobody_or_of_no_packets_is_refused() {
    let home = Home::new();
    let plan = ping_over(home.path(), APART);
    let refused = |options: &[&str]| run_local(&home, &plan, options).fails(2, "run.invalid").stderr;
    let text = refused(&["-g", "node=2", "--pcap", "node/2"]);
    assert!(text.contains("E0410") && text.contains("no instance node/2"), "{text}");
    let text = refused(&["-g", "node=2", "--pcap", "node/0", "--network", "clean"]);
    assert!(text.contains("no packets that could be captured"), "{text}");
    let odd = run_local(&home, &plan, &["--pcap", "node"]).exits(2);
    assert!(odd.stderr.contains("write GROUP/N"), "{}", odd.stderr);
}

#[test]
fn paused_instances_answer_once_they_go_on() {
    let home = Home::new();
    let pause = r#"
[[faults]]
at = "1s"
pause = { group = "node", share = "50%", for = "1500ms" }

[[cases.mesh.thresholds]]
metric = "ping.tcp.rtt"
stat = "max"
at_least = "1s"
"#;
    let plan = ping_over(home.path(), pause);
    let options = ["-g", "node=2", "-p", "rounds=60", "-p", "interval=50ms", "-p", "patience=5s", "--json"];
    let last = run_local(&home, &plan, &options).exits(0).last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let events = events(&home, last["result"].as_str().unwrap(), 2);
    let paused = events.iter().filter(|events| events.contains("\"fault\":\"pause\"")).count();
    assert_eq!(paused, 1, "{events:?}");
}

#[test]
fn what_every_link_did_is_shown_of_a_result() {
    let home = Home::new();
    let plan = ping_over(home.path(), APART);
    let last = run_local(&home, &plan, &["-g", "node=2", "-p", "rounds=5", "--json"]).exits(0).last_json();
    let local = home.path().join("local").display().to_string();
    let show =
        |more: &[&str]| home.run(&[&["show", last["result"].as_str().unwrap(), "--home", &local], more].concat());
    let shown = show(&["--json"]).exits(0).json();
    let instances = shown["links"]["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2, "{shown}");
    for of in instances {
        let names: Vec<_> = of["links"].as_array().unwrap().iter().map(|link| link["link"].clone()).collect();
        assert_eq!(names, ["up", "down"], "{of}");
        let did = &of["links"][0]["did"];
        assert!(did["offered"].as_u64() > Some(10) && did["delivered"] == did["offered"], "{of}");
        assert_eq!((&of["lost_by_lab"], &did["lost"]), (&json!(0), &json!(0)));
    }
    let [cell] = shown["links"]["cells"].as_array().unwrap().as_slice() else { panic!("one cell: {shown}") };
    let across = &cell["across"];
    assert_eq!(across["asked_ns"].as_u64().unwrap(), across["delivered"].as_u64().unwrap() * 50_000_000, "{cell}");
    // Each way by itself, and together what the sum says.
    let between = shown["links"]["between"].as_array().unwrap();
    let ways: Vec<_> = between.iter().map(|way| (way["from"].as_str().unwrap(), way["to"].as_str().unwrap())).collect();
    assert_eq!(ways, [("east", "west"), ("west", "east")], "{shown}");
    for way in between {
        let did = |what: &str| way["did"][what].as_u64().unwrap();
        assert!(did("delivered") > 5 && did("asked_ns") == did("delivered") * 50_000_000, "{way}");
        assert!(did("measured_ns") >= did("asked_ns") && way["lost_by_lab"] == 0, "{way}");
    }
    let all: u64 = between.iter().map(|way| way["did"]["offered"].as_u64().unwrap()).sum();
    assert_eq!(all, across["offered"].as_u64().unwrap(), "{cell}");
    let timed: u64 = cell["lateness"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum();
    assert!(timed > 0 && cell["late_ns"]["max"].as_u64() >= cell["late_ns"]["p50"].as_u64(), "{cell}");

    // What each used is told by group.
    let used = &shown["used"]["node"];
    assert!(used["cpu_us"]["p50"].as_u64() > Some(0) && used["memory_bytes"]["max"].as_u64() > Some(1 << 16), "{used}");
    assert_eq!(used["instances"], 2);

    // Few links are shown unasked, as the table that `--links` shows of many.
    for more in [&[][..], &["--links"]] {
        let text = show(more).exits(0).stdout;
        let row =
            |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(row("LINK").contains("DELIVERED") && row("node/1 down").contains(" 0 "), "{text}");
        assert!(row("east → west").contains("50.000 ms") && row("west → east").contains("50.000 ms"), "{text}");
        assert!(text.contains("between regions") && text.contains("50.000 ms"), "{text}");
        assert!(row("late ").contains("99% by"), "{text}");
        assert!(row("used ").contains("node: each cpu ") && row("used ").contains("of 2 cpu "), "{text}");
    }
    let clean =
        run_local(&home, &plan, &["-g", "node=2", "--network", "clean", "-p", "rounds=5", "--json"]).last_json();
    let text = home.run(&["show", clean["result"].as_str().unwrap(), "--links", "--home", &local]).exits(0).stdout;
    assert!(text.contains("no packets were carried as such"), "{text}");
}

#[test]
fn network_and_faults_of_a_run_are_those_of_a_file() {
    let home = Home::new();
    let plan = ping_over(home.path(), "");
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let network =
        "[network]\nregions = [\"here\", \"there\"]\ndelay = \"30ms\"\n\n[network.groups.node]\nnat = \"50%\"\n";
    let faults = "[[faults]]\nat = \"300ms\"\ncrash = { group = \"node\", restart = \"100ms\", address = \"new\" }\n\n\
                  [[faults]]\nevery = \"1s\"\ndelay = { from = \"here\", to = \"there\", is = \"90ms\" }\n";
    let (both, network) = (write("both.toml", &format!("{network}\n{faults}")), write("network.toml", network));
    let faults = write("faults.toml", faults);

    // Shown before anything runs; equal choices are an equal run, however they are written.
    let dry = |more: &[&str]| run_local(&home, &plan, &[&["-g", "node=2", "--dry-run", "--json"], more].concat());
    let first = dry(&["--network", &network, "--faults", &faults]).exits(0).last_json();
    assert!(first["network"]["says"].as_str().unwrap().contains("2 regions, 0ms to 30ms one way"), "{first}");
    let says = first["faults"][0]["says"].as_array().unwrap();
    assert_eq!(says.len(), 3, "a delay changes both ways: {first}");
    assert_eq!(says[0], "at 300ms: crash of 100% of node, restart after 100ms at another address");
    let again = dry(&["--network", &both, "--faults", &both]).exits(0).last_json();
    assert_eq!(again["run"], first["run"]);
    let by_cid = [first["network"]["cid"].as_str().unwrap(), first["faults"][0]["cid"].as_str().unwrap()];
    let again = dry(&["--network", by_cid[0], "--faults", by_cid[1]]).exits(0).last_json();
    assert_eq!(again["run"], first["run"]);
    let none = dry(&["--network", &both, "--faults", "none"]).exits(0).last_json();
    assert_eq!(none["faults"], json!([]));
    assert_ne!(none["run"], first["run"]);
    let text =
        run_local(&home, &plan, &["-g", "node=2", "--dry-run", "--faults", &faults]).fails(2, "run.invalid").stderr;
    assert!(text.contains("E0317") && text.contains("faults.toml") && text.contains("there is `everywhere`"), "{text}");

    // And it happens.
    let options =
        ["-g", "node=2", "-p", "rounds=10", "-p", "patience=3s", "--network", &both, "--faults", &both, "--json"];
    let last = run_local(&home, &plan, &options).last_json();
    let events = events(&home, last["result"].as_str().unwrap(), 2);
    assert!(events.iter().all(|events| events.contains("\"crash\"") && events.contains("\"restart\"")), "{events:?}");
    let probed = home.run(&["net", "probe", &network, "--local", "--json"]).exits(0).json();
    assert!(probed["links"].as_array().is_some_and(|links| links.len() >= 4), "{probed}");
}

#[test]
fn files_with_a_network_or_faults_that_are_none_are_refused_with_their_place() {
    let home = Home::new();
    let plan = ping_over(home.path(), "");
    let refused = |flag: &str, text: &str| {
        let path = home.path().join("odd.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        run_local(&home, &plan, &["-g", "node=2", "--dry-run", flag, &path]).fails(2, "run.invalid").stderr
    };
    for (flag, text, code, says) in [
        ("--network", "[network]\nregions = [\"a\", \"b\"]\ndelays = [[\"1ms\"]]\n", "E0315", "not square"),
        ("--network", "[network]\n[network.groups.nod]\nnat = \"5%\"\n", "E0322", "did you mean `node`?"),
        ("--network", "[[faults]]\nat = \"1s\"\nheal = true\n", "E0202", "the file has no `[network]`"),
        ("--faults", "[network]\n", "E0202", "the file has no `[[faults]]`"),
        ("--faults", "[[faults]]\nat = \"1s\"\ncrash = { files = \"gone\" }\n", "E0205", "`lost`"),
        ("--faults", "[plan]\nname = \"x\"\n[[faults]]\nat = \"1s\"\nheal = true\n", "E0201", "no key `plan`"),
        ("--faults", "[[faults]\n", "E0101", "not TOML"),
    ] {
        let shown = refused(flag, text);
        assert!(shown.contains(code) && shown.contains(says) && shown.contains("odd.toml"), "{text}: {shown}");
    }
    let missing = run_local(&home, &plan, &["--faults", "./nowhere.toml"]).fails(2, "run.no-file");
    assert!(missing.stderr.contains("nowhere.toml"), "{}", missing.stderr);
    let named = run_local(&home, &plan, &["--faults", "storm"]).fails(2, "run.not-faults");
    assert!(named.stderr.contains("write them into a file"), "{}", named.stderr);
}

#[test]
fn a_network_that_is_no_network_is_refused_with_its_place() {
    let home = Home::new();
    let plan = ping_over(home.path(), "[network]\nregions = [\"a\", \"b\"]\ndelays = [[\"1ms\"]]\n");
    let output = home.run(&["check", &plan.display().to_string()]).exits(2);
    assert!(output.stderr.contains("E0315"), "{}", output.stderr);
    home.run(&["explain", "E0315"]).exits(0);
}

#[test]
fn components_on_three_lablets_are_as_far_apart_as_the_network_asks() {
    let lab = Lab::start(3);
    let plan = ping_over(lab.path(), APART).display().to_string();
    let options = ["-g", "node=6", "-p", "rounds=5", "--json"];
    // Among six there are neighbours: the thresholds of two in different regions are those of the slowest.
    let manifest = std::fs::read_to_string(Path::new(&plan).join("plan.toml")).unwrap();
    let manifest = manifest.replace("stat = \"min\"", "stat = \"max\"").replace("stat = \"p50\"", "stat = \"min\"");
    std::fs::write(Path::new(&plan).join("plan.toml"), manifest).unwrap();
    let last = lab.run(&[&["run", &plan, "--no-build"], &options[..]].concat()).exits(0).last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let (receipts, lablets) = receipts(&lab, &last["result"]);
    assert_eq!((receipts.len(), lablets), (6, 3));
    for receipt in &receipts {
        let across = &receipt["network"]["cell"]["across"];
        assert!(across["delivered"].as_u64() > Some(0), "{receipt}");
        // Held where they arrive, and never let go early.
        assert!(across["measured_ns"].as_u64() >= across["asked_ns"].as_u64(), "{receipt}");
    }
    // Each lablet counts what came to its own instances; shown is what a link did in all.
    let shown = lab.run(&["show", last["result"].as_str().unwrap(), "--json"]).exits(0).json();
    let sum = |links: &serde_json::Value, of: &dyn Fn(&serde_json::Value) -> u64| -> u64 {
        links.as_array().unwrap().iter().map(of).sum()
    };
    let links = &shown["links"];
    let in_all = sum(&links["between"], &|way| way["did"]["delivered"].as_u64().unwrap());
    let by_cells = sum(&links["cells"], &|cell| cell["across"]["delivered"].as_u64().unwrap());
    assert!(in_all > 0 && in_all == by_cells, "{links}");
    let ways = links["between"].as_array().unwrap();
    let between = |from: &str, to: &str| ways.iter().find(|way| way["from"] == from && way["to"] == to).unwrap();
    for (from, to) in [("east", "west"), ("west", "east")] {
        let did = &between(from, to)["did"];
        // More is asked of a packet that another lablet's clock says came before one that is under way.
        assert!(did["asked_ns"].as_u64().unwrap() >= did["delivered"].as_u64().unwrap() * 50_000_000, "{did}");
        let seen = sum(&links["cells"], &|cell| {
            sum(&cell["between"], &|way| u64::from(way["from"] == from && way["to"] == to))
        });
        assert!(seen > 0, "{links}");
    }
}

#[test]
fn neighbours_in_a_home_are_placed_on_one_lablet() {
    let lab = Lab::start(3);
    let plan = ping_over(lab.path(), "[network.groups.node]\nnat = \"100%\"\nper = 4\n").display().to_string();
    let dry = |more: &[&str]| {
        let args = [&["run", &plan, "--no-build", "-g", "node=10", "--dry-run", "--json"], more].concat();
        let placed = lab.run(&args).exits(0).json();
        let rows = placed["rows"].as_array().unwrap().clone();
        let number = |row: &serde_json::Value, what: &str| row[what].as_u64().unwrap();
        rows.iter().map(|row| (number(row, "start"), number(row, "count"))).collect::<Vec<_>>()
    };
    let mut placed = dry(&[]);
    placed.sort_unstable();
    assert!(placed.iter().all(|(start, _)| start % 4 == 0), "{placed:?}");
    assert_eq!(placed.iter().map(|(_, count)| count).sum::<u64>(), 10);
    assert!(placed.len() > 1, "on several lablets: {placed:?}");
    // Another network has nobody together.
    let placed = dry(&["--network", "clean"]);
    assert!(placed.iter().any(|(start, _)| start % 4 != 0), "{placed:?}");
}

#[test]
fn probe_says_what_lablets_make_of_a_network_and_how_far_they_are_apart() {
    let lab = Lab::start(2);
    let output = lab.run(&["net", "probe", "world-2019", "--json"]).exits(0);
    let reports: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2, "{reports:?}");
    for report in &reports {
        let links = report["links"].as_array().unwrap();
        // Six regions with all their pairs, and access classes both ways.
        assert!(links.len() > 36, "{} links", links.len());
        for link in links {
            let (asked, measured) = (link["asked_ns"].as_u64().unwrap(), link["measured_ns"].as_u64().unwrap());
            assert!(link["packets"].as_u64() > Some(0) && measured >= asked, "never early: {link}");
        }
        assert!(report["late_ns"]["p99"].as_u64() > Some(0), "{report}");
        let ways = report["ways"].as_array().unwrap();
        let best = ways[0]["best_ns"].as_u64();
        assert!(ways.len() == 1 && best > Some(0) && best < Some(50_000_000), "the other one: {ways:?}");
        assert_eq!(ways[0]["relayed"], false);
    }
    let text = lab.run(&["net", "probe", &repository().join("plans/split").display().to_string()]).exits(0).stdout;
    assert!(text.contains("lablet ") && text.contains("LINK") && text.contains(" one way"), "{text}");
    assert!(text.contains("distorted"), "what would be, or that nothing would: {text}");
}

#[test]
fn probe_of_no_network_is_refused_with_a_reason() {
    let home = Home::new();
    let clean = home.run(&["net", "probe", "clean", "--local"]).fails(2, "net.clean");
    assert!(clean.stderr.contains("name another network"), "{}", clean.stderr);
    let local = home.run(&["net", "probe", "world-2015", "--local", "--json"]).exits(0).json();
    assert_eq!(local["ways"].as_array().map(Vec::len), Some(0), "there is nobody else: {local}");
}

#[test]
fn a_partition_parts_instances_of_three_lablets() {
    let lab = Lab::start(3);
    let plan = repository().join("plans/split").display().to_string();
    let output = lab.run(&["run", &plan, "--no-build", "-g", "node=9", "-p", SILENCE, "--json"]).exits(0);
    let last = output.last_json();
    assert_eq!(last["verdict"], "pass", "{last}");
    let (receipts, lablets) = receipts(&lab, &last["result"]);
    assert_eq!((receipts.len(), lablets), (9, 3));

    // Each lablet did it, and said so: in the narrative, in the log and in the result.
    let asked = [("partition", 3), ("heal", 3)];
    let lines: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = lines.iter().filter(|line| line["event"] == "fault").cloned().collect::<Vec<_>>();
    assert_eq!(by_kind(&told), asked, "{told:?}");
    let audited = lab.run(&["audit", "last", "--json"]).exits(0);
    let facts: Vec<Value> = audited.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done = facts.iter().filter_map(|fact| fact["body"]["faulted"]["faults"].as_array());
    let done: Vec<Value> =
        done.flatten().map(|done| json!({"fault": done["kind"], "instances": done["instances"]})).collect();
    assert_eq!(by_kind(&done), asked, "{facts:?}");
    let shown = lab.run(&["show", last["result"].as_str().unwrap(), "--json"]).exits(0).json();
    let faults = shown["faults"].as_array().unwrap();
    assert_eq!(by_kind(faults), asked, "{faults:?}");
    for fault in faults {
        let (due, done) = (fault["due_us"].as_u64().unwrap(), fault["done_us"].as_u64().unwrap());
        assert!(due > 0 && done >= due, "asked and done: {fault}");
    }
    let text = lab.run(&["show", last["result"].as_str().unwrap()]).exits(0).stdout;
    assert!(text.contains("fault ") && text.contains("partition") && text.contains("asked for"), "{text}");
    let text = lab.run(&["audit", "last"]).exits(0).stdout;
    assert!(text.contains("faulted    on ") && text.contains("heal of"), "{text}");
}

#[test]
fn addresses_and_clocks_that_change_are_facts_of_the_log_and_events_of_instances() {
    let lab = Lab::start(1);
    let faults = "[network]\nregions = [\"here\"]\ndelays = [[\"5ms\"]]\n\n\
                  [[faults]]\nat = \"200ms\"\nclock = { group = \"node\", forward = \"1h\" }\n\n\
                  [[faults]]\nat = \"400ms\"\naddress = { group = \"node\" }\n";
    let plan = ping_over(lab.path(), faults).display().to_string();
    // Whoever pings an address that nobody has any more may fail for it: that is the plan's affair.
    let options = ["-g", "node=2", "-p", "rounds=20", "-p", "interval=50ms", "-p", "patience=2s", "--json"];
    let last = lab.run(&[&["run", &plan, "--no-build"], &options[..]].concat()).last_json();
    let result = last["result"].as_str().unwrap();
    let shown = lab.run(&["show", result, "--json"]).exits(0).json();
    assert_eq!(by_kind(shown["faults"].as_array().unwrap()), [("clock", 1), ("address", 1)], "{shown}");
    let audited = lab.run(&["audit", "last"]).exits(0).stdout;
    assert!(audited.contains("clock of 2") && audited.contains("address of 2"), "{audited}");
    let out = lab.path().join("out");
    lab.run(&["get", &format!("{result}/files"), "-o", &out.display().to_string()]).exits(0);
    for index in 0..2 {
        let events = std::fs::read_to_string(out.join(format!("events/node/{index}.jsonl"))).unwrap();
        assert!(events.contains("\"clock\"") && events.contains("\"address\""), "{events}");
    }
}

/// Counts what was done, each kind by its lablets, in the order in which it comes first.
pub(super) fn by_kind(done: &[Value]) -> Vec<(&str, usize)> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for kind in done.iter().map(|done| done["fault"].as_str().unwrap()) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    kinds
}
